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

from diffusion_anomaly.atomic import whole_file
from diffusion_anomaly.brain_network import SPACING
from diffusion_anomaly.errors import InputError

from .head_maps import BRAIN_BIT
from .tissues import BRAIN_GROUPS, OUTSIDE, TISSUES

logger = logging.getLogger(__name__)

FLUID_VOXELS = 2.0  # fluid this close to the brain belongs to the mask, so that no cortex is cut off
SULCUS_VOXELS = 3.0  # closing this far fills the sulci as hand-made and DLMUSE masks do


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
        tissue[labels == label] = OUTSIDE.get(int(label), len(TISSUES))
    brain = np.asarray(ndimage.binary_fill_holes(_close(inside[0], SULCUS_VOXELS)))
    near = _distance(~brain) <= FLUID_VOXELS
    brain |= near & (tissue[0] == TISSUES["fluid"])
    return Head(torch.from_numpy(tissue), torch.from_numpy(brain.astype(np.uint8)[None]), image.spacing)


def prepare_labels(folder: Path, output: Path) -> None:
    """Write all label maps of a folder as the one file that ``HeadMaps.load`` reads.

    Raises:
        InputError: when the folder holds no label map, or one on another grid than the network's.
    """
    paths = sorted(folder.glob("*.nii.gz"))
    if not paths:
        raise InputError(f"{folder} holds no label map (*.nii.gz).", "Name the folder that does.")
    labels, shapes, centres = [], [], []
    for path in paths:
        head = load_head(path)
        if not np.allclose(head.spacing, SPACING, rtol=0.05):
            found = " x ".join(f"{size:g}" for size in head.spacing)
            raise InputError(
                f"{path} has voxels of {found} mm; the network sees {SPACING:g} mm.",
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
            names=np.array([path.name for path in paths]),
        )


def _close(mask: np.ndarray, radius: float) -> np.ndarray:
    margin = int(radius) + 1
    padded = np.pad(mask, margin)
    grown = _distance(~padded) <= radius
    closed = _distance(grown) > radius
    return closed[margin:-margin, margin:-margin, margin:-margin]


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels to the nearest one that is not in the mask, 0 outside it."""
    return np.asarray(ndimage.distance_transform_edt(mask))
