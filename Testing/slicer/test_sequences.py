"""Frames of a 4-D scan: a result belongs to the one that was analysed, whichever is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import jobs
import mrmlscene
from DiffusionAnomalyLib.scene import attributes, reporting, results, sequences, volumes
from DiffusionAnomalyLib.scene.results import Place, ResultNodes
from DiffusionAnomalyLib.scene.watching import SceneWatch


@pytest.fixture
def shown(scene: Any, tmp_path: Path) -> tuple[Any, Any]:
    """A volume that shows the first of three frames, each with another constant, and its browser."""
    frames = [mrmlscene.addScan(scene, jobs.scan() + 1000 * number, tmp_path, f"f{number}") for number in range(3)]
    proxy, browser = mrmlscene.addSequence(scene, frames)
    for frame in frames:
        scene.RemoveNode(frame)
    proxy.SetName("perfusion")
    return proxy, browser


def result(scene: Any, place: Place, folder: Path) -> ResultNodes:
    image = jobs.scan()
    scores = np.zeros(image.GetSize()[::-1], np.float32)
    scores[2:5, 3:8, 4:9] = 3.5
    return results.loadResults(scene, place, mrmlscene.writeResults(folder, scores, image))


def test_the_panel_says_which_frame_is_analysed(scene: Any, shown: tuple[Any, Any], tmp_path: Path) -> None:
    scan, browser = shown
    mrmlscene.showFrame(browser, 1)
    assert "frame 2 of 3 (1.5 s), which alone is analysed" in volumes.describe(scan)
    assert "frame" not in volumes.describe(mrmlscene.addScan(scene, jobs.scan(), tmp_path, "no sequence"))


@pytest.mark.parametrize("shownWhenItCame", [0, 2])
def test_a_result_belongs_to_the_frame_that_was_sent(
    scene: Any, shown: tuple[Any, Any], tmp_path: Path, shownWhenItCame: int
) -> None:
    scan, browser = shown
    place = Place.of(scan)
    mrmlscene.showFrame(browser, shownWhenItCame)
    nodes = result(scene, place, tmp_path / "result")
    assert nodes.anomalyMap.GetName() == "perfusion frame 1 guided anomaly map"
    assert nodes.anomalyMap.GetAttribute(f"{attributes.PREFIX}FrameValue") == "frame 1 of 3 (0 s)"
    assert sequences.isInView(nodes.anomalyMap, scan) == (shownWhenItCame == 0)
    mrmlscene.showFrame(browser, 2)
    said = results.otherFrame(nodes)
    assert "belongs to frame 1 of 3 (0 s)" in said and "show frame 3 of 3 (3 s)" in said and "hidden" in said
    sequences.goTo(nodes.anomalyMap, scan)
    assert browser.GetSelectedItemNumber() == 0 and results.otherFrame(nodes) == ""


def test_what_is_written_shows_the_frame_that_was_analysed(scene: Any, shown: tuple[Any, Any], tmp_path: Path) -> None:
    scan, browser = shown
    nodes = result(scene, Place.of(scan), tmp_path / "result")
    mrmlscene.showFrame(browser, 2)
    assert slicer.util.arrayFromVolume(scan).min() >= 2000
    written = reporting.scanOf(nodes)
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(jobs.scan()))
    assert np.allclose(written.GetOrigin(), jobs.scan().GetOrigin(), atol=1e-5)


def test_a_saved_scene_still_knows_the_frame(scene: Any, shown: tuple[Any, Any], tmp_path: Path) -> None:
    scan, browser = shown
    result(scene, Place.of(scan), tmp_path / "result")
    mrmlscene.showFrame(browser, 1)
    saved = tmp_path / "saved.mrb"
    assert scene.WriteToMRB(str(saved))
    scene.Clear(0)
    scene.SetURL(str(saved))
    assert scene.ReadFromMRB(str(saved))
    (nodes,) = results.resultsIn(scene)
    assert "belongs to frame 1 of 3" in results.otherFrame(nodes)
    voxels = sequences.voxelsNode(nodes.anomalyMap, nodes.inputNode)
    assert np.allclose(slicer.util.arrayFromVolume(voxels), sitk.GetArrayFromImage(jobs.scan()))


@pytest.fixture
def changes(scene: Any) -> Iterator[tuple[SceneWatch, list[str]]]:
    told: list[str] = []
    watch = SceneWatch(scene, lambda: told.append("changed"))
    yield watch, told
    watch.close()


def test_another_frame_is_told_at_once(
    scene: Any, changes: tuple[SceneWatch, list[str]], shown: tuple[Any, Any]
) -> None:
    watch, told = changes
    _scan, browser = shown
    told.clear()
    mrmlscene.showFrame(browser, 1)
    assert told
    watch.close()
    told.clear()
    mrmlscene.showFrame(browser, 2)
    assert told == []


def test_a_transform_of_a_transform_is_told_at_once(
    scene: Any, changes: tuple[SceneWatch, list[str]], tmp_path: Path
) -> None:
    watch, told = changes
    scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path)
    outer, inner = (mrmlscene.addTransform(scene, np.eye(4)) for _ in range(2))
    inner.SetAndObserveTransformNodeID(outer.GetID())
    watch.follow(scan)
    scan.SetAndObserveTransformNodeID(inner.GetID())
    assert told
    told.clear()
    moved = np.eye(4)
    moved[0, 3] = 7.0
    outer.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(moved))
    assert told
    watch.follow(None)
    told.clear()
    outer.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.eye(4)))
    assert told == []
