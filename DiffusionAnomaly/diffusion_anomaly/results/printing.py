"""The report as a PDF of A4 pages: numbers and findings, pictures, and how it was made.

The page for browsers needs one to become a PDF; this needs matplotlib alone, so that Slicer and servers can write it.
"""

from __future__ import annotations

import base64
import textwrap
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..io.files import whole_file
from ..text import counted
from .findings import centre_title, sized
from .rendering import SliceView, choose_slices, draw_slices
from .report import model_line, record_rows, title_of

if TYPE_CHECKING:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    from .findings import Finding
    from .report import Shown

A4 = (8.27, 11.69)  # inches
MARGIN, LINE = 0.07, 0.017  # shares of the page
FINDINGS_A_PAGE, FINDINGS_PRINTED, PAIRS_A_PAGE = 28, 140, 8
LETTERS = 104  # of the smaller print, in a line
INK, SOFT, WARM = "#0f172a", "#475569", "#9a3412"


def print_report(shown: Shown, path: Path) -> None:
    """Write the PDF, whole or not at all.

    Raises:
        InputError: when the file cannot be written.
    """
    from matplotlib.backends.backend_pdf import PdfPages

    about = {"Title": f"{shown.name} · DiffusionAnomaly", "Creator": "DiffusionAnomaly", "Subject": _purpose(shown)}
    with warnings.catch_warnings(), whole_file(path) as partial, PdfPages(partial, metadata=about) as pages:
        warnings.simplefilter("ignore")  # a letter that the font lacks is a box on the page
        _front(pages, shown)
        _slices(pages, shown)
        _record(pages, shown)


def _front(pages: PdfPages, shown: Shown) -> None:
    """Numbers, warnings and the findings, on as many pages as they take."""
    made = shown.provenance
    least = made["options"].get("min_area") or made["options"]["min_volume_ml"]
    view = SliceView(shown.scan, shown.anomaly_map, shown.mask, shown.brain, _is_picture(shown))
    left = shown.left
    page = _Page()
    page.write("DiffusionAnomaly report", 9, SOFT)
    page.write(shown.name, 18, INK, 62, bold=True)
    page.write(f"{title_of(made['method'])} · {model_line(made['model'])} · {made['date_utc'][:16]} UTC", 9, SOFT)
    page.write(_purpose(shown), 10, WARM, bold=True)
    rejected = len(shown.findings) - len(left)
    facts = [
        f"{counted(len(left), 'finding')} of at least {least:g} {view.unit}"
        + (f"; {rejected} rejected by the reader" if rejected else ""),
        f"{sized(sum(finding.size for finding in left), view.unit)} anomalous; threshold {shown.threshold:.2f}, "
        f"highest score {float(view.peaks().max()):.2f}",
        f"Whole-image score {made['score']['value']:.3g} ({made['score']['title']})",
        "A score is -log10 of the healthy tail probability: 3 means that one healthy voxel in a thousand looks so.",
    ]
    for fact in facts:
        page.write(fact, 10)
    for warning in made["warnings"]:
        page.write(f"! {warning}", 9, WARM)
    rows = [_row(shown, finding, view.unit) for finding in shown.findings[:FINDINGS_PRINTED]]
    size, centre = f"Size ({view.unit})", centre_title(view.unit)
    titles = ["Finding", size, "Peak", "Mean", centre, "Place, roughly", "Slices", "Review", "Comment"]
    first = True
    for start in range(0, max(len(rows), 1), FINDINGS_A_PAGE):
        if not first:
            page = _Page()
        first = False
        page.table(titles, rows[start : start + FINDINGS_A_PAGE], "No region reaches the threshold.")
        page.save(pages)
    if len(shown.findings) > FINDINGS_PRINTED:
        page = _Page()
        page.write(f"{len(shown.findings) - FINDINGS_PRINTED} more, of lower rank, are not printed.", 9, SOFT)
        page.save(pages)


def _row(shown: Shown, finding: Finding, unit: str) -> list[str]:
    name = shown.names.get(finding.id, "")
    first, last = finding.slices
    return [
        f"{finding.id}{' · ' + name if name else ''}",
        sized(finding.size, unit).split()[0],
        f"{finding.peak_score:.2f}",
        f"{finding.mean_score:.2f}",
        ", ".join(f"{value:.1f}" for value in finding.centre),
        finding.place,
        f"{first}" if first == last else f"{first}–{last}",
        shown.reviews.get(finding.id, "undecided") if shown.reviews else "",
        shown.comments.get(finding.id, ""),
    ]


def _slices(pages: PdfPages, shown: Shown) -> None:
    """The most anomalous slices and an even sample of the others, each beside itself with the map."""
    view = SliceView(shown.scan, shown.anomaly_map, shown.mask, shown.brain, _is_picture(shown))
    top = max(float(view.peaks().max()), 1.5 * shown.threshold)
    pictures = draw_slices(view, choose_slices(view, shown.threshold), shown.threshold, top)
    for start in range(0, len(pictures), PAIRS_A_PAGE):
        page = _Page()
        page.write("Slices: the scan, and the same with the anomaly map and the mask's outline", 11, bold=True)
        part = pictures[start : start + PAIRS_A_PAGE]
        for place, picture in enumerate(part):
            row, column = divmod(place, 2)
            box = (MARGIN + 0.44 * column, 0.70 - 0.215 * row, 0.42, 0.19)
            axes = page.figure.add_axes(box)
            axes.imshow(np.concatenate([_pixels(picture.scan), _pixels(picture.overlay)], axis=1))
            axes.set_axis_off()
            axes.set_title(
                f"Slice {picture.index} · {sized(picture.marked, view.unit)} · peak {picture.peak:.2f}", fontsize=7
            )
        page.save(pages)


def _record(pages: PdfPages, shown: Shown) -> None:
    """Comments in full, which the table cuts short, and how it was made, row by row."""
    page = _Page()
    if shown.comments:
        page.write("Comments", 11, bold=True)
    for number, comment in sorted(shown.comments.items()):
        if page.left < 8 * LINE:
            page.save(pages)
            page = _Page()
        page.write(f"Finding {number}: {comment}", 9)
    page.write("How this was made", 11, bold=True)
    for name, value in record_rows(shown.provenance):
        if page.left < 4 * LINE:
            page.save(pages)
            page = _Page()
        page.write(f"{name}: {value}", 7.5, SOFT, 120)
    page.save(pages)


class _Page:
    """An A4 page that is written from top to bottom.

    Attributes:
        figure: of matplotlib.
        left: share of the page's height that is left.
    """

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(figsize=A4)
        self._top = 1 - MARGIN

    @property
    def left(self) -> float:
        return self._top - MARGIN

    def write(self, text: str, size: float, colour: str = INK, letters: int = LETTERS, bold: bool = False) -> None:
        """A paragraph; what comes out of files is no formula, whatever signs are in it."""
        for line in textwrap.wrap(text, letters) or [""]:
            self.figure.text(
                MARGIN,
                self._top,
                line,
                fontsize=size,
                color=colour,
                va="top",
                weight="bold" if bold else "normal",
                parse_math=False,
            )
            self._top -= LINE * max(1.0, size / 9)
        self._top -= LINE / 3

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> None:
        """A table as wide as the page; without rows, what is said instead."""
        if not rows:
            self.write(nothing, 10)
            return
        used = [column for column in range(len(titles)) if any(row[column] for row in rows)]
        widest = {0: 24, len(titles) - 1: 34}
        cells = [[textwrap.shorten(row[c], widest.get(c, 22), placeholder=" …") for c in used] for row in rows]
        lengths = [max(len(titles[c]), *(len(row[n]) for row in cells)) + 2 for n, c in enumerate(used)]
        axes = self.figure.add_axes((MARGIN, MARGIN, 1 - 2 * MARGIN, self.left))
        axes.set_axis_off()
        widths = [length / sum(lengths) for length in lengths]
        drawn = axes.table(cells, colLabels=[titles[c] for c in used], colWidths=widths, loc="upper left")
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7)
        for cell in drawn.get_celld().values():
            cell.set_linewidth(0.3)
            cell.set_edgecolor("#cbd5e1")
            cell.get_text().set_parse_math(False)

    def save(self, pages: PdfPages) -> None:
        self.figure.text(MARGIN, MARGIN / 2, "For research use only. Not for diagnosis.", fontsize=7, color=SOFT)
        pages.savefig(self.figure)


def _is_picture(shown: Shown) -> bool:
    return shown.provenance["options"].get("min_area") is not None


def _purpose(shown: Shown) -> str:
    return str(shown.provenance["purpose"])


def _pixels(uri: str) -> np.ndarray:
    """The pixels of a picture that is written into a page."""
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))
