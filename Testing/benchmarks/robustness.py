"""What is left of each method when a scan is noisier, thicker, tilted or cut.

    python -m Testing.benchmarks robustness SCANS --run guided --patients 4 -o OUT
    python -m Testing.benchmarks robustness SCANS --only noise --only rotated -o OUT      # rows whose name holds these

Each scan is perturbed (see ``perturbations``), its reference with it, its brain is found anew, and each method runs
as on any scan. Printed and written to ``OUT/robustness.md`` and ``.json``: Dice at the stored threshold and average
precision, mean over the patients whom a perturbation could be applied to, and the mean of their differences to the
unperturbed scan. What has been computed is kept in OUT: a run that was stopped goes on where it was. The fingerprint of
what is kept covers scans, models and options, not the engine's code: take an empty OUT after changing that.

How it is judged: average precision is taken over all voxels of the brain found now, the brain found in the unperturbed
scan (moved along) and the reference, so that a brain that is found badly counts against a method; a voxel without
scores is the least suspicious. Where a perturbation only cuts the field of view, the unperturbed the anomaly score is
judged on what is left. A scan in which no brain is found any more has no scores at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Plan
from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.dataset import Pair, find_pairs
from diffusion_anomaly.evaluation.formatting import markdown_table, number
from diffusion_anomaly.io.outputs import prepare_folder
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.results.result import Result
from diffusion_anomaly.text import counted

from . import evidence
from .evidence import Known, Progress
from .perturbations import PERTURBATIONS, Perturbation, Sample

UNPERTURBED = "unperturbed"
MEASURES = {"dice": "Dice", "average_precision": "AP"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = evidence.parser("robustness", __doc__)
    parser.add_argument("--only", action="append", metavar="WORD", help="perturbations whose name holds it; repeatable")
    asked = parser.parse_args(arguments)
    try:
        pairs = evidence.chosen(
            find_pairs(asked.data, asked.scan_pattern, asked.mask_pattern), asked.patient, asked.patients
        )
        report = robustness(pairs, evidence.plans_of(asked), _named(asked.only), asked.output, asked.seed)
    except EngineError as error:
        return evidence.refuse(error)
    evidence.write(asked.output, "robustness", report, markdown(report))
    return 0


def robustness(
    pairs: Sequence[Pair], plans: Mapping[str, Plan], perturbations: Sequence[Perturbation], output: Path, seed: int = 0
) -> dict[str, Any]:
    """Every method on every scan under every perturbation.

    Args:
        pairs: scans with references.
        plans: what runs, by label.
        perturbations: beside the unperturbed scan, which is always there.
        output: folder for what is known already.
        seed: of the perturbations' noise; the methods' own is in their plans.

    Returns:
        ``rows``, one a perturbation and run; ``cases``, one a perturbation, run and patient; ``about``.
    """
    known = Known(prepare_folder(output, evidence.files("robustness")) / "cases")
    detectors = {label: Detector(plan) for label, plan in plans.items()}
    stamps = {label: evidence.fingerprint(plan, seed) for label, plan in plans.items()}
    device = next(iter(plans.values())).device
    progress = Progress(len(pairs) * (1 + len(perturbations)))
    cases: list[dict[str, Any]] = []
    for pair in pairs:
        volume, reference, files = evidence.read_pair(pair)
        brain = evidence.brain_of(replace(pair, brain=None), volume, output / "brain", device)
        sample = Sample(volume.image, reference, brain)
        for perturbation in (None, *perturbations):
            name = UNPERTURBED if perturbation is None else perturbation.name
            found = {label: known.get(f"{pair.name} {name} {label}", f"{stamps[label]} {files}") for label in plans}
            missing = {label: detector for label, detector in detectors.items() if found[label] is None}
            if missing and perturbation is None:
                new = _unperturbed(volume, sample, missing, seed, pair.name)
            elif missing and perturbation is not None:
                new = _perturbed(volume, perturbation(sample, seed, pair.name), missing, device)
            else:
                new = {}
            for label, values in new.items():
                found[label] = known.put(f"{pair.name} {name} {label}", f"{stamps[label]} {files}", values)
            for label, values in found.items():
                cases.append({"perturbation": name, "run": label, "patient": pair.name, **(values or {})})
            progress.done(f"{pair.name}, {name}", known=not missing)
    rows = [row for name in (UNPERTURBED, *(p.name for p in perturbations)) for row in _rows(name, cases, list(plans))]
    return {"about": evidence.about(plans, pairs) | {"seed": seed}, "rows": rows, "cases": cases}


def markdown(report: Mapping[str, Any]) -> str:
    """A row a perturbation; for each method its measures and their difference to the unperturbed scan."""
    labels = list(report["about"]["runs"])
    names = list(dict.fromkeys(row["perturbation"] for row in report["rows"]))
    head = ["perturbation", "patients", "brain Dice"]
    head += [text for label in labels for title in MEASURES.values() for text in (f"{label} {title}", "Δ")]
    lines, left_out, lost = [], [], []
    for name in names:
        rows = {row["run"]: row for row in report["rows"] if row["perturbation"] == name}
        first = rows[labels[0]]
        if not first["patients"]:
            left_out.append(name)
            continue
        if first["brain_lost"]:
            lost.append(f"{name} ({first['brain_lost']})")
        cells = [name, str(first["patients"]), number(first["brain_dice"], 3)]
        for label in labels:
            for key in MEASURES:
                change = rows[label][f"{key}_change"]
                cells += [number(rows[label][key], 3), "" if name == UNPERTURBED else _signed(change)]
        lines.append(cells)
    about = report["about"]
    text = markdown_table(head, lines)
    text += [
        "",
        f"{counted(len(about['patients']), 'patient')}: {', '.join(about['patients'])}; {about['hardware']}.",
        "",
    ]
    text += [
        "Dice at the stored threshold and average precision, mean over patients; Δ: mean difference to the same "
        "patients' unperturbed scans, judged on the same voxels where the field of view was cut. Patients whose "
        "reference was cut away entirely do not count. Brain Dice: the brain found anew against that of the "
        "unperturbed scan, moved along.",
    ]
    if left_out:
        text += ["", f"Not possible with these scans: {', '.join(left_out)}."]
    if lost:
        text += ["", f"No brain was found any more (scans): {', '.join(lost)}."]
    return "\n".join(text) + "\n"


def _named(words: Sequence[str] | None) -> list[Perturbation]:
    """The perturbations whose name holds any of the words; all without words."""
    found = [p for p in PERTURBATIONS if not words or any(word in p.name for word in words)]
    if not found:
        raise InputError(
            f"No perturbation is called {' or '.join(words or ())}.",
            f"There are {', '.join(p.name for p in PERTURBATIONS)}.",
        )
    return found


def _unperturbed(
    volume: Volume, sample: Sample, detectors: Mapping[str, Detector], seed: int, patient: str
) -> dict[str, dict[str, Any]]:
    """The measures of each run, and those within each field of view that a perturbation leaves."""
    measured = {}
    for label, detector in detectors.items():
        result = detector(volume, brain=sample.brain)
        within: dict[str, dict[str, float]] = {}
        for cut in (p for p in PERTURBATIONS if p.cuts):
            left = cut(sample, seed, patient)
            # The images of the result are cut as the scan is.
            anomaly_map, mask = (
                cut(replace(sample, scan=sitk.Cast(image, sitk.sitkFloat32)), seed, patient)
                for image in (result.anomaly_map, result.mask)
            )
            if left is not None and anomaly_map is not None and mask is not None:
                within[cut.name] = _measures(_array(anomaly_map.scan), _array(mask.scan) != 0, left)
        measured[label] = _judge(result, sample) | {"applies": True, "brain_found": True, "within": within}
    return measured


def _perturbed(
    volume: Volume, sample: Sample | None, detectors: Mapping[str, Detector], device: str
) -> dict[str, dict[str, Any]]:
    """The measures of each run, with the brain found anew."""
    from diffusion_anomaly.detection.brain import BrainFinder

    if sample is None:
        return {label: {"applies": False} for label in detectors}
    changed = replace(volume, image=sample.scan)
    try:
        brain = BrainFinder(device=device)(changed)
    except InputError as error:  # no brain: that is a result too, and the table says so
        nothing = np.zeros(sample.scan.GetSize()[::-1], np.float32)
        values = _measures(nothing, nothing > 0, sample) | {"applies": True, "brain_found": False, "why": error.what}
        return dict.fromkeys(detectors, values | {"brain_dice": 0.0})
    measured = {}
    for label, detector in detectors.items():
        result = detector(changed, brain=brain)
        measured[label] = _judge(result, sample) | {"applies": True, "brain_found": True}
    return measured


def _judge(result: Result, sample: Sample) -> dict[str, float]:
    brain = _array(result.brain) != 0
    measured = _measures(_array(result.anomaly_map), _array(result.mask) != 0, sample, brain)
    return measured | {"brain_dice": metrics.dice(brain, _array(sample.brain) != 0)}


def _measures(
    anomaly_map: np.ndarray, predicted: np.ndarray, sample: Sample, brain: np.ndarray | None = None
) -> dict[str, float]:
    """Dice, and average precision over brain (found before, and now) and reference."""
    reference = _array(sample.reference) != 0
    region = reference | (_array(sample.brain) != 0)
    if brain is not None:
        region |= brain
    return {
        "dice": metrics.dice(predicted, reference),
        "average_precision": metrics.average_precision(anomaly_map[reference], anomaly_map[region & ~reference]),
        "reference_voxels": int(reference.sum()),
    }


def _rows(name: str, cases: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """A perturbation's means for each run."""
    rows = []
    for label in labels:
        before = {c["patient"]: c for c in cases if (c["perturbation"], c["run"]) == (UNPERTURBED, label)}
        after = [c for c in cases if (c["perturbation"], c["run"]) == (name, label) and c["applies"]]
        judged = [c for c in after if c["dice"] is not None]
        row: dict[str, Any] = {"perturbation": name, "run": label, "patients": len(judged)}
        row["brain_lost"] = sum(not c["brain_found"] for c in after)
        row["brain_dice"] = metrics.mean_or_nan([c["brain_dice"] for c in judged])
        for key in MEASURES:
            row[key] = metrics.mean_or_nan([c[key] for c in judged])
            compared = [(c, before[c["patient"]]["within"].get(name, before[c["patient"]])) for c in judged]
            row[f"{key}_change"] = metrics.mean_or_nan([c[key] - b[key] for c, b in compared])
        rows.append(row)
    return rows


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else number(None, 3)


def _array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(image)
