"""A reading session in a full Slicer with the real worker: two exams, judged, compared, exported, saved, reopened."""

from __future__ import annotations

import json
import shutil
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import slicer

import panelcase  # as a module: unittest would run an imported case class as well
from DiffusionAnomalyLib.process import dependencies
from DiffusionAnomalyLib.sampledata import sampleFile

# Of the sample scan, k j i: a lesion that the prior exam does not have yet.
NEW = np.s_[88:94, 118:128, 108:118]
THRESHOLD = 1.5  # at which the baseline has a handful of findings in this scan


@unittest.skipIf(dependencies.missing(), "the Python packages of the worker are not installed in this Slicer")
class DiffusionAnomalyReadingTest(panelcase.PanelCase):
    """The sample scan is the prior exam; the current one has a bright spot more, and noise of its own."""

    def exam(self, name: str, spot: bool) -> Any:
        scan = slicer.util.loadVolume(str(sampleFile()), {"name": name})
        array = slicer.util.arrayFromVolume(scan).astype(np.float32)
        array += np.random.default_rng(int(spot)).normal(0, 0.01 * array.max(), array.shape) * (array > 0)
        if spot:
            array[NEW] = np.percentile(array[array > 0], 99.9)
        slicer.util.updateVolumeFromArray(scan, array)
        self.parameters.inputVolume = scan
        self.settle()
        nodes = self.run_()
        self.panel.results.setThreshold(THRESHOLD)
        self.settle()
        return nodes

    def test_two_exams_are_read(self) -> None:
        self.panel.detection._command = self.panel.detection._environment = None  # the real worker
        self.parameters.method.name = "intensity"
        self.exam("2024", False)
        current = self.exam("2025", True)
        findings = self.panel.results.findings
        assert self.ui.findingsTable.rowCount > 1, self.ui.summaryLabel.text
        findings.go(1)
        findings.judge("accepted")
        findings.comment("stable since 2019")
        findings.go(1)
        findings.judge("rejected")
        self.settle()

        changes = self.compare()
        assert self.ui.changesTable.rowCount == len(changes.statistics["changes"])
        kinds = [change["kind"] for change in changes.statistics["changes"]]
        assert "new" in kinds or "grown" in kinds, kinds
        red, beside = (slicer.app.layoutManager().sliceWidget(name) for name in ("Red", "AnomalyMap"))
        assert red.mrmlSliceCompositeNode().GetBackgroundVolumeID() == changes.scan.GetID()
        assert beside.mrmlSliceCompositeNode().GetBackgroundVolumeID() == current.inputNode.GetID()
        assert beside.visible

        folder = Path(slicer.app.temporaryPath) / "DiffusionAnomaly reading ä"
        folder.mkdir(exist_ok=True)
        self.addCleanup(shutil.rmtree, folder)
        self.exportAll(folder)
        assert {path.suffix for path in folder.iterdir()} == {".nrrd", ".gz", ".csv", ".json", ".html", ".pdf"}
        page = (folder / "2025-report.html").read_text("utf-8")
        assert "stable since 2019" in page and "1 rejected by the reader" in page
        said = json.loads((folder / "2025-findings.json").read_text("utf-8"))["findings"]
        assert [one["review"] for one in said[:2]] == ["accepted", "rejected"]

        before = changes.statistics
        saved = folder / "session.mrb"
        assert slicer.util.saveScene(str(saved))
        slicer.mrmlScene.Clear()
        self.settle()
        slicer.util.loadScene(str(saved))
        self.settle()
        assert len(self.widget.logic.results()) == 2
        shown = self.panel.results.nodes()
        assert shown is not None and shown.inputNode.GetName() == "2025"
        assert [self.ui.findingsTable.item(row, 1).text() for row in (0, 1)] == ["accepted", "rejected"]
        assert self.ui.findingsTable.item(0, 5).text() == "stable since 2019"
        from DiffusionAnomalyLib.scene import comparing

        (again,) = comparing.comparisonsIn(slicer.mrmlScene)
        assert again.statistics == before and again.current.inputNode is shown.inputNode
        self.assertNoTorch()

    def compare(self) -> Any:
        """The comparison with the prior exam, as its section makes it."""
        from DiffusionAnomalyLib.scene import comparing

        self.ui.priorCollapsibleButton.collapsed = False
        self.settle()
        assert self.ui.compareButton.enabled and self.ui.priorComboBox.count == 1
        self.ui.compareButton.click()
        self.waitFor(lambda: self.ui.removeComparisonButton.enabled, 240)
        self.settle()
        (made,) = comparing.comparisonsIn(slicer.mrmlScene)
        return made

    def exportAll(self, folder: Path) -> None:
        from DiffusionAnomalyLib.panel import exportpanel

        real = exportpanel.qt
        exportpanel.qt = SimpleNamespace(QFileDialog=SimpleNamespace(getExistingDirectory=lambda *about: str(folder)))
        try:
            self.ui.exportAllButton.click()
        finally:
            exportpanel.qt = real
        self.waitFor(lambda: "files written" in self.ui.exportLabel.text, 240)
