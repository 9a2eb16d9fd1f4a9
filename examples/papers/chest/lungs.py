"""Where the lungs are in a frontal film, approximately: by grey level, one on each side, much like each other's mirror
image. Nobody has outlined them here; looked at, the outlines are good enough to say "mostly inside" of a map, no more.

Lungs are dark, but how dark differs from film to film, and pneumonia and effusions are bright in part. So all
thresholds are tried, and the one is taken whose two dark pieces are most alike in size, height and form.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

THRESHOLDS = np.linspace(10, 60, 26)  # percentiles of the film's middle
SURROUNDINGS = 0.8  # how much of them is taken off: with all of them, the heart's edge is lost
LEAST_AREA, MOST_AREA = 0.035, 0.22  # of the film, for one lung
LEAST_LIKENESS = 0.5  # overlap of one lung and the other's mirror image, as Dice
MARGIN = 0.06  # of the film's height and width, where lungs do not begin


def lungs(film: np.ndarray) -> np.ndarray | None:
    """Both lungs of a frontal film.

    Args:
        film: ``(H, W)``, upright, bright bones.

    Returns:
        ``(H, W)`` bool; None where no two dark pieces look like lungs.
    """
    height, width = film.shape
    smooth = ndimage.gaussian_filter(film.astype(np.float32), 0.012 * height)
    smooth -= SURROUNDINGS * ndimage.gaussian_filter(smooth, 0.2 * height)  # dark beside what lies around
    middle = smooth[height // 5 : 4 * height // 5, width // 8 : 7 * width // 8]
    best, mask = 0.0, None
    for threshold in np.percentile(middle, THRESHOLDS):
        found = _pair(smooth < threshold)
        if found is None:
            continue
        worth = _likeness(*found) * min(1.0, (found[0] | found[1]).mean() / 0.2)  # of the alike, the large
        if worth > best and _likeness(*found) >= LEAST_LIKENESS:
            best, mask = worth, found[0] | found[1]
    return mask


def _pair(dark: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The largest dark piece of each half that is where and as large as a lung, filled."""
    height, width = dark.shape
    rows, columns = (max(1, round(MARGIN * n)) for n in dark.shape)
    opened = np.asarray(ndimage.binary_opening(dark, iterations=max(1, height // 64)), bool)
    # Air beside the body, and all that is connected to it, is no lung.
    labels, count = ndimage.label(opened)  # type: ignore[misc]
    outer = np.unique(np.concatenate([labels[:2].ravel(), labels[:, :2].ravel(), labels[:, -2:].ravel()]))
    inner = opened & ~np.isin(labels, outer)
    inner[:rows], inner[-rows:], inner[:, :columns], inner[:, -columns:] = False, False, False, False
    labels, count = ndimage.label(inner)  # type: ignore[misc]
    if count < 2:
        return None
    sides: list[np.ndarray | None] = [None, None]
    for number in np.argsort(-np.bincount(labels.ravel())[1:], kind="stable") + 1:
        piece = labels == number
        if piece.mean() < LEAST_AREA:
            break
        row, column = ndimage.center_of_mass(piece)
        side = int(column > width / 2)
        if sides[side] is None and piece.mean() <= MOST_AREA and 0.2 < row / height < 0.75:
            closed = ndimage.binary_closing(np.pad(piece, 16), iterations=max(1, height // 20))[16:-16, 16:-16]
            sides[side] = np.asarray(ndimage.binary_fill_holes(closed))
    left, right = sides
    return None if left is None or right is None else (left, right & ~left)


def _likeness(left: np.ndarray, right: np.ndarray) -> float:
    """Dice overlap of one and the other's mirror image, laid upon each other by their centres in the film's breadth."""
    mirrored = right[:, ::-1]
    shift = round(float(np.nonzero(left)[1].mean() - np.nonzero(mirrored)[1].mean()))
    mirrored = np.roll(mirrored, shift, axis=1)
    return float(2.0 * (left & mirrored).sum() / max(1, left.sum() + mirrored.sum()))


def enrichment(anomaly_map: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """The share of a map's sum that lies inside a mask, and the share of the film that the mask covers.

    Args:
        anomaly_map: ``(H, W)``, nowhere below 0, somewhere above.
        inside: ``(H, W)`` bool.
    """
    return float(anomaly_map[inside].sum() / anomaly_map.sum()), float(inside.mean())
