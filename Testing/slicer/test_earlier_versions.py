"""Scenes of earlier versions open, and what a version saved keeps the names that it was saved under.

``data/version-0.1.0.mrb`` was made by version 0.1.0: a guided run with a model of toy size on a small phantom, whose
threshold was moved from 1.5 to 3.4 and whose first finding was named.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

from DiffusionAnomalyLib.process.environment import MODULE_FOLDER
from DiffusionAnomalyLib.scene import attributes, display, findingsTable, reporting, results, segmentation

SCENE = Path(__file__).with_name("data") / "version-0.1.0.mrb"

# What 0.1.0 writes into a scene, and what `.mrb` files therefore hold for good.
PARAMETERS = {
    "MethodParameters": {"name", "model", "steps", "noiseLevel", "guidanceScale"},
    "RunParameters": {"device", "seed", "sliceSpacing", "minVolumeMl", "keepHealed", "keepFiles"},
    "OutputParameters": {"labelMap", "segmentation", "brain", "opacity", "colorScale", "show3D"},
    "DiffusionAnomalyParameterNode": {
        "inputVolume",
        "brainMask",
        "brainSegment",
        "method",
        "run",
        "output",
        "result",
    },
}


@pytest.fixture
def nodes(scene: Any) -> results.ResultNodes:
    scene.SetURL(str(SCENE))
    assert scene.ReadFromMRB(str(SCENE))
    (nodes,) = results.resultsIn(scene)
    return nodes


def test_a_result_of_version_0_1_0_comes_back_whole(scene: Any, nodes: results.ResultNodes) -> None:
    assert len(nodes.all) == 7
    assert nodes.inputNode.GetName() == "patient FLAIR"
    assert (nodes.threshold, nodes.minVolumeMl) == (3.4, 0.2)
    made = attributes.document(nodes.anomalyMap)
    assert (made["method"], made["options"]["seed"], made["threshold"]["heat"]) == ("guided", 5, 1.5)
    assert any("field of view" in warning for warning in attributes.warnings(nodes.anomalyMap))
    assert nodes.table.GetTable().GetColumnByName("Name").GetValue(0) == "left frontal"
    assert "The report of the run" in nodes.report.GetText()
    scores = slicer.util.arrayFromVolume(nodes.anomalyMap)
    assert scores.max() == pytest.approx(4.2279, abs=1e-4)
    assert scores.sum() == pytest.approx(2432.989, rel=1e-5)
    assert slicer.util.arrayFromVolume(nodes.labelMap).sum() == 6
    assert slicer.util.arrayFromVolume(nodes.reconstruction).sum() == pytest.approx(251409.4, rel=1e-5)
    assert slicer.util.arrayFromVolume(nodes.brain).any()
    assert not reporting.isAsRun(nodes)
    shown = nodes.anomalyMap.GetDisplayNode()
    assert shown.GetColorNode().GetName() == display.EARLIER_COLORS
    display.showThreshold(nodes.anomalyMap, nodes.threshold)
    assert shown.GetColorNode() is display.mapColors(nodes.anomalyMap) and shown.GetLowerThreshold() == 3.4


def test_its_threshold_is_live_and_its_names_stay(nodes: results.ResultNodes) -> None:
    live = results.liveThresholdOf(nodes)
    found = results.applyThreshold(nodes, live, 4.0, 0.0)
    (finding,) = found.findings
    labels = slicer.util.arrayFromVolume(nodes.labelMap)
    exported = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT, nodes.inputNode)
    assert labels.sum() == 1 and np.array_equal(labels, exported)
    table = nodes.table.GetTable()
    assert table.GetColumnByName("Name").GetValue(0) == "left frontal"
    assert table.GetColumnByName(findingsTable.PEAK).GetValue(0) == pytest.approx(finding.peak_score)
    assert table.GetNumberOfColumns() == len(findingsTable.COLUMNS)


def test_another_result_beside_it_gets_names_of_its_own(scene: Any, nodes: results.ResultNodes) -> None:
    assert results._title(scene, "patient FLAIR", "guided") == "patient FLAIR guided 2"


def test_it_is_removed_with_everything_that_belongs_to_it(scene: Any, nodes: results.ResultNodes) -> None:
    results.removeResults(scene, nodes)
    left = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
    assert [node.GetName() for node in left if node.GetAttribute(attributes.ROLE)] == []
    assert scene.GetFirstNodeByName("patient FLAIR") is nodes.inputNode


def test_the_parameters_keep_the_names_that_scenes_hold() -> None:
    source = (MODULE_FOLDER / "DiffusionAnomalyLib" / "parameters.py").read_text("utf-8")
    found = {
        node.name: {line.target.id for line in node.body if isinstance(line, ast.AnnAssign)}  # type: ignore[union-attr]
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }
    assert {name: names & found[name] for name, names in PARAMETERS.items()} == PARAMETERS
