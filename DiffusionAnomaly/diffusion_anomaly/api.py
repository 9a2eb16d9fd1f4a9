"""What a researcher imports; ``import diffusion_anomaly as da`` shows it.

    detector = da.load("flair-restore")
    result = detector("flair.nii.gz")
    result.save("out")

Everything else is reached from these names. Torch is imported when something runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .detection.detector import Detector
from .detection.planning import Options
from .errors import Cancelled, EngineError, InputError, MemoryExhausted, ModelError
from .io.sources import read
from .io.volume import Scan
from .models.package import BundleSummary, available, open_bundle
from .options import check_threshold
from .registry import DEFAULT_METHOD, METHODS
from .results.result import Progress, Result

if TYPE_CHECKING:
    from .evaluation.table import Table

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

_GENERAL = set(Options.__dataclass_fields__) - {"method", "model", "overrides"}


def load(model: str | Path | None = None, *, method: str | None = None, **options: Any) -> Detector:
    """A detector: the method, its model, and the options that are other than the model's.

    Args:
        model: a model package by name, or its folder; None takes the method's default.
        method: name of a method; None takes the model's, or without a model the default one.
        options: any field of ``Options`` (``device``, ``precision``, ``steps``, ``preset``, ``seed``, ``threshold``,
            ``min_volume_ml``, ``peak_margin``, ``batch_size``, ``slice_spacing``, ``keep_reconstruction``,
            ``anonymous``, ``force``, ``register``), or any option of the method, such as ``guidance_scale`` of the
            guided one.

    Raises:
        InputError: for a method, an option or a device that does not exist, or a value out of range.
        ModelError: when the package is missing, damaged, or made for another method.

    >>> load(method="guided", steps=25, guidance_scale=50).plan.method_options.guidance_scale
    50.0
    >>> load("flair-restore", steps=6)
    Traceback (most recent call last):
    diffusion_anomaly.errors.InputError: Option steps is 6, more than the 5 levels of corruption. Use at most 5 steps.
    """
    name = str(model) if model is not None else None
    if method is None:
        method = DEFAULT_METHOD if name is None else open_bundle(name).method
        if method not in METHODS:  # one that finds brains: planning says so
            method = DEFAULT_METHOD
    general = {key: value for key, value in options.items() if key in _GENERAL}
    overrides = {key: value for key, value in options.items() if key not in _GENERAL}
    return Detector(Options(method=method, model=name, overrides=overrides, **general))


def models(folders: Sequence[Path | str] = ()) -> list[BundleSummary]:
    """The model packages that there are: the built-in ones, then those in ``folders``.

    >>> [model.name for model in models() if model.modality == "CT"]
    ['headct-localise']
    """
    return available(folders)


def threshold(
    result: Result, at: float, min_volume_ml: float | None = None, peak_margin: float | None = None
) -> Result:
    """The result at another threshold: mask and findings follow, no network runs.

    Args:
        result: of a detection.
        at: anomaly score from which a voxel is anomalous, above 0 and at most ``options.HIGHEST_THRESHOLD``.
        min_volume_ml: smaller findings are dropped; None keeps what was in force.
        peak_margin: so are findings whose highest score does not exceed the threshold by this much; None likewise.

    Raises:
        InputError: for a number that cannot be.
    """
    if not isinstance(result, Result):
        raise InputError(f"A {type(result).__name__} is no result.", "Give what a detector returned.")
    check_threshold(at)
    return result.at(at, min_volume_ml, peak_margin)


def evaluate(
    data: Path | str,
    output: Path | str,
    *,
    runs: Sequence[str] = tuple(METHODS),
    scan_pattern: str | None = None,
    mask_pattern: str | None = None,
    brain_pattern: str | None = None,
    channels: Mapping[str, str] | None = None,
    complete_only: bool = False,
    healthy: Path | str | None = None,
    healthy_pattern: str = "*.nii.gz",
    steps: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Table:
    """Measure methods against reference masks, with the intensity baseline beside.

    Args:
        data: a folder of scans with reference masks, or a CSV file with the columns ``scan`` and ``reference``.
        output: folder for tables, pictures and anomaly maps.
        runs: ``METHOD``, ``METHOD=MODEL``, ``METHOD:PRESET`` or ``METHOD:PRESET=MODEL``.
        scan_pattern, mask_pattern, brain_pattern: files in the folder, by default ``*_flair.nii.gz`` and
            ``*_mask.nii.gz``; ``*`` is the patient. Without brain masks a network finds them.
        channels: for models of several contrasts, each one's pattern by its name instead of ``scan_pattern``; the
            reference masks belong to the first.
        complete_only: whether patients without all contrasts are left out; else they are refused.
        healthy, healthy_pattern: a folder of scans in which every finding is a false alarm.
        steps: for every method that has steps, at most as many as its model allows.
        device, precision, seed: as for a detector.
        progress: is told how far it is; may raise ``Cancelled``.

    Returns:
        The table, already written; ``table.markdown()`` is what the command line prints, and ``table.warnings`` says
        which references are doubtful.

    Raises:
        InputError: for a scan or mask that cannot be used, before any method has run.
    """
    from .evaluation import evaluate as evaluation
    from .evaluation.dataset import find_healthy, find_pairs

    specs = [evaluation.RunSpec.parse(run, precision=precision) for run in runs]
    pairs = find_pairs(data, scan_pattern, mask_pattern, brain_pattern, channels, complete_only)
    scans = [] if healthy is None else find_healthy(healthy, healthy_pattern)
    return evaluation.run(pairs, specs, output, device, seed, progress, healthy=scans, steps=steps)
