"""The scale by the brain's mode: what may move it, and what must not."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.preprocessing.intensity import ModeNormalisation, fill_value, tissue_mode

RULE = ModeNormalisation()


def tissue(voxels: int = 200_000, seed: int = 0) -> np.ndarray:
    """Intensities of a FLAIR brain: white matter at 100, grey matter at 115, fluid at 25."""
    rng = np.random.default_rng(seed)
    parts = (100.0, 6.0, 0.5), (115.0, 8.0, 0.4), (25.0, 8.0, 0.1)
    return np.concatenate([rng.normal(mean, spread, int(share * voxels)) for mean, spread, share in parts])


def scaled(rule: ModeNormalisation, fitted_to: np.ndarray, value: float) -> float:
    return float(rule.fit(fitted_to)(np.array([value]), np.array([True]))[0])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("brightness", [1.4, 1.6, 2.5])
def test_lesions_up_to_two_fifths_of_the_brain_move_the_scale_by_less_than_two_per_cent(share, brightness):
    rng = np.random.default_rng(1)
    healthy = tissue()
    diseased = healthy.copy()
    here = (healthy > 60.0) & (rng.random(len(healthy)) < share / 0.9)  # lesions lie in tissue, a tenth is fluid
    diseased[here] = rng.normal(100.0 * brightness, 12.0, here.sum())
    one, other = (RULE.fit(values) for values in (healthy, diseased))
    assert (other.high - other.low) == pytest.approx(one.high - one.low, rel=0.02)
    assert scaled(RULE, diseased, 100.0) == pytest.approx(scaled(RULE, healthy, 100.0), rel=0.02)


def test_an_even_lesion_that_is_the_highest_peak_is_not_taken_for_the_brain():
    healthy = tissue()
    diseased = healthy.copy()
    diseased[np.random.default_rng(2).random(len(healthy)) < 0.4] = 150.0
    assert scaled(RULE, diseased, 100.0) == pytest.approx(scaled(RULE, healthy, 100.0), rel=0.02)


def test_the_mode_becomes_its_value_and_the_darkest_half_per_cent_zero():
    values = tissue()
    low, mode = np.percentile(values, 0.5), tissue_mode(values, float(np.percentile(values, 0.5)))
    assert scaled(RULE, values, mode) == pytest.approx(0.42, abs=1e-6)
    assert scaled(RULE, values, low) == pytest.approx(0.0, abs=1e-6)
    assert 100.0 <= mode <= 110.0


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.01, 1e4), offset=st.floats(-1e4, 1e4))
def test_scanner_gain_and_offset_do_not_matter(gain, offset):
    values = tissue(5000)
    brain = np.ones(values.shape, bool)
    other = values * gain + offset
    assert RULE.fit(other)(other, brain) == pytest.approx(RULE.fit(values)(values, brain), abs=0.02)


def test_a_scan_of_eight_bits_has_the_scale_of_the_one_it_was_made_from():
    values = tissue() / 2.0  # about 60 distinct values, as in public sets
    for probe in (40.0, 60.0, 90.0):
        assert scaled(RULE, np.round(values), probe) == pytest.approx(scaled(RULE, values, probe), rel=0.03)


def test_fluid_is_no_tissue_even_where_it_is_the_highest_peak():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(100, 12, 60_000), rng.normal(115, 12, 40_000), rng.normal(12, 1.0, 60_000)])
    assert 95.0 < tissue_mode(values, float(np.percentile(values, 0.5))) < 115.0


def test_without_a_clear_mode_the_scale_stays_within_the_values():
    values = np.random.default_rng(4).uniform(50.0, 150.0, 100_000)
    scale = RULE.fit(values)
    assert 50.0 <= scale.low < scale.high <= 150.0


@pytest.mark.parametrize("value", [0.0, 7.0, -1e30, 1e30])
def test_a_constant_brain_becomes_zero(value):
    scale = RULE.fit(np.full(50, value, np.float32))
    assert np.all(scale(np.full((2, 2), value, np.float32), np.ones((2, 2), bool)) == 0)


def test_a_brain_without_voxels_has_no_scale():
    with pytest.raises(InputError, match="no voxel inside"):
        RULE.fit(np.empty(0))


@pytest.mark.parametrize("wrong", [{"low_percentile": 60.0}, {"mode_value": 0.0}, {"mode_value": 2.0}])
def test_numbers_that_make_no_scale_are_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        ModeNormalisation(**wrong)


def stripped(background: float) -> tuple[sitk.Image, sitk.Image, np.ndarray]:
    """A z-scored, stripped scan, the mask of its brain with a rim of background, and where tissue is."""
    rng = np.random.default_rng(5)
    z, y, x = np.ogrid[-10:10, -16:16, -16:16]
    inside = (z / 8.0) ** 2 + (y / 13.0) ** 2 + (x / 12.0) ** 2 < 1
    generous = (z / 9.0) ** 2 + (y / 14.0) ** 2 + (x / 13.0) ** 2 < 1
    values = rng.permutation(tissue(20_000))[: inside.sum()]
    array = np.full(inside.shape, background, np.float32)
    array[inside] = (values - values.mean()) / values.std()
    return sitk.GetImageFromArray(array), sitk.GetImageFromArray(generous.astype(np.uint8)), inside


def test_what_a_scan_was_filled_with_is_no_brain():
    reference = None
    for background in (0.0, -1024.0, -2000.0, -32768.0, 5000.0):
        image, brain, inside = stripped(background)
        assert fill_value(image, brain) == background
        found = RULE.fit_scan(image, brain)(sitk.GetArrayFromImage(image), inside)
        reference = found if reference is None else reference
        assert found == pytest.approx(reference, abs=1e-6)


def test_air_as_it_was_measured_is_no_filling():
    image, brain, inside = stripped(0.0)
    array = sitk.GetArrayFromImage(image)
    noise = np.abs(np.random.default_rng(6).normal(0.0, 0.1, array.shape)).astype(np.float32)
    assert fill_value(sitk.GetImageFromArray(np.where(inside, array, noise)), brain) is None


def test_one_far_outlier_moves_nothing():
    values = tissue()
    for outlier in (-32768.0, 32768.0, 1e9):
        assert scaled(RULE, np.append(values, outlier), 120.0) == pytest.approx(scaled(RULE, values, 120.0), abs=1e-3)
