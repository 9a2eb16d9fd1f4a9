"""Findings that a reader accepts, rejects and comments: what the mask keeps, at every threshold, saved and undone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import jobs
import mrmlscene
from DiffusionAnomalyLib.scene import findingsTable, results, review, segmentation, volumes
from DiffusionAnomalyLib.scene.history import History
from DiffusionAnomalyLib.scene.results import Place, ResultNodes
from DiffusionAnomalyLib.scene.review import ACCEPTED, REJECTED, UNDECIDED

SHAPE = jobs.scan().GetSize()[::-1]
# k j i: two peaks that a lower threshold joins by a bridge, and one of its own.
ARTEFACT = np.s_[4:8, 10:18, 10:18]
LESION = np.s_[4:8, 10:18, 24:32]
BRIDGE = np.s_[5:7, 13:15, 18:24]
OTHER = np.s_[10:13, 30:36, 30:36]


def scores() -> np.ndarray:
    array = np.zeros(SHAPE, np.float32)
    array[ARTEFACT], array[LESION], array[BRIDGE], array[OTHER] = 3.5, 3.2, 2.2, 2.8
    array[5, 13, 13], array[5, 13, 27] = 4.5, 4.0
    array[3, 10:18, 10:18] = 2.6  # what a lower threshold adds to the artefact
    return array


@pytest.fixture
def nodes(scene: Any, tmp_path: Path) -> ResultNodes:
    scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path)
    files = mrmlscene.writeResults(tmp_path / "results", scores(), jobs.scan(), threshold=3.0)
    return results.loadResults(scene, Place.of(scan), files)


class Reader:
    """Does with a result what the panel does."""

    def __init__(self, nodes: ResultNodes) -> None:
        self.nodes = nodes
        self.live = results.liveThresholdOf(nodes)
        self.found = results.findingsOf(nodes, self.live)

    def at(self, threshold: float) -> Reader:
        self.found = results.applyThreshold(self.nodes, self.live, threshold, 0.05)
        return self

    def says(self, place: Sequence[slice], **said: str) -> Reader:
        self.found = results.applyReview(self.nodes, self.live, self.found, self.row(place), **said)
        return self

    def row(self, place: Sequence[slice]) -> int:
        inBox = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(place, self.live.box, strict=True))
        (number,) = set(np.unique(self.found.labels[inBox])) - {0}
        return int(number) - 1

    def state(self, place: Sequence[slice]) -> str:
        return self.column("Review")[self.row(place)]

    def column(self, name: str) -> list[str]:
        table = self.nodes.table.GetTable()
        return [table.GetColumnByName(name).GetValue(row) for row in range(self.nodes.table.GetNumberOfRows())]

    def marked(self, place: Sequence[slice]) -> bool:
        """Whether all of a place is in every form of the mask; none of it, if it is not."""
        ofSegment = slicer.util.arrayFromSegmentBinaryLabelmap(
            self.nodes.segmentation, segmentation.SEGMENT, self.nodes.inputNode
        )
        ofLabels = slicer.util.arrayFromVolume(self.nodes.labelMap)
        assert np.array_equal(ofSegment != 0, ofLabels != 0)
        assert np.array_equal(ofLabels[self.live.box] != 0, self.found.mask != 0)
        values = np.unique(ofLabels[tuple(place)])
        assert len(values) == 1, "a part of it"
        return bool(values[0])


def test_a_rejected_finding_leaves_the_mask_and_comes_back(nodes: ResultNodes) -> None:
    reader = Reader(nodes)
    assert reader.column("Review") == [UNDECIDED, UNDECIDED] and reader.column("Comment") == ["", ""]
    reader.says(ARTEFACT, state=REJECTED).says(LESION, state=ACCEPTED, comment='seen\n by "two"')
    assert not reader.marked(ARTEFACT) and reader.marked(LESION)
    assert (reader.state(ARTEFACT), reader.state(LESION)) == (REJECTED, ACCEPTED)
    assert reader.column("Comment")[reader.row(LESION)] == "seen by ''two''"
    reader.says(ARTEFACT, state=UNDECIDED)
    assert reader.marked(ARTEFACT) and reader.state(ARTEFACT) == UNDECIDED
    reader.says(LESION, state=UNDECIDED, comment="")
    assert not review.hasReviews(nodes.table)


@pytest.mark.parametrize("threshold", [2.5, 3.4, 4.2])
def test_what_was_rejected_stays_so_at_other_thresholds(nodes: ResultNodes, threshold: float) -> None:
    reader = Reader(nodes).says(ARTEFACT, state=REJECTED).says(LESION, comment="mine").at(threshold)
    core = np.s_[5:6, 13:14, 13:14]
    assert reader.state(core) == REJECTED and not reader.marked(core)
    if threshold < 3:  # with what has grown out of it
        assert not reader.marked(np.s_[3:8, 10:18, 10:18])
        assert reader.marked(OTHER) and reader.state(OTHER) == UNDECIDED
    lesion = np.s_[5:6, 13:14, 27:28]
    if threshold < 4:
        assert reader.marked(lesion) and reader.column("Comment")[reader.row(lesion)] == "mine"
    reader.says(core, state=UNDECIDED).at(3.0)
    assert reader.marked(core)


def test_what_has_grown_together_with_a_rejected_finding_is_not_hidden(nodes: ResultNodes) -> None:
    reader = Reader(nodes).says(ARTEFACT, state=REJECTED).at(2.0)
    assert reader.row(LESION) == reader.row(ARTEFACT)
    assert reader.state(LESION) == UNDECIDED
    assert reader.marked(LESION) and reader.marked(BRIDGE) and not reader.marked(ARTEFACT)
    reader.says(LESION, state=REJECTED)
    assert not reader.marked(LESION) and not reader.marked(BRIDGE)
    reader.at(3.0)
    assert reader.state(LESION) == reader.state(ARTEFACT) == REJECTED
    reader.says(LESION, state=UNDECIDED)
    assert reader.marked(LESION) and reader.state(ARTEFACT) == REJECTED and not reader.marked(ARTEFACT)


def test_one_that_has_grown_to_more_than_twice_its_size_is_not_hidden(scene: Any, tmp_path: Path) -> None:
    array = np.full(SHAPE, 1.5, np.float32)
    array[ARTEFACT] = 3.5
    scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path)
    files = mrmlscene.writeResults(tmp_path / "results", array, jobs.scan(), threshold=3.0)
    reader = Reader(results.loadResults(scene, Place.of(scan), files)).says(ARTEFACT, state=REJECTED).at(1.2)
    assert reader.state(ARTEFACT) == UNDECIDED and reader.marked(np.s_[0:2, 0:2, 0:2])
    assert not reader.marked(ARTEFACT)


def test_reviews_are_saved_with_the_scene(scene: Any, nodes: ResultNodes, tmp_path: Path) -> None:
    Reader(nodes).says(ARTEFACT, state=REJECTED, comment="motion ä; 5%\t:").says(LESION, state=ACCEPTED)
    saved = tmp_path / "saved.mrb"
    assert scene.WriteToMRB(str(saved))
    scene.Clear(0)
    scene.SetURL(str(saved))
    assert scene.ReadFromMRB(str(saved))
    (again,) = results.resultsIn(scene)
    reader = Reader(again)
    assert (reader.state(ARTEFACT), reader.state(LESION)) == (REJECTED, ACCEPTED)
    assert reader.column("Comment")[reader.row(ARTEFACT)] == "motion ä; 5% :"
    assert not reader.marked(ARTEFACT) and reader.marked(LESION)
    reader.says(ARTEFACT, state=UNDECIDED).at(2.5)
    assert reader.marked(ARTEFACT)


def test_reviews_take_little_room(scene: Any, tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.float32)
    ball = np.linalg.norm(np.indices(SHAPE) - np.array([[[[8]]], [[[25]]], [[[24]]]]), axis=0) < 8
    array[ball] = 3.5
    scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path)
    files = mrmlscene.writeResults(tmp_path / "results", array, jobs.scan(), threshold=3.0)
    nodes = results.loadResults(scene, Place.of(scan), files)
    reader = Reader(nodes)
    reader.found = results.applyReview(nodes, reader.live, reader.found, 0, state=REJECTED)
    (kept,) = json.loads(nodes.table.GetAttribute(review.REVIEWS))
    assert kept["threshold"] == 3.0 and len(kept["voxels"]) < np.count_nonzero(ball)


def test_the_summary_counts_what_is_left(nodes: ResultNodes) -> None:
    reader = Reader(nodes)
    ml = 8 * 8 * 4 * np.prod(jobs.scan().GetSpacing()) / 1000
    said = findingsTable.summary(reader.found.findings, "ml", {reader.row(ARTEFACT) + 1})
    assert said == f"1 finding of {ml:.1f} ml, highest score 4.0. 1 rejected."
    assert findingsTable.summary(reader.found.findings, "ml", {1, 2}) == "No finding is left. 2 rejected."


# ---- edits by hand ----------------------------------------------------------------------------------------------


def paint(nodes: ResultNodes, place: Sequence[slice], value: int, segmentId: str = segmentation.SEGMENT) -> None:
    """As the Segment Editor leaves a segment: another image, with the extent of what is in it."""
    inside = nodes.segmentation.GetSegmentation()
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentId, nodes.inputNode) != 0
    mask[tuple(place)] = value
    places = np.argwhere(mask)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    cut = mask[tuple(slice(*bounds) for bounds in zip(low, high, strict=True))].astype(np.uint8)
    image = segmentation._orientedImage(cut, low[::-1].tolist(), nodes.inputNode)
    inside.GetSegment(segmentId).AddRepresentation(inside.GetSourceRepresentationName(), image)


PAINTED = np.s_[1:3, 40:44, 40:44]


def test_an_edit_by_hand_is_noticed_and_a_copy_keeps_it(scene: Any, nodes: ResultNodes) -> None:
    reader = Reader(nodes)
    before = mrmlscene.nodeIds(scene)
    assert not results.isEdited(nodes, reader.live, reader.found)
    assert mrmlscene.nodeIds(scene) == before
    version = segmentation.versionOf(nodes.segmentation)
    paint(nodes, PAINTED, 1)
    assert segmentation.versionOf(nodes.segmentation) != version
    assert results.isEdited(nodes, reader.live, reader.found)
    copy = results.keepEdits(nodes)
    assert copy.GetName().endswith(", edited")
    reader.at(2.0)
    assert not results.isEdited(nodes, reader.live, reader.found)
    kept = slicer.util.arrayFromSegmentBinaryLabelmap(copy, segmentation.SEGMENT, nodes.inputNode)
    assert kept[PAINTED].all() and kept[LESION].all() and not kept[BRIDGE].any()
    results.removeResults(scene, nodes)
    assert scene.GetNodeByID(copy.GetID()) is copy


@pytest.mark.parametrize("grid", ["the scan's", "another"])
def test_a_segment_is_read_on_the_maps_grid_as_slicer_reads_it(scene: Any, nodes: ResultNodes, grid: str) -> None:
    paint(nodes, PAINTED, 1)
    if grid == "another":
        segment = nodes.segmentation.GetSegmentation().GetSegment(segmentation.SEGMENT)
        image = segment.GetRepresentation(nodes.segmentation.GetSegmentation().GetSourceRepresentationName())
        matrix = volumes.ijkToRas(nodes.inputNode)
        matrix[:3, 3] += (1.0, 2.0, -7.0)
        image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(matrix))
    expected = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT, nodes.inputNode)
    ours = segmentation.maskOf(nodes.segmentation, nodes.anomalyMap)
    assert np.array_equal(ours, expected) and ours.any()


def test_a_rejection_leaves_edits_by_hand_alone(nodes: ResultNodes) -> None:
    reader = Reader(nodes)
    paint(nodes, PAINTED, 1)
    paint(nodes, np.s_[4:5, 10:18, 24:32], 0)  # a slice of the lesion was erased

    def segment() -> np.ndarray:
        return slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT, nodes.inputNode)

    for state, isIn in ((REJECTED, False), (UNDECIDED, True)):
        reader.found = results.applyReview(nodes, reader.live, reader.found, reader.row(ARTEFACT), state=state)
        assert bool(segment()[ARTEFACT].any()) == bool(segment()[ARTEFACT].all()) == isIn
        assert segment()[PAINTED].all() and not segment()[4, 10:18, 24:32].any() and segment()[5, 10:18, 24:32].all()


def test_segments_that_the_user_has_added_are_left_alone(nodes: ResultNodes) -> None:
    inside = nodes.segmentation.GetSegmentation()
    inside.AddEmptySegment("mine", "mine")
    live = results.liveThresholdOf(nodes)
    labels = slicer.util.arrayFromVolume(nodes.labelMap).copy()
    beside = np.s_[10:12, 12:14, 12:14]
    labels[beside] = 2  # as the Segment Editor stores segments that do not overlap
    first = [part.start for part in live.box][::-1]
    image = segmentation._orientedImage(labels[live.box], first, nodes.inputNode)
    for label, name in enumerate((segmentation.SEGMENT, "mine"), start=1):
        inside.GetSegment(name).AddRepresentation(inside.GetSourceRepresentationName(), image)
        inside.GetSegment(name).SetLabelValue(label)
    reader = Reader(nodes).at(2.0)
    assert reader.marked(BRIDGE)
    reader.says(OTHER, state=REJECTED)
    assert not reader.marked(OTHER)
    mine = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "mine", nodes.inputNode)
    assert mine[beside].all() and mine.sum() == 2 * 2 * 2


# ---- undo and redo ----------------------------------------------------------------------------------------------


def test_steps_are_undone_and_done_again(nodes: ResultNodes) -> None:
    now = [0.0]
    history, reader = History(lambda: now[0]), Reader(nodes)
    key = nodes.anomalyMap.GetID()

    def go(forward: bool = False) -> None:
        earlier = history.step(nodes, forward)
        assert earlier is not None
        reader.found = results.restore(nodes, reader.live, reader.found, earlier)

    history.record(nodes, "review")
    reader.says(ARTEFACT, state=REJECTED)
    for threshold in (2.9, 2.7, 2.5):  # a drag
        now[0] += 0.2
        history.record(nodes, "threshold")
        reader.at(threshold)
    now[0] += 5
    history.record(nodes, "name")
    row = reader.row(OTHER)
    findingsTable.setName(nodes.table, nodes.anomalyMap, reader.live, reader.found, row, "other")
    assert reader.column("Name")[row] == "other"
    go()
    assert reader.column("Name")[row] != "other" and nodes.threshold == 2.5
    go()
    assert nodes.threshold == 3.0 and not reader.marked(ARTEFACT)
    go()
    assert reader.marked(ARTEFACT) and not history.canUndo(key) and history.step(nodes) is None
    for _ in range(3):
        go(forward=True)
    assert reader.column("Name")[row] == "other" and nodes.threshold == 2.5 and not history.canRedo(key)
    assert reader.state(ARTEFACT) == REJECTED and not reader.marked(ARTEFACT)
    go()
    history.record(nodes, "review")
    assert not history.canRedo(key)


def test_undoing_a_review_leaves_edits_by_hand_alone(nodes: ResultNodes) -> None:
    history, reader = History(), Reader(nodes)
    history.record(nodes, "review")
    reader.says(ARTEFACT, state=REJECTED)
    paint(nodes, PAINTED, 1)
    earlier = history.step(nodes)
    assert earlier is not None
    results.restore(nodes, reader.live, reader.found, earlier)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT, nodes.inputNode)
    assert mask[PAINTED].all() and mask[ARTEFACT].all()


def test_each_result_has_its_own_steps_and_a_closed_scene_none(nodes: ResultNodes) -> None:
    history = History()
    history.record(nodes, "review")
    assert history.canUndo(nodes.anomalyMap.GetID()) and not history.canUndo("another")
    history.forget()
    assert not history.canUndo(nodes.anomalyMap.GetID())


def test_results_of_scenes_saved_before_there_were_reviews_open(scene: Any, nodes: ResultNodes) -> None:
    table = nodes.table.GetTable()
    for column in (findingsTable.REVIEW, findingsTable.COMMENT):
        table.RemoveColumnByName(column)
    reader = Reader(nodes)
    assert not findingsTable.isInPlace(nodes.table, nodes.anomalyMap, reader.found)
    reader.says(ARTEFACT, state=REJECTED)
    assert reader.state(ARTEFACT) == REJECTED
    assert volumes.problemWith(nodes.anomalyMap)


def damaged(text: str) -> str:
    """A saved list of reviews of which the first is as it was and the others are not."""
    good = json.loads(text)[0]
    return json.dumps(
        [
            good,
            {**good, "voxels": good["voxels"][:8]},
            {**good, "box": [[0, 1], [0, 1]]},
            {**good, "box": [[-3, 1], [0, 1], [0, 1]]},
            {**good, "state": "perhaps"},
            {name: value for name, value in good.items() if name != "threshold"},
            "nothing",
            7,
        ]
    )


def test_damaged_reviews_are_named_and_kept_and_the_others_are_used(nodes: ResultNodes) -> None:
    reader = Reader(nodes).says(LESION, state=REJECTED, comment="motion")
    assert review.problemWith(nodes.table) == ""
    text = damaged(nodes.table.GetAttribute(review.REVIEWS))
    nodes.table.SetAttribute(review.REVIEWS, text)
    reader = Reader(nodes)
    assert not reader.at(3.0).marked(LESION) and reader.state(LESION) == REJECTED
    said = review.problemWith(nodes.table)
    assert said.startswith("7 saved reviews of ") and review.REVIEWS in said
    reader.says(ARTEFACT, state=ACCEPTED)
    assert json.loads(nodes.table.GetAttribute(review.REVIEWS))[2:] == json.loads(text)[1:]
    assert reader.state(ARTEFACT) == ACCEPTED and review.problemWith(nodes.table) == said


@pytest.mark.parametrize("text", ['[{"state": "rejec', "{}", "7", "null", "[" * 100_000])
def test_reviews_of_which_nothing_can_be_read_are_kept_as_they_are(nodes: ResultNodes, text: str) -> None:
    nodes.table.SetAttribute(review.REVIEWS, text)
    nodes.table.SetAttribute(findingsTable.NAMES, text)
    reader = Reader(nodes)
    assert reader.marked(LESION) and review.problemWith(nodes.table) and findingsTable.problemWithNames(nodes.table)
    reader.says(LESION, state=ACCEPTED)
    findingsTable.setName(nodes.table, nodes.anomalyMap, reader.live, reader.found, reader.row(LESION), "old")
    for attribute in (review.REVIEWS, findingsTable.NAMES):
        kept = json.loads(nodes.table.GetAttribute(attribute))[1]
        assert (kept if isinstance(kept, str) else json.dumps(kept)) == text
    assert reader.state(LESION) == ACCEPTED and reader.column("Name")[reader.row(LESION)] == "old"


def test_damaged_names_are_named_and_kept_and_the_others_are_used(nodes: ResultNodes) -> None:
    reader = Reader(nodes)
    findingsTable.setName(nodes.table, nodes.anomalyMap, reader.live, reader.found, 0, "first")
    (good,) = json.loads(nodes.table.GetAttribute(findingsTable.NAMES))
    bad = [[[1, 2], "two"], [[1, 2, "3"], "three"], [[1, 2, 3]], [[1, 2, 3], 4], 5, [[1, 2, 3], "a", "b"]]
    nodes.table.SetAttribute(findingsTable.NAMES, json.dumps([*bad, good]))
    assert findingsTable.namesOf(nodes.table, reader.live, reader.found) == {1: "first"}
    assert findingsTable.problemWithNames(nodes.table).startswith("6 saved names of ")
    findingsTable.setName(nodes.table, nodes.anomalyMap, reader.live, reader.found, 0, "other")
    assert json.loads(nodes.table.GetAttribute(findingsTable.NAMES)) == [[good[0], "other"], *bad]
