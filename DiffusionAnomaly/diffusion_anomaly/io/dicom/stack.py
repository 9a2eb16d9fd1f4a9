"""Images as volumes: one at each position, along a straight line, at equal distances.

What is not that is refused by the names of the files. A gap closed up, a tilt straightened or a slice dropped in
silence would move or hide a lesion.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...text import counted
from ..geometry import Geometry, geometry_of
from ..reading import choose_frame
from .planes import Plane

# Positions in DICOM are decimal strings, often rounded to 0.001 mm or less.
_SAME_POSITION_MM = 0.01
# Share of the slice spacing by which a gap, or of a voxel by which the stack's sideways drift, may be off; from the
# smaller share on it is said.
_GAP_TOLERANCE, _GAP_WORTH_SAYING = 0.1, 0.02
# A drift that rounding alone makes; the axes then are at right angles exactly.
_ROUNDING_MM = 5e-4
_SAME_AXES = 1e-3
_EXPORT = "Export the series again."
_NAMED = 3
_SAMPLED = 16  # images that are compared with all others where not all are like the first

Values = Callable[[Plane], np.ndarray]


def choose_volume(
    planes: Sequence[Plane], frame: int | None, where: Path, values: Values
) -> tuple[list[Plane], list[str]]:
    """One image at each position, in ascending order along the slice normal, and warnings.

    Args:
        planes: all images of the series.
        frame: which volume, where there are several.
        where: file or folder, for messages.
        values: gives an image's values, for images that may be the same.

    Raises:
        InputError: when the images are not of one stack, a position has more of them than another, or a choice is
            needed.
    """
    volumes: list[list[Plane]] = []
    differences: list[str] = []
    warnings: list[str] = []
    stacks = _stacks(planes)
    for stack in stacks:
        _check_alike(stack, where)
        places, dropped = _without_doubles(_places(stack), values)
        if dropped:
            names = ", ".join(sorted(plane.name for plane in dropped)[:_NAMED])
            warnings.append(
                f"{counted(len(dropped), 'image is', 'images are')} there twice; the copies were left out ({names})."
            )
        _check_counts(places, where)
        found, difference = _volumes(places, where)
        volumes.extend(found)
        differences.extend(part for part in difference if part not in differences)
    if len(stacks) > 1:
        differences.insert(0, f"stack ({', '.join(stack[0].stack for stack in stacks[:_NAMED])})")
    try:
        return volumes[choose_frame(frame, len(volumes), where)], warnings
    except InputError as error:
        if not differences:
            raise
        raise InputError(f"{error.what} They differ in {', '.join(differences[:_NAMED])}.", error.hint) from None


def place(stack: Sequence[Plane], where: Path) -> tuple[Geometry, list[str]]:
    """Where a stack of images lies, and warnings.

    Args:
        stack: in ascending order along the slice normal.
        where: file or folder, for messages.

    Raises:
        InputError: when a slice is missing, the distances vary, or the slices are shifted sideways.
    """
    first = stack[0]
    fields = "the DICOM header"
    warnings: list[str] = []
    if len(stack) == 1:
        thickness = first.thickness or first.distance or 0.0
        if thickness <= 0:
            thickness = 1.0
            warnings.append("The header does not state how thick the only slice is; 1 mm is assumed.")
        step = first.normal * thickness
    else:
        positions = np.array([plane.position for plane in stack])
        step = (positions[-1] - positions[0]) / (len(stack) - 1)
        along = float(step @ first.normal)
        _check_gaps(stack, where, warnings)
        drift = float(np.linalg.norm(positions[-1] - positions[0] - along * (len(stack) - 1) * first.normal))
        tolerance = _GAP_TOLERANCE * min(first.spacing)
        if drift > tolerance:
            raise InputError(
                f"{where}: the slices are shifted sideways by {drift:.3g} mm from first to last (a tilted gantry).",
                "Resample it to straight axes, for example on import in 3D Slicer.",
            )
        line = positions[0] + np.arange(len(stack))[:, None] * step
        off = positions - line
        sideways = np.linalg.norm(off - np.outer(off @ first.normal, first.normal), axis=1)
        if sideways.max() > tolerance:
            worst = stack[int(sideways.argmax())]
            raise InputError(
                f"{where}: {worst.name} is shifted sideways by {sideways.max():.3g} mm against the other slices.",
                _EXPORT,
            )
        if drift <= _ROUNDING_MM:
            step = along * first.normal
        warnings.extend(_distance_doubts(first, along))
    row, column = np.array(first.axes[:3]), np.array(first.axes[3:])
    columns = np.column_stack([row * first.spacing[1], column * first.spacing[0], step])
    return geometry_of(columns, np.array(first.position), str(where), fields), warnings


def _distance_doubts(first: Plane, distance: float) -> list[str]:
    """Warnings where the header states another distance of slices than their positions have, in mm.

    Some scanners write the gap between slices there, thickness left out.
    """
    stated, thickness = abs(first.distance or 0.0), first.thickness or 0.0
    meant = (stated, stated + thickness)
    if not stated or any(abs(distance - value) <= _GAP_TOLERANCE * distance for value in meant):
        return []
    doubt = "are some of them missing?" if distance > stated else "the positions are believed."
    return [f"Slices lie {distance:.3g} mm apart, the header states {stated:.3g} mm (SpacingBetweenSlices); {doubt}"]


def _stacks(planes: Sequence[Plane]) -> list[list[Plane]]:
    """The stacks that a multi-frame file names, unless it names each image a stack."""
    by_name = {name: list(group) for name, group in groupby(sorted(planes, key=_stack), key=_stack)}
    if len(by_name) == 1 or all(len(group) == 1 for group in by_name.values()):
        return [list(planes)]
    return list(by_name.values())


def _stack(plane: Plane) -> tuple[int, str]:
    return len(plane.stack), plane.stack


def _check_alike(planes: Sequence[Plane], where: Path) -> None:
    """Refuse images that cannot be slices of one volume, naming those that are fewer.

    A folder may hold thousands of which no two are alike, so each is compared with a few others alone: the one of these
    that most are like stands for the volume.
    """
    sizes, axes, spacing = (
        np.array([getattr(plane, name) for plane in planes]) for name in ("size", "axes", "spacing")
    )

    def like(index: int) -> np.ndarray:
        close = (
            sizes == sizes[index],
            np.isclose(axes, axes[index], atol=_SAME_AXES),
            np.isclose(spacing, spacing[index], rtol=1e-3),
        )
        return np.all([part.reshape(len(planes), -1).all(axis=1) for part in close], axis=0)

    if like(0).all():
        return
    sampled = np.unique(np.linspace(0, len(planes) - 1, _SAMPLED).round().astype(int))
    chosen = max(sampled, key=lambda index: np.count_nonzero(like(index)))
    is_like = like(chosen)
    main, others = planes[chosen], [plane for plane, same in zip(planes, is_like, strict=True) if not same]
    if not others:
        return
    what = "size" if any(plane.size != main.size for plane in others) else "orientation or pixel spacing"
    names = ", ".join(plane.name for plane in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    raise InputError(
        f"{where} mixes images of different size or orientation in one series: {names}{more} "
        f"{'differs' if len(others) == 1 else 'differ'} in {what} from {main.name} "
        f"({len(planes) - len(others)} of {len(planes)} images are like it).",
        "Remove the ones that do not belong to the volume, such as a localiser.",
    )


def _places(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Images by position, in ascending order along the slice normal."""
    normal = planes[0].normal
    heights = {id(plane): float(normal @ plane.position) for plane in planes}
    places: list[list[Plane]] = []
    for plane in sorted(planes, key=lambda plane: (heights[id(plane)], plane.number, str(plane.path))):
        if places and heights[id(plane)] - heights[id(places[-1][0])] < _SAME_POSITION_MM:
            places[-1].append(plane)
        else:
            places.append([plane])
    return places


def _without_doubles(places: list[list[Plane]], values: Values) -> tuple[list[list[Plane]], list[Plane]]:
    """Leave out copies: images at one position with the same values, and with one UID, or one number in the series
    and nothing else that tells them apart. An empty slice looks alike at every time point.
    """
    result: list[list[Plane]] = []
    dropped: list[Plane] = []
    for place_ in places:
        often = Counter(name for plane in place_ for name in _names(plane))
        seen: set[tuple[object, bytes]] = set()
        kept = []
        for plane in place_:
            shared = [name for name in _names(plane) if often[name] > 1]
            # Decoded once, and not at all where nothing else could be a copy.
            pixels = hashlib.sha256(values(plane).tobytes()).digest() if shared else b""
            marks = {(name, pixels) for name in shared}
            if marks & seen:
                dropped.append(plane)
            else:
                seen |= marks
                kept.append(plane)
        result.append(kept)
    return result, dropped


def _names(plane: Plane) -> list[object]:
    """What two copies of an image have in common; anonymised images may lack the first."""
    numbered = (plane.number, plane.distinctions)
    return [plane.uid, numbered] if plane.uid else [numbered]


def _check_counts(places: list[list[Plane]], where: Path) -> None:
    counts = [len(place) for place in places]
    if min(counts) == max(counts):
        return
    usual = sorted(counts)[len(counts) // 2]
    odd = next(place for place in places if len(place) != usual)
    raise InputError(
        f"{where} holds {min(counts)} to {max(counts)} images at a position; expected the same number "
        f"everywhere ({sum(counts)} images, {len(places)} positions; {len(odd)} at that of {odd[0].name}).",
        "Images are missing or doubled: export the series again.",
    )


def _volumes(places: list[list[Plane]], where: Path) -> tuple[list[list[Plane]], list[str]]:
    """The images of each position in one order, as volumes; and what the volumes differ in.

    What has the same values at every position (two echo times) counts before what has not (a trigger time).
    """
    if len(places[0]) == 1:
        return [[place[0] for place in places]], []
    names = [name for name, _ in places[0][0].distinctions]
    table = [[dict(plane.distinctions) for plane in place] for place in places]
    steady, unsteady, differences = [], [], []
    for name in names:
        columns = [sorted(_sortable(row[name]) for row in rows) for rows in table]
        if all(column == columns[0] for column in columns):
            steady.append(name)
            if columns[0][0] != columns[0][-1]:
                shown = dict.fromkeys(_shown(value) for value in columns[0])
                differences.append(f"{name} ({', '.join([*shown][:6])})")
        else:
            unsteady.append(name)

    def key(plane: Plane) -> tuple:
        of = dict(plane.distinctions)
        return (
            *(_sortable(of[name]) for name in steady),
            plane.indices,
            *(_sortable(of[name]) for name in unsteady),
            plane.number,
        )

    for place_ in places:
        place_.sort(key=key)
        for one, other in pairwise(place_):
            if key(one) == key(other):
                raise InputError(
                    f"{where}: {one.name} and {other.name} lie at one position, and no header says which belongs to "
                    "which volume.",
                    "Put the images of each volume into a folder of its own.",
                )
    return [list(volume) for volume in zip(*places, strict=True)], differences


def _sortable(value: float | str | None) -> tuple[bool, float, str]:
    return value is not None, value if isinstance(value, float) else 0.0, value if isinstance(value, str) else ""


def _shown(value: tuple[bool, float, str]) -> str:
    stated, number, text = value
    return (text or f"{number:g}") if stated else "none"


def _check_gaps(stack: Sequence[Plane], where: Path, warnings: list[str]) -> None:
    heights = np.array([float(stack[0].normal @ plane.position) for plane in stack])
    gaps = np.diff(heights)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) > _GAP_TOLERANCE * usual:
        raise InputError(
            f"{where}: slices lie {usual:.3g} mm apart, but {gaps[worst]:.3g} mm between "
            f"{stack[worst].name} and {stack[worst + 1].name}.",
            "A slice is missing, or the spacing varies: export the series again.",
        )
    even = np.linspace(heights[0], heights[-1], len(heights))
    off = float(np.abs(heights - even).max())
    if off > _GAP_TOLERANCE * usual:
        raise InputError(
            f"{where}: the distance of its slices varies; {off:.3g} mm lie between where {usual:.3g} mm steps would "
            f"put {stack[int(np.abs(heights - even).argmax())].name} and where it is.",
            "Resample it to equal distances, for example on import in 3D Slicer.",
        )
    if off > _GAP_WORTH_SAYING * usual:
        warnings.append(f"The slices' distances vary: places are right to {off:.2g} mm.")
