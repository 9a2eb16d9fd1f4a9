"""The pictures of the documentation beside the tutorial's, each of a state of the panel that is checked first.

They go into ``Testing/output``; ``make panel-pictures`` makes them small and puts them into the documentation. With the
real worker; skipped where its packages, or scans that do not come with the repository, are not there.
"""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import slicer

import panelcase  # as a module: unittest would run an imported case class as well
from DiffusionAnomalyLib.process import dependencies
from DiffusionAnomalyLib.sampledata import sampleFile

SHARED = panelcase.HERE.parents[2] / "shared" / "data"
FILMS = SHARED / "chest-xray" / "kermany-pneumonia-128.npz"
OTHER_CONTRAST = SHARED / "open-ms" / "patient26" / "T1.nii.gz"  # of the sample scan's patient, on its grid

# Of the sample scan, k j i. Painted: a lesion that the prior exam does not have yet, and a mass with its bright rim.
NEW, NEW_RADIUS_MM = (92, 126, 114), 6.0
MASS, RADIUS_MM = (102, 128, 62), (14.0, 20.0)


@unittest.skipIf(dependencies.missing(), "the Python packages of the worker are not installed in this Slicer")
class DiffusionAnomalyPicturesTest(panelcase.PicturesCase):
    """What is shown is the sample scan, films under CC BY 4.0, or painted."""

    def setUp(self) -> None:
        super().setUp()
        self.panel.detection._command = self.panel.detection._environment = None  # the real worker
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self.parameters.output.show3D = self.parameters.output.sideBySide = False
        self.ui.priorCollapsibleButton.collapsed = True
        self.settle()

    def load(self, name: str, path: Path | None = None) -> Any:
        scan = slicer.util.loadVolume(str(path or sampleFile()), {"name": name})
        self.parameters.inputVolume = scan
        self.settle()
        return scan

    @staticmethod
    def distance(scan: Any, centre: tuple[int, int, int]) -> np.ndarray:
        """Of each voxel to a place, in voxels of 1 mm, but a lesion is no ball."""
        grid = np.indices(slicer.util.arrayFromVolume(scan).shape)
        k, j, i = (index - at for index, at in zip(grid, centre, strict=True))
        uneven = 1 + 0.15 * np.sin(k / 4) * np.cos(j / 5) + 0.1 * np.sin(i / 3 + j / 4)
        return np.sqrt(k**2 + j**2 + i**2) * uneven

    def paint(self, scan: Any, where: np.ndarray, brightness: float) -> None:
        """Let a place look as bright as that share of the scan's brightest."""
        array = slicer.util.arrayFromVolume(scan).astype(np.float32)
        noise = np.random.default_rng(0).normal(0, 0.03, array.shape)
        array[where] = (np.percentile(array[array > 0], 99.5) * (brightness + noise))[where]
        slicer.util.updateVolumeFromArray(scan, array)

    def test_before_a_run_there_is_nothing_but_a_line(self) -> None:
        self.load("FLAIR")
        assert self.ui.noResultLabel.visible and not self.ui.resultFrame.visible
        assert not self.ui.resultChoiceFrame.visible and self.ui.runButton.enabled
        assert self.ui.noResultLabel.width >= self.ui.resultFrame.minimumSizeHint.width()
        self.take("panel-before.png")

    def test_findings_are_judged_and_commented(self) -> None:
        self.load("FLAIR")
        self.run_(600)
        findings = self.panel.results.findings
        assert self.ui.findingsTable.rowCount > 3
        self.ui.show3DCheckBox.checked = True
        findings.name(0, "frontal, right")
        findings.judge("accepted")
        findings.go(1)
        findings.comment("confluent with the ventricle; compare with the next exam in six months")
        self.settle()
        label = self.ui.findingLabel
        assert label.visible and label.text.endswith("compare with the next exam in six months")
        self.showSection(self.ui.resultsCollapsibleButton)
        self.take("panel-finding.png")
        for _ in range(2):
            findings.go(1)
            findings.judge("rejected")
        findings.comment("flow artefact, no lesion")
        self.settle()
        assert "2 rejected" in self.ui.summaryLabel.text
        self.showSection(self.ui.summaryLabel)
        self.take("panel-rejected.png")

    def test_a_prior_exam_is_compared(self) -> None:
        for name, spot in (("2024", False), ("2025", True)):
            scan = self.load(name)
            array = slicer.util.arrayFromVolume(scan).astype(np.float32)
            array += np.random.default_rng(spot).normal(0, 0.01 * array.max(), array.shape) * (array > 0)
            slicer.util.updateVolumeFromArray(scan, array)
            if spot:
                self.paint(scan, self.distance(scan, NEW) < NEW_RADIUS_MM, 1.0)
            self.run_(600)
        self.ui.priorCollapsibleButton.collapsed = False
        self.settle()
        self.ui.compareButton.click()
        self.waitFor(lambda: self.ui.removeComparisonButton.enabled, 240)
        self.settle()
        kinds = [self.ui.changesTable.item(row, 0).text() for row in range(self.ui.changesTable.rowCount)]
        assert {"new", "unchanged"} <= set(kinds), kinds
        self.ui.changesTable.setCurrentCell(kinds.index("new"), 0)
        self.settle()
        assert self.panel.results.findings.row == -1 and not self.ui.findingLabel.visible
        red, beside = (slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode() for name in ("Red", "AnomalyMap"))
        assert red.GetFieldOfView()[1] == beside.GetFieldOfView()[1]
        self.showSection(self.ui.priorCollapsibleButton)
        self.take("panel-prior.png")

    @unittest.skipUnless(FILMS.exists(), "the films are not there")
    def test_a_film_has_one_view_and_a_score_of_its_own(self) -> None:
        with np.load(FILMS) as films:
            number = np.flatnonzero((films["split"] == "test") & (films["pneumonia"] == 1))[2]
            film = films["images"][number][None]
        scan = slicer.util.addVolumeFromArray(film, np.diag([-1.0, -1.0, 1.0, 1.0]), "chest film")
        self.parameters.inputVolume = scan
        self.parameters.method.name = "guided"
        self.settle()
        nodes = self.run_(600)
        layout = slicer.app.layoutManager()
        assert layout.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
        assert self.ui.imageScoreLabel.text.startswith("The whole picture: classifier's log-odds of disease ")
        assert not self.ui.show3DCheckBox.enabled
        self.showSection(self.ui.resultsCollapsibleButton)
        self.take("panel-film.png")
        self.panel.results.show(None)
        self.settle()
        assert layout.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        assert self.ui.noResultLabel.text == "Choose a result." and self.ui.resultSelector.visible
        assert nodes.anomalyMap.GetScene() is not None

    @unittest.skipUnless(OTHER_CONTRAST.exists(), "the second contrast is not there")
    def test_three_contrasts_of_one_head(self) -> None:
        flair = self.load("patient_FLAIR")
        distance = self.distance(flair, MASS)
        brain = slicer.util.arrayFromVolume(flair) > 0
        inner, outer = ((distance < radius) & brain for radius in RADIUS_MM)
        for name, shown in (("patient_T1c", inner & (distance > RADIUS_MM[0] - 4)), ("patient_T1", inner & False)):
            scan = self.load(name, OTHER_CONTRAST)
            self.paint(scan, outer, 0.45)
            self.paint(scan, inner, 0.35)
            self.paint(scan, shown, 1.0)
        self.paint(flair, outer, 1.0)
        self.parameters.inputVolume = flair
        self.parameters.method.name = "guided"
        self.panel.method._onModel(str(self.model("glioma-guided")))
        self.settle()
        assert self.ui.channelsFrame.visible and self.ui.runButton.enabled, self.ui.messageLabel.text
        self.run_(900)
        assert self.ui.findingsTable.rowCount >= 1, self.ui.summaryLabel.text
        self.showSection(self.ui.inputsCollapsibleButton)
        self.take("panel-contrasts.png")

    @staticmethod
    def model(name: str) -> Path:
        from diffusion_anomaly.models.package import builtin_directory

        return builtin_directory() / name
