"""The panel's part on findings: the list, going through it, and what a reader says of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import qt
import slicer

from ..progresstext import plain
from ..scene import attributes, display, findingsTable, results, review, selection, sequences, wording
from ..scene.history import History
from ..translation import tr as _
from .context import PanelContext
from .qthelpers import Table, say, silent

if TYPE_CHECKING:
    from ..scene.livethreshold import LiveThreshold, Thresholded
    from ..scene.results import ResultNodes

PLACE, COMMENT = 4, 5  # columns


class Owner(Protocol):
    """What the findings' panel asks of the one that shows the result, see ``ResultPanel``."""

    @property
    def found(self) -> Thresholded | None: ...

    def nodes(self) -> ResultNodes | None: ...

    def live(self, nodes: ResultNodes) -> LiveThreshold: ...

    def changed(self, found: Thresholded) -> None: ...

    def mayWriteOver(self, nodes: ResultNodes) -> bool: ...


class FindingsPanel:
    """Shows the findings of the result that ``ResultPanel`` shows; see ``Panel``.

    Keys work wherever the mouse is, but only while the module is in front, see ``setKeysActive``.
    """

    def __init__(self, context: PanelContext, owner: Owner) -> None:
        self._context = context
        self._ui = context.ui
        self._scene = context.scene
        self._owner = owner
        self.history = History()
        self._place: tuple[str, list[int]] | None = None  # the selected finding's anomaly map and highest voxel
        titles = [_("Name"), _("Review"), _("Size"), _("Peak"), _("Place"), _("Comment")]
        self._table = Table(self._ui.findingsTable, titles, wide=(PLACE, COMMENT))
        # Not only clicks: the arrow keys move through the list too.
        self._ui.findingsTable.connect("currentCellChanged(int,int,int,int)", self._onCurrent)
        self._ui.findingsTable.connect("cellClicked(int,int)", self.jumpTo)
        self._ui.findingsTable.connect("cellDoubleClicked(int,int)", self._onDoubleClick)
        actions: dict[str, tuple[Any, Callable[[], Any]]] = {
            "P": (self._ui.previousButton, lambda: self.go(-1)),
            "N": (self._ui.nextButton, lambda: self.go(1)),
            "A": (self._ui.acceptButton, lambda: self.judge(review.ACCEPTED)),
            "X": (self._ui.rejectButton, lambda: self.judge(review.REJECTED)),
            "U": (self._ui.undecidedButton, lambda: self.judge(review.UNDECIDED)),
            "C": (self._ui.commentButton, self.askForComment),
            "Z": (self._ui.undoButton, self.undo),
            "Y": (self._ui.redoButton, lambda: self.undo(forward=True)),
        }
        self._keys: list[tuple[Any, Callable[[], Any]]] = []
        for key, (button, action) in actions.items():
            button.connect("clicked(bool)", lambda checked=False, action=action: action())
            self.addKey(key, action)

    @property
    def row(self) -> int:
        """Of the selected finding; -1 for none."""
        nodes, found = self._owner.nodes(), self._owner.found
        if nodes is None or found is None or self._place is None or self._place[0] != nodes.anomalyMap.GetID():
            return -1
        return findingsTable.rowAt(self._place[1], self._owner.live(nodes), found)

    def addKey(self, key: str, action: Callable[[], Any]) -> None:
        """Let a key of the keyboard do something while the module is in front."""
        window = slicer.util.mainWindow()
        if window is not None:
            shortcut = qt.QShortcut(qt.QKeySequence(key), window)
            shortcut.enabled = False
            shortcut.connect("activated()", action)
            self._keys.append((shortcut, action))

    def setKeysActive(self, active: bool) -> None:
        """Other modules have keys of their own."""
        for shortcut, _action in self._keys:
            shortcut.enabled = active

    def close(self) -> None:
        """Let go of the keys."""
        for shortcut, action in self._keys:
            shortcut.enabled = False
            shortcut.disconnect("activated()", action)  # PythonQt would keep the panel alive
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._keys.clear()

    def forget(self) -> None:
        """Another result will be shown, or none."""
        self._place = None

    def deselect(self) -> None:
        """No finding is selected any more, and none has a box around it."""
        self.forget()
        selection.unmark(self._scene)
        self.refresh()

    def refresh(self) -> None:
        nodes, found = self._owner.nodes(), self._owner.found
        ui = self._ui
        if nodes is None or found is None:
            said = {}
            say(ui.summaryLabel, "")
            self._table.show([])
        else:
            live = self._owner.live(nodes)
            names = self._names()
            said = review.reviewsOf(nodes.table, live, found) if nodes.table is not None else {}
            states = {state: review.inWords(state) for state in review.STATES}
            rows = [
                (
                    names.get(finding.id, str(finding.id)),
                    states[(one := said.get(finding.id, review.Review())).state],
                    findingsTable.sizeInWords(finding.size, live.unit),
                    f"{finding.peak_score:.2f}",
                    finding.place or findingsTable.inWords(finding, nodes.anomalyMap),
                    one.comment,
                )
                for finding in found.findings
            ]
            self._table.show(rows)
            rejected = {finding for finding, one in said.items() if one.state == review.REJECTED}
            say(ui.summaryLabel, findingsTable.summary(found.findings, live.unit, rejected))
        row = self.row
        say(ui.findingLabel, self._inWords(row, said))
        with silent(ui.findingsTable):
            if row >= 0:
                ui.findingsTable.setCurrentCell(row, 0)
            else:
                ui.findingsTable.clearSelection()
        hasTable = nodes is not None and nodes.table is not None
        for button in (ui.acceptButton, ui.rejectButton, ui.undecidedButton, ui.commentButton):
            button.setEnabled(hasTable and row >= 0)
        for button in (ui.previousButton, ui.nextButton):
            button.setEnabled(bool(found is not None and nodes is not None and found.findings))
        key = "" if nodes is None else nodes.anomalyMap.GetID()
        ui.undoButton.setEnabled(self.history.canUndo(key))
        ui.redoButton.setEnabled(self.history.canRedo(key))

    def jumpTo(self, row: int, column: int = 0) -> None:
        """Let all views show a finding, and mark it."""
        nodes, found = self._owner.nodes(), self._owner.found
        if nodes is None or found is None or not 0 <= row < len(found.findings):
            return
        finding = found.findings[row]
        live = self._owner.live(nodes)
        self._place = (nodes.anomalyMap.GetID(), findingsTable.peakVoxel(finding, live, found))
        sequences.goTo(nodes.anomalyMap, nodes.inputNode)
        centre = findingsTable.centre(finding, nodes.anomalyMap)
        display.jumpTo(self._scene, centre)
        display.lookAt(self._scene, centre)
        selection.mark(self._scene, nodes, finding)
        selection.show(self._scene, not self._ui.overlaysButton.checked)
        meaning = wording.score(finding.peak_score, attributes.document(nodes.anomalyMap), live.unit)
        self._ui.findingsTable.setToolTip(plain(meaning))
        self.refresh()

    def go(self, by: int) -> None:
        """To the finding so many rows on; from the last one to the first."""
        if (found := self._owner.found) is not None and found.findings:
            row = self.row
            self.jumpTo((row + by) % len(found.findings) if row >= 0 else (0 if by > 0 else len(found.findings) - 1))

    def jumpToFirst(self) -> None:
        """To the first finding that was not rejected."""
        nodes, found = self._owner.nodes(), self._owner.found
        if nodes is not None and found is not None:
            said = review.reviewsOf(nodes.table, self._owner.live(nodes), found) if nodes.table is not None else {}
            states = [said.get(finding.id, review.Review()).state for finding in found.findings]
            self.jumpTo(next((row for row, state in enumerate(states) if state != review.REJECTED), 0))

    def judge(self, state: str) -> None:
        """Accept, reject or un-decide the selected finding."""
        self._review(state=state)

    def comment(self, text: str) -> None:
        """Comment the selected finding."""
        self._review(comment=text)

    def name(self, row: int, name: str) -> None:
        """Name a finding."""
        nodes, found = self._owner.nodes(), self._owner.found
        if nodes is not None and nodes.table is not None and found is not None:
            self.history.record(nodes, "name")
            findingsTable.setName(nodes.table, nodes.anomalyMap, self._owner.live(nodes), found, row, name)
            self._owner.changed(found)

    def undo(self, forward: bool = False) -> None:
        """Take the last step back, or forward again."""
        nodes, found = self._owner.nodes(), self._owner.found
        earlier = None if nodes is None else self.history.peek(nodes, forward)
        if nodes is None or found is None or earlier is None:
            return
        if earlier.threshold != nodes.threshold and not self._owner.mayWriteOver(nodes):
            return
        self.history.step(nodes, forward)
        self._owner.changed(results.restore(nodes, self._owner.live(nodes), found, earlier))

    def askForComment(self) -> None:
        """Ask the user for the comment on the selected finding."""
        row, nodes, found = self.row, self._owner.nodes(), self._owner.found
        if row < 0 or nodes is None or nodes.table is None or found is None:
            return
        said = review.reviewsOf(nodes.table, self._owner.live(nodes), found)
        before = said.get(found.findings[row].id, review.Review()).comment
        text = self._ask(_("Comment on a finding"), _("Comment (leave it empty to take it away):"), before)
        if text is not None:
            self.comment(text)

    def _inWords(self, row: int, said: Mapping[int, review.Review]) -> str:
        """The selected finding: where it lies, and the whole comment; a cell of the list may be too narrow for both."""
        nodes, found = self._owner.nodes(), self._owner.found
        if nodes is None or found is None or not 0 <= row < len(found.findings):
            return ""
        finding = found.findings[row]
        line = _("Finding {number}: {place}.").format(
            number=finding.id, place=findingsTable.inWords(finding, nodes.anomalyMap)
        )
        comment = said.get(finding.id, review.Review()).comment
        return line if not comment else "\n".join([line, _("Comment: {comment}").format(comment=comment)])

    def _review(self, **said: str) -> None:
        row, nodes, found = self.row, self._owner.nodes(), self._owner.found
        if row < 0 or nodes is None or nodes.table is None or found is None:
            return
        self.history.record(nodes, "review")
        self._owner.changed(results.applyReview(nodes, self._owner.live(nodes), found, row, **said))

    def _names(self) -> dict[int, str]:
        """Of the findings that are shown and have one, by their ids."""
        nodes, found = self._owner.nodes(), self._owner.found
        if nodes is None or nodes.table is None or found is None:
            return {}
        return findingsTable.namesOf(nodes.table, self._owner.live(nodes), found)

    def _onCurrent(self, row: int, column: int, rowBefore: int, columnBefore: int) -> None:
        if row != rowBefore:
            self.jumpTo(row)

    def _onDoubleClick(self, row: int, column: int) -> None:
        if column == COMMENT:
            self.askForComment()
            return
        found = self._owner.found
        if found is None or not 0 <= row < len(found.findings):
            return
        before = self._names().get(found.findings[row].id, "")
        name = self._ask(_("Name a finding"), _("Name (leave it empty to take the name away):"), before)
        if name is not None:
            self.name(row, name)

    @staticmethod
    def _ask(title: str, label: str, before: str) -> str | None:
        dialog = qt.QInputDialog(slicer.util.mainWindow())
        dialog.setWindowTitle(title)
        dialog.setLabelText(label)
        dialog.setTextValue(before)
        return dialog.textValue() if dialog.exec_() else None
