"""The arrows of the architecture point down only, and Slicer's own process never meets torch.

Read from the source with ``ast``, so that an import inside a function counts too where it matters, and
nothing has to be importable here: Slicer's modules exist only inside Slicer.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE_FOLDER = REPOSITORY / "DiffusionAnomaly"
ENGINE = "diffusion_anomaly"

ABOVE_THE_ENGINE = {
    "training",
    "slicer",
    "qt",
    "ctk",
    "vtk",
    "mrml",
    "DiffusionAnomaly",
    "DiffusionAnomalyLib",
}
HEAVY = {"torch", "monai"}
# The wings and the files beside them, each above those that follow: imports point down this list alone.
WINGS = (
    "__main__",
    "cli",
    "api",
    "server",
    "client",
    "worker",
    "dicom_network",
    "cohort",
    "evaluation",
    "detection",
    "results",
    "methods",
    "models",
    "preprocessing",
    "io",
    "registry",
    "options",
    "precision",
    "system",
    "process",
    "errors",
    "text",
)
# What Slicer's own process may import of the engine.
FOR_SLICER = {
    f"{ENGINE}.{name}"
    for name in (
        "client.address",
        "client.wire",
        "detection.input_checks",
        "errors",
        "io.contrasts",
        "io.files",
        "io.orientation",
        "io.tables",
        "models.declaration",
        "models.package",
        "options",
        "registry",
        "results.findings",
        "results.places",
        "results.redrawing",
        "worker.protocol",
    )
}


@dataclass(frozen=True)
class Import:
    """An import statement: the name as Python would resolve it, and whether it runs when the file loads."""

    name: str
    line: int
    at_load: bool


def imports_of(source: str, module: str, is_package: bool = False) -> list[Import]:
    """All imports of a module, relative ones resolved; what stands under ``if TYPE_CHECKING`` never runs.

    ``from a import b`` yields both ``a`` and ``a.b``, since ``b`` may be a module.
    """
    package = module if is_package else module.rpartition(".")[0]

    def walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child, at_load)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield Import(base, node.lineno, at_load)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, at_load)
        in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_load and not in_function)

    return list(walk(ast.parse(source), True))


def modules_under(folder: Path, name: str) -> dict[str, Path]:
    """Dotted name to file of every module of a package."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [name, *path.relative_to(folder).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read(modules: dict[str, Path]) -> dict[str, list[Import]]:
    return {
        name: imports_of(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
        for name, path in modules.items()
    }


def violations(imports: dict[str, list[Import]], forbidden: set[str], at_load_only: bool = False) -> list[str]:
    """Every import whose top-level name is forbidden, as ``module:line imports name``."""
    return [
        f"{module}:{entry.line} imports {entry.name}"
        for module, entries in imports.items()
        for entry in entries
        if entry.name.partition(".")[0] in forbidden and (entry.at_load or not at_load_only)
    ]


def loaded_by(start: set[str], imports: dict[str, list[Import]]) -> set[str]:
    """The modules of ``imports`` that are loaded when ``start`` is, parents included."""
    loaded: set[str] = set()
    waiting = set(start)
    while waiting:
        module = waiting.pop()
        if module in loaded or module not in imports:
            continue
        loaded.add(module)
        waiting.add(module.rpartition(".")[0])
        waiting |= {entry.name for entry in imports[module] if entry.at_load}
    return loaded


@pytest.fixture(scope="module")
def engine() -> dict[str, list[Import]]:
    return read(modules_under(MODULE_FOLDER / ENGINE, ENGINE))


def test_the_engine_imports_nothing_that_stands_above_it(engine: dict[str, list[Import]]) -> None:
    assert f"{ENGINE}.worker.protocol" in engine  # the check has found the engine
    assert violations(engine, ABOVE_THE_ENGINE) == []


def test_what_slicer_imports_never_loads_torch(engine: dict[str, list[Import]]) -> None:
    loaded = loaded_by(FOR_SLICER, engine)
    assert loaded >= FOR_SLICER
    assert violations({name: engine[name] for name in loaded}, HEAVY, at_load_only=True) == []


def test_what_slicer_imports_loads_requests_when_a_scan_is_sent_alone(engine: dict[str, list[Import]]) -> None:
    loaded = loaded_by(FOR_SLICER, engine)
    assert violations({name: engine[name] for name in loaded}, {"requests"}, at_load_only=True) == []
    imports = read(modules_under(MODULE_FOLDER / "DiffusionAnomalyLib", "DiffusionAnomalyLib"))
    assert violations(imports, {"requests"}, at_load_only=True) == []


def test_packages_of_an_extra_are_imported_where_they_are_used_alone(engine: dict[str, list[Import]]) -> None:
    extras = {
        ("ray", "pyarrow"): {"cohort.actors", "cohort.group"},
        ("pynetdicom", "dicomweb_client", "yaml"): {
            "dicom_network.config",
            "dicom_network.receiving",
            "dicom_network.web",
        },
        ("fastapi", "starlette", "uvicorn", "cryptography"): {
            "server.app",
            "server.certificate",
            "server.connections",
            "server.listening",
        },
    }
    for packages, users in extras.items():
        assert violations(engine, set(packages), at_load_only=True) == []
        where = {line.partition(":")[0] for line in violations(engine, set(packages))}
        assert where == {f"{ENGINE}.{user}" for user in users}


def test_the_job_file_needs_the_standard_library_alone(engine: dict[str, list[Import]]) -> None:
    loaded = loaded_by({f"{ENGINE}.worker.protocol"}, engine)
    names = {entry.name.partition(".")[0] for module in loaded for entry in engine[module] if entry.at_load}
    assert names - {ENGINE} <= set(sys.stdlib_module_names)


def test_slicer_side_imports_only_the_torch_free_border() -> None:
    library = MODULE_FOLDER / "DiffusionAnomalyLib"
    imports = read(modules_under(library, "DiffusionAnomalyLib"))
    for path in sorted(MODULE_FOLDER.glob("*.py")):
        imports[path.stem] = imports_of(path.read_text(encoding="utf-8"), path.stem)
    assert violations(imports, HEAVY | {"training"}) == []
    beyond = [
        f"{module}:{entry.line} imports {entry.name}"
        for module, entries in imports.items()
        for entry in entries
        if entry.name.partition(".")[0] == ENGINE
        and entry.name != ENGINE
        and not any(f"{entry.name}.".startswith(f"{unit}.") or unit.startswith(f"{entry.name}.") for unit in FOR_SLICER)
    ]
    assert beyond == []


def test_training_imports_nothing_of_slicer() -> None:
    imports = read(modules_under(REPOSITORY / "training", "training"))
    assert violations(imports, ABOVE_THE_ENGINE - {"training"}) == []


def wing_of(module: str) -> str:
    """The wing, or the file beside the wings, that a module of the engine lies in; empty for the package itself."""
    return module.removeprefix(ENGINE).lstrip(".").partition(".")[0]


def arrows_upwards(imports: dict[str, list[Import]], wings: tuple[str, ...]) -> list[str]:
    """Every import of a wing above one's own, or of something that is in no wing."""
    found = []
    for module, entries in imports.items():
        here = wing_of(module)
        for entry in entries:
            there = wing_of(entry.name) if entry.name.startswith(f"{ENGINE}.") else ""
            if (
                here
                and there
                and there != "__version__"
                and (there not in wings or here not in wings or wings.index(there) < wings.index(here))
            ):
                found.append(f"{module}:{entry.line} imports {entry.name}")
    return found


def circles(imports: dict[str, list[Import]]) -> list[str]:
    """Modules that are reached from themselves, also by imports that run later."""
    targets = {
        module: {entry.name for entry in entries} & imports.keys() - {module} for module, entries in imports.items()
    }
    found = []
    for start in imports:
        seen: set[str] = set()
        waiting = set(targets[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting |= targets[module]
        if start in seen:
            found.append(start)
    return sorted(found)


def test_imports_point_down_the_wings(engine: dict[str, list[Import]]) -> None:
    assert {wing_of(name) for name in engine} - {""} == set(WINGS)
    inside = {name: entries for name, entries in engine.items() if name != ENGINE}  # the package shows what `api` has
    assert arrows_upwards(inside, WINGS) == []


def test_no_imports_go_in_a_circle(engine: dict[str, list[Import]]) -> None:
    inside = {name: entries for name, entries in engine.items() if name != ENGINE}
    assert circles(inside) == []


def test_no_method_imports_its_siblings(engine: dict[str, list[Import]]) -> None:
    shared = {f"{ENGINE}.methods", f"{ENGINE}.methods.base", f"{ENGINE}.methods.latent_threshold"}
    methods = {name: entries for name, entries in engine.items() if name.startswith(f"{ENGINE}.methods.")}
    found = [
        f"{module} imports {entry.name}"
        for module, entries in methods.items()
        for entry in entries
        if entry.name in methods.keys() - shared
    ]
    assert len(methods) > 4 and found == []


def test_the_checks_catch_a_planted_arrow_and_a_planted_circle() -> None:
    planted = {
        f"{ENGINE}.io.reader": imports_of("from ..results.report import render", f"{ENGINE}.io.reader"),
        f"{ENGINE}.io.writer": imports_of("from . import reader", f"{ENGINE}.io.writer"),
        f"{ENGINE}.io.other": imports_of("def f():\n    from .writer import g", f"{ENGINE}.io.other"),
    }
    assert arrows_upwards(planted, WINGS)[0] == f"{ENGINE}.io.reader:1 imports {ENGINE}.results.report"
    assert circles(planted) == []
    planted[f"{ENGINE}.io.reader"] += imports_of("from .other import h", f"{ENGINE}.io.reader")
    assert circles(planted) == [f"{ENGINE}.io.other", f"{ENGINE}.io.reader", f"{ENGINE}.io.writer"]


@pytest.mark.parametrize("module", sorted(name.partition(".")[2] for name in FOR_SLICER))
def test_importing_it_leaves_torch_out(module: str) -> None:
    code = f"import sys, {ENGINE}.{module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=MODULE_FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import slicer", "slicer"),
        ("from training.trainer import Trainer", "training.trainer"),
        ("def f():\n    import vtk.util", "vtk.util"),
        ("try:\n    import qt\nexcept ImportError:\n    qt = None", "qt"),
        ("class C:\n    from ctk import ctkWidget", "ctk"),
    ],
)
def test_the_check_catches_a_planted_arrow_upwards(source: str, caught: str) -> None:
    found = violations({"diffusion_anomaly.planted": imports_of(source, "diffusion_anomaly.planted")}, ABOVE_THE_ENGINE)
    assert any(entry.endswith(f"imports {caught}") for entry in found)


def test_the_check_follows_imports_to_torch_through_other_modules() -> None:
    sources = {
        "pack": ("", True),
        "pack.job": ("from . import middle", False),
        "pack.middle": ("from .deep import f", False),
        "pack.deep": ("import torch.nn", False),
        "pack.late": ("def f():\n    import torch", False),
    }
    imports = {name: imports_of(text, name, package) for name, (text, package) in sources.items()}
    assert loaded_by({"pack.job"}, imports) == {"pack", "pack.job", "pack.middle", "pack.deep"}
    assert violations(imports, HEAVY, at_load_only=True) == [
        "pack.deep:1 imports torch.nn",
    ]


def test_the_check_lets_annotations_and_the_standard_library_pass() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import json"
    names = [entry.name for entry in imports_of(source, "pack.job")]
    assert "torch" not in names
    assert "json" in names
