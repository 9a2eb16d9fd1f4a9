"""Recall at a number of false findings a scan, against what counting by hand gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion_anomaly.evaluation.froc import SIZES_ML, Froc, froc_rows, size_name
from diffusion_anomaly.evaluation.metrics import LesionMatch, resamples

SMALL, MIDDLE, LARGE = SIZES_ML


def matches(volumes: tuple[float, ...], *thresholds: tuple[str, int]) -> list[LesionMatch]:
    """One patient: which of its lesions are found, as 1 and 0, and false findings at each threshold, ascending."""
    return [LesionMatch(volumes, tuple(hit == "1" for hit in hits), alarms) for hits, alarms in thresholds]


@pytest.fixture
def froc() -> Froc:
    return Froc.of(
        [
            matches((0.1, 0.5, 12.0, 0.01), ("1111", 9), ("1110", 3), ("0110", 1), ("0010", 0)),
            matches((0.2, 5.0), ("11", 5), ("11", 3), ("10", 1), ("00", 0)),
        ]
    )


@pytest.mark.parametrize(
    ("size", "allowed", "recall"),
    [
        (SMALL, 4.0, 3 / 3),
        (SMALL, 2.0, 2 / 3),
        (SMALL, 0.5, 0.0),
        (MIDDLE, 3.0, 1.0),
        (MIDDLE, 2.9, 0.0),
        (LARGE, 0.0, 1.0),
    ],
)
def test_recall_is_the_best_of_the_thresholds_with_few_enough_false_findings(
    froc: Froc, size: tuple[float, float], allowed: float, recall: float
) -> None:
    assert froc.recall(np.arange(2), size, allowed) == pytest.approx(recall)


def test_specks_below_the_smallest_size_count_nowhere(froc: Froc) -> None:
    assert [froc.count(size) for size in SIZES_ML] == [3, 1, 1]


def test_a_resample_counts_its_own_false_findings(froc: Froc) -> None:
    assert froc.recall(np.array([1, 1]), SMALL, 1.0) == 1.0
    assert froc.recall(np.array([0, 0]), SMALL, 1.0) == 0.5
    assert math.isnan(froc.recall(np.array([1]), LARGE, 4.0))


def test_no_threshold_with_few_enough_false_findings_finds_nothing() -> None:
    assert Froc.of([matches((0.1,), ("1", 50))]).recall(np.array([0]), SMALL, 4.0) == 0.0


def test_patients_without_lesions_count_for_false_findings_alone() -> None:
    froc = Froc.of([matches((0.1,), ("1", 2), ("0", 0)), matches((), ("", 4), ("", 0))])
    assert froc.recall(np.arange(2), SMALL, 3.0) == 1.0
    assert froc.recall(np.arange(2), SMALL, 2.0) == 0.0


def test_rows_have_every_size_and_intervals_that_hold_the_value(froc: Froc) -> None:
    rows = froc_rows("x", froc, resamples(2, 50, 0))
    assert [row["size"] for row in rows] == ["0.05 to 1 ml", "1 to 10 ml", "10 ml and more"]
    assert [row["size"] for row in rows] == [size_name(size) for size in SIZES_ML]
    assert rows[0]["recall_at_1_low"] <= rows[0]["recall_at_1"] <= rows[0]["recall_at_1_high"]
