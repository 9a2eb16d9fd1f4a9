"""A report at another threshold than that of the run, with names: what Slicer asks a process of its own for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
from pypdf import PdfReader

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.results import redrawing
from diffusion_anomaly.results.findings import segment
from diffusion_anomaly.results.redrawing import Request, redraw, write_request
from diffusion_anomaly.results.report import render_report
from diffusion_anomaly.results.result import Result
from diffusion_anomaly.worker import probe


@pytest.fixture(scope="module")
def result(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> Result:
    return Detector(Options(method="intensity"))(flair_like_volume, brain=flair_like_brain)


def folder_with(folder: Path, result: Result, volume: Volume, threshold: float, **names: str) -> Path:
    for name, image in (
        (redrawing.SCAN, volume.image),
        (redrawing.ANOMALY_MAP, result.anomaly_map),
        (redrawing.BRAIN, result.brain),
    ):
        sitk.WriteImage(image, str(folder / name))
    numbered = {number.removeprefix("finding"): name for number, name in names.items()}
    write_request(Request(volume.name, threshold, 0.05, result.provenance, numbered), folder)
    return folder


def test_the_same_threshold_gives_the_same_page(tmp_path: Path, result: Result, flair_like_volume: Volume) -> None:
    path = redraw(folder_with(tmp_path, result, flair_like_volume, result.threshold))
    assert path.read_text("utf-8") == render_report(result)


def test_another_threshold_gives_its_findings_with_their_names(
    tmp_path: Path, result: Result, flair_like_volume: Volume
) -> None:
    higher = result.findings[0].mean_score
    folder = folder_with(tmp_path, result, flair_like_volume, higher, finding1="left <frontal>")
    page = redraw(folder).read_text("utf-8")
    _, _, findings = segment(result.anomaly_map, higher, 0.05, result.brain)
    assert findings and findings[0].volume_ml < result.findings[0].volume_ml
    assert f"<dd>{sum(finding.volume_ml for finding in findings):.2f} <small>ml</small></dd>" in page
    assert f"threshold {higher:.2f}" in page and "chosen by the user after the run" in page
    assert page.count("left &lt;frontal&gt;") == 1 and "<td>1 · left" in page


def test_a_process_is_asked_and_answers_with_the_path_or_the_problem(
    tmp_path: Path, result: Result, flair_like_volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_with(tmp_path, result, flair_like_volume, 2.0)
    assert probe.main(["report", str(folder)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"ok": True, "path": str(folder / redrawing.PAGE), "problem": ""}
    (folder / redrawing.ANOMALY_MAP).unlink()
    assert probe.main(["report", str(folder)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"] and "heat.nrrd" in answer["problem"]


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


CHANGES = {
    "no threshold": drop("provenance", "threshold"),
    "threshold without score": drop("provenance", "threshold", "heat"),
    "threshold that is text": put("2", "provenance", "threshold", "heat"),
    "no options": drop("provenance", "options"),
    "no score": drop("provenance", "score", "value"),
    "a list for a score": put([], "provenance", "score"),
    "no version": drop("provenance", "versions", "diffusion_anomaly"),
    "no brain volume": drop("provenance", "brain", "volume_ml"),
    "model without name": put({"version": "1"}, "provenance", "model"),
    "half a range": put({"mean": 1.0}, "provenance", "score", "healthy_range"),
    "date of another form": put("yesterday", "provenance", "date_utc"),
    "warnings of text": put("none", "provenance", "warnings"),
    "finding that is no number": put({"first": "lesion"}, "names"),
    "finding of 5000 digits": put({"1" * 5000: "lesion"}, "names"),
    "name that is a number": put({"1": 2}, "names"),
    "threshold of a million": put(1e6, "threshold"),
    "threshold of 0": put(0, "threshold"),
    "negative volume": put(-1.0, "min_volume_ml"),
    "negative margin": put(-1.0, "provenance", "options", "peak_margin"),
    "margin that is text": put("1", "provenance", "options", "peak_margin"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_request_without_something_is_answered_with_the_problem(
    name: str, tmp_path: Path, result: Result, flair_like_volume: Volume
) -> None:
    folder = folder_with(tmp_path, result, flair_like_volume, 2.0)
    content = json.loads((folder / redrawing.REQUEST).read_text("utf-8"))
    CHANGES[name](content)
    (folder / redrawing.REQUEST).write_text(json.dumps(content), encoding="utf-8")
    answer = probe.report(folder)
    assert not answer["ok"] and "Error" not in answer["problem"] and len(answer["problem"]) < 500
    assert not (folder / redrawing.PAGE).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_a_folder_whose_name_is_no_text_gets_its_page(
    tmp_path: Path, result: Result, flair_like_volume: Volume
) -> None:
    plain, odd = tmp_path / "plain", tmp_path / os.fsdecode(b"caf\xe9")
    plain.mkdir()
    folder_with(plain, result, flair_like_volume, result.threshold).rename(odd)
    asked = [sys.executable, "-m", "diffusion_anomaly.worker.probe", "report", str(odd)]
    environment = {**os.environ, "PYTHONPATH": str(Path(probe.__file__).parents[2])}
    answer = subprocess.run(asked, env=environment, capture_output=True, check=True)
    assert json.loads(answer.stdout)["ok"]
    assert (odd / redrawing.PAGE).read_text("utf-8") == render_report(result)


def test_a_fault_of_the_program_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrawing, "redraw", lambda folder: {}["missing"])
    assert probe.report(tmp_path) == {"ok": False, "problem": "KeyError: 'missing' Please report it."}


@pytest.mark.parametrize("text", ["", "{", '{"title": "scan"}', "[" * 100_000, "[]", '"text"', '{"a": 1, "a": 2}'])
def test_a_damaged_request_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / redrawing.REQUEST).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"report\.json"):
        redraw(tmp_path)


@pytest.mark.parametrize("theirs", ["report.html", "provenance.json"])
def test_a_page_replaces_nothing_but_a_page(
    theirs: str, tmp_path: Path, result: Result, flair_like_volume: Volume
) -> None:
    folder = folder_with(tmp_path, result, flair_like_volume, result.threshold)
    redraw(redraw(folder).parent)
    (folder / theirs).write_text("{}")
    with pytest.raises(InputError):
        redraw(folder)
    assert (folder / theirs).read_text(encoding="utf-8") == "{}"


def test_a_reader_s_word_is_on_the_page_and_what_was_rejected_out_of_the_mask(
    tmp_path: Path, result: Result, flair_like_volume: Volume
) -> None:
    low = 0.7
    folder = folder_with(tmp_path, result, flair_like_volume, low)
    mask, labels, findings = segment(result.anomaly_map, low, 0.0, result.brain)
    assert len(findings) > 1
    request = Request(
        flair_like_volume.name,
        low,
        0.0,
        result.provenance,
        reviews={"1": "rejected", "2": "accepted"},
        comments={"2": "growing <b>"},
    )
    write_request(request, folder)
    sitk.WriteImage(sitk.Cast(labels == 1, sitk.sitkUInt8), str(folder / redrawing.REJECTED))
    page = redraw(folder).read_text("utf-8")
    total = sum(finding.volume_ml for finding in findings[1:])
    assert f"<dt>Findings</dt><dd>{len(findings) - 1}</dd>" in page and "; 1 rejected by the reader" in page
    assert f"<dd>{total:.2f} <small>ml</small></dd>" in page
    assert '<tr class="rejected"><td>1<' in page and "<td>accepted</td>" in page and "growing &lt;b&gt;" in page
    left = sitk.GetArrayFromImage(redrawing.without(mask, folder / redrawing.REJECTED, flair_like_volume.image))
    assert left.sum() == (sitk.GetArrayViewFromImage(labels) > 1).sum()


def test_a_review_that_is_none_and_voxels_of_another_grid_are_refused(
    tmp_path: Path, result: Result, flair_like_volume: Volume
) -> None:
    folder = folder_with(tmp_path, result, flair_like_volume, result.threshold)
    made = (flair_like_volume.name, result.threshold, 0.05, result.provenance)
    write_request(Request(*made, reviews={"1": "perhaps"}), folder)
    with pytest.raises(InputError, match=r"perhaps.*Known are accepted"):
        redraw(folder)
    write_request(Request(*made, comments={"first": "no number"}), folder)
    with pytest.raises(InputError, match="no number"):
        redraw(folder)
    write_request(Request(*made), folder)
    sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkUInt8), str(folder / redrawing.REJECTED))
    with pytest.raises(InputError, match="another grid"):
        redraw(folder)


@pytest.mark.parametrize("threshold", [None, 100.0], ids=["findings", "none"])
def test_the_report_is_printed_as_a_pdf(
    tmp_path: Path, result: Result, flair_like_volume: Volume, threshold: float | None
) -> None:
    folder = folder_with(tmp_path, result, flair_like_volume, threshold or result.threshold)
    name = "3: $\\frac{a$ <scan> Ünser 脳"
    about = (name, threshold or result.threshold, 0.05, result.provenance)
    write_request(Request(*about, reviews={"1": "accepted"}, comments={"1": "x_$ " * 60}, printed=True), folder)
    path = redraw(folder)
    assert path.name == "report.pdf"
    pages = [page.extract_text() for page in PdfReader(path).pages]
    assert len(pages) >= 2
    assert all("For research use only. Not for diagnosis." in page for page in pages)
    assert name[:20] in pages[0]
    assert not (folder / redrawing.PAGE).exists()
