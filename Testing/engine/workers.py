"""Worker processes for tests, jobs for them, and methods that are slow or noisy.

Those methods come from a ``sitecustomize`` module that only tests put on the path: the worker has no switch for tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

import packages
from diffusion_anomaly.worker import protocol as job

ENGINE = Path(job.__file__).parents[2]  # the folder to import it from

# Seconds to wait for what must happen: long, because a busy machine takes its time to load torch six times.
PATIENCE = 240.0

EXTRA_METHODS = '''
import ctypes, sys, time, warnings
from dataclasses import replace
from diffusion_anomaly.registry import METHODS
from diffusion_anomaly.methods.intensity import Intensity

class Noisy(Intensity):
    """The baseline, but it prints, as libraries do."""
    def run(self, batch, model, options, progress):
        print("printed by Python")
        ctypes.CDLL(None).puts(b"printed by C")
        warnings.warn("warned by Python")
        return super().run(batch, model, options, progress)

class Slow(Intensity):
    """Reports often and never gets done."""
    def network_calls(self, options):
        return 100_000
    def run(self, batch, model, options, progress):
        for _ in range(100_000):
            time.sleep(0.01)
            progress(1)

class Stuck(Intensity):
    """Sits in one long call."""
    def run(self, batch, model, options, progress):
        time.sleep(600)

# All take the baseline's packages, whose method has the baseline's own name.
for kind in (Noisy, Slow, Stuck):
    METHODS[kind.__name__.lower()] = replace(METHODS["intensity"], implementation=f"{__name__}:{kind.__name__}")
'''


class Worker:
    """A started worker process, its events as they come, and its job directory.

    Args:
        directory: the job's.
        site: a folder with a ``sitecustomize`` module.
        arguments: of the worker instead of that directory.
        limit: called in the new process before it runs.
        deaf: whether to close the read end of its stdout once it has started.
        module: that speaks the worker's protocol.
        variables: of its environment besides.
    """

    def __init__(
        self,
        directory: Path,
        *,
        site: Path | None = None,
        arguments: Sequence[str] = (),
        limit: Callable[[], None] | None = None,
        deaf: bool = False,
        module: str = "diffusion_anomaly.worker",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.deaf = deaf
        paths = [str(path) for path in (site, ENGINE) if path is not None]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **(variables or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *(arguments or [str(directory)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            preexec_fn=limit,
        )
        self.lines: list[bytes] = []
        self.stderr = b""
        reads = (self._read_out, self._read_err)
        self._readers = [threading.Thread(target=read, daemon=True) for read in reads]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)
                if self.deaf and isinstance(job.decode(line), job.Started):
                    return

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        self.stderr = self.process.stderr.read()

    @property
    def events(self) -> list[job.Event]:
        return [job.decode(line) for line in list(self.lines)]

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def wait_for(self, kind: type, seconds: float = PATIENCE) -> None:
        wait_until(lambda: bool(self.of(kind)), seconds)

    def send(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for the exit code, with every line read."""
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()

    @property
    def log(self) -> str:
        return (self.directory / job.LOG_FILE).read_text(encoding="utf-8")

    @property
    def output(self) -> Path:
        return self.directory / "results"


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def make_job(directory: Path, method: str = "intensity", **entries: Any) -> Path:
    """A job directory with a small scan of one bright lesion, its brain mask, a model, and the job file.

    The model looks at the scan's own pixels through a median filter of 5 x 5 of them.
    """
    directory.mkdir(parents=True)
    random = np.random.default_rng(0)
    brain = np.zeros((6, 32, 32), np.uint8)
    brain[1:5, 4:28, 4:28] = 1
    scan = np.where(brain > 0, random.normal(100, 5, brain.shape), 0).astype(np.float32)
    scan[1:5, 4:8, 4:8] = 25  # fluid
    scan[2:4, 10:16, 10:16] = 200
    for name, array in (("scan.nrrd", scan), ("brain.nrrd", brain)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((6.0, 6.0, 20.0))  # of the size of a head
        image.SetOrigin((3.0, -4.0, 5.0))
        # Written under a plain name first: not the writer is on trial here.
        sitk.WriteImage(image, str(directory / name))
    model = packages.intensity(
        directory / "toy-intensity", grid={"size": [40, 40], "spacing": 6.0}, postprocess={"median_pixels": 5}
    )
    asked = {
        "input": "scan.nrrd",
        "output": "results",
        "mask": "brain.nrrd",
        "method": method,
        "model": str(model.path),
    }
    job.write_job(job.Job(**{**asked, **entries}), directory)
    return directory
