"""What of a cohort is done: read from the results themselves, so that nothing else can disagree with them.

A result's record is written last and holds the SHA256 of its other files; there is a result when there is a record.
In it stands what it was made of and how, in an entry ``cohort``, and by that a run knows what is left to do.

Needs no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..io.files import folder_error
from ..io.formats import suffix_of
from ..io.records import content_of, is_whole, sha256_of
from ..options import shown
from ..results.saving import PROVENANCE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from ..detection.planning import Plan
    from ..detection.scan import ScanRequest

RESULTS = "results"
"""Folder of a cohort's output with a folder of each scan's result."""
FINDINGS = "findings.json"
COHORT = "cohort"
"""Entry of a result's provenance."""
LOCKS = ".cohort"
# They change a result by rounding at most: a run may go on with others, on another machine.
_EQUIVALENT = ("device", "batch_size", "model")
_DETACHED = {".hdr", ".img", ".nhdr", ".mhd"}


def results_folder(output: Path, name: str) -> Path:
    """Where a scan's result lies."""
    return output / RESULTS / name


def settings_of(plan: Plan) -> dict[str, Any]:
    """What one run's results have in common, JSON-ready: method, model and all options that change a result."""
    asked = {name: value for name, value in asdict(plan.asked).items() if name not in _EQUIVALENT}
    model = {"model": plan.bundle.name, "model_sha256": plan.bundle.sha256}
    return json.loads(json.dumps({**asked, **model}, default=str))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which settings are others than before, in words."""

    def said(value: Any) -> str:
        return "the model's own" if value is None else shown(value)

    return [
        f"{name} was {said(before.get(name))}, and is {said(now.get(name))} now"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def stamp(request: ScanRequest) -> str:
    """Names, sizes and times of all that is read, as one SHA256: what tells cheaply that nothing was changed."""
    listed = []
    for role, path in _files(request):
        about = os.stat(path)
        listed.append((role, path.name, about.st_size, about.st_mtime_ns))
    return _digest([*listed, *_which(request)])


def contents(request: ScanRequest) -> str:
    """The bytes of all that is read, as one SHA256, whatever their names and times."""
    return _digest([*((role, sha256_of(path)) for role, path in _files(request)), *_which(request)])


def inputs_of(request: ScanRequest) -> dict[str, str]:
    """What a result was made of, for its provenance.

    Raises:
        OSError: when it cannot be read.
    """
    return {"stamp": stamp(request), "sha256": contents(request)}


@dataclass(frozen=True)
class Finished:
    """A result that is complete.

    Attributes:
        folder: where it lies.
        record: its provenance.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        return _mapping(self.about.get("settings"))

    @property
    def about(self) -> Mapping[str, Any]:
        return _mapping(self.record.get(COHORT))

    def is_of(self, request: ScanRequest) -> bool:
        """Whether it was made of what is there now. Bytes are compared where names, sizes or times are others.

        Raises:
            OSError: when the scan cannot be read.
        """
        inputs = _mapping(self.about.get("inputs"))
        return inputs.get("stamp") == stamp(request) or inputs.get("sha256") == contents(request)


def finished(folder: Path) -> Finished | None:
    """The result in a folder; None where there is none of a cohort, or a file of it is missing or damaged.

    That a file has its length is looked at, not all of its bytes: those of thousands of maps would take minutes. The
    findings, which tables are made of, are compared in full.
    """
    record = content_of(folder / PROVENANCE)
    if record is None or not isinstance(record.get(COHORT), dict):
        return None
    if not is_whole(folder, record, FINDINGS):
        return None
    return Finished(folder, record)


def all_finished(output: Path) -> list[Finished]:
    """Every result of a cohort, by name."""
    folders = sorted((output / RESULTS).glob("*")) if (output / RESULTS).is_dir() else []
    found = (finished(folder) for folder in folders if folder.is_dir() and not folder.name.startswith("."))
    return [result for result in found if result is not None]


class CohortLock:
    """Keeps two runs of the same scans apart: one whole run at a time, or several shards, each once.

    The locks end with the process. Where a file system has none, as some network ones, nothing is checked.

    Args:
        output: folder of the cohort; made if it does not exist.
        shard: which part of how many; None for all.

    Raises:
        InputError: on entry, when another run is at work, or the folder cannot be made.
    """

    def __init__(self, output: Path, shard: tuple[int, int] | None = None) -> None:
        self._output = output
        self._shard = shard
        self._held: list[int] = []

    def __enter__(self) -> CohortLock:
        folder = self._output / LOCKS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if fcntl is None:
                return self
            whole = fcntl.LOCK_EX if self._shard is None else fcntl.LOCK_SH
            self._take(folder / "run", whole, "Another run works on this cohort just now")
            if self._shard is not None:
                part, parts = self._shard
                # All shards share a lock on how many there are: parts of four and of eight would meet in some scans.
                for other in folder.glob("of-*"):
                    if other.name != f"of-{parts}":
                        self._try(other, f"Another run divides this cohort {other.name.replace('-', ' ')} just now")
                self._take(folder / f"of-{parts}", fcntl.LOCK_SH, "Another run works on this cohort just now")
                self._take(folder / f"shard-{part}-of-{parts}", fcntl.LOCK_EX, f"Shard {part}/{parts} is run just now")
        except OSError as error:
            self._close()
            raise folder_error(self._output, error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _take(self, path: Path, how: int, message: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._held.append(descriptor)
        self._flock(descriptor, how, message)

    def _try(self, path: Path, message: str) -> None:
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._flock(descriptor, fcntl.LOCK_EX, message)  # type: ignore[union-attr]
        finally:
            os.close(descriptor)

    def _flock(self, descriptor: int, how: int, message: str) -> None:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)  # type: ignore[union-attr]
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(
                    f"{message}: {self._output}.", "Wait for its end, or choose another output folder."
                ) from error

    def _close(self) -> None:
        while self._held:
            os.close(self._held.pop())


def _files(request: ScanRequest) -> list[tuple[str, Path]]:
    """Every file that is read, with what for."""
    roles = {"scan": request.scan} if not request.channels else {}
    roles |= {f"channel {name}": source.path for name, source in request.channels.items()}
    if request.brain is not None:
        roles["brain"] = request.brain
    return [(role, file) for role, path in sorted(roles.items()) for file in _files_of(path)]


def _files_of(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if suffix_of(path).removesuffix(".gz") in _DETACHED:  # the voxels lie beside, mostly under the same name
        stem = path.name[: -len(suffix_of(path))]
        return sorted(file for file in path.parent.iterdir() if file.is_file() and file.name.startswith(f"{stem}."))
    return [path]


def _which(request: ScanRequest) -> list[tuple[str, Any]]:
    chosen = [(f"channel {name}", source.which) for name, source in sorted(request.channels.items())]
    return [("series", request.series), ("frame", request.frame), *chosen]


def _digest(entries: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(entries)).encode()).hexdigest()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
