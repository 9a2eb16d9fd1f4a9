"""Studies that are found in a folder instead of being sent."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

import dicoms
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.errors import InputError

pytest.importorskip("pynetdicom", reason="needs the extra dicom-node")
pacs = pytest.importorskip("pacs")

from diffusion_anomaly.dicom_network.config import (  # noqa: E402
    NodeConfig,
    Watch,
)
from diffusion_anomaly.dicom_network.node import Node  # noqa: E402
from diffusion_anomaly.dicom_network.store import DONE  # noqa: E402
from pacs import ended, files_in, log_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_report")


def test_a_watched_folder_gives_results_to_another_and_keeps_its_files(
    watched: NodeConfig, detector: Detector, tmp_path: Path
) -> None:
    study = generate_uid()
    dicoms.write(tmp_path / "inbox" / "a" / "deep", pacs.scan_files(study))
    (tmp_path / "inbox" / "a" / "task.json").write_text("{}")
    before = files_in(tmp_path / "inbox" / "a" / "deep")
    with pacs.running(watched, detector) as node:
        pacs.wait_for(lambda: node.store.jobs(DONE))
    with pacs.running(watched, detector) as node:  # taken once, also by the node that is started again
        time.sleep(5 * watched.complete_after_s)
        assert len(node.store.jobs()) == 1 and node.store.incoming() == []
    assert files_in(tmp_path / "inbox" / "a" / "deep") == before
    (back,) = (tmp_path / "outbox").iterdir()
    assert sorted(path.name for path in back.iterdir()) == [
        ".complete",
        "anomaly_map.dcm",
        "findings.dcm",
        "segmentation.dcm",
    ]
    assert dcmread(back / "findings.dcm").StudyInstanceUID == study


def test_a_folder_with_a_marker_is_taken_when_it_is_there_and_removed_when_asked_for(
    watched: NodeConfig, detector: Detector, tmp_path: Path
) -> None:
    assert watched.watch is not None
    watched = replace(watched, watch=replace(watched.watch, marker=".complete", remove=True))
    entry = dicoms.write(tmp_path / "inbox" / "a", pacs.scan_files(generate_uid()))
    with pacs.running(watched, detector) as node:
        time.sleep(5 * watched.complete_after_s)
        assert node.store.incoming() == [] and len(list(entry.iterdir())) == 6
        (entry / ".complete").touch()
        (job,) = pacs.wait_for(lambda: node.store.jobs(DONE))
        pacs.wait_for(lambda: not entry.exists())
    assert len(job.record.images) == 6


def test_a_file_that_is_still_written_is_not_taken(watched: NodeConfig, detector: Detector, tmp_path: Path) -> None:
    files = pacs.scan_files(generate_uid())
    whole = [dicoms.save(data, tmp_path / f"{k}.dcm").read_bytes() for k, data in enumerate(files)]
    with pacs.running(replace(watched, complete_after_s=2), detector) as node:
        for k, content in enumerate(whole):
            with (tmp_path / "inbox" / f"{k}.dcm").open("wb") as file:
                file.write(content[:1000])
                file.flush()
                time.sleep(0.2)
                file.write(content[1000:])
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE
    assert sorted(files_in(job.images).values()) == sorted(whole)


def test_damaged_files_in_a_watched_folder_stay_there(watched: NodeConfig, detector: Detector, tmp_path: Path) -> None:
    assert watched.watch is not None
    watched = replace(watched, watch=replace(watched.watch, remove=True))
    entry = dicoms.write(tmp_path / "inbox" / "a", pacs.scan_files(generate_uid()))
    (entry / "note.txt").write_text("hello")
    (entry / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + os.urandom(300))
    with pacs.running(watched, detector) as node:
        pacs.wait_for(lambda: node.store.jobs(DONE))
    assert sorted(path.name for path in entry.iterdir()) == ["damaged.dcm", "note.txt"]
    assert "damaged or lacks a UID" in log_of(watched) and "damaged.dcm" not in log_of(watched)
    memory = json.loads((Path(watched.folder) / "watched.json").read_text())
    assert list(memory["refused"]) == ["a/damaged.dcm"]


@pytest.mark.parametrize("place", ["", "node", "node/inbox"])
def test_a_node_does_not_watch_its_own_folder(
    config: NodeConfig, detector: Detector, tmp_path: Path, place: str
) -> None:
    (tmp_path / "node" / "inbox").mkdir(parents=True)
    with pytest.raises(InputError, match="lie in each other"):
        Node(replace(config, watch=Watch(str(tmp_path / place))), detector)
