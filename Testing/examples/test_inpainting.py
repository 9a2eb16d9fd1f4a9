"""Healthy tissue hidden and filled in: the square lies in the right half, and nothing beyond it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import diffusion_anomaly as da
from examples.papers.mr.inpainting import HEIGHTS, Inpainted, draw, inpaint, square

SAMPLE = Path(__file__).parents[2] / "Resources" / "SampleData" / "open-ms-patient26-FLAIR.nii.gz"


def test_the_square_lies_in_the_middle_of_the_right_half() -> None:
    brain = np.zeros((60, 60), bool)
    brain[10:50, 5:55] = True
    hidden = square(brain)
    rows, columns = (np.flatnonzero(hidden.any(axis=axis)) for axis in (1, 0))
    assert len(rows) == len(columns) == 15
    assert abs(rows.mean() - 30) <= 1 and columns.min() > 30 and columns.max() < 55


def test_the_square_stays_in_the_brain() -> None:
    brain = np.hypot(*(np.mgrid[:40, :40] - 20.0)) < 6
    assert not (square(brain) & ~brain).any()


@pytest.fixture(scope="module")
def inpainted() -> list[Inpainted]:
    return inpaint(da.load("flair-unsupervised", device="cpu"), SAMPLE, versions=2, steps=2)


def test_only_what_was_hidden_changes(inpainted: list[Inpainted]) -> None:
    assert len(inpainted) == len(HEIGHTS)
    for one in inpainted:
        # The model's latents are 4 pixels wide, and the codec is linear in each.
        wide = np.kron(one.hidden.reshape(32, 4, 32, 4).any(axis=(1, 3)), np.ones((4, 4), bool))
        for version in one.versions:
            assert np.abs(version - one.codec)[~wide].max() < 1e-3
            assert np.abs(version - one.codec)[one.hidden].max() > 0.01
        assert one.codec_error < one.error


def test_versions_differ_inside_the_square(inpainted: list[Inpainted]) -> None:
    for one in inpainted:
        assert np.abs(one.versions[0] - one.versions[1])[one.hidden].mean() > 1e-3


def test_the_picture_has_a_row_a_slice(inpainted: list[Inpainted], tmp_path: Path) -> None:
    draw(inpainted, "credit", tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[0] > 100 * len(inpainted)
