"""What ITK leaves undone about file formats, done on the bytes.

ITK 5.4 reads a truncated NIfTI without an error, filling the rest with whatever memory held, and writes a
NIfTI to a full disk without an error. It also rounds: the orientation of a NIfTI that it has read and written
again differs in the eighth digit, that of an NRRD in the sixteenth. Here a file is checked to be whole, and
the orientation fields of the input are carried over unchanged.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import shutil
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError

# NIfTI-1 byte ranges that define the grid beside `dim`: pixdim[0..3], xyzt_units, and qform_code to srow_z.
_NIFTI_GRID_FIELDS = ((76, 92, "4f"), (123, 124, "B"), (252, 328, "2h18f"))
# A NIfTI-2 header and the four bytes that say whether extensions follow; one of NIfTI-1 is shorter.
_HEADER_BYTES = 544
_NRRD_GRID_FIELDS = (b"space", b"space directions", b"space origin")


def suffix_of(path: Path) -> str:
    """A file's suffix in lower case, `.nii.gz` in one piece.

    >>> suffix_of(Path("scan.v2.NII.GZ")), suffix_of(Path("scan.v2.nrrd"))
    ('.nii.gz', '.nrrd')
    """
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def files_of(path: Path) -> list[Path]:
    """The file and the data files that its header points to (.mhd, .nhdr, .hdr/.img), which must exist.

    Raises:
        InputError: when a data file is missing.
    """
    suffix = suffix_of(path)
    if suffix in (".mhd", ".nhdr"):
        key = rb"ElementDataFile\s*=\s*(.+)" if suffix == ".mhd" else rb"data ?file:\s*(.+)"
        named = re.search(key, path.read_bytes()[:65536], re.IGNORECASE)
        name = os.fsdecode(named.group(1).strip()) if named else ""
        # A list or a printf pattern of many files: their number is for ITK to settle.
        if not name or name.upper().startswith(("LOCAL", "LIST")) or "%" in name:
            return [path]
        others = [path.parent / name]
    elif suffix in (".hdr", ".img"):
        others = [path.with_suffix(".img" if suffix == ".hdr" else ".hdr")]
    else:
        return [path]
    for other in others:
        if not other.is_file():
            raise InputError(
                f"{path} needs the file {other.name} beside it, which is missing.",
                f"Copy {other.name} to {path.parent}.",
            )
    return [path, *others]


def check_whole(path: Path, copy: Path | None = None) -> bool:
    """Check that a NIfTI file holds all the voxels that its header promises. Other formats: ITK checks them.

    Args:
        path: the file.
        copy: where to leave the content of a compressed file, for a reader that would have to inflate it again.

    Returns:
        Whether ``copy`` was written.

    Raises:
        InputError: not a NIfTI file, damaged, or cut short.
        OSError: when ``path`` cannot be read or ``copy`` cannot be written.
    """
    if suffix_of(path) not in (".nii", ".nii.gz"):
        return False
    with open(path, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if compressed:
                with gzip.GzipFile(fileobj=raw) as file:
                    header = file.read(_HEADER_BYTES)
                    expected = _expected_bytes(header)
                    found = _inflate(file, header, expected, copy) if expected else 0
            else:
                expected = _expected_bytes(raw.read(_HEADER_BYTES))
                found = os.fstat(raw.fileno()).st_size
        except EOFError as error:
            raise InputError(f"{path} is cut short.", "Copy or download it again.") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{path} is damaged: its compressed content does not agree with itself.",
                "Copy or download it again.",
            ) from error
    if not expected:
        raise InputError(f"{path} is not a NIfTI file, whatever its name says.", "Give the scan itself.")
    if found < expected:
        raise InputError(
            f"{path} is cut short: it holds {found} bytes, its header promises {expected}.",
            "Copy or download it again.",
        )
    return compressed and copy is not None


def _expected_bytes(header: bytes) -> int:
    """The length of an uncompressed NIfTI file by its first 544 bytes; 0 when it is none."""
    for order in "<>":
        if header[:4] == struct.pack(order + "i", 348) and len(header) >= 348:
            dimensions = struct.unpack_from(order + "8h", header, 40)
            (bits,) = struct.unpack_from(order + "h", header, 72)
            offset = int(struct.unpack_from(order + "f", header, 108)[0])
        elif header[:4] == struct.pack(order + "i", 540) and len(header) >= 540:
            dimensions = struct.unpack_from(order + "8q", header, 16)
            (bits,) = struct.unpack_from(order + "h", header, 14)
            (offset,) = struct.unpack_from(order + "q", header, 168)
        else:
            continue
        voxels = math.prod(max(1, n) for n in dimensions[1 : 1 + max(0, min(7, dimensions[0]))])
        return offset + (voxels * bits + 7) // 8
    if header[:4] in (struct.pack("<i", 348), struct.pack(">i", 348)):
        raise EOFError("the header has less than 348 bytes")
    return 0


def _inflate(file: gzip.GzipFile, header: bytes, expected: int, copy: Path | None) -> int:
    """Read a compressed file to its end, where its checksum is compared; the number of bytes that came.

    A copy gets no more than the ``expected`` bytes, however much follows them.
    """
    found, chunk = 0, header
    with open(copy, "wb") if copy else nullcontext() as target:
        while chunk:
            if target and found < expected:
                target.write(chunk[: expected - found])
            found += len(chunk)
            chunk = file.read(1 << 20)
    return found


def keep_grid_fields(source: Path, written: Path) -> None:
    """Carry the orientation fields of the file `source` into the file `written`, in place.

    `written` is an uncompressed NIfTI or an NRRD of the same grid, as ITK wrote it. Nothing happens when the
    two formats differ: the fields would not be the same ones.
    """
    if not source.is_file():
        return
    kinds = suffix_of(source), suffix_of(written)
    if kinds[0] in (".nii", ".nii.gz") and kinds[1] == ".nii":
        _keep_nifti_fields(source, written)
    elif kinds[0] in (".nrrd", ".nhdr") and kinds[1] == ".nrrd":
        _keep_nrrd_fields(source, written)


def _keep_nifti_fields(source: Path, written: Path) -> None:
    with open(source, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        header = (gzip.GzipFile(fileobj=raw) if compressed else raw).read(348)
    orders = [order for order in "<>" if header[:4] == struct.pack(order + "i", 348)]
    if not orders:  # NIfTI-2 keeps the same fields in float64
        return
    with open(written, "rb+") as file:
        for start, stop, layout in _NIFTI_GRID_FIELDS:
            file.seek(start)
            file.write(struct.pack("<" + layout, *struct.unpack(orders[0] + layout, header[start:stop])))


def _keep_nrrd_fields(source: Path, written: Path) -> None:
    with open(source, "rb") as file:
        kept = _nrrd_fields(_nrrd_header(file))
    with open(written, "rb") as file:
        lines = _nrrd_header(file)
        fields = _nrrd_fields(lines)
        same_axes = kept.get(b"dimension", b"").split()[-1:] == fields.get(b"dimension", b"").split()[-1:]
        if not (same_axes and all(key in kept and key in fields for key in _NRRD_GRID_FIELDS)):
            return
        lines = [kept[key] if (key := line.partition(b":")[0].strip()) in _NRRD_GRID_FIELDS else line for line in lines]
        rewritten = written.with_name(f"{written.name}.header")
        try:
            with open(rewritten, "wb") as target:
                target.write(b"\n".join(lines) + b"\n\n")
                shutil.copyfileobj(file, target, 1 << 20)
            os.replace(rewritten, written)
        finally:
            rewritten.unlink(missing_ok=True)


def _nrrd_header(file: BinaryIO) -> list[bytes]:
    """Header lines up to the empty one, where the file is left."""
    lines = []
    while line := file.readline().rstrip(b"\r\n"):
        lines.append(line)
    return lines


def _nrrd_fields(lines: list[bytes]) -> dict[bytes, bytes]:
    return {line.partition(b":")[0].strip(): line for line in lines if b":" in line and not line.startswith(b"#")}
