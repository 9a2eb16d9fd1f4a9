"""A detection's files: anomaly map, mask, brain, findings, report and provenance, which appear together or not at
all.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..io.files import file_stem, publish
from ..io.volume import write_like
from .findings import write_findings_csv, write_findings_json

if TYPE_CHECKING:
    from ..io.volume import Volume
    from .result import Result

PROVENANCE = "provenance.json"
REPORT = "report.html"


def image_suffix(volume: Volume) -> str:
    """The format of the anomaly map and mask: the scan's own where it keeps its grid bit for bit, else compressed
    NIfTI.
    """
    name = volume.source.lower()
    for ends, suffix in (((".nrrd", ".nhdr"), ".nrrd"), ((".mha", ".mhd"), ".mha")):
        if name.endswith(ends):
            return suffix
    return ".nii.gz"


def save(result: Result, directory: Path | str) -> dict[str, Path]:
    """Write all files of a detection.

    Anomaly scores, mask and brain are NIfTI, or NRRD or MetaImage for a scan of that format. Provenance is put in place
    last and
    holds the SHA256 of every other file: where it exists and agrees, the set is complete.

    Args:
        result: from a ``Detector``.
        directory: where to; made if it does not exist. Files of an earlier run are replaced.

    Returns:
        The paths of ``anomaly_map``, ``mask``, ``brain``, ``findings_csv``, ``findings_json``, ``report`` and
        ``provenance``, and of the pseudo-healthy reconstruction where that was kept: ``reconstruction``, or
        ``healed_<channel>`` of several.

    Raises:
        InputError: when something cannot be written. The folder is then as it was.
    """
    from .report import write_report

    volume = result.scan.reference
    suffix = image_suffix(volume)
    made = result.reconstruction or {}
    reconstruction = {
        "healed" if len(made) == 1 else f"healed_{file_stem(name)}": image for name, image in made.items()
    }
    names = {
        "heat": f"heat{suffix}",
        **{kind: f"{kind}{suffix}" for kind in reconstruction},
        "mask": f"mask{suffix}",
        "brain": f"brain{suffix}",
        "findings_csv": "findings.csv",
        "findings_json": "findings.json",
        "report": REPORT,
        "provenance": PROVENANCE,
    }

    def write_provenance(path: Path) -> None:
        others = [name for name in names.values() if name != PROVENANCE]
        files = {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in others}
        text = json.dumps({**result.provenance, "files_sha256": files}, indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    published = publish(
        directory,
        {
            names["heat"]: lambda path: write_like(result.anomaly_map, volume, path, dtype=np.float32),
            **{
                names[kind]: lambda path, image=image: write_like(image, volume, path, dtype=np.float32)
                for kind, image in reconstruction.items()
            },
            names["mask"]: lambda path: write_like(result.mask, volume, path, dtype=np.uint8),
            names["brain"]: lambda path: write_like(result.brain, volume, path, dtype=np.uint8),
            names["findings_csv"]: lambda path: write_findings_csv(result.findings, path),
            names["findings_json"]: lambda path: write_findings_json(result.findings, path),
            names["report"]: lambda path: write_report(result, path),
            names["provenance"]: write_provenance,
        },
    )
    return {kind: published[name] for kind, name in names.items()}
