"""Images of any contrast from label maps: the SynthStrip recipe (Hoopes et al. 2022), made with TorchIO.

A network that sees a new random contrast, bias field, resolution, deformation and field of view in every step cannot
learn any scanner, so it finds the brain on all of them. A share of the images is shown stripped, and a share of the
brains carries lesions, because both are what this software is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchio as tio
from scipy import ndimage
from torch import Tensor

from diffusion_anomaly.brain import WINDOW, rescale_intensity

# FreeSurfer numbers of tissue inside the brain, grouped by what shares an intensity on MR.
BRAIN_GROUPS: dict[str, tuple[int, ...]] = {
    "white matter": (2, 41, 85, 30, 62),
    "cortex": (3, 42),
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
    "cerebellar white matter": (7, 46),
    "cerebellar cortex": (8, 47),
    "thalamus": (10, 49),
    "caudate, putamen, accumbens": (11, 12, 26, 50, 51, 58),
    "pallidum, ventral diencephalon": (13, 28, 52, 60),
    "brain stem": (16,),
    "hippocampus, amygdala": (17, 18, 53, 54),
    "lesion": (25, 57, 136, 137, 163, 164),
}
FLUID_VOXELS = 2.0  # fluid this close to the brain belongs to the mask, so that no cortex is cut off
# SynthSeg's numbers outside the brain that have a name of their own here; the rest are soft tissue.
OUTSIDE = {24: 12, 515: 13, 511: 14, 516: 15, 507: 16}
TISSUES = {name: number for number, name in enumerate(BRAIN_GROUPS, start=1)} | {
    "fluid": 12,
    "skull": 13,
    "skin": 14,
    "marrow": 15,
    "soft tissue": 16,
    "other": 17,
}
SIZE = WINDOW
SULCUS_VOXELS = 3.0  # closing this far fills the sulci as hand-made and DLMUSE masks do


@dataclass(frozen=True)
class Head:
    """One label map, canonical orientation, with its brain mask.

    Attributes:
        tissue: ``(1, X, Y, Z)`` uint8, 0 air, then one number a tissue.
        brain: ``(1, X, Y, Z)`` uint8, parenchyma and ventricles with the sulci filled and the fluid
            around them.
        spacing: millimetres.
    """

    tissue: Tensor
    brain: Tensor
    spacing: tuple[float, float, float]


def load_head(path: Path) -> Head:
    """Read one label map and group its labels by tissue."""
    image = tio.ToCanonical()(tio.LabelMap(path))
    labels = image.data.numpy()
    tissue = np.zeros(labels.shape, np.uint8)
    for number, group in enumerate(BRAIN_GROUPS.values(), start=1):
        tissue[np.isin(labels, group)] = number
    inside = tissue > 0
    for label in np.unique(labels[(tissue == 0) & (labels > 0)]):
        tissue[labels == label] = OUTSIDE.get(int(label), len(TISSUES))
    brain = np.asarray(ndimage.binary_fill_holes(_close(inside[0], SULCUS_VOXELS)))
    near = _distance(~brain) <= FLUID_VOXELS
    brain |= near & (tissue[0] == TISSUES["fluid"])
    return Head(torch.from_numpy(tissue), torch.from_numpy(brain.astype(np.uint8)[None]), image.spacing)


def _close(mask: np.ndarray, radius: float) -> np.ndarray:
    margin = int(radius) + 1
    padded = np.pad(mask, margin)
    grown = _distance(~padded) <= radius
    closed = _distance(grown) > radius
    return closed[margin:-margin, margin:-margin, margin:-margin]


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels to the nearest one that is not in the mask, 0 outside it."""
    return np.asarray(ndimage.distance_transform_edt(mask))


def synthesise(head: Head, lesions: list[np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random image and its brain mask.

    Args:
        head: where the tissues lie.
        lesions: boolean lesion shapes in voxels of the head's spacing.
        rng: source of every draw here; TorchIO draws from torch's global state, which the caller has seeded.

    Returns:
        Image ``(1, *SIZE)`` float32 in [0, 1] and mask ``(1, *SIZE)`` float32.
    """
    affine = np.diag([*head.spacing, 1.0])
    tissue = head.tissue.clone()
    if rng.random() < 0.4 and lesions:
        _plant(tissue[0].numpy(), head.brain[0].numpy() > 0, lesions[rng.integers(len(lesions))], rng)
    subject = tio.Subject(
        tissue=tio.LabelMap(tensor=tissue, affine=affine), brain=tio.LabelMap(tensor=head.brain, affine=affine)
    )
    subject = _crop(subject, rng)
    subject = tio.RandomAffine(scales=0.15, degrees=20, translation=10, default_pad_label=0)(subject)
    if rng.random() < 0.35:
        subject = tio.RandomElasticDeformation(num_control_points=7, max_displacement=9)(subject)
    if rng.random() < 0.5:
        subject = tio.RandomFlip(axes=(0,), flip_probability=1.0)(subject)
    stripped = rng.random() < 0.25
    outside = (subject.brain if stripped else subject.tissue).data == 0
    image = _paint(subject.tissue.data.long(), subject.brain.data > 0, stripped, rng)
    subject.add_image(tio.ScalarImage(tensor=image, affine=subject.tissue.affine), "image")
    subject = _acquire(subject, rng)
    image = subject.image.data
    # Exact zeros around the head and noise around a stripped brain must be as common as the reverse, or the network
    # takes a black background as the sign of a stripped image.
    if rng.random() < 0.6:
        image = torch.where(outside, torch.zeros(()), image)
    return torch.from_numpy(rescale_intensity(image.numpy())), subject.brain.data.float()


def _crop(subject: tio.Subject, rng: np.random.Generator) -> tio.Subject:
    """Cut a crop of the size that the engine shows the network, at a random place around the brain."""
    inside = np.argwhere(subject.brain.data[0].numpy())
    center = inside.mean(0) + rng.normal(0.0, 10.0, 3)
    shape = np.array(subject.brain.data.shape[1:])
    size = np.array(SIZE)
    first = np.clip(np.round(center - size / 2), np.minimum(0, shape - size), np.maximum(0, shape - size)).astype(int)
    low, high = np.maximum(first, 0), np.minimum(first + size, shape)
    subject = tio.Crop(tuple(int(v) for pair in zip(low, shape - high, strict=True) for v in pair))(subject)
    return tio.CropOrPad(SIZE)(subject)


def _paint(tissue: Tensor, brain: Tensor, stripped: bool, rng: np.random.Generator) -> Tensor:
    """A Gaussian a tissue with random mean and width, as in SynthSeg; perhaps stripped, perhaps with air painted."""
    classes = int(tissue.max()) + 1
    means = torch.from_numpy(rng.uniform(0.05, 1.0, classes).astype(np.float32))
    widths = torch.from_numpy(rng.uniform(0.005, 0.1, classes).astype(np.float32))
    if rng.random() < 0.8:  # air is dark
        means[0], widths[0] = 0.0, rng.uniform(0.0, 0.03)
    if rng.random() < 0.6:
        _resemble_mr(means, rng)
    image = means[tissue] + widths[tissue] * torch.randn(tissue.shape)
    if stripped:
        image = torch.where(brain, image, torch.zeros(()))
    return image.clamp_min(0.0)


def _resemble_mr(means: Tensor, rng: np.random.Generator) -> None:
    """Give tissues the order that T1, T2 and FLAIR have in common, in place: most of what the network will meet.

    Tissues of the brain lie close together, bone is dark, fat under the skin is bright, fluid is at one of the ends.
    """

    def paint(name: str, value: float) -> None:
        number = TISSUES.get(name)
        if number is not None and number < len(means):
            means[number] = float(np.clip(value, 0.0, 1.0))

    white, grey = rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.8)
    for name in ("white matter", "cerebellar white matter", "brain stem", "pallidum, ventral diencephalon"):
        paint(name, white + rng.normal(0.0, 0.03))
    for name in ("cortex", "cerebellar cortex", "thalamus", "caudate, putamen, accumbens", "hippocampus, amygdala"):
        paint(name, grey + rng.normal(0.0, 0.03))
    fluid = rng.uniform(0.8, 1.0) if rng.random() < 0.3 else rng.uniform(0.0, 0.3)
    paint("ventricle", fluid)
    paint("fluid", fluid + rng.normal(0.0, 0.05))
    paint("skull", rng.uniform(0.0, 0.25))
    paint("skin", rng.uniform(0.2, 1.0))
    paint("soft tissue", rng.uniform(0.3, 1.0))


def _acquire(subject: tio.Subject, rng: np.random.Generator) -> tio.Subject:
    """Bias field, resolution, thick slices, noise, gamma, cut field of view: what scanners do to an image."""
    if rng.random() < 0.35:
        subject = tio.RandomBiasField(coefficients=0.4)(subject)
    if rng.random() < 0.5:
        subject = tio.RandomBlur(std=(0.2, 1.6))(subject)
    if rng.random() < 0.6:
        axis = 2 if rng.random() < 0.7 else int(rng.integers(3))
        subject = tio.RandomAnisotropy(axes=(axis,), downsampling=(1.2, 3.5))(subject)
    if rng.random() < 0.6:
        subject = tio.RandomGamma(log_gamma=(-0.4, 0.4))(subject)
    if rng.random() < 0.5:
        subject = tio.RandomNoise(std=(0.0, 0.06))(subject)
    if rng.random() < 0.25:
        _cut_field_of_view(subject, rng)
    return subject


def _cut_field_of_view(subject: tio.Subject, rng: np.random.Generator) -> None:
    """Air beyond a plane across the brain: slabs and single slices keep a brain, though a cut one."""
    image, brain = subject.image.data.clone(), subject.brain.data.clone()
    height = image.shape[3]
    if rng.random() < 0.3:
        thickness = int(rng.integers(2, 12))
        low = int(rng.integers(height // 4, 3 * height // 4))
        high = low + thickness
    else:
        low, high = int(rng.integers(0, height // 3)), height - int(rng.integers(0, height // 3))
    for data in (image, brain):
        data[..., :low] = 0
        data[..., high:] = 0
    subject.image.set_data(image)
    subject.brain.set_data(brain)


def _plant(tissue: np.ndarray, brain: np.ndarray, shape: np.ndarray, rng: np.random.Generator) -> None:
    """Put a lesion's shape at a random place of the brain, in place."""
    places = np.argwhere(brain)
    center = places[rng.integers(len(places))]
    voxels = np.argwhere(shape)
    voxels = voxels - voxels.mean(0).round().astype(int) + center
    voxels = voxels[np.all((voxels >= 0) & (voxels < brain.shape), axis=1)]
    voxels = voxels[brain[tuple(voxels.T)]]
    tissue[tuple(voxels.T)] = TISSUES["lesion"]
