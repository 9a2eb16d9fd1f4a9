"""Images made from label maps: image and mask agree wherever they are moved, and chance is in the caller's hands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from training import synthesis
from training.brain import BrainConfig, BrainTask, load_lesions
from training.synthesis import Head, load_head, synthesise

SHAPE = (52, 60, 50)
CORTEX, WHITE, CSF, SKULL_LABEL = 3, 2, 24, 515


def label_volume() -> np.ndarray:
    """A lopsided brain with a 4 mm wide sulcus, a shell of white matter, fluid and bone: FreeSurfer's numbers."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    brain = ((x - 27) / 15) ** 2 + ((y - 27) / 19) ** 2 + ((z - 26) / 13) ** 2 < 1
    brain |= ((x - 17) / 7) ** 2 + ((y - 40) / 9) ** 2 + ((z - 20) / 8) ** 2 < 1
    depth = ndimage.distance_transform_edt(brain)
    distance = ndimage.distance_transform_edt(~brain)
    labels = np.zeros(SHAPE, np.uint16)
    labels[distance <= 4] = SKULL_LABEL
    labels[distance <= 2] = CSF
    labels[brain] = CORTEX
    labels[depth > 4] = WHITE
    labels[26:28, 27, 34:] = np.where(labels[26:28, 27, 34:] == CORTEX, CSF, labels[26:28, 27, 34:])
    return labels


def write_labels(path: Path) -> Path:
    image = sitk.GetImageFromArray(label_volume().transpose(2, 1, 0))
    image.SetSpacing((2.0, 2.0, 2.0))
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))  # towards right, anterior, superior
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    return load_head(write_labels(tmp_path_factory.mktemp("labels") / "head.nii.gz"))


@pytest.fixture(autouse=True)
def small_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "SIZE", (48, 56, 48))


def surface_distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean distance of one mask's surface from the other's, in voxels, both ways."""

    def surface(mask: np.ndarray) -> np.ndarray:
        return mask & ~ndimage.binary_erosion(mask)

    one, other = surface(found), surface(expected)
    there = ndimage.distance_transform_edt(~other)[one].mean()
    back = ndimage.distance_transform_edt(~one)[other].mean()
    return float(max(there, back))


def test_the_mask_follows_the_image_through_every_transform(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    # The brain alone, in one brightness: what the scanner's faults leave of its boundary must be the mask's.
    monkeypatch.setattr(synthesis, "_paint", lambda tissue, brain, *_: 0.8 * brain.float())
    monkeypatch.setattr(synthesis, "rescale_intensity", lambda image: image)
    distances, sizes = [], []
    for seed in range(10):
        torch.manual_seed(seed)
        image, mask = synthesise(head, [], np.random.default_rng(seed))
        brain = mask[0].numpy() > 0.5
        smooth = ndimage.gaussian_filter(image[0].numpy(), 0.7)
        local = ndimage.maximum_filter(smooth, 9)  # a bias field may make one end twice as bright as the other
        found = ndimage.binary_opening(smooth > 0.5 * np.maximum(local, 0.3 * smooth.max()))
        distances.append(surface_distance(found, brain))
        sizes.append(brain.sum())
    assert max(distances) < 1.6, "thick slices may cost a voxel and a half"
    assert np.median(distances) < 0.6
    assert len(set(sizes)) == 10, "every image shows the head in another place and size"


def test_a_stripped_image_is_zero_exactly_outside_the_mask(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "_acquire", lambda subject, rng: subject)
    stripped = 0
    for seed in range(16):
        torch.manual_seed(seed)
        image, mask = synthesise(head, [], np.random.default_rng(seed))
        inside = mask > 0.5
        if image[~inside].max() == 0.0:
            stripped += 1
            assert (image[inside] > 0).float().mean() > 0.9  # the darkest tissue may be black
    assert 1 <= stripped <= 12


def test_the_same_seeds_give_the_same_image_and_others_another(head: Head) -> None:
    def make(seed: int, torch_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(torch_seed)
        np.random.seed(np.random.randint(1000))
        return synthesise(head, [np.ones((3, 3, 3), bool)], np.random.default_rng(seed))

    first, again, other, elsewhere = make(3, 4), make(3, 4), make(5, 4), make(3, 5)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], elsewhere[0])


def test_an_image_has_the_networks_shape_and_range_and_leaves_the_head_as_it_was(head: Head) -> None:
    before = head.tissue.clone(), head.brain.clone()
    for seed in range(4):
        torch.manual_seed(seed)
        image, mask = synthesise(head, [np.ones((9, 9, 9), bool)], np.random.default_rng(seed))
        assert image.shape == mask.shape == (1, 48, 56, 48)
        assert image.dtype == mask.dtype == torch.float32
        assert torch.isfinite(image).all()
        assert image.min() >= 0.0
        assert image.max() <= 1.0
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close((head.tissue, head.brain), before, rtol=0, atol=0)


def test_a_head_groups_its_labels_and_fills_its_sulci(head: Head) -> None:
    labels = label_volume()
    assert tuple(head.tissue.shape) == (1, *SHAPE)
    assert head.spacing == pytest.approx((2.0, 2.0, 2.0))
    tissue = head.tissue[0].numpy()
    numbers = {
        label: set(np.unique(tissue[labels == label]).tolist()) for label in (0, WHITE, CORTEX, CSF, SKULL_LABEL)
    }
    assert numbers[0] == {0}
    assert all(len(found) == 1 for found in numbers.values())
    assert len({number for found in numbers.values() for number in found}) == 5
    brain = head.brain[0].numpy() > 0
    parenchyma = np.isin(labels, (WHITE, CORTEX))
    assert brain[parenchyma].all()
    assert brain[26:28, 27, 34:37].all(), "the sulcus is filled"
    assert not brain[labels == SKULL_LABEL].any()
    assert not brain[labels == 0].any()


def test_a_lesion_is_planted_inside_the_brain_only(head: Head) -> None:
    brain = head.brain[0].numpy() > 0
    for seed in range(5):
        tissue = head.tissue[0].numpy().copy()
        synthesis._plant(tissue, brain, np.ones((11, 11, 11), bool), np.random.default_rng(seed))
        changed = tissue != head.tissue[0].numpy()
        assert changed.any()
        assert not changed[~brain].any()
        assert len(np.unique(tissue[changed])) == 1


def test_lesion_shapes_are_cropped_and_a_folder_without_any_is_an_error(tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[2:6, 4:10, 6:8] = 1
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(tmp_path / "lesion.nii.gz"))
    (shape,) = load_lesions(tmp_path)
    assert shape.shape == (2, 6, 4)
    assert shape.all()
    with pytest.raises(FileNotFoundError, match="holds no lesion masks"):
        load_lesions(tmp_path / "nowhere")


def test_the_stage_needs_label_maps_to_train_on_and_others_to_watch(tmp_path: Path) -> None:
    network = {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 8, "out_channels": 8, "features": [4] * 6}
    trainer = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    config = BrainConfig.model_validate({"labels": tmp_path, "network": network, "trainer": trainer})
    with pytest.raises(FileNotFoundError, match=r"holds 0 label maps \(\*\.nii\.gz\); training needs more"):
        BrainTask(config)
