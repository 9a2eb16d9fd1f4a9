"""How far a training is: a bar with time left on a terminal, a line every half minute in a log, a file for programs."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
FIRST_LINES = 3  # the first steps' losses are told at once: a training that goes wrong mostly does so there
FILE_SECONDS = 1.0
STEPS_TOLD = 5  # losses that the file gives the mean of, the first so many and the last


class StepProgress:
    """Context in which a training reports its steps.

    Args:
        total: steps of the whole training.
        done: steps that earlier sessions have done.
        show: whether this process speaks; one of several does.
    """

    def __init__(self, total: int, done: int, show: bool) -> None:
        self.total, self.first, self.show = total, done, show
        self.bar: Progress | None = None
        self.started = self.spoken = time.monotonic()
        console = Console(stderr=True)
        if show and console.is_terminal:
            self.bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
            )

    def __enter__(self) -> StepProgress:
        self.started = self.spoken = time.monotonic()
        if self.bar is not None:
            self.bar.start()
            self.row = self.bar.add_task("", total=self.total, completed=self.first)
        return self

    def advance(self, step: int, scalars: Mapping[str, float]) -> None:
        """``step`` steps are done; ``scalars`` are the last one's."""
        if not self.show:
            return
        if self.bar is not None:
            self.bar.update(self.row, completed=step, description=f"loss {scalars['loss']:.4f}")
        elif time.monotonic() - self.spoken > LINE_SECONDS or step == self.total or step - self.first <= FIRST_LINES:
            self.spoken = time.monotonic()
            left = (self.spoken - self.started) / (step - self.first) * (self.total - step)
            shown = ", ".join(f"{k} {v:.4g}" for k, v in scalars.items())
            logger.info("step %d of %d, %.1f minutes left: %s", step, self.total, left / 60.0, shown)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


class ProgressFile:
    """``progress.json`` in a run's folder: how far the training is, for whoever started it.

    Args:
        path: the file; an earlier session's is gone on with.
        steps: of the whole training.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps
        self.first: list[float] = read_progress(path).get("first_losses", [])
        self.last: deque[float] = deque(maxlen=STEPS_TOLD)
        self.written = 0.0

    def advance(self, loss: float, **entries: Any) -> None:
        """The loss of the step just done, and what else there is to say."""
        if len(self.first) < STEPS_TOLD:
            self.first.append(loss)
        self.last.append(loss)
        if time.monotonic() - self.written > FILE_SECONDS:
            self.write(**entries)

    def write(self, **entries: Any) -> None:
        self.written = time.monotonic()
        if self.last:
            entries["loss"] = sum(self.last) / len(self.last)
        self.path.write_text(json.dumps({"steps": self.steps, "first_losses": self.first, **entries}), encoding="utf-8")


def read_progress(path: Path) -> dict[str, Any]:
    """What ``ProgressFile`` wrote: step, steps, spent, seconds, loss, first_losses, complete; nothing before that."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not yet, or being written
        return {}
    return found if isinstance(found, dict) else {}
