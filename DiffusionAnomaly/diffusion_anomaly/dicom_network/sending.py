"""Results on their way: by C-STORE, by STOW-RS, or into a folder, once to each destination."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import EngineError
from ..results.dicom import dicom_names
from ..results.saving import PROVENANCE
from ..text import printable
from .config import Destination, Retry
from .patience import Patience
from .receiving import client_context, load_pynetdicom
from .refusals import PASSING, Refused, Unreachable
from .store import DONE, QUEUE, SENDING, Delivery, Job, Store
from .web import WebClient

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger(__name__)

_WARNINGS = range(0xB000, 0xC000)
_SECONDS = 30
_MARKER = ".complete"


class Way(Protocol):
    """A way to a destination."""

    def send(self, files: Sequence[Path], name: str, sent: Callable[[Path], None]) -> None:
        """Send files, telling of each that has arrived.

        Args:
            files: DICOM files.
            name: of the study's folder.
            sent: is called with each file that is there.

        Raises:
            Unreachable: when it may work later.
            Refused: when it will not.
        """
        ...


class StoreWay:
    """C-STORE over one association."""

    def __init__(self, destination: Destination, calling_ae_title: str) -> None:
        self._destination = destination
        self._calling = destination.calling_ae_title or calling_ae_title

    def send(self, files: Sequence[Path], name: str, sent: Callable[[Path], None]) -> None:
        from pydicom import dcmread

        loaded = [(path, dcmread(path)) for path in files]
        association = self._associate([str(data.SOPClassUID) for _, data in loaded])
        refused: list[Refused] = []
        try:
            accepted = {context.abstract_syntax for context in association.accepted_contexts}
            for path, data in loaded:
                try:
                    if data.SOPClassUID not in accepted:
                        raise Refused(f"{data.SOPClassUID.name} is not accepted")
                    self._store(association, data)
                except Refused as error:
                    refused.append(error)
                else:
                    sent(path)
        finally:
            association.release()
        raise_refused(self._title, refused)

    def echo(self) -> None:
        """Ask by C-ECHO whether it answers.

        Raises:
            Unreachable: when it does not.
        """
        association = self._associate([str(load_pynetdicom().sop_class.Verification)])
        try:
            status = association.send_c_echo()
        finally:
            association.release()
        if not status or status.Status != 0:
            raise Unreachable(f"{self._title} does not answer to C-ECHO.", "Look there whether it knows this node.")

    @property
    def _title(self) -> str:
        there = self._destination
        return f"{there.ae_title} at {there.address}:{there.port}"

    def _associate(self, classes: Sequence[str]) -> Any:
        pynetdicom = load_pynetdicom()
        there = self._destination
        entity = pynetdicom.AE(ae_title=self._calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _SECONDS
        for sop_class in dict.fromkeys(classes):
            entity.add_requested_context(sop_class, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
        tls = None if there.tls is None else (client_context(there.tls), there.address)
        association = entity.associate(there.address, there.port, ae_title=there.ae_title, tls_args=tls)
        if association.is_established:
            return association
        why = "rejected the association" if association.is_rejected else "does not answer"
        # Without any context accepted pynetdicom aborts, and what was offered tells.
        if association.is_aborted and association.rejected_contexts and not association.accepted_contexts:
            names = ", ".join(context.abstract_syntax.name for context in association.rejected_contexts)
            raise Refused(f"{self._title} accepts none of {names}.", "Let it accept them, or choose other objects.")
        raise Unreachable(
            f"{self._title} {why}.", f"Does it run, and does it know this node as {self._calling}, with its address?"
        )

    def _store(self, association: Any, data: Dataset) -> None:
        kind = data.SOPClassUID.name
        try:
            status = association.send_c_store(data)
        except (RuntimeError, ValueError) as error:  # the association has ended; the object cannot be encoded
            if association.is_established:
                raise Refused(f"{kind} cannot be sent as {self._title} wants it") from error
            status = None
        if not status:
            raise Unreachable(f"{self._title} ended the association or gave no answer.", "Look at its log.")
        code = int(status.Status)
        if code in _WARNINGS:
            log.warning("%s took %s with the warning 0x%04X", self._title, kind, code)
        elif code in PASSING:
            raise Unreachable(f"{self._title} failed with status 0x{code:04X}.", "Look at its log and its disk.")
        elif code:  # what it says of it may name the patient: not for the log
            raise Refused(f"{kind}, status 0x{code:04X}", printable(status.get("ErrorComment", ""))[:200])


def raise_refused(title: str, refused: Sequence[Refused]) -> None:
    """Tell all refusals of a destination together.

    Raises:
        Refused: when there are any.
    """
    if refused:
        comments = " ".join(filter(None, (error.hint for error in refused)))
        raise Refused(
            f"{title} refused: {'; '.join(error.what for error in refused)}.",
            f"{comments} See to that there, or leave the kind out of the destination's objects.".strip(),
        )


class WebWay:
    """STOW-RS."""

    def __init__(self, destination: Destination) -> None:
        self.client = WebClient.of(destination)

    def send(self, files: Sequence[Path], name: str, sent: Callable[[Path], None]) -> None:
        refused: list[Refused] = []
        for path in files:
            try:
                self.client.store(path)
            except Refused as error:
                refused.append(error)
            else:
                sent(path)
        raise_refused(self.client.title, refused)


class FolderWay:
    """A folder a study, whole or not there, with a marker as routers look for."""

    def __init__(self, destination: Destination) -> None:
        self._folder = Path(str(destination.folder))

    def send(self, files: Sequence[Path], name: str, sent: Callable[[Path], None]) -> None:
        try:
            self._put(files, name)
        except OSError as error:
            raise Unreachable(
                f"The folder {self._folder} cannot be written to: {error.strerror or error}.", "See to that."
            ) from error
        for path in files:
            sent(path)

    def _put(self, files: Sequence[Path], name: str) -> None:
        partial, target = self._folder / f".partial-{name}", self._folder / name
        if target.is_dir() and all(_is_copy(target / path.name, path) for path in files):
            return  # the node was killed right behind the rename
        while target.exists():  # results that were made before
            target = self._folder / f"{name}-{secrets.token_hex(3)}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in files:
            shutil.copyfile(path, partial / path.name)
        (partial / _MARKER).touch()
        os.rename(partial, target)


def _is_copy(path: Path, other: Path) -> bool:
    return path.is_file() and path.read_bytes() == other.read_bytes()


def way_to(destination: Destination, calling_ae_title: str) -> Way:
    """The way that a destination's entries say.

    Raises:
        InputError: when a password is not in the environment, or packages are missing.
    """
    if destination.ae_title is not None:
        return StoreWay(destination, calling_ae_title)
    return WebWay(destination) if destination.url is not None else FolderWay(destination)


class Sender:
    """Sends the results of each study to all destinations, and puts it into ``done`` or ``quarantine``.

    Args:
        store: where the studies are.
        destinations: by name.
        calling_ae_title: how the node calls itself.
        retry: when what did not work is tried again.
    """

    def __init__(
        self, store: Store, destinations: Mapping[str, Destination], calling_ae_title: str, retry: Retry
    ) -> None:
        self._store, self._destinations, self._retry = store, destinations, retry
        self._patience = Patience(retry)
        self._ways = {name: way_to(destination, calling_ae_title) for name, destination in destinations.items()}

    def look(self) -> None:
        """Send what is due."""
        down: set[str] = set()  # the others do not wait for what does not answer to the first
        for job in self._store.jobs(SENDING):
            if self._patience.allows(job.name):
                with self._patience.trying(job.name):
                    self._look_at(job, down)

    def _look_at(self, job: Job, down: set[str]) -> None:
        if self._store.again(job):
            log.info("%s was moved back to be sent", job.name)
        if not (job.results / PROVENANCE).is_file():
            self._store.move(job, QUEUE)
            return
        for name in [name for name in self._destinations if name not in down]:
            delivery = job.delivery(name)
            if not delivery.failure and delivery.not_before <= time.time() and not self._send(job, name, delivery):
                down.add(name)
        self._settle(job)

    def _send(self, job: Job, name: str, delivery: Delivery) -> bool:
        """Whether the destination answers."""
        files = [path for path in self._files(job, name) if path.name not in delivery.sent]
        if not files:
            return True

        def sent(path: Path) -> None:
            delivery.sent.append(path.name)
            delivery.tries, delivery.since, delivery.not_before = 0, 0.0, 0.0
            job.set_delivery(name, delivery)
            log.info("%s: %s has arrived at %s", job.name, path.name, name)

        try:
            self._ways[name].send(files, job.name, sent)
            return True
        except Refused as error:
            delivery.failure = str(error)
            log.error("%s: %s: %s", job.name, name, error.what)
            job.set_delivery(name, delivery)
            return True
        except Exception as error:  # noqa: BLE001 - whatever went wrong on the way, the results are still here
            self._put_off(job, name, delivery, error)
            return not isinstance(error, Unreachable)

    def _put_off(self, job: Job, name: str, delivery: Delivery, error: Exception) -> None:
        now = time.time()
        delivery.tries += 1
        delivery.since = delivery.since or now
        delivery.not_before = now + self._retry.pause(delivery.tries)
        told = error.what if isinstance(error, EngineError) else f"{type(error).__name__}."
        if now - delivery.since >= 3600 * self._retry.give_up_after_h:
            delivery.failure = f"{told} Given up after {delivery.tries} tries."
            log.error("%s: %s: %s", job.name, name, delivery.failure)
        else:
            log.warning("%s: %s: %s Tried again in %.0f s", job.name, name, told, delivery.not_before - now)
        job.set_delivery(name, delivery)

    def _settle(self, job: Job) -> None:
        """Where a study belongs once nothing is left to send."""
        deliveries = {name: job.delivery(name) for name in self._destinations}
        for name, delivery in deliveries.items():
            if not delivery.failure and len(delivery.sent) < len(self._files(job, name)):
                return
        failed = {name: delivery.failure for name, delivery in deliveries.items() if delivery.failure}
        if failed:
            what = " ".join(f"{name}: {failure}" for name, failure in failed.items())
            reason = Refused(what, "When that is settled, move the folder back to sending/.")
            self._store.quarantine(job, reason, ", ".join(failed))
            log.error("%s: put into quarantine, since not all results arrived", job.name)
        else:
            self._store.move(job, DONE)
            log.info("%s: done", job.name)

    def _files(self, job: Job, name: str) -> list[Path]:
        """What a destination gets: without findings there is no segmentation."""
        wanted = dicom_names(self._destinations[name].objects).values()
        return [path for file in wanted if (path := job.results / file).is_file()]
