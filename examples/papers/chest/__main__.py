"""``python -m examples.papers.chest …``: the parts of the experiment, to choose options by."""

from __future__ import annotations

from itertools import product
from typing import Annotated

import typer

from training.command_line import Output, make_app, run

from .parts import PARTS

app = make_app(__doc__)
Name = Annotated[str, typer.Argument(help=" or ".join(PARTS))]


@app.command()
def choose(
    name: Name,
    steps: Annotated[list[int], typer.Option()] = [10],  # noqa: B006
    level: Annotated[list[int], typer.Option()] = [200, 300, 500],  # noqa: B006
    scale: Annotated[list[float], typer.Option()] = [10.0, 30.0, 100.0],  # noqa: B006
    films: Annotated[int, typer.Option(help="of each class, at most")] = 1000,
) -> None:
    """Areas under the ROC curve on validation films, option by option."""
    from .choose import choose as tried

    walks = [{"steps": a, "level": b, "guidance_scale": c} for a, b, c in product(steps, level, scale)]
    for row in tried(PARTS[name], walks, films):
        typer.echo(f"{row['auroc']:.3f}  {row['walk']}  {row.get('side', '')}  {row.get('score', '')}")


@app.command()
def evaluate(
    name: Name,
    output: Output,
    split: Annotated[str, typer.Option(help="test, or val to choose options by")] = "test",
) -> None:
    """What the packed model finds in the films of a split."""
    from .experiment import experiment, markdown

    typer.echo(markdown(experiment(PARTS[name], output, split)))


@app.command()
def foreign(name: Name) -> None:
    """Which pictures that are no such films the check of appearance tells."""
    from diffusion_anomaly.evaluation.formatting import markdown_table

    from .foreign import foreign as judged

    rows = [list(map(str, row)) for row in judged(PARTS[name])]
    typer.echo("\n".join(markdown_table(["pictures", "how many", "doubted", "refused"], rows)))


def command_line(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    run(app, arguments)


if __name__ == "__main__":
    command_line()
