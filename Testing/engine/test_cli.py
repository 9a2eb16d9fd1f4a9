"""The command line as its users meet it: what it prints where, what it writes, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import packages
import phantom
from diffusion_anomaly import __version__
from diffusion_anomaly.cli import batch
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.models.package import Bundle, open_bundle
from diffusion_anomaly.worker import protocol as job

ENGINE = Path(cli.__file__).parents[2]  # the folder to import it from
pytestmark = pytest.mark.usefixtures("plain_report", "signals_stay")
RESULTS = {
    "heat.nii.gz",
    "mask.nii.gz",
    "brain.nii.gz",
    "findings.csv",
    "findings.json",
    "report.html",
    "provenance.json",
}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return self.err.splitlines()


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process; what it printed and its exit code."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan and its brain mask under a name with a space and letters beyond ASCII."""
    return phantom.write_scan(tmp_path_factory.mktemp("Übung eins"), "kopf")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.unsupervised(tmp_path_factory.mktemp("models") / "toy-unsupervised")


def process(
    *arguments: object, limit: int | None = None, start: Sequence[str] = (), stdin: int | None = None
) -> subprocess.Popen[str]:
    """The command line in a process of its own, by default as ``python -m diffusion_anomaly``."""

    def limited() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, *(start or ["-m", "diffusion_anomaly"]), *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ENGINE)},
        preexec_fn=limited,
    )


def ended(started: subprocess.Popen[str]) -> Ended:
    printed, complained = started.communicate(timeout=240)
    return Ended(started.returncode, printed, complained)


# --- detect


def test_detect_prints_the_result_on_stdout_and_nothing_else_anywhere(run: Run, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out put"
    end = run(
        "detect", folder / "kopf.nii.gz", "--mask", folder / "brain.nii.gz", "--method", "intensity", "-o", output
    )
    assert (end.code, end.err) == (0, "")
    assert {path.name for path in output.iterdir()} == RESULTS
    lines = end.out.splitlines()
    heading = "finding ml peak mean centre R, A, S (mm) slices place"
    assert lines[0].split() == heading.split()
    assert lines[1].split()[0] == "1"
    stored = open_bundle("flair-intensity").anomaly["threshold"]["heat"]
    (said,) = re.findall(
        r"^\d+ findings?, \d+\.\d\d ml at an anomaly score of (\d+\.\d\d) or more$", end.out, re.MULTILINE
    )
    assert said == f"{stored:.2f}"
    assert any(line.startswith("Whole-image score ") for line in lines)
    assert str(output / "heat.nii.gz") in lines
    assert str(output / "report.html") in lines


def test_the_options_reach_the_detection(run: Run, folder: Path, package: Bundle, tmp_path: Path) -> None:
    end = run(
        *("detect", folder / "kopf.nii.gz", "--mask", folder / "brain.nii.gz", "--output", tmp_path),
        *("--model", package.path, "--steps", 3, "--seed", 7, "--threshold", 1.5, "--min-volume", 0.4),
        *("--batch-size", 5, "--device", "cpu", "--precision", "float32", "--slice-spacing", 10),
        *("--set", "kl_levels=3", "--set", "side=bright", "--set", "antithetic=false"),
    )
    assert end.code == 0, end.err
    options = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))["options"]
    expected = {
        **{"steps": 3, "seed": 7, "threshold": 1.5, "min_volume_ml": 0.4, "batch_size": 5, "slice_spacing": 10.0},
        **{"kl_levels": 3, "side": "bright", "antithetic": False, "device": "cpu", "precision": "float32"},
    }
    assert {name: options[name] for name in expected} == expected


def test_several_scans_get_a_folder_each_and_one_failure_stops_no_other(
    run: Run, folder: Path, package: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brain = sitk.ReadImage(str(folder / "brain.nii.gz"))
    monkeypatch.setattr("diffusion_anomaly.detection.brain.BrainFinder.__call__", lambda finder, volume, warn: brain)
    monkeypatch.setattr("diffusion_anomaly.detection.provenance.describe_brain_model", lambda: {"name": "brain-mask"})
    (tmp_path / "broken.nii.gz").write_text("this is text")
    again = tmp_path / "again" / "kopf.nii.gz"
    again.parent.mkdir()
    again.write_bytes((folder / "kopf.nii.gz").read_bytes())
    scans = [folder / "kopf.nii.gz", tmp_path / "broken.nii.gz", tmp_path / "missing.nii.gz", again]
    end = run("detect", *scans, "--method", "intensity", "--output", tmp_path / "out")
    assert end.code == 2
    done = {f"{folder.name}-kopf": f"{folder.name}/kopf.nii.gz", "again-kopf": "again/kopf.nii.gz"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(done)
    for name, title in done.items():
        assert {path.name for path in (tmp_path / "out" / name).iterdir()} == RESULTS
        about = json.loads((tmp_path / "out" / name / "provenance.json").read_text(encoding="utf-8"))["input"]
        assert (about["title"], about["path"]) == (title, "kopf.nii.gz")
    errors = [line for line in end.error_lines if line.startswith("error:")]
    assert [line.count(str(scan)) for scan, line in zip(scans[1:3], errors, strict=True)] == [1, 1]
    assert end.error_lines[-1] == f"2 of 4 scans failed: {scans[1]}, {scans[2]}"
    assert [end.out.splitlines().count(str(scan)) for scan in scans] == [1, 0, 0, 1]


def test_the_same_scan_given_twice_is_looked_at_once(run: Run, tmp_path: Path) -> None:
    scan = tmp_path / "a" / ".." / "missing.nii"
    end = run("detect", tmp_path / "missing.nii", scan, "--method", "intensity", "-o", tmp_path / "out")
    assert end.error_lines[0] == f"warning: {scan} is given twice; it is looked at once."
    assert sum(line.startswith("error:") for line in end.error_lines) == 1


@pytest.mark.parametrize(("asked", "place"), [([], "."), (["--subfolders"], "kopf")])
def test_a_single_scan_gets_a_subfolder_where_asked(
    asked: list[str], place: str, run: Run, folder: Path, tmp_path: Path
) -> None:
    arguments = ("--mask", folder / "brain.nii.gz", "--method", "intensity", "-o", tmp_path)
    assert run("detect", folder / "kopf.nii.gz", *arguments, *asked).code == 0
    assert {path.name for path in (tmp_path / place).iterdir()} == RESULTS


def test_the_reconstruction_is_written_when_asked_for(run: Run, folder: Path, package: Bundle, tmp_path: Path) -> None:
    arguments = ("--mask", folder / "brain.nii.gz", "--model", package.path, "--device", "cpu")
    for name, more, files in (("kept", ["--keep-reconstruction"], RESULTS | {"healed.nii.gz"}), ("plain", [], RESULTS)):
        end = run("detect", folder / "kopf.nii.gz", *arguments, "-o", tmp_path / name, *more)
        assert end.code == 0, end.err
        assert {path.name for path in (tmp_path / name).iterdir()} == files
    reconstruction, scan, brain = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (tmp_path / "kept" / "healed.nii.gz", folder / "kopf.nii.gz", folder / "brain.nii.gz")
    )
    changed = np.abs(reconstruction - scan) > 1e-3
    assert changed[brain > 0].mean() > 0.5
    assert not changed[0].any(), "there is no brain in the lowest slice"
    digests = json.loads((tmp_path / "kept" / "provenance.json").read_text(encoding="utf-8"))["files_sha256"]
    assert "healed.nii.gz" in digests


@pytest.mark.parametrize("anonymous", [True, False])
def test_an_anonymous_result_names_neither_scan_nor_folder(
    anonymous: bool, run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the report is drawn, too
    private = tmp_path / "Doe Jane"
    private.mkdir()
    for name in ("kopf", "brain"):
        image = sitk.ReadImage(str(folder / f"{name}.nii.gz"))
        image.SetMetaData("descrip", "Jane Doe FLAIR")
        sitk.WriteImage(image, str(private / f"doe-{name}.nii.gz"))
    asked = ["--anonymous"] if anonymous else []
    end = run(
        *("detect", private / "doe-kopf.nii.gz", "--mask", private / "doe-brain.nii.gz"),
        *("--method", "intensity", "-o", tmp_path / "out", *asked),
    )
    assert end.code == 0, end.err
    names = ("provenance.json", "report.html", "findings.json", "findings.csv")
    texts = [(tmp_path / "out" / name).read_text(encoding="utf-8").casefold() for name in names]
    assert ["doe" in re.sub(r"base64,[a-z0-9+/=]+", "", text) for text in texts] == [not anonymous] * 2 + [False] * 2
    title = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))["input"]["title"]
    assert title == ("scan" if anonymous else "doe-kopf.nii.gz")


def test_a_model_that_finds_brains_is_refused_before_anything_is_read(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("diffusion_anomaly.detection.scan.read_volume", lambda scan, **options: read.append(scan))
    end = run("detect", folder / "kopf.nii.gz", "--method", "intensity", "--model", "brain-mask", "-o", tmp_path / "o")
    assert end.code == 3
    assert "made for the method 'brain', but 'intensity' was asked for" in end.err
    assert "It finds brains" in end.err
    assert read == []
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("order", [1, -1])
def test_names_that_collide_get_the_folders_above_whatever_their_case_format_and_order(order: int) -> None:
    named = {
        "a/Scan.nii.gz": "a-Scan",
        "b/scan.nrrd": "b-scan",
        "c/scan-2.mha": "scan-2",
        "d/SCAN": "d-SCAN",
        "e/x.y.nii": "x.y",
        "f/one.nii": "one.nii",
        "f/one.nrrd": "one.nrrd",
        "g/1/anat/two.nii": "g-1-anat-two",
        "h/1/anat/two.nii": "h-1-anat-two",
    }
    scans = list(named)[::order]
    folders = batch.output_folders(list(map(Path, scans)), Path("out"))
    assert dict(zip(scans, (folder.name for folder in folders), strict=True)) == named


def test_json_lines_are_the_workers_events_and_stand_alone_on_stdout(
    run: Run, folder: Path, package: Bundle, tmp_path: Path
) -> None:
    arguments = ("--mask", folder / "brain.nii.gz", "--model", package.path, "-o", tmp_path, "--json-lines")
    end = run("detect", folder / "kopf.nii.gz", *arguments)
    assert (end.code, end.err) == (0, "")
    events = [job.decode(line) for line in end.out.splitlines()]
    assert [type(event) for event in events if isinstance(event, job.Started)] == [job.Started]
    stages = [event.stage for event in events if isinstance(event, job.Progress)]
    assert list(dict.fromkeys(stages)) == ["read", "brain", "load", "detect", "findings", "write"]
    last = events[-1]
    assert isinstance(last, job.Result)
    assert {Path(path).name for path in last.files.values()} == RESULTS
    assert end.out.isascii()


def test_json_lines_of_several_scans_name_the_scan_and_end_with_its_error(run: Run, tmp_path: Path) -> None:
    end = run("detect", tmp_path / "one.nii", tmp_path / "two.nii", "-o", tmp_path / "out", "--json-lines")
    assert end.code == 2
    events = [json.loads(line) for line in end.out.splitlines()]
    errors = [(Path(event["scan"]).name, event["code"]) for event in events if event["event"] == "error"]
    assert errors == [("one.nii", "bad_input"), ("two.nii", "bad_input")]
    assert all("scan" in event for event in events)
    assert not (tmp_path / "out").exists()


# --- what is wrong ends in one or two lines and the right code


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("detect {folder}/nothing.nii.gz -o {out}", 2, "nothing.nii.gz"),
        ("detect {scan} -o {out} --steps 0", 2, "steps is 0"),
        ("detect {scan} -o {out} --steps 5000", 2, "steps is 5000"),
        ("detect {scan} -o {out} --method magic", 2, "magic"),
        ("detect {scan} -o {out} --device tpu", 2, "tpu"),
        ("detect {scan} -o {out} --seed -3", 2, "seed is -3"),
        ("detect {scan} -o {out} --set steps", 2, "--set got 'steps'"),
        ("detect {scan} -o {out} --set stepps=3", 2, "no option stepps"),
        ("detect {scan} -o {out} --model no-such-model", 3, "no-such-model"),
        ("detect {scan} -o {out} --model {folder}", 3, "manifest"),
        ("detect {scan} -o {out} --method guided --model {package}", 3, "made for the method 'unsupervised'"),
        ("detect {scan} {scan} -o {out} --mask {brain}", 2, "One brain mask"),
        ("detect {scan} -o {brain}", 2, "brain.nii.gz"),
        ("detect {scan} -o {brain}/sub", 2, "brain.nii.gz"),
        ("detect {scan}", 2, "--output"),
        ("detect -o {out}", 2, "SCAN"),
        ("detect {scan} -o {out} --seed x", 2, "--seed"),
        ("detect {scan} -o {out} --no-such-option", 2, "--no-such-option"),
        ("no-such-command", 2, "no-such-command"),
        ("threshold {folder}/nothing.nii.gz --at 2 -o {out}", 2, "nothing.nii.gz"),
        ("threshold {scan} --at 0 -o {out}", 2, "threshold is 0"),
        ("threshold {scan} --at 1,5 -o {out}", 2, "Write a decimal point"),
        ("detect {scan} -o {out} --threshold 1,5", 2, "Write a decimal point"),
        ("models verify no-such-model", 3, "no-such-model"),
        ("evaluate {folder} -o {out}", 2, "no scan named"),
        (
            "evaluate {folder} -o {out} --scan-pattern k*f.nii.gz --mask-pattern k*f.nii.gz --healthy {out}",
            2,
            "no folder",
        ),
    ],
)
def test_a_mistake_is_told_in_two_lines_and_writes_nothing(
    arguments: str, code: int, says: str, run: Run, folder: Path, package: Bundle, tmp_path: Path
) -> None:
    if "--model" not in arguments and "--method" not in arguments and "detect {scan} -o" in arguments:
        arguments += " --model {package}"
    names = {
        **{"scan": folder / "kopf.nii.gz", "brain": folder / "brain.nii.gz", "folder": folder},
        **{"out": tmp_path / "out", "package": package.path},
    }
    before = sorted(folder.iterdir())
    end = run(*(part.format(**names) for part in arguments.split(" ")))
    assert end.out == ""
    assert 1 <= len(end.error_lines) <= 2
    assert end.error_lines[0].startswith("error: ")
    assert says in end.err
    assert end.code == code
    assert not (tmp_path / "out").exists()
    assert sorted(folder.iterdir()) == before


def test_a_fault_of_the_program_is_no_traceback_unless_asked(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("diffusion_anomaly.detection.scan.read_volume", broken)
    end = run("detect", folder / "kopf.nii.gz", "--method", "intensity", "-o", tmp_path / "out")
    assert end.code == 1
    assert end.error_lines[0] == "error: ZeroDivisionError: oops"
    assert len(end.error_lines) == 2


@pytest.mark.parametrize("command", ["detect", "threshold", "evaluate"])
def test_an_output_folder_without_a_name_is_not_the_current_folder(
    command: str, run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    end = run(command, folder / "kopf.nii.gz", *(("--at", 2) if command == "threshold" else ()), "-o", "")
    assert end.code == 2
    assert "empty name" in end.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["detect", "threshold"])
def test_a_file_whose_name_looks_like_an_option_is_told_how_to_be_written(
    command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for there in (False, True):
        if there:
            (tmp_path / "-dash.nii.gz").touch()
        end = run(command, "-dash.nii.gz", "-o", "out")
        assert end.code == 2
        assert ("write ./-dash.nii.gz" in end.err) == there


def test_a_full_disk_leaves_no_file_under_a_final_name(detected: Path, tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's end: a write beyond it fails in the same place."""
    end = ended(process("threshold", detected / "heat.nii.gz", "--at", 2, "-o", tmp_path / "out", limit=500))
    assert end.code == 2, end.err
    assert "could not be written" in end.err
    assert not list((tmp_path / "out").glob("*"))


def test_termination_stops_a_run_and_leaves_nothing(folder: Path, package: Bundle, tmp_path: Path) -> None:
    """It takes the way of Ctrl-C."""
    arguments = ("--mask", folder / "brain.nii.gz", "--model", package.path, "--json-lines", "--steps", 500)
    started = process("detect", folder / "kopf.nii.gz", *arguments, "-o", tmp_path / "out")
    assert started.stdout is not None
    for line in started.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["stage"] == "detect" and event["done"]:
            break
    started.terminate()
    end = ended(started)
    assert end.code == 5
    last = json.loads(end.out.splitlines()[-1])
    assert (last["event"], last["code"]) == ("error", "cancelled")
    assert not (tmp_path / "out").exists()


# --- threshold, models, evaluate, help


@pytest.fixture(scope="module")
def detected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("detected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "diffusion_anomaly.results.report.write_report",
            lambda result, path: path.write_text("page"),
        )
        scan, brain = folder / "kopf.nii.gz", folder / "brain.nii.gz"
        assert cli.main(["detect", str(scan), "--mask", str(brain), "--method", "intensity", "-o", str(output)]) == 0
    return output


def test_threshold_cuts_the_same_scores_anew(run: Run, detected: Path, tmp_path: Path) -> None:
    anomaly_map = sitk.GetArrayFromImage(sitk.ReadImage(str(detected / "heat.nii.gz")))
    at = float(np.quantile(anomaly_map[anomaly_map > 3], 0.5))
    end = run("threshold", detected / "heat.nii.gz", "--at", at, "--min-volume", 0, "-o", tmp_path)
    doubts = json.loads((detected / "provenance.json").read_text(encoding="utf-8"))["warnings"]
    assert (end.code, end.error_lines) == (0, [f"warning: {doubt}" for doubt in doubts])
    assert {path.name for path in tmp_path.iterdir()} == {
        "mask.nii.gz",
        "findings.csv",
        "findings.json",
        "threshold.json",
    }
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    np.testing.assert_array_equal(mask, anomaly_map >= np.float32(at))
    assert json.loads((tmp_path / "threshold.json").read_text(encoding="utf-8"))["threshold"] == at


def test_threshold_at_the_stored_value_gives_the_stored_mask(run: Run, detected: Path, tmp_path: Path) -> None:
    stored = json.loads((detected / "provenance.json").read_text(encoding="utf-8"))["threshold"]["heat"]
    assert run("threshold", detected / "heat.nii.gz", "--at", stored, "-o", tmp_path).code == 0
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "mask.nii.gz"))) for folder in (detected, tmp_path)]
    np.testing.assert_array_equal(*masks)
    again, before = (
        list(csv.DictReader((folder / "findings.csv").read_text(encoding="utf-8").splitlines()))
        for folder in (tmp_path, detected)
    )
    assert again == before != [] and all(row["place"] for row in before)


def test_a_model_of_another_method_is_no_baseline(run: Run, folder: Path, package: Bundle, tmp_path: Path) -> None:
    end = run("detect", folder / "kopf.nii.gz", "--method", "intensity", "--model", package.path, "-o", tmp_path / "o")
    assert end.code == 3
    assert "made for the method 'unsupervised', but 'intensity' was asked for" in end.err
    assert "the method unsupervised" in end.err
    assert not (tmp_path / "o").exists()


def test_the_method_is_the_models_where_none_is_named(run: Run, folder: Path, tmp_path: Path) -> None:
    model = packages.intensity(tmp_path / "toy-intensity").path
    end = run(
        "detect", folder / "kopf.nii.gz", "--mask", folder / "brain.nii.gz", "--model", model, "-o", tmp_path / "o"
    )
    assert end.code == 0, end.err
    provenance = json.loads((tmp_path / "o" / "provenance.json").read_text(encoding="utf-8"))
    assert (provenance["method"], provenance["model"]["name"]) == ("intensity", "toy-intensity")


def test_threshold_does_not_part_a_detection_from_its_provenance(run: Run, detected: Path) -> None:
    before = (detected / "mask.nii.gz").read_bytes()
    end = run("threshold", detected / "heat.nii.gz", "--at", 4, "-o", detected)
    assert end.code == 2
    assert (detected / "mask.nii.gz").read_bytes() == before


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["threshold", "HEAT", "--at", "3", "-o", "OUT"]])
def test_what_needs_no_network_does_not_wait_for_torch(arguments: list[str], detected: Path, tmp_path: Path) -> None:
    words = {"HEAT": str(detected / "heat.nii.gz"), "OUT": str(tmp_path)}
    code = (
        "import sys; from diffusion_anomaly.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'monai'} & set(sys.modules), 'torch was imported'; sys.exit(code)"
    )
    end = ended(process(*(words.get(word, word) for word in arguments), start=["-c", code]))
    assert end.code == 0, end.err


def test_models_verify_tells_the_whole_from_the_damaged(run: Run, package: Bundle, tmp_path: Path) -> None:
    damaged = packages.unsupervised(tmp_path / "damaged").path
    weights = damaged / "models" / "diffusion.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    end = run("models", "verify", package.path, damaged)
    assert end.code == 3
    assert end.out == "toy-unsupervised 0.1.0: ok\n"
    assert len(end.error_lines) == 1
    assert "models/diffusion.safetensors" in end.err
    as_json = run("models", "verify", package.path, damaged, "--json")
    assert as_json.code == 3
    assert [row["ok"] for row in json.loads(as_json.out)] == [True, False]
    assert run("models", "verify", package.path).code == 0


def test_evaluate_prints_the_table_with_the_baseline_beside(
    run: Run, folder: Path, package: Bundle, tmp_path: Path
) -> None:
    arguments = ("--scan-pattern", "k*f.nii.gz", "--mask-pattern", "lesi*n.nii.gz", "--brain-pattern", "brai*n.nii.gz")
    table = tmp_path / "scans.csv"
    row = ",".join(f"{folder}/{name}.nii.gz" for name in ("kopf", "lesion", "brain"))
    table.write_text(f"scan,reference,brain\n{row}\n", encoding="utf-8")
    end = run("evaluate", table, "--run", f"unsupervised={package.path}", "-o", tmp_path / "out", "--steps", 2)
    assert end.code == 0, end.err
    assert re.search(r"^\| unsupervised \|", end.out, re.MULTILINE)
    assert re.search(r"^\| intensity \|", end.out, re.MULTILINE)
    for name in ("evaluation.csv", "evaluation.json", "evaluation.md"):
        assert (tmp_path / "out" / name).is_file()
    assert run("evaluate", folder, *arguments, "-o", tmp_path / "out").code == 2


def test_help_and_version(run: Run) -> None:
    for arguments in ((), ("--help",)):
        end = run(*arguments)
        assert end.code == 0
        assert {"detect", "threshold", "models", "evaluate", "worker"} <= set(end.out.split())
    assert run("--version").out == f"diffusion-anomaly {__version__}\n"


def test_settings_are_json_where_they_can_be() -> None:
    parsed = cli.parse_settings(["a=1", "b=0.5", "c=true", "d=bright", "e=[1, 2]", "f=x=y"])
    assert parsed == {"a": 1, "b": 0.5, "c": True, "d": "bright", "e": [1, 2], "f": "x=y"}


def test_a_reader_that_stops_reading_gets_no_traceback() -> None:
    """As in ``diffusion-anomaly --help | head``: stdout is closed before anything is printed."""
    code = "import sys; sys.stdin.read(); from diffusion_anomaly.cli.main import main; sys.exit(main(['--help']))"
    started = process(start=["-c", code], stdin=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.close()
    started.stdout = None
    _, complained = started.communicate("", timeout=240)
    assert (started.returncode, complained) == (1, "")


def test_worker_hands_its_job_over_and_ends_with_its_code(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Path] = []
    monkeypatch.setattr(
        "diffusion_anomaly.worker.main.run", lambda folder: jobs.append(folder) or job.ExitCode.CANCELLED
    )
    assert run("worker", tmp_path).code == 5
    assert jobs == [tmp_path]
