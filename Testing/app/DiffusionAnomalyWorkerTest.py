"""The real worker started by a full Slicer, with a model of toy size. Skipped where its packages are not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import slicer

import panelcase  # as a module: unittest would run an imported case class as well
from DiffusionAnomalyLib.process import dependencies

MAKE_PACKAGE = "import sys, packages, pathlib; packages.guided(pathlib.Path(sys.argv[1]), options={'steps': 2})"


@unittest.skipIf(dependencies.missing(), "the Python packages of the worker are not installed in this Slicer")
class DiffusionAnomalyWorkerTest(panelcase.PanelCase):
    """Torch is imported by the worker and by the process that makes the toy model, never by Slicer."""

    def test_a_toy_model_is_verified_added_and_run(self) -> None:
        import os

        from DiffusionAnomalyLib import choices
        from DiffusionAnomalyLib.process.environment import pythonProgram, workerEnvironment

        folder = Path(slicer.app.temporaryPath) / "DiffusionAnomaly models ä" / "toy"
        folder.parent.mkdir(exist_ok=True)
        self.addCleanup(shutil.rmtree, folder.parent)
        environment = workerEnvironment()
        environment["PYTHONPATH"] = os.pathsep.join([str(panelcase.HERE.parent / "engine"), environment["PYTHONPATH"]])
        subprocess.run([pythonProgram(), "-c", MAKE_PACKAGE, str(folder)], env=environment, check=True)
        detection = self.panel.detection
        detection._command = detection._environment = None

        scan = self.addScan()
        mask = slicer.modules.volumes.logic().CreateAndAddLabelVolume(scan, "brain")
        slicer.util.arrayFromVolume(mask)[2:10, 3:26, 3:20] = 1
        slicer.util.arrayFromVolumeModified(mask)
        self.parameters.brainMask = mask
        self.parameters.run.force = True  # two grey levels are no scan's
        self.panel.method.addModel(folder)
        self.waitFor(lambda: self.parameters.method.model == str(folder), 120)
        self.settle()
        assert "CC0-1.0" in self.ui.modelCardLabel.text
        try:
            nodes = self.run_(300)
        finally:
            choices.forget(folder, detection.settings)
        assert nodes.anomalyMap.GetAttribute("DiffusionAnomaly.Model") == "toy"
        assert "not yet measured" not in self.ui.stepsInfoLabel.text
        self.assertNoTorch()
