"""The best, the median and the worst patient of a run on one page: an average alone shows neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..io.files import Writer
from ..io.volume import read_anomaly_map, read_mask, read_volume
from ..results.findings import segment
from ..results.painting import paint_map, paint_mask, paint_outline, paint_scale, paint_scan
from ..results.rendering import SliceView
from .statistics import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("scan", "anomaly map, predicted outline", "predicted mask", "reference outline")
PANEL = 2.3  # inches
HEADER, ROW_TITLE, FOOTER = 0.32, 0.3, 0.55


@dataclass(frozen=True)
class Pick:
    """A patient and why it is shown."""

    title: str
    case: Case


@dataclass(frozen=True)
class Files:
    """Where a patient's scan, anomaly map, brain mask and reference mask lie."""

    scan: Path
    anomaly_map: Path
    brain: Path
    reference: Path


def writer(
    run: str,
    cases: Sequence[Case],
    files: Mapping[str, Files],
    threshold: float,
    min_volume_ml: float,
    peak_margin: float = 0.0,
) -> dict[str, Writer]:
    """A run's picture for ``io.outputs.publish``; none where no patient has a reference.

    Args:
        run: as file names call it.
        cases: of the run.
        files: by patient.
        threshold: the anomaly score from which a voxel is in the mask.
        min_volume_ml: smaller findings are dropped.
        peak_margin: so are those whose highest score does not exceed the threshold by this much.
    """
    picks = choose_patients(cases)
    if not picks:
        return {}
    return {f"montage-{run}.png": lambda path: draw_montage(picks, files, threshold, min_volume_ml, path, peak_margin)}


def choose_patients(cases: Sequence[Case]) -> list[Pick]:
    """The patients with the highest, the median and the lowest average precision, as far as they differ.

    Patients without a reference have no average precision and are never shown. Of an even number the median is the
    lower one of the middle two.
    """
    ranked = sorted(
        (case for case in cases if np.isfinite(case.average_precision)),
        key=lambda case: (-case.average_precision, case.name),
    )
    if len(ranked) < 2:
        return [Pick("the only patient", case) for case in ranked]
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    if len(ranked) == 2:
        del places["median"]
    return [Pick(title, ranked[place]) for title, place in places.items()]


def draw_montage(
    picks: Sequence[Pick],
    files: Mapping[str, Files],
    threshold: float,
    min_volume_ml: float,
    path: Path,
    peak_margin: float = 0.0,
) -> None:
    """Write the page as PNG: a row a patient, at the axial slice with the largest reference area.

    Args:
        picks: at least one.
        files: by patient; only one patient's are in memory at a time.
        threshold, min_volume_ml, peak_margin: as for ``writer``.
        path: the picture.
    """
    from matplotlib.figure import Figure

    width = PANEL * len(COLUMNS)
    height = HEADER + len(picks) * (ROW_TITLE + PANEL) + FOOTER
    figure = Figure(figsize=(width, height), dpi=150)
    top = max(1.5 * threshold, *(float(pick.case.lesion_scores.max(initial=0.0)) for pick in picks))
    for column, title in enumerate(COLUMNS):
        figure.text((column + 0.5) / len(COLUMNS), 1 - 0.7 * HEADER / height, title, ha="center", fontsize=9)
    for row, pick in enumerate(picks):
        edge = height - HEADER - row * (ROW_TITLE + PANEL)
        places = [
            ((column + 0.01) / len(COLUMNS), (edge - ROW_TITLE - PANEL) / height, 0.98 / len(COLUMNS), PANEL / height)
            for column in range(len(COLUMNS))
        ]
        panels = [figure.add_axes(place) for place in places]
        index = _paint_row(panels, files[pick.case.name], threshold, min_volume_ml, peak_margin, top)
        figure.text(
            0.01,
            (edge - 0.7 * ROW_TITLE) / height,
            f"{pick.title}: {pick.case.name}, slice {index}; AP {pick.case.average_precision:.3f}, "
            f"Dice {pick.case.dice:.3f}, reference {pick.case.reference_ml:.1f} ml",
            fontsize=8,
        )
    paint_scale(figure.add_axes((0.3, 0.55 * FOOTER / height, 0.4, 0.25 * FOOTER / height)), threshold, top)
    figure.savefig(path, format="png", facecolor="white")


def _paint_row(
    panels: Sequence[Axes], files: Files, threshold: float, min_volume_ml: float, peak_margin: float, top: float
) -> int:
    """Draw one patient; returns the slice's number in the scan's own order."""
    volume, map_image = read_volume(files.scan), read_anomaly_map(files.anomaly_map).image
    brain, true_mask = read_mask(files.brain, volume), read_mask(files.reference, volume)
    mask, _, _ = segment(map_image, threshold, min_volume_ml, brain, peak_margin=peak_margin)
    predicted = SliceView(volume.image, map_image, mask, brain)
    reference = SliceView(volume.image, map_image, true_mask, brain)
    k = int(np.argmax(reference.marked()))
    for panel in panels:
        paint_scan(panel, predicted, k)
    _, anomaly_map, marked, outlined = panels
    paint_map(anomaly_map, predicted, k, threshold, top)
    paint_outline(anomaly_map, predicted, k)
    paint_mask(marked, predicted, k)
    paint_outline(outlined, reference, k)
    for panel in panels:
        panel.set_aspect("equal")
    return predicted.own_index(k)
