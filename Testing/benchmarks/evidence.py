"""What the measurements over a folder of scans share: their arguments, what is already known, how far they are.

A measurement takes hours and may be stopped at any moment. Each of its parts is therefore a file with the fingerprint
of everything that it depends on, and whoever starts again computes only what is missing or has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from diffusion_anomaly import __version__
from diffusion_anomaly.detection.planning import Plan, resolved_options
from diffusion_anomaly.detection.provenance import describe_brain_model, describe_bundle
from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.evaluation import evaluate
from diffusion_anomaly.evaluation.dataset import Pair
from diffusion_anomaly.evaluation.formatting import finite, text_writer
from diffusion_anomaly.io.files import write_text
from diffusion_anomaly.io.outputs import prepare_folder, publish
from diffusion_anomaly.io.records import record
from diffusion_anomaly.io.volume import Volume, read_mask, read_volume, write_like
from diffusion_anomaly.registry import METHODS
from diffusion_anomaly.system import device_name, versions


def parser(
    name: str, description: str | None, runs: str = "repeatable; default: every method's own model"
) -> argparse.ArgumentParser:
    """The arguments that the measurements share; ``runs`` says how often ``--run`` may stand."""
    made = argparse.ArgumentParser(
        prog=f"python -m Testing.benchmarks {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("data", type=Path, metavar="FOLDER|CSV", help="scans with reference masks, as for diffusion-anomaly evaluate")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="for tables, and for going on after a stop")
    add("--run", action="append", metavar="METHOD[:PRESET][=MODEL]", help=runs)
    add("--patients", type=int, metavar="N", help="so many of them, evenly spread over their names; default: all")
    add("--patient", action="append", metavar="NAME", help="this one; repeatable")
    add("--scan-pattern", help="scans in a folder; * is the patient (default: *_flair.nii.gz)")
    add("--mask-pattern", help="their reference masks (default: *_mask.nii.gz)")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--seed", type=int, default=0)
    return made


def chosen(pairs: Sequence[Pair], names: Sequence[str] | None, count: int | None) -> list[Pair]:
    """Some of the patients: those named, or so many evenly spread over their order.

    Raises:
        InputError: for a name that is not there, or a number below 1.
    """
    if names:
        missing = sorted(set(names) - {pair.name for pair in pairs})
        if missing:
            raise InputError(
                f"There is no patient {', '.join(missing)}.", f"There are {', '.join(pair.name for pair in pairs)}."
            )
        return [pair for pair in pairs if pair.name in names]
    if count is None or count >= len(pairs):
        return list(pairs)
    if count < 1:
        raise InputError(f"{count} patients were asked for.", "Ask for at least 1.")
    return [pairs[(2 * n + 1) * len(pairs) // (2 * count)] for n in range(count)]


def plans_of(asked: argparse.Namespace) -> dict[str, Plan]:
    """What is run, by label, as an evaluation would: with the baselines beside."""
    specs = [evaluate.RunSpec.parse(run, precision=asked.precision) for run in asked.run or METHODS]
    return evaluate.plan_runs(specs, asked.device, asked.seed)


def file_name(name: str) -> str:
    return re.sub(r"[^\w.()-]+", "_", name).strip("_")


def fingerprint(plan: Plan, *more: Any, raw: bool = False) -> str:
    """Everything that a result depends on but the engine's code, as a short text.

    Args:
        plan: what runs.
        more: what else it depends on.
        raw: for anomaly scores as the method gives it, which post-processing, calibration and threshold have no say in.
    """
    parts = {
        "engine": __version__,
        "method": plan.method.name,
        "model": _networks(plan) if raw else None if plan.bundle is None else describe_bundle(plan.bundle),
        "brain": describe_brain_model(),
        "options": [asdict(plan.method_options), plan.asked.seed, plan.asked.slice_spacing]
        if raw
        else resolved_options(plan),
        "precision": plan.precision,
        "device": plan.device,
        "more": more,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _networks(plan: Plan) -> Any:
    """The package without what happens to anomaly scores after the method, so that calibrating it anew changes nothing
    here.
    """
    if plan.bundle is None:
        return None
    after = ("calibration", "threshold", "score_range", "postprocess", "intensity", "version")
    others = ("configs/anomaly.json", "configs/metadata.json")
    files = {
        name: record.sha256
        for name, record in plan.bundle.files.items()
        if name.startswith(("models/", "configs/")) and name not in others
    }
    return files, {key: value for key, value in plan.bundle.anomaly.items() if key not in after}


class Known:
    """Results of earlier runs, one JSON file each, with the fingerprint of what they were computed from."""

    def __init__(self, folder: Path) -> None:
        self.folder = prepare_folder(folder)

    def get(self, name: str, stamp: str) -> dict[str, Any] | None:
        """What is known under that name, if it was computed from the same."""
        path = self.folder / f"{file_name(name)}.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["values"] if content["fingerprint"] == stamp else None

    def put(self, name: str, stamp: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keep it, whole or not at all; returns it as ``get`` will."""
        content = {"fingerprint": stamp, "values": finite(values)}
        write_text(self.folder / f"{file_name(name)}.json", json.dumps(content, allow_nan=False) + "\n")
        return json.loads(json.dumps(content["values"]))


def brain_of(pair: Pair, volume: Volume, folder: Path, device: str) -> sitk.Image:
    """The given brain mask; else the one that was found before in the same scan; else a new one, kept in the folder."""
    from diffusion_anomaly.detection.brain import BrainFinder

    if pair.brain is not None:
        return read_mask(pair.brain, volume)
    known = Known(folder)
    stamp = f"{volume.sha256} {describe_brain_model()['sha256']}"
    path = folder / f"{file_name(pair.name)}.nii.gz"
    if known.get(pair.name, stamp) is None or not path.exists():
        write_like(BrainFinder(device=device)(volume), volume, path, dtype="uint8")
        known.put(pair.name, stamp, {})
    return read_mask(path, volume)


class Progress:
    """A line on stderr for each part that is done, with the time left."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._computed = total, 0, 0
        self._start = self._last = time.perf_counter()

    def done(self, what: str, *, known: bool = False) -> None:
        """One more part is done, or was known from before."""
        now = time.perf_counter()
        self._done += 1
        self._computed += not known
        if known:
            text = "known from before"
        else:
            left = (now - self._start) / self._computed * (self._total - self._done)
            text = f"{_clock(now - self._last)}, at most {_clock(left)} left"
        self._last = now
        sys.stderr.write(f"[{self._done}/{self._total}] {what}: {text}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def about(plans: Mapping[str, Plan], pairs: Sequence[Pair]) -> dict[str, Any]:
    """What was measured on what."""
    return {
        "patients": [pair.name for pair in pairs],
        "runs": {
            label: {
                "method": plan.method.name,
                "model": None if plan.bundle is None else describe_bundle(plan.bundle),
                "options": resolved_options(plan),
            }
            for label, plan in plans.items()
        },
        "hardware": hardware(plans.values()),
        "versions": versions(),
    }


def hardware(plans: Iterable[Plan]) -> str:
    devices = dict.fromkeys(f"{device_name(plan.device)} ({plan.device})" for plan in plans)
    return f"{', '.join(devices)}, {os.cpu_count()} processor cores"


def files(name: str) -> tuple[str, str]:
    """What ``write`` writes, the record last: to be looked for before a long computation."""
    return f"{name}.md", f"{name}.json"


def write(output: Path, name: str, content: Mapping[str, Any], markdown: str) -> None:
    """``name.json`` and ``name.md``, and the latter on stdout."""
    plain = json.loads(json.dumps(finite(content), allow_nan=False, default=str))
    publish(output, dict(zip(files(name), (text_writer(markdown), record(plain)), strict=True)))
    sys.stdout.write(markdown)


def read_pair(pair: Pair) -> tuple[Volume, sitk.Image, str]:
    """Scan, reference mask, and a hash of both files."""
    volume = read_volume(pair.scan)
    return volume, read_mask(pair.reference, volume), f"{volume.sha256} {read_volume(pair.reference).sha256}"


def refuse(error: EngineError) -> int:
    """Say on stderr what is wrong; the exit code."""
    sys.stderr.write(f"error: {error.what}\n{error.hint}\n")
    return error.exit_code
