"""``python -m examples.papers EXPERIMENT``: from data to the figures of one experiment of the two papers.

Each command prepares, trains, packs and measures, and leaves out what is there already, so that a stopped one goes on.
``docs/papers`` says what came out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.command_line import make_app, run

app = make_app(__doc__)
RESULTS = Path("runs/papers")
Output = Annotated[Path, typer.Option("--output", help="where tables and pictures go")]
Split = Annotated[str, typer.Option("--split", help="val to choose options, test once at the end")]


@app.command("pinaya-sprites")
def pinaya_sprites(output: Output = RESULTS / "pinaya-sprites") -> None:
    """Pinaya et al. 2022, section 3.1: sprites in head CT, and pictures of other classes (MedNIST)."""
    from .sprites import command

    command.run(output)


@app.command("pinaya-ct")
def pinaya_ct(
    output: Output = RESULTS / "pinaya-ct",
    split: Split = "test",
    method: Annotated[list[str] | None, typer.Option(help="may be repeated; default: all")] = None,
) -> None:
    """Pinaya et al. 2022 on head CT with haemorrhage (CT-ICH), with pasted lesions to say where."""
    from .headct import METHODS
    from .headct import run as experiment

    experiment(output, split, method or METHODS)


@app.command("pinaya-mr")
def pinaya_mr(output: Output = RESULTS / "pinaya-mr") -> None:
    """Pinaya et al. 2022 on brain MR: lesions, with a VQ-VAE and the paper's options."""
    from .mr import command

    command.run(output)


@app.command("wolleb-brain")
def wolleb_brain(output: Output = RESULTS / "wolleb-brain") -> None:
    """Wolleb et al. 2022 on several MR contrasts: FLAIR, T1 and T1 after contrast agent against FLAIR alone."""
    from .brain import command

    typer.echo(command.run(output))


@app.command("wolleb-chest")
def wolleb_chest(output: Output = RESULTS / "wolleb-chest") -> None:
    """Wolleb et al. 2022 on chest films: pneumonia (Kermany), pleural effusion (NIH)."""
    from .chest import command

    typer.echo(command.run(output))


def command_line(arguments: list[str] | None = None) -> None:
    """Run one experiment and exit with its code."""
    run(app, arguments)


if __name__ == "__main__":
    command_line()
