"""All arrays that a plan's trainings read, in one small folder: what travels to a machine with a GPU.

Arrays are compressed harder than they were prepared with: bzip2 takes a fifth off stacks and label maps. LZMA would
take a little more off label maps, in twenty times the time. Of windows of real scans, which are large, as many are
taken as there is room for, every kind alike.
"""

from __future__ import annotations

import bz2
import json
import logging
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import whole_file

from ..stages import config_class
from ..trainer.configuration import ConfigurationError, read_yaml
from .declaration import Plan
from .jobs import PACKED, Settings, files_read, make_jobs

logger = logging.getLogger(__name__)

MEGABYTE = 1e6
GREYS = 63  # of packed windows; what is lost is below the noise that is added to them
SAFE = 0.97  # of the room: windows are measured one by one, and written together
WINDOWS = {"images", "brains", "kinds"}


def pack(plan: Plan, only: list[str], output: Path, limit: float) -> dict[str, float]:
    """Write what the trainings of a plan, or those named, read from outside it.

    Args:
        plan: which trainings.
        only: stages, or all.
        output: the folder; an earlier one's files are replaced.
        limit: megabytes that it may hold.

    Returns:
        Megabytes of each file, by the path that it stands for.

    Raises:
        ConfigurationError: when a file is missing, is of a kind that cannot be packed, or there is no room.
        InputError: when the folder holds something else.
    """
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / PACKED).is_file())):
        raise InputError(f"{output} holds something else than packed arrays.", "Choose another folder.")
    paths = _paths(plan, only)
    output.mkdir(parents=True, exist_ok=True)
    files, sizes = {}, {}
    (output / PACKED).write_text(json.dumps({"files": files}), encoding="utf-8")
    windows = [path for path in paths if path.suffix == ".npz" and _names(path) >= WINDOWS]
    for path in [path for path in paths if path not in windows] + windows:
        files[path.as_posix()] = name = _name(path, files.values())
        room = limit - sum(sizes.values())
        if path in windows:
            room /= len(windows) - windows.index(path)
            _write(output / name, _some_windows(path, SAFE * room * MEGABYTE))
        elif path.is_dir():
            for part in sorted(path.glob("*.npz")):
                (output / name).mkdir(exist_ok=True)
                _write(output / name / part.name, _arrays(part))
        elif path.suffix == ".npz":
            _write(output / name, _arrays(path))
        else:
            shutil.copyfile(path, output / name)
        sizes[path.as_posix()] = size = _size(output / name) / MEGABYTE
        logger.info("%s: %.2f MB", path, size)
        if sum(sizes.values()) > limit:
            raise ConfigurationError(f"{path} takes {size:.1f} MB, for which {room:.1f} of {limit:g} MB are left.")
    (output / PACKED).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    return sizes


def _paths(plan: Plan, only: list[str]) -> list[Path]:
    """Files and folders that trainings read and no stage of the plan makes."""
    found: dict[Path, None] = {}
    chosen = plan.chosen(only)
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(plan, Settings(runs=Path(folder)))
        for job in (jobs[name] for name in chosen if jobs[name].trains):
            for path in files_read(read_yaml(job.config, config_class(job.command))):
                if Path(folder) not in path.parents and path.suffix not in (".yaml", ".yml"):
                    found[path] = None
    for path in found:
        if not path.exists():
            raise ConfigurationError(f"{path} does not exist: prepare it, or name the stages to pack for with --only.")
        if not (path.suffix in (".npz", ".safetensors", ".pt") or (path.is_dir() and any(path.glob("*.npz")))):
            raise ConfigurationError(f"{path} is no file of arrays and no folder of them.")
        if path.is_dir() and any(path.glob("*.npy")):
            raise ConfigurationError(
                f"{path} holds drawn scans, which do not travel: name the configuration of draw-scans in its place, "
                "as training/configs/burst.yaml does."
            )
    return list(found)


def _name(path: Path, taken: Any) -> str:
    name, number = path.name, 2
    while name in taken:
        name, number = f"{path.stem}-{number}{path.suffix}", number + 1
    return name


def _names(path: Path) -> set[str]:
    with np.load(path, allow_pickle=False) as file:
        return set(file.files)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _some_windows(path: Path, room: float) -> dict[str, np.ndarray]:
    """As many windows as fit into so many bytes, one of each kind after the other, in fewer greys.

    Raises:
        ConfigurationError: when there is not even room for one of each kind.
    """
    arrays = _arrays(path)
    kinds, top = arrays["kinds"], float(arrays.get("top", 1.0))
    images = np.round(arrays["images"].astype(np.float32) * (GREYS / top)).astype(np.uint8)
    brains = np.packbits(arrays["brains"], -1) if arrays["brains"].dtype == bool else arrays["brains"]
    rng = np.random.default_rng(0)
    queues = [list(rng.permutation(np.flatnonzero(kinds == kind))) for kind in np.unique(kinds)]
    chosen: list[int] = []
    used, rounds = 2000.0, 0
    while any(queues):
        for queue in queues:
            if not queue:
                continue
            number = int(queue.pop())
            used += len(bz2.compress(images[number].tobytes())) + len(bz2.compress(brains[number].tobytes()))
            if used > room:
                queues = []
                break
            chosen.append(number)
        rounds += bool(queues)
    if not rounds:
        raise ConfigurationError(f"{path}: {room / MEGABYTE:.2f} MB hold no window of each kind.")
    logger.info("%s: %d of %d windows", path, len(chosen), len(kinds))
    chosen.sort()
    return {"images": images[chosen], "brains": brains[chosen], "kinds": kinds[chosen], "top": np.array(float(GREYS))}


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A file that ``numpy.load`` reads like any other."""
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_BZIP2) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as target:
                np.lib.format.write_array(target, np.asanyarray(array), allow_pickle=False)


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in path.rglob("*")) if path.is_dir() else path.stat().st_size
