"""A network, a task and slices so small that a training takes seconds; and a training in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from training.data.slices import Slices
from training.trainer.loop import Batch, Trainer
from training.trainer.optimisation import TrainerConfig

REPOSITORY = Path(__file__).resolve().parents[2]


class DenoisingTask:
    """Everything that could break exactness in a dozen lines: buffers, dropout, and noise from all three sources.

    Args:
        channels: width of the network.
        pause: seconds that a step takes at least.
        spoil: from this step on, what becomes no number: "loss" or "gradient".
    """

    def __init__(self, channels: int = 4, pause: float = 0.0, spoil: tuple[int, str] | None = None) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(channels, 1, 3, padding=1),
        )
        self.pause, self.spoil = pause, spoil
        self.calls = 0

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        image = torch.from_numpy(rng.normal(size=(size, 1, 8, 8)).astype(np.float32))
        return {"image": image + 0.1 * torch.randn(image.shape)}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        time.sleep(self.pause)
        self.calls += 1
        image = batch["image"]
        result = network(image + 0.1 * torch.randn(image.shape, generator=generator))
        loss = ((result - image) ** 2).mean()
        if self.spoil is not None and self.calls >= self.spoil[0]:
            # The root of zero has a value and no slope.
            loss = loss * torch.nan if self.spoil[1] == "loss" else loss + (result * 0.0).abs().sum().sqrt()
        return {"loss": loss, "largest": result.detach().abs().max()}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        image = torch.randn(1, 1, 8, 8)
        return {"loss": float(((network(image) - image) ** 2).mean())}, {"scan": torch.rand(1, 8, 8)}


def trainer_config(**changes: Any) -> TrainerConfig:
    settings = {
        "steps": 20,
        "batch_size": 2,
        "learning_rate": 0.01,
        "warmup_steps": 5,
        "ema_decay": 0.9,
        "precision": "float32",
        "loader_workers": 0,
    }
    return TrainerConfig.model_validate(settings | changes)


def train_here(directory: Path, task: Any = None, time_limit: float | None = None, **changes: Any) -> Trainer:
    """A training in this process, as far as it gets."""
    trainer = Trainer(task or DenoisingTask(), trainer_config(**changes), directory, time_limit)
    trainer.run()
    return trainer


def state_of(directory: Path) -> dict[str, Any]:
    return torch.load(directory / "checkpoint.pt", weights_only=True)


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Weights, averages and moments of two checkpoints agree bit for bit."""
    assert found["step"] == expected["step"]
    for part in ("network", "average", "optimizer"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0, msg=lambda m, p=part: f"{p}: {m}")


def curve(directory: Path, tag: str = "train/loss") -> dict[int, float]:
    """A scalar as TensorBoard shows it."""
    return {event.step: event.value for event in events(directory).Scalars(tag)}


def events(directory: Path) -> EventAccumulator:
    """What TensorBoard reads in a run's directory.

    It takes the files in the order of their names, which hold the second, the process and a counter. Sessions of a
    test can follow each other within a second, so the files get names in the order in which they were written.
    """
    files = sorted(directory.glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files):
            shutil.copy(path, Path(folder) / f"events.out.tfevents.{number:04d}")
        return EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0}).Reload()


def random_slices(count: int, size: int, seed: int, contrasts: int = 1) -> Slices:
    """Discs of noise, the diseased ones with a bright square; labels alternate over the height."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    brain = np.repeat((x**2 + y**2 < (0.42 * size) ** 2)[None], count, 0)
    images = rng.integers(80, 160, (count, contrasts, size, size))
    label = np.arange(count) % 2
    images[label == 1, :, size // 2 : size // 2 + 3, size // 2 : size // 2 + 3] = 250
    height = np.repeat(np.linspace(0.0, 1.0, count // 2), 2)
    return Slices(
        images=np.where(brain[:, None], images, 0).astype(np.uint8),
        brain=brain,
        label=label.astype(np.int8),
        height=height.astype(np.float32),
        scan=np.array([f"scan{seed}.nii.gz"] * count),
        index=np.arange(count),
        voxel_ml=np.ones(count, np.float32),
    )


def process_server() -> Any:
    """A context whose processes come from a server that has imported everything once, so that they start at once."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["Testing.training.fakes", "training.stages.codec"])
    return context


class Session:
    """A training in a real process, at the head of a process group as under a terminal."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.process = process_server().Process(target=_lead_group, args=(function, *arguments))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def loaders(self) -> list[psutil.Process]:
        """The processes that make its batches; none when it has ended."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def wait(self, seconds: float = 120.0) -> int | None:
        """The exit code; None when the process still runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def destroy(self) -> None:
        with suppress(ProcessLookupError):  # it has ended, and so has its group
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join()


def _lead_group(function: Any, *arguments: Any) -> None:
    os.setsid()
    torch.set_num_threads(1)
    function(*arguments)


def train_slowly(directory: Path, steps: int, pause: float, workers: int = 1) -> None:
    """What a session runs: a checkpoint after every step, batches from another process."""
    train_here(directory, DenoisingTask(pause=pause), steps=steps, loader_workers=workers, checkpoint_minutes=0.0)


def wait_for(condition: Any, what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. One that has ended may keep its number until somebody asks how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def launch_twice(function: Any, *arguments: Any) -> dict[int, Any]:
    """torchrun's own launcher: two processes, its environment, its rendezvous. Returns each rank's result."""
    process_server()
    kept = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="forkserver")
    try:
        return elastic_launch(config, function)(*arguments)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
