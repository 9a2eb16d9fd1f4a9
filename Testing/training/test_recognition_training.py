"""The recognition network's scans, painted and real, and a training of it in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from diffusion_anomaly.detection.recognition_network import CHANNELS, KINDS, POSES, recognition_input
from training.data.contrasts import NO_POSE, draw_scans
from training.data.drawn_scans import DrawnScans, DrawScansConfig
from training.data.drawn_scans import draw_scans as draw_to_folder
from training.data.head_maps import BRAIN_BIT, HeadMaps
from training.data.scan_sets import ScanSet
from training.data.synthesis import SynthesisConfig
from training.data.tissues import TISSUES
from training.data.windows import Windows
from training.stages.recognition import RecognitionConfig, RecognitionTask
from training.trainer.configuration import ConfigurationError
from training.trainer.loop import Trainer

WINDOW = (32, 32, 32)
SIZE = 44


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of 2 mm: skin, skull, fluid, cortex, white matter, ventricle."""
    places = np.indices((SIZE,) * 3) - (SIZE - 1) / 2
    distance = np.sqrt((places**2).sum(0))
    tissue = np.zeros((SIZE,) * 3, np.uint8)
    shells = (("skin", 21), ("skull", 19), ("fluid", 17), ("cortex", 15), ("white matter", 11), ("ventricle", 4))
    for name, radius in shells:
        tissue[distance < radius] = TISSUES[name]
    tissue[distance < 17] |= BRAIN_BIT
    path = tmp_path_factory.mktemp("labels") / "heads.npz"
    shapes, centres = np.array([[SIZE] * 3] * 3), np.full((3, 3), (SIZE - 1) / 2)
    np.savez(path, labels=np.tile(tissue.ravel(), 3), shapes=shapes, centres=centres)
    return path


STILL = SynthesisConfig(
    shift=(0, 0, 0),
    bend_share=0,
    lesion_share=0,
    stripped_share=0,
    bias_share=0,
    gamma_share=0,
    noise_share=0,
    cut_share=0,
)


def drawn(labels: Path, config: SynthesisConfig, size: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return draw_scans(HeadMaps.load(labels), config, torch.Generator().manual_seed(seed), size, WINDOW)


def test_contrasts_have_the_order_of_tissues_that_their_name_says(labels: Path) -> None:
    image, brain, kind, _ = drawn(labels, STILL, 240)
    places = torch.stack(torch.meshgrid(*[torch.arange(32) - 15.5] * 3, indexing="ij"))
    distance = (places**2).sum(0).sqrt() * 1.5  # voxels of the map
    means = {}
    for name, low, high in (("fluid", 0, 2), ("white", 6.5, 9.5), ("grey", 12, 14)):
        shell = (distance >= low) & (distance < high)
        means[name] = torch.stack([one[shell].mean() for one in image])
    for name, first, second in (
        *(("FLAIR", "grey", "fluid"), ("FLAIR", "white", "fluid"), ("T1", "white", "grey"), ("T1", "grey", "fluid")),
        *(("T2", "fluid", "grey"), ("T2", "grey", "white"), ("diffusion-weighted", "white", "fluid")),
    ):
        these = kind == KINDS.index(name)
        assert these.sum() >= 5
        assert (means[first] > means[second])[these].float().mean() >= 0.8, (name, first, second)
    assert brain.flatten(1).any(1)[kind != KINDS.index("no brain")].all()


def test_the_same_seed_draws_the_same_scans_and_poses_are_drawn(labels: Path) -> None:
    first, second = (drawn(labels, SynthesisConfig(), 40, seed=3) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    kind, pose = drawn(labels, STILL, 200)[2:]
    assert set(pose.tolist()) == {NO_POSE, *range(len(POSES))}
    assert (pose[kind == KINDS.index("no brain")] == NO_POSE).all()
    assert 0.6 < (pose[pose != NO_POSE] == 0).float().mean() < 0.95


def test_what_the_network_reads_does_not_depend_on_unit_and_zero(labels: Path) -> None:
    image, brain, _, _ = drawn(labels, SynthesisConfig(), 6)
    plain, other = recognition_input(image, brain), recognition_input(250.0 * image - 1000.0, brain)
    assert plain.shape == (6, CHANNELS, 16, 16, 16)
    assert (plain - other).abs().max() < 1e-3


def test_drawn_scans_are_kept_mirrored_and_learnt_from(labels: Path, tmp_path: Path) -> None:
    image, brain, kind, _ = drawn(labels, STILL, 24)
    real = tmp_path / "windows.npz"
    top = image.flatten(1).amax(1)[:, None, None, None].clamp_min(1e-6)
    np.savez(real, images=(image / top).numpy().astype(np.float16), brains=brain.numpy(), kinds=kind.numpy())
    settings = {"labels": labels, "heads": [0, 1, 2], "window": WINDOW}
    draw_to_folder(DrawScansConfig(**settings, painted=20), tmp_path / "painted")
    draw_to_folder(DrawScansConfig(**settings, painted=0, real=20, windows=real), tmp_path / "real")
    scans = DrawnScans.load(tmp_path / "real")
    assert len(scans) == 20 and len(Windows.load(real).kinds) == 24
    plain = scans.batch(np.arange(4))["inputs"]
    mirrored = scans.batch(np.arange(4), mirrored=True)["inputs"]
    unfolded = plain.unflatten(1, (3, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(4, 3, *WINDOW)
    other = mirrored.unflatten(1, (3, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(4, 3, *WINDOW)
    assert torch.equal(unfolded.flip(2), other)
    config = RecognitionConfig.model_validate(
        {
            "scans": [tmp_path / "painted", tmp_path / "real"],
            "validation": tmp_path / "painted",
            "network": {"_target_": "ConvEncoder", "in_channels": CHANNELS, "out_channels": 13, "features": [8, 8]},
            "trainer": {"steps": 30, "batch_size": 8, "learning_rate": 0.01, "loader_workers": 0, "warmup_steps": 1},
        }
    )
    trainer = Trainer(RecognitionTask(config), config.trainer, tmp_path / "run")
    assert trainer.run() and (tmp_path / "run" / "checkpoint.pt").is_file()
    task = RecognitionTask(config)
    before = float(task.loss(task.network, task.batch(np.random.default_rng(5), 16), torch.Generator())["loss"])
    trained = trainer.task
    after = float(trained.loss(trained.network, trained.batch(np.random.default_rng(5), 16), torch.Generator())["loss"])
    assert after < before


def test_real_scans_without_a_file_of_them_and_a_folder_of_something_else_are_refused(
    labels: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="no file of them"):
        draw_to_folder(DrawScansConfig(labels=labels, heads=[0], painted=0, real=4, window=WINDOW), tmp_path / "out")
    with pytest.raises(ConfigurationError, match="draw-scans writes them"):
        DrawnScans.load(tmp_path)


def test_sets_of_scans_come_from_files_arrays_and_noise(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image(8, 8, 8, sitk.sitkFloat32), str(tmp_path / "one.nii.gz"))
    np.savez(tmp_path / "pictures.npz", images=np.arange(7 * 16).reshape(7, 4, 4))
    assert len(list(ScanSet(name="files", folder=tmp_path, files=["*.nii.gz"]).scans())) == 1
    stacks = list(
        ScanSet(name="array", file=tmp_path / "pictures.npz", array="images", slices=2, every=2, first=1).scans()
    )
    assert [scan.image.GetSize() for scan in stacks] == [(4, 4, 2)] * 3
    assert sitk.GetArrayFromImage(stacks[0].image)[0, 0, 0] == 16
    for noise in ("white", "smooth", "ball"):
        first, second = (sitk.GetArrayFromImage(scan.image) for scan in ScanSet(name="n", noise=noise, count=2).scans())
        assert not np.array_equal(first, second)
    with pytest.raises(FileNotFoundError):
        list(ScanSet(name="none", folder=tmp_path, files=["*.mha"]).scans())
    with pytest.raises(ValueError, match="one of folder"):
        ScanSet(name="both", folder=tmp_path, noise="white")
