"""One self-contained page on a result: what was found, where, how sure one may be, and how it was made.

No link leads out of the file and no script is in it, so that it can be mailed, archived and printed. Everything that
comes from a file's name or header is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.files import write_text
from ..models.declaration import BRAIN, REGIONS
from ..options import margin_of
from ..registry import METHODS
from .findings import centre_title, sized
from .pages import render_page
from .rendering import (
    SliceView,
    choose_slices,
    coloured_from,
    draw_colour_bar,
    draw_outlined,
    draw_profile,
    draw_slices,
)

if TYPE_CHECKING:
    import SimpleITK as sitk

    from .findings import Finding
    from .result import Result

TEMPLATE = "report.html.jinja"
FINDINGS_SHOWN = 50
LONGEST_VALUE = 160  # characters of an option, such as a table of thresholds, that are printed
# Of the provenance's keys: units and abbreviations, and what was called otherwise when the format was made.
_WORDS = {
    **{unit: f"({unit})" for unit in ("mm", "ml", "seconds")},
    **{short: short.upper() for short in ("utc", "sha256", "lps")},
    "heat": "score",
}


@dataclass(frozen=True)
class Shown:
    """What a page shows.

    Attributes:
        name: what the user calls the scan.
        scan, anomaly_map, mask, brain: on one grid.
        findings: of the mask, by rank.
        threshold: the anomaly score from which a voxel is in the mask.
        provenance: how the anomaly map was made; with the options, the score and the warnings.
        names: that the user gave to findings, by their ids.
        channels: every contrast by name where there are several, on the same grid, ``scan`` first.
        reviews: ``accepted`` or ``rejected`` by the findings' ids; the mask is without those that were rejected.
        comments: of a reader, by the findings' ids.
        labels: a finding's id in its voxels, on the same grid; without them the pictures tell no numbers.
        exam: whose scan it is and of when, which only a PDF that belongs to a patient's study tells; else nothing.
    """

    name: str
    scan: sitk.Image
    anomaly_map: sitk.Image
    mask: sitk.Image
    brain: sitk.Image
    findings: Sequence[Finding]
    threshold: float
    provenance: Mapping[str, Any]
    names: Mapping[int, str] = field(default_factory=dict)
    channels: Mapping[str, sitk.Image] = field(default_factory=dict)
    reviews: Mapping[int, str] = field(default_factory=dict)
    comments: Mapping[int, str] = field(default_factory=dict)
    labels: sitk.Image | None = None
    exam: Sequence[str] = ()

    @classmethod
    def of(cls, result: Result) -> Shown:
        """A detection's result as it is, without anything that a reader said."""
        return cls(
            result.name,
            result.scan.reference.image,
            result.anomaly_map,
            result.mask,
            result.brain,
            result.findings,
            result.threshold,
            result.provenance,
            channels={name: volume.image for name, volume in result.scan.channels.items()},
            labels=result.labels(),
        )

    @property
    def left(self) -> list[Finding]:
        """The findings that were not rejected."""
        return [finding for finding in self.findings if self.reviews.get(finding.id) != "rejected"]


def write_report(result: Result, path: Path | str) -> None:
    """Write the page, whole or not at all.

    Raises:
        InputError: when the file cannot be written.
    """
    write_text(path, render_report(result))


def render_report(result: Result) -> str:
    """The page of a detection, as HTML text."""
    return render(Shown.of(result))


def render(shown: Shown) -> str:
    """A page as HTML text."""
    view, *others = views(shown)
    threshold, findings, provenance = shown.threshold, shown.findings, shown.provenance
    slices = choose_slices(view, threshold)
    peak = float(view.peaks().max())
    top = max(peak, 1.5 * threshold)
    values = {
        "name": shown.name,
        "purpose": provenance["purpose"],
        "provenance": provenance,
        "method": title_of(provenance["method"]),
        "model": model_line(provenance["model"]),
        "date": date_line(provenance),
        "warnings": provenance["warnings"],
        "findings": findings[:FINDINGS_SHOWN],
        "names": shown.names,
        "has_places": any(finding.place for finding in findings),
        "reviews": shown.reviews,
        "comments": shown.comments,
        "left": len(shown.left),
        "hidden_findings": max(0, len(findings) - FINDINGS_SHOWN),
        "unit": view.unit,
        "sized": sized,
        "centre_title": centre_title,
        "least": smallest(provenance),
        "margin": margin_of(provenance["options"]),
        "total": sum(finding.size for finding in shown.left),
        "covered": np.count_nonzero(view.brain) * view.voxel_size,
        "region": REGIONS.get(provenance.get("region", BRAIN), "region"),
        "peak": peak,
        "threshold": threshold,
        "coloured_from": coloured_from(threshold),
        "extrapolated": extrapolated(provenance.get("calibration_end"), peak, threshold),
        "spread": spread_line(provenance.get("calibration_spread")),
        "score": provenance["score"]["value"],
        "pictures": draw_slices(view, slices, threshold, top),
        "channels": list(shown.channels) if others else [],
        "contrasts": list(zip(*(draw_outlined(other, slices) for other in others), strict=True)),
        "colour_bar": draw_colour_bar(threshold, top),
        "profile": draw_profile(view, slices) if len(view) > 1 and findings else None,
        "sides": view.sides,
        "numbered": shown.labels is not None and bool(shown.left),
        "rows": list(record_rows(provenance)),
    }
    return render_page(Path(__file__).with_name(TEMPLATE), values, {})


def views(shown: Shown) -> list[SliceView]:
    """What is shown as slices, a view a contrast."""
    is_picture = shown.provenance["options"].get("min_area") is not None
    return [
        SliceView(image, shown.anomaly_map, shown.mask, shown.brain, is_picture, shown.labels)
        for image in (shown.scan, *list(shown.channels.values())[1:])
    ]


def smallest(provenance: Mapping[str, Any]) -> float:
    """Size in the scan's unit below which a finding was dropped: of a picture an area, else a volume."""
    options = provenance["options"]
    area = options.get("min_area")
    return float(options["min_volume_ml"] if area is None else area)


def title_of(method: str) -> str:
    """A method's title; its name if it is none that this version offers, as in a report of a newer one's results."""
    return METHODS[method].title if method in METHODS else method


def extrapolated(end: object, peak: float, threshold: float) -> str:
    """What is to be said of scores that the calibration table does not reach; empty where there are none.

    Args:
        end: where the table ends; None in the provenance of earlier versions.
        peak: the highest score.
        threshold: the mask's.
    """
    if not isinstance(end, (int, float)) or max(peak, threshold) <= end:
        return ""
    what = ", the threshold among them," if threshold > end else ""
    return f"Scores above {end:.2f}{what} are extrapolated: healthy voxels so rare were too few to be counted"


def spread_line(spread: Any) -> str:
    """How far single healthy scans are from what the score says of all of them; empty where that is not known.

    Args:
        spread: see ``calibration.spread_of_scans``; None in the provenance of earlier versions and of few scans.
    """
    try:
        share = float(dict(zip(spread["heat"], spread["upper"], strict=True))[3])
    except (LookupError, TypeError, ValueError):
        return ""
    if not 0 < share <= 1:
        return ""
    many = float(f"{1 / share:.2g}")
    rare = f"up to one healthy voxel in {many:,.0f} reaches 3"
    return f"single scans differ: in nine of ten that it was calibrated on, {rare}"


def model_line(model: Mapping[str, Any] | None) -> str:
    return "no model" if model is None else f"{model['name']} {model['version']}"


def date_line(provenance: Mapping[str, Any]) -> str:
    """When the anomaly map was made."""
    return datetime.fromisoformat(provenance["date_utc"]).strftime("%d %B %Y, %H:%M UTC")


def record_groups(content: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The rows of ``record_rows`` by what they are about: what stands alone first, then what belongs together."""
    groups = [
        ("run", list(record_rows({key: value for key, value in content.items() if not isinstance(value, Mapping)})))
    ]
    for key, value in content.items():
        if isinstance(value, Mapping):
            title = readable(key)
            rows = [(name.removeprefix(f"{title} · "), text) for name, text in record_rows({key: value})]
            groups.append((title, rows))
    return [(title, rows) for title, rows in groups if rows]


def record_rows(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Provenance as rows of name and text; what the page already shows elsewhere is left out."""
    for key, value in content.items():
        if not prefix and key in ("purpose", "warnings", "schema_version"):
            continue
        name = f"{prefix}{readable(key)}"
        if isinstance(value, Mapping):
            yield from record_rows(value, f"{name} · ")
        else:
            yield name, _text(value)


def readable(key: str) -> str:
    """A key of the provenance in words.

    >>> readable("origin_mm_lps"), readable("min_volume_ml"), readable("sha256")
    ('origin (mm) LPS', 'min volume (ml)', 'SHA256')
    """
    return " ".join(_WORDS.get(word, word) for word in key.split("_"))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(_text(entry) for entry in value) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"
