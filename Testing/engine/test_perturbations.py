"""Perturbed scans: what should change does, by as much as the name says, and the anatomy stays where it is."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from phantom import array
from Testing.benchmarks.perturbations import (
    COLUMN,
    PERTURBATIONS,
    ROW,
    SLICE,
    Perturbation,
    Sample,
    bias_field,
    every_second_slice,
    gamma,
    lower_part_cut,
    merged_slices,
    rician_noise,
    rotated,
    side_cut,
)

OBLIQUE = phantom.rotation([7, -5, 11])
BY_NAME = {perturbation.name: perturbation for perturbation in PERTURBATIONS}


def sample_of(empty: sitk.Image) -> Sample:
    return Sample(phantom.paint(empty), phantom.lesion_of(empty), phantom.brain_of(empty))


@pytest.fixture(scope="module")
def thick() -> Sample:
    """Oblique slices 5 mm apart, stored from top to bottom."""
    return sample_of(sitk.Flip(phantom.grid((72, 80, 28), (2.2, 2.2, 5.0), OBLIQUE), (False, False, True)))


@pytest.fixture(scope="module")
def thin() -> Sample:
    """Sagittal slices: the axis from below to above is not the last."""
    return sample_of(sitk.PermuteAxes(phantom.grid((64, 72, 120), (2.5, 2.5, 1.0)), (1, 2, 0)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def changed(sample: Sample, change: object, rng: np.random.Generator) -> Sample:
    found = change(sample, rng)  # type: ignore[operator]
    assert found is not None
    return found


def lesion_lies(sample: Sample, at: np.ndarray = phantom.LESION_CENTRE, within: float = 1.5) -> bool:
    """Whether both the bright voxels and the reference have their middle there."""
    bright = array(sample.scan) * array(sample.brain)
    places = [
        phantom.points(sample.reference)[where].mean(axis=0) for where in (bright > 190, array(sample.reference) > 0)
    ]
    return all(np.linalg.norm(place - at) < within for place in places)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_masks_stay_masks_on_the_scans_own_new_grid_and_the_same_seed_gives_the_same(name: str, thick: Sample) -> None:
    first, again = (BY_NAME[name](thick, seed=3, patient="anna") for _ in range(2))
    if first is None:
        assert name in ("3 slices merged", "4 slices merged", "6 slices merged")
        return
    assert again is not None
    assert phantom.geometry(first.scan) == phantom.geometry(first.reference) == phantom.geometry(first.brain)
    assert first.scan.GetPixelID() == sitk.sitkFloat32
    for mask in (first.reference, first.brain):
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert set(np.unique(array(mask))) == {0, 1}
    np.testing.assert_array_equal(array(first.scan), array(again.scan))


def test_patients_get_noise_of_their_own(thick: Sample) -> None:
    anna, bert = (BY_NAME["noise 5 %"](thick, seed=3, patient=name) for name in ("anna", "bert"))
    assert anna is not None and bert is not None
    assert not np.array_equal(array(anna.scan), array(bert.scan))


@pytest.mark.parametrize("level", [0.05, 0.1])
def test_noise_has_the_deviation_that_its_name_says_and_leaves_masked_air_alone(
    level: float, thick: Sample, rng: np.random.Generator
) -> None:
    before, after = array(thick.scan), array(changed(thick, rician_noise(level), rng).scan)
    inside = array(thick.brain) > 0
    assert (after - before)[inside].std() == pytest.approx(level * np.median(before[inside]), rel=0.05)
    assert not after[before == 0].any()


@pytest.mark.parametrize("level", [0.2, 0.4])
def test_a_bias_field_spans_its_level_inside_the_brain_and_is_smooth(
    level: float, thick: Sample, rng: np.random.Generator
) -> None:
    before, after = array(thick.scan), array(changed(thick, bias_field(level), rng).scan)
    head = before > 0
    field = np.divide(after, before, out=np.ones_like(before), where=head)
    inside = field[array(thick.brain) > 0]
    assert (inside.min(), inside.max()) == (
        pytest.approx(1 - level / 2, abs=1e-3),
        pytest.approx(1 + level / 2, abs=1e-3),
    )
    both = head[:, 1:] & head[:, :-1]
    assert np.abs(np.diff(field, axis=1))[both].max() < 0.15 * level


@pytest.mark.parametrize("exponent", [0.7, 1.4])
def test_gamma_is_that_power_and_keeps_order_and_the_brightest(
    exponent: float, thick: Sample, rng: np.random.Generator
) -> None:
    before, after = array(thick.scan), array(changed(thick, gamma(exponent), rng).scan)
    assert after[before == 220] == pytest.approx(220, rel=1e-3)
    # A ratio of two intensities becomes that ratio to the power.
    assert after[before == 150][0] / after[before == 220][0] == pytest.approx((150 / 220) ** exponent, rel=1e-3)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_merged_slices_are_means_of_neighbours_where_those_were(
    count: int, thin: Sample, rng: np.random.Generator
) -> None:
    merged = changed(thin, merged_slices(count), rng)
    axis = 1  # from below to above, of the file's own axes
    assert merged.scan.GetSpacing()[axis] == pytest.approx(count * 1.0)
    slabs = np.moveaxis(array(thin.scan), 2 - axis, 0)
    kept = len(slabs) // count * count
    expected = slabs[:kept].reshape(-1, count, *slabs.shape[1:]).mean(axis=1)
    np.testing.assert_allclose(np.moveaxis(array(merged.scan), 2 - axis, 0), expected, rtol=1e-5)
    middle = [n // 2 for n in merged.scan.GetSize()]
    own = list(middle)
    own[axis] = middle[axis] * count
    far = list(own)
    far[axis] += count - 1
    ends = [np.array(thin.scan.TransformIndexToPhysicalPoint(place)) for place in (own, far)]
    np.testing.assert_allclose(merged.scan.TransformIndexToPhysicalPoint(middle), np.mean(ends, axis=0), atol=1e-5)
    assert lesion_lies(merged)


@pytest.mark.parametrize(("count", "possible"), [(2, True), (3, False)])
def test_thick_slices_are_merged_by_two_alone(
    count: int, possible: bool, thick: Sample, rng: np.random.Generator
) -> None:
    assert (merged_slices(count)(thick, rng) is not None) == possible


def test_leaving_out_slices_keeps_the_others_where_they_are(
    thick: Sample, thin: Sample, rng: np.random.Generator
) -> None:
    left = changed(thick, every_second_slice, rng)
    np.testing.assert_array_equal(array(left.scan), array(thick.scan)[::2])
    assert left.scan.TransformIndexToPhysicalPoint((3, 4, 5)) == pytest.approx(
        thick.scan.TransformIndexToPhysicalPoint((3, 4, 10))
    )
    assert every_second_slice(thin, rng) is None


@pytest.mark.parametrize("axis", [SLICE, ROW, COLUMN])
def test_a_rotation_moves_the_lesion_as_the_formula_says_and_loses_nothing(
    axis: int, thick: Sample, rng: np.random.Generator
) -> None:
    turned = changed(thick, rotated(15, axis), rng)
    # Canonical axes of this scan: its columns, rows and slices, the last stored downwards.
    direction = OBLIQUE[:, {SLICE: 2, ROW: 1, COLUMN: 0}[axis]]
    x, y, z = direction
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(15)
    rodrigues = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    size = np.array(thick.scan.GetSize())
    centre = np.array(thick.scan.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
    ends = [centre + turn @ (phantom.LESION_CENTRE - centre) for turn in (rodrigues, rodrigues.T)]
    assert any(lesion_lies(turned, at=end) for end in ends)
    assert not lesion_lies(turned)
    volumes = [int(array(one.brain).sum()) for one in (turned, thick)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.02)
    assert array(turned.scan).min() == 0
    assert turned.scan.GetDirection() == thick.scan.GetDirection()


def test_no_rotation_at_all_gives_the_scan_back(thick: Sample, rng: np.random.Generator) -> None:
    same = changed(thick, rotated(0, SLICE), rng)
    assert same.scan.GetSize() == thick.scan.GetSize()
    np.testing.assert_allclose(array(same.scan), array(thick.scan), atol=1e-3)
    np.testing.assert_array_equal(array(same.reference), array(thick.reference))


def test_the_lower_third_is_cut_below_whichever_way_slices_are_stored(
    thick: Sample, thin: Sample, rng: np.random.Generator
) -> None:
    for sample in (thick, thin):
        left = changed(sample, lower_part_cut(1 / 3), rng)
        heights = [phantom.points(one.brain)[array(one.brain) > 0] for one in (sample, left)]
        up = np.array([0, 0, 1]) if sample is thin else OBLIQUE[:, 2]
        (low, high), (low_left, high_left) = ((float((h @ up).min()), float((h @ up).max())) for h in heights)
        assert high_left == pytest.approx(high, abs=1e-4)
        assert low_left == pytest.approx(low + (high - low) / 3, abs=0.75 * max(sample.scan.GetSpacing()))
        assert lesion_lies(left)


def test_the_side_without_the_lesion_is_cut(thick: Sample, rng: np.random.Generator) -> None:
    left = changed(thick, side_cut(1 / 5), rng)
    np.testing.assert_array_equal(array(left.reference).sum(), array(thick.reference).sum())
    assert lesion_lies(left)
    assert 0.75 < array(left.brain).sum() / array(thick.brain).sum() < 0.95


def test_cuts_are_those_that_only_take_voxels_away(thick: Sample) -> None:
    for perturbation in (p for p in PERTURBATIONS if p.cuts):
        left = perturbation(thick, 0, "anna")
        assert left is not None
        first = thick.scan.TransformPhysicalPointToIndex(left.scan.GetOrigin())
        window = sitk.RegionOfInterest(thick.scan, left.scan.GetSize(), first)
        np.testing.assert_array_equal(array(window), array(left.scan))
    assert isinstance(BY_NAME["gamma 0.7"], Perturbation) and not BY_NAME["gamma 0.7"].cuts
