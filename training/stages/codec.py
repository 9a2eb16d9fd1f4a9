"""The codec: an autoencoder that turns a slice into a small latent and back.

A VQ-VAE as in the first paper (Pinaya et al. 2022, section 2.1), an autoencoder with continuous latents and a weak
pull towards a normal distribution (Rombach et al. 2022), or a plain one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.losses import JukeboxLoss
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets import VQVAE, AutoEncoder, AutoencoderKL
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.networks import Codec, build_network

from ..data.sampling import AugmentationConfig, Labels, SliceSampler, plain, side_by_side
from ..data.slices import Slices, training_slices, validation_slices
from ..trainer.checkpoints import averaged_weights, require_fit
from ..trainer.configuration import NetworkDeclaration
from ..trainer.loop import Batch
from ..trainer.optimisation import TrainerConfig

logger = logging.getLogger(__name__)


class CodecConfig(BaseModel):
    """Configuration file of the stage ``codec``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slices: Path
    labels: Labels = (0,)
    halves: bool = Field(default=False, description="healthy halves with their mirror images count as healthy slices")
    factor: int = Field(gt=0)
    fold: int = Field(default=1, ge=1, description="blocks of this many pixels are folded into the network's channels")
    initialise: str = Field(
        default="random",
        pattern="^(random|principal_components)$",
        description="principal_components: start a linear AutoEncoder where its squared error is least",
    )
    latent_scale: str = Field(
        default="channel",
        pattern="^(channel|common)$",
        description="whether each latent channel gets unit deviation, or all of them together do",
    )
    kl_weight: float = Field(default=1e-5, ge=0, description="AutoencoderKL: pull of latents towards normality")
    network: NetworkDeclaration
    spectral_weight: float = Field(
        default=0.1, ge=0, description="0 for a linear network: the gradient of an even image's spectrum is not finite"
    )
    brain_weight: float = Field(default=1.0, ge=0, description="extra weight of pixels inside the brain")
    augmentation: AugmentationConfig = AugmentationConfig()
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _consistent(self) -> CodecConfig:
        if (kind := self.network["_target_"]) not in AUTOENCODERS:
            raise ValueError(f"network is {kind}; expected one of {', '.join(AUTOENCODERS)}")
        if self.factor % self.fold:
            raise ValueError(f"fold is {self.fold}, which does not divide factor {self.factor}")
        found_in, found_out = self.network.get("in_channels"), self.network.get("out_channels")
        if not found_in or found_in % self.fold**2:
            raise ValueError(f"network.in_channels is {found_in}, but fold {self.fold} needs {self.fold**2} a contrast")
        if found_out != found_in:
            raise ValueError(f"network.out_channels is {found_out}, but network.in_channels is {found_in}")
        return self

    @property
    def contrasts(self) -> int:
        """How many contrasts a slice has that the network encodes."""
        return self.network["in_channels"] // self.fold**2


# A code that is used less often than this a step, on average, is put where latents are. Without it three of 512 codes
# were in use after 500 steps, and the codec's PSNR was 18 dB.
LEAST_USE = 0.5

AUTOENCODERS = [kind.__name__ for kind in (AutoEncoder, AutoencoderKL, VQVAE)]


class TrainableCodec(nn.Module):
    """An autoencoder, and what it costs that its latents are not free.

    A VQ-VAE's codebook is compared in float32 whatever the mixed precision around it, and stays in use.
    """

    def __init__(self, network: nn.Module, fold: int = 1) -> None:
        super().__init__()
        assert isinstance(network, (AutoEncoder, AutoencoderKL, VQVAE))  # as CodecConfig requires
        self.network = network
        self.fold = fold

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C, H, W)`` to its reconstruction and the latents' cost: commitment, or divergence from normal."""
        folded = nn.functional.pixel_unshuffle(image, self.fold).contiguous(memory_format=torch.channels_last)
        result, cost = self._through(folded)
        return nn.functional.pixel_shuffle(result.float(), self.fold), cost

    def _through(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.network, AutoEncoder):
            return self.network(image), torch.zeros((), device=image.device)
        if isinstance(self.network, AutoencoderKL):
            mean, deviation = self.network.encode(image)
            # In use latents are the means; noise is for training alone.
            result = self.network.decode(self.network.sampling(mean, deviation) if self.training else mean)
            mean, deviation = mean.float(), deviation.float()
            return result, 0.5 * (mean**2 + deviation**2 - 2.0 * deviation.log() - 1.0).mean()
        latent = self.network.encode(image)
        with torch.autocast(image.device.type, enabled=False):
            quantised, loss = self.network.quantize(latent.float())
        if self.training:
            self._revive_codes(latent.detach().float())
        return self.network.decode(quantised), loss

    @torch.no_grad()
    def _revive_codes(self, latent: Tensor) -> None:
        """Move codes that nothing uses to latents of this batch, drawn from torch's generator, which a step seeds."""
        codebook = cast(EMAQuantizer, cast(VQVAE, self.network).quantizer.quantizer)
        unused = codebook.ema_cluster_size < LEAST_USE
        candidates = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
        chosen = candidates[torch.randint(len(candidates), (int(unused.sum()),)).to(latent.device)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(chosen, 0)
        codebook.embedding.weight[unused] = chosen
        codebook.ema_w[unused] = chosen
        codebook.ema_cluster_size[unused] = 1.0


class SpectralLoss(JukeboxLoss):
    """The difference of two amplitude spectra, with a gradient of 0 where an amplitude is 0.

    The square root in MONAI's loss has no gradient there, and a reconstruction without any structure, as of a slice
    beyond the brain, has an amplitude of exactly 0 at all frequencies but one.
    """

    def _get_fft_amplitude(self, images: Tensor) -> Tensor:
        return torch.fft.fftn(images, dim=self.fft_dim, norm=self.fft_norm).abs()


class CodecTask:
    """L1, spectral and commitment loss; the codebook is a moving average of the latents."""

    def __init__(self, config: CodecConfig) -> None:
        torch.manual_seed(config.trainer.seed)
        self.config = config
        self.network: nn.Module = TrainableCodec(build_network(config.network), config.fold)
        slices = training_slices(config.slices, config.halves)
        require_contrasts(config, slices)
        self.sampler = SliceSampler(slices, config.labels, config.augmentation)
        self.validation = plain(validation_slices(config.slices), 48, config.labels[0])
        # A commitment loss has its own weight inside MONAI's quantiser.
        self.cost_weight = config.kl_weight if isinstance(self.network.network, AutoencoderKL) else 1.0
        if config.initialise == "principal_components":
            images = plain(slices, 512, config.labels[0])
            start_at_principal_components(self.network.network, images, config.fold)
        self.spectral = SpectralLoss(spatial_dims=2)

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        return self.sampler.draw(rng, size)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        result, cost = network(image)
        weight = 1.0 + self.config.brain_weight * (image > -1.0)
        absolute = (weight * (result - image).abs()).mean()
        scalars = {"l1": absolute, "latent": cost}
        loss = absolute + self.cost_weight * cost
        if self.config.spectral_weight > 0:
            scalars["spectral"] = self.spectral(result, image)
            loss = loss + self.config.spectral_weight * scalars["spectral"]
        return {"loss": loss} | scalars

    def validate(self, network: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
        image = self.validation.to(next(network.parameters()).device)
        result = network(image)[0]
        shown = torch.cat([image[::8], result[::8]], 2)
        return {"psnr": psnr(result, image)}, {"scan, codec": 0.5 + 0.5 * side_by_side(shown)}


@torch.no_grad()
def start_at_principal_components(network: nn.Module, images: Tensor, fold: int) -> None:
    """Set a linear ``AutoEncoder`` of folded pixels to the projection on their first principal components.

    A gradient descent from random weights is slow here, because the components' variances differ a thousandfold: after
    700 steps of Adam the PSNR was 24 dB where this start has 34.

    Args:
        network: one layer each way, kernel 1, neither norm nor activation.
        images: ``(n, C, H, W)`` in [-1, 1], -1 outside the brain.
        fold: pixels folded into channels along each axis.

    Raises:
        InputError: for any other network.
    """
    parameters = list(network.parameters())
    shapes = [tuple(parameter.shape) for parameter in parameters]
    channels = images.shape[1] * fold**2
    components = shapes[0][0] if shapes else 0
    if shapes != [(components, channels, 1, 1), (components,), (components, channels, 1, 1), (channels,)]:
        raise InputError(
            f"initialise is principal_components, but the network's weights have the shapes {shapes}.",
            "Use an AutoEncoder with one number in channels, kernel_size 1, up_kernel_size 1, norm null, act null.",
        )
    blocks = nn.functional.pixel_unshuffle(images, fold).permute(0, 2, 3, 1).reshape(-1, channels)
    blocks = blocks[(blocks > -1.0).any(dim=1)].double()
    mean = blocks.mean(dim=0)
    _, vectors = torch.linalg.eigh(torch.cov(blocks.T))
    basis = vectors.flip(1)[:, :components].T  # (components, channels), the largest variance first
    encode, encode_bias, decode, decode_bias = parameters
    encode.copy_(basis[..., None, None])
    encode_bias.copy_(-basis @ mean)
    decode.copy_(basis[..., None, None])
    decode_bias.copy_(mean)


def require_contrasts(config: CodecConfig, slices: Slices) -> None:
    """Refuse slices with other contrasts than a codec is made for.

    Raises:
        InputError: naming both numbers.
    """
    found = slices.images.shape[1]
    if found != config.contrasts:
        raise InputError(
            f"The slices have {found} contrast{'s' if found > 1 else ''}, but the codec's network.in_channels is "
            f"{config.network['in_channels']}.",
            f"With fold {config.fold}, {found} of them need {found * config.fold**2}.",
        )


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
    network = TrainableCodec(build_network(config.network), config.fold)
    require_fit(weights, network.state_dict(), checkpoint)
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    codec = Codec(network.network, config.factor, fold=config.fold)
    images = plain(training_slices(config.slices, config.halves), 256, config.labels[0])
    with torch.no_grad():
        latent = torch.cat([codec.encode(piece) for piece in images.split(16)])
    brain = (images > -1.0).any(dim=1, keepdim=True).float()
    inside = nn.functional.max_pool2d(brain, config.factor)[:, 0] > 0
    values = latent.permute(0, 2, 3, 1)[inside]
    shift, deviation = values.mean(0).tolist(), values.std(0).clamp_min(1e-6)
    if config.latent_scale == "common":
        deviation = deviation.square().mean().sqrt().expand_as(deviation)
    return Codec(network.network, config.factor, shift, (1.0 / deviation).tolist(), config.fold), facts


def read_codec(config: CodecConfig | None, run: Path | None, fold: int) -> Codec:
    """The codec of a run, or pixel space folded ``fold`` times when there is none."""
    return load_codec(config, run)[0] if config and run else Codec(None, fold)
