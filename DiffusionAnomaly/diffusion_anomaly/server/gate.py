"""The gate that every request passes: who asks, how often, and that a refused request ends its connection."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..client.wire import PREFIX
from .limits import Buckets, Limits
from .refusals import Refusal, unknown_token
from .tokens import Tokens, User

log = logging.getLogger(__name__)

HEALTH = f"{PREFIX}/health"
_ALWAYS = {b"cache-control": b"no-store", b"x-content-type-options": b"nosniff"}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """An ASGI application around another.

    Nothing of a request's body has been read when it is refused here. Behind it ``request.state.user`` is whose it is.

    Args:
        app: what is behind it.
        tokens: who may pass.
        limits: how often.
    """

    def __init__(self, app: Application, tokens: Tokens, limits: Limits) -> None:
        self._app, self._tokens, self._limits = app, tokens, limits
        self._requests = Buckets(limits.requests_a_second, limits.burst)
        self._refusals = Buckets(limits.refusals_a_minute / 60, limits.refusals_a_minute)
        self._at_once: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no WebSocket is offered
            return
        send = _closing(send)
        if scope["path"] == HEALTH and scope["method"] == "GET":
            await _answer(send, 200, {"status": "ok"})
            return
        user = await self._tokens.find_user(_bearer(scope))
        if user is None:
            await self._refuse_stranger(str((scope.get("client") or ("", 0))[0]), send)
        elif not self._requests.take(user.digest):
            await _refuse(send, Refusal(429, "busy", "Too many requests.", "Try again in a second."), 1)
        elif self._at_once[user.digest] >= self._limits.streams_a_user:
            await _refuse(send, Refusal(429, "busy", "Too many requests at once.", "Try again later."), 5)
        else:
            await self._let_in(user, scope, receive, send)

    async def _let_in(self, user: User, scope: Scope, receive: Receive, send: Send) -> None:
        self._at_once[user.digest] += 1
        scope.setdefault("state", {})["user"] = user
        try:
            await self._app(scope, receive, send)
        finally:
            self._at_once[user.digest] -= 1
            self._at_once += Counter()  # without zeros

    async def _refuse_stranger(self, address: str, send: Send) -> None:
        if not self._refusals.take(address):
            await _refuse(send, Refusal(429, "busy", "Too many requests without a token."), 60)
        else:
            log.warning("refused %s: no or an unknown token", address)
            await _refuse(send, unknown_token())


def _closing(send: Send) -> Send:
    """With headers that every answer has; one that refuses ends the connection, as its body may not have been read."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(_ALWAYS)
            if message["status"] >= 400:
                headers[b"connection"] = b"close"
            message = {**message, "headers": [*message.get("headers", ()), *headers.items()]}
        await send(message)

    return closing


def _bearer(scope: Scope) -> str:
    """The token of a request; empty for none, or for several headers that could mean several."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return ""
    scheme, _, token = given[0].decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _refuse(send: Send, refusal: Refusal, retry_after: int | None = None) -> None:
    headers = [] if retry_after is None else [(b"retry-after", str(retry_after).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await _answer(send, refusal.status, refusal.to_json(), headers)


async def _answer(send: Send, status: int, content: Any, headers: Any = ()) -> None:
    body = json.dumps(content).encode()
    sizes = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*sizes, *headers]})
    await send({"type": "http.response.body", "body": body})
