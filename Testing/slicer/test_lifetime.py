"""What a run leaves behind: nothing once its result is removed, its scan deleted, or the scene closed.

The worker is the panel tests' stand-in, which needs no torch and takes as long as it is told.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import vtk

import jobs
import mrmlscene
from diffusion_anomaly.errors import InputError
from DiffusionAnomalyLib.detection import Detection, Request
from DiffusionAnomalyLib.process.workerjob import State
from DiffusionAnomalyLib.scene import channels, results
from DiffusionAnomalyLib.settings import MemorySettings

STANDIN = Path(__file__).resolve().parents[1] / "app" / "standin_worker.py"


@pytest.fixture
def started(scene: Any, tmp_path: Path) -> Iterator[Callable[[float], Detection]]:
    """Detections whose worker takes so many seconds for a scan."""
    made: list[Detection] = []

    def start(seconds: float) -> Detection:
        environment = {**jobs.environment(), "STANDIN_SECONDS": str(seconds)}
        command = [sys.executable, str(STANDIN)]
        made.append(Detection(scene, tmp_path / "work", settings=MemorySettings(), command=command))
        made[0]._environment = environment
        return made[0]

    yield start
    for detection in made:
        detection.close()


@pytest.fixture
def scan(scene: Any, tmp_path: Path) -> Any:
    return mrmlscene.addScan(scene, jobs.scan(), tmp_path, "patient")


def test_a_removed_result_leaves_memory_though_its_entry_stays(
    started: Callable[[float], Detection], scene: Any, scan: Any
) -> None:
    detection = started(0.1)
    entry = detection.add(scan, Request("intensity"))
    nodes = detection.wait(entry)
    assert detection.resultOf(entry) == nodes
    voxels = vtk.vtkWeakReference()
    voxels.Set(nodes.anomalyMap.GetImageData())
    results.removeResults(scene, nodes)
    del nodes
    gc.collect()
    assert entry in detection.queue.entries and detection.resultOf(entry) is None
    assert voxels.Get() is None


@pytest.mark.parametrize("waits", [False, True])
def test_a_deleted_scan_ends_its_run_at_once_and_the_entry_says_why(
    started: Callable[[float], Detection], scene: Any, scan: Any, tmp_path: Path, waits: bool
) -> None:
    detection = started(60.0)
    other = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "other")
    first = detection.add(other if waits else scan, Request("intensity"))
    entry = detection.add(scan, Request("intensity")) if waits else first
    jobs.wait(lambda: first.job.progress is not None, detection.tick, 30)
    begun = time.monotonic()
    scene.RemoveNode(scan)
    jobs.wait(lambda: entry.state.isOver, detection.tick, 30)
    assert time.monotonic() - begun < 25
    assert entry.state is State.CANCELLED and entry.message.startswith("The volume patient was deleted")
    assert not waits or first.state is State.RUNNING
    with pytest.raises(InputError, match="patient was deleted"):
        detection.wait(entry)


def test_a_closed_scene_leaves_no_entry(started: Callable[[float], Detection], scene: Any, scan: Any) -> None:
    detection = started(0.1)
    detection.wait(detection.add(scan, Request("intensity")))
    detection._environment = {**jobs.environment(), "STANDIN_SECONDS": "60"}
    running = detection.add(scan, Request("intensity"))
    detection.add(scan, Request("intensity"))
    jobs.wait(lambda: running.job.progress is not None, detection.tick, 30)
    detection.forgetScene()
    assert detection.queue.entries == [running]  # until it has ended
    scene.Clear(0)
    jobs.wait(lambda: not detection.queue.isBusy, detection.tick, 30)
    assert detection.queue.entries == [] and results.resultsIn(scene) == []


def test_a_refresh_asks_little_of_a_large_scene(scene: Any, scan: Any) -> None:
    owner = scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "parameters")
    for number in range(2000):
        scene.AddNewNodeByClass("vtkMRMLModelNode", f"model {number}")

    def refresh() -> float:
        begun = time.process_time()
        results.resultsIn(scene)
        channels.fillChannels(owner, ["T1", "T1C"], scan)
        return 1000.0 * (time.process_time() - begun)

    assert min(refresh() for _ in range(20)) < 5.0


@pytest.mark.skipif(sys.platform == "win32", reason="no niceness")
def test_the_worker_lets_other_programs_go_first() -> None:
    with subprocess.Popen([*jobs.WORKER, "--serve"], stdin=subprocess.PIPE, env=jobs.environment()) as worker:
        niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
        jobs.wait(lambda: os.getpriority(os.PRIO_PROCESS, worker.pid) == niceness, lambda: None, 60)
