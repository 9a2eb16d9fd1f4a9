"""Results out of the scene into files that other programs read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import whole_file

from ..translation import tr as _
from . import segmentation
from .results import ResultNodes, findingsOf, liveThresholdOf
from .volumes import ijkToRas, onGrid

IMAGE_SUFFIXES = (".nrrd", ".nii.gz", ".nii")


def saveSegmentation(nodes: ResultNodes, path: Path | str) -> None:
    """Write the mask at the threshold in force as a label image on the scan's grid, NRRD or NIfTI.

    What was edited by hand in the Segment Editor is written as it was edited.

    Raises:
        InputError: when the name ends otherwise, or the file cannot be written.
    """
    if nodes.segmentation is not None and (segment := _firstSegment(nodes.segmentation)):
        mask = segmentation.maskOf(nodes.segmentation, nodes.anomalyMap, segment)
    elif nodes.labelMap is not None:
        mask = slicer.util.arrayFromVolume(nodes.labelMap)
    else:
        live = liveThresholdOf(nodes)
        mask = np.zeros(live.shape, dtype=np.uint8)
        mask[live.box] = findingsOf(nodes, live).mask
    _writeImage(onGrid((mask != 0).astype(np.uint8), ijkToRas(nodes.anomalyMap)), Path(path))


def saveAnomalyMap(nodes: ResultNodes, path: Path | str) -> None:
    """Write the anomaly map on the scan's grid, NRRD or NIfTI.

    Raises:
        InputError: when the name ends otherwise, or the file cannot be written.
    """
    _writeImage(onGrid(slicer.util.arrayFromVolume(nodes.anomalyMap), ijkToRas(nodes.anomalyMap)), Path(path))


def withSuffix(path: Path, suffix: str) -> Path:
    """The path as it is, or with this suffix if it was typed without any."""
    return path if path.suffix else path.with_name(path.name + suffix)


def _firstSegment(segmentation: Any) -> str:
    inside = segmentation.GetSegmentation()
    return inside.GetNthSegmentID(0) if inside.GetNumberOfSegments() else ""


def _writeImage(image: sitk.Image, path: Path) -> None:
    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        raise InputError(
            _("{file} is neither NRRD nor NIfTI.").format(file=path.name),
            _("Let the name end with {suffixes}.").format(suffixes=", ".join(IMAGE_SUFFIXES)),
        )
    with whole_file(path) as partial:
        try:
            sitk.WriteImage(image, os.fspath(partial), useCompression=True)
        except RuntimeError as error:
            raise InputError(
                _("{path} cannot be written: {reason}").format(path=path, reason=error), _("Choose another folder.")
            ) from error
