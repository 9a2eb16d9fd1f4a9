"""What can be chosen: methods, the models of each, what a model's card says, and where it may run.

Everything comes from the engine's guide to the methods and from the model packages themselves, so that a new method or
a new package appears in the panel without a change here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from diffusion_anomaly.models.declaration import ANOMALY, BRAIN, IMAGE
from diffusion_anomaly.models.package import BundleSummary, available, builtin_directory, open_bundle
from diffusion_anomaly.registry import METHODS, MethodEntry, NumberRange, get_method

from .settings import Settings, readJson, writeJson
from .translation import tr as _

ADDED_MODELS = "AddedModels"
ACCEPTED_LICENCES = "AcceptedLicences"
PERMISSIVE = {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0"}
RECOGNITION = "scan-recognition"
DEFAULT_SLICE_SPACING = 3.0
HEADLINE_NUMBERS = 2
# What a card says of a model that was measured beside the baseline.
BEATS_INTENSITY = "beats the intensity baseline"
# What a package says of its measurement, and at its own threshold.
MEASURED_ON = "measured on"
LESION_RECALL, FALSE_POSITIVES = "lesion recall at the stored threshold", "false positives a scan"
SENSITIVITY, SPECIFICITY = "sensitivity at the stored threshold", "specificity at the stored threshold"
FORGET = "forget:"


@dataclass(frozen=True)
class Device:
    """Where a network can run.

    Attributes:
        id: ``auto``, ``cpu`` or ``cuda:0``.
        title: for people.
    """

    id: str
    title: str


def methods(settings: Settings) -> list[MethodEntry]:
    """The methods that can run here: those that there is a model for."""
    there = [folder for folder in _added(settings) if isThere(folder)]
    found = {summary.method for summary in available(there) if not summary.problem}
    return [guide for guide in METHODS.values() if guide.name in found]


def models(method: str, settings: Settings) -> list[BundleSummary]:
    """The packages of a method: its default, the others that come with the extension, then those that were added."""
    there = [folder for folder in _added(settings) if isThere(folder)]
    found = [summary for summary in available(there) if summary.method == method and not summary.problem]
    default = METHODS[method].default_model
    return sorted(found, key=lambda summary: (summary.path.parent != builtin_directory(), summary.name != default))


def problems(settings: Settings) -> dict[Path, str]:
    """Folders of the packages that cannot be offered, and what is wrong with each."""
    there = [folder for folder in _added(settings) if isThere(folder)]
    gone = {
        folder: _("{folder} is not there.").format(folder=folder) for folder in _added(settings) if folder not in there
    }
    return gone | {summary.path: summary.problem for summary in available(there) if summary.problem}


def remember(folder: Path, settings: Settings) -> None:
    """Offer a package that was verified from now on."""
    if folder not in _added(settings):
        _writeAdded(settings, [*_added(settings), folder])


def forget(folder: Path, settings: Settings) -> None:
    """Offer an added package no more. Its files stay."""
    _writeAdded(settings, [entry for entry in _added(settings) if entry != folder])


def wasAdded(folder: Path, settings: Settings) -> bool:
    """Whether a package was added by the user; the others come with the extension."""
    return folder in _added(settings)


def defaultOf(number: NumberRange, model: Path | None, preset: Mapping[str, Any] | None = None) -> float:
    """The default of a number: the preset's, else the package's, else the method's."""
    if preset and number.name in preset:
        return float(preset[number.name])
    if model is None:
        return number.default
    return _number(_anomaly(model).get("options", {}).get(number.name), number.default)


def highest(
    method: str, number: NumberRange, model: Path | None, noiseLevel: float | None = None, preset: str = ""
) -> float:
    """How far a number may go with a package: no more steps than there are noise levels."""
    guide = get_method(method)
    if number == guide.steps and guide.noise_level is not None:
        level = defaultOf(guide.noise_level, model, guide.presets.get(preset)) if noiseLevel is None else noiseLevel
        return level + 1 if guide.noise_level.low == 0 else level  # counted from 0: so many levels and one
    if number == guide.steps and model is not None:
        return min(number.high, _number(_anomaly(model).get("options", {}).get("levels"), 10))
    return number.high


def stepsToRun(
    method: str, model: Path | None, requested: int, noiseLevel: float | None = None, preset: str = ""
) -> int | None:
    """How many steps a run takes: those requested, else the default, but no more than can be.

    Args:
        method: its name.
        model: folder of the package.
        requested: a number, or none above 0 for the default.
        noiseLevel: the level requested; None for the default.
        preset: of the method; without one of that name the package's options count.
    """
    guide = get_method(method)
    if guide.steps is None:
        return None
    wanted = requested if requested > 0 else int(defaultOf(guide.steps, model, guide.presets.get(preset)))
    return max(1, min(wanted, int(highest(method, guide.steps, model, noiseLevel, preset))))


def presets(method: str) -> list[tuple[str, str]]:
    """Names of a method's options and what to call each, the model's own first; empty where there is no choice."""
    names = get_method(method).presets
    titles = {"paper": _("As published")}
    return [("", _("As the model has them")), *((name, titles.get(name, name)) for name in names)] if names else []


def looksAtPictures(model: Path | None) -> bool:
    """Whether findings may have areas: the package looks at whole images."""
    return model is not None and isThere(model) and _anomaly(model).get("region") == IMAGE


def suited(models: Sequence[BundleSummary], contrast: str, isPicture: bool) -> BundleSummary | None:
    """The first package for such a scan; None when there is none, or nothing is known of a volume's contrast.

    Args:
        models: of a method.
        contrast: of the scan, as its name or header gives it away.
        isPicture: whether the scan is a single slice.
    """
    found = [summary for summary in models if looksAtPictures(summary.path) == isPicture]
    return next((summary for summary in found if isPicture or summary.modality == contrast), None)


def isKnown(method: str) -> bool:
    """Whether this version has the method; a scene or a package of another one may name what it has not."""
    return any(guide.name == method for guide in METHODS.values())


def numberProblem(number: NumberRange | None, value: float | None) -> str:
    """Why a method would refuse a number; empty when it would not, or was not given one."""
    if number is None or value is None or number.low <= value <= number.high:
        return ""
    return _("{value:g} is out of range: this method takes {low:g} to {high:g}.").format(
        value=value, low=number.low, high=number.high
    )


def channels(model: Path | None) -> tuple[str, ...]:
    """The contrasts that a package looks at together, the input volume's first; none that is not there."""
    names = _anomaly(model).get("channels", ()) if model is not None and isThere(model) else ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def sliceSpacing(model: Path | None) -> float:
    """How far apart slices lie by default, in mm."""
    grid = _anomaly(model).get("grid", {}) if model is not None else {}
    return float(_number(grid.get("max_slice_spacing"), DEFAULT_SLICE_SPACING))


def card(summary: BundleSummary, time: str) -> str:
    """A model's card as rich text: what it expects, what it found and missed, its licence, the time it takes here.

    The links ``card`` and ``licence`` in it stand for ``wholeCard`` and ``licence``.
    """
    rows = [
        (_("Expects"), expects(summary), ""),
        (_("Measured"), measured(summary.quality), f' <a href="card">{escape(_("all"))}</a>'),
        (_("Licence"), summary.license, f' <a href="licence">{escape(_("show"))}</a>'),
        (_("Time here"), time, ""),
    ]
    return "<br>".join(f"<b>{escape(title)}:</b> {escape(text)}{link}" for title, text, link in rows)


def measured(quality: Mapping[str, Any]) -> str:
    """What a model found and missed where it was measured, in a sentence; the other numbers are in the whole card."""
    where = quality.get(MEASURED_ON)
    for found, wrong, sentence in (
        (
            LESION_RECALL,
            FALSE_POSITIVES,
            _(
                "on {where}, {found:.0%} of the lesions were found and {missed:.0%} missed, with {wrong:.1f} false "
                "findings a scan"
            ),
        ),
        (
            SENSITIVITY,
            SPECIFICITY,
            _(
                "on {where}, {found:.0%} of the images with disease were marked and {missed:.0%} missed, and "
                "{unmarked:.0%} of those without were left unmarked"
            ),
        ),
    ):
        numbers = [quality.get(found), quality.get(wrong)]
        if where and all(isinstance(number, float) for number in numbers):
            share, other = map(float, numbers)  # type: ignore[arg-type]
            return sentence.format(where=where, found=share, missed=1 - share, wrong=other, unmarked=other)
    return _headline(quality)


def problemsAsText(found: Mapping[Path, str]) -> str:
    """Models that cannot be offered as rich text; the link ``forget`` and the folder takes one off the list."""
    line = '<p>{problem} <a href="{link}">{forget}</a></p>'
    return "".join(
        line.format(problem=escape(problem), link=escape(f"{FORGET}{folder}"), forget=escape(_("Forget it")))
        for folder, problem in found.items()
    )


def expects(summary: BundleSummary) -> str:
    """Which scans a model knows."""
    planes = {"axial": _("axial slices"), "any": _("any orientation")}.get(summary.orientation, summary.orientation)
    return ", ".join(filter(None, [summary.modality, planes, f"{summary.spacing:g} mm" if summary.spacing else ""]))


def wholeCard(summary: BundleSummary) -> str:
    """Everything that a model's package says of it, as plain text.

    Raises:
        ModelError: when the package cannot be read any more.
    """
    facts = open_bundle(summary.path).metadata
    limits = facts.get("limits")
    parts = [
        _("{name} {version}, {size:.0f} MB, in {folder}").format(
            name=summary.name, version=summary.version, size=summary.size_mb, folder=summary.path
        ),
        str(facts.get("intended_use", "")),
        _("Expects: {text}").format(text=expects(summary)),
        _("Learnt from: {text}").format(text=facts["data_source"]) if facts.get("data_source") else "",
        _("Limits:") if limits else "",
        *(f"- {limit}" for limit in (limits if isinstance(limits, list) else [limits] if limits else [])),
        _("Measured:"),
        *(f"- {name}: {_value(value)}" for name, value in summary.quality.items()),
        _("Licence of the weights: {text}").format(text=summary.license),
    ]
    return "\n".join(filter(None, parts))


def licence(summary: BundleSummary) -> str:
    """The whole licence of a model's weights, to be shown before its first use."""
    return open_bundle(summary.path).license_text


def toAccept(model: Path | None, settings: Settings) -> list[BundleSummary]:
    """Packages of a run whose licence keeps some uses back, and which nobody here has accepted yet.

    Args:
        model: folder of the run's package; a model of the brain has the contrast checked by a package of its own.
        settings: where what was accepted is remembered.
    """
    if model is None:
        return []
    used = {model, builtin_directory() / RECOGNITION} if _anomaly(model).get("region", BRAIN) == BRAIN else {model}
    known = readJson(settings, ACCEPTED_LICENCES, [])
    summaries = available([model] if model.parent != builtin_directory() else [])
    return [
        summary
        for summary in summaries
        if summary.path in used and summary.license not in PERMISSIVE and _licenceKey(summary) not in known
    ]


def accept(summaries: Sequence[BundleSummary], settings: Settings) -> None:
    """Ask for these packages no more, until one comes with another licence."""
    known = readJson(settings, ACCEPTED_LICENCES, [])
    writeJson(settings, ACCEPTED_LICENCES, [*known, *map(_licenceKey, summaries)])


def _licenceKey(summary: BundleSummary) -> str:
    return f"{summary.name}: {sha256(licence(summary).encode('utf-8')).hexdigest()}"


def devices(machine: Mapping[str, Any] | None) -> list[Device]:
    """Where a network can run, from what ``worker.probe`` answers; before it came, automatic and CPU."""
    found = [Device("auto", _("Automatic")), Device("cpu", _("CPU"))]
    for entry in (machine or {}).get("devices", []):
        if entry["id"] == "cpu":
            found[1] = Device("cpu", _("CPU: {name}").format(name=entry["name"]))
        else:
            title = _("{name}, {free:.1f} of {total:.1f} GB free").format(
                name=entry["name"], free=entry["free_mb"] / 1024, total=entry["total_mb"] / 1024
            )
            found.append(Device(entry["id"], title))
    return found


def deviceProblem(device: str, machine: Mapping[str, Any] | None) -> str:
    """Why a device cannot be used; empty when it can, or when nobody knows yet."""
    if machine is None or device in ("auto", "cpu"):
        return ""
    entry = next((entry for entry in machine.get("devices", []) if entry["id"] == device), None)
    if entry is None:
        return _("{device} is not there, or this build of torch cannot use it. Choose Automatic or CPU.").format(
            device=device
        )
    if entry.get("free_mb", 0) < 1024:
        return _("{name} has {free} MB free; a run needs about 1000. Close other programs or choose CPU.").format(
            name=entry["name"], free=entry["free_mb"]
        )
    return ""


def _added(settings: Settings) -> list[Path]:
    """Folders of the packages that the user added; whatever else a damaged settings file holds is left out."""
    return [Path(folder) for folder in readJson(settings, ADDED_MODELS, []) if isinstance(folder, str)]


def _writeAdded(settings: Settings, folders: list[Path]) -> None:
    writeJson(settings, ADDED_MODELS, [str(folder) for folder in folders])


def isThere(model: Path) -> bool:
    """Whether a package's folder is still where it was: the user, or a network drive, may have taken it away."""
    try:
        return _declaration(model).is_file()
    except OSError:  # a drive that does not answer, or a name that no drive can have
        return False


def _anomaly(model: Path) -> Mapping[str, Any]:
    """What a package declares; read again only when its file has changed: the panel needs it at every refresh."""
    return _read(model, _declaration(model).stat().st_mtime_ns if isThere(model) else 0)


@lru_cache(maxsize=64)
def _read(model: Path, stamp: int) -> Mapping[str, Any]:
    return open_bundle(model).anomaly


def _number(value: Any, default: float) -> float:
    """What a package says, which no schema has looked at yet, if it is a number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _declaration(model: Path) -> Path:
    return model / ANOMALY


def _headline(quality: Mapping[str, Any]) -> str:
    """The first measured numbers; the others, and their intervals, are in the whole card."""
    texts = [f"{name} {value:.2f}" for name, value in quality.items() if isinstance(value, float)][:HEADLINE_NUMBERS]
    verdict = quality.get(BEATS_INTENSITY)
    if verdict is not None:
        texts.append(f"{BEATS_INTENSITY}: {verdict}")
    return ", ".join(texts) or _("not measured")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return (
        _("{low} to {high}").format(low=_value(value[0]), high=_value(value[1])) if _isInterval(value) else str(value)
    )


def _isInterval(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2
