"""The codec: a VQ-VAE that turns a slice into a small latent and back (Pinaya et al. 2022, section 2.1)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.losses import JukeboxLoss
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets import VQVAE
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from diffusion_anomaly.networks import Codec, build_network

from .checkpoints import require_fit
from .configuration import NetworkDeclaration
from .sampling import AugmentationConfig, Labels, SliceSampler, plain
from .slices import Slices
from .trainer import Batch, TrainerConfig, averaged_weights

logger = logging.getLogger(__name__)


class CodecConfig(BaseModel):
    """Configuration file of the stage ``codec``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slices: Path
    labels: Labels = (0,)
    factor: int = Field(gt=0)
    network: NetworkDeclaration
    spectral_weight: float = Field(default=0.1, ge=0)
    brain_weight: float = Field(default=1.0, ge=0, description="extra weight of pixels inside the brain")
    augmentation: AugmentationConfig = AugmentationConfig()
    trainer: TrainerConfig


# A code that is used less often than this a step, on average, is put where latents are. Without it three of 512 codes
# were in use after 500 steps, and the codec's PSNR was 18 dB.
LEAST_USE = 0.5


class TrainableCodec(nn.Module):
    """A VQ-VAE whose codebook is compared in float32 whatever the mixed precision around it, and stays in use."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, VQVAE):
            raise TypeError(f"The codec's network is {type(network).__name__}; expected VQVAE.")
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.network.encode(image)
        with torch.autocast(image.device.type, enabled=False):
            quantised, loss = self.network.quantize(latent.float())
        if self.training:
            self._revive_codes(latent.detach().float())
        return self.network.decode(quantised), loss

    @torch.no_grad()
    def _revive_codes(self, latent: Tensor) -> None:
        """Move codes that nothing uses to latents of this batch, drawn from torch's generator, which a step seeds."""
        codebook = cast(EMAQuantizer, self.network.quantizer.quantizer)
        unused = codebook.ema_cluster_size < LEAST_USE
        candidates = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
        chosen = candidates[torch.randint(len(candidates), (int(unused.sum()),)).to(latent.device)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(chosen, 0)
        codebook.embedding.weight[unused] = chosen
        codebook.ema_w[unused] = chosen
        codebook.ema_cluster_size[unused] = 1.0


class CodecTask:
    """L1, spectral and commitment loss; the codebook is a moving average of the latents."""

    def __init__(self, config: CodecConfig) -> None:
        torch.manual_seed(config.trainer.seed)
        self.config = config
        self.network: nn.Module = TrainableCodec(build_network(config.network))
        self.sampler = SliceSampler(Slices.load(config.slices / "train.npz"), config.labels, config.augmentation)
        self.validation = plain(Slices.load(config.slices / "val.npz"), 48, config.labels[0])
        self.spectral = JukeboxLoss(spatial_dims=2)

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        return self.sampler.draw(rng, size)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        result, commitment = network(image)
        result = result.float()
        weight = 1.0 + self.config.brain_weight * (image > -1.0)
        absolute = (weight * (result - image).abs()).mean()
        spectral = self.spectral(result, image)
        loss = absolute + self.config.spectral_weight * spectral + commitment
        return {"loss": loss, "l1": absolute, "spectral": spectral, "commitment": commitment}

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        image = self.validation.to(next(network.parameters()).device)
        result = network(image)[0].float()
        shown = torch.cat([image[::8], result[::8]], 2)
        return {"psnr": psnr(result, image)}, {"scan, codec": 0.5 + 0.5 * torch.cat(list(shown), 2)}


def psnr(result: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio inside the brain in dB, the peak being the whole normalised range."""
    inside = image > -1.0
    return float(10.0 * torch.log10(4.0 / ((result.clamp(-1, 1) - image)[inside] ** 2).mean()))


def load_codec(config: CodecConfig, run: Path) -> tuple[Codec, dict[str, Any]]:
    """The trained codec with latents scaled to unit deviation inside the brain, and what the run says of itself.

    The scale is measured on the training slices, per channel.
    """
    checkpoint = run / "checkpoint.pt"
    weights, facts = averaged_weights(checkpoint)
    if facts["step"] < config.trainer.steps:
        logger.warning(
            "%s has %d of %d steps; train the codec to its end before anything is learnt on its latents",
            checkpoint,
            facts["step"],
            config.trainer.steps,
        )
    network = TrainableCodec(build_network(config.network))
    require_fit(weights, network.state_dict(), checkpoint)
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    codec = Codec(network.network, config.factor)
    images = plain(Slices.load(config.slices / "train.npz"), 256, config.labels[0])
    with torch.no_grad():
        latent = torch.cat([codec.encode(piece) for piece in images.split(16)])
    inside = nn.functional.max_pool2d((images > -1.0).float(), config.factor)[:, 0] > 0
    values = latent.permute(0, 2, 3, 1)[inside]
    shift, deviation = values.mean(0).tolist(), values.std(0).clamp_min(1e-6)
    return Codec(network.network, config.factor, shift, (1.0 / deviation).tolist()), facts


def read_codec(config: CodecConfig | None, run: Path | None, fold: int) -> Codec:
    """The codec of a run, or pixel space folded ``fold`` times when there is none."""
    return load_codec(config, run)[0] if config and run else Codec(None, fold)
