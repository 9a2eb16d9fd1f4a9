"""The stages that train a network: a configuration and a task each, which the one trainer runs.

Stage ``x`` is the module ``x`` with an ``XConfig`` and an ``XTask``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

TRAININGS = {
    "brain": "The network that finds the brain, from label maps.",
    "recognition": "The network that tells contrasts, and what is no brain, from label maps.",
    "codec": "The autoencoder whose latents the diffusion model learns.",
    "diffusion": "The diffusion model, on latents or on pixels.",
    "classifier": "The classifier of noised slices that guides towards healthy.",
    "restore": "The one-step restorer, from synthetic lesions and noise on painted and healthy slabs.",
    "localise": "The network that says where a lesion is, from synthetic lesions on painted and healthy slabs.",
    "segment": "The supervised reference: a U-Net of lesions that readers marked, on slabs of patients.",
    "denoise": "The denoising autoencoder, from noise on healthy slices.",
}


def config_class(stage: str) -> Any:
    """What a stage's configuration file holds."""
    return getattr(import_module(f".{stage}", __package__), f"{stage.capitalize()}Config")


def task_class(stage: str) -> Any:
    """What a stage trains with."""
    return getattr(import_module(f".{stage}", __package__), f"{stage.capitalize()}Task")
