"""Several detections, one at a time, in the order of the requests.

One at a time because each takes all cores or most of the GPU's memory: two at once would both be slower, or fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ..translation import tr as _
from .workerjob import DetectionJob, Outcome, State

_numbers = count(1)


@dataclass
class Entry:
    """A detection in the queue.

    Attributes:
        title: what the user sees, the scan's name.
        job: runs it.
        request: what to run, for whoever loads the results.
        number: unique, from 1.
        state: the job's, except that results which could not be loaded make it failed.
        message: what happened and what to do, once it has ended otherwise than well.
        loadFailed: whether the job has ended well and its results could not be loaded.
        dismissed: whether it is to be listed no more once it has ended.
    """

    title: str
    job: DetectionJob
    request: Any = None
    number: int = field(default_factory=lambda: next(_numbers))
    message: str = ""
    loadFailed: bool = False
    dismissed: bool = False

    @property
    def state(self) -> State:
        return State.FAILED if self.loadFailed else self.job.state


class JobQueue:
    """Runs entries one after another.

    >>> queue = JobQueue()  # doctest: +SKIP
    >>> queue.onFinished = lambda entry, outcome: load(entry, outcome)  # doctest: +SKIP
    >>> queue.add(Entry("Patient 1", job))  # doctest: +SKIP
    >>> while queue.isBusy:  # doctest: +SKIP
    ...     queue.tick()

    Attributes:
        entries: all that are listed, in order; those that have ended stay until ``clearFinished``.
        onChanged: called when anything that is shown may have changed.
        onFinished: takes the entry and its outcome, before its working files are removed and before the next starts.
            An exception from it makes the entry failed, with the exception's text.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.onChanged: Callable[[], None] = lambda: None
        self.onFinished: Callable[[Entry, Outcome], None] = lambda entry, outcome: None

    def add(self, entry: Entry) -> None:
        """Put an entry at the end; it starts at once if nothing runs."""
        self.entries.append(entry)
        entry.job.onChanged = lambda: self.onChanged()  # looked up then: it may be set after this
        entry.job.onFinished = lambda outcome: self._finished(entry, outcome)
        self._startNext()
        self.onChanged()

    def tick(self) -> None:
        """To be called a few times a second."""
        for entry in self._in(State.WAITING):
            _ = entry.job.isWritten
        if self.current is not None:
            self.current.job.tick()

    @property
    def current(self) -> Entry | None:
        """The entry that runs."""
        return next(self._in(State.RUNNING, State.CANCELLING), None)

    @property
    def isBusy(self) -> bool:
        """Whether an entry runs or waits."""
        return any(not entry.state.isOver for entry in self.entries)

    def cancel(self, entry: Entry, why: str = "") -> None:
        """Stop one entry, for a reason that its message then gives; the next one follows."""
        entry.job.cancel(why)

    def cancelAll(self) -> None:
        """Stop the one that runs, and drop those that wait."""
        for entry in reversed(list(self.entries)):  # from the end, so that none starts in between
            entry.job.cancel()

    def dismissAll(self) -> None:
        """Stop everything, and list none of it any more once it has ended."""
        for entry in self.entries:
            entry.dismissed = True
        self.cancelAll()
        self.entries = [entry for entry in self.entries if not entry.state.isOver]
        self.onChanged()

    def killAll(self) -> None:
        """End everything at once, as when Slicer closes or the module is reloaded. No outcome is reported."""
        self.onFinished = lambda entry, outcome: None
        for entry in reversed(list(self.entries)):
            if entry.state is State.WAITING:
                entry.job.cancel()
            else:
                entry.job.kill()
            entry.job.workspace.remove()
        self.entries.clear()

    def clearFinished(self) -> None:
        """Take those that have ended off the list."""
        self.entries = [entry for entry in self.entries if not entry.state.isOver]
        self.onChanged()

    def _finished(self, entry: Entry, outcome: Outcome) -> None:
        entry.message = f"{outcome.what} {outcome.hint}".strip()
        try:
            self.onFinished(entry, outcome)
        except Exception as error:  # noqa: BLE001 - the queue goes on whatever a result does to its loader
            entry.loadFailed = True
            entry.message = _("The results could not be loaded: {reason}").format(reason=error)
        finally:
            entry.job.workspace.remove()
            if entry.dismissed and entry in self.entries:
                self.entries.remove(entry)
            self.onChanged()
            self._startNext()

    def _startNext(self) -> None:
        if self.current is None and (waiting := next(self._in(State.WAITING), None)) is not None:
            waiting.job.start()

    def _in(self, *states: State) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.job.state in states)
