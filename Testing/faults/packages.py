"""Mutated model packages and job files: what is usable, or an error of ours that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from . import mutations as mutate
from .verdict import Failed

MANIFEST = "configs/manifest.json"
KINDS = ("unsupervised", "guided", "restore", "localise", "intensity")


def prepare(folder: Path) -> None:
    """A toy package of every method."""
    import packages

    for kind in KINDS:
        getattr(packages, kind)(folder / kind)


def load() -> Callable[[random.Random, Path], str]:
    """What a child runs a case with."""
    import torch

    from diffusion_anomaly.models.package import open_bundle
    from diffusion_anomaly.models.verification import verify

    torch.set_num_threads(1)
    torch.zeros(1, 1, 8, 8).clone()
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet  # noqa: F401 - a second that no case has

    def case(chance: random.Random, folder: Path) -> str:
        package = mutated(folder.parent / "seeds-package", folder, chance)
        _check_listing(package)
        bundle = open_bundle(package)
        if chance.random() < 0.5:
            verify(bundle)
        else:  # as a run does that nobody has verified
            _run(bundle)
        for text in (bundle.license_text, bundle.data_license, bundle.model_card):
            text.encode("utf-8")
        return "result"

    return case


def mutated(seeds: Path, folder: Path, chance: random.Random) -> Path:
    """A mutated package in ``folder``, mostly with a manifest that agrees with its files."""
    package = Path(shutil.copytree(seeds / chance.choice(KINDS), folder / "toy"))
    files = sorted(path for path in package.rglob("*") if path.is_file())
    configs = [path for path in files if path.parent.name == "configs" and path.name != "manifest.json"]
    weights = [path for path in files if path.suffix == ".safetensors"]
    for _ in range(chance.choice((1, 1, 2, 3))):
        choice = chance.randrange(12)
        if choice < 7:
            _edit(chance.choice(configs), chance, mutate.some_json)
        elif choice < 9 and weights:
            _edit(chance.choice(weights), chance, _weights)
        elif choice == 9:
            _edit(chance.choice(files), chance, mutate.some_bytes)
        else:
            _replace(chance.choice(files), chance)
    if chance.random() < 0.8:
        _seal(package)
    if chance.random() < 0.15 and (package / MANIFEST).is_file():
        _edit(package / MANIFEST, chance, mutate.some_json)
    return package


def _edit(path: Path, chance: random.Random, change: Callable[[bytes, random.Random], bytes]) -> None:
    if path.is_file():
        path.write_bytes(change(path.read_bytes() or b"x", chance))


def _weights(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3 or len(data) < 8:
        return mutate.some_bytes(data, chance)
    length = struct.unpack("<Q", data[:8])[0]
    header = mutate.some_json(data[8 : 8 + length], chance)
    size = len(header) if chance.random() < 0.9 else chance.choice((0, 1, 2**20, 2**40, 2**64 - 1))
    return struct.pack("<Q", size) + header + data[8 + length :]


def _replace(path: Path, chance: random.Random) -> None:
    if path.is_symlink() or not path.is_file():
        return
    choice = chance.randrange(7)
    if choice == 6:
        with path.open("wb") as file:
            file.truncate(chance.choice((10**7, 10**9, 10**10)))
        return
    path.unlink()
    if choice == 1:
        path.mkdir()
    elif choice == 2:
        os.mkfifo(path)
    elif choice == 3:
        path.symlink_to(chance.choice(("/etc/passwd", "/dev/zero", "../..", path, "gone")))
    elif choice == 4:
        path.write_bytes(b"")
    elif choice == 5:
        path.write_bytes(b"x" * 3_000_000)


def _seal(package: Path) -> None:
    records = {}
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_file() and not path.is_symlink() and name != MANIFEST:
            if path.stat().st_size > 10**8:
                records[name] = {"sha256": "0" * 64, "size": path.stat().st_size}
            else:
                data = path.read_bytes()
                records[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    path = package / MANIFEST
    if path.is_file() and not path.is_symlink():
        path.write_text(json.dumps({"schema_version": 1, "files": records}))


def _check_listing(package: Path) -> None:
    from diffusion_anomaly.models.package import available, builtin_directory

    listed = available([package.parent])
    built_in = [summary for summary in listed if summary.path.parent == builtin_directory()]
    if not built_in or any(summary.problem for summary in built_in):
        raise Failed("a hostile package hides those that come with the engine")
    for summary in listed:
        json.dumps([summary.name, summary.problem, dict(summary.quality), summary.spacing, summary.size_mb])


def _run(bundle) -> None:
    import numpy as np
    import SimpleITK as sitk

    from diffusion_anomaly.detection.detector import Detector
    from diffusion_anomaly.detection.planning import Options
    from diffusion_anomaly.io.volume import Volume

    brain = np.zeros((2, 20, 16), np.uint8)
    brain[:, 2:18, 2:14] = 1
    values = np.where(brain, np.random.default_rng(0).normal(100, 10, brain.shape), 0).astype(np.float32)
    image, mask = sitk.GetImageFromArray(values), sitk.GetImageFromArray(brain)
    for each in (image, mask):
        each.SetSpacing((8.0, 8.0, 5.0))
    plan = Options(method=bundle.method, model=str(bundle.path), device="cpu", batch_size=1)
    scan = Volume(image=image, source="scan", sha256="", dimension=3, non_finite=0)
    found = Detector(plan)(scan, brain=mask)
    if not np.isfinite(sitk.GetArrayViewFromImage(found.anomaly_map)).all():
        raise Failed("anomaly scores are not finite")


def prepare_jobs(folder: Path) -> None:
    """A job as the panel writes one."""
    from diffusion_anomaly.worker import protocol

    options = {"steps": 10, "device": "cpu", "seed": 0, "threshold": 2.0, "min_volume_ml": 0.05, "batch_size": 4}
    options |= {"slice_spacing": 3.0, "precision": "auto", "keep_reconstruction": True, "overrides": {"levels": 10}}
    protocol.write_job(protocol.Job("scan.nrrd", "results", "restore", None, None, options, "a title"), folder)


def load_jobs() -> Callable[[random.Random, Path], str]:
    """What a child runs a case with."""
    from diffusion_anomaly.detection.planning import make_plan
    from diffusion_anomaly.errors import EngineError
    from diffusion_anomaly.worker import protocol
    from diffusion_anomaly.worker.main import detection_options

    def case(chance: random.Random, folder: Path) -> str:
        data = (folder.parent / "seeds-job" / protocol.JOB_FILE).read_bytes()
        for _ in range(chance.choice((1, 1, 2, 3))):
            data = mutate.some_json(data, chance)
        (folder / protocol.JOB_FILE).write_bytes(data)
        for line in (data, b'{"event": "warning", "message": ' + data + b"}"):
            try:
                protocol.decode(line)
                protocol.job_of(f"run {line.decode('utf-8', 'replace')}")
            except EngineError:
                pass
        job = protocol.read_job(folder)
        make_plan(detection_options(job))
        return "result"

    return case
