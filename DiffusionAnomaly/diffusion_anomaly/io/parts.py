"""Voxels that a text header describes: in the same file or in others beside it, raw, compressed or as text.

NRRD and MetaImage share this. A header comes from anywhere, so it may name files only in its own folder and below.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from ..errors import InputError
from ..text import clean_text
from .content import (
    COPY_AGAIN,
    MOST_INFLATION,
    Content,
    ScanFile,
    check_promise,
    check_size,
    cut_short,
    inflate,
    inflate_bzip2,
)

MOST_PARTS = 10_000
# bzip2 makes 900 kB of zeros into some 40 bytes.
MOST_INFLATION_BZIP2 = 25_000
# A number and the blank behind it.
_LEAST_TEXT = 2


@dataclass(frozen=True)
class Encoding:
    """How voxels are stored.

    Attributes:
        kind: "raw", "gzip", "zlib" (or gzip), "bzip2" or "text".
        dtype: of a voxel, with its byte order.
        skip: bytes before the first voxel, after inflating; -1 when the voxels are a file's last bytes.
        skip_lines: lines before it, before inflating.
        stored: bytes of the compressed stream, where the header says so.
    """

    kind: str
    dtype: np.dtype
    skip: int = 0
    skip_lines: int = 0
    stored: int | None = None


def read_header_lines(file: ScanFile, last: Sequence[bytes], most_line: int, most: int) -> list[bytes]:
    """Lines of a text header, without their ends, up to the last one.

    Args:
        file: at its beginning; left behind the header.
        last: how the last line begins, in lower case without blanks; an empty line always is one.
        most_line: the longest line in bytes.
        most: the longest header in bytes.

    Raises:
        InputError: when there is no end, or a line is longer than any that a writer makes.
    """
    lines: list[bytes] = []
    read = 0
    while True:
        ahead = file.peek(4096)
        while (end := ahead.find(b"\n")) < 0 and len(ahead) <= most_line and len(longer := file.peek(2 * len(ahead))):
            if len(longer) == len(ahead):
                break
            ahead = longer
        line = file.read(end + 1 if end >= 0 else len(ahead)).rstrip(b"\r\n")
        read += len(line) + 1
        if len(line) > most_line or read > most:
            raise InputError(f"{file.what}: its header has no end, or a line too long.", "Export the scan again.")
        if end < 0 and not line:
            return lines
        lines.append(line)
        if not line or line.lower().replace(b" ", b"").replace(b"\t", b"").startswith(tuple(last)):
            return lines


def read_parts(
    header: ScanFile, names: Sequence[str] | None, encoding: Encoding, shape: tuple[int, ...], digest: hashlib._Hash
) -> tuple[np.ndarray, int]:
    """All voxels that a header describes.

    Args:
        header: the header's file, at its end.
        names: of the files that hold the voxels, an equal share each; None for those that follow the header.
        encoding: of each of them.
        shape: extents, the fastest first.
        digest: takes the bytes of the files.

    Returns:
        The voxels, the slowest axis first, as they are stored, and the number of bytes that follow them.

    Raises:
        InputError: when a file is missing, cut short, damaged, or named where a header may name none.
        MemoryExhausted: when this machine cannot hold it.
    """
    size = check_size(shape, encoding.dtype, header.what)
    count = size // encoding.dtype.itemsize
    if names is not None and (not names or len(names) > MOST_PARTS or count % len(names)):
        raise InputError(
            f"{header.what} names {len(names)} data files for {' x '.join(map(str, shape))} voxels.",
            "Export or convert the scan again.",
        )
    share = size if names is None else size // len(names)
    behind, stored = 0, None
    for index, name in enumerate([None] if names is None else names):
        with nullcontext(header) if name is None else ScanFile(_beside(header, name), digest) as file:
            held = file.left if encoding.stored is None else min(file.left, encoding.stored)
            most = {"raw": 1, "bzip2": MOST_INFLATION_BZIP2, "text": 0}.get(encoding.kind, MOST_INFLATION)
            if most:
                check_promise(share, held, most, file.what)
            else:
                check_promise(share // encoding.dtype.itemsize * _LEAST_TEXT - 1, held, 1, file.what)
            if stored is None:  # not before the first file has shown that it can hold its share
                stored = np.empty(size, np.uint8)
            behind += _fill(file, encoding, stored[index * share : (index + 1) * share])
    assert stored is not None  # there is at least one file
    return stored.view(encoding.dtype).reshape(shape[::-1]), behind


def _fill(file: ScanFile, encoding: Encoding, target: np.ndarray) -> int:
    """Fill an array with a file's voxels; the number of bytes that follow them."""
    for _ in range(encoding.skip_lines):
        _skip_line(file)
    if encoding.skip < 0:
        if encoding.kind != "raw":
            raise InputError(f"{file.what}: voxels from its end must be raw.", "Export or convert the scan again.")
        return _fill_from_end(file, target)
    if encoding.kind == "text":
        return _fill_text(file, encoding, target)
    chunks: Iterator[bytes] = file.chunks(encoding.stored)
    if encoding.kind == "bzip2":
        chunks = inflate_bzip2(chunks, file.what)
    elif encoding.kind != "raw":
        chunks = inflate(chunks, file.what, 47 if encoding.kind == "zlib" else 31)
    content = Content(chunks, file.what)
    content.skip(encoding.skip)
    content.into(target)
    return content.finish() + file.finish()


def _fill_from_end(file: ScanFile, target: np.ndarray) -> int:
    rest = Content(file.chunks(), file.what)
    rest.skip(max(0, file.left - len(target)))
    rest.into(target)
    return rest.finish()


def _fill_text(file: ScanFile, encoding: Encoding, target: np.ndarray) -> int:
    text = b"".join(file.chunks()).strip()
    voxels = target.view(encoding.dtype)
    try:
        with warnings.catch_warnings():  # it warns of what follows the last number that it understands
            warnings.simplefilter("error")
            numbers = np.fromstring(text[encoding.skip :], np.float64, sep=" ")
            if len(numbers) < len(voxels):
                raise cut_short(file.what, len(numbers), len(voxels))
            with np.errstate(all="ignore"):
                voxels[:] = numbers[: len(voxels)]
    except (DeprecationWarning, RuntimeWarning, ValueError) as error:
        raise InputError(f"{file.what} is damaged: its voxels are not all numbers.", COPY_AGAIN) from error
    return len(numbers) - len(voxels)


def _skip_line(file: ScanFile) -> None:
    while chunk := file.peek(4096):
        end = chunk.find(b"\n")
        file.read(len(chunk) if end < 0 else end + 1)
        if end >= 0:
            return
    raise InputError(f"{file.what} is cut short: it has fewer lines than are to be skipped.", COPY_AGAIN)


def _beside(header: ScanFile, name: str) -> Path:
    """The data file that a header names: in the header's folder or below it.

    Raises:
        InputError: when it lies elsewhere or is missing.
    """
    plain = name.replace("\\", "/") if os.name == "nt" else name
    path = PurePosixPath(plain)
    if path.is_absolute() or PureWindowsPath(name).anchor or ".." in path.parts or "\0" in name or not name:
        raise InputError(
            f"{header.what} takes its voxels from {name[:60]!a}; a header may name files of its own folder only.",
            "Copy that file beside the header, and name it in the header without its folder.",
        )
    found = header.path.parent / path
    if not os.path.isfile(found):  # False for a name that no file can have, too
        raise InputError(
            f"{header.what} needs the file {clean_text(os.fsencode(name), 100)} beside it, which is missing.",
            f"Copy it to the folder of {header.what}.",
        )
    return found
