"""The command line: ``diffusion-anomaly`` and ``python -m diffusion_anomaly``.

Everything it does goes through the same functions as Slicer's panel and the tests. Torch and ITK are imported by the
commands that need them, so that ``--help``, ``models`` and mistakes are quick.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import __version__
from ..errors import Cancelled, EngineError, InputError
from ..io.outputs import keep_out_of
from ..io.records import result_in_place_of_scan
from ..process import stream_failure
from ..registry import METHODS
from ..text import PrintableFormatter
from . import cohort, compare, dicom, models, remote, serve
from .arguments import (
    JsonEvents,
    Method,
    MinArea,
    MinVolume,
    Model,
    PeakMargin,
    Precision,
    Register,
    Settings,
    SliceSpacing,
    Threshold,
    as_folder,
    method_of,
    parse_settings,
)
from .batch import FAULT, distinct_titles, each_once, output_folders, run_batch
from .console import JsonLines, Terminal, err, out, plain, show_error

if TYPE_CHECKING:
    from ..io.contrasts import ChannelSource

# The base of typer's own errors: newer typers bring their own click, older ones import it.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="Find what is improbable in brain scans, with generative denoising diffusion. "
    "For research use only. Not for diagnosis.",
    rich_markup_mode=None,
    add_completion=False,
)
app.add_typer(models.app, name="models")
cohort.add_commands(app)
dicom.add_commands(app)
compare.add_commands(app)
serve.add_commands(app)
log = logging.getLogger("diffusion_anomaly")
# The commands whose result is files; of the others it is what they print.
WRITING = ("detect", "threshold", "evaluate", "worker", "cohort", "bids", "dicom-node", "dicom-web", "compare", "serve")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code of ``errors``, never raises."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = int(command.main(given, prog_name="diffusion-anomaly", standalone_mode=False) or 0)
        lost = stream_failure()
        if lost is not None:
            show_error(EngineError(f"What was printed did not all arrive: {lost.strerror}."))
            # A command that writes files has done what it is there for.
            code = code or (0 if given[0] in WRITING else EngineError.exit_code)
        return code
    except SystemExit as end:  # typer's own way out for the same
        return end.code if isinstance(end.code, int) else EngineError.exit_code
    except _ClickError as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "diffusion-anomaly"
        message = error.format_message()  # type: ignore[attr-defined]
        # Of what was given, not of the message: that one differs from version to version.
        comma = "valid" in message and any(re.fullmatch(r"(--[\w-]+=)?[-+]?\d*,\d+", word) for word in given)
        hint = "Write a decimal point instead of the comma." if comma else f"See {where} --help."
        dashed = next((word for word in given if word.startswith("-") and os.path.isfile(word)), None)
        if dashed is not None:  # a name is taken for options
            hint = f"For the file of that name write ./{dashed}"
        show_error(InputError(message, hint))
        return InputError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        show_error(Cancelled("Stopped by the user."))
        return Cancelled.exit_code
    except Exception as error:
        log.debug("the command failed", exc_info=True)
        from ..system import as_engine_error

        failure = as_engine_error(error, FAULT)
        show_error(failure)
        return failure.exit_code


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    if debug:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter(logging.BASIC_FORMAT))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        log.setLevel(logging.DEBUG)
    if version:
        out.print(f"diffusion-anomaly {__version__}")
        raise typer.Exit()


@app.command()
def detect(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", parser=as_folder, help="Where to; several scans get a subfolder each."
        ),
    ],
    scans: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SCAN]...",
            help="Image files or DICOM folders; for a model of several contrasts, folders that hold all of them.",
        ),
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            metavar="NAME=FILE",
            help="One contrast of a scan, instead of SCAN; FILE:0 is the first volume of a 4-D file. Once a channel.",
        ),
    ] = None,
    channels_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A 4-D file, instead of SCAN, whose volumes are the channels in order."),
    ] = None,
    register: Register = False,
    method: Method = None,
    model: Model = None,
    steps: Annotated[
        int | None, typer.Option(help="Noise levels walked, by a method that has steps; default: the package's.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="paper: the published options of guided or unsupervised.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
    precision: Precision = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0,
    mask: Annotated[Path | None, typer.Option(metavar="BRAIN", help="Brain mask; default: found by a network.")] = None,
    threshold: Threshold = None,
    min_volume: MinVolume = 0.05,
    min_area: MinArea = None,
    peak_margin: PeakMargin = None,
    batch_size: Annotated[int | None, typer.Option(help="Slices at once; results differ by rounding at most.")] = None,
    slice_spacing: SliceSpacing = None,
    settings: Settings = None,
    series: Annotated[str | None, typer.Option(help="Which series of a DICOM folder: UID or description.")] = None,
    frame: Annotated[int | None, typer.Option(help="Which volume of a 4-D scan, counted from 0.")] = None,
    keep_reconstruction: Annotated[
        bool, typer.Option("--keep-reconstruction", help="Also write the pseudo-healthy reconstruction.")
    ] = False,
    dicom: Annotated[
        bool,
        typer.Option("--dicom", help="Also write DICOM objects for the scan's study; all scans must come from DICOM."),
    ] = False,
    dicom_pdf: Annotated[
        bool, typer.Option("--dicom-pdf", help="As --dicom, with the report as a PDF among them.")
    ] = False,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Leave the scan's name out of provenance and report.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Look at a scan that the model seems not to know, with a warning.")
    ] = False,
    subfolders: Annotated[
        bool, typer.Option("--subfolders", help="A subfolder for a single scan too, as for several.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the result of another scan too.")] = False,
    server: remote.Address = None,
    token_file: remote.TokenFile = None,
    fingerprint: remote.Fingerprint = "",
    authorities: remote.Authorities = None,
    json_lines: JsonEvents = False,
) -> None:
    """Find anomalies: anomaly map, mask, findings, report.

    Provenance goes with them. Several scans are done one after the other.
    """
    from ..detection.detector import Detector
    from ..detection.planning import Options
    from ..detection.scan import ScanRequest

    sources = parse_channels(channels or [])
    scans = _scans(scans or [], sources, channels_from, series, frame)
    if mask is not None and len(scans) > 1:
        raise InputError("One brain mask was given for several scans.", "Run the scans one by one.")
    listener = JsonLines() if json_lines else Terminal()
    connection = remote.connection_of(server, token_file, fingerprint, authorities)
    try:
        method = method or (method_of(model) if connection is None else remote.method_of(connection, model))
        options = Options(
            method=method,
            model=model,
            steps=steps,
            preset=preset,
            device=device,
            precision=precision,
            seed=seed,
            threshold=threshold,
            min_volume_ml=min_volume,
            min_area=min_area,
            peak_margin=peak_margin,
            batch_size=batch_size,
            slice_spacing=slice_spacing,
            overrides=parse_settings(settings or []),
            keep_reconstruction=keep_reconstruction,
            anonymous=anonymous,
            force=force,
            register=register,
        )
        each_in_folder = subfolders or len(scans) > 1
        scans, repeated = each_once(scans)
        for scan in repeated:
            listener.warning(f"{scan} is given twice; it is looked at once.")
        folders = output_folders(scans, output, anonymous) if each_in_folder else [output]
        read = [scan for scan in scans if result_in_place_of_scan(scan) is None]  # the others are refused in their turn
        for folder in folders:
            keep_out_of([*read, *(source.path for source in sources.values())], folder)
        if anonymous and len(scans) > 1 and not json_lines:  # told here alone, so that nothing written names a scan
            for folder, scan in zip(folders, scans, strict=True):
                err.print(plain(f"{folder.name}: {scan}"))
        requests = [
            ScanRequest(
                scan,
                folder,
                mask,
                series,
                frame,
                title,
                overwrite,
                channels=sources,
                in_order=channels_from is not None,
                dicom=dicom,
                dicom_pdf=dicom_pdf,
            )
            for scan, folder, title in zip(scans, folders, distinct_titles(scans), strict=True)
        ]
        detector = Detector(options) if connection is None else remote.detector(connection, options)
        raise typer.Exit(run_batch(detector, requests, listener))
    except EngineError as error:  # of no one scan: every consumer of events gets its last line
        listener.failed(error)
        raise typer.Exit(error.exit_code) from error


def _scans(
    scans: list[Path],
    sources: Mapping[str, ChannelSource],
    channels_from: Path | None,
    series: str | None,
    frame: int | None,
) -> list[Path]:
    """What stands for each scan, where one of three ways to name scans was used."""
    ways = [bool(scans), bool(sources), channels_from is not None]
    if sum(ways) != 1:
        found = "no scan" if not any(ways) else "scans in two ways"
        raise InputError(f"The command names {found}.", "Give SCAN, or --channel once a channel, or --channels-from.")
    if not scans and (series is not None or frame is not None):
        raise InputError(
            "--series and --frame are for single scans.", "Write --channel NAME=FILE:0 or NAME=FOLDER:SERIES."
        )
    if channels_from is not None:
        return [channels_from]
    return scans or [next(iter(sources.values())).path]


def parse_channels(texts: Sequence[str]) -> dict[str, ChannelSource]:
    """``NAME=FILE`` texts as sources by name; see ``ChannelSource.parse`` for what a file may be.

    Raises:
        InputError: for a text that is none, and for a name that is given twice.
    """
    from ..io.contrasts import ChannelSource

    parsed: dict[str, ChannelSource] = {}
    for text in texts:
        name, path = named("--channel", text, "flair=a.nii.gz")
        if name.casefold() in (other.casefold() for other in parsed):
            raise InputError(f"The channel {name} is given twice.", "Give each channel once.")
        parsed[name] = ChannelSource.parse(path)
    return parsed


def named(option: str, text: str, example: str) -> tuple[str, str]:
    """What stands before and behind the first ``=``.

    Raises:
        InputError: when one of the two is not there.
    """
    name, separator, value = text.partition("=")
    if not separator or not name.strip() or not value:
        raise InputError(f"{option} got {text!r}.", f"Write it as NAME=FILE, such as {option} {example}.")
    return name.strip(), value


@app.command()
def threshold(
    anomaly_map: Annotated[Path, typer.Argument(metavar="MAP", help="An anomaly map that detect wrote.")],
    at: Annotated[float, typer.Option("--at", metavar="SCORE", help="Anomaly score from which a voxel is anomalous.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", parser=as_folder, help="Folder for mask and findings.")
    ],
    min_volume: MinVolume = 0.05,
    min_area: Annotated[
        float | None, typer.Option(metavar="MM2", help="The map is of a picture: findings have areas, smaller go.")
    ] = None,
    peak_margin: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Peak margin: findings whose highest score does not exceed --at by it go; default: the detection's.",
        ),
    ] = None,
    mask: Annotated[Path | None, typer.Option(metavar="BRAIN", help="Only inside this brain mask.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was made of another map too.")] = False,
) -> None:
    """Apply another threshold to an anomaly map, without inference."""
    from .rethreshold import rethreshold

    rethreshold(
        anomaly_map,
        at,
        output,
        min_volume_ml=min_volume,
        min_area=min_area,
        peak_margin=peak_margin,
        brain=mask,
        overwrite=overwrite,
    )


@app.command()
def evaluate(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|CSV", help="Scans with reference masks, or a table that lists them.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", parser=as_folder, help="Folder for tables, pictures and anomaly maps."
        ),
    ],
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="METHOD[:PRESET][=MODEL]",
            help="What to evaluate, such as guided:paper; repeatable. [default: every method]",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels walked; default: the packages'.")] = None,
    scan_pattern: Annotated[
        str | None, typer.Option(help="Scans in a folder; * is the patient. [default: *_flair.nii.gz]")
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            metavar="NAME=PATTERN",
            help="Each of several contrasts, instead of --scan-pattern; references belong to the first.",
        ),
    ] = None,
    complete_only: Annotated[
        bool, typer.Option("--complete-only", help="Leave patients without all contrasts out.")
    ] = False,
    mask_pattern: Annotated[str | None, typer.Option(help="Their reference masks. [default: *_mask.nii.gz]")] = None,
    raters: Annotated[
        list[str] | None,
        typer.Option("--rater", metavar="NAME=PATTERN", help="Masks of one of several raters, to compare with each."),
    ] = None,
    brain_pattern: Annotated[str | None, typer.Option(help="Their brain masks; default: found by a network.")] = None,
    healthy: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Healthy scans, where every finding is a false alarm.")
    ] = None,
    healthy_pattern: Annotated[str, typer.Option(help="Which of its files they are; * is the name.")] = "*.nii.gz",
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Labels instead of masks, with columns scan, slice, label."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
    precision: Precision = "auto",
    seed: Annotated[int, typer.Option(help="Of the methods' noise and of the intervals.")] = 0,
    json_lines: JsonEvents = False,
) -> None:
    """Measure methods against reference masks.

    The intensity baseline always runs beside, with the same post-processing. Also written: whether scores are
    as frequent on tumour-free slices as expected, and a picture of each run's best, median and worst patient.
    """
    from ..evaluation import evaluate
    from ..evaluation.dataset import find_healthy, find_pairs
    from ..evaluation.labelled import find_labelled, run_labelled

    listener = JsonLines() if json_lines else Terminal()
    try:
        specs = [evaluate.RunSpec.parse(run, precision=precision) for run in runs or list(METHODS)]
        patterns = dict(named("--channel", text, "flair='*_flair.nii.gz'") for text in channels or [])
        masks = dict(named("--rater", text, "first='*_mask1.nii.gz'") for text in raters or [])
        if labels is not None:
            _refuse_beside_labels(
                {"--scan-pattern": scan_pattern, "--mask-pattern": mask_pattern, "--brain-pattern": brain_pattern},
                {"--channel": channels, "--rater": raters, "--healthy": healthy, "--complete-only": complete_only},
            )
        labelled = None if labels is None else find_labelled(source, labels)
        found = (source, scan_pattern, mask_pattern, brain_pattern, patterns, complete_only, masks)
        pairs = [] if labelled else find_pairs(*found)
        healthy_scans = [] if healthy is None else find_healthy(healthy, healthy_pattern)
        with listener:
            listener.begin(source, several=False)
            start = time.perf_counter()
            if labelled:
                table = run_labelled(labelled, specs, output, device, seed, listener.progress, steps=steps)
            else:
                table = evaluate.run(
                    pairs,
                    specs,
                    output,
                    device,
                    seed,
                    listener.progress,
                    healthy=healthy_scans,
                    steps=steps,
                    warn=listener.warning,
                )
            written = ("evaluation*", "reliability*", "montage-*")
            files = {path.name: path for pattern in written for path in sorted(output.glob(pattern))}
            listener.evaluated(table, files, time.perf_counter() - start)
    except KeyboardInterrupt:
        stopped = Cancelled("Stopped by the user.")
        listener.failed(stopped)
        raise typer.Exit(stopped.exit_code) from None
    except EngineError as error:
        listener.failed(error)
        raise typer.Exit(error.exit_code) from error


def _refuse_beside_labels(*given: Mapping[str, object]) -> None:
    """What names masks and contrasts has no say where labels take their place.

    Raises:
        InputError: naming the options.
    """
    if useless := [option for options in given for option, value in options.items() if value]:
        raise InputError(
            f"With --labels there are no masks, so {', '.join(useless)} would change nothing.", "Leave it out."
        )


@app.command()
def worker(
    job: Annotated[Path, typer.Argument(metavar="JOBDIR", help="Folder that holds job.json.")],
) -> None:
    """Run a job for another program.

    Events go to stdout as JSON lines; the line "cancel" on stdin stops it.
    """
    from ..worker import main as worker

    raise typer.Exit(int(worker.run(job)))
