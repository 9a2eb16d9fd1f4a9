"""The stored numbers of a DICOM file's images, and the values that they stand for.

Sizes that the header states are held against the bytes that are there before anything is allocated: against the length
of plain pixels, and against the size that each compressed image states itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import uid as syntax
from pydicom.encaps import encapsulate, generate_frames, parse_basic_offsets
from pydicom.pixels import get_decoder

from ...errors import InputError
from .decompression import SYNTAXES, Decompressor
from .headers import PARSE_ERRORS, PIXEL_TAGS, UNDEFINED_LENGTH, Header, pixel_tag
from .planes import Plane, frames_of

_PLAIN = (
    syntax.ImplicitVRLittleEndian,
    syntax.ExplicitVRLittleEndian,
    syntax.ExplicitVRBigEndian,
    syntax.DeflatedExplicitVRLittleEndian,
)
_COMPRESSED = (syntax.RLELossless, *SYNTAXES)
# The markers that begin a frame of each kind of JPEG.
_FRAME_MARKERS = {
    syntax.JPEGBaseline8Bit: (0xC0,),
    syntax.JPEGExtended12Bit: (0xC0, 0xC1),
    syntax.JPEGLossless: (0xC3,),
    syntax.JPEGLosslessSV1: (0xC3,),
    syntax.JPEGLSLossless: (0xF7,),
    syntax.JPEGLSNearLossless: (0xF7,),
}
# Compressed images may swell to this many bytes, or by this factor: an empty slice shrinks to almost nothing.
_MOST_DECODED, _MOST_SWELLING = 1 << 28, 1000
# Values that have a unit keep it, however they are to be shown.
_WITH_UNITS = frozenset({"CT", "PT"})
_GREY = "Give the scan itself, or convert it to one grey channel."
_EXPORT = "Copy or export it again."
_CONVERT = "Convert it with dcm2niix, or export it from the archive without compression."


@dataclass(frozen=True)
class _Format:
    """How pixels are stored."""

    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    kind: str  # of float pixels, else empty

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.allocated // 8


class Pixels:
    """The images of a file.

    Args:
        header: of the whole file.
        decompressor: decodes its images, where they are compressed.

    Raises:
        InputError: when they are no grey numbers, when there are fewer bytes than the header states, or when their
            compression cannot be read.
    """

    def __init__(self, header: Header, decompressor: Decompressor) -> None:
        self._header, self._decompressor = header, decompressor
        self._format = _format(header)
        tag = pixel_tag(header)
        element: Any = header.element(tag) if tag else None
        self._syntax = header.transfer_syntax
        self.warnings: list[str] = []
        self._inverted = _inverted(header, self.warnings)
        if element is None:
            raise InputError(f"{header.path} holds no pixels.", _EXPORT)
        content = bytes(element.value or b"")
        if self._syntax in _PLAIN and element.length != UNDEFINED_LENGTH:
            self._check_plain(len(content))
            # As 16-bit words from the other end, 8-bit pixels come in swapped pairs.
            swapped = self._syntax == syntax.ExplicitVRBigEndian and self._format.allocated == 8 and element.VR == "OW"
            self._content: bytes | Sequence[bytes] = (
                np.frombuffer(content[: len(content) // 2 * 2], "u2").byteswap().tobytes() if swapped else content
            )
        elif self._syntax in _COMPRESSED and element.length == UNDEFINED_LENGTH:
            self._content = self._compressed_frames(content)
        elif self._syntax in _PLAIN or self._syntax in _COMPRESSED:
            raise InputError(
                f"{header.path}: its transfer syntax ({self._syntax.name}) does not fit the form of its pixels.",
                _EXPORT,
            )
        else:
            kind = "a video" if any(word in self._syntax.name for word in ("MPEG", "HEVC")) else "compressed"
            raise InputError(
                f"{header.path} is {kind} in a way that is not read here ({self._syntax.name or self._syntax}).",
                _CONVERT,
            )

    def values(self, plane: Plane) -> np.ndarray:
        """The values of one image: ``(rows, columns)``, float32.

        Raises:
            InputError: when its compressed content is damaged.
        """
        if isinstance(self._content, bytes):
            stored, bits = self._plain(plane.frame), self._format.stored
        else:
            stored, bits = self._decoded(plane.frame)
        if not self._format.kind:
            stored = self._significant(stored, bits)
        if self._inverted:
            stored = -stored if self._format.kind else _complement(stored, self._format)
        if (plane.slope, plane.intercept) == (1.0, 0.0):
            return stored.astype(np.float32)
        return (stored * plane.slope + plane.intercept).astype(np.float32)

    def _check_plain(self, found: int) -> None:
        form = self._format
        if found < form.frame_bytes * form.frames:
            raise InputError(
                f"{self._header.path} holds {found} bytes of pixels; its header promises "
                f"{form.frame_bytes * form.frames} ({form.columns} x {form.rows} x {form.frames}, "
                f"{form.allocated} bits each).",
                _EXPORT,
            )

    def _plain(self, frame: int) -> np.ndarray:
        form = self._format
        order = ">" if self._syntax == syntax.ExplicitVRBigEndian else "<"
        kind = form.kind or f"{'i' if form.signed else 'u'}{form.allocated // 8}"
        pixels = np.frombuffer(
            self._content,  # type: ignore[call-overload]
            order + kind,
            form.rows * form.columns,
            frame * form.frame_bytes,
        )
        return pixels.reshape(form.rows, form.columns).astype(kind)

    def _significant(self, stored: np.ndarray, bits: int) -> np.ndarray:
        """The bits that count, their sign extended: above them, old files keep overlays."""
        form = self._format
        plain = isinstance(self._content, bytes) or self._syntax == syntax.RLELossless
        shift = form.high_bit + 1 - form.stored if plain else 0
        stored = (stored.astype(np.int64) >> shift) & ((1 << bits) - 1)
        return stored - ((stored >> (bits - 1)) << bits) if form.signed else stored

    def _compressed_frames(self, content: bytes) -> Sequence[bytes]:
        form, path = self._format, self._header.path
        total = form.frame_bytes * form.frames
        if total > max(_MOST_DECODED, _MOST_SWELLING * len(content)):
            raise InputError(
                f"{path} holds {len(content)} bytes of compressed pixels; its header promises {total} "
                f"({form.columns} x {form.rows} x {form.frames}), which cannot be.",
                _EXPORT,
            )
        offsets = [self._header.raw(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        try:
            parse_basic_offsets(content)
            frames = list(
                generate_frames(
                    content,
                    number_of_frames=form.frames,
                    extended_offsets=(offsets[0], offsets[1]) if all(offsets) else None,
                )
            )
        except PARSE_ERRORS as error:
            raise self._damaged() from error
        if len(frames) != form.frames:
            raise InputError(f"{path} holds {len(frames)} of the {form.frames} frames that it promises.", _EXPORT)
        return frames

    def _decoded(self, frame: int) -> tuple[np.ndarray, int]:
        """Stored numbers and their bits: an image that says it has fewer than the header is right about its sign."""
        form, coded = self._format, self._content[frame]
        assert isinstance(coded, bytes)
        bits = form.stored if self._syntax == syntax.RLELossless else self._check_coded(coded)
        try:
            if self._syntax == syntax.RLELossless:
                pixels = _run_lengths(coded, form)
            else:
                pixels = self._decompressor.decode(self._syntax, coded, form.rows, form.columns, bits, form.signed)
        except PARSE_ERRORS as error:
            raise self._damaged() from error
        if pixels.shape != (form.rows, form.columns):
            raise self._damaged()
        return pixels, min(bits, form.stored)

    def _check_coded(self, coded: bytes) -> int:
        """Hold a JPEG image's own size against the header's, and see that it has an end. Returns its bits."""
        form, path = self._format, self._header.path
        size = _coded_size(coded, self._syntax)
        if size is None:
            raise self._damaged()
        rows, columns, components, bits = size
        if (rows, columns, components) != (form.rows, form.columns, 1):
            raise InputError(
                f"{path} holds a compressed image of {columns} x {rows} pixels with {components} values each; "
                f"its header promises {form.columns} x {form.rows} with 1.",
                _EXPORT,
            )
        if bits > form.allocated:
            raise InputError(
                f"{path} holds a compressed image of {bits} bits; its header promises {form.allocated}.", _EXPORT
            )
        if b"\xff\xd9" not in coded.rstrip(b"\0")[-4:]:
            raise InputError(f"{path} is cut short: a compressed image in it has no end.", _EXPORT)
        return bits

    def _damaged(self) -> InputError:
        return InputError(f"{self._header.path} is damaged: its compressed pixels cannot be decoded.", _EXPORT)


def _format(header: Header) -> _Format:
    path = header.path
    if (samples := header.integer("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{path} is a colour image ({samples} values a pixel); expected one grey value.", _GREY)
    photometric = header.code("PhotometricInterpretation")
    if photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"{path} is a colour image ({photometric}); expected one grey value.", _GREY)
    if "ModalityLUTSequence" in header:
        raise InputError(f"{path} has a table of values (Modality LUT), which is not read.", _CONVERT)
    name = PIXEL_TAGS.get(pixel_tag(header) or 0, "PixelData")
    kind = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}.get(name, "")
    allocated = int(kind[1]) * 8 if kind else header.integer("BitsAllocated") or 0
    stored = allocated if kind else header.integer("BitsStored") or allocated
    high_bit = header.integer("HighBit")
    high_bit = stored - 1 if high_bit is None or kind else high_bit
    if allocated not in ((32, 64) if kind else (8, 16, 32)) or not 1 <= stored <= high_bit + 1 <= allocated:
        raise InputError(
            f"{path} keeps {stored} bits, the highest number {high_bit}, in {allocated}; "
            "expected 8, 16 or 32 bits that hold them.",
            "Give the scan itself, or export it again from the archive.",
        )
    return _Format(
        rows=header.integer("Rows") or 0,
        columns=header.integer("Columns") or 0,
        frames=frames_of(header),
        allocated=allocated,
        stored=stored,
        high_bit=high_bit,
        signed=header.integer("PixelRepresentation") == 1,
        kind=kind,
    )


def _inverted(header: Header, warnings: list[str]) -> bool:
    """Whether less is brighter. Then the values are turned, so that more is brighter as in all other scans."""
    if header.code("PhotometricInterpretation") != "MONOCHROME1":
        return False
    if header.code("Modality") in _WITH_UNITS:
        warnings.append("The scan asks to be shown inverted (MONOCHROME1); its values are read as they are.")
        return False
    warnings.append("The scan is stored inverted (MONOCHROME1); its values were turned, so that more is brighter.")
    return True


def _complement(stored: np.ndarray, form: _Format) -> np.ndarray:
    return -1 - stored if form.signed else (1 << form.stored) - 1 - stored


def _run_lengths(coded: bytes, form: _Format) -> np.ndarray:
    options: dict[str, Any] = {
        "transfer_syntax_uid": syntax.RLELossless,
        "rows": form.rows,
        "columns": form.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": form.allocated,
        "bits_stored": form.stored,
        "pixel_representation": int(form.signed),
        "pixel_keyword": "PixelData",
    }
    decoder = get_decoder(syntax.RLELossless)
    return decoder.as_array(
        encapsulate([coded], has_bot=False), index=0, raw=True, decoding_plugin="pydicom", **options
    )[0]


def _coded_size(coded: bytes, kind: syntax.UID) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and bits as a compressed image states them; None where it is not of its kind."""
    try:
        if kind in (syntax.JPEG2000Lossless, syntax.JPEG2000):
            if coded[:4] != b"\xff\x4f\xff\x51":  # SIZ follows the start of the codestream
                return None
            width, height, left, top = struct.unpack_from(">4I", coded, 8)
            components, depth = struct.unpack_from(">HB", coded, 40)
            return height - top, width - left, components, (depth & 0x7F) + 1
        if coded[:2] != b"\xff\xd8":
            return None
        position = 2
        while coded[position] == 0xFF:
            marker = coded[position + 1]
            if marker == 0xFF:
                position += 1
            elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                bits, rows, columns, components = struct.unpack_from(">BHHB", coded, position + 4)
                return (rows, columns, components, bits) if marker in _FRAME_MARKERS[kind] else None
            elif marker in (0x01, *range(0xD0, 0xD9)):
                position += 2
            else:
                position += 2 + struct.unpack_from(">H", coded, position + 2)[0]
    except (IndexError, struct.error):
        return None
    return None
