"""The whole experiment in one: slices, both networks, and what they find in the test slices."""

from __future__ import annotations

from pathlib import Path

from training.trainer.configuration import read_yaml

from ..steps import DATA, RUNS, Step, run_steps, training
from .experiment import MednistConfig, experiment

SOURCE = DATA / "mednist/headct.npz"
CONFIGS = Path("examples/papers/sprites/configs")
SLICES = RUNS / "mednist-slices"


def run(output: Path) -> None:
    """Raises as the stages and ``experiment`` do."""
    prepare = ("examples.papers.sprites", "prepare", str(SOURCE), "--output", str(SLICES))
    config = read_yaml(CONFIGS / "experiment.yaml", MednistConfig)
    run_steps(
        [
            Step(prepare, SLICES / "ood.npz"),
            training("codec", CONFIGS / "codec.yaml", RUNS / "mednist-codec"),
            training("diffusion", config.diffusion, config.diffusion_run),
        ]
    )
    experiment(config, output)
