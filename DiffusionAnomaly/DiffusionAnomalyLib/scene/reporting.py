"""What a process of its own makes of a result as it is now: its report, and DICOM objects.

The page that the worker wrote shows the threshold of the run. Once that was moved, or a finding was named, reviewed or
commented, the page is drawn again from scan and anomaly map of the scene; nothing is computed anew but the mask.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.io.files import whole_file, write_text
from diffusion_anomaly.results import redrawing

from ..process.environment import Question
from ..process.process import WorkerProcess
from ..process.workspace import Workspace
from ..translation import tr as _
from . import attributes, findingsTable, patients, review, sequences
from .results import ResultNodes, findingsOf, liveThresholdOf
from .volumes import ijkToRas, onGrid


def isAsRun(nodes: ResultNodes) -> bool:
    """Whether threshold, smallest finding and place are those of the run, and nothing was said of any finding.

    What was said and cannot be read any more counts as said: the page of the run would not tell.
    """
    return not (_isMoved(nodes) or _tellsMore(nodes))


def _isMoved(nodes: ResultNodes) -> bool:
    made = attributes.document(nodes.anomalyMap)
    return (nodes.threshold, nodes.minVolumeMl) != (made["threshold"]["heat"], made["options"]["min_volume_ml"])


def _tellsMore(nodes: ResultNodes) -> bool:
    """Whether there is something to tell that the page of the run does not tell, at whatever threshold."""
    said = nodes.table is not None and (findingsTable.hasNames(nodes.table) or review.hasReviews(nodes.table))
    said = said or bool(findingsTable.problemsWith(nodes.table))
    return bool(said or _transformed(nodes) or sequences.analysed(nodes.anomalyMap))


def _withoutBrain(advice: str) -> InputError:
    return InputError(_("This cannot be made without the brain mask."), advice)


def _adviceWithoutBrain(nodes: ResultNodes) -> str:
    """What to do for a report that cannot be drawn again for want of the brain mask.

    The page of the run is left where nothing but the threshold or the smallest finding differs, and for a PDF.
    """
    again = _("Run it again with Keep the brain mask.")
    if problems := findingsTable.problemsWith(nodes.table):
        instead = _("The page of the run cannot be saved instead, since it would not tell this:")
        return " ".join([again, instead, *problems])
    if _tellsMore(nodes) or nodes.report is None:
        return again
    if _isMoved(nodes):
        return _(
            "Run it again with Keep the brain mask, or save the report as a page at threshold and smallest finding of "
            "the run."
        )
    return _("Run it again with Keep the brain mask, or save the report as a page.")


class Asked(ABC):
    """What a process of its own makes of results, in the background.

    Args:
        kind: of the question to ``worker.probe``.
        prepare: fills the folder that the process is told.
        temporaryFolder: a working folder is made in it.
        process: not started yet.
        onFinished: takes what went wrong; empty when all is there.

    Raises:
        InputError: when the scene lacks what it needs.
    """

    def __init__(
        self,
        kind: str,
        prepare: Callable[[Workspace], None],
        temporaryFolder: Path | str,
        process: WorkerProcess,
        onFinished: Callable[[str], None],
    ) -> None:
        self._onFinished = onFinished
        self._question: Question | None = None
        self.isOver = False
        self.problem = ""
        self._workspace = Workspace(temporaryFolder)
        try:
            prepare(self._workspace)
        except OSError as error:
            self._workspace.remove()
            raise InputError(
                _("{file} cannot be read: {reason}.").format(file=error.filename, reason=error.strerror or error),
                _("Load the series again."),
            ) from error
        except EngineError:
            self._workspace.remove()
            raise
        self._question = Question(process, [kind, str(self._workspace.folder)], self._answered)

    def tick(self) -> None:
        """To be called a few times a second."""
        if self._question is not None:
            self._question.tick()

    def close(self) -> None:
        """Give up; ``onFinished`` is not called any more."""
        self._onFinished = lambda problem: None
        if self._question is not None:
            self._question.close()
            self._workspace.remove()

    @abstractmethod
    def take(self, answer: dict[str, Any]) -> None:
        """Put what was made where it is wanted."""

    def end(self, problem: str) -> None:
        """Say that it is over."""
        self.isOver, self.problem = True, problem
        self._onFinished(problem)

    def _answered(self, answer: dict[str, Any]) -> None:
        problem = ""
        try:
            if not answer.get("ok"):
                nothing = _("Nothing was made. Are all Python packages installed?")
                raise InputError(answer.get("problem") or nothing)
            self.take(answer)
        except EngineError as error:
            problem = str(error)
        self._workspace.remove()
        self.end(problem)


class ReportDrawing(Asked):
    """Writes the report of a result into a file, in the background if it has to be drawn again.

    Args:
        nodes: the result.
        path: of the page; a name that ends with ``.pdf`` makes it a PDF.
        temporaryFolder, process, onFinished: as of ``Asked``.

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
        printed = self._path.suffix.lower() == ".pdf"
        if isAsRun(nodes) and nodes.report is not None and not printed:
            self._question, self._onFinished = None, onFinished
            write_text(self._path, nodes.report.GetText())
            self.end("")
            return
        if nodes.brain is None:
            raise _withoutBrain(_adviceWithoutBrain(nodes))
        prepare = lambda workspace: write(nodes, workspace, printed=printed)  # noqa: E731
        super().__init__("report", prepare, temporaryFolder, process, onFinished)

    def take(self, answer: dict[str, Any]) -> None:
        copyWhole(Path(answer["path"]), self._path)


class DicomWriting(Asked):
    """Writes a result as DICOM segmentation, parametric map and structured report, in the background.

    Args:
        nodes: the result.
        folder: for the files, made when it is not there.
        series: the files that the scan was loaded from.
        temporaryFolder, process, onFinished: as of ``Asked``.

    Raises:
        InputError: when the scene lacks what it needs, or a file of the series is gone.
    """

    def __init__(
        self,
        nodes: ResultNodes,
        folder: Path | str,
        series: Sequence[Path],
        temporaryFolder: Path | str,
        process: WorkerProcess,
        onFinished: Callable[[str], None] = lambda problem: None,
    ) -> None:
        self._folder = Path(folder)
        self.written: list[Path] = []

        def prepare(workspace: Workspace) -> None:
            write(nodes, workspace)
            (workspace.folder / "series").mkdir()
            for number, path in enumerate(series):
                shutil.copyfile(path, workspace.folder / "series" / f"{number:05}.dcm")

        super().__init__("dicom", prepare, temporaryFolder, process, onFinished)

    def take(self, answer: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in map(Path, answer["files"].values()):
            copyWhole(path, self._folder / path.name)
            self.written.append(self._folder / path.name)


def copyWhole(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all.

    Raises:
        InputError: when the operating system refuses.
    """
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)


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


def write(
    nodes: ResultNodes, workspace: Workspace, part: str = "", printed: bool = False, key: bytes | None = None
) -> None:
    """What the engine needs to draw the page, or to compare the result with another exam's.

    Args:
        nodes: the result.
        workspace: where to.
        part: folder in it, of an exam that is compared with another; empty for the workspace's own.
        printed: whether the report is to be a PDF.
        key: of a comparison, see ``patients.digests``; without one, nothing tells the patient.

    Raises:
        InputError: when the brain mask is not in the scene, or the disk is full.
    """
    if nodes.brain is None:
        raise _withoutBrain(_("Run it again with Keep the brain mask."))
    folder = workspace.folder / part
    folder.mkdir(exist_ok=True)
    place = f"{part}/" if part else ""
    grid = ijkToRas(nodes.anomalyMap)
    workspace.writeImage(scanOf(nodes), place + redrawing.SCAN)
    for node, name in ((nodes.anomalyMap, redrawing.ANOMALY_MAP), (nodes.brain, redrawing.BRAIN)):
        workspace.writeImage(onGrid(slicer.util.arrayFromVolume(node), grid), place + name)
    live = liveThresholdOf(nodes)
    found = findingsOf(nodes, live)
    names = findingsTable.namesOf(nodes.table, live, found) if nodes.table is not None else {}
    said = review.reviewsOf(nodes.table, live, found) if nodes.table is not None else {}
    rejected = (found.labels > 0) & (found.mask == 0)
    if rejected.any():
        whole = np.zeros(live.shape, dtype=np.uint8)
        whole[live.box] = rejected
        workspace.writeImage(onGrid(whole, grid), place + redrawing.REJECTED)
    made = attributes.document(nodes.anomalyMap)
    made = {**made, "warnings": [*made["warnings"], *findingsTable.problemsWith(nodes.table)]}
    if transform := _transformed(nodes):
        note = _("Places are in the scan's own coordinates; in the scene it was under the transform {name}.")
        made = {**made, "warnings": [*made["warnings"], note.format(name=transform)]}
    if frame := sequences.analysed(nodes.anomalyMap):
        made = {**made, "warnings": [*made["warnings"], _("Of a sequence, {frame} was analysed.").format(frame=frame)]}
    request = redrawing.Request(
        # A run that left out the scan's name wrote none of its file either.
        nodes.inputNode.GetName() if made["input"].get("path", True) else made["input"]["title"],
        nodes.threshold,
        nodes.minVolumeMl,
        made,
        {str(number): name for number, name in names.items()},
        {str(number): one.state for number, one in said.items() if one.state != review.UNDECIDED},
        {str(number): one.comment for number, one in said.items() if one.comment},
        printed,
        patients.digests(nodes.inputNode, key) if key else {},
    )
    redrawing.write_request(request, folder)
