"""The studies of a node on disk: where each lies says what is to be done with it, so that a killed node goes on there.

    incoming/STUDY       instances that come in
    queue/STUDY-SET      a complete study that waits to be looked at, or is looked at just now
    sending/STUDY-SET    with results that are on their way
    done/STUDY-SET       with results that have arrived everywhere
    quarantine/STUDY-SET with a reason why it went no further

A study goes from one to the next by a rename, which is whole or not done at all. ``SET`` is a digest of its images, by
which it is known when it comes again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import EngineError, InputError
from ..io.files import folder_error, write_error, write_text
from ..io.typed_json import checked, parse
from .instances import Instance, identify, is_uid

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

INCOMING, QUEUE, SENDING, DONE, QUARANTINE = "incoming", "queue", "sending", "done", "quarantine"
IMAGES, REPLACED, RESULTS = "images", "replaced", "results"
RECORD, REASON = "study.json", "reason.json"
_PARTIAL = ".partial-"


@dataclass
class Delivery:
    """How far a study's results have come to one destination.

    Attributes:
        sent: names of the files that have arrived.
        tries: how often it was tried in vain since something last arrived.
        since: when it was first tried in vain; seconds since 1970, as all times here. 0 for not yet.
        not_before: when it is tried next.
        failure: why it cannot succeed; empty while it may.
    """

    sent: list[str] = field(default_factory=list)
    tries: int = 0
    since: float = 0.0
    not_before: float = 0.0
    failure: str = ""


@dataclass
class Record:
    """What a study's folder says of it.

    Attributes:
        study: study instance UID.
        received: when it was complete.
        images, others: digests by SOP instance UID.
        starts: how often a detection was begun that neither ended nor failed.
        tries, since, not_before: of a detection that failed for something that may pass, as those of a ``Delivery``.
        made_of: digest of the images that the results were made of.
        note: why it is done without results.
        deliveries: by destination.
    """

    study: str
    received: float
    images: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    tries: int = 0
    since: float = 0.0
    not_before: float = 0.0
    made_of: str = ""
    note: str = ""
    deliveries: dict[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """A study in one of the folders."""

    folder: Path
    record: Record

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        return self.folder.parent.name

    @property
    def images(self) -> Path:
        return self.folder / IMAGES

    @property
    def results(self) -> Path:
        return self.folder / RESULTS

    def save(self) -> None:
        """Write the record down.

        Raises:
            EngineError: when the operating system refuses.
        """
        write_text(self.folder / RECORD, json.dumps(asdict(self.record), indent=2) + "\n")
        _sync(self.folder)

    def delivery(self, destination: str) -> Delivery:
        """How far its results have come."""
        found = self.record.deliveries.get(destination)
        return checked(Delivery, found, RECORD) if isinstance(found, dict) else Delivery()

    def set_delivery(self, destination: str, delivery: Delivery) -> None:
        self.record.deliveries[destination] = asdict(delivery)
        self.save()


class Store:
    """The folders of a node. One node at a time has them.

    Args:
        folder: made if it does not exist.
        least_free: bytes of the disk below which nothing is taken in.

    Raises:
        InputError: when it cannot be made or written to, or another node has it.
    """

    def __init__(self, folder: Path, least_free: float = 0.0) -> None:
        self.folder = folder
        self._least_free = least_free
        self._lock = threading.RLock()
        self._known: dict[Path, Instance] = {}  # of instances in incoming/, so that none is read twice
        try:
            for name in (INCOMING, QUEUE, SENDING, DONE, QUARANTINE):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise folder_error(folder, error) from error
        try:
            if fcntl is not None:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._held)
            raise InputError(f"Another node works in {folder}.", "Stop it, or give this one another folder.") from error
        except OSError:  # a file system without locks, as some network ones: nothing is checked
            pass
        for leftover in (folder / INCOMING).glob(f"{_PARTIAL}*"):  # of which no sender was told that it is stored
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another node have the folders."""
        os.close(self._held)

    def add(self, content: bytes) -> Instance | None:
        """Take an instance in. When this returns it is on the disk, as it came.

        An instance that is there already with the same content is left; one with another content takes its place, and
        the earlier one is kept beside.

        Returns:
            What it is; None for what is no DICOM.

        Raises:
            InputError: when it is damaged, or lacks what it is filed by.
            OSError: when the disk is full or refuses.
        """
        if self._least_free and shutil.disk_usage(self.folder).free < self._least_free + len(content):
            raise OSError(errno.ENOSPC, "too little space is left on the disk")
        partial = self.folder / INCOMING / f"{_PARTIAL}{secrets.token_hex(8)}"
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            instance = identify(partial)
            if instance is None:
                return None
            with self._lock:
                self._file(partial, instance)
            return instance
        finally:
            partial.unlink(missing_ok=True)

    def _file(self, partial: Path, instance: Instance) -> None:
        folder = self.folder / INCOMING / instance.study
        target = folder / IMAGES / instance.file_name
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True)
            _sync(folder)
            _sync(folder.parent)
        before = self._instance(target)
        if before is not None and before.digest == instance.digest:
            return
        if before is not None:
            kept = folder / REPLACED / f"{instance.uid}-{before.digest[:12]}.dcm"
            kept.parent.mkdir(exist_ok=True)
            os.replace(target, kept)
        os.replace(partial, target)
        self._known[target] = instance
        _sync(target.parent)

    def incoming(self) -> list[str]:
        """The studies of which instances have come in."""
        return sorted(path.name for path in (self.folder / INCOMING).iterdir() if path.is_dir() and is_uid(path.name))

    def complete(self, study: str) -> Job | None:
        """Put a study into the queue, together with what came of it before.

        Returns:
            What waits now; None when no image of it is new, and nothing is to be done.

        Raises:
            EngineError: when the operating system refuses; the study is where it was.
        """
        source = self.folder / INCOMING / study
        try:
            with self._lock:
                return self._complete(study, source)
        except OSError as error:
            raise write_error(source, error) from error

    def _complete(self, study: str, source: Path) -> Job | None:
        came = [
            found for path in sorted((source / IMAGES).glob("*.dcm")) if (found := self._instance(path)) is not None
        ]
        earlier = self.jobs(study=study)
        held = {entry for job in earlier for entry in (*job.record.images.items(), *job.record.others.items())}
        record = Record(study, time.time())
        for job in earlier:
            record.images |= job.record.images
            record.others |= job.record.others
        for one in came:
            (record.images if one.is_image else record.others)[one.uid] = one.digest
        known = [one for one in came if (one.uid, one.digest) in held]
        if not came or (earlier and not any(one.is_image for one in came if one not in known)):
            self._nothing_new(study, source, known, [one for one in came if one not in known])
            return None
        for job in reversed(earlier):  # as one study again, without taking space twice
            for path in job.images.glob("*.dcm"):
                if not (source / IMAGES / path.name).exists():
                    _link(path, source / IMAGES / path.name)
        made = self._enter(source, QUEUE, record)
        for job in earlier:  # a part that could not be looked at needs nobody any more
            if job.state == QUARANTINE and not job.results.exists():
                job.record.note = "More of the study came later."
                job.save()
                self._move(job, DONE, job.name)
        return made

    def _nothing_new(self, study: str, source: Path, known: list[Instance], others: list[Instance]) -> None:
        """Keep what is no image and new, such as a report; what is held already goes."""
        for one in known:
            (source / IMAGES / one.file_name).unlink()
        if any(path.is_file() for path in source.rglob("*")):
            note = "No image is new; nothing was looked at."
            record = Record(study, time.time(), others={one.uid: one.digest for one in others}, note=note)
            self._enter(source, DONE, record)
        else:
            shutil.rmtree(source)
            self._forget(source)

    def _enter(self, source: Path, state: str, record: Record) -> Job:
        job = Job(source, record)
        job.save()
        made = digest_of({**record.images, **({} if record.images else record.others)})
        self._move(job, state, f"{record.study}-{made[:12]}")
        self._forget(source)
        return job

    def jobs(self, *states: str, study: str = "") -> list[Job]:
        """The studies in some folders, or in all but ``incoming``, in the order in which they were complete.

        What has no record, since somebody put it there, is left out; see `strangers`.

        Args:
            states: names of the folders.
            study: only what came of this study.
        """
        found = [
            Job(folder, record)
            for folder in self._folders(states or (QUEUE, SENDING, DONE, QUARANTINE))
            if folder.name.startswith(f"{study}-" if study else "") and (record := _record(folder)) is not None
        ]
        return sorted(found, key=lambda job: (job.record.received, job.name))

    def strangers(self) -> list[Path]:
        """Folders in ``queue`` and ``sending`` without a record that can be read."""
        return [folder for folder in self._folders((QUEUE, SENDING)) if _record(folder) is None]

    def move(self, job: Job, state: str) -> None:
        """Put a study into another folder, in one step.

        Raises:
            EngineError: when the operating system refuses; it is where it was.
        """
        try:
            with self._lock:
                self._move(job, state, job.name)
        except OSError as error:
            raise write_error(self.folder / state / job.name, error) from error

    def quarantine(self, job: Job, reason: EngineError, where: str = "") -> None:
        """Put a study aside, with why.

        Args:
            job: the study.
            reason: what happened, and what to do.
            where: the destination that it is about.

        Raises:
            EngineError: when the operating system refuses.
        """
        about = {
            "code": reason.code,
            "what": reason.what,
            "hint": reason.hint,
            "destination": where,
            "came_from": job.state,
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        write_text(job.folder / REASON, json.dumps(about, indent=2) + "\n")
        self.move(job, QUARANTINE)

    def again(self, job: Job) -> bool:
        """Forget why a study was in quarantine, when somebody has moved it back; whether it was."""
        if not (job.folder / REASON).exists():
            return False
        job.record.starts = job.record.tries = 0
        job.record.since = job.record.not_before = 0.0
        for name, delivery in job.record.deliveries.items():
            job.record.deliveries[name] = asdict(Delivery(sent=list(delivery.get("sent", ()))))
        job.save()
        (job.folder / REASON).unlink()
        return True

    def delete_old(self, days: float) -> list[str]:
        """Delete images and results of what has been done for so long; the record stays, by which it is known again."""
        deleted = []
        for job in self.jobs(DONE):
            age = time.time() - (job.folder / RECORD).stat().st_mtime
            inside = [job.folder / name for name in (IMAGES, REPLACED, RESULTS) if (job.folder / name).exists()]
            if inside and age > days * 86400:
                for folder in inside:
                    shutil.rmtree(folder, ignore_errors=True)
                deleted.append(job.name)
        return deleted

    def _move(self, job: Job, state: str, name: str) -> None:
        target = self.folder / state / name
        while target.exists():  # somebody moved it by hand before
            target = self.folder / state / f"{name}-{secrets.token_hex(3)}"
        os.rename(job.folder, target)
        _sync(target.parent)
        job.folder = target

    def _instance(self, path: Path) -> Instance | None:
        """What lies in ``incoming``; None for nothing, or what cannot be read any more."""
        if path not in self._known and path.is_file():
            with contextlib.suppress(InputError):
                found = identify(path)
                if found is not None:
                    self._known[path] = found
        return self._known.get(path)

    def _forget(self, folder: Path) -> None:
        self._known = {path: known for path, known in self._known.items() if folder not in path.parents}

    def _folders(self, states: Iterable[str]) -> Iterator[Path]:
        for state in states:
            for path in (self.folder / state).iterdir():
                if path.is_dir() and not path.name.startswith("."):
                    yield path


def digest_of(instances: dict[str, str]) -> str:
    """A digest of a set of instances, by UID and content."""
    return hashlib.sha256(json.dumps(sorted(instances.items())).encode()).hexdigest()


def _record(folder: Path) -> Record | None:
    try:
        return checked(Record, parse((folder / RECORD).read_bytes()), RECORD)
    except (OSError, ValueError, InputError, TypeError, AttributeError):
        return None


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _sync(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, where that can be asked for."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
