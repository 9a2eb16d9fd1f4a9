"""Noising and denoising against exact answers, with networks whose every trajectory is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

import packages
from diffusion_anomaly.errors import ModelError
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.models.loading import load_model
from diffusion_anomaly.models.networks import Codec, Model
from diffusion_anomaly.models.schedule import (
    CLEAN,
    noise_to_signal,
    posterior_variance,
    predict_x0,
    step_grid,
    stochastic_transition,
    to_epsilon,
    transition,
)
from diffusion_anomaly.registry import CLAMPS
from Testing.benchmarks import benchmark, trajectories
from Testing.benchmarks.trajectories import (
    GRADIENT,
    LAST,
    MEAN,
    NOISE,
    SCHEDULE,
    SPREAD,
    STARTS,
    WEIGHT,
    certain,
    clamped_answer,
    constant_noise,
    down,
    gaussian_noise,
    model_of,
    up,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "methods.md"
STEPS = (1, 10, 50, 500)
SIGMA = noise_to_signal(LAST, SCHEDULE)
ROOT_LAST = float(SCHEDULE.alpha_bar(LAST)) ** 0.5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Order 1 and 2 against the exact solution ---------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", STEPS)
def test_constant_noise_is_walked_exactly_both_ways(steps: int, order: int) -> None:
    model = model_of(constant_noise)
    far = ROOT_LAST * (STARTS + SIGMA * NOISE)
    torch.testing.assert_close(up(STARTS, model, steps, order), far, rtol=0, atol=1e-5)
    torch.testing.assert_close(down(far, model, steps, order), STARTS, rtol=0, atol=1e-5)


def multiplied(levels: list[int]) -> float:
    """What N steps of order 1 make of ``y - mean`` for Gaussian data: a product of one factor a step."""
    factor = 1.0
    for t, s in pairwise(levels):
        sigma, then = noise_to_signal(t, SCHEDULE), noise_to_signal(s, SCHEDULE)
        factor *= 1 + (then - sigma) * sigma / (SPREAD**2 + sigma**2)
    return factor


@pytest.mark.parametrize("steps", STEPS)
def test_gaussian_data_is_denoised_by_exactly_the_product_of_its_steps(steps: int) -> None:
    start = ROOT_LAST * (MEAN + STARTS)
    expected = MEAN + STARTS * multiplied(step_grid(LAST, steps)[::-1])
    torch.testing.assert_close(down(start, model_of(gaussian_noise), steps), expected, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def errors() -> dict[tuple[str, str, int], list[float]]:
    """The benchmark's table: errors at 10, 50 and 500 steps."""
    return {
        (row["network"], row["walk"], row["order"]): [row[str(steps)] for steps in trajectories.STEPS]
        for row in trajectories.rows()
    }


@pytest.mark.parametrize(
    ("network", "walk"),
    [
        ("Gaussian data", "noising"),
        ("Gaussian data", "denoising"),
        ("Gaussian data", "there and back"),
        ("constant noise, logistic guidance", "denoising"),
    ],
)
def test_errors_fall_with_the_steps_and_faster_with_the_second_order(
    errors: dict[tuple[str, str, int], list[float]], network: str, walk: str
) -> None:
    first, second = errors[network, walk, 1], errors[network, walk, 2]
    assert first[2] < 0.025
    for coarse, fine, times in ((first[0], first[1], 3.5), (first[1], first[2], 8)):
        assert coarse > times * fine, "of order 1: 5 and 10 times the steps, about 5 and 10 times as exact"
    for less, more in zip(second, first, strict=True):
        assert less < more / 1.9
    assert second[0] > 10 * second[1] and second[1] > 6 * second[2]


def test_the_table_in_the_documentation_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    trajectories.main([])
    for line in capsys.readouterr().out.splitlines():
        assert line in PAGE.read_text(encoding="utf-8")


def test_the_round_trip_is_measured_with_the_packages_own_options(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / name) for name in ("scan.nii.gz", "brain.nii.gz")]
    sitk.WriteImage(flair_like_volume.image, files[0])
    sitk.WriteImage(flair_like_brain, files[1])
    package = str(packages.guided(tmp_path / "toy", options={"steps": 2, "guidance_scale": 0.0}).path)
    words = ["roundtrip", "--model", package, "--scan", files[0], "--brain", files[1], "--steps", "3", "--slices", "2"]
    assert benchmark.main([*words, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed if line.startswith("| 3 |")]
    assert [row[1] for row in rows] == ["1", "2"]
    for _, _, alone, guided, share in rows:
        assert float(alone) > 0 and alone == guided and float(share) == 1, "without guidance both are one"
    assert rows[0][2] != rows[1][2]
    assert "2 slices of 1 scans" in printed[-1]
    assert benchmark.main([*words, "--brain", files[1]]) != 0, "two brains for one scan"


# --- Guidance and the clamp ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", STEPS)
def test_guidance_adds_the_exact_sum_of_its_steps(steps: int) -> None:
    """With constant noise and gradient, each step adds the weight times (sigma_t - sigma_s) sqrt(1 - alpha_bar_t)."""
    far = ROOT_LAST * (STARTS + SIGMA * NOISE)
    pull = sum(
        (noise_to_signal(t, SCHEDULE) - noise_to_signal(s, SCHEDULE)) * (1 - float(SCHEDULE.alpha_bar(t))) ** 0.5
        for t, s in pairwise(step_grid(LAST, steps)[::-1])
    )
    walked = down(far, model_of(constant_noise, GRADIENT), steps, weight=WEIGHT)
    torch.testing.assert_close(walked, STARTS + WEIGHT * GRADIENT * pull, rtol=0, atol=2e-5)


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("gradient", [-0.02, 0.02, -0.5])
def test_where_clamping_matters_each_order_ends_where_it_must(clamp: str, steps: int, gradient: float) -> None:
    expected = clamped_answer(clamp, gradient, step_grid(LAST, steps)[1])
    walked = down(STARTS, model_of(certain, gradient, pixels=True), steps, weight=WEIGHT, clamp=clamp)
    torch.testing.assert_close(walked, torch.full_like(STARTS, expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("steps", "different"), [(1, 2), (10, 3)])
def test_the_three_clamps_differ(steps: int, different: int) -> None:
    """In one step the pull is so long that clamping after it changes nothing; in ten, all three end elsewhere."""
    ends = {round(clamped_answer(clamp, -0.02, step_grid(LAST, steps)[1]), 3) for clamp in CLAMPS}
    assert len(ends) == different


@pytest.mark.parametrize("order", [1, 2])
def test_noising_is_clamped_unless_none_is_asked_for(order: int) -> None:
    """What is certain of 1.5 noises towards 1.5, or clamped towards 1: in the end x - root * value is all noise."""
    model = model_of(certain, pixels=True)
    ends = {clamp: up(STARTS, model, 50, order, clamp) for clamp in CLAMPS}
    assert torch.equal(ends["before"], ends["after"])
    assert (ends["none"] - ends["before"]).abs().min() > 0.05


@pytest.mark.parametrize("clamp", CLAMPS)
def test_latents_have_no_range_to_be_clamped_to(clamp: str) -> None:
    model = model_of(certain, -0.02)
    assert torch.equal(
        down(STARTS, model, 10, weight=WEIGHT, clamp=clamp), down(STARTS, model, 10, weight=WEIGHT, clamp="none")
    )


# --- One step, as another library takes it -------------------------------------------------------------------


def monai_scheduler(kind: str, prediction_type: str, clip: bool = False) -> Any:
    schedulers = pytest.importorskip("monai.networks.schedulers")
    return getattr(schedulers, kind)(
        1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02, prediction_type=prediction_type, clip_sample=clip
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [1, 250, 499, 998])
def test_one_step_down_and_up_is_that_of_monais_ddim(prediction_type: str, t: int) -> None:
    x, output = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    scheduler = monai_scheduler("DDIMScheduler", prediction_type)
    eps = to_epsilon(output, x, t, SCHEDULE, prediction_type)
    for s, step in ((t - 1, scheduler.step), (t + 1, scheduler.reversed_step)):
        theirs, clean = step(output, t, x)
        torch.testing.assert_close(transition(x, eps, t, s, SCHEDULE), theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predict_x0(x, eps, t, SCHEDULE), clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_stochastic_step_is_that_of_monais_ddim_with_the_same_noise(eta: float) -> None:
    x, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    theirs, _ = monai_scheduler("DDIMScheduler", "epsilon").step(eps, 300, x, eta, torch.Generator().manual_seed(5))
    ours = stochastic_transition(x, eps, 300, 299, SCHEDULE, normal(2, 3, 4, 4, seed=5), eta)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# --- Stochastic steps against the posterior ------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 2, 250, 500, 999])
def test_eta_of_one_draws_from_the_posterior_of_ddpm(t: int) -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0): Ho et al. 2020, eq. 6 and 7."""
    x, eps, noise = (normal(2, 1, 4, 4, seed=seed) for seed in range(3))
    beta, alpha_bar, before = float(SCHEDULE.betas[t]), float(SCHEDULE.alpha_bar(t)), float(SCHEDULE.alpha_bar(t - 1))
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    mean = (before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - alpha_bar)
    drawn = mean + posterior_variance(SCHEDULE)[t].sqrt() * noise
    torch.testing.assert_close(stochastic_transition(x, eps, t, t - 1, SCHEDULE, noise), drawn, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("s", [CLEAN, 0, 200])
def test_eta_of_zero_is_the_transition_without_randomness(s: int, clamp: tuple[float, float] | None) -> None:
    x, eps, noise = (normal(2, 1, 4, 4, seed=seed) for seed in range(3))
    ours = stochastic_transition(x, eps, 400, s, SCHEDULE, noise, 0.0, clamp)
    torch.testing.assert_close(ours, transition(x, eps, 400, s, SCHEDULE, clamp))


def test_many_stochastic_steps_carry_noise_to_the_gaussian_data() -> None:
    """The last level's marginal comes in; N(0.3, 0.25^2) must come out, whatever the share of randomness."""
    generator = torch.Generator().manual_seed(0)
    alpha_bar = float(SCHEDULE.alpha_bar(LAST))
    spread = (alpha_bar * SPREAD**2 + 1 - alpha_bar) ** 0.5
    x = alpha_bar**0.5 * MEAN + spread * torch.randn(20000, generator=generator, dtype=torch.float64)
    for t, s in pairwise(step_grid(LAST, 250)[::-1]):
        eps = gaussian_noise(x, SCHEDULE.alphas_cumprod[t])
        x = stochastic_transition(x, eps, t, s, SCHEDULE, torch.randn(len(x), generator=generator, dtype=x.dtype))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(SPREAD, rel=0.04)


# --- Networks that ask for more, or say more, than the noise -------------------------------------------------


class ByClass(torch.nn.Module):
    """A class-conditional network: constant noise of another size for each class."""

    num_class_embeds = 2

    def forward(self, x: Tensor, levels: Tensor, *, class_labels: Tensor) -> Tensor:
        return (0.25 + class_labels.view(-1, 1, 1, 1).float()).expand_as(x)


@pytest.mark.parametrize("walk", [up, down])
def test_a_class_conditional_network_is_told_healthy_both_ways(walk: Callable[..., Tensor]) -> None:
    model = Model(Codec(trajectories.Latent(), 1), ByClass(), SCHEDULE, classifier=trajectories.Logistic(0.0))
    plain = Model(
        Codec(trajectories.Latent(), 1),
        trajectories.Answer(lambda x, alpha_bar: torch.full_like(x, 0.25)),
        SCHEDULE,
        classifier=trajectories.Logistic(0.0),
    )
    torch.testing.assert_close(walk(STARTS, model, 10), walk(STARTS, plain, 10))


def test_a_class_conditional_package_runs_as_the_network_does_when_told_healthy(tmp_path: Path) -> None:
    network = {**packages.DIFFUSION, "num_class_embeds": 2}
    bundle = packages.write(
        tmp_path / "toy", "guided", {"diffusion": network, "classifier": packages.CLASSIFIER}, packages.GUIDED
    )
    bundle.check()
    model = load_model(bundle, "cpu", "float32")
    x, levels = torch.randn(2, packages.CHANNELS, 12, 10), torch.tensor([3, 700])
    by_class = [model.diffusion(x, levels, class_labels=torch.full((2,), label)) for label in (0, 1)]
    torch.testing.assert_close(model.eps(x, levels), by_class[0], rtol=1e-4, atol=1e-5)
    assert (by_class[0] - by_class[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("diffusion", {"out_channels": 2 * packages.CHANNELS}, r"out_channels 32; the latents have 16.*learned sigma"),
        ("diffusion", {"with_conditioning": True, "cross_attention_dim": 8}, r"diffusion\.json.*context"),
        ("diffusion", {"num_class_embeds": 0}, r"num_class_embeds 0"),
        ("classifier", {"num_class_embeds": 2}, r"classifier\.json.*num_class_embeds 2.*diffusion networks alone"),
    ],
)
def test_a_network_that_no_method_can_use_is_refused_with_the_reason(
    tmp_path: Path, part: str, changes: dict[str, object], said: str
) -> None:
    networks = {"diffusion": packages.DIFFUSION, "classifier": packages.CLASSIFIER}
    networks[part] = {**networks[part], **changes}
    with pytest.raises(ModelError, match=said):
        packages.write(tmp_path / "toy", "guided", networks, packages.GUIDED)
