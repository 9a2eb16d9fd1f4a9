"""Five marked voxels of thousands of random files lie where readers that share nothing with the engine put them."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import read_volume

SIZE = (5, 6, 7)
MARKS = {(0, 0, 0): 11, (4, 0, 0): 12, (0, 5, 0): 13, (0, 0, 6): 14, (3, 2, 5): 15}
RAS = np.array([-1.0, -1.0, 1.0])
# Files hold positions in float32 or in decimals; a head is 250 mm large.
CLOSE_MM = 2e-3
TYPES = ["u1", "i2", "i4", "f4", "f8", "u2"]


def voxels(dtype: str) -> np.ndarray:
    """All zero but for the marks, ``(columns, rows, slices)``."""
    values = np.zeros(SIZE, dtype)
    for place, mark in MARKS.items():
        values[place] = mark
    return values


def stored(values: np.ndarray) -> bytes:
    return values.tobytes(order="F")


def rotation(random: np.random.Generator) -> np.ndarray:
    """Any rotation, with a mirror, and axes that change places, in some."""
    matrix = np.linalg.qr(random.normal(size=(3, 3)))[0]
    kind = random.integers(4)
    if kind == 0:  # along the scanner's axes
        matrix = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
    elif kind == 1:  # a little oblique
        small = random.normal(0, 0.1, 3)
        matrix = np.array([[1, -small[2], small[1]], [small[2], 1, -small[0]], [-small[1], small[0], 1]])
        matrix = np.linalg.qr(matrix)[0]
    return matrix


def random_affine(random: np.random.Generator) -> np.ndarray:
    """A grid as ``(4, 4)``, from indices to millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(random) * random.uniform(0.2, 8, 3)
    affine[:3, 3] = random.uniform(-200, 200, 3)
    return affine


def expect(path: Path, *affines: np.ndarray) -> tuple[str, ...]:
    """The marks lie where affines to RAS mm put them; what reading said."""
    volume = read_volume(path)
    array = sitk.GetArrayFromImage(volume.image)
    assert np.count_nonzero(array) == len(MARKS)
    for index, mark in MARKS.items():
        (at,) = np.argwhere(array == mark)
        place = np.array(volume.image.TransformIndexToPhysicalPoint([int(i) for i in at[::-1]])) * RAS
        for affine in affines:
            expected = affine[:3, :3] @ index + affine[:3, 3]
            assert np.abs(place - expected).max() < CLOSE_MM, (index, place, expected)
    return volume.warnings


# NIfTI and Analyze, against nibabel


def nifti(random: np.random.Generator, kind: type) -> nib.Nifti1Pair:
    """A header with random codes, forms, units and byte order, and consistent sizes."""
    affine = random_affine(random)
    header = kind.header_class(endianness=random.choice(["<", ">"]))
    dtype = str(random.choice(TYPES))
    header.set_data_dtype(dtype)
    image = kind(voxels(dtype), affine, header)
    codes = random.choice([0, 1, 2, 3, 4], 2)
    image.header["sform_code"], image.header["qform_code"] = 0, 0
    if codes[0]:
        image.header.set_sform(affine, int(codes[0]))
    if codes[1]:
        image.header.set_qform(affine, int(codes[1]))
    return image


def nifti_bytes(image: nib.Nifti1Pair, scale: float, unit: int) -> bytes:
    header = image.header.copy()
    header["xyzt_units"] = unit
    for field in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[field] = header[field] / scale
    header["pixdim"][1:4] /= scale
    header["scl_slope"], header["scl_inter"] = np.nan, np.nan
    single = header.sizeof_hdr + 4
    header["vox_offset"] = single
    header["magic"] = b"n+1" if header.sizeof_hdr == 348 else b"n+2\0\r\n\x1a\n"
    values = np.asanyarray(image.dataobj).astype(image.header.get_data_dtype())
    return header.binaryblock + bytes(4) + stored(values)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_lies_where_nibabel_puts_it(tmp_path: Path, kind: type) -> None:
    random = np.random.default_rng(1)
    path = tmp_path / "scan.nii"
    for _ in range(500):
        image = nifti(random, kind)
        scale, unit = [(1.0, 0), (1.0, 2), (1000.0, 1), (0.001, 3)][random.integers(4)]
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        path.write_bytes(nifti_bytes(image, scale, unit))
        if codes == (0, 0):
            said = expect(path, image.header.get_base_affine())
        else:
            said = expect(path, image.header.get_sform() if codes[0] else image.header.get_qform())
        assert any("orientation" in text for text in said) == (codes == (0, 0))
        assert any("turned into millimetres" in text for text in said) == (scale != 1)
        assert not any("apart" in text or "pixdim" in text for text in said)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_contradicting_fields_are_said_and_the_form_in_use_decides(tmp_path: Path, kind: type) -> None:
    random = np.random.default_rng(2)
    path = tmp_path / "scan.nii"
    for number in range(300):
        image = nifti(random, kind)
        header, affine = image.header, random_affine(random)
        header.set_sform(affine, 1)
        other = random_affine(random)
        harm = ["sizes", "negative", "forms", "qfac"][number % 4]
        if harm == "sizes":
            header["qform_code"] = 0
            header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0) * random.choice([0.5, 0.98, 3], 3)
        elif harm == "negative":
            header["qform_code"] = 0
            header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0) * [-1, 1, 1]
        elif harm == "forms":
            header.set_qform(other, 1)
            header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
        else:
            header["sform_code"] = 0
            header.set_qform(affine, 1)
            header["pixdim"][0] *= 7
        path.write_bytes(nifti_bytes(image, 1, 2))
        said = expect(path, affine)
        word = {"sizes": "pixdim", "negative": "negative", "forms": "apart", "qfac": "qfac"}[harm]
        assert any(word in text for text in said), harm


def test_analyze_lies_where_nibabel_puts_it(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    for number in range(200):
        dtype = str(random.choice(["u1", "i2", "i4", "f4", "f8"]))
        header = nib.Spm2AnalyzeHeader(endianness=random.choice(["<", ">"]))
        header.set_data_dtype(dtype)
        header.set_data_shape(SIZE)
        header.set_zooms(random.uniform(0.2, 8, 3))
        if number % 2:
            header["origin"][:3] = random.integers(1, 5, 3)
        (tmp_path / "scan.hdr").write_bytes(header.binaryblock)
        (tmp_path / "scan.img").write_bytes(stored(voxels(dtype).astype(header.get_data_dtype())))
        path = tmp_path / ("scan.hdr" if number % 3 else "scan.img")
        said = expect(path, nib.load(path).affine)
        assert any("no orientation" in text for text in said)


def test_mgh_lies_where_nibabel_puts_it(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    for number in range(200):
        path = tmp_path / ("brain.mgz" if number % 2 else "brain.mgh")
        image = nib.MGHImage(voxels(str(random.choice(["u1", "i2", "i4", "f4"]))), random_affine(random))
        nib.save(image, path)
        assert expect(path, image.header.get_affine()) == ()


# NRRD and MetaImage, against SimpleITK


def by_itk(path: Path) -> np.ndarray:
    """The affine to RAS mm that ITK reads."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing() * RAS[:, None]
    affine[:3, 3] = image.GetOrigin() * RAS
    return affine


def numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.12g}" for value in np.ravel(values))


SPACES = {
    "right-anterior-superior": [1, 1, 1],
    "RAS": [1, 1, 1],
    "left-anterior-superior": [-1, 1, 1],
    "LAS": [-1, 1, 1],
    "left-posterior-superior": [-1, -1, 1],
    "LPS": [-1, -1, 1],
}
NRRD_TYPES = {"u1": "uchar", "i2": "int16", "i4": "int", "f4": "float", "f8": "double", "u2": "unsigned short"}
META_TYPES = {"u1": "UCHAR", "i2": "SHORT", "i4": "INT", "f4": "FLOAT", "f8": "DOUBLE", "u2": "USHORT"}


def write_nrrd(path: Path, random: np.random.Generator, affine: np.ndarray) -> np.ndarray:
    """Write a random kind of NRRD on an affine in the header's own space; the affine to RAS mm."""
    import bz2
    import gzip

    space = str(random.choice(list(SPACES)))
    dtype = str(random.choice(TYPES))
    order = str(random.choice(["little", "big"]))
    values = voxels(dtype).astype(np.dtype(dtype).newbyteorder("<" if order == "little" else ">"))
    encoding = str(random.choice(["raw", "gzip", "gz", "bzip2", "ascii"]))
    data = stored(values)
    data = {
        "raw": lambda: data,
        "bzip2": lambda: bz2.compress(data),
        "ascii": lambda: numbers(values.ravel(order="F")).encode(),
    }.get(encoding, lambda: gzip.compress(data))()
    vectors = " ".join(f"({numbers(column).replace(' ', ',')})" for column in affine[:3, :3].T)
    lines = [
        f"NRRD000{random.integers(4, 6)}",
        "# made by hand",
        f"type: {NRRD_TYPES[dtype]}",
        "dimension: 3",
        f"space: {space}",
        f"sizes: {' '.join(map(str, SIZE))}",
        f"space directions: {vectors}",
        f"space origin: ({numbers(affine[:3, 3]).replace(' ', ',')})",
        f"endian: {order}",
        f"encoding: {encoding}",
        "measurement frame: (1,0,0) (0,0,1) (0,1,0)",
        "modality:=MR",
    ]
    if path.suffix == ".nhdr":
        path.with_suffix(".data").write_bytes(data)
        path.write_text("\n".join([*lines, f"data file: {path.stem}.data"]) + "\n")
    else:
        path.write_bytes("\n".join(lines).encode() + b"\n\n" + data)
    return np.diag([*SPACES[space], 1]) @ affine


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_nrrd_lies_where_its_space_and_itk_put_it(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(5)
    path = tmp_path / f"scan{suffix}"
    for _ in range(250):
        expected = write_nrrd(path, random, random_affine(random))
        no_itk = b"bzip2" in path.read_bytes()[:600]  # this build of ITK has none
        assert expect(path, expected, *([] if no_itk else [by_itk(path)])) == ()


def write_metaimage(path: Path, random: np.random.Generator, affine: np.ndarray) -> None:
    """Write a random kind of MetaImage on an affine to LPS mm."""
    import zlib

    dtype, big = str(random.choice(TYPES)), bool(random.integers(2))
    data = stored(voxels(dtype).astype(np.dtype(dtype).newbyteorder(">" if big else "<")))
    compressed = bool(random.integers(2))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    content = zlib.compress(data) if compressed else data
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        f"{random.choice(['BinaryDataByteOrderMSB', 'ElementByteOrderMSB'])} = {big}",
        f"CompressedData = {compressed}",
        *([f"CompressedDataSize = {len(content)}"] if compressed else []),
        f"{random.choice(['TransformMatrix', 'Orientation', 'Rotation'])} = {numbers((affine[:3, :3] / spacing).T)}",
        f"{random.choice(['Offset', 'Position', 'Origin'])} = {numbers(affine[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {numbers(spacing)}",
        f"DimSize = {' '.join(map(str, SIZE))}",
        f"ElementType = MET_{META_TYPES[dtype]}",
    ]
    if path.suffix == ".mhd":
        size = -1 if not compressed and random.integers(2) else 0
        path.with_suffix(".raw").write_bytes((b"something before" if size else b"") + content)
        lines += [f"HeaderSize = {size}", f"ElementDataFile = {path.stem}.raw"]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_bytes("\n".join([*lines, "ElementDataFile = LOCAL"]).encode() + b"\n" + content)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_metaimage_lies_where_its_header_and_itk_put_it(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(6)
    path = tmp_path / f"scan{suffix}"
    for _ in range(250):
        affine = random_affine(random)
        write_metaimage(path, random, affine)
        assert expect(path, np.diag([*RAS, 1]) @ affine, by_itk(path)) == ()


# What no scan can have is refused in all formats alike


def harm(affine: np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    """An affine that no scan can have."""
    affine = affine.copy()
    axis = int(random.integers(3))
    if kind == "sheared":
        other = (axis + 1) % 3
        direction = affine[:3, other] / np.linalg.norm(affine[:3, other])
        affine[:3, axis] += direction * np.linalg.norm(affine[:3, axis]) * random.uniform(0.01, 0.9)
    elif kind in ("nan", "infinite"):
        affine[axis, random.integers(4)] = {"nan": np.nan, "infinite": np.inf}[kind]
    elif kind == "zero":
        affine[:3, axis] = 0
    elif kind == "tiny":
        affine[:3, axis] *= 1e-6
    elif kind == "huge":
        affine[:3, axis] *= 1e5
    elif kind == "far":
        affine[axis, 3] = random.choice([-1, 1]) * 1e8
    return affine


HARMS = ["sheared", "nan", "infinite", "zero", "tiny", "huge", "far"]


def write_sform(path: Path, random: np.random.Generator, affine: np.ndarray, kind: type) -> None:
    image = nifti(random, kind)
    image.header["sform_code"] = 1
    for row, field in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[field] = row
    path.write_bytes(nifti_bytes(image, 1, 2))


WRITERS: dict[str, Callable[[Path, np.random.Generator, np.ndarray], object]] = {
    ".nii": lambda path, random, affine: write_sform(path, random, affine, nib.Nifti1Image),
    "2.nii": lambda path, random, affine: write_sform(path, random, affine, nib.Nifti2Image),
    ".nrrd": write_nrrd,
    ".nhdr": write_nrrd,
    ".mha": write_metaimage,
    ".mhd": write_metaimage,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kind", HARMS)
def test_an_impossible_grid_is_refused(tmp_path: Path, suffix: str, kind: str) -> None:
    random = np.random.default_rng(7)
    path = tmp_path / f"scan{suffix}"
    for _ in range(6):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            WRITERS[suffix](path, random, harm(random_affine(random), kind, random))
        with pytest.raises(InputError) as caught:
            read_volume(path)
        assert str(path) in caught.value.what and caught.value.hint


@pytest.mark.parametrize("field", ["quatern_b", "quatern_c", "qoffset_x", "qoffset_z", "pixdim"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_a_qform_in_use_that_is_no_place_is_refused_by_name(tmp_path: Path, field: str, value: float) -> None:
    image = nifti(np.random.default_rng(8), nib.Nifti1Image)
    image.header.set_qform(random_affine(np.random.default_rng(9)), 1)
    image.header["sform_code"] = 0
    if field == "pixdim":
        image.header["pixdim"][2] = value
    else:
        image.header[field] = value
    (tmp_path / "scan.nii").write_bytes(nifti_bytes(image, 1, 2))
    with pytest.raises(InputError, match="the qform"):
        read_volume(tmp_path / "scan.nii")


def test_analyze_of_an_impossible_size_is_refused(tmp_path: Path) -> None:
    for size in (np.nan, np.inf, 0, 1e-6, 1e5):
        header = nib.Spm2AnalyzeHeader()
        header.set_data_dtype("i2")
        header.set_data_shape(SIZE)
        block = bytearray(header.binaryblock)
        order = "<" if block[:4] == struct.pack("<i", 348) else ">"
        struct.pack_into(order + "f", block, 84, size)
        (tmp_path / "scan.hdr").write_bytes(block)
        (tmp_path / "scan.img").write_bytes(stored(voxels("i2")))
        with pytest.raises(InputError, match="pixdim"):
            read_volume(tmp_path / "scan.hdr")
