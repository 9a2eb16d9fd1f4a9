"""Many clients and few slots: whose turn it is, what each is told, and what stays when something ends early."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from diffusion_anomaly.errors import Cancelled, EngineError, InputError
from workers import ENGINE, wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import servers
from diffusion_anomaly.client.connection import Connection
from diffusion_anomaly.client.wire import order_of
from diffusion_anomaly.server.certificate import CERTIFICATE
from diffusion_anomaly.server.jobs import Board
from diffusion_anomaly.server.limits import Limits
from diffusion_anomaly.server.spool import JOBS, Spool
from diffusion_anomaly.server.tokens import User
from diffusion_anomaly.worker.protocol import Progress, Started
from servers import QUICK, SECONDS, Served, detect

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer


def running(served: Served) -> list[str]:
    """Seeds of the detections that have begun and not ended."""
    begun = [line.split()[1] for line in served.noted() if line.startswith("begin")]
    return [seed for seed in begun if f"end {seed}" not in served.noted()]


def test_a_scan_comes_back_as_it_was_sent_and_nothing_stays(served: Served, tmp_path: Path) -> None:
    told: list[object] = []
    found = detect(served.connection(), tmp_path / "out", told.append)
    image = servers.small_image()
    header, voxels = found.files["heat"].read_bytes().split(b"LOCAL\n")
    assert voxels == image.values.tobytes()
    assert b"ElementSpacing = 1.5 2.5 3.5" in header
    assert {event.stage for event in told if isinstance(event, Progress)} == {"upload", "detect", "download"} | (
        {event.stage for event in told if isinstance(event, Progress)} & {"wait"}
    )
    assert sum(isinstance(event, Started) for event in told) == 1
    wait_until(lambda: not served.leftovers, SECONDS)


def test_nothing_tells_where_the_server_keeps_its_files(served: Served, tmp_path: Path) -> None:
    found = detect(served.connection(), tmp_path / "out")
    assert str(served.folder) not in json.dumps(dict(found.statistics))


def test_only_what_the_user_names_vouches_for_a_server(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = str(served.folder / CERTIFICATE)
    unpinned = served.server(fingerprint="")
    assert Connection(replace(unpinned, authorities=own), 5.0).models()
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, own)
    with pytest.raises(InputError, match="is not trusted"):
        Connection(unpinned, 5.0).models()


def test_twenty_clients_at_once_share_two_slots(served: Served, tmp_path: Path) -> None:
    connections = [served.connection(f"user{number}") for number in range(20)]
    images = [servers.small_image(number) for number in range(20)]
    results = servers.in_threads(
        [
            lambda number=number: detect(
                connections[number], tmp_path / str(number), images=[images[number]], seed=3 + number % 3
            )
            for number in range(20)
        ]
    )
    assert [result for result in results if isinstance(result, Exception)] == []
    for number, result in enumerate(results):
        assert result.files["heat"].read_bytes().endswith(images[number].values.tobytes())
    at_once = list(itertools.accumulate(1 if line.startswith("begin") else -1 for line in served.noted()))
    assert len(at_once) == 40 and max(at_once) == 2
    wait_until(lambda: not served.leftovers, SECONDS)


def test_users_take_turns_and_whoever_has_fewest_at_work_goes_first(tmp_path: Path) -> None:
    async def turns() -> list[str]:
        with Spool(tmp_path, 0) as spool:
            board = Board(spool, Limits())
            order = order_of(servers.order_json())
            users = {name: User(name, name) for name in ("many", "one", "late")}
            for name in ("many", "many", "many", "one", "many"):
                await board.queue(await board.open(users[name], order, "toy"))
            taken = [await board.next(), await board.next()]  # two slots
            await board.ended(taken[0])
            await board.queue(await board.open(users["late"], order, "toy"))
            taken.append(await board.next())  # neither many nor late has one at work, and late never had a turn
            await board.ended(taken[1])
            taken += [await board.next(), await board.next(), await board.next()]
            return [job.user.name for job in taken]

    assert asyncio.run(turns()) == ["many", "one", "late", "many", "many", "many"]


def test_whoever_waits_is_told_how_many_go_first(tmp_path: Path, offer: Offer) -> None:
    with Served(tmp_path / "server", offer, slots=1) as served:
        connection, told = served.connection(), []
        first = [lambda: detect(connection.another(), tmp_path / "a", seed=60)]

        def second() -> None:
            wait_until(lambda: running(served) == ["60"], SECONDS)
            detect(connection.another(), tmp_path / "b", told.append)

        servers.in_threads([*first, second])
        assert "wait" in [event.stage for event in told if isinstance(event, Progress)]


def test_a_request_to_stop_ends_it_on_the_server_too(served: Served, tmp_path: Path) -> None:
    def stop() -> None:
        if running(served):
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        detect(served.connection(), tmp_path / "out", stop=stop, seed=5000)
    wait_until(lambda: not served.leftovers, SECONDS)
    assert detect(served.connection("ben"), tmp_path / "next")


def test_a_worker_that_crashes_is_said_and_the_next_scan_has_another(served: Served, tmp_path: Path) -> None:
    connection = served.connection()
    with pytest.raises(EngineError, match="crashed"):
        detect(connection, tmp_path / "out", steps=666)
    assert detect(connection, tmp_path / "next")


def test_a_token_that_is_revoked_ends_its_jobs_and_no_others(served: Served, tmp_path: Path) -> None:
    anna, ben = served.connection("anna"), served.connection("ben")

    def revoke() -> None:
        wait_until(lambda: len(running(served)) == 2, SECONDS)
        served.tokens.revoke("anna")

    ended, done, _ = servers.in_threads(
        [
            lambda: detect(anna, tmp_path / "a", seed=5000),
            lambda: detect(ben, tmp_path / "b", seed=300),
            revoke,
        ]
    )
    assert isinstance(ended, EngineError) and "revoked" in str(ended)
    assert not isinstance(done, Exception)
    with pytest.raises(InputError, match="unknown or was revoked"):
        anna.models()
    wait_until(lambda: not served.leftovers, SECONDS)


def test_a_new_token_of_the_same_name_sees_nothing_of_the_old_one(served: Served) -> None:
    token = served.tokens.add("anna")
    name = servers.opened(served, token)
    served.tokens.revoke("anna")
    other = served.tokens.add("anna")
    assert served.ask(servers.request("GET", f"/v1/jobs/{name}/events", other))[0] == 404


class Flaky(Connection):
    """Whose event streams break after each event."""

    broken = 0

    def another(self) -> Flaky:
        made = Flaky(self.server, self._patience)
        made._parent = self  # type: ignore[attr-defined]
        return made

    def _request(self, method, path, **keywords):  # type: ignore[no-untyped-def]
        context = super()._request(method, path, **keywords)
        if not path.endswith("/events"):
            return context
        return _Broken(context, getattr(self, "_parent", self))


class _Broken:
    def __init__(self, context, owner) -> None:  # type: ignore[no-untyped-def]
        self.context, self.owner = context, owner

    def __enter__(self):  # type: ignore[no-untyped-def]
        import requests

        answer = self.context.__enter__()
        pieces = answer.iter_content

        def some(size):  # type: ignore[no-untyped-def]
            events = 0
            for piece in pieces(size):
                yield piece
                events += b"id:" in piece
                if events:
                    self.owner.broken += 1
                    raise requests.exceptions.ChunkedEncodingError("the line is dead")

        answer.iter_content = some
        return answer

    def __exit__(self, *error):  # type: ignore[no-untyped-def]
        return self.context.__exit__(*error)


def test_an_event_stream_that_breaks_goes_on_where_it_was(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_anomaly.client.connection._PAUSES", (0.01,))
    connection = Flaky(served.server(), 10.0)
    told: list[object] = []
    assert detect(connection, tmp_path / "out", told.append, seed=100)
    assert connection.broken > 2
    done = [event.done for event in told if isinstance(event, Progress) and event.stage == "detect"]
    assert done == sorted(done) and done[-1] == 10  # the newest again is a sign of life, an older one is not


def test_event_streams_that_say_nothing_are_not_asked_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_anomaly.client.connection._PAUSES", (0.01,))
    monkeypatch.setattr("diffusion_anomaly.client.connection._events", lambda answer, stop: iter(()))
    connection = Connection(served.server(), 0.3)
    name = connection.order(order_of(servers.order_json()), lambda: None)
    with pytest.raises(InputError, match="its events end before the job does"):
        list(connection.events(name, lambda: None))


def test_events_that_were_heard_are_not_told_again(served: Served) -> None:
    token = served.tokens.add("anna")
    name = servers.opened(served, token)
    served.ask(servers.request("PUT", f"/v1/jobs/{name}/inputs/0", token, bytes(60)))
    whole = events(served, token, name, 0)
    assert [number for number, _ in events(served, token, name, whole[-2][0])] == [whole[-1][0]]
    assert whole[-1][1]["event"] == "result"


def events(served: Served, token: str, name: str, after: int) -> list[tuple[int, dict[str, object]]]:
    with served.raw() as connection:
        connection.sendall(
            servers.request("GET", f"/v1/jobs/{name}/events", token, Last_Event_ID=str(after), Connection="close")
        )
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    found = []
    for block in answer.split(b"\n\n"):
        lines = dict(
            line.split(b": ", 1) for line in block.split(b"\n") if b": " in line and line[:2] in (b"id", b"da")
        )
        if b"data" in lines:
            found.append((int(lines[b"id"]), json.loads(lines[b"data"])))
    return found


def test_a_scan_that_takes_too_long_is_ended(tmp_path: Path, offer: Offer) -> None:
    limits = replace(QUICK, job_seconds=0.5)
    with Served(tmp_path / "server", offer, limits) as served:
        with pytest.raises(EngineError, match="longer than"):
            detect(served.connection(), tmp_path / "out", seed=5000)
        wait_until(lambda: not served.leftovers, SECONDS)


def test_results_that_nobody_takes_and_uploads_that_never_end_go(tmp_path: Path, offer: Offer) -> None:
    limits = replace(QUICK, keep_seconds=0.2, upload_seconds=0.2)
    with Served(tmp_path / "server", offer, limits) as served:
        token = served.tokens.add("anna")
        servers.opened(served, token)
        name = servers.opened(served, token)
        served.ask(servers.request("PUT", f"/v1/jobs/{name}/inputs/0", token, bytes(60)))
        assert served.leftovers
        wait_until(lambda: not served.leftovers, SECONDS)


def test_only_so_many_jobs_are_taken(tmp_path: Path, offer: Offer) -> None:
    with Served(tmp_path / "server", offer, replace(QUICK, jobs_a_user=2, jobs=3)) as served:
        anna, ben = served.tokens.add("anna"), served.tokens.add("ben")
        body = json.dumps(servers.order_json()).encode()
        taken = [served.ask(servers.request("POST", "/v1/jobs", who, body))[0] for who in (anna, anna, anna, ben, ben)]
        assert taken == [201, 201, 429, 201, 429]


def test_a_full_disk_is_said_before_anything_is_sent(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("diffusion_anomaly.server.spool.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(EngineError, match="The server's disk is full"):
        detect(served.connection(), served.folder / "out")
    assert not served.leftovers


def test_a_disk_that_gets_full_on_the_way_is_said_and_leaves_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_anomaly.server.spool import VoxelFile

    def full(self: VoxelFile, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VoxelFile, "write", full)
    with pytest.raises(EngineError, match="disk is full"):
        detect(served.connection(), served.folder / "out")
    assert not served.leftovers


def test_a_server_that_was_killed_deletes_what_it_left_when_it_starts_again(tmp_path: Path, offer: Offer) -> None:
    script = (
        "import sys; sys.path[:0] = [sys.argv[2], sys.argv[3]]\n"
        "from pathlib import Path\nimport time, servers\n"
        "from diffusion_anomaly.server.offer import Offer\n"
        "with servers.Served(Path(sys.argv[1]), Offer([sys.argv[4]])) as served:\n"
        "    print(served.port, flush=True)\n    time.sleep(600)\n"
    )
    folder = tmp_path / "server"
    (model,) = (bundle.path for bundle in offer._bundles.values())
    tests = str(Path(servers.__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(ENGINE), tests, str(model)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        served = Served(folder, offer)
        served.port = port
        connection = Connection(served.server(), 1.0)
        foreign = folder / JOBS / "not-ours.txt"
        foreign.write_text("stays", encoding="ascii")

        def kill() -> None:
            wait_until(lambda: running(served) == ["5000"], SECONDS)
            process.send_signal(signal.SIGKILL)
            process.wait(SECONDS)

        failed, _ = servers.in_threads([lambda: detect(connection, tmp_path / "out", seed=5000), kill])
        assert isinstance(failed, InputError) and "cannot be reached" in str(failed)
        assert len(served.leftovers) > 1
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    with Served(folder, offer) as again:
        assert again.leftovers == [foreign]


def test_one_folder_has_one_server(served: Served, offer: Offer) -> None:
    with pytest.raises(InputError, match="Another server"), Served(served.folder, offer):
        pass


def test_the_bounds_of_a_server_are_those_of_its_documentation() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "serve.md"
    text = page.read_text(encoding="utf-8")
    limits = Limits()
    for words in (
        f"{limits.jobs_a_user} jobs",
        f"{limits.connections_an_address} connections",
        f"{limits.requests_a_second:g} requests a second",
        f"{limits.stall_seconds:g} seconds",
    ):
        assert words in text


def test_stopping_a_server_ends_its_workers(tmp_path: Path, offer: Offer) -> None:
    import psutil

    with Served(tmp_path / "server", offer) as served:
        token = served.tokens.add("anna")
        body = {**servers.order_json(), "options": {"seed": 5000}}
        status, answer = served.ask(servers.request("POST", "/v1/jobs", token, json.dumps(body).encode()))
        assert status == 201
        name = json.loads(answer.partition(b"\r\n\r\n")[2])["job"]
        served.ask(servers.request("PUT", f"/v1/jobs/{name}/inputs/0", token, bytes(60)))
        wait_until(lambda: running(served) == ["5000"], SECONDS)
        workers = [p for p in psutil.Process().children(recursive=True) if str(served.notes) in p.cmdline()]
        assert workers
        start = time.monotonic()
    assert time.monotonic() - start < 15
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert not served.leftovers
