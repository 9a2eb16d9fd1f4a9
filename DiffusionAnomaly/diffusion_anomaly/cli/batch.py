"""One scan after the other, from file to files; one that fails is reported and the others go on."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Cancelled, EngineError, MemoryExhausted
from ..io.files import prepare_folder, remove_if_empty
from ..system import is_out_of_memory

if TYPE_CHECKING:
    from ..detection.planning import Options, Plan
    from .console import Listener

log = logging.getLogger(__name__)

_IMAGE_SUFFIXES = re.compile(r"(\.nii|\.mgh|\.nrrd|\.nhdr|\.mha|\.mhd|\.mgz|\.hdr|\.img|\.dcm)?(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What to read and where to write, besides the detection's options.

    Attributes:
        scans: files or DICOM folders.
        output: folder for the results; with several scans the parent of one folder each.
        mask: brain mask file for the one scan; None lets the network find the brain.
        series: which series of a DICOM folder.
        frame: which volume of a 4-D scan, counted from 0.
    """

    scans: Sequence[Path]
    output: Path
    mask: Path | None = None
    series: str | None = None
    frame: int | None = None


def run_batch(request: Request, options: Options, listener: Listener) -> int:
    """Detect in every scan.

    Returns:
        0, or the exit code of the first scan that failed.

    Raises:
        EngineError: for what is wrong with the options or the model, and so with every scan.
        Cancelled: when the user stopped it; no further scan is begun.
    """
    from ..detection.planning import make_plan

    several = len(request.scans) > 1
    folders = output_folders(request.scans, request.output) if several else [request.output]
    plan = None
    first_failure = 0
    with listener:
        for scan, folder in zip(request.scans, folders, strict=True):
            listener.begin(scan, several)
            existed = folder.exists()
            try:
                if plan is None and scan.exists():  # a missing file is refused at once, before torch is loaded
                    plan = make_plan(options)
                _run_one(scan, folder, request, options, plan, listener)
            except Exception as error:
                _clean(folder, request.output, existed)
                log.debug("%s failed", scan, exc_info=True)
                failure = as_engine_error(error)
                if isinstance(failure, Cancelled) or (plan is None and scan.exists()):
                    raise failure from error
                listener.failed(failure)
                first_failure = first_failure or failure.exit_code
            except KeyboardInterrupt:
                _clean(folder, request.output, existed)
                raise Cancelled(f"Stopped by the user; nothing was written for {scan}.") from None
    return first_failure


def _run_one(
    scan: Path, folder: Path, request: Request, options: Options, plan: Plan | None, listener: Listener
) -> None:
    from ..io.volume import read_mask, read_volume

    start = time.perf_counter()
    listener.stage("read", 0, 1)
    volume = read_volume(scan, series=request.series, frame=request.frame)
    brain = None if request.mask is None else read_mask(request.mask, volume)
    prepare_folder(folder)
    listener.stage("read", 1, 1)
    from ..detection import detect
    from ..results.saving import save

    result = detect.detect(
        volume,
        options,
        mask=brain,
        plan=plan,
        progress=listener.progress,
        on_started=listener.started,
        on_warning=listener.warning,
    )
    listener.stage("write", 0, 1)
    files = save(result, volume, folder)
    listener.stage("write", 1, 1)
    listener.result(result, files, time.perf_counter() - start)


def output_folders(scans: Sequence[Path], output: Path) -> list[Path]:
    """A folder for each scan, named after it; scans of the same name get -2, -3 and so on, in order.

    Names that differ in upper and lower case alone count as the same: on Windows and macOS they are.
    """
    taken: set[str] = set()
    folders = []
    for scan in scans:
        name = stem = _IMAGE_SUFFIXES.sub("", scan.absolute().name) or "scan"
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        folders.append(output / name)
    return folders


def as_engine_error(error: Exception) -> EngineError:
    """The error as the user should read it."""
    if isinstance(error, EngineError):
        return error
    if is_out_of_memory(error):
        return MemoryExhausted(f"Memory ran out ({error}).", "Close other programs, or use a machine with more memory.")
    return EngineError(
        f"{type(error).__name__}: {error}", "This is a fault of the program; diffusion-anomaly --debug shows where."
    )


def _clean(folder: Path, output: Path, existed: bool) -> None:
    """Take away folders that were made for results that did not come."""
    if not existed:
        remove_if_empty(folder)
        if folder != output:
            remove_if_empty(output)
