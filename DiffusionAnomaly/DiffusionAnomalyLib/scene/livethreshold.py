"""Another threshold at once: mask and findings from the anomaly map, by the engine's own function, without inference.

Only the box around what reaches the lowest threshold is processed, so that a slider can be dragged: of a head of
256 x 256 x 160 voxels that is a quarter, and no voxel outside of it can ever be in the mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.io.orientation import Orientation
from diffusion_anomaly.models.declaration import BRAIN
from diffusion_anomaly.options import margin_of
from diffusion_anomaly.results.findings import Finding, pixel_area, segment_arrays, size_unit
from diffusion_anomaly.results.places import BrainFrame

# One healthy voxel in ten has a higher anomaly score; below, scores are not shown and mean nothing.
LOWEST = 1.0


@dataclass(frozen=True)
class Thresholded:
    """What is left of the anomaly map at a threshold.

    Attributes:
        mask: uint8, 0 or 1, k j i, of the box alone.
        labels: the same shape; the value is the finding's id.
        findings: by descending burden, in the whole volume's indices.
        threshold: the anomaly score from which a voxel is in the mask.
        least: smaller findings are dropped, in the unit of ``LiveThreshold``.
    """

    mask: np.ndarray
    labels: np.ndarray
    findings: list[Finding]
    threshold: float
    least: float


class LiveThreshold:
    """Thresholds one anomaly map again and again.

    >>> live = LiveThreshold(anomalyMap)  # doctest: +SKIP
    >>> live.at(3.5, minVolumeMl=0.05).findings  # doctest: +SKIP

    Args:
        anomalyMap: the engine's.
        minArea: of a picture, whose findings have areas, as its provenance says.
        isBrain: whether the model looked at the brain: then findings say where in it they lie.
        peakMargin: findings whose highest score does not exceed the threshold by this much are dropped.

    Attributes:
        peakMargin: likewise.
        box: where in the whole volume the box lies, k j i.
        scores: of the box, k j i.
        peak: the highest score.
        unit: of findings' sizes.
        voxelSize: in that unit.
    """

    def __init__(
        self, anomalyMap: sitk.Image, minArea: float | None = None, isBrain: bool = False, peakMargin: float = 0.0
    ) -> None:
        values = sitk.GetArrayViewFromImage(anomalyMap)
        self._minArea = minArea
        self.peakMargin = peakMargin
        self.unit = size_unit(anomalyMap.GetSpacing(), minArea is not None)
        isPicture = minArea is not None
        self.voxelSize = pixel_area(anomalyMap) if isPicture else math.prod(anomalyMap.GetSpacing()) / 1000
        self.shape: tuple[int, ...] = values.shape
        self.peak = float(values.max(initial=0.0))
        shown = values >= LOWEST
        bounds = []
        for axis in range(3):
            places = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
            bounds.append((int(places[0]), int(places[-1]) + 1) if places.size else (0, 1))
        self.box: tuple[slice, ...] = tuple(slice(*bound) for bound in bounds)
        self._first = [bound[0] for bound in reversed(bounds)]
        self._inBox = sitk.RegionOfInterest(anomalyMap, [stop - start for start, stop in reversed(bounds)], self._first)
        self.scores = sitk.GetArrayViewFromImage(self._inBox)
        self._sliceAxis = Orientation.of(anomalyMap).axes[0]
        _slices, rows, columns = Orientation.stored(anomalyMap).axes
        self._firstPixel = (self._first[columns], self._first[rows])
        # The map is 0 outside the brain, and hardly anywhere else.
        self._frame = BrainFrame.of(anomalyMap > 0) if isBrain and not isPicture else None

    @classmethod
    def of(cls, anomalyMap: sitk.Image, document: Mapping[str, Any]) -> LiveThreshold:
        """Of the map that the provenance in ``document`` tells of.

        Raises:
            InputError: for a peak margin that cannot be.
        """
        options = document.get("options", {})
        isBrain = document.get("region", BRAIN) == BRAIN
        return cls(anomalyMap, options.get("min_area"), isBrain, margin_of(options))

    def at(self, threshold: float, minVolumeMl: float) -> Thresholded:
        """Mask and findings at a threshold; one below ``LOWEST`` is taken for ``LOWEST``."""
        threshold = max(threshold, LOWEST)
        mask, labels, findings = segment_arrays(
            self._inBox, threshold, minVolumeMl, min_area=self._minArea, peak_margin=self.peakMargin
        )
        return Thresholded(
            mask,
            labels,
            [self._inWhole(finding) for finding in findings],
            threshold,
            minVolumeMl if self._minArea is None else self._minArea,
        )

    def _inWhole(self, finding: Finding) -> Finding:
        """The finding with the whole volume's indices instead of the box's."""
        low, high = (
            tuple(index + first for index, first in zip(corner, self._first, strict=True))
            for corner in finding.bounding_box
        )
        offset = self._first[self._sliceAxis]
        first, last = finding.slices
        pixel = finding.centroid_pixel
        if pixel is not None:
            pixel = (pixel[0] + self._firstPixel[0], pixel[1] + self._firstPixel[1])
        return replace(
            finding,
            bounding_box=(low, high),
            slices=(first + offset, last + offset),
            centroid_pixel=pixel,
            place="" if self._frame is None else self._frame.place(finding.centroid_ras),
        )
