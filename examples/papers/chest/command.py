"""The whole experiment in one: films, networks, packages, and what they find in the test films of both parts."""

from __future__ import annotations

import logging
from pathlib import Path

from ..steps import run_steps
from .experiment import experiment, markdown
from .parts import PARTS

logger = logging.getLogger(__name__)


def run(output: Path) -> None:
    """Raises as the stages and ``experiment`` do."""
    for part in PARTS.values():
        run_steps(part.steps)
    for part in PARTS.values():
        logger.info("%s\n%s", part.name, markdown(experiment(part, output / part.name)))
