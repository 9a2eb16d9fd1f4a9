"""The numbers of an evaluation against brute force and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.results.findings import segment

# Few distinct values, so that ties are the rule.
scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=25).map(np.array)


def average_precision_by_enumeration(positive: np.ndarray, negative: np.ndarray, missed: int = 0) -> float:
    """The definition, word by word: gain in recall times precision, summed down the distinct thresholds."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        true = sum(p >= threshold for p in positive)
        false = sum(n >= threshold for n in negative)
        recall = true / (len(positive) + missed)
        total += (recall - recall_before) * true / (true + false)
        recall_before = recall
    return total


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_average_precision_is_its_definition_with_ties(positive: np.ndarray, negative: np.ndarray) -> None:
    expected = average_precision_by_enumeration(positive, negative)
    assert metrics.average_precision(positive, negative) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_known_rankings() -> None:
    assert metrics.average_precision(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    # Ranks from the top: -, +, -, +: precision 1/2 at the first positive and 2/4 at the second.
    assert metrics.average_precision(np.array([3.0, 1.0]), np.array([4.0, 2.0])) == pytest.approx(0.5)
    # All alike: one threshold, whose precision is the prevalence.
    assert metrics.average_precision(np.ones(2), np.ones(6)) == pytest.approx(0.25)
    assert math.isnan(metrics.average_precision(np.array([]), np.ones(3)))


@settings(max_examples=60, deadline=None)
@given(scores, scores, st.integers(0, 30))
def test_missed_positives_take_their_share_off_average_precision(
    positive: np.ndarray, negative: np.ndarray, missed: int
) -> None:
    found = metrics.average_precision(positive, negative, missed)
    assert found == pytest.approx(average_precision_by_enumeration(positive, negative, missed), abs=1e-12)
    share = len(positive) / (len(positive) + missed)
    assert found == pytest.approx(metrics.average_precision(positive, negative) * share, abs=1e-12)


def test_missed_positives_count_as_if_they_lay_among_endless_other_voxels() -> None:
    values, counts = metrics.distinct(np.array([-1.0, -1.0, 1.0, 2.0, 2.0]))  # two below every voxel looked at
    negatives = metrics.at_least(np.array([0.0, 1.0, 3.0]), values) + np.where(values < 0, 10**12, 0)
    expected = metrics.average_precision_of_counts(counts, negatives)
    found = metrics.average_precision(np.array([1.0, 2.0, 2.0]), np.array([0.0, 1.0, 3.0]), missed=2)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found == pytest.approx(2 / 5 * 2 / 3 + 1 / 5 * 3 / 5)


def test_positives_that_are_all_missed_have_no_precision_and_none_at_all_no_value() -> None:
    nothing = np.array([])
    assert metrics.average_precision(nothing, np.ones(3), missed=4) == 0.0
    assert math.isnan(metrics.average_precision(nothing, np.ones(3), missed=0))


def test_average_precision_of_random_scores_is_the_prevalence() -> None:
    random = np.random.default_rng(0)
    value = metrics.average_precision(random.random(20_000), random.random(60_000))
    assert value == pytest.approx(0.25, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(scores, scores, scores, scores)
def test_pooling_counts_is_pooling_voxels(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> None:
    values, counts = metrics.distinct(np.concatenate([a, c]))
    negatives = metrics.at_least(b, values) + metrics.at_least(d, values)
    pooled = metrics.average_precision_of_counts(counts, negatives)
    direct = metrics.average_precision(np.concatenate([a, c]), np.concatenate([b, d]))
    assert pooled == pytest.approx(direct, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(scores, scores)
def test_auroc_is_the_share_of_pairs_in_order(positive: np.ndarray, negative: np.ndarray) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert metrics.auroc(positive, negative) == pytest.approx(np.mean(pairs))


@settings(max_examples=60, deadline=None)
@given(scores, scores, st.integers(1, 9))
def test_missed_positives_rank_below_all_in_auroc(positive: np.ndarray, negative: np.ndarray, missed: int) -> None:
    below = np.full(missed, min(positive.min(), negative.min()) - 1)
    expected = metrics.auroc(np.concatenate([positive, below]), negative)
    assert metrics.auroc(positive, negative, missed) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 9).map(float), min_size=1, max_size=40).map(np.array))
def test_otsus_threshold_parts_values_with_the_largest_variance_between(values: np.ndarray) -> None:
    def between(threshold: float) -> float:
        upper = values >= threshold
        apart = values[upper].mean() - values[~upper].mean()
        return float(upper.mean() * (1 - upper.mean()) * apart**2)

    found = metrics.otsu_threshold(values)
    splits = np.unique(values)[1:]
    if splits.size == 0:
        assert found == math.inf
    else:
        assert found in splits
        assert between(found) == pytest.approx(max(map(between, splits)))


def test_otsus_threshold_is_that_of_simpleitk_within_a_bin() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(1, 0.2, 40_000), random.normal(3, 0.5, 10_000)])
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(values.reshape(250, 200)))
    assert metrics.otsu_threshold(values) == pytest.approx(otsu.GetThreshold(), abs=1.5 * np.ptp(values) / 256)


def test_auroc_without_one_of_the_classes_is_no_number() -> None:
    assert math.isnan(metrics.auroc(np.array([]), np.ones(2)))
    assert math.isnan(metrics.auroc(np.ones(2), np.array([])))


def test_dice_of_two_overlapping_boxes() -> None:
    a, b = np.zeros((4, 8, 8), bool), np.zeros((4, 8, 8), bool)
    a[:, :4], b[:, 2:6] = True, True
    assert metrics.dice(a, b) == pytest.approx(0.5)
    assert metrics.dice(a, a) == 1.0
    assert metrics.dice(np.zeros_like(a), a) == 0.0
    assert math.isnan(metrics.dice(a, np.zeros_like(a)))


def box(shape: tuple[int, int, int], *corners: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for corner in corners:
        mask[corner] = True
    return mask


def test_lesions_are_found_by_one_common_voxel_and_others_are_false_alarms() -> None:
    first = (slice(0, 2), slice(0, 2), slice(0, 2))
    second = (slice(5, 8), slice(5, 8), slice(5, 8))
    reference = box((10, 10, 10), first, second)
    predicted = box((10, 10, 10), (slice(1, 3), slice(1, 3), slice(1, 3)), (slice(0, 1), slice(8, 10), slice(8, 10)))
    match = metrics.Lesions.of(reference, 0.5).match(predicted)
    assert match.volumes_ml == (4.0, 13.5)
    assert match.found == (True, False)
    assert match.false_positives == 1


@pytest.mark.parametrize(
    ("least_share", "found", "false_positives"), [(0.0, True, 0), (0.008, True, 0), (0.1, False, 1)]
)
def test_a_component_that_is_mostly_elsewhere_finds_nothing(
    least_share: float, found: bool, false_positives: int
) -> None:
    reference, whole = box((10, 10, 10), (slice(1, 3),) * 3), np.ones((10, 10, 10), bool)
    match = metrics.Lesions.of(reference, 1.0).match(whole, least_share)
    assert (match.found, match.false_positives) == ((found,), false_positives)


def test_voxels_that_share_a_corner_are_one_lesion() -> None:
    diagonal = box((2, 2, 2), (slice(0, 1),) * 3, (slice(1, 2),) * 3)
    assert len(metrics.Lesions.of(diagonal, 1.0).match(diagonal).found) == 1


def test_matching_with_nothing_predicted_or_nothing_there() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert metrics.Lesions.of(full, 1.0).match(empty).found == (False,)
    assert metrics.Lesions.of(empty, 1.0).match(full) == metrics.LesionMatch((), (), 1)
    assert metrics.Lesions.of(empty, 1.0).match(empty) == metrics.LesionMatch((), (), 0)


@pytest.mark.parametrize("smallest", [0.0, 0.5, 1.0, 1.2, 8.0])
def test_small_components_are_left_out_as_findings_leave_them_out(smallest: float) -> None:
    anomaly_map = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32) ** 4
    image = sitk.GetImageFromArray(anomaly_map)
    image.SetSpacing((5.0, 5.0, 20.0))
    expected = sitk.GetArrayFromImage(segment(image, 0.6, smallest)[0]) > 0
    assert expected.any()
    assert np.array_equal(metrics.findings_mask(anomaly_map, 0.6, 0.5, smallest), expected)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.25, 0.5])
def test_components_that_hardly_exceed_the_threshold_are_left_out_as_findings_leave_them_out(margin: float) -> None:
    anomaly_map = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32) ** 4
    image = sitk.GetImageFromArray(anomaly_map)
    expected = sitk.GetArrayFromImage(segment(image, 0.6, 0.0, peak_margin=margin)[0]) > 0
    assert expected.any() == (margin < 0.5)
    assert np.array_equal(metrics.findings_mask(anomaly_map, 0.6, 0.001, 0.0, margin), expected)


def test_distance_to_the_nearest_lesion_slice() -> None:
    flags = np.array([0, 0, 1, 0, 0, 0, 1], bool)
    assert metrics.slice_distance(flags).tolist() == [2, 1, 0, 1, 2, 1, 0]
    assert np.isinf(metrics.slice_distance(np.zeros(3, bool))).all()


def test_hottest_mean_takes_the_share_asked_for_and_at_least_one() -> None:
    anomaly_map = np.arange(100.0)
    assert metrics.highest_mean(anomaly_map, 0.02) == 98.5
    assert metrics.highest_mean(np.array([1.0, 5.0]), 0.01) == 5.0


def test_the_interval_of_a_mean_is_the_normal_one_for_many_patients() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = metrics.interval(lambda draw: values[draw].mean(), metrics.resamples(400, 2000, seed=0))
    assert found is not None
    half = 1.96 * values.std() / 20.0
    assert found[0] == pytest.approx(values.mean() - half, abs=0.03)
    assert found[1] == pytest.approx(values.mean() + half, abs=0.03)


def test_one_patient_has_no_interval() -> None:
    assert metrics.interval(lambda draw: 1.0, metrics.resamples(1, 100, seed=0)) is None


def test_a_statistic_that_most_resamples_lack_has_no_interval() -> None:
    draws = metrics.resamples(10, 400, seed=0)
    assert metrics.interval(lambda draw: 1.0 if draw[0] == 0 else math.nan, draws) is None


@pytest.mark.parametrize(("patients", "known"), [(0, 0), (1, 1), (20, 3)])
def test_what_is_not_known_of_a_statistic_and_its_ends_is_nan(patients: int, known: int) -> None:
    values = np.arange(float(patients))
    row = metrics.with_ends("x", lambda chosen: float(values[chosen].mean()), metrics.resamples(patients, 200, 0))
    assert list(row) == ["x", "x_low", "x_high"]
    assert sum(np.isfinite(value) for value in row.values()) == known
    assert patients < 2 or row["x_low"] < row["x"] == values.mean() < row["x_high"]


def test_resamples_repeat_with_their_seed() -> None:
    assert np.array_equal(metrics.resamples(7, 5, seed=3), metrics.resamples(7, 5, seed=3))
    assert not np.array_equal(metrics.resamples(7, 5, seed=3), metrics.resamples(7, 5, seed=4))


def test_thinning_keeps_both_ends_and_the_order() -> None:
    thinned = metrics.thin(np.arange(1000.0), 10)
    assert len(thinned) == 10
    assert (thinned[0], thinned[-1]) == (0.0, 999.0)
    assert (np.diff(thinned) > 0).all()
    assert metrics.thin(np.arange(4.0), 10).tolist() == [0, 1, 2, 3]


def test_mean_leaves_out_what_is_no_number() -> None:
    assert metrics.mean_or_nan([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(metrics.mean_or_nan([math.nan]))
