"""Method 2: a classifier's gradient leads a diseased slice to health (Wolleb et al. 2022, arXiv 2203.04306).

The slice is encoded without randomness up to a noise level, which keeps everything about it, and decoded with
the gradient of "healthy" added at each level. What had to change is the anomaly map. Nothing is drawn, so the seed
has no say. The same code serves pixel space and latent space: the codec is the identity in the first.

``clamp`` says whether the clean pixels that a step predicts are kept in their range. The paper's Algorithm 1 does not
("none"). Its published code clamps what the network predicts and adds guidance to that, unclamped ("before"). Ours
clamps what comes of both ("after"), so that guidance cannot leave the range of pixels. Noising, which has no guidance,
is clamped the same way in the last two.

A class-conditional network is told "healthy" both ways, as the published code tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..models.networks import HEALTHY, Model
from ..models.schedule import clamped_epsilon, second_order_epsilon, step_grid, transition
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
        noised = encode_up(latent, grid, model, progress, options.clamp, options.order)
        reconstruction = decode_guided(
            noised, grid, options.guidance_scale, model, progress, options.clamp, options.order
        )
        healthy = to_unit_range(model.decode(reconstruction))
        anomaly_map = residual(images, healthy, options.side, options.min_reference_intensity)
        common = reconstruction_error(images, healthy, batch.brain)
        return SliceResult(
            confine(anomaly_map, batch.brain), score.float().cpu(), common, confine(healthy, batch.brain)
        )

    def network_calls(self, options: GuidedOptions) -> int:
        """One network call each way and one classifier gradient a step."""
        return 3 * options.steps


def encode_up(
    x: Tensor, grid: list[int], model: Model, progress: ProgressCallback, clamp: str = "after", order: int = 1
) -> Tensor:
    """Clean ``(N, C, h, w)`` to the grid's last level without randomness: what ``decode_guided`` undoes.

    At the clean level the network is asked at ``t = 0``.
    """

    def predict(x: Tensor, t: int) -> Tensor:
        eps = model.eps(x, levels_of(t, x))
        progress(1)
        return eps

    return _walk(x, grid, predict, model, None if clamp == "none" else clean_range(model), order)


def decode_guided(
    x: Tensor,
    grid: list[int],
    guidance_scale: float,
    model: Model,
    progress: ProgressCallback,
    clamp: str = "after",
    order: int = 1,
) -> Tensor:
    """From the grid's last level to clean, with the noise shifted towards "healthy" (Wolleb et al. 2022).

    At each level ``eps_hat = eps - s * sqrt(1 - alpha_bar_t) * grad_x log C(healthy | x_t, t)``.
    """
    allowed = clean_range(model)

    def predict(x: Tensor, t: int) -> Tensor:
        levels = levels_of(t, x)
        eps = model.eps(x, levels)
        progress(1)
        if clamp == "before" and allowed is not None:
            eps = clamped_epsilon(x, eps, t, model.schedule, allowed)
        gradient = model.log_prob_gradient(x, levels, HEALTHY)
        progress(1)
        return eps - guidance_scale * (1.0 - model.schedule.alpha_bar(t)) ** 0.5 * gradient

    return _walk(x, grid[::-1], predict, model, allowed if clamp == "after" else None, order)


def _walk(
    x: Tensor,
    levels: Sequence[int],
    predict: Callable[[Tensor, int], Tensor],
    model: Model,
    clamp: tuple[float, float] | None,
    order: int,
) -> Tensor:
    """Through the levels one after the other, each step with the noise predicted at its start.

    Steps of order 2 use that of the step before too; the first has none, so it is of order 1.
    """
    before: tuple[Tensor, int] | None = None
    for t, s in pairwise(levels):
        eps = predict(x, t)
        if order == 1:
            x = transition(x, eps, t, s, model.schedule, clamp)
            continue
        if clamp is not None:
            eps = clamped_epsilon(x, eps, t, model.schedule, clamp)
        steered = eps if before is None else second_order_epsilon(eps, *before, t, s, model.schedule)
        x = transition(x, steered, t, s, model.schedule)
        before = eps, t
    return x


def disease_log_odds(latent: Tensor, model: Model) -> Tensor:
    """``log C(not healthy) - log C(healthy)`` of clean latents at the lowest level, ``(N,)``."""
    log_prob = model.log_prob(latent, levels_of(0, latent))
    diseased = [c for c in range(log_prob.shape[1]) if c != HEALTHY]
    return torch.logsumexp(log_prob[:, diseased], dim=1) - log_prob[:, HEALTHY]
