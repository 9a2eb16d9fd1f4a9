"""From trained runs to a verified model package: weights, what is learnt from healthy tissue, card, licences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion_anomaly.detection.recognition import SPACING
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.models.writing import may_replace, outputs_beside, write_bundle

from ..stages.brain_check import check_brain
from ..stages.recognition_check import check_recognition
from .calibrate import calibrate, calibration_scans, learn_latent_threshold
from .cards import metadata_of, render_card
from .config import PackageConfig
from .declaration import read_networks, uncalibrated


def package(config: PackageConfig, output: Path) -> Bundle:
    """Write the package ``output / name``, calibrated (but for what finds brains or recognises scans) and verified.

    What it declares is learnt with a copy in a hidden folder beside: an earlier package stays until that is known.
    """
    if not may_replace(output / config.name):  # before hours of calibration
        raise InputError(
            f"{output / config.name} holds something else than a model package.",
            "Choose another folder, or move what is there away.",
        )
    with outputs_beside(output / f"{config.name}-learnt") as workshop:
        anomaly = _learnt(config, workshop / config.name)
    return _write(config, output / config.name, anomaly, complete=True)


def write_uncalibrated(config: PackageConfig, directory: Path) -> Bundle:
    """Networks and options without what is learnt from healthy tissue: enough to choose options by."""
    return _write(config, directory, uncalibrated(config))


def _learnt(config: PackageConfig, directory: Path) -> dict[str, Any]:
    """The whole declaration, learnt with packages that are written to ``directory``."""
    if config.method == "brain":
        declared: dict[str, Any] = {"orientation": "any", "grid3d": {"spacing": 2.0}}
        if config.checks:
            declared["quality"] = check_brain(_write(config, directory, declared), config.checks)
        return declared
    if config.method == "recognition":
        declared = {"orientation": "any", "grid3d": {"spacing": SPACING}}
        if config.sets:
            declared["quality"] = check_recognition(_write(config, directory, declared), config.sets)
        return declared
    anomaly = uncalibrated(config)
    scans = list(calibration_scans(config))
    if config.method == "unsupervised":
        anomaly["latent_threshold"] = learn_latent_threshold(_write(config, directory, anomaly), scans)
    return anomaly | calibrate(_write(config, directory, anomaly), scans, config)


def _write(config: PackageConfig, directory: Path, anomaly: dict[str, Any], complete: bool = False) -> Bundle:
    networks, facts = read_networks(config)
    anomaly = {"modality": config.modality, **anomaly, "training": {**facts, "data": config.texts.data_source}}
    texts = config.texts.model_dump(mode="json")
    head = {"name": config.name, "version": config.version, "method": config.method}
    return write_bundle(
        directory,
        **head,
        networks=networks,
        anomaly=anomaly,
        metadata=metadata_of(texts),
        model_card=render_card(head | anomaly, texts),
        data_license=config.texts.data_license,
        license_text=config.texts.license_file.read_text(encoding="utf-8"),
        complete=complete,
    )
