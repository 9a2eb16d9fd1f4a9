"""From a study that came to its results: what is chosen, what goes into quarantine, and what is done again."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import dicoms
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError

pytest.importorskip("pynetdicom", reason="needs the extra dicom-node")
pacs = pytest.importorskip("pacs")

from diffusion_anomaly.dicom_network.choosing import choose_sources  # noqa: E402
from diffusion_anomaly.dicom_network.config import Destination, NodeConfig  # noqa: E402
from diffusion_anomaly.dicom_network.looking import MOST_STARTS, Looker  # noqa: E402
from diffusion_anomaly.dicom_network.node import Node  # noqa: E402
from diffusion_anomaly.dicom_network.store import DONE, QUARANTINE, QUEUE, SENDING, Store  # noqa: E402
from pacs import SUCCESS, ended, files_in, log_of, of_two_patients, reason  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_report")


def test_a_study_comes_back_with_results_that_refer_to_it(config: NodeConfig, detector: Detector) -> None:
    study = generate_uid()
    files = pacs.scan_files(study)
    with pacs.running_with_a_pacs(config, detector) as (node, came):
        assert pacs.send(files, node.receiver.port) == [SUCCESS] * len(files)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE
    assert {data.Modality for data in came} == {"SEG", "OT", "SR"}
    assert {data.StudyInstanceUID for data in came} == {study}
    assert {data.PatientID for data in came} == {"7"}
    seg = next(data for data in came if data.Modality == "SEG")
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {data.SOPInstanceUID for data in files}
    assert len(seg.SegmentSequence) == 1


@pytest.mark.parametrize("objects", [["findings"], ["findings", "report"]])
def test_the_report_is_written_where_a_destination_wants_it(
    config: NodeConfig, detector: Detector, tmp_path: Path, objects: list[str]
) -> None:
    there = {"one": Destination(folder=str(tmp_path / "out"), objects=objects)}
    with pacs.running(replace(config, destinations=there), detector) as node:
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE
    assert sorted(path.stem for path in (tmp_path / "out").glob("*/*.dcm")) == objects
    assert (job.results / "dicom" / "report.dcm").is_file() == ("report" in objects)


def test_the_same_study_again_does_nothing_and_one_with_a_new_image_is_looked_at_again(
    config: NodeConfig, detector: Detector
) -> None:
    study = generate_uid()
    files = pacs.scan_files(study)
    with pacs.running_with_a_pacs(config, detector) as (node, came):
        pacs.send(files[:-1], node.receiver.port)
        pacs.wait_for(ended(node))
        assert len(came) == 3
        pacs.send(files[:-1], node.receiver.port)
        pacs.send([*came], node.receiver.port)  # as an archive's rules may do
        pacs.wait_for(ended(node))
        assert (len(came), len(node.store.jobs(DONE, QUARANTINE))) == (3, 2)
        pacs.send(files[-1:], node.receiver.port)
        pacs.wait_for(lambda: len(came) == 6)
        pacs.wait_for(ended(node))
    seg = next(data for data in reversed(came) if data.Modality == "SEG")
    referred = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len(referred) == len(files)  # with those that came before
    # What is no image was kept too.
    others = [job for job in node.store.jobs(DONE) if job.record.others and not job.record.images]
    assert [sorted(job.record.others) for job in others] == [sorted(str(data.SOPInstanceUID) for data in came[:3])]


def test_another_series_of_a_study_does_not_make_its_results_again(config: NodeConfig, detector: Detector) -> None:
    study = generate_uid()
    with pacs.running_with_a_pacs(config, detector) as (node, came):
        pacs.send(pacs.scan_files(study), node.receiver.port)
        pacs.wait_for(ended(node))
        pacs.send(pacs.scan_files(study, "T1 axial"), node.receiver.port)
        pacs.wait_for(lambda: len(node.store.jobs(DONE)) == 2)
    assert len(came) == 3
    assert "as it was" in node.store.jobs(DONE)[-1].record.note


def test_an_image_that_changed_takes_the_place_of_the_earlier_one_which_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "node")
    study = generate_uid()
    first, second = (dicoms.image(dicoms.voxels((4, 5), seed), StudyInstanceUID=study) for seed in (1, 2))
    second.SOPInstanceUID = first.SOPInstanceUID
    for number, data in enumerate((first, second, second)):
        store.add(dicoms.save(data, tmp_path / f"{number}.dcm").read_bytes())
    job = store.complete(study)
    assert job is not None
    assert list(files_in(job.images).values()) == [(tmp_path / "1.dcm").read_bytes()]
    assert list(files_in(job.folder / "replaced").values()) == [(tmp_path / "0.dcm").read_bytes()]


def test_a_study_of_which_nothing_came_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "node")
    (tmp_path / "node" / "incoming" / "1.2.3" / "images").mkdir(parents=True)  # as a node leaves that is killed there
    assert store.complete("1.2.3") is None
    assert (store.incoming(), store.jobs()) == ([], [])


def test_a_file_that_cannot_be_read_any_more_is_kept(tmp_path: Path) -> None:
    study = generate_uid()
    data = dicoms.image(dicoms.voxels((4, 5)), StudyInstanceUID=study)
    content = dicoms.save(data, tmp_path / "one.dcm").read_bytes()
    store = Store(tmp_path / "node")
    store.add(content)
    store.complete(study)
    store.add(content)
    broken = tmp_path / "node" / "incoming" / study / "images" / "9.9.dcm"
    broken.write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    assert store.complete(study) is None
    assert [path.name for path in (tmp_path / "node").glob("done/*/images/*")] == ["9.9.dcm"]


def with_gap(study: str) -> list[Dataset]:
    files = pacs.scan_files(study)
    return [*files[:2], *files[3:]]


def cut_short(study: str) -> list[Dataset]:
    return [dicoms.changed(data, PixelData=b"12") for data in pacs.scan_files(study)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda study: pacs.scan_files(study, "T2 axial"), "no series that is FLAIR"),
        (lambda study: pacs.scan_files(study, ImageType=["DERIVED", "SECONDARY"]), "no series that is FLAIR"),
        (lambda study: pacs.scan_files(study, Modality="CT"), "no series that is FLAIR"),
        (with_gap, "missing"),
        (of_two_patients, "2 patients"),
        (cut_short, "2 bytes of pixels"),
    ],
    ids=["another contrast", "derived", "another modality", "a slice is missing", "two patients", "no pixels"],
)
def test_what_cannot_be_looked_at_goes_into_quarantine_with_the_reason(
    config: NodeConfig, detector: Detector, make: Callable[[str], list[Dataset]], said: str
) -> None:
    study = generate_uid()
    files = make(study)
    with pacs.running(config, detector) as node:
        assert set(pacs.send(files, node.receiver.port)) == {SUCCESS}
        (job,) = pacs.wait_for(ended(node))
        told = reason(node)
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)  # the next one is looked at
        pacs.wait_for(lambda: node.store.jobs(DONE))
    assert (job.state, told["code"], told["came_from"]) == (QUARANTINE, "bad_input", QUEUE)
    assert said in told["what"] + told["hint"]
    assert len(files_in(job.images)) == len(files)


FLAIR, T1, CT, FILM = (
    ("t2_tirm_tra_dark-fluid", {}),
    ("t1_mprage", {}),
    ("Kopf nativ", {"Modality": "CT"}),
    ("Thorax", {"Modality": "DX"}),
)


@pytest.mark.parametrize(
    ("channels", "patterns", "chosen"),
    [
        (["FLAIR"], {}, [FLAIR]),
        (["T1", "FLAIR"], {}, [T1, FLAIR]),
        (["CT"], {}, [CT]),
        (["X-ray"], {}, [FILM]),
        (["T1", "FLAIR"], {"t1": "KOPF*"}, [CT, FLAIR]),
        (["T2"], {}, None),
        (["FLAIR", "T1"], {"T1": "*dark*"}, None),
    ],
)
def test_the_series_of_each_contrast_is_found(
    tmp_path: Path, channels: list[str], patterns: dict[str, str], chosen: list[Any] | None
) -> None:
    study = generate_uid()
    series = {about[0]: pacs.scan_files(study, about[0], **about[1]) for about in (FLAIR, T1, CT, FILM)}
    dicoms.write(tmp_path, *series.values())
    if chosen is None:
        with pytest.raises(InputError, match=r"no series that is T2|are both"):
            choose_sources(tmp_path, channels, patterns)
        return
    sources, _, notes = choose_sources(tmp_path, channels, patterns)
    assert [source.which for source in sources.values()] == [series[name][0].SeriesInstanceUID for name, _ in chosen]
    assert (list(sources), notes) == (channels, [])


def test_a_contrast_that_the_model_does_not_know_is_named(config: NodeConfig, detector: Detector) -> None:
    with pytest.raises(InputError, match="does not know T7"):
        Node(replace(config, series={"flair": "*", "T7": "*"}), detector)


def test_a_study_moved_back_into_the_queue_is_looked_at_and_sent_again(config: NodeConfig, detector: Detector) -> None:
    with pacs.running_with_a_pacs(config, detector) as (node, came):
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        os.rename(job.folder, node.store.folder / QUEUE / job.name)
        pacs.wait_for(lambda: len(came) == 6)
        (job,) = pacs.wait_for(ended(node))
        assert job.state == DONE
        # Without results there is nothing to send: it is looked at first.
        shutil.rmtree(job.results)
        os.rename(job.folder, node.store.folder / SENDING / job.name)
        pacs.wait_for(lambda: len(came) == 9)


def test_a_model_of_several_contrasts_gets_the_series_of_each(config: NodeConfig, tmp_path: Path) -> None:
    model = pacs.tiny_model(tmp_path / "two", channels=["FLAIR", "T1"], modality="FLAIR + T1")
    study = generate_uid()
    flair, t1 = pacs.scan_files(study, "FLAIR"), pacs.scan_files(study, "T1", seed=1)
    with pacs.running(config, Detector(Options("intensity", device="cpu"), bundle=model)) as node:
        pacs.send([*t1, *flair], node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE
    seg = dcmread(job.results / "dicom" / "segmentation.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == flair[0].SeriesInstanceUID
    assert f"T1 is series {t1[0].SeriesInstanceUID}" in log_of(config)


def test_a_slice_that_comes_later_takes_the_study_out_of_quarantine(config: NodeConfig, detector: Detector) -> None:
    files = pacs.scan_files(generate_uid())
    with pacs.running(config, detector) as node:
        pacs.send([*files[:2], *files[3:]], node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        assert job.state == QUARANTINE
        pacs.send(files[2:3], node.receiver.port)
        pacs.wait_for(lambda: [job for job in node.store.jobs(DONE) if job.record.made_of])
        jobs = pacs.wait_for(ended(node))
    assert [(len(job.record.images), job.state, bool(job.record.made_of)) for job in jobs] == [
        (5, DONE, False),
        (6, DONE, True),
    ]


def test_a_description_of_the_site_says_which_series_it_is(config: NodeConfig, detector: Detector) -> None:
    files = pacs.scan_files(generate_uid(), "Kopf tra dunkel")
    with pacs.running(replace(config, series={"flair": "*DUNKEL*"}), detector) as node:
        pacs.send(files, node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE and job.record.made_of


def test_of_several_series_the_first_in_order_is_taken(config: NodeConfig, detector: Detector) -> None:
    study = generate_uid()
    axial = pacs.scan_files(study, "t2 flair")
    sagittal = pacs.scan_files(study, "t2 flair sag", ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])
    for k, data in enumerate(sagittal):
        data.ImagePositionPatient = [str(3 * k), "0", "0"]
    with pacs.running(config, detector) as node:
        pacs.send([*sagittal, *axial], node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        log = (Path(config.folder) / "node.log").read_text()
    assert job.state == DONE
    assert dcmread(job.results / "dicom" / "findings.dcm").CurrentRequestedProcedureEvidenceSequence
    assert f"2 series could be FLAIR; {axial[0].SeriesInstanceUID} was taken" in log


def test_an_older_part_of_a_study_makes_way_for_all_of_it(
    config: NodeConfig, detector: Detector, tmp_path: Path
) -> None:
    study = generate_uid()
    store = Store(Path(config.folder))
    files = pacs.scan_files(study)
    for part in (files[:3], files[3:]):
        for data in part:
            store.add(dicoms.save(data, tmp_path / "one.dcm").read_bytes())
        store.complete(study)
    looker = Looker(detector, store, {}, config.retry)
    assert looker.look() and looker.look() and not looker.look()
    assert [len(job.record.images) for job in store.jobs(SENDING)] == [6]
    assert [len(job.record.images) for job in store.jobs(DONE)] == [3]


def test_a_study_that_ends_the_program_is_not_begun_for_ever(config: NodeConfig, detector: Detector) -> None:
    store, study = Store(Path(config.folder)), generate_uid()
    for data in pacs.scan_files(study):
        store.add(dicoms.save(data, Path(config.folder) / "one.dcm").read_bytes())
    job = store.complete(study)
    assert job is not None
    job.record.starts = MOST_STARTS
    job.save()
    Looker(detector, store, {}, config.retry).look()
    (job,) = store.jobs(QUARANTINE)
    assert "ended 3 times" in json.loads((job.folder / "reason.json").read_text())["what"]


def test_a_passing_failure_of_a_detection_is_tried_again(
    config: NodeConfig, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(28, "No space left on device"), MemoryError("cannot allocate memory")]
    before = detector.find_brain

    def find_brain(*given: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return before(*given)

    monkeypatch.setattr(detector, "find_brain", find_brain)
    with pacs.running(config, detector) as node:
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert job.state == DONE and failures == []


@pytest.mark.parametrize("times", [2, 3])
def test_a_fault_of_the_program_is_tried_three_times(
    config: NodeConfig, detector: Detector, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    failures = [RuntimeError("CUDA error: unspecified launch failure")] * times
    before = detector.find_brain

    def find_brain(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return before(*given)

    monkeypatch.setattr(detector, "find_brain", find_brain)
    with pacs.running(config, detector) as node:
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
    assert (job.state, failures) == (DONE if times == 2 else QUARANTINE, [])


def test_two_nodes_do_not_share_a_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(InputError, match="Another node"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_old_images_are_deleted_when_asked_for_and_the_study_is_still_known(
    config: NodeConfig, detector: Detector
) -> None:
    study = generate_uid()
    with pacs.running(replace(config, delete_done_after_days=0), detector) as node:
        node._next_deletion = time.monotonic() + 3600
        pacs.send(pacs.scan_files(study), node.receiver.port)
        (job,) = pacs.wait_for(ended(node))
        files = [dcmread(path) for path in sorted(job.images.glob("*.dcm"))]
        node._next_deletion = 0.0
        pacs.wait_for(lambda: not job.images.exists() and not job.results.exists())
        pacs.send(files, node.receiver.port)
        pacs.wait_for(lambda: not node.store.incoming() and "without a new image" in log_of(config))
        assert [one.name for one in node.store.jobs()] == [job.name]


def test_a_study_that_is_taken_away_does_not_end_the_node(
    config: NodeConfig, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = detector.find_brain

    def find_brain(*given: Any) -> Any:
        for job in node.store.jobs(QUEUE):
            shutil.rmtree(job.folder)
        return before(*given)

    with pacs.running(config, detector) as node:
        monkeypatch.setattr(detector, "find_brain", find_brain)
        pacs.send(pacs.scan_files(generate_uid()), node.receiver.port)
        pacs.wait_for(lambda: "is complete" in log_of(config))
        pacs.wait_for(ended_without_a_trace(node))
        monkeypatch.undo()
        study = generate_uid()
        pacs.send(pacs.scan_files(study), node.receiver.port)
        (job,) = pacs.wait_for(lambda: node.store.jobs(DONE))
        assert job.record.study == study


def ended_without_a_trace(node: Node) -> Callable[[], bool]:
    return lambda: not node.store.incoming() and not node.store.jobs()
