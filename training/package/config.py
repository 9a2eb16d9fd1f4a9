"""What a package is made of: the configuration file of the stage ``package``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load
from torch import Tensor

from diffusion_anomaly.models.declaration import needed_networks
from diffusion_anomaly.options import HIGHEST_THRESHOLD

from ..data.preparation import GridConfig, NormalisationConfig, PrepareConfig
from ..stages.brain_check import BrainCheck
from ..stages.recognition_check import ScanSet
from ..trainer.checkpoints import averaged_weights, require_fit
from ..trainer.configuration import read_yaml


class GivenWeights(BaseModel):
    """Weights whose run is not at hand, and what is known of their training, for the card."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path = Field(description="averaged weights (.safetensors), named as the network names them")
    steps: int = Field(gt=0)
    minutes: float = Field(gt=0)
    hardware: str


class Stage(BaseModel):
    """A trained stage: its configuration file, and its run directory or its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path
    run: Path | None = None
    mean_with: Path | None = Field(
        default=None,
        description="another run; the mean of both runs' weights is packed (Wortsman et al. 2022, arXiv 2109.01903)",
    )
    weights: GivenWeights | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Stage:
        if (self.run is None) == (self.weights is None):
            raise ValueError("give either 'run' or 'weights'")
        if self.mean_with is not None and self.run is None:
            raise ValueError("'mean_with' needs 'run', whose weights it is averaged with")
        return self

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, and steps, minutes and hardware of their training."""
        if self.weights is not None:
            return load(self.weights.file.read_bytes()), self.weights.model_dump(exclude={"file"})
        assert self.run is not None
        weights, fact = averaged_weights(self.run / "checkpoint.pt")
        if self.mean_with is not None:
            others, _ = averaged_weights(self.mean_with / "checkpoint.pt")
            require_fit(others, weights, self.mean_with / "checkpoint.pt")
            weights = {name: torch.lerp(value, others[name], 0.5) for name, value in weights.items()}
        facts = {"steps": fact["step"], "minutes": round(fact["seconds"] / 60.0, 1), "hardware": fact["hardware"]}
        return {key.removeprefix("network."): value for key, value in weights.items()}, facts


class Texts(BaseModel):
    """What only the author knows, for metadata, card and licence files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    task: str
    description: str
    authors: str
    copyright: str
    license: str = Field(description="short name, such as CC BY-NC-SA 4.0")
    license_file: Path
    data_license: str
    data_source: str
    intended_use: str
    limits: list[str] = []
    references: list[str] = []
    changelog: dict[str, str] = Field(default={}, description="what each version changed; 'first version' without")


class PackageConfig(BaseModel):
    """Configuration file of the stage ``package``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    method: str = Field(pattern="^(unsupervised|guided|restore|localise|intensity|brain|recognition)$")
    modality: str
    stages: dict[str, Stage] = Field(
        description="codec, diffusion, classifier, restorer, localiser, brain or recogniser"
    )
    prepare: Path | None = Field(default=None, description="configuration of the stage 'prepare'")
    brains: Path | None = Field(default=None, description="where 'prepare' keeps the brains it found")
    grid: GridConfig | None = Field(default=None, description="of the slices, where it is not that of 'prepare'")
    normalisation: NormalisationConfig | None = Field(default=None, description="the same")
    options: dict[str, Any] = {}
    postprocess: dict[str, Any] = {}
    sets: list[ScanSet] = Field(default=[], description="of what recognises scans: sets to measure it on")
    checks: list[BrainCheck] = Field(default=[], description="of a brain mask: scans to measure it on")
    healthy: list[Path] = Field(
        default=[], description="scans of healthy people, to set the threshold with; else the healthy slices serve"
    )
    calibrate_on: list[Literal["train", "val"]] = Field(
        default=["val"],
        min_length=1,
        description="splits of 'prepare' whose healthy slices scores are calibrated on; train only for networks that "
        "have learnt from none of its scans",
    )
    false_alarm_ml: float = Field(default=1.0, gt=0, description="healthy false alarms a scan at the threshold")
    peak_margin: float = Field(
        default=0.0,
        ge=0,
        le=HIGHEST_THRESHOLD,
        description="by how much a finding's highest score exceeds the threshold at least; healthy false alarms too",
    )
    false_alarm_share: float = Field(
        default=0.01, gt=0, lt=1, description="the same of whole images: share of the image instead of ml"
    )
    false_alarm_quantile: float = Field(default=0.5, gt=0, le=1, description="share of scans that stay below it")
    texts: Texts

    @model_validator(mode="after")
    def _complete(self) -> PackageConfig:
        missing = [part for part in needed_networks(self.method) if part not in self.stages]
        if missing:
            raise ValueError(f"stages lacks {', '.join(missing)}, which the method {self.method} needs")
        if "codec" in self.stages and self.stages["codec"].run is None:
            raise ValueError("the codec needs its 'run', which holds the scale of its latents")
        if len(set(self.calibrate_on)) < len(self.calibrate_on):
            raise ValueError("calibrate_on: a split is named twice, and its scans would count twice")
        if self.healthy and self.prepare is not None and self.read_prepare().channels:
            raise ValueError("healthy: scans of one contrast cannot set the threshold of several; use healthy: []")
        return self

    def read_prepare(self) -> PrepareConfig:
        """What the slices were made with.

        Raises:
            ValueError: when the file does not say.
        """
        if self.prepare is None:
            raise ValueError(f"The package {self.name} needs 'prepare', the configuration its slices were made with.")
        return read_yaml(self.prepare, PrepareConfig)
