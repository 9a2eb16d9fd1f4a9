"""The panel's part on the input: what the volume is, which brain mask, and the sample scan."""

from __future__ import annotations

from typing import Any

import slicer

from ..sampledata import loadSample
from ..scene.volumes import describe, problemWith, problemWithMask
from ..translation import tr as _
from .context import PanelContext
from .qthelpers import Combo


class InputPanel:
    """Shows the input; see ``Panel``."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._ui = context.ui
        self._segments = Combo(self._ui.segmentComboBox, self._onSegment)
        self._ui.sampleDataLabel.connect("linkActivated(QString)", self._onSample)

    def refresh(self, parameters: Any) -> None:
        volume = parameters.inputVolume
        problem = problemWith(volume)
        self._ui.inputInfoLabel.setText(problem or describe(volume))
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
        return problemWith(parameters.inputVolume) or problemWithMask(parameters.brainMask)

    def _onSegment(self, segment: str) -> None:
        if self._context.parameters is not None:
            self._context.parameters.brainSegment = segment

    def _onSample(self, link: str) -> None:
        with slicer.util.tryWithErrorDisplay(_("The sample scan could not be loaded."), waitCursor=True):
            node = loadSample()
            if self._context.parameters is not None:
                self._context.parameters.inputVolume = node
