"""Volumes that show one frame of a sequence at a time, as those of a 4-D scan do.

Such a volume changes its voxels when the frame does. A result belongs to the frame that was analysed: it is shown while
the browser shows that frame, and what is written of it, its report among it, takes the scan from that frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..translation import tr as _
from . import attributes
from .views import nodesOf

FRAME = f"{attributes.PREFIX}Frame"  # counted from 0
FRAME_VALUE = f"{attributes.PREFIX}FrameValue"  # as the sequence has it, such as a time
SEQUENCE = f"{attributes.PREFIX}Sequence"  # a node reference


@dataclass(frozen=True)
class Frame:
    """One frame of a sequence.

    Attributes:
        browserId, sequenceId: of the nodes; an entry of a queue must not hold nodes themselves.
        number: from 0.
        count: of frames.
        value: what the sequence calls it, such as ``12.5 s``; empty for one that only counts.
    """

    browserId: str
    sequenceId: str
    number: int
    count: int
    value: str

    def __str__(self) -> str:
        text = _("frame {number} of {count}").format(number=self.number + 1, count=self.count)
        return f"{text} ({self.value})" if self.value else text


def frameOf(node: Any) -> Frame | None:
    """The frame that a volume shows; None for one that belongs to no sequence."""
    scene = node.GetScene()
    for browser in nodesOf(scene, "vtkMRMLSequenceBrowserNode") if scene is not None else ():
        if browser.IsProxyNodeID(node.GetID()):
            sequence = browser.GetSequenceNode(node)
            master = browser.GetMasterSequenceNode()
            number = browser.GetSelectedItemNumber()
            if sequence is None or master is None or not 0 <= number < master.GetNumberOfDataNodes():
                continue
            value = _valueOf(master, number)
            return Frame(browser.GetID(), sequence.GetID(), number, master.GetNumberOfDataNodes(), value)
    return None


def tie(anomalyMap: Any, frame: Frame) -> None:
    """Note which frame a result belongs to."""
    anomalyMap.SetAttribute(FRAME, str(frame.number))
    anomalyMap.SetAttribute(FRAME_VALUE, str(frame))
    anomalyMap.SetNodeReferenceID(SEQUENCE, frame.sequenceId)


def analysed(anomalyMap: Any) -> str:
    """The frame that a result belongs to, in words; empty when it belongs to no sequence."""
    return anomalyMap.GetAttribute(FRAME_VALUE) or ""


def isInView(anomalyMap: Any, scan: Any) -> bool:
    """Whether the scan shows the frame that a result belongs to."""
    number = anomalyMap.GetAttribute(FRAME)
    frame = frameOf(scan) if number is not None else None
    return frame is None or str(frame.number) == number


def voxelsNode(anomalyMap: Any, scan: Any) -> Any:
    """The node that holds the voxels that were analysed: the scan itself, or its frame inside the sequence."""
    number, sequence = anomalyMap.GetAttribute(FRAME), anomalyMap.GetNodeReference(SEQUENCE)
    if number is None or sequence is None or int(number) >= sequence.GetNumberOfDataNodes():
        return scan
    return sequence.GetNthDataNode(int(number))


def goTo(anomalyMap: Any, scan: Any) -> None:
    """Let the browser show the frame that a result belongs to."""
    frame, number = frameOf(scan), anomalyMap.GetAttribute(FRAME)
    if frame is not None and number is not None and frame.number != int(number):
        scan.GetScene().GetNodeByID(frame.browserId).SetSelectedItemNumber(int(number))


def _valueOf(master: Any, number: int) -> str:
    value, unit = master.GetNthIndexValue(number), master.GetIndexUnit() or ""
    return "" if not unit and value in (str(number), str(number + 1)) else f"{value} {unit}".strip()
