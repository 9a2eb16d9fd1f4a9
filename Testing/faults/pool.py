"""Cases in child processes that may crash, hang or swell: each such end is a verdict on its case, not of the campaign.

A child is long-lived and runs many cases, since starting one takes seconds; it is replaced after a crash, a hang, or a
case that used up its memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .verdict import Failed

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_SECONDS = 10.0  # of processor time a case
MOST_WAIT = 60.0  # seconds by the clock, on a machine that does other things too
MOST_MEMORY = 1_500_000_000  # bytes of address space beyond what the child began with
FINISHED = "finished"  # of a process that was to be killed, and had ended before: such a case proves little
PATH = (REPOSITORY / "DiffusionAnomaly", REPOSITORY, REPOSITORY / "Testing" / "engine")


@dataclass(frozen=True)
class Verdict:
    """What became of one case; ``failure`` is empty when it ended as it should."""

    kind: str
    seed: int
    outcome: str
    failure: str = ""

    @property
    def case(self) -> str:
        return f"{self.kind}:{self.seed}"


Runner = Callable[[random.Random, Path], str]
"""Runs one case in a folder of its own and says how it ended; raises ``Failed``."""


def environment() -> dict[str, str]:
    """Of every process of a campaign: the engine of this checkout, one thread."""
    path = os.pathsep.join(map(str, PATH))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def chance_of(kind: str, seed: int) -> random.Random:
    """The randomness of a case, the same in every process."""
    return random.Random(f"{kind}:{seed}")


class Child:
    """One process that runs cases of one kind."""

    def __init__(self, kind: str, seeds: Path) -> None:
        self.kind = kind
        self._seeds = seeds
        self._process: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self.seed: int | None = None

    def start(self, seed: int) -> None:
        """Begin a case."""
        if self._process is None:
            command = [sys.executable, "-m", "Testing.faults.pool", self.kind, str(self._seeds)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=REPOSITORY
            )
            self._read(300.0)  # until it has imported everything
        assert self._process.stdin is not None
        self.seed, self._since = seed, time.monotonic()
        self._used = self._processor_time()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{seed}\n".encode())
            self._process.stdin.flush()

    @property
    def descriptor(self) -> int:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.fileno()

    def finish(self) -> Verdict | None:
        """The verdict on the case if it has ended, or has to be ended."""
        assert self.seed is not None and self._process is not None
        answer = self._read(0.0)
        if answer:
            seed, self.seed = self.seed, None
            verdict = Verdict(self.kind, seed, **json.loads(answer))
            if "memory" in verdict.failure:
                self.stop()
            return verdict
        if answer is not None:
            code = self._process.wait()
            return self._lost("crash", f"the process ended with code {code}")
        if self._processor_time() - self._used > MOST_SECONDS or time.monotonic() - self._since > MOST_WAIT:
            return self._lost("hang", f"no end after {time.monotonic() - self._since:.0f} s")
        return None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None

    def _lost(self, outcome: str, failure: str) -> Verdict:
        assert self.seed is not None
        seed, self.seed = self.seed, None
        self.stop()
        return Verdict(self.kind, seed, outcome, failure)

    def _read(self, seconds: float) -> bytes | None:
        """The next line; nothing when there is none yet, empty when there is no more."""
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _processor_time(self) -> float:
        assert self._process is not None
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(kind: str, seeds: Path, cases: Iterator[int], processes: int) -> Iterator[Verdict]:
    """Run cases of a kind, several at a time.

    Args:
        kind: of ``kinds.POOLED``.
        seeds: the folder its ``prepare`` has filled.
        cases: their seeds; no more are begun once it ends.
        processes: how many children.
    """
    children = [Child(kind, seeds) for _ in range(processes)]
    busy: list[Child] = []
    try:
        for child in children:
            if (seed := next(cases, None)) is not None:
                child.start(seed)
                busy.append(child)
        while busy:
            select.select([child.descriptor for child in busy], [], [], 0.2)
            for child in list(busy):
                verdict = child.finish()
                if verdict is None:
                    continue
                yield verdict
                if (seed := next(cases, None)) is None:
                    busy.remove(child)
                else:
                    child.start(seed)
    finally:
        for child in children:
            child.stop()


def _serve(kind: str, seeds: Path) -> None:
    """A child's life: a seed in, a verdict out. What is printed meanwhile is part of the verdict."""
    import gc
    import shutil
    import tempfile

    from diffusion_anomaly.errors import EngineError, MemoryExhausted

    from .kinds import POOLED, SELF_TEST

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    case = (POOLED | SELF_TEST)[kind].load()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers)
    for line in sys.stdin:
        seed = int(line)
        printed.seek(0)
        printed.truncate()
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=seeds.parent))
        failure = ""
        try:
            outcome = case(chance_of(kind, seed), folder)
        except (MemoryError, MemoryExhausted) as error:
            outcome, failure = "memory", f"memory ran out: {error}"
        except EngineError as error:
            outcome = type(error).__name__
            if not error.hint or not error.what.strip():
                failure = f"the error does not say what to do: {error}"
        except Failed as error:
            outcome, failure = "wrong", str(error)
        except BaseException as error:  # noqa: BLE001 - whatever else comes is what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            outcome = type(error).__name__
            failure = f"{outcome}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        if not failure and printed.seek(0, 2):
            printed.seek(0)
            outcome, failure = "noise", f"printed: {printed.read(200)!r}"
        print(json.dumps({"outcome": outcome, "failure": failure}), file=answers)
        gc.collect()


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
