"""Method 3, beyond the two papers: one look at a slice, and a network says how it would look without its lesions.

The restorer has learnt to undo synthetic lesions and coarse noise on healthy slices alone. It is told a level of
corruption: how much of what it sees it should distrust. One call gives the restored slice and the probability that a
pixel had to be restored; several levels make an ensemble, as in "Ensembled Cold-Diffusion Restorations" (Naval Marimont
et al. 2024, arXiv 2407.06635). A denoising autoencoder (Kascenas et al. 2022) is the same network without the
probability, asked once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..models.networks import Model
from ..registry import RestoreOptions
from .base import (
    ProgressCallback,
    SliceBatch,
    SliceResult,
    confine,
    reconstruction_error,
    require_levels,
    require_model,
    residual,
    to_model_range,
    to_unit_range,
)


class Restore:
    """Restore, report the difference."""

    def run(
        self, batch: SliceBatch, model: Model | None, options: RestoreOptions, progress: ProgressCallback
    ) -> SliceResult:
        """The anomaly score is the difference to the restored slice in normalised intensity, the probability, or their
        product.

        Raises:
            ModelError: when the model has no restorer.
            InputError: for a probability that the restorer cannot give, or more levels than it was trained on.
        """
        model = require_model(model, "restore")
        require_levels(model, levels=options.levels)
        images = batch.images.to(model.device, torch.float32)
        latent = model.encode(to_model_range(batch.seen.to(model.device, torch.float32)))
        restored, probability = [], []
        slices = batch.seen.shape[1] // batch.images.shape[1]
        for level in requested_levels(options.steps, options.levels):
            change, logit = split_output(model.restore(latent, level), latent, slices)
            restored.append(to_unit_range(model.decode(change)))
            if logit is not None:
                probability.append(model.decode(logit).sigmoid())
            progress(1)
        healthy = torch.stack(restored).mean(dim=0)
        lesion = torch.stack(probability).mean(dim=0) if probability else None
        anomaly_map = confine(slice_map(images, healthy, lesion, options), batch.brain)
        pixels = batch.brain.sum(dim=(1, 2, 3)).cpu().clamp_min(1)
        common = reconstruction_error(images, healthy, batch.brain)
        return SliceResult(anomaly_map, anomaly_map.sum(dim=(1, 2)) / pixels, common, confine(healthy, batch.brain))

    def network_calls(self, options: RestoreOptions) -> int:
        return options.steps


def requested_levels(steps: int, levels: int) -> list[int]:
    """The middles of ``steps`` equal parts of the levels; of a single level, that one."""
    return [(2 * part + 1) * levels // (2 * steps) for part in range(steps)]


def slice_map(images: Tensor, restored: Tensor, probability: Tensor | None, options: RestoreOptions) -> Tensor:
    """Anomaly scores ``(N, H, W)`` of images and restored images ``(N, C, H, W)`` and a lesion probability ``(N, 1, H,
    W)``.
    """
    difference = residual(images, restored, options.side, options.min_reference_intensity)
    if options.heat == "residual":
        return difference
    if probability is None:
        raise InputError(
            f"Option heat is {options.heat!r}, but this model's restorer gives no probability.",
            "Set heat to residual.",
        )
    if options.heat == "probability":
        return probability[:, 0]
    return probability[:, 0] * difference


def split_output(output: Tensor, latent: Tensor, slices: int = 1) -> tuple[Tensor, Tensor | None]:
    """A restorer's output as restored slices and lesion logits, both still folded.

    Args:
        output: ``(N, C or 2 C, h, w)``: what to add to the slice, and as many channels of logits or none.
        latent: ``(N, slices * C, h, w)`` what the network saw, pixels folded into channels, slice by slice.
        slices: how many the network saw; the middle one is restored.

    Returns:
        ``(N, C, h, w)`` each; None for a network without logits.
    """
    channels = latent.shape[1] // slices
    middle = latent[:, slices // 2 * channels :][:, :channels]
    return middle + output[:, :channels], output[:, channels:] if output.shape[1] > channels else None
