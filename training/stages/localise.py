"""The localiser: sees neighbouring slabs of a scan and says where a lesion is, having seen synthetic ones alone.

Asked for nothing but the place, a network learns from synthetic lesions far sooner than one that also has to draw the
healthy brain. Lesions are bright and scans without corruption, as a reader gets them.
"""

from __future__ import annotations

import torch
from pydantic import Field

from ..data.drawing import Draw
from ..data.lesions import LesionConfig, plant
from ..trainer.loop import Batch
from .slab_tasks import PlaceTask, SlabStageConfig, leave_alone


class BrightLesionConfig(LesionConfig):
    """The same, none of them darker than the tissue unless asked for."""

    dark: float = Field(default=0.0, ge=0, le=1, description="share that is darker than the tissue")


class LocaliseConfig(SlabStageConfig):
    """Configuration file of the stage ``localise``."""

    answers = 1

    fold: int = Field(default=2, ge=1, description="blocks of this many pixels are folded into channels")
    lesions: BrightLesionConfig = BrightLesionConfig()
    draws: int = Field(default=3, ge=1, description="sets of lesions in each head of a batch")


class LocaliseTask(PlaceTask):
    """Cross-entropy and Dice loss of where synthetic lesions are."""

    config: LocaliseConfig

    @torch.no_grad()
    def examples(self, generator: torch.Generator, size: int, real: bool) -> Batch:
        """Slabs with lesions, ``draws`` times ``size`` of them."""
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
