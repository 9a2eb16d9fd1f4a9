"""From sets of scans to the windows of them that the recognition network is shown, in one file."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.detection.recognition import recognition_window
from diffusion_anomaly.detection.recognition_network import KINDS
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import whole_file

from .scan_sets import ScanSet

logger = logging.getLogger(__name__)


class KnownSet(ScanSet):
    """Scans of which is known what they show."""

    kind: str = Field(description=f"one of {', '.join(KINDS)}")


class PrepareWindowsConfig(BaseModel):
    """Configuration file of ``prepare-windows``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets: list[KnownSet]


def prepare_windows(config: PrepareWindowsConfig, output: Path) -> None:
    """Find the brain in every scan of the sets, and keep what the network is shown of it in one file.

    Raises:
        OSError: when the file cannot be written.
    """
    finder = BrainFinder(device="cpu")
    images, brains, kinds = [], [], []
    for one in config.sets:
        before = len(kinds)
        for scan in one.scans():
            try:
                image, brain = recognition_window(scan.image, finder(scan))
            except InputError as error:  # nothing to be shown, in use as here
                logger.info("%s: %s", one.name, error)
                continue
            low, high = float(image.min()), float(np.percentile(image, 99.95))
            images.append(((image - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float16))
            brains.append(brain)
            kinds.append(KINDS.index(one.kind))
        logger.info("%s: %d scans", one.name, len(kinds) - before)
    with whole_file(output) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, images=np.stack(images), brains=np.stack(brains), kinds=np.array(kinds))
