"""Which slices are healthy: labels in a CSV file, and those of slabs that are means of several thin slices."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import keep_foreign, whole_file

from .slices import DISEASED, HEALTHY, UNUSED

COLUMNS = ("scan", "slice", "label")


def slab_labels(labels: Mapping[tuple[str, int], int], scan: str, index: np.ndarray, thickness: int) -> np.ndarray:
    """Labels of a stack's slices, each of which may be the mean of several thin ones.

    Diseased when any of them is, healthy when all are, else unused.

    Args:
        labels: of thin slices, by scan and slice.
        scan: its name.
        index: ``(n,)`` middles of the slabs, as ``SliceStack.indices``.
        thickness: thin slices a slab.
    """
    last = max((number for name, number in labels if name == scan), default=-1)
    result = np.full(len(index), UNUSED, np.int8)
    for place, middle in enumerate(index):
        first = int(middle) - thickness // 2
        # The topmost slab may be thinner; what it does not reach is looked at all the same.
        slab = [labels.get((scan, i), UNUSED) for i in range(max(first, 0), min(first + thickness, last + 1))]
        if DISEASED in slab:
            result[place] = DISEASED
        elif slab and all(value == HEALTHY for value in slab):
            result[place] = HEALTHY
    return result


def read_labels(path: Path) -> dict[tuple[str, int], int]:
    """A CSV with the columns scan (file name), slice (counted from the lowest, from 0) and label (0, 1 or -1).

    Raises:
        InputError: naming the row that cannot be used.
    """
    labels: dict[tuple[str, int], int] = {}
    for number, row in _rows(path, ("scan", "slice", "label")):
        try:
            place, label = (row["scan"], int(row["slice"])), int(row["label"])
        except ValueError as error:
            raise InputError(f"{path}, line {number}: slice and label must be whole numbers, found {row}.") from error
        if label not in (HEALTHY, DISEASED, UNUSED) or place[1] < 0:
            raise InputError(f"{path}, line {number}: expected a label of 0, 1 or -1 and a slice from 0, found {row}.")
        if labels.setdefault(place, label) != label:
            raise InputError(f"{path}, line {number}: slice {place[1]} of {place[0]} has another label further up.")
    return labels


def read_column(path: Path, column: str) -> dict[str, str]:
    """A further column of the labels' CSV, by scan.

    Raises:
        InputError: when there is no such column.
    """
    return {row["scan"]: row[column] for _, row in _rows(path, ("scan", column))}


def label_slices(
    slices_csv: Path, output: Path, distance: int = 3, column: str = "tumour_px", ending: str = "_flair.nii.gz"
) -> None:
    """Labels of a set's slices: diseased, healthy at least ``distance`` slices away from any diseased, else unused.

    Args:
        slices_csv: table with the columns patient, slice and the one below.
        output: CSV of scan, slice, label.
        distance: in slices.
        column: above 0 where a slice is diseased.
        ending: of the scans' names, after the patient.

    Raises:
        InputError: when the table lacks a column, or ``output`` is another file.
    """
    keep_foreign(output, lambda path: path.read_text(encoding="utf-8").startswith(",".join(COLUMNS)))
    rows: dict[str, list[tuple[int, int]]] = {}
    for _, row in _rows(slices_csv, ("patient", "slice", column)):
        rows.setdefault(row["patient"], []).append((int(row["slice"]), int(row[column])))
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for patient, slices in rows.items():
            tumour = np.array([index for index, pixels in slices if pixels > 0])
            for index, pixels in slices:
                far = tumour.size == 0 or np.abs(tumour - index).min() >= distance
                label = DISEASED if pixels > 0 else HEALTHY if far else UNUSED
                writer.writerow([f"{patient}{ending}", index, label])


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with their line numbers."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not set(columns) <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise InputError(f"{path} has the columns {found}; expected {', '.join(columns)}.")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path}, line {reader.line_num} has not the {len(reader.fieldnames or ())} columns of line 1."
                )
            yield reader.line_num, row
