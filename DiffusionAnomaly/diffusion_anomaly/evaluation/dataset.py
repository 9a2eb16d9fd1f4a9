"""Scans and their reference masks, found by name in a folder or listed in a CSV file; and healthy scans without."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..io.tables import read_table

SCANS, MASKS = "*_flair.nii.gz", "*_mask.nii.gz"
"""How files of a folder are named where nothing is said."""
PREFIXES = ("channel_", "rater_")
"""How the columns of a table begin that name a contrast or a rater."""


@dataclass(frozen=True)
class Pair:
    """A scan and its reference mask.

    Attributes:
        name: of the patient; names files, so it is unique.
        scan: what ``read_volume`` reads.
        reference: mask of what should be found, on the scan's grid.
        brain: brain mask on the scan's grid; None lets the network find it.
        channels: each contrast's file by name where there are several, the scan's own first.
        raters: masks of single raters by name, on the scan's grid, where the reference is what several agreed on.
    """

    name: str
    scan: Path
    reference: Path
    brain: Path | None = None
    channels: Mapping[str, Path] = field(default_factory=dict)
    raters: Mapping[str, Path] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Path]:
        """Every file of it."""
        others = (*self.channels.values(), *self.raters.values())
        return [path for path in (self.scan, self.reference, self.brain, *others) if path is not None]


@dataclass(frozen=True)
class HealthyScan:
    """A healthy scan, which needs no reference: whatever is found in it is a false alarm.

    Attributes:
        name: names files, so it is unique.
        scan: what ``read_volume`` reads.
    """

    name: str
    scan: Path


def find_healthy(folder: Path | str, pattern: str = "*.nii.gz") -> list[HealthyScan]:
    """Healthy scans, sorted by name.

    Args:
        folder: where they lie.
        pattern: which of its files they are; its one ``*`` is the name.

    Raises:
        InputError: when there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", "Check the path.")
    scans = [HealthyScan(name, path) for name, path in _named(folder, pattern)]
    if not scans:
        raise InputError(f"{folder} holds no scan named {pattern}.", "Give another folder or another pattern.")
    return sorted(scans, key=lambda scan: scan.name)


def find_pairs(
    source: Path | str,
    scan_pattern: str | None = None,
    mask_pattern: str | None = None,
    brain_pattern: str | None = None,
    channels: Mapping[str, str] | None = None,
    complete_only: bool = False,
    raters: Mapping[str, str] | None = None,
) -> list[Pair]:
    """Scans and their references, sorted by name.

    Args:
        source: a folder; or a CSV file with the columns ``scan``, ``reference`` and, if wanted, ``brain`` and
            ``name``, paths relative to its own folder; and a column ``channel_NAME`` for each of several contrasts, a
            column ``rater_NAME`` for each of several raters.
        scan_pattern: which files of the folder are scans, by default ``SCANS``; its one ``*`` stands for the patient.
        mask_pattern: the reference's name, ``*`` being the same patient; by default ``MASKS``.
        brain_pattern: the brain mask's name, if there are brain masks.
        channels: of a folder with several contrasts, each one's pattern by its name, in place of ``scan_pattern``; the
            first is the scan that references and brains belong to. A pattern may lead out of the folder (``../``).
        complete_only: whether patients without all contrasts are left out; else they are refused.
        raters: of a folder, the masks of each of several raters by their names.

    Raises:
        InputError: when there are none, a reference is missing, two have one name, a table comes with patterns, or a
            cell of it is empty.
    """
    source = Path(source)
    if source.is_file():
        given = {"scan": scan_pattern, "reference": mask_pattern, "brain": brain_pattern}
        given |= {"channel_NAME of each": channels, "rater_NAME of each": raters}
        if columns := [column for column, pattern in given.items() if pattern]:
            raise InputError(
                f"{source} is a table, and patterns are for folders.",
                f"Leave the patterns out, and give it the columns {', '.join(columns)}.",
            )
        pairs = _pairs_of_csv(source, complete_only)
    elif source.is_dir():
        if channels and scan_pattern is not None:
            raise InputError("Patterns of scans and of channels were given.", "Give one or the other.")
        scan_pattern = next(iter(channels.values())) if channels else scan_pattern or SCANS
        masks = mask_pattern or MASKS
        pairs = list(_pairs_of_folder(source, scan_pattern, masks, brain_pattern, channels or {}, raters or {}))
    else:
        raise InputError(f"There is no folder or CSV file {source}.", "Check the path.")
    if not pairs:
        named = "" if scan_pattern is None else f" named {scan_pattern}"
        raise InputError(f"{source} holds no scan{named}.", "Give another folder, pattern or table.")
    if complete_only:
        pairs = [pair for pair in pairs if all(path.exists() for path in pair.channels.values())]
        if not pairs:
            raise InputError(f"No patient in {source} has every contrast.", "Look at the patterns.")
    names = [pair.name for pair in pairs]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise InputError(f"{source} names {', '.join(double[:3])} more than once.", "Give each scan its own name.")
    for path in (path for pair in pairs for path in pair.inputs):
        if not path.exists():
            raise InputError(
                f"There is no file {path}.",
                "Each scan needs its reference, contrasts and raters; check the patterns.",
            )
    return sorted(pairs, key=lambda pair: pair.name)


def _pairs_of_folder(
    folder: Path,
    scan: str,
    mask: str,
    brain: str | None,
    channels: Mapping[str, str],
    raters: Mapping[str, str],
) -> Iterator[Pair]:
    for pattern in (mask, brain, *channels.values(), *raters.values()):
        if pattern is not None:
            _check_pattern(pattern)
    for patient, path in _named(folder, scan):
        others = [None if pattern is None else folder / pattern.replace("*", patient) for pattern in (mask, brain)]
        assert others[0] is not None
        contrasts, masks = (
            {name: folder / pattern.replace("*", patient) for name, pattern in patterns.items()}
            for patterns in (channels, raters)
        )
        yield Pair(patient, path, others[0], others[1], contrasts, masks)


def _named(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """The files that a pattern finds, each with what its ``*`` stands for."""
    _check_pattern(pattern)
    before, after = pattern.split("*")
    for path in sorted(folder.glob(pattern)):
        yield path.relative_to(folder).as_posix()[len(before) : -len(after) or None], path


def _check_pattern(pattern: str) -> None:
    if pattern.count("*") != 1:
        raise InputError(f"The pattern {pattern!r} needs one *, which stands for the patient.", "Correct it.")


def _pairs_of_csv(path: Path, complete_only: bool) -> list[Pair]:
    columns, rows = read_table(path, ["scan", "reference"])
    for column in columns:
        if column in PREFIXES:
            raise InputError(f"The column {column} of {path} names nothing.", f"Call it {column}NAME.")
    pairs = [_pair_of_row(row, path, line, complete_only) for line, row in rows]
    return [pair for pair in pairs if pair is not None]


def _pair_of_row(row: Mapping[str, str], path: Path, line: int, complete_only: bool) -> Pair | None:
    """A row's scan; None for one that lacks a contrast, where such are left out."""
    scan, reference, brain = (row.get(key, "") for key in ("scan", "reference", "brain"))
    if not scan or not reference:
        raise InputError(f"{path}, line {line}, lacks a scan or a reference.", "Fill in both.")
    empty = [column for column, cell in row.items() if column.startswith(PREFIXES) and not cell]
    if complete_only and any(column.startswith(PREFIXES[0]) for column in empty):
        return None
    if empty:
        only = ", say --complete-only" if empty[0].startswith(PREFIXES[0]) else ""
        raise InputError(
            f"{path}, line {line}, has nothing in {empty[0]}.", f"Fill it in{only}, or leave the line out."
        )
    name = row.get("name") or re.sub(r"\.nii$", "", Path(scan).stem)
    folder = path.parent
    channels, raters = (
        {column.removeprefix(prefix): folder / cell for column, cell in row.items() if column.startswith(prefix)}
        for prefix in PREFIXES
    )
    return Pair(name, folder / scan, folder / reference, folder / brain if brain else None, channels, raters)
