"""The background process inside Slicer: ``QProcess``, which streams without threads and works on every platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import qt

from .process import SECONDS_TO_DIE, killTree


class QtProcess:
    """An ``OwnedProcess`` whose callbacks come from Qt's event loop."""

    def __init__(self) -> None:
        self.onOutput: Callable[[bytes], None] = lambda data: None
        self.onErrorOutput: Callable[[bytes], None] = lambda data: None
        self.onFinished: Callable[[int | None], None] = lambda code: None
        self._running = False
        self._process = qt.QProcess()
        self._connections = {
            "readyReadStandardOutput()": self._readOutput,
            "readyReadStandardError()": self._readErrorOutput,
            "finished(int,QProcess::ExitStatus)": self._finished,
        }
        for signal, handler in self._connections.items():
            self._process.connect(signal, handler)

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)
        self._process.setWorkingDirectory(str(folder))
        self._process.start(command[0], list(command[1:]))
        if not self._process.waitForStarted():
            raise OSError(f"{command[0]} cannot be started: {self._process.errorString()}.")
        self._running = True

    def write(self, data: bytes) -> None:
        if self._running:
            self._process.write(qt.QByteArray(data))

    def kill(self) -> None:
        if self._running:
            killTree(int(self._process.processId()))
            self._process.kill()
            self._process.waitForFinished(int(SECONDS_TO_DIE * 1000))

    def end(self, seconds: float) -> None:
        if self._running:
            self._process.closeWriteChannel()
            self._process.waitForFinished(int(seconds * 1000))
            self.kill()

    def poll(self) -> None:
        """The event loop delivers."""

    def isRunning(self) -> bool:
        return self._running

    def _readOutput(self) -> None:
        self.onOutput(self._process.readAllStandardOutput().data())

    def _readErrorOutput(self) -> None:
        self.onErrorOutput(self._process.readAllStandardError().data())

    def _finished(self, code: int, status: int) -> None:
        if not self._running:
            return
        # What came with the end has no signal of its own.
        self._readOutput()
        self._readErrorOutput()
        self._running = False
        # Not within the handler itself, which must outlive the call.
        qt.QTimer.singleShot(0, self._letGo)
        self.onFinished(code if status == qt.QProcess.NormalExit else None)

    def _letGo(self) -> None:
        """Drop all that is called back: a connection would keep this object, and all that it knows, for good."""
        for signal, handler in self._connections.items():
            self._process.disconnect(signal, handler)
        self._connections = {}
        self.onOutput = self.onErrorOutput = lambda data: None
        self.onFinished = lambda code: None
