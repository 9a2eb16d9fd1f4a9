"""The report as a PDF of A4 pages: numbers and findings, pictures, and how it was made.

The page for browsers needs one to become a PDF; this needs matplotlib alone, so that Slicer and servers can write it.
The same result gives the same bytes.
"""

from __future__ import annotations

import base64
import textwrap
import warnings
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..io.files import whole_file
from ..options import margin_of
from ..text import counted
from .findings import centre_title, sized
from .rendering import (
    CONTOUR,
    SliceView,
    choose_slices,
    colour_table,
    coloured_from,
    draw_outlined,
    draw_slices,
    scale_ticks,
)
from .report import date_line, extrapolated, model_line, record_groups, smallest, spread_line, title_of, views

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .findings import Finding
    from .report import Shown

A4 = (8.27, 11.69)  # inches
LEFT, TOP, BOTTOM = 0.07, 0.94, 0.06  # shares of the page
WIDTH = 1 - 2 * LEFT
ROW, CAPTION, GAP = 0.0162, 0.02, 0.008  # of a table, over a picture, and between things, likewise
TALLEST = 0.3  # share of the page's height that a picture takes
DOTS = 220  # of pictures in an inch: a slice is as fine as it was drawn
FINDINGS_PRINTED = 140
LETTERS = 960  # in a line as wide as the page, times the print's size in points
RECORD = 6.5  # points, of how it was made
RECORD_COLUMNS = (0.14, 0.24, 0.48)  # shares of the page's width for a group's title, names and values
NARROW, WIDE = 26, 40  # letters of a table's cell, the wide ones being places and what a reader wrote
INK, SOFT, WARM, LINES, GROUND = "#0f172a", "#475569", "#9a3412", "#cbd5e1", "#f1f5f9"


def print_report(shown: Shown, path: Path) -> None:
    """Write the PDF, whole or not at all.

    Raises:
        InputError: when the file cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(printed(shown))


def printed(shown: Shown) -> bytes:
    """The PDF."""
    from matplotlib import rc_context

    sheets = _Sheets()
    # TrueType, so that text of any script is found and copied. Matplotlib's other settings may be the user's.
    with warnings.catch_warnings(), rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans"}):
        warnings.simplefilter("ignore")  # a letter that the font lacks is a box on the page
        view, *others = views(shown)
        _front(sheets, shown, view)
        _slices(sheets, shown, view, others)
        _record(sheets, shown)
        about = {
            "Title": f"{shown.name} · DiffusionAnomaly",
            "Creator": "DiffusionAnomaly",
            "Subject": _purpose(shown),
            "CreationDate": datetime.fromisoformat(shown.provenance["date_utc"]),
        }
        return sheets.written(f"{_purpose(shown)}  ·  {textwrap.shorten(shown.name, 70, placeholder=' …')}", about)


def _front(sheets: _Sheets, shown: Shown, view: SliceView) -> None:
    """Numbers, warnings and the findings."""
    made = shown.provenance
    left = shown.left
    sheets.write("DiffusionAnomaly report", 9, SOFT)
    sheets.write(shown.name, 18, bold=True)
    if shown.exam:
        sheets.write(" · ".join(shown.exam), 10, bold=True)
    sheets.write(f"{title_of(made['method'])} · {model_line(made['model'])} · {date_line(made)}", 9, SOFT)
    sheets.write(_purpose(shown), 10, WARM, bold=True)
    rejected = len(shown.findings) - len(left)
    healthy = made["score"].get("healthy_range")
    usual = ""
    if healthy:
        usual = f"; of known scans {2 * healthy['mean'] - healthy['upper']:.3g} to {healthy['upper']:.3g}"
    peak, margin = float(view.peaks().max()), margin_of(made["options"])
    facts = [
        f"{counted(len(left), 'finding')} of at least {smallest(made):g} {view.unit}"
        + (f"; {rejected} rejected by the reader" if rejected else ""),
        f"{sized(sum(finding.size for finding in left), view.unit)} anomalous; threshold {shown.threshold:.2f}, "
        + (f"peak margin {margin:g}: findings reach {shown.threshold + margin:.2f}; " if margin else "")
        + f"highest score {peak:.2f}",
        f"Whole-image score {made['score']['value']:.3g} ({made['score']['title']}{usual})",
        "A score is −log10 of the healthy tail probability: 3 = one healthy voxel in a thousand looks like this.",
        _sentence(spread_line(made.get("calibration_spread"))),
        _sentence(extrapolated(made.get("calibration_end"), peak, shown.threshold)),
    ]
    for fact in filter(None, facts):
        sheets.write(fact, 9)
    for warning in made["warnings"]:
        sheets.write(f"Warning: {warning}", 9, WARM)
    sheets.space(GAP)
    if not shown.findings:
        above = f" and exceeds it at its highest by the peak margin of {margin:g}" if margin else ""
        text = f"No region of at least {smallest(made):g} {view.unit} reaches the threshold{above}."
        sheets.write(text, 10, bold=True)
        return
    several = len(view) > 1
    size = "Volume" if view.unit == "ml" else "Area"
    centre = centre_title(view.unit)
    titles = ["Finding", f"{size} ({view.unit})", "Peak", "Mean", centre[0].upper() + centre[1:], "Slices"]
    titles += ["Place, roughly", "Review", "Comment"]
    given = shown.findings[:FINDINGS_PRINTED]
    rows = [_row(shown, finding, view.unit, several) for finding in given]
    faint = [shown.reviews.get(finding.id) == "rejected" for finding in given]
    sheets.table(titles, rows, faint, written=("Place, roughly", "Review", "Comment"))
    if (more := len(shown.findings) - FINDINGS_PRINTED) > 0:
        sheets.write(f"{more} more, of lower rank, are not printed.", 8, SOFT)
    told = f"In order of {size.lower()} times mean score."
    if any(finding.place for finding in given):
        told += " Places are told from the brain's outline alone."
    sheets.write(told, 8, SOFT)


def _row(shown: Shown, finding: Finding, unit: str, several: bool) -> list[str]:
    name = shown.names.get(finding.id, "")
    first, last = finding.slices
    slices = f"{first}" if first == last else f"{first}–{last}"
    return [
        f"{finding.id}{' · ' + name if name else ''}",
        sized(finding.size, unit).split()[0],
        f"{finding.peak_score:.2f}",
        f"{finding.mean_score:.2f}",
        ", ".join(f"{value:.1f}" for value in finding.centre),
        slices if several else "",
        finding.place,
        shown.reviews.get(finding.id, "undecided") if shown.reviews else "",
        shown.comments.get(finding.id, ""),
    ]


def _slices(sheets: _Sheets, shown: Shown, view: SliceView, others: Sequence[SliceView]) -> None:
    """Slices of the findings, and an even sample of the others: the scan, the same with the map, other contrasts."""
    top = max(float(view.peaks().max()), 1.5 * shown.threshold)
    chosen = choose_slices(view, shown.threshold)
    pictures = draw_slices(view, chosen, shown.threshold, top)
    outlined = list(zip(*(draw_outlined(other, chosen) for other in others), strict=True)) or [()] * len(pictures)
    strips = [
        np.concatenate([_pixels(uri) for uri in (picture.scan, picture.overlay, *more)], axis=1)
        for picture, more in zip(pictures, outlined, strict=True)
    ]
    columns = 2 if not others and len(strips) > 1 else 1
    width = (WIDTH - (columns - 1) * 2 * GAP) / columns
    shape = strips[0].shape
    height = min(width * A4[0] * shape[0] / shape[1] / A4[1], TALLEST)
    sheets.space(GAP)
    sheets.make_room(0.09 + height + CAPTION)  # the heading stays with its pictures
    # Slicer asks for the first contrast alone, whatever others the map was made of.
    names = list(shown.channels) or list(shown.provenance.get("channels", ()))
    sheets.write("Slices" if len(view) > 1 else "The picture", 11, bold=True)
    parts = [names[0] if names else "the scan", "the same with the anomaly map and the mask's outline"]
    told = f"From left to right: {', '.join([*parts, *(names[1:] if others else ())])}."
    if view.sides[0]:
        told += f" {view.sides[0]} and {view.sides[1]} are the patient's own sides. Slices are counted from 0."
    if shown.labels is not None and shown.left:
        told += " Numbers beside outlines are the findings', where there is room."
    sheets.write(told, 8, SOFT)
    sheets.colour_bar(shown.threshold, top)
    for start in range(0, len(strips), columns):
        sheets.make_room(height + CAPTION)
        for column, n in enumerate(range(start, min(start + columns, len(strips)))):
            picture = pictures[n]
            marked = f"{sized(picture.marked, view.unit)} · " if picture.marked > 0 else ""
            about = f"Slice {picture.index} · " if len(view) > 1 else ""
            box = (LEFT + column * (width + 2 * GAP), width, height)
            sheets.picture(strips[n], f"{about}{marked}peak {picture.peak:.2f}", box)
        sheets.space(height + CAPTION)


def _record(sheets: _Sheets, shown: Shown) -> None:
    """Comments in full, which the table cuts short, and how it was made, in groups."""
    if shown.comments:
        sheets.space(GAP)
        sheets.make_room(0.06)
        sheets.write("Comments", 11, bold=True)
    for number, comment in sorted(shown.comments.items()):
        sheets.write(f"Finding {number}: {comment}", 9)
    sheets.space(GAP)
    sheets.make_room(0.1)
    sheets.write("How this was made", 11, bold=True)
    for title, rows in record_groups(shown.provenance):
        sheets.group(title[:1].upper() + title[1:], rows)


class _Sheets:
    """A4 pages that are written from top to bottom, one after the other."""

    def __init__(self) -> None:
        self._pages: list[Figure] = []
        self._top = 0.0

    @property
    def page(self) -> Figure:
        """The one that is written on."""
        if not self._pages:
            self._turn()
        return self._pages[-1]

    def _turn(self) -> None:
        from matplotlib.figure import Figure

        self._pages.append(Figure(figsize=A4))
        self._top = TOP

    def make_room(self, height: float) -> None:
        """Go on on a new page where so much, in shares of the page's height, is not left."""
        if not self._pages or self._top - height < BOTTOM:
            self._turn()

    def space(self, height: float) -> None:
        """Leave so much empty, or to what was drawn there."""
        self._top -= height

    def write(self, text: str, size: float, colour: str = INK, bold: bool = False) -> None:
        """A paragraph; what comes out of files is no formula, whatever signs are in it."""
        line = size * 1.38 / (72 * A4[1])
        for part in textwrap.wrap(text, int(LETTERS / size * (0.9 if bold else 1))) or [""]:
            self.make_room(line)
            self._text(LEFT, self._top, part, size, colour, bold, va="top")
            self._top -= line
        self._top -= line / 4

    def group(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values under each other with a title at their left, nothing of them cut short.

        Values may hold a word longer than a line, as a hash is; it goes on in the next one.
        """
        line = RECORD * 1.38 / (72 * A4[1])
        places = (LEFT, LEFT + RECORD_COLUMNS[0], LEFT + RECORD_COLUMNS[0] + RECORD_COLUMNS[1])
        # Hexadecimal digits and bold letters are wider than others.
        shares = zip((0.87, 1.0, 0.87), RECORD_COLUMNS, strict=True)
        wraps = [int(share * LETTERS / RECORD * width / WIDTH) - 1 for share, width in shares]
        self.make_room(3 * line)
        self._rule(self._top + line / 4)
        page, untold = self.page, textwrap.wrap(title, wraps[0])
        for name, value in rows:
            told = zip_longest(textwrap.wrap(name, wraps[1]), textwrap.wrap(value, wraps[2]), fillvalue="")
            for name_part, value_part in told:
                self.make_room(line)
                if self.page is not page:  # the title once more
                    page, untold = self.page, textwrap.wrap(title, wraps[0])
                head = untold.pop(0) if untold else ""
                for x, part, colour in zip(places, (head, name_part, value_part), (INK, SOFT, INK), strict=True):
                    if part:
                        self._text(x, self._top, part, RECORD, colour, bold=colour == INK and x == LEFT)
                self._top -= line
        self._top -= line / 2

    def _rule(self, height: float) -> None:
        """A thin line across the page."""
        from matplotlib.lines import Line2D

        self.page.add_artist(Line2D((LEFT, 1 - LEFT), (height, height), color=LINES, linewidth=0.4))

    def table(
        self, titles: Sequence[str], rows: Sequence[Sequence[str]], faint: Sequence[bool], written: Sequence[str]
    ) -> None:
        """A table as wide as the page, of the columns that hold something, with its head on every page.

        Args:
            titles: of the columns.
            rows: texts by column.
            faint: of each row whether it is told in passing.
            written: titles of the columns that hold words, which begin at the left.
        """
        from matplotlib.table import Table
        from matplotlib.transforms import Bbox

        used = [column for column in range(len(titles)) if any(row[column] for row in rows)]
        letters = [max(len(titles[c]), *(len(row[c]) for row in rows)) for c in used]
        letters = [min(n, WIDE if titles[c] in written else NARROW) for n, c in zip(letters, used, strict=True)]
        cells = [[_shortened(row[c], n) for c, n in zip(used, letters, strict=True)] for row in rows]
        total = sum(letters) + 2 * len(used)
        size = min(7.5, 0.93 * LETTERS / total)  # digits are wider than most letters
        names = [titles[c] for c in used]
        done = 0
        while done < len(cells):
            self.make_room(4 * ROW)
            part = cells[done : done + int((self._top - BOTTOM) / ROW) - 1]
            height = ROW * (len(part) + 1)
            axes = self.page.add_axes((LEFT, self._top - height, WIDTH, height))
            axes.set_axis_off()
            drawn = Table(axes, bbox=Bbox.unit())
            for n, row in enumerate([names, *part]):
                colour = SOFT if n == 0 or faint[done + n - 1] else INK
                for column, text in enumerate(row):
                    cell = drawn.add_cell(
                        n,
                        column,
                        width=(letters[column] + 2) / total,
                        height=1 / (len(part) + 1),
                        text=text,
                        loc="left" if column == 0 or names[column] in written else "right",
                        facecolor=GROUND if n == 0 else "white",
                        edgecolor=LINES,
                    )
                    cell.set_linewidth(0.4)
                    cell.PAD = 0.8 / (letters[column] + 2)
                    cell.set_text_props(parse_math=False, color=colour, fontsize=size)
            drawn.auto_set_font_size(False)
            axes.add_table(drawn)
            self._top -= height
            done += len(part)
        self._top -= GAP

    def picture(self, pixels: np.ndarray, caption: str, box: tuple[float, float, float]) -> None:
        """Pixels ``(height, width, 3)`` at the current height, in a box of left, width and height; a caption above."""
        left, width, height = box
        self._text(left, self._top - CAPTION + 0.003, caption, 7, SOFT, va="bottom")
        axes = self.page.add_axes((left, self._top - CAPTION - height, width, height))
        axes.imshow(pixels)
        axes.set_anchor("NW")
        axes.set_axis_off()

    def colour_bar(self, threshold: float, top: float) -> None:
        """What the anomaly map's colours mean."""
        self._text(LEFT, self._top, "Anomaly score, with the threshold marked", 8, SOFT, va="top")
        axes = self.page.add_axes((LEFT + 0.36, self._top - 0.012, 0.4, 0.011))
        low = coloured_from(threshold)
        axes.imshow(colour_table()[None].astype(np.uint8), extent=(low, top, 0, 1), aspect="auto")
        axes.axvline(threshold, color=CONTOUR, linewidth=2)
        ticks = scale_ticks(threshold, top)
        axes.set_xticks([tick for tick, _ in ticks], [text for _, text in ticks], fontsize=7, color=SOFT)
        axes.tick_params(length=2, color=LINES, pad=1)
        axes.set_yticks([])
        axes.set_frame_on(False)
        self._top -= 0.034

    def written(self, foot: str, about: dict) -> bytes:
        """The PDF's bytes, with what stands at the foot of each page."""
        from matplotlib.backends.backend_pdf import PdfPages

        content = BytesIO()
        with PdfPages(content, metadata=about) as pages:
            for number, figure in enumerate(self._pages, start=1):
                for x, text, side in ((LEFT, foot, "left"), (1 - LEFT, f"{number} / {len(self._pages)}", "right")):
                    figure.text(x, BOTTOM / 2, text, fontsize=7, color=SOFT, parse_math=False, ha=side)
                pages.savefig(figure, dpi=DOTS)
        return content.getvalue()

    def _text(
        self, x: float, y: float, text: str, size: float, colour: str, bold: bool = False, va: str = "top"
    ) -> None:
        weight = "bold" if bold else "normal"
        self.page.text(x, y, text, fontsize=size, color=colour, va=va, weight=weight, parse_math=False)


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _purpose(shown: Shown) -> str:
    return str(shown.provenance["purpose"])


def _pixels(uri: str) -> np.ndarray:
    """The pixels of a picture that is written into a page."""
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))
