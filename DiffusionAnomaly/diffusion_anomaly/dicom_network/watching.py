"""The watched folder: what a router writes there goes into the store as if it had been sent.

Files are copied, and remembered by name, size and time, so that each is taken once; they are removed only where the
configuration says so. Their names may be patients': the log does not show them, ``watched.json`` does.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.files import write_text
from .config import Watch
from .receiving import Arrivals
from .store import Store

log = logging.getLogger(__name__)

_MEMORY = "watched.json"
_State = tuple[int, int]  # bytes, and nanoseconds of the last change
_REFUSED = "a file in the watched folder %s; its name is in %s under refused"


class Watcher:
    """Looks into the folder when asked.

    Args:
        watch: which one, and how.
        store: what takes the instances.
        arrivals: is told of each.
        rest_s: seconds for which a folder without marker must have been at rest.

    Raises:
        InputError: when there is no such folder, or it is the node's own.
    """

    def __init__(self, watch: Watch, store: Store, arrivals: Arrivals, rest_s: float) -> None:
        self._watch, self._store, self._arrivals, self._rest_s = watch, store, arrivals, rest_s
        self._folder = Path(watch.folder)
        if not self._folder.is_dir():
            raise InputError(f"There is no folder {self._folder} to watch.", "Make it, or correct watch.folder.")
        inside, own = os.path.realpath(self._folder), os.path.realpath(store.folder)
        if os.path.commonpath([inside, own]) in (inside, own):
            raise InputError(
                f"The watched folder {self._folder} and the node's own {store.folder} lie in each other.",
                "Choose two folders side by side.",
            )
        self._taken: dict[str, _State] = _read_memory(store.folder / _MEMORY)
        self._refused: dict[str, str] = {}
        self._seen: dict[Path, tuple[Any, float]] = {}

    def look(self) -> int:
        """Take what is complete; how many instances came."""
        count, there = 0, set()
        before = len(self._taken), len(self._refused)
        for entry in sorted(self._folder.iterdir()):
            if entry.name.startswith("."):
                continue
            there.add(entry)
            files = dict(self._files(entry))
            if files and self._is_complete(entry, files):
                count += self._take(entry, files)
        self._seen = {entry: seen for entry, seen in self._seen.items() if entry in there}
        for known in (self._taken, self._refused):
            for name in [name for name in known if self._folder / Path(name).parts[0] not in there]:
                del known[name]
        if count or before != (len(self._taken), len(self._refused)):
            memory = {"taken": self._taken, "refused": self._refused}
            write_text(self._store.folder / _MEMORY, json.dumps(memory, indent=2) + "\n")
        return count

    def _files(self, entry: Path) -> Iterator[tuple[Path, _State]]:
        """The files of an entry of the folder that were not taken as they are now."""
        below = [entry] if entry.is_file() else sorted(path for path in entry.rglob("*") if path.is_file())
        for path in below:
            if any(part.startswith(".") for part in path.relative_to(self._folder).parts):
                continue
            try:
                about = path.stat()
            except FileNotFoundError:  # the router took it back
                continue
            state = (about.st_size, about.st_mtime_ns)
            if self._taken.get(str(path.relative_to(self._folder))) != state:
                yield path, state

    def _is_complete(self, entry: Path, files: dict[Path, _State]) -> bool:
        if self._watch.marker is not None:
            return entry.is_dir() and (entry / self._watch.marker).exists()
        seen, since = self._seen.get(entry, (None, 0.0))
        if seen != files:  # by our own clock: a network drive has another
            self._seen[entry] = files, time.monotonic()
            return self._rest_s == 0
        return time.monotonic() - since >= self._rest_s

    def _take(self, entry: Path, files: dict[Path, _State]) -> int:
        count = left = 0
        for path, state in files.items():
            name = str(path.relative_to(self._folder))
            try:
                content = path.read_bytes()
            except OSError as error:  # tried again at every look, and told once
                if name not in self._refused:
                    log.error(_REFUSED, f"cannot be read ({error.strerror or type(error).__name__})", _MEMORY)
                self._refused[name] = str(error.strerror or error)
                left += 1
                continue
            try:
                instance = self._store.add(content)
            except InputError as error:
                log.warning(_REFUSED, "is damaged or lacks a UID", _MEMORY)
                self._refused[name] = error.what
                instance = None
            except OSError as error:
                log.error("nothing is taken from the watched folder now: %s", error.strerror or error)
                return count
            self._taken[name] = state
            left += instance is None
            if instance is None:
                continue
            self._arrivals.note(instance.study)
            count += 1
            if self._watch.remove:
                path.unlink()
                del self._taken[name]
        if self._watch.remove and entry.is_dir() and not left:
            _remove_empty(entry, self._watch.marker)
        return count


def _remove_empty(entry: Path, marker: str | None) -> None:
    """Take away a folder of which nothing but the marker is left."""
    if marker is not None and [path.name for path in entry.iterdir()] == [marker]:
        (entry / marker).unlink()
    for folder, _, _ in os.walk(entry, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:  # something else is in it
            return


def _read_memory(path: Path) -> dict[str, _State]:
    """What was taken before; nothing where that cannot be read, so that it is taken again, which changes nothing."""
    try:
        content = json.loads(path.read_bytes())
        return {str(name): (int(size), int(changed)) for name, (size, changed) in content["taken"].items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
