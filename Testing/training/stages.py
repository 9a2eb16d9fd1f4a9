"""Configurations of all stages, small enough to train in a second, and their commands."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.__main__ import command_line
from training.classifier import ClassifierConfig, ClassifierTask
from training.codec import CodecConfig, CodecTask
from training.configuration import read_yaml
from training.diffusion import DiffusionConfig, DiffusionTask

TRAINER = {
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "ema_decay": 0.5,
    "precision": "float32",
    "loader_workers": 0,
    "validate_every": 2,
}
CODEC = {
    "labels": [0],
    "factor": 4,
    "network": {
        "_target_": "VQVAE",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [8, 8],
        "num_res_layers": 1,
        "num_res_channels": [8, 8],
        "downsample_parameters": [[2, 4, 1, 1], [2, 4, 1, 1]],
        "upsample_parameters": [[2, 4, 1, 1, 0], [2, 4, 1, 1, 0]],
        "num_embeddings": 16,
        "embedding_dim": 4,
        "embedding_init": "kaiming_uniform",
    },
    "trainer": TRAINER,
}
NETWORK = {
    "spatial_dims": 2,
    "channels": [8, 8],
    "attention_levels": [False, True],
    "num_head_channels": 8,
    "norm_num_groups": 4,
}
DIFFUSION = {
    "labels": [0],
    "schedule": {"kind": "scaled_linear", "levels": 1000},
    "highest_level": 649,
    "network": NETWORK | {"_target_": "DiffusionModelUNet", "in_channels": 4, "out_channels": 4, "num_res_blocks": 1},
    "trainer": TRAINER,
}
CLASSIFIER = DIFFUSION | {
    "labels": [0, 1],
    "fold": 4,
    "prediction_type": "v_prediction",
    "network": NETWORK
    | {
        "_target_": "DiffusionModelEncoder",
        "in_channels": 16,
        "out_channels": 2,
        "input_shape": [4, 4],
        "num_res_blocks": [1, 1],
    },
}
PIXELS = CLASSIFIER | {"network": DIFFUSION["network"] | {"in_channels": 16, "out_channels": 16}}


class Workplace:
    """Configuration files and runs of the three stages in one folder."""

    def __init__(self, folder: Path, slices: Path) -> None:
        self.folder = folder
        latent = {"codec": str(folder / "codec.yaml"), "codec_run": str(folder / "codec")}
        self.entries: dict[str, dict[str, Any]] = {
            name: {"slices": str(slices)} | deepcopy(entries) | more
            for name, entries, more in (
                ("codec", CODEC, {}),
                ("diffusion", DIFFUSION, latent),
                ("classifier", CLASSIFIER, {}),
                ("pixels", PIXELS, {}),
            )
        }
        for name in self.entries:
            self.write(name)

    def write(self, name: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.entries[name]), encoding="utf-8")
        return path

    def command(self, stage: str, *more: str, name: str = "") -> int:
        """Exit code of the stage's command."""
        name = name or stage
        arguments = [stage, str(self.write(name)), "--run", str(self.folder / name), *more]
        with pytest.raises(SystemExit) as ended:
            command_line(arguments)
        return int(ended.value.code or 0)


def task_of(place: Workplace, name: str) -> tuple[Any, Any]:
    kinds: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "codec": (CodecConfig, CodecTask),
        "diffusion": (DiffusionConfig, DiffusionTask),
        "classifier": (ClassifierConfig, ClassifierTask),
        "pixels": (DiffusionConfig, DiffusionTask),
    }
    kind, make = kinds[name]
    config = read_yaml(place.folder / f"{name}.yaml", kind)
    return make(config), config.trainer
