"""The methods in words and ranges, for whoever chooses one and may not import torch, such as Slicer's own process.

The registry in ``methods`` is what runs; it imports torch. What is said here of it is compared with it by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import InputError


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
class MethodGuide:
    """A method as it is offered.

    Attributes:
        name: as in the registry, on the command line and in packages.
        title: for people.
        does: in one sentence, what it does.
        learnt_from: which labels its model was trained on.
        steps: how many steps may be walked; None for a method without steps.
        noise_level: from or through which level of noise; None where there is no such choice.
        guidance_scale: how strongly it is led to health; None where there is no such choice.
    """

    name: str
    title: str
    does: str
    learnt_from: str
    steps: NumberRange | None = None
    noise_level: NumberRange | None = None
    guidance_scale: NumberRange | None = None
    has_network: bool = True
    numbers: Mapping[str, NumberRange] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = (self.steps, self.noise_level, self.guidance_scale)
        object.__setattr__(self, "numbers", {number.name: number for number in given if number is not None})


# The one that evaluations put first; see docs/evaluation.md.
DEFAULT_METHOD = "localise"

METHOD_GUIDES = (
    MethodGuide(
        "localise",
        "Lesion localiser",
        "Points at what a network was taught to find in healthy brains: lesions made by a computer. One call a slice.",
        "healthy brains with lesions made by a computer, no outlines of real ones",
    ),
    MethodGuide(
        "unsupervised",
        "Unsupervised latent diffusion",
        "Heals what a model of healthy brains finds improbable, and shows what changed.",
        "healthy slices alone, no labels of disease",
        steps=NumberRange("steps", 20, 1, 1000),
        noise_level=NumberRange("start_level", 500, 0, 999),
    ),
    MethodGuide(
        "guided",
        "Classifier-guided diffusion",
        "Leads the scan from diseased to healthy, and shows what had to change.",
        "slices labelled healthy or diseased, no outlines",
        steps=NumberRange("steps", 50, 1, 1000),
        noise_level=NumberRange("level", 500, 1, 1000),
        guidance_scale=NumberRange("guidance_scale", 100.0, 0.0, 1e6),
    ),
    MethodGuide(
        "restore",
        "One-step restoration",
        "Removes in a few network calls what a network was taught to remove, and shows where.",
        "healthy slices with lesions made by a computer",
        steps=NumberRange("steps", 3, 1, 1000),
    ),
    MethodGuide(
        "intensity",
        "Intensity (baseline)",
        "Shows what is brighter than the most common tissue: no network, the measure of the others.",
        "nothing",
        has_network=False,
    ),
)


def guide_to(method: str) -> MethodGuide:
    """The guide to a method.

    Raises:
        InputError: when there is no such method.
    """
    for guide in METHOD_GUIDES:
        if guide.name == method:
            return guide
    names = ", ".join(guide.name for guide in METHOD_GUIDES)
    raise InputError(f"Unknown method {method!r}.", f"Choose one of {names}.")
