"""Anomaly scores in plain words, from the calibration that the model brings along."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..translation import tr as _

LOG_ODDS = "guided"  # the method whose score is the logarithm of odds


def score(value: float, document: Mapping[str, Any], unit: str = "ml") -> str:
    """What a score means: how many healthy voxels look like it.

    >>> score(3.0, {"calibration_end": 4.5})
    'A score of 3.0: about 1 in 1,000 healthy voxels looks like this.'

    Args:
        value: the score, -log10 of that share.
        document: how the map was made; says where the calibration ends.
        unit: of the findings' sizes, which tells volumes from pictures.
    """
    points = _("voxels") if unit == "ml" else _("pixels")
    end = document.get("calibration_end")
    if end is not None and value > float(end):
        text = _("A score of {score:.1f}: fewer than 1 in {count} healthy {points} looks like this.")
        return text.format(score=value, count=_count(float(end)), points=points)
    return _("A score of {score:.1f}: about 1 in {count} healthy {points} looks like this.").format(
        score=value, count=_count(value), points=points
    )


def peakMargin(threshold: float, margin: float) -> str:
    """What findings must reach beyond the threshold, and so why there may be none at it; empty without a margin.

    >>> peakMargin(2.39, 0.65)
    'The highest score of a finding must reach 3.04: the threshold and the peak margin of 0.65.'
    >>> peakMargin(2.39, 0.0)
    ''
    """
    if margin <= 0:
        return ""
    said = _("The highest score of a finding must reach {least:.2f}: the threshold and the peak margin of {margin:g}.")
    return said.format(least=threshold + margin, margin=margin)


def wholeImage(document: Mapping[str, Any]) -> str:
    """What a method says of an image as a whole, beside the places in it; empty where that tells a reader nothing.

    Of a scan of many slices it is their median, which a lesion in a few of them does not move: it is told only beside
    what is usual.

    >>> wholeImage({"method": "guided", "score": {"value": 7.53, "title": "log-odds"}, "options": {"min_area": 0.0}})
    'The whole picture: log-odds 7.53; above 0, the classifier finds disease more likely than not.'

    Args:
        document: how the map was made, with the score, what it is, and the range of it in scans that the model knows.
    """
    told = document.get("score") or {}
    value, title, usual = told.get("value"), told.get("title"), told.get("healthy_range")
    isPicture = (document.get("options") or {}).get("min_area") is not None
    if not isinstance(value, (int, float)) or not title or not (isPicture or usual):
        return ""
    whole = _("The whole picture") if isPicture else _("The whole scan, median of its slices")
    line = _("{whole}: {title} {value:.3g}").format(whole=whole, title=title, value=value)
    if usual:
        low, high = 2 * float(usual["mean"]) - float(usual["upper"]), float(usual["upper"])
        line = _("{line}; scans that the model knows have {low:.3g} to {high:.3g}").format(
            line=line, low=low, high=high
        )
    elif document.get("method") == LOG_ODDS:
        line = _("{line}; above 0, the classifier finds disease more likely than not").format(line=line)
    return f"{line}."


def _count(value: float) -> str:
    """One in how many, with two digits that count."""
    many = 10.0**value
    digits = max(0, math.floor(math.log10(many)) - 1)
    return f"{round(many / 10**digits) * 10**digits:,}"
