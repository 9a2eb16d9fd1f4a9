"""A cohort whose workers, Ray and driver are killed at random: each scan is done once, none is half done.

    python -m Testing.faults.cohort                          # 50 kills in a run of 200 scans
    python -m Testing.faults.cohort --scans 40 --kills 6 --seed 3 --json faults-cohort.json

The command is started again whenever it has ended, as a user or a job scheduler would, until every scan is done. Scans
are small; their detector, its workers, Ray and all files are the real ones.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .pool import PATH, REPOSITORY, chance_of, environment

TARGETS = {"worker": ("ray::_Worker",), "Ray": ("raylet", "gcs_server"), "driver": ()}
SHARES = (6, 1, 1)  # how often each is the target
MARK = "DIFFUSION_ANOMALY_CAMPAIGN"  # environment variable by which all processes of a run are known
BETWEEN = 5.0  # seconds from one kill to the next, in the mean
PATIENCE = 180.0  # seconds for a run whose Ray is gone to notice it
LONGEST = 1800.0  # seconds for the last run, which nobody disturbs
LAST_RUNS = 3  # that may be needed when kills are over: a scan that two workers died of is left to the next run
SETTLING = 180.0  # seconds in which the processes of the last run have to be gone; agents of Ray take two minutes


@dataclass
class Account:
    """What is known of the results so far.

    Attributes:
        records: SHA256 and time of each finished result's record; neither may change.
        told: how often a run said that it has done a scan.
        kills: how many of each kind hit a process at work.
        runs: how often the command was started.
        faults: what was not as it should be.
    """

    records: dict[str, tuple[str, int]] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    faults: list[str] = field(default_factory=list)

    def look(self, output: Path) -> None:
        """Take down every result that has a record, and whether one that was there is another now."""
        from diffusion_anomaly.io.records import sha256_of
        from diffusion_anomaly.results.saving import PROVENANCE

        there = {}
        for path in sorted((output / "results").glob(f"*/{PROVENANCE}")):
            there[path.parent.name] = (sha256_of(path), path.stat().st_mtime_ns)
        for name, before in self.records.items():
            if there.get(name) != before:
                self.faults.append(f"{name}: its finished result was {'done again' if name in there else 'lost'}")
        self.records = there


def campaign(folder: Path, scans: int, kills: int, seed: int) -> Account:
    """Kill until there were enough kills or nothing is left to do, let the command end, and look at all it left."""
    chance = chance_of("cohort", seed)
    table = make_scans(folder, scans)
    output, account = folder / "cohort", Account()
    runs: list[_Run] = []
    moments = _moments(chance)
    while sum(account.kills.values()) < kills and len(account.records) < scans:
        with _Run(table, output, folder) as run:
            account.runs += 1
            while run.is_alive and sum(account.kills.values()) < kills:
                run.wait(next(moments))
                if not run.is_alive:
                    break
                target = chance.choices(list(TARGETS), SHARES)[0]
                if not run.kill(target, chance):
                    continue
                account.kills[target] += 1
                account.look(output)
                _say(f"{sum(account.kills.values())} kills, {len(account.records)} of {scans} scans: {target}")
                if target != "worker" and not run.wait(PATIENCE):
                    account.faults.append(f"the run went on for {PATIENCE:.0f} s after its {target} was killed")
        runs.append(run)
        account.told.update(run.told())
    for _ in range(LAST_RUNS):
        with _Run(table, output, folder) as run:
            account.runs += 1
            if not run.wait(LONGEST):
                account.faults.append(f"the last run did not end in {LONGEST:.0f} s")
                break
        runs.append(run)
        account.told.update(run.told())
        if run.status == 0:
            break
    else:
        account.faults.append(f"{LAST_RUNS} runs that nobody disturbed did not bring it to its end: {run.complaints()}")
    _settle(runs, account)
    account.look(output)
    account.faults += [*_of_results(output, scans, account), *_of_tables(output, scans)]
    return account


def make_scans(folder: Path, count: int) -> Path:
    """Small scans that differ, their brain masks and a package of toy size; returns the cohort's table."""
    import SimpleITK as sitk

    import packages
    import phantom

    empty = phantom.grid((36, 42, 10), (5.0, 5.0, 12.0))
    sitk.WriteImage(phantom.brain_of(empty), str(folder / "brain.nii.gz"))
    packages.unsupervised(folder / "toy", options={"steps": 120, "kl_levels": 48, "mask_sigma": 1.0})
    (folder / "scans").mkdir()
    with (folder / "scans.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "scan", "brain"])
        for number in range(count):
            name = f"scan-{number:03d}"
            image = phantom.paint(empty, lesion=200.0 + 0.1 * number, fluid=True)
            sitk.WriteImage(image, str(folder / "scans" / f"{name}.nii.gz"))
            rows.writerow([name, f"scans/{name}.nii.gz", "brain.nii.gz"])
    return folder / "scans.csv"


def _moments(chance: random.Random) -> Iterator[float]:
    """Seconds until the next kill of a run, from while Ray starts to the middle of work, endlessly."""
    while True:
        yield chance.expovariate(1 / BETWEEN)


class _Run:
    """One start of the command, in a session of its own; whatever is left of it at the end is killed."""

    def __init__(self, table: Path, output: Path, folder: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._log = folder / f"log-{self._mark}.txt"
        self._events = folder / f"events-{self._mark}.jsonl"
        command = [sys.executable, "-m", "diffusion_anomaly", "cohort", str(table), str(output)]
        command += ["--model", str(folder / "toy"), "--device", "cpu", "--workers", "2", "--threads", "1"]
        with self._events.open("wb") as events, self._log.open("wb") as log:
            self._process = psutil.Popen(
                [*command, "--json-lines"],
                stdin=subprocess.DEVNULL,
                stdout=events,
                stderr=log,
                env={**environment(), MARK: self._mark},
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self.status: int | None = None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_alive:
            self._process.kill()
        self.status = self._process.wait()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so long."""
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(seconds)
        return not self.is_alive

    def processes(self) -> list[psutil.Process]:
        """All that it has started, whosever children they are now, and itself."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self, target: str, chance: random.Random) -> bool:
        """Kill one process of a kind; False where there is none yet."""
        if target == "driver":
            chosen = [self._process]
        else:
            chosen = [process for process in self.processes() if _title(process).startswith(TARGETS[target])]
        if not chosen:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(chance.choice(chosen).pid, signal.SIGKILL)
            return True
        return False

    def told(self) -> list[str]:
        """The scans that it said were done."""
        names = []
        for line in self._events.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # the last line of a killed one
                event = json.loads(line)
                if event.get("event") == "result" and "scan" in event:
                    names.append(event["scan"])
        return names

    def complaints(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-500:]


def _title(process: psutil.Process) -> str:
    """A worker's own title, another process's program; of an interpreter what it runs."""
    with contextlib.suppress(psutil.Error):
        line = process.cmdline()
        if line and line[0].startswith("ray::"):
            return line[0]
        scripts = [Path(word).name for word in line if word.endswith(".py")]
        return " ".join([process.name(), *scripts])
    return ""


def _settle(runs: Sequence[_Run], account: Account) -> None:
    """What the runs have started is gone soon after the last of them, whatever ended them."""
    deadline = time.monotonic() + SETTLING
    while (left := [process for run in runs for process in run.processes()]) and time.monotonic() < deadline:
        time.sleep(1.0)
    if left:
        account.faults.append(f"{len(left)} processes outlive their runs: {', '.join(map(_title, left))}")
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _of_results(output: Path, scans: int, account: Account) -> list[str]:
    """What is wrong with the results: any that is not whole, is missing, was told twice, or left litter."""
    from diffusion_anomaly.cohort.state import finished
    from diffusion_anomaly.io.records import DIGESTS, sha256_of
    from diffusion_anomaly.results.saving import PROVENANCE

    faults = []
    folders = sorted(path for path in (output / "results").iterdir())
    if len(folders) != scans:
        faults.append(f"there are {len(folders)} folders of results for {scans} scans")
    for place in folders:
        result = finished(place)
        if result is None:
            faults.append(f"{place.name}: no whole result")
            continue
        hashes = result.record[DIGESTS]
        wrong = [name for name, sha256 in hashes.items() if sha256_of(place / name) != sha256]
        litter = {path.name for path in place.iterdir()} - {*hashes, PROVENANCE}
        faults += [f"{place.name}: {name} is not as it was written" for name in wrong]
        faults += [f"{place.name}: it holds {name} too" for name in sorted(litter)]
    faults += [f"{name}: said to be done {times} times" for name, times in account.told.items() if times > 1]
    return faults


def _of_tables(output: Path, scans: int) -> list[str]:
    with (output / "scans.csv").open(newline="", encoding="utf-8") as file:
        names = Counter(row["name"] for row in csv.DictReader(file))
    faults = [f"{name} has {rows} rows" for name, rows in names.items() if rows > 1]
    return faults if len(names) == scans else [*faults, f"the table has {len(names)} scans of {scans}"]


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign; 1 when anything was not as it should be, or there were too few kills."""
    parser = argparse.ArgumentParser(
        prog="python -m Testing.faults.cohort",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="counts and faults, as JSON")
    asked = parser.parse_args(arguments)
    for folder in PATH:
        sys.path.insert(0, str(folder))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        account = campaign(Path(folder), asked.scans, asked.kills, asked.seed)
    killed = sum(account.kills.values())
    if killed < asked.kills:
        account.faults.append(f"all was done after {killed} of {asked.kills} kills")
    counts = {
        "scans": len(account.records),
        "runs": account.runs,
        "kills": dict(account.kills),
        "faults": account.faults,
        "seconds": round(time.monotonic() - start, 1),
    }
    if asked.json:
        asked.json.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    _say(json.dumps(counts, indent=2))
    return 1 if account.faults else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
