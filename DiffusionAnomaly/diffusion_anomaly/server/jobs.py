"""Jobs of all users: what each has told so far, whose turn is next, and when one is over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..client.wire import QUEUED, Order
from ..worker.protocol import Failure, encode
from .limits import Limits
from .spool import TIMES_THE_SCAN, Spool, remove
from .tokens import User

log = logging.getLogger(__name__)

_REMOVALS = 4  # folders that are deleted at a time when nobody waits for it


class State(Enum):
    """What a job is doing."""

    RECEIVING = "receiving"
    WAITING = "waiting"
    RUNNING = "running"
    OVER = "over"


@dataclass(frozen=True)
class ResultFile:
    """A file that can be fetched."""

    path: Path
    size: int
    sha256: str


class TooMany(Exception):  # noqa: N818 - an answer, not a fault
    """A user, or all of them, have as many jobs as there may be."""


class Job:
    """One detection of one user.

    Args:
        name: that the server has made.
        user: whose it is.
        order: what was ordered.
        folder: of the job alone.
        model: folder of the package.

    Attributes:
        state: see ``State``.
        received: numbers of the inputs that are there.
        arriving: numbers of those on their way.
        files: results by kind, once it is done.
        failure: why there will be none; None as long as there may.
        cancelled: set when it is to end.
        changed: is set and replaced with every event.
    """

    def __init__(self, name: str, user: User, order: Order, folder: Path, model: str) -> None:
        self.name, self.user, self.order, self.folder, self.model = name, user, order, folder, model
        self.state = State.RECEIVING
        self.since = time.monotonic()
        self.received: set[int] = set()
        self.arriving: set[int] = set()
        self.files: dict[str, ResultFile] = {}
        self.failure: Failure | None = None
        self.cancelled = asyncio.Event()
        self.changed = asyncio.Event()
        self._events: list[tuple[int, str, str]] = []  # number, what it takes the place of, line
        self._last = 0

    def input_path(self, number: int) -> Path:
        """Where an input lies."""
        return self.folder / f"input-{number}.mha"

    def move(self, state: State) -> None:
        """Note that it does something else now."""
        self.state, self.since = state, time.monotonic()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Add an event. Of those that say how far something is, the newest alone is kept."""
        replaces = f"{event['event']} {event.get('stage', '')}" if event["event"] in ("progress", QUEUED) else ""
        if replaces:
            self._events = [entry for entry in self._events if entry[1] != replaces]
        self._last += 1
        self._events.append((self._last, replaces, json.dumps(event, allow_nan=False)))
        old, self.changed = self.changed, asyncio.Event()
        old.set()

    def fail(self, code: str, what: str, hint: str = "") -> None:
        """The end without a result."""
        if self.state is not State.OVER:
            self.failure = Failure(code, what, hint)
            self.tell(json.loads(encode(self.failure)))
            self.move(State.OVER)

    def events_after(self, number: int) -> list[tuple[int, str]]:
        """What was told since, with its numbers."""
        return [(entry, line) for entry, _, line in self._events if entry > number]


class Board:
    """All jobs, and the queue in front of the slots. What it does on the disk is done in threads.

    Whose turn it is: the user with the fewest jobs running, of these the one whose last turn is longest ago; of one
    user's jobs the oldest.

    Args:
        spool: where folders of jobs are made.
        limits: how many there may be, and for how long.
    """

    def __init__(self, spool: Spool, limits: Limits) -> None:
        self._spool, self._limits = spool, limits
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[str, deque[Job]] = {}  # by user's digest
        self._running: Counter[str] = Counter()
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._has_work = asyncio.Condition()
        # Of their own, or many slow ones would keep the other threads from whoever sends voxels.
        self._removals = ThreadPoolExecutor(_REMOVALS, "removal")

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def of(self, user: User, name: str) -> Job | None:
        """A user's job; another's is as if it were not there."""
        job = self._jobs.get(name)
        return job if job is not None and job.user == user else None

    async def open(self, user: User, order: Order, model: str) -> Job:
        """A new job, whose voxels are still to come. It is over already if it was dropped while its folder was made.

        Raises:
            TooMany: when there are as many as there may be.
            OSError: when there is no room for it, or its folder cannot be made.
        """
        free = await asyncio.to_thread(self._spool.free)
        # Nothing is awaited until the job has its place: each counts those before it, and none waits for another.
        of_user = sum(job.user == user for job in self)
        if of_user >= self._limits.jobs_a_user or len(self._jobs) >= self._limits.jobs:
            raise TooMany
        to_come = sum(other.order.bytes for other in self if other.state is not State.OVER)
        if free < TIMES_THE_SCAN * (to_come + order.bytes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        name, folder = self._spool.new_job()
        self._jobs[name] = job = Job(name, user, order, folder, model)
        try:
            await asyncio.to_thread(folder.mkdir, 0o700)
        except BaseException:
            self._jobs.pop(name, None)
            raise
        if name not in self._jobs:  # dropped meanwhile
            await asyncio.to_thread(remove, folder)
        return job

    async def queue(self, job: Job) -> None:
        """Everything is there: let it wait for a slot."""
        job.move(State.WAITING)
        async with self._has_work:
            if job.state is not State.WAITING:  # dropped meanwhile
                return
            self._waiting.setdefault(job.user.digest, deque()).append(job)
            self._tell_places()
            self._has_work.notify()

    async def next(self) -> Job:
        """The job whose turn it is, when there is one; never one that is over."""
        async with self._has_work:
            while True:
                await self._has_work.wait_for(lambda: bool(self._waiting))
                digest = self._next_user(self._running, self._turns)
                job = self._take(digest)
                if job.state is not State.OVER:  # as all are when the server ends
                    break
            self._turn += 1
            self._turns[digest] = self._turn
            self._running[digest] += 1
            job.move(State.RUNNING)
            self._tell_places()
            return job

    async def ended(self, job: Job) -> None:
        """A slot is done with it; what it was made of is not needed any more."""
        self._running[job.user.digest] -= 1
        self._running += Counter()  # without zeros
        if job.name not in self._jobs or not job.files:
            await asyncio.to_thread(remove, job.folder)
        else:
            await asyncio.to_thread(_remove_inputs, job)

    async def fail(self, job: Job, code: str, what: str, hint: str = "") -> None:
        """End a job whose voxels do not come to lie here; it stays known, so that its user hears why."""
        job.fail(code, what, hint)
        await asyncio.to_thread(remove, job.folder)

    async def drop(self, job: Job, code: str, what: str, hint: str = "") -> None:
        """Forget a job and delete what is there of it; a slot that has it ends it first."""
        if self._forget(job, code, what, hint):
            await asyncio.to_thread(remove, job.folder)

    def _drop_soon(self, job: Job, code: str, what: str, hint: str = "") -> None:
        """As ``drop``, without waiting until everything is deleted."""
        if self._forget(job, code, what, hint):
            self._removals.submit(remove, job.folder)

    def _forget(self, job: Job, code: str, what: str, hint: str) -> bool:
        """End a job, and take it off the board; whether its folder is to be deleted, which else a slot does."""
        if job.name not in self._jobs:
            return False
        was = job.state
        job.cancelled.set()
        job.fail(code, what, hint)
        self._jobs.pop(job.name, None)
        waiting = self._waiting.get(job.user.digest)
        if waiting is not None and job in waiting:
            waiting.remove(job)
            if not waiting:
                del self._waiting[job.user.digest]
            self._tell_places()
        return was is not State.RUNNING

    def close(self) -> None:
        """The server ends, and with it all jobs. Their folders go with the spool."""
        for job in self:
            job.fail("cancelled", "The server was stopped.", "Try again when it runs again.")

    def sweep(self, knows: Callable[[User], bool]) -> None:
        """Drop what nobody may or will ask for any more. It waits for nothing: folders are deleted by and by.

        Args:
            knows: whether a user's token is still good.
        """
        now, limits = time.monotonic(), self._limits
        for job in self:
            age = now - job.since
            if not knows(job.user):
                log.info("job %s dropped: the token of %s was revoked", job.name, job.user.name)
                self._drop_soon(job, "cancelled", "The token was revoked.", "Ask for another one.")
            elif job.state is State.RECEIVING and age > limits.upload_seconds:
                log.info("job %s dropped: not all of it came", job.name)
                self._drop_soon(job, "bad_input", "The scan did not arrive in time.", "Send it again.")
            elif job.state is State.RUNNING and age > limits.job_seconds:
                log.info("job %s dropped: it takes too long", job.name)
                self._drop_soon(
                    job,
                    "bad_input",
                    f"The detection took longer than the {limits.job_seconds / 60:g} minutes that this server allows.",
                    "Take another method or fewer steps.",
                )
            elif job.state is State.OVER and age > limits.keep_seconds:
                log.info("job %s dropped: nobody took its results", job.name)
                self._drop_soon(job, "cancelled", "")

    def _next_user(self, running: Mapping[str, int], turns: Mapping[str, int]) -> str:
        return min(self._waiting, key=lambda digest: (running.get(digest, 0), turns.get(digest, 0)))

    def _take(self, digest: str) -> Job:
        waiting = self._waiting[digest]
        job = waiting.popleft()
        if not waiting:
            del self._waiting[digest]
        return job

    def _tell_places(self) -> None:
        """Tell each that waits how many go first, as far as that can be known."""
        lengths = {digest: len(waiting) for digest, waiting in self._waiting.items()}
        for digest, waiting in self._waiting.items():
            for place, job in enumerate(waiting):
                others = sum(min(length, place + 1) for other, length in lengths.items() if other != digest)
                job.tell({"event": QUEUED, "ahead": place + others})


def _remove_inputs(job: Job) -> None:
    for number in job.received:
        with contextlib.suppress(OSError):  # goes with the folder; a slot must not end for it
            job.input_path(number).unlink()
