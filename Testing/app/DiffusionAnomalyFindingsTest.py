"""Reading a result in a full Slicer: going through findings, judging them, layouts, keys, edits by hand, exports."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import qt
import slicer

import panelcase  # as a module: unittest would run an imported case class as well


class DiffusionAnomalyFindingsTest(panelcase.PanelCase):
    """Needs no further Python package: the worker is a stand-in."""

    @property
    def table(self) -> Any:
        return self.ui.findingsTable

    def addTwo(self) -> Any:
        """A scan with two bright blocks, the second one smaller."""
        scan = self.addScan()
        array = slicer.util.arrayFromVolume(scan)
        array[8:10, 20:24, 4:8] = 100.0
        slicer.util.arrayFromVolumeModified(scan)
        return scan

    def text(self, row: int, column: int) -> str:
        return self.table.item(row, column).text()

    def red(self) -> Any:
        return slicer.app.layoutManager().sliceWidget("Red")

    def box(self) -> Any:
        """What is drawn around the selected finding."""
        return slicer.mrmlScene.GetFirstNodeByName("Selected finding")

    def press(self, key: str, widget: Any = None) -> None:
        """As the keyboard does it, wherever the focus is."""
        shortcut = next(
            one for one, _action in self.panel.results.findings._keys if one.key.toString() == key and one.enabled
        )
        shortcut.activated.emit()
        self.settle()

    def test_a_new_result_shows_its_first_finding_with_a_box_around_it(self) -> None:
        self.addTwo()
        nodes = self.run_()
        assert self.table.rowCount == 2 and self.table.currentRow() == 0
        assert not self.ui.resultsCollapsibleButton.collapsed
        assert "about 1 in 1,000 healthy voxels" in self.ui.scoreLabel.text
        assert self.box().GetDisplayNode().GetVisibility()
        assert nodes.anomalyMap.GetDisplayNode().GetLowerThreshold() == nodes.threshold

    def test_keys_and_arrows_go_through_the_findings(self) -> None:
        self.addTwo()
        self.run_()
        offsets = [self.red().mrmlSliceNode().GetSliceOffset()]
        self.press("N")
        assert self.table.currentRow() == 1
        offsets.append(self.red().mrmlSliceNode().GetSliceOffset())
        assert abs(offsets[1] - offsets[0]) > 10
        self.press("N")
        assert self.table.currentRow() == 0
        self.table.setFocus()
        event = qt.QKeyEvent(qt.QEvent.KeyPress, qt.Qt.Key_Down, qt.Qt.NoModifier)
        slicer.app.sendEvent(self.table, event)
        self.settle()
        assert self.table.currentRow() == 1 and self.red().mrmlSliceNode().GetSliceOffset() == offsets[1]
        self.ui.previousButton.click()
        self.settle()
        assert self.table.currentRow() == 0 and self.red().mrmlSliceNode().GetSliceOffset() == offsets[0]

    def test_keys_work_only_while_the_module_is_in_front(self) -> None:
        self.addTwo()
        self.run_()
        keys = [one for one, _action in self.panel.results.findings._keys]
        assert keys and all(one.enabled for one in keys)
        slicer.util.selectModule("Data")
        assert not any(one.enabled for one in keys)
        slicer.util.selectModule("DiffusionAnomaly")
        assert all(one.enabled for one in keys)

    def test_a_rejected_finding_leaves_the_mask_and_undo_brings_it_back(self) -> None:
        self.addTwo()
        nodes = self.run_()
        whole = slicer.util.arrayFromVolume(nodes.labelMap).sum()
        self.press("X")
        assert self.text(0, 1) == "rejected" and "1 rejected" in self.ui.summaryLabel.text
        left = slicer.util.arrayFromVolume(nodes.labelMap).sum()
        assert 0 < left < whole
        self.ui.thresholdSlider.value = 2.5
        self.settle()
        assert slicer.util.arrayFromVolume(nodes.labelMap).sum() == left and self.text(0, 1) == "rejected"
        self.press("Z")
        assert nodes.threshold == 3.0
        self.press("Z")
        assert slicer.util.arrayFromVolume(nodes.labelMap).sum() == whole and self.text(0, 1) == "undecided"
        assert not self.ui.undoButton.enabled and self.ui.redoButton.enabled
        self.press("Y")
        assert slicer.util.arrayFromVolume(nodes.labelMap).sum() == left
        self.press("A")
        assert self.text(0, 1) == "accepted" and slicer.util.arrayFromVolume(nodes.labelMap).sum() == whole

    def test_a_long_comment_is_whole_below_the_list_and_makes_no_row_high(self) -> None:
        self.addTwo()
        self.run_()
        text = "word " * 60 + "end"
        self.panel.results.findings.comment(text)
        self.settle()
        assert self.ui.findingLabel.text.endswith(f"Comment: {text}") and self.ui.findingLabel.visible
        heights = [self.table.rowHeight(row) for row in range(2)]
        assert heights[0] <= 3 * self.table.fontMetrics().height() + 4
        header = self.table.horizontalHeader()
        assert abs(header.sectionSize(4) - header.sectionSize(5)) <= 2  # place and comment share what is left
        assert sum(header.sectionSize(column) for column in range(6)) <= self.table.viewport().width
        assert self.table.item(0, 5).toolTip() == text
        self.press("N")
        assert "Comment" not in self.ui.findingLabel.text and self.ui.findingLabel.text.startswith("Finding 2: ")

    def test_one_key_hides_all_that_lies_over_the_scan(self) -> None:
        self.addTwo()
        nodes = self.run_()
        composite = self.red().mrmlSliceCompositeNode()
        box = self.box()
        legend = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
        for shown in (False, True):
            self.press("H")
            assert self.ui.overlaysButton.checked == (not shown)
            assert abs(composite.GetForegroundOpacity() - (0.5 if shown else 0.0)) < 1e-6
            for one in (nodes.segmentation.GetDisplayNode(), box.GetDisplayNode(), legend):
                assert bool(one.GetVisibility()) == shown

    def test_the_scan_stands_beside_the_map_and_the_layout_comes_back(self) -> None:
        manager = slicer.app.layoutManager()
        before = manager.layout
        scan = self.addTwo()
        nodes = self.run_()
        self.ui.sideBySideCheckBox.checked = True
        self.settle()
        beside = manager.sliceWidget("AnomalyMap")
        assert beside is not None and beside.visible
        assert self.red().mrmlSliceCompositeNode().GetForegroundVolumeID() is None
        assert self.red().mrmlSliceCompositeNode().GetBackgroundVolumeID() == scan.GetID()
        assert beside.mrmlSliceCompositeNode().GetForegroundVolumeID() == nodes.anomalyMap.GetID()
        assert beside.mrmlSliceCompositeNode().GetLinkedControl()
        outline = nodes.segmentation.GetDisplayNode()
        assert not outline.IsDisplayableInView(self.red().mrmlSliceNode().GetID())
        assert outline.IsDisplayableInView(beside.mrmlSliceNode().GetID())
        self.press("N")
        assert self.red().mrmlSliceNode().GetSliceOffset() == beside.mrmlSliceNode().GetSliceOffset()
        self.ui.sideBySideCheckBox.checked = False
        self.settle()
        assert manager.layout == before
        assert self.red().mrmlSliceCompositeNode().GetForegroundVolumeID() == nodes.anomalyMap.GetID()
        self.ui.sideBySideCheckBox.checked = True
        self.settle()
        self.ui.removeResultButton.click()
        self.settle()
        assert manager.layout == before and self.red().mrmlSliceCompositeNode().GetForegroundVolumeID() is None
        assert self.box() is None

    def test_edits_by_hand_are_kept_in_a_copy(self) -> None:
        from DiffusionAnomalyLib.scene import segmentation

        self.addTwo()
        nodes = self.run_()
        mask = segmentation.maskOf(nodes.segmentation, nodes.anomalyMap)
        mask[0:2, 0:3, 0:3] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask, nodes.segmentation, segmentation.SEGMENT, nodes.inputNode
        )
        real = slicer.util.confirmOkCancelDisplay
        self.addCleanup(setattr, slicer.util, "confirmOkCancelDisplay", real)
        slicer.util.confirmOkCancelDisplay = lambda *about, **more: False
        self.ui.thresholdSlider.value = 3.6
        self.settle()
        assert nodes.threshold == self.ui.thresholdSlider.value == 3.0
        assert np.array_equal(segmentation.maskOf(nodes.segmentation, nodes.anomalyMap), mask)
        slicer.util.confirmOkCancelDisplay = lambda *about, **more: True
        self.ui.thresholdSlider.value = 3.5
        self.settle()
        (copy,) = [
            node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if "edited" in node.GetName()
        ]
        assert np.array_equal(segmentation.maskOf(copy, nodes.anomalyMap), mask)
        assert not segmentation.maskOf(nodes.segmentation, nodes.anomalyMap)[0:2, 0:3, 0:3].any()
        self.ui.thresholdSlider.value = 3.2
        self.settle()
        assert nodes.threshold == 3.2 and len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 2

    def test_each_finding_a_segment_and_the_surface_of_them(self) -> None:
        self.addTwo()
        nodes = self.run_()
        self.ui.segmentsCheckBox.checked = True
        self.settle()
        (nodes,) = self.widget.logic.results()
        assert nodes.segments.GetSegmentation().GetNumberOfSegments() == 2
        assert not nodes.segmentation.GetDisplayNode().GetVisibility()
        self.ui.thresholdSlider.value = 4.5
        self.waitFor(lambda: nodes.segments.GetSegmentation().GetNumberOfSegments() == 0, 10)
        self.ui.resetThresholdButton.click()
        self.waitFor(lambda: nodes.segments.GetSegmentation().GetNumberOfSegments() == 2, 10)
        self.ui.show3DCheckBox.checked = True
        self.settle()
        self.ui.segmentsCheckBox.checked = False
        self.ui.show3DCheckBox.checked = False
        self.settle()
        (nodes,) = self.widget.logic.results()
        assert nodes.segments is None and nodes.segmentation.GetDisplayNode().GetVisibility()

    def test_everything_is_exported_and_what_cannot_be_is_said(self) -> None:
        self.addTwo()
        self.run_()
        self.panel.results.findings.comment("seen by two")
        self.press("A")
        folder = Path(slicer.app.temporaryPath) / "DiffusionAnomaly all ä"
        folder.mkdir(exist_ok=True)
        self.addCleanup(shutil.rmtree, folder)
        self.chooseFolder(folder)
        assert not self.ui.saveDicomButton.enabled and len(self.ui.saveDicomButton.toolTip) > 20
        self.ui.exportAllButton.click()
        self.waitFor(lambda: "files written" in self.ui.exportLabel.text, 120)
        findings = json.loads((folder / "scan-findings.json").read_text("utf-8"))["findings"]
        assert (findings[0]["review"], findings[0]["comment"]) == ("accepted", "seen by two")
        assert (folder / "scan-mask.nii.gz").exists() and "DICOM:" in self.ui.exportLabel.text

    def chooseFolder(self, folder: Path) -> None:
        """The user chooses this folder in the dialog."""
        from DiffusionAnomalyLib.panel import exportpanel

        real = exportpanel.qt
        dialog = SimpleNamespace(getExistingDirectory=lambda *about: str(folder))
        exportpanel.qt = SimpleNamespace(QFileDialog=dialog)
        self.addCleanup(setattr, exportpanel, "qt", real)

    def test_reviews_survive_that_the_scene_is_saved(self) -> None:
        self.addTwo()
        self.run_()
        self.press("X")
        self.panel.results.findings.comment("motion")
        path = Path(slicer.app.temporaryPath) / "DiffusionAnomaly reviews.mrb"
        assert slicer.util.saveScene(str(path))
        self.addCleanup(path.unlink)
        slicer.mrmlScene.Clear()
        self.settle()
        slicer.util.loadScene(str(path))
        self.settle()
        assert self.text(0, 1) == "rejected" and self.text(0, 5) == "motion"
        assert not self.ui.undoButton.enabled
        (nodes,) = self.widget.logic.results()
        found = self.panel.results.found
        assert slicer.util.arrayFromVolume(nodes.labelMap).sum() == found.mask.sum() < (found.labels > 0).sum()
