"""Archives and studies for the tests of DICOM over the network: a real Orthanc, one that fails on command, series."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import dicoms
import packages
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.dicom_network.config import Destination, NodeConfig
from diffusion_anomaly.dicom_network.logs import logged
from diffusion_anomaly.dicom_network.node import Node
from diffusion_anomaly.dicom_network.store import DONE, QUARANTINE, QUEUE, SENDING
from diffusion_anomaly.models.package import Bundle

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
ORTHANC = shutil.which("Orthanc", path=_PATH) or shutil.which("orthanc", path=_PATH)
PLUGINS = Path("/usr/share/orthanc/plugins")
SHAPE = (6, 40, 48)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: Callable[[], Any], seconds: float = 150.0) -> Any:
    """What is true at last."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)
    return found


def tiny_model(folder: Path, **anomaly: Any) -> Bundle:
    """Looks at whole images, without a network."""
    return packages.intensity(folder, region="image", grid={"size": [40, 48], "spacing": 1.25}, **anomaly)


def scan_files(study: str, description: str = "FLAIR axial", seed: int = 0, **elements: Any) -> list[Dataset]:
    """A series of a study with a bright block amid noise."""
    pixels = dicoms.voxels(SHAPE, seed, 200)
    pixels[2:4, 15:22, 20:28] = 900
    about = {
        "StudyInstanceUID": study,
        "SeriesInstanceUID": generate_uid(),
        "SeriesDescription": description,
        "StudyDate": "20250102",
        "StudyTime": "101112",
        "StudyID": "S7",
        "SeriesNumber": "4",
        "AccessionNumber": "A1",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "ReferringPhysicianName": "",
    }
    return dicoms.classic(np.ascontiguousarray(pixels), **{**about, **elements})


class Orthanc:
    """An Orthanc with its storage in a folder; started and killed at will.

    Args:
        folder: for its storage and configuration.
        peers: DICOM nodes that it knows, as name: (AE title, port).
        settings: further entries of its configuration.
    """

    def __init__(self, folder: Path, peers: dict[str, tuple[str, int]], **settings: Any) -> None:
        self.http, self.port, self._folder = free_port(), free_port(), folder
        folder.mkdir(parents=True)
        (folder / "orthanc.json").write_text(
            json.dumps(
                {
                    "Name": "Test",
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "storage"),
                    "Plugins": [str(PLUGINS)],
                    "HttpPort": self.http,
                    "DicomPort": self.port,
                    "DicomAet": "ORTHANC",
                    "DicomCheckCalledAet": True,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomAlwaysAllowStore": True,
                    "DicomModalities": {name: [title, "127.0.0.1", port] for name, (title, port) in peers.items()},
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                    **settings,
                }
            )
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen([str(ORTHANC), str(self._folder / "orthanc.json")], stdout=log, stderr=log)
        log.close()
        wait_for(self._answers, 60)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def get(self, path: str) -> Any:
        return self._ask(path)

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def file(self, instance: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/instances/{instance}/file", timeout=60) as answer:
            return answer.read()

    def put(self, files: Sequence[Path]) -> str:
        """Import files; Orthanc's own name of their study."""
        answers = [self._ask("/instances", path.read_bytes()) for path in files]
        return answers[0]["ParentStudy"]

    def send(self, what: str, peer: str) -> None:
        """Send a study or an instance to a peer by C-STORE."""
        self._ask(f"/modalities/{peer}/store", what.encode())

    def modalities(self, study: str) -> list[str]:
        """The modalities of a study's series, in alphabetical order."""
        return sorted(series["MainDicomTags"]["Modality"] for series in self.get(f"/studies/{study}/series"))


@contextmanager
def storage_scp(
    answer: Callable[[Dataset], int], title: str = "PACS", accept: Sequence[str] | None = None
) -> Iterator[int]:
    """A PACS that answers to each instance as it is told; its port.

    Args:
        answer: gives the status of a data set.
        title: its AE title, which it insists on.
        accept: SOP classes; None for all.
    """
    from pynetdicom import AE, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    entity = AE(ae_title=title)
    entity.require_called_aet = True
    for context in AllStoragePresentationContexts:
        if accept is None or context.abstract_syntax in accept:
            entity.add_supported_context(context.abstract_syntax)
    entity.add_supported_context(Verification)

    def take(event: Any) -> int:
        data = event.dataset
        data.file_meta = event.file_meta
        return answer(data)

    handlers = [(evt.EVT_C_STORE, take), (evt.EVT_C_ECHO, lambda event: 0)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        server.server_close()


def send(
    files: Sequence[Dataset], port: int, *, called: str = "ANOMALY", calling: str = "PACS", tls: Any = None
) -> list[int | None]:
    """Send instances; the status of each, or None for each where the association was rejected."""
    from pynetdicom import AE

    entity = AE(ae_title=calling)
    for data in files:
        context = (data.SOPClassUID, data.file_meta.TransferSyntaxUID)
        if context not in [(one.abstract_syntax, one.transfer_syntax[0]) for one in entity.requested_contexts]:
            entity.add_requested_context(*context)
    association = entity.associate("127.0.0.1", port, ae_title=called, tls_args=tls)
    if not association.is_established:
        return [None] * len(files)
    try:
        return [association.send_c_store(data).get("Status") for data in files]
    finally:
        association.release()


@contextmanager
def running(config: NodeConfig, detector: Detector) -> Iterator[Node]:
    """A node at work in this process, until the body ends."""
    with logged(Path(config.folder) / "node.log"):
        node = Node(config, detector)
        failed: list[BaseException] = []

        def run() -> None:
            try:
                node.run()
            except BaseException as error:  # noqa: BLE001 - raised below
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_for(lambda: node.is_ready or failed)
            yield node
        finally:
            node.stop()
            thread.join()
        assert not failed, failed


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


def of_two_patients(study: str) -> list[Dataset]:
    return [*scan_files(study), *scan_files(study, "T1 axial", PatientID="8")]


def log_of(config: NodeConfig) -> str:
    return (Path(config.folder) / "node.log").read_text()


@contextmanager
def running_with_a_pacs(config: NodeConfig, detector: Detector) -> Iterator[tuple[Node, list[Dataset]]]:
    """A node at work, and what a PACS that takes everything has got of it."""
    came: list[Dataset] = []
    with (
        storage_scp(lambda data: came.append(data) or SUCCESS) as port,
        running(replace(config, destinations=to(port)), detector) as node,
    ):
        yield node, came
