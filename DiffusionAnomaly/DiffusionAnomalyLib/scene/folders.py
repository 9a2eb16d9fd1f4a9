"""The scans of a patient, a study or a folder of the subject hierarchy, and which of them a model is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import slicer
import vtk

from diffusion_anomaly.io.contrasts import contrast_of

from ..translation import tr as _
from . import attributes
from .channels import problemWithChannels
from .volumes import contrastOf, problemWith


@dataclass(frozen=True)
class Candidate:
    """A scan that may be analysed.

    Attributes:
        node: the volume; for a model of several contrasts its first channel.
        contrast: what its name or header says; empty when neither does.
        channels: the volumes of the other channels by name.
        problem: why it cannot be analysed; empty when it can.
        suggested: whether the model is for it, and no finer series of that contrast is in the same study.
    """

    node: Any
    contrast: str
    channels: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    suggested: bool = False


def scansUnder(scene: Any, item: int, wanted: str, others: Sequence[str] = ()) -> list[Candidate]:
    """The scans at or below an item of the subject hierarchy, in its order; results of this module are none.

    Args:
        scene: holds them.
        item: a patient, study, folder or scan; the scene's own item for all.
        wanted: contrast that the model is for.
        others: its further channels, each of which is looked for in the scan's own study.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    below = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, below, True)
    items = [item, *(below.GetId(index) for index in range(below.GetNumberOfIds()))]
    studies: dict[int, list[Any]] = {}
    for one in items:
        node = hierarchy.GetItemDataNode(one) if one != hierarchy.GetSceneItemID() else None
        isScalar = node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode"
        if isScalar and node.GetAttribute(attributes.ROLE) is None:
            studies.setdefault(hierarchy.GetItemParent(one), []).append(node)
    return [candidate for nodes in studies.values() for candidate in _ofStudy(nodes, wanted, others)]


def _ofStudy(nodes: Sequence[Any], wanted: str, others: Sequence[str]) -> list[Candidate]:
    found = [Candidate(node, contrastOf(node), problem=problemWith(node)) for node in nodes]
    channels = {name: [one.node for one in found if _fits(one, name)] for name in others}
    found = [_withChannels(one, wanted, channels) if _fits(one, wanted) else one for one in found]
    fitting = [one for one in found if _fits(one, wanted)]
    # Of several of one contrast, such as a thick one and a fine one, the finest tells most.
    best = max(fitting, key=lambda one: one.node.GetImageData().GetNumberOfPoints(), default=None)
    return [replace(one, suggested=one is best) for one in found]


def _withChannels(candidate: Candidate, wanted: str, channels: dict[str, list[Any]]) -> Candidate:
    """With the other channels, or why there are none; a model of one contrast needs none."""
    for name, nodes in channels.items():
        if len(nodes) != 1:
            problem = _("{count} volumes of the contrast {name} are beside it; one is needed.")
            return replace(candidate, problem=problem.format(count=len(nodes), name=name))
    chosen = {name: nodes[0] for name, nodes in channels.items()}
    return replace(candidate, channels=chosen, problem=problemWithChannels(candidate.node, wanted, chosen))


def _fits(candidate: Candidate, name: str) -> bool:
    return not candidate.problem and candidate.contrast != "" and candidate.contrast == (contrast_of(name) or name)
