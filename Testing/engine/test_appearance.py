"""Pictures that a model of whole images does not know are doubted or refused, and its own kind is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageDraw

import dicoms
import packages
from diffusion_anomaly.detection.appearance import Appearance, coarsened, correlation
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.results.result import Result
from test_films import DX, PERCENTILES
from test_skull import head_ct

HEIGHT, WIDTH = 128, 112


def chest(seed: int = 0, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A painted chest: a bright body with two dark lungs of random size and place, in [0, 1]."""
    draw = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    y, x = y + draw.uniform(-0.2, 0.2), x + draw.uniform(-0.2, 0.2)
    body = np.clip(6 * (1.05 - np.hypot(x, 0.7 * y - 0.4)), 0, 1) * 0.75
    size = draw.uniform(0.7, 1.1)
    for side in (-1, 1):
        depth = np.hypot((x - 0.42 * side) / (0.3 * size), (y + 0.1) / (0.6 * size))
        body -= 0.5 * np.clip(4 * (1 - depth), 0, 1)
    return np.clip(body + 0.02 * draw.standard_normal(shape), 0, 1)


def grey(picture: np.ndarray) -> np.ndarray:
    return np.round(255 * picture).astype(np.uint8)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    appearance = Appearance.fit([chest(seed) for seed in range(100, 140)])
    bundle = packages.intensity(
        tmp_path_factory.mktemp("models") / "chest",
        modality="X-ray",
        region="image",
        orientation="any",
        grid={"size": [48, 48]},
        normalisation=PERCENTILES,
        appearance=appearance.to_dict(),
    )
    return Detector(Options(method="intensity"), bundle=bundle)


def doubts(result: Result) -> list[str]:
    return [warning for warning in result.warnings if "those that the model knows" in warning]


def said(detector: Detector, path: Path) -> list[str]:
    """The doubts, or the reason why nothing was done."""
    try:
        return doubts(detector(path))
    except InputError as error:
        return [str(error)]


def saved(folder: Path, kind: str) -> Path:
    """A painted chest in one of the ways in which films come."""
    values, path = grey(chest(1)), folder / "film.png"
    if kind == "large with narrow borders":
        values = np.pad(grey(chest(1, (2400, 1900))), 50)
    elif kind == "wide":
        values = grey(chest(1, (90, 200)))
    elif kind == "mirrored":
        values = values[:, ::-1]
    picture = Image.fromarray(values)
    if kind == "with text":
        ImageDraw.Draw(picture).text((70, 4), "R AP", fill=255)
    elif kind == "as MONOCHROME1":
        path = folder / "film.dcm"
        data = dicoms.image(4095 - 16 * values.astype(np.uint16), DX, Modality="DX", BitsStored=12, HighBit=11)
        dicoms.save(dicoms.changed(data, PhotometricInterpretation="MONOCHROME1"), path)
        return path
    picture.save(path)
    return path


@pytest.mark.parametrize(
    "kind", ["plain", "with text", "large with narrow borders", "wide", "mirrored", "as MONOCHROME1"]
)
def test_a_film_of_the_models_kind_is_not_doubted(detector: Detector, tmp_path: Path, kind: str) -> None:
    assert not doubts(detector(saved(tmp_path, kind)))


@pytest.mark.parametrize("stored", ["png", "dcm"])
def test_an_inverted_film_is_refused_as_such(detector: Detector, tmp_path: Path, stored: str) -> None:
    path, values = tmp_path / f"film.{stored}", 255 - grey(chest(1))
    if stored == "png":
        Image.fromarray(values).save(path)
    else:  # inverted without a word in its header
        dicoms.save(dicoms.image(values.astype(np.uint16), DX, Modality="DX"), path)
    with pytest.raises(InputError, match=r"looks inverted(.|\n)*Invert its grey values"):
        detector(path)
    (doubt,) = doubts(detector(path, force=True))
    assert "looks inverted" in doubt


def alien(kind: str) -> np.ndarray:
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    if kind == "head CT":
        return head_ct()[0][10].astype(np.float32)
    if kind == "head MR":
        return np.clip(6 * (0.8 - np.hypot(x, 0.85 * y)), 0, 1) * (0.6 + 0.2 * np.cos(9 * x) * np.cos(7 * y))
    if kind == "turned":
        return chest(1).T
    if kind == "with wide white borders":
        return np.pad(chest(1), 40, constant_values=1.0)
    if kind == "a photograph in grey":
        return 0.9 - 0.4 * y + 0.3 * np.sin(3 * x) * (y > 0.2)
    assert kind == "noise"
    return np.random.default_rng(0).random((96, 96))


@pytest.mark.parametrize(
    "kind", ["head CT", "head MR", "turned", "with wide white borders", "a photograph in grey", "noise"]
)
def test_what_is_no_such_film_is_doubted_or_refused(detector: Detector, tmp_path: Path, kind: str) -> None:
    values = alien(kind)
    Image.fromarray(grey((values - values.min()) / np.ptp(values))).save(tmp_path / "other.png")
    (doubt,) = said(detector, tmp_path / "other.png")
    assert "unlike those that the model knows" in doubt


def test_the_slices_of_a_volume_are_judged_together(detector: Detector) -> None:
    films = np.stack([255 - grey(chest(1)), grey(chest(2)), grey(chest(3))]).astype(np.float32)
    assert not doubts(detector(films, spacing=(1.0, 1.0, 5.0), force=True))


@pytest.mark.parametrize("shape", [(16, 16), (128, 128), (131, 97), (40, 8)])
def test_a_coarse_picture_keeps_the_mean_of_a_gradient(shape: tuple[int, int]) -> None:
    rows = np.broadcast_to(np.linspace(0, 1, shape[0])[:, None], shape)
    coarse = coarsened(rows)
    assert coarse.shape == (16, 16)
    np.testing.assert_allclose(coarse, coarse[:, :1] * np.ones(16))
    np.testing.assert_allclose(coarse[:, 0], (np.arange(16) + 0.5) / 16, atol=0.6 / min(shape[0], 16))


def test_correlation_is_pearsons_and_0_for_one_value() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random((16, 16)), draw.random((16, 16))
    assert correlation(first, second) == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    assert correlation(first, np.full((16, 16), 0.3)) == 0.0


@pytest.mark.parametrize("wrong", [{"lower": 0.5}, {"mean": [[0.0] * 16] * 15, "lower": 0.5}, {"mean": 1, "lower": 2}])
def test_a_package_with_a_wrong_appearance_is_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ModelError, match="appearance"):
        packages.intensity(
            tmp_path / "chest",
            modality="X-ray",
            region="image",
            orientation="any",
            grid={"size": [48, 48]},
            normalisation=PERCENTILES,
            appearance=wrong,
        )


def test_a_film_package_says_that_it_is_for_x_rays(detector: Detector) -> None:
    inputs = detector.plan.bundle.metadata["network_data_format"]["inputs"]
    assert inputs["image"]["modality"] == "DX"


def test_a_picture_of_one_value_is_told(detector: Detector) -> None:
    result = detector(sitk.GetImageFromArray(np.full((1, 64, 64), 7, np.float32)))
    assert any("nothing to find" in warning for warning in result.warnings)
