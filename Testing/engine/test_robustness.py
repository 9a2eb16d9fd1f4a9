"""The robustness table on phantoms: judged as it says, paired with the unperturbed scan, and going on after a stop."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.detection import brain as brain_finder
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Plan
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation import dataset, evaluate, metrics
from diffusion_anomaly.evaluation.formatting import finite
from diffusion_anomaly.io.volume import Volume, read_volume
from Testing.benchmarks import benchmark, evidence, robustness
from Testing.benchmarks.perturbations import PERTURBATIONS, Perturbation

NAMES = ("anna", "bert")
CHOSEN = ("gamma 1.4", "lower third of the brain cut off", "3 slices merged")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads with noise and one lesion each, 5 mm slices."""
    folder = tmp_path_factory.mktemp("scans")
    empty = phantom.grid((30, 36, 26), (4.6, 4.6, 5.0))
    for number, name in enumerate(NAMES):
        clean = sitk.GetArrayFromImage(phantom.paint(empty, lesion=150.0 + 40 * number))
        noise = np.random.default_rng(number).normal(0, 12, clean.shape)
        scan = phantom.on_grid(np.where(clean > 0, clean + noise, 0).astype(np.float32), empty)
        sitk.WriteImage(scan, str(folder / f"{name}_flair.nii.gz"))
        sitk.WriteImage(phantom.lesion_of(empty), str(folder / f"{name}_mask.nii.gz"))
    return folder


@pytest.fixture(autouse=True)
def found_brains(monkeypatch: pytest.MonkeyPatch) -> list[Volume]:
    """The phantom's brain takes the network's place; the scans it was asked for."""
    asked: list[Volume] = []

    def find(finder: Any, volume: Volume, *more: Any) -> sitk.Image:
        asked.append(volume)
        return phantom.brain_of(volume.image)

    monkeypatch.setattr(brain_finder.BrainFinder, "__call__", find)
    return asked


def plans() -> dict[str, Plan]:
    return evaluate.plan_runs([evaluate.RunSpec("intensity")], "cpu")


def chosen() -> list[Perturbation]:
    return [perturbation for perturbation in PERTURBATIONS if perturbation.name in CHOSEN]


@pytest.fixture
def measure(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(output: Path = tmp_path / "out", seed: int = 0) -> dict[str, Any]:
        return robustness.robustness(dataset.find_pairs(folder), plans(), chosen(), output, seed)

    return run


def cases(report: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    return (case for case in report["cases"] if case["perturbation"] == name)


def row(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [row for row in report["rows"] if row["perturbation"] == name]
    return found


def arrays(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Anomaly scores and mask of a detection, reference and brain."""
    volume = read_volume(folder / f"{name}_flair.nii.gz")
    brain = phantom.brain_of(volume.image)
    result = Detector(plans()["intensity"].asked)(volume, brain=brain)
    reference = sitk.ReadImage(folder / f"{name}_mask.nii.gz")
    anomaly_map, mask, truth, inside = (
        sitk.GetArrayFromImage(i) for i in (result.anomaly_map, result.mask, reference, brain)
    )
    return anomaly_map, mask > 0, truth > 0, inside > 0


def test_the_unperturbed_scan_is_judged_as_a_detection_is(folder: Path, measure: Callable[..., dict[str, Any]]) -> None:
    found = {case["patient"]: case for case in cases(measure(), "unperturbed")}
    for name in NAMES:
        anomaly_map, mask, truth, inside = arrays(folder, name)
        assert found[name]["dice"] == pytest.approx(metrics.dice(mask, truth))
        assert found[name]["average_precision"] == pytest.approx(
            metrics.average_precision(anomaly_map[truth], anomaly_map[(inside | truth) & ~truth])
        )


def test_where_the_view_is_cut_the_unperturbed_scores_is_judged_on_what_is_left(
    folder: Path, measure: Callable[..., dict[str, Any]]
) -> None:
    report = measure()
    name = "lower third of the brain cut off"
    expected = []
    for patient, case in zip(NAMES, cases(report, name), strict=True):
        _, mask, truth, inside = arrays(folder, patient)
        levels = np.flatnonzero(inside.any(axis=(1, 2)))
        first = levels[0] + int(np.ceil(len(levels) / 3))
        left = slice(first, None)
        assert truth[left].sum() == case["reference_voxels"]
        expected.append(case["dice"] - metrics.dice(mask[left], truth[left]))
    assert row(report, name)["dice_change"] == pytest.approx(np.mean(expected))


def test_means_and_changes_are_over_the_same_patients(measure: Callable[..., dict[str, Any]]) -> None:
    report = measure()
    before, after = (
        [case["average_precision"] for case in cases(report, name)] for name in ("unperturbed", "gamma 1.4")
    )
    found = row(report, "gamma 1.4")
    assert found["average_precision"] == pytest.approx(np.mean(after))
    assert found["average_precision_change"] == pytest.approx(np.mean(np.subtract(after, before)))
    assert row(report, "unperturbed")["average_precision_change"] == 0.0


def test_the_brain_is_found_anew_in_each_perturbed_scan(
    measure: Callable[..., dict[str, Any]], found_brains: list[Volume]
) -> None:
    measure()
    # Of each patient the scan itself, gamma, and the cut one; three slices of 5 mm cannot be merged.
    assert len(found_brains) == 3 * len(NAMES)
    assert len({volume.image.GetSize() for volume in found_brains}) == 2


def test_a_brain_that_is_not_found_counts_as_no_scores(
    folder: Path, measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(finder: Any, volume: Volume, *more: Any) -> sitk.Image:
        if sitk.GetArrayViewFromImage(volume.image).max() != sitk.GetArrayViewFromImage(original[0].image).max():
            raise InputError("No brain was found.", "Choose another scan.")
        return phantom.brain_of(volume.image)

    original = [read_volume(folder / "anna_flair.nii.gz")]
    monkeypatch.setattr(brain_finder.BrainFinder, "__call__", find)
    report = robustness.robustness(
        dataset.find_pairs(folder)[:1], plans(), [p for p in chosen() if p.name == "gamma 1.4"], folder / "out"
    )
    (case,) = cases(report, "gamma 1.4")
    _, _, truth, inside = arrays(folder, "anna")
    assert (case["brain_found"], case["brain_dice"], case["dice"]) == (False, 0.0, 0.0)
    assert case["average_precision"] == pytest.approx(truth.sum() / (truth | inside).sum())
    assert "No brain was found any more (scans): gamma 1.4 (1)." in robustness.markdown(report)


def test_a_stopped_run_goes_on_where_it_was(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = measure()
    computed = []

    class Counting(Detector):
        def __call__(self, scan: Any, **options: Any) -> Any:
            computed.append(scan.source)
            return super().__call__(scan, **options)

    monkeypatch.setattr(robustness, "Detector", Counting)
    assert finite(measure()) == finite(first)
    assert computed == []
    (tmp_path / "out" / "cases" / "bert_gamma_1.4_intensity.json").unlink()
    assert finite(measure()) == finite(first)
    assert [Path(source).name for source in computed] == ["bert_flair.nii.gz"]


def test_what_was_computed_for_another_seed_or_option_is_not_taken(
    measure: Callable[..., dict[str, Any]], found_brains: list[Volume]
) -> None:
    measure()
    asked = len(found_brains)
    measure(seed=1)
    assert len(found_brains) == 2 * asked - len(NAMES)  # the brains of the scans themselves stay known


def test_the_table_has_a_row_a_perturbation_and_names_what_is_impossible(
    measure: Callable[..., dict[str, Any]],
) -> None:
    report = measure()
    text = robustness.markdown(report)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| perturbation | patients | brain Dice | intensity Dice | Δ | intensity AP | Δ |"
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == ["unperturbed", *CHOSEN[:2]]
    assert re.search(r"\| gamma 1.4 \| 2 \| 1\.000 \| \d\.\d{3} \| [+-]\d\.\d{3} \|", text)
    assert "Not possible with these scans: 3 slices merged." in text


def test_the_command_writes_what_it_prints(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["robustness", folder, "--run", "intensity", "--only", "gamma", "--patients", 1, "--device", "cpu"]
    assert benchmark.main([str(word) for word in (*asked, "-o", tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "robustness.md").read_text(encoding="utf-8")
    assert "[3/3] bert, gamma 1.4" in printed.err
    written = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))
    assert written["about"]["patients"] == ["bert"]
    assert [row["perturbation"] for row in written["rows"]] == ["unperturbed", "gamma 0.7", "gamma 1.4"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "telepathy"), "No perturbation is called telepathy"),
        (("--patient", "carla"), "There is no patient carla"),
        (("--patients", "0"), "0 patients were asked for"),
        (("--run", "telepathy"), "Unknown method"),
    ],
)
def test_a_wrong_argument_is_named(
    words: tuple[str, ...], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["robustness", str(folder), "--run", "intensity", *words, "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_patients_are_spread_evenly_over_their_names(tmp_path: Path) -> None:
    pairs = [dataset.Pair(f"p{n}", tmp_path, tmp_path) for n in range(10)]
    assert [pair.name for pair in evidence.chosen(pairs, None, 2)] == ["p2", "p7"]
    assert [pair.name for pair in evidence.chosen(pairs, ["p9", "p1"], None)] == ["p1", "p9"]
    assert evidence.chosen(pairs, None, 99) == pairs
