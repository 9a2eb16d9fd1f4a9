"""Networks and codec, built from what a model package declares; and the ``Model`` that a method is handed.

A package names a class of the allow-list below and its arguments, nothing else: no code travels with weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..options import shown
from ..system import is_out_of_memory, without_garbage_collection
from .schedule import Schedule, network_level, to_epsilon
from .unet import PlainUNet

HEALTHY = 0
"""The class of a slice without disease, for classifiers and class-conditional diffusion networks."""

# Samples a network call on the CPU. A convolution may pick another kernel for another batch size and round
# differently, so every call has this size (the last is filled up) and a slice never depends on its companions.
CPU_CHUNK = 8
CUDA_CHUNK = 256

# The largest published networks of these classes have 1280 channels, 5 levels, 3 blocks a level and codebooks of 16384.
MOST_CHANNELS = 16384
MOST_LEVELS = 12
MOST_BLOCKS = 16
_DEPTHS = ("num_res_blocks", "num_res_layers", "num_res_units", "num_layers", "inter_", "spatial_dims")

# Classes by name and the module of each, which is imported when a package asks for it: MONAI takes seconds.
NETWORKS = {
    "AutoEncoder": "monai.networks.nets.autoencoder",
    "AutoencoderKL": "monai.networks.nets.autoencoderkl",
    "BasicUNet": "monai.networks.nets.basic_unet",
    "ConvEncoder": "diffusion_anomaly.models.encoder",
    "DiffusionModelEncoder": "monai.networks.nets.diffusion_model_unet",
    "DiffusionModelUNet": "monai.networks.nets.diffusion_model_unet",
    "VQVAE": "monai.networks.nets.vqvae",
}


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """The network a configuration declares, with fresh weights.

    Args:
        config: ``{"_target_": class name, **keyword arguments}`` with plain JSON values.

    Raises:
        ModelError: for a class that is not on the allow-list, or for arguments it does not take or that are out of all
            proportion.
    """
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    target = config.get("_target_")
    if not isinstance(target, str) or target not in NETWORKS:
        raise ModelError(
            f"The network class {target!r} is not one this version builds.", f"Known are {', '.join(sorted(NETWORKS))}."
        )
    for name, value in arguments.items():
        _check_proportion(target, name, value)
    network = _network_class(target, arguments)
    unknown = sorted(set(arguments) - set(inspect.signature(network.__init__).parameters))
    if unknown:
        raise ModelError(f"{target} does not take {', '.join(unknown)}.", "Check the package's configuration.")
    try:
        return network(**arguments)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ModelError(
            f"{target} cannot be built as declared: {reason}.", "Check the package's configuration."
        ) from error


def _check_proportion(target: str, name: str, value: Any) -> None:
    """Refuse what takes long to build even where it takes no memory: each level and block is Python objects."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        if len(value) > MOST_LEVELS:
            raise ModelError(f"{target}: {name} has {len(value)} entries.", f"It may have {MOST_LEVELS}.")
        for entry in value:
            _check_proportion(target, name, entry)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        most = MOST_BLOCKS if any(word in name for word in _DEPTHS) else MOST_CHANNELS
        if not abs(value) <= most:
            raise ModelError(f"{target}: {name} is {shown(value)}.", f"It may be {most} at most.")


def _network_class(name: str, arguments: Mapping[str, Any]) -> type[nn.Module]:
    if name == "BasicUNet" and arguments.keys() <= inspect.signature(PlainUNet).parameters.keys():
        return PlainUNet
    with without_garbage_collection():
        return getattr(import_module(NETWORKS[name]), name)


def call_at(network: Any, x: Tensor, levels: Tensor) -> Tensor:
    """A network's answer at levels ``(N,)``; a class-conditional one is asked for healthy slices."""
    if getattr(network, "num_class_embeds", None) is None:
        return network(x, levels)
    return network(x, levels, class_labels=torch.full_like(levels, HEALTHY))


class Codec(nn.Module):
    """Image to latent and back, with latents scaled to unit standard deviation.

    Three kinds, by the network declared: ``None`` with factor 1 is pixel space itself; ``None`` with a larger factor
    folds blocks of ``factor x factor`` pixels into channels (still pixel space, an invertible rearrangement);
    ``VQVAE``, ``AutoencoderKL`` and ``AutoEncoder`` compress, pixels or blocks of ``fold x fold`` pixels folded into
    channels. Latents of a VQ-VAE are taken before quantisation, so that they are continuous for the diffusion model,
    and are quantised when decoded (Rombach et al. 2022, appendix G); those of an ``AutoencoderKL`` are the means.

    Args:
        network: a MONAI autoencoder, or None.
        factor: how many pixels a latent element spans, along each axis.
        fold: blocks of so many pixels are folded into channels before the network sees them; it divides ``factor``.
        shift, scale: ``z = (raw - shift) * scale``, per channel or for all.
    """

    def __init__(
        self,
        network: nn.Module | None,
        factor: int,
        shift: float | list[float] = 0.0,
        scale: float | list[float] = 1.0,
        fold: int = 1,
    ) -> None:
        super().__init__()
        self.network: Any = network
        # By name, because the classes themselves are MONAI's, which a package without an autoencoder does not import.
        self._kind = "" if network is None else type(network).__name__
        self.factor = factor
        self.fold = factor if network is None else fold
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.float32).reshape(1, -1, 1, 1), False)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).reshape(1, -1, 1, 1), False)

    @property
    def is_pixel(self) -> bool:
        """Whether latents are pixels, with a known range."""
        return self.network is None

    def encode(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` in [-1, 1] to ``(N, C, H / factor, W / factor)``.

        In pixel space ``(N, slices, H, W)`` to ``(N, slices * factor**2, H / factor, W / factor)``, slice by slice.
        """
        x = nn.functional.pixel_unshuffle(x, self.fold)
        if self.network is None:
            raw = x
        elif self._kind == "VQVAE":
            raw = self.network.encode(x)
        elif self._kind == "AutoEncoder":
            raw = self.network.intermediate(self.network.encode(x))
        else:
            raw, _ = self.network.encode(x)
        return (raw.float() - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """``(N, C, h, w)`` back to ``(N, C, H, W)``."""
        raw = z / self.scale + self.shift
        if self._kind == "VQVAE":
            quantised, _ = self.network.quantize(raw)
            raw = self.network.decode(quantised).float()
        elif self.network is not None:
            raw = self.network.decode(raw).float()
        return nn.functional.pixel_shuffle(raw, self.fold)


class Model:
    """A loaded model package as the methods use it: always epsilon, always float32 in and out.

    Attributes:
        codec: image to latent and back.
        schedule: noise levels.
        noise_pyramid: discount of the noise the model was trained on, see ``diffusion.pyramid_noise``; 0 for white.
        calls: samples that have passed the diffusion model, the classifier, the restorer or the localiser so far.
        pads: whether fewer samples than a chunk are filled up to one, so that each call of a network is of one size.
    """

    def __init__(
        self,
        codec: Codec,
        diffusion: nn.Module | None,
        schedule: Schedule,
        *,
        classifier: nn.Module | None = None,
        restorer: nn.Module | None = None,
        localiser: nn.Module | None = None,
        prediction_type: str = "epsilon",
        noise_pyramid: float = 0.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.noise_pyramid = noise_pyramid
        self.calls = 0
        self.chunk = chunk or (CPU_CHUNK if self.device.type == "cpu" else CUDA_CHUNK)
        self.pads = self.device.type == "cpu"
        self.codec = self._place(codec)
        self.diffusion = self._place(diffusion) if diffusion is not None else None
        self.classifier = self._place(classifier) if classifier is not None else None
        self.restorer = self._place(restorer) if restorer is not None else None
        self.localiser = self._place(localiser) if localiser is not None else None

    def _place(self, network: nn.Module) -> Any:
        network = network.to(self.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        return network.requires_grad_(False)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _chunks(self, function: Any, *tensors: Tensor) -> Tensor:
        """Apply ``function`` to equally sized pieces of the batch and put the float32 results together."""
        count = len(tensors[0])
        results = []
        for start in range(0, count, self.chunk):
            pieces = [tensor[start : start + self.chunk] for tensor in tensors]
            real = len(pieces[0])
            if self.pads and real < self.chunk:
                pieces = [torch.cat([p, p[-1:].expand(self.chunk - real, *p.shape[1:])]) for p in pieces]
            pieces = [p.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p for p in pieces]
            with self._autocast():
                results.append(self._called(function, *pieces)[:real].float())
        return torch.cat(results)

    @staticmethod
    def _called(function: Any, *pieces: Tensor) -> Tensor:
        try:
            return function(*pieces)
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"A network of the model package cannot take slices of shape {tuple(pieces[0].shape)}: {error}.",
                "The package's configuration does not fit its grid; choose another package.",
            ) from error

    def _levels(self, x: Tensor, t: int | Tensor) -> Tensor:
        if isinstance(t, int):
            return torch.full((len(x),), network_level(t), dtype=torch.long, device=x.device)
        return t.to(x.device).clamp_min(0)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` in [-1, 1] to latents ``(N, C, h, w)`` on the model's device."""
        return self._chunks(self.codec.encode, x.to(self.device))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents ``(N, C, h, w)`` to ``(N, C, H, W)``."""
        return self._chunks(self.codec.decode, z)

    @torch.no_grad()
    def eps(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The noise in ``x_t`` ``(N, C, h, w)`` at level ``t`` (an int, or ``(N,)``); level -1 asks at ``t = 0``.

        A class-conditional network is asked for healthy slices.
        """
        if self.diffusion is None:
            raise ModelError("This model package has no diffusion network.", "Choose another package.")
        self.calls += len(x_t)
        levels = self._levels(x_t, t)
        output = self._chunks(lambda x, level: call_at(self.diffusion, x, level), x_t, levels)
        return to_epsilon(output, x_t, levels, self.schedule, self.prediction_type)

    def log_prob(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Log-probabilities of the classes ``(N, classes)``; class 0 is healthy."""
        with torch.no_grad():
            return self._chunks(lambda x, level: self._class_log_prob(x, level), x_t, self._levels(x_t, t))

    def log_prob_gradient(self, x_t: Tensor, t: int | Tensor, target_class: int = 0) -> Tensor:
        """Gradient of ``log C(target_class | x_t, t)`` with respect to ``x_t``, same shape (Wolleb et al., eq. 7)."""
        self.calls += len(x_t)

        def gradient(x: Tensor, level: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                chosen = self._class_log_prob(x, level)[:, target_class]
                return torch.autograd.grad(chosen.sum(), x)[0]

        return self._chunks(gradient, x_t, self._levels(x_t, t))

    @torch.no_grad()
    def restore(self, latent: Tensor, level: int) -> Tensor:
        """The restorer's output ``(N, C, h, w)`` for folded slices ``(N, slices * factor**2, h, w)``, told a level."""
        if self.restorer is None:
            raise ModelError("This model package has no restorer.", "Choose another package.")
        self.calls += len(latent)
        levels = torch.full((len(latent),), level, dtype=torch.long, device=latent.device)
        return self._chunks(lambda x, at: self.restorer(x, at), latent, levels)  # type: ignore[misc]

    @torch.no_grad()
    def localise(self, latent: Tensor) -> Tensor:
        """Log-odds of a lesion ``(N, factor**2, h, w)`` for folded slices ``(N, slices * factor**2, h, w)``."""
        if self.localiser is None:
            raise ModelError("This model package has no localiser.", "Choose another package.")
        self.calls += len(latent)
        return self._chunks(self.localiser, latent)

    def _class_log_prob(self, x: Tensor, level: Tensor) -> Tensor:
        if self.classifier is None:
            raise ModelError("This model package has no classifier.", "The guided method needs one; choose another.")
        return torch.log_softmax(self.classifier(x, level).float(), dim=1)
