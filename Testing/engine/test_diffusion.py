"""The schedule's mathematics against closed forms: no network, no library scheduler."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.schedule import (
    CLEAN,
    Schedule,
    add_noise,
    kl_map,
    predict_x0,
    pyramid_noise,
    step_grid,
    to_epsilon,
    transition,
    velocity,
)

SCHEDULES = {"linear": Schedule.linear(), "scaled_linear": Schedule.scaled_linear()}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=list(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def test_schedules_have_the_published_ends() -> None:
    linear, scaled = SCHEDULES["linear"].betas, SCHEDULES["scaled_linear"].betas
    assert (float(linear[0]), float(linear[-1])) == pytest.approx((1e-4, 0.02))
    assert (float(scaled[0]), float(scaled[-1])) == pytest.approx((0.0015, 0.0195))
    assert float(scaled[500]) < float(scaled[0] + scaled[-1]) / 2, "equal steps are in the square root"


def test_alpha_bar_is_the_running_product_and_one_when_clean(schedule: Schedule) -> None:
    product = 1.0
    for beta in schedule.betas[:11].tolist():
        product *= 1.0 - beta
    assert schedule.alpha_bar(10) == pytest.approx(product, rel=1e-12)
    assert schedule.alpha_bar(CLEAN) == 1.0
    by_tensor = schedule.alpha_bar(torch.tensor([10, CLEAN]))
    assert torch.is_tensor(by_tensor)
    torch.testing.assert_close(by_tensor.flatten(), torch.tensor([product, 1.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("last", [0, 1, 9, 499, 500, 999])
def test_grid_rises_from_clean_to_the_last_level_in_exactly_the_steps_asked_for(last: int) -> None:
    for steps in {1, 2, 3, 7, 10, 50, 300, 333, 499, last, last + 1} & set(range(1, last + 2)):
        grid = step_grid(last, steps)
        assert grid[0] == CLEAN and grid[-1] == last
        assert len(grid) == steps + 1
        assert all(low < high for low, high in pairwise(grid))


@pytest.mark.parametrize("steps", [0, -3, 501])
def test_grid_refuses_no_steps_and_more_steps_than_levels(steps: int) -> None:
    with pytest.raises(InputError, match=str(steps)):
        step_grid(499, steps)


@pytest.mark.parametrize("last", [49, 499, 999])
def test_any_number_of_transitions_down_with_constant_noise_gives_the_exact_clean_image(
    schedule: Schedule, last: int
) -> None:
    x, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    alpha_bar = schedule.alphas_cumprod[last]
    exact = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    for steps in {1, 7, 10, 50, 300, last} & set(range(1, last + 2)):
        walked = x
        for t, s in pairwise(reversed(step_grid(last, steps))):
            walked = transition(walked, eps, t, s, schedule)
        torch.testing.assert_close(walked, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 10, 50, 500])
def test_encoding_and_decoding_with_the_same_constant_noise_returns_the_input(schedule: Schedule, steps: int) -> None:
    x = normal(2, 1, 8, 8, dtype=torch.float32)
    eps = normal(2, 1, 8, 8, seed=1, dtype=torch.float32)
    grid = step_grid(499, steps)
    walked = x
    for t, s in [*pairwise(grid), *pairwise(reversed(grid))]:
        walked = transition(walked, eps, t, s, schedule)
    torch.testing.assert_close(walked, x, rtol=0, atol=1e-5)


def test_many_steps_carry_gaussian_noise_to_the_gaussian_data_and_fewer_steps_err_more(
    schedule: Schedule,
) -> None:
    mean, std, last = 0.7, 0.3, 500
    quantiles = torch.linspace(-3, 3, 101, dtype=torch.float64)

    def spread(t: int) -> float:
        """Standard deviation of the marginal at level t of N(mean, std^2) data."""
        alpha_bar = float(schedule.alpha_bar(t))
        return (alpha_bar * std**2 + 1 - alpha_bar) ** 0.5

    errors = []
    for steps in (5, 20, 100, last + 1):
        x = float(schedule.alpha_bar(last)) ** 0.5 * mean + spread(last) * quantiles
        for t, s in pairwise(reversed(step_grid(last, steps))):
            alpha_bar = float(schedule.alpha_bar(t))
            ideal = (1 - alpha_bar) ** 0.5 * (x - alpha_bar**0.5 * mean) / spread(t) ** 2
            x = transition(x, ideal, t, s, schedule)
        errors.append(float((x - (mean + std * quantiles)).abs().max()))
    assert all(fewer > 2 * more for fewer, more in pairwise(errors)), errors
    assert errors[-1] < 0.02 * 3 * std, "within 2 % at three standard deviations, where the map errs most"


def test_clamping_keeps_the_step_consistent_with_the_clamped_image(schedule: Schedule) -> None:
    x, eps = 3 * normal(1, 1, 8, 8), normal(1, 1, 8, 8, seed=1)
    t, s = 400, 200
    clamped = predict_x0(x, eps, t, schedule).clamp(-1, 1)
    alpha_t, alpha_s = float(schedule.alpha_bar(t)), float(schedule.alpha_bar(s))
    implied = (x - alpha_t**0.5 * clamped) / (1 - alpha_t) ** 0.5
    expected = alpha_s**0.5 * clamped + (1 - alpha_s) ** 0.5 * implied
    torch.testing.assert_close(transition(x, eps, t, s, schedule, (-1.0, 1.0)), expected)
    assert transition(x, eps, t, CLEAN, schedule, (-1.0, 1.0)).abs().max() <= 1


def test_v_prediction_becomes_the_noise_that_made_it(schedule: Schedule) -> None:
    x0, noise = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    for t in (0, 500, 999):
        v = velocity(x0, noise, t, schedule)
        x_t = add_noise(x0, noise, t, schedule)
        torch.testing.assert_close(to_epsilon(v, x_t, t, schedule, "v_prediction"), noise)


def test_levels_given_as_a_tensor_do_what_the_same_ints_do(schedule: Schedule) -> None:
    x0, noise = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    levels = [1, 450, 999]
    together = add_noise(x0, noise, torch.tensor(levels), schedule)
    alone = torch.cat([add_noise(x0[i : i + 1], noise[i : i + 1], t, schedule) for i, t in enumerate(levels)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [1, 2, 250, 400, 599, 999])
def test_kl_map_is_the_divergence_of_the_two_gaussians(schedule: Schedule, t: int) -> None:
    x0, eps, eps_hat = (normal(2, 3, 5, 5, seed=seed) for seed in (t, t + 1, t + 2))
    beta, alpha_bar = float(schedule.betas[t]), float(schedule.alpha_bar(t))
    before = float(schedule.alpha_bar(t - 1))
    x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
    # Ho et al. 2020, eq. 7 and 11: the posterior's mean from x0 and x_t, the model's mean from its noise.
    posterior_mean = (before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * x_t) / (1 - alpha_bar)
    model_mean = (x_t - beta / (1 - alpha_bar) ** 0.5 * eps_hat) / (1 - beta) ** 0.5
    std = (beta * (1 - before) / (1 - alpha_bar)) ** 0.5
    expected = kl_divergence(Normal(posterior_mean, std), Normal(model_mean, std))
    torch.testing.assert_close(kl_map(eps, eps_hat, t, schedule), expected, rtol=1e-6, atol=1e-9)
    by_tensor = kl_map(eps, eps_hat, torch.tensor([t, t]), schedule)
    torch.testing.assert_close(by_tensor, expected, rtol=1e-5, atol=1e-9)


def test_kl_is_refused_at_the_level_whose_posterior_is_a_point(schedule: Schedule) -> None:
    with pytest.raises(InputError, match="at least 1"):
        kl_map(torch.zeros(1), torch.zeros(1), 0, schedule)


@pytest.mark.parametrize("shape", [(3, 4, 32, 32), (2, 1, 7, 12), (1, 16, 3, 1)])
@pytest.mark.parametrize("discount", [0.3, 0.8, 1.0])
def test_pyramid_noise_has_unit_deviation_in_each_sample(shape: tuple[int, ...], discount: float) -> None:
    noise = pyramid_noise(shape, torch.Generator().manual_seed(0), discount)
    assert noise.shape == shape
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(shape[0]), rtol=0, atol=1e-5)


def test_noise_without_a_pyramid_is_white() -> None:
    white = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(pyramid_noise((2, 3, 8, 8), torch.Generator().manual_seed(4), 0.0), white)


def test_the_pyramid_hides_what_is_large() -> None:
    """White noise averages out over a block of 16 x 16: its mean has a sixteenth of the deviation."""
    spreads = [
        float(
            torch.nn.functional.avg_pool2d(
                pyramid_noise((200, 1, 32, 32), torch.Generator().manual_seed(0), d), 16
            ).std()
        )
        for d in (0.0, 0.5, 0.9)
    ]
    assert spreads[0] == pytest.approx(1 / 16, rel=0.1)
    assert spreads[1] > 1.4 * spreads[0] and spreads[2] > 1.4 * spreads[1]
