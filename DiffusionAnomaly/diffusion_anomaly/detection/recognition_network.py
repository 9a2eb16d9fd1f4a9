"""What the network that recognises scans sees and says: shared by its training and its use, with torch alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

SPACING = 3.0  # mm, isotropic
FOLD = 2  # voxels folded into channels along each axis
# Voxels (right-left, posterior-anterior, inferior-superior) around the middle of the brain: 192 x 228 x 192 mm.
WINDOW = (64, 76, 64)
CHANNELS = 3 * FOLD**3

KINDS = ("FLAIR", "T1", "T2", "PD", "diffusion-weighted", "CT", "angiography", "another contrast", "no brain")
POSES = ("upright", "upside down", "back to front", "lying or turned")

_PERCENTILES = (0.01, 0.99)  # of the window
_DARK, _MEDIAN = 0.02, 0.5  # quantiles of the brain that become 0 and ``_MIDDLE``
_MIDDLE, _BRIGHTEST = 0.4, 1.2


def recognition_input(image: Tensor, brain: Tensor) -> Tensor:
    """What the network reads: the window by its own range, by that of the brain, and the brain mask.

    Nothing in it depends on the unit or the zero of the intensities.

    Args:
        image: ``(N, X, Y, Z)`` in any unit, 0 to infinity or not; edges are multiples of ``FOLD``.
        brain: the same shape, bool.

    Returns:
        ``(N, CHANNELS, X / 2, Y / 2, Z / 2)`` float32.
    """
    import torch

    # No sample is looked at alone: on a GPU every question about one would wait for all that went before.
    values, mask = image.float().flatten(1), brain.flatten(1)
    lowest = values.amin(1, keepdim=True)
    present = _or_all(values > lowest)
    low, high = masked_quantiles(values, present, _PERCENTILES).split(1, 1)
    whole = (values - torch.minimum(low, lowest)) / torch.maximum(high - low, 1e-6 * _size(high, low))
    tissue = torch.where(mask.any(1, keepdim=True), mask, present)
    dark, median = masked_quantiles(values, tissue, (_DARK, _MEDIAN)).split(1, 1)
    inside = (values - dark) / torch.maximum(median - dark, 1e-6 * _size(median, dark)) * _MIDDLE
    stacked = torch.stack([whole.clamp(0.0, 1.0), inside.clamp(0.0, _BRIGHTEST), mask.float()], 1)
    stacked = stacked.unflatten(2, image.shape[1:])
    count, channels, *size = stacked.shape
    blocks = [edge for length in size for edge in (length // FOLD, FOLD)]
    folded = stacked.reshape(count, channels, *blocks).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return folded.flatten(1, 4)


def recognise(network: nn.Module, image: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each of ``KINDS`` ``(N, 9)`` and of each of ``POSES`` ``(N, 4)``; arguments as above."""
    kind, pose = network(recognition_input(image, brain)).float().split((len(KINDS), len(POSES)), 1)
    return kind.softmax(1), pose.softmax(1)


def masked_quantiles(values: Tensor, mask: Tensor, shares: tuple[float, ...]) -> Tensor:
    """``torch.quantile`` of each row's chosen values alone, all rows at once.

    Args:
        values: ``(N, n)``.
        mask: the same shape, bool, something in every row.
        shares: from 0 to 1.

    Returns:
        ``(N, len(shares))``.
    """
    import torch

    ordered = torch.where(mask, values, torch.inf).sort(1).values
    rank = (mask.sum(1, keepdim=True) - 1) * torch.tensor(shares, device=values.device)
    below = rank.long()
    return torch.lerp(ordered.gather(1, below), ordered.gather(1, rank.ceil().long()), rank - below)


def _or_all(mask: Tensor) -> Tensor:
    """A mask, and everything in rows where it has nothing."""
    return mask | ~mask.any(1, keepdim=True)


def _size(first: Tensor, second: Tensor) -> Tensor:
    import torch

    return torch.maximum(first.abs(), second.abs()).clamp_min(1e-30)
