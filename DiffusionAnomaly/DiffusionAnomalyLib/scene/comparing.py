"""A prior and a current result of one patient side by side, and what is new, grown, shrunk, unchanged or gone.

The two scans are registered and the findings matched by a process of its own, see ``results.comparison``; what it made
comes into the scene on the current scan's grid: the prior scan and its anomaly map, and a table of the changes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

from diffusion_anomaly.errors import InputError

from ..process.process import WorkerProcess
from ..process.workspace import Workspace
from ..translation import tr as _
from . import attributes, display, findingsTable, patients, reporting, results, views
from .results import ResultNodes, removeNode
from .volumes import ijkToRas

# What a node is to a comparison. Scenes are saved with these values, so they stay as they are.
PRIOR_SCAN, PRIOR_MAP, CHANGES, PAGE = "priorScan", "priorMap", "changes", "comparisonPage"
STATISTICS = f"{attributes.PREFIX}Comparison"  # JSON, on the table
COMPARED = f"{attributes.PREFIX}Compared"  # the table's reference to the current anomaly map

COLUMNS: tuple[tuple[str, type, str], ...] = (
    ("Change", vtk.vtkStringArray, ""),
    ("Current", vtk.vtkDoubleArray, "ml"),
    ("Prior", vtk.vtkDoubleArray, "ml"),
    ("Difference", vtk.vtkDoubleArray, "ml"),
    ("R", vtk.vtkDoubleArray, "mm"),
    ("A", vtk.vtkDoubleArray, "mm"),
    ("S", vtk.vtkDoubleArray, "mm"),
)


@dataclass
class ComparisonNodes:
    """What a comparison has put into the scene; None for what was deleted since."""

    current: ResultNodes
    scan: Any
    anomalyMap: Any
    table: Any
    page: Any

    @property
    def all(self) -> list[Any]:
        return [node for node in (self.scan, self.anomalyMap, self.table, self.page) if node is not None]

    @property
    def statistics(self) -> dict[str, Any]:
        """The comparison's numbers, see ``results.comparison.files.statistics``."""
        return json.loads(self.table.GetAttribute(STATISTICS) or "{}")


class Comparing(reporting.Asked):
    """Compares two results in the background.

    Args:
        prior, current: the results.
        temporaryFolder, process, onFinished: as of ``Asked``.
        samePatient: the user says that both are of one patient although their DICOM headers say otherwise.

    Attributes:
        nodes: what was made, once it is there.

    Raises:
        InputError: when the scene lacks what it needs, both are the same, or they are of two patients.
    """

    def __init__(
        self,
        prior: ResultNodes,
        current: ResultNodes,
        temporaryFolder: Path | str,
        process: WorkerProcess,
        onFinished: Callable[[str], None] = lambda problem: None,
        *,
        samePatient: bool = False,
    ) -> None:
        if prior.inputNode is current.inputNode:
            raise InputError(
                _("Both results are of {name}.").format(name=current.inputNode.GetName()),
                _("Choose the results of two exams."),
            )
        doubt = patients.doubt(prior.inputNode, current.inputNode)
        if doubt and not samePatient:
            raise InputError(doubt, _("Choose two exams of one patient."))
        self._prior, self._current = prior, current
        self.nodes: ComparisonNodes | None = None

        def prepare(workspace: Workspace) -> None:
            key = secrets.token_bytes()  # forgotten once both are written
            for part, nodes in (("prior", prior), ("current", current)):
                reporting.write(nodes, workspace, part, key=key)

        super().__init__("compare", prepare, temporaryFolder, process, onFinished)

    def take(self, answer: dict[str, Any]) -> None:
        files = {name: Path(path) for name, path in answer["files"].items()}
        self.nodes = load(self._prior, self._current, files, answer["statistics"])


def load(
    prior: ResultNodes, current: ResultNodes, files: Mapping[str, Path], statistics: Mapping[str, Any]
) -> ComparisonNodes:
    """Make the nodes of a comparison.

    Args:
        prior, current: the results.
        files: that the process has written, by name.
        statistics: what it said.

    Raises:
        InputError: when a file is missing or has another grid. The scene is as it was.
    """
    scene = current.anomalyMap.GetScene()
    if scene is None or scene.GetNodeByID(current.anomalyMap.GetID()) is not current.anomalyMap:
        raise InputError(_("A result was removed while it was compared."), _("Compare again."))
    scan, scores = (_read(files, name, current) for name in ("prior_scan.nii.gz", "prior_heat.nii.gz"))
    try:
        page = files["comparison.html"].read_text(encoding="utf-8")
    except (KeyError, OSError) as error:
        raise InputError(_("The comparison's page cannot be read."), _("Compare again.")) from error
    name = prior.inputNode.GetName()
    with results.together(scene):
        scanNode = results.makeVolume(scene, _("{name} (prior, registered)").format(name=name), scan, current.inputNode)
        scanNode.CreateDefaultDisplayNodes()
        if (shown := prior.inputNode.GetDisplayNode()) is not None:
            scanNode.GetDisplayNode().SetAutoWindowLevel(False)
            scanNode.GetDisplayNode().SetWindowLevel(shown.GetWindow(), shown.GetLevel())
        mapNode = results.makeVolume(
            scene, _("{name} anomaly map (prior, registered)").format(name=name), scores, current.inputNode
        )
        display.showAnomalyMap(mapNode, prior.threshold)
        of = current.inputNode.GetName()
        table = scene.AddNewNodeByClass("vtkMRMLTableNode", _("{name} changes").format(name=of))
        pageNode = scene.AddNewNodeByClass("vtkMRMLTextNode", _("{name} comparison").format(name=of))
        pageNode.SetText(page)
        nodes = ComparisonNodes(current, scanNode, mapNode, table, pageNode)
        table.SetAttribute(STATISTICS, json.dumps(statistics))
        table.SetNodeReferenceID(COMPARED, current.anomalyMap.GetID())
        for role, node in ((PRIOR_SCAN, scanNode), (PRIOR_MAP, mapNode), (CHANGES, table), (PAGE, pageNode)):
            node.SetAttribute(attributes.ROLE, role)
            node.SetNodeReferenceID(attributes.INPUT, current.inputNode.GetID())
            table.SetNodeReferenceID(attributes.PREFIX + role, node.GetID())
            if node.IsA("vtkMRMLTransformableNode"):
                node.SetAndObserveTransformNodeID(current.anomalyMap.GetTransformNodeID())
            results.placeBeside(scene, node, current.inputNode)
        fill(nodes)
    return nodes


def comparisonsIn(scene: Any) -> list[ComparisonNodes]:
    """All comparisons of a scene whose current result is still there."""
    found = []
    known = {nodes.anomalyMap.GetID(): nodes for nodes in results.resultsIn(scene)}
    for table in views.nodesOf(scene, "vtkMRMLTableNode"):
        current = known.get(table.GetNodeReferenceID(COMPARED) or "")
        if table.GetAttribute(attributes.ROLE) == CHANGES and current is not None:
            parts = (table.GetNodeReference(attributes.PREFIX + role) for role in (PRIOR_SCAN, PRIOR_MAP))
            page = table.GetNodeReference(attributes.PREFIX + PAGE)
            found.append(ComparisonNodes(current, *parts, table, page))
    return found


def fill(nodes: ComparisonNodes) -> None:
    """Write the changes into the table, with places as the views tell them."""
    changes = nodes.statistics.get("changes", [])
    findingsTable.write(nodes.table, COLUMNS, [_row(change, nodes.current.anomalyMap) for change in changes])


def show(scene: Any, nodes: ComparisonNodes, opacity: float = display.OPACITY) -> None:
    """The prior exam in one view, the current one in the view beside it, linked, each with its anomaly map."""
    current = nodes.current
    views.remember(scene, current.anomalyMap)
    views.arrange(scene, current.anomalyMap, True)
    display.showInSlices(scene, current.inputNode, current.anomalyMap, opacity)
    for composite in views.sliceComposites(scene):
        if composite.GetLayoutName() == views.SCAN_VIEW and nodes.scan is not None:
            composite.SetBackgroundVolumeID(nodes.scan.GetID())
            composite.SetForegroundVolumeID(None if nodes.anomalyMap is None else nodes.anomalyMap.GetID())
            composite.SetForegroundOpacity(opacity)
    results.outlineOnly(scene, current)  # and not over the prior exam


def jumpTo(scene: Any, nodes: ComparisonNodes, row: int) -> None:
    """Let all views show a change of the table."""
    changes = nodes.statistics.get("changes", [])
    if 0 <= row < len(changes):
        display.jumpTo(scene, _world(changes[row]["centroid_ras"], nodes.current.anomalyMap))


def remove(scene: Any, nodes: ComparisonNodes) -> None:
    """Take a comparison out of the scene; both results stay, and the current one is shown as before."""
    wasShown = views.putBack(scene, nodes.current.anomalyMap, nodes.all, background=True)
    views.restoreLayout(scene, nodes.current.anomalyMap)
    for node in nodes.all:
        if node.IsA("vtkMRMLScalarVolumeNode") and (colors := node.GetNodeReference(display.COLORS)) is not None:
            removeNode(scene, colors)
        removeNode(scene, node)
    if wasShown:
        display.showInSlices(scene, nodes.current.inputNode, nodes.current.anomalyMap)
        results.outlineOnly(scene, nodes.current)


def _row(change: Mapping[str, Any], anomalyMap: Any) -> Sequence[Any]:
    current, prior = float(change["current_ml"]), float(change["prior_ml"])
    return [change["kind"], current, prior, current - prior, *_world(change["centroid_ras"], anomalyMap)]


def _world(place: Sequence[float], anomalyMap: Any) -> tuple[float, float, float]:
    world = [0.0, 0.0, 0.0]
    anomalyMap.TransformPointToWorld([float(value) for value in place], world)
    return world[0], world[1], world[2]


def _read(files: Mapping[str, Path], name: str, current: ResultNodes) -> np.ndarray:
    """The voxels of an image on the current scan's grid, k j i."""
    try:
        image = sitk.ReadImage(str(files[name]))
    except (KeyError, RuntimeError) as error:
        raise InputError(
            _("{file} of the comparison cannot be read: {reason}").format(file=name, reason=error), _("Compare again.")
        ) from error
    expected = slicer.util.arrayFromVolume(current.anomalyMap)
    array = sitk.GetArrayFromImage(image)
    origin = ijkToRas(current.anomalyMap)[:3, 3] * (-1, -1, 1)
    if array.shape != expected.shape or not np.allclose(image.GetOrigin(), origin, atol=1e-2):
        raise InputError(
            _("{file} does not lie on the grid of {name}.").format(file=name, name=current.inputNode.GetName()),
            _("Compare again."),
        )
    return array.astype(np.float32)
