"""How fast, how large, how exact and how robust the methods are: everything that is measured beside an evaluation.

    python -m Testing.benchmarks                     # from the repository's root: speed, see below
    python -m Testing.benchmarks --model DIR --slices 8 --device cuda --output results
    python -m Testing.benchmarks memory              # peak memory of a scan of 512 x 512 x 300 voxels
    python -m Testing.benchmarks cohort              # many scans: workers against one process, see `cohort`
    python -m Testing.benchmarks large-cohort        # thousands of scans: what is not detection, see `large_cohort`
    python -m Testing.benchmarks compare --against CHECKOUT   # faster than another version? see `compare`
    python -m Testing.benchmarks rescan SCAN... -o OUT        # changes seen where nothing changed: see `rescan`

and for research, over folders of scans with references:

    python -m Testing.benchmarks robustness SCANS -o OUT     # against noise, thick slices, rotation: see `robustness`
    python -m Testing.benchmarks steps SCANS -o OUT          # the default against many more steps: see `steps`
    python -m Testing.benchmarks options SCANS --run guided --set steps=5,10 -o OUT     # what each value of an option
                                                                                        # is worth: see `options`

For each model package the first command prints

- seconds and network calls for each stage of a scan, in all and by slice, and the share of the machine's own
  bfloat16 matrix rate (that of one large product, measured in the same run) that the networks' stages reach;
- the default options against the plain reference of the method: float32, one slice at once, one sample a network
  call, and every level (all of [kl_from, kl_to) in the KL map, all below start_level when inpainting; all levels below
  `level` both ways for the guided method; all levels of the restorer). How much faster, and Spearman's rank
  correlation of the two scores inside the brain;
- a 256 x 256 x 25 version of the scan through the command line in a process of its own, from start to finish, and
  that process's peak memory.

Only the engine's public interface is used. Other work on the machine slows the run down and makes the matrix
rate, and with it the shares, smaller: leave the machine alone meanwhile. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_anomaly.detection.planning import Options, make_plan
from diffusion_anomaly.errors import ModelError
from diffusion_anomaly.io.outputs import prepare_folder, publish
from diffusion_anomaly.io.records import record
from diffusion_anomaly.models.package import open_bundle
from diffusion_anomaly.registry import METHODS
from diffusion_anomaly.system import choose_device, device_name, versions

from . import cohort, compare, large_cohort, measure, options, rescan, robustness, roundtrip, steps, trajectories
from .measure import say
from .memory import child, memory
from .speed import speed

LARGE = (512, 512, 300)
# What has arguments of its own.
OTHERS = {
    "cohort": cohort.main,
    "compare": compare.main,
    "large-cohort": large_cohort.main,
    "rescan": rescan.main,
    "robustness": robustness.main,
    "roundtrip": roundtrip.main,
    "steps": steps.main,
    "options": options.main,
    "trajectories": trajectories.main,
}


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    asked = _parser().parse_args(arguments)
    if asked.child:
        return child(asked)
    asked.device = str(choose_device(asked.device))
    file = f"benchmark-{asked.what}.json"
    if asked.output is not None:
        prepare_folder(asked.output, [file])
    about = machine(asked.device)
    report: dict[str, Any] = {"machine": about, "scan": str(asked.scan)}
    say("\n".join(f"- {name}: {value}" for name, value in about.items()))
    models = asked.model or [name for name in [method.default_model for method in METHODS.values()] if _exists(name)]
    if asked.what == "memory":
        report["memory"] = memory(asked, models)
    else:
        # The baseline's package has no network to measure.
        report["models"] = [speed(asked, model) for model in models if open_bundle(model).networks]
    if asked.output is not None:
        publish(asked.output, {file: record(report)})
    return 0


def machine(device: str) -> dict[str, Any]:
    """The hardware and its own rates."""
    place = make_plan(Options("intensity", device=device)).device
    rates = {
        f"matrix rate, {str(dtype).removeprefix('torch.')}": f"{measure.matrix_rate(place, dtype) / 1e9:.0f} GFLOP/s"
        for dtype in (torch.bfloat16, torch.float32)
    }
    return {
        "device": f"{device_name(place)} ({place})",
        "processor": f"{device_name('cpu')}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "system": platform.platform(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        **rates,
    }


def _exists(name: str) -> bool:
    try:
        open_bundle(name)
    except ModelError as error:
        sys.stderr.write(f"left out: {error}\n")
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m Testing.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="?", choices=("speed", "memory"), default="speed")
    add("--scan", type=Path, default=measure.SAMPLE, help="default: the sample scan")
    add("--brain", type=Path, help="brain mask on the scan's grid; default: found by the network")
    add(
        "--model",
        action="append",
        help="package by name or folder, repeatable; default: all that ship with the engine",
    )
    add("--slices", type=int, default=8, help="compared with the plain reference; default: 8, a batch")
    add("--size", type=int, nargs=3, default=LARGE, help="voxels of the large scan; default: 512 512 300")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--output", type=Path, metavar="DIR", help="also write all numbers there as JSON")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    return parser
