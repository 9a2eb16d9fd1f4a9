"""Who does the tasks: this process, one after the other, or workers (``actors``); both look alike to a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .tasks import Outcome, Runner, Task

Done = tuple[Task, Outcome]


class Pool(Protocol):
    """Does tasks.

    Attributes:
        title: what it is, in words.
    """

    title: str

    @property
    def has_room(self) -> bool:
        """Whether another task would be begun at once."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done."""
        ...

    def submit(self, task: Task) -> None:
        """Begin a task; there must be room."""
        ...

    def wait(self, seconds: float) -> Sequence[Done]:
        """What has ended by now, at the latest after so many seconds.

        Raises:
            Cancelled: when the user stopped it.
            EngineError: when no worker can be had.
        """
        ...

    def close(self) -> None:
        """End all that is being done, half-done results with it."""
        ...


class ThisProcess:
    """One task after the other, here.

    Args:
        make: makes what does them; called for the first one.
    """

    title = "this process"

    def __init__(self, make: Callable[[], Runner]) -> None:
        self._make = make
        self._run: Runner | None = None
        self._task: Task | None = None

    @property
    def has_room(self) -> bool:
        return self._task is None

    @property
    def is_idle(self) -> bool:
        return self._task is None

    def submit(self, task: Task) -> None:
        self._task = task

    def wait(self, seconds: float) -> Sequence[Done]:
        task, self._task = self._task, None
        if task is None:
            return ()
        if self._run is None:
            self._run = self._make()
        return [(task, self._run(task))]

    def close(self) -> None:
        self._task = None
