"""Questions to the engine that only a process of its own can answer, because it may import torch and matplotlib."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from .environment import pythonProgram, workerEnvironment
from .process import WorkerProcess


class Question:
    """One question to ``diffusion_anomaly.probe``, whose answer is one line of JSON.

    Args:
        process: not started yet.
        arguments: of the probe, such as ``machine``.
        onAnswer: takes the answer, once; empty when there was none.
    """

    def __init__(
        self, process: WorkerProcess, arguments: Sequence[str], onAnswer: Callable[[dict[str, Any]], None]
    ) -> None:
        self._onAnswer = onAnswer
        self._said = b""
        self._process = process
        process.onOutput = self._hear
        process.onFinished = self._finished
        try:
            process.start([pythonProgram(), "-m", "diffusion_anomaly.probe", *arguments], workerEnvironment())
        except OSError:
            self._finished(None)

    def tick(self) -> None:
        """To be called a few times a second."""
        self._process.poll()

    def close(self) -> None:
        """Ask no more; no answer comes."""
        self._onAnswer = lambda answer: None
        self._process.kill()

    def _hear(self, data: bytes) -> None:
        self._said += data

    def _finished(self, code: int | None) -> None:
        self._onAnswer(self._answer())

    def _answer(self) -> dict[str, Any]:
        for line in reversed(self._said.decode("utf-8", "replace").splitlines()):
            try:
                answer = json.loads(line)
            except ValueError:  # something else was printed
                continue
            if isinstance(answer, dict):
                return answer
        return {}
