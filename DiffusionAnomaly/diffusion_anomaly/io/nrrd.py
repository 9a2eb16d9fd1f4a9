"""NRRD, attached (.nrrd) and detached (.nhdr).

pynrrd reads the fields; the lines that reach it are bounded and only those that matter here. Its reading of voxels
inflates without a limit and opens whatever a header names, so that is done by `parts`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from ..text import clean_text, counted
from .content import ScanFile, behind_warning, check_size
from .geometry import MOST_SHEAR, Geometry, geometry_of
from .parts import MOST_PARTS, Encoding, read_header_lines, read_parts
from .reading import GridFields, Reading, as_float32, choose_frame, complex_voxels, not_grey

MOST_LINE, MOST_HEADER, MOST_FIELD = 1 << 18, 1 << 22, 4096
_FIELDS = {
    *("type", "dimension", "sizes", "encoding", "endian", "kinds", "spacings", "byte skip", "line skip", "byteskip"),
    *("lineskip", "space", "space dimension", "space directions", "space origin", "space units"),
}
GRID_FIELDS = ("space", "space dimension", "space directions", "space origin")
_ENCODINGS = {
    **{"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"},
    **dict.fromkeys(("text", "txt", "ascii"), "text"),
}
# What turns a space's axes into left, posterior, superior; None: it says nothing of the body.
_SPACES: dict[str, tuple[float, float, float]] = {
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
}
_UNITS = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 0.001, "µm": 0.001, "micron": 0.001}
_UNITS |= {"millimeter": 1.0, "millimetre": 1.0, "millimeters": 1.0, "millimetres": 1.0, "": 1.0, "???": 1.0}
_SPATIAL_KINDS = ("domain", "space")
_FRAME_KINDS = ("list", "time", "none", "???", "unknown")
# Components that may be chosen like volumes; those of colours may not.
_VECTOR_KINDS = ("vector", "covariant-vector", "2-vector", "3-vector", "4-vector")
_METADATA = {"modality": "modality", "0008|0060": "modality", "0008|103e": "description"}
_CONVERT = "Export or convert the scan again."


def read_nrrd(file: ScanFile, frame: int | None, digest: hashlib._Hash) -> Reading:
    """Read an NRRD file and its data files.

    Args:
        file: at its beginning.
        frame: which volume of several.
        digest: takes the bytes of the data files.

    Raises:
        InputError: when it is damaged, cut short, no grey volume, or its voxels lie nowhere.
        MemoryExhausted: when it does not fit into memory.
    """
    lines = read_header_lines(file, (b"datafile:list",), MOST_LINE, MOST_HEADER)
    fields, names, metadata = _parse(lines, file)
    sizes = tuple(int(size) for size in fields["sizes"])
    spatial, frames_axis = _axes(fields, sizes, file.what, frame)
    frames = sizes[frames_axis] if frames_axis is not None else 1
    chosen = choose_frame(frame, frames, file.what)
    geometry, warnings = _place(fields, spatial, file.what)
    encoding = _encoding(fields, file.what)
    check_size(tuple(sizes[axis] for axis in spatial), encoding.dtype, file.what)
    stored, behind = read_parts(file, names, encoding, sizes, digest)
    if frames_axis is not None:
        stored = stored.take(chosen, axis=len(sizes) - 1 - frames_axis)
    kept = [sizes[axis] for axis in spatial] + [1] * (3 - len(spatial))
    return Reading(
        as_float32(stored.reshape(kept[::-1])),
        geometry,
        len(spatial),
        metadata,
        (*warnings, *behind_warning(behind)),
        _grid_fields(lines, len(spatial)) if len(sizes) == len(spatial) else None,
    )


def _parse(lines: list[bytes], file: ScanFile) -> tuple[Mapping[str, Any], list[str] | None, dict[str, str]]:
    """The fields that matter, the names of the data files, and what the header says of the scan."""
    from nrrd import NRRDError, read_header

    texts, seen = [lines[0].decode("ascii", "replace")], set()
    metadata: dict[str, str] = {}
    data = None
    for raw in lines[1:]:
        line = raw.decode("utf-8", "surrogateescape")
        key, colon, value = line.partition(":")
        name = key.strip().lower()
        if not line or line.startswith("#"):
            continue
        if not colon:
            raise InputError(f"{file.what}: its header has a line that is no field.", _CONVERT)
        if value.startswith("="):
            if name in _METADATA and (text := clean_text(os.fsencode(value[1:]))):
                metadata.setdefault(_METADATA[name], text)
        elif name in _FIELDS | {"data file", "datafile"}:
            if name in seen or len(line) > MOST_FIELD:
                raise InputError(f"{file.what}: its header states '{name}' twice, or at length.", _CONVERT)
            if name == "sizes" and not re.fullmatch(r"[0-9 \t]{1,200}", value.strip()):
                raise InputError(f"{file.what}: its header states sizes that are no whole numbers.", _CONVERT)
            seen.add(name)
            if name in ("data file", "datafile"):
                data = value.strip()
            else:
                texts.append(f"{name}: {value.strip()}")
    try:
        fields = read_header(texts)
    except (NRRDError, ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
        reason = clean_text(str(error), 120)
        raise InputError(f"{file.what} is no NRRD file that can be read: {reason}.", _CONVERT) from error
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise InputError(f"{file.what}: its header states no {name}.", _CONVERT)
    if not 1 <= fields["dimension"] == len(fields["sizes"]) <= 16:
        stated = f"{fields['dimension']} dimensions and {len(fields['sizes'])} sizes"
        raise InputError(f"{file.what}: its header states {stated}, which is impossible.", _CONVERT)
    return fields, None if data is None else _data_files(data, file), metadata


def _data_files(data: str, file: ScanFile) -> list[str]:
    """Names of the data files, in order: one, a list that ends the header, or numbers in a pattern."""
    if data.upper().split()[:1] == ["LIST"]:
        rest = read_header_lines(file, (), MOST_FIELD, MOST_HEADER)
        return [os.fsdecode(line.strip()) for line in rest if line.strip()]
    numbered = r"(.+?)\s+(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})(\s+\d)?"
    pattern = re.fullmatch(numbered, data) if "%" in data and len(data) < 1000 else None
    if pattern is None:
        return [data]
    name, (first, last, step) = pattern[1], (int(pattern[index]) for index in (2, 3, 4))
    places = re.findall(r"%(0?)(\d{0,2})d", name)
    numbers = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if len(places) != 1 or name.count("%") != 1 or not 0 < len(numbers) <= MOST_PARTS:
        raise InputError(f"{file.what} names its data files by a pattern that cannot be followed.", "List the files.")
    before, after = re.split(r"%0?\d{0,2}d", name)
    fill, width = places[0][0] or " ", int(places[0][1] or 0)
    return [f"{before}{str(number).rjust(width, fill)}{after}" for number in numbers]


def _encoding(fields: Mapping[str, Any], what: str) -> Encoding:
    from nrrd.reader import _TYPEMAP_NRRD2NUMPY

    kind = _ENCODINGS.get(str(fields["encoding"]).lower())
    if kind is None:
        raise InputError(
            f"{what} is encoded as {clean_text(str(fields['encoding']), 40)}; expected raw, gzip, bzip2 or text.",
            "Export it again as gzip.",
        )
    code = _TYPEMAP_NRRD2NUMPY.get(str(fields["type"]).lower(), "V")
    if code == "V":
        raise InputError(f"{what} holds voxels of type {clean_text(str(fields['type']), 40)}, no numbers.", _CONVERT)
    dtype = np.dtype(code)
    if dtype.itemsize > 1 and kind != "text":
        order = {"little": "<", "big": ">"}.get(str(fields.get("endian")).lower())
        if order is None:
            raise InputError(f"{what}: its header does not state the order of bytes (endian).", _CONVERT)
        dtype = np.dtype(f"{order}{code}")
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    lines = int(fields.get("line skip", fields.get("lineskip", 0)))
    if not (-1 <= skip < 1 << 40 and 0 <= lines <= 100_000):
        raise InputError(f"{what}: its header skips {skip} bytes and {lines} lines, which is impossible.", _CONVERT)
    return Encoding(kind, dtype, skip, lines)


def _axes(
    fields: Mapping[str, Any], sizes: tuple[int, ...], what: str, frame: int | None
) -> tuple[list[int], int | None]:
    """Which axes are space, and which counts volumes, or a vector's components where a frame is chosen.

    Raises:
        InputError: for voxels of several values, and for other than 2 or 3 axes in space.
    """
    kinds = [str(kind).lower() for kind in fields.get("kinds", ["???"] * len(sizes))]
    if len(kinds) != len(sizes):
        raise InputError(f"{what}: its header has {len(sizes)} sizes and {len(kinds)} kinds.", _CONVERT)
    directions = fields.get("space directions")
    if directions is not None:
        rows = np.asarray(directions, np.float64)
        if rows.ndim != 2 or len(rows) != len(sizes):
            raise InputError(f"{what}: its header has {len(sizes)} sizes but not as many space directions.", _CONVERT)
        spatial = [axis for axis in range(len(sizes)) if not np.isnan(rows[axis]).all()]
    elif any(kind in _SPATIAL_KINDS for kind in kinds):
        spatial = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS]
    else:
        spatial = [axis for axis, kind in enumerate(kinds) if kind in _FRAME_KINDS]
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    if len(spatial) == 4 and not others:  # ITK takes a fourth axis of volumes for one in space
        spatial, others = spatial[:3], [spatial[3]]
        kinds[others[0]] = "list"
    for axis in others:
        is_frame = frame is not None and kinds[axis] in _VECTOR_KINDS
        if sizes[axis] > 1 and not is_frame and kinds[axis] not in (*_FRAME_KINDS, *_SPATIAL_KINDS):
            raise complex_voxels(what) if kinds[axis] == "complex" else not_grey(what, kinds[axis], sizes[axis])
    several = [axis for axis in others if sizes[axis] > 1]
    if len(spatial) not in (2, 3) or len(several) > 1:
        raise InputError(
            f"{what} has {counted(len(sizes), 'dimension')} ({'x'.join(map(str, sizes))}), {len(spatial)} of them in "
            "space; expected 2, 3 or 4.",
            "Save one volume of it to a file.",
        )
    return spatial, several[0] if several else None


def _place(fields: Mapping[str, Any], spatial: list[int], what: str) -> tuple[Geometry, list[str]]:
    """Where the voxels lie, and what is missing or was settled."""
    warnings: list[str] = []
    space = str(fields.get("space", "")).lower().removesuffix("-time")
    if space in ("rast", "last", "lpst"):
        space = space[:3]
    signs = _SPACES.get(space)
    directions = fields.get("space directions")
    axes = len(spatial)
    if signs is None or directions is None:
        stated = f"only the space {clean_text(space, 40)!r}" if space and signs is None else "no orientation"
        if axes == 3 or space:
            warnings.append(f"The header states {stated}: left and right, front and back are not known.")
    columns, origin = np.eye(3), np.zeros(3)
    if directions is not None:
        rows = np.asarray(directions, np.float64)
        width = rows.shape[1]
        if width not in ((2, 3) if axes == 2 else (3, 4)):
            raise InputError(f"{what}: its header has space directions of {width} numbers.", _CONVERT)
        if width == 4:  # the fourth is time
            others = np.delete(rows, spatial, axis=0)[:, :3]
            mixed = max(np.abs(rows[spatial, 3]).max(), np.abs(np.nan_to_num(others)).max(initial=0))
            if mixed > MOST_SHEAR * np.abs(rows[spatial]).max():
                raise InputError(f"{what}: the axes of space and time in its header are mixed.", _CONVERT)
        used = min(width, 3)
        columns[:used, :axes] = rows[spatial, :used].T
        if axes == 2 and used == 3:
            normal = np.cross(columns[:, 0], columns[:, 1])
            columns[:, 2] = normal / np.linalg.norm(normal) if normal.any() else normal
        start = np.asarray(fields.get("space origin", np.zeros(width)), np.float64).ravel()
        if start.shape != (width,):
            raise InputError(f"{what}: its header has a space origin of {start.size} numbers.", _CONVERT)
        if "space origin" not in fields:
            warnings.append("The header states no origin: where the scan lies is not known.")
        origin[:used] = start[:used]
    elif "spacings" in fields:
        spacings = np.asarray(fields["spacings"], np.float64).ravel()
        if len(spacings) <= max(spatial):
            raise InputError(f"{what}: its header has {len(spacings)} spacings, fewer than sizes.", _CONVERT)
        columns[range(axes), range(axes)] = spacings[spatial]
    else:
        warnings.append("The header states no voxel size; 1 mm was taken.")
    scale = _scale(fields, axes, what, warnings)
    turn = np.array(signs or (1, 1, 1), np.float64)
    fields_used = "its header" if directions is None else "the space directions"
    columns[:, :axes] *= scale[:axes]
    return geometry_of(columns * turn[:, None], origin * scale[0] * turn, what, fields_used), warnings


def _scale(fields: Mapping[str, Any], axes: int, what: str, warnings: list[str]) -> np.ndarray:
    """Millimetres in a unit of the header's space."""
    units = [str(unit).strip().lower() for unit in fields.get("space units", [])]
    if unknown := [unit for unit in units[:axes] if unit not in _UNITS]:
        raise InputError(
            f"{what}: its header measures space in {clean_text(unknown[0], 40)!r}; expected mm.", "Convert it to mm."
        )
    factors = {_UNITS[unit] for unit in units[:axes]} or {1.0}
    if len(factors) > 1:
        raise InputError(f"{what}: its header measures space in several units.", "Convert it to mm.")
    factor = factors.pop()
    if factor != 1:
        warnings.append(f"The header states its lengths in {units[0]}; they were turned into millimetres.")
    return np.full(3, factor)


def _grid_fields(lines: list[bytes], dimension: int) -> GridFields | None:
    """The lines that state the grid, where they are enough for a result; in a unit other than mm they are not."""
    stated = {line.partition(b":")[0].strip().lower().decode("ascii", "replace"): line for line in lines[1:]}
    if "space directions" not in stated or "space origin" not in stated or "space units" in stated:
        return None
    content = b"\n".join(stated[name].strip() for name in GRID_FIELDS if name in stated)
    return GridFields("nrrd", dimension, content) if content.isascii() else None
