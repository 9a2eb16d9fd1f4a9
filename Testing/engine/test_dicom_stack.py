"""Files of one image each: where they lie, which belong together, and what is refused by name."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

import dicoms
import phantom
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.dicom.planes import Plane
from diffusion_anomaly.io.dicom.stack import _check_alike
from diffusion_anomaly.io.volume import read_volume
from phantom import array


def refused(path: Path, **choice: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path, **choice)
    assert str(path) in caught.value.what and caught.value.hint
    assert "Secret" not in str(caught.value)
    return str(caught.value)


def test_a_stack_lies_where_its_positions_say(tmp_path: Path) -> None:
    turned = phantom.rotation((12, -20, 33))
    axes = (*turned[:, 0], *turned[:, 1])
    files = dicoms.classic(dicoms.voxels(), axes=axes)
    volume = read_volume(dicoms.write(tmp_path, files[::-1]))
    assert np.array_equal(array(volume.image), dicoms.voxels())
    assert volume.image.GetSpacing() == pytest.approx((1.25, 1.5, 3.0), abs=1e-6)
    expected = np.array((-10.0, -20.0, 30.0)) + 2 * 1.25 * turned[:, 0] + 4 * 1.5 * turned[:, 1] + 3 * 3 * turned[:, 2]
    assert volume.image.TransformIndexToPhysicalPoint((2, 4, 3)) == pytest.approx(expected, abs=1e-4)
    assert volume.warnings == ()


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    files = dicoms.classic(dicoms.voxels())
    for k, data in enumerate(files):
        dicoms.changed(data, RescaleSlope=str(0.5 + k), RescaleIntercept=str(-10 * k))
    expected = dicoms.voxels() * (0.5 + np.arange(4))[:, None, None] - 10 * np.arange(4)[:, None, None]
    assert np.array_equal(array(read_volume(dicoms.write(tmp_path, files)).image), expected)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"PixelSpacing": None}, "PixelSpacing"),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [1, 1]}, "PixelSpacing"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": [0] * 6}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "ImageOrientationPatient"),
        ({"PixelSpacing": [0, 1]}, "spacing"),
        ({"PixelSpacing": [-1, 1]}, "spacing"),
        ({"PixelSpacing": [1000, 1000]}, "spacing"),
        ({"RescaleSlope": "0"}, "RescaleSlope"),
    ],
)
def test_what_places_the_voxels_must_be_there_and_sound(tmp_path: Path, elements: dict[str, Any], words: str) -> None:
    files = [dicoms.changed(data, **elements) for data in dicoms.classic(dicoms.voxels())]
    assert words in refused(dicoms.write(tmp_path, files))


@pytest.mark.parametrize("number", [b"0x10", b"\xb2", b"1,5 ", b"nan ", b"inf ", b"1_0 ", b"1e999", b"--", b"1 2 "])
@pytest.mark.parametrize("name", ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope"])
def test_what_is_no_decimal_number_is_refused_by_name(tmp_path: Path, name: str, number: bytes) -> None:
    files = dicoms.classic(dicoms.voxels(), RescaleSlope="1")
    folder = dicoms.write(tmp_path, files)
    count = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6, "RescaleSlope": 1}[name]
    path = folder / "10-0.dcm"
    spoil(path, files[1], name, b"\\".join([number.strip()] * count))
    assert name in refused(folder)


def spoil(path: Path, data: Dataset, name: str, value: bytes) -> None:
    """Put bytes that pydicom would not write in the place of an element's value."""
    element = data[name]
    start = int(element.tag.group).to_bytes(2, "little") + int(element.tag.elem).to_bytes(2, "little")
    content = path.read_bytes()
    at = content.index(start + element.VR.encode())
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    value += b" " * (len(value) % 2)
    path.write_bytes(content[: at + 6] + len(value).to_bytes(2, "little") + value + content[at + 8 + length :])


@pytest.mark.parametrize("number", [b"--", b"0x10", b"\xb2", b"1,5", b"", b"nan", b"9" * 300])
def test_an_instance_number_that_is_none_does_no_harm(tmp_path: Path, number: bytes) -> None:
    files = dicoms.classic(dicoms.voxels())
    folder = dicoms.write(tmp_path, files)
    for k in range(4):
        spoil(folder / f"{k * 7 + 3:02d}-0.dcm", files[k], "InstanceNumber", number)
    assert np.array_equal(array(read_volume(folder).image), dicoms.voxels())


# Which images belong together


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"PatientID": "8"}, "different patients"),
        ({"PatientName": "Other^Name"}, "different patients"),
        ({"FrameOfReferenceUID": "1.2.9"}, "different frames of reference"),
        ({"StudyInstanceUID": "1.2.9"}, "different studies"),
        ({"Rows": 4}, "different size or orientation"),
        ({"ImageOrientationPatient": ["0", "1", "0", "0", "0", "-1"]}, "different size or orientation"),
        ({"PixelSpacing": ["2", "2"]}, "orientation or pixel spacing"),
    ],
)
def test_an_image_of_something_else_is_named(tmp_path: Path, elements: dict[str, Any], words: str) -> None:
    files = dicoms.classic(dicoms.voxels())
    dicoms.changed(files[2], **elements)
    message = refused(dicoms.write(tmp_path, files))
    assert words in message and "17-0.dcm" in message


@pytest.mark.parametrize(
    ("first", "elements", "words"),
    [
        (1, {}, None),
        (0, {}, None),
        (5, {}, "begin at 5"),
        (1, {"ImagesInAcquisition": "4"}, None),
        (1, {"ImagesInAcquisition": "2"}, None),
        (1, {"ImagesInAcquisition": "7"}, "states 7 images (ImagesInAcquisition), 4 are there"),
        (1, {"NumberOfSlices": 6}, "states 6 images (NumberOfSlices), 4 are there"),
    ],
)
def test_slices_that_may_be_missing_at_an_end_are_said(
    tmp_path: Path, first: int, elements: dict[str, Any], words: str | None
) -> None:
    files = dicoms.classic(dicoms.voxels(), **elements)
    for k, data in enumerate(files):
        data.InstanceNumber = str(first + k)
    warnings = read_volume(dicoms.write(tmp_path, files)).warnings
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


@pytest.mark.parametrize("other", [{"PatientID": "8"}, {}])
def test_series_of_different_patients_are_said_and_nobody_is_named(tmp_path: Path, other: dict[str, Any]) -> None:
    second = dicoms.classic(dicoms.voxels(seed=1), SeriesInstanceUID=dicoms.SERIES + ".2", **other)
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()), second)
    message = refused(folder)
    assert ("of 2 patients" in message) == bool(other)
    warnings = read_volume(folder, series=dicoms.SERIES).warnings
    assert any("series of 2 patients" in warning for warning in warnings) == bool(other)
    assert "Secret" not in message + "".join(warnings)


def test_copies_are_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    shutil.copy(folder / "10-0.dcm", folder / "copy.dcm")
    volume = read_volume(folder)
    assert np.array_equal(array(volume.image), dicoms.voxels())
    assert any("there twice" in warning for warning in volume.warnings)


def test_copies_with_new_uids_are_left_out_too(tmp_path: Path) -> None:
    files, again = dicoms.classic(dicoms.voxels()), dicoms.classic(dicoms.voxels())
    volume = read_volume(dicoms.write(tmp_path, files, again))
    assert np.array_equal(array(volume.image), dicoms.voxels())
    assert any(warning.startswith("4 images are there twice") for warning in volume.warnings)


def test_two_images_with_one_uid_that_differ_are_no_copies(tmp_path: Path) -> None:
    files = dicoms.classic(dicoms.voxels())
    other = dicoms.classic(dicoms.voxels(seed=1))[1]
    other.SOPInstanceUID = files[1].SOPInstanceUID
    assert "1 to 2 images at a position" in refused(dicoms.write(tmp_path, files, [other]))


def test_empty_slices_of_two_time_points_are_no_copies(tmp_path: Path) -> None:
    first, second = dicoms.voxels(), dicoms.voxels(seed=1)
    first[0] = second[0] = 0
    early = dicoms.classic(first, TemporalPositionIdentifier="1")
    late = dicoms.classic(second, TemporalPositionIdentifier="2")
    folder = dicoms.write(tmp_path, early, late)
    assert np.array_equal(array(read_volume(folder, frame=1).image), second)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("EchoTime", ("90", "10"), "echo time (10, 90)"),
        ("AcquisitionNumber", ("2", "1"), "acquisition number (1, 2)"),
        ("TemporalPositionIdentifier", ("2", "1"), "temporal position (1, 2)"),
        ("TriggerTime", ("700", "30.5"), "trigger time (30.5, 700)"),
        ("DiffusionBValue", (1000.0, 0.0), "b-value (0, 1000)"),
        ("InversionTime", ("2500", "900"), "inversion time (900, 2500)"),
    ],
)
def test_volumes_are_asked_for_and_ordered_by_what_tells_them_apart(
    tmp_path: Path, name: str, values: tuple[Any, Any], words: str
) -> None:
    """Instance numbers say the opposite, and alternate: slices of both volumes were taken in turns."""
    high, low = dicoms.voxels(seed=1), dicoms.voxels(seed=2)
    files = [
        [dicoms.changed(data, InstanceNumber=str(2 * k + n + 1), **{name: value}) for k, data in enumerate(stack)]
        for n, (stack, value) in enumerate(zip((dicoms.classic(high), dicoms.classic(low)), values, strict=True))
    ]
    folder = dicoms.write(tmp_path, *files)
    message = refused(folder)
    assert "2 volumes" in message and words in message and "--frame" in message
    assert np.array_equal(array(read_volume(folder, frame=0).image), low)
    assert np.array_equal(array(read_volume(folder, frame=1).image), high)


def test_acquisitions_numbered_by_slice_do_not_mix_volumes(tmp_path: Path) -> None:
    early, late = dicoms.voxels(seed=1), dicoms.voxels(seed=2)
    stacks = [dicoms.classic(early, EchoTime="90"), dicoms.classic(late, EchoTime="10")]
    for n, stack in enumerate(stacks):
        for k, data in enumerate(stack):
            data.AcquisitionNumber = str((k * 5 + n * (3 if k % 2 else 1)) % 7)
    folder = dicoms.write(tmp_path, *stacks)
    assert np.array_equal(array(read_volume(folder, frame=0).image), late)


def test_volumes_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    stacks = [dicoms.classic(dicoms.voxels(seed=n), InstanceNumber=None) for n in range(2)]
    assert "which belongs to which volume" in refused(dicoms.write(tmp_path, *stacks), frame=0)


# Regular or not


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_slice_is_named_by_its_neighbours(tmp_path: Path, missing: int) -> None:
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    (folder / f"{missing * 7 + 3:02d}-0.dcm").unlink()
    message = refused(folder)
    assert "3 mm apart, but 6 mm" in message
    assert f"{(missing - 1) * 7 + 3:02d}-0.dcm" in message and f"{(missing + 1) * 7 + 3:02d}-0.dcm" in message


def shifted(move: Callable[[int], tuple[float, float, float]]) -> list[Dataset]:
    files = dicoms.classic(dicoms.voxels((6, 5, 6)))
    for k, data in enumerate(files):
        data.ImagePositionPatient = dicoms.rounded(np.array(data.ImagePositionPatient, float) + move(k))
    return files


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (lambda k: (0, 0.3 * k, 0), "tilted gantry"),
        (lambda k: (0, 0, 0.4 * k * k), "mm apart, but"),
        (lambda k: (0, 0, 0.058 * k * k), "distance of its slices varies"),
        (lambda k: (0.4 * (k == 3), 0, 0), "24-0.dcm"),
    ],
)
def test_what_is_no_straight_regular_stack_is_refused(
    tmp_path: Path, move: Callable[[int], tuple[float, float, float]], words: str
) -> None:
    message = refused(dicoms.write(tmp_path, shifted(move)))
    assert words in message


def test_distances_that_vary_a_little_are_said(tmp_path: Path) -> None:
    volume = read_volume(dicoms.write(tmp_path, shifted(lambda k: (0, 0, 0.1 * (k == 3)))))
    assert any("vary" in warning for warning in volume.warnings)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"SpacingBetweenSlices": "1.5"}, "states 1.5 mm (SpacingBetweenSlices); are some of them missing?"),
        ({"SpacingBetweenSlices": "2.5", "SliceThickness": "2"}, "are some of them missing?"),
        ({"SpacingBetweenSlices": "6"}, "the positions are believed"),
        ({"SpacingBetweenSlices": "-6"}, "the positions are believed"),
        ({"SpacingBetweenSlices": "3.1"}, None),
        ({"SpacingBetweenSlices": "-3"}, None),
        ({"SpacingBetweenSlices": "0"}, None),
        ({"SpacingBetweenSlices": "0.5", "SliceThickness": "2.5"}, None),  # the gap, as some scanners write it
    ],
)
def test_another_distance_than_the_header_states_is_said(
    tmp_path: Path, elements: dict[str, Any], words: str | None
) -> None:
    warnings = read_volume(dicoms.write(tmp_path, dicoms.classic(dicoms.voxels(), **elements))).warnings
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


@pytest.mark.parametrize(
    ("numbers", "thickness", "words"),
    [
        ([1, 3, 5, 7], "1.5", "3 slices between"),
        ([7, 5, 3, 1], "1.5", "3 slices between"),
        ([1, 4, 7, 10], "1", "6 slices between"),
        ([1, 3, 5, 7], None, "3 slices between"),
        ([1, 3, 5, 7], "3", None),  # one of two echoes that were scanned in turns
        ([1, 4, 7, 10], "1.5", None),
        ([1, 2, 3, 4], "1.5", None),
        ([1, 3, 5, 8], "1.5", None),
        ([1, 3, 2, 4], "1.5", None),  # scanned in turns
        ([None] * 4, "1.5", None),
    ],
)
def test_slices_that_may_be_missing_at_regular_distances_are_said(
    tmp_path: Path, numbers: list[int | None], thickness: str | None, words: str | None
) -> None:
    files = dicoms.classic(dicoms.voxels(), SliceThickness=thickness)
    for number, data in zip(numbers, files, strict=True):
        dicoms.changed(data, InstanceNumber=number)
    warnings = read_volume(dicoms.write(tmp_path, files)).warnings
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


# Damage


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.35, 0.6, 0.9, 0.98, 0.999])
def test_no_slice_that_is_cut_short_drops_out(tmp_path: Path, k: int, share: float) -> None:
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    path = folder / f"{k * 7 + 3:02d}-0.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert path.name in refused_below(folder)


def refused_below(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(folder)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", bytes(2000), b"This is a report"])
def test_a_file_named_like_a_slice_must_be_one(tmp_path: Path, content: bytes) -> None:
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    (folder / "24-0.dcm").write_bytes(content)
    assert "24-0.dcm" in refused_below(folder)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("IM{:03d}_0", "IM024_0"),
        ("{}", "12"),
        ("im{}", "IM9"),
        ("1.2.840.7.{}", "1.2.840.7.300.2"),
        ("MR.1.2.{}", "MR.1.2.12"),
        ("I{:07d}", "I1000009"),
        ("5F3A0C{:02d}", "5F3A0CAB"),
        ("slice {}.ima", "rest.IMA"),
    ],
)
@pytest.mark.parametrize("content", [b"", bytes(2000), bytes(range(7, 200)) * 9])
def test_a_file_that_has_the_pattern_of_a_slice_must_be_one(
    tmp_path: Path, name: str, lost: str, content: bytes
) -> None:
    for k, data in enumerate(dicoms.classic(dicoms.voxels())):
        dicoms.save(data, tmp_path / name.format(k))
    (tmp_path / lost).write_bytes(content)
    assert f"{lost} is named like" in refused_below(tmp_path)


@pytest.mark.parametrize("name", ["IM{:03d}", "{}", "1.2.840.7.{}", "5F3A0C{:02d}", "{}.dcm"])
def test_what_is_not_named_like_a_slice_is_passed_over(tmp_path: Path, name: str) -> None:
    for k, data in enumerate(dicoms.classic(dicoms.voxels())):
        dicoms.save(data, tmp_path / name.format(k))
    for other in ("README", "readme.txt", "Thumbs.db", "LOCKFILE", "VERSION", "1.txt", "IM000.jpg", "DICOMDIR"):
        (tmp_path / other).write_bytes(b"something that is no scan")
    volume = read_volume(tmp_path)
    assert volume.warnings == () and np.array_equal(array(volume.image), dicoms.voxels())


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    (folder / "24-0.dcm").unlink()
    (folder / "24-0.dcm").symlink_to(tmp_path / "nowhere")
    assert "24-0.dcm" in refused_below(folder)


@pytest.mark.parametrize("elements", [{"Rows": 200}, {"Columns": 60000, "Rows": 60000}, {"Rows": 0}, {"Columns": None}])
def test_a_header_is_not_believed_about_its_pixels(tmp_path: Path, elements: dict[str, Any]) -> None:
    files = [dicoms.changed(data, **elements) for data in dicoms.classic(dicoms.voxels())]
    assert "pixels" in refused_below(dicoms.write(tmp_path, files))


def test_a_file_replaced_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_anomaly.io.dicom import reading

    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    read = reading.read_bytes

    def replaced(path: Path) -> bytes:
        if path.name == "10-0.dcm":
            dicoms.save(dicoms.classic(dicoms.voxels(seed=3), step=5.0)[1], path)
        return read(path)

    monkeypatch.setattr(reading, "read_bytes", replaced)
    assert "10-0.dcm was changed while it was read" in refused_below(folder)


# Pictures without a place in the body


@pytest.mark.parametrize(
    ("elements", "spacing", "words"),
    [
        ({"PixelSpacing": ["0.2", "0.3"]}, (0.3, 0.2), "made up"),
        ({"ImagerPixelSpacing": ["0.2", "0.3"]}, (0.3, 0.2), "ImagerPixelSpacing"),
        ({"NominalScannedPixelSpacing": ["0.2", "0.3"]}, (0.3, 0.2), "NominalScannedPixelSpacing"),
        ({}, (1.0, 1.0), "1 mm is assumed"),
    ],
)
def test_a_projection_may_lack_its_place(
    tmp_path: Path, elements: dict[str, Any], spacing: tuple[float, float], words: str
) -> None:
    data = dicoms.image(dicoms.voxels((5, 6)), "1.2.840.10008.5.1.4.1.1.1", Modality="CR", **elements)
    volume = read_volume(dicoms.save(data, tmp_path / "chest.dcm"))
    assert volume.image.GetSpacing()[:2] == pytest.approx(spacing)
    assert any(words in warning for warning in volume.warnings)


def test_a_picture_of_a_screen_is_no_scan(tmp_path: Path) -> None:
    data = dicoms.image(dicoms.voxels((5, 6)), "1.2.840.10008.5.1.4.1.1.7", Modality="OT", PixelSpacing=["1", "1"])
    assert "ImageOrientationPatient" in refused(dicoms.save(data, tmp_path / "screen.dcm"))


# One image of a series


def test_an_image_beside_others_of_its_series_says_what_is_left_out(tmp_path: Path) -> None:
    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    dicoms.save(dicoms.classic(dicoms.voxels(), SeriesInstanceUID="1.2.9")[0], folder / "other.dcm")
    (folder / "notes.txt").write_text("no image")
    (folder / "below").mkdir()
    shutil.copy(folder / "03-0.dcm", folder / "copy.dcm")
    (warning,) = read_volume(folder / "03-0.dcm").warnings
    assert "3 more images of it" in warning and "Give the folder" in warning
    assert read_volume(folder / "other.dcm").warnings == ()


@pytest.mark.parametrize("name", ["SeriesInstanceUID", "SOPInstanceUID"])
def test_images_without_uids_are_counted_too(tmp_path: Path, name: str) -> None:
    for k, data in enumerate(dicoms.classic(dicoms.voxels(), **{name: ""})):
        data.save_as(tmp_path / f"{k}.dcm", enforce_file_format=False)
    assert any("3 more images" in warning for warning in read_volume(tmp_path / "0.dcm").warnings)


@pytest.mark.parametrize("modality", ["CR", "DX", "MG"])
def test_a_projection_beside_others_is_whole_by_itself(tmp_path: Path, modality: str) -> None:
    kind = "1.2.840.10008.5.1.4.1.1.1"
    for number in range(2):
        data = dicoms.image(dicoms.voxels((5, 6)), kind, Modality=modality, PixelSpacing=["1", "1"])
        dicoms.save(data, tmp_path / f"{number}.dcm")
    assert not any("series" in warning for warning in read_volume(tmp_path / "0.dcm").warnings)


def test_an_object_of_many_frames_is_whole_by_itself(tmp_path: Path) -> None:
    pixels = dicoms.voxels()
    for number in range(2):
        data = dicoms.enhanced(pixels, [(0, 0, 3.0 * k) for k in range(len(pixels))])
        dicoms.save(data, tmp_path / f"{number}.dcm")
    assert read_volume(tmp_path / "0.dcm").warnings == ()


# Images without UIDs


@pytest.mark.parametrize("uid", ["", None])
def test_empty_slices_without_uids_are_no_copies(tmp_path: Path, uid: str | None) -> None:
    first, second = dicoms.voxels(), dicoms.voxels(seed=1)
    first[0] = second[0] = 0
    stacks = [
        dicoms.classic(values, SOPInstanceUID=uid, EchoTime=str(time)) for values, time in ((first, 10), (second, 90))
    ]
    for number, stack in enumerate(stacks):
        for k, data in enumerate(stack):
            data.save_as(tmp_path / f"{number}-{k}.dcm", enforce_file_format=False)
    assert np.array_equal(array(read_volume(tmp_path, frame=1).image), second)


def test_empty_frames_of_objects_without_uids_are_no_copies(tmp_path: Path) -> None:
    places = [(0, 0, 3.0 * k) for k in range(4)]
    stacks = dicoms.voxels(), dicoms.voxels(seed=1)
    for number, values in enumerate(stacks):
        values[0] = 0
        group = partial(_echo, time=float(number))
        data = dicoms.enhanced(values, places, frame=group, InstanceNumber=str(number), SOPInstanceUID="")
        data.save_as(tmp_path / f"{number}.dcm", enforce_file_format=False)
    assert np.array_equal(array(read_volume(tmp_path, frame=1).image), stacks[1])


def _echo(index: int, group: Dataset, time: float) -> None:
    group.MREchoSequence = [dicoms.with_elements(EffectiveEchoTime=time)]


@pytest.mark.parametrize("uid", [True, False])
def test_each_image_that_may_be_a_copy_is_decoded_once_for_that(
    tmp_path: Path, uid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_anomaly.io.dicom import reading

    volumes = 12
    for number in range(volumes):
        extra = {} if uid else {"SOPInstanceUID": ""}
        for k, data in enumerate(dicoms.classic(dicoms.voxels(seed=number), InstanceNumber="1", **extra)):
            data.save_as(tmp_path / f"{number}-{k}.dcm", enforce_file_format=False)
    decoded: list[Path] = []
    values = reading.Pixels.values
    monkeypatch.setattr(reading.Pixels, "values", lambda self, plane: decoded.append(plane.path) or values(self, plane))
    refused(tmp_path, frame=0)
    assert len(decoded) == len(set(decoded)) == volumes * 4


def test_a_stack_that_this_machine_cannot_hold_is_refused_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_anomaly.errors import MemoryExhausted
    from diffusion_anomaly.io import content

    folder = dicoms.write(tmp_path, dicoms.classic(dicoms.voxels()))
    monkeypatch.setattr(content, "_memory", lambda: 1000)
    with pytest.raises(MemoryExhausted, match="6 x 5 x 4 voxels"):
        read_volume(folder)


def plane(number: int, degrees: float) -> Plane:
    """An image turned about the body's long axis."""
    turn = np.radians(degrees)
    axes = (float(np.cos(turn)), float(np.sin(turn)), 0.0, 0.0, 0.0, -1.0)
    place = {"path": Path(f"{number:05d}.dcm"), "frame": 0, "uid": str(number), "number": (float(number), 0)}
    shape = {"size": (8, 8), "axes": axes, "position": (0.0, 0.0, float(number)), "spacing": (1.0, 1.0)}
    rest = {"thickness": None, "distance": None, "slope": 1.0, "intercept": 0.0}
    return Plane(**place, **shape, **rest, distinctions=(), traits=(), indices=())  # type: ignore[arg-type]


def test_thousands_of_images_of_which_no_two_are_alike_are_refused_in_a_moment() -> None:
    """As a radial localiser or a rotating angiography has them; each against each took minutes."""
    planes = [plane(number, 360 * number / 5000) for number in range(5000)]
    start = time.process_time()
    with pytest.raises(InputError, match=r"more differ in orientation or pixel spacing .* of 5000 images are like it"):
        _check_alike(planes, Path("series"))
    assert time.process_time() - start < 5


@pytest.mark.parametrize("odd", [[0], [0, 1, 2], [59], [20, 40]])
def test_the_images_that_are_fewer_are_named(odd: list[int]) -> None:
    planes = [plane(number, 45 + number if number in odd else number * 1e-7) for number in range(60)]
    _check_alike([one for number, one in enumerate(planes) if number not in odd], Path("series"))
    with pytest.raises(InputError) as caught:
        _check_alike(planes, Path("series"))
    assert all(planes[number].name in caught.value.what for number in odd)
    assert f"{60 - len(odd)} of 60 images" in caught.value.what
