"""Where networks run: any accelerator that torch knows, if it works, and else the CPU with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from diffusion_anomaly import system
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.system import choose_device, let_idle_threads_sleep


def machine_with(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 0, driver_says: str = "", fault: str = ""
) -> None:
    """A machine and a build of torch with ``count`` devices of a kind."""

    def is_available() -> bool:
        if driver_says:
            warnings.warn(driver_says, stacklevel=1)
        return count > 0

    device = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    monkeypatch.setattr(torch.accelerator, "is_available", is_available)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(system, "_fault", lambda device: fault)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_an_accelerator_that_works_is_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, kind, count=2)
    said: list[str] = []
    assert choose_device("auto", said.append) == torch.device(kind)
    assert choose_device(f"{kind}:1") == torch.device(kind, 1)
    assert choose_device("cpu") == torch.device("cpu")
    assert said == []
    with pytest.raises(InputError, match=f"'{kind}:2' was asked for, but torch sees 2 {kind.upper()} devices"):
        choose_device(f"{kind}:2")


@pytest.mark.parametrize("kind", [None, "cuda", "mtia"])
def test_without_an_accelerator_it_is_the_cpu_and_nothing_is_said(
    kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with(monkeypatch, kind)
    said: list[str] = []
    assert choose_device("auto", said.append) == torch.device("cpu")
    assert said == []


def test_a_driver_that_is_too_old_is_told_and_the_cpu_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    old = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update it."
    machine_with(monkeypatch, "cuda", driver_says=old)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told once, in words
        assert choose_device("auto", said.append) == torch.device("cpu")
    assert len(said) == 1
    assert "driver on your system is too old (found version 11040)" in said[0] and "the CPU is used" in said[0]
    with pytest.raises(InputError, match=r"torch sees 0 CUDA devices: .*too old"):
        choose_device("cuda")


def test_an_accelerator_that_fails_at_its_first_task_is_told_and_the_cpu_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine_with(monkeypatch, "mps", count=1, fault="ConvTranspose 3D is not supported on MPS")
    said: list[str] = []
    assert choose_device("auto", said.append) == torch.device("cpu")
    assert len(said) == 1 and "ConvTranspose 3D is not supported on MPS" in said[0]
    with pytest.raises(InputError, match="'mps' does not work: ConvTranspose 3D"):
        choose_device("mps")


def test_the_first_task_is_what_networks_do() -> None:
    assert system._fault(torch.device("cpu")) == ""
    assert system._fault(torch.device("meta")) != ""  # has no numbers


@pytest.mark.parametrize(("device", "words"), [("tpu", "Unknown device 'tpu'"), ("meta", "'meta' is not supported")])
def test_other_devices_are_refused_with_those_there_are(device: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        choose_device(device)
    assert all(name in caught.value.hint for name in ("auto", "cpu", "cuda", "mps", "xpu"))


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_torch_is_imported_with_idle_threads_asleep_unless_the_user_has_decided(before: str | None, after: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if before is not None:
        environment["OMP_WAIT_POLICY"] = before
    code = """
import gc, os, sys
from diffusion_anomaly.system import choose_device
choose_device("cpu")
print("torch" in sys.modules, gc.isenabled(), os.environ["OMP_WAIT_POLICY"])
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", after]


def test_where_torch_is_imported_already_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    let_idle_threads_sleep()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_the_module_for_that_leaves_torch_out() -> None:
    code = "import sys, diffusion_anomaly.system, diffusion_anomaly.precision; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
