"""Synthetic lesions and coarse noise: where they may lie, how strong they may be, and whose chance decides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from diffusion_anomaly.errors import InputError
from training.corruption import (
    Corruption,
    CorruptionConfig,
    NoiseConfig,
    coarse_noise,
    place_shape,
    random_shape,
    read_shapes,
    resized,
)

SIZE = 48
# One lesion of one even intensity: what is left is what a test asks about.
PLAIN = {"most": 1, "dark": 0.0, "texture": 0.0, "flat": 0.0, "shift": (0.05, 0.4), "edge": (0.4, 0.6)}


def corruption(levels: int = 4, *, noise: dict[str, Any] | None = None, **lesions: Any) -> Corruption:
    declared = {"levels": levels, "lesions": PLAIN | lesions if lesions or noise is None else None, "noise": noise}
    return Corruption(CorruptionConfig.model_validate(declared))


def disc(size: int = SIZE, radius: float = 20.0) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    return np.hypot(y, x) < radius


def even_slice(value: float = 0.5) -> np.ndarray:
    return np.where(disc(), value, 0.0).astype(np.float32)


def with_lesion(made: Corruption, level: int, image: np.ndarray, seed: int) -> Any:
    """A corruption whose lesion has a middle: seeds are tried from ``seed`` on."""
    for number in range(seed, seed + 100):
        result = made(image, disc(), level, np.random.default_rng(number))
        if (result.lesion > 0.999).sum() >= 10:
            return result
    raise AssertionError("a hundred slices in a row have no lesion worth the name")


# Where


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    share=st.floats(0.0, 1.0),
    level=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    noise=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_corrupted_slice_stays_in_range_and_in_the_brain(
    size: tuple[int, int], share: float, level: int, seed: int, noise: bool
) -> None:
    rng = np.random.default_rng(seed)
    brain = rng.random(size) < share
    image = np.where(brain, rng.random(size), 0.0).astype(np.float32)
    before = image.copy(), brain.copy()
    made = corruption(noise={"deviation": 0.2, "cell": (1, 9)} if noise else None, most=3, dark=0.5, flat=0.5)
    result = made(image, brain, level, rng)
    for array in (result.image, result.lesion):
        assert array.dtype == np.float32 and array.shape == size
        assert array.min() >= 0.0 and array.max() <= 1.0
        assert not array[~brain].any()
    np.testing.assert_array_equal((image, brain), before, err_msg="what is given is left as it is")


@given(seed=st.integers(0, 2**32), level=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_without_noise_nothing_changes_but_where_a_lesion_is_marked(seed: int, level: int) -> None:
    image = np.where(disc(), np.random.default_rng(seed).random((SIZE, SIZE)), 0.0).astype(np.float32)
    result = corruption(most=3, dark=0.5, texture=0.3, flat=0.5)(image, disc(), level, np.random.default_rng(seed))
    np.testing.assert_array_equal(result.image[result.lesion == 0], image[result.lesion == 0])


def test_a_slice_has_no_lesion_as_often_as_any_other_number() -> None:
    made = corruption(most=1)
    without = [not made(even_slice(), disc(), 3, np.random.default_rng(seed)).lesion.any() for seed in range(400)]
    assert np.mean(without) == pytest.approx(0.5, abs=0.1)


def test_noise_alone_marks_no_lesion_and_an_empty_slice_stays_empty() -> None:
    made = corruption(noise={"deviation": 0.2})
    assert not made(even_slice(), disc(), 3, np.random.default_rng(0)).lesion.any()
    nothing = np.zeros((SIZE, SIZE), np.float32)
    result = corruption(noise={"deviation": 0.2}, most=4)(nothing, nothing > 0, 3, np.random.default_rng(0))
    assert not result.image.any() and not result.lesion.any()


# How strong


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("dark", [0.0, 1.0])
def test_a_lesions_shift_lies_between_the_least_and_the_levels_most(level: int, dark: float) -> None:
    most = np.exp(np.log(0.05) + (np.log(0.4) - np.log(0.05)) * (level + 1) / 4)
    shifts = []
    for seed in range(0, 1000, 20):
        result = with_lesion(corruption(dark=dark), level, even_slice(), seed)
        shifts.append((result.image - 0.5)[result.lesion > 0.999].mean() * (-1 if dark else 1))
    assert min(shifts) >= 0.05 - 1e-3
    assert max(shifts) <= most + 1e-3
    assert max(shifts) > 0.05 + 0.7 * (most - 0.05), "the whole range is used"


def test_a_dark_lesion_makes_nothing_brighter_and_a_bright_one_nothing_darker() -> None:
    image = np.where(disc(), np.random.default_rng(0).random((SIZE, SIZE)), 0.0).astype(np.float32)
    for dark, sign in ((0.0, 1), (1.0, -1)):
        change = with_lesion(corruption(dark=dark), 3, image, 0).image - image
        assert (sign * change >= -1e-6).all() and np.abs(change).max() > 0.04


def test_a_flat_lesion_hides_the_tissues_pattern_and_a_shifted_one_keeps_it() -> None:
    y, _ = np.mgrid[:SIZE, :SIZE]
    image = np.where(disc(), 0.4 + 0.05 * np.sin(y), 0.0).astype(np.float32)
    kept = {}
    for flat in (0.0, 1.0):
        made = corruption(flat=flat, diameter=(16.0, 20.0))
        shares = []
        for seed in range(0, 200, 20):
            result = with_lesion(made, 3, image, seed)
            core = result.lesion > 0.999
            shares.append(result.image[core].std() / image[core].std())
        kept[flat] = shares
    assert min(kept[0.0]) > 0.99 and max(kept[0.0]) < 1.01
    assert max(kept[1.0]) < 0.65


def test_texture_varies_inside_a_lesion_by_no_more_than_a_share_of_its_shift() -> None:
    for texture in (0.0, 0.5):
        result = with_lesion(corruption(texture=texture, diameter=(20.0, 24.0)), 3, even_slice(), 0)
        core = result.image[result.lesion > 0.999]
        assert (core.std() > 1e-3) == (texture > 0)
        assert core.std() < 0.5 * abs(core.mean() - 0.5) + 1e-3


@given(levels=st.integers(1, 12), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_noise_grows_evenly_from_level_to_level(levels: int, seed: int) -> None:
    image, brain = even_slice(), disc()
    made = corruption(levels, noise={"deviation": 0.02})
    changes = [
        made(image, brain, level, np.random.default_rng(seed)).image[brain] - 0.5
        for level in (0, levels // 2, levels - 1)
    ]
    for change, level in zip(changes, (0, levels // 2, levels - 1), strict=True):
        np.testing.assert_allclose(change, changes[-1] * (level + 1) / levels, atol=1e-6)


@pytest.mark.parametrize("cell", [1, 3, 8])
def test_noise_has_its_deviation_at_the_grids_points_and_is_smooth_between_them(cell: int) -> None:
    config = NoiseConfig(deviation=0.2, cell=(cell, cell))
    fields = [coarse_noise((41, 56), config, 1.0, np.random.default_rng(seed)) for seed in range(60)]
    assert {field.shape for field in fields} == {(41, 56)}
    noise = np.stack(fields)[:, cell:, cell:]  # before the first point it is constant
    # Between two points of a grid a bilinear field is their weighted mean, in both directions. A point lies in the
    # middle of its cell: on a pixel of an odd one, between two pixels of an even one.
    even = cell % 2 == 0
    place = (np.arange(cell) + 0.5 * even) / cell
    bilinear = np.mean(place**2 + (1 - place) ** 2)
    assert noise.std() == pytest.approx(0.2 * bilinear, rel=0.08)
    assert abs(noise.mean()) < 0.02
    # Neighbours differ by a slope between two points; two on either side of a point by the mean of two slopes.
    squared = (2.0 * cell - 1.5 * even) / cell**3 / bilinear
    assert np.diff(noise, axis=2).std() / noise.std() == pytest.approx(np.sqrt(squared), rel=0.06)


def test_the_grid_of_noise_has_no_place_of_its_own() -> None:
    """Its points would otherwise be where a pixel of every slice is noisiest."""
    config = NoiseConfig(deviation=1.0, cell=(4, 4))
    deviation = np.stack([coarse_noise((16, 16), config, 1.0, np.random.default_rng(s)) for s in range(1500)]).std(0)
    assert deviation[4:12, 4:12].max() < 1.2 * deviation[4:12, 4:12].min()


# Chance


def test_a_corruption_depends_on_its_generator_and_on_nothing_before() -> None:
    made = corruption(noise={"deviation": 0.1, "cell": (2, 8)}, most=4, texture=0.3, flat=0.5, dark=0.3)
    first, other = (made(even_slice(), disc(), 2, np.random.default_rng(seed)) for seed in (3, 4))
    np.random.seed(1)
    again = made(even_slice(), disc(), 2, np.random.default_rng(3))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.lesion, again.lesion)
    assert not np.array_equal(first.image, other.image)


# Shapes


@pytest.mark.parametrize("diameter", [8.0, 20.0, 45.0])
def test_random_shapes_are_pieces_of_about_their_diameter_that_nothing_cuts(diameter: float) -> None:
    sizes, largest, cut = [], [], []
    for seed in range(100):
        shape = random_shape(diameter, np.random.default_rng(seed))
        sizes.append(shape.sum() / (np.pi * diameter**2 / 4.0))
        largest.append(np.bincount(ndimage.label(shape)[0].ravel())[1:].max() / shape.sum())
        border = shape.copy()
        border[1:-1, 1:-1] = False
        cut.append(border.sum() > 0.2 * diameter)
    assert np.median(sizes) == pytest.approx(1.0, abs=0.15)
    assert min(sizes) > 0.3 and max(sizes) < 2.5
    assert np.mean(np.array(largest) > 0.9) > 0.8
    assert np.mean(cut) < 0.05


@given(diameter=st.floats(6.0, 45.0), radius=st.floats(4.0, 25.0), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_drawn_shape_keeps_its_kind_at_another_size(diameter: float, radius: float, seed: int) -> None:
    side = int(2 * radius) + 8
    y, x = np.mgrid[:side, :side] - (side - 1) / 2.0
    long = np.hypot(y, 2.0 * x) < radius  # twice as long as wide
    shape = resized(long, diameter, np.random.default_rng(seed))
    assert shape.sum() == pytest.approx(np.pi * diameter**2 / 4.0, rel=0.3)
    spread = np.linalg.eigvalsh(np.cov(np.argwhere(shape).T.astype(float)) + np.eye(2) / 12)
    ratio = np.sqrt(spread[1] / spread[0])
    assert 2.0 * np.exp(-0.4) * 0.8 < ratio < 2.0 * np.exp(0.4) * 1.2
    border = shape.copy()
    border[1:-1, 1:-1] = False
    assert not border.any()


@given(size=st.tuples(st.integers(1, 20), st.integers(1, 20)), side=st.integers(1, 30), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_shape_is_placed_in_the_brain_alone_and_never_missed(size: tuple[int, int], side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    brain = rng.random(size) < 0.3
    brain[rng.integers(size[0]), rng.integers(size[1])] = True
    mask = place_shape(np.ones((side, side), bool), brain, rng)
    assert mask.shape == size
    assert mask.any() and not mask[~brain].any()


def write_mask(path: Path, mask: np.ndarray, direction: tuple[float, ...] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def test_shapes_are_the_axial_slices_of_masks_whichever_way_they_are_stored(tmp_path: Path) -> None:
    mask = np.zeros((14, 20, 30), bool)  # up, back, left
    mask[3:9, 5:12, 8:22] = True  # 7 from front to back, 14 from right to left
    write_mask(tmp_path / "axial.nii.gz", mask)
    # The same as coronal slices: its third axis runs from front to back, its second upwards.
    coronal = mask.transpose(1, 0, 2)
    write_mask(tmp_path / "deep" / "coronal.nii", coronal, (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0))
    shapes = read_shapes(tmp_path)
    assert len(shapes) == 4, "of six like slices every fourth, of each mask"
    for shape in shapes:
        assert shape.shape == (7 + 6, 14 + 6)
        assert shape[3:-3, 3:-3].all() and shape.sum() == 7 * 14


def test_other_files_and_slices_too_small_to_enlarge_are_no_shapes(tmp_path: Path) -> None:
    mask = np.zeros((6, 20, 20), bool)
    mask[2, 4:14, 4:14] = True
    mask[4, 4:8, 4:8] = True
    write_mask(tmp_path / "mask.nii.gz", mask)
    (tmp_path / "mask.nii.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("no mask")
    (shape,) = read_shapes(tmp_path)
    assert shape.sum() == 100


@pytest.mark.parametrize("content", ["nothing", "missing", "small"])
def test_a_folder_without_shapes_is_named(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "shapes"
    if content != "missing":
        folder.mkdir()
    if content == "small":
        write_mask(folder / "m.nii.gz", np.pad(np.ones((1, 4, 4), bool), 3))
    with pytest.raises(InputError, match=rf"{re.escape(str(folder))} holds no lesion mask.*Correct 'shapes'"):
        Corruption(CorruptionConfig.model_validate({"lesions": {"shapes": folder}}))


def test_drawn_shapes_are_used_beside_random_ones(tmp_path: Path) -> None:
    mask = np.zeros((3, 60, 60), bool)
    mask[1, 10:50, 28:32] = True  # a bar, ten times as long as wide, which no random shape is
    write_mask(tmp_path / "bar.nii.gz", mask)
    made = corruption(shapes=tmp_path, diameter=(12.0, 14.0))
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        spread = np.linalg.eigvalsh(np.cov(np.argwhere(made._shape(13.0, rng)).T.astype(float)))
        ratios.append(np.sqrt(spread[1] / spread[0]))
    assert 0.3 < np.mean(np.array(ratios) > 4.0) < 0.7


# What is wrong with a configuration


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"levels": 0}, "levels"),
        ({"lesions": {"diameter": [0.0, 4.0]}}, r"lesions.diameter.*found \[0.0, 4.0\].*starts above 0"),
        ({"lesions": {"shift": [0.5, 0.1]}}, r"lesions.shift.*found \[0.5, 0.1\]"),
        ({"lesions": {"edge": [-1.0, 1.0]}}, r"lesions.edge.*found \[-1.0, 1.0\]"),
        ({"lesions": {"most": 0}}, "lesions.most"),
        ({"lesions": {"dark": 1.5}}, "lesions.dark"),
        ({"noise": {"deviation": 0.0}}, "noise.deviation"),
        ({"noise": {"cell": [0, 8]}}, r"noise.cell.*found \[0, 8\]"),
        ({"noise": {"cell": [8, 4]}}, r"noise.cell.*found \[8, 4\]"),
        ({"lesion": {}}, "lesion.*Extra inputs"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.compile(message, re.DOTALL)):
        CorruptionConfig.model_validate(entries)
