"""The panel's part on results: how heat is shown, the live threshold and the findings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import qt
import slicer

from . import display, findingsTable, provenance, results, segmentation
from .livethreshold import LOWEST, LiveThreshold, Thresholded
from .parameters import HIGHEST
from .qthelpers import Table, say, silent
from .results import ResultNodes
from .translation import tr as _

if TYPE_CHECKING:
    from .panel import Panel
    from .queue import Entry

# A surface of a whole brain takes seconds: it is made anew when the slider rests, not while it moves.
SURFACE_DELAY_MS = 500


def onSlider(threshold: float) -> float:
    """The threshold within what the slider and its parameter can hold."""
    return min(max(threshold, LOWEST), HIGHEST)


def farthest(peak: float, threshold: float) -> float:
    """Where the threshold slider ends: above all the heat that there is, and not below the threshold in force."""
    return min(float(math.floor(max(peak, threshold, display.HOT))) + 1.0, HIGHEST)


class ResultPanel:
    """Shows one result of the scene; see ``Panel``."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = panel.ui
        self._scene = panel.detection.scene
        self._table = Table(self._ui.findingsTable, [_("Name"), _("Volume (ml)"), _("Peak heat"), _("Centre (mm)")])
        self._live: LiveThreshold | None = None  # of the heat that is shown; costs memory, so it is kept, not made anew
        self._liveOf: tuple[str, int] = ("", 0)
        self._found: Thresholded | None = None
        self._surface = qt.QTimer()
        self._surface.setSingleShot(True)
        self._surface.setInterval(SURFACE_DELAY_MS)
        self._surface.connect("timeout()", self._showSurface)
        self._ui.resultSelector.addAttribute("vtkMRMLScalarVolumeNode", provenance.ROLE, results.HEAT)
        self._ui.resultSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onResult)
        self._ui.opacitySlider.connect("valueChanged(double)", self._onOpacity)
        self._ui.colorSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onColor)
        self._ui.thresholdSlider.connect("valueChanged(double)", self._onThreshold)
        self._ui.resetThresholdButton.connect("clicked(bool)", self._onResetThreshold)
        self._ui.show3DCheckBox.connect("toggled(bool)", self._onShow3D)
        self._ui.findingsTable.connect("cellClicked(int,int)", self.jumpTo)
        self._ui.findingsTable.connect("cellDoubleClicked(int,int)", self._onName)
        self._ui.removeResultButton.connect("clicked(bool)", lambda checked=False: self.remove())

    def nodes(self) -> ResultNodes | None:
        """The result that is shown."""
        parameters = self._panel.parameters
        heat = parameters.result if parameters is not None else None
        if heat is None:
            return None
        return next((nodes for nodes in results.resultsIn(self._scene) if nodes.heat is heat), None)

    def select(self, entry: Entry, nodes: ResultNodes) -> None:
        """Show a result that has just come, unless the user is looking at another scan by now."""
        if display.isInView(self._scene, nodes.inputNode):
            self.show(nodes)
        self._panel.refreshSoon()

    def show(self, nodes: ResultNodes) -> None:
        """Show a result: over its scan in the slice views, and in the panel."""
        if (parameters := self._panel.parameters) is None:
            return
        parameters.result = nodes.heat
        parameters.output.threshold = onSlider(nodes.threshold)
        display.showInSlices(self._scene, nodes.inputNode, nodes.heat, parameters.output.opacity)
        self._panel.refreshSoon()

    def forget(self) -> None:
        """Let go of the heat that was shown."""
        self._surface.stop()
        self._live, self._liveOf, self._found = None, ("", 0), None

    def refresh(self, parameters: Any) -> None:
        nodes = self.nodes()
        for widget in self._controls():
            widget.setEnabled(nodes is not None)
        if nodes is None:
            say(self._ui.warningLabel, "")
            say(self._ui.summaryLabel, "")
            self._table.show([])
            return
        self._ui.show3DCheckBox.setEnabled(nodes.segmentation is not None)
        display.showLegend(nodes.heat, parameters.output.colorScale)
        with silent(self._ui.colorSelector):
            self._ui.colorSelector.setCurrentNode(nodes.heat.GetDisplayNode().GetColorNode())
        say(self._ui.warningLabel, "\n".join(provenance.warnings(nodes.heat)))
        if self._found is None or self._isStale(nodes):
            self._found = self._threshold(nodes).at(nodes.threshold, nodes.minVolumeMl)
        with silent(self._ui.thresholdSlider):  # as far as there is heat, so that every step of a drag does something
            self._ui.thresholdSlider.maximum = farthest(self._threshold(nodes).peak, nodes.threshold)
        self._showFindings(nodes)

    def setThreshold(self, threshold: float) -> None:
        """Let mask, segmentation and table follow another threshold, at once."""
        nodes = self.nodes()
        if nodes is None or threshold == nodes.threshold:
            return
        surface = nodes.segmentation is not None and segmentation.isSurfaceShown(nodes.segmentation)
        if surface:
            nodes.segmentation.RemoveClosedSurfaceRepresentation()
        self._found = results.applyThreshold(nodes, self._threshold(nodes), threshold, nodes.minVolumeMl)
        self._showFindings(nodes)
        if surface or self._ui.show3DCheckBox.checked:
            self._surface.start()

    def jumpTo(self, row: int, column: int = 0) -> None:
        """Let all slice views show a finding."""
        nodes = self.nodes()
        if nodes is not None and nodes.table is not None and 0 <= row < nodes.table.GetNumberOfRows():
            display.jumpTo(self._scene, findingsTable.centre(nodes.table, row, nodes.heat))

    def name(self, row: int, name: str) -> None:
        """Name a finding."""
        nodes = self.nodes()
        if nodes is not None and nodes.table is not None and self._found is not None:
            findingsTable.setName(nodes.table, self._threshold(nodes), self._found, row, name)
            self._showFindings(nodes)

    def remove(self) -> None:
        """Take the result that is shown out of the scene, with everything that belongs to it."""
        if (nodes := self.nodes()) is not None:
            self.forget()
            results.removeResults(self._scene, nodes)
            self._panel.refreshSoon()

    def _threshold(self, nodes: ResultNodes) -> LiveThreshold:
        if self._live is None or self._isStale(nodes):
            self._live, self._liveOf = results.liveThresholdOf(nodes), self._versionOf(nodes)
        return self._live

    def _isStale(self, nodes: ResultNodes) -> bool:
        return self._liveOf != self._versionOf(nodes)

    @staticmethod
    def _versionOf(nodes: ResultNodes) -> tuple[str, int]:
        return nodes.heat.GetID(), nodes.heat.GetImageData().GetMTime()

    def _showFindings(self, nodes: ResultNodes) -> None:
        if self._found is None:
            return
        live = self._threshold(nodes)
        names = findingsTable.namesOf(nodes.table, live, self._found) if nodes.table is not None else {}
        rows = [
            (
                names.get(finding.id, str(finding.id)),
                f"{finding.volume_ml:.2f}",
                f"{finding.peak_heat:.2f}",
                findingsTable.inWords(finding.centroid_ras),
            )
            for finding in self._found.findings
        ]
        self._table.show(rows)
        say(self._ui.summaryLabel, findingsTable.summary(self._found.findings))

    def _controls(self) -> tuple[Any, ...]:
        ui = self._ui
        return (
            ui.opacitySlider,
            ui.colorSelector,
            ui.thresholdSlider,
            ui.resetThresholdButton,
            ui.show3DCheckBox,
            ui.findingsTable,
            ui.legendCheckBox,
            ui.removeResultButton,
        )

    def _onResult(self, node: Any) -> None:
        """The parameter node does not know this selector: its attribute filter is set in code."""
        if (parameters := self._panel.parameters) is None:
            return
        parameters.result = node
        self.forget()
        if (nodes := self.nodes()) is not None:
            parameters.output.threshold = onSlider(nodes.threshold)
            display.showInSlices(self._scene, nodes.inputNode, nodes.heat, parameters.output.opacity)

    def _onOpacity(self, value: float) -> None:
        if (nodes := self.nodes()) is not None:
            display.setOpacity(self._scene, nodes.heat, value)

    def _onColor(self, node: Any) -> None:
        if node is not None and (nodes := self.nodes()) is not None:
            nodes.heat.GetDisplayNode().SetAndObserveColorNodeID(node.GetID())

    def _onThreshold(self, value: float) -> None:
        if self._panel.parameters is not None:
            self.setThreshold(value)

    def _onResetThreshold(self, checked: bool = False) -> None:
        nodes = self.nodes()
        if nodes is not None and (made := provenance.document(nodes.heat)):
            self._panel.parameters.output.threshold = onSlider(float(made["threshold"]["heat"]))

    def _onShow3D(self, shown: bool) -> None:
        self._surface.start(0)

    def _showSurface(self) -> None:
        nodes = self.nodes()
        if nodes is not None and nodes.segmentation is not None:
            with slicer.util.tryWithErrorDisplay(_("The surface could not be made."), waitCursor=True):
                segmentation.showSurface(nodes.segmentation, self._ui.show3DCheckBox.checked)

    def _onName(self, row: int, column: int) -> None:
        if self._found is None:
            return
        dialog = qt.QInputDialog(slicer.util.mainWindow())
        dialog.setWindowTitle(_("Name a finding"))
        dialog.setLabelText(_("Name (leave it empty to take the name away):"))
        shown = self._ui.findingsTable.item(row, 0).text()
        dialog.setTextValue("" if shown == str(self._found.findings[row].id) else shown)
        if dialog.exec_():
            self.name(row, dialog.textValue())
