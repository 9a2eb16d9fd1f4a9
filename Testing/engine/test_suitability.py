"""Brain masks that no brain has, painted on scans that hold a head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.input_checks import mask_warnings, scale_warnings
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.io.volume import Volume, write_like
from diffusion_anomaly.preprocessing.intensity import ModeNormalisation
from diffusion_anomaly.worker import protocol as job

ADULT = np.array([65.0, 85.0, 65.0])  # radii in mm; 1504 ml


def ellipsoid(grid: sitk.Image, radii: np.ndarray, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> sitk.Image:
    inside = phantom.inside(phantom.points(grid), phantom.HEAD_CENTRE + shift, radii)
    return phantom.on_grid(inside.astype(np.uint8), grid)


@pytest.fixture(scope="module")
def grid() -> sitk.Image:
    """240 x 280 x 220 mm around the head."""
    return phantom.grid((60, 70, 44), (4.0, 4.0, 5.0))


def warnings_of(brain: sitk.Image, scan: sitk.Image | None = None) -> list[str]:
    return list(mask_warnings(sitk.Cast(brain, sitk.sitkFloat32) if scan is None else scan, brain))


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (0.74, ["holds only 609 ml"]),
        (0.8, []),
        (1.0, []),
        (1.08, []),
        (1.2, ["holds 2599 ml"]),
    ],
)
def test_a_mask_of_no_brains_size_is_doubted(grid: sitk.Image, scale: float, said: list[str]) -> None:
    found = warnings_of(ellipsoid(grid, ADULT * scale))
    assert len(found) == len(said)
    for text, expected in zip(found, said, strict=True):
        volume = float(expected.split()[-2])
        stated = float(text.split(" ml;")[0].split()[-1])
        assert stated == pytest.approx(volume, rel=0.01)
        assert expected.rsplit(" ", 2)[0] in text
        assert "an adult's brain has 900 to 1900 ml" in text
        assert "Look at the brain mask" in text and "--mask or in the panel" in text


CUTS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "top": ((0, 0, 0), (0, 0, 16)),
    "bottom": ((0, 0, 16), (0, 0, 0)),
    "left": ((0, 0, 0), (20, 0, 0)),
    "right": ((20, 0, 0), (0, 0, 0)),
    "front": ((0, 20, 0), (0, 0, 0)),
    "back": ((0, 0, 0), (0, 20, 0)),
}


@pytest.mark.parametrize("side", CUTS)
def test_a_mask_that_the_field_of_view_cuts_names_the_side_whichever_way_axes_run(grid: sitk.Image, side: str) -> None:
    brain = sitk.Crop(ellipsoid(grid, ADULT), *CUTS[side])
    for turned in list(phantom.orientations(brain))[::7]:
        (text,) = warnings_of(turned)
        assert f"cuts the brain mask at the {side}, where it covers" in text
        assert "folded" not in text and " and at the " not in text


def test_a_small_mask_in_a_partial_field_of_view_is_cut_rather_than_small(grid: sitk.Image) -> None:
    slab = sitk.Crop(ellipsoid(grid, ADULT), (0, 0, 20), (0, 0, 20))
    (text,) = warnings_of(slab)
    assert "at the bottom, where it covers" in text and "and at the top, where it covers" in text
    assert "ml are in view" in text and "adult" not in text


def test_a_brain_that_just_reaches_the_border_is_not_cut(grid: sitk.Image) -> None:
    brain = ellipsoid(grid, ADULT)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(brain)
    box = shape.GetBoundingBox(1)
    assert warnings_of(sitk.RegionOfInterest(brain, box[3:], box[:3])) == []


def test_tissue_at_the_border_opposite_a_cut_may_be_folded_over(grid: sitk.Image) -> None:
    brain = sitk.Crop(ellipsoid(grid, ADULT), (0, 20, 0), (0, 0, 0))
    head = np.where(sitk.GetArrayFromImage(brain) > 0, 100.0, 0.0).astype(np.float32)
    assert "folded" not in warnings_of(brain, phantom.on_grid(head, brain))[0]
    head[10:35, -1, 15:45] = 80.0
    assert "opposite the front has tissue too" in warnings_of(brain, phantom.on_grid(head, brain))[0]


def test_a_single_slice_is_not_a_cut_brain(grid: sitk.Image) -> None:
    assert warnings_of(ellipsoid(grid, ADULT)[:, :, 20:21]) == []


# --- Where they are read


@pytest.fixture
def doubtful(flair_like_volume: Volume, flair_like_grid: sitk.Image) -> sitk.Image:
    return ellipsoid(flair_like_grid, np.array([40.0, 50.0, 40.0]))


def test_doubt_is_in_the_report_and_in_provenance(
    flair_like_volume: Volume, doubtful: sitk.Image, tmp_path: Path
) -> None:
    result = Detector(Options("intensity"))(flair_like_volume, brain=doubtful)
    (text,) = result.warnings
    assert text.startswith("The brain mask holds only")
    files = result.save(tmp_path)
    assert json.loads(files["provenance"].read_text(encoding="utf-8"))["warnings"] == [text]
    page = files["report"].read_text(encoding="utf-8")
    assert text.replace("'", "&#39;") in page


def test_doubt_is_an_event_of_the_worker(flair_like_volume: Volume, doubtful: sitk.Image, tmp_path: Path) -> None:
    write_like(flair_like_volume.image, flair_like_volume, tmp_path / "scan.nii.gz", dtype=np.float32)
    write_like(doubtful, flair_like_volume, tmp_path / "brain.nii.gz", dtype=np.uint8)
    asked = {
        "schema_version": 1,
        "input": "scan.nii.gz",
        "output": "out",
        "method": "intensity",
        "model": None,
        "mask": "brain.nii.gz",
        "options": {"device": "cpu"},
    }
    (tmp_path / "job.json").write_text(json.dumps(asked), encoding="utf-8")
    path = os.pathsep.join([str(Path(job.__file__).parents[2]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_anomaly.worker", str(tmp_path)],
        stdin=subprocess.PIPE,  # open until the worker is done: its end would mean to stop
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:
        assert process.stdout is not None
        events = [job.decode(line) for line in process.stdout]
    (said,) = (e.message for e in events if isinstance(e, job.Warned) and not e.message.startswith("The scan "))
    assert said.startswith("The brain mask holds only")
    assert isinstance(events[-1], job.Result)


@pytest.mark.parametrize(("fluid", "warned"), [(25.0, False), (80.0, True)])
def test_a_mask_without_fluid_is_named(fluid: float, warned: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(100.0, 5.0, 9000), rng.normal(fluid, 3.0, 1000)])
    found = list(scale_warnings(values, ModeNormalisation().fit(values)))
    assert bool(found) == warned
    assert all("hardly any fluid" in text and "--mask" in text for text in found)
    # Where values lie around 0, as after a z-score, shares of them say nothing.
    shifted = values - values.mean()
    assert not list(scale_warnings(shifted, ModeNormalisation().fit(shifted)))
