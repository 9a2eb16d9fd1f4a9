"""Free-response ROC: how many lesions of each size are found at a given number of false findings a scan.

Chakraborty and Winter 1990. A lesion is found when a predicted component lies in it, of which at least a tenth lies in
lesions; all other components are false findings. Without that share, a threshold so low that the whole brain is one
component would find everything without a false finding. One threshold serves all scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import metrics
from .metrics import LesionMatch

# False findings a scan, on average over scans, at which recall is read off.
FALSE_FINDINGS = (1.0, 2.0, 4.0)
LEAST_SHARE = 0.1  # of a predicted component in lesions, for it to find them
# Sizes of lesions, ml; smaller ones are a voxel or two, which raters seldom agree on.
SIZES_ML = ((0.05, 1.0), (1.0, 10.0), (10.0, math.inf))


@dataclass(frozen=True)
class Froc:
    """Lesions found and false findings at common thresholds.

    Attributes:
        volumes_ml: of each patient's lesions.
        found: ``(T, lesions)`` bool of each patient.
        false_findings: ``(patients, T)``.
    """

    volumes_ml: Sequence[np.ndarray] = ()
    found: Sequence[np.ndarray] = field(default=(), repr=False)
    false_findings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    @classmethod
    def of(cls, patients: Sequence[Sequence[LesionMatch]]) -> Froc:
        """From how each patient's lesions and predictions meet at each threshold."""
        return cls(
            [np.array(matches[0].volumes_ml) for matches in patients],
            [np.array([match.found for match in matches], bool).reshape(len(matches), -1) for matches in patients],
            np.array([[match.false_positives for match in matches] for matches in patients], dtype=float),
        )

    def count(self, size: tuple[float, float]) -> int:
        """How many lesions are of a size, ml from and below."""
        return sum(int(_of_size(volumes, size).sum()) for volumes in self.volumes_ml)

    def recall(self, chosen: np.ndarray, size: tuple[float, float], false_findings: float) -> float:
        """The largest share of these patients' lesions found at a threshold with at most so many false findings.

        Args:
            chosen: indices of patients, some maybe several times.
            size: ml, from and below.
            false_findings: mean a scan of these patients.

        Returns:
            0 where every threshold has more; NaN without lesions of the size.
        """
        hits = np.zeros(self.false_findings.shape[1])
        total = 0
        for patient in chosen:
            fits = _of_size(self.volumes_ml[patient], size)
            hits += self.found[patient][:, fits].sum(axis=1)
            total += int(fits.sum())
        if total == 0:
            return math.nan
        allowed = self.false_findings[chosen].mean(axis=0) <= false_findings
        return float(hits[allowed].max(initial=0.0) / total)


def froc_rows(label: str, froc: Froc, draws: np.ndarray) -> list[dict[str, Any]]:
    """A row a size of lesions, with recall at each number of false findings and its interval."""
    rows = []
    for size in SIZES_ML:
        row: dict[str, Any] = {"run": label, "size": size_name(size), "lesions": froc.count(size)}
        for allowed in FALSE_FINDINGS:

            def statistic(chosen: np.ndarray, size: tuple[float, float] = size, allowed: float = allowed) -> float:
                return froc.recall(chosen, size, allowed)

            row |= metrics.with_ends(f"recall_at_{allowed:g}", statistic, draws)
        rows.append(row)
    return rows


def size_name(size: tuple[float, float]) -> str:
    low, high = size
    return f"{low:g} to {high:g} ml" if math.isfinite(high) else f"{low:g} ml and more"


def _of_size(volumes_ml: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    return (volumes_ml >= size[0]) & (volumes_ml < size[1])
