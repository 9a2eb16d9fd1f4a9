"""One scan from file to files: what the command line and the worker do alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..errors import Cancelled, EngineError, InputError, MemoryExhausted
from ..io.outputs import OutputFolder
from ..io.volume import read_mask, read_volume
from ..models.declaration import IMAGE
from ..results.result import Progress, Result, Started
from ..results.saving import file_names, save
from ..system import is_out_of_memory
from .detector import Detector


@dataclass(frozen=True)
class ScanRequest:
    """What to read and where to write.

    Attributes:
        scan: file or DICOM folder.
        output: folder for the results.
        brain: brain mask file; None lets the network find the brain.
        series: which series of a DICOM folder.
        frame: which volume of a 4-D scan, counted from 0.
        title: what the user calls the scan; empty for the name of its file.
    """

    scan: Path
    output: Path
    brain: Path | None = None
    series: str | None = None
    frame: int | None = None
    title: str = ""


class Listener(Protocol):
    """Who is told how a scan goes."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage that the detector does not report: ``read`` or ``write``."""
        ...

    def progress(self, now: Progress) -> None: ...

    def started(self, event: Started) -> None: ...

    def warning(self, message: str) -> None: ...


def run_scan(detector: Detector, request: ScanRequest, listener: Listener) -> tuple[Result, dict[str, Path]]:
    """Read, detect, write.

    Returns:
        The result and its files by kind, see ``results.saving.save``.

    Raises:
        InputError: before anything is computed, when a file that is no earlier result is in the way of one.
        EngineError: as reading, a detection and writing raise it. A folder that was made for results is gone then.
    """
    listener.stage("read", 0, 1)
    inputs = [path for path in (request.scan, request.brain) if path is not None]
    folder = OutputFolder(request.output, inputs)
    try:
        with folder:
            kept = ["scan"] if detector.plan.asked.keep_reconstruction else []
            whole = detector.plan.bundle.region == IMAGE
            folder.check(file_names(str(request.scan), kept, whole).values())
            volume = read_volume(request.scan, series=request.series, frame=request.frame)
            volume = replace(volume, title=request.title)
            brain = None if request.brain is None else read_mask(request.brain, volume)
            listener.stage("read", 1, 1)
            result = detector(
                volume,
                brain=brain,
                progress=listener.progress,
                on_started=listener.started,
                on_warning=listener.warning,
            )
            listener.stage("write", 0, 1)
            files = save(result, folder)
    except KeyboardInterrupt:
        became = "its results are complete" if folder.published else "nothing was written"
        raise Cancelled(f"Stopped by the user; for {request.scan}, {became}.") from None
    return result, files


def as_engine_error(error: Exception, hint: str) -> EngineError:
    """The error as the user should read it.

    Args:
        error: any.
        hint: what to do about one that only a fault of the program explains.
    """
    if isinstance(error, EngineError):
        return error
    reason = str(error) or type(error).__name__
    if is_out_of_memory(error):
        return MemoryExhausted(
            f"Memory ran out ({reason}).", "Close other programs, or use a machine with more memory."
        )
    if isinstance(error, OSError) and error.errno is not None:  # the machine's fault or the user's, not the program's
        where = f"{error.filename}: " if error.filename else ""
        return InputError(f"{where}{error.strerror}.", "The operating system refused; see to that and try again.")
    return EngineError(f"{type(error).__name__}: {error}" if str(error) else reason, hint)
