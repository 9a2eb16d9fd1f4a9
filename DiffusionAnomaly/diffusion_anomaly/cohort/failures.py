"""The table of scans without a result: what was wrong with each and what to do."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..io.files import keep_foreign, write_text
from ..io.tables import csv_text
from ..text import printable
from .run import Failed

FAILURES = "failures.csv"
HEADING = ["name", "scan", "kind", "message", "hint", "tries"]


def table_name(shard: tuple[int, int] | None) -> str:
    """The table of a run, or of its shard.

    >>> table_name((2, 8))
    'failures-2-of-8.csv'
    """
    return FAILURES if shard is None else f"failures-{shard[0]}-of-{shard[1]}.csv"


def write_failures(
    output: Path, failed: Sequence[Failed], shard: tuple[int, int] | None = None, anonymous: bool = False
) -> Path:
    """Write the table, with its heading alone where nothing failed. That of all scans replaces those of shards.

    Args:
        output: folder of the cohort.
        failed: the scans.
        shard: of which they are.
        anonymous: whether the files' names are left out, also of messages.

    Raises:
        InputError: when it cannot be written, or something else has its name.
    """
    path = output / table_name(shard)
    keep_foreign(path, _is_ours)
    rows = []
    for one in sorted(failed, key=lambda one: one.name):
        scan = str(one.scan)
        message = one.failure.what.replace(scan, "the scan") if anonymous else one.failure.what
        told = (one.name, "" if anonymous else scan, one.failure.kind, message, one.failure.hint)
        rows.append(dict(zip(HEADING, [*map(printable, told), one.tries], strict=True)))
    write_text(path, csv_text(rows, HEADING))
    if shard is None:
        for other in output.glob("failures-*-of-*.csv"):
            if _is_ours(other):
                other.unlink()
    return path


def read_failures(output: Path) -> list[dict[str, str]]:
    """The rows of the table, or of all shards' tables where there is no other."""
    tables = [output / FAILURES] if (output / FAILURES).is_file() else sorted(output.glob("failures-*-of-*.csv"))
    rows = []
    for path in tables:
        if _is_ours(path):
            with path.open(newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
    return rows


def _is_ours(path: Path) -> bool:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), []) == HEADING
