"""What the user reads while a job runs, from events alone: no process is needed for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from diffusion_anomaly.worker.protocol import Event, Failure, Progress, Started, Warned, encode
from DiffusionAnomalyLib.process.workerjob import NOTICE_SECONDS, DetectionJob, State
from DiffusionAnomalyLib.process.workspace import Workspace
from DiffusionAnomalyLib.progresstext import clock, percent, progressLine, shortened, stateTitle

STAGES = ("read", "brain", "load", "detect", "findings", "write")


class Scripted:
    """A process that says what a test lets it say."""

    onOutput: Callable[[bytes], None]
    onErrorOutput: Callable[[bytes], None]
    onFinished: Callable[[int | None], None]

    def __init__(self) -> None:
        self.written = b""
        self.killed = False

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.command = list(command)

    def write(self, data: bytes) -> None:
        self.written += data

    def kill(self) -> None:
        self.killed = True
        self.onFinished(None)

    def poll(self) -> None:
        pass

    def isRunning(self) -> bool:
        return not self.killed

    def say(self, *events: Event) -> None:
        self.onOutput("".join(encode(event) + "\n" for event in events).encode())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Clock:
    return Clock()


@pytest.fixture
def process() -> Scripted:
    return Scripted()


@pytest.fixture
def job(tmp_path: Path, process: Scripted, time: Clock) -> DetectionJob:
    job = DetectionJob(Workspace(tmp_path), process, ["worker"], {}, clock=time)
    job.start()
    return job


def test_the_line_names_stage_slice_and_time_left(job: DetectionJob, process: Scripted) -> None:
    assert "Starting" in progressLine(job)
    process.say(Progress("brain", 0, 1, 1.0))
    assert progressLine(job) == "Finding the brain"
    process.say(Started("cpu", "tiny", "0.1.0", 20), Progress("detect", 150, 600, 9.0, 75.4))
    assert progressLine(job) == "Computing the anomaly map, slice 5 of 20, 1:15 left"
    job.cancel()
    assert "Stopping" in progressLine(job)


def test_the_bar_never_goes_back(job: DetectionJob, process: Scripted) -> None:
    seen = [percent(job)]
    for stage in STAGES:
        for done in range(5):
            process.say(Progress(stage, done, 4, 0.0))
            seen.append(percent(job))
    assert seen == sorted(seen)
    assert seen[0] == 0 and seen[-1] == 100


def test_silence_is_told_and_is_not_yet_a_failure(job: DetectionJob, process: Scripted, time: Clock) -> None:
    process.say(Progress("brain", 0, 1, 1.0))
    time.now = NOTICE_SECONDS + 61
    job.tick()
    assert job.state is State.RUNNING
    assert "said nothing for 2:01" in progressLine(job)
    process.say(Progress("brain", 1, 1, 130.0))
    assert "said nothing" not in progressLine(job)


def test_an_event_cut_in_two_is_one_event(job: DetectionJob, process: Scripted) -> None:
    line = (encode(Warned("the scan is odd")) + "\n").encode()
    for byte in range(len(line)):
        process.onOutput(line[byte : byte + 1])
    assert job.warnings == ["the scan is odd"]
    assert "Warning: the scan is odd" in job.log


def test_cancel_is_one_line_and_force_follows_only_after_the_grace(
    job: DetectionJob, process: Scripted, time: Clock
) -> None:
    job.cancel()
    job.cancel()
    assert process.written == b"cancel\n"
    time.now = 3.0
    job.tick()
    assert not process.killed
    time.now = 4.1
    job.tick()
    assert process.killed and job.state is State.CANCELLED


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (3, Failure("model", "The package is damaged.", "Download it again."), "damaged"),
        (4, None, "Memory ran out"),
        (None, None, "crashed"),
        (137, None, "crashed"),
        (1, None, "exit code 1"),
        (0, None, "without a result"),
    ],
)
def test_every_end_has_its_sentence(
    job: DetectionJob, process: Scripted, code: int | None, said: Failure | None, words: str
) -> None:
    if said is not None:
        process.say(said)
    process.onFinished(code)
    assert job.outcome is not None and job.state is State.FAILED
    assert words in job.outcome.what and job.outcome.hint


def test_a_log_does_not_grow_without_end(job: DetectionJob, process: Scripted) -> None:
    process.onErrorOutput(b"line\n" * 20_000)
    process.onErrorOutput(b"x" * 3_000_000)
    assert len(job.log) <= 5000
    assert max(map(len, job.log)) <= 1_000_000


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (-3, "0:00"), (3661, "61:01")]
)
def test_a_clock_shows_minutes_and_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_every_state_has_a_name() -> None:
    assert len({stateTitle(state) for state in State}) == len(State)


def test_a_long_name_is_shortened_and_a_short_one_is_not() -> None:
    assert shortened("3: AX FLAIR") == "3: AX FLAIR"
    assert shortened("x" * 40) == "x" * 40
    assert shortened("x" * 41) == "x" * 39 + "…"
