"""The arrows of the training point down only: between its folders, and without circles between its modules.

Read from the source with ``ast``; an import inside a function counts as any other.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# From the top down: each imports only what stands after it, or its own.
WINGS = ("__main__", "command_line", "plan", "package", "stages", "data", "trainer")

Arrows = dict[str, set[str]]


def arrows(sources: dict[str, str], root: str) -> Arrows:
    """Which modules of the package ``root`` each of them imports.

    Args:
        sources: source text of each module by its dotted name; a package's ``__init__`` has the package's name.
        root: the package.
    """
    packages = {name.rpartition(".")[0] for name in sources}
    found: Arrows = {}
    for name, source in sources.items():
        package = (name if name in packages else name.rpartition(".")[0]).split(".")
        imported = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = ".".join([*package[: len(package) - node.level + 1], node.module or ""]).rstrip(".")
                base = base if node.level else node.module or ""
                imported |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        found[name] = {module for module in imported & sources.keys() if module != root} - {name}
    return found


def upward(found: Arrows, wings: tuple[str, ...]) -> list[str]:
    """Every arrow to a wing above, and every module that is in no wing."""
    wrong = []
    for name, imported in found.items():
        own = name.split(".")[1]
        if own not in wings:
            wrong.append(f"{name} is in no wing")
            continue
        above = wings[: wings.index(own)]
        wrong += [f"{name} imports {target}" for target in sorted(imported) if target.split(".")[1] in above]
    return wrong


def circle(found: Arrows) -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def training() -> Arrows:
    folder = REPOSITORY / "training"
    sources = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    found = arrows(sources, "training")
    return {name: imported for name, imported in found.items() if name != "training"}


def test_every_arrow_points_to_the_same_folder_or_one_below(training: Arrows) -> None:
    assert "training.data.slices" in training["training.stages.codec"]  # the check has found arrows
    assert upward(training, WINGS) == []


def test_no_modules_import_each_other_in_a_circle(training: Arrows) -> None:
    assert circle(training) == []


SOURCES = {
    "house": "",
    "house.attic": "",
    "house.attic.roof": "from ..cellar import wall\nimport house.cellar.floor",
    "house.cellar": "",
    "house.cellar.wall": "import torch\nfrom .floor import stone\nfrom . import floor",
    "house.cellar.floor": "",
}


@pytest.mark.parametrize(
    ("module", "source", "wrong", "turning"),
    [
        ("house.cellar.floor", "", [], set()),
        ("house.cellar.floor", "from ..attic.roof import tile", ["house.cellar.floor imports house.attic.roof"], None),
        ("house.cellar.floor", "def f():\n    import house.attic", ["house.cellar.floor imports house.attic"], set()),
        ("house.cellar.floor", "from .wall import stone", [], {"house.cellar.wall", "house.cellar.floor"}),
        ("house.shed", "", ["house.shed is in no wing"], set()),
    ],
)
def test_the_check_finds_a_planted_arrow_or_circle(
    module: str, source: str, wrong: list[str], turning: set[str] | None
) -> None:
    found = arrows(SOURCES | {module: source}, "house")
    assert found["house.attic.roof"] == {"house.cellar", "house.cellar.wall", "house.cellar.floor"}
    found = {name: imported for name, imported in found.items() if name != "house"}
    assert upward(found, ("attic", "cellar")) == wrong
    assert turning is None or set(circle(found)) == turning
