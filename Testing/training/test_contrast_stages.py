"""Stages that learn from slices of several contrasts, and the package that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import Scan, read_mask, read_volume
from Testing.training.fakes import random_slices
from Testing.training.stages import Workplace
from Testing.training.test_package import configure, write_scan
from training.__main__ import command_line
from training.data.slices import Slices
from training.package.config import PackageConfig
from training.stages.codec import CodecConfig, load_codec
from training.trainer.configuration import ConfigurationError, read_yaml

TWO = {"in_channels": 32, "out_channels": 32}  # 4 x 4 pixels of two contrasts
CHANGES: dict[str, dict[str, Any]] = {
    "pixels": TWO,
    "classifier": {"in_channels": 32},
    "denoiser": TWO,
    "autoencoder": {"in_channels": 8, "out_channels": 8},
    "normal": {"in_channels": 8, "out_channels": 8},
    "codec": {"in_channels": 2, "out_channels": 2},
}


@pytest.fixture(scope="module")
def two_contrasts(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("contrasts")
    for number, split in enumerate(("train", "val")):
        random_slices(24, 16, number, contrasts=2).save(folder / f"{split}.npz")
    place = Workplace(folder, folder)
    for name, changes in CHANGES.items():
        place.entries[name]["network"] |= changes
    return place


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("diffusion", "pixels"),
        ("classifier", "classifier"),
        ("denoise", "denoiser"),
        ("codec", "autoencoder"),
        ("codec", "normal"),
        ("codec", "codec"),
    ],
)
def test_a_stage_learns_from_two_contrasts(two_contrasts: Workplace, stage: str, name: str) -> None:
    assert two_contrasts.command(stage, name=name) == 0


def test_the_latents_of_two_contrasts_are_learnt_too(two_contrasts: Workplace) -> None:
    assert two_contrasts.command("codec") == 0 and two_contrasts.command("diffusion") == 0
    codec, _ = load_codec(read_yaml(two_contrasts.folder / "codec.yaml", CodecConfig), two_contrasts.folder / "codec")
    images = Slices.load(two_contrasts.folder / "val.npz").images
    latent = codec.encode(torch.from_numpy(images / 127.5 - 1.0).float())
    assert codec.decode(latent).shape == images.shape


@pytest.mark.parametrize(
    ("stage", "name", "message"),
    [
        ("diffusion", "pixels", "network.in_channels is 32, but these slices and this codec need 16"),
        ("classifier", "classifier", "network.in_channels is 32, but these slices and this codec need 16"),
        ("denoise", "denoiser", "network.in_channels is 32, but 1 contrast, folded, need 16"),
        ("codec", "codec", "slices have 1 contrast, but the codec's network.in_channels is 2. With fold 1, 1 of them"),
    ],
)
def test_a_network_for_other_contrasts_than_the_slices_have_is_refused(
    two_contrasts: Workplace, slices_folder: Path, tmp_path: Path, stage: str, name: str, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place = Workplace(tmp_path, slices_folder)
    place.entries[name]["network"] |= CHANGES[name]
    assert place.command(stage, name=name) != 0
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_package_of_two_contrasts_is_calibrated_on_both_and_asks_for_both(two_contrasts: Workplace) -> None:
    folder = two_contrasts.folder
    assert two_contrasts.command("denoise", name="denoiser") == 0
    path = configure(two_contrasts, "denoiser", options={"steps": 1, "heat": "residual"}, modality="FLAIR + T1")
    prepare = yaml.safe_load((folder / "prepare.yaml").read_text(encoding="utf-8"))
    others = {"T1": {"pattern": "p*_t1.nii.gz"}}
    prepare |= {"pattern": "p*_flair.nii.gz", "contrast": "FLAIR", "other_contrasts": others}
    rows = [f"p{p}_flair.nii.gz,{i},{int(i == 4)}" for p in (1, 2) for i in range(8)]
    (folder / "labels.csv").write_text("\n".join(["scan,slice,label", *rows]), encoding="utf-8")
    (folder / "prepare.yaml").write_text(yaml.safe_dump(prepare), encoding="utf-8")
    for number in (1, 2):
        flair = sitk.ReadImage(str(write_scan(folder / "val", f"p{number}_flair", number)))
        sitk.WriteImage(300.0 - flair, str(folder / "val" / f"p{number}_t1.nii.gz"))
    with pytest.raises(SystemExit) as ended:
        command_line(["package", str(path), "--output", str(folder / "packages")])
    assert not ended.value.code
    detector = Detector(Options(method="restore", model=str(folder / "packages" / "toy"), device="cpu"))
    assert detector.plan.channels == ("FLAIR", "T1")
    assert detector.plan.bundle.anomaly["calibration"]["source"] == "14 healthy slices of 2 validation scans"
    flair, t1 = (read_volume(folder / "val" / f"p1_{name}.nii.gz") for name in ("flair", "t1"))
    brain = read_mask(folder / "val" / "p1_flair_brain.nii.gz", flair)
    found = detector.raw_map(Scan({"T1": t1, "FLAIR": flair}), brain)
    assert np.isfinite(found.raw).all()
    with pytest.raises(InputError, match="the model toy knows FLAIR, T1"):
        detector.raw_map(flair, brain)
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) | {"healthy": ["volunteer.nii.gz"]}
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="scans of one contrast cannot set the threshold of several"):
        read_yaml(path, PackageConfig)
