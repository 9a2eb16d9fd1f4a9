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
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="OPTION=VALUE,...", help="of the method, such as guidance_scale=10,30; repeatable"
        ),
    ],
    sides: Annotated[list[str], typer.Option("--side", help="side to try, such as 'bright dark none'; repeatable")],
    references: Annotated[
        list[float] | None,
        typer.Option("--reference", help="min_reference_intensity to try; repeatable. [default: 0 and 0.4]"),
    ] = None,
) -> None:
    """Average precision of a package's options on its validation patients, before it is packed.

    The networks run for every combination of what is set; sides and references cost next to nothing.
    """
    from .choosing import choose, parse_values

    typer.echo(
        choose(read_yaml(config, PackageConfig), output, parse_values(settings), sides, references or [0.0, 0.4])
    )


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
