"""The MedNIST experiment: sprites lie where their masks say, measures agree with plain sums, the command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation import metrics
from examples.papers.sprites.__main__ import command_line
from examples.papers.sprites.experiment import MednistConfig
from examples.papers.sprites.measures import dice_curves, score_row, sprite_row
from examples.papers.sprites.shapes import (
    GREATEST_RADIUS,
    LEAST_CONTRAST,
    SHAPES,
    contaminate,
    head_depth,
    within,
)
from examples.papers.sprites.slices import prepare_mednist
from examples.papers.sprites.ways import Pictures, learn_threshold
from Testing.training.stages import Workplace
from training.data.slices import DISEASED, HEALTHY, Slices
from training.stages.diffusion import DiffusionConfig
from training.trainer.configuration import read_yaml

AIR, BRAIN, SKULL = 25, 70, 255


def head(size: int = 64, radius: float = 24.0, table: bool = True) -> np.ndarray:
    """A brain in a skull in air, and below it the arc of a table; ``radius`` 0 is a picture above the head."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    distance = np.hypot(x, y)
    image = np.where(distance < radius, SKULL, AIR)
    image = np.where(distance < 0.85 * radius, BRAIN, image)
    if table:
        image[(np.abs(distance - 0.48 * size) < 0.5) & (y > 0)] = 180
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def heads() -> np.ndarray:
    return np.stack([head(radius=radius) for radius in np.linspace(6.0, 26.0, 40)])


# Slices


def test_mednist_pictures_become_slices_with_the_others_kept_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = {
        name: rng.integers(0, 256, (n, 64, 64)).astype(np.uint8)
        for name, n in {"train": 6, "val": 3, "test": 2, "ood": 4}.items()
    }
    np.savez_compressed(tmp_path / "headct.npz", **pictures)
    prepare_mednist(tmp_path / "headct.npz", tmp_path / "out")
    for name, expected in pictures.items():
        found = Slices.load(tmp_path / "out" / f"{name}.npz")
        np.testing.assert_array_equal(found.images[:, 0], expected)
        assert found.brain.all()
        assert set(found.label) == {DISEASED if name == "ood" else HEALTHY}
        assert len(set(found.scan)) == len(expected)


@pytest.mark.parametrize("damage", ["missing", "no val", "float", "text"])
def test_a_wrong_mednist_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "headct.npz"
    arrays = {name: np.zeros((2, 64, 64), np.uint8) for name in ("train", "val", "test", "ood")}
    if damage == "no val":
        del arrays["val"]
    if damage == "float":
        arrays["test"] = arrays["test"].astype(np.float32)
    if damage == "text":
        path.write_text("train")
    elif damage != "missing":
        np.savez(path, **arrays)
    with pytest.raises((InputError, FileNotFoundError), match=r"headct\.npz"):
        prepare_mednist(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Sprites


def test_the_mask_is_exactly_what_the_sprite_changed_to_one_intensity(heads: np.ndarray) -> None:
    found = contaminate(heads, seed=0)
    assert found.numbers.tolist() == list(range(len(heads)))
    for image, mask, before in zip(found.images, found.masks, heads, strict=True):
        np.testing.assert_array_equal(mask, image != before)
        assert mask.any()
        assert len(np.unique(image[mask])) == 1


def test_sprites_stay_inside_the_head_and_below_their_greatest_size(heads: np.ndarray) -> None:
    found = contaminate(heads, seed=1)
    for mask, before in zip(found.masks, heads, strict=True):
        y, x = np.nonzero(mask)
        assert (before[mask] != AIR).all()
        assert (before[mask] != 180).all()
        assert max(np.ptp(y), np.ptp(x)) <= 2 * GREATEST_RADIUS * heads.shape[2]


def test_sprites_stand_out_and_vary_in_size_and_intensity() -> None:
    brain = np.full((40, 64, 64), BRAIN, np.uint8)
    found = contaminate(brain, seed=2)
    levels = np.array([image[mask][0] for image, mask in zip(found.images, found.masks, strict=True)]).astype(int)
    assert (np.abs(levels - BRAIN) >= LEAST_CONTRAST).all()
    assert levels.min() < BRAIN < 200 < levels.max()
    areas = found.masks.sum((1, 2))
    assert areas.max() > 4 * areas.min()


def test_a_slice_keeps_its_sprite_whatever_its_companions_and_another_seed_gives_another(heads: np.ndarray) -> None:
    all_of_them = contaminate(heads, seed=3)
    np.testing.assert_array_equal(contaminate(heads[:5], seed=3).images, all_of_them.images[:5])
    assert (contaminate(heads, seed=4).masks != all_of_them.masks).any((1, 2)).all()


def test_slices_without_room_for_a_sprite_are_left_out() -> None:
    images = np.stack([head(radius=0.0), head(), head(radius=2.0)])
    assert contaminate(images, seed=0).numbers.tolist() == [1]
    with pytest.raises(InputError, match=r"None of 2 slices shows a head that a sprite of 3\.2 pixels' radius fits"):
        contaminate(images[[0, 2]], seed=0)


def test_the_head_is_filled_and_without_the_table() -> None:
    image = head()
    image[30:34, 30:34] = 0  # a ventricle as dark as air
    distance = np.hypot(*(np.mgrid[:64, :64] - 31.5))
    depth = head_depth(image)
    np.testing.assert_array_equal(depth > 0, distance < 24.0)
    np.testing.assert_allclose(depth[distance < 22.0], 24.0 - distance[distance < 22.0], atol=1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("aspect", [0.5, 1.0])
def test_shapes_fill_much_of_their_unit_circle_and_nothing_beyond(shape: str, aspect: float) -> None:
    v, u = np.mgrid[-1.5:1.5:601j, -1.5:1.5:601j]
    inside = within(shape, u, v, aspect)
    assert not inside[np.hypot(u, v) > 1.001].any()
    share = inside.mean() * 9.0 / np.pi
    # Closed forms: an ellipse fills `aspect` of its circle, a rectangle 4 a / (pi (1 + a^2)); a heart has 3.66 units.
    expected = {
        "ellipse": aspect,
        "rectangle": 4.0 * aspect / (np.pi * (1.0 + aspect**2)),
        "heart": 3.66 / (1.43**2 * np.pi),
    }
    assert share == pytest.approx(expected[shape], abs=0.01)


# Measures


def test_scores_that_is_the_mask_is_perfect_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 16, 16), bool)
    masks[:, 4:8, 5:9] = True
    anomaly_map = masks.astype(np.float32)
    perfect = sprite_row(anomaly_map, masks, threshold=0.5, seed=0)
    for key in ("dice", "best_dice", "average_precision", "mean_average_precision"):
        assert perfect[key] == 1.0
    too_high = sprite_row(anomaly_map, masks, threshold=1.5, seed=0)
    assert too_high["dice"] == 0.0
    assert too_high["best_dice"] == 1.0
    noise = sprite_row(rng.random(anomaly_map.shape).astype(np.float32), masks, threshold=0.5, seed=0)
    assert noise["average_precision"] == pytest.approx(1 / 16, abs=0.05)
    assert noise["best_dice_low"] <= noise["best_dice"] <= noise["best_dice_high"]


def test_dice_curves_are_the_dice_of_each_threshold() -> None:
    rng = np.random.default_rng(1)
    anomaly_map = rng.integers(0, 5, (3, 8, 8)).astype(np.float32)
    masks = rng.random((3, 8, 8)) < 0.3
    thresholds = np.array([0.5, 1.0, 3.5, 9.0])
    expected = [[metrics.dice(h >= t, m) for t in thresholds] for h, m in zip(anomaly_map, masks, strict=True)]
    np.testing.assert_allclose(dice_curves(anomaly_map, masks, thresholds), expected)


def test_the_score_row_ranks_alien_pictures_above_known_ones() -> None:
    row = score_row(np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0]), seed=0)
    assert row["auroc"] == pytest.approx(5 / 6)
    assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]


def test_the_learnt_threshold_leaves_the_median_healthy_slice_its_allowance() -> None:
    anomaly_map = np.random.default_rng(2).random((9, 32, 32)).astype(np.float32)
    threshold = learn_threshold(anomaly_map, pixels=8.0)
    assert np.median((anomaly_map >= threshold).sum((1, 2))) <= 8
    assert np.median((anomaly_map >= threshold - 0.01).sum((1, 2))) > 8


def test_the_noise_of_a_picture_does_not_depend_on_its_companions() -> None:
    pictures = Pictures(np.zeros((20, 8, 8), np.uint8), np.ones((20, 8, 8), bool), np.arange(20), seed=5)
    alone = Pictures(pictures.images[[13]], pictures.brain[[13]], np.array([13]), seed=5)
    seeds = [generator.initial_seed() for batch in pictures.batches() for generator in batch.generators]
    assert len(set(seeds)) == 20
    assert next(iter(alone.batches())).generators[0].initial_seed() == seeds[13]


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Codec and diffusion model of a few steps on round heads; bright squares are the pictures of other classes."""
    folder = tmp_path_factory.mktemp("mednist")
    rng = np.random.default_rng(0)
    splits: dict[str, np.ndarray] = {
        name: np.stack([head(16, radius, table=False) for radius in rng.uniform(4.0, 7.0, count)])
        for name, count in (("train", 8), ("val", 6), ("test", 7))
    }
    splits["test"][0] = AIR
    splits["ood"] = np.where(rng.random((5, 16, 16)) < 0.5, 0, 255).astype(np.uint8)
    np.savez(folder / "headct.npz", **splits)
    prepare_mednist(folder / "headct.npz", folder / "slices")
    place = Workplace(folder, folder / "slices")
    assert place.command("codec") == 0
    assert place.command("diffusion") == 0
    return place


def mednist(place: Workplace, output: Path, *more: str, **entries: Any) -> int:
    """Exit code of the command."""
    settings = {
        "diffusion": str(place.folder / "diffusion.yaml"),
        "diffusion_run": str(place.folder / "diffusion"),
        "options": {"steps": 2, "kl_levels": 2},
    }
    path = place.folder / "mednist.yaml"
    path.write_text(yaml.safe_dump(settings | entries), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        command_line(["evaluate", str(path), "--output", str(output), *more])
    return int(ended.value.code or 0)


def test_the_command_writes_table_and_picture_and_repeats_itself(
    trained: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for name in ("first", "second"):
        assert mednist(trained, tmp_path / name) == 0
        table = json.loads((tmp_path / name / "mednist.json").read_text(encoding="utf-8"))
        tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in table["rows"]])
    assert tables[0] == tables[1]
    assert [row["method"] for row in table["rows"]] == ["unsupervised", "codec alone", "intensity"]
    assert table["about"]["pictures"] == {"healthy": 7, "with a sprite": 6, "of other classes": 5}
    assert table["about"]["options"]["latent_threshold"]["percentile"] == 97.5
    assert table["rows"][0]["network_calls"] == 2 * 2 + 2
    for row in table["rows"]:
        assert 0.0 <= row["dice"] <= row["best_dice"] <= 1.0
        assert ("auroc" in row) == (row["method"] != "intensity")
    assert imread(tmp_path / "first" / "mednist.png").shape[2] >= 3
    assert "| unsupervised |" in (tmp_path / "first" / "mednist.md").read_text(encoding="utf-8")
    assert "| unsupervised |" in capsys.readouterr().out


def test_the_split_val_has_its_own_slices_and_never_looks_at_other_classes(trained: Workplace, tmp_path: Path) -> None:
    (trained.folder / "slices" / "ood.npz").rename(trained.folder / "ood.npz")
    (trained.folder / "slices" / "test.npz").rename(trained.folder / "test.npz")
    try:
        assert mednist(trained, tmp_path, "--split", "val") == 0
    finally:
        for name in ("ood.npz", "test.npz"):
            (trained.folder / name).rename(trained.folder / "slices" / name)
    table = json.loads((tmp_path / "mednist.json").read_text(encoding="utf-8"))
    assert table["about"]["pictures"] == {"healthy": 6, "with a sprite": 6, "of other classes": 0}
    assert not any("auroc" in row for row in table["rows"])


@pytest.mark.parametrize(
    ("entries", "arguments", "message"),
    [
        ({"sprites": 3}, (), "sprites: Extra inputs are not permitted"),
        ({"options": {"stps": 2}}, (), "has no option stps"),
        ({"options": {"steps": 0}}, (), "Option steps is 0"),
        ({"diffusion": "nowhere.yaml"}, (), "nowhere.yaml cannot be read"),
        ({"diffusion_run": "nowhere"}, (), "checkpoint.pt does not exist: run this stage's training first"),
        ({}, ("--split", "train"), "The split is 'train'; expected 'val', to choose options by, or 'test'"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    trained: Workplace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    entries: dict[str, Any],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert mednist(trained, tmp_path / "out", *arguments, **entries) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_the_configurations_that_ship_fit_together() -> None:
    folder = Path(__file__).parents[2] / "examples" / "papers" / "sprites" / "configs"
    config = read_yaml(folder / "experiment.yaml", MednistConfig)
    diffusion = read_yaml(folder / config.diffusion.name, DiffusionConfig)
    assert diffusion.codec is not None
    assert (folder / diffusion.codec.name).exists()
