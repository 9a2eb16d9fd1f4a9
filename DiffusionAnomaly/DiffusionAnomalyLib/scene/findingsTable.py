"""The findings as a table node: one row each, in the coordinates of the views, with names that the user gives.

Where a finding lies is told as the views tell it, with the transforms that the scan is under.

A name belongs to a place, the voxel with the highest score of the finding that was named, so that it stays with the
finding when another threshold gives every finding another number. What a reader says of a finding beside its name is
kept by ``review``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import slicer
import vtk

from diffusion_anomaly.results.findings import Finding

from ..translation import tr as _
from . import review
from .attributes import PREFIX
from .livethreshold import LiveThreshold, Thresholded

NAMES = f"{PREFIX}Names"  # JSON: [[i, j, k], name] for each name given

LONGEST_NAME = 60

# Column, its type, and the unit that the node records.
NAME, VOLUME, PEAK, MEAN = "Name", "Volume", "Peak score", "Mean score"
RIGHT, ANTERIOR, SUPERIOR = "R", "A", "S"
FIRST, LAST = "First slice", "Last slice"
REVIEW, COMMENT = "Review", "Comment"
PLACE = "Place, roughly"
COLUMNS: tuple[tuple[str, type, str], ...] = (
    (NAME, vtk.vtkStringArray, ""),
    (VOLUME, vtk.vtkDoubleArray, "ml"),
    (PEAK, vtk.vtkDoubleArray, ""),
    (MEAN, vtk.vtkDoubleArray, ""),
    (RIGHT, vtk.vtkDoubleArray, "mm"),
    (ANTERIOR, vtk.vtkDoubleArray, "mm"),
    (SUPERIOR, vtk.vtkDoubleArray, "mm"),
    (FIRST, vtk.vtkIntArray, ""),
    (LAST, vtk.vtkIntArray, ""),
    (REVIEW, vtk.vtkStringArray, ""),
    (COMMENT, vtk.vtkStringArray, ""),
    (PLACE, vtk.vtkStringArray, ""),
)


def makeTable(scene: Any, name: str) -> Any:
    """An empty table of findings, in the scene."""
    node = slicer.vtkMRMLTableNode()
    node.SetName(name)
    return scene.AddNode(node)


def fillTable(node: Any, anomalyMap: Any, live: LiveThreshold, found: Thresholded) -> None:
    """Write the findings into the table, in place of those that were there."""
    names = namesOf(node, live, found)
    reviews = review.reviewsOf(node, live, found)
    rows = [
        [
            names.get(finding.id) or str(finding.id),
            finding.size,
            finding.peak_score,
            finding.mean_score,
            *centre(finding, anomalyMap),
            *finding.slices,
            (said := reviews.get(finding.id, review.Review())).state,
            said.comment,
            finding.place,
        ]
        for finding in found.findings
    ]
    write(node, [(title, kind, live.unit if title == VOLUME else unit) for title, kind, unit in COLUMNS], rows)


def write(node: Any, columns: Sequence[tuple[str, type, str]], rows: Sequence[Sequence[Any]]) -> None:
    """Give a table node its content.

    Args:
        columns: title, array class and unit of each; no unit for text and pure numbers.
        rows: a value a column.
    """
    table = vtk.vtkTable()
    for index, (title, kind, _unit) in enumerate(columns):
        column = kind()
        column.SetName(title)
        column.SetNumberOfValues(len(rows))
        for place, row in enumerate(rows):
            column.SetValue(place, row[index])
        table.AddColumn(column)
    node.SetAndObserveTable(table)
    for title, _kind, unit in columns:
        if unit:
            node.SetColumnUnitLabel(title, unit)


def isInPlace(node: Any, anomalyMap: Any, found: Thresholded) -> bool:
    """Whether the table says where the findings are by now: a transform above them may have moved since.

    One that an earlier version has saved is not, because it lacks the later columns.
    """
    if any(node.GetTable().GetColumnByName(title) is None for title, _kind, _unit in COLUMNS):
        return False
    columns = [node.GetTable().GetColumnByName(axis) for axis in (RIGHT, ANTERIOR, SUPERIOR)]
    if None in columns or node.GetNumberOfRows() != len(found.findings):
        return False
    told = [[column.GetValue(row) for column in columns] for row in range(node.GetNumberOfRows())]
    return np.allclose(told, [centre(finding, anomalyMap) for finding in found.findings], atol=1e-3)


def setName(node: Any, anomalyMap: Any, live: LiveThreshold, found: Thresholded, row: int, name: str) -> None:
    """Name the finding of a row; an empty name takes the name away."""
    finding = found.findings[row]
    given, unread = _read(node)
    kept = [entry for entry in given if _idAt(entry[0], live, found) != finding.id]
    if cleaned := clean(name):
        kept.append([peakVoxel(finding, live, found), cleaned])
    node.SetAttribute(NAMES, json.dumps([*kept, *unread]))
    fillTable(node, anomalyMap, live, found)


def clean(name: str) -> str:
    """A name as a table file can hold it: on one line, without the quote that would end its field, not too long."""
    return " ".join(name.replace('"', "''").split())[:LONGEST_NAME]


def namesOf(node: Any, live: LiveThreshold, found: Thresholded) -> dict[int, str]:
    """The name of each finding that has one, by its id; of two that have grown together, both."""
    names: dict[int, str] = {}
    for place, name in _given(node):
        if finding := _idAt(place, live, found):
            names[finding] = f"{names[finding]}, {name}" if finding in names else name
    return names


def hasNames(node: Any) -> bool:
    """Whether any finding was ever given a name that still stands."""
    return bool(_given(node))


def centre(finding: Finding, anomalyMap: Any) -> tuple[float, float, float]:
    """Where a finding lies in the world, with the scan's parent transform applied."""
    world = [0.0, 0.0, 0.0]
    anomalyMap.TransformPointToWorld(list(finding.centroid_ras), world)
    return world[0], world[1], world[2]


def rowAt(place: Sequence[int], live: LiveThreshold, found: Thresholded) -> int:
    """The row of the finding that has a voxel i j k; -1 for none."""
    return _idAt(place, live, found) - 1


def peakVoxel(finding: Finding, live: LiveThreshold, found: Thresholded) -> list[int]:
    """The voxel i j k of the whole volume of the finding's highest score."""
    place = np.argmax(np.where(found.labels == finding.id, live.scores, -1.0))
    inBox = np.unravel_index(place, found.labels.shape)
    return [int(index) + part.start for index, part in zip(inBox, live.box, strict=True)][::-1]


def inWords(finding: Finding, anomalyMap: Any) -> str:
    """Where a finding lies: roughly in words, and in whole millimetres of Slicer's views, each with its side.

    A picture does not say where the patient's sides are: column and row, as Slicer's Data Probe counts them.
    """
    if finding.centroid_pixel is not None:
        column, row = finding.centroid_pixel
        return _("column {column:.0f}, row {row:.0f}").format(column=column, row=row)
    sides = zip(centre(finding, anomalyMap), "RAS", "LPI", strict=True)
    where = ", ".join(f"{abs(value):.0f} {positive if value >= 0 else negative}" for value, positive, negative in sides)
    return f"{finding.place} ({where})" if finding.place else where


def sizeInWords(size: float, unit: str, digits: int = 2) -> str:
    """A finding's size; pixels are counted."""
    return f"{size:.0f} {unit}" if unit == "pixels" else f"{size:.{digits}f} {unit}"


def summary(findings: Sequence[Finding], unit: str = "ml", rejected: Collection[int] = ()) -> str:
    """The findings in a line.

    Args:
        findings: all.
        unit: of their sizes.
        rejected: ids of those that count no more.
    """
    left = [finding for finding in findings if finding.id not in rejected]
    values = {
        "count": len(left),
        "size": sizeInWords(sum(finding.size for finding in left), unit, 1),
        "peak": max((finding.peak_score for finding in left), default=0.0),
    }
    if not left:
        line = _("No finding at this threshold.") if not rejected else _("No finding is left.")
    elif len(left) == 1:
        line = _("1 finding of {size}, highest score {peak:.1f}.").format(**values)
    else:
        line = _("{count} findings, {size} in all, highest score {peak:.1f}.").format(**values)
    return line if not rejected else _("{line} {count} rejected.").format(line=line, count=len(rejected))


def problemsWith(node: Any) -> list[str]:
    """What to say of reviews and names that cannot be read any more; empty when all can, and without a table."""
    return [] if node is None else list(filter(None, [review.problemWith(node), problemWithNames(node)]))


def problemWithNames(node: Any) -> str:
    """What to say when names that a scene was saved with cannot be read any more; they stay where they are."""
    count = len(_read(node)[1])
    if not count:
        return ""
    if count == 1:
        said = _("1 saved name of {name} is damaged and is not used. It stays in the table's attribute {attribute}.")
    else:
        said = _(
            "{count} saved names of {name} are damaged and are not used. They stay in the table's attribute "
            "{attribute}."
        )
    return said.format(count=count, name=node.GetName(), attribute=NAMES)


def _given(node: Any) -> list[Any]:
    return _read(node)[0]


def _read(node: Any) -> tuple[list[Any], list[Any]]:
    """The places with their names, and the entries that are damaged."""
    text = node.GetAttribute(NAMES) or "[]"
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = [text]
    entries = entries if isinstance(entries, list) else [entries]
    whole = [isinstance(entry, list) and _isName(*entry[:2]) and len(entry) == 2 for entry in entries]
    given = [entry for entry, good in zip(entries, whole, strict=True) if good]
    return given, [entry for entry, good in zip(entries, whole, strict=True) if not good]


def _isName(place: Any = None, name: Any = None) -> bool:
    isPlace = isinstance(place, list) and len(place) == 3 and all(isinstance(index, int) for index in place)
    return isPlace and isinstance(name, str)


def _idAt(place: Sequence[int], live: LiveThreshold, found: Thresholded) -> int:
    inBox = tuple(index - part.start for index, part in zip(reversed(place), live.box, strict=True))
    inside = all(0 <= index < length for index, length in zip(inBox, found.labels.shape, strict=True))
    return int(found.labels[inBox]) if inside else 0
