"""The panel's own code at work, with stand-ins for Qt: how its parts are wired, and that a reload reloads all of it.

What widgets really do is tested inside a full Slicer, see ``Testing/app``. Each test has a process of its own, because
the stand-ins would stay in ``sys.modules``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

from DiffusionAnomalyLib.process.environment import MODULE_FOLDER

HERE = Path(__file__).resolve().parent


def runs(code: str, folder: Path) -> str:
    """What a program of these lines prints; it finds the module, the tests' helpers and a stand-in for Qt."""
    path = [str(MODULE_FOLDER), str(HERE), str(HERE.parent / "engine"), str(HERE.parent / "app")]
    program = "import standins\nstandins.install()\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_parts_of_the_panel_work_together(tmp_path: Path) -> None:
    code = """
    import json, os, sys
    from pathlib import Path
    from unittest.mock import MagicMock
    from packaging.requirements import Requirement
    import slicer, jobs, mrmlscene, standin_worker, standins
    from DiffusionAnomalyLib.detection import Detection
    from DiffusionAnomalyLib.panel.panel import Panel
    from DiffusionAnomalyLib.process import dependencies
    from DiffusionAnomalyLib.scene import attributes
    from DiffusionAnomalyLib.settings import MemorySettings

    folder = Path(sys.argv[1])
    with mrmlscene.newScene() as scene:
        slicer.app = MagicMock()
        ui = standins.widgets()
        command = [sys.executable, standin_worker.__file__]
        detection = Detection(
            scene, folder / "work", settings=MemorySettings(), command=command, environment=jobs.environment()
        )
        panel = Panel(ui, detection)
        panel.install.missing = []
        chosen = standins.parameters()
        panel.setParameters(chosen)
        assert standins.said(ui.messageLabel) == "Choose a volume."

        def shown():
            frames = ui.noResultLabel, ui.resultChoiceFrame, ui.resultFrame
            return [frame.setVisible.call_args.args[0] for frame in frames]

        assert shown() == [True, False, False] and "After a run" in standins.said(ui.noResultLabel)

        chosen.inputVolume = mrmlscene.addScan(scene, jobs.scan(), folder, "patient")
        chosen.method.name = "intensity"
        panel.refresh()
        assert standins.said(ui.messageLabel) == "" and "voxels" in standins.said(ui.inputInfoLabel)
        line = "Intensity (baseline) · flair-intensity · automatic · "
        assert standins.said(ui.methodCollapsibleButton) == line + "time not measured yet"
        assert standins.said(ui.notListedLabel) == ""
        chosen.inputVolume.SetName("patient CT")
        panel.refresh()
        assert "says CT, the model knows FLAIR" in standins.said(ui.messageLabel)
        chosen.method.name = "localise"
        panel.refresh()
        assert "headct-localise" in standins.said(ui.methodCollapsibleButton)
        assert standins.said(ui.messageLabel) == ""
        film = mrmlscene.addScan(scene, jobs.scan()[:, :, 4:5], folder, "film")
        chosen.inputVolume, patient = film, chosen.inputVolume
        panel.refresh()
        assert "this is a single picture" in standins.said(ui.messageLabel)
        chosen.method.name = "guided"
        panel.refresh()
        assert "chest-pneumonia-guided" in standins.said(ui.methodCollapsibleButton)
        assert standins.said(ui.messageLabel) == ""
        scene.RemoveNode(film)
        chosen.inputVolume, chosen.method.name = patient, "intensity"
        patient.SetName("patient")
        panel.refresh()
        assert standins.said(ui.messageLabel) == ""
        mrmlscene.addLabels(scene, jobs.brain(), chosen.inputVolume, "outline")
        scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
        panel.refresh()
        assert standins.said(ui.notListedLabel) == "Not listed: outline, photo"
        why = ui.notListedLabel.setToolTip.call_args.args[0]
        assert "outline: a label map" in why and "photo: several values" in why
        slicer.util.confirmOkCancelDisplay = MagicMock(return_value=False)
        panel.run.onRun()
        assert detection.queue.entries == []
        assert "scan-recognition" in slicer.util.confirmOkCancelDisplay.call_args.args[0]
        slicer.util.confirmOkCancelDisplay.return_value = True
        panel.run.onRun()
        slicer.util.confirmOkCancelDisplay = None  # it is asked once
        (entry,) = detection.queue.entries
        panel.refresh()
        assert standins.said(ui.runButton) == "Cancel"
        jobs.wait(lambda: entry.state.isOver, panel._tick, 60)
        assert entry.message == "", entry.message

        nodes = panel.results.nodes()
        assert nodes is not None and chosen.result is nodes.all[0]
        assert ui.resultsCollapsibleButton.collapsed is False and ui.methodCollapsibleButton.collapsed is True
        assert ui.queueTable.setVisible.call_args.args[0] is False  # a single run that went well
        panel.refresh()
        assert shown() == [False, True, True]
        panel.results.show(None)
        panel.refresh()
        assert shown() == [True, True, False] and standins.said(ui.noResultLabel) == "Choose a result."
        ui.removeResultButton.setEnabled.assert_called_with(False)
        panel.results.show(nodes)
        panel.results.findings.jumpTo(0)
        panel.results.findings.comment("c" * 200)
        panel.refresh()
        place, comment = standins.said(ui.findingLabel).splitlines()
        assert place.startswith("Finding 1: ") and comment == "Comment: " + "c" * 200
        assert "1 finding of" in standins.said(ui.summaryLabel) and "stand-in" in standins.said(ui.warningLabel)
        panel.results.setThreshold(4.5)
        assert nodes.threshold == 4.5 and "No finding" in standins.said(ui.summaryLabel)
        panel.results._onResetThreshold()
        assert "peak margin" not in standins.said(ui.scoreLabel)

        def savedWith(margin):
            made["options"]["peak_margin"] = margin
            nodes.anomalyMap.SetAttribute(attributes.DOCUMENT, json.dumps(made))
            panel.results.show(nodes)
            panel.refresh()
            return standins.said(ui.scoreLabel), standins.said(ui.summaryLabel), standins.said(ui.warningLabel)

        made = attributes.document(nodes.anomalyMap)
        line_of_score, summary, warning = savedWith(3.0)
        assert "finding must reach 6.00: the threshold and the peak margin of 3." in line_of_score
        assert "No finding" in summary and "peak margin" not in warning
        for damaged in (-1.0, "1", None):
            line_of_score, summary, warning = savedWith(damaged)
            assert "peak margin" not in line_of_score and "1 finding of" in summary
            assert "The saved peak margin of " in warning and "stand-in" in warning
            panel.results.setThreshold(2.9)
            panel.results._onResetThreshold()
        savedWith(0.0)
        assert "peak margin" not in standins.said(ui.warningLabel)
        panel.results.findings.name(0, "frontal")
        assert nodes.table.GetTable().GetColumnByName("Name").GetValue(0) == "frontal"
        assert "patient: done" in panel.run.log()
        panel.refresh()
        assert standins.said(ui.methodCollapsibleButton) == line + "about 1 s"
        assert standins.said(ui.notListedLabel) == "Not listed: outline, photo"  # not what came out of the run
        ui.saveReportButton.setEnabled.assert_called_with(True)

        panel.install.missing = [Requirement("monai>=1.5.1")]
        panel.refresh()
        assert "Install the Python packages" in standins.said(ui.messageLabel)
        started = []
        panel.method._probe = lambda arguments, onAnswer: started.append(arguments)
        dependencies.missing = lambda: []
        assert detection._worker.isRunning
        panel.install._onFinished("")
        assert not detection._worker.isRunning  # what it has imported may be another version by now
        assert started == [["machine"]] and panel.install.missing == []

        panel.results.remove()
        assert panel.results.nodes() is None
        panel.close()
        assert panel.parameters is None and not list((folder / "work").iterdir())
    print("all of it")
    """
    assert runs(code, tmp_path).splitlines()[-1] == "all of it"


def test_a_picture_has_no_surface_and_is_no_prior_exam(tmp_path: Path) -> None:
    code = """
    import json, sys
    from pathlib import Path
    from unittest.mock import MagicMock
    import numpy as np
    import slicer, jobs, mrmlscene, standins
    from DiffusionAnomalyLib.detection import Detection
    from DiffusionAnomalyLib.panel.panel import Panel
    from DiffusionAnomalyLib.scene import attributes, results, segmentation
    from DiffusionAnomalyLib.scene.results import Place
    from DiffusionAnomalyLib.settings import MemorySettings

    folder = Path(sys.argv[1])
    with mrmlscene.newScene() as scene:
        slicer.app = MagicMock()
        ui = standins.widgets()
        ui.priorCollapsibleButton.collapsed = ui.overlaysButton.checked = ui.segmentsCheckBox.checked = False
        ui.show3DCheckBox.checked = True
        panel = Panel(ui, Detection(scene, folder / "work", settings=MemorySettings()))
        panel.install.missing = []
        chosen = standins.parameters(prior=None)
        panel.setParameters(chosen)

        def result(name, image, **options):
            scan = mrmlscene.addScan(scene, image, folder, name)
            scores = np.zeros(image.GetSize()[::-1], np.float32)
            scores[:3, 3:8, 4:9] = 3.5
            files = mrmlscene.writeResults(folder / name, scores, image)
            document = json.loads(files["provenance"].read_text("utf-8"))
            document["options"].update(options)
            files["provenance"].write_text(json.dumps(document), "utf-8")
            return results.loadResults(scene, Place.of(scan), files)

        picture = jobs.scan()[:, :, 4:5]
        film, other = (result(name, picture, min_area=1.0) for name in ("film", "other film"))
        prior, current = (result(name, jobs.scan()) for name in ("prior", "current"))
        assert attributes.isPicture(film.anomalyMap) and not attributes.isPicture(prior.anomalyMap)

        def shown(nodes):
            ui.priorComboBox.addItem.reset_mock()
            panel.results.show(nodes)
            panel.refresh()
            offered = [call.args[0] for call in ui.priorComboBox.addItem.call_args_list]
            surface = segmentation.isSurfaceShown(nodes.segmentation)
            return surface, offered, ui.compareButton.setEnabled.call_args.args[0], standins.said(ui.priorLabel)

        assert shown(current) == (True, ["prior"], True, "")
        reason = "film is a single picture, and pictures are not compared."
        assert shown(film) == (False, [], False, reason)
        for nodes, before in ((film, current), (current, film)):
            shown(nodes)
            chosen.prior = before.anomalyMap
            panel.prior.onCompare()
            assert panel.prior._running is None and panel.prior._problem == ""
        panel.close()
    print("all of it")
    """
    assert runs(code, tmp_path).splitlines()[-1] == "all of it"


def test_areas_and_presets_are_offered_where_the_model_has_them_and_requested(tmp_path: Path) -> None:
    code = """
    import sys
    from pathlib import Path
    import packages, standins
    from DiffusionAnomalyLib import choices
    from DiffusionAnomalyLib.panel.context import PanelContext
    from DiffusionAnomalyLib.panel.methodpanel import MethodPanel
    from DiffusionAnomalyLib.settings import MemorySettings

    films = packages.intensity(Path(sys.argv[1]) / "films", region="image", orientation="any").path
    settings, ui, chosen = MemorySettings(), standins.widgets(), standins.parameters()
    choices.remember(films, settings)
    context = PanelContext(ui, None, settings, lambda: None)
    context.parameters = chosen
    panel = MethodPanel(context)

    def shown():
        panel.refresh(chosen)
        return [widget.setVisible.call_args.args[0] for widget in (ui.minAreaSpinBox, ui.presetComboBox)]

    chosen.method.name = "intensity"
    assert shown() == [False, False]
    panel._onModel(str(films))
    chosen.run.minArea = 12.0
    assert shown() == [True, False]
    assert panel.request(chosen).options()["min_area"] == 12.0

    panel._onMethod("guided")
    assert shown() == [False, True]
    panel._presets._onChosen("paper")
    assert shown() == [False, True] and ui.stepsSlider.value == ui.stepsSlider.maximum == 500
    options = panel.request(chosen).options()
    assert "min_area" not in options  # what is not shown is not asked for
    assert "peak_margin" not in options  # as the model has it
    chosen.run.peakMargin = 0.0
    assert panel.request(chosen).options()["peak_margin"] == 0
    assert (options["preset"], options["steps"], options.get("overrides")) == ("paper", 500, None)
    panel._onSteps(7)
    assert panel.request(chosen).options()["steps"] == 7
    panel._onMethod("localise")
    assert shown() == [False, False] and "preset" not in panel.request(chosen).options()
    print("all of it")
    """
    assert runs(code, tmp_path).splitlines()[-1] == "all of it"


def test_the_end_of_a_scene_frees_the_models_memory_and_the_end_of_slicer_ends_the_worker(tmp_path: Path) -> None:
    code = """
    import sys
    from types import SimpleNamespace
    from unittest.mock import Mock
    import slicer
    from DiffusionAnomaly import DiffusionAnomalyWidget
    from DiffusionAnomalyLib.panel.panel import Panel

    for end in ("onAboutToQuit", "cleanup"):
        widget = DiffusionAnomalyWidget()
        widget.removeObservers = lambda: None
        calls = Mock()
        widget.logic = SimpleNamespace(detection=calls)
        widget.onSceneStartClose(None, None)
        assert [call[0] for call in calls.method_calls] == ["forgetScene"]
        calls.reset_mock()
        widget.panel = Panel.__new__(Panel)
        widget.panel.__dict__.update(
            detection=calls,
            refresh=Mock(),
            **{name: Mock() for name in "_context _timer _soon install method results export prior".split()},
        )
        widget.panel.setParameters = lambda parameters: None
        getattr(widget, end)()
        assert [call[0] for call in calls.method_calls] == ["close"]
    print("all of it")
    """
    assert runs(code, tmp_path).splitlines()[-1] == "all of it"


def test_reloading_the_module_reloads_every_wing_of_its_library(tmp_path: Path) -> None:
    for name in ("DiffusionAnomaly.py", "DiffusionAnomalyLib"):
        copy = shutil.copytree if (MODULE_FOLDER / name).is_dir() else shutil.copy
        copy(MODULE_FOLDER / name, tmp_path / name)
    code = """
    import importlib.util, os, sys
    from pathlib import Path
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))

    def load():
        spec = importlib.util.spec_from_file_location("DiffusionAnomaly", folder / "DiffusionAnomaly.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["DiffusionAnomaly"] = module
        spec.loader.exec_module(module)
        return module, {n: m for n, m in sys.modules.items() if n.split(".")[0] == "DiffusionAnomalyLib"}

    first, before = load()
    assert all(Path(module.__file__).is_relative_to(folder) for module in before.values())
    for wing, name in (("panel", "runpanel"), ("process", "workerjob"), ("scene", "results")):
        file = folder / "DiffusionAnomalyLib" / wing / f"{name}.py"
        file.write_text(file.read_text("utf-8") + "\\nCHANGED = True\\n", "utf-8")
    import slicer
    reloaded = []
    slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget.onReload = lambda self: reloaded.extend(load())
    first.DiffusionAnomalyWidget().onReload()
    second, after = reloaded
    assert before.keys() == after.keys() and len(after) > 30
    assert [name for name in after if after[name] is before[name]] == []
    for name in ("panel.runpanel", "process.workerjob", "scene.results"):
        assert after[f"DiffusionAnomalyLib.{name}"].CHANGED
    assert second.Panel is not first.Panel
    assert second.Panel is after["DiffusionAnomalyLib.panel.panel"].Panel
    print("all of it")
    """
    assert runs(code, tmp_path).splitlines()[-1] == "all of it"
