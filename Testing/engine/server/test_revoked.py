"""A token that is taken back ends what goes on in its name: an upload, a detection, a delivery; and nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.errors import EngineError
from workers import wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import servers
from diffusion_anomaly.client.running import Image
from diffusion_anomaly.server.listening import TOKENS
from servers import QUICK, SECONDS, Served, detect, finished, narrow, open_results, read, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer

LARGE = 12_000_000  # bytes of a scan and of its result
SOON = 6.0  # seconds; without a load it is one


@pytest.fixture
def served(tmp_path: Path, offer: Offer) -> Iterator[Served]:
    """With bounds that cut nobody."""
    limits = replace(QUICK, job_bytes=20_000_000, stall_seconds=120.0, least_rate=1.0)
    with Served(tmp_path / "server", offer, limits) as server:
        yield server


def gone_soon(happened: Callable[[], bool]) -> None:
    start = time.monotonic()
    wait_until(happened, SECONDS)
    assert time.monotonic() - start < SOON


def test_an_upload_is_cut(served: Served) -> None:
    token, other = served.tokens.add("anna"), served.tokens.add("ben")
    job, kept = (servers.opened(served, who, size=[1000, 100, 120]) for who in (token, other))
    with served.raw() as upload, served.raw() as others:
        for connection, who, name in ((upload, token, job), (others, other, kept)):
            connection.sendall(
                request("PUT", f"/v1/jobs/{name}/inputs/0", who, bytes(2_000_000), content_length=str(LARGE))
            )
        wait_until(lambda: sum(path.suffix == ".part" for path in served.leftovers) == 2, SECONDS)
        served.tokens.revoke("anna")
        gone_soon(lambda: len(served.leftovers) == 2)
        assert read(upload) < 1000  # an end, or a refusal
        others.sendall(bytes(1000))
        assert [path.suffix for path in served.leftovers] == ["", ".part"]


def test_whoever_uploads_hears_why(served: Served, tmp_path: Path) -> None:
    connection = served.connection("anna")
    random = np.random.default_rng(0)
    scan = Image.of(sitk.GetImageFromArray(random.integers(0, 256, (1200, 100, 100), np.uint8)))

    def stop() -> None:  # asked with every piece
        if any(path.suffix == ".part" for path in served.leftovers):
            served.tokens.revoke("anna")
            wait_until(lambda: not served.leftovers, SECONDS)

    with pytest.raises(EngineError, match="was revoked"):
        detect(connection, tmp_path / "out", images=[scan], stop=stop)
    assert not served.leftovers


def test_a_detection_ends_with_its_worker_and_makes_room_for_others(served: Served, tmp_path: Path) -> None:
    anna, ben = served.connection("anna"), served.connection("ben")

    def revoke() -> None:
        wait_until(lambda: sum(line.startswith("begin") for line in served.noted()) == 2, SECONDS)
        served.tokens.revoke("anna")

    def look(number: int) -> object:
        return detect(anna.another(), tmp_path / str(number), seed=5000)

    first, second, _ = servers.in_threads([lambda: look(1), lambda: look(2), revoke])
    for failed in (first, second):
        assert isinstance(failed, EngineError) and "revoked" in str(failed)
    assert detect(ben, tmp_path / "ben")  # both slots were hers
    assert "end 5000" not in served.noted()
    wait_until(lambda: not served.leftovers, SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_delivery_is_cut(served: Served) -> None:
    token, other = served.tokens.add("anna"), served.tokens.add("ben")
    job, kept = (finished(served, who, LARGE) for who in (token, other))
    with narrow(served) as reader, narrow(served) as others:
        reader.sendall(request("GET", f"/v1/jobs/{job}/results/heat", token))
        others.sendall(request("GET", f"/v1/jobs/{kept}/results/heat", other))
        wait_until(lambda: len(open_results(served)) == 2, SECONDS)
        served.tokens.revoke("anna")
        gone_soon(lambda: len(open_results(served)) == 1)
        assert read(reader) < LARGE
        assert read(others, most=LARGE) >= LARGE
    assert not any(job in str(path) for path in served.leftovers)
    assert served.ask(request("GET", f"/v1/jobs/{job}/results/heat", token))[0] == 401


def test_a_stream_of_events_is_told_and_ends(served: Served) -> None:
    token = served.tokens.add("anna")
    job = servers.opened(served, token)
    with served.raw() as stream:
        stream.sendall(request("GET", f"/v1/jobs/{job}/events", token))
        assert stream.recv(1000)
        served.tokens.revoke("anna")
        start, told = time.monotonic(), b""
        while piece := stream.recv(1 << 16):
            told += piece
        assert time.monotonic() - start < SOON
    assert b"The token was revoked" in told


@pytest.mark.parametrize("kept", ["", '{"tokens": [', None])
def test_a_file_of_tokens_that_cannot_be_read_revokes_nothing(
    served: Served, kept: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    token, gone = served.tokens.add("anna"), served.tokens.add("ben")
    job, result = servers.opened(served, token), finished(served, token, 100_000)
    dropped = servers.opened(served, gone)
    path = served.folder / TOKENS
    good, aside = path.read_bytes(), path.with_suffix(".aside")
    if kept is None:
        path.rename(aside)
    else:
        path.write_text(kept, encoding="ascii")
    time.sleep(2.0)  # four rounds of looking for tokens that were revoked
    assert served.ask(request("GET", f"/v1/jobs/{job}", token))[0] == 401
    if kept is None:
        aside.rename(path)
    else:
        path.write_bytes(good)
    assert served.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, bytes(60)))[0] == 200
    assert served.ask(request("GET", f"/v1/jobs/{result}/results/heat", token, Connection="close"))[0] == 200
    assert sum("nobody is let in" in record.getMessage() for record in caplog.records) == 1
    served.tokens.revoke("ben")  # which is still heeded
    gone_soon(lambda: not any(dropped in str(path) for path in served.leftovers))
