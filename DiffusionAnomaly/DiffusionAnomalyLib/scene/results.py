"""Results into the scene and back out of it: all nodes of a detection appear together, or none does.

Everything is read and checked before the first node is made; if making one fails, those that were made are taken away
again. A result that is in a scene, new or reopened, is found by the attributes of its nodes alone.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

from diffusion_anomaly.errors import InputError

from ..translation import tr as _
from . import attributes, review, segmentation, sequences, views
from .display import COLORS, showAnomalyMap, showThreshold
from .findingsTable import fillTable, makeTable, namesOf
from .history import Snapshot
from .livethreshold import LOWEST, LiveThreshold, Thresholded
from .segmentation import fillLabelMap, fillSegmentation, makeLabelMap, makeSegmentation, nameAlgorithm
from .sequences import Frame
from .volumes import ijkToRas, onGrid

# What a node is to its result. Scenes are saved with these values, so they stay as they are.
ANOMALY_MAP, LABEL_MAP, SEGMENTATION, FINDINGS, RECONSTRUCTION, REPORT, BRAIN, SEGMENTS, BRAIN_SURFACE = (
    attributes.MAP,
    "labelMap",
    "segmentation",
    "findings",
    "healed",
    "report",
    "brain",
    "segments",
    "brainSurface",
)


@dataclass(frozen=True)
class Wanted:
    """Which nodes to make beside anomaly map and table."""

    labelMap: bool = True
    segmentation: bool = True
    brain: bool = True


@dataclass(frozen=True)
class Place:
    """Where a scan was when it was sent to the worker: it must still be there when the results come.

    Attributes:
        nodeId: the volume node.
        name: its name, for messages.
        size: voxels along i, j, k.
        matrix: from voxel index to RAS, 16 numbers, row by row.
        node: the node itself, weakly held: another one may get its id once the scene was closed.
        frame: of a sequence's volume, the frame that it showed; its voxels are others once that changes.
    """

    nodeId: str
    name: str
    size: tuple[int, ...]
    matrix: tuple[float, ...]
    node: Any = field(default=None, compare=False, repr=False)
    frame: Frame | None = field(default=None, compare=False)

    @classmethod
    def of(cls, node: Any) -> Place:
        matrix = tuple(float(value) for value in ijkToRas(node).ravel())
        held = vtk.vtkWeakReference()
        held.Set(node)
        size = tuple(node.GetImageData().GetDimensions())
        return cls(node.GetID(), node.GetName(), size, matrix, held, sequences.frameOf(node))

    def find(self, scene: Any) -> Any:
        """The volume node.

        Raises:
            InputError: when it has gone, or its voxels lie elsewhere now.
        """
        node = scene.GetNodeByID(self.nodeId)
        if node is None or node.GetImageData() is None or (self.node is not None and self.node.Get() is not node):
            raise InputError(
                _("The volume {name} was deleted while it was analysed.").format(name=self.name),
                _("Load it again and press Run."),
            )
        if Place.of(node) != Place(self.nodeId, node.GetName(), self.size, self.matrix):
            raise InputError(
                _("The volume {name} was cropped, resampled or moved while it was analysed.").format(name=self.name),
                _("Press Run again for the volume as it is now."),
            )
        return node


@dataclass
class ResultNodes:
    """The nodes of one detection; those that were not wanted or were deleted since are None."""

    inputNode: Any
    anomalyMap: Any
    table: Any
    labelMap: Any = None
    segmentation: Any = None
    reconstruction: Any = None
    report: Any = None
    brain: Any = None
    segments: Any = None
    brainSurface: Any = None

    @property
    def all(self) -> list[Any]:
        """The nodes that the detection made."""
        return list(_byRole(self).values())

    @property
    def outlines(self) -> list[Any]:
        """The segmentations."""
        return [node for node in (self.segmentation, self.segments) if node is not None]

    @property
    def threshold(self) -> float:
        """The threshold in force, as the nodes say."""
        return float(self.anomalyMap.GetAttribute(attributes.THRESHOLD) or LOWEST)

    @property
    def minVolumeMl(self) -> float:
        """Smaller findings are dropped."""
        return float(self.anomalyMap.GetAttribute(attributes.MIN_VOLUME) or 0.0)


def loadResults(scene: Any, place: Place, files: Mapping[str, Path], wanted: Wanted | None = None) -> ResultNodes:
    """Make the nodes of a detection.

    Args:
        scene: where to.
        place: the scan.
        files: what the worker wrote, by kind.
        wanted: which nodes.

    Raises:
        InputError: when the scan has gone or moved, or a file is not what the worker wrote. The scene is as it was.
    """
    wanted = wanted or Wanted()
    inputNode = place.find(scene)
    document = json.loads(_checked(files, "provenance").decode("utf-8"))
    _checkHashes(files, document)
    anomalyMap = _voxels(files["heat"], place).astype(np.float32, copy=False)
    reconstruction = _voxels(files["healed"], place) if "healed" in files else None
    brain = _voxels(files["brain"], place) if wanted.brain and "brain" in files else None
    report = _checked(files, "report").decode("utf-8", "replace") if "report" in files else ""
    live = LiveThreshold.of(onGrid(anomalyMap, ijkToRas(inputNode)), document)
    threshold = max(float(document["threshold"]["heat"]), LOWEST)
    minVolumeMl = float(document["options"]["min_volume_ml"])
    found = live.at(threshold, minVolumeMl)
    facts = attributes.factsOf(document, uuid.uuid4().hex, inputNode.GetID())
    facts[attributes.THRESHOLD] = str(threshold)
    if scene.GetUndoFlag():
        scene.SaveStateForUndo()
    scan = inputNode.GetName()
    if place.frame is not None:
        scan = _("{name} frame {number}").format(name=scan, number=place.frame.number + 1)
    read = _Read(anomalyMap, reconstruction, brain, report, _title(scene, scan, document["method"]))
    with together(scene):
        nodes = _make(scene, inputNode, read, live, found, wanted)
        if place.frame is not None:
            sequences.tie(nodes.anomalyMap, place.frame)
        if nodes.segmentation is not None:
            nameAlgorithm(nodes.segmentation, attributes.algorithm(document))
        for role, node in _byRole(nodes).items():
            attributes.mark(node, facts, role, inputNode)
            if node is not nodes.anomalyMap:
                attributes.tie(nodes.anomalyMap, node, role)
            if node.IsA("vtkMRMLTransformableNode"):
                node.SetAndObserveTransformNodeID(inputNode.GetTransformNodeID())
            placeBeside(scene, node, inputNode)
    return nodes


def resultsIn(scene: Any) -> list[ResultNodes]:
    """All results whose anomaly map and scan are in the scene, in the order in which they were made."""
    found = filter(None, map(resultOf, slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode", scene)))
    return sorted(found, key=lambda nodes: nodes.anomalyMap.GetAttribute(f"{attributes.PREFIX}Date") or "")


def resultOf(node: Any) -> ResultNodes | None:
    """The result that an anomaly map belongs to; None for another node, and for one without voxels, scene or scan."""
    if node is None or node.GetAttribute(attributes.ROLE) != ANOMALY_MAP or node.GetImageData() is None:
        return None
    inputNode = node.GetNodeReference(attributes.INPUT) if node.GetScene() is not None else None
    if inputNode is None:
        return None
    parts = (FINDINGS, LABEL_MAP, SEGMENTATION, RECONSTRUCTION, REPORT, BRAIN, SEGMENTS, BRAIN_SURFACE)
    return ResultNodes(inputNode, node, *(attributes.part(node, role) for role in parts))


def liveThresholdOf(nodes: ResultNodes) -> LiveThreshold:
    """The anomaly map of a result, ready for other thresholds; a damaged peak margin is taken for none."""
    grid = onGrid(slicer.util.arrayFromVolume(nodes.anomalyMap), ijkToRas(nodes.anomalyMap))
    made = attributes.document(nodes.anomalyMap)
    options = {**(made.get("options") or {}), "peak_margin": attributes.peakMargin(nodes.anomalyMap)}
    return LiveThreshold.of(grid, {**made, "options": options})


def findingsOf(nodes: ResultNodes, live: LiveThreshold) -> Thresholded:
    """Findings at the threshold in force, and the mask without those that were rejected."""
    return _kept(nodes, live, live.at(nodes.threshold, nodes.minVolumeMl))


def applyThreshold(nodes: ResultNodes, live: LiveThreshold, threshold: float, minVolumeMl: float) -> Thresholded:
    """Let label map, segmentation and table follow another threshold, and note it on every node.

    What was edited by hand is written over, see ``keepEdits``; what was rejected stays out of the mask.
    """
    found = _kept(nodes, live, live.at(threshold, minVolumeMl))
    _dropSurfaces(nodes)
    _fill(nodes, live, found)
    for node in nodes.all:
        node.SetDisableModifiedEvent(True)  # no view shows an attribute, but all are drawn anew for each
        node.SetAttribute(attributes.THRESHOLD, str(float(found.threshold)))
        node.SetAttribute(attributes.MIN_VOLUME, str(float(minVolumeMl)))
        node.SetDisableModifiedEvent(False)
    showThreshold(nodes.anomalyMap, found.threshold)
    return found


def applyReview(
    nodes: ResultNodes,
    live: LiveThreshold,
    found: Thresholded,
    row: int,
    *,
    state: str | None = None,
    comment: str | None = None,
) -> Thresholded:
    """Accept, reject or comment the finding of a row: mask and table follow, and what was edited by hand stays.

    Returns:
        The findings with the mask as it is now.
    """
    if nodes.table is None:
        return found
    review.setReview(nodes.table, live, found, row, state=state, comment=comment)
    return _refill(nodes, live, found)


def restore(nodes: ResultNodes, live: LiveThreshold, found: Thresholded, earlier: Snapshot) -> Thresholded:
    """Go back to what a result was, see ``history``."""
    moved = (earlier.threshold, earlier.minVolumeMl) != (nodes.threshold, nodes.minVolumeMl)
    earlier.apply(nodes)
    if moved:
        return applyThreshold(nodes, live, earlier.threshold, earlier.minVolumeMl)
    return _refill(nodes, live, found)


def segmentFindings(scene: Any, nodes: ResultNodes, live: LiveThreshold, found: Thresholded, wanted: bool) -> None:
    """Make, fill anew or take away the segmentation in which each finding is a segment of its own."""
    if not wanted:
        if nodes.segments is not None:
            removeNode(scene, nodes.segments)
            nodes.segments = None
        return
    inputNode, anomalyMap = nodes.inputNode, nodes.anomalyMap
    if nodes.segments is None:
        name = _("{name}, each").format(name=anomalyMap.GetName())
        nodes.segments = segmentation.makeEmpty(scene, name, inputNode)
        nodes.segments.SetAttribute(attributes.ROLE, SEGMENTS)
        nodes.segments.SetAttribute(attributes.RUN, anomalyMap.GetAttribute(attributes.RUN))
        nodes.segments.SetNodeReferenceID(attributes.INPUT, inputNode.GetID())
        attributes.tie(anomalyMap, nodes.segments, SEGMENTS)
        nodes.segments.SetAndObserveTransformNodeID(anomalyMap.GetTransformNodeID())
        placeBeside(scene, nodes.segments, inputNode)
    names = {} if nodes.table is None else namesOf(nodes.table, live, found)
    algorithm = attributes.algorithm(attributes.document(anomalyMap))
    segmentation.fillFindings(nodes.segments, anomalyMap, live, found, names, algorithm)


def isEdited(nodes: ResultNodes, live: LiveThreshold, found: Thresholded) -> bool:
    """Whether somebody has edited the segmentation, so that another threshold would take the work away."""
    return nodes.segmentation is not None and segmentation.isEdited(
        nodes.segmentation, nodes.anomalyMap, live, found.mask
    )


def keepEdits(nodes: ResultNodes) -> Any:
    """A copy of the segmentation as it was edited; no threshold changes it any more."""
    return segmentation.copyOf(nodes.segmentation, _("{name}, edited").format(name=nodes.segmentation.GetName()))


def keepTogether(nodes: ResultNodes) -> str:
    """Put a result under the transform that the scan is under by now, and say if it lies elsewhere all the same."""
    transform, before = nodes.inputNode.GetTransformNodeID(), nodes.anomalyMap.GetTransformNodeID()
    if transform != before:
        for node in nodes.all:
            if node.IsA("vtkMRMLTransformableNode") and node.GetTransformNodeID() == before:
                node.SetAndObserveTransformNodeID(transform)
    image, scan = nodes.anomalyMap.GetImageData(), nodes.inputNode.GetImageData()
    if scan is not None and (
        image.GetDimensions() != scan.GetDimensions()
        or not np.allclose(ijkToRas(nodes.anomalyMap), ijkToRas(nodes.inputNode), atol=1e-3)
    ):
        return _("{name} was cropped, resampled or moved since: the result lies where the scan was.").format(
            name=nodes.inputNode.GetName()
        )
    return ""


def otherFrame(nodes: ResultNodes) -> str:
    """What to say when the scan shows another frame of its sequence than the one that the result belongs to."""
    if sequences.isInView(nodes.anomalyMap, nodes.inputNode):
        return ""
    return _(
        "The result belongs to {frame}; the views show {shown}, so it is hidden. Click a finding to go there."
    ).format(frame=sequences.analysed(nodes.anomalyMap), shown=sequences.frameOf(nodes.inputNode))


def outlineOnly(scene: Any, shown: ResultNodes | None) -> None:
    """Draw the segmentation of one result alone: those of others would lie over it, or over another scan."""
    for nodes in resultsIn(scene):
        isShown = shown is not None and nodes.anomalyMap is shown.anomalyMap
        for node in nodes.outlines:
            if (view := node.GetDisplayNode()) is not None:
                # One outline around a finding is enough.
                view.SetVisibility(isShown and not (node is nodes.segmentation and nodes.segments is not None))
                views.confine(scene, view)
        if not isShown and nodes.brainSurface is not None:
            nodes.brainSurface.GetDisplayNode().SetVisibility(False)


def removeResults(scene: Any, nodes: ResultNodes) -> None:
    """Take a result out of the scene, with what shows and stores it; the views show what they showed before it."""
    views.release(scene, nodes.anomalyMap, nodes.all)
    colors = nodes.anomalyMap.GetNodeReference(COLORS)
    for node in (*nodes.all, *([] if colors is None else [colors])):
        removeNode(scene, node)


def removeNode(scene: Any, node: Any) -> None:
    """Take a node out of the scene, with what shows and stores it."""
    helpers = [node.GetNthStorageNode(index) for index in range(node.GetNumberOfStorageNodes())]
    if node.IsA("vtkMRMLDisplayableNode"):
        shown = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
        helpers += reversed(shown)  # the colour scale before the display whose colours it explains
    for helper in (*filter(None, helpers), node):
        _remove(scene, helper)


@dataclass(frozen=True)
class _Read:
    """What was read from the worker's files."""

    anomalyMap: np.ndarray
    reconstruction: np.ndarray | None
    brain: np.ndarray | None
    report: str
    title: str


def _make(
    scene: Any, inputNode: Any, read: _Read, live: LiveThreshold, found: Thresholded, wanted: Wanted
) -> ResultNodes:
    """All nodes of a result, filled."""
    name = read.title
    anomalyMap = makeVolume(scene, _("{name} anomaly map").format(name=name), read.anomalyMap, inputNode)
    anomalyMap.SetAndObserveTransformNodeID(inputNode.GetTransformNodeID())  # the table tells places with it
    nodes = ResultNodes(inputNode, anomalyMap, None)
    showAnomalyMap(nodes.anomalyMap, found.threshold)
    nodes.table = makeTable(scene, _("{name} findings").format(name=name))
    if wanted.labelMap:
        nodes.labelMap = makeLabelMap(scene, _("{name} anomaly mask").format(name=name), inputNode)
    if wanted.segmentation:
        nodes.segmentation = makeSegmentation(
            scene, _("{name} anomalies").format(name=name), _("Anomaly"), inputNode, live
        )
    if read.report:
        nodes.report = scene.AddNewNodeByClass("vtkMRMLTextNode", _("{name} report").format(name=name))
        nodes.report.SetText(read.report)
    if read.brain is not None:
        nodes.brain = makeLabelMap(scene, _("{name} brain").format(name=name), inputNode)
        slicer.util.updateVolumeFromArray(nodes.brain, read.brain)
    if read.reconstruction is not None:
        name = _("{name} pseudo-healthy reconstruction").format(name=name)
        nodes.reconstruction = makeVolume(scene, name, read.reconstruction, inputNode)
        nodes.reconstruction.CreateDefaultDisplayNodes()
        display, inputDisplay = nodes.reconstruction.GetDisplayNode(), inputNode.GetDisplayNode()
        if inputDisplay is not None:  # the same grey values look the same
            display.SetAutoWindowLevel(False)
            display.SetWindowLevel(inputDisplay.GetWindow(), inputDisplay.GetLevel())
    _fill(nodes, live, found)
    return nodes


def _title(scene: Any, scan: str, method: str) -> str:
    """What the names of a result's nodes begin with: unlike those of any other result."""
    names = {node.GetName() for node in _allNodes(scene)}
    title, number = f"{scan} {method}", 1
    while names & {_("{name} anomaly map").format(name=title), _("{name} findings").format(name=title)}:
        number += 1
        title = f"{scan} {method} {number}"
    return title


def _fill(nodes: ResultNodes, live: LiveThreshold, found: Thresholded) -> None:
    if nodes.labelMap is not None:
        fillLabelMap(nodes.labelMap, live, found)
    if nodes.segmentation is not None:
        fillSegmentation(nodes.segmentation, nodes.anomalyMap, live, found)
    if nodes.table is not None:
        fillTable(nodes.table, nodes.anomalyMap, live, found)


def _refill(nodes: ResultNodes, live: LiveThreshold, found: Thresholded) -> Thresholded:
    """The table anew after a review, and the mask where it changes."""
    whole = replace(found, mask=(found.labels > 0).astype(np.uint8))
    now = _kept(nodes, live, whole)
    if not np.array_equal(now.mask, found.mask):
        _dropSurfaces(nodes)
        if nodes.labelMap is not None:
            segmentation.patchLabelMap(nodes.labelMap, live, found.mask, now.mask)
        if nodes.segmentation is not None:
            segmentation.patchSegmentation(nodes.segmentation, nodes.anomalyMap, live, found.mask, now.mask)
    if nodes.table is not None:
        fillTable(nodes.table, nodes.anomalyMap, live, now)
    return now


def _dropSurfaces(nodes: ResultNodes) -> None:
    """Those of another mask; whoever shows them has them made anew, which takes seconds for a whole brain."""
    for node in nodes.outlines:
        node.RemoveClosedSurfaceRepresentation()


def _kept(nodes: ResultNodes, live: LiveThreshold, found: Thresholded) -> Thresholded:
    return found if nodes.table is None else review.kept(nodes.table, live, found)


def _byRole(nodes: ResultNodes) -> dict[str, Any]:
    roles = {
        ANOMALY_MAP: nodes.anomalyMap,
        LABEL_MAP: nodes.labelMap,
        SEGMENTATION: nodes.segmentation,
        FINDINGS: nodes.table,
        RECONSTRUCTION: nodes.reconstruction,
        REPORT: nodes.report,
        BRAIN: nodes.brain,
        SEGMENTS: nodes.segments,
        BRAIN_SURFACE: nodes.brainSurface,
    }
    return {role: node for role, node in roles.items() if node is not None}


def makeVolume(scene: Any, name: str, array: np.ndarray, inputNode: Any) -> Any:
    """A scalar volume with the scan's own matrix, so that not even the last bit of its place is lost."""
    node = slicer.vtkMRMLScalarVolumeNode()
    node.SetName(name)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijkToRas(inputNode)))
    node = scene.AddNode(node)
    slicer.util.updateVolumeFromArray(node, array)
    return node


def placeBeside(scene: Any, node: Any, inputNode: Any) -> None:
    """Put a node where the scan is in the subject hierarchy: under the same DICOM study, or the same folder."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    inputItem = hierarchy.GetItemByDataNode(inputNode)
    parent = hierarchy.GetItemParent(inputItem) if inputItem else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)


@contextmanager
def together(scene: Any) -> Iterator[None]:
    """Whatever the body puts into the scene appears at once, or not at all when it fails."""
    before = {node.GetID() for node in _allNodes(scene)}
    scene.StartState(slicer.vtkMRMLScene.BatchProcessState)
    try:
        yield
    except BaseException:
        for node in reversed(_allNodes(scene)):
            if node.GetID() not in before:
                _remove(scene, node)
        raise
    finally:
        scene.EndState(slicer.vtkMRMLScene.BatchProcessState)


def _remove(scene: Any, node: Any) -> None:
    """Take a node out of the scene together with its place in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    if item:
        hierarchy.RemoveItem(item, False)  # the node itself goes next
    scene.RemoveNode(node)


def _allNodes(scene: Any) -> list[Any]:
    return [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]


def _voxels(path: Path, place: Place) -> np.ndarray:
    """An image file's voxels, k j i, if it has the scan's size."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(
            _("{file} cannot be read: {reason}").format(file=path.name, reason=error), _("Run it again.")
        ) from error
    if image.GetSize() != place.size:
        raise InputError(
            _("{file} has {found} voxels, the scan {expected}.").format(
                file=path.name, found=image.GetSize(), expected=place.size
            ),
            _("Run it again."),
        )
    return sitk.GetArrayFromImage(image)


def _checked(files: Mapping[str, Path], kind: str) -> bytes:
    try:
        return files[kind].read_bytes()
    except (KeyError, OSError) as error:
        raise InputError(
            _("The worker's {kind} cannot be read: {reason}.").format(kind=kind, reason=error), _("Run it again.")
        ) from error


def _checkHashes(files: Mapping[str, Path], document: Mapping[str, Any]) -> None:
    """Compare the files with what the provenance, which was written last, says of them."""
    hashes = document.get("files_sha256", {})
    for kind in ("heat", "healed", "brain", "report"):
        if kind in files:
            found = hashlib.sha256(_checked(files, kind)).hexdigest()
            if found != hashes.get(files[kind].name):
                raise InputError(
                    _("{file} is not what the worker wrote.").format(file=files[kind].name), _("Run it again.")
                )
