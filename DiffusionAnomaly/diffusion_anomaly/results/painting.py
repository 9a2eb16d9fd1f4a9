"""The same pictures with matplotlib, for pages of figures: into axes, so that titles and other panels may stand around.

Matplotlib is imported by its user; it takes half a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .rendering import CONTOUR, SliceView, colour_table, coloured_from, extent, map_colours, scale_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap


def paint_scan(axes: Axes, view: SliceView, k: int) -> None:
    """The slice in grey with the patient's sides, in millimetres around the brain; what lies on top comes after."""
    scan = view.scan[k, view.rows, view.columns]
    frame = _frame(view)
    axes.set_axis_off()
    low, high = view.window
    axes.imshow(scan, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", extent=frame, aspect="auto")
    for side, x, align in ((view.sides[0], 0.02, "left"), (view.sides[1], 0.98, "right")):
        axes.text(
            x, 0.5, side, transform=axes.transAxes, ha=align, va="center", color="white", fontsize=9, fontweight="bold"
        )
    axes.set_xlim(*frame[:2])
    axes.set_ylim(*frame[2:])


def paint_map(axes: Axes, view: SliceView, k: int, threshold: float, top: float) -> None:
    """Anomaly scores in colour, ever more opaque up to the threshold, and the outline of the brain."""
    colours, opacity = map_colours(view.anomaly_map[k, view.rows, view.columns], threshold, top)
    pixels = np.concatenate([colours / 255, opacity[..., None]], axis=-1)
    axes.imshow(pixels, interpolation="nearest", extent=_frame(view), aspect="auto")
    _outline(axes, view.brain[k, view.rows, view.columns], view.spacing, color="white", alpha=0.5, linewidths=0.6)


def paint_outline(axes: Axes, view: SliceView, k: int) -> None:
    """The mask's outline."""
    _outline(axes, view.mask[k, view.rows, view.columns], view.spacing, color=CONTOUR, linewidths=1.1)


def paint_mask(axes: Axes, view: SliceView, k: int) -> None:
    """The mask as a coloured area."""
    from matplotlib.colors import to_rgba

    marked = view.mask[k, view.rows, view.columns] != 0
    colours = np.where(marked[..., None], to_rgba(CONTOUR, 0.7), 0.0)
    axes.imshow(colours, interpolation="nearest", extent=_frame(view), aspect="auto")


def paint_scale(axes: Axes, threshold: float, top: float) -> None:
    """The colours of the anomaly map as a lying bar, with the threshold marked."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = axes.get_figure()
    assert figure is not None
    low = coloured_from(threshold)
    bar = figure.colorbar(ScalarMappable(Normalize(low, top), _colours()), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    ticks = scale_ticks(threshold, top)
    bar.set_ticks([tick for tick, _ in ticks], labels=[label for _, label in ticks])
    axes.tick_params(labelsize=8, colors="#334155", length=2)
    axes.axvline(threshold, color=CONTOUR, linewidth=2.5)


def _frame(view: SliceView) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the picture in mm; rows run downwards."""
    width, height = extent(view)
    return 0.0, width, height, 0.0


def _outline(axes: Axes, mask: np.ndarray, spacing: Sequence[float], *, color: str, **style: Any) -> None:
    """The mask's edge. Framed by zeros, so that a region at the picture's edge is outlined all around."""
    if not mask.any():
        return
    x = (np.arange(-1, mask.shape[1] + 1) + 0.5) * spacing[2]
    y = (np.arange(-1, mask.shape[0] + 1) + 0.5) * spacing[1]
    axes.contour(x, y, np.pad(mask != 0, 1).astype(float), levels=[0.5], colors=[color], **style)


def _colours() -> Colormap:
    from matplotlib.colors import ListedColormap

    return ListedColormap(colour_table() / 255)
