"""Which volumes are the channels of a model that looks at several contrasts, kept as references of a node.

The first channel is the input volume itself; the others are referred to by the parameter node, so they are saved with
the scene, renamed with it, and gone when a volume is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import slicer

from diffusion_anomaly.io.contrasts import contrast_of

from ..translation import tr as _
from . import attributes
from .volumes import problemWith

ROLE = "channel."


def chosenChannels(owner: Any, names: Sequence[str]) -> dict[str, Any]:
    """The volumes chosen for these channels; None where none is."""
    return {name: owner.GetNodeReference(ROLE + name) for name in names}


def chooseChannel(owner: Any, name: str, node: Any) -> None:
    """Take a volume as a channel; None for none."""
    owner.SetNodeReferenceID(ROLE + name, None if node is None else node.GetID())


def fillChannels(owner: Any, names: Sequence[str], inputNode: Any) -> None:
    """Choose for each channel that has none the one volume of the scene whose name says that contrast.

    Args:
        owner: keeps the references.
        names: of the channels beside the first.
        inputNode: the first channel's, which is no other's.
    """
    scene = owner.GetScene()
    scans = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode", scene)
    taken = {inputNode, *filter(None, chosenChannels(owner, names).values())}
    scans = [node for node in scans if node not in taken and node.GetAttribute(attributes.ROLE) is None]
    for name, node in chosenChannels(owner, names).items():
        wanted = contrast_of(name)
        alike = [scan for scan in scans if wanted is not None and contrast_of(scan.GetName() or "") == wanted]
        if node is None and len(alike) == 1:
            chooseChannel(owner, name, alike[0])


def problemWithChannels(inputNode: Any, first: str, channels: Mapping[str, Any]) -> str:
    """Why volumes cannot be the channels of one scan; empty when they can.

    Args:
        inputNode: the first channel's volume.
        first: what that channel is called.
        channels: the others by name.
    """
    seen = {inputNode: first}
    for name, node in channels.items():
        if node is None:
            return _("Choose the volume of the channel {name}.").format(name=name)
        if problem := problemWith(node):
            return f"{name}: {problem}"
        if node in seen:
            return _("{node} is chosen for both {one} and {other}.").format(
                node=node.GetName(), one=seen[node], other=name
            )
        if node.GetTransformNodeID() != inputNode.GetTransformNodeID():
            return _(
                "{node} is under another transform than {first}. Harden both first, in the module Transforms."
            ).format(node=node.GetName(), first=inputNode.GetName())
        seen[node] = name
    return ""
