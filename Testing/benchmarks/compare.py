"""Is this checkout faster than another? A scan from start to finish with either, in turn.

    python -m Testing.benchmarks compare --against ../older-checkout
    python -m Testing.benchmarks compare --against ../older-checkout --runs 9 --method guided --output results

The sample scan, resampled to 256 x 256 x 25 voxels, goes through ``diffusion_anomaly detect`` of both checkouts, each
time in a process of its own, so often as `--runs` says. It prints both medians with the fastest and the slowest run,
their ratio, the peak memory of the processes, and by how much the two anomaly maps differ. In every other round the
order is turned, so that a machine that slows down or speeds up favours neither.

Then it says what a user of Slicer waits for with this checkout: a scan with a worker that is started for it, and one
with a worker that has done a scan before and holds its model.

Other work on the machine slows every run; its load is printed before and after. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.io.outputs import prepare_folder, publish
from diffusion_anomaly.io.records import record
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.registry import DEFAULT_METHOD, METHODS
from diffusion_anomaly.worker.protocol import Job, write_job

from . import measure
from .measure import CLINICAL, GIBIBYTE, resampled, say, table
from .worker_times import JobTime, WarmWorker, cold

FILE = "compare.json"


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    try:
        if asked.runs < 1:
            raise InputError(f"{asked.runs} runs were asked for.", "Ask for at least 1.")
        if asked.output is not None:
            prepare_folder(asked.output, [FILE])
        report = compare(asked)
    except EngineError as error:
        measure.complain(error)
        return error.exit_code
    if asked.output is not None:
        publish(asked.output, {FILE: record(report)})
    return 0


@dataclass(frozen=True)
class Runs:
    """Several runs of the same.

    Attributes:
        seconds: of each, from start to finish.
        peaks: bytes of each that its process held at most.
    """

    seconds: Sequence[float]
    peaks: Sequence[int]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def peak(self) -> int:
        return max(self.peaks)

    def row(self, name: str) -> list[str]:
        spread = f"{min(self.seconds):.2f} to {max(self.seconds):.2f}"
        return [name, str(len(self.seconds)), f"{self.median:.2f}", spread, f"{self.peak / GIBIBYTE:.2f}"]


def in_turn(commands: Mapping[str, Callable[[int], tuple[float, int]]], rounds: int) -> dict[str, Runs]:
    """Run each command once a round, in every other round from the last to the first.

    Args:
        commands: by name; each takes the round's number and gives seconds and bytes.
        rounds: how many.
    """
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in list(commands)[:: -1 if number % 2 else 1]:
            measured[name].append(commands[name](number))
    return {name: Runs(*zip(*values, strict=True)) for name, values in measured.items()}


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, as numbers.

    Raises:
        InputError: when the other folder is no checkout.
    """
    checkouts = {"this": measure.REPOSITORY, "other": asked.against.resolve()}
    about = {which: describe(checkout) for which, checkout in checkouts.items()}
    report: dict[str, Any] = {"checkouts": about, "method": asked.method, "size": CLINICAL, "load": [os.getloadavg()]}
    say(f"Load of the machine before: {_load()}; {os.cpu_count()} processor cores; method {asked.method}.\n")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        image = read_volume(asked.scan).image
        scan = resampled(image, CLINICAL, sitk.sitkLinear, folder / "FLAIR.nii.gz")

        def detection(which: str) -> Callable[[int], tuple[float, int]]:
            command = ["-m", "diffusion_anomaly", "detect", scan, "--output", folder / which]
            command += ["--method", asked.method, "--device", asked.device]

            def run(number: int) -> tuple[float, int]:
                return measure.run_process(command, checkouts[which])[1:]

            return run

        runs = in_turn({which: detection(which) for which in checkouts}, asked.runs)
        difference = _largest_difference(*(folder / which / "heat.nii.gz" for which in checkouts))
        names = {"this": f"this checkout ({about['this']})", "other": f"{asked.against} ({about['other']})"}
        head = ["a scan from start to finish", "runs", "median, s", "fastest to slowest, s", "peak memory, GiB"]
        say(table(head, [runs[which].row(names[which]) for which in checkouts]))
        ratio = runs["other"].median / runs["this"].median
        agreement = "were not compared" if difference is None else f"differ by at most {difference:g}"
        say(f"\nThis checkout is {ratio:.2f} times as fast. The two anomaly maps {agreement}.\n")
        report |= {"runs": {which: asdict(found) for which, found in runs.items()}, "speed_up": ratio}
        report["largest_difference"] = difference

        waits = worker_waits(
            scan, folder / "jobs", asked.runs, checkouts["this"], method=asked.method, device=asked.device
        )
        head = ["a scan with a worker of this checkout", "median, s", "until the model runs, s"]
        say(table(head, [[name, *_medians(times)] for name, times in waits.items()]))
        report["worker"] = {name: [asdict(time) for time in times] for name, times in waits.items()}
    report["load"].append(os.getloadavg())
    say(f"\nLoad of the machine after: {_load()}.")
    return report


def worker_waits(
    scan: Path, folder: Path, runs: int, checkout: Path, *, method: str, device: str
) -> dict[str, list[JobTime]]:
    """A worker started for each scan, and in turn one that has done a scan before, which does not count."""
    count = 0

    def job() -> Path:
        nonlocal count
        count += 1
        directory = prepare_folder(folder / str(count))
        write_job(Job(str(scan), str(directory / "results"), method, options={"device": device}), directory)
        return directory

    waits: dict[str, list[JobTime]] = {"started for it": [], "warm": []}
    with WarmWorker(checkout) as worker:
        worker.run(job())
        for _ in range(runs):
            waits["started for it"].append(cold(job(), checkout))
            waits["warm"].append(worker.run(job()))
    return waits


def describe(checkout: Path) -> str:
    """The commit of a checkout, having made sure that it is one and that Python runs its engine.

    Raises:
        InputError: when it holds no engine, or another one is run in its place.
    """
    engine = measure.engine_of(checkout) / "diffusion_anomaly"
    if not (engine / "__init__.py").is_file():
        raise InputError(f"{checkout} holds no engine.", "Give the root of a checkout of this repository.")
    output, _, _ = measure.run_process(["-c", "import diffusion_anomaly as d; print(d.__file__)"], checkout)
    if Path(output.decode().strip()).resolve().parent != engine.resolve():
        raise InputError(f"Python runs {output.decode().strip()}, not {engine}.", "Uninstall the engine that hides it.")
    asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return "unknown commit"
    return found.stdout.strip() or "unknown commit"


def _largest_difference(a: Path, b: Path) -> float | None:
    """Of two maps on one grid; None where there is none to compare."""
    if not (a.exists() and b.exists()):
        return None
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (a, b))
    return round(float(np.abs(first - second).max()), 4) if first.shape == second.shape else None


def _medians(times: Sequence[JobTime]) -> list[str]:
    return [f"{median(time.total for time in times):.2f}", f"{median(time.started for time in times):.2f}"]


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m Testing.benchmarks compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--against", type=Path, required=True, metavar="CHECKOUT", help="root of another checkout")
    add("--runs", type=int, default=5, help="of each; default: 5")
    add("--scan", type=Path, default=measure.SAMPLE, help="default: the sample scan")
    add("--method", choices=list(METHODS), default=DEFAULT_METHOD, help=f"of both; default: {DEFAULT_METHOD}")
    add("--device", default="auto")
    add("--output", type=Path, metavar="DIR", help="also write all numbers there as JSON")
    return parser
