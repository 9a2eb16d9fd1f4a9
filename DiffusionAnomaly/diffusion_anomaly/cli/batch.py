"""One scan after the other, from file to files; one that fails is reported and the others go on."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..detection.scan import ScanRequest, run_scan
from ..errors import Cancelled
from ..system import as_engine_error
from ..text import distinct_names, folded, printable, safe_name

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
    failed = []
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
                failed.append(request.scan)
                first_failure = first_failure or failure.exit_code
            else:
                listener.stage("write", 1, 1)
                listener.result(result, files, time.perf_counter() - start)
        if failed and len(requests) > 1:
            listener.summary(failed, len(requests))
    return first_failure


def each_once(scans: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The scans without those that are the same file or folder as an earlier one, and these."""
    first: dict[str, Path] = {}
    repeated = []
    for scan in scans:
        if first.setdefault(os.path.realpath(scan), scan) is not scan:
            repeated.append(scan)
    return list(first.values()), repeated


def output_folders(scans: Sequence[Path], output: Path, anonymous: bool = False) -> list[Path]:
    """A folder for each scan, named after it, and after the folders above it where scans have the same name.

    The order in which they are given changes nothing.

    Args:
        scans: files or folders, each once.
        output: where the folders will be. Whatever a scan is called, its folder is directly in it.
        anonymous: whether folders are numbered instead, in order.

    >>> [folder.name for folder in output_folders([Path("A/flair.nii"), Path("B/flair.nii"), Path("B/t1.nii")], Path())]
    ['A-flair', 'B-flair', 't1']
    """
    if anonymous:
        return [output / f"scan-{number:03d}" for number in range(1, len(scans) + 1)]
    names = [safe_name("-".join(label)) for label in _labels(scans)]
    # What is still alike, such as names that only differ in what no file system takes, is numbered by path.
    order = sorted(range(len(scans)), key=lambda index: str(_absolute(scans[index])))
    distinct = dict(zip(order, distinct_names(names[index] for index in order), strict=True))
    return [output / distinct[index] for index in range(len(scans))]


def distinct_titles(scans: Sequence[Path]) -> list[str]:
    """What to call each scan: with the folders that tell it from another of the same name, or empty for its own name.

    >>> distinct_titles([Path("A/flair.nii"), Path("B/flair.nii"), Path("B/t1.nii")])
    ['A/flair.nii', 'B/flair.nii', '']
    """
    labels = _labels(scans)
    return [
        printable("/".join((*label[:-1], scan.name))) if len(label) > 1 else ""
        for scan, label in zip(map(_absolute, scans), labels, strict=True)
    ]


def _labels(scans: Sequence[Path]) -> list[tuple[str, ...]]:
    """The fewest parts of each path that tell it from the others: its stem, after as many folders as it takes.

    Files of one folder that differ in their suffix alone keep it.
    """
    paths = [_absolute(scan) for scan in scans]
    labels: list[tuple[str, ...]] = [(_stem(path),) for path in paths]
    alike: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        alike.setdefault(_folder_name(label), []).append(index)
    for group in alike.values():
        places = Counter(paths[index].parent for index in group)
        leaves = {index: paths[index].name if places[paths[index].parent] > 1 else labels[index][0] for index in group}
        for depth in range(max(len(paths[index].parts) for index in group)):
            if len({_folder_name(labels[index]) for index in group}) == len(group):
                break
            for index in group:
                parents = paths[index].parts[:-1]
                labels[index] = (*parents[len(parents) - min(depth, len(parents)) :], leaves[index])
    return labels


def _folder_name(label: Sequence[str]) -> str:
    return folded(safe_name("-".join(label)))


def _absolute(scan: Path) -> Path:
    """Where a scan is; ``.`` and ``..`` become names of folders."""
    try:
        return Path(os.path.abspath(scan))
    except OSError:  # the current folder is gone
        return scan


def _stem(path: Path) -> str:
    """What a scan is called, without the suffix of its format."""
    return _IMAGE_SUFFIXES.sub("", path.name)
