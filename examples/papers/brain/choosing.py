"""Options of a classifier-guided package, judged on validation patients before anything is packed.

The networks run once a patient and setting; which differences count is settled afterwards on what they made.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.inference import make_batch, run_slices
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.detection.postprocess import postprocess
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.formatting import markdown_table, number
from diffusion_anomaly.io.files import write_text
from diffusion_anomaly.io.outputs import prepare_folder
from diffusion_anomaly.io.volume import read_mask
from diffusion_anomaly.methods.base import residual
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.models.writing import outputs_beside
from diffusion_anomaly.preprocessing.slices import SliceStack
from training.package.build import write_uncalibrated
from training.package.calibrate import calibration_scans
from training.package.config import PackageConfig
from training.trainer.configuration import ConfigurationError

logger = logging.getLogger(__name__)

TABLE = "options.md"


@dataclass(frozen=True)
class Reconstructed:
    """A patient's slices and what a model made of them, on its grid.

    Attributes:
        name: the patient's scan.
        images, reconstruction: ``(n, C, H, W)`` normalised intensity.
        brain, lesion: ``(n, H, W)`` bool; a pixel is lesion when more than half of its brain is.
        error: how far the brain commonly is from its reconstruction.
        stack: the slices.
    """

    name: str
    images: torch.Tensor
    reconstruction: torch.Tensor
    brain: np.ndarray
    lesion: np.ndarray
    error: float | None
    stack: SliceStack

    def average_precision(self, detector: Detector, side: str, reference: float) -> float:
        """Of the difference on a side, filtered as the package says."""
        anomaly_map = postprocess(
            residual(self.images, self.reconstruction, side, reference).numpy(),
            self.brain,
            detector.plan.postprocess,
            self.error,
            pixel_spacing=math.sqrt(math.prod(self.stack.pixel_mm)),
            slice_spacing=self.stack.slice_spacing,
        )
        return metrics.average_precision(anomaly_map[self.lesion & self.brain], anomaly_map[self.brain & ~self.lesion])


def choose(
    config: PackageConfig,
    output: Path,
    values: Mapping[str, Sequence[float]],
    sides: Sequence[str],
    references: Sequence[float],
) -> str:
    """Average precision of every combination; writes ``options.md``, which is returned, the best first.

    Args:
        config: of the package; its ``prepare`` names validation scans and how their lesion masks are called.
        output: folder.
        values: to try of each option that the networks run with.
        sides, references: to try of ``side`` and ``min_reference_intensity``.

    Raises:
        ConfigurationError: when the package is of another method or has no lesion masks.
        InputError: for values out of range, or scans that cannot be used.
    """
    if config.method != "guided" or config.read_prepare().lesions is None:
        raise ConfigurationError("Options are chosen for the method guided, with 'lesions' in 'prepare'.")
    rows = []
    with outputs_beside(output / "uncalibrated") as workshop:
        bundle = write_uncalibrated(config, workshop / config.name)
        runs = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
        tried = list(itertools.product(sides, references))
        for run, (side, reference) in itertools.product(runs, tried):  # a wrong one is refused before hours
            _detector(bundle, {**run, "side": side, "min_reference_intensity": reference})
        for run in runs:
            detector = _detector(bundle, run)
            found: dict[tuple[str, float], list[float]] = {setting: [] for setting in tried}
            for patient in reconstructed(config, detector):
                for setting in tried:
                    found[setting].append(patient.average_precision(detector, *setting))
                logger.info("%s: %s", run, patient.name)
            rows += [(precisions, run, *setting) for setting, precisions in found.items()]
            detector.release()
    rows.sort(key=lambda row: -metrics.mean_or_nan(row[0]))
    lines = markdown_table(
        ["side", "min_reference_intensity", *values, "AP", "worst patient"],
        [
            [
                *(side, f"{reference:g}", *(f"{value:g}" for value in run.values())),
                *(number(summary(precisions), 3) for summary in (metrics.mean_or_nan, np.nanmin)),
            ]
            for precisions, run, side, reference in rows
        ],
    )
    lines += ["", f"{len(rows[0][0])} validation patients; average precision inside the brain, on the model's grid."]
    text = "\n".join(lines) + "\n"
    write_text(prepare_folder(output) / TABLE, text)
    return text


def reconstructed(config: PackageConfig, detector: Detector) -> Iterator[Reconstructed]:
    """Validation patients, one after the other."""
    prepare = config.read_prepare()
    assert prepare.lesions is not None
    ending, instead = prepare.lesions
    plan = detector.plan
    for paths, scan in zip(prepare.scans("val"), calibration_scans(config), strict=True):
        stack, scales = detector.slices(scan.scan, scan.brain)
        run = run_slices(stack, scales, plan.method, plan.method_options, detector.held, keep_reconstruction=True)
        assert run.reconstruction is not None
        path = paths[0].with_name(paths[0].name.removesuffix(ending) + instead)
        mask = read_mask(path, scan.scan.reference)
        lesion = SliceStack([sitk.Cast(mask, sitk.sitkFloat32)], stack.grid, scan.brain).images()[:, 0] > 0.5
        images = make_batch(stack, scales, 0, len(stack), plan.asked.seed).images
        reconstruction = torch.from_numpy(run.reconstruction)
        yield Reconstructed(scan.name, images, reconstruction, stack.brain(), lesion, run.reconstruction_error, stack)


def parse_values(texts: Sequence[str]) -> dict[str, list[float]]:
    """``name=value,value`` texts of options that are numbers.

    >>> parse_values(["guidance_scale=10,30", "order=2"])
    {'guidance_scale': [10, 30], 'order': [2]}

    Raises:
        ConfigurationError: for a text without a name or with what is no number.
    """
    values: dict[str, list[float]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        try:
            values[name.strip()] = [json.loads(word) for word in listed.split(",")]
        except ValueError:
            raise ConfigurationError(f"--set got {text!r}: write it as OPTION=NUMBER,NUMBER.") from None
    return values


def _detector(bundle: Bundle, overrides: Mapping[str, Any]) -> Detector:
    try:
        return Detector(Options(bundle.method, overrides=overrides), bundle=bundle)
    except InputError as error:
        raise ConfigurationError(str(error)) from error
