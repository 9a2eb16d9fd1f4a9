"""The documentation's tutorial (docs/tutorials/slicer.md), step by step, with the model that comes with the extension.

Takes its pictures on the way, into ``Testing/output``. Skipped where the worker's packages are not installed.
"""

from __future__ import annotations

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import slicer

import panelcase  # as a module: unittest would run an imported case class as well
from DiffusionAnomalyLib.process import dependencies
from DiffusionAnomalyLib.scene import reporting


@unittest.skipIf(dependencies.missing(), "the Python packages of the worker are not installed in this Slicer")
class DiffusionAnomalyTutorialTest(panelcase.PicturesCase):
    """What a new user does in the first ten minutes."""

    def test_the_tutorial(self) -> None:
        detection = self.panel.detection
        detection._command = detection._environment = None  # the real worker
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

        self.ui.sampleDataLabel.linkActivated.emit("sample")
        self.settle()
        assert "FLAIR" in self.ui.inputInfoLabel.text and self.ui.runButton.enabled
        assert "Apache-2.0" in self.ui.modelCardLabel.text

        self.ui.runButton.click()
        self.waitFor(lambda: self.ui.progressBar.value > 10, 300)
        self.settle()
        assert self.ui.runButton.text == "Cancel" and self.ui.progressLabel.text
        self.take("slicer-running.png")
        self.waitFor(lambda: not detection.queue.isBusy, 600)
        self.settle()
        nodes = self.panel.results.nodes()
        assert nodes is not None, detection.queue.entries[-1].message
        found = self.ui.findingsTable.rowCount
        assert found >= 1 and "ml" in self.ui.summaryLabel.text
        card = self.ui.modelCardLabel.text  # the default method has no steps, so that their label is not shown
        assert "about" in card or "a few" in card

        self.ui.findingsTable.cellClicked.emit(0, 0)
        self.panel.results.findings.name(0, "frontal, right")
        self.ui.show3DCheckBox.checked = True
        self.showSection(self.ui.resultsCollapsibleButton)
        self.take("slicer-results.png")

        marked = slicer.util.arrayFromVolume(nodes.labelMap).sum()
        self.ui.thresholdSlider.value = nodes.threshold / 2
        self.settle()
        assert slicer.util.arrayFromVolume(nodes.labelMap).sum() > marked
        assert self.ui.findingsTable.rowCount > found

        page = Path(slicer.app.temporaryPath) / "DiffusionAnomaly tutorial.html"
        self.addCleanup(page.unlink)
        self.panel.export.saveReport(page)
        self.waitFor(page.exists, 120)
        self.settle()
        assert "frontal, right" in page.read_text(encoding="utf-8")
        assert not reporting.isAsRun(nodes) and self.ui.saveReportButton.enabled
        self.assertNoTorch()
