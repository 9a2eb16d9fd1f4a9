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

    image = image.float()
    whole, inside = [], []
    for values, mask in zip(image, brain, strict=True):
        lowest = values.min()
        present = values[values > lowest]
        low, high = _quantiles(present if present.numel() else values.flatten(), _PERCENTILES)
        whole.append((values - torch.minimum(low, lowest)) / (high - low).clamp_min(1e-6 * _size(high, low)))
        tissue = values[mask] if mask.any() else present if present.numel() else values.flatten()
        dark, median = _quantiles(tissue, (_DARK, _MEDIAN))
        inside.append((values - dark) / (median - dark).clamp_min(1e-6 * _size(median, dark)) * _MIDDLE)
    stacked = torch.stack(
        [torch.stack(whole).clamp(0.0, 1.0), torch.stack(inside).clamp(0.0, _BRIGHTEST), brain.float()], 1
    )
    count, channels, *size = stacked.shape
    blocks = [edge for length in size for edge in (length // FOLD, FOLD)]
    folded = stacked.reshape(count, channels, *blocks).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return folded.flatten(1, 4)


def recognise(network: nn.Module, image: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each of ``KINDS`` ``(N, 9)`` and of each of ``POSES`` ``(N, 4)``; arguments as above."""
    kind, pose = network(recognition_input(image, brain)).float().split((len(KINDS), len(POSES)), 1)
    return kind.softmax(1), pose.softmax(1)


def _quantiles(values: Tensor, shares: tuple[float, float]) -> Tensor:
    import torch

    # torch.quantile takes at most 16 million values; a window has 311,296.
    return torch.quantile(values, torch.tensor(shares, device=values.device))


def _size(first: Tensor, second: Tensor) -> Tensor:
    import torch

    return torch.maximum(first.abs(), second.abs()).clamp_min(1e-30)
