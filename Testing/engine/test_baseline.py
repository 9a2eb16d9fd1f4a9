"""The intensity baseline: a package without a network, whose scores are known in closed form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

import packages
import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import ModelError
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.models.package import Bundle, available, open_bundle
from diffusion_anomaly.models.verification import verify
from packages import options_for

FLUID, TISSUE = 20.0, 100.0
# The scale's estimate of the mode is the middle of a bin half a per cent of the mode wide.
SCALE_ERROR = 0.005
GRID = {"size": [80, 96], "spacing": 2.4}


def scan_with(lesion: float, gain: float = 1.0, offset: float = 0.0) -> tuple[Volume, sitk.Image]:
    """Even tissue with one even lesion and a twentieth of fluid, in a scan whose voxels are the grid's pixels."""
    empty = phantom.grid((64, 72, 26), (2.4, 2.4, 5.0))
    brain = phantom.brain_of(empty)
    inside = sitk.GetArrayFromImage(brain) > 0
    values = np.where(inside, TISSUE, 0.0)
    values[inside & (np.indices(inside.shape).sum(axis=0) % 20 == 0)] = FLUID
    values[sitk.GetArrayFromImage(phantom.lesion_of(empty)) > 0] = lesion
    image = phantom.on_grid((gain * values + offset).astype(np.float32), empty)
    return phantom.as_volume(image), brain


def height(value: float) -> float:
    """A value's height above the darkest, as a share of tissue's, times what the mode becomes."""
    return 0.42 * (value - FLUID) / (TISSUE - FLUID)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.intensity(tmp_path_factory.mktemp("models") / "toy-intensity", grid=GRID)


def raw_values(volume: Volume, brain: sitk.Image, bundle: Bundle, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Raw anomaly scores of the brain's pixels, and the scan's own value there."""
    found = Detector(make_plan(options_for(bundle, **changes))).raw_map(volume, brain)
    inside = found.stack.brain()
    assert not found.raw[~inside].any()
    return found.raw[inside], found.stack.images()[:, 0][inside]


# --- Anomaly scores


@pytest.mark.parametrize(
    ("lesion", "side", "anomaly_map"),
    [
        (180.0, "bright", height(180.0) - 0.42),
        (132.0, "bright", height(132.0) - 0.42),
        (60.0, "bright", 0.0),
        (60.0, "dark", 0.42 - height(60.0)),
        (180.0, "dark", 0.0),
        (60.0, "both", 0.42 - height(60.0)),
        (180.0, "both", height(180.0) - 0.42),
        (5000.0, "bright", 4.0 - 0.42),  # clipped
    ],
)
def test_scores_is_the_height_above_ordinary_tissue(
    lesion: float, side: str, anomaly_map: float, package: Bundle
) -> None:
    raw, values = raw_values(*scan_with(lesion), package, overrides={"side": side})
    expected = {lesion: anomaly_map, TISSUE: 0.0, FLUID: 0.42 if side != "bright" else 0.0}
    for value, wanted in expected.items():
        here = np.isclose(values, value, atol=1e-3)
        assert here.sum() > 100
        assert raw[here] == pytest.approx(wanted, abs=SCALE_ERROR * (wanted + 0.42))


def test_the_reference_is_the_scores_that_is_taken_off(package: Bundle) -> None:
    raw, values = raw_values(*scan_with(180.0), package, overrides={"reference": 0.6})
    lesion = np.isclose(values, 180.0, atol=1e-3)
    assert raw[lesion] == pytest.approx(height(180.0) - 0.6, abs=SCALE_ERROR)
    assert not raw[np.isclose(values, TISSUE, atol=1e-3)].any()


def test_no_lesion_moves_what_ordinary_tissue_is(package: Bundle) -> None:
    """A z-score would sink as the lesion grows brighter."""
    dim, bright = (raw_values(*scan_with(lesion), package)[0] for lesion in (140.0, 400.0))
    assert bright.max() == pytest.approx(dim.max() * 300.0 / 40.0, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(0.01, 1e3), offset=st.floats(-500.0, 500.0))
def test_the_scanners_units_do_not_matter(gain: float, offset: float, package: Bundle) -> None:
    expected, _ = raw_values(*scan_with(180.0), package)
    found, _ = raw_values(*scan_with(180.0, gain, offset), package)
    # A lesion's anomaly scores, 0.42, is so little of a large offset that a float32 says it less exactly.
    rounding = 4e-7 * abs(offset) / (gain * (TISSUE - FLUID))
    assert found == pytest.approx(expected, abs=SCALE_ERROR + rounding)


def test_scores_is_the_packages_tail_probability(package: Bundle) -> None:
    """0.42 between the knots 0.25 and 0.5 of the toy table, whose scores are 1 and 3."""
    volume, brain = scan_with(180.0)
    result = Detector(options_for(package))(volume, brain=brain, force=True)  # a phantom of few values
    lesion = sitk.GetArrayFromImage(phantom.lesion_of(volume.image)) > 0
    anomaly_map = sitk.GetArrayFromImage(result.anomaly_map)
    assert np.median(anomaly_map[lesion]) == pytest.approx(1.0 + 2.0 * (0.42 - 0.25) / 0.25, abs=0.04)
    assert result.threshold == 2.0
    (finding,) = result.findings
    assert np.linalg.norm(np.array(finding.centroid_ras) * (-1, -1, 1) - phantom.LESION_CENTRE) < 2.5
    assert result.provenance["model"]["name"] == "toy-intensity"
    assert result.provenance["model"]["sha256"] == package.sha256
    assert result.provenance["network_calls_per_slice"] == 0
    assert result.provenance["options"]["reference"] == 0.42
    assert result.reconstruction is None and result.score_warning is None


def test_the_package_that_comes_with_the_engine_finds_the_lesion_and_nothing_else() -> None:
    volume, brain = scan_with(180.0)
    lesion = sitk.GetArrayFromImage(phantom.lesion_of(volume.image)) > 0
    result = Detector(Options("intensity", device="cpu"))(volume, brain=brain, force=True)
    found = sitk.GetArrayFromImage(result.mask) > 0
    assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.85
    assert len(result.findings) == 1
    assert result.provenance["model"]["name"] == "flair-intensity"


def test_the_dark_side_needs_no_other_package() -> None:
    volume, brain = scan_with(45.0)
    lesion = sitk.GetArrayFromImage(phantom.lesion_of(volume.image)) > 0
    bright, dark = (
        Detector(Options("intensity", device="cpu", overrides={"side": side}))(volume, brain=brain, force=True)
        for side in ("bright", "dark")
    )
    assert not bright.findings
    largest = max(dark.findings, key=lambda finding: finding.volume_ml)
    assert np.linalg.norm(np.array(largest.centroid_ras) * (-1, -1, 1) - phantom.LESION_CENTRE) < 2.5
    assert sitk.GetArrayFromImage(dark.mask)[lesion].mean() > 0.5, "all but its edge, which is half tissue"


# --- The package


def test_a_package_without_a_network_is_whole(package: Bundle) -> None:
    bundle = open_bundle(package.path)
    verify(bundle)
    assert bundle.networks == ()
    assert not (bundle.path / "models").exists()
    with pytest.raises(ModelError, match="declares no network localiser"):
        bundle.network_config("localiser")
    with pytest.raises(ModelError, match="declares no network localiser"):
        bundle.weights("localiser")
    (summary,) = [one for one in available([bundle.path]) if one.path == bundle.path]
    assert (summary.problem, summary.method, summary.spacing) == ("", "intensity", 2.4)


def test_its_metadata_says_what_goes_in_and_comes_out(package: Bundle) -> None:
    described = package.metadata["network_data_format"]
    for image in (described["inputs"]["image"], described["outputs"]["pred"]):
        assert (image["num_channels"], image["spatial_shape"]) == (1, [96, 80])
        assert image["dtype"] == "float32"


def test_its_plan_loads_nothing(package: Bundle) -> None:
    plan = make_plan(options_for(package))
    assert Detector(plan).model is None
    assert plan.bundle.networks == ()


def test_a_package_that_is_not_calibrated_is_not_ready(tmp_path: Path) -> None:
    bundle = packages.intensity(tmp_path / "toy", calibration=None, threshold=None)
    with pytest.raises(ModelError, match=r"has no calibration, threshold\. Calibrate it"):
        verify(bundle)
    with pytest.raises(ModelError, match="no calibration"):
        Detector(options_for(bundle))(scan_with(180.0)[0], brain=scan_with(180.0)[1])


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no grid": (lambda place: packages.intensity(place, grid=None), r"no grid"),
    "no scale": (lambda place: packages.intensity(place, normalisation=None), r"no normalisation"),
    "neighbours": (
        lambda place: packages.intensity(place, grid={**GRID, "neighbours": 1}),
        r"shows neighbours to the networks of the method intensity",
    ),
    "percentiles upside down": (
        lambda place: packages.intensity(
            place, normalisation={**packages.ANOMALY["normalisation"], "low_percentile": 80}
        ),
        r"from percentile 80 up to 75",
    ),
    "a table that falls": (
        lambda place: packages.intensity(place, calibration={"raw": [0.0, 1.0, 0.5], "heat": [0.0, 1.0, 2.0]}),
        r"calibration whose raw values do not start at 0 and increase",
    ),
    "a filter on the grid and in mm": (
        lambda place: packages.intensity(place, postprocess={"median_mm": 3.0, "median_pixels": 3}),
        r"Options median_pixels and median_mm are both given",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_declaration_is_checked_although_there_is_no_network(tmp_path: Path, name: str) -> None:
    write, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        write(tmp_path / "toy")
    assert caught.value.hint
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize("method", ["localise", "restore", "guided", "unsupervised", "brain"])
def test_no_other_method_goes_without_a_network(method: str, package: Bundle, tmp_path: Path) -> None:
    folder = resealed(package, tmp_path, lambda anomaly: anomaly.update(method=method))
    with pytest.raises(ModelError, match=r"anomaly\.json"):
        verify(open_bundle(folder))


@pytest.mark.parametrize("file", ["models/restorer.safetensors", "configs/restorer.json"])
def test_the_files_of_a_network_that_is_not_declared_are_refused(package: Bundle, tmp_path: Path, file: str) -> None:
    other = packages.restore(tmp_path / "toy-restore")
    folder = resealed(package, tmp_path, lambda anomaly: None, {file: (other.path / file).read_bytes()})
    with pytest.raises(ModelError, match=f"{file} belongs to none"):
        verify(open_bundle(folder))


def resealed(
    package: Bundle, place: Path, change: Callable[[dict[str, Any]], Any], more: dict[str, bytes] | None = None
) -> Path:
    """A copy of a package with a changed declaration and further files, whose manifest agrees with it."""
    folder = Path(shutil.copytree(package.path, place / "changed"))
    declared = json.loads((folder / "configs/anomaly.json").read_text(encoding="utf-8"))
    change(declared)
    (folder / "configs/anomaly.json").write_text(json.dumps(declared), encoding="utf-8")
    for name, content in (more or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    records = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in files
    }
    manifest = {"schema_version": 1, "files": records}
    (folder / "configs/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


# --- The plan


@pytest.mark.parametrize("write", [packages.localise, packages.restore, packages.guided, packages.unsupervised])
def test_another_methods_package_is_no_baseline(write: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = write(tmp_path / "toy")
    with pytest.raises(ModelError, match=f"made for the method '{bundle.method}', but 'intensity'") as caught:
        make_plan(options_for(bundle, method="intensity"))
    assert f"Choose the method {bundle.method}" in caught.value.hint


def test_a_baselines_package_runs_no_other_method(package: Bundle) -> None:
    with pytest.raises(ModelError, match="made for the method 'intensity', but 'localise'"):
        make_plan(replace(options_for(package), method="localise"))


@pytest.mark.parametrize("write", [packages.localise, packages.intensity])
def test_the_slices_of_a_plan_are_the_packages_at_most_so_far_apart_as_the_user_asks(
    write: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = write(tmp_path / "toy")
    own, asked = (
        make_plan(Options(bundle.method, model=str(bundle.path), device="cpu", slice_spacing=spacing)).grid
        for spacing in (None, 1.5)
    )
    declared = bundle.anomaly["grid"]
    assert own == bundle.grid
    assert (own.max_slice_spacing, asked.max_slice_spacing) == (3.0, 1.5)
    assert asked.neighbours == own.neighbours == declared.get("neighbours", 0)
    assert (list(asked.size), asked.spacing) == (declared["size"], declared["spacing"])
