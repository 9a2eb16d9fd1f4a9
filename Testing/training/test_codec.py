"""Autoencoders as codecs: detection does with them what training saw, and the linear one starts at its best."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.loading import load_model
from diffusion_anomaly.models.networks import Codec, build_network
from diffusion_anomaly.models.writing import write_bundle
from Testing.training.fakes import train_here
from Testing.training.stages import AUTOENCODER, CODEC, DIFFUSION, NORMAL
from training.data.sampling import plain
from training.data.slices import HEALTHY, training_slices
from training.stages.codec import (
    CodecConfig,
    CodecTask,
    SpectralLoss,
    TrainableCodec,
    load_codec,
    start_at_principal_components,
)

KINDS = {"VQVAE": CODEC, "AutoencoderKL": NORMAL, "AutoEncoder": AUTOENCODER}
LINEAR = {
    "_target_": "AutoEncoder",
    "spatial_dims": 2,
    "in_channels": 16,
    "out_channels": 16,
    "channels": [5],
    "strides": [1],
    "kernel_size": 1,
    "up_kernel_size": 1,
    "norm": None,
    "act": None,
}


def codec_config(slices: Path, entries: dict[str, Any], **changes: Any) -> CodecConfig:
    return CodecConfig.model_validate(deepcopy(entries) | {"slices": slices} | changes)


def linear_config(slices: Path, **changes: Any) -> CodecConfig:
    entries = CODEC | {"network": LINEAR, "fold": 4, "spectral_weight": 0.0, "initialise": "principal_components"}
    return codec_config(slices, entries, **changes)


@pytest.fixture
def images(slices_folder: Path) -> torch.Tensor:
    return plain(training_slices(slices_folder, False), 12, HEALTHY)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_decoding_is_what_was_trained(
    tmp_path: Path, slices_folder: Path, images: torch.Tensor, kind: str
) -> None:
    config = codec_config(slices_folder, KINDS[kind])
    train_here(tmp_path, CodecTask(config), steps=2)
    codec, facts = load_codec(config, tmp_path)
    assert facts["step"] == 2
    assert codec.network is not None
    with torch.no_grad():
        expected, _ = TrainableCodec(codec.network, config.fold).eval()(images)
        latent = codec.encode(images)
        found = codec.decode(latent)
    assert latent.shape == (len(images), 4, 4, 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_gives_the_codec_back(tmp_path: Path, images: torch.Tensor, kind: str) -> None:
    entries = KINDS[kind]
    torch.manual_seed(0)
    network = build_network(entries["network"])
    declared = {"factor": 4, "fold": entries.get("fold", 1), "shift": [0.1, -0.2, 0.3, 0.0], "scale": [2.0] * 4}
    diffusion = build_network(DIFFUSION["network"])
    bundle = write_bundle(
        tmp_path / "toy",
        name="toy",
        version="0.1.0",
        method="unsupervised",
        networks={
            "codec": (entries["network"], network.state_dict()),
            "diffusion": (DIFFUSION["network"], diffusion.state_dict()),
        },
        anomaly={
            "modality": "FLAIR",
            "grid": {"size": [16, 16], "spacing": 2.0},
            "normalisation": {"low_percentile": 5, "high_percentile": 75, "high_value": 0.5, "clip_max": 1.0},
            "schedule": {"kind": "linear", "levels": 1000},
            "prediction_type": "epsilon",
            "codec": declared,
        },
        metadata=dict.fromkeys(
            ("task", "description", "authors", "copyright", "license", "intended_use", "data_source"), "a test"
        ),
        model_card="# Card",
        data_license="none",
        license_text="none",
    )
    image = bundle.metadata["codec_data_format"]["inputs"]["image"]
    assert image["num_channels"] == declared["fold"] ** 2
    assert image["spatial_shape"] == [16 // declared["fold"]] * 2
    model = load_model(bundle, "cpu", "float32")
    # Weights travel as float16.
    network.load_state_dict(
        {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    )
    expected = Codec(network.eval(), **declared)
    with torch.no_grad():
        latent = expected.encode(images)
        torch.testing.assert_close(model.encode(images), latent, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.decode(latent), expected.decode(latent), rtol=0, atol=1e-5)


def test_latents_of_a_normal_autoencoder_are_noisy_in_training_alone(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    codec = TrainableCodec(build_network(NORMAL["network"]), 2)
    with torch.no_grad():
        assert not torch.equal(codec.train()(images)[0], codec(images)[0])
        assert torch.equal(codec.eval()(images)[0], codec(images)[0])


def test_the_pull_towards_normality_is_the_divergence_from_a_normal_distribution(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network: Any = build_network(NORMAL["network"])
    with torch.no_grad():
        _, cost = TrainableCodec(network, 2).eval()(images)
        mean, deviation = network.encode(torch.nn.functional.pixel_unshuffle(images, 2))
    normal = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = torch.distributions.kl_divergence(torch.distributions.Normal(mean, deviation), normal)
    torch.testing.assert_close(cost, divergence.mean(), rtol=1e-4, atol=1e-5)


# The linear autoencoder


def test_it_starts_at_the_projection_that_loses_least(images: torch.Tensor) -> None:
    network = build_network(LINEAR)
    start_at_principal_components(network, images, 4)
    blocks = torch.nn.functional.pixel_unshuffle(images, 4).permute(0, 2, 3, 1).reshape(-1, 16).double()
    blocks = blocks[(blocks > -1.0).any(1)]
    lost = np.linalg.svd((blocks - blocks.mean(0)).numpy(), compute_uv=False)[5:]
    with torch.no_grad():
        result = network(blocks.float().reshape(-1, 16, 1, 1))[:, :, 0, 0].double()
    assert float(((result - blocks) ** 2).sum()) == pytest.approx(float((lost**2).sum()), rel=1e-3)


@pytest.mark.parametrize("start", ["random", "principal_components"])
def test_the_stage_starts_there_when_asked(slices_folder: Path, images: torch.Tensor, start: str) -> None:
    made = CodecTask(linear_config(slices_folder, initialise=start))
    expected = build_network(LINEAR)
    start_at_principal_components(expected, images, 4)
    found = made.network.state_dict()
    same = [torch.allclose(found[f"network.{name}"], value) for name, value in expected.state_dict().items()]
    assert all(same) if start == "principal_components" else not any(same)


@pytest.mark.parametrize("change", [{"act": "relu", "channels": [5, 5], "strides": [1, 1]}, {"kernel_size": 3}])
def test_another_network_cannot_start_there(images: torch.Tensor, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"initialise is principal_components, but .* shapes"):
        start_at_principal_components(build_network(LINEAR | change), images, 4)


@pytest.mark.parametrize("scale", ["channel", "common"])
def test_latents_get_unit_deviation_each_or_all_together(tmp_path: Path, slices_folder: Path, scale: str) -> None:
    config = linear_config(slices_folder, latent_scale=scale)
    train_here(tmp_path, CodecTask(config), steps=1)
    codec, _ = load_codec(config, tmp_path)
    images = plain(training_slices(slices_folder, False), 256, HEALTHY)
    inside = torch.nn.functional.max_pool2d((images > -1.0).float(), 4)[:, 0] > 0
    with torch.no_grad():
        values = codec.encode(images).permute(0, 2, 3, 1)[inside]
    deviation = values.std(0)
    assert float(deviation.square().mean().sqrt()) == pytest.approx(1.0, abs=1e-3)
    assert (float(deviation.max() - deviation.min()) < 1e-3) == (scale == "channel")


def test_the_spectral_loss_has_a_gradient_where_an_amplitude_is_zero() -> None:
    image = torch.rand(2, 4, 16, 16)
    without_structure = torch.ones(2, 4, 16, 16, requires_grad=True)
    SpectralLoss(spatial_dims=2)(without_structure, image).backward()
    assert without_structure.grad is not None
    assert without_structure.grad.isfinite().all() and without_structure.grad.any()
