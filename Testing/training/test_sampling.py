"""Which slices a network sees, and what augmentation may and may not do to them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from diffusion_anomaly.errors import InputError
from Testing.training.fakes import random_slices
from training.data.sampling import (
    HEIGHT_BINS,
    AugmentationConfig,
    RandErosion,
    RandTissueContrast,
    SliceSampler,
    plain,
    to_network_range,
)
from training.data.slices import DISEASED, HEALTHY, UNUSED, Slices

COUNTS = st.lists(st.integers(0, 5), min_size=HEIGHT_BINS, max_size=HEIGHT_BINS)
STILL = {"rotation": 0.0, "scale": 0.0, "translation": 0.0}
SAME_BRIGHTNESS = {"contrast": 0.0, "intensity": 0.0, "bias_field": 0.0, "noise": 0.0, "blur": 0.0}


def slices_at_heights(counts: dict[int, list[int]]) -> Slices:
    """So many slices of each label in each tenth of the height; a slice's brightness tells its tenth."""
    rows = [(label, b) for label, of_label in counts.items() for b, n in enumerate(of_label) for _ in range(n)]
    label, tenth = np.array(rows, dtype=int).reshape(-1, 2).T
    return Slices(
        images=np.repeat(np.uint8(10 + 20 * tenth), 16).reshape(-1, 4, 4),
        brain=np.ones((len(rows), 4, 4), bool),
        label=label.astype(np.int8),
        height=((tenth + 0.5) / HEIGHT_BINS).astype(np.float32),
        scan=np.array(["scan"] * len(rows)),
        index=np.arange(len(rows)),
        voxel_ml=np.ones(len(rows), np.float32),
    )


def tenths(images: torch.Tensor) -> list[int]:
    return ((127.5 * (images[:, 0, 0, 0] + 1.0) - 10.0) / 20.0).round().int().tolist()


def test_both_classes_are_drawn_at_the_same_heights_and_equally_often() -> None:
    # As in the LGG set: tumours at mid-height, healthy slices mostly low and high.
    diseased = [0, 2, 5, 12, 20, 24, 15, 8, 1, 0]
    healthy = [30, 25, 14, 6, 2, 1, 4, 10, 20, 30]
    sampler = SliceSampler(slices_at_heights({HEALTHY: healthy, DISEASED: diseased}), (HEALTHY, DISEASED), None)
    drawn = sampler.draw(np.random.default_rng(0), 5_000)
    place, label = np.array(tenths(drawn["image"])), drawn["label"].numpy()
    assert abs(label.mean() - 0.5) < 0.03
    histograms = [
        np.bincount(place[label == value], minlength=HEIGHT_BINS) / (label == value).sum() for value in (0, 1)
    ]
    wanted = np.sqrt(diseased) / np.sqrt(diseased).sum()
    for histogram in histograms:  # half the summed difference of 2,500 draws over ten bins is about 0.02
        assert 0.5 * np.abs(histogram - wanted).sum() < 0.06


@given(COUNTS, COUNTS, COUNTS)
@settings(max_examples=25, deadline=None)
def test_heights_without_one_of_the_classes_and_unused_slices_are_never_drawn(
    healthy: list[int], diseased: list[int], unused: list[int]
) -> None:
    slices = slices_at_heights({HEALTHY: healthy, DISEASED: diseased, UNUSED: unused})
    shared = {b for b in range(HEIGHT_BINS) if healthy[b] and diseased[b]}
    if not shared:
        with pytest.raises(InputError, match=f"found {sum(healthy)} of label 0, {sum(diseased)} of label 1"):
            SliceSampler(slices, (HEALTHY, DISEASED), None)
        return
    sampler = SliceSampler(slices, (HEALTHY, DISEASED), None)
    drawn = sampler.draw(np.random.default_rng(0), 40)
    assert set(tenths(drawn["image"])) <= shared
    assert set(drawn["label"].tolist()) <= {HEALTHY, DISEASED}


def test_every_healthy_slice_is_drawn_when_only_healthy_ones_are_asked_for() -> None:
    slices = slices_at_heights({HEALTHY: [1] * 8 + [4, 4], DISEASED: [9] * 10})
    drawn = SliceSampler(slices, (HEALTHY,), None).draw(np.random.default_rng(0), 1_500)
    counts = Counter(tenths(drawn["image"]))
    assert drawn["label"].eq(HEALTHY).all()
    # Four times as many slices at a height are drawn twice as often.
    assert counts[9] / counts[0] == pytest.approx(2.0, rel=0.2)


def test_a_draw_depends_on_its_generator_and_on_nothing_before(slices: Slices) -> None:
    sampler = SliceSampler(slices, (HEALTHY, DISEASED), AugmentationConfig())
    first = sampler.draw(np.random.default_rng(5), 4)
    other = sampler.draw(np.random.default_rng(6), 4)
    again = sampler.draw(np.random.default_rng(5), 4)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["image"], other["image"])


def test_augmented_slices_stay_in_range_and_are_minus_one_outside_the_brain() -> None:
    sampler = SliceSampler(random_slices(8, 32, 0), (HEALTHY, DISEASED), AugmentationConfig(noise=0.2, bias_field=0.5))
    image = sampler.draw(np.random.default_rng(1), 64)["image"]
    assert image.shape == (64, 1, 32, 32)
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor, "MONAI's own tensors would slow every step down"
    assert image.min() == -1.0
    assert image.max() <= 1.0
    # The disc's edge lies 13.4 pixels from the middle; scale and translation move it by 1.4 and 4 pixels.
    y, x = np.mgrid[:32, :32] - 15.5
    assert image[..., torch.from_numpy(np.hypot(x, y) > 20.0)].eq(-1.0).all()
    assert image[..., 12:20, 12:20].mean() > -0.5


def test_the_brain_follows_the_image() -> None:
    slices = random_slices(8, 48, 0)
    slices.images[slices.brain[:, None]] = 200
    sampler = SliceSampler(slices, (HEALTHY,), AugmentationConfig(rotation=0.5, scale=0.2, **SAME_BRIGHTNESS))
    inside = 2.0 * 200 / 255 - 1.0
    for image in sampler.draw(np.random.default_rng(0), 16)["image"][:, 0]:
        # Were the mask moved otherwise, zeros from beyond the head would fill a crescent of it.
        rim = (image > -1.0) & (image < inside - 0.01)
        assert (image > inside - 0.01).sum() > 800
        assert rim.sum() < 0.12 * (image > -1.0).sum()


def test_slices_are_mirrored_between_left_and_right_only() -> None:
    slices = random_slices(4, 32, 0)
    images, brain = slices.images[:, 0], slices.brain
    images[:, :16] = np.where(brain[:, :16], 250, 0)  # anterior
    images[:, 16:, :16] = np.where(brain[:, 16:, :16], 130, 0)
    images[:, 16:, 16:] = np.where(brain[:, 16:, 16:], 10, 0)
    image = SliceSampler(slices, (HEALTHY,), AugmentationConfig(**STILL, **SAME_BRIGHTNESS)).draw(
        np.random.default_rng(0), 40
    )["image"][:, 0]
    assert (image[:, 8:14].mean((1, 2)) > image[:, 18:24].mean((1, 2))).all()
    mirrored = image[:, 20, 12] < image[:, 20, 20]
    assert 8 < mirrored.sum() < 32


def test_the_brain_that_is_drawn_is_where_the_image_is_not_background(slices: Slices) -> None:
    drawn = SliceSampler(slices, (HEALTHY,), AugmentationConfig(erosion=2)).draw(np.random.default_rng(0), 24)
    assert drawn["brain"].dtype == torch.bool and drawn["brain"].shape == drawn["image"].shape
    assert drawn["image"][~drawn["brain"]].eq(-1.0).all()
    assert drawn["image"][drawn["brain"]].gt(-1.0).float().mean() > 0.99


@pytest.mark.parametrize("extra", [{"tissue_contrast": 0.3}, {"erosion": 2}, {"tissue_contrast": 0.3, "erosion": 2}])
def test_added_augmentations_depend_on_the_generator_alone(slices: Slices, extra: dict[str, float]) -> None:
    sampler = SliceSampler(slices, (HEALTHY,), AugmentationConfig(**STILL, **SAME_BRIGHTNESS, **extra))  # type: ignore[arg-type]
    first, other = (sampler.draw(np.random.default_rng(seed), 8) for seed in (1, 2))
    again = sampler.draw(np.random.default_rng(1), 8)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["image"], other["image"])


def test_tissue_contrast_stretches_about_the_brains_median() -> None:
    image, brain = torch.rand(1, 15, 15), torch.zeros(1, 15, 15)
    brain[:, 2:13, 2:13] = 1.0
    inside, factors = brain > 0.5, []
    for seed in range(200):
        changed = RandTissueContrast(0.3).set_random_state(seed)({"image": image, "brain": brain})["image"]
        assert float(changed[inside].median()) == pytest.approx(float(image[inside].median()), abs=1e-6)
        factors.append(float(changed[inside].std() / image[inside].std()))
    assert min(factors) >= np.exp(-0.3) - 1e-4 and max(factors) <= np.exp(0.3) + 1e-4
    assert abs(np.log(factors)).mean() == pytest.approx(0.15, abs=0.03), "evenly in the logarithm"
    empty = {"image": image, "brain": torch.zeros_like(brain)}
    assert torch.equal(RandTissueContrast(0.3).set_random_state(0)(empty)["image"], image)


def test_erosion_takes_so_many_pixels_off_every_third_brain() -> None:
    brain = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random((24, 20)), 2.0) > 0.5).float()[
        None
    ]
    eroded = {
        pixels: ndimage.binary_erosion(brain[0].numpy() > 0.5, np.ones((3, 3)), iterations=pixels, border_value=1)
        for pixels in (0, 1, 2)
    }
    eroded[0] = brain[0].numpy() > 0.5
    counts = Counter()
    for seed in range(300):
        data = {"image": brain, "brain": brain}
        found = RandErosion(2).set_random_state(seed)(data)["brain"][0].numpy() > 0.5
        (pixels,) = [n for n, expected in eroded.items() if np.array_equal(found, expected)]
        counts[pixels] += 1
    assert counts[1] + counts[2] == pytest.approx(100, abs=25)
    assert counts[1] == pytest.approx(counts[2], abs=25)


def test_contrasts_move_together_and_change_their_intensities_apart() -> None:
    slices = random_slices(8, 32, 0, contrasts=3)
    slices.images[:] = slices.images[:, :1]
    image = SliceSampler(slices, (HEALTHY,), AugmentationConfig(**SAME_BRIGHTNESS)).draw(np.random.default_rng(0), 16)
    assert image["image"].shape == (16, 3, 32, 32) and image["brain"].shape == (16, 1, 32, 32)
    np.testing.assert_allclose(image["image"][:, 0], image["image"][:, 2], atol=1e-6)
    image = SliceSampler(slices, (HEALTHY,), AugmentationConfig(**STILL, tissue_contrast=0.3)).draw(
        np.random.default_rng(0), 16
    )["image"]
    apart = (image[:, 0] - image[:, 1]).abs().mean((1, 2))
    assert (apart > 1e-3).sum() > 12


def test_no_augmentation_leaves_slices_as_they_are(slices: Slices) -> None:
    image = SliceSampler(slices, (DISEASED,), None).draw(np.random.default_rng(0), 1)["image"]
    known = torch.from_numpy(slices.images / 127.5 - 1.0).float()
    assert (known - image).abs().amax((1, 2, 3)).min() < 1e-6


def test_plain_slices_are_spread_evenly_over_one_label(slices: Slices) -> None:
    image = plain(slices, 5, DISEASED)
    places = np.flatnonzero(slices.label == DISEASED)
    expected = slices.images[places[[0, 2, 5, 8, 11]], 0] / 127.5 - 1.0
    np.testing.assert_allclose(image[:, 0].numpy(), np.where(slices.brain[:5], expected, -1.0), atol=1e-6)
    assert len(plain(slices, 500, DISEASED)) == len(places)


def test_plain_slices_of_a_label_that_is_not_there_are_an_error(slices: Slices) -> None:
    with pytest.raises(InputError, match="None of the 12 slices has label 1"):
        plain(slices.select(slices.label == HEALTHY), 4, DISEASED)


def test_network_range_is_clamped_inside_and_minus_one_outside() -> None:
    image = torch.tensor([[-0.5, 0.0, 0.25, 1.0, 3.0, 0.7]])
    brain = torch.tensor([[True, True, True, True, True, False]])
    assert to_network_range(image, brain).tolist() == [[-1.0, -1.0, -0.5, 1.0, 1.0, -1.0]]
