"""Whether the networks run faster here in bfloat16, found out once by a short measurement and remembered.

A flag of the processor says that it multiplies bfloat16, not that a network gains by it: that depends on torch's build,
on the conversions between layers and on how fast float32 is. Results differ a little between the two types, so the
answer must not change from run to run: it is kept in the user's cache folder, by processor and version of torch, and
bfloat16 has to win clearly.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .system import processor_name

if TYPE_CHECKING:
    import torch

# What ``auto`` shall come to on a CPU, instead of measuring.
VARIABLE = "DIFFUSION_ANOMALY_CPU_PRECISION"
CHOICES = ("float32", "bfloat16")
CLEARLY_FASTER = 1.2  # bfloat16 is taken from this ratio of times on: near 1, noise would decide
REPEATS = 4
FOLDER, FILE = "diffusion-anomaly", "precision.json"


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The autocast type. ``auto`` takes bfloat16 where networks are clearly faster in it, else float32.

    On a CPU that is measured once, see ``precision``: call this only when a network is going to run.

    Raises:
        InputError: for another word.
    """
    import torch

    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        raise InputError(f"Unknown precision {precision!r}.", "Use auto, float32 or bfloat16.")
    if device.type in ("cuda", "xpu"):
        return torch.bfloat16 if getattr(torch, device.type).is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    return getattr(torch, cpu_precision())


def cpu_precision() -> str:
    """``float32`` or ``bfloat16``: what ``VARIABLE`` says, else what was remembered, else what is measured now.

    Raises:
        InputError: when the variable says something else.
    """
    forced = os.environ.get(VARIABLE, "")
    if forced and forced not in CHOICES:
        raise InputError(f"{VARIABLE} is {forced!r}.", f"Set it to {' or '.join(CHOICES)}, or leave it out.")
    return forced or _remembered(cache_folder() / FILE)


def cache_folder() -> Path:
    """Where this user's programs keep what they can find out again. It need not exist."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / FOLDER


def measure_gain() -> float:
    """How many times as fast as float32 the networks' kind of layers run in bfloat16 on this CPU.

    Takes about a fifth of a second. One thread's own time is taken, and each type's fastest run, since other programs
    can only slow a run down: with two threads and one core taken, the ratio was anything from 1 to 3. A type that is
    far behind after one run is not waited for again.
    """
    import torch
    from torch import nn

    layers = nn.Sequential()
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the program's own random numbers
        for _ in range(2):
            layers.append(nn.Conv2d(64, 64, 3, padding=1))
            layers.append(nn.InstanceNorm2d(64, affine=True))
            layers.append(nn.LeakyReLU(0.1, inplace=True))
        image = torch.rand(4, 64, 64, 64)
    fastest = dict.fromkeys(CHOICES, float("inf"))
    clock = (
        time.perf_counter if sys.platform == "win32" else time.thread_time
    )  # Windows counts a thread's time in 16 ms

    def run(precision: str) -> float:
        low = precision == "bfloat16"
        start = clock()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            layers(image)
        return clock() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for precision in CHOICES:
            run(precision)  # prepares kernels
        for _ in range(REPEATS):
            for precision in CHOICES:
                fastest[precision] = min(fastest[precision], run(precision))
            if fastest["bfloat16"] > 3 * fastest["float32"]:
                break
    finally:
        torch.set_num_threads(threads)
    return fastest["float32"] / max(fastest["bfloat16"], 1e-9)


@cache
def _remembered(file: Path) -> str:
    """The answer in a file; measured, and put there if that is possible, when it is not."""
    key, known = _key(), _read(file)
    entry = known.get(key)
    precision = entry.get("precision") if isinstance(entry, dict) else None
    if precision in CHOICES:
        return precision
    gain = measure_gain()
    precision = "bfloat16" if gain >= CLEARLY_FASTER else "float32"
    _write(file, {**known, key: {"precision": precision, "bfloat16_gain": round(gain, 2)}})
    return precision


def _key() -> str:
    """Processor, its instructions, version of torch: rented machines of several kinds may give one name."""
    import torch

    flags = [name for name, value in torch.cpu.get_capabilities().items() if "bf16" in name and value]
    instructions = " ".join([torch.backends.cpu.get_cpu_capability(), *sorted(flags)])
    return "; ".join((processor_name(), instructions, f"torch {torch.__version__}"))


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _write(file: Path, content: dict[str, Any]) -> None:
    """Replace the file as a whole, or leave it: a memory that cannot be kept costs a measurement next time."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=2)
            os.replace(name, file)
        except OSError:
            Path(name).unlink(missing_ok=True)
