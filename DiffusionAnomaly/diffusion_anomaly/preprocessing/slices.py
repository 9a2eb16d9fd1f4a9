"""A scan as the slices a network reads, and anomaly scores on those slices back on exactly the scan's grid.

The model's grid is parallel to the scan's own axes, so in-plane resampling is one small sparse matrix per
axis, and the way back another. Both directions weigh by the brain mask (normalised convolution, Knutsson &
Westin 1993): what lies outside the brain never bleeds into a slice, so a scan with skull and the same scan
stripped give the same pixels, and scores do not fade towards the brain's edge. Slices are made on demand:
beside the scan itself only the brain mask on the model's grid is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import SimpleITK as sitk
from scipy.sparse import csr_array

from ..errors import InputError
from ..io.orientation import Orientation, describe_grid, same_grid
from ..text import counted

MOST_NEIGHBOURS = 8
# Of a voxel's surroundings on the model's grid at least this share is brain where the voxel gets a score.
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Grid:
    """The slices a model reads.

    Attributes:
        size: Width and height in pixels.
        spacing: Pixel edge in mm, the same along both axes; None for slices that are fitted to the size, each axis by
            itself, as pictures without a scale are.
        max_slice_spacing: Slices are at most this far apart, in mm. Thinner input is averaged over slabs that
            approach it; thicker input is taken slice by slice.
        neighbours: How many slices on either side a network sees beside each slice.
    """

    size: tuple[int, int]
    spacing: float | None
    max_slice_spacing: float = 3.0
    neighbours: int = 0

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"Grid size is {self.size}; expected a width and a height of at least 1 pixel.")
        for name in ("spacing", "max_slice_spacing"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; expected a positive number of mm.")
        if self.neighbours == int(self.neighbours):  # JSON has one kind of number
            object.__setattr__(self, "neighbours", int(self.neighbours))
        if not isinstance(self.neighbours, int) or not 0 <= self.neighbours <= MOST_NEIGHBOURS:
            raise InputError(f"neighbours is {self.neighbours}; expected 0 to {MOST_NEIGHBOURS} slices.")


@dataclass(frozen=True)
class Slab:
    """Neighbouring canonical slices start..stop-1 that one model slice stands for."""

    start: int
    stop: int

    @property
    def centre(self) -> float:
        """Where the slab's mean lies, in canonical slice indices; a half between two slices."""
        return (self.start + self.stop - 1) / 2


class SliceStack:
    """Canonical axial slices of a scan on a model's grid.

    The grid is centred in-plane on the brain's bounding box, moved by at most half a voxel so that its first
    pixel falls on a voxel: a grid with the scan's own spacing copies voxels exactly. Through the slices
    nothing is resampled. Input thinner than the grid's `max_slice_spacing` is averaged over slabs of n =
    floor(max_slice_spacing / slice spacing) slices, counted from the first slice with brain.

    Args:
        images: The scan's channels, 3-D, on one grid.
        grid: The model's slices.
        brain: Mask of the region that is looked at on that grid, not 0 inside: mostly the brain.
        orientation: Which of the scan's axes are slices, rows and columns; None for axial slices.

    Raises:
        InputError: when a channel or the mask has another grid, when the mask is empty, or leaves no pixel on the
            model's grid.

    Attributes:
        indices: Canonical index of each slice's middle, ascending. Slices without brain are left out. An
            index does not depend on batches, so it can seed a slice's randomness.
        slice_spacing: Distance between slices in mm.
        pixel_mm: Height and width of a pixel in mm.
        voxel_ml: What one pixel of one slice stands for, in ml.
    """

    indices: tuple[int, ...]

    def __init__(
        self, images: Sequence[sitk.Image], grid: Grid, brain: sitk.Image, orientation: Orientation | None = None
    ) -> None:
        reference = images[0]
        if not same_grid(brain, reference):
            raise InputError(
                f"The brain mask's grid ({describe_grid(brain)}) is not the scan's ({describe_grid(reference)}).",
                "Resample the mask onto the scan.",
            )
        for other in images[1:]:
            if not same_grid(other, reference):
                raise InputError(
                    f"A channel's grid ({describe_grid(other)}) is not the first one's ({describe_grid(reference)}).",
                    "Resample all channels onto the first.",
                )
        self.grid = grid
        self._images = tuple(images)  # the views below are of their memory
        self._image = reference
        self._mask_image = brain
        self._orientation = orientation or Orientation.of(self._image)
        self._channels = [self._orientation.view(sitk.GetArrayViewFromImage(image)) for image in images]
        self._mask = self._orientation.view(sitk.GetArrayViewFromImage(self._mask_image))
        slice_mm, row_mm, column_mm = self._orientation.spacing(self._image)
        box = _bounding_box(self._mask)
        if box is None:
            raise InputError("The brain mask is empty.", "Give a mask that covers the brain, or leave it out.")
        # A scan whose header says 1.0000001 mm is a 1 mm scan: without the allowance, 3 mm would hold 2
        # slices.
        thickness = min(max(1, math.floor(grid.max_slice_spacing / slice_mm + 1e-3)), len(self._mask))
        self.slice_spacing = thickness * slice_mm

        width, height = grid.size
        extents = ((box[1][1] - box[1][0] + 1) * row_mm, (box[2][1] - box[2][0] + 1) * column_mm)
        self.pixel_mm = (grid.spacing or extents[0] / height, grid.spacing or extents[1] / width)
        self.voxel_ml = math.prod(self.pixel_mm) * self.slice_spacing / 1000
        self._rows = _Axis.centred(box[1], self._mask.shape[1], row_mm, height, self.pixel_mm[0])
        self._columns = _Axis.centred(box[2], self._mask.shape[2], column_mm, width, self.pixel_mm[1])

        first, last = box[0]
        slabs = [Slab(k, min(k + thickness, len(self._mask))) for k in range(first, last + 1, thickness)]
        masks = np.zeros((len(slabs), height, width), dtype=bool)
        for mask, slab in zip(masks, slabs, strict=True):
            count = np.count_nonzero(self._mask[slab.start : slab.stop], axis=0).astype(np.float32)
            mask[:] = self._to_grid(count) >= 0.5 * (slab.stop - slab.start)
        keep = [index for index, mask in enumerate(masks) if mask.any()]
        if not keep:
            voxels = counted(int(np.count_nonzero(self._mask)), "voxel")
            raise InputError(
                f"The brain mask ({voxels}) covers no pixel of {self.pixel_mm[0]:g} mm on the model's grid.",
                "Give a mask that covers the brain.",
            )
        self._slabs = tuple(slabs[index] for index in keep)
        self._masks = masks[keep]
        self.indices = tuple((slab.start + slab.stop) // 2 for slab in self._slabs)

    def __len__(self) -> int:
        return len(self._slabs)

    @cached_property
    def coverage(self) -> float:
        """Share of the brain's voxels that get a score from `to_volume`.

        It is less than 1 where the brain is larger than the grid, where it ends in parts smaller than half a pixel,
        and where such parts lie scattered.
        """

        @lru_cache(maxsize=3)
        def weight_of(index: int) -> np.ndarray:
            return self._to_scan(self._masks[index])

        reached = 0
        for k, index, neighbour, share in self._thin_slices():
            weight = weight_of(index)
            if share:
                weight = (1 - share) * weight + share * weight_of(neighbour)
            reached += np.count_nonzero((self._mask[k] != 0) & (weight > _LEAST_WEIGHT))
        return reached / np.count_nonzero(self._mask)

    def images(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Slices start..stop-1 in the scan's own units.

        Anti-aliased linear in-plane (a triangle as wide as the coarser of the two pixels), mean over the
        slab, each over brain voxels only.

        Returns:
            float32 (n, channels, height, width), 0 outside `brain(start, stop)`.
        """
        slabs = self._slabs[start:stop]
        images = np.zeros((len(slabs), len(self._channels), *self._masks.shape[1:]), dtype=np.float32)
        for index, slab in enumerate(slabs):
            inside = self._mask[slab.start : slab.stop] != 0
            weight = self._to_grid(inside.sum(axis=0, dtype=np.float32))
            for channel, scan in enumerate(self._channels):
                values = np.where(inside, scan[slab.start : slab.stop], np.float32(0))
                total = self._to_grid(values.sum(axis=0, dtype=np.float32))
                np.divide(total, weight, out=images[index, channel], where=self._masks[start:stop][index])
        return images

    def brain(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Where at least half of a pixel is brain: bool (n, height, width)."""
        return self._masks[start:stop].copy()

    def beside(self, index: int, offset: int) -> int | None:
        """The slice `offset` slices above (or below) slice `index`; None where there is none.

        Beyond the ends there is none, nor across slices without brain.
        """
        other = index + offset
        if not 0 <= other < len(self._slabs):
            return None
        low, high = sorted((index, other))
        slabs = self._slabs[low : high + 1]
        unbroken = all(above.start == below.stop for below, above in pairwise(slabs))
        return other if unbroken else None

    def by_slice(self, values: np.ndarray) -> np.ndarray:
        """One number of each model slice ``(len(self),)`` for each canonical slice that it stands for; else NaN."""
        spread = np.full(len(self._mask), np.nan)
        for slab, value in zip(self._slabs, values, strict=True):
            spread[slab.start : slab.stop] = value
        return spread

    def to_volume(self, anomaly_map: np.ndarray) -> sitk.Image:
        """Anomaly scores on all slices, back on the scan.

        Linear in-plane and between neighbouring slices; a thin slice of an outermost slab, beyond its centre,
        takes the slab's own value. Weighed by the brain mask, so a score that is one value throughout the
        brain comes back as that value.

        Args:
            anomaly_map: (len(self), height, width). What it holds outside `brain()` does not matter.

        Returns:
            float32 image with exactly the scan's size, spacing, origin and direction; 0 outside the brain.
        """
        if anomaly_map.shape != self._masks.shape:
            raise ValueError(f"anomaly scores have shape {anomaly_map.shape}, the stack has {self._masks.shape}")

        @lru_cache(maxsize=3)
        def spread(index: int) -> tuple[np.ndarray, np.ndarray]:
            inside = self._masks[index]
            return self._to_scan(np.where(inside, anomaly_map[index], 0)), self._to_scan(inside)

        array = np.zeros(self._image.GetSize()[::-1], dtype=np.float32)
        canonical = self._orientation.view(array)
        for k, index, neighbour, share in self._thin_slices():
            values, weight = spread(index)
            if share:
                other_values, other_weight = spread(neighbour)
                values = (1 - share) * values + share * other_values
                weight = (1 - share) * weight + share * other_weight
            inside = (self._mask[k] != 0) & (weight > _LEAST_WEIGHT)
            np.divide(values, weight, out=canonical[k], where=inside)
        image = sitk.GetImageFromArray(array)
        image.CopyInformation(self._image)
        return image

    def _thin_slices(self) -> Iterator[tuple[int, int, int, float]]:
        """The scan's slices k that lie in slabs, each with its slab's index, and the neighbour and its share at k."""
        for index, slab in enumerate(self._slabs):
            for k in range(slab.start, slab.stop):
                yield k, index, *self._neighbour(index, k)

    def _neighbour(self, index: int, k: int) -> tuple[int, float]:
        """The slice next to `index`, in whose slab k lies, to interpolate with, and its share at k."""
        slab = self._slabs[index]
        other = index + (1 if k > slab.centre else -1)
        if k == slab.centre or not 0 <= other < len(self._slabs):
            return index, 0.0
        beside = self._slabs[other]
        if beside.start != slab.stop and beside.stop != slab.start:  # slices without brain lie between them
            return index, 0.0
        return other, (k - slab.centre) / (beside.centre - slab.centre)

    def _to_grid(self, plane: np.ndarray) -> np.ndarray:
        return (self._columns.to_grid @ (self._rows.to_grid @ plane).T).T

    def _to_scan(self, plane: np.ndarray) -> np.ndarray:
        plane = plane.astype(np.float32)
        return (self._columns.to_scan @ (self._rows.to_scan @ plane).T).T


@dataclass(frozen=True)
class _Axis:
    """One in-plane axis: scan samples to grid pixels and back."""

    to_grid: csr_array
    to_scan: csr_array

    @classmethod
    def centred(cls, box: tuple[int, int], count: int, spacing: float, pixels: int, pixel_spacing: float) -> _Axis:
        """Axis of `count` samples and its `pixels` pixels, centred on the samples box[0]..box[1]."""
        ratio = pixel_spacing / spacing
        first = math.floor((box[0] + box[1]) / 2 - (pixels - 1) / 2 * ratio + 0.5)
        to_grid = _triangle_filter(first + np.arange(pixels) * ratio, count, max(1.0, ratio))
        to_scan = _triangle_filter((np.arange(count) - first) / ratio, pixels, max(1.0, 1 / ratio))
        return cls(to_grid, to_scan)


def _triangle_filter(positions: np.ndarray, count: int, half_width: float) -> csr_array:
    """Matrix that reads `count` samples at `positions` (in samples) with a triangle, rows summing to 1.

    With a half-width of 1 it is linear interpolation. A wider triangle falls unevenly on the samples, which
    would shift what it reads by some hundredths of a pixel, differently from pixel to pixel; its weights are
    tilted until their centre of mass is the position. Up to half a sample beyond the ends the outermost
    samples are read; farther out there is nothing to read and the row is empty.
    """
    reach = math.ceil(half_width)
    columns = np.floor(positions).astype(int)[:, None] + np.arange(-reach, reach + 2)
    offsets = columns - positions[:, None]
    weights = np.maximum(0.0, 1 - np.abs(offsets) / half_width)
    first = (weights * offsets).sum(axis=1, keepdims=True)
    second = (weights * offsets**2).sum(axis=1, keepdims=True)
    weights = np.where(np.abs(first) > 1e-9, weights * (second - first * offsets), weights)
    there = (positions >= -0.5) & (positions <= count - 0.5)
    weights[(columns < 0) | (columns >= count) | ~there[:, None]] = 0
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    rows, taps = np.nonzero(weights)
    values = weights[rows, taps].astype(np.float32)
    return csr_array((values, (rows, columns[rows, taps])), shape=(len(positions), count))


def _bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """First and last index along each axis where the mask is not 0, None for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not hits.size:
            return None
        box.append((int(hits[0]), int(hits[-1])))
    return tuple(box)
