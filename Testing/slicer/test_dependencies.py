"""Python packages: what is missing, what is asked, what runs, and what is said when it fails. pip is the real one."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

import jobs
from diffusion_anomaly.worker import probe
from DiffusionAnomalyLib.process import dependencies
from DiffusionAnomalyLib.process.dependencies import Installation
from DiffusionAnomalyLib.process.process import PipeProcess
from DiffusionAnomalyLib.settings import MemorySettings

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_ranges_are_those_of_the_python_package() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {str(Requirement(text)) for text in project["project"]["dependencies"]}
    lines = dependencies.requirementsFile().read_text(encoding="utf-8").splitlines()
    ours = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    assert ours <= declared
    assert {str(Requirement(text)) for text in dependencies.TORCH} <= declared
    assert not any(Requirement(text).name == "torch" for text in ours)


def test_everything_that_a_detection_imports_is_asked_for_or_comes_with_slicer() -> None:
    asked = {{"pynrrd": "nrrd"}.get(requirement.name, requirement.name) for requirement in dependencies.required()}
    assert set(probe.NEEDED) - asked == {"numpy", "scipy", "SimpleITK"}


def test_what_is_missing_or_too_old_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "torch": "2.9.1",
        "monai": "1.6.0",
        "einops": "0.8",
        "safetensors": "0.5",
        "pydicom": "3.0.1",
        "python-gdcm": "3.0.26",
        "jinja2": "3.1.0",
        "pillow": "12",
        "nibabel": "5.4",
        "pynrrd": "1.1.3",
    }

    def version(name: str) -> str:
        if name not in found:
            raise dependencies.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(dependencies, "version", version)
    assert [requirement.name for requirement in dependencies.missing()] == ["torch", "jsonschema", "matplotlib"]
    found.update({"torch": "2.10.0+cu126", "jsonschema": "4.20", "matplotlib": "3.9"})
    assert dependencies.missing() == []


def pretend(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    """The platform that markers ask about."""
    evaluate = Marker.evaluate
    monkeypatch.setattr(Marker, "evaluate", lambda marker: evaluate(marker, {"sys_platform": platform}))


@pytest.mark.parametrize("found", [None, "2.7.1", "2.9.1", "2.13.0"])
def test_windows_is_asked_for_one_torch_that_every_version_left_out_holds_for(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    def version(name: str) -> str:
        if name != "torch" or found is None:
            raise dependencies.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(dependencies, "version", version)
    pretend(monkeypatch, "win32")
    (torch,) = (requirement for requirement in dependencies.missing() if requirement.name == "torch")
    published = ["2.7.1", "2.8.0", "2.9.1", "2.12.0", "2.13.0", "2.14.0"]
    assert list(torch.specifier.filter(published)) == ["2.8.0", "2.12.0", "2.14.0"]
    command = dependencies.steps([torch], "PythonSlicer")[-1]
    assert Requirement(command[-2]).specifier == torch.specifier and command[-3] == "install"


def test_elsewhere_torch_2_13_is_as_good_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "linux")
    (torch,) = (requirement for requirement in dependencies.required() if requirement.name == "torch")
    assert list(torch.specifier.filter(["2.9.1", "2.13.0"])) == ["2.13.0"]


def test_the_question_says_what_how_large_and_from_where(tmp_path: Path) -> None:
    everything = dependencies.required()
    asked = dependencies.question(everything)
    for words in ("PyTorch 2.8 or newer", "MONAI", "MB", "Nothing of your data is sent"):
        assert words in asked
    offline = dependencies.question(everything, tmp_path)
    assert str(tmp_path) in offline and "without the network" in offline and " MB" not in offline


def test_torch_comes_from_the_installer_that_knows_the_driver_and_the_rest_from_pip(tmp_path: Path) -> None:
    commands = dependencies.steps(dependencies.required(), "PythonSlicer")
    assert [command[2] for command in commands] == ["pip", "light_the_torch", "pip"]
    assert commands[0][-1] == "light-the-torch>=0.8.1"
    torch, vision = commands[1][-2:]
    assert Requirement(torch) == dependencies.required()[0] and vision == "torchvision"
    assert not any(part.startswith("torch") for part in commands[2])
    (offline,) = dependencies.steps(dependencies.required(), "PythonSlicer", tmp_path)
    assert "--no-index" in offline and str(tmp_path) in offline
    only = dependencies.steps([Requirement("einops>=0.7")], "PythonSlicer")
    assert len(only) == 1 and only[0][-1] == "einops>=0.7"


def test_the_pytorch_extensions_own_arguments_are_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    class Logic:
        @staticmethod
        def _getPipInstallArguments(backend: object, torch: object, vision: object = None) -> list[str]:
            asked.append((backend, torch, vision))
            return ["install", f"torch{torch}", "torchvision", "--as-it-likes"]

    torch = dependencies.required()[0]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", SimpleNamespace(PyTorchUtilsLogic=Logic))
    command = dependencies.steps([torch], "PythonSlicer")[1]
    assert command[3:] == ["install", f"torch{torch.specifier}", "torchvision", "--as-it-likes"]
    assert asked == [(None, str(torch.specifier), None)]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", SimpleNamespace(PyTorchUtilsLogic=object()))  # of a later version
    assert dependencies.steps([torch], "PythonSlicer")[1][3:] == ["install", str(torch), "torchvision"]


def test_an_update_asks_for_newer_versions_within_the_ranges_and_says_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dependencies, "version", lambda name: "9.9")
    commands = dependencies.steps(dependencies.required(), "PythonSlicer", update=True)
    assert len(commands) == 3 and all("--upgrade" in command for command in commands)
    assert "monai<2,>=1.5.1" in commands[2]
    asked = dependencies.question(dependencies.required(), update=True)
    assert "PyTorch 9.9" in asked and "MONAI 9.9" in asked and "other extensions use them too" in asked


def test_the_page_on_computers_without_a_network_names_every_package() -> None:
    page = (REPOSITORY / "docs" / "how-to" / "slicer-offline.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if "pip download" in line)
    assert {requirement.name for requirement in dependencies.required()} <= set(line.split())


def test_a_folder_brings_torchvision_when_it_has_a_wheel_of_it(tmp_path: Path) -> None:
    (command,) = dependencies.steps(dependencies.required(), "PythonSlicer", tmp_path)
    assert "torchvision" not in command
    (tmp_path / "torchvision-1-py3-none-any.whl").touch()
    (command,) = dependencies.steps(dependencies.required(), "PythonSlicer", tmp_path)
    assert "torchvision" in command


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("torch!=2.9.*,>=2.8", "PyTorch 2.8 or newer, not 2.9"),
        ("monai<2,>=1.5.1", "MONAI 1.5.1 or newer, below 2"),
        ("einops", "einops"),
        ("nibabel~=5.2", "nibabel ~=5.2"),
    ],
)
def test_versions_are_said_in_words(requirement: str, words: str) -> None:
    assert dependencies.inWords(Requirement(requirement)) == words


def test_torch_that_another_extension_has_loaded_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, monai = Requirement("torch"), Requirement("monai")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not dependencies.replacesLoadedTorch([torch, monai])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert dependencies.replacesLoadedTorch([torch, monai]) and not dependencies.replacesLoadedTorch([monai])


def wheel(folder: Path, name: str = "anomalytestwheel") -> None:
    """A whole wheel with one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "value = 1\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def run(installation: Installation) -> str:
    problems: list[str] = []
    installation.onFinished = problems.append
    installation.start()
    jobs.wait(lambda: bool(problems), installation.tick, 120)
    return problems[0]


def test_packages_are_installed_from_a_folder_without_a_network(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    wheel(wheels)
    (command,) = dependencies.steps([Requirement("anomalytestwheel>=1")], sys.executable, wheels)
    settings = MemorySettings()
    installation = Installation(
        [[*command, "--target", str(target)]], PipeProcess, jobs.environment(), settings, wheels
    )
    assert run(installation) == ""
    assert (target / "anomalytestwheel.py").is_file()
    assert dependencies.pending(settings) is None
    assert any("anomalytestwheel" in line for line in installation.log)


def test_a_folder_that_lacks_a_wheel_is_named_and_the_installation_is_offered_again(tmp_path: Path) -> None:
    (command,) = dependencies.steps([Requirement("anomalytestwheel>=1")], sys.executable, tmp_path)
    settings = MemorySettings()
    problem = run(Installation([command], PipeProcess, jobs.environment(), settings, tmp_path))
    assert str(tmp_path) in problem and "wheel" in problem
    begun = dependencies.pending(settings)
    assert begun is not None and begun.folder == str(tmp_path)


def sleeping(settings: MemorySettings) -> Installation:
    command = [sys.executable, "-c", "import time; print('began', flush=True); time.sleep(60)"]
    return Installation([command, command], PipeProcess, jobs.environment(), settings)


def test_a_stopped_installation_ends_and_is_not_offered_again() -> None:
    settings = MemorySettings()
    installation = sleeping(settings)
    installation.onChanged = lambda: installation.cancel() if "began" in installation.log else None
    started = time.monotonic()
    assert "stopped" in run(installation)
    assert time.monotonic() - started < 50
    assert dependencies.pending(settings) is None


def test_an_installation_that_slicers_end_cut_short_is_offered_again() -> None:
    settings = MemorySettings()
    installation = sleeping(settings)
    installation.start()
    installation.kill()
    assert dependencies.pending(settings) == dependencies.Pending("")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("PermissionError: [WinError 32] The process cannot access the file", "Close every other Slicer"),
        ("WARNING: Retrying after connection broken by 'ProxyError'", "HTTPS_PROXY"),
        ("ERROR: No matching distribution found for torch>=2.8", "no build for this Python"),
        ("Segmentation fault", "log says why"),
    ],
)
def test_what_pip_says_becomes_advice(said: str, advice: str) -> None:
    assert advice in dependencies.explain([said])


def test_the_bar_that_pip_draws_is_not_shown() -> None:
    installation = dependencies.Installation([["pip"]], PipeProcess, {}, MemorySettings(), None)
    installation.log.append("   ━━━━━━━━━╸━━━━━━ 1.2/1.8 MB 21.0 MB/s eta 0:00:01")
    assert installation.progress == "Step 0 of 1. 1.2/1.8 MB 21.0 MB/s eta 0:00:01"
    installation.log.append("Successfully installed torch")
    assert installation.progress.endswith("Successfully installed torch")


class SlicersInstaller:
    """``slicer.packaging`` and ``slicer.util.executePythonModule`` as far as ``SlicerPip`` calls them.

    They start a process, keep it to themselves, and call back from the event loop, which is ``pump`` here.
    """

    def __init__(self) -> None:
        self.asked: list[object] = []
        self._process: subprocess.Popen[str] | None = None
        self._busy = False

    def isPipInstallInProgress(self) -> bool:
        return self._busy

    def pip_install(self, requirements: list[str], *, blocking: bool, requester: str, **callbacks: object) -> None:
        self._busy = True
        self.asked.append((requirements, blocking, requester))
        self.executePythonModule("pip", requirements, blocking, **callbacks)

    def executePythonModule(self, module: str, args: list[str], blocking: bool, **callbacks: object) -> None:
        code = "import time; print('began ä', flush=True); time.sleep(float(input('')))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        self._callbacks = callbacks

    def pump(self, seconds: str = "") -> None:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        with self._process:
            if seconds:
                self._process.stdin.write(f"{seconds}\n")
                self._process.stdin.flush()
            for line in self._process.stdout:
                self._callbacks["logCallback"](line.rstrip())  # type: ignore[operator]
        self._busy = False
        self._callbacks["completedCallback"](self._process.returncode)  # type: ignore[operator]


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> SlicersInstaller:
    slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")
    made = SlicersInstaller()
    monkeypatch.setitem(sys.modules, "slicer.packaging", made)  # type: ignore[arg-type]
    monkeypatch.setattr(slicer, "packaging", made, raising=False)
    monkeypatch.setattr(slicer.util, "executePythonModule", made.executePythonModule, raising=False)
    return made


@pytest.mark.parametrize("module", ["pip", "light_the_torch"])
@pytest.mark.parametrize("stopped", [False, True])
def test_slicers_own_installer_installs_and_can_be_stopped(
    installer: SlicersInstaller, module: str, stopped: bool
) -> None:
    from DiffusionAnomalyLib.process.slicerpip import SlicerPip

    said, ended = [], []
    process = SlicerPip()
    process.onOutput, process.onFinished = said.append, ended.append
    process.start(["PythonSlicer", "-m", module, "install", "--quiet", "einops"], {}, Path())
    assert process.isRunning() and ended == []
    if module == "pip":
        assert installer.asked == [(["--quiet", "einops"], False, "DiffusionAnomaly")]
    if stopped:
        process.kill()
        installer.pump()
    else:
        installer.pump("0.01")
    assert ended == [None if stopped else 0] and not process.isRunning()
    assert stopped or said == ["began ä".encode()]
    process.kill()  # of what has ended: nothing happens


def test_no_installation_begins_while_slicer_installs_for_another_module(installer: SlicersInstaller) -> None:
    from DiffusionAnomalyLib.process.slicerpip import SlicerPip

    installer._busy = True
    problems: list[str] = []
    installation = Installation([["python", "-m", "pip", "install", "einops"]], SlicerPip, {}, MemorySettings())
    installation.onFinished = problems.append
    installation.start()
    assert installer.asked == [] and "wait until that has ended" in problems[0]
