"""What a job is doing and how long one will take, in words: for the panel, and for a script that wants to print it.

A run's time is expected from the last run like it on this machine: a part that does not depend on the steps (reading,
finding the brain, loading, writing) and one that grows with slices times steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from .process.workerjob import DetectionJob, State
from .settings import Settings, readJson, writeJson
from .translation import tr as _

# How much of a run's time each stage is about; only for the bar, which must never stand still at the end.
_SHARES = {"read": 2, "brain": 13, "load": 5, "detect": 70, "findings": 5, "write": 5}
_BEFORE = {"upload", "wait"}  # with a server, of unknown share

LONGEST_NAME = 40

TIMINGS = "Timings"
LONGEST_TIME = 30 * 24 * 3600.0  # seconds; a longer time is no time that was measured


def stageTitle(stage: str) -> str:
    """A stage of the worker for people."""
    titles = {
        "read": _("Reading the scan"),
        "brain": _("Finding the brain"),
        "load": _("Loading the model"),
        "detect": _("Computing the anomaly map"),
        "findings": _("Measuring the findings"),
        "write": _("Writing the results"),
        "upload": _("Sending the scan to the server"),
        "wait": _("Waiting for the server"),
        "download": _("Fetching the results from the server"),
    }
    return titles.get(stage, stage)


def stateTitle(state: State) -> str:
    """A state of a job for people."""
    titles = {
        State.WAITING: _("waiting"),
        State.RUNNING: _("running"),
        State.CANCELLING: _("being cancelled"),
        State.DONE: _("done"),
        State.FAILED: _("failed"),
        State.CANCELLED: _("cancelled"),
    }
    return titles[state]


def progressLine(job: DetectionJob) -> str:
    """The stage, which slice, and the time left."""
    if job.state is State.CANCELLING:
        return _("Stopping…")
    progress = job.progress
    if progress is None:
        text = _("Starting the background process…")
    else:
        parts = [stageTitle(progress.stage)]
        if progress.stage == "detect" and job.started is not None and progress.total > 0:
            slices = job.started.slices
            parts.append(
                _("slice {done} of {total}").format(done=slices * progress.done // progress.total, total=slices)
            )
        if progress.seconds_left is not None:
            parts.append(_("{time} left").format(time=clock(progress.seconds_left)))
        text = ", ".join(parts)
    if job.isSilent:
        text += " " + _("The worker has said nothing for {time}; it may be busy, or cancel it.").format(
            time=clock(job.secondsOfSilence)
        )
    return text


def percent(job: DetectionJob) -> int:
    """How far the whole run is, from 0 to 100."""
    if job.progress is None or job.progress.stage in _BEFORE:
        return 0
    done = 0.0
    for stage, share in _SHARES.items():
        if stage == job.progress.stage:
            done += share * job.progress.done / max(1, job.progress.total)
            break
        done += share
    return round(min(100.0, done))


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that leaves room for a sentence around it, and that a narrow panel can show on one line."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def plain(text: str) -> str:
    """A text for a widget that guesses whether it was given HTML: shown as it is, whatever tags a package put into it.

    >>> plain("<img src='file:///etc/hosts'>")
    "<span>&lt;img src=&#x27;file:///etc/hosts&#x27;&gt;</span>"
    """
    return text if "<" not in text else f"<span>{escape(text)}</span>".replace("\n", "<br>")


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"


def rememberTimings(settings: Settings, run: Mapping[str, Any], timings: Mapping[str, float]) -> None:
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
    known = readJson(settings, TIMINGS, {})
    known[_key(run["method"], run["model"], run["device"])] = {
        "each": detect / units,
        "fixed": max(0.0, total - detect),
    }
    writeJson(settings, TIMINGS, known)


def expectedSeconds(
    settings: Settings, method: str, model: str | None, device: str, slices: int, steps: int | None
) -> float | None:
    """Seconds that a run will take; None when nothing like it has run on this machine yet.

    Args:
        settings: where ``rememberTimings`` noted.
        method, model: what would run.
        device: ``auto``, ``cpu``, ``cuda:0``; ``auto`` takes whichever ran last.
        slices: how many there will be, at most.
        steps: how many will be run.
    """
    known = readJson(settings, TIMINGS, {})
    keys = [_key(method, model, device)]
    if device == "auto":
        keys = [key for key in reversed(list(known)) if key.startswith(_key(method, model, ""))]
    for key in keys:
        try:
            seconds = float(known[key]["fixed"]) + float(known[key]["each"]) * slices * max(1, steps or 1)
        except (KeyError, TypeError, ValueError):  # never run, or a damaged settings file
            continue
        if math.isfinite(seconds) and seconds < LONGEST_TIME:
            return seconds
    return None


def timeInWords(seconds: float | None) -> str:
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


def shortTime(seconds: float | None) -> str:
    """A length of time for a line with other things in it."""
    if seconds is None:
        return _("time not measured yet")
    if seconds < 90:
        return _("about {seconds:.0f} s").format(seconds=max(1.0, seconds))
    return _("about {minutes:.0f} min").format(minutes=seconds / 60)


def _key(method: str, model: str | None, device: str) -> str:
    return f"{method}|{model or ''}|{device}"
