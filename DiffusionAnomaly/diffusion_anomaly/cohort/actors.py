"""Workers as Ray actors: processes on this machine or on those of a cluster, each with one loaded detector.

Ray is imported here alone, and only when workers are asked for. Of it no more is used than starting an actor, calling
it, and hearing that it has died: what is done, and how often, is for the run to say.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError, InputError
from ..process import uninterrupted
from ..text import counted
from .pool import Done
from .tasks import INTERNAL, WORKER_DIED, Failure, Outcome, Runner, Task

INSTALL = "pip install 'diffusion-anomaly[cohort]'"
# What crosses is names and numbers; Ray would take a third of the machine's memory for it. This is its least.
_STORE_BYTES = 80 << 20
_MOST_STARTS = 3  # in a row that may die before any was ready
_LOOK_SECONDS = 5.0  # between two questions to Ray whether it is there
_SILENT_SECONDS = 45.0  # without an answer until it is lost; after 60 Ray ends its driver itself, without a word


@dataclass(frozen=True)
class Workers:
    """How many workers there are and what each has.

    Attributes:
        count: None takes one for each GPU, or as many as the processors' cores allow.
        threads: of each; None takes the cores divided by the workers, or four.
        gpus: of each: 0 for a detector on the CPU, None where it depends on whether there are any.
        address: of a Ray cluster, such as ``auto`` or ``host:6379``; None for this machine. This process has to run on
            one of its machines.
    """

    count: int | None = None
    threads: int | None = None
    gpus: float | None = None
    address: str | None = None


def is_installed() -> bool:
    """Whether Ray is there."""
    return importlib.util.find_spec("ray") is not None


class _Worker:
    """The actor: one process with one detector."""

    def __init__(self, threads: int) -> None:
        # Before torch is imported; one that was set for the driver is not this worker's.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._run: Runner | None = None

    def start(self, make: Callable[[], Runner]) -> Failure | None:
        """Make what does the tasks; what prevents it comes back as a failure."""
        try:
            self._run = make()
        except EngineError as error:
            return Failure(error.code, error.what, error.hint)
        return None

    def run(self, task: Task) -> Outcome:
        assert self._run is not None
        return self._run(task)


class RayPool:
    """Workers, each busy with one task or free. One that dies is replaced.

    Args:
        make: makes what does the tasks, in each worker; it crosses to it.
        asked: how many workers.

    Raises:
        InputError: when Ray is not there, or the cluster cannot be reached.
    """

    def __init__(self, make: Callable[[], Runner], asked: Workers = Workers()) -> None:
        if not is_installed():
            raise InputError("Ray is not installed.", f"{INSTALL}, or say --workers 0 to use this process.")
        # Nothing is reported to Ray's makers unless the user has said so.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._make = make
        self._asked = asked
        # What will be known, by whom and for which task; None while a worker starts.
        self._actor_of: dict[concurrent.futures.Future[Any], Any] = {}
        self._task_of: dict[concurrent.futures.Future[Any], Task | None] = {}
        self._free: list[Any] = []
        self._died_at_start = 0
        self._ray: Any = None
        self._mine = False
        self._pulse: _Pulse | None = None
        try:
            # An exception that Ctrl-C raises in the middle of Ray's own start ends the process with corrupted memory.
            # A cluster that does not answer takes minutes, in which it must be heard.
            address = asked.address or os.environ.get("RAY_ADDRESS")
            if address and address.startswith("ray://"):
                raise InputError(
                    f"{address} is for clients outside of a Ray cluster, which a cohort cannot be.",
                    "Run it on a machine of the cluster, with the address auto.",
                )
            with contextlib.nullcontext() if address else uninterrupted():
                import ray  # type: ignore[import-not-found]

                self._ray, self._mine = ray, not ray.is_initialized()
                if self._mine:
                    self._connect(address)
            self._pulse = _Pulse(self._ray)
            self.count, self.threads, self.gpus = self._sizes()
            where = f" of the Ray cluster at {asked.address}" if asked.address else ""
            each = f"{self.gpus:g} GPU and " if self.gpus else ""
            self.title = f"{counted(self.count, 'worker')}{where}, {each}{counted(self.threads, 'thread')} each"
            for _ in range(self.count):
                self._start()
        except BaseException:
            self.close()
            raise

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    @property
    def is_idle(self) -> bool:
        return not any(self._task_of.values())

    def submit(self, task: Task) -> None:
        actor = self._free.pop()
        self._watch(actor.run.remote(task), actor, task)

    def wait(self, seconds: float) -> Sequence[Done]:
        """Raises EngineError when Ray itself has ended, which its own waiting would never notice."""
        if not self._task_of:
            return ()
        first = concurrent.futures.FIRST_COMPLETED
        ended, _ = concurrent.futures.wait(list(self._task_of), timeout=seconds, return_when=first)
        if not ended and self._pulse is not None and self._pulse.is_lost:
            raise EngineError(
                "Ray, which the workers belong to, has ended or does not answer.",
                "Out of memory is the usual reason. What is finished stays; the same command goes on there.",
            )
        done = (self._collect(future) for future in self._task_of.copy() if future in ended)
        return [entry for entry in done if entry is not None]

    def close(self) -> None:
        with uninterrupted():
            if self._pulse is not None:
                self._pulse.stop()
            for actor in {*self._free, *self._actor_of.values()}:
                with contextlib.suppress(Exception):  # Ray may be gone already
                    self._ray.kill(actor, no_restart=True)
            self._free.clear()
            self._actor_of.clear()
            self._task_of.clear()
            if self._mine:
                with contextlib.suppress(Exception):
                    self._ray.shutdown()

    def _sizes(self) -> tuple[int, int, float]:
        """How many workers, threads of each and GPUs of each.

        Raises:
            InputError: when there are not so many.
        """
        count, threads, gpus = sizes_of(self._asked, self._ray.cluster_resources())
        largest = max((node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]), default=0)
        if threads > largest:
            raise InputError(
                f"A worker is to have {counted(threads, 'thread')}; the largest machine has {largest:g} cores.",
                "Ask for fewer --threads.",
            )
        return count, threads, gpus

    def _connect(self, address: str | None) -> None:
        before = signal.getsignal(signal.SIGTERM)
        # Ray prints on stdout otherwise, which is for results.
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if address:
                self._ray.init(address=address, **quiet)
            else:
                wanted = (self._asked.count or 1) * (self._asked.threads or 1)
                self._ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    num_cpus=max(wanted, _cores()),
                    **quiet,
                )
        except Exception as error:  # Ray raises plain ones too
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise InputError(
                f"{where[0].upper()}{where[1:]} does not answer: {_last_line(error)}.",
                "Look at its address with `ray status`, or say --workers 0 to use this process.",
            ) from error
        finally:  # Ray puts its own way out in place of the program's
            if threading.current_thread() is threading.main_thread() and before is not None:
                signal.signal(signal.SIGTERM, before)

    def _start(self) -> None:
        actor = (
            self._ray.remote(_Worker)
            .options(num_cpus=self.threads, num_gpus=self.gpus, max_restarts=0)
            .remote(self.threads)
        )
        self._watch(actor.start.remote(self._make), actor, None)

    def _watch(self, reference: Any, actor: Any, task: Task | None) -> None:
        future = reference.future()
        self._actor_of[future], self._task_of[future] = actor, task

    def _collect(self, future: concurrent.futures.Future[Any]) -> Done | None:
        """What a worker answered; a worker that did not is replaced."""
        actor, task = self._actor_of.pop(future), self._task_of.pop(future)
        errors = self._ray.exceptions
        try:
            answer: Any = future.result()
        except errors.RayTaskError as error:  # it lives, and something that no runner raises was raised
            if task is None:
                raise EngineError(f"A worker cannot start: {_last_line(error)}.", "") from error
            self._free.append(actor)
            return task, Outcome(failure=Failure(INTERNAL, _last_line(error)))
        except errors.RayError as error:
            with contextlib.suppress(Exception):  # one that only cannot be reached is not to go on beside its heir
                self._ray.kill(actor, no_restart=True)
            self._died_at_start = self._died_at_start + 1 if task is None else 0
            if self._died_at_start >= _MOST_STARTS:
                raise EngineError(
                    f"Workers end as they start: {_last_line(error)}.",
                    "Is the program installed, in the same version, on every machine of the cluster?",
                ) from error
            self._start()
            if task is None:
                return None
            why = "ran out of memory" if isinstance(error, errors.OutOfMemoryError) else "died"
            hint = "Out of memory is the usual reason: fewer --workers, or more memory, may do."
            return task, Outcome(failure=Failure(WORKER_DIED, f"The worker {why} in this scan.", hint))
        self._free.append(actor)
        if task is not None:
            return task, answer
        if answer is not None:
            raise answer.as_error()
        self._died_at_start = 0
        return None


class _Pulse(threading.Thread):
    """Asks Ray again and again whether the machine of this process is still one of its own.

    In a thread, because the question is not answered, and never given up, when the process that would is gone.

    Args:
        ray: connected.
    """

    def __init__(self, ray: Any) -> None:
        super().__init__(daemon=True)
        self._ray, self._node = ray, ray.get_runtime_context().get_node_id()
        self._end = threading.Event()
        self._answered, self._gone = time.monotonic(), False
        self.start()

    @property
    def is_lost(self) -> bool:
        return self._gone or time.monotonic() - self._answered > _SILENT_SECONDS

    def run(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            with contextlib.suppress(Exception):  # no answer is one too
                nodes = self._ray.nodes()
                self._gone = not any(node["Alive"] for node in nodes if node["NodeID"] == self._node)
                self._answered = time.monotonic()

    def stop(self) -> None:
        """Ask no more; a question that is under way is waited for a little, as Ray is about to be closed."""
        self._end.set()
        self.join(_LOOK_SECONDS)


def sizes_of(asked: Workers, there: Mapping[str, float]) -> tuple[int, int, float]:
    """How many workers, threads of each and GPUs of each, from what was asked for and what there is."""
    cores, gpus = max(1, int(there.get("CPU", 1))), float(there.get("GPU", 0))
    each = asked.gpus if asked.gpus is not None else (1.0 if gpus else 0.0)
    if each > gpus:
        raise InputError(
            f"Workers on GPUs were asked for, and Ray sees {gpus:g} of them.",
            "Say --device cpu, or start Ray where the GPUs are.",
        )
    if asked.count is not None and each and asked.count * each > gpus:
        each = gpus / asked.count  # they share
    count = asked.count or (int(gpus / each) if each else max(1, cores // (asked.threads or min(4, cores))))
    threads = asked.threads or max(1, cores // count)
    return count, threads, each


def _cores() -> int:
    """Cores that this process may use, which a job's share of a machine makes fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__
