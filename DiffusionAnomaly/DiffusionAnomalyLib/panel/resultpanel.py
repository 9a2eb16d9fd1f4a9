"""The panel's part on results: how the anomaly map is shown, the live threshold and the findings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import qt
import slicer

from ..scene import attributes, display, findingsTable, results, segmentation, sequences
from ..scene.livethreshold import LiveThreshold, Thresholded
from ..scene.results import ResultNodes
from ..scene.watching import SceneWatch
from ..translation import tr as _
from .context import PanelContext
from .qthelpers import Table, say, silent

if TYPE_CHECKING:
    from ..process.jobqueue import Entry

# Of the threshold slider; scores without a model may be far higher, where no threshold is of use.
HIGHEST = 20.0

# A surface of a whole brain takes seconds: it is made anew when the slider rests, not while it moves.
SURFACE_DELAY_MS = 500


def farthest(peak: float, threshold: float) -> float:
    """Where the threshold slider ends: above all scores, and not below the threshold in force."""
    return max(min(math.floor(max(peak, display.SHOWN_TO)) + 1.0, HIGHEST), threshold)


class ResultPanel:
    """Shows one result of the scene; see ``Panel``."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._ui = context.ui
        self._scene = context.scene
        self._table = Table(self._ui.findingsTable, [_("Name"), _("Volume (ml)"), _("Peak score"), _("Centre (mm)")])
        self._live: LiveThreshold | None = None  # of the map that is shown; costs memory, so it is kept, not made anew
        self._liveOf: tuple[str, int] = ("", 0)
        self._overlays: bool | None = None  # as they were last shown or hidden, so that a user's own opacity stays
        self._found: Thresholded | None = None
        self._watch = SceneWatch(self._scene, context.refreshSoon)
        self._surface = qt.QTimer()
        self._surface.setSingleShot(True)
        self._surface.setInterval(SURFACE_DELAY_MS)
        self._surface.connect("timeout()", self._showSurface)
        self._ui.resultSelector.addAttribute("vtkMRMLScalarVolumeNode", attributes.ROLE, results.ANOMALY_MAP)
        # Not currentNodeChanged: while nodes come and go, as in an import, the selector goes through others by itself.
        self._ui.resultSelector.connect("nodeActivated(vtkMRMLNode*)", self._onResult)
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
        parameters = self._context.parameters
        anomalyMap = parameters.result if parameters is not None else None
        if anomalyMap is None:
            return None
        return next((nodes for nodes in results.resultsIn(self._scene) if nodes.anomalyMap is anomalyMap), None)

    def select(self, entry: Entry, nodes: ResultNodes) -> None:
        """Show a result that has just come, unless another scan is in view by now."""
        parameters = self._context.parameters
        isChosen = parameters is not None and parameters.inputVolume is nodes.inputNode
        if isChosen or display.isInView(self._scene, nodes.inputNode):
            self.show(nodes)
        else:
            entry.message = _("Not shown, because another scan is in view: double-click it in the list.")
            results.outlineOnly(self._scene, self.nodes())
        self._context.refreshSoon()

    def show(self, nodes: ResultNodes | None) -> None:
        """Show a result, over its scan in the slice views and in the panel; None for no result."""
        if (parameters := self._context.parameters) is None:
            return
        self.forget()
        parameters.result = nodes.anomalyMap if nodes is not None else None
        for other in results.resultsIn(self._scene):
            if nodes is None or other.anomalyMap is not nodes.anomalyMap:
                display.hideAnomalyMap(self._scene, other.anomalyMap)
        if nodes is not None:
            display.showInSlices(self._scene, nodes.inputNode, nodes.anomalyMap, parameters.output.opacity)
        self.showNoOther()
        self._context.refreshSoon()

    def showNoOther(self) -> None:
        """Outline and surface of the result that is shown alone, also when a scene brings others with it."""
        results.outlineOnly(self._scene, self.nodes())
        self._showSurface()

    def forget(self) -> None:
        """Let go of the anomaly map that was shown."""
        self._surface.stop()
        self._live, self._liveOf, self._found, self._overlays = None, ("", 0), None, None

    def close(self) -> None:
        """Let go of the scene."""
        self.forget()
        self._watch.close()

    def refresh(self, parameters: Any) -> None:
        nodes = self.nodes()
        self._watch.follow(None if nodes is None else nodes.inputNode)
        with silent(self._ui.resultSelector):
            self._ui.resultSelector.setCurrentNode(parameters.result)
        for widget in self._controls():
            widget.setEnabled(nodes is not None)
        if nodes is None:
            say(self._ui.warningLabel, "")
            say(self._ui.summaryLabel, "")
            self._table.show([])
            return
        self._ui.show3DCheckBox.setEnabled(nodes.segmentation is not None)
        if (shown := nodes.anomalyMap.GetVolumeDisplayNode()) is not None:
            with silent(self._ui.colorSelector):
                self._ui.colorSelector.setCurrentNode(shown.GetColorNode())
        doubts = [results.keepTogether(nodes), results.otherFrame(nodes), *attributes.warnings(nodes.anomalyMap)]
        say(self._ui.warningLabel, "\n".join(filter(None, doubts)))
        self._showOverlays(nodes)
        if self._found is None or self._isStale(nodes):
            self._found = self._threshold(nodes).at(nodes.threshold, nodes.minVolumeMl)
        if nodes.table is not None and not findingsTable.isInPlace(nodes.table, nodes.anomalyMap, self._found):
            findingsTable.fillTable(nodes.table, nodes.anomalyMap, self._threshold(nodes), self._found)
        self._showThreshold(nodes)
        self._showFindings(nodes)

    def setThreshold(self, threshold: float) -> None:
        """Let mask, segmentation and table follow another threshold, at once."""
        nodes = self.nodes()
        if nodes is None or threshold == nodes.threshold:
            return
        # Only what the anomaly map says is in force; the slider shows it, and keeps no threshold of its own.
        surface = nodes.segmentation is not None and segmentation.isSurfaceShown(nodes.segmentation)
        if surface:
            nodes.segmentation.RemoveClosedSurfaceRepresentation()
        self._found = results.applyThreshold(nodes, self._threshold(nodes), threshold, nodes.minVolumeMl)
        self._showThreshold(nodes)
        self._showFindings(nodes)
        if surface or self._ui.show3DCheckBox.checked:
            self._surface.start()

    def jumpTo(self, row: int, column: int = 0) -> None:
        """Let all slice views show a finding."""
        nodes = self.nodes()
        if nodes is not None and self._found is not None and 0 <= row < len(self._found.findings):
            sequences.goTo(nodes.anomalyMap, nodes.inputNode)
            display.jumpTo(self._scene, findingsTable.centre(self._found.findings[row], nodes.anomalyMap))

    def name(self, row: int, name: str) -> None:
        """Name a finding."""
        nodes = self.nodes()
        if nodes is not None and nodes.table is not None and self._found is not None:
            findingsTable.setName(nodes.table, nodes.anomalyMap, self._threshold(nodes), self._found, row, name)
            self._showFindings(nodes)

    def remove(self) -> None:
        """Take the result that is shown out of the scene, with everything that belongs to it."""
        if (nodes := self.nodes()) is not None:
            self.forget()
            results.removeResults(self._scene, nodes)
            self._context.refreshSoon()

    def _showOverlays(self, nodes: ResultNodes) -> None:
        """Map, outline and colour scale, unless the scan shows another frame than the one that they belong to."""
        if (parameters := self._context.parameters) is None:
            return
        shown = sequences.isInView(nodes.anomalyMap, nodes.inputNode)
        if shown != self._overlays and (self._overlays is not None or not shown):
            display.setOpacity(self._scene, nodes.anomalyMap, parameters.output.opacity if shown else 0.0)
            results.outlineOnly(self._scene, nodes if shown else None)
        self._overlays = shown
        display.showLegend(nodes.anomalyMap, shown and parameters.output.colorScale)

    def _showThreshold(self, nodes: ResultNodes) -> None:
        """The slider reaches as far as there are scores, so that every step of a drag does something."""
        slider = self._ui.thresholdSlider
        with silent(slider):
            slider.maximum = farthest(self._threshold(nodes).peak, nodes.threshold)
            slider.value = nodes.threshold

    def _threshold(self, nodes: ResultNodes) -> LiveThreshold:
        if self._live is None or self._isStale(nodes):
            self._live, self._liveOf = results.liveThresholdOf(nodes), self._versionOf(nodes)
        return self._live

    def _isStale(self, nodes: ResultNodes) -> bool:
        return self._liveOf != self._versionOf(nodes)

    @staticmethod
    def _versionOf(nodes: ResultNodes) -> tuple[str, int]:
        return nodes.anomalyMap.GetID(), nodes.anomalyMap.GetImageData().GetMTime()

    def _showFindings(self, nodes: ResultNodes) -> None:
        if self._found is None:
            return
        names, unit = self._names(), self._threshold(nodes).unit
        rows = [
            (
                names.get(finding.id, str(finding.id)),
                f"{finding.size:.2f}" if unit == "ml" else f"{finding.size:.0f} {unit}",
                f"{finding.peak_score:.2f}",
                findingsTable.inWords(finding, nodes.anomalyMap),
            )
            for finding in self._found.findings
        ]
        self._table.show(rows)
        say(self._ui.summaryLabel, findingsTable.summary(self._found.findings, unit))

    def _names(self) -> dict[int, str]:
        """Of the findings that are shown and have one, by their ids."""
        nodes = self.nodes()
        if nodes is None or nodes.table is None or self._found is None:
            return {}
        return findingsTable.namesOf(nodes.table, self._threshold(nodes), self._found)

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
        found = (nodes for nodes in results.resultsIn(self._scene) if nodes.anomalyMap is node)
        self.show(next(found, None))

    def _onOpacity(self, value: float) -> None:
        if (nodes := self.nodes()) is not None:
            display.setOpacity(self._scene, nodes.anomalyMap, value)

    def _onColor(self, node: Any) -> None:
        nodes = self.nodes()
        if node is not None and nodes is not None and nodes.anomalyMap.GetVolumeDisplayNode() is not None:
            nodes.anomalyMap.GetVolumeDisplayNode().SetAndObserveColorNodeID(node.GetID())

    def _onThreshold(self, value: float) -> None:
        if self._context.parameters is not None:
            self.setThreshold(value)

    def _onResetThreshold(self, checked: bool = False) -> None:
        nodes = self.nodes()
        if nodes is not None and (made := attributes.document(nodes.anomalyMap)):
            self.setThreshold(float(made["threshold"]["heat"]))

    def _onShow3D(self, shown: bool) -> None:
        self._showSurface()

    def _showSurface(self) -> None:
        """The surface of the result that is shown, if it is wanted; none of any other."""
        shown = self.nodes()
        for nodes in results.resultsIn(self._scene):
            isShown = shown is not None and nodes.anomalyMap is shown.anomalyMap
            wanted = isShown and self._ui.show3DCheckBox.checked
            if nodes.segmentation is not None and wanted != segmentation.isSurfaceShown(nodes.segmentation):
                with slicer.util.tryWithErrorDisplay(_("The surface could not be made."), waitCursor=True):
                    segmentation.showSurface(nodes.segmentation, wanted)

    def _onName(self, row: int, column: int) -> None:
        if self._found is None:
            return
        dialog = qt.QInputDialog(slicer.util.mainWindow())
        dialog.setWindowTitle(_("Name a finding"))
        dialog.setLabelText(_("Name (leave it empty to take the name away):"))
        dialog.setTextValue(self._names().get(self._found.findings[row].id, ""))
        if dialog.exec_():
            self.name(row, dialog.textValue())
