"""Findings of a prior and a current scan of one patient, matched after a rigid registration of the two.

The maps are compared, not computed again. A finding that is called new may have been there below the threshold, and one
that is gone may be there still, so the highest score at its place in the other scan goes with each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ...errors import InputError
from ...io.orientation import Orientation, describe_grid, same_grid
from ...options import margin_of
from ...preprocessing.agreement import shared_detail
from ...preprocessing.registration import Registration, register
from ..findings import Finding, segment
from ..places import BrainFrame

if TYPE_CHECKING:
    from ..result import Result

NEW, GROWN, SHRUNK, GONE = "new", "grown", "shrunk", "gone"
UNCHANGED, UNCERTAIN, NOT_SEEN = "unchanged", "uncertain", "not comparable"
KINDS = (NEW, GROWN, SHRUNK, GONE, UNCERTAIN, UNCHANGED, NOT_SEEN)
"""What can have become of a finding. Uncertain is one that only one scan has, but the other nearly; not comparable one
whose place the other scan does not show."""

# A head lies elsewhere on the table at another visit, and another scanner counts from another place.
MOST_SHIFT_MM = 250.0
# How far two findings may lie apart and still be one: the registration's error, or half a slice where that is more.
APART_MM = 2.0
# Share of a finding's voxels that the other scan must show, so that something can be said of it.
LEAST_SEEN = 0.5
# Of the threshold: a score so high in the other scan, and a finding is neither new nor gone for certain.
NEARLY = 0.5
# Smaller differences of volumes are no change, see the page on comparing for how often one is seen where none is.
LEAST_RATIO, LEAST_ML = 2.0, 0.1
# Dice of the two brains, and shared detail inside, below which the two hardly are of one patient.
LEAST_OVERLAP, LEAST_DETAIL = 0.85, 0.02


@dataclass(frozen=True)
class Exam:
    """A scan and what was found in it.

    Attributes:
        name: what the scan is called.
        scan, anomaly_map, brain: 3-D, on one grid; the map float32, the brain 0 outside.
        threshold: anomaly score from which a voxel is in the mask.
        min_volume_ml: smaller findings are dropped.
        peak_margin: so are those whose highest score does not exceed the threshold by this much.
        model: name and version of the model; None where it is not known.
        identity: what the headers say of patient and study, by DICOM keyword; may be empty.
        warnings: reasons to doubt the result.
    """

    name: str
    scan: sitk.Image
    anomaly_map: sitk.Image
    brain: sitk.Image
    threshold: float
    min_volume_ml: float
    model: str | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    peak_margin: float = 0.0

    @classmethod
    def of(cls, result: Result) -> Exam:
        """A detection's.

        Raises:
            InputError: for a picture, which has no place in space.
        """
        if result.is_picture:
            raise InputError(f"{result.name} is a picture, and pictures are not compared.", "Give two volumes.")
        reference = result.scan.reference
        return cls(
            result.name,
            reference.image,
            result.anomaly_map,
            result.brain,
            result.threshold,
            result.provenance["options"]["min_volume_ml"],
            model_of(result.provenance),
            reference.identity,
            result.warnings,
            margin_of(result.provenance["options"]),
        )


@dataclass(frozen=True)
class Change:
    """What became of a finding, or of several that grew together or fell apart.

    Attributes:
        kind: one of ``KINDS``.
        current, prior: the numbers of the findings, by rank in each scan; one of the two may be empty.
        current_ml, prior_ml: their volumes, 0 for none.
        current_score, prior_score: the highest score at the place in each scan; None where it does not show it.
        centroid_ras: its middle in mm right, anterior, superior in the current scan's space.
        slices: first and last slice of the current scan that it touches, as in ``Finding``; None where it lies outside.
        place: roughly where in the brain that is, see ``places``.
    """

    kind: str
    current: tuple[int, ...]
    prior: tuple[int, ...]
    current_ml: float
    prior_ml: float
    current_score: float | None
    prior_score: float | None
    centroid_ras: tuple[float, float, float]
    slices: tuple[int, int] | None
    place: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two exams side by side, all on the current scan's grid.

    Attributes:
        current, prior: as they were given, at the thresholds that were compared.
        registration: from points of the current scan to points of the prior one.
        prior_scan, prior_map, prior_labels, seen: the prior scan, its anomaly map, the numbers of its findings, and
            where it shows the patient (0 or 1), resampled onto the current scan's grid.
        current_labels: the numbers of the current findings.
        current_findings, prior_findings: of the two masks, the prior's in its own space.
        changes: new ones first, see ``KINDS``, and of each kind the largest first.
        warnings: reasons to doubt the comparison.
    """

    current: Exam
    prior: Exam
    registration: Registration
    prior_scan: sitk.Image
    prior_map: sitk.Image
    prior_labels: sitk.Image
    seen: sitk.Image
    current_labels: sitk.Image
    current_findings: list[Finding]
    prior_findings: list[Finding]
    changes: list[Change]
    warnings: list[str]

    @property
    def prior_mask(self) -> sitk.Image:
        """uint8, on the current scan's grid."""
        return sitk.Cast(self.prior_labels > 0, sitk.sitkUInt8)

    @property
    def current_mask(self) -> sitk.Image:
        """uint8."""
        return sitk.Cast(self.current_labels > 0, sitk.sitkUInt8)

    def count(self, kind: str) -> int:
        """How many changes are of a kind."""
        return sum(change.kind == kind for change in self.changes)


@dataclass(frozen=True)
class _Side:
    """One of the two scans on the current one's grid: its findings by rank, their numbers in each voxel, its scores,
    where it was looked at, and its threshold.
    """

    findings: list[Finding]
    labels: np.ndarray
    scores: np.ndarray
    seen: np.ndarray
    threshold: float


def compare(prior: Exam, current: Exam) -> Comparison:
    """Lay the prior scan on the current one and match the findings.

    The prior map is given the current one's threshold, smallest volume and peak margin where one model made both.

    Args:
        prior: the earlier scan, and what was found in it.
        current: the later one, whose space all is told in.

    Raises:
        InputError: when the scans cannot be registered, are one and the same image, or a map has another grid than its
            scan.
    """
    for exam in (prior, current):
        _check(exam)
    if same_grid(prior.scan, current.scan) and np.array_equal(_array(prior.scan), _array(current.scan)):
        raise InputError(f"{prior.name} and {current.name} are the same image.", "Give the scans of two visits.")
    warnings = _of_two_results(prior, current)
    if prior.model == current.model:
        prior = replace(
            prior,
            threshold=current.threshold,
            min_volume_ml=current.min_volume_ml,
            peak_margin=current.peak_margin,
        )
    found = _registered(prior, current)

    def moved(image: sitk.Image, interpolator: int) -> sitk.Image:
        return sitk.Resample(image, current.scan, found.transform, interpolator, 0.0, image.GetPixelID())

    _, labels, findings = zip(*(_segmented(exam) for exam in (prior, current)), strict=True)
    seen = _seen(prior, moved)
    prior_map = moved(sitk.Cast(prior.anomaly_map, sitk.sitkFloat32), sitk.sitkLinear)
    prior_labels = sitk.GetArrayFromImage(moved(labels[0], sitk.sitkNearestNeighbor))
    _restore_lost(prior_labels, findings[0], current.scan, found.transform)
    warnings += _of_two_heads(prior, current, moved, seen)
    groups = _groups(prior_labels, _array(labels[1]), findings, current.scan)
    sides = (
        _Side(findings[0], prior_labels, _array(prior_map), seen, prior.threshold),
        _Side(
            findings[1], _array(labels[1]), _array(current.anomaly_map), _array(current.brain) != 0, current.threshold
        ),
    )
    changes = [_change(*group, sides, current.scan, found.transform) for group in groups]
    frame = BrainFrame.of(current.brain)
    if frame is not None:
        changes = [replace(change, place=frame.place(change.centroid_ras)) for change in changes]
    changes.sort(key=lambda change: (KINDS.index(change.kind), -max(change.current_ml, change.prior_ml)))
    return Comparison(
        current=current,
        prior=prior,
        registration=found,
        prior_scan=moved(sitk.Cast(prior.scan, sitk.sitkFloat32), sitk.sitkLinear),
        prior_map=prior_map,
        prior_labels=_image(prior_labels, current.scan),
        seen=_image(seen.astype(np.uint8), current.scan),
        current_labels=labels[1],
        current_findings=findings[1],
        prior_findings=findings[0],
        changes=changes,
        warnings=warnings,
    )


def model_of(provenance: Mapping[str, Any]) -> str | None:
    """Name and version of the model that made a map."""
    model = provenance.get("model")
    return f"{model['name']} {model['version']}" if isinstance(model, Mapping) else None


def _check(exam: Exam) -> None:
    for what, image in (("anomaly map", exam.anomaly_map), ("brain mask", exam.brain)):
        if not same_grid(image, exam.scan):
            raise InputError(
                f"The {what} of {exam.name} has the grid {describe_grid(image)}, the scan {describe_grid(exam.scan)}.",
                "Give the results of the same scan.",
            )


def _segmented(exam: Exam) -> tuple[sitk.Image, sitk.Image, list[Finding]]:
    return segment(exam.anomaly_map, exam.threshold, exam.min_volume_ml, exam.brain, peak_margin=exam.peak_margin)


def _registered(prior: Exam, current: Exam) -> Registration:
    fixed, moving = (sitk.Cast(exam.scan, sitk.sitkFloat32) for exam in (current, prior))
    try:
        return register(fixed, moving, "the prior scan", most_shift_mm=MOST_SHIFT_MM)
    except InputError as error:
        raise InputError(error.what, "Are both scans of one patient, and do they show the same part?") from error


def _of_two_results(prior: Exam, current: Exam) -> list[str]:
    """What may differ although nothing changed in the patient."""
    notes = []
    if prior.model != current.model:
        notes.append(
            f"The prior scan was looked at with {prior.model or 'no model'}, the current one with "
            f"{current.model or 'no model'}: differences may be the models'. Run both with one."
        )
    if differ := two_patients(prior.identity, current.identity):
        notes.append(differ)
    for exam, which in ((prior, "prior"), (current, "current")):
        if exam.warnings:
            notes.append(f"The result of the {which} scan is in doubt: {' '.join(exam.warnings)}")
    return notes


def two_patients(prior: Mapping[str, str], current: Mapping[str, str]) -> str:
    """In what the headers say of two patients, in a sentence; empty where they do not.

    Args:
        prior, current: see ``Exam.identity``.
    """
    known = [key for key in ("PatientID", "PatientBirthDate") if key in prior and key in current]
    differ = [key for key in known if prior[key] != current[key]]
    return f"The two scans are of two patients by their {' and '.join(differ)}." if differ else ""


def _seen(prior: Exam, moved: Callable[[sitk.Image, int], sitk.Image]) -> np.ndarray:
    """Where the prior scan was looked at, bool on the current grid; its brain without holes between thick slices."""
    return sitk.GetArrayFromImage(moved(sitk.Cast(prior.brain != 0, sitk.sitkUInt8), sitk.sitkNearestNeighbor)) != 0


def _of_two_heads(
    prior: Exam, current: Exam, moved: Callable[[sitk.Image, int], sitk.Image], seen: np.ndarray
) -> list[str]:
    """Whether the two lie on each other as one head does."""
    whole = sitk.Image(prior.scan.GetSize(), sitk.sitkUInt8) + 1
    whole.CopyInformation(prior.scan)
    covered = sitk.GetArrayFromImage(moved(whole, sitk.sitkNearestNeighbor)) != 0
    brain = (_array(current.brain) != 0) & covered
    sizes = np.count_nonzero(brain) + np.count_nonzero(seen)
    overlap = 2 * np.count_nonzero(brain & seen) / sizes if sizes else 0.0
    if overlap < LEAST_OVERLAP:
        return [f"The two brains hardly lie on each other (overlap {overlap:.2f}); look at the two scans together."]
    one, other = (sitk.GetArrayFromImage(image) for image in (current.scan, moved(prior.scan, sitk.sitkLinear)))
    x, y, z = current.scan.GetSpacing()
    detail = shared_detail(one, other, brain & seen, (z, y, x))
    if detail is None or detail >= LEAST_DETAIL:
        return []
    return ["The two scans share little detail inside the brain: are they of one patient?"]


def _restore_lost(labels: np.ndarray, findings: Sequence[Finding], grid: sitk.Image, transform: sitk.Transform) -> None:
    """A finding that is smaller than the current scan's voxels gets the one at its middle, if nothing else has it."""
    there = np.bincount(labels.ravel(), minlength=len(findings) + 1)
    for finding in findings:
        if there[finding.id] == 0:
            index = _index_of(finding, grid, transform)
            if index is not None and labels[index] == 0:
                labels[index] = finding.id


def _index_of(finding: Finding, grid: sitk.Image, transform: sitk.Transform) -> tuple[int, int, int] | None:
    """The voxel ``(k, j, i)`` of the current grid at the middle of a prior finding; None outside."""
    index = grid.TransformPhysicalPointToIndex(_moved_back(finding.centroid_ras, transform))
    if any(place < 0 or place >= n for place, n in zip(index, grid.GetSize(), strict=True)):
        return None
    i, j, k = index
    return k, j, i


def _moved_back(ras: Sequence[float], transform: sitk.Transform) -> tuple[float, float, float]:
    """A point of the prior scan in the current one's space, LPS."""
    x, y, z = transform.GetInverse().TransformPoint((-ras[0], -ras[1], ras[2]))
    return x, y, z


def _groups(
    prior: np.ndarray, current: np.ndarray, findings: tuple[list[Finding], list[Finding]], grid: sitk.Image
) -> list[tuple[list[int], list[int]]]:
    """Which findings belong together, because they overlap or nearly do: numbers ``(prior, current)`` of each group.

    A finding that none of the other scan lies at is a group by itself.
    """
    spacing = grid.GetSpacing()[::-1]
    before, now = (len(listed) for listed in findings)
    pairs = np.empty((0, 2), int)
    if before and now and prior.any():
        measured = ndimage.distance_transform_edt(prior == 0, sampling=spacing, return_indices=True)
        apart, nearest = cast("tuple[np.ndarray, np.ndarray]", measured)
        near = (current > 0) & (apart <= max(APART_MM, 0.5 * max(spacing)))
        owners = prior[tuple(axis[near] for axis in nearest)]
        pairs = np.unique(np.stack([owners, current[near]], 1).astype(int), axis=0)
    # Nodes of the graph: the prior findings, then the current ones.
    rows, columns = pairs[:, 0] - 1, before + pairs[:, 1] - 1
    edges = coo_array((np.ones(len(pairs)), (rows, columns)), (before + now, before + now))
    count, owner = connected_components(edges, directed=False)
    members = [np.flatnonzero(owner == group) for group in range(count)]
    return [
        (
            [int(node) + 1 for node in nodes if node < before],
            [int(node) - before + 1 for node in nodes if node >= before],
        )
        for nodes in members
    ]


def _change(
    prior: Sequence[int],
    current: Sequence[int],
    sides: tuple[_Side, _Side],
    grid: sitk.Image,
    transform: sitk.Transform,
) -> Change:
    """What became of a group.

    Args:
        prior, current: numbers of its findings.
        sides: the prior scan and the current one.
        grid, transform: of the current scan, and from its points to the prior one's.
    """
    groups = prior, current
    members = [[side.findings[number - 1] for number in group] for side, group in zip(sides, groups, strict=True)]
    volumes = [sum(finding.volume_ml for finding in listed) for listed in members]
    own = 1 if current else 0
    place = np.isin(sides[own].labels, groups[own])
    shown = [float(np.mean(side.seen[place])) if place.any() else 0.0 for side in sides]
    highest = [
        float(side.scores[place].max()) if share >= LEAST_SEEN else None
        for side, share in zip(sides, shown, strict=True)
    ]
    for which, listed in enumerate(members):  # interpolation flattens a peak; a finding's own voxels know it
        if listed:
            highest[which] = max(finding.peak_score for finding in listed)
    weights = [finding.volume_ml for finding in members[own]]
    points = [
        finding.centroid_ras if own else _as_ras(_moved_back(finding.centroid_ras, transform))
        for finding in members[own]
    ]
    x, y, z = np.average(points, axis=0, weights=weights)
    touched = np.flatnonzero(place.any(axis=tuple(axis for axis in range(3) if axis != _slice_axis(grid))))
    return Change(
        kind=_kind(volumes, shown, highest, [side.threshold for side in sides]),
        current=tuple(current),
        prior=tuple(prior),
        current_ml=volumes[1],
        prior_ml=volumes[0],
        current_score=highest[1],
        prior_score=highest[0],
        centroid_ras=(float(x), float(y), float(z)),
        slices=(int(touched[0]), int(touched[-1])) if touched.size else None,
    )


def _kind(
    volumes: Sequence[float],
    shown: Sequence[float],
    highest: Sequence[float | None],
    thresholds: Sequence[float],
) -> str:
    """What became of a group, by its volumes, the share of it that is shown, its highest score, and the threshold; each
    in the prior and the current scan.
    """
    before, now = volumes
    if before and now:
        if abs(now - before) < LEAST_ML or max(now, before) < LEAST_RATIO * min(now, before):
            return UNCHANGED
        return GROWN if now > before else SHRUNK
    other = 0 if now else 1
    score = highest[other]
    if shown[other] < LEAST_SEEN or score is None:
        return NOT_SEEN
    if score >= NEARLY * thresholds[other]:
        return UNCERTAIN
    return NEW if now else GONE


def _slice_axis(grid: sitk.Image) -> int:
    """Which axis of the array ``(k, j, i)`` the slices are counted along."""
    return 2 - Orientation.of(grid).axes[0]


def _as_ras(point: Sequence[float]) -> tuple[float, float, float]:
    return -point[0], -point[1], point[2]


def _array(image: sitk.Image) -> np.ndarray:
    """A view of an image's own memory, which somebody must hold on to."""
    return sitk.GetArrayViewFromImage(image)


def _image(array: np.ndarray, like: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    return image
