"""The whole experiment in one: the VQ-VAE and its diffusion model, trained, packed, and measured on four sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import diffusion_anomaly as da
from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.evaluation import evaluate
from diffusion_anomaly.evaluation.dataset import Pair, find_pairs
from diffusion_anomaly.evaluation.formatting import markdown_table, with_interval
from diffusion_anomaly.io.files import write_text
from diffusion_anomaly.text import counted

from ..brain.comparison import cut_slice
from ..steps import CONFIGS, DATA, PACKAGES, RUNS, package, prepare, run_steps, training
from ..synthetic import Pasted, write_pasted
from .inpainting import Inpainted, draw, inpaint

logger = logging.getLogger(__name__)

NAME = "flair-vqvae"
HEALTHY = (DATA / "flair-healthy/torchio-fernando_flair.nii.gz", DATA / "flair-healthy/synthsr_flair.nii.gz")
CREDIT = "Scan: the FLAIR of py_synthsr (Apache License 2.0)"
# Radii in mm and brightness above the brain's median: several small lesions in a scan, or a large one.
LESIONS = {
    "small": Pasted("inside", (2.0, 5.0), (0.2, 0.5), (4, 8)),
    "large": Pasted("inside", (8.0, 20.0), (0.2, 0.5)),
}
# Sets on whose slices every level is walked as published, which takes 700 network calls a slice.
LEVEL_BY_LEVEL = ("gliomas", "ms-jhu")
COLUMNS = {"dice": "Dice", "best_dice": "best Dice", "average_precision": "AP", "slice_auroc": "slice AUROC"}


def run(output: Path) -> None:
    """Raises as the stages and ``evaluate.run`` do."""
    run_steps(
        [
            prepare(CONFIGS / "prepare-flair.yaml", RUNS / "flair-slices"),
            training("codec", CONFIGS / "flair-vqvae.yaml", RUNS / "flair-vqvae"),
            training("diffusion", CONFIGS / "flair-vqvae-unsupervised.yaml", RUNS / "flair-vqvae-unsupervised"),
            package(CONFIGS / "package-flair-vqvae.yaml", NAME, PACKAGES),
        ]
    )
    model = PACKAGES / NAME
    inpainted = {
        "flair-vqvae": inpaint(da.load(model), HEALTHY[1]),
        "flair-unsupervised": inpaint(da.load(method="unsupervised"), HEALTHY[1]),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, slices in inpainted.items():
        draw(slices, CREDIT, output / f"inpainting-{name}.png")
    own = [f"unsupervised={model}", "unsupervised"]
    report = []
    for name, pairs in sets(output / "lesions").items():
        report.append(measure(name, counted(len(pairs), "scan"), pairs, own, output / name))
        if name in LEVEL_BY_LEVEL:
            brains, folder = output / name / "brain", output / f"{name}-slices"
            cut = [cut_slice(pair, brains, folder / "scans") for pair in pairs]
            what = f"the slice with the most lesion of each of {counted(len(cut), 'scan')}"
            runs = [f"unsupervised:paper={model}", *own]
            report.append(measure(name, what, cut, runs, folder / "evaluation"))
    report.append(_of_inpainting(inpainted))
    write_text(output / "report.md", "\n".join(report))
    logger.info("%s", output / "report.md")


def sets(folder: Path) -> dict[str, list[Pair]]:
    """What is measured on: gliomas, two sets of multiple sclerosis, and healthy scans with lesions pasted in."""
    find = BrainFinder()
    for name, lesions in LESIONS.items():
        write_pasted(HEALTHY, find, [lesions], folder / name, ending="_flair.nii.gz")
    return {
        "gliomas": find_pairs(DATA / "lgg-flair/test"),
        "open-ms": find_pairs(DATA / "open-ms", "*/FLAIR.nii.gz", "*/lesions.nii.gz"),
        "ms-jhu": find_pairs(DATA / "ms-jhu", "training*_flair.nii.gz", "training*_mask.nii.gz"),
        **{f"pasted-{name}": find_pairs(folder / name) for name in LESIONS},
    }


def measure(name: str, what: str, pairs: Sequence[Pair], runs: Sequence[str], output: Path) -> str:
    """Evaluate and say in a table what came out of a set's scans or slices."""
    table = evaluate.run(pairs, [evaluate.RunSpec.parse(text) for text in runs], output)
    lines = markdown_table(
        ["method", *COLUMNS.values(), "s a scan", "calls a slice"],
        [
            [
                row["run"],
                *(with_interval(row, key, 3) for key in COLUMNS),
                with_interval(row, "seconds", 1),
                str(row["network_calls"]),
            ]
            for row in table.rows
        ],
    )
    return "\n".join([f"## {name}, {what}", "", *lines, ""])


def _of_inpainting(inpainted: dict[str, list[Inpainted]]) -> str:
    rows = [
        [name, f"{fmean(one.error for one in slices):.3f}", f"{fmean(one.codec_error for one in slices):.3f}"]
        for name, slices in inpainted.items()
    ]
    lines = markdown_table(["model", "error of what is filled in", "of the autoencoder alone"], rows)
    return "\n".join(["## Healthy tissue hidden and filled in", "", *lines, ""])
