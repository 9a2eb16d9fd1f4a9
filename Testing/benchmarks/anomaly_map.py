"""The anomaly score on the model's grid: some slices of a scan with their reference and brain, and the method's scores
of them.

Running the method is what costs hours. Its the anomaly score is therefore kept in files, each with the fingerprint of
everything that it was computed from, and is computed anew only where that has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.detection.inference import HeldModel, run_slices
from diffusion_anomaly.detection.planning import Plan
from diffusion_anomaly.detection.postprocess import postprocess
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation.dataset import Pair
from diffusion_anomaly.io.files import whole_file
from diffusion_anomaly.models.filters import PostprocessSettings
from diffusion_anomaly.preprocessing.intensity import IntensityScale
from diffusion_anomaly.preprocessing.slices import SliceStack

from . import evidence
from .measure import timed


@dataclass(frozen=True)
class Slices:
    """The slices of one scan that are looked at.

    Attributes:
        stack: all of the scan's.
        places: which of them.
        reference, brain: ``(n, H, W)`` bool on the model's grid.
        scale: of the scan's intensities.
        files: hash of scan and reference.
    """

    stack: SliceStack
    places: list[int]
    reference: np.ndarray
    brain: np.ndarray
    scale: IntensityScale
    files: str

    @classmethod
    def of(cls, pair: Pair, plan: Plan, brains: Path, count: int | None) -> Slices:
        """Read a scan, with its brain as given, as found before, or as found now and kept in the folder ``brains``.

        A pixel belongs to the reference when more than half of its brain does.

        Args:
            pair: scan and reference.
            plan: whose grid and device are taken.
            brains: folder.
            count: how many slices, see ``choose_slices``; None for all.
        """
        volume, reference, files = evidence.read_pair(pair)
        brain = evidence.brain_of(pair, volume, brains, plan.device)
        grid = plan.grid
        stack = SliceStack([volume.image], grid, brain)
        as_scan = replace(volume, image=sitk.Cast(reference, sitk.sitkFloat32))
        lesion = SliceStack([as_scan.image], grid, brain).images()[:, 0] > 0.5
        places = choose_slices(lesion.sum(axis=(1, 2)), count)
        return cls(
            stack,
            places,
            lesion[places],
            stack.brain()[places],
            plan.bundle.normalisation.fit_scan(volume.image, brain),
            files,
        )

    @property
    def has_lesion(self) -> np.ndarray:
        return np.asarray(self.reference.any(axis=(1, 2)))

    @property
    def is_whole(self) -> bool:
        """Whether all of the scan's slices are looked at."""
        return len(self.places) == len(self.stack)

    def stamp(self, plan: Plan, *, raw: bool = False) -> str:
        """Everything that anomaly scores of these slices depends on; ``raw`` for the anomaly score that nothing was
        done to yet.
        """
        # A given brain mask may change without the scan.
        brain = hashlib.sha256(np.packbits(self.brain).tobytes()).hexdigest()[:16]
        return evidence.fingerprint(plan, self.files, self.places, brain, raw=raw)


def choose_slices(area: np.ndarray, count: int | None) -> list[int]:
    """Half of the count with the largest reference, the others evenly spread over those without, ascending.

    Where there are too few of one kind the other fills up.

    Args:
        area: ``(n,)`` reference pixels of each slice.
        count: how many; None for all.

    Raises:
        InputError: for less than one.
    """
    if count is None or count >= len(area):
        return list(range(len(area)))
    if count < 1:
        raise InputError(f"{count} slices were asked for.", "Ask for at least 1.")
    with_lesion = [int(k) for k in np.argsort(-area, kind="stable") if area[k] > 0]
    without = [int(k) for k in np.flatnonzero(area == 0)]
    first = max(math.ceil(count / 2), count - len(without))
    chosen = with_lesion[:first]
    rest = count - len(chosen)
    chosen += [without[(2 * n + 1) * len(without) // (2 * rest)] for n in range(rest)]
    return sorted(chosen)


def run_method(looked: Slices, plan: Plan, model: Any) -> dict[str, Any]:
    """The method's ``anomaly_map`` of these slices as it comes, the ``reconstruction_error``, and ``seconds`` a slice.

    Intensities, noise and network calls are the same as if the whole scan were looked at; the reconstruction error is
    that of the slices looked at. Where networks see neighbours, all slices are looked at.
    """
    scale = looked.scale
    if looked.stack.grid.neighbours:
        places, part = looked.places, looked.stack
    else:
        places, part = slice(None), cast(SliceStack, _Part(looked.stack, looked.places))
    method, options, seed = plan.method, plan.method_options, plan.asked.seed
    run, seconds = timed(
        lambda: run_slices(part, [scale], method, options, HeldModel(lambda device: model, plan.device), seed=seed),
        plan.device,
    )
    return {"anomaly_map": run.raw[places], "misfit": run.reconstruction_error, "seconds": seconds / len(part)}


def filtered(looked: Slices, raw: Mapping[str, Any], settings: PostprocessSettings) -> np.ndarray:
    """Post-processed anomaly scores ``(n, H, W)``; not through the slices where neighbours may be missing."""
    if not looked.is_whole:
        settings = settings.changed({"slice_sigma": 0.0})
    return postprocess(
        raw["anomaly_map"],
        looked.brain,
        settings,
        raw["misfit"],
        pixel_spacing=looked.stack.grid.spacing,
        slice_spacing=looked.stack.slice_spacing,
    )


def read_known(path: Path, stamp: str) -> dict[str, Any] | None:
    """What ``keep`` wrote, if it was computed from the same."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        return {**about, "anomaly_map": content["anomaly_map"]} if about.pop("fingerprint") == stamp else None


def keep(path: Path, stamp: str, values: Mapping[str, Any]) -> None:
    """Keep ``anomaly_map`` and the numbers beside it, whole or not at all."""
    about = {"fingerprint": stamp, **{key: value for key, value in values.items() if key != "anomaly_map"}}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, anomaly_map=values["anomaly_map"], about=np.array(json.dumps(about)))


class _Part:
    """Some slices of a stack, for ``run_slices``: the same slices with the same noise as among all."""

    def __init__(self, stack: SliceStack, places: Sequence[int]) -> None:
        self._stack, self._places = stack, list(places)
        self.grid = stack.grid
        self.indices = tuple(stack.indices[place] for place in places)

    def __len__(self) -> int:
        return len(self._places)

    def images(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.concatenate([self._stack.images(place, place + 1) for place in self._places[start:stop]])

    def brain(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.concatenate([self._stack.brain(place, place + 1) for place in self._places[start:stop]])
