"""What this program wrote: a result's record, a JSON file that holds the SHA256 of every other file.

By it an earlier result is recognised, so that it may be replaced, and is not taken for a scan. What a record names but
has other bytes by now is the user's.

Needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from .files import Writer, write_text

COMPARISON_RECORD = "comparison.json"
RECORDS = ("provenance.json", "threshold.json", "evaluation.json", "cohort.json", COMPARISON_RECORD)
"""Files that speak for the others of a result."""

BIDS_RECORD = "_desc-anomaly_mask.json"
"""How the name of the file ends that speaks for a result under the names of BIDS; several lie in one folder."""
DIGESTS = "files_sha256"
SIZES = "files_bytes"
ANOMALY_MAP, BRAIN_MASK = "anomaly map", "brain mask"
# By what a file's name begins with. An evaluation's maps lie in a folder ``heat``.
_KINDS = {
    "heat": ANOMALY_MAP,
    "mask": "mask",
    "brain": BRAIN_MASK,
    "healed": "pseudo-healthy reconstruction",
    "findings": "table of findings",
    "report": "report",
    "prior": "prior scan, laid on the current one",
    "current": "mask of a comparison",
}
_BIDS_KINDS = {
    "_anomalymap": ANOMALY_MAP,
    "_desc-anomaly_mask": "mask",
    "_desc-brain_mask": BRAIN_MASK,
    "_desc-anomaly_dseg": "labels of findings",
}
# Beyond this no record of ours comes near; a foreign JSON file is not read to its end.
LONGEST_RECORD = 64 << 20


def record(content: Mapping[str, Any]) -> Writer:
    """What writes the file that speaks for the others: JSON of the content, SHA256 and length of those beside it."""

    def write(path: Path) -> None:
        beside = sorted(other for other in path.parent.rglob("*") if other.is_file() and other != path)
        digests = {other.relative_to(path.parent).as_posix(): sha256_of(other) for other in beside}
        sizes = {name: (path.parent / name).stat().st_size for name in digests}
        write_text(path, json.dumps({**content, DIGESTS: digests, SIZES: sizes}, indent=2, allow_nan=False) + "\n")

    return write


@dataclass(frozen=True)
class Recorded:
    """A file that this program wrote, and what the record beside it says.

    Attributes:
        folder: where the record lies.
        name: of the file, relative to it.
        record: the record's own name, one of ``RECORDS`` or one that ends in ``BIDS_RECORD``.
        content: of the record.
    """

    folder: Path
    name: str
    record: str
    content: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What the file is, in words."""
        return kind_of(self.name)

    @property
    def anomaly_map(self) -> Path | None:
        """The anomaly map that the file belongs to; None where there is not exactly one, as in an evaluation."""
        if self.record == "threshold.json":
            return Path(str(self.content.get("heat", "")))
        maps = [name for name in self.content[DIGESTS] if kind_of(name) == ANOMALY_MAP]
        return self.folder / maps[0] if len(maps) == 1 else None

    @property
    def of(self) -> str:
        """What the scan, or the anomaly map that was given a threshold, is called; empty where the record is silent."""
        about = self.content.get("input")
        title = about.get("title") if isinstance(about, dict) else Path(str(self.content.get("heat", ""))).name
        return title if isinstance(title, str) else ""


def recorded(path: Path) -> Recorded | None:
    """What the record in a file's folder, or in one of the two above, says of it; None where none names its bytes."""
    try:
        path = path.absolute()
        for folder in list(path.parents)[:3]:
            name = path.relative_to(folder).as_posix()
            for record in (*RECORDS, *_bids_records(folder)):
                content = content_of(folder / record)
                digest = None if content is None else content[DIGESTS].get(name)
                if content is not None and digest is not None and path.is_file() and digest == sha256_of(path):
                    return Recorded(folder, name, record, content)
    except OSError:  # who reads the file next says why it cannot be read
        pass
    return None


def result_in_place_of_scan(path: Path) -> InputError | None:
    """The error for what is a result of this program, given as a scan; None for anything else.

    Args:
        path: a file that a record names, or a folder that holds nothing but results and folders of them.
    """
    if os.path.isdir(path):
        if not _holds_results_alone(path):
            return None
        what, hint = f"{path} holds results of this program, no scan.", "Give the scan that they were made of."
    else:
        made = recorded(path)
        if made is None:
            return None
        about = f" of {made.of}" if made.of else ""
        what, hint = f"{path} is a result of this program ({made.kind}{about}), not a scan.", "Give the scan itself."
    return InputError(what, hint)


def _holds_results_alone(folder: Path) -> bool:
    """Whether all that is in a folder are files of results, and folders in which there is nothing else either."""
    records, foreign = _results_in(folder)
    below = [_results_in(place) for place in foreign if os.path.isdir(place)]
    alone = len(below) == len(foreign) and all(inside and not others for inside, others in below)
    return alone and (records or bool(below))


def _results_in(folder: Path) -> tuple[bool, list[Path]]:
    """Whether a folder holds a record, and what none speaks of."""
    names = (*RECORDS, *_bids_records(folder))
    contents = {name: content for name in names if (content := content_of(folder / name)) is not None}
    ours = {PurePosixPath(name).parts[0] for content in contents.values() for name in content[DIGESTS]} | set(contents)
    return bool(contents), [entry for entry in _visible(folder) if entry.name not in ours]


def _bids_records(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"sub-*{BIDS_RECORD}"))


def _visible(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []


def kind_of(name: str) -> str:
    """What a file of a result is, in words; its own name where there are none for it."""
    for ending, kind in _BIDS_KINDS.items():
        if name.partition(".")[0].endswith(ending):
            return kind
    begin = re.split(r"[/._]", name.removeprefix("healthy/"), maxsplit=1)[0]  # as evaluations keep healthy scans
    return _KINDS.get(begin, PurePosixPath(name).name)


def content_of(path: Path) -> dict[str, Any] | None:
    """A record, with the files that it names and their SHA256 under ``DIGESTS``; None for what is no record."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LONGEST_RECORD:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    files = content.get(DIGESTS) if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(_is_entry(path.parent, *entry) for entry in files.items()):
        return None
    return content


def is_whole(folder: Path, content: Mapping[str, Any], *read: str) -> bool:
    """Whether all files that a record names are there and as long as it says: the cheap part of a comparison.

    Args:
        folder: of the record.
        content: the record.
        read: names of files whose bytes are compared too, because they are about to be read.
    """
    sizes = content.get(SIZES)
    known: Mapping[str, Any] = sizes if isinstance(sizes, dict) else {}  # earlier versions wrote none
    for name, digest in content[DIGESTS].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != known.get(name, path.stat().st_size):
            return False
        if name in read and sha256_of(path) != digest:
            return False
    return True


def _is_entry(directory: Path, name: str, digest: Any) -> bool:
    """Whether this names a file in the folder itself: a record from elsewhere must not lead out of it."""
    parts = PurePosixPath(name).parts
    if not parts or "\\" in name or "\0" in name or name.startswith("/") or {"..", ".", ""} & set(name.split("/")):
        return False
    if any((directory / Path(*parts[:count])).is_symlink() for count in range(1, len(parts))):
        return False
    return isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
