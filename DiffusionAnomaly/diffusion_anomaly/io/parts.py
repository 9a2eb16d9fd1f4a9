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
    MOST_BEHIND,
    MOST_INFLATION,
    MOST_VOXELS,
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
_MOST_INFLATIONS = {"bzip2": 25_000, "gzip": MOST_INFLATION, "zlib": MOST_INFLATION}
# Bytes of text a voxel: a number and the blank behind it take 2 or more, in full precision and in columns some 30.
_LEAST_TEXT, _MOST_TEXT = 2, 32
# Behind them; text takes a hundred times as long as raw voxels.
_MOST_TEXT_BEHIND = 1 << 20
_CONVERT = "Export or convert the scan again."


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
    header: ScanFile,
    names: Sequence[str] | None,
    encoding: Encoding,
    shape: tuple[int, ...],
    digest: hashlib._Hash,
    frame: int | None = None,
) -> tuple[np.ndarray, int]:
    """The voxels that a header describes, and the check that all of them are there.

    Args:
        header: the header's file, at its end.
        names: of the files that hold the voxels, an equal share each; None for those that follow the header.
        encoding: of each of them.
        shape: extents, the fastest first.
        digest: takes the bytes of the files.
        frame: which volume to keep, where the slowest axis counts them; None for all voxels.

    Returns:
        The voxels, the slowest axis first, as they are stored, and the number of bytes that follow them.

    Raises:
        InputError: when a file is missing, cut short, damaged, or named where a header may name none.
        MemoryExhausted: when this machine cannot hold it.
    """
    kept = shape if frame is None else shape[:-1]
    size = check_size(kept, encoding.dtype, header.what)
    frames = 1 if frame is None else shape[-1]
    if size // encoding.dtype.itemsize * frames > MOST_VOXELS:
        raise InputError(f"{header.what}: its header states {frames} volumes, too many.", "Give one volume of it.")
    total, first = size * frames, size * (frame or 0)
    parts = 1 if names is None else len(names)
    if not 0 < parts <= MOST_PARTS or total // encoding.dtype.itemsize % parts:
        raise InputError(f"{header.what} names {parts} data files for {' x '.join(map(str, shape))} voxels.", _CONVERT)
    if names is not None and len(set(names)) < parts:
        raise InputError(f"{header.what} names a data file twice.", _CONVERT)
    if encoding.kind in _MOST_INFLATIONS and encoding.skip * parts > MOST_BEHIND:
        raise InputError(
            f"{header.what}: its header skips {encoding.skip} bytes of compressed content, more than any writer does.",
            _CONVERT,
        )
    share, behind = total // parts, 0
    stored: np.ndarray | None = None
    for index, name in enumerate([None] if names is None else names):
        # Of this file's share, what belongs to the volume.
        start, stop = (min(max(at - index * share, 0), share) for at in (first, first + size))
        with nullcontext(header) if name is None else ScanFile(_beside(header, name), digest) as file:
            _check_held(file, encoding, share)
            if stored is None:  # not before the first file has shown that it can hold its share
                stored = np.empty(size, np.uint8)
            offset = index * share + start - first
            behind += _fill(
                file,
                encoding,
                stored[offset : offset + stop - start] if stop > start else stored[:0],
                start,
                share - stop,
            )
        if behind > MOST_BEHIND:
            raise InputError(f"{header.what}: its data files hold far more than it promises.", _CONVERT)
    assert stored is not None  # there is at least one file
    return stored.view(encoding.dtype).reshape(kept[::-1]), behind


def _check_held(file: ScanFile, encoding: Encoding, share: int) -> None:
    """Refuse a file that cannot hold its share of the voxels, or as text holds far more than that."""
    held = max(0, file.left - encoding.skip_lines)
    if encoding.stored is not None:
        held = min(held, encoding.stored)
    skip = max(0, encoding.skip)
    if encoding.kind != "text":
        check_promise(skip + share, held, _MOST_INFLATIONS.get(encoding.kind, 1), file.what)
        return
    voxels = share // encoding.dtype.itemsize
    check_promise(skip + voxels * _LEAST_TEXT - 1, held, 1, file.what)
    if held - skip > voxels * _MOST_TEXT + _MOST_TEXT_BEHIND:
        raise InputError(f"{file.what} holds far more text than the {voxels} numbers of its header take.", _CONVERT)


def _fill(file: ScanFile, encoding: Encoding, target: np.ndarray, before: int, after: int) -> int:
    """Fill an array with some of a file's voxels; the number of bytes that follow them all.

    Args:
        file: at its first line.
        encoding: of the voxels.
        target: uint8.
        before, after: bytes of other voxels around them.
    """
    for _ in range(encoding.skip_lines):
        _skip_line(file)
    if encoding.skip < 0 and encoding.kind != "raw":
        raise InputError(f"{file.what}: voxels from its end must be raw.", _CONVERT)
    if encoding.kind == "text":
        return _fill_text(file, encoding, target, before, after)
    chunks: Iterator[bytes] = file.chunks(encoding.stored)
    skip = encoding.skip
    if skip < 0:  # the voxels are the last bytes
        skip = max(0, file.left - before - len(target) - after)
    if encoding.kind == "bzip2":
        chunks = inflate_bzip2(chunks, file.what)
    elif encoding.kind != "raw":
        chunks = inflate(chunks, file.what, 47 if encoding.kind == "zlib" else 31)
    content = Content(chunks, file.what)
    content.skip(skip + before)
    content.into(target)
    behind = content.finish(after) - after
    if behind < 0:
        share = before + len(target) + after
        raise cut_short(file.what, share + behind, share)
    return behind + file.finish()


def _fill_text(file: ScanFile, encoding: Encoding, target: np.ndarray, before: int, after: int) -> int:
    content = Content(file.chunks(), file.what)
    content.skip(encoding.skip)
    text = content.read(file.size).strip()
    itemsize = encoding.dtype.itemsize
    expected = (before + len(target) + after) // itemsize
    try:
        with warnings.catch_warnings():  # it warns of what follows the last number that it understands
            warnings.simplefilter("error")
            numbers = np.fromstring(text, np.float64, sep=" ")
    except (DeprecationWarning, RuntimeWarning, ValueError) as error:
        raise InputError(f"{file.what} is damaged: its voxels are not all numbers.", COPY_AGAIN) from error
    if len(numbers) < expected:
        raise cut_short(file.what, len(numbers), expected)
    voxels = numbers[before // itemsize : (before + len(target)) // itemsize]
    with np.errstate(all="ignore"):
        target.view(encoding.dtype)[:] = voxels
        _check_range(voxels, encoding.dtype, file.what)
    return len(numbers) - expected


def _check_range(numbers: np.ndarray, dtype: np.dtype, what: str) -> None:
    """Refuse numbers that a type cannot hold: they would become others."""
    if dtype.kind == "f":
        wrong = np.isfinite(numbers) & ~(np.abs(numbers) <= float(np.finfo(dtype).max))
    else:
        limits = np.iinfo(dtype)
        # The largest of 64 bits has no double of its own, the one above it has.
        wrong = ~(
            (numbers >= float(limits.min)) & (numbers < float(int(limits.max) + 1)) & (np.trunc(numbers) == numbers)
        )
    if wrong.any():
        raise InputError(
            f"{what} holds the number {numbers[wrong.argmax()]:g}, which is none of its header's type ({dtype.name}).",
            "Export it with the type that its numbers have.",
        )


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
