"""The worker that stays: one process, one job after the other, each as if it had a process of its own.

A ``sitecustomize`` module that only these tests put on the path prints when a model is loaded, and offers methods that
are slow or noisy. What it prints must land in the log of the job that made it print.
"""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk

import packages
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.worker import main
from diffusion_anomaly.worker import protocol as job
from packages import options_for
from workers import ENGINE, EXTRA_METHODS, PATIENCE, Worker, make_job, wait_until

LOADING = """
from diffusion_anomaly.models import loading
load_model = loading.load_model

def loud_model(bundle, *arguments, **options):
    print("LOADED", bundle.name, flush=True)
    return load_model(bundle, *arguments, **options)

loading.load_model = loud_model
"""
GRID = {"size": [40, 40], "spacing": 2.0}
RELEASING = """
from diffusion_anomaly.worker.main import DetectorWorkbench
release = DetectorWorkbench.release

def loud_release(workbench):
    release(workbench)
    sys.stderr.write("RELEASED\\n")
    sys.stderr.flush()

DetectorWorkbench.release = loud_release
"""


class Server(Worker):
    """A worker that serves, whose jobs lie side by side in one folder."""

    def __init__(self, folder: Path, idle: str = "600") -> None:
        site = folder / "site"
        site.mkdir(parents=True, exist_ok=True)
        (site / "sitecustomize.py").write_text(EXTRA_METHODS + LOADING + RELEASING, encoding="utf-8")
        super().__init__(folder, site=site, arguments=["--serve", idle])

    def run(self, directory: Path) -> None:
        self.send(job.run_line(directory).encode("ascii") + b"\n")

    def run_to_its_end(self, directory: Path) -> list[job.Event]:
        """The job's own events, ``finished`` the last."""
        before = len(self.events)
        self.run(directory)
        return self.events_until_finished(before)

    def events_until_finished(self, before: int) -> list[job.Event]:
        def finished() -> bool:
            assert self.process.poll() is None, "the process has ended"
            return any(isinstance(event, job.Finished) for event in self.events[before:])

        wait_until(finished, PATIENCE)
        return self.events[before:]


def log_of(directory: Path) -> str:
    return (directory / job.LOG_FILE).read_text(encoding="utf-8")


def toy_job(directory: Path, bundle: Bundle, method: str = "", **entries: Any) -> Path:
    """A job with a scan in NIfTI, whose map is compared byte for byte."""
    make_job(directory)
    sitk.WriteImage(sitk.ReadImage(str(directory / "scan.nrrd")), str(directory / "scan.nii.gz"))
    asked = {
        **{"input": "scan.nii.gz", "output": "results", "mask": "brain.nrrd"},
        **{"method": method or bundle.method, "model": str(bundle.path)},
        "options": {"device": "cpu", "precision": "float32"},
    }
    job.write_job(job.Job(**{**asked, **entries}), directory)
    return directory


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "first": packages.unsupervised(folder / "toy-first", grid=GRID),
        "other": packages.restore(folder / "toy-other", grid=GRID),
        "none": packages.intensity(folder / "toy-none", grid=GRID),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process for most tests: that the next one can use it is part of what each asserts."""
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A process for a test that ends it."""
    started = Server(tmp_path / "server")
    yield started
    started.close()


# --- One job after the other


def test_two_jobs_end_once_each_and_find_what_two_processes_find(
    server: Server, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    asked = {"device": "cpu", "precision": "float32"}
    seeds = {"one": 1, "two": 2}
    jobs, alone = {}, {}
    for name, seed in seeds.items():
        options = {**asked, "seed": seed}
        jobs[name] = toy_job(tmp_path / name, bundles["first"], options=options)
        alone[name] = Worker(toy_job(tmp_path / f"{name} alone", bundles["first"], options=options))
    for directory in jobs.values():
        events = server.run_to_its_end(directory)
        assert [event for event in events if isinstance(event, job.Finished)] == [job.Finished(0)]
        assert isinstance(events[-2], job.Result)
        assert events[-1] == job.Finished(0)
    for name, worker in alone.items():
        assert worker.end() == job.ExitCode.DONE
        worker.close()
        assert worker.of(job.Finished) == []
        maps = [(folder / "results" / "heat.nii.gz").read_bytes() for folder in (jobs[name], worker.directory)]
        assert maps[0] == maps[1]
    assert (jobs["one"] / "results" / "heat.nii.gz").read_bytes() != (
        jobs["two"] / "results" / "heat.nii.gz"
    ).read_bytes(), "the seeds must tell the two apart"


def test_the_same_model_is_loaded_once_and_another_replaces_it(
    server: Server, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    server.send(b"release\n")
    order = ("first", "first", "other", "other", "first")
    jobs = [toy_job(tmp_path / f"{number}", bundles[name]) for number, name in enumerate(order)]
    for directory in jobs:
        assert server.run_to_its_end(directory)[-1] == job.Finished(0)
    loaded = [[line for line in log_of(directory).splitlines() if line.startswith("LOADED")] for directory in jobs]
    assert loaded == [["LOADED toy-first"], [], ["LOADED toy-other"], [], ["LOADED toy-first"]]


def test_jobs_named_before_one_has_ended_wait_for_their_turn(
    server: Server, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    jobs = [toy_job(tmp_path / name, bundles["none"]) for name in ("a", "b")]
    before = len(server.events)
    for directory in jobs:
        server.run(directory)
    wait_until(lambda: sum(isinstance(event, job.Finished) for event in server.events[before:]) == 2, PATIENCE)
    results = [event for event in server.events[before:] if isinstance(event, job.Result)]
    assert [Path(result.files["heat"]).parent for result in results] == [folder / "results" for folder in jobs]


def test_each_log_is_its_jobs_own_and_stdout_carries_events_alone(
    server: Server, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    noisy = toy_job(tmp_path / "noisy", bundles["none"], "noisy")
    quiet = toy_job(tmp_path / "quiet", bundles["none"])
    for directory in (noisy, quiet):
        assert server.run_to_its_end(directory)[-1] == job.Finished(0)
    for printed in ("printed by Python", "warned by Python"):
        assert printed in log_of(noisy)
        assert printed not in log_of(quiet)
    for directory in (noisy, quiet):
        assert log_of(directory).count("exit code 0") == 1
    assert all(line.isascii() and job.decode(line) for line in server.lines)


# --- What stops one job and not the process


def test_cancel_stops_the_running_job_alone(server: Server, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    before = len(server.events)
    slow, next_one = toy_job(tmp_path / "slow", bundles["none"], "slow"), toy_job(tmp_path / "next", bundles["none"])
    server.run(slow)
    wait_until(lambda: any(isinstance(event, job.Started) for event in server.events[before:]), PATIENCE)
    server.send(b"cancel\n")
    events = server.events_until_finished(before)
    assert events[-2:] == [
        job.Failure("cancelled", "The run was stopped: as asked."),
        job.Finished(job.ExitCode.CANCELLED),
    ]
    assert not (slow / "results").exists()
    assert server.run_to_its_end(next_one)[-1] == job.Finished(0)


def test_a_cancel_right_behind_its_job_stops_it(server: Server, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    before = len(server.events)
    slow = toy_job(tmp_path / "slow", bundles["none"], "slow")
    server.send(job.run_line(slow).encode("ascii") + b"\ncancel\n")
    assert server.events_until_finished(before)[-1] == job.Finished(job.ExitCode.CANCELLED)


def test_a_cancel_without_a_job_does_nothing(server: Server, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    before = len(server.events)
    server.send(b"dance\ncancel\n")
    server.events_until_finished(before)
    server.send(b"cancel\n")
    time.sleep(job.GRACE_SECONDS + 0.5)  # when a run that was cancelled would be ended by force
    assert server.process.poll() is None
    assert server.run_to_its_end(toy_job(tmp_path / "next", bundles["none"]))[-1] == job.Finished(0)


@pytest.mark.parametrize("bad", ["missing", "damaged", "no folder", "no scan"])
def test_a_bad_job_is_an_error_and_the_next_one_is_served(
    bad: str, server: Server, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    directory = toy_job(tmp_path / "bad", bundles["none"])
    if bad == "missing":
        (directory / job.JOB_FILE).unlink()
    elif bad == "damaged":
        (directory / job.JOB_FILE).write_text('{"schema_version": 2, "inp', encoding="utf-8")
    elif bad == "no scan":
        (directory / "scan.nii.gz").unlink()
    else:
        directory = tmp_path / "nowhere"
    *_, failure, finished = server.run_to_its_end(directory)
    assert isinstance(failure, job.Failure)
    assert failure.code == "bad_input"
    assert failure.hint
    assert finished == job.Finished(job.ExitCode.BAD_INPUT)
    assert not (directory / "results").exists()
    assert server.run_to_its_end(toy_job(tmp_path / "good", bundles["none"]))[-1] == job.Finished(0)


@pytest.mark.parametrize("line", [b"dance", b"run", b"run nowhere", b'run ""', b"run [1]", b"run\xff"])
def test_an_unknown_command_is_answered_with_an_error(line: bytes, server: Server) -> None:
    before = len(server.events)
    server.send(line + b"\n")
    failure, finished = server.events_until_finished(before)
    assert isinstance(failure, job.Failure)
    assert (failure.code, finished) == ("bad_input", job.Finished(job.ExitCode.BAD_INPUT))
    assert job.RUN_COMMAND in failure.hint


# --- How it ends


def test_the_end_of_stdin_ends_an_idle_process(own_server: Server, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    assert own_server.run_to_its_end(toy_job(tmp_path / "job", bundles["none"]))[-1] == job.Finished(0)
    own_server.hang_up()
    assert own_server.end() == 0


@pytest.mark.parametrize("how", ["end of stdin", "SIGTERM"])
def test_what_ends_the_process_cancels_its_job(
    how: str, own_server: Server, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    slow = toy_job(tmp_path / "slow", bundles["none"], "slow")
    own_server.run(slow)
    own_server.wait_for(job.Started)
    if how == "SIGTERM":
        own_server.process.send_signal(signal.SIGTERM)
    else:
        own_server.hang_up()
    assert own_server.end() == 0
    *_, failure, finished = own_server.events
    assert isinstance(failure, job.Failure)
    assert failure.code == "cancelled"
    assert finished == job.Finished(job.ExitCode.CANCELLED)
    assert not (slow / "results").exists()


def test_sigterm_ends_an_idle_process(own_server: Server, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    own_server.run_to_its_end(toy_job(tmp_path / "job", bundles["none"]))
    own_server.process.send_signal(signal.SIGTERM)
    assert own_server.end() == 0


@pytest.mark.parametrize("idle", ["soon", "-1", "nan"])
def test_an_idle_time_that_is_none_is_refused(idle: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_anomaly.worker", "--serve", idle],
        cwd=ENGINE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == job.ExitCode.BAD_INPUT
    assert b"--serve" in done.stderr


# --- What it holds


def test_idle_time_gives_the_model_back_and_the_next_job_loads_it_anew(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    server = Server(tmp_path / "server", idle="0.3")
    try:
        jobs = [toy_job(tmp_path / name, bundles["first"]) for name in ("one", "two")]
        for directory in jobs:
            assert server.run_to_its_end(directory)[-1] == job.Finished(0)
            time.sleep(3.0)
            assert "LOADED toy-first" in log_of(directory)
        server.hang_up()
        assert server.end() == 0
        assert b"RELEASED" in server.stderr
    finally:
        server.close()


def test_a_release_frees_the_model(bundles: dict[str, Bundle]) -> None:
    workbench = main.DetectorWorkbench()
    workbench.release()  # nothing is held yet
    model = weakref.ref(workbench.detector(options_for(bundles["first"])).model)
    gc.collect()
    assert model() is not None
    workbench.release()
    gc.collect()
    assert model() is None


def test_another_model_frees_the_one_before(bundles: dict[str, Bundle]) -> None:
    workbench = main.DetectorWorkbench()
    first = weakref.ref(workbench.detector(options_for(bundles["first"])).model)
    second = workbench.detector(options_for(bundles["other"]))
    gc.collect()
    assert first() is None
    assert second.model is not None


def test_options_that_are_refused_leave_what_is_held(bundles: dict[str, Bundle]) -> None:
    workbench = main.DetectorWorkbench()
    model = workbench.detector(options_for(bundles["first"])).model
    with pytest.raises(InputError):
        workbench.detector(options_for(bundles["first"], steps=0))
    assert workbench.detector(options_for(bundles["first"])).model is model
