"""Over all scans of a cohort: a table of the scans, one of the findings, and which scans stand out.

Read from the results alone, so that it can be made on another machine, and again at any time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..io.files import Writer, write_text
from ..io.records import DIGESTS
from ..io.tables import csv_text
from ..models.declaration import BRAIN
from ..options import margin_of
from ..results.findings import size_unit
from ..results.saving import REPORT
from ..text import counted, listed
from .failures import read_failures
from .state import FINDINGS, RESULTS, Finished, all_finished

FENCE = 3.5
"""Robust z score from which a scan stands out, as Iglewicz and Hoaglin (1993) advise."""
FEWEST = 8
"""Scans that it takes to say what is usual."""
_NAMES_SHOWN = 5
LEAST_SHARE = 1e-5
"""Shares below this are alike: a hundredth of a ml in a whole brain."""


@dataclass(frozen=True)
class Quantity:
    """Something that is looked at for scans that stand out.

    Attributes:
        name: of the column.
        title: in words.
        logarithmic: whether it is compared by its logarithm, because it spans orders of magnitude.
    """

    name: str
    title: str
    logarithmic: bool = False


QUANTITIES = (
    Quantity("brain_volume_ml", "Brain volume (ml)"),
    Quantity("region_volume_ml", "Volume looked at (ml)"),
    Quantity("score", "Whole-image score"),
    Quantity("share_above_threshold", "Share above the threshold", logarithmic=True),
)
"""A region that is no brain has a volume under another name, and pictures have none and no share of it."""


@dataclass(frozen=True)
class Group:
    """What is known of a cohort.

    Attributes:
        scans: a row a scan, by name, with the robust z score of each quantity.
        findings: a row a finding.
        quantities: those that are known of any scan; the rows have columns for them alone.
        failures: the table of failures.
        doubts: what concerns the cohort as a whole.
        left_out: how many results in the folder are of no scan of the cohort.
    """

    scans: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    quantities: list[Quantity] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    left_out: int = 0


def collect(output: Path, belongs: Callable[[Finished], bool] = lambda result: True) -> Group:
    """Read every result of a cohort.

    Args:
        output: its folder.
        belongs: whether a result is of the cohort as it is now; the others are left out and counted.
    """
    there = all_finished(output)
    results = [result for result in there if belongs(result)]
    left_out = len(there) - len(results)
    found = [_findings(result) for result in results]
    scans = [_scan_row(result, own) for result, own in zip(results, found, strict=True)]
    known = [quantity for quantity in QUANTITIES if any(row[quantity.name] is not None for row in scans)]
    for quantity in QUANTITIES:
        values = [row[quantity.name] for row in scans]
        if quantity not in known:
            for row in scans:
                del row[quantity.name]
            continue
        for row, z in zip(scans, robust_z(values, quantity.logarithmic), strict=True):
            row[f"robust_z_{quantity.name}"] = z
    findings = [
        {**{name: scan[name] for name in ("name", "patient", "session")}, **finding}
        for scan, own in zip(scans, found, strict=True)
        for finding in own
    ]
    return Group(scans, findings, known, read_failures(output), _doubts(scans, left_out), left_out)


def robust_z(values: Sequence[float | None], logarithmic: bool = False) -> list[float | None]:
    """How far each value is from the median, in robust standard deviations: 0.6745 (x - median) / MAD.

    MAD is the median of the absolute deviations; where more than half of the values are the same it is 0, and 0.7979
    times the mean deviation stands for it, as Iglewicz and Hoaglin advise.

    Returns:
        None for a value that is None, and everywhere where there are too few.

    >>> robust_z([1, 2, 3, 4, 5, 6, 7, 8, 50])[-1]
    15.176
    """
    known = [(index, float(value)) for index, value in enumerate(values) if value is not None]
    found: list[float | None] = [None] * len(values)
    if len(known) < FEWEST:
        return found
    numbers = np.array([value for _, value in known])
    if logarithmic:
        numbers = np.log10(np.maximum(numbers, LEAST_SHARE))
    away = numbers - np.median(numbers)
    scale = np.median(np.abs(away)) / 0.6745
    if scale == 0:
        scale = np.mean(np.abs(away)) / 0.7979
    for (index, _), distance in zip(known, away, strict=True):
        found[index] = round(float(distance / scale), 3) if scale > 0 else 0.0
    return found


def stands_out(row: Mapping[str, Any]) -> list[Quantity]:
    """In which quantities a scan stands out."""
    scores = {quantity: row.get(f"robust_z_{quantity.name}") for quantity in QUANTITIES}
    return [quantity for quantity, z in scores.items() if z is not None and abs(z) > FENCE]


def table_writers(group: Group) -> dict[str, Writer]:
    """What writes the tables: as CSV, and as Parquet where pyarrow is installed."""
    writers: dict[str, Writer] = {}
    for name, rows in (("scans", group.scans), ("findings", group.findings)):
        writers[f"{name}.csv"] = lambda path, rows=rows: write_text(path, csv_text(rows, digits=6))
        if has_parquet():
            writers[f"{name}.parquet"] = lambda path, rows=rows: _write_parquet(rows, path)
    return writers


def has_parquet() -> bool:
    """Whether tables can be written as Parquet too."""
    import importlib.util

    return importlib.util.find_spec("pyarrow") is not None


def _findings(result: Finished) -> list[dict[str, Any]]:
    return json.loads((result.folder / FINDINGS).read_text(encoding="utf-8"))["findings"]


def _scan_row(result: Finished, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table of scans; ``found`` are its findings."""
    made, about = result.record, result.about
    is_picture = made["options"].get("min_area") is not None
    sizes = [size_of(finding) for finding in found]
    volume = made["brain"].get("volume_ml")
    is_brain = made.get("region", BRAIN) == BRAIN
    healthy = made["score"].get("healthy_range") or {}
    folder = f"{RESULTS}/{result.folder.name}"
    return {
        "name": result.folder.name,
        "patient": str(about.get("patient") or ""),
        "session": str(about.get("session") or ""),
        "findings": len(found),
        "size": math.fsum(sizes),
        "unit": size_unit(made["input"]["spacing_mm"], is_picture),
        "largest": max(sizes, default=0.0),
        "peak_score": max((float(finding["peak_heat_neg_log10_p"]) for finding in found), default=None),
        "threshold": float(made["threshold"]["heat"]),
        "peak_margin": margin_of(made["options"]),
        "share_above_threshold": None if not volume or is_picture else math.fsum(sizes) / volume,
        "brain_volume_ml": volume if is_brain else None,
        "region_volume_ml": None if is_brain else volume,
        "score": float(made["score"]["value"]),
        "score_healthy_upper": healthy.get("upper"),
        "warnings": len(made.get("warnings", [])),
        "doubts": " | ".join(map(str, made.get("warnings", []))),
        "method": made["method"],
        "model": made["model"]["name"],
        "model_version": made["model"]["version"],
        "program_version": made["versions"]["diffusion_anomaly"],
        "device": made["device"]["used"],
        "seconds": float(made["timings_seconds"].get("total", 0.0)),
        "date_utc": made["date_utc"],
        "input_sha256": made["input"]["sha256"],
        "report": f"{folder}/{REPORT}" if REPORT in made[DIGESTS] else "",
    }


def size_of(finding: Mapping[str, Any]) -> float:
    """How large a finding of a table is, in its scan's unit."""
    sizes = (finding.get("volume_ml"), finding.get("area_mm2"), finding.get("area_pixels"))
    return next((float(size) for size in sizes if size is not None), 0.0)


def _doubts(scans: Sequence[Mapping[str, Any]], left_out: int) -> list[str]:
    doubts = []
    if left_out:
        doubts.append(left_out_in_words(left_out))
    kinds = {"model": "models", "model_version": "versions of the model", "program_version": "versions of the program"}
    for name, words in kinds.items():
        seen = sorted({str(row[name]) for row in scans})
        if len(seen) > 1:
            doubts.append(f"The results were made with {len(seen)} {words}: {', '.join(seen)}.")
    alike: dict[str, list[str]] = {}
    for row in scans:
        alike.setdefault(row["input_sha256"], []).append(row["name"])
    for names in (names for names in alike.values() if len(names) > 1):
        doubts.append(f"One and the same image goes by {len(names)} names: {listed(names, _NAMES_SHOWN)}.")
    if scans and len(scans) < FEWEST:
        doubts.append(f"Fewer than {FEWEST} scans are too few to say which stand out.")
    return doubts


def left_out_in_words(count: int) -> str:
    """What is said of results that the tables leave out."""
    return (
        f"{counted(count, 'result')} in the folder {'is' if count == 1 else 'are'} left out of the tables: of scans "
        "that are not in the cohort any more, or that failed since."
    )


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import pyarrow  # type: ignore[import-not-found]
    import pyarrow.parquet  # type: ignore[import-not-found]

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    pyarrow.parquet.write_table(table, path)
