"""How the engine is started: Slicer's own Python, with the engine on its path, in Slicer's start-up environment.

The worker is one way to start it; a ``Question`` is the other, for what only a process of its own can answer because it
may import torch and matplotlib.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .process import WorkerProcess

# Also where processes without a folder of their own are started: it is on their path anyway, so that as a working
# directory it adds nothing to what they can import.
MODULE_FOLDER = Path(__file__).resolve().parents[2]


def pythonProgram() -> str:
    """``PythonSlicer`` of this Slicer; without one, as with ``slicer-core``, the Python that runs."""
    import slicer

    app = getattr(slicer, "app", None)
    if app is not None:
        suffix = ".exe" if sys.platform == "win32" else ""
        program = Path(app.slicerHome, "bin", f"PythonSlicer{suffix}")
        if program.is_file():
            return str(program)
    return shutil.which("PythonSlicer") or sys.executable


def workerCommand() -> list[str]:
    """The worker's command line, without the job's folder."""
    return [pythonProgram(), "-m", "diffusion_anomaly.worker"]


def workerEnvironment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The worker's environment.

    Args:
        base: what to start from; None for the environment that Slicer itself was started in, because the launcher sets
            its own up again.
    """
    if base is None:
        import slicer

        inSlicer = getattr(slicer, "app", None) is not None
        base = slicer.util.startupEnvironment() if inSlicer else os.environ
    environment = dict(base)
    path = [str(MODULE_FOLDER), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    # From Python 3.11 on, the working directory is not on the path at all; before, it must be a folder of ours.
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONUTF8"] = "1"  # the log's letters do not depend on a locale
    return environment


class Question:
    """One question to ``diffusion_anomaly.worker.probe``, whose answer is one line of JSON.

    Args:
        process: not started yet.
        arguments: of the probe, such as ``machine``.
        onAnswer: takes the answer, once; empty when there was none.

    Attributes:
        isOpen: whether the answer is still to come.
    """

    def __init__(
        self, process: WorkerProcess, arguments: Sequence[str], onAnswer: Callable[[dict[str, Any]], None]
    ) -> None:
        self.isOpen = True
        self._onAnswer = onAnswer
        self._said = b""
        self._process = process
        process.onOutput = self._hear
        process.onFinished = self._finished
        try:
            command = [pythonProgram(), "-m", "diffusion_anomaly.worker.probe", *arguments]
            process.start(command, workerEnvironment(), MODULE_FOLDER)
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
        self.isOpen = False
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
