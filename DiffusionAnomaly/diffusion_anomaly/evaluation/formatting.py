"""Tables as text: what evaluations and benchmarks write and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.files import write_text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, all columns but the first set to the right."""
    ruler = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]


def number(value: float | None, digits: int, *, significant: bool = False) -> str:
    """The number with so many decimals, or so many significant digits; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}{'g' if significant else 'f'}}"


def with_interval(row: Mapping[str, Any], key: str, digits: int, *, significant: bool = False) -> str:
    """``row[key]``, and in brackets its ``key_low`` and ``key_high`` where there are such."""
    text = number(row.get(key), digits, significant=significant)
    ends = [row.get(f"{key}_{end}") for end in ("low", "high")]
    if any(end is None or not math.isfinite(end) for end in ends):
        return text
    return f"{text} [{', '.join(number(end, digits, significant=significant) for end in ends)}]"


def finite(value: Any) -> Any:
    """The same, JSON-ready, with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def text_writer(text: str) -> Callable[[Path], object]:
    """What writes the text, in UTF-8 with Unix line ends, for ``io.outputs.publish``."""
    return lambda path: write_text(path, text)
