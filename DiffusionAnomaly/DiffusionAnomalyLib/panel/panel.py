"""The panel as a whole: its parts, the parameter node that they share, and the timer that keeps them going.

The parts hold no state: what the user set is in the parameter node, what runs is in the queue, what came out is in the
scene. ``refresh`` shows all of it anew and may be called at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import qt

from ..detection import Detection
from .batchpanel import BatchPanel
from .context import PanelContext
from .exportpanel import ExportPanel
from .inputpanel import InputPanel
from .installpanel import InstallPanel
from .methodpanel import MethodPanel
from .priorpanel import PriorPanel
from .resultpanel import ResultPanel
from .runpanel import RunPanel

if TYPE_CHECKING:
    from ..process.jobqueue import Entry
    from ..scene.results import ResultNodes

TICK_MS = 100


class Panel:
    """Connects the widgets of ``DiffusionAnomaly.ui`` with a detection.

    Args:
        ui: the widgets by name, from ``slicer.util.childWidgetVariables``.
        detection: runs and loads.
    """

    def __init__(self, ui: Any, detection: Detection) -> None:
        self.detection = detection
        context = PanelContext(ui, detection.scene, detection.settings, self.refreshSoon)
        self._context = context
        self.input = InputPanel(context)
        self.method = MethodPanel(context)
        self.install = InstallPanel(context, detection, self.method)
        self.results = ResultPanel(context)
        self.run = RunPanel(context, detection, self.input, self.install, self.method, self.results)
        self.batch = BatchPanel(context, detection, self.install, self.method)
        self.export = ExportPanel(context, self.results)
        self.prior = PriorPanel(context, self.results)
        detection.onChanged = self.refreshSoon
        detection.onResults = self._onResults
        # A drag of a slider or a busy worker changes things more often than they can be read.
        self._soon = qt.QTimer()
        self._soon.setSingleShot(True)
        self._soon.setInterval(TICK_MS)
        self._soon.connect("timeout()", self.refresh)
        self._timer = qt.QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.connect("timeout()", self._tick)
        self._seen: tuple[Any, ...] = ()
        self._timer.start()

    @property
    def parameters(self) -> Any:
        """The parameter node that is shown; None while a scene closes."""
        return self._context.parameters

    def setParameters(self, parameters: Any) -> None:
        """Show another parameter node, or none while a scene closes."""
        self._context.parameters = parameters
        self.results.forget()
        self.refresh()

    def refreshSoon(self) -> None:
        """Show everything anew within a tick."""
        if not self._soon.isActive():
            self._soon.start()

    def refresh(self) -> None:
        """Show everything anew."""
        if self.parameters is None:
            return
        parts = (self.input, self.method, self.install, self.batch, self.run, self.results, self.export, self.prior)
        for part in parts:
            part.refresh(self.parameters)

    def close(self) -> None:
        """Stop the timers and every process; nothing is called back any more."""
        self._context.parameters = None
        for timer, handler in ((self._timer, self._tick), (self._soon, self.refresh)):
            timer.stop()
            timer.disconnect("timeout()", handler)
        self.install.close()
        self.method.close()
        self.results.close()
        self.export.close()
        self.prior.close()
        self.detection.close()

    def _onResults(self, entry: Entry, nodes: ResultNodes) -> None:
        """What has come is read next: its section opens, and the settings make room."""
        self._context.ui.resultsCollapsibleButton.collapsed = False
        self._context.ui.methodCollapsibleButton.collapsed = True
        self.results.select(entry, nodes)

    def _tick(self) -> None:
        if (seen := self._versions()) != self._seen:
            self._seen = seen
            self.refreshSoon()
        self.detection.tick()
        self.install.tick()
        self.run.tick()
        self.prior.tick()

    def _versions(self) -> tuple[Any, ...]:
        """Changes when anything that is shown of the scan, its transform, the brain mask or the result may have."""
        if self.parameters is None:
            return ()
        versions: list[Any] = []
        for node in (self.parameters.inputVolume, self.parameters.brainMask, self.parameters.result):
            if node is None:
                versions.append(None)
                continue
            transform = node.GetParentTransformNode()
            versions.append([one.GetMTime() for one in (node, transform) if one is not None])
            if node.IsA("vtkMRMLSegmentationNode"):
                segments = node.GetSegmentation()
                count = segments.GetNumberOfSegments()
                versions.append([segments.GetNthSegment(index).GetName() for index in range(count)])
        return tuple(versions)
