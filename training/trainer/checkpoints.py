"""Checkpoints: written whole or not at all, read with words when they do not fit.

A file cut short or made for another network must stop a training before it starts, with a sentence that names the
file and the first thing that differs, not with torch's list of every tensor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .configuration import ConfigurationError

KEYS = ("step", "seconds", "hardware", "config", "network", "average", "optimizer")


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be read, or belongs to another configuration."""


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write beside and rename, so that a kill leaves either the old checkpoint or the new one.

    The temporary name is always the same: what a kill leaves behind, the next write replaces.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ``write_checkpoint`` wrote, on the CPU.

    Raises:
        CheckpointError: when the file is cut short, damaged or no checkpoint of a trainer.
    """
    advice = "Move it away to begin anew, or put a whole copy in its place."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch meets what is no checkpoint with whatever error comes first, even IndexError
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}. {advice}") from error
    missing = [key for key in KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it is no checkpoint of a training here. {advice}")
    return state


def require_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Check that a checkpoint's weights are those of the configured network.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    for name in [*expected, *(name for name in found if name not in expected)]:
        here = tuple(expected[name].shape) if name in expected else "nothing"
        there = shapes.get(name, "nothing")
        if here != there:
            raise CheckpointError(
                f"{path} is of another network than the configuration's: {name} is {there} in the checkpoint and "
                f"{here} in the configuration. Go on with the configuration it was begun with, or choose another "
                "--run directory."
            )


def averaged_weights(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The averaged weights of a run and what its card needs: step, seconds, hardware.

    Raises:
        FileNotFoundError: when the run has no checkpoint yet.
        CheckpointError: when the checkpoint cannot be read.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist: run this stage's training first.")
    state = read_checkpoint(checkpoint)
    weights = {k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")}
    return weights, {key: state[key] for key in ("step", "seconds", "hardware")}
