"""2-D pictures: PNG, JPEG, TIFF and BMP. They hold grey values and nothing that says where these lie."""

from __future__ import annotations

import logging
import warnings
from io import BytesIO

import numpy as np

from ..errors import InputError
from .content import COPY_AGAIN, ScanFile
from .geometry import Geometry
from .reading import Reading, as_float32, choose_frame

KINDS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP"}
MOST_PIXELS = 1 << 26  # 8192 x 8192
MOST_BYTES = 1 << 30
_GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_LSM_TAG = 34412


def picture_kind(head: bytes) -> str | None:
    """The format of a picture by its first bytes."""
    return next((kind for magic, kind in KINDS.items() if head.startswith(magic)), None)


def read_picture(file: ScanFile, kind: str, frame: int | None) -> Reading:
    """Read a grey picture as a slice 1 mm thick, its pixels 1 mm wide.

    Args:
        file: at its beginning.
        kind: "PNG", "JPEG", "TIFF" or "BMP".
        frame: as for a scan; a picture has one.

    Raises:
        InputError: when it is damaged, too large, in colour, or has several pages.
    """
    from PIL import Image

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # it prints what is raised here too
    if file.size > MOST_BYTES:
        raise InputError(f"{file.what} is no picture of a scan: it has {file.size:,} bytes.", "Give a smaller one.")
    content = b"".join(file.chunks())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if kind == "PNG":  # compares the checksum of each part, which decoding does not
                Image.open(BytesIO(content), formats=[kind]).verify()
            picture = Image.open(BytesIO(content), formats=[kind])
            if picture.width * picture.height > MOST_PIXELS:
                raise InputError(
                    f"{file.what}: its header states {picture.width} x {picture.height} pixels.",
                    f"Give a picture of at most {MOST_PIXELS:,} pixels.",
                )
            _check_pages(picture, file.what)
            values = _grey(picture, file.what)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever the bytes lead them to
        raise InputError(f"{file.what} is a damaged {kind} picture, or is cut short.", COPY_AGAIN) from error
    choose_frame(frame, 1, file.what)
    geometry = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return Reading(
        as_float32(values[np.newaxis]),
        geometry,
        2,
        {},
        ("A picture states no voxel size and no orientation; 1 mm was taken, so no volume means anything.",),
    )


def _check_pages(picture, what: str) -> None:
    if _LSM_TAG in getattr(picture, "tag_v2", {}):
        raise InputError(f"{what} is an LSM file of a microscope, no scan.", "Give NIfTI, NRRD, MetaImage or DICOM.")
    try:
        picture.seek(1)  # counting them takes the square of their number
    except EOFError:
        return
    raise InputError(
        f"{what} has several pages; expected one.", "Save one page to a file, or the whole as NIfTI, NRRD or MetaImage."
    )


def _grey(picture, what: str) -> np.ndarray:
    """The grey values of a picture, also of one that stores them as equal colours."""
    if picture.mode in _GREY:
        return np.asarray(picture).astype(np.float32) if picture.mode == "1" else np.asarray(picture)
    channels = np.asarray(picture.convert("RGBA"))
    colours, opacity = channels[..., :3], channels[..., 3]
    if picture.mode not in ("P", "PA", "LA", "La", "RGB", "RGBA", "RGBX") or (np.ptp(colours, axis=-1) != 0).any():
        raise InputError(
            f"{what} is a colour image ({len(picture.getbands())} values a pixel); expected one grey value.",
            "Give the scan itself, or convert it to one grey channel.",
        )
    if (opacity != 255).any():
        raise InputError(f"{what} is partly transparent; expected one grey value.", "Save it without transparency.")
    return colours[..., 0]
