"""``python -m training STAGE …``: one command a stage. The README beside it walks through all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel

from diffusion_anomaly.errors import EngineError

from .trainer.configuration import ConfigurationError, read_yaml
from .trainer.loop import Task, Trainer, TrainingError

C = TypeVar("C", bound=BaseModel)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Config = Annotated[Path, typer.Argument(help="configuration file (YAML)", exists=True, dir_okay=False)]
Run = Annotated[Path, typer.Option("--run", help="run directory; a checkpoint there is continued")]
Output = Annotated[Path, typer.Option("--output", help="where the result goes")]
Limit = Annotated[float | None, typer.Option(min=0.0, help="minutes after which to write a checkpoint and end")]


@app.callback()
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


@app.command()
def label(slices: Path, output: Path, distance: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Slice labels of the LGG set from its slices.csv: scan, slice, label."""
    from .data.slices import label_tumour_slices

    label_tumour_slices(slices, output, distance)


@app.command()
def prepare(config: Config, output: Output) -> None:
    """Slices of all scans, brain found, intensities normalised, on the models' grid."""
    from .data.slices import PrepareConfig
    from .data.slices import prepare as run

    run(read_yaml(config, PrepareConfig), output)


@app.command("prepare-mednist")
def prepare_mednist(source: Path, output: Output) -> None:
    """Slices of MedNIST's head CT pictures, for the first paper's experiment."""
    from .mednist import prepare_mednist as run

    run(source, output)


@app.command("prepare-labels")
def prepare_labels(
    folder: Path,
    output: Path,
    slabs: Annotated[bool, typer.Option(help="maps of 1 mm, for the stages localise and restore")] = False,
) -> None:
    """All label maps of a folder in one file (.npz), which the brain's training reads, or with --slabs others."""
    from .data.labels import prepare_labels as run

    run(folder, output, slabs)


@app.command("prepare-slabs")
def prepare_slabs(config: Config, output: Output) -> None:
    """Stacks of real healthy slices on the slab grid, for the stages localise and restore."""
    from .data.stacks import PrepareSlabsConfig
    from .data.stacks import prepare_slabs as run

    run(read_yaml(config, PrepareSlabsConfig), output)


@app.command()
def brain(config: Config, run: Run, time_limit: Limit = None) -> None:
    """The network that finds the brain, from label maps."""
    from .stages.brain import BrainConfig, BrainTask

    train(config, BrainConfig, BrainTask, run, time_limit)


@app.command()
def codec(config: Config, run: Run, time_limit: Limit = None) -> None:
    """The autoencoder whose latents the diffusion model learns."""
    from .stages.codec import CodecConfig, CodecTask

    train(config, CodecConfig, CodecTask, run, time_limit)


@app.command()
def diffusion(config: Config, run: Run, time_limit: Limit = None) -> None:
    """The diffusion model, on latents or on pixels."""
    from .stages.diffusion import DiffusionConfig, DiffusionTask

    train(config, DiffusionConfig, DiffusionTask, run, time_limit)


@app.command()
def classifier(config: Config, run: Run, time_limit: Limit = None) -> None:
    """The classifier of noised slices that guides towards healthy."""
    from .stages.classifier import ClassifierConfig, ClassifierTask

    train(config, ClassifierConfig, ClassifierTask, run, time_limit)


@app.command()
def restore(config: Config, run: Run, time_limit: Limit = None) -> None:
    """The one-step restorer, from synthetic lesions and noise on painted and healthy slabs."""
    from .stages.restore import RestoreConfig, RestoreTask

    train(config, RestoreConfig, RestoreTask, run, time_limit)


@app.command()
def localise(config: Config, run: Run, time_limit: Limit = None) -> None:
    """The network that says where a lesion is, from synthetic lesions on painted and healthy slabs."""
    from .stages.localise import LocaliseConfig, LocaliseTask

    train(config, LocaliseConfig, LocaliseTask, run, time_limit)


@app.command()
def denoise(config: Config, run: Run, time_limit: Limit = None) -> None:
    """The denoising autoencoder, from noise on healthy slices."""
    from .stages.denoise import DenoiseConfig, DenoiseTask

    train(config, DenoiseConfig, DenoiseTask, run, time_limit)


@app.command()
def mednist(
    config: Config,
    output: Output,
    split: Annotated[str, typer.Option(help="test, or val to choose options by")] = "test",
) -> None:
    """The first paper's experiment: sprites in head CT, and pictures of other classes."""
    from .mednist_experiment import MednistConfig, experiment

    experiment(read_yaml(config, MednistConfig), output, split)
    typer.echo((output / "mednist.md").read_text(encoding="utf-8"))


@app.command()
def package(config: Config, output: Output) -> None:
    """Weights, calibration, thresholds, card and licence as one verified model package."""
    from .package.build import PackageConfig
    from .package.build import package as build

    bundle = build(read_yaml(config, PackageConfig), output)
    typer.echo(f"{bundle.path}: {bundle.name} {bundle.version}", err=True)


@app.command()
def describe(
    package: Annotated[str, typer.Argument(help="model package, by name or folder")],
    evaluation: Annotated[Path, typer.Argument(help="evaluation.json of diffusion-anomaly evaluate", exists=True)],
    run: Annotated[str, typer.Option(help="which row of it")],
    data: Annotated[str, typer.Option(help="what was evaluated on, in words")],
) -> None:
    """What was measured, onto a package's card."""
    from diffusion_anomaly.bundle import open_bundle

    from .package.build import describe as write

    bundle = write(open_bundle(package), evaluation, run, data)
    typer.echo(f"{bundle.path}: {bundle.name} {bundle.version}", err=True)


def train(config: Path, kind: type[C], make_task: Callable[[C], Task], run: Path, time_limit: float | None) -> None:
    """Read a stage's configuration, make its task and train it."""
    settings = read_yaml(config, kind)
    try:
        task = make_task(settings)
    except EngineError as error:
        raise ConfigurationError(f"{config}: {error}") from error
    done = Trainer(task, settings.trainer, run, time_limit).run()  # type: ignore[attr-defined]
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
        typer.echo(f"{run}: {'complete' if done else 'stopped early; the same command goes on'}", err=True)


def command_line(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done or stopped early, 2 wrong input, 1 a training that cannot go on.

    What a user can set right is said in one sentence. Everything else keeps its traceback.
    """
    try:
        app(arguments)
    except (ConfigurationError, FileNotFoundError) as error:
        code, message = 2, str(error)
    except EngineError as error:
        code, message = error.exit_code, str(error)
    except TrainingError as error:
        code, message = 1, str(error)
    typer.echo(message, err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    command_line()
