"""Which format a file has, by its content, and the reader for it.

Few formats, each read in Python, so that damaged or hostile bytes meet checks before they meet a C++ parser. What is
not read is named.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..text import printable
from .content import ScanFile
from .metaimage import read_metaimage
from .nifti import NIFTI1_BYTES, is_mgh, is_nifti, needs_partner, read_mgh, read_nifti
from .nrrd import read_nrrd
from .pictures import picture_kind, read_picture
from .reading import Reading

READ_INSTEAD = "Give NIfTI, NRRD, MetaImage or DICOM."
UNPACK = "Unpack it, and give the scan or the folder that comes out."
GZIP = b"\x1f\x8b"
_HEAD = 2048
# What else a file may turn out to be: where its mark stands, the mark, and its name.
_REFUSED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"BZh", "compressed with bzip2"),
    (0, b"\xfd7zXZ\0", "compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (0, b"\x04\x22\x4d\x18", "compressed with LZ4"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as MINC 2"),
    (0, b"CDF\x01", "a NetCDF file, such as MINC 1"),
    (0, b"CDF\x02", "a NetCDF file, such as MINC 1"),
    (0, b"# vtk DataFile", "a VTK file"),
    (0, b"<VTKFile", "a VTK file"),
    (0, b"<?xml", "an XML file"),
    (208, b"MAP ", "an MRC map"),
    (252, b"\x2a\xe3\x89\xb8", "a GIPL file"),
    (252, b"\xef\xff\xe9\xb0", "a GIPL file"),
    (0, b"MATRIX7", "an ECAT file"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"\x80\x03", "a Python pickle"),
    (0, b"\x80\x04", "a Python pickle"),
    (0, b"\x80\x05", "a Python pickle"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"II+\0", "a BigTIFF picture"),
    (0, b"MM\0+", "a BigTIFF picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"!INTERFILE", "an Interfile header"),
    (0, b"ENVI", "an ENVI header"),
)
_REFUSED_NAMES = {
    **{".mnc": "a MINC file", ".head": "an AFNI file", ".brik": "an AFNI file", ".gipl": "a GIPL file"},
    **{".vtk": "a VTK file", ".vti": "a VTK file", ".mrc": "an MRC map", "2dseq": "a Bruker file"},
    **{".par": "a Philips PAR/REC file", ".rec": "a Philips PAR/REC file", ".v": "an ECAT file"},
    **{".mif": "an MRtrix file", ".zip": "a zip archive", ".pkl": "a Python pickle"},
}
_HEADERS, _VOXELS = (".hdr", ".hdr.gz"), (".img", ".img.gz")


def suffix_of(path: Path | str) -> str:
    """A file's suffix in lower case, one of compression in one piece with the suffix before it.

    >>> suffix_of(Path("scan.v2.NII.GZ")), suffix_of(Path("scan.v2.nrrd")), suffix_of("brain.img.gz")
    ('.nii.gz', '.nrrd', '.img.gz')
    """
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".gz" else suffix


def read_scan(path: Path, frame: int | None) -> tuple[Reading, str]:
    """Read a scan that is not DICOM.

    Args:
        path: the file; of a pair of header and voxels, either.
        frame: which volume of several.

    Returns:
        What it holds, and the SHA256 of the bytes of all its files, the one with the header first.

    Raises:
        InputError: when it cannot be read as one grey volume.
        MemoryExhausted: when it does not fit into memory.
    """
    digest = hashlib.sha256()
    given = suffix_of(path)
    header = _partner(path, _HEADERS) if given in _VOXELS else path
    # What arithmetic makes of absurd numbers in a header is looked at, and refused.
    with ScanFile(header, digest) as file, np.errstate(all="ignore"):
        reading = _read(file, path, header, frame, digest)
        file.finish()
    return reading, digest.hexdigest()


def _read(file: ScanFile, path: Path, header: Path, frame: int | None, digest: hashlib._Hash) -> Reading:
    head = file.peek(_HEAD)
    compressed = head.startswith(GZIP)
    if compressed:
        head = _inflated_head(file)
    if is_nifti(head):
        if len(head) < NIFTI1_BYTES:
            raise InputError(f"{file.what} is cut short: its header is not whole.", "Copy or download it again.")
        if not needs_partner(head):
            return read_nifti(file, compressed, frame, None)
        if suffix_of(header) not in _HEADERS:
            raise InputError(
                f"{file.what} is the header of a NIfTI or Analyze pair, under another name.",
                "Name it .hdr, beside its .img.",
            )
        voxels = path if header != path else _partner(path, _VOXELS)
        with ScanFile(voxels, digest) as data:
            return read_nifti(file, compressed, frame, data)
    if is_mgh(head):
        return read_mgh(file, compressed, frame)
    mark = _mark(head, path)
    if compressed:
        said = mark or ("an NRRD file" if head.startswith(b"NRRD") else "something else")
        raise InputError(f"{file.what} is not a NIfTI file: it is gzip around {said}.", READ_INSTEAD)
    if head.startswith(b"NRRD"):
        return read_nrrd(file, frame, digest)
    if kind := picture_kind(head):
        return read_picture(file, kind, frame)
    if mark:
        packed = "archive" in mark or "compressed" in mark
        raise InputError(f"{file.what} is {mark}, which is not read.", UNPACK if packed else READ_INSTEAD)
    if suffix_of(path) in (".mha", ".mhd") or head.startswith(b"ObjectType"):
        return read_metaimage(file, frame, digest)
    if suffix_of(path) in (".nii", ".nii.gz"):
        raise InputError(f"{file.what} is not a NIfTI file, whatever its name says.", "Give the scan itself.")
    name = _REFUSED_NAMES.get(suffix_of(path) or path.name.lower())
    if name:
        raise InputError(f"{file.what} is {name} by its name, which is not read.", READ_INSTEAD)
    raise InputError(f"{file.what} is in no image format that can be read, or is damaged.", READ_INSTEAD)


def _mark(head: bytes, path: Path) -> str | None:
    """What a file is by a mark in its first bytes, among the formats that are not read."""
    if suffix_of(path) == ".lsm":
        return "an LSM file of a microscope"
    return next((name for start, mark, name in _REFUSED if head[start : start + len(mark)] == mark), None)


def _inflated_head(file: ScanFile) -> bytes:
    try:
        # Long enough for a gzip header that keeps a name and a comment.
        return zlib.decompressobj(31).decompress(file.peek(1 << 16), _HEAD)
    except zlib.error as error:
        raise InputError(
            f"{file.what} is damaged: its compressed content does not agree with itself.",
            "Copy or download it again.",
        ) from error


def _partner(path: Path, suffixes: tuple[str, ...]) -> Path:
    """The other file of a pair: the one of the same name with one of these suffixes.

    Raises:
        InputError: when there is none, or there are several, which are not one scan.
    """
    name = path.name
    stem = name[: len(name) - len(suffix_of(path))]
    written = {suffix if name.islower() or path.suffix.islower() else suffix.upper() for suffix in suffixes}
    found = sorted(p for suffix in {*written, *suffixes} if (p := path.with_name(stem + suffix)).is_file())
    distinct = [p for i, p in enumerate(found) if not any(os.path.samefile(p, other) for other in found[:i])]
    if not distinct:
        raise InputError(
            f"{printable(path)} needs the file {printable(stem + suffixes[0])} beside it, which is missing.",
            f"Copy {printable(stem + suffixes[0])} to {printable(path.parent)}.",
        )
    if len(distinct) > 1:
        both = " and ".join(printable(p.name) for p in distinct)
        raise InputError(
            f"{printable(path)} has two partners, {both}.", "Move the one away that does not belong to it."
        )
    return distinct[0]
