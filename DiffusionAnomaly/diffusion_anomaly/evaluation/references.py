"""Whether reference masks can be true: numbers of a mix-up look like numbers of a bad method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

# The largest of 26 gliomas held 213 ml, a seventh of a brain.
MOST_OF_BRAIN = 0.5
# Of 90 gliomas at most 6.3 % lay outside the brain mask; of one whose reference was flipped 43 %.
MOST_OUTSIDE = 0.2


def reference_warnings(scans: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> Iterator[str]:
    """What cannot be true of the references of an evaluation.

    Args:
        scans: of each patient the name, the reference and the brain mask, boolean ``(slices, rows, columns)``.

    >>> brain = np.ones((2, 8, 8), bool)
    >>> list(reference_warnings([("anna", ~brain, brain)]))
    ['No reference marks any voxel: there is no lesion to find, so Dice and average precision cannot be measured.']
    """
    empty = True
    for name, reference, brain in scans:
        marked = int(np.count_nonzero(reference))
        if not marked:  # a healthy one among patients
            continue
        empty = False
        share = np.count_nonzero(reference & brain) / max(1, np.count_nonzero(brain))
        outside = np.count_nonzero(reference & ~brain) / marked
        if share > MOST_OF_BRAIN:
            yield (
                f"{name}: the reference marks {share:.0%} of the brain; is it a mask of the lesion, and not of the "
                "brain or of what is healthy?"
            )
        elif outside > MOST_OUTSIDE:
            yield (
                f"{name}: {outside:.0%} of the reference lies outside the brain mask; is it flipped, or of another "
                "patient, or is the brain mask wrong?"
            )
    if empty:
        yield (
            "No reference marks any voxel: there is no lesion to find, so Dice and average precision cannot be "
            "measured."
        )
