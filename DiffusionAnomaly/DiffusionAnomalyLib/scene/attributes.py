"""How a result was made, kept as attributes of every node that belongs to it, so that it is saved with the scene.

Single facts have an attribute each, to be seen at once in the Data module; the worker's whole ``provenance.json`` is
there too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.options import margin_of

from ..translation import tr as _

# Scenes are saved with these names, so they stay as they are.
PREFIX = "DiffusionAnomaly."
ROLE = f"{PREFIX}Role"  # what a node is to its result, see ``results``
MAP = "heat"  # the role of the anomaly map, by which a result is found
RUN = f"{PREFIX}Run"  # the same for all nodes of one result
THRESHOLD = f"{PREFIX}Threshold"
MIN_VOLUME = f"{PREFIX}MinVolumeMl"
WARNINGS = f"{PREFIX}Warnings"
DOCUMENT = f"{PREFIX}Provenance"
INPUT = f"{PREFIX}Input"  # a node reference, which survives that a scene renames its nodes
# Reference of every part to the anomaly map it belongs to; the anomaly map has one to each part, by role.
ANOMALY_MAP = f"{PREFIX}Heat"


def factsOf(document: Mapping[str, Any], runId: str, inputNodeId: str) -> dict[str, str]:
    """Everything that is known of a result, by attribute.

    Args:
        document: the content of ``provenance.json``.
        runId: tells this result from others in the scene.
        inputNodeId: the scan.
    """
    model = document.get("model") or {}
    options = document.get("options") or {}
    facts = {
        "Run": runId,
        "Method": document.get("method"),
        "Model": model.get("name"),
        "ModelVersion": model.get("version"),
        "ModelSHA256": model.get("sha256"),
        "ModelLicense": model.get("license"),
        "Steps": options.get("steps"),
        "Seed": options.get("seed"),
        "MinVolumeMl": options.get("min_volume_ml"),
        "PeakMargin": options.get("peak_margin"),
        "Threshold": document["threshold"]["heat"],
        "EngineVersion": document["versions"]["diffusion_anomaly"],
        "Device": document["device"]["used"],
        "DeviceName": document["device"]["name"],
        "Date": document["date_utc"],
        "InputNodeID": inputNodeId,
        "InputSHA256": document["input"]["sha256"],
        "Purpose": document.get("purpose"),
        "Warnings": json.dumps(document.get("warnings", [])),
        "Provenance": json.dumps(document, separators=(",", ":")),
    }
    return {f"{PREFIX}{name}": str(value) for name, value in facts.items() if value is not None}


def mark(node: Any, facts: Mapping[str, str], role: str, inputNode: Any) -> None:
    """Put the attributes, the role and the reference to the scan on a node."""
    for name, value in facts.items():
        node.SetAttribute(name, value)
    node.SetAttribute(ROLE, role)
    node.SetNodeReferenceID(INPUT, inputNode.GetID())


def tie(anomalyMap: Any, node: Any, role: str) -> None:
    """Let an anomaly map and a part of the same result know each other: a copy of either is then none of the result."""
    anomalyMap.SetNodeReferenceID(PREFIX + role, node.GetID())
    node.SetNodeReferenceID(ANOMALY_MAP, anomalyMap.GetID())


def part(anomalyMap: Any, role: str) -> Any:
    """The part of an anomaly map's result that has this role; None when there is none any more."""
    node = anomalyMap.GetNodeReference(PREFIX + role)
    return node if node is not None and node.GetNodeReference(ANOMALY_MAP) is anomalyMap else None


def document(node: Any) -> dict[str, Any]:
    """The whole provenance of a node; empty when it is none of ours."""
    text = node.GetAttribute(DOCUMENT)
    return json.loads(text) if text else {}


def peakMargin(node: Any) -> float:
    """By how much a finding's highest score exceeds the threshold at least; 0 where a saved scene has it damaged."""
    try:
        return margin_of(document(node).get("options") or {})
    except InputError:
        return 0.0


def problemWithPeakMargin(node: Any) -> str:
    """What to say when the peak margin that a scene was saved with cannot be; it stays where it is."""
    try:
        margin_of(document(node).get("options") or {})
    except InputError:
        said = _(
            "The saved peak margin of {name} is damaged and is not used: findings are kept however little they exceed "
            "the threshold. It stays in the attribute {attribute}."
        )
        return said.format(name=node.GetName(), attribute=DOCUMENT)
    return ""


def isPicture(node: Any) -> bool:
    """Whether a result is of a single picture, such as a film, whose findings have areas."""
    return (document(node).get("options") or {}).get("min_area") is not None


def algorithm(document: Mapping[str, Any]) -> str:
    """What made a result, in a line."""
    model = document.get("model") or {}
    parts = ("DiffusionAnomaly", document.get("method"), model.get("name"), model.get("version"))
    return " ".join(str(part) for part in parts if part)


def warnings(node: Any) -> list[str]:
    """The reasons to doubt a result that the user was told."""
    return json.loads(node.GetAttribute(WARNINGS) or "[]")
