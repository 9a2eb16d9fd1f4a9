"""Healthy halves: the plane of symmetry is found where it is known to lie, and no pixel of a lesion's side is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from training.data.halves import MARGIN, healthy_halves, symmetry, upright

SIZES = [(64, 64), (63, 65), (64, 65), (72, 60)]


def head(size: tuple[int, int], degrees: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """A slice that is its own mirror image about the line ``x = shift + tan(angle) y``, from the grid's centre.

    Every value is computed from the distance to that line, so that nothing is interpolated.
    """
    across, along = place(size, degrees, shift)
    height, width = size
    brain = (across / (0.33 * width)) ** 2 + (along / (0.42 * height)) ** 2 < 1
    apart = np.abs(across)
    image = 0.45 + 0.12 * np.cos(apart / 3) * np.sin(along / 4 + 0.3 * apart) + 0.1 * np.cos(along / 7)
    image -= 0.3 * ((apart - 6) ** 2 / 9 + (along + 5) ** 2 / 60 < 1)  # ventricles
    return np.where(brain, np.clip(image, 0.0, 0.8), 0.0), brain


def place(size: tuple[int, int], degrees: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's signed distance to the line, and its place along the line."""
    y, x = np.mgrid[: size[0], : size[1]] - (np.array(size)[:, None, None] - 1) / 2.0
    angle = np.radians(degrees)
    return (x - shift) * np.cos(angle) - y * np.sin(angle), (x - shift) * np.sin(angle) + y * np.cos(angle)


def columns_of_the_line(size: tuple[int, int], degrees: float, shift: float, found: tuple[float, float]) -> np.ndarray:
    """Where the known line lies after the slice was set upright: its distance from the middle, row by row."""
    across, _ = place(size, degrees, shift)
    line = upright(np.exp(-(across**2) / 4.5), *found)
    rows = line[size[0] // 5 : -size[0] // 5]
    return (rows * np.arange(size[1])).sum(1) / rows.sum(1) - (size[1] - 1) / 2.0


def lesion_at(size: tuple[int, int], degrees: float, shift: float, across: float, radius: float = 5.0) -> np.ndarray:
    """A disc whose middle lies so far from the line: positive to one side, negative to the other."""
    from_line, along = place(size, degrees, shift)
    return np.hypot(from_line - across, along - 8.0) < radius


def volume_with(lesions: dict[int, np.ndarray], count: int = 5, degrees: float = 4.0, shift: float = 2.0) -> tuple:
    """Like slices, some with lesions, brighter than anything healthy."""
    size = next(iter(lesions.values())).shape
    image, brain = head(size, degrees, shift)
    images, lesion = np.stack([image] * count), np.zeros((count, *size), bool)
    for number, mask in lesions.items():
        lesion[number] = mask
        images[number][mask & brain] = 1.0
    return images, np.stack([brain] * count), lesion


# The plane of symmetry


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("degrees", "shift"), [(0.0, 0.0), (4.0, 2.0), (-6.0, -3.0), (8.0, 4.0), (-12.0, 6.0)])
def test_a_known_line_becomes_the_middle_column(size: tuple[int, int], degrees: float, shift: float) -> None:
    image, brain = head(size, degrees, shift)
    found = symmetry(image, brain, np.zeros_like(brain))
    assert np.abs(columns_of_the_line(size, degrees, shift, found)).max() < 0.4


@given(degrees=st.floats(-10.0, 10.0), shift=st.floats(-5.0, 5.0), size=st.sampled_from(SIZES))
@settings(max_examples=12, deadline=None)
def test_a_line_between_those_tried_is_met_to_a_pixel(degrees: float, shift: float, size: tuple[int, int]) -> None:
    image, brain = head(size, degrees, shift)
    found = symmetry(image, brain, np.zeros_like(brain))
    assert np.abs(columns_of_the_line(size, degrees, shift, found)).mean() < 1.0


def test_a_lesion_that_is_told_to_be_ignored_does_not_move_the_line() -> None:
    size = (64, 64)
    image, brain = head(size, 4.0, 2.0)
    lesion = lesion_at(size, 4.0, 2.0, 12.0, radius=8.0)
    image[lesion & brain] = 1.0
    found = symmetry(image, brain, lesion)
    assert np.abs(columns_of_the_line(size, 4.0, 2.0, found)).max() < 0.4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_setting_upright_leaves_the_middle_where_it_is(size: tuple[int, int], step: int) -> None:
    image, _ = head(size, 0.0, 0.0)
    turned = upright(image, 0.0, 0.0, step=step)
    np.testing.assert_allclose(turned, turned[:, ::-1], atol=1e-12)
    assert turned.shape == tuple(-(-n // step) for n in size)
    if step == 1:
        np.testing.assert_allclose(turned, image, atol=1e-12)


@pytest.mark.parametrize("shift", [-3, 0, 4])
def test_a_shift_moves_a_slice_along_its_rows(shift: int) -> None:
    image, _ = head((24, 40), 5.0, 1.0)
    np.testing.assert_allclose(upright(image, 0.0, shift), np.roll(image, shift, axis=1), atol=1e-9)


def test_a_turn_and_its_opposite_bring_a_smooth_slice_back() -> None:
    image = ndimage.gaussian_filter(head((64, 64), 3.0, 1.0)[0], 2.0)
    back = upright(upright(image, 0.2, 0.0), -0.2, 0.0)
    assert np.abs(back - image)[12:-12, 12:-12].max() < 0.02


# Halves


def halves(images: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Those of slices of a single contrast, ``(n, H, W)``."""
    return [(number, image[0], inside) for number, image, inside in healthy_halves(images[:, None], brain, lesion)]


def test_every_contrast_is_mirrored_about_the_plane_of_the_first() -> None:
    images, brain, lesion = volume_with({2: lesion_at((64, 64), 4.0, 2.0, 13.0)})
    inverted = np.where(brain, 1.0 - images, 0.0)
    ((_, pair, _),) = healthy_halves(np.stack([images, inverted], axis=1), brain, lesion)
    ((_, alone, inside),) = halves(images, brain, lesion)
    np.testing.assert_array_equal(pair[0], alone)
    core = ndimage.binary_erosion(inside, iterations=2)
    np.testing.assert_allclose(pair[1][core], 1.0 - alone[core], atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [-1, 1])
def test_a_lesion_on_one_side_gives_the_other_half_and_its_mirror_image(size: tuple[int, int], side: int) -> None:
    images, brain, lesion = volume_with({2: lesion_at(size, 4.0, 2.0, side * 13.0)})
    ((number, image, inside),) = halves(images, brain, lesion)
    assert number == 2
    np.testing.assert_array_equal(image, image[:, ::-1])
    np.testing.assert_array_equal(inside, inside[:, ::-1])
    assert image.max() < 0.85, "nothing of the lesion is left"
    # The slice as it was before it fell ill: what replaces the lesion is what a healthy head has there.
    healthy = upright(head(size, 4.0, 2.0)[0], *symmetry(images[2], brain[2], lesion[2]))
    kept = slice(size[1] // 2 + 1, None) if side < 0 else slice(0, size[1] // 2)
    np.testing.assert_allclose(image[:, kept], healthy[:, kept], atol=1e-9)
    core = ndimage.binary_erosion(inside, iterations=2)
    assert np.abs(image - healthy)[core].mean() < 0.03
    assert 2 * (inside & (healthy > 0.01)).sum() / (inside.sum() + (healthy > 0.01).sum()) > 0.95


@pytest.mark.parametrize(
    "places",
    [(0.0,), (-13.0, 13.0), (5.0 + MARGIN - 1.5,)],
    ids=["on the middle line", "on both sides", "within the margin of the middle line"],
)
def test_a_lesion_that_reaches_both_halves_gives_none(places: tuple[float, ...]) -> None:
    size = (64, 64)
    mask = np.any([lesion_at(size, 4.0, 2.0, across) for across in places], axis=0)
    assert halves(*volume_with({2: mask})) == []


def test_a_slice_without_lesion_gives_no_half() -> None:
    size = (64, 64)
    found = halves(*volume_with({0: lesion_at(size, 4.0, 2.0, 13.0), 4: lesion_at(size, 4.0, 2.0, -13.0)}))
    assert [number for number, _, _ in found] == [0, 4]
    assert halves(*volume_with({1: np.zeros(size, bool)})) == []


def test_what_a_neighbour_shows_of_a_lesion_counts() -> None:
    """By partial volume a slice has a little of what lies above and below it."""
    size = (64, 64)
    left, right = (lesion_at(size, 4.0, 2.0, across) for across in (-13.0, 13.0))
    assert halves(*volume_with({1: left, 2: right})) == []
    assert [number for number, _, _ in halves(*volume_with({1: left, 3: right}))] == [1, 3]


def test_a_brain_that_is_not_symmetric_or_not_there_gives_none() -> None:
    size = (64, 64)
    lesion = lesion_at(size, 4.0, 2.0, 13.0)
    images, brain, marked = volume_with({2: lesion})
    across, along = place(size, 4.0, 2.0)
    brain[2] &= ~((across < 0) & (along > -5.0))  # a quarter is cut off
    assert halves(np.where(brain, images, 0.0), brain, marked) == []
    assert halves(np.zeros_like(images), np.zeros_like(brain), marked) == []


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1)])
def test_the_smallest_slices_are_looked_at_too(size: tuple[int, int]) -> None:
    everything = np.ones((1, *size), bool)
    assert halves(everything.astype(float), everything, everything) == []
