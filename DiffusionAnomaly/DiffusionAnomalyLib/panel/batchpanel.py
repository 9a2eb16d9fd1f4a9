"""The panel's part on several scans: those of a patient or a folder, with the ones ticked that the model is for."""

from __future__ import annotations

from typing import Any

import qt
import slicer

from diffusion_anomaly.errors import EngineError

from ..detection import Detection
from ..progresstext import plain, shortened
from ..scene.folders import Candidate, scansUnder
from ..translation import tr as _
from .context import PanelContext
from .installpanel import InstallPanel
from .methodpanel import MethodPanel
from .qthelpers import LONGEST_IN_CELL, silent


class BatchPanel:
    """Lists and queues scans; see ``Panel``. Asks nothing of the scene while its section is closed."""

    def __init__(self, context: PanelContext, detection: Detection, install: InstallPanel, method: MethodPanel) -> None:
        self._context = context
        self._detection, self._install, self._method = detection, install, method
        self._ui = context.ui
        self._shown: list[tuple[str, ...]] = []
        self._listed: list[tuple[str, dict[str, str]]] = []  # of each row the scan's and the channels' node
        titles = [_("Scan"), _("Contrast"), _("Remark")]
        self._ui.batchTable.setColumnCount(len(titles))
        self._ui.batchTable.setHorizontalHeaderLabels(titles)
        self._ui.batchTable.horizontalHeader().setStretchLastSection(True)
        self._ui.batchTable.verticalHeader().setVisible(False)
        self._ui.batchCollapsibleButton.connect("contentsCollapsed(bool)", self._onChanged)
        self._folder: Any = None
        self._ui.batchButton.connect("clicked(bool)", self.onRun)

    def refresh(self, parameters: Any) -> None:
        if self._ui.batchCollapsibleButton.collapsed:
            return
        wanted, others = self._method.contrasts(parameters)
        item = self.folder().currentItem()
        found = scansUnder(self._context.scene, item, wanted, others) if item else []
        rows = [(one.node.GetID(), one.node.GetName(), one.contrast, one.problem, str(one.suggested)) for one in found]
        if rows != self._shown:
            self._shown = rows
            self._listed = [
                (one.node.GetID(), {name: node.GetID() for name, node in one.channels.items()}) for one in found
            ]
            self._fill(found)
        self._ui.batchButton.setEnabled(bool(found) and not self._install.problem(self._context.parameters))

    def onRun(self, checked: bool = False) -> None:
        """Queue the scans that are ticked; those that cannot be are named together."""
        parameters, table = self._context.parameters, self._ui.batchTable
        ticked = [listed for row, listed in enumerate(self._listed) if table.item(row, 0).checkState() == qt.Qt.Checked]
        if not ticked or not self._method.licencesAccepted(parameters) or not self._method.mayLeave(parameters):
            return
        problems = []
        with slicer.util.WaitCursor():
            request = self._method.request(parameters)
            for nodeId, channels in ticked:
                node, *others = map(self._context.scene.GetNodeByID, (nodeId, *channels.values()))
                try:
                    if node is not None:  # else deleted since it was listed
                        self._detection.add(node, request, channels=dict(zip(channels, others, strict=True)))
                except EngineError as error:
                    problems.append(f"{node.GetName()}: {error}")
        if problems:
            slicer.util.warningDisplay(plain("\n\n".join(problems)), _("DiffusionAnomaly"))
        self._ui.batchCollapsibleButton.collapsed = True  # the queue shows them now

    def _fill(self, found: list[Candidate]) -> None:
        table = self._ui.batchTable
        with silent(table):
            table.setRowCount(len(found))
            for row, candidate in enumerate(found):
                texts = (candidate.node.GetName() or "", candidate.contrast or _("unknown"), candidate.problem)
                for column, text in enumerate(texts):
                    item = qt.QTableWidgetItem(shortened(text, LONGEST_IN_CELL) if column == 0 else text)
                    item.setToolTip(plain(text))
                    if candidate.problem:  # listed in grey, with the reason
                        item.setFlags(qt.Qt.NoItemFlags)
                    if column == 0:
                        item.setCheckState(qt.Qt.Checked if candidate.suggested else qt.Qt.Unchecked)
                    table.setItem(row, column, item)
            table.resizeColumnsToContents()

    def folder(self) -> Any:
        """What the scans are chosen from. Made when it is first shown: it follows every change of the scene's tree."""
        if self._folder is None:
            self._folder = slicer.qMRMLSubjectHierarchyComboBox()
            self._folder.setMRMLScene(self._context.scene)
            self._folder.setToolTip(_("A patient, a study or a folder of the module Data, or the whole scene."))
            self._folder.connect("currentItemChanged(vtkIdType)", self._onChanged)
            self._ui.batchCollapsibleButton.layout().insertRow(0, _("Of:"), self._folder)
        return self._folder

    def _onChanged(self, value: Any) -> None:
        self._context.refreshSoon()
