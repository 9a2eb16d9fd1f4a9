"""The node's configuration: a YAML file in, typed and checked values out.

Every entry is a field here, and every field is in the table of the documentation; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from ..detection.planning import Options
from ..errors import InputError
from ..io.typed_json import checked, kind_of
from ..options import check_number, shown
from ..results.dicom import DEFAULT_KINDS, KINDS
from ..text import printable

INSTALL = "pip install 'diffusion-anomaly[dicom-node]'"
ANYBODY = "*"
_T = TypeVar("_T")
# PS3.5: 16 letters, no backslash and no control character.
_AE_TITLE = re.compile(r"(?! +$)[\x20-\x5b\x5d-\x7e]{1,16}")
_LONGEST_CONFIG = 1 << 20


@dataclass(frozen=True)
class Tls:
    """Encryption of an association.

    Attributes:
        certificate, key: PEM files of the node itself; a server needs both.
        authorities: PEM file of those who may sign the other side's certificate. A node that listens asks for such a
            certificate where it is given; one that sends takes the system's authorities where it is not.
    """

    certificate: str | None = None
    key: str | None = None
    authorities: str | None = None


@dataclass(frozen=True)
class Peer:
    """Who may send.

    Attributes:
        ae_title: how it calls itself; ``*`` takes everybody.
        address: the IP address that it calls from; None takes any.
    """

    ae_title: str
    address: str | None = None


@dataclass(frozen=True)
class Listen:
    """Where studies are received.

    Attributes:
        ae_title: how the node is called; an association that calls another is rejected.
        peers: who may send.
        address: of the network card; the default is reached from this machine alone, ``0.0.0.0`` from everywhere.
        port: TCP port.
        most_associations: at a time.
        tls: None for no encryption.
    """

    ae_title: str
    peers: Sequence[Peer]
    address: str = "127.0.0.1"
    port: int = 11112
    most_associations: int = 10
    tls: Tls | None = None


@dataclass(frozen=True)
class Watch:
    """A folder that a router writes studies into.

    Attributes:
        folder: which one.
        marker: name of the file that says that a subfolder is complete; None takes what has been at rest.
        remove: whether files go from there once the node has them.
    """

    folder: str
    marker: str | None = None
    remove: bool = False


@dataclass(frozen=True)
class Destination:
    """Where results go; exactly one of ``ae_title``, ``url`` and ``folder`` says how.

    Attributes:
        ae_title, address, port: of a node that takes them by C-STORE.
        calling_ae_title: how this node calls itself there; None takes the one that it listens as.
        tls: for C-STORE; None for no encryption.
        url: of a DICOMweb service, such as ``https://pacs/dicom-web``, that takes them by STOW-RS.
        user: for that service.
        password_variable, token_variable: environment variables that hold its password or bearer token.
        authorities: PEM file of who may sign its certificate; None takes those that Requests knows.
        folder: into which a folder a study is put, with the file ``.complete`` last.
        objects: which results: ``segmentation``, ``anomaly_map``, ``findings``, ``report``.
    """

    ae_title: str | None = None
    address: str | None = None
    port: int | None = None
    calling_ae_title: str | None = None
    tls: Tls | None = None
    url: str | None = None
    user: str | None = None
    password_variable: str | None = None
    token_variable: str | None = None
    authorities: str | None = None
    folder: str | None = None
    objects: Sequence[str] = DEFAULT_KINDS


@dataclass(frozen=True)
class Retry:
    """When something that may pass is tried again: each pause is twice the one before.

    Attributes:
        first_s: seconds to the second try.
        longest_s: the longest pause.
        give_up_after_h: hours since the first try after which a study goes into quarantine.
    """

    first_s: float = 30.0
    longest_s: float = 3600.0
    give_up_after_h: float = 72.0

    def pause(self, tries: int) -> float:
        """Seconds to wait after so many tries.

        >>> [Retry(10, 60).pause(tries) for tries in (1, 2, 3, 4)]
        [10.0, 20.0, 40.0, 60.0]
        """
        return float(min(self.longest_s, self.first_s * 2.0 ** min(max(0, tries - 1), 60)))


@dataclass(frozen=True)
class NodeConfig:
    """All of it.

    Attributes:
        folder: where studies are kept.
        detection: options of a detection by name, as ``detection.planning.Options`` has them.
        destinations: by a name for the log.
        listen: None for a node that watches alone.
        watch: None for a node that listens alone.
        series: for each contrast of the model the descriptions of its series, with ``*`` for any letters.
        complete_after_s: seconds of quiet after which a study is complete.
        least_free_mb: of the disk, below which nothing is received.
        delete_done_after_days: images and results of a study that is done are deleted then; None keeps them.
        retry: when what may pass is tried again.
        log: file; None takes ``node.log`` in the folder.
    """

    folder: str
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    detection: Mapping[str, Any] = field(default_factory=dict)
    listen: Listen | None = None
    watch: Watch | None = None
    series: Mapping[str, str] = field(default_factory=dict)
    complete_after_s: float = 60.0
    least_free_mb: float = 500.0
    delete_done_after_days: float | None = None
    retry: Retry = field(default_factory=Retry)
    log: str | None = None

    @property
    def wants_pdf(self) -> bool:
        """Whether some destination gets the report as a PDF."""
        return any("report" in destination.objects for destination in self.destinations.values())


def read_config(path: Path) -> NodeConfig:
    """Read and check a configuration. Relative paths in it start at its folder.

    Raises:
        InputError: naming the entry that is wrong, and what is expected.
    """
    try:
        import yaml
    except ImportError:
        raise InputError("The node needs packages that are not installed.", f"Install them: {INSTALL}") from None
    try:
        with path.open("rb") as file:
            content = yaml.safe_load(file.read(_LONGEST_CONFIG))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}.", "Name the configuration file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is no valid YAML: {' '.join(str(error).split())}.", "Correct it there.") from error
    return _parsed(content, path)


def _parsed(content: Any, path: Path) -> NodeConfig:
    where = path.name
    entries = dict(_mapping(content, where))
    if "destinations" in entries:
        named = _mapping(entries["destinations"], f"{where}: destinations")
        entries["destinations"] = {
            name: _destination(_mapping(value, f"{where}: destinations.{name}"), f"{where}: destinations.{name}")
            for name, value in named.items()
        }
    if entries.get("listen") is not None:
        entries["listen"] = _listen(dict(_mapping(entries["listen"], f"{where}: listen")), f"{where}: listen")
    for name, kind in (("watch", Watch), ("retry", Retry)):
        if entries.get(name) is not None:
            entries[name] = _section(kind, entries[name], f"{where}: {name}")
    for name in ("detection", "series"):
        if name in entries:
            _mapping(entries[name], f"{where}: {name}")
    config: NodeConfig = checked(NodeConfig, entries, where)
    _check(config, where)
    return _resolved(config, path.absolute().parent)


def _listen(entries: dict[str, Any], where: str) -> Listen:
    if entries.get("tls") is not None:
        entries["tls"] = _section(Tls, entries["tls"], f"{where}.tls")
    if not isinstance(entries.get("peers", []), list):
        raise InputError(f"{where}: peers is {kind_of(entries['peers'])}, expected a list.", "Write - ae_title: NAME.")
    entries["peers"] = [_section(Peer, peer, f"{where}.peers") for peer in entries.get("peers", ())]
    listen: Listen = checked(Listen, entries, where)
    _check_title(listen.ae_title, f"{where}: ae_title")
    if not listen.peers:
        raise InputError(f"{where}: nobody may send.", 'Name who may under peers; - ae_title: "*" takes everybody.')
    for peer in listen.peers:
        if peer.ae_title != ANYBODY:
            _check_title(peer.ae_title, f"{where}.peers: ae_title")
        if peer.address is not None:
            _check_address(peer.address, f"{where}.peers: address")
    _check_range(where, port=listen.port, low=0, high=65535, whole=True)
    _check_range(where, most_associations=listen.most_associations, low=1, high=1000, whole=True)
    if listen.tls is not None and not (listen.tls.certificate and listen.tls.key):
        raise InputError(f"{where}.tls lacks certificate or key.", "A node that listens needs both.")
    return listen


def _destination(entries: Mapping[str, Any], where: str) -> Destination:
    entries = dict(entries)
    if entries.get("tls") is not None:
        entries["tls"] = _section(Tls, entries["tls"], f"{where}.tls")
    made: Destination = checked(Destination, entries, where)
    ways = [name for name in ("ae_title", "url", "folder") if getattr(made, name) is not None]
    if len(ways) != 1:
        raise InputError(
            f"{where} has {' and '.join(ways) or 'none of ae_title, url and folder'}.",
            "Give one of them: ae_title with address and port for C-STORE, url for DICOMweb, or folder.",
        )
    of_way = {
        "ae_title": {"ae_title", "address", "port", "calling_ae_title", "tls"},
        "url": {"url", "user", "password_variable", "token_variable", "authorities"},
        "folder": {"folder"},
    }[ways[0]]
    if foreign := sorted(entries.keys() - of_way - {"objects"}):
        raise InputError(f"{where}: {', '.join(foreign)} do not go with {ways[0]}.", "Leave them out.")
    if made.ae_title is not None:
        _check_title(made.ae_title, f"{where}: ae_title")
        if made.calling_ae_title is not None:
            _check_title(made.calling_ae_title, f"{where}: calling_ae_title")
        if made.address is None or made.port is None:
            raise InputError(f"{where} lacks address or port.", "C-STORE needs both.")
        _check_range(where, port=made.port, low=1, high=65535, whole=True)
    if made.url is not None and not made.url.startswith(("http://", "https://")):
        raise InputError(f"{where}: url is {made.url!r}.", "It begins with http:// or https://.")
    objects = made.objects
    if isinstance(objects, str) or not objects or any(name not in KINDS for name in objects):
        raise InputError(f"{where}: objects is {shown(objects)}.", f"It is a list of {', '.join(KINDS)}.")
    return made


def _check(config: NodeConfig, where: str) -> None:
    if config.listen is None and config.watch is None:
        raise InputError(f"{where} has neither listen nor watch, so nothing would come.", "Add one of them.")
    for name, destination in config.destinations.items():
        if destination.ae_title is not None and destination.calling_ae_title is None and config.listen is None:
            raise InputError(
                f"{where}: destinations.{name} lacks calling_ae_title.", "A node that does not listen has none else."
            )
    _check_range(where, complete_after_s=config.complete_after_s, low=0, high=86400)
    _check_range(where, least_free_mb=config.least_free_mb, low=0, high=1e9)
    if config.delete_done_after_days is not None:
        _check_range(where, delete_done_after_days=config.delete_done_after_days, low=0, high=1e5)
    retry = f"{where}: retry"
    _check_range(retry, first_s=config.retry.first_s, low=0.1, high=86400)
    _check_range(retry, longest_s=config.retry.longest_s, low=0.1, high=7 * 86400)
    _check_range(retry, give_up_after_h=config.retry.give_up_after_h, low=0, high=1e5)
    known = {option.name for option in fields(Options)}
    if unknown := sorted(config.detection.keys() - known):
        raise InputError(
            f"{where}: detection has the unknown entries {', '.join(unknown)}.",
            f"Known are {', '.join(sorted(known))}.",
        )
    if config.detection.get("anonymous"):
        raise InputError(
            f"{where}: detection.anonymous is set; DICOM results name the patient as the series does.",
            "Leave it out, and de-identify what is sent to the node.",
        )


def _check_range(where: str, *, low: float, high: float, whole: bool = False, **value: float) -> None:
    ((name, number),) = value.items()
    check_number(f"{name} of {where}", number, low, high, whole=whole)


def _check_title(title: str, where: str) -> None:
    if not _AE_TITLE.fullmatch(title):
        raise InputError(f"{where} is {printable(title)!r}.", "An AE title has 1 to 16 ASCII letters, no backslash.")


def _check_address(address: str, where: str) -> None:
    try:
        ip_address(address)
    except ValueError:
        raise InputError(f"{where} is {printable(address)!r}.", "Give the IP address that it calls from.") from None


def _section(kind: type[_T], value: Any, where: str) -> _T:
    return checked(kind, _mapping(value, where), where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{where} is {kind_of(value)}, expected entries NAME: VALUE.", "Correct the entry.")
    return value


def _resolved(config: NodeConfig, base: Path) -> NodeConfig:
    """Paths that do not depend on the current folder."""

    def at(path: str | None) -> str | None:
        return None if path is None else str(base / Path(path).expanduser())

    def tls(given: Tls | None) -> Tls | None:
        return given and Tls(at(given.certificate), at(given.key), at(given.authorities))

    detection = dict(config.detection)
    if isinstance(model := detection.get("model"), str) and (base / model).is_dir():
        detection["model"] = str(base / model)
    return replace(
        config,
        folder=str(base / Path(config.folder).expanduser()),
        log=at(config.log),
        detection=detection,
        listen=config.listen and replace(config.listen, tls=tls(config.listen.tls)),
        watch=config.watch and replace(config.watch, folder=str(base / Path(config.watch.folder).expanduser())),
        destinations={
            name: replace(one, tls=tls(one.tls), folder=at(one.folder), authorities=at(one.authorities))
            for name, one in config.destinations.items()
        },
    )
