"""A job as the panel meets it: the real worker process with a small model, and every way in which it can go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import jobs
import packages
from diffusion_anomaly.worker.protocol import Progress
from DiffusionAnomalyLib.process.jobqueue import Entry, JobQueue
from DiffusionAnomalyLib.process.process import PipeProcess, descendants
from DiffusionAnomalyLib.process.workerjob import DetectionJob, Outcome, State
from DiffusionAnomalyLib.process.workspace import PREFIX, Workspace, removeStale

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and process trees are read as Unix has them")

# Longer than any file name may be on its own, with blanks, umlauts, ideographs and an emoji.
AWKWARD = Path("Kopf äöü 头部扫描 🧠 " + "lang " * 20, "und noch tiefer " * 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.guided(tmp_path_factory.mktemp("models") / "tiny", options={"steps": 2, "level": 500}).path


def script(text: str) -> list[str]:
    """A command that runs this Python; the job's folder is its first argument."""
    return [sys.executable, "-c", textwrap.dedent(text)]


def runsOn(text: str) -> list[str]:
    """A command that does something first and then becomes the real worker."""
    return script(text + "\nimport runpy\nrunpy.run_module('diffusion_anomaly.worker', run_name='__main__')")


def pidOf(job: DetectionJob) -> int:
    process = job._process
    assert isinstance(process, PipeProcess)
    return process.pid


def test_a_job_reports_in_order_and_leaves_whole_results(tmp_path: Path, model: Path) -> None:
    job = jobs.makeJob(tmp_path / AWKWARD, model, jobs.SHORT)
    assert len(str(job.workspace.folder)) > 200
    seen: list[Progress] = []
    job.onChanged = lambda: seen.append(job.progress) if job.progress else None
    outcomes: list[Outcome] = []
    job.onFinished = outcomes.append

    jobs.finish(job)

    assert [outcome.state for outcome in outcomes] == [State.DONE], job.log
    order = ["read", "brain", "load", "detect", "findings", "write"]
    places = [order.index(progress.stage) for progress in seen]
    # A stage that is over within one delivery of the worker's words is not seen by itself.
    assert places == sorted(places) and {order.index("detect"), order.index("write")} <= set(places)
    detect = [progress.done for progress in seen if progress.stage == "detect"]
    assert detect == sorted(detect)
    assert job.started is not None and job.started.model == "tiny" and job.started.slices > 0
    assert set(outcomes[0].files) == {
        "heat",
        "mask",
        "brain",
        "findings_csv",
        "findings_json",
        "report",
        "provenance",
    }
    assert jobs.array(outcomes[0].files["heat"]).shape == jobs.scan().GetSize()[::-1]


@pytest.mark.parametrize("moment", ["at once", "when the model is loading", "in the middle"])
def test_cancel_ends_the_worker_and_leaves_no_result(tmp_path: Path, model: Path, moment: str) -> None:
    job = jobs.makeJob(tmp_path, model, jobs.LONG)
    job.start()
    pid = pidOf(job)
    if moment == "when the model is loading":
        jobs.wait(lambda: job.progress is not None, job.tick)
    elif moment == "in the middle":
        jobs.wait(
            lambda: job.progress is not None and job.progress.stage == "detect" and job.progress.done > 0, job.tick
        )

    job.cancel()

    assert job.state is State.CANCELLING
    jobs.finish(job, seconds=30)
    assert job.state is State.CANCELLED
    assert not jobs.isAlive(pid)
    assert not list(job.workspace.folder.glob("results/*"))


def test_a_worker_that_honours_no_request_is_ended_by_force(tmp_path: Path, model: Path) -> None:
    job = jobs.makeJob(tmp_path, model, jobs.LONG, killSeconds=0.5)
    job.start()
    jobs.wait(lambda: job.progress is not None, job.tick)
    os.kill(pidOf(job), signal.SIGSTOP)

    job.cancel()

    jobs.finish(job, seconds=10)
    assert job.state is State.CANCELLED
    assert not jobs.isAlive(pidOf(job))


def test_a_worker_that_stops_answering_is_a_failure_with_advice(tmp_path: Path, model: Path) -> None:
    job = jobs.makeJob(tmp_path, model, jobs.LONG, silenceSeconds=60.0)
    job.start()
    jobs.wait(lambda: job.started is not None, job.tick)
    os.kill(pidOf(job), signal.SIGSTOP)
    job._silenceSeconds = 0.5

    jobs.finish(job, seconds=10)

    assert job.outcome is not None and job.state is State.FAILED
    assert "said nothing" in job.outcome.what and "CPU" in job.outcome.hint
    assert not jobs.isAlive(pidOf(job))


def test_a_worker_killed_from_outside_is_a_failure_that_names_memory(tmp_path: Path, model: Path) -> None:
    job = jobs.makeJob(tmp_path, model, jobs.LONG)
    job.start()
    jobs.wait(lambda: job.started is not None, job.tick)

    os.kill(pidOf(job), signal.SIGKILL)

    jobs.finish(job, seconds=10)
    assert job.outcome is not None and job.state is State.FAILED
    assert "crashed" in job.outcome.what and "Memory" in job.outcome.hint


def test_killing_a_launcher_ends_the_worker_behind_it(tmp_path: Path, model: Path) -> None:
    launcher = script(
        """
        import subprocess, sys
        sys.exit(subprocess.run([sys.executable, "-m", "diffusion_anomaly.worker", *sys.argv[1:]]).returncode)
        """
    )
    job = jobs.makeJob(tmp_path, model, jobs.LONG, launcher, killSeconds=0.5)
    job.start()
    jobs.wait(lambda: job.progress is not None, job.tick)
    workers = descendants(pidOf(job))
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGSTOP)

    job.cancel()

    jobs.finish(job, seconds=10)
    assert not jobs.isAlive(workers[0])


def test_rubbish_among_the_events_lands_in_the_log_and_does_no_harm(tmp_path: Path) -> None:
    command = runsOn(
        r"""
import os
os.write(1, b"\xff\xfe\x00 not text\n{\"event\": \"result\"}\n[1, 2\nnull\n")
os.write(1, b"{\"event\": \"progress\", \"done\": \"many\"}\n")
os.write(2, b"caf\xe9 \x80\n")
"""
    )
    job = jobs.makeJob(tmp_path, command=command)

    jobs.finish(job)

    assert job.state is State.DONE, job.log
    log = "\n".join(job.log)
    assert r"\xff\xfe" in log and r"caf\xe9 \x80" in log and '"done": "many"' in log


def test_rubbish_alone_is_a_failure(tmp_path: Path) -> None:
    job = jobs.makeJob(tmp_path, command=script("import os\nfor _ in range(40): os.write(1, bytes(range(256)) * 400)"))
    jobs.finish(job, seconds=30)
    assert job.outcome is not None and job.state is State.FAILED
    assert "exit code 0" in job.outcome.what
    assert all(len(line) <= 4 * 1_000_000 for line in job.log)


def test_a_result_that_names_missing_files_is_a_failure(tmp_path: Path) -> None:
    liar = """
    files = '{"heat": "/no/heat.nrrd", "provenance": "/no/p.json"}'
    print('{"event": "result", "statistics": {}, "timings": {}, "files": ' + files + "}")
    """
    job = jobs.makeJob(tmp_path, command=script(liar))
    jobs.finish(job, seconds=30)
    assert job.outcome is not None and job.state is State.FAILED
    assert "/no/heat.nrrd" in job.outcome.what


@pytest.mark.parametrize(
    ("limit", "file", "where"),
    [(10_000, "heat.nrrd", "hint"), (64_000, "results", "what")],
    ids=["the anomaly score does not fit", "the report's pictures do not fit"],
)
def test_a_full_disk_is_named_and_leaves_no_half_result(tmp_path: Path, limit: int, file: str, where: str) -> None:
    command = runsOn(f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    job = jobs.makeJob(tmp_path, command=command)
    jobs.finish(job)
    assert job.outcome is not None and job.state is State.FAILED
    assert file in job.outcome.what and "space" in getattr(job.outcome, where), job.outcome
    assert not list(job.workspace.folder.glob("results/*"))


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(free=1000))
    workspace = Workspace(tmp_path)
    with pytest.raises(Exception, match="MB free"):
        workspace.beginScan(np.zeros((2, 3, 4)), np.eye(3), np.zeros(3), lambda: 0)
    with pytest.raises(Exception, match="MB free"):
        workspace.writeMask(jobs.brain())
    assert not list(workspace.folder.iterdir())


def test_a_folder_is_known_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace("relative").folder.parent == tmp_path / "relative"


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_program_that_is_not_there_is_a_failure_not_an_exception(tmp_path: Path) -> None:
    job = jobs.makeJob(tmp_path, command=[str(tmp_path / "PythonSlicer")])
    job.start()
    assert job.outcome is not None and job.state is State.FAILED
    assert "PythonSlicer" in job.outcome.hint


def test_the_workers_own_words_reach_the_user(tmp_path: Path) -> None:
    job = jobs.makeJob(tmp_path, method="guided", options={"no_such_option": 1})
    jobs.finish(job)
    assert job.outcome is not None and job.state is State.FAILED
    assert "no_such_option" in job.outcome.what


@pytest.mark.parametrize(
    ("error", "advice"),
    [("ModuleNotFoundError: no torch", "Install the Python packages"), ("ValueError: odd", "Copy log")],
)
def test_an_unforeseen_failure_leaves_its_log_when_its_folder_is_gone(tmp_path: Path, error: str, advice: str) -> None:
    program = f"""
import sys
from pathlib import Path
from diffusion_anomaly.worker.protocol import Failure, encode
Path(sys.argv[-1], "worker.log").write_text("Traceback of it all")
print(encode(Failure("internal", "{error}", "Please report it, with a file that is gone soon.")), flush=True)
sys.exit(1)
"""
    job = jobs.makeJob(tmp_path, command=script(program))
    jobs.finish(job)
    job.workspace.remove()
    assert job.outcome is not None and job.outcome.what == error
    assert advice in job.outcome.hint and "file" not in job.outcome.hint
    assert "Traceback of it all" in job.log


def test_the_worker_ends_when_its_parent_is_killed(tmp_path: Path, model: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(model)],
        env={**jobs.environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        worker = int(parent.stdout.readline())
        assert jobs.isAlive(worker)
        (folder,) = tmp_path.glob(f"{PREFIX}*")
        parent.kill()
        killed = time.monotonic()
        # Its last line of log and not its pid: a busy machine takes long to tear down a process that has ended.
        jobs.wait(lambda: "exit code 5" in (folder / "worker.log").read_text("utf-8"), lambda: None, seconds=30)
        assert time.monotonic() - killed < 5
        jobs.wait(lambda: not jobs.isAlive(worker), lambda: None)


PARENT = """
import sys, time
from pathlib import Path
import jobs
job = jobs.makeJob(Path(sys.argv[1]), Path(sys.argv[2]), jobs.LONG)
job.start()
jobs.wait(lambda: job.started is not None, job.tick)
print(job._process.pid, flush=True)
while True:
    job.tick()
    time.sleep(0.05)
"""


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    queue = JobQueue()
    yield queue
    queue.killAll()


def quick(parent: Path, seconds: float = 0.0) -> DetectionJob:
    """A job that fails after a while, without loading anything."""
    return jobs.makeJob(parent, command=script(f"import time; time.sleep({seconds})"))


@pytest.mark.timeout(600)
def test_two_jobs_run_one_after_the_other_and_leave_no_files(tmp_path: Path, model: Path, queue: JobQueue) -> None:
    found: list[tuple[str, State, bool]] = []
    queue.onFinished = lambda entry, outcome: found.append(
        (entry.title, outcome.state, outcome.files["heat"].is_file())
    )
    running: list[int] = []
    queue.onChanged = lambda: running.append(
        sum(entry.state in (State.RUNNING, State.CANCELLING) for entry in queue.entries)
    )
    queue.add(Entry("first", jobs.makeJob(tmp_path, model, jobs.SHORT)))
    queue.add(Entry("second", jobs.makeJob(tmp_path)))
    assert [entry.state for entry in queue.entries] == [State.RUNNING, State.WAITING]

    jobs.drain(queue, 2 * jobs.PATIENCE)

    assert found == [("first", State.DONE, True), ("second", State.DONE, True)]
    assert max(running) == 1
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_cancelling_one_lets_the_next_one_run(tmp_path: Path, queue: JobQueue) -> None:
    for seconds in (60, 60, 0):
        queue.add(Entry(str(seconds), quick(tmp_path, seconds)))
    first, second, third = queue.entries
    second.job.cancel()
    first.job._killSeconds = 0.1
    queue.cancel(first)
    jobs.drain(queue, seconds=30)
    assert [entry.state for entry in (first, second, third)] == [State.CANCELLED, State.CANCELLED, State.FAILED]
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_cancel_all_starts_none_of_those_that_wait(tmp_path: Path, queue: JobQueue) -> None:
    for _ in range(3):
        queue.add(Entry("scan", quick(tmp_path, 60)))
    queue.entries[0].job._killSeconds = 0.1
    queue.cancelAll()
    jobs.drain(queue, seconds=30)
    assert {entry.state for entry in queue.entries} == {State.CANCELLED}
    assert all(entry.job.progress is None for entry in queue.entries)
    queue.clearFinished()
    assert queue.entries == []


def test_results_that_cannot_be_loaded_fail_their_entry_alone(tmp_path: Path, queue: JobQueue) -> None:
    def refuse(entry: Entry, outcome: Outcome) -> None:
        raise RuntimeError("the volume is gone")

    queue.onFinished = refuse
    for _ in range(2):
        queue.add(Entry("scan", quick(tmp_path)))
    jobs.drain(queue, seconds=30)
    assert [entry.state for entry in queue.entries] == [State.FAILED, State.FAILED]
    assert all("the volume is gone" in entry.message for entry in queue.entries)


def test_ending_everything_leaves_no_process_and_no_files(tmp_path: Path) -> None:
    queue = JobQueue()
    for _ in range(2):
        queue.add(Entry("scan", quick(tmp_path, 60)))
    pid = pidOf(queue.entries[0].job)
    queue.killAll()
    jobs.wait(lambda: not jobs.isAlive(pid), lambda: None, seconds=10)
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_working_files_stay_when_they_are_to_be_kept(tmp_path: Path, queue: JobQueue) -> None:
    kept, dropped = (quick(tmp_path) for _ in range(2))
    kept.workspace.keep()
    for job in (kept, dropped):
        queue.add(Entry("scan", job))
    jobs.drain(queue, seconds=30)
    assert [job.workspace.folder.exists() for job in (kept, dropped)] == [True, False]


def test_what_is_to_be_kept_survives_the_end_of_slicer(tmp_path: Path) -> None:
    queue = JobQueue()
    for _ in range(2):
        queue.add(Entry("scan", quick(tmp_path, 60)))
    kept = queue.entries[0].job.workspace
    kept.keep()
    queue.killAll()
    assert list(tmp_path.glob(f"{PREFIX}*")) == [kept.folder] and (kept.folder / "scan.nrrd").is_file()


def test_what_a_crashed_slicer_left_is_deleted_but_nothing_newer_and_nothing_kept(tmp_path: Path) -> None:
    old, new, kept = (Workspace(tmp_path) for _ in range(3))
    kept.keep()
    long_ago = time.time() - 400 * 24 * 3600
    for workspace in (old, kept):
        os.utime(workspace.folder, (long_ago, long_ago))
    removeStale(tmp_path)
    assert [workspace.folder.exists() for workspace in (old, new, kept)] == [False, True, True]
