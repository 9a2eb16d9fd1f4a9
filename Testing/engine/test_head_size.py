"""A header that makes an impossible head of the picture: refused; what may be a slab or a part of one is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

import phantom
from diffusion_anomaly.detection.brain import network_grid
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.head_size import SECOND_HEAD, brain_size_verdict, head_verdict, outline
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.sources import read
from diffusion_anomaly.io.volume import Volume, read_volume

SAMPLE = Path(__file__).parents[2] / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"
TRUE = (2.0, 2.0, 6.0)


@pytest.fixture(scope="module")
def head() -> sitk.Image:
    """The committed sample as an ordinary clinical scan: 2 mm in plane, slices of 6 mm, with air all around."""
    image = sitk.DICOMOrient(read_volume(SAMPLE).image, "LPS")
    size = [round(count * mm / new) for count, mm, new in zip(image.GetSize(), image.GetSpacing(), TRUE, strict=True)]
    grid = (size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), TRUE, image.GetDirection())
    return sitk.Resample(image, *grid, 0.0, sitk.sitkFloat32)


def spaced(image: sitk.Image, spacing: Sequence[float]) -> sitk.Image:
    image = sitk.Image(image)
    image.SetSpacing([float(edge) for edge in spacing])
    return image


IMPOSSIBLE = {
    "cm for mm": (0.2, 0.2, 0.6),
    "mm for cm": (20, 20, 60),
    "metres": (0.002, 0.002, 0.006),
    "lost": (1, 1, 1),
    "slices lost": (2, 2, 1),
    "slices tenfold": (2, 2, 60),
    "slices a tenth": (2, 2, 0.6),
    "doubled": (4, 4, 12),
    "in plane doubled": (4, 4, 6),
    "one axis halved": (1, 2, 6),
    "order reversed": (6, 2, 2),
}


@pytest.mark.parametrize("spacing", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_spacing_that_makes_no_head_is_refused_in_any_orientation(head: sitk.Image, spacing: Sequence[float]) -> None:
    for axes in ("LPS", "ASL", "IPR"):
        verdict = head_verdict(sitk.DICOMOrient(spaced(head, spacing), axes))
        assert verdict is not None and verdict.refused and "spacing is wrong" in verdict.message


PARTS = {
    "whole": (slice(None), slice(None), slice(None)),
    "three slices": (slice(None), slice(None), slice(14, 17)),
    "upper half": (slice(None), slice(None), slice(15, None)),
    "lower half": (slice(None), slice(None), slice(0, 15)),
    "top": (slice(None), slice(None), slice(17, None)),
    "left half": (slice(0, 45), slice(None), slice(None)),
    "middle": (slice(25, 65), slice(30, 80), slice(None)),
    "one slice": (slice(None), slice(None), slice(15, 16)),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_slab_or_a_part_of_a_head_is_no_wrong_spacing(head: sitk.Image, part: tuple[slice, ...]) -> None:
    verdict = head_verdict(head[part])
    assert verdict is None or not verdict.refused


@pytest.mark.parametrize(("scale", "doubted"), [(1.15, False), (1.0, False), (0.85, False), (0.75, True)])
def test_a_small_head_is_doubted_at_most(head: sitk.Image, scale: float, doubted: bool) -> None:
    verdict = head_verdict(spaced(head, np.array(TRUE) * scale))
    assert (verdict is not None) == doubted
    assert verdict is None or not verdict.refused


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("smaller", "doubted"), [(1.0, True), (0.9, True), (0.4, False)])
def test_two_heads_in_a_volume_are_doubted(head: sitk.Image, axis: int, smaller: float, doubted: bool) -> None:
    """Beside, before and above each other; something smaller, such as a hand, is no head."""
    values = sitk.GetArrayFromImage(head)
    other = ndimage.affine_transform(values, [1 / smaller] * 3, order=1)
    both = sitk.GetImageFromArray(np.concatenate([values, other], axis=axis))
    both.SetSpacing(head.GetSpacing())
    outlined = outline(both)
    assert outlined is not None and (outlined.second > SECOND_HEAD) == doubted
    verdict = head_verdict(both)
    assert not doubted or (verdict is not None and "two heads" in verdict.message and not verdict.refused)
    assert doubted or verdict is None or "two heads" not in verdict.message


def test_empty_slices_make_no_second_head(head: sitk.Image) -> None:
    values = sitk.GetArrayFromImage(head)
    values[::2] = 0
    outlined = outline(phantom.on_grid(values, head))
    assert outlined is not None and outlined.second < SECOND_HEAD


def test_what_has_no_outline_has_no_size() -> None:
    noise = np.random.default_rng(0).normal(100, 10, (20, 60, 60)).astype(np.float32)
    for values in (noise, np.zeros_like(noise)):
        image = spaced(sitk.GetImageFromArray(values), (3, 3, 6))
        assert head_verdict(image) is None


@pytest.mark.parametrize("axes", ["LPS", "ASL", "IPR"])
@pytest.mark.parametrize(("mm", "refused"), [(50.0, True), (2.0, True), (1.0, False), (0.5, False)])
def test_a_single_slice_whose_file_states_its_spacing_is_no_wider_than_a_scanner_shows(
    mm: float, refused: bool, axes: str
) -> None:
    """Pixels of 1 mm are those of a picture, of unknown size."""
    noise = np.random.default_rng(0).normal(100, 10, (1, 800, 800)).astype(np.float32)
    image = sitk.DICOMOrient(spaced(sitk.GetImageFromArray(noise), (mm, mm, 5.0)), axes)
    verdict = head_verdict(image)
    assert (verdict is not None and verdict.refused) == refused


@pytest.mark.parametrize(("shape", "spacing"), [((1, 600, 600), (50, 50, 5)), ((40, 40, 4000), (1000, 9, 9))])
def test_no_brain_is_looked_for_in_more_voxels_than_a_scanner_shows(
    shape: tuple[int, ...], spacing: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sitk, "Resample", lambda *given: pytest.fail("gigabytes"))
    with pytest.raises(InputError, match="too much to look for a brain in"):
        network_grid(spaced(sitk.GetImageFromArray(np.ones(shape, np.float32)), spacing))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("k", [0, 3, 6])
def test_one_slice_of_tissue_has_an_outline(k: int) -> None:
    values = np.random.default_rng(0).normal(0, 1, (7, 60, 60)).astype(np.float32)
    rows, columns = np.mgrid[:60, :60]
    values[k][(rows - 30) ** 2 + (columns - 30) ** 2 < 400] += 100
    verdict = head_verdict(spaced(sitk.GetImageFromArray(values), (5, 5, 5)))
    assert verdict is None or not verdict.refused


def test_it_is_refused_before_a_brain_is_looked_for_and_force_in_call_or_options_goes_on(
    head: sitk.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Volume] = []

    def brain(finder: object, volume: Volume, warn: object) -> sitk.Image:
        seen.append(volume)
        return sitk.Cast(volume.image > 20, sitk.sitkUInt8)

    monkeypatch.setattr("diffusion_anomaly.detection.brain.BrainFinder.__call__", brain)
    wrong = spaced(head, (1, 1, 1))
    with pytest.raises(InputError, match=r"spacing is wrong.*in the call for one scan, in da\.load for all"):
        Detector(Options("intensity"))(wrong)
    assert not seen
    for result in (
        Detector(Options("intensity"))(wrong, force=True),
        Detector(Options("intensity", force=True))(wrong),
    ):
        assert sum("spacing is wrong" in warning for warning in result.warnings) >= 1
        assert result.provenance["options"]["force"] is True
    with pytest.raises(InputError, match="spacing is wrong"):
        Detector(Options("intensity", force=True))(wrong, force=False)


def test_the_spacing_of_an_array_in_the_order_of_its_axes_is_refused(head: sitk.Image) -> None:
    values = sitk.GetArrayFromImage(head)
    assert head_verdict(read(values, spacing=TRUE).image) is None  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"axes are mixed up|spacing is wrong"):
        Detector(Options("intensity"))(values, spacing=TRUE[::-1])


@pytest.mark.parametrize(
    ("radii", "refused"),
    [((65, 85, 65), None), ((65, 75, 90), False), ((60, 60, 95), True), ((65, 85, 35), False), ((65, 85, 25), True)],
)
def test_a_brain_of_impossible_proportions_is_refused(radii: tuple[float, ...], refused: bool | None) -> None:
    grid = phantom.grid((60, 70, 52), (4.0, 4.0, 5.0))
    brain = phantom.inside(phantom.points(grid), phantom.HEAD_CENTRE, np.array(radii, float)).astype(np.uint8)
    verdict = brain_size_verdict(grid, phantom.on_grid(brain, grid))
    assert (None if verdict is None else verdict.refused) == refused
