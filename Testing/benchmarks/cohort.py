"""What a cohort costs against ``detect`` with as many scans: scans a minute, seconds a scan, memory of a worker.

    python -m Testing.benchmarks cohort                          # 40 and 400 scans, made of the sample
    python -m Testing.benchmarks cohort --scans 40 --workers 2 --threads 1 --method restore --output results

Each number of scans is run by ``detect``, by ``cohort`` in one process and by ``cohort`` with one and with several
workers, one after the other in this run, and again by ``cohort`` when all is done, which is what going on costs. Few
scans are also given to a ``detect`` of their own each, as a script without the cohort would. The scans are copies of
one. Memory is the largest peak of any process that a run started, and what all of them held together at most.
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
import SimpleITK as sitk

from diffusion_anomaly.cohort.actors import is_installed
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.outputs import prepare_folder, publish
from diffusion_anomaly.io.records import record
from diffusion_anomaly.text import counted

from . import measure
from .measure import GIBIBYTE, say, table

FILE = "benchmark-cohort.json"
MOST_ALONE = 40  # scans that are also given to a process each


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
    scans, scan = folder / "scans", folder / "scan.nii.gz"
    scans.mkdir()
    sitk.WriteImage(thick(sitk.ReadImage(str(asked.scan)), asked.slice_spacing), str(scan))
    for number in range(count):
        shutil.copyfile(scan, scans / f"scan-{number:04d}_flair.nii.gz")
    options = ["--method", asked.method, "--device", asked.device, "--force"]
    one = [["cohort", scans, folder / "one", *options, "--workers", "0", "--threads", asked.threads]]
    paths = sorted(scans.iterdir())
    alone = [["detect", path, "--output", folder / "alone" / path.name, *options] for path in paths]
    runs: dict[str, list[list[Any]]] = {
        "detect, a process a scan": alone if count <= MOST_ALONE else [],
        "detect": [["detect", *paths, "--output", folder / "detect", *options]],
        "cohort, this process": one,
        "cohort, going on": one,
    }
    for workers in dict.fromkeys((1, asked.workers)) if is_installed() else ():
        sizes = ["--workers", workers, "--threads", asked.threads]
        output = folder / f"workers-{workers}"
        runs[f"cohort, {counted(workers, 'worker')}"] = [["cohort", scans, output, *options, *sizes]]
    if unknown := [name for name in asked.run or () if name not in runs]:
        raise InputError(f"There is no row {unknown[0]!r}.", f"Known are {'; '.join(runs)}.")
    if "cohort, going on" in (asked.run or ()) and "cohort, this process" not in asked.run:
        raise InputError("Going on is measured after a run in this process.", "Name that row too.")
    runs = {name: runs[name] for name in runs if runs[name] and (not asked.run or name in asked.run)}
    return [{"run": name} | run(commands, asked.threads) for name, commands in runs.items()]


def thick(image: sitk.Image, spacing: float) -> sitk.Image:
    """A scan with slices so many mm apart, each the mean over its thickness, as a clinical 2-D sequence gives them."""
    factor = max(1, round(spacing / image.GetSpacing()[2]))
    return sitk.Cast(sitk.BinShrink(image, (1, 1, factor)), image.GetPixelID())


def run(commands: Sequence[Sequence[object]], threads: int) -> dict[str, float]:
    """Commands one after the other from start to finish, with the memory of all processes below them."""
    environment = {**measure.environment(), "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    largest = together = 0
    for command in commands:
        process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_anomaly", *map(str, command)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        watch = _Memory(process.pid)
        _, complaints = process.communicate()
        watch.stop()
        largest, together = max(largest, watch.largest), max(together, watch.together)
        if process.returncode != 0:
            text = complaints.decode(errors="replace")
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {text}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "largest_gib": largest / GIBIBYTE, "together_gib": together / GIBIBYTE}


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
    add(
        "--slice-spacing",
        type=float,
        default=5.0,
        metavar="MM",
        help="of the scans; slices are averaged to it; default: 5",
    )
    add("--scans", type=int, nargs="+", default=[40, 400], help="how many; default: 40 400")
    add("--method", default="intensity", help="default: intensity, whose cost is that of all else")
    add("--device", default="cpu")
    add("--workers", type=int, default=2)
    add("--threads", type=int, default=1, help="of each worker, and of the runs in one process")
    add("--run", action="append", metavar="NAME", help="only this row of the table; repeatable, in the table's order")
    add("--output", type=Path, metavar="DIR", help="also write all numbers there as JSON")
    return parser
