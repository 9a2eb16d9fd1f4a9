"""Whether an image can be a mask at all: a scan given in its place would be cut at one half and taken for a brain."""

from __future__ import annotations

import numpy as np

from ..errors import InputError

# Of neighbours in a row inside a label map this share has the same label: regions are larger than a voxel. In scans of
# 8 bits it is a tenth, by chance.
ALIKE = 0.3


def check_mask(values: np.ndarray, what: str) -> None:
    """Refuse what is neither 0 and 1 (or one other number), nor labels, nor probabilities.

    Args:
        values: of the image, ``(slices, rows, columns)``.
        what: how to call it.

    Raises:
        InputError: for many grey values, as a scan has them.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return
    if all(np.array_equal(plane, np.rint(plane)) for plane in values) and _in_regions(values):
        return
    raise InputError(
        f"{what} is no mask: it has many values, from {low:.4g} to {high:.4g}, as a scan has them.",
        "Give a mask of 0 and 1, a label map, or probabilities from 0 to 1.",
    )


def _in_regions(values: np.ndarray) -> bool:
    alike, pairs = 0, 0
    for plane in values:
        left, right = plane[:, :-1], plane[:, 1:]
        inside = (left != 0) & (right != 0)
        pairs += int(np.count_nonzero(inside))
        alike += int(np.count_nonzero(inside & (left == right)))
    return pairs == 0 or alike >= ALIKE * pairs
