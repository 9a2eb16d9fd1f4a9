"""The scans of a BIDS data set: which files are looked at, by the names that the standard gives them.

Only what the engine needs of the standard: subjects, sessions, a folder of a data type, entities and suffix of a file.
A library that reads all of it would bring a data base of the whole data set along, which takes minutes for a large one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.contrasts import ChannelSource, contrast_of, declared_name, require_different
from ..io.typed_json import parse
from ..text import listed, printable
from .scans import BidsSource, CohortScan
from .state import Finished

DESCRIPTION = "dataset_description.json"
EXTENSIONS = (".nii.gz", ".nii")
SUFFIXES = {"FLAIR": "FLAIR", "T1": "T1w", "T1C": "T1w", "T2": "T2w", "PD": "PDw"}
"""A contrast's suffix. T1 with and without contrast agent are told apart by the entity ``ce``."""
ENTITIES = {
    **{"subject": "sub", "session": "ses", "acquisition": "acq", "ceagent": "ce", "reconstruction": "rec"},
    **{"tracer": "trc", "direction": "dir", "run": "run", "echo": "echo", "inversion": "inv", "sample": "sample"},
    **{"part": "part", "space": "space", "task": "task", "modality": "mod", "resolution": "res", "chunk": "chunk"},
}
"""Entities by the names that filters use; their own short forms are taken too."""
_LABEL = re.compile(r"[A-Za-z0-9+]+")
_SHOWN = 8


@dataclass(frozen=True)
class BidsFile:
    """An image of a data set.

    Attributes:
        path: of the file.
        datatype: of its folder, such as ``anat``.
        entities: by their short forms, in the order of the name.
        suffix: such as ``FLAIR``.
    """

    path: Path
    datatype: str
    entities: Mapping[str, str]
    suffix: str

    @property
    def stem(self) -> str:
        """The name's entities."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())

    @classmethod
    def parse(cls, path: Path) -> BidsFile | None:
        """A file by its name; None for one that is no image, or has no name of the standard.

        >>> BidsFile.parse(Path("anat/sub-01_ce-gd_T1w.nii.gz")).entities
        {'sub': '01', 'ce': 'gd'}
        """
        extension = next((extension for extension in EXTENSIONS if path.name.endswith(extension)), None)
        if extension is None:
            return None
        *pairs, suffix = path.name[: -len(extension)].split("_")
        split = [pair.partition("-") for pair in pairs]
        if not split or not all(dash and _LABEL.fullmatch(value) for _, dash, value in split) or split[0][0] != "sub":
            return None
        return cls(path, path.parent.name, {key: value for key, _, value in split}, suffix)


Filter = Mapping[str, Any]
"""Values of entities, of ``suffix`` and ``datatype`` by name: text, a list of texts, or None for absent."""


def is_bids(folder: Path) -> bool:
    """Whether a folder is the root of a BIDS data set."""
    return (folder / DESCRIPTION).is_file()


def list_bids(
    root: Path,
    channels: Sequence[str],
    participants: Iterable[str] = (),
    sessions: Iterable[str] = (),
    filters: Mapping[str, Filter] | None = None,
) -> list[CohortScan]:
    """The scans of a data set that a model looks at, by name.

    For a model of one contrast every file of it is a scan. Of several contrasts each session is one scan, with one file
    for each; a session where there are none or several has that as its ``problem``.

    Args:
        root: folder of the data set.
        channels: the contrasts that the model is shown, in its order.
        participants, sessions: labels that are taken, with or without ``sub-`` and ``ses-``; none takes all.
        filters: for a channel by name what its files are, instead of what its contrast is called in the standard.

    Raises:
        InputError: for a label that is not there, a filter that fits no channel, or a data set without such scans.
    """
    if not is_bids(root):
        raise InputError(f"{root} is no BIDS data set: it holds no {DESCRIPTION}.", "Give the data set's folder.")
    chosen = {name: _filter_of(name, channels, filters or {}) for name in channels}
    subjects = _labelled(root, "sub", participants)
    wanted = {_label(label, "ses") for label in sessions}
    seen: set[str] = set()
    scans: list[CohortScan] = []
    for subject in subjects:
        places = [place for place in sorted(subject.glob("ses-*")) if place.is_dir()] or [subject]
        for place in places:
            session = place.name.removeprefix("ses-") if place != subject else ""
            if wanted and session not in wanted:
                continue
            seen.add(session)
            scans += _of_session(root, place, subject.name.removeprefix("sub-"), session, chosen)
    if missing := sorted(wanted - seen):
        raise InputError(f"{root} has no session {', '.join(missing)}.", "Look at the labels behind ses-.")
    if not scans:
        what = " or ".join(f"{name} ({_shown(chosen[name])})" for name in channels)
        raise InputError(f"{root} holds no {what}.", "Say with --bids-filter-file what the scans are.")
    _check_stems(scans)
    return sorted(scans, key=lambda scan: scan.name)


def has_sources(root: Path, result: Finished) -> bool:
    """Whether what a result was made of is still in a data set; a link whose content was not fetched is."""
    files = result.about.get("bids")
    return all(os.path.lexists(root / str(name)) for name in (files if isinstance(files, list) else []))


def read_filters(path: Path) -> dict[str, Filter]:
    """A BIDS filter file: JSON with an object of entities for each channel's name.

    Raises:
        InputError: when it is none.
    """
    try:
        content = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"The filter file {path} cannot be read: {error}.", "Give a JSON file.") from error
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise InputError(f"{path} is no filter file.", 'Write {"FLAIR": {"acquisition": "3d", "run": null}}.')
    known = {*ENTITIES, *ENTITIES.values(), "suffix", "datatype"}
    for channel, entries in content.items():
        for name, value in entries.items():
            if name not in known:
                raise InputError(
                    f"{path}: {printable(name)[:40]!r} in {printable(channel)[:40]!r} is no entity.",
                    f"Known are suffix, datatype, {', '.join(ENTITIES)}.",
                )
            values = value if isinstance(value, list) else [value]
            if not all(
                entry is None or (isinstance(entry, (str, int)) and not isinstance(entry, bool)) for entry in values
            ):
                raise InputError(
                    f"{path}: {name} is {json.dumps(value)[:60]}.", "Give text, a list, or null for absent."
                )
    return content


def _filter_of(name: str, channels: Sequence[str], filters: Mapping[str, Filter]) -> dict[str, Any]:
    """What the files of a channel are."""
    for given in filters:
        if declared_name(given, channels) is None:
            raise InputError(
                f"The filter file has an entry {printable(given)[:40]!r}; the model knows {', '.join(channels)}.",
                "Name each entry after a channel of the model.",
            )
    contrast = contrast_of(name)
    chosen: dict[str, Any] = {"datatype": "anat", "part": [None, "mag"]}
    if contrast in SUFFIXES:
        chosen["suffix"] = SUFFIXES[contrast]
    if contrast == "T1":
        chosen["ce"] = None
    own = next((entry for given, entry in filters.items() if declared_name(given, channels) == name), {})
    chosen |= {ENTITIES.get(key, key): value for key, value in own.items()}
    if contrast == "T1C" and "ce" not in chosen:
        chosen["ce"] = ...  # any, but there
    if "suffix" not in chosen:
        raise InputError(
            f"What files of the contrast {name} are called in BIDS is not known.",
            f'Say it with --bids-filter-file: {{"{name}": {{"suffix": "T2starw"}}}}.',
        )
    return chosen


def _fits(file: BidsFile, chosen: Mapping[str, Any]) -> bool:
    about = {**file.entities, "suffix": file.suffix, "datatype": file.datatype}
    for name, wanted in chosen.items():
        here = about.get(name)
        if wanted is ...:
            fits = here is not None
        else:
            allowed = wanted if isinstance(wanted, list) else [wanted]
            fits = any(_same(name, here, value) for value in allowed)
        if not fits:
            return False
    return True


def _same(name: str, here: str | None, wanted: Any) -> bool:
    if here is None or wanted is None:
        return here is wanted
    if name in ("run", "echo", "inv", "chunk"):  # indices: 1 is 01
        return here.lstrip("0") == str(wanted).lstrip("0")
    return here == _label(str(wanted), name)


def _labelled(root: Path, key: str, labels: Iterable[str]) -> list[Path]:
    """The folders of the subjects that were asked for."""
    here = {path.name.removeprefix(f"{key}-"): path for path in sorted(root.glob(f"{key}-*")) if path.is_dir()}
    wanted = [_label(label, key) for label in labels]
    if missing := [label for label in wanted if label not in here]:
        raise InputError(
            f"{root} has no participant {listed(list(map(printable, missing)), _SHOWN)}.",
            f"It has {listed(list(here), _SHOWN)}." if here else "It has no folder sub-….",
        )
    return [here[label] for label in dict.fromkeys(wanted)] if wanted else list(here.values())


def _label(text: str, key: str) -> str:
    return text.removeprefix(f"{key}-")


def _of_session(
    root: Path, place: Path, patient: str, session: str, chosen: Mapping[str, Mapping[str, Any]]
) -> list[CohortScan]:
    # A link that leads nowhere is a file whose content was not fetched: the run says so.
    paths = (path for path in sorted(place.glob("*/*")) if path.is_file() or path.is_symlink())
    files = [file for path in paths if (file := BidsFile.parse(path)) is not None]
    found = {name: [file for file in files if _fits(file, wanted)] for name, wanted in chosen.items()}
    if len(chosen) == 1:
        ((_, alike),) = found.items()
        return [
            CohortScan(f"{file.stem}_{file.suffix}", file.path, patient, session, bids=_source(root, [file], file.stem))
            for file in alike
        ]
    if not any(found.values()):
        return []
    stem = "_".join([f"sub-{patient}", *([f"ses-{session}"] if session else [])])
    first = next(files[0] for files in found.values() if files)
    problem = None
    for name, alike in found.items():
        if len(alike) != 1:
            problem = InputError(
                f"{stem} has {len(alike)} files that could be {name}: {listed([f.path.name for f in alike], _SHOWN)}."
                if alike
                else f"{stem} has no {name} ({_shown(chosen[name])}).",
                "Say with --bids-filter-file which it is." if alike else "The model needs all of its contrasts.",
            )
            break
    sources = {name: ChannelSource(alike[0].path) for name, alike in found.items() if alike}
    if problem is None:
        try:
            require_different(sources)
        except InputError as error:
            problem = error
    taken = [alike[0] for alike in found.values() if alike]
    about = _source(root, taken, stem)
    return [CohortScan(stem, first.path, patient, session, channels=sources, bids=about, problem=problem)]


def _source(root: Path, files: Sequence[BidsFile], stem: str) -> BidsSource:
    names = tuple(file.path.relative_to(root).as_posix() for file in files)
    return BidsSource(root, names, str(Path(names[0]).parent.as_posix()), stem)


def _check_stems(scans: Sequence[CohortScan]) -> None:
    """Two scans whose derivatives would have one name are to be told apart by the user.

    Raises:
        InputError: naming both.
    """
    seen: dict[str, CohortScan] = {}
    for scan in scans:
        assert scan.bids is not None
        other = seen.setdefault(f"{scan.bids.folder}/{scan.bids.stem}".casefold(), scan)
        if other is not scan:
            raise InputError(
                f"The results of {other.scan.name} and {scan.scan.name} would have the same names.",
                "Choose one suffix with --bids-filter-file, and the other in a run of its own.",
            )


def _shown(chosen: Mapping[str, Any]) -> str:
    """What was looked for, in words."""
    parts = []
    for name, value in chosen.items():
        if name in ("datatype", "part"):
            continue
        values = value if isinstance(value, list) else [value]
        words = " or ".join("none" if entry is None else "any" if entry is ... else str(entry) for entry in values)
        parts.append(f"{name} {words}")
    return ", ".join(parts)
