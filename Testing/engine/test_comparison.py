"""Two visits of one patient: what is new, grown, shrunk, gone, and what must be doubted or refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.outputs import OutputFolder
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.results.comparison import files
from diffusion_anomaly.results.comparison.compare import (
    GONE,
    GROWN,
    NEW,
    NOT_SEEN,
    SHRUNK,
    UNCERTAIN,
    UNCHANGED,
    Change,
    Comparison,
    Exam,
    compare,
)
from diffusion_anomaly.results.comparison.page import render
from diffusion_anomaly.results.comparison.reading import compare_requests
from diffusion_anomaly.results.redrawing import ANOMALY_MAP, BRAIN, SCAN, Request, write_request
from diffusion_anomaly.worker import probe

SIZE, EDGE = 48, 4.0
MOTION = ((0.10, -0.06, 0.08), (14.0, -9.0, 21.0))  # radians, mm
# Middle in mm from the head's own middle, radius in mm.
STAYS, GROWS, SHRINKS, APPEARS, GOES = (
    ((-30.0, 10.0, 5.0), 8.0),
    ((30.0, 20.0, 0.0), 7.0),
    ((5.0, -40.0, 10.0), 11.0),
    ((-20.0, -30.0, -15.0), 7.0),
    ((25.0, -20.0, 20.0), 7.0),
)
GROWN_RADIUS, SHRUNK_RADIUS = 11.0, 7.0


def motion() -> sitk.Euler3DTransform:
    """From points of the current scan to points of the prior one."""
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*MOTION[0])
    transform.SetTranslation(MOTION[1])
    return transform


def grid(moved: bool) -> sitk.Image:
    image = sitk.Image([SIZE] * 3, sitk.sitkFloat32)
    image.SetSpacing([EDGE] * 3)
    corner = np.full(3, -EDGE * (SIZE - 1) / 2)
    image.SetOrigin((corner + (MOTION[1] if moved else 0)).tolist())
    return image


def exam(
    name: str, balls: list[tuple[tuple[float, float, float], float]], moved: bool = False, **changes: object
) -> Exam:
    """A head with structure inside, and scores of 4 in balls, on a grid of its own."""
    image = grid(moved)
    back = motion().GetInverse() if moved else sitk.Transform(3, sitk.sitkIdentity)
    places = np.argwhere(np.ones(image.GetSize()[::-1], bool))[:, ::-1] * EDGE + image.GetOrigin()
    matrix = np.array([back.TransformPoint(axis) for axis in np.eye(3).tolist()]) - back.TransformPoint((0, 0, 0))
    points = places @ matrix + back.TransformPoint((0, 0, 0))
    x, y, z = points.T
    inside = (x / 65) ** 2 + (y / 80) ** 2 + (z / 60) ** 2 < 1
    structure = np.sin(x / 9 + 1) * np.cos(y / 11) + 0.7 * np.sin((z + x) / 13) + 0.5 * np.cos((y - z) / 8)
    values = np.where(inside, 200 + 60 * structure, 0)
    scores = np.zeros(len(points))
    for middle, radius in balls:
        scores[np.linalg.norm(points - middle, axis=1) < radius] = 4.0

    def image_of(array: np.ndarray, kind: type) -> sitk.Image:
        made = sitk.GetImageFromArray(array.reshape(image.GetSize()[::-1]).astype(kind))
        made.CopyInformation(image)
        return made

    made = Exam(
        name,
        image_of(values, np.float32),
        image_of(scores * inside, np.float32),
        image_of(inside, np.uint8),
        threshold=2.0,
        min_volume_ml=0.05,
        model="toy 1",
    )
    return replace(made, **changes)


def test_both_scans_lose_what_hardly_exceeds_the_threshold_where_one_model_saw_them() -> None:
    prior = exam("first visit", [STAYS, GOES], moved=True)
    current = exam("second visit", [STAYS, APPEARS])
    kept = compare(prior, replace(current, peak_margin=2.0))  # scores are 4, the threshold 2
    assert {change.kind for change in kept.changes} == {NEW, UNCHANGED, GONE}
    dropped = compare(prior, replace(current, peak_margin=2.5))
    assert dropped.changes == [] and dropped.prior.peak_margin == 2.5
    assert not sitk.GetArrayViewFromImage(dropped.prior_labels).any()
    assert files.statistics(dropped)["prior"]["peak_margin"] == 2.5
    other = compare(replace(prior, model="other 1"), replace(current, peak_margin=2.5))
    assert other.prior.peak_margin == 0 and len(other.prior_findings) == 2 and not other.current_findings


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    prior = exam("first visit", [STAYS, GROWS, SHRINKS, GOES], moved=True)
    grown, shrunk = (GROWS[0], GROWN_RADIUS), (SHRINKS[0], SHRUNK_RADIUS)
    return compare(prior, exam("second visit", [STAYS, grown, shrunk, APPEARS]))


def of_kind(comparison: Comparison, kind: str) -> Change:
    (change,) = (change for change in comparison.changes if change.kind == kind)
    return change


@pytest.mark.parametrize(
    ("kind", "ball"), [(NEW, APPEARS), (GROWN, GROWS), (UNCHANGED, STAYS), (SHRUNK, SHRINKS), (GONE, GOES)]
)
def test_each_finding_is_told_what_became_of_it_and_where(
    comparison: Comparison, kind: str, ball: tuple[tuple[float, float, float], float]
) -> None:
    change = of_kind(comparison, kind)
    left, posterior, superior = ball[0]
    assert np.linalg.norm(np.subtract(change.centroid_ras, (-left, -posterior, superior))) < EDGE
    assert bool(change.current) == (kind != GONE) and bool(change.prior) == (kind != NEW)


def test_the_head_is_found_where_it_moved_to(comparison: Comparison) -> None:
    found = comparison.registration.transform
    for point in ([0.0, 0.0, 0.0], [40.0, 0.0, 0.0], [0.0, 50.0, 20.0]):
        assert np.linalg.norm(np.subtract(found.TransformPoint(point), motion().TransformPoint(point))) < EDGE / 2
    assert comparison.warnings == []


def test_volumes_are_each_scans_own_and_scores_those_at_the_place(comparison: Comparison) -> None:
    grown, new, gone = (of_kind(comparison, kind) for kind in (GROWN, NEW, GONE))
    ball = 4 / 3 * np.pi / 1000
    assert grown.prior_ml == pytest.approx(ball * GROWS[1] ** 3, rel=0.2)
    assert grown.current_ml == pytest.approx(ball * GROWN_RADIUS**3, rel=0.2)
    assert (new.prior_ml, gone.current_ml) == (0, 0)
    assert new.prior_score == 0 and new.current_score == 4
    assert gone.prior_score == 4 and gone.current_score == 0


@pytest.mark.parametrize(("share", "kind"), [(0.45, UNCERTAIN), (0.2, NEW)])
def test_a_finding_that_was_nearly_there_before_is_not_certainly_new(share: float, kind: str) -> None:
    prior = exam("first", [STAYS, APPEARS], moved=True)
    values = sitk.GetArrayFromImage(prior.anomaly_map)
    index = prior.scan.TransformPhysicalPointToIndex(motion().TransformPoint(APPEARS[0]))[::-1]
    near = np.linalg.norm(np.argwhere(np.ones_like(values)) - index, axis=1).reshape(values.shape) < 5
    values[near] *= share
    low = sitk.GetImageFromArray(values)
    low.CopyInformation(prior.anomaly_map)
    found = of_kind(compare(replace(prior, anomaly_map=low), exam("second", [STAYS, APPEARS])), kind)
    assert found.prior_score == pytest.approx(4 * share, abs=0.05)


def test_findings_that_grew_together_are_one_change() -> None:
    one, other = ((-24.0, 0.0, 0.0), 7.0), ((-4.0, 0.0, 0.0), 7.0)
    both = ((-14.0, 0.0, 0.0), 14.0)
    (change,) = compare(exam("first", [one, other], moved=True), exam("second", [both])).changes
    assert change.kind == GROWN and len(change.prior) == 2 and len(change.current) == 1


def test_nothing_is_said_of_a_place_that_the_prior_scan_does_not_show() -> None:
    prior = exam("first", [STAYS], moved=True)
    index = prior.scan.TransformPhysicalPointToIndex(motion().TransformPoint((0.0, 0.0, 40.0)))
    cut = {name: getattr(prior, name)[:, :, : index[2]] for name in ("scan", "anomaly_map", "brain")}
    high = ((0.0, 0.0, 50.0), 6.0)
    changes = compare(replace(prior, **cut), exam("second", [STAYS, high])).changes
    assert [change.kind for change in changes] == [UNCHANGED, NOT_SEEN]
    assert changes[1].prior_score is None


def test_two_models_and_a_result_in_doubt_are_told(comparison: Comparison) -> None:
    prior = exam("first", [STAYS], moved=True, model="toy 2", warnings=["Slices are missing."], threshold=3.0)
    made = compare(prior, exam("second", [STAYS]))
    assert any("toy 2" in warning and "toy 1" in warning for warning in made.warnings)
    assert any("Slices are missing." in warning for warning in made.warnings)
    assert made.prior.threshold == 3.0  # another model's scores mean something else
    assert comparison.prior.threshold == comparison.current.threshold


def test_the_prior_map_gets_the_current_threshold_where_one_model_made_both() -> None:
    made = compare(exam("first", [STAYS], moved=True, threshold=5.0), exam("second", [STAYS]))
    assert [change.kind for change in made.changes] == [UNCHANGED]


def test_two_patients_are_doubted() -> None:
    other = exam("first", [STAYS])
    rng = np.random.default_rng(0)
    inside = sitk.GetArrayFromImage(other.brain)
    blobs = sitk.GetArrayFromImage(sitk.DiscreteGaussian(sitk.GetImageFromArray(rng.normal(size=inside.shape)), 2.0))
    scan = sitk.GetImageFromArray((inside * (200 + 60 * blobs / blobs.std())).astype(np.float32))
    scan.CopyInformation(other.scan)
    assert any(
        "one patient" in warning for warning in compare(replace(other, scan=scan), exam("second", [STAYS])).warnings
    )
    named = {"PatientID": "A"}, {"PatientID": "B"}
    prior, current = exam("first", [STAYS], True, identity=named[0]), exam("second", [STAYS], identity=named[1])
    assert any("PatientID" in warning for warning in compare(prior, current).warnings)


def test_the_same_image_twice_is_refused() -> None:
    with pytest.raises(InputError, match="same image"):
        compare(exam("first", [STAYS]), exam("second", [STAYS]))


def test_files_are_written_together_and_read_back(comparison: Comparison, tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as folder:
        written = files.save(comparison, folder)
    assert set(written) == set(files.NAMES)
    with written["changes.csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["change"] for row in rows] == [change.kind for change in comparison.changes]
    numbers = json.loads(written["changes.json"].read_text(encoding="utf-8"))
    assert [change["kind"] for change in numbers["changes"]] == [row["change"] for row in rows]
    transform = sitk.ReadTransform(str(written["prior_to_current.tfm"]))
    point = (10.0, -20.0, 30.0)
    assert transform.TransformPoint(point) == pytest.approx(comparison.registration.transform.TransformPoint(point))
    scan = sitk.ReadImage(str(written["prior_scan.nii.gz"]))
    assert scan.GetSize() == comparison.current.scan.GetSize()
    assert scan.GetOrigin() == pytest.approx(comparison.current.scan.GetOrigin(), abs=1e-4)
    page = written["comparison.html"].read_text(encoding="utf-8")
    assert page.count('class="pair"') == 5 and "Not for diagnosis" in page


def test_the_page_tells_how_high_findings_reach_where_that_is_above_the_threshold(comparison: Comparison) -> None:
    assert "peak margin" not in render(comparison)
    prior, current = (
        replace(one, peak_margin=margin) for one, margin in ((comparison.prior, 0.0), (comparison.current, 1.5))
    )
    page = render(replace(comparison, prior=prior, current=current))
    assert "<td>Threshold + peak margin</td><td>2.00</td><td>3.50</td>" in page


def test_names_cannot_write_into_the_page(comparison: Comparison) -> None:
    named = replace(comparison, current=replace(comparison.current, name="<script>alert(1)</script>"))
    assert "<script>" not in render(named)


def test_slicers_process_is_asked_for_two_exams(comparison: Comparison, tmp_path: Path) -> None:
    for which, made in (("prior", comparison.prior), ("current", comparison.current)):
        folder = tmp_path / which
        folder.mkdir()
        for name, image in ((SCAN, made.scan), (ANOMALY_MAP, made.anomaly_map), (BRAIN, made.brain)):
            sitk.WriteImage(image, str(folder / name))
        write_request(Request(made.name, made.threshold, made.min_volume_ml, provenance()), folder)
    high = {**provenance(), "options": {"peak_margin": 2.5}}
    write_request(Request("second visit", 2.0, 0.05, high), tmp_path / "current")
    assert compare_requests(tmp_path / "prior", tmp_path / "current").changes == []
    write_request(Request("second visit", 2.0, 0.05, provenance()), tmp_path / "current")
    assert [change.kind for change in compare_requests(tmp_path / "prior", tmp_path / "current").changes] == [
        change.kind for change in comparison.changes
    ]
    answer = probe.compare(tmp_path)
    assert answer["ok"], answer["problem"]
    assert Path(answer["files"]["comparison.html"]).is_file()
    assert len(answer["statistics"]["changes"]) == len(comparison.changes)
    (tmp_path / "prior" / SCAN).unlink()
    assert not probe.compare(tmp_path)["ok"]


def provenance() -> dict[str, object]:
    return {
        "purpose": "For research use only. Not for diagnosis.",
        "date_utc": "2026-01-01T00:00:00+00:00",
        "method": "restore",
        "model": {"name": "toy", "version": "1"},
        "options": {},
        "threshold": {"heat": 2.0},
        "brain": {"volume_ml": 1.0},
        "score": {"value": 1.0, "title": "score"},
        "versions": {"diffusion_anomaly": "1"},
        "warnings": [],
    }


@pytest.fixture(scope="module")
def visits(flair_like_volume: Volume, flair_like_brain: sitk.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``prior`` and ``current.nii.gz`` of one head, and what the baseline found in each, in folders of these names."""
    place = tmp_path_factory.mktemp("visits")
    turned = sitk.Euler3DTransform()
    turned.SetRotation(0.05, 0.0, 0.08)
    detector = Detector(Options("intensity", device="cpu"))
    for name in ("prior", "current"):
        scan, brain = flair_like_volume.image, flair_like_brain
        if name == "prior":
            scan = sitk.Resample(scan, scan, turned, sitk.sitkLinear, 0.0)
            brain = sitk.Resample(brain, brain, turned, sitk.sitkNearestNeighbor, 0)
        sitk.WriteImage(scan, str(place / f"{name}.nii.gz"))
        detector(place / f"{name}.nii.gz", brain=brain).save(place / name)
    return place


def command(visits: Path, output: Path, *more: object) -> int:
    scans = [visits / "prior.nii.gz", visits / "current.nii.gz"]
    return cli.main(["compare", *map(str, scans), "-o", str(output), *map(str, more)])


@pytest.mark.usefixtures("signals_stay")
def test_the_command_compares_results_that_are_there(
    visits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--prior-result", visits / "prior", "--current-result", visits / "current"]
    assert command(visits, tmp_path / "out", *results) == 0
    assert "unchanged" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files.NAMES)
    assert command(visits, tmp_path / "out", *results, "--threshold", 3.25) == 0  # its own result makes room
    made = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert made["prior"]["threshold"] == made["current"]["threshold"] == 3.25


@pytest.mark.usefixtures("signals_stay")
def test_the_command_refuses_another_scans_result_and_what_is_none(
    visits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = ["--prior-result", visits / "current", "--current-result", visits / "prior"]
    assert command(visits, tmp_path / "out", *swapped) == InputError.exit_code
    assert "another scan" in capsys.readouterr().err
    assert command(visits, tmp_path / "out", "--prior-result", visits) == InputError.exit_code
    assert "holds no result" in capsys.readouterr().err
    twice = str(visits / "current.nii.gz")
    assert cli.main(["compare", twice, twice, "-o", str(tmp_path / "out")]) == InputError.exit_code
    assert "given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    right = ["--prior-result", visits / "prior", "--current-result", visits / "current"]
    assert command(visits, tmp_path / "out", *right, "--model", "flair-restore") == InputError.exit_code
    assert "--model" in capsys.readouterr().err
    assert command(visits, visits / "current", *right) == InputError.exit_code
    assert "another result" in capsys.readouterr().err
    earlier = tmp_path / "earlier"
    assert command(visits, earlier, *right) == 0
    back = ["compare", str(visits / "current.nii.gz"), str(visits / "prior.nii.gz"), "-o", str(earlier)]
    back += map(str, ["--prior-result", visits / "current", "--current-result", visits / "prior"])
    capsys.readouterr()
    assert cli.main(back) == InputError.exit_code
    assert "another prior scan" in capsys.readouterr().err
    assert cli.main([*back, "--overwrite"]) == 0


@pytest.mark.usefixtures("signals_stay")
def test_the_smallest_volume_counts_for_results_that_are_there_too(visits: Path, tmp_path: Path) -> None:
    results = ["--prior-result", visits / "prior", "--current-result", visits / "current", "--min-volume", 1000]
    assert command(visits, tmp_path / "out", *results) == 0
    made = json.loads((tmp_path / "out" / "changes.json").read_text(encoding="utf-8"))
    assert made["changes"] == [] and made["current"]["min_volume_ml"] == 1000


@pytest.mark.usefixtures("signals_stay")
def test_so_does_the_peak_margin(visits: Path, tmp_path: Path) -> None:
    results = ["--prior-result", visits / "prior", "--current-result", visits / "current", "--peak-margin", 1000]
    assert command(visits, tmp_path / "out", *results) == 0
    made = json.loads((tmp_path / "out" / "changes.json").read_text(encoding="utf-8"))
    assert made["changes"] == [] and made["current"]["peak_margin"] == 1000


@pytest.mark.usefixtures("signals_stay")
def test_what_cannot_be_compared_is_refused_before_anything_is_computed(
    visits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_anomaly.detection.scan.run_scan", lambda *_: pytest.fail("a scan was looked at"))
    films = ["--model", "chest-pneumonia-guided"]
    assert command(visits, tmp_path / "out", *films) == InputError.exit_code
    assert "pictures are not compared" in capsys.readouterr().err
    image = sitk.Cast(sitk.ReadImage(str(visits / "current.nii.gz")), sitk.sitkInt16)
    for number, name in enumerate("ab"):
        phantom.write_dicom(tmp_path / name, image, uid=f"1.2.826.0.1.3680043.2.1125.{number}")
        for path in (tmp_path / name).iterdir():
            data = pydicom.dcmread(path)
            data.PatientID = name
            data.save_as(path)
    series = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(series) == InputError.exit_code
    assert "two patients by their PatientID" in capsys.readouterr().err and not (tmp_path / "out").exists()
    for name, date in (("a", "20250102"), ("b", "20200101")):
        for path in (tmp_path / name).iterdir():
            data = pydicom.dcmread(path)
            data.PatientID, data.StudyDate = "a", date
            data.save_as(path)
    assert cli.main(series) == InputError.exit_code
    assert "The prior scan is of 20250102, the current one of 20200101" in capsys.readouterr().err
