"""A compressed NIfTI is inflated once, to its end, and held against its checksum before it is believed."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io import content
from diffusion_anomaly.io.volume import read_volume


def scan(dtype: type = np.int16, size: tuple[int, ...] = (9, 8, 7)) -> sitk.Image:
    grid = phantom.grid(size, (1.0, 1.1, 3.3), phantom.rotation((10, 20, 30)))
    return phantom.on_grid(np.random.default_rng(0).integers(0, 200, size[::-1]).astype(dtype), grid)


def write(path: Path, image: sitk.Image, **fields: tuple[int, str, float]) -> Path:
    """Write a compressed NIfTI, with header fields given as (offset, format, value) set by hand."""
    plain = path.with_name("plain.nii")
    sitk.WriteImage(image, str(plain))
    content = bytearray(plain.read_bytes())
    for offset, layout, value in fields.values():
        struct.pack_into(layout, content, offset, value)
    plain.unlink()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize(
    "fields",
    [{}, {"slope": (112, "<f", 0.37), "intercept": (116, "<f", -12.5)}],
    ids=["plain", "scaled"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_the_image_is_what_itk_reads_of_the_compressed_file(
    tmp_path: Path, dtype: type, fields: dict[str, tuple[int, str, float]]
) -> None:
    path = write(tmp_path / "scan.nii.gz", scan(dtype), **fields)
    image, expected = read_volume(path).image, sitk.ReadImage(str(path), sitk.sitkFloat32)
    assert sitk.GetArrayFromImage(image).tobytes() == sitk.GetArrayFromImage(expected).tobytes()
    assert phantom.geometry(image) == phantom.geometry(expected)


def test_a_name_that_promises_compression_in_vain_is_read(tmp_path: Path) -> None:
    sitk.WriteImage(scan(), str(tmp_path / "plain.nii"))
    path = (tmp_path / "plain.nii").rename(tmp_path / "scan.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), sitk.GetArrayFromImage(scan()))


def test_a_file_of_several_compressed_parts_is_one_scan(tmp_path: Path) -> None:
    whole = gzip.decompress(write(tmp_path / "whole.nii.gz", scan()).read_bytes())
    path = tmp_path / "parts.nii.gz"
    path.write_bytes(gzip.compress(whole[:700]) + gzip.compress(whole[700:]) + bytes(512))
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), sitk.GetArrayFromImage(scan()))


def test_an_unknown_type_is_refused_under_the_files_own_name(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan(), datatype=(70, "<h", 9999))
    with pytest.raises(InputError, match="type 9999") as caught:
        read_volume(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize("piece", [7, 100, 4096, 100_000])
def test_a_stream_may_be_split_anywhere(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of any size give the same voxels, also where a piece ends within a checksum."""
    path = write(tmp_path / "scan.nii.gz", scan())
    monkeypatch.setattr(content, "CHUNK", piece)
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), sitk.GetArrayFromImage(scan()))


def test_what_inflates_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(3000)))
    assert any("3000 bytes follow" in warning for warning in read_volume(path).warnings)
    monkeypatch.setattr(content, "MOST_BEHIND", 2000)
    with pytest.raises(InputError, match="far more"):
        read_volume(path)


@pytest.mark.parametrize("harm", ["cut", "flipped", "followed"])
def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path, harm: str) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
            "followed": whole + b"something else",
        }[harm]
    )
    with pytest.raises(InputError, match="cut short" if harm == "cut" else "damaged"):
        read_volume(path)
