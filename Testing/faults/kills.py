"""Processes ended by signals at random moments: what they leave is all of a result or none, and no litter.

SIGKILL cannot be answered, so what it leaves may wait for the next ordinary run, which must take it away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import pool
from .pool import FINISHED, Verdict, chance_of, environment
from .verdict import Failed

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE = 30.0  # seconds for a process to end when it was asked to
LONGEST = 120.0  # seconds for a run that nobody disturbs
COLD = 0.1  # share of runs that start as a process of their own, imports and all
RECORD = "provenance.json"


@dataclass(frozen=True)
class Program:
    """What is run and what it leaves.

    Attributes:
        module, arguments: of ``python -m``; the arguments for a case's folder and whether it is an earlier run.
        output: the folder it writes, in a case's folder.
        state: what is in that folder: empty for nothing, else something that stands for the whole; raises ``Failed``
            for what is neither.
    """

    module: str
    arguments: Callable[[Path, bool], list[str]]
    output: str
    state: Callable[[Path, bool], str]


def prepare(folder: Path) -> None:
    """What all cases read: a small scan with its brain, packages, a job, configurations of training."""
    import SimpleITK as sitk

    import packages
    import phantom
    from Testing.training.stages import Workplace
    from Testing.training.test_package import configure

    empty = phantom.grid((36, 42, 10), (5.0, 5.0, 12.0))
    sitk.WriteImage(phantom.paint(empty, fluid=True), str(folder / "scan.nii.gz"))
    sitk.WriteImage(phantom.brain_of(empty), str(folder / "brain.nii.gz"))
    packages.unsupervised(folder / "toy", options={"steps": 20, "kl_levels": 8, "mask_sigma": 1.0})
    place = Workplace(folder, folder)
    place.entries["brain"]["trainer"] = {**place.entries["brain"]["trainer"], "steps": 12}
    place.write("brain")
    for name, reference in (("new", 0.4), ("earlier", 0.41)):
        configure(
            place,
            name,
            method="intensity",
            stages={},
            options={"reference": reference},
            grid={"size": [20, 20], "spacing": 2.0},
            normalisation={"kind": "mode", "low_percentile": 0.5, "mode_value": 0.4, "clip_max": 4.0},
        )


def run(folder: Path, cases: Iterator[int]) -> Iterator[Verdict]:
    """Kill a process a case, one after another."""
    shared = folder / "seeds-kill"
    shared.mkdir()
    prepare(shared)
    before = _digest(shared)
    with _Server() as server:
        usual: dict[str, _Usual] = {}  # of the programs that have had a case
        for seed in cases:
            place = folder / f"case-{seed}"
            try:
                outcome = _case(chance_of("kill", seed), place, shared, server, usual)
                if _digest(shared) != before:
                    raise Failed("what the run read has changed")
                verdict = Verdict("kill", seed, outcome)
            except Failed as error:
                verdict = Verdict("kill", seed, "wrong", str(error))
            shutil.rmtree(place, ignore_errors=True)
            yield verdict


@dataclass(frozen=True)
class _Usual:
    seconds: float
    states: tuple[str, str]  # of an earlier run, and of the run that is killed


def _usual(name: str, program: Program, shared: Path, folder: Path, server: _Server) -> _Usual:
    """How long an undisturbed run takes, and what it leaves."""
    states = []
    seconds = 0.0
    for earlier in (True, False):
        place = _place(folder / f"usual-{name}", shared)
        begin = time.monotonic()
        server.complete(program, place, earlier)
        seconds = time.monotonic() - begin
        states.append(program.state(place / program.output, True))
        if not states[-1]:
            raise RuntimeError(f"{name} leaves nothing: {(place / 'log.txt').read_text(errors='replace')[-2000:]}")
        shutil.rmtree(place)
    return _Usual(seconds, (states[0], states[1]))


def _place(place: Path, shared: Path) -> Path:
    (place / "tmp").mkdir(parents=True)
    from diffusion_anomaly.worker import protocol

    given = {"method": "unsupervised", "model": str(shared / "toy"), "mask": str(shared / "brain.nii.gz")}
    for name, threshold in (("new", 2.0), ("earlier", 2.5)):
        (place / f"job-{name}").mkdir()
        options = {"device": "cpu", "threshold": threshold}
        job = protocol.Job(str(shared / "scan.nii.gz"), str(place / "results"), options=options, **given)
        protocol.write_job(job, place / f"job-{name}")
    return place


def _case(chance: random.Random, place: Path, shared: Path, server: _Server, usual: dict[str, _Usual]) -> str:
    name = chance.choice(list(PROGRAMS))
    program = PROGRAMS[name]
    if name not in usual:
        usual[name] = _usual(name, program, shared, place.parent, server)
    expected = usual[name]
    number = chance.choice(SIGNALS)
    has_earlier, cold = chance.random() < 0.5, chance.random() < COLD
    moment = chance.random() * (expected.seconds + (3.0 if cold else 0.0))
    _place(place, shared)
    if has_earlier:
        server.complete(program, place, True)
    about = (
        f"{name}, {signal.Signals(number).name} after {moment:.2f} s{', over an earlier one' if has_earlier else ''}"
    )
    process = server.start(program, place, False, cold=cold)
    time.sleep(moment)
    finished = not _alive(process)
    if not finished:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
        if not _until(lambda: not _alive(process), PATIENCE):
            os.killpg(process, signal.SIGKILL)
            raise Failed(f"{about}: it did not end within {PATIENCE:.0f} s")
    if not _until(lambda: not _session(process), 10.0):
        left = _session(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        raise Failed(f"{about}: {len(left)} processes outlive it")
    strict = number != signal.SIGKILL or finished
    try:
        state = program.state(place / program.output, strict)
        allowed = {expected.states[1], expected.states[0] if has_earlier else ""}
        if finished:
            allowed = {expected.states[1]}
        if state not in allowed and (strict or state or has_earlier):
            raise Failed(f"what it leaves is neither the earlier result nor the new one ({state[:60] or 'nothing'})")
        if strict:
            _check_litter(place)
        else:
            server.complete(program, place, False)
            if program.state(place / program.output, True) != expected.states[1]:
                raise Failed("the next run does not give what it should")
            _check_litter(place, ("tmp",))
    except Failed as error:
        raise Failed(f"{about}: {error}") from error
    return FINISHED if finished else f"{name} {signal.Signals(number).name}"


def _check_litter(place: Path, but: tuple[str, ...] = ()) -> None:
    """No hidden or half-written file, and nothing in the folder for temporary files."""
    litter = [
        path.relative_to(place).as_posix()
        for path in place.rglob("*")
        if path.relative_to(place).parts[0] not in but
        and (path.name.startswith(".") or "partial" in path.name or path.parent == place / "tmp")
    ]
    if litter:
        raise Failed(f"it leaves {', '.join(sorted(litter)[:5])}")


def _results(folder: Path, strict: bool) -> str:
    """Of results: empty, or what scores, mask, findings and threshold are. The record speaks for the others."""
    import SimpleITK as sitk

    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if RECORD not in there:
        if strict and there:
            raise Failed(f"there are {', '.join(there)} without {RECORD}")
        return ""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        parts = [str(record["options"]["threshold"])]
        for name in ("heat.nii.gz", "mask.nii.gz", "brain.nii.gz"):
            voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name)))
            parts.append(hashlib.sha256(voxels.tobytes()).hexdigest()[:16])
        parts.append(hashlib.sha256((folder / "findings.csv").read_bytes()).hexdigest()[:16])
        json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        if not (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>"):
            raise ValueError("the report is cut short")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise Failed(f"there is a {RECORD} without its whole result: {str(error)[:200]}") from error
    return " ".join(parts)


def _package(folder: Path, strict: bool) -> str:
    """Of a folder of packages: empty, or the SHA256 of the verified one."""
    from diffusion_anomaly.errors import ModelError
    from diffusion_anomaly.models.package import open_bundle
    from diffusion_anomaly.models.verification import verify

    if not (folder / "toy").exists():
        return ""
    try:
        bundle = open_bundle(folder / "toy")
        verify(bundle)
    except ModelError as error:
        raise Failed(f"the package under its name is no whole one: {error}") from error
    return bundle.sha256


def _training(folder: Path, strict: bool) -> str:
    """Of a run directory: empty, or "trained" where a checkpoint can be read."""
    import torch

    checkpoint = folder / "checkpoint.pt"
    if not checkpoint.exists():
        return ""
    try:
        torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:
        raise Failed(f"the checkpoint cannot be read: {str(error)[:100]}") from error
    return "trained"


def _detect(place: Path, earlier: bool) -> list[str]:
    shared = place.parent / "seeds-kill"
    arguments = ["detect", shared / "scan.nii.gz", "--mask", shared / "brain.nii.gz", "--model", shared / "toy"]
    arguments += ["--device", "cpu", "--output", place / "results", "--threshold", 2.5 if earlier else 2.0]
    return [str(argument) for argument in arguments]


PROGRAMS = {
    "detect": Program("diffusion_anomaly", _detect, "results", _results),
    "worker": Program(
        "diffusion_anomaly.worker",
        lambda place, earlier: [str(place / ("job-earlier" if earlier else "job-new"))],
        "results",
        _results,
    ),
    "training": Program(
        "training",
        lambda place, earlier: ["brain", str(place.parent / "seeds-kill" / "brain.yaml"), "--run", str(place / "run")],
        "run",
        _training,
    ),
    "package": Program(
        "training",
        lambda place, earlier: [
            "package",
            str(place.parent / "seeds-kill" / f"package-{'earlier' if earlier else 'new'}.yaml"),
            "--output",
            str(place / "packages"),
        ],
        "packages",
        _package,
    ),
}


class _Server:
    """The process that forks, see ``forkserver``."""

    def __enter__(self) -> _Server:
        command = [sys.executable, "-m", "Testing.faults.forkserver"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=pool.REPOSITORY
        )
        self._answer(300.0)
        self._cold: list[subprocess.Popen[bytes]] = []
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()  # it holds nothing, and its interpreter takes its time to end
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def start(self, program: Program, place: Path, earlier: bool, *, cold: bool = False) -> int:
        """A process of the program; its id, which is that of its session too."""
        arguments = program.arguments(place, earlier)
        log, temporary = place / "log.txt", place / "tmp"
        if cold:
            with log.open("ab") as stream:
                process = subprocess.Popen(
                    [sys.executable, "-m", program.module, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=stream,
                    env={**environment(), "TMPDIR": str(temporary)},
                    cwd=place,
                    start_new_session=True,
                )
            self._cold.append(process)
            return process.pid
        order = {"module": program.module, "arguments": arguments, "log": str(log), "temporary": str(temporary)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**order, "folder": str(place)}).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._answer(60.0))

    def complete(self, program: Program, place: Path, earlier: bool) -> None:
        """Run to the end."""
        process = self.start(program, place, earlier)
        if not _until(lambda: not _alive(process), LONGEST):
            os.killpg(process, signal.SIGKILL)
            raise Failed(f"an ordinary run of {program.module} does not end")

    def _answer(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            raise RuntimeError("the process that forks does not answer")
        return self._process.stdout.readline()


def _status(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _alive(process: int) -> bool:
    status = _status(process)
    if status and status[0] == "Z":
        with contextlib.suppress(ChildProcessError):  # one of the server's, which waits for none
            os.waitpid(process, os.WNOHANG)
        return False
    return bool(status)


def _session(process: int) -> list[int]:
    """Processes of a session that are still at work."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            status = _status(int(entry.name))
            if status and status[0] != "Z" and int(status[3]) == process:
                found.append(int(entry.name))
    return found


def _until(happened: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
