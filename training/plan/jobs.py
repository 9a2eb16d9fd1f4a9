"""From a plan to jobs: each stage's own configuration file, with its files where they are on this machine.

A plan, and the configurations that it names, say where files are on the machine that it was written for. Runs may go
elsewhere (a rehearsal's do), and prepared arrays may come from one folder that ``pack`` wrote. So every job gets a
configuration of its own, whole and with the paths of this machine, beside its run: also a record of what was run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ..stages import TRAININGS, config_class
from ..trainer.configuration import ConfigurationError, merged, read_entries, read_yaml
from ..trainer.progress import read_progress
from .declaration import Plan

REHEARSAL = "rehearsal"  # among the runs: what is not trained to its end must not pass for it
PACKED = "packed.json"  # in a folder of packed arrays: which file stands for which path


@dataclass(frozen=True)
class Settings:
    """How a plan is carried out.

    Attributes:
        runs: where run folders and packages go; without it where the plan says, a rehearsal's into a folder there.
        data: folder that ``pack`` wrote; its files stand for the plan's.
        scale: of the trainings' steps.
        batch_size: of every training; without it that of each configuration.
    """

    runs: Path | None = None
    data: Path | None = None
    scale: float = 1.0
    batch_size: int | None = None


@dataclass(frozen=True)
class Job:
    """A stage as it is run here.

    Attributes:
        name: of the stage.
        command: of ``python -m training``.
        config: its own configuration file.
        folder: run folder, or the package.
        needs: stages that have to be finished first.
        weight: of its share in the minutes.
        steps: of a training; 0 of a package.
    """

    name: str
    command: str
    config: Path
    folder: Path
    needs: tuple[str, ...]
    weight: float
    steps: int

    @property
    def trains(self) -> bool:
        return self.command in TRAININGS

    @property
    def arguments(self) -> list[str]:
        """Of ``python -m training``."""
        where = ["--run", str(self.folder)] if self.trains else ["--output", str(self.folder.parent)]
        return [self.command, str(self.config), *where]

    @property
    def log(self) -> Path:
        return self.config.with_name("log.txt")

    @property
    def result(self) -> Path:
        """The file that is there once there is a result, though not the last."""
        return self.folder / ("checkpoint.pt" if self.trains else "configs/metadata.json")

    def is_finished(self, needed: Iterable[Job]) -> bool:
        """Whether a training has come to its end; of a package, whether it is newer than what it needs."""
        if not self.result.is_file():
            return False
        if not self.trains:
            made = self.result.stat().st_mtime
            return all(other.result.is_file() and other.result.stat().st_mtime <= made for other in needed)
        found = read_progress(self.folder / "progress.json")
        return bool(found.get("complete")) and (found["step"] >= self.steps or found["spent"] >= 1.0)


def make_jobs(plan: Plan, settings: Settings) -> dict[str, Job]:
    """All stages of a plan as jobs, in its order. Their configurations are written by this.

    Raises:
        ConfigurationError: when a configuration cannot be read or has a wrong entry.
    """
    stages, runs = plan.present, settings.runs or (plan.runs if settings.scale == 1.0 else plan.runs / REHEARSAL)
    packages = plan.packages if runs == plan.runs else runs / plan.packages.name
    homes = {name: runs / name for name in stages}
    places = _packed(settings.data) | {
        **{(plan.runs / name).as_posix(): home.as_posix() for name, home in homes.items()},
        **{stages[name].config.as_posix(): (home / "config.yaml").as_posix() for name, home in homes.items()},
    }
    jobs = {}
    for name, stage in stages.items():
        entries = merged(read_entries(stage.config), stage.changes)
        if not isinstance(entries, dict):
            raise ConfigurationError(f"{stage.config} holds no entries.")
        trains = stage.command in TRAININGS
        entries = _relocated(entries, places, homes[name])
        if trains:
            entries["trainer"] = _rehearsed(entries.get("trainer"), settings)
        config = homes[name] / "config.yaml"
        _write(entries, config)
        checked: Any = read_yaml(config, config_class(stage.command) if trains else _Package)
        folder = homes[name] if trains else packages / checked.name
        steps = checked.trainer.steps if trains else 0
        jobs[name] = Job(name, stage.command, config, folder, tuple(stage.needs), stage.weight, steps)
    return jobs


class _Package(BaseModel):
    """Of a package's configuration, what matters here; the stage itself checks the rest."""

    name: str


def missing_files(plan: Plan, jobs: Mapping[str, Job], chosen: Iterable[str]) -> list[str]:
    """What the chosen trainings read and is not there, nor made before by what they need; in words."""
    readers: dict[Path, list[str]] = {}
    wrong = []
    for name in chosen:
        job = jobs[name]
        if not job.trains:
            continue
        for path in files_read(read_yaml(job.config, config_class(job.command))):
            maker = next((other.name for other in jobs.values() if other.folder in (path, *path.parents)), name)
            if maker != name and maker not in plan.before(name):
                wrong.append(f"{name} reads {path}, which {maker} makes, but does not name {maker} among its needs")
            elif maker == name and not path.exists():
                readers.setdefault(path, []).append(name)
    return wrong + [
        f"{path} does not exist, which {', '.join(dict.fromkeys(names))} reads" for path, names in readers.items()
    ]


def files_read(config: Any) -> Iterator[Path]:
    """Every path in a configuration, and in those that it names."""
    if isinstance(config, Path):
        yield config
        if config.suffix in (".yaml", ".yml") and config.is_file():
            yield from _files_named(read_entries(config))
    elif isinstance(config, BaseModel):
        yield from files_read(list(dict(config).values()))
    elif isinstance(config, dict):
        yield from files_read(list(config.values()))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from files_read(value)


def _files_named(entries: Any) -> Iterator[Path]:
    """Of entries whose kind is not known, what looks like a file of arrays."""
    for value in _strings(entries):
        if Path(value).suffix in (".npz", ".pt", ".safetensors"):
            yield Path(value)


def _strings(entries: Any) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, dict):
        yield from _strings(list(entries.values()))
    elif isinstance(entries, list):
        for value in entries:
            yield from _strings(value)


def _packed(data: Path | None) -> dict[str, str]:
    if data is None:
        return {}
    try:
        files = json.loads((data / PACKED).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{data} holds no packed arrays ({error}); python -m training pack writes them."
        ) from error
    return {path: (data / file).as_posix() for path, file in files.items()}


def _relocated(entries: Any, places: Mapping[str, str], home: Path) -> Any:
    """Entries with every path where it is here; configurations that they name are written anew in ``home`` too."""
    if isinstance(entries, dict):
        return {key: _relocated(value, places, home) for key, value in entries.items()}
    if isinstance(entries, list):
        return [_relocated(value, places, home) for value in entries]
    if not isinstance(entries, str) or len(entries) > 500 or "\n" in entries:
        return entries
    for old in (entries, *(parent.as_posix() for parent in Path(entries).parents)):
        if old in places and old != ".":
            return places[old] + entries[len(old) :]
    if entries.endswith((".yaml", ".yml")) and Path(entries).is_file():
        inside = read_entries(Path(entries))
        here = _relocated(inside, places, home)
        if here != inside:
            _write(here, home / Path(entries).name)
            return (home / Path(entries).name).as_posix()
    return entries


def _rehearsed(trainer: Any, settings: Settings) -> Any:
    """A training's settings with its steps and warm-up scaled, watched once at its end."""
    if not isinstance(trainer, dict):
        return trainer
    changed = dict(trainer)
    if settings.batch_size is not None:
        changed["batch_size"] = settings.batch_size
    if settings.scale != 1.0:
        for entry in ("steps", "warmup_steps"):
            if isinstance(changed.get(entry), int):
                changed[entry] = max(1, round(settings.scale * changed[entry]))
        changed["validate_every"] = changed.get("steps", 1)
    return changed


def _write(entries: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
