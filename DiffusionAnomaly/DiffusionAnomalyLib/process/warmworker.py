"""One process for all jobs: what it has imported and loaded is there when the next job comes.

Importing torch and loading a model takes longer than many a detection, so that the process stays after a job. To a job
its ``Turn`` looks like a process of its own: it is started, written to, killed, and ends with an exit code. What only
the real process can do is done to it: a job that does not stop when asked takes the process with it, and the next job
gets a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.worker.protocol import GRACE_SECONDS, RELEASE_LINE, Finished, decode, run_line

from .environment import MODULE_FOLDER
from .process import OwnedProcess
from .workerjob import LONGEST_LINE

SERVE = "--serve"


class WarmWorker:
    """Owns the process that serves, and lets one job after the other have it.

    A process is started when a job comes and there is none: at first, after a crash or an end by force, after
    ``renew``, and when the job asks for another command or environment than the process was started with.

    >>> worker = WarmWorker(PipeProcess)  # doctest: +SKIP
    >>> for workspace in workspaces:  # doctest: +SKIP
    ...     finish(DetectionJob(workspace, worker.turn(), workerCommand(), workerEnvironment()))
    >>> worker.shutdown()  # doctest: +SKIP

    Args:
        makeProcess: gives a new process, not started yet.
        folder: its working directory. One that stays and holds only files of ours: a job's folder goes with the job.
    """

    def __init__(self, makeProcess: Callable[[], OwnedProcess], folder: Path = MODULE_FOLDER) -> None:
        self._makeProcess = makeProcess
        self._folder = folder
        self._process: OwnedProcess | None = None
        self._startedWith: tuple[list[str], dict[str, str]] = ([], {})
        self._turn: Turn | None = None
        self._pending = b""
        self._outdated = False

    def turn(self) -> Turn:
        """What a job takes for its process."""
        return Turn(self)

    @property
    def isRunning(self) -> bool:
        """Whether there is a process, at work or idle."""
        return self._process is not None

    def release(self) -> None:
        """Let the process give model and brain network back, and with them the GPU's memory; it stays."""
        if self._process is not None:
            self._process.write(f"{RELEASE_LINE}\n".encode("ascii"))

    def renew(self) -> None:
        """What the process has imported is out of date: it ends now, or with the job that has it."""
        if self._turn is None:
            self.shutdown()
        else:
            self._outdated = True

    def shutdown(self, seconds: float = GRACE_SECONDS) -> None:
        """End the process, and the job that has it.

        Args:
            seconds: to let it end by itself, which an idle one does at once.
        """
        if self._turn is not None:
            self._turn.mayBeRepeated = False
        if (process := self._process) is not None:
            process.end(seconds)
            self._ended(process, None)  # if it has not said so itself

    def _begin(self, turn: Turn, command: list[str], environment: dict[str, str], job: Path) -> None:
        if self._turn is not None:
            raise RuntimeError("A job has the process already.")
        if self._process is not None and self._startedWith != (command, environment):
            self.shutdown()
        turn.job = job
        turn.mayBeRepeated = self._process is not None
        if self._process is None:
            self._start(command, environment)
        self._hand(turn)

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        process = self._makeProcess()
        process.onOutput = lambda data: self._hear(process, data)
        process.onErrorOutput = lambda data: self._hearErrors(process, data)
        process.onFinished = lambda code: self._ended(process, code)
        process.start([*command, SERVE], environment, self._folder)
        self._process, self._startedWith = process, (command, environment)
        self._pending, self._outdated = b"", False

    def _hand(self, turn: Turn) -> None:
        self._turn = turn
        if self._process is not None:
            self._process.write(f"{run_line(turn.job)}\n".encode("ascii"))

    def _write(self, turn: Turn, data: bytes) -> None:
        if turn is self._turn and self._process is not None:
            turn.mayBeRepeated = False
            self._process.write(data)

    def _kill(self, turn: Turn) -> None:
        if turn is self._turn and self._process is not None:
            turn.mayBeRepeated = False
            self._process.kill()

    def _poll(self, turn: Turn) -> None:
        if turn is not self._turn or self._process is None:
            return
        # A turn ends at the poll after it was said to be over: its last lines on the other pipe have come by then.
        code = turn.exitCode
        self._process.poll()
        if code is not None and turn is self._turn:
            self._turn = None
            if self._outdated:
                self.shutdown()
            turn.onFinished(code)

    def _hear(self, process: OwnedProcess, data: bytes) -> None:
        turn = self._turn
        if process is not self._process or turn is None or turn.exitCode is not None:
            return  # between two jobs nothing is said that belongs to one
        turn.mayBeRepeated = False
        *lines, self._pending = (self._pending + data).split(b"\n")
        heard = b""
        for line in lines:
            turn.exitCode = _exitCodeIn(line)
            if turn.exitCode is not None:
                self._pending = b""
                break
            heard += line + b"\n"
        if len(self._pending) > LONGEST_LINE:  # no event; the job cuts it short
            heard, self._pending = heard + self._pending, b""
        if heard:
            turn.onOutput(heard)

    def _hearErrors(self, process: OwnedProcess, data: bytes) -> None:
        if process is self._process and self._turn is not None:
            self._turn.onErrorOutput(data)

    def _ended(self, process: OwnedProcess, code: int | None) -> None:
        if process is not self._process:
            return
        turn, self._turn = self._turn, None
        rest, self._pending = self._pending, b""
        self._process = None
        if turn is None:
            return
        if turn.mayBeRepeated:  # it ended while idle, or on the way to the job: the job is not to blame
            turn.mayBeRepeated = False
            with contextlib.suppress(OSError):
                self._start(*self._startedWith)
                self._hand(turn)
                return
        if rest:
            turn.onOutput(rest)
        turn.onFinished(code if turn.exitCode is None else turn.exitCode)


class Turn:
    """A ``WorkerProcess`` for one job: the shared process for as long as that job has it.

    Attributes:
        job: the job's folder.
        exitCode: what the process said of the job's end; None until then.
        mayBeRepeated: whether the job can be handed to a new process if this one ends: nothing has come of it yet, and
            nobody wants it to end.
    """

    def __init__(self, worker: WarmWorker) -> None:
        self.onOutput: Callable[[bytes], None] = lambda data: None
        self.onErrorOutput: Callable[[bytes], None] = lambda data: None
        self.onFinished: Callable[[int | None], None] = lambda code: None
        self.job = Path()
        self.exitCode: int | None = None
        self.mayBeRepeated = False
        self._worker = worker

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Hand the job over.

        Args:
            command: as for a process of that one job: the last argument is the job's folder.
            environment: all of the process's variables.
            folder: not used; the process has a working directory of its own.

        Raises:
            OSError: when a process is needed and cannot be started.
        """
        *program, job = command
        self._worker._begin(self, program, dict(environment), Path(job))

    def write(self, data: bytes) -> None:
        self._worker._write(self, data)

    def kill(self) -> None:
        self._worker._kill(self)

    def poll(self) -> None:
        self._worker._poll(self)

    def isRunning(self) -> bool:
        return self._worker._turn is self


def _exitCodeIn(line: bytes) -> int | None:
    """The exit code in a line that says that the job has ended; None in any other line."""
    if Finished.event.encode("ascii") not in line:
        return None
    try:
        event = decode(line)
    except InputError:
        return None
    return event.exit_code if isinstance(event, Finished) else None
