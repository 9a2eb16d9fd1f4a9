"""Images made from label maps: image and mask agree wherever they are moved, and chance is in the caller's hands."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from scipy import ndimage
from torch.nn import functional

from diffusion_anomaly.detection.brain_network import WINDOW, rescale_intensity
from diffusion_anomaly.errors import InputError
from Testing.training.stages import BRAIN, write_heads
from training.data import synthesis
from training.data.head_maps import BRAIN_BIT, HeadMaps
from training.data.label_maps import Head, load_head, prepare_labels
from training.data.synthesis import Draw, SynthesisConfig, blur_matrix, slice_matrix, synthesise
from training.stages.brain import BrainConfig, BrainTask
from training.trainer.configuration import ConfigurationError

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


SMALL = (48, 56, 48)  # voxels of the images made here
CALM = {field: 0.0 for field in SynthesisConfig.model_fields if field.endswith("_share")}  # nothing happens to them


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    write_labels(folder / "head.nii.gz")
    prepare_labels(folder, folder / "heads.npz")
    return folder


@pytest.fixture(scope="module")
def head(labels: Path) -> Head:
    return load_head(labels / "head.nii.gz")


@pytest.fixture(scope="module")
def maps(labels: Path) -> HeadMaps:
    return HeadMaps.load(labels / "heads.npz")


def make(maps: HeadMaps, seed: int, size: int = 2, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks, ``(size, *SMALL)``."""
    config = SynthesisConfig.model_validate(changes)
    image, brain = synthesise(maps, config, torch.Generator().manual_seed(seed), size, SMALL)
    return image[:, 0].numpy(), brain[:, 0].numpy() > 0.5


def surface_distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean distance of one mask's surface from the other's, in voxels, both ways."""

    def surface(mask: np.ndarray) -> np.ndarray:
        return mask & ~ndimage.binary_erosion(mask)

    one, other = surface(found), surface(expected)
    there = ndimage.distance_transform_edt(~other)[one].mean()
    back = ndimage.distance_transform_edt(~one)[other].mean()
    return float(max(there, back))


def test_the_mask_follows_the_image_through_every_transform(maps: HeadMaps, monkeypatch: pytest.MonkeyPatch) -> None:
    # The brain alone, in one brightness: what the scanner's faults leave of its boundary must be the mask's.
    monkeypatch.setattr(synthesis, "paint", lambda tissue, brain, *_: 0.8 * brain.float())
    images, brains = make(maps, 0, 12, lesion_share=0.0, cut_share=0.0, noise_share=0.0)
    distances = []
    for image, brain in zip(images, brains, strict=True):
        smooth = ndimage.gaussian_filter(image, 0.7)
        local = ndimage.maximum_filter(smooth, 9)  # a bias field may make one end twice as bright as the other
        found = ndimage.binary_opening(smooth > 0.5 * np.maximum(local, 0.3 * smooth.max()))
        distances.append(surface_distance(found, brain))
    assert max(distances) < 1.0, "thick slices may cost a voxel"
    assert np.median(distances) < 0.4
    assert len({int(brain.sum()) for brain in brains}) == 12, "every image shows the head in another place and size"


def test_a_head_that_nothing_happens_to_stands_in_the_middle_as_its_map_has_it(maps: HeadMaps) -> None:
    still = {"shift": (0, 0, 0), "rotation": (0, 0, 0), "scale": 0.0}
    _, brains = make(maps, 0, 4, **CALM, **still)
    shape = tuple(maps.shapes[0].tolist())
    brain = maps.labels.view(shape).numpy() >= BRAIN_BIT
    for found in brains:
        assert found.sum() == pytest.approx(brain.sum(), rel=0.02)
        middle = np.argwhere(found).mean(0)
        assert np.abs(middle - (np.array(SMALL) - 1) / 2.0).max() <= 1.0
    assert not np.array_equal(brains[0], brains[0][::-1]), "the phantom is lopsided"
    assert len({found.tobytes() for found in brains}) == 2, "as it is, and mirrored"


def test_a_header_that_is_wrong_about_its_slices_changes_the_heads_height_alone(maps: HeadMaps) -> None:
    still = {"shift": (0, 0, 0), "rotation": (0, 0, 0), "scale": 0.0, "wrong_spacing": (1.5, 1.5)}
    _, right = make(maps, 0, 1, **CALM, **still)
    _, wrong = make(maps, 0, 1, **(CALM | {"wrong_spacing_share": 1.0}), **still)
    extents = [np.ptp(np.argwhere(brain[0]), axis=0) + 1 for brain in (right, wrong)]
    assert np.abs(extents[1] - extents[0] / (1.0, 1.0, 1.5)).max() <= 1.0


def test_a_stripped_image_is_even_outside_the_mask_and_others_are_not(maps: HeadMaps) -> None:
    black = CALM | {"black_air_share": 1.0}
    images, brains = make(maps, 3, 6, **(black | {"stripped_share": 1.0}))
    assert images[~brains].max() == 0.0
    assert (images[brains] > 0).mean() > 0.9  # the darkest tissue may be black
    images, brains = make(maps, 3, 6, **black)
    assert (images[~brains] > 0).mean() > 0.05


def test_the_same_seed_gives_the_same_images_and_another_seed_others(maps: HeadMaps) -> None:
    first, again, other = make(maps, 3), make(maps, 3), make(maps, 5)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0][0], first[0][1])


def test_an_image_has_the_networks_shape_and_range_and_leaves_the_maps_as_they_were(maps: HeadMaps) -> None:
    before = maps.labels.clone()
    image, brain = synthesise(maps, SynthesisConfig(), torch.Generator().manual_seed(0), 2)
    assert image.shape == brain.shape == (2, 1, *WINDOW)
    assert image.dtype == brain.dtype == torch.float32
    images, _ = make(maps, 1, 16)
    assert np.isfinite(images).all()
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert set(brain.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(maps.labels, before)


def test_an_image_is_scaled_as_the_engine_scales_a_scan(maps: HeadMaps) -> None:
    raw = 40.0 + 300.0 * torch.rand(3, *SMALL, generator=torch.Generator().manual_seed(0)) ** 2
    raw[0, :20] = 40.0
    scaled = synthesis._rescale(raw, Draw(torch.Generator().manual_seed(1), 3))
    for image, expected in zip(scaled, raw, strict=True):
        np.testing.assert_allclose(image.numpy(), rescale_intensity(expected.numpy()), atol=0.01)
    even = synthesis._rescale(torch.full((1, *SMALL), 7.0), Draw(torch.Generator().manual_seed(1), 1))
    assert torch.equal(even, torch.zeros(1, *SMALL))


def test_a_lesion_is_planted_inside_the_brain_only(maps: HeadMaps) -> None:
    draw = Draw(torch.Generator().manual_seed(0), 4)
    place = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SHAPE), indexing="ij"), -1)
    _, brain = maps.look_up(torch.zeros(4, dtype=torch.long), place.expand(4, *SHAPE, 3))
    brain[3] = False
    image = torch.full((4, *SHAPE), -1.0)
    planted = synthesis.plant_lesion(image, brain, draw, SynthesisConfig(lesion_share=1.0))
    changed = planted != image
    assert changed.flatten(1).any(1).tolist() == [True, True, True, False]
    assert not changed[~brain].any()
    assert planted.max() <= 1.0


@pytest.mark.parametrize("slices", [8, 13, 29, 47, 48])
def test_thick_slices_are_means_and_lines_between_them(slices: int) -> None:
    values = torch.rand(1, 1, 48, generator=torch.Generator().manual_seed(0))
    mean = functional.interpolate(values, size=slices, mode="area")
    expected = functional.interpolate(mean, size=48, mode="linear", align_corners=False)
    found = slice_matrix(torch.tensor([slices]), 48)[0] @ values[0, 0]
    torch.testing.assert_close(found, expected[0, 0], rtol=0, atol=1e-5)


def test_a_blur_is_a_gaussian_and_a_narrow_one_changes_nothing() -> None:
    broad, narrow = blur_matrix(torch.tensor([1.5, 0.05]), 40)
    torch.testing.assert_close(broad.sum(1), torch.ones(40))
    expected = ndimage.gaussian_filter1d(np.eye(40)[20], 1.5, radius=15)
    np.testing.assert_allclose(broad[:, 20].numpy(), expected, atol=1e-4)
    torch.testing.assert_close(narrow, torch.eye(40))


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


def test_label_maps_in_one_file_are_looked_up_each_by_its_own_size(tmp_path: Path, head: Head) -> None:
    write_labels(tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(image[4:, :, 2:], str(tmp_path / "b.nii.gz"))
    prepare_labels(tmp_path, tmp_path / "heads.npz")
    maps = HeadMaps.load(tmp_path / "heads.npz")
    assert maps.shapes.tolist() == [[52, 60, 50], [48, 60, 48]]
    place = torch.tensor([27.0, 27.4, 26.0]).expand(2, 1, 1, 1, 3)
    place = torch.cat([place, place - torch.tensor([4.0, 0.0, 2.0]), torch.full_like(place, -3.0)], 1)
    tissue, brain = maps.look_up(torch.tensor([0, 1]), place)
    there = int(head.tissue[0, 27, 27, 26])
    assert int(tissue[0, 0, 0, 0]) == int(tissue[1, 1, 0, 0]) == there
    assert brain[:, :, 0, 0].tolist() == [[True, True, False], [True, True, False]]
    assert tissue[:, 2].max() == 0, "beyond the map is air"
    assert maps.select([1]).shapes.tolist() == [[48, 60, 48]]
    assert torch.equal(maps.select([1]).look_up(torch.tensor([0]), place[1:])[0], tissue[1:])


def test_label_maps_of_another_size_of_voxel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no label map"):
        prepare_labels(tmp_path, tmp_path / "heads.npz")
    image = sitk.ReadImage(str(write_labels(tmp_path / "a.nii.gz")))
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    with pytest.raises(InputError, match="voxels of 1 x 1 x 1 mm; the network sees 2 mm"):
        prepare_labels(tmp_path, tmp_path / "heads.npz")
    assert not (tmp_path / "heads.npz").exists()


def test_the_stage_needs_label_maps_to_train_on_and_others_to_watch(tmp_path: Path) -> None:
    def task(path: Path) -> BrainTask:
        return BrainTask(BrainConfig.model_validate(BRAIN | {"labels": path}))

    with pytest.raises(ConfigurationError, match="does not exist; python -m training prepare-labels writes it"):
        task(tmp_path / "nowhere.npz")
    with pytest.raises(ConfigurationError, match="holds 2 label maps; training needs more than 2"):
        task(write_heads(tmp_path / "two.npz", 2))
    (tmp_path / "text.npz").write_text("nothing of the kind", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="holds no label maps"):
        task(tmp_path / "text.npz")


def test_the_brain_is_trained_where_no_library_reads_images(tmp_path: Path) -> None:
    config = BRAIN | {"labels": str(write_heads(tmp_path / "heads.npz"))}
    (tmp_path / "brain.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    script = """
        import sys
        sys.modules["SimpleITK"] = sys.modules["torchio"] = None  # importing either fails
        from training.__main__ import command_line
        command_line(["brain", sys.argv[1], "--run", sys.argv[2]])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "brain.yaml"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoint.pt").exists()
