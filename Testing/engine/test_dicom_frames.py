"""Multi-frame images: each frame lies where its functional groups say, whatever the order in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid

import dicoms
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import Volume, read_volume
from phantom import array

FRAMES = 5
ORDER = (3, 0, 4, 2, 1)


def positions(count: int = FRAMES, step: float = 3.0) -> np.ndarray:
    return np.array([(-10.0, -20.0, 30.0 + step * k) for k in range(count)])


def read(data: Dataset, folder: Path, **choice: Any) -> Volume:
    return read_volume(dicoms.save(data, folder / "IM1"), **choice)


def refused(data: Dataset, folder: Path, **choice: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(data, folder, **choice)
    assert str(folder / "IM1") in caught.value.what and caught.value.hint
    return str(caught.value)


def interleaved(pixels: np.ndarray, **options: Any) -> Dataset:
    order = list(ORDER)
    return dicoms.enhanced(pixels[order], positions()[order], **options)


@pytest.mark.parametrize("whole_folder", [False, True])
def test_frames_are_sorted_by_their_positions(tmp_path: Path, whole_folder: bool) -> None:
    pixels = dicoms.voxels((FRAMES, 5, 6))
    path = dicoms.save(interleaved(pixels), tmp_path / "IM1")
    volume = read_volume(tmp_path if whole_folder else path)
    assert np.array_equal(array(volume.image), pixels)
    assert volume.image.GetSpacing() == pytest.approx((1.25, 1.5, 3.0))
    assert volume.image.GetOrigin() == pytest.approx((-10, -20, 30))
    assert volume.metadata == {"modality": "MR", "description": "FLAIR axial"}


def test_each_frame_has_its_own_rescaling(tmp_path: Path) -> None:
    def rescaled(index: int, group: Dataset) -> None:
        slope = dicoms.with_elements(RescaleSlope=str(1 + ORDER[index]), RescaleIntercept=str(-ORDER[index]))
        group.PixelValueTransformationSequence = [slope]

    pixels = dicoms.voxels((FRAMES, 5, 6))
    k = np.arange(FRAMES)[:, None, None]
    assert np.array_equal(array(read(interleaved(pixels, frame=rescaled), tmp_path).image), pixels * (1 + k) - k)


def test_a_rescaling_that_all_frames_share(tmp_path: Path) -> None:
    pixels = dicoms.voxels((FRAMES, 5, 6))
    data = interleaved(pixels)
    transformation = dicoms.with_elements(RescaleSlope="2.5", RescaleIntercept="-4")
    data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [transformation]
    assert np.array_equal(array(read(data, tmp_path).image), pixels * 2.5 - 4)


def echo(value: float) -> Dataset:
    return dicoms.with_elements(MREchoSequence=[dicoms.with_elements(EffectiveEchoTime=value)])


def of_content(name: str) -> Callable[[Any], Dataset]:
    return lambda value: dicoms.with_elements(FrameContentSequence=[dicoms.with_elements(**{name: value})])


@pytest.mark.parametrize(
    ("group", "values", "words"),
    [
        (echo, (90.0, 10.0), "echo time (10, 90)"),
        (of_content("TemporalPositionIndex"), (2, 1), "temporal position (1, 2)"),
        (of_content("FrameAcquisitionNumber"), (2, 1), "acquisition number (1, 2)"),
        (of_content("DimensionIndexValues"), ([1, 2], [1, 1]), "2 volumes"),
        (of_content("StackID"), ("2", "1"), "stack (1, 2)"),
        (
            lambda value: dicoms.with_elements(MRDiffusionSequence=[dicoms.with_elements(DiffusionBValue=value)]),
            (1000.0, 0.0),
            "b-value (0, 1000)",
        ),
    ],
)
def test_volumes_in_a_file_are_asked_for(
    tmp_path: Path, group: Callable[[Any], Dataset], values: tuple[Any, Any], words: str
) -> None:
    high, low = dicoms.voxels((FRAMES, 5, 6), seed=1), dicoms.voxels((FRAMES, 5, 6), seed=2)

    def tell(index: int, groups: Dataset) -> None:
        groups.update(group(values[index % 2]))

    both = np.stack([high, low], axis=1).reshape(-1, 5, 6)
    data = dicoms.enhanced(both, np.repeat(positions(), 2, axis=0), frame=tell)
    message = refused(data, tmp_path)
    assert "2 volumes" in message and words in message and "--frame" in message
    assert np.array_equal(array(read(data, tmp_path, frame=0).image), low)
    assert np.array_equal(array(read(data, tmp_path, frame=1).image), high)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda groups, shared: groups[2].__delitem__("PlanePositionSequence"), "frame 3, does not state its position"),
        (lambda groups, shared: shared.__delitem__("PlaneOrientationSequence"), "orientation"),
        (lambda groups, shared: shared.__delitem__("PixelMeasuresSequence"), "pixel spacing"),
        (lambda groups, shared: groups.__delitem__(2), "describes 4"),
    ],
)
def test_what_places_a_frame_must_be_there(tmp_path: Path, spoil: Callable[[Any, Any], Any], words: str) -> None:
    data = interleaved(dicoms.voxels((FRAMES, 5, 6)))
    spoil(data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence[0])
    assert words in refused(data, tmp_path)


def test_a_missing_frame_is_no_closed_gap(tmp_path: Path) -> None:
    pixels = dicoms.voxels((4, 5, 6))
    assert "3 mm apart, but 6 mm" in refused(dicoms.enhanced(pixels, positions()[[0, 1, 3, 4]]), tmp_path)


def test_a_frame_missing_of_one_echo(tmp_path: Path) -> None:
    places = np.repeat(positions(), 2, axis=0)[:-1]
    data = dicoms.enhanced(dicoms.voxels((9, 5, 6)), places, frame=lambda i, group: group.update(echo(i % 2)))
    assert "1 to 2 images at a position" in refused(data, tmp_path)


def test_frames_in_other_directions_are_refused(tmp_path: Path) -> None:
    def turned(index: int, group: Dataset) -> None:
        axes = dicoms.with_elements(ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])
        if index == 2:
            group.PlaneOrientationSequence = [axes]

    message = refused(interleaved(dicoms.voxels((FRAMES, 5, 6)), frame=turned), tmp_path)
    assert "different size or orientation" in message and "frame 3" in message


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.3.1"])
def test_many_frames_without_a_place_are_for_another_program(tmp_path: Path, sop_class: str) -> None:
    data = dicoms.image(dicoms.voxels((FRAMES, 5, 6)), sop_class, NumberOfFrames=str(FRAMES))
    assert "dcm2niix" in refused(data, tmp_path)


@pytest.mark.parametrize("frames", [4, 6, 2000000])
def test_the_number_of_frames_is_held_against_the_pixels(tmp_path: Path, frames: int) -> None:
    data = interleaved(dicoms.voxels((FRAMES, 5, 6)), NumberOfFrames=str(frames))
    refused(data, tmp_path)


def test_fewer_pixels_than_frames(tmp_path: Path) -> None:
    data = interleaved(dicoms.voxels((FRAMES, 5, 6)))
    data.PixelData = data.PixelData[:-30]
    assert "holds 270 bytes of pixels; its header promises 300" in refused(data, tmp_path)


@pytest.mark.parametrize("syntax", [gdcm.TransferSyntax.JPEGLSLossless, gdcm.TransferSyntax.RLELossless])
def test_compressed_frames(tmp_path: Path, syntax: int) -> None:
    """GDCM's writer makes up new positions, so that only its pixels are taken."""
    pixels = dicoms.voxels((FRAMES, 16, 18))
    data = interleaved(pixels)
    coded = dcmread(dicoms.compressed(interleaved(pixels), syntax, tmp_path / "coded.dcm"))
    data.PixelData = coded.PixelData
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
    assert np.array_equal(array(read(data, tmp_path).image), pixels)


def test_a_file_of_many_beside_files_of_one(tmp_path: Path) -> None:
    dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    dicoms.save(interleaved(dicoms.voxels((FRAMES, 5, 6))), tmp_path / "many.dcm")
    with pytest.raises(InputError, match=r"mixes files of one image and of many.*many\.dcm"):
        read_volume(tmp_path)


def parts(pixels: np.ndarray) -> list[Dataset]:
    common = {"ConcatenationUID": generate_uid(), "InConcatenationTotalNumber": 2}
    return [
        dicoms.enhanced(
            pixels[part], positions()[part], InConcatenationNumber=n + 1, ConcatenationFrameOffsetNumber=3 * n, **common
        )
        for n, part in enumerate((slice(0, 3), slice(3, None)))
    ]


def test_a_file_that_was_cut_into_parts_is_joined(tmp_path: Path) -> None:
    pixels = dicoms.voxels((FRAMES, 5, 6))
    assert np.array_equal(array(read_volume(dicoms.write(tmp_path, parts(pixels))).image), pixels)


def test_a_part_alone_is_refused(tmp_path: Path) -> None:
    assert "2 parts" in refused(parts(dicoms.voxels((FRAMES, 5, 6)))[0], tmp_path)


def csa(name: bytes, value: bytes) -> bytes:
    """Siemens' private header with one number in it."""
    entry = name.ljust(64, b"\0") + (1).to_bytes(4, "little") + b"US\0\0" + bytes(4) + (1).to_bytes(4, "little")
    size = len(value).to_bytes(4, "little")
    return (
        b"SV10\4\3\2\1" + (1).to_bytes(4, "little") + (77).to_bytes(4, "little") + entry + (77).to_bytes(4, "little")
    ) + (size * 2 + (77).to_bytes(4, "little") + size + value.ljust((len(value) + 3) // 4 * 4, b"\0"))


@pytest.mark.parametrize("sign", ["image type", "private header", "private number"])
def test_a_mosaic_is_for_another_program(tmp_path: Path, sign: str) -> None:
    (data,) = dicoms.classic(dicoms.voxels((1, 30, 36)))
    if sign == "image type":
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    elif sign == "private header":
        data.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(
            0x10, "OB", csa(b"NumberOfImagesInMosaic", b"34")
        )
    else:
        data.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 34)
    message = refused(data, tmp_path)
    assert "mosaic" in message and "dcm2niix" in message


def test_a_private_header_without_a_mosaic_does_no_harm(tmp_path: Path) -> None:
    files = dicoms.classic(dicoms.voxels())
    for data in files:
        block = data.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", csa(b"NumberOfImagesInMosaic", b""))
    assert np.array_equal(array(read_volume(dicoms.write(tmp_path, files)).image), dicoms.voxels())


def test_sequences_in_sequences_without_end_are_refused(tmp_path: Path) -> None:
    (data,) = dicoms.classic(dicoms.voxels((1, 5, 6)))
    path = dicoms.save(data, tmp_path / "IM1")
    content = path.read_bytes()
    start = content.index(b"\x08\0\x16\0UI")
    opened = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:start] + opened * 20000 + content[start:])
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_an_empty_group_of_a_frame_falls_back_to_the_shared(tmp_path: Path) -> None:
    pixels = dicoms.voxels((FRAMES, 5, 6))
    data = interleaved(pixels, frame=lambda _, group: setattr(group, "PixelMeasuresSequence", Items([])))
    assert np.array_equal(array(read(data, tmp_path).image), pixels)


def test_the_list_of_series_says_how_frames_lie(tmp_path: Path) -> None:
    axes = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    dicoms.save(interleaved(dicoms.voxels((FRAMES, 5, 6)), axes=axes), tmp_path / "one.dcm")
    dicoms.save(interleaved(dicoms.voxels((FRAMES, 5, 6)), SeriesInstanceUID="1.9"), tmp_path / "two.dcm")
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    assert f"1.9 (FLAIR axial, axial, 5 images); {dicoms.SERIES} (FLAIR axial, sagittal, 5 images)" in caught.value.what


def test_one_frame_in_functional_groups_is_a_slice(tmp_path: Path) -> None:
    pixels = dicoms.voxels((1, 5, 6))
    volume = read(dicoms.enhanced(pixels, positions(1)), tmp_path)
    assert np.array_equal(array(volume.image), pixels)
    assert volume.image.GetSpacing() == pytest.approx((1.25, 1.5, 3.0))
