"""DiffusionAnomaly in Slicer: the module, its panel and its logic. Glue only; the work is in DiffusionAnomalyLib."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from diffusion_anomaly.registry import DEFAULT_METHOD
from DiffusionAnomalyLib.detection import SECONDS_BETWEEN_TICKS, Detection, Request
from DiffusionAnomalyLib.panel.panel import Panel
from DiffusionAnomalyLib.parameters import DiffusionAnomalyParameterNode
from DiffusionAnomalyLib.process import dependencies
from DiffusionAnomalyLib.process.qtprocess import QtProcess
from DiffusionAnomalyLib.sampledata import loadSample, registerSampleData
from DiffusionAnomalyLib.scene.comparing import Comparing, ComparisonNodes, show
from DiffusionAnomalyLib.scene.results import ResultNodes, Wanted, resultsIn
from DiffusionAnomalyLib.scene.volumes import problemWith


class DiffusionAnomaly(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("DiffusionAnomaly")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Neuroimaging")]
        self.parent.dependencies = ["Segmentations", "Terminologies"]
        self.parent.contributors = ["The DiffusionAnomaly contributors"]
        self.parent.helpText = _(
            "Finds what is improbable in a brain scan with generative denoising diffusion models (not diffusion MRI): "
            "an anomaly map, a segmentation and a table of findings. For research use only. Not for diagnosis. "
            'See <a href="https://github.com/DiffusionAnomaly/SlicerDiffusionAnomaly">the documentation</a>.'
        )
        self.parent.acknowledgementText = _(
            "After Pinaya et al., MICCAI 2022 (arXiv 2206.03461), and Wolleb et al., MICCAI 2022 (arXiv 2203.04306)."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


class DiffusionAnomalyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Shows the panel, and ties it to the parameter node, the scene and the end of Slicer."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: DiffusionAnomalyLogic | None = None
        self.panel: Panel | None = None
        self._parameters: Any = None
        self._guiTag: Any = None
        self._form: Any = None

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self._form = slicer.util.loadUI(self.resourcePath("UI/DiffusionAnomaly.ui"))
        self.layout.addWidget(self._form)
        self.ui = slicer.util.childWidgetVariables(self._form)
        self._form.setMRMLScene(slicer.mrmlScene)
        self.logic = DiffusionAnomalyLogic()
        self.panel = Panel(self.ui, self.logic.detection)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        slicer.app.connect("aboutToQuit()", self.onAboutToQuit)
        self.initializeParameterNode()
        if not self.panel.install.missing:
            self.panel.method.probeMachine()

    def cleanup(self) -> None:
        """Called when Slicer closes and before the module is reloaded."""
        slicer.app.disconnect("aboutToQuit()", self.onAboutToQuit)
        self.setParameterNode(None)
        self.removeObservers()
        if self.panel is not None:
            self.panel.close()
        if self._form is not None:  # a reload would only hide it
            self._form.setParent(None)
            self._form.deleteLater()
            self._form = None

    def onReload(self) -> None:
        """Reload the library too, and the engine's border."""
        library = ("DiffusionAnomalyLib", "diffusion_anomaly")
        for name in [name for name in sys.modules if name.partition(".")[0] in library]:
            del sys.modules[name]
        importlib.invalidate_caches()
        ScriptedLoadableModuleWidget.onReload(self)

    def enter(self) -> None:
        self.initializeParameterNode()
        if self.panel is not None:
            self.panel.install.offerToContinue()
            self.panel.results.findings.setKeysActive(True)

    def exit(self) -> None:
        """Another module is shown. The panel stays connected: what runs goes on, and its results are loaded."""
        if self.panel is not None:
            self.panel.results.findings.setKeysActive(False)

    def onAboutToQuit(self) -> None:
        if self.panel is not None:
            self.panel.close()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """The volumes go: whatever still runs on them is cancelled, and its results would have no place."""
        if self.logic is not None:
            self.logic.detection.forgetScene()
        if self.panel is not None:
            self.panel.results.findings.history.forget()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        self.initializeParameterNode()

    def onSceneEndImport(self, caller: Any, event: Any) -> None:
        """A saved scene brings the panel's state and its results with it."""
        self.initializeParameterNode()
        if self.panel is not None:
            self.panel.results.showNoOther()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        """A selector whose node goes would take the next one in its list: another mask, another result."""
        for name in ("brainMask", "result"):
            if self._parameters is not None and getattr(self._parameters, name) is node:
                setattr(self._parameters, name, None)
        if self._parameters is not None and self._parameters.inputVolume is node:
            self._parameters.inputVolume = next((scan for scan in self._scans() if scan is not node), None)

    def initializeParameterNode(self) -> None:
        """Make sure that there is a parameter node, and show it."""
        if self.logic is None:
            return
        self.setParameterNode(self.logic.getParameterNode())
        if self._parameters.inputVolume is None:
            self._parameters.inputVolume = next(iter(self._scans()), None)

    @staticmethod
    def _scans() -> list[Any]:
        """The volumes of the scene that can be analysed."""
        return [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if not problemWith(node)]

    def setParameterNode(self, parameters: Any) -> None:
        """Show and observe a parameter node; None to let go of the one that is shown."""
        if self._parameters is not None:
            self._parameters.disconnectGui(self._guiTag)
            self.removeObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self._parameters = parameters
        if parameters is not None:
            self._guiTag = parameters.connectGui(self.ui)
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        if self.panel is not None:
            self.panel.setParameters(parameters)

    def _onParametersModified(self, caller: Any = None, event: Any = None) -> None:
        if self.panel is not None:
            self.panel.refreshSoon()


class DiffusionAnomalyLogic(ScriptedLoadableModuleLogic):
    """Detections from a script, with or without the panel.

    >>> import slicer
    >>> logic = slicer.util.getModuleLogic("DiffusionAnomaly")  # doctest: +SKIP
    >>> nodes = logic.detect(volumeNode, method="guided", steps=10)  # doctest: +SKIP
    >>> nodes.anomalyMap, nodes.segmentation, nodes.table  # doctest: +SKIP
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.detection = Detection(slicer.mrmlScene, slicer.app.temporaryPath, QtProcess)
        self._timers: list[Any] = []

    def getParameterNode(self) -> DiffusionAnomalyParameterNode:
        return DiffusionAnomalyParameterNode(super().getParameterNode())

    def detect(
        self,
        volumeNode: Any,
        method: str = DEFAULT_METHOD,
        steps: int | None = None,
        *,
        model: str | None = None,
        device: str = "auto",
        seed: int = 0,
        threshold: float | None = None,
        brainMask: Any = None,
        brainSegment: str = "",
        labelMap: bool = True,
        segmentation: bool = True,
        blocking: bool = True,
        onProgress: Callable[[str], None] | None = None,
        onFinished: Callable[[Any, ResultNodes | None, str], None] | None = None,
        **more: Any,
    ) -> Any:
        """Detect anomalies in a volume, in the background process.

        Args:
            volumeNode: the scan, a scalar volume node.
            method: ``localise``, ``restore``, ``guided``, ``unsupervised`` or ``intensity``.
            steps: noise levels that are visited; None takes the model's default.
            model: name of a model that comes with the extension, or the folder of one.
            device: ``auto``, ``cpu`` or ``cuda:0``.
            seed: of all randomness.
            threshold: anomaly score from which a voxel is in the mask; None takes the model's.
            brainMask, brainSegment: label map, or segmentation and the id of its segment.
            labelMap, segmentation: which forms of the mask are made.
            blocking: wait for the result; Slicer stays alive meanwhile.
            onProgress: takes a line on how far it is, whenever it is another one.
            onFinished: takes the entry, the result's nodes or None, and what went wrong.
            more: further attributes of ``DiffusionAnomalyLib.detection.Request``.

        Returns:
            The result's nodes; without ``blocking`` the queue's entry, whose ``state`` tells how it goes.

        Raises:
            diffusion_anomaly.errors.InputError: when the volume is no good, or a blocking run failed.
        """
        from DiffusionAnomalyLib.progresstext import progressLine

        request = Request(
            method=method,
            model=model,
            steps=steps,
            device=device,
            seed=seed,
            threshold=threshold,
            wanted=Wanted(labelMap, segmentation),
            **more,
        )
        entry = self.detection.add(volumeNode, request, brainMask, brainSegment)

        told: list[str] = []

        def tell() -> None:
            if onProgress is not None and not entry.state.isOver and (line := progressLine(entry.job)) not in told:
                told[:] = [line]
                onProgress(line)

        if blocking:

            def whileWaiting() -> None:
                tell()
                slicer.app.processEvents()

            nodes = self.detection.wait(entry, whileWaiting)
            if onFinished is not None:
                onFinished(entry, nodes, "")
            return nodes
        self._watch(entry, tell, onFinished)
        return entry

    def compare(self, prior: ResultNodes, current: ResultNodes, *, samePatient: bool = False) -> ComparisonNodes:
        """Register two exams of one patient, match their findings, and show them side by side; waits for it.

        Args:
            prior, current: results in the scene, such as ``detect`` gives them, with their brain masks.
            samePatient: compare them also where their DICOM headers say that they are of two patients.

        Returns:
            The prior scan and map on the current scan's grid, and the table of what is new, grown, shrunk or gone.

        Raises:
            diffusion_anomaly.errors.InputError: when they cannot be compared.
        """
        from diffusion_anomaly.errors import InputError

        comparing = Comparing(prior, current, slicer.app.temporaryPath, QtProcess(), samePatient=samePatient)
        try:
            while not comparing.isOver:
                comparing.tick()
                slicer.app.processEvents()
                time.sleep(SECONDS_BETWEEN_TICKS)
        except BaseException:
            comparing.close()
            raise
        if comparing.nodes is None:
            raise InputError(comparing.problem)
        show(slicer.mrmlScene, comparing.nodes)
        return comparing.nodes

    def results(self) -> list[ResultNodes]:
        """All results in the scene, in the order in which they were made."""
        return resultsIn(slicer.mrmlScene)

    def _watch(self, entry: Any, tell: Callable[[], None], onFinished: Callable[..., None] | None) -> None:
        """Call back from Qt's event loop until an entry has ended."""
        timer = qt.QTimer()
        timer.setInterval(100)

        def tick() -> None:
            self.detection.tick()
            tell()
            if entry.state.isOver and timer in self._timers:
                timer.stop()
                self._timers.remove(timer)
                # Not within the handler itself; a connection keeps what it calls for good.
                qt.QTimer.singleShot(0, lambda: timer.disconnect("timeout()", tick))
                if onFinished is not None:
                    onFinished(entry, self.detection.resultOf(entry), entry.message)

        timer.connect("timeout()", tick)
        timer.start()
        self._timers.append(timer)


class DiffusionAnomalyTest(ScriptedLoadableModuleTest):
    """Slicer's Reload and Test button: the sample scan is analysed. What the panel does is tested in Testing/app."""

    def runTest(self, **more: Any) -> None:
        """Needs the worker's Python packages for the run itself; without them only the scan is loaded."""
        loaded = {"torch", "monai"} & set(sys.modules)  # by another extension
        slicer.mrmlScene.Clear()
        scan = loadSample()
        assert problemWith(scan) == ""
        if missing := dependencies.missing():
            self.delayDisplay(f"Not run: {', '.join(map(str, missing))} not installed.")
        else:
            logic = DiffusionAnomalyLogic()
            nodes = logic.detect(scan)
            logic.detection.close()
            assert slicer.util.arrayFromVolume(nodes.labelMap).any()
            assert nodes.table.GetNumberOfRows() > 0
            assert len(logic.results()) == 1
        assert {"torch", "monai"} & set(sys.modules) == loaded
        slicer.mrmlScene.Clear()
