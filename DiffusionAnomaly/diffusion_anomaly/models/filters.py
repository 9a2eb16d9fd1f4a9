"""What a package declares of the filters between a method and its calibration. Torch-free.

How large a lesion is does not depend on the scan's grid, so filters are best stated in mm; and slices may lie 8 mm
apart, where a filter counted in slices smears a finding over 2 cm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import InputError
from ..options import shown

# A width in mm may fall short of a whole number of pixels by this share of one: on a grid of 1.067 mm, which is 16/15
# rounded, 3.2 mm are 2.999 pixels and mean 3.
PIXEL_TOLERANCE = 0.01

# What can be stated on the grid or in mm, and what holds where neither is.
IN_MM = {"median_pixels": "median_mm", "slice_sigma": "slice_sigma_mm", "edge_erosion_pixels": "edge_erosion_mm"}
DEFAULTS = {"median_pixels": 5, "slice_sigma": 0.0, "edge_erosion_pixels": 0}


# What settings were called in the first packages.
FORMER_NAMES = {
    "relative": "error_normalisation_power",
    "rim_pixels": "edge_erosion_pixels",
    "rim_mm": "edge_erosion_mm",
}


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names of today."""
    return {FORMER_NAMES.get(name, name): value for name, value in settings.items()}


@dataclass(frozen=True)
class PostprocessSettings:
    """Filters of raw anomaly scores, stored in the model package because its calibration holds for them only.

    Each filter is stated on the model's grid or in mm, never both. Where neither is stated the first is in force, with
    its value in ``DEFAULTS``; whichever is not in force is None.

    Attributes:
        median_pixels: width of the in-plane median filter in pixels of the model's grid, odd; 1 switches it
            off.
        slice_sigma: Gaussian through the slices, in slices; 0 switches it off.
        edge_erosion_pixels: pixels taken off the brain's edge in each slice, where partial volume makes false scores.
        error_normalisation_power: scores are divided by the scan's own reconstruction error to this power. 0 leaves
            them as they are; with 1, a scan that the model restores twice as badly needs twice the difference.
        median_mm: width of the in-plane median filter in mm: the largest odd number of pixels that is not wider, and
            at least 1.
        slice_sigma_mm: Gaussian through the slices in mm.
        edge_erosion_mm: taken off the brain's edge in each slice, in mm: as many whole pixels as are not wider.
    """

    median_pixels: int | None = None
    slice_sigma: float | None = None
    edge_erosion_pixels: int | None = None
    error_normalisation_power: float = 0.0
    median_mm: float | None = None
    slice_sigma_mm: float | None = None
    edge_erosion_mm: float | None = None

    def __post_init__(self) -> None:
        for name, name_mm in IN_MM.items():
            if getattr(self, name) is not None and getattr(self, name_mm) is not None:
                raise InputError(
                    f"Options {name} and {name_mm} are both given; they state the same filter.",
                    "Leave one of them out.",
                )
            if getattr(self, name_mm) is None and getattr(self, name) is None:
                object.__setattr__(self, name, DEFAULTS[name])
        _check("median_pixels", self.median_pixels, 1, 31, whole=True)
        _check("slice_sigma", self.slice_sigma, 0, 20, whole=False)
        _check("edge_erosion_pixels", self.edge_erosion_pixels, 0, 31, whole=True)
        _check("error_normalisation_power", self.error_normalisation_power, 0, 1, whole=False)
        _check("median_mm", self.median_mm, 0, 50, whole=False)
        _check("slice_sigma_mm", self.slice_sigma_mm, 0, 100, whole=False)
        _check("edge_erosion_mm", self.edge_erosion_mm, 0, 50, whole=False)
        if self.median_pixels is not None and self.median_pixels % 2 == 0:
            raise InputError(f"Option median_pixels is {self.median_pixels}.", "It must be odd.")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> PostprocessSettings:
        """From a package's ``postprocess`` object.

        Raises:
            InputError: for an unknown key or a value out of range.
        """
        known = [setting.name for setting in fields(cls)]
        if not isinstance(settings, Mapping):
            raise InputError(f"The post-processing is {shown(settings)}.", "Give settings by name.")
        settings = renamed(settings)
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise InputError(f"Unknown post-processing {', '.join(unknown)}.", f"Known are {', '.join(known)}.")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """What is in force, as a package states it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def changed(self, settings: Mapping[str, Any]) -> PostprocessSettings:
        """The same with some settings replaced; a filter may be stated in mm that was stated on the grid.

        Raises:
            InputError: as ``from_dict``.
        """
        settings = renamed(settings)
        other = {name: name_mm for pair in IN_MM.items() for name, name_mm in (pair, pair[::-1])}
        replaced = {other[name] for name in settings if name in other}
        return self.from_dict({name: v for name, v in self.to_dict().items() if name not in replaced} | dict(settings))

    def on_grid(self, pixel_spacing: float, slice_spacing: float) -> GridFilters:
        """The filters on a grid.

        Args:
            pixel_spacing: pixel edge in mm.
            slice_spacing: distance between slices in mm.
        """
        median, sigma, rim = self.median_pixels, self.slice_sigma, self.edge_erosion_pixels
        if median is None:
            median = _whole_pixels(self.median_mm, pixel_spacing)
            median = max(1, median - (median + 1) % 2)
        if sigma is None:
            sigma = (self.slice_sigma_mm or 0.0) / slice_spacing
        if rim is None:
            rim = _whole_pixels(self.edge_erosion_mm, pixel_spacing)
        return GridFilters(median, sigma, rim)


@dataclass(frozen=True)
class GridFilters:
    """What ``PostprocessSettings`` come to on one grid; see there."""

    median_pixels: int
    slice_sigma: float
    edge_erosion_pixels: int


def _whole_pixels(mm: float | None, spacing: float) -> int:
    return math.floor((mm or 0.0) / spacing + PIXEL_TOLERANCE)


def _check(name: str, value: Any, low: float, high: float, *, whole: bool) -> None:
    if value is None:
        return
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"Option {name} is {shown(value)}.", f"It must be {kind} from {low:g} to {high:g}.")
