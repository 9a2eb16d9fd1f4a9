"""What this machine is and what it runs, for provenance and for deciding what to do when memory is gone.

Torch is only looked at when it has been imported already, so that commands without a network stay quick.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import InputError

if TYPE_CHECKING:
    import torch

# What torch (its allocators for CUDA, MPS, XPU and the CPU), ITK and the operating system say when an allocation fails,
# and the names that CUDA's libraries, CUDA's driver and Intel's runtime give it: CUBLAS_STATUS_ALLOC_FAILED,
# CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED, CUDA_ERROR_OUT_OF_MEMORY, UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY.
_OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad_alloc",
    "_alloc_failed",
    "_allocation_failed",
    "out_of_memory",
    "out_of_device_memory",
    "out_of_host_memory",
)
_PACKAGES = {"torch": "torch", "monai": "monai", "numpy": "numpy", "scipy": "scipy", "SimpleITK": "SimpleITK"}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of any library says that memory, of the GPU or of the machine, is gone."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
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


def choose_device(device: str = "auto") -> torch.device:
    """The device asked for, or the GPU if there is one.

    Raises:
        InputError: when the device does not exist here.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}.", "Use auto, cpu, cuda or cuda:0.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"The device {device!r} is not supported.", "Use auto, cpu, cuda or cuda:0.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"The device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices.",
            "Use auto or cpu, or install a torch build for this machine's GPU.",
        )
    return chosen


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The autocast type. ``auto`` takes bfloat16 where the processor multiplies it natively, else float32."""
    import torch

    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        raise InputError(f"Unknown precision {precision!r}.", "Use auto, float32 or bfloat16.")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    processor = torch.cpu.get_capabilities()
    native = processor.get("avx512_bf16", False) or processor.get("amx_bf16", False)
    return torch.bfloat16 if native else torch.float32
