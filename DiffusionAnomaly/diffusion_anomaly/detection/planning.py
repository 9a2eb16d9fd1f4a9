"""What exactly will be run: the user's options, checked and joined with the model package's, before any scan is read.

A wrong option, a missing model or a device that is not there is found here, in a second, and not after the scan has
been read and its brain found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ModelError
from ..models.declaration import IMAGE, REGIONS
from ..options import HIGHEST_THRESHOLD, MARGINS, THRESHOLDS, is_finite, shown, words_by_channel
from ..precision import choose_dtype
from ..registry import DEFAULT_METHOD, METHODS, get_method
from ..system import choose_device

if TYPE_CHECKING:
    from ..models.filters import PostprocessSettings
    from ..models.package import Bundle
    from ..options import MethodOptions
    from ..preprocessing.slices import Grid
    from ..registry import MethodEntry
    from .calibration import Calibration


PRECISIONS = ("auto", "float32", "bfloat16")
_KINDS: dict[str, Any] = {
    "method": str,
    "model": (str, os.PathLike, NoneType),
    "steps": (int, NoneType),
    "preset": (str, NoneType),
    "device": str,
    "precision": str,
    "keep_reconstruction": bool,
    "anonymous": bool,
    "force": bool,
    "register": bool,
}
_KIND_NAMES = {
    str: "text",
    bool: "true or false",
    (int, NoneType): "a whole number",
    (str, NoneType): "text",
    (str, os.PathLike, NoneType): "a name or a folder",
}
HELPER_DUTIES = {"brain": "finds brains", "recognition": "recognises scans"}


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        method: name of a method.
        model: name of a model package or its folder; None takes the method's default.
        steps: shorthand for the method's option of that name; None leaves it to the package.
        preset: the method's options under a name, such as ``paper``; a single option that the user sets goes before.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:0``.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        seed: of all randomness.
        threshold: the anomaly score from which a voxel is in the mask; None takes the package's.
        min_volume_ml: smaller findings are dropped.
        peak_margin: so are findings whose highest score does not exceed the threshold by this much; None takes the
            package's.
        min_area: the same of findings in a picture: mm², or pixels of one without a scale; None takes one pixel of the
            model's grid.
        batch_size: slices at once; None chooses by the device. Changes a result by rounding at most, and on the CPU
            not at all.
        slice_spacing: slices are looked at no farther apart than this, in mm; None takes the package's.
        overrides: any other option of the method, by name.
        anonymous: whether the scan's file name, title and description are left out of provenance and report.
        force: whether a scan that the model seems not to know is looked at all the same, with a warning.
        register: whether the other channels are moved rigidly onto the first one before.
        keep_reconstruction: whether the pseudo-healthy reconstruction is a result too, where the method has one.
    """

    method: str = DEFAULT_METHOD
    model: str | None = None
    steps: int | None = None
    preset: str | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    threshold: float | None = None
    min_volume_ml: float = 0.05
    min_area: float | None = None
    peak_margin: float | None = None
    batch_size: int | None = None
    slice_spacing: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    keep_reconstruction: bool = False
    anonymous: bool = False
    force: bool = False
    register: bool = False

    def __post_init__(self) -> None:
        _check_number("seed", self.seed, lambda value: value >= 0, "a whole number of at least 0", whole=True)
        _check_number("min_volume_ml", self.min_volume_ml, lambda value: value >= 0, "a number of ml, at least 0")
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(f"Option {name} is {shown(value)}.", f"It must be {_KIND_NAMES[kind]}.")
        if self.precision not in PRECISIONS:
            raise InputError(f"Unknown precision {shown(self.precision)}.", f"Use {', '.join(PRECISIONS)}.")
        if self.threshold is not None:
            _check_number("threshold", self.threshold, lambda value: 0 < value <= HIGHEST_THRESHOLD, THRESHOLDS)
        if self.peak_margin is not None:
            _check_number("peak_margin", self.peak_margin, lambda value: 0 <= value <= HIGHEST_THRESHOLD, MARGINS)
        if self.batch_size is not None:
            _check_number("batch_size", self.batch_size, lambda value: value >= 1, "at least 1", whole=True)
        if self.min_area is not None:
            _check_number("min_area", self.min_area, lambda value: value >= 0, "mm² or pixels, at least 0")
        if self.slice_spacing is not None:
            _check_number("slice_spacing", self.slice_spacing, lambda value: value > 0, "a number of mm above 0")
        if not isinstance(self.overrides, Mapping):
            raise InputError(f"overrides is {shown(self.overrides)}.", "Give method options by name.")


def _check_number(name: str, value: Any, fits: Callable[[Any], bool], expected: str, *, whole: bool = False) -> None:
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not is_finite(value) or not fits(value):
        raise InputError(f"Option {name} is {shown(value)}.", f"It must be {expected}.")


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before the scan.

    Attributes:
        asked: the user's options.
        method: what runs.
        method_options: its options: defaults, overlaid by the package's, overlaid by the user's.
        bundle: the model package; the baseline's holds no network.
        postprocess: filters of raw anomaly scores.
    """

    asked: Options
    method: MethodEntry
    method_options: MethodOptions
    bundle: Bundle
    postprocess: PostprocessSettings

    @cached_property
    def device(self) -> str:
        """``cpu``, ``cuda`` or ``cuda:0``: what ``auto`` comes to here."""
        return str(choose_device(self.asked.device))

    @cached_property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``: what ``auto`` comes to on that device. May be measured, see ``precision``."""
        return str(choose_dtype(self.asked.precision, choose_device(self.asked.device))).removeprefix("torch.")

    @property
    def grid(self) -> Grid:
        """The package's slices, no farther apart than the user asked for."""
        grid = self.bundle.grid
        if self.asked.slice_spacing is not None:
            grid = replace(grid, max_slice_spacing=float(self.asked.slice_spacing))
        return grid

    @property
    def calibration(self) -> Calibration:
        """Post-processed raw scores to ``-log10`` of their healthy tail probability.

        Raises:
            ModelError: when the package has not been calibrated.
        """
        from .calibration import Calibration

        return Calibration.from_dict(self._calibrated("calibration"))

    @property
    def calibration_source(self) -> str:
        """What healthy data scores refer to."""
        return str(self._calibrated("calibration").get("source") or "healthy validation scans")

    @property
    def calibration_spread(self) -> dict[str, Any] | None:
        """How much healthy scans differ in how often they score high, see ``calibration.spread_of_scans``."""
        return self._calibrated("calibration").get("spread")

    @property
    def channels(self) -> tuple[str, ...]:
        """The contrasts that the model is shown, in this order."""
        return self.bundle.channels

    @property
    def threshold(self) -> float:
        """The user's threshold, else the package's."""
        return float(self.stored_threshold["heat"] if self.asked.threshold is None else self.asked.threshold)

    @property
    def peak_margin(self) -> float:
        """By how much a finding's highest score exceeds the threshold at least: the user's, the package's, or 0."""
        asked = self.asked.peak_margin
        return float(self.stored_threshold.get("peak_margin", 0.0) if asked is None else asked)

    @property
    def stored_threshold(self) -> dict[str, Any]:
        """The package's threshold with its reason."""
        return self._calibrated("threshold")

    @property
    def calibration_warning(self) -> str | None:
        """Which options differ so much from those that the package was calibrated with that its scores mean little.

        Another word, or a number of less than half or more than three times as much.
        """
        usual = asdict(self.method.make_options(_packaged_options(self.bundle)))
        now = asdict(self.method_options)
        usual["slice_spacing"] = self.bundle.grid.max_slice_spacing
        now["slice_spacing"] = self.grid.max_slice_spacing
        far = [name for name in now if _is_far(now[name], usual[name])]
        if not far:
            return None
        thick = "slice_spacing" in far and now["slice_spacing"] > usual["slice_spacing"]
        named = ", ".join(f"{name} {_short(now[name])} instead of {_short(usual[name])}" for name in far)
        return (
            f"The scores of {self.bundle.name} are not calibrated for {named}: they are no tail probabilities then, "
            "and the stored threshold does not keep its rate of false alarms."
            + (" Where slices are thinner than that, they are averaged, and findings fade away." if thick else "")
        )

    @property
    def score_range(self) -> dict[str, Any] | None:
        """The range of the whole-image score on healthy validation; None where the score is no such warning."""
        return self._calibrated("score_range") if self.method.score_is_familiarity else None

    def _calibrated(self, key: str) -> dict[str, Any]:
        """An entry of the package that only calibration can have written."""
        if key not in self.bundle.anomaly:
            raise ModelError(
                f"Package {self.bundle.name}: configs/anomaly.json has no {key}.",
                "Calibrate the package on healthy validation scans, or choose another.",
            )
        return self.bundle.anomaly[key]


def make_plan(options: Options, bundle: Bundle | None = None) -> Plan:
    """Check the options and settle what they leave open.

    Args:
        options: the user's.
        bundle: an opened package to use instead of ``options.model``.

    Raises:
        InputError: for an unknown method, an option out of range, or a device that is not there.
        ModelError: when the package is missing, damaged, or made for another method.
    """
    from ..models.filters import PostprocessSettings
    from ..models.package import open_bundle

    method = get_method(options.method)
    if bundle is None:
        bundle = open_bundle(options.model if options.model is not None else method.default_model)
    if bundle.method != method.name:
        raise ModelError(
            f"Package {bundle.name} is made for the method {bundle.method!r}, but {method.name!r} was asked for.",
            f"Choose the method {bundle.method}, or another model."
            if bundle.method in METHODS
            else f"It {HELPER_DUTIES.get(bundle.method, 'is no model of slices')}; choose another model.",
        )
    bundle.check()
    _refuse_useless(options, bundle)
    overrides = _overrides(options)
    try:
        settings = PostprocessSettings.from_dict(bundle.anomaly.get("postprocess", {}))
    except InputError as error:
        raise ModelError(f"The model package's post-processing does not fit: {error.what}", error.hint) from error
    if options.device not in ("auto", "cpu"):  # what needs no torch to be known to be there
        choose_device(options.device)
    method_options = method.make_options(_packaged_options(bundle), overrides, options.preset)
    for option in fields(method_options):
        if "words" in option.metadata:
            words_by_channel(option.name, getattr(method_options, option.name), len(bundle.channels))
    return Plan(
        asked=options,
        method=method,
        method_options=method_options,
        bundle=bundle,
        postprocess=settings,
    )


def _refuse_useless(options: Options, bundle: Bundle) -> None:
    """What the model has no use for would seem to have had an effect.

    Raises:
        InputError: naming it.
    """
    if options.register and len(bundle.channels) < 2:
        raise InputError(
            f"The model {bundle.name} looks at one contrast, so there is nothing to register onto it.",
            "Leave out --register (register=True in Python), or choose a model of several contrasts.",
        )
    if options.min_area is not None and bundle.region != IMAGE:
        raise InputError(
            f"The model {bundle.name} looks at the {REGIONS[bundle.region]} in volumes, whose findings have no areas.",
            "Leave out --min-area (min_area in Python), or say --min-volume.",
        )


def _overrides(options: Options) -> dict[str, Any]:
    """The user's options of the method, ``steps`` among them."""
    overrides = dict(options.overrides)
    own = [option.name for option in fields(Options) if option.name in overrides and option.name != "steps"]
    if own:
        name = own[0]
        flag = {"min_volume_ml": "min-volume"}.get(name, name.replace("_", "-"))
        raise InputError(
            f"Option {name} is none of the method's, so it cannot be set with --set or in overrides.",
            f"Use --{flag}, or from Python Options({name}=…).",
        )
    if options.steps is not None:
        if overrides.get("steps", options.steps) != options.steps:
            raise InputError(
                f"Option steps is given twice: {options.steps} and, with --set or in overrides, {overrides['steps']}.",
                "Give it once.",
            )
        overrides["steps"] = options.steps
    return overrides


def _packaged_options(bundle: Bundle) -> dict[str, Any]:
    """What the package sets of the method's options. The latent threshold is learnt, so it has its own entry."""
    packaged = dict(bundle.anomaly.get("options", {}))
    if "latent_threshold" in bundle.anomaly:
        packaged["latent_threshold"] = bundle.anomaly["latent_threshold"]
    return packaged


def _is_far(value: Any, usual: Any) -> bool:
    numbers = [isinstance(number, (int, float)) and not isinstance(number, bool) for number in (value, usual)]
    if not all(numbers) or min(value, usual) <= 0:
        return value != usual
    return not 1 / 2 <= value / usual <= 3


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:40]} …"


def resolved_options(plan: Plan) -> dict[str, Any]:
    """Every option as it was in force, for provenance."""
    return {
        **asdict(plan.method_options),
        "preset": plan.asked.preset,
        "seed": plan.asked.seed,
        "threshold": plan.threshold,
        "min_volume_ml": plan.asked.min_volume_ml,
        "peak_margin": plan.peak_margin,
        "slice_spacing": plan.asked.slice_spacing,
        "force": plan.asked.force,
        "register": plan.asked.register,
        "device": plan.asked.device,
        "precision": plan.asked.precision,
        "postprocess": plan.postprocess.to_dict(),
    }
