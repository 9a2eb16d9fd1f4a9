"""Several contrasts of one head: found by name, brought onto one grid, and what does not belong together refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

import dicoms
import packages
import phantom
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation import evaluate as evaluation
from diffusion_anomaly.evaluation.dataset import HealthyScan, find_pairs
from diffusion_anomaly.io.contrasts import (
    ChannelSource,
    contrast_of,
    find_channels,
    match_names,
    require_different,
    volumes_in_order,
)
from diffusion_anomaly.io.volume import Volume, as_volume, read_volume
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.preprocessing.alignment import align
from diffusion_anomaly.preprocessing.registration import register
from diffusion_anomaly.results.report import render_report
from diffusion_anomaly.worker.protocol import SCHEMA_VERSION, read_job, write_job

NAMES = ["FLAIR", "T1", "T1C"]


def head(
    size: tuple[int, int, int] = (40, 48, 18),
    spacing: tuple[float, float, float] = (4.0, 4.0, 7.0),
    contrast: str = "FLAIR",
    direction: np.ndarray | None = None,
) -> sitk.Image:
    """The phantom on any grid; as T1 its brain has the intensities turned over."""
    grid = phantom.grid(size, spacing, direction)
    values = sitk.GetArrayFromImage(phantom.paint(grid, fluid=True))
    if contrast != "FLAIR":
        values = np.where(values > 0, 400.0 - values, 0.0).astype(np.float32)
    noise = np.random.default_rng(len(contrast)).normal(0, 3, values.shape).astype(np.float32)
    return phantom.on_grid(values + noise * (values > 0), grid)


def volume(image: sitk.Image, source: str = "scan.nii.gz", **identity: str) -> Volume:
    made = as_volume(image, source, "0" * 64, {})
    return Volume(**{**vars(made), "identity": identity})


def moved(image: sitk.Image, degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> sitk.Image:
    """The same voxels with a header that has the head turned about its middle and shifted."""
    motion = sitk.Euler3DTransform()
    motion.SetCenter(phantom.HEAD_CENTRE.tolist())
    motion.SetRotation(*np.radians(degrees).tolist())
    motion.SetTranslation(shift)
    turned = sitk.Image(image)
    matrix = np.array(motion.GetMatrix()).reshape(3, 3) @ np.array(image.GetDirection()).reshape(3, 3)
    turned.SetDirection(matrix.ravel().tolist())
    turned.SetOrigin(motion.TransformPoint(image.GetOrigin()))
    return turned


# --- Names


@pytest.mark.parametrize(
    ("text", "contrast"),
    [
        *((name, "FLAIR") for name in ("FLAIR", "sub-01_FLAIR", "t2_tirm_tra_dark-fluid", "3D T2 FLAIR sag", "x-t2f")),
        *((name, "T1") for name in ("sub-CE_T1w", "t1_mprage_sag", "AX T1 FLAIR", "T1 pre contrast", "p7-t1n")),
        *((name, "T1") for name in ("T1 w/o contrast", "SAG FSPGR 3D", "T1 non-contrast")),
        *(
            (name, "T1C")
            for name in ("sub-01_ce-gadolinium_T1w", "BraTS_t1ce", "ax T1 +C", "T1 POST GD", "t1_mprage_KM")
        ),
        *((name, "T2") for name in ("sub-01_T2w", "t2_tse_tra", "x-t2w")),
        *((name, "PD") for name in ("PDw", "proton density")),
        *(
            (name, None)
            for name in ("T2*", "t2_star", "ep2d_diff_b1000", "flair_mask", "t1_seg", "ADC", "localizer", "")
        ),
    ],
)
def test_names_speak_of_contrasts(text: str, contrast: str | None) -> None:
    assert contrast_of(text) == contrast


def test_channels_are_matched_whatever_their_case_and_spelling() -> None:
    assert match_names(["t1gd", "t1", "Flair"], NAMES, "toy") == {"FLAIR": "Flair", "T1": "t1", "T1C": "t1gd"}
    assert list(match_names(["CT bone", "ct"], ["CT", "CT bone"], "toy")) == ["CT", "CT bone"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["FLAIR", "T1"], "The channel T1C is missing; the model toy knows FLAIR, T1, T1C"),
        ([], "The channels FLAIR and T1 and T1C are missing"),
        (["FLAIR", "T1", "T1C", "T2"], "There is no channel 'T2'; the model toy knows FLAIR, T1, T1C"),
        (["FLAIR", "T1", "T1C", "t1ce"], "The channel T1C is given twice, as T1C and t1ce"),
    ],
)
def test_missing_unknown_and_double_channels_are_refused_by_name(given: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        match_names(given, NAMES, "toy")
    assert message in str(caught.value)


def test_one_file_in_two_channels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "scan.nii.gz"
    same = {"FLAIR": ChannelSource(file), "T1": ChannelSource(tmp_path / "folder" / ".." / "scan.nii.gz")}
    with pytest.raises(InputError, match="The channels FLAIR and T1 are both"):
        require_different(same)
    require_different({"FLAIR": ChannelSource(file, "0"), "T1": ChannelSource(file, "1")})


def test_what_follows_a_colon_chooses_a_volume_unless_it_is_part_of_a_path(tmp_path: Path) -> None:
    file = tmp_path / "scan.nii.gz"
    file.touch()
    assert ChannelSource.parse(f"{file}:2") == ChannelSource(file, "2")
    assert ChannelSource.parse(f"{tmp_path}:1.2.840") == ChannelSource(tmp_path, "1.2.840")
    assert ChannelSource.parse(str(tmp_path / "no:where.nii")) == ChannelSource(tmp_path / "no:where.nii")


# --- Folders


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("anat/sub-1_FLAIR.nii.gz", "anat/sub-1_T1w.nii.gz", "anat/sub-1_ce-gd_T1w.nii.gz", "anat/sub-1_T2w.nii"),
        ("sub-1/ses-a/anat/sub-1_FLAIR.nii", "sub-1/ses-a/anat/sub-1_T1w.nii", "sub-1/ses-a/anat/t1_post.nii"),
        ("B_1_flair.nii.gz", "B_1_t1.nii.gz", "B_1_t1ce.nii.gz", "B_1_t2.nii.gz", "B_1_seg.nii.gz", "a.txt"),
        ("B-1-t2f.nii.gz", "B-1-t1n.nii.gz", "B-1-t1c.nii.gz", "B-1-t2w.nii.gz"),
    ],
)
def test_the_contrasts_of_a_folder_are_found_by_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = find_channels(touch(tmp_path, *names), NAMES)
    assert [source.path for source in found.values()] == [tmp_path / name for name in names[:3]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x_flair.nii", "x_t1.nii"), "holds nothing whose name says T1C; it holds x_flair; x_t1"),
        (("x_flair.nii", "x_t1.nii", "y_t1.nii", "x_t1c.nii"), "2 images that could be T1: x_t1; y_t1"),
        (("sub-1/anat/x_T1w.nii", "sub-2/anat/x_T1w.nii"), "holds 2 subjects: sub-1, sub-2"),
        (("ses-1/anat/x_T1w.nii", "ses-2/anat/x_T1w.nii"), "holds 2 sessions: ses-1, ses-2"),
        (("notes.txt",), "holds nothing whose name says FLAIR or T1 or T1C; it holds no image"),
    ],
)
def test_a_folder_without_each_contrast_once_is_refused_with_a_list(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        find_channels(touch(tmp_path, *names), NAMES)
    assert message in str(caught.value)


def test_a_file_for_a_model_of_several_contrasts_says_how_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is one file, but the model needs FLAIR, T1, T1C.*--channel FLAIR=FILE"):
        find_channels(touch(tmp_path, "scan.nii") / "scan.nii", NAMES)


def write_series(folder: Path, description: str, number: int, **elements: Any) -> None:
    pixels = dicoms.voxels((4, 5, 6), number)
    for index, data in enumerate(dicoms.classic(pixels)):
        entries = {"SeriesDescription": description, "SeriesInstanceUID": f"{dicoms.SERIES}.{number}", **elements}
        path = folder / f"{number}-{index}.dcm"
        dicoms.changed(data, **entries).save_as(path, enforce_file_format=True)


def test_dicom_series_are_matched_by_their_descriptions(tmp_path: Path) -> None:
    for number, name in enumerate(("t2_tirm_dark-fluid", "t1_se_tra", "t1_se_tra_KM", "localizer t1"), 1):
        write_series(tmp_path, name, number)
    found = find_channels(tmp_path, NAMES)
    assert [source.which for source in found.values()] == [f"{dicoms.SERIES}.{n}" for n in (1, 2, 3)]
    assert [source.read().metadata["description"] for source in found.values()][2] == "t1_se_tra_KM"
    write_series(tmp_path, "t1_mprage_post", 5)
    with pytest.raises(InputError, match="2 images that could be T1C: t1_mprage_post; t1_se_tra_KM"):
        find_channels(tmp_path, NAMES)


@pytest.mark.parametrize("kind", ["4-D NIfTI", "vector NIfTI", "vector NRRD", "vector MetaImage", "4-D NRRD"])
def test_the_volumes_of_a_file_are_channels_in_order_when_told_so(tmp_path: Path, kind: str) -> None:
    one, other = head(contrast="FLAIR"), head(contrast="T1")
    joined = sitk.Compose(one, other) if "vector" in kind else sitk.JoinSeries([one, other])
    path = tmp_path / f"scan{ {'NIfTI': '.nii.gz', 'NRRD': '.nrrd', 'MetaImage': '.mha'}[kind.split()[1]] }"
    sitk.WriteImage(joined, str(path))
    found = volumes_in_order(path, ["FLAIR", "T1"])
    for source, image in zip(found.values(), (one, other), strict=True):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(source.read().image), sitk.GetArrayFromImage(image))
    with pytest.raises(InputError, match="holds more volumes than the 1 channels of the model"):
        volumes_in_order(path, ["FLAIR"])
    with pytest.raises(InputError, match="has no frame 2: it holds 2 volumes"):
        volumes_in_order(path, NAMES)["T1C"].read()
    with pytest.raises(InputError, match=r"4-D|vectors"):
        read_volume(path)


def test_the_channels_of_a_colour_picture_are_no_contrasts(tmp_path: Path) -> None:
    path = tmp_path / "colour.nii"
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), str(path))
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)), path)
    with pytest.raises(InputError, match="colour"):
        volumes_in_order(path, ["FLAIR", "T1"])["FLAIR"].read()


# --- One grid


def test_another_grid_is_resampled_by_its_header() -> None:
    turn = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    flair, fine = volume(head()), volume(head((96, 80, 64), (2.0, 2.0, 2.0), "T1", turn))
    scan = align({"FLAIR": flair, "T1": fine})
    assert phantom.geometry(scan.channels["T1"].image) == phantom.geometry(flair.image)
    expected = sitk.GetArrayFromImage(head(contrast="T1"))
    found = sitk.GetArrayFromImage(scan.channels["T1"].image)
    inside = sitk.GetArrayFromImage(phantom.brain_of(flair.image)) > 0
    # Edges differ by partial volume; axes that were swapped or turned would leave nothing alike.
    assert np.corrcoef(found[inside], expected[inside])[0, 1] > 0.88
    assert np.corrcoef(found[:, ::-1][inside], expected[inside])[0, 1] < 0.6
    assert scan.channels["T1"].alignment["resampled_from"]["size"] == [96, 80, 64]
    assert not scan.channels["FLAIR"].alignment and not scan.channels["T1"].warnings


def test_one_grid_is_left_as_it_is() -> None:
    flair, t1 = volume(head()), volume(head(contrast="T1"))
    scan = align({"FLAIR": flair, "T1": t1})
    assert scan.channels["T1"].image is t1.image and scan.covered is None
    assert not scan.channels["T1"].alignment


def test_where_a_channel_ends_is_known_and_gets_its_background() -> None:
    flair, cut = volume(head()), volume(head(contrast="T1")[:, :, :13])
    scan = align({"FLAIR": flair, "T1": cut})
    assert scan.covered is not None
    covered = sitk.GetArrayFromImage(scan.covered)
    assert covered[:13].all() and not covered[13:].any()
    assert not sitk.GetArrayFromImage(scan.channels["T1"].image)[13:].any()


def person(seed: int, contrast: str, spacing: tuple[float, float, float] = (1.5, 1.5, 5.0)) -> Volume:
    """A head with an inside of its own by the seed: in T1 bright is dark and dark is bright, and noise is new."""
    empty = head((128, 128, 28), spacing)
    inside = sitk.GetArrayFromImage(empty) > 0
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=inside.shape), (0.6, 3, 3))
    field = np.abs(field / field.std())
    noise = np.random.default_rng(seed + 100 * len(contrast)).normal(0, 6, inside.shape)
    values = (200 + 60 * field if contrast == "FLAIR" else 400 - 60 * field) + noise
    return volume(phantom.on_grid(np.where(inside, values, 0).astype(np.float32), empty))


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 5.0), (1.5, 1.5, 1.5)])
def test_another_patients_contrast_on_the_same_grid_is_doubted(spacing: tuple[float, float, float]) -> None:
    flair, t1, other = person(1, "FLAIR", spacing), person(1, "T1", spacing), person(2, "T1", spacing)
    assert not align({"FLAIR": flair, "T1": t1}).channels["T1"].warnings
    (warning,) = align({"FLAIR": flair, "T1": other}).channels["T1"].warnings
    assert "FLAIR and T1 look like two heads" in warning and "--register" in warning


@pytest.mark.parametrize("shift", [(0.0, 0.0, 90.0), (400.0, 0.0, 0.0)])
def test_channels_that_hardly_overlap_are_refused_unless_forced(shift: tuple[float, float, float]) -> None:
    far = {"FLAIR": volume(head()), "T1": volume(moved(head(contrast="T1"), (0, 0, 0), shift))}
    with pytest.raises(InputError, match=r"T1 covers .*% of the head in FLAIR: two patients, or headers"):
        align(far)
    assert "of the head in FLAIR" in " ".join(align(far, force=True).channels["T1"].warnings)


def test_heads_that_do_not_lie_on_each_other_are_doubted() -> None:
    turned = volume(moved(head(contrast="T1"), (0, 0, 60), (0, 25, 0)))
    warnings = align({"FLAIR": volume(head()), "T1": turned}).channels["T1"].warnings
    assert "hardly lie on each other" in warnings[0] and "--register" in warnings[0]


def test_one_image_as_two_contrasts_is_refused() -> None:
    with pytest.raises(InputError, match=r"FLAIR and T1 hold the same image \(a\.nii and b\.nii\)"):
        align({"FLAIR": volume(head(), "a.nii"), "T1": volume(head(), "b.nii")})


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"PatientID": "a"}, {"PatientID": "b"}, "are of two patients by their patient IDs"),
        ({"PatientName": "a", "PatientID": "x"}, {"PatientName": "b", "PatientID": "x"}, "by their patient names"),
        ({"source": "sub-01_FLAIR.nii"}, {"source": "sub-02_T1w.nii"}, r"subjects \(BIDS\)"),
    ],
)
def test_two_patients_are_refused_unless_forced(one: dict[str, str], other: dict[str, str], message: str) -> None:
    pair = {"FLAIR": volume(head(), **one), "T1": volume(head(contrast="T1"), **other)}
    with pytest.raises(InputError, match=message):
        align(pair)
    (warning,) = align(pair, force=True).channels["T1"].warnings
    assert "two patients" in warning


@pytest.mark.parametrize(
    ("key", "message"), [("FrameOfReferenceUID", "two frames of reference"), ("StudyInstanceUID", "two studies")]
)
def test_other_frames_of_reference_and_studies_are_doubted(key: str, message: str) -> None:
    pair = {"FLAIR": volume(head(), **{key: "1"}), "T1": volume(head(contrast="T1"), **{key: "2"})}
    (warning,) = align(pair).channels["T1"].warnings
    assert message in warning


def test_dicom_tells_patients_apart_without_keeping_their_names(tmp_path: Path) -> None:
    for number, patient in ((1, "7"), (2, "8")):
        (tmp_path / patient).mkdir()
        write_series(tmp_path / patient, "FLAIR", number, PatientID=patient)
    one, other = (read_volume(tmp_path / patient) for patient in ("7", "8"))
    assert one.identity["PatientID"] != other.identity["PatientID"]
    assert one.identity["PatientName"] == other.identity["PatientName"]
    assert "Secret" not in str(one.identity).title() and "identity" not in repr(one)
    with pytest.raises(InputError, match="two patients by their patient IDs"):
        align({"FLAIR": one, "T1": other})


# --- Registration


@pytest.fixture(scope="module")
def textured() -> tuple[sitk.Image, sitk.Image]:
    """Two contrasts of one head with structure inside, so that a turn shows."""
    grid = phantom.grid((64, 72, 24), (2.5, 2.5, 5.0))
    world = phantom.points(grid) - phantom.HEAD_CENTRE
    structure = np.sin(world[..., 0] / 9) * np.cos(world[..., 1] / 11 + 1) + np.sin(
        world[..., 2] / 8 + world[..., 0] / 15
    )
    inside = phantom.inside(world, np.zeros(3), phantom.BRAIN_RADII)
    skull = phantom.inside(world, np.zeros(3), phantom.HEAD_RADII)
    flair = np.where(inside, 100 + 30 * structure, np.where(skull, 150.0, 0.0))
    t1 = np.where(inside, 500 - 80 * structure + 40 * structure**2, np.where(skull, 200.0, 0.0))
    made = [phantom.on_grid(values.astype(np.float32), grid) for values in (flair, t1)]
    return made[0], made[1]


def test_registration_finds_how_a_head_moved_and_is_the_same_each_time(textured: tuple[sitk.Image, sitk.Image]) -> None:
    flair, t1 = textured
    shifted = moved(t1, (4.0, -3.0, 6.0), (5.0, -4.0, 3.0))
    scan = align({"FLAIR": volume(flair), "T1": volume(shifted)}, registered=True)
    channel = scan.channels["T1"]
    found = channel.alignment["registration"]
    assert found["shift_mm"] == pytest.approx(np.sqrt(50.0), abs=1.0)
    assert found["rotation_degrees"] == pytest.approx(7.8, abs=1.0)
    assert found["mutual_information_after"] > found["mutual_information_before"]
    assert "channel T1 was registered: moved by 7." in channel.warnings[0]
    inside = sitk.GetArrayFromImage(flair) > 0
    apart = np.abs(sitk.GetArrayFromImage(channel.image) - sitk.GetArrayFromImage(t1))[inside]
    by_header = np.abs(sitk.GetArrayFromImage(sitk.Resample(shifted, flair)) - sitk.GetArrayFromImage(t1))[inside]
    assert np.median(apart) < 0.3 * np.median(by_header)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
    try:
        again = align({"FLAIR": volume(flair), "T1": volume(shifted)}, registered=True)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert again.channels["T1"].alignment == channel.alignment


@pytest.mark.parametrize(
    ("degrees", "shift", "message"),
    [((40, 0, 0), (0, 0, 0), "and 39.9°, farther"), ((0, 0, 0), (75, 0, 0), "by 75.0 mm .*farther")],
)
def test_a_registration_that_goes_too_far_is_refused(
    textured: tuple[sitk.Image, sitk.Image], degrees: Any, shift: Any, message: str
) -> None:
    with pytest.raises(InputError, match=rf"registration of the channel failed: .*({message})"):
        register(textured[0], moved(textured[1], degrees, shift))


@pytest.mark.parametrize(
    ("image", "message"),
    [(sitk.Image([8, 8, 8], sitk.sitkFloat32), "nearly one value"), (head()[:, :, 4:6], "too few slices")],
)
def test_what_cannot_be_registered_is_refused(image: sitk.Image, message: str) -> None:
    with pytest.raises(InputError, match=message):
        register(head(), image)


# --- From files to files


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("models") / "two-contrasts"
    return packages.intensity(folder, channels=["FLAIR", "T1"], modality="FLAIR + T1")


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patient")
    sitk.WriteImage(head(), str(folder / "p_flair.nii.gz"))
    sitk.WriteImage(head((80, 96, 36), (2.0, 2.0, 3.5), "T1"), str(folder / "p_t1.nii.gz"))
    sitk.WriteImage(phantom.brain_of(head()), str(folder / "brain_mask.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([head(), head(contrast="T1")]), str(folder / "both.mha"))
    return folder


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def detect(bundle: Bundle, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        output = tmp_path / "out"
        given = [argument.replace("P/", f"{patient}/") for argument in arguments]
        mask = ["--mask", str(patient / "brain_mask.nii.gz")]
        code = cli.main(["detect", *given, "-o", str(output), "--model", str(bundle.path), *mask])
        record = output / "provenance.json"
        return code, json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("--channel", "t1=P/p_t1.nii.gz", "--channel", "flair=P/p_flair.nii.gz"),
        ("P/",),
        ("--channels-from", "P/both.mha"),
    ],
    ids=["by name", "folder", "volumes of a file"],
)
def test_contrasts_are_detected_in_together(detect: Run, arguments: tuple[str, ...]) -> None:
    if arguments == ("P/",):
        code, made, printed = detect(*arguments)
        assert "The channels were found by name: FLAIR is p_flair.nii.gz, T1 is p_t1.nii.gz." in printed
        assert made["channels"]["T1"]["alignment"]["resampled_from"]["spacing_mm"] == [2.0, 2.0, 3.5]
    else:
        code, made, _ = detect(*arguments)
    assert code == 0
    assert list(made["channels"]) == ["FLAIR", "T1"]
    assert made["input"]["size"] == made["channels"]["T1"]["size"] == [40, 48, 18]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("P/p_flair.nii.gz",), "is one file, but the model needs FLAIR, T1 together"),
        (("--channel", "flair=P/p_flair.nii.gz"), "The channel T1 is missing"),
        (("--channel", "flair=P/p_flair.nii.gz", "--channel", "t2=P/p_t1.nii.gz"), "There is no channel 't2'"),
        (("--channel", "flair=P/p_t1.nii.gz", "--channel", "t1=P/p_t1.nii.gz"), "FLAIR and T1 are both"),
        (("--channel", "flair=P/both.mha:0", "--channel", "t1=P/p_flair.nii.gz"), "hold the same image"),
        (("--channel", "flair=P/both.mha:0", "--channel", "t1=P/both.mha:7"), "has no frame 7"),
        (("--channel", "flair=P/both.mha:x", "--channel", "t1=P/both.mha:1"), "'x' is no number of a volume"),
        (
            (
                "--channel",
                "flair",
            ),
            "--channel got 'flair'. Write it as NAME=FILE",
        ),
        (("--channel", "t1=P/a", "--channel", "T1=P/b"), "The channel T1 is given twice"),
        (("P/", "--channel", "flair=P/p_flair.nii.gz"), "names scans in two ways"),
        ((), "names no scan"),
        (("P/", "--series", "t1"), "needs FLAIR, T1 together; --series and --frame choose one scan"),
        (("--channels-from", "P/both.mha", "--frame", "0"), "--series and --frame are for single scans"),
    ],
)
def test_channels_that_do_not_fit_end_with_exit_code_2(detect: Run, arguments: tuple[str, ...], message: str) -> None:
    code, made, printed = detect(*arguments)
    assert (code, made) == (2, {})
    assert message in " ".join(printed.split())


def test_an_anonymous_result_names_none_of_the_files(detect: Run) -> None:
    code, made, _ = detect("P/", "--anonymous")
    assert code == 0 and "The channels were found by name." in made["warnings"]
    assert "p_flair" not in json.dumps(made) and "p_t1" not in json.dumps(made)


def test_a_mapping_of_paths_is_brought_onto_one_grid(bundle: Bundle, patient: Path) -> None:
    detector = Detector(Options("intensity", str(bundle.path)))
    paths = {"t1": patient / "p_t1.nii.gz", "FLAIR": patient / "p_flair.nii.gz"}
    result = detector(paths, brain=patient / "brain_mask.nii.gz")
    assert list(result.scan.channels) == ["FLAIR", "T1"]
    assert result.anomaly_map.GetSize() == (40, 48, 18)
    again = detector(patient, brain=patient / "brain_mask.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again.anomaly_map), sitk.GetArrayFromImage(result.anomaly_map))


def test_brain_outside_a_channel_is_left_out_and_said(bundle: Bundle) -> None:
    detector = Detector(Options("intensity", str(bundle.path)))
    brain = phantom.brain_of(head())
    result = detector({"FLAIR": head(), "T1": head(contrast="T1")[:, :, :13]}, brain=brain)
    (said,) = [warning for warning in result.warnings if "outside the field of view" in warning]
    lost = float(said.split("%")[0]) / 100
    inside = sitk.GetArrayFromImage(brain) > 0
    assert lost == pytest.approx(inside[13:].sum() / inside.sum(), abs=0.001)
    assert not sitk.GetArrayFromImage(result.anomaly_map)[13:].any()
    with pytest.raises(InputError, match=r"of the brain is outside the field of view of one of the channels"):
        Detector(Options("intensity", str(bundle.path), force=True))(
            {"FLAIR": head(), "T1": head(contrast="T1")[:, :, :8]}, brain=brain
        )


def test_the_report_shows_the_contrasts_side_by_side(bundle: Bundle) -> None:
    detector = Detector(Options("intensity", str(bundle.path)))
    several = detector({"FLAIR": head(), "T1": head(contrast="T1")}, brain=phantom.brain_of(head()))
    page = render_report(several)
    slices = page.count("The same slice with the anomaly map")
    assert page.count("The same slice of T1 with the mask's outline") == slices > 3
    assert "From left to right: FLAIR, FLAIR with" in page
    one = Detector(Options("intensity"))(head(), brain=phantom.brain_of(head()))
    assert "From left to right" not in render_report(one)


# --- Jobs


def job_of(tmp_path: Path, **entries: Any) -> Path:
    content = {"schema_version": SCHEMA_VERSION, "input": "", "output": "out", **entries}
    (tmp_path / "job.json").write_text(json.dumps(content))
    return tmp_path


def test_a_job_names_each_channel_relative_to_its_folder(tmp_path: Path) -> None:
    job = read_job(job_of(tmp_path, channels={"FLAIR": "a.nrrd", "T1": str(tmp_path / "b.nrrd")}))
    assert job.channels == {"FLAIR": str(tmp_path / "a.nrrd"), "T1": str(tmp_path / "b.nrrd")} and job.input == ""
    write_job(job, tmp_path)
    assert read_job(tmp_path) == job


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "input and output must not be empty"),
        ({"input": "a.nrrd", "channels": {"T1": "b.nrrd"}}, "has both input and channels"),
        ({"channels": {"T1": ""}}, "a channel has no file"),
        ({"channels": {"T1": "a\0b"}}, "T1 holds a null character"),
        ({"channels": {"T1": 3}}, "channels is an object, expected an object"),
        ({"channels": ["a.nrrd"]}, "channels is a list, expected an object"),
    ],
)
def test_a_job_with_channels_that_cannot_be_is_refused(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_job(job_of(tmp_path, **entries))


def test_a_worker_detects_in_the_channels_of_its_job(bundle: Bundle, patient: Path, tmp_path: Path) -> None:
    channels = {"FLAIR": str(patient / "p_flair.nii.gz"), "T1": str(patient / "p_t1.nii.gz")}
    entries = {"method": "intensity", "model": str(bundle.path), "mask": str(patient / "brain_mask.nii.gz")}
    folder = job_of(tmp_path, channels=channels, title="The patient", options={"device": "cpu"}, **entries)
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_anomaly.worker", str(folder)],
        stdin=subprocess.PIPE,  # its end would cancel the job
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert process.stdout is not None
    events = [json.loads(line) for line in process.stdout]
    process.communicate(timeout=60)
    assert process.returncode == 0 and events[-1]["event"] == "result"
    made = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert made["input"]["title"] == "The patient"
    assert list(made["channels"]) == ["FLAIR", "T1"]


# --- Evaluation


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with FLAIR and masks in one folder and T1 in another, finer; a third lacks T1."""
    folder = tmp_path_factory.mktemp("patients")
    (folder / "masks").mkdir()
    (folder / "t1").mkdir()
    for name in ("a", "b", "c"):
        sitk.WriteImage(head(), str(folder / "masks" / f"{name}_flair.nii.gz"))
        sitk.WriteImage(phantom.lesion_of(head()), str(folder / "masks" / f"{name}_mask.nii.gz"))
        sitk.WriteImage(phantom.brain_of(head()), str(folder / "masks" / f"{name}_brain.nii.gz"))
        if name != "c":
            sitk.WriteImage(head((80, 96, 36), (2.0, 2.0, 3.5), "T1"), str(folder / "t1" / f"{name}_t1.nii.gz"))
    return folder / "masks"


PATTERNS = {"flair": "*_flair.nii.gz", "t1": "../t1/*_t1.nii.gz"}


def test_patients_are_found_with_all_contrasts_or_refused(patients: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file .*c_t1\.nii\.gz"):
        find_pairs(patients, channels=PATTERNS)
    pairs = find_pairs(patients, channels=PATTERNS, complete_only=True)
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert [path.name for path in pairs[0].channels.values()] == ["a_flair.nii.gz", "a_t1.nii.gz"]
    with pytest.raises(InputError, match=r"No patient in .* has every contrast"):
        find_pairs(patients, channels={"flair": "*_flair.nii.gz", "t1": "*_t1.nii.gz"}, complete_only=True)


def test_contrasts_may_be_listed_in_a_table(patients: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    row = f"{patients}/a_flair.nii.gz,{patients}/a_mask.nii.gz,{patients}/a_flair.nii.gz,{patients}/../t1/a_t1.nii.gz"
    table.write_text(f"scan,reference,channel_FLAIR,channel_T1\n{row}\n")
    (pair,) = find_pairs(table)
    assert list(pair.channels) == ["FLAIR", "T1"] and pair.channels["FLAIR"] == pair.scan


def test_a_model_of_two_contrasts_is_measured_beside_one_of_one(
    patients: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[str, ...]]] = {}
    detected = Detector.__call__

    def watched(self: Detector, scan: Any, **options: Any) -> Any:
        seen.setdefault(self.plan.bundle.name, []).append(tuple(scan.channels))
        return detected(self, scan, **options)

    monkeypatch.setattr(Detector, "__call__", watched)
    pairs = find_pairs(patients, channels=PATTERNS, brain_pattern="*_brain.nii.gz", complete_only=True)
    spec = evaluation.RunSpec("intensity", str(bundle.path), label="two")
    evaluation.run(pairs, [spec], tmp_path / "out", resamples=10)
    assert seen == {"two-contrasts": [("FLAIR", "T1")] * 2, "flair-intensity": [("FLAIR",)] * 2}


@pytest.mark.parametrize(
    ("channels", "healthy", "message"),
    [
        ({}, False, "There is no channel|The channel.* missing"),
        ({"flair": "*_flair.nii.gz"}, False, "The channel T1 is missing; the model two-contrasts knows FLAIR, T1"),
        (PATTERNS, True, "needs FLAIR, T1 together, and healthy scans have one contrast"),
    ],
)
def test_a_model_without_its_contrasts_is_refused_before_anything_runs(
    patients: Path, bundle: Bundle, tmp_path: Path, channels: dict[str, str], healthy: bool, message: str
) -> None:
    pairs = find_pairs(patients, brain_pattern="*_brain.nii.gz", channels=channels, complete_only=True)
    others = [HealthyScan("h", patients / "a_flair.nii.gz")] if healthy else []
    spec = evaluation.RunSpec("intensity", str(bundle.path), label="two")
    with pytest.raises(InputError, match=message):
        evaluation.run(pairs, [spec], tmp_path / "out", healthy=others)
    assert not (tmp_path / "out").exists()


def test_evaluate_takes_a_pattern_a_contrast(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patterns = [part for name, pattern in PATTERNS.items() for part in ("--channel", f"{name}={pattern}")]
    shared = ["evaluate", str(patients), "--brain-pattern", "*_brain.nii.gz", "--run", "intensity"]
    assert cli.main([*shared, *patterns, "-o", str(tmp_path / "out")]) == 2
    assert "c_t1.nii.gz" in capsys.readouterr().err
    assert cli.main([*shared, *patterns, "--complete-only", "-o", str(tmp_path / "out")]) == 0
    assert len((tmp_path / "out" / "evaluation_patients.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2
