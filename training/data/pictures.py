"""Pictures in one array file to folders of image files and their labels, which every stage and ``evaluate`` read."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import keep_foreign, whole_file

from .slice_labels import COLUMNS

LABELS = "labels.csv"


def unpack_pictures(
    arrays: Path, output: Path, label: str, patient: str, split: str = "split", strata: str | None = None
) -> None:
    """Write ``<split>/<patient>-<number>.png`` and ``labels.csv``: scan, slice, label, patient, and a stratum.

    Args:
        arrays: an ``.npz`` file with ``images`` ``(N, rows, columns)`` uint8 and an entry ``(N,)`` for each name below.
        output: folder.
        label: entry that is 0 for healthy pictures and 1 for diseased ones.
        patient: entry that says whose picture it is.
        split: entry that says where it belongs.
        strata: entry that is copied to the labels, such as the view.

    Raises:
        InputError: when an entry is missing or is something else, or a patient is in two splits.
    """
    with np.load(arrays, allow_pickle=False) as file:
        names = [name for name in ("images", label, patient, split, strata) if name is not None]
        missing = [name for name in names if name not in file]
        if missing:
            raise InputError(f"{arrays} lacks {', '.join(missing)}; it has {', '.join(file)}.", "Name other entries.")
        entries = {name: file[name] for name in names}
    images = entries["images"]
    if images.ndim != 3 or images.dtype != np.uint8 or any(len(entry) != len(images) for entry in entries.values()):
        shapes = ", ".join(f"{name} {entry.shape} {entry.dtype}" for name, entry in entries.items())
        raise InputError(f"{arrays} holds {shapes}.", "Expected images (N, rows, columns) uint8 and N of all else.")
    if not set(np.unique(entries[label])) <= {0, 1}:
        raise InputError(f"{arrays}: {label} holds other values than 0 and 1.", "Name another entry.")
    where: dict[str, str] = {}
    for person, part in zip(map(str, entries[patient]), map(str, entries[split]), strict=True):
        if where.setdefault(person, part) != part:
            raise InputError(f"{arrays}: {patient} {person} is in {where[person]} and in {part}.", "Split by patient.")
    table = output / LABELS
    columns = [*COLUMNS, "patient", *([strata] if strata else [])]
    keep_foreign(table, lambda path: path.read_text(encoding="utf-8").startswith(",".join(COLUMNS)))
    rows = []
    for number, image in enumerate(images):
        name = f"{entries[patient][number]}-{number:04d}.png"
        folder = output / str(entries[split][number])
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / name) as partial:
            Image.fromarray(image).save(partial, format="PNG")
        extra = [entries[strata][number]] if strata else []
        rows.append([name, 0, int(entries[label][number]), entries[patient][number], *extra])
    with whole_file(table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
