"""Intensities that no scan has: each is doubted, and what real scans are like is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.intensity_checks import intensity_warnings, marked_warning, noise_level
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.io.volume import Volume, read_volume

SAMPLE = Path(__file__).parents[2] / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def sample() -> tuple[sitk.Image, sitk.Image]:
    """The committed scan in slices of 4 mm, and what is not 0 in it as its brain."""
    image = sitk.DICOMOrient(read_volume(SAMPLE).image, "LPS")
    size = [
        round(count * mm / new) for count, mm, new in zip(image.GetSize(), image.GetSpacing(), (2, 2, 4), strict=True)
    ]
    grid = (size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), (2.0, 2.0, 4.0), image.GetDirection())
    scan = sitk.Resample(image, *grid, 0.0, sitk.sitkFloat32)
    return scan, sitk.Cast(scan > 0, sitk.sitkUInt8)


def median(values: np.ndarray) -> float:
    return float(np.median(values[values > 0]))


def later_slices(values: np.ndarray, factor: float) -> np.ndarray:
    return np.where(np.arange(len(values))[:, None, None] < len(values) // 2, values, factor * values)


def with_noise(values: np.ndarray, share: float) -> np.ndarray:
    return np.abs(values + RNG.normal(0, share * median(values), values.shape))


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str | None]] = {
    "as it is": (lambda v: v, None),
    "in 8 bits": (lambda v: np.rint(v / v.max() * 255), None),
    "another unit": (lambda v: v * 1e-4 - 7.0, None),
    "cut off at the 99th percentile": (lambda v: np.minimum(v, np.percentile(v[v > 0], 99)), "1.0% of the brain's"),
    "cut off at the median": (lambda v: np.minimum(v, median(v)), "highest value"),
    "upper half tripled": (lambda v: later_slices(v, 3), "times as bright beside the next"),
    "upper half halved": (lambda v: later_slices(v, 0.5), "times as bright beside the next"),
    "upper half a little brighter": (lambda v: later_slices(v, 1.15), None),
    "every second slice": (lambda v: v * (np.arange(len(v)) % 2)[:, None, None], "is empty beside the next"),
    "every second slice darker": (
        lambda v: v * np.where(np.arange(len(v)) % 2, 0.6, 1.0)[:, None, None],
        "times as bright beside the next",
    ),
    "some noise": (lambda v: with_noise(v, 0.1), None),
    "much noise": (lambda v: with_noise(v, 0.6), "The noise in the scan's brain is"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_intensities_that_no_scan_has_are_doubted(
    sample: tuple[sitk.Image, sitk.Image], change: Callable[[np.ndarray], np.ndarray], said: str | None
) -> None:
    scan, brain = sample
    changed = phantom.on_grid(change(phantom.array(scan).astype(np.float64)).astype(np.float32), scan)
    for axes in ("LPS", "SRA"):
        found = list(intensity_warnings(sitk.DICOMOrient(changed, axes), sitk.DICOMOrient(brain, axes)))
        assert len(found) == (said is not None)
        assert said is None or said in found[0]


def test_the_noise_level_is_its_standard_deviation_whatever_lies_below() -> None:
    """Of white noise on a slope with an edge."""
    slope = np.add.outer(np.arange(60.0), np.arange(80.0)) + np.where(np.arange(80) < 40, 0, 500)
    values = slope + RNG.normal(0, 7, (20, 60, 80))
    assert noise_level(values, np.ones(values.shape, bool)) == pytest.approx(7, rel=0.03)
    assert noise_level(values, np.zeros(values.shape, bool)) == 0


@pytest.mark.parametrize(
    ("slices", "share", "doubted"), [(26, 0.2, False), (26, 0.3, True), (1, 0.45, False), (1, 0.6, True)]
)
def test_a_mask_larger_than_lesions_are_is_doubted(
    flair_like_brain: sitk.Image, slices: int, share: float, doubted: bool
) -> None:
    brain = flair_like_brain[:, :, 13:14] if slices == 1 else flair_like_brain
    inside = phantom.array(brain) > 0
    marked = inside & (np.cumsum(inside).reshape(inside.shape) <= share * inside.sum())
    for lowered in (False, True):
        warning = marked_warning(phantom.on_grid(marked.astype(np.uint8), brain), brain, lowered)
        assert (warning is not None) == doubted
        if warning:
            assert f"{share:.0%} of the brain is marked" in warning
            assert ("threshold is too low" in warning) == lowered


def test_doubts_of_the_intensities_are_the_results(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> None:
    values = later_slices(phantom.array(flair_like_volume.image), 4.0)
    scan = phantom.as_volume(phantom.on_grid(values, flair_like_volume.image))
    warnings = Detector(Options("intensity", device="cpu", threshold=0.5))(scan, brain=flair_like_brain).warnings
    assert any("times as bright beside the next" in warning for warning in warnings)
    assert any("of the brain is marked" in warning and "threshold is too low" in warning for warning in warnings)
