"""What is compared on MedNIST's slices: the unsupervised method, its codec alone, and plain intensity.

The method is the engine's own; here are only the slices it is given and what it learns from healthy ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_anomaly.detection.calibration import threshold_for_false_alarms
from diffusion_anomaly.detection.inference import CPU_BATCH, slice_generator
from diffusion_anomaly.methods.base import SliceBatch, residual, to_model_range, to_unit_range
from diffusion_anomaly.methods.intensity import Intensity
from diffusion_anomaly.methods.latent_threshold import fit_latent_threshold
from diffusion_anomaly.methods.unsupervised import Unsupervised
from diffusion_anomaly.models.networks import Model, build_network
from diffusion_anomaly.models.schedule import Schedule
from diffusion_anomaly.precision import choose_dtype
from diffusion_anomaly.registry import IntensityOptions, UnsupervisedOptions
from diffusion_anomaly.system import choose_device
from training.data.slices import Slices
from training.stages.diffusion import DiffusionConfig
from training.trainer.checkpoints import averaged_weights, require_fit


@dataclass(frozen=True)
class Pictures:
    """Slices without a scan around them.

    Attributes:
        images: ``(N, H, W)`` uint8.
        brain: ``(N, H, W)`` bool.
        numbers: ``(N,)`` which of their split they are; with ``seed`` they settle the noise.
        seed: of the split.
    """

    images: np.ndarray
    brain: np.ndarray
    numbers: np.ndarray
    seed: int

    @classmethod
    def load(cls, path: Path, seed: int) -> Pictures:
        slices = Slices.load(path)
        return cls(slices.images[:, 0], slices.brain, np.arange(len(slices)), seed)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[SliceBatch]:
        for start in range(0, len(self), CPU_BATCH):
            part = slice(start, start + CPU_BATCH)
            yield SliceBatch(
                torch.from_numpy(self.images[part].astype(np.float32) / 255.0)[:, None],
                torch.from_numpy(self.brain[part])[:, None],
                [slice_generator(self.seed, int(number)) for number in self.numbers[part]],
            )

    def each(self, function: Callable[[SliceBatch], Tensor]) -> np.ndarray:
        """What a function of batches gives for all slices, ``(N, ...)`` float32."""
        return torch.cat([function(batch).float().cpu() for batch in self.batches()]).numpy()


@dataclass(frozen=True)
class Way:
    """A way of finding anomalies.

    Attributes:
        anomaly_map: a batch to ``(N, H, W)``, at least 0.
        score: a batch to ``(N,)``, higher for what is no head; None where the way has no such score.
        network_calls: calls of the diffusion model a slice.
    """

    anomaly_map: Callable[[SliceBatch], Tensor]
    score: Callable[[SliceBatch], Tensor] | None = None
    network_calls: int = 0


def ways(model: Model, options: UnsupervisedOptions, healthy: Pictures) -> dict[str, Way]:
    """All that are compared, by name; the one that the experiment is about comes first.

    Args:
        model: the trained networks.
        options: of the unsupervised method; ``side`` holds for all.
        healthy: slices whose intensities are the baseline's normal ones.
    """
    method, baseline = Unsupervised(), Intensity()
    normal = IntensityOptions(side=options.side, reference=float(np.median(healthy.images[healthy.brain]) / 255.0))

    def codec_residual(batch: SliceBatch) -> Tensor:
        images = batch.images.to(model.device)
        return residual(images, to_unit_range(model.decode(model.encode(to_model_range(images)))), options.side)

    return {
        "unsupervised": Way(
            lambda batch: method.run(batch, model, options, _silent).anomaly_map,
            lambda batch: method.improbability(batch, model, options, _silent).score,
            method.network_calls(options),
        ),
        "codec alone": Way(codec_residual, lambda batch: codec_residual(batch).mean(dim=(1, 2))),
        "intensity": Way(lambda batch: baseline.run(batch, None, normal, _silent).anomaly_map),
    }


def load_model(config: DiffusionConfig, run: Path) -> Model:
    """The averaged networks of a run and of its codec's, as a package of them would hold.

    Raises:
        FileNotFoundError: when one of them has not been trained.
        CheckpointError: when a checkpoint cannot be read or is of another network.
    """
    codec = config.load_codec()
    network = build_network(config.network)
    weights, _ = averaged_weights(run / "checkpoint.pt")
    require_fit(weights, network.state_dict(), run / "checkpoint.pt")
    network.load_state_dict(weights)
    device = choose_device()
    return Model(
        codec,
        network,
        Schedule.named(config.schedule.kind, config.schedule.levels),
        prediction_type=config.prediction_type,
        device=device,
        dtype=choose_dtype("auto", device),
    )


def learn_latent_threshold(model: Model, options: UnsupervisedOptions, healthy: Pictures) -> dict[str, Any]:
    """The percentile of the KL map on healthy slices (Pinaya et al. 2022, section 2.3)."""
    values = []
    for batch in healthy.batches():
        found = Unsupervised().improbability(batch, model, options, _silent)
        values.append(found.kl[found.inside].cpu().numpy())
    return fit_latent_threshold(np.concatenate(values), options.latent_percentile)


def learn_threshold(anomaly_map: np.ndarray, pixels: float) -> float:
    """The lowest score from which the median healthy slice has no more than so many pixels, single ones counted too.

    Args:
        anomaly_map: ``(N, H, W)`` of healthy slices.
        pixels: the allowance.
    """
    slices = [(one[None], 1.0, 1.0) for one in anomaly_map]  # a pixel counts as 1 ml
    return threshold_for_false_alarms(slices, pixels, tolerance=1e-4)


def _silent(calls: int) -> None:
    """No progress is shown."""
