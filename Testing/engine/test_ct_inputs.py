"""CT from elsewhere: other windows, other parts of the body, tilted heads and parts of heads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

import packages
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.detection.skull import intracranial_space
from diffusion_anomaly.errors import InputError
from test_skull import AIR, FAT, as_image, dice, head_ct, windowed


def trunk(ribs: int, slices: int = 12) -> np.ndarray:
    """A trunk in Hounsfield units: so many ribs or one ring of bone around organs, and a spine with its canal."""
    z, y, x = np.meshgrid(np.arange(slices) * 5.0, np.arange(260.0), np.arange(340.0), indexing="ij")
    radius = np.hypot((x - 170) / 155, (y - 130) / 110)
    values = np.where(radius < 1.0, FAT, AIR).astype(np.float32)
    values[radius < 0.9] = 50.0
    turn = (np.arctan2(y - 130, x - 170) / (2 * np.pi) - 0.001 * z) * ribs % 1.0
    values[(abs(radius - 0.9) < 0.04) & (turn < 0.55)] = 500.0
    values[np.hypot((x - 170) / 20, (y - 205) / 15) < 1] = 300.0
    values[np.hypot((x - 170) / 9, (y - 222) / 8) < 1] = 20.0
    return values


@pytest.mark.parametrize(("ribs", "slices"), [(8, 12), (14, 12), (24, 40)])
def test_a_trunk_is_no_head(ribs: int, slices: int) -> None:
    with pytest.raises(InputError, match="CT of the head"):
        intracranial_space(as_image(trunk(ribs, slices)), "abdomen")


@pytest.mark.parametrize("low", [-500.0, -150.0])
def test_units_that_were_cut_off_at_a_wide_window_serve(low: float) -> None:
    values, truth = head_ct()
    assert dice(intracranial_space(as_image(values.clip(low, -1.5 * low)), "ct"), truth) > 0.95


def test_a_tilted_head_is_found() -> None:
    values, truth = head_ct()
    turned = [
        ndimage.affine_transform(array, matrix, offset, order=order, mode="nearest")
        for array, order in ((values, 1), (truth.astype(np.float32), 1))
        for matrix, offset in [_tilt(values.shape)]
    ]
    assert dice(intracranial_space(as_image(turned[0]), "ct"), turned[1] > 0.5) > 0.9


def _tilt(shape: tuple[int, ...], degrees: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """Turns slices of 5 mm about the axis from ear to ear, as a gantry does."""
    angle = np.deg2rad(degrees)
    spacing = np.diag([5.0, 1.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.linalg.inv(spacing) @ turn @ spacing
    middle = (np.array(shape) - 1) / 2
    return matrix, middle - matrix @ middle


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    bundle = packages.head_ct(tmp_path_factory.mktemp("models") / "ct")
    return Detector(Options(method="intensity"), bundle=bundle)


@pytest.mark.parametrize(
    ("window", "is_doubted"), [((0.0, 80.0), False), ((-200.0, 500.0), False), ((0.0, 300.0), True)]
)
def test_a_window_in_which_tissue_is_too_dark_is_doubted(
    detector: Detector, window: tuple[float, float], is_doubted: bool
) -> None:
    """From -200 to 500 tissue lies at a third, as it may in a window of the brain."""
    found = detector(as_image(windowed(head_ct()[0], *window) / 255.0)).warnings
    assert any("Ordinary tissue inside the skull" in warning for warning in found) is is_doubted


def test_a_part_of_a_head_is_doubted(detector: Detector) -> None:
    whole, part = (detector(as_image(head_ct()[0][first:])).warnings for first in (0, 12))
    assert [any("holds only" in warning for warning in found) for found in (whole, part)] == [False, True]


def test_a_bandage_and_a_head_holder_change_nothing(detector: Detector) -> None:
    values, truth = head_ct()
    _, y, x = np.meshgrid(np.arange(20), np.arange(200.0), np.arange(180.0), indexing="ij")
    ring = np.hypot((x - 90) / 84, (y - 95) / 97)
    bandaged = np.where((values == AIR) & (ring < 1.0), 80.0, values)
    bandaged[(ring > 1.02) & (ring < 1.06) & (y > 60)] = 250.0
    assert dice(intracranial_space(as_image(bandaged), "ct"), truth) > 0.95
