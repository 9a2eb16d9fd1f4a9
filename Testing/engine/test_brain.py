"""The brain mask: the shipped network on scans it has never seen, and the window that moves over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from diffusion_anomaly.detection.brain import (
    ENOUGH,
    BrainFinder,
    brain_probability,
    intensity_range,
    largest_piece,
    network_grid,
)
from diffusion_anomaly.detection.brain_network import WINDOW, rescale_intensity
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import Volume, read_volume

SAMPLE = Path(__file__).parents[2] / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2.0 * (first & second).sum() / (first.sum() + second.sum()))


def found_in(volume: Volume) -> np.ndarray:
    return sitk.GetArrayFromImage(BrainFinder(device="cpu")(volume)) > 0


def volume_of(array: np.ndarray, like: sitk.Image, spacing: tuple[float, float, float]) -> Volume:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetOrigin(like.GetOrigin())
    image.SetDirection(like.GetDirection())
    image.SetSpacing(spacing)
    return Volume(image, "scan", "", 3, 0, {})


@pytest.fixture(scope="module")
def stripped() -> Volume:
    return read_volume(SAMPLE)


def test_a_stripped_scan_keeps_its_brain(stripped: Volume) -> None:
    assert dice(found_in(stripped), sitk.GetArrayFromImage(stripped.image) != 0) >= 0.95


def test_slices_of_5_mm_keep_their_brain(stripped: Volume) -> None:
    array = sitk.GetArrayFromImage(stripped.image)[:180]
    thick = array.reshape(36, 5, *array.shape[1:]).mean(1)
    assert dice(found_in(volume_of(thick, stripped.image, (1.0, 1.0, 5.0))), thick != 0) >= 0.95


def test_the_brain_does_not_depend_on_the_order_of_axes(stripped: Volume) -> None:
    # Thinned out, which is enough for the network and three times as fast.
    coarse = sitk.Shrink(stripped.image, (2, 2, 2))
    turned = sitk.DICOMOrient(coarse, "SRA")
    there = BrainFinder(device="cpu")(Volume(turned, "scan", "", 3, 0, {}))
    here = BrainFinder(device="cpu")(Volume(coarse, "scan", "", 3, 0, {}))
    back = sitk.GetArrayFromImage(sitk.DICOMOrient(there, "LAS")) > 0
    assert dice(back, sitk.GetArrayFromImage(sitk.DICOMOrient(here, "LAS")) > 0) > 0.99


def test_the_skull_of_healthy_t1_scans_is_left_out(shared: Path) -> None:
    scores = []
    for scan in sorted((shared / "ixi-t1-2mm").glob("*T1_ds.nii.gz")):
        reference = sitk.ReadImage(str(scan).replace("_ds.nii", "_ds_DLMUSE.nii"))
        filled = ndimage.binary_fill_holes(sitk.GetArrayFromImage(reference) > 0)
        scores.append(dice(found_in(read_volume(scan)), filled))
    assert len(scores) == 5
    assert min(scores) >= 0.93, scores


def test_a_scan_without_a_brain_is_refused() -> None:
    empty = volume_of(np.zeros((20, 64, 64)), sitk.Image(1, 1, 1, sitk.sitkFloat32), (3.0, 3.0, 5.0))
    with pytest.raises(InputError, match="every voxel is 0"):
        BrainFinder(device="cpu")(empty)


def test_the_networks_grid_covers_the_scan_with_axes_to_right_anterior_superior(stripped: Volume) -> None:
    grid = network_grid(stripped.image)
    assert grid.GetSpacing() == (2.0, 2.0, 2.0)
    assert np.allclose(grid.GetDirection(), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert np.all(np.array(grid.GetSize()) * 2.0 >= np.array(stripped.image.GetSize()))


def test_intensities_are_rescaled_alike_whatever_their_unit() -> None:
    image = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    assert np.allclose(rescale_intensity(image), rescale_intensity(500.0 * image + 20.0), atol=1e-5)
    assert np.array_equal(rescale_intensity(np.full((4, 4, 4), 7.0)), np.zeros((4, 4, 4), np.float32))


# What must not change the mask


def as_volume(image: sitk.Image) -> Volume:
    return Volume(image, "scan", "", 3, 0, {})


def mask_of(image: sitk.Image) -> sitk.Image:
    return BrainFinder(device="cpu")(as_volume(image))


def overlap(first: sitk.Image, second: sitk.Image) -> float:
    return dice(sitk.GetArrayFromImage(first) > 0, sitk.GetArrayFromImage(second) > 0)


@dataclass(frozen=True)
class Known:
    """A scan and the mask found in it."""

    image: sitk.Image
    mask: sitk.Image


@pytest.fixture(scope="module", params=["stripped", "with skull"])
def known(request: pytest.FixtureRequest) -> Known:
    """Scans thinned out to 2 mm, which is enough for the network and much faster."""
    if request.param == "stripped":
        path = SAMPLE
    else:
        path = request.getfixturevalue("shared") / "flair-healthy" / "synthsr_flair.nii.gz"
    image = sitk.Cast(sitk.DICOMOrient(sitk.Shrink(read_volume(path).image, (2, 2, 2)), "LPS"), sitk.sitkFloat32)
    return Known(image, mask_of(image))


@pytest.mark.parametrize("value", [-32768.0, 32768.0])
def test_one_far_voxel_leaves_the_mask_alone(known: Known, value: float) -> None:
    spoilt = sitk.Image(known.image)
    spoilt[tuple(size // 2 for size in spoilt.GetSize())] = value
    assert overlap(mask_of(spoilt), known.mask) > 0.99


@pytest.mark.parametrize("value", [0.0, -1024.0, -2000.0, -32768.0])
def test_padding_around_the_head_leaves_the_mask_alone(known: Known, value: float) -> None:
    margin = [12, 9, 5]
    found = mask_of(sitk.ConstantPad(known.image, margin, margin, value))
    assert overlap(sitk.Crop(found, margin, margin), known.mask) > 0.98


@pytest.mark.parametrize("axis", [0, 1])
def test_a_tilted_heads_mask_is_the_heads_mask_tilted(known: Known, axis: int) -> None:
    image = known.image
    tilt = sitk.Euler3DTransform()
    tilt.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2.0 for size in image.GetSize()]))
    tilt.SetRotation(*(np.deg2rad(15.0) if axis == number else 0.0 for number in range(3)))
    low = float(sitk.GetArrayViewFromImage(image).min())
    found = mask_of(sitk.Resample(image, image, tilt, sitk.sitkLinear, low))
    assert overlap(found, sitk.Resample(known.mask, image, tilt, sitk.sitkNearestNeighbor)) > 0.98


# Too tall a head is recognised and looked at anew, too flat a one may be a cut one and is taken as it is.
@pytest.mark.parametrize(("factor", "least"), [(0.6, 0.975), (1.6, 0.98)])
def test_a_wrong_slice_spacing_leaves_the_mask_alone(known: Known, factor: float, least: float) -> None:
    wrong = sitk.Image(known.image)
    wrong.SetSpacing((2.0, 2.0, 2.0 * factor))
    assert overlap(mask_of(wrong), known.mask) > least


def test_slices_of_8_mm_keep_the_mask(known: Known) -> None:
    def merged(image: sitk.Image) -> np.ndarray:
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        whole = len(array) // 4 * 4
        return array[:whole].reshape(-1, 4, *array.shape[1:]).mean(1)

    thick = volume_of(merged(known.image), known.image, (2.0, 2.0, 8.0))
    # As much brain as makes a voxel brain elsewhere.
    assert dice(found_in(thick), merged(known.mask) > ENOUGH) > 0.98


def head_values(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(200_000) < 0.5, rng.rayleigh(10.0, 200_000), rng.normal(400.0, 100.0, 200_000))


def stripped_values(rng: np.random.Generator, background: float = 0.0) -> np.ndarray:
    return np.where(rng.random(200_000) < 0.7, background, rng.normal(700.0, 80.0, 200_000))


def test_the_range_of_an_ordinary_scan_is_its_own_and_follows_its_unit() -> None:
    rng = np.random.default_rng(0)
    for values in (head_values(rng), stripped_values(rng), rng.normal(0.0, 1.0, 200_000)):
        limits = intensity_range(values)
        assert (values > limits.high).mean() <= 5e-4 and limits.padding == np.inf
        assert (values < limits.low).mean() <= 5e-4 or limits.fill == values.min()
        other = intensity_range(3.0 * values - 500.0)
        expected = (3.0 * limits.low - 500.0, 3.0 * limits.high - 500.0)
        assert (other.low, other.high) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("background", [-1.0, -1024.0, -32768.0, 20.0])
def test_what_a_stripped_scan_is_filled_with_changes_nothing(background: float) -> None:
    plain = intensity_range(stripped_values(np.random.default_rng(0)))
    other = intensity_range(stripped_values(np.random.default_rng(0), background))
    assert (other.low, other.high, other.fill) == pytest.approx((plain.low, plain.high, background))


@pytest.mark.parametrize("kind", [head_values, stripped_values])
@pytest.mark.parametrize("padding", [-1024.0, -32768.0, 32767.0, 65535.0])
def test_padding_and_outliers_are_put_where_the_background_is(
    kind: Callable[[np.random.Generator], np.ndarray], padding: float
) -> None:
    scan = kind(np.random.default_rng(0))
    padded = np.concatenate([scan, np.full(50_000, padding), [99_999.0, -99_999.0]]).astype(np.float32)
    limits, plain = intensity_range(padded), intensity_range(scan)
    assert (limits.low, limits.high) == pytest.approx((plain.low, plain.high), rel=0.05, abs=2.0)
    shown = sitk.GetArrayFromImage(limits(sitk.GetImageFromArray(padded[None, None])))
    assert (shown[0, 0, len(scan) : -2] == np.float32(limits.low)).all()


def test_a_scan_of_one_value_has_a_range_of_none() -> None:
    limits = intensity_range(np.full(10, 7.0))
    assert (limits.low, limits.high) == (7.0, 7.0)


class Threshold(torch.nn.Module):
    """Stands in for the network: brain is where the folded image is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return 20.0 * (image - 0.5) + self.unused


@pytest.mark.parametrize("bottom", [5, 70])
def test_the_window_moves_to_the_brain_wherever_it_lies(bottom: int) -> None:
    image = np.zeros((170, 140, 130), np.float32)  # z, y, x
    image[bottom : bottom + 60, 60:130, 60:120] = 1.0
    found = brain_probability(Threshold(), image) > 0.5
    assert np.array_equal(found, image > 0)
    assert all(size > window for size, window in zip(image.shape, WINDOW[::-1], strict=True))


def test_the_network_is_not_shown_a_window_twice() -> None:
    """The window cannot follow a brain at the edge of an image that it only just fits in."""
    image = np.zeros(WINDOW[::-1], np.float32)
    image[5:45, 60:110, 50:90] = 1.0
    network = Threshold()
    assert np.array_equal(brain_probability(network, image) > 0.5, image > 0)
    assert network.calls == 1


@pytest.mark.parametrize("density", [0.2, 0.45, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(12, 13, 14), (1, 20, 20), (30, 30)])
def test_the_largest_piece_is_the_largest_with_its_holes_filled(density: float, shape: tuple[int, ...]) -> None:
    noise = np.random.default_rng(0)
    for _ in range(10):
        mask = noise.random(shape) < density
        labels, count = ndimage.label(mask)
        sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
        expected = ndimage.binary_fill_holes(labels == 1 + int(np.argmax(sizes)))
        assert np.array_equal(largest_piece(mask), expected)
    assert not largest_piece(np.zeros(shape, bool)).any()
