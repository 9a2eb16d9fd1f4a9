"""``python -m examples.papers.brain …``: the parts of the experiment, to choose options by."""

from __future__ import annotations

from typing import Annotated

import typer

from training.command_line import Config, Output, make_app, run
from training.package.config import PackageConfig
from training.trainer.configuration import read_yaml

app = make_app(__doc__)


@app.command()
def options(
    config: Config,
    output: Output,
    scales: Annotated[list[float], typer.Option("--scale", help="guidance scale to try; repeatable")],
    sides: Annotated[list[str], typer.Option("--side", help="side to try, such as 'bright dark none'; repeatable")],
    references: Annotated[
        list[float] | None,
        typer.Option("--reference", help="min_reference_intensity to try; repeatable. [default: 0 and 0.4]"),
    ] = None,
) -> None:
    """Average precision of a package's options on its validation patients, before it is packed."""
    from .choosing import choose

    typer.echo(choose(read_yaml(config, PackageConfig), output, scales, sides, references or [0.0, 0.4]))


@app.command()
def evaluate(config: Config, output: Output) -> None:
    """Compare packages on patients with all contrasts."""
    from .comparison import ComparisonConfig, compare

    typer.echo(compare(read_yaml(config, ComparisonConfig), output))


def command_line(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    run(app, arguments)


if __name__ == "__main__":
    command_line()
