"""The page: self-contained, the right way round, and saying what was found."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib import colormaps
from PIL import Image

import packages
import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.models.package import open_bundle
from diffusion_anomaly.results.rendering import (
    SHOWN,
    SliceView,
    choose_slices,
    colour_table,
    draw_colour_bar,
    draw_profile,
    draw_slices,
    scale_ticks,
)
from diffusion_anomaly.results.report import render_report
from diffusion_anomaly.results.result import Result

SVG = "{http://www.w3.org/2000/svg}"
CYAN = (0, 229 / 255, 1)


@pytest.fixture(scope="module")
def result(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> Result:
    return Detector(Options(method="intensity"))(flair_like_volume, brain=flair_like_brain)


@pytest.fixture(scope="module")
def page(result: Result, flair_like_volume: Volume) -> str:
    hostile = {**result.provenance["input"], "title": "<script>alert(1) & Søn.nii.gz"}
    warned = {**result.provenance, "warnings": ["Anomaly scores may mean <b>nothing</b>."], "input": hostile}
    return render_report(replace(result, provenance=warned))


def view_of(result: Result, scan: sitk.Image) -> SliceView:
    return SliceView(scan, result.anomaly_map, result.mask, result.brain)


def picture(uri: str) -> np.ndarray:
    """``(height, width, 3)`` from 0 to 1."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")) / 255


def drawing(uri: str) -> ElementTree.Element:
    """An SVG; fails unless it is well-formed."""
    kind, _, data = uri.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(data))


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def test_no_link_leads_out_of_the_page_and_no_script_is_in_it(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) >= 2 * SHOWN
    assert all(source.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for source in sources)
    drawings = re.findall(r"image/svg\+xml;base64,([^\"]+)", page)
    assert len(drawings) == 2
    for data in drawings:
        words = base64.b64decode(data).decode()
        assert not any(word in words for word in ("href", "script", "url(http", "@import", "<image"))
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # pictures hold any four letters sooner or later
    assert "http" not in text.replace("&#", "")
    assert "@import" not in page
    assert "url(" not in page


def test_names_from_outside_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(1) &amp; Søn.nii.gz" in page
    assert "Anomaly scores may mean &lt;b&gt;nothing&lt;/b&gt;." in page


def test_the_page_says_what_it_is_for_what_was_found_and_how(page: str, result: Result) -> None:
    assert page.count("For research use only. Not for diagnosis.") >= 2
    first = result.findings[0]
    right, anterior, superior = first.centroid_ras
    row = f"<td>{first.volume_ml:.2f}</td><td>{first.peak_score:.2f}</td><td>{first.mean_score:.2f}</td>"
    assert f"{row}<td>{right:.1f}, {anterior:.1f}, {superior:.1f}</td>" in page
    for name in (
        "input · SHA256",
        "input · spacing (mm)",
        "threshold · score",
        "versions · torch",
        "options · seed",
        "device · name",
        "timings (seconds) · total",
    ):
        assert name in page


@pytest.mark.parametrize(
    ("end", "threshold", "says"),
    [
        (None, 2.0, None),
        (1e6, 2.0, None),
        (1.5, 1.0, ").<br>Scores above 1.50 are extrapolated"),
        (1.5, 2.0, "Scores above 1.50, the threshold among them, are extrapolated"),
        (500.0, 600.0, "Scores above 500.00, the threshold among them, are extrapolated"),
    ],
)
def test_scores_beyond_the_calibration_table_are_called_extrapolated(
    end: float | None, threshold: float, says: str | None, result: Result
) -> None:
    provenance = {key: value for key, value in result.provenance.items() if key != "calibration_end"}
    known = {} if end is None else {"calibration_end": end}
    text = render_report(replace(result, threshold=threshold, provenance={**provenance, **known}))
    assert ("extrapolated" in text) == (says is not None)
    assert says is None or says in text


def test_provenance_says_where_the_calibration_table_ends(result: Result) -> None:
    table = open_bundle("flair-intensity").anomaly["calibration"]["heat"]
    assert result.provenance["calibration_end"] == pytest.approx(table[-1], abs=1e-4)


@pytest.mark.parametrize(
    ("upper", "says"),
    [(0.00412, "up to one healthy voxel in 240 reaches 3"), (2e-5, "one healthy voxel in 50,000"), (0.0, None)],
)
def test_the_spread_of_healthy_scans_is_told_where_it_is_known(upper: float, says: str | None, result: Result) -> None:
    spread = {"heat": [1, 2, 3], "upper": [0.2, 0.03, upper], "scans": 12}
    text = render_report(replace(result, provenance={**result.provenance, "calibration_spread": spread}))
    assert ("single scans differ" in text) == (says is not None)
    assert says is None or says in text
    assert "In order of volume times mean score." in text
    assert "single scans differ" not in render_report(
        replace(result, provenance={k: v for k, v in result.provenance.items() if k != "calibration_spread"})
    )


def test_the_spread_of_a_package_is_in_provenance_and_on_the_page(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    spread = {"heat": [1, 2, 3], "upper": [0.2, 0.03, 0.005], "scans": 12}
    calibration = {**packages.INTENSITY["calibration"], "spread": spread}
    bundle = packages.intensity(tmp_path / "spread", calibration=calibration)
    made = Detector(packages.options_for(bundle, force=True))(flair_like_volume, brain=flair_like_brain)
    assert made.provenance["calibration_spread"] == spread
    assert "up to one healthy voxel in 200 reaches 3" in render_report(made)


@pytest.mark.parametrize(
    "spread",
    ["0.1", [], {"heat": [3]}, {"heat": [1, 2, 3], "upper": [0.1]}, {"heat": [3], "upper": ["some"]}, {"heat": 3}],
)
def test_a_spread_that_is_none_is_passed_over(spread: Any, result: Result) -> None:
    made = {**result.provenance, "calibration_spread": spread}
    assert "single scans differ" not in render_report(replace(result, provenance=made))


def test_a_scan_without_findings_says_so(
    flair_like_volume: Volume, flair_like_brain: sitk.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_anomaly.results.report.draw_slices", lambda *arguments: [])
    nothing = Detector(Options(method="intensity", threshold=1e3))(flair_like_volume, brain=flair_like_brain)
    page = render_report(nothing)
    assert "No region of at least 0.05 ml reaches the threshold." in page
    assert "<dd>0</dd>" in page


def test_the_patients_left_is_on_the_right_and_the_front_on_top_for_any_axes(
    result: Result, flair_like_grid: sitk.Image
) -> None:
    """The phantom's lesion lies to the left of the head's centre, in front of it and above it."""
    for n, grid in enumerate(phantom.orientations(flair_like_grid)):
        if n % 5:
            continue
        lesion, brain = phantom.lesion_of(grid), phantom.brain_of(grid)
        view = SliceView(phantom.paint(grid), sitk.Cast(lesion, sitk.sitkFloat32), lesion, brain)
        assert view.sides == ("R", "L")
        k, row, column = np.argwhere(view.mask).mean(axis=0)
        middle_k, middle_row, middle_column = np.argwhere(view.brain).mean(axis=0)
        assert column - middle_column == pytest.approx(21 / 2.4, abs=1)
        assert middle_row - row == pytest.approx(30 / 2.4, abs=1)
        assert k - middle_k == pytest.approx(12 / 5, abs=1)


def test_a_single_sagittal_slice_is_labelled_front_and_back() -> None:
    grid = phantom.grid((1, 72, 64), (5.0, 2.4, 2.4))
    brain = phantom.brain_of(grid)
    view = SliceView(phantom.paint(grid), sitk.Cast(brain, sitk.sitkFloat32), brain, brain)
    assert view.sides == ("A", "P")
    assert len(view) == 1


def test_slice_numbers_are_the_scans_own(flair_like_grid: sitk.Image) -> None:
    upside_down = sitk.Flip(flair_like_grid, (False, False, True))
    for grid in (flair_like_grid, upside_down):
        lesion, brain = phantom.lesion_of(grid), phantom.brain_of(grid)
        view = SliceView(phantom.paint(grid), sitk.Cast(lesion, sitk.sitkFloat32), lesion, brain)
        own = np.flatnonzero(sitk.GetArrayViewFromImage(lesion).any(axis=(1, 2)))
        assert {view.own_index(k) for k in np.flatnonzero(view.marked())} == set(own)


def test_pixels_have_the_aspect_of_the_patient() -> None:
    """A head 140 mm long and 80 mm wide looks so, whatever the voxels are."""
    grid = phantom.grid((20, 70, 3), (4.0, 2.0, 6.0))
    everything = phantom.on_grid(np.ones((3, 70, 20), np.uint8), grid)
    view = SliceView(phantom.paint(grid), sitk.Cast(everything, sitk.sitkFloat32), everything, everything)
    drawn = draw_slices(view, [1], threshold=2.0, top=3.0)[0]
    assert drawn.height / drawn.width == pytest.approx(140 / 80, rel=0.01)
    assert picture(drawn.scan).shape[:2] == (2 * drawn.height, 2 * drawn.width)


def test_scores_is_coloured_where_it_is_and_nowhere_else(result: Result, flair_like_volume: Volume) -> None:
    everything = phantom.on_grid(np.ones_like(sitk.GetArrayFromImage(result.brain)), result.brain)  # no outline
    view = view_of(replace(result, brain=everything), flair_like_volume.image)
    k = int(np.argmax(view.marked()))
    drawn = draw_slices(view, [k], result.threshold, top=2 * result.threshold)[0]
    scan, overlay = picture(drawn.scan), picture(drawn.overlay)
    changed = np.abs(overlay - scan)[..., :3].max(axis=-1) > 0.1
    changed[:8] = changed[-8:] = changed[:, :8] = changed[:, -8:] = False  # but for the picture's own frame
    marked = view.mask[k, view.rows, view.columns] > 0
    rows, columns = np.nonzero(changed)
    hot_rows, hot_columns = np.nonzero(marked)
    assert rows.mean() / changed.shape[0] == pytest.approx((hot_rows.mean() + 0.5) / marked.shape[0], abs=0.02)
    assert columns.mean() / changed.shape[1] == pytest.approx((hot_columns.mean() + 0.5) / marked.shape[1], abs=0.02)
    assert changed.mean() < 3 * marked.mean()
    assert np.ptp(scan, axis=-1).max() == 0


def test_outlines_run_halfway_between_the_voxels_inside_and_those_outside() -> None:
    """A square of 20 x 30 mm: the outline is as far around as it, and cyan all along."""
    grid = phantom.grid((50, 60, 1), (2.0, 2.0, 5.0))
    square = np.zeros((1, 60, 50), np.uint8)
    square[0, 20:30, 12:27] = 1
    mask = phantom.on_grid(square, grid)
    everything = phantom.on_grid(np.ones_like(square), grid)
    view = SliceView(phantom.paint(grid), sitk.Cast(mask, sitk.sitkFloat32) * 0.0, mask, everything)
    drawn = draw_slices(view, [0], threshold=2.0, top=3.0)[0]
    cyan = np.abs(picture(drawn.overlay) - CYAN).max(axis=-1) < 0.05
    rows, columns = np.nonzero(cyan)
    marked = view.mask[0, view.rows, view.columns]
    pixel = cyan.shape[0] / marked.shape[0]
    first, last = np.argwhere(marked).min(axis=0), np.argwhere(marked).max(axis=0) + 1
    for places, low, high in ((rows, first[0], last[0]), (columns, first[1], last[1])):
        assert places.min() == pytest.approx(low * pixel, abs=2)
        assert places.max() + 1 == pytest.approx(high * pixel, abs=2)
    middle = slice(int((first[0] + 1) * pixel), int((last[0] - 1) * pixel))
    for side in (first[1], last[1]):
        edge = slice(int(side * pixel) - 3, int(side * pixel) + 4)
        across = cyan[middle, edge].sum(axis=1)
        assert across.min() >= 1 and across.max() <= 4


def test_the_patients_sides_stand_in_the_picture(result: Result, flair_like_volume: Volume) -> None:
    """R has a closed bow and L has none: the two letters differ, and each is white where the scan is dark."""
    view = view_of(result, flair_like_volume.image)
    scan = picture(draw_slices(view, [len(view) // 2], result.threshold, top=5.0)[0].scan)[..., 0]
    height, width = scan.shape
    band = slice(height // 2 - 14, height // 2 + 14)
    left, right = scan[band, : width // 12], scan[band, -width // 12 :]
    assert left.max() == right.max() == 1
    assert abs(int((left == 1).sum()) - int((right == 1).sum())) > 20


def test_the_colours_of_scores_are_inferno_from_its_second_quarter_on() -> None:
    inferno = colormaps["inferno"](np.linspace(0.25, 1, 256))[:, :3] * 255
    assert np.abs(colour_table(256) - inferno).max() < 5.1


@pytest.mark.parametrize(
    ("threshold", "top"), [(2.0, 6.0), (1.67, 2.6), (2.0, 40.0), (0.01, 0.015), (1000.0, 1500.0), (2.0, 1e12)]
)
def test_the_scale_prints_the_threshold_and_no_two_numbers_over_each_other(threshold: float, top: float) -> None:
    ticks = scale_ticks(threshold, top)
    values = [tick for tick, _ in ticks]
    assert (threshold, f"{threshold:g}") in ticks
    assert values == sorted(values) and len(values) <= 9
    assert values[0] >= threshold / 2 and values[-1] <= top
    assert min(np.diff(values)) > 0.05 * (top - threshold / 2)
    assert top > 1e5 or not any("e" in label for _, label in ticks)
    svg = drawing(draw_colour_bar(threshold, top))
    assert texts(svg) == [label for _, label in ticks]


def test_the_profile_has_a_bar_for_each_marked_slice(result: Result, flair_like_volume: Volume) -> None:
    view = view_of(result, flair_like_volume.image)
    svg = drawing(draw_profile(view, [3, 7]))
    bars, *_ = (path.get("d", "") for path in svg.iter(f"{SVG}path"))
    heights = [float(bottom) - float(top) for bottom, top in re.findall(r" ([\d.]+)V([\d.]+)h", bars)]
    marked = view.marked()
    expected = marked[marked > 0]
    assert np.allclose(np.array(heights) / max(heights), expected / expected.max(), atol=0.002)
    assert {"ml", "slice", "0"} <= set(texts(svg))


def test_the_slices_shown_hold_the_anomaly_and_a_sample_of_the_rest(result: Result, flair_like_volume: Volume) -> None:
    view = view_of(result, flair_like_volume.image)
    chosen = choose_slices(view, result.threshold)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == SHOWN
    assert int(np.argmax(view.marked())) in chosen
    assert sum(view.marked()[k] == 0 for k in chosen) >= 4
    assert all(view.brain[k].any() for k in chosen)


def test_slices_with_little_brain_are_shown_only_where_they_are_marked() -> None:
    grid = phantom.grid((32, 36, 40), (5.0, 5.0, 3.0))
    brain = phantom.brain_of(grid)
    area = sitk.GetArrayFromImage(brain).sum(axis=(1, 2))
    outermost = int(np.flatnonzero(area)[0])
    marked = np.zeros_like(sitk.GetArrayFromImage(brain))
    marked[outermost] = sitk.GetArrayFromImage(brain)[outermost]
    for mask, shown in ((marked, {outermost}), (0 * marked, set())):
        mask_image = phantom.on_grid(mask, grid)
        view = SliceView(phantom.paint(grid), sitk.Cast(mask_image, sitk.sitkFloat32) * 4, mask_image, brain)
        chosen = choose_slices(view, 2.0)
        assert len(chosen) == SHOWN
        assert {k for k in chosen if area[k] < 0.2 * area.max()} == shown


def test_thin_slices_shown_are_apart() -> None:
    grid = phantom.grid((32, 36, 120), (5.0, 5.0, 1.0))
    lesion, brain = phantom.lesion_of(grid), phantom.brain_of(grid)
    view = SliceView(phantom.paint(grid), sitk.Cast(lesion, sitk.sitkFloat32) * 4, lesion, brain)
    chosen = choose_slices(view, 2.0)
    assert len(chosen) == SHOWN
    assert min(np.diff(chosen)) >= 3


def test_small_findings_are_shown_before_more_slices_of_a_large_one() -> None:
    grid = phantom.grid((32, 36, 40), (5.0, 5.0, 3.0))
    brain = phantom.brain_of(grid)
    inside = sitk.GetArrayFromImage(brain)
    labels = np.zeros_like(inside)
    labels[12:28, 14:22, 12:20] = 1
    small = (6, 7, 8, 30, 32)  # slices of one small finding each, two of them neighbours of others
    for number, k in enumerate(small, start=2):
        labels[k, 18, 15] = number
    assert all(inside[k, 18, 15] for k in small)
    mask = phantom.on_grid((labels > 0).astype(np.uint8), grid)
    scores = sitk.Cast(mask, sitk.sitkFloat32) * 4
    shown = phantom.on_grid(labels, grid)
    chosen = choose_slices(SliceView(phantom.paint(grid), scores, mask, brain, labels=shown), 2.0)
    assert len(chosen) == SHOWN == len(set(chosen))
    assert {number for k in chosen for number in np.unique(labels[k])} >= set(range(1, 7))
    rejected = np.where(labels == 3, 0, labels)
    mask = phantom.on_grid((rejected > 0).astype(np.uint8), grid)
    scores = sitk.Cast(mask, sitk.sitkFloat32) * 4
    left = choose_slices(SliceView(phantom.paint(grid), scores, mask, brain, labels=shown), 2.0)
    assert {number for k in left for number in np.unique(rejected[k])} >= {1, 2, 4, 5, 6}


def test_of_too_many_findings_the_first_ones_are_shown() -> None:
    grid = phantom.grid((32, 36, 40), (5.0, 5.0, 3.0))
    brain = phantom.brain_of(grid)
    labels = np.zeros_like(sitk.GetArrayFromImage(brain))
    for number in range(1, 13):
        labels[6 + 2 * number, 18, 15] = number
    mask = phantom.on_grid((labels > 0).astype(np.uint8), grid)
    scores = sitk.Cast(mask, sitk.sitkFloat32) * 4
    view = SliceView(phantom.paint(grid), scores, mask, brain, labels=phantom.on_grid(labels, grid))
    chosen = choose_slices(view, 2.0)
    assert {number for k in chosen for number in np.unique(labels[k])} >= set(range(1, 9))
    assert len(chosen) == SHOWN


def test_a_view_outlives_the_images_it_was_made_of(flair_like_volume: Volume) -> None:
    anomaly_map = sitk.Image(flair_like_volume.image) * 0.0
    view = SliceView(flair_like_volume.image, anomaly_map, anomaly_map > 0, flair_like_volume.image > 0)
    mask, brain = view.mask.copy(), view.brain.copy()
    del anomaly_map
    _ = [sitk.Image(flair_like_volume.image) + 1.0 for _ in range(4)]  # would take the memory that has become free
    assert np.array_equal(view.mask, mask) and not mask.any()
    assert np.array_equal(view.brain, brain) and brain.any()
