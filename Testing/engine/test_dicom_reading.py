"""A folder of DICOM files is looked through once, however many series it holds."""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

import dicoms
import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.dicom import reading, series
from diffusion_anomaly.io.dicom.headers import BoundedFile
from diffusion_anomaly.io.volume import read_volume

SERIES, SLICES = 4, 3


def scan(seed: int) -> sitk.Image:
    grid = phantom.grid((6, 5, SLICES), (1.0, 1.1, 3.3))
    return phantom.on_grid(np.random.default_rng(seed).integers(0, 900, (SLICES, 5, 6)).astype(np.int16), grid)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four series of three slices beside each other, in one folder."""
    target = tmp_path / "all"
    target.mkdir()
    for number in range(SERIES):
        apart = tmp_path / f"series-{number}"
        phantom.write_dicom(apart, scan(number), uid=f"1.2.3.{number + 1}", description=f"Series {number}")
        for path in apart.iterdir():
            path.rename(target / f"{number}-{path.name}")
    return target


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each file is opened for its header, and for all of it."""
    found: Counter[tuple[str, str]] = Counter()
    read_header, read_all = series.read_header, reading.read_bytes

    def counted_header(file: BinaryIO, path: Path, tags: list[int] | None = None) -> object:
        found["header", path.name] += 1
        return read_header(file, path, tags)

    def counted_all(path: Path) -> bytes:
        found["all", path.name] += 1
        return read_all(path)

    monkeypatch.setattr(series, "read_header", counted_header)
    monkeypatch.setattr(reading, "read_bytes", counted_all)
    return found


def test_each_header_is_read_once_and_each_chosen_file_once_more(folder: Path, reads: Counter[tuple[str, str]]) -> None:
    headers = Counter({("header", path.name): 1 for path in folder.iterdir()})
    volume = read_volume(folder, series="1.2.3.3")
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(scan(2)))
    assert reads == headers + Counter({("all", path.name): 1 for path in folder.glob("2-*")})

    reads.clear()
    with pytest.raises(InputError, match="4 DICOM series"):
        read_volume(folder)
    assert reads == headers


def test_what_is_no_image_is_passed_over(folder: Path) -> None:
    slices = sorted(folder.iterdir())
    (folder / "notes.txt").write_text("something", encoding="utf-8")
    (folder / "empty").touch()
    shutil.copy(slices[0], folder / "._hidden.dcm")
    volume = read_volume(folder, series="Series 0")
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(scan(0)))
    with pytest.raises(InputError) as caught:
        read_volume(folder)
    assert "4 DICOM series" in caught.value.what
    assert "1.2.3.1 (Series 0, axial, 3 images)" in caught.value.what


def test_a_dicom_file_without_preamble_is_read(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    volume = read_volume(folder, series="Series 1")
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(scan(1)))


# What lies in a folder beside a scan


def other_object(sop_class: str, **elements: Any) -> Dataset:
    """An object of the same series without pixels."""
    data = dicoms.image(dicoms.voxels((5, 6)), sop_class, **elements)
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
        delattr(data, name)
    return data


@pytest.mark.parametrize(
    "sop_class",
    [
        "1.2.840.10008.5.1.4.1.1.88.33",  # structured report
        "1.2.840.10008.5.1.4.1.1.11.1",  # presentation state
        "1.2.840.10008.5.1.4.1.1.88.59",  # key object selection
        "1.2.840.10008.5.1.4.1.1.104.1",  # PDF
        "1.2.840.10008.5.1.4.1.1.66",  # raw data
    ],
)
def test_objects_that_are_no_images_are_passed_over(tmp_path: Path, sop_class: str) -> None:
    dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    dicoms.save(other_object(sop_class), tmp_path / "report.dcm")
    dicoms.save(other_object(sop_class, SeriesInstanceUID="1.2.3.99"), tmp_path / "other.dcm")
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(tmp_path).image), dicoms.voxels())
    with pytest.raises(InputError, match="without an image"):
        read_volume(tmp_path / "report.dcm")


def test_folders_below_are_searched_and_links_that_lead_back_are_not(tmp_path: Path) -> None:
    dicoms.write(tmp_path / "DICOM" / "ST0" / "SE1", dicoms.classic(dicoms.voxels()))
    (tmp_path / "DICOM" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / ".cache").mkdir()
    shutil.copy(next((tmp_path / "DICOM" / "ST0" / "SE1").iterdir()), tmp_path / ".cache" / "x.dcm")
    volume = read_volume(tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), dicoms.voxels())
    assert volume.warnings == ()


def test_too_many_files_or_levels_are_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    monkeypatch.setattr(series, "_MOST_FILES", 3)
    with pytest.raises(InputError, match="more than 3 files"):
        read_volume(tmp_path)
    monkeypatch.undo()
    deep = tmp_path.joinpath(*"abcdefghijklmnop")
    deep.mkdir(parents=True)
    with pytest.raises(InputError, match="levels"):
        read_volume(tmp_path)


def test_the_directory_of_a_medium_leads_to_its_files(tmp_path: Path) -> None:
    dicoms.write(tmp_path / "IMAGES", dicoms.classic(dicoms.voxels()))
    path = dicoms.save(other_object("1.2.840.10008.1.3.10"), tmp_path / "DICOMDIR")
    for given in (tmp_path, path):
        assert np.array_equal(sitk.GetArrayFromImage(read_volume(given).image), dicoms.voxels())


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.writestr("one.dcm", b"x")
    for given in (tmp_path, tmp_path / "scan.zip"):
        with pytest.raises(InputError, match=r"[Uu]npack"):
            read_volume(given)


def test_a_folder_that_may_not_be_read_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(series.os, "scandir", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        read_volume(tmp_path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    read = reading.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "10-0.dcm":
            raise OSError(5, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(reading, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"10-0\.dcm could not be read: Input/output error"):
        read_volume(tmp_path)


# Several series


def test_the_likeliest_series_is_listed_first(tmp_path: Path) -> None:
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    many = dicoms.voxels((9, 5, 6))
    listed = [
        ("3d flair", dicoms.AXES, dicoms.voxels(), "M"),
        ("flair sag", sagittal, many, "M"),
        ("t1", dicoms.AXES, many, "M"),
        ("t2", dicoms.AXES, dicoms.voxels(), "M"),
        ("flair localizer", dicoms.AXES, many, "LOCALIZER"),
    ]
    for n, (description, axes, pixels, kind) in reversed(list(enumerate(listed))):
        kinds = ["ORIGINAL", "PRIMARY", kind]
        files = dicoms.classic(
            pixels, axes=axes, SeriesInstanceUID=f"1.2.{9 - n}", SeriesDescription=description, ImageType=kinds
        )
        dicoms.write(tmp_path / str(n), files)
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    places = [caught.value.what.index(f"({description}, ") for description, *_ in listed]
    assert places == sorted(places)
    assert "(flair sag, sagittal, 9 images)" in caught.value.what
    assert "(flair localizer, axial, 9 images, localiser or derived)" in caught.value.what


def test_a_scan_beside_its_localiser_is_asked_for(tmp_path: Path) -> None:
    dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    localiser = dicoms.classic(dicoms.voxels(), SeriesInstanceUID="1.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    dicoms.write(tmp_path / "other", localiser)
    with pytest.raises(InputError, match="2 DICOM series"):
        read_volume(tmp_path)


def test_repetitions_are_told_apart_by_number_and_time(tmp_path: Path) -> None:
    pixels = dicoms.voxels()
    dicoms.write(
        tmp_path,
        dicoms.classic(pixels, SeriesInstanceUID="1.8", SeriesNumber="3", SeriesTime="102105.5"),
        dicoms.classic(pixels + 1, SeriesInstanceUID="1.9", SeriesNumber="4", SeriesTime="1040"),
    )
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    assert "1.8 (FLAIR axial, series 3, at 10:21:05, axial, 4 images)" in caught.value.what
    assert "1.9 (FLAIR axial, series 4, at 10:40, axial, 4 images)" in caught.value.what
    assert "its UID, or its description" in caught.value.hint


def test_a_description_is_found_in_any_case_unless_two_series_have_it(tmp_path: Path) -> None:
    pixels = dicoms.voxels()
    dicoms.write(
        tmp_path,
        dicoms.classic(pixels, SeriesInstanceUID="1.8", SeriesDescription="T2 FLAIR"),
        dicoms.classic(pixels[:3], SeriesInstanceUID="1.9", SeriesDescription="T1"),
        dicoms.classic(pixels[:2], SeriesInstanceUID="1.10", SeriesDescription="t1"),
    )
    assert read_volume(tmp_path, series=" t2 flair").image.GetSize()[2] == 4
    assert read_volume(tmp_path, series="t1").image.GetSize()[2] == 2  # as it is written goes first
    with pytest.raises(InputError, match="holds 2 series 'T1 '"):
        read_volume(tmp_path, series="T1 ")


def test_a_folder_of_one_file_that_is_no_image_is_told_in_the_singular(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"found 1 entry, such as notes\.txt"):
        read_volume(tmp_path)


def test_damage_in_another_series_does_no_harm(tmp_path: Path) -> None:
    dicoms.write(tmp_path / "one", dicoms.classic(dicoms.voxels()))
    (path,) = dicoms.write(tmp_path / "two", dicoms.classic(dicoms.voxels()[:1], SeriesInstanceUID="1.9")).iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    assert read_volume(tmp_path, series=dicoms.SERIES).image.GetSize() == (6, 5, 4)
    with pytest.raises(InputError, match="20 bytes of its pixels are missing"):
        read_volume(tmp_path, series="1.9")


# Text


@pytest.mark.parametrize(
    ("declared", "coded", "expected"),
    [
        ("ISO_IR 100", "Schädel".encode("latin-1"), "Schädel"),
        ("ISO_IR 192", "頭部 FLAIR".encode(), "頭部 FLAIR"),
        ("GB18030", "头部".encode("gb18030"), "头部"),
        ("GBK", "头部".encode("gbk"), "头部"),
        ("ISO_IR 144", "Голова".encode("iso8859-5"), "Голова"),
        ("ISO_IR 13", "ｱﾀﾏ".encode("shift-jis"), "ｱﾀﾏ"),
        ("\\ISO 2022 IR 87", "頭部".encode("iso2022_jp"), "頭部"),
        ("\\ISO 2022 IR 149", b"\x1b$)C" + "머리".encode("euc_kr"), "머리"),
        ("", "Schädel".encode(), "Schädel"),
        ("", "Schädel".encode("latin-1"), "Sch\ufffddel"),
        ("ISO_IR 192", "Schädel".encode("latin-1"), "Sch\ufffddel"),
        ("NONSENSE", b"head", "head"),
        ("ISO_IR 100", b"a\x1b[31m\x00b\x07\nc", "a [31m b c"),
        ("ISO_IR 192", "a\u202eb\u2028c".encode(), "a b c"),
        ("ISO 2022 IR 87\\ISO 2022 IR 87", b"\x1b$Bx", None),
    ],
)
def test_a_description_is_decoded_and_never_fails(
    tmp_path: Path, declared: str, coded: bytes, expected: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    files = dicoms.classic(dicoms.voxels()[:1], SpecificCharacterSet=None, SeriesDescription="D" * 40)
    (path,) = dicoms.write(tmp_path, files).iterdir()
    content = path.read_bytes()
    charset = declared.encode() + b" " * (len(declared) % 2)
    element = b"\x08\0\x05\0CS" + len(charset).to_bytes(2, "little") + charset if declared else b""
    start = content.index(b"\x08\0\x08\0CS")
    content = content[:start] + element + content[start:].replace(b"D" * 40, coded.ljust(40))
    path.write_bytes(content)
    description = read_volume(path).metadata["description"]
    assert expected is None or description == expected
    assert description.isprintable()
    assert capfd.readouterr() == ("", "")


def test_nothing_of_the_patient_is_kept(tmp_path: Path) -> None:
    volume = read_volume(dicoms.write(tmp_path, dicoms.classic(dicoms.voxels(), PatientBirthDate="19700101")))
    assert dict(volume.metadata) == {"modality": "MR", "description": "FLAIR axial"}


def test_the_hash_is_of_the_files_in_slice_order(tmp_path: Path) -> None:
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    content = b"".join((folder / f"{k * 7 + 3:02d}-0.dcm").read_bytes() for k in range(4))
    assert read_volume(folder).sha256 == hashlib.sha256(content).hexdigest()


def test_settings_of_pydicom_and_logging_stay_as_they_were(tmp_path: Path) -> None:
    before = dict(vars(pydicom.config.settings)), logging.getLogger("pydicom").propagate
    read_volume(dicoms.write(tmp_path, dicoms.classic(dicoms.voxels())))
    assert (dict(vars(pydicom.config.settings)), logging.getLogger("pydicom").propagate) == before


def test_an_element_that_states_more_than_the_file_has_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "short.dcm"
    path.write_bytes(b"0123456789")
    with BoundedFile(path) as file:
        file.seek(4)
        assert file.read(1 << 45) == b"456789"  # which no memory would hold
        assert file.read(1 << 45) == b""
