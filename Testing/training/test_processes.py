"""Several processes through torchrun's launcher: the same code, one network."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import torch
from torch.distributed.run import parse_args

from Testing.training.fakes import REPOSITORY, launch_twice, state_of, train_here
from Testing.training.stages import Workplace, task_of
from training.stages import codec as codec_module
from training.trainer import loop as trainer_module
from training.trainer.loop import Batch, StepBatches, Trainer


def train_rank(directory: Path) -> int:
    """What torchrun starts twice: the same lines as for one process."""
    torch.set_num_threads(1)
    trainer = train_here(directory, steps=8)
    rank = int(os.environ["RANK"])
    torch.save(dict(trainer.task.network.named_parameters()), directory / f"rank{rank}.pt")
    return trainer.step


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    assert launch_twice(train_rank, tmp_path) == {0: 8, 1: 8}
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert state_of(tmp_path)["step"] == 8
    alone = train_here(tmp_path / "alone", steps=8)
    assert not torch.equal(first["0.weight"], alone.task.network.state_dict()["0.weight"]), (
        "rank 1's batches had no part"
    )


def test_torchrun_understands_the_command_of_the_tutorial() -> None:
    tutorial = (REPOSITORY / "training" / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in tutorial.splitlines() if line.startswith("torchrun "))
    understood = parse_args(shlex.split(line)[1:])
    assert (understood.module, understood.training_script) == (True, "training")
    stage, config, *run = understood.training_script_args
    assert stage == "diffusion"
    assert (REPOSITORY / config).exists()
    assert run == ["--run", "runs/flair-unsupervised"]


def train_codec_rank(folder: Path, slices: Path, least_use: float) -> None:
    """What torchrun starts twice."""
    torch.set_num_threads(1)
    codec_module.LEAST_USE = least_use
    place = Workplace(folder / os.environ["RANK"], slices)
    task, config = task_of(place, "codec")
    assert Trainer(task, config, folder / "run").run()
    torch.save(task.network.state_dict(), folder / f"rank{os.environ['RANK']}.pt")


class BothRanks(StepBatches):
    """The batches of ranks 0 and 1 as one, twice as large."""

    def __getitem__(self, item: int) -> Batch:
        parts = [StepBatches(self.task, self.config, self.first, rank)[item] for rank in (0, 1)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("least_use", [0.0, 0.5])
def test_two_processes_train_one_codec_with_one_codebook(
    tmp_path: Path, slices_folder: Path, monkeypatch: pytest.MonkeyPatch, least_use: float
) -> None:
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    launch_twice(train_codec_rank, tmp_path, slices_folder, least_use)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert {"network.quantizer.quantizer.ema_w", "network.quantizer.quantizer.ema_cluster_size"} <= set(first)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    if least_use == 0.0:  # codes are revived from one process's latents; without that, two are as one
        monkeypatch.setattr(codec_module, "LEAST_USE", least_use)
        monkeypatch.setattr(trainer_module, "StepBatches", BothRanks)
        task, config = task_of(Workplace(tmp_path / "0", slices_folder), "codec")
        assert Trainer(task, config, tmp_path / "alone").run()
        torch.testing.assert_close(first, task.network.state_dict(), rtol=1e-3, atol=1e-4)
