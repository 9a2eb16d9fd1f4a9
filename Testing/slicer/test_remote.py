"""Servers as devices: what is kept of them, and the process that forwards a scan of the scene to one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import jobs
import mrmlscene
import packages
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.server.offer import Offer
from DiffusionAnomalyLib.detection import Detection, Request
from DiffusionAnomalyLib.process import remote
from DiffusionAnomalyLib.process.remote import RemoteServer
from DiffusionAnomalyLib.progresstext import stageTitle
from DiffusionAnomalyLib.settings import MemorySettings
from servers import Served
from workers import wait_until

KNOWN = RemoteServer("gpu", "https://gpu.example.org:8443", "da_secret", "AB:" * 31 + "AB")


@pytest.fixture
def settings() -> MemorySettings:
    return MemorySettings()


def test_a_server_that_is_added_is_a_device(settings: MemorySettings) -> None:
    remote.add(KNOWN, settings)
    (found,) = remote.servers(settings)
    assert (found.device, found.title, found.agreed) == ("remote:gpu", "Remote: gpu", False)
    assert found.fingerprint == "ab" * 32
    assert remote.serverOf("remote:gpu", settings) == found
    assert remote.serverOf("cuda:0", settings) is None
    assert remote.problem("remote:gpu", settings) == remote.problem("cpu", settings) == ""
    assert "other is not set up" in remote.problem("remote:other", settings)


def test_one_name_is_one_server(settings: MemorySettings) -> None:
    remote.add(KNOWN, settings)
    remote.add(RemoteServer("gpu", "https://other:1", "da_new"), settings)
    assert [server.address for server in remote.servers(settings)] == ["https://other:1"]
    remote.remove("gpu", settings)
    assert remote.servers(settings) == []


def test_it_is_asked_once_whether_scans_may_go_there(settings: MemorySettings) -> None:
    remote.add(KNOWN, settings)
    remote.add(RemoteServer("other", "https://other:1", "da_new"), settings)
    remote.agree("gpu", settings)
    assert {server.name: server.agreed for server in remote.servers(settings)} == {"gpu": True, "other": False}
    assert KNOWN.address in remote.question(KNOWN) and "leaves this computer" in remote.question(KNOWN)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 41}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"address": "http://gpu"}, "no address"),
        ({"address": "gpu:8443"}, "no address"),
        ({"token": " "}, "token"),
        ({"fingerprint": "abc"}, "fingerprint"),
    ],
)
def test_what_is_no_server_is_refused(settings: MemorySettings, changes: dict[str, str], said: str) -> None:
    whole = {"name": "gpu", "address": "https://gpu", "token": "da_x"}
    with pytest.raises(InputError, match=said):
        remote.add(RemoteServer(**{**whole, **changes}), settings)
    assert remote.servers(settings) == []


@pytest.mark.parametrize(
    "kept", ["", "{", "{}", '[1, null, {"name": 3}, {"name": "x"}, {"name": "a", "address": "b"}]']
)
def test_damaged_settings_hold_no_servers(settings: MemorySettings, kept: str) -> None:
    settings.setValue(remote.SERVERS, kept)
    assert remote.servers(settings) == []


def test_the_token_is_in_no_argument(settings: MemorySettings) -> None:
    environment = remote.forwarderEnvironment(KNOWN, {})
    assert KNOWN.token in environment.values()
    assert not any(KNOWN.token in word for word in remote.forwarderCommand())


@pytest.fixture
def served(tmp_path: Path, model: Bundle) -> Iterator[Served]:
    with Served(tmp_path / "server", Offer([model.path]), slots=1, real=True) as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.intensity(tmp_path_factory.mktemp("models") / "toy")


def test_a_server_finds_what_this_computer_would(
    served: Served, model: Bundle, scene: Any, settings: MemorySettings, tmp_path: Path
) -> None:
    remote.add(RemoteServer("here", served.address, served.tokens.add("anna"), served.fingerprint), settings)
    scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "Mustermann")
    brain = mrmlscene.addLabels(scene, jobs.brain(), scan, "brain")
    detection = Detection(scene, tmp_path / "temporary", settings=settings, environment=jobs.environment())
    maps = []
    try:
        for device in ("cpu", "remote:here"):
            entry = detection.add(scan, Request("intensity", str(model.path), device=device, threshold=1.5), brain)
            nodes = detection.wait(entry)
            maps.append(slicer.util.arrayFromVolume(nodes.anomalyMap).copy())
            assert nodes.report is not None
        assert entry.job.started is not None
        assert entry.job.started.device == f"cpu of 127.0.0.1:{served.port}"
    finally:
        detection.close()
    assert maps[0].max() > 1.5
    assert np.array_equal(*maps)
    wait_until(lambda: not served.leftovers, jobs.PATIENCE)


def test_a_server_that_is_not_set_up_here_is_said(scene: Any, settings: MemorySettings, tmp_path: Path) -> None:
    detection = Detection(scene, tmp_path / "temporary", settings=settings)
    try:
        scan = mrmlscene.addScan(scene, jobs.scan(), tmp_path)
        with pytest.raises(InputError, match="not set up"):
            detection.add(scan, Request("intensity", device="remote:gone"))
    finally:
        detection.close()


def test_stages_of_a_server_have_words() -> None:
    for stage in ("upload", "wait", "download"):
        assert stageTitle(stage) != stage


def test_what_is_kept_is_plain_json(settings: MemorySettings) -> None:
    remote.add(KNOWN, settings)
    assert json.loads(settings.value(remote.SERVERS))[0]["name"] == "gpu"
