"""Undo and redo of what a reader does with a result: threshold, names, reviews, comments.

Slicer's own undo is off unless an application turns it on, and copies whole nodes; here a step is a few texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from . import review
from .findingsTable import NAMES

LONGEST = 200

# Steps of one kind that follow each other so fast are one: a drag of the slider.
TOGETHER_SECONDS = 1.0


class Reviewed(Protocol):
    """What a history needs of a result, see ``results.ResultNodes``."""

    @property
    def anomalyMap(self) -> Any: ...

    @property
    def table(self) -> Any: ...

    @property
    def threshold(self) -> float: ...

    @property
    def minVolumeMl(self) -> float: ...


@dataclass(frozen=True)
class Snapshot:
    """What a reader has made of a result."""

    threshold: float
    minVolumeMl: float
    names: str | None
    reviews: str | None

    @classmethod
    def of(cls, nodes: Reviewed) -> Snapshot:
        table = nodes.table
        said = (None, None) if table is None else (table.GetAttribute(NAMES), table.GetAttribute(review.REVIEWS))
        return cls(nodes.threshold, nodes.minVolumeMl, *said)

    def apply(self, nodes: Reviewed) -> None:
        """Put names and reviews back; the threshold is the caller's, because the mask follows it."""
        if nodes.table is not None:
            nodes.table.SetAttribute(NAMES, self.names)
            nodes.table.SetAttribute(review.REVIEWS, self.reviews)


class History:
    """Steps of the results of a scene, each result with its own.

    >>> history = History()
    >>> history.canUndo("a"), history.canRedo("a")
    (False, False)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done: dict[str, list[Snapshot]] = {}
        self._undone: dict[str, list[Snapshot]] = {}
        self._last: tuple[str, str, float] = ("", "", 0.0)

    def record(self, nodes: Reviewed, kind: str) -> None:
        """Note what a result is before a step of a kind, such as ``threshold``."""
        key, now = nodes.anomalyMap.GetID(), self._clock()
        isSame = self._last[:2] == (key, kind) and now - self._last[2] < TOGETHER_SECONDS
        self._last = (key, kind, now)
        self._undone.pop(key, None)
        if isSame and kind == "threshold" and self._done.get(key):
            return
        self._done.setdefault(key, []).append(Snapshot.of(nodes))
        del self._done[key][:-LONGEST]

    def canUndo(self, key: str) -> bool:
        """Whether a result, by the id of its anomaly map, can go a step back."""
        return bool(self._done.get(key))

    def canRedo(self, key: str) -> bool:
        """Whether a step that was undone can be done again."""
        return bool(self._undone.get(key))

    def peek(self, nodes: Reviewed, forward: bool = False) -> Snapshot | None:
        """Where undo, or redo, would lead."""
        steps = (self._undone if forward else self._done).get(nodes.anomalyMap.GetID())
        return steps[-1] if steps else None

    def step(self, nodes: Reviewed, forward: bool = False) -> Snapshot | None:
        """Take a step back, or forward; what the result is to be made now, None when there is no such step."""
        key = nodes.anomalyMap.GetID()
        taken, other = (self._undone, self._done) if forward else (self._done, self._undone)
        if not taken.get(key):
            return None
        self._last = ("", "", 0.0)
        other.setdefault(key, []).append(Snapshot.of(nodes))
        return taken[key].pop()

    def forget(self) -> None:
        """All steps: the scene closes, and ids will be others'."""
        self._done.clear()
        self._undone.clear()
