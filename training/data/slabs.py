"""Neighbouring slabs of heads on the slab grid: what painting, augmentation and lesions pass on, and the real ones.

Torch and NumPy alone, so that a machine without libraries that read images trains from prepared files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional

from ..trainer.configuration import ConfigurationError
from .drawing import Draw, blur, per_sample

MODE = 0.42  # where the intensity scale of the engine's ``ModeNormalisation`` has a brain's most common value
FLUID_BELOW, FLUID_FLANK = 0.30, 0.10  # of that scale: real scans have no map of their fluid
LEAST_PIXELS = 600  # of healthy brain in a slice that is worth learning from


class SlabGrid(BaseModel):
    """Pixels and slabs that the networks see at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(default=192, ge=8, description="pixels along both sides")
    spacing: float = Field(default=1.067, gt=0, description="mm")
    slabs: int = Field(default=3, ge=1, description="neighbours, the one asked about in the middle")

    @field_validator("slabs")
    @classmethod
    def _odd(cls, slabs: int) -> int:
        if slabs % 2 == 0:
            raise ValueError(f"found {slabs}, expected an odd number: one is in the middle")
        return slabs

    @property
    def middle(self) -> int:
        return self.slabs // 2


@dataclass(frozen=True)
class Slabs:
    """``B`` heads, ``K`` neighbouring slabs of each, lowest first; all but ``gap`` are ``(B, K, H, W)``.

    Attributes:
        image: intensities on the engine's scale: the brain's mode near 0.42. Outside the brain anything.
        brain: bool.
        known: bool, tissue known to be healthy: only there lesions are planted and answers are asked for.
        white: share of white matter in a pixel, of all tissue but fluid in a real slab.
        fluid: share of fluid.
        rim: share of white matter along the ventricles; none is known of a real slab.
        gap: ``(B,)`` mm between slabs.
        lesion: share of a pixel that a reader marked as lesion; None where that is not asked for, or nobody marked any.
    """

    image: Tensor
    brain: Tensor
    known: Tensor
    white: Tensor
    fluid: Tensor
    rim: Tensor
    gap: Tensor
    lesion: Tensor | None = None


class AugmentationConfig(BaseModel):
    """How far real slabs are varied; nothing here may look like a lesion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotation: float = Field(default=0.2, ge=0, description="most radians in the plane")
    scale: float = Field(default=0.13, ge=0, description="most of the logarithm of each axis' size")
    shift: float = Field(default=0.06, ge=0, description="most, of half the image's side")
    bend: float = Field(default=0.02, ge=0, description="most of a smooth deformation, of half the image's side")
    contrast: float = Field(default=0.35, ge=0, description="most of the logarithm, about the mode")
    blur: tuple[float, float] = Field(default=(0.05, 1.0), description="pixels, standard deviation")


@dataclass(frozen=True)
class RealStacks:
    """Real slices that are healthy, or healthy but for a part that is marked; what ``prepare-slabs`` wrote.

    Attributes:
        images: ``(N, H, W)`` uint8, 255 is 1.0 of the engine's scale; slices of a stack follow each other upwards.
        brain, known: ``(N, H, W)`` bool, see ``Slabs``.
        stack: ``(N,)`` int64, which stack a slice belongs to.
        gap: ``(N,)`` float32, mm between slices of its stack.
        lesion: ``(N, H, W)`` bool, what a reader marked, where it was asked for. With it all of the brain is known.
    """

    images: Tensor
    brain: Tensor
    known: Tensor
    stack: Tensor
    gap: Tensor
    lesion: Tensor | None = None

    @classmethod
    def load(cls, path: Path, grid: SlabGrid, restricted: bool, lesions: bool = False) -> RealStacks:
        """Read ``stacks.npz``.

        Args:
            path: the file.
            grid: what its slices have to be on.
            restricted: also stacks whose licence restricts what may be done with what has learnt from them.
            lesions: with the lesions that readers marked.

        Raises:
            ConfigurationError: when there is no such file, another one, one without the lesions asked for, or nothing
                in it that may be drawn.
        """
        advice = "python -m training prepare-slabs writes it."
        if not path.is_file():
            raise ConfigurationError(f"{path} does not exist; {advice}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("images", "brain", "known", "stack", "gap", "restricted")}
                spacing = float(file["spacing"])
                if lesions and "lesion" not in file:
                    raise ConfigurationError(
                        f"{path} was prepared without lesion masks; write it again: python -m training prepare-slabs."
                    )
                if lesions:
                    arrays["lesion"] = file["lesion"]
        except (ValueError, OSError, KeyError) as error:
            raise ConfigurationError(f"{path} holds no stacks ({error}); {advice}") from error
        size = arrays["images"].shape[-1]
        if arrays["images"].shape[1:] != (grid.size, grid.size) or abs(spacing - grid.spacing) > 1e-3:
            raise ConfigurationError(
                f"{path} has slices of {size} pixels of {spacing:g} mm; expected {grid.size} of {grid.spacing:g} mm."
            )
        keep = (
            np.ones(len(arrays["stack"]), bool) if restricted else ~arrays["restricted"].astype(bool)[arrays["stack"]]
        )
        masks = {
            name: torch.from_numpy(np.unpackbits(arrays[name][keep], axis=-1, count=size).astype(bool))
            for name in ("brain", "known", "lesion")
            if name in arrays
        }
        if lesions:
            masks["known"] = torch.ones_like(masks["known"])
        stacks = cls(
            torch.from_numpy(arrays["images"][keep]),
            stack=torch.from_numpy(arrays["stack"][keep].astype(np.int64)),
            gap=torch.from_numpy(arrays["gap"][keep].astype(np.float32)),
            **masks,
        )
        if not len(stacks) or not float(stacks.weight.sum()):
            which = "" if restricted else " of a free licence"
            what = "" if lesions else "healthy "
            raise ConfigurationError(f"{path} has no slice{which} with {LEAST_PIXELS} pixels of {what}brain.")
        return stacks

    def __len__(self) -> int:
        return len(self.stack)

    def to(self, device: torch.device) -> RealStacks:
        """The same on another device; itself where it is there already."""
        if self.images.device == device:
            return self
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return RealStacks(**{name: value.to(device) for name, value in values.items() if value is not None})

    @property
    def weight(self) -> Tensor:
        """How often each slice is drawn, ``(N,)``: every stack alike, however thin its slices, and large ones more."""
        area = (self.brain & self.known).flatten(1).sum(1).float()
        count = torch.bincount(self.stack, minlength=int(self.stack.max()) + 1).float()
        least = LEAST_PIXELS * (self.images.shape[-1] / 192) ** 2
        return (area > least) * area.sqrt() / count[self.stack]

    def draw(self, weight: Tensor, grid: SlabGrid, config: AugmentationConfig, draw: Draw) -> Slabs:
        """Augmented slabs. Beyond a stack's ends there is no brain.

        Args:
            weight: ``self.weight``, kept by the caller.
            grid: how many neighbours.
            config: how far they are varied.
            draw: of as many heads as are wanted.
        """
        middle = torch.multinomial(weight, draw.size, True, generator=draw.generator)
        number = middle[:, None] + torch.arange(-grid.middle, grid.middle + 1, device=draw.device)
        there = (number >= 0) & (number < len(self))
        number = number.clamp(0, len(self) - 1)
        there &= self.stack[number] == self.stack[middle][:, None]
        parts = [self.images[number].float() / 255.0, self.brain[number].float(), self.known[number].float()]
        if self.lesion is not None:
            parts.append(self.lesion[number].float())
        moved = _moved(torch.stack(parts, 2) * there[:, :, None, None, None], config, draw)
        image, inside, known, *lesion = moved.unbind(2)
        # What lies outside the brain is zero in the file; at the edge it must not darken tissue.
        image = image / inside.clamp_min(0.3)
        contrast = per_sample(draw.uniform(-config.contrast, config.contrast).exp())
        image = MODE + (image - MODE) * contrast
        image = blur(image.clamp(0.0, 1.2), draw.uniform(*config.blur))
        fluid = ((FLUID_BELOW - image) / FLUID_FLANK).clamp(0.0, 1.0)
        rim = torch.zeros_like(fluid)
        return Slabs(image, inside > 0.5, known > 0.99, 1.0 - fluid, fluid, rim, self.gap[middle], *lesion)


def _moved(values: Tensor, config: AugmentationConfig, draw: Draw) -> Tensor:
    """``(B, K, C, H, W)`` turned, scaled, mirrored, shifted and bent, all slabs and channels of a head alike."""
    size = values.shape[-1]
    angle = draw.uniform(-config.rotation, config.rotation)
    scale = draw.uniform(-config.scale, config.scale, 2).exp()
    mirrored = draw.sign()
    shift = draw.uniform(-config.shift, config.shift, 2)
    across = torch.stack([angle.cos() * scale[:, 0] * mirrored, -angle.sin() * scale[:, 1], shift[:, 0]], -1)
    along = torch.stack([angle.sin() * scale[:, 0] * mirrored, angle.cos() * scale[:, 1], shift[:, 1]], -1)
    place = functional.affine_grid(torch.stack([across, along], 1), [draw.size, 1, size, size], align_corners=False)
    bend = draw.plane(2, 6, size) * per_sample(draw.uniform(0.0, config.bend))
    moved = functional.grid_sample(
        values.reshape(draw.size, -1, size, size), place + bend.permute(0, 2, 3, 1), align_corners=False
    )
    return moved.view_as(values)
