"""JSON objects as dataclasses: unknown, missing and ill-typed entries are refused by name. Standard library only."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..errors import InputError

_JSON_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a whole number"}


def checked(kind: type, content: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from JSON, refusing unknown, missing and ill-typed entries."""
    hints = typing.get_type_hints(kind)
    known = {entry.name: hints[entry.name] for entry in fields(kind)}
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise InputError(f"{where} has the unknown entries {', '.join(unknown)}.", f"Known are {', '.join(known)}.")
    for name, value in content.items():
        if not _fits(value, known[name]):
            raise InputError(
                f"{where}: {name} is {kind_of(value)}, expected {_names(known[name])}.", "Correct the entry."
            )
    optional = {e.name for e in fields(kind) if e.default is not MISSING or e.default_factory is not MISSING}
    missing = [name for name in known if name not in content and name not in optional]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}.", "Add what is missing.")
    return kind(**content)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    for kind in _alternatives(hint):
        origin = typing.get_origin(kind) or kind
        if origin is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif origin is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, origin):
            return _contents_fit(value, typing.get_args(kind))
    return False


def _contents_fit(value: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether every entry of a mapping has the type that ``Mapping[str, type]`` promises."""
    if not isinstance(value, Mapping) or len(arguments) != 2 or arguments[1] is Any:
        return True
    return all(isinstance(entry, arguments[1]) for entry in value.values())


def kind_of(value: Any) -> str:
    """What a value of JSON is, for messages."""
    if value is None:
        return "null"
    name = _JSON_NAMES.get(type(value), "a number")
    return f"{name} ({value!r})" if isinstance(value, (str, int, float)) and len(repr(value)) < 80 else name


def _names(hint: Any) -> str:
    def name(kind: Any) -> str:
        origin = typing.get_origin(kind) or kind
        if origin is types.NoneType:
            return "null"
        return "an object" if issubclass(origin, Mapping) else _JSON_NAMES.get(origin, "a number")

    return " or ".join(name(kind) for kind in _alternatives(hint))
