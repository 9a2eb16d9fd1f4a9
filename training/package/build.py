"""From trained runs to a verified model package: weights, latent threshold, calibration, thresholds, card, licences.

Everything learnt here is learnt from healthy slices of validation scans and, for the threshold, from scans of healthy
people where there are any, through the engine's own detection code, so that what a reader sees as "one healthy voxel in
a thousand" was counted on the very numbers that detection computes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load

from diffusion_anomaly.bundle import Bundle, verify, write_bundle
from diffusion_anomaly.bundle.declaration import NEEDED
from diffusion_anomaly.calibration import Calibration, threshold_for_false_alarms
from diffusion_anomaly.detect import Options, Plan, RawHeat, make_plan, raw_heat, whole_image_score
from diffusion_anomaly.methods.latent_threshold import fit_latent_threshold
from diffusion_anomaly.methods.unsupervised import Unsupervised
from diffusion_anomaly.running import make_batch
from diffusion_anomaly.stack import SliceStack
from diffusion_anomaly.volume import Volume, read_volume

from ..data.slices import (
    HEALTHY,
    GridConfig,
    NormalisationConfig,
    PrepareConfig,
    brain_of,
    read_labels,
    slab_labels,
    slab_thickness,
)
from ..stages.brain import BrainConfig
from ..stages.brain_check import BrainCheck, check_brain
from ..stages.codec import CodecConfig, load_codec
from ..stages.denoise import DenoiseConfig
from ..stages.diffusion import DiffusionConfig
from ..stages.localise import LocaliseConfig
from ..stages.restore import RestoreConfig
from ..trainer.configuration import ConfigurationError, read_yaml
from ..trainer.loop import averaged_weights

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent
# A scan is called unknown when its score is this many deviations above the mean of validation scans.
UNKNOWN_DEVIATIONS = 4.0


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
    weights: GivenWeights | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Stage:
        if (self.run is None) == (self.weights is None):
            raise ValueError("give either 'run' or 'weights'")
        return self

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Weights, and steps, minutes and hardware of their training."""
        if self.weights is not None:
            return load(self.weights.file.read_bytes()), self.weights.model_dump(exclude={"file"})
        assert self.run is not None
        weights, fact = averaged_weights(self.run / "checkpoint.pt")
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
    method: str = Field(pattern="^(unsupervised|guided|restore|localise|intensity|brain)$")
    modality: str
    stages: dict[str, Stage] = Field(description="codec, diffusion, classifier, restorer or brain")
    prepare: Path | None = Field(default=None, description="configuration of the stage 'prepare'")
    brains: Path | None = Field(default=None, description="where 'prepare' keeps the brains it found")
    grid: GridConfig | None = Field(default=None, description="of the slices, where it is not that of 'prepare'")
    normalisation: NormalisationConfig | None = Field(default=None, description="the same")
    options: dict[str, Any] = {}
    postprocess: dict[str, Any] = {}
    checks: list[BrainCheck] = Field(default=[], description="of a brain mask: scans to measure it on")
    healthy: list[Path] = Field(
        default=[], description="scans of healthy people, to set the threshold with; else the healthy slices serve"
    )
    false_alarm_ml: float = Field(default=1.0, gt=0, description="healthy false alarms a scan at the threshold")
    false_alarm_quantile: float = Field(default=0.5, gt=0, le=1, description="share of scans that stay below it")
    texts: Texts

    @model_validator(mode="after")
    def _complete(self) -> PackageConfig:
        missing = [part for part in NEEDED[self.method] if part not in self.stages]
        if missing:
            raise ValueError(f"stages lacks {', '.join(missing)}, which the method {self.method} needs")
        if "codec" in self.stages and self.stages["codec"].run is None:
            raise ValueError("the codec needs its 'run', which holds the scale of its latents")
        return self


@dataclass(frozen=True)
class HealthyScan:
    """A validation scan and the labels of its thin slices; without labels all are healthy."""

    volume: Volume
    brain: Any
    name: str
    labels: dict[tuple[str, int], int] | None

    def healthy(self, stack: SliceStack) -> np.ndarray:
        """Which of the stack's slices count as healthy, ``(n,)`` bool."""
        index = np.array(stack.indices)
        if self.labels is None:
            return np.ones(len(index), bool)
        return slab_labels(self.labels, self.name, index, slab_thickness(stack, self.volume)) == HEALTHY


def package(config: PackageConfig, output: Path) -> Bundle:
    """Write the package ``output / name``, calibrated (except for a brain mask) and verified.

    What it declares is learnt with a copy in a hidden folder beside: an earlier package stays until that is known.
    """
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{config.name}-", dir=output) as workshop:
        anomaly = _learnt(config, Path(workshop) / config.name)
    bundle = _write(config, output / config.name, anomaly)
    verify(bundle)
    return bundle


def _learnt(config: PackageConfig, directory: Path) -> dict[str, Any]:
    """The whole declaration, learnt with packages that are written to ``directory``."""
    if config.method == "brain":
        declared: dict[str, Any] = {"orientation": "any", "grid3d": {"spacing": 2.0}}
        if config.checks:
            declared["quality"] = check_brain(_write(config, directory, declared), config.checks)
        return declared
    anomaly = _uncalibrated(config)
    scans = list(_healthy_scans(config))
    if config.method == "unsupervised":
        anomaly["latent_threshold"] = learn_latent_threshold(_write(config, directory, anomaly), scans)
    return anomaly | calibrate(_write(config, directory, anomaly), scans, config)


def learn_latent_threshold(bundle: Bundle, scans: list[HealthyScan]) -> dict[str, Any]:
    """The percentiles of the KL map on healthy validation slices (Pinaya et al. 2022, section 2.3)."""
    # A stand-in lets the options be made; the KL map does not depend on it.
    plan = make_plan(Options(method="unsupervised", overrides={"latent_threshold": 0.0}), bundle)
    model = plan.load(plan.device)
    assert model is not None
    values = []
    for scan in scans:
        stack = SliceStack(scan.volume, bundle.grid, scan.brain)
        scale = bundle.normalisation.fit_scan(scan.volume.image, scan.brain)
        for place in np.flatnonzero(scan.healthy(stack)).tolist():
            batch = make_batch(stack, scale, place, place + 1, seed=0)
            found = Unsupervised().improbability(batch, model, plan.method_options, lambda calls: None)  # type: ignore[arg-type]
            values.append(found.kl[found.inside].cpu().numpy())
    logger.info("latent threshold from %d healthy slices", len(values))
    return fit_latent_threshold(np.concatenate(values), plan.method_options.latent_percentile)  # type: ignore[attr-defined]


def calibrate(bundle: Bundle, scans: list[HealthyScan], config: PackageConfig) -> dict[str, Any]:
    """Table from raw heat to tail probability, default threshold and score range, on healthy slices alone."""
    plan = make_plan(Options(method=config.method), bundle)
    pieces, scores = [], []
    for scan in scans:
        found = raw_heat(scan.volume, scan.brain, plan)
        keep = scan.healthy(found.stack)
        brain = found.stack.brain()
        scores.append(whole_image_score(found.scores))
        if keep.any():
            pieces.append((found.raw[keep], brain[keep], found.stack.voxel_ml, brain.sum() / brain[keep].sum()))
        logger.info("%s: %s, %d healthy slices", config.method, Path(scan.volume.source).name, keep.sum())
    source = f"{sum(len(p[0]) for p in pieces)} healthy slices of {len(pieces)} validation scans"
    calibration = Calibration.fit(np.concatenate([raw[brain] for raw, brain, _, _ in pieces]), source=source)
    judged = [(calibration(raw), voxel_ml, float(factor)) for raw, _, voxel_ml, factor in pieces]
    if config.healthy:
        judged = [(calibration(found.raw), found.stack.voxel_ml, 1.0) for found in _of_healthy_people(config, plan)]
        source = f"{len(judged)} scan{'s' if len(judged) > 1 else ''} of healthy people"
    threshold = threshold_for_false_alarms(judged, config.false_alarm_ml, config.false_alarm_quantile)
    spread = {"mean": float(np.mean(scores)), "std": float(np.std(scores))}
    return {
        "calibration": calibration.to_dict(),
        "threshold": {
            "heat": round(threshold, 4),
            "false_alarm_ml": config.false_alarm_ml,
            "source": f"{_share(config.false_alarm_quantile)} of {source}",
        },
        "score_range": spread | {"upper": spread["mean"] + UNKNOWN_DEVIATIONS * spread["std"]},
    }


def describe(bundle: Bundle, evaluation: Path, run: str, data: str) -> Bundle:
    """The same package with what ``diffusion-anomaly evaluate`` measured in its declaration and on its card.

    Args:
        bundle: the package.
        evaluation: ``evaluation.json``.
        run: the row of its table.
        data: what it was measured on, in words.
    """
    table = json.loads(evaluation.read_text(encoding="utf-8"))
    rows = {row["run"]: row for row in table["rows"]}
    if run not in rows:
        raise ConfigurationError(f"{evaluation} has no run {run!r}; it has {', '.join(rows)}.")
    quality: dict[str, Any] = {"measured on": data, "patients": rows[run]["patients"]}
    for key, name in MEASURES.items():
        quality[name] = round(rows[run][key], 6)
        if f"{key}_low" in rows[run]:
            quality[f"{name}, 95 % interval"] = [round(rows[run][f"{key}_{end}"], 6) for end in ("low", "high")]
        if key in COMPARED and "intensity" in rows and run != "intensity":
            quality[f"{name} of the intensity baseline"] = round(rows["intensity"][key], 6)
    if "beats_intensity" in rows[run]:
        quality["beats the intensity baseline"] = rows[run]["beats_intensity"]
    quality |= {"hardware": table["about"]["hardware"]}
    texts = json.loads((bundle.path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    anomaly = bundle.anomaly | {"quality": quality}
    return write_bundle(
        bundle.path,
        name=bundle.name,
        version=bundle.version,
        method=bundle.method,
        networks={part: (bundle.network_config(part), bundle.weights(part)) for part in bundle.networks},
        anomaly=anomaly,
        metadata=_metadata(texts),
        model_card=_card(anomaly, texts),
        data_license=bundle.data_license,
        license_text=bundle.license_text,
    )


# What of an evaluation's row goes on the card, by its name there.
MEASURES = {
    "average_precision": "average precision",
    "best_dice": "best common-threshold Dice",
    "dice": "Dice at the stored threshold",
    "lesion_recall": "lesion recall at the stored threshold",
    "false_positives": "false positives a scan",
    "slice_auroc": "slice AUROC",
    "seconds": "seconds a scan",
    "network_calls": "network calls a slice",
}
COMPARED = ("average_precision", "best_dice")
_METADATA = (
    "title",
    "limits",
    "task",
    "description",
    "authors",
    "copyright",
    "license",
    "intended_use",
    "data_source",
    "references",
)


def _metadata(texts: dict[str, Any]) -> dict[str, Any]:
    """What of the texts goes into MONAI's metadata."""
    changelog = {"changelog": texts["changelog"]} if texts.get("changelog") else {}
    return {key: texts[key] for key in _METADATA} | changelog


def _healthy_scans(config: PackageConfig) -> Iterator[HealthyScan]:
    prepare = _prepare(config)
    labels = read_labels(prepare.labels) if prepare.labels else None
    for path in sorted(prepare.val.glob(prepare.pattern)):
        volume = read_volume(path)
        brain = brain_of(path, volume, prepare, config.brains)
        yield HealthyScan(volume, brain, path.name, labels)


def _share(quantile: float) -> str:
    return {1.0: "each", 0.5: "half"}.get(quantile, f"{quantile:.0%}")


def _of_healthy_people(config: PackageConfig, plan: Plan) -> Iterator[RawHeat]:
    for path in config.healthy:
        volume = read_volume(path)
        yield raw_heat(volume, brain_of(path, volume, _prepare(config), config.brains), plan)
        logger.info("%s: %s, a healthy person", config.method, path.name)


def _prepare(config: PackageConfig) -> PrepareConfig:
    if config.prepare is None:
        raise ValueError(f"The package {config.name} needs 'prepare', the configuration its slices were made with.")
    return read_yaml(config.prepare, PrepareConfig)


def _uncalibrated(config: PackageConfig) -> dict[str, Any]:
    """The declaration as far as training settled it."""
    prepare = _prepare(config)
    declared = {
        "orientation": "axial",
        "brain_only": True,
        "grid": (config.grid or prepare.grid).model_dump(mode="json"),
        "normalisation": (config.normalisation or prepare.normalisation).rule.to_dict(),
        "postprocess": config.postprocess,
    }
    if config.method == "intensity":
        return declared | {"options": config.options}
    if config.method == "localise":
        localiser = read_yaml(config.stages["localiser"].config, LocaliseConfig)
        return declared | {"codec": {"factor": localiser.fold}}
    if config.method == "restore":
        restorer = _restorer(config.stages["restorer"].config)
        levels = {"levels": restorer.corruption.levels}
        return declared | {"codec": {"factor": restorer.fold}, "options": levels | config.options}
    diffusion = read_yaml(config.stages["diffusion"].config, DiffusionConfig)
    codec: dict[str, Any] = {"factor": diffusion.fold}
    if "codec" in config.stages:
        settings = read_yaml(config.stages["codec"].config, CodecConfig)
        run = config.stages["codec"].run
        assert run is not None
        loaded, _ = load_codec(settings, run)
        shift, scale = (v.flatten().tolist() for v in (loaded.shift, loaded.scale))
        codec = {"factor": settings.factor, "fold": settings.fold, "shift": shift, "scale": scale}
    return declared | {
        "schedule": diffusion.schedule.model_dump(),
        "prediction_type": diffusion.prediction_type,
        "codec": codec,
        "options": config.options,
    }


class _AnyEntries(BaseModel):
    model_config = ConfigDict(extra="allow")


def _restorer(path: Path) -> RestoreConfig | DenoiseConfig:
    """The configuration of a restorer's training: of slabs, or of slices for the denoising autoencoder."""
    on_slices = "slices" in (read_yaml(path, _AnyEntries).model_extra or {})
    return read_yaml(path, DenoiseConfig if on_slices else RestoreConfig)


def _networks(
    config: PackageConfig,
) -> tuple[dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]], dict[str, Any]]:
    """Configuration and averaged weights of each part, and what each training took."""
    networks, facts = {}, {}
    kinds: dict[str, Any] = {"codec": CodecConfig, "brain": BrainConfig, "localiser": LocaliseConfig}
    for part, stage in config.stages.items():
        settings = (
            _restorer(stage.config) if part == "restorer" else read_yaml(stage.config, kinds.get(part, DiffusionConfig))
        )
        weights, facts[part] = stage.load()
        networks[part] = (settings.network, weights)
    return networks, facts


def _write(config: PackageConfig, directory: Path, anomaly: dict[str, Any]) -> Bundle:
    networks, facts = _networks(config)
    anomaly = {"modality": config.modality, **anomaly, "training": {**facts, "data": config.texts.data_source}}
    texts = config.texts.model_dump(mode="json")
    head = {"name": config.name, "version": config.version, "method": config.method}
    return write_bundle(
        directory,
        **head,
        networks=networks,
        anomaly=anomaly,
        metadata=_metadata(texts),
        model_card=_card(head | anomaly, texts),
        data_license=config.texts.data_license,
        license_text=config.texts.license_file.read_text(encoding="utf-8"),
    )


def _card(anomaly: dict[str, Any], texts: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.jinja").render(anomaly=anomaly, texts=texts)
