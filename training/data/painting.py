"""FLAIR slabs of healthy heads, painted from label maps of 1 mm on the training's device.

Label maps with FLAIR's order of intensities (white matter a little darker than grey, fluid dark) and random contrast,
texture, tilt, thickness and resolution stand for healthy people on any scanner (Billot et al. 2023, SynthSeg). Nothing
of them is diseased, and no image is needed.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .drawing import Draw, blur, enlarge, per_sample, rotation
from .head_maps import HeadMaps
from .slabs import MODE, SlabGrid, Slabs
from .tissues import FLUID, GREY, RIM, TISSUES, WHITE

Range = tuple[float, float]

# Healthy regions that are brighter than others of their tissue on many scans, and how often each is.
OUTSHINING = ("cerebellar white matter", "brain stem", "pallidum, ventral diencephalon", "hippocampus, amygdala")
OUTSHINING_SHARE = 0.4

PARTS = 3  # planes that a slab is the mean of: partial volume


class PaintingConfig(BaseModel):
    """How far painted heads vary. Lengths in mm, intensities before scaling, where white matter is 0.45 to 0.6."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shift: float = Field(default=5.0, ge=0, description="most, of the head in the plane")
    height: Range = Field(default=(0.08, 0.99), description="of the middle slab, in shares of the brain's height")
    thin_share: float = Field(default=0.35, ge=0, le=1, description="slabs as thick as the first range says")
    thickness: tuple[Range, Range] = ((0.8, 2.0), (2.0, 7.0))
    gap: Range = Field(default=(1.0, 1.25), description="distance of slabs by their thickness")
    rotation: tuple[float, float, float] = Field(default=(0.15, 0.1, 0.15), description="most radians: nod, tilt, turn")
    scale: float = Field(default=0.13, ge=0, description="most of the logarithm of each axis' size")
    bend: float = Field(default=7.0, ge=0, description="most of a smooth deformation")
    stripped_share: float = Field(default=0.35, ge=0, le=1, description="heads with nothing around the brain")
    white_unevenness: float = Field(default=0.02, ge=0, description="most of slow variation of white matter")
    grey_unevenness: float = Field(default=0.05, ge=0)
    fluid_unevenness: float = Field(default=0.12, ge=0, description="flow, in the next entry's share of heads")
    flow_share: float = Field(default=0.4, ge=0, le=1)
    regional: float = Field(
        default=0.0, ge=0, description="most that a region outshines the others' range, in 4 of 10 heads each"
    )
    mottle: float = Field(default=0.03, ge=0, description="most of variation over centimetres, relative")
    grain: float = Field(default=0.035, ge=0, description="most of fine texture")
    surroundings: float = Field(default=0.4, ge=0, description="most of variation outside the brain, relative")
    blur: Range = Field(default=(0.3, 1.1), description="point spread in the plane, standard deviation in pixels")
    low: Range = Field(default=(0.3, 0.9), description="the scale's 0, in shares of fluid's intensity")
    mode: Range = Field(default=(-0.04, 0.10), description="logarithm of the brain's mode by white matter's intensity")


def paint(maps: HeadMaps, grid: SlabGrid, config: PaintingConfig, draw: Draw) -> Slabs:
    """Random FLAIR slabs.

    Args:
        maps: heads to paint, voxels of 1 mm, on the generator's device.
        grid: pixels and slabs.
        config: how far they vary.
        draw: of as many heads as are wanted.
    """
    size = grid.size
    thickness = torch.where(
        draw.chance(config.thin_share), draw.uniform(*config.thickness[0]), draw.uniform(*config.thickness[1])
    )
    gap = thickness * draw.uniform(*config.gap)
    head = draw.whole(0, len(maps))
    tissue, inside = maps.look_up(head, _places(maps.boxes[head], thickness, gap, grid, config, draw))
    stripped = per_sample(draw.chance(config.stripped_share))
    tissue = torch.where(~inside & stripped, 0, tissue)
    means, white_mean, fluid_mean = flair_means(draw, config.regional)

    def over_parts(values: Tensor) -> Tensor:
        """``(B, K * PARTS, H, W)`` to the mean of each slab."""
        return values.view(draw.size, grid.slabs, PARTS, size, size).float().mean(2)

    def share(*numbers: int) -> Tensor:
        chosen = torch.zeros(RIM + 1, device=draw.device)
        chosen[list(numbers)] = 1.0
        return over_parts(chosen[tissue])

    image = over_parts(means.gather(1, tissue.flatten(1)).view(tissue.shape))
    brain = over_parts(inside) > 0.5
    grey, fluid = (share(*(TISSUES[name] for name in names)) for names in (GREY, FLUID))
    rim, white = share(RIM), share(RIM, *(TISSUES[name] for name in WHITE))
    image = _textured(image, white, grey, fluid, brain, config, draw)
    spread = draw.uniform(*config.blur)
    image, white, fluid, rim = (blur(part, spread) for part in (image, white, fluid, rim))
    # Where the engine's scale has its 0, the brain's lowest half per cent, and its mode.
    low = fluid_mean * draw.uniform(*config.low)
    mode = white_mean * draw.uniform(*config.mode).exp()
    image = (image - per_sample(low)).clamp_min(0.0) * per_sample(MODE / (mode - low))
    return Slabs(image, brain, torch.ones_like(brain), white, fluid, rim, gap)


def _places(box: Tensor, thickness: Tensor, gap: Tensor, grid: SlabGrid, config: PaintingConfig, draw: Draw) -> Tensor:
    """Which voxel of its map each pixel shows, ``(B, K * PARTS, H, W, 3)``: axial planes, front of the head up.

    Args:
        box: ``(B, 2, 3)`` lowest and highest corner of each brain, in voxels of 1 mm.
    """
    low, high = box[:, 0], box[:, 1]
    centre = (low + high) / 2.0
    shift = draw.uniform(-config.shift, config.shift, 2)
    height = low[:, 2] + (high - low)[:, 2] * draw.uniform(*config.height)
    centre = torch.cat([centre[:, :2] + shift, height[:, None]], 1)
    slab = torch.arange(grid.slabs, device=draw.device) - grid.middle
    part = (torch.arange(PARTS, device=draw.device) - PARTS // 2) / PARTS
    up = (slab[:, None] * gap[:, None, None] + part * thickness[:, None, None]).flatten(1)  # (B, K * PARTS)
    across = (torch.arange(grid.size, device=draw.device) - (grid.size - 1) / 2.0) * grid.spacing
    shape = (draw.size, up.shape[1], grid.size, grid.size)
    local = torch.stack(
        [
            (per_sample(draw.sign()) * across).expand(shape),
            (-across[:, None]).expand(shape),
            up[:, :, None, None].expand(shape),
        ],
        -1,
    )
    turn = rotation(*(draw.uniform(-most, most) for most in config.rotation))
    matrix = turn * draw.uniform(-config.scale, config.scale, 1, 3).exp()
    bend = enlarge(draw.uniform(-1.0, 1.0, 3, 3, 6, 6), shape[1:])
    bend = bend * draw.uniform(0.0, config.bend)[:, None, None, None, None]
    place = torch.einsum("bshwi,bji->bshwj", local, matrix)
    return place + bend.permute(0, 2, 3, 4, 1) + centre[:, None, None, None]


def _textured(
    image: Tensor, white: Tensor, grey: Tensor, fluid: Tensor, brain: Tensor, config: PaintingConfig, draw: Draw
) -> Tensor:
    """Tissue is never even: slow variation of each, variation of all, whatever lies outside the brain, and grain."""
    slabs, size = image.shape[1], image.shape[-1]

    def slow(cells: int, deviation: Tensor) -> Tensor:
        return draw.plane(slabs, cells, size) * per_sample(deviation)

    flow = draw.uniform(0.0, config.fluid_unevenness) * draw.chance(config.flow_share)
    image = image + white * slow(9, draw.uniform(0.0, config.white_unevenness))
    image = image + grey * slow(10, draw.uniform(0.0, config.grey_unevenness)) + fluid * slow(14, flow)
    image = image * (1.0 + slow(24, draw.uniform(0.0, config.mottle)))
    around = slow(20, draw.uniform(0.0, config.surroundings))
    image = torch.where(brain, image, image * (1.0 + around)).clamp_min(0.0)
    grain = blur(draw.normal(slabs, size, size), torch.full((draw.size,), 0.8, device=draw.device)) / 0.35
    return image + grain * per_sample(draw.uniform(0.0, config.grain)) * (image > 0.02)


def flair_means(draw: Draw, regional: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean intensity of each tissue number ``(B, tissues)``, as FLAIR orders them; of white matter and fluid, ``(B,)``.

    White matter along the ventricles is normally a little brighter than elsewhere, and the regions of ``OUTSHINING``
    often are, by up to ``regional`` (white matter is 0.45 to 0.6): they must not pass for a lesion.
    """
    white = draw.uniform(0.45, 0.6)
    grey = white + draw.uniform(-0.02, 0.15)
    fluid = white * draw.uniform(0.0, 0.55)
    means = torch.zeros(draw.size, RIM + 1, device=draw.device)
    for name, value in {
        "white matter": white,
        "cortex": grey,
        "ventricle": fluid,
        "cerebellar white matter": white + draw.uniform(-0.04, 0.06),
        "cerebellar cortex": grey + draw.uniform(-0.06, 0.03),
        "thalamus": white + draw.uniform(-0.02, 0.1),
        "caudate, putamen, accumbens": white + draw.uniform(0.0, 0.13),
        "pallidum, ventral diencephalon": white - draw.uniform(-0.02, 0.08),
        "brain stem": white + draw.uniform(-0.03, 0.08),
        "hippocampus, amygdala": grey + draw.uniform(-0.02, 0.09),
        "lesion": white,
        "fluid": fluid * draw.uniform(0.6, 1.2),
        "skull": draw.uniform(0.0, 0.2),
        "skin": draw.uniform(0.2, 1.0),
        "marrow": draw.uniform(0.1, 0.8),
        "soft tissue": draw.uniform(0.3, 0.9),
        "other": draw.uniform(0.1, 0.8),
    }.items():
        means[:, TISSUES[name]] = value
    means[:, RIM] = white + draw.uniform(-0.01, 0.1)
    if regional:  # without, no number is drawn, so that other heads stay as they were
        for name in OUTSHINING:
            means[:, TISSUES[name]] += draw.uniform(0.0, regional) * draw.chance(OUTSHINING_SHARE)
    return means, white, fluid
