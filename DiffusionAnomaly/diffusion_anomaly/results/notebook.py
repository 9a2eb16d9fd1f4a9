"""How a notebook shows a result: a few slices and a table, as HTML in the cell."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ..text import counted
from .findings import centre_title, reached, sized
from .rendering import SliceView, choose_slices, draw_slices

if TYPE_CHECKING:
    from .result import Result

SLICES = 6
FINDINGS = 10


def render_notebook(result: Result) -> str:
    """Slices of the findings, the largest findings and the warnings."""
    scan, labels = result.scan.reference.image, result.labels()
    view = SliceView(scan, result.anomaly_map, result.mask, result.brain, result.is_picture, labels)
    top = max(float(view.peaks().max()), 1.5 * result.threshold)
    pictures = draw_slices(view, choose_slices(view, result.threshold, SLICES), result.threshold, top)
    images = "".join(
        f'<img src="{picture.overlay}" height="200" style="display:inline" title="slice {picture.index}">'
        for picture in pictures
    )
    rows = "".join(
        f"<tr><td>{finding.id}</td><td>{sized(finding.size, result.unit)}</td><td>{finding.peak_score:.2f}</td>"
        f"<td>{' '.join(f'{value:.0f}' for value in finding.centre)}</td></tr>"
        for finding in result.findings[:FINDINGS]
    )
    centre = centre_title(result.unit)
    head = f"<tr><th>finding</th><th>size</th><th>peak score</th><th>{centre}</th></tr>"
    total = sized(sum(finding.size for finding in result.findings), result.unit)
    warnings = "".join(f"<p>⚠ {escape(warning)}</p>" for warning in result.warnings)
    return (
        f"<div><p><b>{escape(result.name)}</b>: {counted(len(result.findings), 'finding')}, {total} at an anomaly "
        f"score of {reached(result.threshold, result.peak_margin)}. {escape(str(result.provenance['purpose']))}</p>"
        f"{warnings}<div>{images}</div>" + (f"<table>{head}{rows}</table>" if rows else "") + "</div>"
    )
