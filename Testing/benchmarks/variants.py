"""A method's options with more steps, up to every level that it has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.registry import GuidedOptions, RestoreOptions, UnsupervisedOptions

MOST_DRAWS = 100  # what the option allows


def more_steps(options: Any, times: int) -> Any:
    """So many times the steps, as far as there are levels.

    Raises:
        InputError: for a method without steps.
    """
    if isinstance(options, UnsupervisedOptions):
        levels = min(options.kl_to - options.kl_from, options.kl_levels * times)
        draws = math.ceil(options.kl_levels * options.noise_draws * times / levels)
        return replace(
            options,
            steps=min(options.start_level + 1, options.steps * times),
            kl_levels=levels,
            noise_draws=min(MOST_DRAWS, draws),
        )
    if isinstance(options, GuidedOptions):
        return replace(options, steps=min(options.level, options.steps * times))
    if isinstance(options, RestoreOptions):
        return replace(options, steps=min(options.levels, options.steps * times))
    raise InputError(f"{type(options).__name__} has no steps that this benchmark knows.", "Choose another method.")


def every_level(options: Any) -> Any:
    """Every level there is, each visited once.

    Raises:
        InputError: for a method without steps.
    """
    if isinstance(options, UnsupervisedOptions):
        return replace(options, steps=options.start_level + 1, kl_levels=options.kl_to - options.kl_from)
    if isinstance(options, GuidedOptions):
        return replace(options, steps=options.level)
    if isinstance(options, RestoreOptions):
        return replace(options, steps=options.levels)
    raise InputError(f"{type(options).__name__} has no steps that this benchmark knows.", "Choose another method.")
