"""When a training ends before its last step: a time limit, SIGTERM or Ctrl-C, always between two steps."""

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


def leave_signals_to_the_trainer(_: int) -> None:
    """A loader process outlives Ctrl-C and a group's SIGTERM: the trainer needs it for the step at hand and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
