"""Where the findings' numbers stand in a picture: beside the outlines, over no finding and over no other number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

GAP = 4  # pixels between a number and any finding: half the outline, which is 2.8 wide, and a little
FARTHEST = 14  # pixels from the finding to the nearest edge of its number


def numbers_beside(
    labels: np.ndarray, taken: np.ndarray, extent: Callable[[int], tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """Places for the numbers of findings, as near to each as there is room.

    The finding with the most pixels comes first, and what finds no room has no place.

    Args:
        labels: ``(height, width)``, the finding's number in its pixels, else 0.
        taken: bool, likewise, where no number may stand; what numbers take is added to it.
        extent: width and height of a number in pixels.

    Returns:
        Left and top of each number that has a place.
    """
    marked = labels > 0
    if not marked.any():
        return {}
    distance, nearest = _surroundings(labels, marked)
    blocked = distance <= GAP
    boxes = {n: box for n, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}
    pixels = np.bincount(labels[marked])
    places: dict[int, tuple[int, int]] = {}
    for number in sorted(boxes, key=lambda n: (-pixels[n], n)):
        width, height = extent(number)
        window = tuple(
            slice(max(0, side.start - reach), side.stop + reach)
            for side, reach in zip(boxes[number], (height + FARTHEST, width + FARTHEST), strict=True)
        )
        free = _fitting(~(blocked[window] | taken[window]), width, height)
        if not free.size:
            continue
        # By the middle of each possible place: whose finding is nearest there, and how near.
        middle = tuple(slice(edge // 2, edge // 2 + n) for edge, n in zip((height, width), free.shape, strict=True))
        free &= nearest[window][middle] == number
        apart = np.where(free, distance[window][middle], np.inf)
        row, column = np.unravel_index(int(np.argmin(apart)), apart.shape)
        if apart[row, column] > FARTHEST + max(width, height) / 2:
            continue
        top, left = int(row) + window[0].start, int(column) + window[1].start
        places[number] = left, top
        taken[top : top + height, left : left + width] = True
    return places


def _surroundings(labels: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel how far the nearest finding is, and which one that is."""
    found: Any = ndimage.distance_transform_edt(~marked, return_indices=True)
    distance, (rows, columns) = found
    return distance, labels[rows, columns]


def _fitting(free: np.ndarray, width: int, height: int) -> np.ndarray:
    """Of each left upper corner whether all of a box is free from there, ``(rows, columns)`` of those inside."""
    sums = np.pad(np.cumsum(np.cumsum(free, axis=0, dtype=np.int32), axis=1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return inside == width * height
