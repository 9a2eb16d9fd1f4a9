"""Whether a file is DICOM, and what reading it gives. Light: pydicom comes with the first DICOM file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import SimpleITK as sitk

if TYPE_CHECKING:
    from .planes import Plane

HEAD_BYTES = 140
# The first two letters of an element's value representation, where a file begins without preamble.
_REPRESENTATIONS = re.compile(b"A[EST]|CS|D[AST]|F[DL]|IS|L[OT]|O[BW]|PN|S[HLQST]|TM|U[CILNRST]")


class DicomScan(NamedTuple):
    """A volume out of DICOM.

    Attributes:
        image: 3-D, float32.
        files: those that its voxels came from, in slice order.
        metadata: `modality` and `description`, where the headers state them.
        warnings: what reading it had to settle.
        sha256: of the bytes of ``files``, one after the other, as they were when the voxels were read.
        identity: of patient, study and frame of reference, by keyword: digests, which tell no name.
        planes: where each slice came from, in order.
    """

    image: sitk.Image
    files: list[Path]
    metadata: dict[str, str]
    warnings: tuple[str, ...]
    sha256: str
    identity: dict[str, str]
    planes: tuple[Plane, ...]


def is_dicom(path: Path) -> bool:
    """Whether a file's first bytes are DICOM's, with or without the preamble. False for what cannot be opened."""
    try:
        with open(path, "rb") as file:
            return has_dicom_head(file.read(HEAD_BYTES))
    except OSError:
        return False


def has_dicom_head(head: bytes) -> bool:
    """Whether the first bytes of a file are DICOM's.

    >>> has_dicom_head(bytes(128) + b"DICM"), has_dicom_head(b"\\x08\\0\\x05\\0CS\\x0a\\0ISO_IR 100")
    (True, True)
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or (head[:2] not in (b"\2\0", b"\x08\0") and head[:3] != b"\0\x08\0"):
        return False
    if _REPRESENTATIONS.match(head, 4):
        return True
    # Implicit representation: a low element number, and the length of a short value.
    return head[:2] == b"\x08\0" and head[3] == 0 and int.from_bytes(head[4:8], "little") <= 1024
