"""How well the brain mask network does on real scans that its training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from diffusion_anomaly.brain import find_brain
from diffusion_anomaly.bundle import Bundle
from diffusion_anomaly.pairs import find_pairs
from diffusion_anomaly.volume import read_mask, read_volume


class BrainCheck(BaseModel):
    """Scans to measure on; without references they are stripped scans, whose brain is what is not zero."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folder: Path
    scan: str
    reference: str | None = None


def check_brain(bundle: Bundle, checks: list[BrainCheck]) -> dict[str, Any]:
    """Dice overlap of the mask found with each reference, its holes filled, for a package's ``quality``."""
    quality: dict[str, Any] = {}
    for check in checks:
        scores = []
        for pair in find_pairs(check.folder, check.scan, check.reference or check.scan):
            volume = read_volume(pair.scan)
            stripped = sitk.GetArrayFromImage(volume.image) != 0
            mask = sitk.GetArrayFromImage(read_mask(pair.reference, volume)) > 0 if check.reference else stripped
            reference = np.asarray(ndimage.binary_fill_holes(mask))
            found = sitk.GetArrayFromImage(find_brain(volume, bundle)) > 0
            scores.append(2.0 * (found & reference).sum() / (found.sum() + reference.sum()))
        quality[f"Dice, {check.name} ({len(scores)} scans), lowest"] = round(float(min(scores)), 4)
        quality[f"Dice, {check.name} ({len(scores)} scans), mean"] = round(float(np.mean(scores)), 4)
    return quality
