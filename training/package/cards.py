"""What a package says of itself to people: MONAI's metadata, the model card, and what an evaluation measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffusion_anomaly.evaluation.labelled import OWN_SCORE, TITLES
from diffusion_anomaly.models.declaration import IMAGE, REGIONS
from diffusion_anomaly.models.package import Bundle
from diffusion_anomaly.models.writing import write_bundle

from ..trainer.configuration import ConfigurationError

# What of an evaluation's row goes on the card, by its name there.
MEASURES = {
    "average_precision": "average precision",
    "best_dice": "best common-threshold Dice",
    "dice": "Dice at the stored threshold",
    "lesion_recall": "lesion recall at the stored threshold",
    "false_positives": "false positives a scan",
    "slice_auroc": "slice AUROC",
    **{
        f"auroc.{unit}.{score}": f"{unit} AUROC of the {'method' if score == OWN_SCORE else 'map'}'s {title}"
        for unit in ("picture", "slice", "patient")
        for score, title in TITLES.items()
    },
    "sensitivity": "sensitivity at the stored threshold",
    "specificity": "specificity at the stored threshold",
    "seconds": "seconds a scan",
    "network_calls": "network calls a slice",
}
COMPARED = ("average_precision", "best_dice")
_METADATA = (
    "title",
    "limits",
    "task",
    "description",
    "authors",
    "copyright",
    "license",
    "intended_use",
    "data_source",
    "references",
)


def describe(bundle: Bundle, evaluation: Path, run: str, data: str) -> Bundle:
    """The same package with what ``diffusion-anomaly evaluate`` measured in its declaration and on its card.

    Args:
        bundle: the package.
        evaluation: ``evaluation.json``.
        run: the row of its table.
        data: what it was measured on, in words.
    """
    anomaly = bundle.anomaly | {"quality": _measured(evaluation, run, data)}
    texts = json.loads((bundle.path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return write_bundle(
        bundle.path,
        name=bundle.name,
        version=bundle.version,
        method=bundle.method,
        networks={part: (bundle.network_config(part), bundle.weights(part)) for part in bundle.networks},
        anomaly=anomaly,
        metadata=metadata_of(texts),
        model_card=render_card(anomaly, texts),
        data_license=bundle.data_license,
        license_text=bundle.license_text,
    )


def _measured(evaluation: Path, run: str, data: str) -> dict[str, Any]:
    table = json.loads(evaluation.read_text(encoding="utf-8"))
    rows = {row["run"]: row for row in table["rows"]}
    if run not in rows:
        raise ConfigurationError(f"{evaluation} has no run {run!r}; it has {', '.join(rows)}.")
    quality: dict[str, Any] = {"measured on": data, "patients": rows[run]["patients"]}
    for key, name in MEASURES.items():
        if key not in rows[run]:  # measured on masks, or on labels
            continue
        quality[name] = round(rows[run][key], 6)
        if f"{key}_low" in rows[run]:
            quality[f"{name}, 95 % interval"] = [round(rows[run][f"{key}_{end}"], 6) for end in ("low", "high")]
        if key in COMPARED and "intensity" in rows and run != "intensity":
            quality[f"{name} of the intensity baseline"] = round(rows["intensity"][key], 6)
    if "beats_intensity" in rows[run]:
        quality["beats the intensity baseline"] = rows[run]["beats_intensity"]
    return quality | {"hardware": table["about"]["hardware"]}


def metadata_of(texts: dict[str, Any]) -> dict[str, Any]:
    """What of the texts goes into MONAI's metadata."""
    changelog = {"changelog": texts["changelog"]} if texts.get("changelog") else {}
    return {key: texts[key] for key in _METADATA} | changelog


def render_card(anomaly: dict[str, Any], texts: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.jinja").render(
        anomaly=anomaly, texts=texts, regions=REGIONS | {IMAGE: "whole image"}
    )
