"""Few steps against many: the same slices through the engine's own methods, and what is told of a part of them."""

from __future__ import annotations

import json
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
from diffusion_anomaly.registry import METHODS, GuidedOptions, IntensityOptions, RestoreOptions, UnsupervisedOptions
from Testing.benchmarks import benchmark, steps
from Testing.benchmarks.anomaly_map import choose_slices
from Testing.benchmarks.measure import rank_correlation
from Testing.benchmarks.variants import every_level, more_steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head with noise and a lesion, with its brain mask."""
    folder = tmp_path_factory.mktemp("scans")
    empty = phantom.grid((30, 36, 26), (4.6, 4.6, 5.0))
    clean = sitk.GetArrayFromImage(phantom.paint(empty))
    noise = np.random.default_rng(0).normal(0, 12, clean.shape)
    images = {
        "flair": phantom.on_grid(np.where(clean > 0, clean + noise, 0).astype(np.float32), empty),
        "mask": phantom.lesion_of(empty),
        "brain": phantom.brain_of(empty),
    }
    for kind, image in images.items():
        sitk.WriteImage(image, str(folder / f"anna_{kind}.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    models = tmp_path_factory.mktemp("models")
    made = {
        "unsupervised": packages.unsupervised(models / "toy-u"),
        "guided": packages.guided(models / "toy-g", postprocess={"median_pixels": 3, "relative": 1.0}),
        "restore": packages.restore(models / "toy-r"),
    }
    return {
        method: make_plan(Options(method, device="cpu", precision="float32"), bundle) for method, bundle in made.items()
    }


@pytest.fixture(scope="module")
def pairs(folder: Path) -> list[dataset.Pair]:
    return dataset.find_pairs(folder, brain_pattern="*_brain.nii.gz")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def report(pairs: list[dataset.Pair], plans: dict[str, Plan], output: Path) -> dict[str, Any]:
    return steps.compare(pairs, plans, output, times=3)


# --- What more steps are


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (UnsupervisedOptions(steps=20, kl_levels=8, n_reconstructions=2), 10 * (8 * 2 + 2 * 20)),
        (GuidedOptions(steps=10), 10 * 3 * 10),
        (RestoreOptions(steps=2, levels=100), 10 * 2),
    ],
)
def test_ten_times_the_steps_are_ten_times_the_calls_while_there_are_levels(options: Any, calls: int) -> None:
    (method,) = [method for method in METHODS.values() if method.options_type is type(options)]
    assert method.network_calls(more_steps(options, 10)) == calls


def test_beyond_the_last_level_there_are_no_more_steps() -> None:
    assert more_steps(GuidedOptions(steps=90), 10).steps == 500
    assert more_steps(RestoreOptions(steps=3, levels=10), 10).steps == 10
    many = more_steps(UnsupervisedOptions(steps=90, kl_levels=80), 10)
    assert (many.steps, many.kl_levels, many.noise_draws) == (501, 200, 4)  # 4 x 200 is 10 x 80


def test_every_level_is_every_level() -> None:
    everything = every_level(UnsupervisedOptions(kl_from=400, kl_to=600, start_level=500))
    assert everything.kl_grid == list(range(400, 600))
    assert everything.steps == 501
    assert every_level(GuidedOptions(level=300)).steps == 300
    assert every_level(RestoreOptions(levels=7)).steps == 7


@pytest.mark.parametrize("function", [every_level, lambda options: more_steps(options, 10)])
def test_a_method_without_steps_is_refused(function: Any) -> None:
    with pytest.raises(InputError, match="no steps"):
        function(IntensityOptions())


# --- Which slices


@pytest.mark.parametrize(
    ("area", "count", "chosen"),
    [
        ([0, 0, 5, 9, 7, 0, 0, 0, 0, 0], 4, [1, 3, 4, 8]),
        ([0, 0, 5, 9, 7, 0, 0, 0, 0, 0], 3, [3, 4, 6]),
        ([0, 0, 5, 0], 3, [0, 2, 3]),
        ([3, 4, 5, 0], 3, [1, 2, 3]),
        ([3, 4, 5], 2, [1, 2]),
        ([0, 1], None, [0, 1]),
        ([0, 1], 9, [0, 1]),
    ],
)
def test_slices_are_the_largest_and_an_even_spread(area: list[int], count: int | None, chosen: list[int]) -> None:
    assert choose_slices(np.array(area), count) == chosen


# --- The comparison


def heat_file(output: Path, label: str, name: str) -> np.ndarray:
    with np.load(output / "heat" / label / f"anna_{name}.npz") as content:
        return content["anomaly_map"]


@pytest.mark.parametrize("label", ["unsupervised", "guided", "restore"])
def test_what_is_compared_is_the_scores_of_a_detection(
    label: str, folder: Path, plans: dict[str, Plan], output: Path, report: dict[str, Any]
) -> None:
    volume = read_volume(folder / "anna_flair.nii.gz")
    brain = read_mask(folder / "anna_brain.nii.gz", volume)
    options = more_steps(plans[label].method_options, 3)
    many = make_plan(Options(label, device="cpu", precision="float32", overrides=vars(options)), plans[label].bundle)
    for name, plan in (("default", plans[label]), ("3_the_steps", many)):
        np.testing.assert_allclose(heat_file(output, label, name), Detector(plan).raw_map(volume, brain).raw, atol=1e-6)


@pytest.mark.parametrize("label", ["unsupervised", "guided", "restore"])
def test_loss_and_correlation_are_those_of_the_two_scores(
    label: str, folder: Path, plans: dict[str, Plan], output: Path, report: dict[str, Any]
) -> None:
    (row,) = [row for row in report["rows"] if row["run"] == label]
    volume = read_volume(folder / "anna_flair.nii.gz")
    stack = Detector(plans[label]).raw_map(volume, read_mask(folder / "anna_brain.nii.gz", volume)).stack
    # Where the lesion is, by its formula at the slices' own places.
    reference = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(folder / "anna_mask.nii.gz")).any(axis=(1, 2)))
    lesion = reference[list(stack.indices)]
    few, many = (heat_file(output, label, name) for name in ("default", "3_the_steps"))
    for kind, slices in (("with", lesion), ("without", ~lesion)):
        inside = stack.brain() & slices[:, None, None]
        assert row[f"correlation_{kind}_lesion"] == pytest.approx(rank_correlation(few[inside], many[inside]))
    default, more = row["average_precision"], row["more_average_precision"]
    assert row["lost_percent"] == pytest.approx(100 * (more - default) / more)
    assert 0 < default < 1 and default != more
    assert row["more_calls"] == (4 if label == "restore" else 3 * row["calls"])  # the toy restorer has four levels


def test_a_part_of_the_slices_gets_the_same_scores_and_the_output_says_that_it_is_a_part(
    pairs: list[dataset.Pair], plans: dict[str, Plan], output: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    some = steps.compare(pairs, {"restore": plans["restore"]}, tmp_path, times=3, slices=4)
    whole, part = (heat_file(where, "restore", "default") for where in (output, tmp_path))
    assert len(part) == 4
    places = [next(k for k, plane in enumerate(whole) if np.allclose(plane, mine, atol=1e-6)) for mine in part]
    assert places == sorted(places)
    assert f"Only 4 of {len(whole)} slices were looked at" in steps.markdown(some)
    assert "slices were looked at" not in steps.markdown(report)


def test_a_stopped_run_goes_on_and_recomputes_only_what_changed(
    pairs: list[dataset.Pair],
    plans: dict[str, Plan],
    output: Path,
    report: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[str] = []
    original = steps._compute
    monkeypatch.setattr(
        steps,
        "_compute",
        lambda looked, plan, *rest: computed.append(plan.method.name) or original(looked, plan, *rest),
    )
    assert steps.compare(pairs, plans, output, times=3) == report
    assert computed == []
    again = steps.compare(pairs, plans, output, times=3, everything=False, slices=None)
    assert steps.markdown(again) == steps.markdown(report)
    (output / "heat" / "guided" / "anna_3_the_steps.npz").unlink()
    steps.compare(pairs, plans, output, times=3)
    assert computed == ["guided"]


def test_a_default_that_takes_every_level_has_nothing_to_be_compared_with(
    pairs: list[dataset.Pair], plans: dict[str, Plan], tmp_path: Path
) -> None:
    full = make_plan(Options("guided", device="cpu", overrides={"steps": 4, "level": 4}), plans["guided"].bundle)
    with pytest.raises(InputError, match="every level already"):
        steps.compare(pairs, {"guided": full}, tmp_path)
    both = steps.compare(pairs, {"guided": full, "other": plans["guided"]}, tmp_path, times=2, slices=1)
    assert [row["run"] for row in both["rows"]] == ["other"]
    assert "takes every level already: guided." in steps.markdown(both)


def test_equal_scores_correlates_fully_and_opposite_scores_negatively() -> None:
    values = np.random.default_rng(0).random(1000)
    assert rank_correlation(values, values**3) == pytest.approx(1.0)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)
    assert rank_correlation(np.zeros(5), np.zeros(5)) == 1.0
    assert rank_correlation(np.zeros(5), values[:5]) == 0.0


def test_the_command_writes_what_it_prints(
    folder: Path, plans: dict[str, Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = plans["guided"].bundle
    assert bundle is not None
    words = ["steps", folder, "--run", f"guided={bundle.path}", "--times", 2, "--slices", 2, "--device", "cpu"]
    words += ["--brain-pattern", "*_brain.nii.gz", "-o", tmp_path]
    assert benchmark.main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "steps.md").read_text(encoding="utf-8")
    assert "| guided | 2 × the steps | 9 → 18 |" in printed
    written = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))
    assert written["about"]["compared"]["guided"]["2 × the steps"]["steps"] == 6
    assert metrics.mean_or_nan([written["rows"][0]["average_precision"]]) > 0
