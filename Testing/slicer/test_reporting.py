"""The report of a result as it is now: drawn again by a real process once threshold or names have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import jobs
import mrmlscene
from diffusion_anomaly.errors import InputError
from DiffusionAnomalyLib.detection import Detection, Request
from DiffusionAnomalyLib.process.environment import Question
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.process.workspace import PREFIX
from DiffusionAnomalyLib.scene import attributes, findingsTable, results, review
from DiffusionAnomalyLib.scene.reporting import Asked, ReportDrawing, isAsRun
from DiffusionAnomalyLib.scene.results import ResultNodes
from DiffusionAnomalyLib.settings import MemorySettings


@pytest.fixture
def nodes(scene: Any, tmp_path: Path) -> ResultNodes:
    scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "Ünser FLAIR")
    detection = Detection(scene, tmp_path, PipeProcess, MemorySettings(), list(jobs.WORKER), jobs.environment())
    brain = mrmlscene.addLabels(scene, jobs.brain(), scan, "brain")
    return detection.wait(detection.add(scan, Request("intensity", device="cpu"), brain))


def drawn(nodes: ResultNodes, path: Path) -> ReportDrawing:
    drawing = ReportDrawing(nodes, path, path.parent, PipeProcess())
    jobs.wait(lambda: drawing.isOver, drawing.tick)
    assert not list(path.parent.glob(f"{PREFIX}*"))
    return drawing


def test_an_untouched_result_keeps_the_page_of_the_run(nodes: ResultNodes, tmp_path: Path) -> None:
    assert isAsRun(nodes)
    assert drawn(nodes, tmp_path / "a.html").problem == ""
    assert (tmp_path / "a.html").read_text("utf-8") == nodes.report.GetText()


def test_the_page_follows_threshold_and_names(nodes: ResultNodes, tmp_path: Path) -> None:
    live = results.liveThresholdOf(nodes)
    found = results.applyThreshold(nodes, live, live.peak * 0.97, 0.0)
    findingsTable.setName(nodes.table, nodes.anomalyMap, live, found, 0, "left <frontal>")
    assert not isAsRun(nodes)
    assert drawn(nodes, tmp_path / "b ä.html").problem == ""
    page = (tmp_path / "b ä.html").read_text("utf-8")
    assert "<h1>Ünser FLAIR</h1>" in page and "chosen by the user after the run" in page
    assert f"<dt>Findings</dt><dd>{len(found.findings)}</dd>" in page
    assert "1 · left &lt;frontal&gt;" in page


def test_the_brain_is_what_the_run_was_confined_to_and_lies_on_the_scan(nodes: ResultNodes) -> None:
    brain = slicer.util.arrayFromVolume(nodes.brain)
    assert (brain == slicer.util.arrayFromVolume(slicer.util.getNode("brain"))).all()
    assert mrmlscene.world(nodes.brain, (1, 2, 3)) == pytest.approx(mrmlscene.world(nodes.inputNode, (1, 2, 3)))


def test_without_the_brain_mask_only_the_page_of_the_run_can_be_written(
    scene: Any, nodes: ResultNodes, tmp_path: Path
) -> None:
    scene.RemoveNode(nodes.brain)
    (nodes,) = results.resultsIn(scene)
    assert drawn(nodes, tmp_path / "c.html").problem == ""
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 5.0, 0.0)
    with pytest.raises(InputError, match=r"without the brain mask.*Keep the brain mask"):
        ReportDrawing(nodes, tmp_path / "d.html", tmp_path, PipeProcess())
    assert {path.name for path in tmp_path.glob("*.html")} == {"c.html"}


def test_without_the_brain_mask_the_advice_is_one_that_helps(scene: Any, nodes: ResultNodes, tmp_path: Path) -> None:
    def advice(name: str) -> str:
        with pytest.raises(InputError, match="without the brain mask") as caught:
            ReportDrawing(nodes, tmp_path / name, tmp_path, PipeProcess())
        return caught.value.hint

    scene.RemoveNode(nodes.brain)
    (nodes,) = results.resultsIn(scene)
    asRun, live = nodes.threshold, results.liveThresholdOf(nodes)
    assert advice("report.pdf").endswith("or save the report as a page.")
    results.applyThreshold(nodes, live, 5.0, 0.0)
    for name in ("report.html", "report.pdf"):
        assert "as a page at threshold and smallest finding of the run" in advice(name)
    nodes.table.SetAttribute(review.REVIEWS, '[{"state": "rejected"}]')
    made = attributes.document(nodes.anomalyMap)
    for threshold in (5.0, asRun):  # the threshold changes nothing any more
        results.applyThreshold(nodes, live, threshold, made["options"]["min_volume_ml"])
        told = advice("report.html")
        assert told.startswith("Run it again with Keep the brain mask. The page of the run cannot be saved instead")
        assert "1 saved review of" in told and review.REVIEWS in told
    nodes.table.RemoveAttribute(review.REVIEWS)
    assert drawn(nodes, tmp_path / "report.html").problem == ""
    findingsTable.setName(nodes.table, nodes.anomalyMap, live, results.findingsOf(nodes, live), 0, "a name")
    assert advice("report.html") == "Run it again with Keep the brain mask."


def test_a_drawing_that_fails_says_why_and_leaves_no_file(
    nodes: ResultNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 5.0, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("DiffusionAnomalyLib.process.environment.pythonProgram", lambda: "/bin/false")
        assert "Are all Python packages installed?" in drawn(nodes, tmp_path / "e.html").problem
        patch.setattr("DiffusionAnomalyLib.process.environment.pythonProgram", lambda: str(tmp_path / "nothing"))
        assert "Are all Python packages installed?" in drawn(nodes, tmp_path / "e.html").problem
    missing = tmp_path / "missing" / "folder"
    drawing = ReportDrawing(nodes, missing / "f.html", tmp_path, PipeProcess())
    jobs.wait(lambda: drawing.isOver, drawing.tick)
    assert str(missing) in drawing.problem
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob(f"{PREFIX}*"))


def test_a_question_that_is_given_up_gets_no_answer() -> None:
    answers: list[dict[str, Any]] = []
    question = Question(PipeProcess(), ["machine"], answers.append)
    question.close()
    question.tick()
    assert answers == []


def test_what_a_process_is_asked_says_what_it_does_with_the_answer(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="abstract"):
        Asked("report", lambda workspace: None, tmp_path, PipeProcess(), lambda problem: None)  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("attribute", "text", "said"),
    [
        (review.REVIEWS, '[{"state": "rejected"}]', "1 saved review of"),
        (review.REVIEWS, '[{"state": "rejected"}, 7]', "2 saved reviews of"),
        (findingsTable.NAMES, '[[[1, 2], "two"]]', "1 saved name of"),
        (findingsTable.NAMES, "[[[1, 2], 3], 4]", "2 saved names of"),
    ],
)
def test_what_was_said_and_is_damaged_is_told_in_the_report(
    nodes: ResultNodes, tmp_path: Path, attribute: str, text: str, said: str
) -> None:
    nodes.table.SetAttribute(attribute, text)
    assert not isAsRun(nodes)
    assert drawn(nodes, tmp_path / "report.html").problem == ""
    page = (tmp_path / "report.html").read_text("utf-8")
    assert said in page and said not in nodes.report.GetText()
