"""What a process settles before it imports anything large: its standard streams, and what signals do.

A closed stdout would give its number to the next file that is opened, and what a library prints would land in it. A
full or abandoned stdout is no fault of the program: results are files, and what cannot be printed is dropped. A slow
reader is waited for.

Needs the standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

BACKGROUND_NICENESS = 10
BELOW_NORMAL_PRIORITY_CLASS = 0x4000  # of Windows


class Tolerant(io.FileIO):
    """A descriptor to which writing always succeeds; what went wrong first is remembered, the rest dropped.

    Attributes:
        failure: the first error; None for none. A reader that has gone is none.
    """

    failure: OSError | None = None
    _gone = False

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._gone:
            return size
        try:
            while (written := super().write(data)) is None:  # whoever reads made it non-blocking, and it is full
                select.select([], [self], [])
        except OSError as error:
            self._gone = True
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
                self.failure = error
            return size
        return written


def take_streams() -> None:
    """Have three open standard descriptors, and streams that print any text and never fail. Once is enough."""
    if isinstance(_raw(sys.stdout), Tolerant):
        return
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is not None:
            with contextlib.suppress(OSError, ValueError):
                before.flush()
        raw = Tolerant(descriptor, "w", closefd=False)
        encoding = getattr(before, "encoding", None) or "utf-8"
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=raw.isatty() or descriptor == 2,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def has_current_folder() -> bool:
    """Whether there is a current folder; where it was removed, torch's MKL ends the process without a word."""
    try:
        os.getcwd()
    except OSError:
        sys.stderr.write("error: The current folder does not exist any more. Change to another one.\n")
        return False
    return True


def stream_failure() -> OSError | None:
    """Why something that was printed on stdout did not arrive; None when all did, or nobody wanted it."""
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    return raw.failure if isinstance(raw, Tolerant) else None


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def end_like_interrupt() -> None:
    """Let every polite request to end take the way of Ctrl-C, so that unfinished files go.

    What is ignored stays so, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        kind = getattr(signal, name, None)
        if kind is not None and signal.getsignal(kind) != signal.SIG_IGN:
            signal.signal(kind, signal.default_int_handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait until the body has ended: a few renames, or Ray's start, are not to be left half done."""
    if threading.current_thread() is not threading.main_thread():  # others are never interrupted
        yield
        return
    came: list[int] = []
    kinds = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {kind: handler for kind in kinds if (handler := signal.getsignal(kind)) not in (None, signal.SIG_IGN)}
    for kind in before:
        signal.signal(kind, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for kind in came[:1]:
            signal.raise_signal(kind)


def lower_priority() -> None:
    """Let other programs go first, as a background process should; where that is refused it goes on as it is."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import ctypes

            kernel = ctypes.windll.kernel32
            kernel.SetPriorityClass(kernel.GetCurrentProcess(), BELOW_NORMAL_PRIORITY_CLASS)
        else:
            os.nice(BACKGROUND_NICENESS)
