"""What several commands take, from text to values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError
from ..registry import DEFAULT_METHOD, METHODS


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
