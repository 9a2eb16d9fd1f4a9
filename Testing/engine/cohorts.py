"""What hears a cohort's run in tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusion_anomaly.cohort.tasks import Failure, Outcome, Task


@dataclass
class Heard:
    """What a run told."""

    begun: list[tuple[int, int]] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    retries: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def begin(self, to_do: int, finished: int, workers: str) -> None:
        self.begun.append((to_do, finished))

    def ended(self, task: Task, outcome: Outcome, now: Any) -> None:
        self.outcomes[task.name] = outcome

    def retry(self, task: Task, failure: Failure) -> None:
        self.retries.append(task.name)

    def tick(self, now: Any) -> None:
        return None

    def warning(self, message: str) -> None:
        self.warnings.append(message)
