"""The whole experiment in one: films, networks, packages, and what they find in the test films of both parts."""

from __future__ import annotations

from pathlib import Path

from ..steps import run_steps
from .experiment import experiment, markdown
from .parts import PARTS


def run(output: Path) -> str:
    """The tables. Raises as the stages and ``experiment`` do."""
    for part in PARTS.values():
        run_steps(part.steps)
    tables = (f"## {part.name}\n\n{markdown(experiment(part, output / part.name))}" for part in PARTS.values())
    return "\n".join(tables)
