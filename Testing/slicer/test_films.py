"""A film as a volume of one slice in the scene: its findings have areas, and keep them at another threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import mrmlscene
import packages
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.io.sources import read
from DiffusionAnomalyLib.scene import attributes, findingsTable, results, volumes, wording
from DiffusionAnomalyLib.scene.results import Place, Wanted

SHAPE = (1, 60, 50)


@pytest.mark.parametrize(("spacing", "unit"), [((0.5, 0.5, 1.0), "mm²"), ((1.0, 1.0, 1.0), "pixels")])
def test_findings_of_a_film_have_areas(
    scene: Any, tmp_path: Path, spacing: tuple[float, float, float], unit: str
) -> None:
    values = np.random.default_rng(0).normal(80, 2, SHAPE).astype(np.float32)
    values[0, 30:40, 10:20] = 200
    film = sitk.GetImageFromArray(values)
    film.SetSpacing(spacing)
    node = mrmlscene.addScan(scene, film, tmp_path)
    bundle = packages.intensity(
        tmp_path / "films",
        region="image",
        orientation="any",
        grid={"size": [48, 56]},
        normalisation={
            "kind": "percentiles",
            "low_percentile": 1,
            "high_percentile": 90,
            "high_value": 0.5,
            "clip_max": 1,
        },
    )
    found = Detector(Options(method="intensity"), bundle=bundle)(read(volumes.imageOf(node)))
    files = found.save(tmp_path / "out")
    shown = results.loadResults(scene, Place.of(node), files, Wanted())
    live = results.liveThresholdOf(shown)
    assert live.unit == unit
    (finding,) = live.at(shown.threshold, shown.minVolumeMl).findings
    assert finding.size == found.findings[0].size > 0
    assert findingsTable.inWords(finding, shown.anomalyMap) == "column 14, row 35"  # of columns 10 to 19, rows 30 to 39
    assert finding.centroid_pixel == pytest.approx(found.findings[0].centroid_pixel)
    size = f"{finding.size:.0f} pixels" if unit == "pixels" else f"{finding.size:.1f} mm²"
    assert f"1 finding of {size}, " in findingsTable.summary([finding], live.unit)
    assert "healthy pixels" in wording.score(shown.threshold, {}, live.unit)
    assert shown.table.GetColumnUnitLabel(findingsTable.VOLUME) == unit
    assert attributes.isPicture(shown.anomalyMap)
    told = wording.wholeImage(attributes.document(shown.anomalyMap))
    assert told.startswith("The whole picture: mean difference to ordinary tissue ")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, ""),
        ({"score": {"value": None, "title": "mean"}}, ""),
        (
            {"method": "restore", "score": {"value": 0.12345, "title": "mean difference", "healthy_range": None}},
            "",
        ),
        (
            {
                "method": "guided",
                "options": {"min_area": 25.0},
                "score": {"value": -2.5, "title": "classifier's log-odds of disease", "healthy_range": None},
            },
            "The whole picture: classifier's log-odds of disease -2.5; above 0, the classifier finds disease more "
            "likely than not.",
        ),
        (
            {
                "method": "unsupervised",
                "score": {"value": 9.0, "title": "mean KL divergence", "healthy_range": {"mean": 4.0, "upper": 6.0}},
            },
            "The whole scan, median of its slices: mean KL divergence 9; scans that the model knows have 2 to 6.",
        ),
    ],
)
def test_the_score_of_the_whole_image_is_told_in_words(document: dict[str, Any], expected: str) -> None:
    assert wording.wholeImage(document) == expected
