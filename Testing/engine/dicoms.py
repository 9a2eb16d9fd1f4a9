"""DICOM files made element by element, for readers of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
AXES = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SERIES = "1.2.826.0.1.3680043.2.1125.77"


def rounded(values: Sequence[float] | np.ndarray) -> list[str]:
    """As decimal strings, which have at most 16 letters."""
    return [f"{value:.10g}"[:16] for value in np.asarray(values, float).ravel()]


def voxels(shape: tuple[int, ...] = (4, 5, 6), seed: int = 0, most: int = 900) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, most, shape).astype(np.uint16)


def image(pixels: np.ndarray, sop_class: str = MR, **elements: Any) -> Dataset:
    """What all images have in common: ``pixels`` are ``(rows, columns)`` or ``(frames, rows, columns)``."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = sop_class, generate_uid()
    data.Modality, data.SeriesDescription, data.ImageType = "MR", "FLAIR axial", ["ORIGINAL", "PRIMARY", "M"]
    data.PatientID, data.PatientName = "7", "Secret^Name"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.4", SERIES
    data.FrameOfReferenceUID = "1.2.3.5"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    kind = pixels.dtype
    if kind.kind == "f":
        data.add_new(0x7FE00008 if kind.itemsize == 4 else 0x7FE00009, "OF" if kind.itemsize == 4 else "OD", b"")
        data[0x7FE00008 if kind.itemsize == 4 else 0x7FE00009].value = pixels.tobytes()
        data.BitsAllocated = kind.itemsize * 8
    else:
        data.BitsAllocated = data.BitsStored = kind.itemsize * 8
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(kind.kind == "i")
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        data["PixelData"].VR = "OW" if kind.itemsize > 1 else "OB"
    return changed(data, **elements)


def changed(data: Dataset, **elements: Any) -> Dataset:
    """The same data set with elements set, or taken out where the value is None."""
    for name, value in elements.items():
        if value is not None:
            setattr(data, name, value)
        elif name in data:
            delattr(data, name)
    return data


def classic(
    pixels: np.ndarray,
    *,
    axes: Sequence[float] = AXES,
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    spacing: Sequence[float] = (1.5, 1.25),
    step: float = 3.0,
    **elements: Any,
) -> list[Dataset]:
    """A file a slice of ``(slices, rows, columns)``, from below."""
    normal = np.cross(axes[:3], axes[3:])
    return [
        image(
            plane,
            **{
                "ImageOrientationPatient": rounded(axes),
                "ImagePositionPatient": rounded(np.array(origin) + k * step * normal),
                "PixelSpacing": rounded(spacing),
                "SliceThickness": f"{step:.10g}",
                "InstanceNumber": str(k + 1),
                **elements,
            },
        )
        for k, plane in enumerate(pixels)
    ]


def enhanced(
    pixels: np.ndarray,
    positions: Sequence[Sequence[float]] | np.ndarray,
    *,
    axes: Sequence[float] = AXES,
    spacing: Sequence[float] = (1.5, 1.25),
    frame: Callable[[int, Dataset], None] | None = None,
    **elements: Any,
) -> Dataset:
    """A multi-frame image, a position a frame; ``frame`` adds to a frame's functional groups."""
    data = image(pixels, ENHANCED_MR, NumberOfFrames=str(len(pixels)))
    shared = Dataset()
    shared.PixelMeasuresSequence = [with_elements(PixelSpacing=rounded(spacing), SliceThickness="3")]
    shared.PlaneOrientationSequence = [with_elements(ImageOrientationPatient=rounded(axes))]
    data.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for index, position in enumerate(positions):
        group = Dataset()
        group.FrameContentSequence = [with_elements(StackID="1")]
        group.PlanePositionSequence = [with_elements(ImagePositionPatient=rounded(position))]
        if frame is not None:
            frame(index, group)
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = Items(groups)
    return changed(data, **elements)


def with_elements(**elements: Any) -> Dataset:
    return changed(Dataset(), **elements)


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write(folder: Path, *series: list[Dataset]) -> Path:
    """Files under names that do not follow the order of the slices."""
    for number, files in enumerate(series):
        for k, data in enumerate(files):
            save(data, folder / f"{(k * 7 + 3) % 97:02d}-{number}.dcm")
    return folder


def compressed(data: Dataset, syntax: int, path: Path) -> Path:
    """Through GDCM, which knows the syntax by its number."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(save(data, path.with_suffix(".plain"))))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    path.with_suffix(".plain").unlink()
    return path
