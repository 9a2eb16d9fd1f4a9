"""Options of a classifier-guided package, judged on validation patients before anything is packed.

The networks run once a patient and guidance scale; which differences count is settled afterwards on what they made.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    config: PackageConfig, output: Path, scales: Sequence[float], sides: Sequence[str], references: Sequence[float]
) -> str:
    """Average precision of every combination; writes ``options.md``, which is returned, the best first.

    Args:
        config: of the package; its ``prepare`` names validation scans and how their lesion masks are called.
        output: folder.
        scales, sides, references: values of ``guidance_scale``, ``side`` and ``min_reference_intensity``.

    Raises:
        ConfigurationError: when the package is of another method or has no lesion masks.
        InputError: for values out of range, or scans that cannot be used.
    """
    if config.method != "guided" or config.read_prepare().lesions is None:
        raise ConfigurationError("Options are chosen for the method guided, with 'lesions' in 'prepare'.")
    rows = []
    with outputs_beside(output / "uncalibrated") as workshop:
        bundle = write_uncalibrated(config, workshop / config.name)
        for scale in scales:
            tried = list(itertools.product(sides, references))
            for side, reference in tried:  # a wrong one is refused before hours
                _detector(bundle, scale, side, reference)
            detector = _detector(bundle, scale, sides[0], references[0])
            found: dict[tuple[str, float], list[float]] = {setting: [] for setting in tried}
            for patient in reconstructed(config, detector):
                for side, reference in tried:
                    found[side, reference].append(patient.average_precision(detector, side, reference))
                logger.info("guidance_scale %g: %s", scale, patient.name)
            rows += [(metrics.mean_or_nan(values), values, scale, *setting) for setting, values in found.items()]
            detector.release()
    rows.sort(key=lambda row: -row[0])
    lines = markdown_table(
        ["side", "min_reference_intensity", "guidance_scale", "AP", "worst patient"],
        [
            [side, f"{reference:g}", f"{scale:g}", number(mean, 3), number(float(np.nanmin(values)), 3)]
            for mean, values, scale, side, reference in rows
        ],
    )
    lines += ["", f"{len(rows[0][1])} validation patients; average precision inside the brain, on the model's grid."]
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


def _detector(bundle: Bundle, scale: float, side: str, reference: float) -> Detector:
    overrides = {"guidance_scale": scale, "side": side, "min_reference_intensity": reference}
    try:
        return Detector(Options(bundle.method, overrides=overrides), bundle=bundle)
    except InputError as error:
        raise ConfigurationError(str(error)) from error
