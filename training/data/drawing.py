"""Random numbers and smooth fields of many samples at once, all of one generator and on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

BLUR_REACH = 4  # pixels to each side that a blur looks at


class Draw:
    """Random numbers of ``size`` samples; a sample is the first axis.

    Args:
        generator: source of every number; they are made on its device.
        size: how many samples.
    """

    def __init__(self, generator: torch.Generator, size: int) -> None:
        self.generator, self.size, self.device = generator, size, generator.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        value = torch.rand(self.size, *shape, generator=self.generator, device=self.device)
        return low + (high - low) * value

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.size, *shape, generator=self.generator, device=self.device)

    def whole(self, low: int, high: int) -> Tensor:
        """Whole numbers from ``low`` to ``high - 1``."""
        return torch.randint(low, high, (self.size,), generator=self.generator, device=self.device)

    def chance(self, share: float) -> Tensor:
        """Whether something happens to a sample."""
        return torch.rand(self.size, generator=self.generator, device=self.device) < share

    def one_of(self, shares: Sequence[float]) -> Tensor:
        """Numbers ``(B,)`` of alternatives that are as frequent as their shares."""
        weight = torch.tensor(shares, device=self.device)
        return torch.multinomial(weight, self.size, True, generator=self.generator)

    def sign(self, negative: float = 0.5) -> Tensor:
        """-1 with this share, else 1."""
        return torch.where(self.chance(negative), -1.0, 1.0)

    def field(self, cells: tuple[int, int, int], window: tuple[int, ...]) -> Tensor:
        """Smooth noise ``(B, *window)``: ``cells`` normal values along each axis, and lines between them."""
        return enlarge(self.normal(1, *cells), window)[:, 0]

    def plane(self, channels: int, cells: int, size: int) -> Tensor:
        """Smooth noise ``(B, channels, size, size)``: ``cells`` x ``cells`` normal values and cubics between them."""
        values = self.normal(channels, cells, cells)
        return functional.interpolate(values, size=(size, size), mode="bicubic", align_corners=True)


def enlarge(values: Tensor, window: tuple[int, ...]) -> Tensor:
    """``(B, C, x, y, z)`` on a coarse grid to ``(B, C, *window)``, corners on corners."""
    return functional.interpolate(values, size=window, mode="trilinear", align_corners=True)


def rotation(nod: Tensor, tilt: Tensor, turn: Tensor) -> Tensor:
    """Matrices ``(B, 3, 3)`` of rotations about the axes towards right, anterior and superior, by radians ``(B,)``."""
    matrix = torch.eye(3, device=nod.device).expand(len(nod), 3, 3)
    for angle, (first, second) in ((nod, (1, 2)), (tilt, (2, 0)), (turn, (0, 1))):
        step = torch.eye(3, device=nod.device).repeat(len(nod), 1, 1)
        step[:, first, first] = step[:, second, second] = angle.cos()
        step[:, second, first] = angle.sin()
        step[:, first, second] = -angle.sin()
        matrix = matrix @ step
    return matrix


def per_sample(value: Tensor) -> Tensor:
    """One value a sample, ``(B,)``, made to fit ``(B, K, H, W)`` or ``(B, X, Y, Z)``."""
    return value[:, None, None, None]


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Each sample of ``(B, K, H, W)`` with a Gaussian of its own, ``sigma`` ``(B,)`` in pixels, at most about 1.3."""
    size, channels, height, width = images.shape
    place = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=images.device).float()
    kernel = torch.exp(-0.5 * (place / sigma.clamp_min(0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    groups = size * channels
    padded = functional.pad(images.reshape(1, groups, height, width), (BLUR_REACH,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel[:, None, :, None], groups=groups)
    return functional.conv2d(rows, kernel[:, None, None, :], groups=groups).view_as(images)
