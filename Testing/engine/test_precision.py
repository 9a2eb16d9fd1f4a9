"""What ``auto`` comes to on a CPU: measured once, remembered, and never in doubt from run to run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diffusion_anomaly import precision
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.precision import choose_dtype

CPU = torch.device("cpu")


class Measured:
    """Stands in for the measurement and counts how often it is asked for."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.count = 0

    def __call__(self) -> float:
        self.count += 1
        return self.gain


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user who has measured nothing yet."""
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    forget()
    yield precision.cache_folder() / precision.FILE
    forget()


def forget() -> None:
    """What a new process knows."""
    precision._remembered.cache_clear()


def measuring(monkeypatch: pytest.MonkeyPatch, gain: float) -> Measured:
    measured = Measured(gain)
    monkeypatch.setattr(precision, "measure_gain", measured)
    return measured


@pytest.mark.parametrize(("gain", "expected"), [(0.5, "float32"), (1.19, "float32"), (1.21, "bfloat16")])
def test_bfloat16_has_to_win_clearly(gain: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, gain)
    assert choose_dtype("auto", CPU) == getattr(torch, expected)


def test_the_answer_is_kept_for_later_runs_even_when_a_new_measurement_would_differ(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, 1.5)
    assert choose_dtype("auto", CPU) == torch.bfloat16
    forget()
    again = measuring(monkeypatch, 0.9)
    assert choose_dtype("auto", CPU) == torch.bfloat16
    assert again.count == 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_another_processor_or_torch_is_measured_anew_and_both_are_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, 1.5)
    choose_dtype("auto", CPU)
    forget()
    monkeypatch.setattr(precision, "processor_name", lambda: "another")
    measuring(monkeypatch, 0.9)
    assert choose_dtype("auto", CPU) == torch.float32
    assert [entry["precision"] for entry in json.loads(file.read_text(encoding="utf-8")).values()] == [
        "bfloat16",
        "float32",
    ]


@pytest.mark.parametrize("content", ["", "[1]", '{"half', "\x00"])
def test_a_file_that_cannot_be_read_is_measured_over(content: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(content)
    measured = measuring(monkeypatch, 2.0)
    assert choose_dtype("auto", CPU) == torch.bfloat16
    assert measured.count == 1
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 1


def test_without_a_folder_to_write_to_it_is_measured_once_a_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.write_text("a file where the folder should be")
    measured = measuring(monkeypatch, 2.0)
    assert {choose_dtype("auto", CPU) for _ in range(3)} == {torch.bfloat16}
    assert measured.count == 1


@pytest.mark.parametrize("named", ["float32", "bfloat16"])
def test_a_named_precision_or_the_variable_needs_no_measurement(
    named: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measuring(monkeypatch, 2.0)
    assert choose_dtype(named, CPU) == getattr(torch, named)
    monkeypatch.setenv(precision.VARIABLE, named)
    assert choose_dtype("auto", CPU) == getattr(torch, named)
    assert measured.count == 0
    assert not file.exists()


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(precision.VARIABLE, "float64")
    with pytest.raises(InputError, match=f"{precision.VARIABLE} is 'float64'"):
        choose_dtype("auto", CPU)


def test_the_measurement_leaves_threads_and_random_numbers_as_they_were() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert 0.01 < precision.measure_gain() < 100
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("platform", "folder"), [("win32", "local"), ("darwin", "home/Library/Caches"), ("linux", "cache")]
)
def test_the_folder_is_the_platforms_own(
    platform: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert precision.cache_folder().parent == tmp_path / folder
