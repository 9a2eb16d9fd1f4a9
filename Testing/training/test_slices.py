"""From scans to slices: labels, splits, normalisation, and files that are whole."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from diffusion_anomaly.errors import InputError
from Testing.training.fakes import random_slices
from training.data import preparation
from training.data.preparation import PrepareConfig, prepare, slice_scan
from training.data.slice_labels import label_tumour_slices, read_labels, slab_labels
from training.data.slices import DISEASED, HEALTHY, HEALTHY_HALF, UNUSED, Slices, training_slices, validation_slices

SHAPE = (8, 24, 20)  # slices, rows, columns


def write_scan(folder: Path, name: str, seed: int, *, upside_down: bool = False, thickness: float = 5.0) -> Path:
    """A box of noise with its brain mask beside it; a slice's brightness grows with its height."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).uniform(90.0, 110.0, SHAPE).astype(np.float32)
    values += 50.0 * np.arange(SHAPE[0], dtype=np.float32)[:, None, None]
    brain = np.zeros(SHAPE, np.uint8)
    brain[1:7, 4:20, 4:16] = 1
    for suffix, array in (("", values), ("_brain", brain)):
        image = sitk.GetImageFromArray(array[::-1].copy() if upside_down else array)
        image.SetSpacing((2.0, 2.0, thickness))
        if upside_down:
            image.SetDirection((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
            image.SetOrigin((0.0, 0.0, (SHAPE[0] - 1) * thickness))
        sitk.WriteImage(image, str(folder / f"{name}{suffix}.nii.gz"))
    return folder / f"{name}.nii.gz"


def prepare_config(folder: Path, **changes: Any) -> PrepareConfig:
    settings = {
        "train": folder / "train",
        "val": folder / "val",
        "pattern": "p??.nii.gz",
        "brains": "{scan}_brain.nii.gz",
        "grid": {"size": (20, 18), "spacing": 2.0},
        "minimum_brain_pixels": 50,
    }
    return PrepareConfig.model_validate(settings | changes)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_scan(tmp_path / "train", "p01", 1)
    write_scan(tmp_path / "train", "p02", 2, upside_down=True)
    write_scan(tmp_path / "val", "p03", 3)
    return tmp_path


def write_labels(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("scan", "slice", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# Slices on disk


@given(width=st.integers(1, 20), count=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_of_any_width_come_back_as_they_were(tmp_path: Path, width: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (count, 2, 5, width)
    slices = Slices(
        rng.integers(0, 256, shape).astype(np.uint8),
        rng.random((count, 5, width)) < 0.5,
        rng.integers(-1, 2, count).astype(np.int8),
        rng.random(count).astype(np.float32),
        np.array([f"näme {i}.nii.gz" for i in range(count)]),
        np.arange(count),
        np.full(count, 0.02, np.float32),
    )
    slices.save(tmp_path / "train.npz")
    again = Slices.load(tmp_path / "train.npz")
    for name in Slices.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(slices, name), err_msg=name)


def test_a_failing_write_leaves_the_old_slices_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_slices(4, 8, 0).save(tmp_path / "train.npz")
    before = (tmp_path / "train.npz").read_bytes()

    def half_a_file(path: Path, **_: np.ndarray) -> None:
        Path(path).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", half_a_file)
    with pytest.raises(InputError, match="no space left"):
        random_slices(6, 8, 1).save(tmp_path / "train.npz")
    assert (tmp_path / "train.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["train.npz"]


def test_slices_that_are_not_there_name_the_stage_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"val\.npz does not exist: run the stage 'prepare' first"):
        Slices.load(tmp_path / "val.npz")


def test_an_array_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"train\.npz lacks brain, label"):
        Slices.load(tmp_path / "train.npz")


# Labels


@given(st.lists(st.lists(st.sampled_from([0, 0, 0, 0, 0, 7]), min_size=1, max_size=25), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_slice_less_than_three_from_a_tumour_is_never_healthy(tmp_path: Path, patients: list[list[int]]) -> None:
    rows = [(f"P{p}", i, pixels) for p, slices in enumerate(patients) for i, pixels in enumerate(slices)]
    table = write_labels(tmp_path / "slices.csv", rows, ("patient", "slice", "tumour_px"))
    label_tumour_slices(table, tmp_path / "labels.csv")
    labels = read_labels(tmp_path / "labels.csv")
    assert len(labels) == len(rows)
    for patient, index, pixels in rows:
        distance = min((abs(index - i) for p, i, n in rows if p == patient and n > 0), default=99)
        expected = DISEASED if pixels else UNUSED if distance < 3 else HEALTHY
        assert labels[f"{patient}_flair.nii.gz", index] == expected


def test_the_labels_of_the_lgg_set_keep_the_distance_too(tmp_path: Path) -> None:
    table = Path(__file__).resolve().parents[3] / "shared" / "data" / "lgg-flair" / "slices.csv"
    if not table.exists():
        pytest.skip(f"needs {table}, which is not distributed with the repository")
    label_tumour_slices(table, tmp_path / "labels.csv")
    labels = read_labels(tmp_path / "labels.csv")
    with table.open(newline="") as file:
        tumours = {
            (f"{r['patient']}_flair.nii.gz", int(r["slice"])) for r in csv.DictReader(file) if int(r["tumour_px"])
        }
    healthy = [place for place, label in labels.items() if label == HEALTHY]
    assert healthy
    assert not [p for p in healthy if any((p[0], p[1] + d) in tumours for d in range(-2, 3))]
    assert {place for place, label in labels.items() if label == DISEASED} == tumours


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a", 0, 0)], ("scan", "slice", "class"), "has the columns scan, slice, class; expected scan, slice, label"),
        ([("a", 0, 0), ("a", "one", 1)], ("scan", "slice", "label"), "line 3: slice and label must be whole numbers"),
        ([("a", 0, 2)], ("scan", "slice", "label"), "line 2: expected a label of 0, 1 or -1"),
        ([("a", -1, 0)], ("scan", "slice", "label"), "line 2: expected .* a slice from 0"),
        ([("a", 4, 0), ("a", 4, 1)], ("scan", "slice", "label"), "line 3: slice 4 of a has another label further up"),
        ([("a", 4)], ("scan", "slice", "label"), "line 2 has not the 3 columns"),
    ],
)
def test_a_wrong_label_file_is_refused_with_its_line(
    tmp_path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=rf"labels\.csv,? .*{message}|labels\.csv {message}"):
        read_labels(write_labels(tmp_path / "labels.csv", rows, header))


@given(st.lists(st.sampled_from([HEALTHY, HEALTHY, DISEASED, UNUSED]), min_size=1, max_size=14), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_slab_is_diseased_when_any_of_its_slices_is_and_healthy_when_all_are(thin: list[int], thickness: int) -> None:
    slabs = [range(first, min(first + thickness, len(thin))) for first in range(0, len(thin), thickness)]
    whole = [slab for slab in slabs if len(slab) == thickness]
    index = np.array([(slab.start + slab.stop) // 2 for slab in slabs])
    found = slab_labels({("s", i): label for i, label in enumerate(thin)} | {("t", 0): DISEASED}, "s", index, thickness)
    for slab, label in zip(whole, found, strict=False):
        values = {thin[i] for i in slab}
        assert label == (DISEASED if DISEASED in values else HEALTHY if values == {HEALTHY} else UNUSED)
    for slab, label in zip(slabs, found, strict=True):
        if label == HEALTHY:
            assert all(thin[i] == HEALTHY for i in slab)


# Preparing


def test_scans_become_normalised_labelled_slices_on_the_models_grid(scans: Path) -> None:
    rows = [(f"p0{p}.nii.gz", i, DISEASED if i == 5 else HEALTHY) for p in (1, 2, 3) for i in range(8) if i != 2]
    labels = write_labels(scans / "labels.csv", rows)
    prepare(prepare_config(scans, labels=labels), scans / "out")
    train, val = (Slices.load(scans / "out" / f"{split}.npz") for split in ("train", "val"))
    assert set(train.scan) == {"p01.nii.gz", "p02.nii.gz"}
    assert set(val.scan) == {"p03.nii.gz"}
    assert train.images.shape == (12, 1, 18, 20)
    for name in ("p01.nii.gz", "p02.nii.gz"):  # the second is stored upside down, and still counted from below
        one = train.select(train.scan == name)
        assert one.index.tolist() == [1, 2, 3, 4, 5, 6]
        assert one.label.tolist() == [HEALTHY, UNUSED, HEALTHY, HEALTHY, DISEASED, HEALTHY]
        np.testing.assert_allclose(one.height, np.linspace(0.0, 1.0, 6))
        brightness = [image[brain].mean() for image, brain in zip(one.images[:, 0], one.brain, strict=True)]
        assert np.all(np.diff(brightness) >= 0)
    np.testing.assert_array_equal(train.images[:, 0][~train.brain], 0)
    np.testing.assert_allclose(train.voxel_ml, 2.0 * 2.0 * 5.0 / 1000.0)
    # The default scale: the brain's lowest half per cent is 0 and the mode of the tissue that is no fluid 0.42.
    inside = val.images[:, 0][val.brain] / 255.0
    assert np.mean(inside == 0.0) == pytest.approx(0.005, abs=0.005)
    middles = [np.median(image[brain]) / 255.0 for image, brain in zip(val.images[:, 0], val.brain, strict=True)]
    assert np.abs(np.array(middles) - 0.42).min() < 0.05


def test_a_thin_scan_is_labelled_by_all_slices_of_a_slab(scans: Path) -> None:
    path = write_scan(scans / "thin", "p09", 9, thickness=1.0)
    labels = {(path.name, i): DISEASED if i == 3 else HEALTHY for i in range(8)}
    found = slice_scan([path], prepare_config(scans), labels, scans / "brains")
    assert found.index.tolist() == [2, 5]  # slices 1 to 3 and 4 to 6
    assert found.label.tolist() == [DISEASED, HEALTHY]


def test_without_labels_every_slice_is_healthy(scans: Path) -> None:
    prepare(prepare_config(scans), scans / "out")
    assert set(Slices.load(scans / "out" / "train.npz").label) == {HEALTHY}


@pytest.mark.parametrize("same", ["name", "content"])
def test_a_scan_in_both_splits_is_refused(scans: Path, same: str) -> None:
    twin = scans / "val" / ("p01.nii.gz" if same == "name" else "p44.nii.gz")
    source = scans / ("val/p03.nii.gz" if same == "name" else "train/p01.nii.gz")
    twin.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match=rf"{twin.name} and .*p01\.nii\.gz are the same scan.*Split by patient"):
        prepare(prepare_config(scans), scans / "out")
    assert not list((scans / "out").glob("*.npz"))


def test_a_scan_without_labels_is_refused_by_name(scans: Path) -> None:
    labels = write_labels(scans / "labels.csv", [("p01.nii.gz", 0, 0), ("P02.nii.gz", 0, 0), ("p03.nii.gz", 0, 0)])
    with pytest.raises(InputError, match=r"labels\.csv has no row for the scan p02\.nii\.gz"):
        prepare(prepare_config(scans, labels=labels), scans / "out")


def test_a_folder_without_scans_is_refused(scans: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train holds no scan that matches \*\.mha"):
        prepare(prepare_config(scans, pattern="*.mha"), scans / "out")


def test_a_brain_is_found_once_and_kept(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(volume: Any, *_: Any) -> sitk.Image:
        asked.append(Path(volume.source).name)
        return sitk.Cast(volume.image > 150.0, sitk.sitkUInt8)

    monkeypatch.setattr(preparation, "BrainFinder", lambda bundle: find)
    monkeypatch.setattr(preparation, "open_bundle", lambda name: name)
    for _ in range(2):
        prepare(prepare_config(scans, brains=None), scans / "out")
    assert sorted(asked) == ["p01.nii.gz", "p02.nii.gz", "p03.nii.gz"]
    assert sorted(path.name for path in (scans / "out" / "brains").iterdir()) == sorted(asked)


# Healthy halves


@pytest.fixture
def with_lesions(scans: Path) -> Path:
    """A lesion at one side of one slice of each scan, and the slices' labels."""
    rows = [(f"p0{p}.nii.gz", i, DISEASED if i == 4 else HEALTHY) for p in (1, 2, 3) for i in range(8)]
    write_labels(scans / "labels.csv", rows)
    for path in sorted(scans.glob("*/p??.nii.gz")):
        scan = sitk.ReadImage(str(path))
        lesion = np.zeros(SHAPE, np.uint8)
        lesion[4, 8:12, 4:6] = 1
        image = sitk.GetImageFromArray(lesion[::-1].copy() if scan.GetDirection()[8] < 0 else lesion)
        image.CopyInformation(scan)
        sitk.WriteImage(image, str(path.with_name(path.name.replace(".nii.gz", "_lesion.nii.gz"))))
    return scans


def halves_config(scans: Path, **changes: Any) -> PrepareConfig:
    entries = {"labels": scans / "labels.csv", "lesions": [".nii.gz", "_lesion.nii.gz"]}
    return prepare_config(scans, **(entries | changes))


def test_halves_are_kept_beside_the_slices_and_used_only_when_asked_for(with_lesions: Path) -> None:
    prepare(prepare_config(with_lesions, labels=with_lesions / "labels.csv"), with_lesions / "plain")
    prepare(halves_config(with_lesions), with_lesions / "out")
    plain, every = (Slices.load(with_lesions / folder / "train.npz") for folder in ("plain", "out"))
    half = every.select(every.label == HEALTHY_HALF)
    assert sorted(half.scan) == ["p01.nii.gz", "p02.nii.gz"] and set(half.index) == {4}
    assert len(every) == len(plain) + 2
    without, with_them = (training_slices(with_lesions / "out", halves) for halves in (False, True))
    for name in Slices.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(without, name), getattr(plain, name), err_msg=name)
    assert (with_them.label == HEALTHY).sum() == (plain.label == HEALTHY).sum() + 2
    assert HEALTHY_HALF not in validation_slices(with_lesions / "out").label
    # A half is its own mirror image, and lies at its slice's height.
    np.testing.assert_array_equal(half.images, half.images[..., ::-1])
    np.testing.assert_array_equal(half.brain, half.brain[:, :, ::-1])
    assert not half.images[:, 0][~half.brain].any()
    np.testing.assert_allclose(half.height, 3.0 / 5.0)


def test_lesions_without_labels_are_refused(scans: Path) -> None:
    with pytest.raises(ValidationError, match="lesions needs labels too"):
        halves_config(scans, labels=None)


def test_a_scan_whose_name_ends_otherwise_is_named(with_lesions: Path) -> None:
    config = halves_config(with_lesions, lesions=["_flair.nii.gz", "_lesion.nii.gz"])
    with pytest.raises(InputError, match=r"p01\.nii\.gz does not end in '_flair\.nii\.gz'.*Set 'lesions'"):
        prepare(config, with_lesions / "out")


def test_a_lesion_mask_that_is_missing_is_named(with_lesions: Path) -> None:
    (with_lesions / "train" / "p02_lesion.nii.gz").unlink()
    with pytest.raises(InputError, match=r"p02_lesion\.nii\.gz"):
        prepare(halves_config(with_lesions), with_lesions / "out")
    assert not list((with_lesions / "out").glob("*.npz"))


# Several contrasts


@pytest.fixture
def contrasts(tmp_path: Path) -> Path:
    """Two patients and one: FLAIR, its inverse as T1 in a folder of its own, and its square as T2 beside it."""
    for split, patient in (("train", "p01"), ("train", "p02"), ("val", "p03")):
        path = write_scan(tmp_path / split, f"{patient}_flair", int(patient[1:]), upside_down=patient == "p02")
        scan = sitk.ReadImage(str(path))
        other = tmp_path / "other" / split
        other.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(1000.0 - scan, str(other / f"{patient}_t1.nii.gz"))
        sitk.WriteImage(scan**2, str(path.with_name(f"{patient}_t2.nii.gz")))
    return tmp_path


def contrasts_config(folder: Path, **changes: Any) -> PrepareConfig:
    t1 = {"pattern": "*_t1.nii.gz", "train": folder / "other" / "train", "val": folder / "other" / "val"}
    entries = {
        "pattern": "*_flair.nii.gz",
        "contrast": "FLAIR",
        "other_contrasts": {"T1": t1, "T2": {"pattern": "*_t2.nii.gz"}},
    }
    return prepare_config(folder, **(entries | changes))


def test_contrasts_become_channels_each_on_its_own_scale(contrasts: Path) -> None:
    config = contrasts_config(contrasts)
    assert config.channels == ("FLAIR", "T1", "T2")
    prepare(config, contrasts / "out")
    prepare(prepare_config(contrasts, pattern="*_flair.nii.gz"), contrasts / "one")
    several, one = (Slices.load(contrasts / folder / "train.npz") for folder in ("out", "one"))
    assert several.images.shape == (12, 3, 18, 20)
    np.testing.assert_array_equal(several.images[:, :1], one.images)
    flair, t1, t2 = (several.images[:, number][several.brain].astype(float) for number in range(3))
    assert np.corrcoef(flair, t1)[0, 1] < -0.7 and np.corrcoef(flair, t2)[0, 1] > 0.9
    assert min(flair.std(), t1.std(), t2.std()) > 10, "each uses its range, whatever its units"
    # Names are those of the first contrast, by which labels and lesions go.
    assert set(several.scan) == {"p01_flair.nii.gz", "p02_flair.nii.gz"}


def test_patients_without_all_contrasts_are_refused_or_left_out(contrasts: Path) -> None:
    (contrasts / "other" / "train" / "p02_t1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 scan is missing, the first is .*p02_t1\.nii\.gz.*complete_only"):
        prepare(contrasts_config(contrasts), contrasts / "out")
    prepare(contrasts_config(contrasts, complete_only=True), contrasts / "out")
    assert set(Slices.load(contrasts / "out" / "train.npz").scan) == {"p01_flair.nii.gz"}
    (contrasts / "val" / "p03_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"No patient in .*val has all of FLAIR, T1, T2"):
        prepare(contrasts_config(contrasts, complete_only=True), contrasts / "out")


def test_a_contrast_that_is_a_copy_of_another_is_refused(contrasts: Path) -> None:
    scan = sitk.ReadImage(str(contrasts / "train" / "p02_flair.nii.gz"))
    sitk.WriteImage(scan, str(contrasts / "other" / "train" / "p02_t1.nii.gz"))
    with pytest.raises(InputError, match=r"p02_flair\.nii\.gz and .*p02_t1\.nii\.gz hold the same image"):
        prepare(contrasts_config(contrasts), contrasts / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast": None}, "contrast and other_contrasts belong together"),
        ({"other_contrasts": {}}, "contrast and other_contrasts belong together"),
        ({"contrast": "t1"}, "two contrasts have one name: t1, T1"),
        ({"pattern": "p??_flair.nii.gz"}, r"the pattern 'p\?\?_flair.nii.gz' needs one \*"),
    ],
)
def test_contrasts_that_cannot_be_told_apart_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    entries = {"other_contrasts": {"T1": {"pattern": "*_t1.nii.gz"}}}
    with pytest.raises(ValidationError, match=message):
        contrasts_config(tmp_path, **(entries | changes))
