"""The models that a server offers: by name alone, so that no client can make it read a folder of its choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError
from ..models.package import Bundle, available, open_bundle
from ..options import shown
from ..registry import METHODS, get_method


class Offer:
    """Packages by name.

    Args:
        models: names of built-in packages and folders of others; none for all built-in ones.

    Raises:
        ModelError: for one that cannot be opened or is no model of slices.
    """

    def __init__(self, models: Sequence[str | Path] = ()) -> None:
        chosen = list(models) or [summary.path for summary in available() if summary.method in METHODS]
        self._bundles: dict[str, Bundle] = {}
        for one in chosen:
            bundle = open_bundle(one)
            if bundle.method not in METHODS:
                raise ModelError(f"{bundle.name} is no model that looks at scans.", "Leave it out.")
            self._bundles[bundle.name] = bundle

    def to_json(self) -> list[dict[str, Any]]:
        """As a client is told: what a package declares, without its weights."""
        return [
            {
                "name": bundle.name,
                "version": bundle.version,
                "method": bundle.method,
                "modality": bundle.modality,
                "license": bundle.license,
                "sha256": bundle.sha256,
                "declaration": bundle.anomaly,
            }
            for bundle in self._bundles.values()
        ]

    def choose(self, method: str | None, model: str | None, sha256: str) -> Bundle:
        """The package that an order means.

        Raises:
            InputError: for an unknown method.
            ModelError: when it is not offered, or is another version than the client's.
        """
        if model is None:
            model = get_method(method).default_model if method else self._default()
        bundle = self._bundles.get(model)
        names = ", ".join(self._bundles)
        if bundle is None:
            raise ModelError(f"The server offers no model {shown(model)}.", f"It offers {names}.")
        if sha256 and sha256 != bundle.sha256:
            raise ModelError(
                f"The server's {bundle.name} is version {bundle.version}, and another package than the client's.",
                "Have both use the same package.",
            )
        if method is not None and method != bundle.method:
            raise InputError(
                f"The model {bundle.name} is made for the method {bundle.method}, not {shown(method)}.",
                "Leave out the method, or choose another model.",
            )
        return bundle

    def _default(self) -> str:
        from ..registry import DEFAULT_METHOD

        default = get_method(DEFAULT_METHOD).default_model
        return default if default in self._bundles else next(iter(self._bundles))
