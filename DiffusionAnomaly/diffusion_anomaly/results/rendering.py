"""Pictures of a result: axial slices as a radiologist hangs them, the anomaly map over the scan, and where in the scan
it lies.

Slices are painted as arrays and scale and profile written as SVG: drawing the two dozen pictures of a report with
matplotlib took as long as the networks. Slices are looked at through a view of the scan's own voxels; only the few
that are shown are ever copied.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image, ImageDraw, ImageFont

from ..io.files import whole_file
from ..io.orientation import Orientation
from .findings import pixel_area, size_unit
from .numbering import numbers_beside

SHOWN = 12
EVENLY_SPACED = 4
APART_MM = 6.0  # two neighbouring thin slices show the same thing
AMPLE = 0.2  # of the largest slice's brain, for a slice without a mask to be shown while others can be
MARGIN_MM = 10.0
PICTURE_HEIGHT = 240  # pixels on the page, where a pair is at most 373 wide; drawn twice as fine for sharp screens
CONTOUR = "#00e5ff"
# The inferno colour map without its first quarter: dark purple on dark grey brain cannot be seen. Evenly spaced, with
# straight lines between them, they are the map to within 5 of 255 levels.
_INFERNO = (
    "57106e 6a176e 7d1e6d 902568 a32c61 b63458 c73e4c d74b3f e45a31 "
    "ef6c23 f68013 fb9606 fcac11 fac42a f5db4c f1f179 fcffa4"
)
COLOURS = tuple(f"#{colour}" for colour in _INFERNO.split())
OPACITY = 0.8  # of the anomaly map at the threshold and above
MASK_LINE, BRAIN_LINE = 2.8, 1.4  # widths of outlines in drawn pixels
BRAIN_LINE_OPACITY = 0.5
LETTERS = 22  # drawn pixels, of the sides' letters and of the findings' numbers
RIM = 3  # drawn pixels, dark around them
INK, FRAME = "#334155", "#94a3b8"
_LABELS = {0: ("R", "L"), 1: ("A", "P"), 2: ("S", "I")}


@dataclass(frozen=True)
class SlicePicture:
    """One slice, twice, as data URIs.

    Attributes:
        index: along the scan's own slice axis, counted from 0, as in the findings.
        scan: the slice in grey.
        overlay: the same with the anomaly map, the outlines of mask and brain, and the findings' numbers.
        width, height: of each picture in pixels.
        peak: highest score in the slice.
        marked: volume of the mask in the slice, or in a picture its area.
    """

    index: int
    scan: str
    overlay: str
    width: int
    height: int
    peak: float
    marked: float


class SliceView:
    """Canonical slices of scan, anomaly map and mask: right of the patient on the left, anterior on top.

    Args:
        scan, anomaly_map, mask, brain: on one grid.
        is_picture: whether it is shown as it is stored.
        labels: a finding's number in its voxels, on the same grid; without them no numbers are drawn.
    """

    def __init__(
        self,
        scan: sitk.Image,
        anomaly_map: sitk.Image,
        mask: sitk.Image,
        brain: sitk.Image,
        is_picture: bool = False,
        labels: sitk.Image | None = None,
    ) -> None:
        orientation = Orientation.stored(scan) if is_picture else Orientation.of(scan)
        self._images = (scan, anomaly_map, mask, brain, labels)  # the arrays are views of their memory
        self.scan, self.anomaly_map, self.mask, self.brain = (
            orientation.view(sitk.GetArrayViewFromImage(image)) for image in (scan, anomaly_map, mask, brain)
        )
        self.labels = None if labels is None else orientation.view(sitk.GetArrayViewFromImage(labels))
        self.spacing = orientation.spacing(scan)
        self.voxel_size = pixel_area(scan) if is_picture else float(np.prod(self.spacing)) / 1000
        self.unit = size_unit(scan.GetSpacing(), is_picture)
        self._flipped = orientation.flipped[0]
        column = np.array(scan.GetDirection()).reshape(3, 3)[:, orientation.axes[2]]
        # Which side of the patient a picture's left edge is, it does not say.
        self.sides = ("", "") if is_picture else _LABELS[int(np.argmax(np.abs(column)))]
        self.window = _window(self.scan, self.brain)
        self.rows, self.columns = self._crop()

    def __len__(self) -> int:
        return len(self.scan)

    def own_index(self, k: int) -> int:
        """The slice's number in the scan's own order."""
        return len(self) - 1 - k if self._flipped else k

    def marked(self) -> np.ndarray:
        """Volume of the mask in each slice in ml, or area in a picture's unit, ``(slices,)``."""
        return np.array([np.count_nonzero(plane) for plane in self.mask]) * self.voxel_size

    def peaks(self) -> np.ndarray:
        """Highest score in each slice, ``(slices,)``."""
        return np.array([float(plane.max()) for plane in self.anomaly_map])

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
    """The slices worth showing, ascending: where the findings are, the most anomalous, some distance apart, and an even
    sample of the rest.

    With labels each finding comes before any is shown on a second slice, by rank, as far as there is room. Without a
    mask the highest-scoring slices come first, if they have any scores that gets a colour.
    """
    with_brain = [k for k in range(len(view)) if view.brain[k].any()] or list(range(len(view)))
    marked, peaks = view.marked(), view.peaks()
    apart = max(1, int(min(APART_MM / view.spacing[0], len(with_brain) / count)))
    chosen: list[int] = _slices_of_findings(view, apart, min(count, len(with_brain)) - EVENLY_SPACED)
    for k in sorted(with_brain, key=lambda k: (-marked[k], -peaks[k])):
        if len(chosen) >= count - EVENLY_SPACED or (marked[k] == 0 and peaks[k] <= coloured_from(threshold)):
            break
        if all(abs(k - other) >= apart for other in chosen):
            chosen.append(k)
    wanted = min(count, len(with_brain))
    missing = wanted - len(chosen)
    area = [np.count_nonzero(view.brain[k]) for k in range(len(view))]
    ample = [k for k in with_brain if area[k] >= AMPLE * max(area)]  # the outermost slices of a brain show little
    rest = [k for k in ample if all(abs(k - other) >= apart for other in chosen)]
    if len(rest) < missing:
        rest = [k for k in with_brain if k not in chosen]
    # The middles of equal parts.
    chosen += [rest[(2 * n + 1) * len(rest) // (2 * missing)] for n in range(missing)]
    return sorted(chosen)


def _slices_of_findings(view: SliceView, apart: int, count: int) -> list[int]:
    """At most so many slices on which as many findings as they can hold are seen, those of the first ranks first.

    A finding is seen where it is at least half as large as in its largest slice. The slices lie so far apart, unless a
    finding would be seen on none.
    """
    if view.labels is None:
        return []
    numbers = int(view.labels.max()) + 1
    areas = np.zeros((len(view), numbers), np.int64)
    for k in np.flatnonzero(view.marked()):
        areas[k] = np.bincount(view.labels[k][view.mask[k] > 0], minlength=numbers)
    seen = (areas > 0) & (2 * areas >= areas.max(axis=0))
    chosen: list[int] = []
    for number in range(1, numbers):
        if len(chosen) >= count:
            break
        if not seen[:, number].any() or seen[chosen, number].any():
            continue
        own = np.flatnonzero(seen[:, number]).tolist()
        free = [k for k in own if all(abs(k - other) >= apart for other in chosen)]
        # Among these the slice that shows the most of the others too, then the most of this one.
        chosen.append(max(free or own, key=lambda k: (seen[k].sum(), areas[k, number])))
    return chosen


def coloured_from(threshold: float) -> float:
    """The lowest score that gets a colour."""
    return 0.5 * threshold


def draw_slices(view: SliceView, slices: Sequence[int], threshold: float, top: float) -> list[SlicePicture]:
    """Pictures of the slices, the map coloured up to ``top``."""
    marked, peaks = view.marked(), view.peaks()
    width, height = _picture_size(view)
    size = (2 * width, 2 * height)
    sides = _side_letters(view.sides, size)
    taken = sides[0][1] > 0
    pictures = []
    for k in slices:
        grey, overlay = _painted(view, k, size, threshold, top)
        _lay_numbers(overlay, view, k, taken.copy())
        for pixels in (grey, overlay):
            for brightness, share in sides:
                _lay(pixels, brightness, share)
        pictures.append(
            SlicePicture(
                view.own_index(k), _png_uri(grey), _png_uri(overlay), width, height, float(peaks[k]), float(marked[k])
            )
        )
    return pictures


def draw_outlined(view: SliceView, slices: Sequence[int]) -> list[str]:
    """Slices of another contrast in grey with the outline of the mask, as data URIs."""
    width, height = _picture_size(view)
    size = (2 * width, 2 * height)
    sides = _side_letters(view.sides, size)
    pictures = []
    for k in slices:
        pixels = np.repeat(_scan_pixels(view, k, size)[..., None], 3, axis=2)
        share = _outline(view.mask[k, view.rows, view.columns], size, MASK_LINE)
        _lay(pixels, np.array(_rgb(CONTOUR), np.float32), share)
        for brightness, covered in sides:
            _lay(pixels, brightness, covered)
        pictures.append(_png_uri(pixels))
    return pictures


def _picture_size(view: SliceView) -> tuple[int, int]:
    """Width and height on the page in pixels."""
    width_mm, height_mm = extent(view)
    width = round(PICTURE_HEIGHT * width_mm / height_mm)
    return int(np.clip(width, PICTURE_HEIGHT // 4, PICTURE_HEIGHT * 4)), PICTURE_HEIGHT


def write_overlay(view: SliceView, threshold: float, path: Path) -> None:
    """A picture with the anomaly map and the mask's outline over it, pixel by pixel, as a PNG file."""
    rows, columns = view.scan[0].shape
    view.rows, view.columns = slice(0, rows), slice(0, columns)
    _, overlay = _painted(view, 0, (columns, rows), threshold, max(float(view.peaks().max()), 1.5 * threshold))
    with whole_file(path) as partial:
        Image.fromarray((overlay + 0.5).astype(np.uint8)).save(partial, "PNG")


def _painted(
    view: SliceView, k: int, size: tuple[int, int], threshold: float, top: float
) -> tuple[np.ndarray, np.ndarray]:
    """A slice in grey ``(height, width)`` and with the map and outlines ``(height, width, 3)``, from 0 to 255."""
    grey = _scan_pixels(view, k, size)
    overlay = np.repeat(grey[..., None], 3, axis=2)
    _lay_map(overlay, view, k, threshold, top)
    for outlined, colour, line, opacity in (
        (view.brain, "#ffffff", BRAIN_LINE, BRAIN_LINE_OPACITY),
        (view.mask, CONTOUR, MASK_LINE, 1.0),
    ):
        share = opacity * _outline(outlined[k, view.rows, view.columns], size, line)
        _lay(overlay, np.array(_rgb(colour), np.float32), share)
    return grey, overlay


def draw_colour_bar(threshold: float, top: float) -> str:
    """The colour scale, with the threshold marked, as a data URI."""
    width, left, bar = 420, 12, 396
    low = coloured_from(threshold)

    def place(anomaly_map: float) -> float:
        return left + bar * (anomaly_map - low) / (top - low)

    stops = "".join(
        f'<stop offset="{n / (len(COLOURS) - 1):.4f}" stop-color="{colour}"/>' for n, colour in enumerate(COLOURS)
    )
    parts = [
        f'<linearGradient id="heat">{stops}</linearGradient>',
        f'<rect x="{left}" y="6" width="{bar}" height="21" fill="url(#heat)"/>',
        f'<rect x="{place(threshold) - 1.75:.2f}" y="6" width="3.5" height="21" fill="{CONTOUR}"/>',
    ]
    for tick, label in scale_ticks(threshold, top):
        x = place(tick)
        parts.append(f'<path d="M{x:.2f} 27v3.5" stroke="{INK}"/>')
        parts.append(f'<text x="{x:.2f}" y="42" text-anchor="middle">{label}</text>')
    return _svg_uri(width, 48, parts)


def draw_profile(view: SliceView, slices: Sequence[int]) -> str:
    """Marked volume by slice, inferior to superior, with ticks where a slice is shown, as a data URI."""
    width, height, left, right, upper, lower = 920, 134, 58, 912, 8, 98
    marked = view.marked()
    highest = max(float(marked.max()) * 1.1, 1e-3)
    step = (right - left) / len(view)

    def across(k: float) -> float:
        return left + (k + 0.5) * step

    def up(volume: float) -> float:
        return lower - (lower - upper) * volume / highest

    bars = "".join(
        f"M{across(k) - step / 2:.2f} {lower}V{up(float(volume)):.2f}h{step:.2f}V{lower}z"
        for k, volume in enumerate(marked)
        if volume
    )
    shown = "".join(f"M{across(k):.2f} {lower - 6}v12" for k in slices)
    parts = [
        f'<path d="{bars}" fill="#c2410c"/>',
        f'<path d="M{left} {upper}V{lower}H{right}" fill="none" stroke="{FRAME}"/>',
        f'<path d="{shown}" stroke="#0e7490" stroke-width="1.5"/>',
        f'<text x="26" y="{(upper + lower) / 2}" transform="rotate(-90 26 {(upper + lower) / 2})" '
        'text-anchor="middle">ml</text>',
        f'<text x="{(left + right) / 2}" y="{height - 6}" text-anchor="middle">slice</text>',
    ]
    for volume in _round_values(highest):
        y = up(volume)
        parts.append(f'<path d="M{left} {y:.2f}h-3" stroke="{INK}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.2f}" text-anchor="end">{volume:g}</text>')
    for k in range(0, len(view), max(1, len(view) // 10)):
        parts.append(f'<path d="M{across(k):.2f} {lower}v3" stroke="{INK}"/>')
        parts.append(f'<text x="{across(k):.2f}" y="{lower + 17}" text-anchor="middle">{view.own_index(k)}</text>')
    return _svg_uri(width, height, parts)


def scale_ticks(threshold: float, top: float) -> list[tuple[float, str]]:
    """Anomaly scores to print along the scale, ascending, and their text: threshold, ends, and multiples of a whole
    round number between.
    """
    low = coloured_from(threshold)
    near = 0.08 * (top - low)
    step = max(1.0, _round_step((top - low) / 6))
    between = (step * n for n in range(int(np.ceil(low / step)), int(top / step) + 1))
    ticks: list[float] = []
    # The threshold and the ends first: a number that stands close to one of them would be printed over it.
    for tick in (threshold, low, top, *between):
        if all(abs(tick - other) > near for other in ticks):
            ticks.append(tick)

    def text(tick: float) -> str:
        digits = 3 if tick == threshold else 2
        return f"{tick:.0f}" if 10.0**digits <= tick < 1e5 else f"{tick:.{digits}g}"

    return [(tick, text(tick)) for tick in sorted(ticks)]


def colour_table(count: int = 256) -> np.ndarray:
    """The colours of the anomaly map from the lowest coloured to the highest, ``(count, 3)`` float32 from 0 to 255."""
    knots = np.array([_rgb(colour) for colour in COLOURS], np.float32)
    places = np.linspace(0, len(knots) - 1, count)
    return np.stack([np.interp(places, np.arange(len(knots)), channel) for channel in knots.T], 1).astype(np.float32)


def map_colours(anomaly_map: np.ndarray, threshold: float, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the anomaly map, ``(..., 3)`` from 0 to 255, and their opacity, ever more up to the threshold,
    ``(...)``.
    """
    low = coloured_from(threshold)
    places = np.clip((anomaly_map - low) / max(top - low, 1e-6), 0, 1)
    opacity = OPACITY * np.clip((anomaly_map - low) / (threshold - low), 0, 1)
    table = colour_table()
    return table[(places * (len(table) - 1) + 0.5).astype(np.intp)], opacity.astype(np.float32)


def extent(view: SliceView) -> tuple[float, float]:
    """Width and height of a picture in mm."""
    rows, columns = view.scan[0, view.rows, view.columns].shape
    return columns * view.spacing[2], rows * view.spacing[1]


def _scan_pixels(view: SliceView, k: int, size: tuple[int, int]) -> np.ndarray:
    """The slice in grey, ``(height, width)`` float32 from 0 to 255."""
    low, high = view.window
    scan = np.asarray(view.scan[k, view.rows, view.columns], np.float32)
    return _resized(np.clip((scan - low) * (255 / (high - low)), 0, 255), size)


def _lay_map(pixels: np.ndarray, view: SliceView, k: int, threshold: float, top: float) -> None:
    """Anomaly scores over a slice, each voxel as it is."""
    anomaly_map = view.anomaly_map[k, view.rows, view.columns]
    colours, opacity = map_colours(anomaly_map, threshold, top)
    if not opacity.any():
        return
    drawn = _drawn_from(anomaly_map.shape, pixels.shape[:2])
    _lay(pixels, colours[drawn], opacity[drawn])


def _lay_numbers(pixels: np.ndarray, view: SliceView, k: int, taken: np.ndarray) -> None:
    """The findings' numbers beside their outlines, in the outlines' colour on a dark rim.

    Args:
        pixels: ``(height, width, 3)`` from 0 to 255.
        view, k: the slice.
        taken: bool ``(height, width)``, where no number may stand.
    """
    if view.labels is None:
        return
    # Findings that a reader has rejected have labels, but are not in the mask.
    labels = np.where(view.mask[k, view.rows, view.columns] != 0, view.labels[k, view.rows, view.columns], 0)
    labels = labels[_drawn_from(labels.shape, pixels.shape[:2])].astype(np.intp)
    font = ImageFont.load_default(LETTERS)

    def bounds(number: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = font.getbbox(str(number), stroke_width=RIM)
        return int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))

    def extent(number: int) -> tuple[int, int]:
        left, top, right, bottom = bounds(number)
        return right - left, bottom - top

    places = numbers_beside(labels, taken, extent)
    if not places:
        return
    for colour, stroke in (("#000000", RIM), (CONTOUR, 1)):
        letters = Image.new("L", pixels.shape[1::-1])
        draw = ImageDraw.Draw(letters)
        for number, (left, top) in places.items():
            x, y = left - bounds(number)[0], top - bounds(number)[1]
            draw.text((x, y), str(number), fill=255, font=font, stroke_width=stroke)
        _lay(pixels, np.array(_rgb(colour), np.float32), np.asarray(letters, np.float32) / 255)


def _drawn_from(shape: tuple[int, ...], drawn: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each drawn pixel the row and the column of the voxel that it shows, to index an array of voxels with."""
    rows, columns = (np.arange(wanted) * given // wanted for wanted, given in zip(drawn, shape, strict=True))
    return rows[:, None], columns


def _lay(pixels: np.ndarray, colour: np.ndarray | np.float32, share: np.ndarray) -> None:
    """Cover pixels ``(height, width)`` or ``(height, width, 3)`` with a colour, by its share of each."""
    rows, columns = np.flatnonzero(share.any(axis=1)), np.flatnonzero(share.any(axis=0))
    if not rows.size:
        return
    place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    share, covered = share[place], pixels[place]
    if pixels.ndim == 3:
        share = share[..., None]
        colour = colour[place] if colour.ndim == 3 else colour
    covered += share * (colour - covered)


def _outline(mask: np.ndarray, size: tuple[int, int], line: float) -> np.ndarray:
    """How much of each drawn pixel the outline of a mask covers, ``(height, width)`` from 0 to 1.

    The outline is where the linearly interpolated mask is one half, and a pixel's distance from it the difference from
    one half by the gradient. Framed by zeros, so that a region at the picture's edge is outlined all around.
    """
    width, height = size
    covered = np.zeros((height, width), np.float32)
    if not mask.any():
        return covered
    framed = np.pad(mask != 0, 1).astype(np.float32)
    field = _resized(framed, size, (1, 1, 1 + mask.shape[1], 1 + mask.shape[0]))
    slope = np.hypot(*np.gradient(field))
    distance = np.abs(field - 0.5)
    np.divide(distance, slope, out=covered, where=slope > 1e-3)
    covered[slope <= 1e-3] = np.inf
    return np.clip(line / 2 + 0.5 - covered, 0, 1)


def _resized(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Linearly interpolated, or averaged where the image is finer than the picture."""
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR, box=box))


def _side_letters(sides: tuple[str, str], size: tuple[int, int]) -> list[tuple[np.float32, np.ndarray]]:
    """The patient's sides at the picture's left and right edge, white on a dark rim that stands out from bright scalp.

    Returns:
        Brightness, and the share of each pixel that it covers, in the order of painting.
    """
    width, height = size
    font = ImageFont.load_default(LETTERS)
    layers = []
    for brightness, stroke in ((0, RIM), (255, 1)):
        letters = Image.new("L", size)
        draw = ImageDraw.Draw(letters)
        for side, x, anchor in ((sides[0], 0.02, "lm"), (sides[1], 0.98, "rm")):
            draw.text((x * width, height / 2), side, fill=255, font=font, anchor=anchor, stroke_width=stroke)
        layers.append((np.float32(brightness), np.asarray(letters, np.float32) / 255))
    return layers


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20 ... and of 0.5, 0.2, 0.1 ... that is at least so large."""
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least))


def _round_values(highest: float) -> list[float]:
    """Zero and one to four multiples of a round number below ``highest``."""
    step = _round_step(highest / 4)
    return [n * step for n in range(int(highest / step) + 1)]


def _window(scan: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    """Grey levels from the brain's own intensities, of an even sample of its voxels."""
    values = scan[:: max(1, len(scan) // 40)][brain[:: max(1, len(scan) // 40)] != 0]
    if values.size == 0:
        values = scan[brain != 0] if brain.any() else scan.ravel()
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.7)))
    return low, max(high, low + 1e-6)


def _rgb(colour: str) -> tuple[int, int, int]:
    """``#00e5ff`` as three numbers from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _png_uri(pixels: np.ndarray) -> str:
    """Pixels from 0 to 255, grey or coloured, as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray((pixels + 0.5).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _svg_uri(width: int, height: int, parts: Sequence[str]) -> str:
    """A drawing of that many pixels as an SVG data URI, with text in the page's own kind of letters."""
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, Arial, sans-serif" font-size="11" fill="{INK}">{"".join(parts)}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode("ascii")
