"""The node in one process: what comes, what becomes of it, and what happens when something on the way fails."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import dicoms
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError

pytest.importorskip("pynetdicom", reason="needs the extra dicom-node")
pacs = pytest.importorskip("pacs")

from diffusion_anomaly.dicom_network.choosing import choose_sources  # noqa: E402
from diffusion_anomaly.dicom_network.config import (  # noqa: E402
    Destination,
    Listen,
    NodeConfig,
    Peer,
    Retry,
    Tls,
    Watch,
)
from diffusion_anomaly.dicom_network.logs import logged  # noqa: E402
from diffusion_anomaly.dicom_network.looking import MOST_STARTS, Looker  # noqa: E402
from diffusion_anomaly.dicom_network.node import Node, check_destinations, check_own  # noqa: E402
from diffusion_anomaly.dicom_network.refusals import Refused, Unreachable  # noqa: E402
from diffusion_anomaly.dicom_network.store import DONE, QUARANTINE, QUEUE, SENDING, Store  # noqa: E402
from diffusion_anomaly.dicom_network.web import WebClient  # noqa: E402

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SECRET = "Secret"

pytestmark = pytest.mark.usefixtures("plain_report")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(Options("intensity", device="cpu"), bundle=pacs.tiny_model(tmp_path_factory.mktemp("m") / "tiny"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeConfig:
    """Listens, keeps what it made, and is quick."""
    monkeypatch.setattr("diffusion_anomaly.dicom_network.node._TICK_S", 0.05)
    return NodeConfig(
        str(tmp_path / "node"),
        listen=Listen("ANOMALY", [Peer("PACS", "127.0.0.1")], port=0),
        complete_after_s=0.3,
        least_free_mb=0,
        retry=Retry(0.1, 0.2, 1),
    )


def to(port: int, **entries: Any) -> dict[str, Destination]:
    return {"pacs": Destination(ae_title="PACS", address="127.0.0.1", port=port, **entries)}


def ended(node: Node) -> Callable[[], Any]:
    """The study in ``done`` or ``quarantine``, when nothing is left elsewhere."""

    def look() -> Any:
        waits = node.store.incoming() or node.store.jobs(QUEUE, SENDING)
        return None if waits else node.store.jobs(DONE, QUARANTINE)

    return look


def reason(node: Node) -> dict[str, Any]:
    (job,) = node.store.jobs(QUARANTINE)
    return json.loads((job.folder / "reason.json").read_text())


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.dcm")}


def test_a_study_comes_back_with_results_that_refer_to_it(config: NodeConfig, detector: Detector) -> None:
    study = generate_uid()
    files = pacs.scan_files(study)
    came: list[Dataset] = []
    with (
        pacs.storage_scp(lambda data: came.append(data) or SUCCESS) as port,
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        assert pacs.send(files, node.receiver.port) == [SUCCESS] * len(files)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE
    assert {data.Modality for data in came} == {"SEG", "OT", "SR"}
    assert {data.StudyInstanceUID for data in came} == {study}
    assert {data.PatientID for data in came} == {"7"}
    seg = next(data for data in came if data.Modality == "SEG")
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {data.SOPInstanceUID for data in files}
    assert len(seg.SegmentSequence) == 1


def test_what_is_kept_is_what_was_sent(config: NodeConfig, detector: Detector) -> None:
    files = pacs.scan_files(generate_uid())
    with pacs.running(config, detector) as node:
        pacs.send(files, node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    kept = [dcmread(path) for path in job.images.glob("*.dcm")]
    assert sorted(kept, key=lambda data: data.InstanceNumber) == files


def test_the_same_study_again_does_nothing_and_one_with_a_new_image_is_looked_at_again(
    config: NodeConfig, detector: Detector
) -> None:
    study = generate_uid()
    files = pacs.scan_files(study)
    came: list[Dataset] = []
    with (
        pacs.storage_scp(lambda data: came.append(data) or SUCCESS) as port,
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        pacs.send(files[:-1], node.receiver.port)
        pacs.wait_for(ended(node))
        assert len(came) == 3
        pacs.send(files[:-1], node.receiver.port)
        pacs.send([*came], node.receiver.port)  # as an archive's rules may do
        pacs.wait_for(ended(node))
        assert (len(came), len(node.store.jobs(DONE, QUARANTINE))) == (3, 2)
        pacs.send(files[-1:], node.receiver.port)
        pacs.wait_for(lambda: len(came) == 6)
        pacs.wait_for(ended(node))
    seg = next(data for data in reversed(came) if data.Modality == "SEG")
    referred = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len(referred) == len(files)  # with those that came before
    # What is no image was kept too.
    others = [job for job in node.store.jobs(DONE) if job.record.others and not job.record.images]
    assert [sorted(job.record.others) for job in others] == [sorted(str(data.SOPInstanceUID) for data in came[:3])]


def test_another_series_of_a_study_does_not_make_its_results_again(config: NodeConfig, detector: Detector) -> None:
    study = generate_uid()
    came: list[Dataset] = []
    with (
        pacs.storage_scp(lambda data: came.append(data) or SUCCESS) as port,
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        pacs.send(pacs.scan_files(study), node.receiver.port)
        pacs.wait_for(ended(node))
        pacs.send(pacs.scan_files(study, "T1 axial"), node.receiver.port)
        pacs.wait_for(lambda: len(node.store.jobs(DONE)) == 2)
    assert len(came) == 3
    assert "as it was" in node.store.jobs(DONE)[-1].record.note


def test_an_image_that_changed_takes_the_place_of_the_earlier_one_which_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "node")
    study = generate_uid()
    first, second = (dicoms.image(dicoms.voxels((4, 5), seed), StudyInstanceUID=study) for seed in (1, 2))
    second.SOPInstanceUID = first.SOPInstanceUID
    for number, data in enumerate((first, second, second)):
        store.add(dicoms.save(data, tmp_path / f"{number}.dcm").read_bytes())
    job = store.complete(study)
    assert job is not None
    assert list(files_in(job.images).values()) == [(tmp_path / "1.dcm").read_bytes()]
    assert list(files_in(job.folder / "replaced").values()) == [(tmp_path / "0.dcm").read_bytes()]


def test_a_study_of_which_nothing_came_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "node")
    (tmp_path / "node" / "incoming" / "1.2.3" / "images").mkdir(parents=True)  # as a node leaves that is killed there
    assert store.complete("1.2.3") is None
    assert (store.incoming(), store.jobs()) == ([], [])


def test_a_file_that_cannot_be_read_any_more_is_kept(tmp_path: Path) -> None:
    study = generate_uid()
    data = dicoms.image(dicoms.voxels((4, 5)), StudyInstanceUID=study)
    content = dicoms.save(data, tmp_path / "one.dcm").read_bytes()
    store = Store(tmp_path / "node")
    store.add(content)
    store.complete(study)
    store.add(content)
    broken = tmp_path / "node" / "incoming" / study / "images" / "9.9.dcm"
    broken.write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    assert store.complete(study) is None
    assert [path.name for path in (tmp_path / "node").glob("done/*/images/*")] == ["9.9.dcm"]


@pytest.mark.parametrize(
    ("called", "calling", "address"),
    [("OTHER", "PACS", None), ("ANOMALY", "STRANGER", None), ("ANOMALY", "PACS", "10.1.2.3")],
    ids=["another title called", "a title that is no peer", "another address"],
)
def test_who_is_no_peer_is_rejected_and_the_log_says_why(
    config: NodeConfig, detector: Detector, called: str, calling: str, address: str | None
) -> None:
    assert config.listen is not None
    config = replace(config, listen=replace(config.listen, peers=[Peer("PACS", address)]))
    with pacs.running(config, detector) as node:
        files = pacs.scan_files(generate_uid())[:1]
        assert pacs.send(files, node.receiver.port, called=called, calling=calling) == [None]
        assert node.store.incoming() == []
    why = "who calls OTHER; this node is ANOMALY" if called == "OTHER" else "who is no peer"
    assert why in (Path(config.folder) / "node.log").read_text()


def test_everybody_may_send_where_the_configuration_says_so(config: NodeConfig, detector: Detector) -> None:
    assert config.listen is not None
    config = replace(config, listen=replace(config.listen, peers=[Peer("*")]))
    with pacs.running(config, detector) as node:
        assert pacs.send(pacs.scan_files(generate_uid())[:1], node.receiver.port, calling="ANY") == [SUCCESS]


def test_the_node_answers_to_an_echo(config: NodeConfig, detector: Detector) -> None:
    with pacs.running(config, detector) as node:
        there = Destination(ae_title="ANOMALY", address="127.0.0.1", port=node.receiver.port, calling_ae_title="PACS")
        assert check_destinations(replace(config, destinations={"node": there})) == {"node": ""}
        stranger = replace(there, calling_ae_title="STRANGER")
        assert "rejected" in check_destinations(replace(config, destinations={"node": stranger}))["node"]


def test_a_check_finds_a_port_that_is_taken_and_a_folder_that_cannot_be_made(
    config: NodeConfig, tmp_path: Path
) -> None:
    assert config.listen is not None
    assert check_own(config) == {"folder": "", "listen": ""}
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = replace(config.listen, port=taken.getsockname()[1])
        found = check_own(replace(config, folder=str(tmp_path / "file" / "node"), listen=listen))
    assert "cannot be written to" in found["folder"] and str(listen.port) in found["listen"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"StudyInstanceUID": None}, CANNOT_UNDERSTAND),
        ({"StudyInstanceUID": "../../../../etc"}, CANNOT_UNDERSTAND),
        ({"StudyInstanceUID": "1." * 40 + "1"}, CANNOT_UNDERSTAND),
        ({}, SUCCESS),
    ],
    ids=["none", "a path", "too long", "whole"],
)
def test_a_study_uid_that_is_none_is_refused(
    config: NodeConfig, detector: Detector, change: dict[str, Any], status: int
) -> None:
    data = dicoms.changed(pacs.scan_files(generate_uid())[0], **change)
    with pacs.running(config, detector) as node:
        assert pacs.send([data], node.receiver.port) == [status]
        stored = list(Path(config.folder).rglob("*.dcm"))
    assert len(stored) == (status == SUCCESS)


def test_a_transfer_syntax_that_nobody_knows_is_not_accepted(config: NodeConfig, detector: Detector) -> None:
    data = pacs.scan_files(generate_uid())[0]
    with pacs.running(config, detector) as node:
        from pynetdicom import AE

        entity = AE(ae_title="PACS")
        entity.add_requested_context(data.SOPClassUID, ["1.2.3.4.5", "1.2.840.10008.1.2.4.102"])
        association = entity.associate("127.0.0.1", node.receiver.port, ae_title="ANOMALY")
        assert not association.accepted_contexts
        association.abort()
        assert pacs.send([data], node.receiver.port) == [SUCCESS]  # it goes on


def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with little space; skipped where it cannot be had."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


small_disk = pytest.fixture(full)


def test_a_full_disk_is_told_to_the_sender(config: NodeConfig, detector: Detector, small_disk: Path) -> None:
    files = pacs.scan_files(generate_uid(), seed=1)
    for data in files:
        data.PixelData = bytes(1 << 14)
        data.Rows, data.Columns = 128, 64
    config = replace(config, folder=str(small_disk / "node"), complete_after_s=60)
    with pacs.running(config, detector) as node:
        statuses = pacs.send(files, node.receiver.port)
        (study,) = node.store.incoming()
        stored = list((node.store.folder / "incoming" / study / "images").glob("*.dcm"))
    assert 0 < statuses.count(SUCCESS) < len(files)
    assert set(statuses) == {SUCCESS, OUT_OF_RESOURCES}
    assert {dcmread(path).SOPInstanceUID for path in stored} == {
        data.SOPInstanceUID for data, status in zip(files, statuses, strict=True) if status == SUCCESS
    }


def test_nothing_is_taken_when_less_space_is_left_than_asked_for(config: NodeConfig, detector: Detector) -> None:
    free = shutil.disk_usage(Path(config.folder).parent).free
    with pacs.running(replace(config, least_free_mb=2 * free / 1e6), detector) as node:
        assert pacs.send(pacs.scan_files(generate_uid())[:1], node.receiver.port) == [OUT_OF_RESOURCES]


def test_a_folder_that_cannot_be_written_to_is_told_to_the_sender(
    config: NodeConfig, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pacs.running(config, detector) as node:
        shutil.rmtree(node.store.folder / "incoming")
        (node.store.folder / "incoming").write_text("no folder")
        assert pacs.send(pacs.scan_files(generate_uid())[:1], node.receiver.port) == [OUT_OF_RESOURCES]


def with_gap(study: str) -> list[Dataset]:
    files = pacs.scan_files(study)
    return [*files[:2], *files[3:]]


def of_two_patients(study: str) -> list[Dataset]:
    return [*pacs.scan_files(study), *pacs.scan_files(study, "T1 axial", PatientID="8")]


def cut_short(study: str) -> list[Dataset]:
    return [dicoms.changed(data, PixelData=b"12") for data in pacs.scan_files(study)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda study: pacs.scan_files(study, "T2 axial"), "no series that is FLAIR"),
        (lambda study: pacs.scan_files(study, ImageType=["DERIVED", "SECONDARY"]), "no series that is FLAIR"),
        (lambda study: pacs.scan_files(study, Modality="CT"), "no series that is FLAIR"),
        (with_gap, "missing"),
        (of_two_patients, "2 patients"),
        (cut_short, "2 bytes of pixels"),
    ],
    ids=["another contrast", "derived", "another modality", "a slice is missing", "two patients", "no pixels"],
)
def test_what_cannot_be_looked_at_goes_into_quarantine_with_the_reason(
    config: NodeConfig, detector: Detector, make: Callable[[str], list[Dataset]], said: str
) -> None:
    study = generate_uid()
    files = make(study)
    with pacs.running(config, detector) as node:
        assert set(pacs.send(files, node.receiver.port)) == {SUCCESS}
        (job,) = pacs.wait_for(ended(node))
        told = reason(node)
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)  # the next one is looked at
        pacs.wait_for(lambda: node.store.jobs(DONE))
    assert (job.state, told["code"], told["came_from"]) == (QUARANTINE, "bad_input", QUEUE)
    assert said in told["what"] + told["hint"]
    assert len(files_in(job.images)) == len(files)


FLAIR, T1, CT, FILM = (
    ("t2_tirm_tra_dark-fluid", {}),
    ("t1_mprage", {}),
    ("Kopf nativ", {"Modality": "CT"}),
    ("Thorax", {"Modality": "DX"}),
)


@pytest.mark.parametrize(
    ("channels", "patterns", "chosen"),
    [
        (["FLAIR"], {}, [FLAIR]),
        (["T1", "FLAIR"], {}, [T1, FLAIR]),
        (["CT"], {}, [CT]),
        (["X-ray"], {}, [FILM]),
        (["T1", "FLAIR"], {"t1": "KOPF*"}, [CT, FLAIR]),
        (["T2"], {}, None),
        (["FLAIR", "T1"], {"T1": "*dark*"}, None),
    ],
)
def test_the_series_of_each_contrast_is_found(
    tmp_path: Path, channels: list[str], patterns: dict[str, str], chosen: list[Any] | None
) -> None:
    study = generate_uid()
    series = {about[0]: pacs.scan_files(study, about[0], **about[1]) for about in (FLAIR, T1, CT, FILM)}
    dicoms.write(tmp_path, *series.values())
    if chosen is None:
        with pytest.raises(InputError, match=r"no series that is T2|are both"):
            choose_sources(tmp_path, channels, patterns)
        return
    sources, _, notes = choose_sources(tmp_path, channels, patterns)
    assert [source.which for source in sources.values()] == [series[name][0].SeriesInstanceUID for name, _ in chosen]
    assert (list(sources), notes) == (channels, [])


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"])
def test_transfer_syntaxes_that_the_engine_reads_are_accepted(
    config: NodeConfig, detector: Detector, tmp_path: Path, syntax: str
) -> None:
    kinds = {"1.2.840.10008.1.2": gdcm.TransferSyntax.ImplicitVRLittleEndian}
    kinds["1.2.840.10008.1.2.5"] = gdcm.TransferSyntax.RLELossless
    kinds["1.2.840.10008.1.2.4.90"] = gdcm.TransferSyntax.JPEG2000Lossless
    plain = pacs.scan_files(generate_uid())
    files = [dcmread(dicoms.compressed(data, kinds[syntax], tmp_path / f"{k}.dcm")) for k, data in enumerate(plain)]
    assert {data.file_meta.TransferSyntaxUID for data in files} == {syntax}
    with pacs.running(config, detector) as node:
        assert set(pacs.send(files, node.receiver.port)) == {SUCCESS}
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE and job.record.made_of


def test_a_contrast_that_the_model_does_not_know_is_named(config: NodeConfig, detector: Detector) -> None:
    with pytest.raises(InputError, match="does not know T7"):
        Node(replace(config, series={"flair": "*", "T7": "*"}), detector)


def test_a_study_moved_back_into_the_queue_is_looked_at_and_sent_again(config: NodeConfig, detector: Detector) -> None:
    came: list[Dataset] = []
    with (
        pacs.storage_scp(lambda data: came.append(data) or SUCCESS) as port,
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        os.rename(job.folder, node.store.folder / QUEUE / job.name)
        pacs.wait_for(lambda: len(came) == 6)
        (job,) = pacs.wait_for(ended(node))
        assert job.state == DONE
        # Without results there is nothing to send: it is looked at first.
        shutil.rmtree(job.results)
        os.rename(job.folder, node.store.folder / SENDING / job.name)
        pacs.wait_for(lambda: len(came) == 9)


def test_a_destination_that_does_not_answer_holds_up_no_other(config: NodeConfig, detector: Detector) -> None:
    came: list[Dataset] = []
    with pacs.storage_scp(lambda data: came.append(data) or SUCCESS) as port:
        there = {"gone": Destination(ae_title="GONE", address="127.0.0.1", port=pacs.free_port()), **to(port)}
        with pacs.running(replace(config, destinations=there), detector) as node:
            pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
            (job,) = pacs.wait_for(lambda: node.store.jobs(SENDING))
            pacs.wait_for(lambda: len(node.store.jobs(SENDING)[0].delivery("pacs").sent) == 3)
            pacs.wait_for(lambda: node.store.jobs(SENDING)[0].delivery("gone").tries)
    assert (len(came), job.state) == (3, SENDING)


def test_a_model_of_several_contrasts_gets_the_series_of_each(config: NodeConfig, tmp_path: Path) -> None:
    model = pacs.tiny_model(tmp_path / "two", channels=["FLAIR", "T1"], modality="FLAIR + T1")
    study = generate_uid()
    flair, t1 = pacs.scan_files(study, "FLAIR"), pacs.scan_files(study, "T1", seed=1)
    with pacs.running(config, Detector(Options("intensity", device="cpu"), bundle=model)) as node:
        pacs.send([*t1, *flair], node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE
    seg = dcmread(job.results / "dicom" / "segmentation.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == flair[0].SeriesInstanceUID
    assert f"T1 is series {t1[0].SeriesInstanceUID}" in log_of(config)


def test_a_slice_that_comes_later_takes_the_study_out_of_quarantine(config: NodeConfig, detector: Detector) -> None:
    files = pacs.scan_files(generate_uid())
    with pacs.running(config, detector) as node:
        pacs.send([*files[:2], *files[3:]], node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        assert job.state == QUARANTINE
        pacs.send(files[2:3], node.receiver.port)
        pacs.wait_for(lambda: [job for job in node.store.jobs(DONE) if job.record.made_of])
        jobs = pacs.wait_for(ended(node))
    assert [(len(job.record.images), job.state, bool(job.record.made_of)) for job in jobs] == [
        (5, DONE, False),
        (6, DONE, True),
    ]


def test_a_description_of_the_site_says_which_series_it_is(config: NodeConfig, detector: Detector) -> None:
    files = pacs.scan_files(generate_uid(), "Kopf tra dunkel")
    with pacs.running(replace(config, series={"flair": "*DUNKEL*"}), detector) as node:
        pacs.send(files, node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE and job.record.made_of


def test_of_several_series_the_first_in_order_is_taken(config: NodeConfig, detector: Detector) -> None:
    study = generate_uid()
    axial = pacs.scan_files(study, "t2 flair")
    sagittal = pacs.scan_files(study, "t2 flair sag", ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])
    for k, data in enumerate(sagittal):
        data.ImagePositionPatient = [str(3 * k), "0", "0"]
    with pacs.running(config, detector) as node:
        pacs.send([*sagittal, *axial], node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        log = (Path(config.folder) / "node.log").read_text()
    assert job.state == DONE
    assert dcmread(job.results / "dicom" / "findings.dcm").CurrentRequestedProcedureEvidenceSequence
    assert f"2 series could be FLAIR; {axial[0].SeriesInstanceUID} was taken" in log


@contextmanager
def failing(statuses: list[int]) -> Iterator[tuple[int, list[Dataset]]]:
    """A PACS that answers with each status once and then takes all."""
    came: list[Dataset] = []

    def answer(data: Dataset) -> int:
        status = statuses.pop(0) if statuses else SUCCESS
        if status in (SUCCESS, 0xB000):
            came.append(data)
        return status

    with pacs.storage_scp(answer) as port:
        yield port, came


@pytest.mark.parametrize(
    "statuses", [[0xA700, SUCCESS, 0x0110, 0x0213], [0xB000, 0xB000, 0xB000]], ids=["full", "warnings"]
)
def test_a_failure_that_passes_is_tried_again_and_a_warning_is_none(
    config: NodeConfig, detector: Detector, statuses: list[int]
) -> None:
    with failing(statuses) as (port, came), pacs.running(replace(config, destinations=to(port)), detector) as node:
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE
    assert sorted(data.Modality for data in came) == ["OT", "SEG", "SR"]  # each once


def test_a_failure_that_stays_goes_into_quarantine_and_goes_on_when_moved_back(
    config: NodeConfig, detector: Detector
) -> None:
    with (
        failing([SUCCESS, 0xC123]) as (port, came),
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        told = reason(node)
        assert "0xC123" in told["what"] and told["destination"] == "pacs"
        assert len(came) == 2
        os.rename(job.folder, node.store.folder / SENDING / job.name)
        pacs.wait_for(lambda: node.store.jobs(DONE))
    assert sorted(data.Modality for data in came) == ["OT", "SEG", "SR"]


def test_what_a_pacs_says_of_a_failure_is_in_the_reason_and_not_in_the_log(
    config: NodeConfig, detector: Detector
) -> None:
    status = dicoms.with_elements(Status=0xC001, ErrorComment=f"unknown patient {SECRET}")
    with (
        pacs.storage_scp(lambda data: status) as port,
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        pacs.wait_for(ended(node))
        told = reason(node)
    assert f"unknown patient {SECRET}" in told["what"]
    assert "0xC001" in log_of(config) and SECRET not in log_of(config)


def test_a_kind_that_a_pacs_does_not_accept_is_named_and_the_others_arrive(
    config: NodeConfig, detector: Detector
) -> None:
    came: list[Dataset] = []
    with (
        pacs.storage_scp(lambda data: came.append(data) or SUCCESS, accept=[SEG]) as port,
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        pacs.wait_for(ended(node))
        told = reason(node)
        assert [data.Modality for data in came] == ["SEG"]
        assert "Parametric Map Storage is not accepted" in told["what"]
        with pacs.running(
            replace(config, folder=f"{config.folder}-2", destinations=to(port, objects=["segmentation"])), detector
        ) as node:
            pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
            (job,) = pacs.wait_for(ended(node))
        assert job.state == DONE


def test_a_pacs_that_accepts_nothing_is_named(config: NodeConfig, detector: Detector) -> None:
    with (
        pacs.storage_scp(lambda data: SUCCESS, accept=[]) as port,
        pacs.running(replace(config, destinations=to(port)), detector) as node,
    ):
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        pacs.wait_for(ended(node))
        told = reason(node)
    assert "accept" in told["what"] and "Segmentation Storage" in told["what"]


@pytest.mark.parametrize("kind", ["another title", "nobody there"])
def test_an_association_that_is_refused_is_tried_until_it_is_given_up(
    config: NodeConfig, detector: Detector, kind: str
) -> None:
    with pacs.storage_scp(lambda data: SUCCESS, title="ELSE" if kind == "another title" else "PACS") as port:
        there = port if kind == "another title" else pacs.free_port()
        retry = Retry(0.1, 0.2, 1 / 3600)
        with pacs.running(replace(config, destinations=to(there), retry=retry), detector) as node:
            pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
            pacs.wait_for(ended(node))
            told = reason(node)
    assert "Given up after" in told["what"]
    assert ("rejected" if kind == "another title" else "does not answer") in told["what"]


def test_results_wait_for_a_pacs_that_comes_later(config: NodeConfig, detector: Detector) -> None:
    came: list[Dataset] = []
    port = pacs.free_port()
    with pacs.running(replace(config, destinations=to(port)), detector) as node:
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        pacs.wait_for(lambda: node.store.jobs(SENDING))
        pacs.wait_for(lambda: node.store.jobs(SENDING)[0].delivery("pacs").tries > 1)
    # The node too was away meanwhile.
    with (
        pacs.storage_scp(lambda data: came.append(data) or SUCCESS) as there,
        pacs.running(replace(config, destinations=to(there)), detector) as node,
    ):
        pacs.wait_for(lambda: node.store.jobs(DONE))
    assert len(came) == 3


def test_the_log_and_the_folders_name_no_patient(config: NodeConfig, detector: Detector) -> None:
    logging.getLogger("pydicom").warning("before")
    with pacs.running(replace(config, destinations=to(pacs.free_port())), detector) as node:
        pacs.send(pacs.scan_files(generate_uid(), PatientBirthDate="born"), node.receiver.port)
        pacs.send(pacs.scan_files(generate_uid(), "T2"), node.receiver.port)
        pacs.send(of_two_patients(generate_uid()), node.receiver.port)
        pacs.wait_for(lambda: len(node.store.jobs(SENDING, QUARANTINE)) == 3)
    text = (Path(config.folder) / "node.log").read_text()
    assert "quarantine" in text and SECRET not in text
    assert not [path for path in Path(config.folder).rglob("*") if SECRET in path.name]
    records = [path.read_text() for path in Path(config.folder).rglob("*.json")]
    assert len(records) > 4 and not [one for one in records if SECRET in one]


def test_an_association_that_is_open_keeps_a_study_from_being_complete(config: NodeConfig, detector: Detector) -> None:
    from pynetdicom import AE

    files = pacs.scan_files(generate_uid())
    with pacs.running(config, detector) as node:
        entity = AE(ae_title="PACS")
        entity.add_requested_context(files[0].SOPClassUID, files[0].file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", node.receiver.port, ae_title="ANOMALY")
        for data in files[:3]:
            association.send_c_store(data)
        time.sleep(4 * config.complete_after_s)
        for data in files[3:]:
            association.send_c_store(data)
        association.release()
        (job,) = pacs.wait_for(ended(node))
    assert len(job.record.images) == len(files)


def test_an_older_part_of_a_study_makes_way_for_all_of_it(
    config: NodeConfig, detector: Detector, tmp_path: Path
) -> None:
    study = generate_uid()
    store = Store(Path(config.folder))
    files = pacs.scan_files(study)
    for part in (files[:3], files[3:]):
        for data in part:
            store.add(dicoms.save(data, tmp_path / "one.dcm").read_bytes())
        store.complete(study)
    looker = Looker(detector, store, {}, config.retry)
    assert looker.look() and looker.look() and not looker.look()
    assert [len(job.record.images) for job in store.jobs(SENDING)] == [6]
    assert [len(job.record.images) for job in store.jobs(DONE)] == [3]


def test_a_study_that_ends_the_program_is_not_begun_for_ever(config: NodeConfig, detector: Detector) -> None:
    store, study = Store(Path(config.folder)), generate_uid()
    for data in pacs.scan_files(study):
        store.add(dicoms.save(data, Path(config.folder) / "one.dcm").read_bytes())
    job = store.complete(study)
    assert job is not None
    job.record.starts = MOST_STARTS
    job.save()
    Looker(detector, store, {}, config.retry).look()
    (job,) = store.jobs(QUARANTINE)
    assert "ended 3 times" in json.loads((job.folder / "reason.json").read_text())["what"]


def test_a_passing_failure_of_a_detection_is_tried_again(
    config: NodeConfig, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(28, "No space left on device"), MemoryError("cannot allocate memory")]
    before = detector.find_brain

    def find_brain(*given: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return before(*given)

    monkeypatch.setattr(detector, "find_brain", find_brain)
    with pacs.running(config, detector) as node:
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE and failures == []


@pytest.mark.parametrize("times", [2, 3])
def test_a_fault_of_the_program_is_tried_three_times(
    config: NodeConfig, detector: Detector, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    failures = [RuntimeError("CUDA error: unspecified launch failure")] * times
    before = detector.find_brain

    def find_brain(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return before(*given)

    monkeypatch.setattr(detector, "find_brain", find_brain)
    with pacs.running(config, detector) as node:
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert (job.state, failures) == (DONE if times == 2 else QUARANTINE, [])


def test_two_nodes_do_not_share_a_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(InputError, match="Another node"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_old_images_are_deleted_when_asked_for_and_the_study_is_still_known(
    config: NodeConfig, detector: Detector
) -> None:
    study = generate_uid()
    with pacs.running(replace(config, delete_done_after_days=0), detector) as node:
        node._next_deletion = time.monotonic() + 3600
        pacs.send(pacs.scan_files(study), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        files = [dcmread(path) for path in sorted(job.images.glob("*.dcm"))]
        node._next_deletion = 0.0
        pacs.wait_for(lambda: not job.images.exists() and not job.results.exists())
        pacs.send(files, node.receiver.port)
        pacs.wait_for(lambda: not node.store.incoming() and "without a new image" in log_of(config))
        assert [one.name for one in node.store.jobs()] == [job.name]


def log_of(config: NodeConfig) -> str:
    return (Path(config.folder) / "node.log").read_text()


@pytest.fixture
def watched(config: NodeConfig, tmp_path: Path) -> NodeConfig:
    (tmp_path / "inbox").mkdir()
    results = Destination(folder=str(tmp_path / "outbox"))
    return replace(config, listen=None, watch=Watch(str(tmp_path / "inbox")), destinations={"back": results})


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


def test_results_that_are_made_again_go_beside_the_earlier_ones(
    watched: NodeConfig, detector: Detector, tmp_path: Path
) -> None:
    dicoms.write(tmp_path / "inbox" / "a", pacs.scan_files(generate_uid()))
    with pacs.running(watched, detector) as node:
        (job,) = pacs.wait_for(lambda: node.store.jobs(DONE))
        os.rename(job.folder, node.store.folder / SENDING / job.name)  # all has arrived: nothing is to be done
        pacs.wait_for(lambda: node.store.jobs(DONE))
        assert len(list((tmp_path / "outbox").iterdir())) == 1
        time.sleep(1.1)  # results of the same second are the same, byte by byte
        os.rename(node.store.folder / DONE / job.name, node.store.folder / QUEUE / job.name)
        pacs.wait_for(lambda: len(list((tmp_path / "outbox").iterdir())) == 2)
    assert all((folder / ".complete").exists() for folder in (tmp_path / "outbox").iterdir())


def test_a_study_that_is_taken_away_does_not_end_the_node(
    config: NodeConfig, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = detector.find_brain

    def find_brain(*given: Any) -> Any:
        for job in node.store.jobs(QUEUE):
            shutil.rmtree(job.folder)
        return before(*given)

    with pacs.running(config, detector) as node:
        monkeypatch.setattr(detector, "find_brain", find_brain)
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        pacs.wait_for(lambda: "is complete" in log_of(config))
        pacs.wait_for(ended_without_a_trace(node))
        monkeypatch.undo()
        study = generate_uid()
        pacs.send(pacs.scan_files(study), node.receiver.port)
        (job,) = pacs.wait_for(lambda: node.store.jobs(DONE))
        assert job.record.study == study


def ended_without_a_trace(node: Node) -> Callable[[], bool]:
    return lambda: not node.store.incoming() and not node.store.jobs()


def test_many_senders_at_once_lose_nothing(config: NodeConfig, detector: Detector) -> None:
    studies = [generate_uid() for _ in range(3)]
    files = [data for k, study in enumerate(studies) for data in pacs.scan_files(study, seed=k)]
    order = np.random.default_rng(0).permutation(len(files) * 2) % len(files)  # each twice, in any order
    with pacs.running(config, detector) as node:
        with ThreadPoolExecutor(4) as pool:
            parts = [[files[k] for k in order[start::4]] for start in range(4)]
            statuses = list(pool.map(lambda part: pacs.send(part, node.receiver.port), parts))
        assert {status for part in statuses for status in part} == {SUCCESS}
        pacs.wait_for(lambda: {job.record.study for job in node.store.jobs(DONE) if job.record.made_of} == {*studies})
        pacs.wait_for(ended(node))
    kept = {path.stem for path in Path(config.folder).glob("done/*/images/*.dcm")}
    assert kept == {data.SOPInstanceUID for data in files}


@contextmanager
def web_service(status: int, answer: dict[str, Any] | str | None = None) -> Iterator[tuple[str, list[str]]]:
    """A DICOMweb service that answers the same to everything; its URL, and the authorisations that it was shown."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            shown.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.end_headers()
            self.wfile.write(answer.encode() if isinstance(answer, str) else json.dumps(answer or {}).encode())

        def log_message(self, *arguments: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", shown
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def failed_with(code: int) -> dict[str, Any]:
    """The answer to STOW-RS by PS3.18 Table 6.6.1-2: Failed SOP Sequence with Failure Reason."""
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [code]}}]}}


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (200, None, None),
        (202, failed_with(0xA700), Unreachable),
        (202, failed_with(0x0122), Refused),
        (503, None, Unreachable),
        (401, None, Unreachable),
        (404, None, Unreachable),
        (400, None, Refused),
        (409, None, Refused),
        (415, None, Refused),
    ],
)
def test_what_a_dicomweb_service_answers_says_whether_to_try_again(
    tmp_path: Path, status: int, answer: dict[str, Any] | None, error: type[Exception] | None
) -> None:
    path = dicoms.save(pacs.scan_files(generate_uid())[0], tmp_path / "one.dcm")
    with web_service(status, answer) as (url, shown):
        client = WebClient(url)
        if error is None:
            client.store(path)
        else:
            with pytest.raises(error, match=r"one\.dcm, failure reason 0x0122|did not store one\.dcm|HTTP status"):
                client.store(path)
    assert len(shown) == 1  # nothing is repeated behind the node's back


def test_an_answer_that_is_not_dicomweb_is_named(tmp_path: Path) -> None:
    path = dicoms.save(pacs.scan_files(generate_uid())[0], tmp_path / "one.dcm")
    with web_service(200, "<html>log in here</html>") as (url, _):
        client = WebClient(url)
        with pytest.raises(Unreachable, match="not DICOMweb"):
            client.store(path)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, ""),
        ({"user": "anomaly", "password_variable": "PACS_SECRET"}, "Basic YW5vbWFseTpvcGVu"),  # RFC 7617
        ({"token_variable": "PACS_SECRET"}, "Bearer open"),
    ],
)
def test_secrets_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("PACS_SECRET", "open")
    path = dicoms.save(pacs.scan_files(generate_uid())[0], tmp_path / "one.dcm")
    with web_service(200) as (url, shown):
        WebClient.of(Destination(url=url, **entries)).store(path)
    assert shown == [expected]
    monkeypatch.delenv("PACS_SECRET")
    if entries:
        with pytest.raises(InputError, match="PACS_SECRET is not set"):
            WebClient.of(Destination(url="http://nowhere", **entries))


def test_a_port_that_is_taken_is_named_and_logged(config: NodeConfig, detector: Detector, tmp_path: Path) -> None:
    assert config.listen is not None
    with pacs.running(config, detector) as node:
        taken = replace(config.listen, port=node.receiver.port)
        other = replace(config, folder=str(tmp_path / "other"), listen=taken)
        with pytest.raises(InputError, match=f"Port {taken.port} of 127.0.0.1"), logged(tmp_path / "other.log"):
            Node(other, detector).run()
    assert f"ERROR ended: Port {taken.port}" in (tmp_path / "other.log").read_text()
    Store(tmp_path / "other").close()  # it has left its folder


@pytest.mark.parametrize("place", ["", "node", "node/inbox"])
def test_a_node_does_not_watch_its_own_folder(
    config: NodeConfig, detector: Detector, tmp_path: Path, place: str
) -> None:
    (tmp_path / "node" / "inbox").mkdir(parents=True)
    with pytest.raises(InputError, match="lie in each other"):
        Node(replace(config, watch=Watch(str(tmp_path / place))), detector)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Of both sides, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return Tls(cert, key, cert)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom's, of a failed handshake
def test_associations_are_encrypted_where_asked_for(config: NodeConfig, detector: Detector, certificate: Tls) -> None:
    assert config.listen is not None
    config = replace(config, listen=replace(config.listen, tls=certificate))
    with pacs.running(config, detector) as node:
        there = Destination(
            ae_title="ANOMALY", address="127.0.0.1", port=node.receiver.port, calling_ae_title="PACS", tls=certificate
        )
        plain = replace(there, tls=None)
        unknown = replace(there, tls=Tls(authorities=certificate.authorities))  # shows no certificate of its own
        answers = check_destinations(replace(config, destinations={"tls": there, "plain": plain, "unknown": unknown}))
    gc.collect()
    assert answers["tls"] == ""
    assert answers["plain"] and answers["unknown"]


def test_pixels_are_those_that_were_sent(config: NodeConfig, detector: Detector) -> None:
    """Read through the engine, the stored series is the array that was made."""
    from diffusion_anomaly.io.volume import read_volume

    files = pacs.scan_files(generate_uid())
    with pacs.running(config, detector) as node:
        pacs.send(list(reversed(files)), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(read_volume(job.images).image)
    assert np.array_equal(values, np.stack([data.pixel_array for data in files]))
