"""Bringing up MRML without an application, and putting scans and worker results into it."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

_LOGICS: list[Any] = []


@contextmanager
def newScene() -> Iterator[Any]:
    """A scene that is ``slicer.mrmlScene`` while the body runs."""
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    segmentations.SetMRMLApplicationLogic(application)
    segmentations.SetMRMLScene(scene)
    application.SetModuleLogic("Segmentations", segmentations)
    colors = slicer.vtkSlicerColorLogic()  # registers the class of the colour scale
    colors.SetMRMLScene(scene)
    others = [slicer.vtkSlicerSequencesLogic(), slicer.vtkSlicerMarkupsLogic()]  # register their classes
    for logic in others:
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
    # `slicer.util` asks for the logic by this name, as it does in the application.
    slicer.modules = type(
        "Modules", (), {"segmentations": type("Module", (), {"logic": lambda self: segmentations})()}
    )()
    slicer.app = None
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    cache = tempfile.TemporaryDirectory()
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.GetCacheManager().SetRemoteCacheDirectory(cache.name)
    remote.SetMRMLScene(scene)
    data = slicer.vtkDataIOManagerLogic()
    data.SetMRMLApplicationLogic(application)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    application.SetMRMLSceneDataIO(scene, remote, data)
    _LOGICS[:] = [application, segmentations, colors, remote, data, *others]
    try:
        yield scene
    finally:
        scene.Clear(1)
        _LOGICS.clear()
        slicer.mrmlScene = None
        gc.collect()
        cache.cleanup()


def addScan(scene: Any, image: sitk.Image, folder: Path, name: str = "scan") -> Any:
    """A volume node as Slicer makes it from a file: written by ITK, read by MRML's own reader."""
    path = folder / f"{name}.nrrd"
    sitk.WriteImage(image, os.fspath(path))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    storage = slicer.vtkMRMLNRRDStorageNode()
    storage.SetFileName(os.fspath(path))
    assert storage.ReadData(node)
    node.CreateDefaultDisplayNodes()
    return node


def addLabels(scene: Any, image: sitk.Image, like: Any, name: str) -> Any:
    """A label map on the grid of a volume node."""
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", name)
    matrix = vtk.vtkMatrix4x4()
    like.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    return node


def addTransform(scene: Any, matrix: np.ndarray) -> Any:
    """A linear transform node."""
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


def addSequence(scene: Any, scans: Sequence[Any], unit: str = "s") -> tuple[Any, Any]:
    """A sequence of volumes at 0, 1.5, 3 … and what Slicer makes of it: the volume that shows one, and the browser."""
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "dynamic")
    sequence.SetIndexUnit(unit)
    for number, scan in enumerate(scans):
        sequence.SetDataNodeAtValue(scan, f"{1.5 * number:g}")
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    showFrame(browser, 0)
    return browser.GetProxyNode(sequence), browser


def showFrame(browser: Any, number: int) -> None:
    """Let the volume of a sequence show another frame."""
    browser.SetSelectedItemNumber(number)
    logic = next(logic for logic in _LOGICS if logic.IsA("vtkSlicerSequencesLogic"))
    logic.UpdateProxyNodesFromSequences(browser)


def writeResults(
    folder: Path,
    anomaly_map: np.ndarray,
    like: sitk.Image,
    *,
    threshold: float = 2.0,
    minVolumeMl: float = 0.05,
    peakMargin: float | None = None,
) -> dict[str, Path]:
    """Anomaly scores and provenance as the worker writes them, without a margin as earlier versions did."""
    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(anomaly_map.astype(np.float32))
    image.CopyInformation(like)
    files = {"heat": folder / "heat.nrrd", "provenance": folder / "provenance.json"}
    sitk.WriteImage(image, os.fspath(files["heat"]))
    document = {
        "purpose": "For research use only. Not for diagnosis.",
        "date_utc": "2026-01-02T03:04:05+00:00",
        "input": {"sha256": "ab" * 32},
        "method": "guided",
        "model": {"name": "tiny", "version": "0.1.0", "sha256": "cd" * 32, "license": "CC0-1.0"},
        "options": {"steps": 10, "seed": 7, "min_volume_ml": minVolumeMl},
        "threshold": {"heat": threshold, "source": "chosen by the user"},
        "device": {"used": "cpu", "name": "a processor"},
        "versions": {"diffusion_anomaly": "0.1.0"},
        "warnings": ['The scan\'s name says T1; it is "odd" – ä, <b>&amp;</b>; a:b;c%20'],
        "files_sha256": {"heat.nrrd": hashlib.sha256(files["heat"].read_bytes()).hexdigest()},
    }
    if peakMargin is not None:
        document["options"]["peak_margin"] = peakMargin
    files["provenance"].write_text(json.dumps(document), encoding="utf-8")
    return files


def nodeIds(scene: Any) -> set[str]:
    """Ids of all nodes."""
    return {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}


def world(node: Any, ijk: Sequence[float]) -> np.ndarray:
    """Where a voxel lies in the world, parent transforms included, by MRML's own calls."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    local = matrix.MultiplyPoint([*map(float, ijk), 1.0])[:3]
    point = [0.0, 0.0, 0.0]
    node.TransformPointToWorld(local, point)
    return np.array(point)
