"""One training loop for every stage: Lightning Fabric carries devices, precision and processes; this adds the rest.

Resuming is exact because nothing random has a history: the batch and the noise of a step are functions of
``(seed, step, rank)`` alone. A checkpoint then only needs weights, averages, optimiser and the step number.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from .checkpoints import read_checkpoint, require_fit, write_checkpoint
from .devices import hardware_name, leave_together, make_fabric
from .optimisation import WITHOUT_EFFECT, TrainerConfig, averaging, learning_rate_at, steps_done
from .progress import ProgressFile, StepProgress
from .stopping import TimeBudget, TimeLimit, leave_signals_to_the_trainer

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class TrainingError(RuntimeError):
    """A training that cannot go on, in words for the one who runs it."""


class Task(Protocol):
    """What a stage brings: its network, its batches and its loss."""

    network: nn.Module

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """A training batch. Runs in a loader process; every random draw comes from ``rng``.

        What is quicker made on the training's device is made in ``loss`` instead, from a seed that is the batch.
        """
        ...

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars of one step; ``loss`` is the one minimised."""
        ...

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Scalars and pictures ``(3 or 1, H, W)`` in [0, 1] of the averaged network."""
        ...


class StepBatches(Dataset[Batch]):
    """Item ``i`` is the batch of step ``first + i``: the order of loading is part of no state."""

    def __init__(self, task: Task, config: TrainerConfig, first: int, rank: int) -> None:
        self.task, self.config, self.first, self.rank = task, config, first, rank

    def __len__(self) -> int:
        return self.config.steps - self.first

    def __getitem__(self, item: int) -> Batch:
        rng = np.random.default_rng((self.config.seed, self.first + item, self.rank))
        torch.manual_seed(int(rng.integers(2**62)))  # for augmentation libraries that draw from torch's global state
        return self.task.batch(rng, self.config.batch_size)


class Trainer:
    """Trains a task, or goes on with it, in a run directory.

    The directory gets ``checkpoint.pt`` (replaced whole, never in part), ``progress.json`` and TensorBoard's event
    files.

    Args:
        task: network, batches and loss.
        config: how to optimise.
        directory: where the run lives; a checkpoint there is continued.
        time_limit: minutes after which the run writes a checkpoint and returns.
        budget: minutes in which the whole training has to end, where that is sooner than its last step.
    """

    def __init__(
        self,
        task: Task,
        config: TrainerConfig,
        directory: Path,
        time_limit: float | None = None,
        budget: TimeBudget | None = None,
    ) -> None:
        self.task, self.config, self.directory = task, config, directory
        self.limit = TimeLimit(time_limit)
        self.budget = budget or TimeBudget()
        self.checkpoint = directory / "checkpoint.pt"
        self.step = 0
        self.seconds = 0.0
        self.spent = 0.0
        self.losses: list[float] = []

    def run(self) -> bool:
        """Train until the last step, the budget's end, the time limit, SIGTERM or Ctrl-C.

        Returns whether the training is complete.

        Raises:
            CheckpointError: when the checkpoint in the directory is damaged or of another network.
            TrainingError: when the loss or its gradient is no longer a finite number.
        """
        with self.limit.obeying_signals():
            return self._run()

    def _run(self) -> bool:
        fabric = make_fabric(self.config.precision)
        fabric.launch()
        self.directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.config.seed)
        network = self.task.network.to(memory_format=_memory_format(self.task.network))  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        average = AveragedModel(self.task.network, multi_avg_fn=averaging(self.config), use_buffers=True)
        average = average.to(fabric.device)
        average.n_averaged = average.n_averaged.cpu()  # it is looked at in every step, which would wait for the device
        network, optimizer = fabric.setup(network, optimizer)
        self._resume(fabric, average, optimizer)
        if not self.complete:
            # The step in work is the next one: what a killed session has written of it and later is void.
            purge = self.step + 1
            writer = SummaryWriter(str(self.directory), purge_step=purge) if fabric.is_global_zero else None
            self._train(fabric, network, optimizer, average, writer)
            if writer is not None:
                writer.close()
        # What joins the gradients of several processes would be the last to hold their connection, and close it with
        # Python's lock in hand while a thread of that connection waits for the lock.
        del network, optimizer
        gc.collect()
        leave_together(fabric)
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether the last step is done, or the clock has brought the learning rate to its end."""
        return self.step >= self.config.steps or (self.spent >= 1.0 and self.step > 0)

    def _train(
        self, fabric: Fabric, network: Any, optimizer: Any, average: AveragedModel, writer: SummaryWriter | None
    ) -> None:
        session = saved = time.monotonic()
        before = self.seconds
        file = ProgressFile(self.directory / "progress.json", self.config.steps) if fabric.is_global_zero else None
        if self.budget.minutes is not None:
            self.spent = max(self.spent, steps_done(self.step, self.config))
        self.budget.begin(self.spent)
        with StepProgress(self.config.steps, self.step, fabric.is_global_zero) as progress:
            for batch in self._batches(fabric):
                self.spent = self._alike(fabric, self.budget.spent)
                if self._agree(fabric, self.limit.reached) or self.spent >= 1.0:
                    break
                scalars = self._one_step(fabric, network, optimizer, average, fabric.to_device(batch))
                self.step += 1
                self.seconds = before + time.monotonic() - session
                self.losses.append(scalars["loss"])
                progress.advance(self.step, scalars)
                if file is not None:
                    file.advance(scalars["loss"], **self._state())
                if writer is not None:
                    self._record(fabric, average, writer, scalars)
                if time.monotonic() - saved > 60.0 * self.config.checkpoint_minutes:
                    self._save(fabric, average, optimizer, writer)
                    saved = time.monotonic()
        if writer is not None and self.complete and self.step < self.config.steps:
            self._validate(fabric, average, writer)
        self._save(fabric, average, optimizer, writer)
        if file is not None:
            file.write(**self._state(), complete=self.complete)

    def _state(self) -> dict[str, float]:
        return {"step": self.step, "seconds": self.seconds, "spent": self.spent}

    def _batches(self, fabric: Fabric) -> DataLoader[Batch]:
        workers = self.config.loader_workers
        return DataLoader(
            StepBatches(self.task, self.config, self.step, fabric.global_rank),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=leave_signals_to_the_trainer,
            # A forked process shares the slices in memory, and nothing has to be picklable.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )

    def _one_step(
        self, fabric: Fabric, network: Any, optimizer: Any, average: AveragedModel, batch: Batch
    ) -> dict[str, float]:
        seed = np.random.SeedSequence((self.config.seed, self.step, fabric.global_rank, 1)).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        torch.manual_seed(int(seed))  # for dropout inside networks
        rate = learning_rate_at(self.step, self.config, self.spent)
        for group in optimizer.param_groups:
            group["lr"] = rate
        network.train()
        scalars = self.task.loss(network, batch, generator)
        fabric.backward(scalars["loss"])
        norm = fabric.clip_gradients(network, optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False)
        # Asked for once: every question to the device waits for all that it has been told to do.
        told = torch.stack([value.detach().double() for value in (*scalars.values(), norm)]).tolist()  # type: ignore[union-attr]
        result = dict(zip([*scalars, "gradient_norm"], told, strict=True))
        self._require_finite("loss", result["loss"])
        self._require_finite("gradient", result["gradient_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(self.task.network)
        return result | {"learning_rate": rate}

    def _require_finite(self, what: str, value: float) -> None:
        """The checkpoint is left alone: weights that gave such a value may have been spoilt steps ago."""
        if np.isfinite(value):
            return
        whole = (
            f"{self.checkpoint} is whole and of an earlier step"
            if self.checkpoint.exists()
            else "There is no checkpoint yet"
        )
        raise TrainingError(
            f"The {what} of step {self.step + 1} is {value}. {whole}. "
            "Lower trainer.learning_rate in the configuration and run the same command again."
        )

    def _record(self, fabric: Fabric, average: AveragedModel, writer: SummaryWriter, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(f"train/{name}", value, self.step)
        if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
            self._validate(fabric, average, writer)

    def _validate(self, fabric: Fabric, average: AveragedModel, writer: SummaryWriter) -> None:
        average.eval()
        with torch.no_grad(), fabric.autocast():
            scalars, pictures = self.task.validate(average.module)
        for name, value in scalars.items():
            writer.add_scalar(f"validation/{name}", value, self.step)
        for name, picture in pictures.items():
            writer.add_image(name, picture.float().clamp(0, 1).cpu(), self.step)
        logger.info("step %d: %s", self.step, ", ".join(f"{k} {v:.4g}" for k, v in scalars.items()))

    def _agree(self, fabric: Fabric, stop: bool) -> bool:
        """Every process leaves the loop at the same step, or none does."""
        if fabric.world_size == 1:
            return stop
        votes = fabric.all_reduce(torch.tensor(float(stop), device=fabric.device), reduce_op="sum")
        return float(votes) > 0  # type: ignore[arg-type]

    def _alike(self, fabric: Fabric, value: float) -> float:
        """One value for all processes, whose clocks differ: their mean."""
        if fabric.world_size == 1:
            return value
        return float(fabric.all_reduce(torch.tensor(value, device=fabric.device), reduce_op="mean"))  # type: ignore[arg-type]

    def _save(self, fabric: Fabric, average: AveragedModel, optimizer: Any, writer: SummaryWriter | None) -> None:
        if not fabric.is_global_zero:
            return
        if writer is not None:  # first, or a kill between the two would leave a gap in the curves
            writer.flush()
        state = {
            **self._state(),
            "hardware": hardware_name(),
            "config": self.config.model_dump(),
            "network": self.task.network.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        write_checkpoint(state, self.checkpoint)

    def _resume(self, fabric: Fabric, average: AveragedModel, optimizer: Any) -> None:
        if not self.checkpoint.exists():
            return
        state = read_checkpoint(self.checkpoint)
        require_fit(state["network"], self.task.network.state_dict(), self.checkpoint)
        self.task.network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:  # the checkpoint's would silently win over the configuration's
            group["weight_decay"] = self.config.weight_decay
        self.step, self.seconds = state["step"], state["seconds"]
        self.spent = state.get("spent", 0.0)
        if not fabric.is_global_zero:
            return
        logger.info("goes on at step %d of %d", self.step, self.config.steps)
        for name, value in self.config.model_dump(exclude=set(WITHOUT_EFFECT)).items():
            if name in state["config"] and state["config"][name] != value:
                logger.warning(
                    "trainer.%s is now %s; the checkpoint was made with %s", name, value, state["config"][name]
                )


def _memory_format(network: nn.Module) -> torch.memory_format:
    three = any(isinstance(module, nn.Conv3d) for module in network.modules())
    return torch.channels_last_3d if three else torch.channels_last
