"""What the tests inside Slicer share: a scan, the panel with the stand-in worker, waiting with a live event loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parent / "output"
WINDOW, PANEL_WIDTH = (1360, 860), 500


class PanelCase(ScriptedLoadableModuleTest):
    """Starts every test with an empty scene and the module's panel in front."""

    def setUp(self) -> None:
        self._loaded = {"torch", "monai"} & set(sys.modules)
        # The licence of weights is asked for. With --testing Slicer answers such a question with Cancel.
        answer = mock.patch.object(slicer.util, "confirmOkCancelDisplay", return_value=True)
        answer.start()
        self.addCleanup(answer.stop)
        slicer.mrmlScene.Clear()
        slicer.util.selectModule("DiffusionAnomaly")
        self.useStandIn()

    def tearDown(self) -> None:
        self.panel.detection.queue.cancelAll()
        self.waitFor(lambda: not self.panel.detection.queue.isBusy)
        slicer.mrmlScene.Clear()

    @property
    def widget(self) -> Any:
        return slicer.modules.DiffusionAnomalyWidget

    @property
    def panel(self) -> Any:
        return self.widget.panel

    @property
    def ui(self) -> Any:
        return self.widget.ui

    @property
    def parameters(self) -> Any:
        return self.panel.parameters

    def useStandIn(self, seconds: float = 0.2) -> None:
        """Let the panel start the stand-in, which takes so long."""
        from diffusion_anomaly.models.package import builtin_directory
        from DiffusionAnomalyLib import choices
        from DiffusionAnomalyLib.process.environment import pythonProgram, workerEnvironment

        detection = self.panel.detection
        detection._command = [pythonProgram(), str(HERE / "standin_worker.py")]
        detection._environment = {**workerEnvironment(), "STANDIN_SECONDS": str(seconds)}
        self.panel.install.missing = []
        detection.queue.clearFinished()
        for model in builtin_directory().iterdir():  # Slicer answers no to every question while it is tested
            choices.accept(choices.toAccept(model, detection.settings), detection.settings)

    def addScan(self, name: str = "scan") -> Any:
        """A volume with one bright block, off centre, in a tilted frame."""
        array = np.full((12, 30, 24), 20.0, dtype=np.float32)
        array[4:8, 5:10, 14:20] = 100.0
        matrix = np.array([[0.0, -2.0, 0.0, 30.0], [2.0, 0.0, 0.0, -20.0], [0.0, 0.0, 5.0, 10.0], [0, 0, 0, 1.0]])
        node = slicer.util.addVolumeFromArray(array, slicer.util.vtkMatrixFromArray(matrix), name)
        self.parameters.inputVolume = node
        self.parameters.method.name = "intensity"
        self.settle()
        return node

    def run_(self, seconds: float = 60.0) -> Any:
        """Press Run, wait for the result, and give its nodes."""
        self.ui.runButton.click()
        self.waitFor(lambda: not self.panel.detection.queue.isBusy, seconds)
        self.settle()
        nodes = self.panel.results.nodes()
        assert nodes is not None, self.ui.messageLabel.text
        return nodes

    def settle(self) -> None:
        """Let everything that is due be shown."""
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.01)

    def waitFor(self, so: Callable[[], bool], seconds: float = 60.0) -> None:
        """Keep Slicer alive until it is so."""
        end = time.monotonic() + seconds
        while not so():
            assert time.monotonic() < end, f"nothing came of it within {seconds} seconds"
            slicer.app.processEvents()
            time.sleep(0.01)

    def assertNoTorch(self) -> None:
        """This module has imported neither; another extension may have."""
        assert {"torch", "monai"} & set(sys.modules) == self._loaded


class PicturesCase(PanelCase):
    """Takes pictures of the window on the way, with as little of Slicer around panel and views as may be."""

    def setUp(self) -> None:
        super().setUp()
        for show in (
            slicer.util.setApplicationLogoVisible,
            slicer.util.setDataProbeVisible,
            slicer.util.setModuleHelpSectionVisible,
            slicer.util.setStatusBarVisible,
        ):
            show(False)
            self.addCleanup(show, True)
        window = slicer.util.mainWindow()
        window.resize(*WINDOW)
        window.resizeDocks([slicer.util.findChild(window, "PanelDockWidget")], [PANEL_WIDTH], qt.Qt.Horizontal)

    def showSection(self, section: Any) -> None:
        """Scroll the module panel to one of its parts."""
        self.settle()
        above = section.parent()
        while above is not None and not above.inherits("QScrollArea"):
            above = above.parent()
        if above is not None:
            place = section.mapTo(above.widget(), qt.QPoint(0, 0))
            above.verticalScrollBar().setValue(place.y())
        self.settle()

    def take(self, name: str) -> None:
        """Keep a picture of the window."""
        self.settle()
        PICTURES.mkdir(exist_ok=True)
        assert slicer.util.mainWindow().grab().save(str(PICTURES / name))
