"""Whether two contrasts on one grid show one head: whether what they share is lost when one of them is moved a little.

Two heads lie on each other by and large, so their outlines tell little; two contrasts of one head share every border
inside it, as long as neither is moved.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from scipy import ndimage

SHIFT_MM = 4.5
EDGE_MM = 9.0  # of the heads, which is alike in all
BINS = 32
MOST_VOXELS, FEWEST_VOXELS = 200_000, 5_000


def shared_detail(
    one: np.ndarray, other: np.ndarray, heads: np.ndarray, spacing: tuple[float, float, float]
) -> float | None:
    """How much normalised mutual information two images lose when one is moved by 4.5 mm.

    Normalised mutual information, 2 I(A, B) / (H(A) + H(B)), over the inside of the heads in 32 bins of equally many
    voxels, minus its mean over moves to and fro along the two axes with the finer voxels.

    Args:
        one, other: ``(slices, rows, columns)`` on one grid.
        heads: bool, where both show the head.
        spacing: of the arrays' axes in mm.

    Returns:
        About 0 for two heads; None where too little is seen to tell.
    """
    thick = int(np.argmax(spacing))
    moved = [axis for axis in range(3) if axis != thick]
    edge = [0 if axis == thick else math.ceil(EDGE_MM / spacing[axis]) for axis in range(3)]
    ball = np.ones([2 * length + 1 for length in edge], bool)
    places = np.flatnonzero(ndimage.minimum_filter(ndimage.binary_fill_holes(heads), footprint=ball, mode="nearest"))
    if len(places) < FEWEST_VOXELS:
        return None
    places = places[:: math.ceil(len(places) / MOST_VOXELS)]
    index = np.unravel_index(places, one.shape)
    fixed = _binned(one.reshape(-1)[places])
    still = _information(fixed, _binned(other.reshape(-1)[places]))
    losses = []
    for axis, sign in product(moved, (-1, 1)):
        there = list(index)
        step = sign * max(1, round(SHIFT_MM / spacing[axis]))
        there[axis] = np.clip(there[axis] + step, 0, one.shape[axis] - 1)
        losses.append(still - _information(fixed, _binned(other[tuple(there)])))
    return float(np.mean(losses))


def _binned(values: np.ndarray) -> np.ndarray:
    """The number of each value's bin; bins hold equally many values, as far as these differ."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def _information(one: np.ndarray, other: np.ndarray) -> float:
    """Normalised mutual information of two lists of bins."""
    joint = np.bincount(one * BINS + other, minlength=BINS * BINS).reshape(BINS, BINS) / len(one)
    entropies = [_entropy(joint.sum(axis)) for axis in (0, 1)]
    total = sum(entropies)
    return 2 * (total - _entropy(joint.reshape(-1))) / total if total > 0 else 0.0


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())
