"""The README's picture, from the results of ``make demo``: slices of the sample scan, and the same with the anomaly
map.

    python docs/figures.py          # or: make figures

Slices are drawn by the report's own code, so that the README shows what a user gets.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from diffusion_anomaly.io.volume import read_anomaly_map, read_mask, read_volume
from diffusion_anomaly.results.painting import paint_scale
from diffusion_anomaly.results.rendering import SliceView, draw_slices

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"
PICTURE = ROOT / "docs" / "images" / "demo.png"
COLUMNS = 6
WIDTH = 1600  # pixels; twice what a README shows


def draw(scan: Path, results: Path, picture: Path) -> None:
    """Write the picture: above the scan, below the same slices with the anomaly map and the mask's outline, then the
    anomaly map scale.

    Args:
        scan: what the detection ran on.
        results: folder that the detection wrote.
        picture: PNG file; its folder is made if need be.
    """
    volume = read_volume(scan)
    anomaly_map = read_anomaly_map(results / "heat.nii.gz").image
    mask = read_mask(results / "mask.nii.gz", volume)
    threshold = json.loads((results / "provenance.json").read_text(encoding="utf-8"))["threshold"]["heat"]
    view = SliceView(volume.image, anomaly_map, mask, volume.image > 0)  # the sample is stripped
    top = max(float(view.peaks().max()), 1.5 * threshold)
    drawn = draw_slices(view, spread_slices(view, COLUMNS), threshold, top)
    rows = [np.hstack([_pixels(one.scan) for one in drawn]), np.hstack([_pixels(one.overlay) for one in drawn])]
    slices = np.vstack(rows)
    bar = _colour_bar(threshold, top)
    footer = np.full((bar.shape[0] * 5 // 4, slices.shape[1], 3), 255, dtype=np.uint8)
    first = (footer.shape[1] - bar.shape[1]) // 2
    footer[-bar.shape[0] :, first : first + bar.shape[1]] = bar
    image = Image.fromarray(np.vstack([slices, footer]))
    picture.parent.mkdir(parents=True, exist_ok=True)
    image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS).save(
        picture, optimize=True
    )


def spread_slices(view: SliceView, count: int) -> list[int]:
    """Slices that share the marked volume out evenly between them, or without any mark the brain's slices."""
    weight = view.marked()
    if np.count_nonzero(weight) < count:
        weight = np.array([float(plane.any()) for plane in view.brain])
    share = np.cumsum(weight) / weight.sum()
    return [int(np.searchsorted(share, (2 * n + 1) / (2 * count))) for n in range(count)]


def _pixels(data_uri: str) -> np.ndarray:
    """A PNG data URI as ``(height, width, 3)`` uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))).convert("RGB"))


def _colour_bar(threshold: float, top: float) -> np.ndarray:
    """The anomaly map scale as ``(height, width, 3)`` uint8."""
    figure = Figure(figsize=(4.2, 0.62), dpi=200)
    paint_scale(figure.add_axes((0.03, 0.55, 0.94, 0.34)), threshold, top)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return np.asarray(Image.open(buffer).convert("RGB"))


if __name__ == "__main__":
    draw(SAMPLE, ROOT / "demo", PICTURE)
