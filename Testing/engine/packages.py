"""Model packages of toy size with random weights: everything real but the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.models.networks import build_network
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.models.writing import write_bundle

FACTOR = 4  # pixels folded into channels, so no codec is needed
CHANNELS = FACTOR**2
DIFFUSION = {
    "_target_": "DiffusionModelUNet",
    "spatial_dims": 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "channels": [8, 8],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_head_channels": 4,
}
CLASSIFIER = {
    "_target_": "DiffusionModelEncoder",
    "spatial_dims": 2,
    "in_channels": CHANNELS,
    "out_channels": 2,
    "channels": [8, 8],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_head_channels": 4,
    "input_shape": [12, 10],
}
RESTORER = {**DIFFUSION, "out_channels": 2 * CHANNELS}
LOCALISER = {
    "_target_": "BasicUNet",
    "spatial_dims": 2,
    "in_channels": 12,  # a slice between two neighbours, each folded by 2
    "out_channels": 4,
    "features": [8, 8, 8, 8, 8, 8],
}
ANOMALY: dict[str, Any] = {
    "modality": "FLAIR",
    "orientation": "axial",
    "grid": {"size": [40, 48], "spacing": 4.0},
    "normalisation": {"low_percentile": 5, "high_percentile": 75, "high_value": 0.5, "clip_max": 1.0},
    "schedule": {"kind": "scaled_linear", "levels": 1000},
    "prediction_type": "epsilon",
    "codec": {"factor": FACTOR},
    "postprocess": {"median_pixels": 3},
    "calibration": {"raw": [0.0, 0.25, 0.5], "heat": [0.0, 1.0, 3.0], "source": "made up"},
    "threshold": {"heat": 2.0, "false_alarm_ml": 1.0, "source": "nothing"},
    "score_range": {"mean": 1.0, "std": 0.1, "upper": 1e9},
}
UNSUPERVISED = {
    **ANOMALY,
    "options": {"steps": 4, "kl_levels": 2, "mask_sigma": 1.0},
    "latent_threshold": {"percentile": 97.5, "value": 0.0},
}
GUIDED = {**ANOMALY, "options": {"steps": 3, "guidance_scale": 10.0}}
RESTORE = {**ANOMALY, "schedule": None, "prediction_type": None, "options": {"steps": 2, "levels": 4}}
MODE = {"kind": "mode", "low_percentile": 0.5, "mode_value": 0.42, "clip_max": 1.0}
LOCALISE = {
    **ANOMALY,
    "grid": {"size": [64, 64], "spacing": 3.0, "neighbours": 1},
    "normalisation": MODE,
    "codec": {"factor": 2},
    "schedule": None,
    "prediction_type": None,
    "postprocess": {"median_mm": 0.0},
}
INTENSITY = {
    **ANOMALY,
    "normalisation": {**MODE, "clip_max": 4.0},
    "codec": None,
    "schedule": None,
    "prediction_type": None,
    "postprocess": {"median_mm": 0.0},
}
METADATA = {
    "task": "Find anomalies in phantoms",
    "description": "Random weights for tests",
    "authors": "The authors",
    "copyright": "Copyright the authors",
    "license": "CC0-1.0",
    "intended_use": "Tests",
    "data_source": "Random numbers",
}


def unsupervised(directory: Path, **anomaly: Any) -> Bundle:
    """A package of method 1; an entry of ``anomaly`` that is None is left out."""
    return write(directory, "unsupervised", {"diffusion": DIFFUSION}, {**UNSUPERVISED, **anomaly})


def guided(directory: Path, **anomaly: Any) -> Bundle:
    """A package of method 2."""
    return write(directory, "guided", {"diffusion": DIFFUSION, "classifier": CLASSIFIER}, {**GUIDED, **anomaly})


def restore(directory: Path, network: dict[str, Any] | None = None, **anomaly: Any) -> Bundle:
    """A package of method 3, with a restorer that gives logits too unless ``network`` says otherwise."""
    return write(directory, "restore", {"restorer": network or RESTORER}, {**RESTORE, **anomaly})


def localise(directory: Path, network: dict[str, Any] | None = None, **anomaly: Any) -> Bundle:
    """A package of method 4, whose network sees a slice between two neighbours unless told otherwise."""
    return write(directory, "localise", {"localiser": network or LOCALISER}, {**LOCALISE, **anomaly})


def intensity(directory: Path, **anomaly: Any) -> Bundle:
    """A package of the baseline, without a network."""
    return write(directory, "intensity", {}, {**INTENSITY, **anomaly})


def head_ct(directory: Path) -> Bundle:
    """A package for the space inside the skull of head CT, without a network."""
    return intensity(
        directory,
        modality="CT",
        region="intracranial",
        normalisation={"kind": "window", "low": 0, "high": 80},
        options={"reference": 0.5},
        grid={"size": [96, 96], "spacing": 2.0},
    )


def options_for(bundle: Bundle, **changes: Any) -> Options:
    """To detect with a package as its numbers are checked: on the CPU, exactly."""
    asked = {"method": bundle.method, "model": str(bundle.path), "device": "cpu", "precision": "float32"}
    return Options(**{**asked, **changes})


def write(
    directory: Path,
    method: str,
    networks: dict[str, dict[str, Any]],
    anomaly: dict[str, Any],
    weights: dict[str, dict[str, torch.Tensor]] | None = None,
) -> Bundle:
    """A package of any method, with random weights unless they are given."""
    torch.manual_seed(0)
    return write_bundle(
        directory,
        name=directory.name,
        version="0.1.0",
        method=method,
        networks={part: (config, weights[part] if weights else _random(config)) for part, config in networks.items()},
        anomaly={key: value for key, value in anomaly.items() if value is not None},
        metadata=METADATA,
        model_card="# The card",
        data_license="The data's licence",
        license_text="The licence",
    )


def _random(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of a fresh network; its last layer, which starts at zero, is random too."""
    network = build_network(config)
    for parameter in network.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
    return network.state_dict()
