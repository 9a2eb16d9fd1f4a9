"""The panel's part on Python packages: what is missing, and installing it with a click."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer

from ..detection import Detection
from ..process import dependencies
from ..process.environment import pythonProgram, workerEnvironment
from ..process.remote import isRemote
from ..process.slicerpip import SlicerPip
from ..translation import tr as _
from .context import PanelContext
from .methodpanel import MethodPanel

if TYPE_CHECKING:
    from packaging.requirements import Requirement


class InstallPanel:
    """Asks for attention only while packages are missing; see ``Panel``."""

    def __init__(self, context: PanelContext, detection: Detection, method: MethodPanel) -> None:
        self._context = context
        self._detection = detection
        self._method = method
        self._ui = context.ui
        self._settings = context.settings
        self._running: dependencies.Installation | None = None
        self._last: dependencies.Installation | None = None  # whose log can still be read
        self._offered = False
        self._problem = ""
        self.missing = dependencies.missing()
        self._installed = dependencies.installed()
        self._ui.installButton.connect("clicked(bool)", self._onInstall)
        self._ui.installFolderButton.connect("clicked(bool)", self._onInstallFromFolder)
        self._ui.installCancelButton.connect("clicked(bool)", self._onCancel)
        self._ui.updateButton.connect("clicked(bool)", self._onUpdate)

    def refresh(self, parameters: Any) -> None:
        wanted = bool(self.missing) and not isRemote(parameters.run.device)  # a server has its own
        self._ui.installFrame.setVisible(wanted or self._running is not None)
        self._ui.installLabel.setText(self._text())
        for button in (self._ui.installButton, self._ui.installFolderButton, self._ui.updateButton):
            button.setEnabled(self._running is None)
        for button in (self._ui.installButton, self._ui.installFolderButton):
            button.setVisible(bool(self.missing))
        names = ", ".join(self._installed) or _("none yet")
        self._ui.packagesLabel.setText(_("Python packages: {names}.").format(names=names))
        self._ui.installCancelButton.setEnabled(self._running is not None)

    def problem(self, parameters: Any) -> str:
        """Why nothing can run yet; empty when all packages are there, or a server runs it."""
        missing = bool(self.missing) and not isRemote(parameters.run.device)
        return _("Install the Python packages first.") if missing else ""

    def log(self) -> str:
        """What pip says, or said last; empty when nothing was installed."""
        return "\n".join(self._last.log) if self._last is not None else ""

    def tick(self) -> None:
        if self._running is not None:
            self._running.tick()

    def offerToContinue(self) -> None:
        """Ask to go on with an installation that Slicer's end cut short."""
        begun = dependencies.pending(self._settings)
        if (
            self._offered
            or begun is None
            or not (self.missing or begun.update)
            or self._running is not None
            or slicer.app.testingEnabled()
        ):
            return
        self._offered = True
        if slicer.util.confirmYesNoDisplay(
            _("The installation of Python packages was not finished last time. Continue it now?"),
            _("DiffusionAnomaly"),
        ):
            self._start(Path(begun.folder) if begun.folder else None, begun.update)

    def close(self) -> None:
        if self._running is not None:
            self._running.kill()

    def _text(self) -> str:
        if self._running is not None:
            return self._running.progress
        names = "; ".join(dependencies.inWords(package) for package in self.missing)
        return " ".join(filter(None, [self._problem, _("Missing Python packages: {names}.").format(names=names)]))

    def _onInstall(self, checked: bool = False) -> None:
        self._confirm(None)

    def _onInstallFromFolder(self, checked: bool = False) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder of wheels"), str(Path.home()))
        if folder:
            self._confirm(Path(folder))

    def _onUpdate(self, checked: bool = False) -> None:
        self._confirm(None, update=True)

    def _confirm(self, folder: Path | None, update: bool = False) -> None:
        question = dependencies.question(self._packages(update), folder, update)
        if slicer.util.confirmOkCancelDisplay(question, _("DiffusionAnomaly - Install Python packages")):
            self._start(folder, update)

    def _packages(self, update: bool) -> list[Requirement]:
        return dependencies.required() if update else self.missing

    def _start(self, folder: Path | None, update: bool = False) -> None:
        packages = self._packages(update)
        if dependencies.replacesLoadedTorch(packages):
            self._offerRestart(folder, update)
            return
        commands = dependencies.steps(packages, pythonProgram(), folder, update)
        self._problem = ""
        self._detection.renewWorker()  # Windows replaces no library that a process has loaded
        self._running = dependencies.Installation(
            commands, SlicerPip, workerEnvironment(), self._settings, folder, update
        )
        self._last, self._offered = self._running, True
        self._running.onChanged = self._context.refreshSoon
        self._running.onFinished = self._onFinished
        self._running.start()
        self._context.refreshSoon()

    def _offerRestart(self, folder: Path | None, update: bool) -> None:
        """What another extension has loaded cannot be replaced under it."""
        self._offered = True
        if slicer.util.confirmYesNoDisplay(
            _(
                "Another extension has loaded PyTorch, which cannot be replaced while it is in use. Slicer must be "
                "restarted first, and then offers to go on with the installation. Save your scene before. Restart now?"
            ),
            _("DiffusionAnomaly"),
        ):
            dependencies.rememberPending(self._settings, folder, update)
            slicer.util.restart()

    def _onCancel(self, checked: bool = False) -> None:
        if self._running is not None:
            self._running.cancel()

    def _onFinished(self, problem: str) -> None:
        self._running = None
        self._problem = problem
        self._detection.renewWorker()  # a script may have started it meanwhile
        self.missing = dependencies.missing()
        self._installed = dependencies.installed()
        if not self.missing:
            self._method.probeMachine()
        self._context.refreshSoon()
