"""Heads as MR and CT show them, by contrast, and what is no head: what a network learns to tell scans apart from.

A contrast is the order of tissues that textbooks give: fluid is dark on FLAIR and grey matter brighter than white; on
T1 it is darker; on T2 fluid is brightest. All else about an image is left to chance, as in ``synthesis``. No image of
anyone is used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from diffusion_anomaly.detection.recognition_network import KINDS, POSES, SPACING, WINDOW

from .drawing import Draw, enlarge, per_sample
from .head_maps import HeadMaps
from .synthesis import SynthesisConfig, acquire, axes, field_of_view, paint, places, plant_lesion
from .tissues import FLUID, GREY, TISSUES, WHITE

SHARES = (0.3, 0.14, 0.1, 0.08, 0.08, 0.08, 0.07, 0.07, 0.08)
"""How often each of ``KINDS`` is drawn."""
NO_POSE = -1
"""Of a scan whose pose cannot be seen."""
SLICES_WITH_A_TOP = 14  # of so many slices it can be seen which way is up

_VESSELS, _VESSEL_POINTS = 14, 60
_TURNED_SHARE = 0.2


@torch.no_grad()
def draw_scans(
    maps: HeadMaps,
    config: SynthesisConfig,
    generator: torch.Generator,
    size: int,
    window: tuple[int, int, int] = WINDOW,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random scans, roughly centred on their brain.

    Args:
        maps: heads to paint, on the generator's device.
        config: how far images vary; its lengths are in voxels of the window.
        generator: source of every draw.
        size: how many.
        window: voxels of 3 mm along each axis.

    Returns:
        Images ``(size, *window)`` float32; brain masks, bool, of the same shape; which of ``KINDS`` each image is,
        int64; and which of ``POSES``, or ``NO_POSE``.
    """
    draw = Draw(generator, size)
    with torch.autocast(generator.device.type, enabled=False):
        kind = draw.one_of(SHARES)
        head = draw.whole(0, len(maps))
        tissue, brain = maps.look_up(head, places(maps.centres[head], draw, config, window, SPACING / maps.spacing))
        image = paint(tissue, brain, _intensities(kind, draw), draw, config)
        image = _draw_vessels(image, kind, draw)
        for _ in range(config.lesions):
            image = plant_lesion(image, brain, draw, config)
        # Diffusion-weighted images and CT are known by what they show around the brain; nobody strips them.
        bare = (kind == KINDS.index("diffusion-weighted")) | (kind == KINDS.index("CT"))
        stripped = per_sample(draw.chance(config.stripped_share) & ~bare)
        image = acquire(torch.where(stripped & ~brain, 0.0, image.clamp_min(0.0)), draw, config)
        outside = torch.where(stripped, ~brain, tissue == 0)
        image = torch.where(outside & per_sample(draw.chance(config.black_air_share)), 0.0, image)
        image, brain = _without_brain(image, brain, kind, draw)
        brain = _as_found(brain, draw)
        view = draw_view(draw, config, image)
        image = torch.where(view, image, 0.0)
        image, brain = _centred(image, brain & view)
        image, brain, pose = turned(image, brain, kind, view.flatten(1).sum(1), draw)
        return torch.minimum(image, per_sample(_saturation(image, draw))), brain, kind, pose


def _intensities(kind: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each tissue number, ``(B, tissues)``, about 1 at most but for CT's bone."""
    tables = torch.stack([_flair(draw), _t1(draw), _t2(draw), _pd(draw), _diffusion(draw), _ct(draw)])
    angiography, other = _angiography(draw), _other(draw)
    tables = torch.cat([tables, torch.stack([angiography, other, _unordered(draw)])])
    mean = tables[kind, torch.arange(draw.size, device=draw.device)]
    width = draw.log_uniform(0.004, 0.05, mean.shape[1])
    width[:, 0] = torch.where(draw.chance(0.8), draw.uniform(0.0, 0.03), width[:, 0])
    return mean / mean.amax(1, keepdim=True).clamp_max(2.0).clamp_min(1e-3), width


def _table(draw: Draw, white: Tensor, grey: Tensor, fluid: Tensor, **outside: Tensor) -> Tensor:
    """Means of all tissues out of those of the three that make a contrast; ``(B, tissues)``."""
    mean = draw.uniform(0.05, 1.2, len(TISSUES) + 1) * white[:, None]
    mean[:, 0] = torch.where(draw.chance(0.85), 0.0, mean[:, 0] * 0.15)
    for names, value, spread in ((WHITE, white, 0.04), (GREY, grey, 0.04), (FLUID, fluid, 0.03)):
        for name in names:
            mean[:, TISSUES[name]] = value * (1.0 + spread * draw.normal())
    # Iron darkens the pallidum; its place between white and grey matter differs from contrast to contrast.
    mean[:, TISSUES["pallidum, ventral diencephalon"]] = torch.lerp(white, grey, draw.uniform(-0.6, 0.8))
    mean[:, TISSUES["thalamus"]] = torch.lerp(white, grey, draw.uniform(0.2, 1.0))
    mean[:, TISSUES["skull"]] = draw.uniform(0.0, 0.25) * white
    mean[:, TISSUES["skin"]] = draw.uniform(0.1, 2.0) * white
    mean[:, TISSUES["marrow"]] = draw.uniform(0.1, 1.6) * white
    mean[:, TISSUES["soft tissue"]] = draw.uniform(0.2, 1.3) * white
    for name, value in outside.items():
        mean[:, TISSUES[name.replace("_", " ")]] = value
    return mean


def _ones(draw: Draw) -> Tensor:
    return torch.ones(draw.size, device=draw.device)


def _flair(draw: Draw) -> Tensor:
    return _table(draw, _ones(draw), 0.99 + 0.5 * draw.uniform(0.0, 1.0) ** 2, draw.uniform(0.0, 0.6))


def _t1(draw: Draw) -> Tensor:
    grey = 0.94 - 0.5 * draw.uniform(0.0, 1.0) ** 1.5
    return _table(draw, _ones(draw), grey, grey * draw.uniform(0.1, 0.85))


def _t2(draw: Draw) -> Tensor:
    grey = draw.uniform(1.02, 1.9)
    return _table(draw, _ones(draw), grey, grey * draw.uniform(1.35, 3.5))


def _pd(draw: Draw) -> Tensor:
    grey = draw.uniform(1.03, 1.4)
    return _table(draw, _ones(draw), grey, grey * draw.uniform(0.72, 1.35))


def _diffusion(draw: Draw) -> Tensor:
    faint = {name: draw.uniform(0.0, 0.25) for name in ("skin", "soft_tissue", "marrow", "other", "skull")}
    return _table(draw, _ones(draw), draw.uniform(0.98, 1.35), draw.uniform(0.0, 0.3), **faint)


def _ct(draw: Draw) -> Tensor:
    """Either in a window for the brain, as viewers show it, or in Hounsfield units."""
    windowed = draw.chance(0.6)

    def either(low: Tensor, high: Tensor) -> Tensor:
        return torch.where(windowed, low, high)

    white = either(draw.uniform(0.25, 0.5), draw.uniform(0.5, 0.53))
    grey = white + either(draw.uniform(0.02, 0.15), draw.uniform(0.003, 0.01))
    fluid = (white - either(draw.uniform(0.1, 0.35), draw.uniform(0.008, 0.02))).clamp_min(0.0)
    skull = either(draw.uniform(0.9, 1.0), draw.uniform(0.75, 1.3))
    skin = either(draw.uniform(0.0, 0.2), draw.uniform(0.44, 0.48))
    soft = either(draw.uniform(0.3, 0.7), draw.uniform(0.5, 0.55))
    return _table(draw, white, grey, fluid, skull=skull, marrow=skull, skin=skin, soft_tissue=soft)


def _angiography(draw: Draw) -> Tensor:
    return _table(draw, _ones(draw), draw.uniform(0.98, 1.3), draw.uniform(0.25, 0.95))


def _other(draw: Draw) -> Tensor:
    """Maps of diffusion, perfusion or iron, PET, double inversion, negatives: in an order that no other kind has."""
    white, grey, fluid = draw.uniform(0.1, 1.0), draw.uniform(0.1, 1.0), draw.uniform(0.0, 1.0)
    choice = draw.one_of((0.4, 0.3, 0.3))
    # As grey matter alone (PET, double inversion), or fluid against the rest (diffusion's mean), or negatives of T1.
    alone = choice == 0
    grey = torch.where(alone, draw.uniform(0.7, 1.0), grey)
    white = torch.where(alone, grey / draw.uniform(1.9, 5.0), white)
    fluid = torch.where(alone, draw.uniform(0.0, 0.4) * grey, fluid)
    flat = choice == 1
    white, grey = torch.where(flat, draw.uniform(0.2, 0.4), white), torch.where(flat, draw.uniform(0.2, 0.4), grey)
    fluid = torch.where(flat, draw.uniform(0.8, 1.0), fluid)
    negative = choice == 2
    white = torch.where(negative, draw.uniform(0.2, 0.5), white)
    grey = torch.where(negative, white * draw.uniform(1.2, 1.8), grey)
    fluid = torch.where(negative, draw.uniform(0.9, 1.2), fluid)
    bright_air = torch.where(negative & draw.chance(0.6), draw.uniform(0.9, 1.2), 0.0)
    mean = _table(draw, white, grey, fluid)
    mean[:, 0] = torch.maximum(mean[:, 0], bright_air)
    return mean


def _unordered(draw: Draw) -> Tensor:
    return draw.uniform(0.0, 1.0, len(TISSUES) + 1)


def _draw_vessels(image: Tensor, kind: Tensor, draw: Draw) -> Tensor:
    """Bright vessels in all angiographies and in some images after contrast: curves that start below the brain."""
    window = torch.tensor(image.shape[1:], device=draw.device)
    start = window * torch.tensor((0.5, 0.55, 0.4), device=draw.device)
    start = start + draw.normal(_VESSELS, 1, 3) * torch.tensor((6.0, 8.0, 4.0), device=draw.device)
    heading = draw.normal(_VESSELS, 1, 3) + 0.25 * draw.normal(_VESSELS, _VESSEL_POINTS, 3).cumsum(2)
    heading[..., 2] += 0.3
    path = start + (0.9 * functional.normalize(heading, dim=-1)).cumsum(2)
    voxel = torch.minimum(path.round().clamp_min(0), window - 1).long().flatten(1, 2)
    there = torch.zeros_like(image)
    sample = torch.arange(draw.size, device=draw.device)[:, None].expand(voxel.shape[:2])
    there[sample, voxel[..., 0], voxel[..., 1], voxel[..., 2]] = 1.0
    wide = functional.max_pool3d(there[:, None], (2, 2, 3), 1, 1)[:, 0, : there.shape[1], : there.shape[2]]
    there = torch.where(per_sample(draw.chance(0.3)), wide[..., : there.shape[3]], there)
    angiography = kind == KINDS.index("angiography")
    enhanced = (kind == KINDS.index("T1")) & draw.chance(0.4)
    brightness = torch.where(angiography, draw.uniform(1.6, 5.0), draw.uniform(0.9, 1.6))
    cover = there * per_sample(angiography | enhanced) * per_sample(draw.uniform(0.5, 1.0))
    return torch.lerp(image, per_sample(brightness).expand_as(image), cover)


def _without_brain(image: Tensor, brain: Tensor, kind: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Noise, bodies of blobs, and what lies beside a brain, in place of the images of that kind."""
    absent = torch.nonzero(kind == KINDS.index("no brain"))[:, 0]
    if not len(absent):
        return image, brain
    draw = Draw(draw.generator, len(absent))
    window = tuple(image.shape[1:])
    grain = draw.field((9, 10, 9), window) * per_sample(draw.uniform(0.0, 0.4))
    grain = grain + draw.normal(*window) * per_sample(draw.uniform(0.02, 0.4))
    noise = grain + per_sample(draw.uniform(0.0, 1.0))
    number = torch.arange(draw.size, device=draw.device)
    fields = torch.stack([enlarge(draw.normal(6, *cells), window) for cells in ((3, 3, 3), (6, 7, 6), (12, 14, 12))])
    organ = fields[draw.whole(0, len(fields)), number].argmax(1)
    body = draw.uniform(0.0, 1.0, 6).gather(1, organ.flatten(1)).view(organ.shape)
    inside = _ellipsoid(window, draw, (0.3, 0.9)) | per_sample(draw.chance(0.25))
    body = torch.where(inside, body, per_sample(draw.uniform(0.0, 0.1)))
    body = body + 0.1 * per_sample(draw.uniform(0.0, 1.0)) * grain
    # Below the brain: face, neck, and air.
    below = torch.roll(image[absent], window[2] // 2, 3)
    below = torch.where(torch.arange(window[2], device=draw.device) < window[2] // 2, 0.0, below)
    shown = torch.stack([noise, body, below])[draw.one_of((0.2, 0.5, 0.3)), number]
    piece = _ellipsoid(window, draw, (0.1, 0.6)) & (draw.field((6, 7, 6), window) > per_sample(draw.uniform(-2.0, 0.5)))
    image, brain = image.clone(), brain.clone()
    image[absent], brain[absent] = shown.clamp_min(0.0), piece
    return image, brain


def _ellipsoid(window: tuple[int, ...], draw: Draw, radius: tuple[float, float]) -> Tensor:
    """Whether a voxel lies in a random ellipsoid around the middle, ``(B, *window)``; radii by the window's edges."""
    square = torch.zeros((), device=draw.device)
    for count, axis in zip(window, axes(window, draw.device), strict=True):
        centre, half = draw.normal() * 0.05 * count + count / 2.0, draw.uniform(*radius) * count / 2.0
        square = square + ((axis - per_sample(centre)) / per_sample(half)) ** 2
    return square < 1.0


def _as_found(brain: Tensor, draw: Draw) -> Tensor:
    """Masks that are somewhat too wide, too narrow or ragged, as found ones are."""
    window = tuple(brain.shape[1:])
    smooth = enlarge(functional.avg_pool3d(brain[:, None].float(), 4, 4, ceil_mode=True), window)[:, 0]
    edge = per_sample(draw.uniform(0.25, 0.75)) + 0.15 * draw.field((7, 8, 7), window)
    return smooth > edge.clamp(0.05, 0.95)


def draw_view(draw: Draw, config: SynthesisConfig, image: Tensor) -> Tensor:
    """What is inside each scan, ``(B, X, Y, Z)``."""
    return field_of_view(draw, config, image.shape[3]).expand_as(image)


def _centred(image: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Moved so that what is in view of the brain is in the middle, as in use; beyond, the image's lowest value."""
    size = image.shape[1:]
    there, index = torch.ones_like(brain), torch.zeros_like(brain, dtype=torch.int64)
    count = brain.flatten(1).sum(1)
    for number, (axis, length) in enumerate(zip(axes(size, image.device), size, strict=True)):
        along = brain.sum([other for other in (1, 2, 3) if other != number + 1])
        mean = (along * axis.flatten().double()).sum(1) / count.clamp_min(1)
        shift = (mean - (length - 1) / 2).round().long() * (count > 0)
        place = axis.long() + per_sample(shift)
        there = there & (place >= 0) & (place < length)
        index = index * length + place.clamp(0, length - 1)
    index = index.flatten(1)
    moved, brain_there = (part.flatten(1).gather(1, index).view_as(part) for part in (image, brain))
    return torch.where(there, moved, per_sample(image.flatten(1).amin(1))), brain_there & there


def turned(image: Tensor, brain: Tensor, kind: Tensor, slices: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Some heads upside down, back to front, or lying: headers that name the wrong axis or direction."""
    pose = torch.where(draw.chance(_TURNED_SHARE), draw.whole(1, len(POSES)), 0)
    pose = torch.where(kind == KINDS.index("no brain"), NO_POSE, pose)
    pose = torch.where((slices < SLICES_WITH_A_TOP) & (pose != 0), NO_POSE, pose)
    way = draw.whole(0, 3)
    pairs = torch.stack([image, brain.float()], 1)
    # Asked about once for all of them: every question to the device waits for all that it has been told to do.
    ways = torch.stack([pose, way], 1).tolist()
    both = torch.stack([_turn(one, *how) for one, how in zip(pairs, ways, strict=True)])
    return both[:, 0], both[:, 1] > 0.5, pose


def _turn(volume: Tensor, pose: int, way: int) -> Tensor:
    """One ``(C, X, Y, Z)`` in another pose, centred in the same window."""
    if pose == 1:
        return volume.flip((1, 3) if way == 0 else 3)  # rolled over, or mirrored
    if pose == 2:
        return volume.flip((1, 2) if way == 0 else 2)
    if pose == 3:
        size = volume.shape[1:]
        order = ((0, 1, 3, 2), (0, 3, 2, 1), (0, 2, 1, 3))[way]
        other = volume.permute(order)
        return _fit(other if way == 2 else other.flip(3 - way), size)
    return volume


def _fit(volume: Tensor, size: torch.Size) -> Tensor:
    """The middle of ``(C, X, Y, Z)``, cut or filled up with its lowest value."""
    for axis, count in enumerate(size, start=1):
        extra = volume.shape[axis] - count
        if extra > 0:
            volume = volume.narrow(axis, extra // 2, count)
        elif extra < 0:
            before = -extra // 2
            shape = [*volume.shape[:axis], count, *volume.shape[axis + 1 :]]
            filled = volume[0].amin().expand(shape).clone()
            filled.narrow(axis, before, volume.shape[axis]).copy_(volume)
            volume = filled
    return volume


def _saturation(image: Tensor, draw: Draw) -> Tensor:
    """Where intensities are cut off, as when images were written with 8 bits."""
    brightest = image.flatten(1).amax(1)
    return torch.where(draw.chance(0.25), draw.uniform(0.6, 1.0), 1.0) * brightest
