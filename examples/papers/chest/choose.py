"""Options of the guided method tried on validation films, all of a batch together and without a package.

A film's map depends on the walk (steps, level, guidance scale) and on the side that counts; its score on the share of
the map that is averaged. The walk is what takes time, so every side and share is judged from each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch

from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.labelled import SHARES
from diffusion_anomaly.methods.base import SliceBatch, residual, to_model_range
from diffusion_anomaly.methods.guided import Guided, disease_log_odds
from diffusion_anomaly.models.networks import Model, build_network
from diffusion_anomaly.models.schedule import Schedule
from diffusion_anomaly.precision import choose_dtype
from diffusion_anomaly.registry import SIDES, GuidedOptions
from diffusion_anomaly.system import choose_device
from training.data.sampling import evenly
from training.data.slices import DISEASED, HEALTHY, Slices, validation_slices
from training.package.config import PackageConfig
from training.package.declaration import read_networks, read_stage
from training.trainer.configuration import read_yaml

from ..steps import CONFIGS
from .parts import Part

BATCH = 8


def load_model(config: PackageConfig) -> Model:
    """The averaged networks of a package's runs, as far as they are trained."""
    diffusion = read_stage(config, "diffusion")
    networks = {}
    for part, (declared, weights) in read_networks(config)[0].items():
        networks[part] = build_network(declared)
        networks[part].load_state_dict(weights)
    device = choose_device()
    return Model(
        diffusion.load_codec(),
        networks["diffusion"],
        Schedule.named(diffusion.schedule.kind, diffusion.schedule.levels),
        classifier=networks["classifier"],
        prediction_type=diffusion.prediction_type,
        device=device,
        dtype=choose_dtype("auto", device),
    )


def choose(part: Part, walks: Iterable[dict[str, Any]], films: int) -> Iterator[dict[str, Any]]:
    """Areas under the ROC curve of validation films, for each walk, side and share.

    Args:
        part: whose model.
        walks: options of the guided method.
        films: of each class at most, evenly spread.
    """
    config = read_yaml(CONFIGS / f"package-chest-{part.name}-guided.yaml", PackageConfig)
    model, all_films = load_model(config), validation_slices(read_stage(config, "diffusion").slices)
    classes = [evenly(all_films, films, label) for label in (HEALTHY, DISEASED)]
    yield {"walk": "classifier alone", "auroc": auroc([_log_odds(model, one) for one in classes])}
    for walk in walks:
        options = GuidedOptions(**walk)
        made = [_reconstructed(model, options, one) for one in classes]
        for side, (name, share) in product(SIDES, SHARES.items()):
            scores = [[metrics.highest_mean(m.numpy().ravel(), share) for m in residual(*pair, side)] for pair in made]
            yield {"walk": walk, "side": side, "score": name, "auroc": auroc([np.array(values) for values in scores])}


def auroc(scores: list[np.ndarray]) -> float:
    """Of diseased against healthy, given as (healthy, diseased)."""
    return metrics.auroc(scores[1], scores[0])


def _images(films: Slices) -> torch.Tensor:
    return torch.from_numpy(films.images.astype(np.float32) / 255.0)


def _log_odds(model: Model, films: Slices) -> np.ndarray:
    return disease_log_odds(model.encode(to_model_range(_images(films))), model).numpy()


def _reconstructed(model: Model, options: GuidedOptions, films: Slices) -> tuple[torch.Tensor, torch.Tensor]:
    """Films and what the model makes of them, ``(N, C, H, W)`` each."""
    images, made = _images(films), []
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        inside = torch.from_numpy(films.brain[start : start + BATCH])[:, None]
        batch = SliceBatch(some, inside, [torch.Generator()] * len(some))
        made.append(Guided().run(batch, model, options, lambda calls: None).reconstruction)
    return images, torch.cat(made)
