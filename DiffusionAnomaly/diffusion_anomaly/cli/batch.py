"""One scan after the other, from file to files; one that fails is reported and the others go on."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..detection.scan import ScanRequest, as_engine_error, run_scan
from ..errors import Cancelled
from ..io.files import remove_if_empty

if TYPE_CHECKING:
    from ..detection.detector import Detector
    from .console import Listener

log = logging.getLogger(__name__)

_IMAGE_SUFFIXES = re.compile(r"(\.nii|\.mgh|\.nrrd|\.nhdr|\.mha|\.mhd|\.mgz|\.hdr|\.img|\.dcm)?(\.gz)?$", re.IGNORECASE)


FAULT = "This is a fault of the program; diffusion-anomaly --debug shows where."


def run_batch(detector: Detector, requests: Sequence[ScanRequest], listener: Listener) -> int:
    """Detect in every scan.

    Returns:
        0, or the exit code of the first scan that failed.

    Raises:
        Cancelled: when the user stopped it; no further scan is begun.
    """
    first_failure = 0
    with listener:
        for request in requests:
            listener.begin(request.scan, len(requests) > 1)
            start, parent, there = time.perf_counter(), request.output.parent, request.output.parent.exists()
            try:
                result, files = run_scan(detector, request, listener)
            except Exception as error:
                log.debug("%s failed", request.scan, exc_info=True)
                if not there:
                    remove_if_empty(parent)
                failure = as_engine_error(error, FAULT)
                if isinstance(failure, Cancelled):
                    raise failure from error
                listener.failed(failure)
                first_failure = first_failure or failure.exit_code
            except KeyboardInterrupt:
                if not there:
                    remove_if_empty(parent)
                raise Cancelled(f"Stopped by the user; nothing was written for {request.scan}.") from None
            else:
                listener.stage("write", 1, 1)
                listener.result(result, files, time.perf_counter() - start)
    return first_failure


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
