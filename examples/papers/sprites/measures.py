"""How well anomaly scores find the sprites, and a score the pictures of other classes, with bootstrap intervals over
slices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_anomaly.evaluation import metrics

THRESHOLDS = 256  # tried for the best Dice
RESAMPLES = 1000


def sprite_row(anomaly_map: np.ndarray, masks: np.ndarray, threshold: float, seed: int) -> dict[str, Any]:
    """Dice and average precision of the sprites, over all pixels.

    Args:
        anomaly_map: ``(N, H, W)``.
        masks: ``(N, H, W)`` bool, a sprite in each.
        threshold: the learnt one, above 0; a pixel counts as found from there on.
        seed: of the bootstrap.

    Returns:
        ``dice`` and ``mean_average_precision``, means over slices; ``best_dice``, the highest mean Dice of one
        threshold for all slices, and that threshold; ``average_precision`` of all pixels together. The first three
        with the ends of their intervals.
    """
    found = np.array([metrics.dice(h >= threshold, m) for h, m in zip(anomaly_map, masks, strict=True)])
    precision = np.array([metrics.average_precision(h[m], h[~m]) for h, m in zip(anomaly_map, masks, strict=True)])
    candidates = candidate_thresholds(anomaly_map, masks, threshold)
    curves = dice_curves(anomaly_map, masks, candidates)
    best = int(curves.mean(axis=0).argmax())
    row: dict[str, Any] = {
        "threshold": threshold,
        "best_threshold": float(candidates[best]),
        "average_precision": metrics.average_precision(anomaly_map[masks], anomaly_map[~masks]),
    }
    draws = metrics.resamples(len(anomaly_map), RESAMPLES, seed)
    for key, statistic in (
        ("dice", lambda draw: float(found[draw].mean())),
        ("best_dice", lambda draw: float(curves[draw].mean(axis=0).max())),
        ("mean_average_precision", lambda draw: float(precision[draw].mean())),
    ):
        row |= metrics.with_ends(key, statistic, draws)
    return row


def candidate_thresholds(anomaly_map: np.ndarray, masks: np.ndarray, learnt: float) -> np.ndarray:
    """Thresholds worth trying, ascending: scores of sprite pixels, equally spaced by rank, and the learnt one."""
    return np.unique(np.append(metrics.thin(np.unique(anomaly_map[masks & (anomaly_map > 0)]), THRESHOLDS), learnt))


def dice_curves(anomaly_map: np.ndarray, masks: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Each slice's Dice at each threshold, ``(N, T)``; every slice has a mask that is not empty."""
    curves = np.empty((len(anomaly_map), len(thresholds)))
    for number, (one, mask) in enumerate(zip(anomaly_map, masks, strict=True)):
        overlap = metrics.at_least(one[mask], thresholds)
        curves[number] = 2.0 * overlap / (metrics.at_least(one, thresholds) + np.count_nonzero(mask))
    return curves


def score_row(known: np.ndarray, alien: np.ndarray, seed: int) -> dict[str, Any]:
    """AUROC of a score that should be higher for ``alien`` pictures than for ``known`` ones, with its interval."""
    both, split = np.concatenate([known, alien]), len(known)
    draws = [metrics.resamples(split, RESAMPLES, seed), split + metrics.resamples(len(alien), RESAMPLES, seed + 1)]
    return metrics.with_ends(
        "auroc", lambda draw: metrics.auroc(both[draw[split:]], both[draw[:split]]), np.hstack(draws)
    )
