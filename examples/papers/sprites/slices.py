"""MedNIST's head CT slices, the set of the first experiment of Pinaya et al. 2022 (section 3.1): healthy against alien.

The set is single pictures of 64 x 64 pixels, already scaled to [0, 255], without scan, height or spacing. They become
the same files as the slices of scans, so that every later stage reads them without knowing.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from diffusion_anomaly.errors import InputError
from training.data.slices import DISEASED, HEALTHY, Slices

logger = logging.getLogger(__name__)

# Pictures of other classes are never trained on: they only show that a score tells them apart.
LABELS = {"train": HEALTHY, "val": HEALTHY, "test": HEALTHY, "ood": DISEASED}


def prepare_mednist(source: Path, output: Path) -> None:
    """Write ``train.npz``, ``val.npz`` and ``test.npz`` of healthy slices and ``ood.npz`` of other pictures.

    Args:
        source: ``.npz`` with uint8 arrays train, val, test and ood, each ``(N, H, W)``.
        output: folder that the stages' configurations name as ``slices``.

    Raises:
        InputError: when the file holds something else.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist.")
    try:
        with np.load(source, allow_pickle=False) as file:
            pictures = {split: file[split] for split in LABELS if split in file}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{source} cannot be read as arrays: {error}.", "Expected a file of numpy.savez.") from error
    for split in LABELS:
        found = pictures.get(split)
        if found is None or found.ndim != 3 or found.dtype != np.uint8 or not len(found):
            what = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise InputError(f"{source} holds {what} as '{split}'; expected uint8 pictures (N, height, width).")
    output.mkdir(parents=True, exist_ok=True)
    for split, label in LABELS.items():
        slices = as_slices(pictures[split], label, f"mednist-{split}")
        slices.save(output / f"{split}.npz")
        logger.info("%s: %d pictures", split, len(slices))


def as_slices(pictures: np.ndarray, label: int, name: str) -> Slices:
    """Single pictures as slices of one label.

    All pixels count as inside: JPEG has left noise in the air around the heads, and a mask made from brightness would
    itself tell the classes apart. Every picture is a scan of its own and stands at mid-height, so that each is drawn
    as often as any other. Without a spacing, a pixel counts as 1 ml.
    """
    count = len(pictures)
    return Slices(
        images=pictures[:, None],
        brain=np.ones(pictures.shape, bool),
        label=np.full(count, label, np.int8),
        height=np.full(count, 0.5, np.float32),
        scan=np.array([f"{name}-{number:05d}" for number in range(count)]),
        index=np.zeros(count, int),
        voxel_ml=np.ones(count, np.float32),
    )
