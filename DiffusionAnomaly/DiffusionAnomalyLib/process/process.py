"""A background process as the rest of the library sees it, and the one that needs no Qt.

The job is given its process, so that the same code runs with Slicer's event loop (``qtprocess``), in a script that has
none, and in tests. What a process says arrives through callbacks in the thread of the owner, never in another.

``PythonSlicer`` is a launcher: the Python that works is its child. Killing the launcher alone leaves that child behind
with the GPU's memory in its hands, so that a process is ended together with everything it has started.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

# A child that outlives its parent may hold the pipe open for ever; what it still says is then of no interest.
SECONDS_FOR_LAST_WORDS = 1.0

# A process that was killed holds its files until it is gone; on Windows they cannot be deleted before.
SECONDS_TO_DIE = 2.0


class WorkerProcess(Protocol):
    """A process that can be written to and read from, and that ends for certain when it is told to.

    Attributes:
        onOutput, onErrorOutput: take bytes as they come, cut anywhere.
        onFinished: takes the exit code, or None when the process crashed or was killed; called once, last.
    """

    onOutput: Callable[[bytes], None]
    onErrorOutput: Callable[[bytes], None]
    onFinished: Callable[[int | None], None]

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            environment: all of its variables.
            folder: its working directory, in which only files of ours lie: ``python -m`` imports from there first.

        Raises:
            OSError: when the program is not there or may not be run.
        """
        ...

    def write(self, data: bytes) -> None:
        """Write to its standard input; nothing happens when nobody reads it any more."""
        ...

    def kill(self) -> None:
        """End it and everything it has started. ``onFinished`` comes before this returns, or soon after."""
        ...

    def poll(self) -> None:
        """Deliver what has come since the last time; nothing to do where an event loop delivers."""
        ...

    def isRunning(self) -> bool:
        """Whether it was started and ``onFinished`` has not been called."""
        ...


class OwnedProcess(WorkerProcess, Protocol):
    """A process that may also be idle, and then ends when there is nothing more to read."""

    def end(self, seconds: float) -> None:
        """Close its standard input, wait so long for its end, and then ``kill`` it."""
        ...


class PipeProcess:
    """An ``OwnedProcess`` of Python's own: threads read, and ``poll`` delivers.

    >>> said = []
    >>> process = PipeProcess()
    >>> process.onOutput = said.append
    >>> process.start([sys.executable, "-c", "print('hello')"], os.environ, folder)  # doctest: +SKIP
    >>> while process.isRunning():  # doctest: +SKIP
    ...     process.poll()
    """

    def __init__(self) -> None:
        self.onOutput: Callable[[bytes], None] = lambda data: None
        self.onErrorOutput: Callable[[bytes], None] = lambda data: None
        self.onFinished: Callable[[int | None], None] = lambda code: None
        self._process: subprocess.Popen[bytes] | None = None
        self._received: queue.SimpleQueue[tuple[bool, bytes]] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        self._endedAt: float | None = None
        self._running = False

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        hidden = subprocess.CREATE_NO_WINDOW if os.name == "nt" else 0  # type: ignore[attr-defined]
        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            creationflags=hidden,
        )
        self._running = True
        for isError, pipe in ((False, self._process.stdout), (True, self._process.stderr)):
            reader = threading.Thread(target=self._read, args=(pipe, isError), daemon=True)
            reader.start()
            self._readers.append(reader)

    @property
    def pid(self) -> int:
        """The process's id; 0 before the start."""
        return self._process.pid if self._process else 0

    def write(self, data: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended; onFinished will say so
                self._process.stdin.write(data)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            killTree(self._process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(SECONDS_TO_DIE)
        end = time.monotonic() + SECONDS_TO_DIE
        while self._running and time.monotonic() < end:
            self.poll()
            time.sleep(0.005)

    def end(self, seconds: float) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what was still to be written has no reader
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self.kill()

    def poll(self) -> None:
        if self._process is None or not self._running:
            return
        ended = self._process.poll() is not None
        if ended and self._endedAt is None:
            self._endedAt = time.monotonic()
        allSaid = not any(reader.is_alive() for reader in self._readers)
        while not self._received.empty():
            isError, data = self._received.get()
            (self.onErrorOutput if isError else self.onOutput)(data)
        late = self._endedAt is not None and time.monotonic() - self._endedAt > SECONDS_FOR_LAST_WORDS
        if ended and (allSaid or late):
            self._finish(closeOutput=allSaid)

    def isRunning(self) -> bool:
        return self._running

    def _finish(self, closeOutput: bool) -> None:
        if self._process is None or not self._running:  # killed by a callback of its own last words
            return
        self._running = False
        for pipe in (self._process.stdin, *((self._process.stdout, self._process.stderr) if closeOutput else ())):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written has no reader
                    pipe.close()
        code = self._process.returncode
        self.onFinished(code if code >= 0 else None)  # negative: ended by a signal

    def _read(self, pipe: IO[bytes], isError: bool) -> None:
        # ValueError: closed under the reader.
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(pipe.fileno(), 65536):
                self._received.put((isError, data))


def killTree(pid: int) -> None:
    """End a process and all of its descendants at once. Those that have ended already are no error."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False)
        return
    # Stopped first and from the top, so that none of them starts another while the list is walked.
    tree = [pid]
    for member in tree:
        _send(member, signal.SIGSTOP)
        tree.extend(_children().get(member, []))
    for member in reversed(tree):
        _send(member, signal.SIGKILL)


def childrenOf(pid: int) -> list[int]:
    """The processes that a process has started and that have not been waited for."""
    return _children().get(pid, [])


def descendants(pid: int) -> list[int]:
    """The children of a process, their children and so on; parents come before their children."""
    children = _children()
    found = list(children.get(pid, []))
    for member in found:
        found.extend(children.get(member, []))
    return found


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, number)


def _children() -> dict[int, list[int]]:
    """Children of every process, by the parent's id."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in _fromProc() if Path("/proc/self/stat").exists() else _fromListing():
        children[parent].append(pid)
    return children


def _fromProc() -> list[tuple[int, int]]:
    pairs = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name in parentheses may hold blanks and parentheses itself; the parent is the second field after it.
            parent = status.read_text(errors="replace").rpartition(")")[2].split()[1]
            pairs.append((int(status.parent.name), int(parent)))
    return pairs


def _fromListing() -> list[tuple[int, int]]:
    command = ["ps", "-A", "-o", "pid=,ppid="]
    if sys.platform == "win32":
        rows = 'Get-CimInstance Win32_Process | ForEach-Object { "$($_.ProcessId) $($_.ParentProcessId)" }'
        command = ["powershell", "-NoProfile", "-NonInteractive", "-Command", rows]
    hidden = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
    done = subprocess.run(command, capture_output=True, text=True, check=False, creationflags=hidden)
    listing = done.stdout
    rows = [line.split() for line in listing.splitlines()]
    return [(int(row[0]), int(row[1])) for row in rows if len(row) == 2]
