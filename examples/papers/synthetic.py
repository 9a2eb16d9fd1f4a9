"""Lesions pasted into healthy scans, so that what is found can be measured where nobody has drawn anything.

The shapes are none that a model has learnt from: smooth noise, cut at a level and held together around a middle, in
tissue or spread along the border of the region that is looked at, as blood lies between brain and skull. How far a
lesion fills a voxel is counted in finer voxels, so that slices of 5 mm show partial volume as a scanner's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import Volume, read_volume, write_like

FINE_MM = 1.5  # voxels are divided into parts no longer than this
NOISE_CELL = 0.7  # of a lesion's radius, the deviation of the filter that makes noise smooth
WANDER = 0.45  # how far noise moves the border, by the radius
SPREAD = 3.0  # a lesion along the border is so many times as wide as thick
TEXTURE_MM = 2.5  # what is finer is a scan's noise, which stays
TRIES = 20


@dataclass(frozen=True)
class Pasted:
    """What is pasted into one scan.

    Attributes:
        kind: ``inside`` for lesions anywhere in the region, ``rim`` for ones along its border.
        radius: mm, from and to, evenly in the logarithm; of ``rim`` the thickness.
        contrast: intensity above the region's median, by that median, from and to; below 0 for dark ones.
        count: lesions in a scan, from and to.
    """

    kind: Literal["inside", "rim"]
    radius: tuple[float, float]
    contrast: tuple[float, float]
    count: tuple[int, int] = (1, 1)


def paste(
    scan: np.ndarray, region: np.ndarray, spacing: Sequence[float], what: Pasted, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A scan with lesions.

    Args:
        scan: intensities ``(D, H, W)``.
        region: bool, the same shape, where lesions may lie.
        spacing: mm along each axis of the array.
        what: which lesions.
        rng: makes every choice.

    Returns:
        The scan as float32, within its own range, and the lesions, bool: voxels that they fill to a half or more.

    Raises:
        InputError: when no lesion fits into the region.
    """
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(region, 1), spacing))[1:-1, 1:-1, 1:-1]
    median = float(np.median(scan[region])) if region.any() else 0.0
    # As far as texture goes, what lies below a lesion is gone.
    smooth = ndimage.gaussian_filter(scan.astype(np.float32), TEXTURE_MM / np.asarray(spacing))
    image, mask = scan.astype(np.float32), np.zeros(region.shape, bool)
    for _ in range(int(rng.integers(what.count[0], what.count[1] + 1))):
        contrast = rng.uniform(*what.contrast)
        box, cover = _placed(depth, spacing, what, rng)
        image[box] += cover * (median * (1.0 + contrast) - smooth[box])
        mask[box] |= cover >= 0.5
    return image.clip(scan.min(), scan.max()), mask


def _placed(
    depth: np.ndarray, spacing: Sequence[float], what: Pasted, rng: np.random.Generator
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Where one lesion is, and how far it fills each voxel there."""
    for _ in range(TRIES):
        radius = math.exp(rng.uniform(*np.log(what.radius)))
        allowed = (depth > 0) & (depth <= max(spacing)) if what.kind == "rim" else depth > 0.6 * radius
        places = np.argwhere(allowed)
        if len(places):
            middle = places[rng.integers(len(places))]
            box, cover = _filled(depth, middle, spacing, radius, what.kind, rng)
            if (cover >= 0.5).any():
                return box, cover
    raise InputError(
        f"No {what.kind} lesion of {what.radius[0]:g} to {what.radius[1]:g} mm fits into the region.",
        "Choose smaller ones, or another scan.",
    )


def _filled(
    depth: np.ndarray,
    middle: np.ndarray,
    spacing: Sequence[float],
    radius: float,
    kind: str,
    rng: np.random.Generator,
) -> tuple[tuple[slice, ...], np.ndarray]:
    """How far a lesion fills the voxels of a box around its middle, counted in finer ones."""
    reach = radius * (SPREAD if kind == "rim" else 1.0)
    most = reach * (1.0 + 3.0 * WANDER)
    first = np.maximum(middle - np.ceil(most / np.asarray(spacing)).astype(int), 0)
    end = np.minimum(middle + np.ceil(most / np.asarray(spacing)).astype(int) + 1, depth.shape)
    box = tuple(slice(low, high) for low, high in zip(first, end, strict=True))
    parts = [max(1, math.ceil(edge / FINE_MM)) for edge in spacing]
    fine = [edge / part for edge, part in zip(spacing, parts, strict=True)]
    shape = [int(size) * part for size, part in zip(end - first, parts, strict=True)]
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), NOISE_CELL * radius / np.asarray(fine))
    noise /= noise.std() + 1e-9
    axes = [
        ((np.arange(size) + 0.5) / part - 0.5 + low - place) * edge
        for size, part, low, place, edge in zip(shape, parts, first, middle, spacing, strict=True)
    ]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    form = 1.0 - distance / reach + WANDER * noise
    inside = depth[box]
    for axis, part in enumerate(parts):
        inside = np.repeat(inside, part, axis)
    filled = (form > 0) & (inside > 0)
    if kind == "rim":
        filled &= inside <= radius * form.clip(0.0, 1.0)
    blocks = [length for size, part in zip(end - first, parts, strict=True) for length in (int(size), part)]
    return box, filled.reshape(blocks).mean((1, 3, 5), dtype=np.float32)


def write_pasted(
    scans: Sequence[Path],
    find_region: Callable[[Volume], sitk.Image],
    kinds: Sequence[Pasted],
    output: Path,
    *,
    ending: str = ".nii.gz",
    seed: int = 0,
) -> list[Path]:
    """A scan with lesions and their mask for each scan and kind: ``NAME-KIND`` and the ending, and ``…_mask.nii.gz``.

    Args:
        scans: healthy ones.
        find_region: says where lesions may lie, uint8 on the scan's grid.
        kinds: each gives a scan of its own.
        output: folder; what is there under the same names is replaced.
        ending: how the scans' names end, which the new scans' names do too.
        seed: of all choices, together with the scan's place in ``scans`` and the kind's.

    Returns:
        The scans written.

    Raises:
        InputError: when a scan cannot be read, its name ends otherwise, or no lesion fits.
    """
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for number, path in enumerate(scans):
        if not path.name.endswith(ending):
            raise InputError(f"{path} does not end in {ending!r}.", "Give the ending that all scans have.")
        volume = read_volume(path)
        image = sitk.GetArrayFromImage(volume.image)
        region = sitk.GetArrayFromImage(find_region(volume)) != 0
        for place, what in enumerate(kinds):
            rng = np.random.default_rng([seed, number, place])
            scan, mask = paste(image, region, volume.image.GetSpacing()[::-1], what, rng)
            name = f"{path.name.removesuffix(ending)}-{what.kind}"
            for array, last, dtype in ((scan, ending, np.float32), (mask.astype(np.uint8), "_mask.nii.gz", np.uint8)):
                made = sitk.GetImageFromArray(array)
                made.CopyInformation(volume.image)
                write_like(made, volume, output / f"{name}{last}", dtype=dtype)
            written.append(output / f"{name}{ending}")
    return written
