"""What an evaluation runs: methods with their options, and the baseline that always runs beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..detection.planning import Options, Plan, make_plan
from ..errors import InputError
from ..io.typed_json import checked
from ..models.package import Bundle, open_bundle
from ..registry import get_method

BASELINE = "intensity"


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
    plain = options_of(RunSpec(BASELINE), device, seed)
    for spec in runs:
        options = options_of(spec, device, seed)
        if spec.method == BASELINE and not (spec.label or options.overrides or options.preset):
            plain = replace(options, steps=None)
            continue
        plan = plan_run(options, steps)
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


def options_of(spec: RunSpec, device: str = "auto", seed: int = 0) -> Options:
    """A run's options. It takes scans that its model seems not to know: an evaluation also asks what happens then.

    Raises:
        InputError: for an option that is unknown or out of range.
    """
    own = {"method": spec.method, "model": spec.model, "device": device, "seed": seed}
    return checked(Options, {"force": True, **spec.options, **own}, f"The run {spec.label or spec.method}")


def plan_run(options: Options, steps: int | None = None) -> Plan:
    """A run's plan, with these ``steps``, or as many as its model allows, where its method has any.

    Raises:
        InputError, ModelError: as ``make_plan``.
    """
    plan = make_plan(options)
    most = plan.method_options.most_steps
    if steps is None or most is None:
        return plan
    return make_plan(replace(options, steps=min(steps, most)), plan.bundle)


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
