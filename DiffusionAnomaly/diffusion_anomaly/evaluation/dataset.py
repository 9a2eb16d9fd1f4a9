"""Scans and their reference masks, found by name in a folder or listed in a CSV file; and healthy scans without."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError


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
    scan_pattern: str = "*_flair.nii.gz",
    mask_pattern: str = "*_mask.nii.gz",
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
        scan_pattern: which files of the folder are scans; its one ``*`` stands for the patient.
        mask_pattern: the reference's name, ``*`` being the same patient.
        brain_pattern: the brain mask's name, if there are brain masks.
        channels: of a folder with several contrasts, each one's pattern by its name, in place of ``scan_pattern``; the
            first is the scan that references and brains belong to. A pattern may lead out of the folder (``../``).
        complete_only: whether patients without all contrasts are left out; else they are refused.
        raters: of a folder, the masks of each of several raters by their names.

    Raises:
        InputError: when there are none, a reference is missing, two have one name, or a table comes with patterns of
            contrasts or raters.
    """
    source = Path(source)
    if source.is_file():
        if channels or raters:
            raise InputError(
                f"{source} is a table, and patterns are for folders.",
                f"Give it a column {'channel' if channels else 'rater'}_NAME for each, with the files' paths.",
            )
        pairs = _pairs_of_csv(source)
    elif source.is_dir():
        scan_pattern = next(iter(channels.values())) if channels else scan_pattern
        pairs = list(_pairs_of_folder(source, scan_pattern, mask_pattern, brain_pattern, channels or {}, raters or {}))
    else:
        raise InputError(f"There is no folder or CSV file {source}.", "Check the path.")
    if not pairs:
        raise InputError(f"{source} holds no scan named {scan_pattern}.", "Give another folder or another pattern.")
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


def _pairs_of_csv(path: Path) -> list[Pair]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = set(rows.fieldnames or ())
        if not {"scan", "reference"} <= columns:
            raise InputError(
                f"{path} has the columns {', '.join(sorted(columns)) or 'none'}.",
                "It needs scan and reference.",
            )
        return [_pair_of_row(row, path, number) for number, row in enumerate(rows, start=2)]


def _pair_of_row(row: Mapping[str, str | None], path: Path, line: int) -> Pair:
    scan, reference, brain = (str(row.get(key) or "").strip() for key in ("scan", "reference", "brain"))
    if not scan or not reference:
        raise InputError(f"{path}, line {line}, lacks a scan or a reference.", "Fill in both.")
    name = str(row.get("name") or "").strip() or re.sub(r"\.nii$", "", Path(scan).stem)
    folder = path.parent
    channels, raters = (
        {
            key.removeprefix(prefix): folder / value.strip()
            for key, value in row.items()
            if key and key.startswith(prefix) and isinstance(value, str) and value.strip()
        }
        for prefix in ("channel_", "rater_")
    )
    return Pair(name, folder / scan, folder / reference, folder / brain if brain else None, channels, raters)
