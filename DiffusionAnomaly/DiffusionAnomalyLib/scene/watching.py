"""What happens to a scene outside of the panel while a result is in it, told at once.

A scan or a result that is about to be deleted in *Data* leaves the views first, see ``views``; whoever shows results is
told of what may have changed them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vtk

from . import attributes, views
from .results import resultsIn

# Before Slicer's own selectors hear of it, which would choose another volume for the one that goes.
FIRST = 100.0


class SceneWatch:
    """Observes a scene until it is closed.

    Args:
        scene: with the results.
    """

    def __init__(self, scene: Any, onChanged: Callable[[], None] = lambda: None) -> None:
        self._scene = scene
        self._onChanged = onChanged
        self._tags = [scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._onAboutToBeRemoved, FIRST)]

    def close(self) -> None:
        """Observe no more."""
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._tags.clear()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onAboutToBeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        if self._scene.IsClosing() or not node.IsA("vtkMRMLVolumeNode"):
            return
        role = node.GetAttribute(attributes.ROLE)
        if role is None:
            views.releaseScan(self._scene, node)
        elif role == attributes.MAP:
            views.release(self._scene, node)
        else:
            for nodes in resultsIn(self._scene):
                if node in nodes.all:
                    views.putBack(self._scene, nodes.anomalyMap, [node])
