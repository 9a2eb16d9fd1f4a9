"""How far a finding's highest score must exceed the threshold: from a model package to all that is made of a result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pypdf import PdfReader

import diffusion_anomaly as da
import packages
import phantom
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.cli import rethreshold
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.models.package import Bundle, builtin_directory, open_bundle
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.results import redrawing
from diffusion_anomaly.results.comparison.compare import Exam
from diffusion_anomaly.results.comparison.reading import read_exam
from diffusion_anomaly.results.printing import print_report
from diffusion_anomaly.results.report import Shown, record_rows, render_report
from diffusion_anomaly.results.result import Result

THRESHOLD, MARGIN = 1.0, 1.0
# Boxes of 5 x 5 x 3 voxels in the brain, k j i, and how much brighter they are: ever higher scores, all above 1.
SPOTS = (((9, 30, 13), 30.0), ((9, 30, 25), 45.0), ((5, 30, 19), 60.0))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scan`` and ``brain.nii.gz`` of a head with a bright lesion and three fainter spots."""
    folder = phantom.write_scan(tmp_path_factory.mktemp("spots"))
    image = sitk.ReadImage(str(folder / "scan.nii.gz"))
    values = sitk.GetArrayFromImage(image)
    for (k, j, i), brighter in SPOTS:
        values[k - 1 : k + 2, j - 2 : j + 3, i - 2 : i + 3] += brighter
    sitk.WriteImage(phantom.on_grid(values, image), str(folder / "scan.nii.gz"))
    return folder


def package(folder: Path, **threshold: Any) -> Bundle:
    """The baseline with another threshold."""
    shipped = dict(open_bundle("flair-intensity").anomaly)
    for own in ("schema_version", "name", "version", "method", "networks"):
        del shipped[own]
    return packages.write(folder, "intensity", {}, {**shipped, "threshold": {"heat": THRESHOLD, **threshold}})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Packages with and without a margin."""
    folder = tmp_path_factory.mktemp("packages")
    return {"margin": package(folder / "margin", peak_margin=MARGIN), "plain": package(folder / "plain")}


def found(bundle: Bundle, place: Path, **changes: Any) -> Result:
    detector = Detector(packages.options_for(bundle, force=True, **changes))
    return detector(place / "scan.nii.gz", brain=place / "brain.nii.gz")


@pytest.fixture(scope="module")
def result(bundles: dict[str, Bundle], place: Path) -> Result:
    return found(bundles["margin"], place)


@pytest.fixture(scope="module")
def without(bundles: dict[str, Bundle], place: Path) -> Result:
    return found(bundles["plain"], place)


@pytest.fixture(scope="module")
def saved(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "saved"
    result.save(folder)
    return folder


def array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def peaks(result: Result) -> list[float]:
    return sorted(finding.peak_score for finding in result.findings)


# --- Packages and options


def test_a_package_without_a_margin_has_none_and_one_with_it_is_whole(bundles: dict[str, Bundle]) -> None:
    plans = {name: make_plan(packages.options_for(bundle)) for name, bundle in bundles.items()}
    assert (plans["plain"].peak_margin, plans["margin"].peak_margin) == (0.0, MARGIN)
    for bundle in bundles.values():
        verify(bundle)


def test_the_default_package_alone_drops_findings_for_their_peak() -> None:
    bundles = {path.name: open_bundle(path.name) for path in sorted(builtin_directory().iterdir()) if path.is_dir()}
    found = {
        name: make_plan(packages.options_for(bundle)).peak_margin
        for name, bundle in bundles.items()
        if "threshold" in bundle.anomaly
    }
    assert len(found) >= 8 and make_plan(Options(device="cpu")).bundle.name == "flair-localise"
    assert {name: margin for name, margin in found.items() if margin} == {"flair-localise": 0.7}


@pytest.mark.parametrize("wrong", [-0.1, 1001, "1", None, True])
def test_a_package_with_a_margin_that_cannot_be_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ModelError, match="threshold/peak_margin"):
        verify(package(tmp_path / "wrong", peak_margin=wrong))


def test_the_documents_tell_the_margin_that_the_default_package_has() -> None:
    root = Path(__file__).parents[2]
    margin = open_bundle("flair-localise").anomaly["threshold"]["peak_margin"]
    assert f"`flair-localise` has {margin:g}:" in (root / "docs/concepts/calibration.md").read_text(encoding="utf-8")
    assert f"{margin:g} in `flair-localise`," in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_package_says_it_where_it_says_the_threshold(
    bundles: dict[str, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "show", str(bundles["margin"].path)]) == 0
    assert "| threshold.peak_margin | 1 |" in capsys.readouterr().out


# --- Detection


def test_the_package_margin_drops_what_hardly_exceeds_the_threshold(result: Result, without: Result) -> None:
    assert len(without.findings) == 4
    assert peaks(result) == [peak for peak in peaks(without) if peak >= THRESHOLD + MARGIN]
    assert 0 < len(result.findings) < 4
    assert np.array_equal(array(result.anomaly_map), array(without.anomaly_map))
    smaller, larger = array(result.mask) > 0, array(without.mask) > 0
    assert not (smaller & ~larger).any() and smaller.sum() < larger.sum()
    assert result.provenance["options"]["peak_margin"] == result.peak_margin == MARGIN
    assert without.provenance["options"]["peak_margin"] == without.peak_margin == 0.0


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.5, 1000.0])
def test_the_users_margin_goes_before_the_packages(
    bundles: dict[str, Bundle], place: Path, without: Result, margin: float
) -> None:
    asked = found(bundles["margin"], place, peak_margin=margin)
    assert peaks(asked) == [peak for peak in peaks(without) if peak >= THRESHOLD + margin]
    if margin == 0:
        assert np.array_equal(array(asked.mask), array(without.mask)) and asked.findings == without.findings


@pytest.mark.parametrize("at", [0.6, 1.0, 1.4, 2.5, 5.0])
def test_another_threshold_keeps_the_margin_unless_another_is_given(result: Result, without: Result, at: float) -> None:
    moved = result.at(at)
    assert moved.peak_margin == moved.provenance["options"]["peak_margin"] == MARGIN
    assert peaks(moved) == [peak for peak in peaks(without.at(at)) if peak >= at + MARGIN]
    assert not ((array(moved.mask) > 0) & ~(array(without.at(at).mask) > 0)).any()
    assert da.threshold(result, at, peak_margin=0.0).findings == without.at(at).findings
    assert result.at(at, peak_margin=0.2).peak_margin == 0.2


def test_results_of_earlier_versions_have_every_finding(without: Result) -> None:
    options = {name: value for name, value in without.provenance["options"].items() if name != "peak_margin"}
    earlier = replace(without, provenance={**without.provenance, "options": options})
    assert earlier.at(THRESHOLD).findings == without.findings and earlier.peak_margin == 0


# --- Files


def test_a_saved_result_tells_the_margin_and_gives_the_same_mask_again(
    saved: Path, result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads((saved / "findings.json").read_text(encoding="utf-8"))
    assert (listed["threshold"], listed["peak_margin"]) == (THRESHOLD, MARGIN)
    assert json.loads((saved / "provenance.json").read_text(encoding="utf-8"))["options"]["peak_margin"] == MARGIN
    heat = str(saved / "heat.nii.gz")
    assert cli.main(["threshold", heat, "--at", str(THRESHOLD), "-o", str(tmp_path / "same")]) == 0
    assert f"{len(result.findings)} findings" in capsys.readouterr().out
    again = sitk.ReadImage(str(tmp_path / "same" / "mask.nii.gz"))
    assert np.array_equal(array(again), array(result.mask))
    assert json.loads((tmp_path / "same" / "threshold.json").read_text(encoding="utf-8"))["peak_margin"] == MARGIN


@pytest.mark.parametrize("margin", ["0", "0.3", "4"])
def test_the_threshold_command_takes_another_margin(
    saved: Path, without: Result, tmp_path: Path, margin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["threshold", str(saved / "heat.nii.gz"), "--at", str(THRESHOLD), "--peak-margin", margin]
    assert cli.main([*words, "-o", str(tmp_path)]) == 0
    listed = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))
    told = listed["findings"]
    assert (listed["threshold"], listed["peak_margin"]) == (THRESHOLD, float(margin))
    expected = [peak for peak in peaks(without) if peak >= THRESHOLD + float(margin)]
    assert sorted(row["peak_heat_neg_log10_p"] for row in told) == pytest.approx(expected)
    above = f", at its highest {THRESHOLD + float(margin):.2f} or more"
    assert (above in capsys.readouterr().out) == (margin != "0")


def test_the_threshold_command_tells_which_margin_made_room(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["threshold", str(saved / "heat.nii.gz"), "--at", str(THRESHOLD), "-o", str(tmp_path / "out")]
    for margin in ("0.5", "0"):
        assert cli.main([*words, "--peak-margin", margin]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "at a score of 1.0 (at least 0.05 ml, peak margin 0.5) were replaced" in told


def test_a_map_without_record_has_no_margin(saved: Path, without: Result, tmp_path: Path) -> None:
    (tmp_path / "alone.nii.gz").write_bytes((saved / "heat.nii.gz").read_bytes())
    words = ["threshold", str(tmp_path / "alone.nii.gz"), "--at", str(THRESHOLD), "-o", str(tmp_path / "out")]
    assert cli.main(words) == 0
    told = json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8"))["findings"]
    assert len(told) == len(without.findings)


def test_the_commands_take_it(bundles: dict[str, Bundle], place: Path, tmp_path: Path, plain_report: None) -> None:
    scan, brain = str(place / "scan.nii.gz"), str(place / "brain.nii.gz")
    model = ["--model", str(bundles["plain"].path), "--device", "cpu", "--force"]
    words = ["detect", scan, "--mask", brain, *model, "--peak-margin", "1.5", "-o", str(tmp_path / "one")]
    assert cli.main(words) == 0
    made = json.loads((tmp_path / "one" / "provenance.json").read_text(encoding="utf-8"))
    assert made["options"]["peak_margin"] == 1.5
    assert cli.main([*words[:-4], "--peak-margin", "-1", "-o", str(tmp_path / "two")]) == 2
    assert cli.main([*words[:-4], "--set", "peak_margin=1", "-o", str(tmp_path / "two")]) == 2


@pytest.mark.parametrize("wrong", ["-1", "nan", "1001"])
def test_a_margin_that_cannot_be_is_refused(
    saved: Path, tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["threshold", str(saved / "heat.nii.gz"), "--at", "2", "--peak-margin", wrong, "-o", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "peak margin" in capsys.readouterr().err and not (tmp_path / "out").exists()


def damage(folder: Path, saved: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a result whose record holds something else."""
    shutil.copytree(saved, folder)
    made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    change(made)
    (folder / "provenance.json").write_text(json.dumps(made), encoding="utf-8")
    return folder


def test_a_damaged_margin_is_told_with_the_record_that_holds_it(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damage(tmp_path / "damaged", saved, lambda made: made["options"].update(peak_margin=-3))
    words = ["threshold", str(folder / "heat.nii.gz"), "--at", "2", "-o", str(tmp_path / "out")]
    assert cli.main(words) == 2
    told = "".join(capsys.readouterr().err.split())
    assert f"{folder / 'provenance.json'}isdamaged:Thepeakmarginis-3." in told and not (tmp_path / "out").exists()
    assert cli.main([*words, "--peak-margin", "0"]) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda made: made["options"].update(peak_margin=-3), "The peak margin is -3"),
        (lambda made: made["threshold"].update(heat=0), "The threshold is 0"),
    ],
    ids=["peak margin", "threshold"],
)
def test_a_damaged_record_of_an_exam_is_named(
    saved: Path, place: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    folder = damage(tmp_path / "damaged", saved, change)
    with pytest.raises(InputError, match=told) as refused:
        read_exam(folder, read_volume(place / "scan.nii.gz"))
    assert f"{folder / 'provenance.json'} is damaged" in refused.value.what


def test_the_threshold_command_says_areas_of_a_picture_that_made_room() -> None:
    of_picture = {"threshold": 2.0, "min_volume_ml": 0.05, "min_area": 12.0}
    assert rethreshold._described(of_picture) == "at a score of 2.0 (at least 12.0 mm² or pixels)"
    assert rethreshold._described({**of_picture, "min_area": None}) == "at a score of 2.0 (at least 0.05 ml)"


# --- Reports and comparisons


def test_reports_say_it_where_they_say_the_threshold(result: Result, without: Result, tmp_path: Path) -> None:
    page, plain = render_report(result), render_report(without)
    assert "threshold 1.00, peak margin 1: findings reach 2.00" in page and "findings reach" not in plain
    assert ("options · peak margin", "1") in list(record_rows(result.provenance))
    none = render_report(result.at(THRESHOLD, peak_margin=900.0))
    assert "reaches the threshold and exceeds it at its highest by the peak margin of 900" in none
    printed = {}
    for name, one in (("with", result), ("without", without), ("none", result.at(THRESHOLD, peak_margin=900.0))):
        print_report(Shown.of(one), tmp_path / f"{name}.pdf")
        pages = PdfReader(tmp_path / f"{name}.pdf").pages
        printed[name] = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "threshold 1.00, peak margin 1: findings reach 2.00" in printed["with"]
    assert "findings reach" not in printed["without"]
    assert "reaches the threshold and exceeds it at its highest by the peak margin of 900" in printed["none"]
    assert "1.00 or more, at its highest 2.00 or more (peak margin 1)" in repr(result)
    assert "2.00 or more" in result._repr_html_()


def request(folder: Path, result: Result, place: Path) -> Path:
    """What Slicer writes of a result."""
    folder.mkdir()
    images = {redrawing.SCAN: result.scan.reference.image, redrawing.BRAIN: result.brain}
    for name, image in {**images, redrawing.ANOMALY_MAP: result.anomaly_map}.items():
        sitk.WriteImage(image, str(folder / name))
    redrawing.write_request(redrawing.Request("scan", THRESHOLD, 0.05, result.provenance), folder)
    return folder


def test_a_report_drawn_again_has_the_findings_of_the_run(result: Result, place: Path, tmp_path: Path) -> None:
    page = redrawing.redraw(request(tmp_path / "again", result, place)).read_text(encoding="utf-8")
    assert f"<dd>{len(result.findings)}</dd>" in page and "findings reach 2.00" in page


def test_exams_for_a_comparison_keep_it(result: Result, without: Result, saved: Path, place: Path) -> None:
    exams = [Exam.of(result), read_exam(saved, read_volume(place / "scan.nii.gz"))]
    assert [exam.peak_margin for exam in exams] == [MARGIN, MARGIN] and Exam.of(without).peak_margin == 0
