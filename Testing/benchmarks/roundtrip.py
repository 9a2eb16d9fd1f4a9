"""What noising and denoising alone change in a slice, by steps and order: the part of a guided map that is no guidance.

    python -m Testing.benchmarks roundtrip --model flair-guided --scan SCAN --steps 10 --steps 50

For each number of steps and each order it walks slices of the scans up to the package's level and back without
guidance, and prints the mean absolute difference to the slice inside the brain, in normalised intensity; then the same
with the package's guidance, and the share of the first in the second.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.inference import make_batch
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.evaluation.formatting import markdown_table, number
from diffusion_anomaly.io.sources import read_brain
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.methods.base import SliceBatch
from diffusion_anomaly.models.networks import Model
from diffusion_anomaly.registry import GuidedOptions, get_method
from diffusion_anomaly.system import device_name

from . import evidence, measure
from .measure import say

ORDERS = (1, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m Testing.benchmarks roundtrip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="flair-guided", help="package by name or folder")
    add("--scan", type=Path, action="append", help="repeatable; default: the sample scan")
    add("--brain", type=Path, action="append", help="their brain masks, in the same order; default: found by a network")
    add("--steps", type=int, action="append", help="repeatable; default: 10, 20 and 50")
    add("--slices", type=int, default=8, help="of each scan, evenly spread over the brain; default: 8")
    add("--device", default="auto")
    asked = parser.parse_args(arguments)
    try:
        detector = Detector(Options("guided", str(asked.model), device=asked.device, precision="float32"))
        batches = list(_batches(detector, asked.scan or [measure.SAMPLE], asked.brain or [], asked.slices))
        found = compare(detector, batches, asked.steps or [10, 20, 50])
    except EngineError as error:
        return evidence.refuse(error)
    say(markdown(found))
    slices = sum(len(batch.images) for batch in batches)
    bundle = detector.plan.bundle
    say(
        f"\n{bundle.name} {bundle.version}, {slices} slices of {len(batches)} scans, "
        f"float32 on {device_name(detector.plan.device)}; mean absolute difference in normalised intensity."
    )
    return 0


def compare(detector: Detector, batches: Sequence[SliceBatch], steps: Sequence[int]) -> list[dict[str, Any]]:
    """One row a number of steps and order."""
    model, packaged = detector.model, detector.plan.method_options
    assert model is not None and isinstance(packaged, GuidedOptions)
    rows = []
    for count in steps:
        for order in ORDERS:
            options = replace(packaged, steps=count, order=order)
            alone, guided = (
                _change(batches, model, replace(options, guidance_scale=scale))
                for scale in (0.0, options.guidance_scale)
            )
            rows.append({"steps": count, "order": order, "alone": alone, "guided": guided, "share": alone / guided})
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(
        markdown_table(
            ["steps", "order", "there and back", "with guidance", "share"],
            [
                [
                    str(row["steps"]),
                    str(row["order"]),
                    number(row["alone"], 4),
                    number(row["guided"], 4),
                    number(row["share"], 2),
                ]
                for row in rows
            ],
        )
    )


def _change(batches: Sequence[SliceBatch], model: Model, options: GuidedOptions) -> float:
    """Mean absolute difference between slices and reconstructions inside the brain."""
    total, pixels = 0.0, 0
    for batch in batches:
        result = get_method("guided").run(batch, model, replace(options, side="both"), lambda calls: None)
        assert result.reconstruction is not None
        apart = (batch.images - result.reconstruction).abs().sum(dim=1, keepdim=True)
        total += float(apart[batch.brain].sum())
        pixels += int(batch.brain.sum())
    return total / pixels


def _batches(detector: Detector, scans: Sequence[Path], brains: Sequence[Path], count: int) -> Iterator[SliceBatch]:
    if brains and len(brains) != len(scans):
        raise InputError(f"{len(brains)} brain masks were given for {len(scans)} scans.", "Give one a scan, or none.")
    for place, path in enumerate(scans):
        scan = read_volume(path)
        brain = read_brain(brains[place], scan) if brains else detector.find_brain(scan)
        stack, scales = detector.slices(scan, brain)
        whole = make_batch(stack, scales, 0, len(stack), detector.plan.asked.seed)
        inside = [n for n in range(len(stack)) if bool(whole.brain[n].any())]
        chosen = [inside[i * len(inside) // count] for i in range(count)] if count < len(inside) else inside
        yield SliceBatch(whole.images[chosen], whole.brain[chosen], [whole.generators[n] for n in chosen])
