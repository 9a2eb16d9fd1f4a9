"""Bad input gets one clear error that says what was found and what to do, and leaves nothing behind."""

from __future__ import annotations

import gzip
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import whole_file, write_text
from diffusion_anomaly.io.volume import read_anomaly_map, read_mask, read_volume, write_like


def scan(size=(30, 29, 28)) -> sitk.Image:
    image = phantom.grid(size, (1.0, 1.1, 3.3))
    return phantom.on_grid(np.random.default_rng(0).integers(0, 900, size[::-1]).astype(np.int16), image)


def refused(path: Path, **choice) -> str:
    """The message that reading gives, checked to name the file and a way out and to hold no trace of ITK."""
    with pytest.raises(InputError) as caught:
        read_volume(path, **choice)
    assert str(path) in caught.value.what
    assert caught.value.hint
    assert not any(word in str(caught.value) for word in ("itk", "ITK", "sitk", "0x", ".cxx", "Exception"))
    return caught.value.what


# Files


def test_a_missing_file(tmp_path):
    assert "no file or folder" in refused(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".dcm"])
def test_an_empty_file(tmp_path, suffix):
    (tmp_path / f"scan{suffix}").touch()
    assert "empty" in refused(tmp_path / f"scan{suffix}")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".dcm", ".png"])
def test_text_under_the_name_of_a_scan(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    path.write_text("This is a report, not a scan.\n" * 40)
    refused(path)


def test_text_compressed_under_the_name_of_a_nifti(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(b"This is a report, not a scan.\n" * 40))
    assert "not a NIfTI" in refused(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_file_cut_short(tmp_path, capfd, suffix, share):
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(scan(), str(path), suffix == ".nrrd")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path)
    assert capfd.readouterr().out == ""


def test_a_nifti_damaged_in_the_middle(tmp_path):
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(scan(), str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    assert "damaged" in refused(path)


def test_a_header_without_its_data_file(tmp_path):
    sitk.WriteImage(scan(), str(tmp_path / "scan.mhd"))
    (tmp_path / "scan.raw").unlink()
    assert "scan.raw" in refused(tmp_path / "scan.mhd")


def test_axes_that_are_not_at_right_angles(tmp_path):
    path = tmp_path / "scan.nii"
    sitk.WriteImage(scan(), str(path))
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, 0, 1)
    struct.pack_into("<12f", content, 280, 1, 0.3, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    path.write_bytes(content)
    assert "right angles" in refused(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    sitk.WriteImage(scan(), str(tmp_path / "scan.nrrd"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "no permission" in refused(tmp_path / "scan.nrrd")


# Content


@pytest.mark.parametrize(("components", "word"), [(3, "colour image"), (2, "vectors")])
def test_pixels_of_several_values(tmp_path, components, word):
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6, components), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    assert f"{word} ({components} values a pixel)" in refused(tmp_path / "scan.nrrd")


def test_a_colour_picture(tmp_path):
    colours = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "picture.png"))
    assert "colour" in refused(tmp_path / "picture.png")


def test_complex_voxels(tmp_path):
    real = sitk.Cast(scan(), sitk.sitkFloat32)
    sitk.WriteImage(sitk.RealAndImaginaryToComplex(real, real), str(tmp_path / "kspace.nii"))
    assert "complex" in refused(tmp_path / "kspace.nii")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_4d_scan_without_a_choice(tmp_path, suffix):
    sitk.WriteImage(sitk.JoinSeries([scan()] * 5), str(tmp_path / f"bold{suffix}"))
    with pytest.raises(InputError, match=r"5 volumes.*--frame, from 0 to 4"):
        read_volume(tmp_path / f"bold{suffix}")
    assert "no frame 5" in refused(tmp_path / f"bold{suffix}", frame=5)
    assert "no frame -1" in refused(tmp_path / f"bold{suffix}", frame=-1)


def test_a_frame_of_a_3d_scan(tmp_path):
    sitk.WriteImage(scan(), str(tmp_path / "scan.nrrd"))
    assert "no frame 1" in refused(tmp_path / "scan.nrrd", frame=1)


def test_a_scan_without_a_single_number(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), np.nan)), str(tmp_path / "scan.nrrd"))
    assert "60 voxels" in refused(tmp_path / "scan.nrrd")


def test_a_mask_of_another_grid_names_both(tmp_path):
    sitk.WriteImage(scan(), str(tmp_path / "scan.nrrd"))
    volume = read_volume(tmp_path / "scan.nrrd")
    moved = scan()
    moved.SetOrigin((0, 0, 0))
    for mask, words in (
        (moved, ["origin (0, 0, 0)", "origin (-10.5"]),
        (scan((30, 29, 27)), ["30x29x27", "30x29x28"]),
    ):
        sitk.WriteImage(mask, str(tmp_path / "mask.nrrd"))
        with pytest.raises(InputError, match="another grid") as caught:
            read_mask(tmp_path / "mask.nrrd", volume)
        assert all(word in caught.value.what for word in words)
        assert "Resample" in caught.value.hint


def test_a_scan_in_place_of_a_map(tmp_path):
    sitk.WriteImage(scan() - 1000, str(tmp_path / "ct.nrrd"))
    with pytest.raises(InputError, match="no anomaly map"):
        read_anomaly_map(tmp_path / "ct.nrrd")


# DICOM


def test_two_series_in_a_folder_are_named(tmp_path):
    phantom.write_dicom(tmp_path, scan((6, 6, 3)), uid="1.2.3.1")
    phantom.write_dicom(tmp_path, scan((6, 6, 4)), uid="1.2.3.2", description="T1 sagittal", first_number=50)
    message = refused(tmp_path)
    assert "1.2.3.1 (FLAIR axial, axial, 3 images)" in message
    assert "1.2.3.2 (T1 sagittal, axial, 4 images)" in message
    with pytest.raises(InputError, match="--series"):
        read_volume(tmp_path)
    assert "no series '9.9'" in refused(tmp_path, series="9.9")


def test_a_series_of_a_file(tmp_path):
    sitk.WriteImage(scan(), str(tmp_path / "scan.nrrd"))
    assert "is a file" in refused(tmp_path / "scan.nrrd", series="1.2.3")


@pytest.mark.parametrize("content", [[], ["notes.txt", "scan.nii.gz"]])
def test_a_folder_without_dicom(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("something")
    message = refused(tmp_path)
    assert "no DICOM" in message
    assert all(name in message for name in content)


def test_a_missing_slice_is_not_closed_up(tmp_path):
    phantom.write_dicom(tmp_path, scan((6, 6, 7)), skip=[3])
    assert "3.3 mm apart, but 6.6 mm" in refused(tmp_path)


def test_a_slice_missing_at_one_time_point(tmp_path):
    phantom.write_dicom(tmp_path, scan((6, 6, 7)))
    phantom.write_dicom(tmp_path, scan((6, 6, 7)), first_number=100, skip=[3])
    assert "1 to 2 images at a position" in refused(tmp_path)


def test_two_time_points_need_a_choice(tmp_path):
    phantom.write_dicom(tmp_path, scan((6, 6, 3)))
    phantom.write_dicom(tmp_path, scan((6, 6, 3)), first_number=100)
    assert "2 volumes" in refused(tmp_path)


def test_a_localiser_within_the_series(tmp_path):
    phantom.write_dicom(tmp_path, scan((6, 6, 3)))
    sagittal = phantom.grid((6, 6, 1), (1.0, 1.1, 3.3), phantom.rotation((0, 90, 0)))
    phantom.write_dicom(tmp_path, sitk.Cast(sagittal, sitk.sitkInt16), first_number=200)
    assert "different size or orientation" in refused(tmp_path)


def test_a_tilted_gantry(tmp_path):
    image = scan((6, 6, 4))
    for k in range(4):
        plane = image[:, :, k : k + 1]
        plane.SetOrigin(np.add(plane.GetOrigin(), (0, 0.8 * k, 0)).tolist())
        phantom.write_dicom(tmp_path, plane, first_number=k)
    assert "shifted sideways by 2.4 mm" in refused(tmp_path)


# Writing


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [100, 5000, 20000])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, suffix, room):
    volume = phantom.as_volume(scan())
    path = tmp_path / f"heat{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="could not be written") as caught, disk_of(room):
        write_like(volume.image, volume, path, dtype=np.float32)
    assert "space" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_met_by_the_compression_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).normal(size=(28, 29, 30))
    with (
        pytest.raises(InputError, match="no space left"),
        disk_of(20000),
        whole_file(tmp_path / "table.csv") as partial,
    ):
        partial.write_bytes(noise.tobytes())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="no permission"):
        write_like(scan(), phantom.as_volume(scan()), tmp_path / "heat.nii.gz", dtype=np.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        with pytest.raises(InputError, match="there is no folder"):
            write_like(scan(), phantom.as_volume(scan()), tmp_path / "out" / f"heat{suffix}", dtype=np.float32)
    with pytest.raises(InputError, match="there is no folder"):
        write_text(tmp_path / "out" / "findings.csv", "")


@pytest.mark.parametrize("name", ["heat", "heat.jpg", "heat.mhd", "heat.gz"])
def test_a_name_that_does_not_say_a_writable_format(tmp_path, name):
    with pytest.raises(InputError, match=r"suffix.*\.nii\.gz"):
        write_like(scan(), phantom.as_volume(scan()), tmp_path / name, dtype=np.float32)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_no_file_that_looks_whole(tmp_path):
    def interrupted():
        with whole_file(tmp_path / "report.html") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
