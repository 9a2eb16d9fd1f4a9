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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..detection.brain import BrainFinder
from ..detection.detector import Detector
from ..detection.regions import find_region
from ..errors import InputError
from ..io.contrasts import declared_name, match_names
from ..io.files import Writer
from ..io.outputs import OutputFolder, keep_out_of_results
from ..io.volume import Scan, Volume, read_mask, read_only_volume, read_volume, write_like
from ..preprocessing.alignment import align
from ..results.result import Progress, Result
from . import montage
from .dataset import HealthyScan, Pair
from .raters import Agreement, agreements
from .references import reference_warnings
from .reliability import Reliability
from .runs import BASELINE, RunSpec, plan_runs
from .statistics import Case, HealthyCase, RunResult
from .table import Table
from .truth import Truth, compare, read_truth, sweep
from .workplace import Clock, Places

# What is written besides images and pictures, the record last.
FILES = (
    *(f"reliability.{kind}" for kind in ("png", "md", "json")),
    *(f"evaluation{kind}.csv" for kind in ("", "_strata", "_froc", "_raters", "_patients", "_healthy")),
    "evaluation.md",
    "evaluation.json",
)


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
        keep_out_of_results(folder.path)
        detectors = {label: Detector(plan) for label, plan in plan_runs(runs, device, seed, steps).items()}
        for detector in detectors.values():
            _check_channels(detector, pairs, healthy)
        return _evaluate(pairs, healthy, detectors, folder, Clock(progress), seed, resamples, warn or _unheard)


def _evaluate(
    pairs: Sequence[Pair],
    healthy: Sequence[HealthyScan],
    detectors: Mapping[str, Detector],
    folder: OutputFolder,
    clock: Clock,
    seed: int,
    resamples: int,
    warn: Callable[[str], None],
) -> Table:
    places = Places(folder.new, list(detectors), [pair.name for pair in pairs])
    healthy_places = Places(folder.new / "healthy", list(detectors), [scan.name for scan in healthy])
    pictures = [f"montage-{label}.png" for label in places.labels.values()]
    folder.check([*places.files(), *(f"healthy/{name}" for name in healthy_places.files()), *pictures, *FILES])
    brains = _find_brains(pairs, healthy, places, healthy_places, _region_of(detectors), clock)
    truths = ((pair.name, read_truth(pair, brains[pair.scan].path)) for pair in pairs)
    warnings = list(reference_warnings((name, truth.reference, truth.brain) for name, truth in truths))
    for warning in warnings:
        warn(warning)
    weights = {
        label: max(1, detector.plan.method.network_calls(detector.plan.method_options))
        for label, detector in detectors.items()
    }
    clock.enter("detect", sum(weights.values()) * (len(pairs) + len(healthy)))
    judged = [_judge(pair, brains[pair.scan], detectors, places, clock, weights) for pair in pairs]
    false_alarms = _count_false_alarms(healthy, detectors, brains, healthy_places, clock, weights)
    clock.enter("table", len(detectors))
    results = []
    montages: dict[str, Writer] = {}
    for done, (label, detector) in enumerate(detectors.items()):
        plan, cases = detector.plan, [one.cases[label] for one in judged]
        maps = ((places.anomaly_map(label, pair.name), read_truth(pair, brains[pair.scan].path)) for pair in pairs)
        dropped = plan.threshold, plan.asked.min_volume_ml, plan.peak_margin
        swept = sweep(cases, maps, *dropped)
        provenance = judged[-1].provenance[label]
        results.append(RunResult(label, label == BASELINE, cases, swept, provenance, false_alarms[label]))
        files = {
            pair.name: montage.Files(
                pair.scan, places.anomaly_map(label, pair.name), brains[pair.scan].path, pair.reference
            )
            for pair in pairs
        }
        montages |= montage.writer(places.labels[label], cases, files, *dropped)
        clock.report(done + 1)
    agreed = [agreement for one in judged for agreement in one.agreed]
    table = Table.of(results, seed=seed, resamples=resamples, warnings=warnings, agreed=agreed)
    reliability = Reliability.of(
        {result.label: [case.free for case in result.cases] for result in results},
        {label: detector.plan.threshold for label, detector in detectors.items()},
        seed=seed,
        resamples=resamples,
    )
    table.write(folder, reliability.writers() | montages)
    return table


@dataclass(frozen=True)
class _Judged:
    """One patient under all runs: by label what it is worth and how it was made, and who agrees with which rater."""

    cases: Mapping[str, Case]
    provenance: Mapping[str, dict[str, Any]]
    agreed: Sequence[Agreement]


def _judge(
    pair: Pair,
    brain: _Brain,
    detectors: Mapping[str, Detector],
    places: Places,
    clock: Clock,
    weights: Mapping[str, int],
) -> _Judged:
    """Every run on one patient; the anomaly maps are written."""
    scan = _read(pair)
    volume = scan.reference
    truth = Truth.of(volume, read_mask(pair.reference, volume), read_mask(brain.path, volume))
    cases: dict[str, Case] = {}
    provenance: dict[str, dict[str, Any]] = {}
    predicted: dict[str, np.ndarray] = {}
    for label, detector in detectors.items():
        result, seconds = _detect(detector, _shown_to(detector, scan), truth.brain_image, clock, weights[label])
        write_like(result.anomaly_map, volume, places.anomaly_map(label, pair.name), dtype=np.float32)
        calibration, seconds = detector.plan.calibration, seconds + brain.seconds
        cases[label] = compare(pair.name, truth, result, calibration, seconds, brain.given)
        provenance[label] = result.provenance
        predicted[label] = truth.view(result.mask) != 0
    raters = {name: truth.view(read_mask(path, volume)) != 0 for name, path in pair.raters.items()}
    return _Judged(cases, provenance, list(agreements(pair.name, predicted, raters, truth.voxel_ml)))


def _unheard(message: str) -> None:
    """For who reads the table alone."""


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
    detector: Detector, scan: Scan | Volume, brain: sitk.Image, clock: Clock, weight: int
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
    places: Places,
    clock: Clock,
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


@dataclass(frozen=True)
class _Brain:
    """Where a scan's brain mask lies, and what finding it took."""

    path: Path
    seconds: float
    given: bool


def _find_brains(
    pairs: Sequence[Pair],
    healthy: Sequence[HealthyScan],
    places: Places,
    healthy_places: Places,
    find: Callable[[Volume], sitk.Image],
    clock: Clock,
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
