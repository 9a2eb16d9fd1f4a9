"""Random faults on purpose: damaged scans, hostile packages, jobs and text, killed processes.

Every case is made by its kind and its seed alone, so that one that failed can be run again: ``--case kind:seed``.
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
from collections.abc import Iterator
from pathlib import Path

from . import pool
from .kinds import POOLED
from .pool import Verdict

KILL = "kill"
KILL_SHARE = 0.3
SHORT_KILLS = 8
KINDS = (*POOLED, KILL)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m Testing.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first case of each kind (default 1)")
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="counts and failures, as JSON")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1), help="child processes")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--minutes", type=float, default=10.0, help="in all (default 10)")
    how.add_argument("--short", action="store_true", help="a fixed number of cases of each kind")
    how.add_argument("--cases", type=int, help="so many cases of each kind")
    how.add_argument("--case", metavar="KIND:SEED", help="one case again")
    asked = parser.parse_args(arguments)
    for folder in pool.PATH:
        sys.path.insert(0, str(folder))
    kinds = asked.only or list(KINDS)
    verdicts: list[Verdict] = []
    begin = time.monotonic()
    if asked.case:
        kind, _, seed = asked.case.partition(":")
        if kind not in KINDS or not seed.isdigit():
            parser.error(f"--case is {asked.case!r}; expected a kind of {', '.join(KINDS)}, a colon and a number")
        verdicts += run(kind, iter([int(seed)]), 1)
    else:
        shares = {kind: POOLED[kind].share if kind in POOLED else KILL_SHARE for kind in kinds}
        for kind in kinds:
            seconds = 60.0 * asked.minutes * shares[kind] / sum(shares.values())
            count = asked.cases or (short_count(kind) if asked.short else None)
            verdicts += run(kind, seeds(asked.seed, count, seconds), asked.processes)
    show(verdicts, time.monotonic() - begin)
    if asked.json:
        asked.json.write_text(json.dumps(summary(verdicts, asked.seed), indent=2) + "\n", encoding="utf-8")
    return int(any(verdict.failure for verdict in verdicts))


def short_count(kind: str) -> int:
    return POOLED[kind].short if kind in POOLED else SHORT_KILLS


def seeds(first: int, count: int | None, seconds: float) -> Iterator[int]:
    """The seeds of a kind's cases: so many, or until the time is over."""
    if count is not None:
        return iter(range(first, first + count))
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda seed: time.monotonic() < end, itertools.count(first))


def run(kind: str, cases: Iterator[int], processes: int) -> list[Verdict]:
    """All cases of a kind, with its failures told as they come."""
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = Path(temporary)
        if kind == KILL:
            from . import kills

            running = kills.run(folder, cases)
        else:
            seeds_folder = folder / f"seeds-{kind}"
            seeds_folder.mkdir()
            POOLED[kind].prepare(seeds_folder)
            running = pool.run(kind, seeds_folder, cases, processes)
        verdicts = []
        for verdict in running:
            verdicts.append(verdict)
            if verdict.failure:
                tell(f"{verdict.case}: {verdict.outcome}: {verdict.failure}")
        return verdicts


def summary(verdicts: list[Verdict], seed: int) -> dict[str, object]:
    """What ``--json`` writes: for each kind how its cases ended, and every failure with what makes it again."""
    kinds = dict.fromkeys(verdict.kind for verdict in verdicts)
    return {
        "seed": seed,
        "kinds": {
            kind: {
                "cases": sum(verdict.kind == kind for verdict in verdicts),
                "failures": sum(verdict.kind == kind and bool(verdict.failure) for verdict in verdicts),
                "outcomes": dict(Counter(verdict.outcome for verdict in verdicts if verdict.kind == kind)),
            }
            for kind in kinds
        },
        "failures": [
            {"case": verdict.case, "outcome": verdict.outcome, "failure": verdict.failure}
            for verdict in verdicts
            if verdict.failure
        ],
    }


def show(verdicts: list[Verdict], seconds: float) -> None:
    """A table of kinds, then how to run a failure again."""
    tell(f"{'kind':<10}{'cases':>8}{'failures':>10}  outcomes")
    for kind, found in summary(verdicts, 0)["kinds"].items():  # type: ignore[attr-defined]
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(found["outcomes"].items()))
        tell(f"{kind:<10}{found['cases']:>8}{found['failures']:>10}  {outcomes}")
    tell(f"{len(verdicts)} cases in {seconds:.0f} s")
    if failed := [verdict for verdict in verdicts if verdict.failure]:
        tell(f"To run one again: python -m Testing.faults --case {failed[0].case}")


def tell(line: str) -> None:
    sys.stdout.write(line.encode("utf-8", "replace").decode() + "\n")
    sys.stdout.flush()
