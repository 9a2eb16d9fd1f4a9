"""Configurations of all stages, small enough to train in a second, and their commands."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from training.__main__ import command_line
from training.data.head_maps import BRAIN_BIT
from training.data.tissues import RIM, TISSUES
from training.stages.brain import BrainConfig, BrainTask
from training.stages.classifier import ClassifierConfig, ClassifierTask
from training.stages.codec import CodecConfig, CodecTask
from training.stages.denoise import DenoiseConfig, DenoiseTask
from training.stages.diffusion import DiffusionConfig, DiffusionTask
from training.stages.localise import LocaliseConfig, LocaliseTask
from training.stages.restore import RestoreConfig, RestoreTask
from training.stages.segment import SegmentConfig, SegmentTask
from training.trainer.configuration import read_yaml

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
# Of 2 x 2 pixels folded into channels, so that one halving makes a factor of 4.
FOLDED = {"spatial_dims": 2, "in_channels": 4, "out_channels": 4}
NORMAL = CODEC | {
    "fold": 2,
    "kl_weight": 0.01,
    "network": FOLDED
    | {
        "_target_": "AutoencoderKL",
        "channels": [8, 8],
        "attention_levels": [False, False],
        "num_res_blocks": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    },
}
AUTOENCODER = CODEC | {
    "fold": 2,
    "network": FOLDED
    | {"_target_": "AutoEncoder", "channels": [8, 4], "strides": [2, 1], "inter_channels": [4], "num_inter_units": 1},
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
    "schedule": {"kind": "scaled_linear", "levels": 1000, "pyramid": 0.8},
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
DENOISER = {
    "fold": 4,
    "corruption": {"levels": 1, "noise": {"deviation": 0.2, "cell": [2, 4]}},
    "network": PIXELS["network"],
    "trainer": TRAINER,
}
LADDER = DENOISER | {"corruption": {"levels": 3, "noise": {"deviation": 0.1, "cell": [2, 4]}}}
SLABS = {"size": 64, "spacing": 1.0, "slabs": 3}
LOCALISE = {
    "data": {"grid": SLABS, "real_share": 0.5},
    "lesions": {"few_diameter": [4.0, 12.0], "many_diameter": [3.0, 6.0]},
    "draws": 2,
    "network": {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 12, "out_channels": 4, "features": [4] * 6},
    "trainer": TRAINER,
}
SEGMENT = {
    "data": {"grid": SLABS, "real_share": 1.0, "restricted": True},
    "network": LOCALISE["network"],
    "trainer": TRAINER,
}
RESTORE = {
    "data": {"grid": SLABS, "real_share": 0.5},
    "fold": 2,
    "corruption": {"levels": 3, "lesions": LOCALISE["lesions"]},
    "network": PIXELS["network"] | {"in_channels": 12, "out_channels": 8},
    "trainer": TRAINER,
}
BRAIN = {
    "window": [32, 32, 64],
    "network": {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 8, "out_channels": 8, "features": [4] * 6},
    "trainer": TRAINER | {"constant_share": 0.3, "final_rate": 0.03, "ema_warmup": 19},
}
# The command of each configuration.
STAGES = {
    "codec": "codec",
    "normal": "codec",
    "autoencoder": "codec",
    "diffusion": "diffusion",
    "classifier": "classifier",
    "pixels": "diffusion",
    "denoiser": "denoise",
    "ladder": "denoise",
    "localise": "localise",
    "restore": "restore",
    "segment": "segment",
    "brain": "brain",
}


def write_heads(path: Path, count: int = 3) -> Path:
    """What ``prepare-labels`` would write of balls of white matter in skulls."""
    place = np.stack(np.meshgrid(*(np.arange(24.0),) * 3, indexing="ij"), -1)
    labels = []
    for number in range(count):
        radius = np.sqrt(((place - 12.0) ** 2).sum(-1))
        labels.append(np.where(radius < 7 + number, 1 + 128, np.where(radius < 10, 13, 0)).astype(np.uint8))
    np.savez(
        path,
        labels=np.concatenate([label.ravel() for label in labels]),
        shapes=np.full((count, 3), 24),
        centres=np.full((count, 3), 12.0),
    )
    return path


def write_slab_heads(path: Path) -> Path:
    """What ``prepare-labels --slabs`` would write of two balls: ventricle with rim, white matter, cortex, bone."""
    place = np.stack(np.meshgrid(*(np.arange(56.0),) * 3, indexing="ij"), -1)
    labels = []
    for radius_of_brain in (20, 22):
        radius = np.sqrt(((place - 28.0) ** 2).sum(-1))
        tissue = np.zeros(radius.shape, np.uint8)
        for name, most in (("skull", 4), ("fluid", 1), ("cortex", 0), ("white matter", -4)):
            tissue[radius < radius_of_brain + most] = TISSUES[name]
        tissue[radius < 7] = RIM
        tissue[radius < 4.5] = TISSUES["ventricle"]
        labels.append((tissue + BRAIN_BIT * (radius < radius_of_brain + 1)).astype(np.uint8))
    np.savez(
        path,
        labels=np.concatenate([label.ravel() for label in labels]),
        shapes=np.full((2, 3), 56),
        centres=np.full((2, 3), 28.0),
        spacing=1.0,
    )
    return path


FREE, RESTRICTED = 100, 200  # brightness of the stacks' brains


def write_stacks(path: Path, size: int = 64, names: tuple[str, str] = ("free", "restricted")) -> Path:
    """What ``prepare-slabs`` would write of two scans: a free one, and a restricted one whose right half is unknown.

    A square of the unknown half is lesion, and brighter than the rest.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    brain = np.repeat((x**2 + y**2 < (0.35 * size) ** 2)[None], 12, 0)
    texture = np.random.default_rng(0).integers(-9, 10, brain.shape)
    brightness = np.repeat([FREE, RESTRICTED], 6)[:, None, None] + texture
    known = np.ones_like(brain)
    known[6:, :, size // 2 :] = False
    lesion = np.zeros_like(brain)
    lesion[6:, size // 2 - 6 : size // 2 + 6, size // 2 + 3 : size // 2 + 15] = True
    brightness = brightness + 30 * lesion
    np.savez(
        path,
        images=np.where(brain, brightness, 0).astype(np.uint8),
        brain=np.packbits(brain, -1),
        known=np.packbits(known, -1),
        lesion=np.packbits(lesion, -1),
        stack=np.repeat([0, 1], 6),
        gap=np.repeat(np.float32([1.0, 5.0]), 6),
        restricted=np.array([False, True]),
        names=np.array(names),
        spacing=1.0,
    )
    return path


class Workplace:
    """Configuration files and runs of all stages in one folder."""

    def __init__(self, folder: Path, slices: Path) -> None:
        self.folder = folder
        latent = {"codec": str(folder / "codec.yaml"), "codec_run": str(folder / "codec")}
        self.entries: dict[str, dict[str, Any]] = {
            name: {"slices": str(slices)} | deepcopy(entries) | more
            for name, entries, more in (
                ("codec", CODEC, {}),
                ("normal", NORMAL, {}),
                ("autoencoder", AUTOENCODER, {}),
                ("diffusion", DIFFUSION, latent),
                ("classifier", CLASSIFIER, {}),
                ("pixels", PIXELS, {}),
                ("denoiser", DENOISER, {}),
                ("ladder", LADDER, {}),
            )
        }
        self.entries["brain"] = {"labels": str(write_heads(folder / "heads.npz"))} | deepcopy(BRAIN)
        slabs = {"labels": str(write_slab_heads(folder / "slab-heads.npz"))}
        slabs["stacks"] = str(write_stacks(folder / "stacks.npz"))
        for name, entries in (("localise", LOCALISE), ("restore", RESTORE)):
            self.entries[name] = deepcopy(entries) | {"data": deepcopy(entries["data"]) | slabs}
        others = write_stacks(folder / "others.npz", names=("free 2", "restricted 2"))
        self.entries["segment"] = deepcopy(SEGMENT) | {"validation": str(others)}
        self.entries["segment"]["data"]["stacks"] = slabs["stacks"]
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
        "denoise": (DenoiseConfig, DenoiseTask),
        "localise": (LocaliseConfig, LocaliseTask),
        "restore": (RestoreConfig, RestoreTask),
        "segment": (SegmentConfig, SegmentTask),
        "brain": (BrainConfig, BrainTask),
    }
    kind, make = kinds[STAGES[name]]
    config = read_yaml(place.folder / f"{name}.yaml", kind)
    return make(config), config.trainer
