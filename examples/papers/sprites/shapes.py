"""Sprites: flat shapes pasted into healthy slices, so that the true mask of an anomaly is known to the pixel.

Pinaya et al. 2022 contaminate the head CT slices of their first experiment in this way. The shapes, sizes and
intensities here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffusion_anomaly.errors import InputError

SHAPES = ("ellipse", "rectangle", "heart")
# The circle around a sprite, as a share of the picture's width: 3 to 10 of 64 pixels.
LEAST_RADIUS, GREATEST_RADIUS = 0.05, 0.15
LEAST_CONTRAST = 40  # grey levels between a sprite and the median of what it covers; less can hardly be seen
AIR = 40  # air has about 25 of MedNIST's 255 grey levels, brain about 70


@dataclass(frozen=True)
class Contaminated:
    """Slices with a sprite each.

    Attributes:
        images: ``(N, H, W)`` uint8.
        masks: ``(N, H, W)`` bool, exactly the pixels that the sprites changed.
        numbers: ``(N,)`` which of the slices given they are; those without room in the head are left out.
    """

    images: np.ndarray
    masks: np.ndarray
    numbers: np.ndarray


def contaminate(images: np.ndarray, seed: int) -> Contaminated:
    """Paste a sprite into each slice. A slice's sprite depends on the seed, its own pixels and its number alone.

    Args:
        images: ``(N, H, W)`` uint8.
        seed: another one gives other sprites.

    Raises:
        InputError: when no slice shows a head large enough.
    """
    depths = [head_depth(image) for image in images]
    least = LEAST_RADIUS * images.shape[2]
    numbers = np.flatnonzero([depth.max() > least for depth in depths])
    if not numbers.size:
        raise InputError(
            f"None of {len(images)} slices shows a head that a sprite of {least:.1f} pixels' radius fits into.",
            "Give CT slices of heads.",
        )
    pasted = np.stack([paste_sprite(images[n], depths[n], np.random.default_rng((seed, int(n)))) for n in numbers])
    return Contaminated(pasted, pasted != images[numbers], numbers)


def paste_sprite(image: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The slice with one flat shape of random form, size, place, angle and intensity, wholly inside the head.

    Args:
        image: ``(H, W)`` uint8.
        depth: ``(H, W)`` as ``head_depth``; somewhere above the least radius.
        rng: where every draw comes from.
    """
    width = image.shape[1]
    greatest = min(GREATEST_RADIUS * width, float(depth.max()))
    radius = rng.uniform(LEAST_RADIUS * width, greatest)
    row, column = rng.choice(np.argwhere(depth > radius))
    y, x = np.mgrid[: image.shape[0], :width] - np.array([row, column])[:, None, None]
    angle = rng.uniform(0.0, 2.0 * np.pi)
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / radius
    covered = within(str(rng.choice(SHAPES)), u, v, rng.uniform(0.5, 1.0))
    levels = np.arange(256)
    visible = levels[np.abs(levels - np.median(image[covered])) >= LEAST_CONTRAST]
    return np.where(covered, rng.choice(visible), image).astype(np.uint8)


def within(shape: str, u: np.ndarray, v: np.ndarray, aspect: float) -> np.ndarray:
    """Which points lie in a shape around the origin that the unit circle encloses.

    Args:
        shape: one of ``SHAPES``.
        u, v: coordinates of the points.
        aspect: the shorter axis or side as a share of the longer one; a heart has none.
    """
    if shape == "ellipse":
        return u**2 + (v / aspect) ** 2 <= 1.0
    if shape == "rectangle":
        longer = 1.0 / np.hypot(1.0, aspect)  # half the side; corners lie on the circle
        return (np.abs(u) <= longer) & (np.abs(v) <= aspect * longer)
    if shape == "heart":
        x, y = 1.43 * u, 1.43 * v  # the curve's farthest points lie about 1.42 from its origin
        return (x**2 + y**2 - 1.0) ** 3 <= x**2 * y**3
    raise ValueError(f"Unknown shape {shape!r}; known are {', '.join(SHAPES)}.")


def head_depth(image: np.ndarray) -> np.ndarray:
    """How many pixels lie between each pixel of a CT slice's head and the nearest one outside, ``(H, W)``.

    The head is the largest filled region brighter than air; 0 outside of it, and everywhere when there is none.
    Opening takes away the arc of the table, which is longer than a small head is large.
    """
    tissue = ndimage.binary_opening(ndimage.binary_fill_holes(image > AIR), np.ones((3, 3)))
    labels, _ = ndimage.label(tissue)  # type: ignore[misc]
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    head = (labels == sizes.argmax()) & tissue
    return ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1]  # type: ignore[index]
