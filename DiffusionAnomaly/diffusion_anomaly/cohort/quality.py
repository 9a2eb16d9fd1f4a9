"""Pages of quality control: one over the cohort and one for each patient, beside the tables.

They need no network and no script. What comes from a file's name is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..io.files import Writer, write_text
from ..io.outputs import OutputFolder, keep_out_of_results
from ..io.records import record
from ..results.findings import centre_title, sized
from ..results.pages import render_page
from ..text import distinct_names, printable, safe_name
from .group import FENCE, FEWEST, LEAST_SHARE, Group, Quantity, collect, size_of, stands_out, table_writers
from .state import Finished

PAGE = "quality.html"
RECORD = "cohort.json"
SUBJECTS = "subjects"
MOST_ROWS = 2000  # of the table of all scans; a browser takes no more with grace, and the CSV has them all


def write_group(
    output: Path, belongs: Callable[[Finished], bool] = lambda result: True
) -> tuple[Group, dict[str, Path]]:
    """Write tables and pages of a cohort; those that an earlier run has written make room.

    Args:
        output: folder of the cohort.
        belongs: whether a result is of the cohort as it is now.

    Returns:
        What they say, and the files by name.

    Raises:
        InputError: when something else is in the way, or a file cannot be written.
    """
    group = collect(output, belongs)
    with OutputFolder(output) as folder:
        files = folder.publish(
            {
                **table_writers(group),
                **page_writers(group),
                RECORD: record(
                    {
                        "program": f"diffusion-anomaly {__version__}",
                        "scans": len(group.scans),
                        "failures": len(group.failures),
                        "doubts": group.doubts,
                    }
                ),
            }
        )
    return group, {name: path for name, path in files.items() if not name.startswith(f"{SUBJECTS}/")}


def check_group(output: Path) -> None:
    """Make sure that there is room for the tables and the page, before hours of detection.

    Raises:
        InputError: naming the file that is in the way.
    """
    with OutputFolder(output) as folder:
        keep_out_of_results(folder.path)
        folder.check([*table_writers(Group([], [])), PAGE, RECORD])


def page_writers(group: Group) -> dict[str, Writer]:
    """What writes the pages, by their names; a scan of which no patient is known has a page of its own."""
    people: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in group.scans:
        people.setdefault((row["patient"], "" if row["patient"] else row["name"]), []).append(row)
    titles = [patient or scan for patient, scan in people]
    names = distinct_names(safe_name(title) for title in titles)
    pages = {
        row["name"]: f"{SUBJECTS}/{name}.html"
        for name, rows in zip(names, people.values(), strict=True)
        for row in rows
    }
    writers: dict[str, Writer] = {PAGE: lambda path: write_text(path, _overview(group, pages))}
    for title, rows in zip(titles, people.values(), strict=True):
        writers[pages[rows[0]["name"]]] = lambda path, title=title, rows=rows: _write_below(
            path, _subject(title, rows, group)
        )
    return writers


def _write_below(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)


def _overview(group: Group, pages: Mapping[str, str]) -> str:
    outliers = [(row, marked) for row in group.scans if (marked := stands_out(row))]
    doubtful = [row for row in group.scans if row["warnings"]]
    return _render(
        "quality.html.jinja",
        group=group,
        outliers=outliers,
        doubtful=doubtful,
        pages=pages,
        plots=_plots(group),
        quantities=group.quantities,
        fence=FENCE,
        fewest=FEWEST,
        least_share=LEAST_SHARE,
        shown=group.scans[:MOST_ROWS],
        hidden=max(0, len(group.scans) - MOST_ROWS),
    )


def _subject(title: str, rows: Sequence[Mapping[str, Any]], group: Group) -> str:
    rows = sorted(rows, key=lambda row: (row["session"], row["name"]))
    units = {row["name"]: row["unit"] for row in rows}
    return _render(
        "subject.html.jinja",
        title=title,
        rows=[(row, stands_out(row)) for row in rows],
        findings=[
            (finding, sized(size_of(finding), units[finding["name"]]), _place(finding))
            for finding in group.findings
            if finding["name"] in units
        ],
        centre=" / ".join(dict.fromkeys(map(centre_title, units.values()))),
        plot=_over_sessions(rows, group.quantities) if len(rows) > 1 else None,
        quantities=group.quantities,
    )


def _render(template: str, **values: Any) -> str:
    filters = {"number": _number, "link": lambda path: quote(str(path))}
    return render_page(Path(__file__).with_name(template), {"version": __version__, **values}, filters)


def _number(value: Any) -> str:
    """A number in three figures; what is unknown is a dash."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _place(finding: Mapping[str, Any]) -> str:
    """A finding's centre: R, A, S, or of a picture column and row."""
    millimetres = [finding[f"centroid_{axis}_mm"] for axis in "ras"] if "centroid_r_mm" in finding else []
    pixel = [finding[f"centroid_{axis}_index"] for axis in ("column", "row") if f"centroid_{axis}_index" in finding]
    return ", ".join(f"{value:.0f}" for value in millimetres or pixel)


def _plots(group: Group) -> list[tuple[Quantity, str]]:
    """How each quantity is distributed, as pictures for a page."""
    plots = []
    for quantity in group.quantities:
        values = [float(row[quantity.name]) for row in group.scans if row[quantity.name] is not None]
        if len(values) > 1:
            out = [row[quantity.name] for row in group.scans if quantity in stands_out(row)]
            plots.append((quantity, _distribution(quantity, values, out)))
    return plots


def _distribution(quantity: Quantity, values: Sequence[float], out: Sequence[float]) -> str:
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.5), layout="constrained")
    axes = figure.subplots()
    numbers = np.asarray(values, dtype=float)
    if quantity.logarithmic:
        numbers = np.maximum(numbers, LEAST_SHARE)
        low, high = np.log10(numbers.min()), np.log10(numbers.max())
        bins = np.logspace(low - 0.05, high + 0.05, 31)
        axes.set_xscale("log")
    else:
        bins = np.histogram_bin_edges(numbers, bins=30)
    axes.hist(numbers, bins=bins.tolist(), color="#0e7490")
    if out:
        marks = np.maximum(np.asarray(out, dtype=float), LEAST_SHARE) if quantity.logarithmic else np.asarray(out)
        axes.plot(marks, np.zeros(len(marks)), "v", color="#c2410c", markersize=7, clip_on=False)
    axes.axvline(float(np.median(numbers)), color="#0f172a", linewidth=1, linestyle="--")
    axes.set_xlabel(quantity.title)
    axes.set_ylabel("Scans")
    axes.spines[["top", "right"]].set_visible(False)
    return _as_picture(figure)


def _over_sessions(rows: Sequence[Mapping[str, Any]], quantities: Sequence[Quantity]) -> str:
    """Sizes of findings, where all are counted in one unit, and the volume of what was looked at, or else the score."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    places = range(len(rows))
    labels = [row["session"] or row["name"] for row in rows]
    units = {row["unit"] for row in rows}
    shown = [("size", f"All findings ({unit})") for unit in units if len(units) == 1]
    shown += [(quantity.name, quantity.title) for quantity in quantities[:1]]
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (name, title) in zip(panels, shown, strict=True):
        axes.plot(places, [float("nan") if row[name] is None else row[name] for row in rows], "o-", color="#0e7490")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(
            list(places), [printable(label)[:16].replace("$", r"\$") for label in labels], fontsize=7, rotation=30
        )
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # scores may be below
        axes.spines[["top", "right"]].set_visible(False)
    return _as_picture(figure)


def _as_picture(figure: Any) -> str:
    """A figure as an address that holds it, without the time of its making."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
