"""What an evaluation's columns are computed from: patients, curves at common thresholds, and their summaries.

A statistic over patients is a function of patient indices, so its value and its bootstrap interval come from
the same code; and one set of resamples serves all runs, so that differences between runs are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..options import margin_of
from . import metrics
from .froc import Froc, size_name
from .metrics import LesionMatch
from .reliability import FreeSlices

# Upper ends of the lesion-size strata, in ml; a last one holds what is larger.
STRATA_ML = (1.0, 10.0, 50.0)

# The bootstrap of few patients never reaches beyond them. That all of 5 differ in one direction happens by chance in 1
# of 16 cases, all of 6 in 1 of 32.
FEWEST_PATIENTS = 6

# A patient's own best threshold counts as near the stored one up to this difference in scores. 10 ** 0.7 is 5: at a
# threshold that near, at most five times as many healthy voxels are marked, or one in five.
NEAR_SCORE = 0.7

Statistic = Callable[[np.ndarray], float]
"""Takes the indices of patients, some maybe several times."""


@dataclass(frozen=True)
class Case:
    """One patient under one run.

    Attributes:
        name: the patient.
        reference_ml, outside_brain_ml: volume of the reference, and of its part outside the brain mask.
        predicted_ml: volume of the mask at the stored threshold; ``dice`` and ``lesions`` are of that mask.
        dice: NaN without a reference.
        average_precision: over brain voxels, with the reference's voxels outside of the brain as missed; NaN without a
            reference.
        average_precision_in_brain: over brain voxels alone; NaN without a reference in the brain.
        otsu_dice: of the raw map at this scan's own threshold by Otsu; NaN without a reference.
        voxel_auroc: area under the ROC curve over brain voxels, with the reference's voxels outside of the brain as
            missed; NaN without a reference.
        outside_brain_voxels: of the reference.
        lesions: how the components of mask and reference meet.
        free: the slices with brain that are far from any tumour.
        score, score_warning: the whole-image score, and whether it came with a warning.
        seconds: from the scan in memory to findings, finding the brain included.
        brain_given: whether the brain mask came with the scan.
        input_sha256: of the scan's file.
        lesion_scores: ascending anomaly scores of the reference's voxels in the brain.
        slice_scores, slice_has_lesion: of the slices with tumour, and of the tumour-free ones.
    """

    name: str
    reference_ml: float
    outside_brain_ml: float
    predicted_ml: float
    dice: float
    average_precision: float
    average_precision_in_brain: float
    otsu_dice: float
    voxel_auroc: float
    outside_brain_voxels: int
    lesions: LesionMatch
    free: FreeSlices
    score: float
    score_warning: bool
    seconds: float
    brain_given: bool
    input_sha256: str
    lesion_scores: np.ndarray = field(repr=False)
    slice_scores: np.ndarray = field(repr=False)
    slice_has_lesion: np.ndarray = field(repr=False)

    @property
    def outside_brain(self) -> float:
        """Share of the reference outside the brain mask; NaN without a reference."""
        return self.outside_brain_ml / self.reference_ml if self.reference_ml > 0 else math.nan


@dataclass(frozen=True)
class HealthyCase:
    """One healthy scan, without a reference, under one run.

    Attributes:
        name: the scan.
        findings: how many there are at the stored threshold.
        findings_ml: their volume.
        brain_ml: of the brain mask.
        seconds: from the scan in memory to findings, finding the brain included.
        input_sha256: of the scan's file.
    """

    name: str
    findings: int
    findings_ml: float
    brain_ml: float
    seconds: float
    input_sha256: str


@dataclass(frozen=True)
class Sweep:
    """All patients at common thresholds.

    Attributes:
        average_precision, average_precision_in_brain: pooled, exact; the first with ``missed``, the second without.
        missed: ``(patients,)`` reference voxels outside the brain.
        true_positives, false_positives: ``(patients, points)`` brain voxels at or above ascending scores.
        thresholds: ``(T,)`` tried for the best common Dice.
        dice: ``(patients, T)``.
        froc: which lesions are found, and how many false findings there are, at the same thresholds.
    """

    average_precision: float
    average_precision_in_brain: float
    missed: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    thresholds: np.ndarray
    dice: np.ndarray
    froc: Froc

    def mean_dice(self, chosen: np.ndarray) -> np.ndarray:
        """Mean over patients at each threshold; patients without a reference have none."""
        dice = self.dice[chosen]
        known = np.isfinite(dice)
        total = np.where(known, dice, 0.0).sum(axis=0)
        return np.divide(total, known.sum(axis=0), out=np.full(dice.shape[1], np.nan), where=known.any(axis=0))

    def best_dice(self, chosen: np.ndarray) -> float:
        return float(np.max(self.mean_dice(chosen), initial=-np.inf)) if self.dice.size else float("nan")

    def best_thresholds(self, stored: float) -> np.ndarray:
        """Each patient's best threshold ``(patients,)``, of several the nearest to the stored one.

        NaN without a reference, and where no threshold finds anything of it: none of them is better than another.
        """
        nearest_first = np.argsort(np.abs(self.thresholds - stored), kind="stable")
        dice = np.where(np.isfinite(self.dice), self.dice, 0.0)[:, nearest_first]
        best = self.thresholds[nearest_first][dice.argmax(axis=1)]
        return np.where(dice.max(axis=1) > 0, best, np.nan)

    def pooled(self, chosen: np.ndarray) -> float:
        """Pooled average precision of a resample, from the thinned curves."""
        true, false = self.true_positives[chosen].sum(axis=0), self.false_positives[chosen].sum(axis=0)
        return metrics.average_precision_of_counts(true - np.append(true[1:], 0), false, int(self.missed[chosen].sum()))


@dataclass(frozen=True)
class RunResult:
    """One run over all patients.

    Attributes:
        label: how the table calls it.
        is_baseline: whether the others are compared with it.
        cases: one a patient, in the same order for all runs.
        sweep: all patients at common thresholds.
        provenance: of the last scan.
        healthy: one a healthy scan, if there were such.
    """

    label: str
    is_baseline: bool
    cases: Sequence[Case]
    sweep: Sweep
    provenance: Mapping[str, Any]
    healthy: Sequence[HealthyCase] = ()

    def statistics(self) -> dict[str, Statistic]:
        cases = self.cases
        dice = np.array([case.dice for case in cases])
        precision = np.array([case.average_precision for case in cases])
        precision_in_brain = np.array([case.average_precision_in_brain for case in cases])
        otsu = np.array([case.otsu_dice for case in cases])
        voxel_auroc = np.array([case.voxel_auroc for case in cases])
        outside = np.array([case.outside_brain for case in cases])
        found = np.array([sum(case.lesions.found) for case in cases])
        lesions = np.array([len(case.lesions.found) for case in cases])
        alarms = np.array([case.lesions.false_positives for case in cases], dtype=float)
        alarm_ml = np.array([case.free.false_alarm_ml if case.free.slices else math.nan for case in cases])
        seconds = np.array([case.seconds for case in cases])

        def auroc(chosen: np.ndarray) -> float:
            scores = np.concatenate([cases[i].slice_scores for i in chosen])
            labels = np.concatenate([cases[i].slice_has_lesion for i in chosen])
            return metrics.auroc(scores[labels], scores[~labels])

        def recall(chosen: np.ndarray) -> float:
            total = lesions[chosen].sum()
            return float(found[chosen].sum() / total) if total else math.nan

        return {
            "dice": lambda chosen: metrics.mean_or_nan(dice[chosen]),
            "best_dice": self.sweep.best_dice,
            "otsu_dice": lambda chosen: metrics.mean_or_nan(otsu[chosen]),
            "voxel_auroc": lambda chosen: metrics.mean_or_nan(voxel_auroc[chosen]),
            "average_precision": lambda chosen: metrics.mean_or_nan(precision[chosen]),
            "average_precision_in_brain": lambda chosen: metrics.mean_or_nan(precision_in_brain[chosen]),
            "pooled_average_precision": self.sweep.pooled,
            "outside_brain": lambda chosen: metrics.mean_or_nan(outside[chosen]),
            "lesion_recall": recall,
            "false_positives": lambda chosen: metrics.mean_or_nan(alarms[chosen]),
            "false_positive_ml": lambda chosen: metrics.mean_or_nan(alarm_ml[chosen]),
            "slice_auroc": auroc,
            "seconds": lambda chosen: metrics.mean_or_nan(seconds[chosen]),
        }


def run_row(run: RunResult, baseline: RunResult | None, draws: np.ndarray) -> dict[str, Any]:
    everyone = np.arange(len(run.cases))
    row: dict[str, Any] = {"run": run.label, "method": run.provenance["method"], "patients": len(run.cases)}
    model = run.provenance["model"]
    row["model"] = f"{model['name']} {model['version']}" if model else ""
    statistics = run.statistics()
    gains = None
    if baseline is not None and baseline is not run:
        gains = np.array(
            [a.average_precision - b.average_precision for a, b in zip(run.cases, baseline.cases, strict=True)]
        )
        statistics["gain"] = lambda chosen: metrics.mean_or_nan(gains[chosen])
    for key, statistic in statistics.items():
        row |= metrics.with_ends(key, statistic, draws)
    row["pooled_average_precision"] = run.sweep.average_precision  # exact; the thinned curve is for intervals alone
    row["pooled_average_precision_in_brain"] = run.sweep.average_precision_in_brain
    row["outside_brain_worst"] = max(
        (case.outside_brain for case in run.cases if case.reference_ml > 0), default=math.nan
    )
    if gains is not None:
        compared = int(np.isfinite(gains).sum())
        row["beats_intensity"] = _verdict(compared, row["gain_low"], row["gain_high"])
    means = run.sweep.mean_dice(everyone)
    row["best_threshold"] = float(run.sweep.thresholds[np.nanargmax(means)]) if np.isfinite(means).any() else math.nan
    row["threshold"] = stored = run.provenance["threshold"]["heat"]
    row["peak_margin"] = margin_of(run.provenance["options"])
    own = run.sweep.best_thresholds(stored) if run.sweep.dice.size else np.full(len(run.cases), math.nan)
    row["own_threshold_near"] = metrics.mean_or_nan((np.abs(own - stored) <= NEAR_SCORE)[np.isfinite(own)])
    row["network_calls"] = run.provenance["network_calls_per_slice"]
    row["device"] = run.provenance["device"]["name"]
    row["precision"] = run.provenance["device"]["precision"]
    return row


def _verdict(patients: int, low: float, high: float) -> str:
    """Whether an interval of differences lies above 0, below 0, or shows neither, as none of few patients does."""
    if patients < FEWEST_PATIENTS:
        return "not shown"
    if low > 0:
        return "yes"
    return "no" if high < 0 else "not shown"


def strata_rows(run: RunResult) -> list[dict[str, Any]]:
    rows = []
    for low, high in zip((0.0, *STRATA_ML), (*STRATA_ML, math.inf), strict=True):
        found = [
            hit
            for case in run.cases
            for volume, hit in zip(case.lesions.volumes_ml, case.lesions.found, strict=True)
            if low <= volume < high
        ]
        patients = [case for case in run.cases if case.reference_ml > 0 and low <= case.reference_ml < high]
        rows.append(
            {
                "run": run.label,
                "size": size_name((low, high)),
                "lesions": len(found),
                "lesion_recall": metrics.mean_or_nan(found),
                "patients": len(patients),
                "dice": metrics.mean_or_nan([case.dice for case in patients]),
                "average_precision": metrics.mean_or_nan([case.average_precision for case in patients]),
            }
        )
    return rows


def case_row(label: str, case: Case) -> dict[str, Any]:
    return {
        "run": label,
        "patient": case.name,
        "reference_ml": case.reference_ml,
        "reference_outside_brain_ml": case.outside_brain_ml,
        "predicted_ml": case.predicted_ml,
        "dice": case.dice,
        "average_precision": case.average_precision,
        "average_precision_in_brain": case.average_precision_in_brain,
        "otsu_dice": case.otsu_dice,
        "voxel_auroc": case.voxel_auroc,
        "lesions": len(case.lesions.found),
        "lesions_found": sum(case.lesions.found),
        "false_positives": case.lesions.false_positives,
        "tumour_free_slices": case.free.slices,
        "false_positive_ml": case.free.false_alarm_ml,
        "score": case.score,
        "score_warning": case.score_warning,
        "seconds": case.seconds,
        "brain": "given" if case.brain_given else "found",
        "input_sha256": case.input_sha256,
    }


def healthy_row(run: RunResult, draws: np.ndarray) -> dict[str, Any]:
    """Findings on healthy scans, where every one is a false alarm."""
    row: dict[str, Any] = {"run": run.label, "scans": len(run.healthy)}
    for key, values in (
        ("findings", np.array([case.findings for case in run.healthy], dtype=float)),
        ("findings_ml", np.array([case.findings_ml for case in run.healthy])),
    ):
        row |= metrics.with_ends(key, lambda chosen, values=values: metrics.mean_or_nan(values[chosen]), draws)
    row["median_ml"] = float(np.median([case.findings_ml for case in run.healthy]))
    row["worst_ml"] = max(case.findings_ml for case in run.healthy)
    return row


def healthy_case_row(label: str, case: HealthyCase) -> dict[str, Any]:
    return {"run": label, "scan": case.name, **{k: v for k, v in asdict(case).items() if k != "name"}}
