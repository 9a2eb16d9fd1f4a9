"""The panel's part on the input: what the volume is, which brain mask, and the sample scan."""

from __future__ import annotations

from typing import Any

import slicer

from diffusion_anomaly.errors import EngineError

from ..detection import Request, channelsOf
from ..progresstext import plain, shortened
from ..sampledata import loadSample
from ..scene.channels import chosenChannels, fillChannels, problemWithChannels
from ..scene.volumes import describe, notListed, problemWith, problemWithMask
from ..translation import tr as _
from .channelselectors import ChannelSelectors
from .context import PanelContext
from .qthelpers import Combo, say

NAMES_SHOWN = 3


class InputPanel:
    """Shows the input; see ``Panel``."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._ui = context.ui
        self._channels = ChannelSelectors(context)
        self._segments = Combo(self._ui.segmentComboBox, self._onSegment)
        self._ui.sampleDataLabel.connect("linkActivated(QString)", self._onSample)

    def refresh(self, parameters: Any) -> None:
        volume = parameters.inputVolume
        problem = problemWith(volume)
        self._ui.inputInfoLabel.setText(problem or describe(volume))
        self._ui.sampleDataLabel.setVisible(volume is None)
        self._showNotListed()
        others = _otherChannels(parameters)
        if others and not problem:
            fillChannels(parameters.parameterNode, others, volume)
        self._channels.show(others)
        mask = parameters.brainMask
        isSegmentation = mask is not None and mask.IsA("vtkMRMLSegmentationNode")
        self._ui.segmentComboBox.setVisible(isSegmentation)
        segments = []
        if isSegmentation:
            inside = mask.GetSegmentation()
            ids = [inside.GetNthSegmentID(index) for index in range(inside.GetNumberOfSegments())]
            segments = [(segment, inside.GetSegment(segment).GetName()) for segment in ids]
            if segments and parameters.brainSegment not in ids:
                parameters.brainSegment = ids[0]
        self._segments.show(segments, parameters.brainSegment)

    def problem(self, parameters: Any) -> str:
        """Why the input cannot be analysed; empty when it can."""
        problem = problemWith(parameters.inputVolume) or problemWithMask(parameters.brainMask)
        if problem or not _otherChannels(parameters):
            return problem
        first, _others = channelsOf(_asked(parameters))
        return problemWithChannels(parameters.inputVolume, first, self.channels(parameters))

    def channels(self, parameters: Any) -> dict[str, Any]:
        """The volumes of the model's other channels by name; empty for a model of a single contrast."""
        others = _otherChannels(parameters)
        return chosenChannels(parameters.parameterNode, others) if others else {}

    def _showNotListed(self) -> None:
        """A volume that is missed in the list is named with the reason."""
        reasons = notListed(self._context.scene)
        names = ", ".join(shortened(name) for name in list(reasons)[:NAMES_SHOWN])
        more = ", …" if len(reasons) > NAMES_SHOWN else ""
        say(self._ui.notListedLabel, _("Not listed: {names}").format(names=names + more) if reasons else "")
        lines = [f"{name}: {reason}" for name, reason in reasons.items()]
        self._ui.notListedLabel.setToolTip(plain("\n".join(lines)))

    def _onSegment(self, segment: str) -> None:
        if self._context.parameters is not None:
            self._context.parameters.brainSegment = segment

    def _onSample(self, link: str) -> None:
        with slicer.util.tryWithErrorDisplay(_("The sample scan could not be loaded."), waitCursor=True):
            node = loadSample()
            if self._context.parameters is not None:
                self._context.parameters.inputVolume = node


def _asked(parameters: Any) -> Request:
    return Request(parameters.method.name, parameters.method.model or None)


def _otherChannels(parameters: Any) -> tuple[str, ...]:
    """Those beside the input volume; none while the model or the method is not there."""
    try:
        return channelsOf(_asked(parameters))[1]
    except EngineError:
        return ()
