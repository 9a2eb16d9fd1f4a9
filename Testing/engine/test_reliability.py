"""Measured against expected: rates and volumes that are known beforehand, and the picture that shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from diffusion_anomaly.evaluation.reliability import SCORES, FreeSlices, Reliability
from diffusion_anomaly.io.outputs import publish

SLICES, FREE = 40, 30
SHAPE = (SLICES, 50, 50)
VOXEL_ML = 0.01


def scan_with(anomaly_map: np.ndarray, predicted: np.ndarray | None = None, name: str = "a") -> FreeSlices:
    """Everything is brain; all but the first ten slices are tumour-free."""
    everywhere = np.ones(SHAPE, bool)
    free = np.arange(SLICES) >= SLICES - FREE
    marked = np.zeros(SHAPE, bool) if predicted is None else predicted
    return FreeSlices.of(name, anomaly_map, marked, everywhere, free, VOXEL_ML)


def counted(name: str, brain_ml: float, marked_ml: float, false_alarm_ml: float = 0.0) -> FreeSlices:
    """As much brain at least as high as every anomaly scores of the curve, half of the scan's brain being
    tumour-free.
    """
    return FreeSlices(name, 5, brain_ml, 2 * brain_ml, np.full(len(SCORES), marked_ml), false_alarm_ml)


def rate(found: Reliability, anomaly_map: float, run: str = "x") -> dict[str, Any]:
    (row,) = [row for row in found.curve if (row["run"], row["heat"]) == (run, anomaly_map)]
    return row


def of(*parts: FreeSlices, threshold: float = 2.0) -> Reliability:
    return Reliability.of({"x": parts}, {"x": threshold}, resamples=50)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_scores_that_is_optimistic_by_a_factor_is_caught_by_that_factor(factor: float) -> None:
    uniform = np.random.default_rng(0).random(SHAPE)
    found = of(scan_with(-np.log10(uniform / factor)))
    for anomaly_map in (1.0, 2.0):
        assert rate(found, anomaly_map)["ratio"] == pytest.approx(factor, rel=0.08)
        assert rate(found, anomaly_map)["patients_within"] == (1 if factor == 1.0 else 0)


def test_slices_with_tumour_have_no_say() -> None:
    anomaly_map = np.zeros(SHAPE)
    anomaly_map[: SLICES - FREE] = 9.0
    found = of(scan_with(anomaly_map, predicted=anomaly_map > 0))
    assert rate(found, 1.0)["measured"] == 0.0
    assert found.alarms[0]["false_alarm_ml"] == 0.0


def test_patients_count_by_their_brain_in_the_pooled_rate_and_alike_within_the_factor() -> None:
    found = of(counted("a", 100.0, 1.0), counted("b", 300.0, 30.0), counted("c", 100.0, 0.0))
    assert rate(found, 2.0)["measured"] == pytest.approx(31 / 500)
    assert (rate(found, 2.0)["patients"], rate(found, 2.0)["patients_within"]) == (3, 1)
    assert [row["rate_at_2"] for row in found.patients] == [0.01, 0.1, 0.0]


def test_false_alarms_are_medians_as_counted_and_as_a_whole_scan_would_have() -> None:
    found = of(*(counted(name, 100.0, 1.0, ml) for name, ml in (("a", 0.2), ("b", 0.5), ("c", 9.0))))
    (row,) = found.alarms
    assert (row["false_alarm_ml"], row["scaled_ml"]) == (0.5, 1.0)
    assert (row["patients_within"], row["patients"], row["kept"]) == (2, 3, True)
    assert row["scaled_ml_low"] <= 1.0 <= row["scaled_ml_high"]


def test_a_threshold_that_marks_too_much_in_most_scans_is_said_not_to_keep_the_bar() -> None:
    found = of(*(counted(name, 100.0, 1.0, ml) for name, ml in (("a", 0.2), ("b", 0.6), ("c", 9.0))))
    assert found.alarms[0]["kept"] is False
    assert "| x | 2.00 | 0.60 [" in found.markdown()
    assert "| 1 of 3 | no |" in found.markdown()


def test_half_of_an_even_number_of_scans_is_one_more_as_where_thresholds_are_set() -> None:
    found = of(*(counted(name, 100.0, 1.0, ml) for name, ml in (("a", 0.2), ("b", 0.6))))
    assert (found.alarms[0]["patients_within"], found.alarms[0]["kept"]) == (1, False)


def test_a_patient_without_tumour_free_slices_is_left_out() -> None:
    nothing = FreeSlices("b", 0, 0.0, 100.0, np.zeros(len(SCORES)), 0.0)
    found = of(counted("a", 100.0, 1.0), nothing)
    assert [row["patient"] for row in found.patients] == ["a"]
    assert rate(found, 2.0)["measured"] == 0.01
    assert math.isnan(rate(found, 2.0)["measured_low"])  # one patient has no interval
    empty = of(nothing)
    assert empty.alarms[0]["kept"] is None
    assert "| x | ≥ 1 | 0.1 | – | – | 0 of 0 |" in empty.markdown()


def test_all_forms_are_written_and_hold_the_same_numbers(tmp_path: Path) -> None:
    found = of(counted("a", 100.0, 1.0), counted("b", 100.0, 3.0))
    assert set(publish(tmp_path, found.writers())) == {"reliability.png", "reliability.md", "reliability.json"}
    written = json.loads((tmp_path / "reliability.json").read_text(encoding="utf-8"))
    (row,) = [row for row in written["curve"] if row["heat"] == 2.0]
    assert row["measured"] == pytest.approx(0.02)
    low, high = row["measured_low"], row["measured_high"]
    assert f"| x | ≥ 2 | 0.01 | 0.02 [{low:.3g}, {high:.3g}] | 2.00" in (tmp_path / "reliability.md").read_text("utf-8")
    assert "–" not in (tmp_path / "reliability.md").read_text("utf-8").splitlines()[2]


@pytest.mark.parametrize("marked_ml", [1.0, 0.0])
def test_the_picture_is_drawn_with_and_without_anything_hot(marked_ml: float, tmp_path: Path) -> None:
    path = tmp_path / "reliability.png"
    of(counted("a", 100.0, marked_ml), counted("b", 100.0, marked_ml)).draw(path)
    pixels = imread(path)[..., :3]
    first_line_colour = np.array([0x1F, 0x77, 0xB4]) / 255  # matplotlib's first
    drawn = (np.abs(pixels - first_line_colour).max(axis=-1) < 0.02).sum()
    in_the_legend_alone = 300
    assert (drawn > in_the_legend_alone) == (marked_ml > 0)
