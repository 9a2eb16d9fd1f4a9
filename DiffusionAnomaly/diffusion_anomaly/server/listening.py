"""uvicorn with what it leaves to others: a time for headers, connections an address, a time for handshakes.

One process and one thread answer; detections are in processes of their own, the disk in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .app import make_app
from .certificate import INSTALL
from .jobs import Board
from .limits import Limits
from .offer import Offer
from .slots import COMMAND, Slot, SlotRunner
from .spool import Spool
from .tokens import Tokens

log = logging.getLogger(__name__)

TOKENS = "tokens.json"
_SWEEP_SECONDS = 1.0
_SHUTDOWN_SECONDS = 3
_MOST_HEADERS = 1 << 14  # bytes


def bind(address: str, port: int) -> socket.socket:
    """The socket to listen on.

    Raises:
        InputError: when it cannot be had.
    """
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Port {port} of {address} cannot be listened on: {error}.", "Choose another with --port or --address."
        ) from error


async def serve(
    listener: socket.socket,
    context: ssl.SSLContext,
    spool: Spool,
    offer: Offer,
    slots: Sequence[Slot],
    limits: Limits,
    command: Sequence[str] = COMMAND,
    on_started: Callable[[Any], None] = lambda server: None,
) -> None:
    """Answer until a signal comes.

    Args:
        listener: see ``bind``.
        context: TLS.
        spool: entered.
        offer: the models.
        slots: where jobs are run.
        limits: of everything.
        command: of a worker that serves.
        on_started: takes uvicorn's server when it listens; its ``should_exit`` ends it.

    Raises:
        InputError: when the packages are not installed.
    """
    try:
        import uvicorn  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("The server needs packages that are not installed.", f"Install them: {INSTALL}") from None

    tokens = Tokens(spool.folder / TOKENS)
    board = Board(spool, limits)
    config = uvicorn.Config(
        make_app(board, tokens, offer, limits),
        http=_protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=_MOST_HEADERS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    config.load()
    config.ssl = context
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    # uvicorn leaves asyncio's minute, in which whoever says nothing holds a file descriptor.
    waits = {"ssl_handshake_timeout": limits.header_seconds}
    if sys.version_info >= (3, 11):
        waits["ssl_shutdown_timeout"] = _SHUTDOWN_SECONDS
    loop.create_server = functools.partial(loop.create_server, **waits)  # type: ignore[method-assign]
    work = [asyncio.create_task(SlotRunner(slot, board, command).run()) for slot in slots]
    work.append(asyncio.create_task(_sweep(board, tokens)))
    work.append(asyncio.create_task(_tell_when_started(server, on_started)))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        for connection in list(server.server_state.connections):  # whose other end does not say goodbye
            connection.transport.abort()
        await asyncio.sleep(0)


async def _sweep(board: Board, tokens: Tokens) -> None:
    while True:
        try:
            board.sweep(tokens.knows)
        except Exception:
            log.exception("the jobs were not looked through")
        await asyncio.sleep(_SWEEP_SECONDS)


async def _tell_when_started(server: Any, on_started: Callable[[Any], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    on_started(server)


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol of a connection, with a time in which a request must have begun, and a place an address."""
    from uvicorn.protocols.http.h11_impl import H11Protocol  # type: ignore[import-not-found]

    addresses: Counter[str] = Counter()

    class Bounded(H11Protocol):  # type: ignore[misc, valid-type]
        _deadline: asyncio.TimerHandle | None = None
        _address = ""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._address = str((self.client or ("", 0))[0])
            addresses[self._address] += 1
            if addresses[self._address] > limits.connections_an_address:
                transport.abort()
                return
            self._expect_request()

        def connection_lost(self, error: Exception | None) -> None:
            addresses[self._address] -= 1
            if addresses[self._address] <= 0:
                del addresses[self._address]
            self._met()
            super().connection_lost(error)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._met()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:  # else the next request was there already
                self._expect_request()

        def _expect_request(self) -> None:
            self._met()
            self._deadline = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _met(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            with contextlib.suppress(OSError):
                self.transport.abort()

    return Bounded


def server_folder(folder: Path) -> Path:
    """The server's folder, made for its owner alone.

    Raises:
        InputError: when it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder.resolve()
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.", "Choose another folder.") from error
