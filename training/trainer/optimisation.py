"""How long and how to optimise: configuration, learning rate and average of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch.optim.swa_utils import get_ema_multi_avg_fn

# Entries that change how a training is run and not what comes out of it.
WITHOUT_EFFECT = ("loader_workers", "checkpoint_minutes", "validate_every")

LATEST_WARMUP = 0.1  # share of a training's minutes after which the warm-up is over, however few steps they held


class TrainerConfig(BaseModel):
    """How long and how to optimise; part of every stage's configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0, description="optimiser steps of the whole training")
    batch_size: int = Field(gt=0, description="samples a step and a process")
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    constant_share: float = Field(
        default=0.0, ge=0, le=1, description="of the steps after the warm-up, before the cosine"
    )
    final_rate: float = Field(default=0.05, ge=0, le=1, description="the learning rate's last share")
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    ema_warmup: int = Field(default=0, ge=0, description="updates before which an average is mostly of the newest")
    gradient_clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    precision: str = Field(default="auto", pattern="^(auto|float32|bfloat16)$")
    loader_workers: int = Field(default=1, ge=0)
    checkpoint_minutes: float = Field(default=3.0, ge=0)
    validate_every: int = Field(default=500, gt=0, description="steps between validations")


def learning_rate_at(step: int, config: TrainerConfig, spent: float = 0.0) -> float:
    """Linear warm-up, then constant for a while if so configured, then a cosine to the last rate.

    Args:
        step: from 0.
        config: what it goes by.
        spent: share of the training that is over by the clock, if it has only so long.
    """
    if step < config.warmup_steps and spent < LATEST_WARMUP:
        return config.learning_rate * max((step + 1) / config.warmup_steps, spent / LATEST_WARMUP)
    done = max(steps_done(step, config), spent)
    if done < config.constant_share:
        return config.learning_rate
    done = (done - config.constant_share) / max(1e-9, 1.0 - config.constant_share)
    cosine = 0.5 * (1.0 + float(np.cos(np.pi * done)))
    return config.learning_rate * (config.final_rate + (1.0 - config.final_rate) * cosine)


def steps_done(step: int, config: TrainerConfig) -> float:
    """Share of the steps after the warm-up."""
    return max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)


def averaging(config: TrainerConfig) -> Callable[[Any, Any, Any], None]:
    """Exponential average of weights; with a warm-up, after ``n`` updates over little more than the last ``n``."""
    if not config.ema_warmup:
        return get_ema_multi_avg_fn(config.ema_decay)

    def update(averaged: Any, current: Any, updates: Any) -> None:
        done = 1.0 + float(updates)
        decay = min(config.ema_decay, done / (config.ema_warmup + done))
        get_ema_multi_avg_fn(decay)(averaged, current, updates)

    return update
