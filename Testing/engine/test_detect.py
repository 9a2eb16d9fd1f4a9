"""The one orchestration: what goes in and comes out, what changes it and what must not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import packages
import phantom
from diffusion_anomaly.detection import brain as brain_finder
from diffusion_anomaly.detection import detector as detection
from diffusion_anomaly.detection import provenance as provenance_module
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.inference import HeldModel, run_slices, slice_seed
from diffusion_anomaly.detection.input_checks import UNKNOWN_SCAN, stated_contrast
from diffusion_anomaly.detection.planning import Options, Plan, make_plan
from diffusion_anomaly.errors import Cancelled, InputError, MemoryExhausted, ModelError
from diffusion_anomaly.io.volume import Volume, read_volume
from diffusion_anomaly.methods.base import Method, SliceBatch
from diffusion_anomaly.methods.intensity import Intensity
from diffusion_anomaly.methods.unsupervised import Unsupervised
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.preprocessing.intensity import IntensityScale
from diffusion_anomaly.preprocessing.slices import Grid, SliceStack
from diffusion_anomaly.registry import IntensityOptions
from diffusion_anomaly.results import findings
from diffusion_anomaly.results import saving as results
from diffusion_anomaly.results.result import Progress, Result
from packages import options_for
from phantom import array

BASELINE = Options(method="intensity")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.unsupervised(tmp_path_factory.mktemp("models") / "toy-unsupervised")


@pytest.fixture(scope="module")
def guided_package(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.guided(tmp_path_factory.mktemp("models") / "toy-guided")


@pytest.fixture(scope="module")
def baseline(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> Result:
    return Detector(BASELINE)(flair_like_volume, brain=flair_like_brain)


# --- What comes out


def test_the_baseline_finds_a_bright_lesion_where_it_is(baseline: Result, flair_like_lesion: sitk.Image) -> None:
    found, true = array(baseline.mask) > 0, array(flair_like_lesion) > 0
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.85
    centre_lps = np.array(baseline.findings[0].centroid_ras) * (-1, -1, 1)
    assert np.linalg.norm(centre_lps - phantom.LESION_CENTRE) < 2.5


def test_scores_and_mask_lie_on_the_scans_grid_and_inside_the_brain(
    baseline: Result, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    for image, pixel in ((baseline.anomaly_map, sitk.sitkFloat32), (baseline.mask, sitk.sitkUInt8)):
        assert phantom.geometry(image) == phantom.geometry(flair_like_volume.image)
        assert image.GetPixelID() == pixel
        assert not array(image)[array(flair_like_brain) == 0].any()


@pytest.mark.parametrize("case", [0, 13, 22, 37, 47])
def test_the_lesion_stays_where_it_is_whatever_way_the_axes_point(case: int, flair_like_grid: sitk.Image) -> None:
    grid = list(phantom.orientations(flair_like_grid))[case]
    volume = phantom.as_volume(phantom.paint(grid))
    result = Detector(BASELINE)(volume, brain=phantom.brain_of(grid))
    assert np.linalg.norm(phantom.centroid(result.anomaly_map, 3.0) - phantom.LESION_CENTRE) < 2.5


def test_scores_is_the_packages_tail_probability_of_the_raw_scores(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    plan = make_plan(options_for(package))
    found = Detector(plan).raw_map(flair_like_volume, flair_like_brain)
    table = package.anomaly["calibration"]
    in_table = found.raw <= table["raw"][-1]
    expected = np.where(in_table, np.interp(found.raw, table["raw"], table["heat"]), 0)
    result = Detector(plan.asked)(flair_like_volume, brain=flair_like_brain)
    on_scan = array(found.stack.to_volume(expected.astype(np.float32)))
    # A voxel between slices or pixels mixes several; compare where all of them lie inside the table.
    inside = array(found.stack.to_volume(in_table.astype(np.float32))) > 1 - 1e-6
    assert inside.sum() > 1000
    assert on_scan[inside].max() > 1.0
    np.testing.assert_allclose(array(result.anomaly_map)[inside], on_scan[inside], atol=1e-4)


def test_the_baseline_does_not_depend_on_the_scanners_units(
    baseline: Result, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    other = replace(flair_like_volume, image=flair_like_volume.image * 7.0 + 1000.0)
    anomaly_map = Detector(BASELINE)(other, brain=flair_like_brain).anomaly_map
    np.testing.assert_allclose(array(anomaly_map), array(baseline.anomaly_map), atol=2e-3)


def test_the_dark_side_finds_a_dark_lesion(flair_like_grid: sitk.Image, flair_like_brain: sitk.Image) -> None:
    volume = phantom.as_volume(phantom.paint(flair_like_grid, lesion=20.0))
    bright = Detector(BASELINE)(volume, brain=flair_like_brain)
    dark = Detector(replace(BASELINE, overrides={"side": "dark"}))(volume, brain=flair_like_brain)
    assert not bright.findings
    assert np.linalg.norm(phantom.centroid(dark.anomaly_map, 3.0) - phantom.LESION_CENTRE) < 2.5


# --- What may and what may not change it


def test_the_batch_size_changes_nothing_and_the_seed_does(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    def anomaly_map(**changes: Any) -> np.ndarray:
        return array(Detector(options_for(package, **changes))(flair_like_volume, brain=flair_like_brain).anomaly_map)

    reference = anomaly_map(batch_size=1, seed=5)
    assert reference.max() > 1
    for size in (3, 16):
        np.testing.assert_allclose(anomaly_map(batch_size=size, seed=5), reference, atol=1e-5)
    assert np.abs(anomaly_map(seed=6) - reference).max() > 0.1


def test_the_guided_method_runs_from_its_package(
    guided_package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    result = Detector(options_for(guided_package, batch_size=5))(flair_like_volume, brain=flair_like_brain)
    assert array(result.anomaly_map).max() > 0
    assert result.provenance["network_calls_per_slice"] == 3 * 3
    assert result.score_warning is None


def test_no_two_slices_and_no_two_seeds_share_noise() -> None:
    seeds = {slice_seed(seed, index) % 2**32 for seed in range(40) for index in range(100)}
    assert len(seeds) == 40 * 100


def test_the_users_threshold_and_smallest_volume_rule(
    baseline: Result, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    middle = float(np.median(array(baseline.anomaly_map)[array(baseline.mask) > 0]))
    high = Detector(replace(BASELINE, threshold=middle))(flair_like_volume, brain=flair_like_brain)
    assert 0 < array(high.mask).sum() < array(baseline.mask).sum()
    assert array(high.anomaly_map)[array(high.mask) > 0].min() >= middle
    none = Detector(replace(BASELINE, min_volume_ml=500.0))(flair_like_volume, brain=flair_like_brain)
    assert not none.findings
    assert not array(none.mask).any()


def test_steps_and_any_other_option_reach_the_method(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    chosen = options_for(package, steps=2, overrides={"kl_levels": 3, "antithetic": False})
    result = Detector(chosen)(flair_like_volume, brain=flair_like_brain)
    assert result.provenance["network_calls_per_slice"] == 3 + 2
    assert result.provenance["options"]["steps"] == 2


def test_slice_spacing_decides_how_many_thin_slices_are_looked_at() -> None:
    grid = phantom.grid((40, 48, 60), (4.0, 4.0, 2.0))
    volume, mask = phantom.as_volume(phantom.paint(grid)), phantom.brain_of(grid)
    counts = [
        Detector(replace(BASELINE, slice_spacing=spacing))(volume, brain=mask).provenance["slices"]
        for spacing in (2.0, 4.0, 6.0)
    ]
    assert counts[0] == pytest.approx(2 * counts[1], abs=1)
    assert counts[0] == pytest.approx(3 * counts[2], abs=2)


# --- Unusual scans


def test_a_constant_image_has_no_findings_and_a_warning(
    flair_like_grid: sitk.Image, flair_like_brain: sitk.Image
) -> None:
    constant = phantom.as_volume(
        phantom.on_grid(np.full(flair_like_grid.GetSize()[::-1], 7, np.float32), flair_like_grid)
    )
    result = Detector(BASELINE)(constant, brain=flair_like_brain)
    assert not result.findings
    assert "nothing to find" in " ".join(result.warnings)


def test_a_two_dimensional_file_comes_back_two_dimensional(tmp_path: Path) -> None:
    head = phantom.paint(phantom.grid((64, 72, 1), (2.4, 2.4, 5.0)))
    head.SetOrigin((head.GetOrigin()[0], head.GetOrigin()[1], 0.0))
    sitk.WriteImage(head[:, :, 0], str(tmp_path / "flat.nrrd"))
    volume = read_volume(tmp_path / "flat.nrrd")
    mask = phantom.on_grid((array(volume.image) > 0).astype(np.uint8), volume.image)
    files = Detector(BASELINE)(volume, brain=mask).save(tmp_path / "out")
    assert files["heat"].name == "heat.nrrd"
    assert sitk.ReadImage(str(files["heat"])).GetSize() == (64, 72)


def test_filters_in_mm_are_those_on_the_grid_where_they_come_to_the_same(
    flair_like_volume: Volume, flair_like_brain: sitk.Image, tmp_path: Path
) -> None:
    on_grid = {"median_pixels": 5, "slice_sigma": 1.0, "edge_erosion_pixels": 0, "error_normalisation_power": 0.5}
    in_mm = {"median_mm": 8.0, "slice_sigma_mm": 5.0, "edge_erosion_mm": 0.0, "error_normalisation_power": 0.5}
    grid = {"size": [80, 96], "spacing": 1.6}
    anomaly_maps = []
    for name, filters in (("on-grid", on_grid), ("in-mm", in_mm)):
        bundle = packages.restore(tmp_path / name, grid=grid, postprocess=filters)
        plan = make_plan(Options("restore", str(bundle.path), device="cpu"))
        assert plan.postprocess.to_dict() == filters
        found = Detector(plan).raw_map(flair_like_volume, flair_like_brain)
        assert found.stack.slice_spacing == pytest.approx(5.0)
        anomaly_maps.append(found.raw)
    assert anomaly_maps[0].any()
    np.testing.assert_array_equal(*anomaly_maps)


def test_an_empty_brain_mask_is_refused(flair_like_volume: Volume, flair_like_grid: sitk.Image) -> None:
    empty = phantom.on_grid(np.zeros(flair_like_grid.GetSize()[::-1], np.uint8), flair_like_grid)
    with pytest.raises(InputError, match="empty"):
        Detector(BASELINE)(flair_like_volume, brain=empty)


def test_a_brain_mask_of_another_grid_is_refused(flair_like_volume: Volume) -> None:
    other = phantom.brain_of(phantom.grid((32, 36, 26), (4.8, 4.8, 5.0)))
    with pytest.raises(InputError, match="32x36x26"):
        Detector(BASELINE)(flair_like_volume, brain=other)


def test_without_a_mask_the_network_finds_the_brain(
    flair_like_volume: Volume, flair_like_brain: sitk.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_finder.BrainFinder, "__call__", lambda finder, volume, warn: flair_like_brain)
    monkeypatch.setattr("diffusion_anomaly.detection.provenance.describe_brain_model", lambda: {"name": "brain-mask"})
    result = Detector(BASELINE)(flair_like_volume)
    assert result.provenance["brain"]["source"] == {"name": "brain-mask"}
    assert phantom.geometry(result.brain) == phantom.geometry(flair_like_brain)


# --- Reasons to doubt


def test_a_score_above_all_healthy_scans_is_said_to_the_user(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    narrow = replace(package, anomaly={**package.anomaly, "score_range": {"mean": 0.0, "std": 0.0, "upper": 1e-6}})
    options = options_for(package)
    told: list[str] = []
    result = Detector(make_plan(options, narrow))(flair_like_volume, brain=flair_like_brain, on_warning=told.append)
    assert result.score_warning is not None
    assert result.score_warning.startswith(UNKNOWN_SCAN)
    assert result.score_warning in result.warnings
    assert told == result.warnings
    assert Detector(options)(flair_like_volume, brain=flair_like_brain).score_warning is None


@pytest.mark.parametrize(
    ("name", "metadata", "contrast"),
    [
        ("sub-01_T1w.nii.gz", {}, "T1"),
        ("patient_FLAIR.nii.gz", {}, "FLAIR"),
        ("scan.nrrd", {"description": "t2_flair_tra"}, "FLAIR"),
        ("scan.nrrd", {"modality": "CT", "description": "Head"}, "CT"),
        ("flair.nii", {"description": "AX T1 post"}, "T1"),
        ("correct1.nii", {}, None),
        ("brain.nii", {}, None),
    ],
)
def test_name_and_header_give_the_contrast_away(name: str, metadata: dict[str, str], contrast: str | None) -> None:
    assert stated_contrast(f"/data/T2/{name}", metadata) == contrast


def test_another_contrast_than_the_models_is_warned_of(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    renamed = replace(flair_like_volume, source="head_T1w.nii.gz")
    titled = replace(flair_like_volume, source="scan.nrrd", title="3: AX T1 post")
    for volume in (renamed, titled):
        warnings = Detector(options_for(package))(volume, brain=flair_like_brain).warnings
        assert any("says T1, the model knows FLAIR" in warning for warning in warnings)
    warnings = Detector(BASELINE)(renamed, brain=flair_like_brain).warnings
    assert any("says T1, the model knows FLAIR" in warning for warning in warnings), "bright is no lesion on T1"


def test_thick_coronal_slices_are_warned_of() -> None:
    grid = phantom.grid((64, 26, 72), (2.4, 6.0, 2.4))
    result = Detector(BASELINE)(phantom.as_volume(phantom.paint(grid)), brain=phantom.brain_of(grid))
    assert any("coronal slices 6 mm apart" in warning for warning in result.warnings)


def test_voxels_that_are_no_numbers_are_warned_of(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> None:
    result = Detector(BASELINE)(replace(flair_like_volume, non_finite=3), brain=flair_like_brain)
    assert any(warning.startswith("3 voxels") for warning in result.warnings)


# --- What is refused before any work


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 502}, "502"),
        ({"overrides": {"kl_levls": 3}}, "no option kl_levls"),
        ({"overrides": {"kl_from": 0}}, "kl_from is 0"),
    ],
)
def test_method_options_out_of_range_are_refused(package: Bundle, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_plan(options_for(package, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"seed": 1.5},
        {"threshold": 0},
        {"threshold": float("nan")},
        {"min_volume_ml": -0.1},
        {"peak_margin": -0.1},
        {"peak_margin": "1"},
        {"peak_margin": 1001},
        {"batch_size": 0},
        {"slice_spacing": 0},
        {"overrides": ["steps"]},
    ],
)
def test_general_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        Options(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "magic"}, "magic"),
        ({"device": "tpu"}, "tpu"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"precision": "half"}, "half"),
    ],
)
def test_unknown_choices_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_plan(replace(BASELINE, **changes))


def test_a_package_of_the_other_method_is_refused(package: Bundle) -> None:
    with pytest.raises(ModelError, match="made for the method 'unsupervised'") as caught:
        make_plan(replace(options_for(package), method="guided"))
    assert "the method unsupervised" in caught.value.hint


def test_an_uncalibrated_package_is_refused_but_can_be_calibrated(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    fresh = packages.unsupervised(tmp_path / "fresh", calibration=None, threshold=None, score_range=None)
    plan = make_plan(options_for(fresh))
    assert Detector(plan).raw_map(flair_like_volume, flair_like_brain).raw.max() > 0
    with pytest.raises(ModelError, match="no calibration"):
        Detector(options_for(fresh))(flair_like_volume, brain=flair_like_brain)


# --- Progress, cancel, memory


def test_progress_goes_through_the_stages_and_ends_complete(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    seen: list[Progress] = []
    started: list[detection.Started] = []
    Detector(options_for(package, batch_size=5))(
        flair_like_volume, brain=flair_like_brain, progress=seen.append, on_started=started.append
    )
    assert list(dict.fromkeys(now.stage for now in seen)) == ["brain", "load", "detect", "findings"]
    steps = [now for now in seen if now.stage == "detect"]
    assert [now.done for now in steps] == sorted(now.done for now in steps)
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total == started[0].slices * (2 * 2 + 4)
    assert all(now.remaining is not None and now.remaining >= 0 for now in steps[1:])
    assert steps[-1].remaining == 0
    assert started == [detection.Started("cpu", "toy-unsupervised", "0.1.0", started[0].slices)]


def test_cancelling_stops_between_two_network_calls(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    calls = 0

    def cancel(now: Progress) -> None:
        nonlocal calls
        if now.stage == "detect" and now.done:
            calls += 1
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        Detector(options_for(package))(flair_like_volume, brain=flair_like_brain, progress=cancel)
    assert calls == 1


def with_method(plan: Plan, method: Method) -> Plan:
    """The plan with something else to run under the same name."""
    entry = replace(plan.method)
    vars(entry)["method"] = method
    return replace(plan, method=entry)


class Hungry(Unsupervised):
    """The real method on a machine whose memory takes only so many slices at once."""

    def __init__(self, fits: Callable[[SliceBatch, Any], bool], error: Exception) -> None:
        self.fits, self.error = fits, error

    def run(self, batch: SliceBatch, model: Any, options: Any, progress: Any) -> Any:
        if not self.fits(batch, model):
            raise self.error
        return super().run(batch, model, options, progress)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_when_memory_runs_out_the_batch_is_halved_and_the_result_stays(
    error: Exception, package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    options = options_for(package, batch_size=8)
    plan = make_plan(options)
    expected = Detector(options)(flair_like_volume, brain=flair_like_brain)
    tight = with_method(plan, Hungry(lambda batch, model: len(batch.images) <= 2, error))
    result = Detector(tight)(flair_like_volume, brain=flair_like_brain)
    np.testing.assert_allclose(array(result.anomaly_map), array(expected.anomaly_map), atol=1e-4)
    halved = [w.split("with ")[1][:8] for w in result.warnings if "emory" in w]
    assert halved == ["8 slices", "4 slices"]
    assert result.provenance["options"]["batch_size"] == 2


def test_memory_that_takes_not_even_one_slice_ends_with_its_own_error(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    options = options_for(package)
    plan = with_method(make_plan(options), Hungry(lambda batch, model: False, MemoryError("no more")))
    with pytest.raises(MemoryExhausted, match="one slice at once on the CPU") as caught:
        Detector(plan)(flair_like_volume, brain=flair_like_brain)
    assert caught.value.exit_code == 4


def test_other_errors_are_not_taken_for_memory(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    options = options_for(package)
    plan = with_method(make_plan(options), Hungry(lambda batch, model: False, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        Detector(plan)(flair_like_volume, brain=flair_like_brain)


@pytest.mark.parametrize("when", ["loading", "running"])
def test_a_gpu_without_memory_hands_over_to_the_cpu(
    when: str, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    """A stand-in for the model, so that no GPU is needed: only where it says it is matters."""
    stack = SliceStack([flair_like_volume.image], Grid((40, 48), 4.0), flair_like_brain)
    loaded: list[str] = []

    def load(device: str) -> Any:
        loaded.append(device)
        if when == "loading" and device == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return SimpleNamespace(device=torch.device(device), dtype=torch.float32, chunk=256)

    class OnCpu(Intensity):
        def run(self, batch: SliceBatch, model: Any, options: Any, progress: Any) -> Any:
            if model.device.type == "cuda":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().run(batch, None, options, progress)

    warnings: list[str] = []
    run = run_slices(
        stack,
        [IntensityScale(0, 255, 1, 1)],
        OnCpu(),  # type: ignore[arg-type]
        IntensityOptions(),
        HeldModel(load, "cuda", None if when == "loading" else 4),
        warn=warnings.append,
    )
    assert loaded == ["cuda", "cpu"]
    assert run.device == "cpu"
    assert run.raw.max() > 0
    assert "CPU" in warnings[-1]
    assert len(warnings) == (1 if when == "loading" else 3)


class Feverish(Unsupervised):
    """A GPU that takes no slice at all while it is full, and is none: the stand-in for the model says where it is."""

    full = True

    def run(self, batch: SliceBatch, model: Any, options: Any, progress: Any) -> Any:
        if model.device.type == "cuda" and self.full:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return Intensity().run(batch, None, IntensityOptions(), progress)


def test_a_detector_that_ran_out_of_memory_serves_the_next_scan(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins on the GPU again, with the one slice at once that was left to try there."""
    monkeypatch.setattr(provenance_module, "device_name", lambda device: device)
    method = Feverish()
    detector = Detector(with_method(make_plan(options_for(package, batch_size=4)), method))
    loaded: list[str] = []

    def load(device: str) -> Any:
        loaded.append(device)
        return SimpleNamespace(device=torch.device(device), dtype=torch.float32, chunk=256)

    detector._held = HeldModel(load, "cuda", 4)
    first = detector(flair_like_volume, brain=flair_like_brain)
    about_memory = [warning for warning in first.warnings if "ran out" in warning]
    assert ["with 4 slices" in about_memory[0], "with 2 slices" in about_memory[1]] == [True, True]
    assert about_memory[2].endswith("on the CPU.")
    assert len(about_memory) == 3
    assert first.provenance["device"]["used"] == "cpu"
    assert loaded == ["cuda", "cpu"]

    method.full = False
    second = detector(flair_like_volume, brain=flair_like_brain)
    assert loaded == ["cuda", "cpu", "cuda"]
    assert second.provenance["device"]["used"] == "cuda"
    assert second.provenance["options"]["batch_size"] == 1
    assert not [warning for warning in second.warnings if "ran out" in warning]
    np.testing.assert_array_equal(array(second.anomaly_map), array(first.anomaly_map))

    detector(flair_like_volume, brain=flair_like_brain)
    assert loaded == ["cuda", "cpu", "cuda"], "what fits stays loaded"


def test_a_failure_for_want_of_memory_leaves_a_detector_that_works(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    options = options_for(package)
    room = [False]
    detector = Detector(with_method(make_plan(options), Hungry(lambda batch, model: room[0], MemoryError("no more"))))
    with pytest.raises(MemoryExhausted):
        detector(flair_like_volume, brain=flair_like_brain)
    assert detector.held.model is None
    room[0] = True
    result = detector(flair_like_volume, brain=flair_like_brain)
    expected = Detector(options)(flair_like_volume, brain=flair_like_brain)
    np.testing.assert_allclose(array(result.anomaly_map), array(expected.anomaly_map), atol=1e-4)


# --- One detector after the other


@pytest.mark.parametrize(
    "changes", [{}, {"seed": 3}, {"steps": 2}, {"threshold": 1.0}, {"overrides": {"side": "dark"}}]
)
def test_a_detector_like_another_takes_its_model_over(package: Bundle, changes: dict[str, Any]) -> None:
    before = Detector(options_for(package))
    model = before.model
    after = Detector(options_for(package, **changes), like=before)
    assert after.model is model
    assert after._brain_finder is before._brain_finder
    assert after.plan.asked == options_for(package, **changes)


def test_a_detector_like_another_releases_the_model_it_does_not_take(package: Bundle, tmp_path: Path) -> None:
    other = packages.unsupervised(tmp_path / "other")
    before = Detector(options_for(package))
    assert before.model is not None
    after = Detector(options_for(other), like=before)
    assert before.held.model is None
    assert after._brain_finder is before._brain_finder, "brains are found alike"
    assert after.model is not None


def test_on_another_precision_nothing_is_taken_over(package: Bundle) -> None:
    before = Detector(options_for(package))
    assert before.model is not None
    before._brain_finder._network = torch.nn.Identity()
    after = Detector(replace(options_for(package), precision="bfloat16"), like=before)
    assert before.held.model is None
    assert before._brain_finder._network is None
    assert after._brain_finder is not before._brain_finder


# --- Files and provenance


def test_saved_files_are_complete_and_agree_with_their_provenance(
    baseline: Result, flair_like_volume: Volume, tmp_path: Path
) -> None:
    files = baseline.save(tmp_path / "résultats du patient")
    assert {path.name for path in files.values()} == {path.name for path in files["heat"].parent.iterdir()}
    provenance = json.loads(files["provenance"].read_text(encoding="utf-8"))
    for name, digest in provenance["files_sha256"].items():
        assert hashlib.sha256((files["heat"].parent / name).read_bytes()).hexdigest() == digest
    assert set(provenance["files_sha256"]) == {path.name for path in files.values()} - {"provenance.json"}
    np.testing.assert_array_equal(array(sitk.ReadImage(str(files["heat"]))), array(baseline.anomaly_map))
    assert json.loads(files["findings_json"].read_text(encoding="utf-8"))["findings"][0]["id"] == 1


def test_provenance_says_what_was_run_on_what(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    options = options_for(package, seed=3, threshold=1.25)
    provenance = Detector(options)(flair_like_volume, brain=flair_like_brain).provenance
    assert provenance["input"]["sha256"] == flair_like_volume.sha256
    assert provenance["model"]["sha256"] == package.sha256
    assert (provenance["model"]["name"], provenance["model"]["version"]) == ("toy-unsupervised", "0.1.0")
    assert provenance["threshold"] == {"heat": 1.25, "source": "chosen by the user"}
    assert provenance["options"]["seed"] == 3
    assert set(asdict(make_plan(options).method_options)) <= set(provenance["options"])
    assert provenance["device"]["used"] == "cpu"
    assert provenance["versions"]["torch"] == torch.__version__
    assert {"brain", "load", "detect", "findings", "total"} <= set(provenance["timings_seconds"])
    json.dumps(provenance, allow_nan=False)


@pytest.mark.usefixtures("plain_report")
@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_is_full_half_way_leaves_the_folder_as_it_was(
    earlier: bool, baseline: Result, flair_like_volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if earlier:
        baseline.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(found: list[findings.Finding], path: Path, *rest: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(results, "write_findings_json", full)
    with pytest.raises(InputError, match="no space left") as caught:
        baseline.save(tmp_path)
    assert ".unfinished" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("plain_report")
def test_a_file_that_cannot_be_replaced_leaves_the_earlier_results(
    baseline: Result, flair_like_volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace_file = os.replace

    def locked(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "findings.csv" and "new" in Path(source).parts:
            raise PermissionError(13, "The file is used by another process", str(target))
        replace_file(source, target)

    monkeypatch.setattr("diffusion_anomaly.io.files.os.replace", locked)
    with pytest.raises(InputError, match=r"findings\.csv"):
        baseline.save(tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_refused(baseline: Result, flair_like_volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        baseline.save(tmp_path / "file" / "out")


def test_a_method_without_a_network_keeps_its_batches_from_scan_to_scan() -> None:
    held = HeldModel(lambda device: None, "cuda:0", 5)
    for _ in range(2):
        held.prepare(lambda message: None)
        assert (held.device, held.batch_size) == ("cpu", 5)
