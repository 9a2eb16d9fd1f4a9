"""A new mask and findings from an existing anomaly map. It holds all that is needed, so no network runs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from rich.text import Text

from .. import __version__
from ..errors import InputError
from ..io.files import publish
from ..io.volume import read_anomaly_map, read_mask, write_like
from ..results.findings import segment, write_findings_csv, write_findings_json
from ..results.saving import PROVENANCE, image_suffix
from .console import out, show_findings

RECORD = "threshold.json"


def rethreshold(
    anomaly_map: Path, at: float, output: Path, *, min_volume_ml: float = 0.05, brain: Path | None = None
) -> dict[str, Path]:
    """Write mask, findings and a record of how they were made, and show the findings.

    Args:
        anomaly_map: anomaly map that a detection wrote.
        at: the anomaly score from which a voxel is in the mask.
        output: folder; not one that holds a detection, whose provenance would then speak of another mask.
        min_volume_ml: smaller findings are dropped.
        brain: mask file on the anomaly map's grid; None takes all scores.

    Raises:
        InputError: when something cannot be read or written, or a number is out of range.
    """
    if not at > 0:
        raise InputError(f"The threshold is {at}.", "It must be an anomaly score above 0.")
    if (output / PROVENANCE).exists():
        raise InputError(
            f"{output} holds the results of a detection, and its provenance tells of their threshold.",
            "Choose another output folder.",
        )
    volume = read_anomaly_map(anomaly_map)
    mask, _, findings = segment(volume.image, at, min_volume_ml, None if brain is None else read_mask(brain, volume))
    record = {
        "heat": str(anomaly_map.absolute()),
        "heat_sha256": volume.sha256,
        "threshold": at,
        "min_volume_ml": min_volume_ml,
        "brain": None if brain is None else str(brain.absolute()),
        "diffusion_anomaly": __version__,
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    files = publish(
        output,
        {
            f"mask{image_suffix(volume)}": lambda path: write_like(mask, volume, path, dtype=np.uint8),
            "findings.csv": lambda path: write_findings_csv(findings, path),
            "findings.json": lambda path: write_findings_json(findings, path),
            RECORD: lambda path: path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8"),
        },
    )
    show_findings(findings, at)
    for path in files.values():
        out.print(Text(str(path)))
    return files
