"""The brain mask network: a U-Net on 2 mm images synthesised from label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchio as tio
from monai.losses import DiceCELoss
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from diffusion_anomaly.brain import brain_logits
from diffusion_anomaly.networks import build_network

from .configuration import NetworkDeclaration
from .synthesis import Head, load_head, synthesise
from .trainer import Batch, TrainerConfig

VALIDATION_HEADS = 2  # label maps kept apart to watch the training
VALIDATION_IMAGES = 6


class BrainConfig(BaseModel):
    """Configuration file of the stage ``brain``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Path
    lesions: Path | None = None
    network: NetworkDeclaration
    trainer: TrainerConfig


class BrainTask:
    """Batches of synthetic heads, Dice and cross-entropy loss."""

    def __init__(self, config: BrainConfig) -> None:
        torch.manual_seed(config.trainer.seed)
        self.network: nn.Module = build_network(config.network)
        paths = sorted(config.labels.glob("*.nii.gz"))
        if len(paths) <= VALIDATION_HEADS:
            raise FileNotFoundError(f"{config.labels} holds {len(paths)} label maps (*.nii.gz); training needs more.")
        heads = [load_head(path) for path in paths]
        self.heads: list[Head] = heads[VALIDATION_HEADS:]
        self.lesions = load_lesions(config.lesions) if config.lesions else []
        self.criterion = DiceCELoss(sigmoid=True, batch=True)
        rng = np.random.default_rng(config.trainer.seed)
        torch.manual_seed(config.trainer.seed)
        pairs = [synthesise(heads[i % VALIDATION_HEADS], self.lesions, rng) for i in range(VALIDATION_IMAGES)]
        self.validation = [(image[None], brain[None]) for image, brain in pairs]

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        pairs = [synthesise(self.heads[rng.integers(len(self.heads))], self.lesions, rng) for _ in range(size)]
        return {"image": torch.stack([p[0] for p in pairs]), "brain": torch.stack([p[1] for p in pairs])}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": self.criterion(brain_logits(network, batch["image"]).float(), batch["brain"])}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        scores, pictures = [], []
        for image, brain in self.validation:
            probability = torch.sigmoid(brain_logits(network, image.to(device)).float()).cpu()
            found, truth = probability > 0.5, brain > 0.5
            scores.append(2.0 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1))
            middle = image.shape[-1] // 2
            pictures.append(torch.cat([image[0, 0, :, :, middle], probability[0, 0, :, :, middle]], 1))
        return {"dice": float(torch.stack(scores).mean())}, {"image, probability": torch.cat(pictures)[None]}


def load_lesions(folder: Path) -> list[np.ndarray]:
    """Lesion shapes at 2 mm, cropped to their bounding boxes.

    Raises:
        FileNotFoundError: when the folder holds none; without an entry ``lesions`` brains stay healthy.
    """
    shapes = []
    for path in sorted(folder.glob("*.nii.gz")):
        lesion = tio.Resample(2.0)(tio.LabelMap(path)).data[0].numpy() > 0
        places = np.argwhere(lesion)
        if len(places):
            low, high = places.min(0), places.max(0) + 1
            shapes.append(lesion[low[0] : high[0], low[1] : high[1], low[2] : high[2]])
    if not shapes:
        raise FileNotFoundError(f"{folder} holds no lesion masks (*.nii.gz).")
    return shapes
