"""The background process: jobs in, event lines out, and an end that is certain.

    python -m diffusion_anomaly.worker JOBDIR            one job, then the end
    python -m diffusion_anomaly.worker --serve [IDLE]    one job after the other, as they are named on stdin

Why a process and not a thread: Slicer stays usable, memory comes back whole, a crash of a driver takes
nothing with it, and a run can be stopped at any moment. So that Slicer can rely on it,

- stdout carries event lines and nothing else; what else is printed lands in the job's ``worker.log``;
- the line ``cancel`` on stdin stops the run at its next report; so do the end of stdin and a closed stdout,
  which mean that Slicer is gone. A run still inside a long call 3 seconds later is ended where it is;
- the exit code says how it ended, and results appear together when all are written, or not at all.

A process that serves keeps what it has imported and loaded, so that the next job with the same model starts at once.
After ``IDLE`` seconds without a job, and on the line ``release``, it gives model and brain network back. It ends when
its stdin does.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .. import __version__
from ..errors import EngineError, InputError
from ..io.outputs import OutputFolder
from ..io.typed_json import checked
from ..system import as_engine_error
from .channel import EventLines, Reports, Stop, listen, logging_to, signals_to, take_over
from .protocol import (
    CANCEL_LINE,
    IDLE_SECONDS,
    LOG_FILE,
    RELEASE_LINE,
    RUN_COMMAND,
    ExitCode,
    Failure,
    Finished,
    Job,
    Result,
    Started,
    Warned,
    job_of,
    read_job,
)

if TYPE_CHECKING:
    from ..detection.detector import Detector
    from ..detection.planning import Options
    from ..results import result

log = logging.getLogger("diffusion_anomaly.worker")


class Workbench(Protocol):
    """What does the jobs of a process, one after the other, and keeps what the next one may need."""

    def do(self, job: Job, lines: EventLines, stop: Stop) -> None:
        """Do one job: its events as lines, its results in its folder.

        Raises:
            EngineError: when there is no result.
        """
        ...

    def release(self) -> None:
        """Give back what is kept."""
        ...


def main(arguments: list[str], workbench: Workbench | None = None, program: str = "diffusion_anomaly.worker") -> int:
    """Run the job whose directory is the one argument, or serve.

    Args:
        arguments: of the command.
        workbench: does the jobs; None for detections in this process.
        program: what was started, for the usage.
    """
    if arguments[:1] == ["--serve"] and len(arguments) <= 2:
        idle = _seconds(arguments[1]) if len(arguments) == 2 else IDLE_SECONDS
        if idle is not None:
            return serve(idle, workbench)
        arguments = []
    if len(arguments) != 1:
        sys.stderr.write(f"usage: python -m {program} JOBDIR | --serve [IDLE_SECONDS]\n")
        return ExitCode.BAD_INPUT
    return run(Path(arguments[0]), workbench)


def _seconds(text: str) -> float | None:
    """A time to wait; None for what is none."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= threading.TIMEOUT_MAX else None


def run(job_directory: Path | str, workbench: Workbench | None = None) -> int:
    """Run one job to its end. Takes over the process's stdin and stdout for good.

    Args:
        job_directory: holds ``job.json``; gets ``worker.log``.
        workbench: as for ``main``.

    Returns:
        The exit code, see ``protocol.ExitCode``.
    """
    stop = Stop()
    with logging_to(Path(job_directory) / LOG_FILE) as stray, signals_to(stop.request):
        lines = EventLines(take_over(1, stray), stop)
        _hear(lambda line: stop.request("as asked") if line == CANCEL_LINE else None, stop.request)
        return _run_job(job_directory, lines, stop, workbench or DetectorWorkbench())


def serve(idle_seconds: float = IDLE_SECONDS, workbench: Workbench | None = None) -> int:
    """Run jobs as they are named on stdin, see ``protocol.run_line``, until it ends.

    Every job ends with the event ``finished``, in the same process; only a run that has to be ended by force ends the
    process with it.
    """
    commands: queue.SimpleQueue[tuple[str, Stop] | None] = queue.SimpleQueue()
    stops: collections.deque[Stop] = collections.deque()  # of the running job and of those that wait for their turn
    ended: list[str] = []

    def heard(line: str) -> None:
        if line == CANCEL_LINE:
            # The first is the running job, or one that was named but not begun yet. Cancelling none is no mistake.
            for stop in list(stops)[:1]:
                stop.request("as asked")
            return
        stop = Stop()
        if line.startswith(RUN_COMMAND):
            stops.append(stop)
        commands.put((line, stop))

    def end(reason: str) -> None:
        ended.append(reason)
        for stop in list(stops)[:1]:
            stop.request(reason)
        commands.put(None)

    output = take_over(1, 2)
    workbench = workbench or DetectorWorkbench()
    with signals_to(end):
        _hear(heard, end)
        idle: float | None = idle_seconds
        while True:
            try:
                command = commands.get(timeout=idle)
            except queue.Empty:
                workbench.release()
                idle = None  # nothing more to give back before the next job
                continue
            if command is None:
                return ExitCode.DONE
            line, stop = command
            if ended:
                stop.request(ended[0])
            if line == RELEASE_LINE:
                workbench.release()
                continue
            lines = EventLines(output, stop)
            try:
                code = _serve_job(job_of(line), lines, stop, workbench)
            except InputError as error:
                lines.send(Failure(error.code, error.what, error.hint))
                code = error.exit_code
            stop.too_late()
            with contextlib.suppress(ValueError):
                stops.remove(stop)
            lines.send(Finished(code))
            idle = idle_seconds


def _serve_job(directory: Path, lines: EventLines, stop: Stop, workbench: Workbench) -> int:
    """One of several jobs: what is printed meanwhile lands in its own log."""
    with logging_to(directory / LOG_FILE) as stray:
        sys.stdout.flush()
        os.dup2(stray, 1)
        try:
            return _run_job(directory, lines, stop, workbench)
        finally:
            sys.stdout.flush()
            os.dup2(2, 1)


class DetectorWorkbench:
    """The detector of the last job, whose model and brain network the next one takes over where they are the same."""

    def __init__(self) -> None:
        self._detector: Detector | None = None

    def do(self, job: Job, lines: EventLines, stop: Stop) -> None:
        start = time.monotonic()
        options = detection_options(job)
        listener = _Listener(lines, Reports(lines, stop))
        from ..detection.scan import ScanRequest, run_scan
        from ..io.contrasts import ChannelSource
        from ..results.result import statistics

        def open_folder(directory: Path, inputs: Iterable[Path]) -> OutputFolder:
            folder = OutputFolder(directory, inputs, commit=stop.commit)
            stop.before_hard_end = folder.discard
            return folder

        channels = {name: ChannelSource(Path(file)) for name, file in job.channels.items()}
        scan = next(iter(channels.values())).path if channels else Path(job.input)
        brain = None if job.mask is None else Path(job.mask)
        request = ScanRequest(
            scan,
            Path(job.output),
            brain,
            title=job.title,
            overwrite=job.overwrite,
            channels=channels,
            dicom=job.dicom,
            dicom_pdf=job.dicom_pdf,
        )
        found, files = run_scan(self.detector(options), request, listener, open_folder)
        listener.stage("write", 1, 1)
        timings = {**found.timings, "total": time.monotonic() - start}
        lines.send(
            Result(
                {kind: str(path) for kind, path in files.items()},
                statistics(found),
                {stage: round(seconds, 3) for stage, seconds in timings.items()},
            )
        )

    def release(self) -> None:
        """Give model and brain network back."""
        if self._detector is not None:
            self._detector.release()

    def detector(self, options: Options) -> Detector:
        from ..detection.detector import Detector

        self._detector = Detector(options, like=self._detector)
        return self._detector


def _hear(heard: Callable[[str], None], ended: Callable[[str], None]) -> None:
    commands = take_over(0, os.open(os.devnull, os.O_RDWR))
    threading.Thread(target=listen, args=(commands, heard, ended), name="stdin", daemon=True).start()


def _run_job(directory: Path | str, lines: EventLines, stop: Stop, workbench: Workbench) -> int:
    """Do a job; say on the event stream why it failed, if it did; return the exit code."""
    log.info("worker %s, Python %s, process %d", __version__, sys.version.split()[0], os.getpid())
    code: int = ExitCode.DONE
    try:
        workbench.do(read_job(directory), lines, stop)
    except Exception as error:
        failure = as_engine_error(error, f"Please report it, with {Path(directory) / LOG_FILE}.")
        log.error("%s", failure, exc_info=type(failure) is EngineError)  # what the user can mend needs no traceback
        lines.send(Failure(failure.code, failure.what, failure.hint))
        code = failure.exit_code
    stop.too_late()
    log.info("exit code %d", code)
    return code


def detection_options(job: Job) -> Options:
    """The job's options as a ``Detector`` takes them.

    Raises:
        InputError: for one that is unknown, ill-typed or out of range.
    """
    from ..detection.planning import Options

    twice = sorted({"method", "model"} & set(job.options))
    if twice:
        raise InputError(f"The job's options hold {', '.join(twice)}.", "Those are entries of the job itself.")
    return checked(Options, {"method": job.method, "model": job.model, **job.options}, "The job")


class _Listener:
    """What a detection tells as it goes, as events."""

    def __init__(self, lines: EventLines, reports: Reports) -> None:
        self._lines, self._reports = lines, reports

    def stage(self, name: str, done: int, total: int) -> None:
        self._reports.report(name, done, total)

    def progress(self, now: result.Progress) -> None:
        self._reports.report(now.stage, now.done, now.total, now.remaining)

    def started(self, event: result.Started) -> None:
        self._reports.flush()
        self._lines.send(Started(event.device, event.model, event.version, event.slices))

    def warning(self, message: str) -> None:
        log.warning("%s", message)
        self._lines.send(Warned(message))
