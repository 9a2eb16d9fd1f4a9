"""JSON from strangers: read within bounds, then made dataclasses, where unknown, missing and ill-typed entries are
refused by name. Standard library only.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NoReturn

from ..errors import InputError

# Beyond what anything here writes: the largest, a calibration table, has tens of kilobytes and thousands of values.
MAX_BYTES = 8_000_000
MAX_VALUES = 200_000
MAX_DEPTH = 32
MAX_INTEGER = 2**63 - 1

_JSON_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a whole number"}


def parse(data: bytes) -> Any:
    """JSON read strictly: UTF-8, finite numbers, whole ones within 64 bits, no repeated keys, bounded size and depth.

    Raises:
        ValueError: saying what is at fault.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are more than the {MAX_BYTES} that are read as JSON")
    if data.count(b",") > MAX_VALUES:  # before any is made
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    try:
        content = json.loads(
            data.decode(),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique_keys,
        )
        _check_depth(content)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a float")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"a whole number of {len(text)} digits is beyond 64 bits")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:60]!r} is given twice")
    return content


def _check_depth(value: Any, depth: int = 0) -> None:
    if not isinstance(value, (dict, list)):
        return
    if depth == MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    for entry in value.values() if isinstance(value, dict) else value:
        _check_depth(entry, depth + 1)


def checked(kind: type, content: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from JSON, refusing unknown, missing and ill-typed entries."""
    hints = typing.get_type_hints(kind)
    known = {entry.name: hints[entry.name] for entry in fields(kind)}
    unknown = sorted(set(content) - set(known))
    if unknown:
        names = ", ".join(name[:40] for name in unknown[:10]) + (" …" if len(unknown) > 10 else "")
        raise InputError(f"{where} has the unknown entries {names}.", f"Known are {', '.join(known)}.")
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
