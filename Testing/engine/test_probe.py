"""What Slicer learns about this machine and about a model package from a process that may import torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import packages
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.registry import get_method
from diffusion_anomaly.worker import probe


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert probe.main(list(arguments)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_the_machine_lists_the_cpu_first_and_nothing_is_missing_here(capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "machine")
    assert answer["problems"] == {}
    assert answer["devices"][0]["id"] == "cpu" and answer["devices"][0]["name"]
    assert {"torch", "monai", "diffusion_anomaly"} <= answer["versions"].keys()


def test_a_package_that_cannot_be_imported_is_a_problem_that_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "NEEDED", ("numpy", "no_such_package"))
    assert list(ask(capsys, "machine")["problems"]) == ["no_such_package"]


def test_a_whole_model_package_is_verified_and_a_changed_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = packages.guided(tmp_path / "tiny").path
    assert ask(capsys, "verify", str(folder)) == {
        "ok": True,
        "name": "tiny",
        "method": "guided",
        "version": "0.1.0",
        "problem": "",
    }
    weights = folder / "models" / "diffusion.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    answer = ask(capsys, "verify", str(folder))
    assert not answer["ok"] and "diffusion.safetensors" in answer["problem"]


def test_other_questions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["weather"]) == 2
    assert capsys.readouterr().out == ""


def test_an_unknown_method_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"guesswork.*unsupervised"):
        get_method("guesswork")
