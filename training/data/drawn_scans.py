"""Scans to learn recognition from: drawn once for many passes, or anew in every step.

On a CPU drawing one takes longer than learning from it; on a GPU it does not, and no gigabytes have to travel there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from diffusion_anomaly.detection.recognition_network import CHANNELS, FOLD, WINDOW, recognition_input

from ..trainer.configuration import ConfigurationError
from .contrasts import draw_scans as paint_scans
from .head_maps import HeadMaps
from .synthesis import SynthesisConfig
from .windows import Windows

logger = logging.getLogger(__name__)

SCALE = 200.0
"""Of inputs, from 0 to 1.2, kept as bytes."""
AT_ONCE = 16
INPUTS, LABELS = "inputs.npy", "labels.npz"


class DrawScansConfig(BaseModel):
    """Configuration file of ``draw-scans``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Path = Field(description="file that prepare-labels wrote")
    heads: list[int] = Field(description="numbers of the label maps to paint")
    windows: Path | None = Field(default=None, description="file that prepare-windows wrote")
    synthesis: SynthesisConfig = SynthesisConfig()
    painted: int = Field(ge=0, description="how many painted scans")
    real: int = Field(default=0, ge=0, description="how many changed real ones")
    recoloured: float = Field(default=0.0, ge=0, le=1, description="share of real T1 shown in other contrasts")
    window: tuple[int, int, int] = WINDOW
    seed: int = 0

    @model_validator(mode="after")
    def _some(self) -> DrawScansConfig:
        if not self.painted + self.real:
            raise ValueError("neither painted nor real scans are wanted")
        return self


class FreshScans:
    """Scans drawn whenever they are asked for, on the device of the generator.

    Raises:
        ConfigurationError: when real scans are wanted and none given, or a file is missing or another one.
    """

    def __init__(self, config: DrawScansConfig) -> None:
        if config.real and config.windows is None:
            raise ConfigurationError("real scans are wanted, but windows names no file of them")
        self.config = config
        self.heads = HeadMaps.load(config.labels).select(config.heads)
        self.windows = Windows.load(config.windows) if config.real and config.windows else None

    @torch.no_grad()
    def draw(self, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """Inputs float32, kinds and poses of so many scans, painted and real ones by their shares."""
        config, device = self.config, generator.device
        real = round(size * config.real / (config.painted + config.real))
        parts = []
        with torch.autocast(device.type, enabled=False):
            if size > real:
                self.heads = self.heads.to(device)
                parts.append(paint_scans(self.heads, config.synthesis, generator, size - real, config.window))
            if real and self.windows is not None:
                self.windows = self.windows.to(device)
                parts.append(self.windows.draw(config.synthesis, generator, real, config.recoloured))
            image, brain, kind, pose = (torch.cat(some) for some in zip(*parts, strict=True))
            return {"inputs": recognition_input(image, brain), "kind": kind, "pose": pose}


def draw_scans(config: DrawScansConfig, output: Path) -> None:
    """Draw scans and write what the network reads of them, with kinds and poses.

    Raises:
        ConfigurationError: when real scans are wanted and none given.
    """
    if config.real and config.windows is None:
        raise ConfigurationError("real scans are wanted, but windows names no file of them")
    output.mkdir(parents=True, exist_ok=True)
    heads = HeadMaps.load(config.labels).select(config.heads)
    windows = Windows.load(config.windows) if config.windows else None
    generator = torch.Generator().manual_seed(config.seed)
    count = config.painted + config.real
    shape = (count, CHANNELS, *(edge // FOLD for edge in config.window))
    inputs = np.lib.format.open_memmap(output / INPUTS, "w+", np.uint8, shape)
    kinds, poses = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for first in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - first, config.painted - first if first < config.painted else count)
        part = slice(first, first + size)
        if windows is None or first < config.painted:
            image, brain, kind, pose = paint_scans(heads, config.synthesis, generator, size, config.window)
        else:
            image, brain, kind, pose = windows.draw(config.synthesis, generator, size, config.recoloured)
        inputs[part] = (recognition_input(image, brain) * SCALE).round().clamp(0, 255).to(torch.uint8).numpy()
        kinds[part], poses[part] = kind.numpy(), pose.numpy()
        if first // AT_ONCE % 20 == 0:
            logger.info("%d of %d scans", first, count)
    inputs.flush()
    np.savez(output / LABELS, kinds=kinds, poses=poses)


@dataclass(frozen=True)
class DrawnScans:
    """What ``draw_scans`` wrote.

    Attributes:
        inputs: ``(n, CHANNELS, x, y, z)`` uint8.
        kinds: ``(n,)`` int64.
        poses: ``(n,)`` int64.
    """

    inputs: np.ndarray
    kinds: np.ndarray
    poses: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> DrawnScans:
        """Read a folder, its images as they are needed.

        Raises:
            ConfigurationError: when it is no such folder.
        """
        try:
            with np.load(folder / LABELS) as labels:
                return cls(np.load(folder / INPUTS, mmap_mode="r"), labels["kinds"], labels["poses"])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"{folder} holds no drawn scans ({error}); draw-scans writes them.") from error

    def __len__(self) -> int:
        return len(self.kinds)

    def batch(self, numbers: np.ndarray, *, mirrored: bool = False) -> dict[str, Tensor]:
        """Some of them: inputs float32, kinds and poses.

        Args:
            numbers: which.
            mirrored: left to right, which is no other kind and no other pose.
        """
        inputs = torch.from_numpy(self.inputs[numbers])
        if mirrored:
            folded = inputs.unflatten(1, (CHANNELS // FOLD**3, FOLD, FOLD, FOLD))
            inputs = folded.flip(2, 5).flatten(1, 4)
        kinds, poses = (torch.from_numpy(part[numbers]) for part in (self.kinds, self.poses))
        return {"inputs": inputs.float() / SCALE, "kind": kinds, "pose": poses}
