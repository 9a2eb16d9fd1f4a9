"""BIDS in and out: which files are scans, and derivatives that its validator takes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from cohorts import Heard
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.cohort.actors import Workers
from diffusion_anomaly.cohort.bids import BidsFile, list_bids, read_filters
from diffusion_anomaly.cohort.cohort import run_cohort
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.records import result_in_place_of_scan
from diffusion_anomaly.io.sources import read, read_brain
from diffusion_anomaly.io.volume import read_volume

pytestmark = pytest.mark.usefixtures("plain_report")
# Beside the interpreter too: an environment need not be activated.
PLACES = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
VALIDATOR = shutil.which("bids-validator-deno", path=PLACES) or shutil.which("bids-validator", path=PLACES)
DESCRIPTION = {"Name": "Painted heads", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}


def data_set(root: Path, names: Sequence[str], image: Path | None = None) -> Path:
    """A data set of these files, all of them the same image, or empty."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(DESCRIPTION))
    (root / "README.md").write_text("Heads that were painted, and that no person has. " * 5)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if image is None:
            path.touch()
        else:
            shutil.copy(image, path)
    return root


TWO_SUBJECTS = [
    "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii.gz",
    "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
    "sub-01/ses-b/anat/sub-01_ses-b_run-1_FLAIR.nii.gz",
    "sub-01/ses-b/anat/sub-01_ses-b_run-2_FLAIR.nii.gz",
    "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
    "sub-01/ses-b/anat/sub-01_ses-b_ce-gd_T1w.nii.gz",
    "sub-02/anat/sub-02_FLAIR.nii",
    "sub-02/anat/sub-02_part-phase_FLAIR.nii",
    "sub-02/anat/sub-02_FLAIR.json",
    "sub-02/anat/notes.nii.gz",
    "sub-02/dwi/sub-02_FLAIR.nii.gz",
    "derivatives/x/sub-01/anat/sub-01_FLAIR.nii.gz",
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return data_set(tmp_path / "raw", TWO_SUBJECTS)


def stems(raw: Path, *channels: str, **more: object) -> list[str]:
    return [scan.name for scan in list_bids(raw, channels, **more)]  # type: ignore[arg-type]


def test_every_file_of_the_contrast_is_a_scan(raw: Path) -> None:
    scans = list_bids(raw, ["FLAIR"])
    assert [(scan.name, scan.patient, scan.session) for scan in scans] == [
        ("sub-01_ses-a_FLAIR", "01", "a"),
        ("sub-01_ses-b_run-1_FLAIR", "01", "b"),
        ("sub-01_ses-b_run-2_FLAIR", "01", "b"),
        ("sub-02_FLAIR", "02", ""),
    ]
    assert scans[0].bids is not None and scans[0].bids.folder == "sub-01/ses-a/anat"
    assert stems(raw, "T1") == ["sub-01_ses-a_T1w", "sub-01_ses-b_T1w"]
    assert stems(raw, "T1C") == ["sub-01_ses-b_ce-gd_T1w"]


def test_a_file_whose_content_was_not_fetched_is_a_scan_that_fails(raw: Path, tmp_path: Path) -> None:
    (raw / "sub-03/anat").mkdir(parents=True)
    (raw / "sub-03/anat/sub-03_FLAIR.nii.gz").symlink_to("../../.git/annex/objects/none")
    listed = list_bids(raw, ["FLAIR"], participants=["03"])
    options = Options("intensity", device="cpu")
    ended = run_cohort(listed, tmp_path / "out", options, Heard(), workers=Workers(0), group=False)
    assert [(one.name, one.failure.kind) for one in ended.failed] == [("sub-03_FLAIR", "bad_input")]


def test_labels_and_filters_choose(raw: Path, tmp_path: Path) -> None:
    assert stems(raw, "FLAIR", participants=["sub-02"]) == ["sub-02_FLAIR"]
    assert stems(raw, "FLAIR", sessions=["a"]) == ["sub-01_ses-a_FLAIR"]
    (tmp_path / "filter.json").write_text('{"flair": {"run": [2, null]}}')
    chosen = read_filters(tmp_path / "filter.json")
    assert stems(raw, "FLAIR", filters=chosen) == ["sub-01_ses-a_FLAIR", "sub-01_ses-b_run-2_FLAIR", "sub-02_FLAIR"]
    assert stems(raw, "image", filters={"image": {"suffix": "FLAIR", "datatype": "dwi"}}) == ["sub-02_FLAIR"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"participants": ["03"]}, "no participant 03"),
        ({"sessions": ["c"]}, "no session c"),
        ({"filters": {"T1": {}}}, "entry 'T1'"),
        ({"filters": {"FLAIR": {"suffix": "T2w"}}}, r"holds no FLAIR \(suffix T2w\)"),
        ({"filters": {"FLAIR": {"suffix": ["FLAIR", "T1w"], "ce": None}}}, "would have the same names"),
    ],
)
def test_what_is_not_there_is_named(raw: Path, more: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_bids(raw, ["FLAIR"], **more)


@pytest.mark.parametrize("text", ["[]", '{"FLAIR": 1}', '{"FLAIR": {"colour": "x"}}', '{"FLAIR": {"run": true}}', "{"])
def test_a_filter_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "filter.json").write_text(text)
    with pytest.raises(InputError):
        read_filters(tmp_path / "filter.json")


def test_a_session_is_one_scan_of_several_contrasts_and_says_what_it_lacks(raw: Path) -> None:
    complete, ambiguous, lacking = list_bids(raw, ["FLAIR", "T1"])
    assert complete.name == "sub-01_ses-a" and complete.problem is None and list(complete.channels) == ["FLAIR", "T1"]
    assert complete.bids is not None and len(complete.bids.files) == 2
    assert ambiguous.problem is not None and "2 files that could be FLAIR" in ambiguous.problem.what
    assert lacking.problem is not None and "sub-02 has no T1" in lacking.problem.what


@pytest.mark.parametrize(
    "name", ["FLAIR.nii.gz", "ses-1_FLAIR.nii", "sub-1_x_FLAIR.nii", "sub-1_FLAIR.mgz", "sub-_T1w.nii"]
)
def test_a_name_that_is_not_of_the_standard_is_none(name: str) -> None:
    assert BidsFile.parse(Path("anat") / name) is None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of two scans, and the derivatives that the BIDS App made of it."""
    place = tmp_path_factory.mktemp("bids")
    head = phantom.write_scan(place)
    names = ["sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz"]
    raw = data_set(place / "raw", names, head / "scan.nii.gz")
    out = raw / "derivatives" / "anomaly"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_anomaly.results.report.write_report", lambda result, path: path.write_text("page"))
        words = ["bids", raw, out, "participant", "--participant-label", "01", "--session_label", "1", "2"]
        words += ["--method", "intensity", "--force", "--workers", "0"]
        assert cli.main([str(word) for word in words]) == 0
        assert cli.main(["bids", str(raw), str(out), "group"]) == 0
    return raw, out


def test_derivatives_hold_the_result_under_the_names_of_the_standard(made: tuple[Path, Path]) -> None:
    _, out = made
    anat, result = out / "sub-01/ses-1/anat", out / "results/sub-01_ses-1_FLAIR"
    stem = "sub-01_ses-1"
    for name, source in (("desc-anomaly_mask", "mask"), ("desc-brain_mask", "brain"), ("anomalymap", "heat")):
        assert (anat / f"{stem}_{name}.nii.gz").read_bytes() == (result / f"{source}.nii.gz").read_bytes()
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(anat / f"{stem}_desc-anomaly_dseg.nii.gz")))
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(result / "mask.nii.gz")))
    assert ((labels > 0) == (mask > 0)).all()
    with (anat / f"{stem}_desc-anomaly_dseg.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    voxel = 4.0 * 4.0 * 7.0 / 1000
    for row in rows:
        assert np.count_nonzero(labels == int(row["index"])) * voxel == pytest.approx(float(row["volume_ml"]))
    assert len(rows) == labels.max()
    sidecar = json.loads((anat / f"{stem}_desc-anomaly_mask.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz"]
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "DiffusionAnomaly"
    assert about["DatasetLinks"]["raw"].startswith("file:///") and about["DatasetLinks"]["raw"].endswith("/raw")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("_anomalymap", "anomaly map"), ("_desc-anomaly_mask", "mask"), ("_desc-anomaly_dseg", "labels of findings")],
)
def test_derivatives_are_no_scans_and_no_brain_masks(made: tuple[Path, Path], name: str, kind: str) -> None:
    raw, out = made
    anat = out / "sub-01/ses-1/anat"
    path = anat / f"sub-01_ses-1{name}.nii.gz"
    with pytest.raises(InputError, match=rf"is a result of this program \({kind}\), not a scan"):
        read(path)
    scan = read_volume(raw / "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz")
    with pytest.raises(InputError, match=f"is the {kind} of a result, no brain mask") as refused:
        read_brain(path, scan)
    brain = anat / "sub-01_ses-1_desc-brain_mask.nii.gz"
    assert str(brain) in refused.value.hint and read_brain(brain, scan)
    assert result_in_place_of_scan(anat) is not None and result_in_place_of_scan(raw) is None


def test_the_group_level_leaves_out_what_is_not_in_the_data_set_any_more(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    raw, out = (Path(shutil.copytree(made[0], tmp_path / "raw")), tmp_path / "raw/derivatives/anomaly")
    (raw / "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz").unlink()
    assert cli.main(["bids", str(raw), str(out), "group"]) == 0
    with (out / "scans.csv").open() as file:
        assert [row["session"] for row in csv.DictReader(file)] == ["1"]
    assert "1 result in the folder is left out" in (out / "quality.html").read_text(encoding="utf-8")


def test_another_threshold_takes_the_map_of_derivatives(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = made
    path = out / "sub-01/ses-1/anat/sub-01_ses-1_anomalymap.nii.gz"
    assert cli.main(["threshold", str(path), "--at", "2", "-o", str(tmp_path / "again")]) == 0
    made_of = json.loads((tmp_path / "again/threshold.json").read_text())
    told = json.loads((out / "results/sub-01_ses-1_FLAIR/provenance.json").read_text())["warnings"]
    assert made_of["warnings"] == told and told
    path = out / "sub-01/ses-1/anat/sub-01_ses-1_desc-anomaly_mask.nii.gz"
    assert cli.main(["threshold", str(path), "--at", "2", "-o", str(tmp_path / "no")]) == 2


def test_derivatives_leave_out_what_hardly_exceeds_the_threshold(
    made: tuple[Path, Path], tmp_path: Path, plain_report: None
) -> None:
    raw, out, anat = made[0], tmp_path / "out", tmp_path / "out/sub-01/ses-1/anat"
    words = ["bids", raw, out, "participant", "--session-label", "1", "--method", "intensity", "--force"]
    assert cli.main([str(word) for word in (*words, "--workers", 0, "--peak-margin", 900)]) == 0
    for name in ("mask", "dseg"):
        assert not sitk.GetArrayFromImage(sitk.ReadImage(str(anat / f"sub-01_ses-1_desc-anomaly_{name}.nii.gz"))).any()
    sidecar = json.loads((anat / "sub-01_ses-1_desc-anomaly_mask.json").read_text())
    assert sidecar["PeakMargin"] == 900 and "exceeds it by the peak margin of 900 or more" in sidecar["Description"]
    assert cli.main(["bids", str(raw), str(out), "group"]) == 0
    with (out / "scans.csv").open() as file:
        assert [float(row["peak_margin"]) for row in csv.DictReader(file)] == [900.0]
    plain = json.loads((made[1] / "sub-01/ses-1/anat/sub-01_ses-1_desc-anomaly_mask.json").read_text())
    assert "peak margin" not in plain["Description"]
    heat = str(anat / "sub-01_ses-1_anomalymap.nii.gz")
    for more, found in (([], False), (["--peak-margin", "0"], True)):
        assert cli.main(["threshold", heat, "--at", "2", *more, "-o", str(tmp_path / str(found))]) == 0
        assert bool(json.loads((tmp_path / str(found) / "findings.json").read_text())["findings"]) == found


def test_a_pattern_in_a_data_set_says_that_it_is_a_plain_folder_then(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cohort", str(raw), str(tmp_path / "out"), "--pattern", "**/*_FLAIR.nii.gz", "--workers", "0"]
    cli.main([*words, "--method", "intensity"])
    assert "is a BIDS data set, and with --pattern it is taken for any folder" in capsys.readouterr().err
    assert cli.main([*words, "--participant-label", "01"]) == 2
    assert "Leave out one or the other" in capsys.readouterr().err


def test_the_group_level_has_a_page_with_both_sessions(made: tuple[Path, Path]) -> None:
    _, out = made
    with (out / "scans.csv").open() as file:
        assert [(row["patient"], row["session"]) for row in csv.DictReader(file)] == [("01", "1"), ("01", "2")]
    page = (out / "subjects/01.html").read_text(encoding="utf-8")
    assert "sub-01_ses-1_FLAIR" in page and "sub-01_ses-2_FLAIR" in page


@pytest.mark.skipif(VALIDATOR is None, reason="needs the BIDS validator (pip install bids-validator-deno)")
def test_the_validator_of_the_standard_takes_the_derivatives(made: tuple[Path, Path]) -> None:
    assert VALIDATOR is not None
    command = [VALIDATOR, str(made[1]), "--json"]
    environment = {**os.environ, "PATH": PLACES}  # it starts Deno, which lies beside it
    told = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    issues = json.loads(told.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert "TSV_ADDITIONAL_COLUMNS_UNDEFINED" not in {issue["code"] for issue in issues}
    assert told.returncode == 0


def test_what_is_missing_of_the_derivatives_is_written_again_without_a_detection(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    raw, out = (Path(shutil.copytree(made[0], tmp_path / "raw")), tmp_path / "raw/derivatives/anomaly")
    record = out / "results/sub-01_ses-1_FLAIR/provenance.json"
    before = record.read_bytes()
    (out / "sub-01/ses-1/anat/sub-01_ses-1_desc-anomaly_dseg.tsv").unlink()
    heard = Heard()
    scans = list_bids(raw, ["FLAIR"])
    run_cohort(scans, out, Options("intensity", force=True), heard, workers=Workers(0), group=False)
    assert heard.begun == [(1, 1)] and record.read_bytes() == before
    assert (out / "sub-01/ses-1/anat/sub-01_ses-1_desc-anomaly_dseg.tsv").is_file()


def test_the_root_of_another_data_set_is_no_output(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bids", str(raw), str(raw), "participant", "--method", "intensity", "--workers", "0"]) == 2
    assert "is the root of another data set" in capsys.readouterr().err
    assert json.loads((raw / "dataset_description.json").read_text()) == DESCRIPTION


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["both"], "no level 'both'"),
        (["group"], "no folder"),
        (["participant", "--participant-label", "9"], "no participant 9"),
    ],
)
def test_the_app_says_what_is_wrong(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["bids", str(raw), str(tmp_path / "out"), *words, "--method", "intensity", "--workers", "0"]) == 2
    assert message in capsys.readouterr().err
