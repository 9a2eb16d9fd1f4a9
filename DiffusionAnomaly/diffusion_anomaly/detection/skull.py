"""The space inside the skull in a head CT, by grey level: bone is brightest, and closes the vault.

Slices are gone through from the one with the largest closed space, upwards and downwards; each slice's space lies
within the one next to it, so that face and neck, whose bones close spaces too, are not entered, and a skull base that
is open in a slice does not let the space out. Where bone no longer closes anything, towards the neck, the space ends.
"""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import InputError
from ..io.orientation import Orientation
from ..preprocessing.hounsfield import GreyKind, grey_kind
from .brain import largest_piece

PIXEL_MM, SLICE_MM = 0.9, 3.0  # finer input is averaged
BONE_HU, FAT_HU = 150.0, -15.0  # bone is above the one; fat and air are below the other, fluid and tissue between them
SATURATED = 0.985  # of a window's range, from which on is bone
DARK = 0.03  # of a window's range, up to which are fat and air
# Half the widths that bone may leave open and still close a space: sutures and fractures, then the openings of the
# skull base and what surgeons leave. The next is tried where a slice's space is smaller than this share of its
# neighbour's.
GAPS_MM, KEPT = (7.0, 14.0, 21.0), 0.8
WIDENING_MM = 7.0  # a space may widen by so much from slice to slice downwards
WALL_MM = 4.0  # upwards by so much; and passages of twice that width are no part of a space
LEAST_CM2, LEAST_SHARE = 8.0, 0.2  # a slice's space: below, the skull closes nothing any more
START_CM2 = 40.0  # of the largest space: else this is no head
BORDER_MM, BONE_SHARE = 3.0, 0.5  # of what surrounds a slice's space
MOST_ISLAND_CM2 = 12.0
MOST_ML, MOST_CM2 = 3000.0, 320.0  # in all and in a slice; ribs and pelvis close more
MOST_FAT = 0.3  # share of a closed space; air and fat fill sinuses and orbits


def intracranial_space(image: sitk.Image, name: str) -> sitk.Image:
    """The space inside the skull.

    Args:
        image: CT of a head, in Hounsfield units or in a window that shows bone white.
        name: of the scan, for messages.

    Returns:
        uint8 0/1 on the image's grid.

    Raises:
        InputError: when nothing closes a space as large as a brain's, or the values are no CT's.
    """
    kind = grey_kind(image)
    orientation = Orientation.of(image)
    canonical = orientation.view(sitk.GetArrayViewFromImage(image))
    slice_mm, row_mm, column_mm = orientation.spacing(image)
    slice_step, row_step, column_step = (
        max(1, int(wanted / edge + 0.5)) if wanted > edge else 1
        for wanted, edge in ((SLICE_MM, slice_mm), (PIXEL_MM, row_mm), (PIXEL_MM, column_mm))
    )
    steps = slice_step, row_step, column_step
    coarse = _averaged(canonical, steps)
    found = _closed(coarse, kind, (row_mm * steps[1], column_mm * steps[2]))
    advice = (
        "Is it a CT of the head? If it is, give a mask of the space inside the skull with --mask (brain= in Python)."
    )
    if found is None:
        raise InputError(f"No skull that closes a space was found in {name}.", advice)
    cm2 = float(found.sum((1, 2)).max()) * row_mm * steps[1] * column_mm * steps[2] / 100
    ml = float(found.sum()) * slice_mm * row_mm * column_mm * math.prod(steps) / 1000
    if ml > MOST_ML or cm2 > MOST_CM2:
        raise InputError(
            f"Bone closes a space of {ml:,.0f} ml and {cm2:.0f} cm² in {name}; a skull's has up to about 2100 ml and "
            "250 cm².",
            f"{advice} Is the header's voxel spacing right?",
        )
    for axis, (step, size) in enumerate(zip(steps, canonical.shape, strict=True)):
        # What averaging left over at the end belongs to the last block.
        found = np.take(found, np.minimum(np.arange(size) // step, found.shape[axis] - 1), axis)
    mask = np.zeros(image.GetSize()[::-1], np.uint8)
    orientation.view(mask)[...] = found
    result = sitk.GetImageFromArray(mask)
    result.CopyInformation(image)
    return result


def _averaged(values: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Means of blocks; what is left over at the ends is left out."""
    counts = [max(1, size // step) for size, step in zip(values.shape, steps, strict=True)]
    steps = tuple(min(step, size) for size, step in zip(values.shape, steps, strict=True))  # type: ignore[assignment]
    cut = values[: counts[0] * steps[0], : counts[1] * steps[1], : counts[2] * steps[2]]
    blocks = cut.reshape(counts[0], steps[0], counts[1], steps[1], counts[2], steps[2])
    return blocks.mean((1, 3, 5), dtype=np.float32)


def _closed(values: np.ndarray, kind: GreyKind, pixel_mm: tuple[float, float]) -> np.ndarray | None:
    """The space in canonical slices, bool; None where there is none."""
    white = kind.low + SATURATED * (kind.high - kind.low)
    bone = values >= (min(BONE_HU, white) if kind.is_hounsfield else white)
    empty = values <= (FAT_HU if kind.is_hounsfield else kind.low + DARK * (kind.high - kind.low))
    pixel_cm2 = pixel_mm[0] * pixel_mm[1] / 100
    for narrow in GAPS_MM:
        spaces = [_spaces(b, e, pixel_mm, narrow) for b, e in zip(bone, empty, strict=True)]
        areas = np.array([_largest_area(space) * pixel_cm2 for space in spaces])
        start = int(areas.argmax())
        # Ribs close a space by gaps more than by bone.
        if areas[start] >= START_CM2 and _is_bordered(largest_piece(spaces[start]), bone[start], pixel_mm):
            break
    else:
        return None
    result = np.zeros(values.shape, bool)
    result[start] = largest_piece(spaces[start])
    most = float(result[start].sum())
    for step in (1, -1):
        before = result[start]
        for k in range(start + step, len(values) if step > 0 else -1, step):
            place = _within(before, WIDENING_MM if step < 0 else WALL_MM, pixel_mm)
            space = spaces[k]
            for gap in (*(gap for gap in GAPS_MM if gap >= narrow), None):
                if gap != narrow:
                    # Upwards nothing but the vault is near, even where a part of it was taken out.
                    if gap is None and step < 0:
                        break
                    space = ~bone[k] & ~empty[k] if gap is None else _spaces(bone[k], empty[k], pixel_mm, gap)
                space = _touching(_opened(space & place, WALL_MM, pixel_mm), before)
                area = float(space.sum())
                if area >= KEPT * before.sum():
                    break
            if not _is_bordered(space, bone[k], pixel_mm):  # a neck, or a face where a scan's slices begin again
                break
            if area * pixel_cm2 < LEAST_CM2 or (step < 0 and area < LEAST_SHARE * most):
                break
            result[k] = before = space
    most_pixels = int(MOST_ISLAND_CM2 / pixel_cm2)
    return np.stack([_without_islands(space, most_pixels) for space in result])


def _without_islands(space: np.ndarray, most: int) -> np.ndarray:
    """With what lies in a slice's space and is as bright as bone: in a window that is blood and calcification."""
    labels, count = _pieces(_filled(space) & ~space)
    if not count:
        return space
    sizes = np.bincount(labels.ravel())
    return space | ((sizes <= most) & (np.arange(count + 1) > 0))[labels]


def _spaces(bone: np.ndarray, empty: np.ndarray, pixel_mm: tuple[float, float], gap: float) -> np.ndarray:
    """What bone closes in a slice but for gaps, without what is filled with air or fat."""
    if not bone.any():
        return np.zeros_like(bone)
    margin = int(np.ceil(gap / min(pixel_mm))) + 1
    framed = np.pad(bone, margin)
    near = _distance(~framed, pixel_mm) <= gap
    closed = _distance(near, pixel_mm) > gap
    # What is far from all bone and shut off by what is near it, and its surroundings: a wide gap in a thin wall is no
    # part of the closing.
    core = _filled(near) & ~near
    filled = _filled(closed | framed) | _within(core, gap, pixel_mm)
    inside = filled[margin:-margin, margin:-margin] & ~bone
    inside = _opened(inside, WALL_MM / 2, pixel_mm)
    labels, count = _pieces(inside)
    if not count:
        return inside
    fat = np.asarray(ndimage.mean(empty, labels, np.arange(1, count + 1)))
    return np.append(False, fat <= MOST_FAT)[labels]


def _distance(mask: np.ndarray, pixel_mm: tuple[float, float]) -> np.ndarray:
    """Of each pixel of a mask from the nearest that is outside, in mm; 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(mask, pixel_mm))


def _within(mask: np.ndarray, distance: float, pixel_mm: tuple[float, float]) -> np.ndarray:
    return _distance(~mask, pixel_mm) <= distance if mask.any() else mask


def _opened(mask: np.ndarray, radius: float, pixel_mm: tuple[float, float]) -> np.ndarray:
    """Without what is narrower than twice the radius."""
    core = _distance(mask, pixel_mm) > radius
    return mask & _within(core, radius, pixel_mm) if core.any() else core


def _touching(space: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The pieces that lie mostly within the neighbouring slice's space, their holes filled."""
    labels, count = _pieces(space)
    if not count:
        return space
    share = np.asarray(ndimage.mean(before, labels, np.arange(1, count + 1)))
    return np.append(False, share > 0.5)[labels]


def _is_bordered(space: np.ndarray, bone: np.ndarray, pixel_mm: tuple[float, float]) -> bool:
    """Whether what surrounds a space is bone, for the most part."""
    border = _within(space, BORDER_MM, pixel_mm) & ~space
    return bool(border.any()) and float(bone[border].mean()) >= BONE_SHARE


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels of the connected pieces, from 1, and how many there are."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    return labels, int(labels.max(initial=0))


def _filled(mask: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.binary_fill_holes(mask), bool)


def _largest_area(space: np.ndarray) -> int:
    labels, count = _pieces(space)
    return int(np.bincount(labels.ravel())[1:].max()) if count else 0
