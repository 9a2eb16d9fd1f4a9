"""Healthy tissue taken out of healthy slices and put back by the diffusion model, to see what it believes in.

A model that replaces lesions must also give healthy tissue back where it is hidden: what is wrong in these pictures
will be a false alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.inference import make_batch
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.methods import unsupervised
from diffusion_anomaly.methods.base import fork, to_model_range, to_unit_range
from diffusion_anomaly.registry import UnsupervisedOptions

HEIGHTS = (0.35, 0.5, 0.65)  # of the brain, from below: which slices are shown
SIDE = 0.3  # of the brain's width: the square that is hidden
STEPS = 50  # levels walked where the model takes as many


@dataclass(frozen=True)
class Inpainted:
    """A slice with a square of it hidden.

    Attributes:
        image: ``(H, W)`` the slice, normalised intensity.
        hidden: ``(H, W)`` bool.
        codec: ``(H, W)`` what the autoencoder alone makes of the slice.
        versions: ``(K, H, W)`` what the model puts into the square, each from noise of its own.
    """

    image: np.ndarray
    hidden: np.ndarray
    codec: np.ndarray
    versions: np.ndarray

    @property
    def error(self) -> float:
        """Mean absolute difference inside the square, over versions, normalised intensity."""
        return float(np.abs(self.versions - self.image)[:, self.hidden].mean())

    @property
    def codec_error(self) -> float:
        """The same of the autoencoder alone: no version can be closer."""
        return float(np.abs(self.codec - self.image)[self.hidden].mean())


def inpaint(detector: Detector, scan: Path, versions: int = 2, steps: int = STEPS) -> list[Inpainted]:
    """Hide a square on the right of slices of a healthy scan, and let the model fill it.

    Args:
        detector: of the method "unsupervised".
        scan: of a healthy brain.
        versions: how often each is filled.
        steps: levels walked, at most as many as the model takes.
    """
    model, options = detector.model, detector.plan.method_options
    assert model is not None and isinstance(options, UnsupervisedOptions)
    options = replace(options, start_from_noise=True, steps=min(steps, options.most_steps))
    volume = read_volume(scan)
    stack, scales = detector.slices(volume, detector.find_brain(volume))
    brain = stack.brain()
    area = brain.sum(axis=(1, 2))
    rows = np.flatnonzero(area > 0.3 * area.max())
    found = []
    for height in HEIGHTS:
        place = int(rows[round(height * (len(rows) - 1))])
        hidden = square(brain[place])
        batch = make_batch(stack, scales, place, place + 1, seed=0)
        latent = model.encode(to_model_range(batch.images.to(model.device)))
        mask = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(hidden)[None, None].float(), latent.shape[2:])
        generators = fork(batch.generators)
        filled = [
            model.decode(
                unsupervised.inpaint(latent, mask.to(model.device), generators, model, options, lambda calls: None)
            )
            for _ in range(versions)
        ]
        images = [to_unit_range(one)[0, 0].float().cpu().numpy() for one in (model.decode(latent), *filled)]
        found.append(Inpainted(batch.images[0, 0].numpy(), hidden, images[0], np.stack(images[1:])))
    return found


def square(brain: np.ndarray) -> np.ndarray:
    """The square ``(H, W)`` bool in the middle of the right half of a brain ``(H, W)`` bool."""
    rows, columns = (np.flatnonzero(brain.any(axis=axis)) for axis in (1, 0))
    side = max(4, round(SIDE * (columns[-1] - columns[0] + 1)))
    middle = (rows[0] + rows[-1]) // 2, (columns[0] + 3 * columns[-1]) // 4
    hidden = np.zeros_like(brain)
    top, left = middle[0] - side // 2, middle[1] - side // 2
    hidden[top : top + side, left : left + side] = True
    return hidden & brain


def draw(slices: Sequence[Inpainted], credit: str, path: Path) -> None:
    """Write a PNG with a row a slice: the slice, the hidden square, the autoencoder alone, each version."""
    titles = ("slice", "hidden", "autoencoder", *(f"filled, {n + 1}" for n in range(len(slices[0].versions))))
    figure = Figure(figsize=(1.6 * len(titles), 1.7 * len(slices) + 0.2), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(slices), len(titles), squeeze=False)
    figure.subplots_adjust(0.01, 0.06, 0.99, 0.95, 0.02, 0.02)
    for row, one in zip(axes, slices, strict=True):
        shown = (one.image, np.where(one.hidden, 0.0, one.image), one.codec, *one.versions)
        for axis, image in zip(row, shown, strict=True):
            axis.imshow(image[::-1], cmap="gray", vmin=0.0, vmax=0.9)
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.text(0.5, 0.015, credit, ha="center", fontsize=6.5)
    figure.savefig(path, format="png")
