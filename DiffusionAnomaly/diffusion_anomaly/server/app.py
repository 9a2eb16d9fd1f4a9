"""What the server answers: the gate that every request passes, and one function a request.

FastAPI is imported when an application is made, since the command line lists its commands without it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..client.wire import PREFIX, WIRE_VERSION, order_of
from ..errors import EngineError, InputError
from ..io.typed_json import parse
from ..text import printable
from .certificate import INSTALL
from .jobs import Board, Job, State
from .limits import Buckets, Limits
from .offer import Offer
from .spool import DiskFull, VoxelFile, WrongBody
from .tokens import Tokens, User

if TYPE_CHECKING:
    from starlette.requests import Request  # type: ignore[import-not-found]
    from starlette.responses import Response  # type: ignore[import-not-found]

log = logging.getLogger(__name__)

HEALTH = f"{PREFIX}/health"
_BLOCK = 1 << 20  # bytes of a body that go to the disk at a time
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_CLOSED = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        code, what, hint: as in the event ``error``.
    """

    def __init__(self, status: int, code: str, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.status, self.code, self.what, self.hint = status, code, what, hint

    @classmethod
    def of(cls, error: EngineError) -> Refusal:
        return cls(422, error.code, error.what, error.hint)


NOT_FOUND = Refusal(404, "not_found", "There is nothing of that name.")
UNKNOWN_TOKEN = Refusal(401, "token", "The token is missing, unknown or was revoked.", "Ask for one.")
DISK_FULL = Refusal(507, "disk_full", "The server's disk is full.", "Try again later, or tell whoever runs it.")
FAILED = Refusal(500, "internal", "The server failed.", "Tell whoever runs it; its log says more.")


class Gate:
    """Around everything: who asks, how often, and that an answer to a refused request ends its connection.

    Nothing of a request's body has been read when it is refused here.

    Args:
        app: what is behind it.
        tokens: who may pass.
        limits: how often.
    """

    def __init__(self, app: Any, tokens: Tokens, limits: Limits) -> None:
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

        async def closing(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = {name.encode(): value.encode() for name, value in _CLOSED.items()}
                if message["status"] >= 400:  # its body may not have been read
                    headers[b"connection"] = b"close"
                message = {**message, "headers": [*message.get("headers", ()), *headers.items()]}
            await send(message)

        if scope["path"] == HEALTH and scope["method"] == "GET":
            await _answer(closing, 200, {"status": "ok"})
            return
        user = self._tokens.user_of(_bearer(scope))
        if user is None:
            address = str((scope.get("client") or ("", 0))[0])
            if not self._refusals.take(address):
                await _refuse(closing, Refusal(429, "busy", "Too many requests without a token."), 60)
            else:
                log.warning("refused %s: no or an unknown token", address)
                await _refuse(closing, UNKNOWN_TOKEN)
            return
        if not self._requests.take(user.digest):
            await _refuse(closing, Refusal(429, "busy", "Too many requests.", "Try again in a second."), 1)
            return
        if self._at_once[user.digest] >= self._limits.streams_a_user:
            await _refuse(closing, Refusal(429, "busy", "Too many requests at once.", "Try again later."), 5)
            return
        self._at_once[user.digest] += 1
        scope.setdefault("state", {})["user"] = user
        try:
            await self._app(scope, receive, closing)
        finally:
            self._at_once[user.digest] -= 1
            self._at_once += Counter()  # without zeros


def make_app(board: Board, tokens: Tokens, offer: Offer, limits: Limits) -> Gate:
    """The application.

    Raises:
        InputError: when FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request  # type: ignore[import-not-found]
        from fastapi.responses import FileResponse, JSONResponse, StreamingResponse  # type: ignore[import-not-found]
        from starlette.exceptions import HTTPException  # type: ignore[import-not-found]
        from starlette.requests import ClientDisconnect  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("The server needs packages that are not installed.", f"Install them: {INSTALL}") from None

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    # Annotations are texts here, which FastAPI looks up in the module.
    globals()["Request"] = Request

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        retry = {"retry-after": "5"} if refusal.status in (429, 503) else None
        return JSONResponse(_error(refusal), refusal.status, headers=retry)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return JSONResponse(_error(NOT_FOUND), error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return JSONResponse(_error(NOT_FOUND), 400)  # nobody reads it

    @app.get(f"{PREFIX}/models")
    async def models() -> Response:
        return JSONResponse({"version": __version__, "wire": WIRE_VERSION, "models": offer.to_json()})

    @app.post(f"{PREFIX}/jobs")
    async def post_job(request: Request) -> Response:
        user: User = request.state.user
        body = await _small_body(request, limits)
        try:
            order = order_of(parse(body))
            bundle = offer.choose(order.method, order.model, order.model_sha256)
            _check_options(order.options, bundle.method)
        except EngineError as error:
            raise Refusal.of(error) from error
        except ValueError as error:
            raise Refusal(422, "bad_input", f"The order is no JSON: {error}.") from error
        if order.bytes > limits.job_bytes:
            what = f"The scan has {order.bytes / 1e6:.0f} MB of voxels, this server takes {limits.job_bytes / 1e6:.0f}."
            raise Refusal(413, "too_large", what, "Send a smaller scan.")
        if board.count(user) >= limits.jobs_a_user or len(board) >= limits.jobs:
            raise Refusal(429, "busy", "There are too many jobs.", "Wait until some are done.")
        try:
            job = board.open(user, order, str(bundle.path))
        except DiskFull as error:
            log.error("the disk is full: an order of %s was refused", user.name)
            raise DISK_FULL from error
        except OSError as error:
            log.error("no folder can be made: %s", error.strerror or error)
            raise DISK_FULL from error
        log.info("job %s of %s: %d MB, %s", job.name, user.name, order.bytes // 10**6, bundle.name)
        return JSONResponse({"job": job.name, "inputs": len(order.inputs)}, 201)

    @app.put(f"{PREFIX}/jobs/{{name}}/inputs/{{number}}")
    async def put_input(name: str, number: str, request: Request) -> Response:
        job = _job_of(board, request, name)
        index = int(number) if number.isascii() and number.isdigit() and len(number) < 4 else len(job.order.inputs)
        if index >= len(job.order.inputs):
            raise NOT_FOUND
        if index in job.received:
            raise Refusal(409, "there_already", "This input is there already.")
        if index in job.arriving or job.state is not State.RECEIVING:
            raise Refusal(409, "busy", "This input is on its way already.")
        job.arriving.add(index)
        try:
            await _receive(request, job, index, limits)
        except WrongBody as error:
            raise Refusal(422, "bad_input", f"The scan did not arrive as it was sent: {error}.") from error
        except OSError as error:
            if job.state is not State.RECEIVING:  # its folder went meanwhile
                raise NOT_FOUND from error
            refusal = DISK_FULL if error.errno in _NO_SPACE else FAILED
            board.drop(job, "internal", refusal.what, refusal.hint)
            log.error("job %s: %s", job.name, error.strerror or error)
            raise refusal from error
        finally:
            job.arriving.discard(index)
        if job.state is not State.RECEIVING:  # dropped meanwhile, and with it the folder
            raise NOT_FOUND
        job.received.add(index)
        missing = [other for other in range(len(job.order.inputs)) if other not in job.received]
        if not missing:
            await board.queue(job)
        return JSONResponse({"missing": missing})

    @app.get(f"{PREFIX}/jobs/{{name}}/events")
    async def events(name: str, request: Request) -> Response:
        job = _job_of(board, request, name)
        last = request.headers.get("last-event-id", "0")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else 0
        headers = {"x-accel-buffering": "no"}  # for proxies that would wait for more
        stream = _stream(job, after, limits.heartbeat_seconds)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @app.get(f"{PREFIX}/jobs/{{name}}/results/{{kind}}")
    async def result(name: str, kind: str, request: Request) -> Response:
        file = _job_of(board, request, name).files.get(kind)
        if file is None:
            raise NOT_FOUND
        return FileResponse(file.path, media_type="application/octet-stream", headers={"x-sha256": file.sha256})

    @app.delete(f"{PREFIX}/jobs/{{name}}")
    async def delete(name: str, request: Request) -> Response:
        job = _job_of(board, request, name)
        log.info("job %s deleted by %s", job.name, job.user.name)
        board.drop(job, "cancelled", "The run was stopped: as asked.")
        return JSONResponse({})

    return Gate(app, tokens, limits)


def _job_of(board: Board, request: Request, name: str) -> Job:
    job = board.of(request.state.user, name)
    if job is None:
        raise NOT_FOUND
    return job


def _check_options(options: Any, method: str) -> None:
    """Refuse an option of the wrong kind before anything is sent; ranges of the method's own the worker knows."""
    from ..worker.main import detection_options
    from ..worker.protocol import Job as WorkerJob

    detection_options(WorkerJob("scan", "results", method, options=options))


async def _small_body(request: Request, limits: Limits) -> bytes:
    """A body that is read whole."""
    body = bytearray()
    async for piece in _pieces(request, limits, limits.order_bytes):
        body += piece
    return bytes(body)


async def _receive(request: Request, job: Job, index: int, limits: Limits) -> None:
    """Voxels onto the disk, a block at a time, in a thread."""
    header = job.order.inputs[index]
    encoding = request.headers.get("content-encoding", "identity")
    if encoding not in ("identity", "gzip"):
        raise Refusal(415, "bad_input", f"The encoding {printable(encoding)[:40]} is not known.", "Use gzip or none.")
    file = await asyncio.to_thread(VoxelFile, job.input_path(index), header, encoding == "gzip")
    try:
        block = bytearray()
        # What does not shrink grows by a little under gzip.
        async for piece in _pieces(request, limits, header.bytes + header.bytes // 100 + 1024):
            block += piece
            if len(block) >= _BLOCK:
                await asyncio.to_thread(file.write, bytes(block))
                block.clear()
        await asyncio.to_thread(file.write, bytes(block))
        await asyncio.to_thread(file.finish)
    finally:
        await asyncio.to_thread(file.discard)


async def _pieces(request: Request, limits: Limits, most: int) -> AsyncIterator[bytes]:
    """A request's body as it comes, neither longer nor slower than it may be."""
    stated = request.headers.get("content-length", "")
    too_large = Refusal(413, "too_large", f"The body is larger than {most} bytes.")
    if stated.isdigit() and int(stated[:19]) > most:
        raise too_large
    start, came = time.monotonic(), 0
    stream = request.stream().__aiter__()
    while True:
        late = start + limits.stall_seconds + came / limits.least_rate - time.monotonic()
        try:
            piece = await asyncio.wait_for(stream.__anext__(), max(0.0, min(late, limits.stall_seconds)))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise Refusal(408, "too_slow", "The body comes too slowly.", "Try again.") from None
        came += len(piece)
        if came > most:
            raise too_large
        yield piece


async def _stream(job: Job, after: int, heartbeat: float) -> AsyncIterator[str]:
    """A job's events as server-sent events, until it is over."""
    yield ": events\n\n"  # the headers go out at once
    while True:
        changed, is_over = job.changed, job.state is State.OVER
        for number, line in job.events_after(after):
            after = number
            yield f"id: {number}\ndata: {line}\n\n"
        if is_over:
            return
        try:
            await asyncio.wait_for(changed.wait(), heartbeat)
        except asyncio.TimeoutError:
            yield ": still here\n\n"


def _bearer(scope: Scope) -> str:
    """The token of a request; empty for none, or for several headers that could mean several."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return ""
    scheme, _, token = given[0].decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _error(refusal: Refusal) -> dict[str, Any]:
    return {"error": {"code": refusal.code, "what": refusal.what, "hint": refusal.hint}}


async def _refuse(send: Send, refusal: Refusal, retry_after: float | None = None) -> None:
    headers = [] if retry_after is None else [(b"retry-after", str(math.ceil(retry_after)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await _answer(send, refusal.status, _error(refusal), headers)


async def _answer(send: Send, status: int, content: Any, headers: Any = ()) -> None:
    body = json.dumps(content).encode()
    sizes = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*sizes, *headers]})
    await send({"type": "http.response.body", "body": body})
