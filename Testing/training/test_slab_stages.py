"""The stages that learn from slabs: what they are shown, what they are asked for, and where they begin."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from Testing.training.fakes import train_here
from Testing.training.stages import LOCALISE, RESTORE, SEGMENT, write_slab_heads, write_stacks
from training.data.drawing import Draw
from training.stages.localise import LocaliseConfig, LocaliseTask
from training.stages.restore import RestoreConfig, RestoreTask, SlabNoiseConfig, coarse_noise
from training.stages.segment import SegmentConfig, SegmentTask
from training.stages.slab_tasks import leave_alone, place_losses
from training.trainer.checkpoints import CheckpointError, averaged_weights
from training.trainer.configuration import ConfigurationError
from training.trainer.loop import Batch


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("slabs")
    return {"labels": write_slab_heads(folder / "heads.npz"), "stacks": write_stacks(folder / "stacks.npz")}


def localiser(files: dict[str, Path], data: dict[str, Any] | None = None, **changes: Any) -> LocaliseTask:
    entries = deepcopy(LOCALISE) | changes
    return LocaliseTask(LocaliseConfig.model_validate(entries | {"data": LOCALISE["data"] | files | (data or {})}))


def restorer(files: dict[str, Path], data: dict[str, Any] | None = None, **changes: Any) -> RestoreTask:
    entries = deepcopy(RESTORE) | changes
    return RestoreTask(RestoreConfig.model_validate(entries | {"data": RESTORE["data"] | files | (data or {})}))


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stacks to learn from, and those of others."""
    folder = tmp_path_factory.mktemp("patients")
    return write_stacks(folder / "stacks.npz"), write_stacks(folder / "others.npz", names=("free 2", "restricted 2"))


def segmenter(patients: tuple[Path, Path], data: dict[str, Any] | None = None, **changes: Any) -> SegmentTask:
    entries = deepcopy(SEGMENT) | {"validation": patients[1]} | changes
    stacks = {"stacks": patients[0]}
    return SegmentTask(SegmentConfig.model_validate(entries | {"data": SEGMENT["data"] | stacks | (data or {})}))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Answer(nn.Module):
    """A network that says what it is told, folded ``(N, C, h, w)``."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        assert level is None or (level.dtype == torch.int64 and level.shape == (len(x),))
        return self.output


def certain(cover: Tensor) -> Tensor:
    """Log-odds of one who knows."""
    return 40.0 * (cover > 0.4) - 20.0


def costs(task: Any, output: Tensor, examples: Batch) -> dict[str, float]:
    return {name: float(value) for name, value in task.losses(Answer(output), examples).items()}


# What they are shown


@pytest.mark.parametrize("real", [False, True])
def test_a_localiser_sees_slabs_with_several_sets_of_lesions(files: dict[str, Path], real: bool) -> None:
    examples = localiser(files).examples(seeded(), 6, real)
    seen, cover, use = (examples[name] for name in ("seen", "cover", "use"))
    assert seen.shape == (12, 3, 64, 64)
    assert cover.shape == use.shape == (12, 1, 64, 64) and use.dtype == torch.bool
    assert seen.isfinite().all() and seen.min() >= -1.0 and seen.max() <= 1.0
    assert torch.equal(use[:6], use[6:]), "the same heads"
    assert not torch.equal(cover[:6], cover[6:]), "and other lesions"
    assert (cover > 0.4).any()
    # The sets differ where one of them has a lesion, and nowhere else. Noise is of the head.
    alike = seen[:6, 1] == seen[6:, 1]
    assert alike[(cover[:6, 0] == 0) & (cover[6:, 0] == 0)].all()


@pytest.mark.parametrize("make", [localiser, restorer])
@pytest.mark.parametrize("real", [False, True])
def test_examples_are_a_function_of_the_seed(files: dict[str, Path], make: Any, real: bool) -> None:
    first, again, other = (make(files).examples(seeded(seed), 4, real) for seed in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name])
    assert not torch.equal(first["seen"], other["seen"])


def test_lesions_change_known_healthy_tissue_alone(files: dict[str, Path]) -> None:
    task = localiser(files, {"restricted": True}, draws=1)
    examples = task.examples(seeded(3), 32, True)
    # The same seed's scans before lesions. The right half of half of them is not known to be healthy.
    slabs, clean, brain = task.source.make(Draw(seeded(3), 32), True)
    unknown = brain[:, 1] & ~slabs.known[:, 1]
    assert unknown.sum() > 1000
    seen = examples["seen"][:, 1]
    assert (seen == 2.0 * clean[:, 1] - 1.0)[unknown].all()
    assert not examples["cover"][:, 0][unknown].any() and not examples["use"][:, 0][unknown].any()
    lesion = examples["cover"][:, 0] > 0.4
    assert lesion.any() and examples["use"][:, 0][lesion].all()
    assert (seen - 2.0 * clean[:, 1] + 1.0)[lesion].mean() > 0.05


def test_a_restorer_is_asked_about_known_healthy_tissue_alone(files: dict[str, Path]) -> None:
    task = restorer(files, {"restricted": True})
    examples = task.examples(seeded(3), 32, True)
    slabs, clean, brain = task.source.make(Draw(seeded(3), 32), True)
    assert torch.equal(examples["use"][:, 0], (brain & slabs.known)[:, 1])
    assert torch.equal(examples["clean"][:, 0], 2.0 * clean[:, 1] - 1.0)
    assert not examples["cover"][~examples["use"]].any()


def test_a_segmenter_is_shown_scans_as_they_are_and_asked_for_what_was_marked(patients: tuple[Path, Path]) -> None:
    task = segmenter(patients)
    examples = task.examples(seeded(3), 32, True)
    slabs, image, brain = task.source.make(Draw(seeded(3), 32), True)
    assert slabs.lesion is not None
    assert torch.equal(examples["seen"][:, 1], 2.0 * image[:, 1] - 1.0)
    assert torch.equal(examples["cover"][:, 0], slabs.lesion[:, 1])
    assert torch.equal(examples["use"][:, 0], (brain & slabs.known)[:, 1])
    lesion = (examples["cover"] > 0.4) & examples["use"]
    sick = lesion.flatten(1).any(1)
    assert sick.any() and not sick.all(), "one of the two scans has a lesion"
    assert examples["use"][sick].flatten(1).sum(1).min() > 800, "of the half with the lesion, too"
    right = pixel_unshuffle(certain(examples["cover"]), 2)
    assert max(costs(task, right, examples).values()) < 1e-3


def test_a_segmenter_validates_on_other_patients_alone(patients: tuple[Path, Path], tmp_path: Path) -> None:
    task = segmenter(patients)
    network = task.network.eval()
    with torch.no_grad():
        (first, pictures), (again, _) = task.validate(network), task.validate(network)
        assert task.kept_apart.stacks is not None
        task.kept_apart.stacks.lesion.zero_()  # type: ignore[union-attr]
        other, _ = task.validate(network)
    assert first == again and first["cross_entropy"] != other["cross_entropy"]
    (picture,) = pictures.values()
    assert picture.shape == (1, 3 * 64, 6 * 64)


def test_a_segmenter_needs_lesions_and_patients_to_validate_on(patients: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"free is in .*stacks.npz and in .*stacks.npz"):
        segmenter((patients[0], patients[0]))
    thick, thin = (
        write_stacks(tmp_path / f"{mm}.npz", names=(f"a, b.nii.gz, {mm} mm", f"{mm}.nii.gz, 5 mm")) for mm in (5, 1)
    )
    with pytest.raises(ConfigurationError, match=r"a, b.nii.gz is in .*5.npz and in .*1.npz"):
        segmenter((thick, thin))
    free = {"stacks": patients[0], "restricted": False}
    with pytest.raises(ConfigurationError, match=r"no lesion that anybody marked on scans of a free licence"):
        segmenter(patients, data=free)
    with np.load(patients[1]) as file:
        arrays = {name: file[name] for name in file.files if name != "lesion"}
    np.savez(tmp_path / "earlier.npz", **arrays)
    with pytest.raises(ConfigurationError, match=r"earlier.npz was prepared without lesion masks"):
        segmenter((patients[0], tmp_path / "earlier.npz"))


def test_a_segmenter_learns_the_lesion(patients: tuple[Path, Path], tmp_path: Path) -> None:
    task = segmenter(patients, network=SEGMENT["network"] | {"features": [8] * 6})
    train_here(tmp_path, task, steps=120, batch_size=8, learning_rate=1e-2)
    with torch.no_grad():
        found = task.validate(task.network.eval())[0]["dice_loss"]
        before = segmenter(patients).validate(segmenter(patients).network)[0]["dice_loss"]
    assert found < 0.5 < before


def test_the_batch_says_which_steps_are_real_as_often_as_asked(files: dict[str, Path]) -> None:
    task = localiser(files, {"real_share": 0.25})
    batches = [task.batch(np.random.default_rng((0, step, 0)), 4) for step in range(400)]
    assert np.mean([bool(batch["real"]) for batch in batches]) == pytest.approx(0.25, abs=0.06)
    assert len({int(batch["seed"]) for batch in batches}) == 400
    painted = localiser({"labels": files["labels"]}, {"stacks": None, "real_share": 0.0})
    assert not any(bool(painted.batch(np.random.default_rng(step), 4)["real"]) for step in range(20))


def test_some_slabs_come_without_neighbours() -> None:
    image = torch.rand(400, 3, 4, 4) + 0.1
    left = leave_alone(image, 1, Draw(seeded(), 400))
    assert torch.equal(left[:, 1], image[:, 1])
    gone = (left[:, [0, 2]] == 0).flatten(1).all(1)
    assert float(gone.float().mean()) == pytest.approx(0.12, abs=0.05)
    assert torch.equal(left[~gone], image[~gone])


def test_a_restorers_levels_say_how_strong_the_noise_is(files: dict[str, Path]) -> None:
    corruption = {"levels": 2, "lesions": {"none_share": 1.0, "many_share": 0.0}, "noise": {"share": 1.0}}
    task = restorer(files, {"acquisition": {"noise": 0.0}}, corruption=corruption)
    examples = task.examples(seeded(), 48, False)
    assert set(examples["level"].tolist()) == {0, 1}
    assert not examples["cover"].any()
    change = (examples["seen"][:, 1, None] - examples["clean"]).abs()
    spread = [
        float(change[examples["level"] == level][examples["use"][examples["level"] == level]].mean())
        for level in (0, 1)
    ]
    assert 1.3 < spread[1] / spread[0] < 2.2


@pytest.mark.parametrize("cell", [5, 11])
def test_coarse_noise_has_its_deviation_at_the_grids_points_and_is_smooth_between_them(cell: int) -> None:
    config = SlabNoiseConfig(deviation=0.2, share=1.0, cell=(cell, cell))
    noise = coarse_noise(3, 64, torch.full((60,), 0.5), config, Draw(seeded(), 60))
    assert noise.shape == (60, 3, 64, 64)
    # Between two points of a grid a bilinear field is their weighted mean, in both directions: 2/3 of the variance.
    assert float(noise.std()) == pytest.approx(0.5 * 0.2 * 2.0 / 3.0, rel=0.06)
    slope = float(noise.diff(dim=3).std() / noise.std())
    assert slope == pytest.approx(np.sqrt(2.0 / (2.0 / 3.0)) / cell, rel=0.12)
    assert not torch.equal(noise[:, 0], noise[:, 1])


def test_a_localisers_lesions_are_bright_whatever_else_is_configured(files: dict[str, Path]) -> None:
    lesions = localiser(files).config.lesions
    assert lesions.few_diameter == (4.0, 12.0) and lesions.dark == 0.0
    assert restorer(files).config.corruption.lesions.dark == 0.22


# What they are asked for


def test_a_localiser_that_knows_pays_nothing_and_one_that_does_not_a_bit_a_pixel(files: dict[str, Path]) -> None:
    task = localiser(files)
    examples = task.examples(seeded(), 4, False)
    assert max(costs(task, pixel_unshuffle(certain(examples["cover"]), 2), examples).values()) < 1e-3
    undecided = costs(task, torch.zeros(8, 4, 32, 32), examples)
    assert undecided["cross_entropy"] == pytest.approx(np.log(2.0), rel=1e-4)
    assert undecided["loss"] == pytest.approx(undecided["cross_entropy"] + 0.5 * undecided["dice_loss"], rel=1e-5)


def test_what_is_not_used_is_not_asked_for() -> None:
    cover, use = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    use[0] = True
    cover[:, :, 2:4] = 1.0
    right = certain(cover)
    wrong = torch.cat([right[:1], -right[1:]])
    assert place_losses(right, cover, use) == place_losses(wrong, cover, use)
    entropy, dice = place_losses(right, cover, torch.zeros_like(use))
    assert (float(entropy), float(dice)) == (0.0, 0.0), "nothing is used"
    entropy, dice = place_losses(torch.full_like(cover, -20.0), torch.zeros_like(cover), use)
    assert float(dice) == pytest.approx(0.0, abs=1e-5), "of no lesion none is missed"


def test_a_restorer_that_knows_pays_nothing_and_leaving_slabs_costs_the_change(files: dict[str, Path]) -> None:
    task = restorer(files, lesion_weight=3.0)
    examples = task.examples(seeded(), 6, False)
    seen = examples["seen"][:, 1, None]
    logit = pixel_unshuffle(certain(examples["cover"]), 2)
    right = torch.cat([pixel_unshuffle(examples["clean"] - seen, 2), logit], 1)
    assert max(costs(task, right, examples).values()) < 1e-3
    change, cover, use = (value.numpy() for value in (examples["clean"] - seen, examples["cover"], examples["use"]))
    weight = use * (1.0 + 3.0 * cover)
    expected = float((weight * np.abs(change)).sum() / weight.sum())
    left = costs(task, torch.cat([torch.zeros_like(logit), logit], 1), examples)
    assert left["l1"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make", [localiser, restorer])
def test_watching_is_always_the_same_and_leaves_the_trainings_chance_alone(files: dict[str, Path], make: Any) -> None:
    task = make(files)
    network = task.network.eval()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.no_grad():
        (first, pictures), (again, _) = task.validate(network), task.validate(network)
    assert first == again and {"painted_loss", "real_loss"} <= set(first)
    assert torch.equal(before, torch.get_rng_state())
    (picture,) = pictures.values()
    assert picture.shape == (1, 2 * 3 * 64, 6 * 64)


# Where they begin


def test_a_localiser_goes_on_from_weights_or_from_a_runs_averages(files: dict[str, Path], tmp_path: Path) -> None:
    train_here(tmp_path / "run", localiser(files), steps=2)
    average, _ = averaged_weights(tmp_path / "run" / "checkpoint.pt")
    from_run = localiser(files, start_from=str(tmp_path / "run" / "checkpoint.pt")).network.state_dict()
    for name, value in average.items():
        assert torch.equal(from_run[name], value)
    save_file({name: value.half().contiguous() for name, value in average.items()}, tmp_path / "weights.safetensors")
    from_file = localiser(files, start_from=str(tmp_path / "weights.safetensors")).network.state_dict()
    for name, value in average.items():
        assert from_file[name].dtype == torch.float32
        torch.testing.assert_close(from_file[name], value, rtol=1e-3, atol=1e-6)
    wider = LOCALISE["network"] | {"features": [8] * 6}
    with pytest.raises(CheckpointError, match="is of another network"):
        localiser(files, start_from=str(tmp_path / "weights.safetensors"), network=wider)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        localiser(files, start_from=str(tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("stage", ["localise", "restore", "segment"])
def test_slabs_are_learnt_from_where_no_library_reads_images(
    files: dict[str, Path], patients: tuple[Path, Path], tmp_path: Path, stage: str
) -> None:
    entries = deepcopy({"localise": LOCALISE, "restore": RESTORE, "segment": SEGMENT}[stage])
    if stage == "segment":
        entries["data"]["stacks"], entries["validation"] = map(str, patients)
    else:
        entries["data"] |= {name: str(path) for name, path in files.items()}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    script = """
        import sys
        sys.modules["SimpleITK"] = sys.modules["torchio"] = None  # importing either fails
        from training.__main__ import command_line
        command_line([sys.argv[1], sys.argv[2], "--run", sys.argv[3]])
    """
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(script),
        stage,
        str(tmp_path / "stage.yaml"),
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_without_label_maps_all_is_real(files: dict[str, Path]) -> None:
    alone = {"labels": None, "real_share": 1.0}
    task = restorer(files, alone)
    assert task.source.maps is None
    assert all(bool(task.batch(np.random.default_rng(seed), 2)["real"]) for seed in range(8))
    scalars, _ = task.validate(task.network)
    assert {name.partition("_")[0] for name in scalars} == {"real"}
    with pytest.raises(ValueError, match="give 'labels' to paint heads from"):
        restorer(files, {"labels": None})
