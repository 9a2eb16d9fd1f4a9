"""Steps from data to a measurement: each a command of the project, run only where its result is not there yet."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from training.trainer.checkpoints import averaged_weights
from training.trainer.configuration import read_yaml
from training.trainer.loop import TrainingError
from training.trainer.optimisation import TrainerConfig

logger = logging.getLogger(__name__)

CONFIGS, RUNS = Path("training/configs"), Path("runs")
PACKAGES = RUNS / "packages"
DATA = Path("../shared/data")


@dataclass(frozen=True)
class Step:
    """A command of the project.

    Attributes:
        arguments: of ``python -m``, such as ``("training", "prepare", CONFIG, "--output", FOLDER)``.
        makes: a file or folder that is there exactly when the step is done.
    """

    arguments: tuple[str, ...]
    makes: Path

    @property
    def done(self) -> bool:
        return self.makes.exists()

    def run(self) -> None:
        """Run it in a process of its own, whose output and Ctrl-C are this one's; nothing where it is done.

        Raises:
            TrainingError: when it fails or is stopped early. Run again, it goes on from there.
        """
        if self.done:
            logger.info("%s is there", self.makes)
            return
        command = " ".join(("python -m", *self.arguments))
        logger.info("%s", command)
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *self.arguments], check=False).returncode
        if code or not self.done:
            why = f"exit code {code}" if code else f"{self.makes} is not complete"
            raise TrainingError(f"{command}: {why}. The experiment goes on from here when it is run again.")
        logger.info("done in %.1f minutes", (time.monotonic() - started) / 60.0)


class _Trained(BaseModel):
    """The part of a training's configuration that says when it is complete."""

    model_config = ConfigDict(extra="allow")
    trainer: TrainerConfig


@dataclass(frozen=True)
class Training(Step):
    """A stage that writes checkpoints: it is done when its last step is."""

    config: Path

    @property
    def done(self) -> bool:
        if not self.makes.exists():
            return False
        return averaged_weights(self.makes)[1]["step"] >= read_yaml(self.config, _Trained).trainer.steps


def run_steps(steps: Sequence[Step]) -> None:
    """Run one after the other. Raises as ``Step.run``."""
    for step in steps:
        step.run()


def training(stage: str, config: Path, run: Path) -> Training:
    """A stage of ``python -m training`` that writes checkpoints into ``run``."""
    return Training(("training", stage, str(config), "--run", str(run)), run / "checkpoint.pt", config)


def prepare(config: Path, output: Path) -> Step:
    """Slices of scans, in ``output``."""
    return Step(("training", "prepare", str(config), "--output", str(output)), output / "val.npz")


def package(config: Path, name: str, folder: Path) -> Step:
    """A verified model package called ``name`` in ``folder``."""
    return Step(("training", "package", str(config), "--output", str(folder)), folder / name)
