"""How an anomaly map is shown over the scan: as a heat map, perceptually uniform from 1 to 4.

Below the threshold nothing is shown unless it is asked for, and nothing below 1 at all. Each map has colours of its
own, in which its threshold is marked, so that the colour scale in the views says what is in the mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from vtk.util.numpy_support import numpy_to_vtk

from ..translation import tr as _
from . import attributes, views
from .livethreshold import LOWEST

SHOWN_FROM, SHOWN_TO = LOWEST, 4.0
OPACITY = 0.5

EARLIER_COLORS = "DiffusionAnomaly heat"  # by name, in scenes of versions whose maps shared their colours
COLORS = f"{attributes.PREFIX}Colors"  # a node reference
SHOWN_BELOW = f"{attributes.PREFIX}ShowBelow"

LEGEND_SHARE, LEGEND_PIXELS = 0.3, 120  # the height of the colour scale: of its view, and at most
COUNT = 256  # of colours
MARK = 4  # colours below the threshold that are white: a line on the scale, and around what is in the mask
DIMMED = 0.25  # brightness of colours that are not shown

# Inferno by Nathaniel Smith and Stefan van der Walt (CC0), 25 even samples of its upper three quarters: equal steps
# look equally large, and black, which a dark scan would hide, is left out.
INFERNO = (
    "57106e 64156e 71196e 7d1e6d 8a226a 972766 a32c61 b0315b bc3754 c73e4c d24644 db503b e45a31 eb6628 "
    "f1731d f68013 f98e09 fb9d07 fcac11 fbbc21 f9cb35 f5db4c f2ea69 f3f68a fcffa4"
)


def mapColors(anomalyMap: Any) -> Any:
    """The colours of a map, made when they are not there; they go when it is removed."""
    node = anomalyMap.GetNodeReference(COLORS)
    if node is not None:
        return node
    scene = anomalyMap.GetScene()
    node = slicer.vtkMRMLColorTableNode()
    node.SetName(_nameForColors(scene))
    node.SetTypeToUser()
    node.SetAttribute("Category", "Continuous")
    node.SetAttribute(attributes.ROLE, "colors")
    node.SetDescription("Inferno without its darkest quarter, for anomaly scores from 1 to 4")
    table = _lookup(COUNT)
    node.SetNumberOfColors(COUNT)
    for index, (red, green, blue) in enumerate(table):
        score = SHOWN_FROM + (SHOWN_TO - SHOWN_FROM) * index / (COUNT - 1)
        node.SetColor(index, f"{score:.2f}", red, green, blue, 1.0)
    node.SetHideFromEditors(False)
    node = scene.AddNode(node)
    anomalyMap.SetNodeReferenceID(COLORS, node.GetID())
    return node


def _nameForColors(scene: Any) -> str:
    """Short, since it stands in Slicer's selectors of colours; a number tells the maps of a scene apart."""
    taken = {node.GetName() for node in views.nodesOf(scene, "vtkMRMLColorTableNode")}
    name, number = _("Anomaly score"), 1
    while name in taken:
        number += 1
        name = _("Anomaly score {number}").format(number=number)
    return name


def showAnomalyMap(node: Any, threshold: float) -> None:
    """Give an anomaly map its display: range 1 to 4 whatever it holds, transparent below the threshold."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(SHOWN_FROM, SHOWN_TO)
    display.SetAutoThreshold(False)
    display.SetUpperThreshold(1e6)
    display.SetApplyThreshold(True)
    display.SetInterpolate(True)
    display.SetAndObserveColorNodeID(mapColors(node).GetID())
    showThreshold(node, threshold)


def showThreshold(anomalyMap: Any, threshold: float) -> None:
    """Mark a threshold in the map's own colours, and hide what is below it unless that is asked for.

    Colours that the user has chosen instead are the user's: they are not marked.
    """
    display = anomalyMap.GetVolumeDisplayNode()
    if display is None:  # deleted by hand
        return
    if display.GetColorNode() is not None and display.GetColorNode().GetName() == EARLIER_COLORS:
        display.SetAndObserveColorNodeID(mapColors(anomalyMap).GetID())
    below = isShownBelow(anomalyMap)
    modifying = display.StartModify()  # colours and threshold in one event: each has all views drawn anew
    display.SetLowerThreshold(SHOWN_FROM if below else threshold)
    if (colors := anomalyMap.GetNodeReference(COLORS)) is not None:
        _markColors(colors, threshold, below)
    display.EndModify(modifying)


def _markColors(colors: Any, threshold: float, below: bool) -> None:
    """A white line at the threshold; darker below it when nothing is shown there."""
    table = _lookup(COUNT)
    place = round((min(threshold, SHOWN_TO) - SHOWN_FROM) / (SHOWN_TO - SHOWN_FROM) * (COUNT - 1))
    if not below:
        table[:place] *= DIMMED
    table[max(0, place - MARK) : place + 1] = 1.0
    modifying = colors.StartModify()
    rgba = np.full((COUNT, 4), 255, dtype=np.uint8)
    rgba[:, :3] = np.rint(table * 255)
    colors.GetLookupTable().SetTable(numpy_to_vtk(rgba, deep=True))
    colors.SetColor(COUNT - 1, *table[-1].tolist(), 1.0)  # what the table file holds has changed
    colors.Modified()
    colors.EndModify(modifying)


def isShownBelow(anomalyMap: Any) -> bool:
    """Whether scores below the threshold are shown too."""
    return anomalyMap.GetAttribute(SHOWN_BELOW) == "1"


def showBelow(anomalyMap: Any, shown: bool, threshold: float) -> None:
    """Show or hide scores below the threshold."""
    if shown != isShownBelow(anomalyMap):
        anomalyMap.SetAttribute(SHOWN_BELOW, "1" if shown else "0")
        showThreshold(anomalyMap, threshold)


def showInSlices(scene: Any, background: Any, foreground: Any, opacity: float = OPACITY) -> None:
    """Put an anomaly map over the scan in every slice view; what they show now is noted and comes back with it gone.

    In the layout with the scan beside the map, the scan's own view shows it alone, and the two are linked.
    """
    views.remember(scene, foreground)
    isBeside = views.isSideBySide(scene)
    for composite in views.sliceComposites(scene):
        view = composite.GetLayoutName()
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(None if isBeside and view == views.SCAN_VIEW else foreground.GetID())
        composite.SetForegroundOpacity(opacity)
        if isBeside and view in (views.SCAN_VIEW, views.MAP_VIEW):
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)


def isInView(scene: Any, background: Any) -> bool:
    """Whether a slice view shows this scan, or none shows any: then nothing else would be pushed aside."""
    shown = {composite.GetBackgroundVolumeID() for composite in views.sliceComposites(scene)}
    return background.GetID() in shown or not any(map(scene.GetNodeByID, filter(None, shown)))


def hideAnomalyMap(scene: Any, anomalyMap: Any) -> None:
    """Take an anomaly map and its colour scale out of the slice views, which show again what they showed before."""
    showLegend(anomalyMap, False)
    views.putBack(scene, anomalyMap)


def showLegend(node: Any, shown: bool) -> None:
    """Show or hide the scale of an anomaly map's colours, in one of the views that show it."""
    if node.GetVolumeDisplayNode() is None:  # deleted by hand
        return
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    if legend is None and shown:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
        legend.SetTitleText(_("Score"))
        legend.SetLabelFormat("%.0f")
        legend.SetNumberOfLabels(round(SHOWN_TO - SHOWN_FROM) + 1)
        legend.SetPosition(0.96, 0.5)
        for text in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
            text.SetFontSize(12)
    if legend is None:
        return
    legend.SetVisibility(shown)
    view = _viewOfLegend(node.GetScene(), node)
    if view is not None:
        # Slicer scales the letters with the height: in a view as large as the window they would cover the scan.
        height = min(LEGEND_SHARE, LEGEND_PIXELS / max(1, node.GetScene().GetNodeByID(view).GetDimensions()[1]))
        if abs(legend.GetSize()[1] - height) > 1e-3:
            legend.SetSize(0.2 * height, height)
        if legend.GetViewNodeIDs() != (view,):
            legend.SetViewNodeIDs((view,))


def _viewOfLegend(scene: Any, anomalyMap: Any) -> str | None:
    """The first slice view of the layout that shows a map, by its id; None when none does."""
    showing = {
        composite.GetLayoutName()
        for composite in views.sliceComposites(scene)
        if composite.GetForegroundVolumeID() == anomalyMap.GetID()
    }
    nodes = [node for node in views.nodesOf(scene, "vtkMRMLSliceNode") if node.GetLayoutName() in showing]
    # Those of the layout first; a view that was made for the map alone draws no scale.
    nodes.sort(key=lambda node: (not node.IsMappedInLayout(), node.GetLayoutName() == views.MAP_VIEW))
    return nodes[0].GetID() if nodes else None


def setOpacity(scene: Any, foreground: Any, opacity: float) -> None:
    """Change the opacity of an anomaly map where it is shown."""
    for composite in views.sliceComposites(scene):
        if composite.GetForegroundVolumeID() == foreground.GetID():
            composite.SetForegroundOpacity(opacity)


def lookAt(scene: Any, ras: tuple[float, float, float]) -> None:
    """Turn the cameras of the 3-D views around a point, from where they look and as far away as they are."""
    for camera in views.nodesOf(scene, "vtkMRMLCameraNode"):
        moved = np.subtract(ras, camera.GetFocalPoint())
        modifying = camera.StartModify()
        camera.SetPosition(*np.add(camera.GetPosition(), moved))
        camera.SetFocalPoint(*ras)
        camera.EndModify(modifying)


def jumpTo(scene: Any, ras: tuple[float, float, float]) -> None:
    """Let all slice views show a point."""
    for sliceNode in views.nodesOf(scene, "vtkMRMLSliceNode"):
        sliceNode.JumpSliceByOffsetting(*ras)


def _lookup(count: int) -> np.ndarray:
    """Red, green and blue in [0, 1], ``(count, 3)``."""
    points = np.array([[int(entry[i : i + 2], 16) for i in (0, 2, 4)] for entry in INFERNO.split()]) / 255
    places = np.linspace(0, 1, len(points))
    wanted = np.linspace(0, 1, count)
    return np.stack([np.interp(wanted, places, points[:, channel]) for channel in range(3)], axis=1)
