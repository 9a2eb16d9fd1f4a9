"""What the trained stages settle of a package: its networks, and its declaration before anything is calibrated."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from diffusion_anomaly.models.declaration import IMAGE

from ..stages.brain import BrainConfig
from ..stages.classifier import ClassifierConfig
from ..stages.codec import CodecConfig, load_codec
from ..stages.denoise import DenoiseConfig
from ..stages.diffusion import DiffusionConfig
from ..stages.localise import LocaliseConfig
from ..stages.recognition import RecognitionConfig
from ..stages.restore import RestoreConfig
from ..stages.segment import SegmentConfig
from ..trainer.configuration import read_yaml
from .config import PackageConfig

KINDS: dict[str, type[BaseModel]] = {
    "brain": BrainConfig,
    "classifier": ClassifierConfig,
    "codec": CodecConfig,
    "recogniser": RecognitionConfig,
}


def uncalibrated(config: PackageConfig) -> dict[str, Any]:
    """The declaration as far as training settled it."""
    prepare = config.read_prepare()
    declared = {
        "orientation": "any" if prepare.region == IMAGE else "axial",
        "region": prepare.region,
        "grid": (config.grid or prepare.grid).model_dump(mode="json", exclude_none=True),
        "normalisation": (config.normalisation or prepare.normalisation).rule.to_dict(),
        "postprocess": config.postprocess,
    }
    if prepare.channels:
        declared["channels"] = list(prepare.channels)
    if config.method == "intensity":
        return declared | {"options": config.options}
    if config.method == "localise":
        return declared | {"codec": {"factor": read_stage(config, "localiser").fold}}
    if config.method == "restore":
        restorer = read_stage(config, "restorer")
        levels = {"levels": restorer.corruption.levels}
        return declared | {"codec": {"factor": restorer.fold}, "options": levels | config.options}
    diffusion = read_stage(config, "diffusion")
    return declared | {
        "schedule": diffusion.schedule.model_dump(),
        "prediction_type": diffusion.prediction_type,
        "codec": _codec(config) if "codec" in config.stages else {"factor": diffusion.fold},
        "options": config.options,
    }


def read_networks(config: PackageConfig) -> tuple[dict[str, tuple[dict[str, Any], dict[str, Tensor]]], dict[str, Any]]:
    """Configuration and averaged weights of each part, and what each training took."""
    networks, facts = {}, {}
    for part, stage in config.stages.items():
        weights, facts[part] = stage.load()
        networks[part] = (read_stage(config, part).network, weights)
    return networks, facts


def read_stage(config: PackageConfig, part: str) -> Any:
    """The configuration that a part was trained with.

    A restorer's is of slabs, or of slices when it only denoises; a localiser's of synthetic lesions, or of marked ones
    when it has slabs to validate on.
    """
    path = config.stages[part].config
    if part in ("restorer", "localiser"):
        entries = read_yaml(path, _AnyEntries).model_extra or {}
        if part == "restorer":
            return read_yaml(path, DenoiseConfig if "slices" in entries else RestoreConfig)
        return read_yaml(path, SegmentConfig if "validation" in entries else LocaliseConfig)
    return read_yaml(path, KINDS.get(part, DiffusionConfig))


class _AnyEntries(BaseModel):
    model_config = ConfigDict(extra="allow")


def _codec(config: PackageConfig) -> dict[str, Any]:
    settings, run = read_stage(config, "codec"), config.stages["codec"].run
    assert run is not None
    loaded, _ = load_codec(settings, run)
    shift, scale = (values.flatten().tolist() for values in (loaded.shift, loaded.scale))
    return {"factor": settings.factor, "fold": settings.fold, "shift": shift, "scale": scale}
