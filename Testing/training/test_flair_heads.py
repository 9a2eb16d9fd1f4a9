"""FLAIR-like heads from label maps: the order of intensities, the place of every tissue, and slices like real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.flair_heads import HeadsConfig, flair_means, paint_flair, prepare_heads
from training.labels import Head, load_head
from training.slices import HEALTHY, Slices, training_slices
from training.tissues import TISSUES

SHAPE = (48, 56, 44)  # voxels of 2 mm towards the right, the front and the top
CORTEX, WHITE, VENTRICLE, CSF, SKULL = 3, 2, 4, 24, 515
VENTRICLE_CENTRE = np.array([33.0, 34.0, 28.0])  # right of the middle, in front of it and above


def label_volume() -> np.ndarray:
    place = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij"), -1)
    middle = (np.array(SHAPE) - 1) / 2.0
    radius = np.sqrt((((place - middle) / (17.0, 21.0, 15.0)) ** 2).sum(-1))
    labels = np.zeros(SHAPE, np.uint16)
    for label, most in ((SKULL, 1.25), (CSF, 1.1), (CORTEX, 1.0), (WHITE, 0.75)):
        labels[radius < most] = label
    labels[np.sqrt(((place - VENTRICLE_CENTRE) ** 2).sum(-1)) < 5.0] = VENTRICLE
    return labels


def write_labels(path: Path) -> Path:
    image = sitk.GetImageFromArray(label_volume().transpose(2, 1, 0))
    image.SetSpacing((2.0, 2.0, 2.0))
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name in ("a", "b"):
        write_labels(folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def head(labels: Path) -> Head:
    return load_head(labels / "a.nii.gz")


def paint(head: Head, seed: int, torch_seed: int | None = None) -> tuple[np.ndarray, np.ndarray, sitk.Image]:
    torch.manual_seed(seed if torch_seed is None else torch_seed)
    image, brain = paint_flair(head, np.random.default_rng(seed))
    assert image.GetSize() == brain.GetSize() and image.GetDirection() == brain.GetDirection()
    return sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(brain) > 0, image


def heads_config(labels: Path, **changes: Any) -> HeadsConfig:
    entries = {"labels": labels, "images": 2, "slices": 5, "grid": {"size": (32, 40), "spacing": 3.0}}
    return HeadsConfig.model_validate({**entries, "minimum_brain_pixels": 60, **changes})


# Intensities


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_tissues_have_the_order_that_flair_gives_them(seed: int) -> None:
    means = flair_means(np.random.default_rng(seed))
    assert means.shape == (len(TISSUES) + 1,)
    assert means[0] == 0.0 and (means >= 0.0).all() and (means <= 1.0).all()
    white, grey = means[TISSUES["white matter"]], means[TISSUES["cortex"]]
    assert 0.0 <= grey - white <= 0.15
    assert max(means[TISSUES["ventricle"]], means[TISSUES["fluid"]]) <= 0.6 * white
    brain = [means[number] for name, number in TISSUES.items() if number <= TISSUES["hippocampus, amygdala"]]
    assert max(brain) <= grey + 0.15, "nothing of a healthy brain stands out brightly"


def test_fluid_is_dark_and_lies_where_the_label_map_has_it(head: Head) -> None:
    # World coordinates, LPS: the label map's voxels of 2 mm run to the right, the front and up from the origin.
    there = VENTRICLE_CENTRE * (-2.0, -2.0, 2.0)
    for seed in range(4):
        values, brain, image = paint(head, seed)
        core = values < 0.75 * np.median(values[brain])
        core[[0, -1]] = False
        inner = core & _eroded(brain, 5)
        assert inner.sum() > 30
        centre = np.argwhere(inner).mean(0)[::-1]
        found = np.array(image.TransformContinuousIndexToPhysicalPoint([float(v) for v in centre]))
        middle = (np.array(SHAPE) - 1) / 2.0 * (-2.0, -2.0, 2.0)
        mirrored = middle + (there - middle) * (-1.0, 1.0, 1.0)
        assert np.linalg.norm(found - there) < 14.0 < np.linalg.norm(found - mirrored), "turned by 8 degrees at most"


def _eroded(mask: np.ndarray, voxels: int) -> np.ndarray:
    from scipy import ndimage

    return np.asarray(ndimage.binary_erosion(mask, iterations=voxels))


def test_the_same_seeds_paint_the_same_head_and_leave_the_label_map_alone(head: Head) -> None:
    before = head.tissue.clone(), head.brain.clone()
    first, again, other, elsewhere = (paint(head, *seeds)[0] for seeds in ((3, 4), (3, 4), (5, 4), (3, 5)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, elsewhere)
    torch.testing.assert_close((head.tissue, head.brain), before, rtol=0, atol=0)


# Slices


def test_heads_become_healthy_normalised_slices_like_those_of_scans(labels: Path, tmp_path: Path) -> None:
    prepare_heads(heads_config(labels), tmp_path)
    slices = training_slices(tmp_path, halves=False)
    assert slices.images.shape[1:] == (40, 32)
    assert set(slices.label) == {HEALTHY}
    assert sorted(set(slices.scan)) == [f"{name}.nii.gz-{copy}" for name in "ab" for copy in (0, 1)]
    assert (slices.brain.sum((1, 2)) >= 60).all()
    assert not slices.images[~slices.brain].any()
    for name in set(slices.scan):
        one = slices.select(slices.scan == name)
        assert len(one) == 5
        assert (np.diff(one.height) > 0).all() and one.height.min() >= 0.0 and one.height.max() <= 1.0
        assert (np.diff(one.index) > 0).all()
        # The same scale as scans get: the brain's 75th percentile is one half.
        assert np.percentile(one.images[one.brain] / 255.0, 75) == pytest.approx(0.5, abs=0.08)


def test_an_image_does_not_depend_on_how_many_others_are_painted(labels: Path, tmp_path: Path) -> None:
    for folder, images in (("two", 2), ("one", 1)):
        prepare_heads(heads_config(labels, images=images), tmp_path / folder)
    many, few = (Slices.load(tmp_path / folder / "train.npz") for folder in ("two", "one"))
    assert len(few) < len(many)
    for name in set(few.scan):
        np.testing.assert_array_equal(few.images[few.scan == name], many.images[many.scan == name])


def test_a_folder_without_label_maps_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing holds no label map \(\*\.nii\.gz\)"):
        prepare_heads(heads_config(tmp_path / "nothing"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
