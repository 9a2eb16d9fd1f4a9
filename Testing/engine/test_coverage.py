"""How much of a brain mask gets the anomaly score is what the stack says, and what the warning says."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.detection.input_checks import brain_warnings
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.preprocessing.slices import Grid, SliceStack

SAMPLE = Path(__file__).parents[2] / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"
# Those of the packages that travel with the engine.
GRIDS = [Grid((128, 128), 1.6, 3.0), Grid((192, 192), 1.067, 2.0)]
BRAINS = [
    ((64, 72, 26), (2.4, 2.4, 5.0)),
    ((130, 160, 110), (1.0, 1.0, 1.0)),
    ((260, 320, 26), (0.5, 0.5, 5.0)),
    ((40, 48, 18), (4.0, 4.0, 7.0)),
    ((110, 140, 40), (1.2, 1.2, 3.0)),
]


def share_with_heat(stack: SliceStack, brain: sitk.Image) -> float:
    """Counted in the volume that even anomaly scores come back as."""
    width, height = stack.grid.size
    anomaly_map = sitk.GetArrayFromImage(stack.to_volume(np.ones((len(stack), height, width), dtype=np.float32)))
    return float(np.count_nonzero(anomaly_map) / np.count_nonzero(sitk.GetArrayViewFromImage(brain)))


def warnings_of(stack: SliceStack) -> list[str]:
    return list(brain_warnings(stack, np.array([1.0, 2.0])))


@cache
def whole_brain(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    return sitk.GetArrayFromImage(phantom.brain_of(phantom.grid(size, spacing))) != 0


def mask_of(
    kept: float, size: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[sitk.Image, sitk.Image]:
    """An empty scan, whose values cover nothing, and its brain mask, of whose voxels a random share is kept."""
    empty, inside = phantom.grid(size, spacing), whole_brain(size, spacing)
    speckled = inside & (np.random.default_rng(0).random(inside.shape) < kept)
    return empty, phantom.on_grid(speckled.astype(np.uint8), empty)


@pytest.mark.parametrize("grid", GRIDS, ids=["1.6 mm", "1.07 mm"])
@pytest.mark.parametrize("kept", [0.2, 0.35, 0.5, 0.8])
@pytest.mark.parametrize(("size", "spacing"), BRAINS[:3])
def test_coverage_of_a_speckled_mask_is_the_share_that_gets_scores(
    size: tuple[int, int, int], spacing: tuple[float, float, float], kept: float, grid: Grid
) -> None:
    scan, brain = mask_of(kept, size, spacing)
    stack = SliceStack([scan], grid, brain)
    assert stack.coverage == share_with_heat(stack, brain)


def test_what_a_speckled_mask_loses_is_warned_of() -> None:
    scan, brain = mask_of(0.35, *BRAINS[1])
    stack = SliceStack([scan], GRIDS[0], brain)
    assert 0.4 < stack.coverage < 0.6
    (warning,) = warnings_of(stack)
    assert f"Only {stack.coverage:.0%} of the brain mask gets scores" in warning
    assert "field of view" in warning
    assert "specks" in warning


@pytest.mark.parametrize("grid", GRIDS, ids=["1.6 mm", "1.07 mm"])
@pytest.mark.parametrize(("size", "spacing"), BRAINS)
def test_an_ordinary_brain_is_covered(
    size: tuple[int, int, int], spacing: tuple[float, float, float], grid: Grid
) -> None:
    scan, brain = mask_of(1.1, size, spacing)
    stack = SliceStack([scan], grid, brain)
    assert stack.coverage == share_with_heat(stack, brain) >= 0.999
    assert not warnings_of(stack)


@pytest.mark.parametrize("grid", GRIDS, ids=["1.6 mm", "1.07 mm"])
def test_the_sample_scans_brain_is_covered(grid: Grid) -> None:
    volume = read_volume(SAMPLE)
    stack = SliceStack([volume.image], grid, sitk.Cast(volume.image > 0, sitk.sitkUInt8))
    assert stack.coverage >= 0.999
    assert not warnings_of(stack)


def test_a_brain_that_leaves_the_grid_is_covered_in_part() -> None:
    scan, brain = mask_of(1.1, *BRAINS[0])
    stack = SliceStack([scan], Grid((32, 40), 2.4, 5.0), brain)
    assert stack.coverage == share_with_heat(stack, brain)
    assert 0.5 < stack.coverage < 0.9
    assert warnings_of(stack)
