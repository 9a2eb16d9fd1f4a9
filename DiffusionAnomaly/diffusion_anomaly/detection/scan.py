"""One scan from file to files: what the command line and the worker do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import Cancelled, InputError
from ..io.contrasts import ChannelSource, described, find_channels, match_names, require_different, volumes_in_order
from ..io.outputs import OutputFolder
from ..io.records import result_in_place_of_scan
from ..io.sources import read_brain
from ..io.volume import Scan, read_volume
from ..models.declaration import IMAGE
from ..results.dicom import check_source, wanted_kinds
from ..results.result import Progress, Result, Started
from ..results.saving import file_names, keep_other_scans, save
from .detector import Detector


@dataclass(frozen=True)
class ScanRequest:
    """What to read and where to write.

    Attributes:
        scan: file or DICOM folder; of several channels the first one's, or the folder that holds them all.
        output: folder for the results.
        brain: brain mask file; None lets the network find the brain.
        series: which series of a DICOM folder.
        frame: which volume of a 4-D scan, counted from 0.
        title: what the user calls the scan; empty for the name of its file.
        overwrite: whether the result of another scan may make room for this one's.
        channels: where each channel comes from, by its name, for a model that knows several contrasts.
        in_order: whether the volumes of the one file ``scan`` are the model's channels, in its order.
        dicom: whether the results are written as DICOM objects too.
        dicom_pdf: whether they are, and the report as an encapsulated PDF with them.
        report: whether the page is written.
    """

    scan: Path
    output: Path
    brain: Path | None = None
    series: str | None = None
    frame: int | None = None
    title: str = ""
    overwrite: bool = False
    channels: Mapping[str, ChannelSource] = field(default_factory=dict)
    in_order: bool = False
    dicom: bool = False
    dicom_pdf: bool = False
    report: bool = True

    @property
    def scans(self) -> list[Path]:
        """The files or folders of the scan, each once."""
        return list(dict.fromkeys([self.scan, *(source.path for source in self.channels.values())]))

    @property
    def inputs(self) -> list[Path]:
        """Everything that is read."""
        return self.scans if self.brain is None else [*self.scans, self.brain]


class Listener(Protocol):
    """Who is told how a scan goes."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage that the detector does not report: ``read`` or ``write``."""
        ...

    def progress(self, now: Progress) -> None: ...

    def started(self, event: Started) -> None: ...

    def warning(self, message: str) -> None: ...


class Silent:
    """A listener that tells nobody, where progress is counted in scans or studies."""

    def stage(self, name: str, done: int, total: int) -> None:
        return None

    def progress(self, now: Progress) -> None:
        return None

    def started(self, event: Started) -> None:
        return None

    def warning(self, message: str) -> None:
        return None


def run_scan(
    detector: Detector,
    request: ScanRequest,
    listener: Listener,
    open_folder: Callable[[Path, Iterable[Path]], OutputFolder] = OutputFolder,
    about: Mapping[str, Any] | None = None,
) -> tuple[Result, dict[str, Path]]:
    """Read, detect, write.

    Args:
        detector: what to detect with.
        request: what to read and where to write.
        listener: is told how it goes.
        open_folder: makes the folder for the results, of its path and of what is read.
        about: further entries of the provenance.

    Returns:
        The result and its files by kind, see ``results.saving.save``.

    Raises:
        InputError: before anything is computed, when the scan is itself a result, or when a file that is no earlier
            result, or another scan's that is to be kept, is in the way.
        EngineError: as reading, a detection and writing raise it. A folder that was made for results is gone then.
    """
    listener.stage("read", 0, 1)
    for path in request.scans:
        if (refusal := result_in_place_of_scan(path)) is not None:
            raise refusal
    folder = open_folder(request.output, request.inputs)
    try:
        with folder:
            sources, note = channel_sources(detector, request)
            first = next(iter(sources.values())).path if sources else request.scan
            kept = detector.plan.channels if detector.plan.asked.keep_reconstruction else []
            whole = detector.plan.bundle.region == IMAGE
            objects = wanted_kinds(request.dicom, request.dicom_pdf)
            earlier = folder.replaced(file_names(str(first), kept, whole, objects).values())
            scan = _read(detector, request, sources, note)
            if not request.overwrite:
                keep_other_scans(earlier, scan.reference.sha256, request.output)
            if objects:
                check_source(scan.reference, detector.plan.asked.anonymous, request.dicom_pdf)
            brain = None if request.brain is None else read_brain(request.brain, scan.reference)
            listener.stage("read", 1, 1)
            result = detector(
                scan,
                brain=brain,
                progress=listener.progress,
                on_started=listener.started,
                on_warning=listener.warning,
            )
            if about:
                result = replace(result, provenance={**result.provenance, **about})
            listener.stage("write", 0, 1)
            files = save(result, folder, dicom=request.dicom, dicom_pdf=request.dicom_pdf, report=request.report)
    except KeyboardInterrupt:
        became = "its results are complete" if folder.published else "nothing was written"
        raise Cancelled(f"Stopped by the user; for {request.scan}, {became}.") from None
    return result, files


def channel_sources(detector: Detector, request: ScanRequest) -> tuple[dict[str, ChannelSource], str]:
    """Where each of the model's channels comes from, and what to tell the user of how it was found.

    Returns:
        Sources by the model's names in its order; empty for a single scan for a model of one contrast.

    Raises:
        InputError: for channels that are missing, unknown, ambiguous, or the same.
    """
    names, model = detector.plan.channels, detector.plan.bundle.name
    if request.channels:
        matched = match_names(request.channels, names, model)
        found = {name: request.channels[given] for name, given in matched.items()}
        require_different(found)
        return found, ""
    if request.in_order:
        return volumes_in_order(request.scan, names), ""
    if len(names) == 1:
        return {}, ""
    if request.series is not None or request.frame is not None:
        raise InputError(
            f"The model {model} needs {', '.join(names)} together; --series and --frame choose one scan.",
            f"Write --channel {names[0]}=FOLDER:SERIES or FILE:0, and the other channels likewise.",
        )
    found = find_channels(request.scan, names)
    # Names of files and series may be the patient's.
    return found, "The channels were found by name." if detector.plan.asked.anonymous else described(found)


def _read(detector: Detector, request: ScanRequest, sources: Mapping[str, ChannelSource], note: str) -> Scan:
    if not sources:
        volume = read_volume(request.scan, series=request.series, frame=request.frame)
        return Scan({detector.plan.channels[0]: replace(volume, title=request.title)})
    volumes = {name: source.read() for name, source in sources.items()}
    name, first = next(iter(volumes.items()))
    notes = (note,) if note else ()
    volumes[name] = replace(first, title=request.title, warnings=(*notes, *first.warnings))
    return detector.join(volumes)
