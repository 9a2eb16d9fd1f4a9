"""The brain mask network: a U-Net on 2 mm images that are synthesised from label maps in every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceLoss
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from diffusion_anomaly.detection.brain_network import WINDOW, brain_logits
from diffusion_anomaly.models.networks import build_network

from ..data.head_maps import HeadMaps
from ..data.synthesis import SynthesisConfig, synthesise
from ..trainer.configuration import ConfigurationError, NetworkDeclaration
from ..trainer.loop import Batch
from ..trainer.optimisation import TrainerConfig

VALIDATION_HEADS = 2  # label maps, the first ones, kept apart to watch the training and to measure its outcome
VALIDATION_IMAGES = 6


class BrainConfig(BaseModel):
    """Configuration file of the stage ``brain``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Path = Field(description="file that prepare-labels wrote")
    window: tuple[int, int, int] = Field(
        default=WINDOW, description="voxels shown; what the engine shows, but in tests"
    )
    synthesis: SynthesisConfig = SynthesisConfig()
    network: NetworkDeclaration
    trainer: TrainerConfig


class BrainTask:
    """Synthetic heads, made on the training's device inside the step; Dice and cross-entropy loss."""

    def __init__(self, config: BrainConfig) -> None:
        self.config = config
        torch.manual_seed(config.trainer.seed)
        self.network: nn.Module = build_network(config.network)
        self.heads = training_heads(config.labels)
        self.dice = DiceLoss(sigmoid=True, batch=True)
        seed = torch.Generator().manual_seed(config.trainer.seed)
        self.validation = synthesise(
            validation_heads(config.labels), config.synthesis, seed, VALIDATION_IMAGES, config.window
        )

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """The seed of the step's images: they are made where the network is, which no loader keeps up with."""
        return {"seed": torch.tensor(int(rng.integers(2**62))), "size": torch.tensor(size)}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        device = batch["seed"].device
        self.heads = self.heads.to(device)
        draws = torch.Generator(device).manual_seed(int(batch["seed"]))
        image, brain = synthesise(self.heads, self.config.synthesis, draws, int(batch["size"]), self.config.window)
        logits = brain_logits(network, image).float()
        dice = self.dice(logits, brain)
        return {"loss": functional.binary_cross_entropy_with_logits(logits, brain) + dice, "dice_loss": dice}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        scores, pictures = [], []
        for image, brain in zip(*self.validation, strict=True):
            probability = torch.sigmoid(brain_logits(network, image[None].to(device)).float()).cpu()[0]
            found, truth = probability > 0.5, brain > 0.5
            scores.append(2.0 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1))
            middle = image.shape[-1] // 2
            pictures.append(torch.cat([image[0, :, :, middle], probability[0, :, :, middle]], 1))
        return {"dice": float(torch.stack(scores).mean())}, {"image, probability": torch.cat(pictures)[None]}


def training_heads(labels: Path) -> HeadMaps:
    """The heads that are trained on.

    Raises:
        ConfigurationError: when the file cannot be read or holds none beside those kept apart.
    """
    maps = HeadMaps.load(labels)
    if len(maps) <= VALIDATION_HEADS:
        raise ConfigurationError(f"{labels} holds {len(maps)} label maps; training needs more than {VALIDATION_HEADS}.")
    return maps.select(range(VALIDATION_HEADS, len(maps)))


def validation_heads(labels: Path) -> HeadMaps:
    """The heads that are never trained on."""
    return HeadMaps.load(labels).select(range(VALIDATION_HEADS))
