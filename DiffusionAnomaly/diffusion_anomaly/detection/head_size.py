"""Whether a picture can be a head of the size that its header states: what a wrong voxel spacing gives away.

The outline of the head against air is drawn voxel by voxel, without regard to the spacing that is in doubt, and then
measured with it. A slab, or a part of a head that reaches the borders, says nothing of a head's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..io.orientation import Orientation
from .brain import intensity_range, largest_piece
from .recognition import Verdict

# Heads are 130 mm wide and more.
LEAST_VIEW_MM = 120.0
# Less holds no brain; more no scanner shows, and finding a brain in it would take tens of GB.
LEAST_POSSIBLE_VIEW_MM = 60.0
MOST_POSSIBLE_VIEW_MM, MOST_POSSIBLE_HEIGHT_MM = 700.0, 2500.0

# Of 45 scans of adults (FLAIR, T1, CT, with skull and stripped) the outline was 162 to 232 mm long, 0.68 to 1.02 times
# as wide, and rose above its widest place as a half ellipsoid of 0.32 to 0.83 of its length does. A newborn's head is
# about 115 mm long.
LENGTH_MM, POSSIBLE_LENGTH_MM = (135.0, 260.0), (112.0, 300.0)
WIDTH, POSSIBLE_WIDTH = (0.6, 1.15), (0.5, 1.35)
CROWN, POSSIBLE_CROWN = (0.25, 1.0), (0.17, 1.5)

# Brains are 0.7 to 1.05 times as tall as they are long.
TALL, FLAT = 1.05, 0.5
POSSIBLE_TALL, POSSIBLE_FLAT = 1.5, 0.33

# Brain masks of a hundred adults held 820 to 1690 ml; a newborn's brain has 350 ml, and no one's has 3 litres.
LEAST_BRAIN_ML = 700.0
LEAST_POSSIBLE_ML, MOST_POSSIBLE_ML = 200.0, 3000.0
USUAL_BRAIN_ML = "900 to 1900 ml"

# Something is cut where its cross-section on the scan's border is at least this share of its largest along that axis.
# In a hundred scans of whole heads the vertex on the last slice had up to 0.17 of the brain's, brain stem and
# cerebellum on the first as much; at 0.25 a centimetre of brain was missing.
CUT_SHARE = 0.2
# The lower and the upper border of each canonical axis.
BORDERS = (("bottom", "top"), ("front", "back"), ("right", "left"))

# The outline is drawn on at most so many voxels along an axis, from half of Otsu's threshold on.
OUTLINE_SIZE, AIR_SHARE = 100, 0.5
# The widest place is in view when the lowest slice has less than this share of the largest area.
WIDEST_IN_VIEW = 0.95
# In 35 FLAIR scans of one head no other piece came near a tenth of its voxels.
SECOND_HEAD, THICK_SLICES = 0.4, 3
# Areas between which the crown's slope is taken; a top slice larger than the last one shows too little of it.
CROWN_FROM, CROWN_TO, CROWN_SEEN = 0.9, 1 / 3, 0.6

WRONG_SPACING = "the header's voxel spacing is wrong, and so are volumes and positions in mm"


@dataclass(frozen=True)
class Outline:
    """A head against air, canonical.

    Attributes:
        inside: ``(slices, rows, columns)``, thinned, holes filled.
        spacing: in mm, of the same axes.
        second: size of the next largest piece amid air, by that of this one.
    """

    inside: np.ndarray
    spacing: tuple[float, float, float]
    second: float = 0.0

    @property
    def _areas(self) -> np.ndarray:
        """Of each slice by the largest, whatever a single disturbed slice has."""
        areas = cross_sections(self.inside, 0, self.spacing)
        undisturbed = ndimage.median_filter(areas, 3, mode="nearest")
        areas = undisturbed if undisturbed.any() else areas  # of a single slice with tissue
        return areas / areas.max()

    @property
    def whole_in_plane(self) -> bool:
        """Whether there is air at the front, the back, and both sides."""
        return not any(name not in BORDERS[0] for name, _ in cuts(self.inside, self.spacing))

    @property
    def widest_in_view(self) -> bool:
        """Whether the head becomes narrower again at the lower end of the scan."""
        return bool(self._areas[0] < WIDEST_IN_VIEW)

    def extent(self, axis: int) -> float:
        """In mm along a canonical axis."""
        areas = cross_sections(self.inside, axis, self.spacing)
        seen = np.flatnonzero(areas > 0.02 * areas.max())
        return float(np.ptp(seen) + 1) * self.spacing[axis]

    @property
    def crown(self) -> float | None:
        """Height in mm of the half ellipsoid whose cross-sections shrink upwards as the head's do; None if not seen."""
        share = self._areas
        first = int(np.flatnonzero(share >= CROWN_FROM)[-1])
        last = int(np.flatnonzero(share >= max(CROWN_TO, share[-1]))[-1])
        if share[last] > CROWN_SEEN:
            return None
        # A cross-section of the share s lies sqrt(1 - s) of the height above the largest.
        return (last - first) * self.spacing[0] / (math.sqrt(1 - share[last]) - math.sqrt(1 - share[first]))


def outline(image: sitk.Image) -> Outline | None:
    """The head in a scan with air around it; None for a single slice, and where there is nothing but one value."""
    if min(image.GetSize()) < 3:
        return None
    orientation = Orientation.of(image)
    limits = intensity_range(sitk.GetArrayViewFromImage(image))
    values = orientation.view(sitk.GetArrayViewFromImage(image))
    steps = [math.ceil(size / OUTLINE_SIZE) for size in values.shape]
    values = values[:: steps[0], :: steps[1], :: steps[2]]
    background = (values <= limits.fill) | (values >= limits.padding)
    values = np.where(background, limits.low, np.clip(values, limits.low, limits.high)).astype(np.float32)
    if values.min() == values.max():
        return None
    smooth = ndimage.uniform_filter1d(ndimage.uniform_filter1d(values, 3, 1), 3, 2)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(smooth))
    inside = smooth > limits.low + AIR_SHARE * (otsu.GetThreshold() - limits.low)
    inside = ndimage.binary_opening(inside, np.ones((1, 3, 3)))
    if not inside.any():
        return None
    labels = np.zeros(inside.shape, np.int32)
    ndimage.label(inside, output=labels)
    sizes = np.bincount(labels.ravel())[1:]
    # Where slices are empty in between, each of the others is a piece.
    boxes = ndimage.find_objects(labels)
    thick = [size for size, box in zip(sizes, boxes, strict=True) if box[0].stop - box[0].start >= THICK_SLICES]
    second = sorted([0, 0, *thick])[-2]
    inside = largest_piece(inside)
    slice_mm, row_mm, column_mm = (mm * step for mm, step in zip(orientation.spacing(image), steps, strict=True))
    return Outline(inside, (slice_mm, row_mm, column_mm), float(second / sizes.max()))


def head_verdict(image: sitk.Image) -> Verdict | None:
    """What the field of view and the head's outline say of the header's spacing, before a brain is looked for.

    A single slice is not refused for being small; nor for being large where its pixels are of 1 mm, as those of a
    picture of unknown size.
    """
    orientation = Orientation.of(image)
    spacing = orientation.spacing(image)
    height, length, width = (image.GetSize()[axis] * mm for axis, mm in zip(orientation.axes, spacing, strict=True))
    shows = f"The scan shows {width:.3g} x {length:.3g} mm"
    is_slice = min(image.GetSize()) == 1
    stated = any(mm != 1.0 for size, mm in zip(image.GetSize(), image.GetSpacing(), strict=True) if size > 1)
    if not is_slice and max(length, width) < LEAST_POSSIBLE_VIEW_MM:
        return Verdict(f"{shows} by its header, too little for a brain: {WRONG_SPACING}.", refused=True)
    too_large = max(length, width) > MOST_POSSIBLE_VIEW_MM or height > MOST_POSSIBLE_HEIGHT_MM
    if too_large and (stated or not is_slice):
        return Verdict(
            f"{shows} in {height:.3g} mm of slices by its header, more than a scanner does: {WRONG_SPACING}.",
            refused=True,
        )
    head = outline(image)
    verdicts = [] if head is None or not head.whole_in_plane else list(_outline_verdicts(head))
    if head is not None and head.second > SECOND_HEAD:
        verdicts.append(
            Verdict(
                f"The scan shows two separate pieces, one {head.second:.0%} as large as the other, such as two heads "
                "in one volume: only one of them is looked at. Give each head as a scan of its own.",
                refused=False,
            )
        )
    if not verdicts and min(length, width) < LEAST_VIEW_MM:
        return Verdict(
            f"{shows}, less than a head; is the voxel spacing right? Scores of a part of a head are less certain.",
            refused=False,
        )
    return max(verdicts, key=lambda verdict: verdict.refused, default=None)


def _outline_verdicts(head: Outline) -> Iterator[Verdict]:
    length, width = head.extent(1), head.extent(2)
    measured = f"By its header the head in the scan is {length:.0f} mm long and {width:.0f} mm wide"
    if grade := _outside(length, LENGTH_MM, POSSIBLE_LENGTH_MM):
        # The top of a head alone is as small as that.
        refused = grade > 1 and (head.widest_in_view or length > POSSIBLE_LENGTH_MM[1])
        yield Verdict(f"{measured}, adults' heads are 160 to 230 mm long: {_perhaps(refused)}.", refused)
    if grade := _outside(width / length, WIDTH, POSSIBLE_WIDTH):
        refused = grade > 1 and head.widest_in_view
        yield Verdict(
            f"{measured}, heads are about 0.8 times as wide as long: {_perhaps(refused)}, or its axes are mixed up.",
            refused,
        )
    crown = head.crown if head.widest_in_view else None
    if crown is not None and (grade := _outside(crown / length, CROWN, POSSIBLE_CROWN)):
        yield Verdict(
            f"{measured}, and rises {crown:.0f} mm above its widest place, heads about 90 mm: "
            f"{_perhaps(grade > 1, 'slice')}.",
            grade > 1,
        )


def _outside(value: float, usual: tuple[float, float], possible: tuple[float, float]) -> int:
    """0 where a value is usual, 1 where it is not, 2 where it cannot be."""
    return int(not usual[0] <= value <= usual[1]) + int(not possible[0] <= value <= possible[1])


def _perhaps(sure: bool, which: str = "voxel") -> str:
    if sure:
        return WRONG_SPACING.replace("voxel", which)
    return f"is the header's {which} spacing right? Volumes and positions in mm are wrong if not"


def brain_size_verdict(image: sitk.Image, brain: sitk.Image) -> Verdict | None:
    """Whether the brain mask is of a size or of proportions that no brain has, in a scan that holds all of it.

    Args:
        image: the scan; a single slice gets no verdict.
        brain: mask on its grid.
    """
    if min(image.GetSize()) == 1:
        return None
    orientation = Orientation.of(brain)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    spacing = orientation.spacing(brain)
    ml = float(np.count_nonzero(inside)) * math.prod(spacing) / 1000
    if ml == 0:
        return None
    cut = {name for name, _ in cuts(inside, spacing)}
    if not LEAST_POSSIBLE_ML <= ml <= MOST_POSSIBLE_ML and not (ml < LEAST_BRAIN_ML and cut):
        return Verdict(
            f"The brain mask holds {ml:,.4g} ml, which no brain has (an adult's has {USUAL_BRAIN_ML}): "
            f"{WRONG_SPACING}, or this is no brain.",
            refused=True,
        )
    height, length = (_extent(inside, axis) * spacing[axis] for axis in (0, 1))
    # What is cut along one of the two may be of any proportions.
    shortened, narrowed = bool(cut & set(BORDERS[0])), bool(cut & set(BORDERS[1]))
    usual = (0.0 if shortened else FLAT, math.inf if narrowed else TALL)
    possible = (0.0 if shortened else POSSIBLE_FLAT, math.inf if narrowed else POSSIBLE_TALL)
    if grade := _outside(height / length, usual, possible):
        return Verdict(
            f"The brain is {height:.0f} mm tall and {length:.0f} mm long, which no brain is; the header's slice "
            "spacing is probably wrong, and so are volumes and positions in mm.",
            refused=grade > 1,
        )
    return None


def _extent(inside: np.ndarray, axis: int) -> int:
    others = tuple(other for other in range(3) if other != axis)
    return int(np.ptp(np.flatnonzero(inside.any(axis=others)))) + 1


def cuts(inside: np.ndarray, spacing: tuple[float, float, float]) -> Iterator[tuple[str, float]]:
    """Borders that cut a canonical mask, with its cross-section there in cm²."""
    for axis, names in enumerate(BORDERS):
        area = cross_sections(inside, axis, spacing)
        for name, at_border in zip(names, (area[0], area[-1]), strict=True):
            if at_border >= CUT_SHARE * area.max():
                yield name, float(at_border)


def cross_sections(inside: np.ndarray, axis: int, spacing: tuple[float, float, float]) -> np.ndarray:
    """Area in cm² of each plane along an axis."""
    others = tuple(other for other in range(3) if other != axis)
    return np.count_nonzero(inside, axis=others) * (spacing[others[0]] * spacing[others[1]] / 100)
