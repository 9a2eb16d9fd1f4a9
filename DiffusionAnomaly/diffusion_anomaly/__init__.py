"""DiffusionAnomaly's engine: a scan in, a calibrated anomaly map, a mask and findings out. Knows neither Slicer nor Qt.

>>> import diffusion_anomaly as da
>>> detector = da.load()
>>> result = detector("flair.nii.gz")  # doctest: +SKIP
>>> result.save("out")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        Cancelled,
        Detector,
        EngineError,
        InputError,
        MemoryExhausted,
        ModelError,
        Options,
        Result,
        Scan,
        evaluate,
        load,
        models,
        read,
        threshold,
    )

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "Detector",
    "EngineError",
    "InputError",
    "MemoryExhausted",
    "ModelError",
    "Options",
    "Result",
    "Scan",
    "evaluate",
    "load",
    "models",
    "read",
    "threshold",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: Slicer's process imports this package too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".api", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
