"""Readers that take answers too slowly are cut, and hold neither files nor connections; steady ones get everything."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workers import wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import servers
from servers import QUICK, SECONDS, Served, finished, narrow, open_results, read, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer

LIMITS = replace(QUICK, job_bytes=20_000_000, stall_seconds=3.0, least_rate=400_000.0)
LARGE, SMALL = 12_000_000, 3_000_000  # bytes of a result, in one voxel each


@pytest.fixture
def served(tmp_path: Path, offer: Offer) -> Iterator[Served]:
    with Served(tmp_path / "server", offer, LIMITS) as server:
        yield server


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_reader_that_takes_nothing_holds_no_result(served: Served) -> None:
    token = served.tokens.add("anna")
    job = finished(served, token, LARGE)
    with narrow(served) as reader:
        reader.sendall(request("GET", f"/v1/jobs/{job}/results/heat", token))
        wait_until(lambda: bool(open_results(served)), SECONDS)
        start = time.monotonic()
        wait_until(lambda: not open_results(served), 20.0)
        assert 2.0 < time.monotonic() - start < 12.0
        # What still lies between us is all that comes.
        assert read(reader) < LARGE
    assert served.ask(request("GET", "/v1/models", token))[0] == 200


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_reader_that_takes_a_little_now_and_then_is_cut_too(served: Served) -> None:
    token = served.tokens.add("anna")
    job = finished(served, token, LARGE)
    with narrow(served) as reader:
        reader.sendall(request("GET", f"/v1/jobs/{job}/results/heat", token))
        start = time.monotonic()
        assert read(reader, rate=100_000) < LARGE
        assert time.monotonic() - start < 30.0
    assert not open_results(served)


def test_a_reader_that_is_steady_gets_all_of_a_result(served: Served) -> None:
    token = served.tokens.add("anna")
    job = finished(served, token, SMALL)
    with narrow(served) as reader:
        reader.sendall(request("GET", f"/v1/jobs/{job}/results/heat", token, Connection="close"))
        assert read(reader, rate=800_000) > SMALL


def test_a_reader_of_events_that_takes_nothing_is_cut_and_holds_no_slot(served: Served, tmp_path: Path) -> None:
    token = served.tokens.add("anna")
    order = {**servers.order_json(), "options": {"steps": 777}}  # which tells 8 MB
    answer = served.ask(request("POST", "/v1/jobs", token, json.dumps(order).encode()))[1]
    job = json.loads(answer.partition(b"\r\n\r\n")[2])["job"]
    with narrow(served) as reader:
        reader.sendall(request("GET", f"/v1/jobs/{job}/events", token))
        assert reader.recv(1000)
        assert served.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, bytes(60)))[0] == 200
        for name in ("one", "two"):  # there are two slots
            assert servers.detect(served.connection(name), tmp_path / name)
        assert read(reader, pause=9.0) < 8_000_000
    # Whoever reads finds all of it.
    assert len(served.ask(request("GET", f"/v1/jobs/{job}/events", token, Connection="close"))[1]) > 8_000_000
