"""Whether the images of a volume are of one kind: one echo, one inversion time, magnitude or phase.

An export may put different images under one series UID, each at a position of its own. They stack without a gap, and
half of such a head looks like disease. What makes another image of the same tissue is refused; what only describes it
is a warning. Numbers that scanners write with jitter are compared with a tolerance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...text import counted
from .headers import Header

if TYPE_CHECKING:
    from .planes import Plane

Value = float | str | None

# Share by which numbers of one kind may differ; and by how much whatever they are.
_JITTER = 0.05
_LISTED, _LONGEST = 6, 40


@dataclass(frozen=True)
class _Trait:
    """What images of one volume share.

    Attributes:
        keyword: of a file of one image.
        group: sequence and keyword of a functional group; None where the header of the file says it for all frames.
        number: whether it is one.
        refused: whether a difference is refused, or else a warning.
        least: difference of numbers that is none.
        absent: what it means that an image states nothing.
    """

    keyword: str
    group: tuple[str, str] | None = None
    number: bool = False
    refused: bool = False
    least: float = 0.0
    absent: Value = None


# The first three are `Plane.distinctions` too, which tell images at one position apart.
_TRAITS = {
    "echo time": _Trait("", number=True, refused=True, least=0.1),  # ms
    "inversion time": _Trait("", number=True, refused=True, least=5.0, absent=0.0),  # ms
    "b-value": _Trait("", number=True, refused=True, least=20.0, absent=0.0),  # s/mm²
    "image part": _Trait("", refused=True),
    "image type": _Trait(""),
    "scanning sequence": _Trait("ScanningSequence", refused=True),
    "reconstruction kernel": _Trait(
        "ConvolutionKernel", ("CTReconstructionSequence", "ConvolutionKernel"), refused=True
    ),
    "unit": _Trait("Units", refused=True),
    # It follows the heart where the scan is gated.
    "repetition time": _Trait(
        "RepetitionTime", ("MRTimingAndRelatedParametersSequence", "RepetitionTime"), number=True, least=1.0
    ),
    "flip angle": _Trait("FlipAngle", ("MRTimingAndRelatedParametersSequence", "FlipAngle"), number=True, least=0.5),
    "sequence name": _Trait("SequenceName"),
    "contrast agent": _Trait("ContrastBolusAgent"),
    "series description": _Trait("SeriesDescription"),
    "acquisition date": _Trait("AcquisitionDate", ("FrameContentSequence", "FrameAcquisitionDateTime")),
}
_GE, _GE_PART = 0x00430010, 0x0043102F
KIND_TAGS: list[str | int] = [*(trait.keyword for trait in _TRAITS.values() if trait.keyword), _GE, _GE_PART]

# Values of Image Type and Complex Image Component that name another image of the same tissue.
_PARTS = {
    **dict.fromkeys(("M", "MAGNITUDE"), "magnitude"),
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE_MAP"), "phase"),
    **dict.fromkeys(("R", "REAL"), "real"),
    **dict.fromkeys(("I", "IMAGINARY"), "imaginary"),
    **dict.fromkeys(("W", "WATER"), "water"),
    **dict.fromkeys(("F", "FAT"), "fat"),
    **dict.fromkeys(("IP", "IN_PHASE"), "in phase"),
    **dict.fromkeys(("OP", "OPP_PHASE", "OUT_PHASE", "OPPOSED_PHASE"), "opposed phase"),
    **{word: word for word in ("ADC", "FA", "TRACEW", "CBF", "CBV", "MTT", "TTP", "TMAX", "SWI", "MNIP")},
}
# Philips names the sequence after the letter: M_FFE, R_IR.
_PHILIPS = re.compile(r"([MRI])_(FFE|SE|IR|TSE|EPI|PCA|B0|B1)")


def traits_of(
    header: Header, item: Callable[[str], Header | None] | None, image_type: Sequence[str]
) -> tuple[tuple[str, Value], ...]:
    """What an image must share with the others of its volume, beside what `Plane.distinctions` hold.

    Args:
        header: of the file.
        item: gives a functional group of the frame; None for a file of one image.
        image_type: values from the third on, and the complex component.
    """
    found: list[tuple[str, Value]] = [("image part", _part(header, image_type))]
    for name, trait in _TRAITS.items():
        if not trait.keyword:
            continue
        source, keyword = header, trait.keyword
        if item and trait.group and (group := item(trait.group[0])):
            source, keyword = group, trait.group[1]
        if trait.number:
            value: Value = source.hint(keyword)
        elif name == "acquisition date":
            value = source.code(keyword)[:8]
        elif name in ("series description", "contrast agent"):
            value = source.text(keyword)
        else:
            value = "\\".join(sorted(source.strings(keyword)))
        found.append((name, None if value == "" else value))
    return tuple(found)


def check_kinds(stack: Sequence[Plane], where: Path) -> list[str]:
    """Refuse a volume of images of several kinds.

    Args:
        stack: its images.
        where: file or folder, for messages.

    Returns:
        Warnings, of differences that need not be another kind.

    Raises:
        InputError: with the values, and how many images have each.
    """
    rows = [dict((*plane.distinctions, *plane.traits)) for plane in stack]
    warnings = []
    for name, trait in _TRAITS.items():
        values = [trait.absent if row.get(name) is None else row.get(name) for row in rows]
        if len(set(values)) == 1:
            continue
        kinds = list(_numbers(values, trait.least)) if trait.number else list(_texts(values))
        if len(kinds) == 1 or (name == "acquisition date" and _of_one_night(values)):
            continue
        listed = ", ".join(
            f"{_shown(values[kind[0]])} ({counted(len(kind), 'image')}, such as {stack[kind[0]].name})"
            for kind in kinds[:_LISTED]
        )
        more = f" and {len(kinds) - _LISTED} more" if len(kinds) > _LISTED else ""
        if trait.refused and sum(values[kind[0]] is not None for kind in kinds) > 1:
            raise InputError(
                f"{where} mixes images of different {name} in one volume: {listed}{more}.",
                "Put the images of each kind into a folder of its own, or export the series again.",
            )
        warnings.append(f"The volume's images differ in {name}: {listed}{more}; do all of them belong to it?")
    return warnings


def _part(header: Header, image_type: Sequence[str]) -> str | None:
    words = {word.upper() for word in image_type}
    words = {match[1] if (match := _PHILIPS.fullmatch(word)) else word for word in words}
    parts = {_PARTS[word] for word in words if word in _PARTS}
    if not parts and header.code(_GE).startswith("GEMS_PARM"):
        number = header.hint(_GE_PART, "SS")
        parts = {part for code, part in enumerate(("magnitude", "phase", "real", "imaginary")) if code == number}
    return " ".join(sorted(parts)) or None


def _numbers(values: Sequence[Value], least: float) -> Iterator[list[int]]:
    """Indices of numbers that are alike, in ascending order; what is not stated last."""
    numbers = sorted((value, index) for index, value in enumerate(values) if isinstance(value, float))
    kind: list[int] = []
    first = 0.0
    for value, index in numbers:
        if kind and value - first > max(least, _JITTER * abs(value)):
            yield kind
            kind = []
        if not kind:
            first = value
        kind.append(index)
    yield from filter(None, [kind, [index for index, value in enumerate(values) if value is None]])


def _texts(values: Sequence[Value]) -> Iterator[list[int]]:
    for text in dict.fromkeys(values):
        yield [index for index, value in enumerate(values) if value == text]


def _of_one_night(values: Sequence[Value]) -> bool:
    """Whether dates are those before and after one midnight, or of images that state none."""
    try:
        dates = [date(int(text[:4]), int(text[4:6]), int(text[6:8])) for text in values if isinstance(text, str)]
    except ValueError:
        return False
    return (max(dates) - min(dates)).days <= 1


def _shown(value: Value) -> str:
    return "none" if value is None else value[:_LONGEST] if isinstance(value, str) else f"{value:g}"
