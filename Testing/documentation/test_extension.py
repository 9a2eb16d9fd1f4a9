"""What the Extensions Index and Slicer's build ask of the repository, as far as it can be told without a network.

The rules are those of the index's own check of a new extension: names, category, literal addresses of pictures, a
licence file, the size; whether an address answers is seen only once the repository is published. The files that the
build copies are listed one by one; ``python Testing/documentation/test_extension.py`` writes the lists anew.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "DiffusionAnomaly"
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
LISTS = ROOT / NAME / "files.cmake"
# Those of the index that an extension like this one could be in.
CATEGORIES = {"Active Learning", "Analysis", "Machine Learning", "Neuroimaging", "Quantification", "Segmentation"}
PREFIXES = ("Slicer", "SlicerExtension-", "SlicerExtension_")
LARGEST_MB = 75
PICTURES = (".png", ".jpg", ".jpeg", ".gif")


def entry() -> dict[str, Any]:
    return json.loads((ROOT / f"{NAME}.json").read_text(encoding="utf-8"))


def value(name: str) -> str:
    """What the extension's CMakeLists.txt sets a variable to."""
    found = re.search(rf'^set\({name} "([^"]+)"\)', CMAKE, re.MULTILINE)
    assert found is not None, f"{name} is not set to a text"
    return found[1]


def files() -> tuple[list[str], list[str]]:
    """Scripts and other files of the module, relative to its folder, as they lie there."""
    module = ROOT / NAME
    found = [
        path.relative_to(module)
        for folder in (f"{NAME}Lib", "diffusion_anomaly", "Resources")
        for path in sorted((module / folder).rglob("*"))
        if path.is_file()
    ]
    names = [
        path.as_posix()
        for path in found
        if path.suffix not in {".pyc", ".pyo"} and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    ]
    scripts = [f"{NAME}.py", *(name for name in names if name.endswith(".py"))]
    return scripts, [name for name in names if not name.endswith(".py")]


def listed(name: str) -> list[str]:
    found = re.search(rf"^set\({name}\n(.*?)^  \)", LISTS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return found[1].split() if found else []


def test_the_build_lists_every_file_of_the_module() -> None:
    scripts, resources = files()
    wrong = {*listed("MODULE_PYTHON_SCRIPTS"), *listed("MODULE_PYTHON_RESOURCES")} ^ {*scripts, *resources}
    assert not wrong, f"python {Path(__file__).relative_to(ROOT)} lists {', '.join(sorted(wrong))}"
    module = (ROOT / NAME / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "GLOB" not in module and "GLOB" not in CMAKE
    samples = [path.name for path in (ROOT / "Resources" / "SampleData").iterdir()]
    assert [name for name in samples if f"/{name}" not in module] == []


def test_the_build_registers_every_test_of_the_application() -> None:
    folder = ROOT / "Testing" / "app"
    registered = re.findall(r"SCRIPT (\w+\.py)", (folder / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert sorted(registered) == sorted(path.name for path in folder.glob("*Test.py"))


@pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32", reason="needs make")
def test_all_tests_of_the_application_run_when_one_fails(tmp_path: Path) -> None:
    slicer = tmp_path / "Slicer"
    slicer.write_text('#!/bin/sh\ncase "$*" in *PanelTest*) exit 1;; esac\n', encoding="utf-8")
    slicer.chmod(0o755)
    done = subprocess.run(
        ["make", "--no-print-directory", "test-slicer", f"SLICER={slicer}"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    names = sorted(path.stem for path in (ROOT / "Testing" / "app").glob("*Test.py"))
    assert done.returncode != 0 and len(names) > 2
    states = [f"{name}: {'FAILED' if name.endswith('PanelTest') else 'passed'}" for name in names]
    assert done.stdout.split("\n")[-len(names) - 1 : -1] == states


def test_the_entry_of_the_index_is_as_its_schema_wants_it() -> None:
    raw = (ROOT / f"{NAME}.json").read_bytes()
    assert b"\r" not in raw
    made = entry()
    assert {"$schema", "category", "scm_url"} <= made.keys()
    assert made.keys() <= {
        *("$schema", "category", "scm_url", "scm_revision", "scm_type"),
        *("build_dependencies", "build_subdirectory", "enabled", "tier"),
    }
    assert made["$schema"].startswith("https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/")
    assert made["category"] in CATEGORIES and 1 <= made["tier"] <= 5


def test_the_names_are_those_that_the_index_takes() -> None:
    url = entry()["scm_url"]
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+\.git", url)
    repository = url.rpartition("/")[2].removesuffix(".git")
    assert repository.startswith(PREFIXES) and not NAME.startswith("Slicer")
    assert re.search(r"project\((\w+)", CMAKE)[1] == NAME  # type: ignore[index]
    assert value("EXTENSION_HOMEPAGE") == url.removesuffix(".git")


@pytest.mark.parametrize("variable", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_addresses_of_pictures_are_literal_and_lead_to_files_of_the_repository(variable: str) -> None:
    addresses = value(variable).split()
    assert addresses
    for address in addresses:
        assert address.startswith("http") and address.endswith(PICTURES) and "$" not in address
        inside = address.removeprefix(f"{value('EXTENSION_HOMEPAGE')}/raw/main/")
        assert inside != address and (ROOT / inside).is_file()


def test_the_description_is_a_sentence_that_names_the_licences_of_the_weights() -> None:
    description = value("EXTENSION_DESCRIPTION")
    assert re.search(r"\.\s", description) is None and description.endswith(".")
    bundles = (ROOT / NAME / "diffusion_anomaly" / "bundles").glob("*/configs/metadata.json")
    licences = {json.loads(path.read_text(encoding="utf-8"))["license"] for path in bundles}
    assert len(licences) > 1 and [one for one in licences if one not in description] == []


def test_only_extensions_that_are_called_are_dependencies() -> None:
    depends = value("EXTENSION_DEPENDS").split() if "NA" not in value("EXTENSION_DEPENDS") else []
    assert depends == entry()["build_dependencies"] == ["PyTorch"]
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / NAME / f"{NAME}Lib").rglob("*.py")]
    assert any("from PyTorchUtils import" in source for source in sources)


def test_the_repository_has_a_permissive_licence_and_stays_small() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    scripts, resources = files()
    others = ("Resources", "Testing", "docs", "examples", "training")
    paths = [ROOT / NAME / name for name in (*scripts, *resources)]
    paths += [path for folder in others for path in (ROOT / folder).rglob("*") if "output" not in path.parts]
    size = sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")
    assert size / 2**20 < LARGEST_MB


def test_the_module_runs_no_code_when_it_is_imported() -> None:
    tree = ast.parse((ROOT / NAME / f"{NAME}.py").read_text(encoding="utf-8"))
    kinds = {type(statement) for statement in tree.body[1:]}
    assert kinds <= {ast.Import, ast.ImportFrom, ast.ClassDef}


def write() -> None:
    """The lists as the files lie there."""
    text = "# Every file that the build copies; a test compares the lists with the folder.\n"
    for variable, names in zip(("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"), files(), strict=True):
        text += "\n".join([f"set({variable}", *(f"  {name}" for name in names), "  )", ""])
    LISTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
