"""Results as DICOM objects, read back with pydicom and highdicom, and checked by an independent validator."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from highdicom.pm import ParametricMap
from highdicom.seg import segread
from highdicom.sr import srread
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, generate_uid
from pypdf import PdfReader

import dicoms
import phantom
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.provenance import describe_input
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import Scan, read_volume
from diffusion_anomaly.results import redrawing
from diffusion_anomaly.results.dicom import again, check_source
from diffusion_anomaly.results.findings import segment
from diffusion_anomaly.results.report import render_report
from diffusion_anomaly.results.result import Result
from diffusion_anomaly.worker import probe, protocol
from workers import Worker

CR, DX, CT = (f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("1", "1.1", "2"))
SHAPE = (5, 16, 18)
TOLERANCE_MM = 1e-3
OBLIQUE = tuple(phantom.rotation((20, -35, 50))[:, :2].T.ravel())
AXES = {"axial": dicoms.AXES, "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), "oblique": OBLIQUE}
ABOUT = {"StudyDate": "20250102", "StudyTime": "101112", "StudyID": "S7", "SeriesNumber": "4"}


def many_frames(pixels: np.ndarray, axes: tuple[float, ...], order: list[int] | None = None) -> Dataset:
    """A multi-frame image whose frames are not in the order of their places."""
    order = order or [2, 0, 4, 1, 3]
    normal = np.cross(axes[:3], axes[3:])
    places = [np.array((-10.0, -20.0, 30.0)) + 3.0 * k * normal for k in order]
    return dicoms.enhanced(pixels[order], places, axes=axes, **ABOUT)


def series(folder: Path, kind: str, axes: tuple[float, ...] = dicoms.AXES) -> Path:
    """A scan in one of the shapes in which DICOM comes."""
    pixels = dicoms.voxels(SHAPE)
    if kind == "classic":
        return dicoms.write(folder, dicoms.classic(pixels, axes=axes, **ABOUT))
    if kind == "enhanced":
        dicoms.save(many_frames(pixels, axes), folder / "many.dcm")
    elif kind == "two files":  # of many frames each
        for name, order in (("a", [1, 0]), ("b", [4, 2, 3])):
            data = many_frames(pixels, axes, order)
            dicoms.save(dicoms.changed(data, InstanceNumber=str(len(order))), folder / f"{name}.dcm")
    else:
        film = dicoms.image(pixels[0], DX if kind == "DX" else CR, Modality=kind, **ABOUT)
        elements = {"DX": {"PixelSpacing": ["0.3", "0.2"]}, "CR": {}}[kind]
        film = dicoms.changed(film, FrameOfReferenceUID=None, BodyPartExamined="CHEST", **elements)
        dicoms.save(film, folder / "film.dcm")
    return folder


@pytest.fixture
def result_of(small_result: Result) -> Callable[..., Result]:
    """A result on any scan: three findings, one of a single voxel, in scores that are all different."""

    def make(source: Path, *, frame: int | None = None, found: bool = True, threshold: float = 3.0) -> Result:
        volume = read_volume(source, frame=frame)
        shape = volume.image.GetSize()[::-1]
        scores = np.random.default_rng(3).uniform(0.1, 2.0, shape).astype(np.float32)
        if found:
            scores[0, 1:4, 2:4] += 4
            scores[-1, -3:, -5:-2] += 3
            scores[len(scores) // 2, 8, 9] += 6
        is_picture = volume.metadata["modality"] in ("CR", "DX")
        options = {**small_result.provenance["options"], "min_volume_ml": 0.0, "min_area": 0.0 if is_picture else None}
        anomaly_map = phantom.on_grid(scores, volume.image)
        brain = phantom.on_grid(np.ones(shape, np.uint8), volume.image)
        mask, _, findings = segment(anomaly_map, threshold, 0.0, brain, options["min_area"])
        about = {"options": options, "region": "image" if is_picture else "brain", "input": describe_input(volume)}
        provenance = {**small_result.provenance, **about}
        return replace(
            small_result,
            scan=Scan({"FLAIR": volume}),
            anomaly_map=anomaly_map,
            mask=mask,
            brain=brain,
            findings=findings,
            threshold=threshold,
            provenance=provenance,
            warnings=["The scan is doubtful."],
        )

    return make


def reread(objects: dict[str, Dataset], folder: Path) -> dict[str, Dataset]:
    return {kind: dcmread(dicoms.save(data, folder / f"{kind}.dcm")) for kind, data in objects.items()}


def places(data: Dataset, frames: dict[int, np.ndarray]) -> np.ndarray:
    """By PS3.3 C.7.6.2.1.1, mm LPS, of the marked pixels of some frames, in ascending order."""
    shared = data.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    found = []
    for number, marked in frames.items():
        group = data.PerFrameFunctionalGroupsSequence[number]
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.argwhere(marked).T[:, :, None]
        found.append(origin + rows * spacing[0] * axes[3:] + columns * spacing[1] * axes[:3])
    return ordered(np.concatenate(found))


def ordered(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.round(2).T)]


def source_of(group: Dataset) -> tuple[str, int | None]:
    (item,) = group.DerivationImageSequence[0].SourceImageSequence
    return item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber")


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", ["classic", "enhanced", "two files"])
def test_segments_and_scores_lie_where_the_source_lies(
    tmp_path: Path, result_of: Callable[..., Result], kind: str, axes: str
) -> None:
    result = result_of(series(tmp_path / "scan", kind, AXES[axes]))
    objects = reread(result.to_dicom(), tmp_path)
    _, labels, _ = segment(result.anomaly_map, 3.0, 0.0)
    values, where = sitk.GetArrayFromImage(labels), phantom.points(labels)
    seg = objects["segmentation"]
    assert len(result.findings) == 3
    for finding in result.findings:
        numbers = [
            number
            for number, group in enumerate(seg.PerFrameFunctionalGroupsSequence)
            if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == finding.id
        ]
        found = places(seg, {number: seg.pixel_array.reshape(-1, *SHAPE[1:])[number] for number in numbers})
        expected = ordered(where[values == finding.id])
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < TOLERANCE_MM
    scores = sitk.GetArrayFromImage(result.anomaly_map)
    pm = objects["anomaly_map"]
    frames = np.frombuffer(pm.FloatPixelData, np.float32).reshape(-1, *SHAPE[1:])
    corner = np.zeros(SHAPE[1:], bool)
    corner[0, 0] = True
    for number, frame in enumerate(frames):
        at = places(pm, {number: corner})[0]
        k = round(float(result.anomaly_map.TransformPhysicalPointToContinuousIndex(at.tolist())[2]))
        assert np.abs(where[k, 0, 0] - at).max() < TOLERANCE_MM
        assert np.array_equal(frame, scores[k])
    # A reader that knows such objects finds the same volume.
    volume = ParametricMap.from_dataset(pm).get_volume()
    at = np.argwhere(volume.array == scores[2, 8, 9])
    assert np.abs(volume.map_indices_to_reference(at)[0] - where[2, 8, 9]).max() < TOLERANCE_MM


@pytest.mark.parametrize("kind", ["classic", "enhanced", "two files", "CR", "DX"])
def test_every_image_of_the_source_is_referred_to_and_each_frame_to_its_own(
    tmp_path: Path, result_of: Callable[..., Result], kind: str
) -> None:
    folder = series(tmp_path / "scan", kind)
    sources = {data.SOPInstanceUID: data for data in map(dcmread, sorted(folder.iterdir()))}
    objects = reread(result_of(folder).to_dicom(), tmp_path)
    for data in (objects["segmentation"], objects["anomaly_map"]):
        (item,) = data.ReferencedSeriesSequence
        assert item.SeriesInstanceUID == dicoms.SERIES
        references = {
            one.ReferencedSOPInstanceUID: one.ReferencedSOPClassUID for one in item.ReferencedInstanceSequence
        }
        assert references == {uid: one.SOPClassUID for uid, one in sources.items()}
        for group in data.PerFrameFunctionalGroupsSequence:
            uid, frame = source_of(group)
            source = sources[uid]
            assert (frame is None) == ("NumberOfFrames" not in source)
            if "PlanePositionSequence" in group and kind not in ("CR", "DX"):
                stated = (
                    source.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0] if frame else source
                )
                own = group.PlanePositionSequence[0].ImagePositionPatient
                assert np.allclose(stated.ImagePositionPatient, own, atol=TOLERANCE_MM)
    evidence = objects["findings"].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {one.ReferencedSOPInstanceUID for item in evidence for one in item.ReferencedSOPSequence}
    assert named == {*sources, objects["segmentation"].SOPInstanceUID, objects["anomaly_map"].SOPInstanceUID}


def test_of_a_file_of_several_volumes_only_the_frames_of_one_are_referred_to(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    pixels = dicoms.voxels((6, *SHAPE[1:]))

    def echo(index: int, group: Dataset) -> None:
        group.MREchoSequence = [dicoms.with_elements(EffectiveEchoTime=float(10 + 80 * (index % 2)))]

    places = [(-10, -20, 30 + 3 * (k // 2)) for k in range(6)]
    dicoms.save(dicoms.enhanced(pixels, places, frame=echo), tmp_path / "scan" / "echoes.dcm")
    pm = reread(result_of(tmp_path / "scan", frame=1).to_dicom(), tmp_path)["anomaly_map"]
    assert sorted(source_of(group)[1] for group in pm.PerFrameFunctionalGroupsSequence) == [2, 4, 6]


def test_segments_are_the_mask_and_say_what_made_them(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    folder = series(tmp_path / "scan", "classic")
    result = result_of(folder)
    result.save(tmp_path / "out", dicom=True)
    seg = segread(tmp_path / "out" / "dicom" / "segmentation.dcm")
    uids = [volume_plane.uid for volume_plane in result.scan.reference.planes]
    pixels = seg.get_pixels_by_source_instance(uids, combine_segments=True, skip_overlap_checks=True)
    _, labels, _ = segment(result.anomaly_map, 3.0, 0.0)
    assert np.array_equal(pixels, sitk.GetArrayFromImage(labels))
    assert np.array_equal(pixels > 0, sitk.GetArrayFromImage(result.mask) > 0)
    model = result.provenance["model"]
    for number in seg.segment_numbers:
        segment_ = seg.get_segment_description(number)
        assert segment_.segmented_property_category == codes.SCT.MorphologicallyAbnormalStructure
        assert segment_.segmented_property_type == codes.SCT.Lesion
        assert segment_.anatomic_regions[0] == codes.SCT.Brain
        assert segment_.algorithm_type.value == "AUTOMATIC"
        (algorithm,) = segment_.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (model["name"], model["version"])
        assert f"weights_sha256={model['sha256']}" in algorithm.AlgorithmParameters
    for kind in ("segmentation", "anomaly_map", "findings"):
        data = dcmread(tmp_path / "out" / "dicom" / f"{kind}.dcm")
        assert "research use only" in data.SeriesDescription
        assert (data.StudyInstanceUID, data.PatientID, data.StudyID) == ("1.2.3.4", "7", "S7")
        assert data.SeriesNumber == 400 + ("segmentation", "anomaly_map", "findings").index(kind) + 1
    assert seg.FrameOfReferenceUID == "1.2.3.5"


def test_the_map_says_what_its_numbers_mean(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    data = reread(result_of(series(tmp_path / "scan", "classic")).to_dicom(), tmp_path)["anomaly_map"]
    (mapping,) = data.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert "healthy tail probability" in mapping.LUTExplanation
    assert data.ContentQualification == "RESEARCH"
    assert data.BurnedInAnnotation == "NO"


@pytest.mark.parametrize(("kind", "size", "unit"), [("classic", codes.SCT.Volume, "ml"), ("DX", codes.SCT.Area, "mm2")])
def test_the_report_gives_each_finding_with_its_segment(
    tmp_path: Path, result_of: Callable[..., Result], kind: str, size: object, unit: str
) -> None:
    result = result_of(series(tmp_path / "scan", kind))
    objects = reread(result.to_dicom(), tmp_path)
    content = srread(tmp_path / "findings.dcm").content
    groups = [*content.get_volumetric_roi_measurement_groups(), *content.get_planar_roi_measurement_groups()]
    tracked = {item.TrackingUID: item.SegmentNumber for item in objects["segmentation"].SegmentSequence}
    assert len(groups) == len(result.findings) == 3
    for group, finding in zip(groups, result.findings, strict=True):
        assert tracked[group.tracking_uid] == finding.id
        measured = [(one.name.value, one.value, one.unit.value) for one in group.get_measurements()]
        assert measured[0] == (size.value, pytest.approx(finding.size, abs=5e-4), unit)  # type: ignore[attr-defined]
        assert [value for _, value, _ in measured[1:3]] == pytest.approx([finding.peak_score, finding.mean_score])
        centre = [value for name, value, _ in measured if name.startswith("centre")]
        if kind == "classic":
            right, anterior, superior = finding.centroid_ras
            assert centre == pytest.approx([-right, -anterior, superior])
        else:
            marked = sitk.GetArrayFromImage(segment(result.anomaly_map, 3.0, 0.0, min_area=0.0)[1])[0] == finding.id
            assert centre == pytest.approx(np.argwhere(marked).mean(axis=0)[::-1])
    (whole,) = content.get_image_measurement_groups()
    assert [one.value for one in whole.get_measurements()][::2] == [3, pytest.approx(result.score)]
    assert whole.get_measurements()[2].name.meaning.startswith("Whole-image score")
    (observer,) = content.get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device
    attributes = observer.observer_identifying_attributes
    assert attributes.model_name == "{name} {version}".format(**result.provenance["model"])
    comments = [item.TextValue for item in content[0].ContentSequence if item.name == codes.DCM.Comment]
    assert comments == ["For research use only. Not for diagnosis.", "The scan is doubtful."]
    data = objects["findings"]
    assert (data.VerificationFlag, data.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_the_report_names_the_side_of_a_finding(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    first, second, third = result.findings
    placed = [replace(first, place="left frontal lobe"), replace(second, place="right cerebellum"), third]
    reread(replace(result, findings=placed).to_dicom(), tmp_path)
    groups = srread(tmp_path / "findings.dcm").content.get_volumetric_roi_measurement_groups()
    sides = [group.finding_sites[0].laterality for group in groups]
    assert sides == [codes.SCT.Left, codes.SCT.Right, None]


def test_a_film_without_place_gets_a_mask_pixel_by_pixel_and_a_map_in_a_space_of_its_own(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    result = result_of(series(tmp_path / "scan", "CR"))
    objects = reread(result.to_dicom(), tmp_path)
    seg = objects["segmentation"]
    assert "FrameOfReferenceUID" not in seg
    assert seg.SegmentSequence[0].AnatomicRegionSequence[0].CodeMeaning == "Chest"
    assert np.array_equal(seg.pixel_array.max(axis=0), sitk.GetArrayFromImage(result.mask)[0])
    assert objects["anomaly_map"].FrameOfReferenceUID not in ("", "1.2.3.5")
    # The header states no size of its pixels, so the report counts them.
    groups = srread(tmp_path / "findings.dcm").content.get_planar_roi_measurement_groups()
    assert {group.get_measurements()[0].unit.value for group in groups} == {"{pixels}"}


def test_a_place_that_a_film_does_not_state_is_put_into_no_frame_of_reference(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    """Some films name a frame of reference and not where they lie in it."""
    folder = series(tmp_path / "scan", "DX")
    (path,) = folder.iterdir()
    dicoms.save(dicoms.changed(dcmread(path), FrameOfReferenceUID="1.2.3.5"), path)
    objects = result_of(folder).to_dicom()
    assert "FrameOfReferenceUID" not in objects["segmentation"]
    assert objects["anomaly_map"].FrameOfReferenceUID != "1.2.3.5"


def test_slices_without_a_frame_of_reference_share_one_of_their_own(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    dicoms.write(tmp_path / "scan", dicoms.classic(dicoms.voxels(SHAPE), FrameOfReferenceUID=None))
    objects = result_of(tmp_path / "scan").to_dicom()
    uid = objects["segmentation"].FrameOfReferenceUID
    assert uid.startswith("1.2.826.0.1.3680043.8.498.")
    assert uid == objects["anomaly_map"].FrameOfReferenceUID


def test_the_same_result_has_the_same_uids_and_another_has_others(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    folder = series(tmp_path / "scan", "classic")
    first, again = result_of(folder), result_of(folder)
    options = {**again.provenance["options"], "batch_size": 7}  # as much as fitted into memory that day
    about = {"date_utc": "2031-01-02T03:04:05+00:00", "options": options}
    later = replace(again, provenance={**again.provenance, **about})

    def uids(result: Result) -> list[str]:
        found = []
        for data in result.to_dicom(pdf=True).values():
            data.walk(lambda _, element: found.append(str(element.value)) if element.VR == "UI" else None)
        return found

    assert uids(first) == uids(later)
    made = {data.SOPInstanceUID for data in first.to_dicom(pdf=True).values()}
    assert len(made) == 4
    for other in (first.at(2.5), replace(first, provenance={**first.provenance, "method": "another"})):
        assert not made & {data.SOPInstanceUID for data in other.to_dicom(pdf=True).values()}
    tracked = {item.TrackingUID for item in first.to_dicom()["segmentation"].SegmentSequence}
    assert len(tracked) == 3


def test_bytes_are_the_same_when_a_result_is_written_twice(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    for name in ("a", "b"):
        result.save(tmp_path / name, dicom_pdf=True)
    assert (tmp_path / "a" / "dicom" / "report.dcm").is_file()
    for file in (tmp_path / "a" / "dicom").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "dicom" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 144", "Иванов^Иван"), ("ISO_IR 192", "Yamada^Tarou=山田^太郎")],
)
def test_names_in_any_character_set_arrive_whole(
    tmp_path: Path, result_of: Callable[..., Result], charset: str, name: str
) -> None:
    about = {"SpecificCharacterSet": charset, "PatientName": name, "StudyDescription": name[:6]}
    dicoms.write(tmp_path / "scan", dicoms.classic(dicoms.voxels(SHAPE), **about))
    for data in reread(result_of(tmp_path / "scan").to_dicom(pdf=True), tmp_path).values():
        assert (str(data.PatientName), data.StudyDescription) == (name, name[:6])


def test_values_that_are_none_are_left_out_and_nothing_is_printed(
    tmp_path: Path, result_of: Callable[..., Result], capfd: pytest.CaptureFixture[str]
) -> None:
    files = dicoms.classic(dicoms.voxels(SHAPE), PatientName="Doe", PatientSex="W", StudyTime="about noon")
    for data in files:
        data.add_new("PatientBirthDate", "DA", "unknown")
        data.add_new("PatientWeight", "DS", "80")
        data["PatientWeight"]._value = "80,5"
    dicoms.write(tmp_path / "scan", files)
    objects = reread(result_of(tmp_path / "scan").to_dicom(pdf=True), tmp_path)
    for data in objects.values():
        assert (data.PatientName, data.PatientSex, data.StudyTime, data.PatientBirthDate) == ("Doe", "", "", "")
        assert "PatientWeight" not in data
    assert capfd.readouterr() == ("", "")


def test_flags_of_the_source_go_on(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    files = dicoms.classic(dicoms.voxels(SHAPE), BurnedInAnnotation="YES")
    dicoms.changed(
        files[3],
        LossyImageCompression="01",
        LossyImageCompressionRatio="12",
        LossyImageCompressionMethod="ISO_15444_1",
    )
    dicoms.write(tmp_path / "scan", files)
    objects = reread(result_of(tmp_path / "scan").to_dicom(), tmp_path)
    for data in (objects["segmentation"], objects["anomaly_map"]):
        assert (data.LossyImageCompression, data.LossyImageCompressionMethod) == ("01", "ISO_15444_1")
    assert objects["anomaly_map"].BurnedInAnnotation == "YES"


def test_without_findings_there_is_a_report_that_says_so_and_no_segmentation(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    """What an earlier result had is gone with it."""
    folder = series(tmp_path / "scan", "classic")
    result_of(folder).save(tmp_path / "out", dicom=True)
    assert (tmp_path / "out" / "dicom" / "segmentation.dcm").is_file()
    files = result_of(folder, found=False).save(tmp_path / "out", dicom=True)
    assert sorted(path.name for path in (tmp_path / "out" / "dicom").iterdir()) == ["anomaly_map.dcm", "findings.dcm"]
    assert "dicom_segmentation" not in files
    (whole,) = srread(files["dicom_findings"]).content.get_image_measurement_groups()
    assert [one.value for one in whole.get_measurements()][:2] == [0, 0]
    result_of(folder).save(tmp_path / "out")
    assert not (tmp_path / "out" / "dicom").exists()


@pytest.mark.parametrize("kind", ["classic", "enhanced", "CR", "DX", "nothing found"])
def test_the_report_is_a_pdf_of_the_scans_study(tmp_path: Path, result_of: Callable[..., Result], kind: str) -> None:
    folder = series(tmp_path / "scan", "classic" if kind == "nothing found" else kind)
    sources = {data.SOPInstanceUID: data for data in map(dcmread, sorted(folder.iterdir()))}
    result = result_of(folder, found=kind != "nothing found")
    objects = reread(result.to_dicom(pdf=True), tmp_path)
    data = objects["report"]
    assert (data.SOPClassUID, data.Modality) == (EncapsulatedPDFStorage, "DOC")
    assert (data.ConversionType, data.MIMETypeOfEncapsulatedDocument) == ("WSD", "application/pdf")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyID", "StudyDate"):
        assert data[keyword] == objects["findings"][keyword]
    assert data.StudyInstanceUID == next(iter(sources.values())).StudyInstanceUID
    references = {item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for item in data.SourceInstanceSequence}
    assert references == {uid: one.SOPClassUID for uid, one in sources.items()}
    assert len(data.EncapsulatedDocument) % 2 == 0
    assert 0 <= len(data.EncapsulatedDocument) - data.EncapsulatedDocumentLength <= 1
    pages = PdfReader(BytesIO(data.EncapsulatedDocument[: data.EncapsulatedDocumentLength]), strict=True).pages
    text = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "For research use only. Not for diagnosis." in text and result.name in text
    assert data.BurnedInAnnotation == "YES"  # what the scan is called
    assert ("3 findings" in text) == (kind != "nothing found")
    assert data.SeriesDescription == "Anomaly report, research use only"
    assert (data.SeriesNumber, data.VerificationFlag) == (404, "UNVERIFIED")


def pages_of(data: Dataset) -> str:
    """The text of an encapsulated PDF, with single blanks."""
    pages = PdfReader(BytesIO(data.EncapsulatedDocument)).pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def test_the_pdf_tells_patient_study_date_and_series_and_the_page_none_of_them(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    stated = {"PatientID": "MRN-0815", "StudyDate": "20250102", "SeriesDescription": "FLAIR sag CS"}
    folder = tmp_path / "scan"
    dicoms.write(
        folder, [dicoms.changed(dcmread(path), **stated) for path in series(tmp_path / "s", "classic").iterdir()]
    )
    result = result_of(folder)
    told = "Patient ID MRN-0815 · study of 02 January 2025 · FLAIR sag CS"
    assert told in pages_of(result.to_dicom(pdf=True)["report"])
    assert "MRN-0815" not in render_report(result) and "January 2025" not in render_report(result)
    for path in folder.iterdir():
        dicoms.save(dicoms.changed(dcmread(path), PatientID="", StudyDate=None), path)
    text = pages_of(result_of(folder).to_dicom(pdf=True)["report"])
    assert "Patient ID" not in text and "study of" not in text and "FLAIR sag CS" in text


def test_the_pdf_of_an_anonymous_result_names_nobody(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    given = {**result.provenance["input"], "title": "scan", "path": "", "metadata": {"modality": "MR"}}
    text = pages_of(replace(result, provenance={**result.provenance, "input": given}).to_dicom(pdf=True)["report"])
    assert "Patient ID" in pages_of(result.to_dicom(pdf=True)["report"])
    assert "Patient ID" not in text and "study of" not in text


def test_the_report_comes_only_where_it_is_asked_for(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    written = result.save(tmp_path / "out", dicom_pdf=True)
    assert {kind for kind in written if kind.startswith("dicom")} == {
        "dicom_segmentation",
        "dicom_anomaly_map",
        "dicom_findings",
        "dicom_report",
    }
    assert written["dicom_report"] == tmp_path / "out" / "dicom" / "report.dcm"
    assert "report" not in result.to_dicom()
    result.save(tmp_path / "out", dicom=True)  # which takes the place of the earlier one
    assert not written["dicom_report"].exists() and written["dicom_findings"].exists()


def test_the_report_shows_all_contrasts_and_refers_to_the_first_ones_series(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    other = dicoms.classic(dicoms.voxels(SHAPE, 1), SeriesInstanceUID="1.2.3.99", SeriesDescription="T1")
    both = {**result.scan.channels, "T1": read_volume(dicoms.write(tmp_path / "t1", other))}
    data = replace(result, scan=Scan(both)).to_dicom(pdf=True)["report"]
    text = " ".join(page.extract_text() for page in PdfReader(BytesIO(data.EncapsulatedDocument)).pages)
    assert "mask's outline, T1." in " ".join(text.split())
    named = {item.ReferencedSOPInstanceUID for item in data.SourceInstanceSequence}
    assert named == {data.SOPInstanceUID for data in map(dcmread, (tmp_path / "scan").iterdir())}


def test_a_source_that_is_gone_or_changed_costs_the_dicom_objects_alone(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    folder = series(tmp_path / "scan", "classic")
    result = result_of(folder)
    path = sorted(folder.iterdir())[1]
    path.rename(tmp_path / "elsewhere.dcm")
    with pytest.raises(InputError, match=r"no longer there.*All other results are in") as caught:
        result.save(tmp_path / "out", dicom=True)
    assert path.name in caught.value.what
    assert not (tmp_path / "out" / "dicom").exists()
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert {"heat.nii.gz", "mask.nii.gz", "report.html"} <= set(record["files_sha256"])
    data = dcmread(tmp_path / "elsewhere.dcm")
    dicoms.save(dicoms.changed(data, SOPInstanceUID=generate_uid()), path)
    with pytest.raises(InputError, match="changed since"):
        result.save(tmp_path / "out", dicom=True)


def test_a_file_of_the_users_in_the_folder_stays(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    (tmp_path / "out" / "dicom").mkdir(parents=True)
    (tmp_path / "out" / "dicom" / "findings.dcm").write_text("mine")
    with pytest.raises(InputError, match="not known as a result"):
        result.save(tmp_path / "out", dicom=True)
    assert (tmp_path / "out" / "dicom" / "findings.dcm").read_text() == "mine"
    assert not (tmp_path / "out" / "heat.nii.gz").exists()


def test_of_several_channels_the_first_ones_series_is_referred_to(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    other = dicoms.classic(dicoms.voxels(SHAPE, 1), SeriesInstanceUID="1.2.3.99", SeriesDescription="T1")
    both = {**result.scan.channels, "T1": read_volume(dicoms.write(tmp_path / "t1", other))}
    data = replace(result, scan=Scan(both)).to_dicom()["segmentation"]
    assert [item.SeriesInstanceUID for item in data.ReferencedSeriesSequence] == [dicoms.SERIES]
    assert data.SOPInstanceUID != result.to_dicom()["segmentation"].SOPInstanceUID
    one_volume = {"FLAIR": replace(result.scan.reference, planes=()), "T1": both["T1"]}
    with pytest.raises(InputError, match="was not read from DICOM"):
        replace(result, scan=Scan(one_volume)).to_dicom()


def test_a_scan_that_is_not_dicom_is_refused(small_result: Result) -> None:
    with pytest.raises(InputError, match="was not read from DICOM"):
        small_result.to_dicom()


def test_without_highdicom_the_error_says_what_to_install(
    tmp_path: Path, result_of: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'diffusion-anomaly\[dicom\]'"):
        result.to_dicom()


def test_without_matplotlib_the_report_alone_is_refused(
    tmp_path: Path, result_of: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_of(series(tmp_path / "scan", "classic"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert len(result.to_dicom()) == 3
    with pytest.raises(InputError, match="The report as a PDF needs the package matplotlib"):
        check_source(result.scan.reference, pdf=True)  # which is asked before anything is computed


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_series_without_uids_cannot_be_referred_to(
    tmp_path: Path, result_of: Callable[..., Result], keyword: str
) -> None:
    dicoms.write(tmp_path / "scan", dicoms.classic(dicoms.voxels(SHAPE), **{keyword: None}))
    with pytest.raises(InputError, match=f"states no {keyword}"):
        result_of(tmp_path / "scan").to_dicom()


@pytest.fixture
def head(tmp_path: Path, scans: Path) -> Path:
    """The small head as a DICOM series."""
    image = sitk.ReadImage(str(scans / "scan.nii.gz"))
    pixels = np.clip(sitk.GetArrayFromImage(image), 0, None).astype(np.uint16)
    spacing = image.GetSpacing()
    files = dicoms.classic(pixels, origin=image.GetOrigin(), spacing=spacing[1::-1], step=spacing[2], **ABOUT)
    return dicoms.write(tmp_path / "head", files)


def test_the_command_writes_them_beside_the_other_results(
    tmp_path: Path, head: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["detect", str(head), "--output", str(tmp_path / "out"), "--method", "intensity", "--dicom-pdf"]
    assert cli.main([*command, "--mask", str(scans / "brain.nii.gz")]) == 0
    assert (tmp_path / "out" / "dicom" / "report.dcm").is_file()
    assert str(tmp_path / "out" / "dicom" / "segmentation.dcm") in capsys.readouterr().out.replace("\n", "")
    seg = segread(tmp_path / "out" / "dicom" / "segmentation.dcm")
    volume = seg.get_volume(combine_segments=True, skip_overlap_checks=True)
    at = volume.map_indices_to_reference(np.argwhere(volume.array > 0))
    assert np.abs(at.mean(axis=0) - phantom.LESION_CENTRE).max() < 7  # a slice is 7 mm thick
    # The results are no scan, whether alone or back in the study's folder.
    assert cli.main(["detect", str(tmp_path / "out" / "dicom" / "anomaly_map.dcm"), "-o", str(tmp_path / "no")]) == 2
    shutil.copytree(tmp_path / "out" / "dicom", tmp_path / "study" / "results")
    shutil.copytree(head, tmp_path / "study" / "scan")
    assert read_volume(tmp_path / "study").sha256 == read_volume(head).sha256


@pytest.mark.parametrize(
    ("scan", "options", "says"), [("nifti", [], "was not read from DICOM"), ("dicom", ["--anonymous"], "anonymous")]
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path,
    head: Path,
    scans: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scan: str,
    options: list[str],
    says: str,
) -> None:
    monkeypatch.setattr(Detector, "__call__", lambda *_, **__: pytest.fail("it was computed"))
    source = head if scan == "dicom" else scans / "scan.nii.gz"
    command = ["detect", str(source), "--output", str(tmp_path / "out"), "--method", "intensity"]
    for asked_for in ("--dicom", "--dicom-pdf"):
        assert cli.main([*command, asked_for, *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy, of Debian's package dicom3tools")
@pytest.mark.parametrize(
    ("kind", "found"),
    [(kind, True) for kind in ("classic", "enhanced", "two files", "CR", "DX", "CT", "knee", "sides")]
    + [("classic", False), ("CR", False)],
)
def test_an_independent_validator_finds_no_error(
    tmp_path: Path, result_of: Callable[..., Result], kind: str, found: bool
) -> None:
    headers = {
        "CT": {"sop_class": CT, "Modality": "CT"},
        "knee": {"BodyPartExamined": "KNEE", "Laterality": "L"},
        "sides": {"Laterality": ""},  # as many scanners write it for a head
    }
    if kind in headers:
        files = dicoms.classic(dicoms.voxels(SHAPE), **headers[kind], **ABOUT)
        folder = dicoms.write(tmp_path / "scan", files)
    else:
        folder = series(tmp_path / "scan", kind)
    for name, data in result_of(folder, found=found).to_dicom(pdf=True).items():
        path = dicoms.save(data, tmp_path / f"{name}.dcm")
        checked = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        lines = (checked.stdout + checked.stderr).splitlines()
        assert any(
            line in ("Segmentation", "ParametricMap", "Comprehensive3DSR", "EncapsulatedPDF") for line in lines
        ), lines
        assert not [line for line in lines if line.startswith("Error")]


def test_highdicom_is_not_imported_before_something_is_written() -> None:
    """It takes a second, and Slicer has none."""
    code = "import sys, diffusion_anomaly.api, diffusion_anomaly.results.saving; print('highdicom' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("field", ["dicom", "dicom_pdf"])
def test_a_job_of_the_worker_asks_for_them_too(tmp_path: Path, head: Path, scans: Path, field: str) -> None:
    about = {"input": str(head), "output": "results", "method": "intensity", "mask": str(scans / "brain.nii.gz")}
    options = {"options": {"device": "cpu"}, field: True}
    (tmp_path / "job.json").write_text(json.dumps({"schema_version": 2, **about, **options}))
    worker = Worker(tmp_path)
    assert worker.end() == 0
    (result,) = worker.of(protocol.Result)
    worker.close()
    assert segread(result.files["dicom_segmentation"]).segment_numbers
    assert ("dicom_report" in result.files) == (field == "dicom_pdf")


def asked(folder: Path, result: Result, series_of: Path, threshold: float, turned: bool = False) -> Path:
    """What Slicer writes to have the objects of a result made, with slices counted the other way if it is turned."""
    folder.mkdir()
    for name, image in (
        (redrawing.SCAN, result.scan.reference.image),
        (redrawing.ANOMALY_MAP, result.anomaly_map),
        (redrawing.BRAIN, result.brain),
    ):
        sitk.WriteImage(sitk.Flip(image, (False, True, True)) if turned else image, str(folder / name))
    redrawing.write_request(redrawing.Request("scan", threshold, 0.0, result.provenance), folder)
    shutil.copytree(series_of, folder / again.SERIES)
    return folder


@pytest.mark.parametrize("turned", [False, True], ids=["as read", "counted the other way"])
def test_objects_are_made_again_of_what_slicer_holds(
    tmp_path: Path, result_of: Callable[..., Result], turned: bool
) -> None:
    source = series(tmp_path / "scan", "classic")
    result = result_of(source)
    expected = reread(result.at(3.0).to_dicom(), tmp_path)
    written = again.write_again(asked(tmp_path / "asked", result, source, 3.0, turned))
    assert list(written) == ["segmentation", "anomaly_map", "findings"]
    made = {kind: dcmread(path) for kind, path in written.items()}
    assert np.array_equal(made["segmentation"].pixel_array, expected["segmentation"].pixel_array)
    assert made["segmentation"].StudyInstanceUID == expected["segmentation"].StudyInstanceUID
    assert len(made["segmentation"].SegmentSequence) == 3
    sides = [
        [group.finding_sites[0].laterality for group in srread(path).content.get_volumetric_roi_measurement_groups()]
        for path in (tmp_path / "findings.dcm", written["findings"])
    ]
    assert sides[0] == sides[1] and any(sides[0])


def test_findings_that_hardly_exceed_the_threshold_are_in_none_of_the_objects(
    tmp_path: Path, result_of: Callable[..., Result]
) -> None:
    source = series(tmp_path / "scan", "classic")
    whole = result_of(source)
    lowest, second, _ = sorted(finding.peak_score for finding in whole.findings)
    result = whole.at(3.0, peak_margin=(lowest + second) / 2 - 3.0)
    made = result.to_dicom()
    written = again.write_again(asked(tmp_path / "asked", result, source, 3.0))
    for segmentation in (made["segmentation"], dcmread(written["segmentation"])):
        assert len(segmentation.SegmentSequence) == 2
        assert segmentation.pixel_array.sum() == (sitk.GetArrayViewFromImage(result.mask) > 0).sum()


def test_rejected_findings_are_in_none_of_the_objects(tmp_path: Path, result_of: Callable[..., Result]) -> None:
    source = series(tmp_path / "scan", "classic")
    result = result_of(source)
    folder = asked(tmp_path / "asked", result, source, 3.0)
    _, labels, _ = segment(result.anomaly_map, 3.0, 0.0)
    sitk.WriteImage(sitk.Cast(labels == 1, sitk.sitkUInt8), str(folder / redrawing.REJECTED))
    made = {kind: dcmread(path) for kind, path in again.write_again(folder).items()}
    assert [item.SegmentNumber for item in made["segmentation"].SegmentSequence] == [1, 2]
    marked = made["segmentation"].pixel_array.sum()
    assert marked == (sitk.GetArrayViewFromImage(labels) > 1).sum() > 0


@pytest.mark.parametrize("change", ["moved", "other values", "anonymous"])
def test_objects_of_another_series_than_the_scans_are_refused(
    tmp_path: Path, result_of: Callable[..., Result], capsys: pytest.CaptureFixture[str], change: str
) -> None:
    source = series(tmp_path / "scan", "classic")
    result = result_of(source)
    folder = asked(tmp_path / "asked", result, source, 3.0)
    if change == "moved":
        for name in (redrawing.SCAN, redrawing.ANOMALY_MAP, redrawing.BRAIN):
            image = sitk.ReadImage(str(folder / name))
            image.SetOrigin(np.add(image.GetOrigin(), 5.0).tolist())
            sitk.WriteImage(image, str(folder / name))
    elif change == "other values":
        sitk.WriteImage(sitk.ReadImage(str(folder / redrawing.SCAN)) * 3 + 50, str(folder / redrawing.SCAN))
    else:
        provenance = {**result.provenance, "input": {**result.provenance["input"], "path": ""}}
        redrawing.write_request(redrawing.Request("scan", 3.0, 0.0, provenance), folder)
    assert probe.main(["dicom", str(folder)]) == 0
    answer = json.loads(capsys.readouterr().out)
    said = {"moved": "does not lie where", "other values": "not those of its DICOM", "anonymous": "name the patient"}
    assert not answer["ok"] and said[change] in answer["problem"]
