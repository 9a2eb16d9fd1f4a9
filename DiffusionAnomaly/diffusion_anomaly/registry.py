"""What methods there are: everything that is known of one without running it, stated once.

Command line, panel, planning, the check of model packages and the documentation read it; none of them imports torch for
it. A method is an entry here and a file in ``methods`` that the entry names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from .errors import InputError, ModelError
from .options import MethodOptions, check_number, choice, choice_a_channel, flag, number
from .text import counted

if TYPE_CHECKING:
    from .methods.base import Method, ProgressCallback, SliceBatch, SliceResult
    from .models.networks import Model

SIDES = ("both", "bright", "dark")
CLAMPS = ("none", "before", "after")
RESTORER_MAPS = ("residual", "probability", "product")
SLICES = ("grid", "normalisation")
# What options were called in the first packages, jobs and scripts.
FORMER_NAMES = {"forget": "start_from_noise", "healings": "n_reconstructions", "floor": "min_reference_intensity"}
DIFFUSION = (*SLICES, "schedule", "prediction_type", "codec")


@dataclass(frozen=True)
class LocaliseOptions(MethodOptions):
    """The localiser has none: it is asked once."""


@dataclass(frozen=True)
class RestoreOptions(MethodOptions):
    """Options of the restorer."""

    steps: int = number(3, 1, 1000, "levels of corruption asked for, evenly spread, and averaged; at most levels")
    levels: int = number(10, 1, 1000, "levels of corruption the restorer was trained on")
    heat: str = choice(
        "product", RESTORER_MAPS, "difference to the restored slice, probability of a lesion, or their product"
    )
    side: str = choice_a_channel("both", SIDES, "which differences count; a probability has no side")
    min_reference_intensity: float = number(
        0.0, 0.0, 1.0, "intensity that a bright lesion is at least brighter than; the same"
    )

    @property
    def most_steps(self) -> int:
        return self.levels

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heat == "probability" and (self.side != "both" or self.min_reference_intensity > 0):
            raise InputError(
                f"Option side is {self.side} and min_reference_intensity is {self.min_reference_intensity:g}; "
                "with heat=probability there is neither.",
                "Leave them out, or set heat to residual or product.",
            )
        if self.steps > self.levels:
            raise InputError(
                f"Option steps is {self.steps}, more than the {counted(self.levels, 'level')} of corruption.",
                f"Use at most {counted(self.levels, 'step')}.",
            )


@dataclass(frozen=True)
class GuidedOptions(MethodOptions):
    """Options of the guided method; ``level`` and ``guidance_scale`` default to the paper's.

    ``level`` counts noise levels: L = 500 walks the list from -1 (clean) to index 499. ``clamp`` and ``order`` say how
    a step is taken, see ``methods.guided``; latents have no range, so ``clamp`` says nothing about them.
    """

    steps: int = number(50, 1, 1000, "transitions each way; at most `level`")
    level: int = number(500, 1, 1000, "noise levels the slice is encoded through (L)")
    guidance_scale: float = number(100.0, 0.0, 1e6, "weight of the gradient of log C(healthy | x_t, t) (s)")
    clamp: str = choice(
        "after",
        CLAMPS,
        "whether the predicted clean pixels are kept in their range, before or after guidance is added; "
        "the paper's algorithm says none, its published code does it before",
    )
    order: int = number(1, 1, 2, "1 for DDIM, 2 for Adams-Bashforth steps over the same network calls")
    side: str = choice_a_channel("both", SIDES, "which differences count; the paper takes both")
    min_reference_intensity: float = number(0.0, 0.0, 1.0, "intensity that a bright lesion is at least brighter than")

    @property
    def most_steps(self) -> int:
        return self.level

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps > self.level:
            raise InputError(
                f"Option steps is {self.steps}, more than the {counted(self.level, 'noise level')} walked.",
                f"Use at most {counted(self.level, 'step')}, or a higher level.",
            )


@dataclass(frozen=True)
class UnsupervisedOptions(MethodOptions):
    """Options of the unsupervised method. Levels are indices: -1 is clean, 0 the least noise.

    ``start_level``, ``kl_from``, ``kl_to`` and ``latent_percentile`` default to the paper's. The number of
    levels, the antithetic pairs, the smoothing, steps without randomness (``eta`` 0), ``start_from_noise`` and
    ``n_reconstructions`` are ours; ``PAPER_UNSUPERVISED`` is without them.

    ``latent_threshold`` is a number, or the object that a package carries: ``{"percentile": p, "value": number,
    "table": [[percentile, value], ...]}``. The table is optional and lets ``latent_percentile`` be chosen.
    """

    steps: int = number(20, 1, 1000, "levels walked when inpainting; at most start_level + 1")
    start_level: int = number(500, 0, 999, "noise level inpainting starts from")
    kl_from: int = number(400, 1, 999, "first noise level of the KL map")
    kl_to: int = number(600, 2, 1000, "end of the KL map's levels, itself not included")
    kl_levels: int = number(8, 1, 999, "how many levels between kl_from and kl_to the KL map averages")
    noise_draws: int = number(1, 1, 100, "noise draws at each of these levels")
    antithetic: bool = flag(True, "draw each noise with its negative, which cuts the KL map's variance")
    kl_sigma: float = number(0.0, 0.0, 10.0, "Gaussian smoothing of the KL map, latent pixels")
    latent_percentile: float = number(97.5, 0.0, 100.0, "healthy percentile a replaced latent is above")
    latent_threshold: Any = field(default=None, metadata={"about": "KL above which a latent is replaced"})
    mask_sigma: float = number(2.0, 0.0, 50.0, "Gaussian smoothing of the upsampled mask, pixels")
    fresh_noise: bool = flag(False, "noise the known part anew at each level of inpainting")
    eta: float = number(
        0.0, 0.0, 1.0, "randomness of a step of inpainting: 0 for none (DDIM), 1 for the paper's (DDPM)"
    )
    start_from_noise: bool = flag(
        False, "start inpainting from noise alone inside the mask, so that no trace of it is kept"
    )
    n_reconstructions: int = number(1, 1, 100, "reconstructions averaged, each from noise of its own")
    side: str = choice_a_channel("both", SIDES, "which differences count; the paper takes both")
    min_reference_intensity: float = number(0.0, 0.0, 1.0, "intensity that a bright lesion is at least brighter than")

    @property
    def most_steps(self) -> int:
        return self.start_level + 1

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = self.start_level + 1
        if self.steps > levels:
            raise InputError(
                f"Option steps is {self.steps}, more than the {counted(levels, 'noise level')} up to start_level.",
                f"Use at most {counted(levels, 'step')}, or a higher start_level.",
            )
        check_number("kl_to", self.kl_to, self.kl_from + 1, 1000, whole=True)
        check_number("kl_levels", self.kl_levels, 1, self.kl_to - self.kl_from, whole=True)

    @property
    def kl_grid(self) -> list[int]:
        """The levels the KL map averages: the middles of ``kl_levels`` equal parts of [kl_from, kl_to)."""
        span = self.kl_to - self.kl_from
        return [self.kl_from + (2 * i + 1) * span // (2 * self.kl_levels) for i in range(self.kl_levels)]


@dataclass(frozen=True)
class IntensityOptions(MethodOptions):
    """Options of the baseline."""

    side: str = choice_a_channel("bright", SIDES, "which intensities are suspicious: lesions are bright on FLAIR")
    reference: float = number(0.42, 0.0, 1e6, "normalised intensity of ordinary tissue, such as the scale's mode")


PAPER_GUIDED = {
    "steps": 500,
    "level": 500,
    "guidance_scale": 100.0,
    "clamp": "before",
    "order": 1,
    "side": "both",
    "min_reference_intensity": 0.0,
}
"""Wolleb et al. 2022, with the clamp of the published code; the paper's Algorithm 1 states none."""

PAPER_UNSUPERVISED = {
    "steps": 501,
    "start_level": 500,
    "kl_from": 400,
    "kl_to": 600,
    "kl_levels": 200,
    "noise_draws": 1,
    "antithetic": False,
    "kl_sigma": 0.0,
    "latent_percentile": 97.5,
    "fresh_noise": True,
    "eta": 1.0,
    "start_from_noise": False,
    "n_reconstructions": 1,
    "side": "both",
    "min_reference_intensity": 0.0,
}
"""Pinaya et al. 2022. The width of the mask's smoothing, which the paper does not state, stays the package's."""


@dataclass(frozen=True)
class NumberRange:
    """A number that the user may set.

    Attributes:
        name: the method's option.
        default, low, high: as the method has them; a model package may set another default.
    """

    name: str
    default: float
    low: float
    high: float


@dataclass(frozen=True)
class MethodEntry:
    """A method as it is offered, checked and run.

    Attributes:
        name: on the command line, in jobs and in packages.
        title: for people.
        does: in one sentence, what it does.
        learnt_from: which labels its model was trained on.
        implementation: ``module:class`` of what runs it, see ``methods.base.Method``.
        options_type: a frozen subclass of ``MethodOptions`` whose defaults are the published numbers.
        default_model: the model package taken when none is named.
        networks: what a package must hold; none for a method without a network.
        declared: what a package's ``anomaly.json`` must say besides; ``options.levels`` is an entry of ``options``.
        calibrated: what only healthy validation images can have written there.
        folded: a network that works on folded pixels as they are, and how many numbers a pixel it may give, by the
            number of channels.
        score_title: what the whole-image score is.
        score_is_familiarity: whether a score far from the healthy range means that the image is not what the model
            knows (wrong contrast, wrong body part), rather than that it is diseased.
        presets: options by the name of a preset, between the package's and the user's: ``paper`` is what was published.
        noise_level_option, guidance_scale_option: which option is the noise level from or through which the scan is
            rebuilt, and which the strength of guidance, for whoever offers those; ``steps`` is an option of that name.
    """

    name: str
    title: str
    does: str
    learnt_from: str
    implementation: str
    options_type: type[MethodOptions]
    default_model: str
    score_title: str
    networks: tuple[str, ...] = ()
    declared: tuple[str, ...] = SLICES
    calibrated: tuple[str, ...] = ("calibration", "threshold")
    folded: tuple[str, Callable[[int], tuple[int, ...]]] | None = None
    score_is_familiarity: bool = False
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    noise_level_option: str | None = None
    guidance_scale_option: str | None = None

    @property
    def has_network(self) -> bool:
        return bool(self.networks)

    @property
    def numbers(self) -> dict[str, NumberRange]:
        """The numbers a panel offers, by option: steps, noise level, guidance scale, as far as it has them."""
        offered = ("steps", self.noise_level_option, self.guidance_scale_option)
        ranges = {
            option.name: NumberRange(
                option.name, cast(float, option.default), option.metadata["low"], option.metadata["high"]
            )
            for option in fields(self.options_type)
            if "low" in option.metadata
        }
        return {name: ranges[name] for name in offered if name in ranges}

    @property
    def steps(self) -> NumberRange | None:
        """How many steps may be walked; None for a method without steps."""
        return self.numbers.get("steps")

    @property
    def noise_level(self) -> NumberRange | None:
        """From or through which level of noise the scan is rebuilt; None where there is no such choice."""
        return self.numbers.get(self.noise_level_option or "")

    @property
    def guidance_scale(self) -> NumberRange | None:
        """How strongly the scan is led to health; None where there is no such choice."""
        return self.numbers.get(self.guidance_scale_option or "")

    @cached_property
    def method(self) -> Method:
        """What runs it; imports torch."""
        module, _, name = self.implementation.partition(":")
        return getattr(importlib.import_module(module), name)()

    def run(self, batch: SliceBatch, model: Model | None, options: Any, progress: ProgressCallback) -> SliceResult:
        """See ``methods.base.Method.run``."""
        return self.method.run(batch, model, options, progress)

    def network_calls(self, options: Any) -> int:
        """See ``methods.base.Method.network_calls``."""
        return self.method.network_calls(options)

    def make_options(
        self,
        packaged: Mapping[str, Any] | None = None,
        chosen: Mapping[str, Any] | None = None,
        preset: str | None = None,
    ) -> MethodOptions:
        """The method's options: its defaults, overlaid by the model package's, a preset's, and the user's.

        Args:
            packaged: what the model package sets.
            chosen: what the user sets; a value of None means that the user set nothing.
            preset: one of ``presets``; None for none.

        Raises:
            ModelError: when the package's own options are unknown or out of range.
            InputError: when the user's are, or do not go together with the package's; or for an unknown preset.
        """
        if preset is not None and preset not in self.presets:
            raise InputError(
                f"The method {self.name!r} has no preset {preset!r}.",
                f"It has {', '.join(self.presets)}." if self.presets else "It has none.",
            )
        try:
            base = self._known(packaged or {})
            self.options_type(**base)
        except InputError as error:
            raise ModelError(f"The model package's options do not fit: {error.what}", error.hint) from error
        more = {name: value for name, value in (chosen or {}).items() if value is not None}
        named = self.presets[preset] if preset is not None else {}
        return self.options_type(**{**base, **named, **self._known(more)})

    def _known(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = [option.name for option in fields(self.options_type)]
        given = {name if name in known else FORMER_NAMES.get(name, name): value for name, value in given.items()}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(
                f"The method {self.name!r} has no option {', '.join(unknown)}.",
                f"It has {', '.join(known)}." if known else "It has no options of its own.",
            )
        return dict(given)


# The one that evaluations put first; see docs/evaluation.md. It also comes first in the panel.
DEFAULT_METHOD = "localise"

METHODS: dict[str, MethodEntry] = {}


def register(entry: MethodEntry) -> MethodEntry:
    """Offer a method from now on.

    Raises:
        InputError: when another one has its name.
    """
    if METHODS.setdefault(entry.name, entry) != entry:
        raise InputError(f"There is already a method {entry.name!r}.", "Give yours another name.")
    return entry


def get_method(name: str) -> MethodEntry:
    """The method of that name.

    Raises:
        InputError: when there is none.
    """
    if name not in METHODS:
        raise InputError(f"Unknown method {name!r}.", f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


register(
    MethodEntry(
        name="localise",
        title="Lesion localiser",
        does="Points at what a network was taught to find: in the bundled models, lesions made by a computer. "
        "One call a slice.",
        learnt_from="healthy brains with lesions made by a computer, unless the model's card says otherwise",
        implementation="diffusion_anomaly.methods.localise:Localise",
        options_type=LocaliseOptions,
        default_model="flair-localise",
        score_title="mean probability of a lesion",
        networks=("localiser",),
        declared=(*SLICES, "codec"),
        folded=("localiser", lambda channels: (1,)),
    )
)
register(
    MethodEntry(
        name="unsupervised",
        title="Unsupervised latent diffusion",
        does="Inpaints what a model of healthy brains finds improbable, and shows what changed.",
        learnt_from="healthy slices alone, no labels of disease",
        implementation="diffusion_anomaly.methods.unsupervised:Unsupervised",
        options_type=UnsupervisedOptions,
        default_model="flair-unsupervised",
        score_title="mean KL divergence of the latents (nats)",
        networks=("diffusion",),
        declared=DIFFUSION,
        calibrated=("calibration", "threshold", "score_range", "latent_threshold"),
        score_is_familiarity=True,
        presets={"paper": PAPER_UNSUPERVISED},
        noise_level_option="start_level",
    )
)
register(
    MethodEntry(
        name="guided",
        title="Classifier-guided diffusion",
        does="Leads the scan from diseased to healthy, and shows what had to change.",
        learnt_from="slices labelled healthy or diseased, no outlines",
        implementation="diffusion_anomaly.methods.guided:Guided",
        options_type=GuidedOptions,
        default_model="flair-guided",
        score_title="classifier's log-odds of disease",
        networks=("diffusion", "classifier"),
        declared=DIFFUSION,
        presets={"paper": PAPER_GUIDED},
        noise_level_option="level",
        guidance_scale_option="guidance_scale",
    )
)
register(
    MethodEntry(
        name="restore",
        title="One-step restoration",
        does="Removes in a few network calls what a network was taught to remove, and shows where.",
        learnt_from="healthy slices with lesions made by a computer",
        implementation="diffusion_anomaly.methods.restore:Restore",
        options_type=RestoreOptions,
        default_model="flair-restore",
        score_title="mean anomaly score before calibration",
        networks=("restorer",),
        declared=(*SLICES, "codec", "options.levels"),
        folded=("restorer", lambda channels: (channels, channels + 1)),
    )
)
register(
    MethodEntry(
        name="intensity",
        title="Intensity (baseline)",
        does="Shows what is brighter than the most common tissue: no network, the measure of the others.",
        learnt_from="nothing",
        implementation="diffusion_anomaly.methods.intensity:Intensity",
        options_type=IntensityOptions,
        default_model="flair-intensity",
        score_title="mean difference to ordinary tissue",
    )
)
