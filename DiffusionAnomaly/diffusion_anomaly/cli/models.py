"""``diffusion-anomaly models``: which model packages there are, what they expect, what they were measured to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import EngineError, ModelError
from ..text import counted, printable
from .console import SafeConsole, err, out, plain

if TYPE_CHECKING:
    from ..models.package import Bundle, BundleSummary

app = typer.Typer(rich_markup_mode=None)

# Wider than any line: what is piped is neither wrapped nor cut.
_PIPED_WIDTH = 10_000
# Longer lists of numbers, such as a calibration's, are shown by their ends.
_LONGEST_LIST = 6
_ROOM = 60
QUALITY_HEADING = "## Measured quality"


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None, typer.Option("--folder", metavar="DIR", help="Look in this folder too; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List model packages; show or verify them."""
    if context.invoked_subcommand is not None:
        return
    from ..models.package import available

    summaries = available(folders or [])
    if as_json:
        out.print_json(json.dumps([_plain(summary) for summary in summaries]), ensure_ascii=True)
        return
    if not summaries:
        out.print("No model package is here. Give a folder of packages with --folder.")
        return
    _show_table(summaries)


@app.command()
def show(
    package: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A built-in package, or a package's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show a model package's card and its declaration."""
    from ..models.package import open_bundle

    bundle = open_bundle(package)
    if as_json:
        out.print_json(
            json.dumps(
                {
                    "path": str(bundle.path),
                    "sha256": bundle.sha256,
                    "declaration": bundle.anomaly,
                    "metadata": bundle.metadata,
                    "model_card": bundle.model_card,
                }
            ),
            ensure_ascii=True,
        )
        return
    page = printable(f"{bundle.model_card.rstrip()}\n\n{_declaration(bundle)}", keep="\n\t")
    if out.is_terminal:
        from rich.markdown import Markdown

        out.print(Markdown(page), soft_wrap=False)
    else:
        out.print(Text(page))


@app.command()
def verify(
    packages: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|DIR]...", help="Default: all built-in packages.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check every file of model packages: hashes, declaration, tensors."""
    from ..models.package import available, open_bundle
    from ..models.verification import verify

    chosen = packages or [str(summary.path) for summary in available()]
    rows = []
    for package in chosen:
        try:
            bundle = open_bundle(package)
            verify(bundle)
        except EngineError as error:
            rows.append({"package": package, "ok": False, "problem": str(error)})
            if not as_json:
                err.print(plain(f"error: {error}", "red"))
        else:
            rows.append({"package": bundle.name, "version": bundle.version, "sha256": bundle.sha256, "ok": True})
            if not as_json:
                out.print(plain(f"{bundle.name} {bundle.version}: ok"))
    if as_json:
        out.print_json(json.dumps(rows), ensure_ascii=True)
    if not chosen:
        raise ModelError("There is no model package to verify.", "Name a package's folder.")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(ModelError.exit_code)


def _plain(summary: BundleSummary) -> dict[str, Any]:
    return {**asdict(summary), "path": str(summary.path), "quality": dict(summary.quality)}


def _show_table(summaries: list[BundleSummary]) -> None:
    """One line a package, then what no line has room for."""
    from ..models.package import builtin_directory

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "version", "method", "expects", "licence"):
        table.add_column(heading, no_wrap=heading != "expects")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("quality")
    for summary in summaries:
        if summary.problem:
            table.add_row(plain(summary.name), "", "", "", "", "", Text("problem, see below", style="red"))
            continue
        cells = (summary.name, summary.version, summary.method, _expects(summary), summary.license)
        table.add_row(*map(plain, cells), _size(summary.size_mb), plain(_headline(summary.quality)))
    console = out if out.is_terminal else SafeConsole(file=out.file, width=_PIPED_WIDTH)
    console.print(table, soft_wrap=False)
    out.print()
    for summary in summaries:
        if summary.problem:
            out.print(plain(f"problem with {summary.path}: {summary.problem}", "red"))
        elif summary.path.parent != builtin_directory():
            out.print(plain(f"{summary.name} is in {summary.path}"))
    out.print("AP: average precision. All that was measured: diffusion-anomaly models show NAME")


def _size(megabytes: float) -> str:
    return f"{megabytes:.1f} MB" if megabytes >= 0.1 else "< 0.1 MB"


def _expects(summary: BundleSummary) -> str:
    parts = [summary.modality, {"any": "any plane"}.get(summary.orientation, summary.orientation)]
    if summary.spacing:
        parts.append(f"{summary.spacing:.3g} mm")
    return ", ".join(part for part in parts if part)


def _headline(quality: Mapping[str, Any]) -> str:
    """The one number that says most: average precision, the lowest Dice, the highest AUROC, or the first there is."""
    numbers = {name: value for name, value in quality.items() if isinstance(value, (int, float))}
    if "average precision" in numbers:
        return f"AP {_text(numbers['average precision'])}"
    dice = [value for name, value in numbers.items() if name.startswith("Dice")]
    if dice:
        return f"Dice {_text(min(dice))}, lowest"
    aurocs = [value for name, value in numbers.items() if " AUROC of the map" in name]
    if aurocs:
        return f"AUROC up to {_text(max(aurocs))}"
    return next((f"{name} {_text(value)}" for name, value in numbers.items()), "not measured")


def _declaration(bundle: Bundle) -> str:
    """A package's declaration in Markdown: which package it is, and every entry in a table."""
    card = bundle.model_card.splitlines()
    # A card that has the measured quality as a table says it once, and in better words.
    entries = {key: value for key, value in bundle.anomaly.items() if key != "quality" or QUALITY_HEADING not in card}
    rows = [f"| {name} | {value} |" for name, value in _flat(entries)]
    lines = (
        "## Declaration",
        "",
        f"- Folder: `{bundle.path}`",
        f"- SHA256: `{bundle.sha256}`",
        f"- Licence: {bundle.license}",
        "",
        "| entry | value |",
        "|---|---|",
    )
    return "\n".join((*lines, *rows))


def _flat(entries: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested entries under their dotted names."""
    for name, value in entries.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}".replace("|", "\\|"), _text(value).replace("|", "\\|")


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        if len(value) > _LONGEST_LIST or len(str(value)) > _ROOM:
            return f"{_text(value[0])} … {_text(value[-1])} ({counted(len(value), 'value')})"
        return ", ".join(_text(entry) for entry in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
