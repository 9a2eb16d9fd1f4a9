"""A result as DICOM: the mask as a segmentation, the anomaly map as a parametric map, the findings as a structured
report, and where it is asked for the printed report as a PDF.

All refer to the series that the scan was read from, of several channels the first one's. They are marked as made
by research software and never as final or verified.

highdicom, which knows the rules of these objects, and pydicom are imported when something is written.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...text import printable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from ...io.volume import Volume
    from ..result import Result

FOLDER = "dicom"
DEFAULT_KINDS = ("segmentation", "anomaly_map", "findings")
KINDS = (*DEFAULT_KINDS, "report")
"""``findings`` is the structured report, ``report`` the PDF."""
_NEEDED = {"highdicom": "Writing DICOM", "matplotlib": "The report as a PDF"}


def wanted_kinds(dicom: bool, pdf: bool) -> tuple[str, ...]:
    """The kinds of objects that are asked for; the PDF never comes alone."""
    return KINDS if pdf else DEFAULT_KINDS if dicom else ()


def dicom_names(kinds: Iterable[str] = DEFAULT_KINDS) -> dict[str, str]:
    """The files' names by kind, in the order in which they are written."""
    return {f"dicom_{kind}": f"{FOLDER}/{kind}.dcm" for kind in kinds}


def check_source(volume: Volume, anonymous: bool = False, pdf: bool = False) -> None:
    """Make sure, before anything is computed, that DICOM objects can be made of a scan's result.

    Args:
        volume: the scan; of several channels the first.
        anonymous: whether results must not name the scan.
        pdf: whether the report is to be one of them.

    Raises:
        InputError: when the scan was not read from DICOM, its files state no UIDs or changed since, names are to be
            left out, or a package that is needed is not installed.
    """
    if anonymous:
        raise InputError(
            "DICOM results name the patient as the series does that they belong to; the option anonymous forbids it.",
            "Leave out one of the two, or de-identify the DICOM series first.",
        )
    _check_possible(volume, pdf)
    from ...io.dicom.source import read_source

    read_source(volume.planes, volume.sha256, volume.source)


def _check_possible(volume: Volume, pdf: bool) -> None:
    if not volume.planes:
        raise InputError(
            f"{volume.name} was not read from DICOM, so there is no patient and no study that DICOM results could "
            "belong to.",
            "Give the DICOM series itself, or leave out the DICOM results.",
        )
    check_installed(pdf)


def check_installed(pdf: bool = False) -> None:
    """Make sure that there is what writes the objects.

    Args:
        pdf: whether the report is to be one of them.

    Raises:
        InputError: when highdicom, or matplotlib for the report, is not installed.
    """
    for package, what in _NEEDED.items():
        if (pdf or package != "matplotlib") and importlib.util.find_spec(package) is None:
            raise InputError(
                f"{what} needs the package {package}.", "Install it: pip install 'diffusion-anomaly[dicom]'"
            )


def to_dicom(result: Result, pdf: bool = False) -> dict[str, Dataset]:
    """The DICOM objects of a result.

    Made twice of the same series with the same model and options, they have the same UIDs.

    Args:
        result: of a detection.
        pdf: whether the report is made too, as an encapsulated PDF.

    Returns:
        By kind: ``segmentation``, which is left out where there are no findings, since none has no segment;
        ``anomaly_map`` and ``findings``; with ``pdf`` also ``report``.

    Raises:
        InputError: as `check_source`, when the source's files are gone or changed, and for more findings than a
            segmentation takes.
        MemoryExhausted: when they do not fit into memory.
    """
    volume = result.scan.reference
    _check_possible(volume, pdf)
    with _quiet(volume):
        from .context import Context
        from .parametric_map import make_parametric_map
        from .segmentation import MOST_SEGMENTS, make_segmentation
        from .structured_report import make_structured_report

        if len(result.findings) > MOST_SEGMENTS:
            raise InputError(
                f"{printable(volume.name)} has {len(result.findings)} findings; a DICOM segmentation takes "
                f"{MOST_SEGMENTS}.",
                "Choose a higher threshold, or a larger smallest volume.",
            )
        context = Context.of(result)
        made: dict[str, Dataset] = {}
        if result.findings:
            made["segmentation"] = make_segmentation(context)
        made["anomaly_map"] = make_parametric_map(context)
        made["findings"] = make_structured_report(context, made["anomaly_map"], made.get("segmentation"))
        if pdf:
            from .encapsulated_pdf import make_encapsulated_pdf

            made["report"] = make_encapsulated_pdf(context)
        return made


def to_dicom_files(result: Result, pdf: bool = False) -> dict[str, bytes]:
    """The bytes of the objects' files, by kind, as `to_dicom` makes them.

    Raises:
        InputError: as `to_dicom`.
        MemoryExhausted: when they do not fit into memory.
    """
    made = to_dicom(result, pdf)
    with _quiet(result.scan.reference):
        return {kind: _encoded(data) for kind, data in made.items()}


def _encoded(data: Dataset) -> bytes:
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


@contextmanager
def _quiet(volume: Volume) -> Iterator[None]:
    """highdicom's log, which may name the patient, off; and its refusals told in the engine's words.

    Raises:
        InputError: for a series that its objects cannot refer to.
        MemoryExhausted: when memory runs out.
    """
    from ...io.dicom.headers import PARSE_ERRORS, silence

    logger = logging.getLogger("highdicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with silence(Path(volume.source)):
            yield
    except PARSE_ERRORS as error:
        raise InputError(
            f"No DICOM results can be made for {volume.name}: {error}.",
            "Leave out the DICOM results, and report this with the series' header.",
        ) from error
    finally:
        logger.setLevel(before)
