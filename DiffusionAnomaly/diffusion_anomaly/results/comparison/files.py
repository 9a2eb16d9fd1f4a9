"""A comparison's files: table, page, the prior scan on the current one's grid, and the record of how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ... import __version__
from ...io.files import whole_file, write_text
from ...io.outputs import OutputFolder
from ...io.records import COMPARISON_RECORD, record
from ...io.tables import csv_text
from ...io.writing import write_image
from .compare import Change, Comparison, Exam

IMAGES = ("prior_scan.nii.gz", "prior_heat.nii.gz", "prior_mask.nii.gz", "current_mask.nii.gz", "prior_seen.nii.gz")
NAMES = (*IMAGES, "changes.csv", "changes.json", "prior_to_current.tfm", "comparison.html", COMPARISON_RECORD)


def changes_table(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """One flat row a change, the units in the column names."""
    return [
        {
            "change": change.kind,
            "current_findings": " ".join(map(str, change.current)),
            "prior_findings": " ".join(map(str, change.prior)),
            "current_volume_ml": change.current_ml,
            "prior_volume_ml": change.prior_ml,
            "difference_ml": change.current_ml - change.prior_ml,
            "current_heat_neg_log10_p": change.current_score,
            "prior_heat_neg_log10_p": change.prior_score,
            **{f"centroid_{axis}_mm": value for axis, value in zip("ras", change.centroid_ras, strict=True)},
            "slice_first_index": None if change.slices is None else change.slices[0],
            "slice_last_index": None if change.slices is None else change.slices[1],
            "place": change.place,
        }
        for change in changes
    ]


def statistics(comparison: Comparison) -> dict[str, Any]:
    """The comparison's numbers, JSON-ready."""
    found = comparison.registration
    return {
        "prior": _about(comparison.prior),
        "current": _about(comparison.current),
        "registration": {
            "shift_mm": found.shift_mm,
            "rotation_degrees": found.rotation_degrees,
            "mutual_information_before": found.before,
            "mutual_information_after": found.after,
        },
        "changes": [asdict(change) for change in comparison.changes],
        "warnings": comparison.warnings,
    }


def save(comparison: Comparison, folder: OutputFolder) -> dict[str, Path]:
    """Write all files, together or not at all.

    ``prior_scan``, ``prior_heat``, ``prior_mask`` and ``prior_seen`` are NIfTI on the current scan's grid, as is
    ``current_mask``; ``prior_to_current.tfm`` maps points of the current scan to points of the prior one, LPS in mm, as
    ITK resamples with.

    Returns:
        The paths by file name.

    Raises:
        InputError: when something cannot be written, or what is there is no earlier result.
    """
    from .page import render

    numbers = statistics(comparison)
    nothing = Change("", (), (), 0.0, 0.0, None, None, (0.0, 0.0, 0.0), None)
    images = (
        comparison.prior_scan,
        comparison.prior_map,
        comparison.prior_mask,
        comparison.current_mask,
        comparison.seen,
    )
    about = {
        "purpose": "For research use only. Not for diagnosis.",
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "diffusion_anomaly": __version__,
        **{name: numbers[name] for name in ("prior", "current", "registration", "warnings")},
    }
    writers = {
        **{name: lambda path, image=image: _write(image, path) for name, image in zip(IMAGES, images, strict=True)},
        "changes.csv": lambda path: write_text(
            path, csv_text(changes_table(comparison.changes), list(changes_table([nothing])[0]), digits=6)
        ),
        "changes.json": lambda path: write_text(path, json.dumps(numbers, indent=2, allow_nan=False) + "\n"),
        "prior_to_current.tfm": lambda path: write_text(path, _transform_text(comparison.registration.transform)),
        "comparison.html": lambda path: write_text(path, render(comparison)),
        COMPARISON_RECORD: record(about),
    }
    return folder.publish(writers)


def _about(exam: Exam) -> Mapping[str, Any]:
    return {
        "title": exam.name,
        "model": exam.model,
        "threshold": exam.threshold,
        "min_volume_ml": exam.min_volume_ml,
        "peak_margin": exam.peak_margin,
    }


def _write(image: sitk.Image, path: Path) -> None:
    values = sitk.GetArrayViewFromImage(image)
    with whole_file(path) as partial, open(partial, "wb") as file:
        write_image(file, ".nii.gz", values, image, 3, None)


def _transform_text(transform: sitk.Transform) -> str:
    """A rigid transform as ITK's text format has it."""
    numbers = (
        " ".join(f"{value:.17g}" for value in values)
        for values in (transform.GetParameters(), transform.GetFixedParameters())
    )
    parameters, fixed = numbers
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: Euler3DTransform_double_3_3\n"
        f"Parameters: {parameters}\nFixedParameters: {fixed}\n"
    )
