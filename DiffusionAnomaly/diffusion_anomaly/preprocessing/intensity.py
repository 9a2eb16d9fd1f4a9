"""From scanner units to what a network reads. One function, called by training and by detection alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import InputError
from .hounsfield import grey_kind

# Medians and percentiles of this many brain voxels, evenly spread, stand for all of them.
ENOUGH_VOXELS = 4_000_000


# A value that so large a share of the voxels outside the brain have is what the scan was filled up with.
FILL_SHARE = 0.2


def values_in_brain(image: sitk.Image, brain: sitk.Image) -> np.ndarray:
    """Intensities inside the brain, float32 ``(K,)``; an even sample of them where there are very many.

    Args:
        image: the scan.
        brain: mask on its grid, not 0 inside.
    """
    inside = sitk.GetArrayViewFromImage(brain) != 0
    values = sitk.GetArrayViewFromImage(image)[inside]
    return values[:: max(1, len(values) // ENOUGH_VOXELS)]


def fill_value(image: sitk.Image, brain: sitk.Image) -> float | None:
    """The value that background was set to, such as 0 in a stripped scan or -1024 in a padded one.

    Args:
        image: the scan.
        brain: mask on its grid, not 0 inside.

    Returns:
        The most frequent value outside the brain where at least a fifth of all voxels there have it; None in a scan
        with air as it was measured.
    """
    outside = sitk.GetArrayViewFromImage(image)[sitk.GetArrayViewFromImage(brain) == 0]
    outside = outside[:: max(1, len(outside) // ENOUGH_VOXELS)]
    if outside.size == 0:
        return None
    values, counts = np.unique(outside, return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if counts[most] >= FILL_SHARE * outside.size else None


class Normalisation(Protocol):
    """The rule a model was trained with, kept in its package."""

    kind: ClassVar[str]

    @property
    def clip_max(self) -> float:
        """The largest value of a normalised image."""
        ...

    def fit(self, values_in_brain: np.ndarray) -> IntensityScale:
        """Scale of one scan from the raw intensities of its brain, any shape.

        Raises:
            InputError: when there is no value.
        """
        ...

    def fit_scan(self, image: sitk.Image, brain: sitk.Image) -> IntensityScale:
        """Scale of one scan.

        Args:
            image: the scan.
            brain: mask on its grid, not 0 inside.

        Raises:
            InputError: when the mask is empty.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for a package's ``normalisation``."""
        ...


def normalisation_from_dict(rule: Mapping[str, Any]) -> Normalisation:
    """From a package's ``normalisation``; without a kind it is by percentiles, as in the first packages.

    Raises:
        InputError: for a kind that is not known, or numbers that make no scale.
    """
    kinds: dict[str, type[PercentileNormalisation | ModeNormalisation | WindowNormalisation]] = {
        cls.kind: cls for cls in (PercentileNormalisation, ModeNormalisation, WindowNormalisation)
    }
    rest = dict(rule)
    kind = rest.pop("kind", PercentileNormalisation.kind)
    if kind not in kinds:
        raise InputError(f"Normalisation is of kind {kind!r}.", f"Known are {', '.join(kinds)}.")
    try:
        return kinds[kind](**rest)
    except TypeError as error:
        raise InputError(f"Normalisation of kind {kind!r} cannot be made: {error}.") from error


@dataclass(frozen=True)
class PercentileNormalisation:
    """Intensities between two percentiles of the brain.

    Robust percentiles inside the brain carry a scan's arbitrary units to [0, clip_max]: the low percentile
    becomes 0, the high percentile becomes `high_value`. With a high percentile of 75 at 0.5 a lesion up to
    twice as bright as most of the brain still lies below the clip, and a large lesion hardly moves the scale.

    >>> scale = PercentileNormalisation().fit(np.linspace(0, 100, 1001))
    >>> scale.low, scale.high
    (5.0, 75.0)
    """

    kind: ClassVar[str] = "percentiles"

    low_percentile: float = 5.0
    high_percentile: float = 75.0
    high_value: float = 0.5
    clip_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low_percentile < self.high_percentile <= 100:
            raise InputError(
                f"Normalisation percentiles are {self.low_percentile} and {self.high_percentile}; "
                "expected 0 <= low < high <= 100."
            )
        if not 0 < self.high_value <= self.clip_max:
            raise InputError(
                f"Normalisation maps to {self.high_value} and clips at {self.clip_max}; "
                "expected 0 < high_value <= clip_max."
            )

    def fit(self, values_in_brain: np.ndarray) -> IntensityScale:
        """Scale of one scan.

        Args:
            values_in_brain: Raw intensities of the whole scan's brain, any shape.

        Raises:
            InputError: when there is no value.
        """
        values = _some(values_in_brain)
        low, high = (float(v) for v in np.percentile(values, (self.low_percentile, self.high_percentile)))
        low, high = (low, high) if high > low else _full_range(values)
        return IntensityScale(low, high, self.high_value, self.clip_max)

    def fit_scan(self, image: sitk.Image, brain: sitk.Image) -> IntensityScale:
        """Scale of one scan, see ``Normalisation.fit_scan``."""
        return self.fit(values_in_brain(image, brain))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class ModeNormalisation:
    """The most common intensity of brain tissue as the unit, which no lesion moves.

    The brain's mode becomes `mode_value`, its lowest half per cent 0. Voxels that hold the value which the background
    was filled with do not count as brain.

    >>> tissue = np.random.default_rng(0).normal(100.0, 8.0, 100_000)
    >>> lesion = np.random.default_rng(1).normal(180.0, 8.0, 40_000)
    >>> scales = [ModeNormalisation().fit(v) for v in (tissue, np.append(tissue, lesion))]
    >>> [round(scale.high / 100.0, 1) for scale in scales]
    [1.0, 1.0]
    """

    kind: ClassVar[str] = "mode"

    low_percentile: float = 0.5
    mode_value: float = 0.42
    clip_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low_percentile < 50:
            raise InputError(f"Normalisation's low percentile is {self.low_percentile}; expected 0 to below 50.")
        if not 0 < self.mode_value <= self.clip_max:
            raise InputError(
                f"Normalisation maps the mode to {self.mode_value} and clips at {self.clip_max}; "
                "expected 0 < mode_value <= clip_max."
            )

    def fit(self, values_in_brain: np.ndarray) -> IntensityScale:
        """Scale of one scan, see ``Normalisation.fit``."""
        values = _some(values_in_brain)
        low = float(np.percentile(values, self.low_percentile))
        mode = tissue_mode(values, low)
        low, mode = (low, mode) if mode > low else _full_range(values)
        return IntensityScale(low, mode, self.mode_value, self.clip_max)

    def fit_scan(self, image: sitk.Image, brain: sitk.Image) -> IntensityScale:
        """Scale of one scan, see ``Normalisation.fit_scan``."""
        values = values_in_brain(image, brain)
        fill = fill_value(image, brain)
        # A mask often takes in some of what surrounds a stripped brain.
        return self.fit(values if fill is None or (values == fill).all() else values[values != fill])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class WindowNormalisation:
    """A fixed window of Hounsfield units, as CT is looked at; `low` becomes 0 and `high` becomes 1.

    A CT that comes in a window already is taken to be in this one: its lowest value becomes 0 and its highest 1.

    >>> scale = WindowNormalisation(0.0, 80.0).fit(np.array([-1000.0, 40.0, 1200.0]))
    >>> scale(np.array([[[-1000.0, 40.0, 1200.0]]]), np.ones((1, 1, 3), bool)).tolist()
    [[[0.0, 0.5, 1.0]]]
    """

    kind: ClassVar[str] = "window"

    low: float
    high: float

    @property
    def clip_max(self) -> float:
        return 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"The window is {self.low:g} to {self.high:g}; expected low < high.")

    def fit(self, values_in_brain: np.ndarray) -> IntensityScale:
        """The window itself, whatever the values."""
        return IntensityScale(self.low, self.high, 1.0, 1.0)

    def fit_scan(self, image: sitk.Image, brain: sitk.Image) -> IntensityScale:
        """Scale of one scan.

        Raises:
            InputError: for numbers that are neither Hounsfield units nor a window of them.
        """
        found = grey_kind(image, values_in_brain(image, brain))
        return self.fit(np.empty(0)) if found.is_hounsfield else IntensityScale(found.low, found.high, 1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


# Of the mode's height above the lowest values. Much narrower, and the steps of a scan of 8 bits show; much wider, and a
# lesion a quarter brighter than white matter is one peak with it.
MODE_BANDWIDTH = 0.05
# Of the median's height above the lowest values: what is darker is fluid, however much of it there is.
LEAST_TISSUE = 0.4
# The darkest peak counts that is at least so high as the highest: a large, even lesion, which is brighter, may be that.
LEAST_PEAK = 0.5


def tissue_mode(values: np.ndarray, low: float) -> float:
    """The most common intensity of tissue: the darkest high peak of a Gaussian kernel estimate of the density.

    Args:
        values: raw intensities of a brain, any shape, at least one.
        low: the lowest ones that count, such as a low percentile; the estimate's bandwidth is relative to it.

    Returns:
        In the units of ``values``; ``low`` itself when no value lies above it.
    """
    above = np.asarray(values, np.float64).ravel() - low
    above = above[above > 0]
    if not above.size:
        return low
    median = float(np.median(above))
    mode = median
    for _ in range(6):  # the bandwidth follows the mode
        step = 0.1 * MODE_BANDWIDTH * mode
        # Values far above all tissue cannot be the mode and would make the histogram long.
        bins = int(4.0 * median / step) + 1
        counts, _ = np.histogram(above, bins, (0.0, bins * step))
        density = ndimage.gaussian_filter1d(counts.astype(np.float64), 10.0, mode="constant")
        centres = (np.arange(bins) + 0.5) * step
        density[centres < LEAST_TISSUE * median] = 0.0
        peaks = np.flatnonzero((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])) + 1
        # Where fluid's flank is cut off there is no peak.
        peaks = peaks[(density[peaks] >= LEAST_PEAK * density.max()) & (density[peaks - 1] > 0)]
        found = float(centres[peaks[0] if peaks.size else density.argmax()])
        if abs(found - mode) <= 0.003 * mode:
            break
        mode = found
    return low + found


def _some(values: np.ndarray) -> np.ndarray:
    """The values in one row.

    Raises:
        InputError: when there is none.
    """
    values = np.asarray(values).ravel()
    if values.size == 0:
        raise InputError(
            "There is no voxel inside the brain mask to take the intensity scale from.",
            "Give a brain mask that covers the brain.",
        )
    return values


def _full_range(values: np.ndarray) -> tuple[float, float]:
    """For few distinct values (a label map, a nearly constant scan).

    A constant brain gets a width of one unit, so that it becomes 0 throughout and nothing divides by zero.
    """
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + max(1.0, abs(low))


@dataclass(frozen=True)
class IntensityScale:
    """One scan's map from raw intensity to [0, clip_max]; `low` becomes 0 and `high` becomes `high_value`."""

    low: float
    high: float
    high_value: float
    clip_max: float

    def __call__(self, images: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Normalised images.

        Args:
            images: Raw intensities, (N, H, W).
            brain: Whether a pixel is brain, same shape.

        Returns:
            float32 in [0, clip_max], same shape, exactly 0 outside the brain.
        """
        scaled = (np.asarray(images, dtype=np.float64) - self.low) * (self.high_value / (self.high - self.low))
        return np.where(brain, np.clip(scaled, 0.0, self.clip_max), 0.0).astype(np.float32)

    def inverse(self, normalised: np.ndarray) -> np.ndarray:
        """Normalised images back to the scan's own units, float32; what was clipped stays clipped."""
        raw = np.asarray(normalised, dtype=np.float64) * ((self.high - self.low) / self.high_value) + self.low
        return raw.astype(np.float32)
