"""What a cohort costs against ``detect`` with as many scans: scans a minute, seconds a scan, memory of a worker.

    python -m Testing.benchmarks cohort                          # 40 and 400 scans, made of the sample
    python -m Testing.benchmarks cohort --scans 40 --workers 2 --threads 1 --method restore --output results

Each number of scans is run by ``detect``, by ``cohort`` in one process and by ``cohort`` with workers, one after the
other in this run, and again by ``cohort`` when all is done, which is what going on costs. The scans are copies of one.
Memory is the largest peak of any process that a run started, and what all of them
held together at most.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from diffusion_anomaly.cohort.actors import is_installed
from diffusion_anomaly.io.outputs import prepare_folder, publish
from diffusion_anomaly.io.records import record
from diffusion_anomaly.text import counted

from . import measure
from .measure import GIBIBYTE, say, table

FILE = "benchmark-cohort.json"


def main(arguments: Sequence[str]) -> int:
    asked = _parser().parse_args(arguments)
    if asked.output is not None:
        prepare_folder(asked.output, [FILE])
    rows = []
    for count in asked.scans:
        with tempfile.TemporaryDirectory() as folder:
            rows += [row | {"scans": count} for row in compare(asked, Path(folder), count)]
    names = ["scans", "run", "s", "scans a minute", "s a scan", "largest process, GiB", "all together, GiB"]
    say(table(names, [_shown(row) for row in rows]))
    if asked.output is not None:
        publish(asked.output, {FILE: record({"arguments": list(arguments), "runs": rows})})
    return 0


def compare(asked: argparse.Namespace, folder: Path, count: int) -> list[dict[str, Any]]:
    """All ways to run so many scans."""
    scans = folder / "scans"
    scans.mkdir()
    for number in range(count):
        shutil.copyfile(asked.scan, scans / f"scan-{number:04d}_flair.nii.gz")
    options = ["--method", asked.method, "--device", asked.device, "--force"]
    cohort = ["cohort", scans, folder / "one", *options, "--workers", "0", "--threads", str(asked.threads)]
    runs: dict[str, list[Any]] = {
        "detect": ["detect", *sorted(scans.iterdir()), "--output", folder / "detect", *options],
        "cohort, this process": cohort,
        "cohort, going on": cohort,
    }
    if is_installed():
        sizes = ["--workers", str(asked.workers), "--threads", str(asked.threads)]
        runs[f"cohort, {counted(asked.workers, 'worker')}"] = ["cohort", scans, folder / "workers", *options, *sizes]
    return [{"run": name} | run(command, asked.threads) for name, command in runs.items()]


def run(command: Sequence[object], threads: int) -> dict[str, float]:
    """One run from start to finish, with the memory of all processes below it."""
    environment = {**measure.environment(), "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_anomaly", *map(str, command)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    watch = _Memory(process.pid)
    _, complaints = process.communicate()
    watch.stop()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {complaints.decode(errors='replace')}")
    return {
        "seconds": time.perf_counter() - start,
        "largest_gib": watch.largest / GIBIBYTE,
        "together_gib": watch.together / GIBIBYTE,
    }


class _Memory(threading.Thread):
    """Looks at the processes below one, five times a second."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.largest = self.together = 0
        self._root, self._end = root, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.2):
            held = []
            with suppress(psutil.Error):
                for process in (root := psutil.Process(self._root), *root.children(recursive=True)):
                    with suppress(psutil.Error):
                        held.append(process.memory_info().rss)
            self.largest = max([self.largest, *held])
            self.together = max(self.together, sum(held))

    def stop(self) -> None:
        self._end.set()
        self.join()


def _shown(row: dict[str, Any]) -> list[str]:
    each = row["seconds"] / row["scans"]
    memory = (f"{row['largest_gib']:.2f}", f"{row['together_gib']:.2f}")
    return [str(row["scans"]), row["run"], f"{row['seconds']:.1f}", f"{60 / each:.2f}", f"{each:.3f}", *memory]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m Testing.benchmarks cohort",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scan", type=Path, default=measure.SAMPLE, help="default: the sample scan")
    add("--scans", type=int, nargs="+", default=[40, 400], help="how many; default: 40 400")
    add("--method", default="intensity", help="default: intensity, whose cost is that of all else")
    add("--device", default="cpu")
    add("--workers", type=int, default=2)
    add("--threads", type=int, default=1, help="of each worker, and of the runs in one process")
    add("--output", type=Path, metavar="DIR", help="also write all numbers there as JSON")
    return parser
