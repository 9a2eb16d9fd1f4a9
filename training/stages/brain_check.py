"""How well the brain mask network does on scans and heads that its training never saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.detection.brain_network import SPACING
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation.dataset import find_pairs
from diffusion_anomaly.io.volume import Volume, read_mask, read_volume
from diffusion_anomaly.models.package import Bundle

from ..data.synthesis import SynthesisConfig, synthesise
from .brain import validation_heads


class ScanCheck(BaseModel):
    """Overlap on scans; without references they are stripped scans, whose brain is what is not zero."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folder: Path
    scan: str
    reference: str | None = None

    def measure(self, bundle: Bundle) -> dict[str, Any]:
        scores = []
        for pair in find_pairs(self.folder, self.scan, self.reference or self.scan):
            volume = read_volume(pair.scan)
            stripped = sitk.GetArrayFromImage(volume.image) != 0
            mask = sitk.GetArrayFromImage(read_mask(pair.reference, volume)) > 0 if self.reference else stripped
            reference = np.asarray(ndimage.binary_fill_holes(mask))
            scores.append(_dice(_found(volume, bundle), reference))
        return _dice_rows(f"{self.name} ({len(scores)} scans)", scores)


class PaintedCheck(BaseModel):
    """Overlap on heads painted as in training, from the label maps that were kept apart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    labels: Path = Field(description="file that prepare-labels wrote")
    heads: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)

    def measure(self, bundle: Bundle) -> dict[str, Any]:
        scores = [_dice(_found(volume, bundle), brain) for volume, brain in self.paint()]
        return _dice_rows(f"{self.name} ({len(scores)} heads)", scores)

    def paint(self) -> Iterator[tuple[Volume, np.ndarray]]:
        """Heads and their brains, ``(Z, Y, X)``."""
        maps = validation_heads(self.labels)
        generator = torch.Generator().manual_seed(self.seed)
        for number in range(self.heads):
            image, brain = synthesise(maps, SynthesisConfig(), generator, 1)
            scan = sitk.GetImageFromArray(image[0, 0].numpy().transpose(2, 1, 0))
            scan.SetSpacing([SPACING] * 3)
            scan.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # the arrays run to the right, the front and up
            yield Volume(scan, f"head {number}", "", 3, 0, {}), brain[0, 0].numpy().transpose(2, 1, 0) > 0.5


class LesionCheck(BaseModel):
    """Share of each scan's lesion outside the mask: what is cut off is never looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folders: list[Path]
    scan: str
    lesion: str

    def measure(self, bundle: Bundle) -> dict[str, Any]:
        lost = self.lost(bundle)
        shares = [100.0 * share for share in lost.values()]
        name = f"lesion outside the mask in %, {self.name} ({len(shares)} scans)"
        return {f"{name}, mean": round(float(np.mean(shares)), 3), f"{name}, worst": round(float(max(shares)), 3)}

    def lost(self, bundle: Bundle) -> dict[str, float]:
        """The share of each scan with a lesion, by the scan's name."""
        shares = {}
        for pair in (pair for folder in self.folders for pair in find_pairs(folder, self.scan, self.lesion)):
            volume = read_volume(pair.scan)
            lesion = sitk.GetArrayFromImage(read_mask(pair.reference, volume)) > 0
            if lesion.any():
                shares[pair.name] = float((lesion & ~_found(volume, bundle)).sum() / lesion.sum())
        return shares


BrainCheck = ScanCheck | PaintedCheck | LesionCheck


def check_brain(bundle: Bundle, checks: list[BrainCheck]) -> dict[str, Any]:
    """What the checks measure, for a package's ``quality``."""
    quality: dict[str, Any] = {}
    for check in checks:
        quality |= check.measure(bundle)
    return quality


def _found(volume: Volume, bundle: Bundle) -> np.ndarray:
    """The mask; empty where the network finds no brain at all, which counts as the worst mask there is."""
    try:
        return sitk.GetArrayFromImage(BrainFinder(bundle)(volume)) > 0
    except InputError:
        return np.zeros(volume.image.GetSize()[::-1], bool)


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2.0 * (first & second).sum() / max(1, first.sum() + second.sum()))


def _dice_rows(name: str, scores: list[float]) -> dict[str, Any]:
    return {
        f"Dice, {name}, lowest": round(float(min(scores)), 4),
        f"Dice, {name}, mean": round(float(np.mean(scores)), 4),
    }
