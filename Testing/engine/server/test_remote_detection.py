"""The real worker behind a real server: what comes back is what would have been found here, bit for bit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.cli import main as cli
from diffusion_anomaly.client import detector
from diffusion_anomaly.client.forwarding import Forwarder
from diffusion_anomaly.client.running import run_on_server
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.records import is_whole
from diffusion_anomaly.worker import protocol
from diffusion_anomaly.worker.channel import EventLines, Stop
from workers import ENGINE, Worker, make_job, wait_until

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cryptography", reason="needs the extra serve")

import packages
from diffusion_anomaly.server.offer import Offer
from servers import SECONDS, Served

if TYPE_CHECKING:
    from diffusion_anomaly.models.package import Bundle

# Packages that Slicer's own Python has not.
ABSENT = ("torch", "monai", "scipy", "nibabel", "nrrd", "gdcm", "jsonschema", "jinja2", "matplotlib", "typer", "rich")


@pytest.fixture
def phantoms_are_known() -> None:
    """Not here: the worker's process does not know it either, and both are to tell the same."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The model of ``make_job``, and one of two contrasts."""
    folder = tmp_path_factory.mktemp("models")
    grid = {"grid": {"size": [40, 40], "spacing": 6.0}, "postprocess": {"median_pixels": 5}}
    return {
        "one": packages.intensity(folder / "toy-intensity", **grid),
        "two": packages.intensity(folder / "toy-two", channels=["FLAIR", "T1"], **grid),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Bundle]) -> Iterator[Served]:
    """One slot with the real worker."""
    offer = Offer([bundle.path for bundle in models.values()])
    with Served(tmp_path_factory.mktemp("server"), offer, slots=1, real=True) as served:
        yield served


@pytest.fixture(scope="module")
def token(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(server.tokens.add("anna") + "\n", encoding="ascii")
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with a scan whose grid no float32 holds, and other files in other formats."""
    folder = make_job(tmp_path_factory.mktemp("job") / "Mustermann Erika")
    for name in ("scan", "brain"):
        image = sitk.ReadImage(str(folder / f"{name}.nrrd"))
        image.SetOrigin((1 / 3, -4.1, 5.7))
        image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
        sitk.WriteImage(image, str(folder / f"{name}.nrrd"))
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    t1 = sitk.ReadImage(str(folder / "scan.nrrd"))
    values = sitk.GetArrayFromImage(t1)
    other = sitk.GetImageFromArray(values + np.float32(20) * (values > 0))
    other.CopyInformation(t1)
    sitk.WriteImage(other, str(folder / "t1.nii.gz"))
    return folder


def detect(*arguments: Any) -> int:
    return cli.main(["detect", *map(str, arguments), "--set", "side=bright"])


def remotely(server: Served, token: Path) -> list[Any]:
    return ["--server", server.address, "--token-file", token, "--fingerprint", server.fingerprint]


def same_but_for(local: Path, remote: Path, *kinds: str) -> None:
    assert sorted(path.name for path in local.iterdir()) == sorted(path.name for path in remote.iterdir())
    for path in local.iterdir():
        if path.name not in kinds:
            assert path.read_bytes() == (remote / path.name).read_bytes(), path.name


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_the_files_are_those_of_a_local_detection(
    server: Served, token: Path, models: dict[str, Bundle], scan: Path, tmp_path: Path, suffix: str
) -> None:
    inputs = [scan / f"scan{suffix}", "--mask", scan / f"brain{suffix}"]
    assert detect(*inputs, "-o", tmp_path / "local", "--model", models["one"].path, "--device", "cpu") == 0
    assert detect(*inputs, "-o", tmp_path / "remote", "--model", "toy-intensity", *remotely(server, token)) == 0
    same_but_for(tmp_path / "local", tmp_path / "remote", "provenance.json", "report.html")
    local, remote = (json.loads((tmp_path / where / "provenance.json").read_bytes()) for where in ("local", "remote"))
    for entry in ("input", "model", "brain", "threshold", "score", "warnings", "slices", "method", "region"):
        assert local[entry] == remote[entry], entry
    assert remote["server"] == f"127.0.0.1:{server.port}"
    assert is_whole(tmp_path / "remote", remote)
    assert "Mustermann" not in json.dumps(remote)
    wait_until(lambda: not server.leftovers, SECONDS)


def test_the_peak_margin_is_sent_along(
    server: Served, token: Path, models: dict[str, Bundle], scan: Path, tmp_path: Path
) -> None:
    inputs = [scan / "scan.nrrd", "--mask", scan / "brain.nrrd", "--model", "toy-intensity", *remotely(server, token)]
    found = {}
    for margin in ("0", "900"):
        assert detect(*inputs, "-o", tmp_path / margin, "--peak-margin", margin) == 0
        made = json.loads((tmp_path / margin / "provenance.json").read_bytes())
        assert made["options"]["peak_margin"] == float(margin)
        found[margin] = json.loads((tmp_path / margin / "findings.json").read_bytes())["findings"]
    assert found["0"] and not found["900"]


def test_a_margin_that_cannot_be_is_the_servers_fault(
    server: Served, token: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def damaged(*given: Any) -> Any:
        delivered = run_on_server(*given)
        made = json.loads(delivered.files["provenance"].read_bytes())
        made["options"]["peak_margin"] = -1
        delivered.files["provenance"].write_text(json.dumps(made), encoding="utf-8")
        return delivered

    monkeypatch.setattr(detector, "run_on_server", damaged)
    inputs = [scan / "scan.nrrd", "--mask", scan / "brain.nrrd", "--model", "toy-intensity", *remotely(server, token)]
    assert detect(*inputs, "-o", tmp_path / "out") == 1
    assert "The server's provenance cannot be read: The peak margin is -1" in " ".join(capsys.readouterr().err.split())


def test_two_contrasts_are_joined_there_as_here(
    server: Served, token: Path, models: dict[str, Bundle], scan: Path, tmp_path: Path
) -> None:
    inputs = ["--channel", f"T1={scan / 't1.nii.gz'}", "--channel", f"FLAIR={scan / 'scan.nii.gz'}"]
    inputs += ["--mask", scan / "brain.nii.gz", "--force"]
    assert detect(*inputs, "-o", tmp_path / "local", "--model", models["two"].path, "--device", "cpu") == 0
    assert detect(*inputs, "-o", tmp_path / "remote", "--model", "toy-two", *remotely(server, token)) == 0
    same_but_for(tmp_path / "local", tmp_path / "remote", "provenance.json", "report.html")


def test_what_travels_names_nobody(
    server: Served, token: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    sent: list[bytes] = []
    send = requests.Session.send

    def record(session: requests.Session, prepared: requests.PreparedRequest, **keywords: Any) -> requests.Response:
        body = prepared.body
        if body is not None and not isinstance(body, (bytes, str)):
            prepared.body = b"".join(body)  # type: ignore[call-overload]
            prepared.headers.pop("Transfer-Encoding", None)
            prepared.headers["Content-Length"] = str(len(prepared.body))
        text = prepared.body or b""
        sent.append(text.encode() if isinstance(text, str) else text)
        sent.append(f"{prepared.url} {dict(prepared.headers)}".encode())
        return send(session, prepared, **keywords)

    monkeypatch.setattr(requests.Session, "send", record)
    inputs = [scan / "scan.nii.gz", "--mask", scan / "brain.nii.gz", "-o", tmp_path / "out"]
    assert detect(*inputs, "--model", "toy-intensity", *remotely(server, token)) == 0
    everything = b"".join(sent)
    assert b"toy-intensity" in everything
    for name in (b"Mustermann", b"Erika", b"scan.nii", b"brain.nii", str(tmp_path).encode()):
        assert name not in everything


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--fingerprint": "0" * 64}, "shows another certificate"),
        ({"--fingerprint": "0" * 63}, "is no SHA256"),
        ({"--fingerprint": ""}, "is not trusted"),
        ({"--authorities": "nowhere.pem"}, "There is no file nowhere.pem"),
        ({"--server": "http://127.0.0.1:1"}, "is no address of a server"),
        ({"--server": "https://127.0.0.1:1/path"}, "is no address of a server"),
        ({"--token-file": "wrong"}, "unknown or was revoked"),
        ({"--model": "nowhere"}, "offers no model 'nowhere'"),
        ({"--device": "cpu"}, "Device and batch size are the server's"),
        ({"--threshold": "0"}, "threshold"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    server: Served, token: Path, scan: Path, tmp_path: Path, changes: dict[str, str], said: str, capsys: Any
) -> None:
    (tmp_path / "wrong").write_text("da_wrong", encoding="ascii")
    given = {
        "--server": server.address,
        "--token-file": str(token),
        "--fingerprint": server.fingerprint,
        "--model": "toy-intensity",
        **changes,
    }
    if given["--token-file"] == "wrong":
        given["--token-file"] = str(tmp_path / "wrong")
    flat = [word for pair in given.items() for word in pair]
    assert detect(scan / "scan.nrrd", "-o", tmp_path / "out", *flat) in (2, 3)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def listed(*arguments: Any) -> int:
    return cli.main(["models", *map(str, arguments)])


def test_the_models_of_a_server_are_listed(
    server: Served, token: Path, models: dict[str, Bundle], tmp_path: Path, capsys: Any
) -> None:
    asked = remotely(server, token)
    assert listed(*asked) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["name", "version", "method", "expects", "licence", "quality"]
    assert {line.split()[0] for line in lines[1:3]} == {"toy-intensity", "toy-two"}
    assert f"127.0.0.1:{server.port} offers 2 models" in shown.out
    assert "leave this computer" not in shown.err  # nothing does
    named = [f"127.0.0.1:{server.port}" if word == server.address else word for word in asked]
    assert listed(*named, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {"toy-intensity", "toy-two"}
    row, bundle = rows["toy-intensity"], models["one"]
    assert (row["version"], row["method"], row["sha256"]) == (bundle.version, "intensity", bundle.sha256)
    assert row["spacing"] == 6.0 and row["server"] == f"127.0.0.1:{server.port}"
    assert not {"path", "size_mb"} & row.keys()  # of the server


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"--fingerprint": "0" * 64}, [], "shows another certificate"),
        ({"--token-file": "wrong"}, [], "unknown or was revoked"),
        ({"--server": "http://127.0.0.1:1"}, [], "is no address of a server"),
        ({"--server": "host:port"}, [], "is no address of a server"),
        ({"--server": ""}, [], "is no address of a server"),
        ({}, ["--folder", "."], "--folder is for packages here"),
        ({}, ["show", "flair-localise"], "--server lists what a server offers"),
    ],
)
def test_what_is_wrong_with_a_list_of_a_servers_models_is_said(
    server: Served, token: Path, tmp_path: Path, changes: dict[str, str], more: list[str], said: str, capsys: Any
) -> None:
    (tmp_path / "wrong").write_text("da_wrong", encoding="ascii")
    given = dict(zip(*[iter(map(str, remotely(server, token)))] * 2, strict=True)) | changes
    if given["--token-file"] == "wrong":
        given["--token-file"] = str(tmp_path / "wrong")
    assert listed(*[word for pair in given.items() for word in pair], *more) == InputError.exit_code
    assert said in capsys.readouterr().err


def test_options_for_a_server_are_refused_without_one(capsys: Any) -> None:
    assert listed("--fingerprint", "0" * 64) == InputError.exit_code
    assert "are for a server" in capsys.readouterr().err


def test_odd_entries_of_a_servers_list_are_shown_all_the_same(
    server: Served, token: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from diffusion_anomaly.client.connection import Connection

    odd = [
        1,
        {},
        {"name": "\x1b[31mred", "declaration": {"grid": {"spacing": 10**400}, "quality": [1]}},
        {"name": ["x"]},
    ]
    monkeypatch.setattr(Connection, "models", lambda self: odd)
    for more in ([], ["--json"]):
        assert listed(*remotely(server, token), *more) == 0
        shown = capsys.readouterr().out
        assert "red" in shown and "\x1b" not in shown


def test_the_token_may_be_in_the_environment(
    server: Served, token: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("DIFFUSION_ANOMALY_TOKEN", token.read_text(encoding="ascii"))
    # It may not take the place of the token.
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login x password y\n", encoding="ascii")
    pinned = ["--server", server.address, "--fingerprint", ":".join(re.findall("..", server.fingerprint.upper()))]
    inputs = [scan / "scan.nii.gz", "--mask", scan / "brain.nii.gz", "--model", "toy-intensity"]
    assert detect(*inputs, "-o", tmp_path / "out", *pinned) == 0
    assert "will leave this computer" in capsys.readouterr().err


def forwarded(server: Served, token: Path, folder: Path, tmp_path: Path, *arguments: str) -> Worker:
    """The client's process in a Python that has what Slicer's has."""
    site = tmp_path / "site"
    site.mkdir()
    lines = f"import sys\nfor name in {ABSENT!r}:\n    sys.modules[name] = None\n"
    (site / "sitecustomize.py").write_text(lines, encoding="utf-8")
    names = {
        "DIFFUSION_ANOMALY_SERVER": server.address,
        "DIFFUSION_ANOMALY_TOKEN": token.read_text(encoding="ascii").strip(),
        "DIFFUSION_ANOMALY_FINGERPRINT": server.fingerprint,
    }
    return Worker(folder, site=site, arguments=arguments, module="diffusion_anomaly.client", variables=names)


def test_the_panels_client_needs_no_torch(
    server: Served, token: Path, models: dict[str, Bundle], tmp_path: Path
) -> None:
    folder = make_job(tmp_path / "job", model=str(models["one"].path), title="Erika Mustermann")
    worker = forwarded(server, token, folder, tmp_path)
    try:
        assert worker.end() == protocol.ExitCode.DONE, worker.log
    finally:
        worker.close()
    (result,) = worker.of(protocol.Result)
    (started,) = worker.of(protocol.Started)
    assert started.device == f"cpu of 127.0.0.1:{server.port}"
    assert set(result.files) >= {"heat", "mask", "brain", "report", "provenance", "findings_json"}
    made = json.loads((worker.output / "provenance.json").read_bytes())
    assert is_whole(worker.output, made)
    assert (made["input"]["title"], made["input"]["path"]) == ("Erika Mustermann", "scan.nrrd")
    assert made["server"] == f"127.0.0.1:{server.port}"
    stages = list(dict.fromkeys(event.stage for event in worker.of(protocol.Progress)))
    assert stages[:2] == ["read", "upload"] and stages[-1] == "download" and "detect" in stages
    heat, scan = (sitk.ReadImage(str(path)) for path in (result.files["heat"], folder / "scan.nrrd"))
    for grid in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(heat, grid)() == getattr(scan, grid)()


def test_the_panels_client_serves_and_tells_what_fails(server: Served, token: Path, tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job")  # whose model is another package of the same name
    worker = forwarded(server, token, folder, tmp_path, "--serve")
    try:
        worker.send(f"{protocol.run_line(folder)}\n".encode())
        worker.wait_for(protocol.Finished)
        worker.hang_up()
        assert worker.end() == 0
    finally:
        worker.close()
    (finished,) = worker.of(protocol.Finished)
    if failures := worker.of(protocol.Failure):
        assert "another package than the client's" in failures[0].what
        assert finished.exit_code == protocol.ExitCode.MODEL
    else:  # the same bytes
        assert worker.of(protocol.Result)


@pytest.mark.parametrize("field", ["dicom", "dicom_pdf"])
def test_the_panels_client_refuses_dicom_before_anything_is_read(tmp_path: Path, field: str) -> None:
    job = replace(protocol.Job("nothing.nrrd", str(tmp_path / "out")), **{field: True})
    stop = Stop()
    with pytest.raises(InputError, match="not written as DICOM"):
        Forwarder("https://127.0.0.1:1", "").do(job, EventLines(-1, stop), stop)
    assert not (tmp_path / "out").exists()


def test_the_client_imports_no_torch() -> None:
    code = (
        "import sys, diffusion_anomaly.client.forwarding, diffusion_anomaly.worker.main;"
        f"print([name for name in {ABSENT!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ENGINE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
