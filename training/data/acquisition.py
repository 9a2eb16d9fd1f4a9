"""What every scan may have, painted or real: bias, gain, gamma, ghosts, noise, and a brain mask that cuts or leaks."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from .drawing import Draw, per_sample
from .slabs import Slabs

# Of masks: as they are, one to three pixels too wide, one to three pixels too narrow.
MASK_SHARES = (0.45, 0.12, 0.10, 0.08, 0.10, 0.08, 0.07)
LEAK_REACH = 6  # pixels beyond the widest mask that a leak takes in


class AcquisitionConfig(BaseModel):
    """How far scans vary, on the engine's intensity scale; a ``_share`` is that of scans that something happens to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bias: float = Field(default=0.16, ge=0, description="most of the logarithm of a bias field")
    bias_share: float = Field(default=0.6, ge=0, le=1)
    gamma: float = Field(default=0.15, ge=0, description="most of the logarithm of the exponent")
    gain: float = Field(default=0.10, ge=0, description="most of the logarithm")
    offset: float = Field(default=0.04, ge=0, description="most")
    ghost: float = Field(default=0.06, ge=0, description="most of the share of a shifted copy")
    ghost_share: float = Field(default=0.15, ge=0, le=1)
    ghost_shift: tuple[int, int] = Field(default=(20, 99), description="pixels along the image's columns")
    noise: float = Field(default=0.035, ge=0, description="most of its standard deviation")
    noise_share: float = Field(default=0.7, ge=0, le=1)
    leak_share: float = Field(default=0.2, ge=0, le=1, description="masks that take in what surrounds the brain")


def acquire(slabs: Slabs, config: AcquisitionConfig, draw: Draw) -> tuple[Tensor, Tensor]:
    """A scan of slabs and the brain mask that is found of it.

    Returns:
        Image ``(B, K, H, W)`` in [0, 1], 0 outside the mask, and the mask, bool. A slab without brain has none.
    """
    image = slabs.image
    count, size = image.shape[1], image.shape[-1]
    strength = draw.uniform(0.0, config.bias) * draw.chance(config.bias_share)
    image = image * (draw.plane(1, 3, size) * per_sample(strength)).exp()
    gamma, gain = (per_sample(draw.uniform(-most, most).exp()) for most in (config.gamma, config.gain))
    image = image.clamp_min(0.0) ** gamma * gain + per_sample(draw.uniform(-config.offset, config.offset))
    image = image + _ghost(image, config, draw)
    noise = draw.uniform(0.0, config.noise) * draw.chance(config.noise_share)
    image = image + draw.normal(count, size, size) * per_sample(noise)
    brain = found_brain(slabs.brain, config, draw)
    return image.clamp(0.0, 1.0) * brain, brain


def _ghost(image: Tensor, config: AcquisitionConfig, draw: Draw) -> Tensor:
    """A faint copy of the image, moved along its columns."""
    size = image.shape[-2]
    shift = draw.whole(config.ghost_shift[0], config.ghost_shift[1] + 1)
    row = (torch.arange(size, device=image.device) - shift[:, None]) % size
    copy = image.gather(2, row[:, None, :, None].expand_as(image))
    return copy * per_sample(draw.uniform(0.0, config.ghost) * draw.chance(config.ghost_share))


def found_brain(brain: Tensor, config: AcquisitionConfig, draw: Draw) -> Tensor:
    """Masks ``(B, K, H, W)`` as another program might have found them: too wide, too narrow, or leaking."""

    def grown(mask: Tensor) -> Tensor:
        return functional.max_pool2d(mask, 3, 1, 1)

    inside = brain.float()
    outside = 1.0 - inside
    wider, narrower = [inside], [outside]
    for _ in range(3):
        wider.append(grown(wider[-1]))
        narrower.append(grown(narrower[-1]))
    found = torch.stack([*wider, *(1.0 - mask for mask in narrower[1:])], 1)
    found = found[torch.arange(draw.size, device=brain.device), draw.one_of(MASK_SHARES)] > 0.5
    reach = functional.max_pool2d(wider[-1], 2 * LEAK_REACH + 1, 1, LEAK_REACH) > 0.5
    patches = draw.plane(brain.shape[1], 7, brain.shape[-1]) > 0.9
    leak = reach & patches & per_sample(draw.chance(config.leak_share))
    return (found | leak) & brain.flatten(2).any(2)[..., None, None]
