"""Whether a scan is what the model knows: seen in the image, whatever its name says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from diffusion_anomaly.cli.main import main
from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.doubts import FORCE_HINT, another_model
from diffusion_anomaly.detection.head_size import brain_size_verdict
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.detection.recognition import (
    DOUBTED,
    REFUSED,
    Recogniser,
    Recognition,
    Verdict,
    recognition_window,
)
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import Volume, read_volume

SAMPLE = Path(__file__).parents[2] / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"
SHARED = Path(__file__).parents[3] / "shared" / "data"
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def sample() -> Volume:
    return read_volume(SAMPLE)


@pytest.fixture(scope="module")
def brain(sample: Volume) -> sitk.Image:
    return BrainFinder(device="cpu")(sample)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser()


def changed(sample: Volume, change: Change) -> sitk.Image:
    image = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(sample.image)).astype(np.float32))
    image.CopyInformation(sample.image)
    return image


def seen(image: sitk.Image, recogniser: Recogniser) -> Recognition | None:
    """None where no brain is found."""
    try:
        mask = BrainFinder(device="cpu")(Volume(image, "scan", "", 3, 0))
    except InputError:
        return None
    return recogniser(image, mask)


def test_the_sample_is_an_upright_flair(sample: Volume, brain: sitk.Image, recogniser: Recogniser) -> None:
    found = recogniser(sample.image, brain)
    assert (found.kind, found.pose) == ("FLAIR", "upright")
    assert found.likeness("FLAIR") >= DOUBTED and found.verdict("FLAIR") is None
    assert sum(found.kinds.values()) == pytest.approx(1, abs=1e-5) and sum(found.poses.values()) == pytest.approx(
        1, abs=1e-5
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda v: 37.0 * v - 1000.0,
        lambda v: v / 1000.0,
        lambda v: np.where(v == 0, -2000.0, v),
        lambda v: np.round(255 * v / v.max()),
    ],
    ids=["affine", "small numbers", "padding", "8 bits"],
)
def test_the_unit_and_the_padding_of_intensities_change_nothing(
    sample: Volume, brain: sitk.Image, recogniser: Recogniser, change: Change
) -> None:
    plain, other = (recogniser(image, brain).likeness("FLAIR") for image in (sample.image, changed(sample, change)))
    assert other == pytest.approx(plain, abs=0.1)


def noise(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, values.shape)


def phantom_of_a_ball(values: np.ndarray) -> np.ndarray:
    places = np.indices(values.shape) - (np.array(values.shape) / 2)[:, None, None, None]
    scale = np.array([5.0, 2.0, 2.0])[:, None, None, None] if values.shape[0] < 60 else 1.0
    return np.where(((places * scale) ** 2).sum(0) < 70**2, 1000.0, 10.0)


def inverted(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values.max() + values[values > 0].min() - values, 0)


@pytest.mark.parametrize(
    "change",
    [
        noise,
        lambda v: ndimage.gaussian_filter(noise(v), 2),
        phantom_of_a_ball,
        inverted,
        lambda v: v[::-1],
        lambda v: v[:, ::-1],
    ],
    ids=["white noise", "smooth noise", "ball", "fluid bright", "upside down", "back to front"],
)
def test_what_is_no_upright_flair_is_doubted_or_refused(sample: Volume, recogniser: Recogniser, change: Change) -> None:
    found = seen(changed(sample, change), recogniser)
    assert found is None or found.likeness("FLAIR") < DOUBTED


def test_a_verdict_says_what_is_seen_and_refuses_only_what_is_far_off() -> None:
    def recognition(kind: float, pose: float, other: str = "T1", turned: str = "upside down") -> Recognition:
        return Recognition({"FLAIR": kind, other: 1 - kind}, {"upright": pose, turned: 1 - pose})

    assert recognition(0.9, 0.9).verdict("FLAIR") is None
    doubt = recognition(0.06, 1.0).verdict("FLAIR")
    assert doubt is not None and not doubt.refused and "looks like T1, the model knows FLAIR" in doubt.message
    turned = recognition(1.0, REFUSED / 2).verdict("FLAIR")
    assert turned is not None and turned.refused and "upside down" in turned.message
    nothing = recognition(0.0, 1.0, "no brain").verdict("FLAIR", "channel FLAIR")
    assert nothing is not None and nothing.refused and nothing.message.startswith("The channel FLAIR shows no brain")
    assert recognition(0.0, 1.0).verdict("a contrast of tomorrow") is None


@pytest.mark.parametrize(("likeness", "refused"), [(0.6, None), (0.3, False), (0.05, True)])
def test_a_single_slice_is_trusted_less(likeness: float, refused: bool | None) -> None:
    def verdict(is_single: bool) -> Verdict | None:
        return Recognition({"FLAIR": likeness, "T1": 1 - likeness}, {"upright": 1.0}, is_single).verdict("FLAIR")

    single, whole = verdict(True), verdict(False)
    assert (None if single is None else single.refused) == refused
    assert single is None or "a single slice" in single.message
    assert whole is None or not whole.refused


def test_a_scan_of_one_slice_is_known_as_such(sample: Volume, recogniser: Recogniser) -> None:
    middle = sample.image.GetSize()[2] // 2
    whole, single = (seen(image, recogniser) for image in (sample.image, sample.image[:, :, middle : middle + 1]))
    assert whole is not None and not whole.is_single
    assert single is not None and single.is_single


@pytest.mark.parametrize(
    ("upright", "other", "refused"), [(0.99, 0.01, None), (0.8, 0.2, False), (0.45, 0.55, True), (0.2, 0.8, True)]
)
def test_a_pose_that_is_wrong_is_refused_however_sure_the_contrast_is(
    upright: float, other: float, refused: bool | None
) -> None:
    verdict = Recognition({"FLAIR": 0.95, "T1": 0.05}, {"upright": upright, "upside down": other}).verdict("FLAIR")
    assert (None if verdict is None else verdict.refused) == refused
    said = f"shows a head upside down by what its header says of directions (probability of upright {upright:.2g})"
    assert verdict is None or said in verdict.message


def thick(image: sitk.Image) -> sitk.Image:
    """As an ordinary clinical scan: axial slices of 6 mm."""
    image = sitk.DICOMOrient(image, "LPS")
    new = (2.0, 2.0, max(6.0, image.GetSpacing()[2]))
    size = [round(count * mm / edge) for count, mm, edge in zip(image.GetSize(), image.GetSpacing(), new, strict=True)]
    grid = (size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), new, image.GetDirection())
    return sitk.Resample(image, *grid, 0.0, sitk.sitkFloat32)


def turned(image: sitk.Image, order: tuple[int, int, int], mirrored: tuple[bool, bool, bool]) -> sitk.Image:
    """The voxels in another order, with their own edges, under the directions of before."""
    result = sitk.Flip(sitk.PermuteAxes(image, order), mirrored)
    result.SetDirection(image.GetDirection())
    return result


TURNS = {
    "upside down": ((0, 1, 2), (False, False, True)),
    "back to front": ((0, 1, 2), (False, True, False)),
    "on its head": ((0, 1, 2), (False, True, True)),
    "to the side": ((1, 0, 2), (True, False, False)),
    "forwards": ((0, 2, 1), (False, False, True)),
    "axes in reverse": ((2, 1, 0), (False, False, False)),
    "axes moved on": ((1, 2, 0), (False, False, False)),
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_a_head_the_wrong_way_up_is_refused(sample: Volume, recogniser: Recogniser, turn: tuple) -> None:
    found = seen(turned(thick(sample.image), *turn), recogniser)
    verdict = found and found.verdict("FLAIR")
    assert found is None or (verdict is not None and verdict.refused)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "ASL", "IPR"])
def test_the_window_is_the_same_whichever_way_the_axes_run(sample: Volume, brain: sitk.Image, axes: str) -> None:
    shown, inside = recognition_window(sample.image, brain)
    other, other_inside = recognition_window(sitk.DICOMOrient(sample.image, axes), sitk.DICOMOrient(brain, axes))
    assert np.abs(shown - other).max() <= 0.02 * np.ptp(shown)
    assert (inside != other_inside).mean() < 1e-3


def test_a_refused_scan_ends_before_the_model_runs_and_force_goes_on(sample: Volume) -> None:
    upside_down = Volume(changed(sample, lambda v: v[::-1]), "scan", "", 3, 0)
    with pytest.raises(InputError, match="--force"):
        Detector(Options("intensity", device="cpu"))(upside_down)
    result = Detector(Options("intensity", device="cpu", force=True))(upside_down)
    assert any("scores may mean nothing" in text for text in result.warnings)
    assert result.provenance["recognised"] and result.provenance["options"]["force"]


def test_the_command_line_refuses_with_the_exit_code_of_bad_input(sample: Volume, tmp_path: Path) -> None:
    path = tmp_path / "FLAIR.nii.gz"  # the name says what the image is not
    sitk.WriteImage(changed(sample, noise), str(path))
    assert main(["detect", str(path), "-o", str(tmp_path / "out"), "--method", "intensity", "--device", "cpu"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ml", "refused"), [(100, True), (250, False), (1400, False), (2800, False), (9000, True)])
def test_a_mask_of_a_size_that_no_brain_has_is_refused(ml: float, refused: bool) -> None:
    edge = round((ml * 1000 / 8) ** (1 / 3))
    mask = np.zeros((edge + 20,) * 3, np.uint8)
    mask[10:-10, 10:-10, 10:-10] = 1
    brain = sitk.GetImageFromArray(mask)
    brain.SetSpacing((2.0, 2.0, 2.0))
    verdict = brain_size_verdict(sitk.Cast(brain, sitk.sitkFloat32), brain)
    assert (verdict is not None and verdict.refused) == refused


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the scans in ../shared/data")
@pytest.mark.parametrize(
    ("pattern", "known"),
    [
        ("lgg-flair/val/*_flair.nii.gz", True),
        ("ms-jhu/training*_flair.nii.gz", True),
        ("flair-healthy/*.nii.gz", True),
        ("ixi-t1-2mm/*-T1_ds.nii.gz", False),
        ("open-ms/*/T1.nii.gz", False),
        ("headct/val/*.nii.gz", False),
    ],
)
def test_scans_of_other_places_are_told_apart(recogniser: Recogniser, pattern: str, known: bool) -> None:
    paths = sorted(SHARED.glob(pattern))[:2]
    assert paths
    for path in paths:
        found = seen(read_volume(path).image, recogniser)
        assert (found is not None and found.likeness("FLAIR") >= DOUBTED) == known, path.name


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the scans in ../shared/data")
@pytest.mark.parametrize("pattern", ["lgg-flair/val/*[03]_flair.nii.gz", "ms-jhu/t*01_flair.nii.gz"])
def test_clinical_scans_are_taken_upright_and_refused_turned(recogniser: Recogniser, pattern: str) -> None:
    paths = sorted(SHARED.glob(pattern))[:2]
    assert paths
    for path in paths:
        image = thick(read_volume(path).image)
        upright = seen(image, recogniser)
        assert upright is not None and upright.verdict("FLAIR") is None
        for name in ("upside down", "back to front", "to the side"):
            found = seen(turned(image, *TURNS[name]), recogniser)
            verdict = found and found.verdict("FLAIR")
            assert found is None or (verdict is not None and verdict.refused), (path.name, name)


def test_a_scan_of_another_contrast_is_told_which_models_know_it() -> None:
    assert "--model flair-guided or flair-intensity or flair-localise" in another_model("FLAIR")
    assert "--force" in another_model("FLAIR")
    assert another_model("no brain") == FORCE_HINT
