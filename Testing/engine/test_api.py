"""The library as a researcher uses it: three lines, any kind of scan, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import diffusion_anomaly as da
from diffusion_anomaly.io.volume import Scan, Volume, as_volume
from diffusion_anomaly.text import counted

ENGINE = Path(__file__).resolve().parents[2] / "DiffusionAnomaly"


@pytest.fixture(scope="module")
def detector() -> da.Detector:
    return da.load(method="intensity", device="cpu")


@pytest.fixture
def result(detector: da.Detector, flair_like_volume: Volume, flair_like_brain: sitk.Image) -> da.Result:
    return detector(flair_like_volume, brain=flair_like_brain)


def scores(result: da.Result) -> np.ndarray:
    return sitk.GetArrayFromImage(result.anomaly_map)


def test_every_public_name_is_there() -> None:
    assert all(getattr(da, name) is not None for name in da.__all__)
    with pytest.raises(AttributeError, match="lod"):
        _ = da.lod  # type: ignore[attr-defined]


def test_torch_is_not_imported_before_something_runs() -> None:
    code = (
        "import sys, diffusion_anomaly as da; da.models(); da.load('flair-restore', steps=2, device='cpu');"
        "print(sorted({'torch', 'monai', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ENGINE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("first", ["import diffusion_anomaly.models.package", "import diffusion_anomaly.api", "pass"])
def test_models_can_be_called_whatever_was_imported_before(first: str) -> None:
    code = f"{first}; import diffusion_anomaly as da; print(len(da.models()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ENGINE, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(da.models()) >= 6


def test_a_path_an_image_and_an_array_give_the_same(
    detector: da.Detector, result: da.Result, flair_like_volume: Volume, flair_like_brain: sitk.Image, tmp_path: Path
) -> None:
    image = flair_like_volume.image
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    sitk.WriteImage(flair_like_brain, str(tmp_path / "brain.nrrd"))
    for scan, brain in (
        (tmp_path / "scan.nrrd", tmp_path / "brain.nrrd"),
        (str(tmp_path / "scan.nrrd"), flair_like_brain),
        (image, sitk.GetArrayFromImage(flair_like_brain)),
        (da.read(image, title="mine"), flair_like_brain),
        ({"FLAIR": image}, flair_like_brain),
    ):
        again = detector(scan, brain=brain)
        assert np.array_equal(scores(again), scores(result))
        assert again.anomaly_map.GetSpacing() == image.GetSpacing()


def test_an_array_lies_in_the_order_of_simpleitk(detector: da.Detector) -> None:
    array = np.random.default_rng(0).normal(100.0, 10.0, (5, 40, 48)).astype(np.float32)
    array[2, 10:14, 20:26] = 250.0
    found = detector(array, spacing=(1.0, 1.0, 5.0), brain=np.ones(array.shape, np.uint8), force=True)
    assert found.anomaly_map.GetSize() == (48, 40, 5)
    k, j, i = np.unravel_index(scores(found).argmax(), array.shape)
    assert k == 2 and 10 <= j < 14 and 20 <= i < 26


def test_a_result_can_be_kept_moved_and_shown(result: da.Result, tmp_path: Path) -> None:
    files = result.save(tmp_path / "out")
    assert set(files) == {"heat", "mask", "brain", "findings_csv", "findings_json", "report", "provenance"}
    assert all(path.is_file() for path in files.values())
    lower = da.threshold(result, at=result.threshold / 2)
    assert sum(f.volume_ml for f in lower.findings) > sum(f.volume_ml for f in result.findings)
    assert lower.provenance["threshold"]["heat"] == lower.threshold == result.threshold / 2
    assert result.provenance["threshold"]["heat"] == result.threshold  # the first is as it was
    assert "finding" in result._repr_html_() and "data:image/" in result._repr_html_()
    assert f"{counted(len(result.findings), 'finding')}, " in repr(result) and len(repr(result)) < 200


def test_a_name_cannot_break_out_of_what_a_notebook_shows(
    detector: da.Detector, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    named = da.read(flair_like_volume.image, title="<script>alert(1)</script>")
    assert "<script>" not in detector(named, brain=flair_like_brain)._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("flair-nothing",), {}, "Unknown model 'flair-nothing'. Choose one of"),
        ((), {"method": "guesswork"}, "Unknown method 'guesswork'. Choose one of"),
        (("flair-restore",), {"method": "guided"}, "is made for the method 'restore'"),
        (("brain-mask",), {}, "It finds brains; choose another model"),
        (("flair-restore",), {"steps": 99}, "steps is 99"),
        (("flair-restore",), {"colour": 1}, "has no option colour"),
        ((), {"threshold": -1}, "threshold is -1"),
        ((), {"precision": "half"}, "precision 'half'"),
        ((), {"device": "toaster"}, "device 'toaster'"),
        ((), {"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_a_wrong_detector_is_refused_when_it_is_made(arguments: tuple, options: dict, said: str) -> None:
    with pytest.raises(da.EngineError) as caught:
        da.load(*arguments, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("scan", "options", "said"),
    [
        (np.zeros((4, 4, 4)), {}, "spacing=(x, y, z)"),
        (np.zeros((4, 4, 4)), {"spacing": (1, 1)}, "expected 3 numbers"),
        (np.zeros((4, 4, 4)), {"spacing": (1, 0, 1)}, "above 0"),
        (np.zeros((4, 4, 4), complex), {"spacing": (1, 1, 1)}, "complex"),
        (np.zeros((2, 4, 4, 4)), {"spacing": (1, 1, 1)}, "shape (2, 4, 4, 4)"),
        (np.zeros((0, 4, 4)), {"spacing": (1, 1, 1)}, "shape (0, 4, 4)"),
        (np.full((4, 4, 4), np.nan), {"spacing": (1, 1, 1)}, "no finite value"),
        (sitk.Image(4, 4, 4, sitk.sitkVectorUInt8), {}, "one grey value"),
        (sitk.Image(4, 4, 4, sitk.sitkUInt8), {"spacing": (1, 1, 1)}, "takes none"),
        ("nowhere.nii.gz", {}, "no file or folder nowhere.nii.gz"),
        (17, {}, "A int is no scan"),
        (np.zeros((4, 4, 4)), {"spacing": "111"}, "spacing of an array is '111'"),
        (np.zeros((4, 4, 4)), {"spacing": ("1", "1", "1")}, "expected 3 numbers"),
        (
            np.ma.masked_less(np.arange(64.0).reshape(4, 4, 4), 5),
            {"spacing": (1, 1, 1)},
            "The masked array lacks 5 values",
        ),
        (Scan({"t1": as_volume(sitk.Image(9, 9, 9, sitk.sitkFloat32), "", "", {})}), {}, "one channel is called t1"),
        ({"t1": np.zeros((4, 4, 4))}, {"spacing": (1, 1, 1)}, "no channel 't1'"),
        ({"FLAIR": np.zeros((4, 4, 4)), "T1": np.zeros((4, 4, 4))}, {"spacing": (1, 1, 1)}, "knows FLAIR"),
        ({}, {}, "FLAIR is missing"),
    ],
)
def test_what_is_no_scan_is_refused_by_name(detector: da.Detector, scan: object, options: dict, said: str) -> None:
    with pytest.raises(da.InputError) as caught:
        detector(scan, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_mask_of_another_grid_is_refused(detector: da.Detector, flair_like_volume: Volume) -> None:
    with pytest.raises(da.InputError, match="shape"):
        detector(flair_like_volume, brain=np.ones((2, 2, 2)))
    with pytest.raises(da.InputError, match="grid"):
        detector(flair_like_volume, brain=sitk.Image(4, 4, 4, sitk.sitkUInt8))
    with pytest.raises(da.InputError, match="A list is no brain mask"):
        detector(flair_like_volume, brain=[1, 2])  # type: ignore[arg-type]


def test_a_masked_array_is_refused_as_a_brain_and_taken_where_nothing_is_masked(
    detector: da.Detector, result: da.Result, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    brain = sitk.GetArrayFromImage(flair_like_brain)
    with pytest.raises(da.InputError, match=r"masked array.*filled\(0\)"):
        detector(flair_like_volume, brain=np.ma.masked_equal(brain, 0))
    again = detector(flair_like_volume, brain=np.ma.masked_array(brain))
    assert np.array_equal(scores(again), scores(result))


@pytest.mark.parametrize("name", ["flair", "T2 FLAIR", "scan", "baseline"])
def test_a_single_channel_may_have_any_name_that_is_no_other_contrasts(
    name: str, detector: da.Detector, result: da.Result, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    again = detector(Scan({name: flair_like_volume}), brain=flair_like_brain)
    assert np.array_equal(scores(again), scores(result))


def test_a_wrong_pair_of_model_and_method_names_no_option_of_the_command_line() -> None:
    with pytest.raises(da.ModelError) as caught:
        da.load("flair-restore", method="guided")
    assert caught.value.hint == "Choose the method restore, or another model."


def test_a_mask_of_probabilities_is_cut_at_one_half_however_it_comes(
    detector: da.Detector, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    likely = sitk.Cast(flair_like_brain, sitk.sitkFloat32) * 0.6 + 0.3
    for mask in (likely, sitk.GetArrayFromImage(likely)):
        found = sitk.GetArrayFromImage(detector(flair_like_volume, brain=mask).brain)
        assert np.array_equal(found, sitk.GetArrayFromImage(flair_like_brain))


def test_public_names_are_offered_for_completion() -> None:
    assert set(da.__all__) <= set(dir(da))


@pytest.mark.parametrize("at", [0, -1.0, float("nan"), float("inf")])
def test_a_threshold_that_cannot_be_is_refused(result: da.Result, at: float) -> None:
    with pytest.raises(da.InputError, match="threshold"):
        da.threshold(result, at=at)


def test_the_baseline_is_evaluated_in_one_call(
    flair_like_volume: Volume, flair_like_brain: sitk.Image, tmp_path: Path
) -> None:
    lesion = sitk.Cast(flair_like_volume.image > 180, sitk.sitkUInt8) * sitk.Cast(flair_like_brain, sitk.sitkUInt8)
    for name, image in (("flair", flair_like_volume.image), ("mask", lesion), ("brain", flair_like_brain)):
        sitk.WriteImage(image, str(tmp_path / f"anna_{name}.nii.gz"))
    table = da.evaluate(tmp_path, tmp_path / "out", runs=["intensity"], brain_pattern="*_brain.nii.gz", device="cpu")
    assert "intensity" in table.markdown()
    assert (tmp_path / "out" / "evaluation.csv").is_file()
