"""Healthy slices at mid-brain, where hardly any patient's slice is free of tumour: a healthy half and its mirror image.

A lesion on one side leaves the other half of the slice as healthy as any. The slice's plane of symmetry is found, and
where one half lies far from every lesion, it takes the place of the other. Everything in such a slice is healthy
tissue; what it lacks is the asymmetry of real brains, so it is mixed with whole healthy slices and never shown to a
classifier, which would take symmetry for health.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

ANGLES = np.radians(np.arange(-12.0, 12.1, 2.0))
SHIFTS = np.arange(-6.0, 6.1, 1.0)
# Pixels between a lesion and the plane of symmetry, or a lesion's edge and tissue that counts as healthy.
MARGIN = 4
# A half may lack this share of its mirror image's brain before the plane is taken for badly found.
LEAST_OVERLAP = 0.9


def healthy_halves(
    images: np.ndarray, brain: np.ndarray, lesion: np.ndarray
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Mirrored halves of a scan's slices with lesion.

    Args:
        images: ``(n, C, H, W)`` in [0, 1], left and right along the last axis, slices in order. The first contrast
            settles the plane of symmetry.
        brain, lesion: ``(n, H, W)`` bool.

    Returns:
        For each half that is healthy: its slice's number, the image ``(C, H, W)`` and its brain.
    """
    # What a neighbouring slice shows of the lesion is in this one by partial volume.
    near = ndimage.binary_dilation(lesion, np.ones((3, 1, 1), bool))
    near = ndimage.binary_dilation(near, ndimage.generate_binary_structure(3, 1) & _IN_PLANE, iterations=MARGIN)
    found = []
    for number in np.flatnonzero(lesion.any(axis=(1, 2))):
        angle, shift = symmetry(images[number, 0], brain[number], near[number])
        image = np.stack([upright(contrast, angle, shift) for contrast in images[number]])
        inside = upright(brain[number].astype(np.float32), angle, shift) > 0.5
        marked = upright(near[number].astype(np.float32), angle, shift) > 0.01
        if _dice(inside, inside[:, ::-1]) < LEAST_OVERLAP:
            continue
        middle = inside.shape[1] // 2
        for healthy in (slice(0, middle), slice(middle, None)):
            if marked[:, healthy].any() or inside[:, healthy].sum() < inside.sum() * 0.4:
                continue
            found.append((int(number), _mirrored(image, healthy), _mirrored(inside, healthy)))
    return found


def symmetry(image: np.ndarray, brain: np.ndarray, ignore: np.ndarray) -> tuple[float, float]:
    """Angle in radians and shift in pixels after which a slice ``(H, W)`` is most like its mirror image.

    Args:
        image: in [0, 1].
        brain: bool.
        ignore: bool, pixels whose difference to the other side says nothing of the plane.
    """
    # Brain and intensity have a say alike: the outline is symmetric where contents are not, and the reverse.
    whole = np.where(brain, 0.5 + image, 0.0)
    best, chosen = np.inf, (0.0, 0.0)
    for angle in ANGLES:
        for shift in SHIFTS:
            turned = upright(whole, angle, shift, step=2)
            hidden = upright(ignore.astype(np.float32), angle, shift, order=0, step=2) > 0
            seen = ~(hidden | hidden[:, ::-1])
            difference = np.abs(turned - turned[:, ::-1])[seen].mean() if seen.any() else np.inf
            if difference < best:
                best, chosen = difference, (float(angle), float(shift))
    return chosen


def upright(image: np.ndarray, angle: float, shift: float, order: int = 1, step: int = 1) -> np.ndarray:
    """The image turned by ``angle`` about its centre and moved ``shift`` pixels along its rows.

    With a ``step``, only every so many pixels are sampled, and still evenly to both sides of the centre.
    """
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = tuple(-(-n // step) for n in image.shape)
    middle = step * (np.array(shape) - 1) / 2 + np.array((0.0, shift))
    offset = (np.array(image.shape) - 1) / 2 - turn @ middle
    return ndimage.affine_transform(image, step * turn, offset, shape, order=order)  # type: ignore[arg-type]


_IN_PLANE = np.array([[[False]], [[True]], [[False]]])


def _mirrored(image: np.ndarray, half: slice) -> np.ndarray:
    result = image[..., ::-1].copy()
    result[..., half] = image[..., half]
    return result


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2.0 * float((first & second).sum()) / max(1.0, float(first.sum() + second.sum()))
