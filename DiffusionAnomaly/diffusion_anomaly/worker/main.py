"""The background process: one job in, event lines out, and an end that is certain.

    python -m diffusion_anomaly.worker JOBDIR

Why a process and not a thread: Slicer stays usable, memory comes back whole, a crash of a driver takes
nothing with it, and a run can be stopped at any moment. So that Slicer can rely on it,

- stdout carries event lines and nothing else; what else is printed lands in the job's ``worker.log``;
- the line ``cancel`` on stdin stops the run at its next report; so do the end of stdin and a closed stdout,
  which mean that Slicer is gone. A run still inside a long call 3 seconds later is ended where it is;
- the exit code says how it ended, and results appear together when all are written, or not at all.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import Cancelled, EngineError, InputError, MemoryExhausted
from ..io.files import UNFINISHED, prepare_folder, remove_if_empty
from ..io.typed_json import checked
from ..results.result import statistics
from ..system import is_out_of_memory
from .channel import EventLines, Reports, Stop, listen, logging_to, signals_to, take_over
from .protocol import LOG_FILE, ExitCode, Failure, Job, Result, Started, Warned, read_job

if TYPE_CHECKING:
    from ..detection import detect
    from ..detection.planning import Options

log = logging.getLogger("diffusion_anomaly.worker")


def main(arguments: list[str]) -> int:
    """Run the job whose directory is the one argument."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m diffusion_anomaly.worker JOBDIR\n")
        return ExitCode.BAD_INPUT
    return run(Path(arguments[0]))


def run(job_directory: Path | str) -> int:
    """Run one job to its end. Takes over the process's stdin and stdout for good.

    Args:
        job_directory: holds ``job.json``; gets ``worker.log``.

    Returns:
        The exit code, see ``job.ExitCode``.
    """
    log_file = Path(job_directory) / LOG_FILE
    stop = Stop()
    with logging_to(log_file) as stray, signals_to(stop):
        lines = EventLines(take_over(1, stray), stop)
        commands = take_over(0, os.open(os.devnull, os.O_RDWR))
        threading.Thread(target=listen, args=(commands, stop), name="stdin", daemon=True).start()
        log.info("worker %s, Python %s, process %d", __version__, sys.version.split()[0], os.getpid())
        code = _report_end(lambda: _detect_and_save(read_job(job_directory), lines, stop), lines, log_file)
        stop.too_late()
        log.info("exit code %d", code)
    return code


def _report_end(work: Callable[[], None], lines: EventLines, log_file: Path) -> int:
    """Do the work; say on the event stream why it failed, if it did; return the exit code."""
    try:
        work()
    except Exception as error:
        failure = error if isinstance(error, EngineError) else None
        if failure is None and is_out_of_memory(error):
            failure = MemoryExhausted(f"Memory ran out ({error}).", "Close other programs and try again.")
        if failure is not None:
            log.error("%s", failure, exc_info=not isinstance(failure, Cancelled))
            lines.send(Failure(failure.code, failure.what, failure.hint))
            return failure.exit_code
        log.exception("unexpected")
        what = f"{type(error).__name__}: {error}"
        lines.send(Failure("internal", what, f"Please report it, with {log_file}."))
        return ExitCode.FAILED
    return ExitCode.DONE


def _detect_and_save(job: Job, lines: EventLines, stop: Stop) -> None:
    # Imports come where they are needed: a job or a scan that is no good is refused before torch is loaded.
    start = time.monotonic()
    options = detection_options(job)
    reports = Reports(lines, stop)
    reports.report("read", 0, 1)
    output = Path(job.output)
    existed = output.exists()
    prepare_folder(output)
    stop.before_hard_end = _tidying(output, existed)
    try:
        from ..io.volume import read_mask, read_volume

        volume = replace(read_volume(job.input), title=job.title)
        mask = None if job.mask is None else read_mask(job.mask, volume)
        reports.report("read", 1, 1)
        from ..detection import detect
        from ..results.saving import save

        progress, started, warning = _listeners(lines, reports)
        result = detect.detect(volume, options, mask=mask, progress=progress, on_started=started, on_warning=warning)
        reports.report("write", 0, 1)
        files = save(result, volume, output)
    except BaseException:
        if not existed:
            remove_if_empty(output)
        raise
    stop.too_late()  # all files are in place: the run has succeeded, whatever comes now
    reports.report("write", 1, 1)
    timings = {**result.timings, "total": time.monotonic() - start}
    lines.send(
        Result(
            {kind: str(path) for kind, path in files.items()},
            statistics(result),
            {stage: round(seconds, 3) for stage, seconds in timings.items()},
        )
    )


def detection_options(job: Job) -> Options:
    """The job's options as ``detect`` takes them.

    Raises:
        InputError: for one that is unknown, ill-typed or out of range.
    """
    from ..detection.planning import Options

    twice = sorted({"method", "model"} & set(job.options))
    if twice:
        raise InputError(f"The job's options hold {', '.join(twice)}.", "Those are entries of the job itself.")
    return checked(Options, {"method": job.method, "model": job.model, **job.options}, "The job")


def _listeners(
    lines: EventLines, reports: Reports
) -> tuple[Callable[[detect.Progress], None], Callable[[detect.Started], None], Callable[[str], None]]:
    """What a detection tells as it goes, as events: its progress, its start and its warnings."""

    def progress(now: detect.Progress) -> None:
        reports.report(now.stage, now.done, now.total, now.remaining)

    def started(event: detect.Started) -> None:
        reports.flush()
        lines.send(Started(event.device, event.model, event.version, event.slices))

    def warning(message: str) -> None:
        log.warning("%s", message)
        lines.send(Warned(message))

    return progress, started, warning


def _tidying(output: Path, existed: bool) -> Callable[[], None]:
    """What to do before a hard end: take away what this run was writing, and the folder if it made it."""
    before = set(output.glob(f"{UNFINISHED}*"))

    def tidy() -> None:
        for unfinished in set(output.glob(f"{UNFINISHED}*")) - before:
            shutil.rmtree(unfinished, ignore_errors=True)
        if not existed:
            remove_if_empty(output)

    return tidy
