"""How far a training is: a bar with time left on a terminal, a line every half minute in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0


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
        elif time.monotonic() - self.spoken > LINE_SECONDS or step == self.total:
            self.spoken = time.monotonic()
            left = (self.spoken - self.started) / (step - self.first) * (self.total - step)
            shown = ", ".join(f"{k} {v:.4g}" for k, v in scalars.items())
            logger.info("step %d of %d, %.1f minutes left: %s", step, self.total, left / 60.0, shown)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
