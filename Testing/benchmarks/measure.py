"""The instruments of the benchmark: time, memory, operations, the machine's own rate; scans of any size; tables."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import SimpleITK as sitk
import torch
from scipy.stats import rankdata
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diffusion_anomaly.errors import EngineError
from diffusion_anomaly.evaluation.formatting import markdown_table

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"
GIBIBYTE = 2**30
CLINICAL = (256, 256, 25)  # voxels of an ordinary axial FLAIR
# What Linux counts in kibibytes, macOS counts in bytes.
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def timed(function: Callable[[], T], device: torch.device | str = "cpu") -> tuple[T, float]:
    """Result and wall-clock seconds, waiting for the GPU at both ends."""
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return result, time.perf_counter() - start


def synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class _Operations(TorchDispatchMode):
    """Adds up operations by torch's own formulas.

    ``FlopCounterMode`` does the same by module as well, through hooks that ``torch.autograd.grad`` does not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def operations(function: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in ``function``; it is run once."""
    with _Operations() as counter:
        function()
    return counter.total


def matrix_rate(device: torch.device | str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second that a product of two large square matrices reaches here: the best of many."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        _, spent = timed(lambda: torch.mm(a, b), device)
        best = min(best, spent)
    return 2.0 * size**3 / best


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """The most memory that this process has held since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES


def engine_of(checkout: Path) -> Path:
    """The folder of a checkout that Python takes the engine from."""
    return checkout / "DiffusionAnomaly"


def environment(checkout: Path = REPOSITORY) -> dict[str, str]:
    """Variables for a Python that runs a checkout's engine and benchmarks, whatever else is installed."""
    paths = [str(engine_of(checkout)), str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_process(arguments: Sequence[str | Path], checkout: Path = REPOSITORY) -> tuple[bytes, float, int]:
    """Run Python with these arguments on a checkout's engine.

    Returns:
        stdout, wall-clock seconds from start to finish, and peak memory in bytes.

    Raises:
        RuntimeError: with what it wrote to stderr, when it fails.
    """
    command = [sys.executable, *map(str, arguments)]
    with tempfile.TemporaryFile() as complaints:  # a pipe that is read after stdout may be full before that ends
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment(checkout), stdout=subprocess.PIPE, stderr=complaints)
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            complaints.seek(0)
            text = complaints.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text}")
    return output, seconds, usage.ru_maxrss * MAXRSS_BYTES


def resampled(image: sitk.Image, size: Sequence[int], interpolator: int, path: Path) -> Path:
    """The image on a grid of ``size`` over the same field of view, as a file."""
    grid = sitk.Image([int(count) for count in size], sitk.sitkUInt8)
    old, spacing = np.array(image.GetSize()), np.array(image.GetSpacing())
    new = old * spacing / np.array(size)
    grid.SetSpacing(new.tolist())
    grid.SetDirection(image.GetDirection())
    # Outer edges meet: the first voxel's centre moves by half the difference of the voxels.
    grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(((new / spacing - 1) / 2).tolist()))
    made = sitk.Resample(image, grid, sitk.Transform(), interpolator, 0.0, image.GetPixelID())
    if interpolator == sitk.sitkLinear:
        made = sitk.Cast(sitk.RescaleIntensity(made, 0, 4000), sitk.sitkInt16)
    sitk.WriteImage(made, str(path))
    return path


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 1 for two constant maps that agree, 0 where one alone is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float(np.ptp(a) == np.ptp(b))
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_table(head, rows))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(error: EngineError) -> None:
    """Say on stderr what is wrong."""
    sys.stderr.write(f"error: {error.what}\n{error.hint}\n")
