"""The picture of the MedNIST experiment: the sprites found best, halfway and worst, and what the method saw there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion_anomaly.evaluation import metrics

from .shapes import Contaminated

CREDIT = (
    "Slices: MedNIST (B. J. Erickson, Mayo Clinic), CC BY-SA 4.0, with sprites pasted in; this picture: CC BY-SA 4.0"
)
TITLES = ("slice", "with a sprite", "anomaly map", "found (red), sprite (blue)")


def draw_examples(
    images: np.ndarray, sprites: Contaminated, anomaly_map: np.ndarray, threshold: float, path: Path
) -> None:
    """Write a PNG with a row each for the best, the median and the worst Dice at the threshold.

    Args:
        images: ``(K, H, W)`` uint8, the slices before anything was pasted.
        sprites: what was pasted into which of them.
        anomaly_map: ``(N, H, W)`` of the slices with sprites.
        threshold: anomaly scores, above 0, from which a pixel counts as found.
        path: of the PNG.
    """
    found = anomaly_map >= threshold
    dice = np.array([metrics.dice(f, m) for f, m in zip(found, sprites.masks, strict=True)])
    order = np.argsort(-dice, kind="stable")
    figure = Figure(figsize=(8.0, 6.6), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(TITLES))
    figure.subplots_adjust(0.06, 0.05, 0.995, 0.955, 0.02, 0.02)
    top = max(float(anomaly_map.max()), 1e-6)
    for row, (name, place) in enumerate(zip(("best", "median", "worst"), (0, len(order) // 2, -1), strict=True)):
        number = int(order[place])
        scan = sprites.images[number]
        shown = (images[sprites.numbers[number]], scan, anomaly_map[number], scan)
        grey, scores = {"cmap": "gray", "vmax": 255}, {"cmap": "inferno", "vmax": top}
        for axis, image, colours in zip(axes[row], shown, (grey, grey, scores, grey), strict=True):
            axis.imshow(image, vmin=0, **colours)
            axis.set_xticks([])
            axis.set_yticks([])
        _outline(axes[row][3], sprites.masks[number], "#38bdf8")
        _outline(axes[row][3], found[number], "#f87171")
        axes[row][0].set_ylabel(f"{name}: Dice {dice[number]:.2f}", fontsize=9)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=9)
    figure.text(0.5, 0.015, CREDIT, ha="center", fontsize=6.5)
    figure.savefig(path, format="png")


def _outline(axis: object, mask: np.ndarray, colour: str) -> None:
    if mask.any():
        axis.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)  # type: ignore[attr-defined]
