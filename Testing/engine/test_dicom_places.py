"""Where DICOM voxels lie, against the formula of the standard and against another reader, over random headers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from highdicom import get_volume_from_series
from pydicom import dcmread

import dicoms
import phantom
from diffusion_anomaly.io.volume import read_volume

HEADERS = 500
TOLERANCE_MM = 1e-3


def marked(shape: tuple[int, ...], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark volume with five voxels of different brightness, and their (slice, row, column)."""
    pixels = np.zeros(shape, np.uint16)
    at = np.array(np.unravel_index(random.permutation(pixels.size)[:5], shape)).T
    pixels[tuple(at.T)] = np.arange(1, 6) * 100
    return pixels, at


def by_formula(at: np.ndarray, axes: np.ndarray, origin: np.ndarray, spacing: np.ndarray, step: float) -> np.ndarray:
    """PS3.3 C.7.6.2.1.1 out of the numbers that the header got, LPS."""
    slices, rows, columns = at.T[:, :, None]
    normal = np.cross(axes[:3], axes[3:])
    return origin + slices * step * normal + rows * spacing[0] * axes[3:] + columns * spacing[1] * axes[:3]


def in_this_reader(path: Path) -> np.ndarray:
    image = read_volume(path).image
    values = sitk.GetArrayFromImage(image)
    found = [np.argwhere(values == 100 * (n + 1)) for n in range(5)]
    assert all(len(where) == 1 for where in found)
    return np.array([image.TransformIndexToPhysicalPoint([int(i) for i in where[0][::-1]]) for where in found])


def in_highdicom(folder: Path) -> np.ndarray:
    volume = get_volume_from_series([dcmread(file) for file in sorted(folder.iterdir())])
    return np.array([volume.map_indices_to_reference(np.argwhere(volume.array == 100 * (n + 1)))[0] for n in range(5)])


def test_marked_voxels_lie_where_formula_and_another_reader_put_them() -> None:
    """Two thirds are files of one slice, one third frames of a file; in any orientation, order and spacing."""
    random = np.random.default_rng(20240611)
    with tempfile.TemporaryDirectory() as scratch:
        for case in range(HEADERS):
            shape = tuple(int(n) for n in random.integers((2, 3, 3), (6, 8, 8)))
            pixels, at = marked(shape, random)
            turn = phantom.rotation(random.uniform(-180, 180, 3))
            axes = np.array(dicoms.rounded((*turn[:, 0], *turn[:, 1] * random.choice((-1, 1)))), float)
            spacing = np.array(dicoms.rounded(random.uniform(0.2, 6.0, 2)), float)
            origin = np.array(dicoms.rounded(random.uniform(-400, 400, 3)), float)
            step = float(f"{random.uniform(0.3, 12.0):.6f}")
            folder = Path(scratch) / str(case)
            if case % 3:
                files = dicoms.classic(pixels, axes=axes, origin=origin, spacing=spacing, step=step)
                dicoms.write(folder, [files[k] for k in random.permutation(len(files))])
            else:
                order = random.permutation(len(pixels))
                places = origin + order[:, None] * step * np.cross(axes[:3], axes[3:])
                data = dicoms.enhanced(pixels[order], places, axes=axes, spacing=spacing)
                dicoms.save(data, folder / "many.dcm")
            expected = by_formula(at, axes, origin, spacing, step)
            assert np.abs(in_this_reader(folder) - expected).max() < TOLERANCE_MM, case
            if case % 3:  # highdicom reads multi-frame files only with their dimensions described
                assert np.abs(in_highdicom(folder) - expected).max() < TOLERANCE_MM, case
