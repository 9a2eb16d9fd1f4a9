"""Pasted lesions: where they lie, how bright they are, and that a seed decides all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from diffusion_anomaly.errors import InputError
from examples.papers.synthetic import Pasted, paste, write_pasted

SPACING = (5.0, 1.0, 1.0)
INSIDE = Pasted("inside", (6.0, 10.0), (0.6, 0.8))
RIM = Pasted("rim", (5.0, 8.0), (0.6, 0.8))


def ball() -> tuple[np.ndarray, np.ndarray]:
    """A head of 100 with noise of 2 in air, and its region."""
    z, y, x = np.meshgrid(np.arange(20) * 5.0 - 47.5, np.arange(100.0) - 49.5, np.arange(100.0) - 49.5, indexing="ij")
    region = z**2 + y**2 + x**2 < 42.0**2
    noise = np.random.default_rng(0).normal(0.0, 2.0, region.shape)
    scan = np.where(region, 100.0 + noise, 0.0)
    scan[0, 0, 0] = 255.0  # bone somewhere
    return scan, region


@pytest.mark.parametrize("what", [INSIDE, RIM, replace(INSIDE, contrast=(-0.7, -0.6))])
def test_lesions_lie_in_the_region_and_have_their_contrast(what: Pasted) -> None:
    scan, region = ball()
    image, mask = paste(scan, region, SPACING, what, np.random.default_rng(1))
    assert mask.any() and not (mask & ~region).any()
    changed = np.abs(image - scan) > 1e-3
    assert not (changed & ~region).any() and changed[mask].mean() > 0.99
    full = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
    low, high = sorted(100.0 * (1.0 + contrast) for contrast in what.contrast)
    assert low - 8.0 < np.median(image[full]) < high + 8.0
    assert image[full].std() > 1.0, "the scan's noise stays"


def test_a_lesion_fills_voxels_at_its_border_in_part() -> None:
    scan, region = ball()
    image, mask = paste(scan, region, SPACING, INSIDE, np.random.default_rng(1))
    added = image - scan
    partly = (added > 10.0) & (added < 0.7 * added[mask].max())
    assert partly.sum() > 50
    assert (added[mask] > 0.35 * added[mask].max()).mean() > 0.95


def test_rims_touch_the_border_and_lesions_inside_are_compact() -> None:
    scan, region = ball()
    depth = ndimage.distance_transform_edt(np.pad(region, 1), SPACING)[1:-1, 1:-1, 1:-1]
    for seed in range(4):
        _, rim = paste(scan, region, SPACING, RIM, np.random.default_rng(seed))
        _, blob = paste(scan, region, SPACING, INSIDE, np.random.default_rng(seed))
        assert depth[rim].min() <= 1.0 and depth[rim].max() <= 8.0 + 5.0
        assert depth[blob].max() > 6.0
        places = np.argwhere(rim) * SPACING
        assert np.ptp(places, axis=0).max() > 10.0


def test_a_seed_decides_everything() -> None:
    scan, region = ball()
    first, again, other = (paste(scan, region, SPACING, RIM, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_several_lesions_and_the_scans_range() -> None:
    scan, region = ball()
    one, many = (
        paste(scan, region, SPACING, replace(INSIDE, contrast=(9.0, 9.0), count=count), np.random.default_rng(2))
        for count in ((1, 1), (4, 4))
    )
    assert many[1].sum() > one[1].sum()
    assert many[0].max() == 255.0


def test_what_does_not_fit_is_said() -> None:
    scan, region = ball()
    with pytest.raises(InputError, match="No inside lesion of 90 to 95 mm fits"):
        paste(scan, region, SPACING, replace(INSIDE, radius=(90.0, 95.0)), np.random.default_rng(0))
    with pytest.raises(InputError, match="No rim lesion"):
        paste(scan, np.zeros_like(region), SPACING, RIM, np.random.default_rng(0))


def test_scans_and_masks_are_written_on_the_scans_grid(tmp_path: Path) -> None:
    scan, region = ball()
    image = sitk.GetImageFromArray(scan.astype(np.float32))
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((3.0, -4.0, 5.0))
    sitk.WriteImage(image, tmp_path / "a_ct.nii.gz")
    inside = sitk.GetImageFromArray(region.astype(np.uint8))
    inside.CopyInformation(image)
    paths = write_pasted(
        [tmp_path / "a_ct.nii.gz"], lambda _: inside, [INSIDE, RIM], tmp_path / "o", ending="_ct.nii.gz"
    )
    assert [path.name for path in paths] == ["a-inside_ct.nii.gz", "a-rim_ct.nii.gz"]
    found, mask = (sitk.ReadImage(tmp_path / "o" / f"a-inside{end}") for end in ("_ct.nii.gz", "_mask.nii.gz"))
    assert found.GetOrigin() == mask.GetOrigin() == image.GetOrigin() and found.GetSpacing() == image.GetSpacing()
    marked = sitk.GetArrayFromImage(mask) != 0
    assert marked.any() and sitk.GetArrayFromImage(found)[marked].mean() > 130.0
    with pytest.raises(InputError, match="does not end in"):
        write_pasted([tmp_path / "a_ct.nii.gz"], lambda _: inside, [RIM], tmp_path / "o", ending="_flair.nii.gz")
