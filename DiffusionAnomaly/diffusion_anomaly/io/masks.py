"""Whether an image can be a mask at all: a scan given in its place would be cut at one half and taken for a brain."""

from __future__ import annotations

import numpy as np

from ..errors import InputError

# Of neighbours in a row inside a label map this share has the same label: regions are larger than a voxel. In scans of
# 8 bits it is a tenth, by chance.
ALIKE = 0.3
# Two neighbours that are neither background nor at the upper end are alike in 0.02 to 0.19 of a scan's (43 scans), and
# in 0.74 to 0.89 of a label map's (12 maps).
LABELS_ALIKE = 0.5
FEW = 16  # different values, which no scan has as few of
LABEL_PLANES = 16  # that are looked at, evenly spread
# Probabilities are mostly near 0 or 1: of those above the first value this share is above the second. Of scans from 0
# to 1 it is 0.0001, and up to 0.15 where the brightest twentieth was clipped.
UNLIKELY, LIKELY, LIKELY_SHARE = 0.05, 0.95, 0.2
WHOLE = 1e-3  # what a number may be off by and still be a whole one: headers scale labels, in single precision


def check_mask(values: np.ndarray, what: str) -> None:
    """Refuse what is neither 0 and 1 (or one other number), nor labels, nor probabilities.

    Args:
        values: of the image, ``(slices, rows, columns)``.
        what: how to call it.

    Raises:
        InputError: for many grey values, as a scan has them.
    """
    low, high = float(values.min()), float(values.max())
    if distinct_values(values, FEW) is not None:
        return
    if low >= -WHOLE and high <= 1 + WHOLE:
        if _are_probabilities(values):
            return
        raise InputError(
            f"{what} is no mask: its values from {low:.4g} to {high:.4g} are spread as those of a scan; probabilities "
            "are mostly near 0 or 1.",
            "Give a mask of 0 and 1, a label map, or probabilities from 0 to 1.",
        )
    if all(_is_whole(plane) for plane in values) and _in_regions(values):
        return
    raise InputError(
        f"{what} is no mask: it has many values, from {low:.4g} to {high:.4g}, as a scan has them.",
        "Give a mask of 0 and 1, a label map, or probabilities from 0 to 1.",
    )


def labels_in(values: np.ndarray) -> str | None:
    """What a scan's values show it to be instead: a mask or a label map; None where they are a scan's, or all alike.

    Args:
        values: ``(slices, rows, columns)``.
    """
    few = distinct_values(values, FEW)
    if few is not None:
        shown = ", ".join(f"{value:.4g}" for value in few[:4]) + (", …" if len(few) > 4 else "")
        kind = "a mask" if len(few) == 2 else "a mask or a label map"
        return None if len(few) == 1 else f"holds {len(few)} different values only ({shown}), as {kind} does"
    planes = values[:: -(-len(values) // LABEL_PLANES)]
    if not all(_is_whole(plane) for plane in planes):
        return None
    numbers, counts = np.unique(planes, return_counts=True)
    ends = numbers[counts.argmax()], numbers[-1]
    left, right = planes[:, :, :-1], planes[:, :, 1:]
    inside = ~np.isin(left, ends) & ~np.isin(right, ends)
    pairs = int(np.count_nonzero(inside))
    if pairs == 0 or np.count_nonzero(left[inside] == right[inside]) < LABELS_ALIKE * pairs:
        return None
    return f"holds whole numbers that are alike over whole regions ({len(numbers)} of them), as a label map does"


def distinct_values(values: np.ndarray, most: int) -> list[float] | None:
    """The different values in order; None for more than ``most``."""
    found: set[float] = set()
    for plane in values:
        found.update(np.unique(plane).tolist())
        if len(found) > most:
            return None
    return sorted(found)


def _is_whole(plane: np.ndarray) -> bool:
    return bool(np.allclose(plane, np.rint(plane), rtol=1e-6, atol=WHOLE))


def _are_probabilities(values: np.ndarray) -> bool:
    present = int(np.count_nonzero(values > UNLIKELY))
    return int(np.count_nonzero(values > LIKELY)) >= LIKELY_SHARE * present


def _in_regions(values: np.ndarray) -> bool:
    alike, pairs = 0, 0
    for plane in values:
        left, right = plane[:, :-1], plane[:, 1:]
        inside = (left != 0) & (right != 0)
        pairs += int(np.count_nonzero(inside))
        alike += int(np.count_nonzero(inside & (left == right)))
    return pairs == 0 or alike >= ALIKE * pairs
