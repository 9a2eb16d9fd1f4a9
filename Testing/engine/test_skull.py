"""The space inside the skull in head CT, in Hounsfield units and in a window, and numbers that are neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import packages
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.detection.skull import intracranial_space
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.evaluation.dataset import find_pairs
from diffusion_anomaly.evaluation.evaluate import RunSpec, run
from diffusion_anomaly.preprocessing.hounsfield import grey_kind
from diffusion_anomaly.preprocessing.intensity import WindowNormalisation

SPACING = (1.0, 1.0, 5.0)
AIR, FAT, FLUID, BRAIN, BLEED, BONE = -1000.0, -80.0, 5.0, 35.0, 65.0, 900.0


def head_ct(*, gap: float = 0.0, couch: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A head of 20 slices in Hounsfield units, and the space inside its skull.

    The lowest five slices are neck and face: a spine with its canal, jaws, a sinus of air that bone closes.

    Args:
        gap: width of a hole in the front of the skull in mm.
        couch: whether there is a couch below.
    """
    z, y, x = np.meshgrid(np.arange(20) * 5.0, np.arange(200.0), np.arange(180.0), indexing="ij")
    radius = np.sqrt(((x - 90) / 70) ** 2 + ((y - 95) / 85) ** 2 + ((z - 30) / 75) ** 2)
    values = np.full(x.shape, AIR, np.float32)
    values[radius < 1.06] = FAT
    values[radius < 1.0] = BONE + 300.0 * np.sin(x[radius < 1.0]) * np.cos(3 * y[radius < 1.0])
    inside = (radius < 0.9) & (z >= 25)
    values[(radius < 0.9)] = BRAIN
    values[inside & (np.hypot(x - 90, y - 95) < 15) & (np.abs(z - 55) < 12)] = FLUID
    if gap:
        values[(np.abs(x - 90) < gap / 2) & (y < 95) & (radius >= 0.9) & (radius < 1.0)] = BRAIN
    neck = z < 25
    values[neck & (radius < 1.0)] = BRAIN
    values[neck & (np.hypot(x - 90, y - 140) < 18)] = BONE
    values[neck & (np.hypot(x - 90, y - 140) < 9)] = FLUID
    values[neck & (np.abs(x - 90) < 30) & (np.abs(y - 50) < 20)] = BONE
    values[neck & (np.abs(x - 90) < 22) & (np.abs(y - 50) < 14)] = AIR
    if couch:
        values[(y > 192) & (y < 196)] = 200.0
    values += np.random.default_rng(0).normal(0, 3, values.shape).astype(np.float32)
    return values, inside


def as_image(values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing(SPACING)
    return image


def windowed(values: np.ndarray, low: float = 0.0, high: float = 80.0) -> np.ndarray:
    """As in a picture of 8 bits."""
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255)


def dice(image: sitk.Image, truth: np.ndarray) -> float:
    found = sitk.GetArrayViewFromImage(image) != 0
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


@pytest.mark.parametrize("is_windowed", [False, True])
@pytest.mark.parametrize("gap", [0.0, 12.0, 30.0])
def test_the_space_is_what_the_skull_closes(is_windowed: bool, gap: float) -> None:
    values, truth = head_ct(gap=gap)
    found = intracranial_space(as_image(windowed(values) if is_windowed else values), "scan")
    assert dice(found, truth) > 0.95
    assert not sitk.GetArrayViewFromImage(found)[:4].any()  # neither canal nor sinus


def test_a_bleed_along_the_skull_is_inside() -> None:
    values, truth = head_ct()
    place = np.zeros_like(truth)
    place[8:12, 80:110, 28:34] = True
    place &= truth
    values[place] = BLEED
    assert place.any()
    assert (sitk.GetArrayViewFromImage(intracranial_space(as_image(windowed(values)), "scan"))[place]).mean() > 0.9


def test_hounsfield_units_that_were_cut_off_serve_too() -> None:
    values, truth = head_ct()
    for low, high in ((-160, 240), (-15, 100), (0, 80)):
        assert dice(intracranial_space(as_image(np.clip(values, low, high)), "scan"), truth) > 0.95


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_orientation_changes_nothing(axes: tuple[int, int, int]) -> None:
    values, _ = head_ct()
    image = as_image(values)
    turned = sitk.Flip(sitk.PermuteAxes(image, list(axes)), [True, False, True])
    expected = sitk.GetArrayFromImage(intracranial_space(image, "scan"))
    found = intracranial_space(turned, "scan")
    assert turned.GetDirection() == found.GetDirection()
    back = sitk.PermuteAxes(sitk.Flip(found, [True, False, True]), [axes.index(axis) for axis in range(3)])
    assert (sitk.GetArrayFromImage(back) != expected).mean() < 0.002


def test_slices_of_a_face_after_the_vertex_are_not_entered() -> None:
    values, truth = head_ct()
    found = intracranial_space(as_image(np.concatenate([values, values[:4]])), "scan")
    assert dice(found[:, :, :20], truth) > 0.95
    assert not sitk.GetArrayViewFromImage(found)[20:].any()


def test_fine_slices_are_found_alike() -> None:
    values, truth = head_ct()
    image = sitk.Expand(as_image(values), [2, 2, 4], sitk.sitkNearestNeighbor)
    fine = np.repeat(np.repeat(np.repeat(truth, 4, 0), 2, 1), 2, 2)
    assert dice(intracranial_space(image, "scan"), fine) > 0.95


def test_what_has_no_skull_is_refused() -> None:
    values, _ = head_ct(couch=True)
    values[values > 100] = BRAIN
    values[:, 192:196] = 300.0
    with pytest.raises(InputError, match="No skull"):
        intracranial_space(as_image(values), "abdomen")


# Numbers


def test_hounsfield_units_and_windows_are_told_apart() -> None:
    values, _ = head_ct()
    assert grey_kind(as_image(values)).is_hounsfield
    for low, high in ((-1000, 1000), (-160, 240), (-15, 100)):  # cut off, but their numbers are what they were
        assert grey_kind(as_image(np.clip(values, low, high))).is_hounsfield
    for low, high in ((0, 80), (-160, 240), (-60, 140)):
        kind = grey_kind(as_image(windowed(values, low, high)))
        assert (kind.is_hounsfield, kind.low, kind.high) == (False, 0, 255)


@pytest.mark.parametrize("padding", [None, -2000.0])
def test_stored_numbers_without_rescale_are_named(padding: float | None) -> None:
    values = head_ct()[0] + 1024.0
    values = np.maximum(values, 0.0)
    if padding is not None:
        values[:, :4] = padding
    with pytest.raises(InputError, match="no Hounsfield units"):
        grey_kind(as_image(values))


def test_a_stripped_ct_is_told_by_its_brain() -> None:
    values, truth = head_ct()
    stripped = np.where(truth, values, 0.0)
    assert grey_kind(as_image(stripped), stripped[truth]).is_hounsfield
    mr = np.where(truth, 400.0 + values, 0.0)
    with pytest.raises(InputError, match="no CT's"):
        grey_kind(as_image(mr), mr[truth])


def test_a_window_gives_the_same_slices_as_hounsfield_units() -> None:
    values, truth = head_ct()
    mask = sitk.GetImageFromArray(truth.astype(np.uint8))
    mask.SetSpacing(SPACING)
    rule = WindowNormalisation(0.0, 80.0)
    scaled = [
        rule.fit_scan(as_image(v), mask)(v, truth) for v in (values, windowed(values), np.clip(values, 0.0, 80.0))
    ]
    assert np.abs(scaled[0] - scaled[1]).max() < 0.005
    assert np.abs(scaled[0] - scaled[2]).max() < 1e-5
    with pytest.raises(InputError, match="low < high"):
        WindowNormalisation(80.0, 0.0)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    bundle = packages.head_ct(tmp_path_factory.mktemp("models") / "ct")
    return Detector(Options(method="intensity"), bundle=bundle)


def test_a_bleed_is_found_in_hounsfield_units_and_with_a_doubt_in_a_window(detector: Detector) -> None:
    values, _ = head_ct()
    values[9:12, 60:80, 100:120] = 78.0
    results = [detector(as_image(v)) for v in (values, windowed(values))]
    for result in results:
        finding = result.findings[0]
        assert finding.volume_ml == pytest.approx(3 * 20 * 20 * 5 / 1000, rel=0.3)
        assert result.unit == "ml"
        assert result.provenance["region"] == "intracranial"
    assert [any("comes in a window" in w for w in result.warnings) for result in results] == [False, True]


def test_stored_numbers_are_refused_by_a_detection_too(detector: Detector) -> None:
    with pytest.raises(InputError, match="rescale slope"):
        detector(as_image(np.maximum(head_ct()[0] + 1024.0, 0.0)))


def test_a_window_that_is_none_is_refused_in_a_package(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is not above it"):
        packages.intensity(tmp_path / "ct", normalisation={"kind": "window", "low": 80, "high": 0})


def test_evaluation_judges_inside_the_region_of_its_runs(detector: Detector, tmp_path: Path) -> None:
    values, truth = head_ct()
    values[9:12, 60:80, 100:120] = 78.0
    bleed = np.zeros(values.shape, np.uint8)
    bleed[9:12, 60:80, 100:120] = 1
    for name, array in (("a_ct", values), ("a_mask", bleed)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    pairs = find_pairs(tmp_path, "*_ct.nii.gz")
    run(pairs, [RunSpec("intensity", str(detector.plan.bundle.path), label="ours")], tmp_path / "out", "cpu")
    assert dice(sitk.ReadImage(str(tmp_path / "out" / "brain" / "a.nii.gz")), truth) > 0.95
    brain = packages.intensity(tmp_path / "brain")
    runs = [RunSpec("intensity", str(model), label=model.name) for model in (detector.plan.bundle.path, brain.path)]
    with pytest.raises(InputError, match="intracranial and brain"):
        run(pairs, runs, tmp_path / "two", "cpu")
