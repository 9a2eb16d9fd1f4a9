"""``python -m examples.papers.sprites …``: the parts of the experiment, to choose options by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.command_line import Config, Output, make_app, run
from training.trainer.configuration import read_yaml

app = make_app(__doc__)


@app.command()
def prepare(source: Path, output: Output) -> None:
    """Slices of MedNIST's head CT pictures, which the training's stages codec and diffusion learn from."""
    from .slices import prepare_mednist

    prepare_mednist(source, output)


@app.command()
def evaluate(
    config: Config,
    output: Output,
    split: Annotated[str, typer.Option(help="test, or val to choose options by")] = "test",
) -> None:
    """Find sprites in head CT, and pictures of other classes."""
    from .experiment import MednistConfig, experiment

    experiment(read_yaml(config, MednistConfig), output, split)
    typer.echo((output / "mednist.md").read_text(encoding="utf-8"))


def command_line(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    run(app, arguments)


if __name__ == "__main__":
    command_line()
