"""What `pip install` gives a user: the wheel holds the whole engine, schemas, templates and model packages too."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "DiffusionAnomaly" / "diffusion_anomaly"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The built wheel. Built from a copy: setuptools leaves its work beside the sources, and would find it again."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ENGINE, source / "DiffusionAnomaly" / ENGINE.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(source / "out"), str(source)], check=True)
    (built,) = (source / "out").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_holds_every_file_of_the_engine_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    engine = {path.relative_to(ENGINE.parent).as_posix() for path in ENGINE.rglob("*") if path.is_file()}
    engine = {name for name in engine if "__pycache__" not in name and "/." not in name}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == engine


def test_the_wheel_installs_the_command_and_declares_its_licences(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    assert "diffusion-anomaly = diffusion_anomaly.__main__:main" in wheel.read(entry_points).decode()
    assert "License-Expression: Apache-2.0 AND CC-BY-NC-SA-4.0" in wheel.read(metadata).decode()


def test_every_package_that_the_engine_imports_is_a_declared_dependency(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    told = wheel.read(metadata).decode()
    required = set(re.findall(r"^Requires-Dist: ([\w.-]+)(?!.*extra ==)", told, re.MULTILINE))
    # What only works with an extra says so where it is asked for.
    required |= set(
        re.findall(
            r"^Requires-Dist: ([\w.-]+).*extra == .(?:client|cohort|dicom|dicom-node|serve).", told, re.MULTILINE
        )
    )
    imported = set()
    for path in ENGINE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names)
    distributions = {"PIL": "pillow", "nrrd": "pynrrd", "gdcm": "python-gdcm", "yaml": "pyyaml"}
    distributions["dicomweb_client"] = "dicomweb-client"
    assert {distributions.get(name, name).lower() for name in foreign} <= {name.lower() for name in required}
