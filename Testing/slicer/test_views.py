"""What the views show when a result goes: what they showed before it came, whoever takes it away and however."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import vtk

import jobs
import mrmlscene
from DiffusionAnomalyLib.scene import display, results, views, volumes
from DiffusionAnomalyLib.scene.results import Place, ResultNodes
from DiffusionAnomalyLib.scene.watching import SceneWatch

FOUR_UP, CONVENTIONAL = 3, 2


@pytest.fixture
def scan(scene: Any, tmp_path: Path) -> Any:
    return mrmlscene.addScan(scene, jobs.scan(), tmp_path, "today")


@pytest.fixture
def red(scene: Any, scan: Any) -> Any:
    return view(scene, "Red", scan)


@pytest.fixture
def watch(scene: Any) -> Iterator[SceneWatch]:
    watch = SceneWatch(scene)
    yield watch
    watch.close()


def view(scene: Any, name: str, scan: Any = None) -> Any:
    """What a slice view of this name shows."""
    composite = slicer.vtkMRMLSliceCompositeNode()
    composite.SetLayoutName(name)
    composite.SetSingletonTag(name)
    composite = scene.AddNode(composite)
    composite.SetBackgroundVolumeID(None if scan is None else scan.GetID())
    return composite


def result(scene: Any, scan: Any, folder: Path, slices: slice = slice(2, 5)) -> ResultNodes:
    image = volumes.imageOf(scan)
    scores = np.zeros(image.GetSize()[::-1], np.float32)
    scores[slices, 3:8, 4:9] = 3.5
    return results.loadResults(scene, Place.of(scan), mrmlscene.writeResults(folder, scores, image))


def state(composite: Any) -> tuple[Any, ...]:
    return tuple(
        [getattr(composite, f"Get{layer}VolumeID")() for layer in views.LAYERS]
        + [getattr(composite, f"Get{name}")() for name in views.SETTINGS]
    )


def selectorsTakeTheNextVolume(scene: Any) -> None:
    """As Slicer's slice controllers do: a shown volume that goes is followed by another one of the scene."""

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onAboutToBeRemoved(caller: Any, event: Any, node: Any) -> None:
        others = [one for one in views.nodesOf(scene, "vtkMRMLScalarVolumeNode") if one is not node]
        for composite in views.sliceComposites(scene):
            for layer in views.LAYERS:
                if getattr(composite, f"Get{layer}VolumeID")() == node.GetID():
                    getattr(composite, f"Set{layer}VolumeID")(others[-1].GetID())

    scene.AddObserver(scene.NodeAboutToBeRemovedEvent, onAboutToBeRemoved)


@pytest.mark.parametrize("how", ["Remove", "Data"])
@pytest.mark.parametrize("fused", [False, True], ids=["scan alone", "with an overlay of the user"])
def test_a_result_that_goes_leaves_the_views_as_they_were(
    scene: Any, scan: Any, red: Any, watch: SceneWatch, tmp_path: Path, how: str, fused: bool
) -> None:
    other = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "another exam")
    green = view(scene, "Green", scan)
    for volume, window in ((scan, (70.0, 30.0)), (other, (55.0, 20.0))):
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevel(*window)
    if fused:
        red.SetForegroundVolumeID(other.GetID())
        red.SetForegroundOpacity(0.3)
        red.SetLinkedControl(True)
    before = state(red), state(green)
    nodes = result(scene, scan, tmp_path / "result")
    selectorsTakeTheNextVolume(scene)
    display.showInSlices(scene, scan, nodes.anomalyMap, 0.7)
    red.SetLabelVolumeID(nodes.labelMap.GetID())
    assert red.GetForegroundVolumeID() == nodes.anomalyMap.GetID() and red.GetForegroundOpacity() == 0.7
    if how == "Remove":
        results.removeResults(scene, nodes)
    else:
        scene.RemoveNode(nodes.labelMap)
        scene.RemoveNode(nodes.anomalyMap)
    assert (state(red), state(green)) == before
    assert scan.GetDisplayNode().GetWindow() == 70.0 and other.GetDisplayNode().GetWindow() == 55.0


def test_of_two_results_the_views_go_back_to_what_the_user_had(
    scene: Any, scan: Any, red: Any, watch: SceneWatch, tmp_path: Path
) -> None:
    mine = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "fused by the user")
    red.SetForegroundVolumeID(mine.GetID())
    red.SetForegroundOpacity(0.25)
    before = state(red)
    first, second = (result(scene, scan, tmp_path / name) for name in ("1", "2"))
    display.showInSlices(scene, scan, first.anomalyMap)
    display.showInSlices(scene, scan, second.anomalyMap)
    results.removeResults(scene, first)
    assert red.GetForegroundVolumeID() == second.anomalyMap.GetID()
    results.removeResults(scene, second)
    assert state(red) == before


def test_what_the_user_has_changed_since_stays(scene: Any, scan: Any, red: Any, tmp_path: Path) -> None:
    other = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "another exam")
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(FOUR_UP)
    nodes = result(scene, scan, tmp_path / "result")
    display.showInSlices(scene, scan, nodes.anomalyMap)
    views.chooseLayout(scene, nodes.anomalyMap, CONVENTIONAL)
    red.SetForegroundVolumeID(other.GetID())
    layout.SetViewArrangement(4)
    results.removeResults(scene, nodes)
    assert red.GetForegroundVolumeID() == other.GetID() and layout.GetViewArrangement() == 4


def test_the_layout_comes_back(scene: Any, scan: Any, red: Any, tmp_path: Path) -> None:
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(FOUR_UP)
    first, second = (result(scene, scan, tmp_path / name) for name in ("1", "2"))
    display.showInSlices(scene, scan, first.anomalyMap)
    views.chooseLayout(scene, first.anomalyMap, CONVENTIONAL)
    display.showInSlices(scene, scan, second.anomalyMap)
    results.removeResults(scene, first)
    assert layout.GetViewArrangement() == CONVENTIONAL
    results.removeResults(scene, second)
    assert layout.GetViewArrangement() == FOUR_UP


def test_the_scan_is_shown_alone_beside_the_map_and_all_comes_back(
    scene: Any, scan: Any, red: Any, tmp_path: Path
) -> None:
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(FOUR_UP)
    mine = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "fused by the user")
    red.SetForegroundVolumeID(mine.GetID())
    red.SetForegroundOpacity(0.25)
    beside, green = view(scene, views.MAP_VIEW), view(scene, "Green", scan)
    before = state(red), state(green)
    nodes = result(scene, scan, tmp_path / "result")
    slices = {}
    for name in (views.SCAN_VIEW, views.MAP_VIEW, "Green"):
        node = slicer.vtkMRMLSliceNode()
        node.SetLayoutName(name)
        slices[name] = scene.AddNode(node).GetID()
    for isBeside in (True, False, True):
        views.arrange(scene, nodes.anomalyMap, isBeside)
        display.showInSlices(scene, scan, nodes.anomalyMap)
        results.outlineOnly(scene, nodes)
        outline = nodes.segmentation.GetDisplayNode()
        assert outline.IsDisplayableInView(slices[views.SCAN_VIEW]) == (not isBeside)
        assert outline.IsDisplayableInView(slices[views.MAP_VIEW]) and outline.IsDisplayableInView(slices["Green"])
        assert (layout.GetViewArrangement() == views.SIDE_BY_SIDE) == isBeside
        assert red.GetForegroundVolumeID() == (None if isBeside else nodes.anomalyMap.GetID())
        assert green.GetForegroundVolumeID() == beside.GetForegroundVolumeID() == nodes.anomalyMap.GetID()
        assert not isBeside or (red.GetLinkedControl() and beside.GetLinkedControl())
    display.showInSlices(scene, scan, nodes.anomalyMap)  # shown again, as from the queue
    results.removeResults(scene, nodes)
    assert (state(red), state(green)) == before and layout.GetViewArrangement() == FOUR_UP


def test_no_result_after_one_beside_its_scan_leaves_the_views_as_they_were(
    scene: Any, scan: Any, red: Any, tmp_path: Path
) -> None:
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(FOUR_UP)
    mine = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "fused by the user")
    red.SetForegroundVolumeID(mine.GetID())
    red.SetForegroundOpacity(0.25)
    view(scene, views.MAP_VIEW)
    before = state(red)
    nodes = result(scene, scan, tmp_path / "result")
    views.arrange(scene, nodes.anomalyMap, True)
    display.showInSlices(scene, scan, nodes.anomalyMap)
    assert state(red) != before
    views.handOver(scene, nodes.anomalyMap, None)
    display.hideAnomalyMap(scene, nodes.anomalyMap)
    assert state(red) == before and layout.GetViewArrangement() == FOUR_UP


def test_a_scan_that_goes_takes_its_map_out_of_the_views(
    scene: Any, scan: Any, red: Any, watch: SceneWatch, tmp_path: Path
) -> None:
    mrmlscene.addScan(scene, jobs.scan(), tmp_path, "another exam")
    nodes = result(scene, scan, tmp_path / "result")
    display.showInSlices(scene, scan, nodes.anomalyMap)
    selectorsTakeTheNextVolume(scene)
    scene.RemoveNode(scan)
    assert red.GetForegroundVolumeID() is None


def test_a_view_that_was_opened_later_shows_the_scan_alone(scene: Any, scan: Any, red: Any, tmp_path: Path) -> None:
    nodes = result(scene, scan, tmp_path / "result")
    display.showInSlices(scene, scan, nodes.anomalyMap)
    later = view(scene, "Later", scan)
    later.SetForegroundVolumeID(nodes.anomalyMap.GetID())
    later.SetForegroundOpacity(0.5)
    results.removeResults(scene, nodes)
    assert later.GetBackgroundVolumeID() == scan.GetID()
    assert later.GetForegroundVolumeID() is None and later.GetForegroundOpacity() == 0.0


def test_what_was_shown_before_survives_that_the_scene_is_saved(
    scene: Any, scan: Any, red: Any, tmp_path: Path
) -> None:
    mine = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "fused by the user")
    red.SetForegroundVolumeID(mine.GetID())
    red.SetForegroundOpacity(0.25)
    display.showInSlices(scene, scan, result(scene, scan, tmp_path / "result").anomalyMap)
    saved = tmp_path / "saved.mrb"
    assert scene.WriteToMRB(str(saved))
    scene.Clear(1)
    again = view(scene, "Red")
    scene.SetURL(str(saved))
    assert scene.ReadFromMRB(str(saved))
    (nodes,) = results.resultsIn(scene)
    again = next(one for one in views.sliceComposites(scene) if one.GetLayoutName() == "Red")
    assert again.GetForegroundVolumeID() == nodes.anomalyMap.GetID()
    results.removeResults(scene, nodes)
    assert slicer.mrmlScene.GetNodeByID(again.GetForegroundVolumeID()).GetName() == "fused by the user"
    assert again.GetForegroundOpacity() == 0.25


def test_a_closed_watch_leaves_no_observer(scene: Any) -> None:
    before = bool(scene.HasObserver(scene.NodeAboutToBeRemovedEvent))
    watch = SceneWatch(scene)
    watch.close()
    assert bool(scene.HasObserver(scene.NodeAboutToBeRemovedEvent)) == before


def addSlice(scene: Any, name: str, orientation: str) -> Any:
    node = slicer.vtkMRMLSliceNode()
    node.SetLayoutName(name)
    node = scene.AddNode(node)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    node.SetOrientation(orientation)
    return node


def axesOf(sliceNode: Any) -> np.ndarray:
    return slicer.util.arrayFromVTKMatrix(sliceNode.GetSliceToRAS())[:3, :3].copy()


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_a_picture_has_one_view_that_lies_in_its_plane_and_all_comes_back(
    scene: Any, red: Any, tmp_path: Path, normal: int
) -> None:
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(FOUR_UP)
    slices = [addSlice(scene, *about) for about in ((views.SCAN_VIEW, "Axial"), (views.MAP_VIEW, "Axial"))]
    before = [axesOf(one) for one in slices]
    image = jobs.scan()[:, :, 4:5]
    directions = np.roll(np.eye(3), normal, axis=0)  # the picture's plane lies across another axis each time
    image.SetDirection(directions.ravel().tolist())
    film = mrmlscene.addScan(scene, image, tmp_path, "film")
    nodes = result(scene, film, tmp_path / "result", slice(0, 1))
    for beside, wanted in ((False, views.ONE_VIEW), (True, views.PICTURE_BESIDE), (False, views.ONE_VIEW)):
        views.arrange(scene, nodes.anomalyMap, beside, film)
        display.showInSlices(scene, film, nodes.anomalyMap)
        assert layout.GetViewArrangement() == wanted and views.isSideBySide(scene) == beside
        assert red.GetForegroundVolumeID() == (None if beside else nodes.anomalyMap.GetID())
        for one in slices:
            assert abs(axesOf(one)[:, 2] @ directions[:, 2]) == pytest.approx(1.0)

    other = result(scene, mrmlscene.addScan(scene, jobs.scan(), tmp_path, "head"), tmp_path / "other")
    views.handOver(scene, nodes.anomalyMap, other.anomalyMap)
    display.hideAnomalyMap(scene, nodes.anomalyMap)
    views.arrange(scene, other.anomalyMap, False)
    assert layout.GetViewArrangement() == FOUR_UP
    assert all(np.allclose(axesOf(one), axes) for one, axes in zip(slices, before, strict=True))


@pytest.mark.parametrize("beside", [False, True])
def test_a_picture_that_goes_takes_its_layout_along(
    scene: Any, scan: Any, red: Any, watch: SceneWatch, tmp_path: Path, beside: bool
) -> None:
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(FOUR_UP)
    mine = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "fused by the user")
    red.SetForegroundVolumeID(mine.GetID())
    red.SetForegroundOpacity(0.25)
    before = state(red)[1:]
    view(scene, views.MAP_VIEW)
    shown = addSlice(scene, views.SCAN_VIEW, "Axial")
    axes = axesOf(shown)
    image = jobs.scan()[:, :, 4:5]
    image.SetDirection(np.roll(np.eye(3), 1, axis=0).ravel().tolist())
    film = mrmlscene.addScan(scene, image, tmp_path, "film")
    nodes = result(scene, film, tmp_path / "result", slice(0, 1))
    views.arrange(scene, nodes.anomalyMap, beside, film)
    display.showInSlices(scene, film, nodes.anomalyMap)
    assert layout.GetViewArrangement() != FOUR_UP and not np.allclose(axesOf(shown), axes)
    scene.RemoveNode(film)
    assert layout.GetViewArrangement() == FOUR_UP and np.allclose(axesOf(shown), axes)
    assert state(red)[1:] == before


def test_a_layout_that_the_user_has_chosen_since_stays(scene: Any, scan: Any, red: Any, tmp_path: Path) -> None:
    layout = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(FOUR_UP)
    nodes = result(scene, scan, tmp_path / "result")
    views.arrange(scene, nodes.anomalyMap, True)
    layout.SetViewArrangement(CONVENTIONAL)
    views.handOver(scene, nodes.anomalyMap, None)
    assert layout.GetViewArrangement() == CONVENTIONAL
    views.arrange(scene, nodes.anomalyMap, True)
    views.handOver(scene, nodes.anomalyMap, None)
    assert layout.GetViewArrangement() == CONVENTIONAL
