"""A disk that takes its time holds up whoever waits for it, and no other user."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from workers import wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import servers
from diffusion_anomaly.server.listening import _THREADS as THREADS
from servers import QUICK, SECONDS, Served, in_threads, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer
    from diffusion_anomaly.server.tokens import Tokens

SERVER = "diffusion_anomaly.server"


def delete(served: Served, token: str, job: str) -> int:
    return served.ask(request("DELETE", f"/v1/jobs/{job}", token))[0]


def order(served: Served, token: str, job: str) -> int:
    return served.ask(request("POST", "/v1/jobs", token, json.dumps(servers.order_json()).encode()))[0]


def send(served: Served, token: str, job: str) -> int:
    return served.ask(request("PUT", f"/v1/jobs/{job}/inputs/0", token, bytes(60)))[0]


def ask(served: Served, token: str, job: str) -> int:
    return served.ask(request("GET", "/v1/models", token))[0]


class Slow:
    """A call of the disk whose first use takes until it may end.

    Args:
        path: of the function in the server's package.
        uses: how many take so long.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: str, uses: int = 1) -> None:
        self._quick, self._left = _found(path), uses
        self._lock = threading.Lock()
        self.begun, self._may_end = threading.Event(), threading.Event()
        slow = self  # a method is bound to what it is of

        def call(*arguments: Any, **keywords: Any) -> Any:
            return slow(*arguments, **keywords)

        monkeypatch.setattr(f"{SERVER}.{path}", call)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self._lock:
            self._left -= 1
            is_slow = self._left >= 0
            if self._left == 0:
                self.begun.set()
        if is_slow:
            self._may_end.wait(SECONDS)
        return self._quick(*arguments, **keywords)

    def timed(self, *calls: Callable[[], object]) -> float:
        """Seconds that they take while the disk is slow, which it is no more then."""
        assert self.begun.wait(SECONDS)
        start = time.monotonic()
        try:
            for call in calls:
                call()
            return time.monotonic() - start
        finally:
            self._may_end.set()


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("spool.shutil.rmtree", delete),
        ("spool.os.rename", delete),
        ("spool.shutil.disk_usage", order),
        ("spool.Path.mkdir", order),
        ("spool.VoxelFile.write", send),
    ],
)
def test_no_other_user_waits_for_a_slow_disk(
    served: Served, monkeypatch: pytest.MonkeyPatch, name: str, asks: Callable[[Served, str, str], int]
) -> None:
    anna, ben = served.tokens.add("anna"), served.tokens.add("ben")
    job = servers.opened(served, anna)
    slow = Slow(monkeypatch, name)

    def others() -> None:
        assert ask(served, ben, "") == 200
        assert send(served, ben, servers.opened(served, ben)) == 200

    status, waited = in_threads([lambda: asks(served, anna, job), lambda: slow.timed(others)])
    assert status in (200, 201)
    assert isinstance(waited, float) and waited < 5.0, waited


def test_whoever_needs_no_token_does_not_wait_for_a_slow_file_of_tokens(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = served.tokens.add("anna")
    slow = Slow(monkeypatch, "tokens.Tokens._look")
    status, waited = in_threads(
        [lambda: ask(served, token, ""), lambda: slow.timed(lambda: served.ask(request("GET", "/v1/health")))]
    )
    assert status == 200
    assert isinstance(waited, float) and waited < 5.0, waited


def test_tokens_are_looked_up_while_every_thread_of_the_disk_writes(
    tmp_path: Path, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Served(tmp_path / "server", offer, replace(QUICK, jobs_a_user=2 * THREADS)) as served:
        anna, ben = served.tokens.add("anna"), served.tokens.add("ben")
        jobs = [servers.opened(served, anna) for _ in range(THREADS)]
        slow = Slow(monkeypatch, "spool.VoxelFile.write", THREADS)
        uploads = [lambda job=job: send(served, anna, job) for job in jobs]
        *statuses, waited = in_threads([*uploads, lambda: slow.timed(lambda: ask(served, ben, ""))])
        assert set(statuses) == {200}
        assert isinstance(waited, float) and waited < 5.0, waited


def test_a_slow_removal_holds_up_no_other(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {name: servers.opened(served, served.tokens.add(name)) for name in ("anna", "ben")}
    slow = Slow(monkeypatch, "spool.shutil.rmtree")

    def both() -> None:
        served.tokens.revoke("ben")
        wait_until(lambda: not any(jobs["ben"] in str(path) for path in served.leftovers), SECONDS / 2)

    served.tokens.revoke("anna")
    assert slow.timed(both) < 5.0
    wait_until(lambda: not served.leftovers, SECONDS)


def test_a_job_that_is_dropped_while_its_folder_is_made_leaves_none(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = served.tokens.add("anna")
    slow = Slow(monkeypatch, "spool.Path.mkdir")

    def revoke() -> None:
        served.tokens.revoke("anna")
        time.sleep(2.0)  # four rounds of looking for tokens that were revoked

    status, _ = in_threads([lambda: order(served, token, ""), lambda: slow.timed(revoke)])
    assert status in (0, 409)  # its connection may be cut first
    wait_until(lambda: not served.leftovers, SECONDS)


def _found(path: str) -> Any:
    import importlib

    package, _, rest = path.removeprefix(f"{SERVER}.").partition(".")
    found: Any = importlib.import_module(f"{SERVER}.{package}")
    for part in rest.split("."):
        found = getattr(found, part)
    return found


def test_every_thread_sees_who_has_a_token(served: Served) -> None:
    tokens: Tokens = served.tokens
    made = tokens.add("anna")
    found = in_threads([lambda: tokens.user_of(made) for _ in range(16)])
    assert {user.name for user in found} == {"anna"}
