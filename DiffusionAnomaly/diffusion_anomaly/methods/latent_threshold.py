"""The KL above which the unsupervised method heals a latent: learnt from healthy slices, kept in the package.

Apart from the method because training writes it and the method reads it: one file knows its form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ModelError
from ..options import check_number


def fit_latent_threshold(
    values: np.ndarray,
    percentile: float = 97.5,
    table: Sequence[float] = (50, 75, 90, 95, 97.5, 99, 99.5, 99.9),
) -> dict[str, Any]:
    """The package's ``latent_threshold`` from the KL of healthy validation slices.

    Args:
        values: either ``(K,)``, every ``Improbability.kl`` inside the brain, for one value everywhere; or
            ``(slices, h, w)`` with NaN outside the brain, for one value a latent position. A position seen
            inside the brain too rarely for even one value above the percentile takes that of all positions.
        percentile: of the healthy values (97.5 in the paper).
        table: percentiles also stored with a single value, so that users can choose another.
    """
    pooled = values[np.isfinite(values)].astype(np.float64)
    if pooled.size == 0:
        raise InputError("No healthy KL values to learn the latent threshold from.", "Check the brain masks.")
    overall = float(np.percentile(pooled, percentile))
    if values.ndim == 1:
        return {
            "percentile": float(percentile),
            "value": overall,
            "table": [[float(p), float(np.percentile(pooled, p))] for p in table],
        }
    seen = np.isfinite(values).sum(axis=0)
    by_position = np.full(values.shape[1:], overall)
    for row, column in np.argwhere(seen * (1.0 - percentile / 100.0) >= 1.0):
        by_position[row, column] = np.nanpercentile(values[:, row, column], percentile)
    return {"percentile": float(percentile), "value": by_position.tolist()}


def resolve_threshold(threshold: Any, percentile: float) -> Tensor:
    """The KL above which a latent is healed, float32 of no dimension or ``(h, w)``.

    Args:
        threshold: as described at ``UnsupervisedOptions``.
        percentile: the one wanted, for a threshold that comes with its own.

    Raises:
        ModelError: when there is none, or it is no finite number or rectangle of numbers.
        InputError: when a percentile is asked for that the package carries no threshold for.
    """
    value = threshold
    if isinstance(threshold, Mapping):
        value = threshold.get("value")
        stored = float(threshold.get("percentile", percentile))
        if stored != percentile:
            value = _from_table(threshold.get("table"), stored, percentile)
    if value is None:
        raise ModelError("The model package carries no latent threshold.", "Calibrate the package, or set one.")
    try:
        tensor = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"The latent threshold cannot be read: {error}.", "Use numbers only.") from error
    if tensor.ndim not in (0, 2) or not bool(torch.isfinite(tensor).all()):
        raise ModelError(
            f"The latent threshold has shape {tuple(tensor.shape)} or holds values that are not finite.",
            "Use a number, or rows of numbers, one a latent position.",
        )
    return tensor


def _from_table(table: Any, stored: float, percentile: float) -> float:
    """The threshold at a percentile between two of a package's table."""
    if not table:
        raise InputError(
            f"Option latent_percentile is {percentile:g}, but the package knows {stored:g} only.",
            f"Leave it at {stored:g}, or set latent_threshold.",
        )
    percentiles, values = np.asarray(table, dtype=np.float64).T
    check_number("latent_percentile", percentile, percentiles.min(), percentiles.max(), whole=False)
    return float(np.interp(percentile, percentiles, values))
