"""What the command line shows while it works and when it is done: bar or JSON lines, table, warnings, errors.

Stdout carries the result alone, so that it can be piped; everything else goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from ..detection.scan import Listener as ScanListener
from ..errors import EngineError
from ..results.result import statistics
from ..text import counted, listed, printable
from ..worker import protocol

if TYPE_CHECKING:
    from rich.progress import Task

    from ..evaluation.labelled import LabelledTable
    from ..evaluation.table import Table
    from ..results.findings import Finding
    from ..results.result import Progress, Result, Started

FINDINGS_SHOWN = 10
PLACE_WIDTH = 14  # the least, of a column of text beside numbers
FILE_WIDTH = 200  # of tables that no terminal shows
FAILED_SHOWN = 20
SECONDS_BETWEEN_LINES = 0.2
_STAGES = {
    "start": "starting",
    "read": "reading",
    "brain": "finding the brain",
    "load": "loading the model",
    "detect": "detecting",
    "findings": "listing findings",
    "write": "writing",
    "table": "comparing",
    "upload": "sending the scan",
    "wait": "waiting for the server",
    "download": "fetching the results",
}


class SafeConsole(Console):
    """Shows text of scans and packages as text: what a terminal would obey, or cannot be encoded, is replaced."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, "\n\t"), segment.style)


out = SafeConsole(highlight=False, soft_wrap=True)
err = SafeConsole(stderr=True, highlight=False, soft_wrap=True)


def plain(text: object, style: str = "", *, keep: str = "") -> Text:
    """A text to print as it is, without markup and without anything that a terminal obeys."""
    return Text(printable(text, keep), style=style)


class Listener(ScanListener, Protocol):
    """Who is told how a command goes: a person or a program."""

    def __enter__(self) -> Listener: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, scan: Path, several: bool) -> None:
        """A scan's turn; ``several`` when it is one of more."""
        ...

    def result(self, result: Result, files: Mapping[str, Path], seconds: float) -> None: ...

    def evaluated(self, table: Table | LabelledTable, files: Mapping[str, Path], seconds: float) -> None: ...

    def failed(self, error: EngineError) -> None: ...

    def summary(self, failed: Sequence[Path], total: int) -> None:
        """The end of several scans, of which some failed."""
        ...


class _TimeLeft(TextColumn):
    """The engine's own estimate of the time left."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None:
            return Text()
        minutes, seconds = divmod(round(left), 60)
        return Text(f"{minutes}:{seconds:02d} left", style="cyan")


class Terminal:
    """A bar with time left on stderr, if that is a terminal; a short table on stdout at the end of each scan."""

    def __init__(self) -> None:
        self._bar = _bar()
        self._task = self._bar.add_task("")
        self._scan = Path()
        self._several = False

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, scan: Path, several: bool) -> None:
        self._scan, self._several = scan, several
        self._bar = _bar()
        self._task = self._bar.add_task("", total=None, left=None)
        self._show("start", 0, 1, None)
        self._bar.start()

    def stage(self, name: str, done: int, total: int) -> None:
        self._show(name, done, total, None)

    def progress(self, now: Progress) -> None:
        self._show(now.stage, now.done, now.total, now.remaining)

    def _show(self, stage: str, done: int, total: int, left: float | None) -> None:
        description = f"{printable(self._scan.name)}: {_STAGES[stage]}" if self._several else _STAGES[stage]
        # A stage of one unit, such as finding the brain, has no measure of how far it is: the bar pulses. Set on the
        # task itself, because rich's update takes None for "as before".
        self._bar.tasks[0].total = total if total > 1 else None
        self._bar.update(self._task, description=description, completed=done, left=left)

    def started(self, event: Started) -> None:
        return None  # a person sees the bar; provenance keeps what runs where

    def warning(self, message: str) -> None:
        err.print(plain(self._named("warning", message), "yellow"))

    def result(self, result: Result, files: Mapping[str, Path], seconds: float) -> None:
        self._bar.stop()
        if self._several:
            out.print(plain(self._scan, "bold"))
        show_findings(result.findings, result.threshold, result.unit, result.peak_margin)
        out.print(plain(_score_in_words(result.provenance["score"])))
        out.print(plain(f"{seconds:.0f} s on {result.provenance['device']['name']}"))
        shown = ("heat", "mask", "overlay", "findings_csv", *(kind for kind in files if "dicom" in kind), "report")
        for kind in shown:
            if kind in files:
                out.print(plain(files[kind]))

    def evaluated(self, table: Table | LabelledTable, files: Mapping[str, Path], seconds: float) -> None:
        self._bar.stop()
        out.print(plain(table.markdown(), keep="\n"))
        for path in files.values():
            out.print(plain(path))

    def failed(self, error: EngineError) -> None:
        self._bar.stop()
        show_error(error, self._scan if self._several else None)

    def summary(self, failed: Sequence[Path], total: int) -> None:
        names = listed([str(scan) for scan in failed], FAILED_SHOWN)
        err.print(plain(f"{len(failed)} of {total} scans failed: {names}", "red"))

    def _named(self, kind: str, message: str) -> str:
        return f"{kind}: {_where(message, self._scan if self._several else None)}"


def _bar() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        _TimeLeft(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
        # Or rich would send what is printed to stdout meanwhile to stderr.
        redirect_stdout=False,
        redirect_stderr=False,
    )


class JsonLines:
    """The worker's events on stdout, one object a line; with several scans each names its ``scan``."""

    def __init__(self) -> None:
        self._scan: str | None = None
        self._start = time.perf_counter()
        self._last = ("", 0.0)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()

    def begin(self, scan: Path, several: bool) -> None:
        self._scan = str(scan) if several else None
        self._start = time.perf_counter()
        self._last = ("", 0.0)

    def stage(self, name: str, done: int, total: int) -> None:
        self._report(name, done, total, None)

    def progress(self, now: Progress) -> None:
        self._report(now.stage, now.done, now.total, now.remaining)

    def _report(self, stage: str, done: int, total: int, remaining: float | None) -> None:
        elapsed = time.perf_counter() - self._start
        stage_before, sent = self._last
        if stage == stage_before and done < total and elapsed - sent < SECONDS_BETWEEN_LINES:
            return
        self._last = (stage, elapsed)
        self._send(protocol.Progress(stage, done, total, round(elapsed, 3), remaining))

    def started(self, event: Started) -> None:
        self._send(protocol.Started(event.device, event.model, event.version, event.slices))

    def warning(self, message: str) -> None:
        self._send(protocol.Warned(message))

    def result(self, result: Result, files: Mapping[str, Path], seconds: float) -> None:
        self._result(files, statistics(result), {**result.timings, "total": round(seconds, 3)})

    def evaluated(self, table: Table | LabelledTable, files: Mapping[str, Path], seconds: float) -> None:
        self._result(files, table.to_dict(), {"total": round(seconds, 3)})

    def _result(self, files: Mapping[str, Path], numbers: Mapping[str, Any], timings: Mapping[str, float]) -> None:
        self._send(protocol.Result({kind: str(path.absolute()) for kind, path in files.items()}, numbers, timings))

    def failed(self, error: EngineError) -> None:
        self._send(protocol.Failure(error.code, error.what, error.hint))

    def summary(self, failed: Sequence[Path], total: int) -> None:
        return None  # each failure was an event

    def _send(self, event: protocol.Event) -> None:
        line = protocol.encode(event)
        if self._scan is not None:
            line = json.dumps({**json.loads(line), "scan": self._scan})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def show_findings(findings: Sequence[Finding], threshold: float, unit: str = "ml", peak_margin: float = 0.0) -> None:
    """The largest findings as a table on stdout, and what they add up to."""
    from ..results.findings import centre_title, reached, sized

    total = sum(finding.size for finding in findings)
    if not findings:
        out.print(Text(f"No finding at an anomaly score of {reached(threshold, peak_margin)}."))
        return
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for heading in ("finding", unit, "peak", "mean", centre_title(unit), "slices"):  # short, for what follows
        table.add_column(heading, justify="right", no_wrap=True)
    if any(finding.place for finding in findings):
        table.add_column("place", min_width=PLACE_WIDTH, overflow="fold")  # wraps, so that nothing is cut
    for finding in findings[:FINDINGS_SHOWN]:
        first, last = finding.slices
        table.add_row(
            str(finding.id),
            sized(finding.size, unit).split()[0],
            f"{finding.peak_score:.2f}",
            f"{finding.mean_score:.2f}",
            ", ".join(f"{value:.1f}" for value in finding.centre),
            f"{first}-{last}" if last != first else str(first),
            *([finding.place] if finding.place else []),
        )
    out.print(table, width=None if out.is_terminal else FILE_WIDTH)
    more = len(findings) - FINDINGS_SHOWN
    if more > 0:
        out.print(Text(f"… and {more} more in findings.csv"))
    number = counted(len(findings), "finding")
    out.print(Text(f"{number}, {sized(total, unit)} at an anomaly score of {reached(threshold, peak_margin)}"))


def _score_in_words(score: Mapping[str, Any]) -> str:
    """The whole-image score of a provenance, which of a picture may tell more than where its findings are."""
    usual, known = score["healthy_range"], ""
    if usual:
        known = f"; of known scans {2 * usual['mean'] - usual['upper']:.3g} to {usual['upper']:.3g}"
    return f"Whole-image score {score['value']:.3g}: {score['title']}{known}"


def show_error(error: EngineError, scan: Path | None = None) -> None:
    """What happened, and on a second line what to do, on stderr."""
    err.print(plain(f"error: {_where(_one_line(error.what), scan)}", "red"))
    if error.hint:
        err.print(plain(_one_line(error.hint)))


def _where(message: str, scan: Path | None) -> str:
    """A message that names its scan, once."""
    if scan is None:
        return message
    for name in (str(scan), printable(scan)):
        # A folder called "a" is in every message, so a plain word must be the first.
        if message.startswith(tuple(f"{name}{end}" for end in " :/")) or (set("./") & set(name) and name in message):
            return message
    return f"{scan}: {message}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
