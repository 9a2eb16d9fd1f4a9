"""A server that is asked to end, as a process of its own with the real worker: soon, cleanly, and with nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from diffusion_anomaly import __version__
from diffusion_anomaly.errors import Cancelled
from workers import ENGINE, EXTRA_METHODS, wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

from diffusion_anomaly.client.address import Server
from diffusion_anomaly.client.connection import Connection
from diffusion_anomaly.client.wire import order_of
from diffusion_anomaly.server.jobs import Board, State
from diffusion_anomaly.server.listening import TOKENS
from diffusion_anomaly.server.spool import JOBS, Spool
from diffusion_anomaly.server.tokens import Tokens, User
from diffusion_anomaly.worker.protocol import Started
from servers import QUICK, SECONDS, Served, detect, in_threads, job_images, opened, order_json, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Process:
    """``diffusion-anomaly serve`` with one slot.

    Args:
        folder: of the server.
        model: that it offers.
        site: a folder with a ``sitecustomize`` module.
    """

    def __init__(self, folder: Path, model: Path, site: Path) -> None:
        self.folder = folder
        tokens = Tokens(folder / TOKENS)
        folder.mkdir()
        self._token = tokens.add("anna")
        command = ["serve", str(folder), "--port", "0", "--device", "cpu", "--model", str(model)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_anomaly", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ENGINE)]), "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        lines = [self._process.stdout.readline().decode().strip() for _ in range(2)]
        self.address, self._fingerprint = lines[0], lines[1].removeprefix("fingerprint ")
        self.stderr = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.stderr = self._process.stderr.read()

    def connection(self) -> Connection:
        return Connection(Server(self.address, self._token, self._fingerprint), 1.0)

    def workers(self) -> list[Any]:
        import psutil

        return psutil.Process(self._process.pid).children(recursive=True)

    def send(self, signals: Sequence[signal.Signals]) -> None:
        for kind in signals:
            self._process.send_signal(kind)
            time.sleep(0.2)

    def end(self) -> int:
        """Wait for the exit status, with all of stderr read."""
        status = self._process.wait(SECONDS)
        self._reader.join(SECONDS)
        return status

    def close(self) -> None:
        self._process.kill()
        self.end()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def process(tmp_path: Path, offer: Offer, request: pytest.FixtureRequest) -> Iterator[Process]:
    """Whose only method is the one of tests that the parameter names."""
    site = tmp_path / "site"
    site.mkdir()
    lines = f"{EXTRA_METHODS}\nMETHODS['intensity'] = METHODS['{request.param}']\n"
    (site / "sitecustomize.py").write_text(lines, encoding="utf-8")
    (model,) = (bundle.path for bundle in offer._bundles.values())
    process = Process(tmp_path / "server", model, site)
    yield process
    process.close()


@pytest.mark.parametrize(
    ("process", "signals", "seconds"),
    [
        ("slow", [signal.SIGTERM], 10.0),
        ("slow", [signal.SIGINT], 10.0),
        ("slow", [signal.SIGINT, signal.SIGINT], 10.0),
        ("slow", [getattr(signal, "SIGHUP", signal.SIGTERM)], 10.0),
        ("stuck", [signal.SIGTERM], 14.0),  # three seconds of grace for what hears nothing
    ],
    indirect=["process"],
)
def test_a_server_that_is_asked_to_end_does_so_cleanly(
    process: Process, signals: Sequence[signal.Signals], seconds: float, tmp_path: Path
) -> None:
    begun = threading.Event()
    images = job_images(tmp_path / "job")
    found: list[float] = []

    def tell(event: object) -> None:
        if isinstance(event, Started):
            begun.set()

    def scan() -> None:
        detect(process.connection(), tmp_path / "out", tell, images=images, overrides={"side": "bright"})

    def stop() -> None:
        assert begun.wait(SECONDS / 2)
        workers = process.workers()
        assert workers
        start = time.monotonic()
        process.send(signals)
        assert process.end() == 0
        found.append(time.monotonic() - start)
        assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)

    failed, stopped = in_threads([scan, stop])
    assert stopped is None
    assert found[0] < seconds
    assert isinstance(failed, Cancelled) and "The server was stopped" in str(failed)
    assert list((process.folder / JOBS).iterdir()) == []
    assert list((tmp_path / "out").iterdir()) == []
    assert b"Traceback" not in process.stderr and b"ERROR" not in process.stderr
    assert b"Stopped" in process.stderr
    log = (process.folder / "server.log").read_text(encoding="utf-8").splitlines()
    assert f"started: version {__version__} at {process.address}, models " in log[0] and "slots on cpu" in log[0]
    assert f"stopped: {signals[0].name}" in log[-1]
    assert sum("started: " in line or "stopped: " in line for line in log) == 2


def test_a_server_ends_while_a_slot_waits_for_its_worker_to_end(tmp_path: Path, offer: Offer) -> None:
    with Served(tmp_path / "server", offer, slots=1) as served:
        token = served.tokens.add("anna")
        for steps in (888, 1):  # a worker that closes its output and stays, and a job that waits
            job = opened(served, token, options={"steps": steps})
            assert served.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, bytes(60)))[0] == 200
        wait_until(lambda: bool(served.noted()), SECONDS)
        time.sleep(0.5)  # of the three seconds in which it may end by itself
        start = time.monotonic()
    assert time.monotonic() - start < 10.0
    assert served.noted() == ["begin 0"]
    assert served.leftovers == []


def test_the_log_tells_of_an_end_by_error_and_by_the_program(
    tmp_path: Path, offer: Offer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    caplog.set_level("INFO", logger="diffusion_anomaly.server")
    with Served(tmp_path / "server", offer):
        pass

    async def fail(*arguments: Any, **keywords: Any) -> None:
        raise OSError("the socket is gone")

    monkeypatch.setattr(uvicorn.Server, "serve", fail)
    with pytest.raises(OSError, match="socket is gone"), Served(tmp_path / "server", offer):
        pass
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("stopped")]
    assert told == ["stopped: asked by the program", "stopped: OSError: the socket is gone"]


def test_a_job_that_the_end_of_the_server_has_failed_is_nobodys_turn(tmp_path: Path) -> None:
    async def look() -> None:
        with Spool(tmp_path / "server", 0) as spool:
            board = Board(spool, QUICK)
            job = await board.open(User("anna", "0" * 64), order_of(order_json()), "toy")
            await board.queue(job)
            board.close()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(board.next(), 0.2)
            assert job.state is State.OVER

    asyncio.run(look())
