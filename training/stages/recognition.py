"""The network that tells which contrast a scan has, whether it shows a brain, and which way up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from diffusion_anomaly.detection.recognition_network import KINDS, POSES
from diffusion_anomaly.models.networks import build_network

from ..data.contrasts import NO_POSE
from ..data.drawn_scans import DrawnScans, DrawScansConfig, FreshScans
from ..trainer.configuration import NetworkDeclaration, read_yaml
from ..trainer.loop import Batch
from ..trainer.optimisation import TrainerConfig

AT_ONCE = 32
WATCHED = 64  # scans that validation looks at where they are drawn for it


class RecognitionConfig(BaseModel):
    """Configuration file of the stage ``recognition``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scans: list[Path] = Field(
        min_length=1,
        description="folders that draw-scans wrote, or configurations of it, whose scans are drawn in every step",
    )
    validation: Path = Field(description="another one, to watch the training with")
    network: NetworkDeclaration
    trainer: TrainerConfig


class RecognitionTask:
    """Drawn scans, as often from one folder as from another; cross-entropy of kind and of pose."""

    def __init__(self, config: RecognitionConfig) -> None:
        self.config = config
        torch.manual_seed(config.trainer.seed)
        self.network: nn.Module = build_network(config.network)
        self.scans = [_scans(path) for path in config.scans]
        self.validation = _scans(config.validation)

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """Scans that are kept; of those to be drawn, numbers and seeds: they are made where the network is."""
        parts, fresh = [], []
        for number, scans in enumerate(self.scans):
            count = size * (number + 1) // len(self.scans) - size * number // len(self.scans)
            if isinstance(scans, FreshScans):
                fresh.append((number, count, int(rng.integers(2**62))))
                continue
            chosen = rng.choice(len(scans), count, replace=count > len(scans))
            parts.append(scans.batch(chosen, mirrored=bool(rng.random() < 0.5)))
        kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
        return kept | ({"fresh": torch.tensor(fresh)} if fresh else {})

    def scans_of(self, batch: Batch) -> Batch:
        """Inputs, kinds and poses of a batch, all on its device."""
        parts = [batch] if "inputs" in batch else []
        if "fresh" in batch:
            device = batch["fresh"].device
            for number, count, seed in batch["fresh"].tolist():
                scans = self.scans[number]
                if count and isinstance(scans, FreshScans):
                    parts.append(scans.draw(torch.Generator(device).manual_seed(seed), count))
        return {name: torch.cat([part[name] for part in parts]) for name in ("inputs", "kind", "pose")}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self.scans_of(batch)
        of_kind, of_pose = network(batch["inputs"]).float().split((len(KINDS), len(POSES)), 1)
        kind_loss = functional.cross_entropy(of_kind, batch["kind"])
        seen = batch["pose"] != NO_POSE
        pose_loss = functional.cross_entropy(of_pose, batch["pose"], ignore_index=NO_POSE, reduction="sum")
        pose_loss = pose_loss / seen.sum().clamp_min(1)
        return {"loss": kind_loss + pose_loss, "kind_loss": kind_loss, "pose_loss": pose_loss}

    @torch.no_grad()
    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        device = next(network.parameters()).device
        right: dict[str, list[Tensor]] = {"kinds right": [], "FLAIR or not right": [], "poses right": []}
        for batch in self._watched(device):
            of_kind, of_pose = network(batch["inputs"].to(device)).float().cpu().split((len(KINDS), len(POSES)), 1)
            batch = {name: values.cpu() for name, values in batch.items()}
            kind, pose = of_kind.argmax(1), of_pose.argmax(1)
            right["kinds right"].append(kind == batch["kind"])
            right["FLAIR or not right"].append((kind == 0) == (batch["kind"] == 0))
            right["poses right"].append((pose == batch["pose"])[batch["pose"] != NO_POSE])
        return {name: float(torch.cat(parts).float().mean()) for name, parts in right.items()}, {}

    def _watched(self, device: torch.device) -> Iterator[Batch]:
        """Always the same scans, in parts."""
        scans = self.validation
        if isinstance(scans, FreshScans):
            generator = torch.Generator(device).manual_seed(scans.config.seed)
            left = min(WATCHED, scans.config.painted + scans.config.real)
            for first in range(0, left, AT_ONCE):
                yield scans.draw(generator, min(AT_ONCE, left - first))
            return
        for first in range(0, len(scans), AT_ONCE):
            yield scans.batch(np.arange(first, min(first + AT_ONCE, len(scans))))


def _scans(path: Path) -> DrawnScans | FreshScans:
    return FreshScans(read_yaml(path, DrawScansConfig)) if path.suffix in (".yaml", ".yml") else DrawnScans.load(path)
