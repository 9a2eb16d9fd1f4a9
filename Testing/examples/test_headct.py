"""The experiment on head CT: which patients are healthy, what is run, and both measurements on painted heads."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.errors import InputError
from examples.papers import headct
from training.trainer.configuration import ConfigurationError

sys.path.append(str(Path(__file__).parents[1] / "engine"))
import packages
from test_skull import SPACING, head_ct


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Two heads, the second bleeds in three slices; and their labels."""
    (tmp_path / "test").mkdir()
    rows: list[list[object]] = [["scan", "slice", "label"]]
    for number in range(2):
        values, _ = head_ct()
        values += np.random.default_rng(number).normal(0.0, 2.0, values.shape).astype(np.float32)
        if number:
            values[9:12, 60:90, 100:130] = 75.0
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, str(tmp_path / "test" / f"{number}_ct.nii.gz"))
        rows += [[f"{number}_ct.nii.gz", k, int(number and 9 <= k < 12)] for k in range(20)]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def test_only_patients_without_any_diseased_slice_are_healthy(patients: Path) -> None:
    found = headct.healthy_scans(patients / "test", patients / "labels.csv")
    assert [path.name for path in found] == ["0_ct.nii.gz"]
    (patients / "test" / "0_ct.nii.gz").unlink()
    with pytest.raises(InputError, match="healthy"):
        headct.healthy_scans(patients / "test", patients / "labels.csv")


def test_labels_and_pasted_lesions_are_measured(patients: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = packages.intensity(
        patients / "ct",
        modality="CT",
        region="intracranial",
        normalisation={"kind": "window", "low": 0, "high": 80},
        options={"reference": 0.5},
        grid={"size": [96, 96], "spacing": 2.0},
    )
    headct.measure(patients / "test", patients / "labels.csv", {"intensity": model.path}, patients / "out")
    printed = capsys.readouterr().out
    assert "AUROC of patients, highest 1 %" in printed and "| intensity | 1.000" in printed
    names = {path.name for path in (patients / "out" / "scans").iterdir()}
    assert names == {f"0-{kind}_{what}.nii.gz" for kind in ("inside", "rim") for what in ("ct", "mask")}
    with (patients / "out" / "pasted" / "evaluation_patients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"intensity"} and len(rows) == 2
    found = {row["patient"]: float(row["average_precision"]) for row in rows}
    assert found["0-inside"] > 0.3 and found["0-rim"] > 0.02, found


def test_each_method_has_its_trainings_and_package_and_others_are_refused(tmp_path: Path) -> None:
    commands = [" ".join(step.arguments[:3]) for step in headct.steps(["intensity"])]
    assert not any("restore" in command or "diffusion" in command for command in commands)
    made = [step.makes.as_posix() for step in headct.steps()]
    assert made[-len(headct.METHODS) :] == [f"runs/packages/headct-{method}" for method in headct.METHODS]
    with pytest.raises(ConfigurationError, match="expected val or test"):
        headct.run(tmp_path, "train")
    with pytest.raises(ConfigurationError, match="expected some of"):
        headct.run(tmp_path, methods=["guided"])


def test_the_configurations_can_be_read() -> None:
    from training.package.config import PackageConfig
    from training.trainer.configuration import read_yaml

    for method in headct.METHODS:
        config = read_yaml(headct.CONFIGS / f"package-headct-{method}.yaml", PackageConfig)
        assert config.name == f"headct-{method}" and config.texts.license == "CC-BY-4.0"
