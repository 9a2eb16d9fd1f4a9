"""Reasons to doubt a result before looking at it: a scan that is not what the model knows, or not as it knows it.

A warning says what was found and what it does to the result; a verdict is a warning too, or grave enough to stop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..io.dicom.planes import PROJECTIONS
from ..io.masks import distinct_values, labels_in
from ..io.orientation import Orientation
from .head_size import (
    BORDERS,
    CUT_SHARE,
    LEAST_BRAIN_ML,
    LEAST_POSSIBLE_ML,
    MOST_POSSIBLE_ML,
    USUAL_BRAIN_ML,
    Outline,
    cross_sections,
    cuts,
)
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

# The brains of 60 adults were 0.69 to 0.94 times as wide as long, a hemisphere is half of that. Shorter masks are a tip
# of the brain.
NARROW, WIDE = 0.6, 0.98
LEAST_LENGTH_MM = 80.0

# Brain masks of a hundred adults held 820 to 1690 ml.
MOST_BRAIN_ML = 2200.0

# Tissue is brighter than this share of the way from the scan's darkest value to the brain's median.
TISSUE_SHARE = 0.3

# What a mask of the user's that holds less is no brain's: of the head between its lowest and its highest slice brains
# fill 0.35 and more.
LEAST_OF_HEAD = 0.15
WHOLE_IMAGE = 0.98  # of the voxels, from which on a mask leaves nothing out

_LOOK = "Look at the brain mask; if it is wrong, give one with --mask or in the panel (brain= in Python)."
_LOOK_AT_YOURS = "Look at the brain mask that was given."

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
    if other := contrast_doubt(volume.name, volume.metadata, modality):
        yield other
    if not whole_image:
        yield from _plane_warnings(volume.image)


def contrast_doubt(source: str, metadata: Mapping[str, str], modality: str | None) -> str:
    """Why a scan may be of a contrast that the model does not know; empty when nothing says so."""
    other = stated_contrast(source, metadata)
    if not modality or not other or other == modality.upper():
        return ""
    return f"The scan's name or header says {other}, the model knows {modality}; scores may mean nothing."


def stated_contrast(source: str, metadata: Mapping[str, str]) -> str | None:
    """The contrast that a scan's header, or else its name, gives away; None when nothing or several are named.

    In a name by BIDS the suffix says it, and so do words that are no entity; an entity's value does not.

    >>> stated_contrast("sub-pd01_ses-t1_space-T1w_FLAIR.nii.gz", {}), stated_contrast("pt-007_ses-t1.nii.gz", {})
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
    if "darkfluid" in "".join(words):  # what Siemens calls FLAIR: t2_tirm_tra_dark-fluid
        found.add("FLAIR")
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


def film_verdict(metadata: Mapping[str, str], modality: str) -> Verdict | None:
    """Whether a scan that a model of volumes is given is an X-ray film.

    Args:
        metadata: of the scan.
        modality: what the model knows, in words.
    """
    code = str(metadata.get("modality", "")).upper()
    if code not in PROJECTIONS:
        return None
    return Verdict(f"The header says {code}, which is an X-ray film; the model knows {modality}.", refused=True)


def label_verdict(values: np.ndarray, what: str, is_picture: bool = False) -> Verdict | None:
    """Whether a scan's values are those of a mask or a label map.

    Args:
        values: ``(slices, rows, columns)``.
        what: whom the sentence is about, such as "scan" or "channel T1".
        is_picture: whether only a mask is meant: pictures may have few grey levels, and large areas of one.
    """
    if is_picture and distinct_values(values, 2) is None:
        return None
    found = labels_in(values)
    return None if found is None else Verdict(f"The {what} is no scan: it {found}.", refused=True)


def given_mask_verdict(head: Outline | None, brain: sitk.Image) -> Verdict | None:
    """Whether a mask that somebody gave marks no brain: the whole image, more than a brain, or a small part.

    Args:
        head: the scan's; None for a single slice, whose mask may be as it is.
        brain: the mask on the scan's grid.

    Raises:
        InputError: when it is empty.
    """
    orientation = Orientation.of(brain)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    marked = int(np.count_nonzero(inside))
    if marked == 0:
        raise InputError(
            "The brain mask is empty: it has no voxel above 0.5.", "Give a mask that covers the brain, or leave it out."
        )
    if min(inside.shape) == 1:
        return None
    if marked >= WHOLE_IMAGE * inside.size:
        return Verdict("The brain mask covers the whole image: air and scalp would count as brain.", refused=True)
    ml = marked * math.prod(orientation.spacing(brain)) / 1000
    if ml > MOST_POSSIBLE_ML:
        return Verdict(f"The brain mask holds {ml:,.0f} ml; an adult's brain has {USUAL_BRAIN_ML}.", refused=True)
    if head is None:
        return None
    slices = np.flatnonzero(inside.any(axis=(1, 2)))
    step = len(inside) / len(head.inside)
    part = head.inside[int(slices[0] / step) : int(slices[-1] / step) + 1]
    share = ml / max(np.count_nonzero(part) * math.prod(head.spacing) / 1000, 1e-9)
    too_small = ml < LEAST_POSSIBLE_ML and not any(cuts(inside, orientation.spacing(brain)))
    if share < LEAST_OF_HEAD or too_small:
        return Verdict(
            f"The brain mask holds {ml:,.3g} ml, {share:.0%} of the head where it lies: it marks a part, such as a "
            "lesion, and no brain.",
            refused=True,
        )
    return None


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


def scale_warnings(values_in_brain: np.ndarray, scale: IntensityScale, given: bool = False) -> Iterator[str]:
    """What the scale by the brain's mode rests on: without fluid there is no dark end.

    Args:
        values_in_brain: raw intensities.
        scale: from ``ModeNormalisation``.
        given: whether the mask is the user's.
    """
    if values_in_brain.size and values_in_brain.min() >= 0 and scale.low > NO_FLUID * scale.high:
        yield (
            f"The darkest tissue in the brain mask is {scale.low / scale.high:.0%} as bright as the most common one; "
            "there is hardly any fluid in it. Ordinary differences look large then, and too much may be marked. "
            + (
                "Give a mask that holds ventricles and furrows too."
                if given
                else "Look at the mask, or give one that holds ventricles and furrows with --mask "
                "or in the panel (brain= in Python)."
            )
        )


def proportion_warnings(brain: sitk.Image, given: bool = False) -> Iterator[str]:
    """What the mask's width says: one hemisphere leaves the other without scores, and no brain is as wide as long."""
    orientation = Orientation.of(brain)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    rows, columns = (np.flatnonzero(np.any(inside, axis=others)) for others in ((0, 2), (0, 1)))
    if not rows.size:
        return
    _, row_mm, column_mm = orientation.spacing(brain)
    length, width = (np.ptp(rows) + 1) * row_mm, (np.ptp(columns) + 1) * column_mm
    if length <= LEAST_LENGTH_MM or NARROW * length <= width <= WIDE * length:
        return
    measured = (
        f"The brain mask is {width:.0f} mm wide and {length:.0f} mm long; a whole brain is about 0.8 times as wide as "
        "long."
    )
    look = _LOOK_AT_YOURS if given else _LOOK
    if width < NARROW * length:
        yield f"{measured} If the mask holds one hemisphere alone, the other gets no score. {look}"
    elif not any(name in BORDERS[1] for name, _ in cuts(inside, orientation.spacing(brain))):
        yield (
            f"{measured} Is the header's voxel spacing right? Volumes and positions in mm are wrong if not, and the "
            f"model sees a distorted brain. {look}"
        )


def mask_warnings(image: sitk.Image, brain: sitk.Image, given: bool = False) -> Iterator[str]:
    """What the brain mask's size and place say: cut by the field of view, too small, or too large for a brain.

    Of sizes that cannot be there is a verdict, which says it all.

    Args:
        image: the scan; a single slice, of whatever size its brain is, gets no warning.
        brain: mask on its grid.
        given: whether it is the user's.
    """
    if min(image.GetSize()) == 1:
        return
    orientation = Orientation.of(brain)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    spacing = orientation.spacing(brain)
    ml = float(np.count_nonzero(inside)) * math.prod(spacing) / 1000
    if ml == 0 or inside.all():
        return
    look = _LOOK_AT_YOURS if given else _LOOK
    cut = list(cuts(inside, spacing))
    holds = f"{ml:.0f} ml; an adult's brain has {USUAL_BRAIN_ML}"
    if cut:
        places = " and ".join(f"at the {name}, where it covers {area:.0f} cm² of the border" for name, area in cut)
        folded = next((name for name, _ in cut if _tissue_opposite(name, image, inside, spacing)), None)
        yield (
            f"The scan's field of view cuts the brain mask {places}; {ml:.0f} ml are in view. Brain beyond is not "
            "looked at, and the anomaly score at the cut is less certain. "
            + (
                f"The border opposite the {folded} has tissue too: the field of view is narrower than the head, or the "
                "image is folded over. "
                if folded
                else ""
            )
            + look
        )
    elif LEAST_POSSIBLE_ML <= ml < LEAST_BRAIN_ML:
        yield (
            f"The brain mask holds only {holds}. What the mask leaves out gets no score, so findings there are missed. "
            f"{look}"
        )
    if MOST_BRAIN_ML < ml <= MOST_POSSIBLE_ML:
        yield (
            f"The brain mask holds {holds}. Scalp, eyes or neck in the mask become false findings; or the header's "
            f"voxel spacing is wrong, and so are volumes in ml. {look}"
        )


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
    return bool(tissue * voxel >= CUT_SHARE * cross_sections(inside, axis, spacing).max())


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
