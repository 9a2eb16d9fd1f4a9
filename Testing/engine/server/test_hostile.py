"""Requests that want what they may not have: none is let in, and nothing of them stays."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import socket
import ssl
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from workers import wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import servers
from diffusion_anomaly.server.spool import JOBS
from servers import QUICK, SECONDS, Served, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer

VOXELS = bytes(60)
PATHS = (
    "/",
    "/v1",
    "/v1/",
    "/v1/jobs",
    "/v1/jobs/",
    "/docs",
    "/openapi.json",
    "/redoc",
    "/tokens.json",
    "/key.pem",
    "/../tokens.json",
    "/v1/../../tokens.json",
    "/v1/jobs/..",
    "/v1/jobs/../../tokens.json",
    "/v1/jobs/%2e%2e/%2e%2e/tokens.json",
    "/v1/jobs/..%2f..%2ftokens.json",
    "/v1/jobs/%2e%2e%2f%2e%2e%2fkey.pem/events",
    "/v1/jobs/..%5c..%5ctokens.json/events",
    "/v1/jobs/%252e%252e%252ftokens.json/events",
    "/v1/jobs/%00/events",
    "/v1/jobs/{job}",
    "/v1/jobs/{job}/",
    "/v1/jobs/{job}/../../../tokens.json",
    "/v1/jobs/{job}/results",
    "/v1/jobs/{job}/results/",
    "/v1/jobs/{job}/results/heat",
    "/v1/jobs/{job}/results/..%2fjob.json",
    "/v1/jobs/{job}/results/%2e%2e%2f%2e%2e%2f%2e%2e%2ftokens.json",
    "/v1/jobs/{job}/results/../../../key.pem",
    "/v1/jobs/{job}/results/%2fetc%2fpasswd",
    "/v1/jobs/{job}/inputs/0",
    "/v1/jobs/{job}/inputs/../job.json",
    "/v1/jobs/{job}/inputs/-1",
    "/v1/jobs/{job}/inputs/00000000000000000000",
    "/v1/jobs/{job}/inputs/1e9",
    "/v1/jobs/{job}/inputs/%D9%A1",
    "//etc/passwd",
    "/etc/passwd",
    "https://127.0.0.1/v1/models/../jobs",
    "/v1/models/../../../../etc/passwd",
    "/v1/health/../models/x",
    "/v1/MODELS",
)


@pytest.fixture
def served(tmp_path: Path, offer: Offer) -> Iterator[Served]:
    """Whoever says nothing is cut soon."""
    with Served(tmp_path / "server", offer, replace(QUICK, header_seconds=3.0)) as server:
        yield server


@pytest.fixture
def snapshot(served: Served) -> Iterator[None]:
    """Nothing may stay but what was there, and the server must still answer."""
    before = {*served.folder.rglob("*"), served.folder / "tokens.json"}
    yield
    wait_until(lambda: not served.leftovers, SECONDS)
    assert {*served.folder.rglob("*")} <= before
    assert not served.notes.exists()  # no worker was given anything
    assert served.ask(request("GET", "/v1/health"))[0] == 200


def refused(served: Served, *parts: bytes) -> int:
    status, answer = served.ask(*parts)
    assert status == 0 or 400 <= status < 600, answer
    assert status != 500, answer
    for secret in (b"PRIVATE KEY", b"root:", b'"made"', str(served.folder).encode(), b"Traceback"):
        assert secret not in answer
    return status


def wrong_tokens(good: str) -> list[str | None]:
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    guesses = ["da_" + "".join(generator.choices(letters, k=43)) for _ in range(40)]
    digest = hashlib.sha256(good.encode()).hexdigest()
    near = [good[:-1], good + "x", good.upper(), good[::-1], digest, f"{good} {good}", f'"{good}"', "", "*", "null"]
    return [None, *guesses, *near, "x" * 5000, "\xff\xfe", "da_' OR 1=1 --", "../tokens.json", "Basic YTpi"]


@pytest.mark.usefixtures("snapshot")
def test_no_request_without_a_good_token_is_let_in(served: Served) -> None:
    good = served.tokens.add("anna")
    name = "0" * 32
    body = json.dumps(servers.order_json()).encode()
    count: Counter[int] = Counter()
    for token in wrong_tokens(good):
        for method, path, content in (
            ("GET", "/v1/models", b""),
            ("POST", "/v1/jobs", body),
            ("PUT", f"/v1/jobs/{name}/inputs/0", VOXELS),
            ("GET", f"/v1/jobs/{name}/events", b""),
            ("DELETE", f"/v1/jobs/{name}", b""),
        ):
            count[refused(served, request(method, path, token, content))] += 1
    assert count[401] > 250 and count.keys() <= {401, 400}


def test_a_header_that_is_sent_twice_lets_nobody_in(served: Served) -> None:
    good = served.tokens.add("anna")
    for second in (good, "da_other"):
        assert refused(served, request("GET", "/v1/models", good, Authorization=f"Bearer {second}")) == 401
    basic = request("GET", "/v1/models", None, Authorization=f"Basic {good}")
    assert refused(served, basic) == 401
    assert refused(served, request("GET", f"/v1/models?token={good}")) == 401


@pytest.mark.usefixtures("snapshot")
def test_no_path_leads_anywhere(served: Served) -> None:
    anna, ben = served.tokens.add("anna"), served.tokens.add("ben")
    job = servers.opened(served, anna)
    for path in PATHS:
        others = ("HEAD", "PATCH", "OPTIONS", "TRACE", "PROPFIND") if path == PATHS[-1] else ()
        for method in ("GET", "PUT", "DELETE", *others):
            for token in (anna, ben) if "{job}" in path else (anna,):
                mine = token == anna
                address = path.format(job=job)
                if mine and (method, path) in (
                    ("GET", "/v1/jobs/{job}"),
                    ("DELETE", "/v1/jobs/{job}"),
                    ("PUT", "/v1/jobs/{job}/inputs/0"),
                ):
                    continue  # what its owner may do
                assert refused(served, request(method, address, token)) in (400, 404, 405)
    assert [path.name for path in served.leftovers] == [job]
    assert served.ask(request("DELETE", f"/v1/jobs/{job}", anna))[0] == 200


def orders() -> Iterator[bytes]:
    """What is no order."""
    whole = servers.order_json()

    def changed(**changes: Any) -> bytes:
        return json.dumps({**whole, "inputs": [{**whole["inputs"][0], **changes}]}).encode()

    yield from (b"", b"{", b"[]", b"null", b"1e999", b'"order"', b"\xff\xfe", b"\x00" * 100, b"[" * 30_000)
    yield from (b'{"inputs": [], "inputs": []}', b'{"inputs": NaN}', gzip.compress(b"{}"), b"PK\x03\x04" + bytes(30))
    for key, values in {
        "size": (
            [],
            [0, 1, 1],
            [-5, 4, 3],
            [5, 4],
            [5, 4, 3, 1],
            [1 << 62, 1, 1],
            [8192] * 3,
            ["5", 4, 3],
            [5.0, 4, 3],
        ),
        "spacing": ([], [1, 1], ["1", 1, 1], [None, 1, 1], [True, 1, 1]),
        "direction": ([1] * 8, "identity", [[1, 0, 0]] * 3),
        "origin": ([0, 0], [0, 0, "../x"]),
        "type": ("object", "complex64", "int64", "uint8\nElementDataFile = /etc/passwd", "../uint8", "", "MET_UCHAR"),
        "kind": ("file", "../../scan", "", "MASK"),
        "channel": ("a\nElementDataFile = /etc/passwd", "x" * 65, "\u202e", "\x00", "T1\r\n"),
        "sha256": ("", "0" * 63, "g" * 64, "0" * 64 + "\n"),
        "path": ("/etc/passwd",),
        "name": ("patient",),
    }.items():
        for value in values:
            yield changed(**{key: value})
    for entry in (
        {"model": "/etc"},
        {"model": "../toy"},
        {"model": "toy\x00"},
        {"model": "flair-localise"},
        {"model": {"path": "/"}},
        {"method": "os.system"},
        {"method": "../intensity"},
        {"method": "guided"},
        {"model_sha256": "0" * 64},
        {"version": 2},
        {"output": "/etc"},
        {"inputs": whole["inputs"] * 2},
        {"inputs": whole["inputs"] * 1000},
        {"inputs": [[]]},
        {"options": {"device": "cuda:0"}},
        {"options": {"batch_size": 10**9}},
        {"options": {"anonymous": False}},
        {"options": {"model": "/etc"}},
        {"options": {"steps": "10; rm -rf /"}},
        {"options": {"seed": -1}},
        {"options": {"seed": 10**30}},
        {"options": {"threshold": 0}},
        {"options": {"overrides": []}},
        {"options": {"__class__": "x"}},
        {"options": []},
    ):
        yield json.dumps({**whole, **entry}).encode()


@pytest.mark.usefixtures("snapshot")
def test_no_order_that_is_none_is_taken(served: Served) -> None:
    token = served.tokens.add("anna")
    for body in orders():
        cut = (0,) if len(body) > served.limits.order_bytes else ()  # the answer may be lost with the rest of the body
        assert refused(served, request("POST", "/v1/jobs", token, body)) in (400, 413, 422, *cut), body[:200]


@pytest.mark.usefixtures("snapshot")
def test_orders_at_random_are_refused_or_whole(served: Served) -> None:
    token = served.tokens.add("anna")
    generator = random.Random(1)
    body = bytearray(json.dumps(servers.order_json()).encode())
    for _ in range(280):
        mutated = bytearray(body)
        for _ in range(generator.randint(1, 4)):
            mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        status, answer = served.ask(request("POST", "/v1/jobs", token, bytes(mutated)))
        if status == 201:  # such as another spacing
            name = json.loads(answer.partition(b"\r\n\r\n")[2])["job"]
            assert served.ask(request("DELETE", f"/v1/jobs/{name}", token))[0] == 200
        else:
            assert status in (400, 413, 422), answer


@pytest.mark.usefixtures("snapshot")
def test_what_is_too_large_is_refused_unread(served: Served) -> None:
    token = served.tokens.add("anna")
    huge = json.dumps(servers.order_json(size=[8000, 8000, 8000])).encode()
    assert refused(served, request("POST", "/v1/jobs", token, huge)) == 413
    stated = request("POST", "/v1/jobs", token, b"{", content_length=str(1 << 40))
    assert refused(served, stated) == 413
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    head = request("POST", "/v1/jobs", token, Transfer_Encoding="chunked")
    assert refused(served, head, *[chunk] * 8) in (413, 0)
    job = servers.opened(served, token)
    target = f"/v1/jobs/{job}/inputs/0"
    assert refused(served, request("PUT", target, token, b"x", content_length=str(1 << 50))) == 413
    assert refused(served, request("PUT", target, token, bytes(61))) in (413, 422)
    assert refused(served, request("PUT", target, token, Transfer_Encoding="chunked"), *[chunk] * 8) in (413, 422, 0)
    assert refused(served, request("GET", "/v1/models", None, X="y" * 40_000)) in (400, 401, 0)
    assert refused(served, b"GET /" + b"a" * 40_000) in (400, 0)
    served.ask(request("DELETE", f"/v1/jobs/{job}", token))


def bombs() -> Iterator[tuple[str, bytes]]:
    """Bodies that are no voxels."""
    whole = gzip.compress(VOXELS)
    yield "identity", bytes(59)
    yield "identity", bytes([1] * 60)
    yield "identity", b""
    yield "gzip", b""
    yield "gzip", VOXELS
    yield "gzip", whole[:-1]
    yield "gzip", whole[:12]
    yield "gzip", whole + b"more"
    yield "gzip", whole + whole
    yield "gzip", whole[:-8] + bytes(8)
    yield "gzip", gzip.compress(bytes(61))
    yield "gzip", gzip.compress(bytes(200_000))[:900]
    yield "gzip", b"PK\x03\x04" + bytes(56)
    yield "br", VOXELS
    yield "gzip, gzip", whole
    yield "../../x", VOXELS
    generator = random.Random(2)
    for _ in range(60):
        damaged = bytearray(gzip.compress(generator.randbytes(60)))
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        yield "gzip", bytes(damaged)


@pytest.mark.usefixtures("snapshot")
def test_damaged_and_swelling_bodies_leave_nothing(served: Served) -> None:
    token = served.tokens.add("anna")
    job = servers.opened(served, token)
    for encoding, body in bombs():
        message = request("PUT", f"/v1/jobs/{job}/inputs/0", token, body, Content_Encoding=encoding)
        if not body:
            message = request("PUT", f"/v1/jobs/{job}/inputs/0", token, Content_Encoding=encoding, Content_Length="0")
        assert refused(served, message) in (413, 415, 422)
        assert [path.name for path in served.leftovers] == [job]
    served.ask(request("DELETE", f"/v1/jobs/{job}", token))


def test_a_bomb_is_inflated_no_further_than_was_promised(tmp_path: Path) -> None:
    from diffusion_anomaly.client.wire import order_of
    from diffusion_anomaly.server.spool import VoxelFile, WrongBody

    (header,) = order_of(servers.order_json()).inputs
    file = VoxelFile(tmp_path / "input.mha", header, True)
    taken: list[int] = []
    take = file._take
    file._take = lambda data: (taken.append(len(data)), take(data))[1]  # type: ignore[method-assign]
    with pytest.raises(WrongBody, match="more than the 60"):
        file.write(gzip.compress(bytes(50_000_000)))
    file.discard()
    assert sum(taken) <= 61
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("snapshot")
def test_uploads_that_are_cut_leave_nothing(served: Served) -> None:
    token = served.tokens.add("anna")
    for length in (0, 1, 30, 59):
        job = servers.opened(served, token)
        with served.raw() as connection:
            connection.sendall(request("PUT", f"/v1/jobs/{job}/inputs/0", token, bytes(length), content_length="60"))
        wait_until(lambda job=job: not (served.folder / JOBS / job / "input-0.part").exists(), SECONDS)
        assert not (served.folder / JOBS / job / "input-0.mha").exists()
        assert served.ask(request("DELETE", f"/v1/jobs/{job}", token))[0] == 200


def garbage() -> Iterator[bytes]:
    """What is no HTTP."""
    generator = random.Random(3)
    yield from (
        b"\x00" * 64,
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    yield from (b"SSH-2.0-x\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n")
    smuggled = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield from (smuggled, smuggled.replace(b"5", b"-5"), b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n")
    yield b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n"
    for _ in range(60):
        yield generator.randbytes(generator.randint(1, 300)) + b"\r\n\r\n"


@pytest.mark.usefixtures("snapshot")
def test_what_is_no_http_is_refused(served: Served) -> None:
    for message in garbage():
        assert refused(served, message) in (0, 400, 401, 404, 405)


def test_slow_requests_are_cut_and_hold_nobody_up(tmp_path: Path, offer: Offer) -> None:
    limits = replace(QUICK, header_seconds=1.0, stall_seconds=0.5, connections_an_address=60)
    with Served(tmp_path / "server", offer, limits) as served:
        token = served.tokens.add("anna")
        job = servers.opened(served, token)
        begun = (
            b"",
            b"GET /v1/mo",
            b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: y",
            request("PUT", f"/v1/jobs/{job}/inputs/0", token, content_length="60"),
            request("POST", "/v1/jobs", token, content_length="60"),
        )
        ended: list[float] = []

        def drip(first: bytes) -> None:
            start = time.monotonic()
            with served.raw() as connection:
                connection.settimeout(20)
                try:
                    connection.sendall(first)
                    while time.monotonic() - start < 15:
                        connection.sendall(b"z")
                        connection.settimeout(0.1)
                        try:
                            if not connection.recv(1000):
                                break
                        except TimeoutError:
                            continue
                except (OSError, ssl.SSLError):
                    pass
            ended.append(time.monotonic() - start)

        threads = [threading.Thread(target=drip, args=(first,)) for first in begun * 8]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert served.ask(request("GET", "/v1/models", token))[0] == 200  # meanwhile others are served
        for thread in threads:
            thread.join(SECONDS)
        assert len(ended) == 40 and max(ended) < 14
        served.ask(request("DELETE", f"/v1/jobs/{job}", token))
        assert not served.leftovers


def test_an_address_has_only_so_many_connections(tmp_path: Path, offer: Offer) -> None:
    with Served(tmp_path / "server", offer, replace(QUICK, connections_an_address=5)) as served:
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(served.raw())
            assert served.ask(request("GET", "/v1/health"))[0] == 0
        wait_until(lambda: served.ask(request("GET", "/v1/health"))[0] == 200, SECONDS)


def test_too_many_requests_are_told_to_wait(tmp_path: Path, offer: Offer) -> None:
    limits = replace(QUICK, requests_a_second=0.001, burst=5, refusals_a_minute=5)
    with Served(tmp_path / "server", offer, limits) as served:
        token, other = served.tokens.add("anna"), served.tokens.add("ben")
        assert [served.ask(request("GET", "/v1/models", token))[0] for _ in range(7)] == [200] * 5 + [429] * 2
        assert [served.ask(request("GET", "/v1/models", "da_x"))[0] for _ in range(7)] == [401] * 5 + [429] * 2
        assert served.ask(request("GET", "/v1/models", other))[0] == 200


def test_health_says_no_more_than_that(served: Served) -> None:
    status, answer = served.ask(request("GET", "/v1/health"))
    assert status == 200
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body) == {"status": "ok"}
    assert b"server:" not in head.lower()


def test_plain_http_gets_no_answer(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=SECONDS) as connection:
        connection.sendall(b"GET /v1/health HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in connection.recv(1000)


def test_old_tls_is_refused(served: Served) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # the client would take it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    refused_by_peer = pytest.raises((ssl.SSLError, ConnectionError))
    with socket.create_connection(("127.0.0.1", served.port), timeout=SECONDS) as plain, refused_by_peer:
        context.wrap_socket(plain)
