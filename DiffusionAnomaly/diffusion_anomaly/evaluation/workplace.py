"""Where the images of an evaluation lie, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..io.files import file_stem
from ..io.outputs import prepare_folder
from ..results.result import Progress
from ..text import distinct_names


class Places:
    """Where the images of an evaluation lie: every run and every scan has a name of its own that each system takes."""

    def __init__(self, root: Path, labels: Sequence[str], names: Sequence[str]) -> None:
        self._root = root
        self.labels = dict(zip(labels, distinct_names(map(file_stem, labels)), strict=True))
        self._names = dict(zip(names, distinct_names(map(file_stem, names)), strict=True))

    def files(self) -> list[str]:
        """All names that may come to be."""
        folders = ["brain", *(f"heat/{label}" for label in self.labels.values())]
        return [f"{folder}/{name}.nii.gz" for folder in folders for name in self._names.values()]

    def anomaly_map(self, label: str, name: str) -> Path:
        return self._file(Path("heat", self.labels[label]), name)

    def brain(self, name: str) -> Path:
        return self._file(Path("brain"), name)

    def _file(self, folder: Path, name: str) -> Path:
        return prepare_folder(self._root / folder) / f"{self._names[name]}.nii.gz"


class Clock:
    """Progress over all runs and scans, weighted by network calls, with the time left."""

    def __init__(self, listener: Callable[[Progress], None] | None) -> None:
        self._listener = listener
        self._start = time.perf_counter()
        self._stage, self._stage_start, self._total, self._done = "", 0.0, 1, 0

    def enter(self, stage: str, total: int) -> None:
        if stage != self._stage:
            self._stage, self._stage_start, self._total, self._done = stage, time.perf_counter(), total, 0

    def report(self, done: int) -> None:
        if self._listener is None:
            return
        now = time.perf_counter()
        remaining = (now - self._stage_start) * (self._total - done) / done if done else None
        self._listener(Progress(self._stage, done, self._total, now - self._start, remaining))

    def inside(self, weight: int) -> Callable[[Progress], None]:
        """What a detection of that weight reports to."""

        share = 0.0

        def report(now: Progress) -> None:
            nonlocal share
            if now.stage == "detect":
                share = max(share, now.done / max(1, now.total))
            self.report(self._done + int(share * weight))

        return report

    def finished(self, weight: int) -> None:
        self._done += weight
        self.report(self._done)
