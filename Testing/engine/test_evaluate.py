"""The evaluation against definitions written out, on phantoms whose truth is known."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import stats

import packages
import phantom
from diffusion_anomaly.detection import brain as brain_finder
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import Cancelled, InputError
from diffusion_anomaly.evaluation import evaluate, metrics
from diffusion_anomaly.evaluation.dataset import Pair, find_healthy, find_pairs
from diffusion_anomaly.evaluation.froc import Froc
from diffusion_anomaly.evaluation.reliability import SCORES, FreeSlices
from diffusion_anomaly.evaluation.runs import RunSpec, plan_runs
from diffusion_anomaly.evaluation.statistics import Case, RunResult, Sweep
from diffusion_anomaly.evaluation.table import COLUMNS, Table
from diffusion_anomaly.evaluation.truth import Truth, sweep
from diffusion_anomaly.io.records import DIGESTS
from diffusion_anomaly.models.filters import PostprocessSettings
from diffusion_anomaly.models.package import Bundle, open_bundle
from diffusion_anomaly.results.findings import segment
from diffusion_anomaly.results.result import Progress

DARK = RunSpec("intensity", options={"overrides": {"side": "dark"}}, label="dark")
PATIENTS = ("anna", "bert", "carla")


def write_patients(folder: Path, spacing: tuple[float, float, float] = (5.0, 5.0, 5.0)) -> Path:
    """Three heads with noise and one lesion each, ever less bright; the last reference is empty."""
    folder.mkdir(parents=True)
    empty = phantom.grid((28, 34, 26), spacing)
    brain, lesion = phantom.brain_of(empty), phantom.lesion_of(empty)
    for number, (name, brightness) in enumerate(zip(PATIENTS, (220.0, 125.0, 100.0), strict=True)):
        clean = sitk.GetArrayFromImage(phantom.paint(empty, lesion=brightness))
        noise = np.random.default_rng(number).normal(0, 8, clean.shape)
        scan = phantom.on_grid(np.where(clean > 0, clean + noise, 0).astype(np.float32), empty)
        reference = lesion if brightness > 100 else phantom.on_grid(np.zeros(clean.shape, np.uint8), empty)
        for kind, image in (("flair", scan), ("mask", reference), ("brain", brain)):
            sitk.WriteImage(image, str(folder / f"{name}_{kind}.nii.gz"))
    return folder


def with_brains(folder: Path) -> list[Pair]:
    return find_pairs(folder, brain_pattern="*_brain.nii.gz")


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("scans") / "patients")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.unsupervised(tmp_path_factory.mktemp("models") / "toy-unsupervised")


@pytest.fixture(scope="module")
def output(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one evaluation: the dark side of intensity, and the baseline."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate.run(with_brains(patients), [DARK], folder, device="cpu", resamples=200)
    return folder


@pytest.fixture(scope="module")
def written(output: Path) -> dict[str, Any]:
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))


def row_of(written: dict[str, Any], label: str) -> dict[str, Any]:
    (row,) = [row for row in written["rows"] if row["run"] == label]
    return row


def arrays(patients: Path, output: Path, label: str) -> Iterator[tuple[sitk.Image, np.ndarray, np.ndarray]]:
    """Anomaly scores image, reference and brain of each patient."""
    for name in PATIENTS:
        masks = (sitk.GetArrayFromImage(sitk.ReadImage(patients / f"{name}_{k}.nii.gz")) > 0 for k in ("mask", "brain"))
        yield (sitk.ReadImage(output / "heat" / label / f"{name}.nii.gz"), *masks)


# --- Which scans


def test_pairs_are_found_by_name(patients: Path) -> None:
    pairs = find_pairs(patients)
    assert [pair.name for pair in pairs] == list(PATIENTS)
    assert pairs[0] == Pair("anna", patients / "anna_flair.nii.gz", patients / "anna_mask.nii.gz")


def test_patterns_may_name_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("scan.nii", "truth.nii"):
            (tmp_path / name / file).touch()
    pairs = find_pairs(tmp_path, "*/scan.nii", "*/truth.nii")
    assert [(pair.name, pair.reference) for pair in pairs] == [(n, tmp_path / n / "truth.nii") for n in ("a", "b")]


def test_pairs_are_listed_in_a_csv_file_relative_to_it(patients: Path) -> None:
    path = patients / "pairs.csv"
    path.write_text(
        "scan,reference,brain\nbert_flair.nii.gz,bert_mask.nii.gz,\nanna_flair.nii.gz,anna_mask.nii.gz,anna_brain.nii.gz\n",
        encoding="utf-8",
    )
    anna, bert = find_pairs(path)
    assert (anna.name, anna.brain) == ("anna_flair", patients / "anna_brain.nii.gz")
    assert (bert.name, bert.brain) == ("bert_flair", None)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (("*_t1.nii.gz", "*_mask.nii.gz"), "holds no scan named"),
        (("*_flair.nii.gz", "*_truth.nii.gz"), "anna_truth.nii.gz"),
        (("anna_flair.nii.gz", "*_mask.nii.gz"), "needs one *"),
        (("*_flair.nii.*", "*_mask.nii.gz"), "needs one *"),
    ],
)
def test_pairs_that_cannot_be_had_are_named(patients: Path, patterns: tuple[str, str], said: str) -> None:
    with pytest.raises(InputError) as refused:
        find_pairs(patients, *patterns)
    assert said in refused.value.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has the columns none"),
        ("scan,mask\na,b\n", "has the columns scan, mask"),
        ("scan,reference\na,\n", "line 2, lacks"),
        ("scan,reference,name\na,b,x\nc,d,x\n", "names x more than once"),
        ("scan,reference,rater_one\na,b,\n", "line 2, has nothing in rater_one"),
        ("scan,reference,channel_T1\na,b,c\na,b,\n", "line 3, has nothing in channel_T1"),
        ("scan,reference,rater_\na,b,c\n", "column rater_ .*names nothing"),
        ("scan,reference,brain\na,b\n", "line 2, has 2 cells; the heading has 3"),
        ("scan,reference\na,b,c\n", "line 2, has 3 cells; the heading has 2"),
        ('scan,reference\na,b\n"a,b\nc,d\n', "from line 3 on"),
        ("scan,reference,scan\na,b,c\n", "two columns scan"),
    ],
)
def test_a_csv_file_that_lists_no_pairs_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        find_pairs(tmp_path / "pairs.csv")
    assert re.search(said, refused.value.what)


@pytest.mark.parametrize(("separator", "ending"), [(";", "\r\n"), ("\t", "\n"), (",", "\r")])
def test_a_table_may_come_from_any_spreadsheet(patients: Path, separator: str, ending: str) -> None:
    rows = [["scan", "reference", "name"], ["anna_flair.nii.gz", " anna_mask.nii.gz", '"a, b; c"'], ["", "", ""]]
    text = ending.join(separator.join(row) for row in rows)
    (patients / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (pair,) = find_pairs(patients / "pairs.csv")
    assert (pair.name, pair.reference) == ("a, b; c", patients / "anna_mask.nii.gz")


@pytest.mark.parametrize(
    ("patterns", "column"),
    [
        ({"scan_pattern": "*_flair.nii.gz"}, "columns scan"),
        ({"mask_pattern": "*_truth.nii.gz"}, "columns reference"),
        ({"brain_pattern": "*_brain.nii.gz"}, "columns brain"),
    ],
)
def test_a_table_takes_no_patterns(patients: Path, patterns: dict[str, str], column: str) -> None:
    table = patients / "pairs.csv"
    table.write_text("scan,reference\nanna_flair.nii.gz,anna_mask.nii.gz\n", encoding="utf-8")
    with pytest.raises(InputError, match="is a table, and patterns are for folders") as refused:
        find_pairs(table, **patterns)
    assert column in refused.value.hint


def test_patients_of_a_table_without_all_contrasts_are_left_out_when_asked(patients: Path) -> None:
    table = patients / "pairs.csv"
    rows = [f"{name}_flair.nii.gz,{name}_mask.nii.gz,{name}_flair.nii.gz" for name in ("anna", "bert")]
    table.write_text("\n".join(["scan,reference,channel_T1", rows[0], rows[1].rpartition(",")[0] + ","]))
    assert [pair.name for pair in find_pairs(table, complete_only=True)] == ["anna_flair"]


@pytest.mark.parametrize("record", ["provenance.json", "one/provenance.json", "threshold.json", "cohort.json"])
def test_an_evaluation_does_not_mix_with_other_results(patients: Path, tmp_path: Path, record: str) -> None:
    output = tmp_path / "out"
    (output / record).parent.mkdir(parents=True)
    (output / record).write_text(json.dumps({DIGESTS: {}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"another result|results of its own"):
        evaluate.run(find_pairs(patients), [RunSpec("intensity")], output)
    assert [path.name for path in output.rglob("*") if path.is_file()] == [Path(record).name]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        find_pairs(tmp_path / "gone")


# --- Which methods


def test_the_baseline_is_always_beside() -> None:
    assert list(plan_runs([DARK], "cpu")) == ["dark", "intensity"]
    assert list(plan_runs([RunSpec("intensity")], "cpu")) == ["intensity"]
    own = RunSpec("intensity", options={"min_volume_ml": 1.0, "precision": "float32"})
    assert plan_runs([own], "cpu")["intensity"].asked.min_volume_ml == 1.0
    assert list(plan_runs([], "cpu")) == ["intensity"]


def test_there_is_one_baseline_with_its_own_package_whatever_it_is_compared_with(
    package: Bundle, tmp_path: Path
) -> None:
    other = packages.unsupervised(tmp_path / "other", postprocess={"median_pixels": 5})
    third = packages.restore(tmp_path / "third", grid={"size": [80, 96], "spacing": 2.0})
    runs = [RunSpec(bundle.method, str(bundle.path)) for bundle in (package, other, third)]
    plans = plan_runs(runs, "cpu")
    assert list(plans) == ["unsupervised", "unsupervised (other)", "restore", "intensity"]
    own = open_bundle("flair-intensity")
    baseline = plans["intensity"]
    assert baseline.bundle.sha256 == own.sha256
    assert baseline.grid == own.grid != package.grid
    assert baseline.postprocess == PostprocessSettings.from_dict(own.anomaly["postprocess"])
    assert baseline.threshold == own.anomaly["threshold"]["heat"]
    assert baseline.asked == Options("intensity", device="cpu", force=True)


def test_a_baseline_that_was_asked_for_keeps_its_options_and_a_labelled_one_is_a_run_of_its_own(
    tmp_path: Path,
) -> None:
    asked = RunSpec("intensity", options={"slice_spacing": 10.0})
    package = packages.intensity(tmp_path / "toy-intensity")
    other = RunSpec("intensity", str(package.path), label="coarse")
    plans = plan_runs([other, asked], "cpu")
    assert list(plans) == ["coarse", "intensity"]
    assert plans["coarse"].bundle.sha256 == package.sha256
    assert plans["intensity"].grid.max_slice_spacing == 10.0


def test_a_baseline_with_a_model_is_that_one_and_otherwise_sees_what_the_runs_see(tmp_path: Path) -> None:
    ct = {"modality": "CT", "region": "intracranial", "normalisation": {"kind": "window", "low": 0, "high": 80}}
    own = packages.intensity(tmp_path / "ct-intensity", **ct)
    other = packages.restore(tmp_path / "ct-restore", **ct, grid={"size": [80, 96], "spacing": 2.0})
    ran = RunSpec("restore", str(other.path))
    plans = plan_runs([ran, RunSpec("intensity", str(own.path))], "cpu")
    assert list(plans) == ["restore", "intensity"]
    assert plans["intensity"].bundle.sha256 == own.sha256
    seen = plan_runs([ran], "cpu")["intensity"].bundle
    assert (seen.name, seen.region, seen.modality) == ("flair-intensity", "intracranial", "CT")
    assert seen.normalisation == other.normalisation and seen.grid == other.grid


def test_steps_are_as_many_as_each_method_allows_and_none_where_it_has_none(tmp_path: Path) -> None:
    """The restorer was trained on four levels; the localiser and the baseline have no steps."""
    made = (packages.unsupervised(tmp_path / "a"), packages.restore(tmp_path / "b"), packages.localise(tmp_path / "c"))
    runs = [RunSpec(bundle.method, str(bundle.path)) for bundle in made]
    options = {label: plan.method_options for label, plan in plan_runs(runs, "cpu", steps=10).items()}
    assert {label: getattr(chosen, "steps", None) for label, chosen in options.items()} == {
        **{"unsupervised": 10, "restore": 4, "localise": None, "intensity": None}
    }
    own = {label: plan.method_options for label, plan in plan_runs(runs, "cpu").items()}
    assert [getattr(own[label], "steps", None) for label in ("unsupervised", "restore")] == [4, 2]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([DARK, DARK], "Two runs are called 'dark'"),
        ([RunSpec("intensity", label="intensity")], "as the baseline is"),
        ([RunSpec("intensity", options={"stepz": 3})], "unknown entries stepz"),
        ([RunSpec("telepathy")], "Unknown method 'telepathy'"),
    ],
)
def test_runs_that_cannot_be_told_apart_or_run_are_refused(runs: list[RunSpec], said: str) -> None:
    with pytest.raises(InputError) as refused:
        plan_runs(runs, "cpu")
    assert said in refused.value.what


# --- The numbers, from the anomaly maps that were written, by other means


@pytest.mark.parametrize("label", ["dark", "intensity"])
def test_pooled_average_precision_is_that_of_all_voxels_at_once(
    patients: Path, output: Path, written: dict[str, Any], label: str
) -> None:
    lesion, other = [], []
    for anomaly_map, reference, brain in arrays(patients, output, label):
        values = sitk.GetArrayFromImage(anomaly_map)
        lesion.append(values[brain & reference])
        other.append(values[brain & ~reference])
    expected = metrics.average_precision(np.concatenate(lesion), np.concatenate(other))
    assert row_of(written, label)["pooled_average_precision"] == pytest.approx(expected, abs=1e-12)


def test_voxel_auroc_and_otsus_dice_are_those_of_the_raw_scores_of_each_scan(
    patients: Path, output: Path, written: dict[str, Any]
) -> None:
    calibration = make_plan(Options("intensity")).calibration
    for row, (anomaly_map, reference, brain) in zip(
        [row for row in written["patients"] if row["run"] == "intensity"],
        arrays(patients, output, "intensity"),
        strict=True,
    ):
        scores = sitk.GetArrayFromImage(anomaly_map)
        if not reference.any():
            assert row["otsu_dice"] is None and row["voxel_auroc"] is None
            continue
        ranks = stats.rankdata(scores[brain])
        positive = reference[brain]
        count, others = positive.sum(), (~positive).sum()
        expected = (ranks[positive].sum() - count * (count + 1) / 2) / (count * others)
        assert row["voxel_auroc"] == pytest.approx(expected, abs=1e-9)
        raw = np.zeros_like(scores, dtype=float)
        raw[brain] = calibration.inverse(scores[brain])
        predicted = brain & (raw >= metrics.otsu_threshold(raw[brain]))
        overlap = 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
        assert row["otsu_dice"] == pytest.approx(overlap, abs=1e-9)


def test_dice_at_both_thresholds_is_that_of_findings_cut_anew(
    patients: Path, output: Path, written: dict[str, Any]
) -> None:
    row = row_of(written, "intensity")
    for column, threshold in (("dice", row["threshold"]), ("best_dice", row["best_threshold"])):
        dices = [
            metrics.dice(sitk.GetArrayFromImage(segment(anomaly_map, threshold)[0]) > 0, reference)
            for anomaly_map, reference, _ in arrays(patients, output, "intensity")
        ]
        assert row[column] == pytest.approx(np.nanmean(dices), abs=1e-12)


def test_the_best_dice_is_not_beaten_by_any_threshold_of_a_fine_list(
    patients: Path, output: Path, written: dict[str, Any]
) -> None:
    row = row_of(written, "intensity")
    maps = list(arrays(patients, output, "intensity"))
    fine = [
        np.nanmean([metrics.dice(sitk.GetArrayFromImage(segment(h, t)[0]) > 0, r) for h, r, _ in maps])
        for t in np.linspace(0.3, 6.0, 25)
    ]
    assert row["best_dice"] >= max(fine) - 0.02  # recall may change by 1/63 between two of the thresholds tried
    assert row["best_dice"] >= row["dice"]


def test_what_hardly_exceeds_the_threshold_counts_nowhere(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        brain_finder.BrainFinder, "__call__", lambda finder, volume, warn: phantom.brain_of(volume.image)
    )
    swept: list[Sweep] = []
    monkeypatch.setattr(evaluate, "sweep", lambda *given: swept.append(sweep(*given)) or swept[-1])
    margin = 0.7
    options = {"peak_margin": margin, "min_volume_ml": 0.0, "threshold": 0.5}
    runs = [RunSpec("intensity", options=options, label="high")]
    healthy = find_healthy(patients, "*_flair.nii.gz")
    evaluate.run(with_brains(patients), runs, tmp_path, "cpu", healthy=healthy[2:], resamples=20)
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))

    def mask(anomaly_map: sitk.Image, at: float, least: float = margin) -> np.ndarray:
        exactly = sitk.Cast(anomaly_map, sitk.sitkFloat64)  # as thresholds are, of which most are scores themselves
        return sitk.GetArrayFromImage(segment(exactly, at, 0.0, peak_margin=least)[0]) > 0

    assert {row["run"]: row["peak_margin"] for row in written["rows"]} == {"intensity": 0.0, "high": margin}
    with (tmp_path / "evaluation.csv").open(newline="", encoding="utf-8") as file:
        assert {row["run"]: float(row["peak_margin"]) for row in csv.DictReader(file)}["high"] == margin
    told = [line for line in (tmp_path / "evaluation.md").read_text("utf-8").splitlines() if "peak margin" in line]
    assert len(told) == 1 and told[0].startswith("- **high**: peak margin 0.7;")
    maps = list(arrays(patients, tmp_path, "high"))
    row = row_of(written, "high")
    for column, at in (("dice", 0.5), ("best_dice", row["best_threshold"])):
        dices = [metrics.dice(mask(anomaly_map, at), reference) for anomaly_map, reference, _ in maps]
        assert row[column] == pytest.approx(np.nanmean(dices), abs=1e-12)
    differ = 0
    for number, at in enumerate(swept[0].thresholds):
        for patient, (anomaly_map, reference, _) in enumerate(maps):
            lesions = metrics.Lesions.of(reference, 0.125)
            false, more = (lesions.match(mask(anomaly_map, at, least), 0.1).false_positives for least in (margin, 0.0))
            assert swept[0].froc.false_findings[patient, number] == false <= more
            differ += false < more
    assert differ > 10
    (healthy_row,) = [row for row in written["healthy"] if row["run"] == "high"]
    anomaly_map = sitk.ReadImage(tmp_path / "healthy" / "heat" / "high" / "carla.nii.gz")
    assert healthy_row["findings"] == len(segment(anomaly_map, 0.5, 0.0, peak_margin=margin)[2])
    assert healthy_row["findings"] < len(segment(anomaly_map, 0.5, 0.0)[2])


def test_a_bright_lesion_is_found_by_the_bright_side_alone(written: dict[str, Any]) -> None:
    bright, dark = row_of(written, "intensity"), row_of(written, "dark")
    assert bright["average_precision"] > 0.5 > dark["average_precision"]
    assert bright["slice_auroc"] > dark["slice_auroc"]
    assert dark["gain"] == pytest.approx(dark["average_precision"] - bright["average_precision"])
    assert bright["lesion_recall"] >= 0.5
    assert dark["lesion_recall"] == 0.0


def test_a_patient_without_a_lesion_counts_for_false_alarms_alone(written: dict[str, Any]) -> None:
    (carla,) = [case for case in written["patients"] if (case["run"], case["patient"]) == ("intensity", "carla")]
    assert (carla["lesions"], carla["dice"], carla["average_precision"]) == (0, None, None)
    assert carla["tumour_free_slices"] > 15


def test_every_number_lies_in_its_interval_and_range(written: dict[str, Any]) -> None:
    for row in written["rows"]:
        for key in ("dice", "best_dice", "average_precision", "lesion_recall", "false_positives", "seconds"):
            low, high = row[f"{key}_low"], row[f"{key}_high"]
            assert low <= row[key] <= high or low == pytest.approx(row[key])
        assert 0 <= row["slice_auroc"] <= 1


@pytest.mark.parametrize(("thickness", "gap"), [(5.0, 3), (10.0, 3), (1.0, 15), (2.5, 6)])
def test_tumour_free_slices_are_three_slices_and_15_mm_away(thickness: float, gap: int) -> None:
    image = phantom.grid((4, 4, 60), (2.0, 2.0, thickness))
    ones = phantom.on_grid(np.ones((60, 4, 4), np.uint8), image)
    reference = np.zeros((60, 4, 4), np.uint8)
    reference[30, 1, 1] = 1
    truth = Truth.of(phantom.as_volume(image), phantom.on_grid(reference, image), ones)
    assert np.flatnonzero(~truth.free_slices).tolist() == list(range(30 - gap + 1, 30 + gap))


# --- Lesion outside the brain mask


@pytest.fixture(scope="module")
def cut(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Pair], Path, dict[str, Any]]:
    """The same patients with brain masks that leave out the lesion of the second and some of the first's."""
    folder, masks = tmp_path_factory.mktemp("cut"), tmp_path_factory.mktemp("masks")
    pairs = []
    for pair, kept in zip(with_brains(patients), (0.7, 0.0, 1.0), strict=True):
        assert pair.brain is not None
        brain, lesion = sitk.ReadImage(pair.brain), sitk.ReadImage(pair.reference)
        inside, tumour = sitk.GetArrayFromImage(brain), sitk.GetArrayViewFromImage(lesion) > 0
        places = np.flatnonzero(tumour)
        inside.flat[places[int(kept * len(places)) :]] = 0
        sitk.WriteImage(phantom.on_grid(inside, brain), masks / f"{pair.name}.nii.gz")
        pairs.append(Pair(pair.name, pair.scan, pair.reference, masks / f"{pair.name}.nii.gz"))
    evaluate.run(pairs, [DARK], folder, device="cpu", resamples=50)
    return pairs, folder, json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_lesion_outside_the_brain_mask_is_missed_in_average_precision(
    cut: tuple[list[Pair], Path, dict[str, Any]],
) -> None:
    pairs, folder, written = cut
    anomaly_maps, truths = [], []
    for pair in pairs:
        assert pair.brain is not None
        anomaly_map = sitk.GetArrayFromImage(sitk.ReadImage(folder / "heat" / "intensity" / f"{pair.name}.nii.gz"))
        brain, lesion = (sitk.GetArrayFromImage(sitk.ReadImage(path)) > 0 for path in (pair.brain, pair.reference))
        judged = brain | lesion
        anomaly_maps.append(np.where(brain, anomaly_map, -1)[judged])
        truths.append(lesion[judged])

    def by_enumeration(anomaly_map: np.ndarray, truth: np.ndarray) -> float:
        """Precision at each voxel's own anomaly scores, summed over the lesion's voxels that any scores reach."""
        found = [truth[anomaly_map >= value].mean() for value in anomaly_map[truth & (anomaly_map >= 0)]]
        return float(np.sum(found) / truth.sum())

    row = row_of(written, "intensity")
    anna, bert, carla = [case for case in written["patients"] if case["run"] == "intensity"]
    assert anna["average_precision"] == pytest.approx(by_enumeration(anomaly_maps[0], truths[0]), abs=1e-12)
    share = 1 - anna["reference_outside_brain_ml"] / anna["reference_ml"]
    assert share == pytest.approx(0.7, abs=0.03)
    assert anna["average_precision"] == pytest.approx(anna["average_precision_in_brain"] * share, abs=1e-12)
    assert (bert["average_precision"], bert["average_precision_in_brain"]) == (0.0, None)
    assert carla["average_precision"] is None
    assert row["average_precision"] == pytest.approx(anna["average_precision"] / 2)
    assert row["average_precision_in_brain"] == pytest.approx(anna["average_precision_in_brain"])
    pooled = by_enumeration(np.concatenate(anomaly_maps), np.concatenate(truths))
    assert row["pooled_average_precision"] == pytest.approx(pooled, abs=1e-12)
    assert row["pooled_average_precision_in_brain"] > pooled


def test_the_share_of_lesion_outside_the_brain_mask_is_printed(cut: tuple[list[Pair], Path, dict[str, Any]]) -> None:
    _, folder, written = cut
    row = row_of(written, "dark")
    assert row["outside_brain"] == pytest.approx((0.3 + 1.0) / 2, abs=0.03)
    assert row["outside_brain_worst"] == 1.0
    text = (folder / "evaluation.md").read_text(encoding="utf-8")
    head = text.splitlines()[0]
    assert "| outside mask | outside, worst |" in head
    assert f"| {row['outside_brain']:.3f} [" in text


# --- Healthy scans


def test_every_finding_in_a_healthy_scan_is_counted(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        brain_finder.BrainFinder, "__call__", lambda finder, volume, warn: phantom.brain_of(volume.image)
    )
    healthy = find_healthy(patients, "*_flair.nii.gz")
    assert [scan.name for scan in healthy] == list(PATIENTS)
    table = evaluate.run(with_brains(patients)[:1], [DARK], tmp_path, "cpu", healthy=healthy[:2], resamples=20)
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    for label in ("dark", "intensity"):
        (row,) = [row for row in written["healthy"] if row["run"] == label]
        found = []
        for name in PATIENTS[:2]:
            anomaly_map = sitk.ReadImage(tmp_path / "healthy" / "heat" / label / f"{name}.nii.gz")
            found.append(segment(anomaly_map, row_of(written, label)["threshold"])[2])
        ml = [sum(finding.volume_ml for finding in listed) for listed in found]
        assert row["scans"] == 2
        assert row["findings"] == pytest.approx(np.mean([len(listed) for listed in found]))
        assert (row["findings_ml"], row["worst_ml"]) == (pytest.approx(np.mean(ml)), pytest.approx(max(ml)))
    assert written["healthy"][1]["findings"] > 0
    assert [(case["run"], case["scan"]) for case in written["healthy_scans"]] == [
        (label, name) for label in ("dark", "intensity") for name in PATIENTS[:2]
    ]
    assert "| method | scans | findings a scan | ml a scan |" in table.markdown()
    assert (tmp_path / "evaluation_healthy.csv").is_file()
    assert [case["patient"] for case in written["patients"]] == ["anna", "anna"]


def test_without_healthy_scans_there_is_no_table_of_them(output: Path, written: dict[str, Any]) -> None:
    assert "healthy" not in written
    assert "Healthy scans" not in (output / "evaluation.md").read_text(encoding="utf-8")


def test_a_folder_without_healthy_scans_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no scan named"):
        find_healthy(tmp_path)
    with pytest.raises(InputError, match="gone"):
        find_healthy(tmp_path / "gone")
    with pytest.raises(InputError, match=r"needs one \*"):
        find_healthy(tmp_path, "scan.nii.gz")


# --- What is written


def test_all_forms_of_the_table_hold_the_same_numbers(output: Path, written: dict[str, Any]) -> None:
    with open(output / "evaluation.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["dark", "intensity"]
    for from_csv, from_json in zip(rows, written["rows"], strict=True):
        assert float(from_csv["average_precision"]) == from_json["average_precision"]
    text = (output / "evaluation.md").read_text(encoding="utf-8")
    assert f"{written['rows'][1]['average_precision']:.3f}" in text
    assert written["about"]["hardware"] in text


def test_markdown_tables_are_well_formed_and_explain_every_column(output: Path) -> None:
    lines = (output / "evaluation.md").read_text(encoding="utf-8").splitlines()
    first = [line for line in lines if line.startswith("|")][:4]
    assert {line.count("|") for line in first} == {len(COLUMNS) + 2}
    for column in COLUMNS:
        assert f"- **{column.title}**: {column.meaning}." in lines


def test_there_is_a_row_a_patient_and_a_map(patients: Path, output: Path, written: dict[str, Any]) -> None:
    assert len(written["patients"]) == 2 * len(PATIENTS)
    for anomaly_map, _, brain in arrays(patients, output, "intensity"):
        assert not sitk.GetArrayFromImage(anomaly_map)[~brain].any()


def test_hardware_models_and_definitions_are_named(written: dict[str, Any]) -> None:
    about = written["about"]
    assert "processor cores" in about["hardware"]
    assert set(about["runs"]) == {"dark", "intensity"}
    assert about["versions"]["torch"]
    assert set(about["columns"]) == {column.key for column in COLUMNS}


def test_reliability_counts_the_maps_own_voxels(patients: Path, output: Path) -> None:
    written = json.loads((output / "reliability.json").read_text(encoding="utf-8"))
    marked, brain_voxels = 0, 0
    for anomaly_map, reference, brain in arrays(patients, output, "intensity"):
        tumour = np.flatnonzero(reference.any(axis=(1, 2)))
        free = [k for k in range(len(brain)) if not len(tumour) or np.abs(tumour - k).min() >= 3]
        values = sitk.GetArrayFromImage(anomaly_map)[free][brain[free]]
        marked, brain_voxels = marked + (values >= 2).sum(), brain_voxels + values.size
    (row,) = [row for row in written["curve"] if (row["run"], row["heat"]) == ("intensity", 2.0)]
    assert row["measured"] == pytest.approx(marked / brain_voxels)
    assert row["patients"] == len(PATIENTS)
    by_patient = {row["patient"]: row for row in written["patients"] if row["run"] == "intensity"}
    assert by_patient["carla"]["brain_ml"] == pytest.approx(by_patient["carla"]["scan_brain_ml"])  # without a lesion
    assert by_patient["anna"]["brain_ml"] < by_patient["anna"]["scan_brain_ml"]


def test_there_are_pictures_of_calibration_and_of_each_run(output: Path) -> None:
    names = ("reliability.png", "montage-dark.png", "montage-intensity.png")
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in names)


# --- The run


def test_a_brain_is_found_once_a_scan_and_kept(
    patients: Path, package: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find(finder: Any, volume: Any, warn: Any) -> sitk.Image:
        asked.append(volume.source)
        return phantom.brain_of(volume.image)

    monkeypatch.setattr(brain_finder.BrainFinder, "__call__", find)
    runs = [RunSpec("unsupervised", str(package.path), {"precision": "float32"}), DARK]
    table = evaluate.run(find_pairs(patients)[:2], runs, tmp_path, "cpu", resamples=10)
    assert len(asked) == 2
    assert sorted(path.name for path in (tmp_path / "brain").iterdir()) == ["anna.nii.gz", "bert.nii.gz"]
    assert [row["run"] for row in table.rows] == ["unsupervised", "dark", "intensity"]
    assert [row["network_calls"] for row in table.rows] == [8, 0, 0]  # 2 levels, 2 draws each, and 4 steps


def test_progress_goes_forward_and_a_cancel_gets_through(patients: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def stop_at_the_second_scan(now: Progress) -> None:
        seen.append(now)
        if now.stage == "detect" and now.done >= 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        evaluate.run(with_brains(patients), [], tmp_path / "out", "cpu", progress=stop_at_the_second_scan)
    assert [now.stage for now in seen] == sorted((now.stage for now in seen), key=["brain", "detect"].index)
    done = [now.done for now in seen if now.stage == "detect"]
    assert done == sorted(done)
    assert seen[-1].total == 3
    assert not list((tmp_path / "out").glob("evaluation*"))


def test_a_reference_on_another_grid_is_refused_before_any_method_runs(patients: Path, tmp_path: Path) -> None:
    scans = write_patients(tmp_path / "scans", (4.0, 4.0, 4.0))
    pairs = [Pair("a", patients / "anna_flair.nii.gz", scans / "anna_mask.nii.gz", patients / "anna_brain.nii.gz")]
    with pytest.raises(InputError, match="another grid"):
        evaluate.run([*with_brains(patients), *pairs], [], tmp_path / "out", "cpu")
    assert not (tmp_path / "out" / "heat").exists()


def test_a_scan_of_several_volumes_is_refused_without_naming_what_evaluate_has_not(
    patients: Path, tmp_path: Path
) -> None:
    image = sitk.ReadImage(str(patients / "anna_flair.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "4d.nii.gz"))
    pair = Pair("a", tmp_path / "4d.nii.gz", patients / "anna_mask.nii.gz", patients / "anna_brain.nii.gz")
    with pytest.raises(InputError, match="4-D: it holds 2 volumes") as caught:
        evaluate.run([pair], [], tmp_path / "out", "cpu")
    assert "--frame" not in str(caught.value)


# --- Summaries of patients made up


def made_up(name: str, lesions: tuple[tuple[float, bool], ...], dice: float = 0.5, precision: float = 0.5) -> Case:
    volumes, found = tuple(volume for volume, _ in lesions), tuple(hit for _, hit in lesions)
    return Case(
        name=name,
        reference_ml=sum(volumes),
        outside_brain_ml=0.0,
        predicted_ml=1.0,
        dice=dice,
        average_precision=precision,
        average_precision_in_brain=precision,
        otsu_dice=0.5,
        voxel_auroc=0.5,
        outside_brain_voxels=0,
        lesions=metrics.LesionMatch(volumes, found, 2),
        free=FreeSlices(name, 0, 0.0, 1000.0, np.zeros(len(SCORES)), 0.0),
        score=0.0,
        score_warning=False,
        seconds=1.0,
        brain_given=True,
        input_sha256="",
        lesion_scores=np.array([1.0]),
        slice_scores=np.array([1.0, 0.0]),
        slice_has_lesion=np.array([True, False]),
    )


PROVENANCE = {
    "method": "intensity",
    "model": None,
    "threshold": {"heat": 3.0},
    "network_calls_per_slice": 0,
    "device": {"name": "a processor", "used": "cpu", "precision": "float32"},
    "versions": {},
    "options": {},
    "calibration": "",
}


def run_of(label: str, cases: list[Case], is_baseline: bool = False) -> RunResult:
    count = len(cases)
    swept = Sweep(
        average_precision=0.4,
        average_precision_in_brain=0.4,
        missed=np.zeros(count, int),
        true_positives=np.ones((count, 1), int),
        false_positives=np.ones((count, 1), int),
        thresholds=np.array([3.0]),
        dice=np.full((count, 1), 0.5),
        froc=Froc.of([[case.lesions] for case in cases]),
    )
    return RunResult(label, is_baseline, cases, swept, PROVENANCE)


def test_recall_counts_lesions_not_patients_and_strata_share_them_out() -> None:
    cases = [made_up("a", ((0.5, True), (0.2, False), (20.0, True))), made_up("b", ((1.0, False), (99.0, True)))]
    table = Table.of([run_of("x", cases)], resamples=10)
    assert table.rows[0]["lesion_recall"] == pytest.approx(3 / 5)
    assert [(row["lesions"], row["lesion_recall"]) for row in table.strata] == [(2, 0.5), (1, 0.0), (1, 1.0), (1, 1.0)]
    assert [row["patients"] for row in table.strata] == [0, 0, 1, 1]


def test_the_gain_is_paired_so_equal_differences_have_no_spread() -> None:
    baseline = [made_up("a", (), precision=0.1), made_up("b", (), precision=0.7)]
    better = [made_up("a", (), precision=0.2), made_up("b", (), precision=0.8)]
    row, other = Table.of([run_of("x", better), run_of("intensity", baseline, True)], resamples=50).rows
    assert row["gain"] == pytest.approx(0.1)
    assert (row["gain_low"], row["gain_high"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert "gain" not in other


@pytest.mark.parametrize(
    ("precisions", "verdict"),
    [((0.2, 0.8), "yes"), ((0.05, 0.6), "no"), ((0.2, 0.6), "not shown"), ((0.1, 0.7), "not shown")],
)
def test_a_run_beats_intensity_where_the_interval_of_the_difference_lies_above_0(
    precisions: tuple[float, float], verdict: str
) -> None:
    baseline = [made_up(name, (), precision=value) for name, value in zip("abcdef", (0.1, 0.7) * 3, strict=True)]
    compared = [made_up(name, (), precision=value) for name, value in zip("abcdef", precisions * 3, strict=True)]
    table = Table.of([run_of("x", compared), run_of("intensity", baseline, True)], resamples=50)
    assert table.rows[0]["beats_intensity"] == verdict
    assert "beats_intensity" not in table.rows[1]
    place = [column.key for column in COLUMNS].index("beats_intensity") + 2
    rows = [line.split("|") for line in table.markdown().splitlines() if line.startswith(("| x ", "| intensity "))]
    assert [row[place].strip() for row in rows[:2]] == [verdict, "–"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_patients_show_no_difference(count: int) -> None:
    compared, baseline = ([made_up(name, (), precision=p) for name in "abcde"[:count]] for p in (0.9, 0.5))
    runs = [run_of("x", compared), run_of("intensity", baseline, True)]
    assert Table.of(runs, resamples=10).rows[0]["beats_intensity"] == "not shown"


def test_the_share_of_patients_whose_own_best_threshold_is_near_the_stored_one() -> None:
    run = run_of("x", [made_up(name, ((1.0, True),)) for name in "abcdef"])
    swept = replace(
        run.sweep,
        thresholds=np.array([1.0, 2.5, 3.0, 3.6, 5.0]),  # 3.0 is stored
        dice=np.array(
            [
                [0.1, 0.2, 0.3, 0.4, 0.2],  # best at 3.6
                [0.9, 0.2, 0.3, 0.4, 0.2],  # at 1.0
                [0.5, 0.2, 0.5, 0.1, 0.5],  # at three, the stored one among them
                [np.nan, np.nan, np.nan, np.nan, np.nan],  # no reference
                [0.1, 0.2, 0.3, 0.4, 0.5],  # at 5.0
                [0.0, 0.0, 0.0, 0.0, 0.0],  # nothing is found
            ]
        ),
    )
    np.testing.assert_array_equal(swept.best_thresholds(3.0), [3.6, 1.0, 3.0, np.nan, 5.0, np.nan])
    table = Table.of([replace(run, sweep=swept)], resamples=10)
    assert table.rows[0]["own_threshold_near"] == 0.5
    assert "threshold fits" in table.markdown()


def test_one_patient_has_numbers_but_no_intervals() -> None:
    table = Table.of([run_of("x", [made_up("a", ((1.0, True),))])], resamples=10)
    assert table.rows[0]["dice"] == 0.5
    assert math.isnan(table.rows[0]["dice_low"])
    assert "| x | 0.500 |" in table.markdown()
    json.dumps(table.to_dict(), allow_nan=False)
