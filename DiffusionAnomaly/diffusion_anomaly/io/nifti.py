"""NIfTI-1, NIfTI-2, Analyze 7.5 and FreeSurfer's MGH.

Where voxels lie is NIfTI's rule: the sform where it has a code, else the qform where it has one, else the voxel sizes
alone (methods 3, 2 and 1 of the standard; the last as other programs understand it). Header fields that say otherwise
than the form in use become warnings.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..text import clean_text, counted
from .content import (
    MOST_BEHIND,
    MOST_INFLATION,
    Content,
    ScanFile,
    behind_warning,
    check_promise,
    check_size,
    inflate,
    read_frame,
)
from .geometry import MOST_SHEAR, Geometry, geometry_of
from .reading import GridFields, Reading, as_float32, choose_frame, complex_voxels, not_grey

NIFTI1_BYTES, NIFTI2_BYTES, MGH_BYTES = 348, 540, 284
# The grid's fields in a NIfTI-1 header: where they begin, and their layout.
GRID_FIELDS = ((76, "4f"), (123, "B"), (252, "2h18f"))
TO_LPS = np.array([-1.0, -1.0, 1.0])
# Share of a spacing up to which a voxel size in float32 is another rounding of the same number.
_SAME_NUMBER, _SAME_SPACING = 1e-5, 1e-3
# Share of a voxel by which two forms may put a corner apart.
_SAME_PLACE = 0.05
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_MGH_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_UNSTATED = "The file states no orientation: left and right, front and back are not known."


def is_nifti(head: bytes) -> bool:
    """Whether a file's first bytes, inflated, are a header of NIfTI or Analyze."""
    sizes = {struct.pack(order + "i", size) for order in "<>" for size in (NIFTI1_BYTES, NIFTI2_BYTES)}
    return head[:4] in sizes


def is_mgh(head: bytes) -> bool:
    """Whether a file's first bytes, inflated, are a header of FreeSurfer's MGH: version 1, a known type."""
    return len(head) >= 24 and head[:4] == b"\0\0\0\1" and struct.unpack_from(">i", head, 20)[0] in _MGH_TYPES


def needs_partner(head: bytes) -> bool:
    """Whether the voxels of this NIfTI or Analyze header are in a file of their own."""
    return head[344:347] != b"n+1" and head[4:7] != b"n+2"


# Squares of intensities stay within single precision.
_LEAST_SCALED, _MOST_SCALED = 1e-18, 1e18


def read_nifti(file: ScanFile, compressed: bool, frame: int | None, data: ScanFile | None) -> Reading:
    """Read a NIfTI or Analyze file.

    Args:
        file: with the header.
        compressed: whether it is gzip.
        frame: which volume of several.
        data: the file of the voxels, where that is another one.

    Raises:
        InputError: when it is damaged, cut short, no grey volume, or its voxels lie nowhere.
        MemoryExhausted: when it does not fit into memory.
    """
    content = _content(file, compressed)
    raw = content.read(4)
    big = raw in (struct.pack(">i", NIFTI1_BYTES), struct.pack(">i", NIFTI2_BYTES))
    length = struct.unpack(">i" if big else "<i", raw)[0]
    raw += content.read(length - 4)
    if len(raw) < length:
        raise InputError(f"{file.what} is cut short: its header has {len(raw)} of {length} bytes.", "Copy it again.")
    header = _header(raw, ">" if big else "<")
    extents = _extents(header, file.what, frame)
    dtype = _dtype(header, extents, file.what)
    shape = (extents[0], extents[1], extents[2] if len(extents) > 2 else 1)
    frames = extents[3] if len(extents) > 3 else 1
    chosen = choose_frame(frame, frames, file.what)
    geometry, warnings = _place(header, shape, file.what)
    slope, intercept = _scaling(header, file.what, warnings)
    offset = _offset(header, data is None, length, file.what)
    size = check_size(shape, dtype, file.what) * frames
    if data is not None:
        content.finish()
        content = _content(data, compressed := data.peek(2) == b"\x1f\x8b")
    voxels = data or file
    check_promise(offset + size, voxels.size, MOST_INFLATION if compressed else 1, voxels.what)
    if compressed and offset > MOST_BEHIND:
        raise InputError(
            f"{file.what}: its header skips {offset} bytes of compressed content (vox_offset), more than any writer.",
            "Export or convert the scan again.",
        )
    content.skip(offset - (length if data is None else 0))
    stored, behind = read_frame(content, dtype, shape, frames, chosen)
    values = as_float32(stored, slope, intercept)
    if slope != 1.0:
        _check_scaled(stored, values, slope, file.what)
    description = clean_text(bytes(header["descrip"].tobytes()).split(b"\0")[0])
    return Reading(
        values,
        geometry,
        2 if len(extents) == 2 else 3,
        {"description": description} if description else {},
        (*warnings, *behind_warning(behind)),
        _grid_fields(raw, big, len(extents[:3])) if "sform_code" in header and length == NIFTI1_BYTES else None,
    )


def read_mgh(file: ScanFile, compressed: bool, frame: int | None) -> Reading:
    """Read FreeSurfer's MGH or MGZ.

    Raises:
        InputError, MemoryExhausted: as `read_nifti`.
    """
    content = _content(file, compressed)
    raw = content.read(MGH_BYTES)
    if len(raw) < MGH_BYTES:
        raise InputError(f"{file.what} is cut short: its header is not whole.", "Copy it again.")
    _, columns, rows, slices, frames, kind, _ = struct.unpack_from(">7i", raw)
    stated = bool(struct.unpack_from(">h", raw, 28)[0] > 0)
    numbers = np.array(struct.unpack_from(">15f", raw, 30))
    dtype, shape = np.dtype(_MGH_TYPES[kind]), (columns, rows, slices)
    size = check_size(shape, dtype, file.what) * max(frames, 1)
    chosen = choose_frame(frame, max(frames, 1), file.what)
    if stated:
        axes, spacing, centre = numbers[3:12].reshape(3, 3).T, numbers[:3], numbers[12:]
    else:  # what FreeSurfer takes then: a coronal volume in its own space
        axes, spacing, centre = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.ones(3), np.zeros(3)
    steps = axes * spacing
    geometry = geometry_of(
        steps * TO_LPS[:, None], (centre - steps @ (np.array(shape) / 2)) * TO_LPS, file.what, "its header"
    )
    check_promise(MGH_BYTES + size, file.size, MOST_INFLATION if compressed else 1, file.what)
    stored, _ = read_frame(content, dtype, shape, max(frames, 1), chosen)  # a footer of any length may follow
    return Reading(as_float32(stored), geometry, 3, {}, () if stated else (_UNSTATED,))


def _content(file: ScanFile, compressed: bool) -> Content:
    return Content(inflate(file.chunks(), file.what) if compressed else file.chunks(), file.what)


def _header(raw: bytes, order: str) -> Any:
    """The header's fields by name; of nibabel, which knows all four layouts."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spm2analyze import Spm2AnalyzeHeader

    if len(raw) == NIFTI2_BYTES:
        return Nifti2Header(raw, order, check=False)
    kind = Nifti1Header if raw[344:348] in (b"n+1\0", b"ni1\0") else Spm2AnalyzeHeader
    return kind(raw, order, check=False)


def _extents(header: Any, what: str, frame: int | None) -> tuple[int, ...]:
    """Extents along 2 to 4 axes; of vectors, whose components a frame counts, the fourth is theirs."""
    dimensions = [int(value) for value in header["dim"]]
    count = dimensions[0]
    if not 1 <= count <= 7:
        raise InputError(
            f"{what}: its header states {counted(count, 'dimension')}; expected 2, 3 or 4.", "Convert the scan again."
        )
    extents = dimensions[1 : count + 1]
    if min(extents) < 1 or count < 2:
        stated = " x ".join(map(str, extents))
        raise InputError(
            f"{what}: its header states {stated} voxels; expected at least one along each of 2, 3 or 4 axes.",
            "Export or convert the scan again.",
        )
    beyond = extents[4:]
    if max(beyond, default=1) > 1:
        if extents[3] == 1 and max(beyond[1:], default=1) == 1:  # NIfTI keeps a voxel's components there
            if frame is not None:
                return (*extents[:3], beyond[0])
            raise not_grey(what, "vector", beyond[0])
        raise InputError(
            f"{what} has {counted(count, 'dimension')} ({'x'.join(map(str, extents))}); expected 2, 3 or 4.",
            "Save one volume of it to a file.",
        )
    return tuple(extents[:4])


def _dtype(header: Any, extents: tuple[int, ...], what: str) -> np.dtype:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V1")
    if dtype.kind == "c":
        raise complex_voxels(what)
    if dtype.fields:
        raise not_grey(what, "RGB-color", len(dtype.fields))
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(
            f"{what}: its header states voxels of type {int(header['datatype'])}, which cannot be read.",
            "Convert it to 16-bit integers or 32-bit floating point.",
        )
    return dtype.newbyteorder(header.endianness)


def _scaling(header: Any, what: str, warnings: list[str]) -> tuple[float, float]:
    """Slope and intercept. A slope of 0 or NaN says that there is none."""
    if "sform_code" not in header:
        slope, intercept = header.get_slope_inter()
        return float(slope or 1), float(intercept or 0)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if np.isinf(slope):
        raise InputError(f"{what}: its header scales voxels by infinity (scl_slope).", "Convert the scan again.")
    if not np.isfinite(intercept):
        warnings.append("The header adds a number that is not finite to the voxels (scl_inter); nothing was added.")
        intercept = 0.0
    return slope, intercept


def _check_scaled(stored: np.ndarray, values: np.ndarray, slope: float, what: str) -> None:
    """Refuse a slope after which nothing can be computed in single precision: voxels that differed are lost.

    Raises:
        InputError: naming it.
    """
    most = max(float(np.abs(plane[np.isfinite(plane)], dtype=np.float64).max(initial=0)) for plane in stored)
    if most and not _LEAST_SCALED < most * abs(slope) < _MOST_SCALED:
        raise InputError(
            f"{what}: its header scales voxels by {slope:.4g} (scl_slope), so that the largest becomes "
            f"{most * abs(slope):.4g}, which no scan has.",
            "Convert the scan again, without that scaling.",
        )


def _offset(header: Any, alone: bool, length: int, what: str) -> int:
    offset = float(header["vox_offset"])
    least = length + 4 if alone else 0
    if not (np.isfinite(offset) and offset == int(offset) and least <= offset < 2**40):
        raise InputError(
            f"{what}: its header puts the voxels at byte {offset:g} (vox_offset); expected {least} or more.",
            "Export or convert the scan again.",
        )
    return int(offset)


def _place(header: Any, shape: tuple[int, ...], what: str) -> tuple[Geometry, list[str]]:
    """Where the voxels lie, and what contradicts it."""
    warnings: list[str] = []
    sizes = np.array(header["pixdim"][1:4], np.float64)
    if "sform_code" not in header:
        return _place_analyze(header, sizes, what)
    unit = int(header["xyzt_units"]) & 7
    scale = _UNITS.get(unit, 1.0)
    if unit in _UNIT_NAMES:
        warnings.append(f"The header states its lengths in {_UNIT_NAMES[unit]}; they were turned into millimetres.")
    elif unit not in _UNITS:
        warnings.append(f"The header states an unknown unit of length ({unit}); it is taken for millimetres.")
    codes = int(header["sform_code"]), int(header["qform_code"])
    sform = np.array([header[f"srow_{axis}"] for axis in "xyz"], np.float64)
    if codes[0] > 0:
        form, fields = sform, "the sform"
    elif codes[1] > 0:
        form, fields = _qform(header, what), "the qform"
        if header["pixdim"][0] not in (-1, 0, 1):
            warnings.append(
                f"The header's qfac (pixdim[0]) is {float(header['pixdim'][0]):g}, neither 1 nor -1; "
                f"it is taken for {-1 if header['pixdim'][0] < 0 else 1}."
            )
    else:
        form, fields = _by_size(header, sizes, shape), "the voxel size (pixdim)"
        warnings.append(f"{_UNSTATED} It is taken as Analyze is: columns run from right to left.")
    form = form.copy()
    if shape[2] == 1 and not form[:, 2].any():
        normal = np.cross(form[:, 0], form[:, 1])
        length = np.linalg.norm(normal)
        form[:, 2] = normal / length / scale if length > 0 else 0
        warnings.append("The header states no thickness of its slice; 1 mm was taken.")
        sizes[2] = 1 / scale
    lps = form * TO_LPS[:, None] * scale
    geometry = geometry_of(lps[:, :3], lps[:, 3], what, fields)
    if codes[0] > 0 and codes[1] > 0:
        warnings += _compare_forms(header, form, geometry, shape, scale, what)
    return _settle_sizes(geometry, sizes * scale, fields, warnings), warnings


def _by_size(header: Any, sizes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """As nibabel, ITK and FSL place a file without a form: as Analyze, the middle of the volume at the origin."""
    sizes = np.abs(sizes)
    form = np.diag(sizes * (-1.0 if header.default_x_flip else 1.0, 1.0, 1.0))
    return np.column_stack([form, -form @ (np.array(shape[:3]) - 1) / 2.0])


def _settle_sizes(geometry: Geometry, sizes: np.ndarray, fields: str, warnings: list[str]) -> Geometry:
    """The geometry with the spacing as it was written, where that is the same; else a word that it is not."""
    stated = np.abs(sizes)
    if (sizes < 0).any():
        warnings.append(f"The header states a negative voxel size (pixdim); {fields} was used, in which none is.")
    ratio = np.abs(stated / geometry.spacing - 1)
    if np.isfinite(ratio).all() and ratio.max() <= _SAME_NUMBER:
        x, y, z = (float(value) for value in stated)
        return replace(geometry, spacing=(x, y, z))
    if not ratio.max() <= _SAME_SPACING:
        warnings.append(
            f"The header states voxels of {' x '.join(f'{value:.4g}' for value in stated)} mm (pixdim), but {fields} "
            f"voxels of {' x '.join(f'{value:.4g}' for value in geometry.spacing)} mm; {fields} was used."
        )
    return geometry


def _qform(header: Any, what: str) -> np.ndarray:
    """The qform as ``(3, 4)``, RAS.

    Raises:
        InputError: when its quaternion is no rotation.
    """
    from nibabel.quaternions import quat2mat

    vector = np.array([header[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    offset = np.array([header[f"qoffset_{axis}"] for axis in "xyz"], np.float64)
    sizes = np.abs(np.array(header["pixdim"][1:4], np.float64))
    squared = float(vector @ vector)
    if np.isfinite(vector).all() and squared > 1 + MOST_SHEAR:
        raise InputError(
            f"{what}: the qform's quaternion is no rotation (its parts are too long: {squared:.4g}).",
            "Export or convert the scan again.",
        )
    if not np.isfinite(vector).all():  # the check of the whole says it
        return np.full((3, 4), np.nan)
    # What a header's precision leaves of a half turn's first part is rounding, whose root would turn the scan.
    first = 0.0 if 1 - squared < abs(header.quaternion_threshold) else np.sqrt(1 - squared)
    rotation = quat2mat(np.array([first, *vector]))
    if header["pixdim"][0] < 0:
        sizes[2] = -sizes[2]
    return np.column_stack([rotation * sizes, offset])


def _compare_forms(
    header: Any, sform: np.ndarray, geometry: Geometry, shape: tuple[int, ...], scale: float, what: str
) -> list[str]:
    """What to say when the qform puts the volume elsewhere than the sform, which is in use."""
    damaged = ["The header's qform is damaged; the sform was used."]
    try:
        qform = _qform(header, what)
    except InputError:
        return damaged
    if not np.isfinite(qform).all():
        return damaged
    corners = np.array([[*(np.array(corner) * (np.array(shape) - 1)), 1] for corner in np.ndindex(2, 2, 2)])
    apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max() * scale
    if apart <= _SAME_PLACE * min(geometry.spacing):
        return []
    return [f"The header's sform and qform put the scan up to {apart:.3g} mm apart; the sform was used."]


def _place_analyze(header: Any, sizes: np.ndarray, what: str) -> tuple[Geometry, list[str]]:
    """Analyze states no orientation: as nibabel and SPM, columns from right to left, around SPM's origin."""
    warnings = [f"{_UNSTATED} Analyze is taken as SPM takes it: columns run from right to left."]
    if (sizes < 0).any():
        warnings.append("The header states a negative voxel size (pixdim); its sign was left out.")
    header["pixdim"][1:4] = np.abs(sizes)
    if header["dim"][0] == 2:  # there is no third axis to go by
        header["dim"][3], header["pixdim"][3] = 1, 1
    affine = np.asarray(header.get_best_affine(), np.float64)[:3]
    lps = affine * TO_LPS[:, None]
    geometry = geometry_of(lps[:, :3], lps[:, 3], what, "the voxel size (pixdim)")
    return geometry, warnings


def _grid_fields(raw: bytes, big: bool, dimension: int) -> GridFields:
    fields = (struct.unpack_from((">" if big else "<") + layout, raw, start) for start, layout in GRID_FIELDS)
    packed = (struct.pack("<" + layout, *values) for values, (_, layout) in zip(fields, GRID_FIELDS, strict=True))
    return GridFields("nifti", dimension, b"".join(packed))
