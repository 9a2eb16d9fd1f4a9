"""The speed benchmark knows the steps of every method that has a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk

import packages
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.preprocessing.slices import SliceStack
from diffusion_anomaly.registry import METHODS
from Testing.benchmarks.speed import Setting, network_stages, plain_options


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.has_network])
def test_every_method_with_a_network_is_timed_step_by_step(
    name: str, tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    bundle = getattr(packages, name)(tmp_path / "toy")
    plan = make_plan(Options(name, str(bundle.path), device="cpu", precision="float32"))
    stack = SliceStack([flair_like_volume.image], plan.grid, flair_like_brain)
    setting = Setting(flair_like_volume, flair_like_brain, plan, stack)
    model = Detector(plan).model
    assert model is not None
    stages = network_stages(setting, model, range(3, 5))
    assert sum(stage.calls for stage in stages) == plan.method.network_calls(plan.method_options)
    assert type(plain_options(plan.method_options)) is type(plan.method_options)
