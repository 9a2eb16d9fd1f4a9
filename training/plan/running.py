"""A plan carried out: a process a stage, so many at once, and what each of them says of itself.

A stage that fails, or whose loss is no number, ends alone; what needs it is left out, everything else goes on. Ctrl-C
ends every training after the step at hand, with a checkpoint, and the same command goes on.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..trainer.configuration import ConfigurationError
from ..trainer.progress import read_progress
from .declaration import Plan
from .jobs import Job, Settings, make_jobs, missing_files
from .timing import Waiting, minutes_by_weight, ready

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
TABLE_SECONDS = 60.0  # between tables in a log
LATE_MINUTES = 0.5  # after the end of all minutes, before what still runs is told to stop
WAITING, RUNNING, FINISHED, STOPPED, FAILED, LEFT_OUT = (
    "waiting",
    "running",
    "finished",
    "stopped",
    "failed",
    "left out",
)


@dataclass(frozen=True)
class Machine:
    """What stages run on.

    Attributes:
        jobs: stages at once.
        threads: of each; without them what torch takes.
        device: auto, cpu, cuda or cuda:N.
    """

    jobs: int = 1
    threads: int | None = None
    device: str = "auto"

    def environment(self) -> dict[str, str]:
        """Of a stage's process.

        Raises:
            ConfigurationError: when there is no such device.
        """
        environment = dict(os.environ)
        if self.threads is not None:
            environment |= {f"{library}_NUM_THREADS": str(self.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
            raise ConfigurationError(f"--device {self.device}: choose auto, cpu, cuda or cuda:N.")
        if kind == "cuda":
            import torch

            if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
                raise ConfigurationError(f"--device {self.device}: torch sees {torch.cuda.device_count()} GPUs here.")
        if kind == "cpu" or number:
            environment["CUDA_VISIBLE_DEVICES"] = number
        return environment


@dataclass
class Running:
    """A stage and how it stands."""

    job: Job
    state: str = WAITING
    reason: str = ""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    minutes: float | None = None
    taken: float = 0.0

    def begin(self, environment: dict[str, str], minutes: float | None) -> None:
        self.state, self.started, self.minutes = RUNNING, time.monotonic(), minutes
        limit = [] if minutes is None else ["--minutes", f"{minutes:.4f}"]
        with self.job.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "training", *self.job.arguments, *limit],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C goes to this process alone, which passes it on once
            )

    def look(self, needed: Iterable[Job]) -> bool:
        """Whether the process has ended, and how."""
        assert self.process is not None
        code = self.process.poll()
        self.taken = (time.monotonic() - self.started) / 60.0
        if code is None:
            return False
        if code == 0 and self.complete(needed):
            self.state = FINISHED
        elif code == 0:
            self.state, self.reason = STOPPED, "it was stopped, or its minutes were over before its first step"
        else:
            self.state, self.reason = FAILED, f"exit code {code}: {self.last_line()}"
        return True

    def complete(self, needed: Iterable[Job]) -> bool:
        """A training that was brought here complete says so by its exit code alone: it has nothing left to write."""
        progress = read_progress(self.job.folder / "progress.json")
        return self.job.is_finished(needed) or (self.job.trains and not progress)

    def last_line(self) -> str:
        """Of the stage's log: mostly why it ended."""
        lines = [
            line for line in self.job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        return lines[-1] if lines else "it said nothing"

    @property
    def minutes_left(self) -> float:
        return 0.0 if self.minutes is None else self.minutes - (time.monotonic() - self.started) / 60.0

    def row(self) -> tuple[str, ...]:
        """Stage, state, steps, loss and minutes."""
        found = read_progress(self.job.folder / "progress.json") if self.job.trains else {}
        first = found.get("first_losses") or []
        steps = f"{found['step']} of {self.job.steps}" if found else ""
        loss = f"{sum(first) / len(first):.4g} → {found['loss']:.4g}" if first and "loss" in found else ""
        minutes = found["seconds"] / 60.0 if found else self.taken
        return self.job.name, self.state, steps, loss, f"{minutes:.1f}" if minutes else ""


@dataclass
class Board:
    """All stages of a plan that are to be run."""

    stages: dict[str, Running]
    console: Console = field(default_factory=lambda: Console(stderr=True))
    told: float = field(default_factory=time.monotonic)

    def table(self) -> Table:
        table = Table("stage", "state", "steps", "loss", "minutes", box=None, pad_edge=False)
        for stage in self.stages.values():
            table.add_row(*stage.row())
        return table

    def tell(self, live: Live | None) -> None:
        """Show how all stand: always on a terminal, now and then in a log."""
        if live is not None:
            live.update(self.table())
        elif time.monotonic() - self.told > TABLE_SECONDS:
            self.told = time.monotonic()
            self.console.print(self.table())

    def of(self, *states: str) -> list[Running]:
        return [stage for stage in self.stages.values() if stage.state in states]


def run_plan(plan: Plan, only: list[str], settings: Settings, machine: Machine, minutes: float | None = None) -> bool:
    """Run all stages, or those named. Returns whether every one came to its end, or was told to stop.

    Raises:
        ConfigurationError: before anything is run, when an entry is wrong, a file is missing, or what a stage needs is
            neither finished nor among those to run.
    """
    end = None if minutes is None else time.monotonic() + 60.0 * minutes
    environment = machine.environment()
    chosen = plan.chosen(only)
    jobs = make_jobs(plan, settings)
    needed = {name: [jobs[other] for other in job.needs] for name, job in jobs.items()}
    wrong = missing_files(plan, jobs, chosen)
    for name in chosen:
        unmade = [job.name for job in needed[name] if job.name not in chosen and not job.is_finished(needed[job.name])]
        wrong += [f"{name} needs {other}, which is not finished: add --only {other}" for other in unmade]
    if wrong:
        raise ConfigurationError("; ".join(dict.fromkeys(wrong)) + ".")
    board = Board({name: Running(jobs[name]) for name in chosen})
    for name, stage in board.stages.items():
        if stage.job.is_finished(needed[name]):
            stage.state = FINISHED
    live = Live(console=board.console, refresh_per_second=2) if board.console.is_terminal else None
    try:
        with live or nullcontext():
            _run(board, needed, environment, machine.jobs, end, live)
    except KeyboardInterrupt:
        stop(board, needed)
        failed = []
    else:
        failed = board.of(FAILED, STOPPED, LEFT_OUT)
    finally:
        for stage in board.of(RUNNING):  # an error of this process must not leave any behind
            assert stage.process is not None
            stage.process.terminate()
    board.console.print(board.table())
    for stage in failed:
        board.console.print(f"{stage.job.name}: {stage.reason} ({stage.job.log})", markup=False, soft_wrap=True)
    return not failed


def _run(
    board: Board,
    needed: dict[str, list[Job]],
    environment: dict[str, str],
    at_once: int,
    end: float | None,
    live: Live | None,
) -> None:
    while board.of(WAITING, RUNNING):
        for stage in board.of(RUNNING):
            if stage.look(needed[stage.job.name]):
                logger.info("%s: %s%s", stage.job.name, stage.state, f", {stage.reason}" if stage.reason else "")
        for stage in board.of(WAITING):
            lost = [
                name
                for name in stage.job.needs
                if name in board.stages and board.stages[name].state in (FAILED, STOPPED, LEFT_OUT)
            ]
            if lost:
                stage.state, stage.reason = LEFT_OUT, f"it needs {', '.join(lost)}"
        _begin(board, environment, at_once, end)
        if end is not None and time.monotonic() > end + 60.0 * LATE_MINUTES:
            for stage in board.of(RUNNING):
                if stage.job.trains and stage.process is not None:
                    stage.process.terminate()
        board.tell(live)
        time.sleep(POLL_SECONDS)


def _begin(board: Board, environment: dict[str, str], at_once: int, end: float | None) -> None:
    """Whatever may begin now, as many as there is room for, each with its share of the time that is left."""
    while True:
        running = board.of(RUNNING)
        waiting = {stage.job.name: Waiting(stage.job.weight, stage.job.needs) for stage in board.of(WAITING)}
        names = ready(waiting, [stage.job.name for stage in running])
        if not names or len(running) >= at_once:
            return
        stage = board.stages[names[0]]
        minutes = None
        if end is not None and stage.job.trains:
            trainings = {name: one for name, one in waiting.items() if board.stages[name].job.trains}
            left = {one.job.name: one.minutes_left for one in running if one.job.trains}
            by_weight = minutes_by_weight(trainings, left, (end - time.monotonic()) / 60.0, at_once)
            minutes = stage.job.weight * by_weight
            if minutes <= 0.0:
                stage.state, stage.reason = LEFT_OUT, "no time is left for it"
                continue
        stage.begin(environment, minutes)
        within = "" if minutes is None else f", with {minutes:.1f} minutes"
        logger.info("%s: begins%s (%s)", stage.job.name, within, stage.job.log)


def stop(board: Board, needed: dict[str, list[Job]]) -> None:
    """End every process; a training writes a checkpoint after its step. Asking again does not hurry them."""
    for stage in board.of(RUNNING):
        assert stage.process is not None
        stage.process.terminate()
    board.console.print("stops: every training ends its step and writes a checkpoint")
    while board.of(RUNNING):
        try:
            for stage in board.of(RUNNING):
                stage.look(needed[stage.job.name])
                if stage.state == FAILED:  # a package, or a training before its first step, has nothing to keep
                    stage.state = STOPPED
            time.sleep(POLL_SECONDS / 5.0)
        except KeyboardInterrupt:
            continue
    for stage in board.of(WAITING):
        stage.state = STOPPED
