"""The sample scan through the panel with a real server, in a Slicer without the worker's packages.

Skipped unless a server is named, as by

    diffusion-anomaly serve SERVER --new-token slicer > token
    diffusion-anomaly serve SERVER --port 18443 &        # prints its fingerprint
    export DIFFUSION_ANOMALY_SERVER=https://127.0.0.1:18443
    export DIFFUSION_ANOMALY_TOKEN=$(cat token) DIFFUSION_ANOMALY_FINGERPRINT=...
"""

from __future__ import annotations

import importlib.util
import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import slicer

import panelcase  # as a module: unittest would run an imported case class as well
from DiffusionAnomalyLib.process import dependencies, remote

ADDRESS = os.environ.get("DIFFUSION_ANOMALY_SERVER", "")
NAME = "the test's server"


@unittest.skipUnless(ADDRESS, "no server is named, see this file")
class DiffusionAnomalyServerTest(panelcase.PanelCase):
    """What a reader does whose workstation has neither GPU nor PyTorch."""

    def test_a_scan_goes_to_the_server_and_its_result_comes_into_the_scene(self) -> None:
        detection = self.panel.detection
        detection._command = detection._environment = None  # the real forwarder
        self.panel.install.missing = dependencies.missing()
        token, fingerprint = (os.environ[f"DIFFUSION_ANOMALY_{name}"] for name in ("TOKEN", "FINGERPRINT"))
        server = remote.RemoteServer(NAME, ADDRESS, token, fingerprint)
        remote.add(server, detection.settings)
        self.addCleanup(remote.remove, NAME, detection.settings)
        self.ui.sampleDataLabel.linkActivated.emit("sample")
        self.panel.refresh()
        self.parameters.run.device = server.device
        self.settle()
        assert self.ui.deviceComboBox.currentText == server.title
        assert self.ui.runButton.enabled, self.ui.messageLabel.text
        self.ui.runButton.click()
        self.waitFor(lambda: not detection.queue.isBusy, 600)
        self.settle()
        nodes = self.panel.results.nodes()
        assert nodes is not None, detection.queue.entries[-1].message
        assert self.ui.findingsTable.rowCount >= 1 and "ml" in self.ui.summaryLabel.text
        assert slicer.util.arrayFromVolume(nodes.anomalyMap).max() > nodes.threshold
        self.assertNoTorch()
        if importlib.util.find_spec("torch") is None:
            assert "torch" in {requirement.name for requirement in dependencies.missing()}
