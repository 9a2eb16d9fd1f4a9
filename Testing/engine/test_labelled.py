"""Evaluation by labels of pictures and slices: what is told apart, and tables that do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import packages
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation.labelled import find_labelled, run_labelled
from diffusion_anomaly.evaluation.runs import RunSpec
from test_films import PERCENTILES
from test_skull import SPACING, head_ct

COUNT = 12


def write_table(path: Path, rows: list[list[object]], columns: str = "scan,slice,label,patient") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return path


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Twelve films, every third with a bright square; and their labels."""
    draw = np.random.default_rng(0)
    (tmp_path / "films").mkdir()
    rows: list[list[object]] = []
    for number in range(COUNT):
        values = draw.normal(80, 3, (40, 40)) + np.linspace(0, 30, 40)
        if number % 3 == 0:
            values[10:20, 10:20] += 60
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "films" / f"{number:02d}.png")
        rows.append([f"{number:02d}.png", 0, int(number % 3 == 0), f"p{number}"])
    write_table(tmp_path / "labels.csv", [*rows, ["elsewhere.png", 0, 1, "x"]])
    return tmp_path


def film_model(folder: Path) -> Path:
    settings = {"region": "image", "orientation": "any", "grid": {"size": [40, 40]}, "modality": "X-ray"}
    return packages.intensity(
        folder / "model", **settings, normalisation={**PERCENTILES, "high_percentile": 80, "high_value": 0.5}
    ).path


def test_pictures_with_something_in_them_are_told_from_those_without(films: Path) -> None:
    scans = find_labelled(films / "films", films / "labels.csv")
    assert len(scans) == COUNT
    spec = RunSpec("intensity", str(film_model(films)), label="ours")
    table = run_labelled(scans, [spec], films / "out", "cpu", resamples=50, steps=4)  # of which it has none
    (row,) = table.rows
    assert row["auroc.picture.highest_1"] == 1.0
    assert row["diseased"] == 4 and row["slices"] == COUNT
    assert row["auroc.picture.mean_low"] <= row["auroc.picture.mean"]
    assert "pictures, highest 1 %" in (films / "out" / "evaluation.md").read_text(encoding="utf-8")
    stored = json.loads((films / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert len(stored["slices"]) == COUNT


@pytest.fixture
def guided_models(tmp_path: Path) -> dict[str, Path]:
    """A guided model of films, one whose classifier says the opposite, and one that hardly guides."""
    settings = {"region": "image", "orientation": "any", "grid": {"size": [40, 48]}, "normalisation": PERCENTILES}
    model = packages.guided(tmp_path / "model", **settings)
    weights = {part: model.weights(part) for part in model.networks}
    turned = {name: tensor.flip(0) if len(tensor) == 2 else tensor for name, tensor in weights["classifier"].items()}
    networks = {part: model.network_config(part) for part in model.networks}
    opposite = {**weights, "classifier": turned}
    packages.write(tmp_path / "opposite", "guided", networks, {**packages.GUIDED, **settings}, opposite)
    packages.guided(tmp_path / "weak", **settings, options={"steps": 2, "guidance_scale": 0.5})
    return {name: tmp_path / name for name in ("model", "opposite", "weak")}


def test_what_the_classifier_says_alone_stands_beside_the_map(films: Path, guided_models: dict[str, Path]) -> None:
    scans = find_labelled(films / "films", films / "labels.csv")
    specs = [RunSpec("guided", str(path), label=name) for name, path in guided_models.items()]
    table = run_labelled(scans, specs, films / "out", "cpu", resamples=20)
    own = {row["run"]: row["auroc.picture.own_score"] for row in table.rows}
    assert own["opposite"] == pytest.approx(1.0 - own["model"])
    scores = {name: [row["own_score"] for row in table.slices if row["run"] == name] for name in own}
    assert len(set(scores["model"])) == COUNT
    assert scores["opposite"] == pytest.approx([-score for score in scores["model"]], abs=1e-4)
    assert scores["weak"] == scores["model"]  # the map is another, the classifier is not
    maps = [[row["mean"] for row in table.slices if row["run"] == name] for name in ("weak", "model")]
    assert maps[0] != maps[1]
    page = (films / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert "pictures, own score" in page
    assert "own score** of model: classifier's log-odds of disease, without the map." in page


def test_labels_the_other_way_round_give_the_opposite(films: Path) -> None:
    rows = [[f"{n:02d}.png", 0, int(n % 3 != 0), f"p{n}"] for n in range(COUNT)]
    scans = find_labelled(films / "films", write_table(films / "turned.csv", rows))
    spec = RunSpec("intensity", str(film_model(films)))
    table = run_labelled(scans, [spec], films / "out", "cpu", resamples=50)
    assert table.rows[0]["auroc.picture.highest_1"] == 0.0


def test_slices_and_patients_of_volumes_are_judged(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    rows: list[list[object]] = []
    for number in range(4):
        values, _ = head_ct()
        if number % 2:
            values[9:12, 60:90, 100:130] = 75.0
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, str(tmp_path / "scans" / f"{number}.nii.gz"))
        rows += [[f"{number}.nii.gz", k, int(bool(number % 2) and 9 <= k < 12), f"p{number}"] for k in range(20)]
    settings = {"region": "intracranial", "modality": "CT", "grid": {"size": [96, 96], "spacing": 2.0}}
    model = packages.intensity(
        tmp_path / "ct",
        **settings,
        normalisation={"kind": "window", "low": 0, "high": 80},
        options={"reference": 0.5},
    )
    scans = find_labelled(tmp_path / "scans", write_table(tmp_path / "labels.csv", rows))
    (row,) = run_labelled(scans, [RunSpec("intensity", str(model.path))], tmp_path / "out", "cpu", resamples=20).rows
    assert row["auroc.slice.highest_1"] > 0.99
    assert row["auroc.patient.highest_1"] == 1.0
    assert row["sensitivity"] == 1.0
    assert row["auroc.slice.own_score"] > 0.9  # the mean difference to ordinary tissue
    assert row["auroc.patient.own_score"] == 1.0
    assert row["slices"] < 80  # healthy slices of the neck are left out
    assert row["diseased"] == 6


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([["00.png", 0, 2, "p"]], "scan,slice,label,patient", "line 2"),
        ([["00.png", -1, 1, "p"]], "scan,slice,label,patient", "line 2"),
        ([["other.png", 0, 1, "p"]], "scan,slice,label,patient", "labels no scan"),
        ([["00.png", 0, -1, "p"]], "scan,slice,label,patient", "labels no scan"),
        ([["../labels.csv", 0, 1, "p"]], "scan,slice,label,patient", "labels no scan"),
        ([["00.png", 0]], "scan,slice", "needs scan and label"),
    ],
)
def test_tables_that_do_not_fit_are_refused(films: Path, rows: list, columns: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_labelled(films / "films", write_table(films / "bad.csv", rows, columns))


def test_one_class_alone_tells_nothing(films: Path) -> None:
    scans = find_labelled(films / "films", write_table(films / "one.csv", [["00.png", 1]], "scan,label"))
    with pytest.raises(InputError, match="all that is labelled is diseased"):
        run_labelled(scans, [RunSpec("intensity", str(film_model(films)))], films / "out")


def test_a_label_beyond_the_last_slice_is_named(films: Path) -> None:
    rows = [["00.png", 3, 1, "p"], ["01.png", 0, 0, "q"]]
    scans = find_labelled(films / "films", write_table(films / "beyond.csv", rows))
    with pytest.raises(InputError, match="name slice 3"):
        run_labelled(scans, [RunSpec("intensity", str(film_model(films)))], films / "out", "cpu")


def test_labels_belong_to_a_folder_of_scans(films: Path) -> None:
    table = write_table(films / "labels.csv", [["00.png", 0, 1, "p"]])
    with pytest.raises(InputError, match=r"labels\.csv is a file; labels are of the scans in a folder") as refused:
        find_labelled(table, table)
    assert "behind --labels" in refused.value.hint


@pytest.mark.parametrize(
    "more", [["--rater", "a=*_a.png"], ["--mask-pattern", "*_mask.png"], ["--healthy", "x"], ["--complete-only"]]
)
def test_what_is_of_masks_has_no_place_beside_labels(
    films: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", str(films / "films"), "--labels", str(films / "labels.csv"), "-o", str(films / "no"), *more]
    assert cli.main(given) == 2
    assert f"so {more[0]} would change nothing" in capsys.readouterr().err


def test_the_command_line_takes_labels(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(films / "films"), "-o", str(films / "out"), "--labels", str(films / "labels.csv")]
    assert cli.main([*command, "--run", f"intensity={film_model(films)}", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "pictures, mean" in printed and "evaluation.md" in printed
