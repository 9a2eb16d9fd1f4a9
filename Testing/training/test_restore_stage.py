"""The restorer's task: what it is shown, what it is asked for, and that no chance but its own has a say."""

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
from Testing.training.stages import DENOISER, RESTORE
from training.restore import RestoreConfig, RestoreTask
from training.slices import HEALTHY, HEALTHY_HALF, Slices
from training.trainer import Batch


def task(slices: Path, entries: dict[str, Any] = RESTORE, **changes: Any) -> RestoreTask:
    return RestoreTask(RestoreConfig.model_validate(entries | {"slices": slices} | changes))


def draw(made: RestoreTask, seed: int = 0, size: int = 16) -> Batch:
    torch.manual_seed(seed)  # as the trainer does before it asks for a batch
    return made.batch(np.random.default_rng(seed), size)


class Answer(nn.Module):
    """A network that adds to a slice what it is told, and says where it was corrupted.

    Args:
        change: ``(N, 1, H, W)`` in [-1, 1].
        lesion: ``(N, 1, H, W)``; None for a network without logits.
    """

    def __init__(self, change: Tensor, lesion: Tensor | None) -> None:
        super().__init__()
        self.output = pixel_unshuffle(change, 4)
        if lesion is not None:
            self.output = torch.cat([self.output, pixel_unshuffle(40.0 * (lesion > 0.5) - 20.0, 4)], 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        assert level.dtype == torch.int64 and level.shape == (len(x),)
        return self.output


def loss(made: RestoreTask, network: nn.Module, batch: Batch) -> dict[str, float]:
    return {name: float(value) for name, value in made.loss(network, batch, torch.Generator()).items()}


def save(folder: Path, slices: Slices) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        slices.save(folder / f"{split}.npz")
    return folder


# What it is shown


def test_a_batch_holds_clean_and_corrupted_slices_that_differ_in_the_brain_alone(slices_folder: Path) -> None:
    batch = draw(task(slices_folder), size=32)
    image, corrupted, brain, lesion, level = (
        batch[name] for name in ("image", "corrupted", "brain", "lesion", "level")
    )
    assert image.shape == corrupted.shape == brain.shape == lesion.shape == (32, 1, 16, 16)
    assert image.dtype == corrupted.dtype == lesion.dtype == torch.float32
    assert set(level.tolist()) == {0, 1, 2}
    for picture in (image, corrupted):
        assert picture.min() >= -1.0 and picture.max() <= 1.0
        assert (picture[~brain] == -1.0).all()
    assert ((corrupted != image) & brain).sum() > 0.9 * brain.sum(), "noise reaches nearly every pixel"
    assert (lesion[~brain] == 0.0).all() and lesion.max() > 0.9
    # Of none to four lesions a slice, each as likely, some slices have none.
    assert 0 < (lesion.amax((1, 2, 3)) == 0.0).sum() < 32


def test_tissue_at_the_dark_end_of_the_range_belongs_to_the_brain(tmp_path: Path) -> None:
    slices = random_slices(8, 16, 0)
    slices.images[:, :, :8] = 0  # half of the brain, as ventricles are on FLAIR
    made = task(save(tmp_path, slices), DENOISER)
    dark = draw(made, size=32)
    inside = dark["brain"] & (dark["image"] == -1.0)
    assert inside.sum() > 500
    assert (dark["corrupted"][inside] > -1.0).float().mean() > 0.3, "noise brightens half of it"
    # And it is asked back: a network that leaves it so is not done.
    left_alone = loss(made, Answer(torch.zeros_like(dark["image"]), None), dark)
    assert left_alone["l1"] > 0.05


def test_a_batch_is_a_function_of_its_generator(slices_folder: Path) -> None:
    made = task(slices_folder)
    first, other = draw(made, 5), draw(made, 6)
    np.random.seed(3)
    again = draw(made, 5)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first, draw(task(slices_folder), 5), rtol=0, atol=0)
    assert not torch.equal(first["corrupted"], other["corrupted"])


def test_the_denoising_autoencoder_has_one_level_and_no_lesions(slices_folder: Path) -> None:
    batch = draw(task(slices_folder, DENOISER))
    assert not batch["lesion"].any()
    assert not batch["level"].any()
    assert (batch["corrupted"] != batch["image"]).any()


def test_other_slices_are_drawn_as_often(tmp_path: Path) -> None:
    folders = []
    for number, value in enumerate((60, 180)):
        slices = random_slices(8, 16, number)
        slices.images[slices.brain] = value
        folders.append(save(tmp_path / str(number), slices))
    made = task(folders[0], DENOISER, more_slices=folders[1], augmentation={"intensity": 0.0, "contrast": 0.0})
    bright = [float(draw(made, seed, 1)["image"][..., 7:9, 7:9].mean()) > 0.0 for seed in range(24)]
    assert np.mean(bright) == pytest.approx(0.5, abs=0.25)


@pytest.mark.parametrize("halves", [False, True])
def test_halves_are_drawn_when_asked_for_and_never_watched(tmp_path: Path, halves: bool) -> None:
    slices = random_slices(8, 16, 0)
    slices.images[slices.brain] = 60
    slices.images[4:][slices.brain[4:]] = 180
    label = np.array([HEALTHY] * 4 + [HEALTHY_HALF] * 4, np.int8)
    made = task(save(tmp_path, replace(slices, label=label)), DENOISER, halves=halves)
    assert (draw(made, size=64)["image"][..., 7:9, 7:9] > 0.0).any() == halves
    assert len(made.validation[0]) == 4


# What it is asked for


def test_the_right_answer_costs_nothing(slices_folder: Path) -> None:
    for entries in (RESTORE, DENOISER):
        made = task(slices_folder, entries)
        batch = draw(made)
        lesion = batch["lesion"] if made.config.localises else None
        found = loss(made, Answer(batch["image"] - batch["corrupted"], lesion), batch)
        assert set(found) == {"loss", "l1", "cross_entropy", "dice"} if lesion is not None else {"loss", "l1"}
        assert max(found.values()) < 1e-3


def test_leaving_a_slice_as_it_is_costs_the_corruption_with_more_weight_in_lesions(slices_folder: Path) -> None:
    made = task(slices_folder, lesion_weight=3.0)
    batch = draw(made)
    image, corrupted, brain, lesion = (batch[name].numpy() for name in ("image", "corrupted", "brain", "lesion"))
    weight = (1.0 + 3.0 * lesion)[brain]
    expected = (weight * np.abs(corrupted - image)[brain]).sum() / weight.sum()
    found = loss(made, Answer(torch.zeros_like(batch["image"]), batch["lesion"]), batch)
    assert found["l1"] == pytest.approx(expected, rel=1e-4)


def test_not_knowing_where_costs_a_bit_a_pixel(slices_folder: Path) -> None:
    made = task(slices_folder, localisation_weight=0.5)
    batch = draw(made)
    change = batch["image"] - batch["corrupted"]
    undecided = nn.Module()
    undecided.forward = lambda x, level: torch.cat([pixel_unshuffle(change, 4), torch.zeros_like(x)], 1)  # type: ignore[method-assign]
    found = loss(made, undecided, batch)
    assert found["cross_entropy"] == pytest.approx(np.log(2.0), rel=1e-4)
    target = ((batch["lesion"] > 0.5) & batch["brain"]).sum()
    dice = 1.0 - float(target / (target + 0.5 * batch["brain"].sum()))
    assert found["dice"] == pytest.approx(dice, abs=1e-3)
    assert found["loss"] == pytest.approx(found["l1"] + 0.5 * (found["cross_entropy"] + found["dice"]), rel=1e-4)


def test_what_lies_outside_the_brain_is_not_asked_for(slices_folder: Path) -> None:
    made = task(slices_folder)
    batch = draw(made)
    outside = (~batch["brain"]).float()
    right = batch["image"] - batch["corrupted"]
    costs = [loss(made, Answer(right + wrong * outside, batch["lesion"]), batch)["loss"] for wrong in (0.0, 5.0)]
    assert costs[0] == pytest.approx(costs[1], abs=1e-6)


def test_slices_without_brain_cost_nothing_and_are_no_error(slices_folder: Path) -> None:
    made = task(slices_folder)
    batch = draw(made)
    empty = {name: torch.zeros_like(value) for name, value in batch.items()}
    empty |= {"image": torch.full_like(batch["image"], -1.0), "corrupted": torch.full_like(batch["image"], -1.0)}
    found = loss(made, Answer(torch.zeros_like(batch["image"]), batch["lesion"]), empty)
    assert np.isfinite(list(found.values())).all()
    assert found["l1"] == found["cross_entropy"] == 0.0


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


# What does not fit


@pytest.mark.parametrize(("size", "message"), [(12, "12 x 12 pixels, slices has 16 x 16"), (18, "18 x 18 pixels")])
def test_more_slices_of_another_size_are_refused(tmp_path: Path, slices_folder: Path, size: int, message: str) -> None:
    other = save(tmp_path, random_slices(8, size, 0))
    with pytest.raises(InputError, match=f"more_slices has {message}"):
        task(slices_folder, more_slices=other)


def test_slices_that_cannot_be_folded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="18 x 18 pixels, which fold 4 does not divide"):
        task(save(tmp_path, random_slices(8, 18, 0)))
