"""Jobs for tests: a real worker process, a small phantom, and a package with random weights."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import phantom
from DiffusionAnomalyLib.process.environment import MODULE_FOLDER, workerEnvironment
from DiffusionAnomalyLib.process.jobqueue import JobQueue
from DiffusionAnomalyLib.process.process import PipeProcess, WorkerProcess
from DiffusionAnomalyLib.process.workerjob import DetectionJob
from DiffusionAnomalyLib.process.workspace import INPUT, Workspace

WORKER = (sys.executable, "-m", "diffusion_anomaly.worker")

# Seconds to wait for what must happen: long, because a busy machine takes its time to load torch.
PATIENCE = 240.0

SHORT = {"steps": 2, "device": "cpu"}
LONG = {"steps": 450, "device": "cpu"}  # minutes on any machine, so that there is time to end it


def environment() -> dict[str, str]:
    """The worker's environment, with one thread for each library: several workers run at once."""
    return workerEnvironment({**os.environ, "OMP_NUM_THREADS": "1"})


def scan() -> sitk.Image:
    """A head with a brain and a lesion, float32, on a grid of few voxels."""
    return phantom.paint(phantom.grid((48, 54, 16), (3.2, 3.2, 6.0)), fluid=True)


def brain() -> sitk.Image:
    """Its brain mask."""
    return phantom.brain_of(phantom.grid((48, 54, 16), (3.2, 3.2, 6.0)))


def makeJob(
    parent: Path,
    model: Path | None = None,
    options: dict[str, object] | None = None,
    command: Sequence[str] = WORKER,
    method: str | None = None,
    process: WorkerProcess | None = None,
    **times: float,
) -> DetectionJob:
    """A job with the phantom, ready to start: the guided method with a package, the baseline without one.

    It has a process of its own unless it is given another, such as a ``Turn``.
    """
    workspace = Workspace(parent)
    workspace.writeImage(scan(), INPUT)
    workspace.writeMask(brain())
    method = method or ("intensity" if model is None else "guided")
    given = {} if options is None else options
    workspace.writeJob(method, None if model is None else str(model), {"device": "cpu", **given})
    return DetectionJob(workspace, process or PipeProcess(), command, environment(), **times)


def wait(until: Callable[[], bool], tick: Callable[[], None], seconds: float = PATIENCE) -> None:
    """Tick until it is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"nothing came of it within {seconds} seconds"
        tick()
        time.sleep(0.01)


def finish(job: DetectionJob, seconds: float = PATIENCE) -> None:
    """Run a job to its end."""
    if job.outcome is None and job.state.value == "waiting":
        job.start()
    wait(lambda: job.state.isOver, job.tick, seconds)


def drain(queue: JobQueue, seconds: float = PATIENCE) -> None:
    """Run a queue to its end."""
    wait(lambda: not queue.isBusy, queue.tick, seconds)


def isAlive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def array(path: Path) -> np.ndarray:
    """Voxels of an image file, k j i."""
    return sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path)))


__all__ = ["LONG", "MODULE_FOLDER", "PATIENCE", "SHORT", "WORKER"]
