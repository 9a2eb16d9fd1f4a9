"""A server on loopback over TLS for tests, clients of it, and a worker that needs no torch.

The stand-in speaks the worker's protocol and answers with copies of what it was sent, as slowly as its seed says: what
the real one does is tested with real networks elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.client.address import Server
from diffusion_anomaly.client.connection import Connection
from diffusion_anomaly.client.running import Delivered, Image, run_on_server
from diffusion_anomaly.client.wire import MASK, SCAN
from diffusion_anomaly.server.certificate import fingerprint, own_certificate, server_context
from diffusion_anomaly.server.limits import Limits
from diffusion_anomaly.server.listening import TOKENS, bind, serve
from diffusion_anomaly.server.offer import Offer
from diffusion_anomaly.server.slots import Slot
from diffusion_anomaly.server.spool import JOBS, Spool
from diffusion_anomaly.server.tokens import Tokens
from workers import make_job, wait_until

SECONDS = 60.0

STANDIN = """
import hashlib, json, os, queue, shutil, sys, threading, time
from pathlib import Path
from diffusion_anomaly.worker.protocol import (
    CANCEL_LINE, Failure, Finished, Progress, Result, Started, Warned, encode, job_of, read_job)

jobs, cancelled = queue.Queue(), threading.Event()

def say(event):
    sys.stdout.write(encode(event) + "\\n")
    sys.stdout.flush()

def listen():
    for line in map(str.strip, sys.stdin):
        if line == CANCEL_LINE:
            cancelled.set()
        else:
            jobs.put(job_of(line))
    jobs.put(None)
    cancelled.set()

def run(folder):
    job = read_job(folder)
    note(f"begin {job.options.get('seed', 0)}")
    say(Started("cpu", "stand-in", "0.1.0", 10))
    hundredths = job.options.get("seed", 0) % 10_000
    if job.options.get("steps") == 666:
        os._exit(9)
    if job.options.get("steps") == 888:  # neither says nor hears anything any more, and goes on
        os.close(1)
        time.sleep(1000)
    if job.options.get("steps") == 555:
        say(Failure("disk_full", "The disk with /secret/results is full.", "Make room on it."))
        return 2
    if job.options.get("steps") == 777:
        for number in range(10):
            say(Warned(f"{number} " + "x" * 800_000))
    for done in range(11):
        say(Progress("detect", done, 10, 0.0))
        if cancelled.wait(hundredths / 1000):
            say(Failure("cancelled", "The run was stopped: as asked."))
            return 5
    output = Path(job.output)
    output.mkdir()
    scan = job.input or next(iter(job.channels.values()))
    files = {}
    for kind in ("heat", "mask", "brain"):
        files[kind] = shutil.copy(scan, output / f"{kind}.mha")
    files["provenance"] = output / "provenance.json"
    files["provenance"].write_text(json.dumps({"options": job.options, "input": {"path": scan}}))
    note(f"end {job.options.get('seed', 0)}")
    say(Result({kind: str(path) for kind, path in files.items()}, {"where": str(folder / "results")}, {"total": 0.1}))
    return 0

def note(text):
    with open(sys.argv[1], "a") as file:
        file.write(f"{text}\\n")

threading.Thread(target=listen, daemon=True).start()
while (folder := jobs.get()) is not None:
    cancelled.clear()
    say(Finished(run(folder)))
"""
# Bounds that are met soon.
QUICK = Limits(
    job_bytes=1_000_000,
    requests_a_second=2000.0,
    burst=2000,
    refusals_a_minute=100_000,
    header_seconds=30.0,
    stall_seconds=30.0,
    heartbeat_seconds=0.1,
    reserve_bytes=0,
)


class Served:
    """A server in a thread, while it is entered.

    Args:
        folder: of the server.
        offer: its models; None for any that is asked for.
        limits: of everything.
        slots: detections at a time.
        real: whether the real worker does them.
    """

    def __init__(self, folder: Path, offer: Offer, limits: Limits = QUICK, slots: int = 2, real: bool = False) -> None:
        self.folder, self.limits = folder, limits
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "standin.py").write_text(STANDIN, encoding="utf-8")
        self.notes = folder / "notes"
        self.tokens = Tokens(folder / TOKENS)
        self._offer, self._slots, self._real = offer, slots, real
        self._certificate, self._key = own_certificate(folder, "127.0.0.1")
        self._server: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None
        self.port = 0

    def __enter__(self) -> Served:
        self._thread.start()
        wait_until(lambda: self._server is not None or self._failure is not None, SECONDS)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        command = [sys.executable, str(self.folder / "standin.py"), str(self.notes)]
        try:
            with (
                Spool(self.folder, self.limits.reserve_bytes) as spool,
                bind("127.0.0.1", 0) as listener,
            ):
                self.port = listener.getsockname()[1]
                context = server_context(self._certificate, self._key)
                slots = [Slot("cpu", 1)] * self._slots
                keywords: dict[str, Any] = {} if self._real else {"command": command}
                asyncio.run(
                    serve(listener, context, spool, self._offer, slots, self.limits, on_started=self._begun, **keywords)
                )
        except BaseException as error:  # noqa: BLE001 - raised again where the test hears it
            self._failure = error

    def _begun(self, server: Any) -> None:
        self._server = server

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._certificate)

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def leftovers(self) -> list[Path]:
        """Files of jobs that are on the disk."""
        # os.walk, since folders go while it walks.
        walked = os.walk(self.folder / JOBS)
        return sorted(Path(place, name) for place, folders, files in walked for name in (*folders, *files))

    def noted(self) -> list[str]:
        return self.notes.read_text(encoding="ascii").split("\n")[:-1] if self.notes.exists() else []

    def server(self, user: str = "anna", **changes: Any) -> Server:
        """How a user knows the server; the user's token is made."""
        return replace(Server(self.address, self.tokens.add(user), self.fingerprint), **changes)

    def connection(self, user: str = "anna", patience: float = 5.0) -> Connection:
        return Connection(self.server(user), patience)

    @contextlib.contextmanager
    def raw(self) -> Iterator[ssl.SSLSocket]:
        """A connection without a client's good manners."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as plain,
            context.wrap_socket(plain, suppress_ragged_eofs=True) as encrypted,
        ):
            yield encrypted

    def ask(self, *parts: bytes) -> tuple[int, bytes]:
        """Send bytes; the status of the answer, 0 for none, and all of it."""
        with self.raw() as connection:
            answer = b""
            try:
                for part in parts:
                    connection.sendall(part)
                while piece := connection.recv(1 << 16):
                    answer += piece
                    if _is_whole(answer):
                        break
            except (ConnectionError, ssl.SSLError):
                pass
        words = answer.split(b" ", 2)
        return (int(words[1]) if len(words) > 2 and words[1].isdigit() else 0), answer


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(end) and len(body) >= int(line.split(b":")[1])
    return False


def request(method: str, path: str, token: str | None = None, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: server"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body and "content_length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def small_image(value: int = 7) -> Image:
    """A scan of 60 voxels."""
    image = sitk.GetImageFromArray(np.full((3, 4, 5), value, np.int16))
    image.SetSpacing((1.5, 2.5, 3.5))
    return Image.of(image)


def job_images(folder: Path) -> list[Image]:
    """Scan and brain mask of ``workers.make_job``, which a real worker takes with ``side`` of ``overrides``."""
    make_job(folder)
    names = {"scan": SCAN, "brain": MASK}
    return [Image.of(sitk.ReadImage(str(folder / f"{name}.nrrd")), kind) for name, kind in names.items()]


def order_json(**changes: Any) -> dict[str, Any]:
    """An order of a small scan."""
    values = np.zeros(60, np.uint8).tobytes()
    header = {
        "kind": "scan",
        "channel": "",
        "type": "uint8",
        "size": [5, 4, 3],
        "spacing": [1.0, 1.0, 1.0],
        "origin": [0.0, 0.0, 0.0],
        "direction": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "sha256": hashlib.sha256(values).hexdigest(),
        **changes,
    }
    return {"inputs": [header], "method": "intensity", "model": "toy"}


def detect(
    connection: Connection,
    folder: Path,
    tell: Callable[[Any], None] = lambda event: None,
    stop: Callable[[], None] = lambda: None,
    images: Sequence[Image] = (),
    **options: Any,
) -> Delivered:
    """Have the stand-in look at a scan; ``seed`` is hundredths of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    order = {"method": "intensity", "model": "toy", "options": options}
    return run_on_server(connection, images or [small_image()], order, folder, tell, stop)


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """All at once; what each gave or raised."""
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive()
    return results


def opened(served: Served, token: str, options: dict[str, Any] | None = None, **changes: Any) -> str:
    """A job's name that waits for its voxels."""
    body = json.dumps({**order_json(**changes), "options": options or {}}).encode()
    status, answer = served.ask(request("POST", "/v1/jobs", token, body))
    assert status == 201, answer
    return json.loads(answer.partition(b"\r\n\r\n")[2])["job"]


def finished(served: Served, token: str, size: int) -> str:
    """A job with a result of so many bytes."""
    voxels = bytes(size)
    job = opened(served, token, size=[1000, 100, size // 100_000], sha256=hashlib.sha256(voxels).hexdigest())
    assert served.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, voxels))[0] == 200
    served.ask(request("GET", f"/v1/jobs/{job}/events", token, Connection="close"))  # until it is over
    return job


@contextlib.contextmanager
def narrow(served: Served) -> Iterator[ssl.SSLSocket]:
    """A connection of which the operating system keeps little for its reader."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
    plain.settimeout(SECONDS)
    with plain:
        plain.connect(("127.0.0.1", served.port))
        with context.wrap_socket(plain, suppress_ragged_eofs=True) as encrypted:
            yield encrypted


def read(reader: ssl.SSLSocket, rate: float = 1e9, most: int = 1 << 62, pause: float = 0.0) -> int:
    """Bytes that come until the connection ends or there are enough, taken at so many a second after a pause."""
    time.sleep(pause)
    start, came = time.monotonic(), 0
    try:
        while came < most and (piece := reader.recv(1 << 14)):
            came += len(piece)
            time.sleep(max(0.0, start + came / rate - time.monotonic()))
    except OSError:  # cut
        pass
    return came


def open_results(served: Served) -> list[str]:
    """Files of results that this process, in which the server runs, has open; also those that were deleted."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:  # closed meanwhile
            continue
        if str(served.folder / "jobs") in target:
            found.append(target)
    return found
