"""Pictures for models of whole images: no brain is looked for, nothing is turned, and findings have areas."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageDraw

import dicoms
import packages
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.results.result import Result, statistics

CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
PERCENTILES = {"kind": "percentiles", "low_percentile": 1, "high_percentile": 99, "high_value": 0.95, "clip_max": 1.0}
SHAPE = (96, 80)
TOP, LEFT, SIDE = 60, 10, 12  # of the bright square, low on the left


def film(*, deep: int = 1) -> np.ndarray:
    """Grey that brightens towards the right, with a brighter square low on the left, `deep` times 8 bits."""
    values = np.broadcast_to(np.linspace(60, 110, SHAPE[1]), SHAPE).copy()
    values[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = 230
    return (values * deep).astype(np.uint8 if deep == 1 else np.uint16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return packages.intensity(
        tmp_path_factory.mktemp("models") / "films",
        modality="X-ray",
        region="image",
        orientation="any",
        grid={"size": [40, 48]},
        normalisation=PERCENTILES,
        options={"reference": 0.3},
    )


def detect(bundle: Bundle, scan: Any, **options: Any) -> Result:
    return Detector(Options(method="intensity", **options), bundle=bundle)(scan)


def saved(folder: Path, kind: str) -> Path:
    """The film in one of the ways in which films come."""
    path = folder / f"film.{kind.split()[0]}"
    if kind in ("png", "jpg", "tif"):
        Image.fromarray(film()).save(path)
    elif kind == "png rgb":
        Image.fromarray(film()).convert("RGB").save(path)
    elif kind == "png 16":
        Image.fromarray(film(deep=100)).save(path)
    elif kind in ("dcm CR", "dcm DX", "dcm inverted"):
        pixels = film(deep=16)
        inverted = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
        data = dicoms.image(
            4095 - pixels if kind == "dcm inverted" else pixels,
            DX if "DX" in kind else CR,
            Modality=kind.split()[-1] if "inverted" not in kind else "DX",
            ImagerPixelSpacing=["0.5", "0.5"],
            **(inverted if kind == "dcm inverted" else {}),
        )
        dicoms.save(data, path)
    else:  # a slice of a viewer's, or of a converter's, from any side
        image = sitk.GetImageFromArray(film()[None].astype(np.float32))
        image.SetSpacing((0.5, 0.5, 2.0))
        if kind == "nrrd coronal":
            image.SetDirection((1, 0, 0, 0, 0, 1, 0, -1, 0))
        elif kind == "nrrd upside down":
            image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(path))
    return path


KINDS = ["png", "jpg", "tif", "png rgb", "png 16", "dcm CR", "dcm DX", "dcm inverted", "nii.gz", "mha", "nrrd"]
KINDS += ["nrrd coronal", "nrrd upside down"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_film_is_looked_at_as_it_is_stored_and_its_findings_have_areas(
    bundle: Bundle, tmp_path: Path, kind: str
) -> None:
    result = detect(bundle, saved(tmp_path, kind))
    assert sitk.GetArrayViewFromImage(result.brain).all()
    (finding,) = result.findings
    low, high = finding.bounding_box
    assert abs(low[0] - LEFT) <= 2 and abs(low[1] - TOP) <= 2
    assert abs(high[0] - LEFT - SIDE + 1) <= 2 and abs(high[1] - TOP - SIDE + 1) <= 2
    assert finding.volume_ml == 0
    assert finding.area_pixels == np.count_nonzero(sitk.GetArrayViewFromImage(result.mask))
    if kind.startswith(("png", "jpg", "tif")):
        assert (finding.area_mm2, result.unit) == (None, "pixels")
    else:
        assert finding.area_mm2 == pytest.approx(finding.area_pixels / 4)
        assert result.unit == "mm²"
    assert not [warning for warning in result.warnings if "brain" in warning or "axial" in warning]
    assert any("MONOCHROME1" in warning for warning in result.warnings) == (kind == "dcm inverted")
    assert np.array_equal(result.mask.GetDirection(), result.scan.reference.image.GetDirection())
    (record,) = statistics(result)["findings"]
    assert record["centroid_pixel"] == finding.centre and "centroid_ras" not in record
    assert finding.centre == pytest.approx((LEFT + SIDE / 2 - 0.5, TOP + SIDE / 2 - 0.5), abs=1.5)


def test_what_a_film_is_stored_as_changes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """The same pixels give the same map, whatever direction the header states."""
    maps = [
        sitk.GetArrayFromImage(detect(bundle, saved(tmp_path, kind)).anomaly_map)
        for kind in ("nrrd", "nrrd coronal", "nrrd upside down")
    ]
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[2])


def test_a_film_of_any_size_is_fitted_to_the_models_slices(bundle: Bundle, tmp_path: Path) -> None:
    large = np.kron(film(), np.ones((5, 4), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    result = detect(bundle, tmp_path / "large.png")
    (finding,) = result.findings
    assert finding.area_pixels == pytest.approx(SIDE * SIDE * 20, rel=0.3)
    assert not [warning for warning in result.warnings if "field of view" in warning]


@pytest.mark.parametrize(("slices", "seen"), [(1, 1), (3, 8)])
def test_a_network_sees_a_lone_picture_once_and_a_few_slices_in_a_full_chunk(
    tmp_path: Path, slices: int, seen: int
) -> None:
    settings = {"region": "image", "orientation": "any", "grid": {"size": [40, 48]}, "normalisation": PERCENTILES}
    detector = Detector(packages.options_for(packages.guided(tmp_path / "guided", **settings)))
    assert detector.model is not None
    sizes: list[int] = []
    detector.model.diffusion.register_forward_pre_hook(lambda network, inputs: sizes.append(len(inputs[0])))
    detector(np.repeat(film()[None], slices, 0).astype(np.float32), spacing=(1.0, 1.0, 5.0), force=True)
    assert set(sizes) == {seen}


def test_burnt_in_text_is_no_fault(bundle: Bundle, tmp_path: Path) -> None:
    picture = Image.fromarray(film())
    ImageDraw.Draw(picture).text((40, 4), "R  AP 71y", fill=255)
    picture.save(tmp_path / "text.png")
    boxes = [finding.bounding_box[0] for finding in detect(bundle, tmp_path / "text.png").findings]
    assert any(abs(i - LEFT) <= 2 and abs(j - TOP) <= 2 for i, j, _ in boxes)


def test_a_colour_photograph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    colours = np.stack([film(), film()[::-1], film()], axis=-1)
    Image.fromarray(colours).save(tmp_path / "photo.jpg")
    with pytest.raises(InputError, match="colour image"):
        detect(bundle, tmp_path / "photo.jpg")


def test_small_findings_go_by_area_and_never_by_volume(bundle: Bundle, tmp_path: Path) -> None:
    path = saved(tmp_path, "png")
    area = detect(bundle, path).findings[0].area_pixels
    assert area is not None
    assert detect(bundle, path, min_volume_ml=1e6).findings
    assert detect(bundle, path, min_area=float(area)).findings
    assert not detect(bundle, path, min_area=area + 1.0).findings
    with pytest.raises(InputError, match="min_area"):
        Options(min_area=-1.0)


def test_another_threshold_keeps_the_areas(bundle: Bundle, tmp_path: Path) -> None:
    result = detect(bundle, saved(tmp_path, "dcm CR"))
    again = result.at(result.threshold / 2)
    assert again.findings[0].area_mm2 is not None
    assert again.findings[0].area_mm2 >= result.findings[0].area_mm2  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "unit"), [("png", "pixels"), ("dcm CR", "mm²")])
def test_files_and_report_speak_of_areas(bundle: Bundle, tmp_path: Path, kind: str, unit: str) -> None:
    result = detect(bundle, saved(tmp_path, kind))
    files = result.save(tmp_path / "out")
    (row,) = csv.DictReader(files["findings_csv"].read_text(encoding="utf-8").splitlines())
    assert "volume_ml" not in row and "centroid_r_mm" not in row
    column, line = result.findings[0].centre
    assert float(row["centroid_column_index"]) == pytest.approx(column, abs=1e-3)
    assert float(row["centroid_row_index"]) == pytest.approx(line, abs=1e-3)
    assert int(row["area_pixels"]) == result.findings[0].area_pixels
    assert (row["area_mm2"] == "") == (unit == "pixels")
    document = json.loads(files["findings_json"].read_text(encoding="utf-8"))
    assert document["findings"][0]["area_mm2"] == result.findings[0].area_mm2
    page = files["report"].read_text(encoding="utf-8")
    assert f"<th>Area ({unit})</th>" in page
    assert "<th>Centre column, row</th>" in page and f"<td>{column:.1f}, {line:.1f}</td>" in page
    assert "column, row" in result._repr_html_()
    assert " ml" not in page.split("How this was made")[0]
    overlay = np.asarray(Image.open(files["overlay"]).convert("RGB")).astype(int)
    assert overlay.shape[:2] == SHAPE
    coloured = np.ptp(overlay, axis=-1) > 40
    assert coloured[TOP : TOP + SIDE, LEFT : LEFT + SIDE].mean() > 0.9
    assert coloured[: TOP - SIDE, : 2 * LEFT].mean() < 0.01
    again = read_volume(files["mask"])
    assert np.array_equal(sitk.GetArrayFromImage(again.image), sitk.GetArrayFromImage(result.mask))


def test_the_heading_of_the_table_is_the_same_without_findings(bundle: Bundle, tmp_path: Path) -> None:
    path = saved(tmp_path, "png")
    headings = [
        detect(bundle, path, threshold=at)
        .save(tmp_path / str(at))["findings_csv"]
        .read_text(encoding="utf-8")
        .splitlines()[0]
        for at in (2.0, 1000.0)
    ]
    assert headings[0] == headings[1]


def test_the_command_line_speaks_of_areas_and_thresholds_again(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, "png")
    assert cli.main(["detect", str(path), "-o", str(tmp_path / "out"), "--model", str(bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert shown.split()[:3] == ["finding", "pixels", "peak"] and "centre column, row" in shown and " mm" not in shown
    made = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))["score"]
    assert f"\nWhole-image score {made['value']:.3g}: {made['title']}\n" in shown
    assert "brain" not in made["title"]
    heat = tmp_path / "out" / "heat.nii.gz"
    again = ["threshold", str(heat), "--at", "1", "-o", str(tmp_path / "again")]
    assert cli.main(again) == 0
    assert capsys.readouterr().out.split()[:3] == ["finding", "pixels", "peak"]
    assert cli.main([*again, "--min-volume", "1"]) == InputError.exit_code
    assert "--min-area" in capsys.readouterr().err


def test_a_volume_for_a_model_of_pictures_is_looked_at_slice_by_slice_with_a_doubt(bundle: Bundle) -> None:
    image = sitk.GetImageFromArray(np.stack([film()] * 3).astype(np.float32))
    image.SetSpacing((1.0, 1.0, 5.0))
    result = detect(bundle, image)
    assert any("single pictures" in warning and "3 slices" in warning for warning in result.warnings)
    assert result.unit == "ml"


def test_an_even_picture_has_nothing_to_find(bundle: Bundle) -> None:
    image = sitk.GetImageFromArray(np.full((1, *SHAPE), 7.0, np.float32))
    result = detect(bundle, image)
    assert not result.findings
    assert any("nothing to find" in warning for warning in result.warnings)


def test_a_grid_without_spacing_is_for_whole_images(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="grid without spacing"):
        packages.intensity(tmp_path / "model", grid={"size": [40, 48]})


def test_a_package_that_says_nothing_looks_at_the_brain(tmp_path: Path) -> None:
    assert packages.intensity(tmp_path / "model").region == "brain"


@pytest.mark.parametrize("kind", ["CR", "DX"])
def test_a_film_is_refused_by_a_model_of_brains_and_told_which_model_knows_films(tmp_path: Path, kind: str) -> None:
    brains = packages.intensity(tmp_path / "brains")
    path = tmp_path / "film.dcm"
    dicoms.save(dicoms.image(film().astype(np.uint16), {"CR": CR, "DX": DX}[kind], Modality=kind), path)
    with pytest.raises(
        InputError, match=f"header says {kind}, which is an X-ray film; the model knows FLAIR"
    ) as caught:
        detect(brains, path)
    assert "--model chest-pneumonia-guided" in caught.value.hint
