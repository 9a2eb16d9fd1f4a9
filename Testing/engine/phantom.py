"""Synthetic scans whose anatomy is a function of the point in space: any grid can look at the same head.

World coordinates are ITK's: mm left, posterior, superior. Nothing here is symmetric: a flip or a swap of two
axes moves the lesion by centimetres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.io.volume import Volume

HEAD_CENTRE = np.array([4.0, -7.0, 11.0])
HEAD_RADII = np.array([62.0, 78.0, 55.0])
BRAIN_RADII = np.array([54.0, 70.0, 47.0])  # 744 ml
FLUID_RADII = np.array([10.0, 18.0, 12.0])  # 9 ml
FLUID = 25.0
LESION_CENTRE = HEAD_CENTRE + np.array([21.0, -30.0, 12.0])
LESION_RADII = np.array([11.0, 13.0, 10.0])


def grid(
    size: Sequence[int],
    spacing: Sequence[float],
    direction: np.ndarray | None = None,
    pixel: int = sitk.sitkFloat32,
) -> sitk.Image:
    """An empty image whose middle lies in the middle of the head."""
    image = sitk.Image(list(size), pixel)
    image.SetSpacing([float(edge) for edge in spacing])
    direction = np.eye(3) if direction is None else direction
    image.SetDirection(direction.ravel().tolist())
    middle = direction @ ((np.array(size) - 1) / 2 * np.array(spacing))
    image.SetOrigin((HEAD_CENTRE - middle).tolist())
    return image


def points(image: sitk.Image) -> np.ndarray:
    """World coordinates of every voxel, (k, j, i, 3), by ITK's own formula written out."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), axis=-1).astype(float)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    world = np.array(image.GetOrigin()) + (index * image.GetSpacing()) @ direction.T
    return world.transpose(2, 1, 0, 3)


def inside(world: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return (((world - centre) / radii) ** 2).sum(axis=-1) <= 1


def paint(empty: sitk.Image, *, lesion: float = 220.0, fluid: bool = False) -> sitk.Image:
    """A FLAIR-like head: air 0, scalp 150, brain around 100 with a gentle slope, one bright lesion.

    With ``fluid`` there is something dark amid the brain, as in every real one: a scale that begins at the darkest
    intensities of a brain without it stretches its noise as far as a lesion.
    """
    world = points(empty)
    values = np.zeros(world.shape[:-1])
    values[inside(world, HEAD_CENTRE, HEAD_RADII)] = 150
    brain = inside(world, HEAD_CENTRE, BRAIN_RADII)
    values[brain] = 100 + (world[brain] - HEAD_CENTRE) @ np.array([0.05, 0.11, 0.17])
    if fluid:
        values[inside(world, HEAD_CENTRE, FLUID_RADII)] = FLUID
    values[inside(world, LESION_CENTRE, LESION_RADII)] = lesion
    return on_grid(values.astype(np.float32), empty)


def brain_of(empty: sitk.Image) -> sitk.Image:
    return on_grid(inside(points(empty), HEAD_CENTRE, BRAIN_RADII).astype(np.uint8), empty)


def lesion_of(empty: sitk.Image) -> sitk.Image:
    return on_grid(inside(points(empty), LESION_CENTRE, LESION_RADII).astype(np.uint8), empty)


def on_grid(array: np.ndarray, like: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    return image


def array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def write_scan(folder: Path, scan: str = "scan", brain: str = "brain", lesion: str = "lesion") -> Path:
    """A head of 40 x 48 x 18 voxels with noise, its brain and its lesion, as NIfTI files of these names."""
    empty = grid((40, 48, 18), (4.0, 4.0, 7.0))
    noise = np.random.default_rng(0).normal(0, 3, empty.GetSize()[::-1]).astype(np.float32)
    images = {scan: on_grid(array(paint(empty, fluid=True)) + noise, empty)}
    for name, image in (images | {brain: brain_of(empty), lesion: lesion_of(empty)}).items():
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    return folder


def as_volume(image: sitk.Image) -> Volume:
    return Volume(sitk.Cast(image, sitk.sitkFloat32), "phantom", "0" * 64, 3, 0)


def orientations(image: sitk.Image) -> Iterator[sitk.Image]:
    """The image's grid in all 48 orders and signs of its axes; the world does not move."""
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        yield sitk.Flip(sitk.PermuteAxes(image, order), flips)


def centroid(image: sitk.Image, threshold: float) -> np.ndarray:
    """Mean world coordinate of the voxels above a threshold, mm LPS."""
    return points(image)[sitk.GetArrayFromImage(image) > threshold].mean(axis=0)


def rotation(degrees: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation matrix, about x, then y, then z."""
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def geometry(image: sitk.Image) -> tuple:
    """Everything that makes a grid, for comparison bit for bit."""
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def write_dicom(
    folder: Path,
    image: sitk.Image,
    *,
    uid: str = "1.2.826.0.1.3680043.2.1125.1",
    description: str = "FLAIR axial",
    first_number: int = 1,
    skip: Sequence[int] = (),
) -> None:
    """Write an int16 volume as one DICOM file a slice, under names that do not follow the slice order."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.array(image.GetDirection()).reshape(3, 3)
    for k in range(image.GetSize()[2]):
        if k in skip:
            continue
        plane = image[:, :, k]
        plane = sitk.JoinSeries([plane])
        tags = {
            "0008|0008": "ORIGINAL\\PRIMARY",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{uid}.{first_number + k}",
            "0008|0060": "MR",
            "0008|103e": description,
            "0010|0010": "Secret^Name",
            "0018|0050": str(image.GetSpacing()[2]),
            "0020|000d": "1.2.826.0.1.3680043.2.1125.0",
            "0020|000e": uid,
            "0020|0013": str(first_number + k),
            "0020|0032": "\\".join(f"{x:.6f}" for x in image.TransformIndexToPhysicalPoint((0, 0, k))),
            "0020|0037": "\\".join(f"{x:.9f}" for x in (*direction[:, 0], *direction[:, 1])),
        }
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        plane.SetSpacing((*image.GetSpacing()[:2], image.GetSpacing()[2]))
        writer.SetFileName(str(folder / f"{(k * 7) % 97:03d}-{first_number + k}.dcm"))
        writer.Execute(plane)
