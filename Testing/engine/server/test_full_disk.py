"""A disk that runs full under the server: it is said, nothing half is left, and smaller scans go on.

First with writes that fail as on a full disk, then on a file system that really runs full, which root alone can mount.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.errors import DiskFull
from diffusion_anomaly.worker.protocol import Progress, Started
from workers import wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import servers
from diffusion_anomaly.client.running import Delivered, Image
from diffusion_anomaly.server.refusals import refusal_of
from diffusion_anomaly.server.spool import VoxelFile
from servers import QUICK, SECONDS, Served, detect, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer

MEGABYTE = 1_000_000
FULL = "The server's disk is full"


def test_a_write_that_meets_a_full_disk_fails_that_job_alone(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, connection = served.tokens.add("ben"), served.connection("anna")
    job = servers.opened(served, token)
    with monkeypatch.context() as full:
        full.setattr(VoxelFile, "write", no_space)
        with pytest.raises(DiskFull, match=FULL):
            detect(connection, tmp_path / "out")
        status, answer = served.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, bytes(60)))
        assert status == 507 and FULL.encode() in answer
    wait_until(lambda: not served.leftovers, SECONDS)
    state = json.loads(served.ask(request("GET", f"/v1/jobs/{job}", token))[1].partition(b"\r\n\r\n")[2])
    assert (state["state"], state["error"]["code"]) == ("over", "disk_full")
    assert served.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, bytes(60)))[0] == 507
    assert detect(connection, tmp_path / "again")


def test_a_worker_that_meets_a_full_disk_fails_that_job_in_the_servers_words(served: Served, tmp_path: Path) -> None:
    connection = served.connection()
    with pytest.raises(DiskFull, match=FULL) as failed:
        detect(connection, tmp_path / "out", steps=555)
    assert "/secret" not in str(failed.value)
    assert list((tmp_path / "out").iterdir()) == []
    wait_until(lambda: not served.leftovers, SECONDS)
    assert detect(connection, tmp_path / "again")


def test_a_slot_whose_job_cannot_be_written_says_so_and_goes_on(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = served.connection()
    with monkeypatch.context() as full:
        full.setattr("diffusion_anomaly.server.slots.protocol.write_job", no_space)
        with pytest.raises(DiskFull, match=FULL):
            detect(connection, tmp_path / "out")
    assert detect(connection, tmp_path / "again")


def test_every_refusal_is_one_of_its_own() -> None:
    error = OSError(errno.ENOSPC, "full")
    first, second = refusal_of(error), refusal_of(error)
    assert first is not second and (first.status, first.code) == (507, "disk_full")
    assert (refusal_of(OSError(errno.EIO, "broken")).status, refusal_of(DiskFull("full")).status) == (500, 507)


def no_space(*arguments: object, **keywords: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 48 MB; for whoever may mount one."""
    if sys.platform != "linux":
        pytest.skip("only Linux has tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def on_disk(disk: Path, offer: Offer) -> Iterator[Served]:
    """A server on it, with a slot and the stand-in for a worker."""
    with Served(disk / "server", offer, replace(QUICK, job_bytes=100 * MEGABYTE), slots=1) as server:
        yield server


def noise(megabytes: int) -> Image:
    """A scan that no compression makes smaller."""
    random = np.random.default_rng(0)
    return Image.of(sitk.GetImageFromArray(random.integers(0, 256, (100 * megabytes, 100, 100), np.uint8)))


def fill(disk: Path, but: int = 0) -> Path:
    """A file of somebody else, which takes all space but so many bytes."""
    ballast = disk / "ballast"
    # The server may be quicker with what is left.
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        left = shutil.disk_usage(disk).free - but
        while left > 0:
            left -= file.write(bytes(min(left, MEGABYTE)))
    return ballast


def test_a_disk_that_runs_full_in_an_upload_fails_that_job_alone(on_disk: Served, disk: Path, tmp_path: Path) -> None:
    connection, scan, pieces = on_disk.connection(), noise(10), []

    def stop() -> None:  # asked with every piece
        if any(path.suffix == ".part" for path in on_disk.leftovers) and not pieces:
            pieces.append(fill(disk, but=2 * MEGABYTE))

    with pytest.raises(DiskFull, match=FULL):
        detect(connection, tmp_path / "out", images=[scan], stop=stop)
    assert pieces
    assert list((tmp_path / "out").iterdir()) == []
    wait_until(lambda: not on_disk.leftovers, SECONDS)
    assert detect(connection, tmp_path / "small")  # for which there is room
    with pytest.raises(DiskFull, match=FULL):  # before anything is sent
        detect(connection, tmp_path / "large", images=[scan])
    pieces[0].unlink()
    found = detect(connection, tmp_path / "large", images=[scan])
    assert found.files["heat"].read_bytes().endswith(scan.values.tobytes())
    wait_until(lambda: not on_disk.leftovers, SECONDS)


def test_a_job_whose_upload_met_a_full_disk_says_so_until_it_is_deleted(on_disk: Served, disk: Path) -> None:
    token, scan = on_disk.tokens.add("anna"), noise(2)
    header = {"size": scan.header.size, "sha256": scan.header.sha256}
    job = servers.opened(on_disk, token, **header)
    ballast = fill(disk, but=MEGABYTE)
    on_disk.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, scan.values.tobytes()))  # half of which is read
    assert on_disk.leftovers == []
    ballast.unlink()
    status, answer = on_disk.ask(request("GET", f"/v1/jobs/{job}", token))
    state = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (status, state["state"], state["error"]["code"]) == (200, "over", "disk_full")
    assert FULL in state["error"]["what"]
    told = on_disk.ask(request("GET", f"/v1/jobs/{job}/events", token, Connection="close"))[1]
    assert b'"disk_full"' in told and FULL.encode() in told
    # There is space again, but this one has failed; another is taken.
    assert on_disk.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, content_length="0"))[0] == 507
    assert on_disk.ask(request("DELETE", f"/v1/jobs/{job}", token))[0] == 200
    other = servers.opened(on_disk, token, **header)
    assert on_disk.ask(request("PUT", f"/v1/jobs/{other}/inputs/0", token, scan.values.tobytes()))[0] == 200


@pytest.mark.parametrize(("begins", "but"), [("upload", 0), ("started", 0), ("started", 30_000), ("started", 70_000)])
def test_a_disk_that_runs_full_while_results_are_written_fails_the_job(
    disk: Path, offer: Offer, tmp_path: Path, begins: str, but: int
) -> None:
    images = servers.job_images(tmp_path / "job")
    ballast: list[Path] = []

    def tell(event: object) -> None:
        is_sent = isinstance(event, Progress) and event.stage == "upload" and event.done == event.total
        if not ballast and (is_sent if begins == "upload" else isinstance(event, Started)):
            ballast.append(fill(disk, but))

    with Served(disk / "server", offer, slots=1, real=True) as served:
        connection = served.connection(patience=60.0)

        def look(name: str, but_told: bool = False) -> Delivered:
            return detect(
                connection,
                tmp_path / name,
                tell if but_told else lambda event: None,
                images=images,
                overrides={"side": "bright"},
            )

        with pytest.raises(DiskFull, match=FULL):
            look("out", but_told=True)
        assert ballast
        assert list((tmp_path / "out").iterdir()) == []
        wait_until(lambda: not served.leftovers, SECONDS)
        ballast[0].unlink()
        assert look("again").files["heat"].is_file()
        wait_until(lambda: not served.leftovers, SECONDS)
