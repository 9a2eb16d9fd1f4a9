"""The restorer: sees a corrupted healthy slice once and gives the healthy one back, and where it was corrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceLoss
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.methods.restore import split_output
from diffusion_anomaly.networks import Codec, build_network

from .configuration import NetworkDeclaration
from .corruption import Corruption, CorruptionConfig
from .sampling import AugmentationConfig, SliceSampler, evenly, plain
from .slices import HEALTHY, Slices, training_slices, validation_slices
from .trainer import Batch, TrainerConfig


class RestoreConfig(BaseModel):
    """Configuration file of the stage ``restore``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slices: Path
    more_slices: Path | None = Field(default=None, description="another folder of 'prepare', drawn as often")
    halves: bool = Field(default=False, description="healthy halves with their mirror images count as healthy slices")
    fold: int = Field(default=4, ge=1, description="blocks of this many pixels are folded into channels")
    corruption: CorruptionConfig
    lesion_weight: float = Field(default=4.0, ge=0, description="extra weight of pixels in synthetic lesions")
    localisation_weight: float = Field(default=0.2, ge=0, description="of the loss of the lesion probability")
    network: NetworkDeclaration
    augmentation: AugmentationConfig = AugmentationConfig()
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _consistent(self) -> RestoreConfig:
        if self.corruption.lesions is None and self.corruption.noise is None:
            raise ValueError("corruption names neither lesions nor noise: there would be nothing to restore")
        return self

    @property
    def channels(self) -> int:
        return self.fold**2

    @property
    def localises(self) -> bool:
        """Whether the network says where it was corrupted too."""
        return self.corruption.lesions is not None


class RestoreTask:
    """L1 of the restored image, with more weight in lesions; cross-entropy and Dice of the lesion probability."""

    def __init__(self, config: RestoreConfig) -> None:
        torch.manual_seed(config.trainer.seed)
        self.config = config
        self.network: nn.Module = build_network(config.network)
        expected = {"in_channels": config.channels, "out_channels": config.channels * (1 + config.localises)}
        for entry, value in expected.items():
            found = config.network.get(entry)
            if found != value:
                raise InputError(f"network.{entry} is {found}, but fold and corruption need {value}.")
        self.codec = Codec(None, config.fold)
        folders = [config.slices, *([config.more_slices] if config.more_slices else [])]
        slices = [training_slices(folder, config.halves) for folder in folders]
        _require_fitting(slices, config.fold)
        self.samplers = [SliceSampler(one, (HEALTHY,), config.augmentation) for one in slices]
        watched = evenly(validation_slices(config.slices), 48, HEALTHY)
        self.validation = plain(watched, 48, HEALTHY), torch.from_numpy(watched.brain)[:, None]
        self.corruption = Corruption(config.corruption)
        self.dice = DiceLoss(sigmoid=True, batch=True)

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        sampler = self.samplers[int(rng.integers(len(self.samplers)))]
        drawn = sampler.draw(rng, size)
        return self._corrupted(drawn["image"], drawn["brain"], rng)

    def _corrupted(self, image: Tensor, brain: Tensor, rng: np.random.Generator) -> Batch:
        """Clean and corrupted images ``(N, 1, H, W)`` in [-1, 1], brains, lesion masks and levels ``(N,)``."""
        levels = rng.integers(self.config.corruption.levels, size=len(image))
        results = [
            self.corruption(0.5 + 0.5 * one, inside, int(level), rng)
            for one, inside, level in zip(image[:, 0].numpy(), brain[:, 0].numpy(), levels, strict=True)
        ]
        corrupted, lesion = (
            torch.from_numpy(np.stack([getattr(result, name) for result in results]))[:, None]
            for name in ("image", "lesion")
        )
        corrupted, level = 2.0 * corrupted - 1.0, torch.from_numpy(levels)
        return {"image": image, "brain": brain, "corrupted": corrupted, "lesion": lesion, "level": level}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        image, inside, corrupted, lesion = (batch[name] for name in ("image", "brain", "corrupted", "lesion"))
        folded = self._folded(corrupted)
        restored, logit = (
            None if part is None else self.codec.decode(part)
            for part in split_output(network(folded, batch["level"]).float(), folded)
        )
        assert restored is not None
        weight = inside * (1.0 + self.config.lesion_weight * lesion)
        absolute = (weight * (restored - image).abs()).sum() / weight.sum().clamp_min(1.0)
        if logit is None:
            return {"loss": absolute, "l1": absolute}
        target = (lesion > 0.5).float()
        entropy = functional.binary_cross_entropy_with_logits(logit, target, inside.float(), reduction="sum")
        entropy = entropy / inside.sum().clamp_min(1)
        dice = self.dice(torch.where(inside, logit, -20.0), target)
        loss = absolute + self.config.localisation_weight * (entropy + dice)
        return {"loss": loss, "l1": absolute, "cross_entropy": entropy, "dice": dice}

    def _folded(self, image: Tensor) -> Tensor:
        return self.codec.to(image.device).encode(image).contiguous(memory_format=torch.channels_last)

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        batch = self._corrupted(*self.validation, np.random.default_rng(0))
        batch = {name: value.to(device) for name, value in batch.items()}
        scalars = self.loss(network, batch, torch.Generator())
        folded = self._folded(batch["corrupted"][:6])
        restored, _ = split_output(network(folded, batch["level"][:6]).float(), folded)
        shown = torch.cat([batch["image"][:6], batch["corrupted"][:6], self.codec.decode(restored)], 2)
        pictures = {"clean, corrupted and restored": 0.5 + 0.5 * torch.cat(list(shown), 2)}
        return {name: float(value) for name, value in scalars.items()}, pictures


def _require_fitting(parts: list[Slices], fold: int) -> None:
    """Slices of one size that can be folded, said in the configuration's words."""
    for part in parts:
        (height, width), (first_height, first_width) = part.images.shape[1:], parts[0].images.shape[1:]
        if (height, width) != (first_height, first_width):
            raise InputError(
                f"more_slices has {width} x {height} pixels, slices has {first_width} x {first_height}.",
                "Prepare both on the same grid.",
            )
        if height % fold or width % fold:
            raise InputError(
                f"Slices have {width} x {height} pixels, which fold {fold} does not divide.",
                "Choose another grid or another fold.",
            )
