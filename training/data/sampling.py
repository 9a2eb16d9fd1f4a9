"""Which slice a step sees, and what is done to it: height-matched sampling and augmentation.

Lesions sit mid-brain while healthy slices are mostly low or high, so slices are drawn by height first. Otherwise a
healthy model hardly ever sees mid-brain, and a classifier learns height instead of disease.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityd,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion_anomaly.errors import InputError

from .slices import DISEASED, HEALTHY, Slices

HEIGHT_BINS = 10


def _drawable(labels: tuple[int, ...]) -> tuple[int, ...]:
    if labels not in ((HEALTHY,), (DISEASED,), (HEALTHY, DISEASED)):
        raise ValueError(f"found {list(labels)}, expected [0] for healthy slices, [1] for diseased ones or [0, 1]")
    return labels


Labels = Annotated[tuple[int, ...], AfterValidator(_drawable)]
"""The classes a stage learns from, in the order of a classifier's outputs."""


class AugmentationConfig(BaseModel):
    """Strength of each augmentation; nothing here may look like a lesion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotation: float = Field(default=0.15, ge=0, description="radians")
    scale: float = Field(default=0.1, ge=0)
    translation: float = Field(default=4.0, ge=0, description="pixels")
    contrast: float = Field(default=0.25, ge=0, description="range of log gamma")
    intensity: float = Field(default=0.08, ge=0)
    bias_field: float = Field(default=0.15, ge=0)
    noise: float = Field(default=0.02, ge=0)
    blur: float = Field(default=0.7, ge=0, description="pixels")
    tissue_contrast: float = Field(default=0.0, ge=0, description="range of the logarithm, about the brain's median")
    erosion: int = Field(default=0, ge=0, description="pixels taken off the brain's mask at most")

    def build(self) -> Compose:
        image, both = ["image"], ["image", "brain"]
        intensities: list[Any] = [
            RandAdjustContrastd(image, prob=0.5, gamma=(float(np.exp(-self.contrast)), float(np.exp(self.contrast)))),
            RandScaleIntensityd(image, factors=self.intensity, prob=0.5),
            RandBiasFieldd(image, degree=2, coeff_range=(-self.bias_field, self.bias_field), prob=0.3),
            RandGaussianSmoothd(image, sigma_x=(0.1, self.blur), sigma_y=(0.1, self.blur), prob=0.3),
        ]
        if self.tissue_contrast > 0:
            intensities.append(RandTissueContrast(self.tissue_contrast))
        intensities.append(RandGaussianNoised(image, prob=0.3, std=self.noise))
        return Compose(
            [
                RandFlipd(both, prob=0.5, spatial_axis=1),
                RandAffined(
                    both,
                    prob=0.9,
                    rotate_range=self.rotation,
                    scale_range=(self.scale, self.scale),
                    translate_range=self.translation,
                    mode=["bilinear", "nearest"],
                    padding_mode="zeros",
                ),
                EachContrast(Compose(intensities)),
                *([RandErosion(self.erosion)] if self.erosion > 0 else []),
            ]
        )


class EachContrast(Randomizable):
    """Change each contrast's intensities on its own: one scanner makes each sequence in its own way."""

    def __init__(self, transform: Compose) -> None:
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> EachContrast:
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        changed: list[Any] = [self.transform({**data, "image": channel[None]}) for channel in data["image"]]
        return {**data, "image": torch.cat([part["image"] for part in changed])}


class RandTissueContrast(Randomizable):
    """Stretch or compress the brain's intensities about their median, as another scanner or sequence would."""

    def __init__(self, extent: float) -> None:
        self.extent = extent

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        factor = float(np.exp(self.R.uniform(-self.extent, self.extent)))
        inside = data["brain"] > 0.5
        if not inside.any():
            return data
        median = data["image"][inside].median()
        return {**data, "image": median + factor * (data["image"] - median)}


class RandErosion(Randomizable):
    """Take the edge off the brain in every third slice: masks differ in how close they cut."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        pixels = int(self.R.randint(1, self.most + 1))
        if self.R.random() > 1 / 3:
            return data
        # A pixel stays when no other within this many is outside: max-pooling of the outside.
        outside = torch.nn.functional.max_pool2d(1.0 - data["brain"][None], 2 * pixels + 1, 1, pixels)[0]
        return {**data, "brain": 1.0 - outside}


class SliceSampler:
    """Draws slices by height, one class or two.

    Args:
        slices: what to draw from.
        labels: the labels to draw, equally often at every height. With two labels only heights that have both
            are drawn, as often as the last label (diseased) is found there.
        augmentation: what to do to each slice; None for nothing.
    """

    def __init__(self, slices: Slices, labels: tuple[int, ...], augmentation: AugmentationConfig | None) -> None:
        self.slices, self.labels = slices, labels
        self.transform = augmentation.build() if augmentation else None
        bins = np.minimum((slices.height * HEIGHT_BINS).astype(int), HEIGHT_BINS - 1)
        self.members = {
            label: [np.flatnonzero((bins == b) & (slices.label == label)) for b in range(HEIGHT_BINS)]
            for label in labels
        }
        counts = {label: np.array([len(m) for m in members]) for label, members in self.members.items()}
        everywhere = np.all([count > 0 for count in counts.values()], axis=0)
        # The square root lies between every height alike, which repeats few slices, and every slice alike.
        weight = np.where(everywhere, np.sqrt(counts[labels[-1]]), 0.0)
        if weight.sum() == 0:
            found = ", ".join(f"{count.sum()} of label {label}" for label, count in counts.items())
            raise InputError(
                f"At no height there are slices of every label that is asked for; found {found}.",
                "Look at the stage 'prepare', its labels and its scans.",
            )
        self.weight = weight / weight.sum()

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """``image`` (size, C, H, W) in [-1, 1] with -1 outside the brain, ``brain`` bool, and ``label`` (size,)."""
        images, brains, labels = [], [], []
        if self.transform is not None:
            self.transform.set_random_state(int(rng.integers(2**31)))
        for _ in range(size):
            label = self.labels[int(rng.integers(len(self.labels)))]
            members = self.members[label][rng.choice(HEIGHT_BINS, p=self.weight)]
            image, brain = self._augmented(int(members[rng.integers(len(members))]))
            images.append(image)
            brains.append(brain)
            labels.append(label)
        return {"image": torch.stack(images), "brain": torch.stack(brains), "label": torch.tensor(labels)}

    def _augmented(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(self.slices.images[index].astype(np.float32) / 255.0)
        brain = torch.from_numpy(self.slices.brain[index].astype(np.float32))[None]
        if self.transform is not None:
            changed: Any = self.transform({"image": image, "brain": brain})
            image, brain = (changed[key].as_subclass(Tensor) for key in ("image", "brain"))
        return to_network_range(image, brain > 0.5), brain > 0.5


def to_network_range(image: Tensor, brain: Tensor) -> Tensor:
    """[0, 1] inside the brain to [-1, 1], and -1 outside."""
    return torch.where(brain, 2.0 * image.clamp(0.0, 1.0) - 1.0, -torch.ones_like(image))


def side_by_side(images: Tensor) -> Tensor:
    """``(n, C, H, W)`` as one picture ``(1, C * H, n * W)``: a column an image, its contrasts below each other."""
    return torch.cat(list(torch.cat(list(images.movedim(1, 0)), 1)), 1)[None]


def plain(slices: Slices, count: int, label: int) -> Tensor:
    """Up to ``count`` slices of one label, evenly spread and untouched, ``(n, C, H, W)`` in [-1, 1].

    Raises:
        InputError: when there is no slice of that label.
    """
    chosen = evenly(slices, count, label)
    image = torch.from_numpy(chosen.images.astype(np.float32) / 255.0)
    return to_network_range(image, torch.from_numpy(chosen.brain)[:, None])


def evenly(slices: Slices, count: int, label: int) -> Slices:
    """Up to ``count`` slices of one label, evenly spread.

    Raises:
        InputError: when there is no slice of that label.
    """
    found = np.flatnonzero(slices.label == label)
    if not found.size:
        raise InputError(
            f"None of the {len(slices)} slices has label {label}.", "Look at the stage 'prepare' and its labels."
        )
    return slices.select(found[np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)])
