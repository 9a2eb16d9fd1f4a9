"""The finding that is looked at, marked by a box around it in slices and 3-D, and the brain as a veil around it.

The box is for the eye alone: it cannot be picked, is not saved, and goes with its result.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk

from diffusion_anomaly.results.findings import Finding

from ..translation import tr as _
from . import attributes, views
from .results import BRAIN_SURFACE, ResultNodes, removeNode
from .volumes import ijkToRas

ROLE = "selection"
COLOR = (0.25, 0.75, 1.0)
MARGIN_VOXELS = 1.5  # so that the box lies around the outline, not on it

SURFACE_COLOR, SURFACE_OPACITY = (0.85, 0.80, 0.75), 0.15
SURFACE_TRIANGLES_LEFT = 0.2


def mark(scene: Any, nodes: ResultNodes, finding: Finding) -> Any:
    """Put the box around a finding; the one box of the scene."""
    box = _boxIn(scene) or _make(scene)
    first, last = finding.bounding_box
    cube = vtk.vtkCubeSource()
    cube.SetBounds(
        [
            bound
            for low, high in zip(first, last, strict=True)
            for bound in (low - 0.5 - MARGIN_VOXELS, high + 0.5 + MARGIN_VOXELS)
        ]
    )
    toRas = vtk.vtkTransform()
    toRas.SetMatrix(slicer.util.vtkMatrixFromArray(ijkToRas(nodes.anomalyMap)))
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetTransform(toRas)
    placed.SetInputConnection(cube.GetOutputPort())
    placed.Update()
    modifying = box.StartModify()
    box.SetAndObserveTransformNodeID(nodes.anomalyMap.GetTransformNodeID())
    box.SetAndObservePolyData(placed.GetOutput())
    box.SetNodeReferenceID(attributes.ANOMALY_MAP, nodes.anomalyMap.GetID())
    box.GetDisplayNode().SetVisibility(True)
    box.EndModify(modifying)
    return box


def unmark(scene: Any, anomalyMap: Any = None) -> None:
    """Take the box away; with an anomaly map, only from around a finding of that one."""
    box = _boxIn(scene)
    if box is not None and anomalyMap in (None, box.GetNodeReference(attributes.ANOMALY_MAP)):
        removeNode(scene, box)


def show(scene: Any, shown: bool) -> None:
    """Show or hide the box, where there is one."""
    box = _boxIn(scene)
    if box is not None:
        box.GetDisplayNode().SetVisibility(shown)


def showBrain(scene: Any, nodes: ResultNodes, shown: bool) -> None:
    """Show or hide the surface of the brain that was found, made when it is first asked for."""
    model = nodes.brainSurface
    if model is None and shown and nodes.brain is not None:
        model = _surface(scene, nodes)
    if model is not None and model.GetDisplayNode() is not None:
        model.GetDisplayNode().SetVisibility(shown)


def _boxIn(scene: Any) -> Any:
    boxes = views.nodesOf(scene, "vtkMRMLModelNode")
    return next((box for box in boxes if box.GetAttribute(attributes.ROLE) == ROLE), None)


def _make(scene: Any) -> Any:
    """A model and no region of interest: it has no handles, and its faces lie along the voxels whatever the axes."""
    box = slicer.vtkMRMLModelNode()
    box.SetName(_("Selected finding"))
    box.SetAttribute(attributes.ROLE, ROLE)
    box.SetHideFromEditors(True)
    box.SetSaveWithScene(False)
    box.SetSelectable(False)
    box = scene.AddNode(box)
    box.CreateDefaultDisplayNodes()
    display = box.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetColor(*COLOR)
    display.SetRepresentation(display.WireframeRepresentation)
    display.SetLighting(False)
    display.SetLineWidth(2)
    display.SetVisibility2D(True)
    display.SetSliceIntersectionThickness(2)
    return box


def _surface(scene: Any, nodes: ResultNodes) -> Any:
    """The brain mask's surface, smoothed, with few triangles, in the mask's own coordinates."""
    image = vtk.vtkImageData()
    image.DeepCopy(nodes.brain.GetImageData())
    image.SetOrigin(0, 0, 0)
    image.SetSpacing(1, 1, 1)
    padded = vtk.vtkImageConstantPad()  # a brain that reaches the edge is closed there
    padded.SetInputData(image)
    extent = image.GetExtent()
    padded.SetOutputWholeExtent([bound + (1 if index % 2 else -1) for index, bound in enumerate(extent)])
    surface = vtk.vtkFlyingEdges3D()
    surface.SetInputConnection(padded.GetOutputPort())
    surface.SetValue(0, 0.5)
    fewer = vtk.vtkDecimatePro()
    fewer.SetInputConnection(surface.GetOutputPort())
    fewer.SetTargetReduction(1 - SURFACE_TRIANGLES_LEFT)
    smooth = vtk.vtkWindowedSincPolyDataFilter()
    smooth.SetInputConnection(fewer.GetOutputPort())
    smooth.SetNumberOfIterations(15)
    smooth.SetPassBand(0.05)
    placed = vtk.vtkTransformPolyDataFilter()
    toRas = vtk.vtkTransform()
    toRas.SetMatrix(slicer.util.vtkMatrixFromArray(ijkToRas(nodes.brain)))
    placed.SetTransform(toRas)
    placed.SetInputConnection(smooth.GetOutputPort())
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(placed.GetOutputPort())
    normals.SplittingOff()
    normals.Update()
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", _("{name} surface").format(name=nodes.brain.GetName()))
    model.SetAndObservePolyData(normals.GetOutput())
    model.SetAndObserveTransformNodeID(nodes.brain.GetTransformNodeID())
    model.CreateDefaultDisplayNodes()
    display = model.GetDisplayNode()
    display.SetColor(*SURFACE_COLOR)
    display.SetOpacity(SURFACE_OPACITY)
    display.SetVisibility2D(False)
    model.SetAttribute(attributes.ROLE, BRAIN_SURFACE)
    model.SetAttribute(attributes.RUN, nodes.anomalyMap.GetAttribute(attributes.RUN))
    attributes.tie(nodes.anomalyMap, model, BRAIN_SURFACE)
    nodes.brainSurface = model
    return model
