"""What an option is worth: which settings are tried, what is computed again, and that the numbers are the anomaly
map's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import packages
import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, Plan, make_plan
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation import dataset, metrics
from diffusion_anomaly.io.volume import read_mask, read_volume
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.preprocessing.slices import SliceStack
from diffusion_anomaly.registry import METHODS
from Testing.benchmarks import benchmark, options

NAMES = ("anna", "bert", "cleo")  # cleo has no lesion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three noisy heads with their brain masks."""
    folder = tmp_path_factory.mktemp("scans")
    empty = phantom.grid((34, 40, 8), (4.0, 4.0, 13.0))
    lesion = phantom.lesion_of(empty)
    for number, name in enumerate(NAMES):
        clean = sitk.GetArrayFromImage(phantom.paint(empty, lesion=170.0 + 30 * number))
        noise = np.random.default_rng(number).normal(0, 12, clean.shape)
        images = {
            "flair": phantom.on_grid(np.where(clean > 0, clean + noise, 0).astype(np.float32), empty),
            "mask": lesion if name != "cleo" else lesion * 0,
            "brain": phantom.brain_of(empty),
        }
        for kind, image in images.items():
            sitk.WriteImage(image, str(folder / f"{name}_{kind}.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def pairs(folder: Path) -> list[dataset.Pair]:
    return dataset.find_pairs(folder, brain_pattern="*_brain.nii.gz")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.restore(tmp_path_factory.mktemp("models") / "toy-r", postprocess={"median_pixels": 3})


def plan_of(bundle: Bundle, **overrides: Any) -> Plan:
    return make_plan(Options("restore", device="cpu", precision="float32", overrides=overrides), bundle)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options that the method ran with, one entry a batch of slices."""
    ran: list[Any] = []
    restore = METHODS["restore"].method
    original = restore.run
    monkeypatch.setattr(
        restore,
        "run",
        lambda batch, model, asked, progress: (ran.append(asked), original(batch, model, asked, progress))[1],
    )
    return ran


# --- What is tried


def in_force(setting: options.Setting, *names: str) -> tuple[Any, ...]:
    everything = {**vars(setting.plan.method_options), **vars(setting.plan.postprocess)}
    return tuple(everything[name] for name in names)


def test_one_option_at_a_time_leaves_the_others_as_the_package_has_them(bundle: Bundle) -> None:
    tried = options.enumerate_settings(
        plan_of(bundle), {"steps": [1, 3], "side": ["bright"]}, {"slice_sigma": [0, 1.5]}
    )
    found = [in_force(setting, "steps", "side", "slice_sigma") for setting in tried]
    assert found == [(2, "both", 0), (1, "both", 0), (3, "both", 0), (2, "bright", 0), (2, "both", 0), (2, "both", 1.5)]
    assert {s.plan.postprocess.median_pixels for s in tried} == {3}  # the package's
    names = ["own settings", "steps = 1", "steps = 3", "side = bright", "slice_sigma = 0", "slice_sigma = 1.5"]
    assert [s.name for s in tried] == names


def test_the_product_is_every_combination_after_the_packages_own(bundle: Bundle) -> None:
    tried = options.enumerate_settings(
        plan_of(bundle), {"steps": [1, 3], "min_reference_intensity": [0, 0.4]}, {"slice_sigma": [1, 2]}, product=True
    )
    found = [in_force(setting, "steps", "min_reference_intensity", "slice_sigma") for setting in tried]
    assert found[0] == (2, 0, 0)
    assert found[1:] == [(steps, floor, sigma) for steps in (1, 3) for floor in (0, 0.4) for sigma in (1, 2)]
    assert tried[1].name == "steps = 1, min_reference_intensity = 0, slice_sigma = 1"


def test_a_filter_in_mm_takes_the_place_of_the_packages_own(bundle: Bundle) -> None:
    tried = options.enumerate_settings(plan_of(bundle), {}, {"median_mm": [4.0, 12.0]})
    found = [in_force(setting, "median_pixels", "median_mm") for setting in tried]
    assert found == [(3, None), (None, 4.0), (None, 12.0)]


def test_without_anything_to_vary_the_packages_own_settings_are_measured(bundle: Bundle) -> None:
    for product in (False, True):
        assert [s.name for s in options.enumerate_settings(plan_of(bundle), {}, {}, product=product)] == [
            "own settings"
        ]


def test_values_are_numbers_words_and_flags() -> None:
    parsed = options.parse_values(["steps=5, 10,5", "side=bright,both", "forget=false", "steps=20"], "--set")
    assert parsed == {"steps": [5, 10, 20], "side": ["bright", "both"], "forget": [False]}


@pytest.mark.parametrize("text", ["steps", "=3", "steps=", "steps=1,,2"])
def test_a_text_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--set got"):
        options.parse_values([text], "--set")


@pytest.mark.parametrize(
    ("sets", "posts", "message"),
    [
        ({"stepz": [3]}, {}, "no option stepz"),
        ({"steps": [9]}, {}, "more than the 4 levels"),
        ({"slice_sigma": [1]}, {}, "no option slice_sigma"),
        ({}, {"steps": [3]}, "Unknown post-processing steps"),
        ({}, {"median_pixels": [3, 4]}, "must be odd"),
        ({}, {"median_mm": [3, "wide"]}, "median_mm is 'wide'"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_any_scan(
    sets: dict[str, Any], posts: dict[str, Any], message: str, bundle: Bundle
) -> None:
    with pytest.raises(InputError) as refused:
        options.enumerate_settings(plan_of(bundle), sets, posts)
    assert message in f"{refused.value.what} {refused.value.hint}"


# --- What is computed


def run(pairs: list[dataset.Pair], plan: Plan, output: Path, sets: Any, posts: Any, **more: Any) -> dict[str, Any]:
    return options.compare(pairs, options.enumerate_settings(plan, sets, posts), output, **more)


def test_post_processing_is_judged_without_running_the_method_again(
    pairs: list[dataset.Pair], bundle: Bundle, calls: list[Any], tmp_path: Path
) -> None:
    one = pairs[:1]
    run(one, plan_of(bundle), tmp_path, {}, {"median_pixels": [1, 3, 5]})
    batches = len(calls)
    assert batches > 0
    again = run(one, plan_of(bundle), tmp_path, {}, {"slice_sigma": [0, 2], "edge_erosion_pixels": [1]})
    assert len(calls) == batches
    assert len(again["rows"]) == 4
    # Another option of the method is run, and the package's own value of it is not.
    run(one, plan_of(bundle), tmp_path, {"steps": [1, 2]}, {"error_normalisation_power": [1]})
    assert [asked.steps for asked in calls[batches:]] == [1] * batches


def test_raw_scores_outlives_a_new_calibration_but_not_new_weights(
    pairs: list[dataset.Pair], bundle: Bundle, calls: list[Any], tmp_path: Path
) -> None:
    run(pairs[:1], plan_of(bundle), tmp_path / "out", {}, {})
    batches = len(calls)
    table = {"raw": [0.0, 1.0], "heat": [0.0, 2.0], "source": "another"}
    calibrated = packages.restore(tmp_path / "toy-r", calibration=table, postprocess={"median_pixels": 5})
    run(pairs[:1], plan_of(calibrated), tmp_path / "out", {}, {})
    assert len(calls) == batches
    wider = packages.restore(tmp_path / "other" / "toy-r", {**packages.RESTORER, "channels": [8, 16]})
    run(pairs[:1], plan_of(wider), tmp_path / "out", {}, {})
    assert len(calls) == 2 * batches


def test_a_setting_has_the_numbers_of_a_detection_with_these_options(
    pairs: list[dataset.Pair], bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    report = run(pairs, plan_of(bundle), tmp_path, {"steps": [4]}, {"error_normalisation_power": [1]})
    own, row, _ = report["rows"]
    alone = {
        label: judged_alone(folder, plan) for label, plan in (("own", plan_of(bundle)), ("4", plan_of(bundle, steps=4)))
    }
    for found, label in ((own, "own"), (row, "4")):
        assert found["average_precision"] == pytest.approx(np.mean(alone[label]["each"]))
        assert found["pooled_average_precision"] == pytest.approx(alone[label]["pooled"])
        assert found["best_dice"] == pytest.approx(alone[label]["dice"])
    assert row["gain"] == pytest.approx(row["average_precision"] - own["average_precision"])
    assert (own["gain"], own["is_own"], row["is_own"]) == (0, True, False)
    assert (own["network_calls"], row["network_calls"]) == (2, 4)
    assert report["about"]["without_reference"] == ["cleo"]
    assert "only in pooled AP: cleo." in options.markdown(report)


def judged_alone(folder: Path, plan: Plan) -> dict[str, Any]:
    """The same from a detection's anomaly scores, by the definitions: the reference voxel by voxel, and every threshold
    tried.
    """
    scans = []
    for name in NAMES:
        volume = read_volume(folder / f"{name}_flair.nii.gz")
        brain = read_mask(folder / f"{name}_brain.nii.gz", volume)
        found = Detector(plan).raw_map(volume, brain)
        # The scan's voxels are as large as the grid's pixels, which are copies then: of which voxel is looked up.
        mask = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"{name}_mask.nii.gz"))
        numbers = phantom.on_grid(np.arange(mask.size, dtype=np.float32).reshape(mask.shape), volume.image)
        voxels = SliceStack([replace(volume, image=numbers).image], found.stack.grid, brain).images()[:, 0].astype(int)
        inside = found.stack.brain()
        scans.append((found.raw[inside], mask.ravel()[voxels[inside]] != 0))
    with_lesion = [(anomaly_map, reference) for anomaly_map, reference in scans if reference.any()]
    anomaly_maps, references = (np.concatenate(arrays) for arrays in zip(*scans, strict=True))
    thresholds = np.unique(np.concatenate([anomaly_map for anomaly_map, _ in with_lesion]))[1::25]
    thresholds = np.union1d(
        thresholds, np.concatenate([anomaly_map[reference] for anomaly_map, reference in with_lesion])
    )
    dices = [
        np.mean([metrics.dice(anomaly_map >= t, reference) for anomaly_map, reference in with_lesion])
        for t in thresholds
        if t > 0
    ]
    return {
        "each": [precision_by_ranking(anomaly_map, reference) for anomaly_map, reference in with_lesion],
        "pooled": precision_by_ranking(anomaly_maps, references),
        "dice": max(dices),
    }


def precision_by_ranking(anomaly_map: np.ndarray, reference: np.ndarray) -> float:
    """Average precision by its definition: thresholds from the highest-scoring down, precision weighted by recall
    gained.
    """
    order = np.argsort(-anomaly_map, kind="stable")
    anomaly_map, hits = anomaly_map[order], np.cumsum(reference[order])
    last = np.append(np.flatnonzero(np.diff(anomaly_map)), len(anomaly_map) - 1)  # of each run of equal scores
    precision = hits[last] / (last + 1)
    return float((np.diff(hits[last], prepend=0) * precision).sum() / hits[-1])


def test_the_command_writes_what_it_prints_and_says_what_was_left_out(
    folder: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "options",
        folder,
        "--run",
        f"restore={bundle.path}",
        "--set",
        "min_reference_intensity=0,0.4",
        "--post",
        "rim_mm=4",
    ]
    words += [
        "--slices",
        4,
        "--patient",
        "anna",
        "--device",
        "cpu",
        "--brain-pattern",
        "*_brain.nii.gz",
        "-o",
        tmp_path,
    ]
    assert benchmark.main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "options.md").read_text(encoding="utf-8")
    assert "| min_reference_intensity = 0 (own) | " in printed and "| edge_erosion_mm = 4 | " in printed
    assert "Own settings of toy-r 0.1.0: min_reference_intensity = 0.0, edge_erosion_pixels = 0." in printed
    assert "Only 4 of " in printed
    written = json.loads((tmp_path / "options.json").read_text(encoding="utf-8"))
    assert [row["changed"] for row in written["rows"]] == [
        {},
        {"min_reference_intensity": 0},
        {"min_reference_intensity": 0.4},
        {"edge_erosion_mm": 4},
    ]
    assert written["rows"][0]["average_precision"] == written["rows"][1]["average_precision"] > 0
    assert [case["patient"] for case in written["cases"]] == ["anna"] * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "restore={model}", "--set", "stepz=3"], "no option stepz"),
        ([], "0 runs were asked for"),
        (["--run", "guided", "--run", "restore"], "2 runs were asked for"),
        (["--run", "restore={model}", "--post", "slice_sigma=1", "--slices", "3"], "Give one of the two"),
        (["--run", "restore={model}", "--post", "slice_sigma_mm=3", "--slices", "3"], "Give one of the two"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_arguments(
    words: list[str], message: str, folder: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(model=bundle.path) for word in words]
    assert benchmark.main(["options", str(folder), "-o", str(tmp_path), "--device", "cpu", *words]) != 0
    assert message in capsys.readouterr().err
