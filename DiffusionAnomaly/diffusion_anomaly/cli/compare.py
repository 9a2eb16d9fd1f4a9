"""The command that compares two visits of one patient: both scans are looked at, unless their results are there."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..io.outputs import OutputFolder, keep_out_of
from .arguments import Model, PeakMargin, Settings, Threshold, as_folder, method_of, parse_settings
from .console import Terminal, err, out, plain
from .rethreshold import SMALLEST_ML

if TYPE_CHECKING:
    from ..detection.detector import Detector
    from ..io.volume import Volume
    from ..results.comparison.compare import Comparison, Exam


def add_commands(app: typer.Typer) -> None:
    """Put the command into the program."""
    app.command("compare")(compare)


def compare(
    prior: Annotated[Path, typer.Argument(metavar="PRIOR", help="The earlier scan: an image file or a DICOM folder.")],
    current: Annotated[Path, typer.Argument(metavar="CURRENT", help="The later scan of the same patient.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", parser=as_folder, help="Folder for all results.")
    ],
    prior_result: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What detect wrote of PRIOR; default: it is looked at now.")
    ] = None,
    current_result: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What detect wrote of CURRENT; default: it is looked at now.")
    ] = None,
    model: Model = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
    threshold: Threshold = None,
    min_volume: Annotated[
        float | None, typer.Option(metavar="ML", help="Smaller findings are dropped; default: 0.05.")
    ] = None,
    peak_margin: PeakMargin = None,
    settings: Settings = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also scans that the model seems not to know, or of two patients or the wrong order by their headers.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of other scans too.")] = False,
) -> None:
    """Compare two scans of one patient: which findings are new, grown, shrunk, unchanged or gone.

    The prior scan is registered rigidly onto the current one, and the findings are matched.
    """
    from ..detection.detector import Detector
    from ..detection.planning import Options
    from ..results.comparison import compare as comparing
    from ..results.comparison import files

    start = time.perf_counter()
    if os.path.realpath(prior) == os.path.realpath(current):
        raise InputError(f"{prior} is given twice.", "Give the scans of two visits.")
    if prior_result is not None and current_result is not None and (model or settings):
        raise InputError("Both results are there, so --model and --set would change nothing.", "Leave them out.")
    keep_out_of([prior, current], output)
    detector = Detector(
        Options(
            method=method_of(model),
            model=model,
            device=device,
            threshold=threshold,
            min_volume_ml=SMALLEST_ML if min_volume is None else min_volume,
            peak_margin=peak_margin,
            overrides=parse_settings(settings or []),
            force=force,
        )
    )
    _check(detector, prior, current, force)
    given = [(prior, "prior", prior_result), (current, "current", current_result)]
    with OutputFolder(output, [prior, current]) as folder:
        folder.check(files.NAMES)
        exams = [_exam(detector, scan, output / name, result, overwrite, min_volume) for scan, name, result in given]
        comparison = comparing.compare(*exams)
        if not overwrite:
            _keep_others(folder, comparison)
        written = files.save(comparison, folder)
    _show(comparison)
    out.print(plain(written["comparison.html"]))
    err.print(plain(f"{time.perf_counter() - start:.0f} s"))


def _check(detector: Detector, prior: Path, current: Path, force: bool) -> None:
    """Refuse what cannot be compared, before anything is computed.

    Raises:
        InputError: for a model of pictures; unless forced, for scans of two patients or in the wrong order, by their
            headers.
    """
    from ..io.volume import read_volume
    from ..models.declaration import IMAGE
    from ..results.comparison.compare import two_patients

    if detector.plan.bundle.region == IMAGE:
        raise InputError(
            f"{detector.plan.bundle.name} looks at pictures, and pictures are not compared.", "Choose another model."
        )
    volumes = [read_volume(scan) for scan in (prior, current)]
    if force:
        return
    if differ := two_patients(*(volume.identity for volume in volumes)):
        raise InputError(differ, "If they are of one all the same, say --force.")
    before, after = map(_study_date, volumes)
    if before and after and before > after:
        raise InputError(
            f"The prior scan is of {before}, the current one of {after}, by their headers.",
            "Give the earlier scan first, or say --force.",
        )


def _study_date(volume: Volume) -> str:
    """Of a DICOM series, as DICOM writes it; empty where nothing states it."""
    from ..io.dicom.source import read_source

    if not volume.planes:
        return ""
    try:
        return str(read_source(volume.planes, volume.sha256, volume.source).header.get("StudyDate") or "")
    except InputError:  # it cannot be referred to, which is no matter here
        return ""


def _keep_others(folder: OutputFolder, comparison: Comparison) -> None:
    """Refuse to replace the comparison of two other scans.

    Raises:
        InputError: naming them.
    """
    from ..results.comparison.files import NAMES

    for content in folder.replaced(NAMES).values():
        for which, exam in (("prior", comparison.prior), ("current", comparison.current)):
            about = content.get(which)
            earlier = about.get("title") if isinstance(about, dict) else None
            if earlier != exam.name:
                raise InputError(
                    f"{folder.path} holds the comparison of another {which} scan ({earlier}).",
                    "Choose another folder, or say --overwrite.",
                )


def _exam(
    detector: Detector, scan: Path, folder: Path, result: Path | None, overwrite: bool, min_volume: float | None
) -> Exam:
    """What was found in a scan, or is found in it now."""
    from ..detection.scan import ScanRequest, run_scan
    from ..io.volume import read_volume
    from ..results.comparison.compare import Exam
    from ..results.comparison.reading import read_exam

    if result is not None:
        exam, threshold = read_exam(result, read_volume(scan)), detector.plan.asked.threshold
        least = exam.min_volume_ml if min_volume is None else min_volume
        margin = detector.plan.asked.peak_margin
        return replace(
            exam,
            threshold=exam.threshold if threshold is None else threshold,
            min_volume_ml=least,
            peak_margin=exam.peak_margin if margin is None else margin,
        )
    with Terminal() as listener:
        listener.begin(scan, several=True)
        begun = time.perf_counter()
        found, written = run_scan(detector, ScanRequest(scan, folder, overwrite=overwrite), listener)
        listener.result(found, written, time.perf_counter() - begun)
    return Exam.of(found)


def _show(comparison: Comparison) -> None:
    """The changes as a table."""
    from rich.table import Table

    for warning in comparison.warnings:
        err.print(plain(f"warning: {warning}", "yellow"))
    found = comparison.registration
    err.print(plain(f"prior scan moved by {found.shift_mm:.1f} mm and {found.rotation_degrees:.1f}°"))
    if not comparison.changes:
        out.print("Neither scan has a finding.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("change", "now", "before", "ml before", "ml now", "peak before", "peak now", "place, roughly"):
        is_text = title in ("change", "place, roughly")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=title != "place, roughly")
    for change in comparison.changes:
        table.add_row(
            change.kind,
            ", ".join(map(str, change.current)),
            ", ".join(map(str, change.prior)),
            f"{change.prior_ml:.2f}",
            f"{change.current_ml:.2f}",
            *("–" if score is None else f"{score:.2f}" for score in (change.prior_score, change.current_score)),
            change.place,
        )
    out.print(table)
