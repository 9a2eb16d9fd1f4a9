"""DICOM objects of a result that Slicer holds: from its anomaly map and the series that the scan was loaded from.

Slicer asks a process of its own for them, see ``worker.probe``, because highdicom is none of Slicer's packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ...errors import InputError
from ...io.orientation import same_grid
from ...io.volume import Scan, Volume, read_volume
from ...models.declaration import BRAIN
from ...options import margin_of
from ..findings import segment
from ..places import with_places
from ..redrawing import REJECTED, read_request, without
from ..result import Result
from . import FOLDER, check_source, dicom_names, to_dicom_files

SERIES = "series"


def write_again(folder: Path) -> dict[str, Path]:
    """Write the objects, with the findings at the request's threshold that were not rejected.

    Args:
        folder: holds what a report is drawn from, see ``redrawing``, and the series' files in ``SERIES``.

    Returns:
        The files by kind, see ``dicom_names``.

    Raises:
        InputError: as `to_dicom`, or when the series is not what the anomaly map was made of.
    """
    request, scan, anomaly_map, brain = read_request(folder)
    made: Mapping[str, Any] = request.provenance
    volume = read_volume(folder / SERIES)
    check_source(volume, anonymous=not made["input"].get("path", True))
    whole = brain
    if (folder / REJECTED).exists():
        brain = without(brain, folder / REJECTED, scan)
    anomaly_map, brain = (_onto(volume, image) for image in (anomaly_map, brain))
    _check_same(volume, _onto(volume, scan))
    options = {**made["options"], "min_volume_ml": request.min_volume_ml}
    mask, _, findings = segment(
        anomaly_map, request.threshold, request.min_volume_ml, brain, options.get("min_area"), margin_of(options)
    )
    findings = with_places(findings, whole, made.get("region", BRAIN))
    threshold = made["threshold"]
    if request.threshold != threshold["heat"]:
        threshold = {"heat": request.threshold, "source": "chosen by the user after the run"}
    about = {**made["input"], "sha256": volume.sha256}  # the anomaly map was made of another file of the same voxels
    result = Result(
        scan=Scan({"scan": volume}),
        anomaly_map=anomaly_map,
        mask=mask,
        findings=[replace(finding, id=rank) for rank, finding in enumerate(findings, start=1)],
        brain=brain,
        score=float(made["score"]["value"]),
        score_warning=None,
        threshold=request.threshold,
        provenance={**made, "options": options, "threshold": threshold, "input": about},
        warnings=[str(warning) for warning in made["warnings"]],
        timings={},
    )
    names = dicom_names()
    written = {}
    (folder / FOLDER).mkdir(exist_ok=True)
    for kind, content in to_dicom_files(result).items():
        path = folder / names[f"dicom_{kind}"]
        path.write_bytes(content)
        written[kind] = path
    return written


def _onto(volume: Volume, image: sitk.Image) -> sitk.Image:
    """An image on the series' grid, on which Slicer may count slices, rows or columns the other way."""
    if same_grid(image, volume.image):
        image = sitk.Image(image)
        image.CopyInformation(volume.image)
        return image
    moved = sitk.Resample(image, volume.image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, image.GetPixelID())
    before, after = (np.sort(sitk.GetArrayViewFromImage(one), axis=None) for one in (image, moved))
    if not np.array_equal(before, after):
        raise InputError(
            "The scan does not lie where its DICOM series does: it was resampled, cropped or moved.",
            "Run it again for the volume as it was loaded.",
        )
    return moved


def _check_same(volume: Volume, scan: sitk.Image) -> None:
    """Make sure that the series shows the scan.

    Raises:
        InputError: when its voxels have other values.
    """
    ours, theirs = (sitk.GetArrayFromImage(one).astype(np.float64) for one in (scan, volume.image))
    if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-3 * (np.ptp(theirs) or 1.0)):
        raise InputError(
            "The scan's voxels are not those of its DICOM series.", "Run it again for the volume as it was loaded."
        )
