"""What a method is: slices in, anomaly scores out; and the noise, ranges and residual that the methods share.

A method's file imports from here and never from its siblings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError, ModelError
from ..models.networks import Model
from ..models.schedule import pyramid_noise
from ..options import words_by_channel
from ..text import counted

ProgressCallback = Callable[[int], None]
"""Takes the network calls a slice since the last report; raises ``Cancelled`` to stop the method."""

# Any odd number far from small ones: 2**64 divided by the golden ratio.
_SECOND_USE = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class SliceBatch:
    """Slices of one volume on the model's grid.

    Attributes:
        images: ``(N, C, H, W)`` float32, normalised intensity in [0, 1], 0 outside the brain.
        brain: ``(N, 1, H, W)`` bool.
        generators: one CPU generator a slice, so that a slice's noise never depends on its companions.
        slabs: ``(N, (2 k + 1) C, H, W)`` float32, each slice between its ``k`` neighbours on either side, slice by
            slice from below; 0 where there is no neighbour. None for models that see a slice alone.
    """

    images: Tensor
    brain: Tensor
    generators: Sequence[torch.Generator]
    slabs: Tensor | None = None

    def __post_init__(self) -> None:
        count, _, height, width = self.images.shape if self.images.ndim == 4 else (-1, -1, -1, -1)
        if self.brain.shape != (count, 1, height, width):
            raise InputError(
                f"Slices have shape {tuple(self.images.shape)} and brain {tuple(self.brain.shape)}.",
                "They must be (N, C, H, W) and (N, 1, H, W).",
            )
        if len(self.generators) != len(self.images):
            raise InputError(f"{len(self.images)} slices came with {len(self.generators)} random generators.")
        if self.slabs is not None and (
            self.slabs.shape[1] % self.images.shape[1]
            or self.slabs.shape[1] // self.images.shape[1] % 2 == 0
            or self.slabs.shape[::2] != self.images.shape[::2]
            or self.slabs.shape[3] != self.images.shape[3]
        ):
            raise InputError(
                f"Slices have shape {tuple(self.images.shape)} and slabs {tuple(self.slabs.shape)}.",
                "Slabs must be (N, an odd number of slices with as many channels, H, W).",
            )

    @property
    def seen(self) -> Tensor:
        """What a network is shown: the slabs, or the slices alone ``(N, C, H, W)``."""
        return self.images if self.slabs is None else self.slabs


@dataclass(frozen=True)
class SliceResult:
    """What a method found.

    Attributes:
        anomaly_map: ``(N, H, W)`` float32 on the CPU, raw units, >= 0, exactly 0 outside the brain.
        score: ``(N,)`` float32 on the CPU, one number a slice; see ``Method.score_title``.
        reconstruction_error: ``(N,)`` float32 on the CPU, how far the slice's brain commonly is from its pseudo-healthy
            reconstruction, see
            ``reconstruction_error``; None for a method without one.
        reconstruction: ``(N, C, H, W)`` float32 on the CPU, the slice as the model would have it, normalised intensity,
            0 outside the brain; None for a method without one.
    """

    anomaly_map: Tensor
    score: Tensor
    reconstruction_error: Tensor | None = None
    reconstruction: Tensor | None = None


class Method(Protocol):
    """Slices in, anomaly scores out. What else is known of a method stands in ``registry``."""

    def run(self, batch: SliceBatch, model: Model | None, options: Any, progress: ProgressCallback) -> SliceResult:
        """Anomaly scores and score of a batch; what ``progress`` is given adds up to ``network_calls(options)``."""
        ...

    def network_calls(self, options: Any) -> int:
        """How many times the networks see each slice: what ``Model.calls`` grows by, per slice."""
        ...


def require_model(model: Model | None, method: str) -> Model:
    """The model, or a ``ModelError`` when there is none."""
    if model is None:
        raise ModelError(f"The method {method!r} needs a model package and got none.", "Choose one.")
    return model


def require_levels(model: Model, **at_most: int) -> None:
    """Refuse options, given as ``name=value``, that are larger than the model's number of levels."""
    levels = model.schedule.levels
    for name, value in at_most.items():
        if value > levels:
            raise InputError(
                f"Option {name} is {value}, but the model has {counted(levels, 'level')}.",
                f"Use at most {levels}.",
            )


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int], model: Model) -> Tensor:
    """The model's kind of noise ``(N, *shape)``, one draw from each slice's own CPU generator, on its device."""
    noise = [pyramid_noise((1, *shape), generator, model.noise_pyramid) for generator in generators]
    return torch.cat(noise).to(model.device)


def fork(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """Generators of their own for a second use, seeded by the first's seeds alone.

    What the first has drawn so far then has no say: inpainting starts from the same noise however many levels the KL
    map averages, so that few steps can be compared with many.
    """
    return [torch.Generator().manual_seed((g.initial_seed() + _SECOND_USE) % 2**63) for g in generators]


def to_model_range(images: Tensor) -> Tensor:
    """[0, 1] to the [-1, 1] that codecs are trained on; the background becomes -1."""
    return images * 2.0 - 1.0


def to_unit_range(images: Tensor) -> Tensor:
    """[-1, 1] back to [0, 1], clipped as the normalised input is."""
    return ((images + 1.0) * 0.5).clamp(0.0, 1.0)


def clean_range(model: Model) -> tuple[float, float] | None:
    """The range of clean pixels for a codec that keeps them; None for latents, which have no range."""
    if not model.codec.is_pixel:
        return None
    ends = [(end - model.codec.shift) * model.codec.scale for end in (-1.0, 1.0)]
    return float(ends[0].min()), float(ends[1].max())


def levels_of(t: int, like: Tensor) -> Tensor:
    """Level ``t`` for each sample of a batch, ``(N,)``; the clean level asks the network at its first one."""
    return torch.full((len(like),), max(t, 0), dtype=torch.long, device=like.device)


def residual(images: Tensor, healthy: Tensor, side: str, min_reference_intensity: float = 0.0) -> Tensor:
    """How far the scan is from its pseudo-healthy reconstruction, ``(N, C, H, W)`` to ``(N, H, W)``: summed over
    channels.

    Args:
        images: the scan's slices.
        healthy: the same slices as the model would have them.
        side: "both" for the absolute difference (both papers), "bright" for where the scan is brighter only,
            "dark" for where it is darker only; or one word a channel, of which "none" leaves a channel out.
        min_reference_intensity: what the scan is brighter than counts from here on at the earliest, in normalised
            intensity (ours). A bright lesion is brighter than most of the brain, which a furrow that the model made too
            dark is not.
    """
    brighter = (images - healthy.clamp_min(min_reference_intensity)).clamp_min(0.0)
    darker = (healthy - images).clamp_min(0.0)
    counted = {"both": brighter + darker, "bright": brighter, "dark": darker, "none": torch.zeros_like(brighter)}
    sides = words_by_channel("side", side, images.shape[1])
    return torch.stack([counted[word][:, channel] for channel, word in enumerate(sides)]).sum(dim=0)


def reconstruction_error(images: Tensor, healthy: Tensor, brain: Tensor) -> Tensor:
    """The difference that three quarters of a slice's brain stay below, ``(N,)`` on the CPU; 0 without brain.

    A lesion does not move it as long as it fills less than a quarter. What moves it is how well the model knows such
    scans: their noise, contrast and sharpness.

    Args:
        images, healthy: ``(N, C, H, W)``; differences are summed over channels.
        brain: ``(N, 1, H, W)`` bool.
    """
    differences = (images - healthy).abs().sum(dim=1, keepdim=True).float().cpu()
    inside = brain.cpu()
    return torch.stack(
        [
            one[mask].quantile(0.75) if bool(mask.any()) else torch.zeros(())
            for one, mask in zip(differences, inside, strict=True)
        ]
    )


def confine(values: Tensor, brain: Tensor) -> Tensor:
    """``(N, H, W)`` or ``(N, C, H, W)`` on the CPU as float32, exactly 0 outside ``brain`` ``(N, 1, H, W)``."""
    values, inside = values.float().cpu(), brain.cpu()
    return torch.where(inside if values.ndim == 4 else inside[:, 0], values, torch.zeros_like(values))
