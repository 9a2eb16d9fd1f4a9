"""The panel's part on results: how the anomaly map is shown, and the live threshold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import qt
import slicer

from ..scene import (
    attributes,
    comparing,
    display,
    findingsTable,
    results,
    segmentation,
    selection,
    sequences,
    views,
    wording,
)
from ..scene.livethreshold import LiveThreshold, Thresholded
from ..scene.results import ResultNodes
from ..scene.watching import SceneWatch
from ..translation import tr as _
from .context import PanelContext
from .findingspanel import FindingsPanel
from .qthelpers import fitSlices, say, silent

if TYPE_CHECKING:
    from ..process.jobqueue import Entry

# Of the threshold slider; scores without a model may be far higher, where no threshold is of use.
HIGHEST = 20.0

# A surface of a whole brain takes seconds: it is made anew when the slider rests, not while it moves.
SURFACE_DELAY_MS = 500


def farthest(peak: float, threshold: float) -> float:
    """Where the threshold slider ends: above all scores, and not below the threshold in force."""
    return max(min(math.floor(max(peak, display.SHOWN_TO)) + 1.0, HIGHEST), threshold)


def _nothing(hasAny: bool) -> str:
    """What stands in place of a result."""
    if hasAny:
        return _("Choose a result.")
    return _("After a run: the anomaly map over the scan, with its threshold, the list of findings, and exports.")


class ResultPanel:
    """Shows one result of the scene; see ``Panel``. Its list of findings is ``FindingsPanel``'s.

    Attributes:
        found: findings at the threshold in force, and the mask without those that were rejected.
        findings: the list.
    """

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._ui = context.ui
        self._scene = context.scene
        self._live: LiveThreshold | None = None  # of the map that is shown; costs memory, so it is kept, not made anew
        self._liveOf: tuple[str, int] = ("", 0)
        self.found: Thresholded | None = None
        self._overlays: bool | None = None  # as they were last shown or hidden, so that a user's own opacity stays
        self._written = ("", -1)  # segmentation, and its version when it was last as the threshold makes it
        self._watch = SceneWatch(self._scene, context.refreshSoon)
        self.findings = FindingsPanel(context, self)
        self._surface = qt.QTimer()
        self._surface.setSingleShot(True)
        self._surface.setInterval(SURFACE_DELAY_MS)
        self._surface.connect("timeout()", self._showSlow)
        # The panel is as wide before a run as it is after one.
        self._ui.noResultLabel.setMinimumWidth(self._ui.resultFrame.minimumSizeHint.width())
        self._ui.resultSelector.addAttribute("vtkMRMLScalarVolumeNode", attributes.ROLE, results.ANOMALY_MAP)
        # Not currentNodeChanged: while nodes come and go, as in an import, the selector goes through others by itself.
        self._ui.resultSelector.connect("nodeActivated(vtkMRMLNode*)", self._onResult)
        self._ui.opacitySlider.connect("valueChanged(double)", self._onOpacity)
        self._ui.colorSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onColor)
        self._ui.thresholdSlider.connect("valueChanged(double)", self._onThreshold)
        self._ui.resetThresholdButton.connect("clicked(bool)", self._onResetThreshold)
        self._ui.show3DCheckBox.connect("toggled(bool)", lambda checked=False: self._showSlow())
        self._ui.segmentsCheckBox.connect("toggled(bool)", lambda checked=False: self._showSlow())
        self._ui.sideBySideCheckBox.connect("toggled(bool)", self._onSideBySide)
        self._ui.overlaysButton.connect("toggled(bool)", lambda checked=False: self._context.refreshSoon())
        self.findings.addKey("H", self._ui.overlaysButton.toggle)
        self._ui.removeResultButton.connect("clicked(bool)", lambda checked=False: self.remove())

    def nodes(self) -> ResultNodes | None:
        """The result that is shown."""
        parameters = self._context.parameters
        return results.resultOf(parameters.result) if parameters is not None else None

    def select(self, entry: Entry, nodes: ResultNodes) -> None:
        """Show a result that has just come, unless another scan is in view by now."""
        parameters = self._context.parameters
        isChosen = parameters is not None and parameters.inputVolume is nodes.inputNode
        if isChosen or display.isInView(self._scene, nodes.inputNode):
            self.show(nodes)
            self.findings.jumpToFirst()
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
                views.handOver(self._scene, other.anomalyMap, None if nodes is None else nodes.anomalyMap)
                display.hideAnomalyMap(self._scene, other.anomalyMap)
        if nodes is not None:
            self._ui.resultsCollapsibleButton.collapsed = False
            self._ui.overlaysButton.setChecked(False)
            self._arrange(nodes)
            self.found = results.findingsOf(nodes, self.live(nodes))
        selection.unmark(self._scene)
        self.showNoOther()
        self._context.refreshSoon()

    def showNoOther(self) -> None:
        """Outline and surface of the result that is shown alone, also when a scene brings others with it."""
        results.outlineOnly(self._scene, self.nodes())
        self._showSlow()

    def forget(self) -> None:
        """Let go of the anomaly map that was shown."""
        self._surface.stop()
        self._live, self._liveOf, self.found, self._overlays = None, ("", 0), None, None
        self.findings.forget()

    def close(self) -> None:
        """Let go of the scene and of the keyboard."""
        self.forget()
        self._surface.disconnect("timeout()", self._showSlow)
        self._watch.close()
        self.findings.close()

    def refresh(self, parameters: Any) -> None:
        nodes = self.nodes()
        self._watch.follow(None if nodes is None else nodes.inputNode)
        hasAny = nodes is not None or bool(results.resultsIn(self._scene))
        self._ui.resultChoiceFrame.setVisible(hasAny)
        self._ui.resultFrame.setVisible(nodes is not None)
        say(self._ui.noResultLabel, _nothing(hasAny) if nodes is None else "")
        with silent(self._ui.resultSelector):
            self._ui.resultSelector.setCurrentNode(parameters.result)
        self._ui.removeResultButton.setEnabled(nodes is not None)
        if nodes is None:
            selection.unmark(self._scene)
            self.findings.refresh()
            return
        isPicture = attributes.isPicture(nodes.anomalyMap)
        self._ui.show3DCheckBox.setEnabled(nodes.segmentation is not None and not isPicture)
        say(self._ui.imageScoreLabel, wording.wholeImage(attributes.document(nodes.anomalyMap)))
        display.showBelow(nodes.anomalyMap, parameters.output.belowThreshold, nodes.threshold)
        if (shown := nodes.anomalyMap.GetVolumeDisplayNode()) is not None:
            with silent(self._ui.colorSelector):
                self._ui.colorSelector.setCurrentNode(shown.GetColorNode())
        doubts = [results.keepTogether(nodes), results.otherFrame(nodes), *attributes.warnings(nodes.anomalyMap)]
        doubts.append(attributes.problemWithPeakMargin(nodes.anomalyMap))
        say(self._ui.warningLabel, "\n".join(filter(None, [*doubts, *findingsTable.problemsWith(nodes.table)])))
        self._showOverlays(nodes)
        if self.found is None or self._isStale(nodes):
            self.found = results.findingsOf(nodes, self.live(nodes))
        if nodes.table is not None and not findingsTable.isInPlace(nodes.table, nodes.anomalyMap, self.found):
            findingsTable.fillTable(nodes.table, nodes.anomalyMap, self.live(nodes), self.found)
        self._showThreshold(nodes)
        self.findings.refresh()

    def setThreshold(self, threshold: float) -> None:
        """Let mask, segmentation and table follow another threshold, at once."""
        nodes = self.nodes()
        if nodes is None or threshold == nodes.threshold:
            return
        if not self.mayWriteOver(nodes):
            self._showThreshold(nodes)
            return
        # Only what the anomaly map says is in force; the slider shows it, and keeps no threshold of its own.
        self.findings.history.record(nodes, "threshold")
        self.changed(results.applyThreshold(nodes, self.live(nodes), threshold, nodes.minVolumeMl))

    def mayWriteOver(self, nodes: ResultNodes) -> bool:
        """Whether the segmentation may be made anew: the user is asked if it was edited, and a copy keeps the edits."""
        if nodes.segmentation is None:
            return True
        version = (nodes.segmentation.GetID(), segmentation.versionOf(nodes.segmentation))
        if version == self._written:
            return True
        found = self.found or results.findingsOf(nodes, self.live(nodes))
        if results.isEdited(nodes, self.live(nodes), found):
            text = _(
                "The segmentation was edited by hand, and another threshold makes it anew. A copy with your edits is "
                "put beside it, which no threshold changes."
            )
            if not slicer.util.confirmOkCancelDisplay(text, _("Segmentation edited")):
                return False
            results.keepEdits(nodes)
        self._written = version
        return True

    def changed(self, found: Thresholded) -> None:
        """Show what was made of the result that is shown: another threshold, a review, a step back."""
        nodes = self.nodes()
        if nodes is None:
            return
        before, self.found = self.found, found
        isAnew = before is None or before.threshold != found.threshold
        if nodes.segmentation is not None and isAnew:
            self._written = (nodes.segmentation.GetID(), segmentation.versionOf(nodes.segmentation))
        self._showThreshold(nodes)
        self.findings.refresh()
        if self._ui.show3DCheckBox.checked or self._ui.segmentsCheckBox.checked:
            self._surface.start()

    def live(self, nodes: ResultNodes) -> LiveThreshold:
        """The anomaly map of a result, ready for other thresholds."""
        if self._live is None or self._isStale(nodes):
            self._live, self._liveOf = results.liveThresholdOf(nodes), self._versionOf(nodes)
        return self._live

    def remove(self) -> None:
        """Take the result that is shown out of the scene, with everything that belongs to it."""
        if (nodes := self.nodes()) is not None:
            self.forget()
            selection.unmark(self._scene, nodes.anomalyMap)
            for comparison in comparing.comparisonsIn(self._scene):
                if comparison.current.anomalyMap is nodes.anomalyMap:
                    comparing.remove(self._scene, comparison)
            results.removeResults(self._scene, nodes)
            self._context.refreshSoon()

    def _arrange(self, nodes: ResultNodes) -> None:
        """The layout that is wanted, with the result in it."""
        if (parameters := self._context.parameters) is None:
            return
        isBeside, isPicture = parameters.output.sideBySide, attributes.isPicture(nodes.anomalyMap)
        views.arrange(self._scene, nodes.anomalyMap, isBeside, nodes.inputNode if isPicture else None)
        display.showInSlices(self._scene, nodes.inputNode, nodes.anomalyMap, parameters.output.opacity)
        if isBeside:
            fitSlices([views.MAP_VIEW])
        if isPicture:
            fitSlices([views.SCAN_VIEW])

    def _showOverlays(self, nodes: ResultNodes) -> None:
        """All that lies over the scan, unless it is hidden or the scan shows another frame than it belongs to."""
        if (parameters := self._context.parameters) is None:
            return
        shown = sequences.isInView(nodes.anomalyMap, nodes.inputNode) and not self._ui.overlaysButton.checked
        if shown != self._overlays and (self._overlays is not None or not shown):
            display.setOpacity(self._scene, nodes.anomalyMap, parameters.output.opacity if shown else 0.0)
            results.outlineOnly(self._scene, nodes if shown else None)
            selection.show(self._scene, shown)
        self._overlays = shown
        display.showLegend(nodes.anomalyMap, shown and parameters.output.colorScale)

    def _showThreshold(self, nodes: ResultNodes) -> None:
        """The slider reaches as far as there are scores, so that every step of a drag does something."""
        slider, live = self._ui.thresholdSlider, self.live(nodes)
        with silent(slider):
            slider.maximum = farthest(live.peak, nodes.threshold)
            slider.value = nodes.threshold
        told = [
            wording.score(nodes.threshold, attributes.document(nodes.anomalyMap), live.unit),
            wording.peakMargin(nodes.threshold, live.peakMargin),
        ]
        say(self._ui.scoreLabel, " ".join(filter(None, told)))

    def _isStale(self, nodes: ResultNodes) -> bool:
        return self._liveOf != self._versionOf(nodes)

    @staticmethod
    def _versionOf(nodes: ResultNodes) -> tuple[str, int]:
        return nodes.anomalyMap.GetID(), nodes.anomalyMap.GetImageData().GetMTime()

    def _onResult(self, node: Any) -> None:
        self.show(results.resultOf(node))

    def _onOpacity(self, value: float) -> None:
        nodes = self.nodes()
        if nodes is not None and self._overlays is not False:
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

    def _onSideBySide(self, checked: bool = False) -> None:
        parameters, nodes = self._context.parameters, self.nodes()
        if parameters is not None and nodes is not None:
            parameters.output.sideBySide = checked
            row = self.findings.row
            self._arrange(nodes)
            results.outlineOnly(self._scene, nodes)
            self._overlays = None
            if row >= 0:  # views of another layout begin in the middle of the scan, once they are there
                qt.QTimer.singleShot(0, lambda: self.findings.jumpTo(row))
            self._context.refreshSoon()

    def _showSlow(self) -> None:
        """Surfaces and a segment for each finding, of the result that is shown, if they are wanted; of no other."""
        shown = self.nodes()
        for nodes in results.resultsIn(self._scene):
            isShown = shown is not None and nodes.anomalyMap is shown.anomalyMap
            if isShown and self.found is not None:
                wanted = self._ui.segmentsCheckBox.checked
                if wanted or nodes.segments is not None:
                    results.segmentFindings(self._scene, nodes, self.live(nodes), self.found, wanted)
                    results.outlineOnly(self._scene, nodes if self._overlays is not False else None)
            isPicture = attributes.isPicture(nodes.anomalyMap)  # flat: the check box is kept for the next scan
            wanted = isShown and self._ui.show3DCheckBox.checked and not isPicture
            for node in nodes.outlines:
                wantedOfNode = wanted and node is nodes.outlines[-1]
                if wantedOfNode != segmentation.isSurfaceShown(node):
                    with slicer.util.tryWithErrorDisplay(_("The surface could not be made."), waitCursor=True):
                        segmentation.showSurface(node, wantedOfNode)
            if wanted or nodes.brainSurface is not None:
                with slicer.util.tryWithErrorDisplay(_("The brain's surface could not be made."), waitCursor=True):
                    selection.showBrain(self._scene, nodes, wanted)
