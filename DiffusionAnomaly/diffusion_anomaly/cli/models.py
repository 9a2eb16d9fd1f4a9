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

from ..errors import EngineError, InputError, ModelError
from ..text import counted, printable
from . import remote
from .console import SafeConsole, err, out, plain

if TYPE_CHECKING:
    from ..client.connection import Connection
    from ..models.package import Bundle, BundleSummary

app = typer.Typer(rich_markup_mode=None)

# Wider than any line: what is piped is neither wrapped nor cut.
_PIPED_WIDTH = 10_000
# Longer lists of numbers, such as a calibration's, are shown by their ends.
_LONGEST_LIST = 6
_ROOM = 60
_MOST_SPACING = 1000  # mm
QUALITY_HEADING = "## Measured quality"


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None, typer.Option("--folder", metavar="DIR", help="Look in this folder too; repeatable.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="NAME|URL", help="List what this server offers, such as https://host:8443.")
    ] = None,
    token_file: remote.TokenFile = None,
    fingerprint: remote.Fingerprint = "",
    authorities: remote.Authorities = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List model packages, here or on a server; show or verify those here."""
    if context.invoked_subcommand is not None:
        if server is not None:
            raise InputError(
                f"--server lists what a server offers; {context.invoked_subcommand} looks at packages here.",
                "Leave out one of them.",
            )
        return
    connection = remote.quiet_connection(server, token_file, fingerprint, authorities)
    if connection is not None:
        if folders:
            raise InputError("--folder is for packages here, --server for those of a server.", "Give one of them.")
        _list_offered(connection, as_json)
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


def _list_offered(connection: Connection, as_json: bool) -> None:
    """What a server offers; it is not believed that every entry is of its kind."""
    try:
        listed = [entry for entry in connection.models() if isinstance(entry, dict)]
    finally:
        connection.close()
    summaries = [_offered(entry) for entry in listed]
    if as_json:
        rows = [
            {**_plain(summary), "sha256": str(entry.get("sha256", "")), "server": connection.server.name}
            for summary, entry in zip(summaries, listed, strict=True)
        ]
        for row in rows:
            for here in ("path", "size_mb", "problem"):
                del row[here]
        out.print_json(json.dumps(rows), ensure_ascii=True)
        return
    _print_table(summaries, with_size=False)
    out.print()
    out.print(plain(f"{connection.server.name} offers {counted(len(summaries), 'model')}."))
    out.print("AP: average precision. To use one: diffusion-anomaly detect --server … --model NAME")


def _offered(entry: Mapping[str, Any]) -> BundleSummary:
    from ..models.package import BundleSummary

    declaration = entry.get("declaration")
    declared = declaration if isinstance(declaration, dict) else {}
    grid = declared.get("grid", declared.get("grid3d"))
    spacing = grid.get("spacing") if isinstance(grid, dict) else 0
    quality = declared.get("quality")
    name, version, method, modality, licence = (
        str(entry.get(key, "")) for key in ("name", "version", "method", "modality", "license")
    )
    return BundleSummary(
        name=name,
        path=Path(),
        version=version,
        method=method,
        modality=modality,
        orientation=str(declared.get("orientation", "")),
        spacing=float(spacing) if isinstance(spacing, int | float) and abs(spacing) < _MOST_SPACING else 0.0,
        license=licence,
        quality=quality if isinstance(quality, dict) else {},
    )


def _plain(summary: BundleSummary) -> dict[str, Any]:
    return {**asdict(summary), "path": str(summary.path), "quality": dict(summary.quality)}


def _show_table(summaries: list[BundleSummary]) -> None:
    """One line a package, then what no line has room for."""
    from ..models.package import builtin_directory

    _print_table(summaries)
    out.print()
    for summary in summaries:
        if summary.problem:
            out.print(plain(f"problem with {summary.path}: {summary.problem}", "red"))
        elif summary.path.parent != builtin_directory():
            out.print(plain(f"{summary.name} is in {summary.path}"))
    out.print("AP: average precision. All that was measured: diffusion-anomaly models show NAME")


def _print_table(summaries: list[BundleSummary], with_size: bool = True) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "version", "method", "expects", "licence"):
        table.add_column(heading, no_wrap=heading != "expects")
    if with_size:
        table.add_column("size", justify="right", no_wrap=True)
    table.add_column("quality")
    for summary in summaries:
        if summary.problem:
            blank = [""] * (len(table.columns) - 2)
            table.add_row(plain(summary.name), *blank, Text("problem, see below", style="red"))
            continue
        cells = (summary.name, summary.version, summary.method, _expects(summary), summary.license)
        size = [_size(summary.size_mb)] if with_size else []
        table.add_row(*map(plain, cells), *size, plain(_headline(summary.quality)))
    console = out if out.is_terminal else SafeConsole(file=out.file, width=_PIPED_WIDTH)
    console.print(table, soft_wrap=False)


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
