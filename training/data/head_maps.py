"""Label maps of different sizes in one tensor on the training's device, looked up for many heads at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_anomaly.detection.brain_network import SPACING

from ..trainer.configuration import ConfigurationError

SLAB_SPACING = 1.0  # mm of the label maps that slabs are painted from
BRAIN_BIT = 128  # added to a voxel's tissue number where the voxel belongs to the brain mask


@dataclass(frozen=True)
class HeadMaps:
    """Tissues and brains of several heads, axes towards right, anterior, superior.

    Attributes:
        labels: all voxels of all heads one after another, uint8: tissue number plus ``BRAIN_BIT`` in the brain.
        offsets: ``(n,)`` where each head begins in ``labels``.
        shapes: ``(n, 3)`` voxels along each axis.
        centres: ``(n, 3)`` middle of each brain, in voxels.
        boxes: ``(n, 2, 3)`` first voxel of each brain and the one past its last, along each axis.
        spacing: mm, isotropic.
    """

    labels: Tensor
    offsets: Tensor
    shapes: Tensor
    centres: Tensor
    boxes: Tensor
    spacing: float = SPACING

    @classmethod
    def load(cls, path: Path, spacing: float = SPACING) -> HeadMaps:
        """Read what ``prepare-labels`` wrote.

        Args:
            path: the file.
            spacing: mm of the voxels that are wanted.

        Raises:
            ConfigurationError: when there is no such file, or another one.
        """
        advice = f"python -m training prepare-labels{'' if spacing == SPACING else ' --slabs'} writes it."
        if not path.is_file():
            raise ConfigurationError(f"{path} does not exist; {advice}")
        try:
            with np.load(path) as file:
                labels, shapes, centres = file["labels"], file["shapes"].astype(np.int64), file["centres"]
                found = float(file["spacing"]) if "spacing" in file else SPACING
        except (ValueError, OSError, KeyError) as error:
            raise ConfigurationError(f"{path} holds no label maps ({error}); {advice}") from error
        sizes = shapes.prod(1)
        if sizes.sum() != len(labels) or len(shapes) != len(centres):
            raise ConfigurationError(f"{path} holds {len(labels)} voxels, its shapes want {sizes.sum()}; {advice}")
        if found != spacing:
            raise ConfigurationError(f"{path} has voxels of {found:g} mm, {spacing:g} mm are needed; {advice}")
        offsets = np.cumsum(sizes) - sizes
        brains = [
            labels[start : start + size].reshape(shape) >= BRAIN_BIT
            for start, size, shape in zip(offsets, sizes, shapes, strict=True)
        ]
        return cls(
            torch.from_numpy(labels),
            torch.from_numpy(offsets),
            torch.from_numpy(shapes),
            torch.from_numpy(centres.astype(np.float32)),
            torch.from_numpy(np.array([bounding_box(brain) for brain in brains], np.float32)),
            spacing,
        )

    def __len__(self) -> int:
        return len(self.shapes)

    def select(self, numbers: Sequence[int]) -> HeadMaps:
        """These heads alone."""
        chosen = torch.tensor(list(numbers), device=self.offsets.device)
        parts = {name: getattr(self, name)[chosen] for name in ("offsets", "shapes", "centres", "boxes")}
        return replace(self, **parts)

    def to(self, device: torch.device) -> HeadMaps:
        """The same on another device; itself where it is there already."""
        if self.labels.device == device:
            return self
        parts = {name: getattr(self, name).to(device) for name in ("labels", "offsets", "shapes", "centres", "boxes")}
        return replace(self, **parts)

    def look_up(self, head: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Tissue and brain of the voxels nearest to the places asked for; air beyond a head's map.

        Args:
            head: ``(B,)`` which head each sample looks at.
            place: ``(B, X, Y, Z, 3)`` in voxels of that head.

        Returns:
            Tissue numbers, int64, and brain, bool, both ``(B, X, Y, Z)``.
        """
        voxel = place.round().long()
        shape = self.shapes[head][:, None, None, None]
        there = ((voxel >= 0) & (voxel < shape)).all(-1)
        index = (voxel[..., 0] * shape[..., 1] + voxel[..., 1]) * shape[..., 2] + voxel[..., 2]
        index = (index + self.offsets[head][:, None, None, None]).clamp(0, len(self.labels) - 1)
        found = torch.where(there, self.labels[index], 0)
        return (found & (BRAIN_BIT - 1)).long(), found >= BRAIN_BIT


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """First voxel of a mask and the one past its last, ``(2, axes)``; of an empty one, all of it."""
    axes = range(mask.ndim)
    ends = []
    for axis in axes:
        there = np.flatnonzero(mask.any(tuple(other for other in axes if other != axis)))
        ends.append((there[0], there[-1] + 1) if there.size else (0, mask.shape[axis]))
    return np.array(ends).T
