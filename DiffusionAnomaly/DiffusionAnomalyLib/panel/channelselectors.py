"""One volume selector for each channel beside the first that the chosen model looks at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import slicer

from ..progresstext import plain
from ..scene.channels import chooseChannel, chosenChannels
from ..translation import tr as _
from .context import PanelContext
from .qthelpers import silent


class ChannelSelectors:
    """Rows in the frame ``channelsFrame``; none for a model of a single contrast."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._frame = context.ui.channelsFrame
        self._selectors: dict[str, Any] = {}

    def show(self, names: Sequence[str]) -> None:
        """Offer these channels, with the volumes that are chosen for them."""
        if list(self._selectors) != list(names):
            self._build(names)
        self._frame.setVisible(bool(names))
        if not names:
            return
        for name, node in chosenChannels(self._context.parameters.parameterNode, names).items():
            with silent(self._selectors[name]):
                self._selectors[name].setCurrentNode(node)

    def _build(self, names: Sequence[str]) -> None:
        layout = self._frame.layout()
        while layout.rowCount():
            layout.removeRow(0)
        self._selectors = {}
        for name in names:
            selector = slicer.qMRMLNodeComboBox()
            selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
            selector.showChildNodeTypes = False
            selector.addEnabled = selector.removeEnabled = False
            selector.noneEnabled = True
            selector.setMRMLScene(self._context.scene)
            selector.setToolTip(plain(_("The volume of the contrast {name}, of the same head.").format(name=name)))
            selector.connect("currentNodeChanged(vtkMRMLNode*)", partial(self._onChosen, name))
            layout.addRow(f"{name}:", selector)
            self._selectors[name] = selector

    def _onChosen(self, name: str, node: Any) -> None:
        if self._context.parameters is not None:
            chooseChannel(self._context.parameters.parameterNode, name, node)
            self._context.refreshSoon()
