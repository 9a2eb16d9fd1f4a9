"""How an anomaly map is shown over the scan: as a heat map, perceptually uniform from 1 to 4, and nothing below 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from ..translation import tr as _
from . import views
from .livethreshold import LOWEST

SHOWN_FROM, SHOWN_TO = LOWEST, 4.0
OPACITY = 0.5

COLOR_NODE = "DiffusionAnomaly heat"  # by this name it is found in saved scenes

# Inferno by Nathaniel Smith and Stefan van der Walt (CC0), 25 even samples of its upper three quarters: equal steps
# look equally large, and black, which a dark scan would hide, is left out.
INFERNO = (
    "57106e 64156e 71196e 7d1e6d 8a226a 972766 a32c61 b0315b bc3754 c73e4c d24644 db503b e45a31 eb6628 "
    "f1731d f68013 f98e09 fb9d07 fcac11 fbbc21 f9cb35 f5db4c f2ea69 f3f68a fcffa4"
)


def mapColors(scene: Any) -> Any:
    """The colours of a heat map; one node for all anomaly maps of a scene, made when it is not there."""
    node = scene.GetFirstNodeByName(COLOR_NODE)
    if node is not None and node.IsA("vtkMRMLColorTableNode"):
        return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetName(COLOR_NODE)
    node.SetTypeToUser()
    node.SetAttribute("Category", "Continuous")
    node.SetDescription("Inferno without its darkest quarter, for anomaly scores from 1 to 4")
    table = _lookup(256)
    node.SetNumberOfColors(len(table))
    for index, (red, green, blue) in enumerate(table):
        score = SHOWN_FROM + (SHOWN_TO - SHOWN_FROM) * index / (len(table) - 1)
        node.SetColor(index, f"{score:.2f}", red, green, blue, 1.0)
    node.SetHideFromEditors(False)
    return scene.AddNode(node)


def showAnomalyMap(node: Any) -> None:
    """Give an anomaly map its display: range 1 to 4 whatever it holds, transparent below 1."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(SHOWN_FROM, SHOWN_TO)
    display.SetAutoThreshold(False)
    display.SetLowerThreshold(SHOWN_FROM)
    display.SetUpperThreshold(1e6)
    display.SetApplyThreshold(True)
    display.SetInterpolate(True)
    display.SetAndObserveColorNodeID(mapColors(node.GetScene()).GetID())


def showInSlices(scene: Any, background: Any, foreground: Any, opacity: float = OPACITY) -> None:
    """Put an anomaly map over the scan in every slice view; what they show now is noted and comes back with it gone."""
    views.remember(scene, foreground)
    for composite in views.sliceComposites(scene):
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID())
        composite.SetForegroundOpacity(opacity)


def isInView(scene: Any, background: Any) -> bool:
    """Whether a slice view shows this scan, or none shows any: then nothing else would be pushed aside."""
    shown = {composite.GetBackgroundVolumeID() for composite in views.sliceComposites(scene)}
    return background.GetID() in shown or not any(map(scene.GetNodeByID, filter(None, shown)))


def hideAnomalyMap(scene: Any, anomalyMap: Any) -> None:
    """Take an anomaly map and its colour scale out of the slice views, which show again what they showed before."""
    showLegend(anomalyMap, False)
    views.putBack(scene, anomalyMap)


def showLegend(node: Any, shown: bool) -> None:
    """Show or hide the scale of an anomaly map's colours in the views that show it."""
    if node.GetVolumeDisplayNode() is None:  # deleted by hand
        return
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    if legend is None and shown:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
        legend.SetTitleText(_("Score"))
        legend.SetLabelFormat("%.0f")
        legend.SetNumberOfLabels(round(SHOWN_TO - SHOWN_FROM) + 1)
        legend.SetSize(0.06, 0.3)
        legend.SetPosition(0.96, 0.5)
        for text in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
            text.SetFontSize(12)
    if legend is not None:
        legend.SetVisibility(shown)


def setOpacity(scene: Any, foreground: Any, opacity: float) -> None:
    """Change the opacity of an anomaly map where it is shown."""
    for composite in views.sliceComposites(scene):
        if composite.GetForegroundVolumeID() == foreground.GetID():
            composite.SetForegroundOpacity(opacity)


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
