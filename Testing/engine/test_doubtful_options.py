"""What runs but means something else than the user thinks: options, masks and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import diffusion_anomaly as da
import packages
import phantom
from diffusion_anomaly.cli.rethreshold import rethreshold
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.head_size import outline
from diffusion_anomaly.detection.input_checks import given_mask_verdict, label_verdict, proportion_warnings
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.detection.provenance import threshold_source
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.masks import check_mask
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.models.package import available
from diffusion_anomaly.registry import METHODS
from diffusion_anomaly.results.result import Result, statistics
from diffusion_anomaly.worker.main import detection_options
from diffusion_anomaly.worker.protocol import Job

# --- Options


def test_steps_given_twice_is_an_error_only_where_they_differ() -> None:
    with pytest.raises(InputError, match="steps is given twice: 3 and, with --set or in overrides, 4"):
        make_plan(Options("guided", steps=3, overrides={"steps": 4}))
    assert make_plan(Options("guided", steps=10, overrides={"steps": 10})).method_options.steps == 10  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"register": True}, "looks at one contrast, so there is nothing to register"),
        ({"min_area": 4.0}, "looks at the brain in volumes, whose findings have no areas"),
    ],
)
def test_what_the_model_has_no_use_for_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_plan(Options("intensity", **given))
    assert f"--{next(iter(given)).replace('_', '-')}" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "flag"),
    [("threshold", "--threshold"), ("min_volume_ml", "--min-volume"), ("peak_margin", "--peak-margin")],
)
def test_an_option_that_is_none_of_the_methods_is_told_its_own(name: str, flag: str) -> None:
    with pytest.raises(InputError, match=f"Option {name} is none of the method's") as caught:
        make_plan(Options("intensity", overrides={name: 1}))
    assert flag in caught.value.hint
    assert f"Options({name}=" in caught.value.hint


def test_a_probability_has_no_side() -> None:
    with pytest.raises(InputError, match=r"Option side is both and min_reference_intensity is 0\.2"):
        make_plan(Options("restore", overrides={"heat": "probability", "min_reference_intensity": 0.2}))


@pytest.mark.parametrize("name", [summary.name for summary in available() if summary.method in METHODS])
def test_a_package_as_it_is_has_no_warning(name: str) -> None:
    (method,) = (summary.method for summary in available() if summary.name == name)
    assert make_plan(Options(method, model=name)).calibration_warning is None


@pytest.mark.parametrize(
    ("method", "overrides", "named"),
    [
        ("guided", {"steps": 2}, "steps 2 instead of 10"),
        ("guided", {"guidance_scale": 1000}, "guidance_scale 1000 instead of 30"),
        ("guided", {"min_reference_intensity": 0}, "min_reference_intensity 0 instead of 0.4"),
        ("guided", {"steps": 9}, None),
        ("guided", {"steps": 25}, None),
        ("restore", {"heat": "residual"}, "heat residual instead of probability"),
        ("intensity", {"side": "dark"}, "side dark instead of bright"),
    ],
)
def test_options_far_from_those_of_the_calibration_are_named(
    method: str, overrides: dict[str, Any], named: str | None
) -> None:
    warning = make_plan(Options(method, overrides=overrides)).calibration_warning
    assert (warning is None) == (named is None)
    assert named is None or (named in (warning or "") and "not calibrated" in (warning or ""))


def test_the_warning_is_the_results_too(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> None:
    result = Detector(Options("intensity", overrides={"side": "dark"}))(flair_like_volume, brain=flair_like_brain)
    assert any("not calibrated for side dark" in warning for warning in result.provenance["warnings"])


@pytest.mark.parametrize(
    ("slice_spacing", "named", "faded"),
    [(None, False, False), (1.0, False, False), (6.0, False, False), (0.5, True, False), (100.0, True, True)],
)
def test_a_slice_spacing_far_from_that_of_the_calibration_is_named(
    slice_spacing: float | None, named: bool, faded: bool
) -> None:
    warning = make_plan(Options("intensity", slice_spacing=slice_spacing)).calibration_warning or ""
    assert (f"slice_spacing {slice_spacing or 0:g} instead of 2:" in warning) == named
    assert ("findings fade away" in warning) == faded


@pytest.mark.parametrize(
    ("stored", "chosen", "beyond"), [(2.0, None, False), (3.5, None, True), (3.5, 2.0, False), (2.0, 3.5, True)]
)
def test_a_threshold_beyond_the_calibration_table_is_said(
    stored: float, chosen: float | None, beyond: bool, tmp_path: Path
) -> None:
    bundle = packages.intensity(tmp_path / "toy", threshold={"heat": stored})
    source = threshold_source(make_plan(Options("intensity", threshold=chosen), bundle))
    assert ("beyond the calibration table, which ends at 3.00" in source) == beyond


def test_without_a_finding_the_peak_is_the_maps(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> None:
    result = Detector(Options("intensity", threshold=1000.0))(flair_like_volume, brain=flair_like_brain)
    assert not result.findings
    highest = float(sitk.GetArrayViewFromImage(result.anomaly_map).max())
    assert statistics(result)["peak_heat"] == highest > 0


@pytest.mark.parametrize("value", [0.0, -1.0, 1000.5, 1e12, float("inf"), float("nan")])
def test_a_threshold_beyond_all_scores_is_refused_by_every_way_in(
    value: Any, small_result: Result, tmp_path: Path
) -> None:
    """Finite ones too: the scale of a report goes up to one and a half times as much."""
    ways = (
        lambda: Options("intensity", threshold=value),
        lambda: detection_options(Job("scan", "out", method="intensity", options={"threshold": value})),
        lambda: da.threshold(small_result, value),
        lambda: rethreshold(tmp_path / "heat.nii.gz", value, tmp_path / "out"),
    )
    for way in ways:
        with pytest.raises(InputError, match="hreshold is ") as refused:
            way()
        assert refused.value.hint == "It must be an anomaly score above 0 and of at most 1000."


# --- Masks


def head(**changes: Any) -> np.ndarray:
    return sitk.GetArrayFromImage(phantom.paint(phantom.grid((40, 48, 18), (4.0, 4.0, 7.0)), **changes))


def labels() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 14_000, (6, 8, 8)).astype(np.float32)
    return coarse.repeat(5, axis=1).repeat(5, axis=2)


NOISE = np.random.default_rng(0).normal(0, 3, (18, 48, 40)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (np.arange(8.0).reshape(2, 2, 2) % 2, True),
        (255 * (head() > 0), True),
        (labels(), True),
        (np.random.default_rng(0).beta(0.1, 0.1, (4, 8, 8)), True),
        (labels() * 1.0000001, True),
        (head() / 220 + 0.0001 * NOISE.clip(0), False),
        (np.zeros((2, 4, 4)), True),
        (head() + NOISE, False),
        (np.rint(head() + NOISE), False),
        (np.rint(head() + NOISE).clip(0, 255).astype(np.uint8), False),
        ((head() + NOISE) / 200, False),
        (np.random.default_rng(0).random((4, 8, 8)) - 0.5, False),
    ],
    ids=[
        "0 1",
        "0 255",
        "labels",
        "probabilities",
        "scaled labels",
        "0 to 1",
        "empty",
        "scan",
        "whole",
        "8 bits",
        "scaled",
        "negative",
    ],
)
def test_a_scan_is_no_mask(values: np.ndarray, fits: bool) -> None:
    if fits:
        check_mask(values, "The mask")
    else:
        with pytest.raises(InputError, match="The mask is no mask: it"):
            check_mask(values, "The mask")


BRAIN = np.array([54.0, 70.0, 47.0])


@pytest.mark.parametrize(
    ("radii", "words"),
    [
        (BRAIN * 0, "is empty"),
        (BRAIN * 0.25, "marks a part, such as a lesion, and no brain"),
        (BRAIN * np.array([0.15, 0.15, 0.9]), "marks a part"),
        (BRAIN * 100, "covers the whole image"),
    ],
    ids=["empty", "lesion", "thin", "all"],
)
def test_a_mask_that_marks_no_brain_is_refused_before_the_scan_is_recognised(
    radii: np.ndarray, words: str, flair_like_volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_anomaly.detection.recognition.Recogniser.__call__", lambda *_: pytest.fail("asked"))
    grid = flair_like_volume.image
    marked = phantom.inside(phantom.points(grid), phantom.HEAD_CENTRE, np.maximum(radii, 1e-9)).astype(np.uint8)
    said: list[str] = []
    with pytest.raises(InputError, match=words) as caught:
        Detector(Options("intensity"))(flair_like_volume, brain=phantom.on_grid(marked, grid), on_warning=said.append)
    assert not said and "leave it out" in caught.value.hint


@pytest.mark.parametrize("scale", [0.25, 100])
def test_with_force_such_a_mask_is_said_once_and_nobody_is_told_to_give_one(
    scale: float, flair_like_volume: Volume
) -> None:
    grid = flair_like_volume.image
    marked = phantom.inside(phantom.points(grid), phantom.HEAD_CENTRE, BRAIN * scale).astype(np.uint8)
    result = Detector(Options("intensity"))(flair_like_volume, brain=phantom.on_grid(marked, grid), force=True)
    assert sum("The brain mask" in warning and " ml" in warning for warning in result.warnings) <= 1
    assert sum("marks a part" in warning or "whole image" in warning for warning in result.warnings) == 1
    assert not any("--mask" in warning for warning in result.warnings)


def test_a_mask_as_a_brain_is_brings_no_verdict(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> None:
    head_ = outline(flair_like_volume.image)
    assert given_mask_verdict(head_, flair_like_brain) is None
    slab = slice(10, 13)
    assert given_mask_verdict(outline(flair_like_volume.image[:, :, slab]), flair_like_brain[:, :, slab]) is None
    one = slice(12, 13)
    assert given_mask_verdict(outline(flair_like_volume.image[:, :, one]), flair_like_brain[:, :, one]) is None


SCAN = np.rint(head() + NOISE).clip(0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (head() > 0, "2 different values only (0, 1), as a mask does"),
        (255.0 * (head() > 0), "2 different values only (0, 255)"),
        (np.digitize(head() + NOISE, (20, 90, 120, 200)), "5 different values only (0, 1, 2, 3, …)"),
        (np.round(SCAN / 25) * 0.1, "different values only"),
        (labels(), "alike over whole regions"),
        (SCAN, None),
        (SCAN / 255, None),
        (np.rint(SCAN / 4), None),
        (np.zeros((3, 4, 4)), None),
    ],
    ids=["mask", "0 255", "labels", "few", "many labels", "scan", "0 to 1", "64 levels", "constant"],
)
def test_a_mask_or_a_label_map_is_no_scan(values: np.ndarray, words: str | None) -> None:
    verdict = label_verdict(values.astype(np.float32), "scan")
    assert (verdict is not None) == (words is not None)
    assert verdict is None or (verdict.refused and words in verdict.message)


def test_a_label_map_given_as_the_scan_is_refused(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> None:
    segmentation = phantom.as_volume(flair_like_brain)
    with pytest.raises(InputError, match=r"is no scan: it holds 2 different values only \(0, 1\).*--force"):
        Detector(Options("intensity"))(segmentation)


@pytest.mark.parametrize("kind", ["array", "image", "file"])
def test_a_scan_given_as_the_brain_is_refused(kind: str, flair_like_volume: Volume, tmp_path: Path) -> None:
    image = flair_like_volume.image
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    given = {"array": sitk.GetArrayFromImage(image), "image": image, "file": tmp_path / "scan.nii.gz"}[kind]
    with pytest.raises(InputError, match="is no mask"):
        Detector(Options("intensity"))(flair_like_volume, brain=given)


@pytest.mark.parametrize(("keep", "warned"), [(slice(None), False), (slice(0, 32), True), (slice(30, None), True)])
def test_a_mask_of_one_hemisphere_is_told(keep: slice, warned: bool, flair_like_brain: sitk.Image) -> None:
    values = sitk.GetArrayFromImage(flair_like_brain)
    half = np.zeros_like(values)
    half[:, :, keep] = values[:, :, keep]
    for image in phantom.orientations(phantom.on_grid(half, flair_like_brain)):
        warnings = list(proportion_warnings(image))
        assert bool(warnings) == warned
        assert not warned or "one hemisphere" in warnings[0]


@pytest.mark.parametrize(
    ("widened", "part", "warned"),
    [(1.0, slice(None), False), (1.2, slice(None), False), (1.4, slice(None), True), (1.4, slice(10, 36), False)],
)
def test_a_brain_as_wide_as_long_is_doubted_where_it_is_whole(
    widened: float, part: slice, warned: bool, flair_like_brain: sitk.Image
) -> None:
    brain = flair_like_brain[:, part]
    brain.SetSpacing([edge * factor for edge, factor in zip(brain.GetSpacing(), (widened, 1, 1), strict=True)])
    for image in phantom.orientations(brain):
        warnings = list(proportion_warnings(image))
        assert bool(warnings) == warned
        assert not warned or "voxel spacing right" in warnings[0]
