"""The table by which findings are placed in the brain, made from label maps, and how often it is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import whole_file
from diffusion_anomaly.results.places import (
    BRAIN_STEM,
    CEREBELLUM,
    DEEP,
    HEMISPHERE,
    MIDDLE_MM,
    REGIONS,
    VENTRICLE,
    BrainFrame,
)

from .label_maps import load_head

SHAPE = (24, 28, 24)  # shares of the brain's extent to the right, to the front and upwards
# FreeSurfer's numbers, left and right.
LABELS = {
    HEMISPHERE: (2, 3, 41, 42, 77),
    DEEP: (10, 11, 12, 13, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60),
    VENTRICLE: (4, 5, 14, 15, 43, 44),
    BRAIN_STEM: (16,),
    CEREBELLUM: (7, 8, 46, 47),
}
LEFT, RIGHT = (2, 3, 7, 8, 10, 11, 12, 13, 17, 18), (41, 42, 46, 47, 49, 50, 51, 52, 53, 54)


@dataclass(frozen=True)
class LabelledBrain:
    """One head's labels by place.

    Attributes:
        shares: ``(n, 3)`` of the brain's extent.
        regions: ``(n,)`` index into ``REGIONS``.
        sides: ``(n,)`` -1 left, 1 right, 0 unpaired.
        across_mm: ``(n,)`` to the right of the middle of the brain's extent.
    """

    shares: np.ndarray
    regions: np.ndarray
    sides: np.ndarray
    across_mm: np.ndarray


def make_places(folder: Path, output: Path) -> dict[str, float]:
    """Write the table.

    Args:
        folder: label maps, ``*.nii.gz``.
        output: the file, ``.npz`` with ``regions`` uint8.

    Returns:
        Shares of the voxels of heads that the table was made without: ``region``, the same by each region's name, and
        ``side`` of the paired structures farther than ``MIDDLE_MM`` from the middle.
    """
    paths = sorted(folder.glob("*.nii.gz"))
    if len(paths) < 2:
        raise InputError(f"{folder} holds {len(paths)} label maps (*.nii.gz).", "Give the folder of at least two.")
    brains = [read_brain(path) for path in paths]
    counts = np.stack([count(brain) for brain in brains])
    total = counts.sum(0)
    right: dict[str, list[float]] = {name: [] for name in ("region", *REGIONS, "side")}
    for brain, own in zip(brains, counts, strict=True):
        table = most_frequent(total - own)
        found = table[tuple(_cells(brain.shares).T)] == brain.regions
        right["region"].append(found.mean())
        for number, name in enumerate(REGIONS):
            right[name].append(found[brain.regions == number].mean())
        told = (brain.sides != 0) & (np.abs(brain.across_mm) >= MIDDLE_MM)
        right["side"].append((np.sign(brain.across_mm[told]) == brain.sides[told]).mean())
    with whole_file(output) as partial:
        np.savez_compressed(partial, regions=most_frequent(total))
    return {name: float(np.mean(shares)) for name, shares in right.items()}


def read_brain(path: Path) -> LabelledBrain:
    """The labelled voxels of one head, in the frame of its brain mask as the models' brain mask has it."""
    head = load_head(path)
    image = sitk.GetImageFromArray(np.ascontiguousarray(head.brain[0].numpy().transpose(2, 1, 0)))
    image.SetSpacing(head.spacing)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # canonical: to the right, to the front, upwards
    frame = BrainFrame.of(image)
    assert frame is not None
    labels = _canonical(path)
    regions = np.full(labels.shape, len(REGIONS))
    for number, name in enumerate(REGIONS):
        regions[np.isin(labels, LABELS[name])] = number
    places = np.argwhere(regions < len(REGIONS))[::7]
    points = places * head.spacing
    index = tuple(places.T)
    sides = np.where(np.isin(labels[index], RIGHT), 1, 0) - np.isin(labels[index], LEFT)
    return LabelledBrain(
        (points - frame.low) / (frame.high - frame.low),
        regions[index],
        sides,
        points[:, 0] - (frame.low[0] + frame.high[0]) / 2,
    )


def count(brain: LabelledBrain) -> np.ndarray:
    """How often each region lies in each cell, ``(*SHAPE, regions)``, each head as much as any other."""
    counts = np.zeros((*SHAPE, len(REGIONS)))
    np.add.at(counts, (*_cells(brain.shares).T, brain.regions), 1 / len(brain.regions))
    return counts


def most_frequent(counts: np.ndarray) -> np.ndarray:
    """The most frequent region of each cell, of an empty one the nearest cell's."""
    from scipy import ndimage

    empty = counts.sum(-1) == 0
    nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
    return counts.argmax(-1).astype(np.uint8)[tuple(np.asarray(nearest))]


def _cells(shares: np.ndarray) -> np.ndarray:
    return np.clip((shares * SHAPE).astype(int), 0, np.array(SHAPE) - 1)


def _canonical(path: Path) -> np.ndarray:
    import torchio as tio

    return tio.ToCanonical()(tio.LabelMap(path)).data.numpy()[0]
