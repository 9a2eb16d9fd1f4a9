"""What several test files share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import phantom
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.detection.recognition import Recognition
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.process import end_like_interrupt
from diffusion_anomaly.results.result import Result

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real scans beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real scans in {SHARED}, which are not distributed with the repository")
    return SHARED


@pytest.fixture(autouse=True)
def phantoms_are_known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ellipsoids are no brains, and what tells scans apart knows it; only its own tests ask it."""
    if not request.module.__name__.endswith("test_recognition"):
        monkeypatch.setattr(Recognition, "verdict", lambda *_: None)


@pytest.fixture
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: the report has its own tests, and drawing takes longer than all else where it is asked for."""
    monkeypatch.setattr("diffusion_anomaly.results.report.write_report", lambda result, path: path.write_text("page"))


@pytest.fixture
def signals_stay() -> Iterator[None]:
    """Signals as in a process of the command line, until the test has ended.

    They are as in a terminal, also where the tests were started in the background or by nohup, which ignore some.
    """
    kinds = [kind for name in ("SIGINT", "SIGTERM", "SIGHUP") if (kind := getattr(signal, name, None))]
    before = [signal.getsignal(kind) for kind in kinds]
    for kind in kinds:
        signal.signal(kind, signal.SIG_DFL)
    end_like_interrupt()
    yield
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scan``, ``brain`` and ``lesion.nii.gz`` of a small head, to be read alone."""
    return phantom.write_scan(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="session")
def small_result(scans: Path) -> Result:
    """What the baseline finds in ``scans``."""
    return Detector(Options("intensity", device="cpu"))(scans / "scan.nii.gz", brain=scans / "brain.nii.gz")


@pytest.fixture(scope="session")
def flair_like_grid() -> sitk.Image:
    """Axial slices of a whole head, 2.4 mm in-plane and 5 mm thick."""
    return phantom.grid((64, 72, 26), (2.4, 2.4, 5.0))


@pytest.fixture(scope="session")
def flair_like_volume(flair_like_grid: sitk.Image) -> Volume:
    """An ellipsoid head with scalp, brain, dark fluid amid it and one bright lesion, with noise."""
    noise = np.random.default_rng(0).normal(0, 3, flair_like_grid.GetSize()[::-1]).astype(np.float32)
    clean = sitk.GetArrayFromImage(phantom.paint(flair_like_grid, fluid=True))
    return phantom.as_volume(phantom.on_grid(np.where(clean > 0, clean + noise, 0), flair_like_grid))


@pytest.fixture(scope="session")
def flair_like_brain(flair_like_grid: sitk.Image) -> sitk.Image:
    """Brain mask of `flair_like_volume`, uint8."""
    return phantom.brain_of(flair_like_grid)


@pytest.fixture(scope="session")
def flair_like_lesion(flair_like_grid: sitk.Image) -> sitk.Image:
    """True lesion of `flair_like_volume`, uint8."""
    return phantom.lesion_of(flair_like_grid)
