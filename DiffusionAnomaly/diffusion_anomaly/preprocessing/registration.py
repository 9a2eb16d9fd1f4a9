"""Rigid registration of one channel onto another: rotation and translation by mutual information.

SimpleITK's framework with Mattes' mutual information (Mattes et al. 2003), from coarse to fine. The samples are drawn
with one seed and added up by one thread, so that a result depends neither on the machine's cores nor on chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..errors import InputError

SPACING = 2.0  # mm: finer voxels are averaged, which costs no accuracy below a voxel and most of the time
BINS, SAMPLES, SEED = (
    32,
    40_000,
    1,
)  # samples a level; four times as many gave the same to 0.1 mm, in four times the time
SHRINK, SMOOTH_MM = (4, 2, 1), (4.0, 2.0, 1.0)
# Beyond these it is more likely that the registration went astray than that somebody moved so far in one session.
MOST_SHIFT_MM, MOST_ROTATION_DEGREES = 40.0, 30.0
# A head that lies right already is moved by less than this, and the metric may be a hair worse by its sampling.
NOTHING_MM = 0.5


@dataclass(frozen=True)
class Registration:
    """How a channel was moved.

    Attributes:
        transform: from points of the fixed image to points of the moving one, as ``sitk.Resample`` takes it.
        shift_mm: how far the middle of the fixed image moves.
        rotation_degrees: about one axis.
        before, after: mutual information of the two images; larger is better.
    """

    transform: sitk.Transform
    shift_mm: float
    rotation_degrees: float
    before: float
    after: float


def register(
    fixed: sitk.Image, moving: sitk.Image, what: str = "the channel", *, most_shift_mm: float = MOST_SHIFT_MM
) -> Registration:
    """Find the rigid motion that lays ``moving`` on ``fixed``.

    Args:
        fixed, moving: 3-D, float32, of several slices each.
        what: the moving channel, for messages.
        most_shift_mm: beyond which it is no motion of this head; larger between two visits.

    Raises:
        InputError: when an image is flat or single slices, or what comes out is no better than the headers or farther
            than a head moves: then nothing may be said of where the channel lies.
    """
    with _one_thread():
        return _register(_prepared(fixed, what), _prepared(moving, what), what, most_shift_mm)


def _register(fixed: sitk.Image, moving: sitk.Image, what: str, most_shift_mm: float) -> Registration:
    centre = _middle(fixed)
    start = _start(fixed, moving, centre)
    method = _method()
    method.SetMetricSamplingStrategy(method.RANDOM)
    shares = [min(1.0, SAMPLES * factor**3 / fixed.GetNumberOfPixels()) for factor in SHRINK]
    method.SetMetricSamplingPercentagePerLevel(shares, SEED)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=100, gradientMagnitudeTolerance=1e-7
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SMOOTH_MM)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    before = _information(fixed, moving, _rigid(centre))
    try:
        method.Execute(fixed, moving)
        after = _information(fixed, moving, start)
    except RuntimeError as error:
        raise _failed(what, "the two images hardly overlap") from error
    matrix = np.array(start.GetMatrix()).reshape(3, 3)
    rotation = float(np.degrees(np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))))
    shift = float(np.linalg.norm(np.subtract(start.TransformPoint(centre), centre)))
    if shift > most_shift_mm or rotation > MOST_ROTATION_DEGREES:
        raise _failed(what, f"it would move it by {shift:.1f} mm and {rotation:.1f}°, farther than a head moves")
    if after <= before:
        if shift > NOTHING_MM or rotation > NOTHING_MM:
            raise _failed(what, "it lies no better than by its header")
        return Registration(_rigid(centre), 0.0, 0.0, before, before)
    return Registration(start, shift, rotation, before, after)


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK splits the metric by its global number of threads, whatever the method's own is."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _failed(what: str, why: str) -> InputError:
    return InputError(
        f"The registration of {what} failed: {why}.",
        "Check that the channels are of one head; leave out --register where the headers are right, or register them "
        "with another program.",
    )


def _prepared(image: sitk.Image, what: str) -> sitk.Image:
    """The image at about 2 mm, without the extremes that would take most of the histogram's bins."""
    if min(image.GetSize()) < 4:
        raise InputError(f"{what} has too few slices to be registered.", "Leave out --register.")
    low, high = np.percentile(sitk.GetArrayViewFromImage(image), (0.5, 99.5))
    if not high > low:
        raise InputError(f"{what} cannot be registered: it holds nearly one value everywhere.", "Leave it out.")
    voxels = zip(image.GetSpacing(), image.GetSize(), strict=True)
    factors = [max(1, min(int(SPACING / edge), n // 4)) for edge, n in voxels]
    return sitk.BinShrink(sitk.Clamp(image, sitk.sitkFloat32, float(low), float(high)), factors)


def _middle(image: sitk.Image) -> tuple[float, float, float]:
    """The centre of mass of what is brighter than most of the outermost slices, about which a head is turned."""
    values = sitk.GetArrayViewFromImage(image)
    weights = np.maximum(values - float(np.median(values[[0, -1]])), 0.0) + 1e-9
    total = weights.sum(dtype=np.float64)
    index = [
        float((weights.sum(axis=tuple(a for a in range(3) if a != axis)) * np.arange(n)).sum(dtype=np.float64) / total)
        for axis, n in enumerate(values.shape)
    ]
    x, y, z = image.TransformContinuousIndexToPhysicalPoint(index[::-1])
    return x, y, z


def _rigid(centre: tuple[float, float, float], shift: np.ndarray | None = None) -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre)
    if shift is not None:
        transform.SetTranslation([float(part) for part in shift])
    return transform


def _start(fixed: sitk.Image, moving: sitk.Image, centre: tuple[float, float, float]) -> sitk.Euler3DTransform:
    """The headers' own alignment, or the one of the two middles where that is better."""
    by_header = _rigid(centre)
    by_middle = _rigid(centre, np.subtract(_middle(moving), centre))
    return max((by_header, by_middle), key=lambda transform: _information(fixed, moving, transform))


def _information(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Mutual information over all voxels where both are; 0 where they hardly overlap."""
    method = _method()
    method.SetInitialTransform(transform, inPlace=False)
    try:
        return -float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:
        return 0.0


def _method() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricAsMattesMutualInformation(BINS)
    return method
