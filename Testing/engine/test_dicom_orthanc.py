"""The node and the DICOMweb client against a real PACS: Orthanc, with its DICOMweb plugin."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pypdf import PdfReader

import dicoms
from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options

pytest.importorskip("pynetdicom", reason="needs the extra dicom-node")
pytest.importorskip("dicomweb_client", reason="needs the extra dicom-node")
pacs = pytest.importorskip("pacs")
if pacs.ORTHANC is None or not list(pacs.PLUGINS.glob("libOrthancDicomWeb*")):
    pytest.skip("needs the Debian packages orthanc and orthanc-dicomweb", allow_module_level=True)

from diffusion_anomaly.dicom_network.config import Destination, Listen, NodeConfig, Peer, Retry  # noqa: E402
from diffusion_anomaly.dicom_network.store import DONE, SENDING  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_report")
RESULTS = ["MR", "OT", "SEG", "SR"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pacs.tiny_model(tmp_path_factory.mktemp("models") / "tiny").path


@pytest.fixture(scope="module")
def detector(model: Path) -> Detector:
    return Detector(Options("intensity", str(model), device="cpu"))


@pytest.fixture(scope="module")
def node_port() -> int:
    return pacs.free_port()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, node_port: int) -> Iterator[Any]:
    orthanc = pacs.Orthanc(tmp_path_factory.mktemp("pacs") / "orthanc", {"anomaly": ("ANOMALY", node_port)})
    yield orthanc
    orthanc.kill()


@pytest.fixture
def study(archive: Any, tmp_path: Path) -> tuple[str, str, list[Dataset]]:
    """A new study in the archive, with a series that the model knows and one that it does not: UID, name, images."""
    uid = generate_uid()
    files = pacs.scan_files(uid, PatientID=uid[-12:])
    others = pacs.scan_files(uid, "T1 axial", seed=1, PatientID=uid[-12:])
    folder = dicoms.write(tmp_path / "scan", files, others)
    return uid, archive.put(sorted(folder.glob("*.dcm"))), files


@pytest.fixture
def config(tmp_path: Path, archive: Any, node_port: int) -> NodeConfig:
    return NodeConfig(
        str(tmp_path / "node"),
        {"pacs": Destination(ae_title="ORTHANC", address="127.0.0.1", port=archive.port)},
        listen=Listen("ANOMALY", [Peer("ORTHANC", "127.0.0.1")], port=node_port),
        complete_after_s=1,
        least_free_mb=0,
        retry=Retry(0.5, 1, 1),
    )


def results_in(archive: Any, name: str) -> dict[str, Dataset]:
    """The objects of a study that are no MR, by modality, as the archive gives them back."""
    found = {}
    for series in archive.get(f"/studies/{name}/series"):
        modality = series["MainDicomTags"]["Modality"]
        if modality != "MR":
            (instance,) = series["Instances"]
            found[modality] = dcmread(BytesIO(archive.file(instance)))
    return found


def test_results_come_back_into_the_study_and_once(
    archive: Any, study: tuple[str, str, list[Dataset]], config: NodeConfig, detector: Detector
) -> None:
    uid, name, files = study
    with pacs.running(config, detector) as node:
        archive.send(name, "anomaly")
        (job,) = pacs.wait_for(lambda: node.store.jobs(DONE))
        assert archive.modalities(name) == ["MR", *RESULTS]
        results = results_in(archive, name)
        # The whole study again, with its results, as a rule of the archive would send it.
        archive.send(name, "anomaly")
        pacs.wait_for(lambda: sum(len(job.record.others) for job in node.store.jobs(DONE)) == 3)
        assert archive.modalities(name) == ["MR", *RESULTS]
    assert {str(data.StudyInstanceUID) for data in results.values()} == {uid}
    assert {str(data.PatientID) for data in results.values()} == {uid[-12:]}
    images = {str(data.SOPInstanceUID) for data in files}
    for modality in ("SEG", "OT"):
        (series,) = results[modality].ReferencedSeriesSequence
        assert series.SeriesInstanceUID == files[0].SeriesInstanceUID
        assert {str(item.ReferencedSOPInstanceUID) for item in series.ReferencedInstanceSequence} == images
    evidence = {
        str(item.ReferencedSOPInstanceUID)
        for one in results["SR"].CurrentRequestedProcedureEvidenceSequence
        for series in one.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == images | {str(results[modality].SOPInstanceUID) for modality in ("SEG", "OT")}
    for kind, modality in (("segmentation", "SEG"), ("anomaly_map", "OT"), ("findings", "SR")):
        assert dcmread(job.results / "dicom" / f"{kind}.dcm") == results[modality]


def test_the_documentations_rule_sends_each_stable_study_and_ends_there(
    config: NodeConfig, detector: Detector, node_port: int, tmp_path: Path
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "dicom-node.md"
    (script,) = re.findall(r"^```lua\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "rule.lua").write_text(script)
    rules = {"LuaScripts": [str(tmp_path / "rule.lua")], "StableAge": 1}
    archive = pacs.Orthanc(tmp_path / "orthanc", {"anomaly": ("ANOMALY", node_port)}, **rules)
    there = {"pacs": Destination(ae_title="ORTHANC", address="127.0.0.1", port=archive.port)}
    files = pacs.scan_files(generate_uid())
    try:
        with pacs.running(replace(config, destinations=there), detector) as node:
            name = archive.put(sorted(dicoms.write(tmp_path / "scan", files).glob("*.dcm")))
            pacs.wait_for(lambda: archive.modalities(name) == RESULTS)
            # The results came back to the node, which starts nothing of them.
            pacs.wait_for(lambda: sum(len(job.record.others) for job in node.store.jobs(DONE)) == 3)
            time.sleep(5)
            assert archive.modalities(name) == RESULTS
            assert len([job for job in node.store.jobs() if job.record.made_of]) == 1
    finally:
        archive.kill()


def test_an_archive_that_is_killed_gets_the_results_when_it_is_back(
    archive: Any, study: tuple[str, str, list[Dataset]], config: NodeConfig, detector: Detector
) -> None:
    _, name, _ = study
    with pacs.running(config, detector) as node:
        archive.send(name, "anomaly")
        archive.kill()
        try:
            pacs.wait_for(
                lambda: any(job.delivery("pacs").tries > 1 for job in node.store.jobs(SENDING)),
            )
        finally:
            archive.start()
        pacs.wait_for(lambda: node.store.jobs(DONE))
    assert archive.modalities(name) == ["MR", *RESULTS]


CONFIG = """
folder: {folder}
detection: {{model: {model}, device: cpu}}
listen:
  ae_title: ANOMALY
  port: {port}
  peers: [{{ae_title: ORTHANC}}]
destinations:
  pacs: {{ae_title: ORTHANC, address: 127.0.0.1, port: {pacs}}}
complete_after_s: 1
least_free_mb: 0
retry: {{first_s: 0.5, longest_s: 1}}
"""


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_node_that_is_killed_anywhere_goes_on_there(
    archive: Any, study: tuple[str, str, list[Dataset]], model: Path, node_port: int, tmp_path: Path
) -> None:
    _, name, files = study
    folder, log = tmp_path / "node", tmp_path / "node" / "node.log"
    (tmp_path / "node.yaml").write_text(CONFIG.format(folder=folder, model=model, port=node_port, pacs=archive.port))
    command = [sys.executable, "-m", "diffusion_anomaly", "dicom-node", str(tmp_path / "node.yaml")]

    def ended_when(
        what: Callable[[], Any], first: Callable[[], Any] = lambda: None, how: int = signal.SIGKILL
    ) -> tuple[int, str]:
        before = log.read_text().count("listening") if log.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            pacs.wait_for(lambda: log.exists() and log.read_text().count("listening") > before)
            first()
            pacs.wait_for(what)
        finally:
            process.send_signal(how)
            _, told = process.communicate(timeout=60)
        return process.returncode, told

    ended_when(lambda: list(folder.glob("incoming/*/images/*.dcm")), lambda: archive.send(name, "anomaly"))
    ended_when(lambda: [path for path in folder.glob("queue/*/study.json") if '"starts": 1' in path.read_text()])
    ended_when(lambda: list(folder.glob("sending/*")) or list(folder.glob("done/*")))
    code, told = ended_when(lambda: list(folder.glob("done/*")), how=signal.SIGTERM)
    assert (code, "Traceback" in told) == (0, False)
    assert "Stopped" in told and log.read_text().endswith("INFO stopped\n")
    assert archive.modalities(name) == ["MR", *RESULTS]
    assert sorted(results_in(archive, name)) == RESULTS[1:]  # a single instance of each
    kept = {path.name for path in folder.glob("done/*/images/*.dcm")}
    assert {f"{data.SOPInstanceUID}.dcm" for data in files} < kept
    assert len(kept) == 2 * len(files)


def test_a_configuration_is_checked_with_its_destinations(
    archive: Any, model: Path, node_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "node.yaml", pacs.free_port()
    text = CONFIG.format(folder=tmp_path / "node", model=model, port=node_port, pacs=archive.port)
    path.write_text(text.replace("destinations:\n", f"destinations:\n  web: {{url: '{archive.web}'}}\n"))
    assert cli.main(["dicom-node", str(path), "--check"]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == ["web: answers", "pacs: answers"]
    path.write_text(text.replace(f"port: {archive.port}", f"port: {other}"))
    assert cli.main(["dicom-node", str(path), "--check"]) == 1
    assert f"ORTHANC at 127.0.0.1:{other} does not answer" in capsys.readouterr().out
    assert not (tmp_path / "node").exists()


def test_results_are_stored_by_dicomweb(
    archive: Any, study: tuple[str, str, list[Dataset]], config: NodeConfig, detector: Detector
) -> None:
    _, name, _ = study
    web = Destination(url=archive.web, objects=["segmentation", "findings"])
    with pacs.running(replace(config, destinations={"web": web}), detector) as node:
        archive.send(name, "anomaly")
        pacs.wait_for(lambda: node.store.jobs(DONE))
    assert archive.modalities(name) == ["MR", "MR", "SEG", "SR"]


def test_the_report_comes_back_where_a_destination_wants_it(
    archive: Any, study: tuple[str, str, list[Dataset]], config: NodeConfig, detector: Detector
) -> None:
    uid, name, files = study
    there = replace(config.destinations["pacs"], objects=["findings", "report"])
    with pacs.running(replace(config, destinations={"pacs": there}), detector) as node:
        archive.send(name, "anomaly")
        (job,) = pacs.wait_for(lambda: node.store.jobs(DONE))
        assert archive.modalities(name) == ["DOC", "MR", "MR", "SR"]
        report = results_in(archive, name)["DOC"]
        # It comes back with the study, and starts nothing.
        archive.send(name, "anomaly")
        pacs.wait_for(lambda: sum(len(job.record.others) for job in node.store.jobs(DONE)) == 2)
        assert archive.modalities(name) == ["DOC", "MR", "MR", "SR"]
    assert report == dcmread(job.results / "dicom" / "report.dcm")
    assert (report.StudyInstanceUID, report.PatientID) == (uid, uid[-12:])
    images = {str(data.SOPInstanceUID) for data in files}
    assert {str(item.ReferencedSOPInstanceUID) for item in report.SourceInstanceSequence} == images
    pages = PdfReader(BytesIO(report.EncapsulatedDocument)).pages
    assert f"study {uid}" in " ".join(pages[0].extract_text().split())


def test_the_report_is_stored_by_dicomweb_where_it_is_named(
    archive: Any, study: tuple[str, str, list[Dataset]], model: Path
) -> None:
    uid, name, _ = study
    command = ["dicom-web", archive.web, "--study", uid, "--object", "report", "--model", str(model), "--device", "cpu"]
    assert cli.main(command) == 0
    assert archive.modalities(name) == ["DOC", "MR", "MR"]


@pytest.mark.parametrize("by", ["--study", "--patient-id"])
def test_a_study_is_fetched_looked_at_and_given_its_results(
    archive: Any,
    study: tuple[str, str, list[Dataset]],
    model: Path,
    by: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uid, name, _ = study
    which = uid if by == "--study" else uid[-12:]
    output = tmp_path / "out"
    command = ["dicom-web", archive.web, by, which, "--model", str(model), "--device", "cpu", "--output", str(output)]
    assert cli.main(command) == 0
    assert f"stored in study {uid}" in capsys.readouterr().out
    assert archive.modalities(name) == ["MR", *RESULTS]
    assert (output / "results" / "dicom" / "findings.dcm").is_file()
    assert len(list((output / "images").iterdir())) == 12
    assert cli.main(command) == 2  # the folder is taken
    assert "holds files already" in capsys.readouterr().err


def test_nothing_is_stored_where_that_is_not_wanted(
    archive: Any, study: tuple[str, str, list[Dataset]], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uid, name, files = study
    series = str(files[0].SeriesInstanceUID)
    command = ["dicom-web", archive.web, "--study", uid, "--series", series, "--model", str(model), "--no-store"]
    assert cli.main(command) == 0
    assert archive.modalities(name) == ["MR", "MR"]
    assert "1 finding" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--study", "1.2.3.4.5.6"], "no MR, CT or X-ray images of the study 1.2.3.4.5.6"),
        (["--patient-id", "nobody"], "0 studies fit PatientID"),
        ([], "No study is named"),
        (["--study", "1.2", "--object", "seg"], "There is no object 'seg'"),
    ],
)
def test_what_is_not_there_is_said(
    archive: Any, model: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["dicom-web", archive.web, *arguments, "--model", str(model)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/dicom-web", "http://127.0.0.1:{http}/nothing"])
def test_a_service_that_does_not_answer_is_named(
    archive: Any, model: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = url.format(port=pacs.free_port(), http=archive.http)
    start = time.monotonic()
    assert cli.main(["dicom-web", url, "--study", "1.2.3", "--model", str(model)]) == 1
    assert time.monotonic() - start < 30
    told = capsys.readouterr().err
    assert url in told and "answer" in told
