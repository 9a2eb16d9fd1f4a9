"""Images of any contrast from label maps: the SynthStrip recipe (Hoopes et al. 2022), whole batches in torch.

A network that sees a new random contrast, bias field, resolution, deformation and field of view in every step cannot
learn any scanner, so it finds the brain on all of them. What surrounds the brain is never one grey, brains carry
tumours and cavities, headers are wrong about the distance of slices, and a share of the images is shown stripped,
because this software is given all of that.

Everything happens on the device of the generator, so that a GPU never waits for images.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion_anomaly.detection.brain_network import ROBUST_PERCENTILES, WINDOW

from .drawing import Draw, enlarge, per_sample, rotation
from .head_maps import HeadMaps
from .tissues import GREY, TISSUES, WHITE

Range = tuple[float, float]
Triple = tuple[float, float, float]

SCALED_FROM = 60_000  # voxels of each image that its percentiles are taken from
FEWEST_SLICES = 8  # of thick slices across the window


class SynthesisConfig(BaseModel):
    """How far images vary: lengths in voxels of 2 mm; a ``_share`` is that of images that something happens to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shift: Triple = Field(default=(5.0, 6.0, 9.0), description="standard deviation of the brain's place in the window")
    rotation: Triple = Field(default=(23.0, 17.0, 20.0), description="most degrees: nod, sideways tilt, turn")
    scale: float = Field(default=0.16, ge=0, description="most of the logarithm of each axis' size")
    wrong_spacing: Range = Field(default=(0.6, 1.7), description="true distance of slices by the header's")
    wrong_spacing_share: float = Field(default=0.15, ge=0, le=1)
    bend: float = Field(default=5.0, ge=0, description="most displacement of a smooth deformation")
    bend_share: float = Field(default=0.6, ge=0, le=1)
    mr_share: float = Field(default=0.7, ge=0, le=1, description="tissues in an order that MR has; others random")
    bright_skull_share: float = Field(default=0.15, ge=0, le=1, description="of those: fat or CT in place of dark bone")
    patches: float = Field(default=0.9, ge=0, description="most of the logarithm's patches around the brain")
    unevenness: float = Field(default=0.12, ge=0, description="most of slow variation inside the brain")
    lesions: int = Field(default=3, ge=0, description="tumours, cavities and oedema that a brain may carry at most")
    lesion_share: float = Field(default=0.35, ge=0, le=1, description="chance of each of them")
    lesion_radius: Range = (2.0, 18.0)
    stripped_share: float = Field(default=0.25, ge=0, le=1)
    bias: float = Field(default=0.5, ge=0, description="most of the logarithm of a bias field")
    bias_share: float = Field(default=0.4, ge=0, le=1)
    blur: Range = Field(default=(0.2, 1.1), description="Gaussian's standard deviation")
    blur_share: float = Field(default=0.5, ge=0, le=1)
    slice_thickness: Range = (1.1, 4.3)
    slice_share: float = Field(default=0.65, ge=0, le=1, description="thick slices, three in four of them axial")
    gamma: float = Field(default=0.4, ge=0, description="most of the logarithm of the exponent")
    gamma_share: float = Field(default=0.6, ge=0, le=1)
    noise: float = Field(default=0.06, ge=0, description="most of its standard deviation")
    noise_share: float = Field(default=0.6, ge=0, le=1)
    black_air_share: float = Field(default=0.6, ge=0, le=1, description="exact zeros around the head or brain")
    cut_share: float = Field(default=0.3, ge=0, le=1, description="a field of view that ends across the head")


@torch.no_grad()
def synthesise(
    maps: HeadMaps,
    config: SynthesisConfig,
    generator: torch.Generator,
    size: int,
    window: tuple[int, int, int] = WINDOW,
) -> tuple[Tensor, Tensor]:
    """Random images and their brain masks.

    Args:
        maps: heads to paint, on the generator's device.
        config: how far images vary.
        generator: source of every draw.
        size: how many images.
        window: voxels of 2 mm along each axis.

    Returns:
        Images ``(size, 1, *window)`` in [0, 1] and masks ``(size, 1, *window)`` of 0 and 1, both float32.
    """
    draw = Draw(generator, size)
    # In 16-bit precision, places in a map of 100 voxels would be off by half a voxel.
    with torch.autocast(generator.device.type, enabled=False):
        head = draw.whole(0, len(maps))
        tissue, brain = maps.look_up(head, places(maps.centres[head], draw, config, window))
        image = paint(tissue, brain, _tissue_intensities(draw, config), draw, config)
        for _ in range(config.lesions):
            image = plant_lesion(image, brain, draw, config)
        image = image.clamp_min(0.0)
        stripped = per_sample(draw.chance(config.stripped_share))
        image = torch.where(stripped & ~brain, 0.0, image)
        image = acquire(image, draw, config)
        # Exact zeros around the head and noise around a stripped brain must be as common as the reverse, or the
        # network takes a black background as the sign of a stripped image.
        outside = torch.where(stripped, ~brain, tissue == 0)
        image = torch.where(outside & per_sample(draw.chance(config.black_air_share)), 0.0, image)
        seen = field_of_view(draw, config, window[2])
        image, brain = torch.where(seen, image, 0.0), brain & seen
        return _rescale(image, draw)[:, None], brain[:, None].float()


def axes(window: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Voxel numbers along each axis, shaped to broadcast to ``(1, X, Y, Z)``."""
    shapes = [(1, -1, 1, 1), (1, 1, -1, 1), (1, 1, 1, -1)]
    return [torch.arange(count, device=device).float().view(shape) for count, shape in zip(window, shapes, strict=True)]


def places(
    centre: Tensor, draw: Draw, config: SynthesisConfig, window: tuple[int, int, int], step: float = 1.0
) -> Tensor:
    """Which voxel of its label map each voxel of an image shows, ``(B, X, Y, Z, 3)``.

    Args:
        centre: ``(B, 3)`` the voxel that the middle of the image shows.
        draw: source of every number.
        config: how far images vary.
        window: the image's voxels along each axis.
        step: edge of the image's voxels by that of the map's.
    """
    turn = rotation(*(draw.uniform(-1.0, 1.0) * math.radians(most) for most in config.rotation))
    scale = step * draw.uniform(-config.scale, config.scale, 3).exp()
    wrong = draw.chance(config.wrong_spacing_share)
    scale[:, 2] *= torch.where(wrong, draw.log_uniform(*config.wrong_spacing), 1.0)
    matrix = turn * scale[:, None]  # columns: steps along the image's axes in the map
    mirrored = torch.where(draw.chance(0.5), -1.0, 1.0)
    matrix = torch.cat([matrix[:, :, :1] * mirrored[:, None, None], matrix[:, :, 1:]], 2)
    start = centre + draw.normal(3) * torch.tensor(config.shift, device=draw.device)
    bend = enlarge(draw.uniform(-1.0, 1.0, 3, 6, 6, 6), window)
    bend = bend * (draw.uniform(0.0, config.bend) * draw.chance(config.bend_share))[:, None, None, None, None]
    place = bend.permute(0, 2, 3, 4, 1) + start[:, None, None, None]
    for number, (axis, count) in enumerate(zip(axes(window, draw.device), window, strict=True)):
        place = place + (axis - (count - 1) / 2.0)[..., None] * matrix[:, None, None, None, :, number]
    return place


def paint(
    tissue: Tensor, brain: Tensor, intensities: tuple[Tensor, Tensor], draw: Draw, config: SynthesisConfig
) -> Tensor:
    """A Gaussian a tissue, as in SynthSeg; patches over what surrounds the brain, slow variation inside it.

    Args:
        tissue: numbers ``(B, X, Y, Z)``.
        brain: the same shape, bool.
        intensities: mean and standard deviation of each tissue number, ``(B, tissues)``.
        draw: source of every number.
        config: how far images vary.
    """
    window = tuple(tissue.shape[1:])
    mean, width = intensities
    flat = tissue.flatten(1)
    image = (mean.gather(1, flat) + width.gather(1, flat) * draw.normal(flat.shape[1])).view(tissue.shape)
    patches = draw.field((14, 16, 14), window) * per_sample(draw.uniform(0.0, config.patches))
    image = torch.where(~brain & (tissue > 0), image * patches.exp(), image)
    inner = draw.field((7, 8, 7), window) * per_sample(draw.uniform(0.0, config.unevenness))
    return torch.where(brain, image * (1.0 + inner), image)


def _tissue_intensities(draw: Draw, config: SynthesisConfig) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each tissue number, ``(B, tissues)``."""
    count = len(TISSUES) + 1
    mean, width = draw.uniform(0.03, 1.0, count), draw.log_uniform(0.004, 0.1, count)
    mean[:, 0] = torch.where(draw.chance(0.85), 0.0, mean[:, 0])  # air is mostly dark and mostly even
    width[:, 0] = torch.where(draw.chance(0.8), draw.uniform(0.0, 0.03), width[:, 0])
    like_mr = draw.chance(config.mr_share)
    for name, value in _mr_means(draw, config).items():
        column = TISSUES[name]
        mean[:, column] = torch.where(like_mr, value.clamp(0.0, 1.0), mean[:, column])
    return mean, width


def _mr_means(draw: Draw, config: SynthesisConfig) -> dict[str, Tensor]:
    """The order that T1, T2 and FLAIR have in common: most of what the network will meet.

    Tissues of the brain lie close together, bone is dark, fat under the skin is bright, fluid is at one of the ends.
    """
    white, grey = draw.uniform(0.35, 0.85), draw.uniform(0.3, 0.85)
    fluid = torch.where(draw.chance(0.3), draw.uniform(0.8, 1.0), draw.uniform(0.0, 0.3))
    bright = draw.chance(config.bright_skull_share)
    return {
        **{name: white + 0.03 * draw.normal() for name in WHITE},
        **{name: grey + 0.03 * draw.normal() for name in GREY},
        "ventricle": fluid,
        "fluid": fluid + 0.05 * draw.normal(),
        "skin": draw.uniform(0.2, 1.0),
        "soft tissue": draw.uniform(0.2, 1.0),
        "other": draw.uniform(0.05, 1.0),
        "skull": torch.where(bright, draw.uniform(0.8, 1.0), draw.uniform(0.0, 0.25)),
    }


def plant_lesion(image: Tensor, brain: Tensor, draw: Draw, config: SynthesisConfig) -> Tensor:
    """A tumour, a cavity or oedema of any intensity in some of the brains, with a core of another one in some."""
    window = tuple(image.shape[1:])
    there = draw.chance(config.lesion_share)
    # Were there no brain in an image, a place would still be drawn, and nothing be planted there.
    voxel = torch.multinomial(brain.flatten(1).float() + 1e-9, 1, generator=draw.generator)[:, 0]
    centre = [voxel // (window[1] * window[2]), voxel // window[2] % window[1], voxel % window[2]]
    radius = draw.log_uniform(*config.lesion_radius, 3)
    square = torch.zeros((), device=draw.device)
    for number, axis in enumerate(axes(window, draw.device)):
        square = square + ((axis - per_sample(centre[number])) / per_sample(radius[:, number])) ** 2
    depth = square.sqrt() + 0.3 * draw.field((12, 14, 12), window)  # 1 at the lesion's edge
    cover = ((1.0 - depth) / 0.2).clamp(0.0, 1.0) * (brain & per_sample(there))
    core = ((0.6 - depth) / 0.2).clamp(0.0, 1.0) * per_sample(draw.chance(0.4))
    intensity = torch.lerp(per_sample(draw.uniform(0.0, 1.0)), per_sample(draw.uniform(0.0, 1.0)), core)
    return torch.lerp(image, intensity, cover)


def acquire(image: Tensor, draw: Draw, config: SynthesisConfig) -> Tensor:
    """Bias field, blur, thick slices, gamma, noise: what scanners do to an image."""
    window = tuple(image.shape[1:])
    bias = per_sample(draw.uniform(0.0, config.bias) * draw.chance(config.bias_share))
    image = image * (draw.field((3, 3, 3), window) * bias).exp()
    for axis, matrix in enumerate(_resolution(draw, config, window)):
        image = torch.einsum(("bux,bxyz->buyz", "buy,bxyz->bxuz", "buz,bxyz->bxyu")[axis], matrix, image)
    exponent = (draw.uniform(-config.gamma, config.gamma) * draw.chance(config.gamma_share)).exp()
    image = image.clamp_min(0.0) ** per_sample(exponent)
    noise = per_sample(draw.uniform(0.0, config.noise) * draw.chance(config.noise_share))
    return image + noise * draw.normal(*window)


def _resolution(draw: Draw, config: SynthesisConfig, window: tuple[int, ...]) -> list[Tensor]:
    """Blur and thick slices as one matrix ``(B, n, n)`` an axis, which makes them one multiplication for all heads."""
    # A narrow Gaussian leaves an image as it is.
    sigma = torch.where(draw.chance(config.blur_share), draw.uniform(*config.blur), 0.05)
    thick = draw.chance(config.slice_share)
    across = torch.where(draw.chance(0.75), 2, draw.whole(0, 3))
    thickness = draw.uniform(*config.slice_thickness)
    matrices = []
    for axis, count in enumerate(window):
        slices = (count / thickness).long().clamp_min(FEWEST_SLICES)
        slices = torch.where(thick & (across == axis), slices, count)
        matrices.append(slice_matrix(slices, count) @ blur_matrix(sigma, count))
    return matrices


def blur_matrix(sigma: Tensor, count: int) -> Tensor:
    """A Gaussian of ``sigma`` ``(B,)`` voxels along an axis of ``count``, as ``(B, count, count)``, rows of sum 1."""
    place = torch.arange(count, device=sigma.device).float()
    weight = torch.exp(-0.5 * ((place[:, None] - place) / sigma[:, None, None]) ** 2)
    return weight / weight.sum(-1, keepdim=True)


def slice_matrix(slices: Tensor, count: int) -> Tensor:
    """Means of so many slices across an axis, and lines between them on the way back, as ``(B, count, count)``.

    Args:
        slices: ``(B,)`` int64, from 1 to ``count``; ``count`` leaves everything as it is.
        count: voxels along the axis.
    """
    slices = slices[:, None]
    voxel = torch.arange(count, device=slices.device)
    first, end = voxel * count // slices, -(-(voxel + 1) * count // slices)  # of each slice, were there so many
    holds = ((voxel >= first[..., None]) & (voxel < end[..., None])).float()
    mean = holds / holds.sum(-1, keepdim=True).clamp_min(1.0)
    place = ((voxel + 0.5) * slices / count - 0.5).clamp_min(0.0)
    below = place.long().clamp_max(slices - 1)
    above = torch.minimum(below + 1, slices - 1)
    lower, upper = (mean.gather(1, chosen[..., None].expand(-1, -1, count)) for chosen in (below, above))
    return torch.lerp(lower, upper, (place - below)[..., None])


def field_of_view(draw: Draw, config: SynthesisConfig, height: int) -> Tensor:
    """What is inside the scan, ``(B, 1, 1, height)``: some end across the head, some are slabs of a few slices."""
    third = height // 3
    low, high = draw.whole(0, third), height - draw.whole(0, third)
    slab = draw.chance(0.3)
    bottom = draw.whole(height // 4, 3 * height // 4)
    low, high = torch.where(slab, bottom, low), torch.where(slab, bottom + draw.whole(2, 12), high)
    cut = draw.chance(config.cut_share)
    slices = torch.arange(height, device=draw.device)
    seen = (slices >= low[:, None]) & (slices < high[:, None]) | ~cut[:, None]
    return seen[:, None, None]


def _rescale(image: Tensor, draw: Draw) -> Tensor:
    """``brain_network.rescale_intensity`` for each image, its percentile taken from a sample of the voxels."""
    flat = image.flatten(1)
    sample = torch.randint(flat.shape[1], (SCALED_FROM,), generator=draw.generator, device=draw.device)
    base = flat.amin(1, keepdim=True)
    values = flat[:, sample]
    values = torch.where(values > base, values, torch.nan)
    high = torch.nanquantile(values, ROBUST_PERCENTILES[1] / 100.0, dim=1, keepdim=True)
    extent = torch.where(high.isnan(), 1.0, high - base).clamp_min(1e-6)
    return ((flat - base) / extent).clamp(0.0, 1.0).view(image.shape)
