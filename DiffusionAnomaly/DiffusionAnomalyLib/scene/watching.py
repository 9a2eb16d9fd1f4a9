"""What happens to a scene outside of the panel while a result is in it, told at once.

A scan or a result that is about to be deleted in *Data* leaves the views first, see ``views``; whoever shows results is
told of what may have changed them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk

from . import attributes, views
from .results import resultsIn

# Before Slicer's own selectors hear of it, which would choose another volume for the one that goes.
FIRST = 100.0

BROWSER = "vtkMRMLSequenceBrowserNode"


class SceneWatch:
    """Observes a scene until it is closed.

    Args:
        scene: with the results.
        onChanged: called when a sequence shows another frame, or what ``follow`` has been told to follow was moved.
    """

    def __init__(self, scene: Any, onChanged: Callable[[], None] = lambda: None) -> None:
        self._scene = scene
        self._onChanged = onChanged
        self._tags = [
            scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._onAboutToBeRemoved, FIRST),
            scene.AddObserver(scene.NodeAddedEvent, self._onAdded),
        ]
        self._browsers: list[tuple[Any, int]] = []
        self._followed: tuple[Any, int] | None = None
        for browser in views.nodesOf(scene, BROWSER):
            self._observe(browser)

    def close(self) -> None:
        """Observe no more."""
        self.follow(None)
        for node, tag in self._browsers:
            node.RemoveObserver(tag)
        self._browsers.clear()
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._tags.clear()

    def follow(self, node: Any) -> None:
        """Tell when this node, and no longer an earlier one, is moved by any transform above it; None for none."""
        if self._followed is not None:
            if self._followed[0] is node:
                return
            self._followed[0].RemoveObserver(self._followed[1])
        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self._followed = None if node is None else (node, node.AddObserver(event, self._onModified))

    def _onModified(self, caller: Any, event: Any) -> None:
        self._onChanged()

    def _observe(self, browser: Any) -> None:
        self._browsers.append((browser, browser.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onModified)))

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onAdded(self, caller: Any, event: Any, node: Any) -> None:
        if node.IsA(BROWSER):
            self._observe(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onAboutToBeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        for entry in [entry for entry in self._browsers if entry[0] is node]:
            node.RemoveObserver(entry[1])
            self._browsers.remove(entry)
        if self._followed is not None and self._followed[0] is node:
            self.follow(None)
        if self._scene.IsClosing() or not node.IsA("vtkMRMLVolumeNode"):
            return
        role = node.GetAttribute(attributes.ROLE)
        if role is None:
            views.releaseScan(self._scene, node)
        elif role == attributes.MAP:
            views.release(self._scene, node)
            legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
            if legend is not None:
                self._scene.RemoveNode(legend)
        else:
            for nodes in resultsIn(self._scene):
                if node in nodes.all:
                    views.putBack(self._scene, nodes.anomalyMap, [node])
            views.clear(self._scene, node)
