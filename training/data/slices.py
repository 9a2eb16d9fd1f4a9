"""Slices of many scans as networks are trained on: one compressed array file a split.

It is small, loads at once and travels to a GPU machine, where nothing that reads images is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import holds_arrays, keep_foreign, whole_file

HEALTHY, DISEASED, UNUSED = 0, 1, -1
HEALTHY_HALF = 2  # a healthy half and its mirror image, see ``halves``


@dataclass(frozen=True)
class Slices:
    """Normalised slices of many scans.

    Attributes:
        images: ``(N, C, H, W)`` uint8, 255 is 1.0 of the normalised range; C contrasts in the configuration's order.
        brain: ``(N, H, W)`` bool.
        label: ``(N,)`` int8: healthy 0, diseased 1, -1 neither (too close to a lesion to count as healthy), 2 a
            healthy half of a diseased slice with its mirror image.
        height: ``(N,)`` float32, 0 at the brain's lowest slice and 1 at its highest.
        scan: ``(N,)`` names.
        index: ``(N,)`` canonical slice index, counted from below.
        voxel_ml: ``(N,)`` float32.
    """

    images: np.ndarray
    brain: np.ndarray
    label: np.ndarray
    height: np.ndarray
    scan: np.ndarray
    index: np.ndarray
    voxel_ml: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def select(self, keep: np.ndarray) -> Slices:
        return Slices(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))

    @classmethod
    def keep_foreign(cls, path: Path) -> None:
        """Make sure that ``save`` replaces nothing but what it wrote.

        Raises:
            InputError: when something else has that name.
        """
        keep_foreign(path, holds_arrays(cls.__dataclass_fields__))

    def save(self, path: Path) -> None:
        """Write them, whole or not at all.

        Raises:
            InputError: when it cannot be written, or something else has that name.
        """
        self.keep_foreign(path)
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__}
        arrays["brain"] = np.packbits(self.brain, axis=-1)
        with whole_file(path) as partial:
            np.savez_compressed(partial, **arrays)

    @classmethod
    def load(cls, path: Path) -> Slices:
        """What ``save`` wrote.

        Raises:
            FileNotFoundError: when the stage ``prepare`` has not written it.
            InputError: when the file holds something else.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run the stage 'prepare' first.")
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in cls.__dataclass_fields__ if name not in file]
            if missing:
                raise InputError(
                    f"{path} lacks {', '.join(missing)}.", "It is no file of the stage 'prepare'; run that stage."
                )
            arrays = {name: file[name] for name in cls.__dataclass_fields__}
        # Whole bytes are packed; a width that is no multiple of 8 has been filled up.
        width = arrays["images"].shape[-1]
        arrays["brain"] = np.unpackbits(arrays["brain"], axis=-1, count=width).astype(bool)
        if arrays["images"].ndim == 3:  # files of one contrast may leave its axis out
            arrays["images"] = arrays["images"][:, None]
        return cls(**arrays)


def join(parts: Sequence[Slices]) -> Slices:
    return Slices(*(np.concatenate([getattr(p, name) for p in parts]) for name in Slices.__dataclass_fields__))


def training_slices(folder: Path, halves: bool) -> Slices:
    """The training split of the stage ``prepare``.

    Args:
        folder: where it was written.
        halves: whether healthy halves with their mirror images count as healthy slices; they are left out otherwise.
    """
    slices = Slices.load(folder / "train.npz")
    if halves:
        return replace(slices, label=np.where(slices.label == HEALTHY_HALF, HEALTHY, slices.label))
    return slices.select(slices.label != HEALTHY_HALF)


def validation_slices(folder: Path) -> Slices:
    """The validation split of the stage ``prepare``, real slices alone."""
    slices = Slices.load(folder / "val.npz")
    return slices.select(slices.label != HEALTHY_HALF)
