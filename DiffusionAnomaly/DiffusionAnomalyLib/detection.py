"""From a volume node to result nodes, in the background: the one way in for the panel, for scripts and for tests.

Knows MRML and the job queue, but no widget. Whoever owns it calls ``tick`` a few times a second: the panel from a Qt
timer, a script from its own loop.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.models.package import builtin_directory, open_bundle
from diffusion_anomaly.registry import DEFAULT_METHOD, get_method

from . import choices
from .process import remote
from .process.environment import workerCommand, workerEnvironment
from .process.jobqueue import Entry, JobQueue
from .process.process import OwnedProcess, PipeProcess
from .process.warmworker import WarmWorker
from .process.workerjob import DetectionJob, Outcome, State
from .process.workspace import INPUT, Workspace, removeStale
from .process.writing import Writing
from .progresstext import rememberTimings
from .scene.channels import problemWithChannels
from .scene.display import isInView, showInSlices
from .scene.results import Place, ResultNodes, Wanted, loadResults, resultsIn
from .scene.volumes import maskOf, voxelsOf
from .settings import Settings, defaultSettings
from .translation import tr as _

SECONDS_BETWEEN_TICKS = 0.1


@dataclass(frozen=True)
class Request:
    """What to run. None leaves a choice to the model package.

    Attributes:
        method: name of a method.
        model: name of a model package that comes with the extension, or the folder of one.
        preset: the method's options by a name, such as ``paper``; ignored by a method without it.
        steps, noiseLevel, guidanceScale: numbers of the method; ignored by a method without them.
        device: ``auto``, ``cpu``, ``cuda:0``, or ``remote:NAME`` for a server that is set up, see ``process.remote``.
        seed: of all randomness.
        sliceSpacing: slices lie no farther apart, in mm.
        threshold: anomaly score from which a voxel is in the mask.
        minVolumeMl: smaller findings are dropped.
        minArea: the same of findings in a picture: mm², or pixels of one without a scale.
        peakMargin: findings whose highest score does not exceed the threshold by this much are dropped.
        wanted: which forms of the mask to make.
        keepReconstruction: whether the pseudo-healthy reconstruction of the scan becomes a volume too.
        keepFiles: whether the working files stay.
        anonymous: whether the scan's name is left out of provenance and report.
        force: whether a scan that the model seems not to know is looked at all the same.
        overrides: other options of the method, by name.
    """

    method: str = DEFAULT_METHOD
    model: str | None = None
    steps: int | None = None
    device: str = "auto"
    seed: int = 0
    noiseLevel: int | None = None
    guidanceScale: float | None = None
    sliceSpacing: float | None = None
    threshold: float | None = None
    minVolumeMl: float = 0.05
    minArea: float | None = None
    wanted: Wanted = field(default_factory=Wanted)
    keepReconstruction: bool = False
    keepFiles: bool = False
    anonymous: bool = False
    force: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    peakMargin: float | None = None

    def options(self) -> dict[str, Any]:
        """As the job file holds them."""
        guide = get_method(self.method)
        overrides = dict(self.overrides)
        for number, value in ((guide.noise_level, self.noiseLevel), (guide.guidance_scale, self.guidanceScale)):
            if number is not None and value is not None:
                overrides[number.name] = value
        options = {
            "steps": self.steps if guide.steps is not None else None,
            "preset": self.preset if self.preset in guide.presets else None,
            "device": self.device,
            "seed": self.seed,
            "slice_spacing": self.sliceSpacing,
            "threshold": self.threshold,
            "min_volume_ml": self.minVolumeMl,
            "min_area": self.minArea,
            "peak_margin": self.peakMargin,
            "overrides": overrides or None,
            "keep_reconstruction": self.keepReconstruction or None,
            "anonymous": self.anonymous or None,
            "force": self.force or None,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass
class Task:
    """What the queue carries for an entry.

    Attributes:
        request: what to run.
        place: where the scan was.
        steps: how many are run.
        resultId: the node of the anomaly map, once it is there. Not the node itself: an entry stays listed, and would
            keep the voxels of a result that has long been removed.
    """

    request: Request
    place: Place
    steps: int | None
    resultId: str = ""


class Detection:
    """Detections on the volumes of a scene, one at a time, all in one process that stays warm.

    >>> detection = Detection(slicer.mrmlScene, slicer.app.temporaryPath)  # doctest: +SKIP
    >>> entry = detection.add(volumeNode, Request("guided", steps=10))  # doctest: +SKIP
    >>> nodes = detection.wait(entry)  # doctest: +SKIP
    >>> nodes.anomalyMap.GetName()  # doctest: +SKIP
    'MRHead guided anomaly map'

    Args:
        scene: holds the volumes and gets the results.
        temporaryFolder: working folders are made in it.
        makeProcess: gives a new process; ``QtProcess`` inside Slicer.
        settings: where times are remembered.
        command, environment: how the worker is started; None for Slicer's own Python.

    Attributes:
        queue: all that runs, waits and has ended.
        onResults: takes an entry and its nodes when they are in the scene.
        onChanged: called when anything that is shown may have changed.
    """

    def __init__(
        self,
        scene: Any,
        temporaryFolder: Path | str,
        makeProcess: Callable[[], OwnedProcess] = PipeProcess,
        settings: Settings | None = None,
        command: list[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.scene = scene
        self.temporaryFolder = Path(temporaryFolder)
        self.settings = settings or defaultSettings()
        self.queue = JobQueue()
        self.queue.onFinished = self._finished
        self.onResults: Callable[[Entry, ResultNodes], None] = lambda entry, nodes: None
        self._worker = WarmWorker(makeProcess)
        # For a script that makes one and forgets it: an idle process would stay until Slicer ends.
        weakref.finalize(self, self._worker.shutdown, 0.0).atexit = False
        self._command = command
        self._environment = environment
        removeStale(self.temporaryFolder)

    @property
    def onChanged(self) -> Callable[[], None]:
        return self.queue.onChanged

    @onChanged.setter
    def onChanged(self, callback: Callable[[], None]) -> None:
        self.queue.onChanged = callback

    def add(
        self,
        volumeNode: Any,
        request: Request,
        maskNode: Any = None,
        segmentId: str = "",
        channels: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Queue a detection. The scan is written out meanwhile; what happens to it later does not matter to the worker.

        Args:
            volumeNode: the scan; for a model of several contrasts its first channel, which gives the grid.
            request: what to run.
            maskNode, segmentId: the brain mask; None lets the brain be found.
            channels: the volumes of the other channels by the model's names.

        Raises:
            InputError: when the volume, the mask or the method is no good, or the disk is full. Nothing stays behind.
        """
        if problem := remote.problem(request.device, self.settings):
            raise InputError(problem)
        steps = stepsOf(request)
        first, others = channelsOf(request)
        given = {name: (channels or {}).get(name) for name in others}
        if problem := problemWithChannels(volumeNode, first, given):
            raise InputError(problem, _("The model looks at several contrasts together."))
        mask = None if maskNode is None else maskOf(maskNode, segmentId, volumeNode)
        options = request.options()
        # The worker has a working directory of its own, where a relative path would lead elsewhere.
        model = None if request.model is None else str(open_bundle(request.model).path.absolute())
        workspace = Workspace(self.temporaryFolder)
        writings: list[Writing] = []
        try:
            if mask is not None:
                workspace.writeMask(mask)
            files = {first: INPUT} if given else {}
            writings.append(_begin(workspace, volumeNode, INPUT))
            for number, (name, node) in enumerate(given.items(), start=2):
                files[name] = f"channel-{number}.nrrd"
                writings.append(_begin(workspace, node, files[name]))
            workspace.writeJob(request.method, model, options, volumeNode.GetName(), files)
            if request.keepFiles:
                workspace.keep()
        except EngineError:
            for writing in writings:
                writing.cancel()
            workspace.remove()
            raise
        job = DetectionJob(
            workspace,
            self._worker.turn(),
            *self._worksBy(request.device),
            writings,
        )
        entry = Entry(volumeNode.GetName(), job, Task(request, Place.of(volumeNode), steps))
        self.queue.add(entry)
        return entry

    def _worksBy(self, device: str) -> tuple[list[str], Mapping[str, str]]:
        """The command and the environment of the process that does a run on a device.

        Raises:
            InputError: for a server that is not set up here.
        """
        if (server := remote.serverOf(device, self.settings)) is not None:
            return remote.forwarderCommand(), remote.forwarderEnvironment(server, self._environment)
        return self._command or workerCommand(), self._environment or workerEnvironment()

    def tick(self) -> None:
        """Deliver what the workers said, and stop what has lost its scan; to be called a few times a second."""
        self.queue.tick()
        for entry in list(self.queue.entries):
            if not entry.state.isOver and self._isGone(entry.request.place):
                why = _("The volume {name} was deleted while it was analysed. Load it again and press Run.")
                self.queue.cancel(entry, why.format(name=entry.title))

    def resultOf(self, entry: Entry) -> ResultNodes | None:
        """The nodes of an entry's result; None when it has none, or it is not in the scene any more."""
        found = (nodes for nodes in resultsIn(self.scene) if nodes.anomalyMap.GetID() == entry.request.resultId)
        return next(found, None) if entry.request.resultId else None

    def forgetScene(self) -> None:
        """The scene closes: nothing that runs has a place for its results, and no entry stays listed.

        The worker stays for the next scene, without the model: the memory that it takes is free until then.
        """
        self.queue.dismissAll()
        self._worker.release()

    def wait(self, entry: Entry, whileWaiting: Callable[[], None] = lambda: None) -> ResultNodes:
        """Wait for an entry.

        Args:
            entry: from ``add``.
            whileWaiting: called ten times a second, so that an application can stay alive; may raise to stop the run.

        Raises:
            InputError: when it failed or was cancelled, with what happened and what to do.
        """
        try:
            while not entry.state.isOver:
                self.tick()
                entry.job.tick()  # even when the queue was closed under it
                whileWaiting()
                time.sleep(SECONDS_BETWEEN_TICKS)
        except BaseException:
            if entry.state is State.WAITING:
                self.queue.cancel(entry)
            else:
                entry.job.kill()
            raise
        nodes = self.resultOf(entry) if entry.state is State.DONE else None
        if nodes is None:
            raise InputError(entry.message or _("The run has no result."))
        return nodes

    def renewWorker(self) -> None:
        """Packages change: no later run is left to a process that has imported the old ones."""
        self._worker.renew()

    def close(self) -> None:
        """End the process and delete every working file that is not kept; no callback comes any more."""
        self.onResults = lambda entry, nodes: None
        self.onChanged = lambda: None
        self.queue.killAll()
        self._worker.shutdown()

    def _finished(self, entry: Entry, outcome: Outcome) -> None:
        if outcome.state is not State.DONE:
            return
        task: Task = entry.request
        nodes = loadResults(self.scene, task.place, outcome.files, task.request.wanted)
        task.resultId = nodes.anomalyMap.GetID()
        if isInView(self.scene, nodes.inputNode):  # else another scan is in view by now
            showInSlices(self.scene, nodes.inputNode, nodes.anomalyMap)
        started = entry.job.started
        if started is not None:
            run = {
                "method": task.request.method,
                "model": started.model,
                # As it was asked for: by that the next run's time is looked up.
                "device": task.request.device if remote.isRemote(task.request.device) else started.device,
                "slices": started.slices,
                "steps": task.steps,
            }
            rememberTimings(self.settings, run, outcome.timings)
        self.onResults(entry, nodes)

    def _isGone(self, place: Place) -> bool:
        node = self.scene.GetNodeByID(place.nodeId)
        return node is None or (place.node is not None and place.node.Get() is not node)


def stepsOf(request: Request) -> int | None:
    """How many steps will be run: those requested, else the preset's or the model package's."""
    guide = get_method(request.method)
    if guide.steps is None:
        return None
    if request.steps is not None:
        return request.steps
    model = modelFolder(request)
    return int(choices.defaultOf(guide.steps, model, guide.presets.get(request.preset or "")))


def channelsOf(request: Request) -> tuple[str, tuple[str, ...]]:
    """What the input volume is to the model, and which other channels it needs; none for a single contrast."""
    names = choices.channels(modelFolder(request))
    return (names[0], names[1:]) if names else ("", ())


def _begin(workspace: Workspace, node: Any, name: str) -> Writing:
    """Write a volume's voxels as they are, on its own grid.

    Raises:
        InputError: when it cannot be analysed, or the disk has no room.
    """
    voxels, axes, origin = voxelsOf(node)
    scalars = node.GetImageData().GetPointData().GetScalars()
    return workspace.beginScan(voxels, axes, origin, scalars.GetMTime, name)


def modelFolder(request: Request) -> Path | None:
    """The folder of the package that will be used; None for a method without one."""
    name = request.model or get_method(request.method).default_model
    if name is None:
        return None
    folder = builtin_directory() / name  # which an absolute path replaces
    return folder if choices.isThere(folder) else open_bundle(name).path
