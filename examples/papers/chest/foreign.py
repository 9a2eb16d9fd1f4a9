"""Pictures that are no such films, or not as they are taken: how many of them the check of appearance tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from diffusion_anomaly.detection.appearance import Appearance
from diffusion_anomaly.preprocessing.intensity import Normalisation
from training.data.preparation import PrepareConfig
from training.data.slices import validation_slices
from training.trainer.configuration import read_yaml

from ..steps import CONFIGS, DATA, RUNS
from .experiment import read_film
from .parts import PARTS, Part

MEDNIST = DATA / "mednist/headct.npz"


def foreign(part: Part) -> list[tuple[str, int, int, int]]:
    """What kind of pictures, how many there are, and how many of them are doubted and refused.

    Raises:
        FileNotFoundError: when films, slices or MedNIST are not there.
    """
    known = Appearance.fit(list(validation_slices(RUNS / f"chest-{part.name}").images[:, 0] / 255.0))
    rule = read_yaml(CONFIGS / f"prepare-chest-{part.name}.yaml", PrepareConfig).normalisation.rule
    rows = []
    for kind, pictures in _kinds(part):
        verdicts = [known.verdict([_normalised(picture, rule)]) for picture in pictures]
        told = [verdict for verdict in verdicts if verdict is not None]
        refused = sum(verdict.refused for verdict in told)
        rows.append((kind, len(verdicts), len(told) - refused, refused))
    return rows


def _kinds(part: Part) -> Iterator[tuple[str, Iterable[np.ndarray]]]:
    films = np.stack(read_test_films(part))
    yield "test films as they are", films
    yield "mirrored", films[:, :, ::-1]
    yield "with a white label, upper left", _labelled(films)
    yield "inverted", 255 - films
    yield "upside down", films[:, ::-1]
    yield "turned by a quarter", np.rot90(films, 1, (1, 2))
    for share, grey in ((0.05, 0), (0.15, 0), (0.1, 255)):
        width = round(share * films.shape[1])
        borders = ((0, 0), (width, width), (width, width))
        what = f"in a {'white' if grey else 'black'} border of {share:.0%} on each side"
        yield what, np.pad(films, borders, constant_values=grey)
    for other in PARTS.values():
        if other.name != part.name:
            yield f"films of {other.name}", read_test_films(other)
    with np.load(MEDNIST) as file:
        yield "head CT (MedNIST)", file["test"]


def read_test_films(part: Part) -> list[np.ndarray]:
    return [read_film(path) for path in sorted((part.films / "test").glob("*.png"))]


def _labelled(films: np.ndarray) -> np.ndarray:
    height, width = films.shape[1:]
    films = films.copy()
    films[:, height // 32 : height // 10, width // 20 : width // 4] = 255
    return films


def _normalised(picture: np.ndarray, rule: Normalisation) -> np.ndarray:
    return rule.fit(picture)(picture.astype(np.float32), np.ones(picture.shape, bool))
