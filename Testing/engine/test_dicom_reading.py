"""A folder of DICOM files is looked through once, however many series it holds."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.dicom import reading, series
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
