"""Scans come in whole and in place; results go out on exactly the scan's grid."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.io.volume import read_anomaly_map, read_mask, read_volume, write_like
from phantom import array

FORMATS = [".nii.gz", ".nii", ".nrrd", ".mha"]
OBLIQUE = phantom.rotation((11.0, 23.0, -37.0))


def scan(direction: np.ndarray = OBLIQUE, seed: int = 0, size=(9, 8, 7)) -> sitk.Image:
    image = phantom.grid(size, (0.9375, 1.1, 3.3), direction)
    return phantom.on_grid(np.random.default_rng(seed).integers(0, 900, size[::-1]).astype(np.int16), image)


def there_and_back(path: Path, copy: Path, **choice):
    """Read a scan, write its own values back, read that."""
    first = read_volume(path, **choice)
    write_like(first.image, first, copy, dtype=np.float32)
    return first, read_volume(copy)


# The grid, bit for bit


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_a_result_has_the_scans_grid_bit_for_bit(tmp_path, suffix, seed):
    degrees = np.random.default_rng(seed).uniform(-180, 180, 3)
    sitk.WriteImage(scan(phantom.rotation(degrees), seed), str(tmp_path / f"scan{suffix}"))
    first, second = there_and_back(tmp_path / f"scan{suffix}", tmp_path / f"heat{suffix}")
    assert phantom.geometry(second.image) == phantom.geometry(first.image)
    assert np.array_equal(array(second.image), array(first.image))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_metaimage_keeps_the_grid_of_every_format(tmp_path, suffix):
    sitk.WriteImage(scan(), str(tmp_path / f"scan{suffix}"))
    first, second = there_and_back(tmp_path / f"scan{suffix}", tmp_path / "heat.mha")
    assert phantom.geometry(second.image) == phantom.geometry(first.image)


def test_nifti_keeps_a_foreign_grid_to_a_thousandth_of_a_millimetre(tmp_path):
    sitk.WriteImage(scan(), str(tmp_path / "scan.mha"))
    first, second = there_and_back(tmp_path / "scan.mha", tmp_path / "heat.nii.gz")
    assert phantom.points(second.image) == pytest.approx(phantom.points(first.image), abs=1e-3)


def nifti_header(path: Path) -> bytearray:
    sitk.WriteImage(scan(), str(path))
    return bytearray(path.read_bytes())


def only_qform(content: bytearray) -> bytes:
    struct.pack_into("<hh", content, 252, 1, 0)
    return bytes(content)


def only_sform(content: bytearray) -> bytes:
    struct.pack_into("<hh", content, 252, 0, 2)
    return bytes(content)


def in_metres(content: bytearray) -> bytes:
    """The same places with another unit."""
    content[123] = 1
    for start, count in ((80, 3), (268, 3), (280, 12)):
        values = np.array(struct.unpack_from(f"<{count}f", content, start)) / 1000
        struct.pack_into(f"<{count}f", content, start, *values)
    return bytes(content)


def big_endian(content: bytearray) -> bytes:
    layout = "i10s18sihcb8h3f4h8f3fh2b4f2i80s24s2h6f12f16s4s"
    header = struct.pack(">" + layout, *struct.unpack("<" + layout, content[:348]))
    voxels = np.frombuffer(bytes(content[352:]), "<i2").astype(">i2").tobytes()
    return header + bytes(content[348:352]) + voxels


@pytest.mark.parametrize("variant", [only_qform, only_sform, in_metres, big_endian])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_every_way_to_write_a_nifti_orientation_survives(tmp_path, variant, suffix):
    content = variant(nifti_header(tmp_path / "plain.nii"))
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    first, second = there_and_back(path, tmp_path / f"heat{suffix}")
    assert phantom.geometry(second.image) == phantom.geometry(first.image)
    assert np.array_equal(array(second.image), array(scan()))
    assert phantom.points(first.image) == pytest.approx(phantom.points(scan()), abs=1e-3)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
def test_an_nrrd_in_either_world_survives(tmp_path, space):
    sign = -1 if space.startswith("right") else 1
    columns = (np.array(scan().GetDirection()).reshape(3, 3) * scan().GetSpacing()).T * [sign, sign, 1]
    vectors = " ".join(f"({','.join(repr(float(x)) for x in column)})" for column in columns)
    origin = ",".join(repr(float(x)) for x in np.array(scan().GetOrigin()) * [sign, sign, 1])
    header = (
        "NRRD0005\n# made by hand\ntype: short\ndimension: 3\n"
        f"space: {space}\nsizes: 9 8 7\nspace directions: {vectors}\nkinds: domain domain domain\n"
        f"endian: little\nencoding: raw\nspace origin: ({origin})\n\n"
    )
    (tmp_path / "scan.nrrd").write_bytes(header.encode() + array(scan()).tobytes())
    first, second = there_and_back(tmp_path / "scan.nrrd", tmp_path / "heat.nrrd")
    assert phantom.geometry(second.image) == phantom.geometry(first.image)
    assert np.array_equal(array(second.image), array(scan()))
    assert phantom.points(first.image) == pytest.approx(phantom.points(scan()), abs=1e-9)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_2d_slice_comes_back_as_a_2d_slice(tmp_path, suffix):
    flat = sitk.GetImageFromArray(np.arange(30, dtype=np.uint8).reshape(5, 6))
    flat.SetSpacing((0.7, 0.9))
    flat.SetOrigin((3.3, -4.4))
    flat.SetDirection((0, 1, -1, 0))
    sitk.WriteImage(flat, str(tmp_path / f"slice{suffix}"))
    volume, again = there_and_back(tmp_path / f"slice{suffix}", tmp_path / f"heat{suffix}")
    assert volume.dimension == again.dimension == 2
    assert volume.image.GetSize() == (6, 5, 1)
    original, written = (sitk.ReadImage(str(tmp_path / f"{name}{suffix}")) for name in ("slice", "heat"))
    assert phantom.geometry(written) == phantom.geometry(original)
    assert np.array_equal(array(written), array(flat))


@pytest.mark.parametrize("suffix", FORMATS[::2])
def test_one_frame_of_a_4d_scan_is_a_3d_scan(tmp_path, suffix):
    frames = [scan(seed=seed) for seed in range(3)]
    sitk.WriteImage(sitk.JoinSeries(frames), str(tmp_path / f"bold{suffix}"))
    volume, again = there_and_back(tmp_path / f"bold{suffix}", tmp_path / f"heat{suffix}", frame=2)
    assert volume.dimension == 3
    assert np.array_equal(array(volume.image), array(frames[2]))
    assert phantom.points(volume.image) == pytest.approx(phantom.points(frames[2]), abs=1e-3)
    assert phantom.points(again.image) == pytest.approx(phantom.points(volume.image), abs=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "lgg-flair/native/*_flair.nii.gz",
        "open-ms/patient26/*FLAIR*.nii.gz",
        "ixi-t1-2mm/*_ds.nii.gz",
        "synthseg-labels/*.nii.gz",
    ],
)
def test_real_scans_get_results_on_their_own_grid(shared, tmp_path, name):
    path = min(shared.glob(name))
    first, second = there_and_back(path, tmp_path / "heat.nii.gz")
    assert phantom.geometry(second.image) == phantom.geometry(first.image)
    assert np.array_equal(array(second.image), array(sitk.ReadImage(str(path))).astype(np.float32))


# Voxels


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_type_of_voxel_becomes_float32(tmp_path, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "scan.nrrd"))
    volume = read_volume(tmp_path / "scan.nrrd")
    assert volume.image.GetPixelID() == sitk.sitkFloat32
    assert np.array_equal(array(volume.image), values.astype(np.float32))


def test_voxels_that_are_no_number_become_the_smallest_value_and_are_counted(tmp_path):
    values = np.linspace(-5, 50, 60).reshape(3, 4, 5)
    values[0, 0, 1], values[1, 2, 3], values[2, 3, 4], values[1, 1, 1] = np.nan, np.inf, -np.inf, 1e300
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "scan.nrrd"))
    volume = read_volume(tmp_path / "scan.nrrd")
    assert volume.non_finite == 4
    assert np.isfinite(array(volume.image)).all()
    assert array(volume.image)[1, 2, 3] == array(volume.image).min() == -5


@pytest.mark.parametrize("ends", [(-3e38, 3e38), (0, 3.4e38), (-3.4e38, 0), (-3.4e38, -3.4e38), (-1e-30, 1e30)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_what_replaces_voxels_that_are_no_number_is_finite(tmp_path, ends, share):
    values = np.full(1000, np.float32(ends[0]))
    values[-1] = ends[1]
    values[: int(share * 1000)] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(values.reshape(10, 10, 10)), str(tmp_path / "scan.nrrd"))
    found = array(read_volume(tmp_path / "scan.nrrd").image)
    assert np.isfinite(found).all()
    assert found[0, 0, 0] == found.min() and found[-1, -1, -1] == np.float32(ends[1])


def test_a_constant_scan_is_a_scan(tmp_path):
    sitk.WriteImage(sitk.Image(5, 6, 7, sitk.sitkInt16) + 3, str(tmp_path / "scan.nii.gz"))
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert volume.non_finite == 0
    assert np.all(array(volume.image) == 3)


def test_a_mask_is_written_as_the_type_asked_for(tmp_path):
    sitk.WriteImage(scan(), str(tmp_path / "scan.nii.gz"))
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_like(array(volume.image) > 400, volume, tmp_path / "mask.nii.gz", dtype=np.uint8)
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(array(mask), array(scan()) > 400)


def test_values_of_another_shape_are_a_programming_error(tmp_path):
    volume = phantom.as_volume(scan())
    with pytest.raises(ValueError, match="shape"):
        write_like(np.zeros((9, 8, 7)), volume, tmp_path / "heat.nrrd", dtype=np.float32)


def test_scores_is_read_back_as_it_was_written(tmp_path):
    volume = phantom.as_volume(scan())
    anomaly_map = np.random.default_rng(0).gamma(1, 1, (7, 8, 9)).astype(np.float32)
    write_like(anomaly_map, volume, tmp_path / "heat.nii.gz", dtype=np.float32)
    assert np.array_equal(array(read_anomaly_map(tmp_path / "heat.nii.gz").image), anomaly_map)


# Masks


@pytest.mark.parametrize("inside", [(4, 7, 0), (1, 0.6, 0.4)], ids=["labels", "probabilities"])
def test_labels_and_probabilities_become_a_mask_on_the_scans_own_grid(tmp_path, inside):
    volume = phantom.as_volume(scan())
    values = np.zeros((7, 8, 9), np.float32)
    values[1, 2, 3], values[2, 2, 2], values[3, 3, 3] = inside
    write_like(values, volume, tmp_path / "labels.nii.gz", dtype=np.float32)
    mask = read_mask(tmp_path / "labels.nii.gz", volume)  # NIfTI has rounded the grid to float32
    assert phantom.geometry(mask) == phantom.geometry(volume.image)
    assert np.argwhere(array(mask) == 1).tolist() == [[1, 2, 3], [2, 2, 2]]


# Where a scan comes from


def test_the_hash_is_that_of_the_files_bytes(tmp_path):
    for name, parts in {"a.nii.gz": [], "b.mha": [], "c.mhd": ["c.zraw"], "d.nhdr": ["d.raw.gz"]}.items():
        sitk.WriteImage(scan(), str(tmp_path / name), True)
        content = b"".join((tmp_path / part).read_bytes() for part in [name, *parts])
        volume = read_volume(tmp_path / name)
        assert volume.sha256 == hashlib.sha256(content).hexdigest()
        assert volume.source == str(tmp_path / name)


@pytest.mark.parametrize("suffix", FORMATS)
def test_spaces_and_foreign_letters_in_paths(tmp_path, suffix):
    folder = tmp_path / "Größe αβγ 脳 мозг"
    folder.mkdir()
    sitk.WriteImage(scan(), str(folder / f"un scan été{suffix}"))
    first, second = there_and_back(folder / f"un scan été{suffix}", folder / f"тепло 熱{suffix}")
    assert phantom.geometry(second.image) == phantom.geometry(first.image)
    write_like(first.image, first, folder / f"{'長' * 60}{suffix}", dtype=np.float32)
    assert len(list(folder.iterdir())) == 3


# DICOM


def test_a_dicom_folder_is_one_volume_in_place(tmp_path):
    folder = tmp_path / "série 1"
    phantom.write_dicom(folder, scan())
    volume, again = there_and_back(folder, tmp_path / "heat.mha")
    assert np.array_equal(array(volume.image), array(scan()))
    assert phantom.points(volume.image) == pytest.approx(phantom.points(scan()), abs=1e-4)
    assert phantom.geometry(again.image) == phantom.geometry(volume.image)
    assert dict(volume.metadata) == {"modality": "MR", "description": "FLAIR axial"}


def test_a_dicom_stack_written_head_first_lies_in_the_same_place(tmp_path):
    phantom.write_dicom(tmp_path / "up", scan())
    phantom.write_dicom(tmp_path / "down", sitk.Flip(scan(), (False, False, True)))
    up, down = (read_volume(tmp_path / name) for name in ("up", "down"))
    assert np.array_equal(array(up.image), array(down.image))
    assert phantom.points(up.image) == pytest.approx(phantom.points(down.image), abs=1e-4)


@pytest.mark.parametrize("choice", ["1.2.3.2", "T1 sagittal"])
def test_a_series_is_chosen_by_uid_or_description(tmp_path, choice):
    phantom.write_dicom(tmp_path, scan(), uid="1.2.3.1")
    phantom.write_dicom(tmp_path, scan(seed=5), uid="1.2.3.2", description="T1 sagittal", first_number=50)
    volume = read_volume(tmp_path, series=choice)
    assert np.array_equal(array(volume.image), array(scan(seed=5)))


def test_a_time_point_of_a_dicom_series_is_chosen_by_number(tmp_path):
    phantom.write_dicom(tmp_path, scan())
    phantom.write_dicom(tmp_path, scan(seed=6), first_number=100)
    for frame, seed in ((0, 0), (1, 6)):
        assert np.array_equal(array(read_volume(tmp_path, frame=frame).image), array(scan(seed=seed)))


def test_a_single_dicom_file_is_one_slice_in_place(tmp_path):
    phantom.write_dicom(tmp_path, scan(), skip=[k for k in range(7) if k != 4])
    for path in (tmp_path, next(tmp_path.iterdir())):
        volume = read_volume(path)
        assert np.array_equal(array(volume.image), array(scan())[4:5])
        assert phantom.points(volume.image)[0] == pytest.approx(phantom.points(scan())[4], abs=1e-4)
