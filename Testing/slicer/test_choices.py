"""What the panel offers: methods, models and devices from the engine, and times from earlier runs."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import packages
from diffusion_anomaly.errors import ModelError
from diffusion_anomaly.models.package import builtin_directory
from diffusion_anomaly.registry import DEFAULT_METHOD, METHODS, get_method
from DiffusionAnomalyLib import choices
from DiffusionAnomalyLib.progresstext import TIMINGS, expectedSeconds, rememberTimings, shortTime, timeInWords
from DiffusionAnomalyLib.settings import MemorySettings, writeJson

MACHINE = {
    "devices": [
        {"id": "cpu", "name": "a processor"},
        {"id": "cuda:0", "name": "a GPU", "free_mb": 6144, "total_mb": 8192},
        {"id": "cuda:1", "name": "a full GPU", "free_mb": 100, "total_mb": 8192},
    ]
}


def test_the_guide_says_of_every_method_what_the_registry_says() -> None:
    assert sorted(guide.name for guide in METHODS.values()) == sorted(METHODS)
    assert next(iter(METHODS.values())).name == DEFAULT_METHOD, "what a new user is offered first"
    for guide in METHODS.values():
        method = METHODS[guide.name]
        assert (guide.title, guide.has_network) == (method.title, method.has_network)
        options = {option.name: option for option in fields(method.options_type)}
        for name, number in guide.numbers.items():
            assert number.default == options[name].default
            assert (number.low, number.high) == (options[name].metadata["low"], options[name].metadata["high"])
        assert ("steps" in options) == (guide.steps is not None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.guided(tmp_path_factory.mktemp("models") / "tiny").path


def test_only_models_of_the_method_are_listed_and_added_ones_are_remembered(tiny: Path) -> None:
    settings = MemorySettings()
    before = [summary.name for summary in choices.models("guided", settings)]
    assert "flair-guided" in before and "flair-unsupervised" not in before
    choices.remember(tiny, settings)
    choices.remember(tiny, settings)
    assert [summary.name for summary in choices.models("guided", settings)] == [*before, "tiny"]
    assert "tiny" not in [summary.name for summary in choices.models("unsupervised", settings)]
    assert choices.wasAdded(tiny, settings)
    choices.forget(tiny, settings)
    assert not choices.wasAdded(tiny, settings)
    assert [summary.name for summary in choices.models("guided", settings)] == before


def test_an_added_model_that_was_damaged_since_is_a_problem_and_is_not_listed(tmp_path: Path) -> None:
    settings = MemorySettings()
    folder = tmp_path / "broken"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "manifest.json").write_text("{", encoding="utf-8")
    choices.remember(folder, settings)
    assert all(
        summary.name != "broken" for guide in METHODS.values() for summary in choices.models(guide.name, settings)
    )
    choices.remember(tmp_path / "gone <b>", settings)
    found = choices.problems(settings)
    assert set(found) == {folder, tmp_path / "gone <b>"}
    assert "broken" in found[folder] and "is not there" in found[tmp_path / "gone <b>"]
    text = choices.problemsAsText(found)
    assert text.count("<p>") == 2 and "<b>" not in text and f'href="{choices.FORGET}{folder}"' in text


def test_a_package_that_changes_is_read_again_and_one_that_went_away_is_missed(tmp_path: Path) -> None:
    folder = packages.guided(tmp_path / "tiny", options={"steps": 2}).path
    steps = get_method("guided").steps
    assert steps is not None and choices.defaultOf(steps, folder) == 2 and choices.isThere(folder)
    shutil.rmtree(folder)
    assert not choices.isThere(folder)
    with pytest.raises(ModelError):
        choices.defaultOf(steps, folder)
    packages.guided(folder, options={"steps": 4})
    assert choices.defaultOf(steps, folder) == 4


def test_a_damaged_settings_file_costs_only_what_was_damaged(tiny: Path) -> None:
    settings = MemorySettings()
    writeJson(settings, choices.ADDED_MODELS, [1, None, str(tiny), ["x"]])
    assert [summary.path for summary in choices.models("guided", settings)][-1] == tiny
    for entry in ({}, {"fixed": "soon", "each": 1}, {"fixed": float("nan"), "each": 1.0}, None):
        writeJson(settings, TIMINGS, {"guided|tiny|cpu": entry})
        assert expectedSeconds(settings, "guided", "tiny", "cpu", 10, 2) is None


def test_the_steps_that_are_shown_are_those_that_can_be_walked(tiny: Path) -> None:
    assert choices.stepsToRun("guided", tiny, -1) == int(choices.defaultOf(get_method("guided").steps, tiny))
    assert choices.stepsToRun("guided", tiny, 200, 10) == 10
    assert choices.stepsToRun("unsupervised", None, 50, 0) == 1
    assert choices.stepsToRun("intensity", None, 50) is None
    assert choices.stepsToRun("localise", None, 50) is None


def test_a_number_out_of_range_is_refused_before_the_run() -> None:
    guide = get_method("guided")
    assert choices.numberProblem(guide.noise_level, None) == choices.numberProblem(guide.noise_level, 500) == ""
    assert "1 to 1000" in choices.numberProblem(guide.noise_level, 0)
    assert choices.numberProblem(None, 5) == ""


def test_only_methods_of_this_version_are_known() -> None:
    assert all(choices.isKnown(guide.name) for guide in METHODS.values()) and not choices.isKnown("brain")


def test_the_baseline_is_offered_and_a_method_without_a_model_is_not() -> None:
    offered = [guide.name for guide in choices.methods(MemorySettings())]
    assert "intensity" in offered and "guided" in offered
    for guide in METHODS.values():
        assert (guide.name in offered) == bool(choices.models(guide.name, MemorySettings()))


def test_steps_go_as_far_as_the_levels_do(tiny: Path) -> None:
    guided, reconstruction = get_method("guided"), get_method("unsupervised")
    assert guided.steps and reconstruction.steps
    assert choices.defaultOf(guided.steps, tiny) == 3
    assert choices.highest("guided", guided.steps, tiny) == 500
    assert choices.highest("guided", guided.steps, tiny, 40) == 40
    assert choices.highest("unsupervised", reconstruction.steps, None, 640) == 641
    assert choices.sliceSpacing(tiny) == 3.0


def test_a_preset_brings_its_own_steps_and_the_users_go_before(tiny: Path) -> None:
    assert [name for name, _title in choices.presets("guided")] == ["", "paper"]
    assert choices.presets("localise") == []
    assert choices.stepsToRun("guided", tiny, -1, None, "paper") == 500
    assert choices.stepsToRun("guided", tiny, -1, 300, "paper") == 300
    assert choices.stepsToRun("guided", tiny, 7, None, "paper") == 7
    assert choices.stepsToRun("unsupervised", None, -1, None, "paper") == 501
    assert choices.stepsToRun("guided", tiny, -1, None, "of another version") == 3


def test_only_models_of_whole_images_have_areas(tiny: Path, tmp_path: Path) -> None:
    films = packages.intensity(tmp_path / "films", region="image", orientation="any").path
    assert choices.looksAtPictures(films)
    assert not choices.looksAtPictures(tiny) and not choices.looksAtPictures(tmp_path / "gone")
    assert not choices.looksAtPictures(None)


@pytest.mark.parametrize(
    ("method", "contrast", "isPicture", "name"),
    [
        ("localise", "CT", False, "headct-localise"),
        ("localise", "FLAIR", False, "flair-localise"),
        ("guided", "FLAIR", False, "flair-guided"),
        ("guided", "", True, "chest-pneumonia-guided"),
        ("guided", "T2", False, None),
        ("guided", "", False, None),
        ("localise", "", True, None),
    ],
)
def test_the_model_that_suits_a_scan_is_found(method: str, contrast: str, isPicture: bool, name: str | None) -> None:
    models = choices.models(method, MemorySettings())
    found = choices.suited(models, contrast, isPicture)
    assert (found.name if found else None) == name


def test_a_card_tells_licence_quality_and_time_and_escapes_what_strangers_wrote(tmp_path: Path) -> None:
    quality = {
        "measured on": "x & y",
        "<b>average precision</b>": 0.7085,
        "average precision, 95 % interval": [0.6, 0.8125],
        "average precision of the baseline": 0.3,
        "seconds a scan": 12.5,
    }
    folder = packages.guided(tmp_path / "odd", quality=quality).path
    settings = MemorySettings()
    choices.remember(folder, settings)
    summary = choices.models("guided", settings)[-1]
    card = choices.card(summary, "about 2 minutes")
    for text in ("FLAIR", "axial slices", "CC0-1.0", "precision&lt;/b&gt; 0.71", "baseline 0.30", "about 2 minutes"):
        assert text in card
    assert "<b>average" not in card and "interval" not in card and "seconds a scan" not in card
    whole = choices.wholeCard(summary)
    for text in ("measured on: x & y", "95 % interval: 0.6 to 0.812", "seconds a scan: 12.5", "odd 0.1.0", str(folder)):
        assert text in whole
    assert choices.licence(summary).strip() == "The licence"


def test_what_was_found_and_missed_is_said_in_a_sentence_with_the_packages_own_numbers() -> None:
    lesions = {
        "measured on": "4 patients",
        "lesion recall at the stored threshold": 0.75,
        "false positives a scan": 2.5,
    }
    assert choices.measured(lesions) == (
        "on 4 patients, 75% of the lesions were found and 25% missed, with 2.5 false findings a scan"
    )
    films = {
        "measured on": "9 films",
        "sensitivity at the stored threshold": 0.9,
        "specificity at the stored threshold": 0.6,
    }
    assert choices.measured(films) == (
        "on 9 films, 90% of the images with disease were marked and 10% missed, and 60% of those without were left "
        "unmarked"
    )
    assert choices.measured({**lesions, "measured on": ""}).startswith("lesion recall")  # no place, no sentence
    assert choices.measured({}) == "not measured"
    shipped = [model for name in METHODS for model in choices.models(name, MemorySettings())]
    assert len(shipped) > 5
    assert [model.name for model in shipped if "missed" not in choices.measured(model.quality)] == []


def test_licences_that_keep_uses_back_are_asked_for_once(tmp_path: Path) -> None:
    settings = MemorySettings()
    guided = builtin_directory() / "flair-guided"
    asked = choices.toAccept(guided, settings)
    assert [(one.name, one.license) for one in asked] == [
        ("flair-guided", "CC-BY-NC-SA-4.0"),
        ("scan-recognition", "CC-BY-NC-SA-4.0"),
    ]
    choices.accept(asked, settings)
    assert choices.toAccept(guided, settings) == []
    fresh = MemorySettings()
    assert [one.name for one in choices.toAccept(builtin_directory() / "flair-localise", fresh)] == ["scan-recognition"]
    assert choices.toAccept(builtin_directory() / "headct-localise", fresh) == []  # permissive, and not of the brain
    assert choices.toAccept(None, fresh) == []
    own = packages.guided(tmp_path / "own").path  # CC0-1.0
    assert [one.name for one in choices.toAccept(own, fresh)] == ["scan-recognition"]


def test_devices_come_from_the_machine_and_one_that_cannot_work_says_so() -> None:
    titles = {device.id: device.title for device in choices.devices(MACHINE)}
    assert list(titles) == ["auto", "cpu", "cuda:0", "cuda:1"]
    assert "6.0 of 8.0 GB free" in titles["cuda:0"] and "a processor" in titles["cpu"]
    assert [device.id for device in choices.devices(None)] == ["auto", "cpu"]
    assert choices.deviceProblem("cuda:0", MACHINE) == choices.deviceProblem("auto", MACHINE) == ""
    assert "100 MB" in choices.deviceProblem("cuda:1", MACHINE)
    assert "not there" in choices.deviceProblem("cuda:7", MACHINE)
    assert choices.deviceProblem("cuda:7", None) == ""


def test_the_expected_time_follows_slices_and_steps() -> None:
    settings = MemorySettings()
    assert expectedSeconds(settings, "guided", "tiny", "cpu", 20, 10) is None
    run = {"method": "guided", "model": "tiny", "device": "cpu", "slices": 20, "steps": 10}
    rememberTimings(settings, run, {"detect": 40.0, "total": 52.0})
    assert expectedSeconds(settings, "guided", "tiny", "cpu", 20, 10) == pytest.approx(52.0)
    assert expectedSeconds(settings, "guided", "tiny", "auto", 40, 20) == pytest.approx(12 + 160)
    assert expectedSeconds(settings, "guided", "other", "auto", 20, 10) is None
    assert expectedSeconds(settings, "guided", "tiny", "cuda:0", 20, 10) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "not yet"), (3, "few seconds"), (52, "50 seconds"), (600, "10 minutes"), (9000, "2.5 hours")],
)
def test_times_are_said_as_people_say_them(seconds: float | None, words: str) -> None:
    assert words in timeInWords(seconds)


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "not measured"), (0.2, "about 1 s"), (6.4, "about 6 s"), (150, "about 2 min")]
)
def test_a_time_in_a_line_is_short(seconds: float | None, words: str) -> None:
    assert words in shortTime(seconds)
