"""Job files, commands and event lines made to harm: each is refused in its own words, soon."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.registry import METHODS, get_method
from diffusion_anomaly.worker import protocol

HUGE = 10**400
USUAL = {"schema_version": protocol.SCHEMA_VERSION, "input": "scan.nii.gz", "output": "results"}


def text(**entries: Any) -> bytes:
    return json.dumps({**USUAL, **entries}).encode()


JOBS: dict[str, tuple[bytes, str]] = {
    "integer beyond floats": (text(options={"overrides": {"levels": HUGE}}), "64 bits"),
    "integer of 5000 digits": (b'{"schema_version": ' + b"9" * 5000 + b"}", "64 bits"),
    "float beyond floats": (text(options={"x": 1}).replace(b"1}", b"1e999}"), "too large for a float"),
    "not a number": (text(options={"x": float("nan")}), "not a finite number"),
    "key twice": (b'{"input": "a", "input": "b"}', "given twice"),
    "nested 200 deep": (text(options={"x": json.loads("[" * 200 + "]" * 200)}), "nested"),
    "nested 100,000 deep": (b'{"options": ' + b"[" * 100_000, "nested"),
    "no UTF-8": (b'{"input": "\xff"}', "can't decode"),
    "byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "UTF-16": (text().decode().encode("utf-16"), "JSON"),
    "nothing": (b"", "JSON"),
    "text": (b'"job"', "expected a JSON object"),
    "a million values": (b'{"options": [' + b"0," * 1_000_000 + b"0]}", "more than"),
    "version of a list": (text(schema_version=[2]), "schema version"),
    "version true": (text(schema_version=True), "schema version"),
    "version 2.0": (text(schema_version=2.0), "schema version"),
    "method that is a list": (text(method=["restore"]), "method"),
    "method that is null": (text(method=None), "method"),
    "options of a list": (text(options=["steps"]), "options"),
    "model that is a number": (text(model=1), "model"),
    "no input": (text(input=""), "must not be empty"),
    "input with a null": (text(input="a\0b"), "null character"),
    "output with a null": (text(output="a\0b"), "null character"),
    "100,000 unknown entries": (text(**{f"x{i}": 0 for i in range(100_000)}), "unknown entries"),
    "entry of 1 MB": (text(**{"x" * 1_000_000: 0}), "unknown entries"),
    "escape in an entry": (text(**{"\x1b[31m": 0}), "unknown entries"),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_hostile_job_is_refused_soon_and_says_why(name: str, tmp_path: Path) -> None:
    data, match = JOBS[name]
    (tmp_path / protocol.JOB_FILE).write_bytes(data)
    begin = time.process_time()
    with pytest.raises(InputError) as raised:
        protocol.read_job(tmp_path)
    assert time.process_time() - begin < 1.0
    assert match in str(raised.value)
    assert len(str(raised.value)) < 2500 and str(raised.value).isprintable()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
@pytest.mark.parametrize("kind", ["folder", "pipe", "sparse", "nowhere"])
def test_a_job_file_that_is_none_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / protocol.JOB_FILE
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(10**11)
    else:
        path.symlink_to("gone")
    with pytest.raises(InputError, match=r"job\.json"):
        protocol.read_job(tmp_path)


@pytest.mark.parametrize("directory", ['""', "null", "[]", '"a\\u0000b"', "9" * 5000, "[" * 2000, '"x', "\ud800"])
def test_a_command_without_a_folder_is_refused(directory: str) -> None:
    with pytest.raises(InputError, match="command"):
        protocol.job_of(f"{protocol.RUN_COMMAND} {directory}")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"event": "progress"',
        b'{"event": ["progress"]}',
        b'{"event": "nothing"}',
        b'{"event": "warning", "message": 1e999}',
        b'{"event": "warning", "message": "a", "message": "b"}',
        b'{"event": "finished", "exit_code": ' + b"9" * 5000 + b"}",
        b'{"event": "warning", "message": "' + b"x" * 20_000_000 + b'"}',
        '{"event": "warning", "message": "\ud800"'.encode("utf-8", "surrogatepass"),
    ],
)
def test_a_line_that_is_no_event_is_refused_in_a_short_message(line: bytes) -> None:
    with pytest.raises(InputError) as raised:
        protocol.decode(line)
    assert len(str(raised.value)) < 2500


ODD = [HUGE, -HUGE, 10**5000, float("nan"), float("inf"), "x" * 10_000, [], {}, [[[]]], True, None, b"x", 1e308, "1"]


def _refusal(make: Callable[..., Any], **given: Any) -> str:
    """The error's text; empty where the value is taken."""
    try:
        make(**given)
    except EngineError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_any_value_is_taken_or_refused_by_name(method: str) -> None:
    for option in fields(get_method(method).options_type):
        for value in ODD:
            for kind in ("packaged", "chosen"):
                assert len(_refusal(get_method(method).make_options, **{kind: {option.name: value}})) < 600


@pytest.mark.parametrize("name", [option.name for option in fields(Options)])
def test_every_option_of_a_run_refuses_what_it_cannot_be(name: str) -> None:
    refusals = [_refusal(lambda **given: make_plan(Options(**given)), **{name: value}) for value in ODD]
    assert all(len(text) < 2500 for text in refusals)
    assert len([text for text in refusals if text]) >= 8
