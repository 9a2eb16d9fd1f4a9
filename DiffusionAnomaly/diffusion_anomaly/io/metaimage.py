"""MetaImage, attached (.mha) and detached (.mhd)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np

from ..errors import InputError
from ..text import clean_text
from .content import ScanFile, behind_warning, check_size
from .geometry import MOST_SHEAR, Geometry, geometry_of
from .parts import Encoding, read_header_lines, read_parts
from .reading import DECIMAL, INTEGER, Reading, as_float32, choose_frame, not_grey

MOST_LINE, MOST_HEADER = 1 << 16, 1 << 20
_LONGEST_NUMBER = 64
_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    # On disk a long has 4 bytes, whatever it has in memory.
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_METADATA = {"0008|0060": "modality", "0008|103e": "description"}
_CONVERT = "Export or convert the scan again."


def read_metaimage(file: ScanFile, frame: int | None, digest: hashlib._Hash) -> Reading:
    """Read a MetaImage file and its data files.

    Args:
        file: at its beginning.
        frame: which volume of several.
        digest: takes the bytes of the data files.

    Raises:
        InputError: when it is damaged, cut short, no grey volume, or its voxels lie nowhere.
        MemoryExhausted: when it does not fit into memory.
    """
    lines = read_header_lines(file, (b"elementdatafile=",), MOST_LINE, MOST_HEADER)
    header = _Header(lines, file.what)
    axes = header.integer("NDims", None)
    if not 2 <= axes <= 4:
        raise InputError(f"{file.what} has {axes} dimensions; expected 2, 3 or 4.", "Save one volume of it to a file.")
    sizes = tuple(int(value) for value in header.numbers("DimSize", axes, whole=True))
    components = header.integer("ElementNumberOfChannels", 1)
    if components > 1 and (frame is None or axes == 4):
        raise not_grey(file.what, "vector", components)
    if components < 1:
        raise InputError(f"{file.what}: its header states {components} values a voxel.", _CONVERT)
    frames = sizes[3] if axes == 4 else components
    chosen = choose_frame(frame, frames, file.what)
    geometry, warnings = _place(header, axes, file.what)
    encoding = _encoding(header, file.what)
    shape = (*sizes[:3], *[1] * (3 - axes))
    check_size(shape, encoding.dtype, file.what)
    values_a_voxel = () if components == 1 else (components,)
    volume = chosen if axes == 4 else None
    stored, behind = read_parts(file, _data_files(header, file), encoding, (*values_a_voxel, *sizes), digest, volume)
    if components > 1:
        stored = stored[..., chosen]
    values = stored.reshape(shape[::-1])
    return Reading(as_float32(values), geometry, min(axes, 3), header.metadata(), (*warnings, *behind_warning(behind)))


class _Header:
    """Keys and values, as text.

    Raises:
        InputError: when a line is no pair, or a key is there twice.
    """

    def __init__(self, lines: list[bytes], what: str) -> None:
        self.what = what
        self._values: dict[str, str] = {}
        for line in lines:
            key, equals, value = line.partition(b"=")
            name = key.strip().decode("utf-8", "replace")
            if not line.strip():
                continue
            if not equals:
                raise InputError(f"{what} is no MetaImage file: its header has a line without '='.", "Give the scan.")
            if name in self._values:
                raise InputError(f"{what}: its header states {clean_text(name, 40)} twice.", _CONVERT)
            self._values[name] = value.strip().decode("utf-8", "surrogateescape")
        if "ElementDataFile" not in self._values:
            raise InputError(f"{what} is no MetaImage file, or is cut short: ElementDataFile is missing.", _CONVERT)

    def text(self, *names: str) -> str:
        """The value under the first of several names for one thing; empty where there is none.

        Raises:
            InputError: when two names have different values.
        """
        found = [name for name in names if name in self._values]
        if len({tuple(self._values[name].split()) for name in found}) > 1:
            raise InputError(f"{self.what}: {' and '.join(found)} in its header contradict each other.", _CONVERT)
        return self._values[found[0]] if found else ""

    def integer(self, name: str, default: int | None) -> int:
        if not (text := self.text(name)) and default is not None:
            return default
        if not INTEGER.fullmatch(text) or len(text) > 18:
            raise InputError(f"{self.what}: {name} in its header is {clean_text(text, 40)!r}, no number.", _CONVERT)
        return int(text)

    def numbers(self, names: str | tuple[str, ...], count: int, *, whole: bool = False) -> np.ndarray:
        names = (names,) if isinstance(names, str) else names
        words = self.text(*names).split()
        pattern, longest = (INTEGER, 18) if whole else (DECIMAL, _LONGEST_NUMBER)
        if len(words) != count or not all(len(word) <= longest and pattern.fullmatch(word) for word in words):
            raise InputError(f"{self.what}: {names[0]} in its header is not {count} numbers.", _CONVERT)
        return np.array([(int if whole else float)(word) for word in words], np.int64 if whole else np.float64)

    def flag(self, *names: str, default: bool) -> bool:
        text = self.text(*names)
        return text[:1] in ("T", "t", "1") if text else default

    def metadata(self) -> dict[str, str]:
        found = {name: clean_text(os.fsencode(self._values.get(key, ""))) for key, name in _METADATA.items()}
        return {name: text for name, text in found.items() if text}


def _place(header: _Header, axes: int, what: str) -> tuple[Geometry, list[str]]:
    warnings: list[str] = []
    spacing, origin, matrix = np.ones(axes), np.zeros(axes), np.eye(axes)
    if header.text("ElementSpacing"):
        spacing = header.numbers("ElementSpacing", axes)
    elif header.text("ElementSize"):
        spacing = header.numbers("ElementSize", axes)
    else:
        warnings.append("The header states no voxel size; 1 mm was taken.")
    names = ("TransformMatrix", "Orientation", "Rotation")
    if header.text(*names):
        matrix = header.numbers(names, axes * axes).reshape(axes, axes).T  # it is written axis by axis
    elif axes > 2:
        warnings.append("The header states no orientation: left and right, front and back are not known.")
    if header.text("Offset", "Position", "Origin"):
        origin = header.numbers(("Offset", "Position", "Origin"), axes)
    elif axes > 2:
        warnings.append("The header states no origin: where the scan lies is not known.")
    if axes == 4 and not np.allclose([matrix[:3, 3], matrix[3, :3]], 0, atol=MOST_SHEAR):
        raise InputError(f"{what}: the axes of space and time in its header are mixed.", _CONVERT)
    direction, steps, start = np.eye(3), np.ones(3), np.zeros(3)
    kept = min(axes, 3)
    direction[:kept, :kept], steps[:kept], start[:kept] = matrix[:kept, :kept], spacing[:kept], origin[:kept]
    if (steps < 0).any():
        raise InputError(f"{what}: its header states a negative voxel size.", _CONVERT)
    geometry = geometry_of(direction * steps, start, what, "its header")
    # A matrix that scales hides in its product with the spacing, and nobody knows which of the two is meant.
    lengths = np.linalg.norm(direction, axis=0)
    if np.abs(lengths - 1).max() > MOST_SHEAR:
        raise InputError(f"{what}: the direction matrix in its header is no rotation: it scales.", _CONVERT)
    x, y, z = (float(value) for value in steps)  # as stated: products and their roots are off in the last digit
    return replace(geometry, spacing=(x, y, z), direction=tuple(float(v) for v in direction.ravel())), warnings


def _encoding(header: _Header, what: str) -> Encoding:
    name = header.text("ElementType")
    if name not in _TYPES:
        raise InputError(
            f"{what} holds voxels of type {clean_text(name, 40) or 'unknown'}, no plain numbers.", _CONVERT
        )
    big = header.flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB", default=False)
    dtype = np.dtype(_TYPES[name]).newbyteorder(">" if big else "<")
    skip = header.integer("HeaderSize", 0)
    if not -1 <= skip < 1 << 40:
        raise InputError(f"{what}: HeaderSize in its header is {skip}, which is impossible.", _CONVERT)
    if not header.flag("BinaryData", default=True):
        return Encoding("text", dtype, max(skip, 0))
    if header.flag("CompressedData", default=False):
        stored = header.integer("CompressedDataSize", 0)
        if stored < 0 or skip:
            raise InputError(f"{what}: its header states an impossible place of the compressed voxels.", _CONVERT)
        return Encoding("zlib", dtype, stored=stored or None)
    return Encoding("raw", dtype, skip)


def _data_files(header: _Header, file: ScanFile) -> list[str] | None:
    name = header.text("ElementDataFile")
    if name.upper() == "LOCAL":
        return None
    if name.upper().split()[:1] == ["LIST"]:
        rest = read_header_lines(file, (), MOST_LINE, MOST_HEADER)
        return [os.fsdecode(line.strip()) for line in rest if line.strip()]
    if "%" in name:
        raise InputError(
            f"{file.what} names its data files by a pattern (ElementDataFile = {clean_text(name, 60)}).",
            "List the files: ElementDataFile = LIST, and then one name a line.",
        )
    return [name]
