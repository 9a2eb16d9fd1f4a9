"""Scans that a thread writes for the worker: whole, as they are in the scene, and ended when nobody wants them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import jobs
from DiffusionAnomalyLib.process import writing
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.process.workerjob import DetectionJob, State
from DiffusionAnomalyLib.process.workspace import Workspace
from DiffusionAnomalyLib.process.writing import Writing

# A rotation about two axes, times the spacing of each.
AXES = np.array([[0.8, 0.0, 0.6], [0.36, 0.8, -0.48], [-0.48, 0.6, 0.64]]) * [0.7, 1.25, 3.0]
ORIGIN = np.array([-12.5, 3.25, 1e-3])


def finish(one: Writing) -> Writing:
    jobs.wait(lambda: one.isDone, lambda: None, 30)
    return one


@pytest.mark.parametrize("kind", sorted(writing._TYPES))
def test_the_file_holds_the_voxels_and_their_place(tmp_path: Path, kind: str) -> None:
    voxels = np.arange(-20, 40).reshape(3, 4, 5).astype(kind)
    assert finish(Writing(tmp_path / "scan.nrrd", voxels, AXES, ORIGIN, lambda: 0)).problem == ""
    image = sitk.ReadImage(os.fspath(tmp_path / "scan.nrrd"))
    read = sitk.GetArrayFromImage(image)
    assert read.dtype == voxels.dtype and np.array_equal(read, voxels)
    spacing = np.linalg.norm(AXES, axis=0)
    assert np.allclose(image.GetSpacing(), spacing) and np.allclose(image.GetOrigin(), ORIGIN)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), AXES / spacing)


def test_voxels_that_change_meanwhile_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, version = np.zeros((2, 3, 4), np.int16), [1]
    one = Writing(tmp_path / "scan.nrrd", voxels, AXES, ORIGIN, lambda: version[0])
    one._thread.join()
    voxels += 7
    version[0] = 2
    assert not one.isDone
    finish(one)
    version[0] = 3  # nobody asks once it is done
    assert one.isDone
    read = sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(tmp_path / "scan.nrrd")))
    assert (read == 7).all()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Writing waits until this is called, or it is cancelled."""
    gate = threading.Event()
    write = Writing._write

    def slow(self: Writing, voxels: np.ndarray) -> None:
        while not gate.is_set() and not self._cancelled.is_set():
            time.sleep(0.005)
        write(self, voxels)

    monkeypatch.setattr(Writing, "_write", slow)
    return gate.set


def job(folder: Path, path: Path | None = None) -> DetectionJob:
    workspace = Workspace(folder)
    one = workspace.beginScan(np.zeros((2, 3, 4)), AXES, ORIGIN, lambda: 0)
    if path is not None:
        finish(one)
        one = Writing(path, np.zeros((200, 300, 40)), AXES, ORIGIN, lambda: 0)
    return DetectionJob(workspace, PipeProcess(), [str(folder / "nothing")], {}, [one])


def test_the_worker_starts_when_its_scan_is_written(tmp_path: Path, held: Callable[[], None]) -> None:
    waiting = job(tmp_path)
    waiting.start()
    waiting.tick()
    assert waiting.state is State.RUNNING  # not failed yet, though its program is not there
    held()
    jobs.wait(lambda: waiting.state.isOver, waiting.tick, 30)
    assert waiting.outcome is not None and "cannot be started" in waiting.outcome.what


@pytest.mark.parametrize("end", [DetectionJob.cancel, DetectionJob.kill])
def test_a_job_whose_scan_is_being_written_ends_at_once(
    tmp_path: Path, held: Callable[[], None], end: Callable[[DetectionJob], None]
) -> None:
    waiting = job(tmp_path)
    waiting.start()
    end(waiting)
    assert waiting.state is State.CANCELLED
    assert sum(path.stat().st_size for path in waiting.workspace.folder.iterdir()) < 1000
    waiting.workspace.remove()
    assert not waiting.workspace.folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_a_failure_with_advice(tmp_path: Path) -> None:
    waiting = job(tmp_path, Path("/dev/full"))
    waiting.start()
    jobs.wait(lambda: waiting.state.isOver, waiting.tick, 30)
    assert waiting.state is State.FAILED and waiting.outcome is not None
    assert "No space left" in waiting.outcome.what and "Free some space" in waiting.outcome.hint
