"""The registry of methods. Another method is one new file and one line here; nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import InputError, ModelError
from .base import (
    Method,
    ProgressCallback,
    SliceBatch,
    SliceResult,
)
from .guided import Guided, GuidedOptions
from .intensity import Intensity, IntensityOptions
from .localise import Localise, LocaliseOptions
from .options import MethodOptions
from .restore import Restore, RestoreOptions
from .unsupervised import Unsupervised, UnsupervisedOptions

__all__ = [
    "METHODS",
    "GuidedOptions",
    "IntensityOptions",
    "LocaliseOptions",
    "Method",
    "MethodOptions",
    "ProgressCallback",
    "RestoreOptions",
    "SliceBatch",
    "SliceResult",
    "UnsupervisedOptions",
    "get_method",
    "make_options",
]

_ALL: tuple[Method, ...] = (Unsupervised(), Guided(), Restore(), Localise(), Intensity())
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: when there is none.
    """
    if name not in METHODS:
        raise InputError(f"Unknown method {name!r}.", f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def make_options(
    method: Method,
    bundle_options: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """A method's options: its defaults, overlaid by the model package's, overlaid by the user's.

    Args:
        method: whose options.
        bundle_options: what the model package sets.
        overrides: what the user sets; a value of None means that the user set nothing.

    Returns:
        An instance of ``method.options_type``.

    Raises:
        ModelError: when the package's own options are unknown or out of range.
        InputError: when the user's are, or do not go together with the package's.
    """
    try:
        packaged = _merge(method, {}, bundle_options or {})
        method.options_type(**packaged)
    except InputError as error:
        raise ModelError(f"The model package's options do not fit: {error.what}", error.hint) from error
    chosen = {name: value for name, value in (overrides or {}).items() if value is not None}
    return method.options_type(**_merge(method, packaged, chosen))


def _merge(method: Method, base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    known = [option.name for option in fields(method.options_type)]
    unknown = sorted(set(more) - set(known))
    if unknown:
        raise InputError(
            f"The method {method.name!r} has no option {', '.join(unknown)}.", f"It has {', '.join(known) or 'none'}."
        )
    return {**base, **more}
