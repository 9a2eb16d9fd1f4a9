"""The whole panel in a full Slicer: choose, run, cancel, threshold, jump, name, save, reload, close."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import qt
import slicer
from packaging.requirements import Requirement

import panelcase  # as a module: unittest would run an imported case class as well
from diffusion_anomaly.registry import DEFAULT_METHOD


class DiffusionAnomalyPanelTest(panelcase.PanelCase):
    """Needs no further Python package: the worker is a stand-in."""

    def test_run_gives_map_mask_segmentation_and_table(self) -> None:
        scan = self.addScan()
        assert self.ui.runButton.enabled and self.ui.runButton.text == "Run"
        nodes = self.run_()
        assert len(nodes.all) == 5
        assert slicer.util.arrayFromVolume(nodes.anomalyMap)[5, 7, 16] == 4.0
        assert nodes.labelMap is not None and slicer.util.arrayFromVolume(nodes.labelMap).sum() == 4 * 5 * 6
        assert self.ui.findingsTable.rowCount == 1
        assert "1 finding of" in self.ui.summaryLabel.text
        assert "stand-in" in self.ui.warningLabel.text
        composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
        assert composite.GetBackgroundVolumeID() == scan.GetID()
        assert composite.GetForegroundVolumeID() == nodes.anomalyMap.GetID()
        assert abs(composite.GetForegroundOpacity() - 0.5) < 1e-6
        self.assertNoTorch()

    def test_a_server_is_a_device_that_is_asked_about_and_needs_no_package(self) -> None:
        from packaging.requirements import Requirement

        from DiffusionAnomalyLib.panel.serverdialog import ServerDialog
        from DiffusionAnomalyLib.process import remote

        settings = self.panel.method._settings
        self.addCleanup(remote.remove, "far away", settings)
        self.addScan()
        self.panel.install.missing = [Requirement("torch")]
        self.panel.refreshSoon()
        self.settle()
        assert not self.ui.runButton.enabled
        dialog = ServerDialog(settings)
        dialog.name.text, dialog.address.text, dialog.token.text = "far away", "http://localhost:1", "da_x"
        dialog.accept()
        assert "is no address" in dialog.problem.text and not dialog.device
        dialog.address.text = "https://localhost:1"
        dialog.accept()
        dialog.widget.deleteLater()
        self.parameters.run.device = dialog.device
        self.settle()
        assert self.ui.deviceComboBox.currentText == "Remote: far away"
        assert "leaves this computer" in self.ui.deviceInfoLabel.text
        assert self.ui.runButton.enabled
        asked: list[str] = []
        real = slicer.util.confirmOkCancelDisplay
        self.addCleanup(setattr, slicer.util, "confirmOkCancelDisplay", real)

        def answer(text: str, *about: object, **more: object) -> bool:
            asked.append(text)
            return "leaves this computer" not in text  # that of the licences is asked too, once

        slicer.util.confirmOkCancelDisplay = answer
        self.ui.runButton.click()
        assert "https://localhost:1" in asked[-1]
        assert not self.panel.detection.queue.isBusy
        self.ui.deviceInfoLabel.linkActivated.emit("forget")
        self.settle()
        assert self.parameters.run.device == "auto" and not remote.servers(settings)
        assert not self.ui.runButton.enabled

    def test_run_is_disabled_with_a_reason(self) -> None:
        self.settle()
        assert not self.ui.runButton.enabled
        assert self.ui.messageLabel.text == "Choose a volume."
        self.addScan()
        assert self.ui.runButton.enabled
        assert "24 × 30 × 12" in self.ui.inputInfoLabel.text
        self.panel.install.missing = [Requirement("monai>=1.5.1")]
        self.panel.refresh()
        assert not self.ui.runButton.enabled and self.ui.installFrame.visible

    def test_slicer_stays_usable_and_the_same_button_cancels(self) -> None:
        self.useStandIn(seconds=30)
        self.addScan()
        before = slicer.mrmlScene.GetNumberOfNodes()
        self.ui.runButton.click()
        self.waitFor(lambda: self.ui.progressBar.value > 20)
        slicer.util.selectModule("Data")
        self.settle()
        slicer.util.selectModule("DiffusionAnomaly")
        self.settle()
        assert self.ui.runButton.text == "Cancel"
        self.ui.runButton.click()
        self.waitFor(lambda: not self.panel.detection.queue.isBusy)
        self.settle()
        assert slicer.mrmlScene.GetNumberOfNodes() == before
        assert self.ui.runButton.text == "Run" and "cancelled" in self.ui.messageLabel.text

    def test_two_volumes_queue_and_each_has_its_row(self) -> None:
        self.addScan("first")
        self.ui.runButton.click()
        self.addScan("second")
        self.ui.runButton.click()
        assert len(self.panel.detection.queue.entries) == 2
        self.waitFor(lambda: not self.panel.detection.queue.isBusy)
        self.settle()
        titles = [self.ui.queueTable.item(row, 0).text() for row in range(self.ui.queueTable.rowCount)]
        states = [self.ui.queueTable.item(row, 1).text() for row in range(self.ui.queueTable.rowCount)]
        assert titles == ["first", "second"] and states == ["done", "done"]
        assert len(self.widget.logic.results()) == 2

    def test_the_threshold_slider_moves_the_mask_and_the_table(self) -> None:
        self.addScan()
        nodes = self.run_()
        self.ui.thresholdSlider.value = 4.5
        self.settle()
        assert slicer.util.arrayFromVolume(nodes.labelMap).sum() == 0
        assert self.ui.findingsTable.rowCount == 0 and nodes.threshold == 4.5
        self.ui.resetThresholdButton.click()
        self.settle()
        assert self.ui.thresholdSlider.value == 3.0 and self.ui.findingsTable.rowCount == 1

    def test_a_click_on_a_finding_jumps_there_and_a_name_stays(self) -> None:
        self.addScan()
        nodes = self.run_()
        self.ui.findingsTable.cellClicked.emit(0, 0)
        ijk = np.array([16.5, 7.0, 5.5, 1.0])
        expected = slicer.util.arrayFromVTKMatrix(self._matrix(nodes.anomalyMap)) @ ijk
        red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
        assert abs(red.GetSliceOffset() - expected[2]) < 1e-3
        self.panel.results.findings.name(0, "frontal")
        self.settle()
        assert self.ui.findingsTable.item(0, 0).text() == "frontal"
        assert nodes.table.GetTable().GetColumnByName("Name").GetValue(0) == "frontal"

    def test_opacity_and_surface_follow_their_controls(self) -> None:
        self.addScan()
        nodes = self.run_()
        self.ui.opacitySlider.value = 0.25
        composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
        assert abs(composite.GetForegroundOpacity() - 0.25) < 1e-6
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        self.ui.show3DCheckBox.checked = True
        self.settle()
        assert nodes.segmentation.GetSegmentation().ContainsRepresentation(surface)
        self.ui.thresholdSlider.value = 2.5  # while it moves, no surface is made
        assert not nodes.segmentation.GetSegmentation().ContainsRepresentation(surface)
        self.settle()
        self.settle()
        assert nodes.segmentation.GetSegmentation().ContainsRepresentation(surface)
        self.ui.show3DCheckBox.checked = False
        self.settle()
        assert not nodes.segmentation.GetSegmentation().ContainsRepresentation(surface)

    def test_a_saved_scene_brings_panel_and_results_back(self) -> None:
        self.addScan("kept")
        self.parameters.run.seed = 42
        self.run_()
        self.ui.thresholdSlider.value = 3.5
        self.settle()
        path = Path(slicer.app.temporaryPath) / "DiffusionAnomaly test ä.mrb"
        assert slicer.util.saveScene(str(path))
        slicer.mrmlScene.Clear()
        self.settle()
        assert self.panel.results.nodes() is None
        slicer.util.loadScene(str(path))
        self.settle()
        path.unlink()
        nodes = self.panel.results.nodes()
        assert nodes is not None and nodes.threshold == 3.5
        assert self.parameters.inputVolume.GetName() == "kept"
        assert self.ui.seedSpinBox.value == 42 and self.ui.thresholdSlider.value == 3.5
        self.ui.thresholdSlider.value = 4.5
        assert slicer.util.arrayFromVolume(nodes.labelMap).sum() == 0

    def test_closing_the_scene_while_it_runs_cancels_and_leaves_it_empty(self) -> None:
        self.useStandIn(seconds=30)
        self.addScan()
        self.ui.runButton.click()
        self.waitFor(lambda: self.ui.progressBar.value > 5)
        slicer.mrmlScene.Clear()
        self.waitFor(lambda: not self.panel.detection.queue.isBusy)
        self.settle()
        assert self.widget.logic.results() == []
        assert self.parameters is not None and self.parameters.inputVolume is None

    def test_deleting_the_volume_while_it_runs_says_so(self) -> None:
        self.useStandIn(seconds=60)
        scan = self.addScan()
        self.ui.runButton.click()
        self.waitFor(lambda: self.ui.progressBar.value > 0)
        slicer.mrmlScene.RemoveNode(scan)
        self.waitFor(lambda: not self.panel.detection.queue.isBusy, 20)
        self.settle()
        assert "was deleted" in self.panel.detection.queue.entries[-1].message
        assert self.widget.logic.results() == []

    def test_the_worker_stays_for_the_next_run_and_the_next_scene(self) -> None:
        self.addScan()
        self.run_()
        worker = self.panel.detection._worker
        process = worker._process
        self.run_()
        assert worker._process is process and process.isRunning()
        slicer.mrmlScene.Clear()
        self.addScan("in the next scene")
        self.run_()
        assert worker._process is process and process.isRunning()
        self.panel.detection.close()
        assert not worker.isRunning and not process.isRunning()
        self.widget.onReload()  # nothing runs in a panel whose detection is closed

    def test_reloading_the_module_ends_an_idle_worker(self) -> None:
        self.addScan()
        self.run_()
        old = self.panel.detection._worker
        process = old._process
        self.widget.onReload()
        assert not old.isRunning and not process.isRunning()

    def test_reloading_the_module_ends_the_worker_and_starts_anew(self) -> None:
        self.useStandIn(seconds=30)
        self.addScan()
        self.ui.runButton.click()
        self.waitFor(lambda: self.ui.progressBar.value > 5)
        old = self.panel
        job = old.detection.queue.entries[0].job
        self.widget.onReload()
        assert self.panel is not old
        assert not job._process.isRunning() and not job.workspace.folder.exists()
        assert not old.detection._worker.isRunning
        self.useStandIn()
        self.addScan("again")
        self.run_()
        self.assertNoTorch()

    def test_the_logic_works_without_the_panel(self) -> None:
        scan = self.addScan()
        lines: list[str] = []
        logic = slicer.util.getModuleLogic("DiffusionAnomaly")
        nodes = logic.detect(scan, method="intensity", threshold=2.0, onProgress=lines.append)
        assert nodes.threshold == 2.0 and lines
        assert [one for one, next_ in pairwise(lines) if one == next_] == []
        ended: list[str] = []
        entry = logic.detect(
            scan, method="intensity", blocking=False, onFinished=lambda entry, nodes, problem: ended.append(problem)
        )
        assert not entry.state.isOver
        self.waitFor(lambda: bool(ended))
        assert ended == [""] and len(logic.results()) == 2

    def test_the_sample_scan_loads_without_a_network(self) -> None:
        self.ui.sampleDataLabel.linkActivated.emit("sample")
        self.settle()
        assert self.parameters.inputVolume is not None
        assert "FLAIR" in self.ui.inputInfoLabel.text

    def test_every_result_keeps_its_own_threshold(self) -> None:
        self.addScan()
        first = self.run_()
        self.ui.thresholdSlider.value = 3.7
        second = self.run_()
        assert (first.threshold, second.threshold) == (3.7, 3.0)
        assert self.ui.thresholdSlider.value == 3.0
        self.ui.thresholdSlider.value = 2.2
        for nodes, threshold in ((first, 3.7), (second, 2.2), (first, 3.7)):
            self.ui.resultSelector.setCurrentNode(nodes.anomalyMap)
            self.settle()
            assert self.ui.thresholdSlider.value == nodes.threshold == threshold
            outlined = [bool(one.segmentation.GetDisplayNode().GetVisibility()) for one in (first, second)]
            assert outlined == [one is nodes for one in (first, second)]
        scripted = self.widget.logic.detect(first.inputNode, method="intensity", threshold=2.5)
        self.settle()
        assert scripted.threshold == 2.5 == self.ui.thresholdSlider.value

    def test_deleting_the_result_that_is_shown_shows_no_other(self) -> None:
        self.addScan()
        first, second = self.run_(), self.run_()
        self.ui.legendCheckBox.checked = True
        slicer.mrmlScene.RemoveNode(second.anomalyMap)
        self.settle()
        assert self.panel.results.nodes() is None and self.ui.resultSelector.currentNode() is None
        composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
        assert composite.GetForegroundVolumeID() != first.anomalyMap.GetID()
        self.panel.results.show(first)
        self.settle()
        slicer.mrmlScene.RemoveNode(first.anomalyMap.GetVolumeDisplayNode())
        self.settle()
        self.panel.refresh()
        self.panel.results.show(None)
        self.settle()
        assert composite.GetForegroundVolumeID() is None and not self.ui.resultFrame.visible

    def test_a_scene_imported_beside_a_result_leaves_it_shown(self) -> None:
        self.addScan("kept")
        self.run_()
        self.ui.thresholdSlider.value = 3.5
        self.settle()
        path = Path(slicer.app.temporaryPath) / "DiffusionAnomaly import.mrb"
        assert slicer.util.saveScene(str(path))
        self.addCleanup(path.unlink)
        slicer.util.loadScene(str(path))
        self.settle()
        both = self.widget.logic.results()
        shown = self.panel.results.nodes()
        assert len(both) == 2 and shown is not None
        assert self.ui.resultSelector.currentNode() is shown.anomalyMap and self.ui.thresholdSlider.value == 3.5
        outlined = [bool(one.segmentation.GetDisplayNode().GetVisibility()) for one in both]
        assert outlined == [one.anomalyMap is shown.anomalyMap for one in both]

    def test_a_brain_mask_that_is_deleted_leaves_none_behind(self) -> None:
        self.addScan()
        nodes = self.run_()
        mask = slicer.modules.volumes.logic().CreateAndAddLabelVolume(nodes.inputNode, "brain")
        self.parameters.brainMask = mask
        self.settle()
        slicer.mrmlScene.RemoveNode(mask)
        self.settle()
        assert self.parameters.brainMask is None and self.ui.maskSelector.currentNode() is None
        self.parameters.brainMask = nodes.labelMap
        self.settle()
        assert not self.ui.runButton.enabled and "not the brain" in self.ui.messageLabel.text

    def test_exams_of_two_patients_are_asked_about_before_they_are_compared(self) -> None:
        hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
        for number, name in enumerate(("2024", "2025")):
            scan = self.addScan(name)
            patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), f"patient {number}")
            hierarchy.SetItemAttribute(patient, "DICOM.PatientID", f"P{number}")
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(scan), hierarchy.CreateStudyItem(patient, "study"))
            self.run_()
        self.ui.priorCollapsibleButton.collapsed = False
        self.settle()
        asked: list[str] = []
        real = slicer.util.confirmOkCancelDisplay
        self.addCleanup(setattr, slicer.util, "confirmOkCancelDisplay", real)
        for answer in (False, True):
            slicer.util.confirmOkCancelDisplay = lambda text, title, answer=answer: asked.append(text) or answer
            self.ui.compareButton.click()
            self.settle()
            assert "2024 and 2025 are of two patients by their patient ID." in asked[-1]
            # The stand-in gives no brain mask: where the user insists, that is what the comparison lacks next.
            assert ("without the brain mask" in self.ui.priorLabel.text) == answer
        assert len(asked) == 2
        self.ui.priorCollapsibleButton.collapsed = True

    def test_two_quick_clicks_are_one_request(self) -> None:
        self.useStandIn(seconds=3)
        self.addScan()
        self.ui.runButton.click()
        self.ui.runButton.click()
        self.settle()
        (entry,) = self.panel.detection.queue.entries
        assert not entry.state.isOver
        self.waitFor(lambda: entry.state.isOver)
        assert entry.message == "" and len(self.widget.logic.results()) == 1

    def test_what_is_shown_is_what_is_requested(self) -> None:
        self.addScan()
        self.parameters.method.name = "guided"
        self.parameters.method.model = "/gone"
        self.parameters.method.steps = 200
        self.parameters.method.noiseLevel = 10
        self.settle()
        request = self.panel.method.request(self.parameters)
        assert request.steps == self.ui.stepsSlider.value == 10
        assert request.model is not None and Path(request.model).name in self.ui.modelComboBox.currentText
        self.parameters.method.noiseLevel = 0
        self.settle()
        assert not self.ui.runButton.enabled and "Noise level" in self.ui.messageLabel.text
        self.parameters.method.name = "of another version"
        self.settle()
        assert self.parameters.method.name == DEFAULT_METHOD and self.ui.runButton.enabled

    def test_an_added_model_that_is_gone_is_named_and_can_be_forgotten(self) -> None:
        from DiffusionAnomalyLib import choices

        self.addScan()
        gone = Path(slicer.app.temporaryPath) / "gone model"
        choices.remember(gone, self.panel.detection.settings)
        self.parameters.method.name = "guided"
        self.settle()
        assert "gone model is not there" in self.ui.modelCardLabel.text and self.ui.runButton.enabled
        self.ui.modelCardLabel.linkActivated.emit(f"{choices.FORGET}{gone}")
        self.settle()
        assert "gone model" not in self.ui.modelCardLabel.text
        assert choices.problems(self.panel.detection.settings) == {}

    def test_long_names_do_not_widen_the_panel(self) -> None:
        self.addScan()
        self.run_()
        panel = self.ui.runButton.parentWidget().parentWidget()
        width = panel.minimumSizeHint.width()
        self.addScan("x" * 200)
        self.run_()
        self.panel.results.findings.name(0, "y" * 200)
        self.settle()
        assert panel.minimumSizeHint.width() <= width + 20

    def test_saved_files_hold_what_the_scene_holds(self) -> None:
        self.addScan("3: AX FLAIR / a")
        nodes = self.run_()
        folder = Path(slicer.app.temporaryPath) / "DiffusionAnomaly exports ä"
        folder.mkdir(exist_ok=True)
        self.addCleanup(shutil.rmtree, folder)
        for button, name, ending in (
            (self.ui.exportSegmentationButton, "mask", ".nrrd"),
            (self.ui.saveMapButton, "heat.nii.gz", ""),
            (self.ui.saveReportButton, "report", ".html"),
        ):
            with self.choosing(folder / name) as asked:
                button.click()
            assert Path(asked[0]).parent == Path.home() and Path(asked[0]).name.startswith("3")
            self.waitFor((folder / f"{name}{ending}").exists)
        mask = slicer.util.loadVolume(str(folder / "mask.nrrd"), {"labelmap": True, "show": False})
        anomaly_map = slicer.util.loadVolume(str(folder / "heat.nii.gz"), {"show": False})
        assert np.array_equal(slicer.util.arrayFromVolume(mask), slicer.util.arrayFromVolume(nodes.labelMap))
        assert np.array_equal(slicer.util.arrayFromVolume(anomaly_map), slicer.util.arrayFromVolume(nodes.anomalyMap))
        for node in (mask, anomaly_map):
            matrices = [slicer.util.arrayFromVTKMatrix(self._matrix(one)) for one in (node, nodes.anomalyMap)]
            assert np.allclose(*matrices, atol=1e-4)
        assert "A report" in (folder / "report.html").read_text(encoding="utf-8")

    @contextmanager
    def choosing(self, path: Path) -> Iterator[list[str]]:
        """The user chooses this path in the file dialog, which is asked with what is given here."""
        from DiffusionAnomalyLib.panel import exportpanel

        asked: list[str] = []

        class Dialog:
            @staticmethod
            def getSaveFileName(parent: object, title: str, start: str, kinds: str) -> str:
                asked.append(start)
                return str(path)

        real = exportpanel.qt
        exportpanel.qt = SimpleNamespace(QFileDialog=Dialog)
        try:
            yield asked
        finally:
            exportpanel.qt = real

    def test_removing_a_result_takes_everything_of_it(self) -> None:
        self.addScan()
        before = slicer.mrmlScene.GetNumberOfNodes()
        self.run_()
        first = slicer.mrmlScene.GetNumberOfNodes()
        assert first > before
        self.run_()
        self.ui.removeResultButton.click()
        self.settle()
        assert len(self.widget.logic.results()) == 1
        self.panel.results.show(self.widget.logic.results()[0])
        self.settle()
        self.ui.removeResultButton.click()
        self.settle()
        assert self.widget.logic.results() == [] and not self.ui.removeResultButton.enabled
        assert slicer.mrmlScene.GetNumberOfNodes() <= before

    def test_removing_or_deleting_a_result_blends_no_other_exam_over_the_scan(self) -> None:
        other = self.addScan("another exam")
        self.addScan("today")
        slicer.util.setSliceViewerLayers(background=self.parameters.inputVolume, foreground=None)
        composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
        for remove in (
            lambda nodes: self.ui.removeResultButton.click(),
            lambda nodes: slicer.mrmlScene.RemoveNode(nodes.anomalyMap),
        ):
            nodes = self.run_()
            assert composite.GetForegroundVolumeID() == nodes.anomalyMap.GetID()
            remove(nodes)
            self.settle()
            assert composite.GetForegroundVolumeID() is None
            assert composite.GetBackgroundVolumeID() == self.parameters.inputVolume.GetID() != other.GetID()

    def test_a_result_does_not_push_another_scan_out_of_the_views(self) -> None:
        first = self.addScan("first")
        slicer.util.setSliceViewerLayers(background=first)
        self.useStandIn(seconds=1.5)
        self.ui.runButton.click()
        second = self.addScan("second")
        slicer.util.setSliceViewerLayers(background=second)
        self.waitFor(lambda: not self.panel.detection.queue.isBusy)
        self.settle()
        composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
        assert composite.GetBackgroundVolumeID() == second.GetID() and composite.GetForegroundVolumeID() is None
        self.ui.queueTable.cellDoubleClicked.emit(0, 0)
        self.settle()
        nodes = self.panel.results.nodes()
        assert nodes is not None and nodes.inputNode is first
        assert composite.GetBackgroundVolumeID() == first.GetID()
        assert composite.GetForegroundVolumeID() == nodes.anomalyMap.GetID()

    def test_the_colour_scale_follows_its_box(self) -> None:
        self.addScan()
        self.run_()
        legend = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
        assert legend.GetVisibility()
        self.ui.legendCheckBox.checked = False
        self.settle()
        assert not legend.GetVisibility()

    def test_the_steps_default_is_marked_and_one_click_away(self) -> None:
        self.addScan()
        self.parameters.method.name = "guided"
        self.settle()
        slider = self.ui.stepsSlider
        default = slider.value
        assert "default" in slider.suffix and self.parameters.method.steps == -1
        slider.value = default + 5
        self.settle()
        assert self.parameters.method.steps == default + 5 and "default" not in slider.suffix
        self.ui.stepsInfoLabel.linkActivated.emit("default")
        self.settle()
        assert slider.value == default and "default" in slider.suffix

    def test_the_published_options_are_one_choice_away(self) -> None:
        self.addScan()
        self.parameters.method.name = "guided"
        self.settle()
        self.ui.methodCollapsibleButton.collapsed = False
        box = self.ui.presetComboBox
        assert box.visible and box.count == 2 and not self.ui.minAreaSpinBox.visible
        box.setCurrentIndex(1)
        self.settle()
        assert self.parameters.method.preset == "paper" and self.ui.stepsSlider.value == 500
        request = self.panel.method.request(self.parameters)
        assert (request.preset, request.steps, request.minArea) == ("paper", 500, None)

    def test_an_anomaly_map_is_not_taken_for_a_scan(self) -> None:
        self.addScan()
        nodes = self.run_()
        self.parameters.inputVolume = nodes.anomalyMap
        self.settle()
        assert not self.ui.runButton.enabled and "result of this module" in self.ui.inputInfoLabel.text

    def test_a_segment_is_offered_only_for_a_segmentation(self) -> None:
        scan = self.addScan()
        assert not self.ui.segmentComboBox.visible
        self.ui.methodCollapsibleButton.collapsed = False
        mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "two")
        mask.SetReferenceImageGeometryParameterFromVolumeNode(scan)
        for name in ("left", "right"):
            mask.GetSegmentation().AddEmptySegment(name, name)
        self.parameters.brainMask = mask
        self.settle()
        box = self.ui.segmentComboBox
        assert box.visible and [box.itemText(index) for index in range(box.count)] == ["left", "right"]
        box.setCurrentIndex(1)
        assert self.parameters.brainSegment == "right"

    def test_the_scans_of_a_folder_are_queued_at_once(self) -> None:
        hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
        folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "exams")
        for number, name in enumerate(("FLAIR one", "T1 of it", "FLAIR two")):
            study = hierarchy.CreateFolderItem(folder, f"exam {number // 2}")
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(self.addScan(name)), study)
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
        self.ui.batchCollapsibleButton.collapsed = False
        self.panel.batch.folder().setCurrentItem(folder)
        self.settle()
        assert "photo" in self.ui.notListedLabel.text
        table = self.ui.batchTable
        ticked = {table.item(row, 0).text(): bool(table.item(row, 0).checkState()) for row in range(table.rowCount)}
        assert ticked == {"FLAIR one": True, "T1 of it": False, "FLAIR two": True}
        self.ui.batchButton.click()
        assert [entry.title for entry in self.panel.detection.queue.entries] == ["FLAIR one", "FLAIR two"]
        self.waitFor(lambda: not self.panel.detection.queue.isBusy)
        self.settle()
        assert len(self.widget.logic.results()) == 2 and self.ui.batchCollapsibleButton.collapsed

    def test_scan_run_and_results_are_in_view_without_scrolling(self) -> None:
        slicer.util.mainWindow().resize(1500, 1000)
        self.addScan()
        self.run_()
        assert self.ui.methodCollapsibleButton.collapsed and not self.ui.resultsCollapsibleButton.collapsed
        window = slicer.util.mainWindow()
        for widget in (self.ui.inputSelector, self.ui.runButton, self.ui.resultSelector, self.ui.thresholdSlider):
            bottom = widget.mapTo(window, qt.QPoint(0, widget.height)).y()
            assert widget.visible and bottom < 600
        text = self.ui.methodCollapsibleButton.text
        assert text.startswith("Intensity (baseline) · flair-intensity · automatic · about ")

    @staticmethod
    def _matrix(node: object) -> object:
        import vtk

        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)  # type: ignore[attr-defined]
        return matrix
