"""Which connected components of a mask are findings: one rule for results, evaluation and calibration.

With NumPy alone, since Slicer's own process asks it at every step of a drag.
"""

from __future__ import annotations

import numpy as np

# 50 voxels of 0.9999999 mm are 0.05 ml.
_SIZE_TOLERANCE = 1e-6


def large_and_high(
    owners: np.ndarray, scores: np.ndarray, count: int, voxel_size: float, least_size: float, least_peak: float
) -> np.ndarray:
    """Which components are large and high enough to be findings.

    Args:
        owners: ``(n,)``, the component of each marked voxel, from 1.
        scores: ``(n,)``, of the same voxels. The peak is compared in their own type, as they are with the threshold: a
            peak margin of 0 then drops nothing.
        count: how many components there are.
        voxel_size: of one voxel, in ml, or of one pixel in mm² or pixels.
        least_size: smaller components are dropped, in the unit of ``voxel_size``.
        least_peak: so are those whose highest score is below this, threshold and peak margin together.

    Returns:
        ``(count + 1,)`` bool by component; False at 0, which is none.
    """
    high = np.zeros(count + 1, dtype=bool)
    high[owners[scores >= least_peak]] = True
    sizes = np.bincount(owners, minlength=count + 1) * voxel_size
    return high & (sizes >= least_size * (1 - _SIZE_TOLERANCE))
