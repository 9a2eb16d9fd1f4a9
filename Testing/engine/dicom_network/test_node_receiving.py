"""What comes to the node: who may send, what is taken, and what a full disk or a broken folder does."""

from __future__ import annotations

import gc
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

import dicoms
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.errors import InputError

pytest.importorskip("pynetdicom", reason="needs the extra dicom-node")
pacs = pytest.importorskip("pacs")

from diffusion_anomaly.dicom_network.config import (  # noqa: E402
    Destination,
    NodeConfig,
    Peer,
    Tls,
)
from diffusion_anomaly.dicom_network.logs import logged  # noqa: E402
from diffusion_anomaly.dicom_network.node import Node, check_destinations, check_own  # noqa: E402
from diffusion_anomaly.dicom_network.store import DONE, Store  # noqa: E402
from pacs import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS, ended  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_report")


def test_what_is_kept_is_what_was_sent(config: NodeConfig, detector: Detector) -> None:
    files = pacs.scan_files(generate_uid())
    with pacs.running(config, detector) as node:
        pacs.send(files, node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    kept = [dcmread(path) for path in job.images.glob("*.dcm")]
    assert sorted(kept, key=lambda data: data.InstanceNumber) == files


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


def test_a_port_that_is_taken_is_named_and_logged(config: NodeConfig, detector: Detector, tmp_path: Path) -> None:
    assert config.listen is not None
    with pacs.running(config, detector) as node:
        taken = replace(config.listen, port=node.receiver.port)
        other = replace(config, folder=str(tmp_path / "other"), listen=taken)
        with pytest.raises(InputError, match=f"Port {taken.port} of 127.0.0.1"), logged(tmp_path / "other.log"):
            Node(other, detector).run()
    assert f"ERROR ended: Port {taken.port}" in (tmp_path / "other.log").read_text()
    Store(tmp_path / "other").close()  # it has left its folder


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
