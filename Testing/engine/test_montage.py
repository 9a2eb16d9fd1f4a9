"""Which patients are shown, and that each panel shows what its heading says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from matplotlib.image import imread

import phantom
from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.montage import COLUMNS, Files, choose_patients, writer
from diffusion_anomaly.evaluation.reliability import SCORES, FreeSlices
from diffusion_anomaly.evaluation.statistics import Case
from diffusion_anomaly.results.rendering import CONTOUR


def case(name: str, precision: float) -> Case:
    return Case(
        name=name,
        reference_ml=1.0,
        outside_brain_ml=0.0,
        predicted_ml=1.0,
        dice=0.5,
        average_precision=precision,
        average_precision_in_brain=precision,
        otsu_dice=0.5,
        voxel_auroc=0.5,
        outside_brain_voxels=0,
        lesions=metrics.LesionMatch((1.0,), (True,), 0),
        free=FreeSlices(name, 0, 0.0, 1000.0, np.zeros(len(SCORES)), 0.0),
        score=0.0,
        score_warning=False,
        seconds=1.0,
        brain_given=True,
        input_sha256="",
        lesion_scores=np.array([1.0, 4.0]),
        slice_scores=np.array([1.0]),
        slice_has_lesion=np.array([True]),
    )


@pytest.mark.parametrize(
    ("precisions", "shown"),
    [
        ({"a": 0.2, "b": 0.9, "c": 0.4, "d": 0.5, "e": float("nan")}, ["best b", "median c", "worst a"]),
        ({"a": 0.2, "b": 0.9}, ["best b", "worst a"]),
        ({"a": 0.2}, ["the only patient a"]),
        ({"a": float("nan")}, []),
    ],
)
def test_best_median_and_worst_by_average_precision_without_showing_one_twice(
    precisions: dict[str, float], shown: list[str]
) -> None:
    picks = choose_patients([case(name, value) for name, value in precisions.items()])
    assert [f"{pick.title} {pick.case.name}" for pick in picks] == shown


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A head whose scores are its lesion."""
    empty = phantom.grid((40, 48, 20), (4.0, 4.0, 6.0))
    lesion = phantom.lesion_of(empty)
    images = {
        "scan": phantom.paint(empty),
        "anomaly_map": sitk.Cast(lesion, sitk.sitkFloat32) * 4,
        "brain": phantom.brain_of(empty),
        "reference": lesion,
    }
    for name, image in images.items():
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    return Files(**{name: tmp_path / f"{name}.nii.gz" for name in images})


def coloured(path: Path) -> list[int]:
    """How many pixels of each column have the outline's colour, rather than grey; the anomaly map scale below cut
    off.
    """
    pixels = imread(path)[..., :3]
    pixels = pixels[: int(0.8 * len(pixels))]
    hue = np.array(to_rgb(CONTOUR))  # no red
    like = (pixels[..., 2] - pixels[..., 0] > 0.5) & (np.abs(pixels[..., 1] - pixels[..., 2]) < hue[2] - hue[1] + 0.15)
    return [int(part.sum()) for part in np.array_split(like, len(COLUMNS), axis=1)]


def test_scan_prediction_and_reference_are_each_in_their_column(files: Files, tmp_path: Path) -> None:
    (draw,) = writer("x", [case("a", 0.5)], {"a": files}, 2.0, 0.05).values()
    draw(tmp_path / "found.png")
    scan, anomaly_map, mask, reference = coloured(tmp_path / "found.png")
    assert scan == 0
    assert anomaly_map > 50 and reference > 50
    assert mask > 2 * reference  # an area, not an outline


def test_a_lesion_that_was_missed_is_outlined_in_the_reference_alone(files: Files, tmp_path: Path) -> None:
    (draw,) = writer("x", [case("a", 0.5)], {"a": files}, 5.0, 0.05).values()
    draw(tmp_path / "missed.png")
    scan, anomaly_map, mask, reference = coloured(tmp_path / "missed.png")
    assert (scan, anomaly_map, mask) == (0, 0, 0)
    assert reference > 50


@pytest.mark.parametrize(("margin", "is_found"), [(2.0, True), (2.1, False)])
def test_a_finding_that_hardly_exceeds_the_threshold_is_not_drawn(
    files: Files, tmp_path: Path, margin: float, is_found: bool
) -> None:
    (draw,) = writer("x", [case("a", 0.5)], {"a": files}, 2.0, 0.05, margin).values()
    draw(tmp_path / "found.png")
    assert bool(coloured(tmp_path / "found.png")[2]) == is_found


def test_a_patient_whose_lesion_lies_outside_the_brain_mask_is_shown(files: Files, tmp_path: Path) -> None:
    outside = dataclasses.replace(case("a", 0.0), lesion_scores=np.array([]))
    (draw,) = writer("x", [outside], {"a": files}, 2.0, 0.05).values()
    draw(tmp_path / "outside.png")
    assert (tmp_path / "outside.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_a_row_a_patient_and_a_file_a_run(files: Files, tmp_path: Path) -> None:
    cases = [case(name, value) for name, value in (("a", 0.1), ("b", 0.5), ("c", 0.9))]
    named = {one.name: files for one in cases}
    heights = []
    for chosen in (cases[:1], cases):
        ((name, draw),) = writer("guided_(other)", chosen, named, 2.0, 0.05).items()
        assert name == "montage-guided_(other).png"
        draw(tmp_path / name)
        heights.append(len(imread(tmp_path / name)))
    assert 2.2 * heights[0] < heights[1] < 3 * heights[0]


def test_nothing_is_drawn_where_no_patient_has_a_reference(files: Files) -> None:
    assert writer("x", [dataclasses.replace(case("a", float("nan")), reference_ml=0.0)], {"a": files}, 2.0, 0.05) == {}
