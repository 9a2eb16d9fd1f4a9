"""The methods with analytic networks: what they must compute is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from diffusion_anomaly.errors import Cancelled, InputError, ModelError
from diffusion_anomaly.methods.base import ProgressCallback, SliceBatch, SliceResult, to_model_range
from diffusion_anomaly.methods.guided import decode_guided, encode_up
from diffusion_anomaly.methods.latent_threshold import fit_latent_threshold, resolve_threshold
from diffusion_anomaly.methods.unsupervised import Unsupervised, gaussian_smooth, inpaint
from diffusion_anomaly.models.networks import Codec, Model
from diffusion_anomaly.models.schedule import Schedule, step_grid
from diffusion_anomaly.registry import (
    METHODS,
    GuidedOptions,
    IntensityOptions,
    LocaliseOptions,
    MethodEntry,
    RestoreOptions,
    UnsupervisedOptions,
    get_method,
)

SIZE = 32
SCHEDULE = Schedule.scaled_linear()
HEALTHY_INTENSITY = 0.4
BLOB = (slice(8, 16), slice(18, 26))


# --- networks whose answer is known -------------------------------------------------------------------------


class Identity(nn.Module):
    """An autoencoder that changes nothing: latents without a range, unlike pixel space, which is clamped."""

    def encode(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def decode(self, z: Tensor) -> Tensor:
        return z


class GaussianNoise(nn.Module):
    """The ideal noise prediction when every clean pixel is N(mean, std^2)."""

    def __init__(self, mean: Tensor | float, std: float) -> None:
        super().__init__()
        self.mean, self.std = torch.as_tensor(mean), std

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        alpha_bar = SCHEDULE.alphas_cumprod[levels].float().view(-1, 1, 1, 1)
        variance = alpha_bar * self.std**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * self.mean) / variance


class GaussianNoiseChannels(GaussianNoise):
    """The same for latents of several channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(torch.zeros(1, channels, 1, 1), 0.5)


class TwoClasses(nn.Module):
    """Bayes' classifier for slices that are healthy N(a, std^2) or diseased N(b, std^2), equally often."""

    def __init__(self, healthy: Tensor | float, diseased: Tensor | float, std: float) -> None:
        super().__init__()
        self.means, self.std = [torch.as_tensor(healthy), torch.as_tensor(diseased)], std

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        alpha_bar = SCHEDULE.alphas_cumprod[levels].float().view(-1, 1, 1, 1)
        variance = alpha_bar * self.std**2 + 1 - alpha_bar
        squared = torch.stack([(x - alpha_bar.sqrt() * mean) ** 2 for mean in self.means], dim=1)
        return -(squared / (2 * variance[:, None])).sum(dim=(2, 3, 4))


class MixtureNoise(nn.Module):
    """The ideal noise prediction for that mixture of healthy and diseased slices."""

    def __init__(self, classes: TwoClasses) -> None:
        super().__init__()
        self.classes = classes
        self.parts = [GaussianNoise(mean, classes.std) for mean in classes.means]

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        weights = self.classes(x, levels).softmax(dim=1)[..., None, None, None]
        return (weights * torch.stack([part(x, levels) for part in self.parts], dim=1)).sum(dim=1)


class SmallNetwork(nn.Module):
    """Untrained convolutions with real kernels, whose rounding may depend on the batch.

    Args:
        outputs: classes; None for an image.
        channels: of that image.
    """

    def __init__(self, outputs: int | None = None, channels: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1),
                nn.GroupNorm(4, 16),
                nn.SiLU(),
                nn.Conv2d(16, outputs or channels, 3, padding=1),
            )
        self.outputs = outputs

    def forward(self, x: Tensor, levels: Tensor | None = None) -> Tensor:
        out = self.layers(x if levels is None else x + levels.view(-1, 1, 1, 1) / 1000)
        return out if self.outputs is None else out.mean(dim=(2, 3))


def make_model(diffusion: nn.Module, classifier: nn.Module | None = None, *, pixel: bool = False) -> Model:
    return Model(Codec(None if pixel else Identity(), 1), diffusion, SCHEDULE, classifier=classifier)


def small_model(noise_pyramid: float = 0.0) -> Model:
    """Untrained networks for every method."""
    networks = {
        "classifier": SmallNetwork(outputs=2),
        "restorer": SmallNetwork(channels=2),
        "localiser": SmallNetwork(),
    }
    return Model(Codec(Identity(), 1), SmallNetwork(), SCHEDULE, noise_pyramid=noise_pyramid, **networks)


# --- slices -------------------------------------------------------------------------------------------------


def disc() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return ((rows - 15.5) ** 2 + (columns - 15.5) ** 2 < 14**2)[None, None]


def make_batch(images: Tensor, brain: Tensor | None = None, *, seed: int = 0, first: int = 0) -> SliceBatch:
    brain = (disc() if brain is None else brain).expand(images.shape)
    generators = [torch.Generator().manual_seed(1000 * seed + first + i) for i in range(len(images))]
    return SliceBatch(images * brain, brain, generators)


def healthy_slices(count: int, std: float = 0.03, seed: int = 5) -> Tensor:
    noise = torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return HEALTHY_INTENSITY + std * noise


def random_slices(count: int) -> Tensor:
    return torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def with_blob(images: Tensor, contrast: float = 0.4) -> Tensor:
    images = images.clone()
    images[:, :, BLOB[0], BLOB[1]] += contrast
    return images


def healthy_mean() -> Tensor:
    """The healthy slice in the codec's range."""
    return to_model_range(HEALTHY_INTENSITY * disc().float())


def ignore(_: int) -> None:
    """A progress callback that lets the method go on."""


@dataclass
class Count:
    """A progress callback that adds up, and stops the method at the ``stop_at``-th report."""

    stop_at: int = 0
    calls: int = 0
    reports: int = 0

    def __call__(self, calls: int) -> None:
        self.calls += calls
        self.reports += 1
        if self.reports == self.stop_at:
            raise Cancelled("Stopped.")


QUICK = {
    "unsupervised": UnsupervisedOptions(steps=6, kl_levels=5, latent_threshold=0.004),
    "guided": GuidedOptions(steps=6, guidance_scale=30),
    "restore": RestoreOptions(steps=3, levels=10),
    "localise": LocaliseOptions(),
    "intensity": IntensityOptions(side="both", reference=0.4),
}


def run(name: str, batch: SliceBatch, model: Model | None = None, progress: ProgressCallback = ignore) -> SliceResult:
    model = model or small_model()
    return METHODS[name].run(batch, model, QUICK[name], progress)


# --- what holds for every method ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_result_does_not_depend_on_batch_size_or_companions(name: str) -> None:
    images = with_blob(random_slices(16))
    whole = run(name, make_batch(images))
    assert whole.anomaly_map.max() > 0.01
    for size in (1, 3):
        parts = [run(name, make_batch(images[i : i + size], first=i)) for i in range(0, 16, size)]
        torch.testing.assert_close(torch.cat([p.anomaly_map for p in parts]), whole.anomaly_map, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.cat([p.score for p in parts]), whole.score, rtol=1e-5, atol=1e-5)


def test_pyramid_noise_of_a_slice_does_not_depend_on_its_companions() -> None:
    images = with_blob(random_slices(3))
    whole = run("unsupervised", make_batch(images), small_model(noise_pyramid=0.8)).anomaly_map
    alone = run("unsupervised", make_batch(images[2:], first=2), small_model(noise_pyramid=0.8)).anomaly_map
    torch.testing.assert_close(alone[0], whole[2], rtol=0, atol=1e-5)
    assert not torch.allclose(whole, run("unsupervised", make_batch(images), small_model()).anomaly_map, atol=1e-3)


def test_another_seed_gives_another_unsupervised_scores_and_the_same_seed_the_same() -> None:
    images = random_slices(2)
    first, again, other = (run("unsupervised", make_batch(images, seed=seed)).anomaly_map for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["guided", "restore", "localise"])
def test_a_method_without_noise_draws_nothing(name: str) -> None:
    images = random_slices(2)
    first, other = (run(name, make_batch(images, seed=seed)).anomaly_map for seed in (0, 1))
    assert torch.equal(first, other)


@pytest.mark.parametrize("name", METHODS)
def test_scores_is_zero_outside_the_brain_and_never_negative(name: str) -> None:
    brain = disc().expand(3, -1, -1, -1).clone()
    brain[2] = False
    result = run(name, make_batch(random_slices(3), brain))
    assert result.anomaly_map.shape == (3, SIZE, SIZE) and result.anomaly_map.dtype == torch.float32
    assert (result.anomaly_map[~brain[:, 0]] == 0).all()
    assert (result.anomaly_map >= 0).all() and result.anomaly_map[0].max() > 0
    assert torch.isfinite(result.score).all()


@pytest.mark.parametrize("name", METHODS)
def test_reported_progress_is_the_estimate_and_the_networks_true_use(name: str) -> None:
    model, count = small_model(), Count()
    run(name, make_batch(random_slices(3)), model, count)
    assert count.calls == METHODS[name].network_calls(QUICK[name])
    assert model.calls == 3 * count.calls


@pytest.mark.parametrize(
    ("name", "stop_at"), [("unsupervised", 1), ("unsupervised", 8), ("guided", 2), ("guided", 9), ("restore", 2)]
)
def test_cancelling_stops_at_the_next_network_step(name: str, stop_at: int) -> None:
    model, count = small_model(), Count(stop_at)
    with pytest.raises(Cancelled):
        run(name, make_batch(random_slices(2)), model, count)
    assert count.reports == stop_at
    assert model.calls == 2 * count.calls < 2 * METHODS[name].network_calls(QUICK[name])


@pytest.mark.parametrize("name", ["unsupervised", "guided", "restore", "localise"])
def test_a_method_without_its_networks_is_a_model_error(name: str) -> None:
    batch = make_batch(random_slices(1))
    with pytest.raises(ModelError, match=name):
        METHODS[name].run(batch, None, QUICK[name], ignore)
    without = Model(Codec(None, 1), None, SCHEDULE)
    with pytest.raises(ModelError, match=r"no (diffusion network|classifier|restorer|localiser)"):
        METHODS[name].run(batch, without, QUICK[name], ignore)


def test_levels_beyond_the_models_schedule_are_refused() -> None:
    model = Model(Codec(None, 1), SmallNetwork(), Schedule.linear(400), classifier=SmallNetwork(outputs=2))
    batch = make_batch(random_slices(1))
    for name in ("unsupervised", "guided"):
        with pytest.raises(InputError, match="the model has 400 levels"):
            METHODS[name].run(batch, model, QUICK[name], ignore)


def test_slices_and_brain_must_match() -> None:
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(InputError, match=r"\(2, 1, 8, 8\).*\(1, 1, 8, 8\)"):
        SliceBatch(images, torch.zeros(1, 1, 8, 8, dtype=torch.bool), [torch.Generator()] * 2)
    with pytest.raises(InputError, match="2 slices came with 1"):
        SliceBatch(images, images > 0, [torch.Generator()])


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (1, 3, 8, 8), (2, 3, 8, 7), (2, 3, 7, 8)])
def test_slabs_must_match_their_slices(shape: tuple[int, ...]) -> None:
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(InputError, match=r"slabs \(.*\).*odd number"):
        SliceBatch(images, images > 0, [torch.Generator()] * 2, torch.zeros(shape))


def test_what_a_network_is_shown_is_the_slab_where_there_is_one() -> None:
    images, slabs = torch.zeros(2, 1, 8, 8), torch.ones(2, 5, 8, 8)
    batch = SliceBatch(images, images > 0, [torch.Generator()] * 2)
    assert torch.equal(batch.seen, images)
    assert torch.equal(replace(batch, slabs=slabs).seen, slabs)


# --- unsupervised -------------------------------------------------------------------------------------------


def calibrated_unsupervised(model: Model) -> UnsupervisedOptions:
    """Options with the threshold learnt from healthy slices, as training does it."""
    options = UnsupervisedOptions()
    found = Unsupervised().improbability(make_batch(healthy_slices(12)), model, options, ignore)
    threshold = fit_latent_threshold(found.kl[found.inside].numpy())
    return get_method("unsupervised").make_options({"latent_threshold": threshold}, {"mask_sigma": 0.5})


def test_unsupervised_heals_an_inserted_blob_and_is_hottest_inside_it() -> None:
    model = make_model(GaussianNoise(healthy_mean(), 0.06))
    options = calibrated_unsupervised(model)
    batch = make_batch(with_blob(healthy_slices(3, seed=9)))
    anomaly_map = METHODS["unsupervised"].run(batch, model, options, ignore).anomaly_map
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[BLOB] = True
    for slice_map in anomaly_map:
        row, column = divmod(int(slice_map.argmax()), SIZE)
        assert inside[row, column]
    core = anomaly_map[:, 10:14, 20:24]
    assert core.mean() == pytest.approx(0.4, abs=0.05), "inside the mask the anomaly score is the blob's own contrast"
    assert anomaly_map[:, ~inside].mean() < 0.05 * core.mean()


def test_bright_and_dark_scores_are_the_two_parts_of_both() -> None:
    model = make_model(GaussianNoise(healthy_mean(), 0.06))
    batch = healthy_slices(1)
    batch[:, :, 10:14, 10:14] += 0.3
    batch[:, :, 20:24, 20:24] -= 0.3
    anomaly_map = {}
    for side in ("both", "bright", "dark"):
        options = UnsupervisedOptions(latent_threshold=5e-5, mask_sigma=0.5, side=side)
        anomaly_map[side] = METHODS["unsupervised"].run(make_batch(batch), model, options, ignore).anomaly_map
    torch.testing.assert_close(anomaly_map["bright"] + anomaly_map["dark"], anomaly_map["both"])
    assert anomaly_map["bright"][0, 12, 12] > 0.2 and anomaly_map["dark"][0, 12, 12] == 0
    assert anomaly_map["dark"][0, 22, 22] > 0.2 and anomaly_map["bright"][0, 22, 22] == 0


@pytest.mark.parametrize("antithetic", [True, False])
def test_kl_map_and_score_are_exact_for_a_model_that_knows_one_image_only(antithetic: bool) -> None:
    """With z0 at a distance d the predicted noise is off by sqrt(ab / (1 - ab)) d, whatever was drawn."""
    model = make_model(GaussianNoise(healthy_mean(), 0.0))
    options = UnsupervisedOptions(kl_levels=7, noise_draws=2, antithetic=antithetic, latent_threshold=1.0)
    batch = make_batch(with_blob(torch.full((2, 1, SIZE, SIZE), HEALTHY_INTENSITY), 0.2))
    found = Unsupervised().improbability(batch, model, options, ignore)
    levels = np.array(options.kl_grid)
    beta, alpha_bar = SCHEDULE.betas.numpy()[levels], SCHEDULE.alphas_cumprod.numpy()[levels]
    before = SCHEDULE.alphas_cumprod.numpy()[levels - 1]
    variance = beta * (1 - before) / (1 - alpha_bar)
    weight = beta**2 / (2 * variance * (1 - beta) * (1 - alpha_bar))
    distance = (to_model_range(batch.images) - healthy_mean())[:, 0]
    expected = float((weight * alpha_bar / (1 - alpha_bar)).mean()) * distance**2
    torch.testing.assert_close(found.kl, expected, rtol=1e-3, atol=1e-6)
    brain = disc()[0, 0]
    torch.testing.assert_close(found.score, expected[:, brain].mean(dim=1), rtol=1e-3, atol=1e-6)


def test_antithetic_pairs_cut_the_kl_maps_variance() -> None:
    model = make_model(GaussianNoise(healthy_mean(), 0.06))
    images = with_blob(healthy_slices(1))

    def spread(**how: object) -> float:
        options = UnsupervisedOptions(kl_levels=2, latent_threshold=1.0, **how)  # type: ignore[arg-type]
        method = Unsupervised()
        maps = [method.improbability(make_batch(images, seed=s), model, options, ignore).kl for s in range(24)]
        return float(torch.stack(maps).var(dim=0)[0][BLOB].mean())

    assert spread(antithetic=True) < 0.5 * spread(antithetic=False, noise_draws=2), "at the same number of calls"


def test_kl_levels_are_spread_over_the_range_and_all_of_them_can_be_taken() -> None:
    assert UnsupervisedOptions(kl_levels=200).kl_grid == list(range(400, 600))
    assert UnsupervisedOptions(kl_levels=4).kl_grid == [425, 475, 525, 575]
    assert UnsupervisedOptions(kl_levels=1).kl_grid == [500]


@pytest.mark.parametrize("fresh_noise", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 501])
def test_inpainting_gives_what_the_model_knows_inside_the_mask_and_z0_outside(steps: int, fresh_noise: bool) -> None:
    mean = 0.3
    model = make_model(GaussianNoise(mean, 0.0))
    latent = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(2, 1, SIZE, SIZE)
    mask[:, :, BLOB[0], BLOB[1]] = 1
    options = UnsupervisedOptions(steps=steps, fresh_noise=fresh_noise)
    reconstruction = inpaint(latent, mask, [torch.Generator(), torch.Generator()], model, options, ignore)
    expected = torch.where(mask > 0, torch.tensor(mean), latent)
    torch.testing.assert_close(reconstruction, expected, rtol=0, atol=1e-4)
    assert torch.equal(reconstruction[mask == 0], latent[mask == 0])


def test_clamp_and_order_of_guided_are_those_of_its_options() -> None:
    """A network that expects values beyond the range of pixels: each choice gives another map, for as many calls."""
    images = with_blob(random_slices(2))
    model = make_model(GaussianNoise(-1.5, 0.6), TwoClasses(1.0, -1.0, 1.0), pixel=True)
    quick = replace(QUICK["guided"], guidance_scale=0.3)
    maps = {}
    for clamp in ("none", "before", "after"):
        for order in (1, 2):
            options = replace(quick, clamp=clamp, order=order)
            count = Count()
            maps[clamp, order] = METHODS["guided"].run(make_batch(images), model, options, count).anomaly_map
            assert count.calls == METHODS["guided"].network_calls(options)
    default = METHODS["guided"].run(make_batch(images), model, quick, ignore).anomaly_map
    assert torch.equal(maps["after", 1], default)
    names = list(maps)
    for first, one in enumerate(names):
        for other in names[:first]:
            assert (maps[one] - maps[other]).abs().max() > 1e-3, f"{one} and {other}"


def test_stochastic_inpainting_depends_on_the_seed_alone() -> None:
    images = with_blob(random_slices(5))
    options = replace(QUICK["unsupervised"], eta=1.0, fresh_noise=True)

    def anomaly_map(batch: SliceBatch) -> Tensor:
        return METHODS["unsupervised"].run(batch, small_model(), options, ignore).anomaly_map

    whole = anomaly_map(make_batch(images))
    assert torch.equal(whole, anomaly_map(make_batch(images)))
    for first in range(0, 5, 2):
        part = anomaly_map(make_batch(images[first : first + 2], first=first))
        torch.testing.assert_close(part, whole[first : first + 2], rtol=0, atol=1e-5)
    assert (whole - anomaly_map(make_batch(images, seed=1))).abs().max() > 1e-3
    assert (whole - run("unsupervised", make_batch(images)).anomaly_map).abs().max() > 1e-3


def test_stochastic_inpainting_draws_healthy_pixels_of_the_models_own_spread() -> None:
    """Without steps of their own randomness two walks end where their start says; with it they end anywhere."""
    mean, spread = 0.3, 0.5
    model = make_model(GaussianNoise(mean, spread))
    latent = torch.zeros(1, 1, SIZE, SIZE)
    walked = {}
    for eta in (0.0, 1.0):
        options = UnsupervisedOptions(steps=250, start_level=999, kl_to=1000, eta=eta, fresh_noise=eta > 0)
        walked[eta] = inpaint(latent, latent + 1, [torch.Generator().manual_seed(3)], model, options, ignore)
        assert float(walked[eta].mean()) == pytest.approx(mean, abs=0.06)
        assert float(walked[eta].std()) == pytest.approx(spread, rel=0.08)
    correlation = torch.corrcoef(torch.stack([walked[0.0].flatten(), walked[1.0].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.1


@pytest.mark.parametrize("forget", [False, True])
def test_forgetting_leaves_no_trace_of_what_was_inside_the_mask(forget: bool) -> None:
    model = make_model(GaussianNoise(0.3, 0.5))
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[:, :, BLOB[0], BLOB[1]] = 1
    options = UnsupervisedOptions(steps=10, start_from_noise=forget)
    reconstruction = [
        inpaint(contrast * mask, mask, [torch.Generator().manual_seed(1)], model, options, ignore)
        for contrast in (0.0, 2.0)
    ]
    apart = (reconstruction[1] - reconstruction[0])[mask > 0].abs()
    assert bool((apart == 0).all()) if forget else bool((apart > 0.1).all())


def test_averaging_reconstructions_brings_them_closer_to_the_healthy_mean() -> None:
    images = with_blob(healthy_slices(1))
    errors = []
    for count in (1, 16):
        model = make_model(GaussianNoise(healthy_mean(), 0.3), pixel=True)
        options = UnsupervisedOptions(
            steps=10,
            latent_threshold=-1.0,
            start_from_noise=True,
            n_reconstructions=count,
            mask_sigma=0.0,
            kl_levels=1,
        )
        anomaly_map = get_method("unsupervised").run(make_batch(images), model, options, ignore).anomaly_map
        expected = (images - (healthy_mean() + 1.0) / 2.0).abs()[:, 0]
        errors.append(float((anomaly_map - expected)[disc()[0] > 0].square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_inpainting_asks_the_network_at_each_level_of_the_grid_once() -> None:
    asked: list[int] = []

    class Recorder(GaussianNoise):
        def forward(self, x: Tensor, levels: Tensor) -> Tensor:
            asked.append(int(levels[0]))
            return super().forward(x, levels)

    latent, options = torch.zeros(1, 1, 8, 8), UnsupervisedOptions(steps=7)
    inpaint(latent, latent + 1, [torch.Generator()], make_model(Recorder(0.0, 0.5)), options, ignore)
    assert asked == step_grid(500, 7)[:0:-1]


def test_pixels_are_clamped_to_their_range_and_latents_are_not() -> None:
    latent = torch.zeros(1, 1, 8, 8)
    options = UnsupervisedOptions(steps=3)
    outside = GaussianNoise(1.5, 0.0)
    models = [make_model(outside, pixel=pixel) for pixel in (False, True)]
    walked = [inpaint(latent, latent + 1, [torch.Generator()], model, options, ignore) for model in models]
    assert walked[0].max() == pytest.approx(1.5, abs=1e-3)
    assert walked[1].max() == pytest.approx(1.0, abs=1e-6)


def test_only_latents_that_touch_the_brain_count() -> None:
    model = Model(Codec(None, 4), GaussianNoiseChannels(16), SCHEDULE)
    brain = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
    brain[0, 0, 7, 12] = True
    found = Unsupervised().improbability(make_batch(random_slices(1), brain), model, UnsupervisedOptions(), ignore)
    assert found.kl.shape == (1, 8, 8)
    assert found.inside.nonzero().tolist() == [[0, 1, 3]]
    torch.testing.assert_close(found.score, found.kl[:, 1, 3])


def test_the_background_is_never_healed_and_the_score_is_the_kl_maps() -> None:
    decoded: list[Tensor] = []

    class Recorder(Identity):
        def decode(self, z: Tensor) -> Tensor:
            decoded.append(z)
            return z

    model = Model(Codec(Recorder(), 1), GaussianNoise(0.9, 0.1), SCHEDULE)
    batch, options = make_batch(random_slices(1)), UnsupervisedOptions(steps=3, latent_threshold=0.0)
    result = METHODS["unsupervised"].run(batch, model, options, ignore)
    reconstruction, background = decoded[0][:1], ~batch.brain
    assert (reconstruction[background] == -1).all(), "although a model that expects 0.9 finds it improbable"
    assert (reconstruction[batch.brain] != to_model_range(batch.images)[batch.brain]).all()
    again = Unsupervised().improbability(make_batch(random_slices(1)), model, options, ignore)
    assert torch.equal(result.score, again.score)


def test_fitted_threshold_is_the_percentile_and_its_table_offers_others() -> None:
    values = np.linspace(0, 100, 10_001)
    fitted = fit_latent_threshold(values)
    assert float(resolve_threshold(fitted, 97.5)) == pytest.approx(97.5)
    assert float(resolve_threshold(fitted, 92.5)) == pytest.approx(92.5)
    with pytest.raises(InputError, match=r"latent_percentile is 10\.0"):
        resolve_threshold(fitted, 10.0)
    with pytest.raises(InputError, match=r"knows 97\.5 only"):
        resolve_threshold({"percentile": 97.5, "value": 1.0}, 90)


@pytest.mark.parametrize("threshold", [None, "high", True, [[1.0, 2.0]], float("nan"), 10**400, {"percentile": 97.5}])
def test_an_unusable_threshold_is_a_model_error(threshold: object) -> None:
    with pytest.raises(ModelError, match="latent threshold"):
        resolve_threshold(threshold, 97.5)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_smoothing_is_the_gaussian_of_scipy(sigma: float) -> None:
    image = random_slices(1)[:, :, :24, :20]
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), sigma, mode="nearest", truncate=4.0)
    np.testing.assert_allclose(gaussian_smooth(image, sigma)[0, 0].numpy(), expected, atol=1e-6)


def test_smoothing_the_kl_map_leaves_a_flat_one_flat_up_to_the_brains_rim() -> None:
    model = make_model(GaussianNoise(healthy_mean() - 0.2 * disc(), 0.0))
    batch = make_batch(torch.full((1, 1, SIZE, SIZE), HEALTHY_INTENSITY))
    sharp, smooth = (
        Unsupervised().improbability(batch, model, UnsupervisedOptions(kl_sigma=s), ignore).kl[batch.brain[:, 0]]
        for s in (0.0, 1.5)
    )
    torch.testing.assert_close(smooth, sharp, rtol=1e-3, atol=0)


# --- guided -------------------------------------------------------------------------------------------------


def test_guided_without_guidance_and_with_constant_noise_returns_the_slice() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, levels: Tensor) -> Tensor:
            return torch.full_like(x, 0.3)

    model = make_model(Constant(), TwoClasses(0.0, 0.5, 0.1))
    for steps in (1, 10, 500):
        options = GuidedOptions(steps=steps, guidance_scale=0)
        anomaly_map = METHODS["guided"].run(make_batch(healthy_slices(2)), model, options, ignore).anomaly_map
        assert anomaly_map.max() < 1e-5


def test_encoding_and_decoding_walk_the_same_levels_and_the_clean_one_asks_at_zero() -> None:
    asked: list[int] = []

    class Recorder(GaussianNoise):
        def forward(self, x: Tensor, levels: Tensor) -> Tensor:
            asked.append(int(levels[0]))
            return super().forward(x, levels)

    model = make_model(Recorder(0.0, 0.5), TwoClasses(0.0, 0.5, 0.1))
    METHODS["guided"].run(make_batch(healthy_slices(1)), model, GuidedOptions(steps=5), ignore)
    assert asked == [0, 99, 199, 299, 399, 499, 399, 299, 199, 99]


def test_guided_noise_of_ideal_networks_is_the_healthy_models_own() -> None:
    """Bayes: the mixture's score plus the gradient of log C(healthy) is the score of healthy slices alone."""
    healthy, std = healthy_mean(), 0.2
    diseased = healthy.clone()
    diseased[:, :, BLOB[0], BLOB[1]] += 0.4
    classes = TwoClasses(healthy, diseased, std)
    noised = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    grid = step_grid(499, 25)
    guided = decode_guided(noised, grid, 1.0, make_model(MixtureNoise(classes), classes), ignore)
    unguided = decode_guided(noised, grid, 0.0, make_model(GaussianNoise(healthy, std), classes), ignore)
    torch.testing.assert_close(guided, unguided, rtol=0, atol=2e-4)


def test_guided_moves_a_diseased_slice_towards_health_and_is_hot_where_it_was_diseased() -> None:
    healthy = healthy_mean()
    diseased = healthy.clone()
    diseased[:, :, BLOB[0], BLOB[1]] += 0.8
    classes = TwoClasses(healthy, diseased, 0.2)
    # A diffusion model of both: broad enough to hold either.
    model = make_model(GaussianNoise((healthy + diseased) / 2, 0.5), classes)
    batch = make_batch(with_blob(healthy_slices(2)))
    grid = step_grid(499, 50)
    latent = to_model_range(batch.images)
    before = model.log_prob(latent, 0)[:, 0]
    reconstruction = decode_guided(encode_up(latent, grid, model, ignore), grid, 0.3, model, ignore)
    assert (model.log_prob(reconstruction, 0)[:, 0] > before + 10).all()
    result = METHODS["guided"].run(batch, model, GuidedOptions(steps=50, guidance_scale=0.3), ignore)
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[BLOB] = True
    assert all(inside.flatten()[int(h.argmax())] for h in result.anomaly_map)
    assert result.anomaly_map[:, inside].mean() > 10 * result.anomaly_map[:, ~inside].mean()


def test_guided_score_is_the_log_odds_of_disease_of_the_clean_slice() -> None:
    healthy = healthy_mean()
    diseased = healthy + 0.1 * disc()
    model = make_model(GaussianNoise(healthy, 0.3), TwoClasses(healthy, diseased, 0.3))
    images = torch.full((2, 1, SIZE, SIZE), HEALTHY_INTENSITY)
    images[1] += 0.05
    score = METHODS["guided"].run(make_batch(images), model, GuidedOptions(steps=1), ignore).score
    alpha_bar = float(SCHEDULE.alpha_bar(0))
    variance = alpha_bar * 0.3**2 + 1 - alpha_bar
    latent = to_model_range(make_batch(images).images)
    odds = [((latent - alpha_bar**0.5 * m) ** 2).sum(dim=(1, 2, 3)) / (2 * variance) for m in (healthy, diseased)]
    torch.testing.assert_close(score, odds[0] - odds[1], rtol=1e-3, atol=1e-3)
    assert score[0] < 0 < score[1]


# --- intensity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "anomaly_maps"), [("bright", [0, 0.2, 0]), ("dark", [0, 0, 0.3]), ("both", [0, 0.2, 0.3])]
)
def test_intensity_scores_is_the_difference_to_ordinary_tissue_on_the_side_asked_for(
    side: str, anomaly_maps: list[float]
) -> None:
    images = torch.tensor([0.4, 0.6, 0.1]).repeat_interleave(64).reshape(3, 1, 8, 8)
    brain = torch.ones_like(images, dtype=torch.bool)
    brain[:, :, :, 4:] = False
    batch = SliceBatch(images, brain, [torch.Generator()] * 3)
    result = METHODS["intensity"].run(batch, None, IntensityOptions(side=side, reference=0.4), ignore)
    torch.testing.assert_close(result.anomaly_map[:, 0, 0], torch.tensor(anomaly_maps, dtype=torch.float32))
    torch.testing.assert_close(result.score, torch.tensor(anomaly_maps, dtype=torch.float32))
    assert not result.anomaly_map[:, :, 4:].any()


def test_intensity_needs_no_model_and_looks_at_each_slice_alone() -> None:
    images = torch.tensor([0.4, 0.9]).repeat_interleave(64).reshape(2, 1, 8, 8)
    batch = SliceBatch(images, torch.ones_like(images, dtype=torch.bool), [torch.Generator()] * 2)
    slabs = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    beside = replace(batch, slabs=slabs)
    anomaly_maps = [
        METHODS["intensity"].run(one, None, IntensityOptions(), ignore).anomaly_map for one in (batch, beside)
    ]
    assert torch.equal(*anomaly_maps)


# --- options ------------------------------------------------------------------------------------------------


def test_options_default_to_the_published_numbers() -> None:
    unsupervised, guided = UnsupervisedOptions(), GuidedOptions()
    assert (unsupervised.kl_from, unsupervised.kl_to, unsupervised.start_level) == (400, 600, 500)
    assert unsupervised.latent_percentile == 97.5
    assert (guided.level, guided.guidance_scale) == (500, 100)


def test_user_overrides_package_overrides_default() -> None:
    method = get_method("guided")
    options = method.make_options({"steps": 30, "guidance_scale": 7}, {"steps": 4, "level": None})
    assert options == GuidedOptions(steps=4, guidance_scale=7.0, level=500)
    assert isinstance(options.guidance_scale, float)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("unsupervised", {"steps": 0}, r"steps is 0.*from 1 to 1000"),
        ("unsupervised", {"steps": 502}, r"steps is 502.*501"),
        ("unsupervised", {"kl_to": 400}, r"kl_to is 400.*from 401 to 1000"),
        ("unsupervised", {"kl_levels": 201}, r"kl_levels is 201.*from 1 to 200"),
        ("unsupervised", {"kl_from": 0}, r"kl_from is 0"),
        ("unsupervised", {"latent_percentile": 101}, r"latent_percentile is 101.*from 0 to 100"),
        ("unsupervised", {"antithetic": "yes"}, r"antithetic is 'yes'"),
        ("unsupervised", {"side": "left"}, r"side is 'left'.*both, bright, dark"),
        ("guided", {"side": "bright left"}, r"side is 'bright left'.*both, bright, dark; or one of these or none"),
        ("guided", {"side": "none none"}, r"side is 'none none'"),
        ("guided", {"side": "none"}, r"side is 'none'"),
        ("guided", {"side": ""}, r"side is ''"),
        ("guided", {"side": ["bright", "dark"]}, r"side is \['bright', 'dark'\]"),
        ("guided", {"steps": 0}, r"steps is 0"),
        ("guided", {"steps": 501}, r"steps is 501.*500"),
        ("guided", {"steps": 2.5}, r"steps is 2\.5.*whole number"),
        ("guided", {"steps": True}, r"steps is True"),
        ("guided", {"level": 1001}, r"level is 1001"),
        ("guided", {"guidance_scale": float("nan")}, r"guidance_scale is nan"),
        ("guided", {"clamp": "always"}, r"clamp is 'always'.*none, before, after"),
        ("guided", {"order": 3}, r"order is 3.*1 to 2"),
        ("unsupervised", {"eta": 1.5}, r"eta is 1\.5.*0 to 1"),
        ("guided", {"guidance": 1}, r"no option guidance.*guidance_scale"),
        ("restore", {"steps": 11}, r"steps is 11, more than the 10 levels.*at most 10"),
        ("restore", {"levels": 0}, r"levels is 0"),
        ("restore", {"heat": "logit"}, r"heat is 'logit'.*residual, probability, product"),
        (
            "restore",
            {"heat": "probability", "side": "dark"},
            r"side is dark and min_reference_intensity is 0; with heat=probability there is neither",
        ),
        (
            "restore",
            {"heat": "probability", "min_reference_intensity": 0.4},
            r"side is both and min_reference_intensity is 0\.4; with heat=probability there is neither",
        ),
        ("localise", {"steps": 3}, r"no option steps.*It has no options of its own"),
        ("restore", {"side": "left"}, r"side is 'left'"),
        ("restore", {"min_reference_intensity": 1.5}, r"min_reference_intensity is 1\.5"),
        ("localise", {"steps": 3}, r"no option steps"),
        ("intensity", {"reference": -0.1}, r"reference is -0\.1"),
        ("intensity", {"center": 0.4}, r"no option center.*side, reference"),
    ],
)
def test_bad_options_name_themselves_the_value_and_the_range(name: str, overrides: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        get_method(name).make_options({}, overrides)


def test_a_packages_bad_options_are_the_packages_fault() -> None:
    with pytest.raises(ModelError, match="steps is 0"):
        get_method("guided").make_options({"steps": 0}, {})
    with pytest.raises(ModelError, match="no option colour"):
        get_method("guided").make_options({"colour": 1}, {})


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="localise, unsupervised, guided, restore, intensity"):
        get_method("magic")


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_option_has_a_description_and_every_number_a_range(method: MethodEntry) -> None:
    for option in fields(method.options_type):
        assert option.metadata["about"], option.name
        if isinstance(option.default, (int, float)) and not isinstance(option.default, bool):
            assert option.metadata["low"] <= option.default <= option.metadata["high"]
