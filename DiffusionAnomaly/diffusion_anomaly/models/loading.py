"""From an opened package to networks on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..precision import choose_dtype
from ..system import choose_device
from .networks import Codec, Model, build_network
from .schedule import Schedule
from .weights import fitting_network

if TYPE_CHECKING:
    from torch import nn

    from .package import Bundle


def load_model(bundle: Bundle, device: str | torch.device = "auto", precision: str = "auto") -> Model:
    """Build what the package declares, fill in its weights and place it on the device.

    Raises:
        ModelError: when a network or its weights do not fit the declaration.
        InputError: when the device or the precision cannot be had here.
    """
    place = choose_device(device) if isinstance(device, str) else device
    networks = {part: load_network(bundle, part) for part in bundle.anomaly["networks"]}
    codec = bundle.anomaly["codec"]
    # A restorer has levels of corruption instead of noise.
    levels = bundle.anomaly.get("options", {}).get("levels", 1000)
    schedule = bundle.anomaly.get("schedule", {"kind": "linear", "levels": levels})
    return Model(
        Codec(
            networks.get("codec"),
            codec["factor"],
            codec.get("shift", 0.0),
            codec.get("scale", 1.0),
            codec.get("fold", 1),
        ),
        networks.get("diffusion"),
        Schedule.named(schedule["kind"], schedule["levels"]),
        classifier=networks.get("classifier"),
        restorer=networks.get("restorer"),
        localiser=networks.get("localiser"),
        prediction_type=bundle.anomaly.get("prediction_type", "epsilon"),
        noise_pyramid=schedule.get("pyramid", 0.0),
        device=place,
        dtype=choose_dtype(precision, place),
    )


def load_network(bundle: Bundle, part: str) -> nn.Module:
    """One network of a package with its weights, as float32 in evaluation mode.

    Raises:
        ModelError: when the network cannot be built, or its weights do not fit it.
    """
    config = bundle.network_config(part)
    # Shapes alone: initial weights would be drawn only to be replaced.
    network, weights = fitting_network(config, lambda most: bundle.weights(part, most), bundle.name, part)
    network.load_state_dict(weights, strict=True, assign=True)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):  # what is no part of the weights
        network = build_network(config)
        network.load_state_dict(weights, strict=True)
    return network.eval()
