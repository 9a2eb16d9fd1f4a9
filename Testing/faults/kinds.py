"""The kinds of cases that run in child processes, by name. The fifth kind, kills, has processes of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import inputs, packages, texts


@dataclass(frozen=True)
class Kind:
    """A kind of cases.

    Attributes:
        about: in a few words.
        prepare: fills the folder ``seeds-<name>`` once.
        load: in the child; what runs a case.
        share: of a campaign's time.
        short: how many cases the short form runs.
    """

    about: str
    prepare: Callable[[Path], None]
    load: Callable[[], Callable[[random.Random, Path], str]]
    share: float
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
    "input": Kind("mutated scans", inputs.prepare, inputs.load, 0.4, 600),
    "package": Kind("mutated model packages", packages.prepare, packages.load, 0.2, 60),
    "job": Kind("mutated job files", packages.prepare_jobs, packages.load_jobs, 0.05, 200),
    "text": Kind("hostile text", lambda folder: None, _texts, 0.05, 16),
}
