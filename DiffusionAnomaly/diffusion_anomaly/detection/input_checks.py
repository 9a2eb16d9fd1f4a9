"""Reasons to doubt a result before looking at it: a scan that is not what the model knows, or not as it knows it.

None of these stops a detection. Each becomes a warning that says what was found and what it does to the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..io.orientation import Orientation
from .recognition import Verdict

if TYPE_CHECKING:
    from ..io.volume import Volume
    from ..preprocessing.intensity import IntensityScale
    from ..preprocessing.slices import SliceStack

UNKNOWN_SCAN = "This looks like no scan the model knows: T1? CT?"

# In-plane voxels longer than this, and more than twice the shortest edge, are slices seen from the side.
THICK_MM = 3.0

# Of 39 FLAIR scans of five sources the darkest half per cent of the brain was 0 to 0.32 of its mode.
NO_FLUID = 0.6

# Heads are 130 mm wide and more.
LEAST_VIEW_MM = 120.0

# Brains are about 0.75 as tall as they are long.
TALL = 1.05

# Brains are about 0.8 times as wide as long, a hemisphere half of that. Shorter masks are a tip of the brain.
NARROW = 0.6
LEAST_LENGTH_MM = 80.0

# Brain masks of a hundred adults held 820 to 1690 ml.
LEAST_BRAIN_ML, MOST_BRAIN_ML = 700.0, 2200.0
# A newborn's brain has 350 ml, and no one's has 3 litres.
LEAST_POSSIBLE_ML, MOST_POSSIBLE_ML = 200.0, 3000.0
USUAL_BRAIN_ML = "900 to 1900 ml"

# A mask is cut where its cross-section on the scan's border is at least this share of its largest along that axis. In a
# hundred scans of whole heads the vertex on the last slice had up to 0.17 of it, brain stem and cerebellum on the first
# as much; at 0.25 a centimetre of brain was missing.
CUT_SHARE = 0.2
# The lower and the upper border of each canonical axis.
BORDERS = (("bottom", "top"), ("front", "back"), ("right", "left"))

# Tissue is brighter than this share of the way from the scan's darkest value to the brain's median.
TISSUE_SHARE = 0.3

LOOK_AT_THE_MASK = "Look at the brain mask; if it is wrong, give one with --mask or in the panel."

# Words in file names and headers, whole words only, and the contrast they stand for.
_CONTRASTS = {
    "flair": "FLAIR",
    "t1": "T1",
    "t1w": "T1",
    "t1c": "T1",
    "t1ce": "T1",
    "t1gd": "T1",
    "mprage": "T1",
    "t2": "T2",
    "t2w": "T2",
    "pd": "PD",
    "pdw": "PD",
    "dwi": "diffusion-weighted",
    "adc": "ADC",
    "swi": "SWI",
    "ct": "CT",
    "pet": "PET",
}
# DICOM's word for PET, which in names and descriptions is a patient.
_MODALITIES = {**_CONTRASTS, "pt": "PET"}
# The keys of BIDS. Their values are labels that somebody chose: ses-t1 is a time, space-T1w the grid of another scan.
_ENTITIES = (
    "acq|atlas|ce|chunk|cohort|den|desc|dir|echo|flip|hemi|inv|label|mod|model|mt|part|proc|rec|recording|res|run|"
    "sample|seg|ses|space|split|stain|sub|task|tpl|trc|tracksys"
)
_LABELS = re.compile(
    rf"(?<![a-z0-9])(?:(?:{_ENTITIES})-[a-z0-9]+"
    r"|(?:session|timepoint|visit)[-_ ]?[a-z0-9]+"
    r"|pd[-_ ]?[0-9]+)"  # a case number: Parkinson's disease
    r"(?![a-z0-9])"
)
# Before BIDS had a suffix for FLAIR, such scans were called acq-FLAIR_T2w.
_FLAIR_BY_ACQUISITION = re.compile(r"(?<![a-z0-9])acq-[a-z0-9]*flair")


def scan_warnings(volume: Volume, modality: str | None, whole_image: bool = False) -> Iterator[str]:
    """What the scan alone says.

    Args:
        volume: the scan.
        modality: what the model knows; None for a method without a model.
        whole_image: whether the model looks at whole images, which may show anything from any side.
    """
    yield from volume.warnings
    if volume.non_finite:
        found = (
            "1 voxel is no finite number and was"
            if volume.non_finite == 1
            else (f"{volume.non_finite} voxels are no finite numbers and were")
        )
        yield f"{found} set to the scan's minimum; scores nearby mean little."
    other = contrast_of(volume.name, volume.metadata)
    if modality and other and other != modality.upper():
        yield f"The scan's name or header says {other}, the model knows {modality}; scores may mean nothing."
    if not whole_image:
        yield from _plane_warnings(volume.image)
        yield from _view_warnings(volume.image)


def contrast_of(source: str, metadata: Mapping[str, str]) -> str | None:
    """The contrast that a scan's header, or else its name, gives away; None when nothing or several are named.

    In a name by BIDS the suffix says it, and so do words that are no entity; an entity's value does not.

    >>> contrast_of("sub-pd01_ses-t1_space-T1w_FLAIR.nii.gz", {}), contrast_of("pt-007_ses-t1.nii.gz", {})
    ('FLAIR', None)
    """
    header = [_contrasts(text, _MODALITIES if key == "modality" else _CONTRASTS) for key, text in metadata.items()]
    for found in (set[str]().union(*header), _contrasts(PurePath(source).name, _CONTRASTS)):
        if "FLAIR" in found:  # "T2 FLAIR" is FLAIR
            found = found - {"T1", "T2"}
        if len(found) == 1:
            return next(iter(found))
    return None


def _contrasts(text: str, known: Mapping[str, str]) -> set[str]:
    """The contrasts that a name or a description names."""
    text = str(text).lower()
    words = re.split(r"[^a-z0-9]+", _LABELS.sub(" ", text))
    found = {known[word] for word in words if word in known}
    return set() if _FLAIR_BY_ACQUISITION.search(text) and "FLAIR" not in found else found


def _plane_warnings(image: sitk.Image) -> Iterator[str]:
    orientation = Orientation.of(image)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    slice_axis = orientation.axes[0]
    if image.GetSize()[slice_axis] == 1 and np.argmax(np.abs(direction[:, slice_axis])) != 2:
        yield "The scan is a single slice that is not axial; models know axial slices, so scores may mean little."
        return
    slice_mm, row_mm, column_mm = orientation.spacing(image)
    for name, spacing in (("coronal", row_mm), ("sagittal", column_mm)):
        if spacing > THICK_MM and spacing > 2 * min(slice_mm, row_mm, column_mm):
            yield (
                f"The scan has {name} slices {spacing:.3g} mm apart; models see axial slices, which are coarse here, "
                "so small findings are missed."
            )


def _view_warnings(image: sitk.Image) -> Iterator[str]:
    _, row_mm, column_mm = (
        extent * spacing
        for extent, spacing in zip(_canonical_size(image), Orientation.of(image).spacing(image), strict=True)
    )
    if min(row_mm, column_mm) < LEAST_VIEW_MM:
        yield (
            f"The scan shows {column_mm:.0f} x {row_mm:.0f} mm, less than a head; is the voxel spacing right? "
            "Scores of a part of a head are less certain."
        )


def _canonical_size(image: sitk.Image) -> tuple[int, int, int]:
    """Number of slices, rows and columns."""
    slices, rows, columns = Orientation.of(image).axes
    size = image.GetSize()
    return size[slices], size[rows], size[columns]


def brain_warnings(stack: SliceStack, values_in_brain: np.ndarray) -> Iterator[str]:
    """What the brain in the scan says."""
    if values_in_brain.size and values_in_brain.min() == values_in_brain.max():
        yield f"All brain voxels have the value {values_in_brain.flat[0]:g}; there is nothing to find in such a scan."
    if stack.coverage < 0.99:
        yield (
            f"Only {stack.coverage:.0%} of the brain mask gets scores; the rest lies outside the model's field of view "
            "or in pieces too small for its pixels. Is the voxel spacing right, and is "
            "the mask free of holes and specks?"
        )


def scale_warnings(values_in_brain: np.ndarray, scale: IntensityScale) -> Iterator[str]:
    """What the scale by the brain's mode rests on: without fluid there is no dark end.

    Args:
        values_in_brain: raw intensities.
        scale: from ``ModeNormalisation``.
    """
    if values_in_brain.size and values_in_brain.min() >= 0 and scale.low > NO_FLUID * scale.high:
        yield (
            f"The darkest tissue in the brain mask is {scale.low / scale.high:.0%} as bright as the most common one; "
            "there is hardly any fluid in it. Ordinary differences look large then, and too much may be marked. "
            "Look at the mask, or give one that holds ventricles and furrows with --mask or in the panel."
        )


def proportion_warnings(brain: sitk.Image) -> Iterator[str]:
    """What the brain's shape says about the header: some public sets have lost their slice spacing."""
    orientation = Orientation.of(brain)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    slices, rows = (np.flatnonzero(np.any(inside, axis=others)) for others in ((1, 2), (0, 2)))
    if not slices.size:
        return
    slice_mm, row_mm, _ = orientation.spacing(brain)
    height, length = (np.ptp(slices) + 1) * slice_mm, (np.ptp(rows) + 1) * row_mm
    if height > TALL * length:
        yield (
            f"The brain is {height:.0f} mm tall and {length:.0f} mm long, which no brain is; the header's slice "
            "spacing is probably wrong, and so are volumes and positions in mm."
        )


def hemisphere_warnings(brain: sitk.Image) -> Iterator[str]:
    """What the mask's width says: a mask of one hemisphere leaves the other without scores."""
    orientation = Orientation.of(brain)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    rows, columns = (np.flatnonzero(np.any(inside, axis=others)) for others in ((0, 2), (0, 1)))
    if not rows.size:
        return
    _, row_mm, column_mm = orientation.spacing(brain)
    length, width = (np.ptp(rows) + 1) * row_mm, (np.ptp(columns) + 1) * column_mm
    if length > LEAST_LENGTH_MM and width < NARROW * length:
        yield (
            f"The brain mask is {width:.0f} mm wide and {length:.0f} mm long; a whole brain is about 0.8 times as wide "
            f"as long. If the mask holds one hemisphere alone, the other gets no score. {LOOK_AT_THE_MASK}"
        )


def mask_warnings(image: sitk.Image, brain: sitk.Image) -> Iterator[str]:
    """What the brain mask's size and place say: cut by the field of view, too small, or too large for a brain.

    Args:
        image: the scan; a single slice, of whatever size its brain is, gets no warning.
        brain: mask on its grid.
    """
    if min(image.GetSize()) == 1:
        return
    orientation = Orientation.of(brain)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    spacing = orientation.spacing(brain)
    ml = float(np.count_nonzero(inside)) * math.prod(spacing) / 1000
    if ml == 0:
        return
    cuts = list(_cuts(inside, spacing))
    holds = f"{ml:.0f} ml; an adult's brain has {USUAL_BRAIN_ML}"
    if cuts:
        places = " and ".join(f"at the {name}, where it covers {area:.0f} cm² of the border" for name, area in cuts)
        folded = next((name for name, _ in cuts if _tissue_opposite(name, image, inside, spacing)), None)
        yield (
            f"The scan's field of view cuts the brain mask {places}; {ml:.0f} ml are in view. Brain beyond is not "
            "looked at, and the anomaly score at the cut is less certain. "
            + (
                f"The border opposite the {folded} has tissue too: the field of view is narrower than the head, or the "
                "image is folded over. "
                if folded
                else ""
            )
            + LOOK_AT_THE_MASK
        )
    elif ml < LEAST_BRAIN_ML:
        yield (
            f"The brain mask holds only {holds}. What the mask leaves out gets no score, so findings there are missed. "
            f"{LOOK_AT_THE_MASK}"
        )
    if ml > MOST_BRAIN_ML:
        yield (
            f"The brain mask holds {holds}. Scalp, eyes or neck in the mask become false findings; or the header's "
            f"voxel spacing is wrong, and so are volumes in ml. {LOOK_AT_THE_MASK}"
        )


def size_verdict(image: sitk.Image, brain: sitk.Image) -> Verdict | None:
    """Whether the brain mask is of a size that no brain has, in a scan that holds all of it.

    Args:
        image: the scan.
        brain: mask on its grid.
    """
    if min(image.GetSize()) == 1:
        return None
    inside = Orientation.of(brain).view(sitk.GetArrayViewFromImage(brain)) != 0
    spacing = Orientation.of(brain).spacing(brain)
    ml = float(np.count_nonzero(inside)) * math.prod(spacing) / 1000
    if ml == 0 or LEAST_POSSIBLE_ML <= ml <= MOST_POSSIBLE_ML or (ml < LEAST_BRAIN_ML and any(_cuts(inside, spacing))):
        return None
    return Verdict(
        f"The brain mask holds {ml:.3g} ml, which no brain has (an adult's has {USUAL_BRAIN_ML}): "
        "the header's voxel spacing is wrong, or this is no brain.",
        refused=True,
    )


def _cuts(inside: np.ndarray, spacing: tuple[float, float, float]) -> Iterator[tuple[str, float]]:
    """Borders that cut a canonical mask, with its cross-section there in cm²."""
    for axis, names in enumerate(BORDERS):
        area = _cross_sections(inside, axis, spacing)
        for name, at_border in zip(names, (area[0], area[-1]), strict=True):
            if at_border >= CUT_SHARE * area.max():
                yield name, float(at_border)


def _tissue_opposite(name: str, image: sitk.Image, inside: np.ndarray, spacing: tuple[float, float, float]) -> bool:
    """Whether the border opposite to an in-plane one has tissue on as large an area as would count as a cut."""
    axis = next(axis for axis, names in enumerate(BORDERS) if name in names)
    if axis == 0:  # the neck is always there
        return False
    scan = Orientation.of(image).view(sitk.GetArrayViewFromImage(image))
    opposite = np.take(scan, -1 if name == BORDERS[axis][0] else 0, axis=axis)
    darkest, median = float(scan.min()), float(np.median(scan[inside]))
    tissue = np.count_nonzero(opposite > darkest + TISSUE_SHARE * (median - darkest))
    voxel = math.prod(spacing) / spacing[axis] / 100
    return bool(tissue * voxel >= CUT_SHARE * _cross_sections(inside, axis, spacing).max())


def _cross_sections(inside: np.ndarray, axis: int, spacing: tuple[float, float, float]) -> np.ndarray:
    """Area in cm² of each plane along an axis."""
    others = tuple(other for other in range(3) if other != axis)
    return np.count_nonzero(inside, axis=others) * (spacing[others[0]] * spacing[others[1]] / 100)


def score_warning(score: float, score_range: Mapping[str, Any], title: str) -> str | None:
    """The warning when a whole-image score lies outside of what healthy validation showed, on either side.

    Above, the model disbelieves what it sees. Below, it sees less than it is used to: a model of 5 mm FLAIR slices gave
    T1 scans of 2 mm half the score of its own kind, as likelihoods do with images that are smoother than the training
    data (Nalisnick et al. 2019, "Detecting out-of-distribution inputs to deep generative models using typicality").
    """
    upper = float(score_range["upper"])
    lower = 2.0 * float(score_range["mean"]) - upper
    if lower <= score <= upper:
        return None
    return f"{UNKNOWN_SCAN} Its {title} is {score:.3g}, of scans the model knows {lower:.3g} to {upper:.3g}."
