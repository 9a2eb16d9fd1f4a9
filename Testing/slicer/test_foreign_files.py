"""No process of ours imports what happens to lie in the current directory, a ``numpy.py`` for example.

The directory is planted with modules that every one of the processes would import, and each leaves a trace.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import jobs
from DiffusionAnomalyLib.process import dependencies, environment
from DiffusionAnomalyLib.process.dependencies import Installation
from DiffusionAnomalyLib.process.environment import Question
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.process.warmworker import WarmWorker
from DiffusionAnomalyLib.process.workerjob import State
from DiffusionAnomalyLib.settings import MemorySettings

PLANTED = ("numpy", "pip", "json", "logging", "diffusion_anomaly")


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a planted module would leave its name; the current directory is full of them."""
    folder, trace = tmp_path / "downloads", tmp_path / "trace"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write({name!r})\nraise SystemExit(77)\n")
    monkeypatch.chdir(folder)
    return trace


@pytest.fixture(params=["as it is", "Python 3.10", "an empty entry in PYTHONPATH"])
def variables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the processes: also without the variable that Python 3.10 does not know."""
    real = environment.workerEnvironment
    base = {**os.environ, "OMP_NUM_THREADS": "1"}
    if request.param == "an empty entry in PYTHONPATH":  # which stands for the current directory
        base["PYTHONPATH"] = os.pathsep.join(["", base.get("PYTHONPATH", "")])
    made = real(base)
    if request.param != "as it is":
        made.pop("PYTHONSAFEPATH", None)
    monkeypatch.setattr(environment, "workerEnvironment", lambda: made)
    return made


def test_the_worker_does_not(tmp_path: Path, trace: Path, variables: dict[str, str]) -> None:
    worker = WarmWorker(PipeProcess)
    job = jobs.makeJob(tmp_path, process=worker.turn())
    job._environment = variables
    jobs.finish(job)
    worker.shutdown()
    assert not trace.exists(), trace.read_text(encoding="utf-8")
    assert job.state is State.DONE, job.log


def test_a_question_does_not(trace: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "pythonProgram", lambda: sys.executable)
    answers: list[dict[str, Any]] = []
    question = Question(PipeProcess(), ["machine"], answers.append)
    jobs.wait(lambda: bool(answers), question.tick)
    assert not trace.exists(), trace.read_text(encoding="utf-8")
    assert answers[0]["problems"] == {} and answers[0]["devices"]


def test_a_step_of_pip_does_not(tmp_path: Path, trace: Path, variables: dict[str, str]) -> None:
    commands = dependencies.steps([Requirement("anomalytestwheel>=1")], sys.executable, tmp_path)
    installation = Installation(commands, PipeProcess, variables, MemorySettings(), tmp_path)
    problems: list[str] = []
    installation.onFinished = problems.append
    installation.start()
    jobs.wait(lambda: bool(problems), installation.tick, 120)
    assert not trace.exists(), trace.read_text(encoding="utf-8")
    assert "lacks a wheel" in problems[0]


def test_the_planted_modules_would_be_imported_without_care(trace: Path) -> None:
    """The trap works: a process that is started the usual way walks into it."""
    subprocess.run([sys.executable, "-c", "import numpy"], check=False)
    assert trace.read_text(encoding="utf-8") == "numpy"
