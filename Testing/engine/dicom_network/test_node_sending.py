"""Results on their way to a PACS, a DICOMweb service or a folder, and what happens when something there fails."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import dicoms
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.errors import InputError

pytest.importorskip("pynetdicom", reason="needs the extra dicom-node")
pacs = pytest.importorskip("pacs")

from diffusion_anomaly.dicom_network.config import (  # noqa: E402
    Destination,
    NodeConfig,
    Retry,
)
from diffusion_anomaly.dicom_network.refusals import Refused, Unreachable  # noqa: E402
from diffusion_anomaly.dicom_network.store import DONE, QUARANTINE, QUEUE, SENDING  # noqa: E402
from diffusion_anomaly.dicom_network.web import WebClient  # noqa: E402
from pacs import SUCCESS, ended, log_of, of_two_patients, reason, to  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_report")


SEG = "1.2.840.10008.5.1.4.1.1.66.4"


SECRET = "Secret"


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
