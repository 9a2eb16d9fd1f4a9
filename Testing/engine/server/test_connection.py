"""The client's way to the server: through a proxy, with the right certificate, and to nobody else."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from diffusion_anomaly.errors import InputError
from workers import wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

from diffusion_anomaly.client.address import Server
from diffusion_anomaly.client.connection import Connection
from diffusion_anomaly.server.tokens import Tokens
from servers import QUICK, SECONDS, Served, detect, opened, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer


@pytest.mark.parametrize("megabytes", [1, 20])
def test_an_upload_goes_on_that_broke_without_the_server_noticing(tmp_path: Path, offer: Offer, megabytes: int) -> None:
    limits = replace(QUICK, stall_seconds=2.0, job_bytes=100_000_000)
    voxels = bytes(megabytes * 1_000_000)
    with Served(tmp_path / "server", offer, limits) as served:
        server = served.server()
        size, sha256 = [1000, 100, 10 * megabytes], hashlib.sha256(voxels).hexdigest()
        job = opened(served, server.token, size=size, sha256=sha256)
        path = f"/v1/jobs/{job}/inputs/0"
        with served.raw() as half_open:  # from which nothing comes any more, not even its end
            half_open.sendall(request("PUT", path, server.token, voxels[:1000], content_length=str(len(voxels))))
            wait_until(lambda: any(path.suffix == ".part" for path in served.leftovers), SECONDS)
            connection = Connection(server, 30.0)
            connection.send(job, 0, lambda: iter([voxels]), False, lambda: None)
            assert any(event.get("event") == "result" for event in connection.events(job, lambda: None))
            connection.close()


class Proxy:
    """Connects whoever asks it to, as a hospital's proxy does, and notes where to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        self.seen = b""
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1000)
        target = head.split()[1].decode()
        self.asked.append(target)
        host, port = target.split(":")
        with client, socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join(SECONDS)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy()
    monkeypatch.setenv("HTTPS_PROXY", proxy.address)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    yield proxy
    proxy.close()


def test_it_goes_through_a_proxy_that_sees_nothing(served: Served, proxy: Proxy, tmp_path: Path) -> None:
    server = served.server()
    connection = Connection(server, 5.0)
    assert detect(connection, tmp_path / "out")
    connection.close()
    assert set(proxy.asked) == {f"127.0.0.1:{served.port}"}
    assert server.token.encode() not in proxy.seen and b"stand-in" not in proxy.seen


def test_a_proxy_that_shows_a_certificate_of_its_own_is_not_taken(served: Served, proxy: Proxy, tmp_path: Path) -> None:
    connection = Connection(served.server(fingerprint="ab" * 32), 5.0)
    with pytest.raises(InputError, match="another certificate"):
        detect(connection, tmp_path / "out")
    connection.close()
    assert not served.leftovers


def test_the_token_goes_nowhere_else(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def redirect(
        session: requests.Session, prepared: requests.PreparedRequest, **keywords: object
    ) -> requests.Response:
        assert keywords["allow_redirects"] is False
        response = requests.Response()
        response.status_code, response.url = 307, str(prepared.url)
        response.headers["Location"] = "https://elsewhere.example.org/"
        response.raw = _Empty()
        return response

    monkeypatch.setattr(requests.Session, "send", redirect)
    with pytest.raises(InputError, match="HTTP status 307"):
        served.connection().models()


class _Empty:
    """An answer without a body."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        return iter(())

    def read(self, *_: object, **__: object) -> bytes:
        return b""

    def release_conn(self) -> None:
        return None

    def close(self) -> None:
        return None


def test_a_server_is_shown_without_its_token() -> None:
    assert "secret" not in repr(Server("https://gpu:1", "da_secret"))


@pytest.mark.parametrize(
    "kept", ["", "[]", "{", '{"tokens": [{"name": "anna"}]}', '{"tokens": [{"name": 1, "sha256": 2}]}']
)
def test_a_file_of_tokens_that_is_damaged_lets_nobody_in(tmp_path: Path, kept: str) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.add("anna")
    assert tokens.user_of(token) is not None
    (tmp_path / "tokens.json").write_text(kept, encoding="ascii")
    assert tokens.user_of(token) is None
    for asks in (tokens.users, tokens.names, lambda: tokens.add("ben")):
        for _ in range(2):
            with pytest.raises(InputError):
                asks()


def test_a_file_of_tokens_that_is_gone_lets_nobody_in_and_takes_no_token_back(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens = Tokens(path)
    assert tokens.users() == set() and tokens.names() == []  # none was made yet
    token = tokens.add("anna")
    user = tokens.user_of(token)
    path.rename(tmp_path / "moved.json")
    assert tokens.user_of(token) is None
    with pytest.raises(InputError, match="is gone"):
        tokens.users()
    (tmp_path / "moved.json").rename(path)
    assert tokens.users() == {user}


@pytest.mark.parametrize("name", ["", "a b", "../anna", "x" * 41, "anna\n", ".hidden"])
def test_names_of_tokens_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name"):
        Tokens(tmp_path / "tokens.json").add(name)


def test_the_file_of_tokens_holds_none_and_is_its_owners(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.add("anna")
    assert token not in (tmp_path / "tokens.json").read_text(encoding="ascii")
    assert (tmp_path / "tokens.json").stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="has a token already"):
        tokens.add("anna")


def test_a_server_that_falls_silent_is_told_once_and_one_that_never_answered_is_not(
    tmp_path: Path, offer: Offer
) -> None:
    told: list[str] = []
    with Served(tmp_path / "server", offer) as served:
        server = served.server()
        connection = Connection(server, 2.0, told.append)
        assert connection.models() and told == []
    with pytest.raises(InputError):
        connection.models()
    assert told == [f"{server.name} does not answer; it is asked again for 2 s."]
    with pytest.raises(InputError):
        Connection(server, 1.0, told.append).models()
    assert len(told) == 1
