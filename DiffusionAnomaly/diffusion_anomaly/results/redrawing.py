"""A report drawn again: at the threshold that the user has moved to, with the names that the user gave.

Slicer has anomaly map and scan but neither matplotlib nor Jinja, so it writes a folder and asks a process of its own,
see ``worker.probe``. The map is not computed again; mask and findings come from the same function as in a detection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..io.files import keep_foreign, write_text
from ..io.typed_json import MAX_BYTES, checked, kind_of, parse
from ..models.declaration import BRAIN as BRAIN_REGION
from ..options import check_threshold, margin_of
from .findings import segment
from .places import with_places
from .saving import PROVENANCE

if TYPE_CHECKING:
    import SimpleITK as sitk

REQUEST = "report.json"
SCAN, ANOMALY_MAP, BRAIN, REJECTED = "scan.nrrd", "heat.nrrd", "brain.nrrd", "rejected.nrrd"
REVIEWS = ("accepted", "rejected", "undecided")
PAGE, PRINTED = "report.html", "report.pdf"


@dataclass(frozen=True)
class Request:
    """What the page is to show; the images lie beside it as ``SCAN``, ``ANOMALY_MAP`` and ``BRAIN``.

    Voxels that a reader has rejected lie there as ``REJECTED``, if there are any: they are left out of the mask.

    Attributes:
        title: what the user calls the scan.
        threshold: the anomaly score from which a voxel is in the mask.
        min_volume_ml: smaller findings are dropped.
        provenance: of the detection, as it was saved.
        names: that the user gave to findings, by their ids as text.
        reviews: ``accepted`` or ``rejected``, by the findings' ids as text; others are undecided.
        comments: of the user on findings, likewise.
        printed: whether it is to be a PDF instead of a page.
        identity: for a comparison: keyed digests of what tells patients apart, by DICOM keyword; may be empty.
    """

    title: str
    threshold: float
    min_volume_ml: float
    provenance: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    reviews: Mapping[str, str] = field(default_factory=dict)
    comments: Mapping[str, str] = field(default_factory=dict)
    printed: bool = False
    identity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Score:
    value: float
    title: str
    healthy_range: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Provenance:
    """What a page cannot do without; whatever else there is of provenance is printed as it is."""

    purpose: str
    date_utc: str
    method: str
    model: Mapping[str, Any] | None
    options: Mapping[str, Any]
    threshold: Mapping[str, Any]
    brain: Mapping[str, Any]
    score: Mapping[str, Any]
    versions: Mapping[str, Any]
    warnings: list


@dataclass(frozen=True)
class _Threshold:
    heat: float


@dataclass(frozen=True)
class _Brain:
    volume_ml: float


@dataclass(frozen=True)
class _Versions:
    diffusion_anomaly: str


@dataclass(frozen=True)
class _Model:
    name: str
    version: str


@dataclass(frozen=True)
class _Range:
    mean: float
    upper: float


def write_request(request: Request, folder: Path) -> None:
    """Write what ``redraw`` reads."""
    write_text(folder / REQUEST, json.dumps(asdict(request), allow_nan=False))


def redraw(folder: Path) -> Path:
    """Draw the page, or the PDF.

    Args:
        folder: holds the request and the images; gets the page.

    Returns:
        The page's path.

    Raises:
        InputError: when something in the folder is missing or damaged, or the page cannot be written or would replace
            what is none.
    """
    from .printing import print_report
    from .report import Shown, render

    keep_foreign(folder / PAGE, lambda page: b'content="DiffusionAnomaly' in page.read_bytes()[:1000])
    if (folder / PROVENANCE).exists():
        raise InputError(
            f"{folder} holds the results of a detection, and its report tells of their threshold.",
            "Choose another folder.",
        )
    request, scan, anomaly_map, brain = read_request(folder)
    made = request.provenance
    min_area = made["options"].get("min_area")
    mask, labels, findings = segment(
        anomaly_map, request.threshold, request.min_volume_ml, brain, min_area, margin_of(made["options"])
    )
    findings = with_places(findings, brain, made.get("region", BRAIN_REGION))
    if (folder / REJECTED).exists():
        mask = without(mask, folder / REJECTED, scan)
    threshold = made["threshold"]
    if request.threshold != threshold["heat"]:
        threshold = {"heat": request.threshold, "source": "chosen by the user after the run"}
    provenance = {
        **made,
        "threshold": threshold,
        "options": {**made["options"], "min_volume_ml": request.min_volume_ml},
    }
    said = (
        {int(number): text for number, text in texts.items()}
        for texts in (request.names, request.reviews, request.comments)
    )
    names, reviews, comments = said
    shown = Shown(
        request.title,
        scan,
        anomaly_map,
        mask,
        brain,
        findings,
        request.threshold,
        provenance,
        names,
        reviews=reviews,
        comments=comments,
        labels=labels,
    )
    if request.printed:
        print_report(shown, folder / PRINTED)
        return folder / PRINTED
    write_text(folder / PAGE, render(shown))
    return folder / PAGE


def without(mask: sitk.Image, rejected: Path, scan: sitk.Image) -> sitk.Image:
    """A mask without the voxels of another mask file on the scan's grid.

    Raises:
        InputError: when the file cannot be read or lies on another grid.
    """
    import SimpleITK as sitk

    from ..io.orientation import same_grid

    try:
        out = sitk.ReadImage(str(rejected))
    except RuntimeError as error:
        raise InputError(f"{rejected} cannot be read: {error}.", "Save the report again.") from error
    if not same_grid(out, scan):
        raise InputError(f"{rejected} lies on another grid than the scan.", "Save the report again.")
    return sitk.And(mask, sitk.Cast(out == 0, mask.GetPixelID()))


def read_request(folder: Path) -> tuple[Request, sitk.Image, sitk.Image, sitk.Image]:
    """What a folder asks for, and its scan, anomaly map and brain mask.

    Raises:
        InputError: when something in it is missing or damaged.
    """
    from ..io.volume import read_anomaly_map, read_mask, read_volume

    request = _read(folder / REQUEST)
    volume = read_volume(folder / SCAN)
    return request, volume.image, read_anomaly_map(folder / ANOMALY_MAP).image, read_mask(folder / BRAIN, volume)


def _read(path: Path) -> Request:
    """The request, with everything in it that a page is made of.

    Raises:
        InputError: naming what is missing or of another kind.
    """
    try:
        with path.open("rb") as file:
            content = parse(file.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Save the report again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {kind_of(content)}, expected a JSON object.", "Save the report again.")
    request = checked(Request, content, str(path))
    check_threshold(request.threshold)
    for number in (*request.names, *request.reviews, *request.comments):
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise InputError(f"{path} names the finding {number[:40]!r}, which is no number.", "Save the report again.")
    for state in request.reviews.values():
        if state not in REVIEWS:
            raise InputError(f"{path} has the review {state[:40]!r}.", f"Known are {', '.join(REVIEWS)}.")
    _check_provenance(request.provenance, f"{path}: the provenance")
    return request


def _check_provenance(content: Mapping[str, Any], where: str) -> None:
    made = _known(_Provenance, content, where)
    _known(_Threshold, made.threshold, f"{where}'s threshold")
    _known(_Brain, made.brain, f"{where}'s brain")
    _known(_Versions, made.versions, f"{where}'s versions")
    score = _known(_Score, made.score, f"{where}'s score")
    if score.healthy_range is not None:
        _known(_Range, score.healthy_range, f"{where}'s range of scores")
    if made.model is not None:
        _known(_Model, made.model, f"{where}'s model")
    try:
        datetime.fromisoformat(made.date_utc)
    except ValueError:
        raise InputError(f"{where} has the date {made.date_utc[:40]!r}.", "Save the report again.") from None


def _known(kind: type, content: Mapping[str, Any], where: str) -> Any:
    """Those entries that a dataclass has, checked; the others are none of its business."""
    return checked(kind, {entry.name: content[entry.name] for entry in fields(kind) if entry.name in content}, where)
