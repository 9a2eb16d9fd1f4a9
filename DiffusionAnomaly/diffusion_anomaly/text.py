"""Texts that come from outside, such as file names, headers and licences: as a terminal and a file system take them.

Needs the standard library only.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Controls, invisible and direction-changing characters, halves of characters, private ones, separators of lines.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_NOT_ASCII = re.compile("[^ -~]")
_NO_FILE = re.compile(r'[<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?=\.|$)", re.IGNORECASE)
LINES = "\n\t"
"""What stays of a text of several lines."""
LONGEST_NAME = 150  # bytes; file systems take 255, and something is appended


def printable(text: object, keep: str = "") -> str:
    r"""A text without anything that a terminal would obey: such characters become their escapes.

    Args:
        text: any.
        keep: characters that stay, such as line ends of a longer text.

    >>> printable("a\x1b[31m.nii")
    'a\\x1b[31m.nii'
    """

    def replace(found: re.Match[str]) -> str:
        character = found[0]
        if character in keep or unicodedata.category(character) not in _HIDDEN:
            return character
        return character.encode("unicode_escape").decode("ascii")

    return _NOT_ASCII.sub(replace, str(text))  # a report is megabytes of base64


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "entry", "entries"), counted(2, "image")
    ('1 entry', '2 images')
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def listed(names: Sequence[str], most: int) -> str:
    """Names in one line, of many the first ones and how many more there are.

    >>> listed(["a", "b", "c", "d"], 2), listed(["a", "b"], 2)
    ('a, b, 2 more', 'a, b')
    """
    return ", ".join([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


def clean_text(raw: bytes | str, most: int = 256) -> str:
    r"""Text of a header in one line, cut where it is longer than ``most``; what a terminal would obey becomes blanks.

    >>> clean_text(b"T2 FLAIR, M\xfcller\x1b[31m\0\0")
    'T2 FLAIR, M\ufffdller [31m'
    """
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    text = "".join(" " if unicodedata.category(character) in _HIDDEN else character for character in text)
    return " ".join(text.split())[:most]


def safe_name(text: str, otherwise: str = "scan") -> str:
    """A text as the name of a file or folder that every system takes, and that leads nowhere else.

    >>> safe_name("NUL"), safe_name(".."), safe_name("-rf x:1. ")
    ('_NUL', 'scan', '_-rf x_1')
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join("_" if unicodedata.category(character) in _HIDDEN else character for character in text)
    text = _NO_FILE.sub("_", text).strip(" .")
    text = text.encode("utf-8")[:LONGEST_NAME].decode("utf-8", "ignore").rstrip(" .")
    if text.startswith(("-", "~")) or _RESERVED.match(text):
        text = f"_{text}"
    return text or otherwise


def distinct_names(names: Iterable[str]) -> list[str]:
    """The same names, with -2, -3 and so on where one is taken, in order.

    Names that differ in upper and lower case or in how their letters are encoded count as the same: on Windows and
    macOS they are.

    >>> distinct_names(["Scan", "scan", "x"])
    ['Scan', 'scan-2', 'x']
    """
    taken: set[str] = set()
    last: dict[str, int] = {}  # number of each stem; all up to it are taken
    distinct = []
    for stem in names:
        key = folded(stem)
        name, number = stem, last.get(key, 1)
        while folded(name) in taken:
            number += 1
            name = f"{stem}-{number}"
        last[key] = number
        taken.add(folded(name))
        distinct.append(name)
    return distinct


def folded(name: str) -> str:
    """A name as file systems that know no case compare it: names with the same outcome are one there."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


class PrintableFormatter(logging.Formatter):
    """Log lines without anything that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep=LINES)
