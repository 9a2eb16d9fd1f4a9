"""A new mask and findings from an existing anomaly map. It holds all that is needed, so no network runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .. import __version__
from ..errors import InputError
from ..io.outputs import OutputFolder
from ..io.records import ANOMALY_MAP, BRAIN_MASK, DIGESTS, Recorded, kind_of, record, recorded
from ..io.sources import read_brain
from ..io.volume import Volume, read_anomaly_map, write_like
from ..models.declaration import BRAIN
from ..options import check_threshold, margin_of
from ..results.findings import segment, size_unit, write_findings_csv, write_findings_json
from ..results.places import with_places
from ..results.saving import PROVENANCE, file_names, image_suffix
from .console import err, out, plain, show_findings

RECORD = "threshold.json"

# Of 190 maps of all methods, forced ones of other contrasts among them, the middle of the values above 0 was 1.3 at
# most and the highest value 18; unscaled scans begin at ten times that.
_HIGHEST_MIDDLE, _HIGHEST = 3.0, 100.0
# A probability map or a mask in fractions comes close to 1 somewhere and never passes it.
_NEARLY_CERTAIN = 0.95
# Of the voxels with a score. A brain mask by another program differs at its border; one hemisphere is a half.
_LEFT_OUT = 0.4


SMALLEST_ML = 0.05  # what is dropped in volumes unless asked otherwise


def rethreshold(
    anomaly_map: Path,
    at: float,
    output: Path,
    *,
    min_volume_ml: float = SMALLEST_ML,
    min_area: float | None = None,
    peak_margin: float | None = None,
    brain: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write mask, findings and a record of how they were made, and show the findings.

    Args:
        anomaly_map: anomaly map that a detection wrote.
        at: the anomaly score from which a voxel is in the mask.
        output: folder; not one that holds a detection, whose provenance would then speak of another mask.
        min_volume_ml: smaller findings are dropped.
        min_area: the same of a picture; None takes what the detection took, and of a volume none.
        peak_margin: findings whose highest score does not exceed the threshold by this much are dropped; None takes
            what the detection took, and 0 where nothing is recorded.
        brain: mask file on the anomaly map's grid; None takes all scores.
        overwrite: whether what was made of another map may make room.

    Raises:
        InputError: when something cannot be read or written, is no anomaly map, or a number is out of range.
    """
    check_threshold(at)
    if (output / PROVENANCE).exists():
        raise InputError(
            f"{output} holds the results of a detection, and its provenance tells of their threshold.",
            "Choose another output folder.",
        )
    made = _made(anomaly_map)
    names = (f"mask{image_suffix(str(anomaly_map))}", "findings.csv", "findings.json", RECORD)
    inputs = [path for path in (anomaly_map, brain) if path is not None]
    with OutputFolder(output, inputs) as folder:
        earlier = folder.replaced(names)
        volume = read_anomaly_map(anomaly_map)
        scores = sitk.GetArrayViewFromImage(volume.image)
        warnings = _recorded_warnings(made, scores, anomaly_map)
        if not overwrite:
            _keep_others(earlier, volume.sha256, output)
        inside = None if brain is None else read_brain(brain, volume)
        if inside is not None:
            warnings += _mask_warnings(scores, sitk.GetArrayViewFromImage(inside))
        if min_area is None:
            min_area = _recorded_area(made)
        if min_area is not None and min_volume_ml != SMALLEST_ML:
            raise InputError("Findings in a picture have an area and no volume.", "Give --min-area, not --min-volume.")
        margin = _recorded_margin(made) if peak_margin is None else peak_margin
        mask, _, findings = segment(volume.image, at, min_volume_ml, inside, min_area, margin)
        frame = inside if made is None or inside is not None else _recorded_brain(made, volume)
        if frame is not None and made is not None:
            findings = with_places(findings, frame, made.content.get("region", BRAIN))
        about = {
            "heat": str(anomaly_map.absolute()),
            "heat_sha256": volume.sha256,
            "threshold": at,
            "min_volume_ml": min_volume_ml,
            "min_area": min_area,
            "peak_margin": margin,
            "brain": None if brain is None else str(brain.absolute()),
            "warnings": warnings,
            "diffusion_anomaly": __version__,
            "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        writers = (
            lambda path: write_like(mask, volume, path, dtype=np.uint8),
            lambda path: write_findings_csv(findings, path, min_area is not None),
            lambda path: write_findings_json(findings, path, warnings, at, margin),
            record(about),
        )
        files = folder.publish(dict(zip(names, writers, strict=True)))
    for warning in warnings:
        err.print(plain(f"warning: {warning}", "yellow"))
    for content in earlier.values():
        if (replaced := _described(content)) != _described(about):
            err.print(plain(f"{output}: mask and findings {replaced} were replaced."))
    show_findings(findings, at, size_unit(volume.image.GetSpacing(), min_area is not None), margin)
    for path in files.values():
        out.print(plain(path))
    return files


def _made(anomaly_map: Path) -> Recorded | None:
    """What is recorded of an anomaly map; None where nothing is.

    Raises:
        InputError: for a folder, and for another file of a result.
    """
    if anomaly_map.is_dir():
        candidates = (anomaly_map / file_names(f"scan{suffix}")["heat"] for suffix in (".nii.gz", ".nrrd", ".mha"))
        inside = next((path for path in candidates if path.is_file()), None)
        hint = "Give the anomaly map itself." if inside is None else f"Give {inside}."
        raise InputError(f"{anomaly_map} is a folder, no anomaly map.", hint)
    made = recorded(anomaly_map)
    if made is not None and made.kind != ANOMALY_MAP:
        hint = "Give the anomaly map itself." if made.anomaly_map is None else f"Give {made.anomaly_map}."
        raise InputError(f"{anomaly_map} is the {made.kind} of a result, no anomaly map.", hint)
    return made


def _recorded_area(made: Recorded | None) -> float | None:
    """The smallest area of a finding that the detection of a picture took; None of another map."""
    options = None if made is None else made.content.get("options")
    area = options.get("min_area") if isinstance(options, dict) else None
    return float(area) if isinstance(area, (int, float)) else None


def _recorded_margin(made: Recorded | None) -> float:
    """The peak margin of the detection, or of the BIDS sidecar; 0 where nothing is recorded.

    Raises:
        InputError: for what is none, naming the record.
    """
    if made is None:
        return 0.0
    options = made.content.get("options")
    try:
        return margin_of(options if isinstance(options, dict) else {"peak_margin": made.content.get("PeakMargin", 0.0)})
    except InputError as error:
        what = f"{made.folder / made.record} is damaged: {error.what}"
        raise InputError(what, "Say which one with --peak-margin, or run the detection again.") from error


def _recorded_brain(made: Recorded, volume: Volume) -> sitk.Image | None:
    """The brain mask of the result that a map belongs to, for places; None where it is not as it was written."""
    names = [name for name in made.content[DIGESTS] if kind_of(name) == BRAIN_MASK]
    if len(names) != 1 or recorded(made.folder / names[0]) is None:
        return None
    return read_brain(made.folder / names[0], volume)


def _recorded_warnings(made: Recorded | None, scores: np.ndarray, path: Path) -> list[str]:
    """What the detection doubted, which stays doubtful; or that nothing is recorded of the map.

    Raises:
        InputError: as ``_check_scores``, when nothing is.
    """
    if made is None:
        _check_scores(scores, path)
        return [_unrecorded(path)]
    said = made.content.get("warnings", made.content.get("Warnings"))  # a BIDS sidecar has names of its own
    return [str(warning) for warning in said] if isinstance(said, list) else []


def _keep_others(earlier: Mapping[str, Mapping[str, Any]], sha256: str, output: Path) -> None:
    """Refuse to replace what was made of another map.

    Raises:
        InputError: naming it.
    """
    for name, content in earlier.items():
        if content.get("heat_sha256") != sha256:
            of = f"another map ({content['heat']})" if content.get("heat") else f"another command ({name})"
            raise InputError(f"{output} holds the result of {of}.", "Choose another folder, or say --overwrite.")


def _unrecorded(path: Path) -> str:
    """What to say of a map whose bytes no record names."""
    place = path.absolute()
    for folder in list(place.parents)[:3]:
        for name in (PROVENANCE, "evaluation.json"):
            try:
                files = json.loads((folder / name).read_text(encoding="utf-8"))["files_sha256"]
            except (OSError, ValueError, LookupError, TypeError, RecursionError):
                continue
            if isinstance(files, dict) and place.relative_to(folder).as_posix() in files:
                return (
                    f"{path} is not the map that {folder / name} tells of: it was changed or exchanged since, so "
                    "nothing is known of what it was made of."
                )
    return f"{path} has no record of this program beside it; is it an anomaly map?"


def _mask_warnings(scores: np.ndarray, inside: np.ndarray) -> list[str]:
    """What a brain mask leaves of a map: one drawn on the brain leaves nearly all.

    Raises:
        InputError: when it is empty.
    """
    if not inside.any():
        raise InputError(
            "The brain mask is empty: it has no voxel above 0.5.", "Give a mask that covers the brain, or leave it out."
        )
    scored = int(np.count_nonzero(scores))
    left = 1 - np.count_nonzero(scores[inside != 0]) / max(scored, 1)
    if left <= _LEFT_OUT:
        return []
    return [f"The brain mask leaves out {left:.0%} of the voxels that have a score; does it mark the brain?"]


def _check_scores(values: np.ndarray, path: Path) -> None:
    """Refuse what cannot be a map of this program, where no record tells.

    Args:
        values: not negative, ``(slices, rows, columns)``.
        path: for messages.

    Raises:
        InputError: for whole numbers, as masks, label maps and most scans have them; for probabilities; and for values
            far above all scores.
    """
    above = values[values > 0]
    highest = float(values.max())
    why = ""
    if all(np.array_equal(plane, np.rint(plane)) for plane in values):
        why = "it has whole numbers only, as a mask, a label map or a scan has"
    elif _NEARLY_CERTAIN <= highest <= 1:
        why = f"its values end at {highest:.4g}, as probabilities do"
    elif highest > _HIGHEST or float(np.median(above)) > _HIGHEST_MIDDLE:
        why = f"half of its values above 0 are over {np.median(above):.4g}, the highest is {highest:.4g}, as in a scan"
    if why:
        raise InputError(f"{path} is no anomaly map: {why}.", "Give an anomaly map that detect wrote.")


def _described(about: Mapping[str, Any]) -> str:
    """How mask and findings were made."""
    inside = f", inside {about['brain']}" if about.get("brain") else ""
    margin = f", peak margin {about['peak_margin']}" if about.get("peak_margin") else ""
    area = about.get("min_area")
    least = f"{about.get('min_volume_ml')} ml" if area is None else f"{area} mm² or pixels"
    return f"at a score of {about.get('threshold')} (at least {least}{margin}{inside})"
