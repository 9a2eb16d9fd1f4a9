"""Which server, and how it is known.

Needs the standard library only, so that Slicer's own process does not load Requests to list servers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError
from ..text import printable


@dataclass(frozen=True)
class Server:
    """A server and how it is known.

    Attributes:
        address: such as ``https://gpu.example.org:8443``.
        token: the user's.
        fingerprint: SHA256 of its certificate, in hexadecimal, with or without colons; empty where an authority vouches
            for it.
        authorities: PEM file of who may; empty for those of Requests. Not asked where there is a fingerprint.

    Raises:
        InputError: for an address that is none, or is not encrypted, and for a fingerprint or a file that is none.
    """

    address: str
    token: str
    fingerprint: str = ""
    authorities: str = ""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.address.strip())
            is_whole = bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_whole, parts = False, urlsplit("")
        if parts.scheme != "https" or not is_whole or parts.path.strip("/") or parts.query or parts.username:
            raise InputError(
                f"{printable(self.address)!r} is no address of a server.", "Write it as https://HOST:PORT."
            )
        pin = re.sub(r"[:\s]", "", self.fingerprint).lower()
        if pin and not re.fullmatch(r"[0-9a-f]{64}", pin):
            raise InputError(
                "The fingerprint is no SHA256.", "Copy the 64 hexadecimal digits that the server printed when it began."
            )
        if not self.token.strip() or not self.token.strip().isascii():
            raise InputError("The token for the server is missing.", "Ask whoever runs the server for one.")
        if self.authorities and not Path(self.authorities).is_file():
            raise InputError(f"There is no file {printable(self.authorities)}.", "Give a PEM file of authorities.")
        object.__setattr__(self, "address", f"https://{parts.netloc}")
        object.__setattr__(self, "token", self.token.strip())
        object.__setattr__(self, "fingerprint", pin)

    def __repr__(self) -> str:
        return f"Server({self.address!r})"  # the token is in no log

    @property
    def name(self) -> str:
        """Host and port."""
        return urlsplit(self.address).netloc
