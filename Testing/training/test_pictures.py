"""Pictures of an array file: image files, labels, and slices of whole images with classes matched by stratum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydantic import ValidationError

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import read_volume
from training.data.pictures import unpack_pictures
from training.data.preparation import PrepareConfig, prepare, strata_heights
from training.data.sampling import SliceSampler
from training.data.slice_labels import label_slices, read_labels
from training.data.slices import Slices, training_slices
from training.package.build import package
from training.package.config import PackageConfig

COUNT = 40


def arrays(folder: Path, **changes: Any) -> Path:
    """Ramps that brighten downwards, diseased every fourth, seen from two sides."""
    number = np.arange(COUNT)
    ramps = np.linspace(0, 200, 16).astype(np.uint8)[None, :, None] + number[:, None, None].astype(np.uint8)
    content: dict[str, Any] = {
        "images": np.broadcast_to(ramps, (COUNT, 16, 24)),
        "sick": (number % 4 == 0).astype(int),
        "patient": np.char.mod("p%02d", number),
        "view": np.where(number % 8 < 5, "PA", "AP"),
        "split": np.where(number < 30, "train", np.where(number < 36, "val", "test")),
    }
    np.savez(folder / "films.npz", **(content | changes))
    return folder / "films.npz"


def config(folder: Path, **changes: Any) -> PrepareConfig:
    settings = {
        "train": folder / "films" / "train",
        "val": folder / "films" / "val",
        "pattern": "*.png",
        "labels": folder / "films" / "labels.csv",
        "strata": "view",
        "region": "image",
        "grid": {"size": (12, 8)},
        "normalisation": {"kind": "percentiles", "low_percentile": 0, "high_percentile": 100, "high_value": 1.0},
        "minimum_brain_pixels": 10,
    }
    return PrepareConfig.model_validate(settings | changes)


def test_pictures_become_slices_of_the_whole_image_upright_with_their_labels(tmp_path: Path) -> None:
    unpack_pictures(arrays(tmp_path), tmp_path / "films", "sick", "patient", strata="view")
    assert len(list((tmp_path / "films" / "test").glob("*.png"))) == 4
    prepare(config(tmp_path), tmp_path / "out")
    slices = Slices.load(tmp_path / "out" / "train.npz")
    assert slices.images.shape == (30, 1, 8, 12)
    assert slices.brain.all()
    assert (np.diff(slices.images.astype(int), axis=2) > 0).all()  # darker above, as in the picture
    number = np.array([int(name[-8:-4]) for name in slices.scan])
    assert (slices.label == (number % 4 == 0)).all()


def test_both_classes_are_drawn_alike_in_each_stratum(tmp_path: Path) -> None:
    unpack_pictures(arrays(tmp_path), tmp_path / "films", "sick", "patient", strata="view")
    prepare(config(tmp_path), tmp_path / "out")
    slices = training_slices(tmp_path / "out", halves=False)
    # Every healthy picture that is drawn is replaced by its stratum as brightness.
    slices.images[:] = (255 * slices.height)[:, None, None, None].astype(np.uint8)
    drawn = SliceSampler(slices, (0, 1), None).draw(np.random.default_rng(0), 4000)
    view = drawn["image"].mean((1, 2, 3)).numpy()
    shares = [float((view[drawn["label"].numpy() == label] > 0).mean()) for label in (0, 1)]
    assert abs(shares[0] - shares[1]) < 0.05
    every = [float((slices.height[slices.label == label] > 0.5).mean()) for label in (0, 1)]
    assert abs(every[0] - every[1]) > 0.1  # they differ in what there is


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sick": np.full(COUNT, 2)}, "other values than 0 and 1"),
        ({"images": np.zeros((COUNT, 4, 4, 3), np.uint8)}, "Expected images"),
        ({"patient": np.full(COUNT, "p")}, "is in train and in val"),
        ({"split": np.full(3, "train")}, "N of all else"),
    ],
)
def test_arrays_that_are_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpack_pictures(arrays(tmp_path, **changes), tmp_path / "films", "sick", "patient")
    assert not (tmp_path / "films").exists()


def test_an_entry_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks effusion"):
        unpack_pictures(arrays(tmp_path), tmp_path / "films", "effusion", "patient")


def test_a_grid_without_spacing_is_for_whole_images_alone(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="needs a spacing"):
        config(tmp_path, region="brain")


def test_too_many_strata_are_refused() -> None:
    with pytest.raises(InputError, match="11 strata"):
        strata_heights(np.array(["0"]), {str(n): str(n) for n in range(11)})


def test_a_picture_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    unpack_pictures(arrays(tmp_path), tmp_path / "films", "sick", "patient")
    stored = np.load(tmp_path / "films.npz")["images"][0]
    values = read_volume(tmp_path / "films" / "train" / "p00-0000.png").image[:, :, 0]
    assert np.array_equal(np.array([[values[x, y] for x in range(24)] for y in range(16)]), stored)


def test_a_table_of_another_set_gives_labels_with_a_margin(tmp_path: Path) -> None:
    rows = [f"a,{number},{int(number == 4)}" for number in range(9)] + ["b,0,0"]
    (tmp_path / "slices.csv").write_text("\n".join(["patient,slice,label", *rows]), encoding="utf-8")
    label_slices(tmp_path / "slices.csv", tmp_path / "labels.csv", 2, "label", "_ct.nii.gz")
    labels = read_labels(tmp_path / "labels.csv")
    assert [labels["a_ct.nii.gz", number] for number in range(9)] == [0, 0, 0, -1, 1, -1, 0, 0, 0]
    assert labels["b_ct.nii.gz", 0] == 0


def test_a_package_of_pictures_keeps_false_alarms_below_a_share_of_the_image(tmp_path: Path) -> None:
    unpack_pictures(arrays(tmp_path), tmp_path / "films", "sick", "patient", strata="view")
    prepared = config(tmp_path, normalisation={"kind": "percentiles", "low_percentile": 0, "high_percentile": 100})
    (tmp_path / "prepare.yaml").write_text(prepared.model_dump_json(), encoding="utf-8")
    texts = dict.fromkeys(
        ("title", "task", "description", "authors", "copyright", "license", "data_license", "data_source"), "text"
    )
    (tmp_path / "LICENSE").write_text("text", encoding="utf-8")
    made = PackageConfig.model_validate(
        {
            "name": "films",
            "version": "0.1.0",
            "method": "intensity",
            "modality": "X-ray",
            "stages": {},
            "prepare": tmp_path / "prepare.yaml",
            "options": {"reference": 0.3},
            "false_alarm_share": 0.3,
            "texts": {**texts, "intended_use": "tests", "license_file": tmp_path / "LICENSE"},
        }
    )
    bundle = package(made, tmp_path / "models")
    assert (bundle.region, bundle.grid.spacing) == ("image", None)
    assert "30.0% of the image" in bundle.anomaly["threshold"]["source"]
    detector = Detector(Options(method="intensity"), bundle=bundle)
    appearance = bundle.anomaly["appearance"]
    mean = np.array(appearance["mean"])  # all films are the same ramp downwards, once normalised
    assert np.ptp(mean, axis=1).max() < 0.01
    np.testing.assert_allclose(mean[::2, 0], 0.5 * (np.arange(8) + 0.5) / 8, atol=0.035)  # white is 0.5 here
    assert appearance["lower"] > 0.99
    healthy = [path for path in sorted((tmp_path / "films" / "val").glob("*.png")) if int(path.stem[-4:]) % 4]
    maps = [sitk.GetArrayFromImage(detector(path).anomaly_map) for path in healthy]
    shares = [float((found >= detector.plan.threshold).mean()) for found in maps]
    assert 0 < float(np.median(shares)) <= 0.3
