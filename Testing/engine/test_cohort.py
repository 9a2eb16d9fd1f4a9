"""Cohorts: which scans there are, what is done again and what is not, and what is written over all."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import packages
import phantom
from cohorts import Heard
from diffusion_anomaly.cli import cohort as command
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.cohort import cohort, group
from diffusion_anomaly.cohort.actors import Workers, sizes_of
from diffusion_anomaly.cohort.cohort import run_cohort
from diffusion_anomaly.cohort.pool import ThisProcess
from diffusion_anomaly.cohort.quality import write_group
from diffusion_anomaly.cohort.run import run_tasks
from diffusion_anomaly.cohort.scans import CohortScan, list_scans, parse_shard, shard_of
from diffusion_anomaly.cohort.state import CohortLock, finished, results_folder
from diffusion_anomaly.cohort.tasks import Failure, Outcome, Task, failure_of
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.detection.scan import ScanRequest
from diffusion_anomaly.errors import InputError, MemoryExhausted, ModelError
from diffusion_anomaly.io.contrasts import ChannelSource
from diffusion_anomaly.io.files import write_error
from diffusion_anomaly.io.records import content_of, sha256_of

ENGINE = Path(cli.__file__).parents[2]
INTENSITY = Options("intensity", device="cpu", force=True)
HERE = Workers(0)
pytestmark = pytest.mark.usefixtures("plain_report")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scan`` and ``brain.nii.gz`` of a small head."""
    return phantom.write_scan(tmp_path_factory.mktemp("head"))


@pytest.fixture
def folder(tmp_path: Path, head: Path) -> Path:
    """A table of two scans with their brain masks, and the scans."""
    place = tmp_path / "scans"
    place.mkdir()
    for name in ("a", "b"):
        shutil.copy(head / "scan.nii.gz", place / f"{name}.nii.gz")
    (place / "scans.csv").write_text(
        f"scan,patient,session,brain\na.nii.gz,P1,1,{head}/brain.nii.gz\nb.nii.gz,P1,2,{head}/brain.nii.gz\n",
        encoding="utf-8",
    )
    return place


def of_table(folder: Path) -> list[CohortScan]:
    return list_scans(folder / "scans.csv", folder / "out")


def run(folder: Path, heard: Heard | None = None, options: Options = INTENSITY, **more: Any) -> cohort.Ended:
    return run_cohort(of_table(folder), folder / "out", options, heard or Heard(), workers=HERE, **more)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names_of(scans: Sequence[CohortScan]) -> list[str]:
    return [scan.name for scan in scans]


# Which scans there are


def test_a_folder_is_listed_by_a_pattern_with_names_that_another_scan_does_not_change(tmp_path: Path) -> None:
    for name in ("A/flair.nii.gz", "B/flair.nii.gz", "B/t1.nii.gz", "out/results/x/flair.nii.gz", ".x/flair.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_scans(tmp_path, tmp_path / "out", "**/*flair.nii.gz")
    assert names_of(found) == ["A-flair", "B-flair"]
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "flair.nii.gz").touch()
    assert names_of(list_scans(tmp_path, tmp_path / "out", "**/*flair.nii.gz")) == ["A-flair", "B-flair", "C-flair"]


def test_a_folder_without_a_pattern_has_its_images_and_folders(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a.json", "readme.txt", "b.mha"):
        (tmp_path / name).touch()
    (tmp_path / "dicom").mkdir()
    assert names_of(list_scans(tmp_path, tmp_path / "out")) == ["a", "b", "dicom"]


def test_a_table_names_patients_channels_and_masks(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "name,patient,session,channel_FLAIR,channel_T1,brain,remark\none,P1,2020,f.nii,t.nii,b.nii,x\n,P2,,g.nii,u.nii,,\n,,,,,,\n"
    )
    first, second = list_scans(table, tmp_path / "out")
    assert (first.name, second.name) == ("P2", "one")
    assert second.channels == {"FLAIR": ChannelSource(tmp_path / "f.nii"), "T1": ChannelSource(tmp_path / "t.nii")}
    assert (second.patient, second.session, second.brain) == ("P1", "2020", tmp_path / "b.nii")


def test_a_table_of_semicolons_says_the_same(tmp_path: Path) -> None:
    for file in ("x.nii", "y.nii", "m.nii"):
        (tmp_path / file).touch()
    for name, separator in (("a", ","), ("b", ";"), ("c", "\t")):
        rows = (["scan", "patient", "brain"], ["x.nii", "P1", "m.nii"], ["y.nii", "P2", ""])
        (tmp_path / f"{name}.csv").write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8")
    one, *others = (list_scans(tmp_path / f"{name}.csv", tmp_path / "out") for name in "abc")
    assert others == [one, one] and [scan.patient for scan in one] == ["P1", "P2"]


def test_one_file_is_a_cohort_of_one_scan(head: Path, tmp_path: Path) -> None:
    (scan,) = list_scans(head / "scan.nii.gz", tmp_path / "out")
    assert (scan.name, scan.scan) == ("scan", head / "scan.nii.gz")
    with pytest.raises(InputError, match="may name patients"):
        list_scans(head / "scan.nii.gz", tmp_path / "out", named=True)


@pytest.mark.parametrize("column", ["scan", "brain"])
def test_a_file_of_a_table_that_is_missing_is_named_and_stops_no_other(folder: Path, column: str) -> None:
    table = folder / "scans.csv"
    text = table.read_text(encoding="utf-8")
    lines = text.splitlines()
    cells = lines[1].split(",")
    cells[0 if column == "scan" else 3] = "gone.nii.gz"
    table.write_text("\n".join([lines[0], ",".join(cells), lines[2]]), encoding="utf-8")
    ended = run(folder, heard := Heard())
    (failed,) = ended.failed
    assert any("There is no file" in warning for warning in heard.warnings)
    assert ended.finished == 1 and str(folder / "gone.nii.gz") in failed.failure.what
    assert failed.failure.kind == "bad_input" and "line 2" in failed.failure.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.nii\n", "It needs scan"),
        ("scan\n", "holds no scan"),
        ("scan\na.nii\nA.nii\n", "several scans named"),
        ("scan,frame\na.nii,first\n", "line 2: the frame"),
        ("scan,channel_T1\na.nii,b.nii\n", "a scan and channels"),
        ("scan,name\n,x\n", "names no scan"),
        ("scan;brain\na.nii\n", "line 2, has 1 cell; the heading has 2"),
        ("scan,brain\na.nii,b.nii\nc.nii,d.nii,e.nii\n", "line 3, has 3 cells"),
        ('scan,brain\n"a.nii,b.nii\n', "from line 2 on"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        list_scans(tmp_path / "table.csv", tmp_path / "out")


def test_anonymous_scans_need_names_that_the_user_gave(tmp_path: Path) -> None:
    (tmp_path / "Doe^Jane.nii").touch()
    with pytest.raises(InputError, match="may name patients"):
        list_scans(tmp_path, tmp_path / "out", named=True)
    (tmp_path / "table.csv").write_text("scan\nDoe^Jane.nii\n")
    with pytest.raises(InputError, match="no column name"):
        list_scans(tmp_path / "table.csv", tmp_path / "out", named=True)


def test_shards_hold_every_scan_once() -> None:
    scans = [CohortScan(str(number), Path()) for number in range(10)]
    parts = [names_of(shard_of(scans, part, 3)) for part in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(names_of(scans))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for text in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(InputError, match="shard"):
            parse_shard(text)


# What is done again and what is not


def test_what_is_finished_is_not_done_again_and_what_is_missing_is(folder: Path) -> None:
    first = Heard()
    ended = run(folder, first)
    assert first.begun == [(2, 0)] and (ended.finished, ended.failed) == (2, [])
    records = {name: sha256_of(folder / "out/results" / name / "provenance.json") for name in ("P1-1", "P1-2")}
    (folder / "out/results/P1-2/mask.nii.gz").unlink()  # half a result is none
    second = Heard()
    run(folder, second)
    assert second.begun == [(1, 1)] and list(second.outcomes) == ["P1-2"]
    assert sha256_of(folder / "out/results/P1-1/provenance.json") == records["P1-1"]
    third = Heard()
    run(folder, third)
    assert third.begun == [(0, 2)] and not third.outcomes


def test_a_result_whose_files_were_damaged_is_not_finished_and_not_replaced(folder: Path) -> None:
    run(folder)
    mask = folder / "out/results/P1-2/mask.nii.gz"
    mask.write_bytes(mask.read_bytes()[:-20])
    found = folder / "out/results/P1-1/findings.json"
    found.write_text(found.read_text(encoding="utf-8").replace("centroid", "centroiD"), encoding="utf-8")
    ended = run(folder, heard := Heard())
    assert heard.begun == [(2, 0)] and ended.finished == 0
    assert all("was changed since this program wrote it" in one.failure.what for one in ended.failed)
    mask.unlink(), found.unlink()
    assert run(folder).finished == 2


def test_tables_leave_out_what_is_not_in_the_cohort_any_more(folder: Path) -> None:
    run(folder)
    table, out = folder / "scans.csv", folder / "out"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:2]), encoding="utf-8")
    run(folder, heard := Heard())
    assert any("1 result in the folder is left out" in warning for warning in heard.warnings)
    assert [row["name"] for row in read_csv(out / "scans.csv")] == ["P1-1"]
    assert {row["name"] for row in read_csv(out / "findings.csv")} == {"P1-1"}
    assert "1 result in the folder is left out" in (out / "quality.html").read_text(encoding="utf-8")
    (folder / "a.nii.gz").write_bytes(b"no scan")
    run(folder)
    assert read_csv(out / "scans.csv") == [] and (out / "results/P1-1/provenance.json").is_file()


def test_a_scan_that_changed_is_done_again_and_one_that_was_only_copied_is_not(folder: Path, head: Path) -> None:
    run(folder)
    os.utime(folder / "a.nii.gz", (1, 1))  # copied: another time, the same bytes
    shutil.copy(head / "lesion.nii.gz", folder / "b.nii.gz")
    os.utime(folder / "b.nii.gz", (1, 1))
    heard = Heard()
    run(folder, heard)
    assert heard.begun == [(1, 1)] and list(heard.outcomes) == ["P1-2"]
    assert "P1-2; done again" in heard.warnings[0]
    made = content_of(folder / "out/results/P1-2/provenance.json")
    assert made is not None and made["input"]["sha256"] == sha256_of(folder / "b.nii.gz")


def test_columns_that_mean_nothing_are_told(folder: Path) -> None:
    table = folder / "scans.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("patient", "pateint"), encoding="utf-8")
    told: list[str] = []
    list_scans(table, folder / "out", warn=told.append)
    assert len(told) == 1 and "mean nothing here: pateint. Known are scan, name, patient" in told[0]
    list_scans(table, folder / "out")  # told to nobody


def test_folders_of_image_files_are_not_taken_for_series(tmp_path: Path, head: Path) -> None:
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
        shutil.copy(head / "scan.nii.gz", tmp_path / name / "flair.nii.gz")
    with pytest.raises(InputError, match=r"p1 holds image files such as flair\.nii\.gz") as refused:
        list_scans(tmp_path, tmp_path / "out")
    assert "--pattern '**/*.nii.gz'" in refused.value.hint
    assert names_of(list_scans(tmp_path, tmp_path / "out", "**/*.nii.gz")) == ["p1-flair", "p2-flair"]


def test_pages_of_scans_are_left_out_on_request_and_results_without_them_count(folder: Path, head: Path) -> None:
    run(folder)
    shutil.copy(head / "lesion.nii.gz", folder / "b.nii.gz")
    run(folder, heard := Heard(), reports=False)
    out = folder / "out"
    assert heard.begun == [(1, 1)]
    assert (out / "results/P1-1/report.html").exists() and not (out / "results/P1-2/report.html").exists()
    assert [row["report"] for row in read_csv(out / "scans.csv")] == ["results/P1-1/report.html", ""]
    run(folder, heard := Heard())
    assert heard.begun == [(0, 2)]


def test_other_settings_are_refused_and_made_anew_when_asked_for(folder: Path) -> None:
    run(folder)
    with pytest.raises(InputError, match=r"2 results .* threshold was the model's own, and is 1\.5 now.*--overwrite"):
        run(folder, options=replace(INTENSITY, threshold=1.5))
    heard = Heard()
    run(folder, heard, replace(INTENSITY, threshold=1.5), overwrite=True)
    assert heard.begun == [(2, 0)]
    with (folder / "out/scans.csv").open() as file:
        assert {row["threshold"] for row in csv.DictReader(file)} == {"1.5"}


def test_another_device_or_batch_size_is_no_other_setting(folder: Path) -> None:
    run(folder)
    heard = Heard()
    run(folder, heard, replace(INTENSITY, device="auto", batch_size=3))
    assert heard.begun == [(0, 2)]


def test_a_bad_scan_is_in_the_table_of_failures_and_stops_no_other(folder: Path) -> None:
    (folder / "a.nii.gz").write_bytes(b"no scan at all")
    heard = Heard()
    ended = run(folder, heard)
    assert heard.outcomes["P1-2"].failure is None and heard.retries == []
    with (folder / "out/failures.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["name"], row["kind"], row["tries"]) == ("P1-1", "bad_input", "1")
    assert "is not a NIfTI file" in row["message"] and row["hint"]
    assert cohort.exit_code_of(ended.failed) == 2
    assert "is not a NIfTI file" in (folder / "out/quality.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        *(("bad_input", 2), ("input_output", 2), ("disk_full", 2)),
        *(("model", 3), ("out_of_memory", 4), ("internal", 1), ("worker_died", 1)),
    ],
)
def test_a_failure_ends_with_the_exit_code_of_its_kind(kind: str, code: int) -> None:
    error = Failure(kind, "It broke.", "Mend it.").as_error("Then go on.")
    assert (error.exit_code, error.what, error.hint) == (code, "It broke.", "Mend it. Then go on.")


def test_shards_do_their_part_and_the_whole_run_only_the_tables(folder: Path) -> None:
    for part in (1, 2):
        ended = run(folder, shard=(part, 2))
        assert ended.finished == 1 and list(ended.files) == [f"failures-{part}-of-2.csv"]
    assert not (folder / "out/scans.csv").exists()
    heard = Heard()
    ended = run(folder, heard)
    assert heard.begun == [(0, 2)] and (folder / "out/scans.csv").is_file()
    assert [path.name for path in (folder / "out").glob("failures*")] == ["failures.csv"]


def test_runs_that_would_meet_are_refused(tmp_path: Path) -> None:
    def refused(*shard: tuple[int, int] | None) -> bool:
        try:
            with CohortLock(tmp_path, *shard):
                return False
        except InputError:
            return True

    with CohortLock(tmp_path):
        assert refused() and refused((1, 2))
    with CohortLock(tmp_path, (1, 2)):
        assert refused() and refused((1, 2)) and refused((1, 3)) and not refused((2, 2))
    assert not refused() and not refused((1, 3))


# What may pass is tried again, and what every scan would meet ends the run


class Scripted:
    """Answers each scan with its failures in turn, then well."""

    def __init__(self, **failures: Sequence[str]) -> None:
        self.left = {name: list(kinds) for name, kinds in failures.items()}
        self.done: list[str] = []

    def __call__(self, task: Task) -> Outcome:
        self.done.append(task.name)
        kinds = self.left.get(task.name)
        return Outcome(failure=Failure(kinds.pop(0), "It failed.") if kinds else None)


def scripted(monkeypatch: pytest.MonkeyPatch, **failures: Sequence[str]) -> tuple[Scripted, list[Any]]:
    monkeypatch.setattr("diffusion_anomaly.cohort.run.RETRY_SECONDS", 0.01)
    runner, failed = Scripted(**failures), []
    tasks = [Task(name, ScanRequest(Path(name), Path())) for name in "abc"]
    run_tasks(tasks, ThisProcess(lambda: runner), Heard(), failed)
    return runner, failed


@pytest.mark.parametrize(
    ("kinds", "tries", "fails"),
    [
        (["out_of_memory"], 2, False),
        (["input_output", "input_output"], 3, False),
        (["input_output"] * 3, 3, True),
        (["worker_died"], 2, False),
        (["worker_died"] * 2, 2, True),
        (["worker_died", "out_of_memory", "worker_died"], 3, True),
        (["bad_input"], 1, True),
        (["internal"], 1, True),
    ],
)
def test_only_what_may_pass_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, kinds: list[str], tries: int, fails: bool
) -> None:
    runner, failed = scripted(monkeypatch, b=kinds)
    assert runner.done.count("b") == tries and runner.done.count("a") == runner.done.count("c") == 1
    assert [(one.name, one.tries) for one in failed] == ([("b", tries)] if fails else [])


@pytest.mark.parametrize(("kind", "raised"), [("disk_full", InputError), ("model", ModelError)])
def test_what_every_scan_would_meet_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, kind: str, raised: type[Exception]
) -> None:
    with pytest.raises(raised, match="What is finished stays"):
        scripted(monkeypatch, b=[kind])


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "input_output"), (errno.ENOENT, "bad_input")]
)
def test_failures_are_known_by_what_the_operating_system_said(number: int, kind: str) -> None:
    told = InputError("It could not be written.")
    told.__cause__ = OSError(number, "said so")
    assert failure_of(write_error(Path("out/heat.nii.gz"), OSError(errno.EFBIG, "File too large"))).kind == "bad_input"
    assert failure_of(told).kind == kind
    assert failure_of(MemoryExhausted("gone")).kind == "out_of_memory"
    assert failure_of(ValueError("a fault")).kind == "internal"


def test_a_full_disk_leaves_no_half_result_and_the_next_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:

        def write_nothing(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr("diffusion_anomaly.results.saving.write_findings_csv", write_nothing)
        with pytest.raises(InputError, match=r"no space left on the disk.*What is finished stays"):
            run(folder)
    assert {path.name for path in (folder / "out").rglob("*") if path.is_file()} == {"run", "failures.csv"}
    heard = Heard()
    run(folder, heard)
    assert heard.begun == [(2, 0)] and all(outcome.failure is None for outcome in heard.outcomes.values())


def test_a_killed_driver_leaves_whole_results_and_the_same_command_goes_on(folder: Path) -> None:
    code = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "import test_cohort as here\n"
        "from diffusion_anomaly.results import report\n"
        "wait = lambda result: time.sleep(0 if result.name == 'P1-1' else 600)\n"
        "report.write_report = lambda result, path: (path.write_text('page'), wait(result))\n"
        "here.run(Path(sys.argv[1]))\n"
    )
    paths = [str(Path(__file__).parent), str(ENGINE)]
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), *paths])
    try:
        until = time.monotonic() + 240
        out = folder / "out" / "results"
        while not list(out.glob("P1-2/.unfinished-*/new/report.html")) and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(InputError, match="Another run works on this cohort"):
            run(folder)
    finally:
        process.kill()
        process.wait()
    assert finished(out / "P1-1") is not None and finished(out / "P1-2") is None
    heard = Heard()
    run(folder, heard)
    assert heard.begun == [(1, 1)] and list(heard.outcomes) == ["P1-2"]
    assert not list(out.rglob(".unfinished-*"))


# Over all scans


def test_tables_and_pages_tell_of_every_scan(folder: Path) -> None:
    ended = run(folder)
    out = folder / "out"
    with (out / "scans.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["patient"], row["session"]) for row in rows] == [("P1-1", "P1", "1"), ("P1-2", "P1", "2")]
    for row in rows:
        found = json.loads((out / f"results/{row['name']}/findings.json").read_text())["findings"]
        assert int(row["findings"]) == len(found)
        assert float(row["size"]) == pytest.approx(sum(finding["volume_ml"] for finding in found), rel=1e-4)
        share = float(row["size"]) / float(row["brain_volume_ml"])
        assert float(row["share_above_threshold"]) == pytest.approx(share, rel=1e-4)
        assert (out / row["report"]).is_file()
    with (out / "findings.csv").open() as file:
        assert sum(1 for _ in csv.DictReader(file)) == sum(int(row["findings"]) for row in rows)
    page = (out / "quality.html").read_text(encoding="utf-8")
    assert "One and the same image goes by 2 names: P1-1, P1-2." in page and "results/P1-1/report.html" in page
    subject = (out / "subjects/P1.html").read_text(encoding="utf-8")
    assert "../results/P1-2/report.html" in subject and subject.count("data:image/png") == 1
    assert set(ended.files) >= {"scans.csv", "findings.csv", "quality.html", "cohort.json", "failures.csv"}
    assert ended.files["failures.csv"] == out / "failures.csv" and ended.files["failures.csv"].is_file()


@pytest.mark.parametrize(("suffix", "spacing", "unit"), [(".png", None, "pixels"), (".mha", 0.5, "mm²")])
def test_films_are_counted_in_their_unit_and_have_no_brain(
    tmp_path: Path, suffix: str, spacing: float | None, unit: str
) -> None:
    scans, model = tmp_path / "films", tmp_path / "model"
    scans.mkdir()
    for number in range(8):
        values = np.broadcast_to(np.linspace(60, 110, 80), (96, 80)).astype(np.uint8)
        values[60 : 72 + number, 10:22] = 230
        image = sitk.GetImageFromArray(values[None] if spacing else values)
        if spacing:
            image.SetSpacing((spacing, spacing, 1.0))
        sitk.WriteImage(image, str(scans / f"f{number}{suffix}"))
    normalisation = {"kind": "percentiles", "low_percentile": 1, "high_percentile": 99, "high_value": 0.95}
    packages.intensity(
        *(model,),
        **{"modality": "X-ray", "region": "image", "orientation": "any", "grid": {"size": [40, 48]}},
        **{"normalisation": {**normalisation, "clip_max": 1.0}, "options": {"reference": 0.3}},
    )
    table = scans / "table.csv"
    rows = [f"f{number}{suffix},P{number // 2},{number}" for number in range(8)]
    table.write_text("\n".join(["scan,patient,session", *rows]), encoding="utf-8")
    out = tmp_path / "out"
    common = ["cohort", str(table), str(out), "--model", str(model), "--workers", "0"]
    assert cli.main(common) == 0
    with (out / "scans.csv").open(encoding="utf-8") as file:
        rows_of = list(csv.DictReader(file))
    assert {row["unit"] for row in rows_of} == {unit} and all(float(row["size"]) > 0 for row in rows_of)
    assert {"score", "robust_z_score"} <= set(rows_of[0])
    assert not [name for name in rows_of[0] if "brain" in name or "region" in name or "share" in name]
    pages = [(out / name).read_text(encoding="utf-8") for name in ("quality.html", "subjects/P0.html")]
    assert not any("brain" in page.casefold() for page in pages)
    largest = f"{float(rows_of[1]['largest']):.0f} {unit}"
    assert largest in pages[1] and "Centre column, row" in pages[1]
    assert cli.main([*common, "--min-area", "1e6"]) == 2  # another setting
    assert cli.main([*common, "--min-area", "1e6", "--overwrite"]) == 0
    with (out / "scans.csv").open(encoding="utf-8") as file:
        assert {row["findings"] for row in csv.DictReader(file)} == {"0"}


def test_parquet_says_the_same_as_csv(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run(folder)
    for name in ("scans", "findings"):
        table = parquet.read_table(folder / f"out/{name}.parquet").to_pylist()
        with (folder / f"out/{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in table] == [row["name"] for row in rows] and table
        assert list(table[0]) == list(rows[0])


def test_robust_scores_follow_their_definition() -> None:
    values = [9.0, 10.0, 11.0, 10.0, 12.0, 8.0, 10.5, 9.5, 30.0, None]
    # Median 10, deviations 1 0 1 0 2 2 0.5 0.5 20, their median 1.
    assert group.robust_z(values)[8:] == [pytest.approx(0.6745 * 20, rel=1e-3), None]
    assert group.robust_z(values[:7]) == [None] * 7
    assert set(group.robust_z([1.0] * 9)) == {0.0}
    # Most alike: MAD is 0, the mean deviation is 1, so that 9 away is 0.7979 * 9.
    assert group.robust_z([1.0] * 8 + [10.0])[-1] == pytest.approx(0.7979 * 9, rel=1e-3)
    shares = [1e-3, 2e-3, 1e-3, 3e-3, 2e-3, 1e-3, 2e-3, 0.0, 1e-9]
    z = group.robust_z(shares, logarithmic=True)
    assert z[-1] == z[-2]  # below what is told apart


def test_a_scan_that_stands_out_is_marked_and_a_name_is_no_markup(tmp_path: Path, folder: Path) -> None:
    run(folder)
    made = json.loads((folder / "out/results/P1-1/provenance.json").read_text())
    out = tmp_path / "many"
    for number in range(9):
        place = results_folder(out, f"s{number}")
        shutil.copytree(folder / "out/results/P1-1", place)
        about = {**made["cohort"], "patient": "<b>&" if number == 8 else f"p{number}"}
        volume = 300.0 if number == 8 else 1400.0 + number
        text = json.dumps({**made, "cohort": about, "brain": {**made["brain"], "volume_ml": volume}})
        (place / "provenance.json").write_text(text)
    found, _ = write_group(out)
    marked = {row["name"]: [quantity.name for quantity in group.stands_out(row)] for row in found.scans}
    # The same findings are a larger share of a smaller brain.
    assert marked["s8"] == ["brain_volume_ml", "share_above_threshold"]
    assert not any(marked[f"s{number}"] for number in range(8))
    page = (out / "quality.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page


def test_an_unknown_patient_is_unknown_and_no_other_scan_is_taken_for_the_same(tmp_path: Path, folder: Path) -> None:
    run(folder)
    made = json.loads((folder / "out/results/P1-1/provenance.json").read_text())
    out = tmp_path / "some"
    for name, patient in (("a", ""), ("b", ""), ("c", "a"), ("d", "a")):  # a patient is called as a scan is
        place = results_folder(out, name)
        shutil.copytree(folder / "out/results/P1-1", place)
        text = json.dumps({**made, "cohort": {**made["cohort"], "name": name, "patient": patient}})
        (place / "provenance.json").write_text(text)
    write_group(out)
    for table in ("scans.csv", "findings.csv"):
        with (out / table).open(encoding="utf-8") as file:
            assert {(row["name"], row["patient"]) for row in csv.DictReader(file)} == {
                *(("a", ""), ("b", ""), ("c", "a"), ("d", "a")),
            }
    pages = {path.name: path.read_text(encoding="utf-8") for path in (out / "subjects").iterdir()}
    shown = sorted(sorted(set(re.findall(r"<tr><td>(.)</td>", page))) for page in pages.values())
    assert shown == [["a"], ["b"], ["c", "d"]]
    overview = (out / "quality.html").read_text(encoding="utf-8")
    assert overview.count(">unknown</a>") == 2
    linked = re.findall(r'href="subjects/([^"]+)"', overview)
    assert len(linked) == 4 and set(linked) == set(pages)


def test_what_is_in_the_way_of_a_table_stays(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/scans.csv").write_text("mine")
    with pytest.raises(InputError, match=r"scans\.csv is there already"):
        run(folder)
    assert (folder / "out/scans.csv").read_text() == "mine"


# The commands


def test_the_command_runs_a_table_and_tells_in_json_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cohort", folder / "scans.csv", folder / "out", "--method", "intensity", "--force", "--workers", "0"]
    assert cli.main([str(word) for word in (*arguments, "--json-lines")]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["scan"] for event in events if event["event"] == "result" and "scan" in event} == {"P1-1", "P1-2"}
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[0]["total"] == 2 and progress[-1]["done"] == 2 and progress[-1]["scans_per_minute"] > 0
    assert events[-1]["statistics"] == {"finished": 2, "failed": 0}
    assert cli.main([str(word) for word in (*arguments, "--threshold", "9")]) == 2


def test_the_command_leaves_out_pages_of_scans(folder: Path) -> None:
    arguments = ["cohort", folder / "scans.csv", folder / "out", "--method", "intensity", "--force", "--workers", "0"]
    assert cli.main([*map(str, arguments), "--no-report"]) == 0
    assert {path.suffix for path in (folder / "out/results").glob("*/*")} == {".gz", ".csv", ".json"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard", "3/2"], "The shard is '3/2'"),
        (["--pattern", "*.mha"], "is a file, and a pattern"),
        (["--participant-label", "01"], "is not looked at as a BIDS data set"),
        (["--workers", "0", "--ray-address", "auto"], "A Ray cluster was named"),
        (["--ray-address", "ray://head:10001"], "is for clients outside of a Ray cluster"),
    ],
)
def test_the_command_says_what_does_not_go_together(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    arguments = ["cohort", str(folder / "scans.csv"), str(folder / "out"), "--method", "intensity", *more]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_without_ray_this_process_does_it_and_workers_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_anomaly.cohort.actors.is_installed", lambda: False)
    monkeypatch.setattr(cohort, "is_installed", lambda: False)
    runner = Scripted()
    run_cohort(of_table(folder), folder / "out", INTENSITY, Heard(), make=lambda: runner, group=False)
    assert runner.done == ["P1-1", "P1-2"]
    with pytest.raises(InputError, match=r"Ray is not installed.*diffusion-anomaly\[cohort\]"):
        run_cohort(of_table(folder), folder / "out", INTENSITY, Heard(), workers=Workers(2), make=lambda: runner)


@pytest.mark.parametrize(
    ("asked", "there", "expected"),
    [
        (Workers(), {"CPU": 16, "GPU": 2}, (2, 8, 1.0)),
        (Workers(), {"CPU": 16}, (4, 4, 0.0)),
        (Workers(), {"CPU": 2}, (1, 2, 0.0)),
        (Workers(3), {"CPU": 16}, (3, 5, 0.0)),
        (Workers(threads=8), {"CPU": 16}, (2, 8, 0.0)),
        (Workers(4), {"CPU": 16, "GPU": 2}, (4, 4, 0.5)),
        (Workers(2, 3, gpus=0), {"CPU": 16, "GPU": 2}, (2, 3, 0.0)),
    ],
)
def test_workers_follow_what_the_machine_has(
    asked: Workers, there: dict[str, float], expected: tuple[int, int, float]
) -> None:
    assert sizes_of(asked, there) == expected


def test_several_labels_may_follow_one_option() -> None:
    words = ["d", "o", "participant", "--participant_label", "01", "02", "--seed", "1", "--session-label", "a"]
    assert command.spread(words) == [
        *("d", "o", "participant", "--participant_label", "01", "--participant_label", "02"),
        *("--seed", "1", "--session-label", "a"),
    ]


@pytest.mark.parametrize("name", ["scans.csv", "quality.html"])
def test_a_file_in_the_way_of_the_tables_is_named_before_any_scan(folder: Path, name: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=name):
        run(folder)
    assert (folder / "out" / name).read_text() == "mine"
    assert not (folder / "out" / "results").exists()
