"""The denoising autoencoder (Kascenas et al. 2022): removes coarse noise from healthy slices, and lesions with it.

The second reference beside intensity. In use it is a restorer without a lesion probability.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor, nn

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.networks import Codec, build_network

from ..data.noise import NoiseConfig
from ..data.sampling import AugmentationConfig, SliceSampler, evenly, plain, side_by_side
from ..data.slices import HEALTHY, training_slices, validation_slices
from ..trainer.configuration import NetworkDeclaration
from ..trainer.loop import Batch
from ..trainer.optimisation import TrainerConfig


class CorruptionConfig(BaseModel):
    """Levels of noise: level ``k`` of ``n`` has ``(k + 1) / n`` of its full strength."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: int = Field(default=1, ge=1, le=1000)
    noise: NoiseConfig


class DenoiseConfig(BaseModel):
    """Configuration file of the stage ``denoise``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slices: Path
    halves: bool = Field(default=False, description="healthy halves with their mirror images count as healthy slices")
    fold: int = Field(default=4, ge=1, description="blocks of this many pixels are folded into channels")
    corruption: CorruptionConfig
    network: NetworkDeclaration
    augmentation: AugmentationConfig = AugmentationConfig()
    trainer: TrainerConfig


class DenoiseTask:
    """L1 of the slice without its noise, inside the brain."""

    def __init__(self, config: DenoiseConfig) -> None:
        torch.manual_seed(config.trainer.seed)
        self.config = config
        self.network: nn.Module = build_network(config.network)
        self.codec = Codec(None, config.fold)
        slices = training_slices(config.slices, config.halves)
        contrasts, height, width = slices.images.shape[1:]
        needed = contrasts * config.fold**2
        for entry in ("in_channels", "out_channels"):
            if config.network.get(entry) != needed:
                found, several = config.network.get(entry), "s" if contrasts > 1 else ""
                raise InputError(
                    f"network.{entry} is {found}, but {contrasts} contrast{several}, folded, need {needed}."
                )
        if height % config.fold or width % config.fold:
            raise InputError(
                f"Slices have {width} x {height} pixels, which fold {config.fold} does not divide.",
                "Choose another grid or another fold.",
            )
        self.sampler = SliceSampler(slices, (HEALTHY,), config.augmentation)
        watched = evenly(validation_slices(config.slices), 48, HEALTHY)
        self.validation = plain(watched, 48, HEALTHY), torch.from_numpy(watched.brain)[:, None]

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        drawn = self.sampler.draw(rng, size)
        return self._corrupted(drawn["image"], drawn["brain"], rng)

    def _corrupted(self, image: Tensor, brain: Tensor, rng: np.random.Generator) -> Batch:
        """Clean and noisy images ``(N, C, H, W)`` in [-1, 1], brains and levels ``(N,)``."""
        corruption = self.config.corruption
        levels = rng.integers(corruption.levels, size=len(image))
        noise = [
            [coarse_noise(tuple(image.shape[2:]), corruption.noise, (level + 1) / corruption.levels, rng) for _ in one]
            for one, level in zip(image, levels, strict=True)
        ]
        noisy = image + 2.0 * torch.from_numpy(np.array(noise, dtype=np.float32))
        corrupted = torch.where(brain, noisy.clamp(-1.0, 1.0), -1.0)
        return {"image": image, "brain": brain, "corrupted": corrupted, "level": torch.from_numpy(levels)}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        restored = self._restored(network, batch["corrupted"], batch["level"])
        inside = batch["brain"]
        difference = (restored - batch["image"]).abs().mean(dim=1, keepdim=True)
        absolute = (inside * difference).sum() / inside.sum().clamp_min(1)
        return {"loss": absolute, "l1": absolute}

    def _restored(self, network: nn.Module, corrupted: Tensor, level: Tensor) -> Tensor:
        folded = self.codec.to(corrupted.device).encode(corrupted).contiguous(memory_format=torch.channels_last)
        return self.codec.decode(folded + network(folded, level).float())

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        batch = self._corrupted(*self.validation, np.random.default_rng(0))
        batch = {name: value.to(device) for name, value in batch.items()}
        scalars = self.loss(network, batch, torch.Generator())
        restored = self._restored(network, batch["corrupted"][:6], batch["level"][:6])
        shown = torch.cat([batch["image"][:6], batch["corrupted"][:6], restored], 2)
        pictures = {"clean, corrupted and restored": 0.5 + 0.5 * side_by_side(shown)}
        return {name: float(value) for name, value in scalars.items()}, pictures


def coarse_noise(size: tuple[int, ...], config: NoiseConfig, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise on a coarse grid at a random place, enlarged bilinearly to ``size`` ``(H, W)``."""
    cell = int(rng.integers(config.cell[0], config.cell[1] + 1))
    coarse = rng.standard_normal([-(-n // cell) + 2 for n in size])
    fine = np.asarray(ndimage.zoom(coarse, cell, order=1, grid_mode=True, mode="nearest"))
    first = rng.integers(cell, size=2)
    return config.deviation * strength * fine[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
