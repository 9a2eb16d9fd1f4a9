"""A report at another threshold than that of the run, with names: what Slicer asks a process of its own for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import SimpleITK as sitk

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


@pytest.mark.parametrize("text", ["", "{", '{"title": "scan"}'])
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
    assert (folder / theirs).read_text() == "{}"
