"""Synthetic lesions on slabs, several a head, each computed in a box around itself.

Synthetic anomalies on healthy images teach what to look for without a single diseased image (Tan et al. 2022,
"Detecting Outliers with Foreign Patch Interpolation"; Schlüter et al. 2022, "Natural Synthetic Anomalies"). These are
ellipsoids of 2 to 85 mm whose border wanders, with grain, hollow or bright cores, partial volume where slabs are thick,
and mostly in white matter, as gliomas, demyelination and small vessel disease are. Where asked for, some lie along the
region's border instead, thin and tapering as blood between brain and skull, or fill fluid alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from .drawing import Draw, per_sample
from .slabs import SlabGrid, Slabs

Range = tuple[float, float]

BOXES = (24, 48, 96)  # pixels along a box's sides, smallest first; what is larger takes the whole image
NOISE_SIZE, NOISE_SIGMA = 72, 2.2  # of the noise that borders wander by, in its own cells
SMALL_MM = 5.0  # below this diameter a lesion stands out by ``small_shift`` at least
CORE_MM = 10.0  # above it a lesion may have a core
HOLDERS = 5  # kinds of lesions by what holds them, see ``holding_tissues``
NEIGHBOUR_SHARE = 0.25  # how often a lesion's middle lies in a neighbouring slab, by the middle one


class LesionConfig(BaseModel):
    """Lesions of a head. Intensities are on the engine's scale, lengths in mm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    none_share: float = Field(default=0.12, ge=0, le=1, description="heads without any")
    many_share: float = Field(default=0.45, ge=0, le=1, description="heads with many small ones; the others have few")
    few: tuple[int, int] = (1, 3)
    many: tuple[int, int] = (3, 10)
    few_diameter: Range = Field(default=(4.0, 85.0), description="evenly distributed in the logarithm")
    many_diameter: Range = (2.2, 13.0)
    shift: Range = Field(default=(0.04, 0.45), description="difference to the tissue, evenly in the logarithm")
    small_shift: float = Field(default=0.09, ge=0, description="least of lesions below 5 mm")
    dark: float = Field(default=0.22, ge=0, le=1, description="share that is darker than the tissue")
    grain: float = Field(default=0.35, ge=0, description="most of the variation inside a lesion, by its shift")
    core_share: float = Field(default=0.35, ge=0, le=1, description="of lesions above 10 mm, with another intensity")
    flat_share: float = Field(default=0.5, ge=0, le=1, description="lesions that hide the tissue's own pattern")
    rim_share: float = Field(default=0.14, ge=0, le=1, description="bands along the ventricles, where they are known")
    white_share: float = Field(default=0.26, ge=0, le=1, description="lesions that white matter alone holds")
    solid_share: float = Field(default=0.47, ge=0, le=1, description="lesions that spare fluid; the rest covers all")
    fluid_share: float = Field(default=0.0, ge=0, le=1, description="lesions that fluid alone holds")
    border_share: float = Field(default=0.0, ge=0, le=1, description="lesions that lie along the region's border")
    border_diameter: Range = Field(default=(20.0, 110.0), description="along the border")
    border_thickness: Range = Field(default=(2.5, 22.0), description="in their middle, evenly in the logarithm")
    edge: Range = Field(default=(0.35, 1.6), description="width of the border, in pixels")

    @field_validator("few_diameter", "many_diameter", "shift", "edge", "border_diameter", "border_thickness")
    @classmethod
    def _range(cls, ends: Range) -> Range:
        if not 0 < ends[0] <= ends[1]:
            raise ValueError(f"found {list(ends)}, expected a range that starts above 0")
        return ends


@dataclass(frozen=True)
class Lesions:
    """``M`` lesions; each tensor begins with that axis.

    Attributes:
        head: which head a lesion is in.
        slab, row, column: its middle.
        half: half its diameter, mm.
        axes: ``(M, 3)`` half its extent along and across ``angle`` and through the slabs, mm.
        angle: of its long axis in the plane.
        lift: how far its middle lies from the middle of its slab, in slabs.
        frequency: cells of noise a half extent.
        origin: ``(M, 3)`` where in the noise.
        wander: how far its border wanders, by its half extent.
        edge: width of its border, by its half extent.
        tissue: what holds it, a number of ``holding_tissues``.
        gap: mm between the head's slabs.
        partial: share of a pixel that it can be, where slabs are thicker than it.
        shift: its intensity minus the tissue's.
        grain: deviation of its intensity.
        core: ``(M, 2)`` where its core begins, by its half extent, and how much darker or brighter that is.
        flatness: how far the tissue's own pattern is lost.
        thickness: how far it reaches into the region from its border, mm; infinite for one that lies anywhere.
    """

    head: Tensor
    slab: Tensor
    row: Tensor
    column: Tensor
    half: Tensor
    axes: Tensor
    angle: Tensor
    lift: Tensor
    frequency: Tensor
    origin: Tensor
    wander: Tensor
    edge: Tensor
    tissue: Tensor
    gap: Tensor
    partial: Tensor
    shift: Tensor
    grain: Tensor
    core: Tensor
    flatness: Tensor
    thickness: Tensor

    def __len__(self) -> int:
        return len(self.head)

    def select(self, chosen: Tensor) -> Lesions:
        return Lesions(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def plant(
    slabs: Slabs, image: Tensor, brain: Tensor, strength: Tensor, grid: SlabGrid, config: LesionConfig, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Lesions in scans of slabs.

    Args:
        slabs: what is painted or drawn; says where white matter and fluid are.
        image: ``(B, K, H, W)`` the scan of it.
        brain: ``(B, K, H, W)`` bool, where lesions may lie.
        strength: ``(B,)`` in [0, 1], how far up the range of shifts lesions go.
        grid: the slabs' grid.
        config: which lesions.
        draw: of ``B`` heads.

    Returns:
        The scan with lesions, not clipped, and how far each pixel belongs to one, both ``(B, K, H, W)``. Pixels that
        belong to none are as they were.
    """
    below = border_depth(brain, config.border_thickness[1] / grid.spacing) if config.border_share else None
    lesions = draw_lesions(slabs, brain, strength, grid, config, draw, below)
    if not len(lesions):
        return image, torch.zeros_like(image)
    count, size = image.shape[1], image.shape[-1]
    pixels = count * size * size  # of a head
    allowed = (holding_tissues(slabs) * brain[:, None]).flatten()
    change, faded, level, cover = (torch.zeros(image.numel(), device=image.device) for _ in range(4))
    for side, some in _by_size(lesions, grid, size):
        rows, columns = _box(some.row, side, size), _box(some.column, side, size)
        slab = torch.arange(count, device=image.device)[:, None, None]
        pixel = (slab * size + rows[:, None, :, None]) * size + columns[:, None, None, :]  # in the head's slabs
        index = pixel + per_sample(some.head) * pixels
        hold = allowed[pixel + per_sample(some.head * HOLDERS + some.tissue) * pixels]
        depth, noise = _form(some, rows, columns, slab[:, 0, 0], grid)
        opacity = ((1.0 - depth) / per_sample(some.edge) + 0.5).clamp(0.0, 1.0) * hold * per_sample(some.partial)
        if below is not None:
            thickness = per_sample(some.thickness) / grid.spacing * (1.0 - depth**2).clamp_min(1e-3)
            opacity = opacity * (thickness + 0.5 - below.flatten()[index]).clamp(0.0, 1.0)
        core = ((per_sample(some.core[:, 0]) - depth) / 0.15).clamp(0.0, 1.0) * per_sample(some.core[:, 1])
        added = per_sample(some.shift) + noise * per_sample(some.grain) + core
        here = image.flatten()[index]
        mean = (opacity * here).sum((1, 2, 3)) / opacity.sum((1, 2, 3)).clamp_min(1e-3)
        hidden = opacity * per_sample(some.flatness)
        index = index.flatten()
        change.index_add_(0, index, (opacity * added).flatten())
        faded.index_add_(0, index, hidden.flatten())
        level.index_add_(0, index, (hidden * per_sample(mean)).flatten())
        cover.scatter_reduce_(0, index, opacity.flatten(), "amax")
    change, faded, level, cover = (values.view_as(image) for values in (change, faded, level, cover))
    # Where several lesions hide the tissue, its mean is theirs together.
    over = faded.clamp_min(1.0)
    return image * (1.0 - faded / over) + level / over + change, cover


def _by_size(lesions: Lesions, grid: SlabGrid, size: int) -> Iterator[tuple[int, Lesions]]:
    """Lesions that fit into a box of so many pixels a side, together, so that a small one costs a small box."""
    sides = [side for side in BOXES if side < size] + [size]
    width = 2.0 * (1.9 * lesions.half / grid.spacing + 5.0)
    kind = torch.stack([width > side for side in sides[:-1]] or [torch.zeros_like(width)]).sum(0).long()
    # In order of size and asked about once: every question to the device waits for all that it has been told to do.
    order, counts = kind.argsort(stable=True), torch.stack([kind == number for number in range(len(sides))]).sum(1)
    for side, chosen in zip(sides, order.split(counts.tolist()), strict=True):
        if len(chosen):
            yield side, lesions.select(chosen)


def holding_tissues(slabs: Slabs) -> Tensor:
    """How far each kind of lesion may reach into each pixel, ``(B, 5, K, H, W)``, in [0, 1].

    In the order of ``Lesions.tissue``: bands along the ventricles, white matter, all but fluid, fluid, everything.
    """
    fluid = slabs.fluid.clamp(0.0, 1.0)
    white = slabs.white * (1.0 - fluid)
    # Rounding may leave a product of shares a little below 0, whose root would be no number.
    band = (functional.max_pool2d(slabs.rim, 7, 1, 3) * white).clamp_min(0.0).sqrt()
    return torch.stack([band, white, 1.0 - fluid, fluid, torch.ones_like(fluid)], 1)


def border_depth(brain: Tensor, most: float) -> Tensor:
    """How many pixels lie between each pixel of a slab and its region's border, ``(B, K, H, W)``, counted to ``most``.

    Counted in squares and diamonds in turn, so that it is about the same in every direction. 0 outside.
    """
    left = brain.to(torch.uint8)  # bytes are much faster than pooling
    depth = torch.zeros_like(left)
    for step in range(math.ceil(most)):
        depth += left
        near = functional.pad(left, (1, 1, 1, 1), value=1)
        if step % 2:
            rows = near[..., :-2, :] & near[..., 1:-1, :] & near[..., 2:, :]
            left = rows[..., :-2] & rows[..., 1:-1] & rows[..., 2:]
        else:
            left = left & near[..., :-2, 1:-1] & near[..., 2:, 1:-1] & near[..., 1:-1, :-2] & near[..., 1:-1, 2:]
    return (depth + left).float()


def draw_lesions(
    slabs: Slabs,
    brain: Tensor,
    strength: Tensor,
    grid: SlabGrid,
    config: LesionConfig,
    draw: Draw,
    below: Tensor | None = None,
) -> Lesions:
    """Which lesions each head has; see ``plant``. ``below`` is the region's ``border_depth``, for lesions along it."""
    size = slabs.image.shape[-1]
    most = max(config.few[1], config.many[1])
    kind = draw.uniform(0.0, 1.0)
    is_many = kind >= 1.0 - config.many_share
    number = torch.where(
        is_many, draw.whole(config.many[0], config.many[1] + 1), draw.whole(config.few[0], config.few[1] + 1)
    )
    number = torch.where(kind < config.none_share, 0, number)
    head, place = torch.nonzero(torch.arange(most, device=draw.device) < number[:, None], as_tuple=True)
    middle = _places(brain * (0.15 + slabs.white + 3.0 * slabs.rim), grid, most, draw)[head, place]
    is_many = is_many[head]
    at_border = torch.zeros_like(is_many)
    if below is not None:
        at_border = draw.uniform(0.0, 1.0, most)[head, place] < config.border_share
        middle = torch.where(at_border, _places((below == 1).float(), grid, most, draw)[head, place], middle)
    draw = Draw(draw.generator, len(head))
    diameter = torch.where(is_many, draw.log_uniform(*config.many_diameter), draw.log_uniform(*config.few_diameter))
    if below is not None:
        diameter = torch.where(at_border, draw.log_uniform(*config.border_diameter), diameter)
    half = diameter / 2.0
    stretch, tall = draw.uniform(0.0, 0.55).exp(), draw.uniform(-0.3, 0.3).exp()
    wander = draw.uniform(0.0, 0.45) + torch.where(half < 4.0, 0.0, draw.uniform(0.0, 0.12))
    low, high = (math.log(end) for end in config.shift)
    shift = torch.exp(low + (high - low) * strength[head] * draw.uniform(0.0, 1.0))
    shift = torch.where(diameter < SMALL_MM, shift.clamp_min(config.small_shift), shift)
    sign = draw.sign(config.dark)
    core = torch.where(draw.chance(0.7), -draw.uniform(0.05, 0.45), draw.uniform(0.05, 0.3))
    has_core = (diameter > CORE_MM) & draw.chance(config.core_share)
    gap = slabs.gap[head]
    partial = (diameter / gap).clamp(max=1.0).sqrt().clamp_min(0.35)
    return Lesions(
        head=head,
        slab=middle // (size * size),
        row=middle // size % size,
        column=middle % size,
        half=half,
        axes=torch.stack([half * stretch, half / stretch, half * tall], 1),
        angle=draw.uniform(0.0, math.pi),
        lift=draw.uniform(-0.5, 0.5),
        frequency=draw.log_uniform(0.12, 0.45),
        origin=draw.uniform(-1.0, 1.0, 3),
        wander=wander,
        edge=(draw.log_uniform(*config.edge) * grid.spacing / half).clamp_max(0.8),
        tissue=torch.where(at_border, HOLDERS - 1, _tissues(slabs, head, half, config, draw)),
        gap=gap,
        partial=partial,
        shift=shift * sign,
        grain=shift * draw.uniform(0.0, config.grain),
        core=torch.stack([draw.uniform(0.35, 0.75), torch.where(has_core, sign * core, 0.0)], 1),
        flatness=torch.where(draw.chance(config.flat_share), draw.uniform(0.3, 1.0), 0.0),
        # Without any along the border no number is drawn, so that others stay as they were.
        thickness=torch.where(at_border, draw.log_uniform(*config.border_thickness), math.inf)
        if below is not None
        else torch.full_like(half, math.inf),
    )


def _places(weight: Tensor, grid: SlabGrid, most: int, draw: Draw) -> Tensor:
    """Pixels ``(B, most)`` of each head's flattened slabs, by weight ``(B, K, H, W)`` and mostly in the middle one."""
    nearness = torch.full((grid.slabs, 1, 1), NEIGHBOUR_SHARE, device=draw.device)
    nearness[grid.middle] = 1.0
    weight = (weight * nearness).flatten(1)
    # Were there no brain in a head, places would still be drawn, and nothing be planted there.
    weight = weight + 1e-6 * (weight.sum(1, keepdim=True) <= 0)
    return torch.multinomial(weight, most, True, generator=draw.generator)


def _tissues(slabs: Slabs, head: Tensor, half: Tensor, config: LesionConfig, draw: Draw) -> Tensor:
    """What holds each lesion; bands need ventricles in sight and some size."""
    bands = (slabs.rim.flatten(1).sum(1) > 60)[head] & (half > 4.0)
    kind = draw.uniform(0.0, 1.0)
    ends = [config.rim_share, config.rim_share + config.white_share]
    ends.append(ends[-1] + config.solid_share)
    ends.append(ends[-1] + config.fluid_share)
    tissue = sum((kind >= end).long() for end in ends)
    assert isinstance(tissue, Tensor)
    return torch.where((tissue == 0) & ~bands, 1, tissue)


def _box(middle: Tensor, side: int, size: int) -> Tensor:
    """Rows or columns ``(M, side)`` around each middle, moved into the image."""
    first = (middle - side // 2).clamp(0, size - side)
    return first[:, None] + torch.arange(side, device=middle.device)


def _form(lesions: Lesions, rows: Tensor, columns: Tensor, slab: Tensor, grid: SlabGrid) -> tuple[Tensor, Tensor]:
    """Depth ``(M, K, side, side)``, 0 in a lesion's middle and 1 at its border, and the noise that it wanders by."""
    down = ((rows - lesions.row[:, None]) * grid.spacing)[:, None, :, None]
    right = ((columns - lesions.column[:, None]) * grid.spacing)[:, None, None, :]
    up = (slab - lesions.slab[:, None] + lesions.lift[:, None]) * lesions.gap[:, None]
    cosine, sine = per_sample(lesions.angle.cos()), per_sample(lesions.angle.sin())
    along = (cosine * right + sine * down) / per_sample(lesions.axes[:, 0])
    across = (cosine * down - sine * right) / per_sample(lesions.axes[:, 1])
    through = up[:, :, None, None] / per_sample(lesions.axes[:, 2])
    place = torch.stack(torch.broadcast_tensors(along, across, through), -1)
    depth = place.norm(dim=-1)
    count, side = depth.shape[1], depth.shape[2]
    cells = (place * per_sample(lesions.frequency)[..., None] + lesions.origin[:, None, None, None] + 1.0) % 2.0 - 1.0
    noise = functional.grid_sample(
        wandering_noise(depth.device),
        cells.view(1, len(lesions), count * side, side, 3),
        align_corners=True,
        padding_mode="border",
    ).view_as(depth)
    # Far from a lesion the noise must not bring it back.
    return depth + per_sample(lesions.wander) * noise * (depth < 3.0), noise


@lru_cache(maxsize=2)
def wandering_noise(device: torch.device) -> Tensor:
    """Smooth periodic noise ``(1, 1, n, n, n)`` of deviation 1; each lesion looks at a part of it. Always the same."""
    rng = np.random.default_rng(7)
    noise = ndimage.gaussian_filter(rng.standard_normal((NOISE_SIZE,) * 3), NOISE_SIGMA, mode="wrap")
    return torch.from_numpy((noise / noise.std()).astype(np.float32))[None, None].to(device)
