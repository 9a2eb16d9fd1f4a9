"""The diffusion model, on latents or on folded pixels: learns to predict the noise (Ho et al. 2020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.networks import Codec, build_network
from diffusion_anomaly.models.schedule import (
    Schedule,
    add_noise,
    pyramid_noise,
    step_grid,
    to_epsilon,
    transition,
    velocity,
)

from ..data.sampling import AugmentationConfig, Labels, SliceSampler, plain, side_by_side
from ..data.slices import training_slices, validation_slices
from ..trainer.configuration import NetworkDeclaration, read_yaml
from ..trainer.loop import Batch
from ..trainer.optimisation import TrainerConfig
from .codec import CodecConfig, read_codec, require_contrasts


class ScheduleConfig(BaseModel):
    """Noise levels, see ``diffusion_anomaly.diffusion.Schedule``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(default="scaled_linear", pattern="^(linear|scaled_linear)$")
    levels: int = Field(default=1000, gt=1)
    pyramid: float = Field(default=0.0, ge=0, le=1, description="discount of pyramid noise; 0 for white")


class DiffusionConfig(BaseModel):
    """Configuration file of the stage ``diffusion``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slices: Path
    labels: Labels = (0,)
    halves: bool = Field(default=False, description="healthy halves with their mirror images count as healthy slices")
    codec: Path | None = Field(default=None, description="configuration of the codec; without it, pixel space")
    codec_run: Path | None = None
    fold: int = Field(default=1, ge=1, description="pixel space: fold blocks of this many pixels into channels")
    schedule: ScheduleConfig = ScheduleConfig()
    prediction_type: str = Field(default="epsilon", pattern="^(epsilon|v_prediction)$")
    highest_level: int = Field(default=999, ge=0, description="levels above it are never used, so they are not trained")
    network: NetworkDeclaration
    augmentation: AugmentationConfig = AugmentationConfig()
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _consistent(self) -> DiffusionConfig:
        if (self.codec is None) != (self.codec_run is None):
            raise ValueError("codec and codec_run belong together: give both, or neither for pixel space")
        if self.halves and self.labels != (0,):
            raise ValueError("halves are for healthy slices alone: beside diseased ones, symmetry would mean health")
        if self.codec is not None and self.fold != 1:
            raise ValueError(f"fold is {self.fold}, but pixels are folded only without a codec")
        if self.highest_level >= self.schedule.levels:
            raise ValueError(
                f"highest_level is {self.highest_level}, but schedule.levels is {self.schedule.levels}: "
                f"use at most {self.schedule.levels - 1}"
            )
        return self

    def load_codec(self) -> Codec:
        return read_codec(read_yaml(self.codec, CodecConfig) if self.codec else None, self.codec_run, self.fold)


class NoisedTask:
    """What the diffusion model and the classifier share: latents of augmented slices, noised to a random level."""

    def __init__(self, config: Any) -> None:
        torch.manual_seed(config.trainer.seed)
        self.config = config
        self.network: nn.Module = build_network(config.network)
        self.codec = config.load_codec().eval().requires_grad_(False)
        self.schedule = Schedule.named(config.schedule.kind, config.schedule.levels)
        self.slices = validation_slices(config.slices)
        self.sampler = SliceSampler(training_slices(config.slices, config.halves), config.labels, config.augmentation)
        self._require_fitting_network()

    def outputs(self, channels: int) -> int:
        """Channels or classes the network must give for latents of so many channels."""
        return channels

    def _require_fitting_network(self) -> None:
        """Say in the configuration's words what would otherwise fail inside a convolution."""
        contrasts, height, width = self.slices.images.shape[1:]
        if self.config.codec is not None:
            require_contrasts(read_yaml(self.config.codec, CodecConfig), self.slices)
        if height % self.codec.factor or width % self.codec.factor:
            raise InputError(
                f"Slices have {width} x {height} pixels, which the codec's factor {self.codec.factor} does not divide.",
                "Choose another grid or another factor.",
            )
        _, channels, *shape = self.latent(torch.zeros(1, contrasts, height, width)).shape
        needed = {"in_channels": channels, "out_channels": self.outputs(channels), "input_shape": shape}
        for entry, value in needed.items():
            declared = self.config.network.get(entry, value)
            if declared != value:
                raise InputError(f"network.{entry} is {declared}, but these slices and this codec need {value}.")

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        return self.sampler.draw(rng, size)

    def latent(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.codec.to(image.device).encode(image.contiguous(memory_format=torch.channels_last))

    def noised(self, latent: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents at random levels, the levels and the noise. Levels are stratified over the batch."""
        count = len(latent)
        place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        level = (place * (self.config.highest_level + 1)).long().clamp_max(self.config.highest_level)
        level = level[torch.randperm(count, generator=generator)].to(latent.device)
        noise = pyramid_noise(latent.shape, generator, self.config.schedule.pyramid).to(latent.device)
        x_t = add_noise(latent, noise, level, self.schedule)
        return x_t.contiguous(memory_format=torch.channels_last), level, noise


class DiffusionTask(NoisedTask):
    """Mean squared error of the predicted noise or velocity."""

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        latent = self.latent(batch["image"])
        x_t, level, noise = self.noised(latent, generator)
        is_epsilon = self.config.prediction_type == "epsilon"
        target = noise if is_epsilon else velocity(latent, noise, level, self.schedule)
        return {"loss": nn.functional.mse_loss(network(x_t, level).float(), target)}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        image = plain(self.slices, 48, self.config.labels[0]).to(device)
        generator = torch.Generator().manual_seed(0)
        loss = self.loss(network, {"image": image}, generator)["loss"]
        start = pyramid_noise(self.latent(image[:6]).shape, generator, self.config.schedule.pyramid).to(device)
        walked = self._heal(network, self.latent(image[:6]), start)
        shown = torch.cat([image[:6], self.codec.decode(walked)], 2)
        return {"loss": float(loss)}, {"scan, noised and denoised": 0.5 + 0.5 * side_by_side(shown)}

    def _heal(self, network: nn.Module, latent: Tensor, noise: Tensor, steps: int = 20) -> Tensor:
        highest = min(499, self.config.highest_level)
        levels = step_grid(highest, min(steps, highest + 1))
        x = add_noise(latent, noise, levels[-1], self.schedule)
        for t, s in zip(levels[:0:-1], levels[-2::-1], strict=True):
            output = network(x, torch.full((len(x),), t, device=x.device)).float()
            eps = to_epsilon(output, x, t, self.schedule, self.config.prediction_type)
            x = transition(x, eps, t, s, self.schedule, (-1.0, 1.0) if self.codec.is_pixel else None)
        return x
