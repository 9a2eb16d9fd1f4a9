"""The one way from a scan to an anomaly map, a mask and findings: everything that runs a model is a caller of this.

    scan -> brain -> axial slices -> method -> post-processing -> tail probability -> the scan's grid -> findings

Torch is imported when a detector first runs, not when this file is.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, MemoryExhausted
from ..io.contrasts import contrast_of, find_channels, match_names
from ..io.sources import Source, read, read_brain
from ..io.volume import PathLike, Scan, Volume
from ..models.declaration import IMAGE
from ..preprocessing.alignment import align
from ..preprocessing.intensity import values_in_brain
from ..preprocessing.slices import SliceStack
from ..results.findings import segment
from ..results.places import with_places
from ..results.result import Progress, Result, Started
from ..system import is_out_of_memory
from .brain import BrainFinder
from .doubts import Doubts
from .input_checks import score_warning
from .planning import Options, Plan, make_plan
from .provenance import describe
from .recognition import Recogniser
from .regions import find_region
from .watch import Watch

if TYPE_CHECKING:
    from ..models.networks import Model
    from ..models.package import Bundle
    from ..preprocessing.intensity import IntensityScale
    from .inference import HeldModel, RawMap


# Share of the brain outside a channel's field of view that is worth a word, and that is too much.
LEAST_UNCOVERED, MOST_UNCOVERED = 0.005, 0.5


class Detector:
    """Finds what is improbable in a healthy brain, in one scan after the other.

    Made once from what the user chose, which is checked then; it loads its model and the brain network when the first
    scan needs them and holds them. When memory runs out it drops what it holds, takes something smaller and stays
    usable.

    Args:
        options: the user's choices, or a plan made of them.
        bundle: an opened model package instead of the one that the options name.
        like: a detector whose model and brain network are taken over where they are the same.

    Raises:
        InputError: for an option that is unknown or out of range, or a device that is not there.
        ModelError: when the package is missing, damaged, or made for another method.

    >>> detector = Detector(Options(method="intensity"))
    >>> detector.plan.bundle.name
    'flair-intensity'
    """

    def __init__(
        self, options: Options | Plan | None = None, *, bundle: Bundle | None = None, like: Detector | None = None
    ) -> None:
        self.plan = options if isinstance(options, Plan) else make_plan(options or Options(), bundle)
        self._held: HeldModel | None = None
        self._recogniser = Recogniser()
        self._brain_finder = BrainFinder(device=self.plan.asked.device, precision=self.plan.asked.precision)
        if like is not None:
            self._take_over(like)

    def __repr__(self) -> str:
        bundle = self.plan.bundle
        return f"<Detector {self.plan.method.name}, {bundle.name} {bundle.version}, device {self.plan.asked.device}>"

    def _take_over(self, other: Detector) -> None:
        plan, before = self.plan, other.plan
        if (plan.asked.device, plan.asked.precision) == (before.asked.device, before.asked.precision):
            self._brain_finder = other._brain_finder
            same = (plan.bundle.path, plan.bundle.sha256) == (before.bundle.path, before.bundle.sha256)
            if same and plan.asked.batch_size == before.asked.batch_size:
                self._held = other._held
                return
        else:
            other._brain_finder.release()
        if other._held is not None:
            other._held.release()

    def __call__(
        self,
        scan: Source | Scan | Mapping[str, Source],
        *,
        brain: PathLike | sitk.Image | np.ndarray | None = None,
        spacing: Sequence[float] | None = None,
        force: bool | None = None,
        progress: Callable[[Progress], None] | None = None,
        on_started: Callable[[Started], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> Result:
        """Detect in one scan.

        Args:
            scan: a path, a DICOM folder, a SimpleITK image, an array, or what ``io.sources.read`` made of one; for a
                model that knows several contrasts, several of these by name, which are brought onto the first one's
                grid, or the folder that holds them all.
            brain: brain mask on the scan's grid, taken as given; None lets the bundled network find the brain.
            spacing: of an array, in mm ``(x, y, z)``, which is the reverse of the order of its axes.
            force: whether this scan is looked at although the model seems not to know it; None takes the option.
            progress: is told how far it is, several times a second; may raise ``Cancelled`` to stop.
            on_started: is told once what runs where.
            on_warning: is told of each warning when it arises; all are in the result too.

        Raises:
            InputError: when the scan or the mask cannot be used.
            ModelError: when the package's weights cannot.
            MemoryExhausted: when nothing more modest is left to try.
            Cancelled: when ``progress`` raised it.
        """
        watch = Watch(progress, on_started, on_warning)
        scan = self._scan(self._read(scan, spacing))
        mask = None if brain is None else read_brain(brain, scan.reference)
        force = self.plan.asked.force if force is None else force
        try:
            return self._detect(scan, mask, watch, force)
        except MemoryExhausted:
            self.release()
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = "x".join(map(str, scan.reference.image.GetSize()))
            failure = MemoryExhausted(
                f"Memory ran out with a scan of {size} voxels ({str(error) or type(error).__name__}).",
                "Close other programs, or use a machine with more memory.",
            )
            self.release()
            raise failure from error

    def join(self, volumes: Mapping[str, Volume]) -> Scan:
        """The model's channels as one scan, on the grid of its first.

        Raises:
            InputError: for other channels than the model's, and for volumes that do not show one head.
        """
        names = match_names(volumes, self.plan.channels, self.plan.bundle.name)
        asked = self.plan.asked
        return align(
            {name: volumes[given] for name, given in names.items()}, registered=asked.register, force=asked.force
        )

    def _read(self, source: Source | Scan | Mapping[str, Source], spacing: Sequence[float] | None) -> Scan | Volume:
        if isinstance(source, (str, os.PathLike)) and len(self.plan.channels) > 1:
            found = find_channels(Path(source), self.plan.channels)
            return self.join({name: channel.read() for name, channel in found.items()})
        if not isinstance(source, Mapping):
            return read(source, spacing=spacing)
        volumes = {}
        for name, one in source.items():
            volume = read(one, spacing=spacing if isinstance(one, np.ndarray) else None)
            if not isinstance(volume, Volume):
                raise InputError(f"The channel {name} is itself several channels.", "Give one volume a channel.")
            volumes[str(name)] = volume
        return self.join(volumes)

    def find_brain(self, scan: Scan | Volume, warn: Callable[[str], None] = lambda message: None) -> sitk.Image:
        """What of a scan the model looks at, mostly the brain, by its first channel: uint8 0/1 on its grid.

        Raises:
            InputError: when it is not found.
        """
        return find_region(self.plan.bundle.region, self._scan(scan).reference, self._brain_finder, warn)

    def raw_map(
        self, scan: Scan | Volume, brain: sitk.Image, *, progress: Callable[[Progress], None] | None = None
    ) -> RawMap:
        """Anomaly scores before calibration, by the same code as a detection: what a package is calibrated with.

        Args:
            scan: as for a detection; the package may still lack calibration.
            brain: brain mask on its grid.
            progress: as for a detection.
        """
        return self._raw_map(self._scan(scan), brain, Doubts(self.plan, Watch(progress), given=False, force=True))

    def slices(self, scan: Scan | Volume, brain: sitk.Image) -> tuple[SliceStack, list[IntensityScale]]:
        """A scan as the model is shown it: its slices, and each channel's intensities to [0, 1]."""
        images = self._scan(scan).images
        normalisation = self.plan.bundle.normalisation
        stack = SliceStack(images, self.plan.grid, brain, self.plan.bundle.orientation_of(images[0]))
        return stack, [normalisation.fit_scan(image, brain) for image in images]

    @property
    def held(self) -> HeldModel:
        """The model, loaded or not yet."""
        if self._held is None:
            from .inference import HeldModel

            self._held = HeldModel(self._load, self.plan.device, self.plan.asked.batch_size)
        return self._held

    @property
    def model(self) -> Model | None:
        """The loaded model; None for a method without one."""
        self.held.prepare(lambda message: None)
        return self.held.model

    def release(self) -> None:
        """Give the memory back that model and brain network hold; the next scan loads them anew."""
        self._brain_finder.release()
        if self._held is not None:
            self._held.release()
            self._held = None

    def _scan(self, scan: Scan | Volume) -> Scan:
        """The scan with exactly the model's channels, in its order."""
        names = self.plan.channels
        if isinstance(scan, Volume):
            scan = Scan({names[0]: scan})
        given = tuple(scan.channels)
        if len(given) == len(names) == 1:  # a single channel needs no name, but the one it has is no other's
            contrast = contrast_of(given[0])
            if contrast not in (None, contrast_of(names[0])):
                raise InputError(
                    f"The scan's one channel is called {given[0]}; the model {self.plan.bundle.name} knows {names[0]}.",
                    f"Give the {names[0]}, or choose another model.",
                )
            return scan
        missing = [name for name in names if name not in given]
        unknown = [name for name in given if name not in names]
        if missing or unknown:
            raise InputError(
                f"The scan has the channels {', '.join(given)}; the model {self.plan.bundle.name} knows "
                f"{', '.join(names)}.",
                "Give each of them, by its name." if missing else "Leave the others out.",
            )
        return scan if given == names else replace(scan, channels={name: scan.channels[name] for name in names})

    def _detect(self, scan: Scan, mask: sitk.Image | None, watch: Watch, force: bool) -> Result:
        plan = self.plan
        # An uncalibrated package is refused before any work.
        calibrate, threshold, score_range = plan.calibration, plan.threshold, plan.score_range
        doubts = Doubts(plan, watch, mask is not None, force)
        doubts.of_scan(scan, mask)
        watch.enter("brain")
        brain = mask if mask is not None else self.find_brain(scan, watch.warn)
        brain = _where_all_are(scan, brain, watch)
        recognised = doubts.of_brain(scan, brain, self._recogniser)
        watch.report(1, 1)

        found = self._raw_map(scan, brain, doubts)

        watch.enter("findings")
        calibrated = np.empty_like(found.raw)
        for n, plane in enumerate(found.raw):  # one by one: the table works in float64
            calibrated[n] = calibrate(plane)
        anomaly_map = found.stack.to_volume(calibrated)
        min_area = None
        if plan.bundle.region == IMAGE and min(scan.reference.image.GetSize()) == 1:
            min_area = plan.asked.min_area
            min_area = math.prod(found.stack.pixel_mm) if min_area is None else min_area
        mask_image, _, findings = segment(
            anomaly_map, threshold, plan.asked.min_volume_ml, brain, min_area, plan.peak_margin
        )
        findings = with_places(findings, brain, plan.bundle.region)
        doubts.of_findings(mask_image, brain)
        score = whole_image_score(found.scores)
        doubt = score_warning(score, score_range, plan.method.score_title) if score_range else None
        if doubt:
            watch.warn(doubt)
        watch.leave()
        watch.timings["total"] = time.perf_counter() - watch.start
        provenance = describe(
            scan,
            found,
            brain,
            brain_given=mask is not None,
            force=force,
            recognised=recognised,
            score=score,
            min_area=min_area,
            warnings=watch.warnings,
            timings=watch.timings,
        )
        return Result(
            scan=scan,
            anomaly_map=anomaly_map,
            mask=mask_image,
            findings=findings,
            brain=brain,
            score=score,
            score_warning=doubt,
            threshold=threshold,
            provenance=provenance,
            warnings=watch.warnings,
            timings=watch.timings,
            reconstruction=_reconstruction(scan, found.stack, found.run.reconstruction),
            slice_scores=found.stack.by_slice(found.scores),
        )

    def _raw_map(self, scan: Scan, brain: sitk.Image, doubts: Doubts) -> RawMap:
        from .inference import RawMap, run_slices
        from .postprocess import postprocess

        plan, watch = self.plan, doubts.watch
        watch.enter("load")
        stack, scales = self.slices(scan, brain)
        values = [values_in_brain(image, brain) for image in scan.images]
        doubts.of_slices(scan, brain, stack, scales, values)

        def started(device: str) -> None:
            watch.report(1, 1)
            if watch.on_started is not None:
                watch.on_started(Started(device, plan.bundle.name, plan.bundle.version, len(stack)))
            watch.enter("detect", len(stack) * max(1, plan.method.network_calls(plan.method_options)))

        run = run_slices(
            stack,
            scales,
            plan.method,
            plan.method_options,
            self.held,
            seed=plan.asked.seed,
            keep_reconstruction=plan.asked.keep_reconstruction,
            on_calls=watch.report,
            on_loaded=started,
            warn=watch.warn,
        )
        raw = run.raw
        if values[0].size and all(inside.min() == inside.max() for inside in values):
            raw = np.zeros_like(raw)  # nothing to find, whatever a network answers
        raw = postprocess(
            raw,
            stack.brain(),
            plan.postprocess,
            run.reconstruction_error,
            pixel_spacing=math.sqrt(math.prod(stack.pixel_mm)),
            slice_spacing=stack.slice_spacing,
        )
        reconstruction = run.reconstruction
        if reconstruction is not None:
            reconstruction = np.stack(
                [scale.inverse(reconstruction[:, channel]) for channel, scale in enumerate(scales)], axis=1
            )
        elif plan.asked.keep_reconstruction:
            watch.warn(f"The method {plan.method.name} makes no pseudo-healthy reconstruction, so none is kept.")
        watch.leave()
        return RawMap(stack, raw, run.scores, replace(run, raw=raw, reconstruction=reconstruction), plan)

    def _load(self, device: str) -> Model | None:
        if not self.plan.method.has_network:
            return None
        from ..models.loading import load_model

        return load_model(self.plan.bundle, device, self.plan.asked.precision)


def _where_all_are(scan: Scan, brain: sitk.Image, watch: Watch) -> sitk.Image:
    """The part of the brain that every channel shows: elsewhere a missing channel would look anomalous.

    Raises:
        InputError: when hardly any is left.
    """
    if scan.covered is None:
        return brain
    inside = sitk.GetArrayViewFromImage(brain) != 0
    covered = inside & (sitk.GetArrayViewFromImage(scan.covered) != 0)
    lost = 1 - np.count_nonzero(covered) / max(1, np.count_nonzero(inside))
    if lost > MOST_UNCOVERED:
        raise InputError(
            f"{lost:.0%} of the brain is outside the field of view of one of the channels.",
            "Give scans that show the whole head.",
        )
    if lost > LEAST_UNCOVERED:
        watch.warn(f"{lost:.1%} of the brain is outside the field of view of one of the channels and is not looked at.")
    part = sitk.GetImageFromArray(covered.astype(np.uint8))
    part.CopyInformation(brain)
    return part


def whole_image_score(scores: np.ndarray) -> float:
    """One score for a scan: the median over its slices, which a lesion in less than half of them does not move."""
    return float(np.median(scores)) if len(scores) else 0.0


def _reconstruction(scan: Scan, stack: SliceStack, reconstruction: np.ndarray | None) -> dict[str, sitk.Image] | None:
    """Each channel with what the model made of its brain in place of the brain.

    Args:
        scan: its channels.
        stack: its slices.
        reconstruction: ``(len(stack), C, H, W)`` in the channels' own units; None where nothing was kept.
    """
    if reconstruction is None:
        return None
    reached = sitk.GetArrayFromImage(stack.to_volume(np.ones_like(reconstruction[:, 0]))) > 0
    images = {}
    for channel, (name, volume) in enumerate(scan.channels.items()):
        made = sitk.GetArrayFromImage(stack.to_volume(reconstruction[:, channel]))
        values = np.where(reached, made, sitk.GetArrayViewFromImage(volume.image)).astype(np.float32)
        images[name] = sitk.GetImageFromArray(values)
        images[name].CopyInformation(volume.image)
    return images
