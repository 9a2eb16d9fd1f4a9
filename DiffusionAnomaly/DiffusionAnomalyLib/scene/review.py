"""What a reader says of findings: accepted, rejected or undecided, and a comment, kept with the table of findings.

At another threshold there are other findings, so that what is kept are regions: the voxels that a finding had when it
was judged. A piece of a rejected finding is rejected, and so is what has grown out of it a little. One that has grown
together with another finding, or to more than twice its size, is undecided again, so that nothing is hidden that nobody
looked at, but the rejected voxels stay out of the mask.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..translation import tr as _
from .attributes import PREFIX
from .livethreshold import LiveThreshold, Thresholded

# Scenes are saved with these values, so they stay as they are.
UNDECIDED, ACCEPTED, REJECTED = "undecided", "accepted", "rejected"
STATES = (UNDECIDED, ACCEPTED, REJECTED)

REVIEWS = f"{PREFIX}Reviews"  # JSON: a list of regions, see ``_Region``

LONGEST_COMMENT = 500


@dataclass(frozen=True)
class Review:
    """Of one finding."""

    state: str = UNDECIDED
    comment: str = ""


def inWords(state: str) -> str:
    """A state as people read it."""
    return {ACCEPTED: _("accepted"), REJECTED: _("rejected")}.get(state, _("undecided"))


def reviewsOf(node: Any, live: LiveThreshold, found: Thresholded) -> dict[int, Review]:
    """The review of each finding that has one, by its id."""
    overlapping: dict[int, list[_Region]] = {}
    for region in _regions(node):
        place = region.inBox(live)
        if place is not None:
            for finding in np.unique(found.labels[place.box][place.voxels]):
                if finding:
                    overlapping.setdefault(int(finding), []).append(region)
    return {finding: _reviewOf(finding, regions, live, found) for finding, regions in overlapping.items()}


def kept(node: Any, live: LiveThreshold, found: Thresholded) -> Thresholded:
    """The same with a mask that rejected findings have left."""
    regions = _regions(node)
    if not any(region.state == REJECTED for region in regions):
        return found
    mask = found.mask.copy()
    for region in regions:
        if region.state == REJECTED and (place := region.inBox(live)) is not None:
            mask[place.box][place.voxels] = 0
    for finding, review in reviewsOf(node, live, found).items():
        if review.state == REJECTED:
            box = _boxOf(found, finding, live)
            mask[box][found.labels[box] == finding] = 0
    return replace(found, mask=mask)


def setReview(
    node: Any,
    live: LiveThreshold,
    found: Thresholded,
    row: int,
    *,
    state: str | None = None,
    comment: str | None = None,
) -> None:
    """Review the finding of a row; what is None stays as it is.

    Args:
        node: table of the findings.
        live, found: of the threshold in force.
        row: the finding's.
        state: one of ``STATES``.
        comment: empty takes it away.
    """
    finding = found.findings[row]
    before = reviewsOf(node, live, found).get(finding.id, Review())
    state = before.state if state is None else state
    comment = before.comment if comment is None else clean(comment)
    box = _boxOf(found, finding.id, live)
    whole = _inWhole(box, live)
    inside = found.labels[box] == finding.id
    regions = [rest for region in _regions(node) if (rest := region.without(whole, inside)) is not None]
    if state != UNDECIDED or comment:
        regions.append(_Region(state, comment, found.threshold, whole, inside))
    node.SetAttribute(REVIEWS, json.dumps([*(region.packed() for region in regions), *_read(node).unread]))


def hasReviews(node: Any) -> bool:
    """Whether any finding was reviewed."""
    return bool(_regions(node))


def problemWith(node: Any) -> str:
    """What to say when reviews that a scene was saved with cannot be read any more; empty when all can.

    Those that can are used. The others stay where they are, also when findings are reviewed anew.
    """
    count = len(_read(node).unread)
    if not count:
        return ""
    if count == 1:
        said = _("1 saved review of {name} is damaged and is not used. It stays in the table's attribute {attribute}.")
    else:
        said = _(
            "{count} saved reviews of {name} are damaged and are not used. They stay in the table's attribute "
            "{attribute}."
        )
    return said.format(count=count, name=node.GetName(), attribute=REVIEWS)


def clean(comment: str) -> str:
    """A comment as a table file can hold it: on one line, without the quote that would end its field, not too long."""
    return " ".join(comment.replace('"', "''").split())[:LONGEST_COMMENT]


@dataclass(frozen=True)
class _Place:
    """The part of a region that lies in the live threshold's box."""

    box: tuple[slice, ...]
    voxels: np.ndarray


@dataclass(frozen=True)
class _Region:
    """A finding as it was when it was judged.

    Attributes:
        state, comment: what was said.
        threshold: that was in force.
        box: in the whole volume, k j i.
        voxels: which of the box's, bool.
    """

    state: str
    comment: str
    threshold: float
    box: tuple[slice, ...]
    voxels: np.ndarray

    def packed(self) -> dict[str, Any]:
        """As the table node keeps it."""
        bits = zlib.compress(np.packbits(self.voxels).tobytes(), 9)
        return {
            "state": self.state,
            "comment": self.comment,
            "threshold": self.threshold,
            "box": [[part.start, part.stop] for part in self.box],
            "voxels": base64.b64encode(bits).decode("ascii"),
        }

    @classmethod
    def unpacked(cls, content: Mapping[str, Any]) -> _Region:
        box = tuple(slice(int(start), int(stop)) for start, stop in content["box"])
        shape = tuple(part.stop - part.start for part in box)
        count = math.prod(shape)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(content["voxels"])), dtype=np.uint8)
        if len(shape) != 3 or min(shape) < 1 or min(part.start for part in box) < 0 or len(bits) != -(-count // 8):
            msg = f"a box {box} with {len(bits)} bytes of voxels"
            raise ValueError(msg)
        if content["state"] not in STATES:
            msg = f"the state {content['state']!r}"
            raise ValueError(msg)
        voxels = np.unpackbits(bits, count=count).reshape(shape).astype(bool)
        return cls(str(content["state"]), str(content["comment"]), float(content["threshold"]), box, voxels)

    def inBox(self, live: LiveThreshold) -> _Place | None:
        """Where the region lies in what can be in a mask at all; None where it does not."""
        shared = _shared(self.box, live.box)
        if shared is None:
            return None
        voxels = self.voxels[_relative(shared, self.box)]
        return _Place(_relative(shared, live.box), voxels)

    def without(self, box: tuple[slice, ...], voxels: np.ndarray) -> _Region | None:
        """What is left of it without these voxels; None for nothing."""
        shared = _shared(self.box, box)
        if shared is None:
            return self
        left = self.voxels.copy()
        left[_relative(shared, self.box)] &= ~voxels[_relative(shared, box)]
        return replace(self, voxels=left) if left.any() else None


def _reviewOf(finding: int, regions: list[_Region], live: LiveThreshold, found: Thresholded) -> Review:
    comment = "; ".join(dict.fromkeys(region.comment for region in regions if region.comment))
    judged = [region for region in regions if region.state != UNDECIDED]
    states = {region.state for region in judged}
    if len(states) != 1:
        return Review(UNDECIDED, comment)
    box = _boxOf(found, finding, live)
    whole = _inWhole(box, live)
    inside = found.labels[box] == finding
    new = inside.copy()
    for region in judged:
        if (shared := _shared(region.box, whole)) is not None:
            new[_relative(shared, whole)] &= ~region.voxels[_relative(shared, region.box)]
    # What of it is new was no finding at the threshold at which the rest was judged, and is not the most of it.
    high = np.count_nonzero(new & (live.scores[box] >= min(region.threshold for region in judged)))
    isGrown = not high or high * live.voxelSize < found.least
    isMost = 2 * np.count_nonzero(new) <= np.count_nonzero(inside)
    return Review(states.pop() if isGrown and isMost else UNDECIDED, comment)


@dataclass(frozen=True)
class _Reviews:
    """What is kept with a table.

    Attributes:
        regions: that can be read.
        unread: entries that cannot, as they stand there.
    """

    regions: tuple[_Region, ...]
    unread: tuple[Any, ...]


def _regions(node: Any) -> tuple[_Region, ...]:
    return _read(node).regions


def _read(node: Any) -> _Reviews:
    return _unpacked(node.GetAttribute(REVIEWS) or "[]")


@lru_cache(maxsize=4)  # a step of the threshold asks several times
def _unpacked(text: str) -> _Reviews:
    """Another program, or a file that was cut short, may have damaged what a scene was saved with."""
    regions, unread = [], []
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = [text]
    for entry in entries if isinstance(entries, list) else [entries]:
        try:
            regions.append(_Region.unpacked(entry))
        except (ValueError, TypeError, KeyError, OverflowError, zlib.error):
            unread.append(entry)
    return _Reviews(tuple(regions), tuple(unread))


def _boxOf(found: Thresholded, finding: int, live: LiveThreshold) -> tuple[slice, ...]:
    """The box of a finding in the live threshold's, k j i."""
    low, high = found.findings[finding - 1].bounding_box
    return tuple(
        slice(first - part.start, last + 1 - part.start)
        for first, last, part in zip(low[::-1], high[::-1], live.box, strict=True)
    )


def _inWhole(box: tuple[slice, ...], live: LiveThreshold) -> tuple[slice, ...]:
    """A box in the live threshold's, in the whole volume."""
    return tuple(
        slice(part.start + first.start, part.stop + first.start) for part, first in zip(box, live.box, strict=True)
    )


def _shared(one: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...] | None:
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return both if all(part.start < part.stop for part in both) else None


def _relative(box: tuple[slice, ...], to: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, to, strict=True))
