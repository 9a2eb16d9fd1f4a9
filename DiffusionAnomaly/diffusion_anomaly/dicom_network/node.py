"""The node: receiving, watching, looking and sending, each at its own pace, and nothing between them but folders."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ..detection.detector import Detector
from ..errors import EngineError, InputError
from ..text import counted
from .config import NodeConfig
from .looking import Looker
from .patience import Patience
from .receiving import Arrivals, Receiver, described
from .sending import Sender, StoreWay, WebWay, way_to
from .store import INCOMING, QUARANTINE, QUEUE, SENDING, Store
from .watching import Watcher

log = logging.getLogger(__name__)

_TICK_S = 0.5
_BETWEEN_DELETIONS_S = 3600.0


class Node:
    """All parts together. Looking is done by the thread that runs it, receiving and sending by others.

    Args:
        config: what the user wants.
        detector: what to detect with; its model is loaded before anything is received.

    Raises:
        EngineError: when the folder, the watched one, a password or the packages are not there.
    """

    def __init__(self, config: NodeConfig, detector: Detector) -> None:
        self.config, self._detector = config, detector
        self.store = Store(Path(config.folder), config.least_free_mb * 1e6)
        try:
            self._arrivals = Arrivals()
            self._looker = Looker(detector, self.store, config.series, config.retry, config.wants_pdf)
            self._sender = Sender(self.store, config.destinations, calling_title(config), config.retry)
            self._watcher = config.watch and Watcher(config.watch, self.store, self._arrivals, config.complete_after_s)
            self.receiver = config.listen and Receiver(config.listen, self.store, self._arrivals)
        except BaseException:
            self.store.close()
            raise
        self._stop = threading.Event()
        self._patience = Patience(config.retry)
        self._threads: list[threading.Thread] = []
        self._next_deletion = 0.0

    def run(self) -> None:
        """Work until it is stopped.

        Raises:
            EngineError: when the port cannot be had, or the model package cannot be used.
            KeyboardInterrupt, Cancelled: when the user stopped it; everything goes on when it is started again.
        """
        with ExitStack() as stack:
            stack.callback(log.info, "stopped")
            stack.callback(self.store.close)
            stack.callback(self._end)
            _ = self._detector.model  # damaged weights are found now, and not by the first study
            self._report_standing()
            if self.receiver:
                stack.enter_context(self.receiver)
            works = {"watching": self._watcher and self._watcher.look, "gathering": self._gather}
            for name, work in {**works, "sending": self._sender.look}.items():
                if work:
                    self._threads.append(threading.Thread(target=self._repeat, args=(name, work), daemon=True))
                    self._threads[-1].start()
            while not self._stop.is_set():
                busy = False
                if self._patience.allows("looking"):
                    with self._patience.trying("looking"):
                        busy = self._looker.look()
                if not busy:
                    self._stop.wait(_TICK_S)

    def _end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=_TICK_S * 4)  # what it was about to send is sent when the node is started again

    @property
    def is_ready(self) -> bool:
        """Whether it receives and works."""
        return bool(self._threads)

    def stop(self) -> None:
        """Let `run` return, from any thread, after the study that it looks at."""
        self._stop.set()

    def _repeat(self, name: str, work: Callable[[], object]) -> None:
        took = 0.0
        while not self._stop.wait(max(_TICK_S, took)):  # with thousands of studies to look through, less often
            start = time.monotonic()
            if self._patience.allows(name):
                with self._patience.trying(name):
                    work()
            took = time.monotonic() - start

    def _gather(self) -> None:
        """Put what is complete into the queue."""
        for study in self.store.incoming():
            if self._patience.allows(study) and self._arrivals.is_quiet(study, self.config.complete_after_s):
                with self._patience.trying(study):
                    self._complete(study)
        self._delete_old()

    def _complete(self, study: str) -> None:
        self._arrivals.forget(study)
        job = self.store.complete(study)
        if job is None:
            log.info("study %s has come again without a new image; nothing is to be done", study)
        else:
            log.info("%s is complete", described(study, len(job.record.images) + len(job.record.others)))

    def _delete_old(self) -> None:
        days = self.config.delete_done_after_days
        if days is None or time.monotonic() < self._next_deletion:
            return
        self._next_deletion = time.monotonic() + _BETWEEN_DELETIONS_S
        for name in self.store.delete_old(days):
            log.info("%s: images and results deleted after %g days", name, days)

    def _report_standing(self) -> None:
        """What there is to go on with."""
        standing = {state: len(self.store.jobs(state)) for state in (QUEUE, SENDING, QUARANTINE)}
        standing[INCOMING] = len(self.store.incoming())
        log.info("in %s: %s", self.store.folder, ", ".join(f"{count} in {state}/" for state, count in standing.items()))
        if strangers := len(self.store.strangers()):
            log.warning("%s without a study.json in queue/ and sending/ passed over", counted(strangers, "folder"))


def calling_title(config: NodeConfig) -> str:
    """How the node calls itself."""
    return config.listen.ae_title if config.listen else ""


def check_own(config: NodeConfig) -> dict[str, str]:
    """What is wrong with the node's own folder and port; nothing is made, and nothing stays open."""
    folder = Path(config.folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    found = {"folder": "" if writable else f"{folder} cannot be written to: see to {there}."}
    if config.listen is not None:
        address = (config.listen.address, config.listen.port)
        try:
            with socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET):
                found["listen"] = ""
        except (OSError, OverflowError) as error:
            found["listen"] = (
                f"Port {address[1]} of {address[0]} cannot be listened on, unless this node has it already: {error}."
            )
    return found


def check_destinations(config: NodeConfig) -> dict[str, str]:
    """What is wrong with each destination, asked without sending anything; empty where nothing is."""
    found = {}
    for name, destination in config.destinations.items():
        try:
            way = way_to(destination, calling_title(config))
            if isinstance(way, StoreWay):
                way.echo()
            elif isinstance(way, WebWay):
                way.client.check()
            elif not Path(str(destination.folder)).absolute().parent.is_dir():
                raise InputError(f"There is no folder to make {destination.folder} in.", "Make it first.")
            found[name] = ""
        except EngineError as error:
            found[name] = str(error)
    return found
