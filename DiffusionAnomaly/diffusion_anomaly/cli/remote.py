"""Options of commands that can have a server do the work, and what they come to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from ..client.wire import VARIABLES
from ..errors import InputError, ModelError
from ..registry import DEFAULT_METHOD
from .console import err, plain

if TYPE_CHECKING:
    from ..client.connection import Connection
    from ..client.detector import RemoteDetector
    from ..detection.planning import Options

TOKEN_VARIABLE = VARIABLES[1]
PORT = 8443
"""Of a server, unless told otherwise."""
_LONGEST_TOKEN = 1000  # bytes of a file

Address = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="NAME|URL",
        help="Have this server do the work, such as https://host:8443; the scan goes there.",
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"Holds the token for the server; default: {TOKEN_VARIABLE}.")
]
Fingerprint = Annotated[str, typer.Option(metavar="SHA256", help="Of the server's certificate, as it prints it.")]
Authorities = Annotated[
    Path | None, typer.Option(metavar="PEM", help="Who may sign the server's certificate, instead of --fingerprint.")
]


def connection_of(
    address: str | None, token_file: Path | None, fingerprint: str, authorities: Path | None
) -> Connection | None:
    """The connection for scans that the options ask for; None where they ask for none.

    Raises:
        InputError: for options without --server, and for a token that is not there.
    """
    connection = quiet_connection(address, token_file, fingerprint, authorities)
    if connection is not None:
        err.print(
            plain(
                f"The scan will leave this computer: its voxels and where they lie go to {connection.server.name}; no "
                "name, file name or DICOM header does."
            )
        )
    return connection


def quiet_connection(
    address: str | None, token_file: Path | None, fingerprint: str, authorities: Path | None
) -> Connection | None:
    """The same for what sends no scan."""
    if address is None:
        if token_file or fingerprint or authorities:
            raise InputError("--token-file, --fingerprint and --authorities are for a server.", "Give --server.")
        return None
    try:
        from ..client.address import Server
        from ..client.connection import Connection
    except ImportError:
        raise InputError(
            "Requests, which talks to servers, is not installed.", "pip install 'diffusion-anomaly[client]'"
        ) from None
    token = os.environ.get(TOKEN_VARIABLE, "") if token_file is None else _token_in(token_file)
    server = Server(_url(address), token, fingerprint, "" if authorities is None else str(authorities))
    return Connection(server, on_silence=lambda message: err.print(plain(message, "yellow")))


def _url(address: str) -> str:
    """An address of which the host's name alone may be given.

    >>> _url("gpu"), _url("gpu:1234"), _url("https://gpu")
    ('https://gpu:8443', 'https://gpu:1234', 'https://gpu')
    """
    if "://" in address:
        return address
    try:
        return f"https://{address}" if urlsplit(f"//{address}").port else f"https://{address}:{PORT}"
    except ValueError:  # refused with the words for addresses
        return address


def method_of(connection: Connection, model: str | None) -> str:
    """The method of a model that a server offers; the default method for no model.

    Raises:
        ModelError: when it does not offer it.
    """
    if model is None:
        return DEFAULT_METHOD
    for entry in connection.models():
        if entry.get("name") == model:
            return str(entry.get("method"))
    raise ModelError(
        f"The server {connection.server.name} offers no model {model!r}.",
        "Give the name of one that it offers; a folder of this computer is none.",
    )


def detector(connection: Connection, options: Options) -> RemoteDetector:
    """What detects there."""
    from ..client.detector import RemoteDetector

    return RemoteDetector(connection, options)


def _token_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_TOKEN).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"The token cannot be read from {path}: {error}.", "Give a file with it alone.") from error
