"""The panel's part on files for other programs: segmentation, anomaly map, report, DICOM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from ..process.qtprocess import QtProcess
from ..process.workspace import Workspace
from ..progresstext import plain
from ..scene import exporting, reporting
from ..scene.results import ResultNodes
from ..translation import tr as _
from .context import PanelContext
from .resultpanel import ResultPanel

IMAGES, PAGES = "*.nrrd *.nii.gz *.nii", "*.html"


class ExportPanel:
    """Saves and opens what belongs to the result that is shown; see ``Panel``."""

    def __init__(self, context: PanelContext, results: ResultPanel) -> None:
        self._context = context
        self._results = results
        self._ui = context.ui
        self._drawing: reporting.ReportDrawing | None = None
        self._opened: list[Workspace] = []
        self._ui.exportSegmentationButton.connect("clicked(bool)", self._onSaveSegmentation)
        self._ui.exportDicomButton.connect("clicked(bool)", self._onExportDicom)
        self._ui.saveMapButton.connect("clicked(bool)", self._onSaveMap)
        self._ui.saveReportButton.connect("clicked(bool)", self._onSaveReport)
        self._ui.openReportButton.connect("clicked(bool)", self._onOpenReport)

    def refresh(self, parameters: Any) -> None:
        nodes = self._results.nodes()
        ui = self._ui
        for button in (ui.exportSegmentationButton, ui.saveMapButton):
            button.setEnabled(nodes is not None)
        for button in (ui.saveReportButton, ui.openReportButton):
            button.setEnabled(nodes is not None and self._drawing is None)
        ui.exportDicomButton.setEnabled(nodes is not None and nodes.segmentation is not None)

    def saveReport(self, path: Path, andThen: Callable[[], Any] = lambda: None) -> None:
        """Write the report as the panel shows the result, in the background if it has to be drawn again.

        Args:
            path: of the page.
            andThen: called when it is there; what goes wrong is told in a dialog.

        Raises:
            InputError: when it cannot be begun.
        """
        if (nodes := self._results.nodes()) is None:
            return

        def finished(problem: str) -> None:
            self._drawing = None
            self._context.refreshSoon()
            if problem:
                slicer.util.warningDisplay(plain(problem), _("The report could not be written"))
            else:
                andThen()

        drawing = reporting.ReportDrawing(nodes, path, slicer.app.temporaryPath, QtProcess(), finished)
        self._drawing = None if drawing.isOver else drawing
        self._context.refreshSoon()

    def close(self) -> None:
        """Draw no report any more, and delete the pages that were opened: they show the patient."""
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

    def _save(self, title: str, kinds: str, ending: str, save: Callable[[ResultNodes, Path], None]) -> None:
        if (nodes := self._results.nodes()) is None:
            return
        name = slicer.app.coreIOManager().forceFileNameValidCharacters(nodes.inputNode.GetName())
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
