"""A cohort from a list of scans to results, tables and pages: what the commands are thin callers of."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..text import counted, listed
from .actors import RayPool, Workers, is_installed
from .derivatives import write_dataset
from .failures import write_failures
from .group import left_out_in_words
from .pool import Pool, ThisProcess
from .quality import check_group, write_group
from .run import Failed, Listener, plan_tasks, run_tasks
from .scans import CohortScan, shard_of
from .state import CohortLock, settings_of
from .tasks import Runner, ScanRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..detection.planning import Options, Plan

_SHOWN = 5


@dataclass(frozen=True)
class Ended:
    """What a run came to.

    Attributes:
        finished: how many scans have a result, earlier ones among them.
        failed: the scans without one.
        files: tables, that of failures among them, and pages that were written, by name.
    """

    finished: int
    failed: list[Failed]
    files: Mapping[str, Path] = field(default_factory=dict)


def plan_of(options: Options) -> Plan:
    """The options checked and joined with the model's, also where the workers' device is not this machine's.

    Raises:
        EngineError: as ``make_plan``.
    """
    from ..detection.planning import make_plan

    return make_plan(replace(options, device="cpu"))


def run_cohort(
    scans: Sequence[CohortScan],
    output: Path,
    options: Options,
    listener: Listener,
    *,
    workers: Workers | None = None,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    reports: bool = True,
    group: bool = True,
    make: Callable[[], Runner] | None = None,
) -> Ended:
    """Detect in every scan that has no result yet; at the end tables and pages over all.

    Args:
        scans: of the cohort, by name.
        output: its folder; made if it does not exist.
        options: of the detector.
        listener: is told how it goes.
        workers: who does it; ``Workers(0)`` is this process, None takes workers where Ray is installed.
        shard: do only this part, counted from 1, of so many, and neither tables nor pages.
        overwrite: whether results of other settings are made anew.
        reports: whether a page is written of each scan that is done.
        group: whether tables and pages are made at the end.
        make: makes what does the tasks in a worker instead of a detector.

    Raises:
        InputError: when another run is at work here, or results of other settings are in the way.
        Cancelled: when the user stopped it; finished results stay.
        EngineError: for what every scan would meet, such as a model that is damaged or a full disk.
    """
    plan = plan_of(options)
    mine = list(scans) if shard is None else shard_of(scans, *shard)
    with CohortLock(output, shard):
        if shard is None and group:
            check_group(output)
        root = next((scan.bids.root for scan in scans if scan.bids is not None), None)
        if root is not None:
            write_dataset(output, root, options.anonymous)
        todo = plan_tasks(mine, output, settings_of(plan), overwrite, reports)
        if todo.changed:
            names = listed(todo.changed, _SHOWN)
            listener.warning(f"{counted(len(todo.changed), 'scan')} changed since the last run: {names}; done again.")
        failed = list(todo.failed)
        for one in failed[:_SHOWN]:
            listener.warning(f"{one.name} cannot be looked at: {one.failure.what} {one.failure.hint}")
        if todo.tasks:
            pool = _pool(make or partial(ScanRunner, options), workers, options.device, len(todo.tasks))
            try:
                listener.begin(len(todo.tasks), len(todo.finished), pool.title)
                run_tasks(todo.tasks, pool, listener, failed)
            finally:
                pool.close()
                table = write_failures(output, failed, shard, options.anonymous)
        else:
            listener.begin(0, len(todo.finished), "")
            table = write_failures(output, failed, shard, options.anonymous)
        files: dict[str, Path] = {}
        if shard is None and group:
            done = {scan.name for scan in scans} - {one.name for one in failed}
            found, files = write_group(output, lambda result: result.folder.name in done)
            if found.left_out:
                listener.warning(left_out_in_words(found.left_out))
        files[table.name] = table
    return Ended(len(mine) - len(failed), failed, files)


def _pool(make: Callable[[], Runner], workers: Workers | None, device: str, tasks: int) -> Pool:
    """Who does the tasks."""
    asked = workers or Workers()
    if asked.count == 0 or (asked.count is None and not asked.address and (tasks == 1 or not is_installed())):
        if asked.address:
            raise InputError("A Ray cluster was named, with no worker on it.", "Leave one of the two out.")
        if asked.threads is not None and "torch" not in sys.modules:
            os.environ["OMP_NUM_THREADS"] = str(asked.threads)
        return ThisProcess(make)
    kind, _, number = device.partition(":")
    if number:
        raise InputError(
            f"The device {device} is one of several, and each worker gets one of its own.",
            f"Say --device {kind}, or --workers 0 to use that one in this process.",
        )
    if asked.gpus is None and kind != "auto":
        asked = replace(asked, gpus=1.0 if kind == "cuda" else 0.0)
    return RayPool(make, asked)


def exit_code_of(failed: Sequence[Failed]) -> int:
    """The exit code of the first scan that failed; 0 where none did."""
    return failed[0].failure.as_error().exit_code if failed else 0
