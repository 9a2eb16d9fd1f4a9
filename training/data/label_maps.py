"""Label maps: read, grouped by tissue, the brain filled; and all of them in one file for a machine without TorchIO."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchio as tio
from scipy import ndimage
from torch import Tensor

from diffusion_anomaly.detection.brain_network import SPACING
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import holds_arrays, keep_foreign, whole_file

from .head_maps import BRAIN_BIT, SLAB_SPACING, bounding_box
from .tissues import BRAIN_GROUPS, OUTSIDE, RIM, TISSUES

logger = logging.getLogger(__name__)
ARRAYS = ("labels", "shapes", "centres", "spacing", "names")

FLUID_MM = 4.0  # fluid this close to the brain belongs to the mask, so that no cortex is cut off
SULCUS_MM = 6.0  # closing this far fills the sulci as hand-made and DLMUSE masks do
RIM_MM = 2.5  # white matter this close to the ventricles is normally a little brighter on FLAIR
MARGIN_MM = 12.0  # kept around the brain in maps for slabs: what a mask that leaks can show


@dataclass(frozen=True)
class Head:
    """One label map, canonical orientation, with its brain mask.

    Attributes:
        tissue: ``(1, X, Y, Z)`` uint8, 0 air, then one number a tissue.
        brain: ``(1, X, Y, Z)`` uint8, parenchyma and ventricles with the sulci filled and the fluid
            around them.
        spacing: millimetres.
    """

    tissue: Tensor
    brain: Tensor
    spacing: tuple[float, float, float]


def load_head(path: Path) -> Head:
    """Read one label map and group its labels by tissue."""
    image = tio.ToCanonical()(tio.LabelMap(path))
    labels = image.data.numpy()
    tissue = np.zeros(labels.shape, np.uint8)
    for number, group in enumerate(BRAIN_GROUPS.values(), start=1):
        tissue[np.isin(labels, group)] = number
    inside = tissue > 0
    for label in np.unique(labels[(tissue == 0) & (labels > 0)]):
        tissue[labels == label] = OUTSIDE.get(int(label), TISSUES["other"])
    brain = np.zeros(tissue.shape[1:], np.uint8)
    box = _box_around(inside[0], FLUID_MM + image.spacing[0], image.spacing)  # distances take their time
    found = np.asarray(ndimage.binary_fill_holes(_close(inside[0][box], SULCUS_MM, image.spacing)))
    near = _distance(~found, image.spacing) <= FLUID_MM
    brain[box] = found | near & (tissue[0][box] == TISSUES["fluid"])
    return Head(torch.from_numpy(tissue), torch.from_numpy(brain[None]), image.spacing)


def load_slab_head(path: Path) -> Head:
    """The same for slabs: with the white matter along the ventricles told apart, and no more than the brain needs."""
    head = load_head(path)
    box = _box_around(head.brain[0].numpy() > 0, MARGIN_MM, head.spacing)
    tissue, brain = (np.ascontiguousarray(part[0].numpy()[box]) for part in (head.tissue, head.brain))
    near = _distance(tissue != TISSUES["ventricle"], head.spacing) <= RIM_MM
    tissue[near & (tissue == TISSUES["white matter"])] = RIM
    return Head(torch.from_numpy(tissue[None]), torch.from_numpy(brain[None]), head.spacing)


def prepare_labels(folder: Path, output: Path, slabs: bool = False) -> None:
    """Write all label maps of a folder as the one file that ``HeadMaps.load`` reads.

    Args:
        folder: where the label maps are (*.nii.gz).
        output: the file (.npz).
        slabs: for FLAIR slabs, from voxels of 1 mm, in place of the brain's network, from voxels of 2 mm.

    Raises:
        InputError: when the folder holds no label map, or one with voxels of another size, or ``output`` is another
            file.
    """
    wanted, load = (SLAB_SPACING, load_slab_head) if slabs else (SPACING, load_head)
    keep_foreign(output, holds_arrays(ARRAYS))
    paths = sorted(folder.glob("*.nii.gz"))
    if not paths:
        raise InputError(f"{folder} holds no label map (*.nii.gz).", "Name the folder that does.")
    labels, shapes, centres = [], [], []
    for path in paths:
        head = load(path)
        if not np.allclose(head.spacing, wanted, rtol=0.05):
            found = " x ".join(f"{size:g}" for size in head.spacing)
            raise InputError(
                f"{path} has voxels of {found} mm; the network sees {wanted:g} mm.",
                "Resample it, nearest neighbour.",
            )
        brain = head.brain[0].numpy()
        labels.append((head.tissue[0].numpy() + BRAIN_BIT * brain).ravel())
        shapes.append(brain.shape)
        centres.append(np.argwhere(brain).mean(0))
        logger.info("%s: %s voxels", path.name, " x ".join(map(str, brain.shape)))
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            labels=np.concatenate(labels),
            shapes=np.array(shapes),
            centres=np.array(centres),
            spacing=np.float64(wanted),
            names=np.array([path.name for path in paths]),
        )


def _box_around(mask: np.ndarray, margin: float, spacing: tuple[float, float, float]) -> tuple[slice, ...]:
    """Where a mask is, with a margin in mm as far as the array reaches."""
    first, end = bounding_box(mask)
    more = np.ceil(margin / np.array(spacing)).astype(int)
    return tuple(slice(max(int(low), 0), int(high)) for low, high in zip(first - more, end + more, strict=True))


def _close(mask: np.ndarray, radius: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """Closing with a ball, radius and spacing in mm."""
    margin = int(radius / min(spacing)) + 1
    padded = np.pad(mask, margin)
    grown = _distance(~padded, spacing) <= radius
    closed = _distance(grown, spacing) > radius
    return closed[margin:-margin, margin:-margin, margin:-margin]


def _distance(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Distance in mm to the nearest voxel that is not in the mask, 0 outside it."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing))
