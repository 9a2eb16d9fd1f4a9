"""Seconds by stage, the default against the plain reference, and a whole scan from start to finish."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.inference import make_batch
from diffusion_anomaly.detection.planning import Options, Plan, make_plan
from diffusion_anomaly.detection.postprocess import postprocess
from diffusion_anomaly.io.volume import Volume, read_mask, read_volume
from diffusion_anomaly.methods.base import SliceBatch
from diffusion_anomaly.models.loading import load_model
from diffusion_anomaly.models.networks import Model
from diffusion_anomaly.models.package import open_bundle
from diffusion_anomaly.preprocessing.slices import SliceStack
from diffusion_anomaly.registry import GuidedOptions, LocaliseOptions, RestoreOptions, UnsupervisedOptions

from . import measure
from .measure import CLINICAL, GIBIBYTE, rank_correlation, resampled, say, table, timed
from .variants import every_level


@dataclass(frozen=True)
class Setting:
    """A scan prepared for one model package."""

    volume: Volume
    brain: sitk.Image
    plan: Plan
    stack: SliceStack

    def batch(self, start: int, stop: int) -> SliceBatch:
        assert self.plan.bundle is not None
        scale = self.plan.bundle.normalisation.fit_scan(self.volume.image, self.brain)
        return make_batch(self.stack, [scale], start, stop, self.plan.asked.seed)

    def middle(self, count: int) -> range:
        """``count`` neighbouring slices from the middle of the brain."""
        count = min(count, len(self.stack))
        first = (len(self.stack) - count) // 2
        return range(first, first + count)


def speed(asked: argparse.Namespace, name: str) -> dict[str, Any]:
    """All of one model package's numbers; printed on the way."""
    bundle = open_bundle(name)
    options = Options(bundle.method, str(bundle.path), device=asked.device, precision=asked.precision)
    plan = make_plan(options)
    say(f"\n## {bundle.name} {bundle.version} ({plan.device}, {plan.precision})\n")
    stages: list[Stage] = []
    volume, seconds = timed(lambda: read_volume(asked.scan))
    stages.append(Stage("read scan", seconds))
    brain, seconds = _brain(asked, volume)
    stages.append(Stage("find brain" if asked.brain is None else "read brain", seconds))
    model, seconds = timed(lambda: load_model(bundle, plan.device, asked.precision), plan.device)
    stages.append(Stage("load model", seconds))
    setting = Setting(volume, brain, plan, SliceStack([volume.image], bundle.grid, brain))
    slices = setting.middle(asked.slices)
    whole = [stage.over(len(setting.stack)) for stage in stages]
    inner = network_stages(setting, model, slices)
    after = output_stages(setting)
    rate = measure.matrix_rate(plan.device, torch.bfloat16)
    rows = [stage.row(rate) for stage in [*whole, *inner, *after]]
    calls = plan.method.network_calls(plan.method_options)
    say(table(["stage", "s", "slices", "s a slice", "calls a slice", "of bfloat16 rate"], rows))
    say(f"\n{len(setting.stack)} slices; {calls} network calls a slice")
    compared = against_plain(setting, model, slices)
    say(
        f"Plain reference, {len(slices)} slices: {compared['plain_seconds']:.2f} s a slice and "
        f"{compared['plain_calls']} calls; default: {compared['default_seconds']:.3f} s a slice. "
        f"{compared['speed_up']:.1f} times as fast; rank correlation of the anomaly map inside the brain "
        f"{compared['correlation']:.3f} (each slice by itself: "
        f"{', '.join(f'{value:.3f}' for value in compared['correlation_by_slice'])})."
    )
    clinical = whole_scan(asked, setting, plan)
    say(
        f"A {'x'.join(map(str, CLINICAL))} scan from start to finish: {clinical['seconds']:.1f} s, "
        f"peak memory {clinical['peak_gib']:.2f} GiB."
    )
    if plan.device.startswith("cuda"):
        clinical["peak_gpu_gib"] = torch.cuda.max_memory_allocated(plan.device) / GIBIBYTE
        say(f"Peak GPU memory of this benchmark: {clinical['peak_gpu_gib']:.2f} GiB.")
    return {
        "model": f"{bundle.name} {bundle.version}",
        "sha256": bundle.sha256,
        "device": plan.device,
        "precision": plan.precision,
        "slices": len(setting.stack),
        "network_calls": calls,
        "stages": [vars(stage) | {"share_of_rate": stage.share(rate)} for stage in [*whole, *inner, *after]],
        "bfloat16_rate": rate,
        "against_plain": compared,
        "whole_scan": clinical,
    }


@dataclass(frozen=True)
class Stage:
    """A part of the work: seconds for so many slices, network calls a slice, operations in all."""

    name: str
    seconds: float
    slices: int = 1
    calls: int = 0
    operations: int = 0

    def over(self, slices: int) -> Stage:
        """The same, done once for so many slices."""
        return replace(self, slices=slices)

    def share(self, rate: float) -> float | None:
        return self.operations / self.seconds / rate if self.operations else None

    def row(self, rate: float) -> list[str]:
        share = self.share(rate)
        calls = str(self.calls) if self.calls else ""
        return [
            self.name,
            f"{self.seconds:.3f}",
            str(self.slices),
            f"{self.seconds / self.slices:.4f}",
            calls,
            "" if share is None else f"{share:.0%}",
        ]


def network_stages(setting: Setting, model: Model, slices: range) -> list[Stage]:
    """Preparing slices, and each step of the package's method at its default options."""
    batch, seconds = timed(lambda: setting.batch(slices.start, slices.stop))
    stages = [Stage("prepare slices", seconds, len(slices))]
    options = setting.plan.method_options
    steps = _unsupervised(batch, model, options) if isinstance(options, UnsupervisedOptions) else None
    if isinstance(options, GuidedOptions):
        steps = _guided(batch, model, options)
    if isinstance(options, RestoreOptions):
        steps = _restore(batch, model, options)
    if isinstance(options, LocaliseOptions):
        steps = _localise(batch, model)
    assert steps is not None, "a method this benchmark does not know"
    for name, function in steps.items():
        function()  # the first call of a shape chooses its kernels
        before = model.calls
        _, seconds = timed(function, model.device)
        calls = (model.calls - before) // len(slices)
        stages.append(Stage(name, seconds, len(slices), calls, measure.operations(function)))
    return stages


def _unsupervised(batch: SliceBatch, model: Model, options: UnsupervisedOptions) -> dict[str, Any]:
    from diffusion_anomaly.methods.base import to_model_range
    from diffusion_anomaly.methods.unsupervised import inpaint, latent_kl

    images = to_model_range(batch.images.to(model.device))
    latent = model.encode(images)
    everywhere = torch.ones_like(latent[:, :1])  # the walk costs the same whatever is inpainted
    generators = batch.generators
    return {
        "encode": lambda: model.encode(images),
        "KL map": lambda: latent_kl(latent, generators, model, options, _ignore),
        "inpaint": lambda: inpaint(latent, everywhere, generators, model, options, _ignore),
        "decode": lambda: model.decode(latent),
    }


def _guided(batch: SliceBatch, model: Model, options: GuidedOptions) -> dict[str, Any]:
    from diffusion_anomaly.methods.base import to_model_range
    from diffusion_anomaly.methods.guided import decode_guided, encode_up
    from diffusion_anomaly.models.schedule import step_grid

    images = to_model_range(batch.images.to(model.device))
    latent = model.encode(images)
    grid = step_grid(options.level - 1, options.steps)
    return {
        "encode": lambda: model.encode(images),
        "guided: noise": lambda: encode_up(latent, grid, model, _ignore),
        "guided: denoise": lambda: decode_guided(latent, grid, options.guidance_scale, model, _ignore),
        "decode": lambda: model.decode(latent),
    }


def _restore(batch: SliceBatch, model: Model, options: RestoreOptions) -> dict[str, Any]:
    from diffusion_anomaly.methods.base import to_model_range
    from diffusion_anomaly.methods.restore import requested_levels

    seen = to_model_range(batch.seen.to(model.device))
    latent = model.encode(seen)
    restored = latent[:, : model.codec.factor**2]
    return {
        "encode": lambda: model.encode(seen),
        "restore": lambda: [model.restore(latent, level) for level in requested_levels(options.steps, options.levels)],
        "decode": lambda: model.decode(restored),
    }


def _localise(batch: SliceBatch, model: Model) -> dict[str, Any]:
    from diffusion_anomaly.methods.base import to_model_range

    seen = to_model_range(batch.seen.to(model.device))
    latent = model.encode(seen)
    logit = model.localise(latent)
    return {
        "encode": lambda: model.encode(seen),
        "localise": lambda: model.localise(latent),
        "decode": lambda: model.decode(logit),
    }


def output_stages(setting: Setting) -> list[Stage]:
    """Back to the scan's grid and onto the disk, with the baseline's scores: these do not depend on the method."""
    options = Options("intensity", device="cpu")
    result, _ = timed(lambda: Detector(options)(setting.volume, brain=setting.brain))
    with tempfile.TemporaryDirectory() as folder:
        _, written = timed(lambda: result.save(folder))
    slices = len(setting.stack)
    return [Stage("anomaly scores to findings", result.timings["findings"], slices), Stage("write", written, slices)]


def plain_options(options: Any) -> Any:
    """The method with every level and without our shortcuts."""
    if isinstance(options, LocaliseOptions):  # asked once: there is nothing to leave out
        return options
    plain = every_level(options)
    return replace(plain, noise_draws=1, antithetic=False) if isinstance(plain, UnsupervisedOptions) else plain


def against_plain(setting: Setting, model: Model, slices: range) -> dict[str, Any]:
    """The default against the plain reference: seconds a slice, and how alike the scores are in rank."""
    plan, bundle = setting.plan, setting.plan.bundle
    assert bundle is not None
    default, plain = plan.method_options, plain_options(plan.method_options)
    result, seconds = timed(
        lambda: plan.method.run(setting.batch(slices.start, slices.stop), model, default, _ignore),
        model.device,
    )
    reference = load_model(bundle, plan.device, "float32")
    reference.chunk = 1
    anomaly_maps, plain_seconds = [], 0.0
    for index in slices:
        batch = setting.batch(index, index + 1)
        one, spent = timed(lambda batch=batch: plan.method.run(batch, reference, plain, _ignore), model.device)
        anomaly_maps.append(one.anomaly_map.numpy())
        plain_seconds += spent
    brain = setting.stack.brain(slices.start, slices.stop)
    spacing = {"pixel_spacing": setting.stack.grid.spacing, "slice_spacing": setting.stack.slice_spacing}
    fast = postprocess(result.anomaly_map.numpy(), brain, plan.postprocess, **spacing)
    slow = postprocess(np.concatenate(anomaly_maps), brain, plan.postprocess, **spacing)
    return {
        "slices": len(slices),
        "default_seconds": seconds / len(slices),
        "plain_seconds": plain_seconds / len(slices),
        "plain_calls": plan.method.network_calls(plain),
        "speed_up": plain_seconds / seconds,
        "correlation": rank_correlation(fast[brain], slow[brain]),
        "correlation_by_slice": [rank_correlation(a[b], c[b]) for a, c, b in zip(fast, slow, brain, strict=True)],
    }


def whole_scan(asked: argparse.Namespace, setting: Setting, plan: Plan) -> dict[str, Any]:
    """The scan on a clinical grid through the command line, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        scan = resampled(setting.volume.image, CLINICAL, sitk.sitkLinear, Path(folder) / "FLAIR.nii.gz")
        command: list[str | Path] = [
            "-m",
            "diffusion_anomaly",
            "detect",
            scan,
            "--output",
            Path(folder) / "out",
        ]
        command += ["--method", plan.method.name, "--model", str(plan.asked.model)]
        command += ["--device", plan.asked.device, "--precision", plan.asked.precision]
        if asked.brain is not None:
            command += [
                "--mask",
                resampled(setting.brain, CLINICAL, sitk.sitkNearestNeighbor, scan.with_name("brain.nii.gz")),
            ]
        _, seconds, peak = measure.run_process(command)
        provenance = json.loads((Path(folder) / "out" / "provenance.json").read_text(encoding="utf-8"))
    return {
        "size": CLINICAL,
        "seconds": seconds,
        "peak_gib": peak / GIBIBYTE,
        "slices": provenance["slices"],
        "timings": provenance["timings_seconds"],
    }


def _brain(asked: argparse.Namespace, volume: Volume) -> tuple[sitk.Image, float]:
    if asked.brain is not None:
        return timed(lambda: read_mask(asked.brain, volume))
    from diffusion_anomaly.detection.brain import BrainFinder

    return timed(lambda: BrainFinder(device=asked.device, precision=asked.precision)(volume), asked.device)


def _ignore(calls: int) -> None:
    """Progress that nobody looks at."""
