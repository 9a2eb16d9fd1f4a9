"""The stages through their commands: they train, go on exactly, and say what is wrong with a configuration."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from Testing.training.fakes import assert_same_training, curve, events, random_slices, state_of
from Testing.training.stages import STAGES, Workplace, task_of
from training.__main__ import command_line
from training.data.drawn_scans import DrawScansConfig
from training.data.preparation import PrepareConfig
from training.data.slices import Slices
from training.data.stacks import PrepareSlabsConfig
from training.data.window_sets import PrepareWindowsConfig
from training.package.config import PackageConfig
from training.stages.classifier import ClassifierConfig
from training.stages.codec import CodecConfig, CodecTask, load_codec
from training.stages.denoise import DenoiseConfig
from training.stages.diffusion import DiffusionConfig
from training.stages.localise import LocaliseConfig
from training.stages.recognition import RecognitionConfig
from training.stages.restore import RestoreConfig
from training.stages.segment import SegmentConfig
from training.trainer.configuration import read_yaml
from training.trainer.loop import Trainer

BASIC = {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 1}


@pytest.fixture
def place(tmp_path: Path, slices_folder: Path) -> Workplace:
    return Workplace(tmp_path, slices_folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, slices_folder: Path) -> Workplace:
    """All stages trained by their commands."""
    place = Workplace(tmp_path_factory.mktemp("trained"), slices_folder)
    for name, stage in STAGES.items():
        assert place.command(stage, name=name) == 0
    return place


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_trains_and_shows_its_curves(trained: Workplace, name: str) -> None:
    assert state_of(trained.folder / name)["step"] == 4
    assert sorted(curve(trained.folder / name)) == [1, 2, 3, 4]
    tags = events(trained.folder / name).Tags()
    assert any(tag.startswith("validation/") for tag in tags["scalars"])
    assert bool(tags["images"]) == (name != "classifier")


class Interrupted(Trainer):
    """A trainer that is told to stop while it works at a step."""

    def __init__(self, task: Any, config: Any, directory: Path, last: int) -> None:
        super().__init__(task, config, directory)
        self.last = last

    def _one_step(self, *arguments: Any) -> dict[str, float]:
        if self.step + 1 == self.last:
            self.limit.stop()
        return super()._one_step(*arguments)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_goes_on_exactly_where_it_was_stopped(tmp_path: Path, trained: Workplace, name: str) -> None:
    for last in (1, 3):
        task, config = task_of(trained, name)
        assert not Interrupted(task, config, tmp_path, last).run()
        assert state_of(tmp_path)["step"] == last
    task, config = task_of(trained, name)
    assert Trainer(task, config, tmp_path).run()
    assert_same_training(state_of(tmp_path), state_of(trained.folder / name))
    assert curve(tmp_path) == curve(trained.folder / name)


def test_a_time_limit_of_a_command_is_a_success_and_the_same_command_goes_on(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.command("codec", "--time-limit", "0") == 0
    assert "stopped early; the same command goes on" in capsys.readouterr().err
    assert state_of(place.folder / "codec")["step"] == 0
    assert place.command("codec") == 0
    assert "complete" in capsys.readouterr().err
    assert state_of(place.folder / "codec")["step"] == 4


@pytest.mark.parametrize("name", ["codec", "normal", "autoencoder"])
def test_the_loaded_codec_has_latents_of_unit_deviation(trained: Workplace, name: str) -> None:
    config = read_yaml(trained.folder / f"{name}.yaml", CodecConfig)
    codec, facts = load_codec(config, trained.folder / name)
    assert facts["step"] == 4
    slices = Slices.load(config.slices / "train.npz")
    image = torch.from_numpy(slices.images[slices.label == 0] / 127.5 - 1.0).float()
    latent = codec.encode(torch.where(torch.from_numpy(slices.brain[slices.label == 0])[:, None], image, -1.0))
    brain = torch.nn.functional.max_pool2d((image > -1.0).float(), 4)[:, 0] > 0
    values = latent.permute(0, 2, 3, 1)[brain]
    torch.testing.assert_close(values.mean(0), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(values.std(0), torch.ones(4), rtol=0, atol=1e-3)


def test_latents_of_an_unfinished_codec_are_used_with_a_warning(
    place: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    assert place.command("codec", "--time-limit", "0") == 0
    with caplog.at_level(logging.WARNING):
        assert place.command("diffusion", "--time-limit", "0") == 0
    assert "has 0 of 4 steps; train the codec to its end" in caplog.text


# What is wrong with a configuration


@pytest.mark.parametrize(
    ("stage", "entry", "value", "message"),
    [
        ("codec", "factor", None, "factor: Field required"),
        ("codec", "factr", 4, "factr: Extra inputs are not permitted"),
        ("codec", "trainer.steps", 0, "trainer.steps: Input should be greater than 0, found 0"),
        ("codec", "trainer.batch_size", "many", "trainer.batch_size: .*integer.*, found 'many'"),
        ("codec", "augmentation", {"rotation": -1}, "augmentation.rotation: .*greater than or equal to 0"),
        ("codec", "labels", [0, 2], r"labels: found \[0, 2\], expected \[0\]"),
        ("codec", "network._target_", "ResNet", "network: The network class 'ResNet' is not one this version builds"),
        ("codec", "network.chanels", [8], "network: VQVAE does not take chanels"),
        ("diffusion", "codec_run", None, "codec and codec_run belong together"),
        ("diffusion", "highest_level", 1000, "highest_level is 1000, but schedule.levels is 1000: use at most 999"),
        ("diffusion", "schedule.kind", "cosine", "schedule.kind: .*, found 'cosine'"),
        ("diffusion", "prediction_type", "x0", "prediction_type: .*, found 'x0'"),
        ("diffusion", "fold", 4, "fold is 4, but pixels are folded only without a codec"),
        ("classifier", "labels", [0], r"labels: found \[0\], a classifier needs \[0, 1\]"),
        ("classifier", "network.in_channels", 4, "network.in_channels is 4, but these slices and this codec need 16"),
        ("classifier", "network.input_shape", [8, 8], r"network.input_shape is \[8, 8\], .* need \[4, 4\]"),
        ("classifier", "network.out_channels", 3, "network.out_channels is 3, .* need 2"),
        ("classifier", "fold", 3, "16 x 16 pixels, which the codec's factor 3 does not divide"),
        ("codec", "slices", "nowhere", r"nowhere/train\.npz does not exist: run the stage 'prepare' first"),
        ("codec", "fold", 3, "fold is 3, which does not divide factor 4"),
        ("codec", "fold", 2, "network.in_channels is 1, but fold 2 needs 4 a contrast"),
        ("codec", "network", BASIC, "network is BasicUNet; expected one of AutoEncoder, AutoencoderKL, VQVAE"),
        ("codec", "kl_weight", -1, "kl_weight: .*greater than or equal to 0"),
        ("classifier", "halves", True, "halves are for healthy slices alone"),
        ("denoiser", "network.out_channels", 32, "network.out_channels is 32, but 1 contrast, folded, need 16"),
        ("denoiser", "fold", 3, "16 x 16 pixels|network.in_channels is 16, but 1 contrast, folded, need 9"),
        ("denoiser", "corruption", {"levels": 2}, "corruption.noise: Field required"),
        ("denoiser", "corruption.noise.cell", [0, 3], r"noise.cell: found \[0, 3\], expected a range"),
        ("localise", "network.in_channels", 4, "network.in_channels is 4, but fold and slabs need 12"),
        ("localise", "data.grid.size", 63, "fold 2 does not divide slabs of 63 pixels"),
        ("localise", "data.grid.slabs", 2, "grid.slabs: found 2, expected an odd number"),
        ("localise", "data.real_share", 0.0, "give both 'stacks' and a 'real_share' above 0, or neither"),
        ("localise", "data.labels", "nowhere.npz", "nowhere.npz does not exist; .*prepare-labels --slabs writes it"),
        ("localise", "data.stacks", "nowhere.npz", "nowhere.npz does not exist; .*prepare-slabs writes it"),
        ("localise", "data.grid.spacing", 1.5, "slices of 64 pixels of 1 mm; expected 64 of 1.5 mm"),
        ("localise", "lesions.shift", [0, 3], r"lesions.shift: found \[0.0, 3.0\], expected a range"),
        ("localise", "start_from", "nowhere.safetensors", "nowhere.safetensors does not exist"),
        ("restore", "network.out_channels", 16, "network.out_channels is 16, but fold and slabs need 8"),
        ("segment", "data.labels", "heads.npz", "segment learns from marked lesions alone: no data.labels"),
        ("segment", "data.real_share", 0.5, "give 'labels' to paint heads from"),
        ("segment", "validation", None, "validation: Field required"),
        ("segment", "validation", "nowhere.npz", "nowhere.npz does not exist; .*prepare-slabs writes it"),
        ("restore", "corruption.levels", 0, "corruption.levels: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_entry_is_named_with_its_file_and_exit_code_2(
    place: Workplace, capsys: pytest.CaptureFixture[str], stage: str, entry: str, value: Any, message: str
) -> None:
    target = place.entries[stage]
    *outer, last = entry.split(".")
    for key in outer:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    assert place.command(STAGES[stage], name=stage) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(message, " ".join(said.split())), said
    assert f"{stage}.yaml" in said or value in ("nowhere", "nowhere.npz", "nowhere.safetensors") or "pixels" in message


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"factor: [4\n", b"labels: \xff\n", b"factor: 4\n\tlabels: 3\n"])
def test_a_file_that_is_no_configuration_is_named(
    place: Workplace, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.folder / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        command_line(["codec", str(path), "--run", str(place.folder / "run")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "broken.yaml" in said
    assert "Traceback" not in said


def test_slices_without_the_classes_asked_for_are_an_error(
    place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = random_slices(8, 16, 0)
    for split in ("train", "val"):
        healthy.select(healthy.label == 0).save(tmp_path / f"{split}.npz")
    place.entries["classifier"]["slices"] = str(tmp_path)
    assert place.command("classifier") == 2
    assert "classifier.yaml: At no height there are slices of every label" in capsys.readouterr().err


def test_a_run_of_another_network_is_refused_with_exit_code_2(
    trained: Workplace, place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.entries["codec"]["network"]["num_embeddings"] = 32
    with pytest.raises(SystemExit) as ended:
        command_line(["codec", str(place.write("codec")), "--run", str(trained.folder / "codec")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "checkpoint.pt is of another network than the configuration's" in said
    assert "ema_cluster_size is (16,) in the checkpoint and (32,) in the configuration" in said


def test_a_diffusion_model_before_its_codec_names_the_missing_run(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.command("diffusion") == 2
    assert "codec/checkpoint.pt does not exist: run this stage's training first" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_a_command_with_exit_code_1(
    place: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr(CodecTask, "loss", lambda self, network, batch, generator: {"loss": nothing})
    assert place.command("codec") == 1
    assert "The loss of step 1 is nan. There is no checkpoint yet" in capsys.readouterr().err


def test_the_configurations_that_ship_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    configs = Path("training/configs")
    kinds = {
        "codec": CodecConfig,
        "vqvae": CodecConfig,
        "unsupervised": DiffusionConfig,
        "guided": DiffusionConfig,
        "classifier": ClassifierConfig,
        "localise*": LocaliseConfig,
        "restore*": RestoreConfig,
        "dae": DenoiseConfig,
        "unet": SegmentConfig,
    }
    read = [
        read_yaml(path, kind)
        for ending, kind in kinds.items()
        for path in sorted(configs.glob(f"*-{ending}.yaml"))
        if not path.name.startswith(("package-", "prepare-"))
    ]
    assert len(read) >= 8
    for path in sorted(configs.glob("prepare-*.yaml")):
        other = {"slabs": PrepareSlabsConfig, "windows": PrepareWindowsConfig}
        read_yaml(path, other.get(path.stem.removesuffix("-lgg").rpartition("-")[2], PrepareConfig))
    for path in sorted(configs.glob("draw-*.yaml")):
        read_yaml(path, DrawScansConfig)
    read_yaml(configs / "recognition.yaml", RecognitionConfig)
    for path in sorted(configs.glob("package-*.yaml")):
        package = read_yaml(path, PackageConfig)
        assert all(stage.config.exists() for stage in package.stages.values())
        assert package.prepare is None or package.prepare.exists()
    for config in read:
        codec = getattr(config, "codec", None)
        assert codec is None or codec.exists()
