"""The restorer: sees corrupted healthy slabs once and gives the middle one back, and where it was corrupted.

A ladder of degradations that a network undoes in one step is cold diffusion's (Bansal et al. 2023): at level ``k`` of
``n`` synthetic lesions and coarse noise (Kascenas et al. 2022) reach ``(k + 1) / n`` of their full strength.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from ..data.drawing import Draw, per_sample
from ..data.lesions import LesionConfig, plant
from ..data.noise import NoiseConfig
from ..trainer.loop import Batch
from .slab_tasks import SlabStageConfig, SlabTask, leave_alone, place_losses


class SlabNoiseConfig(NoiseConfig):
    """The same in a share of scans, on the engine's intensity scale."""

    deviation: float = Field(default=0.25, gt=0, description="at the highest level, on the engine's intensity scale")
    cell: tuple[int, int] = Field(default=(5, 19), description="pixels between the grid's points, from and to")
    share: float = Field(default=0.4, ge=0, le=1, description="of scans")


class CorruptionConfig(BaseModel):
    """What the restorer undoes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: int = Field(default=5, ge=1, le=1000)
    lesions: LesionConfig = LesionConfig()
    noise: SlabNoiseConfig = SlabNoiseConfig()


class RestoreConfig(SlabStageConfig):
    """Configuration file of the stage ``restore``."""

    answers = 2

    fold: int = Field(default=4, ge=1, description="blocks of this many pixels are folded into channels")
    corruption: CorruptionConfig = CorruptionConfig()
    lesion_weight: float = Field(default=4.0, ge=0, description="extra weight of pixels in synthetic lesions")
    localisation_weight: float = Field(default=1.0, ge=0, description="of the cross-entropy of a lesion's place")


class RestoreTask(SlabTask):
    """L1 of the restored middle slab, with more weight in lesions; cross-entropy and Dice of the lesion's place."""

    config: RestoreConfig
    picture_title = "clean, corrupted and restored"

    @torch.no_grad()
    def examples(self, generator: torch.Generator, size: int, real: bool) -> Batch:
        """Corrupted slabs.

        Returns:
            ``seen`` ``(N, K, H, W)`` in [-1, 1] and ``level`` ``(N,)``; of the middle slab, ``(N, 1, H, W)``, ``clean``
            in [-1, 1], ``cover``, how far a pixel belongs to a lesion, and ``use``, bool, where both are known.
        """
        corruption, grid = self.config.corruption, self.config.data.grid
        draw = Draw(generator, size)
        # In 16-bit precision, places in a map of 200 voxels would be off by half a voxel.
        with torch.autocast(generator.device.type, enabled=False):
            slabs, clean, brain = self.source.make(draw, real)
            level = draw.whole(0, corruption.levels)
            strength = (level + 1) / corruption.levels
            # Strong lesions are in scans without noise too, so they are as frequent at low levels.
            reach = torch.maximum(strength, draw.uniform(0.0, 1.0))
            image, cover = plant(slabs, clean, brain, reach, grid, corruption.lesions, draw)
            # Only where tissue is known to be healthy: elsewhere the patient's own lesions may lie.
            image, cover = torch.where(slabs.known, image, clean), cover * slabs.known
            image = image + coarse_noise(image.shape[1], grid.size, strength, corruption.noise, draw)
            seen = leave_alone(image.clamp(0.0, 1.0) * brain, grid.middle, draw)
            use = brain & slabs.known
        clean, cover, use = (part[:, grid.middle, None] for part in (clean, cover, use))
        return {"seen": 2.0 * seen - 1.0, "level": level, "clean": 2.0 * clean - 1.0, "cover": cover, "use": use}

    def losses(self, network: nn.Module, examples: Batch) -> dict[str, Tensor]:
        """Of what ``examples`` gives."""
        restored, logit = self.answers(network, examples["seen"], examples["level"])
        weight = examples["use"] * (1.0 + self.config.lesion_weight * examples["cover"])
        absolute = (weight * (restored - examples["clean"]).abs()).sum() / weight.sum().clamp_min(1.0)
        entropy, dice = place_losses(logit, examples["cover"], examples["use"])
        loss = absolute + self.config.localisation_weight * (entropy + self.config.dice_weight * dice)
        return {"loss": loss, "l1": absolute, "cross_entropy": entropy, "dice_loss": dice}

    def answers(self, network: nn.Module, seen: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The restored middle slab in [-1, 1] and log-odds of a lesion, ``(N, 1, H, W)`` each."""
        channels, fold = self.config.channels, self.config.fold
        folded = functional.pixel_unshuffle(seen, fold).contiguous(memory_format=torch.channels_last)
        output = network(folded, level).float()
        # A slab's folded pixels follow each other, so the middle one's are in the middle.
        middle = folded.narrow(1, channels * self.config.data.grid.middle, channels)
        restored, logit = middle + output[:, :channels], output[:, channels:]
        return functional.pixel_shuffle(restored, fold), functional.pixel_shuffle(logit, fold)

    def picture(self, network: nn.Module, examples: Batch) -> Tensor:
        restored, _ = self.answers(network, examples["seen"], examples["level"])
        shown = (examples["clean"][:, 0], examples["seen"][:, self.config.data.grid.middle], restored[:, 0])
        return 0.5 + 0.5 * torch.cat([torch.cat([*part], 1) for part in shown])


def coarse_noise(slabs: int, size: int, strength: Tensor, config: SlabNoiseConfig, draw: Draw) -> Tensor:
    """Normal noise ``(B, slabs, size, size)`` on grids of random cells at random places, lines between their points."""
    cell = draw.whole(config.cell[0], config.cell[1] + 1)
    points = math.ceil(size / config.cell[0]) + 2
    noise = draw.normal(slabs, points, points)
    first = draw.uniform(0.0, 1.0, 2)
    pixel = torch.arange(size, device=draw.device)
    # Points are numbered from 0, for grid_sample from -1 to 1.
    rows, columns = (2.0 * (pixel / cell[:, None] + first[:, number, None]) / (points - 1) - 1.0 for number in (0, 1))
    shape = (draw.size, size, size)
    place = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], -1)
    noise = functional.grid_sample(noise, place, align_corners=True)
    return noise * per_sample(config.deviation * strength * draw.chance(config.share))
