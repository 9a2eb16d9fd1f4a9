"""One DICOM file through ITK, with errors that name the file and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from ..errors import InputError, MemoryExhausted
from .reading import choose_frame


def read_file(path: Path, frame: int | None) -> tuple[sitk.Image, dict[str, str]]:
    """A single DICOM file as a float32 image, and `modality` and `description` where its header has them.

    Raises:
        InputError: when the file is in colour, or has several frames and none is chosen.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.ReadImageInformation()
    check_grey(reader, path)
    size = list(reader.GetSize())
    if any(extent > 1 for extent in size[4:]):
        raise InputError(
            f"{path} has {len(size)} dimensions ({'x'.join(map(str, size))}); expected 2, 3 or 4.",
            "Save one volume of it to a file.",
        )
    chosen = choose_frame(frame, size[3] if len(size) > 3 else 1, path)
    if len(size) > 3:
        more = [0] * (len(size) - 4)
        reader.SetExtractSize([*size[:3], 0, *more])
        reader.SetExtractIndex([0, 0, 0, chosen, *more])
    return reader.Execute(), describe_file(reader)


def check_grey(reader: sitk.ImageFileReader, path: Path) -> None:
    """Refuse colour, vector and complex pixels. The reader has read the header.

    Raises:
        InputError: naming what the file holds.
    """
    components = reader.GetNumberOfComponents()
    if components > 1:
        kind = "a colour image" if components in (3, 4) else "an image of vectors"
        raise InputError(
            f"{path} is {kind} ({components} values a pixel); expected one grey value.",
            "Give the scan itself, or convert it to one grey channel.",
        )
    if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError(f"{path} holds complex numbers; expected one grey value a voxel.", "Give the magnitude image.")


def check_grey_image(image: sitk.Image) -> None:
    """Refuse an image in memory that is no grey volume.

    Raises:
        InputError: for colour, vectors, complex numbers, and other than 2 or 3 dimensions.
    """
    is_complex = image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
    if image.GetNumberOfComponentsPerPixel() > 1 or is_complex or image.GetDimension() not in (2, 3):
        raise InputError(
            f"The image has {image.GetDimension()} dimensions and pixels of {image.GetPixelIDTypeAsString()}; "
            "expected 2 or 3 dimensions and one grey value.",
            "Give one grey volume.",
        )


def describe_file(reader: sitk.ImageFileReader) -> dict[str, str]:
    """Modality and description out of a DICOM header. Nothing that names a patient."""
    keys = (("modality", "0008|0060"), ("description", "0008|103e"))
    return {
        name: text
        for name, key in keys
        if reader.HasMetaDataKey(key) and (text := reader.GetMetaData(key).strip().strip("\0"))
    }


@contextmanager
def itk_errors(path: Path) -> Iterator[None]:
    """Turn what ITK throws while it reads `path` into an error for people, its warnings silenced."""
    try:
        with quiet():
            yield
    except RuntimeError as error:
        words = last_words(error)
        if "orthonormal" in str(error):
            raise InputError(
                f"{path} has axes that are not at right angles (a sheared sform).",
                "Resample it to straight axes, for example by hardening its transform in 3D Slicer.",
            ) from error
        if "ailed to allocate memory" in str(error):
            raise MemoryExhausted(f"{path} does not fit into memory.", "Close other programs.") from error
        if "determine ImageIO" in str(error):
            raise InputError(
                f"{path} is in no image format that can be read, or is damaged.",
                "Give NIfTI, NRRD, MetaImage or a folder with one DICOM series.",
            ) from error
        raise InputError(f"{path} could not be read: {words}.", "Copy or download it again.") from error
    except OSError as error:
        raise InputError(
            f"{path} could not be read: {error.strerror or error}.",
            "Check the disk or the network drive it is on.",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """ITK's warnings off: what matters in them is raised as an error here."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def last_words(error: RuntimeError) -> str:
    """The line of an ITK error that says something: the last, without the object's address and full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition("): ")[2].rstrip(".") or lines[-1].rstrip(".") if lines else "unknown ITK error"
