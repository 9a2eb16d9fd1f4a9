"""The classifier of noised images that guides towards healthy (Dhariwal & Nichol 2021; Wolleb et al. 2022)."""

from __future__ import annotations

import torch
from pydantic import model_validator
from torch import Tensor, nn

from diffusion_anomaly.models.schedule import add_noise

from ..data.sampling import Labels, plain
from ..data.slices import DISEASED, HEALTHY
from ..trainer.loop import Batch
from .diffusion import DiffusionConfig, NoisedTask


class ClassifierConfig(DiffusionConfig):
    """Configuration file of the stage ``classifier``: as the diffusion model's, whose levels and codec it shares."""

    labels: Labels = (HEALTHY, DISEASED)

    @model_validator(mode="after")
    def _two_classes(self) -> ClassifierConfig:
        if len(self.labels) < 2:
            raise ValueError(f"labels: found {list(self.labels)}, a classifier needs [0, 1]")
        return self


class ClassifierTask(NoisedTask):
    """Cross-entropy at every noise level, classes matched by height."""

    def outputs(self, channels: int) -> int:
        return len(self.config.labels)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        x_t, level, _ = self.noised(self.latent(batch["image"]), generator)
        logits = network(x_t, level).float()
        loss = nn.functional.cross_entropy(logits, batch["label"])
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        latents = [self.latent(plain(self.slices, 64, label).to(device)) for label in (HEALTHY, DISEASED)]
        scalars = {}
        for level in (0, 100, 250, 400):
            right = []
            for label, latent in enumerate(latents):
                noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(label)).to(device)
                levels = torch.full((len(latent),), level, device=device)
                logits = network(add_noise(latent, noise, levels, self.schedule), levels).float()
                right.append(float((logits.argmax(1) == label).float().mean()))
            scalars[f"balanced accuracy at level {level}"] = sum(right) / 2.0
        return scalars, {}
