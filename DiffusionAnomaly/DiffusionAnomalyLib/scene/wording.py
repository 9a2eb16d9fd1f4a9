"""Anomaly scores in plain words, from the calibration that the model brings along."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..translation import tr as _


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


def _count(value: float) -> str:
    """One in how many, with two digits that count."""
    many = 10.0**value
    digits = max(0, math.floor(math.log10(many)) - 1)
    return f"{round(many / 10**digits) * 10**digits:,}"
