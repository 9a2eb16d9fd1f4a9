"""Slabs: painted ones look like FLAIR on the engine's scale, real ones stay what they are, scans have faults alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.preprocessing.intensity import tissue_mode
from Testing.training.stages import FREE, RESTRICTED, write_slab_heads, write_stacks
from Testing.training.test_synthesis import write_labels
from training.data.acquisition import AcquisitionConfig, acquire, found_brain
from training.data.drawing import Draw, blur
from training.data.head_maps import BRAIN_BIT, HeadMaps
from training.data.label_maps import load_head, prepare_labels
from training.data.painting import OUTSHINING, OUTSHINING_SHARE, PaintingConfig, flair_means, paint
from training.data.slabs import AugmentationConfig, RealStacks, SlabGrid, Slabs
from training.data.stacks import PrepareSlabsConfig, around, prepare_slabs
from training.data.tissues import GREY, RIM, TISSUES, WHITE
from training.trainer.configuration import ConfigurationError

GRID = SlabGrid(size=64, spacing=1.0)
# A head as its map has it: nothing moves, nothing varies.
STILL = {
    "shift": 0.0,
    "rotation": (0.0, 0.0, 0.0),
    "scale": 0.0,
    "bend": 0.0,
    "height": (0.5, 0.5),
    "gap": (1.0, 1.0),
    "mottle": 0.0,
    "grain": 0.0,
    "white_unevenness": 0.0,
    "grey_unevenness": 0.0,
    "fluid_unevenness": 0.0,
    "surroundings": 0.0,
    "blur": (0.0, 0.0),
}
PERFECT = AcquisitionConfig(
    bias_share=0.0, gamma=0.0, gain=0.0, offset=0.0, ghost_share=0.0, noise_share=0.0, leak_share=0.0
)


def draw(seed: int = 0, size: int = 4) -> Draw:
    return Draw(torch.Generator().manual_seed(seed), size)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> HeadMaps:
    return HeadMaps.load(write_slab_heads(tmp_path_factory.mktemp("maps") / "heads.npz"), 1.0)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stacks(tmp_path_factory.mktemp("stacks") / "stacks.npz")


def still(maps: HeadMaps, seed: int = 0, size: int = 4, **changes: object) -> Slabs:
    return paint(maps, GRID, PaintingConfig.model_validate(STILL | changes), draw(seed, size))


def real(path: Path, seed: int = 0, size: int = 4, restricted: bool = False, **changes: object) -> Slabs:
    found = RealStacks.load(path, GRID, restricted)
    return found.draw(found.weight, GRID, AugmentationConfig.model_validate(changes), draw(seed, size))


def same(first: Slabs, second: Slabs) -> bool:
    names = [name for name in Slabs.__dataclass_fields__ if getattr(first, name) is not None]
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


# Painted


def test_regions_outshine_others_of_their_tissue_in_some_heads_alone() -> None:
    usual, *others = flair_means(draw(0, 2000))
    means, *same = flair_means(draw(0, 2000), regional=0.16)
    assert all(torch.equal(one, other) for one, other in zip(others, same, strict=True))
    brighter = means - usual
    outshining = [TISSUES[name] for name in OUTSHINING]
    rest = [number for number in range(brighter.shape[1]) if number not in outshining]
    assert not brighter[:, rest].any()
    assert float(brighter.min()) == 0.0 and 0.15 < float(brighter.max()) <= 0.16
    torch.testing.assert_close(
        (brighter[:, outshining] > 0).float().mean(0),
        torch.full((len(outshining),), OUTSHINING_SHARE),
        atol=0.05,
        rtol=0,
    )


def test_painted_slabs_have_their_shapes_and_are_a_function_of_the_seed(maps: HeadMaps) -> None:
    config = PaintingConfig()
    first, again, other = (paint(maps, GRID, config, draw(seed)) for seed in (0, 0, 1))
    for name in ("image", "brain", "known", "white", "fluid", "rim"):
        assert getattr(first, name).shape == (4, 3, 64, 64)
    assert first.gap.shape == (4,)
    assert first.brain.dtype == first.known.dtype == torch.bool
    assert first.image.isfinite().all() and first.image.min() >= 0.0
    assert same(first, again) and not same(first, other)
    assert first.known.all(), "all of a painted head is healthy"


def test_a_painted_brains_mode_is_where_the_engines_scale_has_it(maps: HeadMaps) -> None:
    slabs = paint(maps, GRID, PaintingConfig(mode=(0.0, 0.0), height=(0.55, 0.6)), draw(0, 16))
    modes = []
    for image, white in zip(slabs.image, slabs.white, strict=True):
        modes.append(float(image[white > 0.95].median()))
    assert np.abs(np.array(modes) - 0.42).max() < 0.05
    assert np.mean(modes) == pytest.approx(0.42, abs=0.01)
    # And as detection would find it, for most heads: the brain's lowest is 0, the mode of all its tissue near 0.42.
    values = slabs.image[slabs.brain].numpy()
    assert 0.38 < tissue_mode(values, 0.0) < 0.50


def test_flair_has_dark_fluid_bright_grey_matter_and_a_faint_rim() -> None:
    means, white, fluid = flair_means(draw(0, 2000))
    assert (fluid < white).all()
    assert (means[:, TISSUES["ventricle"]] == fluid).all()
    assert (means[:, TISSUES["cortex"]] >= white - 0.02).all()
    rim = means[:, RIM] - white
    assert rim.min() >= -0.01 and rim.max() <= 0.1 and rim.mean() == pytest.approx(0.045, abs=0.005)
    assert set(WHITE) & set(GREY) == set()


def test_a_slab_shows_its_map_front_up_and_the_shares_of_its_tissues(maps: HeadMaps) -> None:
    slabs = still(maps, thickness=((1.0, 1.0), (1.0, 1.0)))
    y, x = np.mgrid[:64, :64] - 31.5
    radius = torch.from_numpy(np.hypot(x, y))
    for fluid, rim, brain in zip(slabs.fluid, slabs.rim, slabs.brain, strict=True):
        assert fluid[1][radius < 3.0].min() > 0.99 and rim[1][radius < 3.0].max() < 0.01
        assert rim[1][(radius > 5.7) & (radius < 6.0)].min() > 0.5
        assert brain[1][radius < 20].all() and not brain[1][radius > 24].any()


def test_a_thick_slab_is_the_mean_of_what_it_holds(maps: HeadMaps) -> None:
    # The ventricle is 9 mm high: of a slab of 18 mm about its middle, two planes in three lie outside it.
    thin, thick = (still(maps, thickness=((mm, mm), (mm, mm))) for mm in (1.0, 18.0))
    middle = (slice(None), 1, 31, 31)
    assert thin.fluid[middle].min() > 0.99
    assert thick.fluid[middle].numpy() == pytest.approx(1.0 / 3.0, abs=0.01)
    assert thick.gap.tolist() == [18.0] * 4


def test_neighbours_lie_a_gap_below_and_above(maps: HeadMaps) -> None:
    slabs = still(maps, thickness=((1.0, 1.0), (1.0, 1.0)), gap=(10.0, 10.0))
    area = slabs.brain.flatten(2).sum(2).float()
    assert (area[:, 1] > area[:, 0]).all() and (area[:, 1] > area[:, 2]).all(), "a ball is widest in the middle"


# Real


def test_nothing_restricted_is_drawn_unless_it_may_be(stacks: Path) -> None:
    calm = {"contrast": 0.0, "blur": (0.05, 0.05)}
    for restricted, expected in ((False, {FREE}), (True, {FREE, RESTRICTED})):
        found = set()
        for seed in range(6):
            slabs = real(stacks, seed, restricted=restricted, **calm)
            inside = ndimage.binary_erosion(slabs.brain[:, 1].numpy(), np.ones((1, 5, 5)))
            for image, brain in zip(slabs.image[:, 1].numpy(), inside, strict=True):
                value = 255.0 * float(np.median(image[brain]))
                found.add(min((FREE, RESTRICTED), key=lambda one, value=value: abs(one - value)))
                assert min(abs(value - one) for one in (FREE, RESTRICTED)) < 8
        assert found == expected


def test_real_slabs_are_a_function_of_the_seed_and_have_no_brain_beyond_their_stack(stacks: Path) -> None:
    first, again, other = (real(stacks, seed, 64) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)
    assert first.brain[:, 1].flatten(1).any(1).all()
    ends = ~first.brain.flatten(2).any(2)
    assert ends[:, 0].any() and ends[:, 2].any() and not (ends[:, 0] & ends[:, 2]).any()
    assert set(first.gap.tolist()) == {1.0}


def test_what_is_not_known_to_be_healthy_stays_so_through_the_augmentation(stacks: Path) -> None:
    slabs = real(stacks, 0, 32, restricted=True)
    share = (slabs.known & slabs.brain).flatten(1).sum(1) / slabs.brain.flatten(1).sum(1)
    restricted = slabs.gap == 5.0
    assert (share[restricted] < 0.6).all() and (share[~restricted] > 0.9).all()


def test_a_marked_lesion_moves_with_the_slice_it_was_marked_on(stacks: Path) -> None:
    found = RealStacks.load(stacks, GRID, True, lesions=True)
    calm = AugmentationConfig(contrast=0.0, blur=(0.05, 0.05))
    slabs = found.draw(found.weight, GRID, calm, draw(0, 32))
    assert slabs.lesion is not None and slabs.lesion.shape == (32, 3, 64, 64)
    sick = slabs.gap == 5.0
    assert sick.any() and not slabs.lesion[~sick].any()
    middle = slabs.lesion[sick, 1] > 0.99
    assert (middle.flatten(1).sum(1) > 60).all()
    # Lesion is 30 of 255 brighter than what surrounds it, texture of 9 either way included.
    assert slabs.image[sick, 1][middle].mean() * 255.0 == pytest.approx(RESTRICTED + 30.0, abs=3.0)
    healthy = slabs.brain[sick, 1] & (slabs.lesion[sick, 1] == 0.0)
    assert slabs.image[sick, 1][healthy].median() * 255.0 == pytest.approx(RESTRICTED, abs=3.0)
    assert slabs.known[slabs.brain].float().mean() > 0.99, "with the lesion marked, all else is known"
    assert real(stacks, restricted=True).lesion is None, "nobody asked for it"


def test_stacks_without_lesion_masks_are_refused_where_they_are_needed_alone(tmp_path: Path, stacks: Path) -> None:
    with np.load(stacks) as file:
        arrays = dict(file)
    del arrays["lesion"]
    np.savez(tmp_path / "earlier.npz", **arrays)
    assert len(RealStacks.load(tmp_path / "earlier.npz", GRID, True)) == 12
    with pytest.raises(ConfigurationError, match=r"earlier.npz was prepared without lesion masks.*prepare-slabs"):
        RealStacks.load(tmp_path / "earlier.npz", GRID, True, lesions=True)


def test_stacks_that_cannot_be_used_are_refused(tmp_path: Path, stacks: Path) -> None:
    with np.load(stacks) as file:
        arrays = dict(file)
    np.savez(tmp_path / "all.npz", **arrays | {"restricted": np.array([True, True])})
    with pytest.raises(ConfigurationError, match="no slice of a free licence"):
        RealStacks.load(tmp_path / "all.npz", GRID, False)
    assert len(RealStacks.load(tmp_path / "all.npz", GRID, True)) == 12
    del arrays["gap"]
    np.savez(tmp_path / "part.npz", **arrays)
    with pytest.raises(ConfigurationError, match=r"holds no stacks .*prepare-slabs writes it"):
        RealStacks.load(tmp_path / "part.npz", GRID, True)


# Scans


def test_a_perfect_scan_is_the_slab_inside_its_brain(maps: HeadMaps) -> None:
    slabs = still(maps)
    image, brain = acquire(slabs, PERFECT, draw())
    assert ((image == slabs.image.clamp(0, 1)) | ~brain).all()
    assert (image[~brain] == 0.0).all()


def test_a_scan_stays_in_range_and_an_empty_slab_has_no_brain(maps: HeadMaps) -> None:
    slabs = paint(maps, GRID, PaintingConfig(), draw(0, 16))
    without = slabs.brain.clone()
    without[::2] = False
    image, brain = acquire(replace(slabs, brain=without), AcquisitionConfig(), draw(1, 16))
    assert image.isfinite().all() and image.min() >= 0.0 and image.max() <= 1.0
    assert (image[~brain] == 0.0).all()
    assert not brain[::2].any() and brain[1::2].flatten(1).any(1).all()


def test_masks_are_exact_too_wide_too_narrow_or_leak(maps: HeadMaps) -> None:
    brain = still(maps).brain[:1].expand(400, 3, 64, 64)
    found = found_brain(brain, PERFECT, draw(0, 400))
    area = found[:, 1].flatten(1).sum(1)
    true = int(brain[0, 1].sum())
    assert len(area.unique()) == 7
    shares = [float((one(area)).float().mean()) for one in (lambda a: a == true, lambda a: a > true)]
    assert shares == pytest.approx([0.45, 0.30], abs=0.07)
    leaking = found_brain(brain, AcquisitionConfig(leak_share=1.0), draw(0, 400))
    assert (leaking >= found).all() and leaking.sum() > found.sum()


def test_each_sample_has_a_blur_of_its_own() -> None:
    images = torch.zeros(2, 3, 33, 33)
    images[:, :, 16, 16] = 1.0
    narrow, broad = blur(images, torch.tensor([0.05, 1.0]))
    torch.testing.assert_close(narrow, images[0])
    expected = ndimage.gaussian_filter(images[0, 0].numpy(), 1.0, radius=4)
    np.testing.assert_allclose(broad[1].numpy(), expected, atol=1e-6)
    even = torch.full((1, 1, 12, 12), 0.3)
    torch.testing.assert_close(blur(even, torch.tensor([1.1])), even)


# Preparing


def write_slab_labels(path: Path) -> None:
    """The brain's phantom with voxels of 1 mm and a ventricle."""
    image = sitk.ReadImage(str(write_labels(path)))
    array = sitk.GetArrayFromImage(image)
    array[24:28, 25:29, 23:27] = 4
    made = sitk.GetImageFromArray(array)
    made.SetDirection(image.GetDirection())
    sitk.WriteImage(made, str(path))


def test_maps_for_slabs_tell_the_rim_apart_and_hold_no_more_than_the_brain_needs(tmp_path: Path) -> None:
    write_slab_labels(tmp_path / "a.nii.gz")
    prepare_labels(tmp_path, tmp_path / "heads.npz", slabs=True)
    maps = HeadMaps.load(tmp_path / "heads.npz", 1.0)
    head = load_head(tmp_path / "a.nii.gz")
    full = maps.labels.view(tuple(maps.shapes[0].tolist())).numpy()
    tissue = full & (BRAIN_BIT - 1)
    distance = ndimage.distance_transform_edt(tissue != TISSUES["ventricle"])
    rim = tissue == RIM
    assert rim.any() and distance[rim].max() <= 2.5
    assert not (tissue[distance <= 2.5] == TISSUES["white matter"]).any()
    assert (full >= BRAIN_BIT).sum() == head.brain.sum(), "no brain is cut off"
    first, end = maps.boxes[0].int().tolist()
    places = np.argwhere(full >= BRAIN_BIT)
    assert first == places.min(0).tolist() and end == (places.max(0) + 1).tolist()
    with pytest.raises(ConfigurationError, match=r"voxels of 1 mm, 2 mm are needed"):
        HeadMaps.load(tmp_path / "heads.npz")
    with pytest.raises(InputError, match="voxels of 1 x 1 x 1 mm; the network sees 2 mm"):
        prepare_labels(tmp_path, tmp_path / "other.npz")


def write_scan(path: Path, thickness: float, slices: int, lesion: bool = False) -> None:
    rng = np.random.default_rng(slices)
    z, y, x = np.mgrid[:slices, :40, :40] - np.array([(slices - 1) / 2, 19.5, 19.5])[:, None, None, None]
    brain = (x**2 + y**2 < 15.0**2) & (abs(z) < slices / 2 - 1)
    values = np.where(brain, rng.normal(100.0, 5.0, brain.shape), 0.0)
    arrays = {"flair": values.astype(np.float32), "brain": brain.astype(np.uint8)}
    if lesion:
        mask = np.zeros(brain.shape, np.uint8)
        mask[slices // 2, 18:22, 18:22] = 1
        arrays["mask"] = mask
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending, array in arrays.items():
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((2.0, 2.0, thickness))
        sitk.WriteImage(image, f"{path}_{ending}.nii.gz")


def test_scans_become_stacks_of_every_thickness_that_know_what_is_healthy(tmp_path: Path) -> None:
    write_scan(tmp_path / "free" / "a", 1.0, 24)
    write_scan(tmp_path / "free" / "b", 5.0, 8)
    write_scan(tmp_path / "patients" / "c", 5.0, 11, lesion=True)
    config = {
        "scans": [
            {"folder": tmp_path / "free", "pattern": "*_flair.nii.gz", "restricted": False, "slabs": [1, 3]},
            {
                "folder": tmp_path / "patients",
                "pattern": "*_flair.nii.gz",
                "restricted": True,
                "lesions": ["_flair.nii.gz", "_mask.nii.gz"],
            },
        ],
        "grid": GRID.model_dump() | {"spacing": 2.0},
        "brains": "{scan}_brain.nii.gz",
    }
    for name in ("a", "b"):
        for path in (tmp_path / "free").glob(f"{name}_brain.nii.gz"):
            path.rename(path.with_name(f"{name}_flair_brain.nii.gz"))
    (tmp_path / "patients" / "c_brain.nii.gz").rename(tmp_path / "patients" / "c_flair_brain.nii.gz")
    prepare_slabs(PrepareSlabsConfig.model_validate(config | {"lesion_margin": 2}), tmp_path / "out")
    with np.load(tmp_path / "out" / "stacks.npz") as file:
        names, stack, gap, restricted = (file[name] for name in ("names", "stack", "gap", "restricted"))
        images, known = file["images"], np.unpackbits(file["known"], axis=-1).astype(bool)
        brain, lesion = (np.unpackbits(file[name], axis=-1).astype(bool) for name in ("brain", "lesion"))
    assert names.tolist() == [f"{n}_flair.nii.gz, {g} mm" for n, g in (("a", 1), ("a", 3), ("b", 5), ("c", 5))]
    assert restricted.tolist() == [False, False, False, True]
    assert [sorted(set(gap[stack == number].tolist())) for number in range(4)] == [[1.0], [3.0], [5.0], [5.0]]
    assert images.shape[1:] == (64, 64)
    assert np.median(images[brain]) / 255.0 == pytest.approx(0.42, abs=0.03)
    assert known[stack < 3].all()
    marked = ~known[stack == 3]
    slices = marked.any((1, 2))
    assert slices.sum() == 3, "the lesion's slice and one to each side"
    assert marked.max(0).sum() > 16, "and some pixels around it"
    assert not lesion[stack < 3].any()
    assert lesion[stack == 3].sum() == 16 and lesion[stack == 3].any((1, 2)).argmax() == slices.argmax() + 1
    assert marked[lesion[stack == 3]].all(), "the lesion itself, and none of its margin"
    # A file of before lesions were kept is one of ours too, and is written again.
    with np.load(tmp_path / "out" / "stacks.npz") as file:
        earlier = {name: file[name] for name in file.files if name != "lesion"}
    np.savez_compressed(tmp_path / "out" / "stacks.npz", **earlier)
    prepare_slabs(PrepareSlabsConfig.model_validate(config), tmp_path / "out")
    loaded = RealStacks.load(tmp_path / "out" / "stacks.npz", SlabGrid(size=64, spacing=2.0), True, lesions=True)
    assert loaded.lesion is not None and np.array_equal(loaded.lesion.numpy(), lesion)


def test_a_margin_around_a_lesion_reaches_up_down_and_sideways() -> None:
    lesion = np.zeros((5, 9, 9), bool)
    lesion[2, 4, 4] = True
    assert around(lesion, 0).sum() == 3
    near = around(lesion, 2)
    assert near.any((1, 2)).tolist() == [False, True, True, True, False]
    assert near[2].sum() == 13


def test_scans_with_a_diseased_slice_are_left_out_and_a_window_is_the_scale(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_scan(tmp_path / "ct" / name, 5.0, 8)
    rows = ["scan,slice,label"] + [
        f"{name}_flair.nii.gz,{k},{int(name == 'b' and k == 3)}" for name in "ab" for k in range(8)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    config = {
        "scans": [
            {
                "folder": tmp_path / "ct",
                "pattern": "*_flair.nii.gz",
                "restricted": False,
                "labels": tmp_path / "labels.csv",
            }
        ],
        "grid": GRID.model_dump() | {"spacing": 2.0},
        "brains": "{scan}_brain.nii.gz",
        "normalisation": {"kind": "window", "low": -5, "high": 195},
    }
    for path in (tmp_path / "ct").glob("*_brain.nii.gz"):
        path.rename(path.with_name(path.name.replace("_brain", "_flair_brain")))
    # Negative numbers, as Hounsfield units have.
    for path in (tmp_path / "ct").glob("*_flair.nii.gz"):
        image = sitk.ReadImage(path)
        sitk.WriteImage(sitk.Clamp(image * 1.1 - 10.0, lowerBound=-10.0), path)
    prepare_slabs(PrepareSlabsConfig.model_validate(config), tmp_path / "out")
    with np.load(tmp_path / "out" / "stacks.npz") as file:
        assert file["names"].tolist() == ["a_flair.nii.gz, 5 mm"]
        brain = np.unpackbits(file["brain"], axis=-1).astype(bool)
        assert np.median(file["images"][brain]) / 255.0 == pytest.approx(105.0 / 200.0, abs=0.02)
    (tmp_path / "labels.csv").write_text("\n".join(rows).replace(",0,0", ",0,1"))
    with pytest.raises(FileNotFoundError, match="healthy throughout"):
        prepare_slabs(PrepareSlabsConfig.model_validate(config), tmp_path / "out")
