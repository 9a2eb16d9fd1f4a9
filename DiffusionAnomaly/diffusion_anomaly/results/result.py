"""What a detection gives: what was found, and what it tells on the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import SimpleITK as sitk

from .findings import Finding


@dataclass(frozen=True)
class Progress:
    """How far a detection is.

    Attributes:
        stage: ``brain``, ``load``, ``detect`` or ``findings``, in this order.
        done, total: units of this stage.
        elapsed: seconds since the detection began.
        remaining: seconds the stage will still take; None when there is nothing to tell it from.
    """

    stage: str
    done: int
    total: int
    elapsed: float
    remaining: float | None


@dataclass(frozen=True)
class Started:
    """The model is ready: what runs where. See ``job.Started``."""

    device: str
    model: str | None
    version: str | None
    slices: int


@dataclass(frozen=True)
class Result:
    """What was found in a scan.

    Attributes:
        heat: float32 on the scan's grid, ``-log10`` of the healthy tail probability, 0 outside the brain.
        mask: uint8, heat from ``threshold`` on, without findings smaller than the minimum.
        findings: the mask's components.
        brain: uint8 mask that everything was confined to.
        score: whole-image score; see ``score_title`` in the provenance.
        score_warning: set when the score says that the model does not know such scans.
        threshold: heat from which a voxel is in the mask.
        provenance: what was run on what, JSON-ready.
        warnings: reasons to doubt the result, ``score_warning`` among them.
        timings: seconds by stage.
        healed: float32, the scan with its brain as the model would have it; None unless asked for, or where the method
            has no such thing.
    """

    heat: sitk.Image
    mask: sitk.Image
    findings: list[Finding]
    brain: sitk.Image
    score: float
    score_warning: str | None
    threshold: float
    provenance: dict[str, Any]
    warnings: list[str]
    timings: dict[str, float]
    healed: sitk.Image | None = None


def statistics(result: Result) -> dict[str, Any]:
    """The result's numbers: the findings in order of rank, and what they add up to."""
    return {
        "findings": [asdict(finding) for finding in result.findings],
        "volume_ml": sum(finding.volume_ml for finding in result.findings),
        "peak_heat": max((finding.peak_heat for finding in result.findings), default=0.0),
        "threshold": result.threshold,
        "score": result.score,
        "score_warning": result.score_warning,
    }
