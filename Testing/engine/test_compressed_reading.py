"""A compressed NIfTI is inflated once: what the check for completeness has inflated is what ITK reads."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io import itk
from diffusion_anomaly.io.headers import check_whole
from diffusion_anomaly.io.volume import read_volume

GZIP_MAGIC = b"\x1f\x8b"


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


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def given_to_itk(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The first bytes of each file that ITK reads voxels of."""
    beginnings: list[bytes] = []
    execute = sitk.ImageFileReader.Execute

    def recorded(reader: sitk.ImageFileReader) -> sitk.Image:
        beginnings.append(Path(reader.GetFileName()).read_bytes()[:2])
        return execute(reader)

    monkeypatch.setattr(sitk.ImageFileReader, "Execute", recorded)
    return beginnings


def test_itk_need_not_inflate_it_again(tmp_path: Path, temporary: Path, given_to_itk: list[bytes]) -> None:
    read_volume(write(tmp_path / "scan.nii.gz", scan()))
    assert given_to_itk
    assert GZIP_MAGIC not in given_to_itk
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "fields",
    [{}, {"slope": (112, "<f", 0.37), "intercept": (116, "<f", -12.5)}, {"metres": (123, "<B", 1)}],
    ids=["plain", "scaled", "in metres"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_the_image_is_what_itk_reads_of_the_compressed_file(
    tmp_path: Path, dtype: type, fields: dict[str, tuple[int, str, float]]
) -> None:
    path = write(tmp_path / "scan.nii.gz", scan(dtype), **fields)
    image, expected = read_volume(path).image, sitk.ReadImage(str(path), sitk.sitkFloat32)
    assert sitk.GetArrayFromImage(image).tobytes() == sitk.GetArrayFromImage(expected).tobytes()
    assert phantom.geometry(image) == phantom.geometry(expected)


def test_a_name_that_promises_compression_in_vain_is_read(tmp_path: Path, temporary: Path) -> None:
    sitk.WriteImage(scan(), str(tmp_path / "plain.nii"))
    path = (tmp_path / "plain.nii").rename(tmp_path / "scan.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), sitk.GetArrayFromImage(scan()))


def test_a_file_of_several_compressed_parts_is_one_scan(tmp_path: Path) -> None:
    content = gzip.decompress(write(tmp_path / "whole.nii.gz", scan()).read_bytes())
    path = tmp_path / "parts.nii.gz"
    path.write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]) + bytes(512))
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), sitk.GetArrayFromImage(scan()))


def test_without_room_for_a_copy_it_is_read_all_the_same(
    tmp_path: Path, given_to_itk: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())

    def check_on_a_full_disk(path: Path, copy: Path | None = None) -> bool:
        if copy is not None:
            raise OSError(28, "No space left on device")
        return check_whole(path)

    monkeypatch.setattr(itk, "check_whole", check_on_a_full_disk)
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), sitk.GetArrayFromImage(scan()))
    assert given_to_itk == [GZIP_MAGIC]


def test_a_copy_ends_where_the_header_says(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content + bytes(10_000_000)))
    copy = tmp_path / "copy.nii"
    assert check_whole(path, copy)
    assert copy.read_bytes() == content


def test_what_itk_refuses_is_told_under_the_files_own_name(tmp_path: Path, temporary: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan(), datatype=(70, "<h", 9999))
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert str(path) in caught.value.what
    assert "content.nii" not in str(caught.value)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("harm", ["cut", "flipped", "followed"])
def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path, temporary: Path, harm: str) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
            "followed": content + b"something else",
        }[harm]
    )
    with pytest.raises(InputError, match="cut short" if harm == "cut" else "damaged"):
        read_volume(path)
    assert not list(temporary.iterdir())
