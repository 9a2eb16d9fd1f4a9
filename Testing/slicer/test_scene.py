"""Results in a real scene: where they lie, what they say of themselves, and that nothing is ever half there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import vtk

import mrmlscene
import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.results.findings import findings_table, segment
from DiffusionAnomalyLib.scene import attributes, display, findingsTable, results, segmentation, volumes
from DiffusionAnomalyLib.scene.livethreshold import LiveThreshold
from DiffusionAnomalyLib.scene.results import Place, Wanted

SIZE, SPACING = (20, 24, 14), (3.0, 2.5, 6.0)


def oblique() -> np.ndarray:
    return phantom.rotation([12.0, -23.0, 37.0])


GRIDS = {
    "axial": phantom.grid(SIZE, SPACING),
    "oblique": phantom.grid(SIZE, SPACING, oblique()),
    "left-handed": phantom.grid(SIZE, SPACING, np.diag([1.0, 1.0, -1.0])),
    "sagittal": phantom.grid(SIZE, SPACING, np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])),
}
MARKED = (4, 17, 9)  # i, j, k: far from every plane of symmetry


def marked(anomaly_map: float = 3.0) -> np.ndarray:
    """The anomaly score of a few voxels around one, k j i."""
    array = np.zeros(SIZE[::-1], dtype=np.float32)
    i, j, k = MARKED
    array[k - 1 : k + 2, j - 1 : j + 2, i - 1 : i + 2] = anomaly_map - 0.5
    array[k, j, i] = anomaly_map
    return array


def noise(seed: int = 0) -> np.ndarray:
    """Anomaly scores with many components of all sizes."""
    smooth = sitk.SmoothingRecursiveGaussian(
        sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=SIZE[::-1]).astype(np.float32)), 1.0
    )
    array = sitk.GetArrayFromImage(smooth)
    return np.clip(array / array.std() * 1.5, 0, None).astype(np.float32)


@pytest.fixture
def scan(scene: Any, tmp_path: Path) -> Any:
    return mrmlscene.addScan(scene, phantom.paint(GRIDS["oblique"]), tmp_path)


def load(
    scene: Any, scan: Any, folder: Path, anomaly_map: np.ndarray | None = None, **wanted: bool
) -> results.ResultNodes:
    files = mrmlscene.writeResults(
        folder / "results", marked() if anomaly_map is None else anomaly_map, volumes.imageOf(scan)
    )
    return results.loadResults(scene, Place.of(scan), files, Wanted(**wanted))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("moved", [False, True], ids=["alone", "under a transform"])
def test_a_marked_voxel_is_where_it_was(scene: Any, tmp_path: Path, grid: sitk.Image, moved: bool) -> None:
    node = mrmlscene.addScan(scene, phantom.paint(grid), tmp_path)
    if moved:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = phantom.rotation([5.0, 6.0, 70.0]), (10.0, -20.0, 30.0)
        node.SetAndObserveTransformNodeID(mrmlscene.addTransform(scene, matrix).GetID())

    nodes = load(scene, node, tmp_path)

    expected = mrmlscene.world(node, MARKED)
    left, posterior, superior = grid.TransformIndexToPhysicalPoint(MARKED)
    if not moved:
        assert np.allclose(expected, (-left, -posterior, superior), atol=1e-6)
    for volume in (nodes.anomalyMap, nodes.labelMap):
        array = slicer.util.arrayFromVolume(volume)
        assert array[MARKED[::-1]] == array.max() > 0
        assert np.allclose(mrmlscene.world(volume, MARKED), expected, atol=1e-6)
        assert np.array_equal(volumes.ijkToRas(volume), volumes.ijkToRas(node))
        assert volume.GetTransformNodeID() == node.GetTransformNodeID()
    image = nodes.segmentation.GetBinaryLabelmapInternalRepresentation(segmentation.SEGMENT)
    inSegment = slicer.util.arrayFromSegmentInternalBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT)
    middle = np.argwhere(inSegment).mean(axis=0)[::-1] + np.array(image.GetExtent()[::2])
    matrix = slicer.vtkMatrix4x4() if hasattr(slicer, "vtkMatrix4x4") else mrmlscene.vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    local = matrix.MultiplyPoint([*middle, 1.0])[:3]
    point = [0.0, 0.0, 0.0]
    nodes.segmentation.TransformPointToWorld(local, point)
    assert np.allclose(point, expected, atol=1e-6)
    (finding,) = results.liveThresholdOf(nodes).at(nodes.threshold, 0.0).findings
    assert np.allclose(findingsTable.centre(finding, nodes.anomalyMap), expected, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_volume_goes_to_the_worker_as_it_was_read(scene: Any, tmp_path: Path, grid: sitk.Image) -> None:
    original = phantom.paint(grid)
    image = volumes.imageOf(mrmlscene.addScan(scene, original, tmp_path))
    assert image.GetSize() == original.GetSize()
    assert np.allclose(image.GetSpacing(), original.GetSpacing(), rtol=1e-12)
    assert np.allclose(image.GetDirection(), original.GetDirection(), atol=1e-12)
    assert np.allclose(image.GetOrigin(), original.GetOrigin(), atol=1e-9)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(original))


def test_segmentation_label_map_and_array_agree(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path, noise())
    labels = slicer.util.arrayFromVolume(nodes.labelMap)
    exported = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT, scan)
    assert labels.any() and not labels.all()
    assert np.array_equal(labels, exported)


@pytest.mark.parametrize("threshold", [1.0, 1.7, 2.4, 3.9, 50.0])
@pytest.mark.parametrize("minVolumeMl", [0.0, 0.3])
def test_the_live_threshold_is_the_engines(
    scene: Any, scan: Any, tmp_path: Path, threshold: float, minVolumeMl: float
) -> None:
    anomaly_map = noise()
    nodes = load(scene, scan, tmp_path, anomaly_map)

    found = results.applyThreshold(nodes, results.liveThresholdOf(nodes), threshold, minVolumeMl)

    mask, _, findings = segment(volumes.onGrid(anomaly_map, volumes.ijkToRas(scan)), threshold, minVolumeMl)
    expected = sitk.GetArrayFromImage(mask)
    assert np.array_equal(slicer.util.arrayFromVolume(nodes.labelMap), expected)
    exported = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT, scan)
    assert np.array_equal(exported, expected)
    for ours, theirs in zip(findings_table(found.findings), findings_table(findings), strict=True):
        assert {**ours, "place": ""} == {name: pytest.approx(value) for name, value in theirs.items()}
    assert nodes.table.GetNumberOfRows() == len(findings)
    assert nodes.threshold == threshold and nodes.minVolumeMl == minVolumeMl


@pytest.mark.parametrize("threshold", [1.0, 1.7, 2.4])
@pytest.mark.parametrize("margin", [None, 0.0, 0.8, 1.6, 50.0])
def test_the_live_threshold_keeps_the_peak_margin_of_the_run(
    scene: Any, scan: Any, tmp_path: Path, threshold: float, margin: float | None
) -> None:
    anomaly_map = noise()
    like = volumes.imageOf(scan)
    files = mrmlscene.writeResults(tmp_path / "results", anomaly_map, like, minVolumeMl=0.0, peakMargin=margin)
    nodes = results.loadResults(scene, Place.of(scan), files, Wanted())

    def expected(at: float, margin: float) -> np.ndarray:
        image = volumes.onGrid(anomaly_map, volumes.ijkToRas(scan))
        return sitk.GetArrayFromImage(segment(image, at, 0.0, peak_margin=margin)[0])

    assert np.array_equal(slicer.util.arrayFromVolume(nodes.labelMap), expected(2.0, margin or 0.0))
    found = results.applyThreshold(nodes, results.liveThresholdOf(nodes), threshold, 0.0)
    labels = slicer.util.arrayFromVolume(nodes.labelMap)
    assert np.array_equal(labels, expected(threshold, margin or 0.0))
    assert not (labels.astype(bool) & ~expected(threshold, 0.0).astype(bool)).any()
    assert labels.any() == (margin != 50.0) and nodes.table.GetNumberOfRows() == len(found.findings)
    assert all(finding.peak_score >= threshold + (margin or 0.0) for finding in found.findings)
    assert (np.count_nonzero(labels) < np.count_nonzero(expected(threshold, 0.0))) == bool(margin)


def test_a_result_of_an_impossible_margin_is_not_loaded(scene: Any, scan: Any, tmp_path: Path) -> None:
    files = mrmlscene.writeResults(tmp_path / "results", noise(), volumes.imageOf(scan), peakMargin=-1.0)
    before = mrmlscene.nodeIds(scene)
    with pytest.raises(InputError, match="peak margin"):
        results.loadResults(scene, Place.of(scan), files, Wanted())
    assert mrmlscene.nodeIds(scene) == before


def test_a_dragged_threshold_keeps_up_with_the_hand(scene: Any, tmp_path: Path) -> None:
    grid = phantom.grid((256, 256, 160), (0.7, 0.7, 0.9))
    random = np.random.default_rng(0)
    anomaly_map = np.kron(random.normal(size=(40, 64, 64)), np.ones((4, 4, 4))).astype(np.float32)
    anomaly_map[sitk.GetArrayViewFromImage(phantom.brain_of(grid)) == 0] = 0
    assert 50_000 < np.count_nonzero(anomaly_map >= 1) < 500_000
    node = mrmlscene.addScan(scene, grid, tmp_path)
    nodes = load(scene, node, tmp_path, np.clip(anomaly_map, 0, None))
    live = results.liveThresholdOf(nodes)
    spent = []
    for threshold in (1.5, 2.0, 2.5, 3.0, 2.2):
        start = time.process_time()  # the time of this process alone, whatever else the machine is doing
        results.applyThreshold(nodes, live, threshold, 0.05)
        spent.append(time.process_time() - start)
    assert np.median(spent) < 0.1, spent


def test_scores_are_shown_from_the_threshold_to_4_and_transparent_below(scene: Any, scan: Any, tmp_path: Path) -> None:
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    nodes = load(scene, scan, tmp_path)
    display.showInSlices(scene, scan, nodes.anomalyMap)
    shown = nodes.anomalyMap.GetDisplayNode()
    assert (shown.GetWindowLevelMin(), shown.GetWindowLevelMax()) == (1.0, 4.0)
    assert shown.GetApplyThreshold() and shown.GetLowerThreshold() == nodes.threshold == 2.0
    assert not shown.GetAutoWindowLevel() and not shown.GetAutoThreshold()
    assert composite.GetBackgroundVolumeID() == scan.GetID()
    assert composite.GetForegroundVolumeID() == nodes.anomalyMap.GetID()
    assert composite.GetForegroundOpacity() == 0.5


def test_a_map_takes_the_views_only_from_its_own_scan_or_from_nothing(scene: Any, scan: Any, tmp_path: Path) -> None:
    other = mrmlscene.addScan(scene, phantom.paint(GRIDS["oblique"]), tmp_path, "other")
    assert display.isInView(scene, scan)
    red, green = (scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode") for _ in range(2))
    assert display.isInView(scene, scan)
    red.SetBackgroundVolumeID(other.GetID())
    assert not display.isInView(scene, scan)
    green.SetBackgroundVolumeID(scan.GetID())
    assert display.isInView(scene, scan)
    green.SetBackgroundVolumeID(None)
    scene.RemoveNode(other)
    assert display.isInView(scene, scan)


def test_the_colour_scale_comes_and_goes_and_leaves_with_the_result(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    display.showLegend(nodes.anomalyMap, False)
    assert scene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode") is None
    display.showLegend(nodes.anomalyMap, True)
    legend = scene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
    assert legend.GetVisibility() and legend.GetPrimaryDisplayNode() is nodes.anomalyMap.GetDisplayNode()
    assert (legend.GetNumberOfLabels(), legend.GetLabelFormat() % 3) == (4, "3")
    display.showLegend(nodes.anomalyMap, False)
    assert not legend.GetVisibility()
    assert nodes.anomalyMap.GetDisplayNode().GetWindowLevelMin() == 1.0  # still the volume's own display
    results.removeResults(scene, nodes)
    assert scene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode") is None


def test_the_colour_scale_is_no_larger_in_a_large_view(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    composite, view = slicer.vtkMRMLSliceCompositeNode(), slicer.vtkMRMLSliceNode()
    for node in (composite, view):
        node.SetLayoutName("Red")
    composite, view = scene.AddNode(composite), scene.AddNode(view)
    display.showInSlices(scene, scan, nodes.anomalyMap)
    for height, expected in ((300, 90), (800, 120), (1600, 120)):
        view.SetDimensions(height, height, 1)
        display.showLegend(nodes.anomalyMap, True)
        legend = scene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
        assert legend.GetSize()[1] * height == pytest.approx(expected)
    legend.SetSize(0.1, 0.5)
    for height in (1600, 800):
        view.SetDimensions(height, height, 1)
        display.showLegend(nodes.anomalyMap, True)
        assert legend.GetSize() == (0.1, 0.5)  # as the user wants it


def coloursOf(nodes: results.ResultNodes) -> np.ndarray:
    table = nodes.anomalyMap.GetDisplayNode().GetColorNode().GetLookupTable()
    return np.array([table.GetTableValue(index)[:3] for index in range(256)])


def scoreOf(index: int) -> float:
    return 1 + 3 * index / 255


@pytest.mark.parametrize("threshold", [1.0, 1.8, 3.4, 4.0, 9.0])
@pytest.mark.parametrize("below", [False, True], ids=["hidden below", "shown below"])
def test_the_threshold_is_marked_on_the_colour_scale_and_what_is_below_hidden(
    scene: Any, scan: Any, tmp_path: Path, threshold: float, below: bool
) -> None:
    nodes = load(scene, scan, tmp_path)
    plain = display._lookup(256)
    display.showBelow(nodes.anomalyMap, below, nodes.threshold)
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), threshold, 0.0)
    shown, rgb = nodes.anomalyMap.GetDisplayNode(), coloursOf(nodes)
    assert shown.GetLowerThreshold() == (1.0 if below else threshold)
    white = np.flatnonzero((rgb == 1).all(axis=1))
    assert 1 <= len(white) <= 5 and abs(scoreOf(white[-1]) - min(threshold, 4.0)) < 0.01
    assert np.allclose(rgb[white[-1] + 1 :], plain[white[-1] + 1 :], atol=1e-2)
    dimmed = rgb[: white[0]].sum(axis=1) < 0.5 * plain[: white[0]].sum(axis=1)
    assert not dimmed.any() if below else dimmed.all()


def test_two_results_mark_their_own_thresholds_and_take_their_colours_along(
    scene: Any, scan: Any, tmp_path: Path
) -> None:
    first, second = load(scene, scan, tmp_path / "1"), load(scene, scan, tmp_path / "2")
    names = [nodes.anomalyMap.GetDisplayNode().GetColorNode().GetName() for nodes in (first, second)]
    assert names == ["Anomaly score", "Anomaly score 2"]
    before = coloursOf(first)
    results.applyThreshold(second, results.liveThresholdOf(second), 2.9, 0.0)
    assert np.array_equal(coloursOf(first), before) and not np.array_equal(coloursOf(second), before)
    tables = scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode")
    results.removeResults(scene, second)
    assert scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode") == tables - 1


def test_colours_of_the_users_choice_stay(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    other = scene.GetFirstNodeByName("Rainbow") or scene.GetFirstNodeByName("Grey")
    nodes.anomalyMap.GetDisplayNode().SetAndObserveColorNodeID(other.GetID())
    before = other.GetLookupTable().GetTableValue(100)
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 2.9, 0.0)
    assert nodes.anomalyMap.GetDisplayNode().GetColorNode() is other
    assert other.GetLookupTable().GetTableValue(100) == before
    assert nodes.anomalyMap.GetDisplayNode().GetLowerThreshold() == 2.9


def test_the_colour_scale_is_in_one_view_that_shows_the_map(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    ids = []
    for name in ("Red", "Green"):
        for node in (slicer.vtkMRMLSliceNode(), slicer.vtkMRMLSliceCompositeNode()):
            node.SetLayoutName(name)
            node = scene.AddNode(node)
            ids += [node.GetID()] if node.IsA("vtkMRMLSliceNode") else []
    display.showInSlices(scene, scan, nodes.anomalyMap)
    display.showLegend(nodes.anomalyMap, True)
    legend = scene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
    assert list(legend.GetViewNodeIDs()) == ids[:1]
    display.views.sliceComposites(scene)[0].SetForegroundVolumeID(None)
    display.showLegend(nodes.anomalyMap, True)
    assert list(legend.GetViewNodeIDs()) == ids[1:]


def test_the_cameras_turn_to_a_finding_from_where_they_look(scene: Any) -> None:
    camera = scene.AddNewNodeByClass("vtkMRMLCameraNode")
    camera.SetPosition(0.0, 500.0, 10.0)
    camera.SetFocalPoint(0.0, 0.0, 10.0)
    display.lookAt(scene, (5.0, 6.0, 7.0))
    assert camera.GetFocalPoint() == (5.0, 6.0, 7.0) and camera.GetPosition() == (5.0, 506.0, 7.0)


def test_the_colours_of_the_map_grow_lighter_in_even_steps(scene: Any, scan: Any, tmp_path: Path) -> None:
    node = display.mapColors(load(scene, scan, tmp_path).anomalyMap)
    rgb = display._lookup(256)
    assert node.GetNumberOfColors() == len(rgb)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(np.maximum(luminance, 216 / 24389)) - 16  # CIE L*
    steps = np.diff(lightness[::15])
    assert (steps > 0).all()
    assert steps.max() < 2.5 * steps.min()


def test_the_segment_has_the_codes_that_dicom_asks_for(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    segment = nodes.segmentation.GetSegmentation().GetSegment(segmentation.SEGMENT)
    entry = slicer.vtkSlicerTerminologyEntry()
    assert slicer.vtkSlicerTerminologiesModuleLogic().DeserializeTerminologyEntry(segment.GetTerminology(), entry)
    category, kind, region = entry.GetCategoryObject(), entry.GetTypeObject(), entry.GetRegionObject()
    assert (category.GetCodingSchemeDesignator(), category.GetCodeValue()) == ("SCT", "49755003")
    assert category.GetCodeMeaning() == "Morphologically Abnormal Structure"
    assert (kind.GetCodeValue(), kind.GetCodeMeaning()) == ("52988006", "Lesion")
    assert (region.GetCodeValue(), region.GetCodeMeaning()) == ("12738006", "Brain")
    kind, name = vtk.mutable(""), vtk.mutable("")
    assert segment.GetTag("DICOM.SegmentAlgorithmType", kind) and str(kind) == "AUTOMATIC"
    assert segment.GetTag("DICOM.SegmentAlgorithmName", name) and str(name) == "DiffusionAnomaly guided tiny 0.1.0"


def test_results_lie_beside_the_scan_in_its_study(scene: Any, scan: Any, tmp_path: Path) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(scan) or hierarchy.CreateItem(study, scan), study)
    nodes = load(scene, scan, tmp_path)
    for node in nodes.all:
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    reference = nodes.segmentation.GetNodeReference(nodes.segmentation.GetReferenceImageGeometryReferenceRole())
    assert reference is scan


def test_every_node_tells_how_it_was_made(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    assert len(nodes.all) == 4
    for node in nodes.all:
        told = {name: node.GetAttribute(f"{attributes.PREFIX}{name}") for name in node_facts()}
        assert told == node_facts() | {"InputNodeID": scan.GetID()}
        assert node.GetNodeReference(attributes.INPUT) is scan
        assert attributes.document(node)["options"]["seed"] == 7


def node_facts() -> dict[str, str]:
    return {
        "Method": "guided",
        "Model": "tiny",
        "ModelSHA256": "cd" * 32,
        "Steps": "10",
        "Seed": "7",
        "Threshold": "2.0",
        "EngineVersion": "0.1.0",
        "Device": "cpu",
        "Date": "2026-01-02T03:04:05+00:00",
        "InputNodeID": "",
    }


@pytest.mark.parametrize("left_out", ["labelMap", "segmentation"])
def test_one_form_of_the_mask_can_be_left_out(scene: Any, scan: Any, tmp_path: Path, left_out: str) -> None:
    nodes = load(scene, scan, tmp_path, **{left_out: False})
    assert getattr(nodes, left_out) is None
    assert len(nodes.all) == 3
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 2.8, 0.0)
    assert nodes.table.GetNumberOfRows() == 1


def test_the_table_holds_what_the_engine_measured(scene: Any, scan: Any, tmp_path: Path) -> None:
    anomaly_map = noise(3)
    nodes = load(scene, scan, tmp_path, anomaly_map)
    _, _, findings = segment(volumes.onGrid(anomaly_map, volumes.ijkToRas(scan)), 2.0, 0.05)
    assert nodes.table.GetNumberOfRows() == len(findings) > 3
    table = nodes.table.GetTable()
    for row, finding in enumerate(findings):
        values = [table.GetColumnByName(name).GetValue(row) for name, _, _ in findingsTable.COLUMNS]
        assert values[0] == str(finding.id)
        assert values[1:4] == pytest.approx([finding.volume_ml, finding.peak_score, finding.mean_score])
        assert values[4:7] == pytest.approx(finding.centroid_ras)
        assert tuple(values[7:9]) == finding.slices
    assert nodes.table.GetColumnUnitLabel("Volume") == "ml"


@pytest.mark.parametrize("moved", ["before the run", "after the run"])
def test_table_and_panel_tell_places_as_the_views_do(scene: Any, scan: Any, tmp_path: Path, moved: str) -> None:
    turned = np.eye(4)
    turned[:3, :3], turned[:3, 3] = phantom.rotation([5.0, 6.0, 70.0]), (10.0, -20.0, 30.0)
    transform = mrmlscene.addTransform(scene, turned)
    if moved == "before the run":
        scan.SetAndObserveTransformNodeID(transform.GetID())
    nodes = load(scene, scan, tmp_path)
    found = results.liveThresholdOf(nodes).at(nodes.threshold, 0.0)
    if moved == "after the run":
        scan.SetAndObserveTransformNodeID(transform.GetID())
        assert results.keepTogether(nodes) == ""
        assert not findingsTable.isInPlace(nodes.table, nodes.anomalyMap, found)
        findingsTable.fillTable(nodes.table, nodes.anomalyMap, results.liveThresholdOf(nodes), found)
    assert findingsTable.isInPlace(nodes.table, nodes.anomalyMap, found)
    expected = mrmlscene.world(scan, MARKED)
    table = nodes.table.GetTable()
    assert [table.GetColumnByName(axis).GetValue(0) for axis in "RAS"] == pytest.approx(expected)
    sides = [
        f"{abs(value):.0f} {side[int(value < 0)]}" for value, side in zip(expected, ("RL", "AP", "SI"), strict=True)
    ]
    assert ", ".join(sides) in findingsTable.inWords(found.findings[0], nodes.anomalyMap)
    for node in (nodes.anomalyMap, nodes.labelMap, nodes.segmentation):
        assert node.GetTransformNodeID() == transform.GetID()


def test_a_scan_that_was_hardened_or_cropped_since_is_said_to_have_moved(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    assert results.keepTogether(nodes) == ""
    scan.SetOrigin(1.0, 2.0, 3.0)
    assert "the result lies where the scan was" in results.keepTogether(nodes)


def test_a_name_stays_with_its_finding_when_the_threshold_moves(scene: Any, scan: Any, tmp_path: Path) -> None:
    anomaly_map = marked(3.0)
    anomaly_map[1:4, 2:5, 14:19] = 3.6
    nodes = load(scene, scan, tmp_path, anomaly_map)
    live = results.liveThresholdOf(nodes)
    names = lambda: [  # noqa: E731
        nodes.table.GetTable().GetColumnByName("Name").GetValue(row) for row in range(nodes.table.GetNumberOfRows())
    ]
    found = results.applyThreshold(nodes, live, 2.0, 0.0)
    assert names() == ["1", "2"]
    findingsTable.setName(nodes.table, nodes.anomalyMap, live, found, 1, "left parietal")
    assert names() == ["1", "left parietal"]
    results.applyThreshold(nodes, live, 3.3, 0.0)
    assert names() == ["1"]
    found = results.applyThreshold(nodes, live, 2.7, 0.0)
    assert names() == ["1", "left parietal"]
    findingsTable.setName(nodes.table, nodes.anomalyMap, live, found, 1, "")
    assert names() == ["1", "2"]


def test_a_scene_file_brings_everything_back(scene: Any, scan: Any, tmp_path: Path) -> None:
    anomaly_map = noise()
    nodes = load(scene, scan, tmp_path, anomaly_map)
    live = results.liveThresholdOf(nodes)
    found = results.applyThreshold(nodes, live, 2.6, 0.1)
    findingsTable.setName(nodes.table, nodes.anomalyMap, live, found, 0, '5" ä;\tfirst:\n50%')
    facts = {name: nodes.anomalyMap.GetAttribute(name) for name in nodes.anomalyMap.GetAttributeNames()}
    before = slicer.util.arrayFromVolume(nodes.labelMap).copy()
    saved = tmp_path / "saved.mrb"
    assert scene.WriteToMRB(str(saved))
    scene.Clear(0)
    assert results.resultsIn(scene) == []

    scene.SetURL(str(saved))
    assert scene.ReadFromMRB(str(saved))

    (again,) = results.resultsIn(scene)
    assert again.inputNode.GetName() == "scan"
    assert {name: again.anomalyMap.GetAttribute(name) for name in again.anomalyMap.GetAttributeNames()} == facts
    assert np.array_equal(slicer.util.arrayFromVolume(again.anomalyMap), anomaly_map)
    assert np.array_equal(slicer.util.arrayFromVolume(again.labelMap), before)
    exported = slicer.util.arrayFromSegmentBinaryLabelmap(again.segmentation, segmentation.SEGMENT, again.inputNode)
    assert np.array_equal(exported, before)
    assert (again.threshold, again.minVolumeMl) == (2.6, 0.1)
    assert again.table.GetTable().GetColumnByName("Name").GetValue(0) == "5'' ä; first: 50%"
    assert again.table.GetTable().GetColumnByName("Volume").GetValue(0) == pytest.approx(found.findings[0].volume_ml)
    assert attributes.warnings(again.anomalyMap) == attributes.warnings(again.table) != []
    shown = again.anomalyMap.GetDisplayNode()
    assert (shown.GetWindowLevelMin(), shown.GetWindowLevelMax()) == (1.0, 4.0)
    assert shown.GetColorNode() is again.anomalyMap.GetNodeReference(display.COLORS)
    assert shown.GetLowerThreshold() == 2.6

    # and the threshold is live again, below and above the saved one
    for threshold in (1.2, 3.1):
        results.applyThreshold(again, results.liveThresholdOf(again), threshold, 0.1)
        expected = sitk.GetArrayFromImage(
            segment(volumes.onGrid(anomaly_map, volumes.ijkToRas(again.anomalyMap)), threshold, 0.1)[0]
        )
        exported = slicer.util.arrayFromSegmentBinaryLabelmap(again.segmentation, segmentation.SEGMENT, again.inputNode)
        assert np.array_equal(exported, expected)
        assert np.array_equal(slicer.util.arrayFromVolume(again.labelMap), expected)


@pytest.mark.parametrize(
    "broken", ["makeSegmentation", "fillSegmentation", "makeTable", "showAnomalyMap", "placeBeside", "makeLabelMap"]
)
def test_a_failure_leaves_the_scene_as_it_was(
    scene: Any, scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("planted")

    before = mrmlscene.nodeIds(scene)
    monkeypatch.setattr(results, broken, fail)
    with pytest.raises(RuntimeError, match="planted"):
        load(scene, scan, tmp_path)
    assert mrmlscene.nodeIds(scene) == before
    assert not scene.IsBatchProcessing()


def test_copies_of_nodes_are_none_of_the_result(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    copies = []
    for node in (nodes.anomalyMap, nodes.labelMap, nodes.segmentation):
        copy = scene.AddNewNodeByClass(node.GetClassName(), "copy")
        copy.CopyContent(node)
        copy.Copy(node)
        copies.append(copy)
    ours = next(found for found in results.resultsIn(scene) if found.anomalyMap is nodes.anomalyMap)
    assert ours.all == nodes.all
    assert [found.all for found in results.resultsIn(scene) if found.anomalyMap is copies[0]] == [[copies[0]]]
    before = slicer.util.arrayFromVolume(copies[1]).copy()
    results.applyThreshold(ours, results.liveThresholdOf(ours), 3.9, 0.0)
    assert not slicer.util.arrayFromVolume(ours.labelMap).any()
    assert np.array_equal(slicer.util.arrayFromVolume(copies[1]), before) and before.any()
    results.removeResults(scene, ours)
    assert all(scene.GetNodeByID(copy.GetID()) is copy for copy in copies)


def test_a_segmentation_edited_on_another_grid_comes_back_to_the_scans(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    other = mrmlscene.addScan(scene, phantom.paint(GRIDS["sagittal"]), tmp_path, "other")
    nodes.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(other)
    painted = slicer.vtkOrientedImageData()  # as the Segment Editor leaves it
    painted.SetDimensions(other.GetImageData().GetDimensions())
    painted.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    painted.GetPointData().GetScalars().Fill(1)
    painted.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(volumes.ijkToRas(other)))
    edited = nodes.segmentation.GetSegmentation().GetSegment(segmentation.SEGMENT)
    edited.AddRepresentation(nodes.segmentation.GetSegmentation().GetSourceRepresentationName(), painted)
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 2.5, 0.0)
    exported = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentation.SEGMENT, scan)
    assert np.array_equal(exported, slicer.util.arrayFromVolume(nodes.labelMap)) and exported.any()


def test_a_label_map_cropped_by_hand_is_left_alone_and_the_rest_follows(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    cropped = np.ones((2, 3, 4), dtype=np.uint8)
    slicer.util.updateVolumeFromArray(nodes.labelMap, cropped)
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 3.9, 0.0)
    assert np.array_equal(slicer.util.arrayFromVolume(nodes.labelMap), cropped)
    assert nodes.table.GetNumberOfRows() == 0


def test_only_the_result_that_is_shown_is_outlined(scene: Any, scan: Any, tmp_path: Path) -> None:
    first, second = load(scene, scan, tmp_path / "1"), load(scene, scan, tmp_path / "2")
    assert first.anomalyMap.GetName() != second.anomalyMap.GetName()
    for shown in (first, second, None):
        results.outlineOnly(scene, shown)
        seen = [bool(nodes.segmentation.GetDisplayNode().GetVisibility()) for nodes in (first, second)]
        assert seen == [nodes is shown for nodes in (first, second)]


def test_a_threshold_below_any_score_that_means_something_is_raised_and_said(
    scene: Any, scan: Any, tmp_path: Path
) -> None:
    nodes = load(scene, scan, tmp_path, noise())
    results.applyThreshold(nodes, results.liveThresholdOf(nodes), 0.5, 0.0)
    assert nodes.threshold == 1.0
    marked = slicer.util.arrayFromVolume(nodes.labelMap).sum()
    assert marked == (slicer.util.arrayFromVolume(nodes.anomalyMap) >= 1).sum()


def test_another_scan_with_the_same_id_and_grid_does_not_get_the_results(scene: Any, scan: Any, tmp_path: Path) -> None:
    place = Place.of(scan)
    assert place.find(scene) is scan
    name = scan.GetID()
    scene.Clear(0)
    another = mrmlscene.addScan(scene, phantom.paint(GRIDS["oblique"]), tmp_path, "another patient")
    assert another.GetID() == name and Place.of(another) == Place(name, "another patient", place.size, place.matrix)
    with pytest.raises(InputError, match="was deleted"):
        place.find(scene)


def test_what_was_found_is_not_taken_for_the_brain(scene: Any, scan: Any, tmp_path: Path) -> None:
    nodes = load(scene, scan, tmp_path)
    for mask in (nodes.labelMap, nodes.segmentation):
        with pytest.raises(InputError, match="not the brain"):
            volumes.maskOf(mask, "", scan)


def test_results_of_a_deleted_volume_are_refused(scene: Any, scan: Any, tmp_path: Path) -> None:
    place = Place.of(scan)
    files = mrmlscene.writeResults(tmp_path / "results", marked(), volumes.imageOf(scan))
    scene.RemoveNode(scan)
    before = mrmlscene.nodeIds(scene)
    with pytest.raises(InputError, match=r"scan was deleted.*Load it again"):
        results.loadResults(scene, place, files)
    assert mrmlscene.nodeIds(scene) == before


def test_results_of_a_volume_that_has_moved_are_refused(scene: Any, scan: Any, tmp_path: Path) -> None:
    place = Place.of(scan)
    files = mrmlscene.writeResults(tmp_path / "results", marked(), volumes.imageOf(scan))
    scan.SetOrigin(1.0, 2.0, 3.0)
    with pytest.raises(InputError, match="moved"):
        results.loadResults(scene, place, files)


def test_a_changed_or_foreign_file_is_refused(scene: Any, scan: Any, tmp_path: Path) -> None:
    files = mrmlscene.writeResults(tmp_path / "results", marked(), volumes.imageOf(scan))
    before = mrmlscene.nodeIds(scene)
    good = files["heat"].read_bytes()
    files["heat"].write_bytes(good[:-7] + b"changed")
    with pytest.raises(InputError, match="not what the worker wrote"):
        results.loadResults(scene, Place.of(scan), files)
    other = mrmlscene.writeResults(tmp_path / "other", np.zeros((3, 4, 5)), sitk.Image(5, 4, 3, sitk.sitkFloat32))
    with pytest.raises(InputError, match="voxels"):
        results.loadResults(scene, Place.of(scan), other)
    assert mrmlscene.nodeIds(scene) == before


def test_fifty_results_made_and_removed_leave_nothing_behind(scene: Any, scan: Any, tmp_path: Path) -> None:
    files = mrmlscene.writeResults(tmp_path / "results", marked(), volumes.imageOf(scan))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)

    def round_trip() -> None:
        nodes = results.loadResults(scene, Place.of(scan), files)
        live = results.liveThresholdOf(nodes)
        results.applyThreshold(nodes, live, 2.7, 0.0)
        results.removeResults(scene, nodes)

    def left() -> tuple[set[str], int, list[bool]]:
        events = (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeRemovedEvent)
        observed = [bool(scan.HasObserver(event)) for event in (*events, "ModifiedEvent")]
        return mrmlscene.nodeIds(scene), hierarchy.GetNumberOfItems(), observed

    round_trip()  # the node of the colours stays
    before, references = left(), scan.GetReferenceCount()
    for _ in range(50):
        round_trip()
    assert left() == before
    assert scan.GetReferenceCount() <= references


def test_volumes_that_cannot_be_analysed_say_why(scene: Any, scan: Any, tmp_path: Path) -> None:
    assert volumes.problemWith(scan) == ""
    assert "Choose" in volumes.problemWith(None)
    assert "no voxels" in volumes.problemWith(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))
    assert "is a result of this module" in volumes.problemWith(load(scene, scan, tmp_path).anomalyMap)
    assert "not a scalar volume" in volumes.problemWith(scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels"))
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    scan.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(sheared))
    assert "right angles" in volumes.problemWith(scan)
    with pytest.raises(InputError, match="right angles"):
        volumes.imageOf(scan)


def test_a_line_describes_the_volume(scene: Any, tmp_path: Path) -> None:
    node = mrmlscene.addScan(scene, phantom.paint(GRIDS["oblique"]), tmp_path, "patient_FLAIR")
    line = volumes.describe(node)
    assert "20 × 24 × 14" in line and "3 × 2.5 × 6 mm" in line and "FLAIR" in line and "tilted by" in line
    sagittal = mrmlscene.addScan(scene, phantom.paint(GRIDS["sagittal"]), tmp_path, "odd")
    assert "sagittal" in volumes.describe(sagittal) and "contrast unknown" in volumes.describe(sagittal)
    film = mrmlscene.addScan(scene, phantom.paint(GRIDS["axial"])[:, :, 4:5], tmp_path, "film")
    assert "a single picture" in volumes.describe(film) and "axial" not in volumes.describe(film)


@pytest.mark.parametrize("kind", ["label map", "segmentation"])
@pytest.mark.parametrize("moved", [False, True], ids=["alone", "under a transform"])
def test_a_brain_mask_reaches_the_worker_voxel_by_voxel(
    scene: Any, scan: Any, tmp_path: Path, kind: str, moved: bool
) -> None:
    brain = sitk.GetArrayFromImage(phantom.brain_of(GRIDS["oblique"]))
    labels = segmentation.makeLabelMap(scene, "brain", scan)
    slicer.util.arrayFromVolume(labels)[:] = brain
    slicer.util.arrayFromVolumeModified(labels)
    mask, segmentId = labels, ""
    if kind == "segmentation":
        mask = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "brain")
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, mask)
        segmentId = mask.GetSegmentation().GetNthSegmentID(0)
    if moved:
        transform = mrmlscene.addTransform(scene, np.array([[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]]))
        for node in (scan, mask):
            node.SetAndObserveTransformNodeID(transform.GetID())
    image = volumes.maskOf(mask, segmentId, scan)
    assert np.array_equal(sitk.GetArrayFromImage(image), brain)
    assert image.GetOrigin() == volumes.imageOf(scan).GetOrigin()


def test_a_brain_mask_of_another_scan_or_of_nothing_is_refused(scene: Any, scan: Any, tmp_path: Path) -> None:
    other = mrmlscene.addScan(scene, phantom.paint(GRIDS["axial"]), tmp_path, "other")
    with pytest.raises(InputError, match="grid"):
        volumes.maskOf(segmentation.makeLabelMap(scene, "brain", other), "", scan)
    with pytest.raises(InputError, match="marks no voxel"):
        volumes.maskOf(segmentation.makeLabelMap(scene, "brain", scan), "", scan)
    with pytest.raises(InputError, match="no segment"):
        volumes.maskOf(scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty"), "", scan)


def test_an_anomaly_map_of_zeros_has_no_finding_at_any_threshold() -> None:
    live = LiveThreshold(sitk.Image(5, 6, 7, sitk.sitkFloat32))
    found = live.at(1.0, 0.0)
    assert found.findings == [] and not found.mask.any()
    assert found.mask.shape == tuple(part.stop - part.start for part in live.box)
