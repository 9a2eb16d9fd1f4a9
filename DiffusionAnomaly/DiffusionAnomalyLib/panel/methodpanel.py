"""The panel's part on the method: which method, which model, how many steps, and where it runs."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer

from diffusion_anomaly.registry import DEFAULT_METHOD, get_method

from .. import choices
from ..parameters import MODEL_DEFAULT, requestOf
from ..process import remote
from ..process.environment import Question
from ..process.qtprocess import QtProcess
from ..progresstext import expectedSeconds, plain, shortened, shortTime, timeInWords
from ..scene.volumes import axialSlices, contrastDoubt, contrastOf, isPicture, problemWith
from ..translation import tr as _
from .context import PanelContext
from .qthelpers import Combo, say, silent
from .serverdialog import addServer, mayLeave

if TYPE_CHECKING:
    from diffusion_anomaly.models.package import BundleSummary
    from diffusion_anomaly.registry import MethodEntry

    from ..detection import Request

# More steps than that on the slider would make it useless for the few that matter; the engine takes more.
LARGEST_ON_SLIDER = 200
ADD_SERVER = "add a server"  # no device has a name with blanks
LONGEST_IN_SUMMARY = 24


class MethodPanel:
    """Shows and takes the choice of method, model, steps and device; see ``Panel``."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._ui = context.ui
        self._settings = context.settings
        self.machine: dict[str, Any] | None = None  # what the engine's probe said
        self._questions: list[Question] = []
        self._methods = Combo(self._ui.methodComboBox, self._onMethod)
        self._models = Combo(self._ui.modelComboBox, self._onModel)
        self._presets = Combo(self._ui.presetComboBox, self._onPreset)
        self._devices = Combo(self._ui.deviceComboBox, self._onDevice)
        self._offered: list[MethodEntry] = []
        self._shown: list[BundleSummary] = []
        self._problems: dict[Path, str] = {}
        self._shownFor = ""
        self._ui.stepsSlider.connect("valueChanged(double)", self._onSteps)
        self._ui.stepsInfoLabel.connect("linkActivated(QString)", self._onDefaultSteps)
        self._ui.addModelButton.connect("clicked(bool)", self._onAddModel)
        self._ui.modelCardLabel.connect("linkActivated(QString)", self._onCardLink)
        self._ui.removeModelButton.connect("clicked(bool)", self._onRemoveModel)
        self._ui.deviceInfoLabel.connect("linkActivated(QString)", self._onDeviceLink)

    def probeMachine(self) -> None:
        """Find out, in the background, what is installed and which GPUs there are."""
        self._probe(["machine"], self._onMachine)

    def refresh(self, parameters: Any) -> None:
        method = parameters.method
        if not choices.isKnown(method.name):
            self._onMethod(DEFAULT_METHOD)
        model = self.model(parameters)
        guide = get_method(method.name)
        self._methods.show([(entry.name, entry.title) for entry in self._offered], method.name)
        self._ui.methodInfoLabel.setText(
            _("{does} Learnt from {labels}.").format(does=guide.does, labels=guide.learnt_from)
        )
        self._models.show(
            [(str(entry.path), self._titleOf(entry)) for entry in self._shown],
            str(model.path) if model else "",
        )
        self._ui.modelComboBox.setEnabled(bool(self._shown))
        self._ui.removeModelButton.setVisible(model is not None and choices.wasAdded(model.path, self._settings))
        seconds = self._seconds(parameters, model)
        card = choices.card(model, timeInWords(seconds)) if model else _("This method needs no model.")
        self._ui.modelCardLabel.setText(card + choices.problemsAsText(self._problems))
        line = self.summary(parameters, model, seconds)
        self._ui.methodCollapsibleButton.setText(line)
        tip = _("{line}\n\nWhat Run does. Click to choose another method, model, number of steps or device.")
        self._ui.methodCollapsibleButton.setToolTip(plain(tip.format(line=line)))
        offered = choices.presets(method.name)
        self._presets.show(offered, method.preset)
        for widget in (self._ui.presetLabel, self._ui.presetComboBox):
            widget.setVisible(bool(offered))
        self._showSteps(parameters, model, seconds)
        self._ui.guidanceScaleSpinBox.setEnabled(guide.guidance_scale is not None)
        self._ui.noiseLevelSpinBox.setEnabled(guide.noise_level is not None)
        for widget in (self._ui.minAreaLabel, self._ui.minAreaSpinBox):
            widget.setVisible(choices.looksAtPictures(model.path if model else None))
        found = self._deviceList()
        if parameters.run.device not in [device.id for device in found]:  # of another machine, from a saved scene
            found.append(choices.Device(parameters.run.device, parameters.run.device))
        listed = [(device.id, device.title) for device in found]
        self._devices.show([*listed, (ADD_SERVER, _("Add a server…"))], parameters.run.device)
        device = parameters.run.device
        say(self._ui.deviceInfoLabel, plain(self._deviceProblem(device)) or self._whereTo(device))

    def problem(self, parameters: Any) -> str:
        """Why the choice cannot run; empty when it can, as far as is known."""
        if self.model(parameters) is None:
            return _("There is no model for this method. Add one from a folder.")
        guide, method = get_method(parameters.method.name), parameters.method
        for label, number, value in (
            (_("Noise level"), guide.noise_level, method.noiseLevel),
            (_("Guidance scale"), guide.guidance_scale, method.guidanceScale),
        ):
            if problem := choices.numberProblem(number, value if value >= 0 else None):
                return f"{label}: {problem}"
        if parameters.run.sliceSpacing == 0:
            return _("Slice spacing: it must be larger than 0 mm.")
        return self._deviceProblem(parameters.run.device)

    def mayLeave(self, parameters: Any) -> bool:
        """Whether scans may go where the device is; for a server the user is asked, once."""
        return mayLeave(parameters.run.device, self._settings)

    def _deviceList(self) -> list[choices.Device]:
        """This computer's devices, and the servers that are set up."""
        remotes = [choices.Device(server.device, server.title) for server in remote.servers(self._settings)]
        return [*choices.devices(self.machine), *remotes]

    def _deviceProblem(self, device: str) -> str:
        if remote.isRemote(device):
            return remote.problem(device, self._settings)
        return choices.deviceProblem(device, self.machine)

    def _whereTo(self, device: str) -> str:
        """That a scan leaves the computer, beside the device that it leaves it for."""
        server = remote.serverOf(device, self._settings)
        if server is None:
            return ""
        return _(
            "The scan leaves this computer: voxels and geometry go to {address}, names do not. "
            '<a href="forget">Forget this server</a>'
        ).format(address=escape(server.address))

    def _onDeviceLink(self, link: str) -> None:
        """Forget the server that is chosen, and its token."""
        parameters = self._context.parameters
        remote.remove(parameters.run.device.removeprefix(remote.PREFIX), self._settings)
        parameters.run.device = "auto"
        self._context.refreshSoon()

    def summary(self, parameters: Any, model: BundleSummary | None, seconds: float | None) -> str:
        """What Run does, in a line: method, model, device, time, and what is not as the model has it."""
        guide, device = get_method(parameters.method.name), parameters.run.device
        titles = {found.id: found.title for found in self._deviceList()} | {"cpu": _("CPU")}
        parts = [
            guide.title,
            shortened(model.name, LONGEST_IN_SUMMARY) if model else _("no model"),
            dict(choices.presets(guide.name)).get(parameters.method.preset, "") if parameters.method.preset else "",
            _("automatic") if device == "auto" else titles.get(device, device).partition(",")[0],
            _("given brain mask") if parameters.brainMask is not None else "",
            shortTime(seconds),
        ]
        return " · ".join(filter(None, parts))

    def request(self, parameters: Any) -> Request:
        """What the panel requests: the model and the steps that it shows, whatever a scene or an older choice says."""
        model = self.model(parameters)
        folder = model.path if model else None
        steps = _stepsToRun(parameters, folder)
        asked = requestOf(parameters)
        area = asked.minArea if choices.looksAtPictures(folder) else None
        return replace(asked, model=str(folder) if folder else None, steps=steps, minArea=area)

    def licencesAccepted(self, parameters: Any) -> bool:
        """Whether the licences of all weights of the run are accepted; asked once before their first use."""
        model = self.model(parameters)
        asked = choices.toAccept(model.path if model else None, self._settings)
        if not asked:
            return True
        names = "\n".join(f"• {summary.name}: {summary.license}" for summary in asked)
        accepted = slicer.util.confirmOkCancelDisplay(
            plain(
                _(
                    "The weights that this run uses have licences that do not allow every use, such as a commercial "
                    "one:\n\n{names}\n\nThe details show them in full. Do you accept them?"
                ).format(names=names)
            ),
            _("Licence of the weights"),
            detailedText="\n\n".join(f"{summary.name}\n\n{choices.licence(summary)}" for summary in asked),
        )
        if accepted:
            choices.accept(asked, self._settings)
        return bool(accepted)

    def contrasts(self, parameters: Any) -> tuple[str, tuple[str, ...]]:
        """Which contrast the model is for, and which further channels it looks at."""
        model = self.model(parameters)
        names = choices.channels(model.path) if model else ()
        return (names[0], names[1:]) if names else (model.modality if model else "", ())

    def model(self, parameters: Any) -> BundleSummary | None:
        """The package that will run: the one chosen, else the method's first for such a scan, else its first."""
        gone = [entry for entry in self._shown if not choices.isThere(entry.path)]
        if self._shownFor != parameters.method.name or gone:
            self._reload(parameters.method.name)
        chosen = next((entry for entry in self._shown if str(entry.path) == parameters.method.model), None)
        if chosen is None and not problemWith(scan := parameters.inputVolume):
            chosen = choices.suited(self._shown, contrastOf(scan), isPicture(scan))
        return chosen or (self._shown[0] if self._shown else None)

    def doubt(self, parameters: Any) -> str:
        """Why the scan may not be one for the model; empty when nothing is known against it."""
        scan, model = parameters.inputVolume, self.model(parameters)
        if model is None or problemWith(scan):
            return ""
        if isPicture(scan) != choices.looksAtPictures(model.path):
            if isPicture(scan):
                said = _("{model} looks at volumes, this is a single picture: choose a method with a model of films.")
            else:
                said = _("{model} looks at single pictures, this is a volume: choose another model.")
            return said.format(model=model.name)
        return contrastDoubt(scan, self.contrasts(parameters)[0])

    def close(self) -> None:
        for question in self._questions:
            question.close()

    def _titleOf(self, model: BundleSummary) -> str:
        """What the list says; of an added package with its folder, because several may have one name."""
        title = f"{model.name} {model.version}"
        return f"{title} ({model.path})" if choices.wasAdded(model.path, self._settings) else title

    def _reload(self, method: str) -> None:
        """Read the packages anew; kept, because that opens files."""
        self._offered, self._problems = choices.methods(self._settings), choices.problems(self._settings)
        self._shown, self._shownFor = choices.models(method, self._settings), method

    def _showSteps(self, parameters: Any, model: BundleSummary | None, seconds: float | None) -> None:
        steps = get_method(parameters.method.name).steps
        for widget in (self._ui.stepsLabel, self._ui.stepsSlider, self._ui.stepsInfoLabel):
            widget.setVisible(steps is not None)
        if steps is None:
            return
        folder = model.path if model else None
        name, preset, level = parameters.method.name, parameters.method.preset, _level(parameters)
        default = int(choices.defaultOf(steps, folder, get_method(name).presets.get(preset)))
        count = _stepsToRun(parameters, folder) or default
        highest = min(int(choices.highest(name, steps, folder, level, preset)), LARGEST_ON_SLIDER)
        with silent(self._ui.stepsSlider):
            self._ui.stepsSlider.minimum = 1
            self._ui.stepsSlider.maximum = max(highest, count)
            self._ui.stepsSlider.value = count
            self._ui.stepsSlider.suffix = _(" (default)") if self._ui.stepsSlider.value == default else ""
        self._ui.stepsInfoLabel.setText(
            _('The default is <a href="default">{steps}</a>. Expected time: {time}.').format(
                steps=default, time=timeInWords(seconds)
            )
        )

    def _seconds(self, parameters: Any, model: BundleSummary | None) -> float | None:
        volume = parameters.inputVolume
        if problemWith(volume):
            return None
        folder = model.path if model else None
        spacing = parameters.run.sliceSpacing
        slices = axialSlices(volume, spacing if spacing > 0 else choices.sliceSpacing(folder))
        count = _stepsToRun(parameters, folder)
        name = model.name if model else None
        return expectedSeconds(self._settings, parameters.method.name, name, parameters.run.device, slices, count)

    def _onMethod(self, name: str) -> None:
        if (parameters := self._context.parameters) is not None:
            parameters.method.name = name
            parameters.method.model = parameters.method.preset = ""
            parameters.method.steps = parameters.method.noiseLevel = parameters.method.guidanceScale = MODEL_DEFAULT

    def _onModel(self, folder: str) -> None:
        if (parameters := self._context.parameters) is not None:
            parameters.method.model = folder
            parameters.method.steps = MODEL_DEFAULT

    def _onPreset(self, preset: str) -> None:
        """The numbers start anew from what the preset has."""
        if (parameters := self._context.parameters) is not None:
            parameters.method.preset = preset
            parameters.method.steps = parameters.method.noiseLevel = parameters.method.guidanceScale = MODEL_DEFAULT

    def _onDevice(self, device: str) -> None:
        if device == ADD_SERVER:
            device = addServer(self._settings)
            self._context.refreshSoon()
        if device and (parameters := self._context.parameters) is not None:
            parameters.run.device = device

    def _onSteps(self, value: float) -> None:
        if (parameters := self._context.parameters) is not None:
            parameters.method.steps = int(value)

    def _onDefaultSteps(self, link: str) -> None:
        """Back to what the model has."""
        if (parameters := self._context.parameters) is not None:
            parameters.method.steps = MODEL_DEFAULT

    def _onCardLink(self, link: str) -> None:
        """Show the whole card or the whole licence, or forget a package that cannot be offered."""
        if link.startswith(choices.FORGET):
            choices.forget(Path(link.removeprefix(choices.FORGET)), self._settings)
            self._shownFor = ""
            self._context.refreshSoon()
            return
        if (model := self.model(self._context.parameters)) is None:
            return
        with slicer.util.tryWithErrorDisplay(_("The model package cannot be read.")):
            if link == "licence":
                slicer.util.messageBox(
                    plain(
                        _("Licence of the weights of {name}: {licence}").format(name=model.name, licence=model.license)
                    ),
                    detailedText=choices.licence(model),
                )
            else:
                slicer.util.messageBox(plain(choices.wholeCard(model)))

    def _onRemoveModel(self, checked: bool = False) -> None:
        parameters = self._context.parameters
        if (model := self.model(parameters)) is not None:
            choices.forget(model.path, self._settings)
            self._shownFor = ""
            parameters.method.model = ""
            self._context.refreshSoon()

    def _onAddModel(self, checked: bool = False) -> None:
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder of a model package"), str(Path.home())
        )
        if folder:
            self.addModel(Path(folder))

    def addModel(self, folder: Path) -> None:
        """Verify a package in the background, then list it; say what is wrong with it otherwise."""
        folder = folder.absolute()  # the process that verifies it has another working directory
        self._ui.modelCardLabel.setText(plain(_("Verifying {folder}…").format(folder=folder)))
        self._probe(["verify", str(folder)], lambda answer: self._onVerified(folder, answer))

    def _onVerified(self, folder: Path, answer: dict[str, Any]) -> None:
        if answer.get("ok") and not choices.isKnown(answer["method"]):
            answer = {
                "problem": _("{folder} is a whole model package, but this version has no method {method!r}.").format(
                    folder=folder, method=answer["method"]
                )
            }
        if not answer.get("ok"):
            problem = answer.get("problem") or _(
                "The package could not be verified. Are all Python packages installed?"
            )
            slicer.util.warningDisplay(plain(problem), _("This model cannot be used"))
        else:
            choices.remember(folder, self._settings)
            self._shownFor = ""
            if (parameters := self._context.parameters) is not None:
                self._onMethod(answer["method"])
                parameters.method.model = str(folder)
        self._context.refreshSoon()

    def _onMachine(self, answer: dict[str, Any]) -> None:
        self.machine = answer or None
        self._context.refreshSoon()

    def _probe(self, arguments: list[str], onAnswer: Any) -> None:
        self._questions = [question for question in self._questions if question.isOpen]
        self._questions.append(Question(QtProcess(), arguments, onAnswer))


def _level(parameters: Any) -> int | None:
    """The noise level requested; None for the model's."""
    return parameters.method.noiseLevel if parameters.method.noiseLevel >= 0 else None


def _stepsToRun(parameters: Any, folder: Path | None) -> int | None:
    method = parameters.method
    return choices.stepsToRun(method.name, folder, method.steps, _level(parameters), method.preset)
