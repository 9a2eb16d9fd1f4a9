"""What speaks against a scan, from its header to its findings: each check in its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..io.contrasts import contrast_of
from ..io.volume import Scan
from ..models.declaration import BRAIN, IMAGE
from ..models.package import available
from ..preprocessing.intensity import ModeNormalisation, WindowNormalisation
from ..preprocessing.slices import SliceStack
from ..registry import METHODS
from .appearance import Appearance
from .head_size import brain_size_verdict, head_verdict, outline
from .input_checks import (
    brain_warnings,
    film_verdict,
    given_mask_verdict,
    label_verdict,
    mask_warnings,
    proportion_warnings,
    scale_warnings,
    scan_warnings,
)
from .intensity_checks import intensity_warnings, marked_warning
from .planning import Plan
from .recognition import CONTRASTS, Recogniser, Recognition
from .regions import region_warnings
from .watch import Watch

if TYPE_CHECKING:
    from ..preprocessing.intensity import IntensityScale

_FORCE = (
    "--force, force=True in Python (in the call for one scan, in da.load for all), or the panel's setting runs it all "
    "the same."
)
FORCE_HINT = f"Choose another scan or model. {_FORCE}"
SPACING_HINT = f"Put the voxel spacing in the header right, or export the scan again. {_FORCE}"
MASK_HINT = f"Give a mask of the whole brain, or leave it out: the program finds the brain. {_FORCE}"


@dataclass(frozen=True)
class Doubts:
    """The checks of one detection. Each method warns, and raises ``InputError`` for what is grave.

    Attributes:
        plan: what will run.
        watch: is told of doubts.
        given: whether the user gave the brain mask, and so has looked at the scan: most checks then warn at most.
        force: whether nobody is to be stopped.
    """

    plan: Plan
    watch: Watch
    given: bool
    force: bool

    def of_scan(self, scan: Scan, mask: sitk.Image | None) -> None:
        """Before anything is computed: what header, values and the given mask tell."""
        plan, watch, reference = self.plan, self.watch, scan.reference.image
        whole = plan.bundle.region == IMAGE
        for name, volume in scan.channels.items():
            for warning in scan_warnings(volume, self._modality(name, scan), whole):
                watch.warn(warning)
        if plan.calibration_warning is not None:
            watch.warn(plan.calibration_warning)
        for name, volume in scan.channels.items():
            values = sitk.GetArrayViewFromImage(volume.image)
            watch.judge(label_verdict(values, _called(name, scan), whole), FORCE_HINT, self.force)
            if not whole:
                film = film_verdict(volume.metadata, self._modality(name, scan))
                watch.judge(film, another_model("X-ray"), self.force)
        if plan.bundle.region == BRAIN:
            watch.judge(head_verdict(reference), SPACING_HINT, self.force or self.given)
            if mask is not None:
                watch.judge(given_mask_verdict(outline(reference), mask), MASK_HINT, self.force)

    def of_brain(self, scan: Scan, brain: sitk.Image, recogniser: Recogniser) -> dict[str, Recognition]:
        """What each channel looks like within the brain mask, found or given; nothing for other regions."""
        recognised: dict[str, Recognition] = {}
        if self.plan.bundle.region != BRAIN:
            return recognised
        if not self.given:
            self.watch.judge(brain_size_verdict(scan.reference.image, brain), SPACING_HINT, self.force)
        if not recogniser.is_there:
            self.watch.warn(
                "Whether the model knows such scans was not checked: the package scan-recognition is not there."
            )
        for name, volume in scan.channels.items():
            modality = self._modality(name, scan)
            # What the others look like, the network was not taught.
            if modality not in CONTRASTS or not recogniser.is_there:
                continue
            recognised[name] = recogniser(volume.image, brain)
            verdict = recognised[name].verdict(modality, _called(name, scan))
            hint = FORCE_HINT if recognised[name].kind == modality else another_model(recognised[name].kind)
            self.watch.judge(verdict, hint, self.given or self.force)
        return recognised

    def of_slices(
        self,
        scan: Scan,
        brain: sitk.Image,
        stack: SliceStack,
        scales: Sequence[IntensityScale],
        values: Sequence[np.ndarray],
    ) -> None:
        """Before the method runs: what the model would be shown.

        Args:
            scan: the scan.
            brain: the region's mask on its grid.
            stack, scales: see ``Detector.slices``.
            values: each channel's values inside the mask.
        """
        bundle, watch = self.plan.bundle, self.watch
        if bundle.region == BRAIN:
            doubts = [
                *brain_warnings(stack, values[0]),
                *mask_warnings(scan.reference.image, brain, self.given),
                *proportion_warnings(brain, self.given),
            ]
            for name, volume in scan.channels.items():
                doubts += intensity_warnings(volume.image, brain, _called(name, scan))
        else:
            doubts = list(region_warnings(stack, values[0], bundle.region, bundle.normalisation, scales[0]))
        for warning in doubts:
            watch.warn(warning)
        if "appearance" in bundle.anomaly:
            bundle.check()
            known = Appearance.from_dict(bundle.anomaly["appearance"])
            watch.judge(known.verdict(pictures(stack, scales)), FORCE_HINT, self.force)
        for warning in self._of_scales(scales, values):
            watch.warn(warning)

    def _of_scales(self, scales: Sequence[IntensityScale], values: Sequence[np.ndarray]) -> list[str]:
        rule = self.plan.bundle.normalisation
        if isinstance(rule, WindowNormalisation):
            return [
                f"The CT comes in a window, from {scale.low:g} to {scale.high:g}; it was taken to be that of the "
                f"model, {rule.low:g} to {rule.high:g} Hounsfield units. In another, scores mean little."
                for scale in scales
                if (scale.low, scale.high) != (rule.low, rule.high)
            ]
        if rule.kind != ModeNormalisation.kind:
            return []
        return [
            warning
            for inside, scale in zip(values, scales, strict=True)
            for warning in scale_warnings(inside, scale, self.given)
        ]

    def of_findings(self, mask: sitk.Image, brain: sitk.Image) -> None:
        """What more of a brain is marked than a lesion fills."""
        if self.plan.bundle.region == BRAIN:
            lowered = self.plan.threshold < float(self.plan.stored_threshold["heat"])
            marked = marked_warning(mask, brain, lowered)
            if marked is not None:
                self.watch.warn(marked)

    def _modality(self, channel: str, scan: Scan) -> str:
        """The contrast that a channel is known by; with or without contrast agent is one to the recogniser."""
        if len(scan.channels) == 1:
            return self.plan.bundle.modality
        contrast = contrast_of(channel)
        return {None: channel, "T1C": "T1"}.get(contrast, contrast or channel)


def another_model(contrast: str) -> str:
    """What to do about a scan of another contrast: which of the built-in models know it, or else ``FORCE_HINT``."""
    names = [model.name for model in available() if model.method in METHODS and model.modality == contrast]
    return f"For {contrast} there is --model {' or '.join(names)}. {_FORCE}" if names else FORCE_HINT


def pictures(stack: SliceStack, scales: Sequence[IntensityScale]) -> list[np.ndarray]:
    """The slices' first channel, normalised, ``(height, width)`` each."""
    found = []
    for index in range(len(stack)):  # one by one: a scan may have many
        image = stack.images(index, index + 1)[:, 0]
        found.append(scales[0](image, stack.brain(index, index + 1))[0])
    return found


def _called(name: str, scan: Scan) -> str:
    return f"channel {name}" if len(scan.channels) > 1 else "scan"
