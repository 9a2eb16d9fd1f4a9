"""Slices of healthy FLAIR-like heads, painted from label maps: sharp, at every height, of no particular scanner.

Real healthy slices are few at mid-brain and come from thick-slice scans of one collection. Label maps with FLAIR's
order of intensities (white matter a little darker than grey, fluid dark) and random contrast, texture and resolution
widen what a restorer takes for healthy (Billot et al. 2023, SynthSeg). Nothing of them is diseased.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from diffusion_anomaly.stack import Grid, SliceStack
from diffusion_anomaly.volume import Volume

from .labels import Head, load_head
from .slices import HEALTHY, GridConfig, NormalisationConfig, Slices, join
from .tissues import TISSUES

logger = logging.getLogger(__name__)


class HeadsConfig(BaseModel):
    """Configuration file of the stage ``prepare-heads``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Path = Field(description="folder of label maps (*.nii.gz) with FreeSurfer numbers")
    images: int = Field(default=4, ge=1, description="images painted from each label map")
    slices: int = Field(default=24, ge=1, description="slices kept of each image, evenly spread")
    grid: GridConfig
    normalisation: NormalisationConfig = NormalisationConfig()
    minimum_brain_pixels: int = Field(default=300, ge=1)
    seed: int = Field(default=0, ge=0)


def prepare_heads(config: HeadsConfig, output: Path) -> None:
    """Write ``train.npz``.

    Raises:
        FileNotFoundError: when the folder holds no label map.
    """
    paths = sorted(config.labels.glob("*.nii.gz"))
    if not paths:
        raise FileNotFoundError(f"{config.labels} holds no label map (*.nii.gz).")
    output.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, path in enumerate(paths):
        head = load_head(path)
        for copy in range(config.images):
            rng = np.random.default_rng((config.seed, number, copy))
            torch.manual_seed(int(rng.integers(2**62)))
            parts.append(_slices(*paint_flair(head, rng), f"{path.name}-{copy}", config))
    slices = join(parts)
    slices.save(output / "train.npz")
    logger.info("%d slices of %d images", len(slices), len(parts))


def paint_flair(head: Head, rng: np.random.Generator) -> tuple[sitk.Image, sitk.Image]:
    """A random FLAIR-like image of a head and its brain mask, on one grid.

    Args:
        head: where the tissues lie.
        rng: source of every draw here; TorchIO draws from torch's global state, which the caller has seeded.
    """
    affine = np.diag([*head.spacing, 1.0])
    subject = tio.Subject(
        tissue=tio.LabelMap(tensor=head.tissue, affine=affine), brain=tio.LabelMap(tensor=head.brain, affine=affine)
    )
    subject = tio.RandomAffine(scales=0.1, degrees=8, default_pad_label=0)(subject)
    if rng.random() < 0.5:
        subject = tio.RandomElasticDeformation(num_control_points=7, max_displacement=7)(subject)
    tissue, brain = subject.tissue.data[0].numpy().astype(int), subject.brain.data[0].numpy() > 0
    means = flair_means(rng)
    image = means[tissue]
    # Tissue is never even: fine texture, and slow variation from one region to another.
    for sigma, width in ((0.8, rng.uniform(0.0, 0.04)), (4.0, rng.uniform(0.0, 0.03))):
        texture = ndimage.gaussian_filter(rng.standard_normal(image.shape), sigma)
        image = image + (tissue > 0) * texture * (width / texture.std())
    image = ndimage.gaussian_filter(image, [*([rng.uniform(0.3, 0.9)] * 2), rng.uniform(0.3, 1.2)])
    if rng.random() < 0.3:  # a mask that takes in some of what surrounds the brain
        brain = ndimage.binary_dilation(brain, iterations=1)
    images = []
    for values in (image.astype(np.float32), brain.astype(np.uint8)):
        made = sitk.GetImageFromArray(values.transpose(2, 1, 0))
        made.SetSpacing(head.spacing)
        made.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # the arrays run to the right, the front and up
        images.append(made)
    return images[0], images[1]


def flair_means(rng: np.random.Generator) -> np.ndarray:
    """Mean intensity of each tissue number, as FLAIR orders them."""
    white = rng.uniform(0.45, 0.6)
    grey = white + rng.uniform(0.0, 0.15)
    fluid = white * rng.uniform(0.0, 0.5)
    means = {
        "white matter": white,
        "cortex": grey,
        "ventricle": fluid,
        "cerebellar white matter": white + rng.uniform(-0.04, 0.04),
        "cerebellar cortex": grey + rng.uniform(-0.06, 0.03),
        "thalamus": white + rng.uniform(-0.02, 0.1),
        "caudate, putamen, accumbens": white + rng.uniform(0.0, 0.13),
        "pallidum, ventral diencephalon": white - rng.uniform(0.0, 0.08),
        "brain stem": white + rng.uniform(-0.03, 0.06),
        "hippocampus, amygdala": grey + rng.uniform(-0.02, 0.06),
        "lesion": white,
        "fluid": fluid * rng.uniform(0.7, 1.2),
        "skull": rng.uniform(0.0, 0.2),
        "skin": rng.uniform(0.2, 1.0),
        "marrow": rng.uniform(0.1, 0.8),
        "soft tissue": rng.uniform(0.3, 0.9),
        "other": rng.uniform(0.1, 0.8),
    }
    values = np.zeros(len(TISSUES) + 1)
    for name, number in TISSUES.items():
        values[number] = means[name]
    return values


def _slices(image: sitk.Image, brain: sitk.Image, name: str, config: HeadsConfig) -> Slices:
    volume = Volume(image=image, source=name, sha256="", dimension=3, non_finite=0, metadata={})
    stack = SliceStack(volume, Grid(**config.grid.model_dump()), brain)
    rule = config.normalisation.rule
    scale = rule.fit_scan(image, brain)
    inside = stack.brain()
    images = np.round(255.0 * scale(stack.images(), inside) / rule.clip_max).astype(np.uint8)
    count = len(images)
    slices = Slices(
        images,
        inside,
        np.full(count, HEALTHY, np.int8),
        np.arange(count, dtype=np.float32) / max(1, count - 1),
        np.full(count, name),
        np.array(stack.indices),
        np.full(count, stack.voxel_ml, np.float32),
    )
    large = np.flatnonzero(inside.sum((1, 2)) >= config.minimum_brain_pixels)
    kept = large[np.linspace(0, len(large) - 1, min(config.slices, len(large))).astype(int)]
    return slices.select(kept)
