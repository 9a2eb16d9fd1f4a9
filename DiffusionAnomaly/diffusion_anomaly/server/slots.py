"""Slots: worker processes that stay warm, each with one job at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client.wire import SCAN
from ..errors import DiskFull
from ..io.records import sha256_of
from ..worker import protocol
from ..worker.protocol import CANCEL_LINE, GRACE_SECONDS, LOG_FILE, run_line
from .jobs import Board, Job, ResultFile, State
from .refusals import disk_full, failed, refusal_of

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "diffusion_anomaly.worker", "--serve")
RESULTS = "results"
_LONGEST_LINE = 64 << 20  # bytes of an event; a result's lists all findings
_LOG_LINES = 20
_HERE = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Slot:
    """Where one job at a time is run.

    Attributes:
        device: ``cpu``, ``cuda:0`` and so on.
        threads: of the processor.
    """

    device: str
    threads: int


class SlotRunner:
    """A slot at work: takes the next job, has its process do it, and so on until it is cancelled.

    Args:
        slot: what it has.
        board: where jobs come from.
        command: of a worker that serves.
    """

    def __init__(self, slot: Slot, board: Board, command: Sequence[str] = COMMAND) -> None:
        self._slot, self._board, self._command = slot, board, command
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Never returns."""
        try:
            while True:
                job = await self._board.next()
                log.info("job %s of %s begins on %s", job.name, job.user.name, self._slot.device)
                try:
                    await self._do(job)
                except Exception as error:  # noqa: BLE001 - a slot goes on
                    self._failed(job, error)
                    await self._end()
                finally:
                    await self._board.ended(job)
                log.info("job %s has ended", job.name)
        finally:
            await self._end()

    def _failed(self, job: Job, error: Exception) -> None:
        """What the server itself could not do."""
        refusal = refusal_of(error)
        if refusal.code == DiskFull.code:
            log.error("job %s failed: the disk is full", job.name)
        else:
            log.error("job %s failed", job.name, exc_info=error)
        job.fail(refusal.code, refusal.what, refusal.hint)

    async def _do(self, job: Job) -> None:
        await asyncio.to_thread(_write_job, job, self._slot.device)
        process = await self._started()
        assert process.stdin is not None
        process.stdin.write(f"{run_line(job.folder)}\n".encode("ascii"))
        stopping = asyncio.create_task(self._stop_when_asked(job, process))
        try:
            ended = await self._listen(job, process)
        finally:
            stopping.cancel()
        if not ended:
            await self._end()
            if job.state is not State.OVER:
                job.fail(
                    "internal",
                    "The worker crashed or was ended from outside.",
                    "Memory may have run out on the server; try again, or tell whoever runs it.",
                )

    async def _listen(self, job: Job, process: asyncio.subprocess.Process) -> bool:
        """Pass on what the worker says; whether it said that it has finished."""
        assert process.stdout is not None
        result: dict[str, Any] | None = None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than any event
                return False
            if not line:
                return False
            try:
                protocol.decode(line)
            except protocol.InputError:
                continue
            event = _without_paths(json.loads(line), job.folder)
            if event["event"] == protocol.Finished.event:
                if result is not None and job.state is not State.OVER:
                    await self._deliver(job, result)
                elif job.state is not State.OVER:
                    job.fail("internal", "The worker ended the job without a result.")
                return True
            if job.state is State.OVER:
                continue
            if event["event"] == protocol.Result.event:
                result = event
            elif event["event"] == protocol.Failure.event:
                if event["code"] == DiskFull.code:  # not the client's, of which the worker speaks
                    log.error("job %s failed: %s", job.name, event["what"])
                    event = {**event, **disk_full().to_json()["error"]}
                elif event["code"] == failed().code:
                    log.error("job %s failed: %s", job.name, await asyncio.to_thread(_end_of_log, job.folder))
                job.fail(event["code"], event["what"], event["hint"])
            else:
                job.tell(event)

    async def _deliver(self, job: Job, event: Mapping[str, Any]) -> None:
        files = await asyncio.to_thread(_result_files, job.folder, event["files"])
        if job.state is State.OVER:  # dropped meanwhile
            return
        job.files = files
        listed = {
            kind: {"name": file.path.name, "bytes": file.size, "sha256": file.sha256} for kind, file in files.items()
        }
        job.tell({**event, "files": listed})
        job.move(State.OVER)

    async def _stop_when_asked(self, job: Job, process: asyncio.subprocess.Process) -> None:
        await job.cancelled.wait()
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.write(f"{CANCEL_LINE}\n".encode("ascii"))
        await asyncio.sleep(GRACE_SECONDS + 1)  # it ends itself by then
        _kill(process)

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), _HERE]))
            environment = {**os.environ, "OMP_NUM_THREADS": str(self._slot.threads), "PYTHONPATH": path}
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                limit=_LONGEST_LINE,
                start_new_session=True,  # Ctrl-C is the server's to handle
            )
        return self._process

    async def _end(self) -> None:
        """End the process: it is asked first, and killed when it takes too long or the slot itself is to end."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
        except asyncio.TimeoutError:
            _kill(process)
            await process.wait()
        except asyncio.CancelledError:
            _kill(process)
            await process.wait()
            raise


def _kill(process: asyncio.subprocess.Process) -> None:
    """End a worker and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _write_job(job: Job, device: str) -> None:
    """The job file, in which every path is the server's."""
    order = job.order
    scans = {header.channel: number for number, header in enumerate(order.inputs) if header.kind == SCAN}
    masks = [number for number, header in enumerate(order.inputs) if header.kind != SCAN]
    names = {channel: job.input_path(number).name for channel, number in scans.items()}
    single = next(iter(names.values())) if len(names) == 1 else ""
    protocol.write_job(
        protocol.Job(
            single,
            RESULTS,
            order.method or protocol.DEFAULT_METHOD,
            job.model,
            job.input_path(masks[0]).name if masks else None,
            {**order.options, "device": device, "anonymous": True},
            channels={} if single else names,
        ),
        job.folder,
    )


def _result_files(folder: Path, files: Mapping[str, str]) -> dict[str, ResultFile]:
    found = {}
    for kind, name in files.items():
        path = folder / name  # the job's folder was taken off it
        if path.is_symlink() or not path.is_file() or folder not in path.parents:
            raise OSError(f"the result {name} is not there")
        found[kind] = ResultFile(path, path.stat().st_size, sha256_of(path))
    return found


def _without_paths(value: Any, folder: Path) -> Any:
    """An event that does not tell where the server keeps its files."""
    if isinstance(value, str):
        return value.replace(f"{folder}{os.sep}", "").replace(str(folder), "the job's folder")
    if isinstance(value, dict):
        return {key: _without_paths(entry, folder) for key, entry in value.items()}
    return [_without_paths(entry, folder) for entry in value] if isinstance(value, list) else value


def _end_of_log(folder: Path) -> str:
    try:
        lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "its log is gone"
    return "\n".join(lines[-_LOG_LINES:])
