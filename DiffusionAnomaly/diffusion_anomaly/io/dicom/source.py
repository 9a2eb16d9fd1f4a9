"""The series that a result was made of, as objects that refer to it need it: whose it is, and each image of it.

The files are read once more and must still hold the bytes that the scan was read from: what is said of one series is
never attached to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from ...errors import InputError
from ...text import printable
from .headers import PARSE_ERRORS, Header, parse, read_bytes, silence
from .planes import Plane, is_multiframe

# Beside all of the patient's group.
_COPIED = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "IssuerOfAccessionNumberSequence", "ProcedureCodeSequence", "ConsultingPhysicianName"),
    *("Manufacturer", "ManufacturerModelName", "InstitutionName", "StationName", "DeviceSerialNumber"),
    *("SoftwareVersions", "SeriesInstanceUID", "SeriesNumber", "Modality", "BodyPartExamined", "Laterality"),
    *(
        "AnatomicRegionSequence",
        "FrameOfReferenceUID",
        "PositionReferenceIndicator",
        "BurnedInAnnotation",
        "PatientOrientation",
    ),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
# Type 2 of every object: there, and empty where nothing is known.
_ALWAYS = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_PATIENT, _TRIAL = 0x0010, 0x0012
_LONGEST_UID = 64
_CHECKS: dict[str, Callable[[str], object]] = {"DA": DA, "TM": TM}
# Transfer syntaxes that lose in any case, whatever the header says: JPEG baseline and extended, near-lossless JPEG-LS.
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
}


@dataclass(frozen=True)
class SourceImage:
    """The image of a slice, as others refer to it.

    Attributes:
        sop_class, uid: of its file.
        frame: its number in the file, from 1; None of a file of one image.
        plane: where it lies.
    """

    sop_class: str
    uid: str
    frame: int | None
    plane: Plane


@dataclass(frozen=True)
class SourceSeries:
    """A series.

    Attributes:
        header: of patient, study, series and equipment, in UTF-8; values that are no dates, times or sexes left empty.
        images: one a slice, in order.
        has_place: whether it is stated where the images lie; of many a picture it is not.
        has_scale: whether the pixels' spacing is stated as one in the body.
    """

    header: Dataset
    images: tuple[SourceImage, ...]
    has_place: bool
    has_scale: bool


def read_source(planes: Sequence[Plane], sha256: str, where: str) -> SourceSeries:
    """The series that a scan's slices came from.

    Args:
        planes: the image of each slice, in order; see ``Volume.planes``.
        sha256: of the files' bytes, as they were when the scan was read.
        where: file or folder, for messages.

    Raises:
        InputError: when a file is gone or changed, or the series lacks what other objects refer to it by.
    """
    digest = hashlib.sha256()
    files: dict[Path, Header] = {}
    first: Dataset | None = None
    lossy: Dataset | None = None
    with silence(Path(where)):
        for path in dict.fromkeys(plane.path for plane in planes):
            content = _content(path)
            digest.update(content)
            files[path] = parse(content, path)
            if first is None or (lossy is None and files[path].code("LossyImageCompression") == "01"):
                header = _header(content, path)
                first = header if first is None else first
                lossy = header if header.get("LossyImageCompression") == "01" else lossy
        if first is None or digest.hexdigest() != sha256:
            raise InputError(f"{printable(where)} was changed since the scan was read.", "Read the scan anew.")
        if lossy is not None:
            for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
                if name in lossy:
                    setattr(first, name, lossy[name].value)
    header = next(iter(files.values()))
    for path, one in files.items():
        for keyword in _UIDS:
            _check_uid(one.code(keyword), keyword, path)
        _check_uid(str(one.sop_class), "SOPClassUID", path)
    images = tuple(
        SourceImage(
            str(files[plane.path].sop_class),
            files[plane.path].code("SOPInstanceUID"),
            plane.frame + 1 if is_multiframe(files[plane.path]) else None,
            plane,
        )
        for plane in planes
    )
    return SourceSeries(
        first,
        images,
        has_place="ImagePositionPatient" in header or is_multiframe(header),
        has_scale="PixelSpacing" in header or is_multiframe(header),
    )


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{printable(path)} is no longer there; the scan was read from it.", "Put it back, or read the scan anew."
        ) from error


def _header(content: bytes, path: Path) -> Dataset:
    """What other objects copy of a file.

    Raises:
        InputError: when its elements cannot be told apart.
    """
    try:
        source = dcmread(BytesIO(content), stop_before_pixels=True, force=True)
    except PARSE_ERRORS as error:
        raise InputError(
            f"{printable(path)} is damaged: its elements cannot be told apart.", "Copy or export it again."
        ) from error
    header = Dataset()
    for tag in source.keys():  # noqa: SIM118 - a loop over the data set itself would convert every element
        if tag.group in (_PATIENT, _TRIAL) or keyword_for_tag(tag) in _COPIED:
            _copy(source, header, tag)
    method = _LOSSY.get(str(getattr(source.file_meta, "TransferSyntaxUID", "")))
    if method and header.get("LossyImageCompression") != "01":
        header.LossyImageCompression, header.LossyImageCompressionMethod = "01", method
    for keyword in _ALWAYS:
        if keyword not in header:
            setattr(header, keyword, None)
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _copy(source: Dataset, target: Dataset, tag: BaseTag) -> None:
    """An element, its text decoded; none that is private, or whose value cannot be."""
    try:
        element = source[tag]
        if not element.keyword or not _is_valid(element):
            return
        if element.VR == "SQ":
            for item in element.value:
                item.decode()
        name = element.VR == "PN" and element.VM == 1
        setattr(target, element.keyword, str(element.value) if name else element.value)
    except PARSE_ERRORS:  # many an archive's dates, ages and weights are none
        return


def _is_valid(element: DataElement) -> bool:
    if element.keyword == "PatientSex":
        return element.value in ("M", "F", "O")
    _CHECKS.get(element.VR, str)(element.value)
    return True


def _check_uid(value: str, keyword: str, path: Path) -> None:
    if not UID(value).is_valid or len(value) > _LONGEST_UID:
        found = f"its {keyword} is {value[:_LONGEST_UID]!r}" if value else f"it states no {keyword}"
        raise InputError(
            f"{printable(path)}: {found}, so no DICOM object can refer to it.",
            "Export the series again from the archive, or leave out the DICOM results.",
        )
