"""A real MRML scene from ``slicer-core``, and results as the worker writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OUTPUT = Path(__file__).resolve().parents[1] / "output"


@pytest.fixture
def scene() -> Iterator[Any]:
    """An empty scene with colours, segmentations and terminologies, as Slicer has it at start-up."""
    pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")
    import mrmlscene

    with mrmlscene.newScene() as scene:
        yield scene


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where pictures for a look go."""
    OUTPUT.mkdir(exist_ok=True)
    return OUTPUT
