"""Pictures of a result: axial slices as a radiologist hangs them, heat over the scan, and where in the scan it lies.

Drawn with matplotlib's Agg canvas and no global state, so a worker without a display and several threads can draw.
Slices are looked at through a view of the scan's own voxels; only the few that are shown are ever copied.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..io.orientation import Orientation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

SHOWN = 12
EVENLY_SPACED = 4
APART_MM = 6.0  # two neighbouring thin slices show the same thing
MARGIN_MM = 10.0
PICTURE_HEIGHT = 300  # pixels
CONTOUR = "#00e5ff"
# Dark purple on dark grey brain cannot be seen: the first quarter of the colour map is left out.
COLOUR_MAP, COLOUR_START = "inferno", 0.25
_LABELS = {0: ("R", "L"), 1: ("A", "P"), 2: ("S", "I")}


@dataclass(frozen=True)
class SlicePicture:
    """One slice, twice, as data URIs.

    Attributes:
        index: along the scan's own slice axis, counted from 0, as in the findings.
        scan: the slice in grey.
        overlay: the same with heat and the outlines of mask and brain.
        width, height: of each picture in pixels.
        peak: highest heat in the slice.
        area_ml: volume of the mask in the slice.
    """

    index: int
    scan: str
    overlay: str
    width: int
    height: int
    peak: float
    area_ml: float


class SliceView:
    """Canonical slices of scan, heat and mask: right of the patient on the left, anterior on top."""

    def __init__(self, scan: sitk.Image, heat: sitk.Image, mask: sitk.Image, brain: sitk.Image) -> None:
        orientation = Orientation.of(scan)
        self._images = (scan, heat, mask, brain)  # the arrays are views of their memory
        self.scan, self.heat, self.mask, self.brain = (
            orientation.view(sitk.GetArrayViewFromImage(image)) for image in (scan, heat, mask, brain)
        )
        self.spacing = orientation.spacing(scan)
        self.voxel_ml = float(np.prod(self.spacing)) / 1000
        self._flipped = orientation.flipped[0]
        column = np.array(scan.GetDirection()).reshape(3, 3)[:, orientation.axes[2]]
        self.sides = _LABELS[int(np.argmax(np.abs(column)))]
        self.window = _window(self.scan, self.brain)
        self.rows, self.columns = self._crop()

    def __len__(self) -> int:
        return len(self.scan)

    def own_index(self, k: int) -> int:
        """The slice's number in the scan's own order."""
        return len(self) - 1 - k if self._flipped else k

    def marked_ml(self) -> np.ndarray:
        """Volume of the mask in each slice, ml, ``(slices,)``."""
        return np.array([np.count_nonzero(plane) for plane in self.mask]) * self.voxel_ml

    def peaks(self) -> np.ndarray:
        """Highest heat in each slice, ``(slices,)``."""
        return np.array([float(plane.max()) for plane in self.heat])

    def _crop(self) -> tuple[slice, slice]:
        inside = np.any(self.brain, axis=0)
        crops = []
        for axis, spacing in ((1, self.spacing[1]), (0, self.spacing[2])):
            hits = np.flatnonzero(np.any(inside, axis=axis))
            margin = int(np.ceil(MARGIN_MM / spacing))
            first, last = (hits[0], hits[-1]) if hits.size else (0, inside.shape[1 - axis] - 1)
            crops.append(slice(max(0, int(first) - margin), int(last) + margin + 1))
        return crops[0], crops[1]


def choose_slices(view: SliceView, threshold: float, count: int = SHOWN) -> list[int]:
    """The slices worth showing, ascending: the most anomalous, some distance apart, and an even sample of the rest.

    Without a mask the hottest slices come first, if they have any heat that gets a colour.
    """
    with_brain = [k for k in range(len(view)) if view.brain[k].any()] or list(range(len(view)))
    marked, peaks = view.marked_ml(), view.peaks()
    apart = max(1, int(min(APART_MM / view.spacing[0], len(with_brain) / count)))
    chosen: list[int] = []
    for k in sorted(with_brain, key=lambda k: (-marked[k], -peaks[k])):
        if len(chosen) == count - EVENLY_SPACED or (marked[k] == 0 and peaks[k] <= coloured_from(threshold)):
            break
        if all(abs(k - other) >= apart for other in chosen):
            chosen.append(k)
    wanted = min(count, len(with_brain))
    missing = wanted - len(chosen)
    rest = [k for k in with_brain if all(abs(k - other) >= apart for other in chosen)]
    if len(rest) < missing:
        rest = [k for k in with_brain if k not in chosen]
    # The middles of equal parts: the outermost slices of a brain show little.
    chosen += [rest[(2 * n + 1) * len(rest) // (2 * missing)] for n in range(missing)]
    return sorted(chosen)


def coloured_from(threshold: float) -> float:
    """The lowest heat that gets a colour."""
    return 0.5 * threshold


def draw_slices(view: SliceView, slices: Sequence[int], threshold: float, top: float) -> list[SlicePicture]:
    """Pictures of the slices, heat coloured up to ``top``."""
    marked, peaks = view.marked_ml(), view.peaks()
    pictures = []
    for k in slices:
        plain, width, height = _draw(view, k, threshold, top, overlay=False)
        overlay, _, _ = _draw(view, k, threshold, top, overlay=True)
        pictures.append(
            SlicePicture(view.own_index(k), plain, overlay, width, height, float(peaks[k]), float(marked[k]))
        )
    return pictures


def draw_colour_bar(threshold: float, top: float) -> str:
    """The heat scale, with the threshold marked, as a data URI."""
    figure = _figure(4.2, 0.62)
    paint_scale(figure.add_axes((0.03, 0.55, 0.94, 0.34)), threshold, top)
    return _data_uri(figure)


def draw_profile(view: SliceView, slices: Sequence[int]) -> str:
    """Marked volume by slice, inferior to superior, with ticks where a slice is shown, as a data URI."""
    figure = _figure(9.2, 1.4)
    axes = figure.add_axes((0.065, 0.3, 0.925, 0.64))
    marked = view.marked_ml()
    axes.bar(np.arange(len(view)), marked, width=1.0, color="#c2410c", linewidth=0)
    axes.plot(list(slices), [0] * len(slices), "|", color="#0e7490", markersize=9, clip_on=False)
    axes.set_xlim(-0.5, len(view) - 0.5)
    axes.set_ylim(0, max(float(marked.max()) * 1.1, 1e-3))
    step = max(1, len(view) // 10)
    ticks = list(range(0, len(view), step))
    axes.set_xticks(ticks, [str(view.own_index(k)) for k in ticks])
    axes.locator_params(axis="y", nbins=3)
    axes.set_ylabel("ml", fontsize=8, color="#334155")
    axes.set_xlabel("slice", fontsize=8, color="#334155", labelpad=1)
    axes.tick_params(labelsize=8, colors="#334155", length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#94a3b8")
    return _data_uri(figure)


def paint_scan(axes: Axes, view: SliceView, k: int) -> None:
    """The slice in grey with the patient's sides, in millimetres around the brain; what lies on top comes after."""
    scan = view.scan[k, view.rows, view.columns]
    extent = _extent(view)
    axes.set_axis_off()
    low, high = view.window
    axes.imshow(scan, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", extent=extent, aspect="auto")
    for side, x, align in ((view.sides[0], 0.02, "left"), (view.sides[1], 0.98, "right")):
        axes.text(
            x, 0.5, side, transform=axes.transAxes, ha=align, va="center", color="white", fontsize=9, fontweight="bold"
        )
    axes.set_xlim(*extent[:2])
    axes.set_ylim(*extent[2:])


def paint_heat(axes: Axes, view: SliceView, k: int, threshold: float, top: float) -> None:
    """Heat in colour, ever more opaque up to the threshold, and the outline of the brain."""
    heat = view.heat[k, view.rows, view.columns]
    low = coloured_from(threshold)
    colours = _colours()(np.clip((heat - low) / max(top - low, 1e-6), 0, 1))
    colours[..., 3] = 0.8 * np.clip((heat - low) / (threshold - low), 0, 1)
    axes.imshow(colours, interpolation="nearest", extent=_extent(view), aspect="auto")
    _outline(axes, view.brain[k, view.rows, view.columns], view.spacing, color="white", alpha=0.5, linewidths=0.6)


def paint_outline(axes: Axes, view: SliceView, k: int) -> None:
    """The mask's outline."""
    _outline(axes, view.mask[k, view.rows, view.columns], view.spacing, color=CONTOUR, linewidths=1.1)


def paint_mask(axes: Axes, view: SliceView, k: int) -> None:
    """The mask as a coloured area."""
    from matplotlib.colors import to_rgba

    marked = view.mask[k, view.rows, view.columns] != 0
    colours = np.where(marked[..., None], to_rgba(CONTOUR, 0.7), 0.0)
    axes.imshow(colours, interpolation="nearest", extent=_extent(view), aspect="auto")


def paint_scale(axes: Axes, threshold: float, top: float) -> None:
    """The colours of heat as a lying bar, with the threshold marked."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = axes.get_figure()
    assert figure is not None
    low = coloured_from(threshold)
    bar = figure.colorbar(ScalarMappable(Normalize(low, top), _colours()), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    near = 0.08 * (top - low)
    ticks: list[float] = []
    # The threshold and the ends first: a whole number that stands close to one of them would be printed over it.
    for tick in (threshold, low, top, *map(float, range(int(np.ceil(low)), int(top) + 1))):
        if all(abs(tick - other) > near for other in ticks):
            ticks.append(tick)
    ticks.sort()
    while len(ticks) > 9:
        ticks = [tick for n, tick in enumerate(ticks) if n % 2 == 0 or tick == threshold]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" if tick == threshold else f"{tick:.2g}" for tick in ticks])
    axes.tick_params(labelsize=8, colors="#334155", length=2)
    axes.axvline(threshold, color=CONTOUR, linewidth=2.5)


def _draw(view: SliceView, k: int, threshold: float, top: float, *, overlay: bool) -> tuple[str, int, int]:
    _, width_mm, height_mm, _ = _extent(view)
    height = PICTURE_HEIGHT
    width = int(np.clip(round(height * width_mm / height_mm), PICTURE_HEIGHT // 4, PICTURE_HEIGHT * 4))
    figure = _figure(width / 100, height / 100)
    axes = figure.add_axes((0, 0, 1, 1))
    paint_scan(axes, view, k)
    if overlay:
        paint_heat(axes, view, k, threshold, top)
        paint_outline(axes, view, k)
    return _data_uri(figure), width, height


def _extent(view: SliceView) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the picture in mm; rows run downwards."""
    rows, columns = view.scan[0, view.rows, view.columns].shape
    return 0.0, columns * view.spacing[2], rows * view.spacing[1], 0.0


def _outline(axes: Axes, mask: np.ndarray, spacing: Sequence[float], *, color: str, **style: Any) -> None:
    """The mask's edge. Framed by zeros, so that a region at the picture's edge is outlined all around."""
    if not mask.any():
        return
    x = (np.arange(-1, mask.shape[1] + 1) + 0.5) * spacing[2]
    y = (np.arange(-1, mask.shape[0] + 1) + 0.5) * spacing[1]
    axes.contour(x, y, np.pad(mask != 0, 1).astype(float), levels=[0.5], colors=[color], **style)


def _window(scan: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    """Grey levels from the brain's own intensities, of an even sample of its voxels."""
    values = scan[:: max(1, len(scan) // 40)][brain[:: max(1, len(scan) // 40)] != 0]
    if values.size == 0:
        values = scan[brain != 0] if brain.any() else scan.ravel()
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.7)))
    return low, max(high, low + 1e-6)


def _colours() -> Colormap:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[COLOUR_MAP](np.linspace(COLOUR_START, 1.0, 256)))


def _figure(width: float, height: float) -> Figure:
    """A figure of that many hundred pixels, drawn off screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _data_uri(figure: Figure) -> str:
    """The figure at double resolution, for sharp screens and paper, as a PNG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, transparent=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
