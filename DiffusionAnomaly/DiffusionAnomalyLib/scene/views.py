"""What the slice views and the layout showed before a result came, so that it can be put back when the result goes.

Slicer's own selectors take some other volume of the scene for one that is removed: another exam would then be blended
over the scan. So every layer that shows a node of a result is given back before the node goes. What was shown is kept
with the anomaly map, volumes as node references, so that it also holds in a scene that was saved and opened again.
Nothing else of a user's volume is ever changed here: its window and level, its colours and its threshold are its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import slicer
import vtk

from . import attributes

SHOWN_BEFORE = f"{attributes.PREFIX}ShownBefore"
_REFERENCE = f"{attributes.PREFIX}Before."

LAYERS = ("Background", "Foreground", "Label")
SETTINGS = ("ForegroundOpacity", "LabelOpacity", "Compositing", "LinkedControl", "HotLinkedControl")

# Slicer's own layouts have numbers below 100, and those of other extensions often a few hundred.
SIDE_BY_SIDE, PICTURE_BESIDE = 7340, 7341
ONE_VIEW = 6  # Slicer's own with the red slice view alone
SCAN_VIEW, MAP_VIEW = "Red", "AnomalyMap"


def _view(tag: str, orientation: str, label: str, colour: str) -> str:
    properties = {"orientation": orientation, "viewlabel": label, "viewcolor": colour}
    lines = (f'<property name="{name}" action="default">{value}</property>' for name, value in properties.items())
    return f'<item><view class="vtkMRMLSliceNode" singletontag="{tag}">{"".join(lines)}</view></item>'


_SIDE_BY_SIDE = (
    '<layout type="vertical" split="true"><item splitSize="600"><layout type="horizontal">'
    + _view(SCAN_VIEW, "Axial", "R", "#F34A33")
    + _view(MAP_VIEW, "Axial", "A", "#FB9D07")
    + '</layout></item><item splitSize="400"><layout type="horizontal">'
    + _view("Green", "Coronal", "G", "#6EB04B")
    + _view("Yellow", "Sagittal", "Y", "#EDD54C")
    + '<item><view class="vtkMRMLViewNode" singletontag="1"><property name="viewlabel" action="default">1</property>'
    "</view></item></layout></item></layout>"
)

_PICTURE_BESIDE = (
    '<layout type="horizontal" split="true">'
    + _view(SCAN_VIEW, "Axial", "R", "#F34A33")
    + _view(MAP_VIEW, "Axial", "A", "#FB9D07")
    + "</layout>"
)
_DESCRIPTIONS = {SIDE_BY_SIDE: _SIDE_BY_SIDE, PICTURE_BESIDE: _PICTURE_BESIDE}

# Cosine between a picture and a slice view, from which the view shows the picture as it lies.
PARALLEL = 1 - 1e-6


def sliceComposites(scene: Any) -> list[Any]:
    """What each slice view shows."""
    return nodesOf(scene, "vtkMRMLSliceCompositeNode")


def nodesOf(scene: Any, className: str) -> list[Any]:
    """All nodes of a class."""
    nodes = scene.GetNodesByClass(className)
    nodes.UnRegister(None)  # the collection comes with a reference that nobody else takes
    return [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]


def remember(scene: Any, anomalyMap: Any) -> None:
    """Note what every slice view shows that does not show this anomaly map yet.

    Where another result is shown, what was there before that one counts.
    """
    state = _stateOf(anomalyMap)
    for composite in sliceComposites(scene):
        shown = scene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        view = _nameOf(composite)
        if shown is anomalyMap or (view in state["views"] and _isAlone(scene, composite)):
            continue
        earlier = _stateOf(shown) if _isAnomalyMap(shown) else {}
        if view in earlier.get("views", {}):
            state["views"][view] = earlier["views"][view]
            for layer in LAYERS:
                _refer(anomalyMap, view, layer, _referred(shown, view, layer))
        else:
            state["views"][view] = {name: getattr(composite, f"Get{name}")() for name in SETTINGS}
            for layer in LAYERS:
                volume = _volumeIn(composite, layer)
                _refer(anomalyMap, view, layer, None if _isAnomalyMap(volume) else volume)
        if "layout" not in state and "layout" in earlier:
            state["layout"] = earlier["layout"]
    anomalyMap.SetAttribute(SHOWN_BEFORE, json.dumps(state))


def putBack(scene: Any, anomalyMap: Any, parts: Iterable[Any] = (), *, background: bool = False) -> bool:
    """Give the layers that an anomaly map or another part of its result has taken to what they showed before.

    A layer that the user has given to something else since is left alone.

    Args:
        scene: with the views.
        anomalyMap: knows what was shown before.
        parts: of its result.
        background: whether another scan that was shown before comes back too.

    Returns:
        Whether a view showed the anomaly map over something.
    """
    own = {node.GetID() for node in (anomalyMap, *parts)}
    scan = anomalyMap.GetNodeReference(attributes.INPUT)
    views = _stateOf(anomalyMap)["views"]
    isShown = any(one.GetForegroundVolumeID() == anomalyMap.GetID() for one in sliceComposites(scene))
    for composite in sliceComposites(scene):
        isAlone = isShown and _isAlone(scene, composite)
        if not isAlone and not any(getattr(composite, f"Get{layer}VolumeID")() in own for layer in LAYERS):
            continue
        view, before = _nameOf(composite), views.get(_nameOf(composite))
        wasShown = isAlone or composite.GetForegroundVolumeID() in own
        modifying = composite.StartModify()
        for layer in LAYERS:
            if getattr(composite, f"Get{layer}VolumeID")() in own or (isAlone and layer == "Foreground"):
                node = _referred(anomalyMap, view, layer)
                if node is None and layer == "Background":
                    node = scan
                _show(composite, layer, node)
        if wasShown:
            if background and scan is not None and composite.GetBackgroundVolumeID() == scan.GetID():
                _show(composite, "Background", _referred(anomalyMap, view, "Background") or scan)
            for name, value in (before or {"ForegroundOpacity": 0.0}).items():
                getattr(composite, f"Set{name}")(value)
        composite.EndModify(modifying)
    return isShown


def release(scene: Any, anomalyMap: Any, parts: Iterable[Any] = ()) -> None:
    """Before a result goes: all its layers, and the layout, show again what they showed before it came."""
    if putBack(scene, anomalyMap, parts, background=True):
        restoreLayout(scene, anomalyMap)


def clear(scene: Any, node: Any) -> None:
    """Before a volume of ours goes: the layers that show it are empty, or show the scan that it belongs to."""
    scan = node.GetNodeReference(attributes.INPUT)
    for composite in sliceComposites(scene):
        for layer in LAYERS:
            if getattr(composite, f"Get{layer}VolumeID")() == node.GetID():
                _show(composite, layer, scan if layer == "Background" else None)


def releaseScan(scene: Any, scan: Any) -> None:
    """Before a scan goes: its anomaly maps leave the views, where they would lie over another scan.

    The layout that was chosen for them goes too.
    """
    for composite in sliceComposites(scene):
        shown = scene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        if _isAnomalyMap(shown) and shown.GetNodeReference(attributes.INPUT) is scan:
            putBack(scene, shown)
            restoreLayout(scene, shown)


def chooseLayout(scene: Any, anomalyMap: Any, arrangement: int) -> None:
    """Choose another layout for a result, and note which one there was."""
    layout = _layoutNode(scene)
    if layout is None or layout.GetViewArrangement() == arrangement:
        return
    state = _stateOf(anomalyMap)
    now, noted = layout.GetViewArrangement(), state.get("layout", {})
    before = noted["before"] if noted.get("chosen") == now else now
    state["layout"] = {"before": before, "chosen": arrangement}
    anomalyMap.SetAttribute(SHOWN_BEFORE, json.dumps(state))
    layout.SetViewArrangement(arrangement)


def arrange(scene: Any, anomalyMap: Any, beside: bool, picture: Any = None) -> None:
    """Choose the layout for a result, or the one that there was; ``showInSlices`` then fills it.

    Args:
        scene: with the views.
        anomalyMap: of the result.
        beside: whether the scan is wanted alone in one view, beside the map in another.
        picture: the scan if it is a single picture: it has one view, since the others could show but its edge.
    """
    layout = _layoutNode(scene)
    if layout is None:
        return
    for number, description in _DESCRIPTIONS.items():
        if not layout.IsLayoutDescription(number):
            layout.AddLayoutDescription(number, description)
    now, noted = layout.GetViewArrangement(), _stateOf(anomalyMap).get("layout", {})
    alone, sideBySide = (None, SIDE_BY_SIDE) if picture is None else (ONE_VIEW, PICTURE_BESIDE)
    wanted = sideBySide if beside else alone
    if wanted != now and isSideBySide(scene):
        putBack(scene, anomalyMap)  # while it is known that the scan's view was emptied here
    if wanted is not None and wanted != now:
        chooseLayout(scene, anomalyMap, wanted)
    elif wanted is None and (now in _DESCRIPTIONS or now == noted.get("chosen")):
        restoreLayout(scene, anomalyMap)
    if picture is None:
        _turnBack(scene, anomalyMap)
    else:
        _turnTo(scene, anomalyMap, picture)


def isSideBySide(scene: Any) -> bool:
    """Whether the scan is shown alone beside the map now."""
    layout = _layoutNode(scene)
    return layout is not None and layout.GetViewArrangement() in _DESCRIPTIONS


def handOver(scene: Any, earlier: Any, later: Any) -> None:
    """What was noted of the layout goes from one anomaly map to the next one that is shown.

    For none, the views and then the layout show again what they showed before.
    """
    if later is None:
        putBack(scene, earlier)  # while it is known that the scan's view was emptied here
        restoreLayout(scene, earlier)
        return
    state, next_ = _stateOf(earlier), _stateOf(later)
    handed = {name: state.pop(name) for name in ("layout", "turned") if name in state}
    if handed:
        earlier.SetAttribute(SHOWN_BEFORE, json.dumps(state))
        later.SetAttribute(SHOWN_BEFORE, json.dumps({**handed, **next_}))


def confine(scene: Any, display: Any) -> None:
    """Keep what a display node shows out of the view that shows the scan alone, while there is one."""
    ids: list[str] = []
    if isSideBySide(scene):
        nodes = [*nodesOf(scene, "vtkMRMLSliceNode"), *nodesOf(scene, "vtkMRMLViewNode")]
        ids = [node.GetID() for node in nodes if node.GetLayoutName() != SCAN_VIEW]
    if list(display.GetViewNodeIDs()) != ids:
        display.SetViewNodeIDs(ids)


def restoreLayout(scene: Any, anomalyMap: Any) -> None:
    """Back to the layout that there was, unless the user has chosen another one since."""
    _turnBack(scene, anomalyMap)
    layout, state = _layoutNode(scene), _stateOf(anomalyMap)
    chosen = state.pop("layout", None)
    if chosen is None:
        return
    anomalyMap.SetAttribute(SHOWN_BEFORE, json.dumps(state))
    if layout is not None and layout.GetViewArrangement() == chosen["chosen"]:
        layout.SetViewArrangement(chosen["before"])


def _turnTo(scene: Any, anomalyMap: Any, picture: Any) -> None:
    """Turn the views that show a picture into its plane, and note how they were."""
    matrix = vtk.vtkMatrix4x4()
    picture.GetIJKToRASMatrix(matrix)
    axes = slicer.util.arrayFromVTKMatrix(matrix)[:3, :3]
    thin = int(np.argmin(picture.GetImageData().GetDimensions()))
    normal = axes[:, thin] / np.linalg.norm(axes[:, thin])
    plane = ("Sagittal", "Coronal", "Axial")[int(np.argmax(np.abs(normal)))]
    state = _stateOf(anomalyMap)
    for node in nodesOf(scene, "vtkMRMLSliceNode"):
        if node.GetLayoutName() not in (SCAN_VIEW, MAP_VIEW):
            continue
        before = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
        if abs(before[:3, 2] @ normal) >= PARALLEL:
            continue
        state.setdefault("turned", {}).setdefault(node.GetLayoutName(), before.ravel().tolist())
        node.SetOrientation(plane)
        node.RotateToVolumePlane(picture)
    anomalyMap.SetAttribute(SHOWN_BEFORE, json.dumps(state))


def _turnBack(scene: Any, anomalyMap: Any) -> None:
    """Turn the views back that were turned to show a picture."""
    state = _stateOf(anomalyMap)
    turned = state.pop("turned", {})
    for node in nodesOf(scene, "vtkMRMLSliceNode"):
        if node.GetLayoutName() in turned:
            node.GetSliceToRAS().DeepCopy(turned[node.GetLayoutName()])
            node.UpdateMatrices()
    if turned:
        anomalyMap.SetAttribute(SHOWN_BEFORE, json.dumps(state))


def _isAlone(scene: Any, composite: Any) -> bool:
    """Whether a view shows the scan alone because the map is in the view beside it."""
    return isSideBySide(scene) and composite.GetLayoutName() == SCAN_VIEW and not composite.GetForegroundVolumeID()


def _layoutNode(scene: Any) -> Any:
    return scene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def _stateOf(anomalyMap: Any) -> dict[str, Any]:
    return json.loads(anomalyMap.GetAttribute(SHOWN_BEFORE) or '{"views": {}}')


def _isAnomalyMap(node: Any) -> bool:
    return node is not None and node.GetAttribute(attributes.ROLE) == attributes.MAP


def _nameOf(composite: Any) -> str:
    """Of the view; it survives that a scene is saved, which an id need not."""
    return composite.GetLayoutName() or composite.GetSingletonTag() or composite.GetID()


def _volumeIn(composite: Any, layer: str) -> Any:
    return composite.GetScene().GetNodeByID(getattr(composite, f"Get{layer}VolumeID")() or "")


def _show(composite: Any, layer: str, node: Any) -> None:
    getattr(composite, f"Set{layer}VolumeID")(None if node is None else node.GetID())


def _refer(anomalyMap: Any, view: str, layer: str, node: Any) -> None:
    anomalyMap.SetNodeReferenceID(_role(view, layer), None if node is None else node.GetID())


def _referred(anomalyMap: Any, view: str, layer: str) -> Any:
    return anomalyMap.GetNodeReference(_role(view, layer))


def _role(view: str, layer: str) -> str:
    # The scene file parts roles from ids by these.
    return _REFERENCE + view.translate(str.maketrans(":; ", "___")) + layer
