"""The network that tells which contrast a scan has, whether it shows a brain, and which way up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from diffusion_anomaly.detection.recognition_network import KINDS, POSES, WINDOW, recognise, recognition_input
from diffusion_anomaly.models.networks import build_network

from ..data.contrasts import NO_POSE, draw_scans
from ..data.synthesis import SynthesisConfig
from ..trainer.configuration import NetworkDeclaration
from ..trainer.loop import Batch
from ..trainer.optimisation import TrainerConfig
from .brain import training_heads, validation_heads

VALIDATION_IMAGES = 128


class RecognitionConfig(BaseModel):
    """Configuration file of the stage ``recognition``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Path = Field(description="file that prepare-labels wrote")
    window: tuple[int, int, int] = Field(
        default=WINDOW, description="voxels shown; what the engine shows, but in tests"
    )
    synthesis: SynthesisConfig = SynthesisConfig()
    network: NetworkDeclaration
    trainer: TrainerConfig


class RecognitionTask:
    """Painted scans, made on the training's device inside the step; cross-entropy of kind and of pose."""

    def __init__(self, config: RecognitionConfig) -> None:
        self.config = config
        torch.manual_seed(config.trainer.seed)
        self.network: nn.Module = build_network(config.network)
        self.heads = training_heads(config.labels)
        seed = torch.Generator().manual_seed(config.trainer.seed)
        self.validation = draw_scans(
            validation_heads(config.labels), config.synthesis, seed, VALIDATION_IMAGES, config.window
        )

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """The seed of the step's images: they are made where the network is, which no loader keeps up with."""
        return {"seed": torch.tensor(int(rng.integers(2**62))), "size": torch.tensor(size)}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        device = batch["seed"].device
        self.heads = self.heads.to(device)
        draws = torch.Generator(device).manual_seed(int(batch["seed"]))
        image, brain, kind, pose = draw_scans(
            self.heads, self.config.synthesis, draws, int(batch["size"]), self.config.window
        )
        logits = network(recognition_input(image, brain)).float()
        of_kind, of_pose = logits.split((len(KINDS), len(POSES)), 1)
        loss = functional.cross_entropy(of_kind, kind)
        pose_loss = functional.cross_entropy(of_pose, pose, ignore_index=NO_POSE, reduction="sum")
        pose_loss = pose_loss / (pose != NO_POSE).sum().clamp_min(1)
        return {"loss": loss + pose_loss, "kind_loss": loss, "pose_loss": pose_loss}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        image, brain, kind, pose = (part.to(device) for part in self.validation)
        parts = zip(image.split(16), brain.split(16), strict=True)
        of_kind, of_pose = (torch.cat(found) for found in zip(*(recognise(network, *p) for p in parts), strict=True))
        seen = pose != NO_POSE
        flair = (of_kind.argmax(1) == 0) == (kind == 0)
        scalars = {
            "kinds right": float((of_kind.argmax(1) == kind).float().mean()),
            "FLAIR or not right": float(flair.float().mean()),
            "poses right": float((of_pose.argmax(1) == pose)[seen].float().mean()),
        }
        middle = image.shape[-1] // 2
        pictures = image[:8, :, :, middle] / image[:8].flatten(1).amax(1).clamp_min(1e-6)[:, None, None]
        return scalars, {"images": torch.cat(list(pictures), 1)[None]}
