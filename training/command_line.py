"""What every command here shares: its parameters, its log, and how it ends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from diffusion_anomaly.errors import EngineError

from .trainer.configuration import ConfigurationError
from .trainer.loop import TrainingError

Config = Annotated[Path, typer.Argument(help="configuration file (YAML)", exists=True, dir_okay=False)]
Output = Annotated[Path, typer.Option("--output", help="where the result goes")]


def make_app(about: str | None) -> typer.Typer:
    """An application whose commands log to stderr."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=about)

    @app.callback()
    def main() -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    return app


def run(app: typer.Typer, arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done or stopped early, 2 wrong input, 1 a training that cannot go on.

    What a user can set right is said in one sentence. Everything else keeps its traceback.
    """
    try:
        app(arguments)
    except (ConfigurationError, OSError) as error:  # a full disk and a lacking right, too, are for the user to mend
        code, message = 2, str(error)
    except EngineError as error:
        code, message = error.exit_code, str(error)
    except TrainingError as error:
        code, message = 1, str(error)
    typer.echo(message, err=True)
    raise SystemExit(code)
