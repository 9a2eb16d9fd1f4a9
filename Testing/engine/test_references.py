"""What an evaluation says of references that cannot be true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.evaluation.references import MOST_OF_BRAIN, MOST_OUTSIDE, reference_warnings


def made(kind: str, lesion: np.ndarray, brain: np.ndarray) -> np.ndarray:
    return {
        "lesion": lesion,
        "empty": np.zeros_like(lesion),
        "brain": brain,
        "healthy tissue": brain & ~lesion,
        "flipped": np.roll(brain, 14, axis=2) & ~brain,
    }[kind]


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (("lesion", "lesion"), []),
        (("lesion", "empty"), []),  # a healthy one among patients
        (("empty", "empty"), ["No reference marks any voxel"]),
        (("lesion", "brain"), ["b: the reference marks 100% of the brain"]),
        (("healthy tissue", "lesion"), ["a: the reference marks 9"]),
        (("flipped", "flipped"), ["a: 100% of the reference lies outside", "b: 100% of the reference lies outside"]),
    ],
)
def test_references_that_cannot_be_true_are_told_and_kept(
    kinds: tuple[str, str], says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = phantom.grid((28, 34, 26), (5.0, 5.0, 5.0))
    brain, lesion = (sitk.GetArrayFromImage(of(empty)) != 0 for of in (phantom.brain_of, phantom.lesion_of))
    scan = sitk.GetArrayFromImage(phantom.paint(empty)) + np.random.default_rng(0).normal(0, 3, brain.shape)
    for name, kind in zip("ab", kinds, strict=True):
        reference = made(kind, lesion, brain)
        for end, values in (("flair", scan.astype(np.float32)), ("mask", reference), ("brain", brain)):
            image = phantom.on_grid(values.astype(np.uint8) if values.dtype == bool else values, empty)
            sitk.WriteImage(image, str(tmp_path / f"{name}_{end}.nii.gz"))
    out = tmp_path / "out"
    arguments = ["--run", "intensity", "--brain-pattern", "*_brain.nii.gz", "--device", "cpu", "-o", str(out)]
    assert cli.main(["evaluate", str(tmp_path), *arguments]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    kept = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["warnings"]
    assert [warning.startswith(start) for warning, start in zip(kept, says, strict=True)] == [True] * len(says)
    assert len(warned) == len(says)
    assert all(warning in (out / "evaluation.md").read_text(encoding="utf-8") for warning in kept)


@pytest.mark.parametrize("more", [0, 1])
def test_a_reference_is_doubted_beyond_the_bounds_alone(more: int) -> None:
    brain = np.zeros((1, 20, 20), bool)
    brain[:, :10] = True
    half, outside = (np.zeros_like(brain) for _ in range(2))
    half.ravel()[: int(MOST_OF_BRAIN * 200) + more] = True
    outside.ravel()[: 80 - more] = True
    outside.ravel()[-(20 + more) :] = True
    assert outside.sum() * MOST_OUTSIDE == 20
    assert len(list(reference_warnings([("a", half, brain), ("b", outside, brain)]))) == 2 * more
