"""Packages compared on patients with all contrasts: on whole scans, and on one slice a patient what costs more.

The slice is the one with the most tumour in the reference, cut out of the scan with its brain mask before any method
runs. Its intensities are scaled by that slice's brain alone, and it always holds tumour: figures on slices are
comparable among themselves, not with those on scans.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict

from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.dataset import Pair, find_pairs
from diffusion_anomaly.evaluation.evaluate import RunSpec
from diffusion_anomaly.evaluation.evaluate import run as evaluate
from diffusion_anomaly.evaluation.formatting import markdown_table, number, with_interval
from diffusion_anomaly.evaluation.table import COLUMNS
from diffusion_anomaly.io.files import write_text
from diffusion_anomaly.io.outputs import prepare_folder
from diffusion_anomaly.io.volume import read_mask, read_volume
from diffusion_anomaly.results.result import Progress
from diffusion_anomaly.text import counted

logger = logging.getLogger(__name__)

TABLE = "wolleb-brain.md"
SHOWN = (
    *("average_precision", "pooled_average_precision", "dice", "best_dice", "voxel_auroc", "slice_auroc"),
    *("false_positives", "false_positive_ml", "network_calls", "seconds"),
)
ON_SLICES = ("average_precision", "pooled_average_precision", "best_dice", "voxel_auroc", "network_calls", "seconds")
REPORT_SECONDS = 60.0


class Run(BaseModel):
    """A method with a package, as the table calls it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    method: str
    model: str
    preset: str | None = None

    @property
    def spec(self) -> RunSpec:
        return RunSpec(self.method, self.model, {} if self.preset is None else {"preset": self.preset}, self.label)


class ComparisonConfig(BaseModel):
    """Configuration file of the command ``evaluate``. The first run is compared with each other one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patients: Path
    channels: dict[str, str]
    mask_pattern: str = "*_mask.nii.gz"
    brain_pattern: str | None = None
    runs: list[Run]
    slice_runs: list[Run] = []
    resamples: int = 1000


def compare(config: ComparisonConfig, output: Path) -> str:
    """Evaluate what has not been evaluated yet, and write ``wolleb-brain.md``, which is returned.

    Raises:
        InputError: for scans or packages that cannot be used, as ``evaluate`` does.
    """
    pairs = find_pairs(
        config.patients,
        mask_pattern=config.mask_pattern,
        brain_pattern=config.brain_pattern,
        channels=config.channels,
        complete_only=True,
    )
    whole = _evaluated(pairs, config.runs, output / "patients", config.resamples)
    lines = [
        f"Whole scans of {counted(len(pairs), 'patient')}:",
        "",
        *_table(whole, SHOWN),
        "",
        *_differences(whole, config),
    ]
    if config.slice_runs:
        folder = output / "slices" / "scans"
        cut = [cut_slice(pair, output / "patients" / "brain", folder) for pair in pairs]
        slices = _evaluated(cut, config.slice_runs, output / "slices" / "evaluation", config.resamples)
        lines += ["", f"One slice a patient of {len(pairs)}, the one with the most tumour:", ""]
        lines += [*_table(slices, ON_SLICES), "", *_differences(slices, config)]
    about = whole["about"]
    lines += ["", f"{about['hardware']}; in brackets 95 % bootstrap intervals over patients.", ""]
    lines += [f"- **{column.title}**: {column.meaning}." for column in COLUMNS if column.key in SHOWN]
    text = "\n".join(lines) + "\n"
    write_text(prepare_folder(output) / TABLE, text)
    return text


def cut_slice(pair: Pair, brains: Path, folder: Path) -> Pair:
    """The slice of a patient with the most tumour, as scans of one slice each in ``folder``.

    Args:
        pair: with the contrasts on the reference's grid, slices along the third axis.
        brains: where the patient's brain mask lies, ``<name>.nii.gz``, if it came with none.
        folder: made where it is not there.
    """
    scan = read_volume(pair.scan)
    reference = read_mask(pair.reference, scan)
    brain = read_mask(pair.brain or brains / f"{pair.name}.nii.gz", scan)
    place = int(np.argmax((sitk.GetArrayViewFromImage(reference) > 0).sum(axis=(1, 2))))
    channels = pair.channels or {"scan": pair.scan}
    images = {name: read_volume(path).image for name, path in channels.items()}
    images |= {"mask": reference, "brain": brain}
    prepare_folder(folder)
    files = {name: folder / f"{pair.name}_{name}.nii.gz" for name in images}
    for name, image in images.items():
        sitk.WriteImage(image[:, :, place : place + 1], str(files[name]))
    mask, inside = files.pop("mask"), files.pop("brain")
    return Pair(pair.name, next(iter(files.values())), mask, inside, files if pair.channels else {})


def _evaluated(pairs: Sequence[Pair], runs: Sequence[Run], folder: Path, resamples: int) -> dict[str, Any]:
    """What ``evaluation.json`` in a folder says, made now where it is not there."""
    record = folder / "evaluation.json"
    if record.exists():
        logger.info("%s is there", record)
    else:
        evaluate(pairs, [run.spec for run in runs], folder, progress=_Log(), resamples=resamples, warn=logger.warning)
    return json.loads(record.read_text(encoding="utf-8"))


def _table(found: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    columns = [column for column in COLUMNS if column.key in keys]
    rows = [[row["run"], *(with_interval(row, c.key, c.digits or 0) for c in columns)] for row in found["rows"]]
    return markdown_table(["method", *(column.title for column in columns)], rows)


def _differences(found: Mapping[str, Any], config: ComparisonConfig) -> list[str]:
    """The first run's average precision minus each other's, patient by patient."""
    precisions: dict[str, list[float]] = {}
    for case in found["patients"]:
        value = case["average_precision"]
        precisions.setdefault(case["run"], []).append(np.nan if value is None else value)
    (first, own), *others = precisions.items()
    draws = metrics.resamples(len(own), config.resamples, found["about"]["seed"])
    rows = []
    for label, values in others:
        gain = np.array(own) - np.array(values)
        row = metrics.with_ends("gain", lambda drawn, gain=gain: metrics.mean_or_nan(gain[drawn]), draws)
        better = f"{int((gain > 0).sum())} of {int(np.isfinite(gain).sum())}"
        rows.append([f"{first} − {label}", with_interval(row, "gain", 3), number(np.nanmin(gain), 3), better])
    return markdown_table(["difference in AP, patient by patient", "mean", "worst patient", "patients better"], rows)


class _Log:
    """Progress of an evaluation as lines of the log, one a minute."""

    def __init__(self) -> None:
        self.said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self.said < REPORT_SECONDS:
            return
        self.said = time.monotonic()
        left = "" if progress.remaining is None else f", {progress.remaining / 60.0:.1f} minutes left"
        logger.info("%s, %d of %d%s", progress.stage, progress.done, progress.total, left)
