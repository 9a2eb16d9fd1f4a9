"""What the site takes from the code, so that it cannot go stale; MkDocs calls the functions whose names begin with on_.

- A line ``<!-- insert NAME -->`` in a page becomes what ``INSERTS[NAME]`` makes: the command line's own help, the
  options of the methods, the table of the model packages.
- ``BORROWED`` pages lie elsewhere in the repository, where their readers look for them, and each model package brings
  its card; the site shows them as they are.
- A link from a page to a file of the repository that is no page of the site becomes a link to the repository. One that
  leads nowhere is left for MkDocs, which ends the build.

Neither torch nor a network is needed.
"""

from __future__ import annotations

import importlib
import json
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "DiffusionAnomaly"
PACKAGES = ENGINE / "diffusion_anomaly" / "bundles"

# Where the code keeps what is shown here.
COMMAND_LINE = "diffusion_anomaly.cli.main"
REGISTRY = "diffusion_anomaly.registry"

# Page of the site to file of the repository.
BORROWED = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/sample-scan.md": "Resources/SampleData/README.md",
    "project/security.md": "SECURITY.md",
    "reference/training.md": "training/README.md",
}
CARD_FOLDER = "reference/cards"

_INSERT = re.compile(r"^<!-- insert ([a-z-]+) -->$", re.MULTILINE)
_SITE = "site:"  # begins a link of an insert, which does not know on which page it stands
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the engine on the path, and the model cards into the navigation below the page of the models."""
    sys.path.insert(0, str(ENGINE))
    reference = next(section["Reference"] for section in config.nav or [] if "Reference" in section)
    place = next(i for i, entry in enumerate(reference) if "Formats" in entry)
    reference.insert(place, {"Model cards": [{name: f"{CARD_FOLDER}/{name}.md"} for name in _package_names()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for page, source in _borrowed().items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the inserts, and lead links out of the site into the repository."""
    markdown = _INSERT.sub(lambda found: INSERTS[found[1]](), markdown)
    at = page.file.src_uri
    source = _borrowed().get(at, f"docs/{at}")
    page_of = {path: uri for uri, path in _borrowed().items()}
    page_of |= {f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in _borrowed()}

    def lead(link: re.Match[str]) -> str:
        before, target, anchor, after = link[1], link[2], link[3] or "", link[4]
        if target.startswith(_SITE):
            return (
                f"{before}{posixpath.relpath(target.removeprefix(_SITE), posixpath.dirname(at) or '.')}{anchor}{after}"
            )
        if ":" in target or target.startswith("/"):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in page_of:
            return f"{before}{posixpath.relpath(page_of[path], posixpath.dirname(at) or '.')}{anchor}{after}"
        if not (ROOT / path).exists():
            return link[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{before}{config.repo_url}/{kind}/main/{path}{anchor}{after}"

    if source != f"docs/{at}":
        page.edit_url = f"{config.repo_url}/edit/main/{source}"
    return _LINK.sub(lead, markdown)


def command_line() -> str:
    """What ``--help`` prints, a section a command."""
    module = importlib.import_module(COMMAND_LINE)
    typer = importlib.import_module("typer")
    parts = []
    for words, command, context in _commands(typer.main.get_command(module.app), "diffusion-anomaly", None):
        title = words if " " in words else f"{words} itself"
        parts.append(f"### {title}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(command: Any, words: str, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    """A command and all below it, each with what is typed to reach it and its context."""
    context = command.context_class(command, info_name=words if parent is None else words.split()[-1], parent=parent)
    context.terminal_width = context.max_content_width = 100
    yield words, command, context
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, f"{words} {name}", context)


def methods_table() -> str:
    """A row a method: what it does, what its model learnt from, its model."""
    rows = ["| method | title | what it does | its model has learnt from |", "|---|---|---|---|"]
    for guide in importlib.import_module(REGISTRY).METHODS.values():
        link = f"[`{guide.name}`]({_SITE}reference/methods.md#{guide.name})"
        rows.append(f"| {link} | {guide.title} | {guide.does} | {guide.learnt_from} |")
    return "\n".join(rows)


def method_options() -> str:
    """A section a method with its options, their ranges and published defaults."""
    parts = []
    for guide in importlib.import_module(REGISTRY).METHODS.values():
        parts.append(f"### `{guide.name}` {{: #{guide.name} }}\n\n{guide.title}. {guide.does}\n")
        options = fields(guide.options_type)
        if not options:
            parts.append("It has no options.\n")
            continue
        parts += ["| option | default | range | what it is |", "|---|---|---|---|"]
        for option in options:
            about = option.metadata.get("about", "").replace("|", "\\|")
            parts.append(f"| `{option.name}` | {_value(option.default)} | {_range(option.metadata)} | {about} |")
        for name, preset in guide.presets.items():
            said = ", ".join(f"`{option}` {_value(value)}" for option, value in preset.items())
            parts.append(f"\nThe preset `{name}`: {said}.")
        parts.append("")
    return "\n".join(parts)


def _value(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _range(about: Any) -> str:
    if "allowed" in about:
        return ", ".join(str(one) for one in about["allowed"])
    if "words" in about:
        return ", ".join(about["words"]) + "; none for a channel"
    return f"{about['low']:g} to {about['high']:g}" if "low" in about else ""


def models_table() -> str:
    """A row a model package that comes along, from the packages themselves."""
    rows = ["| model | method | version | expects | licence of the weights | data |", "|---|---|---|---|---|---|"]
    for name in _package_names():
        anomaly, metadata = (
            json.loads((PACKAGES / name / "configs" / file).read_text(encoding="utf-8"))
            for file in ("anomaly.json", "metadata.json")
        )
        grid = anomaly.get("grid")
        pixels = f", {' x '.join(map(str, grid['size']))} pixels" if grid else ""
        if grid and "spacing" in grid:  # whole images are fitted to the grid
            pixels += f" of {grid['spacing']} mm"
        rows.append(
            f"| [`{name}`]({_SITE}{CARD_FOLDER}/{name}.md) | `{anomaly['method']}` | {metadata['version']} "
            f"| {anomaly['modality']}{pixels} | {metadata['license']} | {metadata['data_source']} |"
        )
    return "\n".join(rows)


INSERTS: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "method-options": method_options,
    "methods-table": methods_table,
    "models-table": models_table,
}


def _package_names() -> list[str]:
    return sorted(path.parents[1].name for path in PACKAGES.glob("*/docs/README.md"))


def _borrowed() -> dict[str, str]:
    """Page of the site to file of the repository, for all pages that lie elsewhere."""
    cards = {
        f"{CARD_FOLDER}/{name}.md": (PACKAGES / name / "docs" / "README.md").relative_to(ROOT).as_posix()
        for name in _package_names()
    }
    return BORROWED | cards
