"""What a reader sees: slices as Slicer blends them, without a screen, judged by their colours and kept for a look.

The scan is the sample that comes with the repository, a patient with multiple sclerosis; the anomaly map is what the
default model makes of it in the real worker, and the outline is the segmentation's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import vtk
from vtk.util.numpy_support import vtk_to_numpy

import jobs
import mrmlscene
from DiffusionAnomalyLib.detection import Detection, Request
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.sampledata import SHA256, sampleFile
from DiffusionAnomalyLib.scene import display, findingsTable, results, segmentation, volumes
from DiffusionAnomalyLib.settings import MemorySettings

SIZE = 512


@pytest.fixture(scope="module")
def sample() -> sitk.Image:
    return sitk.Cast(sitk.ReadImage(str(sampleFile())), sitk.sitkFloat32)


def test_the_sample_is_the_file_whose_hash_is_registered() -> None:
    import hashlib

    assert hashlib.sha256(sampleFile().read_bytes()).hexdigest() == SHA256


class View:
    """A slice view of a scene, drawn into memory."""

    def __init__(self, scene: Any, orientation: str, scan: Any) -> None:
        self.node = slicer.vtkMRMLSliceNode()
        self.node.SetName(orientation)
        self.node.SetLayoutName(orientation)
        scene.AddNode(self.node)
        axes = vtk.vtkMatrix3x3()
        getattr(slicer.vtkMRMLSliceNode, f"Get{orientation}SliceToRASMatrix")(axes)
        if not self.node.HasSliceOrientationPreset(orientation):
            self.node.AddSliceOrientationPreset(orientation, axes)
        self.node.SetOrientation(orientation)
        self.node.SetDimensions(SIZE, SIZE, 1)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLScene(scene)
        self.logic.SetSliceNode(self.node)
        self.composite = self.logic.GetSliceCompositeNode()
        self.composite.SetBackgroundVolumeID(scan.GetID())
        self.logic.FitSliceToBackground(SIZE, SIZE)

    def picture(self) -> np.ndarray:
        """What is blended, (SIZE, SIZE, 3) uint8, first row on top."""
        blend = self.logic.GetBlend()
        blend.Update()
        image = blend.GetOutput()
        width, height, _ = image.GetDimensions()
        colours = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
        return colours[::-1, :, :3].copy()

    def mask(self, labels: Any) -> np.ndarray:
        """The slice of a label map, (SIZE, SIZE) bool, by resampling in world coordinates."""
        toRas = vtk.vtkMatrix4x4()
        toRas.DeepCopy(self.node.GetXYToRAS())
        pixels = slicer.util.arrayFromVTKMatrix(toRas)
        indices = np.linalg.inv(volumes.ijkToRas(labels)) @ pixels
        x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
        points = np.stack([x.ravel(), y.ravel(), np.zeros(SIZE * SIZE), np.ones(SIZE * SIZE)])
        i, j, k = np.rint((indices @ points)[:3]).astype(int)
        array = slicer.util.arrayFromVolume(labels)
        inside = np.all([(a >= 0) & (a < n) for a, n in zip((k, j, i), array.shape, strict=True)], axis=0)
        found = np.zeros(SIZE * SIZE, dtype=bool)
        found[inside] = array[k[inside], j[inside], i[inside]] != 0
        return found.reshape(SIZE, SIZE)[::-1]


def coloured(picture: np.ndarray) -> np.ndarray:
    """Pixels that are not grey."""
    low, high = picture.min(axis=2).astype(int), picture.max(axis=2).astype(int)
    return high - low > 12


def outline(mask: np.ndarray) -> np.ndarray:
    """The edge of a mask, two pixels wide."""
    inner = mask.copy()
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def save(picture: np.ndarray, path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(picture), isVector=True), str(path))


def test_the_anomaly_map_is_coloured_where_scores_are_high_and_nowhere_else(
    scene: Any, tmp_path: Path, pictures: Path, sample: sitk.Image
) -> None:
    scan = mrmlscene.addScan(scene, sample, tmp_path, "FLAIR")
    values = sitk.GetArrayViewFromImage(sample)
    scan.GetDisplayNode().SetAutoWindowLevel(False)
    scan.GetDisplayNode().SetWindowLevelMinMax(0.0, float(np.percentile(values[values > 0], 99.5)))
    detection = Detection(scene, tmp_path, PipeProcess, MemorySettings(), list(jobs.WORKER), jobs.environment())
    nodes = detection.wait(detection.add(scan, Request()))
    views = {orientation: View(scene, orientation, scan) for orientation in ("Axial", "Coronal", "Sagittal")}
    largest = results.liveThresholdOf(nodes).at(nodes.threshold, nodes.minVolumeMl).findings[0]
    display.jumpTo(scene, findingsTable.centre(largest, nodes.anomalyMap))
    plain = {orientation: view.picture() for orientation, view in views.items()}
    display.showInSlices(scene, scan, nodes.anomalyMap)

    shown = []
    for orientation, view in views.items():
        before, picture = plain[orientation], view.picture()
        assert not coloured(before).any() and before.max() > 100
        lesion, marked = view.mask(nodes.labelMap), coloured(picture)
        # At the rim the map falls below the threshold between two voxels, and is hidden from there on.
        inside = lesion & ~grown(~lesion)
        assert lesion.sum() > 50 and inside.any()
        assert marked[inside].mean() > 0.95 and marked[lesion].mean() > 0.85
        assert not (marked & ~grown(before.max(axis=2) > 8)).any()
        assert np.array_equal(picture[~grown(marked)], before[~grown(marked)])
        picture[outline(lesion)] = np.array(segmentation.COLOR) * 255
        shown.append(picture)
    assert len({picture.tobytes() for picture in shown}) == 3
    save(np.concatenate(shown, axis=1), pictures / "slicer-views.png")


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask and its neighbours, for the rim where colours are blended."""
    padded = np.pad(mask, 2)
    return np.any(
        [padded[2 + y : 2 + y + SIZE, 2 + x : 2 + x + SIZE] for y in range(-2, 3) for x in range(-2, 3)], axis=0
    )
