"""Another threshold at once: mask and findings from the heat, by the engine's own function, without inference.

Only the box around what is hot at the lowest threshold is looked at, so that a slider can be dragged: of a head of
256 x 256 x 160 voxels that is a quarter, and no voxel outside of it can ever be in the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.findings import Finding, segment
from diffusion_anomaly.orientation import Orientation

# One healthy voxel in ten is hotter than this; below, heat is not shown and means nothing.
LOWEST = 1.0


@dataclass(frozen=True)
class Thresholded:
    """What is left of the heat at a threshold.

    Attributes:
        mask: uint8, 0 or 1, k j i, of the box alone.
        labels: the same shape; the value is the finding's id.
        findings: by descending burden, in the whole volume's indices.
    """

    mask: np.ndarray
    labels: np.ndarray
    findings: list[Finding]


class LiveThreshold:
    """Thresholds one heat map again and again.

    >>> live = LiveThreshold(heat)  # doctest: +SKIP
    >>> live.at(3.5, minVolumeMl=0.05).findings  # doctest: +SKIP

    Args:
        heat: the engine's heat map.

    Attributes:
        box: where in the whole volume the box lies, k j i.
        heat: of the box, k j i.
        peak: highest heat.
    """

    def __init__(self, heat: sitk.Image) -> None:
        values = sitk.GetArrayViewFromImage(heat)
        self.shape: tuple[int, ...] = values.shape
        self.peak = float(values.max(initial=0.0))
        hot = values >= LOWEST
        bounds = []
        for axis in range(3):
            places = np.flatnonzero(hot.any(axis=tuple(other for other in range(3) if other != axis)))
            bounds.append((int(places[0]), int(places[-1]) + 1) if places.size else (0, 1))
        self.box: tuple[slice, ...] = tuple(slice(*bound) for bound in bounds)
        self._first = [bound[0] for bound in reversed(bounds)]
        self._heat = sitk.RegionOfInterest(heat, [stop - start for start, stop in reversed(bounds)], self._first)
        self.heat = sitk.GetArrayViewFromImage(self._heat)
        self._sliceAxis = Orientation.of(heat).axes[0]

    def at(self, threshold: float, minVolumeMl: float) -> Thresholded:
        """Mask and findings at a threshold; one below ``LOWEST`` is taken for ``LOWEST``."""
        mask, labels, findings = segment(self._heat, max(threshold, LOWEST), minVolumeMl)
        return Thresholded(
            sitk.GetArrayViewFromImage(mask).copy(),
            sitk.GetArrayViewFromImage(labels).copy(),
            [self._inWhole(finding) for finding in findings],
        )

    def _inWhole(self, finding: Finding) -> Finding:
        """The finding with the whole volume's indices instead of the box's."""
        low, high = (
            tuple(index + first for index, first in zip(corner, self._first, strict=True))
            for corner in finding.bounding_box
        )
        offset = self._first[self._sliceAxis]
        first, last = finding.slices
        return replace(finding, bounding_box=(low, high), slices=(first + offset, last + offset))
