"""The worker's side of the pipes to Slicer: events out, the request to stop in, and everything else to the log.

Knows nothing of scans or models. Three dangers shaped it: anything may print (ITK, CUDA, a warning) and must
not end up among the event lines; Slicer may be gone at any moment, seen as the end of stdin or as a closed
stdout; and a run may hang in a long call, or in writing to a pipe that nobody empties, and must end anyway.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import Cancelled
from ..text import PrintableFormatter
from .protocol import GRACE_SECONDS, RUN_COMMAND, Event, ExitCode, Progress, encode

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.2
# After these a hard end comes whatever becomes of tidying: on a network drive that is gone that takes for ever.
TIDYING_SECONDS = 2.0
# Bytes of a command; one that names a folder may be longer. Of what is longer so much is shown.
LONGEST_LINE, LONGEST_RUN_LINE, SHOWN_OF_LINE = 4096, 1 << 20, 200


class Stop:
    """The request to end, wherever it comes from, and the hard end that follows if it is not honoured.

    Args:
        grace: seconds between the two.
        tidying: seconds that ``before_hard_end`` may take.

    Attributes:
        before_hard_end: called by a thread of its own; the end comes even if it fails or does not return.
    """

    def __init__(self, grace: float = GRACE_SECONDS, tidying: float = TIDYING_SECONDS) -> None:
        self._grace = grace
        self._tidying = tidying
        self._reason: str | None = None
        self._over = False
        self._lock = threading.RLock()  # re-entrant, because a signal may come while it is held
        self.before_hard_end: Callable[[], None] = lambda: None

    def request(self, reason: str) -> None:
        """Ask for the end. May be called from any thread, as often as one likes; the first reason counts."""
        with self._lock:
            if self._reason is not None or self._over:
                return
            self._reason = reason
        timer = threading.Timer(self._grace, self._end_hard)
        timer.daemon = True
        timer.start()
        log.info("to be stopped: %s", reason)  # after the timer: writing to the log may hang

    def check(self) -> None:
        """Raise ``Cancelled`` when the end was asked for."""
        if self._reason is not None and not self._over:
            raise Cancelled(f"The run was stopped: {self._reason}.")

    def too_late(self) -> None:
        """The run has come to its own end: from now on a request changes nothing, not even the exit code."""
        with self._lock:
            self._over = True

    def commit(self) -> None:
        """The point of no return: results take their places next, so that a request comes too late from now on.

        Raises:
            Cancelled: when the end was asked for before.
        """
        with self._lock:
            self.check()
            self.too_late()

    def _end_hard(self) -> None:
        with self._lock:  # held to the end, so that a run cannot be over, or commit itself, and be ended at once
            if self._over:
                return
            try:
                last = threading.Timer(self._tidying, os._exit, [ExitCode.CANCELLED])
                last.daemon = True
                last.start()
                self.before_hard_end()
            finally:
                os._exit(ExitCode.CANCELLED)


class EventLines:
    """Writes events to a descriptor, one line each. A reader that is gone is a request to stop."""

    def __init__(self, descriptor: int, stop: Stop) -> None:
        self._descriptor = descriptor
        self._stop = stop
        self._lock = threading.Lock()
        self._broken = False

    def send(self, event: Event) -> None:
        line = (encode(event) + "\n").encode("ascii")
        with self._lock:
            if self._broken:
                return
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError as error:  # EPIPE; on Windows EINVAL
                self._broken = True
                self._stop.request(f"nobody reads its output any more ({error.strerror})")


class Reports:
    """Progress as the worker tells it: at most five events a second, the first and last of each stage always.

    Every report looks for the request to stop, whether it is sent or not.
    """

    def __init__(self, lines: EventLines, stop: Stop, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._stop = stop
        self._clock = clock
        self._start = clock()
        self._sent_at = 0.0
        self._stage = ""
        self._held: Progress | None = None

    def report(self, stage: str, done: int, total: int, remaining: float | None = None) -> None:
        """Tell how far a stage is.

        Raises:
            Cancelled: when the end was asked for.
        """
        self._stop.check()
        elapsed = self._clock() - self._start
        event = Progress(stage, done, total, round(elapsed, 3), remaining)
        if stage != self._stage:
            self.flush()
        elif done < total and elapsed - self._sent_at < SECONDS_BETWEEN_REPORTS:
            self._held = event
            return
        self._stage, self._sent_at, self._held = stage, elapsed, None
        self._lines.send(event)

    def flush(self) -> None:
        """Send the event that was held back, if there is one."""
        if self._held is not None:
            self._lines.send(self._held)
            self._held = None


def take_over(descriptor: int, leads_to: int) -> int:
    """A private duplicate of a standard descriptor, which itself leads elsewhere from now on.

    For stdout, so that nothing else can write among the event lines; for stdin, so that no library or child
    process can wait for, or swallow, the lines meant for the worker. It is for good: what a C library holds
    in its buffer is printed only when the process exits.
    """
    sys.stdout.flush()
    own = os.dup(descriptor)
    os.dup2(leads_to, descriptor)
    return own


def listen(descriptor: int, heard: Callable[[str], None], ended: Callable[[str], None]) -> None:
    """Read lines until there are no more. Unbuffered: a thread that waits in ``sys.stdin`` would block the exit.

    Args:
        descriptor: of a pipe.
        heard: takes each line; of one that is longer than any command its beginning and an ellipsis.
        ended: takes the reason, once.
    """
    pending, too_long = bytearray(), False

    def take(part: bytes) -> None:
        nonlocal too_long
        if too_long:
            return
        pending.extend(part)
        longest = LONGEST_RUN_LINE if pending.startswith(RUN_COMMAND.encode()) else LONGEST_LINE
        if len(pending) > longest:
            del pending[SHOWN_OF_LINE:]
            too_long = True

    while True:
        try:
            received = os.read(descriptor, 1 << 16)
        except OSError as error:
            ended(f"its input cannot be read ({error.strerror})")
            return
        if not received:
            ended("its input ended")
            return
        *whole, rest = received.split(b"\n")
        for part in whole:
            take(part)
            line = pending.decode("utf-8", "replace").strip()
            if too_long:
                log.warning("a line of more than %d bytes on the input was dropped", LONGEST_LINE)
            heard(f"{line} …" if too_long else line)
            pending, too_long = bytearray(), False
        take(rest)


@contextlib.contextmanager
def signals_to(stop: Callable[[str], None]) -> Iterator[None]:
    """Termination, interrupt and hang-up as requests to stop, where signals may be asked for: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
    before = {kind: signal.signal(kind, lambda number, frame: stop("by a signal")) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextlib.contextmanager
def logging_to(log_file: Path) -> Iterator[int]:
    """Log to stderr and to a file; yields the file's descriptor, for whatever else is printed.

    Without a folder to write the file in it is stderr alone: the job cannot be read then either, and says so.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    descriptor = 2
    with contextlib.ExitStack() as at_end:
        try:
            file = at_end.enter_context(log_file.open("a", 1, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            sys.stderr.write(f"{log_file} cannot be written: {error.strerror}\n")
        else:
            handlers.append(logging.StreamHandler(file))
            descriptor = file.fileno()
            faulthandler.enable(file)  # a crash in a C library leaves its Python stack in the log
            at_end.callback(faulthandler.disable)
        root = logging.getLogger()
        at_end.callback(root.setLevel, root.level)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        at_end.callback(logging.captureWarnings, False)
        for handler in handlers:
            handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            root.addHandler(handler)
            at_end.callback(root.removeHandler, handler)
        yield descriptor
