"""A folder of DICOM files as one volume.

Every header is read once and decides everything: which series a file belongs to, and where its image lies. ITK's own
lists of series open each file once for the list and once more for each series in the folder. Nor is the stack left to
ITK, which stacks whatever it is given, and turns a missing slice, a tilted gantry or two time points into a wrong
geometry with at most a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from .itk import check_grey, describe_file, read_file
from .reading import choose_frame

# Named, since ITK's search for the right reader takes a file without the 128 bytes of preamble for no image.
_IMAGE_IO = "GDCMImageIO"
# Positions in DICOM are decimal strings, often rounded to 0.001 mm or less.
_SAME_POSITION_MM = 0.01
# Share of the slice spacing by which a gap, or of a voxel by which the stack's sideways drift, may be off.
_GAP_TOLERANCE = 0.1


@dataclass(frozen=True)
class _File:
    """An image file and its header."""

    path: Path
    header: sitk.ImageFileReader

    def value(self, key: str) -> str:
        """What a tag holds; empty where it is missing."""
        return self.header.GetMetaData(key).strip(" \0") if self.header.HasMetaDataKey(key) else ""


@dataclass(frozen=True)
class _Slice:
    """What one file's header says about its place."""

    path: Path
    size: tuple[int, ...]
    axes: tuple[float, ...]  # Image Orientation (Patient): row direction, column direction
    position: tuple[float, ...]  # Image Position (Patient), mm, LPS
    number: int

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.axes[:3], self.axes[3:])

    @property
    def height(self) -> float:
        """Position along the slice normal in mm."""
        return float(self.normal @ self.position)


def read_series(folder: Path, series: str | None, frame: int | None) -> tuple[sitk.Image, list[Path], dict[str, str]]:
    """Read one series of a folder as a float32 volume.

    Args:
        folder: Holds the files themselves; folders inside it are not searched.
        series: Series instance UID, or description where only one series has it. Needed when there are
        several.
        frame: Which volume, when the series holds several images at each position, in order of instance
        number.

    Returns:
        The image, its files in slice order, and its modality and description.

    Raises:
        InputError: no DICOM, several series, or images that are no regular stack.
    """
    files = _choose_series(folder, series)
    if len(files) == 1:
        image, metadata = read_file(files[0].path, frame)
        return image, [files[0].path], metadata
    for file in files:
        check_grey(file.header, file.path)
    stack = _choose_frame([_slice(file) for file in files], frame, folder)
    image = _read_stack(stack, folder)
    return image, [item.path for item in stack], describe_file(files[0].header)


def _choose_series(folder: Path, series: str | None) -> list[_File]:
    found = _find_series(folder)
    if not found:
        inside = sorted(item.name for item in folder.iterdir())
        content = f"{len(inside)} entries, such as {', '.join(inside[:3])}" if inside else "nothing"
        raise InputError(
            f"{folder} holds no DICOM image; found {content}.",
            "Give a scan file, or the folder that holds the DICOM files themselves.",
        )
    descriptions = {uid: describe_file(files[0].header).get("description", "") for uid, files in found.items()}
    named = "; ".join(
        f"{uid} ({descriptions[uid] or 'no description'}, {len(files)} image{'s' * (len(files) > 1)})"
        for uid, files in found.items()
    )
    if series is None:
        if len(found) > 1:
            raise InputError(
                f"{folder} holds {len(found)} DICOM series: {named}.", "Choose one with --series and its UID."
            )
        return next(iter(found.values()))
    chosen = [uid for uid in found if uid == series] or [uid for uid in found if descriptions[uid] == series]
    if len(chosen) != 1:
        count = "no series" if not chosen else f"{len(chosen)} series"
        raise InputError(
            f"{folder} holds {count} {series!r}. It holds: {named}.", "Choose one with --series and its UID."
        )
    return found[chosen[0]]


def _find_series(folder: Path) -> dict[str, list[_File]]:
    """The folder's image files by series instance UID, both in order. Whatever else lies there is passed over."""
    found: dict[str, list[_File]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():  # hidden ones are what file managers leave behind
            continue
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO(_IMAGE_IO)
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # no DICOM, or one without an image
            continue
        file = _File(path, reader)
        found.setdefault(file.value("0020|000e"), []).append(file)
    return dict(sorted(found.items()))


def _slice(file: _File) -> _Slice:
    def numbers(key: str, count: int, meaning: str) -> tuple[float, ...]:
        text = file.value(key)
        values = tuple(float(part) for part in text.split("\\") if part.strip())
        if len(values) != count:
            raise InputError(
                f"{file.path} does not state its {meaning}; a volume cannot be built without it.",
                "Export the series again from the archive, or convert it with dcm2niix.",
            )
        return values

    number = file.value("0020|0013")
    return _Slice(
        file.path,
        file.header.GetSize()[:2],
        numbers("0020|0037", 6, "orientation"),
        numbers("0020|0032", 3, "position"),
        int(number) if number.lstrip("+-").isdigit() else 0,
    )


def _choose_frame(slices: list[_Slice], frame: int | None, folder: Path) -> list[_Slice]:
    """One image at each position, in ascending order along the slice normal."""
    first = slices[0]
    for item in slices:
        if item.size != first.size or not np.allclose(item.axes, first.axes, atol=1e-3):
            raise InputError(
                f"{folder} mixes images of different size or orientation in one series: "
                f"{first.path.name} and {item.path.name}.",
                "Remove the ones that do not belong to the volume, such as a localiser.",
            )
    places: list[list[_Slice]] = []
    for item in sorted(slices, key=lambda item: item.height):
        if places and item.height - places[-1][0].height < _SAME_POSITION_MM:
            places[-1].append(item)
        else:
            places.append([item])
    counts = {len(place) for place in places}
    if len(counts) > 1:
        raise InputError(
            f"{folder} holds {min(counts)} to {max(counts)} images at a position; expected the same number "
            f"everywhere ({len(slices)} images, {len(places)} positions).",
            "Images are missing or doubled: export the series again.",
        )
    chosen = choose_frame(frame, counts.pop(), folder)
    return [sorted(place, key=lambda item: item.number)[chosen] for place in places]


def _read_stack(stack: list[_Slice], folder: Path) -> sitk.Image:
    heights = np.array([item.height for item in stack])
    gaps = np.diff(heights)
    spacing = float(np.median(gaps)) if len(gaps) else 1.0
    if len(gaps) and np.abs(gaps - spacing).max() > _GAP_TOLERANCE * spacing:
        worst = int(np.abs(gaps - spacing).argmax())
        raise InputError(
            f"{folder}: slices lie {spacing:.3g} mm apart, but {gaps[worst]:.3g} mm between "
            f"{stack[worst].path.name} and {stack[worst + 1].path.name}.",
            "A slice is missing, or the spacing varies: export the series again.",
        )
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO(_IMAGE_IO)
    reader.SetFileNames([str(item.path) for item in stack])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    image = reader.Execute()
    first, last = np.array(stack[0].position), np.array(stack[-1].position)
    drift = np.linalg.norm(last - first - (heights[-1] - heights[0]) * stack[0].normal)
    if drift > _GAP_TOLERANCE * min(image.GetSpacing()[:2]):
        raise InputError(
            f"{folder}: the slices are shifted sideways by {drift:.3g} mm from first to last (a tilted gantry).",
            "Resample it to straight axes, for example on import in 3D Slicer.",
        )
    image.SetOrigin(stack[0].position)
    image.SetSpacing((*image.GetSpacing()[:2], spacing))
    image.SetDirection(np.column_stack([stack[0].axes[:3], stack[0].axes[3:], stack[0].normal]).ravel().tolist())
    return image
