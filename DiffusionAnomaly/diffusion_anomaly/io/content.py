"""The bytes of a scan's files, read once: hashed as they come, inflated to their end, bounded before they are stored.

Whatever is said later of a file, its hash, its header and its voxels, comes from this one reading, so nothing that
replaces a file during a run can mix two scans. (That it is no DICOM was seen before, by its first bytes.)
"""

from __future__ import annotations

import bz2
import hashlib
import math
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import InputError, MemoryExhausted
from ..text import counted, printable

CHUNK = 1 << 20
# What a decompressor is given at once: at the end of each member of a stream it copies what is left of it.
_PIECE = 1 << 14
# Members of a stream that hold nothing; some writers end a file with one.
_MOST_EMPTY = 1000
# The most that deflate makes of a byte; whoever promises more is wrong.
MOST_INFLATION = 1032
# 2 GB in 8 bits, 8 GB in float32: a head at 0.2 mm. What needs more is no scan that one pass could handle.
MOST_VOXELS = 1 << 31
MOST_ALONG_AXIS = 32767  # what NIfTI-1, in which results are written, can count
# Behind the voxels may stand a footer or padding, not another scan's worth of zeros that take minutes to inflate.
MOST_BEHIND = 1 << 26
COPY_AGAIN = "Copy or download it again."


class ScanFile:
    """A regular file that is read from its beginning to its end, once.

    Args:
        path: where it lies.
        digest: takes every byte, also of those that `skip` and `finish` pass over.

    Raises:
        InputError: when it is no regular file, empty, or cannot be opened; at the end of a ``with`` block, when
            something wrote to it since.
    """

    def __init__(self, path: Path, digest: hashlib._Hash | None = None) -> None:
        self.path, self.what = path, printable(path)
        self._digest = digest
        # Without O_NONBLOCK a named pipe would wait for its other end for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._file = os.fdopen(os.open(path, flags), "rb", buffering=0)
        except PermissionError as error:
            raise InputError(f"{self.what} may not be read: no permission.", "Ask its owner for it.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.what} could not be read: {reason}.", "Check the path.") from error
        status = os.fstat(self._file.fileno())
        self.size, self._written = status.st_size, status.st_mtime_ns
        self._ahead, self._position = b"", 0
        if not stat.S_ISREG(status.st_mode) or self.size == 0:
            self._file.close()
            if self.size == 0 and stat.S_ISREG(status.st_mode):
                raise InputError(f"{self.what} is empty (0 bytes).", COPY_AGAIN)
            raise InputError(f"{self.what} is no regular file.", "Give a file with a scan, or a DICOM folder.")

    def __enter__(self) -> ScanFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        status = os.fstat(self._file.fileno())
        self._file.close()
        if kind is None and (status.st_size, status.st_mtime_ns) != (self.size, self._written):
            raise InputError(f"{self.what} was changed while it was read.", "Try again when it is complete.")

    @property
    def left(self) -> int:
        """How many bytes follow, by the file's size when it was opened."""
        return max(0, self.size - self._position)

    def peek(self, count: int) -> bytes:
        """The next bytes, which the next `read` gives again; fewer at the end."""
        while len(self._ahead) < count and (chunk := self._next(max(count - len(self._ahead), 4096))):
            self._ahead += chunk
        return self._ahead[:count]

    def read(self, count: int = CHUNK) -> bytes:
        """Up to so many bytes; none at the end."""
        if self._ahead:
            chunk, self._ahead = self._ahead[:count], self._ahead[count:]
        else:
            chunk = self._next(count)
        self._position += len(chunk)
        return chunk

    def _next(self, count: int) -> bytes:
        try:
            chunk = self._file.read(count) or b""
        except OSError as error:
            raise InputError(
                f"{self.what} could not be read: {error.strerror or error}.",
                "Check the disk or the network drive it is on.",
            ) from error
        if self._digest is not None:
            self._digest.update(chunk)
        return chunk

    def chunks(self, most: int | None = None) -> Iterator[bytes]:
        """The rest of the file, or so many bytes of it."""
        while (most is None or most > 0) and (chunk := self.read(CHUNK if most is None else min(CHUNK, most))):
            if most is not None:
                most -= len(chunk)
            yield chunk

    def finish(self) -> int:
        """Read what is left, for the hash; the number of its bytes."""
        return sum(len(chunk) for chunk in self.chunks())


class Content:
    """What a file holds once it is inflated: bytes in order, with errors that name the file."""

    def __init__(self, chunks: Iterator[bytes], what: str) -> None:
        self._chunks, self.what = chunks, what
        self._left = memoryview(b"")

    def _more(self) -> bool:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._left = memoryview(chunk)
        return True

    def read(self, count: int) -> bytes:
        """So many bytes; fewer at the end."""
        parts = bytearray()
        while len(parts) < count and self._more():
            take = self._left[: count - len(parts)]
            self._left = self._left[len(take) :]
            parts += take
        return bytes(parts)

    def skip(self, count: int) -> None:
        """Pass over bytes, which must be there."""
        passed = 0
        while passed < count:
            if not self._more():
                raise cut_short(self.what, passed, count)
            take = min(len(self._left), count - passed)
            self._left = self._left[take:]
            passed += take

    def into(self, target: np.ndarray) -> None:
        """Fill an array of uint8.

        Raises:
            InputError: when there are fewer bytes.
        """
        filled = 0
        while filled < len(target):
            if not self._more():
                raise cut_short(self.what, filled, len(target))
            take = self._left[: len(target) - filled]
            target[filled : filled + len(take)] = np.frombuffer(take, np.uint8)
            self._left = self._left[len(take) :]
            filled += len(take)

    def finish(self, beyond: int = 0) -> int:
        """Read to the end, where a compressed stream's checksum is compared; the number of bytes that were left.

        Args:
            beyond: how many may be left, apart from a footer or padding.

        Raises:
            InputError: when the stream is damaged, or goes on far beyond what its header promises.
        """
        left = 0
        while self._more():
            left += len(self._left)
            self._left = memoryview(b"")
            if left > beyond + MOST_BEHIND:
                raise InputError(
                    f"{self.what} holds far more than its header promises.", "Export or convert the scan again."
                )
        return left


def cut_short(what: str, found: int, expected: int) -> InputError:
    """The error for a file that ends too early."""
    return InputError(f"{what} is cut short: {found} of {expected} bytes are there.", COPY_AGAIN)


def inflate(chunks: Iterator[bytes], what: str, window: int = 31) -> Iterator[bytes]:
    """Inflate a gzip stream of any number of members, each held against its checksum.

    Args:
        chunks: the compressed bytes.
        what: the file, for messages.
        window: as ``zlib.decompressobj`` takes it: 31 for gzip, 47 for zlib too.

    Raises:
        InputError: while it is read, when the stream is damaged, cut short, or followed by something else than zeros.
    """
    decoder, padding, filled, empty = zlib.decompressobj(window), False, False, 0
    try:
        for chunk in _pieces(chunks):
            while chunk:
                if decoder.eof:
                    padding = padding or chunk[:1] == b"\0"
                    if padding:
                        if chunk.strip(b"\0"):
                            raise zlib.error("followed by something else")
                        break
                    empty = _count_empty(empty, filled, what)
                    decoder, filled = zlib.decompressobj(window), False
                data = decoder.decompress(chunk, CHUNK)
                chunk = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                if data:
                    filled = True
                    yield data
        if not decoder.eof:
            yield decoder.flush()
    except zlib.error as error:
        raise _damaged(what) from error
    if not decoder.eof:
        raise InputError(f"{what} is cut short: its compressed content does not end.", COPY_AGAIN)


def inflate_bzip2(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """Inflate a bzip2 stream, each block held against its checksum.

    Raises:
        InputError: while it is read, when the stream is damaged or cut short.
    """
    decoder, filled, empty = bz2.BZ2Decompressor(), False, 0
    try:
        for chunk in _pieces(chunks):
            while chunk or not (decoder.needs_input or decoder.eof):
                if decoder.eof:
                    empty = _count_empty(empty, filled, what)
                    decoder, filled = bz2.BZ2Decompressor(), False
                data = decoder.decompress(chunk, CHUNK)
                chunk = decoder.unused_data if decoder.eof else b""
                if data:
                    filled = True
                    yield data
    except OSError as error:
        raise _damaged(what) from error
    if not decoder.eof:
        raise InputError(f"{what} is cut short: its compressed content does not end.", COPY_AGAIN)


def _pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), _PIECE):
            yield chunk[start : start + _PIECE]


def _count_empty(empty: int, filled: bool, what: str) -> int:
    """The number of members without content, one more unless the last was filled.

    Raises:
        InputError: when there are more than any writer makes.
    """
    empty += not filled
    if empty > _MOST_EMPTY:
        raise InputError(f"{what} is damaged: its compressed content is in countless empty parts.", COPY_AGAIN)
    return empty


def _damaged(what: str) -> InputError:
    return InputError(f"{what} is damaged: its compressed content does not agree with itself.", COPY_AGAIN)


def check_size(shape: tuple[int, ...], dtype: np.dtype, what: str) -> int:
    """Refuse a header that no scan has, before anything is made as large as it says.

    Args:
        shape: extents along all axes, at least one of them.
        dtype: of a voxel in the file.
        what: the file, for messages.

    Returns:
        The number of bytes that the voxels take in the file, uncompressed.

    Raises:
        InputError: when an extent is impossible, or there are more voxels than anything here can handle.
        MemoryExhausted: when this machine cannot hold it.
    """
    stated = " x ".join(str(extent) for extent in shape)
    if min(shape, default=0) < 1 or max(shape) > MOST_ALONG_AXIS:
        raise InputError(
            f"{what}: its header states {stated} voxels; expected 1 to {MOST_ALONG_AXIS} along an axis.",
            "Export or convert the scan again.",
        )
    voxels = math.prod(shape)
    if voxels > MOST_VOXELS:
        raise InputError(
            f"{what}: its header states {stated} voxels; at most {MOST_VOXELS:,} can be handled.",
            "Give one volume of it, or resample it.",
        )
    size, memory = voxels * dtype.itemsize, _memory()
    needed = size + 8 * math.prod(shape[:3])  # and twice in float32: converted, and as an image
    if memory and needed > memory:
        raise MemoryExhausted(
            f"{what}: its header states {stated} voxels, which take {needed / 1e9:.3g} GB; "
            f"this machine has {memory / 1e9:.3g} GB.",
            "Is the header right? Give one volume of it, or use a machine with more memory.",
        )
    return size


def check_promise(expected: int, held: int, inflation: int, what: str) -> None:
    """Refuse a file that cannot hold what its header promises.

    Args:
        expected: bytes that the header promises.
        held: bytes that the file has for them.
        inflation: the most that a byte can become.
        what: the file, for messages.

    Raises:
        InputError: when it is too short.
    """
    if expected > held * inflation:
        promise = f"its header promises {expected}"
        raise InputError(
            f"{what} is cut short: it holds {held} bytes, {promise}."
            if inflation == 1
            else f"{what} is cut short: it holds {held} compressed bytes, {promise}, more than they can become.",
            COPY_AGAIN,
        )


def _memory() -> int:
    """Bytes of memory in this machine; 0 where nobody tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def read_frame(
    content: Content, dtype: np.dtype, shape: tuple[int, int, int], frames: int, chosen: int
) -> tuple[np.ndarray, int]:
    """One volume of those that follow each other, and the check that all of them are there.

    Args:
        content: at the first voxel of the first volume.
        dtype: of a voxel.
        shape: columns, rows, slices.
        frames: how many volumes there are.
        chosen: which of them.

    Returns:
        The voxels ``(slices, rows, columns)`` as they are stored, and how many bytes follow the last volume.

    Raises:
        InputError: when the file is cut short or damaged.
        MemoryExhausted: when this machine cannot hold it.
    """
    size = check_size(shape, dtype, content.what)
    stored = np.empty(size, np.uint8)
    content.skip(chosen * size)
    content.into(stored)
    later = (frames - 1 - chosen) * size
    behind = content.finish(later) - later
    if behind < 0:
        raise cut_short(content.what, frames * size + behind, frames * size)
    return stored.view(dtype).reshape(shape[::-1]), behind


def behind_warning(behind: int) -> tuple[str, ...]:
    """What to say of bytes that follow the voxels: the header may state another size than the voxels have."""
    if not behind:
        return ()
    return (
        f"{counted(behind, 'byte follows', 'bytes follow')} the voxels that the header states; is their number right?",
    )
