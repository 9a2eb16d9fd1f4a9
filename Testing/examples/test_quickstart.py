"""The notebook runs from top to bottom, and is kept with the pictures that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def text_of(notebook: object) -> list[str]:
    """What the cells print and show as text."""
    return [
        str(output.get("text") or output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells  # type: ignore[attr-defined]
        for output in cell.get("outputs", [])
        if output.get("name") != "stderr"
    ]


def test_the_notebook_runs_and_says_what_is_kept_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent / "DiffusionAnomaly"))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    kept = text_of(notebook)
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output and "text/html" in output.data
    ]
    assert len(shown) == 1 and shown[0].count("data:image/") >= 4
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    now = text_of(notebook)
    # Scores may round differently on another processor; what is listed and counted may not.
    assert now[0] == kept[0]
    assert [line.split()[0] for line in now[2].splitlines()] == [line.split()[0] for line in kept[2].splitlines()]
    assert now[-2:] == kept[-2:]
