"""The panel's part on a prior exam of the same patient: what is new, grown, shrunk or gone since."""

from __future__ import annotations

from typing import Any

import qt
import slicer

from diffusion_anomaly.errors import EngineError

from ..process.qtprocess import QtProcess
from ..process.workspace import Workspace
from ..progresstext import plain
from ..scene import attributes, comparing, patients, views
from ..scene.comparing import Comparing, ComparisonNodes
from ..scene.results import ResultNodes, resultsIn
from ..translation import tr as _
from .context import PanelContext
from .qthelpers import Combo, Table, fitSlices, say
from .resultpanel import ResultPanel


class PriorPanel:
    """Compares the result that is shown with one of another scan; see ``Panel``.

    Asks nothing of the scene while its section is closed.
    """

    def __init__(self, context: PanelContext, results: ResultPanel) -> None:
        self._context = context
        self._results = results
        self._ui = context.ui
        self._running: Comparing | None = None
        self._problem = ""
        self._opened: list[Workspace] = []
        self._combo = Combo(self._ui.priorComboBox, self._onChosen)
        titles = [_("Change"), _("Before (ml)"), _("Now (ml)"), _("Place")]
        self._table = Table(self._ui.changesTable, titles)
        self._ui.priorCollapsibleButton.connect("contentsCollapsed(bool)", self._onOpened)
        self._ui.compareButton.connect("clicked(bool)", self.onCompare)
        self._ui.openComparisonButton.connect("clicked(bool)", self._onOpenPage)
        self._ui.removeComparisonButton.connect("clicked(bool)", self._onRemove)
        # The arrow keys move through the list too.
        self._ui.changesTable.connect("currentCellChanged(int,int,int,int)", self._onCurrent)

    def refresh(self, parameters: Any) -> None:
        if self._ui.priorCollapsibleButton.collapsed:
            return
        current = self._results.nodes()
        others = self._others(current)
        items = [(nodes.anomalyMap.GetID(), nodes.inputNode.GetName()) for nodes in others]
        chosen = "" if parameters.prior is None else parameters.prior.GetID()
        if items and chosen not in [key for key, _title in items]:
            chosen = items[-1][0]
            parameters.prior = others[-1].anomalyMap
        self._combo.show(items, chosen)
        shown = self._comparison()
        isRunning = self._running is not None
        self._ui.priorComboBox.setEnabled(bool(items) and not isRunning)
        self._ui.compareButton.setEnabled(bool(items) and not isRunning)
        self._ui.openComparisonButton.setEnabled(shown is not None and shown.page is not None)
        self._ui.removeComparisonButton.setEnabled(shown is not None)
        self._table.show([] if shown is None else [_row(change) for change in _changes(shown)])
        say(self._ui.priorLabel, plain(self._inWords(current, bool(items), shown)))

    def onCompare(self, checked: bool = False) -> None:
        """Begin the comparison, in the background."""
        current = self._results.nodes()
        parameters = self._context.parameters
        chosen = None if parameters is None else parameters.prior
        prior = next((nodes for nodes in self._others(current) if nodes.anomalyMap is chosen), None)
        if current is None or prior is None or self._running is not None:
            return
        self._problem = ""
        doubt = patients.doubt(prior.inputNode, current.inputNode)
        if doubt and not self._isMeant(doubt):
            return
        try:
            self._running = Comparing(
                prior, current, slicer.app.temporaryPath, QtProcess(), self._onFinished, samePatient=bool(doubt)
            )
        except EngineError as error:
            self._problem = str(error)
        self._context.refreshSoon()

    def tick(self) -> None:
        """To be called a few times a second."""
        if self._running is not None:
            self._running.tick()

    def close(self) -> None:
        """Compare no more, and delete the pages that were opened: they show the patient."""
        if self._running is not None:
            self._running.close()
            self._running = None
        for folder in self._opened:
            folder.remove()

    def _others(self, current: ResultNodes | None) -> list[ResultNodes]:
        """Results of other scans, which are not pictures; none for a picture."""
        if current is None or attributes.isPicture(current.anomalyMap):
            return []
        others = [nodes for nodes in resultsIn(self._context.scene) if nodes.inputNode is not current.inputNode]
        return [nodes for nodes in others if not attributes.isPicture(nodes.anomalyMap)]

    def _comparison(self) -> ComparisonNodes | None:
        """The last one of the result that is shown."""
        current = self._results.nodes()
        if current is None:
            return None
        made = comparing.comparisonsIn(self._context.scene)
        return next((one for one in reversed(made) if one.current.anomalyMap is current.anomalyMap), None)

    def _inWords(self, current: ResultNodes | None, hasOthers: bool, shown: ComparisonNodes | None) -> str:
        if self._running is not None:
            return _("The two scans are registered and compared…")
        if self._problem:
            return self._problem
        if current is None:
            return _("Run the current scan first.")
        if attributes.isPicture(current.anomalyMap):
            return _("{name} is a single picture, and pictures are not compared.").format(
                name=current.inputNode.GetName()
            )
        if not hasOthers and shown is None:
            return _("Load the prior scan of the patient and run it too, with the same model.")
        return "" if shown is None else "\n".join(shown.statistics.get("warnings", []))

    @staticmethod
    def _isMeant(doubt: str) -> bool:
        """Pseudonyms of one patient may differ too: the user knows."""
        text = _("{doubt} Compare them all the same, as two exams of one patient?").format(doubt=doubt)
        return slicer.util.confirmOkCancelDisplay(plain(text), _("Two patients"))

    def _onOpened(self, collapsed: bool = False) -> None:
        self._context.refreshSoon()

    def _onChosen(self, key: str) -> None:
        if self._context.parameters is not None:
            self._context.parameters.prior = self._context.scene.GetNodeByID(key)

    def _onFinished(self, problem: str) -> None:
        made, self._running = self._running, None
        self._problem = problem
        if made is not None and made.nodes is not None:
            comparing.show(self._context.scene, made.nodes)
            fitSlices([views.SCAN_VIEW, views.MAP_VIEW])  # both exams at one scale
        self._context.refreshSoon()

    def _onCurrent(self, row: int, column: int, previousRow: int, previousColumn: int) -> None:
        if row >= 0 and (shown := self._comparison()) is not None:
            self._results.findings.deselect()  # a box around another place would mislead
            comparing.jumpTo(self._context.scene, shown, row)

    def _onOpenPage(self, checked: bool = False) -> None:
        if (shown := self._comparison()) is None or shown.page is None:
            return
        with slicer.util.tryWithErrorDisplay(_("The page could not be opened.")):
            folder = Workspace(slicer.app.temporaryPath)
            self._opened.append(folder)
            path = folder.folder / "comparison.html"
            path.write_text(shown.page.GetText(), encoding="utf-8")
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path)))

    def _onRemove(self, checked: bool = False) -> None:
        if (shown := self._comparison()) is not None:
            comparing.remove(self._context.scene, shown)
            self._context.refreshSoon()


def _changes(shown: ComparisonNodes) -> list[dict[str, Any]]:
    return shown.statistics.get("changes", [])


def _row(change: dict[str, Any]) -> tuple[str, ...]:
    return change["kind"], f"{change['prior_ml']:.2f}", f"{change['current_ml']:.2f}", change.get("place", "")
