"""Raw anomaly scores to tail probability, thresholds from healthy scans, and the filters before both."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from diffusion_anomaly.detection.calibration import (
    Calibration,
    false_alarm_ml,
    spread_of_scans,
    threshold_for_false_alarms,
)
from diffusion_anomaly.detection.postprocess import postprocess
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.models.filters import PostprocessSettings

SPACING = {"pixel_spacing": 1.6, "slice_spacing": 5.0}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int] = (8, 48, 48)) -> np.ndarray:
    """The anomaly score of a healthy scan with components of all sizes."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    return np.maximum(noise / noise.std(), 0).astype(np.float32)


# --- anomaly scores ---------------------------------------------------------------------------------------------------


def test_exponential_scores_becomes_its_log10_tail_within_sampling_error(rng: np.random.Generator) -> None:
    count = 200_000
    calibration = Calibration.fit(rng.exponential(size=count))
    raw = np.linspace(0.05, np.log(1e4), 60)
    tail = np.exp(-raw)
    sampling_error = 1 / np.sqrt(count * tail) / np.log(10)
    np.testing.assert_array_less(np.abs(calibration(raw) + np.log10(tail)), 4 * sampling_error + 0.01)


def test_beyond_the_rarest_healthy_voxel_scores_goes_on_with_the_tails_slope(rng: np.random.Generator) -> None:
    calibration = Calibration.fit(rng.exponential(size=200_000))
    assert calibration.tail_slope == pytest.approx(1 / np.log(10), rel=0.35)
    far = calibration(np.array([20.0, 21.0, 22.0]))
    np.testing.assert_allclose(np.diff(far), calibration.tail_slope, rtol=1e-4)


def test_calibration_keeps_the_order_of_all_values_and_leaves_zero_at_zero(rng: np.random.Generator) -> None:
    calibration = Calibration.fit(rng.gamma(0.5, size=50_000))
    raw = np.concatenate([[0.0], np.geomspace(1e-6, 100, 2000)])
    scores = calibration(raw)
    assert scores[0] == 0 and scores.dtype == np.float32
    assert (np.diff(scores) > 0).all()


def test_calibrated_scores_go_back_to_raw_ones_within_the_table_and_beyond(rng: np.random.Generator) -> None:
    calibration = Calibration.fit(rng.exponential(size=20_000))
    raw = np.linspace(0, 3 * calibration.raw[-1], 1000)
    assert calibration.inverse(calibration(raw)) == pytest.approx(raw, rel=1e-4, abs=1e-5)


def test_mostly_zero_scores_is_calibrated_against_all_healthy_voxels(rng: np.random.Generator) -> None:
    raw = np.where(rng.random(100_000) < 0.05, 1 + rng.random(100_000), 0)
    calibration = Calibration.fit(raw)
    assert calibration(np.array([1.5]))[0] == pytest.approx(-np.log10(0.025), abs=0.02)
    assert calibration(np.array([0.0]))[0] == 0


def test_equal_scores_values_share_one_knot() -> None:
    calibration = Calibration.fit(np.repeat([0.0, 1.0, 2.0], [900, 90, 10]))
    np.testing.assert_allclose(calibration(np.array([0.0, 1.0, 2.0])), [0, 1, 2], atol=1e-3)


def test_calibration_survives_json_exactly(rng: np.random.Generator) -> None:
    calibration = Calibration.fit(rng.exponential(size=1000), source="healthy slices")
    back = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    raw = rng.exponential(size=100) * 3
    np.testing.assert_array_equal(back(raw), calibration(raw))
    assert (back.voxels, back.source) == (1000, "healthy slices")


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1.0, np.nan], [1.0, -1.0]])
def test_calibration_refuses_values_it_cannot_learn_from(values: list[float]) -> None:
    with pytest.raises(InputError, match="Calibration got"):
        Calibration.fit(np.array(values))


@pytest.mark.parametrize(
    "table",
    [
        {"raw": [0, 1]},
        {"raw": [0, 1], "heat": [0, 1, 2]},
        {"raw": [0, 1, 1], "heat": [0, 1, 2]},
        {"raw": [0, 1], "heat": [0, "high"]},
        {"raw": [0.5, 1], "heat": [0, 1]},
    ],
)
def test_a_damaged_calibration_table_is_a_model_error(table: dict) -> None:
    with pytest.raises(ModelError, match="calibration table"):
        Calibration.from_dict(table)


# --- threshold ----------------------------------------------------------------------------------------------


def test_a_further_scan_exceeds_the_spread_of_earlier_ones_no_more_often_than_one_in_ten(
    rng: np.random.Generator,
) -> None:
    exceeded = 0
    for _ in range(400):
        # Scans differ in scale, so that voxels of one say little about another.
        *known, further = (scale * rng.exponential(size=300) for scale in rng.lognormal(0.0, 0.5, 20))
        spread = spread_of_scans(known)
        assert spread is not None and spread["scans"] == 19 and spread["heat"] == [1, 2, 3]
        assert spread["upper"] == sorted(spread["upper"], reverse=True)
        exceeded += np.mean(further >= 2) > spread["upper"][1]
    assert 0.02 < exceeded / 400 < 0.14


def test_too_few_scans_have_no_spread(rng: np.random.Generator) -> None:
    scans = [rng.exponential(size=50) for _ in range(9)]
    empty = np.zeros(0)
    assert spread_of_scans([*scans[:8], empty]) is None
    nine = spread_of_scans([*scans, empty])
    assert nine is not None and nine["upper"][0] == max(np.mean(scores >= 1) for scores in scans)


def test_threshold_keeps_the_stated_volume_and_is_the_lowest_that_does(rng: np.random.Generator) -> None:
    voxel_ml, scans = 0.01, [smooth_noise(rng) for _ in range(5)]
    threshold = threshold_for_false_alarms([(scores, voxel_ml, 1.0) for scores in scans], ml=1.0)

    def median_volume(at: float) -> float:
        volumes = []
        for scores in scans:
            labels = np.zeros(scores.shape, dtype=int)
            ndimage.label(scores >= at, np.ones((3, 3, 3)), labels)
            sizes = [voxel_ml * float((labels == i).sum()) for i in range(1, labels.max() + 1)]
            volumes.append(sum(size for size in sizes if size >= 0.05))
        return float(np.median(volumes))

    assert median_volume(threshold) <= 1.0
    assert median_volume(threshold - 0.05) > 1.0


def test_slices_that_stand_for_more_of_the_scan_count_more(rng: np.random.Generator) -> None:
    scores = smooth_noise(rng)
    whole = threshold_for_false_alarms([(scores, 0.01, 1.0)], ml=0.5)
    half = threshold_for_false_alarms([(scores, 0.01, 2.0)], ml=1.0)
    assert half == pytest.approx(whole)
    assert threshold_for_false_alarms([(scores, 0.01, 2.0)], ml=0.5) > whole


def test_small_components_are_no_false_alarms() -> None:
    scores = np.zeros((3, 16, 16), dtype=np.float32)
    scores[1, 2:4, 2:4] = 5  # 4 voxels of 0.01 ml: under 0.05 ml
    scores[1, 8:11, 8:11] = 3  # 9 voxels
    assert false_alarm_ml(scores, 2.0, 0.01, 0.05) == pytest.approx(0.09)
    assert threshold_for_false_alarms([(scores, 0.01, 1.0)], ml=0.05) == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("edge", [0.9999999, 1.0, 1.0000001])
def test_a_component_of_the_smallest_volume_itself_is_a_false_alarm_as_it_is_a_finding(edge: float) -> None:
    scores = np.zeros((5, 20, 20), dtype=np.float32)
    scores[2, 3:8, 3:13] = 3  # 50 voxels
    scores[4, 12, 1:20] = 3  # 19 voxels
    assert false_alarm_ml(scores, 2.0, edge**3 / 1000, 0.05) == pytest.approx(0.05)


def test_components_that_hardly_exceed_the_threshold_are_no_false_alarms() -> None:
    scores = np.zeros((3, 16, 16), dtype=np.float32)
    scores[1, 2:6, 2:6] = 4  # 16 voxels
    scores[1, 8:11, 8:11] = 3  # 9 voxels
    scores[1, 9, 9] = 3.5
    assert false_alarm_ml(scores, 2.0, 0.01, 0.05, 1.5) == pytest.approx(0.25)
    assert false_alarm_ml(scores, 2.0, 0.01, 0.05, 1.6) == pytest.approx(0.16)
    assert false_alarm_ml(scores, 2.0, 0.01, 0.05, 2.1) == 0
    # At 3.5 - 1 the lower one goes, at 4 - 1 the other.
    found = [threshold_for_false_alarms([(scores, 0.01, 1.0)], ml, peak_margin=1.0) for ml in (0.2, 0.1)]
    assert found == pytest.approx([2.5, 3], abs=0.01)


def test_a_margin_lowers_the_threshold_that_keeps_the_allowance(rng: np.random.Generator) -> None:
    scans = [(smooth_noise(rng), 0.01, 1.0) for _ in range(5)]
    margins = (0.0, 1.0, 2.0)
    found = [threshold_for_false_alarms(scans, ml=1.0, peak_margin=margin) for margin in margins]
    assert found[0] == threshold_for_false_alarms(scans, ml=1.0)
    assert found[0] > found[1] > found[2]
    for threshold, margin in zip(found, margins, strict=True):
        kept, lower = (
            np.median([false_alarm_ml(scores, at, 0.01, 0.05, margin) for scores, *_ in scans])
            for at in (threshold, threshold - 0.01)
        )
        assert kept <= 1.0 < lower


def test_the_allowance_holds_for_the_share_of_scans_asked_for(rng: np.random.Generator) -> None:
    scans = [(smooth_noise(rng) * scale, 0.01, 1.0) for scale in (1.0, 1.0, 1.0, 3.0)]
    median = threshold_for_false_alarms(scans, ml=1.0, quantile=0.5)
    every = threshold_for_false_alarms(scans, ml=1.0, quantile=1.0)
    assert every > 2 * median
    assert max(false_alarm_ml(scores, every, 0.01, 0.05) for scores, _, _ in scans) <= 1.0


def test_no_scans_give_no_threshold() -> None:
    with pytest.raises(InputError, match="No healthy scans"):
        threshold_for_false_alarms([])


# --- post-processing ----------------------------------------------------------------------------------------


def test_median_removes_a_hot_pixel_and_keeps_a_lesion() -> None:
    scores = np.zeros((2, 32, 32), dtype=np.float32)
    scores[0, 5, 5] = 9
    scores[1, 12:20, 12:20] = 1
    filtered = postprocess(scores, np.ones_like(scores, dtype=bool), {"median_pixels": 5}, **SPACING)
    assert filtered[0].max() == 0
    assert (filtered[1, 14:18, 14:18] == 1).all()


def test_postprocessed_scores_stays_in_the_brain_and_loses_nothing_at_its_ends() -> None:
    brain = np.zeros((6, 20, 20), dtype=bool)
    brain[1:5, 4:16, 4:16] = True
    uniform = brain.astype(np.float32)
    filtered = postprocess(uniform + 7 * ~brain, brain, {"median_pixels": 1, "slice_sigma": 1.5}, **SPACING)
    np.testing.assert_allclose(filtered[brain], 1, rtol=1e-5)
    assert (filtered[~brain] == 0).all()


def test_slice_smoothing_does_not_mix_positions_within_a_slice() -> None:
    scores = np.zeros((5, 8, 8), dtype=np.float32)
    scores[2, 3, 4] = 1
    filtered = postprocess(
        scores, np.ones_like(scores, dtype=bool), {"median_pixels": 1, "slice_sigma": 1.0}, **SPACING
    )
    assert (filtered[:, 3, 4] > 0).all()
    assert np.count_nonzero(filtered) == 5


def test_the_rim_is_taken_off_in_the_slice_only() -> None:
    brain = np.zeros((3, 12, 12), dtype=bool)
    brain[:, 2:10, 2:10] = True
    settings = PostprocessSettings(median_pixels=1, edge_erosion_pixels=2)
    filtered = postprocess(brain.astype(np.float32), brain, settings, **SPACING)
    expected = np.zeros_like(filtered)
    expected[:, 4:8, 4:8] = 1
    np.testing.assert_array_equal(filtered, expected)


def disc(diameter: float, spacing: float) -> np.ndarray:
    """One slice with a bright disc, both in mm."""
    rows, columns = np.mgrid[-20:21, -20:21] * spacing
    return (np.hypot(rows, columns) <= diameter / 2).astype(np.float32)[None]


def test_a_3_mm_disc_survives_a_3_mm_median_and_not_one_of_8_mm() -> None:
    grid = {"pixel_spacing": 1.067, "slice_spacing": 1.0}
    lesion = disc(3.0, 1.067)
    everywhere = np.ones(lesion.shape, bool)
    kept = postprocess(lesion, everywhere, {"median_mm": 3.2}, **grid)
    assert kept[0, 20, 20] == 1
    hot_pixel = disc(0.5, 1.067)
    assert hot_pixel.sum() == 1
    assert postprocess(hot_pixel, everywhere, {"median_mm": 3.2}, **grid).max() == 0
    assert postprocess(lesion, everywhere, {"median_mm": 8.0}, **grid).max() == 0
    assert postprocess(disc(9.0, 1.067), everywhere, {"median_mm": 8.0}, **grid)[0, 20, 20] == 1


@pytest.mark.parametrize(
    ("median_mm", "spacing", "pixels"),
    [(8.0, 1.6, 5), (7.9, 1.6, 3), (3.2, 1.067, 3), (3.2, 1.6, 1), (4.8, 1.6, 3), (8.0, 1.0, 7), (0.0, 1.0, 1)],
)
def test_a_median_in_mm_is_the_largest_odd_number_of_pixels_not_wider(
    median_mm: float, spacing: float, pixels: int
) -> None:
    assert PostprocessSettings(median_mm=median_mm).on_grid(spacing, 5.0).median_pixels == pixels


@pytest.mark.parametrize(("slice_mm", "low", "high"), [(8.0, 0.0, 0.05), (5.0, 0.2, 0.3), (1.5, 0.85, 0.9)])
def test_smoothing_in_mm_joins_thin_slices_and_leaves_thick_ones_apart(
    slice_mm: float, low: float, high: float
) -> None:
    scores = np.zeros((41, 6, 6), dtype=np.float32)
    scores[20] = 1
    settings = {"median_pixels": 1, "slice_sigma_mm": 3.0}
    filtered = postprocess(scores, np.ones(scores.shape, bool), settings, pixel_spacing=1.0, slice_spacing=slice_mm)
    beside = filtered[19, 3, 3] / filtered[20, 3, 3]
    assert low <= beside <= high
    assert beside == pytest.approx(np.exp(-0.5 * (slice_mm / 3.0) ** 2), rel=1e-4)


def test_a_rim_in_mm_is_whole_pixels_not_wider() -> None:
    brain = np.zeros((1, 30, 30), dtype=bool)
    brain[:, 5:25, 5:25] = True
    for spacing, left in ((1.0, 14), (1.6, 18), (2.0, 18), (4.0, 20)):
        settings = {"median_pixels": 1, "edge_erosion_mm": 3.0}
        grid = {"pixel_spacing": spacing, "slice_spacing": 1.0}
        assert postprocess(brain.astype(np.float32), brain, settings, **grid).sum() == left**2


def test_what_is_stated_on_the_grid_is_kept_as_it_is_and_what_is_not_stated_has_its_default() -> None:
    stated = {"median_pixels": 5, "slice_sigma": 1.0, "edge_erosion_pixels": 0, "error_normalisation_power": 0.5}
    assert PostprocessSettings.from_dict(stated).to_dict() == stated
    assert PostprocessSettings() == PostprocessSettings.from_dict({"median_pixels": 5, "slice_sigma": 0.0})
    assert PostprocessSettings(median_mm=3.2).to_dict() == {
        "slice_sigma": 0.0,
        "edge_erosion_pixels": 0,
        "error_normalisation_power": 0.0,
        "median_mm": 3.2,
    }


def test_a_changed_filter_replaces_the_one_it_was_whichever_way_it_was_stated() -> None:
    settings = PostprocessSettings(median_pixels=3, slice_sigma_mm=4.0)
    assert settings.changed({"median_mm": 8.0}) == PostprocessSettings(median_mm=8.0, slice_sigma_mm=4.0)
    assert settings.changed({"slice_sigma": 0.0}) == PostprocessSettings(median_pixels=3)
    with pytest.raises(InputError, match="both given"):
        settings.changed({"median_mm": 8.0, "median_pixels": 3})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"median_pixels": 4}, "median_pixels is 4"),
        ({"median_pixels": 0}, "median_pixels is 0"),
        ({"slice_sigma": -1}, "slice_sigma is -1"),
        ({"slice_sigma": "wide"}, "slice_sigma is 'wide'"),
        ({"median_mm": -1}, "median_mm is -1"),
        ({"slice_sigma_mm": True}, "slice_sigma_mm is True"),
        ({"edge_erosion_mm": 51}, "edge_erosion_mm is 51"),
        ({"median_pixels": 5, "median_mm": 8.0}, "median_pixels and median_mm are both given"),
        ({"slice_sigma": 0, "slice_sigma_mm": 0}, "slice_sigma and slice_sigma_mm are both given"),
        ({"edge_erosion_pixels": 1, "edge_erosion_mm": 1.6}, "edge_erosion_pixels and edge_erosion_mm are both given"),
        ({"blur": 1}, "blur"),
    ],
)
def test_unusable_settings_are_named(settings: dict, named: str) -> None:
    volume = np.zeros((1, 4, 4), dtype=np.float32)
    with pytest.raises(InputError, match=named):
        postprocess(volume, volume > 0, settings, **SPACING)
