"""The end by force: it always comes, takes away what the run was writing, and never parts a result."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_anomaly.errors import Cancelled
from diffusion_anomaly.io.outputs import OutputFolder, publish
from diffusion_anomaly.io.records import record
from diffusion_anomaly.worker.channel import Stop
from workers import ENGINE, PATIENCE

NAMES = ("heat.nii.gz", "mask.nii.gz", "report.html")

PRELUDE = """
import os, sys, threading, time
from pathlib import Path
from diffusion_anomaly.io import outputs
from diffusion_anomaly.io.outputs import OutputFolder
from diffusion_anomaly.io.records import record
from diffusion_anomaly.worker.channel import Stop
out, names = Path(sys.argv[1]), sys.argv[2:]
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ENGINE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} if folder.exists() else {}


def earlier(folder: Path) -> dict[str, str]:
    publish(folder, {name: lambda path: path.write_text("earlier") for name in NAMES} | {"provenance.json": record({})})
    return contents(folder)


@pytest.mark.parametrize("tidying", ["raise ValueError('a fault of tidying')", "threading.Event().wait()", "pass"])
def test_it_comes_whatever_becomes_of_tidying(tidying: str, tmp_path: Path) -> None:
    done = run(
        f"def tidy(): {tidying}\n"
        "stop = Stop(grace=0.1, tidying=0.5)\n"
        "stop.before_hard_end = tidy\n"
        "stop.request('as asked')\n"
        "time.sleep(30)\n",
        tmp_path,
    )
    assert done.returncode == Cancelled.exit_code


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2])
def test_a_request_while_files_take_their_places_leaves_the_whole_result(
    seconds: float, before: bool, tmp_path: Path
) -> None:
    """Renames take a while, as on a network drive, and the hard end falls due between them."""
    out = tmp_path / "out"
    if before:
        earlier(out)
    done = run(
        "stop, replace, exchange = Stop(grace=0.1), os.replace, outputs._exchange\n"
        "def slow(source, target):\n"
        "    time.sleep(0.06)\n"
        "    replace(source, target)\n"
        "def asked(*given):\n"
        f"    threading.Timer({seconds}, stop.request, ['as asked']).start()\n"
        "    exchange(*given)\n"
        "os.replace, outputs._exchange = slow, asked\n"
        "folder = OutputFolder(out, commit=stop.commit)\n"
        "stop.before_hard_end = folder.discard\n"
        "with folder:\n"
        "    folder.publish({name: lambda path: path.write_text('new') for name in names}"
        " | {'provenance.json': record({})})\n"
        "stop.too_late()\n",
        out,
        *NAMES,
    )
    assert done.returncode == 0, done.stderr
    assert contents(out).keys() == {*NAMES, "provenance.json"}
    assert {contents(out)[name] for name in NAMES} == {"new"}


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_is_stuck_in_writing_leaves_the_folder_as_it_was(before: bool, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    was = earlier(out) if before else {}
    done = run(
        "stop = Stop(grace=0.1)\n"
        "folder = OutputFolder(out, commit=stop.commit)\n"
        "stop.before_hard_end = folder.discard\n"
        "def stuck(path):\n"
        "    path.write_text('half')\n"
        "    stop.request('as asked')\n"
        "    time.sleep(30)\n"
        "with folder:\n"
        "    folder.publish({'heat.nii.gz': stuck, 'provenance.json': record({})})\n",
        out,
    )
    assert done.returncode == Cancelled.exit_code
    assert contents(out) == was
    assert (tmp_path / "a").exists() == before


def test_the_hidden_folder_of_another_run_stays(tmp_path: Path) -> None:
    """A run that was refused, or has not come as far as to lock the folder, tidies nothing of the one that has."""
    with OutputFolder(tmp_path) as other:
        (other.new / "heat.nii.gz").write_text("being written")
        waiting = OutputFolder(tmp_path)
        waiting.discard()
        assert (other.new / "heat.nii.gz").read_text(encoding="utf-8") == "being written"


def test_a_request_before_the_exchange_prevents_it(tmp_path: Path) -> None:
    was = earlier(tmp_path)
    stop = Stop(grace=3600.0)
    writers = {"heat.nii.gz": lambda path: path.write_text("new"), "provenance.json": record({})}
    stop.request("as asked")
    with OutputFolder(tmp_path, commit=stop.commit) as folder, pytest.raises(Cancelled, match="as asked"):
        folder.publish(writers)
    assert contents(tmp_path) == was


def test_a_request_after_the_exchange_has_begun_starts_no_timer() -> None:
    stop = Stop(grace=0.0)
    stop.commit()
    stop.request("as asked")
    time.sleep(0.2)
    stop.check()
