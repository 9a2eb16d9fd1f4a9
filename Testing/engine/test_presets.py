"""The published options under one name: everywhere the same, overlaid by single options, and written down."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import SimpleITK as sitk

import diffusion_anomaly as da
import packages
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.evaluation.runs import RunSpec, plan_runs
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.registry import METHODS, MethodEntry, get_method
from diffusion_anomaly.worker.main import detection_options
from diffusion_anomaly.worker.protocol import Job

PAPERS = [method for method in METHODS.values() if "paper" in method.presets]
OTHERS = [method.name for method in METHODS.values() if "paper" not in method.presets]
PUBLISHED = {
    "guided": {"level": 500, "steps": 500, "guidance_scale": 100.0, "side": "both", "min_reference_intensity": 0.0},
    "unsupervised": {"latent_percentile": 97.5, "kl_from": 400, "kl_to": 600, "start_level": 500, "side": "both"},
}


def test_both_papers_have_their_preset() -> None:
    assert {method.name for method in PAPERS} == set(PUBLISHED)


@pytest.mark.parametrize("method", PAPERS, ids=lambda method: method.name)
def test_the_preset_is_what_was_published_whatever_the_package_says(method: MethodEntry) -> None:
    plan = make_plan(Options(method.name, preset="paper"))
    found = asdict(plan.method_options)
    assert {name: found[name] for name in PUBLISHED[method.name]} == PUBLISHED[method.name]
    assert asdict(make_plan(Options(method.name)).method_options) != found


def test_every_level_of_the_paper_is_walked() -> None:
    options = make_plan(Options("unsupervised", preset="paper")).method_options
    assert options.kl_grid == list(range(400, 600)) and options.steps == options.most_steps
    assert get_method("unsupervised").network_calls(options) == 200 + 501
    assert get_method("guided").network_calls(make_plan(Options("guided", preset="paper")).method_options) == 3 * 500


def test_a_single_option_goes_before_the_preset() -> None:
    plan = make_plan(Options("guided", preset="paper", steps=7, overrides={"side": "dark"}))
    assert (plan.method_options.steps, plan.method_options.side, plan.method_options.guidance_scale) == (7, "dark", 100)


def test_what_the_preset_leaves_open_is_the_packages(tmp_path: Path) -> None:
    bundle = packages.unsupervised(tmp_path / "toy", options={"mask_sigma": 1.25, "eta": 0.5})
    options = make_plan(Options("unsupervised", preset="paper"), bundle).method_options
    assert (options.mask_sigma, options.eta) == (1.25, 1.0)


@pytest.mark.parametrize(
    ("method", "preset", "said"),
    [
        ("guided", "nature", r"'guided' has no preset 'nature'.*It has paper"),
        *((method, "paper", rf"'{method}' has no preset 'paper'.*It has none") for method in OTHERS),
        ("guided", 3, r"preset is 3.*text"),
    ],
)
def test_an_unknown_preset_is_refused_before_anything_runs(method: str, preset: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_plan(Options(method, preset=preset))
    if method == "guided":
        with pytest.raises(InputError, match=said):
            da.load(method=method, preset=preset)


def test_python_and_jobs_take_it_like_any_option() -> None:
    wanted = make_plan(Options("guided", preset="paper")).method_options
    assert da.load(method="guided", preset="paper").plan.method_options == wanted
    job = Job("scan.nii", "out", method="guided", options={"preset": "paper", "steps": 9})
    assert make_plan(detection_options(job)).method_options == replace(wanted, steps=9)


def test_an_evaluation_compares_it_with_the_packages_own_options() -> None:
    plans = plan_runs(
        [RunSpec.parse("guided"), RunSpec.parse("guided:paper"), RunSpec.parse("guided:paper=flair-guided")]
    )
    assert list(plans) == ["guided", "guided (paper)", "guided (flair-guided, paper)", "intensity"]
    assert [plan.method_options.steps for plan in plans.values() if plan.method.name == "guided"] == [10, 500, 500]
    with pytest.raises(InputError, match="no preset 'paper'"):
        plan_runs([RunSpec.parse("intensity:paper")])


def test_provenance_says_the_preset_and_every_option_in_force(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    bundle = packages.guided(tmp_path / "toy")
    options = Options("guided", model=str(bundle.path), preset="paper", steps=2, device="cpu")
    said = da.Detector(options)(flair_like_volume, brain=flair_like_brain).provenance["options"]
    assert (said["preset"], said["steps"], said["guidance_scale"], said["clamp"]) == ("paper", 2, 100.0, "before")


def test_the_scores_of_a_package_are_not_calibrated_for_it() -> None:
    """Said of every option that is far from the package's, so that nobody reads a probability into them."""
    warning = make_plan(Options("guided", preset="paper")).calibration_warning
    assert warning is not None and "steps 500 instead of 10" in warning and "side both instead of bright" in warning


def test_a_percentile_without_a_threshold_for_it_is_refused(tmp_path: Path) -> None:
    bundle = packages.unsupervised(tmp_path / "toy", latent_threshold={"percentile": 90.0, "value": 0.1})
    from diffusion_anomaly.methods.latent_threshold import resolve_threshold

    options = make_plan(Options("unsupervised", preset="paper"), bundle).method_options
    with pytest.raises((InputError, ModelError), match=r"97\.5.*knows 90 only"):
        resolve_threshold(options.latent_threshold, options.latent_percentile)
