"""The examples in the engine's docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import diffusion_anomaly

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(diffusion_anomaly.__path__, "diffusion_anomaly.")
    if not module.name.endswith("__main__") and ".bundles" not in module.name
)


def test_there_are_examples_of_the_public_functions() -> None:
    api = importlib.import_module("diffusion_anomaly.api")
    shown = {test.name.rpartition(".")[2] for test in doctest.DocTestFinder().find(api) if test.examples}
    assert {"load", "models"} <= shown


@pytest.mark.parametrize("name", ["diffusion_anomaly", *MODULES])
def test_the_examples_do_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0
