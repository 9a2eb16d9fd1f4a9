"""Several contrasts of one head onto the grid of the first, by what their headers say of where they lie.

What would put two heads on each other is refused: two patients, headers that place them apart, one image twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..io.contrasts import subject_of
from ..io.orientation import same_grid
from ..io.volume import Scan, Volume
from .agreement import shared_detail
from .registration import Registration, register

# Share of the first channel's head that another must cover: less is another part of the body, or a lost position.
LEAST_COVERED = 0.5
# Overlap (Dice) of the two heads in what both see, below which they do not lie on each other. FLAIR and T1 of gliomas
# and of multiple sclerosis have 0.92 to 0.98, turned by 16 degrees and moved by 20 mm 0.70 to 0.78.
LEAST_OVERLAP = 0.8
# Detail that the two share, see ``agreement``, below which they look like two heads. Of gliomas, FLAIR with T1 before
# or after contrast: 0.007 to 0.11 in 139 pairs of one patient, all but one above 0.014; at most 0.004 in 417 of two.
LEAST_DETAIL = 0.0055
HEAD_LEVEL = 0.1  # of the way from the background to the brightest
_PATIENT = {"PatientID": "patient IDs", "PatientName": "patient names", "PatientBirthDate": "dates of birth"}


def align(volumes: Mapping[str, Volume], *, registered: bool = False, force: bool = False) -> Scan:
    """A scan of several channels on the first one's grid.

    Voxels of another grid are interpolated linearly; where a channel has none it gets its own lowest value, and
    ``Scan.covered`` tells where all have some. What is doubtful is in the warnings of the channel's volume.

    Args:
        volumes: by contrast name, the one whose grid is kept first.
        registered: whether the others are moved onto the first one by ``registration.register`` before.
        force: whether channels that seem to be of two patients are taken all the same, with a warning.

    Raises:
        InputError: when two channels are one image, of two patients, or hardly overlap; or the registration fails.
    """
    (first, reference), *others = volumes.items()
    channels = {first: reference}
    covered: np.ndarray | None = None
    _require_different(volumes)
    for name, volume in others:
        notes = _provenance_warnings(first, reference, name, volume, force)
        channel, inside = _onto(reference, volume, f"channel {name}", registered)
        if inside is not None:
            covered = inside if covered is None else covered & inside
        seen = np.ones((), bool) if inside is None else inside
        notes += _overlap_warnings(first, reference, name, channel, seen, registered, force)
        channels[name] = replace(channel, warnings=(*channel.warnings, *notes))
    if covered is None or covered.all():
        return Scan(channels)
    image = sitk.GetImageFromArray(covered.astype(np.uint8))
    image.CopyInformation(reference.image)
    return Scan(channels, image)


def _onto(reference: Volume, volume: Volume, what: str, registered: bool) -> tuple[Volume, np.ndarray | None]:
    """A channel on the reference's grid, and where it has voxels of its own; None for everywhere."""
    found: Registration | None = None
    if registered:
        found = register(reference.image, volume.image, what)
    moved = found is not None and found.shift_mm + found.rotation_degrees > 0
    if not moved and same_grid(volume.image, reference.image):
        return _with(volume, {"registration": _record(found)} if found else {}, found, what), None
    transform = found.transform if found is not None else sitk.Transform(3, sitk.sitkIdentity)
    lowest = float(sitk.GetArrayViewFromImage(volume.image).min())
    image = sitk.Resample(volume.image, reference.image, transform, sitk.sitkLinear, lowest)
    ones = sitk.Image(volume.image.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(volume.image)
    inside = sitk.Resample(ones, reference.image, transform, sitk.sitkNearestNeighbor, 0)
    record = {
        "resampled_from": {
            "size": list(volume.image.GetSize()),
            "spacing_mm": list(volume.image.GetSpacing()),
            "origin_mm_lps": list(volume.image.GetOrigin()),
            "direction_lps": list(volume.image.GetDirection()),
        },
        **({"registration": _record(found)} if found else {}),
    }
    return _with(replace(volume, image=image), record, found, what), sitk.GetArrayFromImage(inside) > 0


def _with(volume: Volume, record: Mapping[str, object], found: Registration | None, what: str) -> Volume:
    notes = ()
    if found is not None:
        notes = (f"The {what} was registered: moved by {found.shift_mm:.1f} mm and {found.rotation_degrees:.1f}°.",)
    return replace(volume, alignment=record, warnings=(*volume.warnings, *notes))


def _record(found: Registration) -> dict[str, float | list[float]]:
    parameters = sitk.Euler3DTransform(found.transform)
    return {
        "shift_mm": round(found.shift_mm, 3),
        "rotation_degrees": round(found.rotation_degrees, 3),
        "mutual_information_before": round(found.before, 5),
        "mutual_information_after": round(found.after, 5),
        "parameters": list(parameters.GetParameters()),
        "centre_mm_lps": list(parameters.GetCenter()),
    }


def _require_different(volumes: Mapping[str, Volume]) -> None:
    for (one, first), (other, second) in combinations(volumes.items(), 2):
        if first.image.GetSize() != second.image.GetSize():
            continue
        if np.array_equal(sitk.GetArrayViewFromImage(first.image), sitk.GetArrayViewFromImage(second.image)):
            raise InputError(
                f"The channels {one} and {other} hold the same image ({first.name} and {second.name}).",
                "Give the file of each contrast.",
            )


def _provenance_warnings(first: str, one: Volume, name: str, other: Volume, force: bool) -> list[str]:
    """What the headers and names say against the two being of one head at one time.

    Raises:
        InputError: when they say that it is another patient, and nobody insists.
    """
    differ = [text for key, text in _PATIENT.items() if _differ(one.identity, other.identity, key)]
    subjects = [subject_of(Path(volume.source).name) for volume in (one, other)]
    if all(subjects) and subjects[0] != subjects[1]:
        differ.append("subjects (BIDS)")
    notes = []
    if differ:
        message = f"The channels {first} and {name} are of two patients by their {' and '.join(differ)}"
        if not force:
            raise InputError(
                f"{message}.",
                "Give the contrasts of one patient, or --force (force=True in Python) if that is only the names.",
            )
        notes.append(f"{message}; scores may mean nothing.")
    elif _differ(one.identity, other.identity, "StudyInstanceUID"):
        notes.append(f"The channels {first} and {name} are from two studies: a head may have changed in between.")
    if _differ(one.identity, other.identity, "FrameOfReferenceUID"):
        notes.append(
            f"The channels {first} and {name} have two frames of reference: their positions need not agree. "
            "Compare them; --register (register=True in Python) moves one onto the other."
        )
    return notes


def _differ(one: Mapping[str, str], other: Mapping[str, str], key: str) -> bool:
    return key in one and key in other and one[key] != other[key]


def _overlap_warnings(
    first: str, one: Volume, name: str, other: Volume, seen: np.ndarray, registered: bool, force: bool
) -> list[str]:
    """Whether two channels on one grid show one head.

    Args:
        first, one: the channel whose grid it is.
        name, other: the one that was brought there.
        seen: bool, where that has voxels.
        registered: whether it was moved.
        force: whether the user insists.

    Raises:
        InputError: when it covers too little of the head.
    """
    heads = [head_of(volume.image) for volume in (one, other)]
    total = np.count_nonzero(heads[0])
    covered = np.count_nonzero(heads[0] & seen) / total if total else 1.0
    if covered < LEAST_COVERED:
        message = f"The channel {name} covers {covered:.0%} of the head in {first}"
        if not force:
            raise InputError(
                f"{message}: two patients, or headers that lost where the scans lie.",
                "Give scans of one session, or export them again; --force (force=True in Python) takes them so.",
            )
        return [f"{message}."]
    heads = [head & seen for head in heads]
    sizes = sum(np.count_nonzero(head) for head in heads)
    overlap = 2 * np.count_nonzero(heads[0] & heads[1]) / sizes if sizes else 1.0
    remedy = "compare them."
    if not registered:
        remedy = "compare them; --register (register=True in Python) moves one onto the other."
    if overlap < LEAST_OVERLAP:
        return [
            f"The heads in the channels {first} and {name} hardly lie on each other (overlap {overlap:.2f}): {remedy}"
        ]
    values, others = (sitk.GetArrayViewFromImage(volume.image) for volume in (one, other))
    detail = shared_detail(values, others, heads[0] & heads[1], one.image.GetSpacing()[::-1])
    if detail is None or detail >= LEAST_DETAIL:
        return []
    return [
        f"The channels {first} and {name} look like two heads, or like one that moved in between: inside the head they "
        f"share no detail, and scores may mean nothing. Are they of one patient? If so, {remedy}"
    ]


def head_of(image: sitk.Image) -> np.ndarray:
    """Roughly the head, or of a stripped scan the brain: what stands out from the background, bool."""
    values = sitk.GetArrayViewFromImage(image)
    low, high = (float(level) for level in np.percentile(values, (1, 99)))
    return values > low + HEAD_LEVEL * (high - low)
