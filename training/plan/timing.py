"""How many minutes each training gets of those that all may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A training that has not begun.

    Attributes:
        weight: of its share.
        needs: what has to be finished first; names that neither wait nor run are.
    """

    weight: float
    needs: tuple[str, ...] = ()


def minutes_by_weight(
    waiting: Mapping[str, Waiting], running: Mapping[str, float], minutes: float, at_once: int
) -> float:
    """Minutes for a weight of 1, so that all come to their end in time.

    Args:
        waiting: what is to begin, in that order.
        running: minutes until each that runs has ended.
        minutes: that there are.
        at_once: how many run at the same time.
    """
    if not waiting or _end(waiting, running, 0.0, at_once) >= minutes:
        return 0.0
    low, high = 0.0, 1.0
    while _end(waiting, running, high, at_once) < minutes:
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _end(waiting, running, middle, at_once) <= minutes else (low, middle)
    return low


def _end(waiting: Mapping[str, Waiting], running: Mapping[str, float], by_weight: float, at_once: int) -> float:
    """When the last one ends, if each takes so many minutes by its weight."""
    ends, left, now = dict(running), dict(waiting), 0.0
    while left:
        for name in ready(left, [name for name, end in ends.items() if end > now]):
            if sum(end > now for end in ends.values()) >= at_once:
                break
            ends[name] = now + by_weight * left.pop(name).weight
        if left:
            later = [end for end in ends.values() if end > now]
            if later:
                now = min(later)
            elif not ready(left, []):
                break
    return max(ends.values(), default=0.0)


def ready(waiting: Mapping[str, Waiting], running: Sequence[str]) -> list[str]:
    """What may begin now: whatever needs nothing that waits or runs."""
    return [name for name, one in waiting.items() if not any(need in waiting or need in running for need in one.needs)]
