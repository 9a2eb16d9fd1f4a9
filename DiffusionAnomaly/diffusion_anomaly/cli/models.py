"""``diffusion-anomaly models``: which model packages there are, what they expect, what they were measured to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..errors import EngineError, ModelError
from .console import err, out

if TYPE_CHECKING:
    from ..models.package import BundleSummary

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None, typer.Option("--folder", metavar="DIR", help="Look in this folder too; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List model packages; verify them."""
    if context.invoked_subcommand is not None:
        return
    from ..models.package import available

    summaries = available(folders or [])
    if as_json:
        out.print_json(json.dumps([_plain(summary) for summary in summaries]))
        return
    if not summaries:
        out.print("No model package is here. Give a folder of packages with --folder.")
    for summary in summaries:
        _show(summary)


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
                err.print(Text(f"error: {error}", style="red"))
        else:
            rows.append({"package": bundle.name, "version": bundle.version, "sha256": bundle.sha256, "ok": True})
            if not as_json:
                out.print(f"{bundle.name} {bundle.version}: ok")
    if as_json:
        out.print_json(json.dumps(rows))
    if not chosen:
        raise ModelError("There is no model package to verify.", "Name a package's folder.")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(ModelError.exit_code)


def _plain(summary: BundleSummary) -> dict[str, Any]:
    return {**asdict(summary), "path": str(summary.path), "quality": dict(summary.quality)}


def _show(summary: BundleSummary) -> None:
    out.print(Text(f"{summary.name} {summary.version}", style="bold"))
    if summary.problem:
        out.print(Text(f"  problem   {summary.problem}", style="red"))
    else:
        grid = f", {summary.spacing:g} mm" if summary.spacing else ""
        planes = {"axial": "axial slices", "any": "any orientation"}.get(summary.orientation, summary.orientation)
        out.print(Text(f"  method    {summary.method}"))
        out.print(Text(f"  expects   {summary.modality}{', ' if planes else ''}{planes}{grid}"))
        out.print(Text(f"  licence   {summary.license}"))
        out.print(Text(f"  quality   {_quality(summary.quality)}"))
        out.print(Text(f"  size      {summary.size_mb:.1f} MB"))
    out.print(Text(f"  folder    {summary.path}"))


def _quality(quality: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(text(entry) for entry in value)}]"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {text(value)}" for name, value in quality.items()) or "not measured"
