"""Results out of the scene into files that other programs read."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import whole_file, write_text
from diffusion_anomaly.io.tables import csv_text
from diffusion_anomaly.results.findings import SCHEMA_VERSION, SCORE_UNIT, findings_table

from ..translation import tr as _
from . import attributes, findingsTable, review, segmentation, sequences
from .results import ResultNodes, findingsOf, liveThresholdOf
from .volumes import ijkToRas, onGrid

IMAGE_SUFFIXES = (".nrrd", ".nii.gz", ".nii")
TABLE_SUFFIXES = (".csv", ".json")

SCENE_COLUMNS = tuple(f"scene_centroid_{axis}_mm" for axis in "ras")
COLUMNS_WITHOUT_FINDINGS = ("id", "name", "review", "comment")

INSTANCES = "DICOM.instanceUIDs"  # Slicer's own attribute of what was loaded from its DICOM database


def saveSegmentation(nodes: ResultNodes, path: Path | str) -> None:
    """Write the mask at the threshold in force as a label image on the scan's grid, NRRD or NIfTI.

    What was edited by hand in the Segment Editor is written as it was edited.

    Raises:
        InputError: when the name ends otherwise, or the file cannot be written.
    """
    if nodes.segmentation is not None and (segment := _firstSegment(nodes.segmentation)):
        mask = segmentation.maskOf(nodes.segmentation, nodes.anomalyMap, segment)
    elif nodes.labelMap is not None:
        mask = slicer.util.arrayFromVolume(nodes.labelMap)
    else:
        live = liveThresholdOf(nodes)
        mask = np.zeros(live.shape, dtype=np.uint8)
        mask[live.box] = findingsOf(nodes, live).mask
    _writeImage(onGrid((mask != 0).astype(np.uint8), ijkToRas(nodes.anomalyMap)), Path(path))


def saveAnomalyMap(nodes: ResultNodes, path: Path | str) -> None:
    """Write the anomaly map on the scan's grid, NRRD or NIfTI.

    Raises:
        InputError: when the name ends otherwise, or the file cannot be written.
    """
    _writeImage(onGrid(slicer.util.arrayFromVolume(nodes.anomalyMap), ijkToRas(nodes.anomalyMap)), Path(path))


def saveFindings(nodes: ResultNodes, path: Path | str) -> None:
    """Write the findings with what was said of them, as CSV or, where the name ends so, as JSON.

    The columns are the engine's, in the scan's own coordinates, and beside them names, reviews, comments, and where a
    finding lies in the scene, with the transforms that the scan is under.

    Raises:
        InputError: when the name ends otherwise, or the file cannot be written.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise InputError(
            _("{file} is neither CSV nor JSON.").format(file=path.name),
            _("Let the name end with {suffixes}.").format(suffixes=", ".join(TABLE_SUFFIXES)),
        )
    rows = _rows(nodes)
    if suffix == ".csv":
        columns = list(dict.fromkeys([*COLUMNS_WITHOUT_FINDINGS, *(name for row in rows for name in row)]))
        safe = [{name: _asText(value) for name, value in row.items()} for row in rows]
        write_text(path, csv_text(safe, columns if not rows else None, digits=6))
        return
    made = attributes.document(nodes.anomalyMap)
    document = {
        "schema_version": SCHEMA_VERSION,
        "purpose": made.get("purpose"),
        "scan": nodes.inputNode.GetName() if made["input"].get("path", True) else made["input"].get("title"),
        "frame": sequences.analysed(nodes.anomalyMap) or None,
        "heat": SCORE_UNIT,
        "threshold": nodes.threshold,
        "min_volume_ml": nodes.minVolumeMl,
        "peak_margin": attributes.peakMargin(nodes.anomalyMap),
        "warnings": [
            *attributes.warnings(nodes.anomalyMap),
            *filter(None, [attributes.problemWithPeakMargin(nodes.anomalyMap)]),
            *findingsTable.problemsWith(nodes.table),
        ],
        "findings": rows,
        "provenance": made,
    }
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def problemWithDicom(nodes: ResultNodes, fileOf: Callable[[str], str] | None) -> str:
    """Why no DICOM objects can be made of a result; empty when they can.

    Args:
        nodes: the result.
        fileOf: the file of an instance by its UID, of Slicer's DICOM database; None without one.
    """
    if fileOf is None:
        return _("This Slicer has no DICOM database.")
    uids = (nodes.inputNode.GetAttribute(INSTANCES) or "").split()
    if not uids:
        return _("The scan was not loaded from DICOM, so there is no patient and no study that DICOM could belong to.")
    if any(not (path := fileOf(uid)) or not Path(path).is_file() for uid in uids):
        return _("Files of the scan's DICOM series are gone from the DICOM database. Import them again.")
    if importlib.util.find_spec("highdicom") is None:
        return _("The Python package highdicom is not installed; type pip_install('highdicom') in the Python console.")
    if nodes.brain is None:
        return _("The brain mask is not in the scene. Run it again with Keep the brain mask.")
    return ""


def dicomFiles(nodes: ResultNodes, fileOf: Callable[[str], str]) -> list[Path]:
    """The files that the scan was loaded from."""
    return [Path(fileOf(uid)) for uid in (nodes.inputNode.GetAttribute(INSTANCES) or "").split()]


def _rows(nodes: ResultNodes) -> list[dict[str, Any]]:
    live = liveThresholdOf(nodes)
    found = findingsOf(nodes, live)
    names = {} if nodes.table is None else findingsTable.namesOf(nodes.table, live, found)
    said = {} if nodes.table is None else review.reviewsOf(nodes.table, live, found)
    rows = []
    for finding, row in zip(found.findings, findings_table(found.findings), strict=True):
        one = said.get(finding.id, review.Review())
        world = findingsTable.centre(finding, nodes.anomalyMap)
        place = {} if finding.centroid_pixel else dict(zip(SCENE_COLUMNS, world, strict=True))
        name = {"name": names.get(finding.id, ""), "review": one.state, "comment": one.comment}
        rows.append({"id": finding.id, **name, **row, **place})
    return rows


def _asText(value: Any) -> Any:
    """A spreadsheet would compute what begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def withSuffix(path: Path, suffix: str) -> Path:
    """The path as it is, or with this suffix if it was typed without any."""
    return path if path.suffix else path.with_name(path.name + suffix)


def _firstSegment(segmentation: Any) -> str:
    inside = segmentation.GetSegmentation()
    return inside.GetNthSegmentID(0) if inside.GetNumberOfSegments() else ""


def _writeImage(image: sitk.Image, path: Path) -> None:
    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        raise InputError(
            _("{file} is neither NRRD nor NIfTI.").format(file=path.name),
            _("Let the name end with {suffixes}.").format(suffixes=", ".join(IMAGE_SUFFIXES)),
        )
    with whole_file(path) as partial:
        try:
            sitk.WriteImage(image, os.fspath(partial), useCompression=True)
        except RuntimeError as error:
            raise InputError(
                _("{path} cannot be written: {reason}").format(path=path, reason=error), _("Choose another folder.")
            ) from error
