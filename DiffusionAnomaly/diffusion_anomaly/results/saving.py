"""A detection's files: anomaly map, mask, brain, findings, report and provenance, which appear together or not at
all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError, InputError
from ..io.files import file_stem
from ..io.outputs import OutputFolder
from ..io.records import record
from ..io.volume import write_like
from ..text import distinct_names
from .dicom import dicom_names, to_dicom_files, wanted_kinds
from .findings import write_findings_csv, write_findings_json

if TYPE_CHECKING:
    from .result import Result

PROVENANCE = "provenance.json"
REPORT = "report.html"
OVERWRITE = '--overwrite (in Python overwrite=True, in a job "overwrite": true)'


def image_suffix(source: str) -> str:
    """The format of the anomaly map and mask: the scan's own where it keeps its grid bit for bit, else compressed
    NIfTI.
    """
    name = source.lower()
    for ends, suffix in (((".nrrd", ".nhdr"), ".nrrd"), ((".mha", ".mhd"), ".mha")):
        if name.endswith(ends):
            return suffix
    return ".nii.gz"


def file_names(
    source: str,
    reconstructed: Iterable[str] = (),
    is_picture: bool = False,
    dicom: Iterable[str] = (),
    report: bool = True,
) -> dict[str, str]:
    """The names of a detection's files by kind, in the order in which they are written.

    Args:
        source: file or folder of the scan.
        reconstructed: channels whose pseudo-healthy reconstruction is kept.
        is_picture: whether the map is drawn over the scan too.
        dicom: kinds of DICOM objects that are written, of ``results.dicom.KINDS``.
        report: whether there is a page.
    """
    suffix, channels = image_suffix(source), list(reconstructed)
    stems = distinct_names(map(file_stem, channels))
    healed = ["healed"] if len(stems) == 1 else [f"healed_{stem}" for stem in stems]
    return {
        "heat": f"heat{suffix}",
        **{kind: f"{kind}{suffix}" for kind in healed},
        "mask": f"mask{suffix}",
        "brain": f"brain{suffix}",
        **({"overlay": "overlay.png"} if is_picture else {}),
        "findings_csv": "findings.csv",
        "findings_json": "findings.json",
        **dicom_names(dicom),
        **({"report": REPORT} if report else {}),
        "provenance": PROVENANCE,
    }


def keep_other_scans(earlier: Mapping[str, Mapping[str, Any]], sha256: str, folder: Path) -> None:
    """Make sure that what makes room for a result was made of the same scan.

    Args:
        earlier: the records that make room, by name, see ``OutputFolder.replaced``.
        sha256: of the scan.
        folder: for the message.

    Raises:
        InputError: naming the scan whose result is there.
    """
    for name, content in earlier.items():
        about = content.get("input")
        about = about if isinstance(about, dict) else {}
        if about.get("sha256") != sha256:
            made = f"another scan ({about['title']})" if about.get("title") else f"another command ({name})"
            raise InputError(f"{folder} holds the result of {made}.", f"Choose another folder, or say {OVERWRITE}.")


def save(
    result: Result,
    directory: Path | str | OutputFolder,
    overwrite: bool = False,
    dicom: bool = False,
    dicom_pdf: bool = False,
    report: bool = True,
) -> dict[str, Path]:
    """Write all files of a detection.

    Anomaly scores, mask and brain are NIfTI, or NRRD or MetaImage for a scan of that format. Provenance is put in place
    last and holds the SHA256 of every other file: where it exists and agrees, the set is complete.

    Args:
        result: from a ``Detector``.
        directory: where to; made if it does not exist. All files of an earlier result of the same scan are replaced,
            and nothing else. Who gives an ``OutputFolder`` has seen to whose result makes room.
        overwrite: whether the result of another scan may make room too.
        dicom: whether DICOM objects that belong to the scan's series are written too, see ``results.dicom``.
        dicom_pdf: whether they are, and the report as an encapsulated PDF with them.
        report: whether the page is written, which takes more room than all else.

    Returns:
        The paths of ``heat`` (the anomaly map), ``mask``, ``brain``, of a picture ``overlay``, ``findings_csv``,
        ``findings_json``, ``report`` and ``provenance``, and of the pseudo-healthy reconstruction where that was kept:
        ``healed``, or ``healed_<channel>`` of several. With ``dicom`` also ``dicom_anomaly_map``, ``dicom_findings``
        and, unless nothing was found, ``dicom_segmentation``; with ``dicom_pdf`` also ``dicom_report``.

    Raises:
        InputError: when a file that is no earlier result, or another scan's result, is in the way, or something cannot
            be written. The folder is then as it was. Also when no DICOM objects can be made; all else is written then.
    """
    from .report import write_report

    if not isinstance(directory, OutputFolder):
        sources = [volume.source for volume in result.scan.channels.values() if volume.source]
        with OutputFolder(directory, sources) as folder:
            if not overwrite:
                earlier = folder.replaced(_file_names_of(result, wanted_kinds(dicom, dicom_pdf)).values())
                keep_other_scans(earlier, result.scan.reference.sha256, folder.path)
            return save(result, folder, dicom=dicom, dicom_pdf=dicom_pdf, report=report)
    volume = result.scan.reference
    made = result.reconstruction or {}
    objects: dict[str, bytes] = {}
    failure: EngineError | None = None
    if dicom or dicom_pdf:
        try:
            objects = to_dicom_files(result, dicom_pdf)
        except EngineError as error:  # a detection is not lost over it
            failure = error
    names = _file_names_of(result, objects, report)
    healed = [name for kind, name in names.items() if kind.startswith("healed")]
    published = directory.publish(
        {
            names["heat"]: lambda path: write_like(result.anomaly_map, volume, path, dtype=np.float32),
            **{
                name: lambda path, image=image: write_like(image, volume, path, dtype=np.float32)
                for name, image in zip(healed, made.values(), strict=True)
            },
            names["mask"]: lambda path: write_like(result.mask, volume, path, dtype=np.uint8),
            names["brain"]: lambda path: write_like(result.brain, volume, path, dtype=np.uint8),
            **({names["overlay"]: lambda path: _write_overlay(result, path)} if result.is_picture else {}),
            names["findings_csv"]: lambda path: write_findings_csv(result.findings, path, result.is_picture),
            names["findings_json"]: lambda path: write_findings_json(
                result.findings, path, result.warnings, result.threshold, result.peak_margin
            ),
            **{
                name: lambda path, content=content: _write_bytes(content, path)
                for name, content in zip(dicom_names(objects).values(), objects.values(), strict=True)
            },
            **({names["report"]: lambda path: write_report(result, path)} if report else {}),
            names["provenance"]: record(result.provenance),
        },
    )
    if failure is not None:
        raise type(failure)(f"{failure.what} All other results are in {directory.path}.", failure.hint)
    return {kind: published[name] for kind, name in names.items()}


def _file_names_of(result: Result, dicom: Iterable[str], report: bool = True) -> dict[str, str]:
    """Names of all files; of an earlier result its page too, whether there will be one or not."""
    return file_names(result.scan.reference.source, result.reconstruction or {}, result.is_picture, dicom, report)


def _write_bytes(content: bytes, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def _write_overlay(result: Result, path: Path) -> None:
    from .rendering import SliceView, write_overlay

    view = SliceView(result.scan.reference.image, result.anomaly_map, result.mask, result.brain, is_picture=True)
    write_overlay(view, result.threshold, path)
