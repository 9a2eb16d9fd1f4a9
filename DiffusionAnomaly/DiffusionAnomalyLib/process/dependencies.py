"""The Python packages that the worker needs: what is missing, what will be installed, and how, step by step.

Nothing is installed without a click. Every step runs in a process of its own, so that Slicer stays usable, one sees
what happens, and it can be stopped. Torch is installed the way the PyTorch extension does it, with its arguments where
it is there, by light-the-torch, which knows the build for the machine's GPU driver; the extension's own function would
import torch into Slicer's process, which must never happen. On a computer without a network all packages come from a
folder of wheels.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import invalidate_caches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from ..settings import Settings, readJson, writeJson
from ..translation import tr as _
from .environment import MODULE_FOLDER
from .process import WorkerProcess

PENDING = "PendingInstallation"

# The engine's own range, see pyproject.toml: 2.8 is the oldest that MONAI takes, 2.9's 3-D convolutions take several
# times the memory, and users of other extensions could not use 2.13 on Windows.
TORCH = ("torch>=2.8,!=2.9.*", 'torch!=2.13.*; sys_platform == "win32"')
LIGHT_THE_TORCH = "light-the-torch>=0.8.1"  # older ones know no build for the newest GPUs
TITLES = {"torch": "PyTorch", "monai": "MONAI", "matplotlib": "Matplotlib", "jinja2": "Jinja2", "pillow": "Pillow"}

# Downloads in MB, for the question before: torch with CUDA for Linux and Windows, torch for the CPU or macOS, the rest.
SIZE_TORCH_CUDA, SIZE_TORCH_CPU, SIZE_OTHERS = 2600, 250, 60


def requirementsFile() -> Path:
    """The packages beside torch."""
    return MODULE_FOLDER / "Resources" / "requirements.txt"


def required() -> list[Requirement]:
    """Everything that the worker needs and this platform wants, torch first, all that is asked of a package in one."""
    lines = requirementsFile().read_text(encoding="utf-8").splitlines()
    texts = [*TORCH, *(line for line in map(str.strip, lines) if line and not line.startswith("#"))]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate():
            # As two, only the unmet one would be asked of pip, whose choice may break the other.
            found.setdefault(requirement.name, requirement).specifier &= requirement.specifier
    return list(found.values())


def missing() -> list[Requirement]:
    """Those that are not installed, or in a version that does not fit. Reads metadata; imports nothing."""
    invalidate_caches()  # pip has run in another process
    return [requirement for requirement in required() if not _isMet(requirement)]


def installed() -> list[str]:
    """Name and version of each package that is there. Reads metadata; imports nothing."""
    invalidate_caches()
    found = [(requirement.name, _installedVersion(requirement.name)) for requirement in required()]
    return [f"{TITLES.get(name, name)} {number}" for name, number in found if number]


def inWords(requirement: Requirement) -> str:
    """A package and its versions as people say them.

    >>> inWords(Requirement("torch>=2.8,!=2.9.*"))
    'PyTorch 2.8 or newer, not 2.9'
    """
    words = {">=": _("{version} or newer"), "<": _("below {version}"), "!=": _("not {version}")}
    asked = list(requirement.specifier)
    texts = [
        text.format(version=one.version.removesuffix(".*"))
        for operator, text in words.items()
        for one in asked
        if one.operator == operator
    ]
    texts += [str(one) for one in asked if one.operator not in words]
    return " ".join(filter(None, [TITLES.get(requirement.name, requirement.name), ", ".join(texts)]))


def replacesLoadedTorch(packages: Sequence[Requirement]) -> bool:
    """Whether files would be replaced that another extension has loaded into this process."""
    return "torch" in sys.modules and any(package.name == "torch" for package in packages)


def question(packages: Sequence[Requirement], fromFolder: Path | None = None, update: bool = False) -> str:
    """What to ask before installing: what, how large, from where, and what it changes."""
    names = "\n".join(f"• {inWords(package)}" for package in packages)
    if update:
        names = "\n".join(f"• {text}" for text in installed())
        return _(
            "These Python packages are installed:\n\n{names}\n\nThe newest versions that the background process works "
            "with will be downloaded and installed into Slicer's own Python, where other extensions use them too. "
            "Slicer stays usable. Continue?"
        ).format(names=names)
    if fromFolder is not None:
        return _(
            "These Python packages will be installed into Slicer from {folder}, without the network:\n\n{names}\n\n"
            "Slicer stays usable meanwhile. Continue?"
        ).format(folder=fromFolder, names=names)
    torch = any(package.name == "torch" for package in packages)
    size = (_torchSize() if torch else 0) + SIZE_OTHERS
    return _(
        "The background process needs these Python packages:\n\n{names}\n\n"
        "About {size} MB will be downloaded and installed into Slicer's own Python; other programs are not touched. "
        "Nothing of your data is sent. Slicer stays usable meanwhile. Continue?"
    ).format(names=names, size=size)


def steps(
    packages: Sequence[Requirement], python: str, fromFolder: Path | None = None, update: bool = False
) -> list[list[str]]:
    """The commands that install packages, in order.

    Args:
        packages: what is missing, or what to update.
        python: Slicer's Python.
        fromFolder: wheels to take instead of the network.
        update: whether versions that fit are replaced by newer ones.
    """
    newer = ["--upgrade"] if update else []
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *newer]
    torch = [package for package in packages if package.name == "torch"]
    others = [_plain(package) for package in packages if package.name != "torch"]
    if fromFolder is not None:
        vision = ["torchvision"] if torch and any(fromFolder.glob("torchvision-*.whl")) else []
        return [[*pip, "--no-index", "--find-links", str(fromFolder), *map(_plain, torch), *vision, *others]]
    commands = []
    if torch:
        commands.append([*pip, LIGHT_THE_TORCH])
        commands.append([python, "-m", "light_the_torch", *torchArguments(torch[0]), *newer])
    if others:
        commands.append([*pip, *others])
    return commands


def torchArguments(torch: Requirement) -> list[str]:
    """Torch and the torchvision that goes with it, as the PyTorch extension asks for them where it is installed.

    Of the extension this function alone is called: it imports no torch. Without it the arguments are the same.
    """
    try:
        from PyTorchUtils import PyTorchUtilsLogic  # type: ignore[import-not-found]

        return [str(word) for word in PyTorchUtilsLogic._getPipInstallArguments(None, str(torch.specifier))]
    except (ImportError, AttributeError, TypeError):  # not installed, or another version of it
        return ["install", _plain(torch), "torchvision"]


@dataclass(frozen=True)
class Pending:
    """An installation that was begun: ``folder`` is empty when it came from the network."""

    folder: str
    update: bool = False


def pending(settings: Settings) -> Pending | None:
    """The installation that was begun and has not ended, as when Slicer was closed in the middle."""
    entry = readJson(settings, PENDING, {})
    return Pending(str(entry.get("folder", "")), bool(entry.get("update"))) if entry else None


def rememberPending(settings: Settings, folder: Path | None, update: bool) -> None:
    """Note that an installation is to be gone on with, should Slicer be closed before its end."""
    writeJson(settings, PENDING, {"folder": str(folder or ""), "update": update})


class Installation:
    """Runs the steps of an installation one after another.

    >>> installation = Installation(steps(missing(), python), QtProcess, environment, settings)  # doctest: +SKIP
    >>> installation.onFinished = lambda problem: print(problem or "done")  # doctest: +SKIP
    >>> installation.start()  # doctest: +SKIP

    Args:
        commands: from ``steps``.
        makeProcess: gives a new process.
        environment: of the processes.
        settings: remembers that an installation is under way, until it has ended well or is given up.
        folder: the folder of wheels, if there is one.
        update: whether it updates.

    Attributes:
        log: what pip said, newest lines.
        onChanged: called when there is something new to show.
        onFinished: takes what went wrong and what to do; empty when all is installed.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        makeProcess: Callable[[], WorkerProcess],
        environment: Mapping[str, str],
        settings: Settings,
        folder: Path | None = None,
        update: bool = False,
    ) -> None:
        self.log: deque[str] = deque(maxlen=2000)
        self.onChanged: Callable[[], None] = lambda: None
        self.onFinished: Callable[[str], None] = lambda problem: None
        self._commands = [list(command) for command in commands]
        self._makeProcess = makeProcess
        self._environment = environment
        self._settings = settings
        self._folder = folder
        self._update = update
        self._next = 0
        self._process: WorkerProcess | None = None
        self._cancelled = False

    def start(self) -> None:
        """Begin. Remembered until it has ended, so that a closed Slicer can offer to go on."""
        rememberPending(self._settings, self._folder, self._update)
        self._runNext()

    def tick(self) -> None:
        """To be called a few times a second."""
        if self._process is not None:
            self._process.poll()

    def cancel(self) -> None:
        """Stop it; what was installed so far stays and is found next time."""
        self._cancelled = True
        if self._process is not None:
            self._process.kill()

    def kill(self) -> None:
        """End it because Slicer closes: it is offered again next time."""
        self.onFinished = lambda problem: None
        self.onChanged = lambda: None
        if self._process is not None:
            self._process.onFinished = lambda code: None
            self._process.kill()

    @property
    def progress(self) -> str:
        """Which step runs, and pip's newest words."""
        last = self.log[-1] if self.log else ""
        return _("Step {step} of {steps}. {line}").format(
            step=min(self._next, len(self._commands)), steps=len(self._commands), line=_withoutBar(last)[:120]
        )

    def _runNext(self) -> None:
        if self._next == len(self._commands):
            self._end("")
            return
        command = self._commands[self._next]
        self._next += 1
        self.log.append("> " + " ".join(command[1:]))
        process = self._makeProcess()
        process.onOutput = process.onErrorOutput = self._onOutput
        process.onFinished = self._onStepFinished
        self._process = process
        try:
            process.start(command, self._environment, MODULE_FOLDER)
        except OSError as error:
            self._end(_("The installation cannot be started: {reason}.").format(reason=error))

    def _onOutput(self, data: bytes) -> None:
        self.log.extend(line for line in data.decode("utf-8", "backslashreplace").splitlines() if line.strip())
        self.onChanged()

    def _onStepFinished(self, code: int | None) -> None:
        if self._cancelled:
            self._end(_("The installation was stopped. Press Install packages to go on."))
        elif code == 0:
            self._runNext()
        else:
            self._end(explain(self.log, self._folder))

    def _end(self, problem: str) -> None:
        self._process = None
        if not problem or self._cancelled:
            writeJson(self._settings, PENDING, {})
        if problem:
            self.log.append(problem)
        self.onFinished(problem)


def explain(log: Sequence[str], folder: Path | None = None) -> str:
    """What pip's words mean, and what to do."""
    text = "\n".join(log).lower()
    if "no space left" in text or "errno 28" in text:
        return _("The disk is full. Free several GB and press Install packages again.")
    if "permission denied" in text or "access is denied" in text or "winerror 32" in text or "winerror 5" in text:
        return _(
            "Files are locked or protected. Close every other Slicer, or install Slicer where you may write, and press "
            "Install packages again."
        )
    if folder is not None and ("no matching distribution" in text or "could not find a version" in text):
        return _("{folder} lacks a wheel that fits this Python and platform; the log names it.").format(folder=folder)
    if any(word in text for word in ("connection", "timed out", "proxyerror", "sslerror", "name resolution")):
        return _(
            "The package server was not reached. Behind a firewall, set HTTPS_PROXY before Slicer starts, or choose "
            "Install from folder with wheels that were downloaded on another computer."
        )
    if "no matching distribution" in text or "could not find a version" in text:
        return _("A package has no build for this Python and platform; the log names it.")
    return _("The installation failed; the log says why. Copy it when you ask for help.")


def _isMet(requirement: Requirement) -> bool:
    if _slicersCheck(requirement):
        return True
    found = _installedVersion(requirement.name)  # a version before a release fits too
    return bool(found) and requirement.specifier.contains(found, prereleases=True)


def _slicersCheck(requirement: Requirement) -> bool:
    """What Slicer's own check says; False where there is none, as with ``slicer-core``."""
    try:
        from slicer.packaging import pip_check
    except ImportError:
        return False
    return bool(pip_check(requirement))


def _installedVersion(name: str) -> str:
    """Empty when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _withoutBar(line: str) -> str:
    """A line of pip without the bar that it draws; the numbers beside it say more in less room."""
    return " ".join(word for word in line.split() if not set(word) <= set("━╸╺"))


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _torchSize() -> int:
    return SIZE_TORCH_CPU if sys.platform == "darwin" else SIZE_TORCH_CUDA
