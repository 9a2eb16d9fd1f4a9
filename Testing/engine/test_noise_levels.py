"""Noise levels that do not exist are refused, and the smallest image has noise like any other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.schedule import (
    CLEAN,
    Schedule,
    add_noise,
    kl_weight,
    network_level,
    predict_x0,
    pyramid_noise,
    to_epsilon,
    transition,
    velocity,
)

SCHEDULE = Schedule.linear(100)
X = torch.ones(2, 1, 3, 3)
BY_LEVEL: dict[str, Callable[[int | torch.Tensor], object]] = {
    "alpha_bar": SCHEDULE.alpha_bar,
    "add_noise": lambda t: add_noise(X, X, t, SCHEDULE),
    "velocity": lambda t: velocity(X, X, t, SCHEDULE),
    "to_epsilon": lambda t: to_epsilon(X, X, t, SCHEDULE, "v_prediction"),
    "predict_x0": lambda t: predict_x0(X, X, t, SCHEDULE),
    "kl_weight": lambda t: kl_weight(t, SCHEDULE),
}


@pytest.mark.parametrize("level", [-2, -3, -100, -101, 100, 101, 1000])
@pytest.mark.parametrize("function", BY_LEVEL.values(), ids=BY_LEVEL)
def test_a_level_that_does_not_exist_is_refused(function: Callable[[int | torch.Tensor], object], level: int) -> None:
    with pytest.raises(InputError, match=str(level)):
        function(level)
    for levels in ([level, 7], [7, level]):
        with pytest.raises(InputError, match=str(level)):
            function(torch.tensor(levels))


@pytest.mark.parametrize("level", [-2, -100, 100])
def test_no_transition_starts_or_ends_there(level: int) -> None:
    for t, s in ((level, 7), (7, level)):
        with pytest.raises(InputError, match=str(level)):
            transition(X, X, t, s, SCHEDULE)


def test_no_network_is_asked_below_clean() -> None:
    with pytest.raises(InputError, match="-2"):
        network_level(-2)
    assert [network_level(t) for t in (CLEAN, 0, 7)] == [0, 0, 7]


def test_every_level_from_clean_to_the_last_is_one() -> None:
    levels = torch.arange(CLEAN, SCHEDULE.levels)
    by_tensor = SCHEDULE.alpha_bar(levels)
    assert isinstance(by_tensor, torch.Tensor)
    assert by_tensor.flatten().tolist() == pytest.approx([SCHEDULE.alpha_bar(int(t)) for t in levels], rel=1e-6)
    assert by_tensor[0] == 1


@pytest.mark.parametrize("channels", [1, 4])
def test_a_single_pixel_has_white_noise_of_unit_variance(channels: int) -> None:
    shape = (4000, channels, 1, 1)
    noise = pyramid_noise(shape, torch.Generator().manual_seed(0), 0.8)
    assert noise.shape == shape
    assert bool(torch.isfinite(noise).all())
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.var()) == pytest.approx(1, abs=0.06)
