"""Options of commands that can have a server do the work, and what they come to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
_LONGEST_TOKEN = 1000  # bytes of a file

Address = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Have this server do the work, such as https://host:8443; the scan goes there."
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
    """The connection that the options ask for; None where they ask for none.

    Raises:
        InputError: for options without --server, and for a token that is not there.
    """
    if address is None:
        if token_file or fingerprint or authorities:
            raise InputError("--token-file, --fingerprint and --authorities are for a server.", "Give --server.")
        return None
    try:
        from ..client.connection import Connection, Server
    except ImportError:
        raise InputError(
            "Requests, which talks to servers, is not installed.", "pip install 'diffusion-anomaly[client]'"
        ) from None
    token = os.environ.get(TOKEN_VARIABLE, "") if token_file is None else _token_in(token_file)
    connection = Connection(Server(address, token, fingerprint, "" if authorities is None else str(authorities)))
    err.print(
        plain(
            f"The scan leaves this computer: its voxels and where they lie go to {connection.server.name}; no name, "
            "file name or DICOM header does."
        )
    )
    return connection


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
