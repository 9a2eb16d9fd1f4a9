"""The DICOM files of a folder by series, and the choice of one.

Each header is read once, up to the pixels. Nothing that belongs to the chosen series may drop out unseen: a damaged
file, or one cut short, is an error and no gap at the end of the head.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword

from ...errors import InputError
from ...text import counted
from ..records import RECORDS
from .headers import BoundedFile, Header, read_header
from .recognition import HEAD_BYTES, has_dicom_head

_DEEPEST_FOLDER, _MOST_FILES = 12, 30_000
# Headers that are looked at for images beside a single one: a second's work.
_MOST_SIBLINGS = 2000
_SIBLING_TAGS = [
    tag_for_keyword(keyword) or 0 for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Rows")
]
_DIRECTORY = "1.2.840.10008.1.3.10"
# Objects that have pixels and are no image of a body: segmentations, a dose, and parametric maps, as results are.
_NO_IMAGES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.66.7",
        "1.2.840.10008.5.1.4.1.1.30",
        "1.2.840.10008.5.1.4.1.1.481.2",
    }
)
_NOT_SCANNED = re.compile(r"\b(LOCALI[SZ]ER|DERIVED|SECONDARY|REFORMATTED|PROJECTION IMAGE)\b")
_NUMBER, _HEXADECIMAL = re.compile(r"[\d.]*\d"), re.compile(r"(?=.*\d)[\da-fA-F]{6,}")
_LISTED = 20
_CHOOSE = "Choose one with --series and its UID, or its description where no other series has it."


@dataclass(frozen=True)
class DicomFile:
    """A file of a series.

    Attributes:
        path: where it is.
        header: what stands before its pixels; None where it cannot be read.
        series: series instance UID; None where the file ends before it.
        fault: what is wrong with it; empty where nothing is.
    """

    path: Path
    header: Header | None
    series: str | None
    fault: str = ""


@dataclass
class Series:
    """The files of one series, and what to call it.

    Attributes:
        uid: series instance UID.
        files: the whole ones, in order of their paths.
        faulty: those that are damaged or cut short.
    """

    uid: str
    files: list[DicomFile] = field(default_factory=list)
    faulty: list[DicomFile] = field(default_factory=list)

    @property
    def description(self) -> str:
        return self._first.text("SeriesDescription") if self._first else ""

    @property
    def modality(self) -> str:
        return self._first.code("Modality") if self._first else ""

    @property
    def images(self) -> int:
        """Slices and frames."""
        return sum(int(file.header.hint("NumberOfFrames") or 1) for file in self.files if file.header)

    @property
    def plane(self) -> str:
        """How the first image lies: axial, coronal, sagittal, or empty where the header does not say."""
        if self._first is None:
            return ""
        shared = [
            header
            for group in self._first.items("SharedFunctionalGroupsSequence")
            for header in group.items("PlaneOrientationSequence")
        ]
        try:
            stated = [header.numbers("ImageOrientationPatient", 6) for header in (self._first, *shared)]
        except InputError:
            return ""
        axes = next(filter(None, stated), ())
        if not axes:
            return ""
        return ("sagittal", "coronal", "axial")[int(np.abs(np.cross(axes[:3], axes[3:])).argmax())]

    @property
    def scanned(self) -> bool:
        """Whether it came from the scanner as it is: no localiser, nothing derived."""
        return not (self._first and _NOT_SCANNED.search(self._first.code("ImageType").upper().replace("\\", " ")))

    def __str__(self) -> str:
        parts = [self.description or "no description", *self._when(), self.plane, counted(self.images, "image")]
        if not self.scanned:
            parts.append("localiser or derived")
        if self.faulty:
            parts.append(f"{len(self.faulty)} damaged")
        return f"{self.uid or 'without UID'} ({', '.join(filter(None, parts))})"

    def _when(self) -> Iterator[str]:
        """Number and time of the series, where the header states them: what tells repetitions apart."""
        if self._first is None:
            return
        if (number := self._first.hint("SeriesNumber")) is not None:
            yield f"series {number:g}"
        if len(time := self._first.code("SeriesTime").partition(".")[0]) >= 4 and time.isdecimal():
            yield f"at {':'.join(time[start : start + 2] for start in range(0, len(time), 2))}"

    @property
    def _first(self) -> Header | None:
        return self.files[0].header if self.files else None


def find_series(folder: Path, tags: list[int]) -> tuple[dict[str, Series], list[DicomFile], list[Path]]:
    """The image files below a folder by series.

    Args:
        folder: where to look, and in the folders in it.
        tags: the elements of the headers to keep.

    Returns:
        The series by UID, damaged files of which the series is not known, and files that are no DICOM.

    Raises:
        InputError: when there are too many files for one scan.
        OSError: when the folder cannot be read.
    """
    found: dict[str, Series] = {}
    lost: list[DicomFile] = []
    others: list[Path] = []
    for path in _files(folder):
        file = read_one(path, tags)
        if file is None:
            others.append(path)
        elif file.fault and file.series is None:
            lost.append(file)
        elif file.header is not None or file.fault:
            series = found.setdefault(file.series or "", Series(file.series or ""))
            (series.faulty if file.fault else series.files).append(file)
    return found, lost, others


def read_one(path: Path, tags: list[int]) -> DicomFile | None:
    """A file's header. None for what is no DICOM; without header and fault for DICOM that is no image of a body."""
    try:
        with BoundedFile(path) as file:
            head = file.read(HEAD_BYTES)
            if not has_dicom_head(head):
                return None
            file.seek(0)
            header, tag, missing = read_header(file, path, tags)
    except OSError as error:
        return DicomFile(path, None, None, f"could not be read: {error.strerror or error}")
    except InputError as error:
        return DicomFile(path, None, None, error.what.removeprefix(f"{path} "))
    try:
        kind = header.sop_class
        series = header.code("SeriesInstanceUID") if "SeriesInstanceUID" in header else None
    except InputError:  # it ends within one of them
        return DicomFile(path, None, None, "is cut short: it ends within an element")
    if kind == _DIRECTORY or kind in _NO_IMAGES:
        return DicomFile(path, None, series)
    if missing:
        return DicomFile(
            path,
            header,
            series,
            f"is cut short: {counted(missing, 'byte of its pixels is', 'bytes of its pixels are')} missing",
        )
    if tag is None:
        expects_pixels = "Image Storage" in kind.name or not kind or "Rows" in header
        fault = "is cut short: it ends before its pixels" if expects_pixels else ""
        return DicomFile(path, header if fault else None, series, fault)
    return DicomFile(path, header, series or "")


def count_siblings(file: DicomFile) -> int:
    """How many other images of a file's series lie beside it, among the files whose names are next to its own."""
    try:
        paths = sorted(Path(entry.path) for entry in os.scandir(file.path.parent) if entry.is_file())
    except OSError:  # the file may be read and its folder not be listed
        return 0
    here = next((index for index, path in enumerate(paths) if path.name == file.path.name), 0)
    first = max(0, min(here - _MOST_SIBLINGS // 2, len(paths) - _MOST_SIBLINGS))
    images = {file.header.code("SOPInstanceUID") if file.header else ""} - {""}
    siblings = 0
    for path in paths[first : first + _MOST_SIBLINGS]:
        if path.name == file.path.name or path.name.startswith("."):
            continue
        other = read_one(path, _SIBLING_TAGS)
        if other is None or other.header is None or other.fault or other.series != file.series:
            continue
        uid = other.header.code("SOPInstanceUID")
        siblings += uid not in images  # a copy of an image is none more
        images |= {uid} - {""}
    return siblings


def choose_series(
    folder: Path, found: dict[str, Series], lost: Sequence[DicomFile], others: Sequence[Path], wanted: str | None
) -> tuple[Series, list[str]]:
    """The series to read, checked that no file of it is damaged, and warnings.

    Args:
        folder: for messages.
        found, lost, others: as `find_series` gives them.
        wanted: UID or description; None where there should be one only.

    Raises:
        InputError: when there is no series, none like ``wanted``, several, or files of it are damaged.
    """
    if not found:
        if lost:
            raise _faulty(lost)
        raise _nothing(folder, others)
    ranked = rank_series(found.values())
    listed = "; ".join(str(series) for series in ranked[:_LISTED])
    if len(ranked) > _LISTED:
        listed += f"; and {len(ranked) - _LISTED} more"
    if wanted is None:
        if len(found) > 1:
            patients = count_patients(ranked)
            of = f" of {patients} patients" if patients > 1 else ""
            raise InputError(f"{folder} holds {len(found)} DICOM series{of}: {listed}.", _CHOOSE)
        chosen = ranked
    else:
        chosen = [series for series in ranked if series.uid == wanted]
        chosen = chosen or [series for series in ranked if series.description == wanted]
        chosen = chosen or [series for series in ranked if series.description.casefold() == wanted.strip().casefold()]
    if len(chosen) != 1:
        count = "no series" if not chosen else f"{len(chosen)} series"
        raise InputError(f"{folder} holds {count} {wanted!r}. It holds: {listed}.", _CHOOSE)
    series = chosen[0]
    if faulty := [*series.faulty, *lost]:
        raise _faulty(faulty)
    warnings = _check_neighbours(series, others)
    if (patients := count_patients(ranked)) > 1:
        warnings.append(f"{folder.name} holds series of {patients} patients; the one that was chosen is one of them.")
    return series, warnings


def count_patients(found: Iterable[Series]) -> int:
    """Of how many patients the series are, by ID or else name, which are compared and never shown."""
    patients = {
        header.raw("PatientID").strip(b" \0").upper() or header.raw("PatientName").strip(b" \0^").upper()
        for series in found
        for file in series.files[:1]
        if (header := file.header) is not None
    }
    return len(patients - {b""})


def rank_series(found: Iterable[Series], contrast: str = "FLAIR") -> list[Series]:
    """Series in the order in which they are likely to be meant.

    Args:
        found: the series.
        contrast: the word that a description of the right contrast holds.
    """

    def rank(series: Series) -> tuple[bool, bool, bool, int, str]:
        named = contrast.lower() in series.description.lower()
        return not series.scanned, not named, series.plane != "axial", -series.images, series.uid

    return sorted(found, key=rank)


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder in order, hidden ones left out: file managers leave them behind."""
    waiting = [(folder, 0)]
    seen: set[tuple[int, int]] = set()
    count = 0
    while waiting:
        here, depth = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            count += 1
            if count > _MOST_FILES:
                raise InputError(
                    f"{folder} holds more than {_MOST_FILES} files.", "Give the folder of the scan's own series."
                )
            if entry.is_dir():
                if depth == _DEEPEST_FOLDER:
                    raise InputError(
                        f"{folder} holds folders in more than {_DEEPEST_FOLDER} levels.",
                        "Give the folder of the scan's own series.",
                    )
                below.append((Path(entry.path), depth + 1))
            elif entry.is_file() or not os.path.exists(entry.path):  # a link to nowhere may stand for a slice
                yield Path(entry.path)
        waiting.extend(reversed(below))


def _check_neighbours(series: Series, others: Sequence[Path]) -> list[str]:
    """Files that have the name of a slice, and are none: what is left of one, perhaps the last."""
    patterns = {(file.path.parent, _pattern(file.path)) for file in series.files}
    empty = []
    for path in others:
        nothing = path.exists() and path.stat().st_size == 0
        if (path.parent, _pattern(path)) in patterns:
            raise InputError(
                f"{path} is named like the series' files and {'is empty (0 bytes)' if nothing else 'holds no DICOM'}; "
                "a slice may be lost.",
                "Copy or export it again, or move it elsewhere.",
            )
        if nothing and not _extension(path) and any(not _extension(file.path) for file in series.files):
            empty.append(path.name)
    return [f"{', '.join(empty[:3])}: empty beside the series' files; is a slice lost?"] if empty else []


def _pattern(path: Path) -> str:
    """What names of one series have in common: the extension, or else all but the numbers (IM024_0, 1.2.840.7)."""
    if extension := _extension(path):
        return extension
    if _HEXADECIMAL.fullmatch(path.name):  # as viewers' exports and media name them: 5F3A0C21
        return f"{len(path.name)} hexadecimal"
    return _NUMBER.sub("#", path.name.lower())


def _extension(path: Path) -> str:
    """In lower case; none where a number follows the last dot, as in a UID."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _faulty(files: Sequence[DicomFile]) -> InputError:
    more = len(files) - 1
    others = f" The same goes for {counted(more, 'more file')}." if more else ""
    belongs = "" if files[0].series is not None else ", and may belong to the scan"
    return InputError(
        f"{files[0].path} {files[0].fault}{belongs}.{others}", "Copy or export it again, or move it elsewhere."
    )


def _nothing(folder: Path, others: Sequence[Path]) -> InputError:
    inside = sorted(item.name for item in folder.iterdir())
    content = f"{counted(len(inside), 'entry', 'entries')}, such as {', '.join(inside[:3])}" if inside else "nothing"
    hint = "Give a scan file, or the folder that holds the DICOM files themselves."
    if any(path.suffix.lower() in (".zip", ".7z", ".rar", ".tgz", ".tar") for path in others):
        hint = "Unpack the archive, and give the folder that holds the DICOM files."
    if any(path.name in RECORDS for path in others):
        hint = "Results of this program lie in it: give the scan that they were made of."
    return InputError(f"{folder} holds no DICOM image; found {content}.", hint)
