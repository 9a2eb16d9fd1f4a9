"""What helps to read a result: the selected finding marked, the brain around it, a segment each, scores in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import mrmlscene
import phantom
from DiffusionAnomalyLib.scene import findingsTable, results, segmentation, selection, volumes, wording
from DiffusionAnomalyLib.scene.results import Place, ResultNodes

GRIDS = {
    "axial": phantom.grid((20, 24, 14), (3.0, 2.5, 6.0)),
    "oblique": phantom.grid((20, 24, 14), (3.0, 2.5, 6.0), phantom.rotation([12.0, -23.0, 37.0])),
    "left-handed": phantom.grid((20, 24, 14), (3.0, 2.5, 6.0), np.diag([1.0, 1.0, -1.0])),
}
FIRST, SECOND = np.s_[2:5, 4:9, 5:12], np.s_[9:11, 15:20, 12:16]  # k j i


def result(scene: Any, folder: Path, grid: Any) -> ResultNodes:
    scan = mrmlscene.addScan(scene, phantom.paint(grid), folder)
    scores = np.zeros(grid.GetSize()[::-1], np.float32)
    scores[FIRST], scores[SECOND] = 3.5, 3.1
    files = mrmlscene.writeResults(folder / "results", scores, volumes.imageOf(scan), threshold=3.0)
    nodes = results.loadResults(scene, Place.of(scan), files)
    nodes.brain = mrmlscene.addLabels(scene, phantom.brain_of(grid), scan, "brain")
    return nodes


@pytest.fixture
def nodes(scene: Any, tmp_path: Path) -> ResultNodes:
    return result(scene, tmp_path, GRIDS["axial"])


def found(nodes: ResultNodes) -> Any:
    return results.findingsOf(nodes, results.liveThresholdOf(nodes))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("moved", [False, True], ids=["alone", "under a transform"])
def test_the_selected_finding_has_a_box_around_it(scene: Any, tmp_path: Path, grid: Any, moved: bool) -> None:
    nodes = result(scene, tmp_path, grid)
    if moved:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = phantom.rotation([5.0, 6.0, 70.0]), (10.0, -20.0, 30.0)
        nodes.inputNode.SetAndObserveTransformNodeID(mrmlscene.addTransform(scene, matrix).GetID())
        results.keepTogether(nodes)
    box = selection.mark(scene, nodes, found(nodes).findings[0])
    assert box.GetTransformNodeID() == nodes.inputNode.GetTransformNodeID()
    assert box.GetPolyData().GetNumberOfCells() == 6
    corners = slicer.util.arrayFromModelPoints(box)
    toIndex = np.linalg.inv(volumes.ijkToRas(nodes.anomalyMap))
    indices = (np.c_[corners, np.ones(len(corners))] @ toIndex.T)[:, :3]
    low, high = indices.min(axis=0), indices.max(axis=0)
    for part, isIn in ((FIRST, True), (SECOND, False)):
        first = np.array([one.start for one in part][::-1])
        last = np.array([one.stop - 1 for one in part][::-1])
        inside = (low < first - 0.5).all() and (high > last + 0.5).all()
        assert inside == isIn
    assert np.allclose(high - low, [one.stop - one.start + 3 for one in FIRST][::-1], atol=1e-4)


def test_there_is_one_box_that_is_not_saved_and_goes_with_its_result(scene: Any, nodes: ResultNodes) -> None:
    before = mrmlscene.nodeIds(scene)
    findings = found(nodes).findings
    box = selection.mark(scene, nodes, findings[0])
    centre = np.array(box.GetPolyData().GetCenter())
    assert selection.mark(scene, nodes, findings[1]) is box
    assert np.linalg.norm(np.array(box.GetPolyData().GetCenter()) - centre) > 10
    assert not box.GetSaveWithScene() and not box.GetSelectable() and box.GetHideFromEditors()
    selection.show(scene, False)
    assert not box.GetDisplayNode().GetVisibility()
    selection.unmark(scene, nodes.inputNode)  # of another result
    assert scene.IsNodePresent(box)
    selection.unmark(scene, nodes.anomalyMap)
    assert mrmlscene.nodeIds(scene) == before


def test_the_brain_is_a_veil_around_the_findings(scene: Any, nodes: ResultNodes) -> None:
    selection.showBrain(scene, nodes, True)
    model = nodes.brainSurface
    bounds = [0.0] * 6
    model.GetRASBounds(bounds)
    marked = np.argwhere(slicer.util.arrayFromVolume(nodes.brain))[:, ::-1]
    corners = np.array([mrmlscene.world(nodes.brain, corner) for corner in (marked.min(axis=0), marked.max(axis=0))])
    expected = np.stack([corners.min(axis=0), corners.max(axis=0)], axis=1).ravel()
    assert np.allclose(bounds, expected, atol=8.0)  # a voxel is 6 mm high
    assert model.GetDisplayNode().GetVisibility() and model.GetDisplayNode().GetOpacity() < 0.3
    selection.showBrain(scene, nodes, False)
    assert not model.GetDisplayNode().GetVisibility()
    selection.showBrain(scene, nodes, True)
    assert nodes.brainSurface is model and model in nodes.all
    (again,) = results.resultsIn(scene)
    assert again.brainSurface is model
    results.removeResults(scene, nodes)
    assert not scene.IsNodePresent(model)


def test_each_finding_can_be_a_segment_of_its_own(scene: Any, nodes: ResultNodes) -> None:
    live = results.liveThresholdOf(nodes)
    now = results.findingsOf(nodes, live)
    findingsTable.setName(nodes.table, nodes.anomalyMap, live, now, 1, "left parietal")
    before = mrmlscene.nodeIds(scene)
    results.segmentFindings(scene, nodes, live, now, True)
    inside = nodes.segments.GetSegmentation()
    ids = [inside.GetNthSegmentID(index) for index in range(inside.GetNumberOfSegments())]
    assert [inside.GetSegment(one).GetName() for one in ids] == ["Finding 1", "left parietal"]
    assert len({inside.GetSegment(one).GetColor() for one in ids}) == 2
    for one, part in zip(ids, (FIRST, SECOND), strict=True):
        mask = segmentation.maskOf(nodes.segments, nodes.anomalyMap, one)
        assert mask[part].all() and mask.sum() == mask[part].size
        assert inside.GetSegment(one).GetTerminology() == segmentation.TERMINOLOGY
    results.outlineOnly(scene, nodes)
    assert [bool(node.GetDisplayNode().GetVisibility()) for node in nodes.outlines] == [False, True]

    now = results.applyReview(nodes, live, now, 0, state="rejected")
    results.segmentFindings(scene, nodes, live, now, True)
    assert [inside.GetNthSegment(index).GetName() for index in range(inside.GetNumberOfSegments())] == ["left parietal"]
    (again,) = results.resultsIn(scene)
    assert again.segments is nodes.segments
    results.segmentFindings(scene, nodes, live, now, False)
    assert mrmlscene.nodeIds(scene) == before and nodes.segments is None


@pytest.mark.parametrize(
    ("score", "end", "said"),
    [
        (1.0, 5.0, "A score of 1.0: about 1 in 10 healthy voxels looks like this."),
        (3.0, 5.0, "A score of 3.0: about 1 in 1,000 healthy voxels looks like this."),
        (3.2, None, "A score of 3.2: about 1 in 1,600 healthy voxels looks like this."),
        (5.6, 5.65, "A score of 5.6: about 1 in 400,000 healthy voxels looks like this."),
        (7.0, 4.0, "A score of 7.0: fewer than 1 in 10,000 healthy voxels looks like this."),
    ],
)
def test_a_score_is_said_in_plain_words(score: float, end: float | None, said: str) -> None:
    assert wording.score(score, {} if end is None else {"calibration_end": end}) == said
