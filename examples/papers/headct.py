"""Pinaya et al. 2022 on head CT with haemorrhage: a model of slices without it has to tell those that bleed.

Whole slices and patients are judged by the labels of radiologists; where the blood is has been drawn by nobody, so that
is measured with lesions pasted into the test patients that do not bleed. Beside it: intensity alone, and two networks
that have learnt from synthetic blood: a restorer and a localiser.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk
import typer

from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.detection.regions import find_region
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation.dataset import find_pairs
from diffusion_anomaly.evaluation.evaluate import RunSpec
from diffusion_anomaly.evaluation.evaluate import run as evaluate
from diffusion_anomaly.evaluation.labelled import find_labelled, run_labelled
from diffusion_anomaly.io.volume import Volume
from training.trainer.configuration import ConfigurationError

from .steps import CONFIGS, DATA, PACKAGES, RUNS, Step, package, prepare, run_steps, training
from .synthetic import Pasted, write_pasted

logger = logging.getLogger(__name__)

PATIENTS = DATA / "headct"
METHODS = ("unsupervised", "restore", "localise", "intensity")
ENDING = "_ct.nii.gz"
# Blood as bright as that of the validation patients, from faint to clear.
PASTED = (Pasted("inside", (4.0, 18.0), (0.2, 0.6)), Pasted("rim", (5.0, 14.0), (0.2, 0.6)))


def steps(methods: Sequence[str] = METHODS) -> list[Step]:
    """From the data to the packages of some methods."""
    slabs = Step(
        (
            "training",
            "prepare-slabs",
            str(CONFIGS / "prepare-headct-slabs.yaml"),
            "--output",
            str(RUNS / "headct-slabs"),
        ),
        RUNS / "headct-slabs/stacks.npz",
    )
    trainings = {
        "unsupervised": [
            training("codec", CONFIGS / "headct-codec.yaml", RUNS / "headct-codec"),
            training("diffusion", CONFIGS / "headct-unsupervised.yaml", RUNS / "headct-unsupervised"),
        ],
        "restore": [slabs, training("restore", CONFIGS / "headct-restore.yaml", RUNS / "headct-restore")],
        "localise": [slabs, training("localise", CONFIGS / "headct-localise.yaml", RUNS / "headct-localise")],
    }
    return [
        label(RUNS / "headct-labels.csv", distance=100),
        label(RUNS / "headct-slice-labels.csv", distance=1),
        prepare(CONFIGS / "prepare-headct.yaml", RUNS / "headct"),
        *(step for method in methods for step in trainings.get(method, [])),
        *(package(CONFIGS / f"package-headct-{method}.yaml", f"headct-{method}", PACKAGES) for method in methods),
    ]


def label(output: Path, distance: int) -> Step:
    """Labels of slices: at a distance of 1 each has one, at 100 healthy ones of patients who bleed have none."""
    options = ("--column", "label", "--ending", ENDING, "--distance", str(distance))
    return Step(("training", "label", str(PATIENTS / "slices.csv"), str(output), *options), output)


def run(output: Path, split: str = "test", methods: Sequence[str] = METHODS) -> None:
    """Prepare, train, pack and measure.

    Args:
        output: gets ``labels`` and ``pasted``, each an evaluation, and ``scans``, the scans with lesions.
        split: the patients; options are chosen on ``val``.
        methods: some of ``METHODS``.

    Raises:
        ConfigurationError: for another split than ``val`` or ``test``, or another method.
        TrainingError: when a step fails, see ``Step.run``.
    """
    if split not in ("val", "test"):
        raise ConfigurationError(f"The split is {split!r}; expected val or test.")
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ConfigurationError(f"The methods are {', '.join(methods)}; expected some of {', '.join(METHODS)}.")
    run_steps(steps(methods))
    packages = {method: PACKAGES / f"headct-{method}" for method in methods}
    measure(PATIENTS / split, RUNS / "headct-slice-labels.csv", packages, output)


def measure(folder: Path, labels: Path, packages: dict[str, Path], output: Path) -> None:
    """Both measurements of packages by method.

    Args:
        folder: scans of one split.
        labels: CSV scan,slice,label of all slices.
        packages: by method; ``intensity`` is the baseline.
        output: folder.
    """
    specs = [RunSpec(method, str(path)) for method, path in packages.items()]
    labelled = [RunSpec(spec.method, spec.model, label=spec.method) for spec in specs]
    table = run_labelled(find_labelled(folder, labels), labelled, output / "labels")
    typer.echo(table.markdown())
    finder = BrainFinder()

    def region(volume: Volume) -> sitk.Image:
        return find_region("intracranial", volume, finder)

    scans = write_pasted(healthy_scans(folder, labels), region, PASTED, output / "scans", ending=ENDING)
    logger.info("lesions were pasted into %d scans", len(scans))
    pasted = evaluate(find_pairs(output / "scans", f"*{ENDING}"), specs, output / "pasted")
    typer.echo(pasted.markdown())


def healthy_scans(folder: Path, labels: Path) -> list[Path]:
    """The scans of a folder none of whose slices is labelled as diseased, sorted by name.

    Raises:
        InputError: when there is none.
    """
    found = [scan.path for scan in find_labelled(folder, labels) if not any(scan.labels.values())]
    if not found:
        raise InputError(f"{folder} holds no scan that {labels} says is healthy.", "Give the labels of its scans.")
    return found
