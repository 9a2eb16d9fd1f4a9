"""The packages that travel with the engine: whole, small, documented, and fit for a real scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.io.volume import Volume, read_volume
from diffusion_anomaly.models.package import builtin_directory, open_bundle
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.registry import METHODS, get_method

SAMPLE = Path(__file__).parents[2] / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"
# What has learnt from patients' images carries their licence.
LICENCES = {
    "brain-mask": "Apache-2.0",
    "chest-pneumonia-guided": "Apache-2.0",
    "glioma-guided": "CC-BY-NC-SA-4.0",
    "headct-localise": "CC-BY-4.0",
    "scan-recognition": "CC-BY-NC-SA-4.0",
    "flair-guided": "CC-BY-NC-SA-4.0",
    "flair-intensity": "Apache-2.0",
    "flair-localise": "Apache-2.0",
    "flair-restore": "Apache-2.0",
    "flair-unsupervised": "CC-BY-NC-SA-4.0",
}
# Whose images the models of FLAIR are calibrated on, and the others have learnt from.
SETS = {"chest-pneumonia-guided": "Kermany", "headct-localise": "CT-ICH"}
LARGEST_MB = 12.0
ALL_MB = 60.0


@pytest.fixture(scope="module")
def slab() -> tuple[Volume, sitk.Image]:
    """17 slices' worth of the sample scan at mid-brain, and its brain: the scan is stripped."""
    volume = read_volume(SAMPLE)
    image = volume.image[:, :, 60:111]
    return Volume(image, volume.source, "", 3, 0, {}), sitk.Cast(image != 0, sitk.sitkUInt8)


def test_the_packages_are_those_the_readme_names() -> None:
    assert sorted(path.name for path in builtin_directory().iterdir() if path.is_dir()) == sorted(LICENCES)


def test_every_method_has_a_package_of_its_own() -> None:
    for method, name in ((name, method.default_model) for name, method in METHODS.items()):
        bundle = open_bundle(name)
        assert (bundle.name, bundle.method, bundle.modality) == (name, method, "FLAIR")


@pytest.mark.parametrize("name", LICENCES)
def test_a_package_is_whole_small_and_documented(name: str) -> None:
    bundle = open_bundle(name)
    verify(bundle)
    size = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    assert size / 1e6 <= LARGEST_MB
    card = bundle.model_card
    assert bundle.license == LICENCES[name]
    assert "Not for diagnosis" in card and bundle.license in card
    assert ("minutes" in card) == bool(bundle.networks)
    if bundle.method in METHODS:
        assert SETS.get(name, "TCGA-LGG") in bundle.data_license
        assert "average precision" in card or "AUROC of the map" in card


def test_all_packages_together_are_small() -> None:
    sizes = [file.stat().st_size for file in builtin_directory().rglob("*") if file.is_file()]
    assert sum(sizes) / 1e6 <= ALL_MB


@pytest.mark.parametrize("method", METHODS)
def test_a_result_is_the_same_whatever_the_batch_size(method: str, slab: tuple[Volume, sitk.Image]) -> None:
    volume, brain = slab
    anomaly_maps = []
    for batch_size in (1, 3, 16):
        asked = Options(method=method, device="cpu", batch_size=batch_size, slice_spacing=10.0)
        plan = make_plan(asked if get_method(method).steps is None else replace(asked, steps=2))
        anomaly_maps.append(Detector(plan).raw_map(volume, brain).raw)
    assert anomaly_maps[0].max() > 0
    assert np.abs(anomaly_maps[1] - anomaly_maps[0]).max() <= 1e-5
    assert np.abs(anomaly_maps[2] - anomaly_maps[0]).max() <= 1e-5


def test_another_seed_gives_another_scores(slab: tuple[Volume, sitk.Image]) -> None:
    volume, brain = slab
    anomaly_maps = []
    for seed in (0, 0, 1):
        asked = Options(method="unsupervised", device="cpu", steps=2, slice_spacing=20.0, seed=seed)
        anomaly_maps.append(Detector(make_plan(asked)).raw_map(volume, brain).raw)
    assert np.array_equal(anomaly_maps[0], anomaly_maps[1])
    assert not np.array_equal(anomaly_maps[0], anomaly_maps[2])


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].score_is_familiarity])
def test_the_sample_scan_is_not_called_unknown(method: str, slab: tuple[Volume, sitk.Image]) -> None:
    volume, brain = slab
    assert Detector(Options(method=method, device="cpu", steps=1))(volume, brain=brain).score_warning is None


def test_a_chest_film_is_looked_at_whole(tmp_path: Path) -> None:
    shadow = np.linspace(220, 60, 96, dtype=np.float32)[:, None] * np.ones((1, 80), np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(shadow.astype(np.uint8)), tmp_path / "film.png")
    detector = Detector(Options("guided", model="chest-pneumonia-guided", device="cpu", steps=2, force=True))
    result = detector(tmp_path / "film.png")
    assert result.anomaly_map.GetSize()[:2] == (80, 96)
    assert any("unlike those that the model knows" in warning for warning in result.warnings), result.warnings
