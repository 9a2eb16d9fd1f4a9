"""From a volume node to result nodes with the real worker process, as a script in Slicer would do it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import jobs
import mrmlscene
import packages
from diffusion_anomaly.errors import InputError, ModelError
from DiffusionAnomalyLib.detection import Detection, Request, stepsOf
from DiffusionAnomalyLib.process.workerjob import State
from DiffusionAnomalyLib.process.workspace import PREFIX
from DiffusionAnomalyLib.progresstext import expectedSeconds
from DiffusionAnomalyLib.scene import attributes, exporting, results, volumes
from DiffusionAnomalyLib.settings import MemorySettings


@pytest.fixture
def detection(scene: Any, tmp_path: Path) -> Iterator[Detection]:
    folder = tmp_path / "working files ä"
    detection = Detection(
        scene, folder, settings=MemorySettings(), command=list(jobs.WORKER), environment=jobs.environment()
    )
    yield detection
    detection.close()
    assert list(folder.glob(f"{PREFIX}*")) == []


@pytest.fixture
def scan(scene: Any, tmp_path: Path) -> Any:
    return mrmlscene.addScan(scene, jobs.scan(), tmp_path, "Ünser FLAIR")


@pytest.fixture
def brain(scene: Any, scan: Any) -> Any:
    return mrmlscene.addLabels(scene, jobs.brain(), scan, "brain")


def test_a_run_may_leave_out_the_scans_name(detection: Detection, scan: Any, brain: Any, tmp_path: Path) -> None:
    scan.SetName("Doe^John")
    entry = detection.add(scan, Request("intensity", threshold=1.5, anonymous=True), brain)
    nodes = detection.wait(entry)
    made = attributes.document(nodes.anomalyMap)
    assert (made["input"]["title"], made["input"]["path"]) == ("scan", "")
    assert "Doe^John" not in nodes.report.GetText() and "Doe^John" not in json.dumps(made)


def test_a_scan_that_looks_unknown_is_run_only_when_asked() -> None:
    assert Request("intensity", force=True).options()["force"] is True
    assert "force" not in Request("intensity").options()


def test_a_script_gets_map_mask_table_and_report(
    detection: Detection, scene: Any, scan: Any, brain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = packages.guided(Path("a model") / "tiny", options={"steps": 2, "level": 500}).path.relative_to(tmp_path)
    request = Request(
        "guided",
        model=str(model),
        steps=1,
        device="cpu",
        seed=5,
        threshold=1.5,
        minVolumeMl=0.0,
        keepReconstruction=True,
    )
    lines: list[int] = []
    entry = detection.add(scan, request, brain)
    nodes = detection.wait(entry, lambda: lines.append(1))

    assert entry.state is State.DONE and lines
    assert results.resultsIn(scene)[0].anomalyMap is nodes.anomalyMap
    made = attributes.document(nodes.anomalyMap)
    assert (made["method"], made["options"]["steps"], made["options"]["seed"]) == ("guided", 1, 5)
    assert made["brain"]["source"] == "given by the user"
    assert nodes.threshold == 1.5
    anomaly_map = slicer.util.arrayFromVolume(nodes.anomalyMap)
    inside = slicer.util.arrayFromVolume(brain) != 0
    assert anomaly_map.shape == slicer.util.arrayFromVolume(scan).shape
    assert anomaly_map[inside].max() > 0 and anomaly_map[~inside].max() == 0
    mask = slicer.util.arrayFromVolume(nodes.labelMap) != 0
    assert np.array_equal(mask, anomaly_map >= np.float32(1.5))
    reconstruction, original = slicer.util.arrayFromVolume(nodes.reconstruction), slicer.util.arrayFromVolume(scan)
    assert np.array_equal(reconstruction[~inside], original[~inside]) and not np.array_equal(reconstruction, original)
    assert np.array_equal(volumes.ijkToRas(nodes.reconstruction), volumes.ijkToRas(scan))
    assert "<h1>Ünser FLAIR</h1>" in nodes.report.GetText() and made["input"]["title"] == "Ünser FLAIR"
    assert expectedSeconds(detection.settings, "guided", "tiny", "cpu", 16, 1) is not None
    assert not [path for path in tmp_path.rglob("*") if path.name == "job.json"]

    for name, save in (("m.nii.gz", exporting.saveSegmentation), ("h.nrrd", exporting.saveAnomalyMap)):
        save(nodes, tmp_path / name)
    assert np.array_equal(jobs.array(tmp_path / "m.nii.gz") != 0, mask)
    assert np.array_equal(jobs.array(tmp_path / "h.nrrd"), anomaly_map)
    assert np.allclose(sitk.ReadImage(str(tmp_path / "h.nrrd")).GetOrigin(), jobs.scan().GetOrigin())
    with pytest.raises(InputError, match="neither NRRD nor NIfTI"):
        exporting.saveAnomalyMap(nodes, tmp_path / "heat.png")


def test_working_files_that_are_kept_outlive_the_run_and_later_slicers(
    detection: Detection, scene: Any, scan: Any, brain: Any
) -> None:
    entry = detection.add(scan, Request("intensity", device="cpu", keepFiles=True), brain)
    detection.wait(entry)
    folder = entry.job.workspace.folder
    os.utime(folder, (0, 0))
    detection.close()
    Detection(scene, detection.temporaryFolder, settings=MemorySettings())  # cleans up when it is made
    assert (folder / "scan.nrrd").is_file() and (folder / "results" / "heat.nrrd").is_file()
    shutil.rmtree(folder)


def test_a_volume_deleted_meanwhile_leaves_the_scene_as_it_is_and_says_so(
    detection: Detection, scene: Any, scan: Any, brain: Any
) -> None:
    entry = detection.add(scan, Request("intensity", device="cpu"), brain)
    scene.RemoveNode(scan)
    before = mrmlscene.nodeIds(scene)
    with pytest.raises(InputError, match=r"was deleted.*Load it again"):
        detection.wait(entry)
    assert entry.state is State.CANCELLED
    assert mrmlscene.nodeIds(scene) == before


def test_a_cancelled_run_leaves_the_scene_as_it_was(detection: Detection, scene: Any, scan: Any) -> None:
    before = mrmlscene.nodeIds(scene)
    entry = detection.add(scan, Request("intensity", device="cpu"))
    entry.job._killSeconds = 0.1
    detection.queue.cancel(entry)
    with pytest.raises(InputError, match="cancelled"):
        detection.wait(entry)
    assert mrmlscene.nodeIds(scene) == before


def test_a_refused_volume_or_mask_leaves_no_working_files(detection: Detection, scene: Any, scan: Any) -> None:
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    mask = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "elsewhere")
    for volume, brainMask, method in ((empty, None, "intensity"), (scan, mask, "intensity"), (scan, None, "guesswork")):
        with pytest.raises(InputError):
            detection.add(volume, Request(method), brainMask)
    with pytest.raises(ModelError, match="nope"):
        detection.add(scan, Request("guided", model="nope"))
    assert detection.queue.entries == []
    assert list(detection.temporaryFolder.glob("*")) == []


def test_a_script_that_is_interrupted_ends_the_worker(detection: Detection, scan: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    entry = detection.add(scan, Request("intensity", device="cpu"))
    with pytest.raises(KeyboardInterrupt):
        detection.wait(entry, interrupt)
    jobs.wait(lambda: entry.state.isOver, entry.job.tick, 10)
    assert entry.state is State.CANCELLED


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (Request("guided", noiseLevel=300, guidanceScale=2.5), {"overrides": {"level": 300, "guidance_scale": 2.5}}),
        (Request("guided", steps=7), {"steps": 7}),
        (Request("unsupervised", noiseLevel=300, guidanceScale=2.5), {"overrides": {"start_level": 300}}),
        (Request("intensity", steps=7, noiseLevel=1, preset="paper"), {}),
        (Request("guided", preset="paper", minArea=20.0), {"preset": "paper", "min_area": 20.0}),
        (Request("guided", sliceSpacing=4.0, threshold=3.0), {"slice_spacing": 4.0, "threshold": 3.0}),
        (Request("guided", peakMargin=0.0), {"peak_margin": 0.0}),
    ],
)  # fmt: skip
def test_each_method_gets_only_the_options_it_has(request_: Request, options: dict[str, Any]) -> None:
    assert request_.options() == {"device": "auto", "seed": 0, "min_volume_ml": 0.05, **options}


def test_the_steps_that_will_be_walked_are_the_packages_unless_others_are_asked_for() -> None:
    assert stepsOf(Request("guided", steps=3)) == 3
    assert stepsOf(Request("intensity", steps=3)) is None
    assert (stepsOf(Request("guided")) or 0) >= 1
    assert stepsOf(Request("guided", preset="paper")) == 500
