"""Workers that die, cannot start, or cannot be had: every scan is done once, or said to have failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cohorts import Heard
from diffusion_anomaly.cohort.actors import RayPool, Workers
from diffusion_anomaly.cohort.cohort import run_cohort
from diffusion_anomaly.cohort.run import Failed, run_tasks
from diffusion_anomaly.cohort.scans import CohortScan
from diffusion_anomaly.cohort.tasks import Outcome, Runner, Task
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.detection.scan import ScanRequest
from diffusion_anomaly.errors import EngineError, InputError

ray = pytest.importorskip("ray")
# Ray leaves files and processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PATIENCE = 120.0


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """Ray on this machine, started once: it takes longer than all tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield
    ray.shutdown()


@dataclass
class StandIn:
    """Writes down each task and its process.

    ``die`` ends the process, ``die-once`` the first time, ``wait`` waits the first time, ``meet-…`` until two are at
    work.
    """

    folder: Path

    def __call__(self, task: Task) -> Outcome:
        with (self.folder / f"begun-{task.name}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        times = len((self.folder / f"begun-{task.name}").read_text().splitlines())
        if task.name == "die" or (task.name == "die-once" and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        while task.name == "wait" and times == 1:
            time.sleep(0.05)
        until = time.monotonic() + PATIENCE
        while task.name.startswith("meet") and time.monotonic() < until and self.met < 2:
            time.sleep(0.05)
        if task.name == "raise":
            raise SystemError("no runner raises this")
        (self.folder / f"done-{task.name}").touch(exist_ok=False)
        return Outcome(findings=1)

    @property
    def met(self) -> int:
        """How many tasks that wait for each other have begun."""
        return len(list(self.folder.glob("begun-meet*")))


def run(folder: Path, names: str, count: int = 2) -> tuple[Heard, list[Failed]]:
    heard, failed = Heard(), []
    pool = RayPool(partial(StandIn, folder), Workers(count, 1, 0))
    try:
        run_tasks([Task(name, ScanRequest(Path(name), Path())) for name in names.split()], pool, heard, failed)
    finally:
        pool.close()
    return heard, failed


def times(folder: Path, name: str) -> int:
    return len((folder / f"begun-{name}").read_text().splitlines())


def test_workers_share_the_scans(tmp_path: Path) -> None:
    _, failed = run(tmp_path, "meet-a meet-b")
    assert failed == []
    assert len({(tmp_path / f"begun-meet-{name}").read_text() for name in "ab"}) == 2


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    heard, failed = run(tmp_path, "a b die-once c d")
    assert failed == [] and heard.retries == ["die-once"]
    assert sorted(path.name for path in tmp_path.glob("done-*")) == [
        f"done-{name}" for name in ("a", "b", "c", "d", "die-once")
    ]
    assert {name: times(tmp_path, name) for name in "abcd"} == dict.fromkeys("abcd", 1)


def test_a_scan_that_two_workers_die_of_is_a_failure_and_the_others_go_on(tmp_path: Path) -> None:
    heard, (raised, failed) = run(tmp_path, "die a b raise", count=1)
    assert raised.name == "raise"
    assert heard.outcomes["raise"].failure is not None and heard.outcomes["raise"].failure.kind == "internal"
    assert heard.outcomes["a"].failure is None and heard.outcomes["b"].failure is None
    assert (failed.name, failed.failure.kind, failed.tries) == ("die", "worker_died", 2)


def test_a_worker_that_is_killed_from_outside_costs_only_its_own_scan_another_try(tmp_path: Path) -> None:
    import threading

    def kill() -> None:
        until = time.monotonic() + PATIENCE
        begun = tmp_path / "begun-wait"
        while not (begun.exists() and begun.read_text().endswith("\n")) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(int(begun.read_text().split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    heard, failed = run(tmp_path, "wait a b")
    killer.join()
    assert failed == [] and heard.retries == ["wait"] and times(tmp_path, "wait") == 2
    assert times(tmp_path, "a") == times(tmp_path, "b") == 1


def refuse() -> Runner:
    raise InputError("There is no such model.", "Choose another.")


def die() -> Runner:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_ctrl_c_while_ray_starts_waits_for_it_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own start, interrupted in its middle, corrupts the memory of the process."""
    seen = []

    def start(**options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray puts its own way out there
        seen.append("up")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: seen.append("down"))
    before = signal.getsignal(signal.SIGTERM)
    in_background = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            RayPool(refuse, Workers(1, 1, 0))
    finally:
        signal.signal(signal.SIGINT, in_background)
    assert seen == ["up", "down"] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [(refuse, InputError, "There is no such model"), (die, EngineError, "Workers end as they start")],
)
def test_workers_that_cannot_start_end_the_run(
    make: Callable[[], Runner], error: type[EngineError], message: str
) -> None:
    pool = RayPool(make, Workers(1, 1, 0))
    try:
        with pytest.raises(error, match=message):
            run_tasks([Task("a", ScanRequest(Path("a"), Path()))], pool, Heard(), [])
    finally:
        pool.close()


def test_gpus_that_are_not_there_and_one_of_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Ray sees 0 of them"):
        RayPool(refuse, Workers(1, 1, 1))
    scans = [CohortScan("a", tmp_path / "a.nii")]
    with pytest.raises(InputError, match="device cuda:1 is one of several"):
        run_cohort(scans, tmp_path / "out", Options("intensity", device="cuda:1"), Heard(), workers=Workers(1))


def test_a_worker_with_a_detector_does_a_scan(tmp_path: Path, scans: Path) -> None:
    listed = [CohortScan("a", scans / "scan.nii.gz", brain=scans / "brain.nii.gz")]
    heard = Heard()
    ended = run_cohort(
        listed, tmp_path / "out", Options("intensity", device="cpu", force=True), heard, workers=Workers(1, 1)
    )
    assert heard.outcomes["a"].failure is None and ended.finished == 1
    assert (tmp_path / "out/results/a/provenance.json").is_file() and (tmp_path / "out/quality.html").is_file()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up as Linux has them")
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_run_whose_ray_is_killed_ends_with_a_reason(tmp_path: Path, victim: str) -> None:
    """Of a Ray of its own, in a process of its own: Ray's own waiting would never end."""
    import psutil

    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "import ray\n"
        "import test_cohort_workers as here\n"
        "from diffusion_anomaly.cohort import actors\n"
        "actors._SILENT_SECONDS = 10.0\n"
        "ray.cloudpickle.register_pickle_by_value(here)\n"
        "try:\n"
        "    here.run(Path(sys.argv[1]), 'wait', count=1)\n"
        "except here.EngineError as error:\n"
        "    print(error.what)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "DiffusionAnomaly")]
    command = [sys.executable, "-c", code, str(tmp_path), *paths]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    until = time.monotonic() + PATIENCE
    while not (tmp_path / "begun-wait").exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    (killed,) = [one for one in psutil.Process(process.pid).children() if one.name() == victim]
    killed.kill()
    said, _ = process.communicate(timeout=PATIENCE)
    assert "Ray, which the workers belong to, has ended or does not answer." in said
