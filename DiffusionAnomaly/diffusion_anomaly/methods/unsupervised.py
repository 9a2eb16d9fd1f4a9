"""Method 1: heal only what the model finds improbable (Pinaya et al. 2022, arXiv 2206.03461).

A diffusion model of healthy latents says where a slice is improbable (a KL divergence, averaged over noise
levels that are independent of each other and therefore share batches), the slice is healed there and only
there, and heat is what changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..diffusion import add_noise, kl_map, step_grid, transition
from ..errors import InputError, ModelError
from ..networks import Model
from .base import (
    SIDES,
    ProgressCallback,
    SliceBatch,
    SliceResult,
    clean_range,
    confine,
    draw_noise,
    fork,
    levels_of,
    misfit,
    require_levels,
    require_model,
    residual,
    to_model_range,
    to_unit_range,
)
from .latent_threshold import resolve_threshold
from .options import MethodOptions, check_number, choice, flag, number


@dataclass(frozen=True)
class UnsupervisedOptions(MethodOptions):
    """Options of the unsupervised method. Levels are indices: -1 is clean, 0 the least noise.

    ``start_level``, ``kl_from``, ``kl_to`` and ``latent_percentile`` default to the paper's. The number of
    levels, the antithetic pairs, the smoothing, ``forget`` and ``healings`` are ours.

    ``latent_threshold`` is a number, a ``(h, w)`` nested list (one number a latent position), or the
    object that a package carries: ``{"percentile": p, "value": number or nested list,
    "table": [[percentile, value], ...]}``. The table is optional and lets ``latent_percentile`` be chosen.
    """

    steps: int = number(20, 1, 1000, "levels walked when healing; at most start_level + 1")
    start_level: int = number(500, 0, 999, "noise level healing starts from")
    kl_from: int = number(400, 1, 999, "first noise level of the KL map")
    kl_to: int = number(600, 2, 1000, "end of the KL map's levels, itself not included")
    kl_levels: int = number(8, 1, 999, "how many levels between kl_from and kl_to the KL map averages")
    noise_draws: int = number(1, 1, 100, "noise draws at each of these levels")
    antithetic: bool = flag(True, "draw each noise with its negative, which cuts the KL map's variance")
    kl_sigma: float = number(0.0, 0.0, 10.0, "Gaussian smoothing of the KL map, latent pixels")
    latent_percentile: float = number(97.5, 0.0, 100.0, "healthy percentile a healed latent is above")
    latent_threshold: Any = field(default=None, metadata={"about": "KL above which a latent is healed"})
    mask_sigma: float = number(2.0, 0.0, 50.0, "Gaussian smoothing of the upsampled mask, pixels")
    fresh_noise: bool = flag(False, "noise the known part anew at each level of healing")
    forget: bool = flag(False, "start healing from noise alone inside the mask, so that no trace of it is kept")
    healings: int = number(1, 1, 100, "healed versions averaged, each from noise of its own")
    side: str = choice("both", SIDES, "which differences count; the paper takes both")
    floor: float = number(0.0, 0.0, 1.0, "intensity that a bright lesion is at least brighter than")

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = self.start_level + 1
        if self.steps > levels:
            raise InputError(
                f"Option steps is {self.steps}, more than the {levels} noise levels up to start_level.",
                f"Use 1 to {levels} steps, or a higher start_level.",
            )
        check_number("kl_to", self.kl_to, self.kl_from + 1, 1000, whole=True)
        check_number("kl_levels", self.kl_levels, 1, self.kl_to - self.kl_from, whole=True)

    @property
    def kl_grid(self) -> list[int]:
        """The levels the KL map averages: the middles of ``kl_levels`` equal parts of [kl_from, kl_to)."""
        span = self.kl_to - self.kl_from
        return [self.kl_from + (2 * i + 1) * span // (2 * self.kl_levels) for i in range(self.kl_levels)]


@dataclass(frozen=True)
class Improbability:
    """Where and how much the model of healthy latents disbelieves a slice.

    Attributes:
        latent: ``(N, C, h, w)`` the encoded slices z0.
        kl: ``(N, h, w)`` KL divergence in nats, summed over channels, averaged over levels, smoothed by
            ``kl_sigma``: the quantity whose healthy percentile is ``latent_threshold``.
        inside: ``(N, h, w)`` bool, latent positions that touch the brain.
        score: ``(N,)`` the unsmoothed KL averaged over ``inside``; 0 for a slice without brain.
    """

    latent: Tensor
    kl: Tensor
    inside: Tensor
    score: Tensor


class Unsupervised:
    """KL map, latent mask, healing inside the mask, weighted difference."""

    name = "unsupervised"
    title = "Unsupervised latent diffusion"
    has_network = True
    score_title = "mean KL divergence of the brain's latents (nats)"
    score_is_familiarity = True
    options_type = UnsupervisedOptions

    def run(
        self, batch: SliceBatch, model: Model | None, options: UnsupervisedOptions, progress: ProgressCallback
    ) -> SliceResult:
        """Heat is the difference to the healed slice in normalised intensity, weighted by the smoothed mask.

        Raises:
            ModelError: for no model, no diffusion network, or no threshold of the latents' size.
            InputError: when a level is beyond the model's schedule, or the percentile cannot be had.
        """
        model = require_model(model, self.name)
        threshold = resolve_threshold(options.latent_threshold, options.latent_percentile)
        found = self.improbability(batch, model, options, progress)
        if threshold.ndim and threshold.shape != found.kl.shape[1:]:
            raise ModelError(
                f"The latent threshold is {tuple(threshold.shape)}, the latents {tuple(found.kl.shape[1:])}.",
                "Use a number, or one number a latent position.",
            )
        mask = ((found.kl > threshold.to(found.kl.device)) & found.inside)[:, None].float()
        generators = fork(batch.generators)
        healthy = torch.stack(
            [
                to_unit_range(model.decode(heal(found.latent, mask, generators, model, options, progress)))
                for _ in range(options.healings)
            ]
        ).mean(dim=0)
        images = batch.images.to(model.device, torch.float32)
        weight = gaussian_smooth(functional.interpolate(mask, images.shape[2:], mode="nearest"), options.mask_sigma)
        heat = residual(images, healthy, options.side, options.floor) * weight[:, 0]
        common = misfit(images, healthy, batch.brain)
        return SliceResult(
            confine(heat, batch.brain), found.score.float().cpu(), common, confine(healthy[:, 0], batch.brain)
        )

    def improbability(
        self, batch: SliceBatch, model: Model, options: UnsupervisedOptions, progress: ProgressCallback
    ) -> Improbability:
        """The KL map alone: the same code learns the threshold from healthy slices and applies it."""
        require_levels(model, kl_to=options.kl_to)
        check_number("start_level", options.start_level, 0, model.schedule.levels - 1, whole=True)
        latent = model.encode(to_model_range(batch.images.to(model.device, torch.float32)))
        brain = batch.brain.to(model.device).float()
        inside = functional.adaptive_max_pool2d(brain, latent.shape[2:])
        kl = latent_kl(latent, batch.generators, model, options, progress)[:, None]
        score = (kl * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp_min(1.0)
        if options.kl_sigma > 0:
            # Divided by the smoothed brain, so that the background does not dim the brain's rim.
            around = gaussian_smooth(inside, options.kl_sigma).clamp_min(1e-6)
            kl = gaussian_smooth(kl * inside, options.kl_sigma) / around
        return Improbability(latent, kl[:, 0], inside[:, 0] > 0, score)

    def network_calls(self, options: UnsupervisedOptions) -> int:
        return options.kl_levels * _samples_per_level(options) + options.healings * options.steps


def latent_kl(
    latent: Tensor,
    generators: Sequence[torch.Generator],
    model: Model,
    options: UnsupervisedOptions,
    progress: ProgressCallback,
) -> Tensor:
    """KL between ``q(z_{t-1} | z_t, z_0)`` and ``p_theta(z_{t-1} | z_t)``, ``(N, C, h, w)`` to ``(N, h, w)``.

    Summed over channels, averaged over ``options.kl_grid`` and the noise draws. Levels are independent, so as
    many share a network call as fill one. However they are grouped, noise is drawn level by level and the
    levels are added up one by one, in float64: the grouping, which depends on the batch, must not decide
    whether a latent lies above the threshold.
    """
    count, samples = len(latent), _samples_per_level(options)
    total = torch.zeros((count, *latent.shape[2:]), dtype=torch.float64, device=latent.device)
    for group in _groups(options.kl_grid, max(1, model.chunk // (count * samples))):
        noise = torch.cat([n for _ in group for n in _level_noise(latent, generators, model, options)])
        levels = torch.tensor(group, device=latent.device).repeat_interleave(count * samples)
        noised = add_noise(latent.repeat(len(group) * samples, 1, 1, 1), noise, levels, model.schedule)
        divergence = kl_map(noise, model.eps(noised, levels), levels, model.schedule).to(total).sum(dim=1)
        for sample in divergence.split(count):
            total += sample
        progress(len(group) * samples)
    return (total / (options.kl_levels * samples)).float().to(latent.device)


def heal(
    latent: Tensor,
    mask: Tensor,
    generators: Sequence[torch.Generator],
    model: Model,
    options: UnsupervisedOptions,
    progress: ProgressCallback,
) -> Tensor:
    """Walk from ``z_start ~ q(z_start | z0)`` to clean, letting the model decide inside ``mask`` only.

    At each level ``z <- m * (model's step) + (1 - m) * (z0 noised to that level)``. The known part is noised
    with the one draw that the walk started from, unless ``fresh_noise``: the model's step is deterministic,
    so inside the mask the same noise is still there, and with any other one outside, the two halves of what
    the network sees would not belong together.

    With ``forget`` (ours) the walk starts from noise alone inside the mask. At level 500 a third of the amplitude
    of z0 is still in z_500, enough for a network that saw healthy slices only to bring a large lesion back.

    Args:
        latent: ``(N, C, h, w)`` z0.
        mask: ``(N, 1, h, w)`` of 0 and 1.
        generators: one a slice.
        model, options, progress: as in ``Unsupervised.run``.

    Returns:
        ``(N, C, h, w)``; exactly z0 where the mask is 0.
    """
    clamp = clean_range(model)
    noise = draw_noise(generators, latent.shape[1:], model)
    grid = step_grid(options.start_level, options.steps)
    z = add_noise(latent, noise, grid[-1], model.schedule)
    if options.forget:
        z = torch.where(mask > 0, noise, z)
    for t, s in pairwise(reversed(grid)):
        step = transition(z, model.eps(z, levels_of(t, z)), t, s, model.schedule, clamp)
        if options.fresh_noise:
            noise = draw_noise(generators, latent.shape[1:], model)
        z = torch.where(mask > 0, step, add_noise(latent, noise, s, model.schedule))
        progress(1)
    return z


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(N, 1, H, W)`` with edges repeated, cut off at four sigma; ``sigma`` in pixels."""
    if sigma <= 0:
        return maps
    radius = int(4.0 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(maps)
    padded = functional.pad(maps, (radius, radius, radius, radius), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _samples_per_level(options: UnsupervisedOptions) -> int:
    return options.noise_draws * (2 if options.antithetic else 1)


def _level_noise(
    latent: Tensor, generators: Sequence[torch.Generator], model: Model, options: UnsupervisedOptions
) -> Iterator[Tensor]:
    """One level's noise, each ``(N, C, h, w)``: every draw, and its negative if antithetic.

    The negative cancels, in the average, all that is odd in the noise.
    """
    for _ in range(options.noise_draws):
        noise = draw_noise(generators, latent.shape[1:], model)
        yield noise
        if options.antithetic:
            yield -noise


def _groups(levels: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(levels), size):
        yield levels[start : start + size]
