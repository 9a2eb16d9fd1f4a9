"""What several commands take, from text to values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..registry import DEFAULT_METHOD, METHODS

Method = Annotated[str | None, typer.Option(help=f"{', '.join(METHODS)}; default: the model's, or {DEFAULT_METHOD}.")]
Model = Annotated[str | None, typer.Option(metavar="NAME|DIR", help="Model package; default: the method's.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Threshold = Annotated[float | None, typer.Option(help="Anomaly score from which a voxel is anomalous.")]
MinVolume = Annotated[float, typer.Option(metavar="ML", help="Smaller findings are dropped.")]
MinArea = Annotated[
    float | None, typer.Option(metavar="MM2", help="The same in a picture, in pixels if it has no scale.")
]
PeakMargin = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        help="Peak margin: findings whose highest score does not exceed the threshold by it go; default: the model's.",
    ),
]
SliceSpacing = Annotated[float | None, typer.Option(metavar="MM", help="Look at slices no farther apart than this.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Any option of the method; repeatable.")
]
Register = Annotated[
    bool, typer.Option("--register", help="Move the other channels rigidly onto the first one before.")
]
JsonEvents = Annotated[bool, typer.Option("--json-lines", help="Events as JSON lines on stdout.")]


def as_folder(text: str) -> Path:
    """An empty name, as of a shell's variable that is not set, would be the current folder."""
    if not text:
        raise typer.BadParameter("the folder has an empty name; . is the current one.")
    return Path(text)


def method_of(model: str | None) -> str:
    """The method that a model package is made for; the default method for no model, or one that finds brains."""
    if model is None:
        return DEFAULT_METHOD
    from ..models.package import open_bundle

    method = open_bundle(model).method
    return method if method in METHODS else DEFAULT_METHOD


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``name=value`` texts as a dictionary; a value is JSON where it can be, else text.

    >>> parse_settings(["steps=10", "side=bright", "antithetic=false"])
    {'steps': 10, 'side': 'bright', 'antithetic': False}
    """
    parsed = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name.strip():
            raise InputError(f"--set got {setting!r}.", "Write it as OPTION=VALUE, such as --set kl_levels=16.")
        try:
            parsed[name.strip()] = json.loads(value)
        except ValueError:
            parsed[name.strip()] = value.strip()
    return parsed
