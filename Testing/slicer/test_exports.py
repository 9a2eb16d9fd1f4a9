"""What is written of a result for other programs, with what a reader has said of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import dicoms
import jobs
import mrmlscene
import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import read_volume
from DiffusionAnomalyLib.detection import Detection, Request
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.scene import attributes, exportall, exporting, findingsTable, results, review
from DiffusionAnomalyLib.scene.exportall import ExportAll
from DiffusionAnomalyLib.scene.reporting import ReportDrawing, isAsRun
from DiffusionAnomalyLib.scene.results import Place, ResultNodes
from DiffusionAnomalyLib.settings import MemorySettings

FIRST, SECOND = np.s_[2:5, 4:9, 5:12], np.s_[9:11, 15:20, 12:16]


@pytest.fixture
def nodes(scene: Any, tmp_path: Path) -> ResultNodes:
    scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "patient")
    scores = np.zeros(jobs.scan().GetSize()[::-1], np.float32)
    scores[FIRST], scores[SECOND] = 3.5, 3.1
    files = mrmlscene.writeResults(tmp_path / "results", scores, jobs.scan(), threshold=3.0, peakMargin=0.05)
    nodes = results.loadResults(scene, Place.of(scan), files)
    live = results.liveThresholdOf(nodes)
    found = results.findingsOf(nodes, live)
    found = results.applyReview(nodes, live, found, 0, state=review.REJECTED, comment='=motion, "ä"')
    findingsTable.setName(nodes.table, nodes.anomalyMap, live, found, 1, "left parietal")
    return nodes


@pytest.mark.parametrize("moved", [False, True], ids=["alone", "under a transform"])
def test_findings_are_written_with_what_was_said_of_them(
    scene: Any, nodes: ResultNodes, tmp_path: Path, moved: bool
) -> None:
    if moved:
        matrix = np.eye(4)
        matrix[:3, 3] = 10.0, -20.0, 30.0
        nodes.inputNode.SetAndObserveTransformNodeID(mrmlscene.addTransform(scene, matrix).GetID())
        results.keepTogether(nodes)
    exporting.saveFindings(nodes, tmp_path / "a.csv")
    exporting.saveFindings(nodes, tmp_path / "a.json")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text("utf-8").splitlines()))
    document = json.loads((tmp_path / "a.json").read_text("utf-8"))
    for said in (rows, document["findings"]):
        assert [one["review"] for one in said] == ["rejected", "undecided"]
    assert rows[0]["comment"] == "'=motion, ''ä''" and document["findings"][0]["comment"] == "=motion, ''ä''"
    assert rows[1]["name"] == "left parietal" and document["threshold"] == 3.0
    assert document["peak_margin"] == 0.05
    assert nodes.table.GetAttribute(f"{attributes.PREFIX}PeakMargin") == "0.05"
    assert document["warnings"] and document["purpose"].startswith("For research use only")
    for row, finding in zip(rows, results.findingsOf(nodes, results.liveThresholdOf(nodes)).findings, strict=True):
        assert float(row["volume_ml"]) == pytest.approx(finding.volume_ml, rel=1e-5)
        own = [float(row[f"centroid_{axis}_mm"]) for axis in "ras"]
        world = [float(row[f"scene_centroid_{axis}_mm"]) for axis in "ras"]
        assert np.allclose(np.subtract(world, own), (10.0, -20.0, 30.0) if moved else 0.0, atol=1e-3)


def test_without_findings_the_table_has_its_heading(nodes: ResultNodes, tmp_path: Path) -> None:
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 3.9, 0.05)
    exporting.saveFindings(nodes, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text("utf-8").startswith("id,name,review,comment")
    exporting.saveFindings(nodes, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["findings"] == []


def test_damaged_reviews_and_names_are_told_where_the_findings_are_written(nodes: ResultNodes, tmp_path: Path) -> None:
    nodes.table.SetAttribute(review.REVIEWS, "[7]")
    nodes.table.SetAttribute(findingsTable.NAMES, "[7, 8]")
    exporting.saveFindings(nodes, tmp_path / "a.json")
    told = json.loads((tmp_path / "a.json").read_text("utf-8"))["warnings"][-2:]
    assert told == findingsTable.problemsWith(nodes.table)
    assert [one[:16] for one in told] == ["1 saved review o", "2 saved names of"]


@pytest.mark.parametrize("damaged", [-1.0, "1", None])
def test_a_damaged_peak_margin_is_told_where_the_findings_are_written(
    nodes: ResultNodes, tmp_path: Path, damaged: object
) -> None:
    assert attributes.peakMargin(nodes.anomalyMap) == 0.05 and attributes.problemWithPeakMargin(nodes.anomalyMap) == ""
    made = attributes.document(nodes.anomalyMap)
    made["options"]["peak_margin"] = damaged
    nodes.anomalyMap.SetAttribute(attributes.DOCUMENT, json.dumps(made))
    exporting.saveFindings(nodes, tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert document["peak_margin"] == 0.0 and document["provenance"]["options"]["peak_margin"] == damaged
    assert attributes.problemWithPeakMargin(nodes.anomalyMap) in document["warnings"]
    assert results.liveThresholdOf(nodes).peakMargin == 0.0


def test_a_table_of_another_kind_is_refused(nodes: ResultNodes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither CSV nor JSON"):
        exporting.saveFindings(nodes, tmp_path / "a.xlsx")
    assert not (tmp_path / "a.xlsx").exists()


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_the_mask_that_is_written_lacks_what_was_rejected(nodes: ResultNodes, tmp_path: Path, suffix: str) -> None:
    for left in ("segmentation", "labelMap", "neither"):
        path = tmp_path / f"{left}{suffix}"
        exporting.saveSegmentation(nodes, path)
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert mask[SECOND].all() and mask.sum() == mask[SECOND].size
        if left != "neither":
            setattr(nodes, left, None)


# ---- with the real worker ---------------------------------------------------------------------------------------


@pytest.fixture
def made(scene: Any, tmp_path: Path) -> tuple[ResultNodes, dict[str, str]]:
    """A result on a scan that came from DICOM, and the files of its instances as Slicer's database knows them."""
    image = jobs.scan()
    pixels = sitk.GetArrayFromImage(image)
    pixels = np.clip(pixels / pixels.max() * 1000, 0, 4000).astype(np.uint16)
    series = dicoms.write(tmp_path / "series", dicoms.classic(pixels, StudyID="S7"))
    volume = read_volume(series)
    scan = mrmlscene.addScan(scene, volume.image, tmp_path, "FLAIR")
    from pydicom import dcmread

    files = {str(dcmread(path).SOPInstanceUID): str(path) for path in sorted(series.iterdir())}
    scan.SetAttribute(exporting.INSTANCES, " ".join(files))
    brain = mrmlscene.addLabels(scene, phantom.on_grid(sitk.GetArrayFromImage(jobs.brain()), volume.image), scan, "b")
    detection = Detection(scene, tmp_path, PipeProcess, MemorySettings(), list(jobs.WORKER), jobs.environment())
    request = Request("intensity", device="cpu", threshold=1.0, force=True)
    return detection.wait(detection.add(scan, request, brain)), files


def test_everything_goes_into_one_folder(made: tuple[ResultNodes, dict[str, str]], tmp_path: Path) -> None:
    nodes, files = made
    live = results.liveThresholdOf(nodes)
    found = results.findingsOf(nodes, live)
    assert len(found.findings) >= 1 and isAsRun(nodes)
    results.applyReview(nodes, live, found, 0, state=review.ACCEPTED, comment="seen <b> by two")
    assert not isAsRun(nodes)
    folder = tmp_path / "all ä"
    folder.mkdir()
    ended: list[str] = []
    export = ExportAll(
        nodes, exportall.files(folder, "FLAIR"), tmp_path / "work", PipeProcess, files.get, lambda: ended.append("now")
    )
    jobs.wait(lambda: export.isOver, export.tick)
    assert ended == ["now"] and export.failed == {}
    assert {path.relative_to(folder).as_posix() for path in export.written} == {
        "FLAIR-mask.nrrd",
        "FLAIR-mask.nii.gz",
        "FLAIR-anomaly-map.nrrd",
        "FLAIR-findings.csv",
        "FLAIR-findings.json",
        "FLAIR-report.html",
        "FLAIR-report.pdf",
        "FLAIR-dicom/segmentation.dcm",
        "FLAIR-dicom/anomaly_map.dcm",
        "FLAIR-dicom/findings.dcm",
    }
    assert all(path.stat().st_size for path in export.written)
    page = (folder / "FLAIR-report.html").read_text("utf-8")
    assert "seen &lt;b&gt; by two" in page and "<td>accepted</td>" in page
    assert (folder / "FLAIR-report.pdf").read_bytes().startswith(b"%PDF")
    assert not list((tmp_path / "work").iterdir())


def test_what_cannot_be_written_is_said_and_the_rest_is_there(scene: Any, nodes: ResultNodes, tmp_path: Path) -> None:
    export = ExportAll(nodes, exportall.files(tmp_path, "x"), tmp_path / "work", PipeProcess)
    jobs.wait(lambda: export.isOver, export.tick)
    assert len(export.written) == 5
    assert export.failed.keys() == {"report", "report (PDF)", "DICOM"}
    assert "brain mask" in export.failed["report"] and "no DICOM database" in export.failed["DICOM"]


def test_why_there_can_be_no_dicom_is_said(
    scene: Any, nodes: ResultNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "a.dcm"
    there.write_bytes(b"x")
    assert "no DICOM database" in exporting.problemWithDicom(nodes, None)
    assert "was not loaded from DICOM" in exporting.problemWithDicom(nodes, {}.get)
    nodes.inputNode.SetAttribute(exporting.INSTANCES, "1.2 1.3")
    assert "are gone" in exporting.problemWithDicom(nodes, {"1.2": str(there)}.get)
    known = {"1.2": str(there), "1.3": str(there)}.get
    assert "brain mask" in exporting.problemWithDicom(nodes, known)
    with monkeypatch.context() as patch:
        patch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
        assert "highdicom is not installed" in exporting.problemWithDicom(nodes, known)
    nodes.brain = nodes.labelMap
    assert exporting.problemWithDicom(nodes, known) == ""


def test_a_report_is_a_pdf_when_its_name_says_so(made: tuple[ResultNodes, dict[str, str]], tmp_path: Path) -> None:
    nodes, _files = made
    drawing = ReportDrawing(nodes, tmp_path / "Ä.PDF", tmp_path / "work", PipeProcess())
    jobs.wait(lambda: drawing.isOver, drawing.tick)
    assert drawing.problem == "" and (tmp_path / "Ä.PDF").read_bytes().startswith(b"%PDF")
