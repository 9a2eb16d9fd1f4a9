"""Films, what the model makes of them, and what had to change: the ones told best, halfway and worst of each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .lungs import lungs

if TYPE_CHECKING:
    from .experiment import Film

TITLES = ("film", "pseudo-healthy", "difference", "anomaly map")
TOP = 3.0  # of the anomaly map's colours: one healthy pixel in a thousand


def chosen_films(labels: np.ndarray, scores: np.ndarray) -> list[tuple[str, int]]:
    """What the rows show, and which film: the highest diseased score is the best, the highest healthy one the worst."""
    rows = []
    for label, name, places in ((1, "diseased", (-1, None, 0)), (0, "healthy", (0, None, -1))):
        order = np.flatnonzero(labels == label)
        order = order[np.argsort(scores[order], kind="stable")]
        for word, place in zip(("best", "median", "worst"), places, strict=True):
            rows.append((f"{name}, {word}", int(order[len(order) // 2 if place is None else place])))
    return rows


def draw_examples(films: Sequence[Film], scores: np.ndarray, credit: str, path: Path) -> None:
    """Write a PNG with a row for each of ``chosen_films``; lungs, where they were found, are outlined.

    Args:
        films: at least one of each class.
        scores: ``(N,)`` by which they were told apart.
        credit: below the picture.
        path: of the PNG.
    """
    rows = chosen_films(np.array([film.label for film in films]), scores)
    figure = Figure(figsize=(7.2, 1.8 * len(rows) + 0.5), dpi=75)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(TITLES))
    figure.subplots_adjust(0.05, 0.03, 0.995, 0.97, 0.02, 0.02)
    top = float(np.percentile([films[number].difference.max() for _, number in rows], 50))
    for row, (name, number) in zip(axes, rows, strict=True):
        film = films[number]
        grey = {"cmap": "gray", "vmin": film.values.min(), "vmax": film.values.max()}
        shown = ((film.values, grey), (film.reconstruction, grey))
        shown += ((film.difference, {"cmap": "inferno", "vmin": 0, "vmax": max(top, 1e-6)}),)
        shown += ((film.anomaly_map, {"cmap": "inferno", "vmin": 0, "vmax": TOP}),)
        outline = lungs(film.values)
        for axis, (image, colours) in zip(row, shown, strict=True):
            axis.imshow(image, aspect="auto", **colours)
            axis.set_xticks([])
            axis.set_yticks([])
        if outline is not None:
            for axis in row[2:]:
                axis.contour(outline.astype(float), levels=[0.5], colors=["#38bdf8"], linewidths=0.8)
        row[0].set_ylabel(f"{name}: {scores[number]:.2f}", fontsize=8)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=9)
    figure.text(0.5, 0.008, credit, ha="center", fontsize=6.5)
    canvas.draw()
    # Few colours make a small file: greys and one scale of colours are all there is.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)
