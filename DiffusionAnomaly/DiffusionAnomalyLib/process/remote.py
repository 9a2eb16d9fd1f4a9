"""Servers that can do the work instead of this computer: which are set up, and the process that forwards to one.

A server is a device by the name ``remote:NAME``. Its token is kept as plain text among Slicer's settings, as everything
there is. The forwarding process speaks the worker's protocol, and needs nothing that Slicer's own Python has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from diffusion_anomaly.client.address import Server
from diffusion_anomaly.client.wire import VARIABLES
from diffusion_anomaly.errors import InputError

from ..settings import Settings, readJson, writeJson
from ..translation import tr as _
from .environment import pythonProgram, workerEnvironment

PREFIX = "remote:"
SERVERS = "Servers"
LONGEST_NAME = 40


@dataclass(frozen=True)
class RemoteServer:
    """A server that the user has set up.

    Attributes:
        name: that the user gave it.
        address, token, fingerprint: as of ``diffusion_anomaly.client.address.Server``.
        agreed: whether the user has said that scans may go there.
    """

    name: str
    address: str
    token: str
    fingerprint: str = ""
    agreed: bool = False

    @property
    def device(self) -> str:
        """What stands for it among the devices."""
        return PREFIX + self.name

    @property
    def title(self) -> str:
        """What the list of devices says."""
        return _("Remote: {name}").format(name=self.name)


def isRemote(device: str) -> bool:
    """Whether a device is a server, set up here or not."""
    return device.startswith(PREFIX)


def servers(settings: Settings) -> list[RemoteServer]:
    """Those that are set up; whatever else a damaged settings file holds is left out."""
    found = []
    for entry in readJson(settings, SERVERS, []):
        texts = entry if isinstance(entry, dict) else {}
        values = [texts.get(name, "") for name in ("name", "address", "token", "fingerprint")]
        if all(isinstance(value, str) for value in values) and all(values[:3]):
            found.append(RemoteServer(*values, agreed=texts.get("agreed") is True))
    return found


def serverOf(device: str, settings: Settings) -> RemoteServer | None:
    """The server that a device stands for; None for another device, and for one that is not set up here."""
    return next((server for server in servers(settings) if server.device == device), None)


def add(server: RemoteServer, settings: Settings) -> None:
    """Set a server up, instead of one of the same name.

    Raises:
        InputError: when the name, the address, the token or the fingerprint is none.
    """
    name = server.name.strip()
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise InputError(
            _("The server's name is empty or too long."),
            _("Give it up to {count} letters.").format(count=LONGEST_NAME),
        )
    known = Server(server.address, server.token, server.fingerprint)
    clean = RemoteServer(name, known.address, known.token, known.fingerprint, server.agreed)
    _write([*(other for other in servers(settings) if other.name != name), clean], settings)


def remove(name: str, settings: Settings) -> None:
    """Forget a server, and its token."""
    _write([other for other in servers(settings) if other.name != name], settings)


def agree(name: str, settings: Settings) -> None:
    """Note that scans may go to a server."""
    _write([replace(other, agreed=other.agreed or other.name == name) for other in servers(settings)], settings)


def problem(device: str, settings: Settings) -> str:
    """Why a server cannot be used; empty when it can, as far as is known, and for other devices."""
    if not isRemote(device) or serverOf(device, settings) is not None:
        return ""
    return _("The server {name} is not set up on this computer. Add it, or choose another device.").format(
        name=device.removeprefix(PREFIX)
    )


def question(server: RemoteServer) -> str:
    """What the user is asked before the first scan goes to a server."""
    return _(
        "The scan leaves this computer: its voxels and where they lie are sent to {address}, encrypted. Names, file "
        "names and DICOM headers stay here, but a head has a face.\n\nMay this scan and later ones be sent to {name}?"
    ).format(address=server.address, name=server.name)


def forwarderCommand() -> list[str]:
    """The command line of the process that forwards to a server, without the job's folder."""
    return [pythonProgram(), "-m", "diffusion_anomaly.client"]


def forwarderEnvironment(server: RemoteServer, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Its environment, in which other users cannot look for the token as they could among its arguments."""
    known = (server.address, server.token, server.fingerprint, "")
    return workerEnvironment(base) | dict(zip(VARIABLES, known, strict=True))


def _write(found: list[RemoteServer], settings: Settings) -> None:
    writeJson(settings, SERVERS, [asdict(server) for server in found])
