"""How long Slicer waits for a scan: with a worker started for it, and with one that holds the last scan's model."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from diffusion_anomaly.worker.protocol import Event, Failure, Finished, Started, decode, run_line

from . import measure


@dataclass(frozen=True)
class JobTime:
    """Seconds of one job, from its request on.

    Attributes:
        started: until its model was ready and the first slice's turn had come.
        total: until its end; of a process of its own, with the process's.
    """

    started: float
    total: float


def cold(job: Path, checkout: Path = measure.REPOSITORY) -> JobTime:
    """A worker that is started for this job.

    Args:
        job: directory with ``job.json``.
        checkout: whose engine runs.

    Raises:
        RuntimeError: with the worker's own words, when the job fails.
    """
    with _Process(checkout, str(job)) as worker:
        started = worker.follow(lambda event: False)
        code = worker.wait()
        if code != 0:
            raise RuntimeError(worker.complaint(f"the worker ended with {code}"))
        return JobTime(started, worker.age)


class WarmWorker:
    """A worker that serves one job after the other.

    >>> with WarmWorker() as worker:  # doctest: +SKIP
    ...     worker.run(first)
    ...     second = worker.run(second)

    Args:
        checkout: whose engine runs.
    """

    def __init__(self, checkout: Path = measure.REPOSITORY) -> None:
        self._worker = _Process(checkout, "--serve")

    def __enter__(self) -> WarmWorker:
        self._worker.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.close()

    def run(self, job: Path) -> JobTime:
        """One job, from the line that asks for it to the event that ends it.

        Raises:
            RuntimeError: with the worker's own words, when the job fails.
        """
        before = self._worker.age
        self._worker.last = None
        self._worker.say(run_line(job))
        started = self._worker.follow(lambda event: isinstance(event, Finished))
        last = self._worker.last
        if not isinstance(last, Finished) or last.exit_code != 0:
            raise RuntimeError(self._worker.complaint("the worker did not do the job"))
        return JobTime(started - before, self._worker.age - before)


class _Process:
    """A worker's process, its event lines and its age in seconds."""

    def __init__(self, checkout: Path, *arguments: str) -> None:
        self._checkout, self._arguments = checkout, arguments
        self.last: Event | None = None
        self._failure: Failure | None = None

    def __enter__(self) -> _Process:
        self._errors = tempfile.TemporaryFile()  # a pipe that nobody empties would stop the worker
        self._birth = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_anomaly.worker", *self._arguments],
            env=measure.environment(self._checkout),
            stdin=subprocess.PIPE,  # open to the end: its end would stop the job
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def age(self) -> float:
        return time.perf_counter() - self._birth

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has gone, which ``follow`` finds out
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def follow(self, is_end: Callable[[Event], bool]) -> float:
        """Read events up to the one that ends the job, or the last; the worker's age when the job started."""
        assert self._process.stdout is not None
        started = float("nan")
        for line in self._process.stdout:
            self.last = decode(line)
            if isinstance(self.last, Started):
                started = self.age
            if isinstance(self.last, Failure):
                self._failure = self.last
            if is_end(self.last):
                break
        return started

    def wait(self) -> int:
        return self._process.wait()

    def complaint(self, what: str) -> str:
        if self._failure is not None:
            return f"{what}: {self._failure.what}"
        self._errors.seek(0)
        return f"{what}: {self._errors.read().decode(errors='replace')}"

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()
        self._errors.close()
