"""The format of the border: what one side writes the other reads; what is no job or event is refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_anomaly import errors
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.worker import protocol as job

JOB = job.Job("/scans/flair.nrrd", "/results", "guided", "flair-guided", "/scans/brain.nrrd", {"steps": 7}, "Köpf 3")


def written(folder: Path, **entries: Any) -> Path:
    """A job file with the given entries on top of a complete one; None as a key's value stays null."""
    content = {"schema_version": 1, "input": "a.nrrd", "output": "out", **entries}
    (folder / job.JOB_FILE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_job_comes_back_as_it_was_written(tmp_path: Path) -> None:
    job.write_job(JOB, tmp_path)
    assert job.read_job(tmp_path) == JOB


def test_writing_leaves_nothing_but_the_job_file(tmp_path: Path) -> None:
    job.write_job(JOB, tmp_path)
    job.write_job(JOB, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_relative_paths_are_taken_from_the_job_directory(tmp_path: Path) -> None:
    job.write_job(job.Job("scan.nrrd", "out", model="models/mine", mask="brain.nrrd"), tmp_path)
    read = job.read_job(tmp_path)
    assert (read.input, read.output) == (str(tmp_path / "scan.nrrd"), str(tmp_path / "out"))
    assert (read.model, read.mask) == (str(tmp_path / "models" / "mine"), str(tmp_path / "brain.nrrd"))


def test_a_model_by_name_stays_a_name(tmp_path: Path) -> None:
    job.write_job(job.Job("scan.nrrd", "out", model="flair-guided"), tmp_path)
    assert job.read_job(tmp_path).model == "flair-guided"


@pytest.mark.parametrize(
    "name",
    ["Kopf äöü 头 🧠/é.nrrd", "with \"quotes\" and 'more'", "line\nbreak", os.fsdecode(b"not utf-8 \xff")],
)
def test_any_path_survives_and_the_file_is_ascii(tmp_path: Path, name: str) -> None:
    path = job.write_job(job.Job(str(tmp_path / name), str(tmp_path / "out")), tmp_path)
    assert path.read_bytes().isascii()
    assert job.read_job(tmp_path).input == str(tmp_path / name)


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        JOB.method = "intensity"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"schema_version": 3}, "schema version 3"),
        ({"schema_version": 0}, "schema version 0"),
        ({"schema_version": None}, "schema version None"),
        ({"schema_version": True}, "schema version True"),
        ({"surprise": 1}, "unknown entries surprise"),
        ({"input": 5}, "input is a whole number (5), expected text"),
        ({"input": None}, "input is null, expected text"),
        ({"input": ""}, "must not be empty"),
        ({"output": ["out"]}, "output is a list"),
        ({"model": 1.5}, "model is a number (1.5), expected text or null"),
        ({"options": ["steps"]}, "options is a list, expected an object"),
        ({"method": False}, "method is true or false (False)"),
    ],
)
def test_a_bad_entry_is_refused_and_named(tmp_path: Path, entries: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        job.read_job(written(tmp_path, **entries))
    assert said in refused.value.what
    assert refused.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b'{"schema_version": 1, "input": "a', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b'{"schema_version": 1, "output": "out"}', "lacks input"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / job.JOB_FILE).write_bytes(content)
    with pytest.raises(InputError, match=said):
        job.read_job(tmp_path)


def test_a_missing_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read"):
        job.read_job(tmp_path / "nowhere")


def test_a_job_that_json_cannot_carry_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="JSON cannot carry"):
        job.write_job(job.Job("a", "b", options={"threshold": math.nan}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.job\.json cannot be written"):
        job.write_job(JOB, tmp_path / "gone")


EVENTS = [
    job.Started("cuda:0", "flair-guided", "0.1.0", 25),
    job.Started("cpu", None, None, 1),
    job.Progress("detect", 3, 20, 1.5, 8.5),
    job.Progress("brain", 0, 1, 0.0),
    job.Warned('a "warning" with ä and\na line break'),
    job.Result({"heat": "/ö/heat.nii.gz"}, {"volume_ml": 1.25, "findings": [{"id": 1}]}, {"detect": 3.5}),
    job.Failure("out_of_memory", "Memory ran out.", "Close other programs."),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_an_event_comes_back_from_its_line(event: job.Event) -> None:
    line = job.encode(event)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["event"] == event.event
    assert job.decode(line) == event
    assert job.decode((line + "\r\n").encode()) == event


@given(st.text(), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_survives_the_line(text: str, whole: int, number: float) -> None:
    event = job.Progress(text, whole, whole, number)
    assert "\n" not in job.encode(event)
    assert job.decode(job.encode(event)) == event


def test_numbers_that_are_not_finite_become_null() -> None:
    event = job.Result({}, {"a": math.nan, "b": [math.inf], "c": 1.0}, {})
    decoded = job.decode(job.encode(event))
    assert isinstance(decoded, job.Result)
    assert decoded.statistics == {"a": None, "b": [None], "c": 1.0}


def test_numbers_of_numpy_and_paths_become_plain() -> None:
    event = job.Result({}, {"n": np.int64(3), "x": np.float32(0.5), "p": Path("a")}, {"t": np.float64(2)})
    assert json.loads(job.encode(event))["statistics"] == {"n": 3, "x": 0.5, "p": "a"}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Warning: something was printed",
        "3",
        '{"stage": "detect"}',
        '{"event": "party"}',
        '{"event": ["progress"]}',
        '{"event": "warning"}',
        '{"event": "warning", "message": 3}',
        '{"event": "warning", "message": "a", "more": "b"}',
        '{"event": "result", "files": {"heat": 3}, "statistics": {}, "timings": {}}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_event_is_refused(line: str | bytes) -> None:
    with pytest.raises(InputError):
        job.decode(line)


def test_exit_codes_are_those_of_the_errors() -> None:
    pairs = {
        job.ExitCode.FAILED: errors.EngineError,
        job.ExitCode.BAD_INPUT: errors.InputError,
        job.ExitCode.MODEL: errors.ModelError,
        job.ExitCode.OUT_OF_MEMORY: errors.MemoryExhausted,
        job.ExitCode.CANCELLED: errors.Cancelled,
    }
    assert {code: kind.exit_code for code, kind in pairs.items()} == {code: int(code) for code in pairs}
    assert job.ExitCode.DONE == 0
