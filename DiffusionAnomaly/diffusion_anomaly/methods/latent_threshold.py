"""The KL above which the unsupervised method replaces a latent: learnt from healthy slices, kept in the package.

Apart from the method because training writes it and the method reads it: one file knows its form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError, ModelError
from ..options import check_number, is_finite, shown


def fit_latent_threshold(
    values: np.ndarray,
    percentile: float = 97.5,
    table: Sequence[float] = (50, 75, 90, 95, 97.5, 99, 99.5, 99.9),
) -> dict[str, Any]:
    """The package's ``latent_threshold`` from the KL of healthy validation slices.

    One value everywhere: one a latent position needs more healthy slices than validation has (docs/experiments.md).

    Args:
        values: every ``Improbability.kl`` inside the brain.
        percentile: of the healthy values (97.5 in the paper).
        table: percentiles also stored, so that users can choose another.
    """
    pooled = values[np.isfinite(values)].astype(np.float64)
    if pooled.size == 0:
        raise InputError("No healthy KL values to learn the latent threshold from.", "Check the brain masks.")
    return {
        "percentile": float(percentile),
        "value": float(np.percentile(pooled, percentile)),
        "table": [[float(p), float(np.percentile(pooled, p))] for p in table],
    }


def resolve_threshold(threshold: Any, percentile: float) -> float:
    """The KL above which a latent is replaced.

    Args:
        threshold: as described at ``UnsupervisedOptions``.
        percentile: the one wanted, for a threshold that comes with its own.

    Raises:
        ModelError: when there is none, or it is no finite number.
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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
        raise ModelError(f"The latent threshold is {shown(value)}.", "It must be one finite number.")
    return float(value)


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
