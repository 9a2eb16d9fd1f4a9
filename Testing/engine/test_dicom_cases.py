"""DICOM of the kinds that went wrong, out of a folder beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import read_volume

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def case(name: str) -> Path:
    if not (CASES / name).exists():
        pytest.skip(f"needs {name} in {CASES}, which is not distributed with the repository")
    return CASES / name


@pytest.mark.parametrize("name", ["d14_enh_interleaved", "d16_enh_slope_per_frame"])
def test_frames_as_their_functional_groups_say(name: str) -> None:
    (path,) = case(name).iterdir()
    data = dcmread(path)
    groups = data.PerFrameFunctionalGroupsSequence
    heights = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
    order = np.argsort(heights)[::-1]  # rows run to the front, so that the normal points down
    transformations = [group.PixelValueTransformationSequence[0] for group in groups]
    slopes = np.array([float(item.RescaleSlope) for item in transformations])
    intercepts = np.array([float(item.RescaleIntercept) for item in transformations])
    expected = (data.pixel_array * slopes[:, None, None] + intercepts[:, None, None])[order]
    volume = read_volume(path)
    assert np.allclose(sitk.GetArrayFromImage(volume.image), expected, atol=1e-4)
    assert volume.image.GetSpacing() == pytest.approx((4.0, 4.0, 5.0))
    assert volume.image.GetOrigin()[2] == pytest.approx(max(heights))


def test_two_echoes_are_asked_for() -> None:
    with pytest.raises(InputError, match=r"2 volumes.*--frame"):
        read_volume(case("d15_enh_two_echoes"))
    first, second = (read_volume(case("d15_enh_two_echoes"), frame=frame).image for frame in range(2))
    assert first.GetSize() == (44, 52, 34)
    assert not np.array_equal(sitk.GetArrayViewFromImage(first), sitk.GetArrayViewFromImage(second))


def test_a_description_in_latin_letters() -> None:
    assert read_volume(case("d12a_latin1")).metadata["description"] == "Schädel FLAIR axial"


@pytest.mark.parametrize("name", ["d01_plain", "faults/dcm-instance-dashes", "faults/dcm-descr-latin1"])
def test_what_does_no_harm(name: str) -> None:
    assert read_volume(case(name)).warnings == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("d17_mosaic", "mosaic"),
        ("d19_no_pixelspacing", "PixelSpacing"),
        ("d20b_iop_zero", "ImageOrientationPatient"),
        ("faults/dcm-frames", "NumberOfFrames"),
        ("faults/dcm-frames8-single", "8 images"),
        ("faults/dcm-orientation-skew", "ImageOrientationPatient"),
        ("faults/dcm-position-hex", "ImagePositionPatient"),
        ("faults/dcm-rows-one", "pixels"),
        ("faults/dcm-rows200-all", "pixels"),
        ("faults/dcm-spacing-comma", "PixelSpacing"),
        ("faults/dcm-spacing-missing", "PixelSpacing"),
        ("faults/dcm-spacing-nan", "PixelSpacing"),
    ],
)
def test_what_is_refused_names_the_reason(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_volume(case(name))
