"""A node of tests: quick, with a detector of toy size. Its packages are imported late, for they may not be there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options

if TYPE_CHECKING:
    from diffusion_anomaly.dicom_network.config import NodeConfig


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    import pacs

    return Detector(Options("intensity", device="cpu"), bundle=pacs.tiny_model(tmp_path_factory.mktemp("m") / "tiny"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeConfig:
    """Listens, keeps what it made, and is quick."""
    from diffusion_anomaly.dicom_network.config import Listen, NodeConfig, Peer, Retry

    monkeypatch.setattr("diffusion_anomaly.dicom_network.node._TICK_S", 0.05)
    return NodeConfig(
        str(tmp_path / "node"),
        listen=Listen("ANOMALY", [Peer("PACS", "127.0.0.1")], port=0),
        complete_after_s=0.3,
        least_free_mb=0,
        retry=Retry(0.1, 0.2, 1),
    )


@pytest.fixture
def watched(config: NodeConfig, tmp_path: Path) -> NodeConfig:
    """Watches ``inbox`` instead, and puts results into ``outbox``."""
    from diffusion_anomaly.dicom_network.config import Destination, Watch

    (tmp_path / "inbox").mkdir()
    results = Destination(folder=str(tmp_path / "outbox"))
    return replace(config, listen=None, watch=Watch(str(tmp_path / "inbox")), destinations={"back": results})
