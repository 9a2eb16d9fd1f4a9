"""One-step restoration: what is known of a restorer decides the anomaly map, and a package that does not fit is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

import packages
import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import make_plan
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.methods.base import SliceBatch, SliceResult
from diffusion_anomaly.methods.restore import requested_levels, split_output
from diffusion_anomaly.models.loading import load_model
from diffusion_anomaly.models.networks import Codec, Model
from diffusion_anomaly.models.package import Bundle, open_bundle
from diffusion_anomaly.models.schedule import Schedule
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.preprocessing.intensity import PercentileNormalisation
from diffusion_anomaly.preprocessing.slices import Grid
from diffusion_anomaly.registry import METHODS, RestoreOptions
from packages import options_for
from phantom import array

SIZE = 16
BRAIN = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
BRAIN[..., 2:14, 2:14] = True
BRIGHT, DARK = (slice(4, 8), slice(3, 6)), (slice(9, 12), slice(8, 12))
LEVELS = 10


class Knowing(nn.Module):
    """A restorer that knows the healthy slice, and is sure, or as sure as told, wherever a slice differs.

    Args:
        healthy: ``(1, 1, H, W)`` in [0, 1].
        factor: pixels that the codec folds.
        logit: of every pixel that differs; None for no logits at all.
        by_level: what each level of corruption adds to the restored slice.
    """

    def __init__(self, healthy: Tensor, factor: int = 1, logit: float | None = 30.0, by_level: float = 0.0) -> None:
        super().__init__()
        self.healthy = pixel_unshuffle(2.0 * healthy - 1.0, factor)
        self.logit, self.by_level = logit, by_level
        self.asked: list[list[int]] = []

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        self.asked.append(levels.tolist())
        change = self.healthy - x + self.by_level * levels.view(-1, 1, 1, 1)
        if self.logit is None:
            return change
        logit = torch.where((self.healthy - x).abs() > 1e-3, self.logit, -30.0)
        return torch.cat([change, logit], dim=1)


def healthy_slice() -> Tensor:
    return torch.linspace(0.3, 0.6, SIZE).expand(1, 1, SIZE, SIZE) * BRAIN


def scan(count: int = 1) -> SliceBatch:
    """The healthy slice, brighter in one place by 0.3 and darker by 0.2 in another."""
    images = healthy_slice().repeat(count, 1, 1, 1)
    images[:, :, BRIGHT[0], BRIGHT[1]] += 0.3
    images[:, :, DARK[0], DARK[1]] -= 0.2
    return SliceBatch(images, BRAIN.expand(images.shape), [torch.Generator()] * count)


def model_of(restorer: nn.Module | None, factor: int = 1, levels: int = LEVELS) -> Model:
    return Model(Codec(None, factor), None, Schedule.linear(levels), restorer=restorer)


def run(restorer: nn.Module, batch: SliceBatch, factor: int = 1, **options: Any) -> SliceResult:
    chosen = RestoreOptions(**({"levels": LEVELS} | options))
    return METHODS["restore"].run(batch, model_of(restorer, factor), chosen, lambda calls: None)


def expected(bright: float, dark: float) -> Tensor:
    anomaly_map = torch.zeros(1, SIZE, SIZE)
    anomaly_map[:, BRIGHT[0], BRIGHT[1]] = bright
    anomaly_map[:, DARK[0], DARK[1]] = dark
    return anomaly_map


# --- Anomaly scores


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize(
    ("options", "bright", "dark"),
    [
        ({"heat": "residual"}, 0.3, 0.2),
        ({"heat": "residual", "side": "bright"}, 0.3, 0.0),
        ({"heat": "residual", "side": "dark"}, 0.0, 0.2),
        ({"heat": "probability"}, 0.75, 0.75),
        ({"heat": "product"}, 0.75 * 0.3, 0.75 * 0.2),
        ({"heat": "product", "side": "bright"}, 0.75 * 0.3, 0.0),
    ],
)
def test_scores_is_difference_probability_or_product_where_the_slice_was_changed(
    factor: int, options: dict[str, Any], bright: float, dark: float
) -> None:
    restorer = Knowing(healthy_slice(), factor, logit=float(np.log(3.0)))  # a probability of three quarters
    anomaly_map = run(restorer, scan(), factor, **options).anomaly_map
    torch.testing.assert_close(anomaly_map, expected(bright, dark), rtol=0, atol=1e-5)


def test_the_score_is_the_mean_scores_of_the_brain_and_an_empty_slice_has_none() -> None:
    batch = scan(2)
    brain = batch.brain.clone()
    brain[1] = False
    result = run(Knowing(healthy_slice()), SliceBatch(batch.images, brain, batch.generators))
    assert float(result.score[0]) == pytest.approx((12 * 0.3 + 12 * 0.2) / 144, abs=1e-5)
    assert float(result.score[1]) == 0.0
    assert not result.anomaly_map[1].any()


def test_a_restored_slice_is_clipped_as_the_scan_is() -> None:
    anomaly_map = run(Knowing(torch.full((1, 1, SIZE, SIZE), 7.0)), scan(), heat="residual").anomaly_map
    torch.testing.assert_close(anomaly_map, ((1.0 - scan().images) * BRAIN)[:, 0])


# --- Levels


@settings(deadline=None)
@given(levels=st.integers(1, 1000), data=st.data())
def test_levels_are_asked_once_each_and_spread_evenly(levels: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, levels))
    asked = requested_levels(steps, levels)
    assert len(asked) == steps
    assert asked[0] >= 0 and asked[-1] < levels
    gaps = np.diff(asked)
    assert (gaps >= 1).all() and np.ptp(gaps) <= 1 if steps > 1 else asked == [levels // 2]
    # What is left below the first and above the last differs by no more than rounding.
    assert abs(asked[0] - (levels - 1 - asked[-1])) <= 1


def test_all_levels_can_be_asked() -> None:
    assert requested_levels(7, 7) == list(range(7))


def test_a_slice_is_compared_with_the_mean_of_what_the_levels_asked_restore() -> None:
    restorer = Knowing(healthy_slice(), logit=None, by_level=0.02)
    batch = scan()
    batch.images[:, :, 12, 12] += 0.045
    result = run(restorer, batch, steps=2, heat="residual")
    assert [levels[0] for levels in restorer.asked] == [2, 7]
    # 0.02 in [-1, 1] is 0.01 in [0, 1]: the levels make the slice brighter by 0.02 and 0.07, together by 0.045.
    assert float(result.anomaly_map[0, 12, 12]) == pytest.approx(0.0, abs=1e-6)
    assert float(result.anomaly_map[0, 12, 11]) == pytest.approx(0.045, abs=1e-6)
    assert result.reconstruction is not None
    torch.testing.assert_close(result.reconstruction, ((healthy_slice() + 0.045) * BRAIN), rtol=0, atol=1e-6)


def test_how_far_the_brain_commonly_is_from_its_restored_version_ignores_a_lesion() -> None:
    """The lesions fill a sixth of this brain; a quarter would move the measure."""
    for by_level in (0.0, 0.02):
        result = run(Knowing(healthy_slice(), by_level=by_level), scan(), steps=1)
        assert result.reconstruction_error is not None
        assert float(result.reconstruction_error[0]) == pytest.approx(by_level / 2 * 5, abs=1e-6)


def test_what_is_darker_than_the_floor_is_not_bright() -> None:
    """A healthy value of 0.2 counts as 0.4: what is brighter than 0.2 by 0.3 is brighter than that by 0.1."""
    dim = torch.full((1, 1, SIZE, SIZE), 0.2)
    images = (dim * BRAIN).clone()
    images[:, :, BRIGHT[0], BRIGHT[1]] = 0.5
    images[:, :, DARK[0], DARK[1]] = 0.05
    batch = SliceBatch(images, BRAIN, [torch.Generator()])
    found = run(Knowing(dim), batch, heat="residual", min_reference_intensity=0.4).anomaly_map
    torch.testing.assert_close(found, expected(0.1, 0.15), rtol=0, atol=1e-5)


def test_every_slice_of_a_batch_is_told_the_same_level() -> None:
    restorer = Knowing(healthy_slice())
    run(restorer, scan(3), steps=1)
    assert [set(levels) for levels in restorer.asked] == [{5}]


# --- What a restorer cannot give


@pytest.mark.parametrize("anomaly_map", ["probability", "product"])
def test_a_restorer_without_logits_has_no_probability_to_give(anomaly_map: str) -> None:
    with pytest.raises(
        InputError,
        match=f"heat is '{anomaly_map}', but this model's restorer gives no probability.*residual",
    ):
        run(Knowing(healthy_slice(), logit=None), scan(), heat=anomaly_map)


def test_more_levels_than_were_trained_are_refused() -> None:
    with pytest.raises(InputError, match=r"levels is 11, but the model has 10 levels.*at most 10"):
        run(Knowing(healthy_slice()), scan(), levels=11)


@settings(deadline=None)
@given(channels=st.integers(1, 5), logits=st.booleans())
def test_an_output_is_a_change_to_the_slice_and_perhaps_logits(channels: int, logits: bool) -> None:
    generator = torch.Generator().manual_seed(channels)
    latent, change, logit = torch.randn(3, 2, channels, 4, 4, generator=generator)
    restored, found = split_output(torch.cat([change, logit], 1) if logits else change, latent)
    assert torch.equal(restored, latent + change)
    assert torch.equal(found, logit) if found is not None else not logits


# --- Neighbours


class KnowingBetween(Knowing):
    """The same restorer, shown a slice between as many slices on either side: it looks at none of them."""

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        folded = self.healthy.shape[1]
        middle = x.shape[1] // folded // 2
        return super().forward(x[:, middle * folded : (middle + 1) * folded], levels)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("reach", [1, 2])
def test_of_a_slice_between_neighbours_the_middle_one_is_restored(factor: int, reach: int) -> None:
    batch = scan(2)
    slabs = torch.rand(2, 2 * reach + 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    slabs[:, reach] = batch.images[:, 0]
    between = replace(batch, slabs=slabs)
    result = run(KnowingBetween(healthy_slice(), factor), between, factor, heat="product")
    torch.testing.assert_close(result.anomaly_map, expected(0.3, 0.2).expand(2, -1, -1), rtol=0, atol=1e-5)
    assert result.reconstruction is not None
    torch.testing.assert_close(result.reconstruction, healthy_slice().expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    alone = run(Knowing(healthy_slice(), factor), batch, factor, heat="product")
    torch.testing.assert_close(result.anomaly_map, alone.anomaly_map)
    torch.testing.assert_close(result.reconstruction_error, alone.reconstruction_error)


@settings(deadline=None)
@given(channels=st.integers(1, 5), reach=st.integers(0, 3), logits=st.booleans())
def test_what_is_added_to_is_the_slice_in_the_middle(channels: int, reach: int, logits: bool) -> None:
    generator = torch.Generator().manual_seed(channels)
    slices = [torch.randn(2, channels, 4, 4, generator=generator) for _ in range(2 * reach + 1)]
    change, logit = torch.randn(2, 2, channels, 4, 4, generator=generator)
    output = torch.cat([change, logit], 1) if logits else change
    restored, found = split_output(output, torch.cat(slices, 1), len(slices))
    assert torch.equal(restored, slices[reach] + change)
    assert torch.equal(found, logit) if found is not None else not logits


# --- Packages


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.restore(tmp_path_factory.mktemp("models") / "toy-restore")


def test_a_package_is_whole_and_describes_its_restorer_as_its_main_network(package: Bundle) -> None:
    verify(open_bundle(package.path))
    described = package.metadata["network_data_format"]
    assert described["inputs"]["image"]["num_channels"] == 16
    assert described["inputs"]["image"]["spatial_shape"] == [12, 10]
    assert described["inputs"]["level"]["value_range"] == [0, 3]
    (output,) = described["outputs"].values()
    assert output["num_channels"] == 32


def test_a_loaded_model_has_the_packages_levels_and_no_diffusion_network(package: Bundle) -> None:
    model = load_model(package, "cpu", "float32")
    assert model.schedule.levels == 4
    assert model.restore(torch.zeros(3, 16, 12, 10), 1).shape == (3, 32, 12, 10)
    with pytest.raises(ModelError, match="no diffusion network"):
        model.eps(torch.zeros(1, 16, 12, 10), 0)


def test_a_scan_goes_in_and_calibrated_scores_comes_out_on_its_own_grid(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    result = Detector(options_for(package))(flair_like_volume, brain=flair_like_brain)
    assert phantom.geometry(result.anomaly_map) == phantom.geometry(flair_like_volume.image)
    anomaly_map = array(result.anomaly_map)
    assert np.isfinite(anomaly_map).all() and anomaly_map.max() > 0
    assert not anomaly_map[array(flair_like_brain) == 0].any()
    assert result.provenance["network_calls_per_slice"] == 2
    assert result.provenance["model"]["name"] == "toy-restore"
    assert result.provenance["options"]["levels"] == 4
    assert result.score_warning is None, "the anomaly score is no measure of what the model knows"


def test_the_batch_size_and_the_seed_change_nothing(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    anomaly_maps = [
        array(Detector(options_for(package, **changes))(flair_like_volume, brain=flair_like_brain).anomaly_map)
        for changes in ({"batch_size": 1}, {"batch_size": 3, "seed": 5}, {"batch_size": 16})
    ]
    for anomaly_map in anomaly_maps[1:]:
        np.testing.assert_allclose(anomaly_map, anomaly_maps[0], atol=1e-5)


def test_a_package_with_neighbours_looks_at_them_and_at_no_other_slice(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    """A slice gets its own values in another order, which leaves the scan's scale as it was."""
    network = {**packages.RESTORER, "in_channels": 3 * packages.CHANNELS}
    bundle = packages.restore(
        tmp_path / "toy", network, grid={**packages.ANOMALY["grid"], "neighbours": 1}, postprocess={"median_pixels": 1}
    )
    verify(bundle)
    plan = make_plan(options_for(bundle))
    plain = Detector(plan).raw_map(flair_like_volume, flair_like_brain)
    changed = len(plain.stack) // 2
    values, inside = array(flair_like_volume.image), array(flair_like_brain)[plain.stack.indices[changed]] > 0
    here = values[plain.stack.indices[changed]]
    here[inside] = here[inside][::-1]
    volume = replace(flair_like_volume, image=phantom.on_grid(values, flair_like_volume.image))
    other = Detector(plan).raw_map(volume, flair_like_brain)
    differs = [index for index in range(len(plain.raw)) if not np.array_equal(plain.raw[index], other.raw[index])]
    assert differs == [changed - 1, changed, changed + 1]


def test_a_package_as_they_were_written_before_still_opens_and_runs_as_it_did(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    """Percentiles without a kind, filters on the grid, a table for the baseline, and no word of neighbours."""
    table = {"calibration": {"raw": [0.0, 1.0], "heat": [0.0, 2.0], "voxels": 9, "source": "x"}}
    filters = {"median_pixels": 5, "slice_sigma": 1.0, "rim_pixels": 0, "relative": 0.5}
    old = packages.restore(
        tmp_path / "old", postprocess=filters, intensity={**table, "threshold": {"heat": 1.5, "false_alarm_ml": 1.0}}
    )
    assert "neighbours" not in old.anomaly["grid"] and "kind" not in old.anomaly["normalisation"]
    verify(open_bundle(old.path))
    assert old.grid == Grid((40, 48), 4.0)
    assert old.normalisation == PercentileNormalisation(5, 75, 0.5, 1.0)
    scale = {"kind": "percentiles", **packages.ANOMALY["normalisation"]}
    grid = {**packages.ANOMALY["grid"], "max_slice_spacing": 3.0, "neighbours": 0}
    new = packages.restore(tmp_path / "new", grid=grid, normalisation=scale, postprocess=filters)
    results = [Detector(options_for(one))(flair_like_volume, brain=flair_like_brain) for one in (old, new)]
    anomaly_maps = [array(result.anomaly_map) for result in results]
    assert anomaly_maps[0].max() > 0 and np.array_equal(*anomaly_maps)
    assert results[0].threshold == results[1].threshold == 2.0
    with pytest.raises(ModelError, match="made for the method 'restore'"):
        make_plan(replace(options_for(old), method="intensity"))


def test_a_package_without_logits_runs_with_the_difference_alone(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    bundle = packages.restore(
        tmp_path / "toy-dae", packages.DIFFUSION, options={"levels": 1, "steps": 1, "heat": "residual"}
    )
    verify(bundle)
    assert array(Detector(options_for(bundle))(flair_like_volume, brain=flair_like_brain).anomaly_map).max() > 0
    asked = options_for(bundle, overrides={"heat": "product"})
    with pytest.raises(InputError, match="gives no probability"):
        Detector(asked)(flair_like_volume, brain=flair_like_brain)


def test_a_package_with_fewer_levels_than_steps_is_the_packages_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="steps is 3, more than the 2 levels of corruption"):
        packages.restore(tmp_path / "toy", options={"levels": 2})
    assert make_plan(options_for(packages.restore(tmp_path / "other"), steps=1)).method_options.steps == 1  # type: ignore[attr-defined]


def test_a_package_that_is_not_calibrated_is_not_ready(tmp_path: Path) -> None:
    bundle = packages.restore(tmp_path / "toy", calibration=None, threshold=None)
    with pytest.raises(ModelError, match=r"has no calibration, threshold\. Calibrate it"):
        verify(bundle)


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "channels in": (
        lambda place: packages.restore(place, packages.RESTORER, codec={"factor": 2}),
        r"restorer.json has 16 channels in and 32 out; the codec's factor 2 needs 4 in, and 4 or 8 out",
    ),
    "neighbours that the network does not take": (
        lambda place: packages.restore(place, grid={**packages.ANOMALY["grid"], "neighbours": 1}),
        r"restorer.json has 16 channels in and 32 out; the codec's factor 4 needs 48 in, and 16 or 32 out",
    ),
    "channels out": (
        lambda place: packages.restore(place, {**packages.RESTORER, "out_channels": 17}),
        r"restorer.json has 16 channels in and 17 out; the codec's factor 4 needs 16 in, and 16 or 32 out",
    ),
    "latents that are scaled": (
        lambda place: packages.restore(place, codec={"factor": 4, "scale": 2.0}),
        r"anomaly.json encodes slices, which a restorer takes as folded pixels",
    ),
    "no levels": (
        lambda place: packages.restore(place, options={"steps": 1}),
        r"anomaly.json has method restore and no options.levels",
    ),
    "no options": (lambda place: packages.restore(place, options=None), r"no options.levels"),
    "no grid": (lambda place: packages.restore(place, grid=None), r"no grid"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_package_that_does_not_fit_is_not_written(tmp_path: Path, name: str) -> None:
    write, message = UNFIT[name]
    with pytest.raises(ModelError, match=message) as caught:
        write(tmp_path / "toy")
    assert caught.value.hint, "the error must say what to do"
    assert not (tmp_path / "toy").exists()
