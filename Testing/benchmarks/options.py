"""What an option is worth: average precision for each of its values, on the scans that options are chosen on.

    python -m Testing.benchmarks options VAL --run guided --set guidance_scale=10,30 --post slice_sigma_mm=0,5 -o OUT
    python -m Testing.benchmarks options VAL --run guided --set floor=0,0.4 --set level=250,500 --product -o OUT

One option at a time is varied from the model package's own settings, or with `--product` all of them together; `--set`
for options of the method, `--post` for post-processing. For each setting it prints, and writes to ``OUT/options.md``
and ``.json``, average precision (mean over patients) and its difference to the package's own settings, pooled average
precision, the best common Dice, network calls and seconds a slice.

The method runs once for each setting of its own options. Its raw anomaly scores are kept in OUT, and post-processing
starts from that: varying it costs no network call, and a run that was stopped goes on where it was. Take an empty OUT
after changing the engine's code.

How it is judged: on the model's grid, inside the brain, before calibration, which does not change ranks; a pixel
belongs to the reference when more than half of its brain does. The best common Dice is that of the best single
threshold of all, in the method's own units, without dropping small findings. Settings that are chosen by such a table
look better on its scans than on others: report them on other patients.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options, Plan, make_plan
from diffusion_anomaly.detection.provenance import describe_bundle
from diffusion_anomaly.errors import EngineError, InputError
from diffusion_anomaly.evaluation import metrics
from diffusion_anomaly.evaluation.dataset import Pair, find_pairs
from diffusion_anomaly.evaluation.formatting import markdown_table, number, with_interval
from diffusion_anomaly.io.outputs import prepare_folder
from diffusion_anomaly.models.filters import IN_MM, PostprocessSettings, renamed
from diffusion_anomaly.registry import FORMER_NAMES
from diffusion_anomaly.system import versions
from diffusion_anomaly.text import counted

from . import evidence
from .anomaly_map import Slices, filtered, keep, read_known, run_method
from .evidence import Progress

OWN = "own settings"
RESAMPLES = 1000

Values = Mapping[str, Sequence[Any]]
"""The values to try, by option."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = evidence.parser("options", __doc__, "one a call")
    add = parser.add_argument
    add("--set", action="append", metavar="OPTION=VALUE,...", help="of the method; repeatable")
    add("--post", action="append", metavar="SETTING=VALUE,...", help="of post-processing; repeatable")
    add("--product", action="store_true", help="every combination; default: one option at a time")
    add("--slices", type=int, metavar="N", help="of each scan; those with the largest reference and a spread of others")
    add("--brain-pattern", help="the scans' brain masks; default: found by a network")
    asked = parser.parse_args(arguments)
    try:
        if len(asked.run or ()) != 1:
            raise InputError(f"{len(asked.run or ())} runs were asked for.", "Give one --run METHOD[=MODEL] a call.")
        method, _, model = asked.run[0].partition("=")
        shared = {"device": asked.device, "precision": asked.precision, "seed": asked.seed}
        plan = make_plan(Options(method, model or None, **shared))
        sets, posts = parse_values(asked.set or (), "--set"), parse_values(asked.post or (), "--post")
        through = {"slice_sigma", "slice_sigma_mm"} & posts.keys()
        if asked.slices is not None and through:
            raise InputError(
                f"{min(through)} smooths through neighbouring slices, which --slices leaves out.",
                "Give one of the two.",
            )
        settings = enumerate_settings(plan, sets, posts, product=asked.product)
        pairs = find_pairs(asked.data, asked.scan_pattern, asked.mask_pattern, asked.brain_pattern)
        pairs = evidence.chosen(pairs, asked.patient, asked.patients)
        report = compare(pairs, settings, asked.output, slices=asked.slices)
    except EngineError as error:
        return evidence.refuse(error)
    evidence.write(asked.output, "options", report, markdown(report))
    return 0


@dataclass(frozen=True)
class Setting:
    """What is tried.

    Attributes:
        plan: with all options as they are then.
        changed: the options that were set, by name; of the method and of post-processing.
    """

    plan: Plan
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(f"{name} = {_text(value)}" for name, value in self.changed.items()) or OWN


def parse_values(texts: Sequence[str], flag: str) -> dict[str, list[Any]]:
    """``name=value,value`` texts; a value is JSON where it can be, else text. A name given twice has all its values.

    >>> parse_values(["steps=5,10", "side=bright,both", "forget=false"], "--set")
    {'steps': [5, 10], 'side': ['bright', 'both'], 'forget': [False]}

    Raises:
        InputError: for a text without name or values.
    """
    parsed: dict[str, list[Any]] = {}
    for text in texts:
        name, _, listed = (part.strip() for part in text.partition("="))
        words = [word.strip() for word in listed.split(",")]
        if not name or not all(words):
            raise InputError(f"{flag} got {text!r}.", f"Write it as NAME=VALUE,VALUE, such as {flag} floor=0,0.4.")
        known = parsed.setdefault(name, [])
        for value in map(_value, words):
            if value not in known:
                known.append(value)
    return parsed


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def enumerate_settings(plan: Plan, sets: Values, posts: Values, *, product: bool = False) -> list[Setting]:
    """The package's own settings, then each value of each option alone, or every combination of them.

    Args:
        plan: the package's own settings.
        sets: options of the method.
        posts: settings of post-processing.
        product: whether to combine them.

    Raises:
        InputError: for an unknown option, a value out of range, or options that do not go together.
    """
    sets = {FORMER_NAMES.get(name, name): values for name, values in sets.items()}
    posts = renamed(posts)
    own = Setting(plan)
    tried = [[(of, name, value) for value in values] for of in (sets, posts) for name, values in of.items()]
    if not tried:
        return [own]
    combined = itertools.product(*tried) if product else ([one] for one in itertools.chain.from_iterable(tried))
    settings = [own]
    for changes in combined:
        options = {name: value for of, name, value in changes if of is sets}
        post = {name: value for of, name, value in changes if of is posts}
        changed = make_plan(replace(plan.asked, overrides={**plan.asked.overrides, **options}), plan.bundle)
        filters = plan.postprocess.changed(post)
        settings.append(Setting(replace(changed, postprocess=filters), {**options, **post}))
    return settings


def compare(
    pairs: Sequence[Pair], settings: Sequence[Setting], output: Path, *, slices: int | None = None
) -> dict[str, Any]:
    """Every setting on every scan.

    Args:
        pairs: scans with references.
        settings: from ``enumerate_settings``, the package's own first.
        output: folder for what is known already.
        slices: how many of each scan; None for all.

    Returns:
        ``rows``, one a setting; ``cases``, one a setting and patient; ``about``.
    """
    runs = _distinct_runs(settings)
    folder = prepare_folder(prepare_folder(output, evidence.files("options")) / "raw")
    progress = Progress(len(pairs) * len(runs))
    looked: list[Slices] = []
    files: dict[int, list[tuple[Path, str]]] = {which: [] for which in range(len(runs))}
    model = None
    for pair in pairs:
        scan = Slices.of(pair, settings[0].plan, output / "brain", slices)
        looked.append(scan)
        for which, plan in enumerate(runs):
            stamp = scan.stamp(plan, raw=True)
            path = folder / f"{evidence.file_name(f'{pair.name} {stamp}')}.npz"
            known = read_known(path, stamp) is not None
            if not known:
                model = model or Detector(plan).model
                keep(path, stamp, run_method(scan, plan, model))
            files[which].append((path, stamp))
            progress.done(f"{pair.name}, {plan.method.name}, options {which + 1} of {len(runs)}", known=known)

    rows, cases = [], []
    draws = metrics.resamples(len(pairs), RESAMPLES, settings[0].plan.asked.seed)
    own: np.ndarray | None = None
    progress = Progress(len(settings))
    for which, plan in enumerate(runs):  # raw anomaly scores of all scans under one run at a time is held
        raws = [_read(path, stamp) for path, stamp in files[which]]
        for place, setting in enumerate(settings):
            if setting.plan.method_options != plan.method_options:
                continue
            measured, precisions = _judge(looked, raws, setting.plan.postprocess)
            own = precisions if own is None else own  # the first setting of the first run is the package's own
            rows.append((place, _row(setting, settings[0], raws, measured, precisions - own, draws)))
            cases += [
                (place, {"setting": setting.name, "patient": pair.name, "average_precision": float(precision)})
                for pair, precision in zip(pairs, precisions, strict=True)
            ]
            progress.done(setting.name)
    rows, cases = ([entry for _, entry in sorted(listed, key=itemgetter(0))] for listed in (rows, cases))
    return {"about": _about(settings, pairs, looked, slices), "rows": rows, "cases": cases}


def markdown(report: Mapping[str, Any]) -> str:
    """A row a setting, and what it was measured on."""
    about = report["about"]
    lines = markdown_table(
        [about["method"], "AP", "AP − own", "pooled AP", "best Dice", "calls a slice", "s a slice"],
        [
            [
                f"{row['setting']} (own)" if row["is_own"] and row["setting"] != OWN else row["setting"],
                number(row["average_precision"], 3),
                "" if row["setting"] == OWN else with_interval(row, "gain", 3),
                number(row["pooled_average_precision"], 3),
                number(row["best_dice"], 3),
                str(row["network_calls"]),
                number(row["seconds"], 3),
            ]
            for row in report["rows"]
        ],
    )
    own = ", ".join(f"{name} = {_text(value)}" for name, value in about["own"].items())
    model = about["model"]
    lines += ["", f"Own settings of {model['name']} {model['version']}: {own}." if model else f"Own settings: {own}."]
    lines += [
        "",
        f"{counted(len(about['patients']), 'patient')}: {', '.join(about['patients'])}; {about['hardware']}.",
        "",
    ]
    lines += [
        "AP: average precision over the brain on the model's grid, mean over patients; AP − own: mean difference to "
        f"the package's own settings [95 % bootstrap interval over patients, {RESAMPLES} resamples]; best Dice: the "
        "highest mean Dice of one threshold for all, chosen on the references, small findings included; seconds: of "
        "the method alone.",
    ]
    if about["without_reference"]:
        lines += [
            "",
            f"No reference in the brain, so only in pooled AP: {', '.join(about['without_reference'])}.",
        ]
    if about["slices"] is not None and about["looked_at"] < about["all_slices"]:
        lines += [
            "",
            f"Only {about['looked_at']} of {about['all_slices']} slices were looked at: of each scan "
            f"{about['slices']}, half of them those with the largest reference area, the others evenly spread over "
            "those without reference. Lesions fill another share of these than of whole scans, so AP is not theirs; "
            "post-processing across slices is left out.",
        ]
    return "\n".join(lines) + "\n"


def _distinct_runs(settings: Sequence[Setting]) -> list[Plan]:
    """A plan for each different choice of the method's options, the package's own first."""
    runs: list[Plan] = []
    for setting in settings:
        if all(setting.plan.method_options != plan.method_options for plan in runs):
            runs.append(setting.plan)
    return runs


def _read(path: Path, stamp: str) -> dict[str, Any]:
    raw = read_known(path, stamp)
    if raw is None:
        raise InputError(f"{path} has gone or was changed meanwhile.", "Let one run at a time use an output folder.")
    return raw


def _judge(
    looked: Sequence[Slices], raws: Sequence[Mapping[str, Any]], settings: PostprocessSettings
) -> tuple[dict[str, float], np.ndarray]:
    """Measures over all scans, and each scan's average precision, NaN without a reference in the brain."""
    lesions, others = [], []
    for scan, raw in zip(looked, raws, strict=True):
        anomaly_map = filtered(scan, raw, settings)
        lesions.append(anomaly_map[scan.reference & scan.brain])
        others.append(anomaly_map[scan.brain & ~scan.reference])
    precisions = np.array([metrics.average_precision(*scan) for scan in zip(lesions, others, strict=True)])
    values, counts = metrics.distinct(np.concatenate(lesions))
    negatives, dices, with_reference = np.zeros(len(values), np.int64), np.zeros(len(values)), 0
    for lesion, other in zip(lesions, others, strict=True):
        false = metrics.at_least(other, values)
        negatives += false
        if lesion.size:
            true = metrics.at_least(lesion, values)
            dices += 2 * true / (true + false + lesion.size)
            with_reference += 1
    # From one lesion scores to the next a rising threshold loses false positives alone: the best is a lesion's anomaly
    # scores.
    best = dices[values > 0].max(initial=0.0) / with_reference if with_reference else math.nan
    return {
        "average_precision": metrics.mean_or_nan(precisions),
        "pooled_average_precision": metrics.average_precision_of_counts(counts, negatives),
        "best_dice": float(best),
    }, precisions


def _row(
    setting: Setting,
    own: Setting,
    raws: Sequence[Mapping[str, Any]],
    measured: Mapping[str, float],
    gains: np.ndarray,
    draws: np.ndarray,
) -> dict[str, Any]:
    plan = setting.plan
    low, high = metrics.interval(lambda drawn: metrics.mean_or_nan(gains[drawn]), draws) or (math.nan, math.nan)
    return {
        "setting": setting.name,
        "changed": dict(setting.changed),
        "is_own": (plan.method_options, plan.postprocess) == (own.plan.method_options, own.plan.postprocess),
        **measured,
        "gain": metrics.mean_or_nan(gains),
        "gain_low": low,
        "gain_high": high,
        "network_calls": plan.method.network_calls(plan.method_options),
        "seconds": metrics.mean_or_nan([raw["seconds"] for raw in raws]),
    }


def _about(
    settings: Sequence[Setting], pairs: Sequence[Pair], looked: Sequence[Slices], slices: int | None
) -> dict[str, Any]:
    plan = settings[0].plan
    package = {**vars(plan.method_options), **plan.postprocess.to_dict()}
    varied = {name for setting in settings for name in setting.changed}
    varied |= {name for pair in IN_MM.items() if varied & set(pair) for name in pair}
    return {
        "method": plan.method.name,
        "model": None if plan.bundle is None else describe_bundle(plan.bundle),
        "own": {
            name: package[name] for name in package if name in varied or (not varied and name != "latent_threshold")
        },
        "patients": [pair.name for pair in pairs],
        "without_reference": [
            pair.name for pair, scan in zip(pairs, looked, strict=True) if not (scan.reference & scan.brain).any()
        ],
        "slices": slices,
        "looked_at": sum(len(scan.places) for scan in looked),
        "all_slices": sum(len(scan.stack) for scan in looked),
        "seed": plan.asked.seed,
        "precision": plan.precision,
        "hardware": evidence.hardware([plan]),
        "versions": versions(),
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
