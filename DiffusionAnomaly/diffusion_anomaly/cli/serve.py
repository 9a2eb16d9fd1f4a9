"""``serve``: lend this machine's GPU to others, and see to who may use it."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Annotated, cast

import typer

from ..errors import InputError
from ..io.files import write_error
from ..text import PrintableFormatter, counted
from .arguments import as_folder
from .console import err, out, plain
from .remote import PORT

_LOG = "server.log"
_LOG_BYTES, _LOG_FILES = 10_000_000, 5


def add_commands(app: typer.Typer) -> None:
    """Have the command line know them."""
    app.command()(serve)


def serve(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=as_folder, help="The server's own: tokens, certificate, log, jobs."),
    ],
    new_token: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print a new user's token, and serve not.")
    ] = None,
    revoke: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take a token back, at once, and serve not.")
    ] = None,
    list_tokens: Annotated[bool, typer.Option("--list-tokens", help="Print who has a token, and serve not.")] = False,
    address: Annotated[str, typer.Option(help="Of the network card; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = PORT,
    certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Default: one that is made, to be pinned.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="Of that certificate.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME|DIR", help="Offer this one; repeatable. [default: all built-in ones]"),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", help="cpu or cuda:0; repeatable, a slot each. [default: each GPU, or the CPU]"),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=64, help="Detections at a time on each device.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the processor for each; default: the cores divided by them.")
    ] = None,
    job_mb: Annotated[int, typer.Option(min=1, help="Voxels of a scan at most.")] = 2000,
    job_minutes: Annotated[float, typer.Option(min=0.1, help="A detection takes at most.")] = 60.0,
    keep_minutes: Annotated[float, typer.Option(min=0.1, help="Results that nobody takes are kept.")] = 15.0,
) -> None:
    """Lend this machine to others: detections over HTTPS, for whoever has a token.

    It works until it is stopped, by Ctrl-C or SIGTERM.
    """
    from ..server.listening import TOKENS, bind, server_folder
    from ..server.tokens import Tokens

    folder = server_folder(folder)
    if sum((new_token is not None, revoke is not None, list_tokens)) > 1:
        raise InputError("--new-token, --revoke and --list-tokens exclude each other.", "Give one of them.")
    tokens = Tokens(folder / TOKENS)
    if new_token is not None:
        out.print(plain(tokens.add(new_token)))
        err.print("It is shown this once; give it to the user by a safe way.")
        return
    if revoke is not None:
        if not tokens.revoke(revoke):
            raise InputError(f"Nobody called {revoke} has a token.", "See --list-tokens.")
        return
    if list_tokens:
        for name in tokens.names():
            out.print(plain(name))
        return

    from ..server import certificate as certificates
    from ..server.limits import Limits
    from ..server.listening import address_of, is_every_card
    from ..server.listening import serve as serve_until_stopped
    from ..server.offer import Offer
    from ..server.slots import Slot
    from ..server.spool import Spool

    if (certificate is None) != (key is None):
        raise InputError("A certificate and its key belong together.", "Give both --certificate and --key.")
    own = certificate is None
    pair = certificates.own_certificate(folder, address) if certificate is None or key is None else (certificate, key)
    context = certificates.server_context(*pair)
    offer = Offer(models or ())
    users = len(tokens.names())
    places = [device for device in (devices or _devices()) for _ in range(slots)]
    each = threads or max(1, (os.cpu_count() or 1) // len(places))
    limits = Limits(job_bytes=job_mb * 10**6, job_seconds=job_minutes * 60, keep_seconds=keep_minutes * 60)
    with _logged(folder / _LOG), Spool(folder, limits.reserve_bytes) as spool, bind(address, port) as listener:
        out.print(plain(address_of(listener, address)))
        out.print(plain(f"fingerprint {certificates.fingerprint(pair[0])}"))
        where = ", ".join(dict.fromkeys(places))
        err.print(plain(f"{counted(len(places), 'slot')} on {where}; {counted(users, 'token')}."))
        if is_every_card(listener.getsockname()[0]):
            err.print("It listens on every address of this machine.")
        if own:
            err.print("The certificate was made here: clients must be given the fingerprint.")
        with suppress(KeyboardInterrupt):
            asyncio.run(serve_until_stopped(listener, context, spool, offer, [Slot(d, each) for d in places], limits))
        err.print("Stopped; what was running is gone.")


def _devices() -> list[str]:
    """Each GPU, or the CPU."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


class _OwnLog(RotatingFileHandler):
    """Of which every file is its owner's alone, also those after the first. What a full disk does not take is lost."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of the library
        """Say nothing; stderr has the line too."""

    def _open(self) -> TextIOWrapper:
        return cast("TextIOWrapper", open(self.baseFilename, self.mode, encoding=self.encoding, opener=_for_owner))


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """The server's log into a file, of which five of 10 MB are kept, and onto stderr: users and numbers of jobs.

    A thread writes it, so that no request waits for the disk.
    """
    try:
        file = _OwnLog(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES - 1, encoding="utf-8")
    except OSError as error:
        raise write_error(path, error) from error
    handlers = [file, logging.StreamHandler()]
    logger, uvicorn = logging.getLogger("diffusion_anomaly.server"), logging.getLogger("uvicorn.error")
    levels = logger.level, uvicorn.level
    logger.setLevel(logging.INFO)
    uvicorn.setLevel(logging.ERROR)  # every scanner of ports would be a line
    for handler in handlers:
        handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    quick, writing = QueueHandler(lines), QueueListener(lines, *handlers)
    for one in (logger, uvicorn):
        one.addHandler(quick)
    writing.start()
    try:
        yield
    finally:
        logger.setLevel(levels[0])
        uvicorn.setLevel(levels[1])
        for one in (logger, uvicorn):
            one.removeHandler(quick)
        writing.stop()
        for handler in (quick, *handlers):
            handler.close()
