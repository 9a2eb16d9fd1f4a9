"""What this machine is and what it runs, for provenance and for deciding what to do when memory is gone.

Torch is only looked at when it has been imported already, so that commands without a network stay quick.
"""

from __future__ import annotations

import errno
import gc
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import NO_SPACE, DiskFull, EngineError, InputError, MemoryExhausted

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
    "can't start new thread",
    "failed to map segment",  # of a library that is loaded
)
ACCELERATORS = ("cuda", "mps", "xpu")
_TITLES = {"cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}
_PACKAGES = {
    **{"torch": "torch", "monai": "monai", "numpy": "numpy", "scipy": "scipy", "SimpleITK": "SimpleITK"},
    **{"nibabel": "nibabel", "pynrrd": "pynrrd"},
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of any library says that memory, of the GPU or of the machine, is gone."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, ImportError, OSError)) and any(
        words in text for words in _OUT_OF_MEMORY_WORDS
    )


def as_engine_error(error: Exception, hint: str) -> EngineError:
    """The error as the user should read it.

    Args:
        error: any.
        hint: what to do about one that only a fault of the program explains.
    """
    if isinstance(error, EngineError):
        return error
    reason = str(error) or type(error).__name__
    if is_out_of_memory(error):
        return MemoryExhausted(
            f"Memory ran out ({reason}).", "Close other programs, or use a machine with more memory."
        )
    if isinstance(error, OSError) and error.errno is not None:  # the machine's fault or the user's, not the program's
        where = f"{error.filename}: " if error.filename else ""
        kind = DiskFull if error.errno in NO_SPACE else InputError
        return kind(f"{where}{error.strerror}.", "The operating system refused; see to that and try again.")
    return EngineError(f"{type(error).__name__}: {error}" if str(error) else reason, hint)


def free_gpu_memory() -> None:
    """Give torch's cached GPU memory back, so that a smaller attempt finds it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    for kind in ACCELERATORS:
        accelerator = getattr(torch, kind, None)
        if accelerator is not None and accelerator.is_available():
            accelerator.empty_cache()


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


def let_idle_threads_sleep() -> None:
    """Have torch's threads sleep when they wait for each other; has no effect once torch is imported.

    By default they spin, which is quicker by microseconds on an idle machine. Where another program takes one of two
    cores, the spinning one keeps the other from finishing: a detection took twice the time and twice the processor's
    work. What the user has set stays.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Around a large import: everything that it makes stays, and looking it through took a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def device_name(device: str) -> str:
    """The name of the hardware behind ``cpu`` or ``cuda:0``."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return processor_name()


def choose_device(device: str = "auto", warn: Callable[[str], None] = lambda message: None) -> torch.device:
    """The device asked for; for ``auto`` the accelerator if there is one that works, else the CPU.

    Args:
        device: ``auto``, ``cpu``, or one of ``ACCELERATORS``, perhaps with a number as in ``cuda:1``.
        warn: takes a sentence on why ``auto`` came to the CPU although there is an accelerator.

    Raises:
        InputError: when the device does not exist here or does not work.
    """
    let_idle_threads_sleep()
    with without_garbage_collection():  # here torch is imported for the first time
        import torch

    if device == "auto":
        return _accelerator(warn) or torch.device("cpu")
    known = f"Use auto, cpu, {', '.join(ACCELERATORS)}, or one with a number such as cuda:0."
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}.", known) from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type not in ACCELERATORS:
        raise InputError(f"The device {device!r} is not supported.", known)
    here, reason = _accelerators()
    count = sum(other.type == chosen.type for other in here)
    if (chosen.index or 0) >= count:
        why = f": {reason}" if reason else ""
        noun = "device" if count == 1 else "devices"
        raise InputError(
            f"The device {device!r} was asked for, but torch sees {count} {_TITLES[chosen.type]} {noun}{why}.",
            "Use auto or cpu, or install a torch build and a driver for this machine's GPU.",
        )
    fault = _fault(chosen)
    if fault:
        raise InputError(f"The device {device!r} does not work: {fault}.", "Use cpu, or another device or driver.")
    return chosen


def _accelerator(warn: Callable[[str], None]) -> torch.device | None:
    """The accelerator that torch would use, if it works."""
    import torch

    here, reason = _accelerators()
    if not here:
        if reason:
            warn(f"There is an accelerator, but torch cannot use it ({reason}); the CPU is used.")
        return None
    fault = _fault(here[0])
    if fault:
        warn(f"{_TITLES[here[0].type]} device {here[0]} does not work ({fault}); the CPU is used.")
        return None
    return torch.device(here[0].type)


def _accelerators() -> tuple[list[torch.device], str]:
    """The accelerators that this build of torch can use, and what it says when it finds one that it cannot."""
    import torch

    # A driver that is too old is no exception but a warning, and the answer that nothing is available.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kind = torch.accelerator.current_accelerator()
        available = kind is not None and kind.type in ACCELERATORS and torch.accelerator.is_available()
        count = torch.accelerator.device_count() if available else 0
    reason = "" if available else " ".join(_first_sentence(str(warning.message)) for warning in said)
    return [torch.device(kind.type, index) for index in range(count)] if kind is not None else [], reason


def _fault(device: torch.device) -> str:
    """Why a device does not do what the networks need, by doing a little of it; empty when it does."""
    import torch

    try:
        ones = torch.ones((1, 1, 2, 2, 2), device=device)
        raised = torch.nn.functional.conv_transpose3d(ones, ones, stride=2)
        if float(torch.nn.functional.conv3d(raised, ones, stride=2).sum()) == 64.0:
            return ""
    except Exception as error:  # noqa: BLE001 - drivers raise what they like
        return _first_sentence(str(error)) or type(error).__name__
    return "it computes wrong results"


def _first_sentence(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else ""
