"""From an anomaly map to a list that can be read: connected components, how large, how high its scores, where.

All that is needed is the anomaly map, so another threshold costs no inference.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import InputError
from ..io.files import write_text
from ..io.orientation import Orientation, describe_grid, same_grid
from ..io.tables import csv_text
from ..options import check_margin
from .components import large_and_high

SCHEMA_VERSION = 1
SCORE_UNIT = "-log10 of the healthy tail probability"

# Share of marked voxels up to which components are looked for among these alone: of 103 x 152 x 164 voxels with 0.2 %
# marked that takes 4 ms instead of 15 in the whole volume, with 1 % 12 instead of 20, with 5 % 62 instead of 43.
MOST_SPARSE = 0.02


@dataclass(frozen=True)
class Finding:
    """One connected region of the anomaly map at or above the threshold, which its highest score may have to exceed.

    Attributes:
        id: From 1 in order of rank; also its value in the label image.
        volume_ml: Volume; 0 in a picture, which has areas.
        peak_score: Highest score in it.
        mean_score: Mean score over it.
        centroid_ras: Centre of its voxels, each counted alike, in mm right, anterior, superior. Of a picture that
            states no place or size of its pixels it says where a viewer shows it, and nothing of the patient.
        slices: First and last slice it touches, counted from 0 along the scan's own axis that runs closest to
            inferior-superior (the only slice's axis in a scan of one slice). Where that axis runs downwards
            the first is the superior one. These are the numbers that a viewer of the file shows.
        bounding_box: First and last voxel (i, j, k) it touches, in the scan's own indices, both inside.
        area_pixels: Of a finding in a picture, its area; else None.
        area_mm2: The same in mm² where the picture has a scale.
        centroid_pixel: Of a finding in a picture, its centre's column and row, counted from 0; else None.
        place: Roughly where in the brain that is, in words, see ``places``; empty where nothing is known of it.
    """

    id: int
    volume_ml: float
    peak_score: float
    mean_score: float
    centroid_ras: tuple[float, float, float]
    slices: tuple[int, int]
    bounding_box: tuple[tuple[int, int, int], tuple[int, int, int]]
    area_pixels: int | None = None
    area_mm2: float | None = None
    centroid_pixel: tuple[float, float] | None = None
    place: str = ""

    @property
    def centre(self) -> tuple[float, ...]:
        """What lists show of where it lies, see ``centre_title``: ``centroid_ras``, or a picture's column and row."""
        return self.centroid_ras if self.centroid_pixel is None else self.centroid_pixel

    @property
    def size(self) -> float:
        """Volume in ml, or a picture's area in mm² or, without a scale, in pixels."""
        areas = (self.area_mm2, self.area_pixels)
        return next((float(area) for area in areas if area is not None), self.volume_ml)

    @property
    def burden(self) -> float:
        """Size times mean score, by which findings are ranked: both large and improbable comes first."""
        return self.size * self.mean_score


def has_scale(spacing: Sequence[float]) -> bool:
    """Whether a picture's pixels have a size. 1 mm is what programs take where nothing is stated; no film has it."""
    return sorted(spacing)[-2:] != [1.0, 1.0] and tuple(spacing[:2]) != (1.0, 1.0)


def pixel_area(picture: sitk.Image) -> float:
    """Of one pixel of a one-slice image: mm², or 1 where its pixels have no size."""
    slices = Orientation.stored(picture).axes[0]
    return math.prod(edge for axis, edge in enumerate(picture.GetSpacing()) if axis != slices)


def size_unit(spacing: Sequence[float], is_picture: bool) -> str:
    """What findings' sizes are counted in."""
    return "ml" if not is_picture else "mm²" if has_scale(spacing) else "pixels"


def centre_title(unit: str) -> str:
    """What the numbers of ``Finding.centre`` are, by what sizes are counted in."""
    return "centre R, A, S (mm)" if unit == "ml" else "centre column, row"


def sized(size: float, unit: str) -> str:
    """A size in words.

    >>> sized(0.054, "ml"), sized(1304.4, "mm²"), sized(12.0, "pixels")
    ('0.05 ml', '1304 mm²', '12 pixels')
    """
    return f"{size:.2f} {unit}" if unit == "ml" else f"{size:.0f} {unit}"


def reached(threshold: float, peak_margin: float = 0.0) -> str:
    """Which anomaly score findings have, in words.

    >>> reached(1.934), reached(1.934, 1.0)
    ('1.93 or more', '1.93 or more, at its highest 2.93 or more (peak margin 1)')
    """
    if not peak_margin:
        return f"{threshold:.2f} or more"
    highest = f"at its highest {threshold + peak_margin:.2f} or more (peak margin {peak_margin:g})"
    return f"{threshold:.2f} or more, {highest}"


def segment(
    anomaly_map: sitk.Image,
    threshold: float,
    min_volume_ml: float = 0.05,
    brain: sitk.Image | None = None,
    min_area: float | None = None,
    peak_margin: float = 0.0,
) -> tuple[sitk.Image, sitk.Image, list[Finding]]:
    """As ``segment_arrays``, with mask and labels as images on the grid of the anomaly map."""
    mask, labels, findings = segment_arrays(anomaly_map, threshold, min_volume_ml, brain, min_area, peak_margin)
    return _on_grid(mask, anomaly_map), _on_grid(labels, anomaly_map), findings


def segment_arrays(
    anomaly_map: sitk.Image,
    threshold: float,
    min_volume_ml: float = 0.05,
    brain: sitk.Image | None = None,
    min_area: float | None = None,
    peak_margin: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """Apply a threshold to an anomaly map and list what is left.

    Voxels belong together when they touch by face, edge or corner (26 neighbours): in scans with thick slices
    a slanting lesion steps sideways by more than a voxel from slice to slice, and with faces alone it would
    fall into pieces.

    Args:
        anomaly_map: 3-D anomaly map, not negative.
        threshold: Voxels with a score of at least this much, and above 0, are marked.
        min_volume_ml: Smaller components are dropped.
        min_area: Of a picture, whose components have areas and no volumes, instead: mm², or pixels where it has no
            scale. None for a volume.
        brain: On the grid of the anomaly map; what lies outside (0) is not marked. The engine's own maps are 0 there.
        peak_margin: Components whose highest score is below ``threshold + peak_margin`` are dropped (hysteresis,
            Canny 1986): what reaches the threshold is marked down to it, but only around what exceeds it clearly.

    Returns:
        Mask (uint8, 0 or 1), labels (uint16, or uint32 for more than 65535 findings; the value is the
        finding's id), both k j i on the grid of the anomaly map, and the findings by descending burden.

    Raises:
        InputError: a negative or undefined threshold, volume or margin, or a brain mask on another grid.
    """
    check_margin(peak_margin)
    for name, value in (("threshold", threshold), ("smallest volume", min_volume_ml), ("smallest area", min_area or 0)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"The {name} is {value}; expected a number of at least 0.", "Give such a number.")
    values = sitk.GetArrayViewFromImage(anomaly_map)
    marked = (values >= threshold) & (values > 0)
    if brain is not None:
        if not same_grid(brain, anomaly_map):
            raise InputError(
                f"The brain mask's grid ({describe_grid(brain)}) is not the map's ({describe_grid(anomaly_map)}).",
                "Give the mask of the same scan.",
            )
        marked &= sitk.GetArrayViewFromImage(brain) != 0
    places = np.flatnonzero(marked)
    owners, count = _components(marked, places)
    ranked = sorted(
        _measure(anomaly_map, places, owners, count, min_volume_ml, min_area, threshold + peak_margin),
        key=lambda finding: (-finding.burden, -finding.peak_score, finding.bounding_box),
    )
    ranks = np.zeros(count + 1, dtype=np.uint16 if len(ranked) <= 65535 else np.uint32)
    for rank, finding in enumerate(ranked, start=1):
        ranks[finding.id] = rank
    labels, mask = np.zeros(marked.shape, ranks.dtype), np.zeros(marked.shape, np.uint8)
    labels.reshape(-1)[places] = ranks[owners]
    mask.reshape(-1)[places] = ranks[owners] > 0
    findings = [replace(finding, id=rank) for rank, finding in enumerate(ranked, start=1)]
    return mask, labels, findings


def findings_table(findings: Sequence[Finding]) -> list[dict[str, int | float | str | None]]:
    """One flat row a finding, the units in the column names (the anomaly score is a pure number)."""
    rows = []
    for finding in findings:
        row: dict[str, int | float | str | None] = {"id": finding.id}
        if finding.area_pixels is None:
            row |= {"volume_ml": finding.volume_ml}
        else:
            row |= {"area_mm2": finding.area_mm2, "area_pixels": finding.area_pixels}
        row |= {
            "peak_heat_neg_log10_p": finding.peak_score,
            "mean_heat_neg_log10_p": finding.mean_score,
        }
        if finding.centroid_pixel is None:
            row |= {f"centroid_{axis}_mm": value for axis, value in zip("ras", finding.centroid_ras, strict=True)}
        else:  # films are stored as they are looked at, and say not which way that is
            row |= dict(zip(("centroid_column_index", "centroid_row_index"), finding.centroid_pixel, strict=True))
        row |= {"slice_first_index": finding.slices[0], "slice_last_index": finding.slices[1]}
        for axis, first, last in zip("ijk", *finding.bounding_box, strict=True):
            row |= {f"{axis}_first_index": first, f"{axis}_last_index": last}
        if finding.area_pixels is None:
            row |= {"place": finding.place}
        rows.append(row)
    return rows


def write_findings_csv(findings: Sequence[Finding], path: str | os.PathLike[str], is_picture: bool = False) -> None:
    """Write the table as CSV, whole or not at all; the heading is there without findings too.

    Raises:
        InputError: when the file cannot be written.
    """
    nothing = Finding(0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0), (0, 0), ((0, 0, 0), (0, 0, 0)))
    if is_picture:
        nothing = replace(nothing, area_pixels=0, centroid_pixel=(0.0, 0.0))
    write_text(path, csv_text(findings_table(findings), list(findings_table([nothing])[0]), digits=6))


def write_findings_json(
    findings: Sequence[Finding],
    path: str | os.PathLike[str],
    warnings: Sequence[str] = (),
    threshold: float | None = None,
    peak_margin: float = 0.0,
) -> None:
    """Write the findings as JSON with the keys of the table, and the reasons to doubt them, whole or not at all.

    Args:
        findings: what is written.
        path: the file.
        warnings: the reasons.
        threshold: anomaly score that the findings reach; None leaves it and the margin out.
        peak_margin: by how much a finding's highest score exceeds the threshold at least.

    Raises:
        InputError: when the file cannot be written.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "heat": SCORE_UNIT,
        "coordinates": "centroid in mm right, anterior, superior, of a picture column and row; the scan's own indices, "
        "from 0, inclusive",
        **({} if threshold is None else {"threshold": threshold, "peak_margin": peak_margin}),
        "warnings": list(warnings),
        "findings": findings_table(findings),
    }
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def _components(marked: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, int]:
    """Which voxels belong together.

    Args:
        marked: bool, k j i.
        places: of the marked voxels in the flattened array, ascending.

    Returns:
        The component of each marked voxel, from 1, numbered by their first voxels, and how many there are.
    """
    if len(places) > MOST_SPARSE * marked.size:
        labels = np.zeros(marked.shape, dtype=np.int32)
        ndimage.label(marked, structure=np.ones((3, 3, 3), dtype=bool), output=labels)
        return labels.reshape(-1)[places], int(labels.max())
    from scipy import sparse  # 0.1 s, not at Slicer's start
    from scipy.sparse import csgraph

    # A border of one voxel, so that no step leads around an edge.
    padded = tuple(length + 2 for length in marked.shape)
    inside = np.ravel_multi_index([index + 1 for index in np.unravel_index(places, marked.shape)], padded)
    numbers = np.zeros(math.prod(padded), dtype=np.int32)  # of the marked voxels, from 1
    numbers[inside] = np.arange(1, len(places) + 1)
    pairs = [np.empty((2, 0), dtype=np.int32)]
    for step in itertools.product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0):  # the other half of the 26 neighbours has the same pairs
            neighbours = numbers[inside + int(np.dot(step, (padded[1] * padded[2], padded[2], 1)))]
            (from_,) = np.nonzero(neighbours)
            pairs.append(np.stack([from_.astype(np.int32), neighbours[from_] - 1]))
    edges = np.concatenate(pairs, axis=1)
    graph = sparse.coo_array((np.ones(edges.shape[1], dtype=bool), tuple(edges)), shape=(len(places), len(places)))
    count, labels = csgraph.connected_components(graph, directed=False)
    return labels + 1, int(count)


def _measure(
    anomaly_map: sitk.Image,
    places: np.ndarray,
    owners: np.ndarray,
    count: int,
    min_volume_ml: float,
    min_area: float | None,
    least_peak: float,
) -> list[Finding]:
    """A finding for each component, see ``_components``, that is large and high enough; its id is the component's."""
    is_picture = min_area is not None
    least = min_volume_ml if min_area is None else min_area
    voxel = pixel_area(anomaly_map) if is_picture else math.prod(anomaly_map.GetSpacing()) / 1000
    scale = has_scale(anomaly_map.GetSpacing())
    slice_axis = Orientation.of(anomaly_map).axes[0]
    _, row_axis, column_axis = Orientation.stored(anomaly_map).axes
    sizes = np.bincount(owners, minlength=count + 1)
    values = sitk.GetArrayViewFromImage(anomaly_map)
    scores = values.reshape(-1)[places]
    is_finding = large_and_high(owners, scores, count, voxel, least, least_peak)
    means = np.bincount(owners, scores, count + 1) / np.maximum(sizes, 1)
    peaks = np.zeros(count + 1, scores.dtype)
    np.maximum.at(peaks, owners, scores)
    indices = np.unravel_index(places, values.shape)[::-1]  # i, j, k
    centres = [np.bincount(owners, index, count + 1) / np.maximum(sizes, 1) for index in indices]
    lows, highs = np.full((3, count + 1), max(values.shape)), np.zeros((3, count + 1), dtype=int)
    for axis, index in enumerate(indices):
        np.minimum.at(lows[axis], owners, index)
        np.maximum.at(highs[axis], owners, index)
    findings = []
    for label in map(int, np.flatnonzero(is_finding)):
        size = float(sizes[label]) * voxel
        index = [float(centre[label]) for centre in centres]
        left, posterior, superior = anomaly_map.TransformContinuousIndexToPhysicalPoint(index)
        first, last = _corner(lows[:, label]), _corner(highs[:, label])
        findings.append(
            Finding(
                id=label,
                volume_ml=0.0 if is_picture else size,
                peak_score=float(peaks[label]),
                mean_score=float(means[label]),
                centroid_ras=(-left, -posterior, superior),
                slices=(first[slice_axis], last[slice_axis]),
                bounding_box=(first, last),
                area_pixels=int(sizes[label]) if is_picture else None,
                area_mm2=size if is_picture and scale else None,
                centroid_pixel=(index[column_axis], index[row_axis]) if is_picture else None,
            )
        )
    return findings


def _corner(index: np.ndarray) -> tuple[int, int, int]:
    i, j, k = index.tolist()
    return i, j, k


def _on_grid(array: np.ndarray, like: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    return image
