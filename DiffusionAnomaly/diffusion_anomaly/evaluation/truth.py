"""One scan's reference, and what an anomaly map is worth against it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..detection.calibration import Calibration
from ..io.orientation import Orientation
from ..io.volume import Volume, read_anomaly_map, read_mask, read_volume
from ..results.result import Result
from . import metrics
from .dataset import Pair
from .froc import LEAST_SHARE, Froc
from .metrics import Lesions
from .reliability import FreeSlices
from .statistics import Case, Sweep

# A slice counts as tumour-free when it is at least this many slices, and this far, from any with tumour.
FREE_SLICES = 3
FREE_MM = 15.0
# A slice's score is the mean score of this share of its highest-scoring brain voxels.
HIGHEST = 0.01
# Thresholds tried for the best common Dice, and kept per patient for the interval of pooled average
# precision.
DICE_THRESHOLDS = 64
CURVE_POINTS = 1024


@dataclass(frozen=True)
class Truth:
    """One scan's reference and brain, as canonical axial arrays."""

    brain_image: sitk.Image
    orientation: Orientation
    reference: np.ndarray
    brain: np.ndarray
    voxel_ml: float
    slice_mm: float

    @classmethod
    def of(cls, volume: Volume, reference: sitk.Image, brain: sitk.Image) -> Truth:
        orientation = Orientation.of(volume.image)
        tumour, inside = (orientation.view(sitk.GetArrayFromImage(mask)) != 0 for mask in (reference, brain))
        voxel_ml = math.prod(volume.image.GetSpacing()) / 1000
        return cls(brain, orientation, tumour, inside, voxel_ml, orientation.spacing(volume.image)[0])

    def view(self, image: sitk.Image) -> np.ndarray:
        return self.orientation.view(sitk.GetArrayFromImage(image))

    @property
    def tumour_slices(self) -> np.ndarray:
        return np.asarray(self.reference.any(axis=(1, 2)))

    @property
    def free_slices(self) -> np.ndarray:
        """Slices with brain that are far from any tumour."""
        far = max(FREE_SLICES, math.ceil(FREE_MM / self.slice_mm - 1e-6))
        return (metrics.slice_distance(self.tumour_slices) >= far) & self.brain.any(axis=(1, 2))


def read_truth(pair: Pair, brain: Path) -> Truth:
    volume = read_volume(pair.scan)
    return Truth.of(volume, read_mask(pair.reference, volume), read_mask(brain, volume))


def compare(
    name: str, truth: Truth, result: Result, calibration: Calibration, seconds: float, brain_given: bool
) -> Case:
    anomaly_map, predicted = truth.view(result.anomaly_map), truth.view(result.mask) != 0
    outside = int(np.count_nonzero(truth.reference & ~truth.brain))
    lesion_scores, other_scores = (
        anomaly_map[truth.reference & truth.brain],
        anomaly_map[truth.brain & ~truth.reference],
    )
    raw = calibration.inverse(anomaly_map[truth.brain])
    by_otsu = np.zeros_like(truth.brain)
    by_otsu[truth.brain] = raw >= metrics.otsu_threshold(raw)
    judged = [
        *np.flatnonzero(truth.tumour_slices & truth.brain.any(axis=(1, 2))),
        *np.flatnonzero(truth.free_slices),
    ]
    return Case(
        name=name,
        reference_ml=float(truth.reference.sum() * truth.voxel_ml),
        outside_brain_ml=float(outside * truth.voxel_ml),
        predicted_ml=float(predicted.sum() * truth.voxel_ml),
        dice=metrics.dice(predicted, truth.reference),
        average_precision=metrics.average_precision(lesion_scores, other_scores, outside),
        average_precision_in_brain=metrics.average_precision(lesion_scores, other_scores),
        otsu_dice=metrics.dice(by_otsu, truth.reference),
        voxel_auroc=metrics.auroc(lesion_scores, other_scores, outside) if truth.reference.any() else math.nan,
        outside_brain_voxels=outside,
        lesions=Lesions.of(truth.reference, truth.voxel_ml).match(predicted),
        free=FreeSlices.of(name, anomaly_map, predicted, truth.brain, truth.free_slices, truth.voxel_ml),
        score=result.score,
        score_warning=result.score_warning is not None,
        seconds=seconds,
        brain_given=brain_given,
        input_sha256=str(result.provenance["input"]["sha256"]),
        lesion_scores=np.sort(lesion_scores),
        slice_scores=np.array([metrics.highest_mean(anomaly_map[k][truth.brain[k]], HIGHEST) for k in judged]),
        slice_has_lesion=truth.tumour_slices[judged],
    )


def sweep(
    cases: Sequence[Case],
    anomaly_maps: Iterator[tuple[Path, Truth]],
    threshold: float,
    min_volume_ml: float,
    peak_margin: float = 0.0,
) -> Sweep:
    """All patients' curves at common thresholds: a second pass over the anomaly maps, one in memory at a time.

    Pooled average precision is exact (see ``metrics``). The best common Dice is the best of
    ``DICE_THRESHOLDS`` thresholds, equally spaced by rank among the scores of all lesion voxels, and the
    stored one; each is judged after the components are dropped that are dropped in use. Between two of them recall
    changes by less than 1/63.

    Args:
        cases: of one run.
        anomaly_maps: anomaly map file and truth of each case, in the same order.
        threshold: the stored one.
        min_volume_ml: smaller components are dropped.
        peak_margin: so are those whose highest score does not exceed a threshold by this much.
    """
    values, counts = metrics.distinct(np.concatenate([case.lesion_scores for case in cases]))
    missed = np.array([case.outside_brain_voxels for case in cases])
    negatives = np.zeros(len(values), np.int64)
    points = metrics.thin(values, CURVE_POINTS)
    thresholds = np.union1d(metrics.thin(values[values > 0], DICE_THRESHOLDS), [threshold])
    true_positives, false_positives, dices, matches = [], [], [], []
    for case, (path, truth) in zip(cases, anomaly_maps, strict=True):
        anomaly_map = truth.view(read_anomaly_map(path).image)
        others = anomaly_map[truth.brain & ~truth.reference]
        negatives += metrics.at_least(others, values)
        true_positives.append(metrics.at_least(case.lesion_scores, points))
        false_positives.append(metrics.at_least(others, points))
        # The anomaly score is 0 outside the brain, so components are looked for in its bounding box alone.
        box = ndimage.find_objects((truth.brain | truth.reference).astype(np.uint8))[0]
        lesions = Lesions.of(truth.reference[box], truth.voxel_ml)
        scores = anomaly_map[box]
        masks = [metrics.findings_mask(scores, t, truth.voxel_ml, min_volume_ml, peak_margin) for t in thresholds]
        dices.append([metrics.dice(mask, truth.reference[box]) for mask in masks])
        matches.append([lesions.match(mask, LEAST_SHARE) for mask in masks])
    return Sweep(
        average_precision=metrics.average_precision_of_counts(counts, negatives, int(missed.sum())),
        average_precision_in_brain=metrics.average_precision_of_counts(counts, negatives),
        missed=missed,
        true_positives=np.array(true_positives),
        false_positives=np.array(false_positives),
        thresholds=thresholds,
        dice=np.array(dices),
        froc=Froc.of(matches),
    )
