"""One detection in the background: from the start of the worker to an outcome, whatever the worker does.

A worker may be slow, hang, crash, be killed from outside or print rubbish. Here each of these becomes an ``Outcome``
with a sentence on what happened and one on what to do. Nothing of MRML is known here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.worker.protocol import (
    CANCEL_LINE,
    GRACE_SECONDS,
    Event,
    ExitCode,
    Failure,
    Progress,
    Result,
    Started,
    Warned,
    decode,
)

from ..translation import tr as _
from .process import WorkerProcess
from .workspace import Workspace
from .writing import Writing

# The worker ends itself by then; this is for one that cannot.
KILL_SECONDS = GRACE_SECONDS + 1.0

# Loading torch from a slow disk, or finding the brain on a slow CPU, takes minutes without a word.
NOTICE_SECONDS = 60.0
SILENCE_SECONDS = 1800.0

LOG_LINES = 5000
LONGEST_LOG = 100_000  # bytes of the log file of a worker that failed
LONGEST_LINE = 1_000_000  # bytes; more than that without an end of line is no event


class State(Enum):
    """What a job is doing, or how it has ended."""

    WAITING = "waiting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def isOver(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Outcome:
    """How a job has ended.

    Attributes:
        state: done, failed or cancelled.
        files: what a file is to where it lies; empty unless done.
        statistics, timings: as in ``diffusion_anomaly.job.Result``.
        warnings: reasons to doubt the result.
        what, hint: what happened and what to do, unless done.
    """

    state: State
    files: Mapping[str, Path] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    what: str = ""
    hint: str = ""


class DetectionJob:
    """A worker at work on one workspace.

    >>> job = DetectionJob(workspace, PipeProcess(), command, environment)  # doctest: +SKIP
    >>> job.onFinished = lambda outcome: print(outcome.state)  # doctest: +SKIP
    >>> job.start()  # doctest: +SKIP
    >>> while not job.state.isOver:  # doctest: +SKIP
    ...     job.tick()

    Args:
        workspace: holds the job file and the scan.
        process: not yet started.
        command: the program and its arguments; the workspace's folder is added.
        environment: variables of the process.
        writings: of the files that must be whole before it starts.
        clock: seconds; for tests.
        killSeconds: from the request to stop to the end by force.
        silenceSeconds: a worker that says nothing for so long is taken for hung.

    Attributes:
        state: see ``State``.
        started: what runs where; None until the model is loaded.
        progress: the newest.
        warnings: so far.
        log: the newest lines of everything the worker has said.
        onChanged: called whenever one of these has changed.
        onFinished: takes the outcome; called once, last.
    """

    def __init__(
        self,
        workspace: Workspace,
        process: WorkerProcess,
        command: Sequence[str],
        environment: Mapping[str, str],
        writings: Sequence[Writing] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        killSeconds: float = KILL_SECONDS,
        silenceSeconds: float = SILENCE_SECONDS,
    ) -> None:
        self.workspace = workspace
        self.state = State.WAITING
        self.started: Started | None = None
        self.progress: Progress | None = None
        self.warnings: list[str] = []
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.outcome: Outcome | None = None
        self.onChanged: Callable[[], None] = lambda: None
        self.onFinished: Callable[[Outcome], None] = lambda outcome: None
        self._process = process
        self._command = [*command, str(workspace.folder)]
        self._environment = environment
        self._writings = list(writings)
        self._clock = clock
        self._killSeconds = killSeconds
        self._silenceSeconds = silenceSeconds
        self._lastWord = 0.0
        self._killAt: float | None = None
        self._pending = b""
        self._pendingError = b""
        self._result: Result | None = None
        self._failure: Failure | None = None
        self._hung = False
        self._why = ""

    def start(self) -> None:
        """Start the worker. One that cannot be started is a failed job, not an exception."""
        self._process.onOutput = self._onOutput
        self._process.onErrorOutput = self._onErrorOutput
        self._process.onFinished = self._onProcessFinished
        self.state = State.RUNNING
        self._startProcess()

    def _startProcess(self) -> None:
        """Start it once all files are written; ``tick`` asks again."""
        self._lastWord = self._clock()
        if not self.isWritten:
            return
        problem = next((writing.problem for writing in self._writings if writing.problem), "")
        self._writings = []
        if problem:
            self._end(
                Outcome(
                    State.FAILED,
                    what=_("The scan cannot be written to {folder}: {reason}.").format(
                        folder=self.workspace.folder, reason=problem
                    ),
                    hint=_("Free some space, or set another temporary folder in Slicer's application settings."),
                )
            )
            return
        try:
            self._process.start(self._command, self._environment, self.workspace.folder)
        except OSError as error:
            self._end(
                Outcome(
                    State.FAILED,
                    what=_("The background process cannot be started: {reason}").format(reason=error),
                    hint=_("Is Slicer's own Python, {program}, in place? Reinstall Slicer if not.").format(
                        program=self._command[0]
                    ),
                )
            )
        else:
            self.onChanged()

    @property
    def isWritten(self) -> bool:
        """Whether all files are; to be asked while it waits too, so that no voxels are held longer than needed."""
        done = [writing.isDone for writing in self._writings]
        return all(done)

    def cancel(self, why: str = "") -> None:
        """Ask the worker to stop; ``tick`` ends it by force if it does not.

        Args:
            why: what the outcome says has happened; empty when the user wanted it.
        """
        if self.state is State.WAITING or (self.state is State.RUNNING and self._writings):
            self._stopWriting()
            self._end(Outcome(State.CANCELLED, what=why or _("It was cancelled before it began.")))
        elif self.state is State.RUNNING:
            self.state = State.CANCELLING
            self._why = why
            self._killAt = self._clock() + self._killSeconds
            self._process.write(f"{CANCEL_LINE}\n".encode("ascii"))
            self.onChanged()

    def kill(self) -> None:
        """End the worker at once, as when Slicer closes."""
        if self._writings:
            self.cancel()
        elif self.state in (State.RUNNING, State.CANCELLING):
            self.state = State.CANCELLING
            self._process.kill()

    def tick(self) -> None:
        """To be called a few times a second: delivers what the worker said, and ends one that does not stop."""
        self._process.poll()
        if self.state.isOver or self.state is State.WAITING:
            return
        if self._writings:
            self._startProcess()
            return
        if self._killAt is not None and self._clock() > self._killAt:
            self._killAt = None
            self._process.kill()
        elif self.state is State.RUNNING and self.secondsOfSilence > self._silenceSeconds:
            self._hung = True
            self._process.kill()

    @property
    def secondsOfSilence(self) -> float:
        """How long the worker has said nothing."""
        return self._clock() - self._lastWord

    @property
    def isSilent(self) -> bool:
        """Whether it has said nothing for so long that the user should be told."""
        return self.state is State.RUNNING and self.secondsOfSilence > NOTICE_SECONDS

    def _stopWriting(self) -> None:
        for writing in self._writings:
            writing.cancel()
        self._writings = []

    def _onOutput(self, data: bytes) -> None:
        self._lastWord = self._clock()
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > LONGEST_LINE:
            lines, self._pending = [*lines, self._pending[:LONGEST_LINE]], b""
        for line in lines:
            self._onLine(line)
        self.onChanged()

    def _onErrorOutput(self, data: bytes) -> None:
        *lines, self._pendingError = (self._pendingError + data).split(b"\n")
        if len(self._pendingError) > LONGEST_LINE:
            lines, self._pendingError = [*lines, self._pendingError[:LONGEST_LINE]], b""
        self.log.extend(_text(line) for line in lines)
        self.onChanged()

    def _onLine(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            event = decode(line)
        except InputError:
            self.log.append(_text(line))
        else:
            self._onEvent(event)

    def _onEvent(self, event: Event) -> None:
        if isinstance(event, Started):
            self.started = event
            self.log.append(
                _("Running on {device}, model {model}, slices: {slices}.").format(
                    device=event.device, model=event.model or _("none"), slices=event.slices
                )
            )
        elif isinstance(event, Progress):
            self.progress = event
        elif isinstance(event, Warned):
            self.warnings.append(event.message)
            self.log.append(_("Warning: {message}").format(message=event.message))
        elif isinstance(event, Result):
            self._result = event
        elif isinstance(event, Failure):
            self._failure = event

    def _onProcessFinished(self, code: int | None) -> None:
        for rest in (self._pending, self._pendingError):
            if rest.strip():
                self.log.append(_text(rest))
        self._end(self._judge(code))

    def _end(self, outcome: Outcome) -> None:
        self.state, self.outcome = outcome.state, outcome
        if outcome.what:
            self.log.append(f"{outcome.what} {outcome.hint}".strip())
        self.onChanged()
        self.onFinished(outcome)

    def _judge(self, code: int | None) -> Outcome:
        """What the end of the process means."""
        if self.state is State.CANCELLING:
            what = self._why or _("It was cancelled.")
            return Outcome(State.CANCELLED, what=what, warnings=tuple(self.warnings))
        if self._hung:
            return self._failed(
                _("The worker said nothing for {minutes:.0f} minutes and was ended.").format(
                    minutes=self._silenceSeconds / 60
                ),
                _("Try again with the device set to CPU, or with fewer steps."),
            )
        if code == ExitCode.DONE and self._result is not None:
            return self._done(self._result)
        if self._failure is not None and self._failure.code == "internal":
            return self._internal(self._failure.what)
        if self._failure is not None:
            return self._failed(self._failure.what, self._failure.hint)
        return self._failed(*_withoutWord(code))

    def _done(self, result: Result) -> Outcome:
        files = {kind: Path(path) for kind, path in result.files.items()}
        missing = [str(path) for path in files.values() if not path.is_file()]
        if missing or not {"heat", "provenance"} <= files.keys():
            return self._failed(
                _("The worker reported results that are not there: {files}.").format(
                    files=", ".join(missing) or "anomaly map"
                ),
                _("Is the disk full? Free some space and run it again."),
            )
        return Outcome(State.DONE, files, result.statistics, result.timings, tuple(self.warnings))

    def _internal(self, what: str) -> Outcome:
        """A failure that the worker did not foresee; its own log goes with its folder, so it is kept here."""
        self.log.extend(self.workspace.readLog(LONGEST_LOG).splitlines())
        if what.startswith(("ModuleNotFoundError", "ImportError")):
            hint = _("Install the Python packages: the button for it is in the panel, above Run.")
        else:
            hint = _("Please report it, with the log: Copy log puts it on the clipboard.")
        return self._failed(what, hint)

    def _failed(self, what: str, hint: str) -> Outcome:
        return Outcome(State.FAILED, what=what, hint=hint, warnings=tuple(self.warnings))


def _withoutWord(code: int | None) -> tuple[str, str]:
    """What happened and what to do, for a worker that ended without telling."""
    if code is None or code > 128:  # a launcher passes a signal on as 128 and its number
        return (
            _("The worker crashed or was ended from outside."),
            _("Memory may have run out: close other programs, or set the device to CPU, and run it again."),
        )
    if code == ExitCode.OUT_OF_MEMORY:
        return _("Memory ran out."), _("Close other programs and run it again.")
    return (
        _("The worker ended with exit code {code} and without a result.").format(code=code),
        _("The log says more. If it names a Python package that is missing, use Install packages."),
    )


def _text(line: bytes) -> str:
    """A line of any bytes as text that can be shown and copied."""
    return line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
