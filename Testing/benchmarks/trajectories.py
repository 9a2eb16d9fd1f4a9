"""Noising and denoising against exact answers: networks so simple that every trajectory is known in closed form.

    python -m Testing.benchmarks trajectories

With y = x / sqrt(alpha_bar) and sigma = sqrt((1 - alpha_bar) / alpha_bar), noising and denoising without randomness
follow dy / d sigma = eps. That is solved exactly for

- **constant noise**: eps = e, so y(sigma) = y(0) + sigma e;
- **Gaussian data** N(mu, s^2): eps = sigma (y - mu) / (s^2 + sigma^2), so
  y(sigma) - mu = (y(0) - mu) sqrt(1 + sigma^2 / s^2);
- **logistic guidance**: a logistic classifier far from its decision has the constant gradient g of log C, which with
  constant noise leads to y(0) = y(sigma) - sigma e + w g (sqrt(1 + sigma^2) - 1) for a guidance of weight w;
- **clamp**: a network that is certain of the clean value c, whatever it sees. The last step goes from the lowest
  level of the walk to clean, so the answer is c + w g (1 - alpha_bar) / sqrt(alpha_bar) at that level without a clamp;
  with c clamped, if it is clamped before guidance; and the whole clamped, if after.

The printed errors are the largest of all values, walked by the engine's own code in float32 through the linear
schedule to level 499.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_anomaly.evaluation.formatting import markdown_table
from diffusion_anomaly.methods.guided import decode_guided, encode_up
from diffusion_anomaly.models.networks import Codec, Model
from diffusion_anomaly.models.schedule import Schedule, noise_to_signal, step_grid
from diffusion_anomaly.registry import CLAMPS

SCHEDULE = Schedule.linear()
LAST = 499
STEPS = (10, 50, 500)
MEAN, SPREAD = 0.3, 0.25  # of the Gaussian data
NOISE = 0.7
WEIGHT, GRADIENT = 30.0, 0.02
CERTAIN = 1.5  # beyond the range of pixels
STARTS = torch.linspace(-0.9, 0.9, 7).view(-1, 1, 1, 1)


class Latent(nn.Module):
    """An autoencoder that changes nothing: its latents have no range."""

    def encode(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def decode(self, z: Tensor) -> Tensor:
        return z


class Answer(nn.Module):
    """A network given as a function of the image and of ``alpha_bar``."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        return self.function(x.double(), SCHEDULE.alphas_cumprod[levels].view(-1, 1, 1, 1)).float()


def constant_noise(x: Tensor, alpha_bar: Tensor) -> Tensor:
    return torch.full_like(x, NOISE)


def gaussian_noise(x: Tensor, alpha_bar: Tensor) -> Tensor:
    """The expected noise in ``x`` when clean values are N(MEAN, SPREAD^2)."""
    variance = alpha_bar * SPREAD**2 + 1 - alpha_bar
    return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / variance


def certain(x: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise in ``x`` when the clean value can only be CERTAIN."""
    return (x - alpha_bar.sqrt() * CERTAIN) / (1 - alpha_bar).sqrt()


class Logistic(nn.Module):
    """Logits of healthy and diseased, so far on the diseased side that the gradient of log C(healthy) is constant."""

    def __init__(self, gradient: float) -> None:
        super().__init__()
        self.gradient = gradient

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        healthy = self.gradient * x.sum(dim=(1, 2, 3))
        return torch.stack([healthy, torch.full_like(healthy, 60.0)], dim=1)


def model_of(noise: Callable[[Tensor, Tensor], Tensor], gradient: float = 0.0, *, pixels: bool = False) -> Model:
    return Model(Codec(None if pixels else Latent(), 1), Answer(noise), SCHEDULE, classifier=Logistic(gradient))


def gaussian_flow(start: Tensor, sigma: float, end: float) -> Tensor:
    """``y`` at ``end`` of what is ``start`` at ``sigma``, for Gaussian data."""
    return MEAN + (start - MEAN) * ((SPREAD**2 + end**2) / (SPREAD**2 + sigma**2)) ** 0.5


def clamped_answer(order: str, gradient: float, lowest: int) -> float:
    """Where a network certain of CERTAIN ends, by when it is clamped; ``lowest`` is the last level before clean."""
    alpha_bar = float(SCHEDULE.alpha_bar(lowest))
    pull = WEIGHT * gradient * (1 - alpha_bar) / alpha_bar**0.5
    value = min(CERTAIN, 1.0) if order == "before" else CERTAIN
    return min(max(value + pull, -1.0), 1.0) if order == "after" else value + pull


def rows() -> list[dict[str, Any]]:
    """The largest error of each walk, by number of steps."""
    return [
        {"network": network, "walk": walk, "order": order, **{str(n): error(n, order) for n in STEPS}}
        for network, walk, orders, error in _walks()
        for order in orders
    ]


def _walks() -> Iterator[tuple[str, str, Sequence[int], Callable[[int, int], float]]]:
    """Name of the network, of the walk, its orders, and its error by steps and order."""
    sigma = noise_to_signal(LAST, SCHEDULE)
    root = float(SCHEDULE.alpha_bar(LAST)) ** 0.5

    def noised(model: Model, exact: Tensor) -> Callable[[int, int], float]:
        return lambda steps, order: _apart(up(STARTS, model, steps, order), exact)

    def denoised(model: Model, start: Tensor, exact: Tensor | float, weight: float) -> Callable[[int, int], float]:
        return lambda steps, order: _apart(down(start, model, steps, order, weight=weight), exact)

    def back(model: Model) -> Callable[[int, int], float]:
        return lambda steps, order: _apart(down(up(STARTS, model, steps, order), model, steps, order), STARTS)

    both = (1, 2)
    constant, gaussian = model_of(constant_noise), model_of(gaussian_noise)
    far = root * (STARTS + sigma * NOISE)
    yield "constant noise", "noising", both, noised(constant, far)
    yield "constant noise", "denoising", both, denoised(constant, far, STARTS, 0.0)
    spread = root * gaussian_flow(STARTS, 0.0, sigma)
    yield "Gaussian data", "noising", both, noised(gaussian, spread)
    yield "Gaussian data", "denoising", both, denoised(gaussian, spread, STARTS, 0.0)
    yield "Gaussian data", "there and back", both, back(gaussian)
    led = STARTS + WEIGHT * GRADIENT * ((1 + sigma**2) ** 0.5 - 1)
    yield (
        "constant noise, logistic guidance",
        "denoising",
        both,
        denoised(model_of(constant_noise, GRADIENT), far, led, WEIGHT),
    )
    for clamp in CLAMPS:
        yield f"certain of {CERTAIN:g}, clamp {clamp}", "denoising, guided", (1,), _clamped(clamp)


def _clamped(clamp: str) -> Callable[[int, int], float]:
    def error(steps: int, order: int) -> float:
        lowest = step_grid(LAST, steps)[1]
        model = model_of(certain, -GRADIENT, pixels=True)
        walked = down(STARTS, model, steps, order, weight=WEIGHT, clamp=clamp)
        return _apart(walked, clamped_answer(clamp, -GRADIENT, lowest))

    return error


def up(x: Tensor, model: Model, steps: int, order: int = 1, clamp: str = "none") -> Tensor:
    return encode_up(x, step_grid(LAST, steps), model, _ignore, clamp, order)


def down(x: Tensor, model: Model, steps: int, order: int = 1, *, weight: float = 0.0, clamp: str = "none") -> Tensor:
    return decode_guided(x, step_grid(LAST, steps), weight, model, _ignore, clamp, order)


def _ignore(calls: int) -> None:
    return None


def _apart(walked: Tensor, exact: Tensor | float) -> float:
    return float((walked - exact).abs().max())


def markdown(found: Sequence[dict[str, Any]]) -> str:
    head = ["network", "walk", "order", *(f"{steps} steps" for steps in STEPS)]
    return "\n".join(
        markdown_table(
            head,
            [
                [row["network"], row["walk"], str(row["order"]), *(_shown(row[str(steps)]) for steps in STEPS)]
                for row in found
            ],
        )
    )


def _shown(error: float) -> str:
    """Two digits, or that it is so small that rounding counts."""
    return "< 0.0001" if error < 1e-4 else f"{error:.2g}"


def main(arguments: Sequence[str] | None = None) -> int:
    print(markdown(rows()))  # noqa: T201
    return 0
