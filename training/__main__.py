"""``python -m training STAGE …``: one command a stage. The README beside it walks through all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from diffusion_anomaly.errors import EngineError
from diffusion_anomaly.process import end_like_interrupt

from . import STARTED
from . import command_line as shared
from .command_line import Config, Output
from .plan.declaration import Plan
from .stages import TRAININGS, config_class, task_class
from .trainer.configuration import ConfigurationError, read_yaml
from .trainer.loop import Trainer, TrainingError
from .trainer.stopping import TimeBudget

Run = Annotated[Path, typer.Option("--run", help="run directory; a checkpoint there is continued")]
Limit = Annotated[float | None, typer.Option(min=0.0, help="minutes after which to write a checkpoint and end")]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes", min=0.0, help="in which the training comes to its end, learning rate and all, if not sooner"
    ),
]

app = shared.make_app(__doc__)


@app.command()
def label(
    slices: Path,
    output: Path,
    distance: Annotated[int, typer.Option(min=1, help="healthy slices are so far from any diseased one")] = 3,
    column: Annotated[str, typer.Option(help="of the table; above 0 where a slice is diseased")] = "tumour_px",
    ending: Annotated[str, typer.Option(help="of the scans' names, after the patient")] = "_flair.nii.gz",
) -> None:
    """Slice labels of a set from a table with the columns patient, slice and another: scan, slice, label."""
    from .data.slice_labels import label_slices

    label_slices(slices, output, distance, column, ending)


@app.command()
def unpack(
    arrays: Path,
    output: Path,
    label: Annotated[str, typer.Option(help="entry that is 0 for healthy pictures and 1 for diseased ones")],
    patient: Annotated[str, typer.Option(help="entry that says whose picture it is")],
    split: Annotated[str, typer.Option(help="entry that says where it belongs: train, val or test")] = "split",
    strata: Annotated[str | None, typer.Option(help="entry to copy to the labels, such as the view")] = None,
) -> None:
    """Pictures of an array file (.npz) as image files, a folder a split, and their labels."""
    from .data.pictures import unpack_pictures

    unpack_pictures(arrays, output, label, patient, split, strata)


@app.command()
def prepare(config: Config, output: Output) -> None:
    """Slices of all scans, brain found, intensities normalised, on the models' grid."""
    from .data.preparation import PrepareConfig
    from .data.preparation import prepare as run

    run(read_yaml(config, PrepareConfig), output)


@app.command("prepare-labels")
def prepare_labels(
    folder: Path,
    output: Path,
    slabs: Annotated[bool, typer.Option(help="maps of 1 mm, for the stages localise and restore")] = False,
) -> None:
    """All label maps of a folder in one file (.npz), which the brain's training reads, or with --slabs others."""
    from .data.label_maps import prepare_labels as run

    run(folder, output, slabs)


@app.command()
def places(folder: Path, output: Path) -> None:
    """The table by which findings are placed in the brain, from label maps; prints how often it is right."""
    from .data.places import make_places

    for name, share in make_places(folder, output).items():
        typer.echo(f"{name}: {share:.3f}")


@app.command("prepare-slabs")
def prepare_slabs(config: Config, output: Output) -> None:
    """Stacks of real slices on the slab grid, for the stages localise, restore and segment."""
    from .data.stacks import PrepareSlabsConfig
    from .data.stacks import prepare_slabs as run

    run(read_yaml(config, PrepareSlabsConfig), output)


@app.command("prepare-windows")
def prepare_windows(config: Config, output: Output) -> None:
    """Real scans as the recognition network is shown them, in one file (.npz)."""
    from .data.window_sets import PrepareWindowsConfig
    from .data.window_sets import prepare_windows as run

    run(read_yaml(config, PrepareWindowsConfig), output)


@app.command("draw-scans")
def draw_scans(config: Config, output: Output) -> None:
    """Painted and changed real scans, as the stage recognition reads them, in one folder."""
    from .data.drawn_scans import DrawScansConfig
    from .data.drawn_scans import draw_scans as run

    run(read_yaml(config, DrawScansConfig), output)


def add_training(stage: str, about: str) -> None:
    """The command that trains a stage's network."""

    @app.command(stage, help=about)
    def train(config: Config, run: Run, time_limit: Limit = None, minutes: Minutes = None) -> None:
        settings = read_yaml(config, config_class(stage))
        try:
            task = task_class(stage)(settings)
        except EngineError as error:
            raise ConfigurationError(f"{config}: {error}") from error
        done = Trainer(task, settings.trainer, run, time_limit, TimeBudget(minutes, STARTED)).run()
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
            typer.echo(f"{run}: {'complete' if done else 'stopped early; the same command goes on'}", err=True)


for name, text in TRAININGS.items():
    add_training(name, text)


@app.command("all")
def train_all(
    plan: Annotated[Path, typer.Argument(help="plan (YAML), such as training/configs/all.yaml", exists=True)],
    only: Annotated[list[str] | None, typer.Option(help="a stage of the plan, more than once for several")] = None,
    runs: Annotated[Path | None, typer.Option(help="where run folders go, in place of the plan's")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of arrays that pack wrote, in place of the plan's")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="stages at once")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each stage")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    minutes: Annotated[float | None, typer.Option(min=0.1, help="in which all trainings come to their end")] = None,
    scale: Annotated[float, typer.Option(min=1e-6, max=1.0, help="of all steps: 0.01 rehearses")] = 1.0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="of every training: for a rehearsal")] = None,
) -> None:
    """Every stage of a plan, each in a process of its own; what is finished stays, what was stopped goes on."""
    from .plan.jobs import Settings
    from .plan.running import Machine, run_plan

    if not run_plan(
        read_yaml(plan, Plan),
        only or [],
        Settings(runs, data, scale, batch_size),
        Machine(jobs, threads, device),
        minutes,
    ):
        raise TrainingError("Not every stage came to its end; the same command goes on with those that did not.")


@app.command()
def pack(
    plan: Annotated[Path, typer.Argument(help="plan (YAML), such as training/configs/burst.yaml", exists=True)],
    output: Annotated[Path, typer.Argument(help="folder to write")],
    only: Annotated[list[str] | None, typer.Option(help="a stage of the plan, more than once for several")] = None,
    limit: Annotated[float, typer.Option(min=0.0, help="megabytes that the folder may hold")] = 25.0,
) -> None:
    """All arrays that a plan's trainings read in one small folder, for all --data on another machine."""
    from .plan.packing import pack as run

    sizes = run(read_yaml(plan, Plan), only or [], output, limit)
    for path, size in sizes.items():
        typer.echo(f"{size:8.2f} MB  {path}")
    typer.echo(f"{sum(sizes.values()):8.2f} MB  in {output}")


@app.command()
def package(config: Config, output: Output) -> None:
    """Weights, calibration, thresholds, card and licence as one verified model package."""
    from .package.build import package as build
    from .package.config import PackageConfig

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
    from diffusion_anomaly.models.package import open_bundle

    from .package.cards import describe as write

    bundle = write(open_bundle(package), evaluation, run, data)
    typer.echo(f"{bundle.path}: {bundle.name} {bundle.version}", err=True)


def command_line(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    shared.run(app, arguments)


if __name__ == "__main__":
    end_like_interrupt()
    command_line()
