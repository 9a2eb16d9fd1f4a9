"""Films of a split through the packed model, and what is measured on them beside ``evaluate --labels``.

That says how well the map parts classes, and the classifier without it. Here follow: the same within one stratum, such
as the view, which classes may differ in; how much of the map lies in the lungs; and pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.evaluate import RunSpec
from diffusion_anomaly.evaluation.formatting import finite, markdown_table, text_writer, with_interval
from diffusion_anomaly.evaluation.labelled import OWN_SCORE, SHARES, TITLES, LabelledScan, find_labelled, run_labelled
from diffusion_anomaly.io.outputs import OutputFolder
from diffusion_anomaly.io.records import record
from diffusion_anomaly.io.tables import read_table
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.results.result import Result
from diffusion_anomaly.text import counted

from .lungs import enrichment, lungs
from .parts import Part
from .picture import draw_examples

RESAMPLES = 1000
USUAL = 0.5  # of the validation films with outlines: where so many have lungs is the lungs' usual place


@dataclass(frozen=True)
class Film:
    """A film and what the model made of it, all ``(H, W)``.

    Attributes:
        name: of its file.
        label: 0 or 1.
        values: grey values.
        reconstruction: pseudo-healthy, in the same unit.
        anomaly_map: calibrated.
    """

    name: str
    label: int
    values: np.ndarray
    reconstruction: np.ndarray
    anomaly_map: np.ndarray

    @classmethod
    def of(cls, scan: LabelledScan, result: Result) -> Film:
        assert result.reconstruction is not None
        images = (result.scan.reference.image, next(iter(result.reconstruction.values())), result.anomaly_map)
        return cls(scan.path.name, scan.labels[0], *(sitk.GetArrayFromImage(image)[0] for image in images))

    @property
    def difference(self) -> np.ndarray:
        """What had to change, either way, before any calibration: the map of the paper."""
        return np.abs(self.values - self.reconstruction)


def experiment(part: Part, output: Path, split: str = "test", seed: int = 0) -> dict[str, Any]:
    """Write the evaluation of one part, ``chest.md``, ``chest.json`` and ``chest.png`` into a folder.

    Args:
        part: which one; its package is there.
        output: folder.
        split: "test", or "val" to choose options by.
        seed: of the bootstrap.

    Raises:
        InputError: when films or labels are missing, or the folder cannot be written to.
        ModelError: when the package is.
    """
    scans, films = find_labelled(part.films / split, part.films / "labels.csv"), []
    spec = RunSpec("guided", str(part.model), {"keep_reconstruction": True}, "guided")
    table = run_labelled(
        scans, [spec], output, seed=seed, on_result=lambda label, scan, result: films.append(Film.of(scan, result))
    )
    scores = {entry["scan"]: entry for entry in table.slices}
    chosen = np.array([scores[film.name][part.score] for film in films])
    classifier = np.array([scores[film.name][OWN_SCORE] for film in films])
    patients = [scores[film.name]["patient"] for film in films]
    truth = np.array([film.label for film in films]) == 1
    others = {f"auroc.picture.{share}{end}" for share in SHARES if share != part.score for end in ("", "_low", "_high")}
    row: dict[str, Any] = {key: value for key, value in table.rows[0].items() if key not in others}
    if part.strata:
        strata = read_column(part.films / "labels.csv", part.strata)
        groups = np.array([strata[film.name] for film in films])
        for key, values in (("map", chosen), ("classifier", classifier)):
            row |= within(f"within.{key}", values, truth, groups, patients, seed)
    usual = usual_place([read_film(scan.path) for scan in find_labelled(part.films / "val", part.films / "labels.csv")])
    row |= in_the_lungs(films, usual, seed)
    found = finite({"part": part.name, "question": part.question, "split": split, "score": part.score, "row": row})
    with OutputFolder(output) as folder:
        folder.check(["chest.png", "chest.md", "chest.json"])
        folder.publish(
            {
                "chest.png": lambda path: draw_examples(films, chosen, part.credit, path),
                "chest.md": text_writer(markdown(found)),
                "chest.json": record(found),
            }
        )
    return found


def within(
    key: str, scores: np.ndarray, truth: np.ndarray, groups: np.ndarray, patients: Sequence[str], seed: int
) -> dict[str, float]:
    """Area under the ROC curve of pairs of one group alone, with its interval over patients.

    Args:
        key: of the result.
        scores, truth, groups, patients: of the films.
        seed: of the bootstrap.
    """
    members = [np.flatnonzero(np.array(patients) == name) for name in sorted(set(patients))]

    def statistic(drawn: np.ndarray) -> float:
        places = np.concatenate([members[n] for n in drawn])
        areas, pairs = [], []
        for group in np.unique(groups[places]):
            here = places[groups[places] == group]
            sick, well = scores[here][truth[here]], scores[here][~truth[here]]
            if len(sick) and len(well):
                areas.append(metrics.auroc(sick, well))
                pairs.append(len(sick) * len(well))
        return float(np.average(areas, weights=pairs)) if pairs else float("nan")

    return metrics.with_ends(key, statistic, metrics.resamples(len(members), RESAMPLES, seed))


def in_the_lungs(films: Sequence[Film], usual: np.ndarray | None, seed: int) -> dict[str, Any]:
    """How much more of the difference lies in the lungs than of the film's area, mean over films of each class."""
    found: dict[str, Any] = {}
    for label, name in ((1, "diseased"), (0, "healthy")):
        some = [film for film in films if film.label == label and film.difference.any()]
        outlined = [(film, mask) for film in some if (mask := lungs(film.values)) is not None]
        found |= {f"{name}.films": len(some), f"{name}.outlined": len(outlined)}
        if outlined:
            found |= _ratio(f"{name}.own", [enrichment(film.difference, mask) for film, mask in outlined], seed)
        if usual is not None and some:
            found |= _ratio(f"{name}.usual", [enrichment(film.difference, usual) for film in some], seed)
    return found


def _ratio(key: str, shares: Sequence[tuple[float, float]], seed: int) -> dict[str, float]:
    inside, area = np.array(shares).T
    ratios = inside / area
    draws = metrics.resamples(len(ratios), RESAMPLES, seed)
    found = metrics.with_ends(f"{key}.ratio", lambda drawn: float(ratios[drawn].mean()), draws)
    return {f"{key}.inside": float(inside.mean()), f"{key}.area": float(area.mean()), **found}


def usual_place(films: Sequence[np.ndarray]) -> np.ndarray | None:
    """Where lungs mostly are, of films of one size ``(H, W)``; None where none of them has an outline."""
    found = [mask for film in films if (mask := lungs(film)) is not None]
    return np.mean(found, axis=0) >= USUAL if found else None


def read_film(path: Path) -> np.ndarray:
    """Grey values ``(H, W)``. Raises ``InputError`` as ``read_volume``."""
    return sitk.GetArrayFromImage(read_volume(path).image)[0]


def read_column(table: Path, column: str) -> dict[str, str]:
    """A column of the table of labels, by file name.

    Raises:
        InputError: when it has none of that name.
    """
    return {row["scan"]: row[column] for _, row in read_table(table, ["scan", column])[1]}


def markdown(found: Mapping[str, Any]) -> str:
    """Two tables: how well classes are told apart, and how much of the map is in the lungs."""
    row, score = found["row"], found["score"]
    lines = markdown_table(
        ["film's score", "AUROC", "within one view"],
        [
            [
                f"anomaly map, {TITLES[score]}",
                with_interval(row, f"auroc.picture.{score}", 3),
                _or_dash(row, "within.map"),
            ],
            [
                "classifier alone",
                with_interval(row, f"auroc.picture.{OWN_SCORE}", 3),
                _or_dash(row, "within.classifier"),
            ],
        ],
    )
    lines += [
        "",
        f"{found['question'].capitalize()}, split {found['split']}: {row['slices']} films, {row['diseased']} diseased, "
        f"{counted(row['patients'], 'patient')}; in brackets 95 % bootstrap intervals over patients. Marked at the "
        f"stored threshold: {row['sensitivity']:.0%} of the diseased films, "
        f"{1 - row['specificity']:.0%} of the others.",
        "",
    ]
    rows = []
    for name in ("diseased", "healthy"):
        for kind, title in (("own", "own lungs"), ("usual", "lungs' usual place")):
            if f"{name}.{kind}.ratio" in row:
                count = row[f"{name}.outlined" if kind == "own" else f"{name}.films"]
                shares = (f"{row[f'{name}.{kind}.{what}']:.3f}" for what in ("inside", "area"))
                ratio = with_interval(row, f"{name}.{kind}.ratio", 2)
                rows.append([name, title, f"{count} of {row[f'{name}.films']}", *shares, ratio])
    lines += markdown_table(["films", "region", "with it", "share of the map", "share of the film", "ratio"], rows)
    return "\n".join(lines) + "\n"


def _or_dash(row: Mapping[str, Any], key: str) -> str:
    return with_interval(row, key, 3) if key in row else "–"
