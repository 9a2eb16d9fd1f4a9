"""The experiment on chest films: painted lungs are found, shares are plain sums, and each part is looked at as told."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.networks import Codec
from examples.papers.chest.choose import choose
from examples.papers.chest.experiment import experiment, usual_place, within
from examples.papers.chest.lungs import enrichment, lungs
from examples.papers.chest.parts import PARTS, Part
from examples.papers.chest.picture import chosen_films
from Testing.engine import packages
from training.data.preparation import PrepareConfig
from training.package.config import PackageConfig
from training.stages.classifier import ClassifierConfig
from training.stages.diffusion import DiffusionConfig
from training.trainer.configuration import read_yaml

CONFIGS = Path("training/configs")


def chest(seed: int = 0, size: int = 64, sick: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A painted film in grey levels, and where its lungs are; a sick one has a bright patch in one of them."""
    draw = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    inside = np.zeros((size, size), bool)
    width = draw.uniform(0.26, 0.32)
    for side in (-1, 1):
        inside |= np.hypot((x - 0.42 * side) / width, (y + 0.1) / 0.6) < 1
    values = np.where(inside, 70, 170) + draw.normal(0, 3, inside.shape)
    values[:, :3] = values[:, -3:] = 10  # air beside the body
    if sick:
        values[np.hypot(x - 0.42, y - 0.1) < 0.15] += 60
    return np.clip(values, 0, 255).astype(np.uint8), inside


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sick", [False, True])
def test_both_lungs_are_found(size: int, seed: int, sick: bool) -> None:
    film, inside = chest(seed, size, sick)
    found = lungs(film)
    assert found is not None
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.85


@pytest.mark.parametrize("kind", ["noise", "one lung", "flat", "turned"])
def test_where_there_are_no_two_lungs_none_are_made_up(kind: str) -> None:
    film, _ = chest()
    if kind == "noise":
        film = np.random.default_rng(0).integers(0, 255, film.shape).astype(np.uint8)
    elif kind == "one lung":
        film[:, : film.shape[1] // 2] = 170
    elif kind == "flat":
        film[:] = 100
    else:
        film = film.T
    assert lungs(film) is None


def test_a_share_of_a_map_is_its_sum_inside() -> None:
    inside = np.zeros((4, 5), bool)
    inside[1, :2] = True
    values = np.ones((4, 5))
    values[1, 0] = 7
    assert enrichment(values, inside) == pytest.approx((8 / 26, 2 / 20))


def test_the_usual_place_is_where_most_outlines_are() -> None:
    films = [chest(seed)[0] for seed in range(3)]
    usual = usual_place(films)
    assert usual is not None
    masks = [lungs(film) for film in films]
    np.testing.assert_array_equal(usual, sum(mask.astype(int) for mask in masks if mask is not None) >= 2)
    assert usual_place([np.zeros((64, 64))]) is None


def test_within_a_view_a_score_that_only_tells_views_is_at_chance() -> None:
    views = np.repeat(["AP", "PA"], 20)
    truth = np.arange(40) % np.where(views == "AP", 2, 5) == 0
    patients = [str(n) for n in range(40)]
    score = (views == "AP").astype(float)
    assert within("x", score, truth, views, patients, 0)["x"] == 0.5
    assert within("x", truth + 0.1 * score, truth, views, patients, 0)["x"] == 1.0


def test_rows_are_the_films_told_best_halfway_and_worst() -> None:
    labels, scores = np.array([1, 0, 1, 0, 1, 0]), np.array([0.9, 0.2, 0.5, 0.8, 0.1, 0.3])
    assert [number for _, number in chosen_films(labels, scores)] == [0, 2, 4, 1, 5, 3]


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """Painted films in two splits, and a package with random weights."""
    monkeypatch.chdir(tmp_path)
    part = Part("painted", "a patch against none", Path("x.npz"), "sick", "patient", "mean", "Painted films.", "view")
    part.films.mkdir(parents=True)
    rows = []
    for number in range(16):
        name, folder = f"{number:02d}.png", part.films / ("val" if number < 4 else "test")
        folder.mkdir(exist_ok=True)
        Image.fromarray(chest(number, sick=number % 2 == 1)[0]).save(folder / name)
        rows.append([name, 0, number % 2, f"p{number}", "PA" if number % 3 else "AP"])
    with (part.films / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["scan", "slice", "label", "patient", "view"], *rows])
    packages.guided(part.model, region="image", orientation="any", grid={"size": [40, 48]})
    return part


def test_a_part_is_measured_and_drawn(part: Part, tmp_path: Path) -> None:
    found = experiment(part, tmp_path / "out")
    row = found["row"]
    assert (row["slices"], row["diseased"]) == (12, 6)
    assert row["diseased.outlined"] == row["healthy.outlined"] == 6
    assert 0 < row["diseased.own.inside"] < 1
    assert row["diseased.own.area"] == pytest.approx(chest()[1].mean(), abs=0.05)
    assert {"within.map", "within.classifier", "auroc.picture.mean", "auroc.picture.own_score"} <= set(row)
    assert not {"auroc.picture.highest_1", "auroc.picture.highest_10"} & set(row)
    assert json.loads((tmp_path / "out" / "chest.json").read_text(encoding="utf-8"))["row"] == row
    page = (tmp_path / "out" / "chest.md").read_text(encoding="utf-8")
    assert "classifier alone" in page
    assert "6 of 6" in page
    assert imread(tmp_path / "out" / "chest.png").shape[0] > 500
    experiment(part, tmp_path / "out", "val")  # its own result is replaced


def test_a_stratum_that_the_labels_do_not_know_is_named(part: Part, tmp_path: Path) -> None:
    table = part.films / "labels.csv"
    table.write_text(table.read_text().replace("view", "side"))
    with pytest.raises(InputError, match="view"):
        experiment(part, tmp_path / "out")


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_what_a_part_names_fits_together(part: Part) -> None:
    """Each file is read by what reads it; networks and package are of the same films, levels and blocks."""
    made = read_yaml(CONFIGS / f"package-chest-{part.name}-guided.yaml", PackageConfig)
    assert (PARTS[part.name].model.name, made.modality) == (made.name, "X-ray")
    prepared = made.read_prepare()
    assert isinstance(prepared, PrepareConfig)
    assert (prepared.region, prepared.strata) == ("image", part.strata)
    assert prepared.labels == part.films / "labels.csv"
    diffusion = read_yaml(made.stages["diffusion"].config, DiffusionConfig)
    classifier = read_yaml(made.stages["classifier"].config, ClassifierConfig)
    for shared in ("slices", "fold", "schedule", "highest_level", "labels"):
        assert getattr(diffusion, shared) == getattr(classifier, shared)
    assert classifier.network["input_shape"] == [side // classifier.fold for side in prepared.grid.size]
    assert made.options["level"] <= diffusion.highest_level + 1
    steps = part.steps
    assert [step.arguments[1] for step in steps] == ["unpack", "prepare", "diffusion", "classifier", "package"]
    assert {made.stages[stage].run for stage in ("diffusion", "classifier")} == {
        step.makes.parent for step in steps[2:4]
    }
    assert steps[4].makes == part.model


def test_options_are_tried_on_validation_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every side and share of each walk, beside the classifier; a walk without guidance has no say in its score."""
    import torch

    from examples.papers.chest import choose as module
    from training.data.slices import Slices

    def model(config: object) -> object:
        torch.manual_seed(0)
        networks = [packages.build_network(one) for one in (packages.DIFFUSION, packages.CLASSIFIER)]
        codec = Codec(None, packages.FACTOR)
        schedule = module.Schedule.named("linear", 1000)
        return module.Model(codec, networks[0], schedule, classifier=networks[1])

    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (6, 1, 48, 40)).astype(np.uint8)
    films = Slices(
        images,
        np.ones((6, 48, 40), bool),
        np.arange(6) % 2,
        np.full(6, 0.5, np.float32),
        np.array(list("abcdef")),
        np.zeros(6, int),
        np.ones(6, np.float32),
    )
    monkeypatch.setattr(module, "load_model", model)
    monkeypatch.setattr(module, "validation_slices", lambda path: films)
    rows = list(choose(PARTS["pneumonia"], [{"steps": 2, "level": 100, "guidance_scale": s} for s in (0.0, 50.0)], 3))
    assert len(rows) == 1 + 2 * 9
    assert all(0 <= row["auroc"] <= 1 for row in rows)
    assert rows[0]["walk"] == "classifier alone"
