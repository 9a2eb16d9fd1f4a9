"""The first experiment of Pinaya et al. 2022 (section 3.1) on MedNIST: find sprites in head CT, know what is no head.

Everything is learnt from healthy validation slices: the latent threshold, and for each way the anomaly map from which a
pixel counts as found. Options are chosen on the split ``val``, which carries other sprites than ``test`` does.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from diffusion_anomaly.evaluation.formatting import finite, markdown_table, text_writer, with_interval
from diffusion_anomaly.io.outputs import OutputFolder
from diffusion_anomaly.io.records import record
from diffusion_anomaly.models.networks import Model
from diffusion_anomaly.registry import UnsupervisedOptions, get_method
from diffusion_anomaly.system import device_name
from training.stages.diffusion import DiffusionConfig
from training.trainer.configuration import ConfigurationError, read_yaml

from .measures import score_row, sprite_row
from .picture import draw_examples
from .shapes import Contaminated, contaminate
from .ways import Pictures, learn_latent_threshold, learn_threshold, load_model, ways

logger = logging.getLogger(__name__)
FILES = ("mednist.png", "mednist.md", "mednist.json")  # the record last

# Heading, decimals and meaning of the table's columns.
COLUMNS = {
    "dice": ("Dice", 3, "at the threshold learnt from healthy validation slices, mean over slices with a sprite"),
    "best_dice": ("best Dice", 3, "the highest mean Dice of one threshold for all slices, chosen on the sprites"),
    "average_precision": ("AP", 3, "average precision of all pixels together"),
    "mean_average_precision": ("mean AP", 3, "average precision of a slice's pixels, mean over slices"),
    "auroc": ("AUROC", 4, "pictures of other classes against slices without sprites, by the whole-image score"),
    "seconds": ("s a slice", 3, "wall time from slice to anomaly scores"),
    "network_calls": ("calls a slice", 0, "of the diffusion model"),
}


class MednistConfig(BaseModel):
    """Configuration file of the command ``evaluate``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    diffusion: Path = Field(description="configuration of the stage 'diffusion'")
    diffusion_run: Path
    options: dict[str, Any] = Field(default={}, description="of the method 'unsupervised'")
    false_alarm_pixels: float = Field(default=8.0, ge=0, description="found in the median healthy slice, at most")
    seed: int = Field(default=0, ge=0, description="of noise, sprites and bootstrap")


def experiment(config: MednistConfig, output: Path, split: str = "test") -> dict[str, Any]:
    """Run the experiment and write ``mednist.json``, ``mednist.md`` and ``mednist.png``.

    Args:
        config: what was trained, and how it is asked.
        output: folder for the results.
        split: "test", or "val" to choose options by; pictures of other classes are looked at with "test" only.

    Returns:
        What ``mednist.json`` holds.

    Raises:
        FileNotFoundError: when slices or a trained network are not there yet.
        ConfigurationError: when the split is unknown or a run is of another network.
        InputError: when the options are wrong, no slice shows a head, or the folder cannot be written to.
    """
    if split not in ("val", "test"):
        raise ConfigurationError(f"The split is {split!r}; expected 'val', to choose options by, or 'test'.")
    diffusion = read_yaml(config.diffusion, DiffusionConfig)
    options = get_method("unsupervised").make_options(chosen=config.options)
    assert isinstance(options, UnsupervisedOptions)
    load = partial(_load, diffusion.slices, config.seed)
    healthy, own, alien = load("val"), load(split, with_sprites=True), load("ood") if split == "test" else None
    sprites = contaminate(own.images, own.seed)
    pasted = Pictures(sprites.images, own.brain[sprites.numbers], sprites.numbers, own.seed)
    model = load_model(diffusion, config.diffusion_run)
    with OutputFolder(output) as folder:
        folder.check(FILES)
        return _measure(config, options, split, (healthy, own, alien), sprites, pasted, model, folder)


def _measure(
    config: MednistConfig,
    options: UnsupervisedOptions,
    split: str,
    pictures: tuple[Pictures, Pictures, Pictures | None],
    sprites: Contaminated,
    pasted: Pictures,
    model: Model,
    output: OutputFolder,
) -> dict[str, Any]:
    healthy, own, alien = pictures
    options = replace(options, latent_threshold=learn_latent_threshold(model, options, healthy))

    rows, anomaly_maps = [], []
    for name, way in ways(model, options, healthy).items():
        threshold = learn_threshold(healthy.each(way.anomaly_map), config.false_alarm_pixels)
        started = time.monotonic()
        anomaly_maps.append(pasted.each(way.anomaly_map))
        seconds = (time.monotonic() - started) / len(pasted)
        row = {"method": name} | sprite_row(anomaly_maps[-1], sprites.masks, threshold, config.seed)
        if way.score is not None and alien is not None:
            row |= score_row(own.each(way.score), alien.each(way.score), config.seed)
        rows.append(row | {"seconds": seconds, "network_calls": way.network_calls})
        logger.info("%s: %s", name, ", ".join(f"{key} {row[key]:.3f}" for key in COLUMNS if key in row))
    counts = {"healthy": len(own), "with a sprite": len(pasted), "of other classes": len(alien or ())}
    about = {"split": split, "pictures": counts} | _about(config, options, model)
    table = finite({"about": about, "rows": rows})
    writers = (
        lambda path: draw_examples(own.images, sprites, anomaly_maps[0], rows[0]["threshold"], path),
        text_writer(markdown(table)),
        record(table),
    )
    output.publish(dict(zip(FILES, writers, strict=True)))
    return table


def _load(folder: Path, seed: int, split: str, with_sprites: bool = False) -> Pictures:
    """A split with noise of its own; that of ``val`` differs with and without sprites."""
    return Pictures.load(folder / f"{split}.npz", 6 * seed + 2 * ("val", "test", "ood").index(split) + with_sprites)


def markdown(table: dict[str, Any]) -> str:
    """The table, and below it what it was measured on and what its columns mean."""
    about = table["about"]
    lines = markdown_table(
        ["method", *(title for title, _, _ in COLUMNS.values())],
        [
            [row["method"], *(with_interval(row, key, digits) for key, (_, digits, _) in COLUMNS.items())]
            for row in table["rows"]
        ],
    )
    counts = ", ".join(f"{count} {what}" for what, count in about["pictures"].items())
    lines += [
        "",
        f"Split {about['split']}: {counts}; {about['hardware']}, {about['precision']}; in brackets 95 % bootstrap "
        "intervals over slices.",
        "",
        *(f"- **{title}**: {meaning}." for title, _, meaning in COLUMNS.values()),
    ]
    return "\n".join(lines) + "\n"


def _about(config: MednistConfig, options: UnsupervisedOptions, model: Model) -> dict[str, Any]:
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} processor cores"
    return {
        "seed": config.seed,
        "options": vars(options),
        "false_alarm_pixels": config.false_alarm_pixels,
        "hardware": f"{device_name(str(model.device))}, {threads}",
        "precision": str(model.dtype).removeprefix("torch."),
    }
