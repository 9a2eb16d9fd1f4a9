"""What crosses the border between Slicer and the worker: the job file, the event lines and the exit codes.

Standard library only. Slicer's own process imports this file and must neither wait for torch nor crash with
it; the worker imports the same file, so both sides read and write one format.

    >>> encode(Warned("the scan has 3 voxels that are no number"))
    '{"event": "warning", "message": "the scan has 3 voxels that are no number"}'
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

from ..errors import NO_SPACE, DiskFull, InputError
from ..io.typed_json import MAX_BYTES, checked, kind_of, parse
from ..options import shown
from ..registry import DEFAULT_METHOD

SCHEMA_VERSION = 2
READABLE = (1, 2)  # version 1 said keep_healed for keep_reconstruction
JOB_FILE = "job.json"
LOG_FILE = "worker.log"
CANCEL_LINE = "cancel"
RUN_COMMAND, RELEASE_LINE = "run", "release"  # to a worker that serves several jobs
IDLE_SECONDS = 600.0  # after which such a worker gives its memory back
GRACE_SECONDS = 3.0  # between the request to stop and the hard end, on both sides of the border


class ExitCode(IntEnum):
    """How the worker ends."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    MODEL = 3
    OUT_OF_MEMORY = 4
    CANCELLED = 5


@dataclass(frozen=True)
class Job:
    """One detection to run.

    Relative paths are taken from the job's own directory, so that a job directory may be moved.

    Attributes:
        input: the scan: a file, or a folder of one DICOM series; empty when there are channels.
        output: folder for the results; made if it does not exist.
        method: name of a method.
        model: name of a model package or its directory; None takes the method's default.
        mask: brain mask on the scan's grid; None lets the bundled network find the brain.
        options: every other option of ``detection.planning.Options`` by its name.
        title: what the user calls the scan, for messages and the report; empty for the name of its file.
        channels: for a model of several contrasts, each one's file by the channel's name, instead of ``input``.
        overwrite: whether the result of another scan in ``output`` may make room.
        dicom: whether the results are written as DICOM objects too.
        dicom_pdf: whether they are, and the report as an encapsulated PDF with them.
    """

    input: str
    output: str
    method: str = DEFAULT_METHOD
    model: str | None = None
    mask: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    channels: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    dicom: bool = False
    dicom_pdf: bool = False


def write_job(job: Job, directory: Path | str) -> Path:
    """Write ``job.json`` into ``directory`` in one step, so that a job file that exists is whole."""
    path = Path(directory) / JOB_FILE
    temporary = path.with_name(f".{JOB_FILE}.{os.getpid()}")
    try:
        text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(job)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The job holds a value that JSON cannot carry: {error}.", "Use plain values.") from error
    try:
        temporary.write_text(text + "\n", encoding="ascii")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may never have come into being
            temporary.unlink()
        kind = DiskFull if error.errno in NO_SPACE else InputError
        raise kind(f"{path} cannot be written: {error.strerror or error}.", "Choose another folder.") from error
    return path


def read_job(directory: Path | str) -> Job:
    """Read and check ``job.json``; the paths come back absolute.

    Raises:
        InputError: for a job that is missing, cut short, of another schema, or has unknown, missing or
            ill-typed entries.
    """
    directory = Path(directory)
    path = directory / JOB_FILE
    try:
        content = parse(_read(path))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}.",
            f"Start the worker with a folder that holds {JOB_FILE}.",
        ) from error
    except ValueError as error:  # not UTF-8, not JSON, or beyond all bounds
        raise InputError(
            f"{path} is not JSON that a job may hold: {error}.", "The file was cut short or edited; start the job anew."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {kind_of(content)}, expected a JSON object.", "Start the job anew.")
    version = content.pop("schema_version", None)
    if type(version) is not int or version not in READABLE:
        raise InputError(
            f"{path} has schema version {shown(version)}, "
            f"this worker reads versions {' and '.join(map(str, READABLE))}.",
            "Slicer module and engine are of different versions; update both and start Slicer anew.",
        )
    job = checked(Job, content, str(path))
    if version == 1 and "keep_healed" in job.options:
        options = dict(job.options)
        options["keep_reconstruction"] = options.pop("keep_healed")
        job = replace(job, options=options)
    named = {name: getattr(job, name) for name in ("input", "output", "model", "mask")} | dict(job.channels)
    for name, text in named.items():
        if "\0" in (text or ""):
            raise InputError(f"{path}: {name[:40]} holds a null character, which no path can.", "Start the job anew.")
    base = directory.absolute()
    if not (job.input or job.channels) or not job.output:
        raise InputError(f"{path}: input and output must not be empty.", "Name the scan and the folder for results.")
    if job.input and job.channels:
        raise InputError(f"{path} has both input and channels.", "Name a single scan, or each channel's.")
    if not all(job.channels.values()):
        raise InputError(f"{path}: a channel has no file.", "Name the file of each channel.")
    model = job.model
    if model is not None and {"/", os.sep} & set(model):  # else it is a name
        model = str(base / model)
    mask = None if job.mask is None else str(base / job.mask)
    channels = {name: str(base / file) for name, file in job.channels.items()}
    first = str(base / job.input) if job.input else ""
    return replace(job, input=first, channels=channels, output=str(base / job.output), model=model, mask=mask)


def _read(path: Path) -> bytes:
    """The bytes of a job file; ``ValueError`` for what is no file or too large for one, before it is opened or read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"{found.st_size} bytes are more than the {MAX_BYTES} of a job")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def run_line(directory: Path | str) -> str:
    """The command that hands a job to a worker that serves several, without its end of line."""
    return f"{RUN_COMMAND} {json.dumps(str(directory))}"


def job_of(line: str) -> Path:
    """The directory that a command line names.

    Raises:
        InputError: when it is no such command.
    """
    command, _, argument = line.partition(" ")
    try:
        directory = parse(argument.encode()) if command == RUN_COMMAND else None
    except ValueError:
        directory = None
    if not isinstance(directory, str) or not directory or "\0" in directory:
        raise InputError(
            f"The command {line[:200]!r} is not known.",
            f'Send {RUN_COMMAND} "JOBDIR", {CANCEL_LINE} or {RELEASE_LINE}.',
        )
    return Path(directory)


@dataclass(frozen=True)
class Started:
    """The scan is read and the model is loaded; slices are being looked at from now on.

    Attributes:
        device: where the network runs, such as ``cpu`` or ``cuda:0``.
        model: name of the model package; None for a method without one.
        version: version of the model package; None for a method without one.
        slices: how many slices will be looked at.
    """

    event: ClassVar[str] = "started"
    device: str
    model: str | None
    version: str | None
    slices: int


@dataclass(frozen=True)
class Progress:
    """How far a stage is, out of ``total`` units of that stage."""

    event: ClassVar[str] = "progress"
    stage: str
    done: int
    total: int
    seconds_elapsed: float
    seconds_left: float | None = None


@dataclass(frozen=True)
class Warned:
    """Something to know about the result, which comes all the same."""

    event: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class Result:
    """Everything is written. ``files`` maps what a file is to its absolute path."""

    event: ClassVar[str] = "result"
    files: Mapping[str, str]
    statistics: Mapping[str, Any]
    timings: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A worker that serves several jobs has ended one; what became of it was said before.

    Attributes:
        exit_code: as a worker of that one job would have ended, see ``ExitCode``.
    """

    event: ClassVar[str] = "finished"
    exit_code: int


@dataclass(frozen=True)
class Failure:
    """The job ended without a result.

    Attributes:
        code: ``bad_input``, ``disk_full``, ``model``, ``out_of_memory``, ``cancelled`` or ``internal``.
        what: what happened, in one sentence.
        hint: what to do; may be empty.
    """

    event: ClassVar[str] = "error"
    code: str
    what: str
    hint: str = ""


Event = Started | Progress | Warned | Result | Failure | Finished
_EVENTS: dict[str, type] = {kind.event: kind for kind in (Started, Progress, Warned, Result, Failure, Finished)}


def encode(event: Event) -> str:
    """One line of ASCII JSON without its end of line.

    ASCII because the locale of a process started by Slicer is not known. Numbers that are not finite become
    null, because JSON has none, and paths become text.
    """
    return json.dumps({"event": event.event, **_plain(asdict(event))}, allow_nan=False)


def decode(line: str | bytes) -> Event:
    """The event of a line.

    Raises:
        InputError: when the line is no event of this version.
    """
    data = line if isinstance(line, bytes) else line.encode(errors="replace")
    try:
        content = parse(data)
    except ValueError:
        content = {}
    content = content if isinstance(content, dict) else {}
    name = content.pop("event", None)
    if not isinstance(name, str) or name not in _EVENTS:
        raise InputError(
            f"Not an event line: {data.strip()[:200].decode(errors='replace')!r}.", "Look into worker.log."
        )
    return checked(_EVENTS[name], content, f"event {name}")


def _plain(value: Any) -> Any:
    """The same with JSON's own types alone."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a number of numpy or torch, without importing either
        return _plain(value.item())
    raise TypeError(f"An event cannot carry {type(value).__name__}.")
