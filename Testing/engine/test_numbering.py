"""Numbers beside findings: near their own, over no finding, over no other number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.results.numbering import FARTHEST, GAP, numbers_beside
from diffusion_anomaly.results.rendering import CONTOUR, SliceView, draw_slices
from diffusion_anomaly.results.report import Shown, render, render_report
from diffusion_anomaly.results.result import Result
from test_report import picture

WIDTH, HEIGHT = 20, 16


def extent(number: int) -> tuple[int, int]:
    return WIDTH * len(str(number)), HEIGHT


def boxes_of(labels: np.ndarray, taken: np.ndarray | None = None) -> dict[int, tuple[slice, slice]]:
    """Rows and columns of each number that found a place."""
    taken = np.zeros(labels.shape, bool) if taken is None else taken
    places: Mapping[int, tuple[int, int]] = numbers_beside(labels, taken, extent)
    return {
        number: (slice(top, top + extent(number)[1]), slice(left, left + extent(number)[0]))
        for number, (left, top) in places.items()
    }


def scattered(seed: int, count: int) -> np.ndarray:
    """Discs of all sizes that do not touch."""
    chance = np.random.default_rng(seed)
    labels = np.zeros((240, 300), int)
    rows, columns = np.indices(labels.shape)
    for number in range(1, count + 1):
        row, column, radius = chance.integers(240), chance.integers(300), chance.integers(1, 22)
        disc = np.hypot(rows - row, columns - column) <= radius
        if not labels[np.hypot(rows - row, columns - column) <= radius + 2].any():
            labels[disc] = number
    return labels


@pytest.mark.parametrize("count", [5, 120])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_number_stands_beside_its_own_finding_and_over_nothing(seed: int, count: int) -> None:
    labels = scattered(seed, count)
    taken = np.zeros(labels.shape, bool)
    taken[100:140, :30] = True
    before = taken.copy()
    boxes = boxes_of(labels, taken)
    assert len(boxes) >= 4
    for number, (rows, columns) in boxes.items():
        height, width = labels[rows, columns].shape
        assert (width, height) == extent(number)  # all of it inside the picture
        around = labels[max(0, rows.start - GAP // 2) : rows.stop + GAP // 2, columns]
        assert not around.any() and not before[rows, columns].any()
        own = np.argwhere(labels == number)
        edge = np.maximum(0, np.maximum(own - (rows.stop, columns.stop), (rows.start, columns.start) - own))
        assert np.hypot(*edge.T).min() <= FARTHEST + max(width, height) / 2
        middle = np.array([(rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2])
        distances = {
            n: np.hypot(*(np.argwhere(labels == n) - middle).T).min() for n in np.unique(labels[labels > 0]).tolist()
        }
        assert distances[number] == pytest.approx(min(distances.values()), abs=1)
    for (rows, columns), (other_rows, other_columns) in combinations(boxes.values(), 2):
        apart = rows.stop <= other_rows.start or other_rows.stop <= rows.start
        assert apart or columns.stop <= other_columns.start or other_columns.stop <= columns.start


def test_the_biggest_comes_first_where_there_is_room_for_one() -> None:
    labels = np.zeros((20, 80), int)  # too low for a number above or below
    labels[6:12, 2:6] = 1
    labels[:, 40:] = 2
    room = np.flatnonzero(labels.max(axis=0) == 0)
    assert room[-1] - room[5] < 2 * WIDTH + 3 * GAP
    assert list(boxes_of(labels)) == [2]


def test_without_room_there_is_no_number() -> None:
    assert boxes_of(np.ones((30, 40), int)) == {}
    assert boxes_of(np.zeros((30, 40), int)) == {}
    small = np.zeros((HEIGHT - 1, 60), int)
    small[5, 5] = 1
    assert boxes_of(small) == {}


def two_squares() -> tuple[SliceView, sitk.Image]:
    """One slice with findings 1 and 2, of which a reader has rejected the second."""
    grid = phantom.grid((60, 60, 1), (3.0, 3.0, 5.0))
    values = np.zeros((1, 60, 60), np.uint16)
    values[0, 14:20, 14:20], values[0, 40:46, 40:46] = 1, 2
    everything = phantom.on_grid(np.ones(values.shape, np.uint8), grid)
    mask = phantom.on_grid((values == 1).astype(np.uint8), grid)
    scores = sitk.Cast(mask, sitk.sitkFloat32) * 0.0
    labels = phantom.on_grid(values, grid)
    return SliceView(phantom.paint(grid), scores, mask, everything, labels=labels), labels


def test_numbers_are_drawn_over_the_map_alone_and_none_of_what_was_rejected() -> None:
    view, _ = two_squares()
    numbered = draw_slices(view, [0], threshold=2.0, top=3.0)[0]
    view.labels = None
    bare = draw_slices(view, [0], threshold=2.0, top=3.0)[0]
    assert numbered.scan == bare.scan
    rows, columns = np.nonzero(np.abs(picture(numbered.overlay) - picture(bare.overlay)).max(axis=-1) > 0.1)
    assert 80 < rows.size < 1000
    marked = np.argwhere(view.mask[0, view.rows, view.columns])
    pixel = 480 / view.mask[0, view.rows, view.columns].shape[0]
    assert np.hypot(rows.mean() - marked[:, 0].mean() * pixel, columns.mean() - marked[:, 1].mean() * pixel) < 60
    assert np.ptp(rows) < 40 and np.ptp(columns) < 40  # one number
    cyan = np.array([int(CONTOUR[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    drawn = picture(numbered.overlay)[rows, columns]
    assert (np.abs(drawn - cyan).max(axis=-1) < 0.05).sum() > 20


def test_a_results_labels_are_its_findings(small_result: Result) -> None:
    labels = sitk.GetArrayFromImage(small_result.labels())
    assert np.array_equal(labels > 0, sitk.GetArrayFromImage(small_result.mask) > 0)
    assert sorted(set(labels[labels > 0].tolist())) == [finding.id for finding in small_result.findings]
    other = small_result.at(small_result.threshold * 1.2, 0.0)
    labels = sitk.GetArrayFromImage(other.labels())
    assert np.array_equal(labels > 0, sitk.GetArrayFromImage(other.mask) > 0)


def test_the_page_of_a_result_has_numbers_and_says_so(small_result: Result) -> None:
    page = render_report(small_result)
    assert "numbers are the findings" in page
    without = render(replace(Shown.of(small_result), labels=None))
    assert "numbers are the findings" not in without
    pictures, bare = (re.findall(r"data:image/png;base64,([^\"]+)", text) for text in (page, without))
    assert len(pictures) == len(bare) and pictures != bare
