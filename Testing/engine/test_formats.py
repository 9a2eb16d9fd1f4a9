"""Each format is read right or refused by name; no byte of a file ends in another error, or in invented voxels."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import phantom
from diffusion_anomaly.errors import EngineError, InputError, MemoryExhausted
from diffusion_anomaly.io import content
from diffusion_anomaly.io import nifti as formats_nifti
from diffusion_anomaly.io.volume import read_volume, write_like

SIZE = (9, 8, 7)
VALUES = np.random.default_rng(0).integers(1, 900, SIZE[::-1]).astype(np.int16)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -120], [0, 0, 5, -60], [0, 0, 0, 1]])
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def refused(path: Path, words: str, error: type[EngineError] = InputError, **choice) -> str:
    """The error of a file, checked to be said in plain words, with what to do."""
    with pytest.raises(error, match=words) as caught:
        read_volume(path, **choice)
    assert caught.value.hint
    assert not any(word in str(caught.value) for word in ("itk", "nibabel", "Traceback", "0x", "\n"))
    return str(caught.value)


def array_of(path: Path, **choice) -> np.ndarray:
    return sitk.GetArrayFromImage(read_volume(path, **choice).image)


def nifti(kind: type = nib.Nifti1Image, values: np.ndarray = VALUES, **fields) -> bytes:
    """A NIfTI file with header fields set by hand."""
    image = kind(values.T, AFFINE)
    image.header.set_sform(AFFINE, 1)
    header = image.header
    header["magic"] = b"n+1" if header.sizeof_hdr == 348 else b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = header.sizeof_hdr + 4
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + bytes(4) + values.tobytes()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# NIfTI: what the fields say


def test_the_sform_decides_over_a_negative_voxel_size(tmp_path):
    path = write(tmp_path / "scan.nii", nifti(pixdim=[1, -2, 2, 5, 0, 0, 0, 0]))
    volume = read_volume(path)
    plain = read_volume(write(tmp_path / "plain.nii", nifti()))
    assert phantom.geometry(volume.image) == phantom.geometry(plain.image)
    assert "negative" in " ".join(volume.warnings) and plain.warnings == ()


def test_the_sform_decides_over_other_voxel_sizes(tmp_path):
    volume = read_volume(write(tmp_path / "scan.nii", nifti(pixdim=[1, 1, 1, 1, 0, 0, 0, 0], qform_code=0)))
    assert volume.image.GetSpacing() == (2, 2, 5)
    assert "2 x 2 x 5 mm; the sform was used" in " ".join(volume.warnings)


@pytest.mark.parametrize("part", [3, np.nan])
def test_a_form_that_is_not_in_use_may_be_damaged_but_is_said(tmp_path, part):
    volume = read_volume(write(tmp_path / "scan.nii", nifti(quatern_b=part, qform_code=1)))
    assert volume.image.GetSpacing() == (2, 2, 5)
    assert "qform is damaged" in " ".join(volume.warnings)


@pytest.mark.parametrize(("fields", "words"), [
    ({"srow_x": [np.nan, 0, 0, 0]}, "sform holds numbers that are not finite"),
    ({"sform_code": 0, "qform_code": 1, "quatern_c": np.nan}, "qform holds numbers that are not finite"),
    ({"sform_code": 0, "qform_code": 1, "quatern_c": 3}, "qform's quaternion is no rotation"),
    ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 2, 0, 5, 0, 0, 0, 0]}, "0 x 5 mm"),
    ({"xyzt_units": 1}, "2000 x 2000 x 5000 mm"),
    ({"vox_offset": np.nan}, "vox_offset"),
    ({"vox_offset": 1e30}, "vox_offset"),
    ({"vox_offset": -352}, "vox_offset"),
    ({"vox_offset": 0}, "vox_offset"),
    ({"scl_slope": np.inf}, "scl_slope"),
    ({"scl_slope": 1e-40}, "scl_slope"),
    ({"scl_slope": -3e38}, "scl_slope"),
    ({"dim": [0, 9, 8, 7, 1, 1, 1, 1]}, "0 dimensions"),
    ({"dim": [8, 9, 8, 7, 1, 1, 1, 1]}, "8 dimensions"),
    ({"dim": [3, 9, -8, 7, 1, 1, 1, 1]}, "9 x -8 x 7"),
    ({"dim": [3, 9, 8, 0, 1, 1, 1, 1]}, "9 x 8 x 0"),
    ({"dim": [3, 9, 8, 32767, 1, 1, 1, 1]}, "cut short"),
    ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "at most"),
    ({"dim": [6, 9, 8, 7, 2, 2, 2, 1]}, "6 dimensions"),
    ({"dim": [5, 9, 8, 7, 1, 3, 1, 1]}, "vectors.*3 values"),
    ({"datatype": 32}, "complex"),
    ({"datatype": 1792}, "complex"),
    ({"datatype": 128}, "colour"),
    ({"datatype": 2304}, "colour"),
    ({"datatype": 1}, "type 1"),
    ({"datatype": 1536}, "type 1536"),
    ({"datatype": 4242}, "type 4242"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_without_sense_is_refused_by_the_field(tmp_path, fields, words, suffix):
    data = nifti(**fields)
    refused(write(tmp_path / f"scan{suffix}", gzip.compress(data) if suffix == ".nii.gz" else data), words)


@pytest.mark.parametrize(("slope", "intercept", "factor", "offset"), [
    (0.5, 3, 0.5, 3), (0, 7, 1, 0), (np.nan, np.nan, 1, 0), (2, np.nan, 2, 0), (-1, 0, -1, 0),
    (1e-6, 0, np.float32(1e-6), 0), (1e6, 0, 1e6, 0),
])  # fmt: skip
def test_voxels_are_scaled_where_the_header_says_how(tmp_path, slope, intercept, factor, offset):
    path = write(tmp_path / "scan.nii", nifti(scl_slope=slope, scl_inter=intercept))
    assert np.array_equal(array_of(path), (VALUES * factor + offset).astype(np.float32))
    assert bool(read_volume(path).warnings) == (slope == 2)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "name", ["scan.nii", "scan.nii.gz", "gz.nii", "plain.nii.gz", "SCAN.NII.GZ", "scan", "scan.mha"]
)
def test_the_content_decides_not_the_name(tmp_path, kind, name):
    data = nifti(kind)
    compressed = name in ("scan.nii.gz", "gz.nii", "SCAN.NII.GZ")
    assert np.array_equal(array_of(write(tmp_path / name, gzip.compress(data) if compressed else data)), VALUES)


def test_a_result_of_a_nifti_2_scan_is_a_nifti_1_on_its_grid(tmp_path):
    volume = read_volume(write(tmp_path / "scan.nii", nifti(nib.Nifti2Image)))
    write_like(volume.image, volume, tmp_path / "map.nii.gz", dtype=np.float32)
    assert phantom.geometry(sitk.ReadImage(str(tmp_path / "map.nii.gz"))) == phantom.geometry(volume.image)


def test_one_volume_of_a_4d_nifti(tmp_path):
    values = np.stack([VALUES, VALUES + 1, VALUES + 2])
    for suffix, pack in ((".nii", bytes), (".nii.gz", gzip.compress)):
        path = write(tmp_path / f"bold{suffix}", pack(nifti(values=values)))
        assert np.array_equal(array_of(path, frame=1), VALUES + 1)
        refused(path, "3 volumes.*--frame")
        write(path, pack(nifti(values=values)[:-10]))
        refused(path, "cut short", frame=0)  # also where the frame itself is there


@pytest.mark.parametrize("shape", [(1, 8, 9), (7, 1, 9), (7, 8, 1)])
def test_a_single_slice_in_any_plane(tmp_path, shape):
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    assert np.array_equal(array_of(write(tmp_path / "scan.nii", nifti(values=values))), values)


def test_a_slice_without_a_thickness_is_a_millimetre_thick_and_that_is_said(tmp_path):
    data = nifti(
        values=VALUES[:1],
        pixdim=[1, 2, 2, 0, 0, 0, 0, 0],
        srow_z=[0, 0, 0, 4],
        srow_x=[2, 0, 0, 0],
        srow_y=[0, 2, 0, 0],
    )
    volume = read_volume(write(tmp_path / "scan.nii", data))
    assert volume.image.GetSpacing() == (2, 2, 1)
    assert "thickness" in " ".join(volume.warnings)


# Text in headers


@pytest.mark.parametrize("text", [b"Sch\xe4del", b"\x1b[31mred\x07", b"\xff\xfe\xfd", b"line\r\nline", b"\0\0x"])
def test_text_of_any_bytes_is_carried_as_text(tmp_path, text):
    volume = read_volume(write(tmp_path / "scan.nii", nifti(descrip=text)))
    for said in volume.metadata.values():
        said.encode()
        assert said.isprintable()
    nrrd = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nspace: LPS\n"
    nrrd += b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
    line = text.replace(b"\r\n", b" ")
    volume = read_volume(
        write(tmp_path / "scan.nrrd", nrrd + b"0008|103e:=" + line + b"\nkey:=" + line + b"\n\n" + b"01234567")
    )
    assert all(said.isprintable() for said in volume.metadata.values())
    assert read_volume(tmp_path / "scan.nrrd").warnings == ()


# Pairs and twins


def pair(folder: Path, kind: str = "nifti") -> tuple[bytes, bytes]:
    """Header and voxels of a pair."""
    if kind == "nifti":
        header = bytearray(nifti(vox_offset=0)[:348])
        header[344:348] = b"ni1\0"
        return bytes(header), VALUES.tobytes()
    header = nib.Spm2AnalyzeHeader(endianness="<")
    header.set_data_dtype("i2")
    header.set_data_shape(SIZE)
    header.set_zooms((2, 2, 5))
    return header.binaryblock, VALUES.tobytes()


@pytest.mark.parametrize("kind", ["nifti", "analyze"])
@pytest.mark.parametrize("given", ["brain.hdr", "brain.img"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_pair_is_read_by_either_name_and_hashed_whole(tmp_path, kind, given, compressed):
    header, voxels = pair(tmp_path, kind)
    if compressed:
        header, voxels, given = gzip.compress(header), gzip.compress(voxels), f"{given}.gz"
    end = ".gz" if compressed else ""
    write(tmp_path / f"brain.hdr{end}", header)
    write(tmp_path / f"brain.img{end}", voxels)
    volume = read_volume(tmp_path / given)
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), VALUES)
    assert volume.sha256 == hashlib.sha256(header + voxels).hexdigest()
    assert bool(volume.warnings) == (kind == "analyze")


def test_a_pair_with_two_partners_is_refused_and_one_without_too(tmp_path):
    header, voxels = pair(tmp_path)
    write(tmp_path / "brain.hdr", header)
    refused(tmp_path / "brain.hdr", "brain.img beside it, which is missing")
    write(tmp_path / "brain.img", voxels)
    write(tmp_path / "brain.img.gz", gzip.compress((VALUES + 1).tobytes()))
    refused(tmp_path / "brain.hdr", r"two partners, brain.img and brain.img.gz")
    assert np.array_equal(array_of(tmp_path / "brain.img"), VALUES)
    assert np.array_equal(array_of(tmp_path / "brain.img.gz"), VALUES + 1)
    write(tmp_path / "brain.img", voxels[:-1])
    refused(tmp_path / "brain.img", "cut short")
    write(tmp_path / "alone.img", voxels)
    refused(tmp_path / "alone.img", "alone.hdr beside it")


@pytest.mark.parametrize("named", ["scan.nii", "scan.nii.gz"])
def test_a_twin_under_the_other_name_is_not_touched(tmp_path, named):
    files = {
        "scan.nii": nifti(),
        "scan.nii.gz": gzip.compress(nifti(values=VALUES + 1, srow_x=[-3, 0, 0, 1], qform_code=0)),
    }
    for name, data in files.items():
        write(tmp_path / name, data)
    volume = read_volume(tmp_path / named)
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), VALUES + (named != "scan.nii"))
    assert volume.image.GetSpacing()[0] == (2 if named == "scan.nii" else 3)
    assert volume.sha256 == hashlib.sha256(files[named]).hexdigest()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_scan_replaced_during_a_run_changes_nothing(tmp_path, suffix):
    first, other = (
        phantom.on_grid(VALUES, phantom.grid(SIZE, mm, phantom.rotation((9, 20, 30)))) for mm in ((1, 2, 3), (2, 2, 2))
    )
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(first, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    volume = read_volume(path)
    write_like(volume.image, volume, tmp_path / f"before{suffix}", dtype=np.float32)
    sitk.WriteImage(other, str(path))
    write_like(volume.image, volume, tmp_path / f"after{suffix}", dtype=np.float32)
    path.unlink()
    write_like(volume.image, volume, tmp_path / f"gone{suffix}", dtype=np.float32)
    assert volume.sha256 == digest
    assert len({(tmp_path / f"{name}{suffix}").read_bytes() for name in ("before", "after", "gone")}) == 1
    assert phantom.geometry(read_volume(tmp_path / f"after{suffix}").image) == phantom.geometry(volume.image)


def test_a_scan_written_to_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "scan.nii", nifti())
    read_frame = formats_nifti.read_frame

    def interrupted(*arguments):
        with open(path, "r+b") as file:
            file.seek(400)
            file.write(b"other")
        os.utime(path, ns=(1, 1))
        return read_frame(*arguments)

    monkeypatch.setattr(formats_nifti, "read_frame", interrupted)
    refused(path, "changed while it was read")


def test_a_compressed_result_is_read_alike_by_an_independent_reader(tmp_path):
    volume = read_volume(write(tmp_path / "scan.nii", nifti()))
    write_like(volume.image, volume, tmp_path / "map.nii.gz", dtype=np.float32)
    image = nib.load(tmp_path / "map.nii.gz")
    assert np.array_equal(image.get_fdata().T, VALUES)
    assert np.array_equal(image.affine, AFFINE)


# Streams


STREAMS = {
    "cut": lambda data: data[: len(data) // 2],
    "without its checksum": lambda data: data[:-6],
    "wrong checksum": lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
    "wrong length": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "flipped": lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:],
    "garbage behind": lambda data: data + b"garbage",
    "zeros and garbage behind": lambda data: data + bytes(600) + b"x",
    "half a member behind": lambda data: data + gzip.compress(b"more")[:12],
}


@pytest.mark.parametrize("harm", STREAMS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mgz"])
def test_a_gzip_stream_is_held_against_its_checksum(tmp_path, suffix, harm):
    path = tmp_path / f"scan{suffix}"
    data = path
    if suffix in (".nii.gz", ".nii"):
        write(path, gzip.compress(nifti()))
    elif suffix == ".mgz":
        nib.save(nib.MGHImage(VALUES.T, AFFINE), path)
    else:
        data = nrrd(path, encoding="gzip")
    whole = data.read_bytes()
    start = whole.find(b"\x1f\x8b")
    write(data, whole[:start] + STREAMS[harm](whole[start:]))
    refused(path, "damaged|cut short")
    write(data, whole + bytes(1000))
    assert np.array_equal(array_of(path), VALUES)


@pytest.mark.parametrize("harm", ["cut", "flipped", "wrong checksum", "garbage behind"])
def test_a_zlib_stream_of_a_metaimage_is_held_against_its_checksum(tmp_path, harm):
    data = zlib.compress(VALUES.tobytes())
    data = {**STREAMS, "wrong checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1])}[harm](data)
    path = metaimage(tmp_path / "scan.mha", data, CompressedData="True")
    if harm == "garbage behind":
        refused(path, "damaged")
        metaimage(path, data, CompressedData="True", CompressedDataSize=len(data) - 7)
        assert "7 bytes follow" in " ".join(read_volume(path).warnings)
    else:
        refused(path, "damaged|cut short")


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_bzip2_stream_is_held_against_its_checksum(tmp_path, harm):
    nrrd(tmp_path / "scan.nrrd", STREAMS[harm](bz2.compress(VALUES.tobytes())), encoding="bzip2")
    refused(tmp_path / "scan.nrrd", "damaged|cut short")


def test_several_members_and_an_extra_gzip_header(tmp_path):
    data = nifti()
    named = io.BytesIO()
    with gzip.GzipFile("n" * 3000, "wb", fileobj=named) as file:
        file.write(data[:400])
    path = write(tmp_path / "scan.nii.gz", named.getvalue() + gzip.compress(data[400:]))
    assert np.array_equal(array_of(path), VALUES)


# Bounds before memory


def bomb(kind: str, path: Path) -> Path:
    """A small file whose header promises a lot."""
    if kind == "nifti":
        return write(path.with_suffix(".nii"), nifti(dim=[3, 30000, 30000, 2, 1, 1, 1, 1]))
    if kind == "gzip":
        return write(path.with_suffix(".nii.gz"), gzip.compress(nifti(dim=[3, 30000, 30000, 2, 1, 1, 1, 1])))
    if kind == "nifti2":
        return write(path.with_suffix(".nii"), nifti(nib.Nifti2Image, dim=[3, 2**40, 2**40, 2**40, 1, 1, 1, 1]))
    if kind == "nrrd":
        return nrrd(path.with_suffix(".nrrd"), sizes="99999999999999999999999999 9 9")
    if kind == "nrrd text":
        return nrrd(path.with_suffix(".nrrd"), b"1 2 3", encoding="ascii", sizes="9000 9000 20")
    if kind == "mgh":
        header = struct.pack(
            ">7ih15f", 1, 30000, 30000, 2, 1, 4, 0, 1, *[1, 1, 1, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0]
        )
        return write(path.with_suffix(".mgh"), header + bytes(400))
    return metaimage(path.with_suffix(".mha"), b"x", DimSize="30000 30000 2", CompressedData=str(kind == "meta zlib"))


@pytest.mark.parametrize("kind", ["nifti", "gzip", "nifti2", "nrrd", "nrrd text", "mgh", "meta", "meta zlib"])
def test_a_promise_that_a_file_cannot_keep_takes_no_memory(tmp_path, kind):
    path = bomb(kind, tmp_path / "scan")
    import tracemalloc

    tracemalloc.start()
    try:
        refused(path, "cut short|expected 1 to|at most|sizes")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_scan_beyond_this_machines_memory_blames_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "_memory", lambda: 100)
    refused(write(tmp_path / "scan.nii", nifti()), "header states 9 x 8 x 7 voxels", MemoryExhausted)


# NRRD


def nrrd(path: Path, data: bytes | None = None, *, drop: tuple[str, ...] = (), extra: str = "", **fields) -> Path:
    """Write an NRRD with fields of choice, and give the file with the voxels."""
    encoding = str(fields.get("encoding", "raw"))
    if data is None:
        data = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)(VALUES.tobytes())
    lines = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "9 8 7",
        "space directions": "(2,0,0) (0,2,0) (0,0,5)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(-90,-120,-60)",
    }
    lines |= {key.replace("_", " "): value for key, value in fields.items()}
    detached = path.suffix == ".nhdr"
    if detached and "data file" not in lines:
        lines["data file"] = "voxels.raw"
    head = "NRRD0005\n" + extra + "".join(f"{key}: {value}\n" for key, value in lines.items() if key not in drop)
    if detached:
        write(path, head.encode())
        if not (path.parent / "voxels.raw").exists() or data is not None:
            write(path.parent / "voxels.raw", data)
        return path.parent / "voxels.raw"
    return write(path, head.encode() + b"\n" + data)


@pytest.mark.parametrize(("fields", "words"), [
    ({"space_units": '"cm" "cm" "cm"', "space_directions": "(0.2,0,0) (0,0.2,0) (0,0,0.5)"}, "turned into millimetres"),
    ({"space": "scanner-xyz"}, "scanner-xyz"),
    ({"space": "3D-left-handed"}, "3d-left-handed"),
    ({"drop": ("space", "space directions", "space origin"), "spacings": "2 2 5"}, "no orientation"),
    ({"drop": ("space origin",)}, "no origin"),
])  # fmt: skip
def test_what_an_nrrd_leaves_open_is_said(tmp_path, fields, words):
    nrrd(tmp_path / "scan.nrrd", **fields)
    volume = read_volume(tmp_path / "scan.nrrd")
    assert words in " ".join(volume.warnings)
    assert volume.image.GetSpacing() == pytest.approx((2, 2, 5))
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), VALUES)


@pytest.mark.parametrize(("fields", "words"), [
    ({"space_units": '"inch" "inch" "inch"'}, "inch"),
    ({"space_units": '"mm" "cm" "mm"'}, "several units"),
    ({"space_directions": "(2,0,0) (0.6,2,0) (0,0,5)"}, "right angles"),
    ({"space_directions": "(2,0,0) (0,2,0)"}, "space directions"),
    ({"space_directions": "(2,0,0) (0,nan,0) (0,0,5)"}, "not finite"),
    ({"space_directions": "rubbish"}, "no NRRD file that can be read"),
    ({"space_origin": "(1,2)"}, "origin"),
    ({"kinds": "domain domain"}, "kinds"),
    ({"kinds": "vector domain domain", "space_directions": "none (2,0,0) (0,2,0)"}, "vectors.*9 values"),
    ({"kinds": "RGB-color domain domain", "space_directions": "none (2,0,0) (0,2,0)"}, "colour.*9 values"),
    ({"kinds": "complex domain domain", "space_directions": "none (2,0,0) (0,2,0)"}, "complex"),
    ({"type": "block"}, "type block"),
    ({"type": "quad"}, "type quad"),
    ({"encoding": "hex"}, "encoded as hex"),
    ({"drop": ("endian",)}, "endian"),
    ({"drop": ("sizes",)}, "no sizes"),
    ({"drop": ("encoding",)}, "no encoding"),
    ({"sizes": "9 8 7 1"}, "3 dimensions and 4 sizes"),
    ({"sizes": "9.5 8 7"}, "whole numbers"),
    ({"sizes": "9 8 0"}, "9 x 8 x 0"),
    ({"byte_skip": "-7"}, "skips"),
    ({"byte_skip": "1_0"}, "no decimal numbers"),
    ({"space_directions": "(2_0,0,0) (0,2,0) (0,0,5)"}, "no decimal numbers"),
    ({"space_origin": "(\u0662,0,0)"}, "no decimal numbers"),
    ({"drop": ("space", "space directions", "space origin"), "spacings": "2 1_0 5"}, "no decimal numbers"),
    ({"line_skip": "99999999999"}, "skips"),
    ({"extra": "no field\n"}, "no field"),
    ({"extra": "type: int\n"}, "twice"),
    ({"extra": "x" * 300_000 + ": 1\n"}, "too long"),
    ({"extra": "space: " + "x" * 5000 + "\n", "drop": ("space",)}, "at length"),
])  # fmt: skip
def test_an_nrrd_without_sense_is_refused(tmp_path, fields, words):
    nrrd(tmp_path / "scan.nrrd", **fields)
    refused(tmp_path / "scan.nrrd", words)


def test_a_header_of_letters_alone_is_refused(tmp_path):
    for size in (3000, 3_000_000):
        refused(write(tmp_path / "scan.nrrd", b"NRRD0004\n" + b"a" * size), "no field|no end")
        refused(write(tmp_path / "scan.mha", b"ObjectType = Image\n" + b"a" * size), "'='|ElementData|no end")


@pytest.mark.parametrize("first", [True, False])
def test_an_axis_of_volumes_may_be_the_first_or_the_last(tmp_path, first):
    frames = np.stack([VALUES, VALUES + 1, VALUES + 2])
    domain = "(2,0,0) (0,2,0) (0,0,5)"
    nrrd(
        tmp_path / "seq.nrrd",
        (np.moveaxis(frames, 0, -1) if first else frames).tobytes(),
        dimension="4",
        sizes="3 9 8 7" if first else "9 8 7 3",
        kinds="list domain domain domain" if first else "domain domain domain list",
        space_directions=f"none {domain}" if first else f"{domain} none",
    )
    assert np.array_equal(array_of(tmp_path / "seq.nrrd", frame=2), VALUES + 2)
    assert read_volume(tmp_path / "seq.nrrd", frame=2).image.GetSpacing() == (2, 2, 5)
    refused(tmp_path / "seq.nrrd", "3 volumes")


def test_data_files_of_slices_by_list_and_by_pattern(tmp_path):
    (tmp_path / "slices").mkdir()
    for number, plane in enumerate(VALUES, 1):
        write(tmp_path / "slices" / f"s{number:03d}.raw", plane.tobytes())
    names = "\n".join(f"slices/s{number:03d}.raw" for number in range(1, 8))
    for data_file in ("slices/s%03d.raw 1 7 1 2", "slices/s%03d.raw 1 7 1", f"LIST\n{names}", f"LIST 2\n{names}"):
        nrrd(tmp_path / "scan.nhdr", data_file=data_file)
        assert np.array_equal(array_of(tmp_path / "scan.nhdr"), VALUES)
        metaimage(tmp_path / "scan.mhd", b"", ElementDataFile=f"LIST\n{names}")
        assert np.array_equal(array_of(tmp_path / "scan.mhd"), VALUES)
    for bad in ("slices/s%s.raw 1 7 1", "slices/s%03d%n.raw 1 7 1", "slices/s%03d.raw 1 7 0", "s%d.raw 1 999999999 1"):
        nrrd(tmp_path / "scan.nhdr", data_file=bad)
        refused(tmp_path / "scan.nhdr", "pattern")
    write(tmp_path / "slices" / "s004.raw", VALUES[3].tobytes()[:-2])
    nrrd(tmp_path / "scan.nhdr", data_file="slices/s%03d.raw 1 7 1")
    refused(tmp_path / "scan.nhdr", "s004.raw is cut short")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../voxels.raw", "a/../../voxels.raw", "C:\\voxels.raw", "\\\\host\\voxels.raw"]
)
def test_a_header_names_no_file_outside_its_folder(tmp_path, name):
    folder = tmp_path / "inside"
    folder.mkdir()
    write(tmp_path / "voxels.raw", VALUES.tobytes())
    nrrd(folder / "scan.nhdr", data_file=name)
    refused(folder / "scan.nhdr", "own folder only")
    metaimage(folder / "scan.mhd", b"", ElementDataFile=name)
    refused(folder / "scan.mhd", "own folder only")


def test_skipped_lines_and_bytes(tmp_path):
    nrrd(tmp_path / "scan.nrrd", b"line\nline\nabc" + VALUES.tobytes(), line_skip="2", byte_skip="3")
    assert np.array_equal(array_of(tmp_path / "scan.nrrd"), VALUES)
    nrrd(tmp_path / "scan.nrrd", b"whatever" + VALUES.tobytes(), byte_skip="-1")
    assert np.array_equal(array_of(tmp_path / "scan.nrrd"), VALUES)
    nrrd(tmp_path / "scan.nrrd", VALUES.tobytes()[:-4], byte_skip="-1")
    refused(tmp_path / "scan.nrrd", "cut short")


def test_bytes_that_follow_the_voxels_are_said(tmp_path):
    nrrd(tmp_path / "scan.nrrd", VALUES.tobytes() + bytes(1008))
    assert "1008 bytes follow" in " ".join(read_volume(tmp_path / "scan.nrrd").warnings)


# MetaImage


def metaimage(path: Path, data: bytes | None = None, **fields) -> Path:
    """Write a MetaImage with fields of choice; None leaves one out."""
    lines: dict[str, object] = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-90 -120 -60",
        "ElementSpacing": "2 2 5",
        "DimSize": "9 8 7",
        "ElementType": "MET_SHORT",
    }
    lines |= fields
    last = str(lines.pop("ElementDataFile", "LOCAL"))
    head = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None)
    head += f"ElementDataFile = {last}\n"
    return write(path, head.encode() + (VALUES.tobytes() if data is None else data))


@pytest.mark.parametrize(("fields", "words"), [
    ({"TransformMatrix": "1 0 0 0.3 1 0 0 0 1"}, "right angles|scales"),
    ({"TransformMatrix": "2 0 0 0 2 0 0 0 2"}, "scales"),
    ({"TransformMatrix": "1 0 0 0 1 0 0 0 nan"}, "not 9 numbers"),
    ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "spacing"),
    ({"TransformMatrix": "1 0 0 1"}, "not 9 numbers"),
    ({"ElementSpacing": "2000 2000 5000"}, "2000 x 2000 x 5000 mm"),
    ({"ElementSpacing": "2 -2 5"}, "negative"),
    ({"ElementSpacing": "2 0 5"}, "0 x 5 mm"),
    ({"ElementSpacing": "2 two 5"}, "not 3 numbers"),
    ({"Offset": "inf 0 0"}, "not 3 numbers"),
    ({"Offset": "1e999 0 0"}, "not finite"),
    ({"ElementSpacing": "1_0 1 1"}, "not 3 numbers"),
    ({"ElementSpacing": "\u0662 1 1"}, "not 3 numbers"),
    ({"ElementSpacing": "0x2 1 1"}, "not 3 numbers"),
    ({"DimSize": "9 8 0_7"}, "not 3 numbers"),
    ({"NDims": "--3"}, "NDims"),
    ({"NDims": "0_3"}, "NDims"),
    ({"Position": "1 2 3"}, "contradict"),
    ({"NDims": 100000}, "100000 dimensions"),
    ({"NDims": "²"}, "NDims"),
    ({"NDims": None}, "NDims"),
    ({"DimSize": "9 8 99999999999999999999"}, "DimSize"),
    ({"DimSize": "9 8 -7"}, "9 x 8 x -7"),
    ({"ElementNumberOfChannels": 3}, "colour.*3 values"),
    ({"ElementType": "MET_FLOAT_ARRAY"}, "MET_FLOAT_ARRAY"),
    ({"ElementType": None}, "unknown"),
    ({"HeaderSize": -5}, "HeaderSize"),
    ({"ElementDataFile": "%s%n"}, "pattern"),
    ({"ElementDataFile": "s%03d.raw 1 7 1"}, "pattern"),
    ({"ElementDataFile": "missing.raw"}, "missing.raw beside it"),
    ({"ElementDataFile": "x" * 5000}, "x beside it"),
    ({"ElementDataFile": ""}, "own folder"),
    ({"ElementDataFile": "LIST"}, "own folder|data files|missing"),
])  # fmt: skip
def test_a_metaimage_without_sense_is_refused(tmp_path, fields, words):
    refused(metaimage(tmp_path / "scan.mha", **fields), words)


@pytest.mark.parametrize(("fields", "words"), [
    ({"TransformMatrix": None}, "no orientation"),
    ({"ElementSpacing": None}, "1 mm was taken"),
    ({"Offset": None}, "no origin"),
])  # fmt: skip
def test_what_a_metaimage_leaves_open_is_said(tmp_path, fields, words):
    volume = read_volume(metaimage(tmp_path / "scan.mha", **fields))
    assert words in " ".join(volume.warnings)
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), VALUES)


@pytest.mark.parametrize(("code", "dtype"), [
    ("CHAR", "i1"), ("UCHAR", "u1"), ("SHORT", "i2"), ("USHORT", "u2"), ("INT", "i4"), ("UINT", "u4"), ("LONG", "i4"),
    ("ULONG", "u4"), ("LONG_LONG", "i8"), ("ULONG_LONG", "u8"), ("FLOAT", "f4"), ("DOUBLE", "f8"),
])  # fmt: skip
@pytest.mark.parametrize("big", [False, True])
def test_every_type_of_a_metaimage(tmp_path, code, dtype, big):
    values = (VALUES % 100).astype(np.dtype(dtype).newbyteorder(">" if big else "<"))
    path = metaimage(tmp_path / "scan.mha", values.tobytes(), ElementType=f"MET_{code}", BinaryDataByteOrderMSB=big)
    assert np.array_equal(array_of(path), VALUES % 100)
    assert np.array_equal(array_of(path), sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32)))


def test_a_metaimage_of_several_volumes_and_one_as_text(tmp_path):
    eye = " ".join(str(int(i % 5 == 0)) for i in range(16))
    frames = np.stack([VALUES, VALUES + 1])
    fields = {
        "NDims": 4,
        "DimSize": "9 8 7 2",
        "TransformMatrix": eye,
        "Offset": "0 0 0 0",
        "ElementSpacing": "2 2 5 1",
    }
    path = metaimage(tmp_path / "bold.mha", frames.tobytes(), **fields)
    assert np.array_equal(array_of(path, frame=1), VALUES + 1)
    refused(path, "2 volumes")
    text = " ".join(map(str, VALUES.ravel())).encode()
    assert np.array_equal(array_of(metaimage(tmp_path / "text.mha", text, BinaryData="False")), VALUES)
    refused(metaimage(tmp_path / "text.mha", text.replace(b" ", b" x", 1), BinaryData="False"), "not all numbers")
    refused(metaimage(tmp_path / "text.mha", text[:-60], BinaryData="False"), "cut short|promises")


# FreeSurfer


def test_mgh_without_an_orientation_says_so(tmp_path):
    nib.save(nib.MGHImage(VALUES.T, AFFINE), tmp_path / "brain.mgh")
    data = bytearray((tmp_path / "brain.mgh").read_bytes())
    data[28:30] = b"\0\0"
    assert "no orientation" in " ".join(read_volume(write(tmp_path / "brain.mgh", bytes(data))).warnings)
    refused(write(tmp_path / "brain.mgh", bytes(data[:900])), "cut short")


# Pictures


PIXELS = {
    ".png": ["L", "RGB", "I;16", "1", "P"],
    ".tif": ["L", "RGB", "I;16", "F", "1", "P"],
    ".bmp": ["L", "RGB", "1", "P"],
    ".jpg": ["L", "RGB"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in PIXELS.items() for mode in modes])
def test_a_grey_picture_is_a_slice_of_unknown_size(tmp_path, suffix, mode):
    values = (VALUES[3] % 250).astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8))
    picture = Image.fromarray(values)
    path = tmp_path / f"slice{suffix}"
    (picture.convert(mode) if mode in ("RGB", "1", "P") else picture).save(path)
    volume = read_volume(path)
    assert volume.dimension == 2 and volume.image.GetSpacing() == (1, 1, 1)
    assert "no voxel size" in " ".join(volume.warnings)
    found = sitk.GetArrayFromImage(volume.image)[0]
    assert found.shape == values.shape
    if suffix != ".jpg" and mode != "1":
        assert np.array_equal(found, values)


def test_pictures_that_are_no_grey_slice_are_refused(tmp_path):
    colours = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        Image.fromarray(colours).save(tmp_path / f"a{suffix}")
        refused(tmp_path / f"a{suffix}", "colour image")
    grey = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[grey, grey])
    refused(tmp_path / "pages.tif", "several pages")
    clear = grey.convert("LA")
    clear.putalpha(100)
    clear.save(tmp_path / "clear.png")
    refused(tmp_path / "clear.png", "transparent")
    grey.save(tmp_path / "grey.png")
    refused(tmp_path / "grey.png", "no frame 1", frame=1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_a_picture_cut_short_or_damaged_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    path = tmp_path / f"slice{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for share in (0.3, 0.7):
        refused(write(path, data[: int(len(data) * share)]), "damaged|cut short|no image format")
    if suffix == ".png":
        refused(write(path, data[:200] + bytes([data[200] ^ 255]) + data[201:]), "damaged")


def test_a_picture_of_too_many_pixels_takes_no_memory(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("L", (12000, 12000)).save(tmp_path / "huge.png")
    refused(tmp_path / "huge.png", "12000 x 12000|damaged")


# What is not read is named


def tar(data: bytes) -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("scan.nii")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scan.nii", data)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, VALUES)
    return buffer.getvalue()


OTHERS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "bzip2": ("scan.nii.bz2", lambda: bz2.compress(nifti()), "bzip2"),
    "xz": ("scan.nii.xz", lambda: lzma.compress(nifti()), "xz"),
    "zstd": ("scan.nii.zst", lambda: b"\x28\xb5\x2f\xfd" + bytes(50), "Zstandard"),
    "zip": ("scan.zip", lambda: zipped(nifti()), "zip archive"),
    "zip named nii": ("scan.nii", lambda: zipped(nifti()), "zip archive"),
    "tar": ("scan.tar", lambda: tar(nifti()), "tar archive"),
    "tar.gz": ("scan.nii.gz", lambda: gzip.compress(tar(nifti())), "tar archive"),
    "gzip twice": ("scan.nii.gz", lambda: gzip.compress(gzip.compress(nifti())), "not a NIfTI"),
    "nrrd.gz": ("scan.nrrd.gz", lambda: gzip.compress(b"NRRD0004\n"), "NRRD"),
    "hdf5": ("scan.mnc", lambda: b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
    "minc": ("scan.mnc", lambda: b"CDF\x01" + bytes(600), "MINC"),
    "vtk": ("scan.vtk", lambda: b"# vtk DataFile Version 3.0\n" + bytes(600), "VTK"),
    "vti": ("scan.vti", lambda: b'<?xml version="1.0"?>\n<VTKFile>' + bytes(600), "XML"),
    "mrc": ("scan.mrc", lambda: bytes(208) + b"MAP " + bytes(900), "MRC"),
    "gipl": ("scan.gipl", lambda: bytes(252) + struct.pack(">I", 719555000) + bytes(900), "GIPL"),
    "pickle": ("scan.pkl", lambda: pickle.dumps(VALUES), "pickle"),
    "numpy": ("scan.npy", npy, "NumPy"),
    "matlab": ("scan.mat", lambda: b"MATLAB 5.0 MAT-file" + bytes(600), "MATLAB"),
    "gif": ("scan.gif", lambda: b"GIF89a" + bytes(60), "GIF"),
    "afni": ("scan+orig.HEAD", lambda: b"type = string-attribute\n", "AFNI"),
    "philips": ("scan.PAR", lambda: b"# === DATA DESCRIPTION FILE ===\n", "PAR/REC"),
    "pdf": ("scan.nii", lambda: b"%PDF-1.7" + bytes(60), "PDF"),
    "lsm": ("scan.lsm", lambda: b"II*\0" + bytes(60), "LSM|TIFF"),
    "bruker": ("2dseq", lambda: VALUES.tobytes(), "Bruker"),
    "envi": ("scan.hdr", lambda: b"ENVI\nsamples = 9\n", "ENVI"),
    "nothing": ("scan", lambda: b"hello, this is text", "no image format"),
    "one byte": ("scan.nii", lambda: b"\x5c", "not a NIfTI"),
    "header alone": ("scan.nii", lambda: nifti()[:100], "cut short"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_format_that_is_not_read_is_named(tmp_path, kind):
    name, make, word = OTHERS[kind]
    refused(write(tmp_path / name, make()), word)


# Names


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "scan.nii")
    refused(tmp_path / "scan.nii", "no regular file")
    refused(Path("/dev/zero"), "no regular file")
    (tmp_path / "folder.nii.gz").mkdir()
    refused(tmp_path / "folder.nii.gz", "no DICOM")
    refused(tmp_path / ("n" * 300 + ".nii"), "no file or folder")
    refused(tmp_path / "nul\0.nii", "no file or folder")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    refused(tmp_path / "loop.nii", "leads back to itself")


def test_links_and_roundabout_paths_are_followed(tmp_path):
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "scan.nii", nifti())
    (tmp_path / "link.nii").symlink_to(tmp_path / "a" / "scan.nii")
    for path in (tmp_path / "link.nii", tmp_path / "a" / ".." / "a" / "scan.nii"):
        assert np.array_equal(array_of(path), VALUES)


ROUND_TRIP = """
import os, sys
import numpy as np
from diffusion_anomaly.io.volume import read_volume, write_like
folder = os.fsencode(sys.argv[1])
for suffix in (b".nii.gz", b".nii", b".nrrd", b".mha"):
    path = os.fsdecode(os.path.join(folder, b"Gr\\xc3\\xb6\\xc3\\x9fe\\xff", b"scan\\xfe" + suffix))
    volume = read_volume(path)
    volume.name.encode("utf-8")
    out = path.replace("scan", "map")
    write_like(volume.image, volume, out, dtype=np.float32)
    assert read_volume(out).image.GetSize() == volume.image.GetSize()
"""


@pytest.mark.parametrize("utf8", ["0", "1"])
@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_names_of_any_bytes_in_any_locale(tmp_path, utf8):
    folder = os.path.join(os.fsencode(tmp_path), b"Gr\xc3\xb6\xc3\x9fe\xff")
    os.mkdir(folder)
    scan = phantom.on_grid(VALUES, phantom.grid(SIZE, (1, 2, 3)))
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha"):
        sitk.WriteImage(scan, str(tmp_path / f"plain{suffix}"))
        os.rename(tmp_path / f"plain{suffix}", os.path.join(folder, b"scan\xfe" + suffix.encode()))
    source = str(Path(sys.modules["diffusion_anomaly"].__file__).parents[1])
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", ROUND_TRIP, str(tmp_path)], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert len(os.listdir(folder)) == 8


# Any bytes


def seeds() -> dict[str, bytes]:
    """A small file of every format."""
    scan = phantom.on_grid(VALUES, phantom.grid(SIZE, (1, 2, 3)))
    made = {".nii": nifti(), "2.nii": nifti(nib.Nifti2Image), ".nii.gz": gzip.compress(nifti())}
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".nrrd", ".mha"):
            sitk.WriteImage(scan, f"{folder}/s{suffix}", suffix == ".mha")
            made[suffix] = Path(f"{folder}/s{suffix}").read_bytes()
        nib.save(nib.MGHImage(VALUES.T, AFFINE), f"{folder}/s.mgh")
        made[".mgh"] = Path(f"{folder}/s.mgh").read_bytes()
        for suffix in (".png", ".tif", ".bmp"):
            Image.fromarray((VALUES[0] % 250).astype(np.uint8)).save(f"{folder}/s{suffix}")
            made[suffix] = Path(f"{folder}/s{suffix}").read_bytes()
    return made


WORDS = [
    b"nan",
    b"inf",
    b"-1",
    b"9" * 30,
    b"1e308",
    b"%s%n",
    b"LIST",
    b"/etc/passwd",
    b"",
    b"\xff",
    b"(",
    b'"',
    b"none",
]


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_are_read_or_refused_and_nothing_else(tmp_path, seed, capfd):
    random = np.random.default_rng(seed)
    files = seeds()
    read = 0
    for _ in range(300):
        suffix = str(random.choice(list(files)))
        data = bytearray(files[suffix])
        head = min(600, len(data))
        kind = random.integers(4)
        if kind == 0:
            data[random.integers(head)] = random.integers(256)
        elif kind == 1:
            start = random.integers(head)
            data[start : start + 4] = bytes([int(random.choice([0, 127, 128, 255]))] * 4)
        elif kind == 2 and suffix in (".nrrd", ".mha"):
            lines = bytes(data).split(b"\n")
            line = random.integers(12)
            words = lines[line].split(b" ")
            words[random.integers(len(words))] = WORDS[random.integers(len(WORDS))]
            lines[line] = b" ".join(words)
            data = b"\n".join(lines)
        else:
            data = data[: random.integers(len(data))]
        try:
            volume = read_volume(write(tmp_path / f"scan{suffix}", bytes(data)))
        except EngineError:
            continue
        read += 1
        assert np.isfinite(sitk.GetArrayViewFromImage(volume.image)).all()
    assert 20 < read < 280  # some changes touch nothing that matters, others do
    assert capfd.readouterr().out == ""


# The inputs that went wrong elsewhere


READ = {
    "n08_neg_pixdim.nii.gz": "negative",
    "n10b_pixdim1_sform235.nii.gz": "pixdim",
    "n18_nifti2.nii.gz": "",
    "n27_gz_named_nii.nii": "",
    "n32_descrip_latin1.nii.gz": "",
    "n35c_one_voxel-32768.nii.gz": "",
    "faults/descrip-latin1.nii": "",
}
REFUSED = {
    "n10f_sform_nan.nii.gz": "sform holds numbers that are not finite",
    "n16_complex.nii.gz": "complex",
    "m03_sheared.mha": "right angles",
    "r08_sheared.nrrd": "right angles",
    "m12_scaled_matrix.mha": "scales",
    "m15_huge_spacing.mha": "voxel spacing",
    "m16_damaged_z.mha": "damaged",
    "faults/nrrd-letters.nrrd": "no field",
    "faults/mha-ndims.mha": "dimensions",
    "faults/mhd-percent.mhd": "pattern",
    "faults/mha-shear.mha": "right angles",
    "faults/mha-scaled.mha": "scales",
    "faults/origin-nan.nii": "not finite",
    "faults/vox_offset-nan.nii": "vox_offset",
    "faults/pixdim1-1e-06.nii": "voxel spacing",
    "faults/pixdim1-1e+20.nii": "voxel spacing",
    "faults/nii-grid-10.nii": "pair",
    "faults/nii-grid-542.nii": "not finite",
    "faults/nii-grid-624.nii": "not finite",
}


@pytest.mark.skipif(not CASES.is_dir(), reason=f"needs the files in {CASES}, which are not distributed")
@pytest.mark.parametrize("name", [*READ, *REFUSED])
def test_files_that_went_wrong_are_read_right_or_refused(name):
    if name in REFUSED:
        refused(CASES / name, REFUSED[name])
        return
    volume = read_volume(CASES / name)
    assert volume.image.GetSpacing() in ((2, 2, 5), (6.5, 6.5, 13))
    assert READ[name] in " ".join(volume.warnings) and bool(READ[name]) == bool(volume.warnings)
