"""The one way from a scan to heat, mask and findings: panel, command line, evaluation and tests all come through here.

    scan -> brain -> axial slices -> method -> post-processing -> tail probability -> the scan's grid -> findings

Torch is imported when a detection starts, not when this file is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import MemoryExhausted
from ..preprocessing.intensity import ModeNormalisation, values_in_brain
from ..preprocessing.slices import SliceStack
from ..results.findings import segment
from ..results.result import Progress, Result, Started
from ..system import free_gpu_memory, is_out_of_memory
from .input_checks import (
    brain_warnings,
    mask_warnings,
    proportion_warnings,
    scale_warnings,
    scan_warnings,
    score_warning,
)
from .planning import Options, Plan, make_plan
from .provenance import describe

if TYPE_CHECKING:
    from ..io.volume import Volume
    from .inference import RawHeat


@dataclass
class _Watch:
    """Time and warnings of one detection, told to whoever listens."""

    on_progress: Callable[[Progress], None] | None = None
    on_started: Callable[[Started], None] | None = None
    on_warning: Callable[[str], None] | None = None
    warnings: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)
    stage: str = ""
    stage_start: float = 0.0

    def enter(self, stage: str, total: int = 1) -> None:
        self.leave()
        self.stage, self.stage_start = stage, time.perf_counter()
        self.report(0, total)

    def leave(self) -> None:
        if self.stage:
            spent = time.perf_counter() - self.stage_start
            self.timings[self.stage] = self.timings.get(self.stage, 0.0) + spent
        self.stage = ""

    def report(self, done: int, total: int) -> None:
        if self.on_progress is None:
            return
        now = time.perf_counter()
        remaining = (now - self.stage_start) * (total - done) / done if done else None
        self.on_progress(Progress(self.stage, done, total, now - self.start, remaining))

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        if self.on_warning is not None:
            self.on_warning(message)


def detect(
    volume: Volume,
    options: Options,
    *,
    mask: sitk.Image | None = None,
    plan: Plan | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_started: Callable[[Started], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Result:
    """Find what is improbable in a healthy brain.

    Args:
        volume: the scan.
        options: the user's choices.
        mask: brain mask on the scan's grid, taken as given; None lets the bundled network find the brain.
        plan: from ``make_plan(options)``, when the caller has made it already.
        progress: is told how far it is, several times a second; may raise ``Cancelled`` to stop.
        on_started: is told once what runs where.
        on_warning: is told of each warning when it arises; all are in the result too.

    Raises:
        InputError: when the scan, the mask or an option cannot be used.
        ModelError: when the model package cannot.
        MemoryExhausted: when nothing more modest is left to try.
        Cancelled: when ``progress`` raised it.
    """
    watch = _Watch(progress, on_started, on_warning)
    try:
        return _detect(volume, plan or make_plan(options), mask, watch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = "x".join(map(str, volume.image.GetSize()))
        raise MemoryExhausted(
            f"Memory ran out with a scan of {size} voxels ({error}).",
            "Close other programs, or use a machine with more memory.",
        ) from error


def _detect(volume: Volume, plan: Plan, mask: sitk.Image | None, watch: _Watch) -> Result:
    calibrate, threshold = plan.calibration, plan.threshold  # an uncalibrated package is refused before any work
    for warning in scan_warnings(volume, plan.bundle.modality):
        watch.warn(warning)
    watch.enter("brain")
    brain = mask if mask is not None else _find_brain(volume, plan, watch)
    watch.report(1, 1)

    found = _raw_heat(volume, brain, plan, watch)

    watch.enter("findings")
    calibrated = np.empty_like(found.raw)
    for n, plane in enumerate(found.raw):  # one by one: the table works in float64
        calibrated[n] = calibrate(plane)
    heat = found.stack.to_volume(calibrated)
    mask_image, _, findings = segment(heat, threshold, plan.asked.min_volume_ml, brain)
    score = whole_image_score(found.scores)
    doubt = score_warning(score, plan.score_range, plan.method.score_title) if plan.score_range else None
    if doubt:
        watch.warn(doubt)
    watch.leave()
    watch.timings["total"] = time.perf_counter() - watch.start
    provenance = describe(
        volume, found, brain, brain_given=mask is not None, score=score, warnings=watch.warnings, timings=watch.timings
    )
    healed = None if found.run.healed is None else _healed_scan(volume, found.stack, found.run.healed)
    return Result(
        heat,
        mask_image,
        findings,
        brain,
        score,
        doubt,
        threshold,
        provenance,
        watch.warnings,
        watch.timings,
        healed,
    )


def raw_heat(
    volume: Volume,
    brain: sitk.Image,
    plan: Plan,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> RawHeat:
    """Heat of a scan before calibration, by the same code as a detection: what training calibrates a package with.

    Args:
        volume: the scan.
        brain: brain mask on its grid.
        plan: from ``make_plan``; its package may still lack calibration.
        progress: as for ``detect``.
    """
    return _raw_heat(volume, brain, plan, _Watch(progress))


def _raw_heat(volume: Volume, brain: sitk.Image, plan: Plan, watch: _Watch) -> RawHeat:
    from .inference import RawHeat, run_slices
    from .postprocess import postprocess

    watch.enter("load")
    stack = SliceStack(volume, plan.grid, brain)
    values = values_in_brain(volume.image, brain)
    for warning in (*brain_warnings(stack, values), *mask_warnings(volume.image, brain), *proportion_warnings(brain)):
        watch.warn(warning)
    scale = plan.bundle.normalisation.fit_scan(volume.image, brain)
    if plan.bundle.normalisation.kind == ModeNormalisation.kind:
        for warning in scale_warnings(values, scale):
            watch.warn(warning)

    def started(device: str) -> None:
        watch.report(1, 1)
        if watch.on_started is not None:
            watch.on_started(Started(device, plan.bundle.name, plan.bundle.version, len(stack)))
        watch.enter("detect", len(stack) * max(1, plan.method.network_calls(plan.method_options)))

    run = run_slices(
        stack,
        scale,
        plan.method,
        plan.method_options,
        plan.load,
        device=plan.device,
        seed=plan.asked.seed,
        batch_size=plan.asked.batch_size,
        keep_healed=plan.asked.keep_healed,
        on_calls=watch.report,
        on_loaded=started,
        warn=watch.warn,
    )
    if values.size and values.min() == values.max():  # nothing to find, whatever a network answers
        run = replace(run, raw=np.zeros_like(run.raw))
    filtered = postprocess(
        run.raw,
        stack.brain(),
        plan.postprocess,
        run.misfit,
        pixel_spacing=stack.grid.spacing,
        slice_spacing=stack.slice_spacing,
    )
    run = replace(run, raw=filtered)
    if run.healed is not None:
        run = replace(run, healed=scale.inverse(run.healed))
    watch.leave()
    return RawHeat(stack, run.raw, run.scores, run, plan)


def _healed_scan(volume: Volume, stack: SliceStack, healed: np.ndarray) -> sitk.Image:
    """The scan, with what the model made of its brain in place of the brain.

    Args:
        volume: the scan.
        stack: its slices.
        healed: ``(len(stack), H, W)`` in the scan's own units.
    """
    reached = sitk.GetArrayFromImage(stack.to_volume(np.ones_like(healed))) > 0
    made = sitk.GetArrayFromImage(stack.to_volume(healed))
    image = sitk.GetImageFromArray(np.where(reached, made, sitk.GetArrayViewFromImage(volume.image)).astype(np.float32))
    image.CopyInformation(volume.image)
    return image


def whole_image_score(scores: np.ndarray) -> float:
    """One score for a scan: the median over its slices, which a lesion in less than half of them does not move."""
    return float(np.median(scores)) if len(scores) else 0.0


def _find_brain(volume: Volume, plan: Plan, watch: _Watch) -> sitk.Image:
    from .brain import find_brain

    failed = False
    try:
        return find_brain(volume, device=plan.device, precision=plan.asked.precision)
    except Exception as error:
        if not is_out_of_memory(error) or not plan.device.startswith("cuda"):
            raise
        failed = True  # handled below, when the exception no longer holds the memory
    assert failed
    free_gpu_memory()
    watch.warn(f"Memory of {plan.device} ran out when finding the brain; it is found, more slowly, on the CPU.")
    return find_brain(volume, device="cpu", precision=plan.asked.precision)
