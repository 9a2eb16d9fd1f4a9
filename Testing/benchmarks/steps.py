"""Do few steps stay true? The default against many times as many steps, slice by slice the same noise.

    python -m Testing.benchmarks steps SCANS --run guided --patients 4 -o OUT
    python -m Testing.benchmarks steps SCANS --times 10 --all --slices 8 -o OUT

For each model it prints, and writes to ``OUT/steps.md`` and ``.json``, the average precision of both and what is lost
in percent, and Spearman's rank correlation of the two scores inside the brain, on slices with and without a lesion. Ten
times the steps mean

- `unsupervised`: ten times the levels walked when inpainting and ten times the levels of the KL map, as far as there
  are so many; where there are not, more noise draws at each. Reconstructions stay as many, each from the same noise;
- `guided`: ten times the transitions each way, at most one a level;
- `restore`: ten times the levels of corruption asked for, at most all.

`--all` compares with every level too. Everything else is as in a detection: the same slices, intensities, noise seeds,
precision and post-processing; the anomaly score is compared on the model's grid before calibration, which does not
change ranks. With `--slices N` only N slices of each scan are looked at, which the output says. What has been computed
is kept in OUT: a run that was stopped goes on where it was; take an empty OUT after changing the engine's code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Plan
from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.dataset import Pair, find_pairs
from diffusion_anomaly.evaluation.formatting import markdown_table, number
from diffusion_anomaly.io.outputs import prepare_folder
from diffusion_anomaly.text import counted

from . import evidence
from .anomaly_map import Slices, filtered, keep, read_known, run_method
from .evidence import Progress
from .measure import rank_correlation
from .variants import every_level, more_steps

DEFAULT = "default"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = evidence.parser("steps", __doc__)
    add = parser.add_argument
    add("--times", type=int, default=10, metavar="K", help="compare with K times the steps; default: 10")
    add("--all", action="store_true", help="compare with every level too")
    add("--slices", type=int, metavar="N", help="of each scan; those with the largest reference and a spread of others")
    add("--brain-pattern", help="the scans' brain masks; default: found by a network")
    asked = parser.parse_args(arguments)
    try:
        pairs = find_pairs(asked.data, asked.scan_pattern, asked.mask_pattern, asked.brain_pattern)
        pairs = evidence.chosen(pairs, asked.patient, asked.patients)
        plans = {label: plan for label, plan in evidence.plans_of(asked).items() if plan.method.has_network}
        if not plans or asked.times < 2:
            raise InputError(
                "There is nothing to compare.", "Give a method that walks steps, and --times of at least 2."
            )
        report = compare(pairs, plans, asked.output, times=asked.times, everything=asked.all, slices=asked.slices)
    except EngineError as error:
        return evidence.refuse(error)
    evidence.write(asked.output, "steps", report, markdown(report))
    return 0


def compare(
    pairs: Sequence[Pair],
    plans: Mapping[str, Plan],
    output: Path,
    *,
    times: int = 10,
    everything: bool = False,
    slices: int | None = None,
) -> dict[str, Any]:
    """The default against more steps, for every run and scan.

    Args:
        pairs: scans with references.
        plans: what runs, by label.
        output: folder for what is known already.
        times: how many times the steps.
        everything: whether to compare with every level too.
        slices: how many of each scan; None for all.

    Returns:
        ``rows``, one a run and comparison; ``cases``, one a patient too; ``about``.

    Raises:
        InputError: when no run can take more steps.
    """
    prepare_folder(output, evidence.files("steps"))
    variants = {label: _variants(plan, times, everything) for label, plan in plans.items()}
    complete = [label for label, named in variants.items() if len(named) == 1]
    if len(complete) == len(plans):
        raise InputError(
            f"{', '.join(complete)}: the default takes every level already.", "There is nothing to compare it with."
        )
    plans = {label: plan for label, plan in plans.items() if label not in complete}
    variants = {label: variants[label] for label in plans}
    progress = Progress(len(pairs) * sum(len(named) for named in variants.values()))
    cases = []
    for pair in pairs:
        for label, plan in plans.items():
            looked, anomaly_maps = _heats(pair, label, plan, variants[label], output, slices, progress)
            for name in (name for name in variants[label] if name != DEFAULT):
                case = {"run": label, "compared": name, "patient": pair.name}
                cases.append(case | _compared(looked, anomaly_maps[DEFAULT], anomaly_maps[name]))
    rows = []
    for label, plan in plans.items():
        for name in (name for name in variants[label] if name != DEFAULT):
            judged = [case for case in cases if (case["run"], case["compared"]) == (label, name)]
            rows.append(_row(label, name, variants[label], plan, judged))
    about = evidence.about(plans, pairs) | {"slices": slices, "times": times, "complete": complete}
    about["compared"] = {
        label: {name: asdict(plan.method_options) for name, plan in named.items()} for label, named in variants.items()
    }
    return {"about": about, "rows": rows, "cases": cases}


def markdown(report: Mapping[str, Any]) -> str:
    """A row a run and comparison, and what it was measured on."""
    lines = markdown_table(
        [
            "method",
            "compared with",
            "calls a slice",
            "s a slice",
            "AP",
            "AP of more steps",
            "lost, %",
            "rank correlation, slices with lesion",
            "without",
        ],
        [
            [
                row["run"],
                row["compared"],
                f"{row['calls']} → {row['more_calls']}",
                f"{row['seconds']:.2f} → {row['more_seconds']:.2f}",
                number(row["average_precision"], 3),
                number(row["more_average_precision"], 3),
                number(row["lost_percent"], 1),
                _with_lowest(row, "correlation_with_lesion"),
                _with_lowest(row, "correlation_without_lesion"),
            ]
            for row in report["rows"]
        ],
    )
    about = report["about"]
    first = report["rows"][0]
    scans = [case for case in report["cases"] if (case["run"], case["compared"]) == (first["run"], first["compared"])]
    seen, there = (sum(case[key] for case in scans) for key in ("slices", "all_slices"))
    lines += [
        "",
        f"{counted(len(about['patients']), 'patient')}: {', '.join(about['patients'])}; {about['hardware']}.",
        "",
    ]
    lines += [
        "AP: average precision over the brain of a scan's slices, mean over patients; rank correlation: Spearman's, "
        "over the brain of such slices of a scan, mean over patients [lowest patient].",
    ]
    if about["complete"]:
        lines += ["", f"Left out, because the default takes every level already: {', '.join(about['complete'])}."]
    if about["slices"] is not None and seen < there:
        lines += [
            "",
            f"Only {seen} of {there} slices were looked at: of each scan {about['slices']}, half of them those with "
            "the largest reference area, the others evenly spread over those without reference. Lesions fill another "
            "share of these than of whole scans, so AP is not theirs; post-processing across slices is left out.",
        ]
    return "\n".join(lines) + "\n"


def _variants(plan: Plan, times: int, everything: bool) -> dict[str, Plan]:
    """The default and what it is compared with, by name; what is no more than the one before is left out."""
    options = plan.method_options
    named = {DEFAULT: options, f"{times} × the steps": more_steps(options, times)}
    if everything:
        named["every level"] = every_level(options)
    kept: dict[str, Any] = {}
    for name, entry in named.items():
        if entry not in kept.values():
            kept[name] = entry
    return {name: replace(plan, method_options=entry) for name, entry in kept.items()}


def _heats(
    pair: Pair,
    label: str,
    plan: Plan,
    variants: Mapping[str, Plan],
    output: Path,
    slices: int | None,
    progress: Progress,
) -> tuple[Slices, dict[str, dict[str, Any]]]:
    """Post-processed raw anomaly scores and seconds of each variant, those that are known from before read back."""
    looked = Slices.of(pair, plan, output / "brain", slices)
    folder = prepare_folder(output / "heat" / evidence.file_name(label))
    found: dict[str, dict[str, Any]] = {}
    model = None
    for name, variant in variants.items():
        stamp = looked.stamp(variant)
        path = folder / f"{evidence.file_name(f'{pair.name} {name}')}.npz"
        known = read_known(path, stamp)
        if known is None:
            model = model or Detector(plan).model
            known = _compute(looked, variant, model)
            keep(path, stamp, known)
            progress.done(f"{pair.name}, {label}, {name}")
        else:
            progress.done(f"{pair.name}, {label}, {name}", known=True)
        found[name] = known
    return looked, found


def _compute(looked: Slices, plan: Plan, model: Any) -> dict[str, Any]:
    run = run_method(looked, plan, model)
    return {"anomaly_map": filtered(looked, run, plan.postprocess), "seconds": run["seconds"]}


def _compared(looked: Slices, few: Mapping[str, Any], many: Mapping[str, Any]) -> dict[str, Any]:
    """One scan: both average precisions, and both rank correlations."""
    reference, others = looked.reference & looked.brain, looked.brain & ~looked.reference
    values: dict[str, Any] = {"slices": len(looked.places), "all_slices": len(looked.stack)}
    for prefix, found in (("", few), ("more_", many)):
        anomaly_map = found["anomaly_map"]
        values[f"{prefix}average_precision"] = metrics.average_precision(anomaly_map[reference], anomaly_map[others])
        values[f"{prefix}seconds"] = float(found["seconds"])
    for kind, rows in (("with", looked.has_lesion), ("without", ~looked.has_lesion)):
        inside = looked.brain & rows[:, None, None]
        first, second = few["anomaly_map"][inside], many["anomaly_map"][inside]
        correlation = rank_correlation(first, second) if inside.any() else math.nan
        values[f"correlation_{kind}_lesion"] = correlation
    return values


def _row(
    label: str, name: str, variants: Mapping[str, Plan], plan: Plan, cases: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    calls = plan.method.network_calls
    row: dict[str, Any] = {"run": label, "compared": name, "patients": len(cases)}
    row["calls"], row["more_calls"] = (calls(variants[which].method_options) for which in (DEFAULT, name))
    for key in ("average_precision", "more_average_precision", "seconds", "more_seconds"):
        row[key] = metrics.mean_or_nan([case[key] for case in cases])
    more = row["more_average_precision"]
    row["lost_percent"] = 100.0 * (more - row["average_precision"]) / more if more > 0 else math.nan
    for key in ("correlation_with_lesion", "correlation_without_lesion"):
        known = [case[key] for case in cases if math.isfinite(case[key])]
        row[key] = metrics.mean_or_nan(known)
        row[f"{key}_lowest"] = min(known, default=math.nan)
    return row


def _with_lowest(row: Mapping[str, Any], key: str) -> str:
    return f"{number(row[key], 3)} [{number(row[f'{key}_lowest'], 3)}]"
