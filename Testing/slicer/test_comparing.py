"""A prior and a current exam side by side in the scene, compared by the real process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import jobs
import mrmlscene
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.results import redrawing
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.scene import comparing, display, patients, results, views
from DiffusionAnomalyLib.scene.results import Place, ResultNodes
from DiffusionAnomalyLib.scene.watching import SceneWatch

STAYS, GOES, COMES = np.s_[6:9, 20:25, 14:20], np.s_[6:8, 34:38, 28:32], np.s_[9:11, 24:30, 30:34]


def exam(scene: Any, folder: Path, name: str, *marked: Any) -> ResultNodes:
    """A result with these findings on the phantom."""
    image = sitk.AdditiveGaussianNoise(jobs.scan(), 2.0, 0.0, int(name))  # no two visits give the same voxels
    scan = mrmlscene.addScan(scene, image, folder, name)
    scores = np.zeros(jobs.scan().GetSize()[::-1], np.float32)
    for place in marked:
        scores[place] = 3.5
    files = mrmlscene.writeResults(folder / name, scores, jobs.scan(), threshold=3.0)
    nodes = results.loadResults(scene, Place.of(scan), files)
    nodes.brain = mrmlscene.addLabels(scene, jobs.brain(), scan, f"{name} brain")
    document = {
        "purpose": "For research use only. Not for diagnosis.",
        "date_utc": "2026-01-02T03:04:05+00:00",
        "method": "guided",
        "model": {"name": "tiny", "version": "0.1.0"},
        "input": {"title": name, "path": name},
        "options": {"min_volume_ml": 0.05},
        "threshold": {"heat": 3.0},
        "brain": {"volume_ml": 1.0},
        "score": {"value": 1.0, "title": "a score"},
        "versions": {"diffusion_anomaly": "0.1.0"},
        "warnings": [],
    }
    nodes.anomalyMap.SetAttribute(comparing.attributes.DOCUMENT, json.dumps(document))
    return nodes


@pytest.fixture
def both(scene: Any, tmp_path: Path) -> tuple[ResultNodes, ResultNodes]:
    return exam(scene, tmp_path, "2024", STAYS, GOES), exam(scene, tmp_path, "2025", STAYS, COMES)


def compared(
    both: tuple[ResultNodes, ResultNodes], folder: Path, *, samePatient: bool = False
) -> comparing.ComparisonNodes:
    work = folder / "work"
    task = comparing.Comparing(*both, work, PipeProcess(), samePatient=samePatient)
    jobs.wait(lambda: task.isOver, task.tick)
    assert task.problem == "" and task.nodes is not None, task.problem
    assert not list(work.iterdir())
    return task.nodes


def test_what_has_changed_comes_into_the_scene_and_is_shown_side_by_side(
    scene: Any, both: tuple[ResultNodes, ResultNodes], tmp_path: Path
) -> None:
    _prior, current = both
    matrix = np.eye(4)
    matrix[:3, 3] = 10.0, -20.0, 30.0
    current.inputNode.SetAndObserveTransformNodeID(mrmlscene.addTransform(scene, matrix).GetID())
    results.keepTogether(current)
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(3)
    composites = {}
    for name in (views.SCAN_VIEW, views.MAP_VIEW):
        for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
            node = slicer.vtkMRMLSliceNode() if kind == "vtkMRMLSliceNode" else slicer.vtkMRMLSliceCompositeNode()
            node.SetLayoutName(name)
            composites[name] = scene.AddNode(node)
    red, beside = composites[views.SCAN_VIEW], composites[views.MAP_VIEW]
    display.showInSlices(scene, current.inputNode, current.anomalyMap)
    before = mrmlscene.nodeIds(scene)

    nodes = compared(both, tmp_path)
    table = nodes.table.GetTable()
    kinds = [table.GetColumnByName("Change").GetValue(row) for row in range(nodes.table.GetNumberOfRows())]
    assert sorted(kinds) == ["gone", "new", "unchanged"]
    at = [np.array([table.GetColumnByName(axis).GetValue(row) for axis in "RAS"]) for row in range(3)]
    middle = [(part.start + part.stop - 1) / 2 for part in COMES][::-1]
    assert np.allclose(at[kinds.index("new")], mrmlscene.world(current.inputNode, middle), atol=2.0)
    assert "2024" in nodes.page.GetText() and nodes.scan.GetName() == "2024 (prior, registered)"
    assert (
        np.corrcoef(slicer.util.arrayFromVolume(nodes.scan).ravel(), sitk.GetArrayFromImage(jobs.scan()).ravel())[0, 1]
        > 0.95
    )
    (again,) = comparing.comparisonsIn(scene)
    assert again.all == nodes.all and again.current.anomalyMap is current.anomalyMap

    comparing.show(scene, nodes)
    assert layout.GetViewArrangement() == views.SIDE_BY_SIDE
    assert (red.GetBackgroundVolumeID(), red.GetForegroundVolumeID()) == (nodes.scan.GetID(), nodes.anomalyMap.GetID())
    assert beside.GetBackgroundVolumeID() == current.inputNode.GetID()
    assert beside.GetForegroundVolumeID() == current.anomalyMap.GetID() and red.GetLinkedControl()
    comparing.jumpTo(scene, nodes, kinds.index("new"))
    slices = views.nodesOf(scene, "vtkMRMLSliceNode")
    assert slices[0].GetSliceOffset() == pytest.approx(at[kinds.index("new")][2], abs=1e-3)

    comparing.remove(scene, nodes)
    assert mrmlscene.nodeIds(scene) == before and layout.GetViewArrangement() == 3
    assert red.GetForegroundVolumeID() == current.anomalyMap.GetID()
    assert red.GetBackgroundVolumeID() == current.inputNode.GetID()


def test_a_comparison_survives_that_the_scene_is_saved(
    scene: Any, both: tuple[ResultNodes, ResultNodes], tmp_path: Path
) -> None:
    before = compared(both, tmp_path).statistics
    saved = tmp_path / "saved.mrb"
    assert scene.WriteToMRB(str(saved))
    scene.Clear(0)
    scene.SetURL(str(saved))
    assert scene.ReadFromMRB(str(saved))
    (again,) = comparing.comparisonsIn(scene)
    assert again.statistics == before and len(again.all) == 4 and again.table.GetNumberOfRows() == 3


def test_a_prior_map_that_is_deleted_leaves_no_other_volume_in_its_view(
    scene: Any, both: tuple[ResultNodes, ResultNodes], tmp_path: Path
) -> None:
    watch = SceneWatch(scene)
    red = slicer.vtkMRMLSliceCompositeNode()
    red.SetLayoutName(views.SCAN_VIEW)
    red = scene.AddNode(red)
    nodes = compared(both, tmp_path)
    red.SetBackgroundVolumeID(nodes.scan.GetID())
    red.SetForegroundVolumeID(nodes.anomalyMap.GetID())
    scene.RemoveNode(nodes.anomalyMap)
    scene.RemoveNode(nodes.scan)
    watch.close()
    assert red.GetForegroundVolumeID() is None
    assert red.GetBackgroundVolumeID() == nodes.current.inputNode.GetID()


def test_what_cannot_be_compared_is_refused(scene: Any, both: tuple[ResultNodes, ResultNodes], tmp_path: Path) -> None:
    prior, current = both
    with pytest.raises(InputError, match=r"Both results are of 2024"):
        comparing.Comparing(prior, prior, tmp_path / "work", PipeProcess())
    before = mrmlscene.nodeIds(scene)
    with pytest.raises(InputError, match=r"prior_scan\.nii\.gz of the comparison cannot be read"):
        comparing.load(prior, current, {}, {})
    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkFloat32), str(tmp_path / "other.nii.gz"))
    with pytest.raises(InputError, match=r"does not lie on the grid of 2025"):
        comparing.load(prior, current, {"prior_scan.nii.gz": tmp_path / "other.nii.gz"}, {})
    prior.brain = None
    with pytest.raises(InputError, match=r"without the brain mask"):
        comparing.Comparing(prior, current, tmp_path / "work", PipeProcess())
    assert mrmlscene.nodeIds(scene) == before and not list((tmp_path / "work").iterdir())


def belongsTo(scene: Any, node: Any, patient: str, born: str = "") -> None:
    """Put a volume where Slicer puts one from its DICOM database."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    item = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), f"the patient of {node.GetName()}")
    if patient:
        hierarchy.SetItemAttribute(item, constants.GetDICOMPatientIDAttributeName(), patient)
    if born:
        hierarchy.SetItemAttribute(item, constants.GetDICOMPatientBirthDateAttributeName(), born)
    study = hierarchy.CreateStudyItem(item, "study")
    hierarchy.CreateItem(study, node)


@pytest.mark.parametrize(
    ("prior", "current", "what"),
    [
        (("A1", "19700101"), ("B2", "19700101"), "patient ID"),
        (("A1", "19700101"), ("A1", "19700102"), "date of birth"),
        (("A1", "19700101"), ("B2", "19700102"), "patient ID and date of birth"),
        (("a1 ", ""), ("A1", "19700101"), ""),
        (("", ""), ("B2", "19700101"), ""),
    ],
)
def test_two_patients_are_told_by_what_dicom_says_of_both(
    scene: Any, tmp_path: Path, prior: tuple[str, str], current: tuple[str, str], what: str
) -> None:
    scans = [mrmlscene.addScan(scene, jobs.scan(), tmp_path, name) for name in ("2024", "2025")]
    assert patients.identityOf(scans[0]) == {} and patients.doubt(*scans) == ""
    for scan, about in zip(scans, (prior, current), strict=True):
        belongsTo(scene, scan, *about)
    assert patients.doubt(*scans) == (f"2024 and 2025 are of two patients by their {what}." if what else "")


def test_digests_tell_patients_of_one_comparison_apart_and_no_others(
    scene: Any, both: tuple[ResultNodes, ResultNodes], tmp_path: Path
) -> None:
    for nodes in both:
        belongsTo(scene, nodes.inputNode, "A1", "19700101")
    told = []
    for number in range(2):
        work = tmp_path / f"work {number}"
        task = comparing.Comparing(*both, work, PipeProcess())
        prior, current = (
            json.loads(next(work.rglob(f"{part}/{redrawing.REQUEST}")).read_text("utf-8"))["identity"]
            for part in ("prior", "current")
        )
        task.close()
        assert prior == current and prior.keys() == {patients.PATIENT_ID, patients.BIRTH_DATE}
        told.append(prior)
    plainly = {hashlib.sha256(value.encode()).hexdigest() for value in ("A1", "19700101")}
    assert len({*told[0].values(), *told[1].values(), *plainly}) == 6


def test_exams_of_two_patients_are_compared_only_where_the_user_insists_and_the_doubt_stays(
    scene: Any, both: tuple[ResultNodes, ResultNodes], tmp_path: Path
) -> None:
    for nodes, patient in zip(both, ("A1", "B2"), strict=True):
        belongsTo(scene, nodes.inputNode, patient)
    before = mrmlscene.nodeIds(scene)
    with pytest.raises(InputError, match=r"2024 and 2025 are of two patients by their patient ID"):
        comparing.Comparing(*both, tmp_path / "work", PipeProcess())
    assert mrmlscene.nodeIds(scene) == before and not (tmp_path / "work").exists()
    made = compared(both, tmp_path, samePatient=True)
    doubt = "The two scans are of two patients by their PatientID."
    assert doubt in made.statistics["warnings"] and doubt in made.page.GetText()
    assert not any(patient in json.dumps(made.statistics) for patient in ("A1", "B2"))
