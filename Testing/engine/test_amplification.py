"""A small file asks for no work or memory out of proportion: it is refused soon, whatever its header says."""

from __future__ import annotations

import bz2
import gzip
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from diffusion_anomaly.io import parts
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.text import distinct_names
from test_formats import VALUES, array_of, metaimage, nifti, nrrd, refused, write

FRAMES = 60
PACK: dict[str, Callable[[bytes], bytes]] = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < 4, "it took more work than the file is worth"


def text_of(values: np.ndarray) -> bytes:
    return " ".join(map(str, values.ravel())).encode()


# Streams


@pytest.mark.parametrize("suffix", [".nii.gz", "gzip.nrrd", "bzip2.nrrd", ".mha"])
def test_members_that_hold_nothing_are_not_followed_for_ever(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    pack = bz2.compress if "bzip2" in suffix else gzip.compress

    def of(members: bytes) -> Path:
        if suffix == ".nii.gz":
            return write(path, pack(nifti()) + members)
        if suffix == ".mha":
            return metaimage(path, pack(VALUES.tobytes()) + members, CompressedData="True")
        return nrrd(path, pack(VALUES.tobytes()) + members, encoding=suffix.split(".")[0])

    assert np.array_equal(array_of(of(pack(b"") * 3)), VALUES)
    refused(of(pack(b"") * (2_000_000 // len(pack(b"")))), "empty parts")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_many_members_that_hold_voxels_are_one_stream(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    values = np.tile(VALUES, (20, 1, 1))
    plain = values.tobytes()
    members = b"".join(pack(plain[start : start + 3]) for start in range(0, len(plain), 3))
    encoding = "gzip" if pack is gzip.compress else "bzip2"
    nrrd(tmp_path / "scan.nrrd", members, sizes="9 8 140", encoding=encoding)
    assert np.array_equal(array_of(tmp_path / "scan.nrrd"), values)


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_bytes_to_skip_in_a_compressed_stream_are_bounded(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "scan.nrrd"
    nrrd(path, PACK[encoding](b"abc" + VALUES.tobytes()), encoding=encoding, byte_skip="3")
    assert np.array_equal(array_of(path), VALUES)
    zeros = PACK[encoding](bytes(100_000_000))
    nrrd(path, zeros * 20, encoding=encoding, byte_skip="900000000000")
    refused(path, "skips 900000000000 bytes")
    nrrd(path, PACK[encoding](VALUES.tobytes()), encoding=encoding, byte_skip="60000000")
    refused(path, "cut short")


def test_a_nifti_skips_no_gigabytes_of_compressed_content(tmp_path: Path) -> None:
    data = nifti(vox_offset=900_000_000)
    refused(write(tmp_path / "scan.nii.gz", gzip.compress(data) + gzip.compress(bytes(100_000_000)) * 9), "skips")


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_data_file_is_named_once(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "plane.raw", VALUES[0].tobytes())
    names = "LIST\n" + "\n".join(["plane.raw"] * 7)
    path = tmp_path / f"scan{suffix}"
    if suffix == ".nhdr":
        nrrd(path, data_file=names)
    else:
        metaimage(path, b"", ElementDataFile=names)
    refused(path, "twice")


def test_what_follows_the_voxels_is_bounded_over_all_data_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, plane in enumerate(VALUES):
        write(tmp_path / f"{index}.raw", plane.tobytes() + bytes(500))
    nrrd(tmp_path / "scan.nhdr", data_file="%d.raw 0 6 1")
    assert any("3500 bytes follow" in warning for warning in read_volume(tmp_path / "scan.nhdr").warnings)
    monkeypatch.setattr(parts, "MOST_BEHIND", 3000)
    refused(tmp_path / "scan.nhdr", "far more")


# Text


@pytest.mark.parametrize("kind", ["nrrd", "metaimage"])
def test_text_beyond_what_its_voxels_take_is_refused(tmp_path: Path, kind: str) -> None:
    def of(text: bytes) -> Path:
        if kind == "metaimage":
            return metaimage(tmp_path / "scan.mha", text, BinaryData="False")
        nrrd(tmp_path / "scan.nrrd", text, encoding="ascii")
        return tmp_path / "scan.nrrd"

    assert np.array_equal(array_of(of(b"\n".join(b"%30d" % value for value in VALUES.ravel()))), VALUES)
    refused(of(text_of(VALUES) + b" 7" * 10_000_000), "far more text")
    refused(of(text_of(VALUES) + b" " * 20_000_000), "far more text")


def test_bytes_to_skip_before_text_are_counted_from_its_first_byte(tmp_path: Path) -> None:
    nrrd(tmp_path / "scan.nrrd", b"  ab " + text_of(VALUES), encoding="ascii", byte_skip="4")
    assert np.array_equal(array_of(tmp_path / "scan.nrrd"), VALUES)
    nrrd(tmp_path / "scan.nrrd", text_of(VALUES), encoding="ascii", byte_skip="99999999")
    refused(tmp_path / "scan.nrrd", "cut short")
    nrrd(tmp_path / "scan.nrrd", text_of(VALUES), encoding="ascii", byte_skip="-1")
    refused(tmp_path / "scan.nrrd", "must be raw")


# NRRD's and MetaImage's name of a type, and numbers that it cannot hold.
OUTSIDE = [
    ("uchar", "MET_UCHAR", ("300", "256", "-1", "1.9", "1e3", "nan", "inf")),
    ("signed char", "MET_CHAR", ("128", "-129", "0.5")),
    ("short", "MET_SHORT", ("32768", "-32769", "0.001")),
    ("ushort", "MET_USHORT", ("65536", "-1")),
    ("uint", "MET_UINT", ("4294967296", "-1")),
    ("longlong", "MET_LONG_LONG", ("9223372036854775808", "1e30")),
    ("ulonglong", "MET_ULONG_LONG", ("18446744073709551616", "-1")),
    ("float", "MET_FLOAT", ("1e39", "-1e300")),
]


@pytest.mark.parametrize(
    ("names", "number"), [((one, other), number) for one, other, numbers in OUTSIDE for number in numbers]
)
def test_a_number_that_a_type_cannot_hold_becomes_no_other(tmp_path: Path, names: tuple[str, str], number: str) -> None:
    text = text_of(VALUES % 100).rpartition(b" ")[0] + b" " + number.encode()
    nrrd(tmp_path / "scan.nrrd", text, encoding="ascii", type=names[0])
    refused(tmp_path / "scan.nrrd", "holds the number")
    refused(metaimage(tmp_path / "scan.mha", text, BinaryData="False", ElementType=names[1]), "holds the number")


@pytest.mark.parametrize(("kind", "numbers"), [
    ("uchar", (0, 255)), ("signed char", (-128, 127)), ("ushort", (0, 65535)), ("int", (-(2**31), 2**31 - 1)),
    ("longlong", (-(2**63), 2**62)), ("ulonglong", (0, 2**63)), ("float", (-1.5, 3e38)), ("double", (0.1, 1e30)),
])  # fmt: skip
def test_the_ends_of_a_types_range_are_read(tmp_path: Path, kind: str, numbers: tuple[float, float]) -> None:
    text = b"%a %a " % numbers + b"7 " * 502
    nrrd(tmp_path / "scan.nrrd", text, encoding="ascii", type=kind)
    assert array_of(tmp_path / "scan.nrrd").ravel()[:3].tolist() == [*np.float32(numbers).tolist(), 7.0]


# One volume of many


def volumes(path: Path, encoding: str, plain: bytes, sizes: str, data_file: str = "") -> Path:
    if path.suffix in (".mha", ".mhd"):
        eye = " ".join(str(int(i % 5 == 0)) for i in range(16))
        extra = {"CompressedData": str(encoding == "zlib"), "BinaryData": str(encoding != "text")}
        fields = {"NDims": 4, "DimSize": sizes, "TransformMatrix": eye, "Offset": "0 0 0 0"} | extra
        data = zlib.compress(plain, 1) if encoding == "zlib" else plain
        if data_file:
            fields["ElementDataFile"] = data_file
        return metaimage(path, data, ElementSpacing="2 2 5 1", **fields)
    extra = {"data_file": data_file} if data_file else {}
    nrrd(
        path,
        PACK.get(encoding, bytes)(plain),
        dimension="4",
        sizes=sizes,
        kinds="domain domain domain list",
        space_directions="(2,0,0) (0,2,0) (0,0,5) none",
        encoding=encoding,
        **extra,
    )
    return path


@pytest.mark.parametrize(("name", "encoding"), [
    ("scan.nrrd", "raw"), ("scan.nrrd", "gzip"), ("scan.nrrd", "bzip2"), ("scan.mha", "raw"), ("scan.mha", "zlib"),
])  # fmt: skip
def test_of_many_volumes_only_the_chosen_one_takes_memory(tmp_path: Path, name: str, encoding: str) -> None:
    shape = (FRAMES, 32, 64, 64)
    values = np.arange(FRAMES, dtype=np.int16)[:, None, None, None] + np.zeros(shape, np.int16)
    path = volumes(tmp_path / name, encoding, values.tobytes(), f"64 64 32 {FRAMES}")
    del values
    for frame in (0, 7, FRAMES - 1):
        tracemalloc.start()
        try:
            assert (array_of(path, frame=frame) == frame).all()
            assert tracemalloc.get_traced_memory()[1] < 0.5 * 2 * np.prod(shape)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
@pytest.mark.parametrize("encoding", ["raw", "text"])
def test_a_volume_is_given_only_where_all_are_there(tmp_path: Path, name: str, encoding: str) -> None:
    values = np.stack([VALUES, VALUES + 1, VALUES + 2])
    plain = text_of(values) if encoding == "text" else values.tobytes()
    for frame in range(3):
        assert np.array_equal(
            array_of(volumes(tmp_path / name, encoding, plain, "9 8 7 3"), frame=frame), VALUES + frame
        )
        refused(volumes(tmp_path / name, encoding, plain[:-100], "9 8 7 3"), "cut short", frame=frame)


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
@pytest.mark.parametrize("files", [1, 3, 6, 21])
def test_volumes_may_lie_in_any_number_of_files(tmp_path: Path, suffix: str, files: int) -> None:
    values = np.stack([VALUES, VALUES + 1, VALUES + 2])
    plain = values.tobytes()
    share = len(plain) // files
    for index in range(files):
        write(tmp_path / f"{index}.raw", plain[index * share : (index + 1) * share])
    names = "LIST\n" + "\n".join(f"{index}.raw" for index in range(files))
    path = volumes(tmp_path / f"scan{suffix}", "raw", b"", "9 8 7 3", names)
    for frame in range(3):
        assert np.array_equal(array_of(path, frame=frame), VALUES + frame)
    write(tmp_path / f"{files - 1}.raw", plain[(files - 1) * share : -2])
    refused(path, "cut short", frame=0)


# Pictures and names


def pages(count: int) -> bytes:
    """A TIFF of so many pages that share their pixels."""
    content = bytearray(b"II*\0" + struct.pack("<I", 24) + bytes(16))
    fields = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16}
    page = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", tag, 4, 1, fields[tag]) for tag in fields)
    for number in range(count):
        following = 0 if number == count - 1 else len(content) + len(page) + 4
        content += page + struct.pack("<I", following)
    return bytes(content)


def test_pages_are_not_counted(tmp_path: Path) -> None:
    assert array_of(write(tmp_path / "one.tif", pages(1))).shape == (1, 4, 4)
    for count in (2, 20_000):
        refused(write(tmp_path / "many.tif", pages(count)), "several pages")


def test_many_equal_names_are_told_apart_at_once() -> None:
    names = distinct_names(["scan"] * 20_000 + ["Scan", "scan-3"])
    assert len(set(names)) == len(names) == 20_002
    assert names[:3] == ["scan", "scan-2", "scan-3"] and names[-2:] == ["Scan-20001", "scan-3-2"]
