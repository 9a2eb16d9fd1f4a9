"""What is learnt from healthy tissue: latent threshold, calibration, default threshold and score range.

Healthy slices of scans kept apart and, for the threshold, scans of healthy people where there are any go through the
engine's own detection code, so that what a reader sees as "one healthy voxel in a thousand" was counted on the very
numbers that detection computes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.detection.appearance import Appearance
from diffusion_anomaly.detection.calibration import Calibration, spread_of_scans, threshold_for_false_alarms
from diffusion_anomaly.detection.detector import Detector, whole_image_score
from diffusion_anomaly.detection.doubts import pictures
from diffusion_anomaly.detection.inference import RawMap, make_batch
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.io.volume import Scan, read_volume
from diffusion_anomaly.methods.latent_threshold import fit_latent_threshold
from diffusion_anomaly.methods.unsupervised import Unsupervised
from diffusion_anomaly.models.declaration import IMAGE
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.preprocessing.slices import SliceStack
from diffusion_anomaly.registry import UnsupervisedOptions

from ..data.preparation import brain_of, slab_thickness
from ..data.slice_labels import read_labels, slab_labels
from ..data.slices import HEALTHY
from .config import PackageConfig

logger = logging.getLogger(__name__)

# A scan is called unknown when its score is this many deviations above the mean of the scans calibrated on.
UNKNOWN_DEVIATIONS = 4.0


@dataclass(frozen=True)
class CalibrationScan:
    """A validation scan and the labels of its thin slices; without labels all are healthy.

    Attributes:
        scan: with the model's channels.
        brain: mask of what is looked at, uint8 on its grid.
        name: of its first channel's file.
        labels: by file and thin slice: healthy, diseased, or neither.
    """

    scan: Scan
    brain: sitk.Image
    name: str
    labels: dict[tuple[str, int], int] | None

    def healthy(self, stack: SliceStack) -> np.ndarray:
        """Which of the stack's slices count as healthy, ``(n,)`` bool."""
        index = np.array(stack.indices)
        if self.labels is None:
            return np.ones(len(index), bool)
        return slab_labels(self.labels, self.name, index, slab_thickness(stack, self.scan.reference)) == HEALTHY


def calibration_scans(config: PackageConfig) -> Iterator[CalibrationScan]:
    """The scans that a package is calibrated on, the validation scans if nothing else is said, one at a time."""
    prepare = config.read_prepare()
    labels = read_labels(prepare.labels) if prepare.labels else None
    names = prepare.channels or (config.modality,)
    for paths in (paths for split in config.calibrate_on for paths in prepare.scans(split)):
        scan = Scan(dict(zip(names, map(read_volume, paths), strict=True)))
        brain = brain_of(paths[0], scan.reference, prepare, config.brains)
        yield CalibrationScan(scan, brain, paths[0].name, labels)


def learn_latent_threshold(bundle: Bundle, scans: list[CalibrationScan]) -> dict[str, Any]:
    """The percentiles of the KL map on healthy validation slices (Pinaya et al. 2022, section 2.3)."""
    # A stand-in lets the options be made; the KL map does not depend on it.
    detector = Detector(Options(method="unsupervised", overrides={"latent_threshold": 0.0}), bundle=bundle)
    model, options = detector.model, detector.plan.method_options
    assert model is not None and isinstance(options, UnsupervisedOptions)
    values = []
    for scan in scans:
        stack, scales = detector.slices(scan.scan, scan.brain)
        for place in np.flatnonzero(scan.healthy(stack)).tolist():
            batch = make_batch(stack, scales, place, place + 1, seed=0)
            found = Unsupervised().improbability(batch, model, options, lambda calls: None)
            values.append(found.kl[found.inside].cpu().numpy())
    logger.info("latent threshold from %d healthy slices", len(values))
    return fit_latent_threshold(np.concatenate(values), options.latent_percentile)


def calibrate(bundle: Bundle, scans: list[CalibrationScan], config: PackageConfig) -> dict[str, Any]:
    """Table from raw anomaly scores to tail probability, default threshold and score range, on healthy slices alone.

    Of whole images, what all pictures calibrated on look like too.
    """
    detector = Detector(Options(method=config.method), bundle=bundle)
    pieces, scores, shown = [], [], []
    of_images = config.read_prepare().region == IMAGE
    for scan in scans:
        found = detector.raw_map(scan.scan, scan.brain)
        keep = scan.healthy(found.stack)
        brain = found.stack.brain()
        if of_images:
            shown += pictures(*detector.slices(scan.scan, scan.brain))
        scores.append(whole_image_score(found.scores))
        if keep.any():
            pieces.append((found.raw[keep], brain[keep], found.stack.voxel_ml, brain.sum() / brain[keep].sum()))
        logger.info("%s: %s, %d healthy slices", config.method, scan.name, keep.sum())
    names = " and ".join({"train": "training", "val": "validation"}[split] for split in config.calibrate_on)
    source = f"{sum(len(raw) for raw, *_ in pieces)} healthy slices of {len(pieces)} {names} scans"
    calibration = Calibration.fit(np.concatenate([raw[brain] for raw, brain, _, _ in pieces]), source=source)
    spread = spread_of_scans([calibration(raw[brain]) for raw, brain, _, _ in pieces], source)
    if config.healthy:
        judged = [(calibration(found.raw), found.stack.voxel_ml, 1.0) for found in _of_healthy_people(config, detector)]
        source = f"{len(judged)} scan{'s' if len(judged) > 1 else ''} of healthy people"
    else:
        judged = [(calibration(raw), voxel_ml, float(factor)) for raw, _, voxel_ml, factor in pieces]
    if of_images:  # pictures have no volume: each is counted as one, and its pixels as their share of it
        judged = [(levels, 1.0 / levels[0].size, 1.0) for levels, _, _ in judged]
    threshold = threshold_for_false_alarms(
        judged,
        config.false_alarm_share if of_images else config.false_alarm_ml,
        config.false_alarm_quantile,
        peak_margin=config.peak_margin,
        **({"min_component_ml": 0.0} if of_images else {}),
    )
    allowed = f"at most {config.false_alarm_share:.1%} of the image in false alarms on " if of_images else ""
    share = {1.0: "each", 0.5: "half"}.get(config.false_alarm_quantile, f"{config.false_alarm_quantile:.0%}")
    mean, deviation = float(np.mean(scores)), float(np.std(scores))
    return {
        "calibration": calibration.to_dict() | ({"spread": spread} if spread else {}),
        "threshold": {
            "heat": round(threshold, 4),
            **({"peak_margin": config.peak_margin} if config.peak_margin else {}),
            **({} if of_images else {"false_alarm_ml": config.false_alarm_ml}),
            "source": f"{allowed}{share} of {source}",
        },
        "score_range": {"mean": mean, "std": deviation, "upper": mean + UNKNOWN_DEVIATIONS * deviation},
        **({"appearance": Appearance.fit(shown).to_dict()} if of_images else {}),
    }


def _of_healthy_people(config: PackageConfig, detector: Detector) -> Iterator[RawMap]:
    for path in config.healthy:
        volume = read_volume(path)
        yield detector.raw_map(volume, brain_of(path, volume, config.read_prepare(), config.brains))
        logger.info("%s: %s, a healthy person", config.method, path.name)
