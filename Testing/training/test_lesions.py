"""Synthetic lesions: where they lie, what they change, and that cover says exactly that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from training.data.drawing import Draw
from training.data.lesions import (
    LesionConfig,
    border_depth,
    draw_lesions,
    holding_tissues,
    plant,
    wandering_noise,
)
from training.data.slabs import SlabGrid, Slabs

GRID = SlabGrid(size=64, spacing=1.0)
# One lesion of one even intensity a head: what is left is what a test asks about.
PLAIN: dict[str, Any] = {
    "none_share": 0.0,
    "many_share": 0.0,
    "few": (1, 1),
    "few_diameter": (16.0, 20.0),
    "shift": (0.2, 0.3),
    "dark": 0.0,
    "grain": 0.0,
    "core_share": 0.0,
    "flat_share": 0.0,
    "rim_share": 0.0,
    "white_share": 0.0,
    "solid_share": 0.0,
}


def head(count: int = 8, value: float = 0.42, gap: float = 2.0) -> Slabs:
    """Discs of white matter with a ventricle in the middle and its rim around it."""
    y, x = np.mgrid[:64, :64] - 31.5
    radius = torch.from_numpy(np.hypot(x, y)).float().expand(count, 3, 64, 64)
    brain = radius < 28
    fluid, rim = (radius < 4).float(), ((radius >= 4) & (radius < 7)).float()
    image = torch.full(radius.shape, value)
    return Slabs(image, brain, torch.ones_like(brain), (1 - fluid) * brain, fluid, rim, torch.full((count,), gap))


def planted(slabs: Slabs, seed: int = 0, strength: float = 1.0, **changes: Any) -> tuple[Tensor, Tensor]:
    config = LesionConfig.model_validate(PLAIN | changes)
    draw = Draw(torch.Generator().manual_seed(seed), len(slabs.image))
    reach = torch.full((len(slabs.image),), strength)
    return plant(slabs, slabs.image, slabs.brain, reach, GRID, config, draw)


DEFAULT = {name: field.default for name, field in LesionConfig.model_fields.items()}


@pytest.mark.parametrize("entries", [PLAIN, DEFAULT | {"few_diameter": (4.0, 40.0)}])
def test_nothing_changes_but_where_cover_says_so_and_inside_the_brain(entries: dict[str, Any]) -> None:
    slabs = head(24)
    image, cover = planted(slabs, 3, **entries)
    assert image.shape == cover.shape == slabs.image.shape
    assert image.isfinite().all() and cover.min() >= 0.0 and cover.max() <= 1.0
    assert (image[cover == 0.0] == slabs.image[cover == 0.0]).all()
    assert (cover[~slabs.brain] == 0.0).all()
    assert ((image - slabs.image).abs()[cover > 0.9] > 0.01).float().mean() > 0.8


def test_a_plain_lesion_adds_its_shift_as_far_as_a_pixel_belongs_to_it() -> None:
    slabs = head(32)
    image, cover = planted(slabs)
    change = (image - slabs.image).flatten(1)
    for one, share in zip(change, cover.flatten(1), strict=True):
        whole = one[share > 0.999]
        assert whole.numel() > 20
        assert whole.min() >= 0.2 and whole.max() <= 0.3 + 1e-5
        torch.testing.assert_close(one, share * whole.mean(), rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_lesions_and_another_seed_others() -> None:
    slabs = head()
    first, again, other = (planted(slabs, seed, **DEFAULT) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert float(wandering_noise(torch.device("cpu")).std()) == pytest.approx(1.0, abs=1e-3)


def test_without_lesions_or_without_brain_nothing_happens_and_nothing_is_no_number() -> None:
    slabs = head()
    image, cover = planted(slabs, none_share=1.0)
    assert torch.equal(image, slabs.image) and not cover.any()
    empty = replace(slabs, brain=torch.zeros_like(slabs.brain))
    image, cover = planted(empty, **DEFAULT)
    assert torch.equal(image, slabs.image) and not cover.any()
    half = slabs.brain.clone()
    half[::2] = False
    image, cover = planted(replace(slabs, brain=half), **PLAIN)
    assert image.isfinite().all()
    assert cover.flatten(1).any(1).tolist() == [False, True] * 4


def test_rounding_in_the_shares_of_tissue_makes_no_root_of_a_negative_number() -> None:
    slabs = head()
    slabs = replace(slabs, white=slabs.white - 1e-8, fluid=slabs.fluid + 1e-7, rim=slabs.rim - 1e-8)
    assert holding_tissues(slabs).isfinite().all()
    image, cover = planted(slabs, **DEFAULT)
    assert image.isfinite().all() and cover.isfinite().all()


@pytest.mark.parametrize(
    ("share", "allowed"), [("rim_share", "rim"), ("white_share", "white"), ("solid_share", "solid"), (None, "all")]
)
def test_lesions_keep_to_what_holds_them(share: str | None, allowed: str) -> None:
    slabs = head(48)
    _, cover = planted(slabs, **({share: 1.0} if share else {}))
    inside = slabs.fluid > 0.5
    found = cover.flatten(0, 1).amax(0)
    in_fluid = float(cover[inside].max())
    assert (in_fluid > 0.9) == (allowed == "all")
    if allowed == "rim":
        y, x = np.mgrid[:64, :64] - 31.5
        far = torch.from_numpy(np.hypot(x, y)) > 12
        assert found[far].max() == 0.0, "bands lie along the ventricles"


def test_a_lesion_smaller_than_a_slab_is_thick_is_seen_in_part() -> None:
    flat = {"few_diameter": (6.0, 6.0), "edge": (0.35, 0.36)}
    thin = planted(head(32, gap=3.0), **flat)[1].flatten(1).amax(1)
    thick = planted(head(32, gap=24.0), **flat)[1].flatten(1).amax(1)
    assert thin.max() == 1.0
    assert thick.max() == pytest.approx(np.sqrt(6.0 / 24.0), abs=1e-5)


def test_lesions_are_as_large_as_asked_and_few_or_many() -> None:
    slabs = head(400)
    config = LesionConfig.model_validate(DEFAULT)
    draw = Draw(torch.Generator().manual_seed(0), 400)
    lesions = draw_lesions(slabs, slabs.brain, torch.ones(400), GRID, config, draw)
    number = torch.bincount(lesions.head, minlength=400)
    assert float((number == 0).float().mean()) == pytest.approx(0.12, abs=0.04)
    assert number.max() == 10
    diameter = 2.0 * lesions.half
    assert diameter.min() >= 2.2 and diameter.max() <= 85.0
    small = diameter < 5.0
    assert lesions.shift[small].abs().min() >= 0.09
    assert float((lesions.shift < 0).float().mean()) == pytest.approx(0.22, abs=0.03)
    assert float((lesions.slab == 1).float().mean()) == pytest.approx(1.0 / 1.5, abs=0.05)


def test_strength_says_how_far_up_the_range_shifts_go() -> None:
    weak = planted(head(64), strength=0.0)[0].sub(0.42).amax()
    strong = planted(head(64), strength=1.0, shift=(0.05, 0.45))[0].sub(0.42).amax()
    assert float(weak) == pytest.approx(0.2, abs=1e-4)
    assert float(strong) > 0.35


def test_a_flat_lesion_hides_the_tissues_own_pattern() -> None:
    slabs = head(16)
    pattern = 0.1 * torch.randn(slabs.image.shape, generator=torch.Generator().manual_seed(0))
    slabs = replace(slabs, image=slabs.image + pattern)
    for share, least, most in ((0.0, 0.99, 1.01), (1.0, 0.0, 0.75)):
        image, cover = planted(slabs, flat_share=share)
        kept = []
        for one, before, inside in zip(image, slabs.image, cover > 0.999, strict=True):
            kept.append(float(one[inside].std() / before[inside].std()))
        assert least <= np.min(kept) and np.max(kept) <= most


@pytest.mark.parametrize("entries", [{"shift": [0.5, 0.1]}, {"edge": [-1.0, 1.0]}, {"few_diameter": [0.0, 4.0]}])
def test_a_wrong_range_is_refused_by_name(entries: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected a range that starts above 0"):
        LesionConfig.model_validate(entries)


# Along the region's border, and in fluid


def test_depth_counts_pixels_from_the_border_alike_in_every_direction() -> None:
    brain = head(1).brain
    depth = border_depth(brain, 8)
    assert (depth[~brain] == 0).all() and depth[brain].min() == 1 and depth.max() == 9
    y, x = np.mgrid[:64, :64] - 31.5
    truth = torch.from_numpy(28 - np.hypot(x, y)).float().clamp(0, 9)
    assert (depth[0, 1] - truth)[brain[0, 1]].abs().max() < 2.0


def test_lesions_along_the_border_touch_it_and_are_no_thicker_than_asked() -> None:
    slabs = head(24)
    image, cover = planted(slabs, 1, border_share=1.0, border_diameter=(30.0, 40.0), border_thickness=(4.0, 6.0))
    lesion = cover > 0.5
    depth = border_depth(slabs.brain, 12)
    assert lesion.flatten(1).any(1).float().mean() > 0.8
    assert depth[lesion].max() <= 7.5 and (depth[lesion] == 1).float().mean() > 0.1
    assert ((image - slabs.image)[cover > 0.9] > 0.15).all()
    columns = lesion[:, 1].any(1).sum(1)
    assert columns.max() > 15, "and long"


def test_without_any_along_the_border_lesions_are_as_they_were() -> None:
    slabs = head(8)
    plain, other = (planted(slabs, 5, border_thickness=thickness) for thickness in ((2.0, 3.0), (9.0, 22.0)))
    assert torch.equal(plain[0], other[0])


def test_some_lesions_fill_fluid_alone() -> None:
    slabs = head(24)
    _, cover = planted(slabs, 0, fluid_share=1.0, few_diameter=(40.0, 50.0))
    assert cover.max() > 0.9
    assert (cover[slabs.fluid < 0.5] == 0.0).all()
