"""The panel's part on running: one button for Run and Cancel, the queue, progress and the log."""

from __future__ import annotations

import time
from typing import Any

import qt
import slicer

from diffusion_anomaly.errors import EngineError, InputError

from ..detection import Detection
from ..process.jobqueue import Entry
from ..progresstext import percent, plain, progressLine, shortened, stateTitle
from ..translation import tr as _
from .context import PanelContext
from .inputpanel import InputPanel
from .installpanel import InstallPanel
from .methodpanel import MethodPanel
from .qthelpers import Table, say
from .resultpanel import ResultPanel

ROWS_SHOWN = 4
DOUBLE_CLICK_SECONDS = 0.6


class RunPanel:
    """Starts, queues, shows and cancels; see ``Panel``."""

    def __init__(
        self,
        context: PanelContext,
        detection: Detection,
        input_: InputPanel,
        install: InstallPanel,
        method: MethodPanel,
        results: ResultPanel,
    ) -> None:
        self._context = context
        self._detection = detection
        self._input, self._install, self._method, self._results = input_, install, method, results
        self._ui = context.ui
        self._queue = detection.queue
        self._table = Table(self._ui.queueTable, [_("Volume"), _("State"), _("What happened")], ROWS_SHOWN)
        self._shownLog = ""
        self._startedAt = 0.0
        self._ui.runButton.connect("clicked(bool)", self.onRun)
        self._ui.queueTable.connect("cellDoubleClicked(int,int)", self._onRow)
        self._ui.cancelSelectedButton.connect("clicked(bool)", self._onCancelSelected)
        self._ui.cancelAllButton.connect("clicked(bool)", self._onCancelAll)
        self._ui.clearQueueButton.connect("clicked(bool)", self._onClear)
        self._ui.copyLogButton.connect("clicked(bool)", self._onCopyLog)

    def refresh(self, parameters: Any) -> None:
        running = self._entryOfInput(parameters)
        problem = self.problem(parameters)
        button = self._ui.runButton
        if running is not None:
            button.setText(_("Cancel"))
            button.setEnabled(True)
            button.setToolTip(plain(_("Stop the analysis of {name}.").format(name=running.title)))
        else:
            button.setText(_("Add to queue") if self._queue.isBusy else _("Run"))
            button.setEnabled(not problem)
            button.setToolTip(plain(problem) or _("Analyse the volume in the background; Slicer stays usable."))
        last = self._queue.entries[-1] if self._queue.entries else None
        said = f"{shortened(last.title)}: {last.message}" if last is not None and last.message else ""
        say(self._ui.messageLabel, problem or "\n".join(filter(None, [said, self._method.doubt(parameters)])))
        self._table.show([(entry.title, stateTitle(entry.state), entry.message) for entry in self._queue.entries])
        # The result of a single run that went well is shown already.
        isListed = len(self._queue.entries) > 1 or any(entry.message for entry in self._queue.entries)
        for widget in (
            self._ui.queueTable,
            self._ui.cancelSelectedButton,
            self._ui.cancelAllButton,
            self._ui.clearQueueButton,
        ):
            widget.setVisible(isListed)
        self.tick()

    def tick(self) -> None:
        """What changes by itself: progress, time left and log."""
        current = self._queue.current
        for widget in (self._ui.progressBar, self._ui.progressLabel):
            widget.setVisible(current is not None)
        if current is not None:
            self._ui.progressBar.setValue(percent(current.job))
            self._ui.progressLabel.setText(f"{shortened(current.title)}: {progressLine(current.job)}")
        if not self._ui.logCollapsibleButton.collapsed:
            self._showLog()

    def problem(self, parameters: Any) -> str:
        """Why Run is disabled; empty when it is not."""
        return self._input.problem(parameters) or self._install.problem(parameters) or self._method.problem(parameters)

    def log(self) -> str:
        """All that can help to find out what went wrong."""
        parts = [self._install.log()]
        for entry in self._queue.entries:
            parts.append(f"# {entry.title}: {stateTitle(entry.state)} {entry.message}".rstrip())
            parts.append(_("Working folder: {folder}").format(folder=entry.job.workspace.folder))
            parts.extend(entry.job.log)
        return "\n".join(filter(None, parts))

    def onRun(self, checked: bool = False) -> None:
        """Run the volume that is chosen; cancel it if that is under way already."""
        parameters = self._context.parameters
        running = self._entryOfInput(parameters)
        if running is not None:
            if time.monotonic() - self._startedAt > DOUBLE_CLICK_SECONDS:  # else it is the same request, clicked twice
                self._queue.cancel(running)
            return
        if not self._method.licencesAccepted(parameters) or not self._method.mayLeave(parameters):
            return
        try:
            with slicer.util.WaitCursor():
                request = self._method.request(parameters)
                if parameters.method.model and request.model != parameters.method.model:
                    gone, parameters.method.model = parameters.method.model, ""
                    raise InputError(
                        _("The model {folder} is not there any more.").format(folder=gone),
                        _("Another one is chosen now: press Run again to use it."),
                    )
                channels = self._input.channels(parameters)
                self._detection.add(
                    parameters.inputVolume, request, parameters.brainMask, parameters.brainSegment, channels
                )
                self._startedAt = time.monotonic()
        except EngineError as error:
            say(self._ui.messageLabel, str(error))
            slicer.util.warningDisplay(plain(str(error)), _("DiffusionAnomaly"))

    def _entryOfInput(self, parameters: Any) -> Entry | None:
        """The entry of the chosen volume that runs or waits."""
        volume = parameters.inputVolume
        for entry in self._queue.entries:
            if volume is not None and not entry.state.isOver and entry.request.place.nodeId == volume.GetID():
                return entry
        return None

    def _onRow(self, row: int, column: int) -> None:
        """Show the result of the volume that was double-clicked."""
        if 0 <= row < len(self._queue.entries):
            nodes = self._detection.resultOf(self._queue.entries[row])
            if nodes is not None:
                self._queue.entries[row].message = ""
                self._results.show(nodes)

    def _onCancelSelected(self, checked: bool = False) -> None:
        row = self._ui.queueTable.currentRow()
        if 0 <= row < len(self._queue.entries):
            self._queue.cancel(self._queue.entries[row])

    def _onCancelAll(self, checked: bool = False) -> None:
        self._queue.cancelAll()

    def _onClear(self, checked: bool = False) -> None:
        self._queue.clearFinished()

    def _onCopyLog(self, checked: bool = False) -> None:
        slicer.app.clipboard().setText(self.log())

    def _showLog(self) -> None:
        log = self.log()
        if log != self._shownLog:
            self._shownLog = log
            self._ui.logTextEdit.setPlainText(log)
            self._ui.logTextEdit.moveCursor(qt.QTextCursor.End)
