"""``cohort`` and ``bids``: many scans at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import Cancelled, EngineError, InputError
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
from .cohort_console import CohortLines, CohortTerminal

if TYPE_CHECKING:
    from ..cohort.actors import Workers
    from ..cohort.scans import CohortScan
    from ..detection.planning import Options

PARTICIPANT, GROUP = "participant", "group"
# Options of BIDS Apps that take several words behind them.
_SEVERAL = ("--participant-label", "--session-label")

Steps = Annotated[int | None, typer.Option(help="Noise levels walked, by a method that has steps.")]
Preset = Annotated[str | None, typer.Option(metavar="NAME", help="paper: the published options.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; each worker gets a GPU of its own.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same results.")]
BatchSize = Annotated[int | None, typer.Option(help="Slices at once in a worker.")]
KeepReconstruction = Annotated[
    bool, typer.Option("--keep-reconstruction", help="Also write the pseudo-healthy reconstructions.")
]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="Leave the files' names out of all that is written.")]
Force = Annotated[bool, typer.Option("--force", help="Look at scans that the model seems not to know, with a warning.")]
Count = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="Workers; 0 is this process. Default: one a GPU, or by the cores; needs Ray."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of each worker.")]
RayAddress = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Of a running Ray cluster, or auto; default: this machine.")
]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Do every N-th scan from the I-th on, and no tables: for job arrays.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make results of other settings anew.")]
NoReport = Annotated[
    bool, typer.Option("--no-report", help="Write no page of each scan, which takes most of a result's room.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--participant-label", "--participant_label", metavar="LABEL...", help="Only these, with or without sub-."
    ),
]
SessionLabels = Annotated[
    list[str] | None,
    typer.Option("--session-label", "--session_label", metavar="LABEL...", help="Only these, with or without ses-."),
]
FilterFile = Annotated[
    Path | None,
    typer.Option("--bids-filter-file", "--bids_filter_file", metavar="JSON", help="What the files of a contrast are."),
]


def add_commands(app: typer.Typer) -> None:
    """Have the command line know them."""
    app.command()(cohort)
    app.command(cls=_BidsCommand)(bids)


class _BidsCommand(TyperCommand):
    """Takes several labels behind one option, as BIDS Apps do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(args: list[str]) -> list[str]:
    """The arguments with an option of several labels repeated before each.

    >>> spread(["data", "out", "participant", "--participant-label", "01", "02", "--seed", "1"])
    ['data', 'out', 'participant', '--participant-label', '01', '--participant-label', '02', '--seed', '1']
    """
    spread_out: list[str] = []
    option = ""
    for word in args:
        if word.startswith("-"):
            option = word if word.replace("_", "-") in _SEVERAL else ""
            if not option:
                spread_out.append(word)
        else:
            spread_out += [option, word] if option else [word]
    if option and spread_out[-2:-1] != [option]:
        spread_out.append(option)  # with nothing behind it, which is told
    return spread_out


def cohort(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A folder, a CSV file, a scan, or a BIDS data set.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", parser=as_folder, help="Folder for results and tables.")],
    pattern: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Which files or folders below INPUT are scans: '**/*_flair.nii.gz'."),
    ] = None,
    participant_label: Labels = None,
    session_label: SessionLabels = None,
    bids_filter_file: FilterFile = None,
    method: Method = None,
    model: Model = None,
    steps: Steps = None,
    preset: Preset = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    threshold: Threshold = None,
    min_volume: MinVolume = 0.05,
    min_area: MinArea = None,
    peak_margin: PeakMargin = None,
    batch_size: BatchSize = None,
    slice_spacing: SliceSpacing = None,
    settings: Settings = None,
    keep_reconstruction: KeepReconstruction = False,
    anonymous: Anonymous = False,
    force: Force = False,
    register: Register = False,
    workers: Count = None,
    threads: Threads = None,
    ray_address: RayAddress = None,
    shard: Shard = None,
    overwrite: Overwrite = False,
    no_report: NoReport = False,
    json_lines: JsonEvents = False,
) -> None:
    """Find anomalies in all scans of a cohort.

    Several workers share the work. The same command again goes on where it was stopped. At the end come tables of scans
    and findings, and pages of quality control.
    """
    from ..cohort.bids import is_bids

    def scans(warn: Callable[[str], None]) -> list[CohortScan]:
        from ..cohort.scans import list_scans

        if is_bids(source) and pattern is not None:
            warn(
                f"{source} is a BIDS data set, and with --pattern it is taken for any folder: names tell nothing of "
                "patients and sessions, and there are no derivatives. --bids-filter-file chooses files too."
            )
        elif is_bids(source):
            return _of_bids(source, _options(context), participant_label, session_label, bids_filter_file)
        if participant_label or session_label or bids_filter_file:
            raise InputError(
                f"{source} is not looked at as a BIDS data set, and labels or filters were given.",
                "Leave out one or the other." if pattern else "Leave them out.",
            )
        return list_scans(Path(os.path.abspath(source)), output, pattern, anonymous, warn)

    _run(scans, output, context, _workers(workers, threads, ray_address), shard, overwrite, json_lines)


def bids(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="BIDS_DIR", help="The data set.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT_DIR", parser=as_folder, help="Folder for the derivatives.")],
    level: Annotated[str, typer.Argument(metavar="LEVEL", help="participant: each scan; group: tables over all.")],
    participant_label: Labels = None,
    session_label: SessionLabels = None,
    bids_filter_file: FilterFile = None,
    method: Method = None,
    model: Model = None,
    steps: Steps = None,
    preset: Preset = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    threshold: Threshold = None,
    min_volume: MinVolume = 0.05,
    min_area: MinArea = None,
    peak_margin: PeakMargin = None,
    batch_size: BatchSize = None,
    slice_spacing: SliceSpacing = None,
    settings: Settings = None,
    keep_reconstruction: KeepReconstruction = False,
    anonymous: Anonymous = False,
    force: Force = False,
    register: Register = False,
    workers: Count = None,
    threads: Threads = None,
    ray_address: RayAddress = None,
    shard: Shard = None,
    overwrite: Overwrite = False,
    no_report: NoReport = False,
    json_lines: JsonEvents = False,
) -> None:
    """Find anomalies in a BIDS data set, as a BIDS App.

    Derivatives go to OUTPUT_DIR. The level participant does the scans, the level group the tables and pages.
    """
    if level == GROUP:
        _group(source, output, json_lines)
        return

    def scans(warn: Callable[[str], None]) -> list[CohortScan]:
        if level != PARTICIPANT:
            raise InputError(f"There is no level {level!r}.", f"Say {PARTICIPANT} or {GROUP}.")
        return _of_bids(source, _options(context), participant_label, session_label, bids_filter_file)

    _run(scans, output, context, _workers(workers, threads, ray_address), shard, overwrite, json_lines, group=False)


def _options(context: typer.Context) -> Options:
    """The options of a detection among those of a command."""
    from ..detection.planning import Options

    given = context.params
    model = given["model"]
    alike = {field.name: given[field.name] for field in fields(Options) if field.name in given}
    return Options(
        **{
            **alike,
            "method": given["method"] or method_of(model),
            "model": os.path.abspath(model) if model is not None and os.path.isdir(model) else model,
            "min_volume_ml": given["min_volume"],
            "overrides": parse_settings(given["settings"] or []),
        }
    )


def _workers(count: int | None, threads: int | None, address: str | None) -> Workers:
    from ..cohort.actors import Workers

    return Workers(count, threads, address=address)


def _of_bids(
    source: Path, options: Options, participants: list[str] | None, sessions: list[str] | None, filters: Path | None
) -> list[CohortScan]:
    from ..cohort.bids import list_bids, read_filters
    from ..cohort.cohort import plan_of

    chosen = None if filters is None else read_filters(filters)
    root = Path(os.path.abspath(source))
    return list_bids(root, plan_of(options).channels, participants or (), sessions or (), chosen)


def _run(
    scans: Callable[[Callable[[str], None]], list[CohortScan]],
    output: Path,
    context: typer.Context,
    workers: Workers,
    shard: str | None,
    overwrite: bool,
    json_lines: bool,
    group: bool = True,
) -> None:
    from ..cohort.cohort import exit_code_of, run_cohort
    from ..cohort.scans import parse_shard

    listener = CohortLines() if json_lines else CohortTerminal()
    try:
        part = None if shard is None else parse_shard(shard)
        listed, asked = scans(listener.warning), _options(context)
        with listener:
            ended = run_cohort(
                listed,
                Path(os.path.abspath(output)),
                asked,
                listener,
                workers=workers,
                shard=part,
                overwrite=overwrite,
                reports=not context.params["no_report"],
                group=group,
            )
        listener.summary(ended)
        raise typer.Exit(exit_code_of(ended.failed))
    except KeyboardInterrupt:
        stopped = Cancelled("Stopped by the user; what is finished stays, and the same command goes on there.")
        listener.failed(stopped)
        raise typer.Exit(stopped.exit_code) from None
    except EngineError as error:
        listener.failed(error)
        raise typer.Exit(error.exit_code) from error


def _group(source: Path, output: Path, json_lines: bool) -> None:
    from ..cohort.bids import has_sources
    from ..cohort.group import left_out_in_words
    from ..cohort.quality import write_group
    from ..cohort.state import CohortLock

    listener = CohortLines() if json_lines else CohortTerminal()
    try:
        if not output.is_dir():
            raise InputError(f"There is no folder {output}.", f"Run the level {PARTICIPANT} before.")
        with CohortLock(output):
            group, files = write_group(output, partial(has_sources, source))
        if not group.scans:
            listener.warning(f"{output} holds no result; run the level {PARTICIPANT} before.")
        if group.left_out:
            listener.warning(left_out_in_words(group.left_out))
        listener.written(files)
    except EngineError as error:
        listener.failed(error)
        raise typer.Exit(error.exit_code) from error
