"""A disk that takes its time holds up whoever waits for it, and nobody else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import servers
from servers import SECONDS, Served, in_threads, request

if TYPE_CHECKING:
    from diffusion_anomaly.server.tokens import Tokens

SERVER = "diffusion_anomaly.server"


def delete(served: Served, token: str, job: str) -> int:
    return served.ask(request("DELETE", f"/v1/jobs/{job}", token))[0]


def order(served: Served, token: str, job: str) -> int:
    return served.ask(request("POST", "/v1/jobs", token, json.dumps(servers.order_json()).encode()))[0]


def ask(served: Served, token: str, job: str) -> int:
    return served.ask(request("GET", "/v1/models", token))[0]


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("spool.shutil.rmtree", delete),
        ("spool.os.rename", delete),
        ("spool.shutil.disk_usage", order),
        ("spool.Path.mkdir", order),
        ("tokens.Tokens._look", ask),
    ],
)
def test_nobody_else_waits_for_a_slow_disk(
    served: Served, monkeypatch: pytest.MonkeyPatch, name: str, asks: Callable[[Served, str, str], int]
) -> None:
    token = served.tokens.add("anna")
    job = servers.opened(served, token)
    begun, may_end = threading.Event(), threading.Event()
    module, _, attribute = f"{SERVER}.{name}".rpartition(".")
    quick = _found(f"{module}.{attribute}")

    def slow(*arguments: Any, **keywords: Any) -> Any:
        begun.set()
        may_end.wait(SECONDS)
        return quick(*arguments, **keywords)

    def others() -> float:
        assert begun.wait(SECONDS)
        start = time.monotonic()
        try:
            assert served.ask(request("GET", "/v1/health"))[0] == 200
            return time.monotonic() - start
        finally:
            may_end.set()

    monkeypatch.setattr(f"{module}.{attribute}", slow)
    status, waited = in_threads([lambda: asks(served, token, job), others])
    assert status in (200, 201)
    assert isinstance(waited, float) and waited < 5.0


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
