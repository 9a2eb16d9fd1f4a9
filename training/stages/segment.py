"""The supervised reference: a plain 2-D U-Net that learns real lesions from masks that readers drew.

For those who have such masks, and so that tables can say how far methods without any are from a network with them. It
sees the same slabs, varied alike, as the localiser and is packed as one: where it differs is what it learnt from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..data.drawing import Draw
from ..data.slabs import RealStacks
from ..trainer.configuration import ConfigurationError
from ..trainer.loop import Batch
from .slab_tasks import PlaceTask, SlabSource, SlabStageConfig, leave_alone

VALIDATED, AT_ONCE = 64, 16  # slices that validation looks at, and how many at a time


class SegmentConfig(SlabStageConfig):
    """Configuration file of the stage ``segment``."""

    answers = 1

    fold: int = Field(default=2, ge=1, description="blocks of this many pixels are folded into channels")
    validation: Path = Field(description="file that prepare-slabs wrote of other patients")

    @model_validator(mode="after")
    def _of_real_lesions(self) -> SegmentConfig:
        if self.data.labels is not None or self.data.real_share < 1.0:
            raise ValueError("segment learns from marked lesions alone: no data.labels, and data.real_share: 1.0")
        return self


class SegmentTask(PlaceTask):
    """Cross-entropy and Dice loss of where readers marked lesions.

    Raises:
        ConfigurationError: when a file holds no lesion, was prepared without lesion masks, or a scan is in both files.
    """

    config: SegmentConfig
    marked = True

    def __init__(self, config: SegmentConfig) -> None:
        super().__init__(config)
        assert config.data.stacks is not None
        self.kept_apart = SlabSource(config.data.model_copy(update={"stacks": config.validation}), self.marked)
        for path, source in ((config.data.stacks, self.source), (config.validation, self.kept_apart)):
            _require_lesion(path, source.stacks, config.data.restricted)
        _require_other_scans(config.data.stacks, config.validation)

    def examples(self, generator: torch.Generator, size: int, real: bool) -> Batch:
        """Slabs of patients, ``size`` of them; ``real`` is always so."""
        return self._examples(self.source, generator, size)

    @torch.no_grad()
    def _examples(self, source: SlabSource, generator: torch.Generator, size: int) -> Batch:
        grid = self.config.data.grid
        draw = Draw(generator, size)
        # In 16-bit precision a slice would be bent by half a pixel more or less.
        with torch.autocast(generator.device.type, enabled=False):
            slabs, image, brain = source.make(draw, True)
            assert slabs.lesion is not None
            seen = 2.0 * leave_alone(image, grid.middle, draw) - 1.0
            use = (brain & slabs.known)[:, grid.middle, None]
        return {"seen": seen, "cover": slabs.lesion[:, grid.middle, None], "use": use}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Always the same slices of the other patients, varied as in training: mean losses, and pictures."""
        generator = torch.Generator(next(network.parameters()).device).manual_seed(0)
        batches = [self._examples(self.kept_apart, generator, AT_ONCE) for _ in range(VALIDATED // AT_ONCE)]
        losses = [self.losses(network, examples) for examples in batches]
        scalars = {name: float(torch.stack([loss[name] for loss in losses]).mean()) for name in losses[0]}
        return scalars, {self.picture_title: self.picture(network, batches[0])[None]}


def _require_lesion(path: Path, stacks: RealStacks | None, restricted: bool) -> None:
    assert stacks is not None and stacks.lesion is not None
    if not stacks.lesion.any():
        which = "" if restricted else " on scans of a free licence (data.restricted: true takes the others too)"
        raise ConfigurationError(
            f"{path} has no lesion that anybody marked{which}; prepare it of scans with 'lesions'."
        )


def _require_other_scans(training: Path, validation: Path) -> None:
    """No scan in both files, by name: what has been learnt says nothing of what is new."""
    names = []
    for path in (training, validation):
        with np.load(path, allow_pickle=False) as file:
            # A stack's name ends in the thickness of its slices: one scan may be in the files at two.
            names.append({name.rpartition(", ")[0] or name for name in file["names"].tolist()})
    twice = sorted(names[0] & names[1])
    if twice:
        raise ConfigurationError(
            f"{twice[0]} is in {training} and in {validation}: each patient's scans belong to one of them."
        )
