"""What a job is doing, in words: for the panel, and for a script that wants to print it."""

from __future__ import annotations

from .process.workerjob import DetectionJob, State
from .translation import tr as _

# How much of a run's time each stage is about; only for the bar, which must never stand still at the end.
_SHARES = {"read": 2, "brain": 13, "load": 5, "detect": 70, "findings": 5, "write": 5}

LONGEST_NAME = 40


def stageTitle(stage: str) -> str:
    """A stage of the worker for people."""
    titles = {
        "read": _("Reading the scan"),
        "brain": _("Finding the brain"),
        "load": _("Loading the model"),
        "detect": _("Looking for anomalies"),
        "findings": _("Measuring the findings"),
        "write": _("Writing the results"),
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
    if job.progress is None:
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


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"
