"""Random faults on purpose: damaged scans, hostile packages, jobs and text, killed processes.

Every case is made by its kind and its seed alone, so that one that failed can be run again: ``--case kind:seed``.
Unless told otherwise a campaign goes on until it has read 10,000 mutated scans and ended 200 processes at work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import pool
from .kinds import POOLED
from .pool import FINISHED, Verdict

KILL = "kill"
KILL_SHARE = 0.3
LONG_KILLS, SHORT_KILLS = 200, 3
MOST_DRAWS = 5  # processes that are started for each that shall be ended at work; three in five are
KINDS = (*POOLED, KILL)
BETWEEN = 30.0  # seconds between two lines of progress


@dataclass
class Tally:
    """How the cases of one kind ended; the cases themselves are not kept, but for those that failed.

    Attributes:
        kind: of ``KINDS``.
        goal: how many cases shall count; None where time decides.
        counted: cases that do: not those whose process had ended before its signal came.
        cases, outcomes, failures: of all.
        seconds: that they took together.
    """

    kind: str
    goal: int | None = None
    counted: int = 0
    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        self.cases += 1
        self.counted += verdict.outcome != FINISHED
        self.outcomes[verdict.outcome] += 1
        if verdict.failure:
            self.failures.append(verdict)

    @property
    def reached(self) -> bool:
        return self.goal is None or self.counted >= self.goal

    @property
    def progress(self) -> str:
        """Where it stands, and how long the rest takes at the rate measured so far."""
        line = f"{self.kind}: {self.counted:,}{'' if self.goal is None else f' of {self.goal:,}'}"
        line += f" after {self.seconds:.0f} s, {len(self.failures)} failures"
        if self.goal is None or not self.counted:
            return line
        return f"{line}, {max(0, self.goal - self.counted) * self.seconds / self.counted:.0f} s to go"

    def to_dict(self) -> dict[str, object]:
        return {
            "cases": self.cases,
            "counted": self.counted,
            "failures": len(self.failures),
            "outcomes": dict(self.outcomes),
            "seconds": round(self.seconds, 1),
        }


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when a case failed, or too few processes were ended at work."""
    parser = argparse.ArgumentParser(prog="python -m Testing.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first case of each kind (default 1)")
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="counts and failures, as JSON, kept up to date")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1), help="child processes")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--minutes", type=float, help="as many cases as can be run in so long, in all")
    how.add_argument("--short", action="store_true", help="a small number of cases of each kind")
    how.add_argument("--cases", type=int, help="so many cases of each kind")
    how.add_argument("--case", metavar="KIND:SEED", help="one case again")
    asked = parser.parse_args(arguments)
    for folder in pool.PATH:
        sys.path.insert(0, str(folder))
    tallies: list[Tally] = []

    def keep() -> None:
        if asked.json:
            asked.json.write_text(json.dumps(summary(tallies, asked.seed), indent=2) + "\n", encoding="utf-8")

    if asked.case:
        kind, _, seed = asked.case.partition(":")
        if kind not in KINDS or not seed.isdigit():
            parser.error(f"--case is {asked.case!r}; expected a kind of {', '.join(KINDS)}, a colon and a number")
        tallies.append(Tally(kind))
        run(tallies[0], iter([int(seed)]), 1, keep)
    else:
        kinds = asked.only or list(KINDS)
        shares = {kind: POOLED[kind].share if kind in POOLED else KILL_SHARE for kind in kinds}
        for kind in kinds:
            if asked.minutes is not None:
                tallies.append(Tally(kind))
                cases = for_seconds(asked.seed, 60.0 * asked.minutes * shares[kind] / sum(shares.values()))
            elif asked.cases:
                tallies.append(Tally(kind))
                cases = iter(range(asked.seed, asked.seed + asked.cases))
            else:
                tallies.append(Tally(kind, count_of(kind, short=asked.short)))
                cases = until_reached(asked.seed, tallies[-1])
            run(tallies[-1], cases, asked.processes, keep)
    show(tallies)
    keep()
    return int(any(tally.failures or not tally.reached for tally in tallies))


def count_of(kind: str, *, short: bool = False) -> int:
    """How many cases of a kind the long form or the short one has."""
    long, few = (POOLED[kind].long, POOLED[kind].short) if kind in POOLED else (LONG_KILLS, SHORT_KILLS)
    return few if short else long


def for_seconds(first: int, seconds: float) -> Iterator[int]:
    """Seeds until the time is over."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda seed: time.monotonic() < end, itertools.count(first))


def until_reached(first: int, tally: Tally) -> Iterator[int]:
    """Seeds until as many cases count as shall, within bounds."""
    assert tally.goal is not None
    most = tally.goal * (MOST_DRAWS if tally.kind == KILL else 1)
    return itertools.takewhile(lambda seed: not tally.reached, range(first, first + most))


def run(tally: Tally, cases: Iterator[int], processes: int, keep: Callable[[], None] = lambda: None) -> None:
    """All cases of a kind, with its failures told as they come, and now and then how far it is."""
    begin = told = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = Path(temporary)
        if tally.kind == KILL:
            from . import kills

            running = kills.run(folder, cases)
        else:
            seeds_folder = folder / f"seeds-{tally.kind}"
            seeds_folder.mkdir()
            POOLED[tally.kind].prepare(seeds_folder)
            running = pool.run(tally.kind, seeds_folder, cases, processes)
        for verdict in running:
            tally.add(verdict)
            tally.seconds = time.monotonic() - begin
            if verdict.failure:
                tell(f"{verdict.case}: {verdict.outcome}: {verdict.failure}")
            if time.monotonic() > told + BETWEEN:
                told = time.monotonic()
                tell(tally.progress)
                keep()


def summary(tallies: list[Tally], seed: int) -> dict[str, object]:
    """What ``--json`` writes: for each kind how its cases ended, and every failure with what makes it again."""
    return {
        "seed": seed,
        "kinds": {tally.kind: tally.to_dict() for tally in tallies},
        "failures": [
            {"case": verdict.case, "outcome": verdict.outcome, "failure": verdict.failure}
            for tally in tallies
            for verdict in tally.failures
        ],
    }


def show(tallies: list[Tally]) -> None:
    """A table of kinds, then how to run a failure again."""
    tell(f"{'kind':<10}{'cases':>8}{'counted':>9}{'failures':>10}{'s':>7}  outcomes")
    for tally in tallies:
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(tally.outcomes.items()))
        numbers = f"{tally.cases:>8}{tally.counted:>9}{len(tally.failures):>10}{tally.seconds:>7.0f}"
        tell(f"{tally.kind:<10}{numbers}  {outcomes}")
        if not tally.reached:
            tell(f"{tally.kind}: only {tally.counted} of {tally.goal} count; the others had ended before their signal.")
    if failed := [verdict for tally in tallies for verdict in tally.failures]:
        tell(f"To run one again: python -m Testing.faults --case {failed[0].case}")


def tell(line: str) -> None:
    sys.stdout.write(line.encode("utf-8", "replace").decode() + "\n")
    sys.stdout.flush()
