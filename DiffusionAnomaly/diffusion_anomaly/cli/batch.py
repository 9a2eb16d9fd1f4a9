"""One scan after the other, from file to files; one that fails is reported and the others go on."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..detection.scan import ScanRequest, as_engine_error, run_scan
from ..errors import Cancelled
from ..text import distinct_names, safe_name

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
            start = time.perf_counter()
            try:
                result, files = run_scan(detector, request, listener)
            except Exception as error:
                log.debug("%s failed", request.scan, exc_info=True)
                failure = as_engine_error(error, FAULT)
                if isinstance(failure, Cancelled):
                    raise failure from error
                listener.failed(failure)
                first_failure = first_failure or failure.exit_code
            else:
                listener.stage("write", 1, 1)
                listener.result(result, files, time.perf_counter() - start)
    return first_failure


def output_folders(scans: Sequence[Path], output: Path, anonymous: bool = False) -> list[Path]:
    """A folder for each scan, named after it; scans of the same name get -2, -3 and so on, in order.

    Args:
        scans: files or folders.
        output: where the folders will be. Whatever a scan is called, its folder is directly in it.
        anonymous: whether folders are numbered instead.
    """
    if anonymous:
        return [output / f"scan-{number:03d}" for number in range(1, len(scans) + 1)]
    return [output / name for name in distinct_names(safe_name(_stem(scan)) for scan in scans)]


def _stem(scan: Path) -> str:
    """What a scan is called, without the suffix of its format; for ``.`` and ``..`` the folder's own name."""
    try:
        name = os.path.basename(os.path.abspath(scan))
    except OSError:  # the current folder is gone
        name = scan.name
    return _IMAGE_SUFFIXES.sub("", name)
