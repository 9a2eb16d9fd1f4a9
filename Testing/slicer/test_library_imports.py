"""The arrows of the Slicer-side library point down only: between its wings, and from module to module.

Read from the source with ``ast``, annotations included: a part that names the panel's type knows the panel.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import DiffusionAnomalyLib

NAME = "DiffusionAnomalyLib"
LIBRARY = Path(DiffusionAnomalyLib.__file__).parent

Arrows = dict[str, set[str]]


def layersOf(docstring: str) -> list[set[str]]:
    """The lines of the library's own docstring, from the top: each names one wing or a few modules."""
    lines = re.findall(r"^- ((?:``\w+``(?:, )?)+):", docstring, re.MULTILINE)
    return [set(re.findall(r"\w+", line)) for line in lines]


def arrowsOf(sources: dict[str, str], packages: set[str]) -> Arrows:
    """For each module, the modules of the library that it imports anywhere; names are dotted, without the library's.

    Args:
        sources: text by module.
        packages: those of the modules that are packages.
    """
    return {name: set(_imported(text, name, name in packages, set(sources))) for name, text in sources.items()}


def _imported(text: str, module: str, isPackage: bool, known: set[str]) -> Iterator[str]:
    full = [NAME, *filter(None, module.split("."))]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = full[: len(full) + isPackage - node.level] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names] + [base]
        else:
            continue
        inside = [name.removeprefix(f"{NAME}.") for name in names if name.startswith(f"{NAME}.")]
        found = [name for name in inside if name in known]
        # `from .scene import results` means the module, and not the package around it.
        yield from [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def upwards(arrows: Arrows, layers: list[set[str]]) -> list[str]:
    """Every import of a wing that does not lie on a lower line."""
    level = {wing: number for number, wings in enumerate(layers) for wing in wings}
    found = []
    for module, imported in arrows.items():
        for other in imported:
            mine, theirs = module.partition(".")[0], other.partition(".")[0]
            if mine != theirs and level[theirs] <= level[mine]:
                found.append(f"{module} imports {other}")
    return sorted(found)


def circles(arrows: Arrows) -> list[str]:
    """The modules from which one comes back to where one started."""
    found = []
    for start in arrows:
        reached: set[str] = set()
        waiting = list(arrows[start])
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting.extend(arrows[module])
        if start in reached:
            found.append(start)
    return sorted(found)


@pytest.fixture(scope="module")
def library() -> Arrows:
    sources, packages = {}, set()
    for path in LIBRARY.rglob("*.py"):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text("utf-8")
        if parts[-1] == "__init__":
            packages.add(name)
    return arrowsOf(sources, packages)


def test_every_wing_and_module_has_its_line(library: Arrows) -> None:
    layers = layersOf(DiffusionAnomalyLib.__doc__ or "")
    named = [wing for wings in layers for wing in wings]
    assert len(named) == len(set(named))
    assert set(named) == {module.partition(".")[0] for module in library} - {""}


def test_no_arrow_between_wings_points_up(library: Arrows) -> None:
    assert "scene.results" in library["detection"] and "scene.volumes" in library["panel.inputpanel"]
    assert upwards(library, layersOf(DiffusionAnomalyLib.__doc__ or "")) == []


def test_no_import_goes_in_a_circle(library: Arrows) -> None:
    assert circles(library) == []


def test_no_part_of_the_panel_knows_the_panel(library: Arrows) -> None:
    assert [module for module, imported in library.items() if "panel.panel" in imported] == []


def test_packages_import_nothing(library: Arrows) -> None:
    assert {name: library[name] for name in ("", "panel", "process", "scene") if library[name]} == {}


PLANTED = {
    "": "",
    "high": "",
    "high.part": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .whole import Whole\n",
    "high.whole": "from .part import Part\nfrom ..low import tools\n",
    "low": "",
    "low.tools": "def late():\n    from DiffusionAnomalyLib.high.part import Part\n",
    "alone": "from .low import tools\nimport numpy\n",
}


def test_the_check_catches_planted_arrows_and_circles() -> None:
    arrows = arrowsOf(PLANTED, {"", "high", "low"})
    assert arrows == {
        "": set(),
        "high": set(),
        "high.part": {"high.whole"},
        "high.whole": {"high.part", "low.tools"},
        "low": set(),
        "low.tools": {"high.part"},
        "alone": {"low.tools"},
    }
    layers = layersOf("- ``high``: a\n- ``alone``: b\n- ``low``: c\n")
    assert layers == [{"high"}, {"alone"}, {"low"}]
    assert upwards(arrows, layers) == ["low.tools imports high.part"]
    assert upwards(arrows, [{"low", "alone"}, {"high"}]) == ["alone imports low.tools", "high.whole imports low.tools"]
    assert circles(arrows) == ["high.part", "high.whole", "low.tools"]
    assert circles({**arrows, "high.part": set()}) == []
