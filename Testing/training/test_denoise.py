"""What the denoising autoencoder is shown and what it is asked for, and the noise that it learns to remove."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from diffusion_anomaly.errors import InputError
from Testing.training.fakes import random_slices
from Testing.training.stages import DENOISER, LADDER
from training.data.slices import HEALTHY, HEALTHY_HALF, Slices
from training.stages.denoise import DenoiseConfig, DenoiseTask, NoiseConfig, coarse_noise
from training.trainer.loop import Batch


def task(slices: Path, entries: dict[str, Any] = DENOISER, **changes: Any) -> DenoiseTask:
    return DenoiseTask(DenoiseConfig.model_validate(entries | {"slices": slices} | changes))


def draw(made: DenoiseTask, seed: int = 0, size: int = 16) -> Batch:
    torch.manual_seed(seed)  # as the trainer does before it asks for a batch
    return made.batch(np.random.default_rng(seed), size)


class Answer(nn.Module):
    """A network that adds to a slice what it is told, ``(N, 1, H, W)`` in [-1, 1]."""

    def __init__(self, change: Tensor) -> None:
        super().__init__()
        self.output = pixel_unshuffle(change, 4)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        assert level.dtype == torch.int64 and level.shape == (len(x),)
        return self.output


def loss(made: DenoiseTask, network: nn.Module, batch: Batch) -> float:
    return float(made.loss(network, batch, torch.Generator())["l1"])


def save(folder: Path, slices: Slices) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        slices.save(folder / f"{split}.npz")
    return folder


# What it is shown


def test_a_batch_holds_clean_and_noisy_slices_that_differ_in_the_brain_alone(slices_folder: Path) -> None:
    batch = draw(task(slices_folder, LADDER), size=32)
    image, corrupted, brain, level = (batch[name] for name in ("image", "corrupted", "brain", "level"))
    assert image.shape == corrupted.shape == brain.shape == (32, 1, 16, 16)
    assert image.dtype == corrupted.dtype == torch.float32
    assert set(level.tolist()) == {0, 1, 2}
    for picture in (image, corrupted):
        assert picture.min() >= -1.0 and picture.max() <= 1.0
        assert (picture[~brain] == -1.0).all()
    assert ((corrupted != image) & brain).sum() > 0.9 * brain.sum(), "noise reaches nearly every pixel"


def test_tissue_at_the_dark_end_of_the_range_belongs_to_the_brain(tmp_path: Path) -> None:
    slices = random_slices(8, 16, 0)
    slices.images[:, :, :, :8] = 0  # half of the brain, as ventricles are on FLAIR
    made = task(save(tmp_path, slices))
    dark = draw(made, size=32)
    inside = dark["brain"] & (dark["image"] == -1.0)
    assert inside.sum() > 500
    assert (dark["corrupted"][inside] > -1.0).float().mean() > 0.3, "noise brightens half of it"
    # And it is asked back: a network that leaves it so is not done.
    assert loss(made, Answer(torch.zeros_like(dark["image"])), dark) > 0.05


def test_a_batch_is_a_function_of_its_generator(slices_folder: Path) -> None:
    made = task(slices_folder)
    first, other = draw(made, 5), draw(made, 6)
    np.random.seed(3)
    torch.testing.assert_close(first, draw(made, 5), rtol=0, atol=0)
    torch.testing.assert_close(first, draw(task(slices_folder), 5), rtol=0, atol=0)
    assert not torch.equal(first["corrupted"], other["corrupted"])


@pytest.mark.parametrize("halves", [False, True])
def test_halves_are_drawn_when_asked_for_and_never_watched(tmp_path: Path, halves: bool) -> None:
    slices = random_slices(8, 16, 0)
    slices.images[slices.brain[:, None]] = 60
    slices.images[4:][slices.brain[4:, None]] = 180
    label = np.array([HEALTHY] * 4 + [HEALTHY_HALF] * 4, np.int8)
    made = task(save(tmp_path, replace(slices, label=label)), halves=halves)
    assert (draw(made, size=64)["image"][..., 7:9, 7:9] > 0.0).any() == halves
    assert len(made.validation[0]) == 4


# What it is asked for


def test_the_right_answer_costs_nothing(slices_folder: Path) -> None:
    made = task(slices_folder)
    batch = draw(made)
    assert loss(made, Answer(batch["image"] - batch["corrupted"]), batch) < 1e-6


def test_leaving_a_slice_as_it_is_costs_the_noise(slices_folder: Path) -> None:
    made = task(slices_folder)
    batch = draw(made)
    image, corrupted, brain = (batch[name].numpy() for name in ("image", "corrupted", "brain"))
    expected = np.abs(corrupted - image)[brain].mean()
    assert loss(made, Answer(torch.zeros_like(batch["image"])), batch) == pytest.approx(expected, rel=1e-4)


def test_what_lies_outside_the_brain_is_not_asked_for(slices_folder: Path) -> None:
    made = task(slices_folder)
    batch = draw(made)
    wrong = batch["image"] - batch["corrupted"] + 5.0 * ~batch["brain"]
    assert loss(made, Answer(wrong), batch) < 1e-6


def test_slices_without_brain_cost_nothing_and_are_no_error(slices_folder: Path) -> None:
    made = task(slices_folder)
    batch = draw(made)
    empty = batch | {"brain": torch.zeros_like(batch["brain"])}
    assert loss(made, Answer(torch.zeros_like(batch["image"])), empty) == 0.0


def test_watching_is_always_the_same_and_leaves_the_trainings_chance_alone(slices_folder: Path) -> None:
    made = task(slices_folder)
    network = made.network.eval()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.no_grad():
        first, pictures = made.validate(network)
        again, _ = made.validate(network)
    assert first == again
    assert torch.equal(before, torch.get_rng_state())
    (picture,) = pictures.values()
    assert picture.shape == (1, 3 * 16, 6 * 16)


def test_slices_that_cannot_be_folded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="18 x 18 pixels, which fold 4 does not divide"):
        task(save(tmp_path, random_slices(8, 18, 0)))


# Its noise


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_noise_grows_evenly_from_level_to_level(slices_folder: Path, levels: int) -> None:
    noise = {"deviation": 0.02, "cell": [4, 4]}
    made = task(slices_folder, corruption={"levels": levels, "noise": noise})
    batch = draw(made, size=256)
    change = [
        (batch["corrupted"] - batch["image"])[batch["level"] == level][batch["brain"][batch["level"] == level]].std()
        for level in range(levels)
    ]
    assert [float(one / change[-1]) for one in change] == pytest.approx(np.arange(1, levels + 1) / levels, rel=0.15)


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
