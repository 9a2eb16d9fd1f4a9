"""A cohort's run: what is left to do, done by a pool, told as it goes.

The results are the state. A run that was killed at any moment is begun again by the same command: what is complete
stays, and the scan that was being done is done anew.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..detection.scan import ScanRequest
from ..errors import InputError
from ..text import counted
from .derivatives import Export, is_exported
from .state import differences, finished, results_folder
from .tasks import BAD_INPUT, FOR_ALL, PASSING, WORKER_DIED, Failure, Outcome, Task, failure_of

if TYPE_CHECKING:
    from .pool import Pool
    from .scans import CohortScan

MOST_TRIES = 3
MOST_DEATHS = 2
"""A scan that two workers died of is not given to a third."""
RETRY_SECONDS = 2.0
_POLL_SECONDS = 1.0
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        done, failed: scans of this run that have ended well, or not.
        total: that it had to do.
        elapsed: seconds since it began.
    """

    done: int
    failed: int
    total: int
    elapsed: float

    @property
    def per_minute(self) -> float | None:
        """Scans a minute so far."""
        return 60 * self.ended / self.elapsed if self.ended and self.elapsed > 0 else None

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest takes at this rate."""
        return self.elapsed / self.ended * (self.total - self.ended) if self.ended else None

    @property
    def ended(self) -> int:
        return self.done + self.failed


@dataclass(frozen=True)
class Failed:
    """A scan without a result.

    Attributes:
        name: of the scan.
        scan: its file or folder.
        failure: the last one.
        tries: how often it was begun.
    """

    name: str
    scan: Path
    failure: Failure
    tries: int


class Listener(Protocol):
    """Who is told how a run goes."""

    def begin(self, to_do: int, finished: int, workers: str) -> None:
        """How many scans there are to do, and how many have a result already."""
        ...

    def ended(self, task: Task, outcome: Outcome, now: Standing) -> None: ...

    def retry(self, task: Task, failure: Failure) -> None:
        """A try failed, and there is another."""
        ...

    def tick(self, now: Standing) -> None:
        """Time went by."""
        ...

    def warning(self, message: str) -> None: ...


@dataclass(frozen=True)
class Todo:
    """What a cohort needs.

    Attributes:
        tasks: to do.
        finished: names of the scans with a result.
        failed: scans that cannot be begun.
        changed: names of those whose result is of a scan that is no longer there as it was.
    """

    tasks: list[Task]
    finished: list[str]
    failed: list[Failed]
    changed: list[str]


def plan_tasks(
    scans: Sequence[CohortScan],
    output: Path,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    report: bool = True,
) -> Todo:
    """What is left to do.

    A scan whose bytes are others than those that its result was made of is done again. Results of other settings are
    replaced with ``overwrite`` only: a cohort of two settings would be none.

    Args:
        scans: of the cohort.
        output: its folder.
        settings: of the run, see ``state.settings_of``.
        overwrite: whether results of other settings, and of other commands, make room.
        report: whether a page is written of each scan that is done.

    Raises:
        InputError: when there are results of other settings that are to be kept.
    """
    todo = Todo([], [], [], [])
    others: list[tuple[str, list[str]]] = []
    for scan in scans:
        if scan.problem is not None:
            todo.failed.append(_failed(scan, scan.problem, 0))
            continue
        folder = results_folder(output, scan.name)
        export = None if scan.bids is None else Export(output, scan.bids)
        there = finished(folder)
        other = [] if there is None else differences(there.settings, settings)
        again = overwrite
        if there is not None and not other:
            try:
                same = there.is_of(_request(scan, folder, overwrite, report))
            except OSError:  # it cannot be read: the run says so
                same = False
            if same and (export is None or is_exported(folder, export)):
                todo.finished.append(scan.name)
                continue
            if same:
                todo.tasks.append(
                    Task(scan.name, _request(scan, folder, overwrite, report), _about(scan, settings), export, True)
                )
                continue
            todo.changed.append(scan.name)
            again = True
        if other:
            others.append((scan.name, other))
        todo.tasks.append(Task(scan.name, _request(scan, folder, again, report), _about(scan, settings), export))
    if others and not overwrite:
        name, other = others[0]
        raise InputError(
            f"{counted(len(others), 'result')} in {output} {'were' if len(others) > 1 else 'was'} made with other "
            f"settings: of {name} {'; '.join(other[:_NAMES_SHOWN])}.",
            "Choose another output folder, or say --overwrite to make them anew.",
        )
    return todo


def run_tasks(tasks: Sequence[Task], pool: Pool, listener: Listener, failed: list[Failed]) -> None:
    """Do the tasks.

    One that fails stops no other. What may pass, such as memory that ran out, is tried again at the end.

    Args:
        tasks: to do.
        pool: who does them.
        listener: is told how it goes.
        failed: takes the scans without a result, also when the run is stopped.

    Raises:
        Cancelled: when the user stopped it.
        EngineError: for a failure that every other scan would meet too, such as a full disk.
    """
    start = time.monotonic()
    done, failed_before = 0, len(failed)
    order = itertools.count()
    waiting = [(0.0, next(order), task) for task in tasks]  # each with the time before which it is not begun
    kinds: dict[str, list[str]] = {}

    def standing() -> Standing:
        return Standing(done, len(failed) - failed_before, len(tasks), time.monotonic() - start)

    while waiting or not pool.is_idle:
        now = time.monotonic() - start
        while waiting and pool.has_room and waiting[0][0] <= now:
            pool.submit(heapq.heappop(waiting)[2])
        ended = pool.wait(_POLL_SECONDS)
        for task, outcome in ended:
            if outcome.failure is None:
                done += 1
                listener.ended(task, outcome, standing())
                continue
            kinds.setdefault(task.name, []).append(outcome.failure.kind)
            if outcome.failure.kind in FOR_ALL:
                raise outcome.failure.as_error("What is finished stays; the same command goes on there.")
            if _again(kinds[task.name]):
                listener.retry(task, outcome.failure)
                later = time.monotonic() - start + RETRY_SECONDS * len(kinds[task.name])
                heapq.heappush(waiting, (later, next(order), task))
                continue
            failed.append(Failed(task.name, task.request.scan, outcome.failure, len(kinds[task.name])))
            listener.ended(task, outcome, standing())
        if not ended:
            listener.tick(standing())
            if waiting and pool.is_idle:
                time.sleep(0.1)


def _again(kinds: Sequence[str]) -> bool:
    """Whether another try may succeed, after failures of these kinds."""
    return kinds[-1] in PASSING and len(kinds) < MOST_TRIES and kinds.count(WORKER_DIED) < MOST_DEATHS


def _failed(scan: CohortScan, error: InputError, tries: int) -> Failed:
    failure = failure_of(error)
    return Failed(scan.name, scan.scan, Failure(BAD_INPUT, failure.what, failure.hint), tries)


def _request(scan: CohortScan, folder: Path, overwrite: bool, report: bool) -> ScanRequest:
    return ScanRequest(
        scan.scan,
        folder,
        brain=scan.brain,
        series=scan.series,
        frame=scan.frame,
        title=scan.name,
        overwrite=overwrite,
        channels=scan.channels,
        report=report,
    )


def _about(scan: CohortScan, settings: Mapping[str, Any]) -> dict[str, Any]:
    source = {} if scan.bids is None else {"bids": list(scan.bids.files)}
    return {"name": scan.name, "patient": scan.patient, "session": scan.session, "settings": dict(settings), **source}
