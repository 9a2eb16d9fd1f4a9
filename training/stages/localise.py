"""The localiser: sees neighbouring slabs of a scan and says where a lesion is, having seen synthetic ones alone.

Asked for nothing but the place, a network learns from synthetic lesions far sooner than one that also has to draw the
healthy brain. Lesions are bright and scans without corruption, as a reader gets them.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..data.drawing import Draw
from ..data.lesions import LesionConfig, plant
from ..trainer.loop import Batch
from .slab_tasks import WATCHED, SlabStageConfig, SlabTask, leave_alone, place_losses


class BrightLesionConfig(LesionConfig):
    """The same, none of them darker than the tissue unless asked for."""

    dark: float = Field(default=0.0, ge=0, le=1, description="share that is darker than the tissue")


class LocaliseConfig(SlabStageConfig):
    """Configuration file of the stage ``localise``."""

    answers = 1

    fold: int = Field(default=2, ge=1, description="blocks of this many pixels are folded into channels")
    lesions: BrightLesionConfig = BrightLesionConfig()
    draws: int = Field(default=3, ge=1, description="sets of lesions in each head of a batch")


class LocaliseTask(SlabTask):
    """Cross-entropy and Dice loss of where synthetic lesions are."""

    config: LocaliseConfig
    picture_title = "slab, lesion, probability"

    @torch.no_grad()
    def examples(self, generator: torch.Generator, size: int, real: bool) -> Batch:
        """Slabs with lesions, ``draws`` times ``size`` of them.

        Returns:
            ``seen`` ``(N, K, H, W)`` in [-1, 1]; ``cover`` and ``use``, bool, ``(N, 1, H, W)`` of the middle slab: how
            far a pixel belongs to a lesion, and whether that is known.
        """
        config, grid = self.config, self.config.data.grid
        draw = Draw(generator, size)
        # In 16-bit precision, places in a map of 200 voxels would be off by half a voxel.
        with torch.autocast(generator.device.type, enabled=False):
            slabs, clean, brain = self.source.make(draw, real)
            strength = torch.ones(size, device=generator.device)
            seen, covers = [], []
            for _ in range(config.draws):
                image, cover = plant(slabs, clean, brain, strength, grid, config.lesions, draw)
                # Only where tissue is known to be healthy: elsewhere the patient's own lesions may lie.
                image = torch.where(slabs.known, image, clean).clamp(0.0, 1.0) * brain
                seen.append(2.0 * leave_alone(image, grid.middle, draw) - 1.0)
                covers.append((cover * slabs.known)[:, grid.middle, None])
            use = (brain & slabs.known)[:, grid.middle, None]
        return {"seen": torch.cat(seen), "cover": torch.cat(covers), "use": use.repeat(config.draws, 1, 1, 1)}

    def losses(self, network: nn.Module, examples: Batch) -> dict[str, Tensor]:
        """Of what ``examples`` gives."""
        logit = self.logits(network, examples["seen"])
        entropy, dice = place_losses(logit, examples["cover"], examples["use"])
        return {"loss": entropy + self.config.dice_weight * dice, "cross_entropy": entropy, "dice_loss": dice}

    def logits(self, network: nn.Module, seen: Tensor) -> Tensor:
        """Log-odds of a lesion in the middle slab, ``(N, 1, H, W)``, of slabs ``(N, K, H, W)`` in [-1, 1]."""
        folded = functional.pixel_unshuffle(seen, self.config.fold).contiguous(memory_format=torch.channels_last)
        return functional.pixel_shuffle(network(folded).float(), self.config.fold)

    def picture(self, network: nn.Module, examples: Batch) -> Tensor:
        seen = 0.5 + 0.5 * examples["seen"][:WATCHED, self.config.data.grid.middle]
        probability = self.logits(network, examples["seen"][:WATCHED])[:, 0].sigmoid()
        return torch.cat([torch.cat([*part], 1) for part in (seen, examples["cover"][:WATCHED, 0], probability)])
