"""One self-contained page on a comparison: what changed, as a table and as pairs of slices, prior beside current."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ... import __version__
from ..pages import render_page
from ..rendering import SliceView, draw_outlined
from .compare import APART_MM, KINDS, LEAST_ML, LEAST_RATIO, NEARLY, UNCHANGED, Change, Comparison

TEMPLATE = "comparison.html.jinja"
SHOWN = 16
LISTED = 100


@dataclass(frozen=True)
class Pair:
    """A change in pictures: one slice of the current scan, and the prior scan's resampled onto it, as data URIs."""

    change: Change
    index: int
    prior: str
    current: str


def render(comparison: Comparison) -> str:
    """The page as HTML text."""
    changes = comparison.changes
    volumes = [sum(finding.volume_ml for finding in found) for found in _findings(comparison)]
    values = {
        "version": __version__,
        "prior": comparison.prior,
        "current": comparison.current,
        "registration": comparison.registration,
        "warnings": comparison.warnings,
        "counts": [(kind, comparison.count(kind)) for kind in KINDS],
        "volumes": volumes,
        "numbers": [len(found) for found in _findings(comparison)],
        "changes": changes[:LISTED],
        "hidden": max(0, len(changes) - LISTED),
        "pairs": _pairs(comparison),
        "least_ml": LEAST_ML,
        "least_ratio": LEAST_RATIO,
        "nearly": NEARLY,
        "apart_mm": APART_MM,
    }
    filters = {"ml": lambda volume: f"{volume:.2f}", "score": lambda score: "–" if score is None else f"{score:.2f}"}
    return render_page(Path(__file__).with_name(TEMPLATE), values, filters)


def _findings(comparison: Comparison) -> tuple[Sequence, Sequence]:
    return comparison.prior_findings, comparison.current_findings


def _pairs(comparison: Comparison) -> list[Pair]:
    """The changes worth a picture: those that are changes first; each with its own outline alone."""
    within = [change for change in comparison.changes if change.slices is not None]
    within.sort(key=lambda change: change.kind == UNCHANGED)
    return [_pair(comparison, change) for change in within[:SHOWN]]


def _pair(comparison: Comparison, change: Change) -> Pair:
    """Both scans at the slice of the current one where most of a change lies."""
    current, brain = comparison.current, comparison.current.brain
    before = SliceView(comparison.prior_scan, comparison.prior_map, _of(comparison.prior_labels, change.prior), brain)
    now = SliceView(current.scan, current.anomaly_map, _of(comparison.current_labels, change.current), brain)
    marked = now.marked() if change.current else before.marked()
    k = int(np.argmax(marked))
    (prior,), (later,) = draw_outlined(before, [k]), draw_outlined(now, [k])
    return Pair(change, now.own_index(k), prior, later)


def _of(labels: sitk.Image, numbers: Sequence[int]) -> sitk.Image:
    """A mask of some findings, uint8."""
    mask = np.isin(sitk.GetArrayViewFromImage(labels), numbers).astype(np.uint8)
    image = sitk.GetImageFromArray(mask)
    image.CopyInformation(labels)
    return image
