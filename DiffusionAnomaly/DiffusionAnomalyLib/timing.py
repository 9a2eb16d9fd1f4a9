"""How long a run will take on this machine, from how long the last one took.

A run's time has a part that does not depend on the steps (reading, finding the brain, loading, writing) and one that
grows with slices times steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .settings import Settings, readJson, writeJson
from .translation import tr as _

NAME = "Timings"
LONGEST = 30 * 24 * 3600.0  # seconds; a longer time is no time that was measured


def remember(settings: Settings, run: Mapping[str, Any], timings: Mapping[str, float]) -> None:
    """Note how long a run took.

    Args:
        settings: where to.
        run: ``method``, ``model``, ``device``, ``slices`` and ``steps`` of what ran.
        timings: seconds by stage, with ``detect`` and ``total``, as the worker reports them.
    """
    units = int(run["slices"]) * max(1, int(run["steps"] or 1))
    detect, total = float(timings.get("detect", 0.0)), float(timings.get("total", 0.0))
    if units < 1 or total <= 0:
        return
    known = readJson(settings, NAME, {})
    known[_key(run["method"], run["model"], run["device"])] = {
        "each": detect / units,
        "fixed": max(0.0, total - detect),
    }
    writeJson(settings, NAME, known)


def expected(
    settings: Settings, method: str, model: str | None, device: str, slices: int, steps: int | None
) -> float | None:
    """Seconds that a run will take; None when nothing like it has run on this machine yet.

    Args:
        settings: where ``remember`` noted.
        method, model: what would run.
        device: ``auto``, ``cpu``, ``cuda:0``; ``auto`` takes whichever ran last.
        slices: how many will be looked at, at most.
        steps: how many will be walked.
    """
    known = readJson(settings, NAME, {})
    keys = [_key(method, model, device)]
    if device == "auto":
        keys = [key for key in reversed(list(known)) if key.startswith(_key(method, model, ""))]
    for key in keys:
        try:
            seconds = float(known[key]["fixed"]) + float(known[key]["each"]) * slices * max(1, steps or 1)
        except (KeyError, TypeError, ValueError):  # never run, or a damaged settings file
            continue
        if math.isfinite(seconds) and seconds < LONGEST:
            return seconds
    return None


def inWords(seconds: float | None) -> str:
    """A length of time as people say it."""
    if seconds is None:
        return _("not yet measured on this machine")
    if seconds < 10:
        return _("a few seconds")
    if seconds < 90:
        return _("about {seconds:.0f} seconds").format(seconds=round(seconds, -1))
    if seconds < 5400:
        return _("about {minutes:.0f} minutes").format(minutes=seconds / 60)
    return _("about {hours:.1f} hours").format(hours=seconds / 3600)


def _key(method: str, model: str | None, device: str) -> str:
    return f"{method}|{model or ''}|{device}"
