"""Agreement with several raters: pairs, numbers, files, and masks that are missing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation.dataset import find_pairs
from diffusion_anomaly.evaluation.evaluate import RunSpec, run
from diffusion_anomaly.evaluation.metrics import resamples
from diffusion_anomaly.evaluation.raters import agreements, rater_rows


def boxes(*corners: int) -> np.ndarray:
    """Boxes of 8 voxels that begin at these places along the diagonal."""
    mask = np.zeros((12, 12, 12), bool)
    for corner in corners:
        mask[corner : corner + 2, corner : corner + 2, corner : corner + 2] = True
    return mask


def test_everybody_is_compared_with_every_other_rater() -> None:
    raters = {"first": boxes(0, 5), "second": boxes(0)}
    found = list(agreements("a", {"run": boxes(5, 9)}, raters, 0.5))
    assert [(one.who, one.rater, one.dice) for one in found] == [
        ("run", "first", 0.5),
        ("second", "first", pytest.approx(2 / 3)),
        ("run", "second", 0.0),
        ("first", "second", pytest.approx(2 / 3)),
    ]
    row = rater_rows(found, resamples(1, 10, 0))[1]
    assert (row["mask"], row["lesions"], row["lesion_recall"]) == ("second", 2, 0.5)


def test_recall_counts_lesions_of_all_patients_and_a_rater_without_any_has_no_dice() -> None:
    found = [
        *agreements("a", {"run": boxes(0, 5)}, {"first": boxes(0, 5, 9)}, 1.0),
        *agreements("b", {"run": boxes(0)}, {"first": boxes()}, 1.0),
    ]
    (row,) = rater_rows(found, resamples(2, 20, 0))
    assert row["lesion_recall"] == pytest.approx(2 / 3)
    assert row["dice"] == pytest.approx(0.8)


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """A head with a bright box, marked by two raters and by their consensus."""
    folder = tmp_path / "scans"
    folder.mkdir()
    z, y, x = np.mgrid[:12, :40, :40]
    inside = ((y - 20) ** 2 + (x - 20) ** 2 < 15**2) & (z > 0)
    lesion = np.zeros(inside.shape, bool)
    lesion[4:8, 14:20, 14:20] = True
    wide = np.roll(lesion, 1, axis=2) | lesion
    noise = np.random.default_rng(0).normal(0, 3, inside.shape)
    arrays = {
        "flair": np.where(inside, 100 + 120 * lesion + noise, 0).astype(np.float32),
        "brain": inside.astype(np.uint8),
        "mask": lesion.astype(np.uint8),
        "mask1": lesion.astype(np.uint8),
        "mask2": wide.astype(np.uint8),
    }
    for name, array in arrays.items():
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((5.0, 5.0, 5.0))
        sitk.WriteImage(image, str(folder / f"a_{name}.nii.gz"))
    return folder


PATTERNS = {"first": "*_mask1.nii.gz", "second": "*_mask2.nii.gz"}


def test_evaluate_writes_agreement_with_each_rater(rated: Path, tmp_path: Path) -> None:
    pairs = find_pairs(rated, brain_pattern="*_brain.nii.gz", raters=PATTERNS)
    table = run(pairs, [RunSpec("intensity")], tmp_path / "out", resamples=5)
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))["raters"]
    assert [(row["mask"], row["rater"]) for row in rows] == [
        ("intensity", "first"),
        ("second", "first"),
        ("intensity", "second"),
        ("first", "second"),
    ]
    assert rows[0]["dice"] == pytest.approx(table.rows[0]["dice"])
    assert rows[1]["dice"] == pytest.approx(2 * 144 / (144 + 168)) == pytest.approx(rows[3]["dice"])
    with (tmp_path / "out" / "evaluation_raters.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "| second | first | 1 | 0.923 | 1.000 |" in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")


def test_raters_are_listed_in_a_table_of_scans_too(rated: Path) -> None:
    table = rated / "table.csv"
    table.write_text(
        "scan,reference,rater_first,rater_second\na_flair.nii.gz,a_mask.nii.gz,a_mask1.nii.gz,a_mask2.nii.gz\n",
        encoding="utf-8",
    )
    (pair,) = find_pairs(table)
    assert pair.raters == {"first": rated / "a_mask1.nii.gz", "second": rated / "a_mask2.nii.gz"}


def test_a_mask_of_a_rater_that_is_not_there_is_named(rated: Path) -> None:
    (rated / "a_mask2.nii.gz").unlink()
    with pytest.raises(InputError, match="a_mask2"):
        find_pairs(rated, raters=PATTERNS)


def test_every_scan_needs_every_rater(rated: Path, tmp_path: Path) -> None:
    table = rated / "table.csv"
    row = "a_flair.nii.gz,a_mask.nii.gz"
    table.write_text(f"name,scan,reference,rater_first\na,{row},a_mask1.nii.gz\nb,{row},\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 3, has nothing in rater_first"):
        find_pairs(table)
    (pair,) = find_pairs(rated, raters=PATTERNS)
    with pytest.raises(InputError, match="lack a rater"):
        run([pair, replace(pair, name="b", raters={})], [RunSpec("intensity")], tmp_path / "out")


@pytest.mark.parametrize("patterns", [{"raters": PATTERNS}, {"channels": {"flair": "*_flair.nii.gz"}}])
def test_a_table_names_its_own_raters_and_contrasts(rated: Path, patterns: dict[str, dict[str, str]]) -> None:
    table = rated / "table.csv"
    table.write_text("scan,reference\na_flair.nii.gz,a_mask.nii.gz\n", encoding="utf-8")
    with pytest.raises(InputError, match="is a table") as refused:
        find_pairs(table, **patterns)
    assert f"{next(iter(patterns)).removesuffix('s')}_NAME" in str(refused.value.hint)
