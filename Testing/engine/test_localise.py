"""The localiser: what it says of a slice between its neighbours is the anomaly map, and what does not fit it is
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
from torch import Tensor, nn

import packages
import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.inference import RawMap
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import ModelError
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.methods.base import SliceBatch, SliceResult
from diffusion_anomaly.models.loading import load_model
from diffusion_anomaly.models.networks import Codec, Model
from diffusion_anomaly.models.package import Bundle, open_bundle
from diffusion_anomaly.models.schedule import Schedule
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.registry import DEFAULT_METHOD, METHODS, LocaliseOptions
from packages import options_for
from phantom import array

SIZE = 16
BRAIN = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
BRAIN[..., 2:14, 3:13] = True
WIDER = {**packages.LOCALISER, "in_channels": 20}  # two neighbours on either side


class Sees(nn.Module):
    """A localiser whose log-odds are four times one of the slices it is shown, in the range it is shown them in.

    Args:
        place: which slice, from below.
        folded: channels of a slice.
    """

    def __init__(self, place: int, folded: int) -> None:
        super().__init__()
        self.place, self.folded = place, folded
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return 4.0 * x[:, self.place * self.folded : (self.place + 1) * self.folded]


def batch_of(count: int, slices: int | None, seed: int = 0) -> SliceBatch:
    """Random slices, with slabs of so many slices or without."""
    generator = torch.Generator().manual_seed(seed)
    brain = BRAIN.expand(count, 1, SIZE, SIZE)
    slabs = torch.rand(count, slices or 1, SIZE, SIZE, generator=generator) * brain
    middle = (slices or 1) // 2
    images = slabs[:, middle : middle + 1].clone()
    return SliceBatch(images, brain, [torch.Generator()] * count, slabs if slices else None)


def run(localiser: nn.Module | None, batch: SliceBatch, factor: int = 1) -> tuple[SliceResult, Model]:
    model = Model(Codec(None, factor), None, Schedule.linear(10), localiser=localiser)
    return METHODS["localise"].run(batch, model, LocaliseOptions(), lambda calls: None), model


# --- Anomaly scores


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize(("slices", "place"), [(None, 0), (3, 0), (3, 1), (3, 2), (5, 4)])
def test_scores_is_the_probability_of_what_the_network_says_of_the_slices_it_is_shown(
    factor: int, slices: int | None, place: int
) -> None:
    batch = batch_of(3, slices)
    anomaly_map = run(Sees(place, factor**2), batch, factor)[0].anomaly_map
    seen = (batch.images if slices is None else batch.slabs)[:, place]  # type: ignore[index]
    expected = torch.where(BRAIN[:, 0], 1.0 / (1.0 + torch.exp(-4.0 * (2.0 * seen - 1.0))), 0.0)
    torch.testing.assert_close(anomaly_map, expected, rtol=0, atol=1e-6)


def test_what_is_shown_outside_the_brain_and_for_missing_neighbours_is_the_lowest_value() -> None:
    batch = batch_of(1, 3)
    batch.slabs[:, 2] = 0.0  # type: ignore[index]
    network = Sees(1, 1)
    run(network, batch)
    (shown,) = network.shown
    assert shown.shape[1:] == (3, SIZE, SIZE)
    assert (shown[:, 2] == -1).all()
    assert (shown[:, :2][:, :, ~BRAIN[0, 0]] == -1).all()


def test_scores_lies_between_0_and_1_and_is_0_outside_the_brain() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * x

    anomaly_map = run(Sure(), batch_of(4, None))[0].anomaly_map
    assert anomaly_map.dtype == torch.float32 and anomaly_map.shape == (4, SIZE, SIZE)
    assert torch.isfinite(anomaly_map).all() and anomaly_map.min() == 0.0 and anomaly_map.max() == 1.0
    assert not anomaly_map[:, ~BRAIN[0, 0]].any()


def test_the_score_is_the_mean_probability_of_the_brain_and_an_empty_slice_has_none() -> None:
    batch = batch_of(2, None)
    brain = batch.brain.clone()
    brain[1] = False
    result, _ = run(Sees(0, 1), replace(batch, brain=brain))
    inside = batch.images[0, 0][BRAIN[0, 0]]
    assert float(result.score[0]) == pytest.approx(float(torch.sigmoid(4 * (2 * inside - 1)).mean()), abs=1e-6)
    assert float(result.score[1]) == 0.0 and not result.anomaly_map[1].any()
    assert result.reconstruction_error is None and result.reconstruction is None


def test_the_network_is_asked_once_a_slice() -> None:
    told: list[int] = []
    model = Model(Codec(None, 1), None, Schedule.linear(10), localiser=Sees(1, 1))
    METHODS["localise"].run(batch_of(5, 3), model, LocaliseOptions(), told.append)
    assert told == [1] == [METHODS["localise"].network_calls(LocaliseOptions())]
    assert model.calls == 5


def test_a_model_without_a_localiser_is_named() -> None:
    with pytest.raises(ModelError, match="no localiser"):
        run(None, batch_of(1, 3))


# --- Packages


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.localise(tmp_path_factory.mktemp("models") / "toy-localise")


def found_in(volume: Volume, brain: sitk.Image, bundle: Bundle, **changes: Any) -> RawMap:
    return Detector(make_plan(options_for(bundle, **changes))).raw_map(volume, brain)


def test_it_is_what_runs_when_nothing_is_asked_for() -> None:
    assert DEFAULT_METHOD == Options().method == "localise"
    plan = make_plan(Options(device="cpu"))
    assert (plan.method.name, plan.bundle.name) == ("localise", "flair-localise")


def test_a_package_is_whole_and_describes_its_localiser_as_its_main_network(package: Bundle) -> None:
    verify(open_bundle(package.path))
    assert package.grid.neighbours == 1
    described = package.metadata["network_data_format"]
    assert described["inputs"].keys() == {"image"}
    assert described["inputs"]["image"]["num_channels"] == 12
    assert described["inputs"]["image"]["spatial_shape"] == [32, 32]
    (output,) = described["outputs"].values()
    assert output["num_channels"] == 4


def test_a_loaded_model_has_its_localiser_and_nothing_else(package: Bundle) -> None:
    model = load_model(package, "cpu", "float32")
    assert model.localise(torch.zeros(3, 12, 32, 32)).shape == (3, 4, 32, 32)
    with pytest.raises(ModelError, match="no restorer"):
        model.restore(torch.zeros(1, 12, 32, 32), 0)


def test_a_scan_goes_in_and_calibrated_scores_comes_out_on_its_own_grid(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    result = Detector(options_for(package, keep_reconstruction=True))(flair_like_volume, brain=flair_like_brain)
    assert phantom.geometry(result.anomaly_map) == phantom.geometry(flair_like_volume.image)
    anomaly_map = array(result.anomaly_map)
    assert np.isfinite(anomaly_map).all() and anomaly_map.max() > 0
    assert not anomaly_map[array(flair_like_brain) == 0].any()
    assert result.provenance["method"] == "localise"
    assert result.provenance["network_calls_per_slice"] == 1
    assert result.provenance["model"]["name"] == "toy-localise"
    assert result.score_warning is None, "the anomaly score is no measure of what the model knows"
    assert result.reconstruction is None, "a localiser does not know how the brain would look in health"


def test_the_batch_size_and_the_seed_change_not_one_bit(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    first, *others = (
        found_in(flair_like_volume, flair_like_brain, package, **changes)
        for changes in ({"batch_size": 1}, {"batch_size": 3, "seed": 5}, {"batch_size": 8}, {"batch_size": 64})
    )
    assert first.raw.max() > 0
    for other in others:
        assert np.array_equal(other.raw, first.raw) and np.array_equal(other.scores, first.scores)


@pytest.mark.parametrize(("neighbours", "network"), [(1, packages.LOCALISER), (2, WIDER)])
def test_a_slice_is_judged_by_itself_and_its_neighbours_and_by_no_other(
    neighbours: int,
    network: dict[str, Any],
    tmp_path: Path,
    flair_like_volume: Volume,
    flair_like_brain: sitk.Image,
) -> None:
    """Another slice gets its own values in another order, which leaves the scan's scale as it was."""
    grid = {**packages.LOCALISE["grid"], "neighbours": neighbours}
    bundle = packages.localise(tmp_path / "toy", network, grid=grid)
    plain = found_in(flair_like_volume, flair_like_brain, bundle)
    assert plain.stack.grid.neighbours == neighbours
    changed = len(plain.stack) // 2
    k = plain.stack.indices[changed]
    values = array(flair_like_volume.image)
    inside = array(flair_like_brain)[k] > 0
    values[k][inside] = values[k][inside][::-1]
    volume = replace(flair_like_volume, image=phantom.on_grid(values, flair_like_volume.image))
    other = found_in(volume, flair_like_brain, bundle)
    differs = [index for index in range(len(plain.raw)) if not np.array_equal(plain.raw[index], other.raw[index])]
    assert differs == list(range(changed - neighbours, changed + neighbours + 1))


def test_beyond_the_ends_and_across_a_gap_there_is_nothing(
    package: Bundle, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    """A scan in two parts is judged as each part alone, with the scale that both have in common."""
    values = np.repeat(array(flair_like_volume.image)[12:14], 4, axis=0)  # each slice four times
    mask = np.repeat(array(flair_like_brain)[12:14], 4, axis=0)
    values[4:] = values[:4]
    mask[4:] = mask[:4]

    def found(*without: int) -> RawMap:
        grid = phantom.grid((64, 72, 8), (2.4, 2.4, 5.0))
        brain = mask.copy()
        brain[list(without)] = 0
        return found_in(phantom.as_volume(phantom.on_grid(values, grid)), phantom.on_grid(brain, grid), package)

    parts, alone, long = found(3, 4), found(3, 4, 5, 6, 7), found(6, 7)
    assert parts.stack.indices == (0, 1, 2, 5, 6, 7) and alone.stack.indices == (0, 1, 2)
    assert np.array_equal(parts.raw[:3], alone.raw)
    assert np.array_equal(parts.raw[3:], alone.raw)
    assert not np.array_equal(alone.raw[0], alone.raw[1]) and not np.array_equal(alone.raw[2], alone.raw[1])
    assert np.array_equal(long.raw[2], alone.raw[1]), "a slice between two like it"


def test_a_package_that_is_not_calibrated_is_not_ready(tmp_path: Path) -> None:
    bundle = packages.localise(tmp_path / "toy", calibration=None, threshold=None)
    with pytest.raises(ModelError, match=r"has no calibration, threshold\. Calibrate it"):
        verify(bundle)


def grid_with(neighbours: Any) -> dict[str, Any]:
    return {**packages.LOCALISE["grid"], "neighbours": neighbours}


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "too many channels in": (
        lambda place: packages.localise(place, WIDER),
        r"localiser.json has 20 channels in and 4 out; the codec's factor 2 needs 12 in, and 4 out",
    ),
    "no neighbours for a network that needs them": (
        lambda place: packages.localise(place, grid={"size": [64, 64], "spacing": 3.0}),
        r"localiser.json has 12 channels in and 4 out; the codec's factor 2 needs 4 in, and 4 out",
    ),
    "a restorer's channels out": (
        lambda place: packages.localise(place, {**packages.LOCALISER, "out_channels": 8}),
        r"localiser.json has 12 channels in and 8 out; the codec's factor 2 needs 12 in, and 4 out",
    ),
    "latents that are scaled": (
        lambda place: packages.localise(place, codec={"factor": 2, "scale": 2.0}),
        r"anomaly.json encodes slices, which a localiser takes as folded pixels",
    ),
    "no codec": (lambda place: packages.localise(place, codec=None), r"no codec"),
    "no grid": (lambda place: packages.localise(place, grid=None), r"no grid"),
    "no scale": (lambda place: packages.localise(place, normalisation=None), r"no normalisation"),
    "a grid that cannot be folded": (
        lambda place: packages.localise(place, grid={**grid_with(1), "size": [63, 64]}),
        r"\[63, 64\] pixels, not multiples of the codec's factor 2",
    ),
    "nine neighbours": (
        lambda place: packages.localise(place, grid=grid_with(9)),
        r"anomaly.json at grid/neighbours: 9 is greater than the maximum of 8",
    ),
    "fewer than none": (
        lambda place: packages.localise(place, grid=grid_with(-1)),
        r"anomaly.json at grid/neighbours: -1 is less than the minimum of 0",
    ),
    "half a neighbour": (
        lambda place: packages.localise(place, grid=grid_with(0.5)),
        r"anomaly.json at grid/neighbours: 0.5 is not of type 'integer'",
    ),
    "neighbours of a diffusion model": (
        lambda place: packages.unsupervised(place, grid={**packages.ANOMALY["grid"], "neighbours": 1}),
        r"shows neighbours to the networks of the method unsupervised, which see one slice",
    ),
    "neighbours of a classifier": (
        lambda place: packages.guided(place, grid={**packages.ANOMALY["grid"], "neighbours": 2}),
        r"shows neighbours to the networks of the method guided, which see one slice",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_package_that_does_not_fit_is_not_written(tmp_path: Path, name: str) -> None:
    write, message = UNFIT[name]
    with pytest.raises(ModelError, match=message) as caught:
        write(tmp_path / "toy")
    assert caught.value.hint, "the error must say what to do"
    assert not (tmp_path / "toy").exists()


def test_a_declared_absence_of_neighbours_is_no_fault_of_any_method(tmp_path: Path) -> None:
    bundle = packages.guided(tmp_path / "toy", grid={**packages.ANOMALY["grid"], "neighbours": 0})
    verify(bundle)
    assert bundle.grid.neighbours == 0


@pytest.mark.parametrize("method", ["restore", "guided", "unsupervised", "intensity"])
def test_a_localisers_package_runs_no_other_method(method: str, package: Bundle) -> None:
    with pytest.raises(ModelError, match="made for the method 'localise'") as caught:
        make_plan(replace(options_for(package), method=method))
    assert "the method localise" in caught.value.hint


@pytest.mark.parametrize("value", [0.0, 37.0])
def test_a_brain_of_one_value_has_no_findings_whatever_a_network_says(
    tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image, value: float
) -> None:
    bundle = packages.localise(tmp_path / "toy-l")
    image = sitk.GetImageFromArray(np.full(flair_like_volume.image.GetSize()[::-1], value, np.float32))
    image.CopyInformation(flair_like_volume.image)
    options = Options("localise", str(bundle.path), device="cpu", precision="float32")
    result = Detector(options)(phantom.as_volume(image), brain=flair_like_brain)
    assert not result.findings
    assert not sitk.GetArrayFromImage(result.anomaly_map).any()
    assert any("nothing to find" in warning for warning in result.warnings)
