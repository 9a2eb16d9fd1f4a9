"""Whether a picture looks like those that a model of whole images knows: upright, not inverted, of the same body part.

No network tells pictures apart as one tells scans of heads. But pictures taken in one way have bright and dark in the
same places: a package stores the mean of its validation pictures, coarsely, and how far those correlate with it. Of
the films of two hospitals (Kermany et al. 2018, NIH ChestX-ray14) 1 % were below their package's limit, inverted ones
always below 0, head CT always below the limit of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .recognition import Verdict

SIDE = 16  # pixels of a mean picture
DOUBTED_PERCENTILE = 1.0  # of validation pictures, below which a picture is doubted


@dataclass(frozen=True)
class Appearance:
    """What pictures that a model knows look like.

    Attributes:
        mean: ``(SIDE, SIDE)`` normalised intensity.
        lower: least correlation with it that is not doubted.
    """

    mean: np.ndarray
    lower: float

    @classmethod
    def fit(cls, pictures: Sequence[np.ndarray]) -> Appearance:
        """From normalised validation pictures ``(height, width)`` of any size."""
        coarse = np.stack([coarsened(picture) for picture in pictures])
        mean = coarse.mean(axis=0)
        return cls(mean, float(np.percentile([correlation(one, mean) for one in coarse], DOUBTED_PERCENTILE)))

    @classmethod
    def from_dict(cls, declared: Mapping[str, Any]) -> Appearance:
        return cls(np.array(declared["mean"], np.float64), float(declared["lower"]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for a package's ``appearance``."""
        return {"mean": np.round(self.mean, 3).tolist(), "lower": round(self.lower, 3)}

    def verdict(self, pictures: Sequence[np.ndarray]) -> Verdict | None:
        """What to say of pictures, by the median of their likeness; None where they look as known.

        Args:
            pictures: normalised, ``(height, width)``; the slices of a scan.
        """
        found = float(np.median([correlation(coarsened(picture), self.mean) for picture in pictures]))
        if found >= self.lower:
            return None
        numbers = f"likeness {found:.2g}, of pictures that it knows {self.lower:.2g} or more"
        if found < -abs(self.lower):
            return Verdict(
                f"The picture looks inverted: it is bright where those that the model knows are dark ({numbers}). "
                "Invert its grey values.",
                refused=True,
            )
        return Verdict(
            f"The picture looks unlike those that the model knows ({numbers}): another body part or view, turned, with "
            "wide borders, or inverted? Scores may mean nothing.",
            refused=found < 0,
        )


def coarsened(picture: np.ndarray) -> np.ndarray:
    """``(height, width)`` to ``(SIDE, SIDE)`` means of rectangles."""
    means = np.asarray(picture, np.float64)
    for axis in (0, 1):
        edges = np.linspace(0, means.shape[axis], SIDE + 1).astype(int)
        counts = np.maximum(np.diff(edges), 1)
        means = np.add.reduceat(means, edges[:-1], axis=axis) / np.expand_dims(counts, 1 - axis)
    return means


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, of all pixels; 0 where one of them is of one value."""
    first, second = first - first.mean(), second - second.mean()
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / size if size > 1e-9 else 0.0
