"""Method 1: inpaint only what the model finds improbable (Pinaya et al. 2022, arXiv 2206.03461).

A diffusion model of healthy latents says where a slice is improbable (a KL divergence, averaged over noise
levels that are independent of each other and therefore share batches), the slice is inpainted there and only
there, and the anomaly score is what changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from ..models.networks import Model
from ..models.schedule import add_noise, kl_map, step_grid, stochastic_transition, transition
from ..options import check_number
from ..registry import UnsupervisedOptions
from .base import (
    ProgressCallback,
    SliceBatch,
    SliceResult,
    clean_range,
    confine,
    draw_noise,
    fork,
    levels_of,
    reconstruction_error,
    require_levels,
    require_model,
    residual,
    to_model_range,
    to_unit_range,
)
from .latent_threshold import resolve_threshold


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
    """KL map, latent mask, inpainting inside the mask, weighted difference."""

    def run(
        self, batch: SliceBatch, model: Model | None, options: UnsupervisedOptions, progress: ProgressCallback
    ) -> SliceResult:
        """The anomaly score is the difference to the pseudo-healthy slice in normalised intensity, weighted by the
        smoothed mask.

        Raises:
            ModelError: for no model, no diffusion network, or no threshold.
            InputError: when a level is beyond the model's schedule, or the percentile cannot be had.
        """
        model = require_model(model, "unsupervised")
        threshold = resolve_threshold(options.latent_threshold, options.latent_percentile)
        found = self.improbability(batch, model, options, progress)
        mask = ((found.kl > threshold) & found.inside)[:, None].float()
        generators = fork(batch.generators)
        healthy = torch.stack(
            [
                to_unit_range(model.decode(inpaint(found.latent, mask, generators, model, options, progress)))
                for _ in range(options.n_reconstructions)
            ]
        ).mean(dim=0)
        images = batch.images.to(model.device, torch.float32)
        weight = gaussian_smooth(functional.interpolate(mask, images.shape[2:], mode="nearest"), options.mask_sigma)
        anomaly_map = residual(images, healthy, options.side, options.min_reference_intensity) * weight[:, 0]
        common = reconstruction_error(images, healthy, batch.brain)
        return SliceResult(
            confine(anomaly_map, batch.brain), found.score.float().cpu(), common, confine(healthy, batch.brain)
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
        return options.kl_levels * _samples_per_level(options) + options.n_reconstructions * options.steps


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


def inpaint(
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

    With ``eta`` above 0 the model's step adds noise of its own, drawn from the slice's generator; at 1 it is the
    paper's draw from the posterior, to which ``fresh_noise`` outside the mask belongs.

    With ``start_from_noise`` (ours) the walk starts from noise alone inside the mask. At level 500 a third of the
    amplitude of z0 is still in z_500, enough for a network that saw healthy slices only to bring a large lesion back.

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
    if options.start_from_noise:
        z = torch.where(mask > 0, noise, z)
    for t, s in pairwise(reversed(grid)):
        eps = model.eps(z, levels_of(t, z))
        if options.eta > 0:
            drawn = draw_noise(generators, latent.shape[1:], model)
            step = stochastic_transition(z, eps, t, s, model.schedule, drawn, options.eta, clamp)
        else:
            step = transition(z, eps, t, s, model.schedule, clamp)
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
