"""An anomaly map becomes a list: how large, how high its scores, where."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

import phantom
from diffusion_anomaly.cli import console
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.options import margin_of
from diffusion_anomaly.results.findings import (
    MOST_SPARSE,
    findings_table,
    segment,
    segment_arrays,
    write_findings_csv,
    write_findings_json,
)

COLUMNS = [
    "id",
    "volume_ml",
    "peak_heat_neg_log10_p",
    "mean_heat_neg_log10_p",
    "centroid_r_mm",
    "centroid_a_mm",
    "centroid_s_mm",
    "slice_first_index",
    "slice_last_index",
    "i_first_index",
    "i_last_index",
    "j_first_index",
    "j_last_index",
    "k_first_index",
    "k_last_index",
    "place",
]


def heat_map(size=(20, 18, 10), spacing=(1.0, 2.0, 5.0), direction=None) -> tuple[sitk.Image, np.ndarray]:
    """An empty anomaly map of 10 µl voxels, and an array to fill."""
    image = phantom.grid(size, spacing, direction)
    return image, np.zeros(size[::-1], np.float32)


def three_blocks() -> sitk.Image:
    """A large warm block, a small hot one, and one single voxel (k, j, i)."""
    image, anomaly_map = heat_map()
    anomaly_map[1:4, 2:8, 3:9] = 2.0
    anomaly_map[2, 4, 5] = 2.5
    anomaly_map[6:8, 10:12, 12:14] = 5.0
    anomaly_map[9, 17, 19] = 9.0
    return phantom.on_grid(anomaly_map, image)


def test_blocks_are_measured_and_ranked_by_volume_times_scores():
    mask, labels, findings = segment(three_blocks(), 1.5, min_volume_ml=0)
    assert [finding.id for finding in findings] == [1, 2, 3]
    large, marked, voxel = findings
    assert (large.volume_ml, marked.volume_ml, voxel.volume_ml) == pytest.approx((1.08, 0.08, 0.01))
    assert (large.peak_score, marked.peak_score, voxel.peak_score) == (2.5, 5.0, 9.0)
    assert large.mean_score == pytest.approx((107 * 2.0 + 2.5) / 108)
    assert large.bounding_box == ((3, 2, 1), (8, 7, 3))
    assert large.slices == (1, 3)
    assert [finding.burden for finding in findings] == sorted((f.burden for f in findings), reverse=True)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert phantom.geometry(mask) == phantom.geometry(labels) == phantom.geometry(three_blocks())
    label_array = sitk.GetArrayFromImage(labels)
    assert [(label_array == rank).sum() for rank in (1, 2, 3)] == [108, 8, 1]
    assert np.array_equal(sitk.GetArrayFromImage(mask), label_array > 0)


def test_a_score_and_its_usual_range_are_told_in_words() -> None:
    score = {"value": 1.234, "title": "log-odds", "healthy_range": None}
    assert console._score_in_words(score) == "Whole-image score 1.23: log-odds"
    known = {**score, "healthy_range": {"mean": 2.0, "upper": 3.0}}
    assert console._score_in_words(known) == "Whole-image score 1.23: log-odds; of known scans 1 to 3"


@pytest.mark.parametrize("share", [0.0, 0.003, 0.015, 0.03, 0.4, 1.0])
def test_components_are_the_same_whether_few_or_many_voxels_are_marked(share):
    random = np.random.default_rng(0)
    array = random.uniform(0.5, 1.0, (14, 23, 31)).astype(np.float32) * (random.random((14, 23, 31)) < share)
    array[[0, 0, -1, -1], [0, -1, 0, -1], [0, -1, 0, -1]] = 3.0  # corners are no neighbours around the edge
    assert (np.count_nonzero(array) > MOST_SPARSE * array.size) == (share > 0.02)
    image = phantom.on_grid(array, phantom.grid(array.shape[::-1], (1.0, 1.0, 1.0)))
    expected, count = ndimage.label(array > 0, np.ones((3, 3, 3)))
    mask, labels, findings = segment_arrays(image, 0.1, min_volume_ml=0)
    assert len(findings) == count and np.array_equal(mask, array > 0)
    pairs = set(zip(expected.ravel().tolist(), labels.ravel().tolist(), strict=True))
    assert len(pairs) == count + (share < 1)  # each component has one label, and each label one component
    for finding in findings:
        own = np.argwhere(labels == finding.id)[:, ::-1]
        assert finding.bounding_box == (tuple(own.min(axis=0)), tuple(own.max(axis=0)))
        assert finding.volume_ml == pytest.approx(len(own) / 1000)
        assert finding.peak_score == array[labels == finding.id].max()


def test_the_centroid_is_in_ras_millimetres_in_every_orientation():
    _, array = heat_map()
    array[1:4, 2:8, 3:9] = 2.0
    image, _ = heat_map(direction=phantom.rotation((20, -10, 35)))
    anomaly_map = phantom.on_grid(array, image)
    left, posterior, superior = phantom.points(image)[1:4, 2:8, 3:9].reshape(-1, 3).mean(axis=0)
    for turned in phantom.orientations(anomaly_map):
        (finding,) = segment(turned, 1.0)[2]
        assert finding.centroid_ras == pytest.approx((-left, -posterior, superior), abs=1e-4)
        assert finding.volume_ml == pytest.approx(1.08)


def test_slices_are_counted_along_the_scans_own_axial_axis():
    image, array = heat_map()
    array[1:4, 2:8, 3:9] = 2.0
    anomaly_map = phantom.on_grid(array, image)
    sagittal = sitk.PermuteAxes(anomaly_map, (1, 2, 0))  # axial slices run along j
    assert segment(sagittal, 1.0)[2][0].slices == (1, 3)
    assert segment(sagittal, 1.0)[2][0].bounding_box == ((2, 1, 3), (7, 3, 8))
    upside_down = sitk.Flip(anomaly_map, (False, False, True))
    assert segment(upside_down, 1.0)[2][0].slices == (6, 8)


def test_small_components_are_dropped_from_mask_and_list():
    mask, _, findings = segment(three_blocks(), 1.5, min_volume_ml=0.05)
    assert [finding.id for finding in findings] == [1, 2]
    assert sitk.GetArrayFromImage(mask)[9, 17, 19] == 0


def test_components_that_hardly_exceed_the_threshold_are_dropped_from_mask_labels_and_list():
    mask, labels, findings = segment(three_blocks(), 1.5, min_volume_ml=0, peak_margin=1.25)
    assert [(finding.id, finding.peak_score) for finding in findings] == [(1, 5.0), (2, 9.0)]
    marked, numbers = sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(labels)
    assert not marked[1:4].any() and marked[6:8, 10:12, 12:14].all() and marked.sum() == 9
    assert np.array_equal(numbers > 0, marked > 0) and set(np.unique(numbers)) == {0, 1, 2}


@pytest.mark.parametrize(("margin", "left"), [(1.0, 3), (1.0001, 2), (3.5, 2), (7.5, 1), (7.6, 0)])
def test_the_highest_score_may_be_the_threshold_and_the_margin_themselves(margin, left):
    assert len(segment(three_blocks(), 1.5, 0, peak_margin=margin)[2]) == left


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3, 0.9])
def test_what_is_left_is_what_can_be_reached_from_voxels_above_threshold_and_margin(is_sparse, margin):
    image, noise = heat_map((40, 30, 20), (1.0, 1.0, 1.0))
    noise[:] = np.random.default_rng(5).random(noise.shape)
    threshold = float(np.quantile(noise, 1 - (0.5 if is_sparse else 3) * MOST_SPARSE))  # has no exact float32
    anomaly_map = phantom.on_grid(noise, image)
    mask, _, findings = segment(anomaly_map, threshold, 0, peak_margin=margin * (1 - threshold))
    at_once = noise >= np.float32(threshold)
    seeds = noise >= np.float32(threshold + margin * (1 - threshold))
    reached = ndimage.binary_propagation(seeds, np.ones((3, 3, 3)), at_once)
    assert np.array_equal(sitk.GetArrayFromImage(mask) > 0, reached)
    assert len(findings) == ndimage.label(reached, np.ones((3, 3, 3)))[1]
    assert reached.sum() > 0 and (reached == at_once).all() == (margin == 0)


@pytest.mark.parametrize("threshold", [0.1, 0.7, 1.9338])  # none is a float32
def test_a_margin_of_0_is_none(threshold):
    image, array = heat_map()
    array[2, 3:6, 4:9] = threshold  # all at the threshold itself, as float32 has it
    anomaly_map = phantom.on_grid(array, image)
    plain, same = segment_arrays(anomaly_map, threshold), segment_arrays(anomaly_map, threshold, peak_margin=0.0)
    assert plain[0].sum() == 15 and plain[2] == same[2]
    assert np.array_equal(plain[0], same[0]) and np.array_equal(plain[1], same[1])


@pytest.mark.parametrize("edge", [0.9999999, 1.0, 1.0000001])
def test_the_smallest_volume_itself_is_kept(edge):
    image, anomaly_map = heat_map((20, 20, 5), (edge, edge, edge))
    anomaly_map[2, 3:8, 3:13] = 1  # 50 voxels of 1 mm
    anomaly_map[4, 12, 1:50] = 1  # 19 voxels
    findings = segment(phantom.on_grid(anomaly_map, image), 1.0, min_volume_ml=0.05)[2]
    assert [finding.volume_ml for finding in findings] == [pytest.approx(0.05)]


def test_voxels_that_touch_by_a_corner_belong_together():
    image, anomaly_map = heat_map()
    anomaly_map[3, 3, 3] = anomaly_map[4, 4, 4] = anomaly_map[5, 5, 5] = 2.0
    anomaly_map[7, 5, 5] = 2.0  # one slice between
    findings = segment(phantom.on_grid(anomaly_map, image), 1.0, min_volume_ml=0)[2]
    assert [finding.slices for finding in findings] == [(3, 5), (7, 7)]


def test_a_threshold_holds_voxels_at_it_and_never_those_without_scores():
    anomaly_map = three_blocks()
    counts = {at: sitk.GetArrayFromImage(segment(anomaly_map, at, 0)[0]).sum() for at in (0.0, 2.0, 2.001, 5.0, 9.5)}
    assert counts == {0.0: 117, 2.0: 117, 2.001: 10, 5.0: 9, 9.5: 0}


def test_scores_outside_the_brain_is_left_out():
    anomaly_map = three_blocks()
    brain = np.ones((10, 18, 20), np.uint8)
    brain[6:8] = 0
    findings = segment(anomaly_map, 1.5, 0, phantom.on_grid(brain, anomaly_map))[2]
    assert [finding.peak_score for finding in findings] == [2.5, 9.0]


def test_no_scores_means_no_findings(tmp_path):
    image, array = heat_map()
    mask, labels, findings = segment(phantom.on_grid(array, image), 3.0)
    assert findings == []
    assert sitk.GetArrayFromImage(mask).max() == sitk.GetArrayFromImage(labels).max() == 0
    write_findings_csv(findings, tmp_path / "findings.csv")
    assert (tmp_path / "findings.csv").read_text(encoding="utf-8") == ",".join(COLUMNS) + "\n"
    write_findings_json(findings, tmp_path / "findings.json")
    assert json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))["findings"] == []


def test_the_tables_hold_what_was_found_with_units(tmp_path):
    findings = segment(three_blocks(), 1.5)[2]
    write_findings_csv(findings, tmp_path / "findings.csv")
    write_findings_json(findings, tmp_path / "findings.json")
    with open(tmp_path / "findings.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    document = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert list(rows[0]) == COLUMNS
    assert document["findings"] == findings_table(findings)
    assert "log10" in document["heat"]
    for row, finding in zip(rows, findings, strict=True):
        assert float(row["volume_ml"]) == pytest.approx(finding.volume_ml, rel=1e-5)
        assert float(row["centroid_a_mm"]) == pytest.approx(finding.centroid_ras[1], rel=1e-5)
        assert int(row["k_last_index"]) == finding.bounding_box[1][2]


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match="threshold is"):
        segment(three_blocks(), wrong)
    with pytest.raises(InputError, match="volume is"):
        segment(three_blocks(), 1.0, wrong)
    with pytest.raises(InputError, match="peak margin is"):
        segment(three_blocks(), 1.0, peak_margin=wrong)
    with pytest.raises(InputError, match="peak margin is"):
        margin_of({"peak_margin": wrong})


@pytest.mark.parametrize("wrong", [None, "1", True, [1.0], 10**400])
def test_a_record_whose_margin_is_no_number_is_refused(wrong):
    with pytest.raises(InputError, match="peak margin is"):
        margin_of({"peak_margin": wrong})


def test_results_of_earlier_versions_have_no_margin():
    assert margin_of({"min_volume_ml": 0.05}) == 0 and margin_of({"peak_margin": 1}) == 1.0


def test_a_brain_mask_of_another_grid_is_refused():
    with pytest.raises(InputError, match=r"4x4x4.*20x18x10"):
        segment(three_blocks(), 1.0, brain=sitk.Image(4, 4, 4, sitk.sitkUInt8))
