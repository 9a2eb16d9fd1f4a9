"""The panel's part on files for other programs: segmentation, anomaly map, findings, report, DICOM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from ..process.qtprocess import QtProcess
from ..process.workspace import Workspace
from ..progresstext import plain
from ..scene import exportall, exporting, reporting
from ..scene.exportall import ExportAll
from ..scene.results import ResultNodes
from ..translation import tr as _
from .context import PanelContext
from .qthelpers import say
from .resultpanel import ResultPanel

IMAGES, PAGES, TABLES = "*.nrrd *.nii.gz *.nii", "*.html *.pdf", "*.csv *.json"

EXPORT_TICK_MS = 50


class ExportPanel:
    """Saves and opens what belongs to the result that is shown; see ``Panel``."""

    def __init__(self, context: PanelContext, results: ResultPanel) -> None:
        self._context = context
        self._results = results
        self._ui = context.ui
        self._drawing: reporting.Asked | ExportAll | None = None
        self._opened: list[Workspace] = []
        self._exporting = qt.QTimer()
        self._exporting.setInterval(EXPORT_TICK_MS)
        self._exporting.connect("timeout()", self._tick)
        self._ui.exportSegmentationButton.connect("clicked(bool)", self._onSaveSegmentation)
        self._ui.exportDicomButton.connect("clicked(bool)", self._onExportDicom)
        self._ui.saveMapButton.connect("clicked(bool)", self._onSaveMap)
        self._ui.saveReportButton.connect("clicked(bool)", self._onSaveReport)
        self._ui.openReportButton.connect("clicked(bool)", self._onOpenReport)
        self._ui.saveFindingsButton.connect("clicked(bool)", self._onSaveFindings)
        self._ui.saveDicomButton.connect("clicked(bool)", self._onSaveDicom)
        self._ui.exportAllButton.connect("clicked(bool)", self._onExportAll)
        self._dicomToolTip = self._ui.saveDicomButton.toolTip

    def refresh(self, parameters: Any) -> None:
        nodes = self._results.nodes()
        ui = self._ui
        for button in (ui.exportSegmentationButton, ui.saveMapButton, ui.saveFindingsButton):
            button.setEnabled(nodes is not None)
        isFree = nodes is not None and self._drawing is None
        for button in (ui.saveReportButton, ui.openReportButton, ui.exportAllButton):
            button.setEnabled(isFree)
        problem = "" if nodes is None else exporting.problemWithDicom(nodes, _fileOf())
        ui.saveDicomButton.setEnabled(isFree and not problem)
        ui.saveDicomButton.setToolTip(plain(problem) if problem else self._dicomToolTip)
        ui.exportDicomButton.setEnabled(nodes is not None and nodes.segmentation is not None)

    def saveReport(self, path: Path, andThen: Callable[[], Any] = lambda: None) -> None:
        """Write the report as the panel shows the result, in the background if it has to be drawn again.

        Args:
            path: of the page.
            andThen: called when it is there; what goes wrong is told in a dialog.

        Raises:
            InputError: when it cannot be begun.
        """
        if (nodes := self._results.nodes()) is not None:
            done = self._finished(_("The report could not be written"), andThen)
            self._begin(reporting.ReportDrawing(nodes, path, slicer.app.temporaryPath, QtProcess(), done))

    def saveDicom(self, folder: Path) -> None:
        """Write DICOM objects of the result into a folder, in the background.

        Raises:
            InputError: when it cannot be begun.
        """
        nodes, fileOf = self._results.nodes(), _fileOf()
        if nodes is not None and fileOf is not None:
            done = self._finished(_("The DICOM objects could not be written"))
            series = exporting.dicomFiles(nodes, fileOf)
            self._begin(reporting.DicomWriting(nodes, folder, series, slicer.app.temporaryPath, QtProcess(), done))

    def exportAll(self, folder: Path) -> None:
        """Write everything of the result into a folder, in the background, and say what could not be written."""
        nodes = self._results.nodes()
        if nodes is None:
            return
        places = exportall.files(folder, self._nameOf(nodes))

        def finished() -> None:
            export, self._drawing = self._drawing, None
            self._context.refreshSoon()
            if isinstance(export, ExportAll):
                lines = [_("{count} files written to {folder}.").format(count=len(export.written), folder=folder)]
                lines += [f"{kind}: {why}" for kind, why in export.failed.items()]
                say(self._ui.exportLabel, "\n".join(lines))

        say(self._ui.exportLabel, _("Writing…"))
        self._drawing = ExportAll(nodes, places, slicer.app.temporaryPath, QtProcess, _fileOf(), finished)
        self._exporting.start()
        self._context.refreshSoon()

    def _begin(self, asked: reporting.Asked) -> None:
        self._drawing = None if asked.isOver else asked
        self._context.refreshSoon()

    def _finished(self, title: str, andThen: Callable[[], Any] = lambda: None) -> Callable[[str], None]:
        """What to do at the end of something in the background: tell what went wrong, or go on."""

        def finished(problem: str) -> None:
            self._drawing = None
            self._context.refreshSoon()
            if problem:
                slicer.util.warningDisplay(plain(problem), title)
            else:
                andThen()

        return finished

    def _tick(self) -> None:
        """One more file; reports tell by themselves when they are there."""
        if isinstance(self._drawing, ExportAll):
            with slicer.util.tryWithErrorDisplay(_("Not all could be exported.")):
                self._drawing.tick()
        else:
            self._exporting.stop()

    def close(self) -> None:
        """Draw no report any more, and delete the pages that were opened: they show the patient."""
        self._exporting.stop()
        self._exporting.disconnect("timeout()", self._tick)
        if self._drawing is not None:
            self._drawing.close()
        for folder in self._opened:
            folder.remove()

    def _onSaveSegmentation(self, checked: bool = False) -> None:
        self._save(_("Save segmentation"), IMAGES, "-mask.nrrd", exporting.saveSegmentation)

    def _onSaveMap(self, checked: bool = False) -> None:
        self._save(_("Save anomaly map"), IMAGES, "-anomaly-map.nrrd", exporting.saveAnomalyMap)

    def _onSaveReport(self, checked: bool = False) -> None:
        self._save(_("Save report"), PAGES, "-report.html", lambda nodes, path: self.saveReport(path))

    def _onSaveFindings(self, checked: bool = False) -> None:
        self._save(_("Save findings"), TABLES, "-findings.csv", exporting.saveFindings)

    def _onSaveDicom(self, checked: bool = False) -> None:
        if folder := self._askForFolder(_("Folder for the DICOM objects")):
            with slicer.util.tryWithErrorDisplay(_("The DICOM objects could not be written.")):
                self.saveDicom(folder)

    def _onExportAll(self, checked: bool = False) -> None:
        nodes = self._results.nodes()
        if nodes is None or not (folder := self._askForFolder(_("Folder for all files"))):
            return
        there = [path for path in exportall.files(folder, self._nameOf(nodes)).values() if path.exists()]
        if there:
            text = _("{count} of the files exist already, such as {path}. Replace them?")
            if not slicer.util.confirmYesNoDisplay(plain(text.format(count=len(there), path=there[0]))):
                return
        self.exportAll(folder)

    @staticmethod
    def _askForFolder(title: str) -> Path | None:
        chosen = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title, str(Path.home()))
        return Path(chosen) if chosen else None

    @staticmethod
    def _nameOf(nodes: ResultNodes) -> str:
        return slicer.app.coreIOManager().forceFileNameValidCharacters(nodes.inputNode.GetName())

    def _save(self, title: str, kinds: str, ending: str, save: Callable[[ResultNodes, Path], None]) -> None:
        if (nodes := self._results.nodes()) is None:
            return
        name = self._nameOf(nodes)
        chosen = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(), title, str(Path.home() / f"{name}{ending}"), f"{title} ({kinds})"
        )
        if chosen:
            with slicer.util.tryWithErrorDisplay(_("The file could not be written."), waitCursor=True):
                path = exporting.withSuffix(Path(chosen), Path(ending).suffix)
                if path != Path(chosen) and path.exists() and not self._mayReplace(path):
                    return
                save(nodes, path)

    @staticmethod
    def _mayReplace(path: Path) -> bool:
        """The dialog has asked for the name that was typed, not for the one with a suffix."""
        return slicer.util.confirmYesNoDisplay(plain(_("{path} exists. Replace it?").format(path=path)))

    def _onOpenReport(self, checked: bool = False) -> None:
        with slicer.util.tryWithErrorDisplay(_("The report could not be opened.")):
            folder = Workspace(slicer.app.temporaryPath)
            self._opened.append(folder)
            path = folder.folder / "report.html"
            self.saveReport(path, lambda: qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path))))

    def _onExportDicom(self, checked: bool = False) -> None:
        nodes = self._results.nodes()
        if nodes is None or nodes.segmentation is None:
            return
        if not hasattr(slicer, "qSlicerDICOMExportDialog"):
            slicer.util.warningDisplay(_("This Slicer was built without DICOM."), _("Export to DICOM"))
            return
        scene = self._context.scene
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        dialog = slicer.qSlicerDICOMExportDialog(None)
        dialog.setMRMLScene(scene)
        dialog.execDialog(hierarchy.GetItemByDataNode(nodes.segmentation))


def _fileOf() -> Callable[[str], str] | None:
    """The file of a DICOM instance by its UID, from Slicer's database; None where there is none."""
    database = getattr(slicer, "dicomDatabase", None)
    return database.fileForInstance if database is not None and database.isOpen else None
