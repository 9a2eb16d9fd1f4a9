"""What is shown while a cohort runs: to people on a terminal, or to a program as JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from ..errors import EngineError, InputError
from ..results.findings import sized
from ..text import counted, listed
from ..worker import protocol
from .console import FAILED_SHOWN, err, out, plain, show_error

if TYPE_CHECKING:
    from ..cohort.cohort import Ended
    from ..cohort.run import Standing
    from ..cohort.tasks import Failure, Outcome, Task

_SECONDS_BETWEEN_LINES = 10.0  # while no scan ends


class CohortTerminal:
    """A bar with throughput and time left on stderr, if that is a terminal; on stdout a line for each scan."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            console=err,
            transient=True,
            disable=not err.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("scans", total=None, pace="")

    def __enter__(self) -> CohortTerminal:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, to_do: int, finished: int, workers: str) -> None:
        if finished:
            err.print(plain(f"{counted(finished, 'scan')} finished before"))
        if to_do:
            err.print(plain(f"{counted(to_do, 'scan')} to do by {workers}"))
        self._bar.update(self._task, total=to_do)

    def ended(self, task: Task, outcome: Outcome, now: Standing) -> None:
        self.tick(now)
        if outcome.failure is not None:
            show_error(InputError(f"{task.name}: {outcome.failure.what}", outcome.failure.hint))
            return
        for warning in outcome.warnings:
            err.print(plain(f"warning: {task.name}: {warning}", "yellow"))
        if not task.finished:
            total = sized(outcome.size, outcome.unit)
            out.print(plain(f"{task.name}: {counted(outcome.findings, 'finding')}, {total}, {outcome.seconds:.0f} s"))

    def retry(self, task: Task, failure: Failure) -> None:
        err.print(plain(f"again: {task.name}: {failure.what}", "yellow"))

    def tick(self, now: Standing) -> None:
        self._bar.update(self._task, completed=now.ended, pace=_pace(now))

    def warning(self, message: str) -> None:
        err.print(plain(f"warning: {message}", "yellow"))

    def failed(self, error: EngineError) -> None:
        self._bar.stop()
        show_error(error)

    def written(self, files: Mapping[str, Path]) -> None:
        for path in files.values():
            out.print(plain(path))

    def summary(self, ended: Ended) -> None:
        self.written(ended.files)
        if ended.failed:
            names = listed([one.name for one in ended.failed], FAILED_SHOWN)
            total = counted(ended.finished + len(ended.failed), "scan")
            err.print(plain(f"{len(ended.failed)} of {total} failed: {names}", "red"))


class CohortLines:
    """The worker's events on stdout, one object a line; those of one scan name it."""

    def __init__(self) -> None:
        self._sent = 0.0
        self._start = time.perf_counter()

    def __enter__(self) -> CohortLines:
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()

    def begin(self, to_do: int, finished: int, workers: str) -> None:
        self._send(protocol.Progress("cohort", 0, to_do, 0.0), finished_before=finished, workers=workers)

    def ended(self, task: Task, outcome: Outcome, now: Standing) -> None:
        for warning in outcome.warnings:
            self._send(protocol.Warned(warning), scan=task.name)
        if outcome.failure is not None:
            failure = outcome.failure
            self._send(protocol.Failure(failure.kind, failure.what, failure.hint), scan=task.name)
        else:
            statistics = {"findings": outcome.findings, "size": outcome.size, "unit": outcome.unit}
            files = {"folder": str(task.request.output)}
            self._send(protocol.Result(files, statistics, {"total": round(outcome.seconds, 3)}), scan=task.name)
        self._sent = 0.0
        self.tick(now)

    def retry(self, task: Task, failure: Failure) -> None:
        self._send(protocol.Warned(f"{failure.what} It is tried again."), scan=task.name)

    def tick(self, now: Standing) -> None:
        if time.perf_counter() - self._sent < _SECONDS_BETWEEN_LINES:
            return
        self._sent = time.perf_counter()
        event = protocol.Progress("cohort", now.ended, now.total, round(now.elapsed, 3), now.remaining)
        self._send(event, failed=now.failed, scans_per_minute=now.per_minute)

    def warning(self, message: str) -> None:
        self._send(protocol.Warned(message))

    def failed(self, error: EngineError) -> None:
        self._send(protocol.Failure(error.code, error.what, error.hint))

    def written(self, files: Mapping[str, Path]) -> None:
        self._send(protocol.Result({name: str(path) for name, path in files.items()}, {}, {}))

    def summary(self, ended: Ended) -> None:
        files = {name: str(path) for name, path in ended.files.items()}
        numbers = {"finished": ended.finished, "failed": len(ended.failed)}
        timings = {"total": round(time.perf_counter() - self._start, 3)}
        self._send(protocol.Result(files, numbers, timings))

    def _send(self, event: protocol.Event, **more: Any) -> None:
        line = protocol.encode(event)
        if more:
            line = json.dumps({**json.loads(line), **more})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _pace(now: Standing) -> str:
    """Throughput and time left."""
    if now.per_minute is None or now.remaining is None:
        return ""
    minutes, seconds = divmod(round(now.remaining), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return f"{now.per_minute:.3g} scans/min, {left} left"
