"""A server of tests. Its packages are imported late, for they may not be there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffusion_anomaly.server.offer import Offer
    from servers import Served


@pytest.fixture(scope="session")
def offer(tmp_path_factory: pytest.TempPathFactory) -> Offer:
    """A model of toy size, called toy."""
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    pytest.importorskip("cryptography", reason="needs the extra serve")
    import packages
    from diffusion_anomaly.server.offer import Offer

    model = packages.intensity(
        tmp_path_factory.mktemp("models") / "toy",
        grid={"size": [40, 40], "spacing": 6.0},
        postprocess={"median_pixels": 5},
    )
    return Offer([model.path])


@pytest.fixture
def served(tmp_path: Path, offer: Offer) -> Iterator[Served]:
    """With two slots, quick bounds and the stand-in for a worker."""
    from servers import Served

    with Served(tmp_path / "server", offer) as server:
        yield server
