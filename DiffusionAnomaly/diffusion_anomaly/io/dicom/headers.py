"""What a DICOM header says, value by value, each checked as it is taken.

Values are taken from their bytes: pydicom's own conversion accepts or refuses numbers by Python's rules (`0x10`, `²`,
`1_000`), and speaks to stderr about it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import charset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.filereader import data_element_generator
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from ...errors import InputError, MemoryExhausted
from ...text import clean_text
from ..reading import DECIMAL, INTEGER

PIXEL_TAGS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
UNDEFINED_LENGTH = 0xFFFFFFFF
# Whatever a damaged file makes pydicom throw.
PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,  # RecursionError is one
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}
_LONGEST_NUMBER = 64
_LONGEST_TEXT, _LONGEST_CODE = 200, 1024
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa1-\xff]")
# A deflated file may swell to this, or by this factor.
_MOST_INFLATED, _MOST_SWELLING = 1 << 28, 20
# The length field of an element allows no more.
_LARGEST_FILE = 1 << 32


class Header:
    """The elements of a file, or of an item of one of its sequences.

    Args:
        elements: by tag.
        path: of the file, for messages.
        meta: the file's meta information.
        implicit, little: how the elements are written.
        charsets: those of the file, for an item.
    """

    def __init__(
        self,
        elements: Mapping[int, Any],
        path: Path,
        meta: Header | None = None,
        implicit: bool = False,
        little: bool = True,
        charsets: list[str] | None = None,
    ) -> None:
        self.path = path
        self._elements, self._meta, self._charset = elements, meta, charsets
        self._implicit, self._little = implicit, little

    def __contains__(self, keyword: str) -> bool:
        return _tag(keyword) in self._elements

    def element(self, name: str | int) -> RawDataElement | DataElement | None:
        """An element as pydicom parsed it, by keyword or tag; None when it is missing."""
        return self._elements.get(_tag(name) if isinstance(name, str) else name)

    def raw(self, name: str | int) -> bytes:
        """The bytes of an element's value; empty when it is missing.

        Raises:
            InputError: when the file ends within it.
        """
        element = self.element(name)
        if element is None or element.value is None:
            return b""
        if not isinstance(element, RawDataElement):
            value = element.value
            parts = [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else list(value)
            return b"\\".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
        if element.length != UNDEFINED_LENGTH and len(element.value) < element.length:
            raise self.cut_short()
        return bytes(element.value)

    def strings(self, name: str | int) -> list[str]:
        """The values of an element of codes or numbers, as text."""
        text = self.raw(name)[:_LONGEST_CODE].decode("latin-1").strip(" \0")
        text = _UNPRINTABLE.sub("?", text)  # some of it is shown in messages
        return [part.strip(" \0") for part in text.split("\\")] if text else []

    def code(self, name: str | int) -> str:
        """All of an element of codes in one string; empty when it is missing."""
        return "\\".join(self.strings(name))

    def text(self, keyword: str) -> str:
        """Text for people, decoded by the file's character set; what cannot be decoded is replaced."""
        return _clean(self.raw(keyword), self._charsets())

    def numbers(self, name: str | int, count: int | None = None, kind: str = "") -> tuple[float, ...]:
        """The numbers of an element; none when it is missing or empty.

        Args:
            name: keyword, or tag of a private element.
            count: how many there must be, where the element is there.
            kind: value representation of a private element.

        Raises:
            InputError: when they are no finite numbers, or not ``count``.
        """
        content = self.raw(name)
        if not content.strip(b" \0\\") and not self._binary(name, kind):
            return ()
        try:
            values = self._numbers(name, content, kind)
        except (ValueError, OverflowError, struct.error):
            values = None
        if values is None or (count is not None and values and len(values) != count):
            shown = content[:_LONGEST_NUMBER].decode("latin-1") if not self._binary(name, kind) else content[:16].hex()
            shown = _UNPRINTABLE.sub("?", shown)
            expected = f"{count} finite number{'s' * (count != 1)}" if count else "finite numbers"
            raise InputError(
                f"{self.path}: its {name if isinstance(name, str) else 'private element'} is '{shown}'; "
                f"expected {expected}.",
                "Export the series again from the archive, or convert it with dcm2niix.",
            )
        return values

    def number(self, name: str | int, kind: str = "") -> float | None:
        """The one number of an element, None when it is missing.

        Raises:
            InputError: when it is no finite number.
        """
        values = self.numbers(name, 1, kind)
        return values[0] if values else None

    def integer(self, keyword: str) -> int | None:
        """The one whole number of an element, None when it is missing.

        Raises:
            InputError: when it is none.
        """
        value = self.number(keyword)
        if value is not None and not value.is_integer():
            raise InputError(
                f"{self.path}: its {keyword} is {value:g}; expected a whole number.",
                "Export the series again from the archive.",
            )
        return None if value is None else int(value)

    def hint(self, name: str | int, kind: str = "") -> float | None:
        """A number that helps where it is right: None when it is missing or no number."""
        try:
            values = self.numbers(name, kind=kind)
        except InputError:
            return None
        return values[0] if values else None

    def items(self, keyword: str) -> list[Header]:
        """The items of a sequence; none when it is missing."""
        element = self.element(keyword)
        if element is None:
            return []
        try:
            if isinstance(element, RawDataElement):
                element = convert_raw_data_element(element)
            datasets: list[Any] = list(element.value or ())
            charsets = self._charsets()
            return [
                Header({int(tag): item.get_item(tag) for tag in item.keys()}, self.path, charsets=charsets)  # noqa: SIM118
                for item in datasets
            ]
        except PARSE_ERRORS as error:
            raise self.damaged() from error

    @property
    def transfer_syntax(self) -> UID:
        """As the file states it, else as its first element shows it."""
        stated = self._meta.code("TransferSyntaxUID") if self._meta else ""
        if stated:
            return UID(stated)
        return UID("1.2.840.10008.1.2" + ("" if self._implicit else ".1" if self._little else ".2"))

    @property
    def sop_class(self) -> UID:
        """What kind of object it is."""
        return UID((self._meta.code("MediaStorageSOPClassUID") if self._meta else "") or self.code("SOPClassUID"))

    def cut_short(self) -> InputError:
        return InputError(f"{self.path} is cut short: it ends within an element.", "Copy or export it again.")

    def damaged(self) -> InputError:
        return InputError(f"{self.path} is damaged: its elements cannot be told apart.", "Copy or export it again.")

    def _charsets(self) -> list[str]:
        if self._charset is None:
            self._charset = self.strings("SpecificCharacterSet")
        return self._charset

    def _binary(self, name: str | int, kind: str) -> str:
        element = self.element(name)
        if not isinstance(element, RawDataElement):
            return ""
        stated = element.VR if element.VR not in (None, "UN") else kind or _representation(name)
        return _BINARY.get(str(stated), "")

    def _numbers(self, name: str | int, content: bytes, kind: str) -> tuple[float, ...]:
        if code := self._binary(name, kind):
            element: Any = self.element(name)
            size = struct.calcsize("<" + code)
            order = "<" if element.is_little_endian else ">"
            found = struct.unpack(f"{order}{len(content) // size}{code}", content)
        else:
            pattern = INTEGER if _representation(name) == "IS" or kind == "IS" else DECIMAL
            found = []
            for part in content.decode("ascii").strip(" \0").split("\\"):
                text = part.strip(" \0")
                if len(text) > _LONGEST_NUMBER or not pattern.fullmatch(text):
                    raise ValueError(text)
                found.append(float(text))
        if not all(math.isfinite(value) for value in found):
            raise ValueError(name)
        return tuple(float(value) for value in found)


def read_header(file: BinaryIO, path: Path, tags: list[int] | None = None) -> tuple[Header, int | None, int]:
    """Read what stands before the pixels, or with ``tags`` left out all of a file.

    Args:
        file: open at its beginning.
        path: for messages.
        tags: the elements to keep.

    Returns:
        The header, the tag of the pixels or None, and the number of bytes that they lack.

    Raises:
        InputError: when it is damaged.
        OSError: when it cannot be read.
    """
    found: list[tuple[int, int]] = []

    def at_pixels(tag: int, representation: str | None, length: int) -> bool:
        if tag >> 16 < 0x7FE0:  # pydicom's own comparison of tags takes five times as long
            return False
        if tag in PIXEL_TAGS and not found:
            found.append((tag, length))
        return bool(found) and tags is not None

    try:
        head = file.read(132)
        if head[128:] != b"DICM":
            file.seek(0)
        group2 = _elements(data_element_generator(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2))
        meta = Header(group2, path)
        syntax = meta.code("TransferSyntaxUID")
        if deflated := syntax == DeflatedExplicitVRLittleEndian:
            file = _inflated(file, path)
        first = file.read(6)
        file.seek(-len(first), 1)
        implicit = not first[4:6].isalpha()
        little = syntax != ExplicitVRBigEndian and (implicit or bool(syntax) or first[:1] != b"\0")
        header = Header(
            _elements(data_element_generator(file, implicit, little, stop_when=at_pixels, specific_tags=tags)),
            path,
            meta,
            implicit,
            little,
        )
    except EOFError as error:
        raise Header({}, path).cut_short() from error
    except PARSE_ERRORS as error:
        raise Header({}, path).damaged() from error
    if not found:
        return header, None, 0
    tag, length = found[0]
    missing = 0
    if length != UNDEFINED_LENGTH and tags is not None and not deflated:
        start = file.tell() + (8 if implicit else 12)
        missing = max(0, start + length - file.seek(0, 2))
    return header, tag, missing


def parse(content: bytes, path: Path) -> Header:
    """All of a file out of its bytes.

    Raises:
        InputError: when it is damaged, or ends before its pixels do.
    """
    header, tag, _ = read_header(BytesIO(content), path)
    element: Any = header.element(tag) if tag else None
    if element is None or (element.length != UNDEFINED_LENGTH and len(element.value or b"") < element.length):
        raise InputError(f"{path} is cut short: it ends before its pixels do.", "Copy or export it again.")
    return header


def pixel_tag(header: Header) -> int | None:
    """The tag of the pixels in a file that was read to its end; None where there are none."""
    return next((tag for tag in PIXEL_TAGS if header.element(tag)), None)


def _elements(found: Iterable[RawDataElement | DataElement]) -> dict[int, RawDataElement | DataElement]:
    return {int(element.tag): element for element in found}


class BoundedFile(BufferedReader):
    """A file of which no more memory is asked than it has bytes left, whatever length an element states."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))  # type: ignore[arg-type]
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 0:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def read_bytes(path: Path) -> bytes:
    """All of a file.

    Raises:
        InputError: when it is larger than a DICOM file with one image can be.
        OSError: when it cannot be read.
    """
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise InputError(
            f"{path} has {size} bytes, more than one DICOM image can have.", "Export the series again from the archive."
        )
    return path.read_bytes()


@contextmanager
def silence(path: Path) -> Iterator[None]:
    """pydicom's warnings off, and the system's errors told in the engine's words."""
    logger = logging.getLogger("pydicom")
    before = logger.propagate
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else path
        raise InputError(
            f"{name} could not be read: {error.strerror or error}.",
            "Check its permissions, and the disk or network drive it is on.",
        ) from error
    except MemoryError as error:
        raise MemoryExhausted(f"{path} does not fit into memory.", "Close other programs.") from error
    finally:
        logger.propagate = before


def _inflated(file: BinaryIO, path: Path) -> BinaryIO:
    """What follows in a deflated file, unless it would swell beyond all measure."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    target = BytesIO()
    taken = 0
    try:
        while chunk := file.read(1 << 16):
            taken += len(chunk)
            while chunk:
                target.write(inflater.decompress(chunk, 1 << 20))
                chunk = inflater.unconsumed_tail
                if target.tell() > max(_MOST_INFLATED, _MOST_SWELLING * taken):
                    raise InputError(
                        f"{path} swells to more than {target.tell() >> 20} MB when it is inflated; that is no scan.",
                        "Export it again without compression.",
                    )
    except zlib.error as error:
        raise InputError(
            f"{path} is damaged: its compressed content does not agree with itself.", "Copy or export it again."
        ) from error
    if not inflater.eof:
        raise InputError(f"{path} is cut short.", "Copy or export it again.")
    target.seek(0)
    return target


@cache
def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


@cache
def _representation(name: str | int) -> str:
    return dictionary_VR(_tag(name)) if isinstance(name, str) else ""


def _clean(content: bytes, charsets: list[str]) -> str:
    """Text in one line; what cannot be decoded is replaced, control characters become blanks."""
    content = content[: 4 * _LONGEST_TEXT]
    try:
        text = content.decode("ascii") if b"\x1b" not in content else _decoded(content, charsets)
    except UnicodeDecodeError:
        text = _decoded(content, charsets)
    return clean_text(text, _LONGEST_TEXT)


def _decoded(content: bytes, charsets: list[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not any(charsets):  # nothing declared allows ASCII alone; most who forget it write UTF-8
            return content.decode("utf-8", errors="replace")
        try:
            return charset.decode_bytes(content, charset.convert_encodings(list(charsets)), {0x5C})
        except PARSE_ERRORS:
            return content.decode("ascii", errors="replace")
