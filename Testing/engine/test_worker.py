"""The worker as Slicer meets it: a real process, its pipes, its exit code and the files it leaves.

Slow and noisy methods come from a ``sitecustomize`` module that only these tests put on the path: the worker
has no switch for tests. Torch takes seconds to load, so the processes that need it are started together and
wait for their test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk

from diffusion_anomaly.errors import Cancelled
from diffusion_anomaly.worker import channel
from diffusion_anomaly.worker import protocol as job
from workers import ENGINE, EXTRA_METHODS, Worker, make_job, wait_until

# Longer than any file name may be on its own, with blanks, umlauts, ideographs and an emoji.
AWKWARD = Path("Kopf äöü 头部扫描 🧠 " + "lang " * 20, "und noch tiefer " * 8)
RESULTS = {"heat.nrrd", "mask.nrrd", "brain.nrrd", "findings.csv", "findings.json", "report.html", "provenance.json"}


def small_files() -> None:
    """A disk that takes files of at most 64 kB: the report's pictures no longer fit, and the writer is told so."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """The processes that load torch, started at once."""
    folder = tmp_path_factory.mktemp("workers")
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(EXTRA_METHODS, encoding="utf-8")
    started = {
        "noisy": Worker(make_job(folder / AWKWARD, "noisy"), site=site),
        "full disk": Worker(make_job(folder / "full"), limit=small_files),
        "cancelled": Worker(make_job(folder / "cancelled", "slow"), site=site),
        "left alone": Worker(make_job(folder / "left", "stuck"), site=site),
        "unheard": Worker(make_job(folder / "unheard", "slow"), site=site, deaf=True),
        "killed": Worker(make_job(folder / "killed", "slow"), site=site),
    }
    yield started
    for worker in started.values():
        worker.close()


def test_a_job_in_an_awkward_folder_ends_with_all_results(workers: dict[str, Worker]) -> None:
    worker = workers["noisy"]
    assert worker.end() == job.ExitCode.DONE
    (result,) = worker.of(job.Result)
    assert worker.events[-1] == result
    assert {Path(path).name for path in result.files.values()} == RESULTS
    assert {path.name for path in worker.output.iterdir()} == RESULTS
    # Two slices of a 6 x 6 lesion, of which a 5 x 5 median filter takes three pixels at each corner; 0.72 ml
    # a voxel.
    assert result.statistics["volume_ml"] == pytest.approx(2 * (36 - 12) * 0.72)
    assert len(result.statistics["findings"]) == 1
    anomaly_map, scan = (sitk.ReadImage(str(p)) for p in (worker.output / "heat.nrrd", worker.directory / "scan.nrrd"))
    for grid in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(anomaly_map, grid)() == getattr(scan, grid)()


def test_events_come_in_order_and_say_what_runs(workers: dict[str, Worker]) -> None:
    worker = workers["noisy"]
    worker.end()
    (started,) = worker.of(job.Started)
    assert (started.model, started.version, started.slices) == ("toy-intensity", "0.1.0", 4)
    stages = list(dict.fromkeys(event.stage for event in worker.of(job.Progress)))
    assert [stage for stage in stages if stage in ("read", "detect", "write")] == ["read", "detect", "write"]
    last = worker.of(job.Progress)[-1]
    assert (last.stage, last.done) == ("write", last.total)
    elapsed = [event.seconds_elapsed for event in worker.of(job.Progress)]
    assert elapsed == sorted(elapsed)


def test_stdout_carries_event_lines_alone_and_the_log_the_rest(workers: dict[str, Worker]) -> None:
    worker = workers["noisy"]
    worker.end()
    assert all(line.isascii() and job.decode(line) for line in worker.lines)
    for printed in ("printed by Python", "printed by C", "warned by Python"):
        assert printed in worker.log


def test_the_line_cancel_stops_it_with_nothing_written(workers: dict[str, Worker]) -> None:
    worker = workers["cancelled"]
    worker.wait_for(job.Started)
    worker.send(b"something else\nca")
    worker.send(b"ncel\r\n")
    assert worker.end() == job.ExitCode.CANCELLED
    # A run that is ended by force has no time for a last word.
    assert worker.events[-1] == job.Failure("cancelled", "The run was stopped: as asked.")
    assert not worker.output.exists()


def test_progress_comes_a_few_times_a_second(workers: dict[str, Worker]) -> None:
    worker = workers["cancelled"]
    worker.end()
    times = [event.seconds_elapsed for event in worker.of(job.Progress) if event.stage == "detect" and event.done]
    assert (np.diff(times) >= channel.SECONDS_BETWEEN_REPORTS - 0.001).all()


def test_a_long_call_is_ended_three_seconds_after_slicer_is_gone(workers: dict[str, Worker]) -> None:
    worker = workers["left alone"]
    worker.wait_for(job.Started)
    worker.hang_up()
    left = time.monotonic()
    assert worker.end() == job.ExitCode.CANCELLED
    assert time.monotonic() - left >= job.GRACE_SECONDS - 0.1
    assert worker.of(job.Failure) == []
    assert not worker.output.exists()


def test_a_closed_stdout_ends_it_without_a_complaint(workers: dict[str, Worker]) -> None:
    worker = workers["unheard"]
    assert worker.end() == job.ExitCode.CANCELLED
    assert worker.of(job.Started)
    assert b"Traceback" not in worker.stderr
    assert "nobody reads its output" in worker.log
    assert not worker.output.exists()


def test_a_kill_leaves_no_result_and_no_process(workers: dict[str, Worker]) -> None:
    worker = workers["killed"]
    worker.wait_for(job.Started)
    family = [
        psutil.Process(worker.process.pid),
        *psutil.Process(worker.process.pid).children(recursive=True),
    ]
    worker.process.kill()
    assert worker.end() != job.ExitCode.DONE
    assert [member for member in family if member.is_running()] == []
    below = [
        path for path in worker.directory.rglob("*") if path.parent != worker.directory
    ]  # beside them is the input
    assert not [path for path in below if path.name in RESULTS]


def test_a_full_disk_leaves_nothing_and_says_so(workers: dict[str, Worker]) -> None:
    worker = workers["full disk"]
    assert worker.end() == job.ExitCode.BAD_INPUT
    (failure,) = worker.of(job.Failure)
    assert failure.code == "bad_input"
    assert "results" in failure.what
    assert failure.hint
    assert not worker.output.exists()


def ended(directory: Path) -> Worker:
    """A worker that has come to its end by itself."""
    worker = Worker(directory)
    try:
        worker.end()
    finally:
        worker.close()
    return worker


def spoil_job(directory: Path) -> None:
    (directory / job.JOB_FILE).write_text('{"schema_version": 1, "inp', encoding="utf-8")


def remove_scan(directory: Path) -> None:
    (directory / "scan.nrrd").unlink()


def put_a_file_in_place_of_the_folder(directory: Path) -> None:
    (directory / "results").write_text("in the way", encoding="utf-8")


def turn_the_mask(directory: Path) -> None:
    path = str(directory / "brain.nrrd")
    mask = sitk.ReadImage(path)
    mask.SetSpacing((3.0, 2.0, 5.0))
    sitk.WriteImage(mask, path)


def ask_for_no_option_that_exists(directory: Path) -> None:
    job.write_job(job.Job("scan.nrrd", "results", "intensity", options={"stepz": 3}), directory)


def ask_for_text_as_seed(directory: Path) -> None:
    job.write_job(job.Job("scan.nrrd", "results", "intensity", options={"seed": "3"}), directory)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_job, "is not JSON"),
        (remove_scan, "scan.nrrd"),
        (put_a_file_in_place_of_the_folder, "results"),  # root may write anywhere, but not into a file
        (turn_the_mask, "another grid"),
        (ask_for_no_option_that_exists, "unknown entries stepz"),
        (ask_for_text_as_seed, "seed is text ('3'), expected a whole number"),
    ],
)
def test_bad_input_is_an_error_event_and_exit_code_2(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    directory = make_job(tmp_path / "job")
    spoil(directory)
    worker = ended(directory)
    assert worker.process.returncode == job.ExitCode.BAD_INPUT
    (failure,) = worker.of(job.Failure)
    assert failure.code == "bad_input"
    assert said in failure.what
    assert failure.hint
    assert not (directory / "results").is_dir()
    assert said in worker.log
    assert "Traceback" not in worker.log
    assert b"Traceback" not in worker.stderr


def test_a_folder_without_a_job_is_an_error_event(tmp_path: Path) -> None:
    worker = ended(tmp_path / "nowhere")
    assert worker.process.returncode == job.ExitCode.BAD_INPUT
    assert [event.code for event in worker.of(job.Failure)] == ["bad_input"]


def test_without_a_job_directory_it_says_how_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_anomaly.worker"], cwd=ENGINE, capture_output=True, check=False
    )
    assert done.returncode == job.ExitCode.BAD_INPUT
    assert b"JOBDIR" in done.stderr
    assert done.stdout == b""


class Pipe:
    """Event lines into a pipe, and what came out of it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.stop = channel.Stop(grace=3600.0)
        self.lines = channel.EventLines(self.write_end, self.stop)
        self.now = 0.0
        self.reports = channel.Reports(self.lines, self.stop, clock=lambda: self.now)

    def events(self) -> list[job.Event]:
        os.close(self.write_end)
        with open(self.read_end, "rb") as file:
            return [job.decode(line) for line in file]


def test_the_first_and_last_report_of_each_stage_are_sent_and_few_between() -> None:
    pipe = Pipe()
    for stage in ("detect", "write"):
        for done in range(101):
            pipe.reports.report(stage, done, 100)
            pipe.now += 0.01
    sent = [(event.stage, event.done) for event in pipe.events() if isinstance(event, job.Progress)]
    assert sent == [(stage, done) for stage in ("detect", "write") for done in (0, 20, 40, 60, 80, 100)]


def test_a_stage_that_ends_early_still_sends_its_last_report() -> None:
    pipe = Pipe()
    for done in (0, 1, 2):
        pipe.reports.report("detect", done, 100)
    pipe.reports.report("write", 0, 1)
    sent = [(event.stage, event.done) for event in pipe.events() if isinstance(event, job.Progress)]
    assert sent == [("detect", 0), ("detect", 2), ("write", 0)]


def test_a_report_after_the_wish_to_stop_raises_and_sends_nothing() -> None:
    pipe = Pipe()
    pipe.stop.request("as asked")
    pipe.stop.request("a second time")
    with pytest.raises(Cancelled, match="as asked"):
        pipe.reports.report("detect", 0, 1)
    assert pipe.events() == []


def test_a_wish_to_stop_that_comes_too_late_changes_nothing() -> None:
    pipe = Pipe()
    pipe.stop.too_late()
    pipe.stop.request("as asked")
    pipe.reports.report("write", 1, 1)
    assert len(pipe.events()) == 1


@pytest.mark.parametrize(
    ("written", "stops"),
    [
        (b"cancel\n", True),
        (b"cancel\r\n", True),
        (b"x\ncan", False),
        (b"cancelled\n", False),
        (b"\n\n", False),
    ],
)
def test_only_the_line_cancel_stops(written: bytes, stops: bool) -> None:
    read_end, write_end = os.pipe()
    stop = channel.Stop(grace=3600.0)

    def heard(line: str) -> None:
        if line == job.CANCEL_LINE:
            stop.request("as asked")

    def stopped() -> bool:
        try:
            stop.check()
        except Cancelled:
            return True
        return False

    listener = threading.Thread(target=channel.listen, args=(read_end, heard, stop.request), daemon=True)
    listener.start()
    os.write(write_end, written)
    if stops:
        wait_until(stopped, 5.0)
    else:
        listener.join(0.2)
        assert not stopped()
    assert listener.is_alive()  # there may be more to hear
    os.close(write_end)  # the end of stdin stops in any case
    listener.join(5.0)
    assert not listener.is_alive()
    with pytest.raises(Cancelled, match="as asked" if stops else "its input ended"):
        stop.check()
    os.close(read_end)
