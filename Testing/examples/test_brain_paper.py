"""Several contrasts against one: what is cut, compared and said agrees with the files; options are chosen as judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

import packages
import phantom
from diffusion_anomaly.evaluation.dataset import find_pairs
from examples.papers.brain.__main__ import command_line
from examples.papers.brain.choosing import choose, parse_values
from examples.papers.brain.command import CONFIG
from examples.papers.brain.comparison import ComparisonConfig, compare, cut_slice
from Testing.training.fakes import random_slices
from Testing.training.stages import Workplace
from Testing.training.test_contrast_stages import CHANGES
from Testing.training.test_package import configure, write_scan
from training.package.config import PackageConfig
from training.trainer.configuration import ConfigurationError, read_yaml

CHANNELS = {"FLAIR": "*_flair.nii.gz", "T1": "../t1/*_t1.nii.gz"}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with FLAIR, mask and brain in one folder and T1 in another; a third lacks T1."""
    folder = tmp_path_factory.mktemp("patients")
    grid = phantom.grid((40, 48, 18), (4.0, 4.0, 7.0))
    for place in ("flair", "t1"):
        (folder / place).mkdir()
    for number, name in enumerate("abc"):
        rng = np.random.default_rng(number)
        flair = phantom.array(phantom.paint(grid))
        t1 = np.where(flair > 0, 400.0 - flair, 0.0)
        noisy = [np.where(one > 0, one + rng.normal(0, 3, one.shape), 0).astype(np.float32) for one in (flair, t1)]
        images = {
            "flair/*_flair": phantom.on_grid(noisy[0], grid),
            "t1/*_t1": phantom.on_grid(noisy[1], grid),
            "flair/*_mask": phantom.lesion_of(grid),
            "flair/*_brain": phantom.brain_of(grid),
        }
        for file, image in images.items():
            if (name, file) != ("c", "t1/*_t1"):
                sitk.WriteImage(image, str(folder / f"{file.replace('*', name)}.nii.gz"))
    return folder / "flair"


@pytest.fixture(scope="module")
def config(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    folder = tmp_path_factory.mktemp("models")
    two = packages.intensity(folder / "two", channels=list(CHANNELS), options={"side": "bright dark"})
    dark = packages.intensity(folder / "dark", options={"side": "dark"})
    runs = [
        {"label": "two contrasts", "method": "intensity", "model": str(two.path)},
        {"label": "dark", "method": "intensity", "model": str(dark.path)},
    ]
    entries = {"patients": patients, "channels": CHANNELS, "brain_pattern": "*_brain.nii.gz", "resamples": 20}
    return ComparisonConfig.model_validate({**entries, "runs": runs, "slice_runs": runs})


def rows_of(text: str, start: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith(start)
    ]


def test_the_tables_are_those_of_the_evaluations_and_go_on_where_they_were(
    config: ComparisonConfig, tmp_path: Path
) -> None:
    text = compare(config, tmp_path)
    assert (tmp_path / "wolleb-brain.md").read_text(encoding="utf-8") == text
    assert "Whole scans of 2 patients" in text and "One slice a patient of 2, " in text
    records = [tmp_path / "patients" / "evaluation.json", tmp_path / "slices" / "evaluation" / "evaluation.json"]
    compared = rows_of(text, "| two contrasts − ")
    for number, path in enumerate(records):
        written = json.loads(path.read_text(encoding="utf-8"))
        assert [row["run"] for row in written["rows"]] == ["two contrasts", "dark", "intensity"]
        precision = {
            run: [case["average_precision"] for case in written["patients"] if case["run"] == run]
            for run in ("two contrasts", "dark", "intensity")
        }
        for row, other in zip(compared[2 * number :][:2], ("dark", "intensity"), strict=True):
            gain = np.subtract(precision["two contrasts"], precision[other])
            assert row[0] == f"two contrasts − {other}"
            assert row[1].startswith(f"{gain.mean():.3f} [") and row[2] == f"{gain.min():.3f}"
            assert row[3] == f"{(gain > 0).sum()} of 2"
    before = [path.stat().st_mtime_ns for path in records]
    assert compare(config, tmp_path) == text
    assert [path.stat().st_mtime_ns for path in records] == before


def test_a_cut_is_the_slice_with_the_most_tumour_where_it_was(patients: Path, tmp_path: Path) -> None:
    (first, _) = find_pairs(patients, channels=CHANNELS, brain_pattern="*_brain.nii.gz", complete_only=True)
    mask = sitk.ReadImage(str(first.reference))
    place = int(phantom.array(mask).sum(axis=(1, 2)).argmax())
    cut = cut_slice(first, Path("nowhere"), tmp_path / "cut")
    assert list(cut.channels) == list(CHANNELS) and cut.scan == cut.channels["FLAIR"]
    for path, whole in (
        (cut.scan, first.scan),
        (cut.reference, first.reference),
        (cut.channels["T1"], first.channels["T1"]),
    ):
        image, source = sitk.ReadImage(str(path)), sitk.ReadImage(str(whole))
        assert np.array_equal(phantom.array(image), phantom.array(source)[[place]])
        assert image.GetOrigin() == pytest.approx(source.TransformIndexToPhysicalPoint((0, 0, place)))


def test_a_cut_takes_the_brain_that_was_found(patients: Path, tmp_path: Path) -> None:
    (first, _) = find_pairs(patients, channels=CHANNELS, complete_only=True)
    brain = sitk.ReadImage(str(patients / "a_brain.nii.gz"))
    (tmp_path / "brain").mkdir()
    sitk.WriteImage(brain * 0 + 1, str(tmp_path / "brain" / "a.nii.gz"))
    cut = cut_slice(first, tmp_path / "brain", tmp_path / "cut")
    assert cut.brain is not None and phantom.array(sitk.ReadImage(str(cut.brain))).all()


def test_a_slice_of_a_scan_of_one_contrast_is_cut_too(patients: Path, tmp_path: Path) -> None:
    (first, *_) = find_pairs(patients, brain_pattern="*_brain.nii.gz")
    cut = cut_slice(first, Path("nowhere"), tmp_path)
    assert not cut.channels and phantom.array(sitk.ReadImage(str(cut.scan))).shape[0] == 1


def test_the_configuration_that_ships_names_packages_that_the_command_makes() -> None:
    config = read_yaml(Path(__file__).parents[2] / CONFIG, ComparisonConfig)
    assert {Path(run.model).name for run in (*config.runs, *config.slice_runs)} == {
        "glioma-guided", "glioma-dae", "flair-guided"
    }  # fmt: skip
    assert [run.preset for run in config.slice_runs] == ["paper", None, None]


# Options


@pytest.fixture(scope="module")
def glioma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a guided package of two contrasts, barely trained, with lesions in validation."""
    folder = tmp_path_factory.mktemp("glioma")
    for number, split in enumerate(("train", "val")):
        random_slices(24, 16, number, contrasts=2).save(folder / f"{split}.npz")
    place = Workplace(folder, folder)
    for name in ("pixels", "classifier"):
        place.entries[name]["network"] |= CHANGES[name]
    assert place.command("diffusion", name="pixels") == 0 and place.command("classifier", name="classifier") == 0
    stages = {
        part: {"config": str(folder / f"{name}.yaml"), "run": str(folder / name)}
        for part, name in (("diffusion", "pixels"), ("classifier", "classifier"))
    }
    options = {"steps": 2, "level": 100}
    path = configure(place, "pixels", method="guided", stages=stages, options=options, modality="FLAIR + T1")
    prepare = yaml.safe_load((folder / "prepare.yaml").read_text(encoding="utf-8"))
    prepare |= {
        "pattern": "p*_flair.nii.gz",
        "contrast": "FLAIR",
        "other_contrasts": {"T1": {"pattern": "p*_t1.nii.gz"}},
    }
    prepare |= {"lesions": ["_flair.nii.gz", "_mask.nii.gz"], "grid": {"size": [16, 16], "spacing": 3.5}}
    (folder / "prepare.yaml").write_text(yaml.safe_dump(prepare), encoding="utf-8")
    rows = [f"p{p}_flair.nii.gz,{i},{int(i == 4)}" for p in (1, 2) for i in range(8)]
    (folder / "labels.csv").write_text("\n".join(["scan,slice,label", *rows]), encoding="utf-8")
    for number in (1, 2):
        flair = sitk.ReadImage(str(write_scan(folder / "val", f"p{number}_flair", number)))
        values = sitk.GetArrayFromImage(flair)
        lesion = np.zeros_like(values, np.uint8)
        lesion[4, 8:12, 10:16] = 1
        brighter = sitk.GetImageFromArray(values + 100.0 * lesion)
        mask = sitk.GetImageFromArray(lesion)
        for image, name in ((brighter, "flair"), (300.0 - flair, "t1"), (mask, "mask")):
            image.CopyInformation(flair)
            sitk.WriteImage(image, str(folder / "val" / f"p{number}_{name}.nii.gz"))
    return path


def test_options_are_ranked_by_what_they_find_in_validation_patients(glioma: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line(
            ["options", str(glioma), "--output", str(tmp_path), "--set", "guidance_scale=0,10",
             "--side", "bright none", "--side", "dark none", "--reference", "0.2"]
        )  # fmt: skip
    assert not ended.value.code
    rows = rows_of((tmp_path / "options.md").read_text(encoding="utf-8"), "| bright") + rows_of(
        (tmp_path / "options.md").read_text(encoding="utf-8"), "| dark"
    )
    assert sorted((row[0], row[1], row[2]) for row in rows) == [
        (side, "0.2", scale) for side in ("bright none", "dark none") for scale in ("0", "10")
    ]
    found = {(row[0], row[2]): float(row[3]) for row in rows}
    assert min(found["bright none", scale] for scale in ("0", "10")) > max(
        found["dark none", scale] for scale in ("0", "10")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["options.md"]


@pytest.mark.parametrize(
    ("sides", "setting", "message"),
    [
        (["bright none dark"], "guidance_scale=1", "3 words for 2 channels"),
        (["left"], "guidance_scale=1", "side is 'left'"),
        (["both"], "guidance_scale=1,-1", "guidance_scale is -1"),
        (["both"], "scale=1", "no option scale"),
        (["both"], "guidance_scale=much", "write it as OPTION=NUMBER,NUMBER"),
    ],
)
def test_values_that_no_package_may_have_are_refused(
    glioma: Path, tmp_path: Path, sides: list[str], setting: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose(read_yaml(glioma, PackageConfig), tmp_path, parse_values([setting]), sides, [0.0])


def test_a_package_without_guidance_is_refused(glioma: Path, tmp_path: Path) -> None:
    config = read_yaml(glioma, PackageConfig).model_copy(update={"method": "restore"})
    with pytest.raises(ConfigurationError, match="for the method guided"):
        choose(config, tmp_path, {"guidance_scale": [1.0]}, ["both"], [0.0])
