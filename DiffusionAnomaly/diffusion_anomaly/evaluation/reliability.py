"""Whether anomaly scores are as frequent as expected on scans that they were not calibrated on.

A score is ``-log10`` of a share: of healthy voxels, one in ``10 ** score`` should score at least so high. And the
stored threshold should mark no more than a stated volume of a healthy scan. Both can be counted on slices
that are far from any tumour, and both are counted here from what an evaluation has in memory anyway. Torch-free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..io.files import Writer
from . import metrics
from .formatting import finite, markdown_table, number, text_writer, with_interval

# Scores of the curve, exact in binary, and those of them that the table shows.
SCORES = np.arange(0.5, 4.0625, 0.125)
SHOWN = (1.0, 2.0, 3.0)
# A rate counts as kept within this factor of what was expected, either way.
FACTOR = 2.0
# The volume that a package's threshold may mark in a healthy scan, and the share of scans that must keep to it: what
# ``calibration.threshold_for_false_alarms`` sets thresholds by.
ALLOWED_ML = 1.0
ALLOWED_SHARE = 0.5


@dataclass(frozen=True)
class FreeSlices:
    """One patient's tumour-free slices under one run.

    Attributes:
        patient: the name.
        slices: how many they are.
        brain_ml: brain on them.
        scan_ml: brain of the whole scan.
        marked_ml: ``(len(SCORES),)`` brain on them that scores at least so high.
        false_alarm_ml: volume of the mask at the stored threshold on them.
    """

    patient: str
    slices: int
    brain_ml: float
    scan_ml: float
    marked_ml: np.ndarray = field(repr=False)
    false_alarm_ml: float

    @classmethod
    def of(
        cls,
        patient: str,
        anomaly_map: np.ndarray,
        predicted: np.ndarray,
        brain: np.ndarray,
        free: np.ndarray,
        voxel_ml: float,
    ) -> FreeSlices:
        """Counted on one patient's anomaly map.

        Args:
            patient: the name.
            anomaly_map: ``(slices, rows, columns)`` calibrated.
            predicted, brain: bool, same shape.
            free: ``(slices,)`` bool, which are tumour-free.
            voxel_ml: a voxel's volume.
        """
        marked = metrics.at_least(anomaly_map[free][brain[free]], SCORES)
        return cls(
            patient,
            int(free.sum()),
            float(brain[free].sum() * voxel_ml),
            float(brain.sum() * voxel_ml),
            marked * voxel_ml,
            float(predicted[free].sum() * voxel_ml),
        )

    @property
    def scaled_ml(self) -> float:
        """False alarms as if all of the brain were as its tumour-free slices are."""
        return self.false_alarm_ml * self.scan_ml / self.brain_ml


@dataclass(frozen=True)
class Reliability:
    """What was expected and what was counted.

    Attributes:
        curve: one a run and score: the rate over all patients, its interval, and its ratio to the expected one.
        alarms: one a run: false alarms at the stored threshold.
        patients: one a run and patient with tumour-free slices.
        about: how it was counted.
    """

    curve: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    patients: list[dict[str, Any]]
    about: dict[str, Any]

    @classmethod
    def of(
        cls,
        runs: Mapping[str, Sequence[FreeSlices]],
        thresholds: Mapping[str, float],
        *,
        seed: int = 0,
        resamples: int = 1000,
    ) -> Reliability:
        """Summarise runs over the same patients.

        Args:
            runs: by label, one entry a patient.
            thresholds: each run's stored one.
            seed, resamples: of the patients, for the intervals.
        """
        curve, alarms, patients = [], [], []
        for run, parts in runs.items():
            known = [part for part in parts if part.brain_ml > 0]
            draws = metrics.resamples(len(known), resamples, seed) if known else np.empty((0, 0), int)
            curve += [_rate_row(run, known, place, draws) for place in range(len(SCORES))]
            alarms.append(_alarm_row(run, known, thresholds[run], draws))
            patients += [_patient_row(run, part) for part in known]
        about = {"seed": seed, "resamples": resamples, "definitions": DEFINITIONS}
        return cls(curve, alarms, patients, about)

    def markdown(self) -> str:
        """Both tables and what they mean."""
        lines = markdown_table(
            ["method", "score", "expected", "observed", "observed / expected", f"patients within × {FACTOR:g}"],
            [
                [
                    row["run"],
                    f"≥ {row['heat']:g}",
                    number(row["promised"], 3, significant=True),
                    with_interval(row, "measured", 3, significant=True),
                    with_interval(row, "ratio", 2),
                    f"{row['patients_within']} of {row['patients']}",
                ]
                for row in self.curve
                if row["heat"] in SHOWN
            ],
        )
        lines += ["", "False alarms at the stored threshold:", ""]
        lines += markdown_table(
            [
                "method",
                "threshold",
                "ml on tumour-free slices",
                "ml scaled to a scan",
                f"patients with at most {ALLOWED_ML:g} ml a scan",
                f"at most {ALLOWED_ML:g} ml in half",
            ],
            [
                [
                    row["run"],
                    number(row["threshold"], 2),
                    with_interval(row, "false_alarm_ml", 2),
                    with_interval(row, "scaled_ml", 2),
                    f"{row['patients_within']} of {row['patients']}",
                    {True: "yes", False: "no", None: "–"}[row["kept"]],
                ]
                for row in self.alarms
            ],
        )
        lines += ["", *(f"- **{TITLES.get(word, word)}**: {meaning}." for word, meaning in DEFINITIONS.items())]
        lines += [f"- In brackets 95 % bootstrap intervals over patients ({self.about['resamples']} resamples)."]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is no number is null."""
        return finite(
            {"about": self.about, "curve": self.curve, "false_alarms": self.alarms, "patients": self.patients}
        )

    def draw(self, path: Path) -> None:
        """The curve as a PNG file: expected against observed rate, one line a run, the band of the factor shaded."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 5.0), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        expected = 10.0**-SCORES
        axes.fill_between(
            expected, expected / FACTOR, expected * FACTOR, color="#e2e8f0", label=f"within a factor of {FACTOR:g}"
        )
        axes.plot(expected, expected, color="#64748b", linewidth=1, linestyle="--", label="as expected")
        for run in dict.fromkeys(row["run"] for row in self.curve):
            rows = [row for row in self.curve if row["run"] == run]
            measured, low, high = (np.array([row[f"measured{end}"] for row in rows]) for end in ("", "_low", "_high"))
            # A logarithmic axis has no place for 0: a rate of 0 leaves a gap, an interval from 0 begins far below.
            (line,) = axes.plot(expected, np.where(measured > 0, measured, math.nan), marker=".", label=run)
            low = np.maximum(low, 0.01 * expected[-1])
            axes.fill_between(expected, low, np.maximum(high, low), color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_ylim(0.1 * expected[-1], 1.0)
        axes.set_xlabel("expected share of healthy brain, 10$^{-score}$")
        axes.set_ylabel("observed share of brain on tumour-free slices")
        axes.grid(which="major", color="#f1f5f9")
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, title="shaded: 95 % intervals", title_fontsize=8)
        figure.savefig(path, format="png")

    def writers(self) -> dict[str, Writer]:
        """The files, for ``io.outputs.publish``."""
        texts = {
            "reliability.md": self.markdown(),
            "reliability.json": json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        }
        return {"reliability.png": self.draw} | {name: text_writer(text) for name, text in texts.items()}


DEFINITIONS = {
    "promised": "10 to the power of minus the score: the share of healthy brain that scores at least as high if the "
    "calibration holds",
    "measured": "the share of brain on tumour-free slices that is, over all patients' such slices together; the "
    "anomaly map is taken on the scan's own grid, after the way back from the model's",
    "patients": "those with tumour-free slices: slices with brain at least 3 slices and at least 15 mm away from any "
    "slice with a reference voxel",
    "ml on tumour-free slices": "volume of the mask at the stored threshold on them, median over patients",
    "ml scaled to a scan": "the same times brain of the whole scan by brain on its tumour-free slices; few such slices "
    "make it uncertain",
}

TITLES = {"promised": "expected", "measured": "observed"}  # of the columns; JSON keeps the names it was given first


def _rate_row(run: str, parts: Sequence[FreeSlices], place: int, draws: np.ndarray) -> dict[str, Any]:
    score = float(SCORES[place])
    expected = 10.0**-score
    marked = np.array([part.marked_ml[place] for part in parts])
    brain = np.array([part.brain_ml for part in parts])
    row: dict[str, Any] = {"run": run, "heat": score, "promised": expected}
    row |= metrics.with_ends("measured", lambda chosen: float(marked[chosen].sum() / brain[chosen].sum()), draws)
    row |= {key.replace("measured", "ratio"): row[key] / expected for key in list(row) if key.startswith("measured")}
    ratios = marked / brain / expected
    row["patients"] = len(parts)
    row["patients_within"] = int(((ratios >= 1 / FACTOR) & (ratios <= FACTOR)).sum())
    return row


def _alarm_row(run: str, parts: Sequence[FreeSlices], threshold: float, draws: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run, "threshold": threshold}
    for key in ("false_alarm_ml", "scaled_ml"):
        values = np.array([getattr(part, key) for part in parts])
        row |= metrics.with_ends(key, lambda chosen, values=values: float(np.median(values[chosen])), draws)
    scaled = [part.scaled_ml for part in parts]
    row |= {"patients": len(parts), "patients_within": sum(ml <= ALLOWED_ML for ml in scaled)}
    row["kept"] = bool(np.quantile(scaled, ALLOWED_SHARE, method="higher") <= ALLOWED_ML) if parts else None
    return row


def _patient_row(run: str, part: FreeSlices) -> dict[str, Any]:
    rates = {f"rate_at_{score:g}": float(part.marked_ml[score == SCORES][0] / part.brain_ml) for score in SHOWN}
    return {
        "run": run,
        "patient": part.patient,
        "tumour_free_slices": part.slices,
        "brain_ml": part.brain_ml,
        "scan_brain_ml": part.scan_ml,
        **rates,
        "false_alarm_ml": part.false_alarm_ml,
        "scaled_ml": part.scaled_ml,
    }
