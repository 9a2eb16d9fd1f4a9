"""What was run on what, so that a result can be traced and repeated: one JSON-ready dictionary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..models.declaration import BRAIN, IMAGE
from ..system import device_name, versions
from ..text import printable
from .planning import resolved_options

if TYPE_CHECKING:
    from ..io.volume import Scan, Volume
    from ..models.package import Bundle
    from .inference import RawMap
    from .planning import Plan
    from .recognition import Recognition

SCHEMA_VERSION = 2  # 1 had other names for some options, and the scan's whole path
LEAST_NAMED = 0.001  # probability of a contrast or pose that is worth a line
PURPOSE = "For research use only. Not for diagnosis."


def describe(
    scan: Scan,
    found: RawMap,
    brain: sitk.Image,
    *,
    brain_given: bool,
    force: bool,
    recognised: Mapping[str, Recognition],
    score: float,
    min_area: float | None,
    warnings: list[str],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Everything needed to trace and repeat a detection.

    Args:
        scan: what was looked at.
        found: what was computed from it.
        brain: the mask that everything was confined to.
        brain_given: whether the user gave that mask.
        force: whether the scan was to be looked at in any case.
        recognised: what each channel looks like, where the model's contrasts can be told.
        score: the whole-image score.
        min_area: below which findings of a picture were dropped; None of a volume.
        warnings: what the user was told.
        timings: seconds by stage.
    """
    plan, run = found.plan, found.run
    return {
        "schema_version": SCHEMA_VERSION,
        "purpose": PURPOSE,
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "input": describe_input(scan.reference, plan.asked.anonymous),
        **_channels(scan, plan.asked.anonymous),
        "region": plan.bundle.region,
        "brain": {
            "source": "given by the user" if brain_given else _finder(plan.bundle.region),
            **({"volume_ml": round(volume_ml(brain), 3)} if min_area is None else {}),
        },
        "recognised": {
            name: {
                kind: round(value, 4)
                for kind, value in (*seen.kinds.items(), *seen.poses.items())
                if value >= LEAST_NAMED
            }
            for name, seen in recognised.items()
        },
        "method": plan.method.name,
        "model": describe_bundle(plan.bundle),
        "options": {
            **resolved_options(plan),
            "force": force,
            "batch_size": run.batch_size,
            "min_area": min_area,
            "slice_spacing": found.stack.grid.max_slice_spacing,
        },
        "calibration": plan.calibration_source,
        "calibration_end": round(calibration_end(plan), 4),
        **({"calibration_spread": spread} if (spread := plan.calibration_spread) else {}),
        "threshold": {"heat": plan.threshold, "source": threshold_source(plan)},
        "score": {
            "value": score,
            "title": plan.method.score_title,
            "healthy_range": plan.score_range,
        },
        "slices": len(found.stack),
        "network_calls_per_slice": run.network_calls,
        "device": {"used": run.device, "name": device_name(run.device), "precision": run.precision},
        "versions": versions(),
        "warnings": list(warnings),
        "timings_seconds": {stage: round(seconds, 3) for stage, seconds in timings.items()},
    }


def describe_input(volume: Volume, anonymous: bool = False) -> dict[str, Any]:
    """The scan: which file, and its grid.

    Args:
        volume: the scan, or a channel of it.
        anonymous: whether names are left out. Folders always are: they often name the patient.
    """
    image = volume.image
    modality = {name: value for name, value in volume.metadata.items() if name == "modality"}
    return {
        "title": "scan" if anonymous else volume.name,
        "path": "" if anonymous else printable(Path(volume.source).name),
        "sha256": volume.sha256,
        "dimension": volume.dimension,
        "size": list(image.GetSize()),
        "spacing_mm": list(image.GetSpacing()),
        "origin_mm_lps": list(image.GetOrigin()),
        "direction_lps": list(image.GetDirection()),
        "non_finite_voxels": volume.non_finite,
        "metadata": modality if anonymous else dict(volume.metadata),
        **({"alignment": dict(volume.alignment)} if volume.alignment else {}),
    }


def _channels(scan: Scan, anonymous: bool) -> dict[str, Any]:
    """Each channel by its name, where there are several."""
    if len(scan.channels) == 1:
        return {}
    return {"channels": {name: describe_input(volume, anonymous) for name, volume in scan.channels.items()}}


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Which model package exactly."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "modality": bundle.modality,
        "license": bundle.license,
    }


def _finder(region: str) -> dict[str, Any] | str:
    """What found a region."""
    return describe_brain_model() if region == BRAIN else "all of it" if region == IMAGE else "found by grey level"


def describe_brain_model() -> dict[str, Any]:
    """The package that finds brains."""
    from ..models.package import open_bundle

    return describe_bundle(open_bundle("brain-mask"))


def threshold_source(plan: Plan) -> str:
    """Why the threshold is what it is."""
    stored = plan.stored_threshold
    allowed = stored.get("false_alarm_ml")
    source = str(stored.get("source") or "healthy validation scans")
    text = source if allowed is None else f"at most {allowed:g} ml of false alarms a scan on {source}"
    if plan.asked.threshold is not None:
        text = "chosen by the user"
    end = calibration_end(plan)
    if plan.threshold > end:  # no healthy voxel was that rare: the table goes on there as a straight line
        text += f"; beyond the calibration table, which ends at {end:.2f}"
    return text


def calibration_end(plan: Plan) -> float:
    """The highest score that was counted in healthy voxels; those above are extrapolated."""
    return float(plan.calibration.scores[-1])


def volume_ml(mask: sitk.Image) -> float:
    """Volume of a mask's non-zero voxels in ml."""
    voxels = np.count_nonzero(sitk.GetArrayViewFromImage(mask))
    return float(voxels * math.prod(mask.GetSpacing()) / 1000)
