"""What the server answers to whoever the gate lets in: one method a request.

FastAPI is imported when an application is made, since the command line lists its commands without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..client.wire import PREFIX, WIRE_VERSION, Order, order_of
from ..errors import DiskFull, EngineError, InputError
from ..io.typed_json import parse
from ..models.package import Bundle
from ..worker.protocol import Failure
from .bodies import receive_voxels, small_body
from .certificate import INSTALL
from .gate import Gate
from .jobs import Board, Job, State, TooMany
from .limits import Limits
from .offer import Offer
from .refusals import Refusal, disk_full, not_found, refusal_of
from .spool import WrongBody
from .tokens import Tokens, User

if TYPE_CHECKING:
    from starlette.requests import Request  # type: ignore[import-not-found]
    from starlette.responses import Response  # type: ignore[import-not-found]

log = logging.getLogger(__name__)

_JOB = f"{PREFIX}/jobs/{{name}}"


def make_app(board: Board, tokens: Tokens, offer: Offer, limits: Limits) -> Gate:
    """The application.

    Raises:
        InputError: when FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request  # type: ignore[import-not-found]
        from starlette.exceptions import HTTPException  # type: ignore[import-not-found]
        from starlette.requests import ClientDisconnect  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("The server needs packages that are not installed.", f"Install them: {INSTALL}") from None

    # Annotations are texts here, which FastAPI looks up in the module.
    globals()["Request"] = Request
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={Refusal: _refused, HTTPException: _unknown, ClientDisconnect: _gone},
    )
    answers = Answers(board, offer, limits)
    for method, path, answer in (
        ("GET", f"{PREFIX}/models", answers.models),
        ("POST", f"{PREFIX}/jobs", answers.open_job),
        ("GET", _JOB, answers.state),
        ("PUT", f"{_JOB}/inputs/{{number}}", answers.take_input),
        ("GET", f"{_JOB}/events", answers.events),
        ("GET", f"{_JOB}/results/{{kind}}", answers.result),
        ("DELETE", _JOB, answers.delete),
    ):
        app.add_api_route(path, answer, methods=[method], response_model=None)
    return Gate(app, tokens, limits)


class Answers:
    """The requests that there are.

    Args:
        board: the jobs.
        offer: the models.
        limits: of everything.
    """

    def __init__(self, board: Board, offer: Offer, limits: Limits) -> None:
        self._board, self._offer, self._limits = board, offer, limits

    async def models(self) -> Response:
        """What is offered."""
        return _json({"version": __version__, "wire": WIRE_VERSION, "models": self._offer.to_json()})

    async def open_job(self, request: Request) -> Response:
        """Take an order; the name of the job whose voxels may come now."""
        user: User = request.state.user
        body = await small_body(request, self._limits)
        order, bundle = await asyncio.to_thread(self._checked, body)
        try:
            job = await self._board.open(user, order, str(bundle.path))
        except TooMany:
            raise Refusal(429, "busy", "There are too many jobs.", "Wait until some are done.") from None
        except OSError as error:
            log.error("an order of %s was refused: %s", user.name, error.strerror or error)
            raise refusal_of(error) from error
        if job.failure is not None:  # dropped meanwhile
            raise _refusal_of_failure(job.failure)
        log.info("job %s of %s: %d MB, %s", job.name, user.name, order.bytes // 10**6, bundle.name)
        return _json({"job": job.name, "inputs": len(order.inputs)}, 201)

    async def state(self, name: str, request: Request) -> Response:
        """What a job is doing, and why it has failed if it has."""
        job = self._job_of(request, name)
        error = None if job.failure is None else _refusal_of_failure(job.failure).to_json()["error"]
        return _json({"state": job.state.value, "error": error})

    async def take_input(self, name: str, number: str, request: Request) -> Response:
        """Take the voxels of an image; with the last of them the job waits for its turn."""
        job = self._job_of(request, name)
        index = _input_number(job, number)
        job.arriving.add(index)
        try:
            await receive_voxels(request, job, index, self._limits)
        except WrongBody as error:
            raise Refusal(422, "bad_input", f"The scan did not arrive as it was sent: {error}.") from error
        except OSError as error:
            if job.failure is not None:  # dropped meanwhile, and with it the folder
                raise _refusal_of_failure(job.failure) from error
            refusal = refusal_of(error)
            log.error("job %s failed: %s", job.name, error.strerror or error)
            await self._board.fail(job, refusal.code, refusal.what, refusal.hint)
            raise refusal from error
        finally:
            job.arriving.discard(index)
        if job.failure is not None:  # dropped meanwhile
            raise _refusal_of_failure(job.failure)
        job.received.add(index)
        missing = [other for other in range(len(job.order.inputs)) if other not in job.received]
        if not missing:
            await self._board.queue(job)
        return _json({"missing": missing})

    async def events(self, name: str, request: Request) -> Response:
        """What a job tells, as it does."""
        from starlette.responses import StreamingResponse  # type: ignore[import-not-found]

        job = self._job_of(request, name)
        last = request.headers.get("last-event-id", "0")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else 0
        headers = {"x-accel-buffering": "no"}  # for proxies that would wait for more
        stream = _stream(job, after, self._limits.heartbeat_seconds)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def result(self, name: str, kind: str, request: Request) -> Response:
        """A file that a job made."""
        from starlette.responses import FileResponse  # type: ignore[import-not-found]

        file = self._job_of(request, name).files.get(kind)
        if file is None:
            raise not_found()
        return FileResponse(file.path, media_type="application/octet-stream", headers={"x-sha256": file.sha256})

    async def delete(self, name: str, request: Request) -> Response:
        """Stop a job, and delete it."""
        job = self._job_of(request, name)
        log.info("job %s deleted by %s", job.name, job.user.name)
        await self._board.drop(job, "cancelled", "The run was stopped: as asked.")
        return _json({})

    def _job_of(self, request: Request, name: str) -> Job:
        job = self._board.of(request.state.user, name)
        if job is None:
            raise not_found()
        return job

    def _checked(self, body: bytes) -> tuple[Order, Bundle]:
        """An order, and the package that it means.

        Raises:
            Refusal: for what is no order, or none for this server.
        """
        try:
            order = order_of(parse(body))
            bundle = self._offer.choose(order.method, order.model, order.model_sha256)
            _check_options(order.options, bundle.method)
        except EngineError as error:
            raise Refusal.of(error) from error
        except ValueError as error:
            raise Refusal(422, "bad_input", f"The order is no JSON: {error}.") from error
        if order.bytes > self._limits.job_bytes:
            most = self._limits.job_bytes / 1e6
            what = f"The scan has {order.bytes / 1e6:.0f} MB of voxels, this server takes {most:.0f}."
            raise Refusal(413, "too_large", what, "Send a smaller scan.")
        return order, bundle


def _check_options(options: Any, method: str) -> None:
    """Refuse an option of the wrong kind before anything is sent; ranges of the method's own the worker knows."""
    from ..worker.main import detection_options
    from ..worker.protocol import Job as WorkerJob

    detection_options(WorkerJob("scan", "results", method, options=options))


def _input_number(job: Job, number: str) -> int:
    """Which input of a job a path means.

    Raises:
        Refusal: when there is none of that number, or it is not to be sent now.
    """
    index = int(number) if number.isascii() and number.isdigit() and len(number) < 4 else len(job.order.inputs)
    if index >= len(job.order.inputs):
        raise not_found()
    if job.failure is not None:
        raise _refusal_of_failure(job.failure)
    if index in job.received:
        raise Refusal(409, "there_already", "This input is there already.")
    if index in job.arriving or job.state is not State.RECEIVING:
        raise Refusal(409, "busy", "This input is on its way already.")
    return index


def _refusal_of_failure(failure: Failure) -> Refusal:
    """What is answered to whoever goes on with a job that has failed."""
    status = disk_full().status if failure.code == DiskFull.code else 409
    return Refusal(status, failure.code, failure.what, failure.hint)


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


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse  # type: ignore[import-not-found]

    return JSONResponse(content, status, headers=headers)


async def _refused(request: Request, refusal: Any) -> Response:
    retry = {"retry-after": "5"} if refusal.status in (429, 503) else None
    return _json(refusal.to_json(), refusal.status, retry)


async def _unknown(request: Request, error: Any) -> Response:
    """No such path, or no such method there."""
    return _json(not_found().to_json(), error.status_code)


async def _gone(request: Request, error: Any) -> Response:
    return _json(not_found().to_json(), 400)  # nobody reads it
