"""One scan of a cohort, as a worker does it: what goes in, what comes back, and what became of a failure.

Both cross to other processes and machines, so they hold plain values alone.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..detection.scan import ScanRequest, Silent, run_scan
from ..errors import NO_SPACE, Cancelled, DiskFull, EngineError, InputError, MemoryExhausted, ModelError
from ..system import as_engine_error
from .derivatives import Export, export
from .state import COHORT, inputs_of

if TYPE_CHECKING:
    from ..detection.planning import Options

FAULT = "This is a fault of the program; diffusion-anomaly --debug detect SCAN shows where."
# What passes: a network disk that stumbles, or another process that is just about to end.
_PASSING = {
    number
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EWOULDBLOCK", "EBUSY", "EINTR", "EHOSTDOWN", "ENETDOWN")
    if (number := getattr(errno, name, None)) is not None
}

BAD_INPUT, MODEL, OUT_OF_MEMORY, INTERNAL = "bad_input", "model", "out_of_memory", "internal"
INPUT_OUTPUT, DISK_FULL, WORKER_DIED = "input_output", DiskFull.code, "worker_died"
PASSING = {OUT_OF_MEMORY, INPUT_OUTPUT, WORKER_DIED}
"""Kinds of failures after which another try may succeed."""
FOR_ALL = {MODEL, DISK_FULL}
"""Kinds that would meet every other scan too."""
_ERRORS: dict[str, type[EngineError]] = {
    **{error.code: error for error in (InputError, DiskFull, ModelError, MemoryExhausted, Cancelled)},
    INPUT_OUTPUT: InputError,
}


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Attributes:
        name: of the scan.
        request: what to read and where to write.
        about: entries of the result's provenance under ``cohort``, without what it was made of.
        export: what to write as BIDS derivatives besides.
        finished: whether the result is there, and only the derivatives are missing.
    """

    name: str
    request: ScanRequest
    about: Mapping[str, Any] = field(default_factory=dict)
    export: Export | None = None
    finished: bool = False


@dataclass(frozen=True)
class Failure:
    """Why there is no result.

    Attributes:
        kind: ``bad_input``, ``model``, ``out_of_memory``, ``internal``, ``input_output``, ``disk_full`` or
            ``worker_died``.
        what, hint: as those of an error.
    """

    kind: str
    what: str
    hint: str = ""

    def as_error(self, advice: str = "") -> EngineError:
        """The error that a detection of this scan alone would have ended with, with further advice."""
        kind = _ERRORS.get(self.kind, EngineError)
        return kind(self.what, f"{self.hint} {advice}".strip())


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        seconds: that it took.
        findings: how many there are.
        size, unit: of all together.
        warnings: reasons to doubt the result.
        failure: set when there is no result.
    """

    seconds: float = 0.0
    findings: int = 0
    size: float = 0.0
    unit: str = "ml"
    warnings: tuple[str, ...] = ()
    failure: Failure | None = None


Runner = Callable[[Task], Outcome]
"""Does one task after the other, and raises nothing but a request to stop."""


class ScanRunner:
    """Detects with one detector, which is loaded once.

    Args:
        options: of the detector.

    Raises:
        EngineError: as making a ``Detector``.
    """

    def __init__(self, options: Options) -> None:
        from ..detection.detector import Detector

        self.detector = Detector(options)

    def __call__(self, task: Task) -> Outcome:
        """The task done, or why it was not.

        Raises:
            Cancelled: when the user stopped it.
        """
        start = time.perf_counter()
        try:
            outcome = Outcome() if task.finished else self._detect(task)
            if task.export is not None:
                export(task.request.output, task.export)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - one scan never stops the others
            outcome = Outcome(failure=failure_of(error))
        return replace(outcome, seconds=time.perf_counter() - start)

    def _detect(self, task: Task) -> Outcome:
        about = {COHORT: {**task.about, "inputs": inputs_of(task.request)}}
        result, _ = run_scan(self.detector, task.request, Silent(), about=about)
        size = sum(finding.size for finding in result.findings)
        return Outcome(findings=len(result.findings), size=size, unit=result.unit, warnings=tuple(result.warnings))


def failure_of(error: Exception) -> Failure:
    """An exception as a failure of its kind, by the operating system's error behind it where there is one."""
    told = as_engine_error(error, FAULT)
    numbers = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
    if isinstance(told, MemoryExhausted):
        kind = OUT_OF_MEMORY
    elif numbers & NO_SPACE:
        kind = DISK_FULL
    elif numbers & _PASSING:
        kind = INPUT_OUTPUT
    else:
        kind = MODEL if isinstance(told, ModelError) else told.code
    return Failure(kind, told.what, told.hint)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found
