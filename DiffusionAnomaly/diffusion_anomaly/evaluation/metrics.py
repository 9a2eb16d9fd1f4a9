"""The numbers of an evaluation: pure functions on arrays, each with a definition that fits on a line.

Average precision is exact, without a histogram of the anomaly map and without holding all patients' voxels at once: its
sum runs over the distinct scores of lesion voxels, which are few, and of all other voxels only how many are at
least that high has to be known. Those counts add up over patients. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..results.components import large_and_high

# Voxels that share a face, an edge or a corner belong together, in findings and in references alike.
TOUCHING = np.ones((3, 3, 3), dtype=bool)


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Dice overlap ``2 |A & B| / (|A| + |B|)`` of two masks; NaN for an empty reference."""
    size = np.count_nonzero(reference)
    if size == 0:
        return float("nan")
    return 2.0 * np.count_nonzero(predicted & reference) / (np.count_nonzero(predicted) + size)


def at_least(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many ``scores`` are >= each of ``values``, int64 of the shape of ``values``."""
    return scores.size - np.searchsorted(np.sort(scores, axis=None), values, side="left")


def distinct(positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct scores of the positives, ascending, and how many positives have each."""
    return np.unique(positive, return_counts=True)


def average_precision_of_counts(positives: np.ndarray, negatives_at_least: np.ndarray, missed: int = 0) -> float:
    """Average precision from counts at ascending thresholds.

    ``sum_n (R_n - R_{n-1}) P_n`` over distinct thresholds, without interpolation (the definition of
    scikit-learn's ``average_precision_score``). Recall rises only where a positive has the threshold's
    score, so those thresholds are all there is to sum over.

    Args:
        positives: ``(V,)`` how many positives have each distinct score.
        negatives_at_least: ``(V,)`` how many negatives score at least that.
        missed: positives below every threshold, such as lesion where nothing is looked for: recall stays below 1, so
            the value is that without them times the share of positives that have a score.

    Returns:
        A share from 0 to 1; NaN without positives.
    """
    total = positives.sum() + missed
    if total == 0:
        return float("nan")
    true_positives = positives[::-1].cumsum()[::-1]
    counted = true_positives + negatives_at_least
    precision = np.divide(true_positives, counted, out=np.zeros(len(counted)), where=counted > 0)
    return float((positives * precision).sum() / total)


def average_precision(positive: np.ndarray, negative: np.ndarray, missed: int = 0) -> float:
    """Average precision of positives' and negatives' scores; ties count together; NaN without positives.

    Args:
        positive, negative: scores.
        missed: further positives that no threshold reaches.
    """
    values, counts = distinct(positive)
    return average_precision_of_counts(counts, at_least(negative, values), missed)


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that parts values into two classes of the largest variance between them (Otsu 1979).

    Exact, without a histogram: all splits between distinct values are tried.

    Returns:
        The lowest value of the upper class; infinite where there are no two distinct values.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    splits = np.flatnonzero(np.diff(ordered) > 0) + 1  # how many values lie below
    if splits.size == 0:
        return float("inf")
    sums = np.cumsum(ordered)
    below, above = splits, ordered.size - splits
    apart = sums[splits - 1] / below - (sums[-1] - sums[splits - 1]) / above
    return float(ordered[splits[np.argmax(below * (above * apart**2))]])


def auroc(positive: np.ndarray, negative: np.ndarray, missed: int = 0) -> float:
    """Area under the ROC curve: the share of pairs in which the positive scores higher, ties counting half.

    Mann and Whitney 1947. NaN when either side is empty; ``missed`` positives score lower than all others.
    """
    if positive.size + missed == 0 or negative.size == 0:
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.sum() / (2.0 * (positive.size + missed) * negative.size))


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of a 3-D mask: int32 labels from 1, and how many there are."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, structure=TOUCHING, output=labels)
    return labels, int(labels.max(initial=0))


@dataclass(frozen=True)
class LesionMatch:
    """How the components of a prediction and of a reference meet.

    Attributes:
        volumes_ml: each reference lesion's volume.
        found: whether a predicted voxel lies in it.
        false_positives: predicted components that touch no reference voxel.
    """

    volumes_ml: tuple[float, ...]
    found: tuple[bool, ...]
    false_positives: int


@dataclass(frozen=True)
class Lesions:
    """The components of a 3-D reference mask.

    Attributes:
        labels: from 1, int32.
        volumes_ml: of each.
    """

    labels: np.ndarray
    volumes_ml: tuple[float, ...]

    @classmethod
    def of(cls, reference: np.ndarray, voxel_ml: float) -> Lesions:
        labels, count = components(reference)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        return cls(labels, tuple(float(size) * voxel_ml for size in sizes))

    def match(self, predicted: np.ndarray, least_share: float = 0.0) -> LesionMatch:
        """Compare with another 3-D mask component by component; one common voxel is a meeting.

        Args:
            predicted: bool, of the reference's shape.
            least_share: predicted components of which less lies in the reference find nothing, and are false positives.
        """
        components_of, count = components(predicted)
        inside = self.labels > 0
        sizes = np.bincount(components_of.ravel(), minlength=count + 1)
        shared = np.bincount(components_of[inside], minlength=count + 1)
        meets = (shared > 0) & (shared >= least_share * sizes)
        meets[0] = False
        hit = np.zeros(len(self.volumes_ml) + 1, dtype=bool)
        hit[np.unique(self.labels[meets[components_of]])] = True
        return LesionMatch(self.volumes_ml, tuple(bool(h) for h in hit[1:]), count - int(meets.sum()))


def findings_mask(
    scores: np.ndarray, threshold: float, voxel_ml: float, min_ml: float, peak_margin: float = 0.0
) -> np.ndarray:
    """Where 3-D scores reach a threshold, without the components that findings leave out.

    Args:
        scores: not negative.
        threshold: above 0.
        voxel_ml: volume of a voxel.
        min_ml: smaller components are left out.
        peak_margin: so are those whose highest score is below ``threshold + peak_margin``.

    Returns:
        bool, of the scores' shape.
    """
    mask = scores >= threshold
    labels, count = components(mask)
    if count == 0:
        return mask
    return large_and_high(labels[mask], scores[mask], count, voxel_ml, min_ml, threshold + peak_margin)[labels]


def slice_distance(flags: np.ndarray) -> np.ndarray:
    """How many slices each slice is away from the nearest flagged one; infinite when none is flagged.

    Args:
        flags: ``(n,)`` bool.

    Returns:
        ``(n,)`` float64.
    """
    flagged = np.flatnonzero(flags)
    if flagged.size == 0:
        return np.full(flags.size, np.inf)
    return np.abs(np.arange(flags.size)[:, None] - flagged).min(axis=1).astype(np.float64)


def highest_mean(anomaly_map: np.ndarray, share: float) -> float:
    """Mean of the highest-scoring ``share`` of values (at least one): a slice's score that no single voxel makes."""
    count = max(1, round(share * anomaly_map.size))
    return float(np.partition(anomaly_map, anomaly_map.size - count)[anomaly_map.size - count :].mean())


def resamples(patients: int, count: int, seed: int) -> np.ndarray:
    """Patients drawn with replacement, ``(count, patients)`` indices. One draw serves all methods: paired."""
    return np.random.default_rng(seed).integers(0, patients, size=(count, patients))


def interval(
    statistic: Callable[[np.ndarray], float], draws: np.ndarray, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile bootstrap interval over patients (Efron 1979).

    Args:
        statistic: takes the indices of the patients of one resample.
        draws: from ``resamples``.
        level: share of the resamples between the two ends.

    Returns:
        Low and high end; None for fewer than two patients, or when most resamples have no value.
    """
    if draws.shape[1] < 2:
        return None
    values = np.array([statistic(draw) for draw in draws])
    values = values[np.isfinite(values)]
    if values.size < len(draws) / 2:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def with_ends(key: str, statistic: Callable[[np.ndarray], float], draws: np.ndarray) -> dict[str, float]:
    """A statistic of all patients as ``key``, and the ends of its ``interval`` as ``key_low`` and ``key_high``.

    Args:
        key: of the result.
        statistic: takes the indices of patients.
        draws: from ``resamples``; they say how many patients there are.

    Returns:
        NaN for what is not known: the ends where there is no interval, and all three without patients.
    """
    patients = draws.shape[1]
    value = statistic(np.arange(patients)) if patients else float("nan")
    low, high = interval(statistic, draws) or (float("nan"), float("nan"))
    return {key: value, f"{key}_low": low, f"{key}_high": high}


def mean_or_nan(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are numbers; NaN when none is."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else float("nan")


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of ascending ``values``, equally spaced by rank, both ends kept."""
    if len(values) <= most:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]
