"""Mutated scans of every format that is read: a result or an error of ours, soon, in bounded memory, without noise."""

from __future__ import annotations

import bz2
import gzip
import math
import random
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from . import mutations as mutate
from .verdict import Failed

SIZE = (7, 6, 5)


def prepare(folder: Path) -> None:
    """One small scan in every format, made with SimpleITK, pydicom or by hand."""
    import SimpleITK as sitk

    image = _scan()
    for name in ("a.nii", "a.nii.gz", "pair.hdr", "a.nrrd", "detached.nhdr", "a.mha", "raw.mhd"):
        sitk.WriteImage(image, str(folder / name))
    sitk.WriteImage(image, str(folder / "packed.nrrd"), useCompression=True)
    sitk.WriteImage(image, str(folder / "packed.mha"), useCompression=True)
    shutil.copy(folder / "pair.hdr", folder / "pair-gz.hdr")
    (folder / "pair-gz.img.gz").write_bytes(gzip.compress((folder / "pair.img").read_bytes(), mtime=0))
    sitk.WriteImage(sitk.Cast(image[:, :, 2], sitk.sitkUInt16), str(folder / "a.png"))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(folder / "four.nii"))
    _write_nifti2(folder / "two.nii", sitk.GetArrayFromImage(image))
    _write_dicom(folder, sitk.GetArrayFromImage(image).astype(np.uint16))


def _scan():
    import SimpleITK as sitk

    values = np.random.default_rng(0).integers(0, 900, SIZE[::-1]).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.5, 2.0, 4.0))
    image.SetOrigin((-10.0, 5.0, 20.0))
    return image


def _write_nifti2(path: Path, values: np.ndarray) -> None:
    header = bytearray(540)
    struct.pack_into("<i8shh", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16)
    struct.pack_into("<8q", header, 16, 3, *SIZE, 1, 1, 1, 1)
    struct.pack_into("<8d", header, 104, 1.0, 1.5, 2.0, 4.0, 0, 0, 0, 0)
    struct.pack_into("<q", header, 168, 544)
    struct.pack_into("<dd", header, 176, 1.0, 0.0)
    struct.pack_into("<ii", header, 344, 0, 1)
    struct.pack_into("<12d", header, 400, 1.5, 0, 0, 0, 0, 2, 0, 0, 0, 0, 4, 0)
    struct.pack_into("<i", header, 500, 2)
    path.write_bytes(bytes(header) + b"\0" * 4 + values.astype("<i2").tobytes())


def _write_dicom(folder: Path, values: np.ndarray) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    def common(number: int, pixels: np.ndarray, kind: str) -> Dataset:
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = kind, f"1.2.3.{number + 1}"
        data.Modality, data.SeriesDescription, data.ImageType = "MR", "FLAIR", ["ORIGINAL", "PRIMARY"]
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        data.SpecificCharacterSet, data.PatientName, data.InstanceNumber = "ISO_IR 192", "Söme^One", str(number + 1)
        data.Rows, data.Columns = pixels.shape[-2:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = "1.5", "-10"
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OW"
        return data

    for name in ("series", "rle"):
        (folder / name).mkdir()
        for k, plane in enumerate(values):
            data = common(k, plane, "1.2.840.10008.5.1.4.1.1.4")
            data.ImagePositionPatient = [-10, 5, 20 + 4 * k]
            data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            data.PixelSpacing, data.SliceThickness = [2.0, 1.5], "4"
            if name == "rle":
                data.compress(RLELossless, generate_instance_uid=False)
            data.save_as(folder / name / f"{k}.dcm", enforce_file_format=True)
    data = common(0, values, "1.2.840.10008.5.1.4.1.1.4.1")
    data.NumberOfFrames = str(len(values))
    del data.RescaleSlope, data.RescaleIntercept

    def group(name: str, **elements: object) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for element, value in elements.items():
            setattr(inner, element, value)
        setattr(outer, name, [inner])
        return outer

    shared = group("PixelMeasuresSequence", PixelSpacing=[2.0, 1.5], SliceThickness="4")
    shared.update(group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    data.SharedFunctionalGroupsSequence = [shared]
    frames = [group("PlanePositionSequence", ImagePositionPatient=[-10, 5, 20 + 4 * k]) for k in range(len(values))]
    data.PerFrameFunctionalGroupsSequence = frames
    (folder / "enhanced").mkdir()
    data.save_as(folder / "enhanced" / "0.dcm", enforce_file_format=True)


def load() -> Callable[[random.Random, Path], str]:
    """What a child runs a case with."""
    from diffusion_anomaly.io.volume import read_volume

    return partial(_case, read_volume)


def _case(read_volume: Callable[..., object], chance: random.Random, folder: Path) -> str:
    seeds = next(path for path in (folder.parent / "seeds-input",) if path.is_dir())
    path = mutated(seeds, folder, chance)
    check(read_volume(path, frame=chance.choice((None, None, 0, 1))))
    return "result"


def mutated(seeds: Path, folder: Path, chance: random.Random) -> Path:
    """A mutated scan in ``folder``; the file or folder to read."""
    name = chance.choice(
        (
            *("a.nii", "a.nii", "two.nii", "four.nii", "a.nii.gz", "pair.hdr", "pair-gz.hdr", "a.nrrd", "a.nrrd"),
            *("packed.nrrd", "detached.nhdr", "a.mha", "a.mha", "packed.mha", "raw.mhd", "a.png", "series", "series"),
            *("rle", "enhanced", "enhanced", "twins", "amplified"),
        )
    )
    if name == "twins":
        return _twins(seeds, folder, chance)
    if name == "amplified":
        return _amplified(seeds, folder, chance)
    if (seeds / name).is_dir():
        return _series(seeds / name, folder / name, chance)
    for file in seeds.glob(f"{name.split('.')[0]}.*"):
        shutil.copy(file, folder)
    path = folder / name
    data = path.read_bytes()
    if name.endswith(".gz"):
        path.write_bytes(mutate.stream(data, chance))
    elif path.suffix in (".nii", ".hdr"):
        change = mutate.nifti_fields if chance.random() < 0.6 else mutate.some_bytes
        path.write_bytes(change(data, chance))
    elif path.suffix == ".png":
        path.write_bytes(mutate.some_bytes(data, chance, 100))
    else:
        path.write_bytes(_header(data, chance, path.suffix))
    beside = [file for file in folder.iterdir() if file != path]
    if beside and chance.random() < 0.3:
        other = chance.choice(beside)
        data = other.read_bytes()
        other.write_bytes(mutate.stream(data, chance) if other.suffix == ".gz" else mutate.some_bytes(data, chance))
    return path


def _header(data: bytes, chance: random.Random, suffix: str) -> bytes:
    """A file of a text header and voxels, with either of them changed."""
    end = data.find(b"\n\n") + 1 if suffix in (".nrrd", ".nhdr") else data.find(b"\n", data.find(b"ElementDataFile"))
    end = len(data) if end <= 0 else end
    if chance.random() < 0.25:
        return mutate.some_bytes(data, chance, len(data))
    text = mutate.some_text(data[:end].decode("latin-1"), chance)
    return text.encode("utf-8" if chance.random() < 0.2 else "latin-1", "replace") + data[end:]


def _twins(seeds: Path, folder: Path, chance: random.Random) -> Path:
    """Two files of one name, of which a reader may take the wrong one; or a file under another's name."""
    one, other, name = chance.choice(
        (
            ("a.nii", "a.nii.gz", ""),
            ("pair.hdr", "pair-gz.img.gz", "pair.img.gz"),
            ("pair.hdr", "two.nii", "pair.nii"),
            ("a.mha", "", "a.nii"),
            ("a.nii", "", "a.mha"),
            ("a.nii.gz", "", "a.nii"),
            ("a.nii", "", "a.nii.gz"),
            ("a.nrrd", "", "a.png"),
            ("a.png", "", "a.dcm"),
            ("series/0.dcm", "", "a.nii"),
            ("enhanced/0.dcm", "", "noname"),
        )
    )
    if not other:
        shutil.copy(seeds / one, folder / name)
        return folder / name
    for file in seeds.glob(f"{one.split('.')[0]}.*"):
        if file.suffix in (".hdr", ".img", ".nii"):
            shutil.copy(file, folder / file.name)
    data = (seeds / other).read_bytes()
    if chance.random() < 0.5 and other.endswith(".gz"):
        data = gzip.compress(bytes(reversed(gzip.decompress(data))), mtime=0)
    (folder / (name or other)).write_bytes(data)
    return folder / chance.choice((one, name or other))


def _amplified(seeds: Path, folder: Path, chance: random.Random) -> Path:
    """A small file that asks for a lot of work: the limit of a case's time and memory shows what it costs."""
    choice = chance.choice(("members", "skip", "volumes", "text", "offset", "pages", "files", "images"))
    pack, encoding = chance.choice(((gzip.compress, "gzip"), (bz2.compress, "bzip2")))
    voxels = np.arange(math.prod(SIZE), dtype="<i2").tobytes()
    path = folder / "a.nrrd"
    if choice == "members":
        members = pack(chance.choice((b"", b"", b"7"))) * chance.choice((10, 5000, 100_000))
        if chance.random() < 0.5:
            path = folder / "a.nii.gz"
            path.write_bytes((seeds / "a.nii.gz").read_bytes() + (members if encoding == "gzip" else b""))
        else:
            path.write_bytes(_nrrd(SIZE, encoding) + pack(voxels) + members)
    elif choice == "skip":
        skip = chance.choice((1 << 20, 1 << 26, 1 << 27, 1 << 39))
        path.write_bytes(_nrrd(SIZE, encoding, f"byte skip: {skip}\n") + pack(bytes(1 << 24)) * chance.choice((1, 99)))
    elif choice == "volumes":
        frames = chance.choice((2, 100, 9500))  # the most take more than the memory of a case
        plain = gzip.compress(bytes(1 << 24), 1) * (frames * 64 * 64 * 20 * 2 // (1 << 24) + 1)
        path.write_bytes(_nrrd((64, 64, 20, frames), "gzip", "kinds: domain domain domain list\n") + plain)
    elif choice == "text":
        more = chance.choice((b" 7", b" ", b"\n", b" 7.0000000", b" x")) * chance.choice((1000, 1 << 20, 1 << 23))
        path.write_bytes(_nrrd(SIZE, "ascii") + b" ".join(b"%d" % (k % 900) for k in range(math.prod(SIZE))) + more)
    elif choice == "offset":
        path = folder / "a.nii.gz"
        data = bytearray((seeds / "a.nii").read_bytes())
        struct.pack_into("<f", data, 108, chance.choice((1e6, 6e7, 1e9)))
        path.write_bytes(gzip.compress(bytes(data), mtime=0) + gzip.compress(bytes(1 << 24)) * 64)
    elif choice == "pages":
        path = folder / "a.tif"
        path.write_bytes(_tiff(chance.choice((1, 2, 1000, 30_000))))
    elif choice == "files":
        path = folder / "a.nhdr"
        names = chance.choice((1, 5, 10_000))
        plane = pack(bytes(max(1, 2 * math.prod(SIZE) // names)) + bytes(chance.choice((0, 1000, 1 << 24))))
        (folder / "a.raw").write_bytes(plane)
        path.write_bytes(_nrrd(SIZE, encoding, "data file: LIST\n" + "a.raw\n" * names)[:-1])
    else:
        shutil.copytree(seeds / "series", folder / "series")
        path = folder / "series"
        data = (path / "0.dcm").read_bytes()
        blank = data.replace(b"1.2.3.1\0", bytes(8)) if chance.random() < 0.7 else data
        for number in range(chance.choice((2, 30, 300))):
            end = chance.randbytes(2 * SIZE[0] * SIZE[1])
            (path / f"more-{number}.dcm").write_bytes(blank[: len(blank) - len(end)] + end)
    return path


def _nrrd(sizes: tuple[int, ...], encoding: str, extra: str = "") -> bytes:
    extents = " ".join(map(str, sizes))
    return (
        f"NRRD0004\ntype: short\ndimension: {len(sizes)}\nsizes: {extents}\nendian: little\nencoding: {encoding}\n"
        f"{extra}\n"
    ).encode()


def _tiff(pages: int) -> bytes:
    """Of so many pages that share their pixels."""
    content = bytearray(b"II*\0" + struct.pack("<I", 24) + bytes(16))
    fields = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16}
    page = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", tag, 4, 1, fields[tag]) for tag in fields)
    for number in range(pages):
        content += page + struct.pack("<I", 0 if number == pages - 1 else len(content) + len(page) + 4)
    return bytes(content)


def _series(series: Path, folder: Path, chance: random.Random) -> Path:
    shutil.copytree(series, folder)
    files = sorted(folder.iterdir())
    choice = chance.randrange(8)
    victims = files if chance.random() < 0.3 else [chance.choice(files)]
    if choice < 6:
        change = mutate.dicom_element if choice < 4 else partial(mutate.some_bytes, first=1500)
        seed = chance.random()
        for file in victims:
            file.write_bytes(change(file.read_bytes(), random.Random(seed)))
    elif choice == 6:
        victims[0].unlink()
        (folder / "rest.dcm").write_bytes(chance.choice((b"", b"DICM", b"\0" * 128 + b"DICM", b"text")))
    else:
        shutil.copy(victims[0], folder / "again.dcm")
        (folder / "notes.txt").write_text("not a scan")
    remaining = sorted(folder.iterdir())
    return chance.choice((folder, folder, chance.choice(remaining)))


def check(volume: object) -> None:
    """What every reader promises of a result.

    Raises:
        Failed: saying what does not hold.
    """
    import SimpleITK as sitk

    image = volume.image  # type: ignore[attr-defined]
    values = sitk.GetArrayViewFromImage(image)
    if image.GetDimension() != 3 or values.dtype != np.float32:
        raise Failed(f"the volume is {image.GetDimension()}-D of {values.dtype}")
    if not np.isfinite(values).all():
        raise Failed("voxels are not finite")
    if values.size > 100_000:
        raise Failed(f"{values.size} voxels came of a small file")
    numbers = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    if not all(math.isfinite(number) for number in numbers):
        raise Failed(f"the geometry is not finite: {numbers}")
    if not all(0.01 <= spacing <= 100 for spacing in image.GetSpacing()):
        raise Failed(f"the spacing is {image.GetSpacing()} mm")
    axes = np.array(image.GetDirection()).reshape(3, 3)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2):
        raise Failed(f"the axes are not at right angles: {image.GetDirection()}")
