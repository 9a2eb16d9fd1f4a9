"""What the documentation names exists: files that it links to, commands and options, Python names, the panel's labels.

The site's own build (`make docs`) checks links between its pages; here also those of the files that GitHub shows, such
as the README, and without anything of the site installed.
"""

from __future__ import annotations

import ast
import html
import importlib
import json
import re
import shlex
import sys
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "training" / "README.md"])
CONSOLE = re.compile(r"^( *)```console\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def links_of(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [first or second for first, second in LINK.findall(text)]


def target_of(page: Path, link: str) -> Path | None:
    """The file that a link means; None for one that leads to another place."""
    home, site = (PROJECT["urls"][name].rstrip("/") for name in ("Homepage", "Documentation"))
    if link.startswith(f"{site}/"):
        path = urlsplit(link.removeprefix(f"{site}/")).path.rstrip("/")
        return ROOT / "docs" / f"{path or 'index'}.md"
    inside = re.match(rf"{re.escape(home)}/(?:raw|blob|tree)/main/([^#]+)", link)
    if inside:
        return ROOT / inside[1]
    if urlsplit(link).scheme or link.startswith("#"):
        return None
    return page.parent / urlsplit(link).path


def blocks(pattern: re.Pattern[str], page: Path) -> list[str]:
    return [textwrap.dedent(block) for _, block in pattern.findall(page.read_text(encoding="utf-8"))]


def commands() -> list[tuple[str, str]]:
    """Every line of a console block that calls the command line, with its page; lines that go on are joined."""
    found = []
    for page in PAGES:
        for block in blocks(CONSOLE, page):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("diffusion-anomaly"):
                    found.append((page.relative_to(ROOT).as_posix(), line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    targets = {link: target_of(page, link) for link in links_of(page)}
    assert [link for link, target in targets.items() if target is not None and not target.exists()] == []


def test_the_check_finds_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#here) [b](gone.md) ![c](gone.png)\n```\n[d](code.md)\n```\n", encoding="utf-8")
    targets = [target_of(page, link) for link in links_of(page)]
    assert [target.name for target in targets if target is not None and not target.exists()] == ["gone.md", "gone.png"]


def parse(line: str) -> None:
    """Parse a command without running it, as the program would."""
    typer = importlib.import_module("typer")
    command = typer.main.get_command(importlib.import_module("diffusion_anomaly.cli.main").app)
    context, words = None, shlex.split(line, comments=True)
    name, rest = words[0], words[1:]
    while True:
        context = command.make_context(name, list(rest), parent=context)
        waiting = [*getattr(context, "_protected_args", []), *context.args]
        if not hasattr(command, "commands") or not waiting:
            return
        name, command, rest = command.resolve_command(context, waiting)


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_understood(page: str, line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["diffusion-anomaly detekt a.nii", "diffusion-anomaly detect a.nii -o b --stepz 3"])
def test_a_wrong_command_is_not_understood(line: str) -> None:
    with pytest.raises(Exception, match=r"detekt|stepz"):
        parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_examples_are_python_and_name_what_there_is(page: Path) -> None:
    engine = importlib.import_module("diffusion_anomaly")
    for block in blocks(PYTHON, page):
        named = {
            node.attr
            for node in ast.walk(ast.parse(block))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "da"
        }
        if hasattr(engine, "load"):
            assert {name for name in named if not hasattr(engine, name)} == set()


@pytest.mark.parametrize("page", ["reference/panel.md", "tutorials/slicer.md"])
def test_the_panel_has_every_control_that_is_named(page: str) -> None:
    module = ROOT / "DiffusionAnomaly"
    sources = [*module.glob("Resources/UI/*.ui"), *module.glob("DiffusionAnomalyLib/**/*.py")]
    panel = html.unescape("".join(path.read_text(encoding="utf-8") for path in sources))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    controls = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]*)\*(?!\*)", text)) - {"Data", "Clone"}  # those are Slicer's
    assert len(controls) > 5
    assert {control for control in controls if control not in panel} == set()


def test_where_the_calibration_tables_end_is_said_as_it_is() -> None:
    packages = (ROOT / "DiffusionAnomaly" / "diffusion_anomaly" / "bundles").glob("*/configs/anomaly.json")
    declared = [json.loads(path.read_text(encoding="utf-8")) for path in packages]
    ends = [package["calibration"]["heat"][-1] for package in declared if "calibration" in package]
    text = (ROOT / "docs" / "concepts" / "calibration.md").read_text(encoding="utf-8")
    assert f"at {min(ends):.1f} to {max(ends):.1f} in the models that come" in text


def test_the_citation_and_the_changelog_know_the_version() -> None:
    version = importlib.import_module("diffusion_anomaly").__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_tests_that_hold_unusual_inputs_exist() -> None:
    page = (ROOT / "docs" / "reference" / "unusual-inputs.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) >= 60
    for file, test in named:
        source = ast.parse((ROOT / "Testing" / "engine" / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"
