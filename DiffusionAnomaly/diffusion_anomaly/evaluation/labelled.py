"""Methods against labels of whole pictures or slices, where nobody has drawn what is to be found.

Each run's anomaly map becomes a few numbers a slice, over the region that its model looks at; how well these part
diseased from healthy is the area under the ROC curve. Beside them stands the method's own whole-image score: of the
guided method that is what its classifier says of the slice as it is, and what a map has to be compared with. The slices
of a volume are judged one by one and, by their highest ones, patient by patient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..detection.detector import Detector
from ..detection.planning import Plan
from ..errors import InputError
from ..io.outputs import OutputFolder, keep_out_of_results
from ..io.records import record
from ..io.tables import csv_text, read_table
from ..io.volume import read_volume
from ..results.result import Progress, Result
from ..text import counted
from . import metrics
from .formatting import finite, markdown_table, text_writer, with_interval
from .runs import RunSpec, options_of, plan_run

# A slice's scores: the mean of its map, and of the highest-scoring shares of it.
SHARES = {"mean": 1.0, "highest_10": 0.1, "highest_1": 0.01}
OWN_SCORE = "own_score"
HIGHEST_SLICES = 3  # whose mean is a patient's score
TITLES = {"mean": "mean", "highest_10": "highest 10 %", "highest_1": "highest 1 %", OWN_SCORE: "own score"}


@dataclass(frozen=True)
class LabelledScan:
    """A picture or volume and what is known of its slices.

    Attributes:
        path: of the scan.
        patient: whose it is.
        labels: 0 healthy or 1 diseased, by slice, counted from below.
    """

    path: Path
    patient: str
    labels: Mapping[int, int]


def find_labelled(folder: Path | str, table: Path | str) -> list[LabelledScan]:
    """The scans of a folder that a table labels.

    Args:
        folder: where they lie; rows of other folders' scans are passed over.
        table: CSV with the columns ``scan`` (file name), ``label`` (0, 1, or -1 for neither) and, if wanted, ``slice``
            (from below, from 0) and ``patient``.

    Raises:
        InputError: when the table cannot be read so, or labels no scan of the folder.
    """
    folder, table = Path(folder), Path(table)
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"There is no {folder}"
        raise InputError(
            f"{what}; labels are of the scans in a folder.",
            "Give the scans' folder first, and the table behind --labels.",
        )
    labels: dict[str, dict[int, int]] = {}
    patients: dict[str, str] = {}
    for line, row in read_table(table, ["scan", "label"])[1]:
        try:
            place, label = int(row.get("slice") or 0), int(row["label"])
            if label not in (-1, 0, 1) or place < 0:
                raise ValueError
        except ValueError as error:
            raise InputError(
                f"{table}, line {line}: expected a label of 0, 1 or -1 and a slice from 0, found {row}."
            ) from error
        name = row["scan"]
        patients[name] = row.get("patient") or name
        scan = labels.setdefault(name, {})
        if label >= 0:
            scan[place] = label
    scans = [
        LabelledScan(folder / name, patients[name], found)
        for name, found in labels.items()
        if found and Path(name).name == name and (folder / name).exists()
    ]
    if not scans:
        raise InputError(f"{table} labels no scan of {folder}.", "The column 'scan' holds names of its files.")
    return sorted(scans, key=lambda scan: scan.path.name)


@dataclass(frozen=True)
class LabelledTable:
    """What came out.

    Attributes:
        rows: one a run.
        slices: one a slice and run.
        about: what was run on what.
    """

    rows: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        keys = [key for key in self.rows[0] if key.startswith("auroc") and not key.endswith(("_low", "_high"))]
        heads = [f"AUROC of {unit}s, {TITLES[score]}" for _, unit, score in (key.split(".") for key in keys)]
        lines = markdown_table(
            ["method", *heads, "sensitivity", "specificity"],
            [
                [
                    row["run"],
                    *(with_interval(row, key, 3) for key in keys),
                    with_interval(row, "sensitivity", 3),
                    with_interval(row, "specificity", 3),
                ]
                for row in self.rows
            ],
        )
        row = self.rows[0]
        lines += [
            "",
            f"Area under the ROC curve of a score of a slice; {counted(row['slices'], 'slice')} or pictures, of them "
            f"{row['diseased']} diseased, of {counted(row['patients'], 'patient')}; in brackets 95 % bootstrap "
            "intervals over patients.",
            "",
            "- **mean, highest 10 %, highest 1 %**: mean of the map in a slice's region, or of its highest part.",
            *(
                f"- **own score** of {label}: {run['score_title']}, without the map."
                for label, run in self.about["runs"].items()
            ),
            f"- **patients**: by the mean of the {HIGHEST_SLICES} highest slices.",
            "- **sensitivity, specificity**: of slices, diseased with and healthy without anything marked at the "
            "stored threshold.",
            "- Diseased slices without any of the region count as missed; healthy ones are left out.",
        ]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return finite({"about": self.about, "rows": self.rows, "slices": self.slices})


def run_labelled(
    scans: Sequence[LabelledScan],
    runs: Sequence[RunSpec],
    output: Path | str,
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    *,
    resamples: int = 1000,
    steps: int | None = None,
    on_result: Callable[[str, LabelledScan, Result], None] | None = None,
) -> LabelledTable:
    """Run every method on every scan and compare with the labels.

    Args:
        scans: from ``find_labelled``.
        runs: what to evaluate. No baseline is added: it is a model of the brain.
        output: folder for ``evaluation.md``, ``evaluation.json`` and ``evaluation_slices.csv``.
        device, seed, progress, resamples, steps: as for ``evaluate.run``.
        on_result: is given each result, with its run's label and its scan, to measure something else on it.

    Raises:
        InputError: as a ``Detector``, and when there is only one class.
    """
    classes = {label for scan in scans for label in scan.labels.values()}
    if classes != {0, 1}:
        found = "healthy" if classes == {0} else "diseased"
        raise InputError(
            f"Of {counted(len(scans), 'scan')} all that is labelled is {found}.",
            "Both classes are needed to tell them apart.",
        )
    detectors = {label: Detector(plan) for label, plan in _plans(runs, device, seed, steps).items()}
    with OutputFolder(output, [scan.path for scan in scans]) as folder:
        keep_out_of_results(folder.path)
        folder.check(["evaluation.md", "evaluation.json", "evaluation_slices.csv"])
        slices = _slices(scans, detectors, progress, on_result)
        table = LabelledTable(
            [_row(label, [entry for entry in slices if entry["run"] == label], seed, resamples) for label in detectors],
            slices,
            {
                "seed": seed,
                "resamples": resamples,
                "hardware": ", ".join(dict.fromkeys(d.plan.device for d in detectors.values())),
                "runs": {
                    label: {
                        "method": detector.plan.method.name,
                        "model": f"{detector.plan.bundle.name} {detector.plan.bundle.version}",
                        "threshold": detector.plan.threshold,
                        "score_title": detector.plan.method.score_title,
                    }
                    for label, detector in detectors.items()
                },
            },
        )
        folder.publish(
            {
                "evaluation.md": text_writer(table.markdown()),
                "evaluation_slices.csv": text_writer(csv_text(finite(slices))),
                "evaluation.json": record(table.to_dict()),
            }
        )
    return table


def _plans(runs: Sequence[RunSpec], device: str, seed: int, steps: int | None) -> dict[str, Plan]:
    plans: dict[str, Plan] = {}
    for spec in runs:
        plan = plan_run(options_of(spec, device, seed), steps)
        label = spec.label or f"{spec.method} ({plan.bundle.name})"
        if label in plans:
            raise InputError(f"Two runs are called {label!r}.", "Give one of them another label.")
        plans[label] = plan
    return plans


def _slices(
    scans: Sequence[LabelledScan],
    detectors: Mapping[str, Detector],
    progress: Callable[[Progress], None] | None,
    on_result: Callable[[str, LabelledScan, Result], None] | None,
) -> list[dict[str, Any]]:
    """The scores of every labelled slice under every run."""
    found = []
    start = time.perf_counter()
    for done, scan in enumerate(scans):
        if progress is not None:
            elapsed = time.perf_counter() - start
            progress(
                Progress("detect", done, len(scans), elapsed, elapsed / done * (len(scans) - done) if done else None)
            )
        volume = read_volume(scan.path)
        regions: dict[str, sitk.Image] = {}
        for label, detector in detectors.items():
            bundle = detector.plan.bundle
            if bundle.region not in regions:
                regions[bundle.region] = detector.find_brain(volume)
            region = regions[bundle.region]
            result = detector(volume, brain=region)
            if on_result is not None:
                on_result(label, scan, result)
            view = bundle.orientation_of(volume.image).view
            found += [{"run": label, **entry} for entry in _judged(scan, result, region, view)]
    return found


def _judged(
    scan: LabelledScan, result: Result, region: sitk.Image, view: Callable[[np.ndarray], np.ndarray]
) -> Iterator[dict[str, Any]]:
    """The scores of every labelled slice of one result.

    Args:
        scan: with the labels.
        result: of it.
        region: what was looked at, uint8 on the scan's grid.
        view: puts slices in the order that labels count them.

    Raises:
        InputError: when a label is of a slice that the scan does not have.
    """
    maps, marked, inside = (view(sitk.GetArrayFromImage(image)) for image in (result.anomaly_map, result.mask, region))
    own = result.slice_scores
    assert own is not None
    for index, truth in sorted(scan.labels.items()):
        if index >= len(maps):
            raise InputError(f"{scan.path} has {counted(len(maps), 'slice')}; its labels name slice {index}.")
        values = maps[index][inside[index] != 0]
        if not (values.size or truth):
            continue
        pixels = int(values.size)
        values = values if pixels else np.zeros(1)
        yield {
            "scan": scan.path.name,
            "patient": scan.patient,
            "slice": index,
            "label": truth,
            "region_pixels": pixels,
            **{key: metrics.highest_mean(values, share) for key, share in SHARES.items()},
            OWN_SCORE: float(own[index]),
            "marked_pixels": int(np.count_nonzero(marked[index])),
        }


def _row(label: str, slices: Sequence[Mapping[str, Any]], seed: int, resamples: int) -> dict[str, Any]:
    """A run's numbers with their intervals."""
    patients = sorted({entry["patient"] for entry in slices})
    members = [np.array([n for n, entry in enumerate(slices) if entry["patient"] == name]) for name in patients]
    truth = np.array([entry["label"] for entry in slices]) == 1
    is_marked = np.array([entry["marked_pixels"] > 0 for entry in slices])
    several = len(slices) > len({entry["scan"] for entry in slices})
    sick = np.array([truth[place].any() for place in members])
    draws = metrics.resamples(len(patients), resamples, seed)
    row: dict[str, Any] = {"run": label, "slices": len(slices), "diseased": int(truth.sum()), "patients": len(patients)}

    def of_slices(values: np.ndarray) -> Callable[[np.ndarray], float]:
        def statistic(chosen: np.ndarray) -> float:
            places = np.concatenate([members[n] for n in chosen])
            return metrics.auroc(values[places][truth[places]], values[places][~truth[places]])

        return statistic

    for key in (*SHARES, OWN_SCORE):
        values = np.array([entry[key] for entry in slices])
        if np.isnan(values).all():
            continue
        values = np.where(np.isnan(values), np.nanmin(values), values)  # what is not looked at is missed
        row |= metrics.with_ends(f"auroc.{'slice' if several else 'picture'}.{key}", of_slices(values), draws)
        if several:
            highest = np.array([np.sort(values[place])[-HIGHEST_SLICES:].mean() for place in members])
            row |= metrics.with_ends(
                f"auroc.patient.{key}",
                lambda chosen, highest=highest: metrics.auroc(
                    highest[chosen][sick[chosen]], highest[chosen][~sick[chosen]]
                ),
                draws,
            )

    def rate(wanted: bool) -> Callable[[np.ndarray], float]:
        def statistic(chosen: np.ndarray) -> float:
            places = np.concatenate([members[n] for n in chosen])
            places = places[truth[places] == wanted]
            return metrics.mean_or_nan((is_marked[places] == wanted).astype(float))

        return statistic

    row |= metrics.with_ends("sensitivity", rate(True), draws)
    return row | metrics.with_ends("specificity", rate(False), draws)
