"""What the parts of the panel share; each gets it when it is made, and beside it only the siblings that it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..settings import Settings


@dataclass
class PanelContext:
    """Widgets, scene, settings and the parameter node of the moment.

    Attributes:
        ui: the widgets of ``DiffusionAnomaly.ui`` by name.
        scene: holds the scans and the results.
        settings: what is remembered from one session to the next.
        refreshSoon: shows everything anew within a tick; for whoever changed something that others show.
        parameters: what the user set; None while a scene closes, so that handlers of widgets must check.
    """

    ui: Any
    scene: Any
    settings: Settings
    refreshSoon: Callable[[], None] = lambda: None
    parameters: Any = None
