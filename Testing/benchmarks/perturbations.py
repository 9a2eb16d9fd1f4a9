"""Scans as another scanner, coil, protocol or head would have given them, with their masks moved along.

All are deterministic functions of the scan and a seed. Geometry is never faked: a perturbed scan is a scan with a
size, spacing, origin and direction of its own, and reference and brain lie where the same anatomy now lies.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.io.orientation import Orientation

SLICE, ROW, COLUMN = range(3)  # canonical axes: inferior-superior, anterior-posterior, right-left
THICKEST_MM = 6.0
THICK_MM = 3.0  # slices are thick above this, and then two are merged even where that makes more than THICKEST_MM


@dataclass(frozen=True)
class Sample:
    """A scan with its masks, all on one grid.

    Attributes:
        scan: float32.
        reference: uint8, what should be found.
        brain: uint8, the brain found in the unperturbed scan.
    """

    scan: sitk.Image
    reference: sitk.Image
    brain: sitk.Image


Change = Callable[[Sample, np.random.Generator], "Sample | None"]
"""None where the data do not allow it."""


@dataclass(frozen=True)
class Perturbation:
    """A way to change a scan.

    Attributes:
        name: as the table calls it; says how strong it is.
        change: what it does.
        cuts: whether it only takes voxels away, so that the unperturbed anomaly scores can be judged on the same
            voxels.
    """

    name: str
    change: Change
    cuts: bool = False

    def __call__(self, sample: Sample, seed: int, patient: str) -> Sample | None:
        """The changed sample; each patient gets noise of its own, the same for all methods and at every time."""
        return self.change(sample, np.random.default_rng([seed, zlib.crc32(f"{patient} {self.name}".encode())]))


def rician_noise(level: float) -> Change:
    """Noise of a magnitude image (Gudbjartsson & Patz 1995); its deviation as a share of the brain's median intensity.

    Voxels at the scan's lowest value stay: stripped scans and scans with masked air have no noise there.
    """

    def change(sample: Sample, rng: np.random.Generator) -> Sample:
        values, low = _above_lowest(sample)
        sigma = level * float(np.median(values[_inside(sample)]))
        real, imaginary = (rng.normal(0.0, sigma, values.shape) for _ in range(2))
        return _with_values(sample, np.where(values > 0, np.hypot(values + real, imaginary), 0.0) + low)

    return change


def bias_field(level: float, degree: int = 3) -> Change:
    """A smooth field, a random polynomial, that multiplies the scan by 1 - level/2 to 1 + level/2 inside the brain.

    So counts BrainWeb its "20 %" and "40 %" (Cocosco et al. 1997).
    """

    def change(sample: Sample, rng: np.random.Generator) -> Sample:
        values, low = _above_lowest(sample)
        powers = np.indices((degree + 1,) * 3).sum(axis=0)
        coefficients = np.where((powers > 0) & (powers <= degree), rng.normal(size=powers.shape), 0.0)
        x, y, z = (np.linspace(-1.0, 1.0, count) for count in values.shape)
        field = np.asarray(np.polynomial.legendre.leggrid3d(x, y, z, coefficients))
        least, most = (float(end) for end in (field[_inside(sample)].min(), field[_inside(sample)].max()))
        if most > least:  # else a brain of one voxel
            field = 1.0 + level * ((field - least) / (most - least) - 0.5)
            values = values * np.maximum(field, 0.1)  # far from the brain a polynomial runs away
        return _with_values(sample, values + low)

    return change


def gamma(exponent: float) -> Change:
    """Another contrast curve: intensity to that power, scaled so that the brain's brightest voxels keep theirs."""

    def change(sample: Sample, rng: np.random.Generator) -> Sample:
        values, low = _above_lowest(sample)
        bright = max(float(np.percentile(values[_inside(sample)], 99.9)), np.finfo(np.float32).tiny)
        return _with_values(sample, bright * (values / bright) ** exponent + low)

    return change


def merged_slices(count: int) -> Change:
    """Slices that many times as thick: the mean of neighbours. Reference where at least half of it was reference.

    What is left over at the end of the stack is dropped. None where slices would become thicker than ``THICKEST_MM``,
    unless two slices that are thick already are merged.
    """

    def change(sample: Sample, rng: np.random.Generator) -> Sample | None:
        axis, spacing = _slice_axis(sample.scan)
        allowed = count * spacing <= THICKEST_MM + 1e-3 or (count == 2 and spacing > THICK_MM)
        if not allowed or sample.scan.GetSize()[axis] < count:
            return None
        factors = [count if a == axis else 1 for a in range(3)]
        # BinShrink takes means of whole bins and puts the new voxels' centres in the middle of the bins.
        scan, reference, brain = (
            sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), factors)
            for image in (sample.scan, sample.reference, sample.brain)
        )
        return Sample(scan, _at_least_half(reference), _at_least_half(brain))

    return change


def every_second_slice(sample: Sample, rng: np.random.Generator) -> Sample | None:
    """Gaps as wide as the slices, for slices that are thick; None for others."""
    axis, spacing = _slice_axis(sample.scan)
    if spacing <= THICK_MM:
        return None
    factors = [2 if a == axis else 1 for a in range(3)]
    return _each(sample, lambda image: image[:: factors[0], :: factors[1], :: factors[2]])


def rotated(degrees: float, axis: int) -> Change:
    """The head turned about a canonical axis of the scan, looked at on the scan's own grid, enlarged to hold it all."""

    def change(sample: Sample, rng: np.random.Generator) -> Sample:
        scan = sample.scan
        orientation = Orientation.of(scan)
        direction = np.array(scan.GetDirection()).reshape(3, 3)[:, orientation.axes[axis]]
        size = np.array(scan.GetSize())
        center = scan.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2.0).tolist())
        turn = sitk.VersorTransform(direction.tolist(), math.radians(degrees), center)
        grid = _grid_around(scan, turn.GetInverse())
        low = float(sitk.GetArrayViewFromImage(scan).min())
        return Sample(
            sitk.Resample(scan, grid, turn, sitk.sitkLinear, low, sitk.sitkFloat32),
            *(
                _at_least_half(sitk.Resample(mask, grid, turn, sitk.sitkLinear, 0.0, sitk.sitkFloat32))
                for mask in (sample.reference, sample.brain)
            ),
        )

    return change


def lower_part_cut(share: float) -> Change:
    """The field of view begins that share of the brain's height above the brain's lowest slice."""

    def change(sample: Sample, rng: np.random.Generator) -> Sample:
        first, last = _brain_range(sample, SLICE)
        start = first + math.ceil(share * (last + 1 - first))
        return _keep(sample, SLICE, start, Orientation.of(sample.scan).view(_array(sample.scan)).shape[SLICE])

    return change


def side_cut(share: float) -> Change:
    """The field of view ends that share of the brain's width inside the brain, on the side with less reference."""

    def change(sample: Sample, rng: np.random.Generator) -> Sample:
        first, last = _brain_range(sample, COLUMN)
        cut = math.ceil(share * (last + 1 - first))
        view = Orientation.of(sample.scan).view
        columns = np.count_nonzero(view(_array(sample.reference)), axis=(SLICE, ROW))
        middle = (first + last + 1) // 2
        if columns[:middle].sum() <= columns[middle:].sum():
            return _keep(sample, COLUMN, first + cut, len(columns))
        return _keep(sample, COLUMN, 0, last + 1 - cut)

    return change


PERTURBATIONS = (
    Perturbation("noise 5 %", rician_noise(0.05)),
    Perturbation("noise 10 %", rician_noise(0.10)),
    Perturbation("bias field 20 %", bias_field(0.2)),
    Perturbation("bias field 40 %", bias_field(0.4)),
    Perturbation("gamma 0.7", gamma(0.7)),
    Perturbation("gamma 1.4", gamma(1.4)),
    *(Perturbation(f"{count} slices merged", merged_slices(count)) for count in (2, 3, 4, 6)),
    Perturbation("every second slice left out", every_second_slice),
    Perturbation("rotated 15° in-plane", rotated(15, SLICE)),
    Perturbation("tilted 15° forwards", rotated(15, COLUMN)),
    Perturbation("tilted 15° sideways", rotated(15, ROW)),
    Perturbation("lower third of the brain cut off", lower_part_cut(1 / 3), cuts=True),
    Perturbation("a fifth of the brain's width cut off", side_cut(1 / 5), cuts=True),
)


def _array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(image)


def _inside(sample: Sample) -> np.ndarray:
    return _array(sample.brain) != 0


def _above_lowest(sample: Sample) -> tuple[np.ndarray, float]:
    """The scan's values above its lowest, float64, and that."""
    values = _array(sample.scan).astype(np.float64)
    low = float(values.min())
    return values - low, low


def _with_values(sample: Sample, values: np.ndarray) -> Sample:
    scan = sitk.GetImageFromArray(values.astype(np.float32))
    scan.CopyInformation(sample.scan)
    return Sample(scan, sample.reference, sample.brain)


def _each(sample: Sample, function: Callable[[sitk.Image], sitk.Image]) -> Sample:
    return Sample(function(sample.scan), function(sample.reference), function(sample.brain))


def _at_least_half(share: sitk.Image) -> sitk.Image:
    """Where a mask's share of a voxel is a half or more; a rounding error below a half counts too."""
    return sitk.Cast(share >= 0.5 - 1e-4, sitk.sitkUInt8)


def _slice_axis(image: sitk.Image) -> tuple[int, float]:
    """The image's own axis through the slices, and their spacing in mm."""
    axis = Orientation.of(image).axes[SLICE]
    return axis, image.GetSpacing()[axis]


def _brain_range(sample: Sample, axis: int) -> tuple[int, int]:
    """First and last canonical index with brain along a canonical axis."""
    brain = Orientation.of(sample.scan).view(_array(sample.brain)) != 0
    hits = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
    return int(hits[0]), int(hits[-1])


def _keep(sample: Sample, axis: int, start: int, stop: int) -> Sample:
    """Canonical indices start..stop-1 along a canonical axis."""
    orientation = Orientation.of(sample.scan)
    own = orientation.axes[axis]
    size = list(sample.scan.GetSize())
    first = size[own] - stop if orientation.flipped[axis] else start
    index = [first if a == own else 0 for a in range(3)]
    size[own] = stop - start
    return _each(sample, lambda image: sitk.RegionOfInterest(image, size, index))


def _grid_around(image: sitk.Image, move: sitk.Transform) -> sitk.Image:
    """The image's grid, enlarged by whole voxels until it holds the image's outer edges after they have moved."""
    ends: Sequence[tuple[float, float]] = [(-0.5, count - 0.5) for count in image.GetSize()]
    corners = [(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]]
    moved = np.array(
        [
            image.TransformPhysicalPointToContinuousIndex(
                move.TransformPoint(image.TransformContinuousIndexToPhysicalPoint(corner))
            )
            for corner in corners
        ]
    )
    first = np.floor(moved.min(axis=0) + 0.5 + 1e-6).astype(int)
    last = np.ceil(moved.max(axis=0) - 0.5 - 1e-6).astype(int)
    grid = sitk.Image((last + 1 - first).tolist(), sitk.sitkUInt8)
    grid.SetSpacing(image.GetSpacing())
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(first.astype(float).tolist()))
    return grid
