"""What the numbers of a CT are: Hounsfield units, a window of them, or stored numbers that nobody has rescaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..errors import InputError

NEGATIVE_HU = -5.0  # a window's numbers are 0 and more, but for what interpolation adds
BRAIN_HU = (5.0, 70.0)  # the median of a brain lies between, bleeding or not
SATURATED_SHARE = 0.01  # of the voxels that have the highest value in a window that shows bone white
WHITE = 0.005  # of the range below the highest value
# Scanners store water as about 1024 and air as 0. Of a head in Hounsfield units less than a fiftieth of all voxels has
# such values, which are dense bone; of stored numbers, tissue has them.
STORED_TISSUE, STORED_SHARE = (980.0, 1130.0), 0.04
ENOUGH = 2_000_000  # voxels, evenly spread, that stand for all


@dataclass(frozen=True)
class GreyKind:
    """What a CT's numbers are.

    Attributes:
        is_hounsfield: whether they are Hounsfield units; else a window of them.
        low, high: of a window, the values that air and bone have; else the range.
    """

    is_hounsfield: bool
    low: float
    high: float


def grey_kind(image: sitk.Image, inside: np.ndarray | None = None) -> GreyKind:
    """Tell what the numbers of a CT are.

    Args:
        image: the CT.
        inside: values inside the skull, where they are known: they tell a stripped brain in Hounsfield units.

    Raises:
        InputError: for stored numbers without rescale, and for what is no CT.
    """
    values = sitk.GetArrayViewFromImage(image).reshape(-1)
    values = values[:: max(1, values.size // ENOUGH)]
    low, high = float(values.min()), float(values.max())
    found = f"from {low:g} to {high:g}"
    tissue = ((values >= STORED_TISSUE[0]) & (values <= STORED_TISSUE[1])).mean()
    if tissue >= STORED_SHARE or (low >= 0 and high > STORED_TISSUE[1]):
        raise InputError(
            f"The CT's values, {found}, are the numbers that the scanner stored and no Hounsfield units: tissue has "
            "about 1000 instead of 0 to 100. Or it is no CT.",
            "Convert the scan again with the rescale slope and intercept of its header, or subtract 1024.",
        )
    # Whatever was cut off, negative numbers are Hounsfield units.
    known = inside is not None and inside.size > 0 and BRAIN_HU[0] <= float(np.median(inside)) <= BRAIN_HU[1]
    if low <= NEGATIVE_HU or known:
        return GreyKind(True, low, high)
    if low < high and (values >= high - WHITE * (high - low)).mean() >= SATURATED_SHARE:
        return GreyKind(False, low, high)
    raise InputError(
        f"The scan's values, {found}, are no CT's: neither Hounsfield units, in which air has -1000, nor a window in "
        "which bone is white.",
        "Give a CT in Hounsfield units, or in the window of the brain.",
    )
