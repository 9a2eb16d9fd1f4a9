"""uvicorn with what it leaves to others: the bounds of connections, and what ends with it.

One process and one thread answer; detections are in processes of their own, the disk in threads.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from .. import __version__
from ..errors import InputError
from .app import make_app
from .certificate import INSTALL
from .connections import bounded_protocol
from .jobs import Board
from .limits import Limits
from .offer import Offer
from .slots import COMMAND, Slot, SlotRunner
from .spool import Spool
from .tokens import Tokens, User

log = logging.getLogger(__name__)

TOKENS = "tokens.json"
_SWEEP_SECONDS = 0.5
_SHUTDOWN_SECONDS = 3
_THREADS = 32  # for the disk; asyncio's own number is too small on a machine of few cores
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


def address_of(listener: socket.socket, given: str = "") -> str:
    """How clients name what is listened on.

    Args:
        listener: see ``bind``.
        given: the name or address that it was made with. Of one that stands for every network card, and can be opened
            nowhere, the machine's name takes the place.
    """
    host, port, *_ = listener.getsockname()
    host = socket.gethostname() if is_every_card(host) else given or host
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def is_every_card(address: str) -> bool:
    """Whether an address is none that can be opened, but stands for all of the machine's.

    >>> is_every_card("0.0.0.0"), is_every_card("::"), is_every_card("127.0.0.1"), is_every_card("localhost")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


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

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, "disk"))
    # uvicorn leaves asyncio's minute, in which whoever says nothing holds a file descriptor.
    waits = {"ssl_handshake_timeout": limits.header_seconds}
    if sys.version_info >= (3, 11):
        waits["ssl_shutdown_timeout"] = _SHUTDOWN_SECONDS
    loop.create_server = functools.partial(loop.create_server, **waits)  # type: ignore[method-assign]

    tokens = Tokens(spool.folder / TOKENS)
    board = Board(spool, limits)
    config = uvicorn.Config(
        make_app(board, tokens, offer, limits),
        http=bounded_protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=_MOST_HEADERS,
        timeout_graceful_shutdown=2 * _SHUTDOWN_SECONDS,
    )
    config.load()
    config.ssl = context

    class Server(uvicorn.Server):
        """Which knows why it ends, and ends what runs before it waits for connections to end."""

        reason = ""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.reason = self.reason or signal.Signals(sig).name
            super().handle_exit(sig, frame)

        def hang_up(self) -> None:
            self.reason, self.should_exit = self.reason or "SIGHUP", True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            board.close()
            late = loop.call_later(_SHUTDOWN_SECONDS, _abort, self)
            await asyncio.gather(super().shutdown(sockets), _ended(work))
            late.cancel()

    server = Server(config)
    work = [asyncio.create_task(SlotRunner(slot, board, command).run()) for slot in slots]
    work.append(asyncio.create_task(_sweep(board, tokens, server)))
    work.append(asyncio.create_task(_tell_when_started(server, on_started)))
    _end_on_hang_up(server)
    models = ", ".join(f"{model['name']} {model['version']}" for model in offer.to_json())
    places = ", ".join(slot.device for slot in slots)
    log.info("started: version %s at %s, models %s, slots on %s", __version__, address_of(listener), models, places)
    try:
        await server.serve(sockets=[listener])
    except Exception as error:
        server.reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        log.info("stopped: %s", server.reason or "asked by the program")
        await _ended(work)
        _abort(server)  # connections whose other end does not say goodbye
        await asyncio.sleep(0)


async def _ended(work: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they have ended.

    Before Python 3.12 ``asyncio.wait_for`` loses a cancellation that comes as what it waits for is done; a task that
    has not ended a while later is cancelled again.
    """
    pending = set(work)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=2 * _SHUTDOWN_SECONDS)


def _abort(server: Any, users: Callable[[User | None], bool] = lambda user: True) -> None:
    """Cut connections, whatever they are doing.

    Args:
        server: uvicorn's.
        users: of whom; None where nobody was let in yet.
    """
    for connection in list(server.server_state.connections):
        if users(connection.user):
            connection.transport.abort()


def _end_on_hang_up(server: Any) -> None:
    """uvicorn takes two signals; the end of its terminal is the third that ends a server."""
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is None or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(hang_up) != signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(hang_up, server.hang_up)


async def _sweep(board: Board, tokens: Tokens, server: Any) -> None:
    """Again and again: jobs that nobody may or will ask for go, and connections of tokens that were revoked."""
    revoked: set[User] = set()
    while True:
        try:
            try:
                known = await tokens.find_users()
            except InputError:  # logged; whose token was taken back is not known, and nothing is deleted for it
                board.sweep(lambda user: True)
            else:
                # A round later than the jobs, so that whoever follows their events hears why.
                _abort(server, (revoked - known).__contains__)
                board.sweep(known.__contains__)
                revoked = {connection.user for connection in server.server_state.connections} - known - {None}
        except Exception:
            log.exception("the jobs were not looked through")
        await asyncio.sleep(_SWEEP_SECONDS)


async def _tell_when_started(server: Any, on_started: Callable[[Any], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    on_started(server)


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
