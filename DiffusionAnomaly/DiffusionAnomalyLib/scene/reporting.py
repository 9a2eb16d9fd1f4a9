"""The report of a result as it is now: at the threshold that the slider has, with the names that findings were given.

The page that the worker wrote shows the threshold of the run. Once that was moved or a finding was named, the page is
drawn again by a process of its own, from scan and anomaly map of the scene; nothing is computed anew but the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer
import vtk

from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.io.files import write_text
from diffusion_anomaly.results import redrawing

from ..process.environment import Question
from ..process.process import WorkerProcess
from ..process.workspace import Workspace
from ..translation import tr as _
from . import attributes, findingsTable, sequences
from .results import ResultNodes, liveThresholdOf
from .volumes import ijkToRas, onGrid


def isAsRun(nodes: ResultNodes) -> bool:
    """Whether threshold, smallest finding, names and place are those of the run."""
    made = attributes.document(nodes.anomalyMap)
    moved = (nodes.threshold, nodes.minVolumeMl) != (made["threshold"]["heat"], made["options"]["min_volume_ml"])
    named = nodes.table is not None and findingsTable.hasNames(nodes.table)
    return not (moved or named or _transformed(nodes))


class ReportDrawing:
    """Writes the report of a result into a file, in the background if it has to be drawn again.

    Args:
        nodes: the result.
        path: of the page.
        temporaryFolder: a working folder is made in it.
        process: not started yet.
        onFinished: takes what went wrong; empty when the page is there.

    Raises:
        InputError: when the page cannot be written, or the scene lacks what it would show.
    """

    def __init__(
        self,
        nodes: ResultNodes,
        path: Path | str,
        temporaryFolder: Path | str,
        process: WorkerProcess,
        onFinished: Callable[[str], None] = lambda problem: None,
    ) -> None:
        self._path = Path(path)
        self._onFinished = onFinished
        self._question: Question | None = None
        self._workspace: Workspace | None = None
        self.isOver = False
        self.problem = ""
        if isAsRun(nodes) and nodes.report is not None:
            write_text(self._path, nodes.report.GetText())
            self._end("")
            return
        if nodes.brain is None:
            raise InputError(
                _("The report cannot be drawn at another threshold than that of the run without the brain mask."),
                _("Press Threshold of the model and save it again, or run it again with Keep the brain mask."),
            )
        self._workspace = Workspace(temporaryFolder)
        try:
            _write(nodes, self._workspace)
        except EngineError:
            self._workspace.remove()
            raise
        self._question = Question(process, ["report", str(self._workspace.folder)], self._answered)

    def tick(self) -> None:
        """To be called a few times a second."""
        if self._question is not None:
            self._question.tick()

    def close(self) -> None:
        """Give up; ``onFinished`` is not called any more."""
        self._onFinished = lambda problem: None
        if self._question is not None:
            self._question.close()
        if self._workspace is not None:
            self._workspace.remove()

    def _answered(self, answer: dict[str, Any]) -> None:
        problem = ""
        try:
            if not answer.get("ok"):
                nothing = _("The report was not drawn. Are all Python packages installed?")
                raise InputError(answer.get("problem") or nothing)
            write_text(self._path, Path(answer["path"]).read_text(encoding="utf-8"))
        except EngineError as error:
            problem = str(error)
        if self._workspace is not None:
            self._workspace.remove()
        self._end(problem)

    def _end(self, problem: str) -> None:
        self.isOver, self.problem = True, problem
        self._onFinished(problem)


def _transformed(nodes: ResultNodes) -> str:
    """The name of the transform that moves the scan away from its own coordinates; empty without one."""
    transform = nodes.anomalyMap.GetParentTransformNode()
    if transform is None:
        return ""
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return "" if slicer.vtkAddonMathUtilities.MatrixAreEqual(matrix, vtk.vtkMatrix4x4()) else transform.GetName()


def scanOf(nodes: ResultNodes) -> sitk.Image:
    """The scan that was analysed; of a sequence, the frame that the result belongs to, whatever frame is shown now."""
    voxels = slicer.util.arrayFromVolume(sequences.voxelsNode(nodes.anomalyMap, nodes.inputNode))
    return onGrid(voxels, ijkToRas(nodes.anomalyMap))


def _write(nodes: ResultNodes, workspace: Workspace) -> None:
    """What the engine needs to draw the page."""
    grid = ijkToRas(nodes.anomalyMap)
    workspace.writeImage(scanOf(nodes), redrawing.SCAN)
    workspace.writeImage(onGrid(slicer.util.arrayFromVolume(nodes.anomalyMap), grid), redrawing.ANOMALY_MAP)
    workspace.writeImage(onGrid(slicer.util.arrayFromVolume(nodes.brain), grid), redrawing.BRAIN)
    live = liveThresholdOf(nodes)
    found = live.at(nodes.threshold, nodes.minVolumeMl)
    names = findingsTable.namesOf(nodes.table, live, found) if nodes.table is not None else {}
    made = attributes.document(nodes.anomalyMap)
    if transform := _transformed(nodes):
        note = _("Places are in the scan's own coordinates; in the scene it was under the transform {name}.")
        made = {**made, "warnings": [*made["warnings"], note.format(name=transform)]}
    request = redrawing.Request(
        # A run that left out the scan's name wrote none of its file either.
        nodes.inputNode.GetName() if made["input"].get("path", True) else made["input"]["title"],
        nodes.threshold,
        nodes.minVolumeMl,
        made,
        {str(number): name for number, name in names.items()},
    )
    redrawing.write_request(request, workspace.folder)
