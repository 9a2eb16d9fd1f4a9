"""One DICOM instance: which study it belongs to, whether it is an image, and what tells its content from another's."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import tag_for_keyword

from ..errors import InputError
from ..io.dicom.headers import BoundedFile, read_header
from ..io.dicom.recognition import HEAD_BYTES, has_dicom_head

_TAGS = [
    tag_for_keyword(keyword) or 0
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
]
# They become names of files: digits and dots alone, and no folder above.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64


@dataclass(frozen=True)
class Instance:
    """What is known of an instance without its pixels.

    Attributes:
        study, uid: study and SOP instance UID.
        is_image: whether its class is one of images; segmentations, maps, reports and the like are none.
        digest: SHA256 of its data set, whatever its file meta information says.
    """

    study: str
    uid: str
    is_image: bool
    digest: str

    @property
    def file_name(self) -> str:
        return f"{self.uid}.dcm"


def identify(path: Path) -> Instance | None:
    """The instance in a file; None for a file that is no DICOM, or the directory of a medium.

    Raises:
        InputError: when it is damaged, or lacks what it is filed by.
        OSError: when it cannot be read.
    """
    with BoundedFile(path) as file:
        if not has_dicom_head(file.read(HEAD_BYTES)):
            return None
        file.seek(0)
        header, _, _ = read_header(file, path, _TAGS)
        if header.sop_class.name == "Media Storage Directory Storage":
            return None
        study, uid = header.code("StudyInstanceUID"), header.code("SOPInstanceUID")
        for name, value in (("StudyInstanceUID", study), ("SOPInstanceUID", uid)):
            if not is_uid(value):
                raise InputError(f"An instance has {'no' if not value else 'an invalid'} {name}.", "Send it with one.")
        file.seek(_start_of_data_set(file))
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Instance(study, uid, "Image Storage" in header.sop_class.name, digest.hexdigest())


def is_uid(text: str) -> bool:
    """Whether a text is a UID, and may name a file."""
    return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


def _start_of_data_set(file: BoundedFile) -> int:
    """Behind the meta information, which tells who wrote the file; 0 where its length is not stated."""
    file.seek(128)
    head = file.read(16)
    if head[:4] == b"DICM" and head[4:10] == b"\2\0\0\0UL":
        return 144 + int.from_bytes(head[12:16], "little")
    return 0
