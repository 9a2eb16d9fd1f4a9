"""Real scans as the recognition network is shown them, and changed at random as often as wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diffusion_anomaly.detection.recognition_network import KINDS, masked_quantiles

from ..trainer.configuration import ConfigurationError
from .contrasts import draw_view, turned
from .drawing import Draw, per_sample, rotation
from .synthesis import SynthesisConfig, acquire


@dataclass(frozen=True)
class Windows:
    """Windows of real scans.

    Attributes:
        images: ``(n, X, Y, Z)`` float16 or uint8, each from 0 to ``top``.
        brains: the same shape, bool.
        kinds: ``(n,)`` which of ``KINDS``.
        top: what stands for 1.
    """

    images: Tensor
    brains: Tensor
    kinds: Tensor
    top: float = 1.0

    @classmethod
    def load(cls, path: Path) -> Windows:
        """Read what ``prepare-windows`` wrote, or ``packed_windows`` made of it.

        Raises:
            ConfigurationError: when there is no such file, or another one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                images, brains, kinds = (file[name] for name in ("images", "brains", "kinds"))
                top = float(file["top"]) if "top" in file else 1.0
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"{path} holds no windows ({error}); prepare-windows writes them.") from error
        if brains.dtype != bool:  # eight voxels in a byte
            brains = np.unpackbits(brains, axis=-1, count=images.shape[-1]).astype(bool)
        return cls(torch.from_numpy(images), torch.from_numpy(brains), torch.from_numpy(kinds), top)

    def to(self, device: torch.device) -> Windows:
        """The same on another device; itself where it is there already."""
        if self.images.device == device:
            return self
        return Windows(self.images.to(device), self.brains.to(device), self.kinds.to(device), self.top)

    def draw(
        self, config: SynthesisConfig, generator: torch.Generator, size: int, recoloured: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Windows at random, each kind as often as any other, turned, stretched, and acquired anew.

        Args:
            config: how far images vary.
            generator: source of every draw.
            size: how many.
            recoloured: share of the T1 images, then all of them without contrast agent, that get another contrast.

        Returns:
            As ``contrasts.draw_scans``.
        """
        draw = Draw(generator, size)
        share = 1.0 / torch.bincount(self.kinds, minlength=len(KINDS)).clamp_min(1)[self.kinds]
        chosen = torch.multinomial(share, size, True, generator=generator)
        kind = self.kinds[chosen]
        image, kind = _recoloured(self.images[chosen].float() / self.top, self.brains[chosen], kind, draw, recoloured)
        both = torch.stack([image, self.brains[chosen].float()], 1)
        turn = rotation(*(draw.uniform(-1.0, 1.0) * math.radians(most) for most in config.rotation))
        scale = draw.uniform(-config.scale, config.scale, 3).exp()
        scale[:, 0] *= draw.sign()
        matrix = turn * scale[:, None]
        most, size_of_window = (torch.tensor(values, device=draw.device) for values in (config.shift, both.shape[2:]))
        shift = draw.normal(3) * most / size_of_window * 2.0
        # grid_sample counts axes backwards: its x is the last.
        theta = torch.cat([matrix.flip(1, 2), shift.flip(1)[..., None]], 2)
        grid = functional.affine_grid(theta, list(both.shape), align_corners=False)
        both = functional.grid_sample(both, grid, align_corners=False, padding_mode="border")
        image, brain = both[:, 0], both[:, 1] > 0.5
        stripped = draw.chance(config.stripped_share) & (kind != KINDS.index("CT")) & (kind != KINDS.index("no brain"))
        image = acquire(torch.where(per_sample(stripped) & ~brain, 0.0, image), draw, config)
        image = torch.where(per_sample(stripped & draw.chance(0.8)) & ~brain, 0.0, image)
        view = draw_view(draw, config, image)
        image, brain = torch.where(view, image, 0.0), brain & view
        image, brain, pose = turned(image, brain, kind, view.flatten(1).sum(1), draw)
        return image, brain, kind, pose


def _recoloured(image: Tensor, brain: Tensor, kind: Tensor, draw: Draw, share: float) -> tuple[Tensor, Tensor]:
    """Some T1 images with the intensities of FLAIR, T2 or PD: their tissues are in an order that maps onto any other.

    On T1 fluid, grey and white matter follow each other, so that a line through three points makes another contrast,
    with the edges and the texture of a real scan.
    """
    chosen = (kind == KINDS.index("T1")) & draw.chance(share)
    targets = torch.tensor([KINDS.index(name) for name in ("FLAIR", "T2", "PD")], device=draw.device)
    target = targets[draw.one_of((0.6, 0.2, 0.2))]
    grey = 0.99 + 0.45 * draw.uniform(0.0, 1.0) ** 1.5
    fluid = torch.where(target == KINDS.index("FLAIR"), draw.uniform(0.0, 0.5), grey * draw.uniform(0.75, 1.3))
    fluid = torch.where(target == KINDS.index("T2"), grey * draw.uniform(1.35, 3.0), fluid)
    numbers = torch.nonzero(chosen)[:, 0]
    if not len(numbers):
        return image, kind
    # Of each such image all numbers of a batch are drawn, so that which ones are changed moves no other's.
    brightest = torch.stack([draw.uniform(0.8, 1.5) for _ in range(len(numbers))])
    brightest = brightest.gather(1, numbers[:, None])[:, 0]
    some, fluid, grey = image[numbers], fluid[numbers], grey[numbers]
    dark, middle, bright = masked_quantiles(some.flatten(1), brain[numbers].flatten(1), (0.03, 0.35, 0.8)).unbind(1)
    zero, one = torch.zeros_like(dark), torch.ones_like(dark)
    known = [zero, 0.5 * dark, dark, torch.maximum(middle, dark + 0.01), torch.maximum(bright, middle + 0.02), one]
    wanted = torch.stack([zero, 0.1 * one, fluid, grey, one, brightest], 1)
    image, kind = image.clone(), torch.where(chosen, target, kind)
    image[numbers] = _through_points(some.flatten(1), torch.stack(known, 1).cummax(1).values, wanted).view_as(some)
    return image, kind


def _through_points(values: Tensor, known: Tensor, wanted: Tensor) -> Tensor:
    """``numpy.interp`` of each row: lines through its points, ``known`` ``(B, n)`` in order, level beyond them."""
    above = torch.searchsorted(known, values.contiguous(), right=True).clamp(1, known.shape[1] - 1)
    (left, right), (low, high) = ((part.gather(1, above - 1), part.gather(1, above)) for part in (known, wanted))
    share = (values - left) / (right - left).clamp_min(1e-12)
    return low + (high - low) * share.clamp(0.0, 1.0)
