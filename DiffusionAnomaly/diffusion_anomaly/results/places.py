"""Roughly where in the brain a finding lies: side, and lobe or deeper structure.

By the brain's own outline alone: a point's place between the brain's borders is looked up in a table that was made from
label maps of 20 heads, see ``training.data.places``. Within the hemispheres the lobes are told apart by planes through
the central sulcus, the lateral sulcus and the parieto-occipital sulcus, as an average brain in MNI space has them. A
lesion that moves the midline, and a tilted head, move the answer with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..models.declaration import BRAIN
from .findings import Finding

TABLE = "places.npz"
HEMISPHERE, DEEP, VENTRICLE, BRAIN_STEM, CEREBELLUM = REGIONS = (
    "hemisphere",
    "basal ganglia or thalamus",
    "ventricle",
    "brain stem",
    "cerebellum",
)
SIDED = (HEMISPHERE, DEEP, CEREBELLUM)
MIDDLE_MM = 5.0  # so close to the middle a side would be a guess
# A stray voxel of the mask is no border of the brain.
STRAY = 0.002
# Of the largest slice's area: a brain that is so large where the scan ends goes on beyond it.
CUT = 0.2
# The brain of MNI space with cerebellum and stem, in mm right, anterior, superior.
MNI_LOW, MNI_HIGH = np.array([-72.0, -106.0, -64.0]), np.array([72.0, 74.0, 84.0])


@dataclass(frozen=True)
class BrainFrame:
    """The brain's extent, by which points are placed.

    Attributes:
        low, high: borders in mm right, anterior, superior.
        whole: whether the scan shows it from top to bottom; else only sides are told.
    """

    low: np.ndarray
    high: np.ndarray
    whole: bool

    @classmethod
    def of(cls, brain: sitk.Image) -> BrainFrame | None:
        """The frame of a mask; None of an empty one."""
        inside = sitk.GetArrayViewFromImage(brain) != 0
        counts = [inside.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in (2, 1, 0)]  # i, j, k
        if not counts[0].any():
            return None
        ends = []
        for count in counts:
            share = np.cumsum(count) / count.sum()
            ends.append((int(np.searchsorted(share, STRAY)), int(np.searchsorted(share, 1 - STRAY))))
        corners = np.array(
            [_ras(brain, [float(ends[axis][side >> axis & 1]) for axis in range(3)]) for side in range(8)]
        )
        direction = np.abs(np.array(brain.GetDirection()).reshape(3, 3))
        upright = int(np.argmax(direction[2]))
        slices = counts[upright]
        cut = max(slices[0], slices[-1]) > CUT * slices.max()
        return cls(corners.min(0), corners.max(0), not cut)

    def place(self, ras: Sequence[float]) -> str:
        """The place of a point in mm right, anterior, superior, in words; empty outside the brain."""
        share = (np.asarray(ras) - self.low) / np.maximum(self.high - self.low, 1e-6)
        if np.any(share < -0.05) or np.any(share > 1.05):
            return ""
        across = ras[0] - (self.low[0] + self.high[0]) / 2
        side = "" if abs(across) < MIDDLE_MM else "right" if across > 0 else "left"
        if not self.whole:
            return f"{side} side" if side else "near the midline"
        region = region_at(share)
        if region == HEMISPHERE:
            name = f"{lobe_at(share)} lobe"
            return f"{side} {name}" if side else f"{name}, near the midline"
        return f"{side} {region}" if side and region in SIDED else region


def with_places(findings: Sequence[Finding], brain: sitk.Image, region: str = BRAIN) -> list[Finding]:
    """The findings with their places; those of a picture have none, nor those of another region than the brain."""
    has_places = bool(findings) and findings[0].area_pixels is None and region == BRAIN
    frame = BrainFrame.of(brain) if has_places else None
    if frame is None:
        return list(findings)
    return [replace(finding, place=frame.place(finding.centroid_ras)) for finding in findings]


def region_at(share: np.ndarray) -> str:
    """The most frequent of ``REGIONS`` there, of a point in shares of the brain's extent from left, back and below."""
    table = _table()
    index = np.clip((share * table.shape).astype(int), 0, np.array(table.shape) - 1)
    return REGIONS[int(table[tuple(index)])]


def lobe_at(share: np.ndarray) -> str:
    """The lobe at a point of a hemisphere, in shares as for ``region_at``.

    >>> lobe_at(np.array([0.3, 0.9, 0.5])), lobe_at(np.array([0.9, 0.6, 0.25])), lobe_at(np.array([0.4, 0.05, 0.5]))
    ('frontal', 'temporal', 'occipital')
    """
    x, y, z = MNI_LOW + share * (MNI_HIGH - MNI_LOW)
    if y < -62 - 0.35 * (z + 20):  # behind the parieto-occipital sulcus and the preoccipital notch
        return "occipital"
    if abs(x) > 18 and y < 22 and z < -10 + (20 - y) * 0.58:  # below the lateral sulcus
        return "temporal"
    return "frontal" if y > -2 - 0.55 * (z - 20) else "parietal"  # before or behind the central sulcus


@cache
def _table() -> np.ndarray:
    with np.load(Path(__file__).with_name(TABLE)) as arrays:
        return arrays["regions"]


def _ras(image: sitk.Image, index: Sequence[float]) -> tuple[float, float, float]:
    left, posterior, superior = image.TransformContinuousIndexToPhysicalPoint(index)
    return -left, -posterior, superior
