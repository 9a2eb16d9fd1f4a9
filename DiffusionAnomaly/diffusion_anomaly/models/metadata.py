"""The part of ``metadata.json`` that follows from the package itself, so that nobody gets it wrong.

Keys are those of the MONAI Bundle specification: ``network_data_format`` describes the main network, and
``<part>_data_format`` each other one, as MONAI's own latent diffusion bundles do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed
from typing import Any

MONAI_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
REQUIRED_PACKAGES = ("einops", "safetensors", "scipy", "SimpleITK")
MAIN_NETWORKS = ("diffusion", "restorer", "localiser", "brain", "recogniser")


def complete_metadata(
    metadata: Mapping[str, Any], anomaly: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Metadata with the specification's derivable keys filled in; what the caller gave is kept.

    Args:
        metadata: at least ``task``, ``description``, ``authors``, ``copyright``, ``license`` (a short
            identifier such as ``CC-BY-NC-SA-4.0``), ``intended_use`` and ``data_source``, which only the
            author knows.
        anomaly: the content of ``anomaly.json``.
        networks: the configuration of each network.
    """
    derived: dict[str, Any] = {
        "schema": MONAI_SCHEMA,
        "version": anomaly["version"],
        "changelog": {anomaly["version"]: "first version"},
        "monai_version": _base_version("monai"),
        "pytorch_version": _base_version("torch"),
        "numpy_version": _base_version("numpy"),
        "required_packages_version": {package: _base_version(package) for package in REQUIRED_PACKAGES},
        "name": anomaly["name"],
    }
    for part, config in networks.items():
        key = "network_data_format" if part in MAIN_NETWORKS else f"{part}_data_format"
        derived[key] = data_format(part, config, anomaly)
    modality = dicom_modality(anomaly)
    if not networks:  # MONAI's schema asks for it all the same: what goes in and what comes out
        width, height = anomaly["grid"]["size"]
        clip = anomaly["normalisation"].get("clip_max", 1.0)
        shape, channels = [height, width], len(anomaly.get("channels", (anomaly["modality"],)))
        derived["network_data_format"] = {
            "inputs": {"image": _tensor("image", "magnitude", channels, shape, [0, clip], modality=modality)},
            "outputs": {"pred": _tensor("image", "magnitude", 1, shape, [0, clip], modality=modality)},
        }
    return {**derived, **metadata}


def dicom_modality(anomaly: Mapping[str, Any]) -> str:
    """DICOM's word for what a package looks at, which MONAI's ``modality`` is by custom: MR unless it says another."""
    return {"CT": "CT", "X-ray": "DX"}.get(str(anomaly.get("modality")), "MR")


def data_format(part: str, config: Mapping[str, Any], anomaly: Mapping[str, Any]) -> dict[str, Any]:
    """A network's inputs and outputs as MONAI's tensor specifiers.

    Args:
        part: ``codec``, ``diffusion``, ``classifier``, ``restorer``, ``localiser``, ``brain`` or ``recogniser``.
        config: the network's configuration, which says its channels.
        anomaly: the content of ``anomaly.json``, which says the grid.
    """
    inputs, outputs = config.get("in_channels", 1), config.get("out_channels", 1)
    modality = dicom_modality(anomaly)
    if part == "brain":
        return {
            "inputs": {"image": _tensor("image", "magnitude", inputs, ["*", "*", "*"], [0, 1], modality="MR")},
            "outputs": {"pred": _tensor("image", "segmentation", outputs, ["*", "*", "*"], [])},
        }
    if part == "recogniser":
        return {
            "inputs": {"image and brain": _tensor("image", "magnitude", inputs, ["*", "*", "*"], [0, 1.2])},
            "outputs": {"logits": _tensor("probabilities", "classes", outputs, [], [])},
        }
    width, height = anomaly["grid"]["size"]
    if part == "codec":
        fold = anomaly["codec"].get("fold", 1)
        image = _tensor("image", "magnitude", inputs, [height // fold, width // fold], [-1, 1], modality=modality)
        return {"inputs": {"image": image}, "outputs": {"reconstruction": image}}
    factor = anomaly["codec"]["factor"]
    shape = [height // factor, width // factor]
    if part == "restorer":
        levels = anomaly["options"]["levels"]
        folded = _tensor("image", "magnitude", inputs, shape, [-1, 1], modality=modality)
        level = _tensor("tuples", "level of corruption", 1, [], [0, levels - 1], dtype="int64")
        return {
            "inputs": {"image": folded, "level": level},
            "outputs": {"change and lesion logits": _tensor("image", "magnitude", outputs, shape, [])},
        }
    if part == "localiser":
        folded = _tensor("image", "magnitude", inputs, shape, [-1, 1], modality=modality)
        return {
            "inputs": {"image": folded},
            "outputs": {"lesion logits": _tensor("image", "magnitude", outputs, shape, [])},
        }
    levels = anomaly["schedule"]["levels"]
    noisy = {
        "latent": _tensor("image", "latent", inputs, shape, []),
        "timesteps": _tensor("tuples", "timesteps", 1, [], [0, levels - 1], dtype="int64"),
    }
    if part == "classifier":
        classes = {"0": "healthy", "1": "diseased"}
        return {
            "inputs": noisy,
            "outputs": {"logits": _tensor("probabilities", "classes", outputs, [], [], classes)},
        }
    predicted = "noise" if anomaly["prediction_type"] == "epsilon" else "velocity"
    return {"inputs": noisy, "outputs": {predicted: _tensor("image", "latent", outputs, shape, [])}}


def _tensor(
    kind: str,
    content: str,
    channels: int,
    shape: list[int] | list[str],
    value_range: Sequence[float],
    channel_def: Mapping[str, str] | None = None,
    *,
    dtype: str = "float32",
    modality: str = "n/a",
) -> dict[str, Any]:
    return {
        "type": kind,
        "format": content,
        "modality": modality,
        "num_channels": channels,
        "spatial_shape": shape,
        "dtype": dtype,
        "value_range": list(value_range),
        "is_patch_data": False,
        "channel_def": dict(channel_def or {str(index): content for index in range(channels)}),
    }


def _base_version(package: str) -> str:
    # "2.13.0+cpu" and "2.13.0+cu130" run the same networks; MONAI's schema wants the plain number.
    return installed(package).split("+")[0]
