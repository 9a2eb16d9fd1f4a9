"""One process for several jobs: it stays between them, and whatever ends it costs at most the job that had it."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jobs
import packages
from diffusion_anomaly.worker.protocol import Finished, encode
from DiffusionAnomalyLib.detection import Detection
from DiffusionAnomalyLib.process.jobqueue import Entry, JobQueue
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.process.warmworker import WarmWorker
from DiffusionAnomalyLib.process.workerjob import DetectionJob, State
from DiffusionAnomalyLib.settings import MemorySettings

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals and process trees are read as Unix has them"),
    pytest.mark.timeout(3 * jobs.PATIENCE),  # a test has up to three real jobs, each of which may take so long
]

# Says what it hears, as far as the protocol has words for it, and notes every line beside the job's folder.
PARROT = """
import json, os, sys, time
from pathlib import Path
from diffusion_anomaly.worker.protocol import Failure, Finished, encode
for line in sys.stdin:
    if line.startswith("run "):
        job = Path(json.loads(line[4:]))
    with open(job.parent / "heard", "a") as heard:
        print(os.getpid(), line.strip(), file=heard)
    if line.startswith("run "):
        print(f"at work on {job.name}", file=sys.stderr, flush=True)
        print(encode(Failure("model", f"says {job.name}")), flush=True)
        print(encode(Finished(3)), flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.guided(tmp_path_factory.mktemp("models") / "tiny", options={"steps": 2, "level": 500}).path


@pytest.fixture
def worker() -> Iterator[WarmWorker]:
    worker = WarmWorker(PipeProcess)
    yield worker
    worker.shutdown(0.0)


def pidOf(worker: WarmWorker) -> int:
    process = worker._process
    assert isinstance(process, PipeProcess)
    return process.pid


def pidsIn(log: str) -> list[int]:
    """The processes that have written to a worker's log."""
    return [int(number) for number in re.findall(r", process (\d+)$", log, re.MULTILINE)]


def parrot(tmp_path: Path, worker: WarmWorker) -> DetectionJob:
    """A job for a worker that needs no torch; it fails with its folder's name."""
    return jobs.makeJob(tmp_path, command=[sys.executable, "-c", textwrap.dedent(PARROT)], process=worker.turn())


def untilDetecting(job: DetectionJob) -> None:
    """Run a job until its first slices are done."""
    job.start()

    def hasBegun() -> bool:
        assert not job.state.isOver, (job.outcome, list(job.log)[-5:])
        return job.progress is not None and job.progress.stage == "detect" and job.progress.done > 0

    jobs.wait(hasBegun, job.tick)


def isDone(job: DetectionJob) -> bool:
    """Run a job; whether it has results."""
    jobs.finish(job)
    return job.state is State.DONE


def test_two_jobs_of_a_queue_run_in_one_process(tmp_path: Path, model: Path, worker: WarmWorker) -> None:
    ended: list[tuple[State, list[int], Path]] = []
    queue = JobQueue()
    queue.onFinished = lambda entry, outcome: ended.append(
        (outcome.state, pidsIn(entry.job.workspace.readLog()), outcome.files["heat"])
    )
    for title in ("first", "second"):
        queue.add(Entry(title, jobs.makeJob(tmp_path, model, jobs.SHORT, process=worker.turn())))

    jobs.drain(queue, 2 * jobs.PATIENCE)

    assert [state for state, _, _ in ended] == [State.DONE, State.DONE]
    assert [pids for _, pids, _ in ended] == 2 * [[pidOf(worker)]]
    assert ended[0][2].parent != ended[1][2].parent


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")
def test_the_folder_of_a_job_may_go_while_the_process_is_idle(tmp_path: Path, worker: WarmWorker) -> None:
    first, second = (jobs.makeJob(tmp_path, process=worker.turn()) for _ in range(2))
    assert isDone(first), first.log
    pid = pidOf(worker)
    assert Path(f"/proc/{pid}/cwd").resolve() == jobs.MODULE_FOLDER
    opened = {os.path.realpath(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    assert not [file for file in opened if file.startswith(str(tmp_path))]

    first.workspace.remove()

    assert isDone(second), second.log
    assert pidsIn(second.workspace.readLog()) == [pid]


def test_a_job_that_is_cancelled_leaves_the_process_to_the_next(
    tmp_path: Path, model: Path, worker: WarmWorker
) -> None:
    first = jobs.makeJob(tmp_path, model, jobs.LONG, process=worker.turn(), killSeconds=60.0)
    second = jobs.makeJob(tmp_path, process=worker.turn())
    untilDetecting(first)

    first.cancel()

    jobs.finish(first, seconds=30)
    assert first.state is State.CANCELLED and not list(first.workspace.folder.glob("results/*"))
    pid = pidOf(worker)
    assert isDone(second), second.log
    assert pidsIn(first.workspace.readLog()) == pidsIn(second.workspace.readLog()) == [pid]


def test_a_cancel_that_is_not_honoured_ends_the_process_and_the_next_job_gets_another(
    tmp_path: Path, model: Path, worker: WarmWorker
) -> None:
    first = jobs.makeJob(tmp_path, model, jobs.LONG, process=worker.turn(), killSeconds=0.5)
    second = jobs.makeJob(tmp_path, process=worker.turn())
    untilDetecting(first)
    pid = pidOf(worker)
    os.kill(pid, signal.SIGSTOP)

    first.cancel()

    jobs.finish(first, seconds=10)
    assert first.state is State.CANCELLED and not jobs.isAlive(pid)
    assert isDone(second), second.log
    assert pidsIn(second.workspace.readLog()) == [pidOf(worker)] != [pid]


def test_a_crash_fails_the_job_that_had_the_process_alone(tmp_path: Path, model: Path, worker: WarmWorker) -> None:
    before, during, after = (
        jobs.makeJob(tmp_path, package, options, process=worker.turn())
        for package, options in ((None, None), (model, jobs.LONG), (None, None))
    )
    assert isDone(before), before.log
    untilDetecting(during)
    pid = pidOf(worker)

    os.kill(pid, signal.SIGKILL)

    jobs.finish(during, seconds=10)
    assert during.outcome is not None and during.state is State.FAILED
    assert "crashed" in during.outcome.what and "Memory" in during.outcome.hint
    assert pidsIn(during.workspace.readLog()) == [pid]
    assert isDone(after), after.log
    assert pidsIn(after.workspace.readLog()) == [pidOf(worker)] != [pid]


def test_a_process_that_has_ended_while_idle_costs_no_job(tmp_path: Path, worker: WarmWorker) -> None:
    first, second = (parrot(tmp_path, worker) for _ in range(2))
    jobs.finish(first)
    pid = pidOf(worker)
    os.kill(pid, signal.SIGKILL)
    jobs.wait(lambda: not jobs.isAlive(pid), lambda: None)
    jobs.finish(second)
    assert second.outcome is not None and second.outcome.what == f"says {second.workspace.folder.name}"
    assert pidOf(worker) != pid


def test_a_process_that_ends_at_every_job_is_tried_once_more_and_no_more(tmp_path: Path, worker: WarmWorker) -> None:
    count = tmp_path / "count"
    dies = f"""
    import os, sys
    from diffusion_anomaly.worker.protocol import Finished, encode
    with open({str(count)!r}, "a") as file: file.write("started ")
    if sys.stdin.readline() and os.path.getsize({str(count)!r}) == 8:
        print(encode(Finished(1)), flush=True)
        sys.stdin.readline()
    os._exit(1)
    """
    first, second = (
        jobs.makeJob(tmp_path, command=[sys.executable, "-c", textwrap.dedent(dies)], process=worker.turn())
        for _ in range(2)
    )
    for job in (first, second):
        jobs.finish(job, seconds=30)
        assert job.state is State.FAILED and job.outcome is not None and "exit code 1" in job.outcome.what
    assert count.read_text(encoding="utf-8").split() == 2 * ["started"]


def test_nothing_of_one_job_reaches_the_log_of_another(tmp_path: Path, worker: WarmWorker) -> None:
    several = [parrot(tmp_path, worker) for _ in range(4)]
    for job in several:
        jobs.finish(job)
    for job in several:
        name = job.workspace.folder.name
        assert [line for line in job.log if "at work" in line] == [f"at work on {name}"]
        assert job.outcome is not None and job.outcome.what == f"says {name}"


class Rehearsed:
    """A process that says one thing a poll, on the pipe that is named with it."""

    def __init__(self, words: list[tuple[str, bytes]]) -> None:
        self.onOutput: Callable[[bytes], None] = lambda data: None
        self.onErrorOutput: Callable[[bytes], None] = lambda data: None
        self.onFinished: Callable[[int | None], None] = lambda code: None
        self._words = words

    def start(self, command: object, environment: object, folder: Path) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def kill(self) -> None:
        self.onFinished(None)

    def end(self, seconds: float) -> None:
        self.onFinished(0)

    def isRunning(self) -> bool:
        return True

    def poll(self) -> None:
        if self._words:
            pipe, data = self._words.pop(0)
            getattr(self, pipe)(data)


def test_what_the_other_pipe_brings_late_still_belongs_to_the_job(tmp_path: Path) -> None:
    finished = encode(Finished(1)).encode("ascii")
    words = [
        ("onOutput", finished[:7]),  # a pipe cuts anywhere
        ("onOutput", finished[7:] + b"\n"),
        ("onErrorOutput", b"the last of it\n"),
        ("onErrorOutput", b"between two jobs\n"),
    ]
    worker = WarmWorker(lambda: Rehearsed(words))
    first, second = (jobs.makeJob(tmp_path, process=worker.turn()) for _ in range(2))
    jobs.finish(first, seconds=5)
    assert first.log[0] == "the last of it" and not [line for line in first.log if "finished" in line]
    worker._process.poll()  # type: ignore[union-attr]
    second.start()
    second.tick()
    assert list(second.log) == []


def test_a_job_that_was_over_when_it_was_cancelled_does_not_cancel_the_next(tmp_path: Path, worker: WarmWorker) -> None:
    first, second = (jobs.makeJob(tmp_path, process=worker.turn(), killSeconds=60.0) for _ in range(2))
    first.start()
    jobs.wait(lambda: "exit code 0" in first.workspace.readLog(), lambda: None)
    first.cancel()
    jobs.finish(first, seconds=30)
    assert first.state is State.CANCELLED
    assert isDone(second), second.log


def test_memory_is_given_back_on_request(tmp_path: Path, worker: WarmWorker) -> None:
    worker.release()  # there is no process yet: nothing happens
    job = parrot(tmp_path, worker)
    jobs.finish(job)
    worker.release()
    heard = tmp_path / "heard"
    jobs.wait(lambda: heard.read_text("utf-8").count("\n") == 2, lambda: None, seconds=10)
    pid = pidOf(worker)
    assert heard.read_text("utf-8").splitlines() == [
        f"{pid} run {json.dumps(str(job.workspace.folder))}",
        f"{pid} release",
    ]


def _otherVariables(worker: WarmWorker, job: DetectionJob) -> None:
    job._environment = {**job._environment, "OTHER": "1"}


def _otherPackages(worker: WarmWorker, job: DetectionJob) -> None:
    worker.renew()
    assert not worker.isRunning


@pytest.mark.parametrize("change", [_otherVariables, _otherPackages])
def test_another_environment_means_another_process(
    tmp_path: Path, worker: WarmWorker, change: Callable[[WarmWorker, DetectionJob], None]
) -> None:
    first, second = (parrot(tmp_path, worker) for _ in range(2))
    jobs.finish(first)
    pid = pidOf(worker)
    change(worker, second)
    jobs.finish(second)
    assert second.outcome is not None and "says" in second.outcome.what
    assert pidOf(worker) != pid and not jobs.isAlive(pid)


def test_packages_that_change_during_a_job_end_the_process_after_it(tmp_path: Path, worker: WarmWorker) -> None:
    job = jobs.makeJob(tmp_path, process=worker.turn())
    job.start()
    pid = pidOf(worker)
    worker.renew()
    assert jobs.isAlive(pid)
    assert isDone(job), job.log
    assert not worker.isRunning and not jobs.isAlive(pid)


def test_the_end_leaves_no_process_behind(tmp_path: Path, model: Path, worker: WarmWorker) -> None:
    idle = jobs.makeJob(tmp_path, process=worker.turn())
    assert isDone(idle), idle.log
    pid, process = pidOf(worker), worker._process
    worker.shutdown(60.0)
    assert isinstance(process, PipeProcess) and process._process is not None
    assert process._process.returncode == 0  # by itself, because its input ended
    assert not jobs.isAlive(pid) and not worker.isRunning

    running = jobs.makeJob(tmp_path, model, jobs.LONG, process=worker.turn())
    untilDetecting(running)
    pid = pidOf(worker)
    worker.shutdown()
    assert running.state is State.FAILED
    assert not jobs.isAlive(pid) and not worker.isRunning


def test_the_end_comes_by_force_when_the_process_does_not_listen(tmp_path: Path, worker: WarmWorker) -> None:
    jobs.finish(parrot(tmp_path, worker))
    pid = pidOf(worker)
    os.kill(pid, signal.SIGSTOP)
    worker.shutdown(0.2)
    assert not jobs.isAlive(pid)


PARENT = """
import sys, time
from pathlib import Path
import jobs
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.process.warmworker import WarmWorker
worker = WarmWorker(PipeProcess)
jobs.finish(jobs.makeJob(Path(sys.argv[1]), process=worker.turn()))
if sys.argv[2:]:
    job = jobs.makeJob(Path(sys.argv[1]), Path(sys.argv[2]), jobs.LONG, process=worker.turn())
    job.start()
    jobs.wait(lambda: job.started is not None, job.tick)
print(worker._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("atWork", [False, True], ids=["idle", "at work"])
def test_the_process_ends_when_its_parent_is_killed(tmp_path: Path, model: Path, atWork: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), *([str(model)] if atWork else [])],
        env={**jobs.environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        assert jobs.isAlive(pid)
        parent.kill()
        jobs.wait(lambda: not jobs.isAlive(pid), lambda: None, seconds=30)


def test_a_detection_that_is_forgotten_leaves_no_process_behind(tmp_path: Path) -> None:
    detection = Detection(None, tmp_path, settings=MemorySettings())
    jobs.finish(parrot(tmp_path, detection._worker))
    pid = pidOf(detection._worker)
    assert jobs.isAlive(pid)
    del detection
    gc.collect()
    assert not jobs.isAlive(pid)


def test_a_detection_that_is_closed_leaves_no_process_behind(tmp_path: Path) -> None:
    detection = Detection(None, tmp_path, settings=MemorySettings())
    jobs.finish(parrot(tmp_path, detection._worker))
    pid = pidOf(detection._worker)
    detection.close()
    assert not jobs.isAlive(pid)
