"""Which scans a cohort has: found in a folder by a pattern, or listed in a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..io.contrasts import ChannelSource
from ..io.formats import suffix_of
from ..io.tables import read_table
from ..text import distinct_names, listed, printable, safe_name

CHANNEL_PREFIX = "channel_"
NAMES_SHOWN = 5
_COLUMNS = ("scan", "name", "patient", "session", "brain", "series", "frame")
# What of a folder is taken without a pattern. A header stands for its voxels.
_IMAGES = {
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr"),
    *(".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff"),
}


@dataclass(frozen=True)
class BidsSource:
    """Where in a BIDS data set a scan comes from.

    Attributes:
        root: of the data set.
        files: that are read, relative to it.
        folder: of its derivatives, relative to theirs, such as ``sub-01/ses-1/anat``.
        stem: how their names begin, such as ``sub-01_ses-1_run-2``.
    """

    root: Path
    files: tuple[str, ...]
    folder: str
    stem: str


@dataclass(frozen=True)
class CohortScan:
    """One scan of a cohort.

    Attributes:
        name: of its folder of results; no other scan of the cohort has it.
        scan: file or folder; of several channels the first one's, or the folder that holds them all.
        patient, session: as far as they are known.
        brain: brain mask file.
        series, frame: which of several in a DICOM folder or 4-D file.
        channels: each contrast's source by name, for a model of several.
        bids: set for a scan of a BIDS data set.
        problem: why it cannot be read, where that is known from names alone.
    """

    name: str
    scan: Path
    patient: str = ""
    session: str = ""
    brain: Path | None = None
    series: str | None = None
    frame: int | None = None
    channels: Mapping[str, ChannelSource] = field(default_factory=dict)
    bids: BidsSource | None = None
    problem: InputError | None = None


def list_scans(
    source: Path,
    output: Path,
    pattern: str | None = None,
    named: bool = False,
    warn: Callable[[str], object] = lambda message: None,
) -> list[CohortScan]:
    """The scans of a folder or a CSV file, by name; an image file is a scan itself.

    Args:
        source: a folder, an image file, or a table with the column ``scan``, perhaps ``name``, ``patient``,
            ``session``, ``brain``, ``series``, ``frame``, and for a model of several contrasts ``channel_NAME`` of
            each.
        output: of the cohort; what lies in it is no scan.
        pattern: which files and folders below the folder are scans; None takes every image file and folder in it.
        named: whether only names that the user has given may be used, because those of files may be a patient's.
        warn: is told of columns that mean nothing here.

    Raises:
        InputError: when there is no scan, or the table cannot be used.
    """
    if source.is_file():
        if pattern is not None:
            raise InputError(f"{source} is a file, and a pattern was given.", "A pattern is for a folder.")
        scans = [_single(source, named)] if suffix_of(source) in _IMAGES else _of_table(source, named, warn)
    elif source.is_dir():
        if named:
            raise _unnamed()
        scans = _of_folder(source, output, pattern)
    else:
        raise InputError(f"There is no folder or CSV file {source}.", "Check the path.")
    if not scans:
        looked = f"no file or folder {pattern!r}" if pattern else "no scan"
        raise InputError(
            f"{source} holds {looked}.", "Give another folder, or a --pattern such as '**/*_flair.nii.gz'."
        )
    return sorted(scans, key=lambda scan: scan.name)


def _single(path: Path, named: bool) -> CohortScan:
    if named:
        raise _unnamed()
    return CohortScan(safe_name(_stem(path.name)), path)


def _unnamed() -> InputError:
    return InputError(
        "Without names of their own the scans' folders would be called after their files, which may name patients.",
        "Give a CSV file with the columns scan and name, or a BIDS data set.",
    )


def shard_of(scans: Sequence[CohortScan], part: int, parts: int) -> list[CohortScan]:
    """Every ``parts``-th scan of the list, beginning with the ``part``-th, counted from 1.

    >>> [scan.name for scan in shard_of([CohortScan(name, Path()) for name in "abcde"], 2, 3)]
    ['b', 'e']
    """
    return list(scans)[part - 1 :: parts]


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` as two numbers.

    Raises:
        InputError: when it is none, or i is not within 1 to n.
    """
    part, _, parts = text.partition("/")
    if not (part.isascii() and part.isdigit() and parts.isascii() and parts.isdigit()) or not 1 <= int(part) <= int(
        parts
    ):
        raise InputError(f"The shard is {text!r}.", "Write it as i/n, such as 2/8 for the second of eight.")
    return int(part), int(parts)


def _of_folder(folder: Path, output: Path, pattern: str | None) -> list[CohortScan]:
    try:
        found = sorted(folder.glob(pattern or "*"))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise InputError(f"The pattern {pattern!r} is none: {error}.", "Write it as '**/*_flair.nii.gz'.") from error
    result = Path(os.path.realpath(output))
    paths = []
    for path in found:
        parts = path.relative_to(folder).parts
        real = Path(os.path.realpath(path))
        if any(part.startswith(".") for part in parts) or real == result or result in real.parents or not parts:
            continue
        if pattern is not None or path.is_dir() or suffix_of(path) in _IMAGES:
            paths.append(path)
    if pattern is None:
        _check_layout(folder, paths)
    # By the whole way below the folder: another scan that comes later changes no name.
    names = [safe_name("-".join(_parts(path, folder))) for path in paths]
    return [CohortScan(name, path) for name, path in zip(distinct_names(names), paths, strict=True)]


def _check_layout(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse folders of image files, as of patients, each of which would be taken for a DICOM series.

    Raises:
        InputError: naming one, with the pattern that finds its files.
    """
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        images = [one for one in inside if suffix_of(one) in _IMAGES and one.is_file()]
        if images:
            raise InputError(
                f"{path} holds image files such as {images[0].name}, and a folder without a pattern is a DICOM series.",
                f"Say which files are scans: --pattern '**/*{suffix_of(images[0])}'.",
            )


def _parts(path: Path, folder: Path) -> Iterator[str]:
    *folders, last = path.relative_to(folder).parts
    yield from folders
    yield last if path.is_dir() else _stem(last)


def _stem(name: str) -> str:
    return name[: -len(suffix_of(name))] if suffix_of(name) else name


def _of_table(path: Path, named: bool, warn: Callable[[str], object]) -> list[CohortScan]:
    columns, rows = read_table(path, ["scan"], prefix=CHANNEL_PREFIX)
    unknown = [name for name in columns if name not in _COLUMNS and not name.startswith(CHANNEL_PREFIX)]
    if unknown:
        names = listed([printable(name) for name in unknown], NAMES_SHOWN)
        warn(f"{path} has columns that mean nothing here: {names}. Known are {', '.join(_COLUMNS)}.")
    if named and "name" not in columns:
        raise InputError(f"{path} has no column name.", "Give each scan a name that names no patient.")
    scans = [_of_row(row, path, line) for line, row in rows]
    often = Counter(scan.name.casefold() for scan in scans)
    twice = [scan.name for scan in scans if often[scan.name.casefold()] > 1]
    if twice:
        names = listed([printable(name) for name in dict.fromkeys(twice)], NAMES_SHOWN)
        raise InputError(f"{path} has several scans named {names}.", "Give each a name of its own in the column name.")
    return scans


def _of_row(values: Mapping[str, str], path: Path, line: int) -> CohortScan:
    folder = path.parent
    channels = {
        key.removeprefix(CHANNEL_PREFIX): ChannelSource.parse(str(folder / value))
        for key, value in values.items()
        if key.startswith(CHANNEL_PREFIX) and value
    }
    given = values.get("scan", "")
    if not given and not channels:
        raise InputError(f"{path}, line {line}, names no scan.", "Fill in the column scan, or remove the line.")
    if given and channels:
        raise InputError(f"{path}, line {line}, names a scan and channels.", "Give one or the other.")
    frame = values.get("frame", "")
    if frame and not (frame.isascii() and frame.isdigit()):
        raise InputError(f"{path}, line {line}: the frame is {frame[:40]!r}.", "Write a whole number, counted from 0.")
    scan = folder / given if given else next(iter(channels.values())).path
    patient, session = values.get("patient", ""), values.get("session", "")
    name = values.get("name") or (_stem(scan.name) if not patient else "-".join(filter(None, (patient, session))))
    brain = folder / values["brain"] if values.get("brain") else None
    files = [scan, *(source.path for source in channels.values()), *([brain] if brain is not None else [])]
    problem = None
    if missing := [file for file in files if not os.path.exists(file)]:
        hint = f"Look at line {line} of {path.name}; paths start at its folder."
        problem = InputError(f"There is no file {missing[0]}.", hint)
    return CohortScan(
        safe_name(name),
        scan,
        patient,
        session,
        brain=brain,
        series=values.get("series") or None,
        frame=int(frame) if frame else None,
        channels=channels,
        problem=problem,
    )
