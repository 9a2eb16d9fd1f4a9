"""The noise schedule, the one transition between noise levels, and the KL terms: pure functions on tensors.

Owned rather than taken from a library because encoding and decoding must walk the same list of levels to meet
exactly. MONAI 1.6's ``DDIMScheduler.step`` and ``reversed_step`` disagree about the stride, and ``reversed_step``
has no way to reach the last level.

Conventions: ``T`` noise levels ``t = 0 … T-1``; level ``-1`` means clean, where ``alpha_bar = 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from ..text import counted

CLEAN = -1
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a diffusion model (Ho et al. 2020, eq. 2-4).

    Attributes:
        betas: ``(T,)`` float64 noise variance added by each level.
        alphas_cumprod: ``(T,)`` float64, the product of ``1 - betas`` up to and including each level.
    """

    betas: Tensor
    alphas_cumprod: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor) -> Schedule:
        betas = betas.double()
        return cls(betas, torch.cumprod(1.0 - betas, 0))

    @classmethod
    def linear(cls, levels: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
        """Betas equally spaced, as in Wolleb et al. 2022."""
        return cls.from_betas(torch.linspace(start, end, levels, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, levels: int = 1000, start: float = 0.0015, end: float = 0.0195) -> Schedule:
        """Square roots of the betas equally spaced, as in Pinaya et al. 2022."""
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, levels, dtype=torch.float64) ** 2)

    @classmethod
    def named(cls, kind: str, levels: int = 1000) -> Schedule:
        kinds = {"linear": cls.linear, "scaled_linear": cls.scaled_linear}
        if kind not in kinds:
            raise InputError(f"Unknown noise schedule {kind!r}.", f"Choose one of {', '.join(kinds)}.")
        return kinds[kind](levels)

    @property
    def levels(self) -> int:
        return len(self.betas)

    def alpha_bar(self, t: int | Tensor) -> float | Tensor:
        """``alpha_bar`` at level ``t``: a float for an int, else a float32 ``(N, 1, 1, 1)`` on ``t``'s device.

        Raises:
            InputError: for a level below -1 or beyond the last.
        """
        check_levels(t, CLEAN, self.levels - 1)
        if isinstance(t, int):
            return 1.0 if t == CLEAN else float(self.alphas_cumprod[t])
        table = torch.cat([self.alphas_cumprod, torch.ones(1, dtype=torch.float64)]).to(t.device)
        return table[t].float().view(-1, 1, 1, 1)  # index -1 is the appended one: clean


def check_levels(t: int | Tensor, lowest: int, highest: int | None = None) -> None:
    """Refuse levels that are none: an index below 0 would silently count from the other end.

    Raises:
        InputError: naming the first level out of range.
    """
    levels = [t] if isinstance(t, int) else t.flatten().tolist()
    for level in levels:
        if level < lowest or (highest is not None and level > highest):
            known = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
            raise InputError(f"There is no noise level {level} here.", f"Use {known}.")


def pyramid_noise(shape: Sequence[int], generator: torch.Generator, discount: float) -> Tensor:
    """Normal noise ``(N, C, h, w)`` on the CPU, of unit deviation in each sample where there is a pyramid.

    White noise leaves what is large and even readable at every level: over a lesion of hundreds of pixels it averages
    out. Noise that is summed over a pyramid of resolutions hides large things as well as small ones (Frotscher et al.
    2023, "Unsupervised Anomaly Detection using Aggregated Normative Diffusion").

    Args:
        shape: of the noise.
        generator: on the CPU.
        discount: weight of each resolution relative to the next finer one; 0 for white noise. A single pixel has no
            coarser resolution and no deviation of its own: its noise is white whatever the discount.
    """
    noise = torch.randn(tuple(shape), generator=generator)
    size, weight = tuple(shape[2:]), 1.0
    if discount == 0 or size == (1, 1):
        return noise
    while min(size) > 1:
        size, weight = tuple(max(1, length // 2) for length in size), weight * discount
        coarse = torch.randn((*shape[:2], *size), generator=generator)
        noise = noise + weight * functional.interpolate(coarse, tuple(shape[2:]), mode="bilinear")
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def step_grid(last: int, steps: int) -> list[int]:
    """The explicit levels both directions walk: strictly increasing from -1 to ``last``, ``steps`` transitions.

    Raises:
        InputError: for no steps, or for more steps than there are levels up to ``last``.
    """
    if steps < 1:
        raise InputError(f"{steps} steps were asked for.", "Use at least 1.")
    if steps > last + 1:
        raise InputError(
            f"{steps} steps were asked for, of {counted(last + 1, 'noise level')} up to level {last}.",
            f"Use at most {counted(last + 1, 'step')}.",
        )
    # Distances between neighbours are at least 1 because steps <= last + 1, so rounding keeps them apart.
    return [CLEAN + (i * (last + 1)) // steps for i in range(steps + 1)]


def network_level(t: int) -> int:
    """The level the network is asked at: its first one when the image is clean.

    Raises:
        InputError: for a level below -1.
    """
    check_levels(t, CLEAN)
    return max(t, 0)


def add_noise(x0: Tensor, noise: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """Draw from ``q(x_t | x_0)`` with the given standard normal ``noise`` (Ho et al. 2020, eq. 4)."""
    alpha_bar = schedule.alpha_bar(t)
    return alpha_bar**0.5 * x0 + (1.0 - alpha_bar) ** 0.5 * noise


def velocity(x0: Tensor, noise: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """The target of a v-predicting network (Salimans & Ho 2022, eq. 6)."""
    alpha_bar = schedule.alpha_bar(t)
    return alpha_bar**0.5 * noise - (1.0 - alpha_bar) ** 0.5 * x0


def to_epsilon(output: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule, prediction_type: str) -> Tensor:
    """A network's output as the noise it predicts. The one place where v becomes epsilon."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        alpha_bar = schedule.alpha_bar(t)
        return alpha_bar**0.5 * output + (1.0 - alpha_bar) ** 0.5 * x_t
    raise InputError(f"Unknown prediction type {prediction_type!r}.", f"Choose one of {', '.join(PREDICTION_TYPES)}.")


def predict_x0(x_t: Tensor, eps: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """The clean image that ``x_t`` and the predicted noise imply (Song et al. 2021, eq. 9)."""
    alpha_bar = schedule.alpha_bar(t)
    return (x_t - (1.0 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def transition(
    x_t: Tensor, eps: Tensor, t: int, s: int, schedule: Schedule, clamp: tuple[float, float] | None = None
) -> Tensor:
    """Move from level ``t`` to level ``s``, up or down the chain, without randomness (DDIM, Song et al. 2021).

    Args:
        x_t: ``(N, C, H, W)`` at level ``t``.
        eps: the predicted noise, of the same shape.
        t: where ``x_t`` is; -1 means clean.
        s: where to go; -1 means clean.
        schedule: the noise levels.
        clamp: range of the clean image for models in pixel space; the noise is then recomputed from the clamped
            image, so that the two stay consistent. Latents have no range and are never clamped.

    Returns:
        ``x_s``, of the same shape.
    """
    x0 = predict_x0(x_t, eps, t, schedule)
    if clamp is not None and t != CLEAN:
        x0 = x0.clamp(*clamp)
        eps = epsilon_of(x_t, x0, t, schedule)
    return add_noise(x0, eps, s, schedule)


def stochastic_transition(
    x_t: Tensor,
    eps: Tensor,
    t: int,
    s: int,
    schedule: Schedule,
    noise: Tensor,
    eta: float = 1.0,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """Move down from level ``t`` to ``s`` with fresh noise (Song et al. 2021, eq. 12 and 16).

    With ``eta`` 1 it draws from the posterior of DDPM, ``q(x_s | x_t, x_0)`` with the predicted clean image (Ho et al.
    2020, eq. 6 and 7); with 0 it is ``transition``.

    Args:
        x_t, eps, t, s, schedule, clamp: as for ``transition``; ``s`` is below ``t``.
        noise: standard normal, of the same shape; the clean level takes none of it.
        eta: share of the posterior's standard deviation.
    """
    before, after = float(schedule.alpha_bar(t)), float(schedule.alpha_bar(s))
    variance = eta**2 * (1.0 - after) / (1.0 - before) * (1.0 - before / after)
    if clamp is not None:
        eps = clamped_epsilon(x_t, eps, t, schedule, clamp)
    x0 = predict_x0(x_t, eps, t, schedule)
    return after**0.5 * x0 + (1.0 - after - variance) ** 0.5 * eps + variance**0.5 * noise


def epsilon_of(x_t: Tensor, x0: Tensor, t: int, schedule: Schedule) -> Tensor:
    """The noise in ``x_t`` when ``x0`` is the clean image; there is none at the clean level."""
    alpha_bar = schedule.alpha_bar(t)
    return (x_t - alpha_bar**0.5 * x0) / (1.0 - alpha_bar) ** 0.5


def clamped_epsilon(x_t: Tensor, eps: Tensor, t: int, schedule: Schedule, clamp: tuple[float, float]) -> Tensor:
    """The noise that goes with the predicted clean image once this is clamped to its range.

    At the clean level, where any noise goes with the image, it stays as it is.
    """
    if t == CLEAN:
        return eps
    return epsilon_of(x_t, predict_x0(x_t, eps, t, schedule).clamp(*clamp), t, schedule)


def noise_to_signal(t: int, schedule: Schedule) -> float:
    """``sqrt((1 - alpha_bar_t) / alpha_bar_t)``: the time in which a transition is a straight step.

    With ``y = x / sqrt(alpha_bar)`` a transition is ``y_s = y_t + (sigma_s - sigma_t) eps``, Euler's method for the
    probability flow ``dy / d sigma = eps`` (Song et al. 2021, eq. 14).
    """
    alpha_bar = float(schedule.alpha_bar(t))
    return ((1.0 - alpha_bar) / alpha_bar) ** 0.5


def second_order_epsilon(eps: Tensor, before: Tensor, t_before: int, t: int, s: int, schedule: Schedule) -> Tensor:
    """The noise with which one transition becomes a second-order step (Adams and Bashforth, unequal steps).

    It extrapolates from the noise at the level before and at this one to the middle of the step, in the time of
    ``noise_to_signal``, so no further network call is needed.

    Args:
        eps: predicted at level ``t``.
        before: predicted at ``t_before``, where the step to ``t`` began.
        t_before, t, s: neighbouring levels of the walk, up or down.
        schedule: the noise levels.
    """
    past, now, then = (noise_to_signal(level, schedule) for level in (t_before, t, s))
    weight = (then - now) / (now - past) / 2.0
    return eps + weight * (eps - before)


def posterior_variance(schedule: Schedule) -> Tensor:
    """Variance of ``q(x_{t-1} | x_t, x_0)`` for every level, ``(T,)`` float64 (Ho et al. 2020, eq. 7).

    Zero at ``t = 0``, where the posterior is a point.
    """
    alpha_bar = schedule.alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return schedule.betas * (1.0 - before) / (1.0 - alpha_bar)


def kl_weight(t: int | Tensor, schedule: Schedule) -> float | Tensor:
    """``w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t))`` (Ho et al. 2020, eq. 12), sigma the posterior's.

    Args:
        t: level of at least 1 (the posterior at level 0 has no width), or a ``(N,)`` tensor of levels.

    Returns:
        A float, or a float32 ``(N, 1, 1, 1)``.

    Raises:
        InputError: for a level below 1 or beyond the last.
    """
    levels = torch.tensor([t]) if isinstance(t, int) else t.cpu()
    if bool((levels < 1).any()):
        raise InputError(f"The KL divergence needs levels of at least 1, found {int(levels.min())}.")
    check_levels(levels, 1, schedule.levels - 1)
    beta = schedule.betas[levels]
    variance = posterior_variance(schedule)[levels]
    weight = beta**2 / (2.0 * variance * (1.0 - beta) * (1.0 - schedule.alphas_cumprod[levels]))
    return float(weight[0]) if isinstance(t, int) else weight.float().view(-1, 1, 1, 1).to(t.device)


def kl_map(eps: Tensor, eps_hat: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """KL divergence between ``q(x_{t-1} | x_t, x_0)`` and ``p_theta(x_{t-1} | x_t)``, element by element.

    With both variances fixed to the posterior's it is the weighted squared error of the predicted noise
    (Ho et al. 2020, eq. 12; Pinaya et al. 2022 read it as improbability).

    Args:
        eps: the noise that made ``x_t``, ``(N, C, H, W)``.
        eps_hat: the noise predicted, same shape.
        t: level, or ``(N,)`` levels.

    Returns:
        ``(N, C, H, W)``, in nats.
    """
    return kl_weight(t, schedule) * (eps - eps_hat) ** 2
