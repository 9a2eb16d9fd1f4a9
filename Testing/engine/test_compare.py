"""The comparison of two checkouts: what it runs, in which order, and its arithmetic. Stand-ins take their places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.errors import InputError
from Testing.benchmarks import benchmark, measure
from Testing.benchmarks.compare import Runs, describe, in_turn, worker_waits
from Testing.benchmarks.worker_times import WarmWorker, cold

DETECT = """
import sys
import SimpleITK as sitk
from pathlib import Path
scan, output = sys.argv[2], Path(sys.argv[4])
assert sys.argv[1::2] == ["detect", "--output", "--method", "--device"], sys.argv
heat = sitk.Image(sitk.ReadImage(scan).GetSize(), sitk.sitkFloat32) + {heat}
output.mkdir(exist_ok=True)
sitk.WriteImage(heat, str(output / "heat.nii.gz"))
"""
WORKER = """
import json, os, sys
from pathlib import Path
def say(**event):
    print(json.dumps(event), flush=True)
def do(folder):
    job = json.loads((Path(folder) / "job.json").read_text(encoding="utf-8"))
    with open(Path(__file__).with_name("log"), "a") as log:
        log.write(f"{os.getpid()} {' '.join(sys.argv[1:2])}\\n")
    say(event="started", device="cpu", model=None, version=None, slices=1)
    if job["method"] == "guided":
        say(event="error", code="model", what="The weights are damaged.", hint="")
        return 3
    say(event="result", files={}, statistics={}, timings={})
    return 0
if sys.argv[1] == "--serve":
    for line in sys.stdin:
        say(event="finished", exit_code=do(json.loads(line.partition(" ")[2])))
else:
    sys.exit(do(sys.argv[1]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str, float], Path]:
    """Makes a folder whose engine finds the same heat everywhere."""

    def make(name: str, heat: float = 0.0) -> Path:
        engine = tmp_path / name / "DiffusionAnomaly" / "diffusion_anomaly"
        engine.mkdir(parents=True)
        for file, text in (("__init__", ""), ("__main__", DETECT.format(heat=heat)), ("worker", WORKER)):
            (engine / f"{file}.py").write_text(text, encoding="utf-8")
        return tmp_path / name

    return make


def served(checkout: Path) -> list[list[str]]:
    """The process and the first argument of each job's worker."""
    log = checkout / "DiffusionAnomaly" / "diffusion_anomaly" / "log"
    return [line.split() for line in log.read_text(encoding="utf-8").splitlines()]


def job(folder: Path, method: str) -> Path:
    folder.mkdir()
    content = {"schema_version": 2, "input": "scan.nii.gz", "output": "results", "method": method}
    (folder / "job.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_commands_take_turns_and_none_always_goes_first() -> None:
    order: list[str] = []

    def command(name: str, seconds: float) -> Callable[[int], tuple[float, int]]:
        return lambda number: (order.append(f"{name}{number}"), (seconds + number, 10 * number))[1]

    runs = in_turn({"a": command("a", 1.0), "b": command("b", 5.0)}, 3)
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert runs == {"a": Runs((1.0, 2.0, 3.0), (0, 10, 20)), "b": Runs((5.0, 6.0, 7.0), (0, 10, 20))}


def test_a_row_has_the_median_its_spread_and_the_highest_peak() -> None:
    runs = Runs([3.0, 1.0, 9.0, 2.0], [2**30, 3 * 2**29, 0, 0])
    assert runs.row("this") == ["this", "4", "2.50", "1.00 to 9.00", "1.50"]


def test_a_folder_without_an_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no engine"):
        describe(tmp_path)


def test_another_engine_in_a_checkouts_place_is_refused(
    checkout: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = checkout("right"), checkout("wrong")
    assert describe(right)
    monkeypatch.setattr(measure, "environment", lambda path: {"PYTHONPATH": str(wrong / "DiffusionAnomaly")})
    with pytest.raises(InputError, match=r"Python runs .*wrong"):
        describe(right)


def test_a_warm_worker_does_its_jobs_in_one_process_and_its_first_does_not_count(
    checkout: Callable[..., Path], tmp_path: Path
) -> None:
    standin = checkout("standin")
    waits = worker_waits(tmp_path / "scan.nii.gz", tmp_path / "jobs", 2, standin, method="localise", device="cpu")
    assert [len(waits[kind]) for kind in ("started for it", "warm")] == [2, 2]
    assert all(0 < time.started <= time.total for times in waits.values() for time in times)
    warm = [process for process, argument in served(standin) if argument == "--serve"]
    alone = [process for process, argument in served(standin) if argument != "--serve"]
    assert len(warm) == 3 and len(set(warm)) == 1
    assert len(set(alone)) == 2 and not set(alone) & set(warm)


def test_a_job_that_fails_is_no_time(checkout: Callable[..., Path], tmp_path: Path) -> None:
    standin, failing = checkout("standin"), job(tmp_path / "job", "guided")
    with pytest.raises(RuntimeError, match="The weights are damaged"):
        cold(failing, standin)
    with pytest.raises(RuntimeError, match="The weights are damaged"), WarmWorker(standin) as worker:
        worker.run(failing)


def test_a_worker_that_cannot_start_is_quoted(checkout: Callable[..., Path], tmp_path: Path) -> None:
    broken, fine = checkout("broken"), job(tmp_path / "job", "localise")
    (broken / "DiffusionAnomaly" / "diffusion_anomaly" / "worker.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises(RuntimeError, match="nothing_of_the_kind"):
        cold(fine, broken)
    with pytest.raises(RuntimeError, match="nothing_of_the_kind"), WarmWorker(broken) as worker:
        worker.run(fine)


def test_the_command_compares_this_checkout_with_the_other(
    checkout: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    this, other = checkout("this", 1.5), checkout("other", 4.0)
    monkeypatch.setattr(measure, "REPOSITORY", this)
    sitk.WriteImage(phantom.paint(phantom.grid((20, 24, 8), (8.0, 8.0, 15.0))), str(tmp_path / "scan.nii.gz"))
    words = ["compare", "--against", other, "--runs", 3, "--scan", tmp_path / "scan.nii.gz", "--output", tmp_path]
    assert benchmark.main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    written: dict[str, Any] = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    seconds = {which: runs["seconds"] for which, runs in written["runs"].items()}
    assert [len(seconds[which]) for which in ("this", "other")] == [3, 3]
    assert written["speed_up"] == pytest.approx(median(seconds["other"]) / median(seconds["this"]))
    assert f"This checkout is {written['speed_up']:.2f} times as fast" in printed
    assert written["largest_difference"] == 2.5
    assert "The two anomaly maps differ by at most 2.5." in printed
    assert all(peak > 2**20 for runs in written["runs"].values() for peak in runs["peaks"])
    assert (
        f"| started for it | {median(time['total'] for time in written['worker']['started for it']):.2f} |" in printed
    )


@pytest.mark.parametrize(
    ("words", "said"), [(("--against", "nowhere"), "holds no engine"), (("--against", ".", "--runs", "0"), "0 runs")]
)
def test_a_wrong_argument_is_named(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["compare", *words]) == InputError.exit_code
    assert said in capsys.readouterr().err
