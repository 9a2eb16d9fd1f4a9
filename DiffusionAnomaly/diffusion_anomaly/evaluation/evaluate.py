"""Methods against reference masks: everything that goes into the table of an honest evaluation.

Each scan's brain is found once and given to every method; each method runs through a ``Detector`` as a user's
scan does; and the intensity baseline always runs beside, as good as it is known to be. What is judged is the anomaly
map on the scan's own grid. What the columns mean is said in ``table``.

    pairs = find_pairs("lgg-flair/test")
    table = run(pairs, [RunSpec("unsupervised"), RunSpec("guided")], Path("evaluation"))
    print(table.markdown())
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..detection.brain import BrainFinder
from ..detection.calibration import Calibration
from ..detection.detector import Detector
from ..detection.planning import Options, Plan, make_plan
from ..detection.regions import find_region
from ..errors import InputError
from ..io.contrasts import declared_name, match_names
from ..io.files import Writer, file_stem
from ..io.orientation import Orientation
from ..io.outputs import OutputFolder, prepare_folder
from ..io.typed_json import checked
from ..io.volume import Scan, Volume, read_anomaly_map, read_mask, read_only_volume, read_volume, write_like
from ..models.package import Bundle, open_bundle
from ..preprocessing.alignment import align
from ..registry import get_method
from ..results.result import Progress, Result
from ..text import distinct_names
from . import metrics, montage
from .dataset import HealthyScan, Pair
from .froc import Froc
from .metrics import Lesions
from .raters import Agreement, agreements
from .references import reference_warnings
from .reliability import FreeSlices, Reliability
from .statistics import Case, HealthyCase, RunResult, Sweep
from .table import Table

BASELINE = "intensity"
# What is written besides images and pictures, the record last.
FILES = (
    *(f"reliability.{kind}" for kind in ("png", "md", "json")),
    *(f"evaluation{kind}.csv" for kind in ("", "_strata", "_froc", "_raters", "_patients", "_healthy")),
    "evaluation.md",
    "evaluation.json",
)
# A slice counts as tumour-free when it is at least this many slices, and this far, from any with tumour.
FREE_SLICES = 3
FREE_MM = 15.0
# A slice's score is the mean score of this share of its highest-scoring brain voxels.
HIGHEST = 0.01
# Thresholds tried for the best common Dice, and kept per patient for the interval of pooled average
# precision.
DICE_THRESHOLDS = 64
CURVE_POINTS = 1024


@dataclass(frozen=True)
class RunSpec:
    """A method to evaluate.

    Attributes:
        method: its name.
        model: model package by name or folder; None takes the method's default.
        options: further fields of ``detection.planning.Options``; ``overrides`` holds options of the method.
        label: how the table calls it; made from method and model when empty.
    """

    method: str
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @classmethod
    def parse(cls, text: str, **options: Any) -> RunSpec:
        """From ``METHOD[:PRESET][=MODEL]`` and what else is set for all runs."""
        named, _, model = text.partition("=")
        method, _, preset = named.partition(":")
        if not preset:
            return cls(method, model or None, options)
        label = f"{method} ({', '.join(filter(None, (model and Path(model).name, preset)))})"
        return cls(method, model or None, {**options, "preset": preset}, label)


def run(
    pairs: Sequence[Pair],
    runs: Sequence[RunSpec],
    output: Path | str,
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    *,
    healthy: Sequence[HealthyScan] = (),
    resamples: int = 1000,
    steps: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> Table:
    """Run every method on every scan and compare with the references.

    Args:
        pairs: from ``find_pairs``.
        runs: what to evaluate; the baseline is added where it is missing.
        output: folder for the table (``evaluation.csv``, ``.json``, ``.md``, one row a patient in
            ``evaluation_patients.csv`` and one a healthy scan in ``evaluation_healthy.csv``), the calibration's
            reliability (``reliability.md``, ``.json``, ``.png``), a picture of each run's best, median and worst
            patient (``montage-<run>.png``), the brain masks and the anomaly maps; those of healthy scans lie in a
            folder ``healthy``.
        device, seed: as for a detection.
        progress: is told how far it is; may raise ``Cancelled``.
        healthy: scans in which every finding is a false alarm.
        resamples: of the patients, for the intervals.
        steps: for every method that has steps, at most as many as its model allows; None leaves them to the packages.

        warn: is told, before any method runs, why a reference is doubtful; the table keeps it too.

    Returns:
        The table, already written.

    Raises:
        InputError: for a scan or mask that cannot be used, before any method has run; and as a ``Detector``.
    """
    if not pairs:
        raise InputError("There are no scans to evaluate on.", "Give at least one scan with its reference.")
    named = {tuple(sorted(pair.raters)) for pair in pairs}
    if len(named) > 1:
        raise InputError("Some scans lack a rater that others have.", "Give every scan a mask of every rater.")
    inputs = [path for pair in pairs for path in pair.inputs]
    with OutputFolder(output, [*inputs, *(scan.scan for scan in healthy)]) as folder:
        detectors = {label: Detector(plan) for label, plan in plan_runs(runs, device, seed, steps).items()}
        for detector in detectors.values():
            _check_channels(detector, pairs, healthy)
        return _evaluate(pairs, healthy, detectors, folder, _Clock(progress), seed, resamples, warn or _unheard)


def _evaluate(
    pairs: Sequence[Pair],
    healthy: Sequence[HealthyScan],
    detectors: Mapping[str, Detector],
    folder: OutputFolder,
    clock: _Clock,
    seed: int,
    resamples: int,
    warn: Callable[[str], None],
) -> Table:
    places = _Places(folder.new, list(detectors), [pair.name for pair in pairs])
    healthy_places = _Places(folder.new / "healthy", list(detectors), [scan.name for scan in healthy])
    pictures = [f"montage-{label}.png" for label in places.labels.values()]
    folder.check([*places.files(), *(f"healthy/{name}" for name in healthy_places.files()), *pictures, *FILES])
    brains = _find_brains(pairs, healthy, places, healthy_places, _region_of(detectors), clock)
    truths = ((pair.name, _read_truth(pair, brains[pair.scan].path)) for pair in pairs)
    warnings = list(reference_warnings((name, truth.reference, truth.brain) for name, truth in truths))
    for warning in warnings:
        warn(warning)
    weights = {
        label: max(1, detector.plan.method.network_calls(detector.plan.method_options))
        for label, detector in detectors.items()
    }
    clock.enter("detect", sum(weights.values()) * (len(pairs) + len(healthy)))
    cases: dict[str, list[Case]] = {label: [] for label in detectors}
    provenance: dict[str, dict[str, Any]] = {}
    agreed: list[Agreement] = []
    for pair in pairs:
        scan = _read(pair)
        volume, brain = scan.reference, brains[pair.scan]
        truth = Truth.of(volume, read_mask(pair.reference, volume), read_mask(brain.path, volume))
        predicted: dict[str, np.ndarray] = {}
        for label, detector in detectors.items():
            result, seconds = _detect(detector, _shown_to(detector, scan), truth.brain_image, clock, weights[label])
            write_like(result.anomaly_map, volume, places.anomaly_map(label, pair.name), dtype=np.float32)
            calibration, seconds = detector.plan.calibration, seconds + brain.seconds
            cases[label].append(_compare(pair.name, truth, result, calibration, seconds, brain.given))
            provenance[label] = result.provenance
            predicted[label] = truth.view(result.mask) != 0
        raters = {name: truth.view(read_mask(path, volume)) != 0 for name, path in pair.raters.items()}
        agreed += agreements(pair.name, predicted, raters, truth.voxel_ml)
    false_alarms = _count_false_alarms(healthy, detectors, brains, healthy_places, clock, weights)
    clock.enter("table", len(detectors))
    results = []
    montages: dict[str, Writer] = {}
    for done, (label, detector) in enumerate(detectors.items()):
        plan = detector.plan
        maps = ((places.anomaly_map(label, pair.name), _read_truth(pair, brains[pair.scan].path)) for pair in pairs)
        swept = sweep(cases[label], maps, plan.threshold, plan.asked.min_volume_ml)
        is_baseline = label == BASELINE
        results.append(RunResult(label, is_baseline, cases[label], swept, provenance[label], false_alarms[label]))
        files = {
            pair.name: montage.Files(
                pair.scan, places.anomaly_map(label, pair.name), brains[pair.scan].path, pair.reference
            )
            for pair in pairs
        }
        montages |= montage.writer(places.labels[label], cases[label], files, plan.threshold, plan.asked.min_volume_ml)
        clock.report(done + 1)
    table = Table.of(results, seed=seed, resamples=resamples, warnings=warnings, agreed=agreed)
    reliability = Reliability.of(
        {result.label: [case.free for case in result.cases] for result in results},
        {label: detector.plan.threshold for label, detector in detectors.items()},
        seed=seed,
        resamples=resamples,
    )
    table.write(folder, reliability.writers() | montages)
    return table


def _unheard(message: str) -> None:
    """For who reads the table alone."""


def plan_runs(
    runs: Sequence[RunSpec], device: str = "auto", seed: int = 0, steps: int | None = None
) -> dict[str, Plan]:
    """What will be run, by label, with the baseline.

    A run of the baseline's method without a label or side of its own is this one, not another, with its model if it
    names one. Otherwise, where the runs look at no brain, it takes region, slices and scale of the first.

    Raises:
        InputError: for an option that is unknown or out of range, and for two runs of one label.
        ModelError: for a package that cannot be used.
    """
    plans: dict[str, Plan] = {}
    plain = Options(BASELINE, device=device, seed=seed, force=True)  # an evaluation also asks what happens then
    for spec in runs:
        content = {
            "force": True,
            **spec.options,
            "method": spec.method,
            "model": spec.model,
            "device": device,
            "seed": seed,
        }
        options = checked(Options, content, f"The run {spec.label or spec.method}")
        if spec.method == BASELINE and not (spec.label or options.overrides or options.preset):
            plain = replace(options, steps=None)
            continue
        plan = make_plan(options)
        most = plan.method_options.most_steps
        if steps is not None and most is not None:
            plan = make_plan(replace(options, steps=min(steps, most)), plan.bundle)
        label = spec.label or spec.method
        if label in plans and not spec.label:
            label = f"{label} ({plan.bundle.name})"
        if label in plans:
            raise InputError(f"Two runs are called {label!r}.", "Give one of them another label.")
        plans[label] = plan
    if BASELINE in plans:
        raise InputError(f"A run is called {BASELINE!r}, as the baseline is.", "Give it another label.")
    plans[BASELINE] = make_plan(plain, _baseline_for(list(plans.values())) if plain.model is None else None)
    return plans


def _baseline_for(plans: Sequence[Plan]) -> Bundle:
    """The baseline's package as it ships, a model of brain FLAIR, or for another region one that sees what runs see."""
    shipped = open_bundle(get_method(BASELINE).default_model)
    if not plans or plans[0].bundle.region == shipped.region:
        return shipped
    first = plans[0].bundle
    seen = {
        key: first.anomaly[key] for key in ("orientation", "region", "grid", "normalisation") if key in first.anomaly
    }
    return replace(shipped, modality=first.modality, anomaly=shipped.anomaly | seen | {"modality": first.modality})


def sweep(
    cases: Sequence[Case], anomaly_maps: Iterator[tuple[Path, Truth]], threshold: float, min_volume_ml: float
) -> Sweep:
    """All patients' curves at common thresholds: a second pass over the anomaly maps, one in memory at a time.

    Pooled average precision is exact (see ``metrics``). The best common Dice is the best of
    ``DICE_THRESHOLDS`` thresholds, equally spaced by rank among the scores of all lesion voxels, and the
    stored one; each is judged after small components are dropped, as in use. Between two of them recall
    changes by less than 1/63.

    Args:
        cases: of one run.
        anomaly_maps: anomaly map file and truth of each case, in the same order.
        threshold: the stored one.
        min_volume_ml: smaller components are dropped.
    """
    values, counts = metrics.distinct(np.concatenate([case.lesion_scores for case in cases]))
    missed = np.array([case.outside_brain_voxels for case in cases])
    negatives = np.zeros(len(values), np.int64)
    points = metrics.thin(values, CURVE_POINTS)
    thresholds = np.union1d(metrics.thin(values[values > 0], DICE_THRESHOLDS), [threshold])
    true_positives, false_positives, dices, matches = [], [], [], []
    for case, (path, truth) in zip(cases, anomaly_maps, strict=True):
        anomaly_map = truth.view(read_anomaly_map(path).image)
        others = anomaly_map[truth.brain & ~truth.reference]
        negatives += metrics.at_least(others, values)
        true_positives.append(metrics.at_least(case.lesion_scores, points))
        false_positives.append(metrics.at_least(others, points))
        # The anomaly score is 0 outside the brain, so components are looked for in its bounding box alone.
        box = ndimage.find_objects((truth.brain | truth.reference).astype(np.uint8))[0]
        lesions = Lesions.of(truth.reference[box], truth.voxel_ml)
        masks = [metrics.without_small(anomaly_map[box] >= t, truth.voxel_ml, min_volume_ml) for t in thresholds]
        dices.append([metrics.dice(mask, truth.reference[box]) for mask in masks])
        matches.append([lesions.match(mask) for mask in masks])
    return Sweep(
        average_precision=metrics.average_precision_of_counts(counts, negatives, int(missed.sum())),
        average_precision_in_brain=metrics.average_precision_of_counts(counts, negatives),
        missed=missed,
        true_positives=np.array(true_positives),
        false_positives=np.array(false_positives),
        thresholds=thresholds,
        dice=np.array(dices),
        froc=Froc.of(matches),
    )


@dataclass(frozen=True)
class Truth:
    """One scan's reference and brain, as canonical axial arrays."""

    brain_image: sitk.Image
    orientation: Orientation
    reference: np.ndarray
    brain: np.ndarray
    voxel_ml: float
    slice_mm: float

    @classmethod
    def of(cls, volume: Volume, reference: sitk.Image, brain: sitk.Image) -> Truth:
        orientation = Orientation.of(volume.image)
        tumour, inside = (orientation.view(sitk.GetArrayFromImage(mask)) != 0 for mask in (reference, brain))
        voxel_ml = math.prod(volume.image.GetSpacing()) / 1000
        return cls(brain, orientation, tumour, inside, voxel_ml, orientation.spacing(volume.image)[0])

    def view(self, image: sitk.Image) -> np.ndarray:
        return self.orientation.view(sitk.GetArrayFromImage(image))

    @property
    def tumour_slices(self) -> np.ndarray:
        return np.asarray(self.reference.any(axis=(1, 2)))

    @property
    def free_slices(self) -> np.ndarray:
        """Slices with brain that are far from any tumour."""
        far = max(FREE_SLICES, math.ceil(FREE_MM / self.slice_mm - 1e-6))
        return (metrics.slice_distance(self.tumour_slices) >= far) & self.brain.any(axis=(1, 2))


def _read(pair: Pair) -> Scan:
    """A patient's contrasts on the grid of the scan that the reference belongs to.

    Raises:
        InputError: when one cannot be read, or they do not show one head.
    """
    if not pair.channels:
        return Scan({"scan": read_volume(pair.scan)})
    own = [name for name, path in pair.channels.items() if path == pair.scan]
    files = {name: pair.channels[name] for name in (*own, *(name for name in pair.channels if name not in own))}
    return align({name: read_volume(path) for name, path in files.items()})


def _shown_to(detector: Detector, scan: Scan) -> Scan:
    """The channels that a model knows; to one of a single contrast that is not among them, the scan itself."""
    chosen = _chosen(detector, scan.channels)
    return Scan({name: scan.channels[given] for name, given in chosen.items()}, scan.covered)


def _chosen(detector: Detector, given: Collection[str]) -> dict[str, str]:
    names = detector.plan.channels
    known = [name for name in given if declared_name(name, names)]
    if len(names) == 1 and not known:
        return {names[0]: next(iter(given))}
    return match_names(known, names, detector.plan.bundle.name)


def _check_channels(detector: Detector, pairs: Sequence[Pair], healthy: Sequence[HealthyScan]) -> None:
    """Refuse a model of several contrasts where they are not at hand, before anything runs.

    Raises:
        InputError: naming the model and what it lacks.
    """
    if len(detector.plan.channels) == 1:
        return
    if healthy:
        raise InputError(
            f"The model {detector.plan.bundle.name} needs {', '.join(detector.plan.channels)} together, and healthy "
            "scans have one contrast.",
            "Leave --healthy out.",
        )
    for pair in pairs:
        if pair.channels and pair.scan not in pair.channels.values():
            raise InputError(
                f"The scan of {pair.name} is none of its channels.",
                "Name the same file in one of the columns channel_…",
            )
        _chosen(detector, pair.channels or {"scan": pair.scan})


def _detect(
    detector: Detector, scan: Scan | Volume, brain: sitk.Image, clock: _Clock, weight: int
) -> tuple[Result, float]:
    """What one run finds in one scan, and the seconds it took."""
    start = time.perf_counter()
    result = detector(scan, brain=brain, progress=clock.inside(weight))
    clock.finished(weight)
    return result, time.perf_counter() - start


def _count_false_alarms(
    healthy: Sequence[HealthyScan],
    detectors: Mapping[str, Detector],
    brains: Mapping[Path, _Brain],
    places: _Places,
    clock: _Clock,
    weights: Mapping[str, int],
) -> dict[str, list[HealthyCase]]:
    """What each run finds in healthy scans."""
    found: dict[str, list[HealthyCase]] = {label: [] for label in detectors}
    for scan in healthy:
        volume, brain = read_volume(scan.scan), brains[scan.scan]
        mask = read_mask(brain.path, volume)
        for label, detector in detectors.items():
            result, seconds = _detect(detector, volume, mask, clock, weights[label])
            write_like(result.anomaly_map, volume, places.anomaly_map(label, scan.name), dtype=np.float32)
            found[label].append(_count(scan.name, volume, result, seconds + brain.seconds))
    return found


def _count(name: str, volume: Volume, result: Result, seconds: float) -> HealthyCase:
    voxel_ml = math.prod(volume.image.GetSpacing()) / 1000
    return HealthyCase(
        name=name,
        findings=len(result.findings),
        findings_ml=sum(finding.volume_ml for finding in result.findings),
        brain_ml=float(np.count_nonzero(sitk.GetArrayViewFromImage(result.brain)) * voxel_ml),
        seconds=seconds,
        input_sha256=str(result.provenance["input"]["sha256"]),
    )


def _compare(
    name: str, truth: Truth, result: Result, calibration: Calibration, seconds: float, brain_given: bool
) -> Case:
    anomaly_map, predicted = truth.view(result.anomaly_map), truth.view(result.mask) != 0
    outside = int(np.count_nonzero(truth.reference & ~truth.brain))
    lesion_scores, other_scores = (
        anomaly_map[truth.reference & truth.brain],
        anomaly_map[truth.brain & ~truth.reference],
    )
    raw = calibration.inverse(anomaly_map[truth.brain])
    by_otsu = np.zeros_like(truth.brain)
    by_otsu[truth.brain] = raw >= metrics.otsu_threshold(raw)
    judged = [
        *np.flatnonzero(truth.tumour_slices & truth.brain.any(axis=(1, 2))),
        *np.flatnonzero(truth.free_slices),
    ]
    return Case(
        name=name,
        reference_ml=float(truth.reference.sum() * truth.voxel_ml),
        outside_brain_ml=float(outside * truth.voxel_ml),
        predicted_ml=float(predicted.sum() * truth.voxel_ml),
        dice=metrics.dice(predicted, truth.reference),
        average_precision=metrics.average_precision(lesion_scores, other_scores, outside),
        average_precision_in_brain=metrics.average_precision(lesion_scores, other_scores),
        otsu_dice=metrics.dice(by_otsu, truth.reference),
        voxel_auroc=metrics.auroc(lesion_scores, other_scores, outside) if truth.reference.any() else math.nan,
        outside_brain_voxels=outside,
        lesions=Lesions.of(truth.reference, truth.voxel_ml).match(predicted),
        free=FreeSlices.of(name, anomaly_map, predicted, truth.brain, truth.free_slices, truth.voxel_ml),
        score=result.score,
        score_warning=result.score_warning is not None,
        seconds=seconds,
        brain_given=brain_given,
        input_sha256=str(result.provenance["input"]["sha256"]),
        lesion_scores=np.sort(lesion_scores),
        slice_scores=np.array([metrics.highest_mean(anomaly_map[k][truth.brain[k]], HIGHEST) for k in judged]),
        slice_has_lesion=truth.tumour_slices[judged],
    )


@dataclass(frozen=True)
class _Brain:
    """Where a scan's brain mask lies, and what finding it took."""

    path: Path
    seconds: float
    given: bool


def _find_brains(
    pairs: Sequence[Pair],
    healthy: Sequence[HealthyScan],
    places: _Places,
    healthy_places: _Places,
    find: Callable[[Volume], sitk.Image],
    clock: _Clock,
) -> dict[Path, _Brain]:
    """Check every scan and what belongs to it, and find the brains, or other regions, of those without a mask."""
    clock.enter("brain", len(pairs) + len(healthy))
    brains = {}
    for done, scan in enumerate((*pairs, *healthy)):
        clock.report(done)
        volume = read_only_volume(scan.scan)
        if isinstance(scan, Pair):
            for mask in (scan.reference, *scan.raters.values()):
                read_mask(mask, volume)
            if scan.brain is not None:
                read_mask(scan.brain, volume)
                brains[scan.scan] = _Brain(scan.brain, 0.0, True)
                continue
        start = time.perf_counter()
        brain = find(volume)
        seconds = time.perf_counter() - start
        path = (places if isinstance(scan, Pair) else healthy_places).brain(scan.name)
        write_like(brain, volume, path, dtype=np.uint8)
        brains[scan.scan] = _Brain(path, seconds, False)
    return brains


def _region_of(detectors: Mapping[str, Detector]) -> Callable[[Volume], sitk.Image]:
    """What finds the one region that all runs are judged in; the baseline takes that of the others.

    Raises:
        InputError: when they look at several.
    """
    regions = {
        d.plan.bundle.region: d
        for label, d in detectors.items()
        if label != BASELINE or d.plan.asked.model is not None or len(detectors) == 1
    }
    if len(regions) > 1:
        raise InputError(f"The runs look at {' and '.join(regions)}.", "Evaluate those of one region at a time.")
    (region, detector), *_ = regions.items()
    finder = BrainFinder(device=detector.plan.asked.device)
    return lambda volume: find_region(region, volume, finder)


def _read_truth(pair: Pair, brain: Path) -> Truth:
    volume = read_volume(pair.scan)
    return Truth.of(volume, read_mask(pair.reference, volume), read_mask(brain, volume))


class _Places:
    """Where the images of an evaluation lie: every run and every scan has a name of its own that each system takes."""

    def __init__(self, root: Path, labels: Sequence[str], names: Sequence[str]) -> None:
        self._root = root
        self.labels = dict(zip(labels, distinct_names(map(file_stem, labels)), strict=True))
        self._names = dict(zip(names, distinct_names(map(file_stem, names)), strict=True))

    def files(self) -> list[str]:
        """All names that may come to be."""
        folders = ["brain", *(f"heat/{label}" for label in self.labels.values())]
        return [f"{folder}/{name}.nii.gz" for folder in folders for name in self._names.values()]

    def anomaly_map(self, label: str, name: str) -> Path:
        return self._file(Path("heat", self.labels[label]), name)

    def brain(self, name: str) -> Path:
        return self._file(Path("brain"), name)

    def _file(self, folder: Path, name: str) -> Path:
        return prepare_folder(self._root / folder) / f"{self._names[name]}.nii.gz"


class _Clock:
    """Progress over all runs and scans, weighted by network calls, with the time left."""

    def __init__(self, listener: Callable[[Progress], None] | None) -> None:
        self._listener = listener
        self._start = time.perf_counter()
        self._stage, self._stage_start, self._total, self._done = "", 0.0, 1, 0

    def enter(self, stage: str, total: int) -> None:
        if stage != self._stage:
            self._stage, self._stage_start, self._total, self._done = stage, time.perf_counter(), total, 0

    def report(self, done: int) -> None:
        if self._listener is None:
            return
        now = time.perf_counter()
        remaining = (now - self._stage_start) * (self._total - done) / done if done else None
        self._listener(Progress(self._stage, done, self._total, now - self._start, remaining))

    def inside(self, weight: int) -> Callable[[Progress], None]:
        """What a detection of that weight reports to."""

        share = 0.0

        def report(now: Progress) -> None:
            nonlocal share
            if now.stage == "detect":
                share = max(share, now.done / max(1, now.total))
            self.report(self._done + int(share * weight))

        return report

    def finished(self, weight: int) -> None:
        self._done += weight
        self.report(self._done)
