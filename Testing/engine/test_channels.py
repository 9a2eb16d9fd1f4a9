"""A scan of several contrasts: each by its name, on one grid, in the model's order, and one is no special case."""

from __future__ import annotations

import json
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
from diffusion_anomaly.detection.inference import make_batch
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.io.volume import Scan, Volume
from diffusion_anomaly.methods.base import SliceBatch, residual
from diffusion_anomaly.models.networks import Codec, Model
from diffusion_anomaly.models.package import Bundle, open_bundle
from diffusion_anomaly.models.schedule import Schedule
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.preprocessing.intensity import IntensityScale
from diffusion_anomaly.preprocessing.slices import Grid, SliceStack
from diffusion_anomaly.registry import METHODS, RestoreOptions
from diffusion_anomaly.results.result import Result
from phantom import array

CHANNELS = ["FLAIR", "T1"]
FOLDED = 2 * packages.CHANNELS
LOCALISER = {**packages.LOCALISER, "in_channels": 2 * 12}
RESTORER = {**packages.RESTORER, "in_channels": FOLDED, "out_channels": FOLDED + packages.CHANNELS}
DIFFUSION = {**packages.DIFFUSION, "in_channels": FOLDED, "out_channels": FOLDED}
CLASSIFIER = {**packages.CLASSIFIER, "in_channels": FOLDED}
NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "localise": {"localiser": LOCALISER},
    "unsupervised": {"diffusion": DIFFUSION},
    "guided": {"diffusion": DIFFUSION, "classifier": CLASSIFIER},
    "restore": {"restorer": RESTORER},
    "intensity": {},
}
DECLARED = {
    "localise": packages.LOCALISE,
    "unsupervised": packages.UNSUPERVISED,
    "guided": packages.GUIDED,
    "restore": packages.RESTORE,
    "intensity": packages.INTENSITY,
}
RECONSTRUCTING = ("unsupervised", "guided", "restore")


def package(
    place: Path,
    method: str,
    networks: dict[str, dict[str, Any]] | None = None,
    weights: dict[str, dict[str, Tensor]] | None = None,
    **anomaly: Any,
) -> Bundle:
    """A package of two channels unless told otherwise; with random weights unless they are given."""
    declared = {**DECLARED[method], "channels": CHANNELS, **anomaly}
    return packages.write(place, method, networks or NETWORKS[method], declared, weights)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("models")
    return {method: package(folder / f"two-{method}", method) for method in METHODS}


@pytest.fixture(scope="module")
def other_contrast(flair_like_volume: Volume) -> Volume:
    """The same head with its contrast turned over and its own noise, in other units."""
    values = array(flair_like_volume.image)
    noise = np.random.default_rng(1).normal(0, 20, values.shape)
    turned = np.where(values > 0, 2000.0 - 7.0 * values + noise, 0.0).astype(np.float32)
    image = phantom.on_grid(turned, flair_like_volume.image)
    return Volume(image, "/data/other.nii.gz", "1" * 64, 3, 0)


@pytest.fixture(scope="module")
def scan(flair_like_volume: Volume, other_contrast: Volume) -> Scan:
    return Scan({"FLAIR": flair_like_volume, "T1": other_contrast})


def detector(bundle: Bundle, **changes: Any) -> Detector:
    return Detector(Options(bundle.method, str(bundle.path), device="cpu", precision="float32", **changes))


def images_of(result: Result) -> list[np.ndarray]:
    made = (result.reconstruction or {}).values()
    return [array(image) for image in (result.anomaly_map, result.mask, *made)]


# --- Every method


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_two_channels_and_sees_both(
    method: str, bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    verify(open_bundle(bundles[method].path))
    ready = detector(bundles[method])
    result = ready(scan, brain=flair_like_brain)
    anomaly_map = array(result.anomaly_map)
    assert phantom.geometry(result.anomaly_map) == phantom.geometry(scan.reference.image)
    assert np.isfinite(anomaly_map).all() and anomaly_map.max() > 0
    assert not anomaly_map[array(flair_like_brain) == 0].any()
    plain = ready.raw_map(scan, flair_like_brain).raw
    for name, volume in scan.channels.items():
        inside = array(flair_like_brain) > 0
        values = array(volume.image)
        values[inside] = values[inside][::-1]  # which leaves the channel's scale as it was
        changed = replace(volume, image=phantom.on_grid(values, volume.image))
        other = ready.raw_map(Scan({**scan.channels, name: changed}), flair_like_brain).raw
        assert np.abs(other - plain).max() > 1e-3 * plain.max(), f"{name} has no say"


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_channels_in_a_scan_does_not_matter(
    method: str, bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    turned = Scan(dict(reversed(scan.channels.items())))
    assert list(turned.channels) == ["T1", "FLAIR"]
    ready = detector(bundles[method], keep_reconstruction=True)
    straight, other = (ready(one, brain=flair_like_brain) for one in (scan, turned))
    for image, same in zip(images_of(straight), images_of(other), strict=True):
        assert np.array_equal(image, same)
    assert list(other.provenance["channels"]) == CHANNELS
    assert other.provenance["input"] == straight.provenance["input"]
    assert list(other.reconstruction or ()) == list(straight.reconstruction or ())


@pytest.mark.parametrize("method", METHODS)
def test_one_named_channel_is_the_single_volume_bit_for_bit(
    method: str, tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    unnamed = getattr(packages, method)(tmp_path / "unnamed")
    named = getattr(packages, method)(tmp_path / "named", channels=["FLAIR"])
    plain = detector(unnamed, keep_reconstruction=True)(flair_like_volume, brain=flair_like_brain)
    assert "channels" not in plain.provenance
    for bundle in (unnamed, named):
        result = detector(bundle, keep_reconstruction=True)(Scan({"FLAIR": flair_like_volume}), brain=flair_like_brain)
        for image, same in zip(images_of(plain), images_of(result), strict=True):
            assert np.array_equal(image, same)


# --- Which channel is which


def test_the_baselines_scores_is_the_sum_of_its_channels(
    tmp_path: Path, bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    single = package(tmp_path / "single", "intensity", channels=None)
    parts = [detector(single).raw_map(volume, flair_like_brain).raw for volume in scan.channels.values()]
    both = detector(bundles["intensity"]).raw_map(scan, flair_like_brain).raw
    assert min(part.max() for part in parts) > 0.1
    np.testing.assert_allclose(both, parts[0] + parts[1], atol=1e-6)


def spread(weight: Tensor, slices: int, folded: int, channel: int) -> Tensor:
    """Weights of a first convolution that looks at one of two channels of each slice, and not at the other."""
    wide = torch.zeros(weight.shape[0], slices, 2, folded, *weight.shape[2:], dtype=weight.dtype)
    wide[:, :, channel] = weight.unflatten(1, (slices, folded))
    return wide.flatten(1, 3)


@pytest.mark.parametrize("channel", [0, 1], ids=CHANNELS)
def test_a_localiser_that_looks_at_one_channel_is_the_localiser_of_that_channel(
    channel: int, tmp_path: Path, scan: Scan, flair_like_brain: sitk.Image
) -> None:
    """Of a slice and its two neighbours each: a network is shown slice by slice, and of each channel by channel."""
    single = packages.localise(tmp_path / "single")
    weights = single.weights("localiser")
    first = "conv_0.conv_0.conv.weight"
    weights[first] = spread(weights[first], 3, 4, channel)
    double = package(tmp_path / "double", "localise", weights={"localiser": weights})
    expected = detector(single).raw_map(scan.channels[CHANNELS[channel]], flair_like_brain).raw
    found = detector(double).raw_map(scan, flair_like_brain).raw
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_slabs_are_slice_by_slice_and_of_each_slice_channel_by_channel(scan: Scan) -> None:
    whole = phantom.on_grid(np.ones(scan.reference.image.GetSize()[::-1], np.uint8), scan.reference.image)
    stack = SliceStack(scan.images, Grid((64, 72), 2.4, 5.0, neighbours=2), whole)
    scales = [IntensityScale(0.0, 300.0, 1.0, 1.0), IntensityScale(0.0, 3000.0, 1.0, 1.0)]
    batch = make_batch(stack, scales, 3, 7, 0)
    assert batch.images.shape == (4, 2, 72, 64) and batch.slabs is not None and batch.slabs.shape == (4, 10, 72, 64)
    for row, index in enumerate(range(3, 7)):
        for place, other in enumerate(range(index - 2, index + 3)):
            for channel, (image, top) in enumerate(zip(scan.images, (300.0, 3000.0), strict=True)):
                expected = np.clip(array(image)[other] / top, 0.0, 1.0)
                np.testing.assert_allclose(batch.slabs[row, 2 * place + channel], expected, atol=1e-5)
    assert torch.equal(batch.images, batch.slabs[:, 4:6])


class KnowingBoth(nn.Module):
    """A restorer that knows both healthy channels, and gives one logit for them together."""

    def __init__(self, healthy: Tensor, logit: float) -> None:
        super().__init__()
        self.healthy, self.logit = 2.0 * healthy - 1.0, logit

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        logit = torch.full_like(x[:, :1], self.logit)
        return torch.cat([self.healthy - x, logit], dim=1)


@pytest.mark.parametrize(("side", "flair", "t1"), [("both", 0.3, 0.2), ("bright", 0.3, 0.0), ("dark", 0.0, 0.2)])
def test_a_restorers_scores_is_the_sum_of_what_it_changed_times_the_one_probability(
    side: str, flair: float, t1: float
) -> None:
    healthy = torch.stack([torch.full((8, 8), 0.4), torch.full((8, 8), 0.6)])[None]
    images = healthy.clone()
    images[:, 0, 2, 3] += 0.3
    images[:, 1, 2, 3] -= 0.2
    images[:, 1, 5, 6] -= 0.2
    batch = SliceBatch(images, torch.ones(1, 1, 8, 8, dtype=torch.bool), [torch.Generator()])
    model = Model(Codec(None, 1), None, Schedule.linear(4), restorer=KnowingBoth(healthy, float(np.log(3.0))))
    options = RestoreOptions(steps=2, levels=4, heat="product", side=side)
    result = METHODS["restore"].run(batch, model, options, lambda calls: None)
    expected = torch.zeros(1, 8, 8)
    expected[0, 2, 3] = 0.75 * (flair + t1)
    expected[0, 5, 6] = 0.75 * t1
    torch.testing.assert_close(result.anomaly_map, expected, rtol=0, atol=1e-6)
    assert result.reconstruction is not None
    torch.testing.assert_close(result.reconstruction, healthy, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["intensity", "localise", "restore"])
def test_each_channel_has_units_of_its_own(
    method: str, bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    ready = detector(bundles[method])
    plain = ready.raw_map(scan, flair_like_brain).raw
    other = scan.channels["T1"]
    image = phantom.on_grid(array(other.image) * np.float32(0.25) + np.float32(16.0), other.image)
    found = ready.raw_map(Scan({**scan.channels, "T1": replace(other, image=image)}), flair_like_brain).raw
    # The scale by the mode is a histogram's, whose bins half a per cent wide fall otherwise in other units.
    np.testing.assert_allclose(found, plain, atol=0.005 * max(1.0, float(plain.max())))


# --- What is refused


def test_a_missing_channel_is_named(bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image) -> None:
    ready = detector(bundles["intensity"])
    for given in (Scan({"FLAIR": scan.channels["FLAIR"]}), scan.channels["FLAIR"]):
        with pytest.raises(InputError, match=r"channels FLAIR; the model two-intensity knows FLAIR, T1") as caught:
            ready(given, brain=flair_like_brain)
        assert "Give each of them, by its name" in caught.value.hint


def test_an_unknown_channel_is_named(bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image) -> None:
    ready = detector(bundles["intensity"])
    more = Scan({**scan.channels, "T2": scan.channels["T1"]})
    with pytest.raises(InputError, match=r"channels FLAIR, T1, T2; the model two-intensity knows FLAIR, T1") as caught:
        ready(more, brain=flair_like_brain)
    assert "Leave the others out" in caught.value.hint
    misnamed = Scan({"FLAIR": scan.channels["FLAIR"], "t1": scan.channels["T1"]})
    with pytest.raises(InputError, match=r"channels FLAIR, t1; .* knows FLAIR, T1") as caught:
        ready(misnamed, brain=flair_like_brain)
    assert "by its name" in caught.value.hint


def test_a_channel_on_another_grid_is_named_with_both_grids(scan: Scan) -> None:
    """A patient who was moved, or another voxel size, is no scan of one grid."""
    there = scan.channels["T1"]
    shifted = sitk.Image(there.image)
    shifted.SetOrigin([edge + 1.0 for edge in shifted.GetOrigin()])
    for image in (shifted, there.image[:, :, 1:]):
        with pytest.raises(InputError, match=r"channel T1 has another grid than FLAIR.*64x72x") as caught:
            Scan({"FLAIR": scan.channels["FLAIR"], "T1": replace(there, image=image)})
        assert "Resample" in caught.value.hint


def test_a_scan_without_a_channel_is_refused() -> None:
    with pytest.raises(InputError, match="has no channel"):
        Scan({})


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a localiser of one channel": (
        lambda place: package(place, "localise", {"localiser": packages.LOCALISER}),
        r"localiser.json has 12 channels in and 4 out; the codec's factor 2 needs 24 in, and 4 out",
    ),
    "a restorer with logits for each channel": (
        lambda place: package(place, "restore", {"restorer": {**RESTORER, "out_channels": 4 * packages.CHANNELS}}),
        r"restorer.json has 32 channels in and 64 out; the codec's factor 4 needs 32 in, and 32 or 48 out",
    ),
    "a diffusion model of one channel": (
        lambda place: package(place, "unsupervised", {"diffusion": packages.DIFFUSION}),
        r"diffusion.json has 16 channels in; 2 channels of a slice, folded, are 32",
    ),
    "a classifier of one channel": (
        lambda place: package(place, "guided", {"diffusion": DIFFUSION, "classifier": packages.CLASSIFIER}),
        r"classifier.json has 16 channels in; 2 channels of a slice, folded, are 32",
    ),
    "networks of two channels for one": (
        lambda place: package(place, "guided", channels=["FLAIR"]),
        r"diffusion.json has 32 channels in; 1 channel of a slice, folded, are 16",
    ),
    "one channel twice": (
        lambda place: package(place, "intensity", channels=["T1", "T1"]),
        r"anomaly.json at channels: .* has non-unique elements",
    ),
    "channels whose files would have one name": (
        lambda place: package(place, "intensity", channels=["T1 c", "t1_C"]),
        r"channels 'T1 c' and 't1_C', whose files would have one name",
    ),
    "no channel": (lambda place: package(place, "intensity", channels=[]), r"anomaly.json at channels: "),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_package_whose_networks_take_other_channels_is_not_written(tmp_path: Path, name: str) -> None:
    write, message = UNFIT[name]
    with pytest.raises(ModelError, match=message) as caught:
        write(tmp_path / "toy")
    assert caught.value.hint
    assert not (tmp_path / "toy").exists()


def test_a_packages_metadata_counts_its_channels(bundles: dict[str, Bundle]) -> None:
    described = {method: bundle.metadata["network_data_format"] for method, bundle in bundles.items()}
    assert described["intensity"]["inputs"]["image"]["num_channels"] == 2
    assert described["intensity"]["outputs"]["pred"]["num_channels"] == 1
    assert described["localise"]["inputs"]["image"]["num_channels"] == 24
    assert described["guided"]["inputs"]["latent"]["num_channels"] == FOLDED


# --- A side for each channel


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("both", 0.3 + 0.2 + 0.1),
        ("bright", 0.2 + 0.1),
        ("bright both dark", 0.2 + 0.3),
        ("both none none", 0.2),
        ("none dark bright", 0.3 + 0.1),
    ],
)
def test_each_channel_counts_on_its_own_side(side: str, expected: float) -> None:
    images = torch.full((1, 3, 2, 2), 0.5)
    healthy = torch.tensor([0.3, 0.8, 0.4]).view(1, 3, 1, 1).expand_as(images)
    torch.testing.assert_close(residual(images, healthy, side), torch.full((1, 2, 2), expected))


@pytest.mark.parametrize("method", ["guided", "restore", "unsupervised", "intensity"])
def test_a_channel_that_does_not_count_is_left_out_of_the_difference_alone(
    method: str, bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    heat = {"heat": "residual"} if method == "restore" else {}
    found = {}
    for side in ("both", "both none", "none both"):
        ready = detector(bundles[method], overrides={"side": side, **heat})
        stack, scales = ready.slices(scan, flair_like_brain)
        batch = make_batch(stack, scales, 8, 10, seed=0)
        found[side] = ready.plan.method.run(batch, ready.model, ready.plan.method_options, lambda calls: None)
    parts = [found[side].anomaly_map for side in ("both none", "none both")]
    assert all(part.max() > 0 for part in parts)
    torch.testing.assert_close(sum(parts), found["both"].anomaly_map)


@pytest.mark.parametrize("side", ["bright dark none", "bright dark dark dark"])
def test_words_for_other_channels_than_the_model_has_are_refused_before_a_scan_is_read(
    side: str, bundles: dict[str, Bundle]
) -> None:
    count = len(side.split())
    with pytest.raises(InputError, match=f"side is '{side}', {count} words for 2 channels.*one for each"):
        detector(bundles["guided"], overrides={"side": side})
    with pytest.raises(InputError, match="2 words for 1 channel"):
        Detector(Options("intensity", overrides={"side": "bright dark"}))


# --- Results


@pytest.mark.parametrize("method", RECONSTRUCTING)
def test_there_is_one_reconstruction_a_channel_in_its_own_units_and_one_file(
    method: str, tmp_path: Path, bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    result = detector(bundles[method], keep_reconstruction=True)(scan, brain=flair_like_brain)
    assert result.reconstruction is not None and list(result.reconstruction) == CHANNELS
    inside = array(flair_like_brain) > 0
    for name, image in result.reconstruction.items():
        values, reconstruction = array(scan.channels[name].image), array(image)
        assert phantom.geometry(image) == phantom.geometry(scan.reference.image)
        assert np.array_equal(reconstruction[~inside], values[~inside])
        changed = inside & (reconstruction != values)
        assert changed.sum() > 0.9 * inside.sum()
        low, high = np.percentile(values[inside], (5, 75))  # the package's normalisation: these become 0 and 0.5
        slack = 1e-3 * (high - low)
        assert (
            low - slack <= reconstruction[changed].min()
            and reconstruction[changed].max() <= low + 2 * (high - low) + slack
        )
    files = result.save(tmp_path / "results")
    assert "healed" not in files
    for name in CHANNELS:
        path = files[f"healed_{name}"]
        assert path.name == f"healed_{name}.nii.gz"
        assert np.array_equal(array(sitk.ReadImage(str(path))), array(result.reconstruction[name]))


def test_provenance_tells_of_each_channel_and_hides_names_where_asked(
    tmp_path: Path, bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    for anonymous in (False, True):
        result = detector(bundles["intensity"], anonymous=anonymous)(scan, brain=flair_like_brain)
        written = json.loads(result.save(tmp_path / str(anonymous))["provenance"].read_text(encoding="utf-8"))
        told = written["channels"]
        assert list(told) == CHANNELS
        assert [told[name]["sha256"] for name in CHANNELS] == ["0" * 64, "1" * 64]
        assert told["T1"]["path"] == ("" if anonymous else "other.nii.gz")
        assert ("other.nii.gz" in json.dumps(written)) != anonymous


def test_a_channel_of_one_value_leaves_the_others_to_be_looked_at(
    bundles: dict[str, Bundle], scan: Scan, flair_like_brain: sitk.Image
) -> None:
    ready = detector(bundles["intensity"])
    flat = {
        name: replace(volume, image=phantom.on_grid(np.full_like(array(volume.image), 5.0), volume.image))
        for name, volume in scan.channels.items()
    }
    one = ready(Scan({**scan.channels, "T1": flat["T1"]}), brain=flair_like_brain)
    assert one.findings
    neither = ready(Scan(flat), brain=flair_like_brain)
    assert not neither.findings and not array(neither.anomaly_map).any()
