"""Where in the brain a finding is said to lie: landmarks, in any orientation, and when nothing is said of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.results.findings import segment
from diffusion_anomaly.results.places import MNI_HIGH, MNI_LOW, REGIONS, BrainFrame, region_at, with_places

# Points of the average brain in MNI space, mm right, anterior, superior, far from any border.
LANDMARKS = {
    (30, 45, 20): "right frontal lobe",
    (-30, 45, 20): "left frontal lobe",
    (-55, -15, -20): "left temporal lobe",
    (28, -60, 52): "right parietal lobe",
    (-20, -92, 5): "left occipital lobe",
    (14, -18, 8): "right basal ganglia or thalamus",
    (-28, -65, -40): "left cerebellum",
    (0, -28, -35): "brain stem",
}


def brain(spacing: tuple[float, float, float] = (3.0, 3.0, 3.0), *, cut: bool = False) -> sitk.Image:
    """An ellipsoid of the average brain's extent, stored to the left, back and top; its lower part if cut."""
    low, high = MNI_LOW, MNI_HIGH
    margin = 12.0
    top = high[2] - 50 if cut else high[2] + margin
    size = [
        int((end - start) / edge)
        for start, end, edge in zip(low - margin, (*(high[:2] + margin), top), spacing, strict=True)
    ]
    image = sitk.Image(size, sitk.sitkUInt8)
    image.SetSpacing(spacing)
    image.SetOrigin((-high[0] - margin, -high[1] - margin, low[2] - margin))
    k, j, i = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    centre, half = (low + high) / 2, (high - low) / 2
    x, y, z = (
        -(image.GetOrigin()[0] + i * spacing[0]),
        -(image.GetOrigin()[1] + j * spacing[1]),
        image.GetOrigin()[2] + k * spacing[2],
    )
    inside = sum(((axis - c) / h) ** 2 for axis, c, h in zip((x, y, z), centre, half, strict=True)) <= 1
    made = sitk.GetImageFromArray(inside.astype(np.uint8))
    made.CopyInformation(image)
    return made


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (2.0, 2.0, 6.0)])
@pytest.mark.parametrize("point", LANDMARKS)
def test_landmarks_are_named(point: tuple[float, float, float], spacing: tuple[float, float, float]) -> None:
    frame = BrainFrame.of(brain(spacing))
    assert frame is not None
    assert frame.place(point) == LANDMARKS[point]


def test_it_does_not_matter_how_the_scan_is_stored() -> None:
    names = set()
    for stored in phantom.orientations(brain()):
        frame = BrainFrame.of(stored)
        assert frame is not None
        names.add(frame.place((30, 45, 20)))
    assert names == {"right frontal lobe"}


def test_of_a_brain_that_is_cut_off_only_the_side_is_told() -> None:
    frame = BrainFrame.of(brain(cut=True))
    assert frame is not None and not frame.whole
    assert frame.place((30, 45, 20)) == "right side"
    assert frame.place((1, 45, 20)) == "near the midline"


def test_a_stray_voxel_moves_nothing_and_outside_there_is_no_place() -> None:
    mask = brain()
    mask[0, 0, 0] = 1
    frame, plain = BrainFrame.of(mask), BrainFrame.of(brain())
    assert frame is not None and plain is not None
    assert np.allclose(frame.low, plain.low) and np.allclose(frame.high, plain.high)
    assert frame.place((140, 0, 0)) == ""
    assert BrainFrame.of(brain() * 0) is None


def test_findings_get_places_and_those_of_pictures_none() -> None:
    mask = brain()
    scores = sitk.Cast(mask, sitk.sitkFloat32) * 0
    index = mask.TransformPhysicalPointToIndex((-30, -45, 20))
    for step in product((0, 1), repeat=3):
        scores[tuple(np.add(index, step).tolist())] = 5.0
    _, _, findings = segment(scores, 2.0, 0.05, mask)
    (finding,) = with_places(findings, mask)
    assert (findings[0].place, finding.place) == ("", "right frontal lobe")
    picture = replace(finding, area_pixels=4, place="")
    assert with_places([picture], mask) == [picture]
    assert with_places([], mask) == []


def test_every_region_has_its_place_in_the_table() -> None:
    shares = np.stack(np.meshgrid(*[np.linspace(0.05, 0.95, 19)] * 3, indexing="ij"), -1).reshape(-1, 3)
    assert {region_at(share) for share in shares} == set(REGIONS)
