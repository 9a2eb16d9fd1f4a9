"""Files of results given where a scan or an anomaly map is meant, and the reverse."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import dicoms
import phantom
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.cli.rethreshold import rethreshold
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation import evaluate
from diffusion_anomaly.evaluation.dataset import Pair
from diffusion_anomaly.io.records import recorded, result_in_place_of_scan
from diffusion_anomaly.worker import protocol
from workers import Worker

IMAGES = {
    "heat.nii.gz": "anomaly map",
    "mask.nii.gz": "mask",
    "brain.nii.gz": "brain mask",
    "healed.nii.gz": "pseudo-healthy reconstruction",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, its brain, a result with every image there is, one of ``threshold``, and one of ``evaluate``."""
    place = tmp_path_factory.mktemp("place")
    grid = phantom.grid((40, 48, 18), (4.0, 4.0, 7.0))
    noise = np.random.default_rng(0).normal(0, 3, grid.GetSize()[::-1]).astype(np.float32)
    scan = phantom.on_grid(sitk.GetArrayFromImage(phantom.paint(grid, fluid=True)) + noise, grid)
    for name, image in (("flair", scan), ("bm", phantom.brain_of(grid)), ("lesion", phantom.lesion_of(grid))):
        sitk.WriteImage(image, str(place / f"{name}.nii.gz"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_anomaly.results.report.write_report", lambda result, path: path.write_text("page"))
        result = Detector(Options("intensity", device="cpu"))(place / "flair.nii.gz", brain=place / "bm.nii.gz")
        # No method of a second makes one, and a phantom is doubted.
        result = replace(
            result,
            reconstruction={"FLAIR": result.scan.reference.image},
            provenance={**result.provenance, "warnings": []},
        )
        result.save(place / "out")
    rethreshold(place / "out" / "heat.nii.gz", 2.0, place / "out-2")
    pair = Pair("p1", place / "flair.nii.gz", place / "lesion.nii.gz", place / "bm.nii.gz")
    evaluate.run([pair], [evaluate.RunSpec("intensity")], place / "ev", "cpu", resamples=2)
    return place


def scores(place: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(place / "out" / "heat.nii.gz")))


def threshold(given: Path, output: Path, *more: object) -> int:
    return cli.main(["threshold", str(given), "--at", "2", "-o", str(output), *map(str, more)])


# --- threshold


def test_places_are_those_of_the_detection_unless_its_brain_was_changed(place: Path, tmp_path: Path) -> None:
    def places(output: Path) -> list[str]:
        return [one["place"] for one in json.loads((output / "findings.json").read_text(encoding="utf-8"))["findings"]]

    shutil.copytree(place / "out", tmp_path / "out")
    assert threshold(tmp_path / "out" / "heat.nii.gz", tmp_path / "a") == 0
    assert places(tmp_path / "a")[0] == places(place / "out")[0] != ""
    sitk.WriteImage(
        phantom.brain_of(phantom.grid((40, 48, 18), (4.0, 4.0, 7.0))) * 0, str(tmp_path / "out/brain.nii.gz")
    )
    assert threshold(tmp_path / "out" / "heat.nii.gz", tmp_path / "b") == 0
    assert set(places(tmp_path / "b")) == {""}


@pytest.mark.parametrize(
    ("given", "kind"),
    [*((f"out/{name}", kind) for name, kind in IMAGES.items() if kind != "anomaly map"), ("out-2/mask.nii.gz", "mask")],
)
def test_another_image_of_a_result_is_no_map_and_the_map_is_named(
    given: str, kind: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert threshold(place / given, tmp_path / "to") == 2
    said = capsys.readouterr().err
    assert f"{place / given} is the {kind} of a result, no anomaly map." in said
    assert f"Give {place / 'out' / 'heat.nii.gz'}." in said
    assert not (tmp_path / "to").exists()


def test_no_image_of_a_result_was_forgotten(place: Path) -> None:
    found = {path.name: recorded(path) for path in (place / "out").glob("*.nii.gz")}
    assert {name: made.kind for name, made in found.items() if made is not None} == IMAGES


@pytest.mark.parametrize("given", ["out/heat.nii.gz", "ev/heat/intensity/p1.nii.gz"])
def test_a_recorded_map_is_taken_without_a_word(
    given: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert threshold(place / given, tmp_path / "to") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["copy", "NRRD", "double", "smoothed", "16 bits"])
def test_a_map_that_other_software_saved_is_taken_with_a_warning(
    kind: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sitk.ReadImage(str(place / "out" / "heat.nii.gz"))
    image = {
        "double": lambda: sitk.Cast(image, sitk.sitkFloat64),
        "smoothed": lambda: sitk.Clamp(sitk.SmoothingRecursiveGaussian(image, 2.0), sitk.sitkFloat32, 0.0),
        "16 bits": lambda: sitk.Cast(sitk.Round(image * 1000), sitk.sitkInt16),
    }.get(kind, lambda: image)()
    given = tmp_path / f"map.{'nrrd' if kind == 'NRRD' else 'nii'}"
    sitk.WriteImage(image, str(given))
    if kind == "16 bits":  # scl_slope at byte 112: the header holds the unit
        content = bytearray(given.read_bytes())
        content[112:116] = np.float32(0.001).tobytes()
        given.write_bytes(content)
    assert threshold(given, tmp_path / "to") == 0
    warning = f"{given} has no record of this program beside it; is it an anomaly map?"
    assert f"warning: {warning}" in capsys.readouterr().err
    for name in ("threshold.json", "findings.json"):
        assert json.loads((tmp_path / "to" / name).read_text(encoding="utf-8"))["warnings"] == [warning]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        *((kind, "whole numbers only") for kind in ("mask", "0 255", "labels", "empty", "scan of 8 bits", "CT")),
        *((kind, "as probabilities do") for kind in ("probabilities", "smooth mask", "scan up to 1")),
        *((kind, "as in a scan") for kind in ("scan", "scan with noise around")),
        ("standardised scan", "never below 0"),
    ],
)
def test_what_cannot_hold_scores_is_refused(
    kind: str, says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = np.abs(sitk.GetArrayFromImage(sitk.ReadImage(str(place / "flair.nii.gz"))))
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(place / "bm.nii.gz"))).astype(np.float32)
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(sitk.GetImageFromArray(mask), 1.0))
    noise = np.random.default_rng(0).random(scan.shape)
    values = {
        "mask": mask,
        "0 255": 255 * mask,
        "labels": mask + (mask * np.arange(len(mask))[:, None, None]).round(),
        "empty": 0 * mask,
        "scan of 8 bits": scan.round().clip(0, 255),
        "CT": (scan.round() * 10).astype(np.int16),
        "probabilities": mask * (0.2 + 0.799 * noise),
        "smooth mask": smooth.clip(0, 1),
        "scan up to 1": scan / scan.max(),
        "scan": scan,
        "scan with noise around": np.where(scan > 20, scan, noise),
        "standardised scan": (scan - scan.mean()) / scan.std(),
    }[kind]
    given = tmp_path / "given.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.float32)), str(given))
    assert threshold(given, tmp_path / "to") == 2
    said = capsys.readouterr().err
    assert f"{given} is no anomaly map" in said
    assert says in said
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(("wrong", "number"), [(np.nan, 1), (np.inf, 7), (-np.inf, 7), (np.nan, 40000)])
def test_a_map_with_values_that_are_no_number_is_refused_with_how_many(
    wrong: float, number: int, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = scores(place)
    number = min(number, values.size // 2)
    values.ravel()[np.argsort(values, axis=None)[-number:]] = wrong  # the highest
    given = tmp_path / "given.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(values), str(given))
    assert threshold(given, tmp_path / "to") == 2
    assert f"{number} of its values are NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("role", ["map", "mask"])
def test_several_volumes_are_no_map_and_no_mask_and_no_other_option_is_named(
    role: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = place / ("out/heat.nii.gz" if role == "map" else "bm.nii.gz")
    image = sitk.ReadImage(str(source))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "4d.nii.gz"))
    given = (tmp_path / "4d.nii.gz",) if role == "map" else (place / "out" / "heat.nii.gz",)
    more = () if role == "map" else ("--mask", tmp_path / "4d.nii.gz")
    assert threshold(given[0], tmp_path / "to", *more) == 2
    said = capsys.readouterr().err
    assert "4-D: it holds 2 volumes" in said
    assert "--frame" not in said


@pytest.mark.parametrize("command", ["threshold", "detect", "Python"])
@pytest.mark.parametrize(("given", "kind"), [("out/mask.nii.gz", "mask"), ("out-2/mask.nii.gz", "mask")])
def test_the_mask_of_a_result_is_no_brain_mask(
    given: str, kind: str, command: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"{place / given} is the {kind} of a result, no brain mask."
    if command == "Python":
        with pytest.raises(InputError) as caught:
            Detector(Options("intensity"))(place / "flair.nii.gz", brain=place / given)
        assert caught.value.what == said
        return
    if command == "threshold":
        assert threshold(place / "out" / "heat.nii.gz", tmp_path / "to", "--mask", place / given) == 2
    else:
        arguments = ["--method", "intensity", "--mask", str(place / given), "-o", str(tmp_path / "to")]
        assert cli.main(["detect", str(place / "flair.nii.gz"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert (f"Give {place / 'out' / 'brain.nii.gz'}" in error) == given.startswith("out/")


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ("out/brain.nii.gz", 0, ""),
        ("ev/brain/p1.nii.gz", 0, ""),
        ("bm.nii.gz", 0, ""),
        ("lesion.nii.gz", 0, "of the voxels that have a score; does it mark the brain?"),
        ("empty", 2, "The brain mask is empty"),
    ],
)
def test_a_brain_mask_for_threshold_is_looked_at(
    given: str, code: int, says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = place / given
    if given == "ev/brain/p1.nii.gz":  # an evaluation writes the masks that it found itself
        shutil.copytree(place / "ev", tmp_path / "ev")
        (tmp_path / "ev" / "brain").mkdir()
        mask = tmp_path / given
        shutil.copy(place / "bm.nii.gz", mask)
        record = tmp_path / "ev" / "evaluation.json"
        content = json.loads(record.read_text(encoding="utf-8"))
        content["files_sha256"]["brain/p1.nii.gz"] = hashlib.sha256(mask.read_bytes()).hexdigest()
        record.write_text(json.dumps(content))
    if given == "empty":
        mask = tmp_path / "empty.nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(place / "bm.nii.gz")) * 0, str(mask))
    assert threshold(place / "out" / "heat.nii.gz", tmp_path / "to", "--mask", mask) == code
    error = capsys.readouterr().err
    assert (says in error) if says else error == ""


@pytest.mark.parametrize("given", ["out/heat.nii.gz", "ev/heat/intensity/p1.nii.gz"])
def test_a_map_that_its_record_does_not_tell_of_is_doubted_by_that_name(
    given: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = given.split("/")[0]
    shutil.copytree(place / top, tmp_path / top)
    sitk.WriteImage(sitk.ReadImage(str(place / given)) * 0.9, str(tmp_path / given))
    record = tmp_path / top / ("provenance.json" if top == "out" else "evaluation.json")
    assert threshold(tmp_path / given, tmp_path / "to") == 0
    assert f"warning: {tmp_path / given} is not the map that {record} tells of" in capsys.readouterr().err


def test_a_mask_that_was_edited_is_no_map_either(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    mask = sitk.ReadImage(str(tmp_path / "out" / "mask.nii.gz"))
    mask[0, 0, 0] = 1
    sitk.WriteImage(mask, str(tmp_path / "out" / "mask.nii.gz"))
    assert threshold(tmp_path / "out" / "mask.nii.gz", tmp_path / "to") == 2


@pytest.mark.parametrize(("given", "hint"), [("out", "Give {}/heat.nii.gz."), (".", "Give the anomaly map itself.")])
def test_a_folder_is_no_map_and_the_map_in_it_is_named(
    given: str, hint: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert threshold(place / given, tmp_path / "to") == 2
    assert hint.format(place / given) in capsys.readouterr().err


def test_another_threshold_says_what_it_replaces(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["threshold", str(place / "out" / "heat.nii.gz"), "-o", str(tmp_path)]
    for at, said in ((2, None), (2, None), (3.5, "at a score of 2.0"), (3, "at a score of 3.5")):
        assert cli.main([*arguments, "--at", str(at)]) == 0
        error = capsys.readouterr().err
        assert (f"mask and findings {said}" in error) if said else error == ""


def test_what_was_made_of_another_map_stays_unless_it_may_go(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(scores(place) * 1.5), str(other))
    assert threshold(place / "out" / "heat.nii.gz", tmp_path / "to") == 0
    before = (tmp_path / "to" / "threshold.json").read_bytes()
    assert threshold(other, tmp_path / "to") == 2
    assert f"holds the result of another map ({place / 'out' / 'heat.nii.gz'})" in capsys.readouterr().err
    assert (tmp_path / "to" / "threshold.json").read_bytes() == before
    assert threshold(other, tmp_path / "to", "--overwrite") == 0
    assert (tmp_path / "to" / "threshold.json").read_bytes() != before


def test_doubts_of_the_detection_stay_with_its_map(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    (tmp_path / "out" / "provenance.json").write_text(json.dumps({**content, "warnings": ["The scan is doubtful."]}))
    assert threshold(tmp_path / "out" / "heat.nii.gz", tmp_path / "to") == 0
    assert "warning: The scan is doubtful." in capsys.readouterr().err
    assert json.loads((tmp_path / "to" / "findings.json").read_text(encoding="utf-8"))["warnings"] == [
        "The scan is doubtful."
    ]


# --- detect


@pytest.mark.parametrize(
    ("given", "says"),
    [
        *((f"out/{name}", f"({kind} of flair.nii.gz), not a scan") for name, kind in IMAGES.items()),
        ("out-2/mask.nii.gz", "(mask of heat.nii.gz), not a scan"),
        ("ev/heat/intensity/p1.nii.gz", "(anomaly map), not a scan"),
        *((name, "holds results of this program, no scan") for name in ("out", "out-2", "ev")),
    ],
)
def test_a_result_is_no_scan(given: str, says: str, place: Path) -> None:
    with pytest.raises(InputError) as caught:
        Detector(Options("intensity"))(place / given)
    assert str(place / given) in caught.value.what
    assert says in caught.value.what


def test_results_among_many_scans_fail_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_anomaly.results.report.write_report", lambda result, path: path.write_text("page"))
    brain = sitk.ReadImage(str(place / "bm.nii.gz"))
    monkeypatch.setattr("diffusion_anomaly.detection.brain.BrainFinder.__call__", lambda finder, volume, warn: brain)
    monkeypatch.setattr("diffusion_anomaly.detection.recognition.Recogniser.is_there", False)
    shutil.copytree(place / "out", tmp_path / "scans")
    shutil.copytree(place / "out", tmp_path / "scans" / "results" / "flair")
    (tmp_path / "scans" / "flair.nii.gz").write_bytes((place / "flair.nii.gz").read_bytes())
    given = [tmp_path / "scans" / name for name in ("flair.nii.gz", "heat.nii.gz", "mask.nii.gz", "results")]
    arguments = ["--method", "intensity", "-o", str(tmp_path / "scans" / "results")]
    assert cli.main(["detect", *map(str, given), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"3 of 4 scans failed: {', '.join(map(str, given[1:]))}"
    assert {path.name for path in (tmp_path / "scans" / "results").iterdir()} == {"flair"}


@pytest.mark.parametrize("beside", ["a scan", "notes", "a series below"])
def test_a_folder_that_holds_more_than_results_is_read(beside: str, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "patient"
    shutil.copytree(place / "out", folder / "results")
    if beside == "notes":
        (folder / "notes.txt").write_text("mine")
    else:
        dicoms.write(folder / "series" if beside == "a series below" else folder, dicoms.classic(dicoms.voxels()))
    assert result_in_place_of_scan(folder) is None
    if beside == "notes":
        with pytest.raises(InputError, match="holds no DICOM image") as caught:
            Detector(Options("intensity"))(folder)
        assert "Results of this program lie in it" in caught.value.hint


def test_the_result_of_another_scan_stays_unless_it_may_go(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_anomaly.results.report.write_report", lambda result, path: path.write_text("page"))
    other = tmp_path / "other.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(place / "flair.nii.gz")) * 1.1, str(other))
    arguments = ["--mask", str(place / "bm.nii.gz"), "--method", "intensity", "-o", str(tmp_path / "out")]
    record = tmp_path / "out" / "provenance.json"

    def detect(scan: Path, *more: str) -> int:
        return cli.main(["detect", str(scan), *arguments, *more])

    assert detect(place / "flair.nii.gz") == 0
    assert detect(place / "flair.nii.gz", "--threshold", "2") == 0  # the same scan, looked at again
    before = record.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "__call__", lambda *given, **options: pytest.fail("computed"))
        assert detect(other) == 2
    said = capsys.readouterr().err
    assert "holds the result of another scan (flair.nii.gz)" in said
    assert "--overwrite" in said
    assert record.read_bytes() == before
    assert detect(other, "--overwrite") == 0
    assert json.loads(record.read_text(encoding="utf-8"))["input"]["title"] == "other.nii.gz"


@pytest.mark.parametrize("other", ["another scan", "threshold"])
def test_python_keeps_the_result_of_another_scan_unless_it_may_go(other: str, place: Path, tmp_path: Path) -> None:
    detector = Detector(Options("intensity", device="cpu"))
    scan = sitk.ReadImage(str(place / "flair.nii.gz"))
    first, second = (detector(image, brain=place / "bm.nii.gz", force=True) for image in (scan, scan * 1.1))
    if other == "threshold":
        shutil.copytree(place / "out-2", tmp_path / "out")
    else:
        first.save(tmp_path / "out")
        first.at(2.0).save(tmp_path / "out")  # the same scan
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="holds the result of another") as caught:
        second.save(tmp_path / "out")
    assert "overwrite=True" in caught.value.hint
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    files = second.save(tmp_path / "out", overwrite=True)
    assert (
        json.loads(files["provenance"].read_text(encoding="utf-8"))["input"]["sha256"] == second.scan.reference.sha256
    )
    assert not (tmp_path / "out" / "threshold.json").exists()


@pytest.mark.parametrize(("overwrite", "code"), [(None, 2), (False, 2), (True, 0)])
def test_a_job_keeps_the_result_of_another_scan_unless_it_may_go(
    overwrite: bool | None, code: int, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "out", tmp_path / "results")
    sitk.WriteImage(sitk.ReadImage(str(place / "flair.nii.gz")) * 1.1, str(tmp_path / "other.nii.gz"))
    about = {"input": "other.nii.gz", "output": "results", "method": "intensity", "mask": str(place / "bm.nii.gz")}
    may = {} if overwrite is None else {"overwrite": overwrite}
    options = {"options": {"force": True, "device": "cpu"}}
    (tmp_path / "job.json").write_text(json.dumps({"schema_version": 2, **about, **may, **options}))
    before = (tmp_path / "results" / "provenance.json").read_bytes()
    worker = Worker(tmp_path)
    assert worker.end() == code
    refusals = [event.what for event in worker.of(protocol.Failure)]
    assert len(refusals) == (code == 2)
    assert all("holds the result of another scan (flair.nii.gz)" in refusal for refusal in refusals)
    worker.close()
    assert ((tmp_path / "results" / "provenance.json").read_bytes() == before) == (code == 2)


def test_detect_does_not_replace_what_threshold_made(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "out-2", tmp_path / "out")
    arguments = ["--mask", str(place / "bm.nii.gz"), "--method", "intensity", "-o", str(tmp_path / "out")]
    assert cli.main(["detect", str(place / "flair.nii.gz"), *arguments]) == 2
    assert "threshold.json" in capsys.readouterr().err
