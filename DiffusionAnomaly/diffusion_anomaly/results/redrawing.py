"""A report drawn again: at the threshold that the user has moved to, with the names that the user gave.

Slicer has anomaly map and scan but neither matplotlib nor Jinja, so it writes a folder and asks a process of its
own, see
``probe``. The map is not computed again, and mask and findings come from the same function as in a detection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import InputError
from ..io.files import keep_foreign, write_text
from ..io.typed_json import checked
from .findings import segment
from .saving import PROVENANCE

REQUEST = "report.json"
SCAN, ANOMALY_MAP, BRAIN = "scan.nrrd", "heat.nrrd", "brain.nrrd"
PAGE = "report.html"


@dataclass(frozen=True)
class Request:
    """What the page is to show; the images lie beside it as ``SCAN``, ``HEAT`` and ``BRAIN``.

    Attributes:
        title: what the user calls the scan.
        threshold: the anomaly score from which a voxel is in the mask.
        min_volume_ml: smaller findings are dropped.
        provenance: of the detection, as it was saved.
        names: of findings, by their ids as text.
    """

    title: str
    threshold: float
    min_volume_ml: float
    provenance: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)


def write_request(request: Request, folder: Path) -> None:
    """Write what ``redraw`` reads."""
    write_text(folder / REQUEST, json.dumps(asdict(request), allow_nan=False))


def redraw(folder: Path) -> Path:
    """Draw the page.

    Args:
        folder: holds the request and the images; gets the page.

    Returns:
        The page's path.

    Raises:
        InputError: when something in the folder is missing or damaged, or the page cannot be written or would replace
            what is none.
    """
    from .report import Shown, render

    keep_foreign(folder / PAGE, lambda page: b'content="DiffusionAnomaly' in page.read_bytes()[:1000])
    if (folder / PROVENANCE).exists():
        raise InputError(
            f"{folder} holds the results of a detection, and its report tells of their threshold.",
            "Choose another folder.",
        )
    request = _read(folder / REQUEST)
    scan, anomaly_map, brain = (_image(folder / name) for name in (SCAN, ANOMALY_MAP, BRAIN))
    made = request.provenance
    min_area = made["options"].get("min_area")
    mask, _, findings = segment(anomaly_map, request.threshold, request.min_volume_ml, brain, min_area)
    threshold = made["threshold"]
    if request.threshold != threshold["heat"]:
        threshold = {"heat": request.threshold, "source": "chosen by the user after the run"}
    provenance = {
        **made,
        "threshold": threshold,
        "options": {**made["options"], "min_volume_ml": request.min_volume_ml},
    }
    names = {int(number): name for number, name in request.names.items()}
    page = render(Shown(request.title, scan, anomaly_map, mask, brain, findings, request.threshold, provenance, names))
    write_text(folder / PAGE, page)
    return folder / PAGE


def _read(path: Path) -> Request:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Save the report again.") from error
    return checked(Request, content, str(path))


def _image(path: Path) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {error}", "Save the report again.") from error
