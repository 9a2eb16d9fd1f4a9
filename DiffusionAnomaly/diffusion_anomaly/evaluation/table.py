"""The evaluation's table: what its columns mean, and how it is written as CSV, JSON and Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..io.files import Writer
from ..io.outputs import OutputFolder
from ..io.records import record
from ..io.tables import csv_text
from ..text import counted
from . import metrics
from .formatting import finite, markdown_table, number, text_writer, with_interval
from .froc import FALSE_FINDINGS, froc_rows
from .raters import Agreement, rater_rows
from .statistics import NEAR_SCORE, RunResult, case_row, healthy_case_row, healthy_row, run_row, strata_rows


class Column(NamedTuple):
    """A column: its name in CSV and JSON, its heading, its decimals (None for a text), and what it is."""

    key: str
    title: str
    digits: int | None
    meaning: str


COLUMNS = (
    Column("dice", "Dice", 3, "Dice overlap at the stored threshold, mean over patients"),
    Column("best_dice", "best Dice", 3, "highest mean Dice of one threshold for all, chosen on the references"),
    Column(
        "own_threshold_near",
        "threshold fits",
        2,
        f"share of patients whose own best threshold lies within {NEAR_SCORE:g} of the stored one, of those with one",
    ),
    Column("otsu_dice", "Otsu Dice", 3, "Dice overlap at each scan's own threshold by Otsu, mean over patients"),
    Column("average_precision", "AP", 3, "average precision, lesion outside the mask as missed, mean over patients"),
    Column("pooled_average_precision", "pooled AP", 3, "the same over all patients' voxels together"),
    Column("voxel_auroc", "voxel AUROC", 3, "area under the ROC curve of a scan's voxels, mean over patients"),
    Column("outside_brain", "outside mask", 3, "share of the reference outside the brain mask, mean over patients"),
    Column("outside_brain_worst", "outside, worst", 3, "the largest such share of a patient"),
    Column("lesion_recall", "lesion recall", 3, "share of reference components with a predicted voxel in them"),
    Column("false_positives", "FP a scan", 2, "predicted components without a reference voxel, mean over scans"),
    Column("false_positive_ml", "FP ml", 2, "predicted ml on tumour-free slices, mean over scans that have such"),
    Column("slice_auroc", "slice AUROC", 3, "area under the ROC curve of tumour against tumour-free slices"),
    Column("gain", "AP − intensity", 3, "AP minus the first baseline's, patient by patient"),
    Column("beats_intensity", "beats intensity", None, "yes or no: that interval lies above or below 0"),
    Column("seconds", "s a scan", 1, "mean seconds from the scan in memory to findings, finding the brain too"),
    Column("network_calls", "calls a slice", 0, "how many times the networks see each slice"),
)


@dataclass(frozen=True)
class Table:
    """What an evaluation found.

    Attributes:
        rows: one a run; ``name``, ``name_low`` and ``name_high`` for each column with an interval.
        strata: recall by lesion size and quality by a patient's tumour volume, for each run.
        froc: recall by lesion size at given numbers of false findings a scan, for each run.
        cases: one a run and patient.
        healthy: findings on healthy scans, one a run; empty without such scans.
        healthy_cases: one a run and healthy scan.
        about: data, hardware, versions, models and definitions.
        raters: agreement of runs and raters with each of several raters; empty without such masks.
        warnings: why references are doubtful, and the numbers with them.
    """

    rows: list[dict[str, Any]]
    strata: list[dict[str, Any]]
    froc: list[dict[str, Any]]
    cases: list[dict[str, Any]]
    about: dict[str, Any]
    healthy: list[dict[str, Any]] = field(default_factory=list)
    healthy_cases: list[dict[str, Any]] = field(default_factory=list)
    raters: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        runs: Sequence[RunResult],
        *,
        seed: int = 0,
        resamples: int = 1000,
        warnings: Sequence[str] = (),
        agreed: Sequence[Agreement] = (),
    ) -> Table:
        """Summarise runs over the same patients. All are compared with the first baseline."""
        draws = metrics.resamples(len(runs[0].cases), resamples, seed)
        healthy_draws = metrics.resamples(max(1, len(runs[0].healthy)), resamples, seed)
        baseline = next((run for run in runs if run.is_baseline), None)
        return cls(
            [run_row(run, baseline, draws) for run in runs],
            [stratum for run in runs for stratum in strata_rows(run)],
            [row for run in runs for row in froc_rows(run.label, run.sweep.froc, draws)],
            [case_row(run.label, case) for run in runs for case in run.cases],
            _about(runs, seed, resamples),
            [healthy_row(run, healthy_draws) for run in runs if run.healthy],
            [healthy_case_row(run.label, case) for run in runs for case in run.healthy],
            rater_rows(agreed, draws),
            list(warnings),
        )

    def markdown(self) -> str:
        """All tables, and below them what their columns mean and what they were measured on."""
        lines = markdown_table(
            ["method", *(column.title for column in COLUMNS)],
            [[row["run"], *(_cell(row, column) for column in COLUMNS)] for row in self.rows],
        )
        if self.warnings:
            lines += ["", "Warnings:", "", *(f"- {warning}" for warning in self.warnings)]
        lines += ["", "By size:", "", *self._by_size()]
        lines += ["", "Lesion recall at so many false findings a scan:", "", *self._by_false_findings()]
        if self.raters:
            lines += ["", "Against each rater, at the stored threshold:", "", *self._by_rater()]
        if self.healthy:
            lines += ["", "Healthy scans, at the stored threshold:", "", *self._on_healthy()]
        about = self.about
        lines += [
            "",
            f"{counted(about['patients'], 'patient')}; {about['hardware']}; in brackets 95 % bootstrap intervals "
            f"over patients ({about['resamples']} resamples, the same for all methods).",
            "",
            *(
                f"- **{row['run']}**: peak margin {row['peak_margin']:g}; at every threshold, findings whose highest "
                "score does not exceed it by that much are dropped."
                for row in self.rows
                if row.get("peak_margin")
            ),
            *(f"- **{column.title}**: {column.meaning}." for column in COLUMNS),
            *(f"- **{word}**: {meaning}." for word, meaning in about["definitions"].items()),
        ]
        return "\n".join(lines) + "\n"

    def _by_size(self) -> list[str]:
        return markdown_table(
            ["method", "size", "lesions", "lesion recall", "patients", "Dice", "AP"],
            [
                [
                    row["run"],
                    row["size"],
                    str(row["lesions"]),
                    number(row["lesion_recall"], 3),
                    str(row["patients"]),
                    number(row["dice"], 3),
                    number(row["average_precision"], 3),
                ]
                for row in self.strata
            ],
        )

    def _by_false_findings(self) -> list[str]:
        return markdown_table(
            ["method", "size", "lesions", *(f"at {allowed:g}" for allowed in FALSE_FINDINGS)],
            [
                [
                    row["run"],
                    row["size"],
                    str(row["lesions"]),
                    *(with_interval(row, f"recall_at_{allowed:g}", 3) for allowed in FALSE_FINDINGS),
                ]
                for row in self.froc
            ],
        )

    def _by_rater(self) -> list[str]:
        return markdown_table(
            ["mask", "rater", "lesions", "Dice", "lesion recall"],
            [
                [
                    row["mask"],
                    row["rater"],
                    str(row["lesions"]),
                    with_interval(row, "dice", 3),
                    with_interval(row, "lesion_recall", 3),
                ]
                for row in self.raters
            ],
        )

    def _on_healthy(self) -> list[str]:
        return markdown_table(
            ["method", "scans", "findings a scan", "ml a scan", "median ml", "worst ml"],
            [
                [
                    row["run"],
                    str(row["scans"]),
                    with_interval(row, "findings", 2),
                    with_interval(row, "findings_ml", 2),
                    number(row["median_ml"], 2),
                    number(row["worst_ml"], 2),
                ]
                for row in self.healthy
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is no number is null."""
        content = {"about": self.about, "rows": self.rows, "strata": self.strata, "froc": self.froc}
        content |= {"patients": self.cases, "warnings": self.warnings}
        if self.raters:
            content["raters"] = self.raters
        if self.healthy:
            content |= {"healthy": self.healthy, "healthy_scans": self.healthy_cases}
        return finite(content)

    def write(self, output: OutputFolder, beside: Mapping[str, Writer] | None = None) -> dict[str, Path]:
        """Write all forms of the table, and what goes with them, together or not at all.

        Raises:
            InputError: as publishing raises it.
        """
        texts = {
            "evaluation.csv": csv_text(finite(self.rows)),
            "evaluation_strata.csv": csv_text(finite(self.strata)),
            "evaluation_froc.csv": csv_text(finite(self.froc)),
            "evaluation_patients.csv": csv_text(finite(self.cases)),
            **({"evaluation_raters.csv": csv_text(finite(self.raters))} if self.raters else {}),
            **({"evaluation_healthy.csv": csv_text(finite(self.healthy_cases))} if self.healthy else {}),
            "evaluation.md": self.markdown(),
        }
        tables = {name: text_writer(text) for name, text in texts.items()}
        return output.publish({**(beside or {}), **tables, "evaluation.json": record(self.to_dict())})


def _about(runs: Sequence[RunResult], seed: int, resamples: int) -> dict[str, Any]:
    devices = dict.fromkeys(f"{run.provenance['device']['name']} ({run.provenance['device']['used']})" for run in runs)
    return {
        "patients": len(runs[0].cases),
        "seed": seed,
        "resamples": resamples,
        "hardware": f"{', '.join(devices)}, {os.cpu_count()} processor cores",
        "versions": runs[0].provenance["versions"],
        "runs": {
            run.label: {key: run.provenance[key] for key in ("method", "model", "options", "threshold", "calibration")}
            for run in runs
        },
        "columns": {column.key: column.meaning for column in COLUMNS},
        "definitions": DEFINITIONS,
    }


DEFINITIONS = {
    "brain voxels": "scores are judged inside the brain mask, the same mask for all methods; reference voxels "
    "outside of it count as missed in Dice, in lesion recall, and in average precision and voxel AUROC, where no "
    "threshold reaches them; "
    "evaluation.json has average precision inside the mask alone as average_precision_in_brain",
    "beats intensity": "not shown where the interval of AP − intensity holds 0, or with fewer than 6 patients",
    "tumour-free slices": "slices with brain at least 3 slices and at least 15 mm away from any slice with a reference "
    "voxel; slices in between are in neither class",
    "slice score": "mean score of the highest-scoring 1 % of a slice's brain voxels",
    "components": "voxels that share a face, an edge or a corner; predicted ones below the minimum volume are dropped",
    "Otsu Dice": "at the threshold that parts the raw scores of the scan's brain voxels into the two classes with the "
    "largest variance between them; nothing is dropped. It finds something in every scan, healthy ones too",
    "at 1, 2, 4": "lesion recall at the best of the thresholds that best Dice is chosen from, with at most so many "
    "false findings on average over scans; one threshold for all, chosen on the references. A component finds "
    "the lesions it lies in when at least a tenth of it lies in lesions; any other is a false finding",
    "best Dice": "at the best of 64 thresholds, equally spaced by rank among the scores of all lesion voxels, and the "
    "stored one, each after small components are dropped",
}


def _cell(row: Mapping[str, Any], column: Column) -> str:
    if column.digits is None:
        return row.get(column.key) or "–"
    return with_interval(row, column.key, column.digits)
