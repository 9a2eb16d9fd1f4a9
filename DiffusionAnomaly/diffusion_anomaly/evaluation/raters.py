"""How methods agree with each of several raters, and raters with each other: the ceiling of what can be asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import metrics
from .metrics import LesionMatch, Lesions


@dataclass(frozen=True)
class Agreement:
    """One patient's mask by a method, or by a rater, against another rater's.

    Attributes:
        who: label of the run, or name of the rater.
        rater: who is taken for right.
        patient: the scan's name.
        dice: NaN where the rater marked nothing.
        lesions: how the components meet.
    """

    who: str
    rater: str
    patient: str
    dice: float
    lesions: LesionMatch


def agreements(
    patient: str, predicted: Mapping[str, np.ndarray], raters: Mapping[str, np.ndarray], voxel_ml: float
) -> Iterator[Agreement]:
    """Every method and every rater against every other rater.

    Args:
        patient: the scan's name.
        predicted: bool mask of each run by its label.
        raters: bool mask of each rater by name.
        voxel_ml: volume of a voxel.
    """
    for rater, reference in raters.items():
        lesions = Lesions.of(reference, voxel_ml)
        for who, mask in {**predicted, **raters}.items():
            if who != rater:
                yield Agreement(who, rater, patient, metrics.dice(mask, reference), lesions.match(mask))


def rater_rows(found: Sequence[Agreement], draws: np.ndarray) -> list[dict[str, Any]]:
    """A row a pair of method and rater, or of two raters: mean Dice and share of lesions found, with intervals.

    Args:
        found: of all patients, each pair's in the same order of patients.
        draws: of patients, see ``metrics.resamples``.
    """
    rows = []
    for who, rater in dict.fromkeys((one.who, one.rater) for one in found):
        own = [one for one in found if (one.who, one.rater) == (who, rater)]
        dice = np.array([one.dice for one in own])
        hits = np.array([sum(one.lesions.found) for one in own])
        lesions = np.array([len(one.lesions.found) for one in own])

        def recall(chosen: np.ndarray, hits: np.ndarray = hits, lesions: np.ndarray = lesions) -> float:
            total = lesions[chosen].sum()
            return float(hits[chosen].sum() / total) if total else math.nan

        row: dict[str, Any] = {"mask": who, "rater": rater, "lesions": int(lesions.sum())}
        statistics = {"dice": lambda chosen, dice=dice: metrics.mean_or_nan(dice[chosen]), "lesion_recall": recall}
        for key, statistic in statistics.items():
            row |= metrics.with_ends(key, statistic, draws)
        rows.append(row)
    return rows
