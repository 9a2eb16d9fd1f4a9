"""The whole experiment in one: slices, networks, packages, and what they find in the test patients."""

from __future__ import annotations

from pathlib import Path

from training.trainer.configuration import read_yaml

from ..steps import CONFIGS, DATA, PACKAGES, RUNS, Step, package, prepare, run_steps, training
from .comparison import ComparisonConfig, compare

CONFIG = Path("examples/papers/brain/comparison.yaml")
LABELS = RUNS / "lgg-labels.csv"


def run(output: Path) -> str:
    """The tables. Raises as the stages and ``compare`` do."""
    run_steps(
        [
            Step(("training", "label", str(DATA / "lgg-flair/slices.csv"), str(LABELS)), LABELS),
            prepare(CONFIGS / "prepare-glioma.yaml", RUNS / "glioma-slices"),
            training("diffusion", CONFIGS / "glioma-guided.yaml", RUNS / "glioma-guided"),
            training("classifier", CONFIGS / "glioma-classifier.yaml", RUNS / "glioma-classifier"),
            training("denoise", CONFIGS / "glioma-dae.yaml", RUNS / "glioma-dae"),
            package(CONFIGS / "package-glioma-guided.yaml", "glioma-guided", PACKAGES),
            package(CONFIGS / "package-glioma-dae.yaml", "glioma-dae", PACKAGES),
        ]
    )
    return compare(read_yaml(CONFIG, ComparisonConfig), output)
