"""Faults of the machine are told as such, leave the folder as it was, and never spoil a result that is complete."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.errors import Cancelled, EngineError, InputError, MemoryExhausted
from diffusion_anomaly.io import outputs
from diffusion_anomaly.process import end_like_interrupt
from diffusion_anomaly.results.result import Result
from diffusion_anomaly.system import as_engine_error
from diffusion_anomaly.worker import channel
from diffusion_anomaly.worker import protocol as job
from workers import Worker, make_job

ENGINE = Path(cli.__file__).parents[2]
FILES = 7
pytestmark = pytest.mark.usefixtures("plain_report", "signals_stay")

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, /dev/full and limits")


@pytest.fixture(scope="module")
def saved(small_result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_result.save(tmp_path_factory.mktemp("saved"))["heat"]


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# --- A disk that is full, and rights that are gone


@linux
@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_is_full_at_any_point_leaves_the_folder_as_it_was(
    earlier: bool, small_result: Result, tmp_path: Path
) -> None:
    """The limit on a file's size stands for the disk's end: a write beyond it fails in the same place."""
    out = tmp_path / "out"
    if earlier:
        small_result.save(out)
    before = content(tmp_path)
    largest = max(path.stat().st_size for path in small_result.save(tmp_path / "full").values())
    for limit in (0, 1, 200, 700, 2000, largest // 2, largest - 1):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                small_result.save(out)
            except InputError as error:
                code = 0 if "could not be written" in error.what and ".unfinished" not in error.what else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, limit
        assert {name: data for name, data in content(tmp_path).items() if not name.startswith("full")} == before


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_rename_that_fails_leaves_the_folder_as_it_was(
    kind: int, small_result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_result.save(tmp_path)
    before = content(tmp_path)
    replace = os.replace
    for place in range(2 * FILES):
        moves = 0

        def fails(source: Path, target: Path, place: int = place) -> None:
            nonlocal moves
            moved = Path(source).parent != Path(target).parent
            if moved and moves == place:
                moves += 1
                raise OSError(kind, os.strerror(kind), str(target))
            moves += moved
            replace(source, target)

        monkeypatch.setattr(outputs.os, "replace", fails)
        with pytest.raises(InputError, match="could not be written"):
            small_result.save(tmp_path)
        assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryExhausted, "Memory ran out"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), MemoryExhausted, "Memory ran out"),
        (OSError(errno.EMFILE, "Too many open files", "scan.nii"), InputError, "scan.nii: Too many open files"),
        (OSError(errno.EIO, "Input/output error", "scan.nii"), InputError, "scan.nii: Input/output error"),
        (ZeroDivisionError("oops"), EngineError, "ZeroDivisionError: oops"),
    ],
)
def test_a_fault_of_the_machine_is_none_of_the_program(error: Exception, kind: type, says: str) -> None:
    told = as_engine_error(error, "a fault of the program")
    assert type(told) is kind
    assert says in told.what
    assert ("fault of the program" in told.hint) == (kind is EngineError)


# --- Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", ["write_findings_csv", "write_findings_json", "record"])
def test_a_signal_while_files_are_written_leaves_nothing(
    number: signal.Signals, place: str, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(f"diffusion_anomaly.results.saving.{place}", interrupted)
    arguments = ["detect", str(scans / "scan.nii.gz"), "--mask", str(scans / "brain.nii.gz"), "--method", "intensity"]
    assert cli.main([*arguments, "-o", str(tmp_path / "a" / "b")]) == Cancelled.exit_code
    assert content(tmp_path) == {}


def test_a_signal_when_all_is_in_place_does_not_say_that_nothing_was_written(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = outputs._exchange

    def interrupted(*given: object) -> None:
        exchange(*given)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(outputs, "_exchange", interrupted)
    arguments = ["detect", str(scans / "scan.nii.gz"), "--mask", str(scans / "brain.nii.gz"), "--method", "intensity"]
    assert cli.main([*arguments, "-o", str(tmp_path)]) == Cancelled.exit_code
    assert "its results are complete" in capsys.readouterr().err
    assert len(content(tmp_path)) == FILES


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_like_interrupt()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@linux
@pytest.mark.parametrize("module", ["diffusion_anomaly", "diffusion_anomaly.worker"])
def test_a_signal_while_the_program_is_loaded_gives_no_traceback(module: str, tmp_path: Path) -> None:
    """The import stands still for the signal: a module of that name is found first."""
    (tmp_path / "logging").mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('diffusion_anomaly.cli.main', 'diffusion_anomaly.worker.main'):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ENGINE}"}
    done = subprocess.run(
        [sys.executable, "-m", module, "x"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == Cancelled.exit_code
    assert len(done.stderr.splitlines()) == 1


# --- Streams that are closed, full or left


def threshold(saved: Path, output: Path, redirected: str) -> subprocess.CompletedProcess[bytes]:
    command = f'exec "$0" -m diffusion_anomaly threshold "$1" --at 2 -o "$2" {redirected}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, str(saved), str(output)],
        env={**os.environ, "PYTHONPATH": str(ENGINE)},
        capture_output=True,
        check=False,
    )


@linux
@pytest.mark.parametrize("redirected", [">&-", ">/dev/full", "<&- >&- 2>&-", "> >(exec true)"])
def test_a_result_that_is_complete_ends_with_0_whatever_became_of_stdout(
    redirected: str, saved: Path, tmp_path: Path
) -> None:
    done = threshold(saved, tmp_path / "out", redirected)
    assert done.returncode == 0
    assert b"fault" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert {"mask.nii.gz", "threshold.json"} <= set(os.listdir(tmp_path / "out"))
    assert (b"did not all arrive" in done.stderr) == (redirected == ">/dev/full")


@linux
def test_a_command_whose_result_is_what_it_prints_says_that_it_did_not_arrive() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_anomaly", "models"],
            env={**os.environ, "PYTHONPATH": str(ENGINE)},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr


@linux
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_does_not_block_loses_nothing(stream: str) -> None:
    """As when a terminal or a pipe is shared with a program that has made it so; a pipe holds 64 kB."""
    size = 1_000_000
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    script = (
        "import sys; from diffusion_anomaly.process import take_streams, stream_failure; take_streams(); "
        f"sys.{stream}.write('x' * {size}); sys.exit(stream_failure() is not None)"
    )
    led = {"stdout": (write_end, None), "stderr": (None, write_end)}[stream]
    environment = {**os.environ, "PYTHONPATH": str(ENGINE)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=led[0], stderr=led[1]) as process:
        os.close(write_end)
        time.sleep(0.5)  # it meets a full pipe
        with open(read_end, "rb") as arrived:
            assert arrived.read() == b"x" * size
    assert process.returncode == 0


@linux
def test_a_poor_environment_is_enough(scans: Path, tmp_path: Path) -> None:
    """No home, no folder for temporary files, few descriptors."""
    arguments = ["detect", scans / "scan.nii.gz", "--mask", scans / "brain.nii.gz", "--method", "intensity"]
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_anomaly", *map(str, arguments), "-o", str(tmp_path / "out")],
        env={"PYTHONPATH": str(ENGINE), "PATH": os.environ["PATH"], "TMPDIR": "/nonexistent", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd="/proc",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)),
    )
    said = done.stderr.splitlines()
    assert done.returncode == 0 and all(line.startswith("warning: The scan ") for line in said), said
    assert len(os.listdir(tmp_path / "out")) == FILES


@linux
def test_a_current_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'rmdir "$PWD"; exec "$0" -m diffusion_anomaly models', sys.executable],
        env={**os.environ, "PYTHONPATH": str(ENGINE)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == InputError.exit_code
    assert "current folder does not exist" in done.stderr


# --- The worker


@linux
def test_a_worker_without_stdout_ends_without_a_traceback(tmp_path: Path) -> None:
    worker = Worker(make_job(tmp_path / "job"), limit=lambda: os.close(1))
    try:
        assert worker.end() == job.ExitCode.DONE
    finally:
        worker.close()
    assert b"Traceback" not in worker.stderr
    assert (worker.output / "provenance.json").exists()


def hear(write: Callable[[int], None]) -> list[str]:
    """What a worker hears of what is written into its stdin."""
    read_end, write_end = os.pipe()
    heard: list[str] = []
    listener = threading.Thread(target=channel.listen, args=(read_end, heard.append, lambda reason: None))
    listener.start()
    write(write_end)
    os.close(write_end)
    listener.join(60)
    assert not listener.is_alive()
    os.close(read_end)
    return heard


def test_a_line_without_end_costs_no_more_than_its_bytes_and_the_next_is_heard() -> None:
    def write(descriptor: int) -> None:
        block = b"x" * (1 << 20)
        for _ in range(60):
            left = memoryview(block)
            while left:
                left = left[os.write(descriptor, left) :]
        os.write(descriptor, b"\ncancel\n")

    start = time.monotonic()
    dropped, cancel = hear(write)
    assert time.monotonic() - start < 20
    assert cancel == job.CANCEL_LINE
    assert len(dropped) < 300
    with pytest.raises(InputError, match="is not known"):
        job.job_of(dropped)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (f"{job.CANCEL_LINE}{' ' * 5000}", False),
        (job.run_line("/" + "x" * 10_000), True),
        (job.run_line("/" + "x" * (1 << 20)), False),
        ("y" * 4096, True),
        ("y" * 4097, False),
    ],
)
def test_a_line_longer_than_any_command_is_none(line: str, kept: bool) -> None:
    (heard,) = hear(lambda descriptor: [os.write(descriptor, part) for part in _parts(line + "\n")])  # type: ignore[func-returns-value]
    assert (heard == line) == kept
    assert heard != job.CANCEL_LINE


def _parts(text: str) -> list[bytes]:
    data = text.encode()
    return [data[start : start + 30_000] for start in range(0, len(data), 30_000)]
