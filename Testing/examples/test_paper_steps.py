"""Steps of an experiment: done ones are left out, failed and half ones stop it with a sentence."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from examples.papers import steps
from examples.papers.__main__ import app
from examples.papers.steps import Step, run_steps, training
from training.trainer.loop import TrainingError

CONFIG = Path("examples/papers/sprites/configs/codec.yaml")


def writes(path: Path, word: str = "done") -> Step:
    """A step that notes each of its runs in a file."""
    return Step(("Testing.examples.note", str(path), word), path)


def test_steps_run_in_order_and_only_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = writes(tmp_path / "first"), writes(tmp_path / "second")
    with caplog.at_level(logging.INFO):
        run_steps([first, second])
        run_steps([first, second])
    assert first.makes.read_text() == second.makes.read_text() == "done\n"
    ran = [record.getMessage() for record in caplog.records if record.getMessage().startswith("python -m")]
    assert [message.split()[-2] for message in ran] == [str(first.makes), str(second.makes)]


@pytest.mark.parametrize(("word", "reason"), [("fail", "exit code 3"), ("nothing", "is not complete")])
def test_a_step_that_makes_nothing_stops_the_experiment(tmp_path: Path, word: str, reason: str) -> None:
    later = writes(tmp_path / "later")
    with pytest.raises(TrainingError, match=reason):
        run_steps([writes(tmp_path / "first", word), later])
    assert not later.makes.exists()


@pytest.mark.parametrize(("step", "is_done"), [(None, False), (1599, False), (1600, True)])
def test_a_training_is_done_with_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int | None, is_done: bool
) -> None:
    monkeypatch.chdir(Path(steps.__file__).parents[2])
    if step is not None:
        parts = dict.fromkeys(("config", "network", "optimizer"))
        average = {"module.weight": torch.zeros(1)}
        torch.save(
            {"step": step, "seconds": 1.0, "hardware": "", "average": average, **parts}, tmp_path / "checkpoint.pt"
        )
    assert training("codec", CONFIG, tmp_path).done is is_done


def test_every_experiment_says_what_it_is() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    assert "et al. 2022" in text
    assert {command.name for command in app.registered_commands} >= {"pinaya-sprites"}
