"""Time, progress and warnings of one detection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import InputError
from ..results.result import Progress, Started
from .recognition import Verdict


@dataclass
class Watch:
    """Time and warnings of one detection, told to whoever listens."""

    on_progress: Callable[[Progress], None] | None = None
    on_started: Callable[[Started], None] | None = None
    on_warning: Callable[[str], None] | None = None
    warnings: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)
    stage: str = ""
    stage_start: float = 0.0

    def judge(self, verdict: Verdict | None, hint: str, force: bool) -> None:
        """Warn of a verdict, or stop for it.

        Raises:
            InputError: when it is grave and nobody insists.
        """
        if verdict is None:
            return
        if verdict.refused and not force:
            raise InputError(verdict.message, hint)
        self.warn(verdict.message)

    def enter(self, stage: str, total: int = 1) -> None:
        self.leave()
        self.stage, self.stage_start = stage, time.perf_counter()
        self.report(0, total)

    def leave(self) -> None:
        if self.stage:
            spent = time.perf_counter() - self.stage_start
            self.timings[self.stage] = self.timings.get(self.stage, 0.0) + spent
        self.stage = ""

    def report(self, done: int, total: int) -> None:
        if self.on_progress is None:
            return
        now = time.perf_counter()
        remaining = (now - self.stage_start) * (total - done) / done if done else None
        self.on_progress(Progress(self.stage, done, total, now - self.start, remaining))

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        if self.on_warning is not None:
            self.on_warning(message)
