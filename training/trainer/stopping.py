"""When a training ends before its last step: a time limit, SIGTERM or Ctrl-C, always between two steps.

And the other way to bound one: a time in which all of it has to happen, learning rate and all.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class TimeLimit:
    """Ends a training cleanly after some minutes, or when the process is told to stop."""

    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def stop(self, *_: object) -> None:
        self.stopped = True

    @contextmanager
    def obeying_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop the training after the step at hand, however often they come.

        ``torchrun`` passes on a Ctrl-C that the terminal has sent to every process already, so a second one is no
        sign of impatience.
        """
        previous = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @property
    def reached(self) -> bool:
        return self.stopped or (self.minutes is not None and time.monotonic() - self.started > 60.0 * self.minutes)


class TimeBudget:
    """Minutes in which a training has to come to its end, whatever a step takes there.

    Args:
        minutes: from ``started`` on; without them steps alone count.
        started: when they began to run (``time.monotonic``), which may be before there was a trainer; by default now.
    """

    def __init__(self, minutes: float | None = None, started: float | None = None) -> None:
        self.minutes, self.started = minutes, time.monotonic() if started is None else started
        self.before = 0.0
        self._first = self.started

    def begin(self, before: float) -> None:
        """The first step of this session comes next; a share ``before`` of the training is done."""
        self.before, self._first = before, time.monotonic()

    @property
    def spent(self) -> float:
        """Share of the training that is over by the clock, from 0 to 1: what the session's minutes leave of it."""
        if self.minutes is None:
            return self.before
        length = self.started + 60.0 * self.minutes - self._first
        gone = (time.monotonic() - self._first) / length if length > 0 else 1.0
        return min(1.0, self.before + (1.0 - self.before) * gone)


def leave_signals_to_the_trainer(_: int) -> None:
    """A loader process outlives Ctrl-C and a group's SIGTERM: the trainer needs it for the step at hand and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
