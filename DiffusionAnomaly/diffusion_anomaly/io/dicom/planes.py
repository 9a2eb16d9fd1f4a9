"""Where each image of a DICOM file lies, what its stored numbers mean, and what tells it from others at its place.

A file of one image states this in its header, a multi-frame file in functional groups: those of the frame, or else
those that all frames share.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword

from ...errors import InputError
from ..geometry import MOST_SHEAR, check_spacing
from .headers import Header
from .kinds import KIND_TAGS, traits_of

# X-ray pictures: projections, of which many state no place in the body.
PROJECTIONS = frozenset({"CR", "DX", "MG", "PX", "IO", "RG", "XA", "RF"})
_DCM2NIIX = "Convert it with dcm2niix, and give the NIfTI file."
_EXPORT = "Export the series again from the archive, or convert it with dcm2niix."
_MOST_FRAMES = 100_000
_NO_AXES = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

# What tells images at one position apart, in the order in which volumes are counted: the keyword of a file of one
# image, and the sequence and keyword of a functional group.
_DISTINCTIONS: dict[str, tuple[str | int, str, str]] = {
    "acquisition number": ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    "echo time": ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    "temporal position": ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    "trigger time": ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "b-value": ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    "inversion time": ("InversionTime", "MRModifierSequence", "InversionTimes"),
}
_SIEMENS_B_VALUE = 0x0019100C
_SIEMENS_MOSAIC_COUNT = 0x0019100A
_SIEMENS_CSA_HEADER = 0x00291010
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")

# All that is read of a header while a folder is looked through.
HEADER_TAGS = [
    *(
        tag_for_keyword(keyword) or 0
        for keyword in (
            *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription"),
            *("SeriesNumber", "SeriesTime"),
            *("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID"),
            *("FrameOfReferenceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"),
            *("Rows", "Columns", "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing"),
            *("NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope"),
            *("RescaleIntercept", "ComplexImageComponent", "ConcatenationUID", "InConcatenationNumber"),
            *("InConcatenationTotalNumber", "SharedFunctionalGroupsSequence", "ImagesInAcquisition", "NumberOfSlices"),
            *(keyword for keyword, _, _ in _DISTINCTIONS.values() if isinstance(keyword, str)),
        )
    ),
    *(tag_for_keyword(name) or 0 if isinstance(name, str) else name for name in KIND_TAGS),
    0x00190010,
    _SIEMENS_B_VALUE,
    _SIEMENS_MOSAIC_COUNT,
]


@dataclass(frozen=True)
class Plane:
    """One image: a file's, or one frame of it.

    Attributes:
        path: the file.
        frame: number of the frame in it, from 0.
        uid: SOP instance UID, of a frame with its number; empty where the file states none.
        size: rows, columns.
        axes: Image Orientation (Patient): row direction, column direction.
        position: Image Position (Patient), mm, LPS: centre of the first pixel.
        spacing: mm between rows, between columns.
        thickness: of the slice in mm; None where it is not stated.
        distance: between slices as the header states it, in mm.
        slope, intercept: from stored numbers to values.
        distinctions: what tells it from other images at its position, by name.
        traits: what else it shares with the others of its volume, by name.
        indices: a frame's place in the dimensions of its file.
        number: of the image in its series and of the frame in its file.
        stack: which of several stacks in a file the frame belongs to.
        warnings: what had to be assumed.
    """

    path: Path
    frame: int
    uid: str
    size: tuple[int, int]
    axes: tuple[float, ...]
    position: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None
    distance: float | None
    slope: float
    intercept: float
    distinctions: tuple[tuple[str, float | str | None], ...]
    traits: tuple[tuple[str, float | str | None], ...]
    indices: tuple[float, ...]
    number: tuple[float, int]
    stack: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name, with the frame's number where it has several."""
        return f"{self.path.name}, frame {self.frame + 1}" if self.stack or self.frame else self.path.name

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.axes[:3], self.axes[3:])


def is_multiframe(header: Header) -> bool:
    """Whether a file holds several images or describes one in functional groups.

    Raises:
        InputError: when the number of frames is no number.
    """
    return frames_of(header) > 1 or "Enhanced" in header.sop_class.name


def frames_of(header: Header) -> int:
    """The number of images in a file.

    Raises:
        InputError: when it is no number above 0, or beyond all measure.
    """
    frames = header.integer("NumberOfFrames")
    if frames is None:
        return 1
    if not 1 <= frames <= _MOST_FRAMES:
        raise InputError(f"{header.path}: its NumberOfFrames is {frames}; expected 1 to {_MOST_FRAMES}.", _EXPORT)
    return frames


def plane_of(header: Header, alone: bool) -> Plane:
    """The image of a file that holds one.

    Args:
        header: the file's.
        alone: whether it is the only one; a projection may then lack its place in the body.

    Raises:
        InputError: when its size, place, pixel spacing or rescaling is missing or senseless.
    """
    _refuse_mosaic(header)
    projection = alone and header.code("Modality") in PROJECTIONS
    warnings: list[str] = []
    axes, position, spacing = _place(header, header, header, header, projection, warnings)
    image_type = [*filter(None, header.strings("ImageType")[2:]), *header.strings("ComplexImageComponent")]
    distinctions: list[tuple[str, float | str | None]] = []
    for name, (keyword, _, _) in _DISTINCTIONS.items():
        value = header.hint(keyword)
        if value is None and name == "b-value" and header.code(0x00190010).startswith("SIEMENS"):
            value = header.hint(_SIEMENS_B_VALUE, "IS")
        distinctions.append((name, value))
    distinctions.append(("image type", "\\".join(image_type) or None))
    number = header.hint("InstanceNumber")
    return Plane(
        path=header.path,
        frame=0,
        uid=header.code("SOPInstanceUID"),
        size=_size(header),
        axes=axes,
        position=position,
        spacing=spacing,
        thickness=header.hint("SliceThickness"),
        distance=header.hint("SpacingBetweenSlices"),
        slope=_slope([header]),
        intercept=_intercept([header]),
        distinctions=tuple(distinctions),
        traits=traits_of(header, None, image_type),
        indices=(),
        number=(-1.0 if number is None else number, 0),
        warnings=tuple(warnings),
    )


def planes_of(header: Header) -> list[Plane]:
    """The frames of a multi-frame file. The header has been read with its functional groups.

    Raises:
        InputError: when it has no functional groups, or one lacks a frame's place, spacing or rescaling.
    """
    _refuse_mosaic(header)
    path, frames, size = header.path, frames_of(header), _size(header)
    groups = header.items("PerFrameFunctionalGroupsSequence")
    shared = (header.items("SharedFunctionalGroupsSequence") or [None])[0]
    if not groups and not shared:
        raise InputError(f"{path} holds {frames} images and does not state where each lies in the body.", _DCM2NIIX)
    if len(groups) != frames and not (frames == 1 and not groups):
        raise InputError(
            f"{path} holds {frames} frames, and describes {len(groups)}.", "Export it again from the archive."
        )
    offset = (header.hint("ConcatenationFrameOffsetNumber") or 0.0) + 1e6 * (header.hint("InstanceNumber") or 0.0) * (
        "ConcatenationUID" not in header
    )

    uid = header.code("SOPInstanceUID")

    def plane(index: int, group: Header | None) -> Plane:
        @cache
        def item(sequence: str) -> Header | None:
            """The frame's own group, or else the one that all share."""
            for place in (group, shared):
                if place is not None and (found := place.items(sequence)):
                    return found[0]
            return None

        axes, position, spacing = _place(
            header,
            item("PlaneOrientationSequence"),
            item("PlanePositionSequence"),
            measures := item("PixelMeasuresSequence"),
            False,
            [],
            index,
        )
        transformation = item("PixelValueTransformationSequence")
        values = [place for place in (transformation, header) if place is not None]
        content = item("FrameContentSequence")
        return Plane(
            path=path,
            frame=index,
            uid=f"{uid}/{index}" if uid else "",
            size=size,
            axes=axes,
            position=position,
            spacing=spacing,
            thickness=measures.hint("SliceThickness") if measures else None,
            distance=measures.hint("SpacingBetweenSlices") if measures else None,
            slope=_slope(values),
            intercept=_intercept(values),
            distinctions=_frame_distinctions(item, image_type := _frame_type(item)),
            traits=traits_of(header, item, image_type),
            indices=_lenient(content, "DimensionIndexValues"),
            number=(offset, index),
            stack=(content.code("StackID") if content else "") or "1",
        )

    return [plane(index, groups[index] if groups else None) for index in range(frames)]


def _frame_type(item: Callable[[str], Header | None]) -> list[str]:
    kind = next((group for group in map(item, _FRAME_TYPES) if group), None)
    return [*filter(None, kind.strings("FrameType")[2:]), *kind.strings("ComplexImageComponent")] if kind else []


def _frame_distinctions(
    item: Callable[[str], Header | None], image_type: list[str]
) -> tuple[tuple[str, float | str | None], ...]:
    found: list[tuple[str, float | str | None]] = []
    for name, (_, sequence, keyword) in _DISTINCTIONS.items():
        group = item(sequence)
        found.append((name, group.hint(keyword) if group else None))
    found.append(("image type", "\\".join(image_type) or None))
    return tuple(found)


def _lenient(header: Header | None, keyword: str) -> tuple[float, ...]:
    try:
        return header.numbers(keyword) if header else ()
    except InputError:
        return ()


def _size(header: Header) -> tuple[int, int]:
    rows, columns = (header.integer(keyword) or 0 for keyword in ("Rows", "Columns"))
    if rows < 1 or columns < 1:
        raise InputError(f"{header.path} states {rows} rows and {columns} columns of pixels.", _EXPORT)
    return rows, columns


def _place(
    header: Header,
    orientation: Header | None,
    position: Header | None,
    measures: Header | None,
    projection: bool,
    warnings: list[str],
    frame: int | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Axes, position and spacing, from the header or the functional groups that state them."""
    what = str(header.path) if frame is None or frames_of(header) == 1 else f"{header.path}, frame {frame + 1},"

    def numbers(where: Header | None, keyword: str, count: int, meaning: str) -> tuple[float, ...]:
        values = where.numbers(keyword, count) if where else ()
        if not values and not projection:
            raise InputError(
                f"{what} does not state its {meaning} ({keyword}); a volume cannot be built without it.", _EXPORT
            )
        return values

    axes = numbers(orientation, "ImageOrientationPatient", 6, "orientation")
    place = numbers(position, "ImagePositionPatient", 3, "position")
    spacing = numbers(measures, "PixelSpacing", 2, "pixel spacing")
    if projection:
        if not (axes and place):
            axes, place = _NO_AXES, (0.0, 0.0, 0.0)
            warnings.append("The picture does not state where it lies in the body; its place is made up.")
        for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            if not spacing and (spacing := header.numbers(keyword, 2)):
                warnings.append(f"The pixel spacing is {keyword}'s: that of the detector or film, not of the body.")
        if not spacing:
            spacing = (1.0, 1.0)
            warnings.append("The picture does not state its pixel spacing; 1 mm is assumed, so sizes mean nothing.")
    check_spacing(np.array(spacing), what, "PixelSpacing")
    return _unit_axes(axes, what), place, spacing


def _unit_axes(axes: tuple[float, ...], what: str) -> tuple[float, ...]:
    row, column = np.array(axes[:3]), np.array(axes[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > MOST_SHEAR or abs(row @ column) > MOST_SHEAR:
        stated = ", ".join(f"{value:g}" for value in axes)
        raise InputError(
            f"{what}: its orientation (ImageOrientationPatient {stated}) is not of two directions at right angles.",
            _EXPORT,
        )
    return tuple(float(value) for value in (*row / lengths[0], *column / lengths[1]))


def _slope(places: Iterable[Header]) -> float:
    value, header = _rescale(places, "RescaleSlope")
    if value == 0 and header is not None:
        raise InputError(f"{header.path}: its RescaleSlope is 0, which leaves one value for all.", _EXPORT)
    return 1.0 if value is None else value


def _intercept(places: Iterable[Header]) -> float:
    return _rescale(places, "RescaleIntercept")[0] or 0.0


def _rescale(places: Iterable[Header], keyword: str) -> tuple[float | None, Header | None]:
    for header in places:
        if (value := header.number(keyword)) is not None:
            return value, header
    return None, None


def _refuse_mosaic(header: Header) -> None:
    """Refuse Siemens' picture of many slices: where each lies, only a private header says."""
    count = None
    if header.code(0x00190010).startswith("SIEMENS MR HEADER"):
        count = header.hint(_SIEMENS_MOSAIC_COUNT, "US")
    count = count or _csa_number(header.raw(_SIEMENS_CSA_HEADER), b"NumberOfImagesInMosaic")
    if "MOSAIC" in header.strings("ImageType") or (count or 0) > 1:
        raise InputError(
            f"{header.path} is a mosaic: {f'{count:g}' if count else 'many'} slices in one picture.", _DCM2NIIX
        )


def _csa_number(content: bytes, name: bytes) -> float | None:
    """The first number under a name in Siemens' private header (CSA): names of 64 bytes, then sizes, then items."""
    start = content.find(name + b"\0")
    if start < 0 or len(content) < start + 84 + 16:
        return None
    _, items = struct.unpack_from("<2i", content, start + 72)
    position = start + 84
    for _ in range(max(0, min(items, 6))):
        if len(content) < position + 16:
            return None
        lengths = struct.unpack_from("<4i", content, position)
        # The first version of the header counts from another length than the second.
        length = next((value for value in lengths[1::-1] if 0 < value <= 64), 0)
        text = content[position + 16 : position + 16 + length].split(b"\0")[0].strip()
        if text.isdigit():
            return float(text)
        position += 16 + (length + 3) // 4 * 4
    return None
