"""One self-contained page on a comparison: what changed, as a table and as pairs of slices, prior beside current."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    """The changes worth a picture: those that are changes first, of each the slice where most of it lies."""
    brain = comparison.current.brain
    now = SliceView(comparison.current.scan, comparison.current.anomaly_map, comparison.current_mask, brain)
    before = SliceView(comparison.prior_scan, comparison.prior_map, comparison.prior_mask, brain)
    within = [change for change in comparison.changes if change.slices is not None]
    within.sort(key=lambda change: change.kind == UNCHANGED)
    marked = now.marked() + before.marked()
    chosen = [(change, _slice_of(change, now, marked)) for change in within[:SHOWN]]
    slices = [k for _, k in chosen]
    pictures = zip(draw_outlined(before, slices), draw_outlined(now, slices), strict=True)
    return [
        Pair(change, now.own_index(k), prior, current)
        for (change, k), (prior, current) in zip(chosen, pictures, strict=True)
    ]


def _slice_of(change: Change, view: SliceView, marked: np.ndarray) -> int:
    """The slice of the view with most of the masks, of those that the change touches."""
    assert change.slices is not None
    first, last = sorted(view.own_index(own) for own in change.slices)  # the mapping is its own inverse
    return first + int(np.argmax(marked[first : last + 1]))
