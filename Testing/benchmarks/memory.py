"""Peak memory of a large scan, each method in a process of its own."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.io.volume import read_mask, read_volume
from diffusion_anomaly.models.package import open_bundle

from . import measure
from .measure import GIBIBYTE, resampled, say, table, timed


def memory(asked: argparse.Namespace, models: Sequence[str]) -> list[dict[str, Any]]:
    """Peak memory of a large scan beyond what the process holds once the model is loaded."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = read_volume(asked.scan)
        scan = resampled(source.image, tuple(asked.size), sitk.sitkLinear, Path(folder) / "FLAIR.nrrd")
        brain = None
        if asked.brain is not None:
            mask = read_mask(asked.brain, source)
            brain = resampled(mask, tuple(asked.size), sitk.sitkNearestNeighbor, Path(folder) / "brain.nrrd")
        for model in ["", *models]:
            command: list[str | Path] = ["-m", "Testing.benchmarks", "memory", "--child", "--scan", scan]
            command += ["--device", asked.device, "--precision", asked.precision]
            command += [*(["--model", model] if model else []), *(["--brain", brain] if brain else [])]
            output, _, _ = measure.run_process(command)
            rows.append(json.loads(output))
    names = ["method", "model", "held with the model, GiB", "peak, GiB", "beyond, GiB", "s"]
    say(f"\n## Memory of a {'x'.join(map(str, asked.size))} scan\n")
    cells = [
        [
            r["method"],
            r["model"],
            f"{r['held_gib']:.2f}",
            f"{r['peak_gib']:.2f}",
            f"{r['beyond_gib']:.2f}",
            f"{r['seconds']:.0f}",
        ]
        for r in rows
    ]
    say(table(names, cells))
    return rows


def child(asked: argparse.Namespace) -> int:
    """In a process of its own: load the model, note what is held, run the scan, note the peak."""
    name = asked.model[0] if asked.model else None
    method = "intensity" if name is None else open_bundle(name).method
    plan = make_plan(Options(method, name, device=asked.device, precision=asked.precision))
    detector = Detector(plan)
    model = detector.model
    held = measure.resident_bytes()
    del model

    def run() -> None:
        volume = read_volume(asked.scan)
        mask = None if asked.brain is None else read_mask(asked.brain, volume)
        with tempfile.TemporaryDirectory() as folder:
            detector(volume, brain=mask).save(folder)

    _, seconds = timed(run)
    peak = measure.peak_bytes()
    say(
        json.dumps(
            {
                "method": method,
                "model": name or "",
                "held_gib": held / GIBIBYTE,
                "peak_gib": peak / GIBIBYTE,
                "beyond_gib": (peak - held) / GIBIBYTE,
                "seconds": seconds,
            }
        )
    )
    return 0
