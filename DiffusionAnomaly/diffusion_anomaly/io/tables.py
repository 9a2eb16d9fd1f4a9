"""Tables that people write, CSV as spreadsheet programs save it, and tables that are written for them.

A row that is short or long is refused rather than read, because its cells would be taken for those of other columns.
Needs the standard library only.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import counted, printable

_SHOWN = 8


def read_table(
    path: Path, *needed: Sequence[str], prefix: str = ""
) -> tuple[list[str], list[tuple[int, Mapping[str, str]]]]:
    """The columns of a table, and its rows that are not empty: the number of each one's line, and its cells by column.

    Cells are separated by commas, or as Excel saves them in many countries by semicolons, or by tabs.

    Args:
        path: of the file, UTF-8.
        needed: each a set of columns of which all must be there; one set is enough.
        prefix: a column that begins so is enough too.

    Raises:
        InputError: naming the line where it is no table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as a table: {error}.", "Save it as CSV in UTF-8.") from error
    heading = text.partition("\n")[0]
    separator = max(",;\t", key=heading.count)
    lines = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    rows: list[tuple[int, Mapping[str, str]]] = []
    columns: list[str] = []
    line = 1
    try:
        columns = [cell.strip() for cell in next(lines, [])]
        _check_columns(path, columns, needed, prefix)
        line = lines.line_num + 1
        for cells in lines:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    raise InputError(
                        f"{path}, line {line}, has {counted(len(cells), 'cell')}; the heading has {len(columns)}.",
                        f"Put text that holds a {'tab' if separator == chr(9) else separator} into quotes, and fill in "
                        "what is missing, if only with empty cells.",
                    )
                rows.append((line, {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}))
            line = lines.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path} cannot be read as a table from line {line} on: {error}.", "Are its quotes closed?"
        ) from error
    return columns, rows


def csv_text(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    digits: int | None = None,
    delimiter: str = ",",
) -> str:
    r"""A table as text with Unix line ends; what is None is an empty cell.

    Args:
        rows: cells by column; one that a row lacks is empty.
        columns: of the heading; by default all of the rows, in the order in which they first occur.
        digits: significant ones of floats; None writes all.
        delimiter: between cells.

    >>> csv_text([{"a": 1, "b": 0.123456789}, {"a": 2, "c": None}], digits=3)
    'a,b,c\n1,0.123,\n2,,\n'
    """
    text = io.StringIO()
    heading = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    table = csv.DictWriter(text, heading, lineterminator="\n", delimiter=delimiter)
    table.writeheader()
    for row in rows:
        shorten = digits is not None
        table.writerow(
            {key: f"{cell:.{digits}g}" if shorten and isinstance(cell, float) else cell for key, cell in row.items()}
        )
    return text.getvalue()


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[Sequence[str]], prefix: str) -> None:
    there = {name for name in columns if name}
    if not any(set(names) <= there for names in needed) and not (
        prefix and any(name.startswith(prefix) for name in there)
    ):
        ways = [" and ".join(names) for names in needed] + ([f"{prefix}NAME of each contrast"] if prefix else [])
        found = ", ".join(printable(name)[:40] for name in columns[:_SHOWN]) or "none"
        raise InputError(f"{path} has the columns {found}.", f"It needs {', or '.join(ways)}.")
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise InputError(f"{path} has two columns {printable(twice[0])[:40]}.", "Give each a name of its own.")
