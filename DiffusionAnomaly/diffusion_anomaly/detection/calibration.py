"""Raw anomaly scores to something a reader can use, how rare it is in healthy brains; and the threshold that follows.

Raw anomaly scores differ from model to model. Each package carries the distribution of its (post-processed)
scores on healthy validation slices, and the engine reports ``-log10`` of the healthy tail probability: 1 means that one
healthy voxel in ten scores at least so high, 3 one in a thousand. Thresholds come from healthy scans alone.
Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ..errors import InputError, ModelError
from ..results.components import large_and_high

# The rarest healthy voxels say little about the tail, one by one: the table ends at this many of them, or at
# a tenth of all when there are few, and is continued from the slope of the last factor of ten before its end.
_RAREST = 10
_DECADE = 1.0

SPREAD_SCORES = (1, 2, 3)
SPREAD_SHARE = 0.9  # of scans that stay within the bound of a spread


@dataclass(frozen=True, eq=False)
class Calibration:
    """A strictly increasing table from raw anomaly scores to ``-log10`` healthy tail probability.

    Attributes:
        raw: ``(K,)`` float64 knots, strictly increasing, the first 0.
        scores: ``(K,)`` float64 calibrated scores, strictly increasing, the first 0.
        voxels: how many healthy voxels it was learnt from.
        source: which data they came from.
    """

    raw: np.ndarray
    scores: np.ndarray
    voxels: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        for name, knots in (("raw", self.raw), ("heat", self.scores)):
            if knots.ndim != 1 or len(knots) < 2 or len(self.raw) != len(self.scores):
                raise ModelError(
                    f"The calibration table has {self.raw.shape} raw and {self.scores.shape} scores.",
                    "Both must be lists of the same length, 2 or more.",
                )
            if not np.isfinite(knots).all() or knots[0] != 0 or not (np.diff(knots) > 0).all():
                raise ModelError(
                    f"The calibration table's {name} values do not start at 0 and increase strictly.",
                    "The package is damaged or was put together by hand; get it again.",
                )

    @classmethod
    def fit(cls, raw_values_in_brain: np.ndarray, knots: int = 256, source: str = "") -> Calibration:
        """Learn the table from the raw anomaly scores of healthy voxels.

        The tail probability of the k-th largest of n values is estimated as ``k / (n + 1)``, its expectation
        for any continuous distribution. Knots are equally spaced in anomaly scores, so that each factor of ten has
        equally many. Voxels with raw anomaly scores 0 count among the healthy but get no knot: 0 stays 0.

        Args:
            raw_values_in_brain: any shape; post-processed scores >= 0 of all brain voxels of healthy slices.
            knots: at most this many knots besides the origin.
            source: what the values came from, kept with the table.

        Raises:
            InputError: for no values, negative or non-finite ones, or only zeros.
        """
        values = np.sort(np.asarray(raw_values_in_brain, dtype=np.float64), axis=None)
        if values.size == 0 or not np.isfinite(values).all() or values[0] < 0 or values[-1] <= 0:
            raise InputError(
                f"Calibration got {values.size} scores that are not all finite and >= 0, or are all 0.",
                "Give the raw anomaly scores of the brain voxels of healthy slices.",
            )
        positive = values[values > 0]
        rarest = max(1, min(_RAREST, len(positive) // 10))
        levels = np.linspace(np.log10(values.size / len(positive)), np.log10(values.size / rarest), knots)
        ranks = np.clip(np.rint(values.size * 10.0**-levels).astype(int), rarest, len(positive))
        raw = np.unique(values[values.size - ranks])
        at_least = values.size - np.searchsorted(values, raw, side="left")
        scores = -np.log10(at_least / (values.size + 1.0))
        return cls(np.append(0.0, raw), np.append(0.0, scores), values.size, source)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Raw anomaly scores of any shape to float32 ``-log10`` tail probability; 0 stays 0, order is kept."""
        values = np.asarray(raw, dtype=np.float64)
        scores = np.interp(values, self.raw, self.scores)
        beyond = np.maximum(values - self.raw[-1], 0.0) * self.tail_slope
        return np.asarray(scores + beyond, dtype=np.float32)

    def inverse(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated scores of any shape back to float64 raw ones."""
        values = np.asarray(scores, dtype=np.float64)
        beyond = np.maximum(values - self.scores[-1], 0.0) / self.tail_slope
        return np.interp(values, self.scores, self.raw) + beyond

    @property
    def tail_slope(self) -> float:
        """Anomaly scores per raw unit beyond the last knot: the mean slope of the last factor of ten before it."""
        start = int(np.searchsorted(self.scores, self.scores[-1] - _DECADE, side="right")) - 1
        start = min(max(start, 0), len(self.scores) - 2)
        return float((self.scores[-1] - self.scores[start]) / (self.raw[-1] - self.raw[start]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for a package's ``calibration``."""
        knots = {"raw": self.raw.tolist(), "heat": self.scores.tolist()}
        return {**knots, "voxels": self.voxels, "source": self.source}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Calibration:
        """From a package's ``calibration``.

        Raises:
            ModelError: when the table is incomplete or not strictly increasing.
        """
        try:
            raw, scores = (np.asarray(table[key], dtype=np.float64) for key in ("raw", "heat"))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"The calibration table is unreadable: {error}.", "Get the package again.") from error
        return cls(raw, scores, int(table.get("voxels", 0)), str(table.get("source", "")))


def spread_of_scans(scans: Sequence[np.ndarray], source: str = "") -> dict[str, Any] | None:
    """How much rarer or more frequent than on average high scores are in one healthy scan.

    The unit that varies is the scan: its voxels are not independent. Of n scans, the k-th smallest share with
    k = ceil(0.9 (n + 1)) is one that about one further scan in ten of their kind exceeds (the order statistic of split
    conformal prediction; Bates et al. 2021, arXiv 2104.08279). It is no guarantee: the scores come from a table that
    was made of the same scans, so a further scan's may be a little higher.

    Args:
        scans: each one's calibrated scores of healthy voxels, any shape.
        source: which scans they are.

    Returns:
        JSON-ready: ``heat``, scores; ``upper``, for each the share of a scan's healthy voxels that nine scans of ten
        do not exceed; ``scans``, how many there were. None with fewer than 9, of which none is such a bound.
    """
    scans = [scores for scores in scans if scores.size]
    rank = math.ceil(SPREAD_SHARE * (len(scans) + 1))
    if rank > len(scans):
        return None
    upper = [float(np.sort([np.mean(scores >= score) for scores in scans])[rank - 1]) for score in SPREAD_SCORES]
    return {"heat": list(SPREAD_SCORES), "upper": upper, "scans": len(scans), "source": source}


def threshold_for_false_alarms(
    scans: Sequence[tuple[np.ndarray, float, float]],
    ml: float = 1.0,
    quantile: float = 0.5,
    min_component_ml: float = 0.05,
    tolerance: float = 1e-3,
    peak_margin: float = 0.0,
) -> float:
    """The lowest threshold at which healthy scans hold no more than the stated volume of false alarms.

    Args:
        scans: for each healthy one its calibrated scores ``(n, H, W)``, 0 outside the brain; the volume of a
            voxel in ml; and the factor from the slices given to a whole scan (2 when half of a scan's slices
            were healthy).
        ml: allowed volume of ``score >= threshold`` in a whole scan.
        quantile: share of the scans that must stay within it; 0.5 is the median scan.
        min_component_ml: smaller connected components are dropped, as they are from findings.
        tolerance: how far above the exact threshold, in anomaly scores, the answer may be.
        peak_margin: components whose highest score is below threshold and margin together are dropped too.

    Returns:
        A threshold above 0 that keeps the allowance, never one that breaks it.

    Raises:
        InputError: for no scans.
    """
    if not scans:
        raise InputError("No healthy scans to set a threshold from.", "Give at least one.")
    low, high = 0.0, max(float(scores.max(initial=0.0)) for scores, _, _ in scans) + tolerance
    # Raising the threshold only shrinks and splits components, and asks more of what is highest in each, so the volume
    # never grows and bisection holds.
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        volumes = [
            scale * false_alarm_ml(scores, middle, voxel_ml, min_component_ml, peak_margin)
            for scores, voxel_ml, scale in scans
        ]
        if np.quantile(volumes, quantile, method="higher") > ml:
            low = middle
        else:
            high = middle
    return high


def false_alarm_ml(
    scores: np.ndarray, threshold: float, voxel_ml: float, min_component_ml: float, peak_margin: float = 0.0
) -> float:
    """Volume in ml of ``score >= threshold`` in components of at least ``min_component_ml`` and high enough.

    Args:
        scores: 3-D.
        threshold: a score.
        voxel_ml: volume of a voxel.
        min_component_ml: smaller connected components do not count.
        peak_margin: nor do those whose highest score is below ``threshold + peak_margin``.
    """
    marked = scores >= threshold
    labels = np.empty(scores.shape, dtype=np.int32)
    ndimage.label(marked, structure=np.ones((3, 3, 3), dtype=bool), output=labels)
    owners = labels[marked]
    count = int(labels.max(initial=0))
    counts = large_and_high(owners, scores[marked], count, voxel_ml, min_component_ml, threshold + peak_margin)
    return float(np.count_nonzero(counts[owners]) * voxel_ml)
