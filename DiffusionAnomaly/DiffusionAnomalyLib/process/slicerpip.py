"""An installation by Slicer's own functions, which tell the whole application that packages are being installed.

They hand out no process. To stop one it is found among the children of this process: the one that was not there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import slicer

from ..translation import tr as _
from .process import childrenOf, killTree

REQUESTER = "DiffusionAnomaly"


class SlicerPip:
    """A ``WorkerProcess`` for commands of the form ``python -m module arguments``."""

    def __init__(self) -> None:
        self.onOutput: Callable[[bytes], None] = lambda data: None
        self.onErrorOutput: Callable[[bytes], None] = lambda data: None
        self.onFinished: Callable[[int | None], None] = lambda code: None
        self._running = False
        self._started: list[int] = []

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Start it; environment and folder are those that Slicer chooses."""
        import slicer.packaging as installer

        if installer.isPipInstallInProgress():
            raise OSError(_("other Python packages are being installed; wait until that has ended"))
        module, arguments = command[2], list(command[3:])
        before = childrenOf(os.getpid())
        callbacks = {"logCallback": self._hear, "completedCallback": self._ended}
        self._running = True
        try:
            if module == "pip":
                installer.pip_install(arguments[1:], blocking=False, requester=REQUESTER, **callbacks)
                if not installer.isPipInstallInProgress():  # while it is tested, Slicer waits, and calls nothing back
                    self._ended(0)
            else:
                slicer.util.executePythonModule(module, arguments, blocking=False, **callbacks)
        except Exception as error:
            self._running = False
            raise OSError(str(error)) from error
        self._started = [child for child in childrenOf(os.getpid()) if child not in before]

    def write(self, data: bytes) -> None:
        """It has no standard input."""

    def kill(self) -> None:
        children = childrenOf(os.getpid()) if self._running else []
        for process in self._started:
            if process in children:
                killTree(process)

    def poll(self) -> None:
        """The event loop delivers."""

    def isRunning(self) -> bool:
        return self._running

    def _hear(self, line: str) -> None:
        self.onOutput(line.encode("utf-8", "backslashreplace"))

    def _ended(self, code: int) -> None:
        if self._running:
            self._running = False
            self.onFinished(code if code >= 0 else None)
