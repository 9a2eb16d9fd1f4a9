"""The scan as the model would have it: on the scan's grid, in its units, and untouched outside of the brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import packages
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.preprocessing.intensity import IntensityScale


def test_normalised_intensities_come_back_in_the_scans_units() -> None:
    scale = IntensityScale(40.0, 240.0, 0.5, 1.0)
    raw = np.array([[40.0, 100.0, 240.0, 440.0]])
    there = scale(raw, np.ones(raw.shape, dtype=bool))
    assert scale.inverse(there) == pytest.approx(raw, rel=1e-6)


@pytest.mark.parametrize("method", ["guided", "unsupervised"])
def test_the_healed_scan_is_the_scan_outside_the_brain_and_keeps_its_grid(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image, method: str
) -> None:
    model = getattr(packages, method)(tmp_path / "tiny").path
    options = Options(method, model=str(model), device="cpu", steps=1, keep_reconstruction=True)
    result = Detector(options)(flair_like_volume, brain=flair_like_brain)
    scan = sitk.GetArrayFromImage(flair_like_volume.image)
    inside = sitk.GetArrayFromImage(flair_like_brain) != 0
    assert result.reconstruction is not None and list(result.reconstruction) == ["FLAIR"]
    reconstruction = result.reconstruction["FLAIR"]
    healed = sitk.GetArrayFromImage(reconstruction)
    assert np.array_equal(healed[~inside], scan[~inside].astype(np.float32))
    changed = inside & (healed != scan)
    assert changed.sum() > 0.9 * inside.sum()
    low, high = np.percentile(scan[inside], (5, 75))  # the package's normalisation: these become 0 and 0.5 of [0, 1]
    assert low - 0.01 <= healed[changed].min() and healed[changed].max() <= low + 2 * (high - low) + 0.01
    assert reconstruction.GetDirection() == flair_like_volume.image.GetDirection()
    assert reconstruction.GetOrigin() == flair_like_volume.image.GetOrigin()

    files = result.save(tmp_path / "results")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(files["healed"]))), healed)


def test_nothing_is_healed_unless_it_is_asked_for_or_where_there_is_nothing_to_heal(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    model = str(packages.guided(tmp_path / "tiny").path)
    plain = Detector(Options("guided", model=model, device="cpu", steps=1))(flair_like_volume, brain=flair_like_brain)
    baseline = Detector(Options("intensity", device="cpu", keep_reconstruction=True))(
        flair_like_volume, brain=flair_like_brain
    )
    assert plain.reconstruction is None and baseline.reconstruction is None
    assert "healed" not in plain.save(tmp_path / "results")
