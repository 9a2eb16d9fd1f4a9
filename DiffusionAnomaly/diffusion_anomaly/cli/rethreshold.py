"""A new mask and findings from an existing anomaly map. It holds all that is needed, so no network runs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .. import __version__
from ..errors import InputError
from ..io.masks import is_binary
from ..io.outputs import OutputFolder, is_recorded, record
from ..io.volume import read_anomaly_map, read_mask, write_like
from ..results.findings import segment, size_unit, write_findings_csv, write_findings_json
from ..results.saving import PROVENANCE, image_suffix
from .console import err, out, plain, show_findings

RECORD = "threshold.json"


def _recorded_area(anomaly_map: Path) -> float | None:
    """The smallest area of a finding that the detection beside a picture's map took; None for another map."""
    try:
        options = json.loads((anomaly_map.parent / PROVENANCE).read_text(encoding="utf-8"))["options"]
        return None if options["min_area"] is None else float(options["min_area"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def rethreshold(
    anomaly_map: Path,
    at: float,
    output: Path,
    *,
    min_volume_ml: float = 0.05,
    min_area: float | None = None,
    brain: Path | None = None,
) -> dict[str, Path]:
    """Write mask, findings and a record of how they were made, and show the findings.

    Args:
        anomaly_map: anomaly map that a detection wrote.
        at: the anomaly score from which a voxel is in the mask.
        output: folder; not one that holds a detection, whose provenance would then speak of another mask.
        min_volume_ml: smaller findings are dropped.
        min_area: the same of a picture; None takes what the detection took, and of a volume none.
        brain: mask file on the anomaly map's grid; None takes all scores.

    Raises:
        InputError: when something cannot be read or written, is a mask instead of an anomaly map, or a number is out of
            range.
    """
    if not at > 0:
        raise InputError(f"The threshold is {at}.", "It must be an anomaly score above 0.")
    if (output / PROVENANCE).exists():
        raise InputError(
            f"{output} holds the results of a detection, and its provenance tells of their threshold.",
            "Choose another output folder.",
        )
    names = (f"mask{image_suffix(str(anomaly_map))}", "findings.csv", "findings.json", RECORD)
    inputs = [path for path in (anomaly_map, brain) if path is not None]
    with OutputFolder(output, inputs) as folder:
        folder.check(names)
        volume = read_anomaly_map(anomaly_map)
        if not is_recorded(anomaly_map):
            if is_binary(sitk.GetArrayViewFromImage(volume.image)):
                raise InputError(f"{anomaly_map} is a mask: it has no values but 0 and 1.", "Give an anomaly map.")
            message = f"warning: {anomaly_map} has no record of this program beside it; is it an anomaly map?"
            err.print(plain(message, "yellow"))
        inside = None if brain is None else read_mask(brain, volume)
        if min_area is None:
            min_area = _recorded_area(anomaly_map)
        mask, _, findings = segment(volume.image, at, min_volume_ml, inside, min_area)
        about = {
            "heat": str(anomaly_map.absolute()),
            "heat_sha256": volume.sha256,
            "threshold": at,
            "min_volume_ml": min_volume_ml,
            "min_area": min_area,
            "brain": None if brain is None else str(brain.absolute()),
            "diffusion_anomaly": __version__,
            "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        writers = (
            lambda path: write_like(mask, volume, path, dtype=np.uint8),
            lambda path: write_findings_csv(findings, path, min_area is not None),
            lambda path: write_findings_json(findings, path),
            record(about),
        )
        files = folder.publish(dict(zip(names, writers, strict=True)))
    show_findings(findings, at, size_unit(volume.image, min_area is not None))
    for path in files.values():
        out.print(plain(path))
    return files
