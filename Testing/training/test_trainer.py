"""The loop under every stage: exact resume, whole checkpoints, clean ends, several processes, clear errors."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from Testing.training.fakes import (
    DenoisingTask,
    Session,
    assert_same_training,
    curve,
    events,
    is_alive,
    state_of,
    train_here,
    train_slowly,
    trainer_config,
    wait_for,
)
from training.trainer import checkpoints, stopping
from training.trainer.checkpoints import CheckpointError, averaged_weights
from training.trainer.loop import Trainer, TrainingError
from training.trainer.optimisation import averaging, learning_rate_at
from training.trainer.stopping import TimeBudget

STEPS = 60


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all steps in one go, whose loader works in this process."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("uninterrupted")
    train_here(directory, steps=STEPS)
    return directory


def test_kills_at_any_moment_change_neither_weights_nor_losses(
    tmp_path: Path, uninterrupted: Path, sessions: list[Session]
) -> None:
    delays = [random.uniform(0.0, 0.4) for _ in range(3)]
    loaders: list[psutil.Process] = []
    for delay in delays:
        session = Session(train_slowly, tmp_path, STEPS, 0.03)
        sessions.append(session)
        wait_for(lambda: (tmp_path / "checkpoint.pt").exists(), "a first checkpoint")
        time.sleep(delay)
        loaders += session.loaders()
        with suppress(ProcessLookupError):  # on a busy machine it may have come to its end
            os.kill(session.pid, signal.SIGKILL)
        session.wait()
    session = Session(train_slowly, tmp_path, STEPS, 0.0)
    sessions.append(session)
    assert session.wait() == 0
    assert_same_training(state_of(tmp_path), state_of(uninterrupted))
    assert curve(tmp_path) == curve(uninterrupted), f"killed after {delays}"
    assert sorted(curve(tmp_path)) == list(range(1, STEPS + 1))
    assert not list(tmp_path.glob(".*")), "a half-written checkpoint was left behind"
    # A loader looks every five seconds whether its trainer still lives.
    wait_for(lambda: not any(is_alive(loader) for loader in loaders), "the end of the killed trainings' loaders")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_ends_with_a_checkpoint_and_the_same_command_goes_on(
    tmp_path: Path, uninterrupted: Path, sessions: list[Session], number: signal.Signals
) -> None:
    session = Session(train_slowly, tmp_path, STEPS, 0.5)
    sessions.append(session)
    wait_for(lambda: (tmp_path / "checkpoint.pt").exists(), "a first checkpoint")
    loaders = session.loaders()
    os.killpg(session.pid, number)
    assert session.wait() == 0
    assert loaders and not any(is_alive(loader) for loader in loaders)
    assert 0 < state_of(tmp_path)["step"] < STEPS
    train_here(tmp_path, steps=STEPS)
    assert_same_training(state_of(tmp_path), state_of(uninterrupted))


def test_a_signal_to_the_loader_alone_stops_nothing(tmp_path: Path, sessions: list[Session]) -> None:
    session = Session(train_slowly, tmp_path, STEPS, 0.01)
    sessions.append(session)
    wait_for(lambda: (tmp_path / "checkpoint.pt").exists(), "a first checkpoint")
    for loader in session.loaders():
        loader.terminate()
    assert session.wait() == 0
    assert state_of(tmp_path)["step"] == STEPS


def test_a_time_limit_ends_with_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path, uninterrupted: Path) -> None:
    class AnHourAtStep(DenoisingTask):
        def loss(self, *arguments: Any) -> dict[str, torch.Tensor]:
            if self.calls == 16:
                first.limit.started -= 3600.0
            return super().loss(*arguments)

    first = Trainer(AnHourAtStep(), trainer_config(steps=STEPS), tmp_path, time_limit=59.0)
    assert not first.run()
    assert first.step == state_of(tmp_path)["step"] == 17
    second = train_here(tmp_path, steps=STEPS, time_limit=59.0)
    assert len(second.losses) == STEPS - 17
    assert curve(tmp_path) == curve(uninterrupted)
    assert_same_training(state_of(tmp_path), state_of(uninterrupted))


class Clock:
    """Stands for ``time.monotonic``; every step of ``TickingTask`` moves it on."""

    now = 1000.0


class TickingTask(DenoisingTask):
    """Its steps take so many seconds of the clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def loss(self, *arguments: Any) -> dict[str, torch.Tensor]:
        self.clock.now += self.seconds
        return super().loss(*arguments)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(stopping.time, "monotonic", lambda: found.now)
    return found


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_a_learning_rate_comes_down_within_the_minutes_there_are(tmp_path: Path, clock: Clock, seconds: float) -> None:
    settings = {"steps": 100_000, "warmup_steps": 1000, "constant_share": 0.3, "learning_rate": 1e-2}
    # Half a minute went by before the trainer was there; of the one left, a step takes its seconds.
    budget = TimeBudget(1.5, started=clock.now - 30.0)
    assert Trainer(TickingTask(clock, seconds), trainer_config(**settings), tmp_path, budget=budget).run()
    rates = list(curve(tmp_path, "train/learning_rate").values())
    assert len(rates) == 60.0 / seconds
    assert rates[0] < 0.1 * rates[len(rates) // 5] and max(rates) == pytest.approx(1e-2)
    assert rates[-1] < 0.07 * 1e-2 and rates[-1] <= rates[-2]
    assert state_of(tmp_path)["spent"] == 1.0 and len(curve(tmp_path, "validation/loss")) == 1
    before = (tmp_path / "checkpoint.pt").read_bytes()
    assert Trainer(DenoisingTask(), trainer_config(**settings), tmp_path).run()  # it is done
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_minutes_that_are_more_than_enough_change_nothing(tmp_path: Path, uninterrupted: Path, clock: Clock) -> None:
    assert Trainer(DenoisingTask(), trainer_config(steps=STEPS), tmp_path, budget=TimeBudget(1.0)).run()
    assert_same_training(state_of(tmp_path), state_of(uninterrupted))


def test_a_training_that_was_stopped_comes_to_its_end_within_other_minutes(tmp_path: Path, clock: Clock) -> None:
    settings = {"steps": 1000, "warmup_steps": 0, "learning_rate": 1e-2}

    class StoppedAtHalf(TickingTask):
        def loss(self, *arguments: Any) -> dict[str, torch.Tensor]:
            if self.calls == 30:
                first.limit.stop()
            return super().loss(*arguments)

    task = StoppedAtHalf(clock, 1.0)
    first = Trainer(task, trainer_config(**settings), tmp_path, budget=TimeBudget(1.0))
    assert not first.run() and first.step == 31
    half = list(curve(tmp_path, "train/learning_rate").values())[-1]
    assert half == pytest.approx(0.5 * 1e-2 * 1.05, rel=0.1)
    assert Trainer(task, trainer_config(**settings), tmp_path, budget=TimeBudget(2.0)).run()
    rates = list(curve(tmp_path, "train/learning_rate").values())
    assert len(rates) in (31 + 120, 31 + 121) and rates[-1] < 0.06 * 1e-2
    assert all(later <= earlier for earlier, later in pairwise(rates))


def test_signals_have_their_former_meaning_after_a_training(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train_here(tmp_path, steps=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_loaders_changes_nothing(tmp_path: Path, uninterrupted: Path, workers: int) -> None:
    train_here(tmp_path, steps=STEPS, loader_workers=workers)
    assert_same_training(state_of(tmp_path), state_of(uninterrupted))


def test_validation_leaves_training_untouched(tmp_path: Path, uninterrupted: Path) -> None:
    trainer = train_here(tmp_path, steps=STEPS, validate_every=1)
    assert len(curve(tmp_path, "validation/loss")) == STEPS
    assert_same_training(state_of(tmp_path), state_of(uninterrupted))
    assert all(module.training for module in trainer.task.network.modules())


def test_a_failing_write_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(tmp_path, steps=5)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half_a_file(state: dict[str, Any], file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", half_a_file)
    with pytest.raises(OSError, match="No space left"):
        train_here(tmp_path, steps=10)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_with_a_message_and_a_whole_checkpoint(
    tmp_path: Path, what: str
) -> None:
    task = DenoisingTask(spoil=(8, what))
    with pytest.raises(TrainingError, match=rf"The {what} of step 8 is nan.*checkpoint\.pt is whole.*learning_rate"):
        train_here(tmp_path, task, checkpoint_minutes=0.0)
    kept = state_of(tmp_path)
    assert kept["step"] == 7
    assert all(torch.isfinite(value).all() for value in kept["network"].values())


def test_a_loss_that_is_no_number_before_any_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        train_here(tmp_path, DenoisingTask(spoil=(1, "loss")))


def test_another_architecture_is_refused_naming_the_first_difference(tmp_path: Path) -> None:
    train_here(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=r"0\.weight is \(4, 1, 3, 3\) in the checkpoint and \(6, 1, 3, 3\)"):
        train_here(tmp_path, DenoisingTask(channels=6), steps=4)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign"])
def test_a_damaged_checkpoint_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    train_here(tmp_path, steps=2)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    if damage == "foreign":
        torch.save({"step": 3}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"step: 3\n"}[damage])
    for attempt in (lambda: train_here(tmp_path, steps=4), lambda: averaged_weights(path)):
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt .*Move it away"):
            attempt()


def test_a_changed_entry_is_obeyed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_here(tmp_path, steps=10, time_limit=None)
    with caplog.at_level(logging.WARNING):
        train_here(tmp_path, steps=12, learning_rate=1e-5, weight_decay=0.5, loader_workers=1)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "trainer.learning_rate is now 1e-05; the checkpoint was made with 0.01" in said
    assert "loader_workers" not in said
    assert curve(tmp_path, "train/learning_rate")[12] < 1e-5
    assert state_of(tmp_path)["optimizer"]["param_groups"][0]["weight_decay"] == 0.5


@pytest.mark.parametrize("steps", [5, 3])
def test_a_training_that_is_complete_stays_as_it_is(tmp_path: Path, steps: int) -> None:
    train_here(tmp_path, steps=5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert Trainer(DenoisingTask(), trainer_config(steps=steps), tmp_path).run()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_average_is_the_sum_that_its_definition_says(tmp_path: Path) -> None:
    history: list[torch.Tensor] = []

    class Watched(DenoisingTask):
        def loss(self, *arguments: Any) -> dict[str, torch.Tensor]:
            history.append(self.network.state_dict()["0.weight"].clone())
            return super().loss(*arguments)

    task = Watched()
    train_here(tmp_path, task, steps=12, ema_decay=0.8)
    after = [*history[1:], task.network.state_dict()["0.weight"]]  # weights after each of the 12 steps
    shares = [0.8**11] + [0.2 * 0.8 ** (11 - step) for step in range(1, 12)]
    expected = sum(share * weight.double() for share, weight in zip(shares, after, strict=True))
    found, facts = averaged_weights(tmp_path / "checkpoint.pt")
    torch.testing.assert_close(found["0.weight"].double(), expected, rtol=0, atol=1e-6)
    assert facts["step"] == 12


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path) -> None:
    trainer = train_here(tmp_path, steps=6, validate_every=3)
    shown = events(tmp_path)
    assert {"train/loss", "train/learning_rate", "train/gradient_norm", "validation/loss"} <= set(
        shown.Tags()["scalars"]
    )
    np.testing.assert_allclose(list(curve(tmp_path).values()), trainer.losses, rtol=1e-6)
    assert [event.step for event in shown.Scalars("validation/loss")] == [3, 6]
    picture = shown.Images("scan")[-1]
    assert (picture.width, picture.height, picture.step) == (8, 8, 6)


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth() -> None:
    config = trainer_config(steps=105, warmup_steps=5, learning_rate=0.5)
    assert [learning_rate_at(step, config) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert learning_rate_at(5, config) == pytest.approx(0.5)
    assert learning_rate_at(55, config) == pytest.approx(0.5 * (1.0 + 0.05) / 2.0)
    assert learning_rate_at(105, config) == pytest.approx(0.025)
    assert learning_rate_at(0, trainer_config(warmup_steps=0)) == pytest.approx(0.01)


def test_the_learning_rate_may_stay_for_a_while_before_it_falls() -> None:
    schedule = {"steps": 105, "warmup_steps": 5, "learning_rate": 0.5, "constant_share": 0.3, "final_rate": 0.03}
    config = trainer_config(**schedule)
    assert learning_rate_at(4, config) == learning_rate_at(34, config) == pytest.approx(0.5)
    assert learning_rate_at(70, config) == pytest.approx(0.5 * (1.0 + 0.03) / 2.0)
    assert learning_rate_at(105, config) == pytest.approx(0.015)
    always = trainer_config(**(schedule | {"constant_share": 1.0}))
    assert learning_rate_at(104, always) == pytest.approx(0.5)


def test_an_average_that_warms_up_forgets_the_first_weights_sooner() -> None:
    first, new = torch.zeros(1), torch.ones(1)
    for updates, warmup, expected in ((1, 0, 0.01), (1, 19, 19.0 / 21.0), (10_000, 19, 0.01)):
        averaged = first.clone()
        averaging(trainer_config(ema_decay=0.99, ema_warmup=warmup))([averaged], [new], updates)
        assert float(averaged) == pytest.approx(expected)
