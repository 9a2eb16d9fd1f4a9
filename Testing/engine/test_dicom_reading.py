"""A folder of DICOM files is looked through once, however many series it holds."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.errors import InputError
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
def header_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file's header is asked for, with those that a look through a whole folder opens."""
    reads: Counter[str] = Counter()
    read_one = sitk.ImageFileReader.ReadImageInformation

    def counted(reader: sitk.ImageFileReader) -> None:
        reads[Path(reader.GetFileName()).name] += 1
        read_one(reader)

    def counted_folder(name: str) -> None:
        read_all = getattr(sitk.ImageSeriesReader, name)

        def read(directory: str, *arguments: object) -> object:
            reads.update(path.name for path in Path(directory).iterdir())
            return read_all(directory, *arguments)

        monkeypatch.setattr(sitk.ImageSeriesReader, name, staticmethod(read))

    monkeypatch.setattr(sitk.ImageFileReader, "ReadImageInformation", counted)
    counted_folder("GetGDCMSeriesIDs")
    counted_folder("GetGDCMSeriesFileNames")
    return reads


def test_each_header_is_read_once_whatever_is_asked_for(folder: Path, header_reads: Counter[str]) -> None:
    volume = read_volume(folder, series="1.2.3.3")
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(scan(2)))
    assert header_reads == Counter({path.name: 1 for path in folder.iterdir()})

    header_reads.clear()
    with pytest.raises(InputError, match="4 DICOM series"):
        read_volume(folder)
    assert header_reads == Counter({path.name: 1 for path in folder.iterdir()})


def test_what_is_no_image_is_passed_over(folder: Path) -> None:
    slices = sorted(folder.iterdir())
    (folder / "notes.txt").write_text("something", encoding="utf-8")
    (folder / "empty").touch()
    (folder / "beginning.dcm").write_bytes(slices[0].read_bytes()[:600])
    (folder / "deeper").mkdir()
    shutil.copy(slices[0], folder / "deeper")
    shutil.copy(slices[0], folder / "._hidden.dcm")
    volume = read_volume(folder, series="Series 0")
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(scan(0)))
    with pytest.raises(InputError) as caught:
        read_volume(folder)
    assert "4 DICOM series" in caught.value.what
    assert "1.2.3.1 (Series 0, 3 images)" in caught.value.what


def test_a_dicom_file_without_preamble_is_read(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    volume = read_volume(folder, series="Series 1")
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(scan(1)))
