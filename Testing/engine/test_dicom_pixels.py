"""What the stored numbers of a DICOM image stand for, in each of the ways to store them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

import dicoms
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.dicom import headers
from diffusion_anomaly.io.volume import read_volume


def single(pixels: np.ndarray, **elements: Any) -> Dataset:
    (data,) = dicoms.classic(pixels[None], **elements)
    return data


def values_of(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read_volume(path).image)[0]


def read(data: Dataset, folder: Path) -> np.ndarray:
    return values_of(dicoms.save(data, folder / "one.dcm"))


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert str(path) in caught.value.what and caught.value.hint
    return str(caught.value)


def noise(kind: str, bits: int | None = None, shape: tuple[int, int] = (24, 20)) -> np.ndarray:
    info = np.iinfo(kind)
    bits = bits or info.bits
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if info.min else (0, (1 << bits) - 1)
    pixels = np.random.default_rng(0).integers(low, high, shape, endpoint=True)
    pixels[0, :2] = low, high
    return pixels.astype(kind)


def smooth(kind: str, most: int) -> np.ndarray:
    rows, columns = np.indices((32, 40))
    return (most * (0.5 + 0.4 * np.sin(rows / 9) * np.cos(columns / 11))).astype(kind)


# Plain


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_every_number_has_its_value(tmp_path: Path, kind: str, syntax: str) -> None:
    data = single(noise(kind), RescaleSlope="0.5", RescaleIntercept="-3")
    data.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(read(data, tmp_path), (noise(kind) * 0.5 - 3).astype(np.float32))


@pytest.mark.parametrize("kind", ["u2", "i2", "u4"])
def test_the_other_byte_order(tmp_path: Path, kind: str) -> None:
    data = single(noise(kind))
    data.PixelData = noise(kind).byteswap().tobytes()
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(read(data, tmp_path), noise(kind).astype(np.float32))


def test_bytes_in_words_of_the_other_byte_order(tmp_path: Path) -> None:
    pixels = noise("u1", shape=(5, 3))
    data = single(pixels)
    data.PixelData = np.frombuffer(pixels.tobytes() + b"\0", "u2").byteswap().tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(read(data, tmp_path), pixels)


@pytest.mark.parametrize("kind", ["u2", "i2"])
@pytest.mark.parametrize(("stored", "high"), [(12, 11), (10, 9), (12, 15), (12, 13)])
def test_bits_beside_those_that_are_stored_do_not_count(tmp_path: Path, kind: str, stored: int, high: int) -> None:
    expected = noise(kind, stored)
    mask = (1 << stored) - 1
    shift = high + 1 - stored
    rubbish = np.random.default_rng(1).integers(0, 1 << 16, expected.shape) & ~(mask << shift)
    packed = (((expected.astype(np.int64) & mask) << shift) | rubbish).astype("u2")
    data = single(packed, BitsStored=stored, HighBit=high, PixelRepresentation=int(kind == "i2"))
    assert np.array_equal(read(data, tmp_path), expected)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_float_pixels(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).normal(size=(5, 6)).astype(kind)
    assert np.array_equal(read(single(pixels), tmp_path), pixels.astype(np.float32))


def test_windows_padding_and_real_world_values_change_nothing(tmp_path: Path) -> None:
    mapping = dicoms.with_elements(RealWorldValueSlope=7.0, RealWorldValueIntercept=1.0)
    data = single(
        noise("u2"),
        WindowCenter="40",
        WindowWidth="80",
        PixelPaddingValue=0,
        RealWorldValueMappingSequence=[mapping],
        RescaleType="US",
    )
    assert np.array_equal(read(data, tmp_path), noise("u2"))


@pytest.mark.parametrize(("kind", "modality"), [("u2", "DX"), ("i2", "MR")])
def test_inverted_pictures_are_turned(tmp_path: Path, kind: str, modality: str) -> None:
    data = single(noise(kind, 12), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    data.Modality = modality
    volume = read_volume(dicoms.save(data, tmp_path / "one.dcm"))
    expected = (4095 if kind == "u2" else -1) - noise(kind, 12).astype(int)
    assert np.array_equal(sitk.GetArrayFromImage(volume.image)[0], expected)
    assert any("MONOCHROME1" in warning for warning in volume.warnings)


def test_hounsfield_units_stay_whatever_they_are_shown_as(tmp_path: Path) -> None:
    data = single(noise("i2"), PhotometricInterpretation="MONOCHROME1", Modality="CT")
    assert np.array_equal(read(data, tmp_path), noise("i2"))


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour image (3 values"),
        ({"PhotometricInterpretation": "YBR_FULL", "SamplesPerPixel": 3}, "colour"),
        ({"ModalityLUTSequence": [dicoms.with_elements(LUTDescriptor=[2, 0, 16])]}, "Modality LUT"),
        ({"BitsAllocated": 12}, "bits"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "bits"),
        ({"BitsStored": 17, "HighBit": 16}, "bits"),
        ({"BitsStored": 12, "HighBit": 3}, "bits"),
        ({"NumberOfFrames": "7"}, "7 images"),
        ({"NumberOfFrames": "0"}, "NumberOfFrames"),
        ({"NumberOfFrames": "-3"}, "NumberOfFrames"),
        ({"Rows": 25}, "pixels"),
    ],
)
def test_what_is_no_grey_image_of_the_size_it_states(tmp_path: Path, elements: dict[str, Any], words: str) -> None:
    assert words in refused(dicoms.save(dicoms.changed(single(noise("u2")), **elements), tmp_path / "one.dcm"))


# Compressed


LOSSLESS = [
    gdcm.TransferSyntax.JPEGLosslessProcess14,
    gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    gdcm.TransferSyntax.JPEGLSLossless,
    gdcm.TransferSyntax.JPEG2000Lossless,
    gdcm.TransferSyntax.RLELossless,
]


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(("kind", "bits"), [("u1", 8), ("u2", 8), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16)])
def test_compression_without_loss_loses_nothing(tmp_path: Path, syntax: int, kind: str, bits: int) -> None:
    data = single(noise(kind, bits), BitsStored=bits, HighBit=bits - 1, RescaleSlope="2", RescaleIntercept="-7")
    path = dicoms.compressed(data, syntax, tmp_path / "one.dcm")
    assert np.array_equal(values_of(path), noise(kind, bits) * 2.0 - 7)


@pytest.mark.parametrize(
    ("syntax", "kind", "most"),
    [
        (gdcm.TransferSyntax.JPEGBaselineProcess1, "u1", 255),
        (gdcm.TransferSyntax.JPEGExtendedProcess2_4, "u1", 255),
        (gdcm.TransferSyntax.JPEGExtendedProcess2_4, "u2", 4095),
        (gdcm.TransferSyntax.JPEGLSNearLossless, "u2", 4095),
        (gdcm.TransferSyntax.JPEG2000, "u2", 4095),
    ],
)
def test_compression_with_loss_comes_close(tmp_path: Path, syntax: int, kind: str, most: int) -> None:
    pixels = smooth(kind, most)
    bits = 8 if kind == "u1" else 12
    path = dicoms.compressed(single(pixels, BitsStored=bits, HighBit=bits - 1), syntax, tmp_path / "one.dcm")
    assert np.abs(values_of(path) - pixels).max() <= 0.01 * most


@pytest.mark.parametrize("kind", ["u2", "i2"])
def test_an_image_of_fewer_bits_than_the_header_says(tmp_path: Path, kind: str) -> None:
    data = single(noise(kind, 12), BitsStored=12, HighBit=11)
    path = dicoms.compressed(data, gdcm.TransferSyntax.JPEG2000Lossless, tmp_path / "one.dcm")
    data = dicoms.changed(pydicom.dcmread(path), BitsStored=16, HighBit=15)
    assert np.array_equal(read(data, tmp_path), noise(kind, 12))


def test_run_lengths_by_another_encoder(tmp_path: Path) -> None:
    data = single(noise("i2"))
    compress(data, RLELossless)
    assert np.array_equal(read(data, tmp_path), noise("i2"))


def test_a_slice_without_anything_may_shrink_to_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((512, 512), np.uint16)
    path = dicoms.compressed(single(pixels), gdcm.TransferSyntax.JPEG2000Lossless, tmp_path / "one.dcm")
    assert path.stat().st_size < 3000
    assert np.array_equal(values_of(path), pixels)


@pytest.mark.parametrize("syntax", [HTJ2K, MPEG2MPML, "1.2.3.4.5"])
def test_a_compression_that_is_not_read_is_named(tmp_path: Path, syntax: str) -> None:
    data = single(noise("u2"))
    data.PixelData = encapsulate([b"\xff\x4f" + bytes(40)])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(tmp_path / "one.dcm", implicit_vr=False, little_endian=True)
    message = refused(tmp_path / "one.dcm")
    assert any(word in message for word in ("High-Throughput", "MPEG2", "1.2.3.4.5")) and "dcm2niix" in message


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_a_compressed_file_cut_short(tmp_path: Path, syntax: int, share: float) -> None:
    path = dicoms.compressed(single(noise("u2", 12), BitsStored=12, HighBit=11), syntax, tmp_path / "one.dcm")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "cut short" in refused(path)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_compressed_image_cut_short_within_a_whole_file(tmp_path: Path, syntax: int) -> None:
    path = dicoms.compressed(single(noise("u2", 12), BitsStored=12, HighBit=11), syntax, tmp_path / "one.dcm")
    data = pydicom.dcmread(path)
    (frame,) = pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)
    data.PixelData = encapsulate([frame[: len(frame) // 2]])
    refused(dicoms.save(data, path))


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("elements", [{"Rows": 200}, {"Columns": 21}, {"Rows": 60000, "Columns": 60000}])
def test_a_compressed_image_of_another_size(tmp_path: Path, syntax: int, elements: dict[str, int]) -> None:
    path = dicoms.compressed(single(noise("u2", 12), BitsStored=12, HighBit=11), syntax, tmp_path / "one.dcm")
    refused(dicoms.save(dicoms.changed(pydicom.dcmread(path), **elements), path))


def test_rubbish_as_compressed_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = dicoms.compressed(single(noise("u2")), gdcm.TransferSyntax.JPEG2000Lossless, tmp_path / "one.dcm")
    data = pydicom.dcmread(path)
    (frame,) = pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)
    data.PixelData = encapsulate([frame[:60] + bytes(len(frame) - 62) + b"\xff\xd9"])
    path = dicoms.save(data, path)
    capfd.readouterr()
    refused(path)
    assert capfd.readouterr() == ("", "")


def test_plain_pixels_called_compressed_and_the_reverse(tmp_path: Path) -> None:
    data = single(noise("u2"))
    path = dicoms.save(data, tmp_path / "one.dcm")
    content = path.read_bytes()
    named = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    assert named != content
    path.write_bytes(named)
    assert "transfer syntax" in refused(path)


def test_a_deflated_file_may_not_swell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "_MOST_INFLATED", 1 << 20)
    data = single(np.zeros((2000, 2000), np.uint8))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = dicoms.save(data, tmp_path / "one.dcm")
    assert path.stat().st_size < 10_000
    assert "swells" in refused(path)


def test_an_image_that_states_the_size_of_a_house(tmp_path: Path) -> None:
    data = single(noise("u2"), Rows=60000, Columns=60000)
    coded = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + (60000).to_bytes(4, "big") * 2 + bytes(60) + b"\xff\xd9"
    data.PixelData = encapsulate([coded])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    assert "cannot be" in refused(dicoms.save(data, tmp_path / "one.dcm"))


def test_one_damaged_image_does_not_end_the_process(tmp_path: Path) -> None:
    """A marker amid the Huffman codes makes GDCM throw where nothing catches."""
    data = single(smooth("u2", 4095), BitsStored=12, HighBit=11)
    path = dicoms.compressed(data, gdcm.TransferSyntax.JPEGExtendedProcess2_4, tmp_path / "one.dcm")
    content = path.read_bytes()
    start = content.index(b"\xff\xda")
    path.write_bytes(content[: start - 9] + bytes(9) + content[start:])
    refused(path)
    path.write_bytes(content)
    assert values_of(path).shape == (32, 40)


@pytest.mark.parametrize("syntax", [gdcm.TransferSyntax.JPEGLosslessProcess14_1, gdcm.TransferSyntax.JPEG2000Lossless])
def test_what_a_decoder_fills_up_is_no_image(tmp_path: Path, syntax: int) -> None:
    """Its end kept, its second half left out: the libraries print a warning and give grey or zeros."""
    path = dicoms.compressed(single(noise("u2", 12), BitsStored=12, HighBit=11), syntax, tmp_path / "one.dcm")
    data = pydicom.dcmread(path)
    (frame,) = pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)
    data.PixelData = encapsulate([frame[: len(frame) // 2] + b"\xff\xd9"])
    assert "damaged" in refused(dicoms.save(data, path))
