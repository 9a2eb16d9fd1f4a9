"""Which scans of a patient or a folder are offered, and which of them are suggested for a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

from DiffusionAnomalyLib.scene import attributes
from DiffusionAnomalyLib.scene.folders import Candidate, scansUnder


@pytest.fixture
def hierarchy(scene: Any) -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def scan(scene: Any, name: str, parent: int, hierarchy: Any, slices: int = 4, kind: str = "Scalar") -> Any:
    node = scene.AddNewNodeByClass(f"vtkMRML{kind}VolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.zeros((slices, 5, 6), np.uint8))
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(parent, node), parent)
    return node


def named(candidates: list[Candidate]) -> dict[str, Candidate]:
    return {candidate.node.GetName(): candidate for candidate in candidates}


def test_the_finest_series_of_the_models_contrast_is_suggested_in_each_study(scene: Any, hierarchy: Any) -> None:
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    first, second = (hierarchy.CreateStudyItem(patient, name) for name in ("2024", "2026"))
    other = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "elsewhere")
    for name, study, slices in (
        ("AX FLAIR thick", first, 4),
        ("SAG FLAIR 3D", first, 40),
        ("AX T1", first, 80),
        ("FLAIR", second, 3),
        ("FLAIR of another", other, 9),
        ("localiser", second, 90),
    ):
        scan(scene, name, study, hierarchy, slices)
    scan(scene, "outline", first, hierarchy, kind="LabelMap")
    scan(scene, "FLAIR anomaly map", first, hierarchy, 50).SetAttribute(attributes.ROLE, "heat")
    found = scansUnder(scene, patient, "FLAIR")
    assert [one.node.GetName() for one in found] == ["AX FLAIR thick", "SAG FLAIR 3D", "AX T1", "FLAIR", "localiser"]
    assert [one.node.GetName() for one in found if one.suggested] == ["SAG FLAIR 3D", "FLAIR"]
    assert named(found)["AX T1"].contrast == "T1" and named(found)["localiser"].contrast == ""
    assert [one.node.GetName() for one in scansUnder(scene, second, "T1") if one.suggested] == []
    assert len(scansUnder(scene, hierarchy.GetSceneItemID(), "FLAIR")) == 6
    single = hierarchy.GetItemByDataNode(named(found)["FLAIR"].node)
    assert [one.suggested for one in scansUnder(scene, single, "FLAIR")] == [True]


def test_a_scan_that_cannot_be_analysed_says_why_and_is_not_suggested(scene: Any, hierarchy: Any) -> None:
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "folder")
    skewed = scan(scene, "FLAIR skewed", folder, hierarchy, 90)
    matrix = np.eye(4)
    matrix[0, 1] = 0.5
    skewed.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    scan(scene, "FLAIR", folder, hierarchy)
    found = named(scansUnder(scene, folder, "FLAIR"))
    assert "right angles" in found["FLAIR skewed"].problem and not found["FLAIR skewed"].suggested
    assert found["FLAIR"].problem == "" and found["FLAIR"].suggested


def test_the_channels_of_a_model_of_several_contrasts_come_from_the_scans_own_study(scene: Any, hierarchy: Any) -> None:
    whole, part, double = (hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name) for name in "abc")
    for folder, names in ((whole, "FLAIR T1 T1c"), (part, "FLAIR T1"), (double, "FLAIR T1 T1c post_T1c")):
        for name in names.split():
            scan(scene, name, folder, hierarchy)
    (flair, *rest) = scansUnder(scene, whole, "FLAIR", ["T1", "T1C"])
    assert flair.suggested and {name: node.GetName() for name, node in flair.channels.items()} == {
        "T1": "T1",
        "T1C": "T1c",
    }
    assert [one.suggested or bool(one.channels) for one in rest] == [False, False]
    for folder, words in ((part, "0 volumes of the contrast T1C"), (double, "2 volumes of the contrast T1C")):
        flair = scansUnder(scene, folder, "FLAIR", ["T1", "T1C"])[0]
        assert words in flair.problem and not flair.suggested
