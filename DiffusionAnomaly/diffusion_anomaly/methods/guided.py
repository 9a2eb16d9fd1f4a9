"""Method 2: a classifier's gradient leads a diseased slice to health (Wolleb et al. 2022, arXiv 2203.04306).

The slice is encoded without randomness up to a noise level, which keeps everything about it, and decoded with
the gradient of "healthy" added at each level. What had to change is the anomaly map. Nothing is drawn, so the seed
has no say. The same code serves pixel space and latent space: the codec is the identity in the first.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..models.networks import Model
from ..models.schedule import step_grid, transition
from ..registry import GuidedOptions
from .base import (
    ProgressCallback,
    SliceBatch,
    SliceResult,
    clean_range,
    confine,
    levels_of,
    reconstruction_error,
    require_levels,
    require_model,
    residual,
    to_model_range,
    to_unit_range,
)

HEALTHY = 0
"""The classifier's class for a slice without disease."""


class Guided:
    """Encode deterministically, decode towards "healthy", report the difference."""

    def run(
        self, batch: SliceBatch, model: Model | None, options: GuidedOptions, progress: ProgressCallback
    ) -> SliceResult:
        """The anomaly score is the difference to the pseudo-healthy reconstruction in normalised intensity, summed over
        channels.

        The score is the classifier's log-odds of disease for the clean slice asked at ``t = 0``, the least
        noise it was trained on.

        Raises:
            ModelError: when the model has no diffusion network or no classifier.
            InputError: when ``level`` is beyond the model's schedule.
        """
        model = require_model(model, "guided")
        require_levels(model, level=options.level)
        images = batch.images.to(model.device, torch.float32)
        latent = model.encode(to_model_range(images))
        score = disease_log_odds(latent, model)
        grid = step_grid(options.level - 1, options.steps)
        noised = encode_up(latent, grid, model, progress)
        reconstruction = decode_guided(noised, grid, options.guidance_scale, model, progress)
        healthy = to_unit_range(model.decode(reconstruction))
        anomaly_map = residual(images, healthy, options.side, options.min_reference_intensity)
        common = reconstruction_error(images, healthy, batch.brain)
        return SliceResult(
            confine(anomaly_map, batch.brain), score.float().cpu(), common, confine(healthy, batch.brain)
        )

    def network_calls(self, options: GuidedOptions) -> int:
        """One network call each way and one classifier gradient a step."""
        return 3 * options.steps


def encode_up(x: Tensor, grid: list[int], model: Model, progress: ProgressCallback) -> Tensor:
    """Clean ``(N, C, h, w)`` to the grid's last level without randomness: what ``decode_guided`` undoes.

    At the clean level the network is asked at ``t = 0``.
    """
    clamp = clean_range(model)
    for t, s in pairwise(grid):
        eps = model.eps(x, levels_of(t, x))
        x = transition(x, eps, t, s, model.schedule, clamp)
        progress(1)
    return x


def decode_guided(
    x: Tensor, grid: list[int], guidance_scale: float, model: Model, progress: ProgressCallback
) -> Tensor:
    """From the grid's last level to clean, with the noise shifted towards "healthy" (Wolleb et al. 2022).

    At each level ``eps_hat = eps - s * sqrt(1 - alpha_bar_t) * grad_x log C(healthy | x_t, t)``.
    """
    clamp = clean_range(model)
    for t, s in pairwise(reversed(grid)):
        levels = levels_of(t, x)
        eps = model.eps(x, levels)
        progress(1)
        gradient = model.log_prob_gradient(x, levels, HEALTHY)
        progress(1)
        eps = eps - guidance_scale * (1.0 - model.schedule.alpha_bar(t)) ** 0.5 * gradient
        x = transition(x, eps, t, s, model.schedule, clamp)
    return x


def disease_log_odds(latent: Tensor, model: Model) -> Tensor:
    """``log C(not healthy) - log C(healthy)`` of clean latents at the lowest level, ``(N,)``."""
    log_prob = model.log_prob(latent, levels_of(0, latent))
    diseased = [c for c in range(log_prob.shape[1]) if c != HEALTHY]
    return torch.logsumexp(log_prob[:, diseased], dim=1) - log_prob[:, HEALTHY]
