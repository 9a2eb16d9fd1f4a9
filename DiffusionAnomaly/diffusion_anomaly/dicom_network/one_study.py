"""One study of a DICOMweb service, fetched, looked at, and its results stored in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..detection.detector import Detector
from ..detection.scan import Listener, run_scan
from ..errors import InputError
from ..io.contrasts import ChannelSource
from ..results.dicom import dicom_names
from ..results.result import Result
from .choosing import choose_sources, request_of
from .web import WebClient


def look_at(
    client: WebClient,
    study: str,
    detector: Detector,
    listener: Listener,
    folder: Path,
    *,
    series: str | None = None,
    objects: Sequence[str] = (),
) -> tuple[Result, dict[str, Path], list[str]]:
    """Fetch a study, detect, and store some of the results.

    Args:
        client: of the service.
        study: its UID.
        detector: what to detect with.
        listener: is told how it goes.
        folder: gets ``images`` and ``results``.
        series: UID of the one to look at, for a model of one contrast; without it the one that the model knows.
        objects: kinds of DICOM objects to store, of ``results.dicom.KINDS``.

    Returns:
        The result, its files by kind, and the names of those that were stored.

    Raises:
        InputError: when the folder holds images already, or the study none that the model knows.
        EngineError: as the service, a detection and writing raise it.
    """
    images = folder / "images"
    if images.is_dir() and any(images.iterdir()):
        raise InputError(f"{images} holds files already.", "Choose another output folder.")
    client.fetch(study, images, series)
    channels = detector.plan.channels
    if series is not None and len(channels) == 1:
        sources, notes = {channels[0]: ChannelSource(images, series)}, []
    else:
        sources, _, notes = choose_sources(images, channels, {})
    for note in notes:
        listener.warning(note)
    request = request_of(study, images, sources, folder / "results", pdf="report" in objects)
    result, files = run_scan(detector, request, listener)
    listener.stage("write", 1, 1)
    stored = [path for name in dicom_names(objects) if (path := files.get(name)) is not None]
    for path in stored:
        client.store(path)
    return result, files, [path.name for path in stored]
