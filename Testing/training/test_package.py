"""From a trained restorer to a package: what is declared, what is calibrated on, and what detection does with it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from safetensors.torch import save_file

from diffusion_anomaly.detection.calibration import false_alarm_ml
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.io.volume import Scan, Volume, read_mask, read_volume
from diffusion_anomaly.models.package import Bundle, open_bundle
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.preprocessing.slices import Grid, SliceStack
from Testing.training.stages import Workplace
from training.__main__ import command_line
from training.data.slices import DISEASED, HEALTHY, UNUSED
from training.package import calibrate
from training.package.build import package as build
from training.package.calibrate import CalibrationScan
from training.package.cards import MEASURES
from training.package.config import PackageConfig, Stage
from training.stages import brain_check
from training.stages.brain import BrainConfig, BrainTask
from training.stages.brain_check import LesionCheck, PaintedCheck
from training.trainer.checkpoints import CheckpointError
from training.trainer.configuration import ConfigurationError, read_yaml

SIZE = (24, 16)  # pixels of the package's grid
TEXTS = {
    "title": "A toy",
    "task": "Tests",
    "description": "Made of noise",
    "authors": "The authors",
    "copyright": "Copyright the authors",
    "license": "CC0-1.0",
    "license_file": "LICENSE",
    "data_license": "None",
    "data_source": "Random numbers",
    "intended_use": "Tests",
}


def write_scan(folder: Path, name: str, seed: int, slices: int = 8, thickness: float = 5.0) -> Path:
    """An ellipsoid of noise with its mask beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    z, y, x = np.mgrid[:slices, :20, :28] - (np.array((slices, 20, 28))[:, None, None, None] - 1) / 2.0
    brain = (z / (0.48 * slices)) ** 2 + (y / 8.0) ** 2 + (x / 12.0) ** 2 < 1
    values = np.where(brain, np.random.default_rng(seed).uniform(80.0, 120.0, brain.shape), 0.0)
    for ending, array in (("", values.astype(np.float32)), ("_brain", brain.astype(np.uint8))):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((2.0, 2.0, thickness))
        sitk.WriteImage(image, str(folder / f"{name}{ending}.nii.gz"))
    return folder / f"{name}.nii.gz"


def configure(place: Workplace, name: str, **changes: Any) -> Path:
    """A package of the stage ``name``, calibrated on two scans with one diseased slice."""
    folder = place.folder
    for number in (1, 2):
        write_scan(folder / "val", f"p{number}", number)
    rows = [f"p{p}.nii.gz,{i},{DISEASED if i == 4 else HEALTHY}" for p in (1, 2) for i in range(8)]
    (folder / "labels.csv").write_text("\n".join(["scan,slice,label", *rows]), encoding="utf-8")
    (folder / "LICENSE").write_text("Do what you like", encoding="utf-8")
    prepare = {
        "train": str(folder / "val"),
        "val": str(folder / "val"),
        "pattern": "p?.nii.gz",
        "labels": str(folder / "labels.csv"),
        "brains": "{scan}_brain.nii.gz",
        "grid": {"size": list(SIZE), "spacing": 2.0},
    }
    (folder / "prepare.yaml").write_text(yaml.safe_dump(prepare), encoding="utf-8")
    entries = {
        "name": "toy",
        "version": "0.1.0",
        "method": "restore",
        "modality": "FLAIR",
        "stages": {"restorer": {"config": str(folder / f"{name}.yaml"), "run": str(folder / name)}},
        "prepare": str(folder / "prepare.yaml"),
        "texts": TEXTS | {"license_file": str(folder / "LICENSE")},
        **changes,
    }
    path = folder / f"package-{name}.yaml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, slices_folder: Path) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("trained"), slices_folder)
    for name in ("ladder", "denoiser"):
        assert place.command("denoise", name=name) == 0
    return place


@pytest.fixture(scope="module")
def bundle(trained: Workplace) -> Bundle:
    with pytest.raises(SystemExit) as ended:
        command_line(
            [
                "package",
                str(configure(trained, "ladder", options={"heat": "residual"})),
                "--output",
                str(trained.folder / "packages"),
            ]
        )
    assert not ended.value.code
    return open_bundle(trained.folder / "packages" / "toy")


def test_a_restorers_package_is_complete_and_declares_what_was_trained(bundle: Bundle) -> None:
    verify(bundle)
    assert (bundle.method, bundle.networks) == ("restore", ("restorer",))
    assert bundle.anomaly["codec"] == {"factor": 4}
    assert bundle.anomaly["options"] == {"levels": 3, "heat": "residual"}
    assert "schedule" not in bundle.anomaly
    assert bundle.grid.size == SIZE
    assert bundle.anomaly["training"]["restorer"]["steps"] == 4
    assert "restorer | 4" in bundle.model_card


def test_scores_is_calibrated_on_the_healthy_slices_alone(trained: Workplace, bundle: Bundle) -> None:
    table = bundle.anomaly["calibration"]
    assert table["source"] == "14 healthy slices of 2 validation scans"
    plan = make_plan(Options(method="restore", model=str(bundle.path), device="cpu"))
    values = []
    for path in sorted((trained.folder / "val").glob("p?.nii.gz")):
        volume = read_volume(path)
        mask = read_mask(path.with_name(path.name.replace(".nii", "_brain.nii")), volume)
        found = Detector(plan).raw_map(volume, mask)
        healthy = np.array(found.stack.indices) != 4
        values.append(found.raw[healthy][found.stack.brain()[healthy]])
    raw = np.concatenate(values)
    assert table["voxels"] == raw.size
    # A score of 1 is what one healthy voxel in ten reaches.
    level = np.interp(1.0, table["heat"], table["raw"])
    assert (raw >= level).mean() == pytest.approx(0.1, abs=0.01)
    assert bundle.anomaly["threshold"]["source"] == "half of 14 healthy slices of 2 validation scans"


def test_networks_that_learnt_from_no_patient_are_calibrated_on_the_training_scans_too(trained: Workplace) -> None:
    entries: dict[str, Any] = {"method": "intensity", "stages": {}, "calibrate_on": ["train", "val"]}
    entries |= {"options": {"reference": 0.4}, "grid": {"size": [20, 20], "spacing": 2.0}}
    with pytest.raises(SystemExit) as ended:
        command_line(["package", str(configure(trained, "both", **entries)), "--output", str(trained.folder / "both")])
    assert not ended.value.code
    bundle = open_bundle(trained.folder / "both" / "toy")
    # Both splits are the same folder here.
    assert bundle.anomaly["calibration"]["source"] == "28 healthy slices of 4 training and validation scans"
    assert "spread" not in bundle.anomaly["calibration"]  # too few for one
    config = read_yaml(configure(trained, "both", **entries), PackageConfig)
    with pytest.raises(ValueError, match="calibrate_on: a split is named twice"):
        PackageConfig(**{**config.model_dump(), "calibrate_on": ["val", "val"]})


def test_a_package_bounds_single_scans_where_there_were_enough(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[np.ndarray]] = []
    spread = {"heat": [1, 2, 3], "upper": [0.21, 0.034, 0.0051], "scans": 12, "source": "some"}
    monkeypatch.setattr(calibrate, "spread_of_scans", lambda scans, source: given.append(scans) or spread)
    entries: dict[str, Any] = {"method": "intensity", "stages": {}, "options": {"reference": 0.4}}
    made = build(read_yaml(configure(trained, "bound", **entries), PackageConfig), tmp_path)
    verify(made)
    assert made.anomaly["calibration"]["spread"] == spread
    assert len(given[0]) == 2 and sum(map(len, given[0])) == made.anomaly["calibration"]["voxels"]
    text = "Of the 12, nine of ten have no more than 21, 3.4 and 0.51 % of their healthy voxels at scores of 1, 2 and 3"
    assert text in made.model_card


def test_the_baseline_is_packed_without_a_network_and_its_threshold_set_with_healthy_people(trained: Workplace) -> None:
    healthy = write_scan(trained.folder / "healthy", "volunteer", 7)
    entries: dict[str, Any] = {
        "method": "intensity",
        "stages": {},
        "options": {"reference": 0.4},
    }
    rule = {"kind": "mode", "low_percentile": 0.5, "mode_value": 0.4, "clip_max": 4.0}
    entries |= {"normalisation": rule, "grid": {"size": [20, 20], "spacing": 2.0}, "healthy": [str(healthy)]}
    entries |= {"false_alarm_ml": 0.4, "false_alarm_quantile": 1.0}
    with pytest.raises(SystemExit) as ended:
        command_line(
            ["package", str(configure(trained, "baseline", **entries)), "--output", str(trained.folder / "baseline")]
        )
    assert not ended.value.code
    bundle = open_bundle(trained.folder / "baseline" / "toy")
    verify(bundle)
    assert bundle.networks == () and bundle.grid.size == (20, 20)
    assert bundle.normalisation.to_dict() == rule
    assert bundle.anomaly["threshold"]["source"] == "each of 1 scan of healthy people"
    # What the default threshold leaves of that scan, and what a slightly lower one would.
    volume = read_volume(healthy)
    mask = read_mask(healthy.with_name("volunteer_brain.nii.gz"), volume)
    plan = make_plan(Options(method="intensity", model=str(bundle.path), device="cpu"))
    found = Detector(plan).raw_map(volume, mask)
    anomaly_map = plan.calibration(found.raw)
    kept, lower = (
        false_alarm_ml(anomaly_map, plan.threshold - less, found.stack.voxel_ml, 0.05) for less in (0.0, 0.01)
    )
    assert kept <= 0.4 < lower


def test_a_peak_margin_counts_when_the_threshold_is_set(trained: Workplace) -> None:
    healthy = write_scan(trained.folder / "healthy", "guest", 8)
    margin = 0.3
    entries: dict[str, Any] = {"method": "intensity", "stages": {}, "options": {"reference": 0.4}}
    entries |= {"normalisation": {"kind": "mode", "low_percentile": 0.5, "mode_value": 0.4, "clip_max": 4.0}}
    entries |= {"healthy": [str(healthy)], "false_alarm_ml": 0.4, "false_alarm_quantile": 1.0}
    made = {}
    for name, more in (("plain", {}), ("margin", {"peak_margin": margin})):
        config = read_yaml(configure(trained, name, **entries, **more), PackageConfig)
        made[name] = build(config, trained.folder / name)
        verify(made[name])
    plain, with_margin = (made[name].anomaly["threshold"] for name in ("plain", "margin"))
    assert "peak_margin" not in plain and with_margin["peak_margin"] == margin
    assert f"exceeds it by {margin} or more" in made["margin"].model_card
    assert with_margin["heat"] <= plain["heat"]
    volume = read_volume(healthy)
    mask = read_mask(healthy.with_name("guest_brain.nii.gz"), volume)
    plan = make_plan(Options(method="intensity", model=str(made["margin"].path), device="cpu"))
    found = Detector(plan).raw_map(volume, mask)
    scores = plan.calibration(found.raw)
    kept, lower = (
        false_alarm_ml(scores, plan.threshold - less, found.stack.voxel_ml, 0.05, plan.peak_margin)
        for less in (0.0, 0.01)
    )
    assert plan.peak_margin == margin and kept <= 0.4 < lower
    with pytest.raises(ValueError, match="peak_margin"):
        PackageConfig(**{**config.model_dump(), "peak_margin": -1.0})


def test_a_kill_while_scores_are_calibrated_leaves_the_verified_package(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_yaml(configure(trained, "killed", method="intensity", stages={}), PackageConfig)
    before = build(config, tmp_path).sha256
    read_end, write_end = os.pipe()

    def stands_still(*given: Any) -> Any:
        os.write(write_end, b"!")
        time.sleep(600)

    with monkeypatch.context() as patch:
        patch.setattr("training.package.build.calibrate", stands_still)
        child = os.fork()
        if child == 0:
            try:
                build(config, tmp_path)
            finally:
                os._exit(0)
    assert os.read(read_end, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    bundle = open_bundle(tmp_path / "toy")
    verify(bundle)
    assert bundle.sha256 == before
    build(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_scan_goes_through_the_package(trained: Workplace, bundle: Bundle) -> None:
    volume = read_volume(trained.folder / "val" / "p1.nii.gz")
    mask = read_mask(trained.folder / "val" / "p1_brain.nii.gz", volume)
    result = Detector(Options(method="restore", model=str(bundle.path), device="cpu", force=True))(volume, brain=mask)
    anomaly_map = sitk.GetArrayFromImage(result.anomaly_map)
    assert np.isfinite(anomaly_map).all() and anomaly_map.max() > 1.0
    assert result.threshold == bundle.anomaly["threshold"]["heat"]
    assert result.provenance["network_calls_per_slice"] == 3


def test_what_was_measured_stands_on_the_card_beside_the_baseline(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copytree(bundle.path, tmp_path / "toy")
    row = dict.fromkeys(MEASURES, 0.25) | {"patients": 7, "dice_low": 0.125, "dice_high": 0.5}
    rows = [row | {"run": "restore", "beats_intensity": "yes"}, row | {"run": "intensity", "best_dice": 0.0625}]
    table = tmp_path / "evaluation.json"
    table.write_text(json.dumps({"rows": rows, "about": {"hardware": "an abacus"}}), encoding="utf-8")
    arguments = ["describe", str(folder), str(table), "--data", "seven toys", "--run"]
    with pytest.raises(SystemExit) as ended:
        command_line([*arguments, "restore"])
    assert not ended.value.code
    described = open_bundle(folder)
    verify(described)
    quality = described.anomaly["quality"]
    assert (quality["measured on"], quality["patients"], quality["hardware"]) == ("seven toys", 7, "an abacus")
    assert quality["Dice at the stored threshold, 95 % interval"] == [0.125, 0.5]
    assert quality["best common-threshold Dice of the intensity baseline"] == 0.0625
    assert "seven toys" in described.model_card
    assert described.anomaly["calibration"] == bundle.anomaly["calibration"]
    with pytest.raises(SystemExit) as ended:
        command_line([*arguments, "guided"])
    assert ended.value.code == 2
    assert "has no run 'guided'; it has restore, intensity" in " ".join(capsys.readouterr().err.split())


def test_the_denoising_autoencoder_is_packaged_with_the_options_it_needs(trained: Workplace, tmp_path: Path) -> None:
    one_look = {"steps": 1, "heat": "residual"}
    made = build(read_yaml(configure(trained, "denoiser", options=one_look), PackageConfig), tmp_path)
    assert made.anomaly["options"] == {"levels": 1} | one_look
    verify(made)
    with pytest.raises(ModelError, match="steps is 3, more than the 1 level of corruption"):
        build(read_yaml(configure(trained, "denoiser"), PackageConfig), tmp_path)


def test_a_package_without_its_stage_is_refused_by_name(trained: Workplace) -> None:
    stage = {"restore": {"config": "restore.yaml", "run": "restore"}}
    with pytest.raises(ConfigurationError, match="stages lacks restorer, which the method restore needs"):
        read_yaml(configure(trained, "ladder", stages=stage), PackageConfig)


def test_weights_without_their_run_are_packaged_as_they_are(trained: Workplace, tmp_path: Path) -> None:
    weights = {
        name: torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).half()
        for name, value in BrainTask(read_yaml(trained.folder / "brain.yaml", BrainConfig)).network.state_dict().items()
    }
    save_file(weights, tmp_path / "weights.safetensors")
    given = {"file": str(tmp_path / "weights.safetensors"), "steps": 12, "minutes": 3.4, "hardware": "an abacus"}
    stage = {"config": str(trained.folder / "brain.yaml"), "weights": given}
    texts = TEXTS | {"license_file": str(trained.folder / "LICENSE"), "changelog": {"0.1.0": "the first"}}
    changes: dict[str, Any] = {"method": "brain", "stages": {"brain": stage}, "texts": texts}
    path = configure(trained, "ladder", **changes)
    made = build(read_yaml(path, PackageConfig), tmp_path)
    verify(made)
    assert made.anomaly["training"]["brain"] == {"steps": 12, "minutes": 3.4, "hardware": "an abacus"}
    assert "| brain | 12 | 3.4 | an abacus |" in made.model_card
    assert json.loads((made.path / "configs" / "metadata.json").read_text(encoding="utf-8"))["changelog"] == {
        "0.1.0": "the first"
    }
    for name, value in made.weights("brain").items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, check_dtype=False)


def test_the_mean_of_two_runs_is_packed(trained: Workplace, tmp_path: Path) -> None:
    state = torch.load(trained.folder / "ladder" / "checkpoint.pt", weights_only=True)
    for name, value in state["average"].items():
        if name.startswith("module.") and value.is_floating_point():
            value.mul_(3.0)
    (tmp_path / "other").mkdir()
    torch.save(state, tmp_path / "other" / "checkpoint.pt")
    stage = {"config": str(trained.folder / "ladder.yaml"), "run": str(trained.folder / "ladder")}
    alone, _ = Stage.model_validate(stage).load()
    mean, facts = Stage.model_validate({**stage, "mean_with": str(tmp_path / "other")}).load()
    assert facts["steps"] == 4
    for name, value in alone.items():
        torch.testing.assert_close(mean[name], 2.0 * value)
    state["average"].pop(next(name for name in state["average"] if name.startswith("module.")))
    torch.save(state, tmp_path / "other" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="another network"):
        Stage.model_validate({**stage, "mean_with": str(tmp_path / "other")}).load()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"config": "restore.yaml"}, "give either 'run' or 'weights'"),
        (
            {"config": "a", "run": "b", "weights": {"file": "c", "steps": 1, "minutes": 1, "hardware": "d"}},
            "give either",
        ),
        (
            {"config": "a", "mean_with": "b", "weights": {"file": "c", "steps": 1, "minutes": 1, "hardware": "d"}},
            "'mean_with' needs 'run'",
        ),
    ],
)
def test_a_stage_has_a_run_or_weights(trained: Workplace, stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_yaml(configure(trained, "ladder", stages={"restorer": stage}), PackageConfig)


class Oracle:
    """Stands in for ``BrainFinder``: brain is what is bright."""

    def __init__(self, level: float) -> None:
        self.level = level

    def __call__(self, volume: Volume) -> sitk.Image:
        if self.level > 1e6:
            raise InputError("No brain was found.", "Choose another scan.")
        return sitk.Cast(volume.image > self.level, sitk.sitkUInt8)


def test_the_share_of_lesion_outside_the_mask_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, outside in enumerate((0, 1, 3)):
        scan = np.zeros((6, 8, 8), np.float32)
        scan[1:5, 1:7, 1:7] = 100.0
        lesion = np.zeros(scan.shape, np.uint8)
        lesion[2, 2, : 1 + outside] = 1  # the first voxel of the row is outside the brain already
        lesion[2, 2, 0], lesion[3, 3, 3:7] = outside > 0, 1
        lesion[2, 0, :outside] = outside > 0
        for ending, array in (("flair", scan), ("mask", lesion)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"p{number}_{ending}.nii.gz"))
    check = LesionCheck(name="toys", folders=[tmp_path], scan="*_flair.nii.gz", lesion="*_mask.nii.gz")
    monkeypatch.setattr(brain_check, "BrainFinder", lambda bundle: Oracle(50.0))
    lost = check.lost(None)  # type: ignore[arg-type]
    assert lost == pytest.approx({"p0": 0.0, "p1": 2.0 / 7.0, "p2": 4.0 / 11.0})
    monkeypatch.setattr(brain_check, "BrainFinder", lambda bundle: Oracle(1e9))
    rows = check.measure(None)  # type: ignore[arg-type]
    assert rows["lesion outside the mask in %, toys (3 scans), worst"] == 100.0


def test_heads_are_painted_for_the_check_from_the_label_maps_kept_apart(trained: Workplace) -> None:
    check = PaintedCheck(name="toys", labels=trained.folder / "heads.npz", heads=3, seed=4)
    heads = list(check.paint())
    assert len(heads) == 3
    for (volume, brain), (again, _) in zip(heads, check.paint(), strict=True):
        assert volume.image.GetSpacing() == (2.0, 2.0, 2.0)
        assert brain.shape == volume.image.GetSize()[::-1]
        assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(again.image))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, [True, True, True]),
        ({}, [True, True, True]),
        ({4: DISEASED}, [True, False, True]),
        ({2: UNUSED, 8: DISEASED}, [False, True, False]),
        (dict.fromkeys(range(9), UNUSED), [False, False, False]),
    ],
)
def test_a_slab_of_a_thin_scan_is_healthy_when_all_its_slices_are(
    tmp_path: Path, labels: dict[int, int] | None, expected: list[bool]
) -> None:
    path = write_scan(tmp_path, "thin", 0, slices=9, thickness=1.0)
    volume = read_volume(path)
    brain = sitk.Cast(volume.image > -1.0, sitk.sitkUInt8)
    stack = SliceStack([volume.image], Grid(SIZE, 2.0, max_slice_spacing=3.0), brain)
    assert stack.indices == (1, 4, 7)
    of_scan = None if labels is None else {(path.name, i): labels.get(i, HEALTHY) for i in range(9)}
    assert CalibrationScan(Scan({"FLAIR": volume}), brain, path.name, of_scan).healthy(stack).tolist() == expected


def test_a_network_of_marked_lesions_is_packed_as_a_localiser_whose_card_says_so(
    trained: Workplace, tmp_path: Path
) -> None:
    assert trained.command("segment") == 0
    stages = {"localiser": {"config": str(trained.folder / "segment.yaml"), "run": str(trained.folder / "segment")}}
    texts = TEXTS | {"license_file": str(trained.folder / "LICENSE"), "data_source": "Masks of 64 patients"}
    grid = {"size": [64, 64], "spacing": 1.0, "neighbours": 1}
    changes: dict[str, Any] = {"method": "localise", "stages": stages, "grid": grid, "texts": texts}
    made = build(read_yaml(configure(trained, "segment", **changes), PackageConfig), tmp_path)
    verify(made)
    assert (made.method, made.networks, made.anomaly["codec"]) == ("localise", ("localiser",), {"factor": 2})
    assert "| localiser | 4 |" in made.model_card and "Masks of 64 patients" in made.model_card
    for text in (made.model_card, json.dumps(made.metadata)):
        assert "synthetic" not in text and "made by a computer" not in text
    volume = read_volume(trained.folder / "val" / "p1.nii.gz")
    mask = read_mask(trained.folder / "val" / "p1_brain.nii.gz", volume)
    result = Detector(Options(method="localise", model=str(made.path), device="cpu", force=True))(volume, brain=mask)
    assert np.isfinite(sitk.GetArrayFromImage(result.anomaly_map)).all()
    assert result.provenance["network_calls_per_slice"] == 1
