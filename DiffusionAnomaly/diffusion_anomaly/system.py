"""What this machine is and what it runs, for provenance and for deciding what to do when memory is gone.

Torch is only looked at when it has been imported already, so that commands without a network stay quick.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__

# What torch (both allocators), ITK and the operating system say when an allocation fails.
_OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad_alloc",
)
_PACKAGES = {"torch": "torch", "monai": "monai", "numpy": "numpy", "scipy": "scipy", "SimpleITK": "SimpleITK"}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of any library says that memory, of the GPU or of the machine, is gone."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY_WORDS)


def free_gpu_memory() -> None:
    """Give torch's cached GPU memory back, so that a smaller attempt finds it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def versions() -> dict[str, str]:
    """Versions of Python, the engine and the libraries whose numbers end up in a result."""
    found = {"diffusion_anomaly": __version__, "python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:  # without metadata, as in some frozen applications
            found[name] = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    return found


def processor_name() -> str:
    """The processor's name as the operating system tells it, such as ``AMD EPYC``."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """The name of the hardware behind ``cpu`` or ``cuda:0``."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return processor_name()
