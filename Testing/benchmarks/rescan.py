"""What a comparison of two visits sees where nothing changed: each scan against a simulated second visit.

    python -m Testing.benchmarks rescan SCAN... -o OUT [--model NAME]

The second visit is the same head under another rigid motion (up to 10 degrees about each axis and 30 mm), on another
grid, with other grey values and noise of 1 % of the brightest; once with voxels of the same size, once with slices one
and a half times as thick. So the rigid motion is known, and every finding should be unchanged. Printed and written to
``OUT/rescan.md`` and ``.json``: how far the registration was off in the brain, and how often a finding is called new,
grown, shrunk or gone. A real second visit differs in more: these figures are a lower bound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

import diffusion_anomaly as da
from diffusion_anomaly.errors import EngineError
from diffusion_anomaly.evaluation.formatting import markdown_table
from diffusion_anomaly.io.outputs import prepare_folder
from diffusion_anomaly.results.comparison.compare import KINDS, Comparison, Exam, compare

from . import evidence, measure

SETTINGS = {"same voxels": 1.0, "slices 1.5 times as thick": 1.5}
MOST_DEGREES, MOST_MM, NOISE, GAIN = 10.0, 30.0, 0.01, 1.6


@dataclass(frozen=True)
class Rescan:
    """A simulated second visit, and where the points of the first are in it."""

    image: sitk.Image
    motion: sitk.Transform


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m Testing.benchmarks rescan", description="A scan against a simulated second visit."
    )
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    try:
        prepare_folder(asked.output, evidence.files("rescan"))
        report = repeat(asked.scans, da.load(asked.model), asked.seed)
    except EngineError as error:
        return evidence.refuse(error)
    evidence.write(asked.output, "rescan", report, markdown(report))
    return 0


def repeat(scans: Sequence[Path], detector: da.Detector, seed: int = 0) -> dict[str, Any]:
    """Compare each scan with each of its second visits.

    Returns:
        ``rows``, one a setting; ``cases``, one a setting and scan, with the volumes of all findings in both.
    """
    cases = []
    for number, path in enumerate(scans):
        first = detector(path)
        for setting, thicker in SETTINGS.items():
            again = rescanned(first.scan.reference.image, thicker, np.random.default_rng([seed, number]))
            comparison = compare(Exam.of(detector(again.image)), Exam.of(first))
            cases.append({"scan": path.name, "setting": setting} | _measured(comparison, again))
            measure.say(json.dumps({key: cases[-1][key] for key in ("scan", "setting", "error_mm", *KINDS)}))
    return {"rows": [_row(setting, cases) for setting in SETTINGS], "cases": cases}


def rescanned(image: sitk.Image, thicker: float, rng: np.random.Generator) -> Rescan:
    """A second visit.

    Args:
        image: the first, 3-D.
        thicker: factor of the distance between slices.
    """
    centre = image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()])
    motion = sitk.Euler3DTransform()
    motion.SetCenter(centre)
    motion.SetRotation(*(np.radians(MOST_DEGREES) * rng.uniform(-1, 1, 3)).tolist())
    shift = MOST_MM * rng.uniform(-1, 1, 3)
    motion.SetTranslation(shift.tolist())
    spacing = list(image.GetSpacing())
    spacing[int(np.argmax(spacing))] *= thicker
    size = [round(n * old / new) for n, old, new in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(np.add(image.GetOrigin(), shift).tolist())
    smooth = sitk.Cast(image, sitk.sitkFloat32)
    if thicker > 1:  # a thicker slice sees more at once
        axis = int(np.argmax(spacing))
        smooth = sitk.RecursiveGaussian(smooth, 0.4 * spacing[axis], direction=axis)
    lowest = float(sitk.GetArrayViewFromImage(smooth).min())
    moved = sitk.Resample(smooth, grid, motion.GetInverse(), sitk.sitkBSpline, lowest)
    values = GAIN * sitk.GetArrayFromImage(moved)
    noise = rng.normal(0, NOISE * np.percentile(values, 99.9), values.shape)
    values += np.where(values > GAIN * lowest, noise, 0)
    result = sitk.GetImageFromArray(values.astype(np.float32))
    result.CopyInformation(moved)
    return Rescan(result, motion)


def _measured(comparison: Comparison, again: Rescan) -> dict[str, Any]:
    """How far points of the brain are from where they should be, and what became of the findings."""
    brain = comparison.current.brain
    places = np.argwhere(sitk.GetArrayViewFromImage(brain) != 0)[::5000]
    off = []
    for place in places:
        point = brain.TransformIndexToPhysicalPoint([int(n) for n in place[::-1]])
        found = comparison.registration.transform.TransformPoint(point)
        off.append(float(np.linalg.norm(np.subtract(found, again.motion.TransformPoint(point)))))
    return {
        "error_mm": float(np.mean(off)),
        **{kind: comparison.count(kind) for kind in KINDS},
        "volumes_ml": [[change.prior_ml, change.current_ml] for change in comparison.changes],
        "scores_before": [change.prior_score for change in comparison.changes if change.kind == "new"],
        "warnings": comparison.warnings,
    }


def _row(setting: str, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mine = [case for case in cases if case["setting"] == setting]
    pairs = np.array([pair for case in mine for pair in case["volumes_ml"] if min(pair) > 0]).reshape(-1, 2)
    ratios = np.exp(np.abs(np.log(pairs[:, 0] / pairs[:, 1])))
    return {
        "setting": setting,
        "scans": len(mine),
        "error_mm": float(np.mean([case["error_mm"] for case in mine])),
        "largest_error_mm": max(case["error_mm"] for case in mine),
        **{kind: sum(case[kind] for case in mine) for kind in KINDS},
        "ratio_median": float(np.median(ratios)) if len(ratios) else None,
        "ratio_90": float(np.quantile(ratios, 0.9)) if len(ratios) else None,
    }


def markdown(report: dict[str, Any]) -> str:
    """The table of a report."""
    heading = ["second visit", "scans", "registration off (mm)", *KINDS, "ratio of volumes, median", "90 %"]
    rows = [
        [
            row["setting"],
            str(row["scans"]),
            f"{row['error_mm']:.2f} (at most {row['largest_error_mm']:.2f})",
            *(str(row[kind]) for kind in KINDS),
            *("–" if row[key] is None else f"{row[key]:.2f}" for key in ("ratio_median", "ratio_90")),
        ]
        for row in report["rows"]
    ]
    return "\n".join(markdown_table(heading, rows)) + "\n"
