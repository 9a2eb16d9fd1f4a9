"""All stages by one command: what is begun when and for how long, where files are, and how a stage's end is taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml

from diffusion_anomaly.detection.recognition_network import CHANNELS, KINDS
from diffusion_anomaly.errors import InputError
from Testing.training.fakes import REPOSITORY, state_of, wait_for
from Testing.training.stages import TRAINER, Workplace
from training.__main__ import command_line
from training.data.drawn_scans import FreshScans
from training.data.windows import Windows
from training.plan import running
from training.plan.declaration import Plan
from training.plan.jobs import Settings, make_jobs, missing_files
from training.plan.packing import pack
from training.plan.timing import Waiting, minutes_by_weight
from training.stages.diffusion import DiffusionConfig
from training.stages.recognition import RecognitionConfig, RecognitionTask
from training.trainer.configuration import ConfigurationError, read_yaml
from training.trainer.loop import Trainer
from training.trainer.progress import read_progress

WINDOW = (32, 32, 32)


@pytest.fixture
def place(tmp_path: Path, slices_folder: Path) -> Workplace:
    return Workplace(tmp_path, slices_folder)


def plan_of(place: Workplace, stages: dict[str, Any]) -> Path:
    """A plan of stages that leave their runs in ``runs``."""
    path = place.folder / "plan.yaml"
    entries = {"runs": str(place.folder / "runs"), "packages": str(place.folder / "packages"), "stages": stages}
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return path


def planned(place: Workplace, command: str, name: str = "", **more: Any) -> dict[str, Any]:
    return {"command": command, "config": str(place.write(name or command)), **more}


def latents(place: Workplace) -> dict[str, Any]:
    """A codec, and a diffusion model on the latents of that very run."""
    place.entries["diffusion"]["codec_run"] = str(place.folder / "runs" / "codec")
    return {"codec": planned(place, "codec"), "diffusion": planned(place, "diffusion", needs=["codec"])}


def run(plan: Path, *more: str) -> int:
    """Exit code of the command, in this process."""
    with pytest.raises(SystemExit) as ended:
        command_line(["all", str(plan), *more])
    return int(ended.value.code or 0)


# Minutes


@pytest.mark.parametrize(
    ("waiting", "running", "at_once", "expected"),
    [
        ({"a": Waiting(1), "b": Waiting(3)}, {}, 1, 3.0),  # one after the other: 12 minutes for a weight of 4
        ({"a": Waiting(1), "b": Waiting(3)}, {}, 2, 4.0),  # side by side: the longer one has all of them
        ({"a": Waiting(1), "b": Waiting(3, ("a",))}, {}, 2, 3.0),  # but not where it needs the other
        ({"b": Waiting(2, ("a",))}, {"a": 4.0}, 2, 4.0),  # what runs is over in 4, which leaves 8
        ({"b": Waiting(2)}, {"a": 4.0}, 1, 4.0),
        ({"b": Waiting(2, ("long ago",))}, {}, 1, 6.0),
        ({"b": Waiting(2, ("a",))}, {"a": 13.0}, 2, 0.0),
    ],
)
def test_minutes_are_shared_by_weight_along_what_needs_what(
    waiting: dict[str, Waiting], running: dict[str, float], at_once: int, expected: float
) -> None:
    assert minutes_by_weight(waiting, running, 12.0, at_once) == pytest.approx(expected, abs=1e-6)


# Plans


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({}, "there is none"),
        ({"a": None}, "there is none"),
        ({"a": {"command": "codec", "config": "a.yaml", "needs": ["b"]}}, "no stage b"),
        (
            {name: {"command": "codec", "config": "a.yaml", "needs": [other]} for name, other in ("ab", "ba")},
            "needs",
        ),
        ({"a": {"command": "evaluate", "config": "a.yaml"}}, "command"),
        ({"../a": {"command": "codec", "config": "a.yaml"}}, "../a"),
        ({"a": {"command": "codec", "config": "a.yaml", "weight": 0}}, "weight"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(tmp_path: Path, stages: dict[str, Any], said: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(ConfigurationError, match=said):
        read_yaml(path, Plan)


def test_a_plan_may_leave_stages_of_its_base_out(tmp_path: Path) -> None:
    stage = {"command": "codec", "config": "a.yaml"}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"stages": {"a": stage, "b": stage}}))
    (tmp_path / "some.yaml").write_text(yaml.safe_dump({"base": str(tmp_path / "all.yaml"), "stages": {"b": None}}))
    assert list(read_yaml(tmp_path / "some.yaml", Plan).present) == ["a"]


def test_the_plans_that_ship_name_configurations_that_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    for path in sorted((REPOSITORY / "training" / "configs").glob("*.yaml")):
        if "stages:\n  brain: {command" in path.read_text(encoding="utf-8") or path.name == "burst.yaml":
            plan = read_yaml(path, Plan)
            jobs = make_jobs(plan, Settings(runs=tmp_path / path.stem))
            needs = [wrong for wrong in missing_files(plan, jobs, jobs) if "among its needs" in wrong]
            assert not needs and {"brain", "recognition", "flair-localise-3", "flair-restore"} <= jobs.keys()


def test_a_job_has_a_configuration_of_its_own_with_the_paths_of_this_machine(place: Workplace) -> None:
    stages = latents(place)
    stages["diffusion"]["changes"] = {"highest_level": 9, "network": {"channels": [8, 16]}}
    plan = read_yaml(plan_of(place, stages), Plan)
    elsewhere = place.folder / "elsewhere"
    jobs = make_jobs(plan, Settings(runs=elsewhere, scale=0.5, batch_size=3))
    config = read_yaml(jobs["diffusion"].config, DiffusionConfig)
    assert config.codec_run == elsewhere / "codec" and config.codec == jobs["codec"].config
    assert config.highest_level == 9 and config.network["channels"] == [8, 16]
    assert config.network["num_head_channels"] == 8  # as it was
    trainer = config.trainer
    assert (trainer.steps, trainer.warmup_steps, trainer.validate_every, trainer.batch_size) == (2, 1, 2, 3)
    assert jobs["diffusion"].folder == elsewhere / "diffusion" and jobs["diffusion"].steps == 2


def test_a_rehearsals_runs_do_not_pass_for_trained_ones(place: Workplace) -> None:
    plan = read_yaml(plan_of(place, latents(place)), Plan)
    for job in make_jobs(plan, Settings(scale=0.5)).values():
        assert job.folder.parent == place.folder / "runs" / "rehearsal"


def test_files_that_are_missing_and_needs_that_are_not_named_are_told_before_anything_runs(
    place: Workplace, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = latents(place)
    del stages["diffusion"]["needs"]
    place.entries["brain"]["labels"] = str(place.folder / "no.npz")
    stages["brain"] = planned(place, "brain")
    assert run(plan_of(place, stages)) == 2
    said = capfd.readouterr().err
    assert "no.npz does not exist, which brain reads" in said
    assert "does not name codec among its needs" in said
    assert not list((place.folder / "runs").rglob("log.txt"))
    assert run(plan_of(place, latents(place)), "--only", "diffusion") == 2
    assert "diffusion needs codec, which is not finished: add --only codec" in capfd.readouterr().err
    assert run(plan_of(place, latents(place)), "--only", "brain") == 2
    assert "no stage brain; it has codec, diffusion" in capfd.readouterr().err
    assert run(plan_of(place, latents(place)), "--device", "tpu") == 2


# Processes


def test_a_loss_that_is_no_number_ends_its_stage_alone_and_what_is_finished_stays(
    place: Workplace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    stages = latents(place)
    place.entries["localise"]["trainer"] = place.entries["localise"]["trainer"] | {"learning_rate": 1e30}
    stages |= {"spoilt": planned(place, "localise"), "after": planned(place, "restore", needs=["spoilt"])}
    stages["after"]["changes"] = {"start_from": str(place.folder / "runs" / "spoilt" / "checkpoint.pt")}
    plan = plan_of(place, stages)
    assert run(plan, "--jobs", "2", "--threads", "1", "--device", "cpu") == 1
    said = capfd.readouterr().err
    assert "spoilt: exit code 1: The " in said and "is nan" in said and "Lower trainer.learning_rate" in said
    assert "after: it needs spoilt" in said
    runs = place.folder / "runs"
    assert not (runs / "spoilt" / "checkpoint.pt").exists() and not (runs / "after" / "log.txt").exists()
    for name in ("codec", "diffusion"):
        found = read_progress(runs / name / "progress.json")
        assert found["complete"] and found["step"] == found["steps"] == 4 and len(found["first_losses"]) == 4
        assert "step 1 of 4" in (runs / name / "log.txt").read_text()  # the first losses are told at once
    before = {path: path.read_bytes() for name in ("codec", "diffusion") for path in (runs / name).iterdir()}
    assert run(plan, "--only", "codec", "--only", "diffusion") == 0
    assert {path: path.read_bytes() for path in before} == before


class Instant:
    """A process that has ended at once, and well; what it was asked to do is kept."""

    asked: ClassVar[list[tuple[list[str], dict[str, str]]]] = []

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        self.asked.append((command[3:], env))
        folder = Path(command[command.index("--run") + 1])
        (folder / "checkpoint.pt").touch()
        (folder / "progress.json").write_text('{"complete": true, "step": 4, "spent": 1.0, "seconds": 1.0}')

    def poll(self) -> int:
        return 0


def test_stages_are_told_their_minutes_threads_and_device(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.subprocess, "Popen", Instant)
    stages = latents(place)
    stages["codec"]["weight"] = 3
    plan = plan_of(place, stages)
    assert run(plan, "--minutes", "8", "--threads", "2", "--device", "cuda:1") == 2  # there is none here
    assert run(plan, "--minutes", "8", "--threads", "2", "--device", "cpu") == 0
    (codec, environment), (diffusion, _) = Instant.asked
    assert codec[:4] == [
        "codec",
        str(place.folder / "runs/codec/config.yaml"),
        "--run",
        str(place.folder / "runs/codec"),
    ]
    assert codec[4] == "--minutes" and float(codec[5]) == pytest.approx(6.0, abs=0.1)
    # The codec took no time, so that the rest is all the next one's.
    assert diffusion[0] == "diffusion" and float(diffusion[5]) == pytest.approx(8.0, abs=0.3)
    assert environment["OMP_NUM_THREADS"] == "2" and environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to a process")
def test_ctrl_c_saves_all_and_the_same_command_goes_on(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.entries["denoiser"]["trainer"] = place.entries["denoiser"]["trainer"] | {"steps": 100_000}
    stages = {"first": planned(place, "denoise", "denoiser"), "last": planned(place, "codec", needs=["first"])}
    command = [sys.executable, "-m", "training", "all", str(plan_of(place, stages))]
    runs = place.folder / "runs"
    monkeypatch.chdir(REPOSITORY)
    # As in a terminal, also where the tests run in the background, which ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        session = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, encoding="utf-8")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for((runs / "first" / "progress.json").exists, "the first steps", 300)
    os.kill(session.pid, signal.SIGINT)
    _, said = session.communicate(timeout=120)
    assert session.returncode == 0 and "stopped" in said
    step = state_of(runs / "first")["step"]
    assert 0 < step < 100_000 and not (runs / "last" / "log.txt").exists()
    place.entries["denoiser"]["trainer"]["steps"] = step + 1
    place.write("denoiser")
    assert run(Path(command[-1]), "--only", "first") == 0
    assert state_of(runs / "first")["step"] == step + 1


# Arrays that travel


def a_plan_with_arrays(place: Workplace) -> Path:
    """Of all that a plan may read: label maps, stacks, windows, slices, weights to start from."""
    images = np.random.default_rng(0).integers(0, 200, (12, *WINDOW)).astype(np.float16) / 200
    kinds = np.repeat([KINDS.index("FLAIR"), KINDS.index("T1"), KINDS.index("no brain")], 4)
    np.savez(place.folder / "windows.npz", images=images, brains=images > 0.6, kinds=kinds)
    draw = {"labels": str(place.folder / "heads.npz"), "heads": [0, 1, 2], "window": list(WINDOW), "painted": 6}
    draw |= {"real": 6, "windows": str(place.folder / "windows.npz")}
    (place.folder / "draw.yaml").write_text(yaml.safe_dump(draw))
    place.entries["recognition"] = {
        "scans": [str(place.folder / "draw.yaml")],
        "validation": str(place.folder / "draw.yaml"),
        "network": {"_target_": "ConvEncoder", "in_channels": CHANNELS, "out_channels": 13, "features": [8, 8]},
        "trainer": TRAINER,
    }
    stages = {name: planned(place, name) for name in ("brain", "localise", "recognition", "codec")}
    return plan_of(place, stages)


def test_packed_arrays_are_small_and_what_the_trainings_read(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    plan = a_plan_with_arrays(place)
    packed = place.folder / "arrays"
    for _ in range(2):  # once more over what is there
        with pytest.raises(SystemExit) as ended:
            command_line(["pack", str(plan), str(packed)])
        assert not ended.value.code
    said = capsys.readouterr().out
    slices = Path(place.entries["codec"]["slices"])
    for path in (
        *(place.folder / name for name in ("heads.npz", "stacks.npz", "slab-heads.npz", "windows.npz")),
        slices,
    ):
        assert f"MB  {path}\n" in said
    for name in ("heads.npz", "stacks.npz", "slab-heads.npz"):
        with np.load(place.folder / name) as before, np.load(packed / name) as after:
            assert set(before.files) == set(after.files)
            assert all(np.array_equal(before[entry], after[entry]) for entry in before.files)
    assert (packed / slices.name / "train.npz").is_file() and (packed / slices.name / "val.npz").is_file()
    before, after = Windows.load(place.folder / "windows.npz"), Windows.load(packed / "windows.npz")
    assert torch.equal(after.brains, before.brains) and torch.equal(after.kinds, before.kinds)
    assert (after.images.float() / after.top - before.images.float()).abs().max() < 0.6 / 63
    # Nothing but the folder is needed: a stage of it trains where no library reads images.
    for name in ("heads.npz", "stacks.npz", "slab-heads.npz", "windows.npz"):
        (place.folder / name).unlink()
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    jobs = make_jobs(read_yaml(plan, Plan), Settings(data=packed))
    assert not missing_files(read_yaml(plan, Plan), jobs, jobs)
    config = read_yaml(jobs["recognition"].config, RecognitionConfig)
    assert config.scans[0].parent == jobs["recognition"].folder
    task = RecognitionTask(config)
    assert isinstance(task.scans[0], FreshScans)
    assert Trainer(task, config.trainer, place.folder / "run").run()
    batch = task.batch(np.random.default_rng(0), 6)
    assert set(batch) == {"fresh"}  # a seed, not a scan
    first, second = task.scans_of(batch), task.scans_of(batch)
    assert len(first["inputs"]) == 6 and all(torch.equal(first[name], second[name]) for name in first)


def test_of_windows_as_many_are_packed_as_there_is_room_for_and_every_kind(place: Workplace) -> None:
    plan = read_yaml(a_plan_with_arrays(place), Plan)
    whole = pack(plan, ["recognition"], place.folder / "whole", 25.0)
    windows = whole[(place.folder / "windows.npz").as_posix()]
    room = sum(whole.values()) - 0.5 * windows
    some = pack(plan, ["recognition"], place.folder / "some", room)
    assert sum(some.values()) <= room
    kinds = Windows.load(place.folder / "some" / "windows.npz").kinds.bincount()
    assert 3 <= kinds.sum() < 12 and kinds[kinds > 0].max() - kinds[kinds > 0].min() <= 1 and (kinds > 0).sum() == 3
    with pytest.raises(ConfigurationError, match="hold no window of each kind"):
        pack(plan, ["recognition"], place.folder / "none", sum(whole.values()) - 0.95 * windows)
    with pytest.raises(ConfigurationError, match=r"heads\.npz takes"):
        pack(plan, ["brain"], place.folder / "none", 0.00001)


def test_what_cannot_travel_and_a_folder_of_something_else_are_refused(place: Workplace) -> None:
    plan = read_yaml(a_plan_with_arrays(place), Plan)
    (place.folder / "mine").mkdir()
    (place.folder / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="something else than packed arrays"):
        pack(plan, [], place.folder / "mine", 25.0)
    with pytest.raises(ConfigurationError, match="pack writes them"):
        make_jobs(plan, Settings(data=place.folder / "mine"))
    drawn = place.folder / "drawn"
    drawn.mkdir()
    np.save(drawn / "inputs.npy", np.zeros(1))
    np.savez(drawn / "labels.npz", kinds=np.zeros(1))
    place.entries["recognition"]["scans"] = [str(drawn)]
    place.write("recognition")
    with pytest.raises(ConfigurationError, match="drawn scans, which do not travel"):
        pack(plan, [], place.folder / "arrays", 25.0)
    (place.folder / "windows.npz").unlink()
    (place.folder / "heads.npz").unlink()
    with pytest.raises(ConfigurationError, match=r"heads\.npz does not exist: prepare it"):
        pack(plan, [], place.folder / "arrays", 25.0)
