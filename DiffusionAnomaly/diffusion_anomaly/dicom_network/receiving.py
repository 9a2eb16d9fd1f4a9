"""The node as a storage SCP: C-STORE into the store and C-ECHO, by pynetdicom. A sender is told the truth of each
instance: success when it is on the disk, a failure when it is not.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, InputError
from ..io.dicom.decompression import SYNTAXES
from ..text import counted, printable
from .config import ANYBODY, INSTALL, Listen, Tls
from .store import Store

if TYPE_CHECKING:
    from pynetdicom.events import Event  # type: ignore[import-not-found]

log = logging.getLogger(__name__)

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_REJECTED_PERMANENTLY, _BY_USER, _CALLING_TITLE_UNKNOWN = 1, 1, 3
_UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
_RLE = "1.2.840.10008.1.2.5"


class Arrivals:
    """When something of each study last came, and over which association: what says that a study is complete."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._over: dict[str, set[Any]] = {}

    def note(self, study: str, association: Any = None) -> None:
        """Something of a study has come just now."""
        with self._lock:
            self._last[study] = time.monotonic()
            if association is not None:
                self._over.setdefault(study, set()).add(association)

    def is_quiet(self, study: str, seconds: float) -> bool:
        """Whether all associations that brought a study are closed, and nothing has come for so long.

        One that is not known, since it came before the node was started, is taken to have come now.
        """
        with self._lock:
            if any(association.is_alive() for association in self._over.get(study, ())):
                return False
            return time.monotonic() - self._last.setdefault(study, time.monotonic()) >= seconds

    def forget(self, study: str) -> None:
        with self._lock:
            self._last.pop(study, None)
            self._over.pop(study, None)


class Receiver:
    """Listens while it is entered.

    Args:
        listen: where, and who may send.
        store: what takes the instances.
        arrivals: is told of each.

    Raises:
        InputError: on entry, when the port cannot be had or the certificate cannot be read.
    """

    def __init__(self, listen: Listen, store: Store, arrivals: Arrivals) -> None:
        self._listen, self._store, self._arrivals = listen, store, arrivals
        self._server: Any = None

    @property
    def port(self) -> int:
        """Where it listens, also when it was left to the system by port 0."""
        return self._server.socket.getsockname()[1]

    def __enter__(self) -> Receiver:
        pynetdicom = load_pynetdicom()
        listen = self._listen
        entity = pynetdicom.AE(ae_title=listen.ae_title)
        entity.require_called_aet = True
        entity.maximum_associations = listen.most_associations
        # What the engine decodes: a sender that has a study otherwise sends it so.
        syntaxes = [*_UNCOMPRESSED, *map(str, SYNTAXES), _RLE]
        for context in pynetdicom.AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, syntaxes)
        entity.add_supported_context(pynetdicom.sop_class.Verification)
        events = pynetdicom.evt
        handlers = [
            (events.EVT_REQUESTED, self._check_peer),
            (events.EVT_C_STORE, self._take),
            (events.EVT_C_ECHO, lambda event: SUCCESS),
        ]
        try:
            self._server = entity.start_server(
                (listen.address, listen.port),
                block=False,
                evt_handlers=handlers,
                ssl_context=None if listen.tls is None else server_context(listen.tls),
            )
        except (OSError, OverflowError) as error:
            raise InputError(
                f"Port {listen.port} of {listen.address} cannot be listened on: {error}.",
                "Choose another port or address under listen, or stop what has it.",
            ) from error
        log.info("listening as %s on %s:%d", listen.ae_title, listen.address, self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _check_peer(self, event: Event) -> None:
        """Reject an association of somebody who is no peer; one of another called title pynetdicom rejects itself."""
        title, address = _calling_title(event), str(event.assoc.requestor.address).removeprefix("::ffff:")
        called = str(getattr(event.assoc.requestor.primitive, "called_ae_title", "")).strip()
        if called != self._listen.ae_title:
            names = printable(title), address, printable(called), self._listen.ae_title
            log.warning("rejected an association of %s at %s, who calls %s; this node is %s", *names)
        for peer in self._listen.peers:
            if peer.ae_title in (ANYBODY, title) and peer.address in (None, address):
                return
        log.warning("rejected an association of %s at %s, who is no peer", printable(title), address)
        event.assoc.acse.send_reject(_REJECTED_PERMANENTLY, _BY_USER, _CALLING_TITLE_UNKNOWN)
        event.assoc.is_rejected = True
        event.assoc.kill()

    def _take(self, event: Event) -> int:
        sender = printable(_calling_title(event))
        try:
            instance = self._store.add(event.encoded_dataset())
        except OSError as error:
            log.error("refused an instance of %s: %s", sender, error.strerror or error)
            return OUT_OF_RESOURCES
        except EngineError as error:
            log.warning("refused an instance of %s: it is damaged or lacks a UID (%s)", sender, error.code)
            return CANNOT_UNDERSTAND
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender must not take it for stored
            log.error("refused an instance of %s: %s", sender, type(error).__name__)
            return OUT_OF_RESOURCES
        if instance is None:
            return CANNOT_UNDERSTAND
        self._arrivals.note(instance.study, event.assoc)
        return SUCCESS


def _calling_title(event: Event) -> str:
    return str(getattr(event.assoc.requestor.primitive, "calling_ae_title", "")).strip()


def load_pynetdicom() -> Any:
    """pynetdicom, whose log, which may show what is sent, is off.

    Raises:
        InputError: when it is not installed.
    """
    try:
        import pynetdicom  # type: ignore[import-not-found]
        import pynetdicom.sop_class
    except ImportError:
        raise InputError("The node needs packages that are not installed.", f"Install them: {INSTALL}") from None
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    return pynetdicom


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS of a server, which asks senders for a certificate where it is told who may sign it.

    Raises:
        InputError: when a file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(str(tls.certificate), tls.key)
        if tls.authorities:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls.authorities)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"The certificate, key or authorities cannot be read: {error}.", "Give PEM files.") from error
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS of a sender.

    Raises:
        InputError: when a file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=tls.authorities)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise InputError(f"The certificate, key or authorities cannot be read: {error}.", "Give PEM files.") from error
    return context


def described(study: str, instances: int) -> str:
    """A study in the log, which knows it by its UID alone."""
    return f"study {study} ({counted(instances, 'instance')})"
