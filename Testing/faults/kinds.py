"""The kinds of cases that run in child processes, by name. The fifth kind, kills, has processes of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import inputs, packages, texts
from .verdict import Failed


@dataclass(frozen=True)
class Kind:
    """A kind of cases.

    Attributes:
        about: in a few words.
        prepare: fills the folder ``seeds-<name>`` once.
        load: in the child; what runs a case.
        share: of a campaign's time, where that is given.
        long, short: how many cases the long and the short form run.
    """

    about: str
    prepare: Callable[[Path], None]
    load: Callable[[], Callable[[random.Random, Path], str]]
    share: float
    long: int
    short: int


def _texts() -> Callable[[random.Random, Path], str]:
    def case(chance: random.Random, folder: Path) -> str:
        if chance.random() < 0.5:
            texts.check_report(chance)
        else:
            texts.check_terminal(chance)
        return "result"

    return case


POOLED = {
    "input": Kind("mutated scans", inputs.prepare, inputs.load, 0.4, 10_000, 300),
    "package": Kind("mutated model packages", packages.prepare, packages.load, 0.2, 200, 24),
    "job": Kind("mutated job files", packages.prepare_jobs, packages.load_jobs, 0.05, 1000, 100),
    "text": Kind("hostile text", lambda folder: None, _texts, 0.05, 200, 8),
}


def _self_test() -> Callable[[random.Random, Path], str]:
    """Every end that a case can have, in turn: what a campaign must not overlook."""
    import os

    from diffusion_anomaly.errors import InputError

    ends = iter(range(1, 100))

    def case(chance: random.Random, folder: Path) -> str:
        marks = sorted((folder.parent / "seeds-self-test").iterdir())
        number = len(marks)
        (folder.parent / "seeds-self-test" / f"{next(ends):03}-{os.getpid()}-{number}").touch()
        if number == 1:
            raise InputError("The case is refused.", "Leave it.")
        if number == 2:
            os.abort()
        while number == 3:
            pass
        if number == 4:
            return str(len(bytearray(10**10)))
        if number == 5:
            os.write(2, b"from a library")
        if number == 6:
            raise KeyError("x")
        if number == 7:
            raise Failed("as asked")
        return "result"

    return case


SELF_TEST = {"self-test": Kind("every end", lambda folder: None, _self_test, 0.0, 8, 8)}
