"""Which series of a study the model is shown, without anybody to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ..detection.scan import ScanRequest
from ..errors import InputError
from ..io.contrasts import ChannelSource, contrast_of, require_different
from ..io.dicom import series_of
from ..io.dicom.planes import PROJECTIONS
from ..io.dicom.series import Series, count_patients, rank_series
from ..text import counted

_LISTED = 20
# What models of pictures state as what they look at.
_FILMS = frozenset({"X-RAY", "CR", "DX"})


def choose_sources(
    images: Path, channels: Sequence[str], patterns: Mapping[str, str]
) -> tuple[dict[str, ChannelSource], dict[str, Series], list[str]]:
    """The series of a study for each contrast of a model, by what their headers say.

    Of several the first in order is taken: from the scanner before derived, axial before other planes, and with more
    images before fewer.

    Args:
        images: folder of the study.
        channels: the contrasts that the model declares.
        patterns: for a contrast the description that its series has at this site, with ``*`` for any letters.

    Returns:
        Sources and series by contrast, and what to tell of a choice among several.

    Raises:
        InputError: when a contrast is not there, or the study is of several patients.
    """
    found = series_of(images)
    if (patients := count_patients(found)) > 1:
        raise InputError(
            f"The study holds images of {patients} patients.",
            "Correct the study where it came from, and send it again.",
        )
    by_name = {name.casefold(): pattern for name, pattern in patterns.items()}
    chosen: dict[str, Series] = {}
    notes = []
    for name in channels:
        alike = [series for series in found if _is(series, name, by_name.get(name.casefold()))]
        if not alike:
            listed = "; ".join(map(str, rank_series(found, name)[:_LISTED])) or "no image"
            raise InputError(
                f"The study holds no series that is {name}.",
                f"It holds {listed}. If one of them is {name}, say what its description is under series.",
            )
        chosen[name] = rank_series(alike, name)[0]
        if len(alike) > 1:
            notes.append(f"{counted(len(alike), 'series', 'series')} could be {name}; {chosen[name].uid} was taken.")
    sources = {name: ChannelSource(images, series.uid) for name, series in chosen.items()}
    require_different(sources)
    return sources, chosen, notes


def request_of(
    study: str,
    images: Path,
    sources: Mapping[str, ChannelSource],
    results: Path,
    overwrite: bool = False,
    pdf: bool = False,
) -> ScanRequest:
    """What to read and write of a study whose series are chosen.

    Args:
        study: its UID.
        images: its folder.
        sources: as ``choose_sources`` found them.
        results: folder for the results, DICOM among them.
        overwrite: whether those of another scan make room.
        pdf: whether the report is one of the DICOM objects.
    """
    several = len(sources) > 1
    return ScanRequest(
        images,
        results,
        series=None if several else next(iter(sources.values())).which,
        title=f"study {study}",
        overwrite=overwrite,
        channels=sources if several else {},
        dicom=True,
        dicom_pdf=pdf,
    )


def _is(series: Series, name: str, pattern: str | None) -> bool:
    if not series.uid:
        return False
    if pattern is not None:
        return fnmatchcase(series.description.casefold(), pattern.casefold())
    if not series.scanned:
        return False
    if name.upper() in _FILMS:
        return series.modality in PROJECTIONS
    contrast = contrast_of(name)
    if contrast is None:  # a modality, such as CT
        return series.modality == name.upper()
    return series.modality in ("MR", "") and contrast_of(series.description) == contrast
